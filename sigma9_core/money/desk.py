"""The order desk: the one place where orders are decided, written down, sent, and followed to their end.

    OrderRequest → risk gate (one decision at a time) → intent in the journal → broker, once → reports

An order is counted by the gate from the moment of its decision. Whatever is in doubt is `unknown` and is
resolved by reading back (`reconcile.py`), never by sending again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sigma9_core.calendar import Calendar, trading_day
from sigma9_core.clock import Clock
from sigma9_core.commands import wrong_prices
from sigma9_core.contracts import KEPT as TERMS
from sigma9_core.contracts import BrokerOrder, BrokerReport, Execution, Margin, RiskView, Submission
from sigma9_core.errors import BrokerRefused, CommandError, ErrorCode, JournalError, in_words
from sigma9_core.events import TradeEvent
from sigma9_core.models import (
    ZERO,
    ApprovedOrder,
    Fill,
    Intent,
    OrderRequest,
    OrderStatus,
    OrderView,
    Side,
    Verdict,
)
from sigma9_core.money.gate import CORE, Decision, GateClosed, RiskGate
from sigma9_core.money.ids import OrderIds, is_kill_id, kill_id
from sigma9_core.money.journal import Journal
from sigma9_core.money.link import BrokerLink
from sigma9_core.money.orderbook import OrderBook
from sigma9_core.money.orders import TRANSITIONS, IllegalMessage, Message, Order
from sigma9_core.money.portfolio import Applied, Portfolio
from sigma9_core.money.pricing import expected_price, met_price
from sigma9_core.money.recall import recalled
from sigma9_core.money.records import EventRecord, FillRecord, IntentRecord, NoteRecord, Record
from sigma9_core.money.surroundings import Surroundings
from sigma9_core.money.turnover import KEPT, TurnoverBook

log = logging.getLogger("sigma9.orders")

SUBMIT_TIMEOUT: Final = 10.0
"""Seconds until a broker's silence on a submit, replace or cancel makes the outcome unknown."""
ANSWERED_WITHIN: Final = 2.0
"""Seconds that who asks for a change waits for the broker's word on it."""
CONFIRMED_WITHIN: Final = 2.0
"""Seconds that a change waits for the broker's word on its order."""
UNCONFIRMED: Final = (OrderStatus.SUBMITTED, OrderStatus.UNKNOWN)
"""How an order stands of which the broker has said nothing."""
URGENT_WAIT: Final = 0.25
"""Seconds that a kill's close waits for its intent to be on disk."""
REMEMBERED: Final = timedelta(minutes=10)
"""How long the duplicate and rate rules see an order."""
BEHIND: Final = "what the broker has done while it was away is being read back"
REFUSED_AS: Final[Mapping[str, ErrorCode]] = {"kill_switch": "killed", "engine": "not_running"}
"""The answer's code where the gate's own check refused an order; any other refusal is `risk_rejected`."""
PROTECTIVE: Final = frozenset(("stop", "stop_limit", "trailing_stop"))
"""Kinds of order that guard a position where they reduce it, whoever has sent them."""
BEGINNINGS: Final = (OrderStatus.SUBMITTED, OrderStatus.RISK_REJECTED)
"""How an order stands when its intent has been written, and nothing else has happened to it."""
KEPT_EXECUTIONS: Final = 100
"""Fills that the risk rules see."""
KEPT_ORDERS: Final = 2000
"""Ended orders that are kept in memory; the journal has them all."""


@dataclass(frozen=True, slots=True)
class Step:
    """One event in an order's life, as followers see it."""

    order: Order
    event: OrderStatus
    fill: Fill | None = None
    applied: Applied | None = None
    revived: bool = False
    """It had ended, as far as was known, and works again."""


Follower = Callable[[Step], None]


class OrderDesk:
    """Decides, journals, sends and follows orders; everything here runs on the money lane."""

    def __init__(
        self,
        *,
        gate: RiskGate,
        journal: Journal,
        portfolio: Portfolio,
        clock: Clock,
        calendar: Calendar,
        snapshot: Mapping[str, Any],
    ) -> None:
        self.gate = gate
        self.journal = journal
        self.portfolio = portfolio
        self.orders = OrderBook(KEPT_ORDERS)
        """Every working order and the newest ended ones, by our id."""
        self.foreign: dict[str, OrderView] = {}
        """Orders at the broker that are not ours, by the broker's id."""
        self.in_flight: set[str] = set()
        """Orders that have been decided and are not sent yet, or are being sent at this moment."""
        self._waiting: set[str] = set()
        """Those of them whose intent is being written: nothing of them has left."""
        self._unwritten: set[str] = set()
        """Orders whose intent may never get into the journal: facts of them are there only if it does."""
        self.changing: set[str] = set()
        """Orders whose change is being judged, written or sent at this moment."""
        self.behind: Callable[[], bool] = lambda: False
        """Tells that the broker is there again, and what it has done while it was away is not read back yet."""
        self.before_report: Callable[[], None] = lambda: None
        """Called before each report is taken: what it tells may be the first of a day."""
        self.after_charge: Callable[[], None] = lambda: None
        """Called when a commission has changed the books, which is no step of an order."""
        self.followers: list[Follower] = []
        self.surroundings = Surroundings(self._broker)
        self._clock = clock
        self._calendar = calendar
        self._snapshot = snapshot
        self._link: BrokerLink | None = None
        self._ids = OrderIds()
        self._decisions = asyncio.Lock()
        self._turns = asyncio.Lock()
        self._recent: deque[Submission] = deque()
        self._changes: deque[datetime] = deque()
        self._filled: deque[Execution] = deque(maxlen=KEPT_EXECUTIONS)
        self._traded = TurnoverBook()
        self._entries: dict[str, int] = {}
        self._executions: set[str] = set()
        self._busted: set[str] = set()
        """Executions that were taken back out of a stand-in."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._facts: set[Future[Any]] = set()
        self.orphan_reports = 0
        """Reports on orders that are not in memory; what the journal knows of them is looked up for a fill."""
        self.failed_reports = 0
        """Reports that could not be taken; each is in the log."""

    def attach(self, link: BrokerLink) -> None:
        """Name the link that orders go out by."""
        self._link = link

    @property
    def keeps(self) -> frozenset[str]:
        """Name the terms of an order that the broker keeps to by itself."""
        return frozenset() if self._link is None else self._link.keeps

    # --- orders in ------------------------------------------------------------------------------------------

    async def submit(
        self,
        requests: Sequence[OrderRequest],
        *,
        cause: str | None = None,
        records: Sequence[Record] = (),
        urgent: bool = False,
        decided: Callable[[Sequence[Order]], Sequence[Record]] | None = None,
    ) -> list[Order]:
        """Decide and send one order, or a group as one unit: the parent first, its legs after it.

        A leg without a `parent_id` of its own gets the first order's. Where any is refused, none is sent, and
        the refused ones come back as `risk_rejected`. `records`, and those that `decided` gives once the orders
        have their ids, are committed together with the intents.
        Raise JournalError where the intent could not be made durable: nothing was sent, and the orders are
        forgotten. Where it turns out to be there all the same (`unknown`), so is the end of an order that was
        never sent. What is `urgent` (a kill's close) does not wait for a journal that fails: its intent is a
        fact, written when it can be.
        """
        orders: list[Order] = []
        written_down = False
        try:
            margins = await self._ask_about(requests)
            if all(request.intent == "kill" for request in requests):
                # No rule of unknown speed is asked about them: nothing here waits, and they wait for nobody.
                approved = await self._decide(requests, orders, margins)
            else:
                async with self._decisions:
                    approved = await self._decide(requests, orders, margins)
            sending = len(approved) == len(requests)
            if not sending:
                for order in orders:
                    self.orders.pop(order.order_id, None)
                    if order.status is not OrderStatus.RISK_REJECTED:
                        order.status = OrderStatus.RISK_REJECTED
                        order.reason = "another order of its group was refused"
                        order.touch()
            more = decided(orders) if sending and decided is not None else ()
            written = [*self._intents(orders, cause), *records, *more]
            written_down = True  # or it may be: who is stopped while it is being written can't tell
            ids = {order.order_id for order in orders}
            if sending:
                self._waiting |= ids
            try:
                if urgent:
                    await self._write_down(written)
                else:
                    self._unwritten |= ids
                    await self.journal.commit(written)
                    self._unwritten -= ids
            except JournalError as error:
                log.error("nothing was sent for %s: %s", requests[0].symbol, error)
                if error.unknown:
                    self._end_unsent(orders, "never sent: the journal failed while its intent was being written")
                written_down = False
                raise
            if not urgent:
                await self._turn()
            for order in orders:
                if order.status in BEGINNINGS:  # of one that has ended meanwhile, its end was told
                    self._tell(Step(order, order.status))
            if sending:
                await self._send(orders, approved)
        except BaseException as error:  # whatever it is: what was decided and has not left must not stand there
            if not written_down:
                self._undo(orders)
                raise
            why = "whoever asked for it was stopped" if isinstance(error, asyncio.CancelledError) else str(error)
            self._end_unsent(orders, f"not sent: {why}")
            raise
        finally:
            self.in_flight.difference_update(order.order_id for order in orders)
            self._waiting.difference_update(order.order_id for order in orders)
        return orders

    def _end_unsent(self, orders: Sequence[Order], reason: str) -> None:
        """End what was written down, or may have been, and has not left; what has left is `unknown` already."""
        for order in orders:
            if order.status is OrderStatus.SUBMITTED and order.order_id in self.in_flight:
                self.local(order, "cancelled", reason)

    def _undo(self, orders: Sequence[Order]) -> None:
        """Forget orders that were decided and never sent, and of which nothing is to be told any more."""
        gone = {order.order_id for order in orders}
        for order in orders:
            self.orders.pop(order.order_id, None)
            if order.working:  # also for whoever still holds it
                order.take("cancelled", reason="never sent")
        self._unwritten -= gone
        counted = [sent.request for sent in self._recent if sent.order_id in gone]
        self._count(counted, -1)
        self._recent = deque(sent for sent in self._recent if sent.order_id not in gone)

    async def modify(
        self,
        order_id: str,
        changes: Mapping[str, Any],
        *,
        cause: str | None = None,
        records: Sequence[Record] = (),
    ) -> Order:
        """Change a working order; the change is judged as a new order would be.

        It waits a moment for the broker's word on the order: of one that never arrived, a change might be taken
        for a new one. Raise CommandError: `not_found`, `invalid` (a price that does not go with its type),
        `conflict` (not working, or the broker refused), `busy` (being sent or changed, or not confirmed yet),
        `risk_rejected`, `killed` or `not_running` (by the gate, also where it closed before the change was sent),
        `broker_unavailable` (which says whether it was sent; where it was, reading back tells what became of it).
        """
        order = self.working(order_id)
        changed = _adjustable(order.request.model_copy(update=dict(changes)))
        if wrong := wrong_prices(changed):
            errors = [{"field": name, "message": message} for name, message in wrong.items()]
            told = "; ".join(f"{name} {message}" for name, message in wrong.items())
            raise CommandError("invalid", told, {"field": next(iter(wrong)), "errors": errors})
        if order_id in self.in_flight and order.status is OrderStatus.SUBMITTED:
            raise CommandError("busy", f"order {order_id} is being sent at this moment: ask again")
        await self._confirmed(order)
        self.changing.add(order_id)
        try:
            await self._change(order, changed, cause, records)
        finally:
            self.changing.discard(order_id)
        return order

    async def answered(self, order: Order) -> None:
        """Wait a moment for the broker's word on a change that was sent; raise CommandError where it was not made.

        What is silent longer than that tells it by an event, `replaced` or `unchanged`.
        """
        await self.until(lambda: order.replacement is None or not order.working, ANSWERED_WITHIN)
        if order.unchanged is not None and order.replacement is None:
            raise CommandError("conflict", f"order {order.order_id} stands as it was: {order.reason}")

    async def _confirmed(self, order: Order) -> None:
        """Wait a moment until the broker has confirmed an order that is to be changed; raise CommandError."""
        order_id = order.order_id
        if not await self.until(lambda: order.status not in UNCONFIRMED, CONFIRMED_WITHIN):
            why = f"order {order_id} is not confirmed by the broker yet, and its change was not sent: ask again"
            raise CommandError("busy", why)
        self.working(order_id)
        if order_id in self.changing:
            raise CommandError("busy", f"order {order_id} is being changed at this moment: ask again")

    async def _change(
        self, order: Order, request: OrderRequest, cause: str | None, records: Sequence[Record]
    ) -> None:
        order_id = order.order_id
        sent = False
        try:
            async with self._decisions:
                # The signal of the first decision is no signal of this change, which a person makes.
                judged = request.model_copy(update={"signal": None, "source": "api"})
                view = self.view()
                shrinks = self.gate.shrinks(order_id, request, view)
                decision = await self.gate.decide(order_id, judged, view)
                if decision.approved is not None:
                    order.replacement, order.unchanged = request, None
                    self._changes.append(self._clock.now())
            intent = IntentRecord(
                order_id=order_id,
                ts=self._clock.now(),
                request=request,
                verdicts=decision.verdicts,
                approved=decision.approved is not None,
                cause=cause,
                snapshot=self._snapshot,
            )
            await self.journal.commit([intent, *records])
            await self._turn()
            if decision.approved is None:
                raise refusal(decision.verdicts)
            if (closed := self.gate.closing(request, shrinks=shrinks)) is not None:
                raise _unsent_change(order_id, closed)
            if self.behind():
                raise CommandError("broker_unavailable", f"the change of order {order_id} was not sent: {BEHIND}")
            if (outgrown := self.gate.outgrown(order_id, request, self.view())) is not None:
                raise CommandError("conflict", f"the change of order {order_id} was not sent: {outgrown}")
            if self.working(order_id).request.order_type != request.order_type:  # or ended, while it was written
                told = f"the broker has made a {order.request.order_type} of it meanwhile"
                raise CommandError("conflict", f"the change of order {order_id} was not sent: {told}")
            try:
                broker = self._broker()
            except CommandError as error:
                raise CommandError(
                    "broker_unavailable", f"the change of order {order_id} was not sent: {error}"
                ) from error
            sent = True
            async with asyncio.timeout(SUBMIT_TIMEOUT):
                await self.gate.let_out([request], broker.replace(decision.approved), shrinks=shrinks)
        except GateClosed as closing:
            sent = False
            raise _unsent_change(order_id, closing.verdict) from closing
        except BrokerRefused as error:
            sent = False
            raise CommandError("conflict", f"the broker refused the change: {error}") from error
        except Exception as error:  # a broker plugin may raise anything; the outcome is then unknown
            if not sent:
                raise
            log.exception("the change of order %s has an unknown outcome", order_id)
            raise CommandError(
                "broker_unavailable",
                f"the change of order {order_id} was sent and its outcome is not known: {error}",
            ) from error
        finally:
            if not sent and order.replacement is request:
                order.replacement = None

    async def cancel(self, order_id: str) -> Order:
        """Ask the broker to cancel; what becomes of it comes as an event.

        Raise CommandError as `modify` does, `broker_unavailable` where the broker does not take the cancel.
        """
        order = self.working(order_id)
        failed = await self.ask_cancel(order)
        if failed is not None and order.working:
            raise CommandError("broker_unavailable", f"order {order_id} goes on working: {failed}")
        return order

    async def ask_cancel(self, order: Order) -> str | None:
        """Send a cancel for a working order; a broker's failure leaves the order as it is, and is logged and told.

        An order that has not left yet, because its intent is being written, is not sent any more.
        """
        if order.order_id in self._waiting:
            self.local(order, "cancelled", "cancelled before it was sent")
            return None
        order.cancel_asked = True
        try:
            async with asyncio.timeout(SUBMIT_TIMEOUT):
                await self._broker().cancel(order.order_id)
        except CommandError:
            order.cancel_asked = False
            raise
        except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; a cancel is asked again
            order.cancel_asked = False
            log.warning("the cancel of order %s failed: %s", order.order_id, error)
            return in_words(error)
        return None

    async def preview(self, request: OrderRequest) -> tuple[Decision, Margin | None]:
        """Ask every rule about an order that is not sent, and the broker what it would do to the account."""
        (asked,) = await self._ask_about([request])
        async with self._decisions:
            return await self.gate.decide(self._ids.new(), request, self.view(asked)), asked

    def working(self, order_id: str) -> Order:
        """Give a working order of ours, or raise the CommandError that says why not."""
        order = self.orders.get(order_id)
        if order is None:
            raise CommandError("not_found", f"no order of ours has the id '{order_id}'", {"field": "order_id"})
        if not order.working:
            raise CommandError("conflict", f"order {order_id} is {order.status} already", {"status": order.status})
        return order

    def open_orders(self) -> list[Order]:
        """List our working orders, oldest first."""
        return self.orders.working()

    # --- reports in -----------------------------------------------------------------------------------------

    def on_report(self, report: BrokerReport, *, recovered: bool = False) -> None:
        """Take what the broker says of an order: change it, journal the fact, tell the followers.

        Nothing is raised: a broker has no use for our failures. What can't be taken is logged and counted; what
        comes before it costs no report.
        """
        for part in (self.before_report, lambda: self._take(report, recovered=recovered)):
            try:
                part()
            except Exception:
                # Whatever is wrong with a report or with a follower, the broker's own work has to go on.
                self.failed_reports += 1
                log.exception("a report (%s) on order '%s' could not be taken", report.kind, report.order_id)

    async def recall(self, order_id: str) -> Order | None:
        """Give an order, from the journal where it is not in memory any more; None where it is not ours."""
        if order_id not in self.orders:
            order = await asyncio.to_thread(recalled, self.journal, order_id)
            if order is None:
                return None
            self.orders.setdefault(order_id, order)
        return self.orders[order_id]

    async def recall_kill(
        self, order_id: str, symbol: str, side: Side, quantity: Decimal, shown: BrokerOrder | None = None
    ) -> Order | None:
        """Take back a kill's order that the broker has and the journal may not: its id says that it is ours.

        The crash came before its intent was on disk; it is written now, with the terms that the broker has
        `shown`: a stop that was put back is no close. None where it is none of ours.
        """
        if not is_kill_id(order_id, self.journal.journal_id):
            return None
        known = await self.recall(order_id)
        if known is not None:
            return known
        request = OrderRequest(
            symbol=symbol,
            side=side,
            quantity=quantity,
            strategy=self.portfolio.position(symbol).strategy,
            source="kill_switch",
            intent="kill",
            **({} if shown is None else _terms_of(shown)),
            reason="kill switch: sent while its intent could not be written, and found again at the broker",
        )
        order = Order(order_id, request, (), self._clock.now(), recovered=True)
        self.orders[order_id] = order
        self.note(self._intents([order], "kill_switch"))
        log.critical("order %s in %s was sent by a kill and is not in the journal: taken back", order_id, symbol)
        return order

    def _take(self, report: BrokerReport, *, recovered: bool) -> None:
        if report.kind == "filled" and report.fill is not None and report.fill.exec_id in self._executions:
            return  # told twice: counted once
        if report.kind == "commission":
            self._commission(report)
            return
        order = self.orders.get(report.order_id)
        if order is None:
            self.orphan_reports += 1
            log.warning("a report (%s) on order '%s', which is not in memory", report.kind, report.order_id)
            if report.order_id and (report.fill is not None or report.kind == "revived"):
                self.spawn(self._late(report), f"late-report[{report.order_id}]")
            return
        if report.broker_order_id is not None and order.broker_order_id is None:
            order.broker_order_id = report.broker_order_id
            order.touch()
        fill, stood_for = report.fill, stand_in(order) in self._executions
        standing = self._corrected(fill)
        if report.kind == "filled" and fill is not None and stood_for and not standing:
            log.warning("execution %s of order %s is counted already", fill.exec_id, order.order_id)
            self._executions.update((fill.exec_id, *fill.corrects))
            return
        untold = fill is not None and fill.exec_id not in self._executions and not stood_for
        if report.kind == "busted" and fill is not None and untold:
            # Counted first: a read-back would find an order that has filled, and count what is gone.
            self._apply(order, "filled", fill, None, fill.ts, recovered=True)
        recovered = recovered or report.kind == "revived"
        self._apply(order, report.kind, report.fill, report.reason, report.ts, recovered=recovered)

    def _commission(self, report: BrokerReport) -> None:
        """Book a commission that the broker told after its execution, in the books and at its order."""
        fill = report.fill
        more = ZERO if fill is None else self.portfolio.commission(fill.exec_id, fill.commission)
        if fill is None or not more:
            return
        body = {"exec_id": fill.exec_id, "order_id": report.order_id, "amount": str(fill.commission)}
        self.note([NoteRecord("commission", report.ts, body)])
        if (order := self.orders.get(report.order_id)) is not None:
            order.charge(more)
        self.after_charge()

    async def _late(self, report: BrokerReport) -> None:
        if await self.recall(report.order_id) is not None:
            self.on_report(report, recovered=True)

    def local(self, order: Order, message: Message, reason: str, *, recovered: bool = False) -> None:
        """Apply one of our own conclusions, such as `lost`, or the end that a read-back showed."""
        self._apply(order, message, None, reason, self._clock.now(), recovered=recovered)

    def local_fill(self, order: Order, fill: Fill) -> None:
        """Count a fill that a read-back has shown and no execution tells."""
        self._apply(order, "filled", fill, None, fill.ts, recovered=True)

    def _apply(
        self,
        order: Order,
        message: Message,
        fill: Fill | None,
        reason: str | None,
        ts: datetime,
        *,
        recovered: bool,
    ) -> None:
        applied, back = None, dict[str, str]()
        wrong = self._corrected(fill) if message == "filled" else []
        if fill is not None and (order.status, message) in TRANSITIONS:
            if message == "filled":
                # First: it refuses what makes no sense.
                applied = self.portfolio.apply(fill, order.request.strategy, recovered=recovered)
            elif message == "busted" and not (back := self._take_back(order, fill)):
                return  # told twice: taken back once
        order.recovered = recovered
        order.touch()
        try:
            event = order.take(message, fill=fill, reason=reason, wrong=wrong)
        except IllegalMessage as error:
            log.warning("%s; ignored", error)
            return
        if event is None:
            return
        if message == "revived":
            self.orders[order.order_id] = order  # among those that work
            log.warning("order %s in %s works again: %s", order.order_id, order.request.symbol, order.reason)
        records: list[Record] = []
        if fill is not None and event is OrderStatus.BUSTED:
            records.append(NoteRecord("bust", ts, back))
        elif fill is not None:
            gone = {each.exec_id for each in wrong} | {*fill.corrects} - self._executions
            self._remember_fill(order, fill, corrects=bool(wrong))
            records.append(FillRecord(fill, order.request.strategy, order.request.source, recovered))
            records += [
                NoteRecord("bust", ts, {"exec_id": name, "order_id": order.order_id, "by": fill.exec_id})
                for name in sorted(gone)
            ]
        data = TradeEvent.of(
            order.view().model_copy(update={"status": event}),
            trade_id=fill.exec_id if fill and applied else None,
            corrects=tuple(each.exec_id for each in wrong),
        )
        records.append(EventRecord("trade_event", data, ts, cause=order.order_id))
        self.note(records, of=order.order_id)
        self._tell(Step(order, event, fill, applied, revived=message == "revived"))

    def _corrected(self, fill: Fill | None) -> list[Fill]:
        """Give what stands of the executions that one takes the place of."""
        names = () if fill is None else fill.corrects
        return [each for name in names if (each := self.portfolio.standing(name)) is not None]

    def _remember_fill(self, order: Order, fill: Fill, *, corrects: bool) -> None:
        self._executions.update((fill.exec_id, *fill.corrects))
        if corrects:  # it was traded once
            kept = [each for each in self._filled if each.fill.exec_id not in fill.corrects]
            self._filled = deque(kept, maxlen=KEPT_EXECUTIONS)
        else:
            self._traded.count([fill])
        self._filled.append(_execution(order, fill))

    def _take_back(self, order: Order, fill: Fill) -> dict[str, str]:
        """Take an execution out of the books, or out of what stands for it; give the note, empty for none."""
        back = {"exec_id": fill.exec_id, "order_id": order.order_id}
        if self.portfolio.counted(fill.exec_id):
            return back if self.portfolio.bust(fill.exec_id) else {}
        counted = stand_in(order)
        standing = self.portfolio.standing(counted)
        if fill.exec_id in self._busted or standing is None:
            return {}
        self.portfolio.bust(counted, fill.quantity)
        self._busted.add(fill.exec_id)
        back |= {"exec_id": counted, "told": fill.exec_id}
        return back if fill.quantity >= standing.quantity else {**back, "quantity": str(fill.quantity)}

    # --- what the gate sees ---------------------------------------------------------------------------------

    def view(self, margin: Margin | None = None) -> RiskView:
        """Show the gate one moment: positions, working orders (reservations included), marks, recent orders."""
        now = self._clock.now()
        session = self._calendar.at(now)
        while self._recent and now - self._recent[0].at > REMEMBERED:
            self._recent.popleft()
        while self._changes and now - self._changes[0] > REMEMBERED:
            self._changes.popleft()
        working: list[OrderView] = list(self.foreign.values())
        intents: dict[str, Intent] = {}
        for order in self.orders.working():
            working += order.possible()
            intents[order.order_id] = order.request.intent
        day = trading_day(now)
        return self.portfolio.risk_view(
            session=session,
            working=working,
            intents=intents,
            recent=tuple(self._recent),
            entries_today=self._entries.get(day, 0),
            changes=tuple(self._changes),
            executions=tuple(self._filled),
            traded=self._traded.at(now),
            instruments=self.surroundings.instruments,
            margin=margin,
            feed=self.surroundings.feed,
            clock_offset=self.surroundings.clock_offset,
        )

    # --- housekeeping ---------------------------------------------------------------------------------------

    def adopt(
        self,
        orders: Iterable[Order],
        executions: Iterable[str],
        entries: Mapping[str, int],
        recent: Iterable[Submission],
        traded: Iterable[Fill] = (),
        *,
        busted: Iterable[str] = (),
    ) -> None:
        """Take back what the journal knows after a restart.

        `traded` are the fills of our orders that stand; `busted` are executions that were taken out of stand-ins.
        """
        self._busted.update(busted)
        since = self._clock.now() - KEPT
        self._traded.count(fill for fill in traded if fill.ts >= since)
        self._recent.extend(recent)
        self.orders.update((order.order_id, order) for order in orders)
        self._executions.update(executions)
        self._entries.update(entries)

    def tick_of(self, symbol: str) -> Decimal | None:
        """Give the smallest step of a symbol's price where the broker has told it."""
        known = self.surroundings.instruments.get(symbol)
        return None if known is None else known.tick

    def knows_execution(self, exec_id: str) -> bool:
        """Tell whether an execution has been counted."""
        return exec_id in self._executions

    def is_unwritten(self, order_id: str) -> bool:
        """Tell whether the intent of an order may never get into the journal."""
        return order_id in self._unwritten

    def note(self, records: Sequence[Record], *, of: str | None = None) -> None:
        """Write facts to the journal without waiting; they are retried until they are there.

        Facts `of` an order whose intent may never get there are left out if it does not: nothing else of it is.
        """
        future = self.journal.write(records, fact=True, of=of if of in self._unwritten else None)
        self._facts.add(future)
        future.add_done_callback(self._facts.discard)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a short piece of money-lane work that `settle` waits for; a failure is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def until(self, happened: Callable[[], bool], within: float) -> bool:
        """Wait until steps of orders have made something true, so many seconds at the most; tell whether it is."""
        if happened():
            return True
        true = asyncio.Event()

        def follow(_step: Step) -> None:
            if happened():
                true.set()

        self.followers.append(follow)
        try:
            async with asyncio.timeout(within):
                await true.wait()
        except TimeoutError:
            pass
        finally:
            self.followers.remove(follow)
        return happened()

    async def settle(self) -> None:
        """Wait until everything that the last market data caused has been decided, sent and written."""
        while self._tasks or self._facts:
            if self._tasks:
                await asyncio.wait(tuple(self._tasks))
            elif not self.journal.writes:
                return  # facts wait for the disk; trading decisions do not wait for it
            else:
                futures = [asyncio.wrap_future(future) for future in tuple(self._facts)]
                if futures:  # the journal's thread may have finished them since the look
                    await asyncio.wait(futures, timeout=1)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %s", task.get_name(), error, exc_info=error)

    async def _ask_about(self, requests: Sequence[OrderRequest]) -> list[Margin | None]:
        """Ask the broker about the contracts and margins of entries, before anybody waits for their decision."""
        margins: list[Margin | None] = []
        for request in requests:
            margin = None
            if request.intent == "entry" and self.gate.closed_for(request) is None:
                await self.surroundings.learn(request.symbol)
                if self.gate.wants_margin:
                    margin = await self.surroundings.margin(request)
            margins.append(margin)
        return margins

    async def _decide(
        self, requests: Sequence[OrderRequest], orders: list[Order], margins: Sequence[Margin | None]
    ) -> list[ApprovedOrder]:
        """Decide order by order, and put each into `orders` as it is decided."""
        now = self._clock.now()
        approved: list[ApprovedOrder] = []
        for index, wanted in enumerate(requests):
            request = wanted
            if index and request.parent_id is None and request.intent == "reduce":
                request = request.model_copy(update={"parent_id": orders[0].order_id})
            order_id = self._new_id(request.intent)
            decision = await self.gate.decide(order_id, request, self.view(margins[index]))
            order = Order(order_id, request, decision.verdicts, now)
            order.met = met_price(request, self.portfolio.mark_of(request.symbol))
            if decision.approved is None:
                order.status = OrderStatus.RISK_REJECTED
                if decision.refused is not None:
                    order.rule, order.reason = decision.refused.rule, decision.refused.reason
                orders.append(order)
                break
            self.orders[order_id] = order  # from here on the gate counts it
            self.in_flight.add(order_id)  # and no read-back can know of it
            orders.append(order)
            approved.append(decision.approved)
        if len(approved) == len(requests):
            self._count(requests, 1)
            self._recent.extend(Submission(now, order.request, order.order_id) for order in orders)
        return approved

    def _new_id(self, intent: Intent) -> str:
        made = self._ids.new()
        return kill_id(made, self.journal.journal_id) if intent == "kill" else made

    async def _turn(self) -> None:
        """Wait for one's turn: one order goes on each time round the loop.

        A group commit wakes all that it has written at once. Their sending, one after the other without a break,
        would hold up the lane, and a kill with it; a kill's own orders wait for no turn.
        """
        async with self._turns:
            await asyncio.sleep(0)

    async def _write_down(self, records: Sequence[Record]) -> None:
        """Hand a kill's intents over as facts, and wait a moment for them; a failing disk does not stop a kill."""
        future = self.journal.write(records, fact=True)
        self._facts.add(future)
        future.add_done_callback(self._facts.discard)
        try:
            async with asyncio.timeout(URGENT_WAIT):
                await asyncio.shield(asyncio.wrap_future(future))
        except (TimeoutError, JournalError) as error:
            log.critical("the intent of a kill's close is not on disk yet (%s); it is sent all the same", error)

    def _intents(self, orders: Sequence[Order], cause: str | None) -> list[Record]:
        now = self._clock.now()
        records: list[Record] = []
        for order in orders:
            approved = order.status is not OrderStatus.RISK_REJECTED
            records.append(
                IntentRecord(
                    order_id=order.order_id,
                    ts=now,
                    request=order.request,
                    verdicts=order.verdicts,
                    approved=approved,
                    cause=cause,
                    snapshot=self._snapshot,
                )
            )
            records.append(EventRecord("trade_event", TradeEvent.of(order.view()), now, cause=cause))
        return records

    async def _send(self, orders: Sequence[Order], approved: Sequence[ApprovedOrder]) -> None:
        for order in orders:  # the gate may have closed, or the order ended, while the intent was being written
            closed = self.gate.closed_for(order.request)
            if closed is None and self.behind():
                closed = BEHIND  # it may have been sized from what was
            if closed is None:
                closed = self.gate.outgrown(order.order_id, order.request, self.view())
            if closed is None and order.status is not OrderStatus.SUBMITTED:
                closed = f"order {order.order_id} is {order.status} already"
            if closed is not None:
                for each in orders:
                    if each.working:
                        self.local(each, "cancelled", f"not sent: {closed}")
                return
        self._waiting.difference_update(order.order_id for order in orders)
        try:
            for order in orders:
                self._check_terms(order.request)
            async with asyncio.timeout(SUBMIT_TIMEOUT):
                await self.gate.let_out([order.request for order in orders], self._broker().submit(approved))
        except GateClosed as closing:
            for order in orders:
                if order.status is OrderStatus.SUBMITTED:
                    self.local(order, "cancelled", f"not sent: {closing}")
        except asyncio.CancelledError:
            for order in orders:
                self._lost(order, "it was being sent when whoever asked for it was stopped")
            raise
        except (BrokerRefused, CommandError) as error:  # surely not taken, or not connected: nothing has left
            for order in orders:
                if order.status is OrderStatus.SUBMITTED:
                    self.local(order, "refused", str(error))
        except Exception as error:
            log.error("the outcome of order %s is unknown: %s", orders[0].order_id, error, exc_info=error)
            for order in orders:
                self._lost(order, f"sent, and no answer: {type(error).__name__} {error}".strip())

    def _check_terms(self, request: OrderRequest) -> None:
        """Raise BrokerRefused for terms that the broker would overlook: it would trade at once."""
        lacking = [name for name in TERMS if getattr(request, name) is not None and name not in self.keeps]
        if lacking:
            raise BrokerRefused(f"nothing was sent: the broker does not keep to {' and '.join(lacking)}")

    def _lost(self, order: Order, reason: str) -> None:
        if order.status is OrderStatus.SUBMITTED:  # a report may have been faster
            self.local(order, "lost", reason)

    def _broker(self) -> Any:
        if self._link is None:
            raise CommandError("broker_unavailable", "no broker is attached")
        return self._link.broker

    def _count(self, requests: Sequence[OrderRequest], step: int) -> None:
        day = trading_day(self._clock.now())
        self._entries[day] = self._entries.get(day, 0) + step * sum(r.intent == "entry" for r in requests)

    def _tell(self, step: Step) -> None:
        for follower in tuple(self.followers):
            follower(step)


def refusal(verdicts: Sequence[Verdict], order_id: str | None = None) -> CommandError:
    """Turn a refusal into the answer of a command: which rule, which number, which limit, and of which order."""
    refused = next((verdict for verdict in verdicts if verdict.outcome == "refuse"), None)
    if refused is None:
        return CommandError("risk_rejected", "the risk gate refused the order")
    code = REFUSED_AS.get(refused.rule) if refused.code == CORE else None
    return CommandError(
        code or "risk_rejected",
        str(refused.reason) if code is not None else f"{refused.rule}: {refused.reason}",
        {
            "rule": refused.rule,
            "verdicts": [verdict.model_dump(mode="json") for verdict in verdicts],
            **({} if order_id is None else {"order_id": order_id}),
        },
    )


def _adjustable(request: OrderRequest) -> OrderRequest:
    """Keep what a stop is to become from beginning behind the stop, wherever that was moved."""
    change = request.adjustment
    if change is None or request.stop_price is None:
        return request
    nearer = (max if request.side == "sell" else min)(change.stop_price, request.stop_price)
    return request.model_copy(update={"adjustment": change.model_copy(update={"stop_price": nearer})})


def _unsent_change(order_id: str, closed: Verdict) -> CommandError:
    code = REFUSED_AS.get(closed.rule, "risk_rejected")
    return CommandError(code, f"the change of order {order_id} was not sent: {closed.reason}")


def _terms_of(shown: BrokerOrder) -> dict[str, Any]:
    names = (
        "order_type",
        "limit_price",
        "stop_price",
        "trail_amount",
        "trail_percent",
        "time_in_force",
        "oca_group",
    )
    return {name: getattr(shown, name) for name in names} | {"protective": shown.order_type in PROTECTIVE}


def _execution(order: Order, fill: Fill) -> Execution:
    request = order.request
    return Execution(fill, request.intent, request.strategy, expected_price(request, order.met))


def stand_in(order: Order) -> str:
    """Name the execution that stands for those which the broker can't give any more (see reconcile.py)."""
    return f"readback-{order.broker_order_id}"


def rounded(price: Decimal, tick: Decimal | None = None) -> Decimal:
    """Round a price to the tick: a cent, or a hundredth of one below a dollar (SEC Rule 612)."""
    step = tick or (Decimal("0.01") if price >= 1 else Decimal("0.0001"))
    return (price / step).quantize(Decimal(1)) * step


__all__ = ["PROTECTIVE", "Follower", "OrderDesk", "Step", "refusal", "rounded", "stand_in"]

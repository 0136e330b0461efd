"""The money path, put together: everything on the money lane, and the few calls that the outside makes.

market slice → paper fills → portfolio → exits → trips       (on_market)
signal or command → order desk → risk gate → broker          (enter, place, modify, cancel, close)
kill → gate, latch, cancels, closes                          (kill)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

from sigma9_core.afterwards import Afterwards
from sigma9_core.board import Body
from sigma9_core.calendar import Calendar
from sigma9_core.clock import Clock, monotonic, rfc3339
from sigma9_core.commands import (
    AdoptArgs,
    CancelAllArgs,
    CloseArgs,
    Command,
    CommandSource,
    KillArgs,
    ModifyOrderArgs,
    OrderArgs,
    SettleArgs,
    decimal,
)
from sigma9_core.config import Settings
from sigma9_core.contracts import Broker, BrokerAccount, FeedHealth, Margin, MarketDriven, RiskRule, Signal, Trip
from sigma9_core.errors import BrokerError, CommandError, JournalError, in_words
from sigma9_core.models import (
    ZERO,
    ExitPlan,
    OrderRequest,
    OrderSource,
    OrderStatus,
    Position,
    Session,
    Slice,
    Split,
)
from sigma9_core.money.adoption import adoption
from sigma9_core.money.desk import PROTECTIVE, OrderDesk, Step, refusal
from sigma9_core.money.exits import ExitManager, opposite
from sigma9_core.money.gate import GuardedRule, RiskGate
from sigma9_core.money.history import SPLIT
from sigma9_core.money.journal import Journal
from sigma9_core.money.kill import Key
from sigma9_core.money.killswitch import KillSwitch
from sigma9_core.money.latch import Latch
from sigma9_core.money.link import BrokerLink
from sigma9_core.money.orders import Order
from sigma9_core.money.portfolio import Portfolio
from sigma9_core.money.pricing import reference_price
from sigma9_core.money.reconcile import SURE_AFTER, Reconciler
from sigma9_core.money.records import FillRecord, NoteRecord, Record
from sigma9_core.money.restore import read, restore, split_body, split_of
from sigma9_core.money.tally import Tally
from sigma9_core.money.unwanted import Unwanted

log = logging.getLogger("sigma9.money")

AHEAD: Final = timedelta(seconds=5)
"""The time of market data that are further ahead of the clock is not believed."""
WARN_EVERY: Final = 60.0
"""Seconds between two warnings of them."""
NOTE_EVERY: Final = 60.0
"""Seconds between two notes of the day marks while prices move: what a crash may lose."""
SHOW_EVERY: Final = 0.1
"""Seconds between two publications of positions, orders and account while they move."""
ONE: Final = Decimal(1)
READ_BACK_EVERY: Final = 5.0
"""Seconds between two read-backs of what is in doubt, and looks at what others do with the account."""
CANCELLED_WITHIN: Final = 2.0
CASH_LOOKS: Final = 3
CASH_EVERY: Final = 60.0
"""Seconds between two looks at the broker's cash while nothing has changed."""
CENT: Final = Decimal("0.01")
SOURCES: Final[Mapping[CommandSource, OrderSource]] = {"mqtt": "mqtt", "cli": "cli", "schedule": "schedule"}
"""The order source of a command's source; all others are `api`."""


@dataclass(frozen=True, slots=True)
class SizingFacts:
    """What a sizer asks about the account."""

    equity: Decimal
    buying_power: Decimal
    closed_trades: Sequence[Decimal]
    price: Decimal
    """What an order of this signal is valued at."""
    tick: Decimal | None = None
    """The smallest step of the symbol's price, where the broker has told it."""


class MoneyPath:
    """Builds and runs the parts of the money path; every coroutine here runs on the money lane."""

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        calendar: Calendar,
        journal: Journal,
        latch: Latch,
        broker: Broker,
        rules: Sequence[GuardedRule],
        snapshot: Mapping[str, Any],
        show: Callable[[Mapping[str, Body | None]], None],
        on_change: Callable[[Literal["broker", "kill_switch"]], None],
        on_kill: Callable[[Key], None],
        on_trip: Callable[[Trip], None] = lambda _trip: None,
    ) -> None:
        self.afterwards = Afterwards()
        self.gate = RiskGate(rules, clock)
        self.portfolio = Portfolio(clock)
        self.desk = OrderDesk(
            gate=self.gate,
            journal=journal,
            portfolio=self.portfolio,
            clock=clock,
            calendar=calendar,
            snapshot=snapshot,
        )
        self.exits = ExitManager(self.desk, clock)
        self.reconciler = Reconciler(self.desk, clock)
        self.reconciler.on_settled = self._settled
        self.reconciler.on_held = self.exits.recheck
        self.exits.broker_has = self.reconciler.there
        self.killswitch = KillSwitch(
            gate=self.gate,
            latch=latch,
            desk=self.desk,
            exits=self.exits,
            clock=clock,
            calendar=calendar,
            settings=settings.kill_switch,
            on_change=self._kill_changed,
            on_fire=self._killed,
            afterwards=self.afterwards,
        )
        self.link = BrokerLink(
            settings.broker,
            broker,
            on_report=self.desk.on_report,
            on_connected=self._reconcile,
            on_change=lambda: on_change("broker"),
        )
        self.tally = Tally(self.desk)
        self.desk.attach(self.link)
        self.killswitch.attach(self.link)
        self.unwanted = Unwanted(
            desk=self.desk,
            exits=self.exits,
            reconciler=self.reconciler,
            link=self.link,
            journal=journal,
            clock=clock,
            owns_exits=self.killswitch.owns_exits,
        )
        self.desk.before_report = self._roll
        self.desk.after_charge = self._touch
        self.desk.followers.append(self._follow)
        self._settings = settings
        self._clock = clock
        self._calendar = calendar
        self._journal = journal
        self._latch = latch
        self._driven = broker if isinstance(broker, MarketDriven) else None
        self._show_outside = show
        self._changed = on_change
        self._tell_killed = on_kill
        self._tell_tripped = on_trip
        self._session: Session | None = None
        self._open: Session | None = None
        """The session that was last seen open, until its end was noted."""
        self.slices_ahead = 0
        """Slices that were too far ahead of the clock to be believed."""
        self._warned_ahead: float | None = None
        self._cash_at = monotonic()
        self._cash_seen: tuple[Decimal, Decimal, float] | None = None
        """Our cash and the broker's, which differ, and since when they have done so."""
        self._noted_at = monotonic()
        self._noted: Mapping[str, Any] = {}
        """The day marks and prices that were noted last."""
        self._show_timer: asyncio.TimerHandle | None = None
        self._shown_positions: set[str] = set()
        self._kill_untold = 0
        """Changes of a kill that are still to be shown."""
        self._reader: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._opened_with: Decimal | None = None
        self._splits: set[Split] = set()
        """Those that were applied: a feed may tell of one again."""
        self._adopting = asyncio.Lock()
        self._ending = False
        """Entries are to be cancelled as soon as the broker is there."""
        self._ended_all = False
        """Entries were cancelled, and none are taken: one that comes back is cancelled as well."""
        self._caught_up = False
        """The newest attempt to read back what the broker has done while it was away has succeeded."""
        self.exits.waits = lambda: not self._up_to_date
        self.desk.behind = lambda: self.link.state == "connected" and not self._up_to_date

    # --- life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the latch and the journal; the kill works from here on, the broker not yet."""
        self.killswitch.resume(self._latch.read())
        known = await asyncio.to_thread(read, self._journal, self._clock.now())
        if known.opening is not None:
            self._opened_with = known.opening
        restore(known, self.portfolio, self.desk, self.gate, self.exits)
        await self.unwanted.find([position.symbol for position in self.portfolio.positions()])
        self.reconciler.remember(known.unexplained, known.since)
        self.killswitch.remember(known.kills)
        self._splits = {split_of(note.body) for note in known.books if isinstance(note, NoteRecord)}
        loop = asyncio.get_running_loop()
        self._reader = loop.create_task(self._read_back(), name="read-back")
        if self._clock.kind == "live":
            self._timer = loop.create_task(self.desk.surroundings.keep_looking(), name="broker-clock")
        self._show()

    async def stop(self) -> None:
        """Stop in reverse: the kill's work, the broker's link, what is still to be shown, the rules' thread."""
        for task in (self._reader, self._timer):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.killswitch.close()
        await self.desk.settle()
        await self.link.disconnect()
        self._remember_days()
        self.afterwards.flush()
        self._show()
        await self.gate.stop()

    async def on_market(self, data: Slice) -> None:
        """Take a slice of market data; return when everything that it caused has settled."""
        now = self._clock.now()
        if data.ts - now > AHEAD:
            self._from_the_future(data.ts, now)
            data = replace(data, ts=now)  # it would begin a day, end time stops, and outlive all later prices
        session = self._calendar.at(data.ts)
        self._roll(data.ts)
        for split in data.splits:
            self._split(split)
        if self._driven is not None and self.link.state == "connected":
            await self._driven.on_market(data, session)
        self.portfolio.mark(data)
        self.exits.on_market(data)
        await self._judge()
        await self.desk.settle()
        self.tally.look()
        if self._clock.kind != "replay" and monotonic() - self._noted_at >= NOTE_EVERY:
            self._noted_at = monotonic()
            if self.portfolio.days_memory() != self._noted:
                self._remember_days()
        self._touch()

    def _roll(self, seen: datetime | None = None) -> None:
        """Begin the day of the newest session that has opened; late data begin none.

        It comes before everything that may count: a fill of today's, learnt before the first price, is of today.
        """
        now = self._clock.now()
        if seen is not None:
            now = max(now, seen)
        session = self._calendar.last(now)
        if session is not None and (self._session is None or session.day > self._session.day):
            self._session = session
            self.desk.surroundings.forget()
            if self.portfolio.roll(session):
                self._remember_days()
        if session is not None and now < session.close:
            self._open = session
        elif session is not None and session == self._open:
            self._open = None
            self._remember_days()  # the last prices of the session

    def _from_the_future(self, seen: datetime, now: datetime) -> None:
        self.slices_ahead += 1
        if self._warned_ahead is None or monotonic() - self._warned_ahead >= WARN_EVERY:
            self._warned_ahead = monotonic()
            log.warning(
                "market data of %s are ahead of the clock (%s) and are taken as of now; %d so far",
                rfc3339(seen),
                rfc3339(now),
                self.slices_ahead,
            )

    def _split(self, split: Split) -> None:
        """Apply a split to our books and exits, once; foreign positions follow with the next read-back."""
        if split in self._splits:
            return
        again = self._same_split(split)
        self._splits.add(split)
        if again is not None:
            log.warning(
                "%s: the split of %s is the one of %s, which was applied; ignored",
                split.symbol,
                split.ts,
                again.ts,
            )
            return
        held = self.portfolio.quantity(split.symbol)
        try:
            self.portfolio.split(split.symbol, split.new, split.old)
        except ValueError as error:
            log.error("the feed reports a split that makes no sense; ignored: %s", error)
            return
        self.desk.note([NoteRecord(SPLIT, self._clock.now(), split_body(split))])
        if held != ZERO:
            now = self.portfolio.quantity(split.symbol)
            log.warning("%s: %s for %s shares; %s have become %s", split.symbol, split.new, split.old, held, now)
        self.exits.split(split)

    def _same_split(self, split: Split) -> Split | None:
        """Give the split of the same symbol, ratio and session day that was told under another time."""
        for known in self._splits:
            same = known.symbol == split.symbol and known.new * split.old == split.new * known.old
            if same and self._session_of(known.ts) == self._session_of(split.ts):
                return known
        return None

    def _session_of(self, moment: datetime) -> str:
        """Name the session that a moment is in, or that comes next."""
        session = self._calendar.at(moment) or self._calendar.after(moment)
        return moment.date().isoformat() if session is None else session.day

    def on_feed(self, health: FeedHealth) -> None:
        """Learn how the feed stands; a rule may trip, though no market data come any more."""
        self.desk.surroundings.feed = health
        self.desk.spawn(self._judge(), "judge-feed")
        self._touch()

    # --- orders -----------------------------------------------------------------------------------------------

    async def enter(self, request: OrderRequest, reference: Decimal) -> list[Order]:
        """Send a strategy's entry with its protective stop."""
        self._check_link()
        return await self.exits.enter(request, reference)

    async def place(self, args: OrderArgs, command: Command, records: Sequence[Record]) -> Mapping[str, Any]:
        """Send a person's order, with its bracket as one unit."""
        self._check_link()
        request = self._request(args, SOURCES.get(command.source, "api"))
        bracket = args.bracket
        if bracket is None:
            orders = await self.desk.submit([request], cause=command.id, records=records)
        else:
            orders = await self.exits.enter(
                request,
                bracket.stop_price,
                stop_price=bracket.stop_price,
                take_profit=bracket.take_profit,
                cause=command.id,
                records=records,
            )
        first = orders[0]
        if first.status is OrderStatus.RISK_REJECTED:
            raise refusal(
                orders[-1].verdicts, orders[-1].order_id
            )  # the deciding ends with the one that was refused
        await self.desk.settle()
        return {"order": first.view().model_dump(mode="json"), "legs": [order.order_id for order in orders[1:]]}

    async def preview(self, args: OrderArgs) -> Mapping[str, Any]:
        """Say what the rules would say of an order; nothing is sent."""
        request = self._request(args, "api")
        decision, margin = await self.desk.preview(request)
        return {
            "approved": decision.approved is not None,
            "intent": request.intent,
            "verdicts": [verdict.model_dump(mode="json") for verdict in decision.verdicts],
            "margin": None if margin is None else _margin_body(margin),
        }

    async def modify(
        self, args: ModifyOrderArgs, command: Command, records: Sequence[Record]
    ) -> Mapping[str, Any]:
        """Change a working order of ours; the exits that went out with an entry follow its quantity."""
        changes = args.model_dump(exclude={"order_id", "reason"}, exclude_none=True)
        if not changes:
            raise CommandError("invalid", "name at least one field that changes, such as limit_price")
        if self.link.state == "connected":  # where it is not, the desk says that nothing was sent
            self._check_link()
        order = await self.desk.modify(args.order_id, changes, cause=command.id, records=records)
        await self.desk.answered(order)
        await self.desk.settle()
        return {"order": order.view().model_dump(mode="json"), "legs": self.exits.legs_of(order.order_id)}

    async def cancel(self, order_id: str) -> Mapping[str, Any]:
        """Cancel a working order of ours."""
        order = await self.desk.cancel(order_id)
        await self._ended([order])
        return {"order": order.view().model_dump(mode="json")}

    async def cancel_all(self, args: CancelAllArgs) -> Mapping[str, Any]:
        """Cancel our entries, and protective orders where it says so."""
        return await self.cancel_entries(protective=args.protective)

    async def cancel_entries(self, *, protective: bool = False) -> Mapping[str, Any]:
        """Cancel every working entry of ours; with `protective`, the exits as well."""
        orders = [
            order
            for order in self.desk.open_orders()
            if order.request.intent == "entry" or (protective and order.request.intent != "kill")
        ]
        if orders and protective:
            self._check_link()  # exits that can't be cancelled now go on being managed
            self.exits.release({order.request.symbol for order in orders if order.request.intent == "reduce"})
        await asyncio.gather(*(self.desk.ask_cancel(order) for order in orders))
        await self._ended(orders)
        ended = [order.order_id for order in orders if order.status is OrderStatus.CANCELLED]
        return {"cancelled": ended, "pending": [order.order_id for order in orders if order.working]}

    async def end_entries(self) -> None:
        """Cancel our working entries: now, or as soon as the broker is back, unless entries are taken again."""
        self._ending = self._ended_all = True
        if self.link.state != "connected":
            log.warning("the broker is not connected: working entries are cancelled when it is")
            return
        left = await self.cancel_entries()
        self._ending = bool(left["pending"])

    async def take_entries(self) -> bool:
        """Take entries from here on; False where a kill stands before it."""
        if self.killswitch.latched:
            return False
        self._ending = self._ended_all = False
        self.gate.pause(None)
        return True

    async def close(self, args: CloseArgs, command: Command, records: Sequence[Record]) -> Mapping[str, Any]:
        """Close a position of ours at the market, or all of them."""
        held = [p for p in self.portfolio.positions() if not p.foreign and p.quantity != ZERO]
        if args.symbol != "*":
            held = [p for p in held if p.symbol == args.symbol]
            if not held:
                raise CommandError(
                    "not_found", f"there is no position of ours in {args.symbol}", {"field": "symbol"}
                )
        if held:
            self._check_link()
        results: list[Order] = []
        refused: dict[str, str] = {}
        owed = [*records]
        for position in held:
            try:
                results.append(await self._close_one(position, args.reason, command, owed))
            except CommandError as error:
                if args.symbol != "*":
                    raise
                refused[position.symbol] = error.message  # the others are closed all the same
            except JournalError as error:
                if not results:
                    raise
                refused[position.symbol] = str(error)
        if owed:
            await self._journal.commit(owed)
        await self.desk.settle()
        return {"orders": [order.view().model_dump(mode="json") for order in results], "refused": refused}

    async def _close_one(
        self, position: Position, reason: str | None, command: Command, owed: list[Record]
    ) -> Order:
        """Close one position; `owed` is what is still to be committed with an intent."""
        symbol = position.symbol
        working = [order for order in self.desk.open_orders() if order.request.symbol == symbol]
        if any(order.request.closes(self._clock.now()) for order in working):
            raise CommandError("busy", f"{symbol} is being closed already")
        guard = self.exits.guards.get(symbol)
        if guard is not None:
            guard.busy = True  # its own exits keep still until this one stands
        try:
            order = await self._leave(position, working, reason, command, owed)
            if guard is not None:
                guard.time_id = order.order_id
        finally:
            if guard is not None:
                guard.busy = False
        return order

    async def _leave(
        self,
        position: Position,
        working: Sequence[Order],
        reason: str | None,
        command: Command,
        owed: list[Record],
    ) -> Order:
        entries = [order for order in working if order.request.intent == "entry"]
        for entry in entries:  # what an entry still fills would stand without an exit
            await self.desk.ask_cancel(entry)
        await self._ended(entries)
        quantity = await self.reconciler.closable(self.link, position.symbol)
        request = OrderRequest(
            symbol=position.symbol,
            side=opposite("buy" if quantity > 0 else "sell"),
            quantity=abs(quantity),
            strategy=position.strategy,
            source=SOURCES.get(command.source, "api"),
            intent="reduce",
            oca_group=self._group_of(position.symbol),
            reason=reason or "closed by command",
        )
        order = (await self.desk.submit([request], cause=command.id, records=tuple(owed)))[0]
        owed.clear()
        if order.status is OrderStatus.RISK_REJECTED:
            raise refusal(order.verdicts, order.order_id)
        return order

    async def adopt(self, args: AdoptArgs) -> Mapping[str, Any]:
        """Make a foreign position ours; the broker's cash has paid for it already."""
        async with self._adopting:  # twice at once would double it
            return await self._adopt(args)

    async def _adopt(self, args: AdoptArgs) -> Mapping[str, Any]:
        position = self.portfolio.position(args.symbol)
        if position.quantity == ZERO or not position.foreign:
            raise CommandError("not_found", f"there is no foreign position in {args.symbol}", {"field": "symbol"})
        fill = adoption(position, self._clock.now())
        record = FillRecord(fill, args.strategy, "api", recovered=True)
        try:
            await self._journal.commit([record])
        except JournalError as error:
            if not error.unknown:
                raise
            self.desk.note([record])  # it may be there, and is to be: the journal takes it once
        self.portfolio.adopt(fill, args.strategy)
        self._remember_days()
        self._touch()
        return {"position": self.portfolio.position(args.symbol).model_dump(mode="json")}

    async def settle_position(self, args: SettleArgs, command: Command) -> Mapping[str, Any]:
        """Take what the broker shows of a position that can't be explained as the truth; a person says why."""
        async with self._adopting:
            return await self._settle_position(args, command)

    async def _settle_position(self, args: SettleArgs, command: Command) -> Mapping[str, Any]:
        symbol = args.symbol
        self._check_link()
        told = self.reconciler.unexplained.get(symbol)
        if told is None:
            raise CommandError(
                "not_found",
                f"the position of {symbol} is explained: there is nothing to settle",
                {"field": "symbol"},
            )
        if not self.reconciler.idle:
            raise CommandError("busy", "an order is on its way or in doubt: settle once that is known")
        pair = await self.reconciler.unexplained_now(self.link, symbol)
        if pair is None:
            raise CommandError("conflict", f"the position of {symbol} is explained by now: nothing was settled")
        if self.reconciler.unexplained.get(symbol) != told or pair[0] != self.portfolio.quantity(symbol):
            raise CommandError("busy", f"the position of {symbol} has just moved: look at it, and ask again")
        ours, actual = pair
        fill, strategy = (
            self.reconciler.settling(symbol, actual, "settled"),
            self.portfolio.position(symbol).strategy,
        )
        body = {
            "symbol": symbol,
            "before": str(ours),
            "after": str(actual),
            "price": str(fill.price),
            "exec_id": fill.exec_id,
            "reason": args.reason,
            "source": command.source,
            "actor": command.actor,
        }
        note = NoteRecord("settlement", self._clock.now(), body)
        if not self._journal.writes:
            raise CommandError("internal", "nothing was settled: the journal can't be written at present")
        # Written and counted in one step: a report that came between the two would be counted on top of it.
        self.desk.note([FillRecord(fill, strategy, "api", recovered=True), note])
        log.warning("%s: %s was settled to %s, as the broker has it (%s)", symbol, ours, actual, args.reason)
        self.reconciler.settle(fill, strategy)
        await self.desk.settle()
        return {"position": self.portfolio.position(symbol).model_dump(mode="json"), "before": float(ours)}

    def _settled(self) -> None:
        """Follow a position that has moved without an order."""
        self.unwanted.look_again()  # a person may have said that it is wanted
        self.exits.review()
        self._remember_days()
        self._touch()

    def sizing(self, strategy: str, signal: Signal) -> SizingFacts:
        """Give a sizer the account as it is now, and the price that the risk rules will value the order at."""
        limit = None if signal.limit_price is None else decimal(signal.limit_price)
        stop = None if signal.stop_price is None else decimal(signal.stop_price)
        order = OrderRequest(
            symbol=signal.symbol,
            side=signal.side,
            quantity=ONE,
            order_type=signal.order_type,
            limit_price=limit,
            stop_price=stop,
        )
        price = reference_price(order, self.portfolio.mark_of(signal.symbol)) or decimal(signal.price)
        account = self.portfolio.account()
        return SizingFacts(
            equity=account.equity or ZERO,
            buying_power=account.buying_power or ZERO,
            closed_trades=tuple(self.portfolio.closed_trades(strategy)),
            price=max(price, decimal(signal.price)),
            tick=self.desk.tick_of(signal.symbol),
        )

    # --- kill -------------------------------------------------------------------------------------------------

    async def kill(self, args: KillArgs, command: Command) -> Mapping[str, Any]:
        """Carry out a kill that is valid already; the answer is journalled by whoever asked.

        Raise CommandError `not_found` for a strategy that nothing is known of: to say that it was stopped would
        be a claim that isn't so.
        """
        if args.scope is not None and args.scope.strategy is not None:
            self._check_strategy(args.scope.strategy)
        return await self.killswitch.fire(
            reason=args.reason or "no reason was given",
            source=command.source,
            flatten=args.flatten,
            scope=args.scope,
            taken=command.taken,
        )

    # --- rules ------------------------------------------------------------------------------------------------

    async def replace_rule(self, name: str, rule: RiskRule) -> None:
        """Put a rule with new settings in the place of the old one."""
        self.gate.replace(name, rule)
        self._touch()

    async def clear_rule(self, name: str) -> None:
        """Forget a trip that a person has cleared."""
        self.gate.clear(name)
        self._remember_days()
        self._touch()

    # --- inside -----------------------------------------------------------------------------------------------

    def _request(self, args: OrderArgs, source: OrderSource) -> OrderRequest:
        """Turn a person's order into a request: what is against a position reduces it, and never goes beyond."""
        held = self.portfolio.quantity(args.symbol)
        reducing = (held > 0 and args.side == "sell") or (held < 0 and args.side == "buy")
        if reducing and args.bracket is not None:
            raise CommandError(
                "invalid", "bracket: it goes with an order that opens a position", {"field": "bracket"}
            )
        return OrderRequest(
            **args.model_dump(exclude={"bracket", "reason"}),
            # Whose position it is hears what becomes of it.
            strategy=self.portfolio.position(args.symbol).strategy if reducing else None,
            source=source,
            intent="reduce" if reducing else "entry",
            protective=reducing and args.order_type in PROTECTIVE,
            # In the group of the stop, it fills instead of the stop; what then is left gets a stop of its own.
            oca_group=self._group_of(args.symbol) if reducing else None,
            reason=args.reason,
            exit_plan=ExitPlan() if args.bracket is not None else None,
        )

    def _group_of(self, symbol: str) -> str | None:
        guard = self.exits.guards.get(symbol)
        if guard is not None:
            return guard.group
        for order in self.desk.open_orders():
            if order.request.symbol == symbol and order.request.protective:
                return order.request.oca_group
        return None

    async def _ended(self, orders: Sequence[Order]) -> None:
        """Wait a moment for the end of orders whose cancels have left; the answer names what is still pending."""
        await self.desk.until(lambda: not any(order.working for order in orders), CANCELLED_WITHIN)

    async def _judge(self) -> None:
        trips = self.gate.trips(self.desk.view())
        await self.gate.settle()
        for trip in trips:
            self._remember_days()
            self.desk.note([NoteRecord("trip", self._clock.now(), _trip_body(trip))])
            log.error("%s: %s", trip.rule, trip.reason)
            self._tell_tripped(trip)
            if trip.kill:  # also while killed: a halt becomes a flatten, and a drill a real kill
                await self.killswitch.fire(reason=trip.reason, source="risk")

    @property
    def _up_to_date(self) -> bool:
        """Tell whether the books have what the broker has: nothing is sized from them before."""
        link = self.link
        return link.state == "connected" and link.health.link == "up" and not link.stale and self._caught_up

    async def _reconcile(self) -> None:
        self._caught_up = False  # and it stays so where the reading fails: the link tries again
        await self._catch_up()
        self._caught_up = True
        if self._ending:
            self.desk.spawn(self.end_entries(), "end-entries")
        self.exits.review()
        self.exits.recheck(self.reconciler.unexplained)
        self.exits.keep_within_books()  # an exit may have come back that nobody looks after any more
        await self.desk.settle()
        self.killswitch.go_on()
        self._touch()

    async def _catch_up(self) -> None:
        self._roll()
        account = await self.link.broker.account()
        self._open_with(account)
        self.portfolio.set_account(account)
        if self._clock.kind == "live":
            self.desk.spawn(self.desk.surroundings.look_at_clock(), "broker-clock")
        await self.reconciler.run(self.link)
        await self._settle_cash(at_once=True)

    def _open_with(self, account: BrokerAccount) -> None:
        """Open the books with the cash of the account, once: money of another currency is none of theirs."""
        if self._opened_with is None and account.currency == self.portfolio.currency:
            self._opened_with = account.cash
            self.portfolio.set_cash(account.cash)
            self.desk.note([NoteRecord("opening", self._clock.now(), {"cash": str(account.cash)})])

    async def _watch_cash(self, *, changed: bool) -> None:
        """Look at the broker's cash now and then, and when something has changed, while nothing is on its way."""
        due = changed or self._cash_seen is not None or monotonic() - self._cash_at >= CASH_EVERY
        if due and self._up_to_date and self.reconciler.idle:
            self._cash_at = monotonic()
            await self._settle_cash(at_once=bool(getattr(self.link.broker, "immediate", False)))

    async def _settle_cash(self, *, at_once: bool) -> None:
        """Take as a transfer what the fills do not explain of the broker's cash, as both are at one moment.

        Unless it is to be believed at once, the same must be seen for a while: a broker may show the cash of a
        fill, and the fill itself, at different times.
        """
        for _ in range(CASH_LOOKS):
            before = self.portfolio.cash
            account = await self.link.broker.account()
            if abs(account.cash - before) >= CENT:  # perhaps by a fill whose report is on its way
                await self.reconciler.count_fills(self.link)
            if self.portfolio.cash == before:
                break
        else:
            return  # fills came in all the while: the next look tells
        if account.currency != self.portfolio.currency:
            self.portfolio.set_account(account)  # rule R15 says why no entry passes
            return
        if self._opened_with is None:
            self._open_with(account)
            self.portfolio.set_account(account)
            self._touch()
            return
        difference = account.cash - before
        seen, self._cash_seen = self._cash_seen, None
        if abs(difference) >= CENT and not at_once:
            same = seen is not None and seen[:2] == (before, account.cash)
            since = seen[2] if seen is not None and same else monotonic()
            if monotonic() - since < SURE_AFTER:
                self._cash_seen = (before, account.cash, since)
                return
        self.portfolio.set_account(account)
        if abs(difference) >= CENT:
            log.warning("cash differs by %s from what the fills make; taken as a transfer", difference)
            self.portfolio.transfer(difference)
            self.desk.note([NoteRecord("transfer", self._clock.now(), {"amount": str(difference)})])
            self._touch()

    def _check_strategy(self, name: str) -> None:
        known = {
            *(entry.instance for entry in self._settings.scanners),
            *(order.request.strategy for order in self.desk.open_orders()),
            *(position.strategy for position in self.portfolio.positions()),
        } - {None}
        if name not in known and not self.killswitch.covers_strategy(name):
            there = ", ".join(sorted(map(str, known))) or "none"
            raise CommandError(
                "not_found",
                f"scope.strategy: no strategy is called '{name}', so nothing was stopped; there are: {there}",
                {"field": "scope.strategy"},
            )

    def _check_link(self) -> None:
        """Raise CommandError `broker_unavailable` where nothing can be sent, or sized from what is known."""
        _ = self.link.broker
        if self.link.health.link == "down":
            raise CommandError(
                "broker_unavailable",
                f"the broker {self.link.name} is there, but has lost its own servers (link down): nothing is sent "
                "until it has them again, which it sees to by itself",
            )
        if not self._up_to_date:
            raise CommandError(
                "broker_unavailable",
                f"what the broker {self.link.name} has done while it was away is not reconciled yet: try again",
            )

    async def _read_back(self) -> None:
        while True:
            await asyncio.sleep(READ_BACK_EVERY)
            if not self.link.ready:
                continue
            try:
                self._roll()
                held = self.reconciler.unexplained
                await self.reconciler.resolve_unknown(self.link)
                changed = await self.reconciler.look_around(self.link)
                if changed or held != self.reconciler.unexplained:
                    self._touch()
                self.exits.keep_within_books()
                await self.unwanted.close()
                await self._watch_cash(changed=changed)  # last: what may fail here must hold no exit up
            except Exception as error:
                # A broker plugin may raise anything; what is unknown stays so until the next look.
                log.error(
                    "reading back from the broker failed (%s); the next look is in %g s",
                    in_words(error),
                    READ_BACK_EVERY,
                    exc_info=not isinstance(error, BrokerError),
                )

    def _follow(self, step: Step) -> None:
        self._touch()
        if step.revived and self._ended_all and step.order.request.intent == "entry":
            self.desk.spawn(self.end_entries(), "end-entries")
        applied = step.applied
        kept = applied is not None and self._clock.kind != "replay"
        if applied is not None and kept and (applied.opened or applied.after == ZERO or step.order.recovered):
            self._remember_days()  # the marks of what is held now, or what was learnt of an earlier day
        if step.applied is not None and step.applied.closed is not None:
            closed = step.applied.closed
            log.info("%s closed: %+.2f (%+.2f %%)", closed.symbol, closed.result, closed.percent)

    def _remember_days(self) -> None:
        days = self.portfolio.days_memory()
        self.desk.note([NoteRecord("days", self._clock.now(), {"portfolio": days, "rules": self.gate.memory()})])
        self._noted, self._noted_at = days, monotonic()

    # --- showing ----------------------------------------------------------------------------------------------

    def _killed(self, key: Key) -> None:
        if key is None:
            self.gate.pause("the kill switch has stopped the engine: start it again after the reset")
        self.afterwards.do(lambda: self._tell_killed(key))

    def _kill_changed(self) -> None:
        body = self.killswitch.body()
        self._kill_untold += 1
        self.afterwards.do(lambda: self._show_kill(body))

    def _show_kill(self, body: Body) -> None:
        self._kill_untold -= 1
        if self._kill_untold:  # it has moved on meanwhile
            self._show_outside({"kill_switch": body})
        else:
            self._show()  # what a kill says and what positions and orders say must agree
        self._changed("kill_switch")

    def _touch(self) -> None:
        if self._show_timer is None:
            self._show_timer = asyncio.get_running_loop().call_later(SHOW_EVERY, self._show)

    def _show(self) -> None:
        if self._show_timer is not None:
            self._show_timer.cancel()
            self._show_timer = None
        positions = {p.symbol: p.model_dump(mode="json") for p in self.portfolio.positions()}
        orders = [order.body() for order in self.desk.open_orders()]
        orders += [order.model_dump(mode="json") for order in self.desk.foreign.values()]
        usage = [rule.model_dump(mode="json") for rule in self.gate.usage(self.desk.view())]
        held = [{"symbol": symbol, "reason": why} for symbol, why in sorted(self.reconciler.unexplained.items())]
        bodies: dict[str, Body | None] = {
            "account": self.portfolio.account().model_dump(mode="json"),
            "positions": {"count": len(positions), "positions": list(positions.values())},
            "orders": {"count": len(orders), "orders": orders},
            "risk": {"rules": usage, "held": held},
            "kill_switch": self.killswitch.body(),
        }
        bodies |= {f"position/{symbol}": body for symbol, body in positions.items()}
        bodies |= {f"position/{symbol}": None for symbol in self._shown_positions - set(positions)}
        self._shown_positions = set(positions)
        self._show_outside(bodies)


def _trip_body(trip: Trip) -> dict[str, Any]:
    return {
        "rule": trip.rule,
        "reason": trip.reason,
        "kill": trip.kill,
        "strategy": trip.strategy,
        "used": str(trip.used),
        "limit": str(trip.limit),
    }


def _margin_body(margin: Margin) -> dict[str, Any]:
    """Write the broker's answer for `preview_order`; the amounts mean nothing beside a fault."""
    told = margin.fault is None
    return {
        "initial_change": float(margin.initial_change) if told else None,
        "available_after": float(margin.available_after) if told else None,
        "commission": None if margin.commission is None else float(margin.commission),
        "fault": margin.fault,
    }

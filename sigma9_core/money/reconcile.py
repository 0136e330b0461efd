"""Reconciliation: what the broker knows against what the journal knows, at every connect and for what is unknown.

There is no separate crash path: every start ends here. Fills that were missed are counted once, by execution id;
orders in doubt get the status that the read-back shows; what is not ours is shown as foreign and never adopted
silently; a position that cannot be explained keeps its symbol closed for new orders, and says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import ROUND_DOWN, Decimal
from typing import Any, Final

from sigma9_core.clock import Clock, monotonic
from sigma9_core.contracts import BrokerOrder, BrokerPosition, BrokerReport
from sigma9_core.errors import BrokerError, CommandError
from sigma9_core.models import ZERO, Fill, OrderRequest, OrderStatus, OrderType, OrderView, Side
from sigma9_core.money.adoption import Settled, settlement
from sigma9_core.money.desk import OrderDesk, Step, stand_in
from sigma9_core.money.ids import made_at
from sigma9_core.money.link import BrokerLink
from sigma9_core.money.orders import REVIVABLE, Message, Order
from sigma9_core.money.pricing import usable
from sigma9_core.money.records import FillRecord, NoteRecord

log = logging.getLogger("sigma9.reconcile")

LOOK_BACK: Final = timedelta(days=7)
LOOKS: Final = 3
"""Looks in a row that must show the same before it is believed of a broker that may show things late."""
SURE_AFTER: Final = 30.0
"""Seconds that these looks must span."""
READ_WITHIN: Final = 5.0
"""Seconds in which a position must be read back that is to be closed."""
SECOND_LOOK: Final = 0.2
"""Seconds until positions that differ are read once more: a fill's report may be a moment behind."""
GONE: Final = "the broker no longer has it; how it ended is not known: it may have filled"
"""Why an order that worked is taken for ended, where the broker tells neither its end nor a fill."""
AGAIN: Final = "it works again"
"""What is doubted of an order that has ended and that the broker lists as working."""
TERMS: Final[Mapping[OrderType, Sequence[str]]] = {
    "limit": ("limit_price",),
    "stop": ("stop_price", "adjustment"),
    "stop_limit": ("limit_price", "stop_price"),
    "limit_on_close": ("limit_price",),
}
"""What may differ in a working order besides its quantity, trailing stops aside."""
_ENDS: Final[Mapping[str, Message]] = {"cancelled": "cancelled", "rejected": "rejected", "expired": "expired"}


@dataclass(slots=True)
class Differences:
    """What a reconciliation found."""

    fills: list[str] = field(default_factory=list)
    """Execution ids that the journal did not have."""
    orders: dict[str, str] = field(default_factory=dict)
    """Orders whose status changed, with the new one."""
    foreign_orders: list[str] = field(default_factory=list)
    foreign_positions: list[str] = field(default_factory=list)
    unexplained: dict[str, str] = field(default_factory=dict)
    """Symbols whose position differs, with the sentence that says how."""
    unknown_orders: list[str] = field(default_factory=list)
    """Orders that have filled and carry an id of our making, and are not in this journal: it was put back, or
    another server trades in the account."""

    def body(self) -> dict[str, Any]:
        """Give the report as JSON."""
        return {
            "fills": self.fills,
            "orders": self.orders,
            "foreign_orders": self.foreign_orders,
            "foreign_positions": self.foreign_positions,
            "unexplained": self.unexplained,
            "unknown_orders": self.unknown_orders,
        }

    def words(self) -> str:
        """Give the report as a person reads it, without what is empty."""
        lists = {
            "fills that were missed": self.fills,
            "orders": [f"{order_id} {status}" for order_id, status in self.orders.items()],
            "foreign orders": self.foreign_orders,
            "foreign positions": self.foreign_positions,
            "not explained": list(self.unexplained.values()),
            "orders that are not in the journal": self.unknown_orders,
        }
        return "; ".join(f"{what}: {', '.join(found)}" for what, found in lists.items() if found)


@dataclass(slots=True)
class Doubt:
    """What the looks in a row have shown of one order."""

    what: str
    looks: int
    since: float


class Reconciler:
    """Compares and settles; on the money lane."""

    def __init__(self, desk: OrderDesk, clock: Clock) -> None:
        self.on_settled: Callable[[], None] = lambda: None
        """Told where a position has moved without an order: its exits may have to."""
        self.on_held: Callable[[Collection[str]], None] = lambda _symbols: None
        """Told of the symbols whose position can't be explained, at each look, and of those let go."""
        self.unexplained: Mapping[str, str] = {}
        """Symbols that are closed for new orders, with the reason."""
        self._desk = desk
        self._clock = clock
        self._doubts: dict[str, Doubt] = {}
        self._strangers: set[str] = set()
        """Order ids of executions that are not ours."""
        self._others: set[str] = set()
        """Order ids of listed orders that are not ours."""
        self._presumed: set[str] = set()
        """Orders that were taken for ended because the broker did not show them any more."""
        self._round = 0
        self._seen: Mapping[str, tuple[Decimal, Decimal]] = {}
        """Positions that differed at the last look around: ours and the broker's."""
        self._theirs: Mapping[str, BrokerPosition] = {}
        """The broker's positions as they were read last."""
        self._traded: dict[str, Side] = {}
        """The side of our newest fill, in symbols where nobody has looked since at whose the position is."""
        desk.followers.append(self._follow)

    @property
    def idle(self) -> bool:
        """Tell whether no order is on its way or in doubt."""
        return not self._desk.in_flight and not self._desk.changing and not self._in_doubt()

    def remember(self, unexplained: Mapping[str, str], traded: Iterable[Fill]) -> None:
        """Take up what the last reconciliation before a restart left unexplained, and the fills of ours since."""
        self._traded.update((fill.symbol, fill.side) for fill in traded)
        self.unexplained = dict(unexplained)
        self._desk.gate.hold(self.unexplained)

    def there(self, symbol: str) -> Decimal | None:
        """Give what the broker has of a symbol whose position can't be explained, None for any other."""
        return self._quantity(symbol) if symbol in self.unexplained else None

    async def run(self, link: BrokerLink) -> Differences:
        """Read everything back, settle what can be settled, and journal what was found."""
        found = Differences()
        self._doubts.clear()  # looks count in a row on one connection
        self._others.clear()
        self._presumed &= {*self._desk.orders}
        self._round += 1
        working = await self._orders(link, found, first=True)
        self._foreign(working, found)
        await self._positions(link, found)
        await self._desk.settle()
        found.unknown_orders += sorted(order_id for order_id in self._strangers if made_at(order_id) is not None)
        if words := found.words():
            log.warning("reconciled with the broker: %s", words)
        self._note(found)
        return found

    async def count_fills(self, link: BrokerLink) -> None:
        """Count the executions that were not told yet."""
        executions = await link.broker.executions(self._clock.now() - LOOK_BACK)
        await self._recall(executions)
        self._count(executions, Differences())

    async def held(self, link: BrokerLink, symbol: str) -> Decimal:
        """Read back what the broker holds of a symbol."""
        held = (await self._held(link)).get(symbol)
        return ZERO if held is None else held.quantity

    async def closable(self, link: BrokerLink, symbol: str) -> Decimal:
        """Give what there is to close of a position of ours: what both the books and a fresh read of it show.

        An exit may have filled without our knowing it: closing what the books have would turn the position. Raise
        CommandError where the two don't agree on its side, or it can't be read.
        """
        try:
            async with asyncio.timeout(READ_WITHIN):
                actual = await self.held(link, symbol)
                if actual != self._desk.portfolio.quantity(symbol):
                    await self.count_fills(link)
                    actual = await self.held(link, symbol)
        except CommandError:
            raise
        except Exception as error:  # a broker plugin may raise anything; nothing was sent
            raise CommandError(
                "broker_unavailable",
                f"nothing was sent: the position of {symbol} can't be read back ({type(error).__name__}: {error})",
            ) from error
        ours = self._desk.portfolio.quantity(symbol)
        if ours == ZERO:
            raise CommandError(
                "not_found", f"{symbol} is flat already: an exit of it has filled", {"field": "symbol"}
            )
        if actual * ours <= ZERO:
            raise CommandError(
                "busy", f"the books have {ours} of {symbol}, the broker has {actual}: ask again once the two agree"
            )
        return min(ours, actual, key=abs)

    async def resolve_unknown(self, link: BrokerLink) -> None:
        """Read back where an order or a position is in doubt, so that it does not stay so."""
        if link.health.link == "down":
            return  # what a broker that is cut off shows proves nothing; `run` follows when it is back
        if self._in_doubt():
            found = Differences()
            await self._orders(link, found)
            if found.fills or found.orders:
                log.warning("read back from the broker: %s", found.body())
        if self.unexplained:
            await self._look_again(link)

    async def look_around(self, link: BrokerLink) -> bool:
        """Look what others have done with the account meanwhile; tell whether anything has changed.

        A person who trades by hand beside us makes positions foreign, or takes ours away. A difference counts
        once two looks in a row have shown the same, since a fill's report may be on its way, and only what no
        execution explains: a report may have been lost. An order of ours that the broker no longer lists is in
        doubt, and is settled as all that is.
        """
        desk, this = self._desk, self._round
        if link.health.link == "down" or desk.in_flight or self._in_doubt():
            return False
        stood = {order.order_id: _state(order) for order in desk.open_orders() if not self._moving(order)}
        working, theirs = await link.broker.open_orders(), await self._held(link)
        await self._recall_listed(working)
        if this != self._round or link.state != "connected" or desk.in_flight:
            return False
        listed = {each.order_id: each.state for each in working}
        for order in desk.open_orders():
            state = listed.get(order.order_id)
            if stood.get(order.order_id) == _state(order) and state != ("held" if order.held else "working"):
                self._doubts[order.order_id] = Doubt("not listed, or otherwise", 0, monotonic())
        for order in self._come_back(working):
            self._doubts[order.order_id] = Doubt(AGAIN, 0, monotonic())
        if self._doubts:
            await self.resolve_unknown(link)
            return True
        found, orders = (
            Differences(),
            {order_id: order.filled_quantity for order_id, order in desk.foreign.items()},
        )
        differing = self._differing(theirs)
        if any(not self._is_told(symbol, pair) for symbol, pair in differing.items()):
            executions = await link.broker.executions(self._clock.now() - LOOK_BACK)
            await self._recall(executions)
            if this != self._round or link.state != "connected" or desk.in_flight:
                return False
            self._count(executions, found)
            if found.fills:
                self._seen = {}
                log.warning("executions of ours were never told; counted now: %s", ", ".join(found.fills))
                return True
            differing = self._differing(theirs)
        self._foreign(working, found)
        changed = orders != {order_id: order.filled_quantity for order_id, order in desk.foreign.items()}
        seen, self._seen = self._seen, differing
        known = {position.symbol for position in desk.portfolio.positions() if position.foreign}
        foreign = [
            theirs[symbol]
            for symbol, pair in differing.items()
            if self._is_theirs(symbol, *pair) and (symbol in known or seen.get(symbol) == pair)
        ]
        unexplained = {
            symbol: _sentence(symbol, *pair)
            for symbol, pair in differing.items()
            if not self._is_theirs(symbol, *pair)
            and (symbol in self.unexplained or seen.get(symbol) == pair)
            and not self._in_lieu(symbol, *pair)
        }
        before = {
            position.symbol: position.quantity for position in desk.portfolio.positions() if position.foreign
        }
        if before != {position.symbol: position.quantity for position in foreign}:
            desk.portfolio.set_foreign(foreign)
            found.foreign_positions += [each.symbol for each in foreign if each.symbol not in known]
            changed = True
        found.unexplained.update(unexplained)
        self._forget_traded(differing, foreign)
        if unexplained != self.unexplained:
            self._hold(unexplained)
            changed = True
            for sentence in unexplained.values():
                log.error("%s", sentence)
        if changed:
            log.warning("the account has changed beside us: %s", found.body())
            self._note(found)
        return changed

    def _is_told(self, symbol: str, pair: tuple[Decimal, Decimal]) -> bool:
        """Tell whether a difference is known already, as a foreign position or as an unexplained one."""
        if not self._is_theirs(symbol, *pair):
            return self.unexplained.get(symbol) == _sentence(symbol, *pair)
        position = self._desk.portfolio.position(symbol)
        return position.foreign and position.quantity == pair[1]

    def _is_theirs(self, symbol: str, ours: Decimal, actual: Decimal) -> bool:
        """Tell whether what the broker has beyond our books is somebody else's: nothing that we traded made it.

        Where a stop has sold what a person had sold before, the short is no foreign one; what a person had
        bought beside a position of ours stays when ours is sold.
        """
        if ours != ZERO:
            return False
        side = self._traded.get(symbol)
        return symbol not in self.unexplained if side is None else (actual > ZERO) == (side == "sell")

    def _forget_traded(self, differing: Collection[str], foreign: Iterable[BrokerPosition]) -> None:
        """Forget what we traded in symbols in which books and broker agree, or what differs is told as foreign."""
        open_ = {*differing} - {position.symbol for position in foreign}
        self._traded = {symbol: side for symbol, side in self._traded.items() if symbol in open_}

    def _follow(self, step: Step) -> None:
        if step.fill is not None and (step.applied is None or step.applied.moved):
            self._traded[step.fill.symbol] = step.fill.side

    def _in_doubt(self) -> bool:
        desk = self._desk
        return bool(self._doubts) or any(
            (order.status is OrderStatus.UNKNOWN and not order.held)
            or (order.status is OrderStatus.SUBMITTED and order.order_id not in desk.in_flight)
            or (order.replacement is not None and order.order_id not in desk.changing)
            or order.cancel_asked
            for order in desk.open_orders()
        )

    async def _orders(self, link: BrokerLink, found: Differences, *, first: bool = False) -> list[BrokerOrder]:
        """Count missed fills and settle our orders; give what works at the broker now.

        Only what stood, or had ended, before the first read, and has not moved since, is settled: of all else the
        answers of the read-back may be older than what we know.
        """
        broker, desk, this = link.broker, self._desk, self._round
        stood = {o.order_id: None if self._moving(o) else _state(o) for o in desk.orders.values()}
        since = self._clock.now() - LOOK_BACK
        working = {order.broker_order_id: order for order in await broker.open_orders()}
        completed = {order.broker_order_id: order for order in await broker.completed_orders(since)}
        executions = await broker.executions(since)  # last: what has ended has told all its fills
        await self._recall_kills([*working.values(), *completed.values()])
        await self._recall_listed(working.values())
        await self._recall(executions)
        if link.state != "connected" or (not first and link.health.link == "down"):
            raise BrokerError("the connection went down during a read-back: it proves nothing")
        if this != self._round:
            return list(working.values())  # a newer reconciliation knows better
        moved = {
            order.order_id
            for order in desk.open_orders()
            if stood.get(order.order_id) != _state(order) or self._moving(order)
        }
        self._count(executions, found)
        mine = {o.order_id: o for o in (*working.values(), *completed.values()) if o.order_id}
        immediate = bool(getattr(broker, "immediate", False))
        for order in desk.open_orders():
            if order.order_id not in moved:
                self._settle(order, mine.get(order.order_id), found, immediate=immediate, first=first)
            elif not self._moving(order):
                self._doubts.setdefault(order.order_id, Doubt("it moved", 0, monotonic()))
        back = [order for order in self._come_back(mine.values()) if not self._moving(order)]
        for order in back:
            if stood.get(order.order_id, _state(order)) != _state(order):
                self._doubts[order.order_id] = Doubt(AGAIN, 0, monotonic())  # it has ended since: asked for anew
            elif order.order_id in self._presumed or self._sure(order, AGAIN, immediate=immediate or first):
                self._revive(order, found)
        again = {order.order_id for order in back}
        for order_id in [*self._doubts]:
            if order_id not in again and (order_id not in desk.orders or not desk.orders[order_id].working):
                del self._doubts[order_id]
        return list(working.values())

    def _come_back(self, shown: Iterable[BrokerOrder]) -> list[Order]:
        """List the orders of ours that have ended and are shown as working, an entry before its exits."""
        ids = sorted({each.order_id for each in shown if each.order_id and each.state == "working"})
        ended = (order for order_id in ids if (order := self._desk.orders.get(order_id)) is not None)
        return [order for order in ended if order.status in REVIVABLE and order.filled < order.request.quantity]

    def _revive(self, order: Order, found: Differences) -> None:
        """Take an order for working again; its terms are compared at the next look."""
        why = f"it was taken for {order.status}, and the broker shows it as working"
        self._presumed.discard(order.order_id)
        self._desk.local(order, "revived", why, recovered=True)
        self._doubts[order.order_id] = Doubt("its terms", 0, monotonic())
        found.orders[order.order_id] = "works again"

    def _moving(self, order: Order) -> bool:
        """Tell whether it is on its way at this moment: its own answer says what became of it."""
        return order.order_id in self._desk.in_flight or order.order_id in self._desk.changing

    async def _recall(self, executions: Sequence[Fill]) -> None:
        """Take back from the journal the ended orders that have filled after all."""
        desk, asked = self._desk, dict[str, list[Fill]]()
        for fill in executions:
            there = fill.order_id in desk.orders or fill.order_id in self._strangers
            if fill.order_id and not there and not desk.knows_execution(fill.exec_id):
                asked.setdefault(fill.order_id, []).append(fill)
        if not asked:
            return
        ours = await asyncio.to_thread(desk.journal.known_orders, [*asked])
        for order_id, fills in asked.items():
            if order_id in ours:
                known = await desk.recall(order_id)
            else:  # what has filled of it is the least that it was for
                sold = sum((fill.quantity for fill in fills), ZERO)
                known = await desk.recall_kill(order_id, fills[0].symbol, fills[0].side, sold)
            if known is None:
                self._strangers.add(order_id)

    async def _recall_listed(self, orders: Iterable[BrokerOrder]) -> None:
        """Take back from the journal the ended orders that the broker lists all the same."""
        desk = self._desk
        asked = {each.order_id for each in orders if each.order_id} - {*desk.orders, *self._others}
        if asked:
            ours = await asyncio.to_thread(desk.journal.known_orders, sorted(asked))
            self._others |= asked - ours
            for order_id in sorted(ours):
                await desk.recall(order_id)

    async def _recall_kills(self, orders: Iterable[BrokerOrder]) -> None:
        """Take back the orders of a kill that never reached the journal, such as on a full disk."""
        for each in orders:
            if each.order_id and each.order_id not in self._desk.orders:
                await self._desk.recall_kill(each.order_id, each.symbol, each.side, each.quantity, each)

    def _count(self, executions: Sequence[Fill], found: Differences) -> None:
        for fill in executions:
            if fill.order_id not in self._desk.orders or self._desk.knows_execution(fill.exec_id):
                continue
            report = BrokerReport("filled", fill.order_id, fill.ts, fill.broker_order_id, fill)
            self._desk.on_report(report, recovered=True)
            if self._desk.knows_execution(fill.exec_id):
                found.fills.append(fill.exec_id)

    def _settle(
        self, order: Order, truth: BrokerOrder | None, found: Differences, *, immediate: bool, first: bool
    ) -> None:
        before = order.status
        if truth is None:
            self._absent(order, immediate=immediate, first=first)
        else:
            if order.broker_order_id is None:
                order.broker_order_id = truth.broker_order_id
                order.touch()
            if truth.state == "working":
                self._works(order, truth, found, immediate=immediate, first=first)
            elif truth.state == "held":
                order.cancel_asked = False
                self._desk.local(order, "held", truth.reason or "the broker does not work it", recovered=True)
                self._doubts.pop(order.order_id, None)
            elif truth.state in _ENDS:
                reason = truth.reason or "read back from the broker"
                self._desk.local(order, _ENDS[truth.state], reason, recovered=True)
            elif order.working and self._sure(order, "filled, and no execution says so", immediate=immediate):
                self._filled(order, truth, found)
        if order.status is not before:
            found.orders.setdefault(order.order_id, order.status)

    def _sure(self, order: Order, what: str, *, immediate: bool) -> bool:
        """Tell whether enough looks in a row have shown the same; a broker without delay is believed at once."""
        if immediate:
            return True
        doubt = self._doubts.get(order.order_id)
        if doubt is None or doubt.what != what:
            doubt = self._doubts[order.order_id] = Doubt(what, 0, monotonic())
        doubt.looks += 1
        return doubt.looks >= LOOKS and monotonic() - doubt.since >= SURE_AFTER

    def _absent(self, order: Order, *, immediate: bool, first: bool) -> None:
        never = order.status in (OrderStatus.SUBMITTED, OrderStatus.UNKNOWN) and not order.held
        if self._sure(order, "absent", immediate=immediate):
            self._presumed.add(order.order_id)
            if never:
                self._desk.local(
                    order, "absent", "the broker has no trace of it: it never arrived", recovered=True
                )
            else:
                self._desk.local(order, "cancelled", GONE, recovered=True)
        elif first and order.status is OrderStatus.SUBMITTED:
            self._desk.local(order, "lost", "the broker shows no trace of it so far", recovered=True)

    def _works(
        self, order: Order, truth: BrokerOrder, found: Differences, *, immediate: bool, first: bool
    ) -> None:
        order.cancel_asked = False  # where one was asked for it may have been lost: it can be asked for again
        if order.status in (OrderStatus.SUBMITTED, OrderStatus.UNKNOWN):
            self._desk.local(order, "accepted", "read back from the broker", recovered=True)
        if order.replacement is not None:
            if _is_made(order.replacement, order.request, truth):
                self._desk.local(order, "replaced", "read back from the broker", recovered=True)
                found.orders[order.order_id] = "replaced"
            elif not self._sure(order, "not changed", immediate=immediate):
                return
            else:
                self._desk.local(order, "unchanged", "it never arrived at the broker", recovered=True)
                found.orders[order.order_id] = "the change never arrived"
        if truth.order_type == "trailing_stop" and order.request.adjustment is not None:
            if not first and not self._sure(order, "adjusted", immediate=immediate):
                return
            self._desk.local(order, "adjusted", "read back from the broker", recovered=True)
            found.orders[order.order_id] = "adjusted"
        differs = _differences(order.request, truth)
        if differs:
            if not first and not self._sure(order, "it differs", immediate=immediate):
                return
            told = ", ".join(f"{name} {getattr(order.request, name)} is {new}" for name, new in differs.items())
            order.replacement = order.request.model_copy(update=differs)
            self._desk.local(order, "replaced", f"read back from the broker: {told}", recovered=True)
            found.orders[order.order_id] = f"corrected: {told}"
        self._doubts.pop(order.order_id, None)

    def _filled(self, order: Order, truth: BrokerOrder, found: Differences) -> None:
        """Count what the broker says has filled, though it can't give the executions any more."""
        desk = self._desk
        missing = (truth.filled_quantity or truth.quantity) - order.filled
        mark = desk.portfolio.mark_of(order.request.symbol)
        price = next(
            (
                p
                for p in (
                    order.request.limit_price,
                    order.request.stop_price,
                    None if mark is None else mark.price,
                )
                if usable(p)
            ),
            None,
        )
        if missing > ZERO:
            if price is None:
                log.error("order %s has filled without executions, and there is no price for it", order.order_id)
                return
            fill = Fill(
                exec_id=stand_in(order),
                order_id=order.order_id,
                symbol=order.request.symbol,
                side=order.request.side,
                quantity=missing,
                price=price,
                commission=ZERO,
                ts=self._clock.now(),
                broker_order_id=order.broker_order_id,
            )
            log.warning(
                "order %s has filled at the broker, which gives no executions: %s are counted at %s",
                order.order_id,
                missing,
                price,
            )
            desk.local_fill(order, fill)
            found.fills.append(fill.exec_id)
        if order.working:  # it was smaller than we believed
            desk.local(order, "cancelled", "the broker has filled all that it had", recovered=True)

    def _foreign(self, working: Iterable[BrokerOrder], found: Differences) -> None:
        self._desk.foreign.clear()
        for each in working:
            if each.order_id is not None and each.order_id in self._desk.orders:
                continue
            found.foreign_orders.append(each.broker_order_id)
            partly = each.filled_quantity > ZERO
            self._desk.foreign[each.broker_order_id] = OrderView(
                status=OrderStatus.PARTIALLY_FILLED if partly else OrderStatus.ACCEPTED,
                order_id=each.order_id or f"foreign-{each.broker_order_id}",
                broker_order_id=each.broker_order_id,
                symbol=each.symbol,
                side=each.side,
                quantity=each.quantity,
                order_type=each.order_type,
                limit_price=each.limit_price,
                stop_price=each.stop_price,
                trail_amount=each.trail_amount,
                trail_percent=each.trail_percent,
                time_in_force=each.time_in_force,
                filled_quantity=each.filled_quantity,
                source="api",
                oca_group=each.oca_group,
                foreign=True,
            )

    async def _positions(self, link: BrokerLink, found: Differences) -> None:
        portfolio = self._desk.portfolio
        theirs = await self._held(link)
        if any(ours != actual for ours, actual in self._compared(theirs).values()):
            await asyncio.sleep(SECOND_LOOK)
            theirs = await self._held(link)
            executions = await link.broker.executions(self._clock.now() - LOOK_BACK)
            await self._recall(executions)
            self._count(executions, found)
        foreign: list[BrokerPosition] = []
        differing = self._differing(theirs)
        for symbol, (ours, actual) in differing.items():
            if self._is_theirs(symbol, ours, actual):
                foreign.append(theirs[symbol])
                found.foreign_positions.append(symbol)
            elif not self._in_lieu(symbol, ours, actual):
                found.unexplained[symbol] = _sentence(symbol, ours, actual)
        portfolio.set_foreign(foreign)
        self._forget_traded(differing, foreign)
        self._hold(found.unexplained)
        for sentence in found.unexplained.values():
            log.error("%s", sentence)

    async def _look_again(self, link: BrokerLink) -> None:
        """Let go of the symbols whose position can be explained by now."""
        this = self._round
        theirs = await self._held(link)
        executions = await link.broker.executions(self._clock.now() - LOOK_BACK)
        await self._recall(executions)
        if this != self._round or link.state != "connected":
            return
        self._count(executions, Differences())
        still: dict[str, str] = {}
        for symbol in self.unexplained:
            ours = self._desk.portfolio.quantity(symbol)
            actual = theirs[symbol].quantity if symbol in theirs else ZERO
            if ours != actual and not self._in_lieu(symbol, ours, actual):
                still[symbol] = _sentence(symbol, ours, actual)
            else:
                log.warning("the position of %s is explained now: %s", symbol, actual)
        if still.keys() != self.unexplained.keys():
            self._note(Differences(unexplained=still))  # a restart reads what the newest note leaves unexplained
        self._hold(still)

    async def _held(self, link: BrokerLink) -> Mapping[str, BrokerPosition]:
        self._theirs = {position.symbol: position for position in await link.broker.positions()}
        return self._theirs

    def _quantity(self, symbol: str) -> Decimal:
        return self._theirs[symbol].quantity if symbol in self._theirs else ZERO

    def _note(self, found: Differences) -> None:
        self._desk.note([NoteRecord("reconciliation", self._clock.now(), found.body())])

    def _compared(self, theirs: Mapping[str, BrokerPosition]) -> dict[str, tuple[Decimal, Decimal]]:
        """Give our and the broker's quantity of every symbol that either has."""
        portfolio = self._desk.portfolio
        symbols = {*theirs, *(p.symbol for p in portfolio.positions() if not p.foreign)}
        return {
            symbol: (portfolio.quantity(symbol), theirs[symbol].quantity if symbol in theirs else ZERO)
            for symbol in symbols
        }

    def _in_lieu(self, symbol: str, ours: Decimal, actual: Decimal) -> bool:
        """Book the fraction of a share that a split has left, and for which the broker pays cash; tell whether."""
        if not self._desk.portfolio.was_split(symbol) or ours.to_integral_value(ROUND_DOWN) != actual:
            return False
        fill = self.settling(symbol, actual, "in-lieu")
        strategy = self._desk.portfolio.position(symbol).strategy
        self._desk.note([FillRecord(fill, strategy, "api", recovered=True)])
        self.settle(fill, strategy)
        log.warning(
            "%s: the fraction %s of a share that a split has left is booked as cash in lieu at %s; %s are held",
            symbol,
            fill.quantity,
            fill.price,
            actual,
        )
        return True

    def settling(self, symbol: str, actual: Decimal, why: Settled) -> Fill:
        """Make the fill that brings our position to what the broker has, at the newest price."""
        portfolio = self._desk.portfolio
        mark = portfolio.mark_of(symbol)
        price = portfolio.position(symbol).average_cost if mark is None else mark.price
        if price == ZERO and symbol in self._theirs:
            price = self._theirs[symbol].average_cost  # the books are flat, and no price is known
        return settlement(symbol, actual - portfolio.quantity(symbol), price, self._clock.now(), why)

    def settle(self, fill: Fill, strategy: str | None) -> None:
        """Count a fill that `settling` has made and the journal has taken, and let go of its symbol."""
        self._desk.portfolio.adopt(fill, strategy)
        left = {symbol: why for symbol, why in self.unexplained.items() if symbol != fill.symbol}
        if left != self.unexplained:
            self._note(Differences(unexplained=left))
        self._traded.pop(fill.symbol, None)
        self._hold(left)
        self.on_settled()

    async def unexplained_now(self, link: BrokerLink, symbol: str) -> tuple[Decimal, Decimal] | None:
        """Look once more at a symbol that is held: our quantity and the broker's, None where they agree now."""
        await self._look_again(link)
        if symbol not in self.unexplained:
            return None
        theirs = await self._held(link)
        return self._compared(theirs)[symbol]

    def _differing(self, theirs: Mapping[str, BrokerPosition]) -> dict[str, tuple[Decimal, Decimal]]:
        return {symbol: pair for symbol, pair in self._compared(theirs).items() if pair[0] != pair[1]}

    def _hold(self, unexplained: Mapping[str, str]) -> None:
        concerned = {*self.unexplained, *unexplained}
        self.unexplained = dict(unexplained)
        self._desk.gate.hold(self.unexplained, {symbol: self._quantity(symbol) for symbol in self.unexplained})
        if concerned:
            self.on_held(concerned)


def _sentence(symbol: str, ours: Decimal, actual: Decimal) -> str:
    return (
        f"the journal's fills make {ours} of {symbol}, the broker has {actual}: "
        "settle it at the broker, or here with settle_position; the symbol is free again once the two agree"
    )


def _state(order: Order) -> tuple[object, ...]:
    """Give what a report or a change would move."""
    return order.status, order.held, order.filled, order.request, order.replacement


def _differences(request: OrderRequest, truth: BrokerOrder) -> dict[str, Any]:
    """Name what a working order is at the broker and is not in a request; prices that it does not have are not."""
    if request.order_type == "trailing_stop" and truth.adjustment is not None:  # a change was faster, or slower
        terms = ("quantity", "order_type", "stop_price", "trail_amount", "trail_percent", "adjustment")
        return {name: getattr(truth, name) for name in terms}
    trail = ("trail_percent",) if request.trail_amount is None else ("trail_amount",)
    names = ("quantity", *(trail if request.order_type == "trailing_stop" else TERMS.get(request.order_type, ())))
    theirs = {name: getattr(truth, name) for name in names}
    return {name: new for name, new in theirs.items() if new is not None and new != getattr(request, name)}


def _is_made(change: OrderRequest, before: OrderRequest, truth: BrokerOrder) -> bool:
    """Tell whether a working order has all that a change of it changes, also where it is not shown to have any."""
    return change.adjustment in (before.adjustment, truth.adjustment) and not _differences(change, truth)

"""Reconciliation: what the broker knows against what the journal knows, at every connect and for what is unknown.

There is no separate crash path: every start ends here. Fills that were missed are counted once, by execution id;
orders in doubt get the status that the read-back shows; what is not ours is shown as foreign and never adopted
silently; a position that cannot be explained keeps its symbol closed for new orders, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from sigma9_core.clock import Clock
from sigma9_core.contracts import BrokerOrder, BrokerPosition, BrokerReport
from sigma9_core.models import ZERO, OrderStatus, OrderView
from sigma9_core.money.desk import OrderDesk
from sigma9_core.money.link import BrokerLink
from sigma9_core.money.orders import Message, Order
from sigma9_core.money.records import NoteRecord

log = logging.getLogger("sigma9.reconcile")

LOOK_BACK: Final = timedelta(days=7)
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

    def body(self) -> dict[str, Any]:
        """Give the report as JSON."""
        return {
            "fills": self.fills,
            "orders": self.orders,
            "foreign_orders": self.foreign_orders,
            "foreign_positions": self.foreign_positions,
            "unexplained": self.unexplained,
        }


class Reconciler:
    """Compares and settles; on the money lane."""

    def __init__(self, desk: OrderDesk, clock: Clock) -> None:
        self.unexplained: Mapping[str, str] = {}
        """Symbols that are closed for new orders, with the reason."""
        self._desk = desk
        self._clock = clock

    async def run(self, link: BrokerLink) -> Differences:
        """Read everything back, settle what can be settled, and journal what was found."""
        found = Differences()
        working = await self._orders(link, found)
        self._foreign(working, found)
        self._positions(await link.broker.positions(), found)
        await self._desk.settle()
        if any(found.body().values()):
            log.warning("reconciled with the broker: %s", found.body())
        self._desk.note([NoteRecord("reconciliation", self._clock.now(), found.body())])
        return found

    async def _orders(self, link: BrokerLink, found: Differences) -> list[BrokerOrder]:
        """Count missed fills and settle our orders; give what works at the broker now."""
        broker = link.broker
        since = self._clock.now() - LOOK_BACK
        executions = await broker.executions(since)
        working = {order.broker_order_id: order for order in await broker.open_orders()}
        completed = {order.broker_order_id: order for order in await broker.completed_orders(since)}
        for fill in executions:
            if fill.order_id in self._desk.orders and not self._desk.knows_execution(fill.exec_id):
                found.fills.append(fill.exec_id)
                self._desk.on_report(
                    BrokerReport("filled", fill.order_id, fill.ts, fill.broker_order_id, fill), recovered=True
                )
        mine = {o.order_id: o for o in (*completed.values(), *working.values()) if o.order_id}
        for order in self._desk.open_orders():
            if order.order_id in self._desk.in_flight:
                continue  # on its way at this moment: its own answer says what became of it
            self._settle(order, mine.get(order.order_id), found)
        return list(working.values())

    async def resolve_unknown(self, link: BrokerLink) -> None:
        """Read back where an order is `unknown`, so that it does not stay so."""
        if any(order.status is OrderStatus.UNKNOWN for order in self._desk.open_orders()):
            await self._orders(link, Differences())

    def _settle(self, order: Order, truth: BrokerOrder | None, found: Differences) -> None:
        before = order.status
        if truth is None:
            if order.status in (OrderStatus.SUBMITTED, OrderStatus.UNKNOWN):
                self._desk.local(
                    order, "absent", "the broker has no trace of it: it never arrived", recovered=True
                )
            else:
                self._desk.local(order, "cancelled", "the broker no longer has it", recovered=True)
        else:
            if order.broker_order_id is None:
                order.broker_order_id = truth.broker_order_id
            if truth.state == "working":
                if order.status in (OrderStatus.SUBMITTED, OrderStatus.UNKNOWN):
                    self._desk.local(order, "accepted", "read back from the broker", recovered=True)
            elif truth.state in _ENDS:
                reason = truth.reason or "read back from the broker"
                self._desk.local(order, _ENDS[truth.state], reason, recovered=True)
            # "filled" needs nothing here: its executions have said so
        if order.status is not before:
            found.orders[order.order_id] = order.status

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

    def _positions(self, positions: Sequence[BrokerPosition], found: Differences) -> None:
        portfolio = self._desk.portfolio
        theirs = {position.symbol: position for position in positions}
        foreign: list[BrokerPosition] = []
        for symbol in {*theirs, *(p.symbol for p in portfolio.positions() if not p.foreign)}:
            ours = portfolio.quantity(symbol)
            actual = theirs[symbol].quantity if symbol in theirs else ZERO
            if ours == actual:
                continue
            if ours == ZERO:
                foreign.append(theirs[symbol])
                found.foreign_positions.append(symbol)
            else:
                found.unexplained[symbol] = (
                    f"the journal's fills make {ours} of {symbol}, the broker has {actual}: "
                    "settle it at the broker or adopt the position"
                )
        portfolio.set_foreign(foreign)
        self.unexplained = dict(found.unexplained)
        self._desk.gate.hold(self.unexplained)
        for sentence in found.unexplained.values():
            log.error("%s", sentence)

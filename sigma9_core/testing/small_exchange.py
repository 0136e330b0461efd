"""A small exchange in memory for tests of the money path: fills by hand, faults by name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Literal

from sigma9_core.clock import Clock
from sigma9_core.contracts import (
    BrokerAccount,
    BrokerHealth,
    BrokerListener,
    BrokerOrder,
    BrokerPosition,
    BrokerReport,
    Kept,
    ReportKind,
)
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import ZERO, ApprovedOrder, Fill, OrderRequest

Fault = Literal[
    "refuse", "raise", "hang", "lost_ack", "doubled", "no_cancel", "no_right", "reject_stops", "reject_markets",
    "no_change", "lost_change",
]  # fmt: skip
"""refuse: BrokerRefused on submit. raise: submit raises, nothing arrives. hang: submit never returns, but arrives.
lost_ack: submit raises, but it arrived. doubled: every report comes twice. no_cancel: cancels are swallowed.
no_right: no order may be cancelled by our id; by the exchange's own number everything is cancelled at once.
reject_stops, reject_markets: stop (market) orders are rejected by a report.
no_change: changes are taken, and refused by a report. lost_change: changes are swallowed."""


@dataclass(slots=True)
class Resting:
    """An order at the exchange."""

    order_id: str
    number: str
    request: OrderRequest
    filled: Decimal = ZERO
    state: Literal["working", "filled", "cancelled", "rejected", "expired"] = "working"
    held: bool = False
    """It is there, and the exchange does not work it."""

    def shown(self) -> BrokerOrder:
        """Show it as a read-back does."""
        ask = self.request
        return BrokerOrder(
            self.order_id,
            self.number,
            ask.symbol,
            ask.side,
            ask.quantity,
            self.filled,
            ask.order_type,
            "held" if self.held and self.state == "working" else self.state,
            ask.limit_price,
            ask.stop_price,
            ask.trail_amount,
            ask.trail_percent,
            ask.time_in_force,
            ask.oca_group,
            ask.parent_id,
            good_after=ask.good_after,
            adjustment=ask.adjustment,
        )


@dataclass
class SmallExchange:
    """A broker whose market orders fill at the price that the test sets, when the test says `trade`."""

    clock: Clock
    cash: Decimal = Decimal(100_000)
    mode: Literal["paper", "live", "simulated"] = "paper"
    health: BrokerHealth = field(default_factory=BrokerHealth)
    faults: set[Fault] = field(default_factory=set)
    orders: dict[str, Resting] = field(default_factory=dict)
    holdings: dict[str, Decimal] = field(default_factory=dict)
    fills: list[Fill] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    listener: BrokerListener | None = None
    immediate: bool = True
    """What a read-back does not show is not there; a real broker may show an order late."""
    keeps: frozenset[Kept] = frozenset()

    async def connect(self, listener: BrokerListener) -> None:
        """Connect."""
        self.listener = listener
        self.health = BrokerHealth("up", "up", "up")

    async def disconnect(self) -> None:
        """Disconnect."""
        self.listener = None
        self.health = BrokerHealth()

    async def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Take orders, with the faults that are switched on."""
        if "refuse" in self.faults:
            raise BrokerRefused("the exchange is closed to you")
        if "raise" in self.faults:
            raise BrokerError("the line broke before it left")
        for order in orders:
            self.submitted.append(order.order_id)
            resting = Resting(order.order_id, str(len(self.orders) + 1), order.request)
            self.orders[order.order_id] = resting
            if "reject_stops" in self.faults and order.request.order_type == "stop":
                resting.state = "rejected"
                self.report("rejected", order.order_id, reason="no stops here")
            elif "reject_markets" in self.faults and order.request.order_type == "market":
                resting.state = "rejected"
                self.report("rejected", order.order_id, reason="no market orders here")
            elif not self.faults & {"hang", "lost_ack"}:
                self.report("accepted", order.order_id)
        if "hang" in self.faults:
            await asyncio.Event().wait()
        if "lost_ack" in self.faults:
            raise BrokerError("the line broke before the answer came")

    async def replace(self, order: ApprovedOrder) -> None:
        """Change a working order."""
        resting = self._working(order.order_id)
        if "no_change" in self.faults:
            self.report("unchanged", order.order_id, reason="no changes here")
        elif "lost_change" not in self.faults:
            resting.request = order.request
            self.report("replaced", order.order_id)

    async def cancel(self, order_id: str) -> None:
        """Cancel a working order."""
        self.cancels.append(order_id)
        if "no_right" in self.faults:
            if order_id not in {order.number for order in self.orders.values()}:
                raise BrokerError(f"order {order_id} was sent by another client: cancel it there")
            for order in self.orders.values():
                if order.state == "working":
                    order.state = "cancelled"
                    self.report("cancelled", order.order_id)
            return
        resting = self._working(order_id)
        if "no_cancel" not in self.faults:
            resting.state = "cancelled"
            self.report("cancelled", order_id)

    async def open_orders(self) -> Sequence[BrokerOrder]:
        """Read back what works."""
        return [order.shown() for order in self.orders.values() if order.state == "working"]

    async def completed_orders(self, since: datetime) -> Sequence[BrokerOrder]:
        """Read back what has ended."""
        return [order.shown() for order in self.orders.values() if order.state != "working"]

    async def executions(self, since: datetime) -> Sequence[Fill]:
        """Read back the executions."""
        return [fill for fill in self.fills if fill.ts >= since]

    async def positions(self) -> Sequence[BrokerPosition]:
        """Read back the positions."""
        return [BrokerPosition(symbol, held, ZERO) for symbol, held in self.holdings.items() if held]

    async def account(self) -> BrokerAccount:
        """Read back the account."""
        return BrokerAccount("TEST", self.mode, "USD", self.cash)

    # --- what a test does -------------------------------------------------------------------------------------

    def fill(self, order_id: str, price: Decimal, quantity: Decimal | None = None) -> Fill:
        """Fill an order, in part or whole, and cancel the rest of its one-cancels-all group once it is whole."""
        order = self.orders[order_id]
        size = quantity if quantity is not None else order.request.quantity - order.filled
        order.filled += size
        ask = order.request
        fill = Fill(f"x{len(self.fills) + 1}", order_id, ask.symbol, ask.side, size, price, ZERO, self.clock.now())
        fill = replace(fill, broker_order_id=order.number)
        self.fills.append(fill)
        sign = 1 if ask.side == "buy" else -1
        self.holdings[ask.symbol] = self.holdings.get(ask.symbol, ZERO) + sign * size
        self.cash -= sign * size * price
        if order.filled >= ask.quantity:
            order.state = "filled"
        self.report("filled", order_id, fill=fill)
        if order.state == "filled" and ask.oca_group is not None:
            for other in self.orders.values():
                if other.request.oca_group == ask.oca_group and other.state == "working":
                    other.state = "cancelled"
                    self.report("cancelled", other.order_id, reason="one cancels all")
        return fill

    def adjust(self, order_id: str) -> None:
        """Make of a stop what it is to become."""
        resting = self.orders[order_id]
        resting.request = resting.request.adjusted()
        self.report("adjusted", order_id)

    def end(self, order_id: str, kind: Literal["cancelled", "rejected", "expired"], reason: str) -> None:
        """End an order from the exchange's side."""
        self.orders[order_id].state = kind
        self.report(kind, order_id, reason=reason)

    def report(
        self, kind: ReportKind, order_id: str, *, fill: Fill | None = None, reason: str | None = None
    ) -> None:
        """Tell the listener, once or, where the fault is on, twice."""
        if self.listener is None:
            return
        report = BrokerReport(kind, order_id, self.clock.now(), self.orders[order_id].number, fill, reason)
        for _ in range(2 if "doubled" in self.faults else 1):
            self.listener.on_report(report)

    def _working(self, order_id: str) -> Resting:
        order = self.orders.get(order_id)
        if order is None:
            raise BrokerError(f"no order has the id {order_id}")
        if order.state != "working":
            raise BrokerRefused(f"order {order_id} is {order.state}")
        return order

"""Tickets: an order in the book and what has become of it, and the executions that it got."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sigma9_core.testing.tws.contracts import Contract
from sigma9_core.testing.tws.orders import WireOrder

ZERO: Final = Decimal(0)
STOPS: Final = frozenset(("STP", "STP LMT", "TRAIL", "TRAIL LIMIT"))
TOUCHES: Final = frozenset(("MIT", "LIT"))
AT_CLOSE: Final = frozenset(("MOC", "LOC"))
LIMITED: Final = frozenset(("LMT", "STP LMT", "TRAIL LIMIT", "LOC", "LIT"))
LIVE: Final = frozenset(("ApiPending", "PendingSubmit", "PreSubmitted", "Submitted", "PendingCancel"))


@dataclass(eq=False, slots=True, repr=False)
class Ticket:
    """An order in the book."""

    perm_id: int
    client_id: int
    """Of the client that placed it; 0 and no order id for an order by hand."""
    order_id: int
    contract: Contract
    order: WireOrder
    account: str
    quantity: Decimal
    created: datetime
    status: str = "PreSubmitted"
    filled: Decimal = ZERO
    paid: Decimal = ZERO
    """The sum of price times quantity of its fills."""
    last_price: Decimal = ZERO
    parent: Ticket | None = None
    triggered: bool = False
    best: Decimal | None = None
    """The best price that a trailing stop has seen."""
    transmitted: bool = True
    held: str = ""
    """Why it is there and not worked, such as `locate`; it is Inactive then, and may come to work."""
    withheld: bool = False
    """Nothing is told of it until a client reads it back."""
    good: bool = False
    """Its `goodAfterTime` has come."""
    past: bool = False
    """It ended on a day before: it is told no more."""
    ended: datetime | None = None
    reason: str = ""
    fills: int = 0

    def __repr__(self) -> str:
        """Show what a failed assertion needs: its hundred fields on the wire are in `order.values`."""
        asked = self.order.values
        return (
            f"<Ticket {self.perm_id} of client {self.client_id}, order id {self.order_id}: {asked.get('action')} "
            f"{self.quantity} {self.contract.symbol} {asked.get('orderType')} {self.status}, {self.filled} filled>"
        )

    @property
    def live(self) -> bool:
        """Tell whether it can still fill, now or once it is held no more."""
        return self.status in LIVE or self.held != ""

    @property
    def remaining(self) -> Decimal:
        """Give what is not filled."""
        return self.quantity - self.filled

    @property
    def average(self) -> Decimal:
        """Give the average price of its fills."""
        return (self.paid / self.filled).quantize(Decimal("0.00000001")).normalize() if self.filled else ZERO

    @property
    def ref(self) -> str:
        """Give the client's reference."""
        return self.order.get("orderRef")

    @property
    def parent_id(self) -> int:
        """Give the order id of its parent, 0 where there is none."""
        return 0 if self.parent is None else self.parent.order_id

    @property
    def stop(self) -> Decimal | None:
        """Give the price that sets a stop off."""
        if self.order.kind not in ("TRAIL", "TRAIL LIMIT") or self.best is None:
            trails = self.order.kind.startswith("TRAIL")
            return self.order.number("trailStopPrice" if trails else "auxPrice")
        percent = self.order.number("trailingPercent")
        distance = self.order.number("auxPrice") or ZERO if percent is None else self.best * percent / 100
        return self.best + distance if self.order.buys else self.best - distance

    @property
    def limit(self) -> Decimal | None:
        """Give the worst price that it takes; None for any."""
        kind = self.order.kind
        if kind not in LIMITED:
            return None
        offset = self.order.number("lmtPriceOffset")
        if kind == "TRAIL LIMIT" and offset is not None and (stop := self.stop) is not None:
            return stop + offset if self.order.buys else stop - offset
        return self.order.number("lmtPrice")

    @property
    def why_held(self) -> str:
        """Say what it waits for."""
        if self.held:
            return self.held
        if self.status != "PreSubmitted":
            return ""
        words = ["child"] if self.parent is not None and not self.parent.filled else []
        if self.order.kind in STOPS | TOUCHES and not self.triggered:
            words.append("trigger")
        return ",".join(words)

    def told(self) -> WireOrder:
        """Give the order as it is told: a trailing stop with the price where it is now."""
        stop = self.stop if self.order.kind.startswith("TRAIL") else None
        order = self.order
        if order.get("tif") == "":
            order = order.changed(tif="DAY")
        return order if stop is None else order.changed(trailStopPrice=stop)

    def shown(self) -> dict[str, Any]:
        """Show it as plain data."""
        return {
            "perm_id": self.perm_id,
            "client_id": self.client_id,
            "order_id": self.order_id,
            "order_ref": self.ref,
            "account": self.account,
            "symbol": self.contract.symbol,
            "action": self.order.get("action"),
            "type": self.order.get("orderType"),
            "tif": self.order.get("tif") or "DAY",
            "quantity": str(self.quantity),
            "filled": str(self.filled),
            "average": str(self.average),
            "limit": None if self.limit is None else str(self.limit),
            "stop": None if self.stop is None else str(self.stop),
            "status": self.status,
            "parent_id": self.parent_id,
            "oca_group": self.order.get("ocaGroup"),
            "reason": self.reason,
        }


@dataclass(slots=True)
class Execution:
    """A fill."""

    exec_id: str
    ticket: Ticket
    quantity: Decimal
    price: Decimal
    time: datetime
    cumulative: Decimal
    average: Decimal
    commission: Decimal
    realized: Decimal | None
    held: Decimal = ZERO
    """The position that it left."""
    told_at: datetime | None = None
    """When a client was told of it first, as it happened or when it asked."""
    hidden: bool = False
    """Nobody is told of it, nor when they ask."""

    def shown(self) -> dict[str, Any]:
        """Show it as plain data."""
        return {
            "exec_id": self.exec_id,
            "perm_id": self.ticket.perm_id,
            "order_id": self.ticket.order_id,
            "client_id": self.ticket.client_id,
            "order_ref": self.ticket.ref,
            "account": self.ticket.account,
            "symbol": self.ticket.contract.symbol,
            "side": "BOT" if self.ticket.order.buys else "SLD",
            "quantity": str(self.quantity),
            "price": str(self.price),
            "commission": str(self.commission),
            "time": self.time.isoformat(),
        }

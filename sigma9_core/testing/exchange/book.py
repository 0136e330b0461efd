"""The exchange's book: orders, one-cancels-all groups, parents, executions, positions and cash, in memory.

Nothing here knows of clients or faults: what the book says is the truth. Everything is a plain JSON object with
amounts as the text of their decimal: nothing but the standard library is loaded into the exchange's process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal

Body = dict[str, Any]
State = Literal["working", "filled", "cancelled", "rejected", "expired"]

ZERO: Final = Decimal(0)
COMMISSION: Final = Decimal("0.005")
"""Of every share."""
PRICES: Final[Mapping[str, tuple[str, ...]]] = {
    "market": (),
    "limit": ("limit_price",),
    "stop": ("stop_price",),
    "stop_limit": ("limit_price", "stop_price"),
    "trailing_stop": (),
}
"""The prices that each type of order needs; other types are rejected."""
AMOUNTS: Final = ("limit_price", "stop_price", "trail_amount", "trail_percent")
STOPS: Final = frozenset(("stop", "stop_limit", "trailing_stop"))


class Refused(Exception):
    """The book has not done what it was asked: `code` is `unknown`, `duplicate` or `refused`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Ticket:
    """An order at the exchange."""

    number: str
    order_id: str | None
    """The client's id; None for an order by hand."""
    symbol: str
    side: str
    quantity: Decimal
    order_type: str
    time_in_force: str
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_amount: Decimal | None = None
    trail_percent: Decimal | None = None
    oca_group: str | None = None
    parent: str | None = None
    """The number of its parent, and `parent_id` the client's id of it."""
    parent_id: str | None = None
    active: bool = True
    """False while its parent has not filled."""
    triggered: bool = False
    best: Decimal | None = None
    """The best price that a trailing stop has seen."""
    filled: Decimal = ZERO
    state: State = "working"
    reason: str | None = None
    ended_at: str | None = None

    @property
    def level(self) -> Decimal | None:
        """Give the price that sets a stop off."""
        if self.order_type != "trailing_stop" or self.best is None:
            return self.stop_price
        distance = self.trail_amount or self.best * (self.trail_percent or ZERO) / 100
        return self.best - distance if self.side == "sell" else self.best + distance

    def shown(self) -> Body:
        """Show it as a read-back does: the fields of `contracts.BrokerOrder`, and how it ended."""
        return {
            "order_id": self.order_id,
            "broker_order_id": self.number,
            "symbol": self.symbol,
            "side": self.side,
            "quantity": str(self.quantity),
            "filled_quantity": str(self.filled),
            "order_type": self.order_type,
            "state": self.state,
            **{name: text(getattr(self, name)) for name in AMOUNTS},
            "time_in_force": self.time_in_force,
            "oca_group": self.oca_group,
            "parent_id": self.parent_id,
            "reason": self.reason,
        }


@dataclass(slots=True)
class Holding:
    """A net position; negative when short."""

    quantity: Decimal = ZERO
    cost: Decimal = ZERO
    """The average of a share."""

    def take(self, signed: Decimal, price: Decimal) -> None:
        """Add a trade; one that goes through zero starts a new cost."""
        after = self.quantity + signed
        if self.quantity * signed >= 0:
            self.cost = (abs(self.quantity) * self.cost + abs(signed) * price) / abs(after)
        elif after * self.quantity < 0:
            self.cost = price
        self.quantity = after


@dataclass(slots=True)
class Execution:
    """A trade of one of the account's orders."""

    fill: Body
    """The fields of `models.Fill`."""
    busted: bool = False
    after: str = "0"
    """The position that it left."""
    told_at: str | None = None
    """When the client was told of it, by a report or by a read-back."""


@dataclass(slots=True)
class Book:
    """One account's orders and what became of them."""

    cash: Decimal
    tell: Callable[[Body], None]
    """Takes each report on an order of the client's: the fields of `contracts.BrokerReport`."""
    tickets: dict[str, Ticket] = field(default_factory=dict)
    """By number, oldest first."""
    numbers: dict[str, str] = field(default_factory=dict)
    """The number of each of the client's order ids."""
    executions: list[Execution] = field(default_factory=list)
    holdings: dict[str, Holding] = field(default_factory=dict)
    last: dict[str, Decimal] = field(default_factory=dict)
    """The newest price of each symbol."""
    count: int = 0
    """How many orders there have been."""
    _working: dict[str, Ticket] = field(default_factory=dict)
    _now: datetime = field(default_factory=lambda: datetime.now(UTC))

    # --- orders -------------------------------------------------------------------------------------------------

    def submit(self, orders: Sequence[Body], *, by_hand: bool = False, rejects: str | None = None) -> list[Ticket]:
        """Take orders as one unit: all are accepted, or all are rejected. Raise Refused `duplicate`."""
        for order in orders:
            if not by_hand and order["order_id"] in self.numbers:
                raise Refused("duplicate", f"the order {order['order_id']} is here already")
        tickets: list[Ticket] = []
        for order in orders:
            ticket = self._ticket(order, by_hand=by_hand)
            ticket.reason = rejects or _fault(ticket) or self._join(ticket, tickets)
            tickets.append(ticket)
        wrong = any(ticket.reason is not None for ticket in tickets)
        for ticket in tickets:
            self.tickets[ticket.number] = ticket
            if ticket.order_id is not None:
                self.numbers[ticket.order_id] = ticket.number
            if wrong:
                ticket.reason = ticket.reason or "another order of its group was rejected"
                ticket.state, ticket.ended_at = "rejected", self.now()
            else:
                self._working[ticket.number] = ticket
        for ticket in tickets:
            self._report("rejected" if wrong else "accepted", ticket)
        return tickets

    def replace(self, order: Body) -> None:
        """Change quantity and prices of a working order; raise Refused."""
        ticket = self.working(order["order_id"])
        quantity = Decimal(order["quantity"])
        if quantity <= ticket.filled:
            raise Refused("refused", f"{ticket.filled} of the order {order['order_id']} have filled")
        ticket.quantity = quantity
        for name in AMOUNTS:
            setattr(ticket, name, None if order[name] is None else Decimal(order[name]))
        parent = self.tickets.get(ticket.parent or "")
        if parent is not None and parent.state != "working":
            ticket.parent = None  # whoever changes it now knows what its parent has come to
        self._report("replaced", ticket)

    def cancel(self, order_id: str, reason: str = "cancelled on request") -> None:
        """Cancel a working order; raise Refused."""
        self.end(self.working(order_id), "cancelled", reason)

    def end(self, ticket: Ticket, state: State, reason: str) -> None:
        """End an order, and with it the children that its death leaves without a position."""
        if ticket.state != "working":
            return
        ticket.state, ticket.reason, ticket.ended_at = state, reason, self.now()
        self._working.pop(ticket.number, None)
        self._report(state, ticket)
        for child in self._children(ticket):
            if child.filled >= ticket.filled:
                self.end(child, "cancelled", f"its parent {ticket.number} filled no more than {ticket.filled}")

    def working(self, order_id: str) -> Ticket:
        """Give a working order by the client's id or by its number; raise Refused `unknown` or `refused`."""
        ticket = self.tickets.get(self.numbers.get(order_id, order_id))
        if ticket is None:
            raise Refused("unknown", f"no order is called {order_id}")
        if ticket.state != "working":
            raise Refused("refused", f"the order {order_id} is {ticket.state}")
        return ticket

    def all_working(self) -> list[Ticket]:
        """List what works, oldest first."""
        return list(self._working.values())

    # --- trades -------------------------------------------------------------------------------------------------

    def trade(self, symbol: str, price: Decimal, depth: Decimal | None = None) -> None:
        """Let a symbol trade; each order that the price reaches fills, up to `depth` shares a side."""
        self.last[symbol] = price
        left = dict.fromkeys(("buy", "sell"), depth)
        for ticket in [each for each in self._working.values() if each.symbol == symbol and each.active]:
            if ticket.state != "working" or not self._meets(ticket, price):
                continue
            able, room = self._available(ticket), left[ticket.side]
            quantity = able if room is None else min(able, room)
            if quantity > ZERO:
                if room is not None:
                    left[ticket.side] = room - quantity
                self._fill(ticket, quantity, price)
            if ticket.time_in_force in ("ioc", "fok") and ticket.state == "working":
                self.end(ticket, "cancelled", "the rest could not be had at once")

    def bust(self, execution: Execution) -> None:
        """Take an execution back: position and cash are as if it had never been, the order stays as it is."""
        execution.busted = True
        fill = execution.fill
        quantity, price = Decimal(fill["quantity"]), Decimal(fill["price"])
        signed = quantity if fill["side"] == "buy" else -quantity
        self._move(fill["symbol"], -signed, price)
        self.cash += signed * price + Decimal(fill["commission"])
        self._report("busted", self.tickets[fill["broker_order_id"]], fill=fill)

    def _fill(self, ticket: Ticket, quantity: Decimal, price: Decimal) -> None:
        ticket.filled += quantity
        commission = quantity * COMMISSION
        signed = quantity if ticket.side == "buy" else -quantity
        after = self._move(ticket.symbol, signed, price)
        self.cash -= signed * price + commission
        fill = {
            "exec_id": f"x{len(self.executions) + 1}",
            "order_id": ticket.order_id or "",
            "symbol": ticket.symbol,
            "side": ticket.side,
            "quantity": str(quantity),
            "price": str(price),
            "commission": str(commission),
            "ts": self.now(),
            "broker_order_id": ticket.number,
        }
        self.executions.append(Execution(fill, after=str(after)))
        if ticket.filled >= ticket.quantity:
            ticket.state, ticket.ended_at = "filled", fill["ts"]
            self._working.pop(ticket.number, None)
        self._report("filled", ticket, fill=fill)
        if ticket.oca_group is not None:
            for other in [each for each in self._working.values() if each.oca_group == ticket.oca_group]:
                if other is not ticket:
                    self.end(other, "cancelled", f"one cancels all: {ticket.number} has filled")
        parent = self.tickets.get(ticket.parent or "")
        if parent is not None and parent.state != "working" and ticket.filled >= parent.filled:
            self.end(ticket, "cancelled", f"its parent {parent.number} filled no more than {parent.filled}")
        for child in self._children(ticket):
            if not child.active:
                child.active, child.best = True, price

    def _move(self, symbol: str, signed: Decimal, price: Decimal) -> Decimal:
        holding = self.holdings.setdefault(symbol, Holding())
        holding.take(signed, price)
        if holding.quantity == ZERO:
            del self.holdings[symbol]
        return holding.quantity

    def _meets(self, ticket: Ticket, price: Decimal) -> bool:
        buys = ticket.side == "buy"
        if ticket.order_type in STOPS and not ticket.triggered:
            level = ticket.level
            if level is None or not (price >= level if buys else price <= level):
                if ticket.order_type == "trailing_stop":
                    best = price if ticket.best is None else ticket.best
                    ticket.best = min(best, price) if buys else max(best, price)
                return False
            ticket.triggered = True
        limit = ticket.limit_price
        return limit is None or (price <= limit if buys else price >= limit)

    def _available(self, ticket: Ticket) -> Decimal:
        """Give what may fill now: a child closes no more than its parent has opened."""
        remaining = ticket.quantity - ticket.filled
        parent = self.tickets.get(ticket.parent or "")
        return remaining if parent is None else min(remaining, parent.filled - ticket.filled)

    # --- reading back -------------------------------------------------------------------------------------------

    def open_orders(self) -> list[Body]:
        """Show what works now, orders by hand included."""
        return [ticket.shown() for ticket in self._working.values()]

    def completed_orders(self, since: str) -> list[Body]:
        """Show what has ended since a time."""
        return [t.shown() for t in self.tickets.values() if t.ended_at is not None and t.ended_at >= since]

    def fills(self, since: str) -> list[Body]:
        """Show the executions that stand since a time, oldest first."""
        shown = [each for each in self.executions if not each.busted and each.fill["ts"] >= since]
        for each in shown:
            each.told_at = each.told_at or self.now()
        return [each.fill for each in shown]

    def told(self, exec_id: str) -> None:
        """Note that the client was told of an execution."""
        each = self.executions[int(exec_id[1:]) - 1]
        each.told_at = each.told_at or self.now()

    def positions(self) -> list[Body]:
        """Show the net positions."""
        return [
            {"symbol": symbol, "quantity": str(held.quantity), "average_cost": str(held.cost)}
            for symbol, held in sorted(self.holdings.items())
        ]

    def now(self) -> str:
        """Tell the exchange's time, which never goes back."""
        self._now = max(self._now, datetime.now(UTC))
        return self._now.isoformat(timespec="microseconds")

    # --- inside -------------------------------------------------------------------------------------------------

    def _ticket(self, order: Body, *, by_hand: bool) -> Ticket:
        self.count += 1
        ticket = Ticket(
            number=f"E{self.count}",
            order_id=None if by_hand else order["order_id"],
            symbol=order["symbol"],
            side=order["side"],
            quantity=Decimal(order["quantity"]),
            order_type=order["order_type"],
            time_in_force=order["time_in_force"],
            oca_group=order["oca_group"],
            parent_id=order["parent_id"],
            best=self.last.get(order["symbol"]),
        )
        for name in AMOUNTS:
            setattr(ticket, name, None if order[name] is None else Decimal(order[name]))
        return ticket

    def _join(self, ticket: Ticket, group: Iterable[Ticket]) -> str | None:
        """Tie a child to its parent; say why where that can't be done."""
        if ticket.parent_id is None:
            return None
        parent = next((each for each in group if each.order_id == ticket.parent_id), None)
        parent = parent or self.tickets.get(self.numbers.get(ticket.parent_id, ""))
        if parent is None:
            return f"its parent {ticket.parent_id} is not known"
        if parent.state != "working" and parent.filled == ZERO:
            return f"its parent {ticket.parent_id} ended unfilled"
        ticket.parent, ticket.active = parent.number, parent.filled > ZERO
        return None

    def _children(self, ticket: Ticket) -> list[Ticket]:
        return [each for each in self._working.values() if each.parent == ticket.number]

    def _report(self, kind: str, ticket: Ticket, *, fill: Body | None = None) -> None:
        if ticket.order_id is None:
            return
        self.tell(
            {
                "kind": kind,
                "order_id": ticket.order_id,
                "ts": self.now(),
                "broker_order_id": ticket.number,
                "fill": fill,
                "reason": ticket.reason if kind in ("cancelled", "rejected", "expired") else None,
            }
        )


def text(amount: Decimal | None) -> str | None:
    """Write an amount."""
    return None if amount is None else str(amount)


def _fault(ticket: Ticket) -> str | None:
    """Say why an exchange would not take an order; None where it would."""
    if ticket.quantity <= ZERO or ticket.quantity != ticket.quantity.to_integral_value():
        return f"the quantity must be a whole number above zero, not {ticket.quantity}"
    if ticket.order_type not in PRICES:
        return f"no {ticket.order_type} orders are taken here"
    for name in PRICES[ticket.order_type]:
        price = getattr(ticket, name)
        if price is None or price <= ZERO:
            return f"a {ticket.order_type} order needs a {name} above zero"
    if ticket.order_type == "trailing_stop" and ticket.trail_amount is None and ticket.trail_percent is None:
        return "a trailing_stop order needs a trail_amount or a trail_percent"
    return None

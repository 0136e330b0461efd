"""The paper exchange's book: orders, executions, positions and cash, changed by records alone.

Everything that happens is a record, a small JSON object. `Book.apply` is the only way in which the book changes:
the records in the file, applied again, give the same book.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from sigma9_core.models import ZERO, Fill, OrderType, Side, TimeInForce

Record = Mapping[str, Any]
State = Literal["working", "filled", "cancelled", "rejected", "expired"]

KEPT: Final = 10_000
"""So many ended orders, and so many executions, are kept when the file is compacted: the newest."""
STOPS: Final[frozenset[OrderType]] = frozenset(("stop", "stop_limit", "trailing_stop"))
LIMITS: Final[frozenset[OrderType]] = frozenset(("limit", "stop_limit", "limit_on_close"))
ON_CLOSE: Final[frozenset[OrderType]] = frozenset(("market_on_close", "limit_on_close"))

_DECIMALS: Final = frozenset(
    ("quantity", "limit_price", "stop_price", "trail_amount", "trail_percent", "best", "filled", "value", "paid")
)
_TIMES: Final = frozenset(("since", "expires_at", "opens_at", "ended_at"))


@dataclass(slots=True)
class PaperOrder:
    """An order at the paper exchange."""

    number: str
    """The exchange's own id of it."""
    order_id: str | None
    """Our id; None for an order that was placed by hand."""
    symbol: str
    side: Side
    quantity: Decimal
    order_type: OrderType
    since: datetime
    """Only data behind this market time can fill it: when it, or its last change, arrived."""
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_amount: Decimal | None = None
    trail_percent: Decimal | None = None
    time_in_force: TimeInForce = "day"
    outside_rth: bool = False
    oca_group: str | None = None
    parent: str | None = None
    """The number of its parent."""
    expires_at: datetime | None = None
    opens_at: datetime | None = None
    """The open that an `opg` order waits for."""
    active: bool = True
    """False while its parent has not filled."""
    triggered: bool = False
    """A stop that has been reached; it trades as a market or limit order from then on."""
    best: Decimal | None = None
    """The best price that a trailing stop has seen."""
    filled: Decimal = ZERO
    value: Decimal = ZERO
    """What was traded: the sum of quantity times price."""
    paid: Decimal = ZERO
    """The commission so far."""
    fills: int = 0
    state: State = "working"
    reason: str | None = None
    ended_at: datetime | None = None

    @property
    def remaining(self) -> Decimal:
        """Give the quantity that has not filled."""
        return self.quantity - self.filled

    @property
    def waits_for_stop(self) -> bool:
        """Tell whether it is a stop that has not been reached."""
        return self.order_type in STOPS and not self.triggered

    @property
    def limited(self) -> bool:
        """Tell whether it trades at its limit or better only."""
        return self.order_type in LIMITS

    def stop_level(self) -> Decimal | None:
        """Give the price that sets the stop off; None for a trailing stop that has seen no price yet."""
        if self.order_type != "trailing_stop":
            return self.stop_price
        if self.best is None:
            return self.stop_price
        distance = self.trail_amount or self.best * (self.trail_percent or ZERO) / 100
        level = self.best - distance if self.side == "sell" else self.best + distance
        if self.stop_price is None:
            return level
        return max(level, self.stop_price) if self.side == "sell" else min(level, self.stop_price)

    def to_json(self) -> dict[str, Any]:
        """Write it as a JSON object."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, body: Record) -> PaperOrder:
        """Read what `to_json` wrote."""
        return cls(**{name: _read(name, value) for name, value in body.items()})


@dataclass(slots=True)
class Holding:
    """A net position; negative when short."""

    quantity: Decimal = ZERO
    average_cost: Decimal = ZERO

    def take(self, side: Side, quantity: Decimal, price: Decimal) -> None:
        """Add a trade; one that goes through zero starts a new cost."""
        signed = quantity if side == "buy" else -quantity
        after = self.quantity + signed
        if self.quantity * signed >= 0:
            self.average_cost = (abs(self.quantity) * self.average_cost + quantity * price) / abs(after)
        elif after * self.quantity < 0:
            self.average_cost = price
        elif after == 0:
            self.average_cost = ZERO
        self.quantity = after


class Book:
    """The state of the exchange as one account sees it."""

    def __init__(self, cash: Decimal) -> None:
        self.cash = cash
        self.holdings: dict[str, Holding] = {}
        self.orders: dict[str, PaperOrder] = {}
        """By number, oldest first."""
        self.numbers: dict[str, str] = {}
        """The number of each of our order ids."""
        self.executions: list[Fill] = []
        self.count = 0
        """How many orders there have been; the next number follows."""
        self.newest: datetime | None = None
        """The newest market time of a record."""
        self.splits: list[tuple[str, ...]] = []
        """Symbol, time, new and old shares of each split that was applied."""
        self._working: dict[str, dict[str, PaperOrder]] = {}

    def working(self, symbol: str) -> tuple[PaperOrder, ...]:
        """List the working orders of a symbol, oldest first."""
        orders = self._working.get(symbol)
        return tuple(orders.values()) if orders else ()

    def all_working(self) -> list[PaperOrder]:
        """List the working orders, oldest first."""
        found = [order for orders in self._working.values() for order in orders.values()]
        return sorted(found, key=lambda order: int(order.number[1:]))

    def by_id(self, order_id: str) -> PaperOrder | None:
        """Find one of our orders."""
        number = self.numbers.get(order_id)
        return self.orders.get(number) if number is not None else None

    def available(self, order: PaperOrder) -> Decimal:
        """Give what may fill now: a child closes no more than its parent has opened."""
        if order.parent is None or order.parent not in self.orders:
            return order.remaining
        return min(order.remaining, self.orders[order.parent].filled - order.filled)

    # --- records ----------------------------------------------------------------------------------------------

    def apply(self, record: Record) -> None:
        """Change the book by a record."""
        what = record["do"]
        if what == "snapshot":
            self._restore(record)
            return
        if "ts" in record:
            moment = datetime.fromisoformat(record["ts"])
            self.newest = moment if self.newest is None else max(self.newest, moment)
        if what in ("accept", "reject"):
            self._add(PaperOrder.from_json(record["order"]))
            return
        if what == "split":
            self._split(record)
            return
        order = self.orders[record["number"]]
        if what == "fill":
            self._fill(order, record)
        elif what == "end":
            order.state, order.reason = record["state"], record["reason"]
            self._ended(order, record["ts"])
        elif what == "activate":
            order.active, order.since = True, datetime.fromisoformat(record["ts"])
            if order.order_type == "trailing_stop":  # it trails from its parent's price on
                order.best = Decimal(record["best"])
        elif what == "trigger":
            order.triggered = True
        elif what == "trail":
            order.best = Decimal(record["best"])
        elif what == "replace":
            for name, value in record["changes"].items():
                setattr(order, name, _read(name, value))
            order.since = datetime.fromisoformat(record["ts"])
        else:
            raise ValueError(f"the paper exchange knows no record {what!r}")

    def snapshot(self) -> dict[str, Any]:
        """Give the whole book as one record; of what has ended only the newest."""
        ended = [order.number for order in self.orders.values() if order.state != "working"]
        dropped = set(ended[:-KEPT])
        parents = {order.parent for order in self.orders.values() if order.state == "working"}
        return {
            "do": "snapshot",
            "cash": str(self.cash),
            "count": self.count,
            "newest": _plain(self.newest),
            "splits": [list(split) for split in self.splits],
            "holdings": {
                symbol: [str(held.quantity), str(held.average_cost)] for symbol, held in self.holdings.items()
            },
            "orders": [
                order.to_json()
                for order in self.orders.values()
                if order.number not in dropped or order.number in parents
            ],
            "executions": [
                {name: _plain(value) for name, value in asdict(e).items()} for e in self.executions[-KEPT:]
            ],
        }

    def _restore(self, record: Record) -> None:
        self.cash = Decimal(record["cash"])
        self.count = record["count"]
        self.newest = datetime.fromisoformat(record["newest"]) if record["newest"] else None
        self.holdings = {
            symbol: Holding(Decimal(quantity), Decimal(cost))
            for symbol, (quantity, cost) in record["holdings"].items()
        }
        self.splits = [tuple(split) for split in record.get("splits", ())]
        self.orders, self.numbers, self._working = {}, {}, {}
        for body in record["orders"]:
            self._add(PaperOrder.from_json(body), again=True)
        self.executions = [_fill(body) for body in record["executions"]]

    def _add(self, order: PaperOrder, *, again: bool = False) -> None:
        self.orders[order.number] = order
        if not again:
            self.count += 1
        if order.order_id is not None:
            self.numbers[order.order_id] = order.number
        if order.state == "working":
            self._working.setdefault(order.symbol, {})[order.number] = order

    def _fill(self, order: PaperOrder, record: Record) -> None:
        quantity, price = Decimal(record["quantity"]), Decimal(record["price"])
        commission = Decimal(record["commission"])
        order.filled += quantity
        order.value += quantity * price
        order.paid += commission
        order.fills += 1
        self.holdings.setdefault(order.symbol, Holding()).take(order.side, quantity, price)
        if self.holdings[order.symbol].quantity == 0:
            del self.holdings[order.symbol]
        self.cash += (-1 if order.side == "buy" else 1) * quantity * price - commission
        self.executions.append(
            Fill(
                exec_id=record["exec_id"],
                order_id=order.order_id or "",
                symbol=order.symbol,
                side=order.side,
                quantity=quantity,
                price=price,
                commission=commission,
                ts=datetime.fromisoformat(record["ts"]),
                broker_order_id=order.number,
            )
        )
        if order.remaining == 0:
            order.state = "filled"
            self._ended(order, record["ts"])

    def _split(self, record: Record) -> None:
        new, old = Decimal(record["new"]), Decimal(record["old"])
        self.splits.append((record["symbol"], record["at"], record["new"], record["old"]))
        held = self.holdings.get(record["symbol"])
        if held is not None:
            held.quantity = held.quantity * new / old
            held.average_cost = held.average_cost * old / new

    def _ended(self, order: PaperOrder, ts: str) -> None:
        order.ended_at = datetime.fromisoformat(ts)
        orders = self._working.get(order.symbol, {})
        orders.pop(order.number, None)
        if not orders:
            self._working.pop(order.symbol, None)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _read(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in _DECIMALS:
        return Decimal(value)
    return datetime.fromisoformat(value) if name in _TIMES else value


def _fill(body: Record) -> Fill:
    numbers = ("quantity", "price", "commission")
    # Nothing is ever corrected here, and files of earlier versions lack the name.
    read: dict[str, Any] = {field.name: body[field.name] for field in fields(Fill) if field.name != "corrects"}
    return Fill(
        **{
            **read,
            **{name: Decimal(body[name]) for name in numbers},
            "ts": datetime.fromisoformat(body["ts"]),
        }
    )

"""What positions could come to be worth: working orders filled at their worst, valued as `max_position` does.

What is held counts at the last price, what comes to it at the worst price that its order may trade at. Exits
shrink a position and do not count, unless orders on their side could then turn it round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from sigma9_core.contracts import Mark, RiskView
from sigma9_core.models import ZERO, OrderRequest, OrderView, Position, Side
from sigma9_core.money.exposure import remaining, reserved
from sigma9_core.money.pricing import LIMITED, reference_price, usable

Pending = OrderView | OrderRequest
"""An order that works, or the one that is being judged."""


class Unpriced(Exception):
    """There is no price to value a position or an order at; the message is a clear sentence."""


@dataclass(slots=True)
class Worths:
    """The lowest and the highest value of each position by symbol: money, and negative when short."""

    low: dict[str, Decimal]
    high: dict[str, Decimal]

    def gross(self, symbol: str) -> Decimal:
        """Give the larger of both values of one symbol, long or short."""
        return max(self.high.get(symbol, ZERO), -self.low.get(symbol, ZERO))

    def total(self, symbols: Iterable[str] | None = None) -> Decimal:
        """Give the gross value of some symbols, or of all."""
        high, total = self.high, ZERO
        if symbols is not None:
            return sum((self.gross(symbol) for symbol in symbols), ZERO)
        for symbol, low in self.low.items():
            total += max(high[symbol], -low)
        return total

    def add(
        self, order: OrderRequest, position: Position | None, orders: Iterable[OrderView], view: RiskView
    ) -> None:
        """Count an order in, beside the `orders` that are counted; raise Unpriced where it has no price."""
        symbol, have = order.symbol, ZERO if position is None else position.quantity
        buys = order.side == "buy"
        if order.oca_group is not None or (have < 0 if buys else have > 0):
            pending: list[Pending] = [each for each in orders if each.symbol == symbol]
            self.low[symbol], self.high[symbol] = worth(symbol, position, [*pending, order], view)
            return
        value = order.quantity * _price(order, view.marks.get(symbol))
        low, high = self.low.get(symbol, ZERO), self.high.get(symbol, ZERO)
        self.low[symbol], self.high[symbol] = (low, high + value) if buys else (low - value, high)


def openings(view: RiskView, *, foreign: bool) -> list[OrderView]:
    """Give the working orders that may make a position larger: entries, and perhaps foreign orders."""
    intents = view.intents
    return [
        order for order in view.working if intents.get(order.order_id) == "entry" or (foreign and order.foreign)
    ]


def worths(positions: Mapping[str, Position], orders: Iterable[OrderView], view: RiskView) -> Worths:
    """Give what each position could come to; raise Unpriced where one can't be valued.

    It runs before every entry, over every working one: what `worth` does for a symbol it does here for all of
    them in one pass, and leaves to `worth` those that have groups or orders against the position.
    """
    marks = view.marks
    held = {symbol: _held(symbol, position, marks.get(symbol)) for symbol, position in positions.items()}
    found = Worths(held.copy(), held.copy())
    low, high = found.low, found.high
    others: set[str] = set()
    for order in orders:
        symbol = order.symbol
        have = held.get(symbol)
        if have is None:
            have = held[symbol] = low[symbol] = high[symbol] = ZERO
        buys = order.side == "buy"
        if order.oca_group is not None or (have < ZERO if buys else have > ZERO):
            others.add(symbol)
            continue
        price = order.limit_price if buys and order.order_type in LIMITED else None
        if not usable(price):
            price = _price(order, marks.get(symbol))
        left = order.quantity - order.filled_quantity
        if left > ZERO:
            if buys:
                high[symbol] += left * price
            else:
                low[symbol] -= left * price
    for symbol in others:
        pending = [order for order in orders if order.symbol == symbol]
        low[symbol], high[symbol] = worth(symbol, positions.get(symbol), pending, view)
    return found


def worth(
    symbol: str, position: Position | None, orders: Iterable[Pending], view: RiskView
) -> tuple[Decimal, Decimal]:
    """Give the lowest and the highest value of a position with these orders filled; raise Unpriced."""
    mark = view.marks.get(symbol)
    held = ZERO if position is None else _held(symbol, position, mark)
    buys = [order for order in orders if order.side == "buy"]
    sells = [order for order in orders if order.side == "sell"]
    low = high = held
    if position is not None and held < 0 and buys:
        high = _turned(position, "buy", buys, view)
    elif buys:
        high += _cost(buys, mark)[0]
    if position is not None and held > 0 and sells:
        low = -_turned(position, "sell", sells, view)
    elif sells:
        low -= _cost(sells, mark)[0]
    return low, high


def _held(symbol: str, position: Position, mark: Mark | None) -> Decimal:
    """Give the value of a position as it is held."""
    if not position.quantity:
        return ZERO
    price = mark.price if mark is not None and usable(mark.price) else abs(position.average_cost)
    if not usable(price):
        raise Unpriced(f"there is no price of {symbol} to value its position at")
    return position.quantity * price


def _cost(orders: Iterable[Pending], mark: Mark | None) -> tuple[Decimal, Decimal]:
    """Give what orders of one side are worth at their worst, a group counted once, and their dearest price."""
    total = dearest = ZERO
    groups: dict[str, Decimal] = {}
    for order in orders:
        price = _price(order, mark)
        dearest = max(dearest, price)
        value = (order.quantity if isinstance(order, OrderRequest) else remaining(order)) * price
        group = order.oca_group
        if group is None:
            total += value
        else:
            groups[group] = max(groups.get(group, ZERO), value)
    return sum(groups.values(), total), dearest


def _turned(position: Position, side: Side, orders: Iterable[Pending], view: RiskView) -> Decimal:
    """Give the value on `side` of a position that is held on the other, once all of `side` has filled.

    Here the exits count: what they close, the orders can't close any more.
    """
    mark = view.marks.get(position.symbol)
    asked = sum((order.quantity for order in orders if isinstance(order, OrderRequest)), ZERO)
    beyond = reserved(view.working, position.symbol, side) + asked - abs(position.quantity)
    price = _cost(orders, mark)[1]
    if beyond > 0:
        return beyond * price
    return beyond * abs(_held(position.symbol, position, mark) / position.quantity)


def _price(order: Pending, mark: Mark | None) -> Decimal:
    price = reference_price(order, mark)
    if price is None:
        raise Unpriced(f"there is no price of {order.symbol} to value an order at")
    return price

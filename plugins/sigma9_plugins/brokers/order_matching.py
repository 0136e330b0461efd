"""One order against one price: the rules that trades, quotes and bars share."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import ROUND_FLOOR, Decimal
from typing import Annotated, Literal

from pydantic import Field

from sigma9_core.models import ZERO, Money, Side
from sigma9_plugins.brokers.paper_book import ON_CLOSE, PaperOrder
from sigma9_plugins.brokers.paper_costs import Costs, decimal
from sigma9_plugins.brokers.paper_ledger import Ledger


class MatchingRules(Costs):
    """How orders are matched."""

    participation: Annotated[Money, Field(gt=0, le=1)] = Decimal("0.1")
    """The share of a trade's or bar's volume that fills at most; the rest of an order goes on."""
    limit_fill: Literal["through", "touch"] = "through"
    """Whether a resting limit order fills when its price is touched, or only when it is passed."""


class OrderMatcher:
    """Fills, sets off and ends single orders by the rules."""

    def __init__(self, rules: MatchingRules, ledger: Ledger) -> None:
        self.rules = rules
        self.ledger = ledger

    def ready(self, order: PaperOrder, *, regular: bool) -> bool:
        """Tell whether an order may trade now; outside regular hours only one that says so."""
        if order.state != "working" or not order.active or order.order_type in ON_CLOSE:
            return False
        return regular or order.outside_rth

    def reached(self, order: PaperOrder, price: Decimal, ts: datetime) -> bool:
        """Tell whether a price sets a stop off, and set it off; else let a trailing stop see it."""
        level = order.stop_level()
        if level is not None and beyond(order.side, price, level):
            self.ledger.trigger(order, ts)
            return True
        self.see(order, price, ts)
        return False

    def see(self, order: PaperOrder, price: Decimal, ts: datetime) -> None:
        """Let a trailing stop follow a price that is better than all it has seen."""
        if order.order_type != "trailing_stop" or order.best == price:
            return
        if order.best is None or beyond(order.side, order.best, price):
            self.ledger.trail(order, price, ts)

    def take(self, order: PaperOrder, price: Decimal | None, budget: Decimal, ts: datetime) -> Decimal:
        """Fill what the budget lets at a price, nothing at None; give what filled. What can't wait ends here."""
        quantity = min(self.ledger.book.available(order), budget) if price is not None else ZERO
        if order.time_in_force == "fok" and quantity < order.remaining:
            self.ledger.end(order, "cancelled", "fill or kill: not all of it could be had at once", ts)
            return ZERO
        quantity = max(ZERO, quantity)
        if price is not None and quantity:
            self.ledger.fill(order, quantity, price, ts)
        if order.time_in_force == "ioc" and order.state == "working":
            self.ledger.end(order, "cancelled", "immediate or cancel: the rest could not be had at once", ts)
        return quantity

    def auction(self, order: PaperOrder, price: Decimal, ts: datetime) -> None:
        """Fill a whole order at an auction's price, where its limit lets it."""
        quantity = self.ledger.book.available(order)
        if quantity > 0 and (not order.limited or as_good(order.side, price, limit_of(order))):
            self.ledger.fill(order, quantity, price, ts)

    def opening(self, order: PaperOrder, price: Decimal, began: datetime, ts: datetime) -> None:
        """Fill an `opg` order at the session's first price, or end it; `began`: when that trade or bar began."""
        if order.opens_at is None or began < order.opens_at:
            return
        self.auction(order, price, ts)
        if order.state == "working":
            self.ledger.end(order, "expired", f"the open at {price} was worse than its limit", ts)

    def through(self, order: PaperOrder, price: Decimal) -> bool:
        """Tell whether a price fills a resting limit order."""
        limit = limit_of(order)
        if price == limit:
            return self.rules.limit_fill == "touch"
        return as_good(order.side, price, limit)


def beyond(side: Side, price: Decimal, stop: Decimal) -> bool:
    """Tell whether a price sets a stop off: at or above for a buy, at or below for a sell."""
    return price >= stop if side == "buy" else price <= stop


def as_good(side: Side, price: Decimal, limit: Decimal) -> bool:
    """Tell whether a price keeps to a limit."""
    return price <= limit if side == "buy" else price >= limit


def limit_of(order: PaperOrder) -> Decimal:
    """Give the limit of an order that has one."""
    if order.limit_price is None:
        raise ValueError(f"order {order.number} has no limit price")
    return order.limit_price


def usable(price: float) -> bool:
    """Tell whether a price of market data is a number above zero."""
    return math.isfinite(price) and price > 0


def whole_shares(size: float | None) -> Decimal:
    """Give the whole shares that a quote shows; one without a size shows enough for any order."""
    if size is None or not math.isfinite(size):
        return Decimal("Infinity")
    return decimal(max(0.0, size)).to_integral_value(ROUND_FLOOR)

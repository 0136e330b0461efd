"""What orders may still cost: the money side of the reservations in `sigma9_core.money.exposure`."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from sigma9_core.contracts import RiskView
from sigma9_core.models import ZERO, OrderRequest, OrderStatus
from sigma9_core.money.exposure import held, remaining, reserved
from sigma9_core.money.pricing import reference_price

UNACCEPTED: Final = frozenset((OrderStatus.SUBMITTED, OrderStatus.UNKNOWN))
"""Decided, and not known to be accepted: the broker's own figures may leave these orders out."""


def growing(order: OrderRequest, view: RiskView) -> Decimal:
    """Give the part of an order that opens or enlarges a position.

    What is against a position closes it, as far as no working order on the same side may have closed it before.
    """
    have = held(order.symbol, view)
    if have == ZERO or (have > ZERO) == (order.side == "buy"):
        return order.quantity
    free = abs(have) - reserved(view.working, order.symbol, order.side)
    return max(order.quantity - max(free, ZERO), ZERO)


def committed(view: RiskView, *, unaccepted: bool = False) -> tuple[Decimal, str | None]:
    """Give the worst value of everything that working entries and foreign buys may still trade.

    A one-cancels-all group counts as its dearest leg. With `unaccepted`, only those of our entries count that the
    broker is not known to have accepted. The second value names a symbol that there is no price of: the first is
    worth nothing then.
    """
    intents, marks = view.intents, view.marks
    total = ZERO
    groups: dict[str, Decimal] = {}
    for order in view.working:
        if intents.get(order.order_id) != "entry" and (unaccepted or not order.foreign or order.side == "sell"):
            continue
        if unaccepted and order.status not in UNACCEPTED:
            continue
        price = reference_price(order, marks.get(order.symbol))
        if price is None:
            return ZERO, order.symbol
        value = remaining(order) * price
        if order.oca_group is None:
            total += value
        else:
            groups[order.oca_group] = max(groups.get(order.oca_group, ZERO), value)
    return (total + sum(groups.values()) if groups else total), None

"""From a share of equity to whole shares."""

from __future__ import annotations

from decimal import Decimal

from sigma9_core.contracts import SizingContext
from sigma9_core.models import ZERO


def whole_shares(fraction: Decimal, context: SizingContext) -> Decimal:
    """Give floor(equity × fraction / price), at most what the buying power pays for; never at least one.

    A fraction, an equity, a buying power or a price that is no number above zero makes no order.
    """
    numbers = (fraction, context.equity, context.buying_power, context.price)
    if not all(number.is_finite() and number > ZERO for number in numbers):
        return ZERO
    spend = min(context.equity * fraction, context.buying_power)
    return spend // context.price

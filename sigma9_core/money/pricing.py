"""The price that an order is valued at before it fills: the worse of its own price and the market's.

Sizing and the risk rules use the same one, so that what a sizer gives at the limit passes the rule.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, TypeGuard

from sigma9_core.contracts import Mark
from sigma9_core.models import ZERO, OrderRequest, OrderType, OrderView

LIMITED: Final[frozenset[OrderType]] = frozenset(("limit", "limit_on_close", "stop_limit"))
"""The types of order that trade at their limit or better; with any other a limit bounds nothing."""


def usable(price: Decimal | None) -> TypeGuard[Decimal]:
    """Tell whether a price is a number above zero."""
    return price is not None and price.is_finite() and price > ZERO


def met_price(order: OrderRequest, mark: Mark | None) -> Decimal | None:
    """Give the price that an order meets in the market now: the other side's quote, else the last price."""
    if mark is None:
        return None
    quote = mark.ask if order.side == "buy" else mark.bid
    return next((price for price in (quote, mark.price) if usable(price)), None)


def expected_price(order: OrderRequest, met: Decimal | None) -> Decimal | None:
    """Give the price that slippage is measured from: a stop's own, else what the order `met`.

    There is none for a trail, and none for an order that was held until a time: nobody knew the market of then.
    """
    if order.order_type in ("stop", "stop_limit"):
        return order.stop_price
    return None if order.order_type == "trailing_stop" or order.good_after is not None else met


def reference_price(order: OrderRequest | OrderView, mark: Mark | None) -> Decimal | None:
    """Give the price that bounds an order's value; None where neither order nor market has one.

    A buy that is limited costs its limit at most. Any other order may trade at the market, so it is valued at the
    higher of its own prices, the last price and, for a buy, the ask.
    """
    limit = order.limit_price
    if usable(limit) and order.side == "buy" and order.order_type in LIMITED:
        return limit
    candidates = [limit, order.stop_price]
    if mark is not None:
        candidates += [mark.price, mark.ask if order.side == "buy" else mark.bid]
    return max((price for price in candidates if usable(price)), default=None)

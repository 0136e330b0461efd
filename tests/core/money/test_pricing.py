"""The price that an order is valued at."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.money.pricing import reference_price, usable
from sigma9_core.testing.risk_views import mark, order, shown

prices = st.decimals("0.01", "500", places=2)


@pytest.mark.parametrize("bad", [None, Decimal("NaN"), Decimal("Infinity"), Decimal(0), Decimal(-1)])
def test_a_price_is_a_number_above_zero(bad: Decimal | None) -> None:
    """Nothing else is usable."""
    assert not usable(bad)
    assert usable(Decimal("0.0001"))


@given(limit=prices, last=prices)
def test_a_limited_buy_costs_its_limit_at_most(limit: Decimal, last: Decimal) -> None:
    """The market does not matter to a buy that is limited, nor whether there is a price at all."""
    buy = order(order_type="limit", limit_price=limit)

    assert reference_price(buy, mark(price=last)) == limit
    assert reference_price(buy, None) == limit


@given(stop=prices, last=prices, spread=prices, side=st.sampled_from(("buy", "sell")))
def test_any_other_order_is_valued_at_the_worst(stop: Decimal, last: Decimal, spread: Decimal, side: str) -> None:
    """Its own price, the last one and the quote that it would meet: the highest counts."""
    quoted = mark(price=last, bid=last, ask=last + spread)
    request = order(side=side, order_type="stop", stop_price=stop)

    expected = max(stop, last + spread if side == "buy" else last)
    assert reference_price(request, quoted) == expected
    assert reference_price(shown(request), quoted) == expected


@pytest.mark.parametrize("kind", ["market", "stop", "trailing_stop", "market_on_close"])
def test_a_limit_bounds_nothing_where_the_type_has_none(kind: str) -> None:
    """A price that does not go with the order's type makes the order no cheaper."""
    odd = order(order_type=kind, limit_price=Decimal(9), stop_price=Decimal(11) if kind == "stop" else None)

    assert reference_price(odd, mark(price=10)) == (11 if kind == "stop" else 10)


def test_without_any_price_there_is_none() -> None:
    """An order at the market has no value without a market."""
    assert reference_price(order(), None) is None
    assert reference_price(order(), mark(price="NaN")) is None

"""The sizer fixed_fraction."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import Signal, SizingContext
from sigma9_core.models import ExitPlan
from sigma9_plugins.sizing.fixed_fraction import FixedFraction, FixedFractionConfig

SIGNAL = Signal("AAPL", "buy", datetime(2026, 11, 20, 16, tzinfo=UTC), 100.0, ExitPlan())


def size(equity: str, price: str, power: str | None = None, **config: object) -> Decimal:
    """Size one signal."""
    context = SizingContext(SIGNAL, Decimal(equity), Decimal(power or equity), Decimal(price))
    return FixedFraction(FixedFractionConfig.model_validate(config)).size(context)


@given(
    equity=st.decimals("0.01", "1e7", places=2),
    power=st.decimals("0", "1e7", places=2),
    price=st.decimals("0.0001", "5000", places=4),
    percent=st.decimals("0.1", "100", places=1),
)
def test_it_is_the_largest_whole_number_that_fits(
    equity: Decimal, power: Decimal, price: Decimal, percent: Decimal
) -> None:
    """The shares cost at most the fraction and the buying power, and one more would not."""
    shares = FixedFraction(FixedFractionConfig(percent_of_equity=percent)).size(
        SizingContext(SIGNAL, equity, power, price)
    )
    room = min(equity * percent / 100, power)

    assert shares == shares.to_integral_value()
    assert shares * price <= room < (shares + 1) * price


def test_too_dear_is_no_order() -> None:
    """Where not even one share fits, there is no order: never at least one."""
    assert size("1000", "100.01") == 0
    assert size("1000", "100") == 1


@pytest.mark.parametrize(
    ("equity", "price", "power"),
    [
        ("0", "10", "100"),
        ("-5", "10", "100"),
        ("NaN", "1", "100"),
        ("Infinity", "1", "100"),
        ("100", "0", "100"),
        ("100", "-1", "100"),
        ("100", "NaN", "100"),
        ("1000", "1", "0"),
        ("1000", "1", "-10"),
    ],
)
def test_nonsense_is_no_order(equity: str, price: str, power: str) -> None:
    """Equity, price or buying power that is no number above zero makes no order."""
    assert size(equity, price, power) == 0


def test_the_default_is_a_tenth() -> None:
    """Ten percent of equity, unless configured otherwise."""
    assert size("100000", "33") == 303
    assert size("100000", "33", percent_of_equity=1) == 30


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_a_fraction_out_of_range_is_refused(percent: int) -> None:
    """The fraction is above 0 and at most 100 percent."""
    with pytest.raises(ValidationError):
        size("1", "1", percent_of_equity=percent)

"""The sizer kelly."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.contracts import Signal, SizingContext
from sigma9_core.models import ExitPlan
from sigma9_plugins.sizing.kelly import Kelly, KellyConfig, kelly

SIGNAL = Signal("AAPL", "buy", datetime(2026, 11, 20, 16, tzinfo=UTC), 100.0, ExitPlan())
results = st.lists(st.decimals("-100", "300", places=2), min_size=20, max_size=60)


def sizer(**config: object) -> Kelly:
    """Build the sizer with some settings."""
    return Kelly(KellyConfig.model_validate(config))


def trades(wins: int, win: str, losses: int, loss: str) -> list[Decimal]:
    """Make a row of results in percent."""
    return [Decimal(win)] * wins + [Decimal(loss)] * losses


@pytest.mark.parametrize(
    ("row", "f"),
    [
        (trades(12, "2", 8, "-2"), "0.2"),  # p 0.6, b 1: 0.6 - 0.4
        (trades(10, "4", 10, "-2"), "0.25"),  # p 0.5, b 2: (1 - 0.5) / 2
        (trades(10, "2", 10, "-2"), "0"),
        (trades(8, "2", 12, "-2"), "-0.2"),
        (trades(10, "3", 5, "-3") + [Decimal(0)] * 5, "0.25"),  # a zero is a loss: p 0.5, b 3 / 1.5
        (trades(15, "2", 0, "-2") + [Decimal(0)] * 5, "0.75"),  # losses without a size: f* is p
        (trades(20, "2", 0, "0"), "1"),
    ],
)
def test_the_formula(row: list[Decimal], f: str) -> None:
    """f* = (p·b − q) / b over results in percent of cost; a result of zero is a loss."""
    assert kelly(row) == pytest.approx(Decimal(f))


def test_without_a_win_there_is_no_order() -> None:
    """A strategy that never won gets nothing."""
    assert sizer().fraction(trades(0, "1", 20, "-1")) == 0
    assert sizer().fraction([Decimal(0)] * 20) == 0


def test_half_of_it_is_used_below_the_cap() -> None:
    """The default takes half of f*, at most a tenth of equity; both caps bind."""
    row = trades(11, "2", 9, "-2")  # f* = 0.1

    assert sizer().fraction(row) == pytest.approx(Decimal("0.05"))
    assert sizer(kelly_fraction="0.25").fraction(row) == pytest.approx(Decimal("0.025"))
    assert sizer().fraction(trades(20, "2", 5, "-2")) == Decimal("0.1")
    assert sizer(max_position_percent=50).fraction(trades(20, "2", 5, "-2")) == Decimal("0.25")


def test_before_twenty_trades_the_fallback_is_used() -> None:
    """Kelly is off until 20 closed trades; until then the fallback sizes, or nothing where it is 0."""
    losing = trades(0, "1", 19, "-1")

    assert sizer().fraction(losing) == Decimal("0.1")
    assert sizer(fallback_percent=2).fraction([]) == Decimal("0.02")
    assert sizer(fallback_percent=0).fraction(losing) == 0
    assert sizer(fallback_percent=40).fraction([]) == Decimal("0.1")
    assert sizer().fraction([*losing, Decimal(-1)]) == 0


@given(row=results)
def test_no_edge_no_trade_and_never_above_the_cap(row: list[Decimal]) -> None:
    """The fraction is zero exactly where f* is not above zero, and never above the cap."""
    fraction = sizer().fraction(row)

    assert 0 <= fraction <= Decimal("0.1")
    assert (fraction > 0) == (kelly(row) > 0)


@given(row=results, better=st.decimals("0", "50", places=2))
def test_better_results_never_size_smaller(row: list[Decimal], better: Decimal) -> None:
    """One more winning trade that beats all others never makes the fraction smaller."""
    wide = sizer(cap_percent=100, max_position_percent=100)
    wins = [trade for trade in row if trade > 0]
    best = (max(wins) if wins else Decimal(1)) + better

    assert wide.fraction([*row, best]) >= wide.fraction(row)


def test_it_gives_whole_shares() -> None:
    """The fraction becomes floor(equity × fraction / price), capped by the buying power; 0 means no order."""
    row = trades(11, "2", 9, "-2")
    context = SizingContext(SIGNAL, Decimal(100_000), Decimal(100_000), Decimal(300), row)

    assert sizer().size(context) == 16
    assert sizer().size(SizingContext(SIGNAL, Decimal(100_000), Decimal(700), Decimal(300), row)) == 2
    assert sizer().size(SizingContext(SIGNAL, Decimal(100_000), Decimal(299), Decimal(300), row)) == 0

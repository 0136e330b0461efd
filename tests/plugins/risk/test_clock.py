"""R24, clock."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import order, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.clock import ClockConfig, ClockRule


def rule(**config: object) -> ClockRule:
    """Build the rule with some settings."""
    return ClockRule("r24", ClockConfig.model_validate(config))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry with the clock a second behind."""
        return order(), view(clock_offset=-1.0)

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry with the clock a little more behind."""
        return order(), view(clock_offset=-1.000001)


@given(offset=st.floats(-100, 100), limit=st.integers(1, 50))
def test_the_offset_decides_either_way(offset: float, limit: int) -> None:
    """An entry passes exactly while the clock is off by no more than the limit, ahead or behind."""
    verdict = rule(max_seconds=limit).check(order(), view(clock_offset=offset))

    assert (verdict.outcome == "allow") == (abs(offset) <= limit)
    assert verdict.limit == limit
    assert float(verdict.used or 0) == pytest.approx(abs(offset), abs=1e-6)


@pytest.mark.parametrize(("offset", "way"), [(1.5, "1.500 s ahead of"), (-2.25, "2.250 s behind")])
def test_the_sentence_says_which_way(offset: float, way: str) -> None:
    """The refusal tells how far the clock is off, and in which direction."""
    assert way in (rule().check(order(), view(clock_offset=offset)).reason or "")


def test_where_nobody_told_there_is_nothing_to_judge() -> None:
    """A paper broker tells no time."""
    assert rule().check(order(), view(clock_offset=None)).outcome == "allow"
    assert rule().usage(view(clock_offset=None)).used is None


@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf])
def test_nonsense_refuses(offset: float) -> None:
    """An offset that is no number refuses entries, and is published as not known."""
    moment = view(clock_offset=offset)

    assert rule().check(order(), moment).outcome == "refuse"
    assert rule().usage(moment).used is None


def test_exits_work_at_any_time() -> None:
    """The rule is about entries alone."""
    assert rule().check(order(side="sell", intent="reduce"), view(clock_offset=99.0)).outcome == "allow"


def test_usage_is_the_offset() -> None:
    """The published use is how far the clock is off, in seconds; the rule recovers by itself."""
    usage = rule().usage(view(clock_offset=-2.5))

    assert (usage.used, usage.limit, usage.tripped) == (Decimal("2.5"), Decimal(1), False)


@pytest.mark.parametrize("seconds", [0, -1, "NaN"])
def test_the_limit_is_above_zero(seconds: object) -> None:
    """A limit that no clock can keep is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(max_seconds=seconds)


@settings(max_examples=30, deadline=None)
@given(offsets=st.lists(st.none() | st.floats(allow_nan=True), max_size=20))
def test_nothing_is_entered_by_a_wrong_clock(offsets: list[float | None]) -> None:
    """Over any row of looks at the broker's clock, an order passes the gate exactly with a right one, or none."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        for offset in offsets:
            moment = replace(desk.view(), clock_offset=offset)
            decision = await desk.gate.decide("o", order(), moment)
            assert (decision.approved is not None) == (offset is None or abs(offset) <= 1)

    asyncio.run(run())

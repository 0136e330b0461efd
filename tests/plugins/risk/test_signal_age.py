"""R16, signal_age."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest, OrderSource
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import NOW, order, sent, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.signal_age import SignalAge, SignalAgeConfig


def rule(**config: object) -> SignalAge:
    """Build the rule with some settings."""
    return SignalAge("r16", SignalAgeConfig.model_validate(config))


def signalled(ts: object, **more: Any) -> OrderRequest:
    """Make a strategy's entry on a signal of some time."""
    return order(strategy="a", source="strategy", signal={"score": 80.0, "ts": ts}, **more)


def aged(seconds: float) -> OrderRequest:
    """Make a strategy's entry on a signal that is some seconds old."""
    return signalled((NOW - timedelta(seconds=seconds)).isoformat())


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order on a signal of exactly the greatest age."""
        return aged(30), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order on one that is a microsecond older."""
        return aged(30.000001), view()


@pytest.mark.parametrize(
    ("ahead", "outcome"), [(0, "allow"), (1, "allow"), (1.000001, "refuse"), (3600, "refuse")]
)
def test_a_signal_of_the_future_is_refused(ahead: float, outcome: str) -> None:
    """Beyond the second by which a live feed's clock may be ahead, nobody can have seen it."""
    assert rule().check(aged(-ahead), view()).outcome == outcome


def test_without_a_tolerance_a_microsecond_is_too_far_ahead() -> None:
    """The tolerance can be taken away."""
    assert rule(max_ahead_seconds=0).check(aged(0), view()).outcome == "allow"
    assert rule(max_ahead_seconds=0).check(aged(-0.000001), view()).outcome == "refuse"


def test_the_verdict_has_the_age_and_the_limit() -> None:
    """A refusal gives the age in seconds beside the limit."""
    refused = rule(max_age_seconds=5).check(aged(7.5), view())

    assert (refused.used, refused.limit) == (Decimal("7.5"), Decimal(5))
    assert refused.reason == "the signal in AAPL is 7.5 s old, older than 5 s"
    assert rule().check(aged(-0.5), view()).used == 0


@pytest.mark.parametrize(
    "ts",
    [
        NOW,
        "2026-11-20T16:00:00Z",
        "2026-11-20T16:00:00.000000+00:00",
        "2026-11-20T11:00:00-05:00",
        NOW.astimezone(timezone(timedelta(hours=9))),
    ],
)
def test_a_time_is_read_in_any_zone(ts: object) -> None:
    """RFC 3339 with an offset, or the time itself, says the same moment."""
    assert rule().check(signalled(ts), view()).used == 0


@pytest.mark.parametrize(
    "ts",
    [None, "", "now", "2026-11-20T16:00:00", NOW.replace(tzinfo=None), 1_795_190_400, "2026-13-01T00:00:00Z", []],
)
def test_a_time_that_can_not_be_read_is_refused(ts: object) -> None:
    """A signal without a time, or with one that names no zone, can't be fresh."""
    refused = rule().check(signalled(ts), view())

    assert refused.outcome == "refuse"
    assert "can't be read" in str(refused.reason)


def test_a_strategys_entry_needs_a_signal() -> None:
    """Nobody knows when an entry without a signal was decided."""
    assert rule().check(order(strategy="a", source="strategy"), view()).outcome == "refuse"
    assert rule().check(order(strategy="a", source="strategy", signal={}), view()).outcome == "refuse"


@pytest.mark.parametrize("source", ["api", "mqtt", "cli", "schedule"])
def test_a_persons_order_has_no_signal(source: OrderSource) -> None:
    """Whoever sends an order by hand decides at that moment."""
    assert rule().check(order(source=source), view()).outcome == "allow"


def test_exits_are_not_judged() -> None:
    """An exit acts on the market, not on a signal."""
    leave = order(side="sell", intent="reduce", source="exit", strategy="a")

    assert rule().check(leave, view()).outcome == "allow"
    assert rule().check(leave.model_copy(update={"signal": {"ts": "old"}}), view()).outcome == "allow"


def test_usage_is_the_oldest_signal_that_passed() -> None:
    """The published use is the greatest age at its decision among the orders of the last minutes."""
    recent = (
        sent(aged(60), 55, "a"),
        sent(order(), 30, "b"),
        sent(aged(22), 10, "c"),
        sent(signalled("?"), 5, "d"),
        sent(aged(1), 2, "e"),
    )

    assert (rule().usage(view(recent=recent)).used, rule().usage(view()).used) == (Decimal(12), Decimal(0))


@pytest.mark.parametrize("bad", [{"max_age_seconds": 0}, {"max_ahead_seconds": -1}, {"max_age_seconds": "inf"}])
def test_the_settings_are_spans(bad: dict[str, Any]) -> None:
    """An age that nothing can have is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)


@settings(max_examples=100, deadline=None)
@given(at=st.text(max_size=30) | st.datetimes().map(str) | st.datetimes(timezones=st.timezones()).map(str))
def test_no_time_is_too_strange(at: str) -> None:
    """Any text is either a moment that is judged, or refused as one that can't be read."""
    verdict = rule().check(signalled(at), view())

    assert verdict.outcome == "refuse" or NOW - datetime.fromisoformat(at) <= timedelta(seconds=30)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(0, 20), st.floats(-3, 60)), max_size=15))
def test_only_fresh_signals_are_traded(steps: list[tuple[float, float]]) -> None:
    """On the market clock, every entry that passed was decided on a signal of the last 30 seconds."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        for seconds, age in steps:
            desk.tick({}, seconds)
            at = desk.clock.now() - timedelta(seconds=age)
            decision = await desk.offer(signalled(at.isoformat()))
            fresh = timedelta(seconds=-1) <= desk.clock.now() - at <= timedelta(seconds=30)
            assert (decision.approved is not None) == fresh

    asyncio.run(run())

"""R9, order_rate."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract, decide
from sigma9_core.testing.risk_views import NOW, holding, order, sent, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.order_rate import OrderRate, OrderRateConfig


def rule(**config: object) -> OrderRate:
    """Build the rule with some settings."""
    return OrderRate("r9", OrderRateConfig.model_validate(config))


def after(orders: list[float], changes: list[float] | None = None) -> RiskView:
    """Show a moment some seconds after orders and changes have passed."""
    recent = tuple(sent(order(), ago, f"s{n}") for n, ago in enumerate(sorted(orders, reverse=True)))
    changed = tuple(NOW - timedelta(seconds=ago) for ago in sorted(changes or [], reverse=True))
    return view(recent=recent, changes=changed)


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give the tenth message of a second, and the first of ten is just a second old."""
        return order(), after([1.0] + [0.5] * 9)

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give the eleventh."""
        return order(), after([0.5] * 10)


def test_the_minute_has_a_limit_of_its_own() -> None:
    """The 120th message of a minute passes, the next one does not."""
    spread = [2 + n / 3 for n in range(120)]

    assert rule().check(order(), after([60.0, *spread[:119]])).outcome == "allow"
    refused = rule().check(order(), after(spread))
    assert (refused.outcome, refused.used, refused.limit) == ("refuse", Decimal(121), Decimal(120))
    assert "minute" in str(refused.reason)


def test_changes_are_messages() -> None:
    """A change of a working order counts as an order does."""
    assert rule().check(order(), after([0.2] * 5, [0.4] * 4)).used == 10
    assert rule().check(order(), after([0.2] * 5, [0.4] * 5)).outcome == "refuse"
    assert rule().check(order(), after([], [0.4] * 10)).outcome == "refuse"


def test_every_order_that_passed_counts() -> None:
    """Exits and a kill's closes are messages, too."""
    leave = order(side="sell", intent="reduce")
    recent = tuple(sent(leave if n % 2 else order(side="sell", intent="kill"), 0.1, f"s{n}") for n in range(10))

    assert rule().check(order(), view(recent=recent)).outcome == "refuse"


def test_a_reducing_order_passes_with_a_warning() -> None:
    """At the limit an exit goes out, and its verdict says that the rate is exceeded."""
    recent = tuple(sent(order("MSFT", quantity=n + 1), 0.1, f"s{n}") for n in range(10))
    decision = decide(
        rule(), order(side="sell", quantity=10, intent="reduce"), view(positions=[holding()], recent=recent)
    )

    assert decision.approved is not None
    assert [(verdict.outcome, verdict.used) for verdict in decision.verdicts] == [("warn", Decimal(11))]


def test_the_published_use_is_the_window_that_is_nearer_to_its_limit() -> None:
    """Five of ten in the second come before 20 of 120 in the minute, and 90 before them."""
    seen = rule().usage(after([0.1] * 5 + [10.0] * 15))
    assert (seen.used, seen.limit) == (Decimal(5), Decimal(10))
    seen = rule().usage(after([0.1] * 5 + [10.0] * 85))
    assert (seen.used, seen.limit) == (Decimal(90), Decimal(120))
    assert rule().check(order(), after([0.1] * 5 + [10.0] * 85)).used == 91
    assert rule().check(order(), after([0.1] * 5 + [10.0] * 15)).used == 6


@pytest.mark.parametrize("bad", [{"max_per_second": 0}, {"max_per_minute": 0}, {"max_per_second": 1.5}])
def test_a_limit_is_a_count(bad: dict[str, float]) -> None:
    """No message at all, or half of one, is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from((0.0, 0.1, 0.4, 1.0, 7.0)), st.booleans()), max_size=40))
def test_no_entry_passes_above_the_rate(steps: list[tuple[float, bool]]) -> None:
    """On the market clock, an entry passes exactly where its second and its minute have room for it."""

    async def run() -> None:
        desk = SmallDesk([rule(max_per_second=3, max_per_minute=8)])
        desk.portfolio.set_cash(Decimal(10**9))
        passed: list[datetime] = []
        for number, (seconds, reducing) in enumerate(steps):
            desk.tick({}, seconds)
            now = desk.clock.now()
            held = desk.portfolio.quantity("AAPL")
            if reducing and held:
                decision = await desk.offer(order("AAPL", "sell", 1, "reduce", oca_group="g"))
                assert decision.approved is not None
            else:
                decision = await desk.offer(order(quantity=number + 1))
                second = sum(now - at < timedelta(seconds=1) for at in passed)
                minute = sum(now - at < timedelta(minutes=1) for at in passed)
                assert (decision.approved is not None) == (second < 3 and minute < 8)
            if decision.approved is not None:
                passed.append(now)
                if desk.requests[decision.approved.order_id].intent == "entry":
                    desk.fill(decision.approved.order_id)

    asyncio.run(run())

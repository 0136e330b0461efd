"""R1, max_order_quantity."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import holding, order, shown, view
from sigma9_plugins.risk.max_order_quantity import MaxOrderQuantity, MaxOrderQuantityConfig


def rule(**config: object) -> MaxOrderQuantity:
    """Build the rule with some settings."""
    return MaxOrderQuantity("r1", MaxOrderQuantityConfig.model_validate(config))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order at the limit."""
        return order(quantity=10_000), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order one share above it."""
        return order(quantity=10_001), view()


@given(quantity=st.integers(1, 5_000), limit=st.integers(1, 5_000))
def test_the_limit_is_the_last_quantity_that_passes(quantity: int, limit: int) -> None:
    """An entry passes exactly when its quantity is at most the limit, and the verdict carries both."""
    verdict = rule(max_shares=limit).check(order(quantity=quantity), view())

    assert (verdict.outcome == "allow") == (quantity <= limit)
    assert (verdict.used, verdict.limit) == (Decimal(quantity), Decimal(limit))


def test_a_position_can_be_left_in_one_order() -> None:
    """A reducing order may be as large as the position, even above the limit, and no larger."""
    moment = view(positions=[holding("AAPL", -300)])

    assert rule(max_shares=100).check(order(side="buy", quantity=300, intent="reduce"), moment).outcome == "allow"
    assert rule(max_shares=100).check(order(side="buy", quantity=301, intent="reduce"), moment).outcome == "refuse"


def test_usage_is_the_largest_working_order() -> None:
    """The published use is the largest remaining quantity of our working orders."""
    working = [
        shown(order(quantity=50), "a", filled=45),
        shown(order(quantity=20), "b"),
        shown(order(quantity=900), "c", foreign=True),
    ]
    usage = rule().usage(view(working=working))

    assert (usage.used, usage.limit) == (Decimal(20), Decimal(10_000))


def test_a_limit_of_nothing_is_refused() -> None:
    """A limit of zero or less, or one that is no number, is an error of the configuration."""
    for bad in (0, -1, "NaN", "inf"):
        with pytest.raises(ValidationError):
            rule(max_shares=bad)

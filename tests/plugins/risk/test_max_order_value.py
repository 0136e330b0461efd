"""R2, max_order_value."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import mark, order, shown, view
from sigma9_plugins.risk.max_order_value import MaxOrderValue, MaxOrderValueConfig


def rule(**config: object) -> MaxOrderValue:
    """Build the rule with some settings."""
    return MaxOrderValue("r2", MaxOrderValueConfig.model_validate(config))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order worth the limit."""
        return order(quantity=250), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order worth one share more."""
        return order(quantity=251), view()


class TestContractOfAShare(TestContract):
    """The same with the limit as a share of equity."""

    def make(self) -> RiskRule:
        """Build it with 25 % of 100,000."""
        return rule(max_money=None, max_percent_of_equity=25)


@given(
    quantity=st.integers(1, 1_000),
    price=st.decimals("0.01", "500", places=2),
    side=st.sampled_from(["buy", "sell"]),
)
def test_a_market_order_is_valued_at_the_market(quantity: int, price: Decimal, side: str) -> None:
    """A market order passes exactly when quantity × price is at most the limit."""
    moment = view(marks=[mark(price=price)])
    verdict = rule(max_money=5_000).check(order(side=side, quantity=quantity), moment)

    assert verdict.used == quantity * price
    assert (verdict.outcome == "allow") == (quantity * price <= 5_000)


@pytest.mark.parametrize(
    ("request_", "worth"),
    [
        (order(quantity=10, order_type="limit", limit_price=Decimal(90)), 900),  # a buy costs its limit at most
        (order(quantity=10, order_type="limit", limit_price=Decimal(120)), 1200),
        (order(side="sell", quantity=10, order_type="limit", limit_price=Decimal(90)), 1000),  # sold at the market
        (order(side="sell", quantity=10, order_type="limit", limit_price=Decimal(120)), 1200),
        (order(quantity=10, order_type="stop", stop_price=Decimal(110)), 1100),
        (order(quantity=10, order_type="market"), 1010),  # the ask
        (order(side="sell", quantity=10, order_type="market"), 1000),
    ],
)
def test_the_worst_price_counts(request_: OrderRequest, worth: int) -> None:
    """Each type of order is valued at the worst price that it may trade at."""
    moment = view(marks=[mark(bid=Decimal(99), ask=Decimal(101))])

    assert rule().check(request_, moment).used == worth


def test_the_tighter_limit_holds() -> None:
    """With both limits set, the smaller amount is the limit."""
    both = rule(max_money=25_000, max_percent_of_equity=10)

    assert both.check(order(quantity=1), view()).limit == 10_000
    assert both.check(order(quantity=1), view(equity=1_000_000)).limit == 25_000


def test_without_a_price_or_equity_it_refuses() -> None:
    """What can't be valued is refused."""
    assert rule().check(order(), view(marks=[])).outcome == "refuse"
    assert rule().check(order(), view(marks=[mark(price="NaN")])).outcome == "refuse"
    assert rule(max_percent_of_equity=5).check(order(), view(equity=None)).outcome == "refuse"


def test_usage_is_the_largest_working_order() -> None:
    """The published use is the value of the largest working order of ours."""
    usage = rule().usage(
        view(working=[shown(order(quantity=20), "a", filled=5), shown(order("MSFT", quantity=10), "b")])
    )

    assert (usage.used, usage.limit) == (Decimal(1500), Decimal(25_000))


def test_no_limit_at_all_is_refused() -> None:
    """A rule without any limit is an error of the configuration."""
    with pytest.raises(ValidationError, match="max_money or max_percent_of_equity"):
        rule(max_money=None)

"""R3, price_collar."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.contracts import Mark, RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import mark, order, shown, view
from sigma9_plugins.risk.price_collar import PriceCollar, PriceCollarConfig


def rule(**config: object) -> PriceCollar:
    """Build the rule with some settings."""
    return PriceCollar("r3", PriceCollarConfig.model_validate(config))


def limit(price: float | str, side: str = "buy") -> OrderRequest:
    """Make a limit order."""
    return order(side=side, order_type="limit", limit_price=Decimal(str(price)))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order at the edge of the collar."""
        return limit(105), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order just outside."""
        return limit("105.01"), view()


class TestContractOfAge(TestContract):
    """The same, refused because the reference is stale."""

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order on an old price."""
        return limit(100), view(marks=[mark(age=91)])


@given(price=st.decimals("1", "300", places=2), side=st.sampled_from(["buy", "sell"]))
def test_the_collar_is_symmetric(price: Decimal, side: str) -> None:
    """A limit passes exactly when it is within 5 % of the last price, above or below, on either side."""
    verdict = rule().check(order(side=side, order_type="limit", limit_price=price), view())

    assert verdict.used == abs(price - 100)
    assert (verdict.outcome == "allow") == (95 <= price <= 105)


@pytest.mark.parametrize(
    "bad", [[], [mark(price="NaN")], [mark(price="inf")], [mark(price=0)], [mark(price=-1)], [mark(age=90.5)]]
)
def test_without_a_fresh_price_it_refuses(bad: list[Mark]) -> None:
    """A reference that is missing, stale, or no number above zero refuses even an order at the market."""
    assert rule().check(order(), view(marks=bad)).outcome == "refuse"


def test_a_halt_leaves_no_reference() -> None:
    """The last price of a halted symbol is no reference."""
    verdict = rule().check(order(), view(marks=[mark(halted=True)]))

    assert verdict.outcome == "refuse"
    assert "halted" in (verdict.reason or "")


@pytest.mark.parametrize(
    ("fields", "used"),
    [
        ({"order_type": "market"}, 7),  # the ask that it would meet
        ({"order_type": "market", "side": "sell"}, 2),
        ({"order_type": "stop", "stop_price": Decimal(103)}, 3),
        ({"order_type": "stop_limit", "stop_price": Decimal(101), "limit_price": Decimal(104)}, 4),
        ({"order_type": "trailing_stop", "trail_percent": Decimal(6)}, 6),
        ({"order_type": "trailing_stop", "trail_amount": Decimal(8), "side": "sell"}, 8),
    ],
)
def test_every_price_of_an_order_is_measured(fields: dict[str, Any], used: int) -> None:
    """The farthest of an order's prices counts; a market order is measured by the quote."""
    moment = view(marks=[mark(bid=Decimal(98), ask=Decimal(107))])

    assert rule().check(order(**fields), moment).used == used


def test_a_trail_wider_than_the_price_is_refused() -> None:
    """A trail that starts below zero has no price."""
    wide = order(side="sell", order_type="trailing_stop", trail_amount=Decimal(150))

    assert rule(max_distance_percent=1000).check(wide, view()).outcome == "refuse"


def test_usage_is_the_farthest_working_entry() -> None:
    """The published use is the distance of the farthest working entry, in percent."""
    working = [shown(limit(97), "a"), shown(limit(99), "b"), shown(limit(50), "exit")]

    usage = rule().usage(view(working=working, intents={"exit": "reduce"}))

    assert (usage.used, usage.limit) == (Decimal(3), Decimal(5))

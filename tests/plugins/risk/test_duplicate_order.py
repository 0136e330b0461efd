"""R11, duplicate_order."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import order, sent, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.duplicate_order import DuplicateOrder, DuplicateOrderConfig


def rule(**config: object) -> DuplicateOrder:
    """Build the rule with some settings."""
    return DuplicateOrder("r11", DuplicateOrderConfig.model_validate(config))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order whose twin is just old enough."""
        return order(), view(recent=(sent(order(), ago=10),))

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order whose twin passed a moment before."""
        return order(), view(recent=(sent(order(), ago=9.9),))


@pytest.mark.parametrize(
    "other",
    [
        {"symbol": "MSFT"},
        {"side": "sell"},
        {"quantity": 11},
        {"order_type": "limit", "limit_price": Decimal(100)},
        {"order_type": "stop", "stop_price": Decimal(100)},
        {"order_type": "trailing_stop", "trail_percent": Decimal(1)},
        {"intent": "reduce"},
    ],
)
def test_another_order_is_no_duplicate(other: dict[str, Any]) -> None:
    """An order that differs in symbol, side, quantity, a price or its purpose passes."""
    assert rule().check(order(), view(recent=(sent(order(**other)),))).outcome == "allow"


def test_the_strategy_and_the_type_make_no_difference() -> None:
    """The same trade wished twice is a duplicate whoever wishes it."""
    twin = order(strategy="another", reason="why not")

    assert rule().check(order(), view(recent=(sent(twin),))).outcome == "refuse"


def test_the_number_is_how_often_it_was_sent() -> None:
    """The verdict and the published use count the twins within the window."""
    recent = (sent(order(), 30, "a"), sent(order(), 5, "b"), sent(order("MSFT"), 4, "c"), sent(order(), 3, "d"))
    verdict, usage = rule().check(order(), view(recent=recent)), rule().usage(view(recent=recent))

    assert (verdict.used, verdict.limit) == (Decimal(3), Decimal(1))
    assert (usage.used, usage.limit) == (Decimal(2), Decimal(1))


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 3), st.floats(0, 8)), max_size=25))
def test_no_order_passes_twice_within_the_window(steps: list[tuple[int, float]]) -> None:
    """On the market clock, two approved orders that are the same are never less than the window apart."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        passed: dict[int, Any] = {}
        for quantity, seconds in steps:
            desk.tick({}, seconds)
            decision = await desk.offer(order(quantity=quantity))
            now, last = desk.clock.now(), passed.get(quantity)
            apart = None if last is None else (now - last).total_seconds()
            assert (decision.approved is not None) == (apart is None or apart >= 10)
            if decision.approved is not None:
                passed[quantity] = now

    asyncio.run(run())

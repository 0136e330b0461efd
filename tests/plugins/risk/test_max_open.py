"""R7, max_open."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import SYMBOLS, holding, order, shown, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.max_open import MaxOpen, MaxOpenConfig


def rule(**config: object) -> MaxOpen:
    """Build the rule with some settings."""
    return MaxOpen("r7", MaxOpenConfig.model_validate(config))


THREE = [holding("AAPL"), holding("MSFT"), holding("NVDA", -5)]


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry in a third symbol."""
        return order("NVDA"), view(positions=THREE[:2])

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry in a fourth."""
        return order("TSLA"), view(positions=THREE)


def test_a_working_entry_counts_as_a_position() -> None:
    """A symbol that is being entered takes a place; its exits, and a symbol that is held already, take none."""
    working = [
        shown(order("NVDA"), "entry"),
        shown(order("AAPL", "sell", intent="reduce"), "stop"),
    ]
    moment = view(positions=THREE[:2], working=working, intents={"stop": "reduce"})

    refused = rule().check(order("TSLA"), moment)
    assert (refused.outcome, refused.used, refused.limit) == ("refuse", Decimal(4), Decimal(3))
    assert rule().check(order("AAPL"), moment).outcome == "allow"
    assert rule().check(order("NVDA"), moment).outcome == "allow"


def test_foreign_positions_count_unless_told_otherwise() -> None:
    """What is not ours takes places too, by default."""
    foreign = [holding(symbol, foreign=True) for symbol in ("AAPL", "MSFT", "NVDA")]
    orders = [shown(order("AMZN"), "f", foreign=True)]
    moment = view(positions=foreign, working=orders)

    assert rule().check(order("TSLA"), moment).outcome == "refuse"
    assert rule(count_foreign=False).check(order("TSLA"), moment).outcome == "allow"
    assert rule(count_foreign=False, max_orders=1).check(order("TSLA"), moment).outcome == "allow"
    assert rule(max_positions=9, max_orders=1).check(order("TSLA"), moment).outcome == "refuse"


def test_orders_and_entries_of_the_day_have_limits() -> None:
    """The order that would be one too many, and the entry that would be, are refused with their numbers."""
    working = [shown(order("AAPL"), str(n)) for n in range(50)]

    orders = rule().check(order("AAPL"), view(working=working))
    entries = rule().check(order("AAPL"), view(entries_today=50))

    assert (orders.outcome, orders.used, orders.limit) == ("refuse", Decimal(51), Decimal(50))
    assert (entries.outcome, entries.used, entries.limit) == ("refuse", Decimal(51), Decimal(50))
    assert rule().check(order("AAPL"), view(entries_today=49)).outcome == "allow"


def test_usage_is_the_count_nearest_to_its_limit() -> None:
    """Positions, orders and entries are published by whichever is closest to its limit."""
    positions = rule().usage(view(positions=THREE[:2], entries_today=10))
    entries = rule().usage(view(positions=THREE[:2], entries_today=40))

    assert (positions.used, positions.limit) == (Decimal(2), Decimal(3))
    assert (entries.used, entries.limit) == (Decimal(40), Decimal(50))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_there_are_never_more_positions_than_the_limit(data: st.DataObject) -> None:
    """However approved entries fill or are cancelled, at most three symbols are ever held."""

    async def run() -> None:
        desk = SmallDesk([rule(max_orders=4, max_entries_per_day=8)])
        passed = 0
        for _ in range(data.draw(st.integers(1, 25))):
            if data.draw(st.booleans()) and desk.working:
                order_id = data.draw(st.sampled_from(sorted(desk.working)))
                (desk.fill if data.draw(st.booleans()) else desk.cancel)(order_id)
            else:
                decision = await desk.offer(order(data.draw(st.sampled_from(SYMBOLS)), "buy", 5))
                passed += decision.approved is not None
            assert len(desk.portfolio.positions()) <= 3
            assert len(desk.working) <= 4
        assert passed <= 8

    asyncio.run(run())

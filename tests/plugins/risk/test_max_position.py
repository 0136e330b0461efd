"""R4, max_position."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import SYMBOLS, holding, mark, order, shown, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.max_position import MaxPosition, MaxPositionConfig


def rule(**config: object) -> MaxPosition:
    """Build the rule with some settings."""
    return MaxPosition("r4", MaxPositionConfig.model_validate(config))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order of 10 % of equity."""
        return order(quantity=100), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order of one share more."""
        return order(quantity=101), view()


def test_what_is_held_and_what_works_count() -> None:
    """Position, working orders and the order together may reach the limit and no more."""
    moment = view(positions=[holding("AAPL", 40)], working=[shown(order(quantity=50), "w", filled=20)])

    assert rule().check(order(quantity=30), moment).outcome == "allow"
    refused = rule().check(order(quantity=31), moment)
    assert refused.outcome == "refuse"
    assert (refused.used, refused.limit) == (Decimal("10.1"), Decimal(10))


def test_a_foreign_position_counts() -> None:
    """What somebody else holds in the account is part of the position."""
    moment = view(positions=[holding("AAPL", 90, foreign=True)])

    assert rule().check(order(quantity=11), moment).outcome == "refuse"


@pytest.mark.parametrize(
    ("held", "side", "quantity"), [(500, "sell", 100), (500, "sell", 1000), (-500, "buy", 1000)]
)
def test_an_order_that_makes_the_position_no_larger_passes(held: int, side: str, quantity: int) -> None:
    """Even far above the limit, a position may shrink, or turn to one that is no larger."""
    moment = view(positions=[holding("AAPL", held)])

    assert rule().check(order(side=side, quantity=quantity), moment).outcome == "allow"
    assert rule().check(order(side=side, quantity=quantity + 1000), moment).outcome == "refuse"


def test_a_flip_is_valued_as_a_new_position() -> None:
    """An order through zero is judged by what it ends with."""
    moment = view(positions=[holding("AAPL", 50)])

    assert rule().check(order(side="sell", quantity=150), moment).used == 10
    assert rule().check(order(side="sell", quantity=151), moment).outcome == "refuse"
    dear = order(side="sell", quantity=150, order_type="limit", limit_price=Decimal(110))
    assert rule().check(dear, moment).used == 11


def test_what_is_held_counts_at_the_last_price_and_what_comes_at_its_own() -> None:
    """A limit above the market makes the new shares dear, not the old ones."""
    more = order(quantity=20, order_type="limit", limit_price=Decimal(110))

    assert rule().check(more, view(positions=[holding("AAPL", 50)])).used == Decimal("7.2")


def test_each_working_order_counts_at_its_own_price() -> None:
    """A cheap order does not make a dear one that works cheaper, in the verdict and in the use."""
    dear = shown(order(quantity=90, order_type="limit", limit_price=Decimal(110)), "dear")
    cheap = order(quantity=2, order_type="limit", limit_price=Decimal(50))

    allowed = rule().check(cheap, view(working=[dear]))
    assert (allowed.outcome, allowed.used) == ("allow", Decimal(10))
    refused = rule().check(cheap.model_copy(update={"quantity": Decimal(3)}), view(working=[dear]))
    assert (refused.outcome, refused.used) == ("refuse", Decimal("10.05"))
    both = view(working=[dear, shown(cheap, "cheap")])
    assert rule().usage(both).used == Decimal(10)


def test_an_entry_against_a_position_is_valued_beside_its_exits() -> None:
    """What the stop closes the entry opens: the turned position is valued, at the entry's price."""
    stop = shown(order(side="sell", quantity=100, order_type="stop", stop_price=Decimal(98)), "stop")
    moment = view(positions=[holding("AAPL", 100)], working=[stop], intents={"stop": "reduce"})
    short = order(side="sell", quantity=100, order_type="limit", limit_price=Decimal(110))

    assert rule().check(order(side="sell", quantity=100), moment).used == 10
    refused = rule().check(short, moment)
    assert (refused.outcome, refused.used) == ("refuse", Decimal(11))
    assert rule().check(short, replace(moment, account=view(equity=None).account)).outcome == "refuse"
    assert rule().check(order(side="sell", quantity=100), replace(moment, marks={})).outcome == "refuse"


def test_a_group_counts_once() -> None:
    """Of a one-cancels-all group only the largest leg can fill."""
    legs = [
        shown(order(quantity=60, oca_group="g", order_type="limit", limit_price=Decimal(99)), "a"),
        shown(order(quantity=60, oca_group="g", order_type="stop", stop_price=Decimal(100)), "b"),
    ]

    assert rule().check(order(quantity=40), view(working=legs)).outcome == "allow"
    assert rule().check(order(quantity=41), view(working=legs)).outcome == "refuse"


def test_without_a_price_or_equity_it_refuses() -> None:
    """A position that can't be valued is not made larger."""
    assert rule().check(order(), view(marks=[])).outcome == "refuse"
    assert rule().check(order(), view(equity=None)).outcome == "refuse"
    assert rule().check(order(), view(equity=-5)).outcome == "refuse"


def test_usage_is_the_largest_position() -> None:
    """The published use is the largest position in percent of equity, working entries counted."""
    moment = view(
        positions=[holding("AAPL", 20), holding("MSFT", -70)],
        working=[shown(order("AAPL", quantity=40), "a"), shown(order("NVDA", quantity=10), "b")],
        marks=[mark("AAPL"), mark("MSFT"), mark("NVDA", 50)],
    )

    assert (rule().usage(moment).used, rule().usage(moment).limit) == (Decimal(7), Decimal(10))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_approved_orders_never_exceed_the_limit(data: st.DataObject) -> None:
    """At a price that stands still, no row of approved orders, in whatever order they fill, exceeds the limit."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        for _ in range(data.draw(st.integers(1, 20))):
            if data.draw(st.booleans()) and desk.working:
                order_id = data.draw(st.sampled_from(sorted(desk.working)))
                desk.fill(order_id, data.draw(st.none() | st.integers(1, 50).map(Decimal)))
            else:
                symbol, side = data.draw(st.sampled_from(SYMBOLS)), data.draw(st.sampled_from(("buy", "sell")))
                await desk.offer(order(symbol, side, data.draw(st.integers(1, 150))))
            for symbol in SYMBOLS:
                equity = desk.portfolio.account().equity
                assert equity is not None
                # Commissions shrink equity a little after an order was judged.
                assert desk.exposure(symbol) * 100 <= equity * Decimal("0.1001")

    asyncio.run(run())

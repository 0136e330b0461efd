"""R6, concentration."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import SYMBOLS, holding, mark, order, shown, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.concentration import Concentration, ConcentrationConfig

SEMIS = {"groups": {"semis": ["NVDA", "AMD"]}}


def rule(**config: object) -> Concentration:
    """Build the rule with some settings."""
    return Concentration("r6", ConcentrationConfig.model_validate(config))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with a group and a limit for strategies."""
        return rule(groups={"big": ["AAPL", "MSFT"], "all": SYMBOLS}, max_strategy_percent=40)

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order that makes exactly 25 % of equity in the group."""
        return order(quantity=150), view(positions=[holding("MSFT", 100)])

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order of one share more."""
        return order(quantity=151), view(positions=[holding("MSFT", 100)])


def test_nothing_configured_allows_everything() -> None:
    """Without groups and a limit for strategies it has nothing to say, even where nothing is known."""
    nothing = view(equity=None, marks=[])

    assert rule().check(order(quantity=1_000_000, strategy="a"), nothing).outcome == "allow"
    assert rule().usage(nothing).used is None


def test_a_symbol_of_no_group_is_not_judged() -> None:
    """The rule is about the groups alone."""
    assert rule(**SEMIS).check(order("AAPL", quantity=1_000_000), view(equity=None)).outcome == "allow"


def test_a_symbol_in_small_letters_belongs_to_its_group() -> None:
    """Nobody gets round a group by writing a symbol another way: an order, a working one or a position."""
    subject, marks = rule(**SEMIS), [mark("nvda"), mark("amd"), mark("NVDA")]

    assert subject.check(order("nvda", quantity=251), view(marks=marks)).outcome == "refuse"
    moment = view(marks=marks, positions=[holding("nvda", 100)], working=[shown(order("amd", quantity=100))])
    assert subject.usage(moment).used == 20
    assert subject.check(order("NVDA", quantity=51), moment).outcome == "refuse"


def test_long_and_short_add_up_in_a_group() -> None:
    """Positions, working entries and the order together may reach the group's limit and no more."""
    moment = view(
        positions=[holding("NVDA", -100), holding("AAPL", 900)],
        working=[shown(order("AMD", quantity=80), "w", filled=30)],
        marks=[mark("NVDA"), mark("AMD"), mark("AAPL")],
    )

    assert rule(**SEMIS).check(order("AMD", quantity=100), moment).outcome == "allow"
    refused = rule(**SEMIS).check(order("AMD", quantity=101), moment)
    assert (refused.outcome, refused.used, refused.limit) == ("refuse", Decimal("25.1"), Decimal(25))
    assert refused.reason is not None
    assert "the group semis" in refused.reason


def test_a_symbol_in_two_groups_is_judged_in_both() -> None:
    """The group that the order would overfill refuses it, whichever comes first."""
    groups = {"one": ["NVDA"], "two": ["NVDA", "AAPL"]}
    moment = view(positions=[holding("AAPL", 200)])

    for names in (("one", "two"), ("two", "one")):
        judge = rule(groups={name: groups[name] for name in names})
        assert judge.check(order("NVDA", quantity=50), moment).used == 25
        assert "the group two" in str(judge.check(order("NVDA", quantity=51), moment).reason)


def test_small_letters_in_the_configuration_are_capital_ones() -> None:
    """A group's symbols match as the market writes them."""
    assert rule(groups={"semis": ["nvda"]}).check(order("NVDA", quantity=251), view()).outcome == "refuse"


@pytest.mark.parametrize("bad", [{"groups": {"x": []}}, {"groups": {"x": ["a b"]}}, {"groups": {"": ["A"]}}])
def test_a_group_has_a_name_and_symbols(bad: dict[str, Any]) -> None:
    """An empty group, a symbol that is none, or a group without a name is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)


@pytest.mark.parametrize(("foreign", "outcome"), [(True, "refuse"), (False, "allow")])
def test_what_is_not_ours_counts_unless_told_otherwise(foreign: bool, outcome: str) -> None:
    """Foreign positions and orders use up a group's limit where `count_foreign` says so."""
    moment = view(
        positions=[holding("NVDA", 150, foreign=True)],
        working=[shown(order("AMD", quantity=100), "f", foreign=True)],
        marks=[mark("NVDA"), mark("AMD")],
    )

    assert rule(count_foreign=foreign, **SEMIS).check(order("AMD", quantity=1), moment).outcome == outcome


def test_a_strategy_has_a_share_of_its_own() -> None:
    """Only its positions and entries count, and only its orders are judged."""
    judge = rule(max_strategy_percent=30)
    moment = view(
        positions=[holding("AAPL", 100, strategy="a"), holding("MSFT", 900, strategy="b")],
        working=[
            shown(order("NVDA", "sell", 100, strategy="a"), "w"),
            shown(order("TSLA", quantity=900, strategy=None), "x"),
        ],
    )

    assert judge.check(order("AMZN", quantity=100, strategy="a"), moment).outcome == "allow"
    refused = judge.check(order("AMZN", quantity=101, strategy="a"), moment)
    assert (refused.outcome, refused.used, refused.limit) == ("refuse", Decimal("30.1"), Decimal(30))
    assert "the strategy a" in str(refused.reason)
    assert judge.check(order("AMZN", quantity=300, strategy="new"), moment).outcome == "allow"
    assert judge.check(order("AMZN", quantity=9000), moment).outcome == "allow"


def test_an_order_that_makes_the_share_no_larger_passes() -> None:
    """Above the limit after the prices have moved, a position may turn to one that is no larger."""
    moment = view(positions=[holding("NVDA", 500)])

    assert rule(**SEMIS).check(order("NVDA", "sell", 1000), moment).outcome == "allow"
    assert rule(**SEMIS).check(order("NVDA", "sell", 1001), moment).outcome == "refuse"


@pytest.mark.parametrize(
    "moment",
    [
        view(equity=None),
        view(equity=-1),
        view(marks=[]),
        view(positions=[holding("AMD", average_cost=Decimal(0))]),
    ],
)
def test_what_can_not_be_valued_is_not_made_larger(moment: RiskView) -> None:
    """Without an equity or a price of anything in the group, an entry is refused."""
    assert rule(**SEMIS).check(order("NVDA"), moment).outcome == "refuse"


def test_usage_is_the_share_that_is_nearest_to_its_limit() -> None:
    """Of all groups and strategies the fullest one is published; unknown where it can't be valued."""
    judge = rule(groups={"semis": ["NVDA", "AMD"], "big": ["AAPL"]}, max_strategy_percent=50)
    moment = view(
        positions=[holding("NVDA", 100), holding("AAPL", 50)], working=[shown(order("AAPL", quantity=60))]
    )
    of_a = view(positions=[holding("NVDA", 100, strategy="b"), holding("TSLA", 400, strategy="a")])

    assert (judge.usage(moment).used, judge.usage(moment).limit) == (Decimal(11), Decimal(25))
    assert (judge.usage(of_a).used, judge.usage(of_a).limit) == (Decimal(40), Decimal(50))
    assert judge.usage(view(equity=None)).used is None
    assert judge.usage(view(working=[shown(order("AMD"))])).used is None


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_approved_orders_never_exceed_a_share(data: st.DataObject) -> None:
    """At prices that stand still, no row of approved entries, however they fill, exceeds a share."""

    async def run() -> None:
        group = SYMBOLS[:2]
        desk = SmallDesk([rule(groups={"g": group}, max_percent_of_equity=10, max_strategy_percent=15)])
        for _ in range(data.draw(st.integers(1, 20))):
            if data.draw(st.booleans()) and desk.working:
                order_id = data.draw(st.sampled_from(sorted(desk.working)))
                desk.fill(order_id, data.draw(st.none() | st.integers(1, 50).map(Decimal)))
            else:
                number = data.draw(st.integers(0, 4))
                side = data.draw(st.sampled_from(("buy", "sell")))
                strategy = "ab"[number % 2]  # one strategy owns a symbol at a time
                await desk.offer(order(SYMBOLS[number], side, data.draw(st.integers(1, 120)), strategy=strategy))
            equity = desk.portfolio.account().equity
            assert equity is not None
            # Commissions shrink equity a little after an order was judged.
            assert sum(desk.exposure(symbol) for symbol in group) * 100 <= equity * Decimal("0.1001")
            for mine in (SYMBOLS[::2], SYMBOLS[1::2]):
                assert sum(desk.exposure(symbol) for symbol in mine) * 100 <= equity * Decimal("0.1501")

    asyncio.run(run())

"""R12, instruments."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import Instrument, RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import SYMBOLS, holding, order, shown, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.instruments import Instruments, InstrumentsConfig


def rule(**config: object) -> Instruments:
    """Build the rule with some settings."""
    return Instruments("r12", InstrumentsConfig.model_validate(config))


def of_class(asset_class: str, fault: str | None = None) -> RiskView:
    """Show a moment at which the broker has told what AAPL is."""
    return view(instruments={"AAPL": Instrument("AAPL", fault=fault, asset_class=asset_class)})


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with both lists."""
        return rule(allowed=["AAPL", "TSLA"], restricted=["TSLA"], long_only=True)

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order in what is allowed."""
        return order("AAPL"), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order in what is allowed and restricted."""
        return order("TSLA"), view()


def test_nothing_configured_allows_every_symbol() -> None:
    """With the defaults any symbol may be bought and sold short, known to the broker or not."""
    assert rule().check(order("ANY.THING"), view()).outcome == "allow"
    assert rule().check(order(side="sell", quantity=1000), view()).outcome == "allow"


@pytest.mark.parametrize(("symbol", "outcome"), [("BRK.B", "allow"), ("BRK", "refuse"), ("brk.b", "refuse")])
def test_an_allowed_name_matches_to_the_letter(symbol: str, outcome: str) -> None:
    """Capital letters in the configuration are assumed, in an order they are not."""
    assert rule(allowed=["brk.b"]).check(order(symbol), view()).outcome == outcome


@pytest.mark.parametrize(("symbol", "outcome"), [("GME", "refuse"), ("gme", "refuse"), ("GMED", "allow")])
def test_a_restricted_name_is_caught_in_small_letters_too(symbol: str, outcome: str) -> None:
    """Nobody gets round the list by writing a symbol another way."""
    assert rule(restricted=["gme"]).check(order(symbol), view()).outcome == outcome


@pytest.mark.parametrize(
    ("moment", "outcome"),
    [
        (of_class("stock"), "allow"),
        (of_class("ETF"), "allow"),
        (of_class("option"), "refuse"),
        (of_class("stock", fault="no such contract"), "allow"),
        (of_class("option", fault="no answer"), "allow"),
        (view(), "allow"),
    ],
)
def test_the_kind_is_judged_where_the_broker_tells_it(moment: RiskView, outcome: str) -> None:
    """A kind that is not allowed is refused; what nobody knows, or what is at fault, is for another rule."""
    assert rule().check(order(), moment).outcome == outcome


def test_the_kinds_can_be_chosen() -> None:
    """The refusal names the kind and the ones that are allowed."""
    judge = rule(asset_classes=["Future", "option"])

    assert judge.check(order(), of_class("future")).outcome == "allow"
    assert str(judge.check(order(), of_class("stock")).reason) == (
        "AAPL is of the class stock; allowed are future, option"
    )


def test_long_only_refuses_what_could_end_short() -> None:
    """A sale of everything that is held and free passes, one share more does not."""
    working = [shown(order(side="sell", quantity=30, intent="reduce"), "w", filled=10)]
    moment = view(positions=[holding("AAPL", 100)], working=working, intents={"w": "reduce"})
    judge = rule(long_only=True)

    assert judge.check(order(side="sell", quantity=80), moment).outcome == "allow"
    refused = judge.check(order(side="sell", quantity=81), moment)
    assert "could become -1 shares" in str(refused.reason)
    assert judge.check(order(quantity=1000), view(positions=[holding("AAPL", -50)])).outcome == "allow"


def test_a_reducing_order_passes_whatever_the_lists_say() -> None:
    """What has been restricted since it was bought may be sold."""
    leave = order("GME", "sell", intent="reduce")

    assert rule(restricted=["GME"], allowed=["AAPL"]).check(leave, of_class("option")).outcome == "allow"


@pytest.mark.parametrize(
    "bad", [{"allowed": ["A B"]}, {"restricted": [""]}, {"asset_classes": []}, {"allowed": [True]}]
)
def test_a_list_names_symbols(bad: dict[str, Any]) -> None:
    """What is no symbol, and an empty list of kinds, is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)


@settings(max_examples=40, deadline=None)
@given(
    allowed=st.lists(st.sampled_from(SYMBOLS), unique=True, max_size=3),
    restricted=st.lists(st.sampled_from(SYMBOLS), unique=True, max_size=2),
    steps=st.lists(
        st.tuples(st.sampled_from(SYMBOLS), st.sampled_from(("buy", "sell")), st.integers(1, 50), st.booleans()),
        max_size=15,
    ),
)
def test_nothing_else_is_ever_held(
    allowed: list[str], restricted: list[str], steps: list[tuple[str, str, int, bool]]
) -> None:
    """Over any row of orders and fills, only allowed symbols are held, none that is restricted, and none short."""

    async def run() -> None:
        desk = SmallDesk([rule(allowed=allowed, restricted=restricted, long_only=True)])
        for symbol, side, quantity, fill in steps:
            may = symbol not in restricted and (symbol in allowed or not allowed)
            decision = await desk.offer(order(symbol, side, quantity))
            if side == "buy":
                assert (decision.approved is not None) == may
            if fill and desk.working:
                desk.fill(min(desk.working), Decimal(quantity))
            held = {s for s in SYMBOLS if desk.portfolio.quantity(s)}
            assert all(desk.portfolio.quantity(s) > 0 for s in held)
            assert held <= (set(allowed or SYMBOLS) - set(restricted))

    asyncio.run(run())

"""R5, max_exposure."""

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
from sigma9_core.money.exposure import reserved
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import SYMBOLS, holding, mark, order, shown, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.max_exposure import MaxExposure, MaxExposureConfig


def rule(**config: object) -> MaxExposure:
    """Build the rule with some settings."""
    return MaxExposure("r5", MaxExposureConfig.model_validate(config))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order that makes exactly 100 % of equity."""
        return order(quantity=400), view(positions=[holding("MSFT", 600)])

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order of one share more."""
        return order(quantity=401), view(positions=[holding("MSFT", 600)])


def test_long_and_short_add_up_gross_and_cancel_out_net() -> None:
    """Of 60 % long and 30 % short the gross is 90 %, the net 30 %."""
    moment = view(positions=[holding("MSFT", 600), holding("NVDA", -300)])

    assert rule().check(order(quantity=100), moment).outcome == "allow"
    assert rule().check(order(quantity=101), moment).outcome == "refuse"
    assert rule().check(order(side="sell", quantity=101), moment).outcome == "refuse"
    net = rule(max_gross_percent=200, max_net_percent=35)
    assert net.check(order(quantity=50), moment).outcome == "allow"
    refused = net.check(order(quantity=51), moment)
    assert (refused.outcome, refused.used, refused.limit) == ("refuse", Decimal("35.1"), Decimal(35))
    assert net.check(order(side="sell", quantity=650), moment).outcome == "allow"
    assert net.check(order(side="sell", quantity=651), moment).outcome == "refuse"


def test_working_entries_count_as_if_they_had_filled() -> None:
    """A reservation takes the room; what an exit would free is not free yet."""
    stop = shown(order("MSFT", "sell", 600, "reduce", order_type="stop", stop_price=Decimal(98)), "s")
    moment = view(
        positions=[holding("MSFT", 600)],
        working=[shown(order("NVDA", quantity=300), "w", filled=100), stop],
        intents={"s": "reduce"},
    )

    assert rule().check(order(quantity=200), moment).outcome == "allow"
    refused = rule().check(order(quantity=201), moment)
    assert (refused.outcome, refused.used) == ("refuse", Decimal("100.1"))
    assert refused.reason is not None
    assert "gross" in refused.reason


def test_orders_are_valued_at_the_worst_price_that_they_may_trade_at() -> None:
    """A limit below the market makes a buy cheaper, the ask makes one at the market dearer."""
    quoted = view(marks=[mark(bid=Decimal(99), ask=Decimal(102))])

    assert rule().check(order(quantity=100), quoted).used == Decimal("10.2")
    assert rule().check(order(quantity=100, order_type="limit", limit_price=Decimal(90)), quoted).used == 9
    assert rule().check(order(side="sell", quantity=100), quoted).used == 10


@pytest.mark.parametrize(("foreign", "outcome"), [(True, "refuse"), (False, "allow")])
def test_what_is_not_ours_counts_unless_told_otherwise(foreign: bool, outcome: str) -> None:
    """Foreign positions and orders use up the limit where `count_foreign` says so."""
    order_of_others = shown(order("NVDA", quantity=400), "f", foreign=True)
    moment = view(positions=[holding("MSFT", 600, foreign=True)], working=[order_of_others])
    judge = rule(count_foreign=foreign)

    assert judge.check(order(quantity=1), moment).outcome == outcome
    assert judge.usage(moment).used == (100 if foreign else 0)


def test_beyond_the_limit_an_order_passes_that_makes_nothing_larger() -> None:
    """After the prices have moved, an order may still turn a position to one that is no larger."""
    moment = view(positions=[holding("AAPL", 1200)])

    assert rule(max_net_percent=200).check(order(side="sell", quantity=2400), moment).outcome == "allow"
    assert rule(max_net_percent=200).check(order(side="sell", quantity=2401), moment).outcome == "refuse"
    assert rule().check(order("MSFT", quantity=1), moment).outcome == "refuse"


def test_a_position_with_a_stop_may_be_turned_round_in_full() -> None:
    """If the stop fills first, the whole order opens a new position: so it is counted."""
    stop = shown(order("AAPL", "sell", 500, "reduce", order_type="stop", stop_price=Decimal(98)), "s")
    naked = view(positions=[holding("AAPL", 500)])
    guarded = view(positions=[holding("AAPL", 500)], working=[stop], intents={"s": "reduce"})

    assert rule().check(order(side="sell", quantity=1500), naked).outcome == "allow"
    assert rule().check(order(side="sell", quantity=1000), guarded).outcome == "allow"
    assert rule().check(order(side="sell", quantity=1001), guarded).outcome == "refuse"


@pytest.mark.parametrize(
    "moment",
    [
        view(equity=None),
        view(equity=-5),
        view(equity=0),
        view(marks=[]),
        view(marks=[mark("AAPL", "NaN")]),
        view(positions=[holding("XYZ", 10, average_cost=Decimal(0))]),
        view(working=[shown(order("XYZ"))]),
    ],
)
def test_what_can_not_be_valued_is_not_made_larger(moment: RiskView) -> None:
    """Without an equity, or a price of anything that is held, comes, or is wanted, an entry is refused."""
    assert rule().check(order(), moment).outcome == "refuse"


def test_a_reducing_order_is_not_asked() -> None:
    """The rule is about entries alone, whatever is missing."""
    assert rule().check(order(side="sell", intent="reduce"), view(equity=None, marks=[])).outcome == "allow"


def test_usage_is_the_exposure_that_is_nearer_to_its_limit() -> None:
    """The published use is gross or net in percent of equity, working entries counted; unknown without equity."""
    moment = view(
        positions=[holding("AAPL", 200), holding("MSFT", -700)], working=[shown(order("NVDA", quantity=100), "b")]
    )

    assert (rule().usage(moment).used, rule().usage(moment).limit) == (Decimal(100), Decimal(100))
    net = rule(max_gross_percent=300, max_net_percent=60).usage(moment)
    assert (net.used, net.limit) == (Decimal(50), Decimal(60))
    assert rule().usage(view(equity=None)).used is None
    assert rule().usage(view(working=[shown(order("XYZ"))])).used is None


@pytest.mark.parametrize("bad", [{"max_gross_percent": 0}, {"max_net_percent": -1}, {"max_gross_percent": "NaN"}])
def test_a_limit_is_a_number_above_zero(bad: dict[str, Any]) -> None:
    """Anything else is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)


async def test_orders_of_one_moment_can_not_pass_together() -> None:
    """What was decided a moment ago counts before anybody has heard of it."""
    desk = SmallDesk([rule()])
    decisions = await asyncio.gather(*(desk.offer(order(SYMBOLS[n % 5], quantity=100 + n)) for n in range(30)))

    passed = [n for n, decision in enumerate(decisions) if decision.approved is not None]
    assert passed == list(range(9))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_approved_orders_never_exceed_the_limits(data: st.DataObject) -> None:
    """At prices that stand still no row of approved entries, however they fill, exceeds gross or net."""

    async def run() -> None:
        desk = SmallDesk([rule(max_gross_percent=30, max_net_percent=20)])
        for _ in range(data.draw(st.integers(1, 20))):
            if data.draw(st.booleans()) and desk.working:
                order_id = data.draw(st.sampled_from(sorted(desk.working)))
                desk.fill(order_id, data.draw(st.none() | st.integers(1, 50).map(Decimal)))
            else:
                symbol, side = data.draw(st.sampled_from(SYMBOLS)), data.draw(st.sampled_from(("buy", "sell")))
                prices = data.draw(st.none() | st.integers(100, 110))
                terms: dict[str, Any] = (
                    {} if prices is None else {"order_type": "limit", "limit_price": Decimal(prices)}
                )
                await desk.offer(order(symbol, side, data.draw(st.integers(1, 150)), **terms))
            equity = desk.portfolio.account().equity
            assert equity is not None
            working = list(desk.working.values())
            most = sum(desk.portfolio.quantity(s) + reserved(working, s, "buy") for s in SYMBOLS)
            least = sum(desk.portfolio.quantity(s) - reserved(working, s, "sell") for s in SYMBOLS)
            # Commissions shrink equity a little after an order was judged.
            assert sum(desk.exposure(symbol) for symbol in SYMBOLS) * 100 <= equity * Decimal("0.3003")
            assert max(most, -least) * 100 <= equity * Decimal("0.2002")

    asyncio.run(run())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_stops_that_fill_do_not_lead_beyond_the_limit(data: st.DataObject) -> None:
    """With a protective stop beside every entry, and entries against what is held, the gross limit holds."""

    async def run() -> None:
        desk = SmallDesk([rule(max_gross_percent=30, max_net_percent=1000)])
        for number in range(data.draw(st.integers(1, 20))):
            if data.draw(st.booleans()) and desk.working:
                fillable = sorted(o.order_id for o in desk.working.values() if o.parent_id not in desk.working)
                desk.fill(data.draw(st.sampled_from(fillable)))
            else:
                symbol, side = data.draw(st.sampled_from(SYMBOLS[:2])), data.draw(st.sampled_from(("buy", "sell")))
                quantity = data.draw(st.integers(1, 150))
                decision = await desk.offer(order(symbol, side, quantity))
                if decision.approved is not None:
                    stop = {"order_type": "stop", "stop_price": Decimal(98 if side == "buy" else 102)}
                    more: dict[str, Any] = {
                        "parent_id": decision.approved.order_id,
                        "oca_group": f"g{number}",
                        **stop,
                    }
                    exit_side = "sell" if side == "buy" else "buy"
                    await desk.offer(order(symbol, exit_side, quantity, "reduce", **more))
            for leg in list(desk.working.values()):  # as the exits do: nothing to close, no stop
                have = desk.portfolio.quantity(leg.symbol)
                idle = have <= 0 if leg.side == "sell" else have >= 0
                if desk.requests[leg.order_id].intent == "reduce" and idle and leg.parent_id not in desk.working:
                    desk.cancel(leg.order_id)
            equity = desk.portfolio.account().equity
            assert equity is not None
            gross = sum(abs(desk.portfolio.quantity(symbol)) for symbol in SYMBOLS)
            assert gross * 100 <= equity * Decimal("0.3003")

    asyncio.run(run())

"""R17, reference_data."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import Instrument, RiskRule, RiskView
from sigma9_core.models import OrderRequest
from sigma9_core.money.desk import rounded
from sigma9_core.testing.risk_contract import RiskRuleContract, decide
from sigma9_core.testing.risk_views import holding, order, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.reference_data import ReferenceData, ReferenceDataConfig

FAULT = "the broker does not know a contract AAPL"


def rule(**config: object) -> ReferenceData:
    """Build the rule with some settings."""
    return ReferenceData("r17", ReferenceDataConfig.model_validate(config))


def known(**more: Any) -> RiskView:
    """Show a moment in which the broker has told of AAPL."""
    contract = {name: more.pop(name) for name in ("tick", "lot", "fault") if name in more}
    return view(instruments={"AAPL": Instrument("AAPL", **contract)}, **more)


def limit(price: str, **more: Any) -> OrderRequest:
    """Make a limit order of ten."""
    return order(order_type="limit", limit_price=Decimal(price), **more)


class TestContract(RiskRuleContract):
    """The suite that every rule passes, with a price off the tick."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry at a cent."""
        return limit("100.01"), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry between two cents."""
        return limit("100.011"), view()


@pytest.mark.parametrize(
    ("price", "passes"),
    [
        ("1", True),
        ("1.00", True),
        ("1.01", True),
        ("1.001", False),
        ("1.0001", False),
        ("0.9999", True),
        ("0.99995", False),
        ("0.0001", True),
        ("0.00005", False),
        ("250000.37", True),
    ],
)
@pytest.mark.parametrize("kind", ["limit_price", "stop_price", "trail_amount"])
def test_the_tick_is_that_of_rule_612(kind: str, price: str, passes: bool) -> None:
    """Where no broker tells the tick, it is a cent from one dollar on, and a hundredth of one below."""
    types = {"limit_price": "limit", "stop_price": "stop", "trail_amount": "trailing_stop"}
    prices: dict[str, Any] = {kind: Decimal(price)}
    request = order(order_type=types[kind], **prices)

    for moment in (view(), known()):
        assert (rule().check(request, moment).outcome == "allow") == passes


@given(price=st.decimals("0.0001", "5000", places=4), tick=st.sampled_from(("0.01", "0.05", "0.0001", "0.25")))
def test_the_brokers_tick_beats_it(price: Decimal, tick: str) -> None:
    """A price passes exactly where it is a multiple of the tick that the broker tells."""
    verdict = rule().check(limit(str(price)), known(tick=Decimal(tick)))

    assert (verdict.outcome == "allow") == (price % Decimal(tick) == 0)
    if verdict.outcome == "refuse":
        assert (verdict.used, verdict.limit) == (price, Decimal(tick))


@given(price=st.decimals("0.0001", "5000", places=6))
def test_what_the_core_rounds_passes(price: Decimal) -> None:
    """Prices that the exit manager has rounded are on the tick."""
    request = order(side="sell", intent="reduce", order_type="stop", stop_price=rounded(price))

    if rounded(price) > 0:
        assert rule().check(request, view(positions=[holding(quantity=10)])).outcome == "allow"


def test_both_prices_of_a_stop_limit_are_judged() -> None:
    """The price that is off the tick is named."""
    request = order(order_type="stop_limit", limit_price=Decimal("10.01"), stop_price=Decimal("10.005"))

    assert "stop price of 10.005" in (rule().check(request, view()).reason or "")


@pytest.mark.parametrize("price", ["0", "-1", "-0.01"])
def test_a_price_is_above_zero(price: str) -> None:
    """Zero and less is on every tick, and no price."""
    assert "above zero" in (rule().check(limit(price), view()).reason or "")


@pytest.mark.parametrize(
    ("quantity", "lot", "fractional", "passes"),
    [
        ("10", None, False, True),
        ("10.5", None, False, False),
        ("10.5", None, True, True),
        ("10.5", "1", True, False),  # the broker says so
        ("10.5", "0.1", True, True),
        ("10.55", "0.1", True, False),
        ("10.5", "0.1", False, False),
        ("100", "100", False, True),
        ("150", "100", False, False),
        ("150", "100", True, False),
    ],
)
def test_quantities_come_in_lots(quantity: str, lot: str | None, fractional: bool, passes: bool) -> None:
    """An entry is a multiple of the lot; parts of a share need the setting and the broker's lot."""
    moment = view() if lot is None else known(lot=Decimal(lot))

    assert (rule(fractional=fractional).check(order(quantity=quantity), moment).outcome == "allow") == passes


def test_the_whole_of_a_position_can_always_be_closed() -> None:
    """A fraction that a split has left is closed with the whole position, and by an exit alone."""
    moment = view(positions=[holding(quantity="10.5")])
    close = order(side="sell", quantity="10.5", intent="reduce")

    assert decide(rule(), close, moment).approved is not None
    assert decide(rule(), close.model_copy(update={"quantity": Decimal("0.5")}), moment).approved is None
    assert rule().check(close.model_copy(update={"intent": "entry"}), moment).outcome == "refuse"
    short = view(positions=[holding(quantity="-10.5")])
    assert decide(rule(), order(quantity="10.5", intent="reduce"), short).approved is not None


def test_exits_are_judged_as_well() -> None:
    """An exit between two cents is refused: the exchange would refuse it."""
    moment = view(positions=[holding(quantity=10)])
    off = limit("100.001", side="sell", intent="reduce")

    assert decide(rule(), off, moment).approved is None
    assert decide(rule(), limit("100.01", side="sell", intent="reduce"), moment).approved is not None


def test_a_fault_refuses_entries_and_warns_of_exits() -> None:
    """A contract that can't be traded is not entered; what is held of it can still be sold, with a warning."""
    moment = known(fault=FAULT, positions=[holding(quantity=10)])
    entry = rule().check(order(), moment)
    exit_ = decide(rule(), order(side="sell", intent="reduce"), moment)

    assert (entry.outcome, entry.reason) == ("refuse", FAULT)
    assert exit_.approved is not None
    assert [(verdict.outcome, verdict.reason) for verdict in exit_.verdicts] == [("warn", FAULT)]
    other = view(instruments={"MSFT": Instrument("MSFT", fault=FAULT)})
    assert rule().check(order(), other).outcome == "allow"


@pytest.mark.parametrize("bad", [{"tick": "0"}, {"tick": "NaN"}, {"tick": "-0.01"}, {"lot": "0"}, {"lot": "NaN"}])
def test_a_tick_or_lot_of_nonsense_is_a_fault(bad: dict[str, str]) -> None:
    """No entry passes on a step that nothing is a multiple of; an exit is judged by Rule 612."""
    moment = known(positions=[holding(quantity=10)], **{name: Decimal(step) for name, step in bad.items()})
    verdict = rule().check(limit("100.01"), moment)

    assert (verdict.outcome, verdict.limit) == ("refuse", None)
    assert decide(rule(), limit("100.01", side="sell", intent="reduce"), moment).approved is not None
    assert decide(rule(), limit("100.001", side="sell", intent="reduce"), moment).approved is None


def test_a_number_that_nobody_can_count_is_refused() -> None:
    """A price with so many ticks that the division fails is a refusal, not a crash."""
    assert rule().check(limit("1e40"), view()).outcome == "refuse"
    assert rule().check(order(quantity="1e40"), view()).outcome == "refuse"
    broken = order().model_copy(update={"limit_price": Decimal("NaN"), "order_type": "limit"})
    assert rule().check(broken, view()).outcome == "refuse"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_everything_that_passed_is_on_the_grid(data: st.DataObject) -> None:
    """Over a row of orders, splits and fills, all that works is on tick and lot, or closes a whole position."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        for _ in range(data.draw(st.integers(1, 15))):
            held = desk.portfolio.quantity("AAPL")
            step = data.draw(st.sampled_from(("enter", "leave", "split", "fill")))
            if step == "split":
                desk.portfolio.split("AAPL", Decimal(3), Decimal(2))
            elif step == "fill" and desk.working:
                desk.fill(data.draw(st.sampled_from(sorted(desk.working))))
            elif step == "leave" and held > 0:
                await desk.offer(order(side="sell", quantity=held, intent="reduce", oca_group="all"))
            elif step == "enter":
                quantity = data.draw(st.decimals("0.5", "20", places=1))
                price = data.draw(st.decimals("0.5", "120", places=3))
                await desk.offer(order(quantity=quantity, order_type="limit", limit_price=price))
            for order_id, working in desk.working.items():
                if desk.requests[order_id].intent == "entry":
                    assert working.quantity % 1 == 0
                    assert working.limit_price is not None
                    assert rounded(working.limit_price) == working.limit_price

    asyncio.run(run())


def test_the_whole_can_be_left_after_any_split() -> None:
    """After a split that leaves a fraction, the gate still lets the whole position go."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        await desk.offer(order(quantity=7))
        desk.fill("o1")
        desk.portfolio.split("AAPL", Decimal(3), Decimal(2))
        left = await desk.offer(order(side="sell", quantity="10.5", intent="reduce"))
        assert left.approved is not None

    asyncio.run(run())


def test_usage_has_no_number() -> None:
    """The rule is shown without a number."""
    assert rule().usage(replace(view())).used is None

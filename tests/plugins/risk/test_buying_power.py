"""R14, buying_power."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.clock import SteppedClock
from sigma9_core.contracts import Margin, RiskRule, RiskView
from sigma9_core.models import OrderRequest, OrderStatus
from sigma9_core.money.gate import GuardedRule, RiskGate
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import NOW, SYMBOLS, holding, mark, order, shown, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.buying_power import BuyingPower, BuyingPowerConfig


def rule(**config: object) -> BuyingPower:
    """Build the rule with some settings."""
    return BuyingPower("r14", BuyingPowerConfig.model_validate(config))


def margin(left: object, fault: str | None = None) -> Margin:
    """Make a broker's answer with some funds left."""
    return Margin(Decimal(100), Decimal(str(left)), fault=fault)


def rest(side: str, quantity: int, price: object = 100, **more: Any) -> OrderRequest:
    """Make a limit order."""
    return order(
        more.pop("symbol", "MSFT"), side, quantity, order_type="limit", limit_price=Decimal(str(price)), **more
    )


class TestContract(RiskRuleContract):
    """The suite that every rule passes: 98,000 of 100,000 are usable, at 100 a share."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry that takes all of it."""
        return order(quantity=980), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry of one share more."""
        return order(quantity=981), view()


@given(quantity=st.integers(1, 2_000), reserve=st.integers(0, 99), price=st.decimals("0.01", "500", places=2))
def test_the_value_and_the_reserve_decide(quantity: int, reserve: int, price: Decimal) -> None:
    """An entry passes exactly while its value is within the buying power less the reserve."""
    verdict = rule(reserve_percent=reserve).check(order(quantity=quantity), view(marks=[mark(price=price)]))
    limit = Decimal(100_000) * (100 - reserve) / 100

    assert (verdict.used, verdict.limit) == (quantity * price, limit)
    assert (verdict.outcome == "allow") == (quantity * price <= limit)


@pytest.mark.parametrize(
    ("working", "takes"),
    [
        (shown(rest("buy", 500)), 50_000),
        (shown(rest("buy", 500), filled=200), 30_000),
        (shown(rest("sell", 500)), 50_000),  # a short sale binds as much
        (shown(rest("buy", 500, 99)), 49_500),
        (shown(rest("buy", 500), foreign=True), 50_000),
        (shown(rest("sell", 500), foreign=True), 0),  # it brings money
        (shown(order("MSFT", "sell", 500, order_type="stop", stop_price=Decimal(120))), 60_000),
    ],
)
def test_working_entries_are_reserved(working: object, takes: int) -> None:
    """What works binds its worst value, foreign buys too; the order has what is left."""
    moment = view(working=[working])  # type: ignore[list-item]
    left = (98_000 - takes) // 100

    assert rule().check(order(quantity=left), moment).outcome == "allow"
    assert rule().check(order(quantity=left + 1), moment).outcome == "refuse"
    assert rule().usage(moment).used == takes


def test_exits_bind_nothing_and_a_group_counts_once() -> None:
    """Working exits are left out; of a one-cancels-all group the dearest leg counts."""
    exits = view(working=[shown(rest("sell", 900))], intents={"w1": "reduce"})
    group = view(
        working=[shown(rest("buy", n, oca_group="g"), f"w{n}") for n in (300, 200)]
        + [shown(rest("buy", 100), "alone")]
    )

    assert rule().check(order(quantity=980), exits).outcome == "allow"
    assert rule().usage(group).used == 40_000


def test_what_reduces_a_position_passes() -> None:
    """An order against the position passes without any buying power, as far as it does not go beyond it."""
    poor = view(positions=[holding(quantity=100)], equity=0)

    assert rule().check(order(side="sell", quantity=100), poor).outcome == "allow"
    assert rule().check(order(side="sell", quantity=101), poor).outcome == "refuse"
    assert rule().check(order(side="sell", quantity=500, intent="reduce"), poor).outcome == "allow"
    short = view(positions=[holding(quantity=-100)], equity=0)
    assert rule().check(order(side="buy", quantity=100), short).outcome == "allow"


def test_what_works_against_the_position_closes_it_first() -> None:
    """A second sale beside one that closes the position opens a short one, and needs buying power."""
    moment = view(
        positions=[holding(quantity=100)], working=[shown(rest("sell", 60, symbol="AAPL"))], equity=10_000
    )

    assert rule().check(order(side="sell", quantity=40), moment).outcome == "allow"
    verdict = rule().check(order(side="sell", quantity=90), moment)
    assert verdict.used == 6_000 + 50 * 100


def test_a_flip_pays_for_its_new_side_alone() -> None:
    """Of an order through zero only the part beyond the position is valued."""
    moment = view(positions=[holding(quantity=100)], equity=10_000)

    assert rule().check(order(side="sell", quantity=198), moment).used == 9_800
    assert rule().check(order(side="sell", quantity=199), moment).outcome == "refuse"


def test_what_is_not_known_refuses() -> None:
    """Without buying power, or a price of the order or of a working entry, no entry passes."""
    elsewhere = view(marks=[mark("AAPL")], working=[shown(order("MSFT"))])

    assert "buying power is not known" in (rule().check(order(), view(equity=None)).reason or "")
    assert "no price of AAPL" in (rule().check(order(), view(marks=[])).reason or "")
    assert "no price of MSFT" in (rule().check(order(), elsewhere).reason or "")
    assert rule().check(order(), view(marks=[mark(price="NaN")])).outcome == "refuse"
    assert rule().check(order(), view(equity=-5)).outcome == "refuse"


def test_the_brokers_word_is_asked_for_unless_switched_off() -> None:
    """The gate sees that margins are wanted, and that they are not where `what_if` is false."""
    clock = SteppedClock("replay", NOW)
    silent = rule(what_if=False)

    assert RiskGate([GuardedRule(rule())], clock).wants_margin
    assert not RiskGate([GuardedRule(silent)], clock).wants_margin
    assert silent.check(order(), view(margin=margin(-1, "no"))).outcome == "allow"
    assert BuyingPower.wants_margin


def test_a_fault_is_told_in_the_brokers_words() -> None:
    """The sentence of the fault is the reason."""
    verdict = rule().check(order(), view(margin=margin(10_000, "the broker does not tell the order's margin")))

    assert (verdict.outcome, verdict.reason) == ("refuse", "the broker does not tell the order's margin")


@pytest.mark.parametrize(
    ("left", "status", "passes"),
    [
        (5_000, OrderStatus.SUBMITTED, True),
        (4_999, OrderStatus.SUBMITTED, False),
        (4_999, OrderStatus.UNKNOWN, False),
        (4_999, OrderStatus.ACCEPTED, True),
        (0, OrderStatus.ACCEPTED, True),
        (-1, OrderStatus.ACCEPTED, False),
        ("NaN", OrderStatus.ACCEPTED, False),
    ],
)
def test_the_broker_must_leave_enough_for_what_is_on_its_way(
    left: object, status: OrderStatus, passes: bool
) -> None:
    """What the broker would have left covers the entries that it has not accepted yet, to the cent."""
    moment = view(working=[shown(rest("buy", 50), status=status)], margin=margin(left))

    assert (rule().check(order(), moment).outcome == "allow") == passes


def test_both_must_agree() -> None:
    """A broker that has plenty does not lift the account's own limit."""
    assert rule().check(order(quantity=981), view(margin=margin(10_000_000))).outcome == "refuse"


def test_without_an_answer_the_account_decides() -> None:
    """Where no broker tells a margin, the order's value alone is judged."""
    assert rule().check(order(quantity=980), view(margin=None)).outcome == "allow"


def test_usage_is_what_works_of_what_is_usable() -> None:
    """The published limit is the buying power less the reserve."""
    assert rule(reserve_percent=10).usage(view()).limit == 90_000
    assert rule().usage(view(equity=None)).limit is None


@pytest.mark.parametrize("reserve", [-1, 100, "NaN"])
def test_the_reserve_is_a_part(reserve: object) -> None:
    """A reserve below nothing, or of everything, is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(reserve_percent=reserve)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_approved_orders_are_always_paid_for(data: st.DataObject) -> None:
    """Whatever of the approved orders fills, and in whatever order, the account's own means never end."""

    async def run() -> None:
        desk = SmallDesk([rule()], cash=Decimal(20_000))
        for _ in range(data.draw(st.integers(1, 25))):
            fills = data.draw(st.booleans())
            if fills and desk.working:
                order_id = data.draw(st.sampled_from(sorted(desk.working)))
                quantity = data.draw(st.integers(1, 200).map(Decimal))
                worst = desk.working[order_id].limit_price
                assert worst is not None
                desk.fill(order_id, quantity, float(worst))
            else:
                side = data.draw(st.sampled_from(("buy", "sell")))
                price = data.draw(st.integers(90, 100) if side == "buy" else st.integers(100, 110))
                symbol = data.draw(st.sampled_from(SYMBOLS[:3]))
                await desk.offer(rest(side, data.draw(st.integers(1, 220)), price, symbol=symbol))
            short = sum(max(-p.quantity, Decimal(0)) * 100 for p in desk.view().positions.values())
            assert desk.portfolio.cash - 2 * short >= 0

    asyncio.run(run())

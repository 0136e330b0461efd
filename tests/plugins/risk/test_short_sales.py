"""R22, short_sales."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import Instrument, RiskRule, RiskView
from sigma9_core.models import Intent, OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import SYMBOLS, holding, mark, order, shown, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.short_sales import ShortSales, ShortSalesConfig


def rule(**config: object) -> ShortSales:
    """Build the rule with some settings."""
    return ShortSales("r22", ShortSalesConfig.model_validate(config))


def borrowed(**contract: Any) -> RiskView:
    """Show a moment with a bid of 99.99 in which the broker has told of AAPL."""
    marks = [mark(bid=Decimal("99.99"), ask=Decimal("100.01"))]
    return view(instruments={"AAPL": Instrument("AAPL", **contract)}, marks=marks)


class TestContract(RiskRuleContract):
    """The suite that every rule passes: long only."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give a sale of all that is held."""
        return order(side="sell", quantity=100), view(positions=[holding()])

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give a sale of one share more."""
        return order(side="sell", quantity=101), view(positions=[holding()])


class TestContractOfBorrowing(TestContract):
    """The same where short sales are allowed."""

    def make(self) -> RiskRule:
        """Build it with short sales allowed."""
        return rule(allowed=True)

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give a short sale of shares that can be borrowed."""
        return order(side="sell"), borrowed(shortable=True)

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give one of shares that can't."""
        return order(side="sell"), borrowed(shortable=False)


@given(
    have=st.integers(-300, 300),
    working=st.integers(0, 300),
    quantity=st.integers(1, 400),
    side=st.sampled_from(("buy", "sell")),
)
def test_long_only(have: int, working: int, quantity: int, side: str) -> None:
    """A sale passes exactly where what is held, less every working sale, covers it; a buy always does."""
    sales = [shown(order(side="sell", quantity=working))] if working else []
    moment = view(positions=[holding(quantity=have)] if have else [], working=sales)
    verdict = rule().check(order(side=side, quantity=quantity), moment)
    free = max(have - working, 0) if have > 0 else 0

    assert (verdict.outcome == "allow") == (side == "buy" or quantity <= free)
    if verdict.outcome == "refuse":
        assert verdict.used == quantity - free
        assert verdict.limit == 0


def test_working_exits_and_foreign_sales_count() -> None:
    """A stop that may fill first, and somebody else's sale, take shares away from the order."""
    stop = order(side="sell", quantity=100, intent="reduce", order_type="stop", stop_price=Decimal(90))
    long = [holding(quantity=150)]

    for other in (shown(stop), shown(order(side="sell", quantity=100), foreign=True)):
        moment = view(positions=long, working=[other], intents={"w1": "reduce"})
        assert rule().check(order(side="sell", quantity=50), moment).outcome == "allow"
        assert rule().check(order(side="sell", quantity=51), moment).outcome == "refuse"


def test_a_group_of_exits_counts_once() -> None:
    """Stop and target of one position take its shares away once."""
    legs = [shown(order(side="sell", quantity=100, oca_group="g"), name) for name in ("stop", "target")]
    moment = view(positions=[holding(quantity=150)], working=legs)

    assert rule().check(order(side="sell", quantity=50), moment).outcome == "allow"


def test_a_flip_is_refused_for_its_short_part() -> None:
    """The sentence names how much of the order nothing is held for."""
    reason = rule().check(order(side="sell", quantity=150), view(positions=[holding()])).reason or ""

    assert reason.startswith("50 of the 150 AAPL would be sold short")


def test_exits_are_left_to_the_gate() -> None:
    """The core has seen to it that a reducing order does not go beyond the position."""
    assert rule().check(order(side="sell", intent="reduce"), view()).outcome == "allow"


@pytest.mark.parametrize("shortable", [None, False])
def test_without_shares_to_borrow_nothing_is_sold_short(shortable: bool | None) -> None:
    """A broker that says no, or does not say, is a refusal; what is held can still be sold."""
    moment = borrowed(shortable=shortable)

    assert "to borrow" in (rule(allowed=True).check(order(side="sell"), moment).reason or "")
    assert rule(allowed=True).check(order(side="sell"), view()).outcome == "refuse"
    long = view(positions=[holding()])
    assert rule(allowed=True).check(order(side="sell", quantity=100), long).outcome == "allow"


@pytest.mark.parametrize(
    ("request_", "passes"),
    [
        (order(side="sell"), False),
        (order(side="sell", order_type="limit", limit_price=Decimal("99.99")), False),
        (order(side="sell", order_type="limit", limit_price=Decimal("100.00")), True),
        (order(side="sell", order_type="stop", stop_price=Decimal("100.00")), False),
        (
            order(
                side="sell",
                order_type="stop_limit",
                limit_price=Decimal("100.00"),
                stop_price=Decimal("100.00"),
            ),
            False,
        ),
    ],
)
def test_a_restriction_leaves_limits_above_the_bid(request_: OrderRequest, passes: bool) -> None:
    """Under Rule 201 only a limit above the bid passes; without one, every order does."""
    judge = rule(allowed=True)

    assert (judge.check(request_, borrowed(shortable=True, short_restricted=True)).outcome == "allow") == passes
    for free in (False, None):
        assert judge.check(request_, borrowed(shortable=True, short_restricted=free)).outcome == "allow"


@pytest.mark.parametrize("marks", [[], [mark()], [mark(bid=Decimal("NaN"))]])
def test_a_restriction_needs_a_bid(marks: list[Any]) -> None:
    """Where the bid is not known, nobody can be above it."""
    moment = view(
        instruments={"AAPL": Instrument("AAPL", shortable=True, short_restricted=True)},
        marks=marks,
    )
    request = order(side="sell", order_type="limit", limit_price=Decimal(200))

    assert "its bid is not known" in (rule(allowed=True).check(request, moment).reason or "")


def test_usage_tells_what_is_short() -> None:
    """Shares of ours that are short are published; the limit is none where none are allowed."""
    moment = view(positions=[holding(quantity=-40), holding("MSFT", -60, foreign=True), holding("TSLA", 10)])

    assert rule().usage(moment).used == 40
    assert rule().usage(moment).limit == 0
    assert rule(allowed=True).usage(moment).limit is None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_ever_becomes_short(data: st.DataObject) -> None:
    """Over any row of orders and fills of both sides, no position ever goes below zero."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        for _ in range(data.draw(st.integers(1, 25))):
            fills = data.draw(st.booleans())
            if fills and desk.working:
                desk.fill(
                    data.draw(st.sampled_from(sorted(desk.working))), data.draw(st.integers(1, 60).map(Decimal))
                )
            else:
                symbol = data.draw(st.sampled_from(SYMBOLS[:2]))
                side = data.draw(st.sampled_from(("buy", "sell")))
                intent: Intent = data.draw(st.sampled_from(("entry", "entry", "reduce")))
                group = data.draw(st.sampled_from((None, f"exit-{symbol}")))
                quantity = data.draw(st.integers(1, 60))
                await desk.offer(order(symbol, side, quantity, intent, oca_group=group))
            assert all(position.quantity >= 0 for position in desk.view().positions.values())

    asyncio.run(run())

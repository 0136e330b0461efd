"""R23, halts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.models import OrderRequest, Quote, Slice
from sigma9_core.testing.risk_contract import RiskRuleContract, decide, orders
from sigma9_core.testing.risk_views import PRICE, holding, mark, order, shown, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.halts import RESTING, Halts


def rule() -> Halts:
    """Build the rule."""
    return Halts("r23")


def halted(**more: Any) -> RiskView:
    """Show a moment with AAPL halted and MSFT trading."""
    return view(positions=[holding("AAPL")], marks=[mark("AAPL", halted=True), mark("MSFT")], **more)


STOP = {"order_type": "stop", "stop_price": Decimal(98)}


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry in a symbol that trades."""
        return order("MSFT"), halted()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry in one that is halted."""
        return order("AAPL"), halted()


@given(request=orders(("entry",)))
def test_no_entry_of_any_kind_passes_in_a_halt(request: OrderRequest) -> None:
    """Whatever its type, an entry waits for the market."""
    request = request.model_copy(update={"symbol": "AAPL"})

    assert rule().check(request, halted()).outcome == "refuse"


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"order_type": "limit", "limit_price": PRICE},
        {"order_type": "market_on_close"},
        {"order_type": "limit_on_close", "limit_price": PRICE},
    ],
)
def test_a_reducing_order_that_would_act_at_once_waits(terms: dict[str, Any]) -> None:
    """The gate refuses it, by the table, and says that it waits."""
    leave = order("AAPL", "sell", 50, "reduce", **terms)
    decision = decide(rule(), leave, halted())

    assert decision.refused is not None
    assert decision.refused.code == "R23"
    assert "AAPL is halted" in str(decision.refused.reason)
    assert decide(rule(), leave, replace(halted(), marks={"AAPL": mark()})).approved is not None


@pytest.mark.parametrize(
    "terms",
    [
        STOP,
        {**STOP, "protective": True},
        {"order_type": "stop_limit", "stop_price": Decimal(98), "limit_price": Decimal(97)},
        {"order_type": "trailing_stop", "trail_percent": Decimal(1), "protective": True},
        {"order_type": "limit", "limit_price": PRICE, "protective": True},
    ],
)
def test_a_stop_that_guards_a_position_passes(terms: dict[str, Any]) -> None:
    """A position is never without its stop, halt or not."""
    decision = decide(rule(), order("AAPL", "sell", 100, "reduce", **terms), halted())

    assert decision.approved is not None
    assert [verdict.outcome for verdict in decision.verdicts] == ["allow"]


def test_a_kill_is_not_asked() -> None:
    """The kill waits for the market by itself."""
    decision = decide(rule(), order("AAPL", "sell", 100, "kill"), halted())

    assert decision.approved is not None
    assert decision.verdicts == ()


def test_a_symbol_without_a_mark_is_not_known_to_be_halted() -> None:
    """What has no price is for another rule."""
    assert rule().check(order("XYZ"), view(marks=[])).outcome == "allow"


def test_usage_counts_the_halted_symbols_that_concern_us() -> None:
    """Symbols that are held or have working orders count, each once."""
    marks = [mark(symbol, halted=symbol != "NVDA") for symbol in ("AAPL", "MSFT", "NVDA", "TSLA")]
    moment = view(
        positions=[holding("AAPL"), holding("NVDA"), holding("XYZ"), holding("TSLA", 0)],
        working=[shown(order("MSFT"), "a"), shown(order("AAPL"), "b")],
        marks=marks,
    )

    assert (rule().usage(moment).used, rule().usage(moment).limit) == (Decimal(2), Decimal(0))


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 20)), max_size=20))
def test_in_a_halt_a_position_keeps_its_stop_and_nothing_else_goes_out(
    steps: list[tuple[bool, bool, int]],
) -> None:
    """As the feed halts and resumes a symbol, orders that act at once pass exactly while it trades."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        for halt, leaving, quantity in steps:
            desk.tick({})
            quote = Quote("AAPL", desk.clock.now(), 99.9, 100.1, halted=halt)
            desk.portfolio.mark(Slice(desk.clock.now(), quotes=(quote,)))
            have = desk.portfolio.quantity("AAPL")
            if leaving and have:
                stop = order("AAPL", "sell", have, "reduce", oca_group="g", protective=True, **STOP)
                assert (await desk.offer(stop)).approved is not None
                desk.cancel(max(desk.working))
                out = min(Decimal(quantity), have)
                decision = await desk.offer(order("AAPL", "sell", out, "reduce"))
            else:
                decision = await desk.offer(order("AAPL", "buy", quantity))
            assert (decision.approved is not None) == (not halt)
            if decision.approved is not None:
                desk.fill(decision.approved.order_id)

    asyncio.run(run())


def test_the_types_that_rest_are_the_ones_with_a_trigger() -> None:
    """Every other type of order acts at once."""
    assert {"stop", "stop_limit", "trailing_stop"} == RESTING

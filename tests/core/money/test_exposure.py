"""Reservations: what working orders may still do to a position."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.models import OrderView
from sigma9_core.money.exposure import closable, held, is_exit, remaining, reserved
from sigma9_core.testing.risk_views import holding, order, shown, view

orders = st.lists(
    st.builds(
        lambda n, side, quantity, filled, group: shown(
            order(side=side, quantity=quantity, oca_group=group), f"w{n}", filled=min(filled, quantity)
        ),
        st.integers(0, 999),
        st.sampled_from(("buy", "sell")),
        st.integers(1, 100),
        st.integers(0, 100),
        st.sampled_from((None, "g", "h")),
    ),
    max_size=8,
    unique_by=lambda each: each.order_id,
)


def test_what_remains_is_never_negative() -> None:
    """An order that was overfilled has nothing left."""
    assert remaining(shown(order(quantity=10), filled=4)) == 6
    assert remaining(shown(order(quantity=10), filled=12)) == 0


@given(working=orders)
def test_a_group_is_its_largest_leg(working: list[OrderView]) -> None:
    """What is reserved is every lone order and, of each group, the largest remaining leg."""
    for side in ("buy", "sell"):
        mine = [each for each in working if each.side == side]
        expected = sum((remaining(each) for each in mine if each.oca_group is None), Decimal(0))
        for group in ("g", "h"):
            expected += max((remaining(each) for each in mine if each.oca_group == group), default=Decimal(0))

        assert reserved(working, "AAPL", side) == expected
        assert reserved(working, "MSFT", side) == 0


@given(working=orders, quantity=st.integers(-200, 200))
def test_what_can_be_closed_and_what_is_being_closed_fit_the_position(
    working: list[OrderView], quantity: int
) -> None:
    """Working exits and what is free never exceed the position together, and nothing closes the wrong way."""
    intents = {each.order_id: "reduce" for each in working}
    moment = view(positions=[holding("AAPL", quantity)], working=working, intents=intents)  # type: ignore[arg-type]
    free = closable("AAPL", "sell", moment)

    assert free >= 0
    assert free == max(max(quantity, 0) - reserved(working, "AAPL", "sell"), 0)


def test_entries_take_no_place_among_exits() -> None:
    """A working entry on the closing side is no exit."""
    moment = view(positions=[holding("AAPL", 100)], working=[shown(order(side="sell", quantity=70), "w")])

    assert closable("AAPL", "sell", moment) == 100
    assert closable("AAPL", "buy", moment) == 0
    assert closable("MSFT", "sell", moment) == 0


def test_two_groups_share_their_parents_remainder() -> None:
    """Legs in two groups of one parent can't both close the same shares that have yet to come."""
    parent = shown(order(quantity=100), "p", filled=50)
    legs = [shown(order(side="sell", quantity=80, oca_group=g, parent_id="p"), g) for g in ("g", "h")]
    moment = view(
        positions=[holding("AAPL", 120)], working=[parent, *legs], intents={"g": "reduce", "h": "reduce"}
    )

    assert closable("AAPL", "sell", moment) == 120 + 50 - 80 - 80


@pytest.mark.parametrize(("intent", "leaves"), [("entry", False), ("reduce", True), ("kill", True), (None, False)])
def test_exits_are_told_by_intent(intent: str | None, leaves: bool) -> None:
    """Reducing orders and a kill's own are exits; entries and foreign orders are not."""
    assert is_exit(intent) == leaves  # type: ignore[arg-type]


def test_what_is_held_is_signed() -> None:
    """A short position is negative, and what is not held is zero."""
    assert held("AAPL", view(positions=[holding("AAPL", -5)])) == -5
    assert held("MSFT", view()) == 0

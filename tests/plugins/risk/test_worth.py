"""What positions could come to be worth."""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import RiskView
from sigma9_core.models import Intent, OrderView, Position
from sigma9_core.testing.risk_contract import views
from sigma9_core.testing.risk_views import holding, mark, order, shown, view
from sigma9_plugins.risk.worth import Unpriced, openings, worth, worths

AAPL = "AAPL"


def moment(have: int, *orders: tuple[Any, ...], exits: int = 0) -> RiskView:
    """Show `have` shares at 100, entries (side, quantity and more) and exits of that many shares."""
    working = [
        shown(order(AAPL, side, quantity, **(more[0] if more else {})), f"e{n}")
        for n, (side, quantity, *more) in enumerate(orders)
    ]
    intents: dict[str, Intent] = {}
    if exits:
        leave = order(
            AAPL, "sell" if have > 0 else "buy", exits, "reduce", order_type="stop", stop_price=Decimal(98)
        )
        working.append(shown(leave, "stop"))
        intents["stop"] = "reduce"
    return view(positions=[holding(AAPL, have)] if have else [], working=working, intents=intents)


def limit(price: int) -> dict[str, Any]:
    """Make it a limit order."""
    return {"order_type": "limit", "limit_price": Decimal(price)}


@pytest.mark.parametrize(
    ("seen", "low", "high"),
    [
        (moment(50), 5000, 5000),
        (moment(-50), -5000, -5000),
        (moment(50, ("buy", 20)), 5000, 7000),
        (moment(50, ("buy", 20, limit(110))), 5000, 7200),
        (moment(50, ("buy", 20, limit(90))), 5000, 6800),
        (moment(50, ("sell", 20)), 3000, 5000),
        (moment(50, ("sell", 70)), -2000, 5000),
        (moment(50, ("sell", 70, limit(110))), -2200, 5000),
        (moment(50, ("sell", 70), exits=50), -7000, 5000),
        (moment(50, exits=50), 5000, 5000),
        (moment(-50, ("buy", 70)), -5000, 2000),
        (moment(-50, ("buy", 70), exits=50), -5000, 7000),
        (moment(-50, ("sell", 10)), -6000, -5000),
        (moment(0, ("buy", 10), ("sell", 20)), -2000, 1000),
    ],
)
def test_a_position_is_valued_at_the_worst_fills(seen: RiskView, low: Decimal, high: Decimal) -> None:
    """What is held counts at the last price, what comes at its own, and exits only where orders turn it round."""
    position, orders = seen.positions.get(AAPL), openings(seen, foreign=True)

    assert worth(AAPL, position, orders, seen) == (low, high)
    found = worths(seen.positions, orders, seen)
    assert (found.low[AAPL], found.high[AAPL], found.total()) == (low, high, max(high, -low))


@pytest.mark.parametrize(
    ("seen", "side", "low", "high"),
    [
        (moment(50, ("buy", 10)), "buy", 5000, 8000),
        (moment(50, ("buy", 10)), "sell", 3000, 6000),
        (moment(50, ("sell", 40), exits=50), "sell", -6000, 5000),
        (moment(50, exits=50), "sell", -2000, 5000),
        (moment(-50, exits=50), "buy", -5000, 2000),
        (moment(-50, ("buy", 40)), "buy", -5000, 1000),
        (moment(-50), "sell", -7000, -5000),
        (moment(0, ("sell", 10)), "sell", -3000, 0),
        (moment(0), "buy", 0, 2000),
    ],
)
def test_one_more_order_is_counted_in(seen: RiskView, side: str, low: Decimal, high: Decimal) -> None:
    """The order that is being judged counts as those that work, here one of 20 shares."""
    orders = openings(seen, foreign=True)
    found = worths(seen.positions, orders, seen)
    found.add(order(AAPL, side, 20), seen.positions.get(AAPL), orders, seen)

    assert (found.low[AAPL], found.high[AAPL]) == (low, high)


def test_a_group_counts_as_its_dearest_leg() -> None:
    """Of a one-cancels-all group one order alone can fill."""
    seen = moment(
        0,
        ("buy", 20, {"oca_group": "g", **limit(90)}),
        ("buy", 20, {"oca_group": "g", **limit(110)}),
        ("buy", 10),
    )

    assert worths({}, openings(seen, foreign=True), seen).high[AAPL] == 3200


def test_what_has_filled_is_not_counted_twice() -> None:
    """Of a partly filled order the rest counts, and of an overfilled one nothing."""
    seen = view(working=[shown(order(quantity=50), "a", filled=20), shown(order(quantity=5), "b", filled=6)])

    assert worths({}, openings(seen, foreign=True), seen).high[AAPL] == 3000


@pytest.mark.parametrize(("foreign", "high"), [(True, 3000), (False, 1000)])
def test_foreign_orders_count_where_they_are_meant_to(foreign: bool, high: int) -> None:
    """An order of somebody else in the account may open a position, too; an exit of ours does not."""
    leave = shown(order(side="buy", quantity=40, intent="reduce"), "x")
    seen = view(
        working=[shown(order(), "a"), shown(order(quantity=20), "f", foreign=True), leave], intents={"x": "reduce"}
    )

    assert worths({}, openings(seen, foreign=foreign), seen).high[AAPL] == high


def test_without_a_mark_the_cost_stands_for_the_price() -> None:
    """A position that has no price yet is valued at what it has cost."""
    seen = view(positions=[holding(AAPL, 10, average_cost=Decimal(80))], marks=[])

    assert worths(seen.positions, [], seen).total() == 800


@pytest.mark.parametrize(
    "seen",
    [
        view(positions=[holding(AAPL, 10, average_cost=Decimal(0))], marks=[]),
        view(positions=[holding(AAPL, 10, average_cost=Decimal(0))], marks=[mark(AAPL, "NaN")]),
        view(working=[shown(order())], marks=[]),
        view(working=[shown(order(side="sell", oca_group="g"))], marks=[]),
    ],
)
def test_what_has_no_price_is_named(seen: RiskView) -> None:
    """A position or an order that can't be valued is an error that names the symbol."""
    with pytest.raises(Unpriced, match="there is no price of AAPL to value"):
        worths(seen.positions, openings(seen, foreign=True), seen)


@settings(max_examples=50, deadline=None)
@given(seen=views(), request_side=st.sampled_from(("buy", "sell")), quantity=st.integers(1, 500))
def test_the_quick_way_and_the_long_way_agree(seen: RiskView, request_side: str, quantity: int) -> None:
    """Counting everything in one pass gives, symbol by symbol, what looking at each alone gives."""
    orders = openings(seen, foreign=True)
    more = order(AAPL, request_side, quantity)
    try:
        found = worths(seen.positions, orders, seen)
        before = dict(found.low), dict(found.high)
        found.add(more, seen.positions.get(AAPL), orders, seen)
    except Unpriced:
        return
    for symbol in before[0]:
        alone = [each for each in orders if each.symbol == symbol]
        position = seen.positions.get(symbol)
        assert worth(symbol, position, alone, seen) == (before[0][symbol], before[1][symbol])
    mine = [each for each in orders if each.symbol == AAPL]
    assert worth(AAPL, seen.positions.get(AAPL), [*mine, more], seen) == (found.low[AAPL], found.high[AAPL])


sides = st.sampled_from(("buy", "sell"))


@settings(max_examples=100, deadline=None)
@given(
    have=st.integers(-60, 60),
    entries=st.lists(st.tuples(sides, st.integers(1, 60), st.sampled_from((None, "g", "h"))), max_size=5),
    exits=st.integers(0, 60),
)
def test_no_row_of_fills_leads_beyond(have: int, entries: list[tuple[str, int, str | None]], exits: int) -> None:
    """Whichever orders fill, entries and exits, the position stays within what was said, at one price."""
    grouped = [(side, quantity, {"oca_group": group and group + side}) for side, quantity, group in entries]
    seen = moment(have, *grouped, exits=min(exits, abs(have)))
    position: Position | None = seen.positions.get(AAPL)
    low, high = worth(AAPL, position, openings(seen, foreign=True), seen)

    for filled in product((False, True), repeat=len(seen.working)):
        legs: list[OrderView] = [each for each, done in zip(seen.working, filled, strict=True) if done]
        groups = [leg.oca_group for leg in legs if leg.oca_group is not None]
        if len(groups) == len(set(groups)):
            ends = sum((leg.quantity * (1 if leg.side == "buy" else -1) for leg in legs), Decimal(have))
            entered = have * ends < 0 or abs(ends) > abs(have)
            assert not entered or low <= ends * 100 <= high

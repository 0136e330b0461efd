"""The paper exchange fills by its stated rules: never early, and in doubt against the order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from sigma9_core.models import ApprovedOrder, Bar, Quote, Trade
from sigma9_core.testing.orders import approve, request
from sigma9_plugins.testing.paper_room import OPEN, SESSIONS, Exchange, exchange

MINUTE = timedelta(minutes=1)


@pytest.fixture(name="room")
async def _room() -> AsyncIterator[Exchange]:
    """Give an exchange without fees and slippage: the prices then are the rule's own."""
    async with exchange(slippage_percent=0, commission_minimum=0, commission_per_share=0) as room:
        yield room


async def hold(room: Exchange, quantity: int = 100, price: float = 10.0) -> None:
    """Buy at the open of a bar that does not move."""
    await room.order("buy", quantity)
    await room.bar((price, price, price, price))


async def bracket(
    room: Exchange, entry: dict[str, Any], stop: float, profit: float | None = None, quantity: int = 100
) -> list[ApprovedOrder]:
    """Send an entry to buy with a stop, and perhaps a profit leg, as one unit."""
    parent = approve(request(room.symbol, "buy", quantity, **entry))
    legs: dict[str, Any] = {"parent_id": parent.order_id, "oca_group": parent.order_id, "intent": "reduce"}
    group = [parent, approve(request(room.symbol, "sell", quantity, order_type="stop", stop_price=stop, **legs))]
    if profit is not None:
        limit = request(room.symbol, "sell", quantity, order_type="limit", limit_price=profit, **legs)
        group.append(approve(limit))
    await room.broker.submit(group)
    return group


# --- bars: one order ------------------------------------------------------------------------------------------

BARS: list[tuple[str, dict[str, Any], tuple[float, float, float, float], str | None]] = [
    ("buy", {}, (10.0, 10.5, 9.5, 10.2), "10.00"),
    ("sell", {}, (10.0, 10.5, 9.5, 10.2), "10.00"),
    ("buy", {"order_type": "limit", "limit_price": 9.8}, (10.0, 10.5, 9.7, 10.2), "9.80"),
    ("buy", {"order_type": "limit", "limit_price": 9.7}, (10.0, 10.5, 9.7, 10.2), None),  # touched, not passed
    ("buy", {"order_type": "limit", "limit_price": 10.2}, (10.0, 10.5, 9.7, 10.2), "10.00"),  # the open is better
    ("sell", {"order_type": "limit", "limit_price": 10.4}, (10.0, 10.5, 9.7, 10.2), "10.40"),
    ("sell", {"order_type": "limit", "limit_price": 10.5}, (10.0, 10.5, 9.7, 10.2), None),
    ("sell", {"order_type": "limit", "limit_price": 9.9}, (10.0, 10.5, 9.7, 10.2), "10.00"),
    ("buy", {"order_type": "stop", "stop_price": 10.4}, (10.0, 10.5, 9.7, 10.2), "10.40"),
    ("buy", {"order_type": "stop", "stop_price": 10.6}, (10.0, 10.5, 9.7, 10.2), None),
    ("buy", {"order_type": "stop", "stop_price": 10.4}, (10.8, 10.9, 10.7, 10.7), "10.80"),  # a gap: the open
    ("sell", {"order_type": "stop", "stop_price": 9.8}, (10.0, 10.5, 9.7, 10.2), "9.80"),
    ("sell", {"order_type": "stop", "stop_price": 9.8}, (9.2, 9.3, 9.1, 9.2), "9.20"),
    ("sell", {"order_type": "stop", "stop_price": 9.6}, (10.0, 10.5, 9.7, 10.2), None),
    (
        "buy",
        {"order_type": "stop_limit", "stop_price": 10.4, "limit_price": 10.45},
        (10, 10.5, 9.7, 10.2),
        "10.40",
    ),
    ("buy", {"order_type": "stop_limit", "stop_price": 10.4, "limit_price": 10.3}, (10, 10.5, 9.7, 10.2), None),
    ("buy", {"order_type": "stop_limit", "stop_price": 10.4, "limit_price": 10.5}, (10.8, 10.9, 10.7, 10.8), None),
    (
        "buy",
        {"order_type": "stop_limit", "stop_price": 10.4, "limit_price": 10.5},
        (10.8, 10.9, 10.4, 10.8),
        "10.50",
    ),
    ("sell", {"order_type": "stop_limit", "stop_price": 9.8, "limit_price": 9.7}, (10, 10.5, 9.6, 10), "9.80"),
    ("buy", {"order_type": "limit", "limit_price": 9.8, "time_in_force": "ioc"}, (10.0, 10.5, 9.7, 10.2), None),
    ("buy", {"order_type": "limit", "limit_price": 10.1, "time_in_force": "fok"}, (10.0, 10.5, 9.7, 10), "10.00"),
]


@pytest.mark.parametrize(("side", "terms", "bar", "price"), BARS)
async def test_bar(
    room: Exchange, side: Any, terms: dict[str, Any], bar: tuple[float, float, float, float], price: str | None
) -> None:
    """On a bar an order fills at the open where that is good enough, else at its own price, or not at all."""
    order = await room.order(side, 100, **terms)
    await room.bar(bar)

    assert room.prices(order) == ([(100, price)] if price else [])


async def test_touch_fills_where_the_setting_says_so() -> None:
    """With `limit_fill: touch` a resting limit order fills when its price is met."""
    async with exchange(limit_fill="touch") as room:
        order = await room.order("buy", 100, order_type="limit", limit_price=9.7)
        await room.bar((10.0, 10.5, 9.7, 10.2))

        assert room.prices(order) == [(100, "9.70")]


async def test_bar_slippage_and_spread() -> None:
    """A market order pays half the spread of a fresh quote, and slippage, on top of the open; a stop likewise."""
    async with exchange(slippage_percent=0.1) as room:
        now = room.now()
        await room.slice(Quote(room.symbol, now, 9.98, 10.02), at=now)
        market = await room.order("buy", 100)
        stop = await room.order("sell", 100, order_type="stop", stop_price=9.5, intent="reduce")
        await room.bar((10.0, 10.1, 9.4, 9.9))

        assert room.prices(market) == [(100, "10.03")]  # 10 and 0.02 and 0.01
        assert room.prices(stop) == [(100, "9.47")]  # 9.5 less 0.02 less 0.0095, down to the tick


async def test_bar_that_began_before_the_order(room: Exchange) -> None:
    """An order made inside a bar does not fill on it, at no price; the next bar's open is its first chance."""
    start = room.now()
    room.clock.advance(start + timedelta(seconds=30))
    order = await room.order("buy", 100)
    await room.slice(Bar(room.symbol, start, 10, 11, 9, 10, 1e6), at=start + MINUTE)
    assert room.prices(order) == []
    await room.bar((10.3, 10.4, 10.2, 10.3))

    assert room.prices(order) == [(100, "10.30")]
    assert room.fills(order)[0].ts == start + 2 * MINUTE


async def test_bar_volume_limits_fills(room: Exchange) -> None:
    """A bar fills a tenth of its volume, shared by all orders; what remains goes on at the next bar's open."""
    first = await room.order("buy", 1000)
    second = await room.order("buy", 100)
    await room.bar((10.0, 10.0, 10.0, 10.0), volume=6_000)
    await room.bar((10.1, 10.1, 10.1, 10.1), volume=10_000)

    assert room.prices(first) == [(600, "10.00"), (400, "10.10")]
    assert room.prices(second) == [(100, "10.10")]


async def test_small_volumes_add_up(room: Exchange) -> None:
    """Less than a share of budget is kept for the next trade, so that a thin symbol fills in the end."""
    order = await room.order("buy", 2)
    for _ in range(4):
        await room.trade(10.0, size=6)

    assert room.prices(order) == [(1, "10.00"), (1, "10.00")]


async def test_fill_or_kill_and_immediate_or_cancel(room: Exchange) -> None:
    """Fill-or-kill takes all at once or nothing; immediate-or-cancel takes what there is."""
    fok = await room.order("buy", 1000, time_in_force="fok")
    ioc = await room.order("buy", 1000, time_in_force="ioc")
    await room.bar((10.0, 10.0, 10.0, 10.0), volume=6_000)

    assert (room.prices(fok), room.end(fok)) == (
        [],
        ("cancelled", "fill or kill: not all of it could be had at once"),
    )
    assert room.prices(ioc) == [(600, "10.00")]
    assert room.end(ioc) == ("cancelled", "immediate or cancel: the rest could not be had at once")


# --- bars: several orders, the pessimistic path ---------------------------------------------------------------


async def test_stop_and_limit_in_one_bar(room: Exchange) -> None:
    """Where one bar holds both legs, the stop is taken to have come first."""
    await hold(room)
    legs: dict[str, Any] = {"oca_group": "g", "intent": "reduce"}
    profit = await room.order("sell", 100, order_type="limit", limit_price=10.5, **legs)
    stop = await room.order("sell", 100, order_type="stop", stop_price=9.5, **legs)
    await room.bar((10.0, 11.0, 9.0, 10.5))

    assert room.prices(stop) == [(100, "9.50")]
    assert room.end(profit) is not None
    assert room.prices(profit) == []


async def test_open_beyond_the_limit_comes_first(room: Exchange) -> None:
    """A bar that opens beyond the profit's price fills it there: the open comes before everything else."""
    await hold(room)
    legs: dict[str, Any] = {"oca_group": "g", "intent": "reduce"}
    stop = await room.order("sell", 100, order_type="stop", stop_price=9.5, **legs)
    profit = await room.order("sell", 100, order_type="limit", limit_price=10.5, **legs)
    await room.bar((10.8, 11.0, 9.0, 9.5))

    assert room.prices(profit) == [(100, "10.80")]
    assert room.prices(stop) == []


@pytest.mark.parametrize(
    ("entry", "bar", "entered", "left"),
    [
        ({}, (10.0, 11.0, 9.0, 10.5), "10.00", "9.50"),
        ({"order_type": "limit", "limit_price": 9.8}, (10.0, 11.0, 9.0, 10.5), "9.80", "9.50"),
        ({"order_type": "stop", "stop_price": 10.2}, (10.0, 11.0, 9.0, 10.5), "10.20", "9.50"),
        ({}, (10.0, 11.0, 9.6, 10.5), "10.00", None),
        ({}, (9.4, 9.6, 9.3, 9.5), "9.40", "9.40"),  # the stop lies above the entry: out at once
    ],
)
async def test_stop_guards_in_the_bar_of_its_entry(
    room: Exchange, entry: dict[str, Any], bar: Any, entered: str, left: str | None
) -> None:
    """A child's stop is taken to be reached after the entry in the same bar; its profit leg waits for the next."""
    parent, stop, profit = await bracket(room, entry, 9.5, 10.6)
    await room.bar(bar)

    assert room.prices(parent) == [(100, entered)]
    assert room.prices(stop) == ([(100, left)] if left else [])
    assert room.prices(profit) == []
    await room.bar((10.7, 10.7, 10.7, 10.7))
    assert bool(room.prices(profit)) is (left is None)


async def test_children_follow_a_partial_entry(room: Exchange) -> None:
    """A stop closes no more than its entry has opened; when the rest of the entry dies, so does the stop's."""
    parent, stop = await bracket(room, {"order_type": "limit", "limit_price": 10.0}, 9.5)
    await room.bar((10.0, 10.0, 10.0, 10.0), volume=400)
    assert room.prices(parent) == [(40, "10.00")]
    await room.bar((9.4, 9.4, 9.4, 9.4), volume=10)  # one share of the stop, at the open; one of the entry is less
    await room.broker.cancel(parent.order_id)
    await room.bar((9.3, 9.3, 9.3, 9.3))

    sold, bought = (sum(q for q, _ in room.prices(order)) for order in (stop, parent))
    assert sold == bought
    assert room.end(stop) == ("cancelled", f"its parent filled no more than {bought} shares")
    assert await room.position() == 0


async def test_trailing_stop_on_bars(room: Exchange) -> None:
    """A bar's high moves a trailing stop for the next bar only; its open, which comes first, for the same one."""
    await hold(room)
    order = await room.order("sell", 100, order_type="trailing_stop", trail_amount=0.5, intent="reduce")
    await room.bar((10.0, 11.0, 9.6, 10.9))  # 11.0 would have stopped it at 10.5
    assert room.prices(order) == []
    (found,) = await room.broker.open_orders()
    assert str(found.stop_price) == "10.50"

    await room.bar((11.4, 11.4, 10.95, 11.0))  # the open alone has moved it to 10.9
    assert room.prices(order) == []
    await room.bar((11.0, 11.0, 10.8, 10.9))

    assert room.prices(order) == [(100, "10.90")]


async def test_trailing_stop_to_buy(room: Exchange) -> None:
    """A trailing stop to buy follows the market down."""
    await room.bar((10.0, 10.0, 10.0, 10.0))
    order = await room.order("buy", 100, order_type="trailing_stop", trail_percent=5)
    await room.bar((10.0, 10.1, 8.0, 8.1))
    await room.bar((8.2, 8.39, 8.2, 8.3))
    assert room.prices(order) == []
    await room.bar((8.3, 8.5, 8.3, 8.5))

    assert room.prices(order) == [(100, "8.40")]


async def test_trailing_child_starts_at_its_entry(room: Exchange) -> None:
    """A trailing stop that is a child trails from its parent's price on."""
    parent = approve(request(room.symbol, "buy", 100))
    child = request(
        room.symbol,
        "sell",
        100,
        order_type="trailing_stop",
        trail_amount=1,
        parent_id=parent.order_id,
        intent="reduce",
    )
    trail = approve(child)
    await room.broker.submit([parent, trail])
    await room.bar((10.0, 12.0, 9.5, 10.2))  # the high may be before the low: the stop stays 9.0 in this bar
    assert room.prices(trail) == []
    await room.bar((10.2, 10.3, 9.15, 9.3))

    assert room.prices(trail) == [(100, "9.20")]  # from the close at 10.2


# --- trades and quotes ----------------------------------------------------------------------------------------


async def test_trade_at_the_orders_own_time(room: Exchange) -> None:
    """A trade at the very time of the order is not behind it, and fills nothing."""
    order = await room.order("buy", 100)
    now = room.now()
    await room.slice(Trade(room.symbol, now, 10.0, 1e6), at=now)
    assert room.prices(order) == []
    await room.trade(10.1)

    assert room.prices(order) == [(100, "10.10")]


async def test_trades_without_quotes(room: Exchange) -> None:
    """Without a fresh quote a market order takes a tenth of each trade, at its price."""
    order = await room.order("buy", 100)
    await room.trade(10.0, size=600)
    await room.trade(10.2, size=900)

    assert room.prices(order) == [(60, "10.00"), (40, "10.20")]


async def test_fresh_quote_beats_trades(room: Exchange) -> None:
    """With a fresh quote a market order waits for the next one, and pays its ask, up to the size shown."""
    await room.quote(9.9, 10.1, ask_size=70.5)
    order = await room.order("buy", 100)
    now = room.now() + timedelta(seconds=2)
    await room.slice(
        Trade(room.symbol, now - timedelta(seconds=1), 10.0, 1e6),
        Quote(room.symbol, now, 9.9, 10.1, 50, 70.5),
        at=now,
    )
    await room.quote(9.9, 10.2)

    assert room.prices(order) == [(70, "10.10"), (30, "10.20")]


async def test_one_quote_fills_once(room: Exchange) -> None:
    """Two orders share the size that a quote shows, the older one first."""
    first = await room.order("sell", 80)
    second = await room.order("sell", 80)
    await room.quote(10.0, 10.1, bid_size=100)

    assert (room.prices(first), room.prices(second)) == ([(80, "10.00")], [(20, "10.00")])


async def test_resting_limit_on_trades(room: Exchange) -> None:
    """A resting limit order fills at its limit when a trade passes it, not when one touches it."""
    await room.quote(9.9, 10.1)
    order = await room.order("buy", 100, order_type="limit", limit_price=9.8)
    await room.trade(9.8)
    assert room.prices(order) == []
    await room.trade(9.79, size=500)
    await room.quote(9.7, 9.75)

    assert room.prices(order) == [(50, "9.80"), (50, "9.75")]


async def test_marketable_limit_waits_for_the_quote(room: Exchange) -> None:
    """A limit order above the ask pays the ask, not its limit."""
    await room.quote(9.9, 10.0)
    order = await room.order("buy", 100, order_type="limit", limit_price=10.5)
    now = room.now() + timedelta(seconds=2)
    trade = Trade(room.symbol, now - timedelta(seconds=1), 10.0, 1e6)
    await room.slice(trade, Quote(room.symbol, now, 9.9, 10.0), at=now)

    assert room.prices(order) == [(100, "10.00")]


async def test_stop_on_trades(room: Exchange) -> None:
    """A trade sets a stop off, and the next quote fills it; where there are trades a quote sets nothing off."""
    await room.quote(9.9, 10.1)
    await room.trade(10.0)
    order = await room.order("sell", 100, order_type="stop", stop_price=9.5, intent="reduce")
    await room.quote(9.0, 10.1)
    assert room.prices(order) == []
    now = room.now() + timedelta(seconds=2)
    trade = Trade(room.symbol, now - timedelta(seconds=1), 9.5, 100)
    await room.slice(trade, Quote(room.symbol, now, 9.3, 9.5), at=now)

    assert room.prices(order) == [(100, "9.30")]


async def test_stop_on_quotes_alone(room: Exchange) -> None:
    """In a symbol without trades a stop to sell is set off by the bid, and fills at it."""
    await room.quote(9.9, 10.1)
    order = await room.order("sell", 100, order_type="stop", stop_price=9.5, intent="reduce")
    await room.quote(9.6, 9.8)
    assert room.prices(order) == []
    await room.quote(9.4, 9.6)

    assert room.prices(order) == [(100, "9.40")]


async def test_trailing_stop_trade_by_trade(room: Exchange) -> None:
    """A trailing stop follows each trade up, and sells at the first one that is its distance lower."""
    await room.trade(10.0)
    order = await room.order("sell", 100, order_type="trailing_stop", trail_amount=0.3, intent="reduce")
    for price in (10.2, 10.05, 10.6, 10.31):
        await room.trade(price)
    assert room.prices(order) == []
    await room.trade(10.3)

    assert room.prices(order) == [(100, "10.30")]


async def test_bar_after_its_trades_fills_nothing(room: Exchange) -> None:
    """Where the trades inside a bar were given, in its slice or before, the bar itself is no second chance."""
    start = room.now()
    order = await room.order("buy", 100, order_type="limit", limit_price=9.5)
    await room.trade(10.0)
    await room.slice(Bar(room.symbol, start, 10, 10, 9, 10, 1e6), at=start + MINUTE)
    later = start + MINUTE
    await room.slice(
        Bar(room.symbol, later, 10, 10, 9, 10, 1e6),
        Trade(room.symbol, later + timedelta(seconds=59), 9.6, 1e6),
        at=later + MINUTE,
    )

    assert room.prices(order) == []


async def test_orders_share_a_trade(room: Exchange) -> None:
    """Two orders share the tenth of a trade's volume, the older one first."""
    first = await room.order("buy", 80)
    second = await room.order("buy", 80)
    await room.trade(10.0, size=1000)

    assert (room.prices(first), room.prices(second)) == ([(80, "10.00")], [(20, "10.00")])


async def test_children_wait_for_later_data(room: Exchange) -> None:
    """A child does not trade on the very quote that filled its parent."""
    parent, _, profit = await bracket(room, {}, 9.0, 9.9)
    await room.quote(9.95, 10.0)
    assert room.prices(parent) == [(100, "10.00")]
    assert room.prices(profit) == []
    await room.quote(9.95, 10.0)

    assert room.prices(profit) == [(100, "9.95")]


async def test_a_change_does_not_reach_back(room: Exchange) -> None:
    """A bar that began before an order was changed fills it at neither its old nor its new price."""
    order = await room.order("buy", 100, order_type="limit", limit_price=9.0)
    start = room.now()
    room.clock.advance(start + timedelta(seconds=30))
    changed = order.request.model_copy(update={"limit_price": Decimal("9.8")})
    await room.broker.replace(approve(changed, order.order_id))
    await room.slice(Bar(room.symbol, start, 10, 10, 8.5, 10, 1e6), at=start + MINUTE)
    assert room.prices(order) == []
    await room.bar((10, 10, 9.7, 10))

    assert room.prices(order) == [(100, "9.80")]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
async def test_bad_numbers_fill_nothing(room: Exchange, bad: float) -> None:
    """A price that is no number above zero is passed over, wherever it stands."""
    order = await room.order("buy", 100)
    await room.trade(bad)
    await room.quote(bad, bad)
    await room.quote(None, None)
    await room.bar((10.0, 10.0, bad, 10.0))
    await room.trade(10.0, size=bad)
    assert room.prices(order) == []
    await room.quote(bad, 10.0)

    assert room.prices(order) == [(100, "10.00")]


async def test_halted_symbols_do_not_fill(room: Exchange) -> None:
    """While a symbol is halted nothing in it fills, not even on its trades; it goes on with the next quote."""
    order = await room.order("buy", 100)
    await room.quote(9.9, 10.0, halted=True)
    await room.trade(10.0)
    await room.bar((10.0, 10.0, 10.0, 10.0))
    assert room.prices(order) == []
    await room.quote(9.9, 10.4)

    assert room.prices(order) == [(100, "10.40")]


# --- sessions -------------------------------------------------------------------------------------------------


async def test_outside_regular_hours(room: Exchange) -> None:
    """Outside regular hours only orders that say so fill; the others wait for the open."""
    room.clock.advance(SESSIONS[1].open - timedelta(hours=1))
    plain = await room.order("buy", 100)
    early = await room.order("buy", 100, outside_rth=True)
    await room.trade(9.0)
    await room.bar((9.1, 9.1, 9.1, 9.1))
    assert (room.prices(plain), room.prices(early)) == ([], [(100, "9.00")])
    room.clock.advance(SESSIONS[1].open)
    await room.bar((9.5, 9.5, 9.5, 9.5))

    assert room.prices(plain) == [(100, "9.50")]


async def test_bar_that_begins_at_the_close(room: Exchange) -> None:
    """A bar that begins at the close lies outside regular hours, though the close itself does not."""
    room.clock.advance(SESSIONS[0].close)
    order = await room.order("buy", 100, time_in_force="gtc")
    await room.bar((10.0, 10.0, 10.0, 10.0))

    assert room.prices(order) == []


async def test_orders_on_the_close(room: Exchange) -> None:
    """Orders on the close get the last price of the session, whole; a limit that it does not keep to expires."""
    market = await room.order("buy", 5000, order_type="market_on_close")
    limit = await room.order("buy", 100, order_type="limit_on_close", limit_price=9.9)
    good = await room.order("buy", 100, order_type="limit_on_close", limit_price=10.5)
    await room.bar((9.0, 9.0, 9.0, 9.0))
    assert room.heard.fills() == []
    room.clock.advance(SESSIONS[0].close - MINUTE)
    await room.bar((9.5, 10.0, 9.5, 10.0), volume=100)

    assert room.prices(market) == [(5000, "10.00")]
    assert room.prices(good) == [(100, "10.00")]
    assert room.end(limit) == ("expired", "there was no closing price that it could have")


async def test_order_on_the_close_without_a_price(room: Exchange) -> None:
    """An order on the close that came after the last trade has no closing price that it could have."""
    room.clock.advance(SESSIONS[0].close - 2 * MINUTE)
    await room.trade(10.0)
    order = await room.order("buy", 100, order_type="market_on_close")
    await room.slice(at=SESSIONS[1].open - timedelta(minutes=5))

    assert room.end(order) == ("expired", "there was no closing price that it could have")


async def test_close_after_a_jump(room: Exchange) -> None:
    """Where the clock jumps over the close, the close still comes before the next day's data."""
    order = await room.order("buy", 100, order_type="market_on_close")
    day = await room.order("buy", 100, order_type="limit", limit_price=9.0)
    await room.trade(10.0)
    room.clock.advance(SESSIONS[1].open)
    await room.bar((8.0, 8.0, 8.0, 8.0))

    assert room.prices(order) == [(100, "10.00")]
    assert room.prices(day) == []
    assert room.end(day) == ("expired", "its day is over")


async def test_orders_at_the_open(room: Exchange) -> None:
    """An `opg` order gets the next session's first price, whole, or ends there."""
    market = await room.order("buy", 5000, time_in_force="opg")
    limit = await room.order("buy", 100, order_type="limit", limit_price=9.0, time_in_force="opg")
    await room.trade(10.0)
    assert room.heard.fills() == []
    room.clock.advance(SESSIONS[1].open)
    await room.bar((11.0, 11.0, 8.0, 11.0), volume=100)

    assert room.prices(market) == [(5000, "11.00")]
    assert room.end(limit) == ("expired", "the open at 11.0 was worse than its limit")


async def test_day_order_on_the_last_bar(room: Exchange) -> None:
    """The bar that ends at the close still fills a day order, though the session is over when it is known."""
    room.clock.advance(SESSIONS[0].close - MINUTE)
    order = await room.order("buy", 100)
    await room.bar((10.0, 10.0, 10.0, 10.0))

    assert room.prices(order) == [(100, "10.00")]
    assert room.fills(order)[0].ts == SESSIONS[0].close


def test_open_is_half_past_nine() -> None:
    """The room's sessions have the hours that these tests rely on."""
    assert SESSIONS[0].open == OPEN

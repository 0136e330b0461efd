"""Whatever the orders and the market: no look-ahead, no price out of reach, and money that adds up to the cent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.errors import BrokerError
from sigma9_core.models import ApprovedOrder, Bar, Fill, OrderRequest, Quote, Side, Trade
from sigma9_core.testing.orders import approve, request
from sigma9_plugins.brokers.order_matching import MatchingRules
from sigma9_plugins.testing.paper_room import Exchange, exchange

MINUTE = timedelta(minutes=1)
SLIPPAGE = Decimal("0.05") / 100
HALF_SPREAD = Decimal("0.05")
SYMBOLS = ("TEST", "OTHER")

prices = st.integers(800, 1200).map(lambda cents: cents / 100)
quantities = st.integers(1, 2_000)


@dataclass(frozen=True)
class Send:
    """Send a group of orders: requests, the first the parent of the others where `family` says so."""

    requests: tuple[OrderRequest, ...]
    family: bool


@dataclass(frozen=True)
class Change:
    """Cancel or change the order at a place of the list."""

    what: Literal["cancel", "replace"]
    place: int
    quantity: int


@dataclass(frozen=True)
class Move:
    """A minute of the market, as bars or as trades with quotes."""

    bars: tuple[tuple[float, float, float, float], ...]
    volume: int
    ticks: bool


@st.composite
def requests(
    draw: st.DrawFn, symbol: str | None = None, side: Side | None = None, group: str | None = None
) -> OrderRequest:
    """Draw an order of any type; a third of them are in a one-cancels-all group of their symbol."""
    symbol = symbol or draw(st.sampled_from(SYMBOLS))
    kind = draw(st.sampled_from(("market", "limit", "stop", "stop_limit", "trailing_stop", "market_on_close")))
    terms: dict[str, Any] = {"order_type": kind, "oca_group": group}
    if kind in ("limit", "stop_limit"):
        terms["limit_price"] = draw(prices)
    if kind in ("stop", "stop_limit"):
        terms["stop_price"] = draw(prices)
    if kind == "trailing_stop":
        terms[draw(st.sampled_from(("trail_amount", "trail_percent")))] = draw(st.integers(1, 200)) / 100
    if kind in ("market", "limit"):
        terms["time_in_force"] = draw(st.sampled_from(("day", "gtc", "ioc", "fok")))
    if group is None and draw(st.integers(0, 2)) == 0:
        terms["oca_group"] = f"{symbol}-{draw(st.integers(1, 3))}"
    sides: list[Side] = ["buy", "sell"] if side is None else [side]
    return request(
        symbol,
        draw(st.sampled_from(sides)),
        draw(quantities),
        intent=draw(st.sampled_from(("entry", "reduce"))),
        **terms,
    )


@st.composite
def sends(draw: st.DrawFn) -> Send:
    """Draw one order, or an entry with two legs."""
    if draw(st.booleans()):
        return Send((draw(requests()),), family=False)
    symbol = draw(st.sampled_from(SYMBOLS))
    group = f"{symbol}-legs-{draw(st.integers(0, 10**6))}"
    parent = draw(requests(symbol, "buy"))
    legs = [draw(requests(symbol, "sell", group)) for _ in range(2)]
    legs = [leg.model_copy(update={"intent": "reduce", "time_in_force": "day"}) for leg in legs]
    return Send((parent, *legs), family=True)


@st.composite
def bars(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """Draw a bar whose prices are in order."""
    drawn = sorted(draw(st.tuples(prices, prices, prices, prices)))
    opens, close = draw(st.permutations(drawn[1:3]))
    return opens, drawn[3], drawn[0], close


moves = st.builds(Move, st.tuples(bars(), bars()), st.one_of(st.integers(0, 3_000), st.just(10**7)), st.booleans())
changes = st.builds(Change, st.sampled_from(("cancel", "replace")), st.integers(0, 30), quantities)
days = st.lists(st.one_of(sends(), changes, moves, moves), min_size=4, max_size=30)


class Day:
    """Plays a drawn day, and remembers when each order was sent and what the market showed."""

    def __init__(self, room: Exchange) -> None:
        self.room = room
        self.orders: list[ApprovedOrder] = []
        self.terms: dict[str, tuple[datetime, OrderRequest]] = {}
        """The time of each order's newest terms, and these."""
        self.ranges: dict[tuple[str, datetime], tuple[float, float]] = {}
        """Low and high of each symbol's data, by the time at which a fill on them is stamped."""
        self.passed: set[tuple[str, datetime]] = set()
        """Trades: one that passes a resting limit fills it at the limit, wherever the trade itself lies."""
        self.changed: set[str] = set()
        self.checked = 0

    async def play(self, steps: Sequence[Send | Change | Move]) -> None:
        """Play the steps, and check the fills after each."""
        for step in steps:
            if isinstance(step, Send):
                await self._send(step)
            elif isinstance(step, Change):
                await self._change(step)
            elif step.ticks:
                await self._ticks(step)
            else:
                await self._bars(step)
            self._check()

    async def _send(self, step: Send) -> None:
        first = approve(step.requests[0])
        rest = [each.model_copy(update={"parent_id": first.order_id}) for each in step.requests[1:]]
        group = [first, *map(approve, rest)]
        await self.room.broker.submit(group)
        for order in group:
            self.orders.append(order)
            self.terms[order.order_id] = (self.room.now(), order.request)

    async def _change(self, step: Change) -> None:
        if not self.orders:
            return
        order_id = self.orders[step.place % len(self.orders)].order_id
        changed = self.terms[order_id][1].model_copy(update={"quantity": Decimal(step.quantity)})
        try:
            if step.what == "cancel":
                await self.room.broker.cancel(order_id)
            else:
                await self.room.broker.replace(approve(changed, order_id))
                self.terms[order_id] = (self.room.now(), changed)
                self.changed.add(order_id)
        except BrokerError:
            pass  # it has ended, or can't be changed so

    async def _bars(self, step: Move) -> None:
        start = self.room.now()
        end = start + MINUTE
        items = []
        for symbol, (opens, high, low, close) in zip(SYMBOLS, step.bars, strict=True):
            items.append(Bar(symbol, start, opens, high, low, close, step.volume))
            self.ranges[symbol, end] = (low, high)
        await self.room.slice(*items, at=end)

    async def _ticks(self, step: Move) -> None:
        start = self.room.now()
        end = start + timedelta(seconds=10)
        items: list[Trade | Quote] = []
        for symbol, bar in zip(SYMBOLS, step.bars, strict=True):
            for number, price in enumerate(bar):
                at = start + timedelta(seconds=2 * number)  # the first at the very time of the orders
                items.append(Trade(symbol, at, price, step.volume / 4))
                self.ranges[symbol, at] = (min(bar), max(bar))
                self.passed.add((symbol, at))
            items.append(Quote(symbol, end, bar[3] - 0.05, bar[3] + 0.05, step.volume, step.volume))
            self.ranges[symbol, end] = (min(bar) - 0.05, max(bar) + 0.05)
        await self.room.slice(*items, at=end)

    def _check(self) -> None:
        for fill in self.room.heard.fills()[self.checked :]:
            self._check_fill(fill)
            self.checked += 1

    def _check_fill(self, fill: Fill) -> None:
        since, terms = self.terms[fill.order_id]
        low, high = self.ranges[fill.symbol, fill.ts]
        margin = Decimal("0.011") + HALF_SPREAD + Decimal(high) * SLIPPAGE
        assert fill.ts > since, "a fill at or before the time of its order"
        at_limit = (fill.symbol, fill.ts) in self.passed and fill.price == terms.limit_price
        assert at_limit or Decimal(low) - margin <= fill.price <= Decimal(high) + margin
        assert fill.quantity > 0
        assert fill.quantity == fill.quantity.to_integral_value()
        assert fill.price == fill.price.quantize(Decimal("0.01"))
        if terms.limit_price is not None:
            better = fill.price <= terms.limit_price if fill.side == "buy" else fill.price >= terms.limit_price
            assert better, "a fill beyond its limit"


def by_order(fills: Sequence[Fill]) -> dict[str, Decimal]:
    """Add up what filled."""
    found: dict[str, Decimal] = {}
    for fill in fills:
        found[fill.order_id] = found.get(fill.order_id, Decimal(0)) + fill.quantity
    return found


@settings(max_examples=150, deadline=None)
@given(days)
def test_any_day(steps: list[Send | Change | Move]) -> None:
    """No fill is early, out of range or too large; no group fills two legs; cash and positions fit the fills."""

    async def work() -> None:
        async with exchange(leverage=10) as room:
            day = Day(room)
            await day.play(steps)
            fills = room.heard.fills()
            filled = by_order(fills)
            for order in day.orders:
                assert filled.get(order.order_id, 0) <= day.terms[order.order_id][1].quantity
                parent = order.request.parent_id
                if parent is not None and order.order_id not in day.changed:
                    assert filled.get(order.order_id, 0) <= filled.get(parent, 0), "more closed than opened"
            spent = sum((f.quantity * f.price * (1 if f.side == "buy" else -1) for f in fills), Decimal(0))
            fees = sum((fill.commission for fill in fills), Decimal(0))
            assert (await room.broker.account()).cash == 100_000 - spent - fees
            for symbol in SYMBOLS:
                net = sum(f.quantity * (1 if f.side == "buy" else -1) for f in fills if f.symbol == symbol)
                held = [p.quantity for p in await room.broker.positions() if p.symbol == symbol]
                assert held == ([net] if net else [])
            assert all(fill.commission == fill.commission.quantize(Decimal("0.01")) for fill in fills)
            assert len({fill.exec_id for fill in fills}) == len(fills)
            assert list(await room.broker.executions(fills[0].ts if fills else room.now())) == fills
            _check_ends(room, day)

    asyncio.run(work())


def _check_ends(room: Exchange, day: Day) -> None:
    """Every order ends once at most, and nothing of it is reported behind its end."""
    for order in day.orders:
        kinds = [kind for kind in room.heard.kinds(order.order_id) if kind != "replaced"]
        ends = [kind for kind in kinds if kind in ("cancelled", "expired", "rejected")]
        assert len(ends) <= 1
        assert kinds[0] in ("accepted", "rejected")
        if ends:
            assert kinds[-1] == ends[0]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(("limit", "stop")), prices, quantities), min_size=2, max_size=5),
    st.lists(moves, min_size=1, max_size=8),
)
def test_one_cancels_all(legs: list[tuple[Any, float, int]], market: list[Move]) -> None:
    """However many legs a group has and whatever the market does, no two of them fill."""

    async def work() -> None:
        async with exchange() as room:
            day = Day(room)
            for kind, price, quantity in legs:
                terms = {"order_type": kind, f"{kind}_price": price, "oca_group": "g", "intent": "reduce"}
                await day.play([Send((request("TEST", "sell", quantity, **terms),), family=False)])
            await day.play(market)
            assert len(by_order(room.heard.fills())) <= 1

    asyncio.run(work())


@given(
    st.lists(st.tuples(st.integers(1, 5_000), st.integers(1, 200_000)), min_size=1, max_size=12),
    st.decimals("0", "0.05", places=4),
    st.decimals("0", "5", places=2),
    st.decimals("0", "3", places=2),
)
def test_commission(parts: list[tuple[int, int]], share: Decimal, minimum: Decimal, maximum: Decimal) -> None:
    """An order's commission is the same in however many parts it fills: whole cents, and no part below zero."""
    rules = MatchingRules(
        commission_per_share=share, commission_minimum=minimum, commission_maximum_percent=maximum
    )
    quantity = value = paid = Decimal(0)
    for size, cents in parts:
        quantity, value = quantity + size, value + Decimal(size) * cents / 100
        due = rules.commission(quantity, value)
        assert due >= paid
        assert due == due.quantize(Decimal("0.01"))
        paid = due
    assert paid <= value * maximum / 100 + Decimal("0.005")
    assert paid == rules.commission(quantity, value)


@given(st.sampled_from(("buy", "sell")), st.decimals("0.0001", "5000", places=6), st.decimals("0", "2", places=3))
def test_slippage_is_against_the_order(side: Side, price: Decimal, percent: Decimal) -> None:
    """Slippage never helps, lies on the tick, and is no more than a tick too much."""
    got = MatchingRules(slippage_percent=percent).slipped(side, price)
    loss = got - price if side == "buy" else price - got
    tick = Decimal("0.01") if got >= 1 else Decimal("0.0001")

    assert got > 0
    assert got == got.quantize(tick)
    if got > Decimal("0.0001"):
        assert 0 <= loss <= price * percent / 100 + Decimal("0.01")

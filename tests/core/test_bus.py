"""The bus: every event once, to mailboxes that are bounded by the rules of each type."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.bus import LOG_ROOM, EventBus, Interest, Subscription
from sigma9_core.events import (
    Event,
    EventData,
    EventType,
    LogLine,
    MarketData,
    TradeEvent,
    WatchlistUpdate,
    encode,
)
from sigma9_core.models import OrderStatus

TS = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)
DEADLINE = 10.0


def event(kind: EventType, data: EventData, seq: int | None = None) -> Event:
    return Event(kind, seq, TS, data, encode(kind, data, seq=seq, ts=TS, node="main"))


def watchlist(seq: int) -> Event:
    return event("watchlist_update", WatchlistUpdate(reason="scan", count=0), seq)


def trade(seq: int, symbol: str = "AAPL") -> Event:
    data = TradeEvent(
        event=OrderStatus.ACCEPTED,
        order_id="O1",
        symbol=symbol,
        side="buy",
        quantity=Decimal(1),
        order_type="market",
        time_in_force="day",
        filled_quantity=Decimal(0),
        source="api",
    )
    return event("trade_event", data, seq)


def quote(symbol: str, last: float, kind: Any = "quote") -> Event:
    return event("market_data", MarketData(symbol=symbol, kind=kind, ts=TS, last=last))


def line(message: str, level: Any = "info") -> Event:
    return event("log", LogLine(level=level, logger="test", message=message))


@pytest.fixture(name="bus")
def _bus() -> EventBus:
    return EventBus("main")


async def take(subscription: Subscription, most: int = 100) -> list[Event]:
    async with asyncio.timeout(DEADLINE):
        return await subscription.take(most)


# --- durable events -------------------------------------------------------------------------------------------


async def test_durable_events_arrive_in_order(bus: EventBus) -> None:
    """A subscriber gets the durable events since it subscribed, all of them, in the order of their numbers."""
    bus.dispatch([watchlist(1)])
    subscription = bus.subscribe("test")
    bus.dispatch([watchlist(2), trade(3)])
    bus.dispatch([watchlist(4)])

    assert [found.seq for found in await take(subscription)] == [2, 3, 4]
    assert bus.last_seq == 4


async def test_take_is_bounded(bus: EventBus) -> None:
    """A `take` gives at most what it was asked for, and the next one goes on."""
    subscription = bus.subscribe("test")
    bus.dispatch([watchlist(seq) for seq in range(1, 8)])

    assert [found.seq for found in await take(subscription, 3)] == [1, 2, 3]
    assert [found.seq for found in await take(subscription, 9)] == [4, 5, 6, 7]


async def test_full_mailbox_says_so_and_loses_nothing_unsaid(bus: EventBus) -> None:
    """Beyond its room a mailbox takes no durable event any more and is marked; what it has is still given."""
    subscription = bus.subscribe("slow", durable_room=3)
    bus.dispatch([watchlist(seq) for seq in range(1, 4)])
    assert not subscription.overflowed
    bus.dispatch([watchlist(4), watchlist(5)])

    assert subscription.overflowed
    assert [found.seq for found in await take(subscription)] == [1, 2, 3]
    bus.dispatch([watchlist(6)])
    assert await take(subscription) == []


async def test_mailbox_takes_events_again_after_a_resume(bus: EventBus) -> None:
    """Once the subscriber has caught up from the journal, events arrive again, from then on."""
    subscription = bus.subscribe("slow", durable_room=2)
    bus.dispatch([watchlist(seq) for seq in range(1, 6)])
    subscription.resume()
    bus.dispatch([watchlist(6), watchlist(7)])

    assert not subscription.overflowed
    assert [found.seq for found in await take(subscription)] == [6, 7]


async def test_slow_subscriber_does_not_hold_up_others(bus: EventBus) -> None:
    """Each mailbox has room of its own: one that is full changes nothing for the next."""
    bus.subscribe("slow", durable_room=1)
    quick = bus.subscribe("quick")
    bus.dispatch([watchlist(seq) for seq in range(1, 500)])

    assert len(await take(quick, 1000)) == 499


# --- market data ----------------------------------------------------------------------------------------------


async def test_market_data_are_conflated(bus: EventBus) -> None:
    """Of each symbol and kind only the newest waits."""
    subscription = bus.subscribe("slow")
    for last in range(1000):
        bus.dispatch([quote("AAPL", last), quote("MSFT", last), quote("AAPL", last, "trade")])

    taken = await take(subscription)
    assert [(e.data.symbol, e.data.kind, e.data.last) for e in taken if isinstance(e.data, MarketData)] == [
        ("AAPL", "quote", 999),
        ("MSFT", "quote", 999),
        ("AAPL", "trade", 999),
    ]


async def test_lively_symbol_does_not_push_others_back(bus: EventBus) -> None:
    """A symbol keeps its place in the queue, however often another one changes."""
    subscription = bus.subscribe("slow")
    bus.dispatch([quote("BUSY", 1), quote("CALM", 1), quote("BUSY", 2)])

    first = await take(subscription, 1)
    bus.dispatch([quote("BUSY", 3)])
    second = await take(subscription, 1)

    assert [first[0].symbol, second[0].symbol] == ["BUSY", "CALM"]


async def test_durable_events_go_before_market_data(bus: EventBus) -> None:
    """What must not be late is given first: durable events, then logs, then market data."""
    subscription = bus.subscribe("test")
    bus.dispatch([quote("AAPL", 1), line("hello"), trade(1)])

    assert [found.type for found in await take(subscription)] == ["trade_event", "log", "market_data"]


# --- log lines ------------------------------------------------------------------------------------------------


async def test_oldest_log_lines_are_dropped_and_counted(bus: EventBus) -> None:
    """Beyond the room the oldest lines go, and the next one that gets through says how many, in its bytes too."""
    subscription = bus.subscribe("slow")
    bus.dispatch([line(f"line {number}") for number in range(LOG_ROOM + 7)])

    first, second, *rest = await take(subscription, LOG_ROOM)
    assert isinstance(first.data, LogLine)
    assert (first.data.message, first.data.dropped) == ("line 7", 7)
    assert json.loads(first.raw)["data"] == first.data.model_dump()
    assert json.loads(first.raw)["node"] == "main"
    assert json.loads(second.raw)["data"]["dropped"] == 0
    assert len(rest) == LOG_ROOM - 2


async def test_drops_are_counted_once(bus: EventBus) -> None:
    """Lines that were told as dropped are not told again."""
    subscription = bus.subscribe("slow")
    bus.dispatch([line("x")] * (LOG_ROOM + 1))
    await take(subscription, LOG_ROOM)
    bus.dispatch([line("y")])

    (found,) = await take(subscription)
    assert json.loads(found.raw)["data"]["dropped"] == 0


# --- interest -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interest", "wanted"),
    [
        (Interest(), {"trade AAPL", "trade MSFT", "quote AAPL", "quote MSFT", "list", "info", "error"}),
        (Interest(types=frozenset(("trade_event",))), {"trade AAPL", "trade MSFT"}),
        (Interest(types=frozenset()), set()),
        (Interest(symbols=frozenset(("AAPL",))), {"trade AAPL", "quote AAPL", "list", "info", "error"}),
        (Interest(types=frozenset(("market_data",)), symbols=frozenset(("MSFT",))), {"quote MSFT"}),
        (Interest(types=frozenset(("log",)), level="warning"), {"error"}),
        (Interest(types=frozenset(("log",)), level="debug", symbols=frozenset()), {"debug", "info", "error"}),
    ],
)
async def test_interest_filters(bus: EventBus, interest: Interest, wanted: set[str]) -> None:
    """Types, symbols (of market data and trade events) and the level of log lines choose what arrives."""
    subscription = bus.subscribe("test", interest)
    marker = bus.subscribe("marker")
    named = {
        "trade AAPL": trade(1),
        "trade MSFT": trade(2, "MSFT"),
        "quote AAPL": quote("AAPL", 1),
        "quote MSFT": quote("MSFT", 1),
        "list": watchlist(3),
        "debug": line("debug", "debug"),
        "info": line("info"),
        "error": line("error", "error"),
    }
    bus.dispatch(named.values())
    subscription.close()

    found = {name for taken in await take(subscription) for name, each in named.items() if each.raw == taken.raw}
    assert found == wanted
    assert len(await take(marker)) == 7


async def test_filtered_events_take_no_room(bus: EventBus) -> None:
    """A mailbox is not filled by what nobody asked for."""
    subscription = bus.subscribe("test", Interest(types=frozenset(("watchlist_update",))), durable_room=1)
    bus.dispatch([trade(seq) for seq in range(1, 50)])
    bus.dispatch([watchlist(50)])

    assert not subscription.overflowed
    assert [found.seq for found in await take(subscription)] == [50]


# --- life -----------------------------------------------------------------------------------------------------


async def test_take_waits_for_something(bus: EventBus) -> None:
    """A `take` of an empty mailbox returns when an event comes, not before."""
    subscription = bus.subscribe("test")
    task = asyncio.ensure_future(subscription.take())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    bus.dispatch([watchlist(1)])

    async with asyncio.timeout(DEADLINE):
        assert [found.seq for found in await task] == [1]


async def test_close_wakes_who_waits(bus: EventBus) -> None:
    """Closing ends a waiting `take` with an empty list; nothing arrives any more, and closing twice is fine."""
    subscription = bus.subscribe("test")
    task = asyncio.ensure_future(subscription.take())
    await asyncio.sleep(0)
    subscription.close()
    subscription.close()
    bus.dispatch([watchlist(1), line("x"), quote("AAPL", 1)])

    async with asyncio.timeout(DEADLINE):
        assert await task == []
    assert await take(subscription) == []


async def test_subscriber_may_leave_while_events_go_out(bus: EventBus) -> None:
    """A mailbox that closes another one in the middle of a dispatch does not disturb the rest."""

    class Closing(Interest):
        def wants(self, event: Event) -> bool:
            second.close()
            return True

    first = bus.subscribe("first", Closing())
    second = bus.subscribe("second")
    third = bus.subscribe("third")
    bus.dispatch([watchlist(1), watchlist(2)])

    assert [found.seq for found in await take(first)] == [1, 2]
    assert [found.seq for found in await take(third)] == [1, 2]


async def test_posts_from_threads_arrive_in_order(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one thread posts is dispatched on the bus's loop, in its order."""
    bus.bind(asyncio.get_running_loop())
    subscription = bus.subscribe("test")
    here = threading.get_ident()
    threads: set[int] = set()
    offer = subscription.offer

    def watched(found: Event) -> None:
        threads.add(threading.get_ident())
        offer(found)

    monkeypatch.setattr(subscription, "offer", watched)

    def post() -> None:
        for seq in range(1, 201):
            bus.post([watchlist(seq)])

    await asyncio.to_thread(post)

    taken: list[Event] = []
    while len(taken) < 200:
        taken += await take(subscription)
    assert [found.seq for found in taken] == list(range(1, 201))
    assert threads == {here}
    assert bus.last_seq == 200


def test_post_without_a_loop_is_quiet(bus: EventBus) -> None:
    """Before the loop is there, and after it was closed, a post does nothing."""
    bus.post([watchlist(1)])
    loop = asyncio.new_event_loop()
    bus.bind(loop)
    loop.close()
    bus.post([watchlist(1)])

    assert bus.last_seq == 0


@given(
    steps=st.lists(st.sampled_from(["durable", "log", "market", "take"]), max_size=60),
    room=st.integers(1, 8),
    most=st.integers(1, 5),
)
def test_durable_events_have_no_unsaid_gap(steps: list[str], room: int, most: int) -> None:
    """In any mixture of events and takes, what a subscriber gets is without a gap until it is told of one."""

    async def run() -> None:
        bus = EventBus("main")
        subscription = bus.subscribe("test", durable_room=room)
        seen: list[int | None] = []
        seq = 0
        for step in steps:
            if step == "durable":
                seq += 1
                bus.dispatch([watchlist(seq)])
            elif step == "log":
                bus.dispatch([line("x")])
            elif step == "market":
                bus.dispatch([quote("AAPL", 1.0)])
            else:
                bus.dispatch([line("wake")])
                taken = await take(subscription, most)
                assert len(taken) <= most
                seen += [found.seq for found in taken if found.seq is not None]
        bus.dispatch([line("wake")])
        seen += [found.seq for found in await take(subscription, 1000) if found.seq is not None]
        assert seen == list(range(1, len(seen) + 1))
        assert subscription.overflowed or len(seen) == seq

    asyncio.run(run())

"""The market: in lock step where the clock is stepped, waiting for nobody where it is live, outliving its feed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sigma9_core import market as module
from sigma9_core.bus import EventBus
from sigma9_core.calendar import Calendar
from sigma9_core.clock import Clock, ClockKind, LiveClock, SteppedClock
from sigma9_core.contracts import FeedHealth, FeedState
from sigma9_core.errors import DataError
from sigma9_core.events import MarketData
from sigma9_core.lanes import Lane
from sigma9_core.market import Market, market_data
from sigma9_core.models import Bar, Quote, Session, Slice, Trade

OPEN = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
SESSION = Session("2026-03-02", OPEN, OPEN + timedelta(hours=6.5))
PATIENCE = 5.0


def at(second: int, **more: Any) -> Slice:
    return Slice(OPEN + timedelta(seconds=second), **more)


class Stream:
    """A feed that gives what the test puts in: slices, or an exception that it raises."""

    clock_kind = "simulated"

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Slice | Exception | None] = asyncio.Queue()
        self.lane: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_running_loop
        self.calls: list[Any] = []
        self.symbols: list[frozenset[str]] = []
        self.given = 0
        self.refuse: list[Exception] = []
        self.on_subscribe: Callable[[], None] = lambda: None
        self.on_disconnect: Callable[[], Any] = lambda: None

    def put(self, *items: Slice | Exception | None) -> None:
        """Give slices, raise an exception, or end (None); from the test's own thread."""
        for each in items:
            self.lane().call_soon_threadsafe(self.queue.put_nowait, each)

    async def connect(self, since: datetime | None) -> None:
        self.calls.append(("connect", since))
        if self.refuse:
            raise self.refuse.pop(0)

    async def disconnect(self) -> None:
        self.calls.append("disconnect")
        if (waiting := self.on_disconnect()) is not None:
            await waiting

    def subscribe(self, symbols: frozenset[str]) -> None:
        self.symbols.append(symbols)
        self.on_subscribe()

    async def slices(self) -> AsyncIterator[Slice]:
        while (each := await self.queue.get()) is not None:
            if isinstance(each, Exception):
                raise each
            self.given += 1
            yield each


class Room:
    """A market between a stream, a money lane and an outer side that a test holds up or lets fail."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.feed = Stream()
        self.bus = EventBus("main")
        self.money_lane = Lane("money")
        self.steps: list[tuple[str, datetime]] = []
        self.states: list[tuple[FeedState, str | None]] = []
        self.health: list[tuple[FeedState, int, str | None]] = []
        self.money_held = threading.Event()
        self.money_held.set()
        self.outer_held = asyncio.Event()
        self.outer_held.set()
        self.money_fails: list[Exception] = []
        self.outer_fails: list[Exception] = []
        self.threads: set[str] = set()
        self.calendar = Calendar("XNYS", [SESSION])
        self.market = Market(
            feed=self.feed,  # type: ignore[arg-type]
            clock=clock,
            calendar=self.calendar,
            money_lane=self.money_lane,
            money=_Money(self),
            outer=self,
            bus=self.bus,
            publish=True,
        )
        self.feed.lane = lambda: self.market._lane.loop

    async def on_market(self, data: Slice) -> None:
        self.steps.append(("outer", data.ts))
        await self.outer_held.wait()
        if self.outer_fails:
            raise self.outer_fails.pop(0)
        self.steps.append(("outer done", data.ts))

    def on_feed(self, state: FeedState, error: str | None) -> None:
        self.states.append((state, error))

    def start(self, since: datetime | None = None) -> None:
        self.money_lane.start()
        self.bus.bind(asyncio.get_running_loop())
        self.market.start(since)

    async def stop(self) -> None:
        self.money_held.set()
        self.outer_held.set()
        await self.market.stop()
        self.money_lane.stop()

    def names(self) -> list[str]:
        return [f"{name} {(ts - OPEN).seconds}" for name, ts in self.steps]

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not what():  # noqa: ASYNC110 - other threads are awaited
                await asyncio.sleep(0.002)


class _Money:
    """The money side: it settles when the test lets it."""

    def __init__(self, room: Room) -> None:
        self.room = room

    def on_feed(self, health: FeedHealth) -> None:
        self.room.health.append((health.state, health.failures, health.error))

    async def on_market(self, data: Slice) -> None:
        room = self.room
        room.threads.add(threading.current_thread().name)
        room.steps.append(("money", data.ts))
        while not room.money_held.is_set():  # noqa: ASYNC110 - the test holds it from another thread
            await asyncio.sleep(0.002)
        if room.money_fails:
            raise room.money_fails.pop(0)
        room.steps.append(("money done", data.ts))


@pytest.fixture(name="room")
async def _room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "TICK", 0.02)
    kind: ClockKind = getattr(request, "param", "simulated")
    room = Room(LiveClock() if kind == "live" else SteppedClock(kind, OPEN))
    yield room
    await room.stop()


def kinds(*names: str) -> pytest.MarkDecorator:
    """Run a test with markets of these clocks."""
    return pytest.mark.parametrize("room", names, indirect=True)


# --- lock step ------------------------------------------------------------------------------------------------


@kinds("simulated", "replay")
async def test_the_next_slice_comes_when_the_last_one_has_settled(room: Room) -> None:
    """Clock, money lane, strategies, and only then the next slice: nothing overlaps."""
    room.start()
    room.money_held.clear()
    room.outer_held.clear()
    await room.until(lambda: room.states == [("connected", None)])
    room.feed.put(at(1), at(2))
    await room.until(lambda: room.names() == ["money 1"])
    assert room.clock.now() == OPEN + timedelta(seconds=1)
    await asyncio.sleep(0.05)
    assert (room.names(), room.feed.given) == (["money 1"], 1)

    room.money_held.set()
    await room.until(lambda: room.names() == ["money 1", "money done 1", "outer 1"])
    await asyncio.sleep(0.05)
    assert (room.names()[3:], room.feed.given, room.clock.now()) == ([], 1, OPEN + timedelta(seconds=1))

    room.outer_held.set()
    await room.until(lambda: len(room.steps) == 8)
    assert room.names()[3:] == ["outer done 1", "money 2", "money done 2", "outer 2", "outer done 2"]
    assert room.threads == {"sigma9-money"}
    assert room.market.last_at == room.clock.now() == OPEN + timedelta(seconds=2)


async def test_a_simulated_market_goes_on_without_strategies_that_hang(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a while it is said, and the money lane gets the next slice: exits never stand still."""
    monkeypatch.setattr(module, "STRATEGY_WAIT", 0.05)
    room.start()
    room.outer_held.clear()
    room.feed.put(at(1), at(2))
    await room.until(lambda: "money done 2" in room.names())

    assert "the outer loop has not answered for 0.05 s" in caplog.text


@kinds("replay")
async def test_a_replay_waits_for_strategies_however_long(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay gives the same trades at any speed, so nothing is left behind."""
    monkeypatch.setattr(module, "STRATEGY_WAIT", 0.02)
    room.start()
    room.outer_held.clear()
    room.feed.put(at(1), at(2))
    await room.until(lambda: "outer 1" in room.names())
    await asyncio.sleep(0.1)

    assert "money 2" not in room.names()


async def test_a_slice_that_goes_wrong_ends_neither_feed_nor_market(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault on the money lane or the outer loop is no fault of the feed: it is logged, the next slice comes."""
    room.money_fails = [RuntimeError("a bug in the money path")]
    room.outer_fails = [RuntimeError("a bug outside")]
    room.start()
    room.feed.put(at(1), at(2))
    await room.until(lambda: "outer done 2" in room.names())

    assert room.states == [("connected", None)]
    assert "a bug in the money path" in caplog.text
    assert "a bug outside" in caplog.text


@kinds("replay")
@pytest.mark.parametrize("where", ["money_fails", "outer_fails"])
async def test_a_replay_ends_with_a_slice_that_goes_wrong(room: Room, where: str) -> None:
    """Trades after it would differ: the replay ends with the error."""
    setattr(room, where, [RuntimeError("a bug")])
    room.start()
    room.feed.put(at(1), at(2))

    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(room.market.finished(), PATIENCE)
    assert "money 2" not in room.names()


# --- live -----------------------------------------------------------------------------------------------------


@kinds("live")
async def test_a_live_market_waits_for_nobody(room: Room) -> None:
    """With the money lane busy and the outer loop stuck every slice is handed over at once."""
    room.start()
    room.money_held.clear()
    room.outer_held.clear()
    await room.until(lambda: room.states)
    room.feed.put(*(at(second) for second in range(5)))
    await room.until(lambda: room.feed.given == 5)
    await room.until(lambda: len([name for name in room.names() if name.startswith("outer")]) == 5)
    assert [name for name in room.names() if "done" in name] == []

    room.money_held.set()
    await room.until(lambda: "money done 4" in room.names())


@kinds("live")
async def test_a_silent_live_market_ticks(room: Room) -> None:
    """Without data the money lane still learns that time passes: time stops need it."""
    room.start()
    await room.until(lambda: len(room.steps) >= 3)

    assert {name for name, _ in room.steps} == {"money", "money done"}
    assert room.feed.given == 0


@kinds("live")
async def test_what_goes_wrong_with_a_live_slice_is_said(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for a live slice, and yet no error is lost."""
    room.start()
    await room.until(lambda: room.states)
    room.money_fails = [RuntimeError("a bug in the money path")]
    room.outer_fails = [RuntimeError("a bug outside")]
    room.feed.put(at(1))
    await room.until(lambda: "a bug in the money path" in caplog.text and "a bug outside" in caplog.text)

    assert room.states == [("connected", None)]


# --- a feed that fails ----------------------------------------------------------------------------------------


@kinds("simulated", "live")
async def test_a_feed_that_raises_is_connected_anew(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, disconnected, and connected again where the market stood; the symbols are wanted again."""
    room.market.subscribe(frozenset(("AAPL",)))
    room.start(OPEN)
    room.feed.put(at(1), ConnectionError("the line broke"), at(2))
    await room.until(lambda: "outer done 2" in room.names())

    assert room.states == [
        ("connected", None),
        ("disconnected", "ConnectionError: the line broke"),
        ("connected", None),
    ]
    assert [call if isinstance(call, str) else call[0] for call in room.feed.calls] == [
        "connect",
        "disconnect",
        "connect",
    ]
    assert room.feed.calls[0] == ("connect", OPEN)
    if room.clock.kind == "simulated":
        assert room.feed.calls[2] == ("connect", OPEN + timedelta(seconds=1))
    assert room.feed.symbols == [frozenset(("AAPL",))] * 2
    assert "the feed failed (ConnectionError: the line broke); next try in" in caplog.text


@pytest.mark.parametrize(
    ("error", "traced"),
    [
        (DataError("127.0.0.1:4002 can't be reached"), False),
        (ConnectionError("the line broke"), False),
        (RuntimeError("a bug in the feed"), True),
    ],
)
async def test_only_a_bug_of_the_feed_brings_its_traceback(
    room: Room, caplog: pytest.LogCaptureFixture, error: Exception, traced: bool
) -> None:
    """A gateway that is not there is a sentence each time, and no page."""
    room.feed.refuse = [error]
    room.start()
    await room.until(lambda: ("connected", None) in room.states)

    (told,) = [each for each in caplog.records if "the feed failed" in each.getMessage()]
    assert (told.levelname, bool(told.exc_info)) == ("ERROR", traced)
    assert str(error) in told.getMessage()


async def test_the_back_off_grows_until_a_slice_has_come(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing to connect, or right after it, doubles the wait up to the longest one; a slice begins it anew."""
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)
    waits: list[float] = []
    room.feed.refuse = [OSError("no route")] * 3
    tell = room.market._tell

    def spy(state: FeedState, error: str | None) -> None:
        if state == "disconnected":
            waits.append(room.market._wait)
        tell(state, error)

    monkeypatch.setattr(room.market, "_tell", spy)
    room.start()
    room.feed.put(ValueError("at once"), at(1), ValueError("later"), at(2))
    await room.until(lambda: "outer done 2" in room.names())

    assert waits == [0.01, 0.02, 0.04, 0.05, 0.01]


@kinds("simulated", "live")
async def test_the_risk_rules_hear_how_often_a_feed_has_failed_to_come_back(room: Room) -> None:
    """Attempts that fail are counted until data come again, the loss itself is not; each is told."""
    room.start()
    room.feed.put(at(1))
    await room.until(lambda: "outer done 1" in room.names())
    room.feed.refuse = [OSError("no route"), OSError("no route")]
    room.feed.put(ConnectionError("gone"))
    await room.until(lambda: room.health[-1:] == [("connected", 2, None)])
    room.feed.put(at(2))
    await room.until(lambda: room.health[-1:] == [("connected", 0, None)])

    told = "OSError: no route"
    assert room.health == [
        ("connected", 0, None),
        ("disconnected", 0, "ConnectionError: gone"),
        ("disconnected", 1, told),
        ("disconnected", 2, told),
        ("connected", 2, None),
        ("connected", 0, None),
    ]


@kinds("simulated", "live")
async def test_a_feed_that_was_never_there_has_not_failed_to_come_back(room: Room) -> None:
    """A server that starts before its gateway waits for it: nobody has to clear anything once it is there."""
    room.feed.refuse = [OSError("no route")] * 5
    room.start()
    room.feed.put(at(1))
    await room.until(lambda: "outer done 1" in room.names())

    assert {failures for _, failures, _ in room.health} == {0}


@kinds("replay")
async def test_a_replay_raises_what_its_feed_raises(room: Room) -> None:
    """Files do not mend themselves: the end of the replay is the error, and the feed is not asked again."""
    room.start()
    room.feed.put(at(1), ValueError("row 7 is broken"))

    with pytest.raises(ValueError, match="row 7 is broken"):
        await asyncio.wait_for(room.market.finished(), PATIENCE)
    assert room.states[-1] == ("disconnected", "ValueError: row 7 is broken")
    assert len(room.feed.calls) == 1


@kinds("simulated", "replay")
async def test_the_end_of_the_data_is_told(room: Room) -> None:
    """Where the data end the market ends in order."""
    room.start()
    room.feed.put(at(1), None)
    await asyncio.wait_for(room.market.finished(), PATIENCE)
    await room.until(lambda: len(room.states) == 2)

    assert room.states[-1] == ("ended", None)
    assert room.market.state == "ended"


@kinds("live")
async def test_a_live_feed_that_ends_is_connected_anew(room: Room) -> None:
    """A stream that the other side closed in order is no reason to trade without data until a restart."""
    room.start()
    room.feed.put(at(1), None, at(2))
    await room.until(lambda: "outer done 2" in room.names())

    assert [state for state, _ in room.states] == ["connected", "disconnected", "connected"]


# --- subscriptions --------------------------------------------------------------------------------------------


async def test_subscriptions_reach_a_connected_feed_and_no_other(room: Room) -> None:
    """What is wanted before the feed is connected is told when it is; later changes at once, and only changes."""
    room.feed.refuse = [OSError("no route")] * 3
    room.market.subscribe(frozenset("A"))
    room.start()
    room.market.subscribe(frozenset("AB"))
    await room.until(lambda: room.states and room.states[-1][0] == "connected")
    assert room.feed.symbols == [frozenset("AB")]

    room.market.subscribe(frozenset("AB"))
    room.market.subscribe(frozenset("ABC"))
    await room.until(lambda: room.feed.symbols[-1] == frozenset("ABC"))
    assert len(room.feed.symbols) == 2


async def test_no_subscription_is_lost_while_the_feed_connects(room: Room) -> None:
    """Whenever it comes, in the end the feed has the newest list."""
    for number in range(30):
        room.feed.refuse = [OSError("no route")] if number % 3 == 0 else []
        if number == 0:
            room.start()
        room.feed.put(OSError("again"))
        for step in range(20):
            room.market.subscribe(frozenset((f"S{number}", f"T{step}")))
            await asyncio.sleep(0)
    wanted = frozenset(("S29", "T19"))
    await room.until(lambda: room.feed.symbols and room.feed.symbols[-1] == wanted)


async def test_a_feed_that_refuses_a_subscription_goes_on(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """A raise in `subscribe` is logged; slices go on coming."""

    def fail() -> None:
        raise ValueError("too many symbols")

    room.start()
    await room.until(lambda: room.states)
    room.feed.on_subscribe = fail
    room.market.subscribe(frozenset("A"))
    await room.until(lambda: "too many symbols" in caplog.text)
    room.feed.put(at(1))
    await room.until(lambda: "outer done 1" in room.names())

    assert len(room.states) == 1


# --- the end --------------------------------------------------------------------------------------------------


async def test_a_stop_lets_the_money_lane_finish_its_slice(room: Room) -> None:
    """What the money lane has begun, such as a kill by a loss limit, is not cut in the middle."""
    room.start()
    room.money_held.clear()
    room.feed.put(at(1))
    await room.until(lambda: room.steps)
    await room.market.stop()
    assert room.names() == ["money 1"]

    room.money_held.set()
    await room.until(lambda: room.names() == ["money 1", "money done 1"])


@kinds("simulated", "live", "replay")
async def test_a_stop_lets_the_outer_loop_finish_its_slice(room: Room) -> None:
    """An entry that is on its way is not cut in the middle."""
    room.start()
    room.outer_held.clear()
    room.feed.put(at(1))
    await room.until(lambda: "outer 1" in room.names())
    await room.market.stop()
    room.outer_held.set()

    await room.until(lambda: "outer done 1" in room.names())


async def hang() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise OSError("already closed")


@pytest.mark.parametrize("broken", [hang, fail])
async def test_a_feed_that_does_not_disconnect_holds_nothing_up(
    room: Room, broken: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a feed ends, the market does, and its thread is gone."""
    monkeypatch.setattr(module, "DISCONNECT_WITHIN", 0.05)
    room.feed.on_disconnect = broken
    room.start()
    await room.until(lambda: room.states)
    async with asyncio.timeout(PATIENCE):
        await room.market.stop()

    assert not [thread for thread in threading.enumerate() if thread.name == "sigma9-market"]


async def test_after_the_end_nothing_comes(room: Room) -> None:
    """Stopping twice is fine, wanting other symbols as well, and waiting for the end returns."""
    room.start()
    await room.until(lambda: room.states)
    await room.market.stop()
    await room.market.stop()
    room.market.subscribe(frozenset("A"))
    await room.market.finished()

    assert room.feed.symbols == [frozenset()]
    assert room.feed.calls[-1] == "disconnect"


async def test_it_waits_for_the_calendar(room: Room) -> None:
    """The feed is connected once the sessions are known: a simulated market is made of them."""
    room.calendar = room.market._calendar = Calendar("XNYS")
    room.start()
    await asyncio.sleep(0.05)
    assert room.feed.calls == []

    room.calendar.fill([SESSION])
    await room.until(lambda: room.states)


# --- what goes out --------------------------------------------------------------------------------------------


async def test_what_is_published_is_conflated_by_symbol_and_kind(room: Room) -> None:
    """Of each slice the newest quote, trade and bar of a symbol go out, without a number."""
    subscription = room.bus.subscribe("test")
    room.start()
    now = OPEN + timedelta(seconds=1)
    room.feed.put(
        at(
            1,
            quotes=(Quote("A", now, 1.0, 2.0), Quote("A", now, 1.5, 2.5), Quote("B", now, 3.0, 4.0)),
            trades=(Trade("A", now, 1.0, 10.0), Trade("A", now, 2.0, 20.0)),
            bars=(Bar("A", OPEN, 1.0, 2.0, 0.5, 1.5, 100.0),),
        )
    )
    async with asyncio.timeout(PATIENCE):
        events = await subscription.take()

    found = {(e.data.symbol, e.data.kind): e.data for e in events if isinstance(e.data, MarketData)}
    assert set(found) == {("A", "quote"), ("B", "quote"), ("A", "trade"), ("A", "bar")}
    assert (found["A", "quote"].bid, found["A", "trade"].last, found["A", "bar"].volume) == (1.5, 2.0, 100.0)
    assert {event.seq for event in events} == {None}
    assert '"kind":"quote"' in events[0].raw


@pytest.mark.parametrize(
    ("item", "fields"),
    [
        (
            Quote("A", OPEN, 1.0, None, 5.0, None, halted=True),
            {"kind": "quote", "bid": 1.0, "bid_size": 5.0, "halted": True},
        ),
        (Trade("A", OPEN, 2.0, 7.0, "buy"), {"kind": "trade", "last": 2.0, "last_size": 7.0}),
        (
            Bar("A", OPEN, 1, 4, 0.5, 3, 9, 300),
            {"kind": "bar", "open": 1, "high": 4, "low": 0.5, "close": 3, "volume": 9, "bar_seconds": 300},
        ),
    ],
)
def test_market_data_is_that_of_the_contract(item: Quote | Trade | Bar, fields: dict[str, Any]) -> None:
    """What does not apply is null, and every key is there."""
    body = market_data(item).model_dump(mode="json")
    empty: Sequence[str] = [name for name, value in body.items() if value is None]

    assert (
        body
        == dict.fromkeys(empty) | {"symbol": "A", "ts": "2026-03-02T14:30:00.000000Z", "halted": False} | fields
    )
    assert set(body) == set(MarketData.model_fields)

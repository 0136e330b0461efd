"""Scans: the scanners over the feed's daily bars, one scan at a time, and the list that comes of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock
from sigma9_core.errors import CommandError, DataError
from sigma9_core.events import WatchlistUpdate
from sigma9_core.models import Session
from sigma9_core.scans import Scans
from sigma9_core.strategies import Strategy
from sigma9_core.watchlist import Watchlist
from sigma9_core.workers import Guard, Worker

OPEN = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
SESSIONS = [
    Session(f"2026-03-{2 + n:02d}", OPEN + timedelta(days=n), OPEN + timedelta(days=n, hours=6.5))
    for n in range(4)
]


class Picks:
    """A scanner that scores the symbols it was told to."""

    version = "1"
    lookback = 2
    watchlist_size = 50

    def __init__(self, **scores: float) -> None:
        self.scores = scores
        self.fails: Callable[[], None] = lambda: None

    def scan(self, bars: pl.LazyFrame) -> pl.LazyFrame:
        self.fails()
        score = pl.col("symbol").replace_strict(self.scores, default=None, return_dtype=pl.Float64)
        return bars.with_columns(score.alias("score"), pl.lit(50).alias("priority"))

    def trigger(self) -> None:
        return None


class Files:
    """A feed with daily bars of A, B and C."""

    def __init__(self) -> None:
        self.asked: list[tuple[date, int]] = []
        self.fails: Callable[[], None] = lambda: None

    def daily_bars(self, as_of: date, sessions: int) -> pl.LazyFrame:
        self.asked.append((as_of, sessions))
        self.fails()
        days = [as_of - timedelta(days=2), as_of - timedelta(days=1), as_of]
        rows = [(symbol, day, 5.0, 5.1, 4.9, 5.05, 1e6) for symbol in "ABC" for day in days]
        return pl.LazyFrame(rows, schema=["symbol", "ts", "open", "high", "low", "close", "volume"], orient="row")


class Room:
    """Two strategies on one feed, the second day's session in progress."""

    def __init__(self) -> None:
        self.clock = SteppedClock("simulated", OPEN + timedelta(days=1, hours=1))
        self.told: list[WatchlistUpdate] = []
        self.watchlist = Watchlist(self.clock, self.told.append)
        self.feed = Files()
        self.first, self.second = Picks(A=80.0, B=70.0), Picks(B=90.0, C=60.0)
        self.disabled: list[str] = []
        self.strategies = [self._strategy("one", self.first), self._strategy("two", self.second)]
        self.calendar = Calendar("XNYS", SESSIONS)
        self.scans = Scans(self.strategies, self.feed, self.watchlist, self.clock, self.calendar)  # type: ignore[arg-type]

    def _strategy(self, name: str, scanner: Picks) -> Strategy:
        def guard(part: str) -> Guard:
            return Guard(name, Worker(f"{name}.{part}", 5.0), on_disabled=lambda who, _: self.disabled.append(who))

        return Strategy(name, scanner, guard("scan"), guard("trigger"))

    def symbols(self) -> list[str]:
        return [item.symbol for item in self.watchlist.items()]

    def stop(self) -> None:
        self.scans.stop()
        for strategy in self.strategies:
            strategy.guard.stop()
            strategy.scan_guard.stop()


@pytest.fixture(name="room")
async def _room() -> AsyncIterator[Room]:
    room = Room()
    yield room
    room.stop()


def broken(*_: Any) -> None:
    raise ZeroDivisionError("no luck")


async def test_a_scan_renews_the_list_and_sums_it_up(room: Room) -> None:
    """All enabled strategies scan as of the last complete session; what they list is merged, ranked and told."""
    result = await room.scans.run()

    assert room.symbols() == ["B", "A", "C"]
    assert room.watchlist.items()[0].strategies == ("one", "two")
    assert result == {"as_of": "2026-03-02", "count": 3, "added": ["A", "B", "C"], "removed": [], "failed": []}
    assert [update.reason for update in room.told] == ["scan"]
    assert room.feed.asked[0] == (date(2026, 3, 2), 12)


@pytest.mark.parametrize(
    ("now", "as_of"),
    [
        (OPEN, date(2026, 2, 28)),
        (OPEN + timedelta(hours=6.4), date(2026, 2, 28)),
        (OPEN + timedelta(hours=6.5), date(2026, 3, 2)),
        (OPEN + timedelta(days=1, hours=-10), date(2026, 3, 2)),
        (OPEN + timedelta(days=1, hours=1), date(2026, 3, 2)),
        (OPEN + timedelta(days=3, hours=12), date(2026, 3, 5)),
    ],
)
async def test_the_date_is_that_of_the_last_complete_session(room: Room, now: datetime, as_of: date) -> None:
    """Until a session has closed its bar is not whole: the one before counts; the day is New York's."""
    clock = SteppedClock("simulated", now)
    calendar = Calendar(
        "XNYS",
        [Session("2026-02-28", OPEN - timedelta(days=2), OPEN - timedelta(days=2, hours=-6.5)), *SESSIONS],
    )
    scans = Scans(room.strategies, room.feed, room.watchlist, clock, calendar)  # type: ignore[arg-type]

    assert await scans.as_of() == as_of


async def test_named_strategies_renew_their_part_alone(room: Room) -> None:
    """A scan by one strategy leaves what the other one has listed, and names itself in the update."""
    await room.scans.run()
    room.second.scores = {"A": 75.0}
    result = await room.scans.run(["two", "two"])

    assert {i.symbol: i.strategies for i in room.watchlist.items()} == {"A": ("two", "one"), "B": ("one",)}
    assert (result["removed"], room.told[-1].strategy) == (["C"], "two")
    assert len(room.feed.asked) == 3


async def test_a_scanner_that_fails_keeps_what_it_had(room: Room) -> None:
    """Its round is skipped and named; its symbols stay, and the other strategy's list is new."""
    await room.scans.run()
    room.second.fails = broken
    room.first.scores = {"A": 99.0}
    result = await room.scans.run()

    assert result["failed"] == ["two"]
    assert {i.symbol: i.strategies for i in room.watchlist.items()} == {
        "A": ("one",),
        "B": ("two",),
        "C": ("two",),
    }
    assert room.strategies[1].scan_guard.error == "RuntimeError: ZeroDivisionError: no luck"


async def test_a_scanner_that_goes_on_failing_is_disabled(room: Room) -> None:
    """After three failures in a row it is disabled, once; the others go on."""
    room.second.fails = broken
    for _ in range(4):
        assert (await room.scans.run())["failed"] == ["two"]

    assert room.disabled == ["two"]
    assert room.symbols() == ["A", "B"]


async def test_where_every_scanner_fails_the_old_list_stays(room: Room) -> None:
    """The answer is an error, and nothing is told."""
    await room.scans.run()
    room.first.fails = room.second.fails = broken
    with pytest.raises(CommandError, match="every scanner failed: one, two") as refused:
        await room.scans.run()

    assert refused.value.code == "internal"
    assert (room.symbols(), len(room.told)) == (["B", "A", "C"], 1)


@pytest.mark.parametrize("error", [DataError("bars.parquet is gone"), OSError("no route to host")])
async def test_a_feed_without_bars_is_no_strategy_s_fault(room: Room, error: Exception) -> None:
    """However often the feed fails, no strategy is disabled for it; the answer says what the feed said."""

    def fail() -> None:
        raise error

    room.feed.fails = fail
    for _ in range(4):
        with pytest.raises(CommandError, match=f"the feed gave no daily bars as of 2026-03-02: {error}"):
            await room.scans.run()
    room.feed.fails = lambda: None

    assert room.disabled == []
    assert (await room.scans.run())["count"] == 3


async def test_bars_that_can_t_be_used_are_no_strategy_s_fault(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bars with doubles are refused in the feed's name."""
    one = room.feed.daily_bars

    def doubled(as_of: date, sessions: int) -> pl.LazyFrame:
        return pl.concat([one(as_of, sessions)] * 2)

    monkeypatch.setattr(room.feed, "daily_bars", doubled)
    for _ in range(4):
        with pytest.raises(CommandError, match=r"the feed's daily bars .* can't be used: .* twice"):
            await room.scans.run()

    assert room.disabled == []


async def test_one_scan_at_a_time(room: Room) -> None:
    """A second scan beside a running one is `busy`; after it the next one runs."""
    held = threading.Event()

    def wait() -> None:
        held.wait(5)

    room.feed.fails = wait
    first = asyncio.create_task(room.scans.run())
    while not room.feed.asked:  # noqa: ASYNC110 - what is awaited happens on a thread
        await asyncio.sleep(0.005)
    with pytest.raises(CommandError) as refused:
        await room.scans.run()
    held.set()

    assert refused.value.code == "busy"
    assert (await first)["count"] == 3
    assert (await room.scans.run())["count"] == 3


async def test_strategies_are_named_right(room: Room) -> None:
    """An unknown name is not_found; with none enabled there is nothing to scan, and the list stays."""
    await room.scans.run()
    with pytest.raises(CommandError) as unknown:
        await room.scans.run(["three"])
    for strategy in room.strategies:
        strategy.enabled = False
    with pytest.raises(CommandError, match="no strategy is enabled") as none:
        await room.scans.run()

    assert (unknown.value.code, unknown.value.details) == ("not_found", {"field": "strategies"})
    assert none.value.code == "conflict"
    assert room.symbols() == ["B", "A", "C"]


async def test_a_disabled_strategy_leaves_the_list_with_the_next_scan(room: Room) -> None:
    """What a disabled strategy had listed goes when the others scan; named, it scans all the same."""
    await room.scans.run()
    room.strategies[1].enabled = False
    await room.scans.run()
    assert room.symbols() == ["A", "B"]

    await room.scans.run(["two"])
    assert room.symbols() == ["B", "A", "C"]

"""The simulated market within a day: minutes add up to the day, trades to the minute, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_plugins.feeds.market_minutes import Minute, minutes_of_day, ticks_of_minute
from sigma9_plugins.feeds.market_model import Day, MarketModel
from sigma9_plugins.feeds.market_points import Point
from sigma9_plugins.feeds.market_stocks import generator
from sigma9_plugins.testing.market_room import calendar

DATES = (date(2026, 3, 2), date(2026, 3, 13), date(2025, 12, 24))


@cache
def model() -> MarketModel:
    """Make the default market."""
    return MarketModel(1, 120, calendar())


def samples() -> Iterator[tuple[str, Day, list[Minute]]]:
    """Give every planted symbol and some others, on three days, one of them short."""
    for day in DATES:
        for symbol in {*model().planted(day), *sorted(model().stocks)[::15]}:
            found = model().day(symbol, day)
            assert found is not None
            count = 210 if day == DATES[2] else 390
            yield symbol, found, minutes_of_day(found, count, generator(1, symbol, day))


def check(minute: Minute, seed: object) -> None:
    """Check that a minute's trades add up to it."""
    ticks = ticks_of_minute(minute, generator(seed))
    prices, times = [tick.price for tick in ticks], [tick.at for tick in ticks]

    assert (prices[0], prices[-1]) == (minute.open, minute.close)
    assert (min(prices), max(prices)) == (minute.low, minute.high)
    assert sum(tick.size for tick in ticks) == minute.volume
    assert len(ticks) == minute.trades
    assert min(tick.size for tick in ticks) > 0
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 60_000


def test_minutes_add_up_to_the_day() -> None:
    """First open, last close, highest, lowest and the sum of volumes are the daily bar's, and minutes join."""
    for _, day, minutes in samples():
        assert (minutes[0].open, minutes[-1].close) == (day.open, day.close)
        assert max(minute.high for minute in minutes) == day.high
        assert min(minute.low for minute in minutes) == day.low
        assert sum(minute.volume for minute in minutes) == day.volume
        assert all(before.close == after.open for before, after in pairwise(minutes))
        for minute in minutes:
            assert minute.low <= min(minute.open, minute.close)
            assert max(minute.open, minute.close) <= minute.high
            assert minute.volume >= minute.trades >= 10


def test_trades_add_up_to_the_minute() -> None:
    """First, last, highest and lowest trade and the sum of sizes are the minute's."""
    for symbol, day, minutes in samples():
        for index, minute in enumerate(minutes):
            check(minute, (symbol, day.day, index))


@given(
    st.integers(100, 2_000),
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60), st.integers(0, 60)),
    st.tuples(st.integers(60, 100_000), st.integers(5, 60), st.booleans()),
    st.integers(0, 2**32),
)
def test_any_minute(base: int, moves: tuple[int, int, int, int], shape: tuple[int, int, bool], seed: int) -> None:
    """Whatever the minute, its trades add up to it."""
    opens, close = base + moves[0], base + moves[1]
    high, low = max(opens, close) + moves[2], max(1, min(opens, close) - moves[3])
    volume, trades, burst = shape
    check(Minute(opens, high, low, close, volume, trades, 0.5, burst), seed)


def test_points_that_do_not_fit_the_session() -> None:
    """A day whose points lead through another number of minutes is an error, not a shorter day."""
    day = Day(DATES[0], 500, 510, 490, 505, 10_000, (Point(-1, 500, 0), Point(389, 505, 1)))
    with pytest.raises(ValueError, match="390 minutes, the session has 210"):
        minutes_of_day(day, 210, generator(1))


def test_volume_has_a_smile() -> None:
    """More trades after the open and before the close than at noon."""
    day = next(found for _, found, _ in samples() if found.ignition is None and found.day == DATES[0])
    volumes = [minute.volume for minute in minutes_of_day(day, 390, generator(1))]

    assert sum(volumes[:10]) > 1.5 * sum(volumes[190:200])
    assert sum(volumes[-10:]) > 1.2 * sum(volumes[190:200])

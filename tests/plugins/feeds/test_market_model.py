"""The simulated market's days: every planted pattern is there, and nothing else shows one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_plugins.feeds.market_blocks import bridge
from sigma9_plugins.feeds.market_model import Day, MarketModel
from sigma9_plugins.feeds.market_stocks import PRIORITY, TRADABLE, Stock, generator, weekday_date, weekday_number
from sigma9_plugins.testing.market_room import calendar

START = date(2026, 3, 2)
CALENDAR = calendar()
DAYS = [date.fromisoformat(session.day) for session in CALENDAR.between(date(2025, 12, 8), date(2026, 4, 30))]


@dataclass(frozen=True)
class Score:
    """What the formulas of the accumulation patterns say of 20 bars (they are written out here once more)."""

    priority: int
    score: float
    change: float
    average_volume: float


def score(bars: Sequence[Day]) -> Score:
    """Score the last of 20 bars: priority by the table, score by the weighted intensities."""
    opens, high, low, close, volume = zip(*((d.open, d.high, d.low, d.close, d.volume) for d in bars), strict=True)
    ranges = [max(high[i] - low[i], abs(high[i] - close[i - 1]), abs(low[i] - close[i - 1])) for i in range(1, 20)]
    dry = (sum(volume[-3:]) / 3) / (sum(volume) / 20)
    tight = (sum(ranges[-5:]) / 5) / (sum(ranges) / 19)
    price = (close[-1] - close[0]) / close[0]
    flow = [((c > b) - (c < b)) * v for (b, c), v in zip(pairwise(close), volume[1:], strict=True)]
    balance = sum(flow) / sum(volume)
    body = abs(close[-1] - opens[-1]) / opens[-1]
    burst = volume[-1] / (sum(volume[:-1]) / 19)
    is_tight, is_dry, diverges = tight < 0.5, dry < 0.4, price <= 0 and balance > 0
    is_bar = body <= 0.025 and burst > 3
    table = (
        (is_tight and diverges, 100),
        (is_tight, 80),
        (is_bar and diverges, 70),
        (is_bar, 50),
        (diverges, 30),
        (is_dry, 10),
        (True, 0),
    )
    obv = 0.0 if price > 0.02 or balance <= 0 else min(1.0, 10 * abs(price) + 5 * balance)
    bar = 0.0 if body > 0.025 else min(1.0, max(0.0, (burst - 2) / 3))
    parts = (
        (0.30, min(1.0, max(0.0, (0.7 - tight) / 0.4))),
        (0.35, obv),
        (0.25, bar),
        (0.10, 0.0 if dry >= 0.4 else 1 - dry / 0.4),
    )
    return Score(
        next(value for holds, value in table if holds),
        100 * sum(weight * part for weight, part in parts),
        100 * (close[-1] - close[-2]) / close[-2],
        sum(volume) / 20,
    )


@cache
def series(seed: int) -> tuple[MarketModel, Mapping[str, list[Day]]]:
    """Make a market, and every symbol's days in order."""
    model = MarketModel(seed, 120, CALENDAR)
    found = {
        symbol: [each for each in (model.day(symbol, day) for day in DAYS) if each is not None]
        for symbol in model.stocks
    }
    return model, found


@pytest.mark.parametrize("seed", [1, 2, 99])
def test_planted_patterns_and_nothing_else(seed: int) -> None:
    """On every day a scan of the session before finds each planted pattern, and no other symbol has any."""
    model, found = series(seed)
    for index in range(20, len(DAYS)):
        planted = model.planted(DAYS[index])
        for symbol, days in found.items():
            got = score(days[index - 20 : index])
            wanted = PRIORITY[planted[symbol]] if symbol in planted else 0
            assert got.priority == wanted, f"{DAYS[index]} {symbol}: {planted.get(symbol)}, {got}"
            if symbol not in planted:
                assert got.score < 50, f"{DAYS[index]} {symbol}: {got}"


def test_tradable_patterns_pass_the_universe_filters() -> None:
    """Tradable patterns cost 2 to 10 USD, rose by 0 to 5 % on their last day, and trade 100,000 shares a day."""
    model, found = series(1)
    for index in range(20, len(DAYS)):
        for symbol, kind in model.planted(DAYS[index]).items():
            got = score(found[symbol][index - 20 : index])
            if kind in TRADABLE:
                assert 200 <= found[symbol][index - 1].close <= 1000
                assert 0 <= got.change <= 5
                assert got.average_volume >= 100_000


def test_every_day_has_every_kind() -> None:
    """Each session has all six kinds planted, in eight symbols, and none of them on the next session again."""
    model, _ = series(1)
    for day, following in pairwise(DAYS[20:]):
        planted = model.planted(day)
        assert set(planted.values()) == set(PRIORITY)
        assert len(planted) == 8
        assert not planted.keys() & model.planted(following).keys()


def test_no_session_no_plants() -> None:
    """A weekend and a holiday have nothing planted, and no bars."""
    model, _ = series(1)
    for day in (date(2026, 3, 7), date(2026, 4, 3)):
        assert model.planted(day) == {}
        assert model.ignitions(day) == {}
        assert all(model.day(symbol, day) is None for symbol in model.stocks)


def test_ignitions() -> None:
    """The tradable symbols are set off once each: two within ten minutes of 10:00, the others over the day."""
    model, _ = series(1)
    for day in DAYS[20:]:
        ignitions = model.ignitions(day)
        minutes = sorted(each.minute for each in ignitions.values())
        assert ignitions.keys() == {s for s, kind in model.planted(day).items() if kind in TRADABLE}
        assert minutes[:2] == [36, 40]
        assert minutes[2] >= 50
        assert all(later - earlier >= 4 for earlier, later in pairwise(minutes))
        assert minutes[-1] <= 390 - 45
        assert {each.outcome for each in ignitions.values()} == {"runner", "failure", "sideways"}


def test_early_close_leaves_room() -> None:
    """On a day that closes at 13:00 all ignitions come in time."""
    model = MarketModel(1, 120, CALENDAR)
    minutes = [each.minute for each in model.ignitions(date(2025, 12, 24)).values()]

    assert len(minutes) == 6
    assert max(minutes) <= 210 - 45


def test_bars_are_sound() -> None:
    """High and low hold open and close, days follow one another closely, and every day has volume."""
    _, found = series(1)
    for days in found.values():
        for day in days:
            assert 0 < day.low <= min(day.open, day.close)
            assert max(day.open, day.close) <= day.high
            assert day.volume >= 8_000
        for before, after in pairwise(days):
            assert abs(after.open - before.close) <= 0.01 * before.close


def test_any_order_of_asking() -> None:
    """A day is the same whatever was asked before it: nothing is chained."""
    _, found = series(1)
    model = MarketModel(1, 120, CALENDAR)
    for symbol in sorted(found, reverse=True)[::7]:
        for place in (-1, 40, 3, 60):
            day = found[symbol][place]
            assert model.day(symbol, day.day) == day


def test_later_calendar_changes_nothing() -> None:
    """A calendar that reaches further leaves the days alone that are more than a block before its old end."""
    short = MarketModel(1, 120, calendar(last=date(2026, 4, 10)))
    _, found = series(1)
    for symbol, days in found.items():
        for day in days[: DAYS.index(START)]:
            assert short.day(symbol, day.day) == day


def test_before_the_calendar() -> None:
    """Weekdays before the calendar begins count as sessions, so that even its first days have their patterns."""
    model = MarketModel(1, 120, calendar(first=START))
    days = [START - timedelta(days=n) for n in range(40, 0, -1)]
    weekdays = [day for day in days if day.weekday() < 5][-20:]
    for symbol, kind in model.planted(START).items():
        bars = [each for each in (model.day(symbol, day) for day in weekdays) if each is not None]
        assert len(bars) == 20
        assert score(bars).priority == PRIORITY[kind]


def test_another_seed_is_another_market() -> None:
    """Seeds share the symbols, and nothing else."""
    one, two = MarketModel(1, 120, CALENDAR), MarketModel(2, 120, CALENDAR)

    assert one.stocks.keys() == two.stocks.keys()
    assert one.planted(START) != two.planted(START)
    assert one.day("BEME", START) != two.day("BEME", START)


def test_companies() -> None:
    """There are 120 symbols of four letters, most at 2 to 10 USD; a few are dearer or hardly traded."""
    stocks = MarketModel(1, 120, CALENDAR).stocks
    dear = [stock for stock in stocks.values() if stock.price > 1000]
    thin = [stock for stock in stocks.values() if stock.volume < 100_000]

    assert len(stocks) == 120
    assert all(len(symbol) == 4 and symbol.isupper() for symbol in stocks)
    assert len(dear) == len(thin) == 4
    assert all(stock.lane is None for stock in (*dear, *thin))
    assert len(MarketModel(1, 1000, CALENDAR).stocks) == 1000


@given(
    st.integers(1, 2**32),
    st.integers(260, 900),
    st.integers(4, 20),
    st.floats(-1, 1),
)
def test_bridge(seed: int, price: int, moves: int, part: float) -> None:
    """From four moves on, every target within reach is met by moves of the wanted size alone."""
    low, high = Stock("TEST", price, 1, 0).moves
    target = price + round(part * moves * high * 0.6)
    closes = bridge(generator(seed), price, target, moves, (low, high))
    steps = [abs(after - before) for before, after in pairwise([price, *closes])]

    assert closes[-1] == target
    assert len(closes) == moves
    assert all(low <= step <= high for step in steps)


def test_bridge_beyond_reach() -> None:
    """A target that is too far, or too few moves for it, takes moves of another size and still gets there."""
    assert bridge(generator(1), 500, 900, 4, (7, 12))[-1] == 900
    assert bridge(generator(1), 500, 501, 1, (7, 12)) == [501]
    assert bridge(generator(1), 500, 501, 0, (7, 12)) == []


@given(st.integers(600_000, 800_000))
def test_weekday_numbers(ordinal: int) -> None:
    """Weekdays are numbered without a gap; a weekend has its Friday's number."""
    day = date.fromordinal(ordinal)
    number = weekday_number(day)
    back = weekday_date(number)

    assert back.weekday() < 5
    assert back == day if day.weekday() < 5 else day - timedelta(days=day.weekday() - 4)
    assert weekday_number(back) == number

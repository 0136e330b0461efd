"""The simulated feed: the same market whatever is subscribed, at any speed, after any restart."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from sigma9_core.contracts import Factory, NoConfig
from sigma9_core.errors import DataError
from sigma9_core.models import Bar, Frozen, Quote, Slice, Trade, WatchlistItem
from sigma9_core.scanning import SPARE_SESSIONS, scan
from sigma9_plugins.feeds import pacing
from sigma9_plugins.feeds import simulated as plugin
from sigma9_plugins.feeds.market_stocks import PRIORITY, TRADABLE, Ignition
from sigma9_plugins.feeds.pacing import Pacer
from sigma9_plugins.feeds.simulated import SimulatedConfig, SimulatedFeed
from sigma9_plugins.scanners.seismograph import Seismograph, SeismographConfig
from sigma9_plugins.testing.market_room import at, calendar, simulated, until

MONDAY = date(2026, 3, 2)
STEP = timedelta(seconds=5)


async def play(
    end: datetime, symbols: frozenset[str], since: datetime | None = None, **settings: Any
) -> list[Slice]:
    """Play a market with some symbols subscribed, up to a time."""
    feed = simulated(**settings)
    await feed.connect(since)
    feed.subscribe(symbols)
    return await until(feed, end)


def only(found: list[Slice], symbols: frozenset[str]) -> list[Slice]:
    """Leave the data of some symbols."""

    def mine(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(item for item in items if item.symbol in symbols)

    return [Slice(data.ts, mine(data.quotes), mine(data.trades), mine(data.bars)) for data in found]


def test_plugin_registers_the_feed() -> None:
    """The plugin offers one feed, `simulated`."""
    offered: dict[str, Any] = {}

    def register(name: str, factory: Factory, config: type[Frozen] = NoConfig) -> None:
        offered[name] = config

    plugin.register_feeds(register)

    assert offered == {"simulated": SimulatedConfig}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"step_seconds": 7}, "does not divide a minute"),
        ({"speed": -1}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"symbols": 5}, "symbols"),
        ({"start_time": "25:00"}, "start_time"),
        ({"sped": 1}, "sped"),
    ],
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    """A setting that makes no sense is an error that names it."""
    with pytest.raises(ValidationError, match=says):
        SimulatedConfig(**wrong)


# --- time -----------------------------------------------------------------------------------------------------


async def test_starts_at_ten() -> None:
    """A new market starts at 10:00 New York of its first day, with the morning there already."""
    feed = simulated()
    assert feed.now is None
    await feed.connect(None)
    symbol = feed.symbols[0]
    morning = feed.minute_bars(symbol, at(MONDAY, 12), 1000)
    first, second = (await until(feed, at(MONDAY, 10, 0, 5)))[:2]

    assert feed.starts_at == at(MONDAY, 10)
    assert first == Slice(at(MONDAY, 10))
    assert second.ts - first.ts == STEP
    assert [bar.ts for bar in morning] == [at(MONDAY, 9, 30 + n) for n in range(30)]


async def test_start_on_a_weekend() -> None:
    """Where the first day is no session, the market starts at 10:00 of the next one."""
    feed = simulated(start=date(2026, 2, 14))
    await feed.connect(None)

    assert feed.now == at(date(2026, 2, 17), 10)  # Monday the 16th is a holiday


async def test_start_and_step_are_settings() -> None:
    """The first day, its time and the step are what the settings say."""
    found = await play(
        at(date(2026, 3, 4), 11, 31), frozenset(), start=date(2026, 3, 4), start_time="11:30", step_seconds=30
    )

    assert [data.ts for data in found] == [at(date(2026, 3, 4), 11, 30 + n // 2, n % 2 * 30) for n in range(3)]


async def test_a_night_a_weekend_and_a_holiday() -> None:
    """After 16:35 the clock jumps to 9:25 of the next session: over the night, the weekend and Good Friday."""
    thursday = date(2026, 4, 2)
    found = await play(at(date(2026, 4, 6), 9, 26), frozenset(), start=thursday, start_time="16:30")
    times = [data.ts for data in found]
    jump = next(i for i, (a, b) in enumerate(pairwise(times)) if b - a > STEP)

    assert times[jump] == at(thursday, 16, 35)
    assert times[jump + 1] == at(date(2026, 4, 6), 9, 25)
    assert all(b - a == STEP for a, b in pairwise(times[: jump + 1]))


async def test_daylight_saving() -> None:
    """The session opens at 9:30 New York before and after the clocks change."""
    found = await play(at(date(2026, 3, 9), 9, 31), frozenset(), start=date(2026, 3, 6), start_time="16:34")

    assert found[-1].ts == at(date(2026, 3, 9), 9, 31)
    assert found[-1].ts.hour == 13  # an hour earlier in UTC than on the Friday before


async def test_early_close() -> None:
    """On a short day the data end at 13:00, and the clock goes on to 16:35."""
    day = date(2025, 12, 24)
    symbols = frozenset(simulated().symbols[:3])
    found = await play(at(date(2025, 12, 26), 9, 25), symbols, start=day, start_time="12:55")
    with_data = [data.ts for data in found if data.quotes or data.trades or data.bars]

    assert with_data[-1] == at(day, 13)
    assert at(day, 16, 35) in {data.ts for data in found}
    assert found[-1].ts == at(date(2025, 12, 26), 9, 25)


async def test_outside_the_session_there_are_no_data() -> None:
    """Slices before the open and after the close are empty; the first data come a step after the open."""
    symbols = frozenset(simulated().symbols[:3])
    day = date(2026, 3, 3)
    found = await play(at(day, 9, 31), symbols, start=MONDAY, start_time="15:58")
    with_data = [data.ts for data in found if data.quotes or data.trades or data.bars]

    assert at(MONDAY, 16) in with_data
    assert not [ts for ts in with_data if at(MONDAY, 16) < ts <= at(day, 9, 30)]
    assert at(day, 9, 30, 5) in with_data


async def test_the_calendar_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Where the calendar ends, the slices end, and the log says why."""
    feed = simulated(calendar(last=date(2026, 3, 3)), start=date(2026, 3, 3), start_time="16:34")
    await feed.connect(None)
    found = await until(feed)

    assert found[-1].ts == at(date(2026, 3, 3), 16, 35)
    assert "the calendar XNYS ends here" in caplog.text


async def test_no_session_at_all() -> None:
    """A start behind the calendar's end is an error that names the setting."""
    with pytest.raises(DataError, match="`start`"):
        await simulated(start=date(2027, 1, 4)).connect(None)


async def test_slices_need_a_connection() -> None:
    """Slices of a feed that is not connected are an error, not silence."""
    with pytest.raises(DataError, match="connect"):
        await anext(simulated().slices())


# --- the same market ------------------------------------------------------------------------------------------


async def test_subscriptions_change_nothing() -> None:
    """A symbol's data are the same alone and among all, and come again exactly with the same seed."""
    end = at(MONDAY, 10, 12)
    everything = frozenset(simulated().symbols)
    some = frozenset(list(simulated().planted(MONDAY))[:3])
    full = await play(end, everything)

    assert only(full, some) == await play(end, some)
    assert full == await play(end, everything)
    assert await play(end, some, seed=2) != await play(end, some)


async def test_subscribing_in_the_middle() -> None:
    """A symbol that is subscribed within a minute gives what it would have given anyhow, from then on."""
    some = frozenset(list(simulated().planted(MONDAY))[:2])
    full = await play(at(MONDAY, 10, 4), some)
    feed = simulated()
    await feed.connect(None)
    found = []
    async for data in feed.slices():
        found.append(data)
        if data.ts == at(MONDAY, 10, 1, 25):
            feed.subscribe(some)
        if data.ts == at(MONDAY, 10, 2, 20):
            feed.subscribe(frozenset(list(some)[:1]))
        if data.ts == at(MONDAY, 10, 2, 40):
            feed.subscribe(some)
        if data.ts == at(MONDAY, 10, 4):
            break

    def between(first: datetime, last: datetime, slices: list[Slice]) -> list[Slice]:
        return [data for data in slices if first < data.ts <= last]

    assert not any(data.quotes for data in between(at(MONDAY, 10), at(MONDAY, 10, 1, 25), found))
    for first, last in (
        (at(MONDAY, 10, 1, 25), at(MONDAY, 10, 2, 20)),
        (at(MONDAY, 10, 2, 40), at(MONDAY, 10, 4)),
    ):
        assert between(first, last, found) == between(first, last, full)


@pytest.mark.parametrize(
    "since", [at(MONDAY, 10, 7, 35), at(MONDAY, 10, 8), at(MONDAY, 15, 59, 55), at(MONDAY, 16, 35)]
)
async def test_resume(since: datetime) -> None:
    """After a restart the market goes on behind the last known time, with the same data."""
    symbols = frozenset(simulated().planted(MONDAY))
    end = since + timedelta(minutes=3) if since < at(MONDAY, 16) else at(date(2026, 3, 3), 9, 32)
    start = "09:30" if since < at(MONDAY, 11) else "15:50"
    straight = await play(end, symbols, start_time=start)
    resumed = await play(end, symbols, since)

    assert resumed[0] == Slice(since)
    assert resumed[1:] == [data for data in straight if data.ts > since]


async def test_resume_between_two_steps() -> None:
    """A time between two steps is no loss: what came after it is in the next slice, and nothing before it."""
    symbols = frozenset(simulated().planted(MONDAY))
    since = at(MONDAY, 10, 7, 33)
    (step,) = [data for data in await play(since + STEP, symbols) if data.ts == at(MONDAY, 10, 7, 35)]
    resumed = await play(since + STEP, symbols, since)

    assert resumed[1].ts == step.ts
    assert resumed[1].trades == tuple(trade for trade in step.trades if trade.ts > since)


async def test_data_fit_together() -> None:
    """Bars are made of the trades; quotes stand around the last trade, on the side that its aggressor took."""
    symbols = frozenset(simulated().planted(MONDAY))
    found = await play(at(MONDAY, 10, 10), symbols)
    trades: dict[str, list[Trade]] = {symbol: [] for symbol in symbols}
    for before, data in pairwise(found):
        for trade in data.trades:
            assert before.ts < trade.ts <= data.ts
            assert trade.side in ("buy", "sell")
            trades[trade.symbol].append(trade)
        assert [quote.symbol for quote in data.quotes] == sorted(symbols)
        for quote in data.quotes:
            assert quote.ts == data.ts
            assert quote.bid is not None
            assert quote.ask is not None
            assert 0.009 < quote.ask - quote.bid < 0.021
            last = trades[quote.symbol][-1]
            assert last.price in (pytest.approx(quote.bid), pytest.approx(quote.ask))
            if last.ts > before.ts:
                assert last.price == pytest.approx(quote.ask if last.side == "buy" else quote.bid)
        assert bool(data.bars) is (data.ts.second == 0)
        for bar in data.bars:
            inside = [trade for trade in trades[bar.symbol] if bar.ts < trade.ts < bar.ts + timedelta(minutes=1)]
            prices = [trade.price for trade in inside]
            assert bar.ts == data.ts - timedelta(minutes=1)
            assert (bar.open, bar.high, bar.low, bar.close) == (prices[0], max(prices), min(prices), prices[-1])
            assert bar.volume == sum(trade.size for trade in inside)


async def test_daily_bars_are_made_of_minutes() -> None:
    """A session's daily bar is what its minute bars add up to, once it has closed."""
    feed = simulated()
    await feed.connect(at(MONDAY, 16))
    daily = {row[0]: row[1:] for row in feed.daily_bars(MONDAY, 1).collect().iter_rows()}
    for symbol in feed.symbols[::20]:
        bars = feed.minute_bars(symbol, at(MONDAY, 16), 390)
        day, opens, high, low, close, volume = daily[symbol]
        assert day == MONDAY
        assert len(bars) == 390
        assert (opens, close) == (bars[0].open, bars[-1].close)
        assert (high, low) == (max(bar.high for bar in bars), min(bar.low for bar in bars))
        assert volume == sum(bar.volume for bar in bars)


async def test_daily_bars_do_not_look_ahead() -> None:
    """The running session has no daily bar until it has closed, whatever is asked for."""
    feed = simulated()
    await feed.connect(at(MONDAY, 15, 59, 55))
    for as_of in (MONDAY, date(2026, 3, 31)):
        days = feed.daily_bars(as_of, 30).collect()["ts"].unique().sort().to_list()
        assert days[-1] == date(2026, 2, 27)
        assert len(days) == 30
    thirty = feed.daily_bars(date(2026, 2, 27), 30).collect()

    assert thirty.height == 30 * 120
    assert thirty.columns == ["symbol", "ts", "open", "high", "low", "close", "volume"]


async def test_daily_bars_before_the_connection() -> None:
    """A scan at the start, before the feed is connected, gets the sessions up to its date."""
    feed = simulated()
    frame = feed.daily_bars(date(2026, 2, 27), 20).collect()

    assert frame.height == 20 * 120
    assert frame["ts"].max() == date(2026, 2, 27)


async def test_minute_bars_do_not_look_ahead() -> None:
    """No bar ends behind the market time, and the last ones are given when fewer are asked for."""
    feed = simulated()
    await feed.connect(at(MONDAY, 10, 5, 30))
    symbol = feed.symbols[0]

    assert feed.minute_bars(symbol, at(MONDAY, 15), 390)[-1].ts == at(MONDAY, 10, 4)
    assert [bar.ts for bar in feed.minute_bars(symbol, at(MONDAY, 9, 35), 2)] == [
        at(MONDAY, 9, 33),
        at(MONDAY, 9, 34),
    ]
    assert feed.minute_bars(symbol, at(MONDAY, 9), 5)[-1].ts == at(date(2026, 2, 27), 15, 59)
    assert feed.minute_bars("AAPL", at(MONDAY, 10), 5) == []
    assert feed.minute_bars(symbol, at(MONDAY, 10), 0) == []


async def test_unknown_symbols_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """A symbol that the market does not have stays silent, and the log names it once."""
    feed = simulated()
    await feed.connect(None)
    for _ in range(2):
        feed.subscribe(frozenset(("AAPL", feed.symbols[0])))
    found = await until(feed, at(MONDAY, 10, 0, 5))

    assert {quote.symbol for quote in found[-1].quotes} == {feed.symbols[0]}
    assert caplog.text.count("no symbol AAPL") == 1


# --- ignitions ------------------------------------------------------------------------------------------------


class Watch:
    """The four parts of an ignition and its filters, written out once more, for one symbol."""

    def __init__(self, bars: list[Bar]) -> None:
        self.bars = bars
        self.trades: deque[Trade] = deque()
        self.value = sum((bar.high + bar.low + bar.close) / 3 * bar.volume for bar in bars)
        self.volume = sum(bar.volume for bar in bars)
        self.path: list[tuple[datetime, float]] = []

    def take(self, trade: Trade) -> None:
        """Take a trade."""
        self.trades.append(trade)
        self.value += trade.price * trade.size
        self.volume += trade.size
        self.path.append((trade.ts, trade.price))

    def score(self, quote: Quote) -> float:
        """Score the moment of a quote; 0 where a filter does not hold."""
        now = quote.ts
        while self.trades and now - self.trades[0].ts > timedelta(seconds=60):
            self.trades.popleft()
        recent = sum(now - trade.ts <= timedelta(seconds=10) for trade in self.trades)
        base = (len(self.trades) - recent) / 5
        buys = sum(trade.size for trade in self.trades if trade.side == "buy")
        sells = sum(trade.size for trade in self.trades if trade.side == "sell")
        price, box = self.trades[-1].price, max(bar.high for bar in self.bars[-30:])
        average = sum(bar.volume for bar in self.bars[-6:-1]) / 5
        assert quote.bid is not None
        assert quote.ask is not None
        narrow = (quote.ask - quote.bid) / ((quote.ask + quote.bid) / 2) < 0.01
        if base == 0 or len(self.trades) < 10 or not narrow or price <= self.value / self.volume:
            return 0.0
        return (
            35 * _part(recent / base, 8, 4)
            + 30 * _part(self.bars[-1].volume / average, 6, 3)
            + 20 * _part(price / box, 1.005, 1)
            + 15 * _part(buys / sells if sells else 9, 1.8, 0.9)
        )


def _part(value: float, full: float, half: float) -> float:
    return 1.0 if value > full else 0.5 if value > half else 0.0


async def whole_day(
    feed: SimulatedFeed, day: date
) -> tuple[dict[str, Watch], dict[str, list[tuple[datetime, float]]]]:
    """Play a day with its planted symbols; give the watches, and when each symbol scored 70 or more."""
    await feed.connect(at(day, 10))
    symbols = sorted(feed.planted(day))
    feed.subscribe(frozenset(symbols))
    watches = {symbol: Watch(list(feed.minute_bars(symbol, at(day, 10), 30))) for symbol in symbols}
    hits: dict[str, list[tuple[datetime, float]]] = {}
    for data in (await until(feed, at(day, 16)))[1:]:
        for trade in data.trades:
            watches[trade.symbol].take(trade)
        for bar in data.bars:
            watches[bar.symbol].bars.append(bar)
        for quote in data.quotes:
            score = watches[quote.symbol].score(quote)
            if score >= 70:
                hits.setdefault(quote.symbol, []).append((quote.ts, score))
    return watches, hits


def outcome(path: list[tuple[datetime, float]], entry: datetime) -> tuple[float, float, float]:
    """Give the change in percent: lowest and highest in three minutes, and highest in twenty."""
    price = next(price for ts, price in path if ts > entry)

    def changes(seconds: int) -> list[float]:
        return [100 * (p / price - 1) for ts, p in path if entry < ts <= entry + timedelta(seconds=seconds)]

    return min(changes(180)), max(changes(180)), max(changes(1200))


async def test_planned_ignitions_fire_and_no_others() -> None:
    """Each planned ignition scores 100 with all filters within 20 seconds, and nothing else scores 70 all day."""
    feed = simulated()
    watches, hits = await whole_day(feed, MONDAY)
    planned: Mapping[str, Ignition] = feed.ignitions(MONDAY)

    assert hits.keys() == planned.keys()
    assert planned.keys() == {s for s, kind in feed.planted(MONDAY).items() if kind in TRADABLE}
    for symbol, ignition in planned.items():
        begins = at(MONDAY, 9, 30) + timedelta(minutes=ignition.minute)
        times = [ts for ts, _ in hits[symbol]]
        assert begins < times[0] <= begins + timedelta(seconds=20)
        assert max(score for _, score in hits[symbol]) == 100
        low, high, later = outcome(watches[symbol].path, times[0])
        if ignition.outcome == "runner":
            assert high > 3, "the trail has to be on before the time stop"
            assert 4 < later < 9.5
            assert low > -1.5
        elif ignition.outcome == "failure":
            assert low < -2.3
            assert high < 1.5
        else:
            assert -1.5 < low < high < 1.5
    assert min(ignition.minute for ignition in planned.values()) <= 40


async def test_runners_fall_back() -> None:
    """A runner gives back more than 2 % from its peak within the hour, so that a trailing stop gets out."""
    feed = simulated()
    watches, hits = await whole_day(feed, MONDAY)
    runners = [symbol for symbol, ignition in feed.ignitions(MONDAY).items() if ignition.outcome == "runner"]
    assert runners
    for symbol in runners:
        entry = hits[symbol][0][0]
        path = [(ts, price) for ts, price in watches[symbol].path if entry < ts <= entry + timedelta(hours=1)]
        peak = max(range(len(path)), key=lambda i: path[i][1])
        assert min(price for _, price in path[peak:]) < 0.98 * path[peak][1]


async def test_the_seismograph_agrees() -> None:
    """The built-in strategy finds the tradable patterns, ranked as planned, and signals each ignition."""
    feed = simulated()
    await feed.connect(None)
    scanner = Seismograph(SeismographConfig(), "seismograph")
    friday = date(2026, 2, 27)
    found = scan(feed.daily_bars(friday, scanner.lookback + SPARE_SESSIONS), scanner, friday, "seismograph")
    planted = feed.planted(MONDAY)
    wanted = {symbol: PRIORITY[kind] for symbol, kind in planted.items() if kind in TRADABLE}
    assert found.error is None
    assert {row.symbol: row.priority for row in found.rows} == wanted

    items = [WatchlistItem(symbol=symbol, stage=4, added_at=at(MONDAY, 10)) for symbol in wanted]
    trigger = scanner.trigger()
    trigger.watch(items, {symbol: feed.minute_bars(symbol, at(MONDAY, 10), 390) for symbol in wanted})
    feed.subscribe(frozenset(wanted))
    session = calendar().on(MONDAY)
    signals = {
        signal.symbol: signal.ts
        for data in await until(feed, at(MONDAY, 15, 59))
        for signal in trigger.on_slice(data, session)
    }
    late = timedelta(seconds=20)
    begins = {s: at(MONDAY, 9, 30) + timedelta(minutes=each.minute) for s, each in feed.ignitions(MONDAY).items()}
    assert signals.keys() == begins.keys()
    assert all(begins[symbol] < ts <= begins[symbol] + late for symbol, ts in signals.items())


# --- pacing ---------------------------------------------------------------------------------------------------


class Wall:
    """A wall clock by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        monkeypatch.setattr(pacing, "monotonic", lambda: self.now)
        monkeypatch.setattr("sigma9_plugins.feeds.pacing.asyncio.sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self.now += seconds


async def test_pace_has_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Due times are absolute: what a step takes is taken from the next wait, and nothing adds up."""
    wall = Wall(monkeypatch)
    pacer = Pacer(60)
    for _ in range(1000):
        await pacer.wait(6)
        wall.now += 0.03

    assert wall.now == pytest.approx(100 + 1000 * 0.1 + 0.03)
    assert min(wall.slept) >= 0


async def test_pace_is_not_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is far behind is not hurried: the market runs slower, and then at its speed again."""
    wall = Wall(monkeypatch)
    pacer = Pacer(60)
    await pacer.wait(6)
    wall.now += 50
    before = wall.now
    for _ in range(10):
        await pacer.wait(6)

    assert wall.now == pytest.approx(before + 0.9)


async def test_speed_is_kept() -> None:
    """At 600 × a market minute takes a tenth of a second on the wall."""
    feed = simulated(speed=600)
    await feed.connect(None)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await until(feed, at(MONDAY, 10, 1))

    assert 0.095 <= loop.time() - begun < 1


async def test_quiet_feed() -> None:
    """At speed 0 there is one slice, which sets the clock, and then nothing until the feed is disconnected."""
    feed = simulated(speed=0)
    await feed.connect(None)
    feed.subscribe(frozenset(feed.symbols))
    found: list[Slice] = []

    async def take() -> None:
        found.extend([data async for data in feed.slices()])

    taking = asyncio.create_task(take())
    done, _ = await asyncio.wait((taking,), timeout=0.05)
    assert not done
    await feed.disconnect()
    await asyncio.wait_for(taking, 1)

    assert found == [Slice(at(MONDAY, 10))]
    assert feed.now == at(MONDAY, 10)


@pytest.mark.parametrize("speed", ["max", 1.0, 0])
async def test_cancelled_iterator(speed: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A task that takes slices can be cancelled at any point; the feed connects again and goes on."""
    caplog.set_level(logging.WARNING)
    feed = simulated(speed=speed)
    await feed.connect(None)

    async def take() -> None:
        async for _ in feed.slices():
            await asyncio.sleep(0)

    taking = asyncio.create_task(take())
    await asyncio.sleep(0.02)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    stopped = feed.now
    await feed.disconnect()
    await feed.connect(stopped)
    stream = feed.slices()
    assert (await anext(stream)).ts == stopped
    await stream.aclose()  # type: ignore[attr-defined]
    assert caplog.text == ""


async def test_disconnect_ends_the_slices() -> None:
    """Slices end with the connection."""
    feed = simulated()
    await feed.connect(None)
    found = 0
    async for _ in feed.slices():
        found += 1
        if found == 5:
            await feed.disconnect()

    assert found == 5

"""The simulated feed: a whole small market, the same at every start, that shows what Sigma9 does.

About 120 fictional companies trade at 2 to 10 USD. Each day some have built up an accumulation pattern that a scan
of the session before finds, and those that may be traded are set off during the day: some run and fall back, some
fail, some go nowhere. Everything follows from the seed: the same day has the same trades whatever is subscribed,
and after a restart the market goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field, field_validator

from sigma9_core.clock import ClockKind
from sigma9_core.config import Clockface
from sigma9_core.contracts import PluginContext, Register
from sigma9_core.errors import DataError
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Bar, Frozen, Quote, Session, Slice, Trade
from sigma9_plugins.feeds.market_minutes import Minute, Tick, minutes_of_day, ticks_of_minute
from sigma9_plugins.feeds.market_model import MarketModel
from sigma9_plugins.feeds.market_stocks import FEWEST, NEW_YORK, Ignition, Kind, generator, minutes_of
from sigma9_plugins.feeds.pacing import Pacer, Speed, closed_sessions

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)

DEFAULT_START: Final = date(2026, 3, 2)
"""The first day of a new simulated market."""
WAKE: Final = timedelta(minutes=5)
"""The market's day begins this long before the open."""
SLEEP: Final = time(16, 35)
"""The market's day ends at this time in New York, early closes included."""
MINUTE: Final = timedelta(minutes=1)


class SimulatedConfig(Frozen):
    """Settings of the simulated feed."""

    seed: Annotated[int, Field(ge=0)] = 1
    """Another seed is another market."""
    symbols: Annotated[int, Field(ge=FEWEST, le=1000)] = 120
    """How many companies there are."""
    speed: Speed = 60.0
    """Market seconds a second; `max`: as fast as possible; 0: the clock stands still and there are no data."""
    step_seconds: Annotated[int, Field(ge=1, le=60)] = 5
    """Market seconds from slice to slice; a divisor of 60."""
    start: date = DEFAULT_START
    """The first day, or the next session after it."""
    start_time: Clockface = "10:00"
    """The time in New York at which the first day starts."""

    @field_validator("step_seconds")
    @classmethod
    def _whole_minutes(cls, value: int) -> int:
        if 60 % value:
            raise ValueError(f"{value} does not divide a minute; take 1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30 or 60")
        return value


@dataclass(slots=True)
class _Live:
    """A subscribed symbol's minute in progress."""

    start: datetime
    minute: Minute
    ticks: list[Tick]
    next: int
    price: int
    buying: bool


class SimulatedFeed:
    """The feed of a simulated market; its clock is stepped by its slices."""

    clock_kind: ClockKind = "simulated"

    def __init__(self, config: SimulatedConfig, context: PluginContext) -> None:
        self._config = config
        self._calendar = context.calendar
        self._model = MarketModel(config.seed, config.symbols, context.calendar)
        self._minutes = lru_cache(maxsize=config.symbols + 16)(self._make_minutes)
        self._step = timedelta(seconds=config.step_seconds)
        self._wanted: tuple[str, ...] = ()
        self._live: dict[str, _Live] = {}
        self._warned: set[str] = set()
        self._now: datetime | None = None
        self._closed = asyncio.Event()

    # --- what tests and the curious may ask -------------------------------------------------------------------

    @property
    def symbols(self) -> Sequence[str]:
        """List every symbol of this market, sorted."""
        return tuple(self._model.stocks)

    @property
    def starts_at(self) -> datetime:
        """Tell when the first day starts; it may be no session, then the market starts at the next one."""
        config = self._config
        return datetime.combine(config.start, time.fromisoformat(config.start_time), NEW_YORK).astimezone(UTC)

    @property
    def now(self) -> datetime | None:
        """Tell the market time of the newest slice; None before `connect`."""
        return self._now

    def planted(self, day: date) -> Mapping[str, Kind]:
        """Tell which patterns a scan of the session before `day` finds (`market_stocks.PRIORITY` ranks them)."""
        return self._model.planted(day)

    def ignitions(self, day: date) -> Mapping[str, Ignition]:
        """Tell which symbols are set off on a day, at which minute after the open, and how that ends."""
        return self._model.ignitions(day)

    # --- the feed ---------------------------------------------------------------------------------------------

    async def connect(self, since: datetime | None) -> None:
        """Set the clock to `since`, or to the start of the first day; raise DataError where no session follows."""
        await self._calendar.ready()
        self._now = since or self._first_moment()
        if self._calendar.last(self._now) is None and self._calendar.after(self._now) is None:
            raise DataError(f"the calendar {self._calendar.name} has no session near {self._now.date()}")
        self._live.clear()
        self._closed = asyncio.Event()

    async def disconnect(self) -> None:
        """End `slices`."""
        self._closed.set()

    def subscribe(self, symbols: frozenset[str]) -> None:
        """Want data of exactly these symbols from the next slice on; unknown ones stay silent."""
        unknown = symbols - self._model.stocks.keys()
        for symbol in sorted(unknown - self._warned):
            log.warning("the simulated market has no symbol %s: there will be no data for it", symbol)
        self._warned |= unknown
        self._wanted = tuple(sorted(symbols - unknown))
        for symbol in self._live.keys() - symbols:
            del self._live[symbol]

    async def slices(self) -> AsyncIterator[Slice]:
        """Give the slices; the first has no data and sets the clock. Ends where the calendar ends."""
        if self._now is None:
            raise DataError("the simulated feed is not connected: await connect() first")
        yield Slice(self._now)
        if self._config.speed == 0:
            await self._closed.wait()
            return
        pacer = Pacer(self._config.speed)
        while not self._closed.is_set():
            ts = self._next(self._now)
            if ts is None:
                log.warning("the calendar %s ends here, and the simulated market with it", self._calendar.name)
                return
            await pacer.wait(min(ts - self._now, self._step).total_seconds())
            data = self._slice(self._now, ts)
            self._now = ts
            yield data

    def daily_bars(self, as_of: date, sessions: int) -> pl.LazyFrame:
        """Give the daily bars of all symbols for the last `sessions` sessions up to `as_of` that have closed."""
        import polars as pl  # noqa: PLC0415 - heavy, and only scans need it

        days = closed_sessions(self._calendar, as_of, sessions, self._now)
        rows = [
            (
                symbol,
                found.day,
                found.open / 100,
                found.high / 100,
                found.low / 100,
                found.close / 100,
                found.volume,
            )
            for symbol in self._model.stocks
            for found in (self._model.day(symbol, day) for day in days)
            if found is not None
        ]
        schema = {
            "symbol": pl.String,
            "ts": pl.Date,
            **dict.fromkeys(("open", "high", "low", "close", "volume"), pl.Float64),
        }
        return pl.DataFrame(rows, schema=schema, orient="row").lazy()

    def minute_bars(self, symbol: str, until: datetime, count: int) -> Sequence[Bar]:
        """Give the last `count` minute bars, by `until`, of the session that it falls in or after."""
        if self._now is not None:
            until = min(until, self._now)
        session = self._calendar.last(until)
        if session is None or symbol not in self._model.stocks or count <= 0:
            return []
        minutes = self._minutes(symbol, session)
        done = min(len(minutes), int((until - session.open) / MINUTE))
        return [_bar(symbol, session, index, minutes[index]) for index in range(max(0, done - count), done)]

    # --- time -------------------------------------------------------------------------------------------------

    def _first_moment(self) -> datetime:
        config = self._config
        session = self._calendar.on(config.start) or self._calendar.after(self.starts_at)
        if session is None:
            raise DataError(
                f"the calendar {self._calendar.name} has no session from {config.start} on: "
                "set the simulated feed's `start` to an earlier day"
            )
        return _new_york(session, time.fromisoformat(config.start_time))

    def _next(self, now: datetime) -> datetime | None:
        """Give the time of the next slice: the next step of the day, or five minutes before the next open."""
        for session in (self._calendar.last(now + WAKE), self._calendar.after(now + WAKE)):
            if session is not None:
                wake, sleep = session.open - WAKE, _new_york(session, SLEEP)
                if now < wake:
                    return wake
                ts = wake + ((now - wake) // self._step + 1) * self._step
                if ts <= sleep:
                    return ts
        return None

    # --- data -------------------------------------------------------------------------------------------------

    def _slice(self, after: datetime, ts: datetime) -> Slice:
        """Make the slice of what happened later than `after` and by `ts`, which lie in the same step."""
        session = self._calendar.last(ts)
        if not self._wanted or session is None or not session.open < ts <= session.close:
            return Slice(ts)
        index = -((session.open - ts) // MINUTE) - 1
        start = session.open + index * MINUTE
        since = (after - start) // timedelta(milliseconds=1)
        until = (ts - start) // timedelta(milliseconds=1)
        quotes: list[Quote] = []
        trades: list[Trade] = []
        bars: list[Bar] = []
        for symbol in self._wanted:
            live = self._live.get(symbol)
            if live is None or live.start != start:
                live = self._live[symbol] = self._load(symbol, session, index, start, since)
            ticks = live.ticks
            while live.next < len(ticks) and ticks[live.next].at <= until:
                tick = ticks[live.next]
                live.next += 1
                live.price, live.buying = tick.price, tick.side == "buy"
                at = start + timedelta(milliseconds=tick.at)
                trades.append(Trade(symbol, at, tick.price / 100, float(tick.size), tick.side))
            quotes.append(_quote(symbol, ts, live))
            if until == 60_000:
                bars.append(_bar(symbol, session, index, live.minute))
        trades.sort(key=lambda trade: trade.ts)
        return Slice(ts, tuple(quotes), tuple(trades), tuple(bars))

    def _load(self, symbol: str, session: Session, index: int, start: datetime, since: int) -> _Live:
        """Begin a symbol's minute behind the trades that came before `since` (milliseconds of that minute)."""
        minute = self._minutes(symbol, session)[index]
        ticks = ticks_of_minute(minute, generator(self._model.seed, symbol, session.day, index))
        passed = [tick for tick in ticks if tick.at <= since]
        price = passed[-1].price if passed else minute.open
        buying = passed[-1].side == "buy" if passed else minute.close >= minute.open
        return _Live(start, minute, ticks, len(passed), price, buying)

    def _make_minutes(self, symbol: str, session: Session) -> Sequence[Minute]:
        day = self._model.day(symbol, date.fromisoformat(session.day))
        if day is None:
            raise DataError(f"the simulated market has no session on {session.day}")
        return minutes_of_day(day, minutes_of(session), generator(self._model.seed, symbol, session.day))


def _new_york(session: Session, moment: time) -> datetime:
    local = datetime.combine(date.fromisoformat(session.day), moment, NEW_YORK)
    return local.astimezone(session.open.tzinfo)


def _bar(symbol: str, session: Session, index: int, minute: Minute) -> Bar:
    start = session.open + index * MINUTE
    prices = (minute.open / 100, minute.high / 100, minute.low / 100, minute.close / 100)
    return Bar(symbol, start, *prices, float(minute.volume))


def _quote(symbol: str, ts: datetime, live: _Live) -> Quote:
    """Quote around the last trade: a buyer took the ask, a seller hit the bid."""
    spread = 1 if live.price < 700 else 2
    bid = live.price - spread if live.buying else live.price
    size = max(100, round(live.minute.volume / 800) * 100)
    return Quote(
        symbol,
        ts,
        bid / 100,
        (bid + spread) / 100,
        float(size * (1 + live.price % 3)),
        float(size * (1 + (live.price + live.next) % 3)),
    )


@hookimpl
def register_feeds(register: Register) -> None:
    """Offer the simulated feed."""
    register("simulated", _build, config=SimulatedConfig)


def _build(config: Any, context: PluginContext) -> SimulatedFeed:
    return SimulatedFeed(config, context)

"""The replay feed: minute bars from files, slice by slice at the end of each bar, as fast as wanted.

Files have bars and nothing else. So that price collars and anti-trap filters have a quote to judge by, one is made
up at each bar's end, `spread_percent` wide around the close; `synthetic_quotes: false` leaves it out. Trades
inside a bar are made up only where `trades_per_bar` asks for them: they go from the open through low and high (in
a falling bar: high and low) to the close, which is a guess.
"""

from __future__ import annotations

import asyncio
import bisect
import csv
import logging
import math
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import ConfigDict, Field, model_validator

from sigma9_core.clock import ClockKind
from sigma9_core.contracts import PluginContext, Register
from sigma9_core.errors import DataError
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Bar, Frozen, Quote, Slice, Split, Symbol, Trade
from sigma9_plugins.feeds.pacing import Pacer, Speed, closed_sessions

if TYPE_CHECKING:
    import polars as pl

    from sigma9_core.bars import BarTable, Rejected

log = logging.getLogger(__name__)

NEW_YORK: Final = ZoneInfo("America/New_York")
QUOTED: Final = 0.1
"""The share of its bar's volume that a made-up quote shows on each side."""
NIGHT: Final = timedelta(hours=1)
"""A longer pause between two slices is jumped over."""

Moment = date | datetime
"""A date, or a time; a time without a zone is in New York."""


class ReplayConfig(Frozen):
    """Settings of the replay feed."""

    model_config = ConfigDict(populate_by_name=True)

    files: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Intraday bars, Parquet or CSV: symbol, ts, open, high, low, close, volume."""
    stamp: Literal["start", "end"]
    """Whether `ts` is the start or the end of its bar."""
    seconds: Annotated[int, Field(ge=1, le=86_400)] = 60
    """The length of a bar."""
    daily_files: tuple[Path, ...] = ()
    """Daily bars to scan; without them they are made from the intraday bars of earlier sessions."""
    splits: Path | None = None
    """Splits of unadjusted bars, CSV: symbol, date, new, old (`AAPL,2020-08-31,4,1`), from that date's open on."""
    speed: Speed = "max"
    """Market seconds a second; `max`: as fast as possible; 0: the clock stands still."""
    from_: Annotated[Moment | None, Field(alias="from")] = None
    """Bars that begin earlier are history and are not replayed."""
    to: Moment | None = None
    """Bars that end later are left out; a date counts as a whole."""
    symbols: tuple[Symbol, ...] = ()
    """Only these symbols; none named means all."""
    synthetic_quotes: bool = True
    """Make up a quote at the end of each bar."""
    spread_percent: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.05
    """The width of that quote in percent of the close: bid and ask lie half of it away."""
    trades_per_bar: Annotated[int, Field(ge=0, le=1000)] = 0
    """Make up so many trades inside each bar."""

    @model_validator(mode="after")
    def _order(self) -> ReplayConfig:
        first, last = self.first_moment, self.last_moment
        if first is not None and last is not None and last <= first:
            raise ValueError(f"to: {self.to} does not lie after from: {self.from_}")
        return self

    @property
    def first_moment(self) -> datetime | None:
        """Give `from` as an aware time."""
        return None if self.from_ is None else _aware(self.from_)

    @property
    def last_moment(self) -> datetime | None:
        """Give `to` as an aware time: the end of the day where it is a date."""
        if self.to is None:
            return None
        whole = not isinstance(self.to, datetime)
        return _aware(self.to + timedelta(days=1) if whole else self.to)


@dataclass(frozen=True, slots=True)
class _Data:
    """What was read."""

    history: pl.DataFrame
    """All bars, sorted by symbol and time."""
    places: Mapping[str, tuple[int, int]]
    """Where each symbol's bars lie in `history`: offset and length."""
    replay: pl.DataFrame
    """The bars to replay, sorted by time and symbol."""
    ends: Sequence[datetime]
    """The times of the slices, sorted."""
    table: BarTable


class ReplayFeed:
    """The feed of a replay; its clock is stepped by its slices."""

    clock_kind: ClockKind = "replay"

    def __init__(self, config: ReplayConfig, context: PluginContext) -> None:
        self.done_slices = 0
        """Slices with bars that have been given."""
        self._config = config
        self._calendar = context.calendar
        self._length = timedelta(seconds=config.seconds)
        self._data: _Data | None = None
        self._daily: pl.DataFrame | None = None
        self._loading = threading.Lock()
        self._wanted: frozenset[str] | None = None
        self._now: datetime | None = None
        self._closed = asyncio.Event()
        self._splits: list[Split] = []
        """Those that are still to come, in order."""

    # --- what there is; the first of these reads the files ----------------------------------------------------

    @property
    def symbols(self) -> Sequence[str]:
        """List the symbols that are replayed, sorted; raise DataError where the files can't be read."""
        return tuple(sorted(self._load().replay["symbol"].unique()))

    @property
    def starts_at(self) -> datetime:
        """Tell when the first bar begins; raise DataError where the files can't be read."""
        return self._load().ends[0] - self._length

    @property
    def total_slices(self) -> int:
        """Count the slices with bars, from the first to the last."""
        return len(self._load().ends)

    @property
    def rejected(self) -> Sequence[Rejected]:
        """Name the rows of the intraday files that were left out, the first thousand of them."""
        return self._load().table.rejected

    @property
    def rejected_count(self) -> int:
        """Count the rows of the intraday files that were left out."""
        return self._load().table.rejected_count

    # --- the feed ---------------------------------------------------------------------------------------------

    async def connect(self, since: datetime | None) -> None:
        """Read the files, and go on behind `since` where it is given; raise DataError where there is nothing."""
        await self._calendar.ready()
        data = await asyncio.to_thread(self._load)
        start = data.ends[0] - self._length
        self._now = start if since is None else max(since, start)
        self.done_slices = bisect.bisect_right(data.ends, self._now)
        if self._config.splits is not None:
            told = await asyncio.to_thread(read_splits, self._config.splits)
            self._splits = [split for split in told if split.ts > start - timedelta(days=1)]
        self._closed = asyncio.Event()

    async def disconnect(self) -> None:
        """End `slices`."""
        self._closed.set()

    def subscribe(self, symbols: frozenset[str]) -> None:
        """Want exactly these symbols from the next slice on; before the first call all are given."""
        self._wanted = symbols

    async def slices(self) -> AsyncIterator[Slice]:
        """Give a slice at the end of each bar; the first is empty and sets the clock to the first bar's start."""
        if self._now is None:
            raise DataError("the replay feed is not connected: await connect() first")
        yield Slice(self._now)
        if self._config.speed == 0:
            await self._closed.wait()
            return
        pacer = Pacer(self._config.speed)
        for ts, rows in self._groups(self._now):
            gap = ts - self._now
            await pacer.wait((gap if gap <= NIGHT else self._length).total_seconds())
            if self._closed.is_set():
                return
            data = replace(self._slice(ts, rows), splits=tuple(self._due(ts)))
            self._now = ts
            self.done_slices += 1
            yield data

    def daily_bars(self, as_of: date, sessions: int) -> pl.LazyFrame:
        """Give the daily bars of the last `sessions` sessions up to `as_of` that have closed."""
        import polars as pl  # noqa: PLC0415 - heavy, and only scans need it

        data = self._load()
        closed = closed_sessions(self._calendar, as_of, sessions, self._now or data.ends[0] - self._length)
        with self._loading:
            if self._daily is None:
                self._daily = self._read_daily(data.history)
        return self._daily.lazy().filter(pl.col("ts").is_in(closed))

    def minute_bars(self, symbol: str, until: datetime, count: int) -> Sequence[Bar]:
        """Give the last `count` bars, by `until`, of the session that it falls in or after; regular hours only."""
        data = self._load()
        now = self._now or data.ends[0] - self._length
        until = min(until, now)
        session = self._calendar.last(until)
        place = data.places.get(symbol)
        if session is None or place is None or count <= 0:
            return []
        part = data.history.slice(*place)
        first = part["ts"].search_sorted(session.open, side="left")
        last = part["ts"].search_sorted(min(until - self._length, session.close - self._length), side="right")
        first = max(int(first), int(last) - count)
        return [self._bar(row) for row in part.slice(first, max(0, int(last) - first)).iter_rows()]

    # --- slices -----------------------------------------------------------------------------------------------

    def _due(self, ts: datetime) -> Iterator[Split]:
        """Give the splits that take effect between the last slice and this one; each is given once."""
        while self._splits and self._splits[0].ts <= ts - self._length:
            yield self._splits.pop(0)

    def _groups(self, after: datetime) -> Iterator[tuple[datetime, list[tuple[Any, ...]]]]:
        """Give the rows of each time behind `after`."""
        replay = self._load().replay
        first = int(replay["ts"].search_sorted(after - self._length, side="right"))
        start: datetime | None = None
        rows: list[tuple[Any, ...]] = []
        for row in replay.slice(first).iter_rows():
            if row[1] != start:
                if start is not None:
                    yield start.astimezone(UTC) + self._length, rows
                start, rows = row[1], []
            rows.append(row)
        if start is not None:
            yield start.astimezone(UTC) + self._length, rows

    def _slice(self, ts: datetime, rows: Sequence[tuple[Any, ...]]) -> Slice:
        wanted = self._wanted
        bars = tuple(self._bar(row) for row in rows if wanted is None or row[0] in wanted)
        quotes: tuple[Quote, ...] = ()
        if self._config.synthetic_quotes:
            half = self._config.spread_percent / 200
            quotes = tuple(_quote(bar, ts, half) for bar in bars)
        trades: tuple[Trade, ...] = ()
        if self._config.trades_per_bar:
            made = [trade for bar in bars for trade in made_up_trades(bar, self._config.trades_per_bar)]
            trades = tuple(sorted(made, key=lambda trade: trade.ts))
        return Slice(ts, quotes, trades, bars)

    def _bar(self, row: Sequence[Any]) -> Bar:
        symbol, ts, opens, high, low, close, volume = row
        return Bar(symbol, ts.astimezone(UTC), opens, high, low, close, volume, self._config.seconds)

    # --- files ------------------------------------------------------------------------------------------------

    def _load(self) -> _Data:
        """Read the files once; whoever comes first does it, the others wait."""
        with self._loading:
            if self._data is None:
                self._data = self._read()
            return self._data

    def _read(self) -> _Data:
        import polars as pl  # noqa: PLC0415 - heavy

        from sigma9_core.bars import read_bars  # noqa: PLC0415

        config = self._config
        calendar = self._calendar if self._calendar.loaded else self._calendar.name
        table = read_bars(
            config.files, kind="intraday", stamp=config.stamp, seconds=config.seconds, calendar=calendar
        )
        _warn("intraday", table)
        history = table.frame
        if config.symbols:
            missing = sorted(set(config.symbols) - set(history["symbol"].unique()))
            if missing:
                raise DataError(f"the files of the replay have no bars of {', '.join(missing)}")
            history = history.filter(pl.col("symbol").is_in(config.symbols))
        replay = history.sort("ts", "symbol")
        if config.first_moment is not None:
            replay = replay.filter(pl.col("ts") >= config.first_moment)
        if config.last_moment is not None:
            replay = replay.filter(pl.col("ts") <= config.last_moment - self._length)
        if replay.is_empty():
            span = f"from {config.from_ or 'the start'} to {config.to or 'the end'}"
            raise DataError(f"there is nothing to replay {span} in {', '.join(map(str, config.files))}")
        starts = replay["ts"].unique().sort().to_list()
        offset, places = 0, {}
        for symbol, length in history.group_by("symbol", maintain_order=True).len().iter_rows():
            places[symbol] = (offset, length)
            offset += length
        ends = [start.astimezone(UTC) + self._length for start in starts]
        return _Data(history, places, replay, ends, table)

    def _read_daily(self, history: pl.DataFrame) -> pl.DataFrame:
        """Read the daily files, or make daily bars from the bars of regular hours."""
        import polars as pl  # noqa: PLC0415 - heavy

        from sigma9_core.bars import read_bars  # noqa: PLC0415

        if self._config.daily_files:
            found = read_bars(self._config.daily_files, kind="daily", calendar=self._calendar)
            _warn("daily", found)
            return found.frame
        days = history["ts"].dt.convert_time_zone("America/New_York").dt.date().unique().sort()
        sessions = [session for day in days if (session := self._calendar.on(day)) is not None]
        hours = pl.DataFrame(
            {
                "day": [date.fromisoformat(session.day) for session in sessions],
                "opens": [session.open for session in sessions],
                "closes": [session.close for session in sessions],
            },
            schema={"day": pl.Date, "opens": pl.Datetime("us", "UTC"), "closes": pl.Datetime("us", "UTC")},
        )
        local = pl.col("ts").dt.convert_time_zone("America/New_York").dt.date()
        regular = history.with_columns(day=local).join(hours, on="day")
        regular = regular.filter((pl.col("ts") >= pl.col("opens")) & (pl.col("ts") < pl.col("closes")))
        return (
            regular.sort("symbol", "ts")
            .group_by("symbol", "day", maintain_order=True)
            .agg(
                pl.col("open").first(),
                pl.col("high").max(),
                pl.col("low").min(),
                pl.col("close").last(),
                pl.col("volume").sum(),
            )
            .rename({"day": "ts"})
        )


def _quote(bar: Bar, ts: datetime, half: float) -> Quote:
    """Make up a quote around a bar's close; it shows a tenth of the bar's volume, not the whole world's."""
    size = float(math.floor(bar.volume * QUOTED))
    return Quote(bar.symbol, ts, round(bar.close * (1 - half), 6), round(bar.close * (1 + half), 6), size, size)


def read_splits(path: Path) -> list[Split]:
    """Read a file of splits, in order; raise DataError naming the first row that is none."""
    found: list[Split] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    at = datetime.combine(date.fromisoformat(row["date"]), time(), NEW_YORK).astimezone(UTC)
                    split = Split(row["symbol"], at, Decimal(row["new"]), Decimal(row["old"]))
                    if not (split.symbol and 0 < split.new < Decimal("1e6") and 0 < split.old < Decimal("1e6")):
                        raise ValueError("symbol, or two numbers of shares above zero, are missing")
                except (KeyError, ValueError, TypeError, ArithmeticError) as error:
                    raise DataError(
                        f"{path}:{number}: this is no split ({error}): give symbol,date,new,old such as "
                        "AAPL,2020-08-31,4,1"
                    ) from error
                found.append(split)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the splits {path} can't be read: {error}") from error
    return sorted(found, key=lambda split: (split.ts, split.symbol))


def made_up_trades(bar: Bar, count: int) -> list[Trade]:
    """Make up `count` trades of equal size inside a bar, along open, low, high, close (falling: high, low)."""
    turns = (bar.low, bar.high) if bar.close >= bar.open else (bar.high, bar.low)
    path = (bar.open, *turns, bar.close)
    step = timedelta(seconds=bar.seconds) / (count + 1)
    trades = []
    for i in range(count):
        place = 3 * i / (count - 1) if count > 1 else 3
        leg = min(2, int(place))
        price = path[leg] + (path[leg + 1] - path[leg]) * (place - leg)
        trades.append(Trade(bar.symbol, bar.ts + step * (i + 1), round(price, 6), bar.volume / count))
    return trades


def _aware(moment: Moment) -> datetime:
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=NEW_YORK)
    return moment.astimezone(UTC)


def _warn(kind: str, table: BarTable) -> None:
    if table.rejected_count:
        reasons = ", ".join(f"{count} {reason}" for reason, count in table.reasons.items())
        log.warning(
            "%d of %d rows of the %s bars are left out: %s", table.rejected_count, table.rows, kind, reasons
        )
        for rejected in table.rejected[:10]:
            log.warning("left out: %s", rejected)


@hookimpl
def register_feeds(register: Register) -> None:
    """Offer the replay feed."""
    register("replay", _build, config=ReplayConfig)


def _build(config: Any, context: PluginContext) -> ReplayFeed:
    return ReplayFeed(config, context)

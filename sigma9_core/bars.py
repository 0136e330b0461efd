"""Bars from files: Parquet or CSV, checked row by row; what is wrong is counted, named and left out.

Everything is done column by column in Polars, which is imported late. A file that is no table, or lacks columns,
ends the reading with a DataError; a bad row never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from zoneinfo import ZoneInfo

from sigma9_core.calendar import FIRST, Calendar, load_calendar, user_cache
from sigma9_core.clock import EPOCH
from sigma9_core.errors import DataError
from sigma9_core.models import SYMBOL_PATTERN

if TYPE_CHECKING:
    import polars as pl

Kind = Literal["daily", "intraday"]
Stamp = Literal["start", "end"]

COLUMNS: Final = ("symbol", "ts", "open", "high", "low", "close", "volume")
NUMBERS: Final = COLUMNS[2:]
SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "symbol": ("ticker", "sym"),
    "ts": ("timestamp", "datetime", "date", "time"),
    "open": ("o",),
    "high": ("h",),
    "low": ("l",),
    "close": ("c",),
    "volume": ("vol", "v"),
}
"""Other names of the columns; the case does not matter, and a column of the proper name wins."""

PRE_MARKET: Final = timedelta(hours=5, minutes=30)
"""Intraday bars are kept from this long before the open (04:00 in New York) ..."""
AFTER_HOURS: Final = timedelta(hours=4)
"""... to this long after the close (20:00 in New York, 17:00 on an early close)."""
EARLIEST: Final = date(1950, 1, 1)
"""Older dates are not looked up in the exchange calendar: they are outside of it."""
DETAIL: Final = 1000
"""So many rejected rows are named one by one; all are counted."""
NEW_YORK: Final = ZoneInfo("America/New_York")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out; symbol and time stand here as they stand in the file."""

    file: str
    row: int
    """The number of the data row, from 1; the header of a CSV file is not counted."""
    symbol: str | None
    ts: str | None
    reason: str

    def __str__(self) -> str:
        """Give the one line that the user reads."""
        return (
            f"{self.file}: row {self.row}: {self.symbol or '(no symbol)'} {self.ts or '(no time)'}: {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class BarTable:
    """Checked bars, sorted by symbol and time, no (symbol, ts) twice, and a report of what was left out."""

    frame: pl.DataFrame
    """symbol (str), ts (date; intraday: the bar's start, UTC in microseconds), open to volume (float64)."""
    kind: Kind
    seconds: int | None
    """The length of an intraday bar, None for daily bars."""
    rows: int
    """Rows that were read, the rejected ones included."""
    rejected: tuple[Rejected, ...]
    """The first rejected rows in the order of the files, at most `detail` of them."""
    reasons: Mapping[str, int]
    """All rejected rows, counted by reason, the most frequent first."""

    @property
    def rejected_count(self) -> int:
        """Count all rejected rows."""
        return sum(self.reasons.values())

    def lazy(self) -> pl.LazyFrame:
        """Give the bars as a lazy frame."""
        return self.frame.lazy()


def read_bars(
    paths: Path | str | Sequence[Path | str],
    *,
    kind: Kind = "daily",
    stamp: Stamp | None = None,
    seconds: int = 60,
    calendar: Calendar | str = "XNYS",
    detail: int = DETAIL,
) -> BarTable:
    """Read bars from Parquet or CSV files.

    The calendar tells when the exchange was shut; a name is loaded as far back as the bars go, through the user's
    cache. Intraday bars need `stamp`: whether a row's time is the start or the end of its bar of `seconds`. Times
    may be dates, ISO 8601 text, or seconds to nanoseconds since 1970; without a zone they are in UTC.
    Of rows with the same symbol and time the first is kept. Raise DataError where a file is no table of bars.
    """
    import polars as pl  # noqa: PLC0415 - 0.15 s that only readers of bars pay

    if kind == "intraday" and stamp is None:
        raise DataError("say what the times of the intraday bars mean: stamp must be 'start' or 'end'")
    if kind == "intraday" and seconds <= 0:
        raise DataError(f"the length of the intraday bars must be positive, not {seconds} seconds")
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise DataError("name at least one file of bars")
    good: list[pl.DataFrame] = []
    bad: list[pl.DataFrame] = []
    rows = 0
    for index, file in enumerate(files):
        raw = _raw(file)
        rows += raw.height
        kept, faulty = _checked(raw, kind, file)
        good.append(kept.with_columns(file=pl.lit(index, pl.UInt32)))
        bad.append(faulty.with_columns(file=pl.lit(index, pl.UInt32)))
    frame = pl.concat(good)
    shift = timedelta(seconds=seconds if kind == "intraday" and stamp == "end" else 0)
    frame = frame.with_columns(pl.col("ts") - shift) if shift else frame
    frame, shut = _in_session(frame, kind, calendar)
    frame, twice = _unique(frame)
    faults = pl.concat([*bad, *(_named(part, kind, shift) for part in (shut, twice))])
    reasons = faults.group_by("reason").len().sort(["len", "reason"], descending=[True, False])
    named = faults.sort(["file", "row"]).head(detail)
    names = [str(file) for file in files]
    return BarTable(
        frame.select(COLUMNS),
        kind,
        seconds if kind == "intraday" else None,
        rows,
        tuple(Rejected(names[file], *rest) for file, *rest in named.select(_REPORT).iter_rows()),
        dict(reasons.iter_rows()),
    )


_REPORT: Final = ("file", "row", "symbol", "ts", "reason")


# --- files ----------------------------------------------------------------------------------------------------


def _raw(file: Path) -> pl.DataFrame:
    """Read a file's seven columns as they are, and `row`; in CSV all are text, and `extra` is what is too much."""
    try:
        with file.open("rb") as opened:
            head = opened.read(4)
    except OSError as error:
        raise DataError(f"{file}: it can't be read: {error.strerror or error}") from error
    if not head:
        raise DataError(f"{file}: the file is empty; a table with the columns {', '.join(COLUMNS)} is wanted")
    raw = _raw_parquet(file) if head == b"PAR1" else _raw_csv(file)
    return raw.with_row_index("row", offset=1)


def _raw_parquet(file: Path) -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415

    try:
        with file.open("rb") as opened:
            names = _names(file, list(pl.read_parquet_schema(opened)))
        raw = pl.read_parquet(file, columns=list(names.values()), glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{file}: the Parquet file is broken: {' '.join(str(error).split())[:200]}") from error
    return raw.select(pl.col(name).alias(column) for column, name in names.items())


def _raw_csv(file: Path) -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415

    text = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    line, _, body = text.partition(b"\n")
    if b"\x00" in line or len(line) > 100_000:
        raise DataError(f"{file}: it is no table: neither Parquet nor CSV text (unpack a compressed file first)")
    header = line.decode("utf-8", errors="replace")
    separator = max(",;\t|", key=header.count)
    fields = [name.strip(' "\r') for name in header.split(separator)]
    names = _names(file, fields)
    columns = [str(number) for number in range(len(fields) + 1)]  # one more than there should be
    lines = body.count(b"\n") + (not body.endswith(b"\n") and bool(body))

    table = separator.join(columns).encode() + b"\n" + body

    def parse(quote: str | None) -> pl.DataFrame:
        return pl.read_csv(
            table,
            separator=separator,
            quote_char=quote,
            infer_schema_length=0,  # all columns are text
            truncate_ragged_lines=True,
            encoding="utf8-lossy",
        )

    try:
        raw = parse('"') if b'"' in body else parse(None)
        if raw.height != lines:  # a stray quote has swallowed line ends: take quotes for plain characters
            raw = parse(None)
    except pl.exceptions.PolarsError:
        raw = parse(None)
    chosen = {column: columns[fields.index(name)] for column, name in names.items()}
    return raw.select(
        *(pl.col(number).str.strip_chars(' "\r\t').alias(column) for column, number in chosen.items()),
        extra=pl.col(columns[-1]).is_not_null(),
        empty=pl.all_horizontal(pl.all().is_null()),
    )


def _names(file: Path, present: Sequence[str]) -> dict[str, str]:
    """Find each column's name in the file."""
    found: dict[str, str] = {}
    missing: list[str] = []
    for column in COLUMNS:
        proper = [name for name in present if name.lower() == column]
        others = [name for name in present if name.lower() in SYNONYMS[column]]
        choice = proper or others
        if len(choice) > 1:
            raise DataError(
                f"{file}: several columns may be {column}: {', '.join(choice)}; name one of them {column}"
            )
        if choice:
            found[column] = choice[0]
        else:
            missing.append(column)
    if missing:
        listed = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
        noun = "column" if len(missing) == 1 else "columns"
        raise DataError(f"{file}: no {noun} {', '.join(missing)}; the file has {listed}")
    return found


# --- rows -----------------------------------------------------------------------------------------------------


def _checked(raw: pl.DataFrame, kind: Kind, file: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split a file's rows in good ones (typed) and bad ones (as text, with their reasons)."""
    import polars as pl  # noqa: PLC0415

    symbol = _text(raw["symbol"], file)
    typed = raw.select("row").with_columns(
        symbol, _times(raw["ts"], kind, file), *(_floats(raw[name], file) for name in NUMBERS)
    )
    names = symbol.unique()
    wrong = names.filter(~names.str.contains(SYMBOL_PATTERN).fill_null(value=True))
    c = pl.col
    fine = [
        c("symbol").is_not_null(),
        c("ts").is_not_null(),
        *(c(name).is_finite() for name in NUMBERS),
        c("low") > 0,
        c("low") <= c("open"),
        c("low") <= c("close"),
        c("high") >= c("open"),
        c("high") >= c("close"),
        c("volume") >= 0,
    ]
    if wrong.len():
        fine.append(~c("symbol").is_in(wrong.implode()))
    ok = typed.select(pl.all_horizontal(fine).fill_null(value=False)).to_series()
    if "extra" in raw.columns:
        ok &= ~raw["extra"]
    if ok.all():
        return typed, _nothing()
    return typed.filter(ok), _reasons(raw.filter(~ok), typed.filter(~ok), wrong)


def _reasons(raw: pl.DataFrame, typed: pl.DataFrame, wrong: pl.Series) -> pl.DataFrame:
    """Say of each bad row what is wrong with it first."""
    import polars as pl  # noqa: PLC0415

    c = pl.col
    both = typed.with_columns(raw.select(c(name).alias(f"raw_{name}") for name in COLUMNS))
    blank = {name: c(f"raw_{name}").is_null() | (c(f"raw_{name}").cast(pl.String) == "") for name in COLUMNS}
    never = pl.lit(value=False)
    chain: list[tuple[pl.Expr, str]] = []
    if "extra" in raw.columns:
        both = both.with_columns(raw["extra"], raw["empty"])
        chain += [(c("empty"), "empty row"), (c("extra"), "too many fields")]
    chain += [
        (blank["symbol"], "symbol missing"),
        (c("symbol").is_in(wrong.implode()) if wrong.len() else never, "bad symbol"),
        (blank["ts"], "ts missing"),
        (c("ts").is_null(), "ts unparsable"),
    ]
    for name in NUMBERS:
        chain += [
            (blank[name] | c(name).is_nan(), f"{name} missing"),
            (c(name).is_null(), f"{name} unparsable"),
            (c(name).is_infinite(), f"{name} not finite"),
        ]
    prices = [c(name) for name in ("open", "high", "low", "close")]
    chain += [
        (reduce(or_, (price <= 0 for price in prices)), "price <= 0"),
        (c("volume") < 0, "negative volume"),
    ]
    reason = pl.lit("ohlc out of order")
    for condition, text in reversed(chain):
        reason = pl.when(condition).then(pl.lit(text)).otherwise(reason)
    return both.select(
        "row", symbol=c("raw_symbol").cast(pl.String), ts=c("raw_ts").cast(pl.String), reason=reason
    )


def _nothing() -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415

    return pl.DataFrame(
        schema={"row": pl.get_index_type(), "symbol": pl.String, "ts": pl.String, "reason": pl.String}
    )


def _named(part: pl.DataFrame, kind: Kind, shift: timedelta) -> pl.DataFrame:
    """Turn typed rows that were left out later into report rows, with the times that the file has."""
    import polars as pl  # noqa: PLC0415

    if kind == "daily":
        return part.select("row", "symbol", pl.col("ts").dt.strftime("%Y-%m-%d"), "reason", "file")
    ts = (pl.col("ts") + shift).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return part.select("row", "symbol", ts, "reason", "file")


def _in_session(frame: pl.DataFrame, kind: Kind, calendar: Calendar | str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off the rows of times at which the exchange was shut."""
    import polars as pl  # noqa: PLC0415

    times = frame["ts"].unique().sort()
    days = times.dt.date() if kind == "intraday" else times
    if isinstance(calendar, str):
        oldest = max(days.min() or FIRST, EARLIEST)
        calendar = load_calendar(calendar, user_cache(), first=min(oldest, FIRST))  # type: ignore[arg-type]
    first, final = calendar.first, calendar.final
    if first is None or final is None:
        raise DataError(f"the exchange calendar {calendar.name} is empty: load it first")
    sessions = calendar.between(first, final)
    if kind == "daily":
        held = days.is_in(pl.Series([date.fromisoformat(session.day) for session in sessions]).implode())
    else:
        windows = pl.DataFrame(
            {
                "from": [session.open - PRE_MARKET for session in sessions],
                "to": [session.close + AFTER_HOURS for session in sessions],
            },
            schema={"from": times.dtype, "to": times.dtype},
        )
        until = times.to_frame().join_asof(windows, left_on="ts", right_on="from")["to"]
        held = (times <= until).fill_null(value=False)
    if held.all():
        return frame, frame.clear().with_columns(reason=pl.lit(""))
    known = (days >= first) & (days <= final)
    word = pl.when(known).then(pl.lit("exchange shut")).otherwise(pl.lit("outside the calendar"))
    shut = times.to_frame().select("ts", reason=word).filter(~held)
    return frame.filter(~pl.col("ts").is_in(shut["ts"].implode())), frame.join(shut, on="ts")


def _unique(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Sort by symbol and time, and split off all but the first of equal rows."""
    import polars as pl  # noqa: PLC0415

    symbol, ts = pl.col("symbol"), pl.col("ts")
    same = symbol == symbol.shift()
    rising = (symbol > symbol.shift()) | (same & (ts > ts.shift()))
    if frame.select(rising.fill_null(value=True).all()).item():
        return frame, frame.clear().with_columns(reason=pl.lit(""))
    frame = frame.sort("symbol", "ts", maintain_order=True)
    again = frame.select((same & (ts == ts.shift())).fill_null(value=False)).to_series()
    return frame.filter(~again), frame.filter(again).with_columns(reason=pl.lit("duplicate"))


# --- columns --------------------------------------------------------------------------------------------------


def _text(raw: pl.Series, file: Path) -> pl.Series:
    import polars as pl  # noqa: PLC0415

    if raw.dtype.is_nested() or raw.dtype == pl.Binary:
        raise DataError(f"{file}: the column symbol has the type {raw.dtype}; text is wanted")
    return raw.cast(pl.String)


def _floats(raw: pl.Series, file: Path) -> pl.Series:
    import polars as pl  # noqa: PLC0415

    if not (raw.dtype.is_numeric() or raw.dtype in (pl.String, pl.Null)):
        raise DataError(f"{file}: the column {raw.name} has the type {raw.dtype}; numbers are wanted")
    return raw.cast(pl.Float64, strict=False)


def _times(raw: pl.Series, kind: Kind, file: Path) -> pl.Series:
    """Turn times of any kind into dates (daily) or UTC microseconds (intraday); null where that can't be done."""
    import polars as pl  # noqa: PLC0415

    wanted = pl.Date() if kind == "daily" else pl.Datetime("us", "UTC")
    kept = raw.dtype
    if isinstance(kept, pl.Date) and kind == "daily":
        return raw
    if isinstance(kept, pl.Datetime) and kind == "intraday":
        aware = raw.dt.replace_time_zone("UTC") if kept.time_zone is None else raw
        return aware.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    if isinstance(kept, pl.Datetime) and kept.time_zone is None:
        return raw.dt.date()
    if not (isinstance(kept, pl.Datetime | pl.String | pl.Null) or kept.is_numeric()):
        hint = "times are wanted (read dates as daily bars)" if kind == "intraday" else "dates are wanted"
        raise DataError(f"{file}: the column ts has the type {kept}; {hint}")
    read = _day if kind == "daily" else _moment
    distinct = raw.unique().drop_nulls()
    meaning = pl.Series([read(value) for value in distinct], dtype=wanted)
    return raw.replace_strict(distinct, meaning, default=None, return_dtype=wanted)


def _moment(value: object) -> datetime | None:
    """Read a time; without a zone it is in UTC."""
    if isinstance(value, str):
        if value.isascii() and value.isdigit():
            return _epoch(int(value))
        if len(value) <= 10:  # a date without a time
            return None
        try:
            moment = datetime.fromisoformat(value.replace(" UTC", "Z"))
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            return None
    return _epoch(value) if isinstance(value, int | float) else None


def _epoch(value: float) -> datetime | None:
    """Read seconds, milliseconds, microseconds or nanoseconds since 1970, told apart by size (1973 to 5138)."""
    for unit in (1, 10**3, 10**6, 10**9):
        if 10**8 * unit <= value < 10**11 * unit:
            return EPOCH + timedelta(microseconds=int(value * 10**6 // unit))
    return None


def _day(value: object) -> date | None:
    """Read a session's date; of a time that is not midnight where it was written, New York's date counts."""
    if isinstance(value, str):
        try:
            if len(value) <= 10 and not (value.isdigit() and len(value) != 8):
                return date.fromisoformat(value)
            if not value.isdigit():
                written = datetime.fromisoformat(value.replace(" UTC", "Z"))
                return _session_date(written)
        except (ValueError, OverflowError):
            return None
    if isinstance(value, int | float) and 19_000_101 <= value <= 29_991_231:
        return _day(f"{value:.0f}")
    moment = value if isinstance(value, datetime) else _moment(value)
    return None if moment is None else _session_date(moment)


def _session_date(moment: datetime) -> date:
    if moment.tzinfo is None or (moment.hour, moment.minute, moment.second) == (0, 0, 0):
        return moment.date()
    return moment.astimezone(NEW_YORK).date()

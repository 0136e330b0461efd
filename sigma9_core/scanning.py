"""One scan: the last bars of every symbol through a scanner, then its filters and its ranking as visible steps.

The scanner is a plugin: what it gives is checked against the contract, and one that raises or breaks a rule is
dropped with its traceback in the result; it never turns into a score of 0.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.errors import DataError
from sigma9_core.models import WatchlistItem

if TYPE_CHECKING:
    import polars as pl

    from sigma9_core.contracts import Scanner

SPARE_SESSIONS: Final = 10
"""So many sessions more than the lookback are read, because symbols skip days."""
BARS: Final = ("symbol", "ts", "open", "high", "low", "close", "volume")
REFERENCE: Final = ("market_cap", "float", "security_type")
"""Columns that scanners may use where the bars have them: money, shares, a word such as `warrant`."""
NEW: Final = "new/IPO"
"""The state of a symbol with fewer bars than the scanner looks back."""
TRADABLE_STAGE: Final = 3
"""Symbols of a lower stage are watched and not traded."""


class ScannerBroke(Exception):
    """A scanner's answer breaks a rule of the contract: repair the scanner."""


@dataclass(frozen=True, slots=True)
class ScanRow:
    """One scored symbol (contract 9)."""

    symbol: str
    priority: int
    score: float
    """Rounded to one decimal; the scanner's own is not."""
    stage: int | None
    """None where the scanner knows no stages."""
    signals: Mapping[str, bool]
    intensities: Mapping[str, float]
    last: float | None
    as_of: date
    reasons: tuple[str, ...]
    keep: bool
    excluded: str | None

    def body(self) -> dict[str, Any]:
        """Give the JSON object of contract 9."""
        return {
            "symbol": self.symbol,
            "priority": self.priority,
            "score": self.score,
            "stage": self.stage,
            "signals": dict(self.signals),
            "intensities": dict(self.intensities),
            "last": self.last,
            "as_of": self.as_of.isoformat(),
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan found, step by step; `error` says why there is nothing."""

    name: str
    as_of: date
    rows: tuple[ScanRow, ...] = ()
    """The list: kept, in the universe, ranked, and cut to the scanner's watchlist size."""
    steps: tuple[tuple[str, int], ...] = ()
    """How many symbols each step left, in order."""
    unscored: Mapping[str, str] = field(default_factory=dict)
    """Symbols that were not scored, and why."""
    ranked: pl.DataFrame | None = None
    """Every scored symbol with the scanner's columns, in the order of the ranking."""
    seconds: float = 0.0
    error: str | None = None
    """The traceback of a scanner that raised or broke a rule; it was dropped from this round."""

    def all_rows(self) -> tuple[ScanRow, ...]:
        """Give every scored symbol in the order of the ranking, listed or not."""
        return () if self.ranked is None else tuple(_rows(self.ranked))


def scan(bars: pl.LazyFrame, scanner: Scanner, as_of: date | None = None, name: str = "scan") -> ScanResult:
    """Scan daily bars as of a date (default: the newest one in the data).

    A symbol is scored if its last bar is of that date and it has at least `lookback` bars; of the history only
    the sessions that this needs are read. Raise DataError where the bars themselves can't be used; what the
    scanner does wrong stands in the result.
    """
    import polars as pl  # noqa: PLC0415 - registering and most commands never need it

    began = time.perf_counter()
    window, day, unscored, steps = _window(bars, scanner.lookback, as_of)
    try:
        ranked = _ranked(_answer(scanner, window, day))
        size = scanner.watchlist_size
    except (Exception, pl.exceptions.PanicException):  # noqa: BLE001 - a plugin boundary: its fault is the result
        return ScanResult(
            name, day, unscored=unscored, seconds=time.perf_counter() - began, error=traceback.format_exc()
        )
    kept = ranked.filter("keep")
    within = kept.filter(pl.col("excluded").is_null())
    listed = within.head(size)
    steps += [
        ("scored", ranked.height),
        ("kept", kept.height),
        ("in the universe", within.height),
        ("listed", listed.height),
    ]
    rows = tuple(_rows(listed))
    return ScanResult(name, day, rows, tuple(steps), unscored, ranked, time.perf_counter() - began)


def merge(
    results: Iterable[ScanResult], added_at: datetime, previous: Sequence[WatchlistItem] = ()
) -> list[WatchlistItem]:
    """Make one watchlist of several scanners' lists, best first; what `previous` has keeps its `added_at`.

    Where scanners list a symbol together, all are named, the better ranking counts, and their reasons follow each
    other. `no_trade` says that no strategy trades it at its stage.
    """
    since = {item.symbol: item.added_at for item in previous}
    found: dict[str, list[tuple[str, ScanRow]]] = {}
    for result in results:
        for row in result.rows:
            found.setdefault(row.symbol, []).append((result.name, row))
    items = []
    for symbol, hits in found.items():
        best = max((row for _, row in hits), key=lambda row: (row.priority, row.score))
        items.append(
            WatchlistItem(
                symbol=symbol,
                priority=best.priority,
                score=best.score,
                stage=max(row.stage or 0 for _, row in hits),
                strategies=tuple(name for name, _ in hits),
                reasons=tuple(dict.fromkeys(reason for _, row in hits for reason in row.reasons)),
                last=best.last,
                added_at=since.get(symbol, added_at),
                no_trade=_no_trade([row.stage for _, row in hits]),
            )
        )
    return sorted(items, key=lambda item: (-item.priority, -(item.score or 0.0), item.symbol))


def _no_trade(stages: Sequence[int | None]) -> str | None:
    known = [stage for stage in stages if stage is not None]
    if len(known) < len(stages) or max(known) >= TRADABLE_STAGE:
        return None
    return f"stage {max(known)}: watch only, entries are made from stage {TRADABLE_STAGE} on"


# --- the bars that a scan needs -------------------------------------------------------------------------------


def _window(
    bars: pl.LazyFrame, lookback: int, as_of: date | None
) -> tuple[pl.DataFrame, date, dict[str, str], list[tuple[str, int]]]:
    """Collect the bars of the symbols that can be scored, sorted; say what was left out."""
    import polars as pl  # noqa: PLC0415

    ts, symbol = pl.col("ts"), pl.col("symbol")
    bars = _typed(bars)
    days = bars.select(ts.unique()).collect().to_series().drop_nulls().sort()
    if days.is_empty():
        raise DataError("there are no daily bars to scan")
    day = as_of or days[-1]
    past = days.filter(days <= day)
    if past.is_empty() or past[-1] != day:
        near = f"the newest day before it is {past[-1]}" if len(past) else f"the data start on {days[0]}"
        raise DataError(f"there is no bar of {day} in the data: {near}")
    first = past[-(lookback + SPARE_SESSIONS) :][0]
    window = _sorted(bars.filter(ts.is_between(first, day)).collect())
    counts = window.group_by("symbol").agg(last=ts.max(), count=pl.len())
    stale = counts.filter(pl.col("last") < day)
    present = counts.filter(pl.col("last") == day)
    short = present.filter(pl.col("count") < lookback)
    new = short["symbol"]
    if short.height and past[0] < first:  # perhaps they only skip days: look further back for these few
        older = bars.filter((ts < first) & symbol.is_in(short["symbol"].implode())).collect()
        window = _sorted(pl.concat([window, older]))
        whole = pl.concat([short.select("symbol", n="count"), older.group_by("symbol").agg(n=pl.len())])
        total = whole.group_by("symbol").agg(pl.col("n").sum())
        new = total.filter(pl.col("n") < lookback)["symbol"]
    unscored = {name: f"its last bar is of {last}" for name, last in stale.select("symbol", "last").iter_rows()}
    unscored |= dict.fromkeys(new, NEW)
    if unscored:
        left_out = pl.Series(list(unscored))
        window = window.filter(~symbol.is_in(left_out.implode()))
    steps = [
        (f"symbols in the last {len(past[-(lookback + SPARE_SESSIONS) :])} sessions", counts.height),
        (f"with a bar of {day}", present.height),
        (f"with {lookback} bars or more", present.height - len(new)),
    ]
    return window, day, unscored, steps


def _typed(bars: pl.LazyFrame) -> pl.LazyFrame:
    import polars as pl  # noqa: PLC0415

    names = bars.collect_schema().names()
    missing = [name for name in BARS if name not in names]
    if missing:
        raise DataError(f"the daily bars lack {', '.join(missing)}")
    types = {"symbol": pl.String, "ts": pl.Date, **dict.fromkeys(BARS[2:], pl.Float64)}
    reference = [name for name in REFERENCE if name in names]
    return bars.select(*(pl.col(name).cast(kind) for name, kind in types.items()), *reference)


def _sorted(bars: pl.DataFrame) -> pl.DataFrame:
    """Sort by symbol and time where it isn't sorted; refuse the same symbol and day twice."""
    import polars as pl  # noqa: PLC0415

    symbol, ts = pl.col("symbol"), pl.col("ts")
    same = symbol == symbol.shift()
    rising = (symbol > symbol.shift()) | (same & (ts > ts.shift()))
    if bars.select(rising.fill_null(value=True).all()).item():
        return bars
    bars = bars.sort("symbol", "ts")
    twice = bars.filter(same & (ts == ts.shift()))
    if twice.height:
        name, day = twice.select("symbol", "ts").row(0)
        raise DataError(
            f"the daily bars have {name} of {day} twice ({twice.height} such rows): remove the doubles"
        )
    return bars


# --- the scanner's answer -------------------------------------------------------------------------------------


def _answer(scanner: Scanner, window: pl.DataFrame, day: date) -> pl.DataFrame:
    """Run the scanner and give its rows of the day; raise ScannerBroke where it breaks the contract."""
    import polars as pl  # noqa: PLC0415

    answer = scanner.scan(window.lazy())
    if not isinstance(answer, pl.LazyFrame):
        raise ScannerBroke(f"scan() gave {type(answer).__name__}, not a LazyFrame")
    _check_types(answer.collect_schema(), window.schema)
    score = pl.col("score")
    # two queries: the second one writes its texts for the last bars alone, which together they would not
    kept = answer.select(*window.columns, "score").collect()
    rows = answer.filter(pl.col("ts") == day).collect()
    given = kept.select(window.columns)
    if not given.equals(window) and not given.sort("symbol", "ts").equals(window):
        raise ScannerBroke("the answer does not hold the same bars: rows were lost, added or changed")
    wrong = kept.filter(score.is_nan() | (score < 0) | (score > 100))
    if wrong.height:
        symbol, ts, value = wrong.select("symbol", "ts", "score").row(0)
        raise ScannerBroke(f"score is {value} for {symbol} on {ts}; 0 to 100 or null is allowed")
    for name, most in (("priority", 100), ("stage", 4)):
        if name in rows.columns and rows.filter((pl.col(name) < 0) | (pl.col(name) > most)).height:
            raise ScannerBroke(f"{name} is outside 0 to {most}")
    return rows


def _check_types(given: pl.Schema, bars: pl.Schema) -> None:
    import polars as pl  # noqa: PLC0415

    def structured(kind: pl.DataType, inner: type[pl.DataType]) -> bool:
        return isinstance(kind, pl.Struct) and all(entry.dtype == inner for entry in kind.fields)

    rules: dict[str, tuple[str, bool]] = {}
    for name, kind in given.items():
        if name in bars:
            rules[name] = (str(bars[name]), kind == bars[name])
        elif name == "score":
            rules[name] = ("Float64", kind == pl.Float64)
        elif name in ("priority", "stage"):
            rules[name] = ("an integer", kind.is_integer())
        elif name == "keep":
            rules[name] = ("Boolean", kind == pl.Boolean)
        elif name == "excluded":
            rules[name] = ("String", kind in (pl.String, pl.Null))
        elif name == "reasons":
            rules[name] = ("List(String)", kind == pl.List(pl.String))
        elif name == "signals":
            rules[name] = ("a struct of Boolean", structured(kind, pl.Boolean))
        elif name == "intensities":
            rules[name] = ("a struct of Float64", structured(kind, pl.Float64))
        elif not name.startswith("x_"):
            raise ScannerBroke(f"the column {name} is unknown: a scanner's own columns are named x_{name}")
    missing = [name for name in (*bars, "score") if name not in given]
    if missing:
        raise ScannerBroke(f"the answer lacks the columns {', '.join(missing)}")
    for name, (wanted, right) in rules.items():
        if not right:
            raise ScannerBroke(f"the column {name} has the type {given[name]}; {wanted} is wanted")


def _ranked(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep what has a score, fill in what the scanner did not give, and sort: best first."""
    import polars as pl  # noqa: PLC0415

    c = pl.col
    have = rows.columns
    return (
        rows.filter(c("score").is_not_null())
        .with_columns(
            c("score").round(1).alias("rounded"),
            c("priority").fill_null(0) if "priority" in have else pl.lit(0).alias("priority"),
            c("stage") if "stage" in have else pl.lit(None, pl.Int32).alias("stage"),
            c("keep").fill_null(value=False) if "keep" in have else pl.lit(value=True).alias("keep"),
            c("excluded").cast(pl.String) if "excluded" in have else pl.lit(None, pl.String).alias("excluded"),
        )
        .sort(["priority", "rounded", "symbol"], descending=[True, True, False])
    )


def _rows(ranked: pl.DataFrame) -> Iterable[ScanRow]:
    for row in ranked.iter_rows(named=True):
        yield ScanRow(
            symbol=row["symbol"],
            priority=row["priority"],
            score=row["rounded"],
            stage=row["stage"],
            signals=row.get("signals") or {},
            intensities=row.get("intensities") or {},
            last=row["close"],
            as_of=row["ts"],
            reasons=tuple(reason for reason in row.get("reasons") or () if reason is not None),
            keep=row["keep"],
            excluded=row["excluded"],
        )

"""A scan: what is read, which scanner's answer is taken, how it is ranked, and how lists are merged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from sigma9_core.contracts import Trigger
from sigma9_core.errors import DataError
from sigma9_core.models import WatchlistItem
from sigma9_core.scanning import NEW, ScanResult, ScanRow, merge, scan

FIRST = date(2026, 1, 1)
NOW = datetime(2026, 11, 20, 15, tzinfo=UTC)


class Closes:
    """A scanner of three bars whose score is the last close; `change` breaks it as a test wants."""

    version = "1"
    lookback = 3
    watchlist_size = 50

    def __init__(self, change: Callable[[pl.LazyFrame], pl.LazyFrame] | None = None) -> None:
        self.change = change or (lambda frame: frame)
        self.given: list[pl.DataFrame] = []

    def scan(self, bars: pl.LazyFrame) -> pl.LazyFrame:
        """Score every bar with its close."""
        self.given.append(bars.collect())
        return self.change(bars.with_columns(score=pl.col("close")))

    def trigger(self) -> Trigger | None:
        """Give none."""
        return None


def bars(days: dict[str, list[int]], close: dict[str, float] | None = None, **more: Any) -> pl.LazyFrame:
    """Make bars: for each symbol the numbers of the days on which it traded."""
    rows = [
        {
            "symbol": symbol,
            "ts": FIRST + timedelta(days=day),
            "close": (close or {}).get(symbol, 50.0),
            "volume": 100,
        }
        for symbol, held in days.items()
        for day in held
    ]
    frame = pl.DataFrame(rows).with_columns(*(pl.col("close").alias(name) for name in ("open", "high", "low")))
    return frame.with_columns(**more).lazy()


def every(count: int, start: int = 0) -> list[int]:
    return list(range(start, start + count))


# --- which bars are read, and who is scored -------------------------------------------------------------------


def test_only_the_sessions_that_are_needed_are_read() -> None:
    """Of a long history the last lookback + 10 sessions reach the scanner, sorted and typed."""
    scanner = Closes()
    frame = bars({"B": every(100), "A": every(100)}).collect().sample(fraction=1, shuffle=True, seed=1)
    result = scan(frame.lazy(), scanner)

    given = scanner.given[0]
    assert given.height == 2 * 13
    assert given["ts"].min() == FIRST + timedelta(days=87)
    assert given.equals(given.sort("symbol", "ts"))
    assert given.schema["volume"] == pl.Float64
    assert result.as_of == FIRST + timedelta(days=99)
    assert [row.symbol for row in result.rows] == ["A", "B"]


def test_a_stale_symbol_and_a_new_one_are_not_scored() -> None:
    """A last bar of an earlier day, and fewer bars than the lookback, are reasons that the result names."""
    scanner = Closes()
    result = scan(bars({"OK": every(30), "STALE": every(29), "IPO": every(2, 28)}), scanner)

    assert [row.symbol for row in result.rows] == ["OK"]
    assert result.unscored == {"STALE": "its last bar is of 2026-01-29", "IPO": NEW}
    assert scanner.given[0]["symbol"].unique().to_list() == ["OK"]
    assert [count for _, count in result.steps] == [3, 2, 1, 1, 1, 1, 1]


def test_a_symbol_that_skips_days_is_scored_on_its_own_last_bars() -> None:
    """Three bars in fifty sessions are enough for a lookback of three, however far they lie apart."""
    scanner = Closes()
    result = scan(bars({"OFTEN": every(50), "RARE": [1, 20, 49], "NEW": [30, 49]}), scanner)

    assert [row.symbol for row in result.rows] == ["OFTEN", "RARE"]
    rare = scanner.given[0].filter(pl.col("symbol") == "RARE")
    assert rare["ts"].to_list() == [FIRST + timedelta(days=day) for day in (1, 20, 49)]
    assert result.unscored == {"NEW": NEW}


def test_as_of_looks_at_nothing_later() -> None:
    """A scan as of an earlier day is the scan of data that end there."""
    frame = bars({"A": every(40), "B": every(20), "C": every(15, 25)})
    day = FIRST + timedelta(days=19)
    early, later = Closes(), Closes()
    cut = scan(frame.filter(pl.col("ts") <= day), early)
    whole = scan(frame, later, as_of=day)

    assert whole.rows == cut.rows
    assert later.given[0].equals(early.given[0])
    assert whole.as_of == day


@pytest.mark.parametrize(
    ("as_of", "message"),
    [
        (FIRST + timedelta(days=90), "the newest day before it is 2026-01-30"),
        (date(2025, 1, 1), "start on 2026-01-01"),
    ],
)
def test_a_day_without_bars_is_an_error(as_of: date, message: str) -> None:
    """The error names the nearest day."""
    with pytest.raises(DataError, match=message):
        scan(bars({"A": every(30)}), Closes(), as_of=as_of)


def test_no_bars_missing_columns_and_doubles_are_errors() -> None:
    """What can't be scanned is said; nothing is guessed."""
    frame = bars({"A": every(30)})
    with pytest.raises(DataError, match="no daily bars"):
        scan(frame.filter(pl.col("symbol") == "Z"), Closes())
    with pytest.raises(DataError, match="lack close, volume"):
        scan(frame.drop("close", "volume"), Closes())
    with pytest.raises(DataError, match=r"have A of 2026-01-18 twice \(13 such rows\)"):
        scan(pl.concat([frame, frame]), Closes())


def test_reference_columns_reach_the_scanner() -> None:
    """market_cap, float and security_type go through; anything else does not."""
    scanner = Closes()
    scan(bars({"A": every(30)}, market_cap=pl.lit(1e8), security_type=pl.lit("stock"), other=pl.lit(1)), scanner)

    assert scanner.given[0].columns[7:] == ["market_cap", "security_type"]


# --- ranking --------------------------------------------------------------------------------------------------


def test_the_ranking_is_by_priority_score_and_symbol() -> None:
    """Both descending, then the symbol; scores are compared as they are shown, to one decimal."""
    close = {"A": 50.01, "B": 50.04, "C": 60.0, "D": 10.0, "E": 50.06}
    priority = pl.when(pl.col("symbol") == "D").then(80).otherwise(10)
    scanner = Closes(lambda frame: frame.with_columns(priority=priority))
    result = scan(bars(dict.fromkeys("EDCBA", every(30)), close), scanner)

    assert [(row.symbol, row.priority, row.score) for row in result.rows] == [
        ("D", 80, 10.0),
        ("C", 10, 60.0),
        ("E", 10, 50.1),
        ("A", 10, 50.0),
        ("B", 10, 50.0),
    ]


def test_keep_universe_and_size_are_steps_that_show() -> None:
    """Not kept, left out by the universe, and below the cut: each step's count says so; all rows stay readable."""
    close = {name: float(10 + index) for index, name in enumerate("ABCDEF")}
    scanner = Closes(
        lambda frame: frame.with_columns(
            keep=pl.col("symbol") != "F", excluded=pl.when(pl.col("symbol") == "E").then(pl.lit("too dear"))
        )
    )
    scanner.watchlist_size = 2
    result = scan(bars(dict.fromkeys("ABCDEF", every(30)), close), scanner)

    assert [row.symbol for row in result.rows] == ["D", "C"]
    assert result.steps == (
        ("symbols in the last 13 sessions", 6),
        ("with a bar of 2026-01-30", 6),
        ("with 3 bars or more", 6),
        ("scored", 6),
        ("kept", 5),
        ("in the universe", 4),
        ("listed", 2),
    )
    assert [(row.symbol, row.keep, row.excluded) for row in result.all_rows()[:2]] == [
        ("F", False, None),
        ("E", True, "too dear"),
    ]


def test_a_null_score_is_no_score() -> None:
    """What a scanner can't score is not ranked; the rest of its columns may be null."""
    unknown = pl.when(pl.col("symbol") == "A")
    scanner = Closes(
        lambda frame: frame.with_columns(
            score=unknown.then(None).otherwise(pl.col("score")),
            priority=pl.lit(None, pl.Int32),
            reasons=pl.lit(None, pl.List(pl.String)),
        )
    )
    result = scan(bars({"A": every(30), "B": every(30)}), scanner)

    assert [(row.symbol, row.priority, row.reasons, row.stage) for row in result.rows] == [("B", 0, (), None)]


def test_a_row_has_the_fields_of_the_contract() -> None:
    """The body is the row of contract 9: the score to one decimal, the intensities as they are."""
    scanner = Closes(
        lambda frame: frame.with_columns(
            priority=80,
            stage=4,
            reasons=pl.concat_list(pl.lit("tight")),
            signals=pl.struct(tight_range=pl.lit(value=True)),
            intensities=pl.struct(tight_range=pl.lit(1 / 3)),
            x_own=pl.lit(1),
        )
    )
    result = scan(bars({"A": every(30)}, {"A": 12.345}), scanner)

    assert result.rows[0].body() == {
        "symbol": "A",
        "priority": 80,
        "score": 12.3,
        "stage": 4,
        "signals": {"tight_range": True},
        "intensities": {"tight_range": 1 / 3},
        "last": 12.345,
        "as_of": "2026-01-30",
        "reasons": ["tight"],
    }


# --- scanners that break the rules ----------------------------------------------------------------------------


def _raises(_: pl.LazyFrame) -> pl.LazyFrame:
    raise ZeroDivisionError("in the plugin")


BROKEN: dict[str, tuple[Callable[[pl.LazyFrame], Any], str]] = {
    "raises": (_raises, "ZeroDivisionError: in the plugin"),
    "raises later": (lambda f: f.with_columns(x_y=pl.col("nothing")), "ColumnNotFoundError"),
    "no frame": (lambda _: None, "gave NoneType, not a LazyFrame"),
    "eager": (lambda f: f.collect(), "gave DataFrame, not a LazyFrame"),
    "no score": (lambda f: f.drop("score"), "lacks the columns score"),
    "no bars": (lambda f: f.drop("open"), "lacks the columns open"),
    "rows lost": (lambda f: f.filter(pl.col("ts") > FIRST + timedelta(days=20)), "does not hold the same bars"),
    "rows doubled": (lambda f: pl.concat([f, f]), "does not hold the same bars"),
    "bars changed": (lambda f: f.with_columns(pl.col("high") + 1), "does not hold the same bars"),
    "too high": (lambda f: f.with_columns(score=pl.lit(100.5)), "score is 100.5 for A on"),
    "negative": (lambda f: f.with_columns(score=pl.lit(-0.1)), "score is -0.1"),
    "not a number": (lambda f: f.with_columns(score=pl.lit(float("nan"))), "score is nan"),
    "integer": (lambda f: f.with_columns(score=pl.lit(5)), "score has the type Int32; Float64 is wanted"),
    "priority": (lambda f: f.with_columns(priority=pl.lit(101)), "priority is outside 0 to 100"),
    "stage": (lambda f: f.with_columns(stage=pl.lit(5)), "stage is outside 0 to 4"),
    "stage's type": (
        lambda f: f.with_columns(stage=pl.lit("4")),
        "stage has the type String; an integer is wanted",
    ),
    "keep": (lambda f: f.with_columns(keep=pl.lit(1)), "keep has the type Int32; Boolean is wanted"),
    "excluded": (lambda f: f.with_columns(excluded=pl.lit(1)), "excluded has the type"),
    "reasons": (lambda f: f.with_columns(reasons=pl.lit("a")), "reasons has the type String"),
    "signals": (lambda f: f.with_columns(signals=pl.struct(a=pl.lit(1))), "a struct of Boolean is wanted"),
    "intensities": (lambda f: f.with_columns(intensities=pl.struct(a=pl.lit(1))), "a struct of Float64 is wanted"),
    "own names": (lambda f: f.with_columns(mine=pl.lit(1)), "named x_mine"),
    "type of the bars": (lambda f: f.with_columns(pl.col("close").cast(pl.Float32)), "close has the type Float32"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_scanner_that_breaks_a_rule_is_dropped_with_its_traceback(case: str) -> None:
    """It gives no rows, never a score of 0, and the result says what was wrong."""
    change, message = BROKEN[case]
    result = scan(bars({"A": every(30)}), Closes(change), name="mine")

    assert (result.name, result.rows, result.ranked, result.all_rows()) == ("mine", (), None, ())
    assert result.error is not None
    assert message in result.error
    assert result.error.startswith("Traceback")


def test_rows_may_come_in_any_order() -> None:
    """A scanner may shuffle its rows."""
    result = scan(
        bars({"A": every(30), "B": every(30)}), Closes(lambda f: f.sort("ts", "symbol", descending=True))
    )

    assert result.error is None
    assert [row.symbol for row in result.rows] == ["A", "B"]


# --- merging --------------------------------------------------------------------------------------------------


def row(symbol: str, priority: int = 50, score: float = 50.0, stage: int | None = 3, *reasons: str) -> ScanRow:
    return ScanRow(symbol, priority, score, stage, {}, {}, 5.0, FIRST, reasons, keep=True, excluded=None)


def test_lists_of_several_scanners_become_one() -> None:
    """A symbol in two lists names both strategies, takes the better ranking, and keeps each reason once."""
    one = ScanResult("one", FIRST, (row("AAA", 80, 20.0, 4, "tight", "dry"), row("BBB", 50, 60.0, 3, "bar")))
    two = ScanResult("two", FIRST, (row("CCC", 50, 70.0, 3), row("AAA", 50, 90.0, 3, "dry", "rising")))
    items = merge([one, two], NOW)

    assert [item.symbol for item in items] == ["AAA", "CCC", "BBB"]
    assert items[0] == WatchlistItem(
        symbol="AAA",
        priority=80,
        score=20.0,
        stage=4,
        strategies=("one", "two"),
        reasons=("tight", "dry", "rising"),
        last=5.0,
        added_at=NOW,
    )


@pytest.mark.parametrize(
    ("stages", "no_trade"),
    [
        ([4], None),
        ([3], None),
        ([2], "stage 2: watch only, entries are made from stage 3 on"),
        ([0], "stage 0: watch only, entries are made from stage 3 on"),
        ([1, 2], "stage 2: watch only, entries are made from stage 3 on"),
        ([1, 3], None),
        ([1, None], None),
        ([None], None),
    ],
)
def test_low_stages_are_watched_and_not_traded(stages: list[int | None], no_trade: str | None) -> None:
    """no_trade says so unless some strategy trades at its stage; a scanner without stages always may."""
    results = [ScanResult(f"s{i}", FIRST, (row("AAA", 50, 50.0, stage),)) for i, stage in enumerate(stages)]

    assert merge(results, NOW)[0].no_trade == no_trade


def test_what_stays_keeps_its_time() -> None:
    """added_at is the time at which a symbol came onto the list, not that of the newest scan."""
    earlier = NOW - timedelta(days=1)
    before = merge([ScanResult("one", FIRST, (row("AAA"),))], earlier)
    after = merge([ScanResult("one", FIRST, (row("AAA"), row("BBB")))], NOW, before)

    assert {item.symbol: item.added_at for item in after} == {"AAA": earlier, "BBB": NOW}


def test_a_failed_scanner_adds_nothing() -> None:
    """A result with an error has no rows, and the others' list is as it is without it."""
    broken = scan(bars({"A": every(30)}), Closes(_raises), name="broken")
    fine = scan(bars({"A": every(30)}), Closes(), name="fine")

    assert merge([broken, fine], NOW) == merge([fine], NOW)

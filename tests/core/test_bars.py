"""Bars from files: what is good is read, what is bad is named, and nothing is silently wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core import bars as module
from sigma9_core.bars import BarTable, read_bars
from sigma9_core.calendar import Calendar, load_calendar
from sigma9_core.errors import DataError
from sigma9_core.models import Session

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real bars beside the repository are missing")

HEADER = "symbol,ts,open,high,low,close,volume"
GOOD = "AAA,2016-01-04,10,11,9,10.5,100"


@pytest.fixture(scope="session", name="xnys")
def _xnys(tmp_path_factory: pytest.TempPathFactory) -> Calendar:
    return load_calendar("XNYS", tmp_path_factory.getbasetemp() / "sigma9", today=date(2026, 11, 20))


Read = Callable[..., BarTable]


@pytest.fixture(name="read")
def _read(tmp_path: Path, xnys: Calendar) -> Read:
    """Read a file of the given text or bytes."""

    def read(text: str | bytes, name: str = "bars.csv", **more: Any) -> BarTable:
        file = tmp_path / name
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_bars(file, calendar=xnys, **more)

    return read


def reasons(table: BarTable) -> list[tuple[int, str | None, str | None, str]]:
    """Give what was rejected without the file's name."""
    return [(row.row, row.symbol, row.ts, row.reason) for row in table.rejected]


# --- real files -----------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.shared_data
def test_the_real_universe_is_read_whole_and_quickly(xnys: Calendar) -> None:
    """1.9 million real rows are checked in about a second, and none is lost or changed."""
    file = SHARED / "us_daily_2016-2017.parquet"
    times = []
    for _ in range(2):
        began = time.perf_counter()
        table = read_bars(file, calendar=xnys)
        times.append(time.perf_counter() - began)

    assert table.rows == table.frame.height == 1_888_954
    assert (table.rejected, table.reasons, table.rejected_count) == ((), {}, 0)
    assert table.frame.equals(pl.read_parquet(file).with_columns(pl.col("volume").cast(pl.Float64)))
    assert min(times) < 3


@needs_data
@pytest.mark.shared_data
def test_the_real_rejects_are_all_named(xnys: Calendar) -> None:
    """All 79 rows of days without a session are left out, each by file, row, symbol and date."""
    table = read_bars(SHARED / "us_daily_rejected.csv", calendar=xnys)

    assert (table.rows, table.frame.height, table.reasons) == (79, 0, {"exchange shut": 79})
    assert len(table.rejected) == 79
    assert reasons(table)[0] == (1, "CBX", "2016-01-18", "exchange shut")
    assert str(table.rejected[0]).endswith("us_daily_rejected.csv: row 1: CBX 2016-01-18: exchange shut")


@needs_data
@pytest.mark.shared_data
def test_csv_and_parquet_agree(xnys: Calendar) -> None:
    """The sample CSV is the same bars as the Parquet file's; together each of its rows is a duplicate."""
    whole = read_bars(SHARED / "us_daily_2016-2017.parquet", calendar=xnys)
    sample = read_bars(SHARED / "us_daily_sample.csv", calendar=xnys)
    names = sample.frame["symbol"].unique()
    both = read_bars([SHARED / "us_daily_2016-2017.parquet", SHARED / "us_daily_sample.csv"], calendar=xnys)

    assert sample.frame.equals(whole.frame.filter(pl.col("symbol").is_in(names.implode())))
    assert both.reasons == {"duplicate": 5024}
    assert both.frame.equals(whole.frame)
    assert both.rejected[0].file.endswith("us_daily_sample.csv")


@needs_data
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "stamp", "rows", "first"),
    [
        ("intraday_1m_eqker_2019-02.parquet", "end", 33_477, "2019-02-11 14:30"),
        ("intraday_1m_spy_2011-03.parquet", "end", 17_577, "2011-03-01 09:00"),
        ("intraday_1m_sample.csv", "end", 800, "2011-03-01 09:00"),
        ("intraday_1m_lwc_2023-05.parquet", "start", 6253, "2023-05-24 21:16"),
        ("intraday_1m_spy_2020-12.parquet", "start", 1564, "2020-12-15 14:30"),
    ],
)
def test_real_intraday_bars_are_kept_with_pre_market_and_after_hours(
    xnys: Calendar, name: str, stamp: Literal["start", "end"], rows: int, first: str
) -> None:
    """Every real minute bar is kept, and its time is its start, whatever the file's convention is."""
    table = read_bars(SHARED / name, kind="intraday", stamp=stamp, calendar=xnys)

    assert (table.frame.height, table.rejected_count, table.seconds) == (rows, 0, 60)
    assert table.frame.schema["ts"] == pl.Datetime("us", "UTC")
    assert f"{table.frame['ts'][0]:%Y-%m-%d %H:%M}" == first


@needs_data
@pytest.mark.shared_data
def test_the_named_calendar_comes_from_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, xnys: Calendar
) -> None:
    """Without a calendar XNYS is loaded through the cache that commands share."""
    assert xnys.loaded
    monkeypatch.delenv("SIGMA9_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))

    assert read_bars(SHARED / "us_daily_rejected.csv").reasons == {"exchange shut": 79}


# --- rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("AAA,2016-01-04,10,11,9,10.5", "volume missing"),
        ("AAA,2016-01-04,10,11,9,,100", "close missing"),
        ("AAA,2016-01-04,,11,9,10.5,100", "open missing"),
        ("AAA,2016-01-04,10,NaN,9,10.5,100", "high missing"),
        ("AAA,2016-01-04,10,inf,9,10.5,100", "high not finite"),
        ("AAA,2016-01-04,10,11,-inf,10.5,100", "low not finite"),
        ("AAA,2016-01-04,10,11,nine,10.5,100", "low unparsable"),
        ("AAA,2016-01-04,10,11,9,10.5,1_000", "volume unparsable"),
        ("AAA,2016-01-04,10,11,9,10.5,1,000", "too many fields"),
        ("AAA,2016-01-04,0,11,0,10.5,100", "price <= 0"),
        ("AAA,2016-01-04,-1,11,-1,10.5,100", "price <= 0"),
        ("AAA,2016-01-04,10,10.4,9,10.5,100", "ohlc out of order"),
        ("AAA,2016-01-04,10,9.9,9,9.5,100", "ohlc out of order"),
        ("AAA,2016-01-04,10,11,10.1,10.5,100", "ohlc out of order"),
        ("AAA,2016-01-04,10,11,9.9,9.5,100", "ohlc out of order"),
        ("AAA,2016-01-04,10,11,9,10.5,-1", "negative volume"),
        ("AAA,2016-01-18,10,11,9,10.5,100", "exchange shut"),
        ("AAA,2016-01-09,10,11,9,10.5,100", "exchange shut"),
        ("AAA,1899-12-30,10,11,9,10.5,100", "outside the calendar"),
        ("AAA,2999-12-31,10,11,9,10.5,100", "outside the calendar"),
        ("AAA,2016-02-30,10,11,9,10.5,100", "ts unparsable"),
        ("AAA,01/04/2016,10,11,9,10.5,100", "ts unparsable"),
        ("AAA,yesterday,10,11,9,10.5,100", "ts unparsable"),
        ("AAA,12,10,11,9,10.5,100", "ts unparsable"),
        ("AAA,,10,11,9,10.5,100", "ts missing"),
        (",2016-01-04,10,11,9,10.5,100", "symbol missing"),
        ("A A,2016-01-04,10,11,9,10.5,100", "bad symbol"),
        ("BRK/B,2016-01-04,10,11,9,10.5,100", "bad symbol"),
        ("A" * 33 + ",2016-01-04,10,11,9,10.5,100", "bad symbol"),
        ("AAA", "ts missing"),
        ("", "empty row"),
        (",,,,,,", "empty row"),
    ],
)
def test_a_bad_row_is_named_and_left_out(read: Read, row: str, reason: str) -> None:
    """Each kind of bad row is left out with its row number and reason; its neighbours stay."""
    other = "ZZZ,2016-01-05,1,1,1,1,0"
    table = read("\n".join([HEADER, GOOD, row, other]) + "\n")

    assert table.frame["symbol"].to_list() == ["AAA", "ZZZ"]
    assert [(number, why) for number, _, _, why in reasons(table)] == [(2, reason)]
    assert (table.rows, table.reasons) == (3, {reason: 1})


def test_of_duplicates_the_first_is_kept(read: Read) -> None:
    """The first row of a symbol and day stays, the others are named; a bad row is no first one."""
    table = read(
        f"{HEADER}\nBBB,2016-01-05,1,1,1,1,1\nAAA,2016-01-04,0,0,0,0,0\n{GOOD}\n"
        "AAA,2016-01-04,20,20,20,20,1\nBBB,2016-01-05,2,2,2,2,2\n"
    )

    assert table.frame.select("symbol", "close").rows() == [("AAA", 10.5), ("BBB", 1.0)]
    assert reasons(table) == [
        (2, "AAA", "2016-01-04", "price <= 0"),
        (4, "AAA", "2016-01-04", "duplicate"),
        (5, "BBB", "2016-01-05", "duplicate"),
    ]


def test_the_detail_is_bounded_and_the_count_is_not(read: Read) -> None:
    """So many bad rows are named; all are counted."""
    table = read(HEADER + "\n" + "AAA,x,1,1,1,1,1\n" * 50 + "AAA,2016-01-04,1,1,1,1,x\n" * 3, detail=7)

    assert [row.row for row in table.rejected] == [1, 2, 3, 4, 5, 6, 7]
    assert table.reasons == {"ts unparsable": 50, "volume unparsable": 3}
    assert table.rejected_count == 53


def test_rows_come_sorted_whatever_their_order(read: Read) -> None:
    """The table is sorted by symbol and time."""
    table = read(f"{HEADER}\nB,2016-01-05,1,1,1,1,1\nB,2016-01-04,1,1,1,1,1\nA,2016-01-06,1,1,1,1,1\n")

    assert table.frame.select("symbol", "ts").rows() == [
        ("A", date(2016, 1, 6)),
        ("B", date(2016, 1, 4)),
        ("B", date(2016, 1, 5)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        HEADER.upper() + "\n" + GOOD,
        "Date;Ticker;O;H;L;C;Vol;Adj Close\n2016-01-04;AAA;10;11;9;10.5;100;99\n",
        "time\tsymbol\to\th\tl\tc\tv\n1451865600\tAAA\t10\t11\t9\t10.5\t100",
        '\ufeff"symbol","ts","open","high","low","close","volume"\r\n"AAA","2016-01-04","10","11","9","10.5","100"\r\n',
        f'{HEADER},name\n{GOOD},"A, and B"\n',
        f"{HEADER}\nAAA, 20160104 , 10 ,11,9,1.05e1,1e2\n",
    ],
)
def test_common_shapes_of_csv_are_read(read: Read, text: str) -> None:
    """Upper case, other names and separators, quotes, a byte-order mark, more columns, spaces."""
    table = read(text)

    assert table.frame.rows() == [("AAA", date(2016, 1, 4), 10.0, 11.0, 9.0, 10.5, 100.0)]
    assert table.rejected_count == 0


def test_a_stray_quote_swallows_no_rows(read: Read) -> None:
    """Two stray quotes, lines apart, cost the two rows that they stand in, not those between."""
    rows = [f"AAA,2016-01-{day:02},1,1,1,1,1" for day in (4, 5, 6, 7, 8)]
    rows[1] = '"' + rows[1] + "x"
    rows[3] = rows[3] + '"x'
    table = read("\n".join([HEADER, *rows]))

    assert table.frame["ts"].to_list() == [date(2016, 1, 4), date(2016, 1, 6), date(2016, 1, 8)]
    assert [row.row for row in table.rejected] == [2, 4]


def test_a_header_alone_is_an_empty_table(read: Read) -> None:
    """No rows are no error."""
    table = read(HEADER)

    assert (table.rows, table.frame.height, table.rejected_count) == (0, 0, 0)


# --- files that are no tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x1f\x8b\x08\x00\x00", "unpack a compressed file first"),
        (b"\x00\x01\x02\x03\n", "neither Parquet nor CSV"),
        (b"PAR1 but no Parquet", "the Parquet file is broken"),
        (b"PAR1" + b"\x00" * 100 + b"PAR1", "the Parquet file is broken"),
        (b"symbol,ts,open,high,low\n", "no columns close, volume; the file has symbol, ts, open, high, low"),
        (b"symbol,date,time,open,high,low,close,volume\n", "several columns may be ts: date, time"),
        (b"symbol,symbol,ts,open,high,low,close,volume\n", "several columns may be symbol"),
        (b"just a sentence\n", "no columns symbol, ts, open, high, low, close, volume"),
    ],
)
def test_what_is_no_table_is_said_with_its_name(read: Read, content: bytes, message: str) -> None:
    """The error names the file and what it lacks."""
    with pytest.raises(DataError, match=message) as hit:
        read(content, "odd.file")

    assert "odd.file: " in str(hit.value)


def test_missing_files_and_folders_are_said(tmp_path: Path, xnys: Calendar) -> None:
    """A path that is not there, or a folder, gives a DataError."""
    for path in (tmp_path / "nothing.parquet", tmp_path):
        with pytest.raises(DataError, match="it can't be read"):
            read_bars(path, calendar=xnys)
    with pytest.raises(DataError, match="name at least one file"):
        read_bars([], calendar=xnys)


def test_a_truncated_real_table_is_an_error(tmp_path: Path, xnys: Calendar) -> None:
    """A Parquet file that was cut off in the middle does not crash the reader."""
    whole = tmp_path / "whole.parquet"
    _frame().write_parquet(whole)
    part = tmp_path / "part.parquet"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    with pytest.raises(DataError, match=r"part\.parquet: the Parquet file is broken"):
        read_bars(part, calendar=xnys)


def test_a_file_name_is_no_pattern(tmp_path: Path, xnys: Calendar) -> None:
    """Brackets and stars in a name are themselves."""
    _frame().write_parquet(tmp_path / "a[1]*.parquet")

    assert read_bars(tmp_path / "a[1]*.parquet", calendar=xnys).frame.height == 2


def test_intraday_bars_need_their_convention(tmp_path: Path, xnys: Calendar) -> None:
    """Without the meaning of the times nothing is guessed; a length of nothing is refused."""
    with pytest.raises(DataError, match="stamp must be 'start' or 'end'"):
        read_bars(tmp_path / "x", kind="intraday", calendar=xnys)
    with pytest.raises(DataError, match="must be positive"):
        read_bars(tmp_path / "x", kind="intraday", stamp="start", seconds=0, calendar=xnys)


def test_an_empty_calendar_is_refused(tmp_path: Path) -> None:
    """Without sessions no row could be judged."""
    (tmp_path / "x.csv").write_text(f"{HEADER}\n{GOOD}\n")
    with pytest.raises(DataError, match="the exchange calendar XNYS is empty"):
        read_bars(tmp_path / "x.csv", calendar=Calendar("XNYS"))


# --- types in Parquet -----------------------------------------------------------------------------------------


def _frame(**more: pl.Series | pl.Expr) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "symbol": ["AAA", "BBB"],
            "ts": [date(2016, 1, 4), date(2016, 1, 5)],
            "open": [10.0, 1.0],
            "high": [11.0, 1.0],
            "low": [9.0, 1.0],
            "close": [10.5, 1.0],
            "volume": [100, 0],
        }
    )
    return frame.with_columns(**more)


@pytest.mark.parametrize(
    "more",
    [
        {"symbol": pl.col("symbol").cast(pl.Categorical)},
        {"ts": pl.col("ts").cast(pl.Datetime("ns"))},
        {"ts": pl.col("ts").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")},
        {"ts": pl.col("ts").cast(pl.Datetime("us")).dt.replace_time_zone("America/New_York")},
        {
            "ts": pl.col("ts")
            .cast(pl.Datetime("us"))
            .dt.replace_time_zone("America/New_York")
            .dt.convert_time_zone("UTC")
        },
        {"ts": pl.col("ts").cast(pl.String)},
        {"ts": pl.col("ts").cast(pl.Datetime("ms")).cast(pl.Int64)},
        {"ts": pl.col("ts").dt.strftime("%Y%m%d").cast(pl.Int32)},
        {"open": pl.col("open").cast(pl.Decimal(10, 2)), "close": pl.col("close").cast(pl.Float32)},
        {"volume": pl.col("volume").cast(pl.String), "high": pl.col("high").cast(pl.String)},
    ],
)
def test_other_types_mean_the_same(tmp_path: Path, xnys: Calendar, more: dict[str, pl.Expr]) -> None:
    """Categories, dates as times of any zone, numbers and text, decimals: the same bars."""
    _frame(**more).write_parquet(tmp_path / "x.parquet")
    table = read_bars(tmp_path / "x.parquet", calendar=xnys)

    assert table.rejected == ()
    assert table.frame.equals(_frame(volume=pl.col("volume").cast(pl.Float64)))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"symbol": pl.Series(["AAA", None])}, "symbol missing"),
        ({"ts": pl.Series([date(2016, 1, 4), None])}, "ts missing"),
        ({"ts": pl.Series([1451865600, 7])}, "ts unparsable"),
        ({"close": pl.Series([10.5, None])}, "close missing"),
        ({"close": pl.Series([10.5, float("nan")])}, "close missing"),
        ({"close": pl.Series([10.5, float("inf")])}, "close not finite"),
        ({"volume": pl.Series([100, -5])}, "negative volume"),
        ({"volume": pl.Series(["100", "many"])}, "volume unparsable"),
    ],
)
def test_bad_values_in_parquet_are_named(
    tmp_path: Path, xnys: Calendar, more: dict[str, pl.Series], reason: str
) -> None:
    """Nulls, NaN and infinities in a Parquet file cost their row alone."""
    _frame(**more).write_parquet(tmp_path / "x.parquet")
    table = read_bars(tmp_path / "x.parquet", calendar=xnys)

    assert table.frame["symbol"].to_list() == ["AAA"]
    assert [(row.row, row.reason) for row in table.rejected] == [(2, reason)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"open": pl.Series([[1.0], [2.0]])}, "the column open has the type List"),
        ({"open": pl.Series([True, False])}, "the column open has the type Boolean"),
        ({"symbol": pl.Series([["A"], ["B"]])}, "the column symbol has the type List"),
        ({"ts": pl.Series([True, False])}, "the column ts has the type Boolean"),
    ],
)
def test_a_column_of_an_impossible_type_is_an_error(
    tmp_path: Path, xnys: Calendar, more: dict[str, pl.Series], message: str
) -> None:
    """Lists and booleans are no prices."""
    _frame(**more).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=message):
        read_bars(tmp_path / "x.parquet", calendar=xnys)


def test_dates_are_no_intraday_times(tmp_path: Path, xnys: Calendar) -> None:
    """A file of daily bars read as intraday bars is an error, or its rows are named."""
    _frame().write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="read dates as daily bars"):
        read_bars(tmp_path / "x.parquet", kind="intraday", stamp="start", calendar=xnys)
    (tmp_path / "x.csv").write_text(f"{HEADER}\n{GOOD}\n")
    table = read_bars(tmp_path / "x.csv", kind="intraday", stamp="start", calendar=xnys)
    assert table.reasons == {"ts unparsable": 1}


# --- intraday -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "first", "last"),
    [
        ("2026-11-25", "09:00", "02:00"),
        ("2026-11-27", "09:00", "22:00"),
        ("2026-07-01", "08:00", "00:00"),
    ],
)
def test_pre_market_and_after_hours_are_kept_and_the_night_is_not(
    read: Read, day: str, first: str, last: str
) -> None:
    """From 5.5 hours before the open to 4 hours after the close; on an early close to 17:00."""
    night = datetime.fromisoformat(f"{day}T00:00Z")
    opens = datetime.fromisoformat(f"{day}T{first}Z")
    closes = {"02:00": 25, "22:00": 22, "00:00": 24}[last]
    ends = night + timedelta(hours=closes)
    times = [opens - timedelta(minutes=1), opens, ends, ends + timedelta(minutes=1)]
    rows = "\n".join(f"AAA,{moment.isoformat()},1,1,1,1,1" for moment in times)
    table = read(f"{HEADER}\n{rows}\n", kind="intraday", stamp="start")

    assert table.frame["ts"].to_list() == times[1:3]
    assert [(number, why) for number, _, _, why in reasons(table)] == [(1, "exchange shut"), (4, "exchange shut")]


def test_a_rejected_time_stands_as_it_stands_in_the_file(read: Read) -> None:
    """Where the times are the bars' ends a rejected one is told unshifted."""
    table = read(
        f"{HEADER}\nAAA,2026-11-26T15:00:00Z,1,1,1,1,1\nAAA,2026-11-25T15:00:00Z,1,1,1,1,1\n",
        kind="intraday",
        stamp="end",
        seconds=300,
    )

    assert table.frame["ts"].to_list() == [datetime(2026, 11, 25, 14, 55, tzinfo=UTC)]
    assert reasons(table) == [(1, "AAA", "2026-11-26T15:00:00Z", "exchange shut")]
    assert table.seconds == 300


Moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001 - a zone is added below


@given(Moments, st.integers(-14 * 60, 14 * 60), st.sampled_from(["iso", "space", "basic", "s", "ms", "us", "ns"]))
def test_a_time_is_the_same_in_every_notation(naive: datetime, offset: int, notation: str) -> None:
    """ISO text with any offset, and seconds to nanoseconds since 1970, as text and as numbers, mean one moment."""
    moment = naive.replace(tzinfo=UTC)
    local = moment.astimezone(timezone(timedelta(minutes=offset)))
    if notation in ("s", "ms", "us", "ns"):
        unit = {"s": 0, "ms": 3, "us": 6, "ns": 9}[notation]
        exact = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        number = exact * 10**unit // 10**6
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=number * 10**6 // 10**unit)
        assert module._moment(number) == moment
        text = str(number)
    else:
        text = local.isoformat(sep=" " if notation == "space" else "T")
        text = text if notation != "basic" else local.strftime("%Y%m%dT%H%M%S.%f%z")

    assert module._moment(text) == moment


@given(st.dates(date(1950, 1, 1), date(2100, 1, 1)))
def test_a_date_is_the_same_in_every_notation(day: date) -> None:
    """ISO text, eight digits, midnight of any zone: one session date; an evening in UTC is New York's day."""
    for text in (
        day.isoformat(),
        f"{day:%Y%m%d}",
        f"{day}T00:00:00",
        f"{day} 00:00:00+00:00",
        f"{day}T00:00-05:00",
    ):
        assert module._day(text) == day
    assert module._day(int(f"{day:%Y%m%d}")) == day
    assert module._day(f"{day + timedelta(days=1)}T01:00:00Z") == day


CELLS = st.one_of(
    st.sampled_from(
        [
            "AAA",
            "2016-01-04",
            "2016-01-05",
            "10",
            "11",
            "9",
            "0",
            "-1",
            "",
            "NaN",
            "inf",
            '"',
            '"x"',
            "1e400",
            "é",
            "1e5",
        ]
    ),
    st.text(max_size=8).map(lambda text: text.replace("\n", " ").replace("\r", " ")),
)


@given(st.lists(st.lists(CELLS, min_size=0, max_size=9), max_size=8), st.sampled_from(["daily", "intraday"]))
@settings(max_examples=100, deadline=None)
def test_nothing_in_a_cell_crashes_the_reader(rows: list[list[str]], kind: Literal["daily", "intraday"]) -> None:
    """Whatever the cells hold, every row is either a sound bar or named."""
    import tempfile

    text = "\n".join([HEADER, *(",".join(row) for row in rows), GOOD])
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(text.encode())
        file.flush()
        table = read_bars(file.name, kind=kind, stamp="start", calendar=_SMALL)

    assert table.rows == len(rows) + 1
    assert table.frame.height + table.rejected_count == table.rows
    for _, _, opened, high, low, close, volume in table.frame.iter_rows():
        assert 0 < low <= min(opened, close) <= max(opened, close) <= high < float("inf")
        assert 0 <= volume < float("inf")


_SMALL = Calendar(
    "XNYS",
    [
        Session(
            f"2016-01-0{day}",
            datetime(2016, 1, day, 14, 30, tzinfo=UTC),
            datetime(2016, 1, day, 21, tzinfo=UTC),
        )
        for day in (4, 5)
    ],
)

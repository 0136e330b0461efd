"""The replay feed: bars from files, in time order, known at their end, and nothing invented in silence."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from sigma9_core.calendar import load_calendar
from sigma9_core.contracts import Factory, NoConfig
from sigma9_core.errors import DataError
from sigma9_core.models import Bar, Frozen, Slice
from sigma9_plugins.feeds import replay as plugin
from sigma9_plugins.feeds.replay import NEW_YORK, ReplayConfig, made_up_trades, read_splits
from sigma9_plugins.testing.market_room import at, replay, until

MONDAY, TUESDAY = date(2026, 3, 2), date(2026, 3, 3)
MINUTE = timedelta(minutes=1)
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def write(file: Path, rows: Iterable[tuple[Any, ...]]) -> Path:
    """Write rows as CSV: symbol, start of the bar, open, high, low, close, volume."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("symbol", "ts", "open", "high", "low", "close", "volume"))
        for symbol, ts, *numbers in rows:
            writer.writerow((symbol, ts.isoformat() if isinstance(ts, datetime) else ts, *numbers))
    return file


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    """Give two symbols on two days: A in four minutes of Monday and two of Tuesday, B in two and a gap."""
    rows: list[tuple[Any, ...]] = [
        ("A", at(MONDAY, 9, 30 + n), 10 + n, 10.5 + n, 9.5 + n, 10.2 + n, 100) for n in range(4)
    ]
    rows += [("A", at(TUESDAY, 9, 30 + n), 20 + n, 20.5 + n, 19.5 + n, 20.2 + n, 200) for n in range(2)]
    rows += [("B", at(MONDAY, 9, 31), 5, 6, 4, 5.5, 50), ("B", at(MONDAY, 9, 33), 5.5, 5.6, 5.4, 5.5, 60)]
    rows += [("A", at(MONDAY, 9, 10), 9, 9.1, 8.9, 9, 10), ("A", at(MONDAY, 16, 5), 14, 14.1, 13.9, 14, 10)]
    return write(tmp_path / "bars.csv", rows)


def feed(file: Path, **settings: Any) -> Any:
    """Build a replay of one file whose times are starts."""
    return replay(**{"files": [file], "stamp": "start", **settings})


async def play(file: Path, **settings: Any) -> list[Slice]:
    """Play a file to its end."""
    replaying = feed(file, **settings)
    await replaying.connect(None)
    return await until(replaying)


def test_plugin_registers_the_feed() -> None:
    """The plugin offers one feed, `replay`."""
    offered: dict[str, Any] = {}

    def register(name: str, factory: Factory, config: type[Frozen] = NoConfig) -> None:
        offered[name] = config

    plugin.register_feeds(register)

    assert offered == {"replay": ReplayConfig}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"files": []}, "files"),
        ({"stamp": None}, "stamp"),
        ({"seconds": 0}, "seconds"),
        ({"from": "2026-03-03", "to": "2026-03-02"}, "does not lie after"),
        ({"symbols": ["not a symbol"]}, "symbols"),
        ({"spread_percent": -1}, "spread_percent"),
        ({"speed": "quick"}, "speed"),
    ],
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    """A setting that makes no sense is an error that names it."""
    with pytest.raises(ValidationError, match=says):
        ReplayConfig.model_validate({"files": ["bars.csv"], "stamp": "start", **wrong})


async def test_a_slice_at_the_end_of_each_bar(file: Path) -> None:
    """Each slice stands at its bars' end and has all symbols' bars; the first is empty and sets the clock."""
    found = await play(file)

    assert found[0] == Slice(at(MONDAY, 9, 10))
    assert [data.ts for data in found[1:]] == [
        at(MONDAY, 9, 11),
        *(at(MONDAY, 9, 31 + n) for n in range(4)),
        at(MONDAY, 16, 6),
        at(TUESDAY, 9, 31),
        at(TUESDAY, 9, 32),
    ]
    assert [[bar.symbol for bar in data.bars] for data in found[1:6]] == [
        ["A"],
        ["A"],
        ["A", "B"],
        ["A"],
        ["A", "B"],
    ]
    assert found[3].bars == (
        Bar("A", at(MONDAY, 9, 31), 11.0, 11.5, 10.5, 11.2, 100.0),
        Bar("B", at(MONDAY, 9, 31), 5.0, 6.0, 4.0, 5.5, 50.0),
    )
    assert all(data.ts.tzinfo is UTC and all(bar.ts.tzinfo is UTC for bar in data.bars) for data in found)


async def test_stamps_at_the_end(file: Path) -> None:
    """With `stamp: end` the same times mean bars that began a bar's length earlier."""
    found = await play(file, stamp="end")

    assert found[2].ts == at(MONDAY, 9, 30)
    assert found[2].bars[0].ts == at(MONDAY, 9, 29)


async def test_longer_bars(file: Path) -> None:
    """Bars of five minutes are known five minutes after their start, and say their length."""
    found = await play(file, seconds=300)

    assert found[2].ts == at(MONDAY, 9, 35)
    assert found[2].bars[0].seconds == 300


async def test_from_and_to(file: Path) -> None:
    """`from` and `to` bound what is replayed: dates as a whole, times in New York where they name no zone."""
    cases: list[tuple[dict[str, Any], datetime, datetime]] = [
        ({"from": "2026-03-03"}, at(TUESDAY, 9, 31), at(TUESDAY, 9, 32)),
        ({"to": "2026-03-02"}, at(MONDAY, 9, 11), at(MONDAY, 16, 6)),
        ({"from": "2026-03-02T09:31", "to": "2026-03-02T09:33"}, at(MONDAY, 9, 32), at(MONDAY, 9, 33)),
        ({"from": at(MONDAY, 9, 33), "to": at(TUESDAY, 9, 31)}, at(MONDAY, 9, 34), at(TUESDAY, 9, 31)),
    ]
    for settings, first, last in cases:
        found = await play(file, **settings)
        assert (found[1].ts, found[-1].ts) == (first, last), settings
    with pytest.raises(DataError, match="nothing to replay from 2027-01-01 to the end"):
        await play(file, **{"from": "2027-01-01"})


async def test_symbols(file: Path) -> None:
    """Symbols are listed; the setting chooses among them, and one that is not there is an error."""
    assert list(feed(file).symbols) == ["A", "B"]
    found = await play(file, symbols=["B"])

    assert [[bar.symbol for bar in data.bars] for data in found[1:]] == [["B"], ["B"]]
    with pytest.raises(DataError, match="no bars of ZZZ"):
        await play(file, symbols=["B", "ZZZ"])


async def test_subscription(file: Path) -> None:
    """A subscription limits what comes from the next slice on; the slices themselves all come."""
    everything = await play(file)
    replaying = feed(file)
    await replaying.connect(None)
    replaying.subscribe(frozenset())
    found = []
    async for data in replaying.slices():
        found.append(data)
        if data.ts == at(MONDAY, 9, 31):
            replaying.subscribe(frozenset("B"))

    assert [data.ts for data in found] == [data.ts for data in everything]
    assert [bar.symbol for data in found for bar in data.bars] == ["B", "B"]
    assert [quote.symbol for data in found for quote in data.quotes] == ["B", "B"]


async def test_made_up_quotes(file: Path) -> None:
    """A quote is made up at each bar's end, as wide as the setting says, unless it is switched off."""
    found = await play(file, spread_percent=1)
    (quote,) = found[2].quotes

    assert (quote.symbol, quote.ts, quote.bid_size) == ("A", at(MONDAY, 9, 31), 10.0)
    assert (quote.bid, quote.ask) == (10.149, 10.251)
    assert all(not data.quotes for data in await play(file, synthetic_quotes=False))


async def test_made_up_trades(file: Path) -> None:
    """There are no trades unless they are asked for; then they lie inside their bar and add up to its volume."""
    assert all(not data.trades for data in await play(file))
    found = await play(file, trades_per_bar=4)
    trades = found[3].trades

    assert [trade.price for trade in trades if trade.symbol == "A"] == [11.0, 10.5, 11.5, 11.2]
    assert sum(trade.size for trade in trades if trade.symbol == "A") == 100
    assert all(at(MONDAY, 9, 31) < trade.ts < at(MONDAY, 9, 32) for trade in trades)
    assert [trade.ts for trade in trades] == sorted(trade.ts for trade in trades)


def test_made_up_path() -> None:
    """A falling bar goes through its high first; one trade is the close; many lie on the way."""
    falling = Bar("A", at(MONDAY, 10), 10.0, 11.0, 8.0, 9.0, 70.0)

    assert [trade.price for trade in made_up_trades(falling, 4)] == [10.0, 11.0, 8.0, 9.0]
    assert [trade.price for trade in made_up_trades(falling, 1)] == [9.0]
    assert [trade.price for trade in made_up_trades(falling, 7)] == [10.0, 10.5, 11.0, 9.5, 8.0, 8.5, 9.0]


async def test_progress(file: Path) -> None:
    """The feed tells how many slices there are and how many have been given."""
    replaying = feed(file)
    await replaying.connect(None)
    assert (replaying.done_slices, replaying.total_slices) == (0, 8)
    await until(replaying, at(MONDAY, 9, 32))
    assert replaying.done_slices == 3
    await replaying.connect(at(MONDAY, 9, 32))
    assert replaying.done_slices == 3
    found = await until(replaying)

    assert [data.ts for data in found[:2]] == [at(MONDAY, 9, 32), at(MONDAY, 9, 33)]
    assert replaying.done_slices == 8


async def test_bad_rows_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that are wrong are left out, counted and named; the others are replayed."""
    rows = [
        ("A", at(MONDAY, 9, 30), 10, 11, 9, 10, 1),
        ("A", at(MONDAY, 9, 31), 10, 9, 11, 10, 1),
        ("A", "yesterday", 10, 11, 9, 10, 1),
        ("A", at(date(2026, 3, 7), 9, 31), 10, 11, 9, 10, 1),
    ]
    replaying = feed(write(tmp_path / "bad.csv", rows))
    await replaying.connect(None)

    assert len(await until(replaying)) == 2
    assert replaying.rejected_count == 3
    assert [rejected.row for rejected in replaying.rejected] == [2, 3, 4]
    assert "3 of 4 rows of the intraday bars are left out" in caplog.text
    assert "row 3" in caplog.text


async def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing file, and one that is no table, end the connection with their name."""
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        await play(tmp_path / "nowhere.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"empty\.csv"):
        await play(tmp_path / "empty.csv")
    with pytest.raises(DataError, match="connect"):
        await anext(feed(tmp_path / "empty.csv").slices())


async def test_daily_bars_from_minutes(file: Path) -> None:
    """Without daily files daily bars are made of the regular hours of sessions that have closed."""
    replaying = feed(file)
    assert replaying.daily_bars(TUESDAY, 20).collect().is_empty()  # before the connection: at the start
    await replaying.connect(None)
    await until(replaying, at(MONDAY, 9, 34))
    assert replaying.daily_bars(MONDAY, 20).collect().is_empty()
    await replaying.connect(at(MONDAY, 16))
    rows = replaying.daily_bars(TUESDAY, 20).collect().rows()

    assert rows == [
        ("A", MONDAY, 10.0, 13.5, 9.5, 13.2, 400.0),
        ("B", MONDAY, 5.0, 6.0, 4.0, 5.5, 110.0),
    ]


async def test_daily_bars_from_files(file: Path, tmp_path: Path) -> None:
    """Daily files are what is scanned where they are named; the running day and later ones are not given."""
    days = [date(2026, 2, 26), date(2026, 2, 27), MONDAY, TUESDAY]
    daily = write(tmp_path / "daily.csv", [("A", day, 10, 11, 9, 10, 1000) for day in days])
    replaying = feed(file, daily_files=[daily])
    await replaying.connect(None)

    assert replaying.daily_bars(TUESDAY, 20).collect()["ts"].to_list() == days[:2]
    assert replaying.daily_bars(TUESDAY, 1).collect()["ts"].to_list() == days[1:2]
    assert replaying.daily_bars(date(2026, 2, 26), 5).collect()["ts"].to_list() == days[:1]
    await replaying.connect(at(MONDAY, 16))
    assert replaying.daily_bars(TUESDAY, 20).collect()["ts"].to_list() == days[:3]


async def test_minute_bars(file: Path) -> None:
    """Minute bars are those of the session, ended by the time that is asked for and by the market time."""
    replaying = feed(file)
    await replaying.connect(at(MONDAY, 9, 33))

    def starts(symbol: str, until: datetime, count: int = 99) -> list[datetime]:
        return [bar.ts for bar in replaying.minute_bars(symbol, until, count)]

    assert starts("A", at(MONDAY, 9, 33)) == [at(MONDAY, 9, 30 + n) for n in range(3)]
    assert starts("A", at(TUESDAY, 12)) == [at(MONDAY, 9, 30 + n) for n in range(3)]
    assert starts("A", at(MONDAY, 9, 32, 30), 1) == [at(MONDAY, 9, 31)]
    assert starts("B", at(MONDAY, 9, 33)) == [at(MONDAY, 9, 31)]
    assert starts("C", at(MONDAY, 9, 33)) == []
    await replaying.connect(at(TUESDAY, 12))
    assert starts("A", at(TUESDAY, 12)) == [at(TUESDAY, 9, 30), at(TUESDAY, 9, 31)]
    assert starts("A", at(TUESDAY, 9)) == [at(MONDAY, 9, 30 + n) for n in range(4)]


async def test_history_before_from(file: Path) -> None:
    """What lies before `from` is history: it is not replayed, and it is there to look back at."""
    replaying = feed(file, **{"from": "2026-03-02T09:32"})
    await replaying.connect(None)

    assert replaying.starts_at == at(MONDAY, 9, 32)
    assert [bar.ts for bar in replaying.minute_bars("A", at(MONDAY, 10), 9)] == [
        at(MONDAY, 9, 30),
        at(MONDAY, 9, 31),
    ]


async def test_night_is_jumped(file: Path) -> None:
    """At a speed the waits follow the bars; a night takes no longer than a bar."""
    replaying = feed(file, speed=2400)  # a minute is 25 ms
    await replaying.connect(None)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await until(replaying)

    # 9:10 to 9:11, 19 and 4 minutes, the evening and the night for a bar each, and a minute
    assert 27 * 0.025 <= loop.time() - begun < 3


async def test_quiet_and_cancelled(file: Path) -> None:
    """At speed 0 nothing comes but the clock; the iterator can be cancelled, and ends with the connection."""
    replaying = feed(file, speed=0)
    await replaying.connect(None)
    found: list[Slice] = []

    async def take() -> None:
        found.extend([data async for data in replaying.slices()])

    taking = asyncio.create_task(take())
    done, _ = await asyncio.wait((taking,), timeout=0.05)
    assert not done
    await replaying.disconnect()
    await asyncio.wait_for(taking, 1)
    assert found == [Slice(at(MONDAY, 9, 10))]
    again = feed(file)
    await again.connect(None)
    stream = again.slices()
    await anext(stream)
    await again.disconnect()
    assert [data async for data in stream] == []


async def test_replays_are_the_same(file: Path) -> None:
    """Two replays of the same file give the same slices."""
    assert await play(file) == await play(file)


@pytest.mark.shared_data
async def test_real_bars(tmp_path: Path) -> None:
    """Real bars of 18 symbols are replayed whole and in order, and their daily bars fit."""
    file = SHARED / "intraday_1m_eqker_2019-02.parquet"
    if not file.exists():
        pytest.skip(f"{file.name} is not beside the repository")
    raw = pl.read_parquet(file)
    known = load_calendar("XNYS", tmp_path)
    replaying = replay(known, files=[file], stamp="end")
    await replaying.connect(None)
    found = await until(replaying)
    bars = [bar for data in found for bar in data.bars]

    assert len(bars) == raw.height - replaying.rejected_count
    assert [data.ts for data in found] == sorted({data.ts for data in found})
    assert all(bar.ts + MINUTE == data.ts for data in found for bar in data.bars)
    daily = {row[:2]: row for row in replaying.daily_bars(date(2019, 2, 15), 9).collect().iter_rows()}
    mine = [bar for bar in bars if bar.symbol == "AAPL" and bar.ts.date() == date(2019, 2, 13)]
    row = daily["AAPL", date(2019, 2, 13)]
    assert row[2:] == (
        mine[0].open,
        max(bar.high for bar in mine),
        min(bar.low for bar in mine),
        mine[-1].close,
        sum(bar.volume for bar in mine),
    )


# --- splits ---------------------------------------------------------------------------------------------------


async def test_splits_come_with_the_first_slice_of_their_day(file: Path, tmp_path: Path) -> None:
    """Each split is given once, before the prices after it; later and long past ones are not."""
    days = sorted({slice_.ts.astimezone(NEW_YORK).date() for slice_ in await play(file)})
    table = tmp_path / "splits.csv"
    rows = [f"AAPL,{days[0]},4,1", "OLD,2001-01-02,2,1", "NEXT,2099-01-01,2,1"]
    table.write_text("\n".join(["symbol,date,new,old", *rows]) + "\n")
    slices = await play(file, splits=table)
    found = [(number, split) for number, slice_ in enumerate(slices) for split in slice_.splits]

    assert [(number, split.symbol, split.new, split.old) for number, split in found] == [
        (1, "AAPL", Decimal(4), Decimal(1))
    ]


@pytest.mark.parametrize(
    "row", ["AAPL,2020-08-31,0,1", "AAPL,31.8.2020,4,1", "AAPL,2020-08-31,four,1", "AAPL,2020-08-31,4", ",,,"]
)
def test_a_row_that_is_no_split_is_named(tmp_path: Path, row: str) -> None:
    """The file and the line are named, with an example of what a split looks like."""
    table = tmp_path / "splits.csv"
    table.write_text(f"symbol,date,new,old\n{row}\n")
    with pytest.raises(DataError, match=r"splits.csv:2: this is no split .* AAPL,2020-08-31,4,1"):
        read_splits(table)

"""`sigma9 replay`: its checks of the daily bars, and its log above the bar; the whole of it is in end_to_end."""

from __future__ import annotations

import io
import logging
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sigma9_core.calendar import Calendar
from sigma9_core.cli.replay_check import DailyCheck, check_daily
from sigma9_core.cli.replay_progress import LogStream
from sigma9_core.config import SchedulerSettings
from sigma9_core.errors import DataError
from sigma9_core.log import Logging
from sigma9_core.models import Session

MONDAY = date(2026, 3, 2)
TRADED = frozenset(("AAPL", "MSFT"))


def session(day: date) -> Session:
    start = datetime(day.year, day.month, day.day, 14, 30, tzinfo=UTC)
    return Session(day=day.isoformat(), open=start, close=start + timedelta(hours=6.5))


def weekdays(first: date, last: date) -> list[date]:
    days = [first + timedelta(days=index) for index in range((last - first).days + 1)]
    return [day for day in days if day.weekday() < 5]


CALENDAR = Calendar("XNYS", [session(day) for day in weekdays(date(2025, 12, 1), date(2026, 3, 31))])


def look(
    days: list[date],
    first: datetime = datetime(2026, 3, 2, 14, 30, tzinfo=UTC),
    last: datetime = datetime(2026, 3, 6, 21, 0, tzinfo=UTC),
    lookbacks: dict[str, int] | None = None,
    **more: Any,
) -> list[str]:
    """Check a replay of the first week of March."""
    symbols = more.pop("symbols", frozenset(("AAPL", "X")))
    check = DailyCheck(CALENDAR, SchedulerSettings(**more), lookbacks or {"seismograph": 20})
    return check.look(days, symbols, first, last, TRADED)


def test_enough_daily_bars() -> None:
    """Daily bars up to the session before the last day, and far enough back, are nothing to talk about."""
    assert look(weekdays(date(2026, 1, 5), date(2026, 3, 5))) == []
    assert look(weekdays(date(2026, 1, 5), date(2026, 4, 5))) == []


@pytest.mark.parametrize(
    "days",
    [
        weekdays(date(2025, 12, 1), date(2026, 2, 26)),  # the Friday before is missing
        weekdays(date(2026, 3, 6), date(2026, 3, 31)),
        weekdays(date(2016, 1, 4), date(2017, 3, 31)),
    ],
)
def test_daily_bars_of_other_days(days: list[date]) -> None:
    """Daily bars that have none of the sessions before the replayed days end it, naming what they have."""
    with pytest.raises(DataError) as caught:
        look(days)
    text = str(caught.value)
    assert f"the daily bars ({days[0]} to {days[-1]}) have none of the sessions" in text
    assert "2026-02-27 being the first" in text
    assert "leave --daily out" in text


def test_daily_bars_that_end_on_the_way() -> None:
    """Where some of the scans have their bars and others don't, it is a warning with the first day."""
    (warning,) = look(weekdays(date(2026, 1, 5), date(2026, 3, 3)))
    assert "do not have 2026-03-04, the session before 2026-03-05: 2 of the 5 scans" in warning


def test_too_little_history() -> None:
    """A scanner that looks back further than the daily bars go is told; where every one does, that ends it."""
    days = weekdays(date(2026, 2, 20), date(2026, 3, 5))
    with pytest.raises(
        DataError, match=r"seismograph looks back 20 sessions, .* begin on 2026-02-20, have 10 before"
    ):
        look(days)
    (warning,) = look(days, lookbacks={"near": 3, "far": 20})
    assert warning.startswith("the scanner far looks back 20 sessions")
    with pytest.raises(DataError, match=r"scanner far .*; the scanner farther looks back 30"):
        look(days, lookbacks={"far": 20, "farther": 30})
    (warning,) = look(days, lookbacks={"near": 8})
    assert warning.endswith("have 7 before 2026-03-03: up to then it lists nothing")


def test_symbols_that_have_no_daily_bars() -> None:
    """Where the daily bars have none of the replayed symbols, nothing could ever be watched."""
    with pytest.raises(DataError, match="none of the symbols that are replayed"):
        look(weekdays(date(2026, 1, 5), date(2026, 3, 5)), symbols=frozenset(("X",)))


def test_a_replay_without_a_scan() -> None:
    """A replay that begins after the scan of its only day is told, with the hours in New York."""
    noon = datetime(2026, 3, 2, 17, 0, tzinfo=UTC)
    close = datetime(2026, 3, 2, 21, 0, tzinfo=UTC)
    with pytest.raises(
        DataError, match=r"2026-03-02 12:00 to 2026-03-02 16:00 New York.* 15 minutes after each open"
    ):
        look(weekdays(date(2026, 1, 5), date(2026, 3, 5)), first=noon, last=close)
    assert "market_open_scan is off" in look([], market_open_scan=False)[0]


def test_no_daily_bars_at_all() -> None:
    """Files without a usable row are told as such."""
    with pytest.raises(DataError, match="no row that can be used"):
        look([])


def bars(path: Path, stamps: list[str]) -> Path:
    """Write a file of bars of AAPL."""
    rows = [f"AAPL,{stamp},1,1,1,1,5" for stamp in stamps]
    path.write_text("\n".join(["symbol,ts,open,high,low,close,volume", *rows]) + "\n")
    return path


def test_the_files_are_read(tmp_path: Path) -> None:
    """The days of the files count, and --to ends the replay at the end of its day in New York."""
    days = weekdays(date(2026, 1, 5), date(2026, 3, 3))
    daily = bars(tmp_path / "daily.csv", [day.isoformat() for day in days])
    stamps = [f"2026-03-0{day}T{hour}:00:00Z" for day in (2, 3, 4, 5) for hour in (15, 16)]
    minutes = bars(tmp_path / "minutes.csv", stamps)

    def check(to: date | datetime | None) -> list[str]:
        return check_daily(
            DailyCheck(CALENDAR, SchedulerSettings(), {"seismograph": 20}),
            daily=[daily],
            data=[minutes],
            stamp="start",
            seconds=60,
            first=datetime(2026, 3, 2, 14, 30, tzinfo=UTC),
            to=to,
            traded=frozenset(("AAPL",)),
        )

    (warning,) = check(None)
    assert "1 of the 4 scans" in warning
    assert check(date(2026, 3, 4)) == []
    assert check(datetime(2026, 3, 5, 9, 30)) == []  # noqa: DTZ001 - without a zone it is New York's
    (warning,) = check(datetime(2026, 3, 5, 15, 0, tzinfo=UTC))
    assert "1 of the 4 scans" in warning


def test_log_lines_stand_above_the_bar() -> None:
    """While there is a bar a line goes through its console, whole; before and after it goes to the stream."""
    stream, console = io.StringIO(), Console(file=io.StringIO(), width=40)
    log = LogStream(stream)
    logs = Logging(stream=log.as_text())
    logs.start()
    logger = logging.getLogger("sigma9.test")
    long = "a line [bold]that[/bold] is longer than forty columns, to its very end"
    try:
        logger.warning("before")
        log.bar = console
        logger.warning("%s", long)
        log.bar = None
        logger.warning("after")
    finally:
        logs.stop()
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == ["before", "after"]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.endswith(f"test: {long}\n")
    assert shown.count("\n") == 1

"""Bars of the past: asked for at the pace that IB allows, and daily ones kept on disk.

IB answers 60 questions in ten minutes, the same one not within 15 seconds, and fewer than six about one contract
in two. So daily bars of many symbols take their time, of which the log tells the progress; what was read is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

from sigma9_core.clock import monotonic
from sigma9_core.models import Bar
from sigma9_plugins.brokers.ibkr.asking import Answer, Asking
from sigma9_plugins.brokers.ibkr.contracts import stock
from sigma9_plugins.brokers.ibkr.library import Library
from sigma9_plugins.brokers.ibkr.wire import Handler

log = logging.getLogger("sigma9.ibkr")

FILE: Final = "ibkr-daily.json"
SPAN: Final = 600.0
MOST: Final = 58
"""Questions in ten minutes: two fewer than IB allows, which counts by its own clock."""
SAME: Final = 15.0
OF_ONE: Final = 5
ONE_SPAN: Final = 2.0
AT_ONCE: Final = 6
ANSWER_WITHIN: Final = 60.0
"""Seconds that a question about the past may take."""
DAYS_OF_A_YEAR: Final = 252

Row = tuple[str, float, float, float, float, float]
"""Day, open, high, low, close, volume."""


class Pace:
    """Says when the next question about the past may be asked."""

    def __init__(self) -> None:
        self._asked: deque[float] = deque()
        self._same: dict[Hashable, float] = {}
        self._of_one: dict[str, deque[float]] = {}

    async def turn(self, symbol: str, question: Hashable) -> None:
        """Wait until it may be asked, and count it."""
        while True:  # somebody else may have had the turn meanwhile
            wait = self._wait(symbol, question)
            if wait <= 0:
                break
            await asyncio.sleep(wait)
        now = monotonic()
        self._asked.append(now)
        self._same[symbol, question] = now
        self._of_one.setdefault(symbol, deque(maxlen=OF_ONE)).append(now)

    def _wait(self, symbol: str, question: Hashable) -> float:
        now = monotonic()
        while self._asked and now - self._asked[0] >= SPAN:
            self._asked.popleft()
        waits = [0.0]
        if len(self._asked) >= MOST:
            waits.append(self._asked[-MOST] + SPAN - now)
        if (last := self._same.get((symbol, question))) is not None:
            waits.append(last + SAME - now)
        recent = self._of_one.get(symbol)
        if recent is not None and len(recent) == OF_ONE:
            waits.append(recent[0] + ONE_SPAN - now)
        return max(waits)


async def bars_of(
    library: Library, asking: Asking, symbol: str, *, duration: str, size: str, within: float = ANSWER_WITHIN
) -> list[Any]:
    """Ask for bars of regular hours, up to now; raise BrokerError."""

    def handlers(answer: Answer[Any], number: int) -> dict[str, Handler]:
        def take(request: int, bar: Any) -> None:
            if request == number:
                answer.items.append(bar)

        def end(request: int, *_: Any) -> None:
            if request == number:
                answer.finish()

        return {"historicalData": take, "historicalDataEnd": end}

    contract = stock(library, symbol)
    return await asking.numbered(
        f"bars of {symbol}",
        handlers,
        lambda number: (
            "reqHistoricalData",
            (number, contract, "", duration, size, "TRADES", 1, 2, False, []),
        ),
        within=within,
    )


async def minutes_of(library: Library, asking: Asking, symbol: str) -> list[Bar]:
    """Ask for the minute bars of the newest session."""
    told = await bars_of(library, asking, symbol, duration="1 D", size="1 min", within=20.0)
    return [_minute(symbol, each) for each in told if str(each.date).isdigit()]


async def days_of(library: Library, asking: Asking, symbol: str, sessions: int) -> list[Row]:
    """Ask for the daily bars of so many sessions."""
    years = -(-sessions // DAYS_OF_A_YEAR)
    duration = f"{sessions} D" if sessions <= DAYS_OF_A_YEAR else f"{years} Y"
    told = await bars_of(library, asking, symbol, duration=duration, size="1 day")
    return [row for each in told if (row := _day(each)) is not None]


def _minute(symbol: str, bar: Any) -> Bar:
    start = datetime.fromtimestamp(int(bar.date), UTC)
    return Bar(symbol, start, bar.open, bar.high, bar.low, bar.close, max(float(bar.volume), 0.0))


def _day(bar: Any) -> Row | None:
    text = str(bar.date)[:8]
    if not (len(text) == 8 and text.isdigit()):
        return None
    day = f"{text[:4]}-{text[4:6]}-{text[6:]}"
    return day, float(bar.open), float(bar.high), float(bar.low), float(bar.close), max(float(bar.volume), 0.0)


class DailyBars:
    """The daily bars that were read, in memory and, with a folder, on disk."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE
        self._rows: dict[str, list[Row]] = {}
        self._as_of: dict[str, tuple[str, int]] = {}
        """As of which day, and for how many sessions, each symbol was asked for."""

    def load(self) -> None:
        """Read the file; one that can't be read is made anew."""
        if self._path is None or self._rows:
            return
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            rows = {symbol: [_row(row) for row in each["bars"]] for symbol, each in found.items()}
            as_of = {symbol: (str(each["as_of"]), int(each["sessions"])) for symbol, each in found.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("the daily bars in %s can't be read (%s): they are asked for again", self._path, error)
            return
        self._rows, self._as_of = rows, as_of

    def lacking(self, symbols: Sequence[str], as_of: date, sessions: int) -> list[str]:
        """Name the symbols that were not asked for so far."""
        wanted = (as_of.isoformat(), sessions)
        return [
            symbol
            for symbol in symbols
            if (known := self._as_of.get(symbol)) is None or known[0] < wanted[0] or known[1] < wanted[1]
        ]

    def put(self, symbol: str, rows: Sequence[Row], as_of: date, sessions: int) -> None:
        """Take what was read of a symbol."""
        self._rows[symbol] = list(rows)
        self._as_of[symbol] = (as_of.isoformat(), sessions)

    def rows(self, symbols: Sequence[str], as_of: date, sessions: int) -> Mapping[str, list[Row]]:
        """Give the last bars of each symbol up to a day."""
        last = as_of.isoformat()
        return {
            symbol: [row for row in self._rows.get(symbol, ()) if row[0] <= last][-sessions:] for symbol in symbols
        }

    def save(self) -> None:
        """Write the file; a disk that fails is logged."""
        if self._path is None:
            return
        body = {
            symbol: {"as_of": self._as_of[symbol][0], "sessions": self._as_of[symbol][1], "bars": rows}
            for symbol, rows in self._rows.items()
        }
        part = self._path.with_suffix(".part")
        try:
            part.write_text(json.dumps(body, separators=(",", ":")), encoding="utf-8")
            part.replace(self._path)
        except OSError as error:
            log.error("the daily bars can't be kept in %s: %s", self._path, error.strerror or error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _row(row: Sequence[Any]) -> Row:
    day, *numbers = row
    opens, high, low, close, volume = map(float, numbers)
    return str(date.fromisoformat(day)), opens, high, low, close, volume

"""History: bars that a test has given, or made-up ones that lead to today's price, the same at every request."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from sigma9_core.testing.tws.times import DAY, bar_seconds, span

NEW_YORK: Final = ZoneInfo("America/New_York")
REGULAR: Final = (time(9, 30), time(16, 0))
ALL_DAY: Final = (time(4, 0), time(20, 0))
SHAKY: Final = 0.015
"""How far a price goes in a day, as a share of it."""
MOST: Final = 20_000
"""Bars in one answer."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; its time is its start."""

    start: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float = 1000

    @property
    def average(self) -> float:
        """Give the middle of it, for want of the trades."""
        return round((self.high + self.low + self.close) / 3, 4)


class Pace:
    """IB's limits: none identical in 15 seconds, fewer than 6 of a contract in 2, and 60 in 10 minutes."""

    def __init__(self) -> None:
        self._asked: list[tuple[float, int, object]] = []

    def too_fast(self, now: float, con_id: int, request: object) -> bool:
        """Take note of a request, and tell whether it breaks a limit."""
        self._asked = [each for each in self._asked if now - each[0] < 600]
        same = any(now - at < 15 for at, _, asked in self._asked if asked == request)
        close = sum(now - at < 2 for at, asked_of, _ in self._asked if asked_of == con_id)
        broken = same or close >= 5 or len(self._asked) >= 60
        self._asked.append((now, con_id, request))
        return broken


class History:
    """The bars of every contract."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._given: dict[tuple[int, int], list[Bar]] = {}

    def give(self, con_id: int, size: str, bars: Sequence[Bar]) -> None:
        """Use these bars of a contract in this size from now on."""
        self._given[con_id, bar_seconds(size)] = sorted(bars, key=lambda each: each.start)

    def bars(
        self, con_id: int, last: float, end: datetime, duration: str, size: str, *, regular: bool
    ) -> list[Bar]:
        """Give the bars of a time, oldest first; raise ValueError."""
        seconds = bar_seconds(size)
        begin = _begin(end, duration)
        given = self._given.get((con_id, seconds))
        if given is not None:
            return [each for each in given if begin <= each.start < end]
        starts = list(_days(begin, end) if seconds >= DAY else _minutes(begin, end, seconds, regular=regular))
        if len(starts) > MOST:
            raise ValueError(f"{len(starts)} bars are too many")
        return list(reversed(list(self._made_up(con_id, last, starts, seconds))))

    def _made_up(self, con_id: int, last: float, starts: Sequence[datetime], seconds: int) -> Iterator[Bar]:
        """Make bars up from the newest to the oldest, each opening where the one before it closed."""
        step = SHAKY * math.sqrt(min(seconds, DAY) / DAY)
        close = last
        for start in reversed(starts):
            chance = random.Random(f"{self._seed}-{con_id}-{seconds}-{start.timestamp():.0f}")  # noqa: S311
            opened = max(0.01, round(close * math.exp(chance.gauss(0, step)), 2))
            high = round(max(opened, close) * (1 + abs(chance.gauss(0, step / 3))), 2)
            low = max(0.01, round(min(opened, close) * (1 - abs(chance.gauss(0, step / 3))), 2))
            yield Bar(
                start,
                opened,
                max(high, opened, close),
                min(low, opened, close),
                close,
                chance.randrange(100, 9999),
            )
            close = opened


def _begin(end: datetime, duration: str) -> datetime:
    """Say where a duration begins; days are counted as trading days."""
    count, _, unit = duration.partition(" ")
    if unit != "D":
        return end - span(duration)
    days = [day for day in _back(end.astimezone(NEW_YORK).date(), int(count) * 2 + 4) if day.weekday() < 5]
    return datetime.combine(days[min(int(count), len(days)) - 1], time(0), NEW_YORK)


def _back(day: date, count: int) -> Iterator[date]:
    for ago in range(count):
        yield day - timedelta(days=ago)


def _days(begin: datetime, end: datetime) -> Iterator[datetime]:
    day = begin.astimezone(NEW_YORK).date()
    while (start := datetime.combine(day, time(0), NEW_YORK)) < end:
        if day.weekday() < 5 and start >= begin:
            yield start
        day += timedelta(days=1)


def _minutes(begin: datetime, end: datetime, seconds: int, *, regular: bool) -> Iterator[datetime]:
    """Give the starts of bars: the opening, then every multiple of their length since midnight."""
    opens, closes = REGULAR if regular else ALL_DAY
    for day in (begin.astimezone(NEW_YORK).date() + timedelta(days=n) for n in range((end - begin).days + 2)):
        at = datetime.combine(day, opens, NEW_YORK).astimezone(UTC)
        last = datetime.combine(day, closes, NEW_YORK).astimezone(UTC)
        while day.weekday() < 5 and at < last:
            if begin <= at < end:
                yield at
            midnight = datetime.combine(day, time(0), NEW_YORK)
            passed = int((at - midnight).total_seconds()) // seconds + 1
            at = (midnight + timedelta(seconds=passed * seconds)).astimezone(UTC)

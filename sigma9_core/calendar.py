"""The exchange calendar: sessions with their real opens and closes, early closes and holidays right.

exchange_calendars brings pandas (about a second and 78 MB), so it runs in a child process once in a while; the
sessions it gives are kept as a small file, and most starts need no child at all.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Sequence
from datetime import date, datetime

from sigma9_core.models import Session


class Calendar:
    """The sessions of one exchange, sorted by time; empty until it is loaded."""

    def __init__(self, name: str, sessions: Sequence[Session] = ()) -> None:
        self.name = name
        self._sessions: list[Session] = []
        self._opens: list[datetime] = []
        self._days: list[str] = []
        self._loaded = asyncio.Event()
        if sessions:
            self.fill(sessions)

    def fill(self, sessions: Sequence[Session]) -> None:
        """Take the sessions, sorted by time, and let those who wait go on."""
        self._sessions = list(sessions)
        self._opens = [session.open for session in sessions]
        self._days = [session.day for session in sessions]
        self._loaded.set()

    async def ready(self) -> None:
        """Wait until the sessions are there."""
        await self._loaded.wait()

    def at(self, moment: datetime) -> Session | None:
        """Give the session that is in progress (open ≤ moment < close), None outside of one."""
        index = bisect.bisect_right(self._opens, moment) - 1
        if index < 0 or moment >= self._sessions[index].close:
            return None
        return self._sessions[index]

    def on(self, day: date) -> Session | None:
        """Give the session of a New York date, None on a day without one."""
        index = bisect.bisect_left(self._days, day.isoformat())
        if index < len(self._days) and self._days[index] == day.isoformat():
            return self._sessions[index]
        return None

    def after(self, moment: datetime) -> Session | None:
        """Give the next session that opens after a moment, None past the end of the calendar."""
        index = bisect.bisect_right(self._opens, moment)
        return self._sessions[index] if index < len(self._sessions) else None

    def last(self, moment: datetime) -> Session | None:
        """Give the newest session that has opened by a moment."""
        index = bisect.bisect_right(self._opens, moment) - 1
        return self._sessions[index] if index >= 0 else None

    def before(self, day: date, count: int) -> list[Session]:
        """Give the `count` sessions up to and including a date, oldest first."""
        end = bisect.bisect_right(self._days, day.isoformat())
        return self._sessions[max(0, end - count) : end]

    def between(self, first: date, last: date) -> list[Session]:
        """Give the sessions from `first` to `last`, both included."""
        start = bisect.bisect_left(self._days, first.isoformat())
        return self._sessions[start : bisect.bisect_right(self._days, last.isoformat())]

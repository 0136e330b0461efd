"""What feeds with a stepped clock share: their pace against the wall, and the sessions that lie behind them."""

from __future__ import annotations

import asyncio
from datetime import date, datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from sigma9_core.calendar import Calendar
from sigma9_core.clock import monotonic

Speed = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["max"]
"""Market seconds a second of the wall clock; `max`: as fast as the engine can take it."""
BEHIND: Final = 1.0
"""Who is later than this many seconds is not hurried to catch up: the market then simply runs slower."""


class Pacer:
    """Waits until the next slice is due; due times are absolute, so that small delays are made up for."""

    def __init__(self, speed: float | Literal["max"]) -> None:
        self._speed = None if speed == "max" else speed
        self._due: float | None = None

    async def wait(self, market_seconds: float) -> None:
        """Wait until `market_seconds` have passed since the time that the last call waited for."""
        if not self._speed:
            await asyncio.sleep(0)
            return
        now = monotonic()
        due = (now if self._due is None else self._due) + market_seconds / self._speed
        if now - due > BEHIND:
            due = now
        self._due = due
        await asyncio.sleep(max(0.0, due - now))


def closed_sessions(calendar: Calendar, as_of: date, count: int, now: datetime | None) -> list[date]:
    """Give the dates of the last `count` sessions up to `as_of` that have closed by `now`, oldest first."""
    if now is not None:
        newest = calendar.last(now)
        if newest is None:
            return []
        day = date.fromisoformat(newest.day)
        as_of = min(as_of, day if newest.close <= now else date.fromordinal(day.toordinal() - 1))
    return [date.fromisoformat(session.day) for session in calendar.before(as_of, count)]

"""A calendar by hand and feeds on it, for tests: New York from November 2025 to May 2026, holidays included."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock
from sigma9_core.config import Settings
from sigma9_core.contracts import PluginContext
from sigma9_core.models import Session, Slice
from sigma9_plugins.feeds.replay import ReplayConfig, ReplayFeed
from sigma9_plugins.feeds.simulated import SimulatedConfig, SimulatedFeed

NEW_YORK: Final = ZoneInfo("America/New_York")
FIRST, LAST = date(2025, 11, 3), date(2026, 5, 29)
HOLIDAYS: Final = frozenset(
    date(*day)
    for day in (
        (2025, 11, 27),
        (2025, 12, 25),
        (2026, 1, 1),
        (2026, 1, 19),
        (2026, 2, 16),
        (2026, 4, 3),
        (2026, 5, 25),
    )
)
EARLY: Final = frozenset((date(2025, 11, 28), date(2025, 12, 24)))
"""Days that close at 13:00."""


def at(day: date, hour: int, minute: int = 0, second: int = 0) -> datetime:
    """Give a time in New York, in UTC."""
    return datetime.combine(day, time(hour, minute, second), NEW_YORK).astimezone(UTC)


def sessions(first: date = FIRST, last: date = LAST) -> list[Session]:
    """List the sessions of the hand-made calendar."""
    days = (first + timedelta(days=n) for n in range((last - first).days + 1))
    return [
        Session(day.isoformat(), at(day, 9, 30), at(day, 13 if day in EARLY else 16))
        for day in days
        if day.weekday() < 5 and day not in HOLIDAYS
    ]


def calendar(first: date = FIRST, last: date = LAST) -> Calendar:
    """Make the calendar."""
    return Calendar("XNYS", sessions(first, last))


def context(name: str, known: Calendar | None = None, folder: Path | None = None) -> PluginContext:
    """Make what a feed's factory is given."""
    kind: Any = name if name in ("simulated", "replay") else "simulated"
    return PluginContext(name, Settings(), SteppedClock(kind), known or calendar(), folder)


def simulated(known: Calendar | None = None, **settings: Any) -> SimulatedFeed:
    """Build a simulated feed at full speed."""
    return SimulatedFeed(SimulatedConfig(**{"speed": "max", **settings}), context("simulated", known))


def replay(known: Calendar | None = None, **settings: Any) -> ReplayFeed:
    """Build a replay feed; `from_` is the setting `from`."""
    return ReplayFeed(ReplayConfig(**settings), context("replay", known))


async def until(feed: SimulatedFeed | ReplayFeed, end: datetime | None = None) -> list[Slice]:
    """Take a connected feed's slices up to a time, that included, or to their end."""
    found: list[Slice] = []
    stream = feed.slices()
    async for data in stream:
        found.append(data)
        if end is not None and data.ts >= end:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    return found

"""Times, durations and bar sizes as the wire writes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

UNITS: Final = {"sec": 1, "min": 60, "hour": 3600, "day": 86400, "week": 7 * 86400, "month": 30 * 86400}
SPANS: Final = {"S": 1, "D": 86400, "W": 7 * 86400, "M": 30 * 86400, "Y": 365 * 86400}
DAY: Final = UNITS["day"]


def stamp(moment: datetime, zone: str) -> str:
    """Write a time with its zone: `20260105 14:30:00 UTC`."""
    return f"{moment.astimezone(ZoneInfo(zone)):%Y%m%d %H:%M:%S} {zone}"


def moment(text: str, zone: str) -> datetime:
    """Read `20260105 14:30:00 UTC`, that without a zone, `20260105-14:30:00` (UTC) or a day; raise ValueError."""
    words = text.split()
    if len(words) == 1 and "-" in text:
        return datetime.strptime(text, "%Y%m%d-%H:%M:%S").replace(tzinfo=UTC)
    if len(words) == 1:
        words.append("23:59:59")
    found = datetime.strptime(" ".join(words[:2]), "%Y%m%d %H:%M:%S")  # noqa: DTZ007 - the zone follows
    return found.replace(tzinfo=ZoneInfo(words[2] if len(words) > 2 else zone)).astimezone(UTC)


def bar_seconds(size: str) -> int:
    """Read a bar size such as `5 mins` or `1 day`; raise ValueError."""
    count, _, unit = size.partition(" ")
    seconds = UNITS.get(unit.rstrip("s"))
    if seconds is None or not count.isdigit():
        raise ValueError(f"no bar size: {size!r}")
    return int(count) * seconds


def span(duration: str) -> timedelta:
    """Read a duration such as `30 D`; raise ValueError."""
    count, _, unit = duration.partition(" ")
    seconds = SPANS.get(unit)
    if seconds is None or not count.isdigit():
        raise ValueError(f"no duration: {duration!r}")
    return timedelta(seconds=int(count) * seconds)

"""Times for a person: in UTC, to the second, and never without a word on the zone and the clock.

The market clock rules events, schedule and sessions; it is the wall clock live, and another one in a simulation or
a replay. The wall clock rules log lines, kills and tokens.
"""

from __future__ import annotations

from typing import Any, Final

MARKET: Final = "market time, UTC"
"""The label of a column of market times."""
WALL: Final = "wall time, UTC"
"""The label of a column of wall-clock times."""


def utc(moment: Any) -> str:
    """Write an RFC 3339 time of the wire without its label, such as `2026-11-20 14:45:00`; `-` for none."""
    return "-" if moment is None else str(moment)[:19].replace("T", " ")


def market(moment: Any) -> str:
    """Write a time of the market clock with its label."""
    return "-" if moment is None else f"{utc(moment)} UTC, market time"


def wall(moment: Any) -> str:
    """Write a time of the wall clock with its label."""
    return "-" if moment is None else f"{utc(moment)} UTC, wall time"

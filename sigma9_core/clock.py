"""Two clocks: the market's, which may run fast or in jumps, and the wall's."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, Protocol

ClockKind = Literal["live", "simulated", "replay"]

_SLEEPLESS: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux's other clock stands still in a suspended machine, that of macOS does not."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def wall_now() -> datetime:
    """Tell the wall clock's time, in UTC: for ids, expiry, idempotency, tokens and log lines."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Tell seconds that never go back: for intervals and time limits."""
    return time.monotonic()


def awake_or_not() -> float:
    """Tell seconds that never go back and go on while the machine sleeps: for how old something is."""
    return time.clock_gettime(_SLEEPLESS)


def rfc3339(moment: datetime) -> str:
    """Write an aware time as RFC 3339 in UTC with microseconds (contract, head)."""
    if moment.tzinfo is UTC:
        return _text(moment)
    return _text(moment.astimezone(UTC))


@lru_cache(maxsize=64)
def _text(moment: datetime) -> str:
    """Write a time in UTC: a slice of the market has hundreds of messages of one moment."""
    return f"{moment.isoformat(timespec='microseconds')[:26]}Z"


class Clock(Protocol):
    """The market clock: it rules event times, schedule, rule windows, trading day and exits."""

    @property
    def kind(self) -> ClockKind:
        """Say where the time comes from."""

    def now(self) -> datetime:
        """Tell the market time, in UTC."""


class LiveClock:
    """The market clock of a live feed: the wall clock."""

    kind: ClockKind = "live"

    def now(self) -> datetime:
        """Tell the market time, in UTC."""
        return wall_now()


class SteppedClock:
    """A market clock that its feed moves forward, slice by slice."""

    def __init__(self, kind: ClockKind, start: datetime = EPOCH) -> None:
        self._kind: ClockKind = kind
        self._now = start

    @property
    def kind(self) -> ClockKind:
        """Say where the time comes from."""
        return self._kind

    def now(self) -> datetime:
        """Tell the market time, in UTC."""
        return self._now

    def advance(self, moment: datetime) -> None:
        """Move to `moment`; time never goes back, so an earlier one is ignored."""
        self._now = max(self._now, moment)

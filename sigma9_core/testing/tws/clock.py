"""The peer's clock: the wall's, or one that a test moves by hand, and what is to happen at a time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from sigma9_core.clock import wall_now

START: Final = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)
"""Where a clock that is moved by hand begins: a Monday, ten in the morning in New York."""


@dataclass(order=True, slots=True)
class Timer:
    """Something that is to happen at a time."""

    due: datetime
    number: int
    action: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)
    handle: asyncio.TimerHandle | None = field(default=None, compare=False)

    def cancel(self) -> None:
        """Call it off."""
        self.cancelled = True
        if self.handle is not None:
            self.handle.cancel()


class PeerClock:
    """Runs with the wall, or stands still until it is moved (`by_hand`)."""

    def __init__(self, *, by_hand: bool = False, start: datetime | None = None) -> None:
        self.by_hand = by_hand
        self._moved = timedelta(0) if start is None else start - wall_now()
        self._now = start or START
        self._timers: list[Timer] = []
        self._numbers = itertools.count()

    def now(self) -> datetime:
        """Tell the time, in UTC."""
        return self._now if self.by_hand else wall_now() + self._moved

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Do something in so many seconds of this clock."""
        timer = Timer(self.now() + timedelta(seconds=seconds), next(self._numbers), action)
        if self.by_hand:
            heapq.heappush(self._timers, timer)
        else:
            timer.handle = asyncio.get_running_loop().call_later(seconds, action)
            self._timers = [each for each in self._timers if not each.cancelled and each.due > self.now()]
            self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Move a clock that stands still, and do on the way what is due."""
        if not self.by_hand:
            raise RuntimeError("this clock runs by itself: make the peer with PeerClock(by_hand=True)")
        end = self._now + timedelta(seconds=seconds)
        while self._timers and self._timers[0].due <= end:
            timer = heapq.heappop(self._timers)
            self._now = max(self._now, timer.due)
            if not timer.cancelled:
                timer.action()
        self._now = end

    def stop(self) -> None:
        """Call everything off."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

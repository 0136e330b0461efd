"""Rolling sums and minute bars of one symbol, each of a fixed size, each update in constant time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

BOX_BARS: Final = 30
"""The box is the range of this many minute bars before the current one."""
BOX_FEWEST: Final = 10
ATR_BARS: Final = 14


class Window:
    """A sum over the newest `near` buckets of time, and one over the `far - near` buckets before them.

    Amounts are whole numbers, so that a sum that has lost all its parts is exactly 0.
    """

    __slots__ = ("_amounts", "_far", "_head", "_near", "far", "near")

    def __init__(self, near: int, far: int) -> None:
        self.near = 0
        self.far = 0
        """The sum of the older part only."""
        self._near = near
        self._far = far
        self._amounts = [0] * far
        self._head: int | None = None

    def add(self, bucket: int, amount: int) -> None:
        """Add to a bucket; one later than all before moves the window, one that has left it counts nothing."""
        head = self._head
        if head is None or bucket > head:
            self.advance(bucket)
            lag = 0
        else:
            lag = head - bucket
            if lag >= self._far:
                return
        self._amounts[bucket % self._far] += amount
        if lag < self._near:
            self.near += amount
        else:
            self.far += amount

    def advance(self, bucket: int) -> None:
        """Move the window so that `bucket` is its newest one."""
        head = self._head
        if head is None:
            self._head = bucket
            return
        if bucket - head >= self._far:
            self._amounts = [0] * self._far
            self.near = self.far = 0
            self._head = bucket
            return
        amounts, near, far = self._amounts, self._near, self._far
        for newest in range(head + 1, bucket + 1):
            gone = newest % far
            if near == far:
                self.near -= amounts[gone]
            else:
                self.far -= amounts[gone]
                older = amounts[(newest - near) % far]
                self.near -= older
                self.far += older
            amounts[gone] = 0
        self._head = max(head, bucket)


class Minute(NamedTuple):
    """A one-minute bar; `start` counts minutes since 1970."""

    start: int
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class Box:
    """The range of a consolidation."""

    high: float
    low: float


class Minutes:
    """The last complete minute bars, made of trades or taken from the feed, and the one in progress."""

    __slots__ = ("_bars", "_box", "_close", "_high", "_low", "_open", "_start", "_volume")

    def __init__(self, bars: Iterable[Minute] = ()) -> None:
        self._bars: deque[Minute] = deque(bars, maxlen=BOX_BARS)
        self._start: int | None = None
        self._open = self._high = self._low = self._close = self._volume = 0.0
        self._box: Box | None = None
        self._measure()

    @property
    def box(self) -> Box | None:
        """Give the range of the complete bars; None while there are too few."""
        return self._box

    def trade(self, minute: int, price: float, size: float) -> None:
        """Add a trade; the first one of a new minute completes the one before. A late one changes nothing."""
        if self._start == minute:
            if price > self._high:
                self._high = price
            elif price < self._low:
                self._low = price
            self._close = price
            self._volume += size
            return
        last = self._bars[-1].start if self._bars else -1
        if minute <= last or (self._start is not None and minute < self._start):
            return
        self.complete()
        self._start = minute
        self._open = self._high = self._low = self._close = price
        self._volume = size

    def take(self, bar: Minute) -> float:
        """Take the feed's bar of a complete minute in place of what trades made of it; give that one's volume."""
        made = 0.0
        if self._start is not None and self._start <= bar.start:
            made = self._volume if self._start == bar.start else 0.0
            if self._start < bar.start:
                self.complete()
            else:
                self._start = None
        last = self._bars[-1] if self._bars else None
        if last is not None and last.start == bar.start:
            made = last.volume
            self._bars[-1] = bar
        elif last is None or last.start < bar.start:
            self._bars.append(bar)
        self._measure()
        return made

    def complete(self) -> None:
        """Complete the minute in progress."""
        if self._start is not None:
            self._bars.append(Minute(self._start, self._open, self._high, self._low, self._close, self._volume))
            self._start = None
            self._measure()

    def volumes(self, count: int) -> list[float] | None:
        """Give the volumes of the last complete bars, oldest first; None while there are fewer."""
        if len(self._bars) < count:
            return None
        return [self._bars[index].volume for index in range(-count, 0)]

    def atr(self) -> float | None:
        """Give the mean true range of the last 14 complete bars; None without them and the one before."""
        if len(self._bars) <= ATR_BARS:
            return None
        bars = [self._bars[index] for index in range(-ATR_BARS - 1, 0)]
        total = 0.0
        for before, bar in pairwise(bars):
            total += max(bar.high - bar.low, abs(bar.high - before.close), abs(bar.low - before.close))
        return total / ATR_BARS

    def _measure(self) -> None:
        if len(self._bars) >= BOX_FEWEST:
            self._box = Box(max(bar.high for bar in self._bars), min(bar.low for bar in self._bars))
        else:
            self._box = None

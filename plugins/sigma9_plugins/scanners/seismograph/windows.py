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

STEPS: Final = 4
"""Buckets a second of the trade counts."""
NEAR_BUCKETS: Final = 10 * STEPS
COUNT_BUCKETS: Final = 60 * STEPS
VOLUME_SECONDS: Final = 360
UNIT: Final = 10_000
"""Sizes are counted in ten-thousandths of a share."""


class Flow:
    """Counts and volumes of the last minutes of trades, the last 10 s exact to a quarter of a second.

    Sizes are kept as whole numbers, so that a sum that has lost all its parts is exactly 0.
    """

    __slots__ = (
        "_bought",
        "_counts",
        "_head",
        "_last_price",
        "_last_side",
        "_sold",
        "_volumes",
        "bought",
        "sold",
        "trades_10s",
        "trades_before",
        "volume_60s",
        "volume_before",
    )

    def __init__(self, at: float) -> None:
        """Begin, at seconds since 1970, with nothing."""
        self._head = int(at * STEPS)
        self._last_price: float | None = None
        self._last_side = 0
        self._clear()

    def _clear(self) -> None:
        self._counts = [0] * COUNT_BUCKETS
        self._volumes = [0] * VOLUME_SECONDS
        self._bought = [0] * 60
        self._sold = [0] * 60
        self.trades_10s = 0
        self.trades_before = 0
        """Trades in the 50 s before the last 10."""
        self.volume_60s = 0
        self.volume_before = 0
        """Volume in the 5 minutes before the last one, like all volumes here in ten-thousandths of a share."""
        self.bought = 0
        self.sold = 0
        """Volume of the last 60 s by who began the trades."""

    def trade(self, at: float, price: float, size: float, side: int) -> None:
        """Add a trade at seconds since 1970; side is 1 for bought, -1 for sold, 0 where only the price can tell.

        The tick rule: a trade above the last different price was bought, below it sold.
        """
        last = self._last_price
        if price != last:
            if last is not None:
                self._last_side = 1 if price > last else -1
            self._last_price = price
        side = side or self._last_side
        amount = int(size * UNIT + 0.5)
        bucket = int(at * STEPS)
        if bucket > self._head:
            self.advance(at)
        elif bucket < self._head:
            self._late(bucket, amount, side)
            return
        second = bucket // STEPS
        self.trades_10s += 1
        self._counts[bucket % COUNT_BUCKETS] += 1
        self.volume_60s += amount
        self._volumes[second % VOLUME_SECONDS] += amount
        if side > 0:
            self.bought += amount
            self._bought[second % 60] += amount
        elif side < 0:
            self.sold += amount
            self._sold[second % 60] += amount

    def _late(self, bucket: int, amount: int, side: int) -> None:
        """Add a trade where it belongs; one that is older than a window counts nothing there."""
        lag = self._head - bucket
        if lag < COUNT_BUCKETS:
            self._counts[bucket % COUNT_BUCKETS] += 1
            if lag < NEAR_BUCKETS:
                self.trades_10s += 1
            else:
                self.trades_before += 1
        second = bucket // STEPS
        lag = self._head // STEPS - second
        self._add_volume(second, lag, amount)
        if lag < 60 and side > 0:
            self.bought += amount
            self._bought[second % 60] += amount
        elif lag < 60 and side < 0:
            self.sold += amount
            self._sold[second % 60] += amount

    def fill(self, minute: int, volume: float) -> None:
        """Spread volume that no trade told of evenly over its minute: history, or trades that were missed."""
        amount = int(volume * UNIT / 60 + 0.5)
        first = minute * 60
        self.advance(first + 59)
        newest = self._head // STEPS
        oldest = max(first, newest - VOLUME_SECONDS + 1)
        for second in range(oldest, first + 60):
            self._volumes[second % VOLUME_SECONDS] += amount
        near = max(0, first + 60 - max(oldest, newest - 59))
        self.volume_60s += near * amount
        self.volume_before += (max(0, first + 60 - oldest) - near) * amount

    def advance(self, at: float) -> None:
        """Let time pass up to `at`: what is older than the windows leaves them."""
        bucket, head = int(at * STEPS), self._head
        if bucket <= head:
            return
        self._head = bucket
        if bucket - head >= VOLUME_SECONDS * STEPS:
            self._clear()
            return
        counts = self._counts
        # Without trades in the window every bucket is 0 and stays so.
        for newest in range(head + 1, bucket + 1) if self.trades_10s + self.trades_before else ():
            gone, older = newest % COUNT_BUCKETS, (newest - NEAR_BUCKETS) % COUNT_BUCKETS
            aged = counts[older]
            self.trades_10s -= aged
            self.trades_before += aged - counts[gone]
            counts[gone] = 0
        for second in range(head // STEPS + 1, bucket // STEPS + 1):
            gone = second % VOLUME_SECONDS
            aged = self._volumes[(second - 60) % VOLUME_SECONDS]
            self.volume_60s -= aged
            self.volume_before += aged - self._volumes[gone]
            self._volumes[gone] = 0
            gone = second % 60
            self.bought -= self._bought[gone]
            self.sold -= self._sold[gone]
            self._bought[gone] = self._sold[gone] = 0

    def _add_volume(self, second: int, lag: int, amount: int) -> None:
        if lag < 60:
            self.volume_60s += amount
        elif lag < VOLUME_SECONDS:
            self.volume_before += amount
        else:
            return
        self._volumes[second % VOLUME_SECONDS] += amount


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

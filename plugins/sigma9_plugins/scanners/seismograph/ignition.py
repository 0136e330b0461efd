"""The ignition score: how hard a symbol is being bought right now, 0 to 100, of four parts.

| part | weight | 1 | 0.5 |
|---|---|---|---|
| velocity | 35 | trades of the last 10 s > 8 × the 10-s average of the 50 s before | > 4 × |
| burst | 30 | volume of the last minute > 6 × the average of the 5 minutes before | > 3 × |
| break | 20 | price > the box's high + 0.5 % | price > the box's high |
| pressure | 15 | buy / sell volume of the last 60 s > 1.8 | > 0.9 |

The multiples are settings; the half is at half the multiple. What can't be known counts 0. Where a feed gives bars
and no trades the velocity can't be known at all: the other three parts are then scaled to 100 (a setting).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sigma9_plugins.scanners.seismograph.trigger_config import IgnitionConfig
from sigma9_plugins.scanners.seismograph.windows import Box, Minute, Minutes, Window

WEIGHTS: Final = (35, 30, 20, 15)
FEWEST_TRADES: Final = 10
"""With fewer trades in 60 s there is no velocity."""

STEPS: Final = 4
"""Buckets a second of the trade counts: the last 10 s are exact to a quarter of a second."""
UNIT: Final = 10_000
"""Sizes are counted in ten-thousandths of a share."""
VOLUME_SECONDS: Final = 360


@dataclass(frozen=True, slots=True)
class Ignition:
    """The four parts, each 0, 0.5 or 1, and the score that they make."""

    velocity: float | None
    """None where the feed gives no trades."""
    burst: float
    breakout: float
    pressure: float

    @property
    def score(self) -> float:
        """Weigh the parts: 0 to 100, to one decimal."""
        velocity, burst, breakout, pressure = WEIGHTS
        total = burst * self.burst + breakout * self.breakout + pressure * self.pressure
        if self.velocity is None:
            return round(100 * total / (100 - velocity), 1)
        return round(velocity * self.velocity + total, 1)


def velocity_part(last_10s: int, before_50s: int, multiple: float) -> float:
    """Judge trade counts; a silent 50 s before at least 10 trades is the full part."""
    if last_10s + before_50s < FEWEST_TRADES:
        return 0.0
    return _step(last_10s * 5, before_50s, multiple)


def burst_part(last_minute: float, before_5m: float, multiple: float) -> float:
    """Judge volumes; without any volume in the 5 minutes before there is nothing to compare with."""
    return _step(last_minute * 5, before_5m, multiple) if before_5m > 0 else 0.0


def break_part(price: float, box: Box | None, percent: float) -> float:
    """Judge a price against the box."""
    if box is None or price <= box.high:
        return 0.0
    return 1.0 if price > box.high * (1 + percent / 100) else 0.5


def pressure_part(bought: float, sold: float, multiple: float) -> float:
    """Judge buy against sell volume; buying without any selling is the full part."""
    return _step(bought, sold, multiple) if bought > 0 else 0.0


def bar_pressure(bar: Minute) -> tuple[float, float]:
    """Part a bar's volume into bought and sold by where it closes in its range; without a range half and half."""
    width = bar.high - bar.low
    share = (bar.close - bar.low) / width if width > 0 else 0.5
    return bar.volume * share, bar.volume * (1 - share)


def _step(value: float, base: float, multiple: float) -> float:
    if value > multiple * base:
        return 1.0
    return 0.5 if value > multiple * base / 2 else 0.0


class Flow:
    """What the score needs of one symbol's trades."""

    __slots__ = ("_bought", "_counts", "_last_price", "_last_side", "_since", "_sold", "_volumes")

    def __init__(self, since: float) -> None:
        """Begin with nothing known before `since`, in seconds since 1970."""
        self._since = since
        self._counts = Window(10 * STEPS, 60 * STEPS)
        self._bought = Window(60, 60)
        self._sold = Window(60, 60)
        self._volumes = Window(60, VOLUME_SECONDS)
        self._last_price: float | None = None
        self._last_side = 0

    def trade(self, at: float, price: float, size: float, side: int) -> None:
        """Add a trade at seconds since 1970; side is 1 for bought, -1 for sold, 0 where only the price can tell.

        The tick rule: a trade above the last different price was bought, below it sold.
        """
        last = self._last_price
        if last is not None and price != last:
            self._last_side = 1 if price > last else -1
        self._last_price = price
        side = side or self._last_side
        second = int(at)
        amount = int(size * UNIT + 0.5)
        self._counts.add(int(at * STEPS), 1)
        self._volumes.add(second, amount)
        if side > 0:
            self._bought.add(second, amount)
        elif side < 0:
            self._sold.add(second, amount)

    def fill(self, minute: int, volume: float) -> None:
        """Spread volume that no trade told of evenly over its minute: history, or trades that were missed."""
        amount = int(volume * UNIT / 60 + 0.5)
        if amount > 0:
            for second in range(minute * 60, minute * 60 + 60):
                self._volumes.add(second, amount)
        self._since = min(self._since, minute * 60)

    def judge(self, at: float, price: float, box: Box | None, config: IgnitionConfig) -> Ignition:
        """Score the symbol at a time, by its trades."""
        second = int(at)
        counts, volumes, bought, sold = self._counts, self._volumes, self._bought, self._sold
        counts.advance(int(at * STEPS))
        volumes.advance(second)
        bought.advance(second)
        sold.advance(second)
        known = at - self._since >= VOLUME_SECONDS
        return Ignition(
            velocity=velocity_part(counts.near, counts.far, config.velocity),
            burst=burst_part(volumes.near, volumes.far, config.burst) if known else 0.0,
            breakout=break_part(price, box, config.break_percent),
            pressure=pressure_part(bought.near, sold.near, config.pressure),
        )


def judge_bar(bar: Minute, before: Minutes, config: IgnitionConfig) -> Ignition:
    """Score a symbol by a minute bar and the bars before it, where the feed gives no trades."""
    volumes = before.volumes(5)
    return Ignition(
        velocity=None,
        burst=0.0 if volumes is None else burst_part(bar.volume, sum(volumes), config.burst),
        breakout=break_part(bar.close, before.box, config.break_percent),
        pressure=pressure_part(*bar_pressure(bar), config.pressure),
    )

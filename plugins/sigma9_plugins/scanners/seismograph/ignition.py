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
from sigma9_plugins.scanners.seismograph.windows import Box, Flow, Minute, Minutes

WEIGHTS: Final = (35, 30, 20, 15)
FEWEST_TRADES: Final = 10
"""With fewer trades in 60 s there is no velocity."""


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
    if box is None or not price > box.high:
        return 0.0
    # Rounded, so that a price exactly on the edge is not above it by a binary fraction.
    return 1.0 if round(price * 100, 6) > round(box.high * (100 + percent), 6) else 0.5


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


def judge_trades(
    flow: Flow, price: float, box: Box | None, config: IgnitionConfig, *, volume_known: bool
) -> Ignition | None:
    """Score a symbol by its trades; None where the velocity alone rules out the threshold (most of the time).

    `volume_known` says that the volumes of all the 6 minutes are there.
    """
    velocity = velocity_part(flow.trades_10s, flow.trades_before, config.velocity)
    if 100 - WEIGHTS[0] * (1 - velocity) < config.threshold:
        return None
    return Ignition(
        velocity=velocity,
        burst=burst_part(flow.volume_60s, flow.volume_before, config.burst) if volume_known else 0.0,
        breakout=break_part(price, box, config.break_percent),
        pressure=pressure_part(flow.bought, flow.sold, config.pressure),
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

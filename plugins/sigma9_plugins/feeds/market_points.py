"""The simulated market's path through one day: the points that its minutes are led through."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from sigma9_plugins.feeds.market_stocks import Ignition, Stock


@dataclass(frozen=True, slots=True)
class Point:
    """A price that the path has at the end of a minute; `wobble` is the noise on the way there, in cents."""

    minute: int
    price: int
    wobble: int


@dataclass(frozen=True, slots=True)
class Frame:
    """What a day's path starts from and ends at; prices in cents."""

    before: int
    """The close of the session before."""
    open: int
    close: int
    reach: int
    """The wanted distance of high and low."""
    minutes: int


def calm_points(frame: Frame, rng: random.Random) -> list[Point]:
    """Lead through a high and a low that are `reach` apart and hold the close before between them."""
    prices = (frame.before, frame.open, frame.close)
    spare = max(0, frame.reach - (max(prices) - min(prices)))
    above = rng.randint(0, spare)
    high, low = max(prices) + above, max(1, min(prices) - (spare - above))
    early, late = sorted(rng.sample(range(8, frame.minutes - 8), 2))
    wobble = max(1, (high - low) // 8)
    first, second = (high, low) if frame.close < frame.open else (low, high)
    return [
        Point(-1, frame.open, 0),
        Point(early, first, wobble),
        Point(late, second, wobble),
        Point(frame.minutes - 1, frame.close, wobble),
    ]


def event_points(stock: Stock, ignition: Ignition, frame: Frame, rng: random.Random) -> list[Point]:
    """Lead through a tight box, the break-out, what comes of it, and on to the close."""
    start, opens = ignition.minute, frame.open
    box = stock.cents(0.25)
    points = [  # a wiggle each way in the box's last half hour, so that its high and low are known
        Point(-1, opens, 0),
        Point(max(1, start - 24), opens + box, box // 2),
        Point(start - 12, opens - box, box // 2),
        Point(start - 1, opens + box // 2, box // 2),
    ]
    top = opens + box
    entry = max(top + 2, math.ceil(top * 1.0085))
    points.append(Point(start, entry, 0))
    if ignition.outcome == "runner":
        points += _run(start, entry, frame.minutes, rng)
    elif ignition.outcome == "failure":
        points += [
            Point(start + 1, round(entry * 0.993), 0),
            Point(start + 2, round(entry * 0.972), 0),
            Point(start + 4, round(entry * 0.965), 1),
        ]
    else:
        points += [
            Point(start + 2, round(entry * 1.003), 1),
            Point(start + 4, round(entry * 0.996), 1),
            Point(start + 7, round(entry * 1.001), 1),
        ]
    wobble = stock.cents(0.3)
    if ignition.outcome != "runner":  # a wide day, so that the quiet days before it end here
        dip_at = rng.randint(points[-1].minute + 8, frame.minutes - 10)
        points.append(Point(dip_at, min(frame.close, opens) - stock.cents(4.8), wobble))
    points.append(Point(frame.minutes - 1, frame.close, wobble))
    return points


def _run(start: int, entry: int, minutes: int, rng: random.Random) -> list[Point]:
    """Run up past 3 % within three minutes, on to a peak, and back; half of them reach a new high later."""
    peak_at = start + rng.randint(6, 13)
    peak = round(entry * (1.05 + 0.035 * rng.random()))
    points = [
        Point(start + 1, round(entry * 1.019), 0),
        Point(start + 2, round(entry * 1.037), 0),
        Point(peak_at, peak, 1),
        Point(peak_at + 4, round(peak * 0.97), 1),
    ]
    again = peak_at + 4 + rng.randint(14, 24)
    if rng.random() < 0.5 and again + 12 < minutes:
        points += [
            Point(again - 3, round(peak * 0.985), 1),
            Point(again, round(peak * 1.012), 1),
            Point(again + 6, round(peak * 0.985), 1),
        ]
    return points

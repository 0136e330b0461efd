"""The simulated market within a day: minutes that add up to the day, trades that add up to the minute.

A day's first minute opens at its open, its last one closes at its close, the highest and lowest are its high and
low, and the volumes add up to its volume, exactly; likewise for the trades of a minute.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from sigma9_plugins.feeds.market_model import Day
from sigma9_plugins.feeds.market_points import Point

BURST_MS: Final = 9_500
"""The first trades of an ignition come within this many milliseconds."""
BURST_SHARE: Final = 0.8
"""The share of the ignition minute's trades and volume that comes in the burst."""


class Minute(NamedTuple):
    """One minute of one symbol: prices in cents, volume in shares, and how its trades come."""

    open: int
    high: int
    low: int
    close: int
    volume: int
    trades: int
    buying: float
    """The share of trades that buyers begin."""
    burst: bool = False


class Tick(NamedTuple):
    """One trade: price in cents, size in shares, and who began it."""

    at: int
    """Milliseconds after the minute's start, above 0 and below 60,000."""
    price: int
    size: int
    side: Literal["buy", "sell"]


def minutes_of_day(day: Day, count: int, rng: random.Random) -> list[Minute]:
    """Split a day into its `count` minutes."""
    closes, highs, lows = _path(day, count, rng)
    volumes = _volumes(day, count, rng)
    start = day.ignition.minute if day.ignition else None
    found = []
    opens = day.open
    for i in range(count):
        trades, buying, burst = 10 + rng.randrange(6), 0.5, False
        if closes[i] != opens:
            buying = 0.56 if closes[i] > opens else 0.44
        if start is not None and start - 1 <= i <= start + 14:
            trades, buying, burst = _heat(i - start, closes[i] >= opens, buying)
        volume = volumes[i]
        found.append(Minute(opens, highs[i], lows[i], closes[i], volume, min(trades, volume), buying, burst))
        opens = closes[i]
    return found


def _heat(since: int, rising: bool, buying: float) -> tuple[int, float, bool]:
    """Give trades, buying share and burst of the minutes around an ignition; minute 0 is the burst's."""
    if since == -1:
        return 13, 0.8, False
    if since == 0:
        return 60, 0.85, True
    if since <= 3:
        return 30, 0.68 if rising else 0.3, False
    return 18, buying, False


def _path(day: Day, count: int, rng: random.Random) -> tuple[list[int], list[int], list[int]]:
    """Lead the closes through the day's points, with noise between them; highs and lows stay within the day's."""
    closes, highs, lows = [], [], []
    points = day.points
    opens = day.open
    for number, (left, right) in enumerate(pairwise(points)):
        near = _prices_around(points, number)
        low, high = max(day.low, min(near)), min(day.high, max(near))
        span = right.minute - left.minute
        stray = 0.0
        for i in range(1, span + 1):
            if i == span:
                price = right.price
            else:
                stray += right.wobble * (rng.random() - 0.5)
                stray *= min(0.9, (span - i) / 3)
                price = round(left.price + (right.price - left.price) * i / span + stray)
                price = min(high, max(low, price))
            top, bottom = max(opens, price), min(opens, price)
            if right.wobble:
                top = min(top + (rng.random() < 0.4), max(high, top))
                bottom = max(bottom - (rng.random() < 0.4), min(low, bottom))
            closes.append(price)
            highs.append(top)
            lows.append(bottom)
            opens = price
    if len(closes) != count:
        raise ValueError(f"the points of {day.day} lead through {len(closes)} minutes, the session has {count}")
    return closes, highs, lows


def _prices_around(points: Sequence[Point], number: int) -> list[int]:
    return [point.price for point in points[max(0, number - 1) : number + 3]]


def _volumes(day: Day, count: int, rng: random.Random) -> list[int]:
    weights = [share * (0.8 + 0.45 * rng.random()) for share in _smile(count)]
    if day.ignition is not None:
        start = day.ignition.minute
        for i in range(max(0, start - 31), start + 1):  # even before the burst, so that the burst stands out
            weights[i] = _smile(count)[i] * (0.92 + 0.16 * rng.random())
        heat = [9.0, 25.0, 8.0, 8.0, 8.0] + [4.0 - 0.25 * i for i in range(10)]
        for i, factor in enumerate(heat, start - 1):
            weights[i] *= factor
    return _split(day.volume, weights)


@lru_cache(maxsize=8)
def _smile(count: int) -> tuple[float, ...]:
    """Give each minute's usual share: much after the open, little at noon, more before the close."""
    return tuple(1 + 2 * math.exp(-i / 12) + 1.2 * math.exp((i + 1 - count) / 10) for i in range(count))


def _split(total: int, weights: Sequence[float]) -> list[int]:
    """Split whole shares by weight; every part gets at least one where there are enough."""
    floor = 1 if total >= len(weights) else 0
    spare = total - floor * len(weights)
    scale = spare / sum(weights)
    parts, done, reached = [], 0, 0.0
    for weight in weights:
        reached += weight * scale
        upto = min(spare, round(reached))
        parts.append(upto - done + floor)
        done = upto
    parts[-1] += spare - done
    return parts


def ticks_of_minute(minute: Minute, rng: random.Random) -> list[Tick]:
    """Split a minute into its trades, in order of time."""
    count = minute.trades
    draw = rng.random
    burst = int(count * BURST_SHARE) if minute.burst else 0
    if burst:
        times = [300 + int((BURST_MS - 300) * (i + draw()) / burst) for i in range(burst)]
        rest = count - burst
        times += [10_000 + int(49_900 * (i + draw()) / rest) for i in range(rest)]
        heavy = BURST_SHARE / burst
        light = (1 - BURST_SHARE) / rest
        weights = [heavy * (0.5 + draw()) for _ in range(burst)] + [light * (0.5 + draw()) for _ in range(rest)]
    else:
        times = [1 + int(59_990 * (i + draw()) / count) for i in range(count)]
        weights = [0.3 + 2 * draw() * draw() for _ in range(count)]
    prices = _prices(minute, count, burst, rng)
    ticks = []
    before = minute.open
    for at, price, size in zip(times, prices, _split(minute.volume, weights), strict=True):
        chance = minute.buying + (0.15 if price > before else -0.15 if price < before else 0.0)
        ticks.append(Tick(at, price, size, "buy" if draw() < chance else "sell"))
        before = price
    return ticks


def _prices(minute: Minute, count: int, burst: int, rng: random.Random) -> list[int]:
    """Lead the trades from open to close, through high and low, by steps of a cent or so."""
    opens, high, low, close = minute.open, minute.high, minute.low, minute.close
    anchors = {0: opens, count - 1: close}
    if burst:
        anchors[burst // 3] = close
    inner = [i for i in range(1, count - 1) if i not in anchors]
    first, second = sorted((inner[int(rng.random() * len(inner))], inner[int(rng.random() * len(inner))]))
    if first == second:
        first, second = inner[0], inner[-1]
    extremes = (low, high) if close >= opens else (high, low)
    inside = range(min(opens, close), max(opens, close) + 1)
    turns = zip((first, second), extremes, strict=True)
    anchors |= {place: price for place, price in turns if price not in inside}
    prices = []
    places = sorted(anchors)
    for left, right in pairwise(places):
        a, b = anchors[left], anchors[right]
        prices.append(a)
        for i in range(left + 1, right):
            between = a + (b - a) * (i - left) / (right - left) + (rng.random() - 0.5) * 1.8
            prices.append(min(high, max(low, round(between))))
    prices.append(close)
    return prices

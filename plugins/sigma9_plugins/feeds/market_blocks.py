"""The simulated market's daily closes and volumes: one block of weekdays of one symbol.

In a block a symbol builds up two accumulation patterns, and after each comes the day on which it is planted: a
scan of the session before finds it. That nothing else shows a pattern is so by construction:

- A day moves by about 1.4 to 2.4 % and has a range of 2.6 to 3.4 %, so nothing is quiet by chance (tight range).
- The volume follows the move, never more than `per_cent` shares a cent on a rise and never less on a fall, so that
  the on-balance volume can't rise while the price falls. A planted divergence breaks this on its last day, and
  the day after it pays back: it closes lower on that much more volume.
- Volumes lie between 0.7 and 1.4 of the average (dry-out, accumulation bar); heavier days have large bodies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from sigma9_plugins.feeds.market_stocks import BLOCK, Kind, Outcome, Stock, weekday_date

FIRST_EVENT: Final = 9
SECOND_EVENT: Final = 23
"""The weekdays of a block on which its two planted days fall."""
PAIRS: Final[tuple[tuple[Kind, Kind], ...]] = (
    ("tight", "imminent"),
    ("tight", "absorbing"),
    ("heavy", "imminent"),
    ("dry", "divergent"),
)
"""The patterns of a block; a symbol takes the next pair with each block. Only a second one may diverge."""
DIVERGING: Final[frozenset[Kind]] = frozenset(("imminent", "absorbing", "divergent"))


@dataclass(slots=True)
class Draft:
    """A day as far as its block knows it; the close of the day before comes from the day before."""

    day: date
    close: int
    volume: int
    reach: int
    """High less low, in cents, the close before included."""
    gap: int = 0
    """The open less the close before."""
    event: Kind | None = None
    """The pattern that this day is planted with."""


def events_of(stock: Stock, block: int, dates: Sequence[date]) -> list[tuple[Kind, date]]:
    """Give a block's planted days: those that are sessions, with enough sessions before them."""
    if stock.lane is None:
        return []
    first = block * BLOCK + stock.phase
    pair = PAIRS[(stock.lane // BLOCK + block) % len(PAIRS)]
    planned = zip(pair, (FIRST_EVENT, SECOND_EVENT), (7, 20), strict=True)
    events = [(kind, weekday_date(first + slot), need) for kind, slot, need in planned]
    return [(kind, day) for kind, day, need in events if day in dates and dates.index(day) >= need]


class BlockBuilder:
    """Builds one block, day by day."""

    def __init__(
        self, stock: Stock, dates: Sequence[date], outcome: Callable[[date], Outcome | None], rng: random.Random
    ) -> None:
        self._stock = stock
        self._dates = dates
        self._outcome = outcome
        self._rng = rng
        self._closes: list[int] = []
        self._special: dict[int, Draft] = {}

    def build(self, anchor: int, target: int, events: Sequence[tuple[Kind, date]]) -> tuple[Draft, ...]:
        """Give the block's days; the first closes at `anchor`, and the next block's first one at `target`."""
        self._closes.append(anchor)
        for kind, day in events:
            self._build_up(kind, self._dates.index(day))
        left = len(self._dates) - len(self._closes)
        self._closes += bridge(self._rng, self._closes[-1], target, left + 1, self._stock.moves)[:-1]
        return tuple(self._special.get(i) or self._plain(i) for i in range(len(self._dates)))

    def _build_up(self, kind: Kind, event: int) -> None:
        """Add the closes up to a planted day, with the special days before it and the day itself."""
        stock, rng, closes = self._stock, self._rng, self._closes
        last = event - 1
        steps = self._last_steps(kind)
        if kind in DIVERGING:  # the close is to lie a little below the one 19 sessions before
            closes += _wander(rng, closes[-1], last - 18 - len(closes), stock.moves)
            end = closes[last - 19] - stock.cents(0.4 + 0.4 * rng.random())
            moves = last - len(steps) - len(closes) + 1
            closes += bridge(rng, closes[-1], end - sum(steps), moves, stock.moves)
        else:
            closes += _wander(rng, closes[-1], last - len(steps) - len(closes) + 1, stock.moves)
        for step in steps:
            closes.append(closes[-1] + step)
        if kind in ("imminent", "tight"):
            self._quiet_days(last)
        if kind == "dry":
            for i, share in zip(range(last - 2, last + 1), (0.48, 0.24, 0.1), strict=True):
                self._special[i] = Draft(self._dates[i], closes[i], self._share(share, 0.1), self._reach())
        heavy = {"imminent": 2.0, "divergent": 2.0, "absorbing": 4.6, "heavy": 5.4}.get(kind)
        if heavy is not None:
            draft = self._special.get(last) or Draft(self._dates[last], closes[last], 0, self._reach())
            draft.volume = self._share(heavy, 0.06)
            self._special[last] = draft
        excess = 0.0
        if kind in DIVERGING:
            excess = max(0.0, self._special[last].volume - stock.per_cent * steps[-1])
        self._special[event] = self._event_day(kind, event, excess)
        closes.append(self._special[event].close)

    def _last_steps(self, kind: Kind) -> list[int]:
        """Give the moves of the pattern's last days, in cents."""
        if kind == "imminent":
            return [0, 0, -1, 0, 1]
        if kind == "tight":
            return [0, -1, 0, 0, 0]
        if kind == "dry":
            return [0, self._stock.cents(0.6), 0]
        return [{"absorbing": self._stock.cents(2.0), "divergent": self._stock.cents(0.5)}.get(kind, 0)]

    def _quiet_days(self, last: int) -> None:
        """Make the last five days quiet; a wide day before them makes them count from the fifth on, not sooner."""
        wide = self._plain(last - 5)
        wide.reach = self._stock.cents(6.5)
        self._special[last - 5] = wide
        for i in range(last - 4, last + 1):
            close = self._closes[i]
            share = 0.85 if close >= self._closes[i - 1] else 0.4  # a fall on much volume would be distribution
            reach = max(2, self._stock.cents(0.8))
            self._special[i] = Draft(self._dates[i], close, self._share(share, 0.15), reach)

    def _event_day(self, kind: Kind, event: int, excess: float) -> Draft:
        """Draw the planted day; where the pattern diverged it pays back the volume that was too much."""
        stock, rng, day = self._stock, self._rng, self._dates[event]
        if kind == "absorbing":
            percent = -2.9 - 0.6 * rng.random()  # so large a body is no accumulation bar, whatever its volume
        elif kind in DIVERGING:
            percent = -0.3 - 0.3 * rng.random()
        elif self._outcome(day) == "runner":
            percent = 2.6 + 1.8 * rng.random()
        elif kind == "dry":
            percent = rng.choice((1, -1)) * (2.2 + 0.4 * rng.random())
        else:
            percent = -1.9 - 0.8 * rng.random()
        step = (1 if percent > 0 else -1) * stock.cents(abs(percent))
        volume = stock.per_cent * abs(step) * (0.98 if step > 0 else 1.02)
        if excess:
            volume += excess + 0.1 * stock.volume
        return Draft(day, self._closes[-1] + step, round(volume), self._reach(), event=kind)

    def _plain(self, index: int) -> Draft:
        """Draw a day of no importance; the volume of a block's first day waits for the close before it."""
        stock, rng = self._stock, self._rng
        noise = 0.03 * rng.random()
        step = self._closes[index] - self._closes[index - 1] if index else 0
        volume = stock.volume * (0.85 + 0.3 * rng.random())
        if step:
            volume = stock.per_cent * abs(step) * (1 - noise if step > 0 else 1 + noise)
        gap = round(stock.price * 0.003 * (2 * rng.random() - 1))
        return Draft(self._dates[index], self._closes[index], round(volume), self._reach(), gap)

    def _share(self, share: float, spread: float) -> int:
        """Draw a volume around a share of the average one."""
        return round(self._stock.volume * share * (1 - spread / 2 + spread * self._rng.random()))

    def _reach(self) -> int:
        return self._stock.cents(2.6 + 0.8 * self._rng.random())


def bridge(rng: random.Random, start: int, target: int, moves: int, sizes: tuple[int, int]) -> list[int]:
    """Give the closes of `moves` days that end at `target`, each moving by the least to the most of `sizes`.

    From four moves on every target within reach can be had so; a target beyond it, or fewer moves, takes
    larger or smaller moves.
    """
    if moves <= 0:
        return []
    low, high = sizes
    gap = target - start

    def fits(rises: int) -> bool:
        falls = moves - rises
        return rises * low - falls * high <= gap <= rises * high - falls * low

    possible = [rises for rises in range(moves + 1) if fits(rises)]
    if not possible:
        return [start + gap * (i + 1) // moves for i in range(moves)]
    nearest = min(abs(2 * rises - moves) for rises in possible)
    rises = rng.choice([each for each in possible if abs(2 * each - moves) <= nearest + 1])
    signs = [1] * rises + [-1] * (moves - rises)
    rng.shuffle(signs)
    drawn = [rng.randint(low, high) for _ in signs]
    order = list(range(moves))
    rng.shuffle(order)
    missing = gap - sum(sign * size for sign, size in zip(signs, drawn, strict=True))
    for i in order:
        allowed = min(high, max(low, drawn[i] + signs[i] * missing))
        missing -= signs[i] * (allowed - drawn[i])
        drawn[i] = allowed
    closes, price = [], start
    for sign, size in zip(signs, drawn, strict=True):
        price += sign * size
        closes.append(price)
    return closes


def _wander(rng: random.Random, start: int, moves: int, sizes: tuple[int, int]) -> list[int]:
    """Give the closes of days that go nowhere in particular: about as many rises as falls."""
    if moves <= 0:
        return []
    rises = (moves + rng.randrange(2)) // 2
    drift = sum(rng.choice(sizes) for _ in range(rises)) - (moves - rises) * sum(sizes) // 2
    return bridge(rng, start, start + drift, moves, sizes)

"""The simulated market's companies, its vocabulary, and its weekdays."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal
from zoneinfo import ZoneInfo

from sigma9_core.models import Session

Kind = Literal["imminent", "tight", "absorbing", "heavy", "divergent", "dry"]
"""The planted patterns; `PRIORITY` says what a scan makes of each."""
PRIORITY: Final[Mapping[Kind, int]] = {
    "imminent": 100,  # tight range and OBV divergence
    "tight": 80,  # tight range
    "absorbing": 70,  # accumulation bar and OBV divergence
    "heavy": 50,  # accumulation bar
    "divergent": 30,  # OBV divergence
    "dry": 10,  # volume dry-out
}
TRADABLE: Final[frozenset[Kind]] = frozenset(("imminent", "tight", "absorbing", "heavy"))
Outcome = Literal["runner", "failure", "sideways"]
"""What follows an ignition: it runs 5 to 8 % and falls back; it fails by more than 2 %; it goes nowhere."""

NEW_YORK: Final = ZoneInfo("America/New_York")
BLOCK: Final = 28
"""Weekdays of a block: each symbol has two planted days in it."""
FEWEST: Final = 40
"""With fewer symbols some days would have nothing planted."""


@dataclass(frozen=True, slots=True)
class Stock:
    """A fictional company: what stays the same all its life."""

    symbol: str
    price: int
    """The level that it returns to, in cents."""
    volume: int
    """The average daily volume, in shares."""
    lane: int | None
    """Its place among the symbols that get patterns; None for the quiet ones in the background."""

    @property
    def phase(self) -> int:
        """Give the weekday on which its blocks begin."""
        return (self.lane or 0) % BLOCK

    @property
    def per_cent(self) -> float:
        """Give the shares that go with a move of one cent: the average move takes the average volume."""
        return self.volume * 2 / sum(self.moves)

    @property
    def moves(self) -> tuple[int, int]:
        """Give the least and the most that an ordinary day moves, in cents.

        The most is at least 5/3 of the least: so four moves or more lead to every price within reach (`bridge`).
        """
        low = math.ceil(self.price * 0.014)
        return low, max(math.ceil(self.price * 0.024), math.ceil(low * 5 / 3))

    def cents(self, percent: float) -> int:
        """Turn percent of the price level into at least one cent."""
        return max(1, round(self.price * percent / 100))


@dataclass(frozen=True, slots=True)
class Ignition:
    """A planned burst: where it begins (minutes after the open) and how it ends."""

    minute: int
    outcome: Outcome


def generator(*key: object) -> random.Random:
    """Make the random generator that belongs to a key: the same one at every start of Python."""
    mixed = 0xCBF29CE484222325
    for part in key:
        for byte in str(part).encode() + b"|":
            mixed = ((mixed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return random.Random(mixed)  # noqa: S311 - a simulated market, no secret


def found(seed: int, count: int) -> list[Stock]:
    """Found the companies: most at 3.00 to 7.80 USD, a few in the background dearer or hardly traded."""
    rng = generator(seed, "stocks")
    names = [a + b + c + d for a in "BDFGKLMPRSTVZ" for b in "AEIOU" for c in "BDKLMNPRTVX" for d in "AEIO"]
    generator("names").shuffle(names)  # the same names whatever the seed
    background = max(4, count // 15)
    lanes = list(range(count - background))
    rng.shuffle(lanes)
    stocks = []
    for index, symbol in enumerate(names[:count]):
        if index < count - background:
            price = round(300 * (780 / 300) ** rng.random())
            stocks.append(Stock(symbol, price, round(250_000 * 10 ** rng.random()), lanes[index]))
        elif index % 2:
            stocks.append(Stock(symbol, rng.randint(1_400, 6_000), round(800_000 * 4 ** rng.random()), None))
        else:
            stocks.append(Stock(symbol, rng.randint(300, 800), rng.randint(30_000, 60_000), None))
    return sorted(stocks, key=lambda stock: stock.symbol)


def minutes_of(session: Session) -> int:
    """Count a session's minutes."""
    return round((session.close - session.open).total_seconds() / 60)


def weekday_number(day: date) -> int:
    """Number the weekdays without a gap; a weekend has the number of its Friday."""
    weeks, weekday = divmod(day.toordinal() - 1, 7)
    return weeks * 5 + min(weekday, 4)


def weekday_date(number: int) -> date:
    """Give the weekday of a number."""
    weeks, weekday = divmod(number, 5)
    return date.fromordinal(weeks * 7 + weekday + 1)

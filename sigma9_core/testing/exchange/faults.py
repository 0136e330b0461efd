"""What goes wrong between the exchange and its clients, by chance and by seed; the book's truth stays whole."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True)
class FaultRates:
    """How often each thing goes wrong: chances of one, and seconds. All zero: nothing does."""

    drop: float = 0.0
    """A report is never sent."""
    delay: float = 0.0
    """A report is sent up to `late` seconds later."""
    double: float = 0.0
    """A report is sent twice."""
    reorder: float = 0.0
    """A report is sent behind the one that follows it."""
    answer_drop: float = 0.0
    """An order, change or cancel is taken, and never answered."""
    answer_delay: float = 0.0
    """It is answered up to `late` seconds later."""
    intake: float = 0.0
    """It waits up to `late` seconds before it is taken, and whatever came after it as well."""
    reject: float = 0.0
    """A new order, with its group, is rejected."""
    cut: float = 0.0
    """The client's connection is closed, at each step of the market."""
    outage: float = 0.0
    """The link behind the connection is away for up to `late` seconds, at each step; reports are lost then."""
    cancel: float = 0.0
    """A resting order is cancelled or expires, each at each step."""
    bust: float = 0.0
    """A trade is taken back, at each step."""
    late: float = 0.3
    """Seconds."""


class Faults:
    """Decides by chance; each kind of fault has a stream of its own, so that they do not disturb each other."""

    def __init__(self, seed: int) -> None:
        self.rates = FaultRates()
        self.happened: Counter[str] = Counter()
        self._streams = {
            each.name: random.Random(f"{seed}-{each.name}")  # noqa: S311 - repeatable on purpose
            for each in fields(FaultRates)
        }

    def set(self, rates: dict[str, Any]) -> None:
        """Take new chances; what is not named is zero."""
        self.rates = FaultRates(**rates)

    def strikes(self, name: str) -> bool:
        """Tell whether it goes wrong this time."""
        chance: float = getattr(self.rates, name)
        struck = chance > 0 and self._streams[name].random() < chance
        if struck:
            self.happened[name] += 1
        return struck

    def seconds(self) -> float:
        """Give how late something is."""
        return self._streams["late"].uniform(0.01, self.rates.late)

    def pick(self, name: str, count: int) -> int:
        """Choose one of so many."""
        return self._streams[name].randrange(count)

"""One symbol's books: its fills and splits in order, and the position and the round trips that they make."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from decimal import Decimal

from sigma9_core.models import ZERO, ClosedTrade, Fill
from sigma9_core.money.holding import EXACT, Applied, Holding, charged, parted


@dataclass(frozen=True, slots=True)
class Split:
    """A split, at its place among the fills."""

    new: Decimal
    old: Decimal


@dataclass(frozen=True, slots=True)
class Booked:
    """A fill, the strategy that it was for, and where in the books it stands."""

    fill: Fill
    strategy: str | None
    before: Decimal
    """The net quantity before it."""
    trip: int
    """How many round trips had ended before it."""


class Ledger:
    """Takes a symbol's fills and splits as they come, and what becomes of them later."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.holding = Holding(symbol)
        self.trades: list[ClosedTrade] = []
        """Its round trips, in the order in which they ended."""
        self._entries: dict[str | int, Booked | Split] = {}
        """In order; fills by their execution id, splits by a number."""

    def take(self, fill: Fill, strategy: str | None) -> Applied:
        """Book a fill behind all others."""
        holding = self.holding
        self._entries[fill.exec_id] = Booked(fill, strategy, holding.quantity, holding.trips)
        applied = holding.take(fill, strategy)
        if applied.closed is not None:
            self.trades.append(applied.closed)
        return applied

    def split(self, new: Decimal, old: Decimal) -> None:
        """Give `new` shares for `old` ones."""
        self.holding.split(new, old)
        self._entries[len(self._entries)] = Split(new, old)

    def booked(self, exec_id: str) -> Booked | None:
        """Give what stands of an execution, None where nothing does."""
        entry = self._entries.get(exec_id)
        return entry if isinstance(entry, Booked) else None

    def bust(self, exec_id: str, quantity: Decimal | None = None) -> Fill | None:
        """Take an execution out again, or so much of it; give what was taken out, None where nothing stood."""
        booked = self.booked(exec_id)
        if booked is None:
            return None
        taken, left = parted(booked.fill, quantity)
        if left is None:
            del self._entries[exec_id]
        else:
            self._entries[exec_id] = replace(booked, fill=left)
        self._make_again()
        return taken

    def correct(self, wrong: Collection[str], fill: Fill, strategy: str | None) -> Applied:
        """Put a fill in the place of those that it corrects, as if it had come instead of them."""
        before, total = self.holding.quantity, self.holding.total
        entries: dict[str | int, Booked | Split] = {}
        for name, entry in self._entries.items():
            if name not in wrong:
                entries[name] = entry
            elif fill.exec_id not in entries:
                entries[fill.exec_id] = Booked(fill, strategy, ZERO, 0)
        self._entries = entries
        self._make_again()
        holding = self.holding
        more = EXACT.subtract(holding.total, total)
        return Applied(fill, holding.strategy or strategy, more, before, holding.quantity)

    def charge(self, exec_id: str, commission: Decimal) -> list[tuple[ClosedTrade, ClosedTrade]]:
        """Take another commission of an execution that stands; give the round trips that it changes, old and new.

        No fill is looked at but this one: what it costs belongs to the round trips that it was a part of.
        """
        booked = self._entries[exec_id]
        if not isinstance(booked, Booked):
            raise KeyError(exec_id)
        self._entries[exec_id] = replace(booked, fill=replace(booked.fill, commission=commission))
        changed = []
        for trip, more in self.holding.charge(booked.fill, booked.before, booked.trip, commission):
            old = self.trades[trip]
            new = self.trades[trip] = charged(old, more)
            changed.append((old, new))
        return changed

    @property
    def was_split(self) -> bool:
        """Tell whether a split is among what made the position."""
        return any(isinstance(entry, Split) for entry in self._entries.values())

    def opened_by(self) -> list[Fill]:
        """Give the fills that have opened the position, or added to it, oldest first."""
        holding, fills = Holding(self.symbol), list[Fill]()
        for entry in self._entries.values():
            if isinstance(entry, Split):
                holding.split(entry.new, entry.old)
                continue
            applied = holding.take(entry.fill, entry.strategy)
            if applied.opened or applied.after == ZERO:
                fills.clear()
            if applied.grown:
                fills.append(entry.fill)
        return fills

    def _make_again(self) -> None:
        """Make position and round trips again from what stands."""
        entries, self._entries = self._entries, {}
        self.holding, self.trades = Holding(self.symbol), []
        for entry in entries.values():
            if isinstance(entry, Split):
                self.split(entry.new, entry.old)
            else:
                self.take(entry.fill, entry.strategy)


__all__ = ["Booked", "Ledger", "Split"]

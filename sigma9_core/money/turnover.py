"""What has filled lately, summed by symbol, side and hour: what the rules of a day ask, in however many fills."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from sigma9_core.contracts import Turnover
from sigma9_core.models import ZERO, Fill, Side

KEPT: Final = timedelta(days=14)


class TurnoverBook:
    """Sums of the last two weeks; on the money lane. A fill that is taken back stays counted until a restart."""

    def __init__(self) -> None:
        self._sums: dict[tuple[datetime, str, Side], Decimal] = {}
        self._shown: tuple[Turnover, ...] | None = ()

    def count(self, fills: Iterable[Fill]) -> None:
        """Count fills, in whatever order."""
        for fill in fills:
            key = (fill.ts.replace(minute=0, second=0, microsecond=0), fill.symbol, fill.side)
            self._sums[key] = self._sums.get(key, ZERO) + fill.quantity * fill.price
        self._shown = None

    def at(self, now: datetime) -> tuple[Turnover, ...]:
        """Give the sums of the two weeks before a moment, oldest first; the same object until something fills."""
        if self._shown is None:
            since = now - KEPT
            self._sums = {key: value for key, value in sorted(self._sums.items()) if key[0] >= since}
            self._shown = tuple(
                Turnover(symbol, side, hour, value) for (hour, symbol, side), value in self._sums.items()
            )
        return self._shown


__all__ = ["TurnoverBook"]

"""The tally of a run: how much was at work in the market, and what the risk rules refused; for the summary."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from sigma9_core.models import ZERO, OrderStatus
from sigma9_core.money.desk import OrderDesk, Step


class Tally:
    """Counts as the run goes on; on the money lane."""

    def __init__(self, desk: OrderDesk) -> None:
        self.slices = 0
        self.invested = 0
        """Slices at whose end a position was held."""
        self.orders = 0
        """Orders that were sent."""
        self.peak = ZERO
        """The largest value of all positions together, long and short alike, in money."""
        self.refused: Counter[str] = Counter()
        """Refused orders by the rule that refused them first."""
        self.fees = ZERO
        self._sum = ZERO
        self._desk = desk
        desk.followers.append(self._follow)

    @property
    def average(self) -> Decimal:
        """Give the average value of the positions over all slices, in money."""
        return self._sum / self.slices if self.slices else ZERO

    def look(self) -> None:
        """Look at the positions at the end of a slice."""
        self.slices += 1
        gross = sum((abs(p.market_value or ZERO) for p in self._desk.portfolio.positions()), ZERO)
        self._sum += gross
        self.peak = max(self.peak, gross)
        self.invested += gross > ZERO

    def _follow(self, step: Step) -> None:
        if step.fill is not None:
            self.fees += step.fill.commission
        if step.event is OrderStatus.RISK_REJECTED:
            self.refused[step.order.rule or "group"] += 1
        elif step.event is OrderStatus.SUBMITTED:
            self.orders += 1

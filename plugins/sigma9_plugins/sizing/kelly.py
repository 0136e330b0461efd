"""Size by the results so far: a fraction of what the Kelly criterion gives.

    f* = (p·b − q) / b      p: share of trades won, q = 1 − p, b = mean win / mean loss (both in percent of cost)

A result of zero counts as a loss. Without a loss of any size b has no bound and f* is p.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated

from pydantic import Field

from sigma9_core.contracts import PluginContext, Register, SizingContext
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, Money
from sigma9_plugins.sizing.shares import whole_shares

Percent = Annotated[Money, Field(gt=0, le=100)]


class KellyConfig(Frozen):
    """Settings of `kelly`."""

    kelly_fraction: Annotated[Money, Field(gt=0, le=1)] = Decimal("0.5")
    """The part of f* that is used: 0.5 is half Kelly."""
    min_trades: Annotated[int, Field(ge=1)] = 20
    """Closed trades of the strategy from which on the criterion is used."""
    fallback_percent: Annotated[Money, Field(ge=0, le=100)] = Decimal(10)
    """The share of equity before that, as `fixed_fraction` would take; 0 makes no order (and no trade to learn
    from, unless another sizer or a person made some)."""
    cap_percent: Percent = Decimal(25)
    max_position_percent: Percent = Decimal(10)
    """The tighter of this and `cap_percent` bounds every order, the fallback's included."""


class Kelly:
    """Gives floor(equity × fraction / price) for half the Kelly fraction, capped; f* ≤ 0 means no order."""

    def __init__(self, config: KellyConfig) -> None:
        self._config = config

    def size(self, context: SizingContext) -> Decimal:
        """Give the whole number of shares."""
        return whole_shares(self.fraction(context.closed_trades), context)

    def fraction(self, trades: Sequence[Decimal]) -> Decimal:
        """Give the share of equity, from 0 to the cap, for results in percent of their cost."""
        config = self._config
        cap = min(config.cap_percent, config.max_position_percent) / 100
        if len(trades) < config.min_trades:
            return min(config.fallback_percent / 100, cap)
        return max(min(config.kelly_fraction * kelly(trades), cap), ZERO)


def kelly(trades: Sequence[Decimal]) -> Decimal:
    """Give f* for the results of some trades: below zero without an edge, -1 without a single win."""
    wins = [trade for trade in trades if trade > 0]
    losses = [-trade for trade in trades if trade <= 0]
    if not wins:
        return Decimal(-1)
    won = Decimal(len(wins)) / len(trades)
    lost = sum(losses, ZERO)
    if lost == ZERO:
        return won
    ratio = (sum(wins, ZERO) / len(wins)) / (lost / len(losses))
    return (won * ratio - (1 - won)) / ratio


def build(config: KellyConfig, context: PluginContext) -> Kelly:
    """Build the sizer."""
    del context  # it needs nothing of it
    return Kelly(config)


@hookimpl
def register_sizers(register: Register) -> None:
    """Offer `kelly`."""
    register("kelly", build, config=KellyConfig)

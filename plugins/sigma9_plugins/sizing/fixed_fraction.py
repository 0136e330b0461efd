"""Size every entry at the same share of equity."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from sigma9_core.contracts import PluginContext, Register, SizingContext
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, Money
from sigma9_plugins.sizing.shares import whole_shares


class FixedFractionConfig(Frozen):
    """Settings of `fixed_fraction`."""

    percent_of_equity: Annotated[Money, Field(gt=0, le=100)] = Decimal(10)


class FixedFraction:
    """Gives floor(equity × fraction / price), at most what the buying power pays for; 0 means no order."""

    def __init__(self, config: FixedFractionConfig) -> None:
        self._fraction = config.percent_of_equity / 100

    def size(self, context: SizingContext) -> Decimal:
        """Give the whole number of shares."""
        return whole_shares(self._fraction, context)


def build(config: FixedFractionConfig, context: PluginContext) -> FixedFraction:
    """Build the sizer."""
    del context  # it needs nothing of it
    return FixedFraction(config)


@hookimpl
def register_sizers(register: Register) -> None:
    """Offer `fixed_fraction`."""
    register("fixed_fraction", build, config=FixedFractionConfig)

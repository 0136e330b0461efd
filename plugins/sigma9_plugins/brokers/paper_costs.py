"""What a trade costs on the paper exchange, and the ticks that its prices lie on."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from typing import Annotated, Final

from pydantic import Field

from sigma9_core.models import Frozen, Money, Side

CENT: Final = Decimal("0.01")
FINE_TICK: Final = Decimal("0.0001")

NotNegative = Annotated[Money, Field(ge=0, allow_inf_nan=False)]


class Costs(Frozen):
    """Commission and slippage; percent values are in percent."""

    commission_per_share: NotNegative = Decimal("0.005")
    commission_minimum: NotNegative = Decimal("1.00")
    """The least that an order costs once it has filled at all."""
    commission_maximum_percent: NotNegative = Decimal("1.0")
    """The most that an order costs, in percent of what it traded; it beats the minimum."""
    slippage_percent: NotNegative = Decimal("0.05")
    """What a market or stop order loses against the price that it meets."""

    def commission(self, quantity: Decimal, value: Decimal) -> Decimal:
        """Give the commission of an order that has traded `quantity` shares for `value`, in whole cents."""
        wanted = max(self.commission_minimum, self.commission_per_share * quantity)
        most = value * self.commission_maximum_percent / 100
        return min(wanted, most).quantize(CENT, ROUND_HALF_UP)

    def slipped(self, side: Side, price: Decimal, half_spread: Decimal = Decimal(0)) -> Decimal:
        """Give the price that a market order gets: half a spread and the slippage worse, and on the next tick."""
        loss = half_spread + price * self.slippage_percent / 100
        return against(side, price + loss if side == "buy" else price - loss)


def tick_of(price: Decimal) -> Decimal:
    """Give the tick: a cent, or a hundredth of one below a dollar (SEC Rule 612)."""
    return CENT if price >= 1 else FINE_TICK


def against(side: Side, price: Decimal) -> Decimal:
    """Round to the tick against whoever trades: up for a buy, down for a sell, and never down to zero."""
    return max(price.quantize(tick_of(price), ROUND_CEILING if side == "buy" else ROUND_FLOOR), FINE_TICK)


def in_favour(side: Side, price: Decimal) -> Decimal:
    """Round a limit to the tick without making it worse: down for a buy, up for a sell."""
    return price.quantize(tick_of(price), ROUND_FLOOR if side == "buy" else ROUND_CEILING)


def nearest(price: Decimal) -> Decimal:
    """Round to the nearest tick."""
    return price.quantize(tick_of(price), ROUND_HALF_EVEN)


def decimal(price: float) -> Decimal:
    """Turn a price of market data into a `Decimal`: the number that a person would read."""
    return Decimal(repr(price))

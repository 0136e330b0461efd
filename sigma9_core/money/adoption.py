"""Fills that stand for what no order of ours did: a foreign position made ours, a difference that was settled.

The broker's cash has them already: they move positions, and no cash.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from sigma9_core.models import ZERO, Fill, Position
from sigma9_core.money.ids import OrderIds

ADOPTED: Final = "adopted"
"""Its order id: no order of ours made it."""

Settled = Literal["settled", "in-lieu"]
"""Why: a person has said so, or a split has left a fraction of a share, for which cash is paid."""

_IDS: Final = OrderIds()


def adoption(position: Position, ts: datetime) -> Fill:
    """Make the fill that brings a position into the books at its cost; `ts` is the market time."""
    return Fill(
        exec_id=f"{ADOPTED}-{_IDS.new()}",
        order_id=ADOPTED,
        symbol=position.symbol,
        side="buy" if position.quantity > 0 else "sell",
        quantity=abs(position.quantity),
        price=position.average_cost,
        commission=ZERO,
        ts=ts,
    )


def settlement(symbol: str, difference: Decimal, price: Decimal, ts: datetime, why: Settled = "settled") -> Fill:
    """Make the fill that brings the books to what the broker has; `difference` is what they lack of it."""
    return Fill(
        exec_id=f"{why}-{_IDS.new()}",
        order_id=ADOPTED,
        symbol=symbol,
        side="buy" if difference > 0 else "sell",
        quantity=abs(difference),
        price=price,
        commission=ZERO,
        ts=ts,
    )

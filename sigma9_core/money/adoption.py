"""The fill that stands for a foreign position made ours: the broker's cash has paid for it already."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sigma9_core.models import ZERO, Fill, Position
from sigma9_core.money.ids import OrderIds

ADOPTED: Final = "adopted"
"""Its order id: no order of ours made it."""

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

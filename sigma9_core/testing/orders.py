"""Orders for tests: requests from plain numbers, and the gate's approval without a gate."""

from __future__ import annotations

import itertools
from datetime import datetime
from decimal import Decimal
from typing import Any

from sigma9_core.clock import EPOCH
from sigma9_core.models import _APPROVAL, ApprovedOrder, OrderRequest, Side

_NUMBERS = ("limit_price", "stop_price", "trail_amount", "trail_percent")
_count = itertools.count(1)


def request(symbol: str, side: Side, quantity: float | str, **more: Any) -> OrderRequest:
    """Build a request; prices may be given as text or numbers."""
    for name in _NUMBERS:
        if more.get(name) is not None:
            more[name] = Decimal(str(more[name]))
    return OrderRequest(symbol=symbol, side=side, quantity=Decimal(str(quantity)), **more)


def approve(request: OrderRequest, order_id: str | None = None, *, at: datetime | None = None) -> ApprovedOrder:
    """Approve a request as the risk gate does; without an id it gets one that no other order has."""
    order_id = order_id or f"test-{next(_count)}"
    return ApprovedOrder(order_id, request, (), at or EPOCH, seal=_APPROVAL)

"""Our orders by id: all that work, and the newest that have ended.

What works is asked for with every decision, so it is found without a walk over what has ended. An order stands in
one of two places; it moves by what it says of itself. Back it goes by being put in anew: what has ended may turn
out to work.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from itertools import chain, islice

from sigma9_core.money.orders import Order


class OrderBook(MutableMapping[str, Order]):
    """Every working order, oldest first, and the `kept` newest ended ones."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._working: dict[str, Order] = {}
        """Every order that works, and those that have ended since the last look."""
        self._ended: dict[str, Order] = {}

    def working(self) -> list[Order]:
        """List the working orders, oldest first; one that has come back stands behind them."""
        working = [order for order in self._working.values() if order.working]
        if len(working) < len(self._working):
            self._ended |= {name: order for name, order in self._working.items() if not order.working}
            self._working = {order.order_id: order for order in working}
            for name in [*islice(self._ended, max(0, len(self._ended) - self._kept))]:
                del self._ended[name]
        return working

    def __getitem__(self, order_id: str) -> Order:
        order = self._working.get(order_id)
        return self._ended[order_id] if order is None else order

    def __setitem__(self, order_id: str, order: Order) -> None:
        self._ended.pop(order_id, None)
        self._working[order_id] = order

    def __delitem__(self, order_id: str) -> None:
        if self._working.pop(order_id, None) is None:
            del self._ended[order_id]

    def __contains__(self, order_id: object) -> bool:
        return order_id in self._working or order_id in self._ended

    def __iter__(self) -> Iterator[str]:
        return chain(tuple(self._ended), tuple(self._working))

    def __len__(self) -> int:
        return len(self._ended) + len(self._working)


__all__ = ["OrderBook"]

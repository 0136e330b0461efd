"""How much working orders may still move a position: reservations, with one-cancels-all groups counted once.

A group can fill one leg only, so it counts as its largest remaining leg. The legs that wait for a parent entry
close what the parent has yet to open, so the parent's remaining quantity does not count against the position.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from sigma9_core.contracts import RiskView
from sigma9_core.models import ZERO, Intent, OrderView, Side


def remaining(order: OrderView) -> Decimal:
    """Give the quantity that may still fill."""
    left = order.quantity - order.filled_quantity
    return max(ZERO, left)  # several rules ask it of every working order: max() takes twice as long


def reserved(orders: Iterable[OrderView], symbol: str, side: Side) -> Decimal:
    """Give the most that working orders may still trade in a symbol on one side."""
    alone = ZERO
    groups: dict[str, Decimal] = {}
    for order in orders:
        if order.symbol != symbol or order.side != side:
            continue
        left = remaining(order)
        if order.oca_group is None:
            alone += left
        else:
            groups[order.oca_group] = max(groups.get(order.oca_group, ZERO), left)
    return alone + sum(groups.values()) if groups else alone


def held(symbol: str, view: RiskView) -> Decimal:
    """Give the net position in a symbol, negative when short."""
    position = view.positions.get(symbol)
    return ZERO if position is None else position.quantity


def closable(
    symbol: str, side: Side, view: RiskView, *, oca_group: str | None = None, parent_id: str | None = None
) -> Decimal:
    """Give how much an exit on `side` may still close, beside the exits that work already.

    An exit of the same one-cancels-all group replaces no capacity: it fills instead of its group. An exit whose
    parent entry still works may also close what that entry has yet to fill.
    """
    capacity = held(symbol, view) if side == "sell" else -held(symbol, view)
    capacity = max(capacity, ZERO)
    waiting: dict[str, Decimal] = {}
    legs: dict[str, tuple[Decimal, str | None]] = {}
    for order in view.working:
        if order.symbol != symbol:
            continue
        if order.side != side:
            waiting[order.order_id] = max(waiting.get(order.order_id, ZERO), remaining(order))
        elif is_exit(view.intents.get(order.order_id)) and (oca_group is None or order.oca_group != oca_group):
            # The group and the lone order share one name space: a group can't be called like an order's id.
            key = order.oca_group or order.order_id
            before, parent = legs.get(key, (ZERO, None))
            legs[key] = (max(before, remaining(order)), parent or order.parent_id)
    for left, parent in legs.values():
        later = min(left, waiting.get(parent, ZERO)) if parent is not None else ZERO
        if parent is not None and later:
            waiting[parent] -= later
        capacity -= left - later
    if parent_id is not None:
        capacity += waiting.get(parent_id, ZERO)
    return max(capacity, ZERO)


def is_exit(intent: Intent | None) -> bool:
    """Tell whether an order of this intent shrinks a position; a foreign order has no intent."""
    return intent in ("reduce", "kill")

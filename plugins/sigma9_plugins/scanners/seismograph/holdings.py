"""What the trigger knows of its own orders and positions, learnt from trade events alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final

from sigma9_core.events import TradeEvent
from sigma9_core.models import ZERO, OrderStatus
from sigma9_plugins.scanners.seismograph.double_tap import Exit

ENDED: Final = frozenset(
    (
        OrderStatus.FILLED,
        OrderStatus.CANCELLED,
        OrderStatus.REJECTED,
        OrderStatus.EXPIRED,
        OrderStatus.BUSTED,
        OrderStatus.RISK_REJECTED,
    )
)
ORDERS_KEPT: Final = 32
"""Orders of one symbol that are remembered, the newest ones."""


@dataclass(slots=True)
class Step:
    """What a trade event has changed."""

    placed: bool = False
    """An entry is heard of for the first time."""
    bought: bool = False
    """An entry was filled, in part or in whole."""
    ended: OrderStatus | None = None
    """How an entry ended that nothing was filled of."""
    left: Exit | None = None
    """The position is closed."""


@dataclass(slots=True)
class _Known:
    """What the last event of an order said."""

    filled: Decimal = ZERO
    worth: Decimal = ZERO
    ended: bool = False


@dataclass(slots=True)
class Holding:
    """The position and the working entry in one symbol; long only, as the strategy is."""

    quantity: Decimal = ZERO
    entry_id: str | None = None
    """The working entry."""
    quiet_until: datetime | None = None
    """No signal before this market time: one is under way, or has just been refused."""
    _orders: dict[str, _Known] = field(default_factory=dict)
    """By order id, so that an event that comes twice counts once."""
    _bought: Decimal = ZERO
    _profit: Decimal = ZERO
    _killed: bool = False

    def busy(self, now: datetime) -> bool:
        """Tell whether a position is held, an entry works, or a signal has just been given."""
        if self.quantity > 0 or self.entry_id is not None:
            return True
        return self.quiet_until is not None and now < self.quiet_until

    def take(self, event: TradeEvent, ts: datetime) -> Step:
        """Take one step of an order, an entry's or an exit's; `ts` is the market time."""
        step = Step()
        entry = event.side == "buy"
        step.placed = entry and event.order_id not in self._orders
        known = self._known(event.order_id)
        change = event.filled_quantity - known.filled
        if change:
            worth = event.filled_quantity * (event.average_price or event.last_price or ZERO)
            if entry:
                self.quantity += change
                self._bought += change
                self._profit -= worth - known.worth
                step.bought = change > 0
            elif self.quantity > 0 or change < 0:  # what else is sold was bought by nobody that we heard of
                self.quantity = max(self.quantity - change, ZERO)
                self._profit += worth - known.worth
                self._killed = self._killed or event.source == "kill_switch"
                step.left = self._leave(ts)
            known.filled, known.worth = event.filled_quantity, worth
        # A fill may follow the end, which stays the end; what is accepted after it works again.
        known.ended = event.event != OrderStatus.ACCEPTED and (known.ended or event.event in ENDED)
        if entry and not known.ended:
            self.entry_id = event.order_id
        elif entry and self.entry_id in (event.order_id, None):
            self.entry_id = None
            step.ended = event.event if known.filled == 0 else None
        return step

    def _leave(self, ts: datetime) -> Exit | None:
        """Give the end of the position once nothing of it is left."""
        if self.quantity:
            return None
        leave = Exit(ts, self._bought, self._profit, self._killed)
        self._bought = self._profit = ZERO
        self._killed = False
        return leave

    def _known(self, order_id: str) -> _Known:
        known = self._orders.get(order_id)
        if known is None:
            known = self._orders[order_id] = _Known()
            if len(self._orders) > ORDERS_KEPT:
                del self._orders[next(iter(self._orders))]
        return known

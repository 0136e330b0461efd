"""The double tap: the one re-entry in a symbol and day, at a new high after the first exit.

IDLE ─first exit→ COOLDOWN ─3 min→ WATCHING ─price > VWAP→ TRIGGERED ─fill→ ENTERED ─exit→ COMPLETED
          └─ a kill, a loss, nothing to halve ──────────────┴─ cancelled by somebody ─→ CANCELLED
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from sigma9_plugins.scanners.seismograph.trigger_config import DoubleTapConfig

CENT = Decimal("0.01")
MOST_REFUSALS = 5
"""Refusals of the re-entry's order that end it for the day."""


class Tap(StrEnum):
    """Where the re-entry stands."""

    IDLE = "idle"
    COOLDOWN = "cooldown"
    WATCHING = "watching"
    TRIGGERED = "triggered"
    ENTERED = "entered"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a position, as its fills tell it."""

    at: datetime
    quantity: Decimal
    """What the entry had filled."""
    profit: Decimal
    """Sold less bought, commissions left out; 0 and less counts as a loss."""
    killed: bool
    """A kill switch closed it."""


@dataclass(frozen=True, slots=True)
class Order:
    """The stop-limit order of a re-entry."""

    stop_price: Decimal
    limit_price: Decimal
    quantity: Decimal
    """At most this."""


class DoubleTap:
    """The state of one symbol's re-entry on one day; everything that happens to it is a method."""

    __slots__ = ("_config", "high", "quantity", "reason", "refusals", "state", "until")

    def __init__(self, config: DoubleTapConfig) -> None:
        self._config = config
        self.state = Tap.IDLE
        self.until: datetime | None = None
        """The end of the cool-down."""
        self.high: float | None = None
        """The high of the day, frozen at the end of the cool-down."""
        self.quantity = Decimal(0)
        self.refusals = 0
        self.reason: str | None = None
        """Why it was cancelled."""

    def exited(self, leave: Exit) -> None:
        """Take the end of a position: the first one begins the cool-down, the second one ends it all."""
        if self.state in (Tap.TRIGGERED, Tap.ENTERED):
            self.state = Tap.COMPLETED
            return
        if self.state is not Tap.IDLE:
            return
        self.quantity = (leave.quantity * self._config.size_percent / 100).to_integral_value("ROUND_FLOOR")
        if leave.killed:
            self.cancel("a kill switch closed the position")
        elif not self._config.enabled:
            self.cancel("the double tap is switched off")
        elif leave.profit <= 0 and not self._config.after_loss:
            self.cancel("the first position was closed with a loss")
        elif self.quantity < 1:
            self.cancel("the first position was too small to be halved")
        else:
            self.state = Tap.COOLDOWN
            self.until = leave.at + timedelta(seconds=self._config.wait_seconds)

    def tick(self, now: datetime, high_of_day: float) -> None:
        """End the cool-down at its time and freeze the high of the day as it was then, once there is one."""
        known = math.isfinite(high_of_day)
        if self.state is Tap.COOLDOWN and self.until is not None and now > self.until and known:
            self.state = Tap.WATCHING
            self.high = high_of_day

    def arm(self, price: float, vwap: float | None, ask: float | None = None) -> Order | None:
        """Give the order once the price is above the VWAP, while price and ask are still below its stop.

        A stop at or below the market is no stop: brokers refuse it, or fill it as a market order.
        """
        if self.state is not Tap.WATCHING or self.high is None or vwap is None or price <= vwap:
            return None
        stop = _up(Decimal(str(self.high))) + self._config.offset
        limit = _up(stop * (1 + Decimal(str(self._config.limit_percent)) / 100))
        if Decimal(str(max(price, ask or price))) >= stop:
            return None
        self.state = Tap.TRIGGERED
        return Order(stop, limit, self.quantity)

    def placed(self) -> None:
        """Take an entry that was sent after the first exit: it is the re-entry, also one from before a restart."""
        if self.state in (Tap.COOLDOWN, Tap.WATCHING):
            self.state = Tap.TRIGGERED

    def filled(self) -> None:
        """Take a fill of the re-entry."""
        if self.state is Tap.TRIGGERED:
            self.state = Tap.ENTERED

    def refused(self) -> None:
        """Take the refusal of the order: it may be tried again, some times."""
        if self.state is not Tap.TRIGGERED:
            return
        self.refusals += 1
        if self.refusals >= MOST_REFUSALS:
            self.cancel(f"its order was refused {self.refusals} times")
        else:  # after a restart the high has still to be frozen
            self.state = Tap.COOLDOWN if self.high is None else Tap.WATCHING

    def cancel(self, reason: str) -> None:
        """End it for the day."""
        if self.state not in (Tap.COMPLETED, Tap.CANCELLED):
            self.state = Tap.CANCELLED
            self.reason = reason


def _up(price: Decimal) -> Decimal:
    """Round up to a cent."""
    return Decimal(math.ceil(price / CENT)) * CENT

"""One position of ours, built from its fills: quantity, cost, result, and the round trip that it is part of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Context, Decimal, localcontext
from typing import Final

from sigma9_core.models import ZERO, ClosedTrade, Fill

EXACT: Final = Context(prec=60)
"""Sums of money are exact in it; what is divided is rounded to `GRAIN`, and the rest stays in the position."""
GRAIN: Final = Decimal("1e-8")


@dataclass(frozen=True, slots=True)
class Applied:
    """What one fill did to the position."""

    fill: Fill
    strategy: str | None
    """Who owns the position (or owned it, where the fill closed it)."""
    realized: Decimal
    """What it added to the realised result, its own commission included."""
    before: Decimal
    after: Decimal
    """The net quantity before and after it."""
    closed: ClosedTrade | None = None
    """The round trip that it ended."""

    @property
    def opened(self) -> bool:
        """Tell whether it began a position: from flat, or by a flip."""
        return self.after != ZERO and (self.before == ZERO or self.flipped)

    @property
    def grown(self) -> bool:
        """Tell whether there is more of the position than before, or a new one."""
        return (self.after - self.before) * self.after > ZERO

    @property
    def flipped(self) -> bool:
        """Tell whether the position went through zero."""
        return self.before * self.after < ZERO


@dataclass(slots=True)
class Holding:
    """A net position and its round trip so far; costs exclude commissions, results include them."""

    symbol: str
    quantity: Decimal = ZERO
    cost: Decimal = ZERO
    """Of what is held now: quantity × average cost, negative when short."""
    realized: Decimal = ZERO
    """Since the position was opened, after fees."""
    total: Decimal = ZERO
    """The realised result of all its round trips, after fees."""
    strategy: str | None = None
    opened_at: datetime | None = None
    _fees: Decimal = ZERO
    _entered: Decimal = ZERO
    _entry_cost: Decimal = ZERO

    @property
    def average_cost(self) -> Decimal:
        """Give the average price of what is held, zero when flat."""
        return (self.cost / self.quantity) if self.quantity else ZERO

    def take(self, fill: Fill, strategy: str | None) -> Applied:
        """Apply a fill: what is against the position closes, the rest opens."""
        with localcontext(EXACT):
            sign = 1 if fill.side == "buy" else -1
            before = self.quantity
            closing = min(fill.quantity, abs(before)) if before * sign < 0 else ZERO
            opening = fill.quantity - closing
            fee = ZERO if not closing else fill.commission
            if closing and opening:
                fee = (fill.commission * closing / fill.quantity).quantize(GRAIN)
            total = self.total
            trade = None
            owner = self.strategy or strategy
            if closing:
                trade = self._close(fill, closing, fee)
            if opening:
                if self.quantity == ZERO:
                    self.strategy, self.opened_at = strategy, fill.ts
                    owner = strategy
                self.strategy = self.strategy or strategy
                self._open(fill.price, opening, sign, fill.commission - fee)
            return Applied(fill, owner, self.total - total, before, self.quantity, trade)

    def split(self, new: Decimal, old: Decimal) -> None:
        """Give `new` shares for `old` ones; the cost stays what it was."""
        with localcontext(EXACT):
            self.quantity = _share(self.quantity * new, old)
            self._entered = _share(self._entered * new, old)

    def _close(self, fill: Fill, closing: Decimal, fee: Decimal) -> ClosedTrade | None:
        sign = 1 if self.quantity > 0 else -1
        cost = self.cost if closing == abs(self.quantity) else _share(self.cost * closing, abs(self.quantity))
        self.cost -= cost
        self.quantity -= closing * sign
        self._book(closing * fill.price * sign - cost, fee)
        if self.quantity or self.opened_at is None:
            return None
        percent = self.realized / self._entry_cost * 100 if self._entry_cost else ZERO
        trade = ClosedTrade(
            symbol=self.symbol,
            strategy=self.strategy,
            quantity=self._entered * sign,
            entry_cost=self._entry_cost,
            result=self.realized,
            percent=percent.quantize(GRAIN),
            fees=self._fees,
            opened_at=self.opened_at,
            closed_at=fill.ts,
        )
        self.realized = self._fees = self._entered = self._entry_cost = ZERO
        self.strategy = self.opened_at = None
        return trade

    def _open(self, price: Decimal, quantity: Decimal, sign: int, fee: Decimal) -> None:
        self.quantity += quantity * sign
        self.cost += quantity * price * sign
        self._entered += quantity
        self._entry_cost += quantity * price
        self._book(ZERO, fee)

    def _book(self, result: Decimal, fee: Decimal) -> None:
        self.realized += result - fee
        self.total += result - fee
        self._fees += fee


def parted(fill: Fill, quantity: Decimal | None) -> tuple[Fill, Fill | None]:
    """Part a fill in what is taken back of it, by default all, and what stands, which keeps the commission."""
    if quantity is None or quantity >= fill.quantity:
        return fill, None
    taken = replace(fill, quantity=quantity, commission=ZERO)
    return taken, replace(fill, quantity=EXACT.subtract(fill.quantity, quantity))


def _share(product: Decimal, divisor: Decimal) -> Decimal:
    """Divide, rounded to the grain; what comes out whole is written as a whole number."""
    quotient = (product / divisor).quantize(GRAIN)
    whole = quotient.to_integral_value()
    return whole if whole == quotient else quotient

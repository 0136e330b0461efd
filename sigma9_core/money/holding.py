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
    def moved(self) -> bool:
        """Tell whether the position is another one than before; a corrected price moves none."""
        return self.after != self.before

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
    trips: int = 0
    """How many of its round trips have ended."""
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
            closing = _closing(fill, before)
            opening = fill.quantity - closing
            fee = _fee(fill, closing, fill.commission)
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

    def charge(self, fill: Fill, before: Decimal, trip: int, commission: Decimal) -> list[tuple[int, Decimal]]:
        """Take another commission of a fill that came when `before` were held and `trip` round trips had ended.

        Give what comes on top for each of its round trips that has ended by now; the present one has it.
        """
        over: list[tuple[int, Decimal]] = []
        with localcontext(EXACT):
            closing = _closing(fill, before)
            flipped = ZERO < closing < fill.quantity
            ended = _fee(fill, closing, commission) - _fee(fill, closing, fill.commission)
            begun = commission - fill.commission - ended
            for number, more in ((trip, ended), (trip + flipped, begun)):
                self.total -= more
                if number == self.trips:
                    self.realized -= more
                    self._fees += more
                elif more:
                    over.append((number, more))
        return over

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
        trade = ClosedTrade(
            symbol=self.symbol,
            strategy=self.strategy,
            quantity=self._entered * sign,
            entry_cost=self._entry_cost,
            result=self.realized,
            percent=_percent(self.realized, self._entry_cost),
            fees=self._fees,
            opened_at=self.opened_at,
            closed_at=fill.ts,
        )
        self.trips += 1
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


def charged(trade: ClosedTrade, more: Decimal) -> ClosedTrade:
    """Give a round trip that has cost so much more."""
    with localcontext(EXACT):
        result = trade.result - more
        return replace(trade, result=result, fees=trade.fees + more, percent=_percent(result, trade.entry_cost))


def _percent(result: Decimal, cost: Decimal) -> Decimal:
    return (result / cost * 100 if cost else ZERO).quantize(GRAIN)


def _closing(fill: Fill, before: Decimal) -> Decimal:
    """Give how much of a fill goes against what was held before it."""
    against = before < ZERO if fill.side == "buy" else before > ZERO
    return min(fill.quantity, abs(before)) if against else ZERO


def _fee(fill: Fill, closing: Decimal, commission: Decimal) -> Decimal:
    """Give the share of its commission that falls on what it closes."""
    if not closing or closing == fill.quantity:
        return commission if closing else ZERO
    return (commission * closing / fill.quantity).quantize(GRAIN)


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

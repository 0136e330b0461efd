"""The books that a journal's fills make: positions, cash and results, worked out anew from the rows alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation, localcontext
from typing import Any, Final

from sigma9_core.errors import StateError
from sigma9_core.models import ZERO, Fill
from sigma9_core.money import rows
from sigma9_core.money.adoption import ADOPTED
from sigma9_core.money.days import Days
from sigma9_core.money.history import SPLIT
from sigma9_core.money.holding import EXACT, Applied, Holding
from sigma9_core.money.ledger import Ledger

Row = Mapping[str, Any]
Tell = Callable[[str], None]

NOTES: Final = ("opening", "transfer", "bust", SPLIT, "days", "commission")
"""The notes that the books are made of, or can be compared with."""
NEAR: Final = Decimal("0.000001")


@dataclass(slots=True)
class Books:
    """Takes fills and notes in the order of their numbers; every disagreement is told as one sentence."""

    tell: Tell
    watched: Collection[str] = frozenset()
    """Symbols of which an execution is taken back or charged anew at some time: their fills are kept."""
    wrong: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The executions that each correction takes the place of."""
    opening: Decimal | None = None
    transfers: Decimal = ZERO
    traded: Decimal = ZERO
    """What fills have done to cash."""
    fees: Decimal = ZERO
    holdings: dict[str, Holding] = field(default_factory=dict)
    realized: Decimal = ZERO
    day: str | None = None
    _ledgers: dict[str, Ledger] = field(default_factory=dict)
    """Of the symbols that are watched."""
    _symbols: dict[str, str] = field(default_factory=dict)
    """The symbols of their executions."""
    _gone: set[str] = field(default_factory=set)
    """Executions that were corrected."""
    _splits: dict[tuple[str, str], int] = field(default_factory=dict)
    _opened: int = 0
    """The row of the opening."""

    @property
    def cash(self) -> Decimal | None:
        """Give the cash, None where the books were never opened."""
        if self.opening is None:
            return None
        with localcontext(EXACT):
            return self.opening + self.traded + self.transfers

    def positions(self) -> Iterator[dict[str, Any]]:
        """Give what is held, by symbol, each as a row of a table."""
        for symbol, holding in sorted(self.holdings.items()):
            if holding.quantity:
                yield {
                    "symbol": symbol,
                    "quantity": holding.quantity,
                    "average_cost": holding.average_cost,
                    "realized_pnl": holding.realized,
                    "strategy": holding.strategy,
                }

    def fill(self, row: Row) -> None:
        """Count a fill."""
        try:
            record = rows.fill(row)  # type: ignore[arg-type]
            fill = record.fill
            numbers = (fill.quantity, fill.price, fill.commission)
            sane = all(number.is_finite() for number in numbers) and fill.quantity > 0 and fill.price >= 0
            sane = sane and fill.side in ("buy", "sell")
        except (ValueError, TypeError, InvalidOperation):
            sane = False
        if not sane:
            self.tell(f"the fill {row['exec_id']} of order {row['order_id']} (row {row['n']}) can't be counted")
            return
        with localcontext(EXACT):
            self.realized += self._take(fill, record.strategy).realized
            self.fees += fill.commission
            if fill.order_id != ADOPTED:  # its owner had paid for it before
                self.traded += paid(fill)

    def _take(self, fill: Fill, strategy: str | None) -> Applied:
        if fill.symbol not in self.watched:
            return self._holding(fill.symbol).take(fill, strategy)
        ledger = self._ledgers.get(fill.symbol)
        if ledger is None:
            ledger = self._ledgers[fill.symbol] = Ledger(fill.symbol)
        if fill.exec_id in self._gone:
            self.tell(f"the fill {fill.exec_id} of order {fill.order_id} counts after it was corrected")
        self._symbols[fill.exec_id] = fill.symbol
        wrong = [each.fill for name in self.wrong.get(fill.exec_id, ()) if (each := ledger.booked(name))]
        if wrong:
            applied = ledger.correct({each.exec_id for each in wrong}, fill, strategy)
        else:
            applied = ledger.take(fill, strategy)
        self.holdings[fill.symbol] = ledger.holding
        with localcontext(EXACT):
            self.fees -= sum((each.commission for each in wrong), ZERO)
            self.traded -= sum(map(paid, wrong), ZERO)
        return applied

    def note(self, row: Row) -> None:
        """Take a note into account, or compare it with the books."""
        try:
            body = json.loads(row["body"])
            take = {"opening": self._open, "transfer": self._transfer, "bust": self._bust, SPLIT: self._split}
            take["commission"] = self._commission
            take.get(row["kind"], self._compare)(row["n"], body)
        except (ValueError, TypeError, KeyError, AttributeError, InvalidOperation, StateError) as error:
            self.tell(f"the note {row['n']} ({row['kind']}) can't be read: {error or type(error).__name__}")

    # --- notes ------------------------------------------------------------------------------------------------

    def _open(self, n: int, body: Mapping[str, Any]) -> None:
        cash = _amount(body["cash"])
        if self.opening is not None:
            self.tell(f"the notes {self._opened} and {n} both open the books, with {self.opening} and {cash}")
        self.opening, self._opened = cash, n

    def _transfer(self, _n: int, body: Mapping[str, Any]) -> None:
        with localcontext(EXACT):
            self.transfers += _amount(body["amount"])

    def _bust(self, n: int, body: Mapping[str, Any]) -> None:
        exec_id, ledger = body["exec_id"], self._ledger_of(body["exec_id"])
        if "by" in body:
            self._corrected(n, exec_id, body["by"])
            return
        before = ZERO if ledger is None else ledger.holding.total
        part = _amount(body["quantity"]) if "quantity" in body else None
        taken = None if ledger is None else ledger.bust(exec_id, part)
        if ledger is None or taken is None:
            order = body["order_id"]
            self.tell(
                f"the note {n} takes back the fill {exec_id} of order {order}, which is not held at that time"
            )
            return
        self.holdings[ledger.symbol] = ledger.holding
        with localcontext(EXACT):
            self.realized += ledger.holding.total - before
            self.fees -= taken.commission
            self.traded -= ZERO if taken.order_id == ADOPTED else paid(taken)

    def _corrected(self, n: int, exec_id: str, by: str) -> None:
        """Look at a correction, which was booked with its fill: that one is there, and the other is not."""
        self._gone.add(exec_id)
        if by not in self._symbols:
            self.tell(f"the note {n} says that the fill {exec_id} was corrected by {by}, which is not there")
        elif (ledger := self._ledger_of(exec_id)) is not None and ledger.booked(exec_id) is not None:
            self.tell(f"the note {n} says that the fill {exec_id} was corrected by {by}, and it counts after that")

    def _commission(self, n: int, body: Mapping[str, Any]) -> None:
        exec_id, amount = body["exec_id"], _amount(body["amount"])
        ledger = self._ledger_of(exec_id)
        booked = None if ledger is None else ledger.booked(exec_id)
        if ledger is None or booked is None:
            self.tell(f"the note {n} tells the commission of the fill {exec_id}, which is not held at that time")
            return
        ledger.charge(exec_id, amount)
        with localcontext(EXACT):
            more = amount - booked.fill.commission
            self.realized -= more
            self.fees += more
            self.traded -= more

    def _ledger_of(self, exec_id: str) -> Ledger | None:
        return self._ledgers.get(self._symbols.get(exec_id, ""))

    def _split(self, n: int, body: Mapping[str, Any]) -> None:
        symbol, new, old = body["symbol"], _amount(body["new"]), _amount(body["old"])
        first = self._splits.setdefault((symbol, body["at"]), n)
        if first != n:
            self.tell(f"the notes {first} and {n} both tell the split of {symbol} at {body['at']}")
        kept = self._ledgers.get(symbol) or self.holdings.get(symbol)
        if kept is not None:
            kept.split(new, old)

    def _compare(self, n: int, body: Mapping[str, Any]) -> None:
        memory = body["portfolio"]
        days = Days()
        days.restore(memory)
        for symbol, (price, _) in memory["marks"].items():
            _amount(price)
            if not self._holding(symbol).quantity:
                self.tell(
                    f"the note {n} (days) has a price of {symbol} as held, and the fills hold none of it then"
                )
        if days.day is None or days.day == self.day:
            return
        self.day = days.day
        start = days.realized_start
        if start is not None and abs(start - self.realized) > NEAR:
            self.tell(
                f"the note {n} (days) begins {days.day} with a realised result of {start}, "
                f"the fills before it make {self.realized}"
            )

    def _holding(self, symbol: str) -> Holding:
        found = self.holdings.get(symbol)
        if found is None:
            found = self.holdings[symbol] = Holding(symbol)
        return found


def paid(fill: Fill) -> Decimal:
    """Give what a fill does to cash."""
    with localcontext(EXACT):
        amount = fill.quantity * fill.price
        return (amount if fill.side == "sell" else -amount) - fill.commission


def _amount(text: object) -> Decimal:
    number = Decimal(str(text))
    if not number.is_finite():
        raise ValueError(f"{text} is no amount")
    return number

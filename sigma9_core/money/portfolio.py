"""The portfolio: positions, cash and results, built from fills alone and valued at the newest marks.

    cash + cost of what is held = what was put in + realised result        (to the last digit)

Average costs exclude commissions; results and cash include them. Only what our own fills did is a result of ours:
foreign positions are shown and are part of equity, but their ups and downs trip no limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation, localcontext
from types import MappingProxyType
from typing import Any

from sigma9_core.clock import Clock, rfc3339
from sigma9_core.contracts import BrokerAccount, BrokerPosition, Mark, RiskView, Submission
from sigma9_core.errors import StateError
from sigma9_core.models import (
    CURRENCY,
    ZERO,
    Account,
    ClosedTrade,
    Fill,
    Intent,
    OrderView,
    Position,
    Session,
    Slice,
)
from sigma9_core.money.days import Days
from sigma9_core.money.holding import EXACT, Applied, Holding
from sigma9_core.money.ledger import Ledger
from sigma9_core.money.marks import MarkBook


class Portfolio:
    """Holds the books of one account in one currency; on the money lane."""

    def __init__(
        self,
        clock: Clock,
        currency: str = CURRENCY,
        *,
        absurd_percent: float = 20.0,
        absurd_repeats: int = 3,
        fresh_seconds: float = 60.0,
    ) -> None:
        """Store.

        A price more than `absurd_percent` off the last one is believed at its `absurd_repeats`-th time; losses are
        judged while every position of ours has a mark that is at most `fresh_seconds` of market time old.
        """
        self.currency = currency
        self.cash = ZERO
        self.put_in = ZERO
        """Opening cash and transfers: everything in cash that no fill explains."""
        self.fees = ZERO
        """All commissions so far."""
        self._clock = clock
        self._fresh = timedelta(seconds=fresh_seconds)
        self._marks = MarkBook(absurd_percent, absurd_repeats)
        self._days = Days()
        self._ledgers: dict[str, Ledger] = {}
        self._held: dict[str, Holding] = {}
        """Those that are not flat."""
        self._executions: dict[str, str] = {}
        """The symbol of each execution that was counted, or that a counted one has corrected."""
        self._realized = ZERO
        self._trades: list[ClosedTrade] = []
        self._trades_shown: tuple[ClosedTrade, ...] | None = ()
        self._foreign: dict[str, BrokerPosition] = {}
        self._protected: set[str] = set()
        self._funded = False
        self._broker: BrokerAccount | None = None
        self._bought_with = ZERO
        self._positions: dict[str, Position] = {}
        self._shown: Mapping[str, Position] | None = None
        self._account: Account | None = None

    # --- what moves it ----------------------------------------------------------------------------------------

    def apply(self, fill: Fill, strategy: str | None, *, recovered: bool = True) -> Applied | None:
        """Count an execution; None where its `exec_id` was counted before, or one that corrects it.

        One that corrects others takes their place among the fills, in one step: it is as if it had come instead.
        One that was `recovered` belongs to the day of its time; one that is told as it happens counts today.
        Raise ValueError for a fill whose numbers make no sense: nothing is changed.
        """
        if fill.exec_id in self._executions:
            return None
        _check(fill)
        late = recovered and self._days.day_opened is not None and fill.ts < self._days.day_opened
        result = self._result() if late else ZERO
        ledger = self._ledgers.get(fill.symbol)
        if ledger is None:
            ledger = self._ledgers[fill.symbol] = Ledger(fill.symbol)
        wrong = [each.fill for name in fill.corrects if (each := ledger.booked(name)) is not None]
        if wrong:
            applied = ledger.correct({each.exec_id for each in wrong}, fill, strategy)
            self._trades_of(ledger)
        else:
            applied = ledger.take(fill, strategy)
        with localcontext(EXACT):
            self.cash += _paid(fill) - sum(map(_paid, wrong), ZERO)
            self.fees += fill.commission - sum((each.commission for each in wrong), ZERO)
            self._realized += applied.realized
        self._executions[fill.exec_id] = fill.symbol
        for name in fill.corrects:
            self._executions.setdefault(name, fill.symbol)
        if applied.closed is not None:
            self._trades.append(applied.closed)
            self._trades_shown = None
        self._changed(fill.symbol)
        if late:
            self._days.learn(fill.ts, self._result() - result, applied.realized)
        self._reach()
        return applied

    def counted(self, exec_id: str) -> bool:
        """Tell whether an execution was counted, be it that it was taken back since."""
        return exec_id in self._executions

    def standing(self, exec_id: str) -> Fill | None:
        """Give what stands of an execution: nothing where it was never counted, or was taken back."""
        ledger = self._ledgers.get(self._executions.get(exec_id, ""))
        booked = None if ledger is None else ledger.booked(exec_id)
        return None if booked is None else booked.fill

    def bust(self, exec_id: str, quantity: Decimal | None = None) -> bool:
        """Take back an execution that the exchange has cancelled, or so much of it; False where none of it stands.

        The symbol's books are made again from the fills that stand, so that costs and results are as if it had
        never been. Its id stays known: should the fill be told again, it is ignored.
        """
        ledger = self._ledgers.get(self._executions.get(exec_id, ""))
        before = ZERO if ledger is None else ledger.holding.total
        taken = None if ledger is None else ledger.bust(exec_id, quantity)
        if ledger is None or taken is None:
            return False
        self._trades_of(ledger)
        with localcontext(EXACT):
            self.cash -= _paid(taken)
            self.fees -= taken.commission
            self._realized += ledger.holding.total - before
        self._changed(ledger.symbol)
        return True

    def commission(self, exec_id: str, amount: Decimal) -> Decimal:
        """Take the commission of an execution that was counted before; give what comes on top by it."""
        fill = self.standing(exec_id)
        if fill is None or fill.commission == amount:
            return ZERO
        _check(replace(fill, commission=amount))
        ledger = self._ledgers[fill.symbol]
        for old, new in ledger.charge(exec_id, amount):
            self._trades[self._place_of(old)] = new
            self._trades_shown = None
        with localcontext(EXACT):
            more = amount - fill.commission
            self.cash -= more
            self.fees += more
            self._realized -= more
        self._changed(fill.symbol)
        return more

    def _trades_of(self, ledger: Ledger) -> None:
        """Take the closed trades of a symbol whose books were made again."""
        trades = [trade for trade in self._trades if trade.symbol != ledger.symbol]
        self._trades = sorted((*trades, *ledger.trades), key=lambda trade: trade.closed_at)
        self._trades_shown = None

    def _place_of(self, trade: ClosedTrade) -> int:
        """Find a closed trade; the newest are the likeliest."""
        return next(n for n in range(len(self._trades) - 1, -1, -1) if self._trades[n] is trade)

    def adopt(self, fill: Fill, strategy: str | None) -> Applied | None:
        """Make a foreign position ours: a fill at its cost that its owner has paid for already.

        What it had won or lost before is no result of ours: the starting marks move with it.
        """
        before = self._result()
        applied = self.apply(fill, strategy)
        if applied is not None:
            self._foreign.pop(fill.symbol, None)
            self.transfer(_paid(fill).copy_negate())
            self._days.shift(self._result() - before)
            self._changed(fill.symbol)
        return applied

    def split(self, symbol: str, new: Decimal, old: Decimal = Decimal(1)) -> None:
        """Give `new` shares for `old` ones (2 for a 2:1 split, 1 and 10 for a reverse one); the cost stays.

        Foreign positions follow with the broker's next read-back; cash for fractions comes as a transfer.
        """
        if not (new.is_finite() and old.is_finite() and new > 0 and old > 0):
            raise ValueError(f"a split of {symbol} needs two numbers of shares above zero, not {new} for {old}")
        if symbol in self._ledgers:
            self._ledgers[symbol].split(new, old)
        self._marks.split(symbol, new, old)
        self._changed(symbol)

    def was_split(self, symbol: str) -> bool:
        """Tell whether a split is among what made the position."""
        return symbol in self._ledgers and self._ledgers[symbol].was_split

    def opened_by(self, symbol: str) -> list[Fill]:
        """Give the fills that have opened a position of ours, or added to it, oldest first."""
        return self._ledgers[symbol].opened_by() if symbol in self._ledgers else []

    def mark(self, data: Slice) -> None:
        """Take the newest prices: a trade's, else the middle of a sane quote, else a bar's close."""
        changed = self._marks.take(data)
        mine = [symbol for symbol in changed if symbol in self._held or symbol in self._foreign]
        for symbol in mine:
            self._changed(symbol)
        if mine:
            self._reach()

    def set_cash(self, amount: Decimal) -> None:
        """Set the cash, as it was opened with or as the broker has it; never a gain or a loss."""
        with localcontext(EXACT):
            difference = amount - self.cash
        self.transfer(difference)
        self._funded = True

    def transfer(self, amount: Decimal) -> None:
        """Count a deposit (or, negative, a withdrawal): it moves cash and equity, and no result."""
        with localcontext(EXACT):
            self.cash += amount
            self.put_in += amount
        self._account = None

    def set_account(self, account: BrokerAccount) -> None:
        """Take the account's name, mode and buying power as the broker gives them; its cash is for `set_cash`.

        Of one that is told in another currency than that of the books no amount is known.
        """
        self._broker = account
        self._bought_with = self._own_means()
        self._account = None

    def set_foreign(self, positions: Sequence[BrokerPosition]) -> None:
        """Take what the account holds that is not ours: shown and counted, never touched."""
        for symbol in {*self._foreign, *(position.symbol for position in positions)}:
            self._changed(symbol)
        self._foreign = {position.symbol: position for position in positions if position.quantity}

    def set_protected(self, symbol: str, protected: bool) -> None:
        """Say whether a stop that guards the position works at the broker."""
        if protected != (symbol in self._protected):
            (self._protected.add if protected else self._protected.discard)(symbol)
            self._changed(symbol)

    # --- days -------------------------------------------------------------------------------------------------

    def roll(self, session: Session) -> bool:
        """Begin a new session: its day, and with the first one of an ISO week the week, start from here.

        Call it before the session's first marks, so that a gap at the open belongs to the new day.
        """
        rolled = self._days.roll(session, self._result(), self.realized)
        if rolled:
            self._account = None
        return rolled

    def days_memory(self) -> dict[str, Any]:
        """Give what must survive a restart, as JSON: day and week marks, and the last prices of what is held."""
        marks = {}
        for symbol in self._held:
            mark = self._marks.get(symbol)
            if mark is not None:
                marks[symbol] = [str(mark.price), rfc3339(mark.ts)]
        return {**self._days.memory(), "marks": marks}

    def restore_days(self, memory: Mapping[str, Any]) -> None:
        """Take back what `days_memory` gave, once the journal's fills are applied; StateError where unreadable."""
        self._days.restore(memory)
        try:
            for symbol, (price, ts) in memory.get("marks", {}).items():
                self._marks.seed(symbol, Decimal(price), datetime.fromisoformat(ts))
                self._changed(symbol)
        except (ValueError, TypeError, AttributeError, InvalidOperation) as error:
            raise StateError(f"the remembered prices can't be read: {error}") from error
        self._account = None

    # --- what it shows ----------------------------------------------------------------------------------------

    @property
    def realized(self) -> Decimal:
        """Give the realised result since the beginning of the books, after fees."""
        return self._realized

    @property
    def cost(self) -> Decimal:
        """Give the cost of everything of ours that is held; short positions count negative."""
        with localcontext(EXACT):
            return sum((holding.cost for holding in self._held.values()), ZERO)

    @property
    def trades(self) -> tuple[ClosedTrade, ...]:
        """Give every closed round trip, oldest first."""
        if self._trades_shown is None:
            self._trades_shown = tuple(self._trades)
        return self._trades_shown

    def closed_trades(self, strategy: str | None) -> list[Decimal]:
        """Give the results of a strategy's round trips in percent of their cost, oldest first."""
        return [trade.percent for trade in self._trades if trade.strategy == strategy]

    def quantity(self, symbol: str) -> Decimal:
        """Give our own net quantity in a symbol; foreign shares are not in it."""
        ledger = self._ledgers.get(symbol)
        return ZERO if ledger is None else ledger.holding.quantity

    def position(self, symbol: str) -> Position:
        """Give the position in a symbol: ours, else the foreign one, else a flat one."""
        found = self._by_symbol().get(symbol)
        return found if found is not None else Position(symbol=symbol, quantity=ZERO, average_cost=ZERO)

    def positions(self) -> tuple[Position, ...]:
        """Give every position that is not flat, foreign ones included, by symbol."""
        return tuple(self._by_symbol().values())

    def mark_of(self, symbol: str) -> Mark | None:
        """Give the newest believed price of a symbol, None before the first."""
        return self._marks.get(symbol)

    @property
    def marks_fresh(self) -> bool:
        """Tell whether every position of ours has a mark that is recent on the market clock."""
        oldest = self._clock.now() - self._fresh
        return all((at := self._marks.at(symbol)) is not None and at >= oldest for symbol in self._held)

    def account(self) -> Account:
        """Give the account: equity is cash and everything held at its mark (at its cost before the first mark)."""
        if self._account is None:
            self._account = self._show_account()
        return self._account

    def risk_view(
        self,
        session: Session | None,
        working: Sequence[OrderView],
        intents: Mapping[str, Intent],
        recent: Sequence[Submission],
        entries_today: int,
        **more: Any,
    ) -> RiskView:
        """Show the risk rules this moment; nothing in it changes any more. `more` are other fields of the view."""
        account = self.account()
        result, days = self._result(), self._days

        def equity_at(mark: Decimal | None) -> Decimal | None:
            if mark is None or account.equity is None:
                return None
            return account.equity - (result - mark)

        return RiskView(
            now=self._clock.now(),
            session=session,
            account=account,
            day_start_equity=equity_at(days.day_start),
            week_start_equity=equity_at(days.week_start),
            peak_equity=equity_at(days.peak),
            positions=self._by_symbol(),
            working=working,
            intents=intents,
            marks=self._marks.snapshot(),
            recent=recent,
            entries_today=entries_today,
            marks_fresh=self.marks_fresh,
            closed=self.trades,
            **more,
        )

    # --- inside -----------------------------------------------------------------------------------------------

    def _changed(self, symbol: str) -> None:
        ledger = self._ledgers.get(symbol)
        if ledger is not None and ledger.holding.quantity:
            self._held[symbol] = ledger.holding
        else:
            self._held.pop(symbol, None)
        self._positions.pop(symbol, None)
        self._shown = None
        self._account = None

    def _reach(self) -> None:
        if self.marks_fresh:
            self._days.reached(self._result())

    def _open(self) -> Decimal:
        """Give the open result of our positions; one without a mark counts at its cost."""
        total = ZERO
        for symbol, holding in self._held.items():
            if (mark := self._marks.get(symbol)) is not None:
                total += holding.quantity * mark.price - holding.cost
        return total

    def _result(self) -> Decimal:
        """Give the result, realised and open, since the beginning of the books."""
        return self._realized + self._open()

    def _foreign_value(self) -> Decimal:
        total = ZERO
        for symbol, position in self._foreign.items():
            mark = self._marks.get(symbol)
            total += position.quantity * (position.average_cost if mark is None else mark.price)
        return total

    def _own_means(self) -> Decimal:
        """Give what could be spent without credit: a short sale's proceeds stay, and bind as much again."""
        short = ZERO
        for symbol, holding in self._held.items():
            if holding.quantity < 0:
                mark = self._marks.get(symbol)
                short += -holding.cost if mark is None else -holding.quantity * mark.price
        return self.cash - 2 * short

    def _buying_power(self) -> Decimal:
        means = self._own_means()
        if self._broker is not None and self._broker.buying_power is not None:
            means = self._broker.buying_power + means - self._bought_with
        return max(means, ZERO)

    def _show_account(self) -> Account:
        live = self._clock.kind == "live"
        opened, days, broker = self._open(), self._days, self._broker
        realized = self._realized
        currency = self.currency if broker is None else broker.currency
        funded = self._funded and currency == self.currency
        return Account(
            account=None if broker is None else broker.account,
            mode=broker.mode if broker is not None else "paper" if live else "simulated",
            currency=currency,
            equity=self.cash + self.cost + opened + self._foreign_value() if funded else None,
            cash=self.cash if funded else None,
            buying_power=self._buying_power() if funded else None,
            day_pnl=None if days.day_start is None else realized + opened - days.day_start,
            realized_pnl=None if days.realized_start is None else realized - days.realized_start,
            unrealized_pnl=opened,
        )

    def _by_symbol(self) -> Mapping[str, Position]:
        if self._shown is None:
            shown: dict[str, Position] = {}
            for symbol in sorted({*self._held, *self._foreign}):
                position = self._positions.get(symbol) or self._show(symbol)
                if position is not None:
                    shown[symbol] = self._positions[symbol] = position
            self._shown = MappingProxyType(shown)
        return self._shown

    def _show(self, symbol: str) -> Position | None:
        holding = self._held.get(symbol)
        if holding is not None:
            quantity, cost, average = holding.quantity, holding.cost, holding.average_cost
        elif (foreign := self._foreign.get(symbol)) is not None:
            quantity, average = foreign.quantity, foreign.average_cost
            cost = quantity * average
        else:
            return None
        mark = self._marks.get(symbol)
        value = None if mark is None else quantity * mark.price
        return Position(
            symbol=symbol,
            quantity=quantity,
            average_cost=average,
            last=None if mark is None else mark.price,
            market_value=value,
            unrealized_pnl=None if value is None else value - cost,
            realized_pnl=ZERO if holding is None else holding.realized,
            strategy=None if holding is None else holding.strategy,
            opened_at=None if holding is None else holding.opened_at,
            protected=symbol in self._protected,
            foreign=holding is None,
        )


def _paid(fill: Fill) -> Decimal:
    """Give what a fill does to cash."""
    amount = EXACT.multiply(fill.quantity, fill.price)
    return EXACT.subtract(amount if fill.side == "sell" else EXACT.minus(amount), fill.commission)


def _check(fill: Fill) -> None:
    numbers = (fill.quantity, fill.price, fill.commission)
    if not all(number.is_finite() for number in numbers) or fill.quantity <= 0 or fill.price < 0:
        raise ValueError(
            f"the execution {fill.exec_id} of {fill.symbol} can't be counted: quantity {fill.quantity}, "
            f"price {fill.price}, commission {fill.commission}"
        )


__all__ = ["Applied", "Portfolio"]

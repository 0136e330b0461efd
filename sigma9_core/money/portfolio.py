"""The portfolio: positions, cash and results, built from fills alone and valued at the newest marks.

    cash + cost of what is held = what was put in + realised result        (to the last digit)

Average costs exclude commissions; results and cash include them. Only what our own fills did is a result of ours:
foreign positions are shown and are part of equity, but their ups and downs trip no limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation, localcontext
from types import MappingProxyType
from typing import Any

from sigma9_core.clock import Clock, rfc3339
from sigma9_core.contracts import BrokerAccount, BrokerPosition, Mark, RiskView, Submission
from sigma9_core.errors import StateError
from sigma9_core.models import ZERO, Account, ClosedTrade, Fill, Intent, OrderView, Position, Session, Slice
from sigma9_core.money.days import Days
from sigma9_core.money.holding import EXACT, Applied, Holding, parted
from sigma9_core.money.marks import MarkBook


@dataclass(frozen=True, slots=True)
class _Split:
    """A split, at its place among the fills."""

    new: Decimal
    old: Decimal


@dataclass(frozen=True, slots=True)
class _Booked:
    """A fill, and the strategy that it was for."""

    fill: Fill
    strategy: str | None


class Portfolio:
    """Holds the books of one account in one currency; on the money lane."""

    def __init__(
        self,
        clock: Clock,
        currency: str = "USD",
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
        self._holdings: dict[str, Holding] = {}
        self._held: dict[str, Holding] = {}
        """Those that are not flat."""
        self._history: dict[str, list[_Booked | _Split]] = {}
        self._executions: dict[str, str] = {}
        """The symbol of each execution that was counted."""
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
        """Count an execution; None where its `exec_id` was counted before.

        One that was `recovered` belongs to the day of its time; one that is told as it happens counts today.
        Raise ValueError for a fill whose numbers make no sense: nothing is changed.
        """
        if fill.exec_id in self._executions:
            return None
        _check(fill)
        late = recovered and self._days.day_opened is not None and fill.ts < self._days.day_opened
        result = self._result() if late else ZERO
        holding = self._holdings.setdefault(fill.symbol, Holding(fill.symbol))
        applied = holding.take(fill, strategy)
        self.cash = EXACT.add(self.cash, _paid(fill))
        self.fees = EXACT.add(self.fees, fill.commission)
        self._realized = EXACT.add(self._realized, applied.realized)
        self._executions[fill.exec_id] = fill.symbol
        self._history.setdefault(fill.symbol, []).append(_Booked(fill, strategy))
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

    def standing(self, exec_id: str) -> Decimal:
        """Give how much of an execution stands: none where it was never counted, or was taken back."""
        booked = self._booked(exec_id)
        return ZERO if booked is None else booked.fill.quantity

    def bust(self, exec_id: str, quantity: Decimal | None = None) -> bool:
        """Take back an execution that the exchange has cancelled, or so much of it; False where none of it stands.

        The symbol's books are made again from the fills that stand, so that costs and results are as if it had
        never been. Its id stays known: should the fill be told again, it is ignored.
        """
        busted = self._booked(exec_id)
        if busted is None:
            return False
        symbol = busted.fill.symbol
        history = self._history[symbol]
        taken, left = parted(busted.fill, quantity)
        place = history.index(busted)
        history[place : place + 1] = [] if left is None else [replace(busted, fill=left)]
        self._make_again(symbol)
        with localcontext(EXACT):
            self.cash -= _paid(taken)
            self.fees -= taken.commission
        return True

    def commission(self, exec_id: str, amount: Decimal) -> bool:
        """Take the commission of an execution that was counted before it was told; False where nothing changes."""
        entry = self._booked(exec_id)
        if entry is None or entry.fill.commission == amount:
            return False
        fill = replace(entry.fill, commission=amount)
        _check(fill)
        history = self._history[fill.symbol]
        history[history.index(entry)] = replace(entry, fill=fill)
        self._make_again(fill.symbol)
        with localcontext(EXACT):
            more = amount - entry.fill.commission
            self.cash -= more
            self.fees += more
        return True

    def _make_again(self, symbol: str) -> None:
        """Make a symbol's books and closed trades again from the fills that stand."""
        before = self._holdings[symbol].total
        holding = self._holdings[symbol] = Holding(symbol)
        trades = [trade for trade in self._trades if trade.symbol != symbol]
        for entry in self._history[symbol]:
            if isinstance(entry, _Split):
                holding.split(entry.new, entry.old)
            elif (closed := holding.take(entry.fill, entry.strategy).closed) is not None:
                trades.append(closed)
        self._trades = sorted(trades, key=lambda trade: trade.closed_at)
        self._trades_shown = None
        with localcontext(EXACT):
            self._realized += holding.total - before
        self._changed(symbol)

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
        holding = self._holdings.get(symbol)
        if holding is not None:
            holding.split(new, old)
            self._history[symbol].append(_Split(new, old))
        self._marks.split(symbol, new, old)
        self._changed(symbol)

    def was_split(self, symbol: str) -> bool:
        """Tell whether a split is among what made the position."""
        return any(isinstance(entry, _Split) for entry in self._history.get(symbol, ()))

    def opened_by(self, symbol: str) -> list[Fill]:
        """Give the fills that have opened a position of ours, or added to it, oldest first."""
        holding, fills = Holding(symbol), list[Fill]()
        for entry in self._history.get(symbol, ()):
            if isinstance(entry, _Split):
                holding.split(entry.new, entry.old)
                continue
            applied = holding.take(entry.fill, entry.strategy)
            if applied.opened or applied.after == ZERO:
                fills.clear()
            if applied.grown:
                fills.append(entry.fill)
        return fills

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
        """Take the account's name, mode and buying power as the broker gives them; its cash is for `set_cash`."""
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
        holding = self._holdings.get(symbol)
        return ZERO if holding is None else holding.quantity

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

    def _booked(self, exec_id: str) -> _Booked | None:
        history = self._history.get(self._executions.get(exec_id, ""), ())
        return next((e for e in history if isinstance(e, _Booked) and e.fill.exec_id == exec_id), None)

    def _changed(self, symbol: str) -> None:
        holding = self._holdings.get(symbol)
        if holding is not None and holding.quantity:
            self._held[symbol] = holding
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
        return Account(
            account=None if broker is None else broker.account,
            mode=broker.mode if broker is not None else "paper" if live else "simulated",
            currency=self.currency,
            equity=self.cash + self.cost + opened + self._foreign_value() if self._funded else None,
            cash=self.cash if self._funded else None,
            buying_power=self._buying_power() if self._funded else None,
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

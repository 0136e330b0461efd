"""R21: day trades of a small margin account, settled cash of a cash account."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import Field

from sigma9_core.calendar import Calendar
from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView, Turnover
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, ClosedTrade, Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.pricing import reference_price
from sigma9_plugins.risk.commitments import committed, growing
from sigma9_plugins.risk.figures import Positive, money, plain

NEW_YORK: Final = ZoneInfo("America/New_York")
"""Where a trading day of the US markets begins and ends."""
DAY: Final = timedelta(days=1)
Count = Annotated[int, Field(ge=1)]


class DayTradesConfig(Frozen):
    """Settings of `day_trades`; without an `account_type` it is off."""

    account_type: Literal["none", "margin", "cash"] = "none"
    """What the account is at the broker: a small margin account may do few day trades, a cash account spends
    settled cash only."""
    pdt: bool = True
    """Whether the rule for pattern day traders is kept in a margin account."""
    max_day_trades: Annotated[int, Field(ge=0)] = 3
    """Round trips that may be opened and closed on one day, within `business_days`."""
    business_days: Count = 5
    """Sessions, the present one included."""
    min_equity: Positive = Decimal(25_000)
    """In the account's currency; from it on day trades are free."""
    count_open: bool = True
    """Whether positions and working entries of today count as the day trades that leaving them today would be."""
    settlement_days: Count = 1
    """Sessions after a sale until its proceeds are there (T+1)."""


class DayTrades(RiskRule):
    """Refuses an entry that can't be left on the same day, or that unsettled proceeds would have to pay for.

    What it knows are our own trades: round trips by hand, at the broker, are not counted.
    """

    code = "R21"

    def __init__(self, name: str, config: DayTradesConfig, calendar: Calendar | None = None) -> None:
        """Store; `calendar` tells which days are sessions, without it weekdays are."""
        super().__init__(name)
        self._config = config
        self._limit = Decimal(config.max_day_trades)
        self._calendar = calendar
        self._margin = config.account_type == "margin" and config.pdt
        self._cash = config.account_type == "cash"
        self._asked: tuple[Sequence[ClosedTrade], datetime] | None = None
        self._newest: Sequence[ClosedTrade] = ()
        """Of these trades, those since that moment: kept because they are asked for at every order."""

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge an entry by what the account's type allows."""
        if order.intent != "entry" or not (self._margin or self._cash):
            return self.allow()
        if growing(order, view) <= ZERO:
            return self.allow()
        return self._check_margin(order, view) if self._margin else self._check_cash(order, view)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the day trades, done and possible, or the cash that working entries may take of the settled."""
        if self._margin:
            used = self._done(view) + self._possible(view)
            return RuleUsage(rule=self.name, used=Decimal(used), limit=None if self._free(view) else self._limit)
        if self._cash:
            return RuleUsage(rule=self.name, used=committed(view)[0], limit=self._settled(view))
        return RuleUsage(rule=self.name)

    # --- pattern day traders ----------------------------------------------------------------------------------

    def _check_margin(self, order: OrderRequest, view: RiskView) -> Verdict:
        if self._free(view):
            return self.allow()
        config = self._config
        used = Decimal(self._done(view) + self._possible(view) + 1)
        if used > self._limit:
            equity = view.account.equity
            have = "not known" if equity is None else f"{money(equity)}, below {money(config.min_equity)}"
            return self.refuse(
                f"leaving it today could be day trade {used} in {config.business_days} sessions, more than "
                f"{config.max_day_trades}, and the equity is {have}",
                used,
                self._limit,
            )
        return self.allow(used, self._limit)

    def _free(self, view: RiskView) -> bool:
        equity = view.account.equity
        return equity is not None and equity.is_finite() and equity >= self._config.min_equity

    def _done(self, view: RiskView) -> int:
        """Count the round trips of the last sessions that were opened, or enlarged, and closed on one day."""
        since = self._first(view.now, self._config.business_days)
        closed = self._closed(view.closed, since)
        return sum(_one_day(trade) or self._added(trade, view.traded) for trade in closed)

    def _added(self, trade: ClosedTrade, traded: Sequence[Turnover]) -> bool:
        """Tell whether a position of an earlier day was enlarged on the day on which it was closed."""
        side = "buy" if trade.quantity > ZERO else "sell"
        today = self._traded(traded, _begin(_day(trade.closed_at)))
        return any(
            each.symbol == trade.symbol and each.side == side and each.hour <= trade.closed_at for each in today
        )

    def _possible(self, view: RiskView) -> int:
        """Count what may be left today: positions of today or enlarged today, and working entries."""
        if not self._config.count_open:
            return 0
        today = _begin(_day(view.now))
        added = {(each.symbol, each.side) for each in self._traded(view.traded, today)}
        opened = {
            symbol
            for symbol, position in view.positions.items()
            if position.quantity
            and position.opened_at is not None
            and (position.opened_at >= today or (symbol, "buy" if position.quantity > ZERO else "sell") in added)
        }
        entering = {  # an order whose price is being changed is there twice
            order.order_id
            for order in view.working
            if view.intents.get(order.order_id) == "entry"
            and not (order.filled_quantity > ZERO and order.symbol in opened)
        }
        return len(opened) + len(entering)

    # --- settled cash -----------------------------------------------------------------------------------------

    def _check_cash(self, order: OrderRequest, view: RiskView) -> Verdict:
        settled = self._settled(view)
        if settled is None:
            return self.refuse("the account's cash is not known: nothing can be bought with it")
        price = reference_price(order, view.marks.get(order.symbol))
        working, unpriced = committed(view)
        if price is None or unpriced is not None:
            what = f"there is no price of {unpriced or order.symbol} to value its orders at"
            return self.refuse(what, limit=settled)
        used = working + growing(order, view) * price
        if used > settled:
            return self.refuse(
                f"with the working entries it takes {money(used)}, and {money(settled)} of the cash are settled: "
                f"sales settle after {plain(Decimal(self._config.settlement_days))} sessions",
                used,
                settled,
            )
        return self.allow(used, settled)

    def _settled(self, view: RiskView) -> Decimal | None:
        cash = view.account.cash
        return cash - self._unsettled(view) if cash is not None and cash.is_finite() else None

    def _unsettled(self, view: RiskView) -> Decimal:
        """Give what sales have brought that is not there yet.

        Fills tell it also of positions that are closed in part; in each symbol the larger of what they and the
        closed trades say counts.
        """
        since = self._first(view.now, self._config.settlement_days)
        by_trades: dict[str, Decimal] = {}
        for trade in self._closed(view.closed, since):
            proceeds = trade.entry_cost + trade.result + trade.fees if trade.quantity > 0 else trade.entry_cost
            by_trades[trade.symbol] = by_trades.get(trade.symbol, ZERO) + proceeds
        by_fills: dict[str, Decimal] = {}
        for sold in self._traded(view.traded, since):
            if sold.side == "sell":
                by_fills[sold.symbol] = by_fills.get(sold.symbol, ZERO) + sold.value
        symbols = by_trades.keys() | by_fills.keys()
        return sum((max(by_trades.get(s, ZERO), by_fills.get(s, ZERO)) for s in symbols), ZERO)

    # --- sessions ---------------------------------------------------------------------------------------------

    def _closed(self, trades: Sequence[ClosedTrade], since: datetime) -> Sequence[ClosedTrade]:
        """Give the trades that were closed at or after a moment."""
        if self._asked is None or self._asked[0] is not trades or self._asked[1] != since:
            self._asked = (trades, since)
            self._newest = [trade for trade in trades if trade.closed_at >= since]
        return self._newest

    def _traded(self, traded: Sequence[Turnover], since: datetime) -> Sequence[Turnover]:
        """Give what has filled since a moment, at which an hour begins."""
        first = bisect_left(traded, since, key=lambda each: each.hour)
        return traded[first:]

    def _first(self, now: datetime, count: int) -> datetime:
        """Give the beginning of the first of the last `count` sessions, today's included."""
        today = _day(now)
        calendar = self._calendar
        if calendar is not None and calendar.first is not None and calendar.final is not None:
            sessions = calendar.before(today, count)
            if len(sessions) == count and today <= calendar.final:
                return _begin(date.fromisoformat(sessions[0].day))
        day, left = today, count - (today.weekday() < 5)
        while left:
            day -= DAY
            left -= day.weekday() < 5
        return _begin(day)


def _one_day(trade: ClosedTrade) -> bool:
    return _day(trade.opened_at) == _day(trade.closed_at)


def _day(moment: datetime) -> date:
    return moment.astimezone(NEW_YORK).date()


def _begin(day: date) -> datetime:
    return datetime.combine(day, time(), NEW_YORK)


def build(config: DayTradesConfig, context: PluginContext) -> DayTrades:
    """Build the rule of one instance."""
    return DayTrades(context.name, config, context.calendar)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `day_trades`."""
    register("day_trades", build, config=DayTradesConfig)

"""How the paper exchange fills orders: from data behind the order's time, and in doubt against the order.

- A quote fills a market order, and a stop that was set off, at the ask (a buy) or the bid, and slippage; a limit
  order that the ask or bid keeps to, at that price; up to the size that is shown. It sets stops off only in a
  symbol without trades.
- A trade at or beyond a stop sets it off. It fills a resting limit order that it passes, at the limit. It fills a
  market order, at its price and slippage, only where no quote is fresh; else the quote that follows does.
- A bar that begins at or behind the order's time fills a market order at the open, half the spread of a fresh
  quote, and slippage; a limit order at the open where that is as good, else at the limit where it is passed; a
  stop at the open where that lies beyond, else at the stop, and slippage (`bar_matching` has the path inside it).
  Where the trades inside the bar were given, the bar fills nothing.
- A trade or a bar fills `participation` of its volume at most, and what remains of an order goes on.
- Orders on the close get the session's last price, orders at the open (`opg`) its first; whole, without slippage.
- A halted symbol fills nothing, and outside regular hours only orders fill that say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from itertools import chain
from typing import Final, NamedTuple

from sigma9_core.calendar import Calendar
from sigma9_core.models import ZERO, Bar, Quote, Session, Side, Slice, Trade
from sigma9_plugins.brokers.bar_matching import BarMatch
from sigma9_plugins.brokers.order_matching import (
    MatchingRules,
    OrderMatcher,
    as_good,
    limit_of,
    usable,
    whole_shares,
)
from sigma9_plugins.brokers.paper_book import ON_CLOSE, PaperOrder
from sigma9_plugins.brokers.paper_costs import decimal
from sigma9_plugins.brokers.paper_ledger import Ledger

FRESH: Final = timedelta(seconds=5)
"""A quote is fresh for this long."""
SILENT: Final = timedelta(seconds=60)
"""A symbol without a trade for this long lets quotes set its stops off."""


class Price(NamedTuple):
    """A price that the market showed, and when."""

    value: float
    ts: datetime


class Matcher:
    """Matches working orders against slices; it knows the newest prices and nothing of the future."""

    def __init__(self, rules: MatchingRules, ledger: Ledger, calendar: Calendar) -> None:
        self.last: dict[str, Price] = {}
        """The newest price of each symbol: a trade's, a bar's close, or the middle of a quote."""
        self.quotes: dict[str, Quote] = {}
        self.halted: set[str] = set()
        self.behind: datetime | None = None
        """Data up to this time were matched before a restart, and are not matched again."""
        self._rules = rules
        self._ledger = ledger
        self._orders = OrderMatcher(rules, ledger)
        self._calendar = calendar
        self._session: Session | None = None
        self._traded: dict[str, datetime] = {}
        self._regular: dict[str, Price] = {}
        self._rest: dict[str, Decimal] = {}

    def on_market(self, data: Slice, session: Session | None) -> None:
        """Match a slice; fills are reported before this returns."""
        if session is not None:
            self._session = session
        starts = chain((bar.ts for bar in data.bars), (t.ts for t in data.trades), (q.ts for q in data.quotes))
        self._expire(min(starts, default=data.ts), data.ts, early=True)
        traded = {trade.symbol for trade in data.trades}
        for bar in data.bars:
            self._bar(bar, data.ts, told=bar.symbol in traded)
        items: list[Trade | Quote] = [*data.trades, *data.quotes]
        items.sort(key=lambda item: item.ts)
        for item in items:
            if isinstance(item, Trade):
                self._trade(item)
            else:
                self._quote(item)
        self._expire(data.ts, data.ts, early=False)

    def reference(self, symbol: str, side: Side) -> Decimal | None:
        """Give the price that an order would meet now: the quote's side, else the newest price."""
        quote, last = self.quotes.get(symbol), self.last.get(symbol)
        price = (quote.ask if side == "buy" else quote.bid) if quote is not None else None
        if quote is not None and price is not None and usable(price) and (last is None or last.ts <= quote.ts):
            return decimal(price)
        return decimal(last.value) if last is not None else None

    # --- trades, quotes, bars ---------------------------------------------------------------------------------

    def _trade(self, trade: Trade) -> None:
        symbol, ts = trade.symbol, trade.ts
        if not usable(trade.price):
            return
        regular = self._in_session(ts)
        self.last[symbol] = Price(trade.price, ts)
        self._traded[symbol] = ts
        if regular:
            self._regular[symbol] = self.last[symbol]
        orders = self._matchable(symbol, ts)
        if not orders:
            return
        price = decimal(trade.price)
        budget = self._budget(symbol, trade.size)
        fresh = self._fresh(symbol, ts)
        for order in orders:
            if order.since >= ts or not self._orders.ready(order, regular=regular):
                continue
            if order.time_in_force == "opg":
                self._orders.opening(order, price, ts, ts)
                continue
            if order.waits_for_stop and not self._orders.reached(order, price, ts):
                continue
            if fresh and self._marketable(order):
                continue  # the quote that follows says at what price
            if order.limited:
                met = limit_of(order) if self._orders.through(order, price) else None
            else:
                met = self._rules.slipped(order.side, price)
            budget -= self._orders.take(order, met, budget, ts)

    def _quote(self, quote: Quote) -> None:
        symbol, ts = quote.symbol, quote.ts
        self.quotes[symbol] = quote
        if quote.halted:
            self.halted.add(symbol)
            return
        self.halted.discard(symbol)
        bid = quote.bid if quote.bid is not None and usable(quote.bid) else None
        ask = quote.ask if quote.ask is not None and usable(quote.ask) else None
        if bid is not None and ask is not None and symbol not in self._traded:
            self.last[symbol] = Price((bid + ask) / 2, ts)
        orders = self._matchable(symbol, ts)
        if not orders:
            return
        left = {"buy": whole_shares(quote.ask_size), "sell": whole_shares(quote.bid_size)}
        regular = self._in_session(ts)
        silent = symbol not in self._traded or ts - self._traded[symbol] > SILENT
        for order in orders:
            shown = ask if order.side == "buy" else bid
            if shown is None or order.since >= ts or not self._orders.ready(order, regular=regular):
                continue
            if order.time_in_force == "opg":
                continue
            price = decimal(shown)
            if order.waits_for_stop and not (silent and self._orders.reached(order, price, ts)):
                continue
            met: Decimal | None = self._rules.slipped(order.side, price)
            if order.limited:
                met = price if as_good(order.side, price, limit_of(order)) else None
            left[order.side] -= self._orders.take(order, met, left[order.side], ts)

    def _bar(self, bar: Bar, ts: datetime, *, told: bool) -> None:
        symbol, end = bar.symbol, bar.ts + timedelta(seconds=bar.seconds)
        if not all(map(usable, (bar.open, bar.high, bar.low, bar.close))):
            return
        regular = self._in_session(bar.ts, whole=True)
        if told or (symbol in self._traded and self._traded[symbol] >= bar.ts):
            return  # its trades have been matched one by one
        if self._matchable(symbol, end):
            half_spread, budget = self._half_spread(symbol, bar.ts), self._budget(symbol, bar.volume)
            BarMatch(self._orders, bar, ts, regular=regular, half_spread=half_spread, budget=budget).run()
        self.last[symbol] = Price(bar.close, end)
        if regular:
            self._regular[symbol] = self.last[symbol]

    # --- the close --------------------------------------------------------------------------------------------

    def _expire(self, moment: datetime, ts: datetime, *, early: bool) -> None:
        """End what expires by `moment` (`early`: before it), with the closing auction first."""
        for order in self._ledger.book.all_working():
            due = order.expires_at
            if order.state != "working" or due is None or due > moment or (early and due == moment):
                continue
            why = "its day is over"
            if order.order_type in ON_CLOSE:
                why = "there was no closing price that it could have"
                price = self._regular.get(order.symbol)
                halted = order.symbol in self.halted
                if price is not None and order.active and not halted and order.since < price.ts <= due:
                    self._orders.auction(order, decimal(price.value), ts)
            elif order.time_in_force == "opg":
                why = "there was no open that it could have"
            if order.state == "working":
                self._ledger.end(order, "expired", why, ts)

    # --- what is known of a symbol ----------------------------------------------------------------------------

    def _matchable(self, symbol: str, ts: datetime) -> Sequence[PaperOrder]:
        if symbol in self.halted or (self.behind is not None and ts <= self.behind):
            return ()
        return self._ledger.book.working(symbol)

    def _marketable(self, order: PaperOrder) -> bool:
        """Tell whether an order would trade against the newest quote at once, or ends if it can't."""
        if not order.limited or order.time_in_force in ("ioc", "fok"):
            return True
        shown = self.reference(order.symbol, order.side)
        return shown is not None and as_good(order.side, shown, limit_of(order))

    def _budget(self, symbol: str, volume: float) -> Decimal:
        """Give the whole shares that may fill of a volume; what is less than one goes on to the next."""
        if not math.isfinite(volume) or volume <= 0:
            return ZERO
        share = self._rest.get(symbol, ZERO) + decimal(volume) * self._rules.participation
        whole = share.to_integral_value(ROUND_FLOOR)
        self._rest[symbol] = share - whole
        return whole

    def _fresh(self, symbol: str, ts: datetime) -> bool:
        quote = self.quotes.get(symbol)
        return quote is not None and quote.bid is not None and quote.ask is not None and ts - quote.ts <= FRESH

    def _half_spread(self, symbol: str, ts: datetime) -> Decimal:
        quote = self.quotes.get(symbol)
        if quote is None or quote.bid is None or quote.ask is None or not timedelta(0) <= ts - quote.ts <= FRESH:
            return ZERO
        return max(ZERO, decimal(quote.ask) - decimal(quote.bid)) / 2

    def _in_session(self, ts: datetime, *, whole: bool = False) -> bool:
        """Tell whether a time lies in regular hours, the close included; `whole`: it begins something."""
        session = self._session
        if session is None or not session.open <= ts <= session.close:
            session = self._calendar.last(ts)
            if session is None or not session.open <= ts <= session.close:
                return False
            self._session = session
        return ts < session.close or not whole

"""One bar against the orders of its symbol, along the pessimistic path.

What executes at the open comes first, then stops, then limits. A stop guards from its parent's fill on, in the
same bar too; a limit child waits for the next bar. A bar's high moves a trailing stop for the next bar only.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sigma9_core.models import Bar
from sigma9_plugins.brokers.order_matching import OrderMatcher, as_good, beyond, limit_of
from sigma9_plugins.brokers.paper_book import PaperOrder
from sigma9_plugins.brokers.paper_costs import decimal


class BarMatch:
    """Matches one bar; `ts` is the market time at which it became known, the time of its fills."""

    def __init__(
        self,
        matcher: OrderMatcher,
        bar: Bar,
        ts: datetime,
        *,
        regular: bool,
        half_spread: Decimal,
        budget: Decimal,
    ) -> None:
        self._matcher = matcher
        self._rules = matcher.rules
        self._ledger = matcher.ledger
        self._symbol = bar.symbol
        self._begins = bar.ts
        self._ts = ts
        self._regular = regular
        self._open, self._high, self._low, self._close = map(decimal, (bar.open, bar.high, bar.low, bar.close))
        self._half_spread = half_spread
        self._budget = budget
        self._woken: dict[str, Decimal] = {}
        """Children that this bar has woken, by number, with the price of their parent's fill."""
        self._done: set[str] = set()
        """Orders that this bar can't prove anything more about."""

    def run(self) -> None:
        """Match: at the open, then stops, then limits, then the stops of what all these have opened."""
        orders = [order for order in self._ledger.book.working(self._symbol) if order.since <= self._begins]
        for order in orders:
            if self._ready(order):
                self._at_open(order)
        for order in orders:
            if self._ready(order) and order.waits_for_stop:
                self._stop(order, self._open)
        for order in orders:
            if self._ready(order) and order.limited and not order.waits_for_stop:
                reach = self._low if order.side == "buy" else self._high
                if self._matcher.through(order, reach):
                    self._fill(order, limit_of(order))
        self._stops_of_children()
        self._trail({order.number for order in orders})

    def _at_open(self, order: PaperOrder) -> None:
        opens = self._open
        if order.time_in_force == "opg":
            self._matcher.opening(order, opens, self._begins, self._ts)
            return
        if order.waits_for_stop and not self._matcher.reached(order, opens, self._ts):
            return  # a trailing stop has seen the open: it comes before the rest of the bar
        if not order.limited:
            self._fill(order, self._rules.slipped(order.side, opens, self._half_spread))
        elif as_good(order.side, opens, limit_of(order)):
            self._fill(order, opens)
        elif order.time_in_force in ("ioc", "fok"):
            self._fill(order, None)

    def _stop(self, order: PaperOrder, begins: Decimal) -> None:
        """Set a stop off inside the bar; the price comes from `begins`, on the near side of the stop or beyond."""
        level = order.stop_level()
        reach = self._high if order.side == "buy" else self._low
        if level is None or not beyond(order.side, reach, level):
            return
        self._ledger.trigger(order, self._ts)
        worst = max(level, begins) if order.side == "buy" else min(level, begins)
        price = self._rules.slipped(order.side, worst, self._half_spread)
        if order.limited:
            limit = limit_of(order)
            self._done.add(order.number)
            if not as_good(order.side, worst, limit):
                return  # that the price came back to the limit can't be proved by this bar
            price = min(price, limit) if order.side == "buy" else max(price, limit)
        self._fill(order, price)

    def _stops_of_children(self) -> None:
        """Let the stops of woken children guard the rest of the bar, from their parent's price on."""
        for order in self._ledger.book.working(self._symbol):
            begins = self._woken.get(order.number)
            if begins is None or order.number in self._done:
                continue
            self._done.add(order.number)
            if order.waits_for_stop and self._matcher.ready(order, regular=self._regular):
                self._stop(order, begins)

    def _trail(self, before: set[str]) -> None:
        """Let trailing stops see the bar, for the next one."""
        for order in self._ledger.book.working(self._symbol):
            if not order.waits_for_stop or not self._matcher.ready(order, regular=self._regular):
                continue
            if order.number in self._woken:  # the high may lie before the parent's fill, the close does not
                self._matcher.see(order, self._close, self._ts)
            elif order.number in before:
                self._matcher.see(order, self._high if order.side == "sell" else self._low, self._ts)

    def _ready(self, order: PaperOrder) -> bool:
        if order.number in self._done or order.number in self._woken:
            return False
        return self._matcher.ready(order, regular=self._regular)

    def _fill(self, order: PaperOrder, price: Decimal | None) -> None:
        working = self._ledger.book.working(self._symbol)
        asleep = {child.number for child in working if not child.active and child.since <= self._begins}
        self._budget -= self._matcher.take(order, price, self._budget, self._ts)
        if price is not None:
            woken = (child for child in self._ledger.book.working(self._symbol) if child.active)
            self._woken |= {child.number: price for child in woken if child.number in asleep}

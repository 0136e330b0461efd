"""The ignition trigger: watches the list's market data and gives a signal when a symbol takes off.

An entry needs an item of stage 3 or 4 that may be traded, an ignition score at the threshold, and every anti-trap
filter. There is one entry in a symbol and day, and after its exit at most one more by the double tap. Everything is
judged at market time, on one thread, from what it was given: the same data give the same signals.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sigma9_core.contracts import Signal
from sigma9_core.events import TradeEvent
from sigma9_core.models import Bar, ExitPlan, OrderStatus, Quote, Session, Slice, Trade, WatchlistItem
from sigma9_plugins.scanners.seismograph.double_tap import DoubleTap, Order, Tap
from sigma9_plugins.scanners.seismograph.holdings import Holding
from sigma9_plugins.scanners.seismograph.ignition import Flow, Ignition, judge_bar
from sigma9_plugins.scanners.seismograph.traps import spread_percent, traps
from sigma9_plugins.scanners.seismograph.trigger_config import TriggerConfig
from sigma9_plugins.scanners.seismograph.windows import Minute, Minutes

logger = logging.getLogger("sigma9.seismograph")

BAR_SECONDS: Final = 60
SAY_EVERY: Final = timedelta(seconds=60)
"""How often, in market time, it is said that a symbol ignites and a filter holds it back."""
LEAST_TRAIL: Final = Decimal("0.01")
_TRIED_AGAIN: Final = frozenset((OrderStatus.REJECTED, OrderStatus.RISK_REJECTED))


class _Watch:
    """Everything about one symbol: what is watched, what the market does, what we hold."""

    __slots__ = (
        "bars_only",
        "flow",
        "high",
        "holding",
        "item",
        "last_trade",
        "minutes",
        "observed",
        "paid",
        "price",
        "quote",
        "said",
        "tap",
        "volume",
    )

    def __init__(self, config: TriggerConfig) -> None:
        self.item: WatchlistItem | None = None
        """None: not on the list any more, and kept for the day's sake."""
        self.holding = Holding()
        self.quote: Quote | None = None
        self.begin(config, 0.0)

    def begin(self, config: TriggerConfig, at: float) -> None:
        """Begin a session, or the watch in a session that runs: nothing of the market is known before `at`."""
        self.observed = at
        self.flow = Flow(at)
        self.minutes = Minutes()
        self.tap = DoubleTap(config.double_tap)
        self.paid = 0.0
        self.volume = 0.0
        self.high = -math.inf
        self.price = math.nan
        self.last_trade = -math.inf
        self.bars_only = False
        self.said: datetime | None = None

    @property
    def vwap(self) -> float | None:
        """Give the session's volume-weighted average price, None before any volume."""
        return self.paid / self.volume if self.volume > 0 else None

    def recall(self, bars: Sequence[Bar]) -> None:
        """Take the session's minute bars so far, oldest first."""
        for bar in bars:
            minute = _minute(bar)
            if minute is not None:
                self.minutes.take(minute)
                self.flow.fill(minute.start, minute.volume)
                self._count(minute, minute.volume)

    def trade(self, trade: Trade, now: float) -> bool:
        """Take a trade; one that can't be (no price, no size) counts nothing."""
        price, size = trade.price, trade.size
        if not (0.0 < price < math.inf and 0.0 <= size < math.inf):
            return False
        at = trade.ts.timestamp()
        if at > now:
            at = now  # what is known can't lie ahead
        self.flow.trade(at, price, size, _side(trade, self.quote))
        self.minutes.trade(int(at // BAR_SECONDS), price, size)
        self.paid += price * size
        self.volume += size
        if price > self.high:
            self.high = price
        self.price = price
        self.last_trade = at
        self.bars_only = False
        return True

    def bar(self, minute: Minute) -> None:
        """Take the feed's bar of a minute that has ended; volume that no trade told of is added."""
        missed = minute.volume - self.minutes.take(minute)
        if missed > 0:
            self.flow.fill(minute.start, missed)
            self._count(minute, missed)

    def without_trades(self, minute: Minute) -> bool:
        """Tell whether a whole minute with volume was observed without a trade: the feed gives bars alone."""
        start = minute.start * BAR_SECONDS
        return minute.volume > 0 and start >= self.observed and self.last_trade < start

    def _count(self, minute: Minute, volume: float) -> None:
        self.paid += volume * (minute.high + minute.low + minute.close) / 3
        self.volume += volume
        self.high = max(self.high, minute.high)


class SeismographTrigger:
    """Follows `contracts.Trigger`; fixed memory a symbol, constant time a trade."""

    def __init__(self, config: TriggerConfig, name: str = "seismograph") -> None:
        self._config = config
        self._name = name
        self._watches: dict[str, _Watch] = {}
        self._pending: dict[str, Sequence[Bar]] = {}
        """History of symbols that wait for their first slice in a session."""
        self._day: str | None = None

    # --- contracts.Trigger ------------------------------------------------------------------------------------

    def watch(self, items: Sequence[WatchlistItem], history: Mapping[str, Sequence[Bar]]) -> None:
        """Take the whole watchlist; new symbols are pre-warmed from their minute bars at the next slice."""
        wanted = {item.symbol: item for item in items}
        for symbol, watch in tuple(self._watches.items()):
            watch.item = wanted.get(symbol)
            if watch.item is None and not self._remembers(watch):
                del self._watches[symbol]
        for symbol, item in wanted.items():
            watch = self._watches.get(symbol) or _Watch(self._config)
            watch.item = item
            self._watches[symbol] = watch
        for symbol, bars in history.items():
            if symbol in wanted:
                self._pending[symbol] = bars

    def on_slice(self, data: Slice, session: Session | None) -> Sequence[Signal]:
        """Take what became known at one market time, and give the signals that follow; none outside of a session."""
        watches = self._watches
        for quote in data.quotes:
            if (watch := watches.get(quote.symbol)) is not None:
                watch.quote = quote
        if session is None or data.ts < session.open:
            return ()
        now = data.ts.timestamp()
        self._begin(session, now)
        for watch in watches.values():
            if watch.tap.state is Tap.COOLDOWN:
                watch.tap.tick(data.ts, watch.high)
        traded: dict[str, _Watch] = {}
        for trade in data.trades:
            symbol = trade.symbol
            if (watch := watches.get(symbol)) is not None and watch.trade(trade, now):
                traded[symbol] = watch
        signals: list[Signal] = []
        for bar in data.bars:
            if (watch := watches.get(bar.symbol)) is not None:
                self._take_bar(watch, bar, data.ts, session, signals)
        for watch in traded.values():
            self._consider(watch, None, data.ts, session, signals)
        return signals

    def on_trade_event(self, event: TradeEvent, ts: datetime) -> None:
        """Take one step of an order of this strategy."""
        watch = self._watches.get(event.symbol)
        if watch is None:
            watch = self._watches[event.symbol] = _Watch(self._config)
        step = watch.holding.take(event, ts)
        if step.bought:
            watch.tap.filled()
        if step.ended is not None:
            watch.holding.quiet_until = ts + timedelta(seconds=self._config.cool_off_seconds)
            if step.ended in _TRIED_AGAIN:
                watch.tap.refused()
            elif watch.tap.state is Tap.TRIGGERED:
                watch.tap.cancel("its order was cancelled")
        if step.left is not None:
            watch.tap.exited(step.left)
            logger.info(
                "%s is out of %s (%+.2f); double tap: %s%s",
                self._name,
                event.symbol,
                step.left.profit,
                watch.tap.state,
                f", {watch.tap.reason}" if watch.tap.reason else "",
            )

    # --- market data ------------------------------------------------------------------------------------------

    def _begin(self, session: Session, now: float) -> None:
        """Begin a new day, and recall the history of what is new on the list."""
        if session.day != self._day:
            self._day = session.day
            for symbol, watch in tuple(self._watches.items()):
                if watch.item is None and not watch.holding.busy(session.open):
                    del self._watches[symbol]
                else:
                    watch.begin(self._config, now)
        for symbol, bars in self._pending.items():
            watch = self._watches.get(symbol)
            if watch is not None and math.isnan(watch.price):
                fresh = watch.tap  # what happened to its orders today stays
                watch.begin(self._config, now)
                watch.tap = fresh
                watch.recall([bar for bar in bars if session.open <= bar.ts < session.close])
        self._pending.clear()
        for watch in self._watches.values():
            if watch.observed == 0.0:
                watch.observed = now
                watch.flow = Flow(now)

    def _take_bar(self, watch: _Watch, bar: Bar, ts: datetime, session: Session, signals: list[Signal]) -> None:
        minute = _minute(bar)
        if minute is None or not session.open <= bar.ts < session.close:
            return
        if not watch.without_trades(minute):
            watch.bar(minute)
            return
        watch.bars_only = True
        ignition = judge_bar(minute, watch.minutes, self._config.ignition)
        watch.bar(minute)
        watch.price = minute.close
        if self._config.ignition.bars_only == "reweight":
            self._consider(watch, ignition, ts, session, signals)

    # --- decisions --------------------------------------------------------------------------------------------

    def _consider(
        self, watch: _Watch, ignition: Ignition | None, ts: datetime, session: Session, signals: list[Signal]
    ) -> None:
        """Decide on one symbol, by its bar's ignition or, without one, by its trades'."""
        item = watch.item
        if item is None or item.no_trade is not None or item.stage < self._config.min_stage:
            return
        if watch.holding.busy(ts):
            return
        if watch.tap.state is not Tap.IDLE:
            order = watch.tap.arm(watch.price, watch.vwap)
            if order is not None:
                signals.append(self._again(watch, item.symbol, order, ts))
            return
        if ignition is None:
            ignition = watch.flow.judge(ts.timestamp(), watch.price, watch.minutes.box, self._config.ignition)
        if ignition.score < self._config.ignition.threshold:
            return
        found = traps(
            ts, watch.price, session=session, quote=watch.quote, vwap=watch.vwap, config=self._config.traps
        )
        if found:
            self._say(watch, item.symbol, ignition, found, ts)
            return
        signals.append(self._enter(watch, item.symbol, ignition, ts))

    def _enter(self, watch: _Watch, symbol: str, ignition: Ignition, ts: datetime) -> Signal:
        config = self._config
        watch.holding.quiet_until = ts + timedelta(seconds=config.cool_off_seconds)
        exits = config.exits
        atr = watch.minutes.atr()
        details = self._details(watch, ignition, atr)
        limit = None
        if config.order_type == "limit" and watch.quote is not None and watch.quote.ask is not None:
            limit = math.ceil(round(watch.quote.ask * (100 + config.limit_offset_percent), 6)) / 100
        amount = Decimal(f"{atr * exits.trail_atr:.4f}") if atr else None
        return Signal(
            symbol=symbol,
            side="buy",
            ts=ts,
            price=watch.price,
            score=ignition.score,
            reasons=(f"ignition {ignition.score:g}", *_reasons(ignition)),
            order_type="market" if limit is None else "limit",
            limit_price=limit,
            time_in_force="day" if limit is None else "ioc",
            exit_plan=ExitPlan(
                stop_percent=exits.stop_percent,
                time_stop_seconds=exits.time_stop_seconds,
                trail_amount=None if amount is None else max(amount, LEAST_TRAIL),
                trail_percent=None if amount is not None else Decimal(str(exits.trail_fallback_percent)),
                trail_activation_percent=exits.trail_activation_percent,
            ),
            details=details,
        )

    def _again(self, watch: _Watch, symbol: str, order: Order, ts: datetime) -> Signal:
        trail = self._config.double_tap.trail_percent
        watch.holding.quiet_until = ts + timedelta(seconds=self._config.cool_off_seconds)
        return Signal(
            symbol=symbol,
            side="buy",
            ts=ts,
            price=watch.price,
            reasons=(f"double tap above the high of the day {watch.tap.high:g}",),
            order_type="stop_limit",
            stop_price=float(order.stop_price),
            limit_price=float(order.limit_price),
            max_quantity=order.quantity,
            exit_plan=ExitPlan(stop_percent=trail, trail_percent=trail, trail_activation_percent=Decimal(0)),
            details={
                "double_tap": True,
                "high_of_day": watch.tap.high,
                "vwap": watch.vwap,
                "spread_percent": spread_percent(watch.quote),
            },
        )

    def _details(self, watch: _Watch, ignition: Ignition, atr: float | None) -> dict[str, Any]:
        box = watch.minutes.box
        return {
            "score": ignition.score,
            "velocity": ignition.velocity,
            "burst": ignition.burst,
            "break": ignition.breakout,
            "pressure": ignition.pressure,
            "bars_only": watch.bars_only,
            "spread_percent": spread_percent(watch.quote),
            "vwap": watch.vwap,
            "box_high": None if box is None else box.high,
            "box_low": None if box is None else box.low,
            "atr": atr,
        }

    def _say(self, watch: _Watch, symbol: str, ignition: Ignition, found: list[str], ts: datetime) -> None:
        if watch.said is None or ts - watch.said >= SAY_EVERY:
            watch.said = ts
            logger.info("%s ignites (%g) and is not entered: %s", symbol, ignition.score, "; ".join(found))

    def _remembers(self, watch: _Watch) -> bool:
        """Tell whether a symbol that left the list is still needed: held, being entered, or entered today."""
        return watch.holding.quantity > 0 or watch.holding.entry_id is not None or watch.tap.state is not Tap.IDLE


def _minute(bar: Bar) -> Minute | None:
    """Take a sound one-minute bar; None for any other."""
    prices = (bar.open, bar.high, bar.low, bar.close)
    if bar.seconds != BAR_SECONDS or not all(0.0 < price < math.inf for price in prices):
        return None
    if not 0.0 <= bar.volume < math.inf or bar.low > bar.high:
        return None
    return Minute(int(bar.ts.timestamp() // BAR_SECONDS), *prices, bar.volume)


def _side(trade: Trade, quote: Quote | None) -> int:
    """Tell who began a trade: the feed's word, else the quote rule; 0 leaves it to the tick rule."""
    if trade.side is not None:
        return 1 if trade.side == "buy" else -1
    if quote is not None and quote.bid is not None and quote.ask is not None and quote.bid < quote.ask:
        if trade.price >= quote.ask:
            return 1
        if trade.price <= quote.bid:
            return -1
    return 0


def _reasons(ignition: Ignition) -> list[str]:
    parts = {
        "trades come fast": ignition.velocity,
        "volume bursts": ignition.burst,
        "the box breaks": ignition.breakout,
        "buyers press": ignition.pressure,
    }
    return [text if part == 1 else f"{text} (half)" for text, part in parts.items() if part]

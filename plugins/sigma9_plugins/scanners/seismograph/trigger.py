"""The ignition trigger: watches the list's market data and gives a signal when a symbol takes off.

An entry needs an item of stage 3 or 4 that may be traded, an ignition score at the threshold, and every anti-trap
filter. There is one entry in a symbol and day, and after its exit at most one more, by the double tap. Everything
is judged at market time, on one thread, from what it was given: the same data give the same signals.
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
from sigma9_core.models import Bar, ExitPlan, OrderStatus, Quote, Session, Slice, WatchlistItem
from sigma9_plugins.scanners.seismograph.double_tap import DoubleTap, Order, Tap
from sigma9_plugins.scanners.seismograph.holdings import Holding
from sigma9_plugins.scanners.seismograph.ignition import Ignition
from sigma9_plugins.scanners.seismograph.tape import Tape
from sigma9_plugins.scanners.seismograph.traps import spread_percent, traps
from sigma9_plugins.scanners.seismograph.trigger_config import TriggerConfig

logger = logging.getLogger("sigma9.seismograph")

SAY_EVERY: Final = timedelta(seconds=60)
"""How often, in market time, it is said that a symbol ignites and a filter holds it back."""
MOST_DOUBLINGS: Final = 6
"""How often the pause after a refused entry doubles at most."""
LEAST_TRAIL: Final = Decimal("0.01")
TRIED_AGAIN: Final = frozenset((OrderStatus.REJECTED, OrderStatus.RISK_REJECTED))
"""After these a double tap may try once more; whatever else ends its order was somebody's wish."""


class _Watch:
    """One symbol: whether it is on the list, what the market does, what we hold, and its re-entry of the day."""

    __slots__ = ("heard", "holding", "item", "quote", "refusals", "said", "tap", "tape")

    def __init__(self, tap: DoubleTap) -> None:
        self.item: WatchlistItem | None = None
        """None: not on the list any more, and remembered for the day's sake."""
        self.tape: Tape | None = None
        """None until the first slice in a session."""
        self.quote: Quote | None = None
        self.holding = Holding()
        self.tap = tap
        self.heard: datetime | None = None
        """When an order of ours last moved: what happened before a session's open is another day's."""
        self.said: datetime | None = None
        self.refusals = 0
        """Entries that were refused in a row."""

    @property
    def engaged(self) -> bool:
        """Tell whether there is a position or a working entry."""
        return self.holding.quantity > 0 or self.holding.entry_id is not None


class SeismographTrigger:
    """Follows `contracts.Trigger`."""

    def __init__(self, config: TriggerConfig, name: str = "seismograph") -> None:
        self._config = config
        self._name = name
        self._watches: dict[str, _Watch] = {}
        self._history: dict[str, Sequence[Bar]] = {}
        """Bars of symbols that are new, until their first slice in a session."""
        self._new = False
        """Some symbol has no tape yet."""
        self._cooling: dict[str, _Watch] = {}
        self._day: str | None = None

    # --- contracts.Trigger ------------------------------------------------------------------------------------

    def watch(self, items: Sequence[WatchlistItem], history: Mapping[str, Sequence[Bar]]) -> None:
        """Take the whole watchlist; new symbols are pre-warmed from their minute bars at the next slice."""
        wanted = {item.symbol: item for item in items}
        for symbol, watch in tuple(self._watches.items()):
            watch.item = wanted.get(symbol)
            if watch.item is None and not watch.engaged and watch.tap.state is Tap.IDLE:
                del self._watches[symbol]
        for symbol, item in wanted.items():
            self._watch(symbol).item = item
            if history.get(symbol):
                self._history[symbol] = history[symbol]
                self._new = True

    def on_slice(self, data: Slice, session: Session | None) -> Sequence[Signal]:
        """Take what became known at one market time, and give the signals that follow."""
        watches = self._watches
        for quote in data.quotes:
            if (watch := watches.get(quote.symbol)) is not None:
                watch.quote = quote
        if session is None or not session.open <= data.ts < session.close:
            return ()
        self._begin(data.ts, session)
        self._end_cool_downs(data.ts)
        now = data.ts.timestamp()
        traded: dict[str, _Watch] = {}
        for trade in data.trades:
            watch = watches.get(trade.symbol)
            if watch is not None and watch.tape is not None and watch.tape.trade(trade, now, watch.quote):
                traded[trade.symbol] = watch
        signals: list[Signal] = []
        for bar in data.bars:
            watch = watches.get(bar.symbol)
            if watch is not None and watch.tape is not None:
                ignition = watch.tape.bar(bar, self._config.ignition)
                if ignition is not None and self._config.ignition.bars_only == "reweight":
                    signals += self._consider(watch, watch.tape, data.ts, session, ignition)
        for watch in traded.values():
            if watch.tape is not None:
                signals += self._consider(watch, watch.tape, data.ts, session)
        return signals

    def on_trade_event(self, event: TradeEvent, ts: datetime) -> None:
        """Take one step of an order of this strategy."""
        watch = self._watch(event.symbol)
        step = watch.holding.take(event, ts)
        watch.heard = ts
        if step.placed:
            watch.tap.placed()
        if step.bought:
            watch.tap.filled()
            watch.refusals = 0
        if step.ended is not None:
            refused = step.ended in TRIED_AGAIN
            wait = self._config.cool_off_seconds * 2**watch.refusals  # whoever refuses is asked ever more seldom
            watch.holding.quiet_until = ts + timedelta(seconds=wait)
            watch.refusals = min(watch.refusals + 1, MOST_DOUBLINGS) if refused else 0
            if refused:
                watch.tap.refused()
            elif watch.tap.state is Tap.TRIGGERED:
                watch.tap.cancel("its order was cancelled")
        if step.left is not None:
            watch.tap.exited(step.left)
            why = f" ({watch.tap.reason})" if watch.tap.reason else ""
            text = f"{self._name} left {event.symbol} with {step.left.profit:+.2f} before fees"
            level = logging.DEBUG if self._day is None else logging.INFO  # what a start tells is no news
            logger.log(level, "%s; its double tap: %s%s", text, watch.tap.state, why)
        if watch.tap.state is Tap.COOLDOWN:
            self._cooling[event.symbol] = watch

    # --- the day ----------------------------------------------------------------------------------------------

    def _watch(self, symbol: str) -> _Watch:
        watch = self._watches.get(symbol)
        if watch is None:
            watch = self._watches[symbol] = _Watch(DoubleTap(self._config.double_tap))
            self._new = True
        return watch

    def _begin(self, now: datetime, session: Session) -> None:
        """Begin a new day, and the tapes of what is new."""
        if session.day != self._day:
            self._day = session.day
            for symbol, watch in tuple(self._watches.items()):
                watch.tape = None
                if watch.heard is None or watch.heard < session.open:  # else it was heard after a restart
                    watch.tap = DoubleTap(self._config.double_tap)
                    self._cooling.pop(symbol, None)
                if watch.item is None and not watch.engaged and watch.tap.state is Tap.IDLE:
                    del self._watches[symbol]
            self._new = True
        if not self._new:
            return
        self._new = False
        for symbol, watch in self._watches.items():
            bars = self._history.get(symbol, ())
            if bars or watch.tape is None:
                watch.tape = Tape(session, now, bars)
        self._history.clear()

    def _end_cool_downs(self, now: datetime) -> None:
        for symbol, watch in tuple(self._cooling.items()):
            watch.tap.tick(now, -math.inf if watch.tape is None else watch.tape.high)
            if watch.tap.state is not Tap.COOLDOWN:
                del self._cooling[symbol]

    # --- decisions --------------------------------------------------------------------------------------------

    def _consider(
        self, watch: _Watch, tape: Tape, ts: datetime, session: Session, ignition: Ignition | None = None
    ) -> list[Signal]:
        """Decide on one symbol, by its bar's ignition or, without one, by its trades'."""
        item, config = watch.item, self._config
        if item is None or item.no_trade is not None or item.stage < config.min_stage or watch.holding.busy(ts):
            return []
        if watch.tap.state is not Tap.IDLE:
            ask = None if watch.quote is None else watch.quote.ask
            order = watch.tap.arm(tape.price, tape.vwap, ask)
            return [] if order is None else [self._again(watch, tape, item.symbol, order, ts)]
        if ignition is None:
            ignition = tape.judge(ts.timestamp(), config.ignition)
        if ignition is None or ignition.score < config.ignition.threshold:
            return []
        found = traps(ts, tape.price, session=session, quote=watch.quote, vwap=tape.vwap, config=config.traps)
        if not found:
            return [self._enter(watch, tape, item.symbol, ignition, ts)]
        if watch.said is None or ts - watch.said >= SAY_EVERY:
            watch.said = ts
            logger.info("%s ignites (%g) and is not entered: %s", item.symbol, ignition.score, "; ".join(found))
        return []

    def _enter(self, watch: _Watch, tape: Tape, symbol: str, ignition: Ignition, ts: datetime) -> Signal:
        self._quiet(watch, ts)
        limit = self._limit(watch.quote)
        return Signal(
            symbol=symbol,
            side="buy",
            ts=ts,
            price=tape.price,
            score=ignition.score,
            reasons=(f"ignition {ignition.score:g}", *_reasons(ignition)),
            order_type="market" if limit is None else "limit",
            limit_price=limit,
            time_in_force="day" if limit is None else "ioc",
            exit_plan=self._plan(tape),
            details={**_details(watch, tape), **_parts(ignition)},
        )

    def _again(self, watch: _Watch, tape: Tape, symbol: str, order: Order, ts: datetime) -> Signal:
        self._quiet(watch, ts)
        trail = self._config.double_tap.trail_percent
        return Signal(
            symbol=symbol,
            side="buy",
            ts=ts,
            price=tape.price,
            reasons=(f"double tap above the high of the day, {watch.tap.high:g}",),
            order_type="stop_limit",
            stop_price=float(order.stop_price),
            limit_price=float(order.limit_price),
            max_quantity=order.quantity,
            exit_plan=ExitPlan(stop_percent=trail, trail_percent=trail, trail_activation_percent=Decimal(0)),
            details={**_details(watch, tape), "double_tap": True, "high_of_day": watch.tap.high},
        )

    def _quiet(self, watch: _Watch, ts: datetime) -> None:
        """Give no other signal until this one is heard of, or has been given up."""
        watch.holding.quiet_until = ts + timedelta(seconds=self._config.cool_off_seconds)

    def _limit(self, quote: Quote | None) -> float | None:
        """Give the price of a marketable limit, rounded up to a cent; None for a market order."""
        if self._config.order_type == "market" or quote is None or quote.ask is None:
            return None
        return math.ceil(round(quote.ask * (100 + self._config.limit_offset_percent), 6)) / 100

    def _plan(self, tape: Tape) -> ExitPlan:
        exits, atr = self._config.exits, tape.minutes.atr()
        amount = max(Decimal(f"{atr * exits.trail_atr:.4f}"), LEAST_TRAIL) if atr else None
        return ExitPlan(
            stop_percent=exits.stop_percent,
            time_stop_seconds=exits.time_stop_seconds,
            trail_amount=amount,
            trail_percent=Decimal(str(exits.trail_fallback_percent)) if amount is None else None,
            trail_activation_percent=exits.trail_activation_percent,
        )


def _details(watch: _Watch, tape: Tape) -> dict[str, Any]:
    box = tape.minutes.box
    return {
        "spread_percent": spread_percent(watch.quote),
        "vwap": tape.vwap,
        "box_high": None if box is None else box.high,
        "box_low": None if box is None else box.low,
        "atr": tape.minutes.atr(),
    }


def _parts(ignition: Ignition) -> dict[str, Any]:
    return {
        "velocity": ignition.velocity,
        "burst": ignition.burst,
        "break": ignition.breakout,
        "pressure": ignition.pressure,
    }


def _reasons(ignition: Ignition) -> list[str]:
    parts = {
        "trades come fast": ignition.velocity,
        "volume bursts": ignition.burst,
        "the box breaks": ignition.breakout,
        "buyers press": ignition.pressure,
    }
    return [text if part == 1 else f"{text} (half)" for text, part in parts.items() if part]

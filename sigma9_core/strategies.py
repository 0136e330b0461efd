"""Strategies at work: their triggers watch the market on worker threads; their signals are sized and entered."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_FLOOR, Decimal
from typing import Any, Final

from sigma9_core.calendar import Calendar
from sigma9_core.contracts import Scanner, Signal, Sizer, SizingContext, Trigger
from sigma9_core.errors import CommandError, JournalError
from sigma9_core.events import Event, TradeEvent
from sigma9_core.models import Bar, OrderRequest, Session, Slice, WatchlistItem
from sigma9_core.money.desk import rounded
from sigma9_core.money.path import SizingFacts
from sigma9_core.workers import Guard, Worker

log = logging.getLogger("sigma9.strategy")

BUDGET: Final = 2.0
"""Seconds that a trigger has for one slice."""
SCAN_BUDGET: Final = 120.0
MOST_SIGNALS: Final = 100
"""Signals that one trigger may give in one slice; the rest is dropped and said."""

History = Callable[[str], Sequence[Bar]]
Enter = Callable[[OrderRequest, Decimal], Awaitable[bool]]


@dataclass(slots=True)
class Strategy:
    """A configured scanner and its trigger, each on a worker thread of its own: a scan may take its time."""

    name: str
    scanner: Scanner
    scan_guard: Guard
    guard: Guard
    trigger: Trigger | None = None
    watched: frozenset[str] = frozenset()
    enabled: bool = True
    pending: list[Slice] = field(default_factory=list)


class StrategyRunner:
    """Feeds triggers and turns their signals into entries; on the outer loop."""

    def __init__(
        self,
        strategies: Sequence[Strategy],
        sizer: Sizer,
        sizer_worker: Worker,
        *,
        calendar: Calendar,
        facts: Callable[[str, Signal], Awaitable[SizingFacts]],
        enter: Enter,
    ) -> None:
        self.strategies = {strategy.name: strategy for strategy in strategies}
        self.entering = False
        """Whether signals become orders: the engine runs and is not paused."""
        self.stopped: set[str] = set()
        """Strategies that a scoped kill has stopped."""
        self._sizer = sizer
        self._sizer_worker = sizer_worker
        self._calendar = calendar
        self._facts = facts
        self._enter = enter
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def watch(self, items: Sequence[WatchlistItem], history: History) -> None:
        """Tell every trigger its part of the watchlist, with the session's minute bars of what is new to it."""
        for strategy in self.strategies.values():
            mine = [item for item in items if strategy.name in item.strategies]
            if strategy.trigger is not None:
                known = strategy.watched
                took = await self._call(strategy, _watch, strategy.trigger, mine, known, history)
                if took:  # a trigger that failed, or is switched off, gets the bars the next time
                    strategy.watched = frozenset(item.symbol for item in mine)

    async def recall(self, past: Sequence[tuple[TradeEvent, datetime]]) -> None:
        """Tell each trigger the past of its own orders, oldest first, before it hears anything else."""
        for event, ts in past:
            strategy = self.strategies.get(event.strategy or "")
            if strategy is not None and strategy.trigger is not None:
                await self._tell(strategy, strategy.trigger, event, ts)

    async def on_slice(self, data: Slice) -> None:
        """Give a slice to every trigger, one after the other, and enter what they signal."""
        session = self._calendar.at(data.ts)
        for strategy in self.strategies.values():
            if strategy.trigger is None or not strategy.enabled or strategy.name in self.stopped:
                continue
            signals = await self._call(strategy, _signals, strategy.name, strategy.trigger, data, session)
            for signal in signals or ():
                if self.entering:
                    await self._enter_signal(strategy.name, signal)

    def offer(self, data: Slice) -> None:
        """Give a live slice; while a trigger is busy, what comes is kept and given together."""
        task = asyncio.get_running_loop().create_task(self._offered(data), name="strategies")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_events(self, events: Sequence[Event]) -> None:
        """Tell each trigger the trade events of its own orders, in order."""
        for event in events:
            if isinstance(event.data, TradeEvent) and event.data.strategy in self.strategies:
                strategy = self.strategies[event.data.strategy]
                if strategy.trigger is not None:
                    work = self._tell(strategy, strategy.trigger, event.data, event.ts)
                    task = asyncio.get_running_loop().create_task(work, name=f"tell[{strategy.name}]")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Drop what is under way and end the workers."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for strategy in self.strategies.values():
            strategy.guard.stop()
            strategy.scan_guard.stop()
        self._sizer_worker.stop()

    async def _offered(self, data: Slice) -> None:
        if self._busy:
            for strategy in self.strategies.values():
                strategy.pending.append(data)
                del strategy.pending[:-MOST_SIGNALS]
            return
        self._busy.add("slice")
        try:
            await self.on_slice(data)
            while any(strategy.pending for strategy in self.strategies.values()):
                merged = _merge([each for strategy in self.strategies.values() for each in strategy.pending])
                for strategy in self.strategies.values():
                    strategy.pending.clear()
                await self.on_slice(merged)
        finally:
            self._busy.discard("slice")

    async def _call(self, strategy: Strategy, function: Callable[..., Any], *args: Any) -> Any:
        """Call a trigger under its guard, which logs and counts a failure; this round is skipped then."""
        if not strategy.enabled:
            return None
        try:
            return await strategy.guard.call(function, *args)
        except Exception:  # noqa: BLE001 - a plugin may raise anything; the guard has logged it
            return None

    async def _tell(self, strategy: Strategy, trigger: Trigger, event: TradeEvent, ts: datetime) -> None:
        """Tell a trigger of its order, also while a person has switched it off: its position goes on."""
        try:
            await strategy.guard.call(trigger.on_trade_event, event, ts)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the guard has logged it
            log.debug("%s was not told of %s: %s", strategy.name, event.order_id, error)

    async def _enter_signal(self, strategy: str, signal: Signal) -> None:
        try:
            request, price = await self._sized(strategy, signal)
            if request.quantity <= 0:
                log.info("no order for %s: the size is 0", signal.symbol)
                return
            await self._enter(request, price)
        except (CommandError, JournalError) as error:
            log.warning("no order for %s: %s", signal.symbol, error)
        except Exception:  # a plugin may signal or size anything; no order, and the others go on
            log.exception("no order for %s: the signal of %s can't be used", signal.symbol, strategy)

    async def _sized(self, strategy: str, signal: Signal) -> tuple[OrderRequest, Decimal]:
        """Ask the sizer and build the order that the signal wants; give it with the price that it is valued at."""
        if not 0 < signal.price < math.inf:  # false for NaN as well
            raise CommandError("invalid", f"the signal's price is {signal.price}")
        facts = await self._facts(strategy, signal)
        context = SizingContext(
            signal=signal,
            equity=facts.equity,
            buying_power=facts.buying_power,
            price=facts.price,
            closed_trades=facts.closed_trades,
        )
        try:
            sized = await self._sizer_worker.call(self._sizer.size, context)
        except Exception as error:  # a plugin may raise anything; no size, no order
            log.exception("the sizer failed")
            raise CommandError("internal", "the sizer failed") from error
        quantity = (Decimal(sized) * Decimal(str(signal.size_factor))).to_integral_value(ROUND_FLOOR)
        if signal.max_quantity is not None:
            quantity = min(quantity, signal.max_quantity)
        request = OrderRequest(
            symbol=signal.symbol,
            side=signal.side,
            quantity=quantity,
            order_type=signal.order_type,
            limit_price=_price(signal.limit_price, facts.tick),
            stop_price=_price(signal.stop_price, facts.tick),
            time_in_force=signal.time_in_force,
            strategy=strategy,
            source="strategy",
            intent="entry",
            reason="; ".join(signal.reasons) or None,
            exit_plan=signal.exit_plan,
            signal={
                **signal.details,
                "score": signal.score,
                "price": signal.price,
                "ts": signal.ts.isoformat(),
                "sized": float(quantity),
            },
        )
        return request, facts.price


def _price(price: float | None, tick: Decimal | None) -> Decimal | None:
    return None if price is None else rounded(Decimal(str(price)), tick)


def _watch(trigger: Trigger, items: Sequence[WatchlistItem], known: frozenset[str], history: History) -> bool:
    """Tell a trigger its list, on its worker; True says that it has taken it."""
    bars: Mapping[str, Sequence[Bar]] = {
        item.symbol: history(item.symbol) for item in items if item.symbol not in known
    }
    trigger.watch(items, bars)
    return True


def _signals(name: str, trigger: Trigger, data: Slice, session: Session | None) -> Sequence[Signal]:
    """Ask a trigger, on its worker; an answer that is no list of signals counts as its failure."""
    signals = tuple(trigger.on_slice(data, session) or ())
    for signal in signals:
        if not isinstance(signal, Signal):
            raise TypeError(f"on_slice() gave {type(signal).__name__}, not a Signal")
    if len(signals) > MOST_SIGNALS:
        log.warning("%s signals %d entries at once; the first %d count", name, len(signals), MOST_SIGNALS)
    return signals[:MOST_SIGNALS]


def _merge(slices: Sequence[Slice]) -> Slice:
    unique = list({id(each): each for each in slices}.values())
    return Slice(
        unique[-1].ts,
        tuple({q.symbol: q for each in unique for q in each.quotes}.values()),
        tuple(trade for each in unique for trade in each.trades),
        tuple(bar for each in unique for bar in each.bars),
        tuple(split for each in unique for split in each.splits),
    )

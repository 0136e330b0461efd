"""The market: takes slices from the feed on a lane of its own and drives everything that depends on them.

With a stepped clock (simulated, replay) it goes in lock step: the clock moves, the money lane settles, the
strategies have their say, and only then comes the next slice; so a replay gives the same trades at any speed. With
a live clock nobody waits for anybody: the money lane gets every slice at once, the strategies what they can take.
"""

from __future__ import annotations

import asyncio
import logging
import random
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Final, Protocol

from sigma9_core.bus import EventBus
from sigma9_core.calendar import Calendar
from sigma9_core.clock import Clock, SteppedClock
from sigma9_core.contracts import Feed, FeedHealth, FeedState
from sigma9_core.errors import DataError, Sigma9Error, in_words
from sigma9_core.events import Event, MarketData, encode
from sigma9_core.lanes import Lane
from sigma9_core.models import Bar, Quote, Slice, Trade

log = logging.getLogger("sigma9.feed")

STRATEGY_WAIT: Final = 5.0
"""Seconds that a simulated market waits for strategies before it goes on without them."""
TICK: Final = 1.0
"""Seconds between two looks at the live clock when the feed is silent: time stops need them."""
FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 30.0
"""Seconds until a feed that failed is connected anew; the wait doubles until a slice has come."""
DISCONNECT_WITHIN: Final = 5.0
"""Seconds that a feed has to disconnect."""


class MoneySide(Protocol):
    """What the market needs of the money path."""

    async def on_market(self, data: Slice) -> None:
        """Take a slice on the money lane and return when it has settled."""

    def on_feed(self, health: FeedHealth) -> None:
        """Learn on the money lane how the feed stands."""


class OuterSide(Protocol):
    """What the market needs of the outer loop."""

    async def on_market(self, data: Slice) -> None:
        """Take a slice on the outer loop and return when strategies and schedule have had it."""

    def on_feed(self, state: FeedState, error: str | None) -> None:
        """Learn how the feed stands."""


class Market:
    """Pumps slices from the feed; started and stopped from the outer loop."""

    def __init__(
        self,
        *,
        feed: Feed,
        clock: Clock,
        calendar: Calendar,
        money_lane: Lane,
        money: MoneySide,
        outer: OuterSide,
        bus: EventBus,
        publish: bool,
    ) -> None:
        self.feed = feed
        self.state: FeedState = "disconnected"
        self.last_at: datetime | None = None
        self.failures = 0
        """Attempts to connect anew that have failed since the last data; before the first data none counts."""
        self._clock = clock
        self._calendar = calendar
        self._lane = Lane("market")
        self._money_lane = money_lane
        self._money = money
        self._outer = outer
        self._bus = bus
        self._publish = publish
        self._outer_loop: asyncio.AbstractEventLoop | None = None
        self._pump: Future[None] | None = None
        self._ticker: Future[None] | None = None
        self._wanted: frozenset[str] = frozenset()
        self._wait = FIRST_WAIT

    def start(self, since: datetime | None) -> None:
        """Begin to connect and to pump; `since` is where a simulated market goes on."""
        self._outer_loop = asyncio.get_running_loop()
        self._lane.start()
        self._pump = self._lane.submit(self._run(since))
        if not isinstance(self._clock, SteppedClock):
            self._ticker = self._lane.submit(self._tick())

    async def stop(self) -> None:
        """End the pump and disconnect the feed, whatever it does."""
        pump, self._pump = self._pump, None
        ticker, self._ticker = self._ticker, None
        for work in (pump, ticker):
            if work is not None:
                work.cancel()
        if pump is None:
            return
        await self._lane.call(self._hang_up())
        await asyncio.to_thread(self._lane.stop)

    async def finished(self) -> None:
        """Wait for the end of the data (a replay), or raise what ended the pump."""
        if self._pump is not None:
            await asyncio.wrap_future(self._pump)

    def subscribe(self, symbols: frozenset[str]) -> None:
        """Want market data of exactly these symbols."""
        if symbols != self._wanted:
            self._wanted = symbols
            if self._pump is not None:
                self._lane.post(self._subscribe)

    # --- on the market lane -----------------------------------------------------------------------------------

    async def _run(self, since: datetime | None) -> None:
        await self._calendar.ready()
        while True:
            before = self.last_at
            try:
                await self.feed.connect(since)
                self.feed.subscribe(self._wanted)
                self._tell("connected", None)
                await self._drive()
                if self._clock.kind == "live":
                    raise DataError("its data have ended, and a live market's never do")
            except Exception as error:
                # A feed plugin may raise anything; it is told, and connected anew with back-off.
                wait = self._wait * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
                then = "" if self._clock.kind == "replay" else f"; next try in {wait:.1f} s"
                # What a feed says on purpose, and a line that broke, are no bugs: a sentence tells all.
                known = isinstance(error, (Sigma9Error, OSError))
                log.error("the feed failed (%s)%s", in_words(error), then, exc_info=not known)
                self.failures += before is not None and self.last_at == before
                self._tell("disconnected", in_words(error))
                if self._clock.kind == "replay":
                    raise  # files do not mend themselves
                await self._hang_up()
                await asyncio.sleep(wait)
                self._wait = min(self._wait * 2, LONGEST_WAIT)
                since = self._clock.now()
            else:
                self._tell("ended", None)
                return

    async def _hang_up(self) -> None:
        try:
            async with asyncio.timeout(DISCONNECT_WITHIN):
                await self.feed.disconnect()
        except Exception as error:  # noqa: BLE001 - a feed plugin may raise anything; it is left behind
            log.warning("the feed did not disconnect in order (%s: %s)", type(error).__name__, error)

    def _subscribe(self) -> None:
        """Tell a connected feed what is wanted now; one that is not connected is told when it is."""
        if self.state != "connected":
            return
        try:
            self.feed.subscribe(self._wanted)
        except Exception:  # a feed plugin may raise anything; what it gave before goes on
            log.exception("the feed does not take the subscription of %d symbols", len(self._wanted))

    async def _drive(self) -> None:
        stepped = self._clock if isinstance(self._clock, SteppedClock) else None
        async for data in self.feed.slices():
            self._wait = FIRST_WAIT
            self.last_at = data.ts
            if self.failures:
                self.failures = 0
                self._tell_money(None)
            if stepped is not None:
                stepped.advance(data.ts)
                await self._settle(data)
                await self._offer(data)
            else:
                self._money_lane.submit(self._money.on_market(data)).add_done_callback(self._look)
                self._outer_call(self._outer.on_market(data)).add_done_callback(self._look)
            if self._publish:
                self._bus.post(self._events(data))

    async def _settle(self, data: Slice) -> None:
        """Let the money lane have a slice; it finishes what it has begun, also where the market is stopped."""
        work = self._money_lane.submit(self._money.on_market(data))
        await _ended(work)
        self._judge(work, "money lane")

    async def _offer(self, data: Slice) -> None:
        work = self._outer_call(self._outer.on_market(data))
        try:
            async with asyncio.timeout(None if self._clock.kind == "replay" else STRATEGY_WAIT):
                await _ended(work)
        except TimeoutError:
            log.error("the outer loop has not answered for %g s; the market goes on without it", STRATEGY_WAIT)
        else:
            self._judge(work, "outer loop")

    def _judge(self, work: Future[None], where: str) -> None:
        """Say what went wrong with a slice; the market goes on, but a replay, whose trades would differ, ends."""
        if work.cancelled() or (error := work.exception()) is None:
            return
        if self._clock.kind == "replay":
            raise error
        log.error("a slice of market data went wrong on the %s; the market goes on", where, exc_info=error)

    @staticmethod
    def _look(work: Future[None]) -> None:
        """Say what went wrong with a slice that nobody waits for."""
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("a slice of market data went wrong; the market goes on", exc_info=error)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._money_lane.submit(self._money.on_market(Slice(self._clock.now()))).add_done_callback(self._look)

    def _outer_call(self, work: Any) -> Future[None]:
        if self._outer_loop is None:
            raise RuntimeError("the market was not started")
        return asyncio.run_coroutine_threadsafe(work, self._outer_loop)

    def _tell(self, state: FeedState, error: str | None) -> None:
        self.state = state
        self._tell_money(error)
        if self._outer_loop is not None:
            self._outer_loop.call_soon_threadsafe(self._outer.on_feed, state, error)

    def _tell_money(self, error: str | None) -> None:
        self._money_lane.post(self._money.on_feed, FeedHealth(self.state, self.failures, error))

    def _events(self, data: Slice) -> list[Event]:
        newest: dict[tuple[str, str], Quote | Trade | Bar] = {}
        for quote in data.quotes:
            newest[quote.symbol, "quote"] = quote
        for trade in data.trades:
            newest[trade.symbol, "trade"] = trade
        for bar in data.bars:
            newest[bar.symbol, "bar"] = bar
        return [self._event(item) for item in newest.values()]

    def _event(self, item: Quote | Trade | Bar) -> Event:
        body = market_data(item)
        raw = encode("market_data", body, seq=None, ts=item.ts, node=self._bus.node)
        return Event("market_data", None, item.ts, body, raw)


async def _ended(work: Future[None]) -> None:
    """Wait for work on another loop; who stops waiting does not end the work."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[None]) -> None:
        try:
            loop.call_soon_threadsafe(ended.set)
        except RuntimeError:
            pass  # the waiting loop has ended

    work.add_done_callback(tell)
    await ended.wait()


def market_data(item: Quote | Trade | Bar) -> MarketData:
    """Turn a quote, trade or bar into market_data.data (contract 2)."""
    if isinstance(item, Quote):
        return MarketData.model_construct(
            symbol=item.symbol,
            kind="quote",
            ts=item.ts,
            halted=item.halted,
            bid=item.bid,
            ask=item.ask,
            bid_size=item.bid_size,
            ask_size=item.ask_size,
        )
    if isinstance(item, Trade):
        return MarketData.model_construct(
            symbol=item.symbol, kind="trade", ts=item.ts, last=item.price, last_size=item.size
        )
    return MarketData.model_construct(
        symbol=item.symbol,
        kind="bar",
        ts=item.ts,
        open=item.open,
        high=item.high,
        low=item.low,
        close=item.close,
        volume=item.volume,
        bar_seconds=item.seconds,
    )

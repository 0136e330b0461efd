"""The feed: quotes, trades and bars of what is watched, over a connection of its own; lives on the market lane.

A connection of its own keeps orders out of the way of market data. Where it is lost the market connects it anew,
and everything is subscribed again; so it is where TWS says that the data were lost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import CancelledError
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sigma9_core.clock import ClockKind, monotonic, wall_now
from sigma9_core.contracts import PluginContext
from sigma9_core.errors import BrokerError, DataError
from sigma9_core.models import Bar, Quote, Slice, Trade
from sigma9_plugins.brokers.ibkr import library
from sigma9_plugins.brokers.ibkr.asking import Asking
from sigma9_plugins.brokers.ibkr.codes import action, request_fails, says
from sigma9_plugins.brokers.ibkr.contracts import NO_SUCH_CONTRACT, stock
from sigma9_plugins.brokers.ibkr.health import Health, keep_probing
from sigma9_plugins.brokers.ibkr.history import AT_ONCE, DailyBars, Pace, days_of, minutes_of
from sigma9_plugins.brokers.ibkr.settings import IbkrConfig
from sigma9_plugins.brokers.ibkr.ticks import FIVE, GENERIC, LATE, PRICES, Minutes, Ticker
from sigma9_plugins.brokers.ibkr.wire import NO_REQUEST, Wire

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("sigma9.ibkr")
T = TypeVar("T")

NEXT: Final = 1
"""The feed's client id lies so far above the broker's."""
LIVE_OR_DELAYED: Final = 3
"""The kind of market data: live ones, and where there are none delayed ones, which say that they are."""
DELAYED: Final = frozenset((3, 4))
MINUTES_WAIT: Final = 1.0
"""Seconds that a trigger may wait for the minute bars of all the symbols that are new to it: it has two a call."""
BURST: Final = 2.0
"""Questions for minute bars within this many seconds are of one call."""
KEPT_MINUTES: Final = 400
AGAIN_FIRST: Final = 30.0
AGAIN_MOST: Final = 900.0
"""Seconds until minutes or real-time bars that were refused are asked for again; the wait doubles."""
PROGRESS_EVERY: Final = 10
UPDATED: Final = 300
"""Sessions that the daily update reads where no scan has asked yet."""


class Subscription:
    """What is asked for of one symbol."""

    def __init__(self, symbol: str, number: int) -> None:
        self.symbol = symbol
        self.number = number
        self.bars: int | None = None
        """The number of its real-time bars, once they were asked for."""
        self.wait = AGAIN_FIRST
        """Seconds until they are asked for again, should they be refused."""
        self.ticker = Ticker(symbol)
        self.minutes = Minutes(symbol)


class IbkrFeed:
    """Market data of Interactive Brokers."""

    clock_kind: ClockKind = "live"

    def __init__(self, config: IbkrConfig, context: PluginContext) -> None:
        self._config = config
        self._settings = context.settings.ibkr
        self._with_broker = context.settings.broker == "ibkr"
        self._calendar = context.calendar
        self._daily = DailyBars(context.data_dir)
        self._pace = Pace()
        self._sessions = UPDATED
        self._wire: Wire | None = None
        self._asking: Asking | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slices: asyncio.Queue[Slice | Exception] = asyncio.Queue()
        self._of: dict[str, Subscription] = {}
        self._by_number: dict[int, Subscription] = {}
        self._bars: list[Bar] = []
        self._minutes: dict[str, tuple[Bar, ...]] = {}
        """The minute bars of what is watched: those of the past, and those that have come since."""
        self._there = threading.Event()
        """Set while it is connected."""
        self._waiting = threading.Lock()
        self._waits_until = 0.0
        """Until when a trigger's call may wait for minute bars."""
        self._slots = asyncio.Semaphore(AT_ONCE)
        """For questions for minute bars; a connection has its own."""
        self._said: dict[tuple[str, bool], set[int]] = {}
        """What was said already of a symbol's data, and of its real-time bars, since they were good."""
        self.delayed: frozenset[str] = frozenset()
        """Symbols whose data are delayed."""

    # --- connection --------------------------------------------------------------------------------------------

    async def connect(self, since: datetime | None) -> None:
        """Connect; raise DataError where that fails."""
        await self.disconnect()
        self._loop = asyncio.get_running_loop()
        self._slices, self._slots = asyncio.Queue(), asyncio.Semaphore(AT_ONCE)
        client_id = self._config.feed_client_id or self._settings.client_id + NEXT
        try:
            loaded = await asyncio.to_thread(library.load)
            wire = Wire(loaded, self._config.feed_messages_per_second, reserved=False)
            health = Health(lambda _health: None, quiet=self._with_broker)
            health.watch(wire)
            wire.on(
                {
                    "priceSizeTick": self._on_price,
                    "tickSize": self._on_size,
                    "tickGeneric": self._on_generic,
                    "tickString": self._on_text,
                    "marketDataType": self._on_type,
                    "realtimeBar": self._on_bar,
                    "error": self._on_error,
                    "tcpDataProcessed": self._flush,
                }
            )
            await wire.open(self._settings.host, self._settings.port, client_id, self._config.connect_seconds)
        except BrokerError as error:
            raise DataError(f"no market data from IB: {error}") from error
        self._wire, self._asking = wire, Asking(wire, self._config.answer_seconds)
        wire.on_lost = self._lost
        self._there.set()
        health.up()
        wire.put("orders", ("reqMarketDataType", (LIVE_OR_DELAYED,)))
        self._spawn(keep_probing(wire, health, self._config.probe_seconds), "ibkr-feed-probe")

    async def disconnect(self) -> None:
        """Disconnect, and forget what was subscribed."""
        wire, self._wire = self._wire, None
        self._there.clear()
        self._of, self._by_number, self._bars, self._minutes = {}, {}, [], {}
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if self._asking is not None:
            self._asking.fail_all("the feed was disconnected")
            self._asking = None
        if wire is not None:
            wire.on_lost = lambda _why: None
            wire.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _lost(self, why: str) -> None:
        if self._asking is not None:
            self._asking.fail_all(why)
        self._slices.put_nowait(DataError(f"the market data connection to TWS has ended: {why}"))

    # --- what is wanted ----------------------------------------------------------------------------------------

    def subscribe(self, symbols: frozenset[str]) -> None:
        """Want exactly these symbols."""
        wire = self._wire
        if wire is None or not wire.is_open:
            return
        for symbol in sorted(set(self._of) - symbols):
            self._drop(wire, self._of.pop(symbol))
            self._minutes.pop(symbol, None)
        new = sorted(symbols - set(self._of))
        for symbol in new:
            self._want(wire, symbol)
        if new:
            self._spawn(self._want_bars(wire, new), "ibkr-feed-bars")

    def _want(self, wire: Wire, symbol: str) -> None:
        wanted = Subscription(symbol, wire.number())
        self._of[symbol] = self._by_number[wanted.number] = wanted
        contract = stock(wire.library, symbol)
        wire.put("orders", ("reqMktData", (wanted.number, contract, GENERIC, False, False, [])))

    async def _want_bars(self, wire: Wire, symbols: Sequence[str]) -> None:
        """Ask for the minutes so far, then for real-time bars; IB counts both together."""
        wanted = [self._of[symbol] for symbol in symbols if symbol in self._of]
        read = await asyncio.gather(*(self._read_minutes(each.symbol) for each in wanted))
        for each, there in zip(wanted, read, strict=True):
            if not there:
                self._spawn(self._keep_reading(wire, each), "ibkr-feed-minutes")
        for each in wanted if self._config.real_time_bars else ():
            await self._ask_bars(wire, each)

    async def _keep_reading(self, wire: Wire, wanted: Subscription) -> None:
        """Ask for the minutes of a symbol now and then, while it is wanted; until they come it goes on without."""
        wait = AGAIN_FIRST
        while True:
            await asyncio.sleep(wait)
            if self._of.get(wanted.symbol) is not wanted or not wire.is_open:
                return
            if await self._read_minutes(wanted.symbol, again=True):
                log.info("%s: its minute bars are there now", wanted.symbol)
                return
            wait = min(wait * 2, AGAIN_MOST)

    async def _ask_bars(self, wire: Wire, wanted: Subscription, wait: float = 0.0) -> None:
        await asyncio.sleep(wait)
        await self._pace.turn(wanted.symbol, "real-time bars")
        if self._of.get(wanted.symbol) is not wanted or wanted.bars is not None or not wire.is_open:
            return
        wanted.bars = wire.number()
        self._by_number[wanted.bars] = wanted
        contract = stock(wire.library, wanted.symbol)
        wire.put("questions", ("reqRealTimeBars", (wanted.bars, contract, FIVE, "TRADES", False, [])))

    def _drop(self, wire: Wire, wanted: Subscription) -> None:
        self._by_number.pop(wanted.number, None)
        wire.put("urgent", ("cancelMktData", (wanted.number,)))
        if wanted.bars is not None:
            self._by_number.pop(wanted.bars, None)
            wire.put("urgent", ("cancelRealTimeBars", (wanted.bars,)))

    def _again(self) -> None:
        """Subscribe everything anew: TWS has lost it."""
        wire, symbols = self._wire, frozenset(self._of)
        if wire is not None and wire.is_open:
            log.warning("TWS has lost the market data; asked for again: %s", ", ".join(sorted(symbols)))
            for wanted in self._of.values():
                self._by_number.pop(wanted.number, None)
                if wanted.bars is not None:
                    self._by_number.pop(wanted.bars, None)
            self._of = {}
            self.subscribe(symbols)

    # --- what comes --------------------------------------------------------------------------------------------

    async def slices(self) -> AsyncIterator[Slice]:
        """Give what came with each packet of TWS, as one slice; raise DataError where the connection ends."""
        while True:
            item = await self._slices.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def _flush(self) -> None:
        now = wall_now()
        quotes: list[Quote] = []
        trades: list[Trade] = []
        for wanted in self._of.values():
            new_quotes, new_trades = wanted.ticker.take(now)
            if wanted.ticker.delayed and not self._config.allow_delayed:
                continue
            quotes += new_quotes
            trades += new_trades
        bars, self._bars = self._bars, []
        if quotes or trades or bars:
            self._slices.put_nowait(Slice(now, tuple(quotes), tuple(trades), tuple(bars)))

    def _on_price(self, number: int, kind: int, price: float, size: float) -> None:
        if (wanted := self._by_number.get(number)) is not None:
            wanted.ticker.price(kind, price, size, wall_now())
            if self._said and price > 0 and kind in PRICES and kind not in LATE:
                self._is_good(wanted.symbol, bars=False)

    def _on_size(self, number: int, kind: int, size: float) -> None:
        if (wanted := self._by_number.get(number)) is not None:
            wanted.ticker.size(kind, size)

    def _on_generic(self, number: int, kind: int, value: float) -> None:
        if (wanted := self._by_number.get(number)) is not None:
            wanted.ticker.generic(kind, value)

    def _on_text(self, number: int, kind: int, text: str) -> None:
        if (wanted := self._by_number.get(number)) is not None:
            wanted.ticker.text(kind, text, wall_now())

    def _on_type(self, number: int, kind: int) -> None:
        """Learn whether a symbol's data are live, and say so where they are not."""
        wanted = self._by_number.get(number)
        if wanted is None:
            return
        wanted.ticker.delayed = kind in DELAYED
        if wanted.ticker.delayed:
            self.delayed |= {wanted.symbol}
            passed = "given as of 15 minutes ago" if self._config.allow_delayed else "left out"
            self._say(wanted, number, kind, f"its data are delayed, and are {passed}")
        else:
            self.delayed -= {wanted.symbol}

    def _on_bar(self, number: int, start: int, *told: float) -> None:
        wanted = self._by_number.get(number)
        if wanted is None or wanted.ticker.delayed:
            return
        wanted.wait = AGAIN_FIRST
        self._is_good(wanted.symbol, bars=True)
        opens, high, low, close, volume = told[:5]
        ts = datetime.fromtimestamp(start, UTC)
        bar = Bar(wanted.symbol, ts, opens, high, low, close, max(volume, 0.0), FIVE)
        whole = wanted.minutes.take(bar)
        self._bars += [bar, *whole]
        kept = self._minutes.get(wanted.symbol)
        if kept is not None and whole:
            new = [each for each in whole if not kept or each.ts > kept[-1].ts]
            self._minutes[wanted.symbol] = (*kept, *new)[-KEPT_MINUTES:]  # workers read the old one meanwhile

    def _on_error(self, number: int, code: int, text: str, *_: Any) -> None:
        if number == NO_REQUEST:
            if action(code) == "resubscribe":
                self._again()
            return
        wanted, wire = self._by_number.get(number), self._wire
        if wanted is None:
            return
        if action(code) != "log" or code == NO_SUCH_CONTRACT:
            self._say(wanted, number, code, says(code, text))
        if number == wanted.bars and request_fails(code) and wire is not None:
            del self._by_number[number]
            wanted.bars, wait = None, wanted.wait
            wanted.wait = min(wait * 2, AGAIN_MOST)
            self._spawn(self._ask_bars(wire, wanted, wait), "ibkr-feed-bars")

    def _say(self, wanted: Subscription, number: int, code: int, what: str) -> None:
        """Say something once, until it is good again."""
        said = self._said.setdefault((wanted.symbol, number == wanted.bars), set())
        if code not in said:
            said.add(code)
            log.warning("%s: %s", wanted.symbol, what)

    def _is_good(self, symbol: str, *, bars: bool) -> None:
        if self._said.pop((symbol, bars), None):
            log.info("%s: its %s are there again", symbol, "real-time bars" if bars else "live data")

    # --- the past; called on workers ---------------------------------------------------------------------------

    def daily_bars(self, as_of: date, sessions: int) -> pl.LazyFrame:
        """Give the daily bars of the configured symbols; what was not read yet is asked for first."""
        import polars as pl  # noqa: PLC0415 - heavy, and only scans need it

        symbols = self._config.symbols
        if not symbols:
            raise DataError("the feed ibkr scans no symbols: list them in plugins.settings.ibkr.symbols")
        self._sessions = sessions
        self._daily.load()
        self._read_days(as_of, sessions)
        known = self._daily.rows(symbols, as_of, sessions)
        rows = [
            (symbol, date.fromisoformat(row[0]), *row[1:]) for symbol in sorted(known) for row in known[symbol]
        ]
        if not rows:
            raise DataError("IB has given no daily bars of any symbol yet: the log says why")
        numbers = ("open", "high", "low", "close", "volume")
        schema: dict[str, Any] = {"symbol": pl.String, "ts": pl.Date, **dict.fromkeys(numbers, pl.Float64)}
        return pl.DataFrame(rows, schema=schema, orient="row").lazy()

    def minute_bars(self, symbol: str, until: datetime, count: int) -> Sequence[Bar]:
        """Give the last minute bars of the session that have come.

        A symbol's are asked for when it is subscribed; who is faster waits a moment, and then begins without them.
        """
        found = self._wait_for_minutes(symbol)
        session = self._calendar.last(until) if self._calendar.loaded else None
        first = None if session is None else session.open
        bars = [bar for bar in found if (bar.ts.timestamp() + bar.seconds) <= until.timestamp()]
        bars = [bar for bar in bars if first is None or bar.ts >= first]
        return bars[-count:] if count > 0 else []

    def update(self) -> str:
        """Read the daily bars of the newest session that has closed (the daily job)."""
        now = wall_now()
        session = self._calendar.last(now)
        if session is None:
            raise DataError("the exchange calendar knows no session yet")
        before = self._calendar.before(date.fromisoformat(session.day), 2)
        done = session if session.close <= now else next(iter(before), session)
        self._daily.load()
        return f"daily bars of {self._read_days(date.fromisoformat(done.day), self._sessions)} symbols"

    def _read_days(self, as_of: date, sessions: int) -> int:
        lacking = self._daily.lacking(self._config.symbols, as_of, sessions)
        if not lacking:
            return 0
        self._there.wait(
            self._config.connect_seconds
        )  # a scan that a start makes good comes before the connection
        try:
            return self._outside(self._fetch(lacking, as_of, sessions))
        except (BrokerError, DataError) as error:
            log.warning("daily bars of %d symbols could not be read: %s", len(lacking), error)
            return 0
        finally:
            self._daily.save()

    async def _fetch(self, symbols: Sequence[str], as_of: date, sessions: int) -> int:
        """Read symbol by symbol, at IB's pace, a few at once; what fails is said and left out."""
        done = read = 0
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(symbol: str) -> None:
            nonlocal done, read
            async with slots:
                await self._pace.turn(symbol, ("days", sessions))
                asking, wire = self._connected()
                try:
                    rows = await days_of(wire.library, asking, symbol, sessions)
                except BrokerError as error:
                    log.warning("no daily bars of %s: %s", symbol, error)
                else:
                    self._daily.put(symbol, rows, as_of, sessions)
                    read += 1
            done += 1
            if done % PROGRESS_EVERY == 0 or done == len(symbols):
                log.info("daily bars: %d of %d symbols", done, len(symbols))

        self._connected()
        await asyncio.gather(*(one(symbol) for symbol in symbols))
        return read

    def _wait_for_minutes(self, symbol: str) -> list[Bar]:
        now = monotonic()
        with self._waiting:
            if now - self._waits_until > BURST:
                self._waits_until = now + MINUTES_WAIT
            until = self._waits_until
        while symbol not in self._minutes and monotonic() < until:
            time.sleep(0.01)  # on a worker, and for a second at most
        return list(self._minutes.get(symbol, ()))

    async def _read_minutes(self, symbol: str, *, again: bool = False) -> bool:
        """Read the minute bars of a symbol that is wanted, and tell whether they came.

        What has come live meanwhile stays behind them; without them it goes on from here.
        """
        async with self._slots:
            await self._pace.turn(symbol, "minutes")
            try:
                asking, wire = self._connected()
                found = (await minutes_of(wire.library, asking, symbol))[:-1]  # the last one is not over yet
            except (BrokerError, DataError) as error:
                level = logging.DEBUG if again else logging.WARNING
                log.log(level, "no minute bars of %s: %s; asked for again from time to time", symbol, error)
                found = None
        if symbol in self._of:
            kept = self._minutes.get(symbol, ())
            if found:
                kept = (*found, *(bar for bar in kept if bar.ts > found[-1].ts))
            self._minutes[symbol] = kept[-KEPT_MINUTES:]
        return found is not None

    def _connected(self) -> tuple[Asking, Wire]:
        if self._asking is None or self._wire is None or not self._wire.is_open:
            raise DataError("the feed is not connected to TWS")
        return self._asking, self._wire

    def _outside(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the feed's own loop, from a worker."""
        loop = self._loop
        if loop is None or loop.is_closed():
            work.close()
            raise DataError("the feed is not connected to TWS")
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result()
        except CancelledError as error:
            raise DataError("the feed was disconnected") from error

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %s", task.get_name(), error, exc_info=error)

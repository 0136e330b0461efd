"""What a tortured server runs with: the exchange's broker and prices, strategies that enter by chance, a witness.

A file in the test's plugin folder takes the hooks from here, and calls `prepare` first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.bus import Interest
from sigma9_core.clock import ClockKind, wall_now
from sigma9_core.contracts import PluginContext, Register, Server, Signal
from sigma9_core.errors import DataError
from sigma9_core.events import DURABLE, TradeEvent
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Bar, ExitPlan, Frozen, Session, Slice, Trade, WatchlistItem
from sigma9_core.money import exits, killwork, path, reconcile
from sigma9_core.testing.exchange.broker import LONGEST_LINE, ExchangeBroker, ExchangeConfig
from sigma9_core.testing.torture import points

if TYPE_CHECKING:
    import polars as pl

SOURCE: Final = """
from sigma9_core.testing.torture.plugin import (
    prepare, register_brokers, register_feeds, register_scanners, register_services
)
prepare()
"""
"""The file in the plugin folder."""
PUBLISHED: Final = "published.jsonl"
"""The file to which the witness adds what was published."""
PATIENCE: Final[Mapping[tuple[Any, str], object]] = {
    (reconcile, "SURE_AFTER"): 1.0,
    (path, "READ_BACK_EVERY"): 0.3,
    (exits, "RETRY"): timedelta(seconds=0.5),
    (killwork, "ASK_AGAIN"): timedelta(seconds=0.5),
}
"""Waits of the product that are made for real brokers; here a life lasts seconds, and they are shorter."""


def prepare(
    fuses: Mapping[str, points.Point] = points.POINTS, patience: Mapping[tuple[Any, str], object] = PATIENCE
) -> None:
    """Lay the fuse that this life has, and shorten the waits."""
    for (module, name), value in patience.items():
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name} any more: see PATIENCE in {__name__}")
        setattr(module, name, value)
    points.arm(fuses)


# --- prices -----------------------------------------------------------------------------------------------------


class MarketConfig(Frozen):
    """Settings of the feed."""

    port: int


class MarketFeed:
    """The prices of the exchange, live."""

    clock_kind: ClockKind = "live"

    def __init__(self, config: MarketConfig) -> None:
        self._port = config.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, since: datetime | None) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=LONGEST_LINE)
        self._writer.write(b'{"role": "feed", "op": "hello", "n": 1}\n')

    async def disconnect(self) -> None:
        """Disconnect."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    def subscribe(self, symbols: frozenset[str]) -> None:
        """Take all symbols, whatever is wanted: the strategies here need no watchlist."""

    async def slices(self) -> AsyncIterator[Slice]:
        """Give each step of the exchange's market."""
        if self._reader is None:
            raise DataError("the feed is not connected: await connect() first")
        async for line in self._reader:
            message = json.loads(line)
            if "ticks" in message:
                now = wall_now()
                yield Slice(now, trades=tuple(Trade(name, now, price, 1e6) for name, price in message["ticks"]))

    def daily_bars(self, as_of: date, sessions: int) -> pl.LazyFrame:
        """Give none."""
        raise DataError("this market has no daily bars")

    def minute_bars(self, symbol: str, until: datetime, count: int) -> Sequence[Bar]:
        """Give none."""
        return ()


# --- strategies -------------------------------------------------------------------------------------------------


class GamblerConfig(Frozen):
    """Settings of a strategy that enters by chance."""

    symbols: tuple[str, ...]
    seed: int = 0
    chance: float = 0.2
    """Of an entry, at each slice."""


class Gambler:
    """Enters one of its symbols now and then, with an exit plan."""

    version = "1"
    lookback = 1
    watchlist_size = 1

    def __init__(self, config: GamblerConfig, name: str) -> None:
        self._config = config
        self._chance = random.Random(f"{config.seed}-{name}-{points.life()}")  # noqa: S311 - repeatable

    def scan(self, bars: pl.LazyFrame) -> pl.LazyFrame:
        """Score nothing."""
        raise DataError("this strategy has nothing to scan")

    def trigger(self) -> Gambler:
        """Give itself."""
        return self

    def watch(self, items: Sequence[WatchlistItem], history: Mapping[str, Sequence[Bar]]) -> None:
        """Take the list, and do without it."""

    def on_slice(self, data: Slice, session: Session | None) -> Sequence[Signal]:
        """Signal an entry by chance."""
        prices = {trade.symbol: trade.price for trade in data.trades if trade.symbol in self._config.symbols}
        if not prices or self._chance.random() > self._config.chance:
            return ()
        symbol = self._chance.choice(sorted(prices))
        limit = self._chance.random() < 0.4
        return (
            Signal(
                symbol=symbol,
                side="buy",
                ts=data.ts,
                price=prices[symbol],
                exit_plan=self._plan(),
                order_type="limit" if limit else "market",
                limit_price=prices[symbol] * self._chance.uniform(0.99, 1.01) if limit else None,
                max_quantity=Decimal(self._chance.randrange(5, 200)),
            ),
        )

    def on_trade_event(self, event: TradeEvent, ts: datetime) -> None:
        """Hear it."""

    def _plan(self) -> ExitPlan:
        draw = self._chance
        return ExitPlan(
            stop_percent=Decimal(draw.choice(("0.6", "1", "2"))),
            time_stop_seconds=draw.choice((None, 1, 2, 4)),
            trail_percent=draw.choice((None, Decimal(1), Decimal(2))),
            trail_activation_percent=draw.choice((Decimal(0), Decimal("0.5"))),
        )


# --- the witness ------------------------------------------------------------------------------------------------


class Witness:
    """Writes down every durable event that is published, the moment that integrations get it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._task: asyncio.Task[None] | None = None

    async def start(self, server: Server) -> None:
        """Begin to listen."""
        events = server.bus.subscribe("witness", Interest(types=frozenset(DURABLE)), durable_room=100_000)
        self._task = asyncio.get_running_loop().create_task(self._listen(events), name="witness")

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self, events: Any) -> None:
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            while True:
                text = "".join(f"{event.raw}\n" for event in await events.take())
                os.write(descriptor, text.encode())  # one write, which a kill does not cut in two
        finally:
            os.close(descriptor)


# --- hooks ------------------------------------------------------------------------------------------------------


@hookimpl
def register_brokers(register: Register) -> None:
    """Offer the exchange."""
    register("far_exchange", lambda config, _context: ExchangeBroker(config), config=ExchangeConfig)


@hookimpl
def register_feeds(register: Register) -> None:
    """Offer its prices."""
    register("far_prices", lambda config, _context: MarketFeed(config), config=MarketConfig)


@hookimpl
def register_scanners(register: Register) -> None:
    """Offer the strategy that enters by chance."""
    register("gambler", _gambler, config=GamblerConfig)


@hookimpl
def register_services(register: Register) -> None:
    """Offer the witness."""
    register("witness", lambda _config, context: Witness((context.data_dir or Path()) / PUBLISHED))


def _gambler(config: GamblerConfig, context: PluginContext) -> Gambler:
    return Gambler(config, context.name)

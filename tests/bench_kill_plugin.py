"""The plugin of `bench_kill.py`: a market, an exchange, and everything that may stand in a kill's way.

A strategy signals as fast as it can; a service sleeps on the outer event loop; one of its threads computes all the
while. Every gate closing, cancel and submit is written to a file with the time of the machine's monotonic clock.
"""

# ruff: noqa: ASYNC251 - sleeping on the event loop is what it is for
from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from sigma9_core.clock import LiveClock
from sigma9_core.contracts import PluginContext, Register, Signal
from sigma9_core.events import TradeEvent
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import (
    ApprovedOrder,
    Bar,
    ExitPlan,
    OrderRequest,
    Quote,
    Session,
    Slice,
    Trade,
    WatchlistItem,
)
from sigma9_core.money.gate import Barrier, RiskGate, Scope
from sigma9_core.testing.small_exchange import SmallExchange

SYMBOLS: Final = tuple(f"S{n:03d}" for n in range(200))
HELD: Final = SYMBOLS[:50]
RESTING: Final = SYMBOLS[50:150]
NAP: Final = 0.05
"""Seconds that the service sleeps on the outer loop at a time, with a moment in between."""

_trace = os.open(os.environ["BENCH_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def trace(what: str) -> None:
    """Write down what happens now."""
    os.write(_trace, f"{time.monotonic_ns()} {what}\n".encode())


_bar = RiskGate.bar


def _closing(self: RiskGate, scope: Scope = None, *, halt: bool = False) -> Barrier:
    made = _bar(self, scope, halt=halt)
    trace("gate")
    return made


RiskGate.bar = _closing  # type: ignore[method-assign]


class Exchange(SmallExchange):
    """Fills market orders at once, lets limits rest, and writes down what it is sent."""

    async def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Take orders."""
        for order in orders:
            trace(f"submit {order.request.intent} {order.request.symbol}")
        await super().submit(orders)
        for order in orders:
            if order.request.order_type == "market" and order.order_id in self.orders:
                self.fill(order.order_id, Decimal(100))

    async def cancel(self, order_id: str) -> None:
        """Cancel."""
        trace("cancel")
        await super().cancel(order_id)


class Ticks:
    """A live feed: 200 symbols at 100, ten times a second."""

    clock_kind = "live"

    def __init__(self) -> None:
        self._clock = LiveClock()

    async def connect(self, since: datetime | None) -> None:
        """Connect."""

    async def disconnect(self) -> None:
        """Disconnect."""

    def subscribe(self, symbols: frozenset[str]) -> None:
        """Give everything anyway."""

    async def slices(self) -> AsyncIterator[Slice]:
        """Give ticks."""
        while True:
            now = self._clock.now()
            quotes = tuple(Quote(symbol, now, 99.99, 100.01, 1e4, 1e4) for symbol in SYMBOLS)
            yield Slice(now, quotes, tuple(Trade(symbol, now, 100.0, 100.0) for symbol in SYMBOLS))
            await asyncio.sleep(0.1)

    def daily_bars(self, as_of: date, sessions: int) -> Any:
        """Give none."""
        raise NotImplementedError

    def minute_bars(self, symbol: str, until: datetime, count: int) -> Sequence[Bar]:
        """Give none."""
        return ()


class Eager:
    """A trigger that wants to buy all the time."""

    def watch(self, items: Sequence[WatchlistItem], history: Mapping[str, Sequence[Bar]]) -> None:
        """Take no notice."""

    def on_slice(self, data: Slice, session: Session | None) -> Sequence[Signal]:
        """Signal 50 symbols at once."""
        return [Signal(symbol, "buy", data.ts, 100.0, ExitPlan()) for symbol in SYMBOLS[150:]]

    def on_trade_event(self, event: TradeEvent, ts: datetime) -> None:
        """Take no notice."""


class Scanner:
    """A strategy that is all trigger."""

    version = "1"
    lookback = 1
    watchlist_size = 1

    def scan(self, bars: Any) -> Any:
        """Find nothing."""
        raise NotImplementedError

    def trigger(self) -> Eager:
        """Give the trigger."""
        return Eager()


class Nuisance:
    """Sleeps on the outer loop and keeps a thread busy."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._end = threading.Event()

    async def start(self, server: Any) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._sleep())
        threading.Thread(target=self._compute, name="bench-busy", daemon=True).start()
        threading.Thread(target=self._obey, args=(server,), name="bench-control", daemon=True).start()

    async def stop(self) -> None:
        """End."""
        self._end.set()
        if self._task is not None:
            self._task.cancel()

    async def _sleep(self) -> None:
        while True:
            time.sleep(NAP)
            await asyncio.sleep(0.005)

    def _obey(self, server: Any) -> None:
        """Do what the bench asks for on the money lane itself: the outer loop sleeps most of the time."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(os.environ["BENCH_CONTROL"])
            door.listen()
            visitor, _ = door.accept()
            with visitor, visitor.makefile("rw") as lines:
                for line in lines:
                    work = getattr(self, f"_{line.strip()}")
                    lines.write(f"{work(server)}\n")
                    lines.flush()

    @staticmethod
    def _fill(server: Any) -> str:
        """Hold 50 positions and let 100 entries rest."""
        requests = [OrderRequest(symbol=symbol, side="buy", quantity=Decimal(10)) for symbol in HELD]
        requests += [
            OrderRequest(
                symbol=symbol, side="buy", quantity=Decimal(10), order_type="limit", limit_price=Decimal(90)
            )
            for symbol in RESTING
        ]

        async def fill() -> list[str]:
            orders = await asyncio.gather(*(server.path.desk.submit([request]) for request in requests))
            return [str(order[0].reason) for order in orders if order[0].status == "risk_rejected"]

        refused = server.money.submit(fill()).result(30)
        return f"{len(requests) - len(refused)} {refused[:1]}"

    @staticmethod
    def _reset(server: Any) -> str:
        """Unlatch, and start the engine again."""
        server.money.submit(server.path.killswitch.reset("bench", None, "bench")).result(10)
        loop = server._loop
        while server.state == "running":  # the outer loop has not heard of the kill yet
            time.sleep(0.001)
        asyncio.run_coroutine_threadsafe(server.after_reset(None), loop).result(10)
        asyncio.run_coroutine_threadsafe(server.start_trading(reason="bench"), loop).result(10)
        return "ok"

    @staticmethod
    def _phase(server: Any) -> str:
        """Tell how far the kill is."""
        return str(server.path.killswitch.body()["phase"])

    def _compute(self) -> None:
        number = 0
        while not self._end.is_set():
            for _ in range(1000):
                number = (number * 1103515245 + 12345) % 2**31


@hookimpl
def register_feeds(register: Register) -> None:
    """Offer the feed."""
    register("bench_ticks", lambda _config, _context: Ticks())


@hookimpl
def register_brokers(register: Register) -> None:
    """Offer the exchange."""
    register("bench_exchange", _exchange)


def _exchange(_config: Any, context: PluginContext) -> Exchange:
    return Exchange(context.clock, cash=Decimal(10_000_000))


@hookimpl
def register_scanners(register: Register) -> None:
    """Offer the strategy."""
    register("bench_eager", lambda _config, _context: Scanner())


@hookimpl
def register_services(register: Register) -> None:
    """Offer the nuisance."""
    register("bench_nuisance", lambda _config, _context: Nuisance())

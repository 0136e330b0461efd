"""A whole engine in this process, for tests: real host, data folder and journal; the market is moved by hand.

async with EngineRoom(folder, plugins={"mine": SOURCE}) as room:
    await room.do("start")
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field

from sigma9_core.calendar import VERSION, package_version
from sigma9_core.clock import ClockKind, SteppedClock, monotonic
from sigma9_core.commands import Command, Response, Right
from sigma9_core.config import InstanceSettings, PluginSettings, Settings
from sigma9_core.contracts import PluginContext, Register
from sigma9_core.datadir import KILL_SOCKET, DataDir
from sigma9_core.engine import Engine
from sigma9_core.errors import DataError
from sigma9_core.events import Event, EventData, StatusUpdate, TradeEvent
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Bar, Frozen, Quote, Slice, Trade
from sigma9_core.money.door import KillDoor
from sigma9_core.plugins import PluginHost
from sigma9_core.testing.small_exchange import SmallExchange
from sigma9_core.tokens import TokenBook

if TYPE_CHECKING:
    import polars as pl

START: Final = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
"""A Monday, half an hour after the open."""
PLUGIN: Final = """
from sigma9_core.testing.engine_room import register_brokers, register_feeds
"""


class HandConfig(Frozen):
    """Settings of the feed that a test moves."""

    clock: ClockKind = "simulated"
    symbols: tuple[str, ...] = ("AAPL", "MSFT")


class HandFeed:
    """A feed that gives what the test puts into it."""

    make_bars: ClassVar[Any] = None
    """Makes daily bars of symbols, as of a date, for so many sessions; a test's plugin sets this static method."""

    def __init__(self, config: HandConfig) -> None:
        self.clock_kind = config.clock
        self.starts_at = START
        self.subscribed: list[frozenset[str]] = []
        self.connected_since: list[datetime | None] = []
        self.on_minute_bars: Callable[[str], Sequence[Bar]] = lambda _symbol: ()
        self._symbols = config.symbols
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: asyncio.Queue[Slice | Exception] = asyncio.Queue()

    @property
    def connected(self) -> bool:
        """Tell whether slices can be put in."""
        return self._loop is not None

    def put(self, item: Slice | Exception) -> None:
        """Give a slice, or raise an exception, from any thread."""
        if self._loop is None:
            raise RuntimeError("the feed is not connected yet")
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def connect(self, since: datetime | None) -> None:
        """Connect."""
        self.connected_since.append(since)
        self._loop = asyncio.get_running_loop()

    async def disconnect(self) -> None:
        """Disconnect."""
        self._loop = None

    def subscribe(self, symbols: frozenset[str]) -> None:
        """Remember what is wanted."""
        self.subscribed.append(symbols)

    async def slices(self) -> AsyncIterator[Slice]:
        """Give what is put in."""
        while True:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def daily_bars(self, as_of: date, sessions: int) -> pl.LazyFrame:
        """Give the bars that a test's plugin has made for the symbols of the configuration."""
        if self.make_bars is None:
            raise DataError("this test has no daily bars: set HandFeed.make_bars in its plugin")
        bars: pl.LazyFrame = self.make_bars(self._symbols, as_of, sessions)
        return bars

    def minute_bars(self, symbol: str, until: datetime, count: int) -> Sequence[Bar]:
        """Give what the test says."""
        return self.on_minute_bars(symbol)


class ExchangeConfig(Frozen):
    """Settings of the exchange that a test moves."""

    mode: Literal["paper", "live", "simulated"] = "paper"
    cash: Annotated[Decimal, Field(gt=0)] = Decimal(100_000)


@hookimpl
def register_feeds(register: Register) -> None:
    """Offer the feed that a test moves."""
    register("hand", lambda config, _context: HandFeed(config), config=HandConfig)


@hookimpl
def register_brokers(register: Register) -> None:
    """Offer the exchange that a test moves."""
    register("exchange", _exchange, config=ExchangeConfig)


def _exchange(config: ExchangeConfig, context: PluginContext) -> SmallExchange:
    return SmallExchange(context.clock, cash=config.cash, mode=config.mode)


def write_calendar(folder: Path, *, always: bool = False) -> None:
    """Write the cache of a made-up calendar: the weekdays around `START`, or a market that never closes."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    days = [START.date() + timedelta(days=n) for n in range(-40, 40)]
    sessions = [[f"{day}", f"{day}T14:30Z", f"{day}T21:00Z"] for day in days if day.weekday() < 5]
    if always:
        sessions = [["2010-01-01", "2010-01-01T00:00Z", "2099-12-31T23:59Z"]]
    body = {"version": VERSION, "name": "XNYS", "package": package_version(), "sessions": sessions}
    body |= {"first": "2010-01-01", "last": "2099-12-31"}
    (folder / "calendar-XNYS.json").write_text(json.dumps(body, separators=(",", ":")))


class EngineRoom:
    """Open it with `async with`; `again()` makes the room of the next start on the same data."""

    def __init__(
        self,
        folder: Path,
        *,
        plugins: Mapping[str, str] | None = None,
        plugin_settings: Mapping[str, Mapping[str, Any]] | None = None,
        calendar: Callable[[Path], None] = write_calendar,
        services: bool = False,
        exchange: SmallExchange | None = None,
        **settings: Any,
    ) -> None:
        """Store; `plugins` are sources by file name, `settings` those of `Settings`."""
        self.folder = folder
        self.events: list[Event] = []
        self._kept = exchange
        self._options = {
            "plugins": plugins,
            "plugin_settings": plugin_settings,
            "calendar": calendar,
            "services": services,
            **settings,
        }
        self._services = services
        self._sources = {"engine_room_plugin": PLUGIN, **(plugins or {})}
        self._calendar = calendar
        data = folder / "data"
        settings = {
            "feed": "hand",
            "broker": "exchange",
            "scanners": (),
            "notifiers": (),
            "risk": (InstanceSettings(plugin="max_order_quantity"),),
            "scheduler": {"enabled": False},
            "mqtt": {"enabled": False},
            "server": {"port": 0},
            **settings,
        }
        self.settings = Settings(
            data_dir=data,
            database={"path": data / "sigma9.db"},
            plugins=PluginSettings(
                paths=(folder / "plugins",),
                disabled=("web", "mqtt"),
                settings={name: dict(each) for name, each in (plugin_settings or {}).items()},
            ),
            **settings,
        )
        self.data = DataDir(data)
        self._engine: Engine | None = None
        self._interval = sys.getswitchinterval()
        self._reader: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """Give the engine, between opening and closing."""
        if self._engine is None:
            raise RuntimeError("the room is not open: use `async with`")
        return self._engine

    @property
    def feed(self) -> HandFeed:
        """Give the feed that the test moves."""
        feed = self.engine.feed
        if not isinstance(feed, HandFeed):
            raise TypeError(f"the feed is {type(feed).__name__}, not the one that a test moves")
        return feed

    @property
    def exchange(self) -> SmallExchange:
        """Give the exchange that the test moves."""
        broker = self.engine.path.link._broker  # noqa: SLF001 - the test is its market
        if not isinstance(broker, SmallExchange):
            raise TypeError(f"the broker is {type(broker).__name__}, not the one that a test moves")
        return broker

    # --- life -------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write the plugins, and the calendar where there is none yet."""
        (self.folder / "plugins").mkdir(parents=True, exist_ok=True)
        for name, source in self._sources.items():
            (self.folder / "plugins" / f"{name}.py").write_text(source)
        if not (self.data.path / "calendar-XNYS.json").exists():
            self._calendar(self.data.path)

    def build(self) -> Engine:
        """Build the engine without starting it; what refuses the start is raised."""
        self.write()
        tokens = TokenBook(self.data, None)
        tokens.start()
        host = PluginHost(self.settings.plugins)
        host.load()
        self._engine = Engine(self.settings, host=host, data_dir=self.data, tokens=tokens, services=self._services)
        if self._kept is not None:  # the exchange was there all the time
            for name in ("orders", "holdings", "fills", "submitted", "cash"):
                setattr(self.exchange, name, getattr(self._kept, name))
        return self._engine

    async def __aenter__(self) -> Self:
        """Lock the data, build, start, and wait until the feed is connected."""
        self.data.lock(self.settings.node)
        try:
            engine = self.build()
            subscription = engine.bus.subscribe("test", durable_room=100_000)
            door = KillDoor(self.data.file(KILL_SOCKET), engine.kill, engine.specs, lambda: None)
            await engine.start(door)
            self._reader = asyncio.get_running_loop().create_task(self._read(subscription), name="test-reader")
            await self.until(lambda: engine.market.state == "connected", "the feed")
            starter = engine._starter  # noqa: SLF001 - the engine's start ends when this does
            await self.until(lambda: starter is None or starter.done(), "the end of the start")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop and unlock."""
        if self._engine is not None:
            await self._engine.stop()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self.data.unlock()
        sys.setswitchinterval(self._interval)

    def again(self, **changes: Any) -> EngineRoom:
        """Give the room of the next start on the same data and exchange, perhaps with other settings."""
        broker = self.engine.path.link._broker  # noqa: SLF001 - it outlives the server
        kept = broker if isinstance(broker, SmallExchange) else None
        return EngineRoom(self.folder, **{**self._options, "exchange": kept, **changes})

    async def _read(self, subscription: Any) -> None:
        while True:
            self.events += await subscription.take()

    # --- what a test does -------------------------------------------------------------------------------------

    async def send(self, name: str, /, *, id: str | None = None, right: Right = "admin", **args: Any) -> Response:  # noqa: A002 - the contract's name
        """Send a command as a surface does, and give its answer."""
        return await self.engine.dispatch(Command(name, args, "api", right, id, received=monotonic()))

    async def do(self, name: str, /, *, id: str | None = None, **args: Any) -> Mapping[str, Any]:  # noqa: A002 - see send
        """Send a command that must succeed, and give its result."""
        response = await self.send(name, id=id, **args)
        if response.error is not None:
            raise AssertionError(f"{name}: {response.error}")
        return response.result or {}

    async def refused(self, name: str, /, *, id: str | None = None, **args: Any) -> str:  # noqa: A002 - see send
        """Send a command that must be refused, and give the code."""
        response = await self.send(name, id=id, **args)
        if response.error is None:
            raise AssertionError(f"{name} was carried out: {response.result}")
        return str(response.error["code"])

    async def kill_by_socket(self, **args: Any) -> tuple[float, dict[str, Any]]:
        """Kill by the Unix socket from a thread, as `sigma9 kill` does; give seconds and answer."""
        return await asyncio.to_thread(self.knock, **args)

    def knock(self, **args: Any) -> tuple[float, dict[str, Any]]:
        """Kill by the Unix socket and wait for the answer (blocks); give seconds and answer."""
        import socket  # noqa: PLC0415 - only this needs it

        began = monotonic()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(5)
            door.connect(str(self.data.file(KILL_SOCKET)))
            door.sendall(json.dumps({"reason": "test", **args}).encode() + b"\n")
            with door.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
        return monotonic() - began, answer

    async def tick(self, *symbols: str, price: float = 10.0, seconds: float = 1, quotes: bool = True) -> None:
        """Move the market by so many seconds and let each symbol trade once; wait until it has settled."""
        engine = self.engine
        clock = engine.clock
        ts = clock.now() + timedelta(seconds=seconds if isinstance(clock, SteppedClock) else 0)
        trades = tuple(Trade(symbol, ts, price, 1000.0) for symbol in symbols)
        shown = tuple(Quote(symbol, ts, price - 0.01, price + 0.01, 1e5, 1e5) for symbol in symbols)
        before = engine.path.tally.slices
        self.feed.put(Slice(ts, shown if quotes else (), trades))
        self.feed.put(Slice(ts))  # in lock step it is taken once the strategies have had the first one
        await self.until(lambda: engine.path.tally.slices > before + 1, "the slice")
        await self.settled()

    async def settled(self) -> None:
        """Wait until the money lane has settled and the outer loop has heard of it."""
        await self.engine.money.call(self.engine.path.desk.settle())
        for _ in range(5):
            await asyncio.sleep(0)

    async def order(self, symbol: str = "AAPL", side: str = "buy", quantity: int = 100, **more: Any) -> Any:
        """Place an order that must pass, and give its body."""
        number = f"test-{len(self.exchange.submitted)}-{symbol}"
        result = await self.do("place_order", id=number, symbol=symbol, side=side, quantity=quantity, **more)
        return result["order"]

    async def fill(self, order_id: str, price: str = "10", quantity: int | None = None) -> None:
        """Fill an order at the exchange, on the money lane where it lives, and let everything settle."""

        async def fill() -> None:
            self.exchange.fill(order_id, Decimal(price), None if quantity is None else Decimal(quantity))

        await self.engine.money.call(fill())
        await self.settled()

    async def fill_all(self, price: str = "10") -> None:
        """Fill every market order that works at the exchange."""
        for order in [*self.exchange.orders.values()]:
            if order.state == "working" and order.request.order_type == "market":
                await self.fill(order.order_id, price)

    def body(self, name: str) -> Mapping[str, Any]:
        """Give a body of the board; an empty one where there is none."""
        return self.engine.board.get(name) or {}

    def row(self, name: str) -> Mapping[str, Any]:
        """Give the row of a plugin instance in `state/plugins`."""
        rows: Sequence[Mapping[str, Any]] = self.body("plugins")["plugins"]
        return next(row for row in rows if row["name"] == name)

    def updates(self) -> list[StatusUpdate]:
        """List the status updates that went over the bus."""
        return [event.data for event in self.events if isinstance(event.data, StatusUpdate)]

    def told(self, kind: type[EventData]) -> list[Any]:
        """List the data of events of a type."""
        return [event.data for event in self.events if isinstance(event.data, kind)]

    def steps(self, order_id: str) -> list[str]:
        """Name the events of an order, in order."""
        return [str(data.event) for data in self.told(TradeEvent) if data.order_id == order_id]

    async def until(self, what: Callable[[], object], why: str = "it", within: float = 20) -> None:
        """Wait until something is true."""
        end = monotonic() + within
        while not what():
            if monotonic() > end:
                raise AssertionError(f"{why} did not come in time")
            await asyncio.sleep(0.005)


def threads() -> set[str]:
    """Name the threads of Sigma9 that run."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("sigma9-")}


__all__ = ["START", "EngineRoom", "HandFeed", "threads", "write_calendar"]

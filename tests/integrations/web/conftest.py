"""A web service on a free port in front of a `FakeServer`, with real sockets all the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn.server
from websockets.asyncio.client import ClientConnection, connect

from sigma9_core.commands import Right
from sigma9_core.config import Settings
from sigma9_core.contracts import EventPage
from sigma9_core.events import (
    Event,
    EventType,
    LogLevel,
    LogLine,
    MarketData,
    StatusUpdate,
    TradeEvent,
    WatchlistUpdate,
)
from sigma9_core.models import OrderStatus
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.web.service import WebService

READ, TRADE, ADMIN = "secret-read", "secret-trade", "secret-admin"
TOKENS: dict[str, tuple[str, Right]] = {
    READ: ("viewer", "read"),
    TRADE: ("phone", "trade"),
    ADMIN: ("owner", "admin"),
}


class Peer(FakeServer):
    """A `FakeServer` whose journal can be old, slow or ahead of the bus, and which makes events."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.tokens = dict(TOKENS)
        self.first = 1
        self.before_page: Callable[[], Any] = lambda: None
        """Called, and awaited where it gives a coroutine, before each page is read."""
        self.pages = 0

    async def events(self, after: int, limit: int, types: frozenset[EventType] | None = None) -> EventPage:
        """Read kept events after a number."""
        self.pages += 1
        waiting = self.before_page()
        if waiting is not None:
            await waiting
        page = await super().events(max(after, self.first - 1), limit, types)
        last = self.journal[-1].seq if self.journal else 0
        return EventPage(page.events, page.next, page.journal_id, self.first, last or 0)

    def trade(self, symbol: str = "AAPL", order_id: str = "o-1", event: str = "filled") -> Event:
        """Emit a trade_event."""
        data = TradeEvent.model_validate(
            {
                "event": OrderStatus(event),
                "order_id": order_id,
                "symbol": symbol,
                "side": "buy",
                "quantity": 10,
                "order_type": "market",
                "time_in_force": "day",
                "filled_quantity": 10,
                "average_price": "12.34",
                "source": "api",
                "trade_id": "x-1",
            }
        )
        return self.emit("trade_event", data, durable=True)

    def status(self) -> Event:
        """Emit a status_update."""
        data = StatusUpdate(changed=("engine",), reason="started", status={"engine": "running"})
        return self.emit("status_update", data, durable=True)

    def watchlist(self) -> Event:
        """Emit a watchlist_update."""
        return self.emit("watchlist_update", WatchlistUpdate(reason="scan", count=0), durable=True)

    def log(self, message: str, level: LogLevel = "info") -> Event:
        """Emit a log line."""
        return self.emit("log", LogLine(level=level, logger="test", message=message), durable=False)

    def quote(self, symbol: str = "AAPL", bid: float = 1.0) -> Event:
        """Emit a quote."""
        data = MarketData(symbol=symbol, kind="quote", ts=self.clock.now(), bid=bid, ask=bid + 0.01)
        return self.emit("market_data", data, durable=False)


class Hasty:
    """The asyncio module, for uvicorn alone, whose naps of 0.1 s while it shuts down are short."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save each test a tenth of a second."""
    monkeypatch.setattr(uvicorn.server, "asyncio", Hasty())


class Node:
    """A running web service and what a client needs to reach it."""

    def __init__(self, server: Peer, service: WebService) -> None:
        assert service.address is not None
        self.server = server
        self.service = service
        self.url = service.address.url
        self.port = service.address.port

    def http(self, token: str | None = ADMIN) -> httpx.AsyncClient:
        """Open an HTTP client that shows a token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False)

    def ws(
        self,
        query: str = "",
        token: str | None = READ,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> connect:
        """Open a WebSocket that shows a token as a header."""
        shown = dict(headers or {})
        if token is not None:
            shown["Authorization"] = f"Bearer {token}"
        url = f"{self.url.replace('http', 'ws', 1)}/ws/feed{query}"
        return connect(url, additional_headers=shown, proxy=None, max_queue=None, **more)


class Frames:
    """Reads envelopes from a WebSocket, one by one, out of batches as well."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._waiting: list[dict[str, Any]] = []
        self.arrays = 0

    async def next(self, timeout: float = 5.0) -> dict[str, Any]:
        """Give the next envelope."""
        if not self._waiting:
            async with asyncio.timeout(timeout):
                found = json.loads(await self.connection.recv())
            self.arrays += isinstance(found, list)
            self._waiting = found if isinstance(found, list) else [found]
        return self._waiting.pop(0)

    async def take(self, count: int) -> list[dict[str, Any]]:
        """Give the next `count` envelopes."""
        return [await self.next() for _ in range(count)]

    async def snapshots(self) -> list[dict[str, Any]]:
        """Give everything up to and including the two snapshots."""
        frames = [await self.next()]
        while [f["data"].get("reason") for f in frames[-2:]] != ["snapshot", "snapshot"]:
            frames.append(await self.next())
        return frames

    async def until(self, message: str) -> list[dict[str, Any]]:
        """Give everything before the log line of this message."""
        frames: list[dict[str, Any]] = []
        while True:
            frame = await self.next()
            if frame["type"] == "log" and frame["data"]["message"] == message:
                return frames
            frames.append(frame)


Serve = Callable[..., AbstractAsyncContextManager[Node]]


def seqs(frames: Sequence[dict[str, Any]]) -> list[int]:
    """List the numbers of the durable frames."""
    return [frame["seq"] for frame in frames if frame["seq"] is not None]


@asynccontextmanager
async def serve(**server: Any) -> AsyncIterator[Node]:
    """Serve a fake node with these `server` settings, and find nothing left behind afterwards."""
    settings = Settings.model_validate({"server": {"port": 0, **server}})
    async with Peer(settings) as peer:
        service = WebService()
        await service.start(peer)
        node = Node(peer, service)
        try:
            yield node
        finally:
            await service.stop()
        assert [task for task in asyncio.all_tasks() if "web" in task.get_name()] == []
        assert not peer.bus._subscriptions


@pytest.fixture(name="serve")
def _serve() -> Serve:
    return serve


@pytest.fixture(name="node")
async def _node() -> AsyncIterator[Node]:
    async with serve() as node:
        yield node


@pytest.fixture(name="frames")
def _frames() -> type[Frames]:
    return Frames


@pytest.fixture(name="seqs")
def _seqs() -> Callable[[Sequence[dict[str, Any]]], list[int]]:
    return seqs


async def eventually(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually

"""The peer itself: its port, its connections, and its control."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Final, Self

from sigma9_core.testing.tws.client import Client
from sigma9_core.testing.tws.clock import PeerClock
from sigma9_core.testing.tws.control import Control, Number, decimal
from sigma9_core.testing.tws.session import Session
from sigma9_core.testing.tws.world import World

LOCAL: Final = "127.0.0.1"


class FakeTws(Control):
    """A TWS or IB Gateway to test against: `async with FakeTws() as tws`, then connect to `tws.port`."""

    host: str

    def __init__(
        self,
        *,
        accounts: Sequence[str] = ("DU1234567",),
        cash: Number = 100_000,
        spread: Number = 0,
        seed: int = 0,
        clock: PeerClock | None = None,
        zone: str = "UTC",
        master_client_id: int | None = None,
        first_order_id: int = 1,
        live_data: bool = True,
        any_symbol: bool = False,
        host: str = LOCAL,
        port: int = 0,
        log: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(
            World(
                accounts=accounts,
                cash=decimal(cash),
                spread=decimal(spread),
                seed=seed,
                clock=clock or PeerClock(),
                zone=zone,
                master_client_id=master_client_id,
                first_order_id=first_order_id,
                live_data=live_data,
                any_symbol=any_symbol,
            )
        )
        self.host = host
        self.port = port
        self._log = log or (lambda line: None)
        self._server: asyncio.Server | None = None
        self._starting = False
        self._numbers = itertools.count(1)
        self._running: set[asyncio.Task[None]] = set()
        self.world.restart = lambda seconds: self.restart(seconds=seconds)

    async def start(self) -> Self:
        """Listen; `port` says where, when it was 0."""
        await self.come_back()
        return self

    async def stop(self) -> None:
        """Close everything."""
        await self.go_away()
        self.clock.stop()
        await asyncio.gather(*self._running)

    async def go_away(self) -> None:
        """Cut every connection and refuse new ones until `come_back`; the market trades on."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.drop()

    async def come_back(self) -> None:
        """Take connections (again), on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._visit, self.host, self.port)
            self.port = int(self._server.sockets[0].getsockname()[1])

    def restart(self, *, forget_ids: bool = True, seconds: float = 0) -> None:
        """Restart as a gateway does every night: connections close (for `seconds`), order ids begin again."""
        self.drop()
        if seconds:
            self._starting = True
            self.clock.later(seconds, self._started)
        self.world.link_up = self.world.streaming.up = True
        self.world.waiting.clear()
        if forget_ids:
            self.book.next_ids.clear()
            for key, ticket in list(self.book.numbers.items()):
                if not ticket.live:
                    del self.book.numbers[key]

    def _started(self) -> None:
        self._starting = False

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        """Stop."""
        await self.stop()

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._starting:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
        client = Client(
            number=next(self._numbers),
            write=lambda data: None if writer.is_closing() else writer.write(data),
            hang_up=lambda at_once: writer.transport.abort() if at_once else writer.close(),
            log=self._log,
        )
        self.world.clients.append(client)
        try:
            await Session(self.world, client, reader, self.look).run()
        finally:
            client.ready = False
            self.world.streaming.forget(client)
            self.world.clients.remove(client)
            self.look()
            writer.close()
            if task is not None:
                self._running.discard(task)

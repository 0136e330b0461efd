"""The HTTP server: uvicorn inside our own loop, with our signals, our log and a bound on stalled clients."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sigma9_core.errors import Sigma9Error

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn._types import ASGISendEvent

MESSAGE_BYTES = 64 * 1024
"""The largest WebSocket message that a client may send."""
PING_SECONDS = 20.0
"""A WebSocket client is pinged this often, and given up when it does not answer within the same time."""
GRACE_SECONDS = 1
"""How long requests that are still running get at the end."""


class FeedProtocol(WebSocketsSansIOProtocol):
    """A WebSocket connection that is cut when its client has read nothing for `stall_seconds`.

    The server's pings can't do that: their close waits behind the bytes that the client does not read.
    """

    stall_seconds: ClassVar[float] = 30.0
    _stall: asyncio.TimerHandle | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """Send, and count a handshake that was refused as done: uvicorn would log it as a fault of ours."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def pause_writing(self) -> None:
        """Start the clock when the client's buffers are full."""
        super().pause_writing()
        self._unstall()
        self._stall = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the clock when the client reads again."""
        self._unstall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock with the connection."""
        self._unstall()
        super().connection_lost(exc)

    def _unstall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


class HttpServer(uvicorn.Server):
    """Uvicorn without its own signal handlers, access log and ten wake-ups a second."""

    def __init__(self, app: ASGIApp, context: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http="h11",
            ws=FeedProtocol,
            ws_max_size=MESSAGE_BYTES,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            # At `info` uvicorn logs whole WebSocket addresses, at `debug` the headers: tokens stand in both.
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        config.load()
        config.ssl = context
        super().__init__(config)
        self._started = asyncio.Event()
        self._finish = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals to the process."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell who waits for it."""
        await super().startup(sockets)
        self._started.set()

    async def main_loop(self) -> None:
        """Renew the Date header once a second until `finish`."""
        while not await self.on_tick(0):
            try:
                async with asyncio.timeout(1.0):
                    await self._finish.wait()
            except TimeoutError:
                pass

    async def wait_started(self, task: asyncio.Task[None]) -> None:
        """Wait until the server that runs in `task` serves; raise what stopped it from doing so."""
        waiting = asyncio.create_task(self._started.wait(), name="web: waiting for the http server")
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if task.done():
            await task
            raise Sigma9Error("the HTTP server ended while it was starting: see the log")

    def finish(self) -> None:
        """Ask the server to end: running requests get a second."""
        self.should_exit = True
        self._finish.set()
        for connection in tuple(self.server_state.connections):
            # A client that does not read would hold up the end: its bytes never leave.
            if isinstance(connection, FeedProtocol) and connection.transport.get_write_buffer_size():
                connection.transport.abort()

    async def abort(self) -> None:
        """Cut what is still connected after the end, and await what still runs."""
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        running = tuple(self.server_state.tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes aborted transports in its next round

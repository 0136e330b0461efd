"""The web service: one HTTP server on the outer loop for REST, WebSocket and the dashboard.

This module is imported at every start, so it imports the web framework in `start`, not here.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

from sigma9_core.errors import Sigma9Error
from sigma9_integrations.web.listener import Address, bind, tls_context

if TYPE_CHECKING:
    from sigma9_core.contracts import Server
    from sigma9_integrations.web.feed import Feed
    from sigma9_integrations.web.httpd import HttpServer

logger = logging.getLogger("sigma9.web")

STOP_SECONDS = 3.0
"""How long `stop` waits for the HTTP server to end by itself before it is cancelled."""


class WebService:
    """Serve one node's REST, WebSocket and dashboard (`contracts.Service`)."""

    def __init__(self) -> None:
        self.address: Address | None = None
        """Where it serves, between `start` and `stop`."""
        self._feed: Feed | None = None
        self._httpd: HttpServer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, server: Server) -> None:
        """Bind the address and serve; raise Sigma9Error, in one sentence, where that can't be done."""
        if self._task is not None:
            raise Sigma9Error("the web service is running already: stop it before it is started again")
        settings = server.settings.server
        context = tls_context(settings)
        address = await bind(settings)
        try:
            await self._serve(server, address, context)
        except BaseException:
            address.close()
            raise
        self.address = address
        server.serves_at(address.url)
        server.announce(f"REST and WebSocket  {address.url}")
        server.announce(f"Dashboard           {address.url}/")

    async def stop(self) -> None:
        """Close WebSockets with 1001, let running requests end, close every socket."""
        feed, httpd, task, address = self._feed, self._httpd, self._task, self.address
        self._feed = self._httpd = self._task = self.address = None
        if feed is not None:
            await feed.close()
        if httpd is not None and task is not None:
            httpd.finish()
            await asyncio.wait({task}, timeout=STOP_SECONDS)
            if not task.done():
                logger.error("the HTTP server did not end within %g s: cancelled", STOP_SECONDS)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await httpd.abort()
        if address is not None:
            address.close()

    async def _serve(self, server: Server, address: Address, context: ssl.SSLContext | None) -> None:
        from sigma9_integrations.web.app import build_app  # noqa: PLC0415 - the framework is imported late
        from sigma9_integrations.web.httpd import HttpServer  # noqa: PLC0415

        app, feed = build_app(server, address)
        httpd = HttpServer(app, context)
        task = asyncio.create_task(httpd.serve(address.sockets), name="web: http server")
        await httpd.wait_started(task)
        task.add_done_callback(_log_crash)
        self._feed, self._httpd, self._task = feed, httpd, task


def _log_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the HTTP server ended: %s", error, exc_info=error)

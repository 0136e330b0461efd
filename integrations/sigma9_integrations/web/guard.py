"""The outermost layer of the web service: Host check, security headers, redaction, counting."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from sigma9_core.errors import CommandError
from sigma9_integrations.web.access import IN_QUERY, Access
from sigma9_integrations.web.answers import Refusal, refuse
from sigma9_integrations.web.metrics import Metrics

HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the Host header, then hand over with answers that carry the security headers."""
        _take_token(scope)
        send = _guarded(send)
        try:
            self._access.check_host(Headers(scope=scope).get("host"))
        except CommandError as error:
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(refuse(error))
            else:
                await refuse(error)(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._metrics.requests[message["status"]] += 1
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except asyncio.CancelledError:
            # The server ends while this request runs; an honest answer is better than a torn connection.
            if started:
                raise
            text = "the server stopped before the answer was ready: whether it was carried out is not known"
            await refuse(Refusal(503, text, code="internal"))(scope, receive, counted)


def _guarded(send: Send) -> Send:
    """Give what is answered the security headers, a refused handshake included."""

    async def guarded(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(raw=message["headers"])
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return guarded


def _take_token(scope: Scope) -> None:
    """Move a token out of the query, in place: whoever logs the address from here on can't show it."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    tokens = [value for name, value in query if name == "token"]
    if tokens:
        scope[IN_QUERY] = tokens[-1]
        scope["query_string"] = urlencode([pair for pair in query if pair[0] != "token"]).encode()

"""The WebSocket `/ws/feed`: durable events since a number, two snapshots, then live events (contract 6).

Every client has one bounded mailbox on the bus and one sender task, so that a client that is slow, or does not
read at all, costs the others nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any, Final, get_args

from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from sigma9_core.bus import Subscription
from sigma9_core.clock import rfc3339, wall_now
from sigma9_core.contracts import EventPage, Server
from sigma9_core.errors import CommandError, Sigma9Error
from sigma9_core.events import LogLine, StatusPart, encode
from sigma9_integrations.web.access import IN_QUERY, Access, Identity, websocket_token
from sigma9_integrations.web.answers import Refusal, refuse, to_json
from sigma9_integrations.web.filters import Wish, read_subscribe, read_wish, wants
from sigma9_integrations.web.metrics import Metrics
from sigma9_integrations.web.reads import check_range

logger = logging.getLogger("sigma9.web")

PAGE: Final = 200
"""Durable events that are read from the journal at once."""
ROUND: Final = 100
"""Events that one client gets before the others have their turn."""
FRAME: Final = 64 * 1024
"""Characters in a batch, about; one event is never parted."""
CLOSE_SECONDS: Final = 1.0
"""How long a close frame may wait for a client that does not read."""
CHECK_SECONDS: Final = 30.0
"""How often it is asked whether a client's token is still valid."""

GOING_AWAY: Final = 1001
POLICY: Final = 1008
INTERNAL: Final = 1011
TRY_AGAIN: Final = 1013


class Ended(Exception):
    """Close the connection with a code and a reason; `0` where the client has gone already."""

    def __init__(self, code: int, reason: str = "") -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)


class Feed:
    """All WebSocket clients of this node; an ASGI application for their path."""

    def __init__(self, server: Server, access: Access, metrics: Metrics) -> None:
        self._server = server
        self._access = access
        self._metrics = metrics
        self._clients: dict[FeedClient, asyncio.Task[Any]] = {}
        self._closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a handshake: refuse it by an HTTP status, or serve the client until it or the server goes."""
        socket = WebSocket(scope, receive, send)
        try:
            identity, subprotocol = self._admit(socket)
            wish = read_wish(socket.query_params)
        except CommandError as error:
            await self._refuse(socket, error)
            return
        subscription = self._server.bus.subscribe(
            f"websocket of {identity.name}", wish.interest, durable_room=self._server.settings.server.ws_queue
        )
        try:
            try:
                page = await self._first_page(wish)
            except CommandError as error:
                await self._refuse(socket, error)
                return
            await socket.accept(subprotocol)
            client = FeedClient(self._server, subscription, (receive, send), wish, page)
            await self._serve(client, identity)
        finally:
            subscription.close()

    async def close(self) -> None:
        """Refuse new clients, and close those that are connected with 1001."""
        self._closing = True
        for client in self._clients:
            client.end(GOING_AWAY, "the server is stopping")
        if self._clients:
            await asyncio.wait(tuple(self._clients.values()), timeout=CLOSE_SECONDS + 0.5)

    def _admit(self, socket: WebSocket) -> tuple[Identity, str | None]:
        """Check origin and token, in this order; give the sub-protocol that must be echoed."""
        headers = socket.headers
        if self._closing:
            raise Refusal(503, "the server is stopping", code="not_running")
        self._access.check_origin(headers.get("origin"), headers.get("host"))
        scope = socket.scope
        token, subprotocol = websocket_token(headers, scope.get(IN_QUERY), scope["subprotocols"])
        return self._access.identify(token), subprotocol

    async def _first_page(self, wish: Wish) -> EventPage | None:
        """Read the first events since `after`, once the mailbox is open: nothing falls between the two."""
        if wish.after is None:
            return None
        try:
            page = await self._server.events(wish.after, PAGE)
        except CommandError:
            raise
        except Sigma9Error as error:
            logger.warning("the journal could not be read for a WebSocket client: %s", error)
            raise CommandError("internal", "the journal can't be read at present: try again") from error
        check_range(wish.after, page)
        return page

    async def _refuse(self, socket: WebSocket, error: CommandError) -> None:
        await socket.send_denial_response(refuse(error))

    async def _serve(self, client: FeedClient, identity: Identity) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - the HTTP server runs every connection in a task
        self._clients[client] = task
        self._metrics.clients += 1
        try:
            if self._closing:
                client.end(GOING_AWAY, "the server is stopping")
            code = await client.run(lambda: self._access.still_valid(identity))
            self._metrics.fell_behind += code == TRY_AGAIN
        finally:
            self._metrics.clients -= 1
            del self._clients[client]


class FeedClient:
    """One connected client: a task that sends, a task that listens, and the end of both."""

    def __init__(
        self,
        server: Server,
        subscription: Subscription,
        channel: tuple[Receive, Send],
        wish: Wish,
        page: EventPage | None,
    ) -> None:
        self._server = server
        self._subscription = subscription
        self._batch = wish.batch
        self._page = page
        self._receive, self._send = channel
        self._seen = server.bus.last_seq if wish.after is None else wish.after
        """The newest durable number that this client has, or does not want."""
        self._opened = asyncio.Event()
        self._end: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    def end(self, code: int, reason: str) -> None:
        """Close the connection soon."""
        if not self._end.done():
            self._end.set_result(Ended(code, reason))

    async def run(self, still_valid: Any) -> int:
        """Serve until one side goes, and give the code of the close; 0 where the client went."""
        name = self._subscription.name
        tasks = (
            asyncio.create_task(self._stream(), name=f"{name}: sender"),
            asyncio.create_task(self._listen(), name=f"{name}: listener"),
        )
        try:
            while True:
                done, _ = await asyncio.wait(
                    (*tasks, self._end), timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    break
                if not still_valid():
                    self.end(POLICY, "the token is no longer valid")
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        ended = self._verdict(results)
        if ended.code:
            await self._close(ended)
        return ended.code

    def _verdict(self, results: Sequence[object]) -> Ended:
        """Decide what ended the connection: what a task raised comes first, then what was asked for."""
        for result in results:
            if isinstance(result, Ended):
                return result
            if isinstance(result, OSError):  # uvicorn's ClientDisconnected is one
                return Ended(0)
            if isinstance(result, Exception):
                logger.error("%s: ended by a fault", self._subscription.name, exc_info=result)
                return Ended(INTERNAL, "internal error")
        return self._end.result() if self._end.done() else Ended(0)

    async def _close(self, ended: Ended) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._send({"type": "websocket.close", "code": ended.code, "reason": ended.reason})
        except (TimeoutError, OSError):
            pass  # it does not read, and is cut when it has not for long; or it has gone

    # --- sending ----------------------------------------------------------------------------------------------

    async def _stream(self) -> None:
        if self._page is not None:
            await self._backlog(self._page)
        await self._snapshots()
        self._opened.set()
        subscription = self._subscription
        while True:
            events = await subscription.take(ROUND)
            frames = []
            durable = False
            for event in events:
                if event.seq is not None:
                    durable = True
                    if event.seq <= self._seen:
                        continue  # it came out of the journal already
                    self._seen = event.seq
                if subscription.interest.wants(event):  # the filter may have changed since it was put there
                    frames.append(event.raw)
            await self._send_all(frames)
            if subscription.overflowed and not durable:
                raise Ended(TRY_AGAIN, f"fell behind; resume with after={self._seen}")
            await asyncio.sleep(0)

    async def _backlog(self, page: EventPage) -> None:
        """Send the journal's events up to the newest that the bus has dispatched; later ones come through it."""
        self._page = None
        bus, subscription = self._server.bus, self._subscription
        while True:
            if page.first > self._seen + 1:
                raise Ended(TRY_AGAIN, f"the journal no longer holds what follows after={self._seen}")
            frames = []
            caught_up = page.next is None
            for raw in page.events:
                envelope = json.loads(raw)
                seq: int = envelope["seq"]
                if seq > bus.last_seq:
                    caught_up = True
                    break
                self._seen = max(self._seen, seq)
                if wants(subscription.interest, envelope):
                    frames.append(raw)
            await self._send_all(frames)
            if caught_up:
                if not subscription.overflowed:
                    return
                # More happened meanwhile than the mailbox holds: the journal has that too.
                subscription.resume()
            page = await self._server.events(self._seen, PAGE)

    async def _snapshots(self) -> None:
        """Send the state as it is, with the number of the last event that is in it."""
        board = self._server.board
        watchlist = board.get("watchlist") or {}
        status = {
            "changed": get_args(StatusPart),
            "reason": "snapshot",
            "status": board.get("status") or {},
            "as_of_seq": self._seen,
        }
        items = watchlist.get("items", ())
        update = {
            "reason": "snapshot",
            "strategy": None,
            "added": (),
            "removed": (),
            "count": len(items),
            "items": items,
            "as_of_seq": self._seen,
        }
        await self._send_all([self._snapshot("status_update", status), self._snapshot("watchlist_update", update)])

    def _snapshot(self, kind: str, data: dict[str, Any]) -> str:
        now = rfc3339(self._server.clock.now())
        return to_json(
            {"type": kind, "v": 1, "seq": None, "ts": now, "node": self._server.settings.node, "data": data}
        )

    async def _send_all(self, frames: Sequence[str]) -> None:
        if self._batch and len(frames) > 1:
            frames = _batches(frames)
        for frame in frames:
            await self._send({"type": "websocket.send", "text": frame})

    # --- listening --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                self._subscription.interest = read_subscribe(message.get("text"))
            except CommandError as error:
                await self._opened.wait()
                await self._send({"type": "websocket.send", "text": self._warning(error.message)})

    def _warning(self, text: str) -> str:
        line = LogLine(
            level="warning", logger="sigma9.web", message=f"a message of this client was not understood: {text}"
        )
        # A log line has the wall clock's time, also where the market runs on a clock of its own.
        return encode("log", line, seq=None, ts=wall_now(), node=self._server.settings.node)


def _batches(frames: Sequence[str]) -> list[str]:
    """Put events that wait together into JSON arrays of a bounded size; one alone stays as it is."""
    batches: list[str] = []
    batch: list[str] = []
    size = 0
    for frame in frames:
        if batch and size + len(frame) > FRAME:
            batches.append(_array(batch))
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    return [*batches, _array(batch)] if batch else batches


def _array(batch: Sequence[str]) -> str:
    return batch[0] if len(batch) == 1 else f"[{','.join(batch)}]"

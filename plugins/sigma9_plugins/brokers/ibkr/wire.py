"""One connection to TWS: the library's client, its messages as they come, and what is sent through the lanes.

A wire is opened once; the next connection is a new one. Messages go to handlers by the names that the library
gives them; what no handler wants is dropped. Nothing is asked for on its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from types import SimpleNamespace
from typing import Any, Final

from sigma9_core.clock import monotonic
from sigma9_core.errors import BrokerError
from sigma9_plugins.brokers.ibkr.codes import action, says
from sigma9_plugins.brokers.ibkr.ids import HIGHEST
from sigma9_plugins.brokers.ibkr.lanes import LaneName, Lanes, Parcel
from sigma9_plugins.brokers.ibkr.library import Library

log = logging.getLogger("sigma9.ibkr")

Handler = Callable[..., None]
NO_REQUEST: Final = -1


class ClientIdInUse(BrokerError):
    """Another client is connected under the client id."""


class Wire:
    """A connection, from `open` to its end, on the loop that opens it."""

    def __init__(self, library: Library, rate: int, *, reserved: bool = True, beside: Wire | None = None) -> None:
        """Make one that is not open yet; some of the rate is `reserved` for cancels.

        One `beside` another shares the lanes of that: IB counts what both send.
        """
        self.library = library
        self.lanes: Lanes = Lanes(rate, reserved=reserved) if beside is None else beside.lanes
        self._shares = beside is not None
        self.heard_at = monotonic()
        """When the last bytes came."""
        self.client_id = 0
        self.on_lost: Callable[[str], None] = lambda _why: None
        """Told once, when an open connection ends by itself."""
        self._handlers: dict[str, list[Handler]] = {}
        self._client: Any = library.client(_Ears(self))
        self._client.MaxRequests = 0  # it would queue cancels behind orders; the lanes keep the pace
        self._numbers = itertools.count(HIGHEST)
        self._refused: asyncio.Future[None] | None = None
        self._open = False

    # --- life ------------------------------------------------------------------------------------------------

    async def open(self, host: str, port: int, client_id: int, within: float) -> None:
        """Connect and wait until TWS is ready; raise ClientIdInUse or BrokerError, and leave nothing open."""
        self.client_id = client_id
        self._refused = asyncio.get_running_loop().create_future()
        dialling = asyncio.ensure_future(self._client.connectAsync(host, port, client_id, within))
        try:
            await asyncio.wait((dialling, self._refused), return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                self._refused.result()
            await dialling
        except TimeoutError as error:
            raise BrokerError(f"{host}:{port} did not finish the greeting within {within:g} s") from error
        except OSError as error:
            # asyncio's own words name the address once more, and no reason.
            why = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
            raise BrokerError(
                f"{host}:{port} can't be reached ({why or type(error).__name__}): start TWS or IB Gateway, or "
                "correct ibkr.host and ibkr.port"
            ) from error
        finally:
            if not dialling.done():
                dialling.cancel()
                await asyncio.gather(dialling, return_exceptions=True)
            if self._refused.done() and not self._refused.cancelled():
                self._refused.exception()  # seen: nobody else will ask for it
            self._refused = None
            self._open = bool(self._client.isReady())
            if not self._open:
                self._abort()
        if not self._open:
            raise BrokerError(f"{host}:{port} closed the connection during the greeting")

    def close(self) -> None:
        """Hang up."""
        self._open = False
        self._clear()
        self._client.disconnect()

    def abort(self, why: str) -> None:
        """Give up a connection that is dead, though its socket says nothing of it."""
        if self._open:
            self._end(why)
        self._abort()

    @property
    def is_open(self) -> bool:
        """Tell whether it can send."""
        return self._open

    @property
    def accounts(self) -> tuple[str, ...]:
        """Name the accounts of the login."""
        return tuple(self._client.getAccounts())

    @property
    def first_free_id(self) -> int:
        """Give the order id that TWS told as the next free one."""
        return int(self._client._reqIdSeq)  # noqa: SLF001 - the library has no other way to read it without using it up

    # --- what leaves -----------------------------------------------------------------------------------------

    def number(self) -> int:
        """Make the number of a question."""
        return next(self._numbers)

    def put(self, lane: LaneName, *calls: tuple[str, tuple[Any, ...]]) -> Parcel:
        """Send the client's calls, by name and arguments, as one parcel; raise BrokerError where it is closed."""
        if not self._open:
            raise BrokerError("not connected to TWS")
        return self.lanes.put(lane, len(calls), lambda: self._send(calls))

    def rewrite(self, parcel: Parcel, *calls: tuple[str, tuple[Any, ...]]) -> None:
        """Put other calls in the place of those of a parcel that has not left; it keeps its turn."""
        parcel.messages, parcel.send = len(calls), lambda: self._send(calls)

    def _send(self, calls: tuple[tuple[str, tuple[Any, ...]], ...]) -> None:
        """Write all calls with one write: a unit must not be torn where this process dies in the middle of it."""
        if not self._open:  # it broke just now: what has left is read back
            return
        frames: list[bytes] = []
        connection = self._client.conn
        send, connection.sendMsg = connection.sendMsg, frames.append
        try:
            try:
                for name, arguments in calls:
                    getattr(self._client, name)(*arguments)
            finally:
                connection.sendMsg = send
            send(b"".join(frames))
        except OSError as error:  # the library raises ConnectionError where it thinks that it is not connected
            self.abort(f"sending failed: {error}")

    # --- what comes ------------------------------------------------------------------------------------------

    def on(self, handlers: Mapping[str, Handler]) -> None:
        """Add handlers by the names of messages."""
        for name, handler in handlers.items():
            self._handlers.setdefault(name, []).append(handler)

    def off(self, handlers: Mapping[str, Handler]) -> None:
        """Take handlers out again."""
        for name, handler in handlers.items():
            self._handlers[name].remove(handler)

    @contextmanager
    def listening(self, handlers: Mapping[str, Handler]) -> Iterator[None]:
        """Add handlers for a while."""
        self.on(handlers)
        try:
            yield
        finally:
            self.off(handlers)

    def take(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Take a message; what a handler raises is logged, and the next one has its turn."""
        if name == "tcpDataArrived":
            self.heard_at = monotonic()
            return
        if name == "error":
            self._refusal(*arguments[:3])
            self._complaint(*arguments[:3])
        elif name == "setEventsDone":
            self._ended()
            return
        for handler in tuple(self._handlers.get(name, ())):
            try:
                handler(*arguments)
            except Exception:
                # The library would swallow it: one message that can't be taken must not cost the others.
                log.exception("the message %s of TWS can't be taken", name)

    def _refusal(self, request: int, code: int, text: str) -> None:
        if self._refused is None or self._refused.done() or request != NO_REQUEST:
            return
        if action(code) == "other_client_id":
            self._refused.set_exception(ClientIdInUse(f"client id {self.client_id}: {says(code, text)}"))
        elif action(code) == "connect_again":
            self._refused.set_exception(BrokerError(says(code, text)))

    def _complaint(self, request: int, code: int, text: str) -> None:
        """Take what TWS says of an open connection: that it is used too fast, or that it is of no use any more."""
        if not self._open:
            return
        if action(code) == "slow_down":
            log.warning("%s", says(code, text))
            self.lanes.pause()
        elif request == NO_REQUEST and action(code) == "connect_again":
            self.abort(says(code, text))

    def _ended(self) -> None:
        """Learn that the socket has closed."""
        if self._refused is not None and not self._refused.done():
            self._refused.set_exception(BrokerError("TWS closed the connection during the greeting"))
        if self._open:
            self._end("TWS closed the connection")

    def _end(self, why: str) -> None:
        self._open = False
        self._clear()
        self.on_lost(why)

    def _clear(self) -> None:
        if not self._shares:  # else most of what waits there is the other's
            self.lanes.clear()

    def _abort(self) -> None:
        transport = self._client.conn.transport
        self._client.disconnect()
        if transport is not None:
            transport.abort()


class _Ears:
    """What the library takes for its wrapper: every message becomes a call of `Wire.take`."""

    defaultTimezone = UTC  # noqa: N815 - the library's name
    ib = SimpleNamespace(TimezoneTWS="")  # asked where an execution's time has no zone: then it is this machine's

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._known: dict[str, Handler] = {}

    def __getattr__(self, name: str) -> Handler:
        if name.startswith("_"):
            raise AttributeError(name)
        wire = self._wire

        def take(*arguments: Any) -> None:
            wire.take(name, arguments)

        self.__dict__[name] = take  # the next look-up is a plain one
        return take

"""The kill's own door on this machine: a Unix socket and SIGUSR1, both heard on the doors' lane.

Nothing stands before it: no other client, no event loop that a plugin could block, no network. `sigma9 kill` uses
the socket; whoever may signal the process may use `kill -USR1`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from sigma9_core.clock import monotonic
from sigma9_core.commands import Command, CommandSource, Response
from sigma9_core.errors import CommandError
from sigma9_core.payload import read_command

log = logging.getLogger("sigma9.kill")

LONGEST_LINE: Final = 64 * 1024
WAITING: Final = 100
"""Visitors that may wait to be let in."""
KNOCK_AGAIN: Final = 0.1
"""Seconds until the next visitor is let in after one could not be."""
READ_WITHIN: Final = 5.0
"""Seconds that a visitor has to say what it wants."""
ANSWERED_WITHIN: Final = 3.0
"""Seconds that `close` leaves to kills that are being answered: a kill answers within 2."""
LONGEST_PATH: Final = 100
"""Unix sockets take about 104 bytes of path; a longer one is left out, and said."""

Killer = Callable[[Command], Awaitable[Response]]


class KillDoor:
    """Listens for kills on a socket file of mode 0600, and for signals through the wake-up socket."""

    def __init__(
        self,
        path: Path,
        kill: Killer,
        specs: Mapping[str, Any],
        on_end: Callable[[], None],
        signals: socket.socket | None = None,
    ) -> None:
        """Store; `signals` is the reading end of `signal.set_wakeup_fd`, SIGINT and SIGTERM call `on_end`."""
        self.path = path
        self._kill = kill
        self._specs = specs
        self._end = on_end
        self._ear: socket.socket | None = None
        self._signals = signals
        self._tasks: set[asyncio.Task[None]] = set()
        self._visitors: set[_Visit] = set()

    async def open(self) -> None:
        """Listen; where the socket can't be made it is left out, and said."""
        if self._signals is not None:
            asyncio.get_running_loop().add_reader(self._signals, self._heard)
        if len(str(self.path)) > LONGEST_PATH:
            log.warning("%s is too long for a Unix socket; `sigma9 kill` goes by REST", self.path)
            return
        if not self._clear():
            return
        ear = socket.socket(socket.AF_UNIX)
        try:
            ear.setblocking(False)
            ear.bind(str(self.path))
            self.path.chmod(0o600)
            ear.listen(WAITING)
        except OSError as error:
            ear.close()
            log.warning("the kill's socket %s can't be made (%s); `sigma9 kill` goes by REST", self.path, error)
            return
        self._ear = ear
        self._listen(ear)

    def _listen(self, ear: socket.socket) -> None:
        if self._ear is ear:
            asyncio.get_running_loop().add_reader(ear, self._let_in, ear)

    def _let_in(self, ear: socket.socket) -> None:
        """Let a visitor in, and hear at once what it says: a turn of the loop more waits for every busy thread."""
        try:
            visitor, _ = ear.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # such as no file descriptor left: who knocks goes on waiting meanwhile
            log.error("a visitor can't come in at the kill's door now: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(ear)
            loop.call_later(KNOCK_AGAIN, self._listen, ear)
            return
        visitor.setblocking(False)
        visit = _Visit(self, self._visitors)
        try:
            said = visitor.recv(LONGEST_LINE)
        except BlockingIOError:
            said = b""
        except ConnectionError:
            visitor.close()
            return
        if said:
            visit.data_received(said)
        self.own(self._receive(visitor, visit), "kill-visitor")

    @staticmethod
    async def _receive(visitor: socket.socket, visit: _Visit) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: visit, visitor)
        finally:
            visit.inside.set()

    async def close(self) -> None:
        """Let nobody in any more; who is being answered gets a moment. Signals are heard until the lane ends."""
        if self._ear is not None:
            asyncio.get_running_loop().remove_reader(self._ear)
            self._ear.close()
            self._ear = None
            self._clear()
        for visitor in tuple(self._visitors):
            visitor.end()
        if self._tasks:
            _, late = await asyncio.wait(tuple(self._tasks), timeout=ANSWERED_WITHIN)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _clear(self) -> bool:
        """Remove the socket's file; False where that can't be done, such as in a folder that became read-only."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the kill's socket %s can't be removed (%s)", self.path, error)
            return False
        return True

    def begin(self, payload: bytes, source: CommandSource) -> Coroutine[Any, Any, dict[str, Any]]:
        """Take what was said: the gate is closed when this returns; await it for the kill's answer."""
        arrived = monotonic()
        try:
            command = read_command(
                "kill_switch", payload, self._specs, source=source, right="admin", actor="local"
            )
        except CommandError as error:
            return _refused(error)
        return _answered(self._kill(command), source, arrived)

    def own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Keep what is being answered, so that the end can wait for it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _heard(self) -> None:
        if self._signals is None:
            return
        try:
            numbers = self._signals.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number == signal.SIGUSR1:
                self.own(_heard_out(self.begin(b'{"reason": "SIGUSR1"}', "signal")), "kill-by-signal")
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._end()


class _Visit(asyncio.Protocol):
    """One visitor at the socket: it says one line, or what it has until it closes its side, and gets one back."""

    def __init__(self, door: KillDoor, visitors: set[_Visit]) -> None:
        self._door = door
        self._visitors = visitors
        self._transport: asyncio.WriteTransport | None = None
        self._leaves = False
        self.inside = asyncio.Event()
        """Set once it can be answered: what it says first is heard before."""
        self._said = bytearray()
        self._heard = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Listen, for a while."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - what a stream socket has
        self._transport = transport
        self._visitors.add(self)
        if self._leaves:
            transport.close()
            return
        if not self._heard:
            within = asyncio.get_running_loop().call_later
            self._timer = within(READ_WITHIN, self._leave, "said nothing that ends")

    def data_received(self, data: bytes) -> None:
        """Take the line as soon as it is whole: nothing comes between its bytes and the closed gate."""
        if self._heard:
            return
        self._said += data
        line, end, _ = self._said.partition(b"\n")
        if end:
            self._take(bytes(line))
        elif len(self._said) > LONGEST_LINE:
            self._leave("said too much")

    def eof_received(self) -> bool:
        """Take what was said without a line break; stay for the answer."""
        if not self._heard:
            if self._said:
                self._take(bytes(self._said))
            else:  # a visitor that says nothing: an empty payload is never a command
                self._leave("left without a word; nothing was done")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it; what it has said is carried out all the same."""
        self._visitors.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def end(self) -> None:
        """Let it go, unless it is being answered."""
        self._leaves = not self._heard
        if self._leaves and self._transport is not None:
            self._transport.close()

    def _take(self, line: bytes) -> None:
        self._heard = True
        answer = self._door.begin(line.strip(), "socket")
        self._door.own(self._answer(answer), "kill-by-socket")

    async def _answer(self, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
        answer = await work
        await self.inside.wait()
        if self._transport is None or self._transport.is_closing():
            log.warning("a visitor at the kill's door left before the answer")
            return
        self._transport.write(json.dumps(answer).encode() + b"\n")
        self._transport.close()  # once the answer has left

    def _leave(self, why: str) -> None:
        log.warning("a visitor at the kill's door %s", why)
        self.end()


async def _answered(work: Awaitable[Response], source: CommandSource, arrived: float) -> dict[str, Any]:
    response = await work
    log.info("kill by %s answered after %.1f ms", source, (monotonic() - arrived) * 1000)
    return response.body()


async def _refused(error: CommandError) -> dict[str, Any]:
    return {"command": "kill_switch", "ok": False, "error": {"code": error.code, "message": error.message}}


async def _heard_out(work: Awaitable[object]) -> None:
    await work

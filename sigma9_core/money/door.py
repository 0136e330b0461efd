"""The kill's own door on this machine: a Unix socket and SIGUSR1, both heard on the money lane.

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
        self._server: asyncio.Server | None = None
        self._signals = signals
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen; OSError where the socket can't be made."""
        if self._signals is not None:
            asyncio.get_running_loop().add_reader(self._signals, self._heard)
        if len(str(self.path)) > LONGEST_PATH:
            log.warning("%s is too long for a Unix socket; `sigma9 kill` goes by REST", self.path)
            return
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._visited, path=self.path, limit=LONGEST_LINE)
        self.path.chmod(0o600)

    async def close(self) -> None:
        """Let nobody in any more; who is being answered gets a moment. Signals are heard until the lane ends."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        if self._tasks:
            _, late = await asyncio.wait(tuple(self._tasks), timeout=ANSWERED_WITHIN)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._own(self._serve(reader, writer), "kill-by-socket")

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), READ_WITHIN)
            if not line:  # a visitor that says nothing: an empty payload is never a command
                log.warning("a visitor at the kill's door left without a word; nothing was done")
                return
            answer = await self._answer(line.strip(), "socket")
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (TimeoutError, ValueError) as error:
            log.warning("a visitor at the kill's door said nothing that ends: %s", error or type(error).__name__)
        except ConnectionError as error:
            log.warning("a visitor at the kill's door left before the answer: %s", error)
        finally:
            writer.close()

    async def _answer(self, payload: bytes, source: CommandSource) -> dict[str, Any]:
        arrived = monotonic()
        try:
            command = read_command(
                "kill_switch", payload, self._specs, source=source, right="admin", actor="local"
            )
        except CommandError as error:
            return {"command": "kill_switch", "ok": False, "error": {"code": error.code, "message": error.message}}
        response = await self._kill(command)
        log.info("kill by %s answered after %.1f ms", source, (monotonic() - arrived) * 1000)
        return response.body()

    def _heard(self) -> None:
        if self._signals is None:
            return
        try:
            numbers = self._signals.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number == signal.SIGUSR1:
                self._own(self._by_signal(), "kill-by-signal")
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._end()

    async def _by_signal(self) -> None:
        await self._answer(b'{"reason": "SIGUSR1"}', "signal")

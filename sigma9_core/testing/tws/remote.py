"""The peer in a thread, or in a process of its own, for tests that block or that live longer than their loop."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

from sigma9_core.testing.child import end
from sigma9_core.testing.tws.asking import asked
from sigma9_core.testing.tws.server import LOCAL, FakeTws

Answer = TypeVar("Answer")
PATIENCE: Final = 20.0
"""Seconds that an answer may take."""


class TwsThread:
    """Runs the peer in a loop of its own: `with TwsThread() as tws: tws.ask("halt", symbol="AMD")`."""

    def __init__(self, **options: Any) -> None:
        self.host = LOCAL
        self.port = 0
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-tws", daemon=True)
        self._tws: FakeTws | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self._thread.start()
        self._tws = self._do(self._make())
        self.port = self._tws.port
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop it."""
        if self._tws is not None:
            self._do(self._tws.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def ask(self, what: str, **more: Any) -> Any:
        """Ask or tell it something by name, and give the answer as plain data (blocks)."""
        return self._do(asked(self._running(), what, more))

    def call(self, function: Callable[[FakeTws], Answer]) -> Answer:
        """Run a function on the peer, in its own thread (blocks)."""

        async def run() -> Answer:
            return function(self._running())

        answer: Answer = self._do(run())
        return answer

    def _running(self) -> FakeTws:
        if self._tws is None:
            raise RuntimeError("the peer does not run: use `with`")
        return self._tws

    async def _make(self) -> FakeTws:
        return await FakeTws(**self._options).start()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)


class TwsProcess:
    """Starts `sigma9 fake-tws` and talks to its control port; it outlives whoever trades there."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.host = LOCAL
        self.port = 0
        self._arguments: Sequence[str] = arguments
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        """Start it, and connect to its control; raise RuntimeError where it does not come up."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sigma9_core", "fake-tws", "--port", "0", "--control", "0", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=None if self._environment is None else dict(self._environment),
        )
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        try:
            told = json.loads(line)
        except ValueError:
            self.__exit__()
            raise RuntimeError(f"the peer's process did not come up, it said {line!r}") from None
        self.port = int(told["port"])
        self._socket = socket.create_connection((self.host, int(told["control"])), PATIENCE)
        self._lines = self._socket.makefile("rb")
        return self

    def __exit__(self, *exc: object) -> None:
        """End it: it goes when its standard input does."""
        if self._socket is not None:
            self._lines.close()
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        end(process, PATIENCE)

    def ask(self, what: str, **more: Any) -> Any:
        """Ask or tell it something by name, and give the answer (blocks); raise RuntimeError where it refuses."""
        if self._socket is None:
            raise RuntimeError("the peer does not run: use `with`")
        self._socket.sendall(json.dumps({"ask": what, **more}).encode() + b"\n")
        answer = json.loads(self._lines.readline() or b"null")
        if answer is None:
            raise RuntimeError(f"the peer has gone; it was asked for {what}")
        if "error" in answer:
            raise RuntimeError(f"{what}: {answer['error']}")
        return answer["answer"]

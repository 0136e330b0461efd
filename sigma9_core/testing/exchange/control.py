"""The exchange from a test's side: its process, and everything that it can be asked and told."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from decimal import Decimal
from typing import Any, Final, Self

from sigma9_core.testing.child import end

PATIENCE: Final = 20.0
"""Seconds that an answer may take."""


EXCHANGE: Final = "sigma9_core.testing.exchange.process"


class ExchangeProcess:
    """Starts a venue, talks to it over a connection of its own, and ends it; use it with `with`."""

    def __init__(self, *, seed: int = 0, cash: Decimal = Decimal(100_000), venue: str = EXCHANGE) -> None:
        """Store; `venue` names the module that is run."""
        self.port = 0
        self._venue = venue
        self._options = ("--seed", str(seed), "--cash", str(cash))
        self._process: subprocess.Popen[str] | None = None
        self._socket: socket.socket | None = None
        self._count = 0

    def start(self) -> Self:
        """Start it and connect to it; raise RuntimeError where it does not come up."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._venue, *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line.strip():
            self.stop()
            raise RuntimeError("the exchange's process did not come up: what it said is on stderr")
        self.port = int(line)
        self._socket = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        self._lines = self._socket.makefile("rb")
        self.ask("hello", role="control")
        return self

    def stop(self) -> None:
        """End it: it goes when its standard input does."""
        if self._socket is not None:
            self._lines.close()
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        end(process, PATIENCE)

    def __enter__(self) -> Self:
        """Start it where it does not run yet."""
        return self if self._process is not None else self.start()

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self.stop()

    def ask(self, what: str, **more: Any) -> Any:
        """Ask or tell it something and give its answer (blocks); raise RuntimeError where it refuses."""
        if self._socket is None:
            raise RuntimeError("the exchange does not run: start() it")
        self._count += 1
        self._socket.sendall(json.dumps({"op": what, "n": self._count, **more}).encode() + b"\n")
        answer = json.loads(self._lines.readline() or b"null")
        if answer is None:
            raise RuntimeError(f"the exchange has gone; it was asked for {what}")
        if not answer["ok"]:
            raise RuntimeError(f"{what}: {answer['message']}")
        return answer["body"]

"""State topics: which of them are due, conflated by topic, and no more often than the contract says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Final

from sigma9_core.board import Board
from sigma9_core.clock import monotonic

INTERVAL: Final = 1.0
"""Seconds between two messages of `status`, and of each `quote/{symbol}`."""


def is_paced(name: str) -> bool:
    """Tell whether a name is published at most once a second."""
    return name == "status" or name.startswith("quote/")


class Unwritable(ValueError):
    """The body of a name can't be written as JSON."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class StateQueue:
    """The names whose topics are due; a name that changes twice before it is sent is sent once."""

    def __init__(self, board: Board) -> None:
        self.published: set[str] = set()
        """Names that the broker may hold a body of: once published a name stays among them.

        A removal may be lost with its connection, and a broker that crashed comes back with what it has saved.
        """
        self._board = board
        self._due: dict[str, None] = {}
        self._held: dict[str, asyncio.TimerHandle] = {}
        self._sent: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._leave: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to watch the board."""
        self._leave = self._board.watch(self._changed)

    def stop(self) -> None:
        """Leave the board."""
        self._leave()
        for handle in self._held.values():
            handle.cancel()
        self._held.clear()

    def all_again(self, *, removals: bool) -> None:
        """Make every name due at once; with `removals`, for a new connection, those that are no more as well."""
        for handle in self._held.values():
            handle.cancel()
        waiting = (*self._held, *self._due)
        self._held.clear()
        gone = sorted(self.published) if removals else waiting
        self._due = dict.fromkeys((*self._board.names(), *gone))
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Tell whether nothing is due at present."""
        return not self._due

    def hold(self, name: str, seconds: float) -> None:
        """Make a name due again after a while."""
        if name not in self._held:
            self._held[name] = asyncio.get_running_loop().call_later(seconds, self._release, name)

    async def next(self) -> tuple[str, str]:
        """Wait for a name that is due and give it with its payload; "" means that its topic goes.

        Raise Unwritable for a body that can't be written as JSON.
        """
        while not self._due:
            self._wake.clear()
            await self._wake.wait()
        name = next(iter(self._due))
        del self._due[name]
        body = self._board.get(name)
        if body is None:
            self._sent.pop(name, None)
            return name, ""
        if is_paced(name):
            self._sent[name] = monotonic()
        try:
            payload = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Unwritable(name, f"the body of state/{name} can't be written as JSON: {error}") from error
        self.published.add(name)
        return name, payload

    def _changed(self, name: str) -> None:
        if name in self._due or name in self._held:
            return
        wait = self._sent.get(name, -INTERVAL) + INTERVAL - monotonic() if is_paced(name) else 0.0
        if wait > 0 and self._board.get(name) is not None:
            self._held[name] = asyncio.get_running_loop().call_later(wait, self._release, name)
        else:
            self._make_due(name)

    def _release(self, name: str) -> None:
        del self._held[name]
        self._make_due(name)

    def _make_due(self, name: str) -> None:
        self._due[name] = None
        self._wake.set()

"""The status: one body for REST, MQTT and the status_update event, put together from parts (contract 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from sigma9_core.board import Board
from sigma9_core.events import StatusPart, StatusUpdate

AT_MOST_EVERY: Final = 0.25
"""Seconds between two status_update events; a kill, and each phase of it, is told at once."""
AT_ONCE: Final = ("state", "phase", "scopes")
"""What of the kill switch is told without waiting; its lists grow with every order that it ends."""


class StatusTeller:
    """Publishes `status` on the board, and a status_update when a part of it changes; on the outer loop."""

    def __init__(
        self, board: Board, build: Callable[[], dict[str, Any]], emit: Callable[[StatusUpdate], None]
    ) -> None:
        self._board = board
        self._build = build
        self._emit = emit
        self._changed: dict[StatusPart, str | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._last = -AT_MOST_EVERY
        self._kill_told: tuple[Any, ...] = ()
        self._stopped = False

    def refresh(self) -> Mapping[str, Any]:
        """Put the newest body on the board, without an event: numbers that merely move."""
        body = self._build()
        self._board.set("status", body)
        return body

    def changed(self, part: StatusPart, reason: str | None = None) -> None:
        """Tell that a part changed: at once for a kill or its next phase, else at most one event in 250 ms.

        The body on the board is true at once; its event may wait a moment for others.
        """
        body = self.refresh()
        if self._stopped:
            return
        self._changed[part] = reason or self._changed.get(part)
        if part == "kill_switch" and self._kill(body) != self._kill_told:
            self._tell()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._last + AT_MOST_EVERY - loop.time()), self._tell)

    def flush(self) -> None:
        """Tell now what is still to be told."""
        if self._changed:
            self._tell()

    def stop(self) -> None:
        """Tell what is still to be told, and nothing after it."""
        self.flush()
        self._stopped = True

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        changed, self._changed = self._changed, {}
        body = self.refresh()
        self._kill_told = self._kill(body)
        reasons = dict.fromkeys(reason for reason in changed.values() if reason)
        self._emit(
            StatusUpdate(changed=tuple(changed), reason="; ".join(reasons) or None, status=dict(body)),
        )
        self._last = asyncio.get_running_loop().time()

    @staticmethod
    def _kill(body: Mapping[str, Any]) -> tuple[Any, ...]:
        kill = body.get("kill_switch") or {}
        return tuple(kill.get(name) for name in AT_ONCE)

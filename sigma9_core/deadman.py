"""The dead man's switch: without a heartbeat for too long, in session while the engine runs, it acts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from sigma9_core.clock import monotonic
from sigma9_core.config import DeadManSettings

log = logging.getLogger("sigma9.deadman")

LOOK: Final = 0.25


class DeadMan:
    """Armed by the first heartbeat; on the outer loop, where heartbeats that wait are read before it judges."""

    def __init__(
        self,
        settings: DeadManSettings,
        *,
        on_duty: Callable[[], bool],
        broker_up: Callable[[], bool],
        act: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._on_duty = on_duty
        self._broker_up = broker_up
        self._act = act
        self._last: float | None = None
        self._broker_seen: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def armed(self) -> bool:
        """Tell whether a heartbeat has armed it."""
        return self._last is not None

    def beat(self) -> None:
        """Take a heartbeat."""
        self._last = monotonic()

    def start(self) -> None:
        """Begin to watch, where the configuration wants it."""
        if self._settings.timeout is not None or self._settings.broker_lost is not None:
            self._task = asyncio.get_running_loop().create_task(self._watch(), name="dead-man")

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        patient = True
        while True:
            began = monotonic()
            await asyncio.sleep(LOOK)
            now = monotonic()
            stalled = now - began > 2 * LOOK
            if stalled and patient:
                patient = False  # heartbeats that arrived while the loop was busy are read first
                continue
            patient = not stalled
            if not self._on_duty():
                self._broker_seen = None
                if self._last is not None:
                    self._last = now  # outside of session nobody is expected to beat
                continue
            timeout, lost = self._settings.timeout, self._settings.broker_lost
            if self._broker_up() or self._broker_seen is None:
                self._broker_seen = now
            if timeout is not None and self._last is not None and now - self._last > timeout:
                heard, self._last = self._last, None  # it acts once; the next heartbeat arms it again
                if not await self._fire(f"no heartbeat for {timeout:g} s"):
                    self._last = self._last or heard
            elif lost is not None and now - self._broker_seen > lost:
                since, self._broker_seen = self._broker_seen, now
                if not await self._fire(f"the broker has been lost for {lost:g} s"):
                    self._broker_seen = since

    async def _fire(self, why: str) -> bool:
        """Act; tell whether that went through. What fails is tried again with the next look."""
        log.critical("dead man's switch: %s; action: %s", why, self._settings.action)
        try:
            await self._act(self._settings.action, f"dead man's switch: {why}")
        except Exception:  # whatever stands in the way now, the switch must not end with it
            log.exception("the dead man's switch could not act; it tries again")
            return False
        return True

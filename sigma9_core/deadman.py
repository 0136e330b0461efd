"""The dead man's switch: without a heartbeat for too long, in session while the engine runs, it acts.

It judges on the money lane, so that a plugin that blocks the outer loop does not silence it. Heartbeats are heard
on the outer loop: before it acts it lets that loop run undisturbed for a moment, so that what waits is heard, and
gives a loop that does not run a grace of `GRACE` seconds, and no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Final

from sigma9_core.clock import monotonic
from sigma9_core.config import DeadManSettings
from sigma9_core.lanes import Lane

log = logging.getLogger("sigma9.deadman")

LOOK: Final = 0.25
GRACE: Final = 5.0
"""Seconds that a blocked outer loop has, after the timeout, to come back and hear the heartbeats that wait."""


class DeadMan:
    """Armed by the first heartbeat, which comes on the outer loop; judges and acts on another lane."""

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
        self._watching: Future[None] | None = None
        self._outer: asyncio.AbstractEventLoop | None = None
        self._hearing: Future[None] | None = None
        """Ends when the outer loop has heard what waited there."""
        self._missed = 0.0
        """Since when a heartbeat is missed."""

    @property
    def armed(self) -> bool:
        """Tell whether a heartbeat has armed it."""
        return self._last is not None

    def beat(self) -> None:
        """Take a heartbeat."""
        self._last = monotonic()

    def start(self, lane: Lane) -> None:
        """Begin to watch from this lane, where the configuration wants it; call it on the outer loop."""
        self._outer = asyncio.get_running_loop()
        if self._settings.timeout is not None or self._settings.broker_lost is not None:
            self._watching = lane.submit(self._watch())

    async def stop(self) -> None:
        """Stop watching."""
        self._hear_no_more()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(asyncio.wrap_future(self._watching), return_exceptions=True)

    async def _watch(self) -> None:
        patient = True
        while True:
            began = monotonic()
            await asyncio.sleep(LOOK)
            now = monotonic()
            stalled = now - began > 2 * LOOK
            if stalled and patient:
                patient = False  # what arrived while the lane was busy is looked at first
                continue
            patient = not stalled
            if not self._on_duty():
                self._hear_no_more()
                self._broker_seen = None
                if self._last is not None:
                    self._last = now  # outside of session nobody is expected to beat
                continue
            timeout, lost = self._settings.timeout, self._settings.broker_lost
            if self._broker_up() or self._broker_seen is None:
                self._broker_seen = now
            if timeout is not None and self._silent(timeout):
                heard, self._last = self._last, None  # it acts once; the next heartbeat arms it again
                if not await self._fire(f"no heartbeat for {timeout:g} s"):
                    self._last = self._last or heard
            elif lost is not None and now - self._broker_seen > lost:
                since, self._broker_seen = self._broker_seen, now
                if not await self._fire(f"the broker has been lost for {lost:g} s"):
                    self._broker_seen = since

    def _silent(self, timeout: float) -> bool:
        """Tell whether no heartbeat has come in time, and none waits on the outer loop, or nobody can know."""
        now = monotonic()
        if self._last is None or now - self._last <= timeout or self._outer is None:
            self._hear_no_more()
            return False
        if self._hearing is None:
            self._missed = now
            self._hearing = asyncio.run_coroutine_threadsafe(_undisturbed(), self._outer)
            return False
        if not self._hearing.done() and now - self._missed <= GRACE:
            return False
        self._hear_no_more()
        return now - self._last > timeout  # perhaps one was heard just now

    def _hear_no_more(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None

    async def _fire(self, why: str) -> bool:
        """Act; tell whether that went through. What fails is tried again with the next look."""
        log.critical("dead man's switch: %s; action: %s", why, self._settings.action)
        try:
            await self._act(self._settings.action, f"dead man's switch: {why}")
        except Exception:  # whatever stands in the way now, the switch must not end with it
            log.exception("the dead man's switch could not act; it tries again")
            return False
        return True


async def _undisturbed() -> None:
    """End once this loop has run for a moment without a stall: what waited for it has had its turn."""
    while True:
        began = monotonic()
        await asyncio.sleep(LOOK)
        if monotonic() - began <= 2 * LOOK:
            return

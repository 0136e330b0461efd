"""Keeping the latch file in step with the kills in force, on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sigma9_core.lanes import hurry
from sigma9_core.money.kill import Key, Kill
from sigma9_core.money.latch import Latch, LatchedScope, LatchState

log = logging.getLogger("sigma9.kill")

LATCH_BUDGET: Final = 0.05
"""Seconds that a kill waits for its latch."""
LATCH_AGAIN: Final = 1.0
"""Seconds between two tries of a latch that could not be written."""
LATCH_FAULT: Final = "the latch can't be written"


class Latching:
    """Writes what is latched; a kill waits for it a moment, and goes on without it."""

    def __init__(self, latch: Latch, kills: Mapping[Key, Kill], tell: Callable[[], None]) -> None:
        """Store; `kills` are those in force, `tell` is called where one of them is latched late."""
        self._latch = latch
        self._kills = kills
        self._tell = tell
        self._disk = ThreadPoolExecutor(1, "sigma9-latch", initializer=hurry)
        self._letting_go: set[Key] = set()
        """Kills that are being reset: the latch is written without them."""
        self._again: asyncio.Task[None] | None = None
        """Tries to write a latch that could not be written."""

    async def write(self, kill: Kill) -> None:
        """Write the kills in force, and note in this one whether a restart would know of it."""
        write = asyncio.get_running_loop().run_in_executor(self._disk, self._latch.write, self._state())
        await asyncio.wait([write], timeout=LATCH_BUDGET)
        if write.done():
            self._written(kill, write)
        else:
            write.add_done_callback(lambda done: self._late(kill, done))
            log.error("the latch file is slow; the kill goes on without waiting for it")

    async def put_back(self, kill: Kill) -> None:
        """Write a kill that the file may not hold any more, because a reset of it has failed."""
        self._letting_go.discard(kill.key)
        kill.latched = False
        await self.write(kill)

    async def take_out(self, kill: Kill) -> None:
        """Write the latch without a kill that is being reset. Raise OSError where that fails; it is in it then."""
        self._letting_go.add(kill.key)  # whoever else writes the latch meanwhile leaves it out as well
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk, self._latch.write, self._state())
        except OSError:
            await self.put_back(kill)  # what was written without it may be in the file, for all the error
            raise
        finally:
            self._letting_go.discard(kill.key)

    async def close(self) -> None:
        """Stop writing; the file stays as it is."""
        if self._again is not None:
            self._again.cancel()
            await asyncio.gather(self._again, return_exceptions=True)
        self._disk.shutdown(wait=False)

    def _late(self, kill: Kill, done: asyncio.Future[None]) -> None:
        self._written(kill, done)
        self._tell()

    def _written(self, kill: Kill, done: asyncio.Future[None]) -> None:
        if done.cancelled():
            return  # the lane ends
        error = done.exception()
        if error is not None:  # whatever the latch ran into, the kill goes on
            self._failed(kill, error)
        else:
            kill.latched, kill.latch_error = True, None

    def _failed(self, kill: Kill, error: BaseException) -> None:
        """Say that a restart would not know of the kill, and keep trying until it would."""
        kill.latched = False
        kill.latch_error = f"{LATCH_FAULT}: {error}"
        log.critical("%s (%s); the kill goes on, says latched: false, and tries again", LATCH_FAULT, error)
        if self._again is None or self._again.done():
            self._again = asyncio.get_running_loop().create_task(self._keep_on(), name="kill-latch")

    async def _keep_on(self) -> None:
        """Write the latch as soon as its disk takes it."""
        loop = asyncio.get_running_loop()
        while missing := [kill for kill in self._kills.values() if not kill.latched]:
            await asyncio.sleep(LATCH_AGAIN)
            try:
                await loop.run_in_executor(self._disk, self._latch.write, self._state())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                log.debug("%s: %s", LATCH_FAULT, error)
                continue
            log.warning("the kill is latched now: its disk works again")
            for kill in missing:
                kill.latched, kill.latch_error = True, None
            self._tell()

    def _state(self) -> LatchState:
        return LatchState(
            scopes=tuple(
                LatchedScope(key=k.key, flatten=k.flatten, reason=k.reason, source=k.source, at=k.at)
                for k in self._kills.values()
                if k.key not in self._letting_go
            )
        )


__all__ = ["Latching"]

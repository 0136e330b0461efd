"""The watchdog: notices from the money lane that the outer loop has stalled, says so, and says when it is back."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from sigma9_core.clock import monotonic

log = logging.getLogger("sigma9.watchdog")

BEAT: Final = 0.5
STALLED_AFTER: Final = 2.0


class Watchdog:
    """Compares the outer loop's heartbeat with the clock; the kill works all the while."""

    def __init__(self) -> None:
        self.stalled_since: float | None = None
        self._beat = monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat; on the outer loop."""
        self._beat = monotonic()
        self._timer = asyncio.get_running_loop().call_later(BEAT, self.start)

    def stop(self) -> None:
        """Stop beating."""
        if self._timer is not None:
            self._timer.cancel()

    async def watch(self) -> None:
        """Look after the heartbeat until cancelled; on the money lane."""
        while True:
            await asyncio.sleep(BEAT)
            silent = monotonic() - self._beat
            if silent > STALLED_AFTER and self.stalled_since is None:
                self.stalled_since = self._beat
                log.error(
                    "the outer loop has not run for %.1f s: something blocks it (a plugin's command or service?); "
                    "exits and the kill switch go on",
                    silent,
                )
            elif silent <= STALLED_AFTER and self.stalled_since is not None:
                log.warning("the outer loop runs again after %.1f s", self._beat - self.stalled_since)
                self.stalled_since = None

"""What nobody waits for: log lines, audit rows and news of what was answered come once the answer has left.

Each of them takes a while by itself, and wakes threads that compete with whoever sends the answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

log = logging.getLogger("sigma9.engine")

AFTER: Final = 0.005
"""Seconds that an answer has to leave."""

Step = Callable[[], object]


class Afterwards:
    """Does steps a moment later, on the loop that they were given on, and in the order of that."""

    def __init__(self) -> None:
        self._steps: dict[asyncio.AbstractEventLoop, _Steps] = {}

    def do(self, step: Step) -> None:
        """Do a step soon; the caller does not wait for it."""
        loop = asyncio.get_running_loop()
        self._steps.setdefault(loop, _Steps()).waiting.append(step)
        loop.call_later(AFTER, self.flush)

    def flush(self) -> None:
        """Do now what is still to be done on this loop."""
        steps = self._steps.get(asyncio.get_running_loop())
        if steps is not None:
            steps.do_all()

    def end(self) -> None:
        """Do now what is still to be done, of loops that have ended as well."""
        for steps in tuple(self._steps.values()):
            steps.do_all()


class _Steps:
    """What waits on one loop; done one after the other also where the end does it beside that loop."""

    def __init__(self) -> None:
        self.waiting: deque[Step] = deque()
        self._lock = threading.RLock()

    def do_all(self) -> None:
        """Do steps; one that fails is logged, and holds up no other."""
        with self._lock:
            while self.waiting:
                step = self.waiting.popleft()
                try:
                    step()
                except Exception:  # whatever it is, nobody who waits for something depends on it
                    log.exception("what was to be done after an answer failed")

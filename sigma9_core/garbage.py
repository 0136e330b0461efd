"""When garbage is collected: never in the middle of what must be quick.

A full collection goes through everything that is there and holds every thread up meanwhile: 20 ms in a server that
rests, 65 ms in one with a hundred orders on a slow machine.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Blocks:
    """Counts the blocks that run now, on any thread; the first turns the collection off, the last turns it on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._was_on = True

    def enter(self) -> None:
        with self._lock:
            if not self._count:
                self._was_on = gc.isenabled()
                gc.disable()
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count and self._was_on:
                gc.enable()


_blocks = _Blocks()


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage while the block runs, nor while another one does; what comes to be garbage waits."""
    _blocks.enter()
    try:
        yield
    finally:
        _blocks.leave()

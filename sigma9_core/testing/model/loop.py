"""An event loop on which time passes only when a test says so: waiting costs nothing, and all repeats exactly.

Work of threads is done in place: what is given to an executor runs at once, and its result comes as the next thing
on the loop. So nothing but the test decides what happens first.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

MANY: Final = 50_000
"""Turns of the loop without any time passing: more than any work needs that is not going round in circles."""
LONGEST: Final = 3_600.0
"""Seconds that `complete` lets pass at most."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still until `wait` or `complete` let it go on."""

    def __init__(self) -> None:
        self._virtual = 1_000.0
        self._until: float | None = None
        self._turns = 0
        self.circling = False
        """The last run was ended because its work never came to rest."""
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Tell the loop's own seconds."""
        return self._virtual

    def wait(self, seconds: float = 0.0) -> None:
        """Let time pass, and everything happen that is due in it; with 0 only what can happen at this moment."""
        self._until = self._virtual + seconds
        self._turns = 0
        try:
            self.run_forever()
        finally:
            self._until = None

    def complete(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one piece of work to its end, with as much time as it needs; TimeoutError after `LONGEST`."""
        task = self.create_task(work)
        end = self._virtual + LONGEST
        while not task.done():
            if self._virtual >= end:
                task.cancel()
                raise TimeoutError("the work does not end")
            self.wait(0.0)
            if not task.done():
                self.wait(0.05)
        return task.result()

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Do a thread's work here and now."""
        future: asyncio.Future[T] = self.create_future()
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 - as an executor does, whatever it was
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def end(self) -> None:
        """Cancel what is left, and close."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.wait(0.0)
        self.close()

    def idle(self, timeout: float | None) -> None:
        """Nothing is ready: let the time pass until something is, or until the end of what was asked for."""
        end = self._until
        if end is None or timeout is None or self._virtual + timeout > end:
            self._virtual = max(self._virtual, end or 0.0)
            self.stop()
        else:
            self._virtual += timeout
            self._turns = 0

    def turn(self) -> None:
        """Count a turn of the loop in which no time passes."""
        self._turns += 1
        if self._turns > MANY:
            self.circling = True
            self._turns = 0
            self.stop()


class _Selector(selectors.DefaultSelector):
    """Never waits: what would be waited for is told to the loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            self._loop.turn()
        else:
            self._loop.idle(timeout)
        return found


__all__ = ["VirtualLoop"]

"""Lanes: event loops in threads of their own, and the messages between them.

The money lane carries what moves money and the kill; the market lane carries the feed; the outer loop (the main
thread) carries integrations and everything else. Nothing of unknown speed runs on the money lane.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Lane:
    """An asyncio loop in a daemon thread of its own."""

    def __init__(self, name: str, *, urgent: bool = False) -> None:
        """Store; where the system grants it, the thread of an `urgent` lane runs as soon as it has work."""
        self.name = name
        self._urgent = urgent
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._hurries = 0
        self._hurrying = threading.Lock()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Give the lane's loop; it exists between `start` and `stop`."""
        if self._loop is None:
            raise RuntimeError(f"the lane {self.name} is not running: call start() first")
        return self._loop

    @property
    def running(self) -> bool:
        """Tell whether the lane takes work."""
        return self._loop is not None

    @property
    def current(self) -> bool:
        """Tell whether the caller runs on this lane's loop."""
        return asyncio.get_running_loop() is self._loop

    def start(self) -> None:
        """Start the thread and return once its loop runs."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=f"sigma9-{self.name}", daemon=True)
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """Cancel what still runs on the lane, end its loop and join its thread."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop = self._thread = None

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the lane; the result comes as a thread-safe future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the lane and await its result from another loop (or directly on this one)."""
        if self.current:
            return await work
        return await asyncio.wrap_future(self.submit(work))

    async def ask(self, function: Callable[..., T], *args: object) -> T:
        """Call a function on the lane and await what it gives, from any loop."""

        async def run() -> T:
            return function(*args)

        return await self.call(run())

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the lane soon, in the order of posting, without waiting."""
        self.loop.call_soon_threadsafe(function, *args)

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Let the lane's thread run as soon as it has work, as an urgent one does, while the block runs."""
        self._hurry(1)
        try:
            yield
        finally:
            self._hurry(-1)

    def _hurry(self, more: int) -> None:
        with self._hurrying:
            before, self._hurries = self._hurries, self._hurries + more
            thread = None if self._thread is None else self._thread.native_id
            if thread is not None and not self._urgent and bool(before) != bool(self._hurries):
                hurry(thread, on=self._hurries > 0)

    def _run(self, ready: threading.Event) -> None:
        if self._urgent:
            hurry()
        loop = asyncio.new_event_loop()
        self._loop = loop
        asyncio.set_event_loop(loop)
        loop.call_soon(ready.set)
        try:
            loop.run_forever()
        finally:
            pending = asyncio.all_tasks(loop)
            for task in pending:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def hurry(thread: int = 0, *, on: bool = True) -> None:
    """Give a thread (0: this one) real-time priority or end it, where Linux grants it (`LimitRTPRIO=1`, root).

    With it a thread wakes at once; without it, on a busy machine, when the time slice of another one ends, some
    milliseconds later.
    """
    try:
        policy = os.SCHED_RR if on else os.SCHED_OTHER
        os.sched_setscheduler(thread, policy | os.SCHED_RESET_ON_FORK, os.sched_param(int(on)))
    except (AttributeError, OSError):
        pass  # another system, or no right to it: it works all the same

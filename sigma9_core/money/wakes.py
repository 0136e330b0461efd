"""Answers that one thread gives to coroutines of others: one wake-up a loop, for however many wait in it.

Each wake-up is a system call and a switch of threads, which cost more than the rest of a record's way through the
journal; fifty orders in one commit need one, not fifty.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from threading import get_ident
from typing import Any, TypeVar

T = TypeVar("T")

_Due = tuple["asyncio.Future[Any]", "Future[Any]"]


class Wakes:
    """Keeps what is due until `flush`; both belong to the thread that completes the futures."""

    def __init__(self) -> None:
        self._due: dict[asyncio.AbstractEventLoop, list[_Due]] = {}

    async def wait(self, future: Future[T]) -> T:
        """Wait on any loop for a future; who stops waiting does not cancel it."""
        loop, here = asyncio.get_running_loop(), get_ident()
        waiter: asyncio.Future[T] = loop.create_future()

        def done(done: Future[T]) -> None:
            if get_ident() == here:  # it was done before anybody could wait
                _settle([(waiter, done)])
            else:
                self._due.setdefault(loop, []).append((waiter, done))

        future.add_done_callback(done)
        return await waiter

    def flush(self) -> None:
        """Wake the loops for what is due."""
        due, self._due = self._due, {}
        for loop, waiters in due.items():
            try:
                loop.call_soon_threadsafe(_settle, waiters)
            except RuntimeError:
                pass  # the loop has ended, and with it whoever waited


def _settle(due: list[_Due]) -> None:
    for waiter, done in due:
        if waiter.done():
            continue  # whoever waited was cancelled
        error = done.exception()
        if error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(done.result())

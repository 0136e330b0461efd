"""Ending background tasks."""

from __future__ import annotations

import asyncio
from typing import Any, Final

PATIENCE: Final = 0.4
"""Seconds that a task has to end after each cancel."""


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended; what it raises is dropped.

    It is cancelled again where it goes on: `asyncio.wait_for` of Python 3.11, which aiomqtt uses, swallows a
    cancel that comes together with what it waits for.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE)
    await asyncio.gather(task, return_exceptions=True)

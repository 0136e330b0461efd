"""The progress bar of a replay, and the log lines above it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

    from sigma9_core.engine import Engine

EVERY: Final = 0.1
"""Seconds between two looks at how far it is."""


class LogStream:
    """Where the log of a replay goes: to stderr, and while the bar stands there, above it."""

    def __init__(self, stream: TextIO) -> None:
        self.bar: Console | None = None
        """The console of the bar, while there is one."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write whole lines; long ones are not cut."""
        bar = self.bar
        if bar is None:
            return self._stream.write(text)
        from rich.text import Text

        bar.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True, highlight=False)
        return len(text)

    def flush(self) -> None:
        """Let everything go out."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._stream.isatty()

    def as_text(self) -> TextIO:
        """Give itself as what `logging` writes to: it needs no more than these three."""
        return cast("TextIO", self)


async def follow(engine: Engine, log: LogStream) -> None:
    """Wait for the end of the data, with a progress bar on a terminal."""
    finished = asyncio.ensure_future(engine.finished())
    try:
        if sys.stderr.isatty():
            await _show(engine, log, finished)
        await finished
    finally:
        finished.cancel()


async def _show(engine: Engine, log: LogStream, finished: asyncio.Future[None]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("replay", total=getattr(engine.feed, "total_slices", None))
        log.bar = console
        try:
            while not finished.done():
                progress.update(
                    task,
                    completed=getattr(engine.feed, "done_slices", 0),
                    description=f"{engine.clock.now():%Y-%m-%d %H:%M} UTC",
                )
                await asyncio.wait((finished,), timeout=EVERY)
        finally:
            log.bar = None

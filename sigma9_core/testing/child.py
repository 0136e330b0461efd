"""A process of a test's own that goes when its standard input does."""

from __future__ import annotations

import subprocess


def end(process: subprocess.Popen[str] | None, within: float) -> None:
    """Close its pipes and wait for its end, so many seconds; None is one that never began."""
    if process is None:
        return
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait(within)


__all__ = ["end"]

"""A program on a terminal of its own, as a user has one: for tests of what only happens there."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

PATIENCE: Final = 40.0
"""Seconds that a program may take."""
CTRL_C: Final = "\x03"
CTRL_Z: Final = "\x1a"

# Another process makes the terminal: a fork of this one would copy its threads' locks.
_TERMINAL: Final = """
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])) % 256)
"""


def on_terminal(
    command: Sequence[str],
    folder: Path,
    *,
    keys: Sequence[tuple[str, str]] = (),
    environ: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run a program in a folder and give its exit code and all that the terminal got.

    `keys` are pairs: once the text is there, the key is pressed. Raise AssertionError where the program hangs.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _TERMINAL, *command],
        cwd=folder,
        env={**os.environ, "TERM": "xterm", **(environ or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process has no pipes")
    out, left, end = b"", list(keys), time.monotonic() + PATIENCE
    try:
        while time.monotonic() < end:
            while left and left[0][0].encode() in out:
                process.stdin.write(left.pop(0)[1].encode())
                process.stdin.flush()
            if select.select([process.stdout], [], [], 0.1)[0]:
                read = os.read(process.stdout.fileno(), 65536)
                if not read:
                    return process.wait(5), out.decode(errors="replace")
                out += read
        raise AssertionError(f"{' '.join(command)} did not end: {out.decode(errors='replace')}")
    finally:
        process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()

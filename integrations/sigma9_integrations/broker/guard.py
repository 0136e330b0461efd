"""Run a program that must not outlive its parent, not even where the parent is killed with SIGKILL.

Started as a script of its own: `python -I -S guard.py MODE PARENT_PID PROGRAM ARGUMENT...`. Nothing but the
standard library is imported, and that sparingly, because it stands before the embedded broker's first millisecond.

- `signal` (Linux): the kernel is asked to kill this process when its parent ends; then it becomes the program.
- `pipe` (elsewhere): it stays as the program's parent and kills it when its own standard input ends, which the
  server holds open for as long as it lives.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Literal

Mode = Literal["signal", "pipe"]
PR_SET_PDEATHSIG = 1


def mode() -> Mode:
    """Choose what this machine offers."""
    return "signal" if sys.platform == "linux" else "pipe"


def command(program: list[str], parent: int, how: Mode | None = None) -> list[str]:
    """Give the command line that runs `program` under the guard of the process `parent`."""
    return [sys.executable, "-I", "-S", __file__, how or mode(), str(parent), *program]


def _die_with_parent(parent: int) -> None:
    import ctypes  # noqa: PLC0415 - only Linux needs it, and it costs a few milliseconds

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"guard: prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit("guard: the parent has ended")


def _run_until_end_of_input(program: list[str]) -> int:
    import subprocess  # noqa: PLC0415 - only this mode needs it
    import threading  # noqa: PLC0415

    child = subprocess.Popen(program, stdin=subprocess.DEVNULL)  # noqa: S603 - the server's own command line

    def watch() -> None:
        while os.read(0, 4096):
            pass
        child.kill()

    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=watch, daemon=True).start()
    return child.wait()


def main(arguments: list[str]) -> int:
    """Guard and run the program; return only in the mode `pipe`, with its exit code."""
    how, parent, *program = arguments
    if how == "signal":
        _die_with_parent(int(parent))
        os.execv(program[0], program)  # noqa: S606 - becoming the program is the point
    return _run_until_end_of_input(program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

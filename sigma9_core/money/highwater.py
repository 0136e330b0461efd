"""A journal's high-water mark: where it stands, in a small file beside it, so that a restored copy is noticed.

It is written after each commit, without a flush, so it is never ahead of a journal that went on as it should. One
that is ahead means that the file was put back to an earlier time: its numbers would be given a second time. One
whose hashes are not the journal's means that rows were changed. Who writes the journal holds a lock on it, so that
there are never two.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import Final, NamedTuple

from sigma9_core.errors import JournalError

log = logging.getLogger("sigma9.journal")

_NONE: Final = "-"
"""What stands for a hash that is not there."""


class Mark(NamedTuple):
    """What was noted last."""

    journal_id: str
    seq: int
    n: int = 0
    event_hash: str = ""
    row_hash: str = ""
    """Hashes of the newest event and of the newest other row; empty where they had none."""


class HighWater:
    """Keeps a mark as one line; one that can't be written is warned of, and written again as soon as it can be."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._fails = False

    def claim(self) -> bool:
        """Open the mark and lock it; False where another process, or another journal of this one, holds it.

        Raise JournalError where it can't be opened or locked: nothing else keeps a second server away.
        """
        if self._path is None:
            return True
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            return False
        except OSError as error:
            self.close()
            raise JournalError(
                f"the journal's mark {self._path} can't be opened and locked ({error.strerror}), so that a second "
                "server would not be noticed: see that it is a file that may be written"
            ) from error
        return True

    def read(self) -> Mark | None:
        """Give what was noted last, None where there is no readable mark."""
        return None if self._descriptor is None else _read(self._descriptor)

    def note(self, mark: Mark) -> None:
        """Note where the journal stands."""
        if self._descriptor is None:
            return
        hashes = f"{mark.event_hash or _NONE:<40} {mark.row_hash or _NONE:<40}"
        try:
            os.pwrite(self._descriptor, f"{mark.journal_id} {mark.seq:020d} {mark.n:020d} {hashes}\n".encode(), 0)
        except OSError as error:
            if not self._fails:
                log.warning(
                    "%s can't be written (%s): until it can, a restored journal would not be noticed",
                    self._path,
                    error.strerror,
                )
            self._fails = True
        else:
            if self._fails:
                log.warning("%s can be written again", self._path)
            self._fails = False

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._fails = False


def read_mark(path: Path) -> Mark | None:
    """Read the mark beside a journal, whoever holds it; None where there is no readable one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> Mark | None:
    try:
        line = os.pread(descriptor, 256, 0)
        while line != (again := os.pread(descriptor, 256, 0)):  # it is being written
            line = again
    except OSError:
        return None
    words = line.decode("ascii", "replace").split()
    numbers = words[1:3]
    if len(words) not in (2, 5) or not all(word.isascii() and word.isdigit() for word in numbers):
        return None
    seq, n = (*map(int, numbers), 0)[:2]
    hashes = ["" if word == _NONE else word for word in words[3:]] or ["", ""]
    return Mark(words[0], seq, n, *hashes)

"""A journal's high-water mark: the newest number, in a small file beside it, so that a restored copy is noticed.

It is written after each commit, without a flush, so it is never ahead of a journal that went on as it should. One
that is ahead means that the file was put back to an earlier time: its numbers would be given a second time. Who
writes the journal holds a lock on it, so that there are never two.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger("sigma9.journal")


class HighWater:
    """Keeps `<journal id> <number>` in one line of fixed length; a mark that can't be kept is only warned of."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._fails = False

    def claim(self) -> bool:
        """Open the mark and lock it; False where another process, or another journal of this one, holds it."""
        if self._path is None:
            return True
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            return False
        except OSError as error:
            log.warning("%s can't be used (%s): a restored journal would not be noticed", self._path, error)
        return True

    def read(self) -> tuple[str, int] | None:
        """Give the journal id and the number that were noted last, None where there is no readable mark."""
        return None if self._descriptor is None else _read(self._descriptor)

    def note(self, journal_id: str, seq: int) -> None:
        """Note the newest number."""
        if self._descriptor is None or self._fails:
            return
        try:
            os.pwrite(self._descriptor, f"{journal_id} {seq:020d}\n".encode(), 0)
        except OSError as error:
            log.warning("%s can't be written (%s): a restored journal would not be noticed", self._path, error)
            self._fails = True

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._fails = False


def read_mark(path: Path) -> tuple[str, int] | None:
    """Read the mark beside a journal, whoever holds it; None where there is no readable one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> tuple[str, int] | None:
    try:
        words = os.pread(descriptor, 128, 0).decode("ascii", "replace").split()
    except OSError:
        return None
    if len(words) == 2 and words[1].isascii() and words[1].isdigit():
        return words[0], int(words[1])
    return None

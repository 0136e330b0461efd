"""A journal's high-water mark: the newest number, in a small file beside it, so that a restored copy is noticed.

It is written after each commit, without a flush, so it is never ahead of a journal that went on as it should. One
that is ahead means that the file was put back to an earlier time: its numbers would be given a second time.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger("sigma9.journal")


class HighWater:
    """Keeps `<journal id> <number>` in one line of fixed length; a mark that can't be kept is only warned of."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None

    def open(self) -> tuple[str, int] | None:
        """Give the journal id and the number that were noted last, None where there is no readable mark."""
        if self._path is None:
            return None
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            words = os.pread(self._descriptor, 128, 0).decode("ascii", "replace").split()
        except OSError as error:
            log.warning("%s can't be used (%s): a restored journal would not be noticed", self._path, error)
            return None
        if len(words) == 2 and words[1].isascii() and words[1].isdigit():
            return words[0], int(words[1])
        return None

    def note(self, journal_id: str, seq: int) -> None:
        """Note the newest number."""
        if self._descriptor is None:
            return
        try:
            os.pwrite(self._descriptor, f"{journal_id} {seq:020d}\n".encode(), 0)
        except OSError as error:
            log.warning("%s can't be written (%s): a restored journal would not be noticed", self._path, error)
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

"""The paper exchange's file: JSON lines, appended before anything is reported.

A line holds the records of one step and is taken as a whole or not at all. What the system has taken survives the
end of the process; a torn last line is what a crash leaves behind, and was never reported.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from sigma9_core.errors import BrokerError
from sigma9_plugins.brokers.paper_book import Record

log = logging.getLogger(__name__)


class PaperLog:
    """An append-only file of steps; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: int | None = None
        self._size = 0

    def read(self) -> list[Record]:
        """Read all records; a torn last line is left out, a broken line before it raises BrokerError."""
        if self.path is None or not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        torn = lines.pop()
        if torn:
            log.warning("%s ends in a torn line: that step was never reported, and is left out", self.path)
        records: list[Record] = []
        for number, line in enumerate(lines, 1):
            try:
                records += json.loads(line)
            except ValueError as error:
                raise BrokerError(
                    f"{self.path}: line {number} is broken; repair it, or move the file away to start anew"
                ) from error
        return records

    def start(self, first: Record) -> None:
        """Begin the file anew with one record, and open it for appending."""
        self.close()
        if self.path is None:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".tmp")
        file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._write(file, _line([first]))
            os.fsync(file)
        finally:
            os.close(file)
        scratch.replace(self.path)
        self._open()

    def append(self, records: Sequence[Record]) -> None:
        """Write one step; raise BrokerError where it can't be kept, and then keep none of it."""
        if self.path is None:
            return
        file = self._file if self._file is not None else self._open()
        line = _line(records)
        try:
            self._write(file, line)
        except OSError as error:
            os.ftruncate(file, self._size)
            raise BrokerError(f"the paper broker can't write {self.path}: {error}") from error
        self._size += len(line)

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        assert self.path is not None  # noqa: S101 - the callers have looked
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._file).st_size
        return self._file

    @staticmethod
    def _write(file: int, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(file, rest) :]


def _line(records: Sequence[Record]) -> bytes:
    return json.dumps(records, separators=(",", ":")).encode() + b"\n"

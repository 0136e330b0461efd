"""The order ids of a session at TWS, which must rise for ever: a high-water mark on disk.

TWS tells at each connection from where on ids are free, and after a restart it may tell an older one and give out
ids again. So a mark is kept that only rises. It is written ahead, a block at a time: no order waits for the disk.
IB wants more: ids above those of all orders that it has told this client, also of other clients. What is heard of
lifts the ids as well, so that they stay free where the mark is lost and TWS gives ids out again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Final

log = logging.getLogger("sigma9.ibkr")

FILE: Final = "ibkr-ids.json"
BLOCK: Final = 200
HIGHEST: Final = 1_000_000_000
"""Order ids stay below; the numbers of questions begin here, so that a code about one is never about the other."""
CROWDED: Final = HIGHEST - 1_000_000
"""Ids of other programs from here on are not stayed above: the rest is what is left for ours."""


class OrderNumbers:
    """Gives order ids; `begin` at each connection."""

    def __init__(self, folder: Path | None) -> None:
        """Store; without a folder the mark lives in memory alone."""
        self._path = None if folder is None else folder / FILE
        self._next = 1
        self._written: int | None = None
        self._crowded = False
        self._lock = threading.Lock()

    def begin(self, told: int) -> None:
        """Take what TWS told as free, or the mark on disk where it is higher; it may block: use a worker."""
        with self._lock:
            if self._written is None:
                self._written = self._read()
                self._next = max(self._next, self._written)
            self._next = max(self._next, told)
        self.reserve()

    def next(self, count: int = 1) -> int:
        """Give the first of so many new ids."""
        with self._lock:
            first = self._next
            self._next += count
            late = self._written is not None and self._next > self._written
        if late:
            self.reserve()  # a block was used up before the next was written: rare, and no id may be given twice
        return first

    def heard(self, number: int) -> None:
        """Learn of an id that an order has: those that are given from here on lie above it."""
        if number >= CROWDED:
            if not self._crowded:
                self._crowded = True
                log.error(
                    "an order of another program has the id %d, above which there is no room: TWS may refuse our "
                    "orders (code 103); reset its order ids in the API settings once none of its orders works",
                    number,
                )
            return
        with self._lock:
            self._next = max(self._next, number + 1)

    @property
    def runs_low(self) -> bool:
        """Tell whether the next block should be written, on a worker."""
        return self._written is not None and self._written - self._next < BLOCK // 2

    def reserve(self) -> None:
        """Write the mark a block ahead; a disk that fails is logged, and trading goes on."""
        with self._lock:
            mark = self._next + BLOCK
            if self._path is None:
                self._written = mark
                return
            part = self._path.with_suffix(".part")
            try:
                with part.open("w", encoding="utf-8") as file:
                    json.dump({"next": mark}, file)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(self._path)
            except OSError as error:
                log.error("the mark of order ids can't be written to %s: %s", self._path, error.strerror or error)
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
            self._written = mark

    def _read(self) -> int:
        if self._path is None:
            return 1
        try:
            mark = int(json.loads(self._path.read_text(encoding="utf-8"))["next"])
        except FileNotFoundError:
            return 1
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.error("the mark of order ids in %s can't be read (%s): TWS's own counts", self._path, error)
            return 1
        return mark if 0 < mark < HIGHEST else 1

"""Order ids of our own: unique for ever, and in the order of their making when sorted as text."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS: Final = 80


class OrderIds:
    """Makes ids of 26 characters: 48 bits of wall-clock milliseconds, then 80 random bits that count up.

    Within one process they rise strictly, also when the wall clock steps back; between processes the random
    bits keep them apart.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def new(self) -> str:
        """Make the next id."""
        with self._lock:
            stamp = (time.time_ns() // 1_000_000) << _RANDOM_BITS
            fresh = stamp | int.from_bytes(os.urandom(_RANDOM_BITS // 8))
            self._last = fresh if fresh > self._last else self._last + 1
            value = self._last
        return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))

"""Order ids of our own: unique for ever, and in the order of their making when sorted as text.

A kill's close goes out even where its intent can't be written; so its id says by itself that it is ours, and a
read-back finds it again: `26 characters-K6 characters of the journal`.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from datetime import UTC, datetime
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS: Final = 80
_MADE: Final = re.compile(f"[0-7][{_ALPHABET}]{{25}}")
_KILL: Final = re.compile(f"[{_ALPHABET}]{{26}}-K([0-9a-f]{{6}})")


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


def made_at(order_id: str) -> datetime | None:
    """Tell when an id of ours was made, by the wall clock; None for what is no such id."""
    made = order_id[:26]
    if _MADE.fullmatch(made) is None:
        return None
    stamp = 0
    for sign in made[:10]:
        stamp = stamp << 5 | _ALPHABET.index(sign)
    return datetime.fromtimestamp(stamp / 1000, UTC)


def kill_id(order_id: str, journal_id: str) -> str:
    """Mark an id as that of a kill's order, of the server that writes this journal."""
    return f"{order_id}-K{_mark(journal_id)}"


def is_kill_id(order_id: str, journal_id: str) -> bool:
    """Tell whether an id is that of an order of a kill of ours, written down or not."""
    found = _KILL.fullmatch(order_id)
    return found is not None and found[1] == _mark(journal_id)


def _mark(journal_id: str) -> str:
    return hashlib.sha256(journal_id.encode()).hexdigest()[:6]

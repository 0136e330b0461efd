"""Which (command, id) pairs the journal may know: what is not among them is new, and need not be looked up."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

MOST: Final = 20_000
"""Pairs that are remembered; older ones are looked up in the journal."""

Key = tuple[str, str]


class Known:
    """Remembers pairs for as long as it has room, and from when on it has all of them.

    It belongs to one loop. Until the journal's own were recalled, any pair may be known to it.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._pairs: dict[Key, datetime] = {}
        """When each was last carried out (wall clock), the oldest first."""
        self._after: datetime | None = None
        """All that are younger than this are there; None: nobody knows."""

    def add(self, key: Key, at: datetime) -> None:
        """Remember a pair before anything of it is in the journal."""
        self._pairs.pop(key, None)
        self._pairs[key] = at
        if len(self._pairs) > self._most:
            oldest = next(iter(self._pairs))
            self._forget(self._pairs.pop(oldest))

    def recall(self, pairs: Iterable[tuple[Key, datetime]], *, after: datetime | None) -> None:
        """Take what the journal had, the newest first: all that there was, or all `after` a time."""
        mine, self._pairs = self._pairs, {}
        self._after = datetime.min.replace(tzinfo=UTC) if after is None else after
        for key, at in reversed(tuple(pairs)):
            self.add(key, at)
        for key, at in mine.items():
            self.add(key, at)

    def is_new(self, key: Key, since: datetime) -> bool:
        """Tell whether the journal certainly has nothing of a pair since a time."""
        return key not in self._pairs and self._after is not None and self._after < since

    def _forget(self, at: datetime) -> None:
        if self._after is not None:
            self._after = max(self._after, at)

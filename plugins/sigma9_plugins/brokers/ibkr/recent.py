"""What is remembered of executions: as long as IB may speak of them, and not for the life of the process."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from sigma9_core.clock import monotonic

V = TypeVar("V")
KEPT: Final = 4 * 24 * 3600.0
"""Seconds: IB tells executions of the day alone, and of a Friday over the weekend."""


class Recent(Generic[V]):
    """A dictionary by execution id that forgets what was learned long ago."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, V]] = {}

    def __setitem__(self, exec_id: str, value: V) -> None:
        """Take what was learned of an execution."""
        now = monotonic()
        self._kept.pop(exec_id, None)  # the newest stand last
        self._kept[exec_id] = (now, value)
        while now - self._kept[oldest := next(iter(self._kept))][0] > KEPT:
            del self._kept[oldest]

    def __contains__(self, exec_id: str) -> bool:
        return exec_id in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, exec_id: str, default: V) -> V:
        """Give what was learned."""
        found = self._kept.get(exec_id)
        return default if found is None else found[1]

"""The board: the newest body of every state topic, the same for MQTT and REST (contract 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Body = Mapping[str, Any]
Watcher = Callable[[str], None]


class Board:
    """Keeps state by name (`status`, `positions`, `position/AAPL`, ...) and tells watchers which name changed.

    It belongs to the outer loop: other lanes post to it. A body of None removes the name, and its topic.
    """

    def __init__(self) -> None:
        self._bodies: dict[str, Body] = {}
        self._watchers: list[Watcher] = []

    def get(self, name: str) -> Body | None:
        """Give the newest body of a name, None where it has none."""
        return self._bodies.get(name)

    def names(self) -> tuple[str, ...]:
        """List every name that has a body."""
        return tuple(self._bodies)

    def set(self, name: str, body: Body | None) -> None:
        """Replace a body and tell the watchers, unless nothing changed."""
        if self._bodies.get(name) == body:
            return
        if body is None:
            del self._bodies[name]
        else:
            self._bodies[name] = body
        for watcher in tuple(self._watchers):
            watcher(name)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher(name)` at each change; calling what is returned ends it."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

"""Whether the node is there: three connections, one word on the availability topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

Part = Literal["state", "commands", "kill"]
PARTS: Final[frozenset[Part]] = frozenset(("state", "commands", "kill"))


class Presence:
    """Gathers which of the node's connections are up; it belongs to the outer loop."""

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self.changed = asyncio.Event()
        """Set at each change, for the publisher, which clears it."""
        self._up: set[Part] = set()
        self._on_change = on_change

    @property
    def complete(self) -> bool:
        """Tell whether every connection is up."""
        return len(self._up) == len(PARTS)

    def set(self, part: Part, up: bool) -> None:
        """Note that a connection came up or was lost."""
        before = self.complete
        if up:
            self._up.add(part)
        else:
            self._up.discard(part)
        if self.complete != before:
            self._on_change(self.complete)
            self.changed.set()

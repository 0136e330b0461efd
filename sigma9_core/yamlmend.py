"""Take the part that is no YAML out of a text, so that the faults in the rest of it can be told as well."""

from __future__ import annotations

import re
from typing import Final

_START: Final = re.compile(r"[^\s#\-\]})]|---")
"""What begins a top-level block; a list's entries may stand below their key without being indented."""
_KEY: Final = re.compile(r"[\"']?([\w.-]+)")
_ANCHOR: Final = re.compile(r"&([^\s\[\]{},]+)")


class Mending:
    """One text, without the top-level blocks that were taken out; the others keep their lines."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self.lost: list[str] = []
        """The keys that were taken out."""
        self._anchors: set[str] = set()

    @property
    def text(self) -> str:
        """Give what is left, with blank lines for what was taken out."""
        return "\n".join(self._lines) + "\n"

    def take_out(self, line: int) -> bool:
        """Take out the block around a line, counted from 1; tell whether something is left to be read.

        False as well where there was nothing to take out: another try would fail in the same way.
        """
        top = self._start_of(line)
        if top is None:
            return False
        end = top + 1
        while end < len(self._lines) and not _START.match(self._lines[end]):
            end += 1
        self._blank(top, end)
        return any(_START.match(line) for line in self._lines)

    def knew(self, anchor: str) -> bool:
        """Tell whether an anchor stood in what was taken out: that it is missing now is no fault of its own."""
        return anchor in self._anchors

    def _start_of(self, line: int) -> int | None:
        """Find where the block around a line (counted from 1) begins; blank lines belong to what is above them."""
        for index in range(min(line, len(self._lines)) - 1, -1, -1):
            if _START.match(self._lines[index]):
                return index
        return next((index for index, text in enumerate(self._lines) if text.strip()), None)

    def _blank(self, top: int, end: int) -> None:
        key = _KEY.match(self._lines[top])
        if key is not None:
            self.lost.append(key[1])
        for index in range(top, end):
            self._anchors.update(_ANCHOR.findall(self._lines[index]))
            self._lines[index] = ""

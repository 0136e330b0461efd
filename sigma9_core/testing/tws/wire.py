"""The wire: frames of NUL-ended fields, and a cursor that reads them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Final

VERSION: Final = 176
"""The server version that is announced: all layouts are those of it."""
UNSET: Final = "1.7976931348623157E308"
"""How a server writes a number that is not set."""
UNSET_INT: Final = "2147483647"
LARGEST: Final = 16 * 1024 * 1024
"""A frame beyond it is garbage."""
HELLO: Final = b"API\0"

Value = str | int | float | Decimal | bool | None
Message = tuple[str, ...]
"""One message: its number and its fields, as text."""


class WireError(Exception):
    """What came is not of this protocol."""


def text(value: Value) -> str:
    """Write one field: flags as 1 and 0, decimals without an exponent, nothing for None."""
    match value:
        case None:
            return ""
        case bool():
            return "1" if value else "0"
        case Decimal():
            return format(value, "f")
    return str(value)


def message(number: int, *values: Value) -> Message:
    """Build a message."""
    return (str(number), *map(text, values))


def framed(body: bytes) -> bytes:
    """Put its length before a body."""
    return struct.pack(">I", len(body)) + body


def encode(fields: Iterable[str]) -> bytes:
    """Write a message as a frame; every field ends with a NUL."""
    return framed("".join(f"{field}\0" for field in fields).encode())


def decode(body: bytes) -> Message:
    """Read the fields of a frame's body; raise WireError."""
    fields = body.decode("utf-8", errors="backslashreplace").split("\0")
    if fields.pop():
        raise WireError(f"the last field does not end: {body[-40:]!r}")
    return tuple(fields)


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Read one frame's body; raise WireError or IncompleteReadError."""
    (size,) = struct.unpack(">I", await reader.readexactly(4))
    if size > LARGEST:
        raise WireError(f"a frame of {size} bytes")
    return await reader.readexactly(size)


def number(field: str) -> Decimal | None:
    """Read a number; None where it is not set. Raise WireError."""
    if field in ("", UNSET, UNSET_INT):
        return None
    try:
        return Decimal(field)
    except InvalidOperation:
        raise WireError(f"not a number: {field!r}") from None


def integer(field: str) -> int:
    """Read a whole number, 0 where it is not set; raise WireError."""
    return int(number(field) or 0)


class Cursor:
    """Reads a message field by field."""

    def __init__(self, fields: Sequence[str]) -> None:
        self._fields = fields
        self._at = 0

    def next(self) -> str:
        """Give the next field; raise WireError where there is none."""
        if self._at >= len(self._fields):
            raise WireError(f"the message ends after {len(self._fields)} fields")
        self._at += 1
        return self._fields[self._at - 1]

    def count(self) -> int:
        """Give the next field as a number of things that follow."""
        return integer(self.next())

    def take(self, count: int) -> tuple[str, ...]:
        """Give so many fields."""
        return tuple(self.next() for _ in range(count))

    def named(self, names: Iterable[str]) -> dict[str, str]:
        """Give a field for each name."""
        return {name: self.next() for name in names}

    def rest(self) -> tuple[str, ...]:
        """Give what is left."""
        left = tuple(self._fields[self._at :])
        self._at = len(self._fields)
        return left

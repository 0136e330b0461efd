"""Request bodies: bounded in size and time, and turned into the arguments of a command."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from sigma9_core.errors import CommandError
from sigma9_core.payload import MAX_BYTES, read_object
from sigma9_integrations.web.answers import Refusal

BODY_SECONDS = 10.0
"""A body that takes longer to arrive is not waited for."""
DRAIN_BYTES = 1024 * 1024
"""So much of a body that is too large is read away; after that the connection is closed."""
CLOSE = {"Connection": "close"}


async def read_values(request: Request, path: Mapping[str, str]) -> dict[str, Any]:
    """Read a command's values from the body, the path and the header Idempotency-Key.

    No body means no arguments. Raise NotJson (400), Refusal (408, 413) or `invalid` naming the field.
    """
    body = await _read(request)
    values = read_object(body) if body.strip() else {}
    for name, value in path.items():
        if not value.isprintable():
            raise CommandError(
                "invalid", f"{name} in the path holds a character that can't be written", {"field": name}
            )
    given = dict(path)
    key = request.headers.get("idempotency-key")
    if key is not None:
        given["id"] = key
    for name, value in given.items():
        if values.setdefault(name, value) != value:
            where = "header Idempotency-Key" if name == "id" else "path"
            raise CommandError("invalid", f"{name} differs between the body and the {where}", {"field": name})
    return values


async def _read(request: Request) -> bytes:
    """Read the whole body; of one that is too large the rest is read too, because closing a connection with unread
    bytes would take our answer back before the client has seen it.
    """
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > DRAIN_BYTES:
                    break
                if size <= MAX_BYTES:
                    body += chunk
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s", None, CLOSE) from None
    if size > MAX_BYTES:
        headers = CLOSE if size > DRAIN_BYTES else {}
        raise Refusal(413, f"the body is larger than {MAX_BYTES} bytes", {"limit": MAX_BYTES}, headers)
    return bytes(body)

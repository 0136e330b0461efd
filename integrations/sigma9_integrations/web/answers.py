"""What goes back over HTTP: JSON bodies and errors (contract 5)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from sigma9_core.clock import rfc3339
from sigma9_core.errors import HTTP_STATUS, CommandError, ErrorCode
from sigma9_core.payload import NotJson

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="sigma9"'}


class Refusal(CommandError):
    """A refusal whose HTTP status is not that of its code, such as 405 and 413."""

    def __init__(
        self,
        status: int,
        message: str,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        code: ErrorCode = "invalid",
    ) -> None:
        super().__init__(code, message, details)
        self.status = status
        self.headers = dict(headers or {})


def to_json(value: object) -> str:
    """Write JSON in ASCII; a number that is not finite becomes null, because JSON has none."""
    try:
        return json.dumps(value, default=_plain, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), default=_plain, allow_nan=False, separators=(",", ":"))


def answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a JSON body."""
    return Response(to_json(body), status, headers, media_type="application/json")


def refuse(error: CommandError) -> Response:
    """Answer with the error body of contract 5."""
    return answer(error_body(error), status_of(error), headers_of(error))


def error_body(error: CommandError) -> dict[str, Any]:
    """Give the error object under its key."""
    return {"error": {"code": error.code, "message": error.message, "details": error.details}}


def status_of(error: CommandError) -> int:
    """Give the HTTP status of an error: 400 where the body is not JSON, else that of its code."""
    if isinstance(error, Refusal):
        return error.status
    return 400 if isinstance(error, NotJson) else HTTP_STATUS[error.code]


def headers_of(error: CommandError) -> dict[str, str]:
    """Give the headers that belong to an error."""
    if isinstance(error, Refusal):
        return error.headers
    return dict(CHALLENGE) if error.code == "unauthorized" else {}


def _plain(value: object) -> object:
    match value:
        case Decimal():
            return (
                (int(value) if value == value.to_integral_value() else float(value)) if value.is_finite() else None
            )
        case datetime():
            return rfc3339(value)
        case BaseModel():
            return value.model_dump(mode="json")
        case Mapping():
            return dict(value)
        case Path():
            return str(value)
        case Iterable():
            return list(value)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_finite(inner) for inner in value]
    return value

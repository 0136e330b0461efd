"""Values become plain JSON: what a handler gives is the same object on every surface and in the journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from pydantic import BaseModel

from sigma9_core.clock import rfc3339


class Plain(dict[str, Any]):
    """An object of JSON's types alone, such as one just read from JSON: it is not gone through again."""


def plain(value: Any) -> Any:
    """Turn a value into JSON's types: models and mappings into objects, money into numbers, times into RFC 3339.

    A number that is not finite becomes null; a type that JSON has no word for is a TypeError.
    """
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, Enum) else value.value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Plain):
        return value
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {_key(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Set):
        return sorted(plain(inner) for inner in value)
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a value of the type {type(value).__name__} can't be written as JSON")


def _key(key: object) -> str:
    if isinstance(key, str):
        return str(key)
    raise TypeError(f"a key of a JSON object is a text, not {type(key).__name__}")

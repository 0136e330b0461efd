"""Plain sentences about what is wrong with somebody's input: which field, what it must be, what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

_SECRET: Final = re.compile(r"token|password|secret|key", re.IGNORECASE)
_SHOWN: Final = 40
"""The longest input that is shown back, in characters."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One field that is wrong; the path is dotted and empty where the whole is wrong."""

    path: str
    message: str

    def __str__(self) -> str:
        """Give the clause that the user reads."""
        return f"{self.path} {self.message}" if self.path else self.message


def problems(error: ValidationError, data: object) -> list[Problem]:
    """Turn pydantic's errors about `data` into one problem a field, in the order of the fields.

    Pydantic names the members of a union inside the path; they are dropped, and their messages joined by "or".
    """
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path, value = _walk(item["loc"], data, missing=item["type"] == "missing")
        message = _message(item["type"], item["msg"], item.get("ctx", {}))
        if item["type"] not in ("missing", "extra_forbidden", "value_error") and not _SECRET.search(path):
            message += _shown(value)
        messages = found.setdefault(path, [])
        if message not in messages:
            messages.append(message)
    return [Problem(path, " or ".join(messages)) for path, messages in found.items()]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Find the known name that somebody may have meant."""
    names = list(known)
    close = difflib.get_close_matches(word.lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    return next((name for name in names if name.lower() == close[0]), None) if close else None


def hint(word: str, known: Iterable[str]) -> str:
    """Give "; did you mean 'x'?" where a known name is close, else nothing."""
    meant = did_you_mean(word, known)
    return f"; did you mean '{meant}'?" if meant else ""


def listed(names: Iterable[str]) -> str:
    """Write names as a sorted list for a sentence."""
    return ", ".join(sorted(names)) or "none"


def _walk(loc: Sequence[int | str], data: object, *, missing: bool) -> tuple[str, object]:
    parts: list[str] = []
    value = data
    for index, part in enumerate(loc):
        inside = part in value if isinstance(value, Mapping) else isinstance(part, int)
        if inside and isinstance(value, Mapping | list | tuple):
            value = value[part]  # type: ignore[index]  # a list's part is its index
        elif not (missing and index == len(loc) - 1):
            continue  # the label of a union's member
        parts.append(str(part))
    return ".".join(parts), value


def _message(kind: str, text: str, context: Mapping[str, Any]) -> str:
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not known here"
        case "value_error":
            return str(context.get("error", text))
        case "string_pattern_mismatch":
            return f"must match {context.get('pattern')}"
        case "literal_error" | "enum":
            return f"must be {context.get('expected')}"
        case "decimal_parsing" | "decimal_type" | "float_parsing" | "float_type":
            return "must be a number"
        case "finite_number":
            return "must be a finite number"
    text = text.partition(",")[0].removeprefix("Input ").removeprefix("Value ").removeprefix("String ")
    text = text[:1].lower() + text[1:]
    return text.replace("should ", "must ", 1)


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return f", not {'null' if value is None else str(value).lower()}"
    if isinstance(value, str):
        return f", not '{value}'" if len(value) <= _SHOWN and value.isprintable() else ""
    if isinstance(value, Mapping | list | tuple):
        return ""
    text = str(value)
    return f", not {text}" if len(text) <= _SHOWN else ""

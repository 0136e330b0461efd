"""Command payloads: bytes from outside become a `Command`, or an error that names the field (contract 4)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from sigma9_core.clock import monotonic
from sigma9_core.commands import Command, CommandSource, CommandSpec, Right
from sigma9_core.errors import CommandError
from sigma9_core.explain import did_you_mean, hint, listed

MAX_BYTES: Final = 64 * 1024
"""The largest payload that is read."""
MAX_DEPTH: Final = 8
"""How many objects and lists may lie inside each other."""
MAX_ID: Final = 64
"""The longest id, in characters."""
MAX_MAGNITUDE: Final = 18
"""The largest power of ten of a number."""
MAX_PLACES: Final = 30
"""How many decimal places a number may have."""

ENVELOPE: Final = frozenset(("id", "expires_at"))
"""Keys of a payload that are not arguments; `reason` is an argument of nearly every command."""

WORD_PATTERN: Final = r"^[A-Za-z0-9._:*-]{1,64}$"
"""A plain word that fills an argument."""
_WORD: Final = re.compile(WORD_PATTERN)
_LITERALS: Final = frozenset(("null", "true", "false"))
"""JSON without an object: what a template that failed sends, and no symbol or name."""
_UNWRITABLE: Final = re.compile("[\ud800-\udfff\x00]")
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Wrong:
    """A number that can't be used; the walk over the whole finds out which field it is."""

    message: str


class NotJson(CommandError):
    """The payload is not JSON at all: REST answers it with 400 instead of 422."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__("invalid", message, {"field": None, **(details or {})})


def read_command(
    name: str,
    payload: bytes,
    specs: Mapping[str, CommandSpec],
    *,
    source: CommandSource,
    right: Right,
    actor: str | None = None,
    default_id: str | None = None,
) -> Command:
    """Read a payload: a plain word that fits, or a JSON object with `id`, `expires_at` and the arguments.

    Raise CommandError, and nothing else: `unknown_command` for the name, `invalid` naming the field. An empty
    payload is never a command: surfaces on which one is ordinary (a cleared topic) drop it before this.
    """
    spec = find_spec(name, specs)
    text = _decode(payload).strip()
    values = read_object(payload) if text.startswith("{") else _read_word(text, spec)
    return make_command(name, values, specs, source=source, right=right, actor=actor, default_id=default_id)


def make_command(
    name: str,
    values: Mapping[str, Any],
    specs: Mapping[str, CommandSpec],
    *,
    source: CommandSource,
    right: Right,
    actor: str | None = None,
    default_id: str | None = None,
) -> Command:
    """Part an object into arguments, `id` and `expires_at`; the arguments are validated by the dispatcher."""
    find_spec(name, specs)
    given = values.get("id")
    return Command(
        name=name,
        args={key: value for key, value in values.items() if key not in ENVELOPE},
        source=source,
        right=right,
        id=_read_id(default_id if given is None else given),
        expires_at=_read_moment(values.get("expires_at")),
        actor=actor,
        received=monotonic(),
    )


def find_spec(name: str, specs: Mapping[str, CommandSpec]) -> CommandSpec:
    """Find a command's row in the table; raise `unknown_command` with the name that may have been meant."""
    spec = specs.get(name)
    if spec is not None:
        return spec
    shown = name if len(name) <= MAX_ID and name.isprintable() else "this name"
    details = {"did_you_mean": did_you_mean(name[:MAX_ID], specs)}
    raise CommandError("unknown_command", f"there is no command '{shown}'{hint(name[:MAX_ID], specs)}", details)


def read_object(payload: bytes) -> dict[str, Any]:
    """Read a JSON object within the bounds; numbers with a point or an exponent become `Decimal`.

    Raise CommandError `invalid` for what is not an object or breaks a bound, NotJson for what is not JSON.
    """
    text = _decode(payload)
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise _invalid(f"the payload is nested more than {MAX_DEPTH} levels deep", None)
    try:
        value = json.loads(
            text,
            parse_float=_read_decimal,
            parse_int=_read_integer,
            parse_constant=_read_constant,
            object_pairs_hook=_read_pairs,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NotJson(f"the payload is not JSON: {error.msg} ({where})", {"position": error.pos}) from error
    if not isinstance(value, dict):
        raise _invalid("the payload is JSON, but not an object of arguments", None)
    _check(value, "")
    return value


def _decode(payload: bytes) -> str:
    if len(payload) > MAX_BYTES:
        raise CommandError(
            "invalid",
            f"the payload has {len(payload)} bytes: at most {MAX_BYTES} are read",
            {"field": None, "limit": MAX_BYTES},
        )
    if not payload.strip():
        raise NotJson("the payload is empty: an empty payload is never a command")
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"the payload is not UTF-8 at byte {error.start}", {"position": error.start}) from error


def _read_word(text: str, spec: CommandSpec) -> dict[str, Any]:
    # Only plain letters go in any case: 'ſ' and the Kelvin sign become S and K, and nobody meant them so.
    if text in spec.fixed_words or (
        text.isascii() and text.upper() in {word.upper() for word in spec.fixed_words}
    ):
        return {}
    if spec.word is not None and _WORD.fullmatch(text) and text not in _LITERALS:
        return {spec.word: text}
    words = [f"one of {listed(spec.fixed_words)}"] if spec.fixed_words else []
    words += [f"a plain {spec.word}"] if spec.word else []
    accepted = " or ".join([*words, "a JSON object of the arguments"])
    shown = f" '{text}'" if len(text) <= MAX_ID and text.isprintable() else ""
    raise NotJson(f"the payload{shown} does not fit {spec.name}: it takes {accepted}", {"field": spec.word})


def _read_id(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID or not value.isprintable():
        raise _invalid(f"id must be a text of 1 to {MAX_ID} printable characters", "id")
    return value


def _read_moment(value: object) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _invalid("expires_at must be a time in RFC 3339, such as 2026-11-20T14:45:00Z", "expires_at")
    try:
        moment = datetime.fromisoformat(value.upper())
        if moment.tzinfo is None:
            raise _invalid("expires_at needs its time zone, such as the Z of 2026-11-20T14:45:00Z", "expires_at")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _invalid(
            "expires_at must be a time in RFC 3339, such as 2026-11-20T14:45:00Z", "expires_at"
        ) from error


def _depth(text: str) -> int:
    """Count how deep brackets lie outside of strings, before a parser recurses into them."""
    deepest = depth = 0
    for sign in _STRING.sub("", text):
        if sign in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "}]":
            depth -= 1
    return deepest


def _read_decimal(text: str) -> Decimal | _Wrong:
    """Read a number exactly; one with a huge exponent would cost memory wherever it is written out."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return _Wrong("is a number out of range")
    if value.adjusted() > MAX_MAGNITUDE or int(value.as_tuple().exponent) < -MAX_PLACES:
        return _Wrong("is a number out of range")
    return value


def _read_integer(text: str) -> int | _Wrong:
    return int(text) if len(text) <= MAX_MAGNITUDE + 1 else _Wrong("is a number out of range")


def _read_constant(text: str) -> _Wrong:
    return _Wrong(f"is {text}: a number must be finite")


def _read_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _invalid(f"the key '{_shown_key(key)}' stands twice in one object", key)
        values[key] = value
    return values


def _check(value: object, path: str) -> None:
    """Refuse numbers that can't be used, and text that no database or UTF-8 stream could carry."""
    if isinstance(value, _Wrong):
        raise _invalid(f"{_shown_key(path)} {value.message}", path)
    if isinstance(value, str):
        if _UNWRITABLE.search(value):
            raise _invalid(f"{_shown_key(path)} holds a character that can't be written", path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if _UNWRITABLE.search(key):
                raise _invalid("a key holds a character that can't be written", path)
            _check(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, f"{path}.{index}")


def _shown_key(key: str) -> str:
    return key if len(key) <= MAX_ID and key.isprintable() else "?"


def _invalid(message: str, field: str | None) -> CommandError:
    safe = None if field is None or _UNWRITABLE.search(field) else field[:MAX_ID]
    return CommandError("invalid", message, {"field": safe})

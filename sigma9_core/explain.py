"""Plain sentences about what is wrong with somebody's input: which field, what it must be, what was meant.

They speak of JSON and YAML alike (text, number, true or false, list, object), never of Python's types.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sigma9_core.models import SYMBOL_PATTERN

SECRET: Final = re.compile(r"token|password|passphrase|passwd|secret|credential|key", re.IGNORECASE)
"""Where this is part of a path, the value there is not shown."""
NOT_VALID: Final = "is not valid here"
"""Said where there is nothing better: pydantic's own words speak of Python."""
_SHOWN: Final = 40
"""The longest input that is shown back, in characters."""

_OBJECT: Final = "an object of keys and values"
_KINDS: Final[Mapping[str, str]] = {
    "string": "text",
    "bytes": "text",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "iterable": "a list",
    "dict": _OBJECT,
    "mapping": _OBJECT,
    "model": _OBJECT,
    "dataclass": _OBJECT,
    "datetime": "a time in RFC 3339, such as 2026-11-20T14:45:00Z",
    "timezone": "a time with its time zone, such as 2026-11-20T14:45:00Z",
    "date": "a date, such as 2026-11-20",
    "time": "a time of day, such as 16:30",
    "time_delta": "a length of time",
    "path": "the path of a file or folder",
    "url": "a web address",
    "uuid": "a UUID",
    "none": "null",
}
"""What is wanted, by what pydantic's error type begins with."""
_KIND: Final = re.compile(rf"({'|'.join(sorted(_KINDS, key=len, reverse=True))})(_\w+)?")
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("greater than or equal to", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("less than or equal to", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_PATTERNS: Final[Mapping[str, str]] = {
    SYMBOL_PATTERN: "a symbol: 1 to 32 letters, digits, dots, - and _",
}
"""Patterns in words."""


Model = TypeVar("Model", bound=BaseModel)


class WrongFields(ValueError):
    """What a model's own check found, by field: the answer then names each of them as if pydantic had found it.

    A sentence is the rest of a clause that begins with the field, such as "is required for a limit order".
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.fields = dict(fields)
        super().__init__("; ".join(f"{name} {message}" for name, message in self.fields.items()))


@dataclass(frozen=True, slots=True)
class Problem:
    """One field that is wrong; the path is dotted and empty where the whole is wrong."""

    path: str
    message: str

    def __str__(self) -> str:
        """Give the clause that the user reads."""
        return f"{self.path} {self.message}" if self.path else self.message


class Wrong(ValueError):
    """Input that a model refuses, with everything that is wrong with it."""

    def __init__(self, found: Sequence[Problem]) -> None:
        self.problems = tuple(found)
        super().__init__("; ".join(map(str, found)))


@dataclass(slots=True)
class _Found:
    """What is said about one field."""

    wanted: list[str] = field(default_factory=list)
    """What it must be; members of a union each say something."""
    others: list[str] = field(default_factory=list)
    """Whole clauses, which show no value."""
    shown: str = ""

    def sentence(self) -> str:
        clauses = [*([f"must be {' or '.join(self.wanted)}{self.shown}"] if self.wanted else []), *self.others]
        return " or ".join(clauses)


def validated(model: type[Model], data: Mapping[str, Any]) -> Model:
    """Validate somebody's input; raise Wrong with one problem a field.

    True and false are no numbers, which pydantic would take for 1 and 0.
    """
    may_have = any(isinstance(value, bool | Mapping | list | tuple) for value in data.values())
    flags = list(_flags_for_numbers(model, data, "")) if may_have else []
    try:
        taken = model.model_validate(data)
    except ValidationError as error:
        found = problems(error, data, model)
        known = {problem.path for problem in found}
        raise Wrong([*found, *(flag for flag in flags if flag.path not in known)]) from error
    if flags:
        raise Wrong(flags)
    return taken


def problems(error: ValidationError, data: object, model: type[BaseModel] | None = None) -> list[Problem]:
    """Turn pydantic's errors about `data` into one problem a field, in the order of the fields.

    Pydantic names the members of a union inside the path; they are dropped, and their messages joined by "or".
    With the model, a field that is not known is told which one was meant.
    """
    found: dict[str, _Found] = {}
    for item in error.errors(include_url=False):
        kind, context = item["type"], item.get("ctx", {})
        path, value = _walk(item["loc"], data, missing=kind == "missing")
        own = context.get("error")
        if isinstance(own, WrongFields):
            for name, message in own.fields.items():
                _note(found.setdefault(_join(path, name), _Found()).others, message)
            continue
        said = found.setdefault(path, _Found())
        wanted = _wanted(kind, context)
        if wanted is None:
            meant = _meant(model, path) if kind == "extra_forbidden" else ""
            _note(said.others, (_sentence(kind, context) or NOT_VALID) + meant)
        else:
            _note(said.wanted, wanted)
            said.shown = "" if SECRET.search(path) else _shown(value)
    return [Problem(path, said.sentence()) for path, said in found.items()]


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Find the known name that somebody may have meant; of equally near ones the one that begins alike."""
    wanted, names = word.lower(), list(known)
    close = set(difflib.get_close_matches(wanted, [name.lower() for name in names], n=5, cutoff=0.6))

    def nearness(name: str) -> tuple[float, int]:
        low = name.lower()
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(low, wanted, strict=False))
        return difflib.SequenceMatcher(None, low, wanted).ratio(), len(list(alike))

    return max((name for name in names if name.lower() in close), key=nearness, default=None)


def hint(word: str, known: Iterable[str]) -> str:
    """Give "; did you mean 'x'?" where a known name is close, else nothing."""
    meant = did_you_mean(word, known)
    return f"; did you mean '{meant}'?" if meant else ""


def listed(names: Iterable[str]) -> str:
    """Write names as a sorted list for a sentence."""
    return ", ".join(sorted(names)) or "none"


def quoted(text: str) -> str:
    """Write somebody's text into a sentence: in quotes, cut where it is long, and without what can't be shown."""
    seen = "".join(sign if sign.isprintable() else "?" for sign in text)
    return f"'{seen}'" if len(seen) <= _SHOWN else f"'{seen[: _SHOWN - 3]}...'"


def _note(clauses: list[str], clause: str) -> None:
    if clause not in clauses:
        clauses.append(clause)


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


def _wanted(kind: str, context: Mapping[str, Any]) -> str | None:
    """Say what the value must be, where the error is of that sort."""
    match kind:
        case "literal_error" | "enum":
            return str(context.get("expected"))
        case "string_pattern_mismatch":
            pattern = str(context.get("pattern"))
            return _PATTERNS.get(pattern, f"text that matches {pattern}")
        case "finite_number":
            return "a finite number"
        case "int_parsing_size":
            return "a whole number of at most 19 digits"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words} {_number(context.get(key))}"
    known = None if _sentence(kind, context) else _KIND.fullmatch(kind)
    return _KINDS[known[1]] if known else None


def _sentence(kind: str, context: Mapping[str, Any]) -> str | None:
    """Say what is wrong, where no value needs to be shown."""
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not known here"
        case "value_error" | "assertion_error" if str(context.get("error") or ""):
            return str(context["error"])
        case "string_too_short" | "bytes_too_short" if context.get("min_length") == 1:
            return "must not be empty"
        case "string_too_short" | "bytes_too_short":
            return f"must have at least {context.get('min_length')} characters"
        case "string_too_long" | "bytes_too_long":
            return f"must have at most {context.get('max_length')} characters"
        case "too_short" if context.get("min_length") == 1:
            return "must not be empty"
        case "too_short":
            return f"must have at least {context.get('min_length')} entries"
        case "too_long":
            return f"must have at most {context.get('max_length')} entries"
        case "date_past" | "datetime_past":
            return "must be in the past"
        case "date_future" | "datetime_future":
            return "must be in the future"
        case "decimal_max_places":
            return f"must have at most {context.get('decimal_places')} decimal places"
        case "decimal_max_digits":
            return f"must have at most {context.get('max_digits')} digits"
        case "decimal_whole_digits":
            return f"must have at most {context.get('whole_digits')} digits before the point"
        case "invalid_key":
            return "must have keys that are text"
        case "union_tag_invalid" | "union_tag_not_found":
            name = str(context.get("discriminator")).strip("'")
            expected = context.get("expected_tags")
            return f"needs '{name}' to tell what it is" + (f": one of {expected}" if expected else "")
    return None


def _number(bound: object) -> str:
    return f"{bound:.0f}" if isinstance(bound, float) and bound.is_integer() else str(bound)


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return f", not {'null' if value is None else str(value).lower()}"
    if isinstance(value, str):
        return f", not {quoted(value)}" if value.isprintable() else ""
    if isinstance(value, Mapping):
        return ", not an object"
    if isinstance(value, list | tuple):
        return ", not a list"
    text = str(value)
    return f", not {text}" if len(text) <= _SHOWN else ""


# --- what a model wants ---------------------------------------------------------------------------------------


def _members(annotation: Any) -> Iterator[Any]:
    """Give what an annotation may be, without unions and `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            yield member


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Give a model's fields by the names that its input has."""
    named = {}
    for name, info in model.model_fields.items():
        alias = info.validation_alias or info.alias
        named[alias if isinstance(alias, str) else name] = info
    return named


def _below(annotation: Any) -> Iterator[Any]:
    """Give what the entries of a list or an object of free keys may be."""
    for member in _members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin in (list, tuple, set, frozenset) and arguments:
            yield arguments[0]
        elif isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
            yield arguments[1]


def _names(model: type[BaseModel] | None, path: str) -> list[str]:
    """List the fields that are known where an unknown one stands."""
    if model is None:
        return []
    here: list[Any] = [model]
    for part in path.split(".")[:-1]:
        models = [one for each in here for one in _models(each)]
        inner = [_fields(one)[part].annotation for one in models if part in _fields(one)]
        here = inner or [one for each in here for one in _below(each)]
    return [name for each in here for one in _models(each) for name in _fields(one)]


def _meant(model: type[BaseModel] | None, path: str) -> str:
    """Tell which field was meant, else which there are."""
    names = _names(model, path)
    return hint(path.rpartition(".")[2], names) or (f"; known here: {listed(names)}" if names else "")


def _flags_for_numbers(annotation: Any, value: object, path: str) -> Iterator[Problem]:
    """Find every true or false that stands where a number is wanted."""
    if isinstance(value, bool):
        members = list(_members(annotation))
        if bool not in members and (int in members or float in members):
            kind = "a number" if float in members else "a whole number"
            yield Problem(path, f"must be {kind}{_shown(value)}")
    elif isinstance(value, Mapping):
        for model in _models(annotation):
            for name, info in _fields(model).items():
                if name in value:
                    yield from _flags_for_numbers(info.annotation, value[name], _join(path, name))
        for inner in _below(annotation):
            for key, each in value.items():
                yield from _flags_for_numbers(inner, each, _join(path, key))
    elif isinstance(value, list | tuple):
        for inner in _below(annotation):
            for index, each in enumerate(value):
                yield from _flags_for_numbers(inner, each, _join(path, index))


def _join(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)

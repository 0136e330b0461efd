"""What the models of `config.py` want at a dotted path: the kind of value, and whether it is a secret."""

from __future__ import annotations

import re
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

Kind = Literal["section", "list", "mapping", "free", "text", "flag", "whole", "number"]

SECRET_NAME: Final = re.compile(
    r"(token|password|passphrase|passwd|secret|credential|api_?key|private_?key)", re.IGNORECASE
)
"""Keys of a plugin's own settings whose values are treated as secrets."""

WANTED: Final[dict[Kind, str]] = {
    "section": "keys and values",
    "list": "a list",
    "mapping": "keys and values",
    "free": "any value",
    "text": "text",
    "flag": "true or false",
    "whole": "a whole number",
    "number": "a number",
}
"""How a message names each kind."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What may stand at one place of the configuration."""

    kind: Kind
    optional: bool = False
    """Null is a value here."""
    model: type[BaseModel] | None = None
    """The model of a section."""
    item: Any = None
    """The annotation of a list's or mapping's entries."""
    secret: bool = False
    path: bool = False
    choices: tuple[str, ...] = ()

    def child(self, key: str | int) -> Shape | None:
        """Tell what may stand one level below; None where there is no such key."""
        if self.kind == "section" and self.model is not None:
            return shapes(self.model).get(str(key))
        if self.kind == "list":
            return shape_of(self.item) if isinstance(key, int) else None
        if self.kind == "free" or (self.kind == "mapping" and self.item is Any):
            return Shape("free", optional=True, secret=self.secret or bool(SECRET_NAME.search(str(key))))
        if self.kind == "mapping":
            return shape_of(self.item) if isinstance(key, str) else None
        return None

    def keys(self) -> tuple[str, ...]:
        """List the keys of a section."""
        return tuple(shapes(self.model)) if self.model is not None else ()


@cache
def shapes(model: type[BaseModel]) -> dict[str, Shape]:
    """Give the shape of each field of a model."""
    return {name: shape_of(field.annotation) for name, field in model.model_fields.items()}


def root(model: type[BaseModel]) -> Shape:
    """Give the shape of a whole file."""
    return Shape("section", model=model)


def find(model: type[BaseModel], path: tuple[str | int, ...]) -> Shape | None:
    """Tell what may stand at a path; None where there is no such setting."""
    shape: Shape | None = root(model)
    for part in path:
        if shape is None:
            return None
        shape = shape.child(part)
    return shape


def shape_of(annotation: Any) -> Shape:
    """Turn a field's annotation into its shape."""
    optional = False
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            members = [member for member in get_args(annotation) if member is not type(None)]
            optional = optional or len(members) < len(get_args(annotation))
            if len(members) != 1:
                raise TypeError(f"a setting has one type, not {annotation}")
            annotation = members[0]
        else:
            break
    if origin is Literal:
        return Shape("text", optional, choices=get_args(annotation))
    if origin is tuple:
        return Shape("list", optional, item=get_args(annotation)[0])
    if origin is dict:
        return Shape("mapping", optional, item=get_args(annotation)[1])
    if annotation is Any:
        return Shape("free", optional=True)
    kinds: dict[type, Kind] = {bool: "flag", int: "whole", float: "number", str: "text"}
    if annotation in kinds:
        return Shape(kinds[annotation], optional)
    if annotation is Path or annotation is SecretStr:
        return Shape("text", optional, secret=annotation is SecretStr, path=annotation is Path)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Shape("section", optional, model=annotation)
    raise TypeError(f"no shape is known for a setting of type {annotation}")

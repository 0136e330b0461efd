"""What the models want at a path."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from sigma9_core.config import ClientSettings, Settings
from sigma9_core.configschema import Shape, find, shape_of, shapes


def test_every_setting_has_a_shape() -> None:
    """Each field of both files, at every depth, has a shape: a new field of a new type is noticed here."""

    def walk(model: type[BaseModel]) -> int:
        count = 0
        for shape in shapes(model).values():
            below = shape_of(shape.item) if shape.item not in (None, Any) else shape
            count += 1 if below.model is None else walk(below.model)
        return count

    assert walk(Settings) > 60
    assert walk(ClientSettings) == 11


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("node",), Shape("text")),
        (("server", "port"), Shape("whole")),
        (("dead_man", "timeout"), Shape("number", optional=True)),
        (("engine", "auto_start"), Shape("flag", optional=True)),
        (("auth", "token"), Shape("text", optional=True, secret=True)),
        (("data_dir",), Shape("text", path=True)),
        (("plugins", "paths", 0), Shape("text", path=True)),
        (("kill_switch", "foreign"), Shape("text", choices=("leave", "cancel", "flatten"))),
        (("risk", 3, "config", "limit"), Shape("free", optional=True)),
        (("risk", 3, "config", "mail", "api_key"), Shape("free", optional=True, secret=True)),
        (("risk", 3, "config", "passwords", "x"), Shape("free", optional=True, secret=True)),
        (("risk", "x"), None),
        (("server", "port", "x"), None),
        (("nothing", "at", "all"), None),
    ],
)
def test_find(path: tuple[str | int, ...], expected: Shape | None) -> None:
    """A path finds the kind of its value, whether it may be null, and whether it is a secret."""
    assert find(Settings, path) == expected


def test_unknown_types() -> None:
    """A type that no setting has is a programming error, not a guess."""
    for annotation in (int | str, set[int], bytes):
        with pytest.raises(TypeError):
            shape_of(annotation)

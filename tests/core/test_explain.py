"""Plain sentences about wrong input: the field's path, what it must be, and nothing secret."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sigma9_core.explain import did_you_mean, hint, listed, problems


class Inner(BaseModel):
    """A model inside another."""

    size: int = Field(ge=1)


class Outer(BaseModel):
    """A model with one field of each kind of trouble."""

    model_config = ConfigDict(extra="forbid")

    inner: Inner | None = None
    many: list[Inner] = []
    pick: Literal["a"] | int = 1
    api_token: Literal["x"] | None = None


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ({"inner": {}}, ["inner.size is required"]),
        ({"inner": {"size": 0}}, ["inner.size must be greater than or equal to 1, not 0"]),
        ({"many": [{"size": 1}, {"size": "x"}]}, ["many.1.size must be a valid integer, not 'x'"]),
        ({"pick": "b"}, ["pick must be 'a', not 'b' or must be a valid integer, not 'b'"]),
        ({"extra": 1}, ["extra is not known here"]),
        ({"api_token": "secret"}, ["api_token must be 'x'"]),
        (
            {"inner": 5, "more": None},
            ["inner must be a valid dictionary or instance of Inner, not 5", "more is not known here"],
        ),
        ([], ["must be a valid dictionary or instance of Outer"]),
    ],
)
def test_each_wrong_field_is_one_clause(data: Any, texts: list[str]) -> None:
    """The path is the data's own, members of a union are joined, and what may be a secret is not shown."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)

    assert [str(problem) for problem in problems(caught.value, data)] == texts


def test_the_nearest_known_name_is_suggested() -> None:
    """Upper and lower case are the same; nothing near is nothing."""
    assert did_you_mean("STRAT", ["stop", "start"]) == "start"
    assert did_you_mean("xyz", ["stop", "start"]) is None
    assert hint("stopp", ["stop", "start"]) == "; did you mean 'stop'?"
    assert hint("xyz", []) == ""
    assert listed(["b", "a"]) == "a, b"
    assert listed([]) == "none"

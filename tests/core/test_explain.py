"""Plain sentences about wrong input: the field's path, what it must be, and nothing secret."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core.core_schema import ErrorType

from sigma9_core.explain import (
    NOT_VALID,
    Wrong,
    WrongFields,
    _sentence,
    _wanted,
    did_you_mean,
    hint,
    listed,
    problems,
    quoted,
    validated,
)


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
        ({"many": [{"size": 1}, {"size": "x"}]}, ["many.1.size must be a whole number, not 'x'"]),
        ({"pick": "b"}, ["pick must be 'a' or a whole number, not 'b'"]),
        ({"extra": 1}, ["extra is not known here"]),
        ({"api_token": "secret"}, ["api_token must be 'x'"]),
        (
            {"inner": 5, "more": None},
            ["inner must be an object of keys and values, not 5", "more is not known here"],
        ),
        ([], ["must be an object of keys and values, not a list"]),
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


def test_of_equally_near_names_the_one_that_begins_alike_is_meant() -> None:
    """XNYZ is XNYS with a slip at its end, not XNZE."""
    assert did_you_mean("XNYZ", ["XNZE", "XNYS", "XNAS"]) == "XNYS"
    assert did_you_mean("XNYZ", ["XNYS", "XNZE", "XNAS"]) == "XNYS"


@pytest.mark.parametrize("kind", get_args(ErrorType))
def test_no_error_of_pydantic_speaks_python(kind: str) -> None:
    """Whatever pydantic finds, we say in words of JSON: of pydantic's own words nothing gets through."""
    wanted = _wanted(kind, {"error": ""})
    said = f"must be {wanted}" if wanted else _sentence(kind, {"error": ""}) or NOT_VALID

    assert not re.search(r"\b(tuple|dict|dictionary|Decimal|str|string|int|integer|bool|instance)\b", said)
    assert re.match(r"(must|is|needs) ", said)


class Band(BaseModel):
    """A model that compares its fields itself."""

    model_config = ConfigDict(extra="forbid")

    low: Decimal = Decimal(0)
    high: Decimal | None = None
    count: int = 1
    share: Annotated[float, Field(ge=0)] | None = None
    on: bool | int = False
    parts: tuple[int, ...] = ()
    named: dict[str, float] = Field(default_factory=dict)
    inner: list[Inner] = Field(default_factory=list)
    start: int = Field(default=0, alias="from")

    @model_validator(mode="after")
    def _order(self) -> Band:
        if self.high is not None and self.low > self.high:
            raise WrongFields({"low": "must not be above high", "high": "must not be below low"})
        return self


class Bands(BaseModel):
    """Bands inside of something."""

    bands: list[Band] = []


def test_a_models_own_check_can_name_its_fields() -> None:
    """Each field is a problem of its own, wherever in the input the model stands."""
    with pytest.raises(Wrong) as caught:
        validated(Band, {"low": 2, "high": 1})
    assert [problem.path for problem in caught.value.problems] == ["low", "high"]
    with pytest.raises(Wrong) as caught:
        validated(Bands, {"bands": [{}, {"low": 2, "high": 1}]})
    assert str(caught.value) == "bands.1.low must not be above high; bands.1.high must not be below low"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"count": True}, "count must be a whole number, not true"),
        ({"share": False}, "share must be a number, not false"),
        ({"parts": [1, True]}, "parts.1 must be a whole number, not true"),
        ({"named": {"a": True}}, "named.a must be a number, not true"),
        ({"inner": [{"size": True}]}, "inner.0.size must be a whole number, not true"),
        ({"from": True}, "from must be a whole number, not true"),
        ({"low": True}, "low must be a number, not true"),
        ({"count": True, "low": "x"}, "low must be a number, not 'x'; count must be a whole number, not true"),
        ({"inner": [{"size": False}]}, "inner.0.size must be greater than or equal to 1, not false"),
    ],
)
def test_true_and_false_are_no_numbers(data: dict[str, Any], text: str) -> None:
    """What pydantic would take for 1 or 0 is a wrong type; where a flag may stand it is one."""
    with pytest.raises(Wrong) as caught:
        validated(Band, data)
    assert str(caught.value) == text
    assert validated(Band, {"on": True}).on is True


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"bands": [{"lwo": 1}]}, "bands.0.lwo is not known here; did you mean 'low'?"),
        ({"bands": [{"inner": [{"size": 1}], "fron": 1}]}, "bands.0.fron is not known here; did you mean 'from'?"),
        (
            {"bands": [{"zzz": 1}]},
            "bands.0.zzz is not known here; known here: count, from, high, inner, low, named, on, parts, share",
        ),
    ],
)
def test_what_is_not_known_is_told_what_was_meant(data: dict[str, Any], text: str) -> None:
    """The nearest field of the same model, by the name that its input has; else those that there are."""
    with pytest.raises(Wrong) as caught:
        validated(Bands, data)
    assert str(caught.value) == text


def test_long_and_odd_text_is_shown_cut_and_clean() -> None:
    """A sentence stays a sentence whatever somebody sends."""
    assert quoted("a\nb") == "'a?b'"
    assert quoted("x" * 41) == f"'{'x' * 37}...'"
    with pytest.raises(Wrong) as caught:
        validated(Band, {"low": "x" * 500, "high": "a\nb", "named": 5, "parts": {}})
    assert [str(problem) for problem in caught.value.problems] == [
        f"low must be a number, not '{'x' * 37}...'",
        "high must be a number",
        "parts must be a list, not an object",
        "named must be an object of keys and values, not 5",
    ]

"""Plain JSON: what a handler gives is the same object everywhere, or an error."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.models import OrderStatus, RuleUsage
from sigma9_core.plain import Plain, plain


class Level(IntEnum):
    """A number with a name."""

    HIGH = 3


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Decimal("1.50"), 1.5),
        (Decimal("1E+2"), 100),
        (Decimal("NaN"), None),
        (float("inf"), None),
        (True, True),
        (OrderStatus.FILLED, "filled"),
        (Level.HIGH, 3),
        (datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=1))), "2026-01-02T02:00:00.000000Z"),
        (date(2026, 1, 2), "2026-01-02"),
        ({"b", "a"}, ["a", "b"]),
        ((1, [2, {"x": Decimal(3)}]), [1, [2, {"x": 3}]]),
        (RuleUsage(rule="r", used=Decimal("0.5"), until=datetime(2026, 1, 2, tzinfo=UTC)), None),
    ],
)
def test_values_become_json(value: Any, wanted: Any) -> None:
    """Money is a number, times are RFC 3339, models are objects, and what is not finite is null."""
    if isinstance(value, RuleUsage):
        wanted = json.loads(value.model_dump_json())

    assert plain(value) == wanted
    assert type(plain(value)) is type(wanted)


@pytest.mark.parametrize("value", [object(), b"x", {1: "x"}, {"x": object()}])
def test_what_json_has_no_word_for_is_an_error(value: Any) -> None:
    """Nothing is turned into its repr in silence."""
    with pytest.raises(TypeError, match=r"JSON"):
        plain(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.decimals(-(10**12), 10**12) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=10,
    )
)
def test_plain_values_are_json_and_stay_as_they_are(value: Any) -> None:
    """The result is JSON without constants, and making it plain again changes nothing."""
    once = plain(value)
    json.dumps(once, allow_nan=False)

    assert plain(once) == once


def test_what_was_read_from_json_is_taken_as_it_is() -> None:
    """A page of events is not gone through value by value once more."""
    event = Plain({"seq": 1, "data": {"items": [1.5, None, "x"]}})
    assert plain({"events": [event]})["events"][0] is event

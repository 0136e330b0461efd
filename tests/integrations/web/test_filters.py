"""Filters of the feed: what is read from a query and from a message."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from sigma9_core.bus import Interest
from sigma9_core.errors import CommandError
from sigma9_core.events import EVENT_TYPES, LOG_LEVELS, EventType, LogLevel
from sigma9_integrations.web.filters import read_subscribe, read_wish

TYPES = st.none() | st.frozensets(st.sampled_from(EVENT_TYPES), min_size=1)
SYMBOLS = st.none() | st.frozensets(st.from_regex(r"[A-Za-z0-9._-]{1,32}", fullmatch=True), min_size=1, max_size=5)
LEVELS = st.none() | st.sampled_from(LOG_LEVELS)


def refusal(read: Callable[[], object]) -> CommandError | None:
    """Give the error that a reading ends in."""
    try:
        read()
    except CommandError as error:
        return error
    return None


@given(TYPES, SYMBOLS, LEVELS)
def test_query_and_message_mean_the_same(
    types: frozenset[EventType] | None, symbols: frozenset[str] | None, level: LogLevel | None
) -> None:
    """A filter reads the same from an address and from a subscribe action."""
    wish = {"types": types, "symbols": symbols, "level": level}
    query = {key: value if isinstance(value, str) else ",".join(value) for key, value in wish.items() if value}
    message = {key: value if isinstance(value, str) else list(value) for key, value in wish.items() if value}
    expected = Interest(types, symbols, level or "info")
    assert read_wish(QueryParams(query)).interest == expected
    assert read_subscribe(json.dumps({"action": "subscribe", **message})) == expected


@given(st.text(max_size=60) | st.none())
def test_any_message_is_a_filter_or_an_invalid_one(text: str | None) -> None:
    """Nothing that a client sends raises anything but `invalid`, with one line."""
    error = refusal(lambda: read_subscribe(text))
    assert error is None or (error.code == "invalid" and error.message)


@given(
    st.dictionaries(st.sampled_from(["types", "symbols", "level", "after", "batch", "x"]), st.text(max_size=30))
)
def test_any_query_is_a_wish_or_an_invalid_one(query: Mapping[str, str]) -> None:
    """Nothing in an address raises anything but `invalid`, naming the parameter."""
    error = refusal(lambda: read_wish(QueryParams(dict(query))))
    assert error is None or (error.code == "invalid" and error.details["field"] in query)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("TRUE", True), ("false", False), ("0", False)]
)
def test_batch_is_a_plain_yes_or_no(text: str, value: bool) -> None:
    """Both common spellings of a truth value are taken."""
    assert read_wish(QueryParams({"batch": text})).batch is value

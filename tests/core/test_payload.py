"""Command payloads: whatever comes from outside is a command or an error that names the field."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sigma9_core.commands import BUILT_IN, Command
from sigma9_core.errors import CommandError
from sigma9_core.payload import MAX_BYTES, MAX_DEPTH, NotJson, make_command, read_command, read_object


def read(name: str, payload: bytes | str, **more: Any) -> Command:
    """Read a payload as MQTT would."""
    raw = payload.encode() if isinstance(payload, str) else payload
    return read_command(name, raw, BUILT_IN, source="mqtt", right="trade", **more)


def refusal(name: str, payload: bytes | str) -> CommandError:
    """Read a payload that must be refused."""
    with pytest.raises(CommandError) as caught:
        read(name, payload)
    return caught.value


@pytest.mark.parametrize(
    ("name", "payload", "args"),
    [
        ("start", "PRESS", {}),
        ("start", "ON", {}),
        ("start", "start", {}),
        ("kill_switch", "press", {}),
        ("kill_switch", " kill_switch\n", {}),
        ("control", "kill", {"command": "kill"}),
        ("cancel_order", "01JABC-7", {"order_id": "01JABC-7"}),
        ("close_position", "*", {"symbol": "*"}),
        ("close_position", "BRK.B", {"symbol": "BRK.B"}),
        ("watchlist_add", "AAPL", {"symbol": "AAPL"}),
        ("start", "{}", {}),
        ("start", ' {"reason": "morning"} ', {"reason": "morning"}),
        ("control", '{"command": "stop"}', {"command": "stop"}),
    ],
)
def test_a_plain_word_that_fits_or_an_object_is_a_command(name: str, payload: str, args: dict[str, Any]) -> None:
    """Plain words fill the argument that they stand for; an object gives the arguments themselves."""
    command = read(name, payload)

    assert (command.name, command.args, command.source, command.right) == (name, args, "mqtt", "trade")
    assert command.received > 0


def test_id_and_expiry_are_parted_from_the_arguments() -> None:
    """`id` and `expires_at` belong to the command; `reason` stays an argument."""
    command = read(
        "kill_switch",
        '{"id": "k1", "expires_at": "2026-11-20T15:45:00.5+01:00", "reason": "test", "flatten": false}',
        actor="dash",
    )

    assert command.id == "k1"
    assert command.expires_at == datetime(2026, 11, 20, 14, 45, 0, 500000, tzinfo=UTC)
    assert command.args == {"reason": "test", "flatten": False}
    assert command.actor == "dash"


def test_null_means_absent_and_the_payloads_own_id_beats_the_default() -> None:
    """A null id or expiry is none; the default id (a header) fills in where the payload has none."""
    absent = read("start", '{"id": null, "expires_at": null}', default_id="header")
    own = read("start", '{"id": "own"}', default_id="header")

    assert (absent.id, absent.expires_at) == ("header", None)
    assert own.id == "own"


def test_numbers_keep_their_exact_value() -> None:
    """0.1 is 0.1, and money never goes through a binary fraction."""
    args = read("place_order", '{"limit_price": 0.1, "quantity": 3, "stop_price": 1e-5}').args

    assert args["limit_price"] == Decimal("0.1")
    assert args["stop_price"] == Decimal("0.00001")
    assert args["quantity"] == 3


@pytest.mark.parametrize(
    ("payload", "field", "message"),
    [
        ('{"quantity": NaN}', "quantity", "quantity is NaN: a number must be finite"),
        ('{"bracket": {"stop_price": -Infinity}}', "bracket.stop_price", "bracket.stop_price is -Infinity"),
        ('{"quantity": 1e400}', "quantity", "quantity is a number out of range"),
        ('{"quantity": 1e99999999999999999999}', "quantity", "quantity is a number out of range"),
        ('{"quantity": 1E-31}', "quantity", "out of range"),
        ('{"quantity": 99999999999999999999}', "quantity", "out of range"),
        (f'{{"quantity": {"9" * 5000}}}', "quantity", "out of range"),
        ('{"list": [1, 2e30]}', "list.1", "list.1 is a number out of range"),
        ('{"quantity": 1, "quantity": 2}', "quantity", "the key 'quantity' stands twice"),
        ('{"a": {"b": 1, "b": 1}}', "b", "the key 'b' stands twice"),
        ('{"id": ""}', "id", "id must be a text of 1 to 64"),
        (f'{{"id": "{"x" * 65}"}}', "id", "id must be a text of 1 to 64"),
        ('{"id": 7}', "id", "id must be a text"),
        ('{"id": "a\\nb"}', "id", "id must be a text"),
        ('{"expires_at": "tomorrow"}', "expires_at", "expires_at must be a time"),
        ('{"expires_at": 1700000000}', "expires_at", "expires_at must be a time"),
        ('{"expires_at": "2026-11-20T14:45:00"}', "expires_at", "expires_at needs its time zone"),
        ('{"expires_at": "0001-01-01T00:00:00+14:00"}', "expires_at", "expires_at must be a time"),
        ('{"reason": "\\ud800"}', "reason", "reason holds a character"),
        ('{"reason": "a\\u0000b"}', "reason", "reason holds a character"),
    ],
)
def test_a_malformed_field_is_named(payload: str, field: str, message: str) -> None:
    """The error is `invalid`, its sentence and its details name the field."""
    error = refusal("place_order", payload)

    assert error.code == "invalid"
    assert error.details["field"] == field
    assert message in error.message
    assert not isinstance(error, NotJson)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "the payload is empty"),
        (b" \n", "the payload is empty"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b'{"reason": "\xe9"}', "not UTF-8 at byte 12"),
        (b'{"reason": ', "the payload is not JSON"),
        (b'{"reason": "x"} extra', "the payload is not JSON"),
        (
            "\u017ftart".encode(),
            "the payload '\u017ftart' does not fit start: it takes one of ON, PRESS, start or a JSON object",
        ),
        (b"OFF", "the payload 'OFF' does not fit start: it takes one of ON, PRESS, start or a JSON object"),
        (b"[]", "does not fit start"),
        (b'"start"', "does not fit start"),
        (b"1", "does not fit start"),
    ],
)
def test_what_is_not_json_at_all_says_so(payload: bytes, message: str) -> None:
    """What is neither a fitting word nor JSON is told apart, since REST answers it with 400."""
    error = refusal("start", payload)

    assert isinstance(error, NotJson)
    assert error.code == "invalid"
    assert message in error.message


def test_a_payload_beyond_the_bounds_is_refused_before_it_is_parsed() -> None:
    """64 KiB and 8 levels are read, one more is not."""
    fits = b'{"reason": "' + b"x" * (MAX_BYTES - 14) + b'"}'
    assert len(fits) == MAX_BYTES
    assert len(read("start", fits).args["reason"]) == MAX_BYTES - 14
    assert refusal("start", fits + b" ").details["limit"] == MAX_BYTES

    inside = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert read("start", f'{{"reason": {inside}}}').args
    assert "8 levels" in refusal("start", f'{{"reason": [{inside}]}}').message
    assert "8 levels" in refusal("start", '{"a":' + "[" * 60_000).message


def test_brackets_inside_of_text_are_no_depth() -> None:
    """A reason may hold as many brackets as it likes."""
    assert read("start", '{"reason": "' + '[{\\"' * 100 + '"}').args["reason"] == '[{"' * 100


def test_an_unknown_command_names_the_one_that_was_meant() -> None:
    """The error suggests the nearest name, and an unprintable one is not repeated."""
    error = refusal("kill_swich", "PRESS")
    strange = refusal("\ud800" * 500, "PRESS")

    assert error.code == "unknown_command"
    assert error.message == "there is no command 'kill_swich'; did you mean 'kill_switch'?"
    assert error.details == {"did_you_mean": "kill_switch"}
    assert strange.message == "there is no command 'this name'"


def test_a_command_is_made_from_values_that_a_surface_has_put_together() -> None:
    """REST merges the path's names into the body before it makes the command."""
    values = {**read_object(b'{"id": "m1", "quantity": 5}'), "order_id": "o1"}
    command = make_command("modify_order", values, BUILT_IN, source="api", right="trade")

    assert (command.id, command.args) == ("m1", {"quantity": 5, "order_id": "o1"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def check_answer(name: str, payload: bytes) -> None:
    """Read a payload; what comes is a command whose parts can be written, or a CommandError that can."""
    try:
        command = read_command(name, payload, BUILT_IN, source="mqtt", right="read")
    except CommandError as error:
        json.dumps([error.code, error.message, error.details]).encode()
        error.message.encode()
    else:
        assert command.name == name
        assert command.id is None or 1 <= len(command.id) <= 64
        json.dumps(command.args, default=float, allow_nan=False, ensure_ascii=False).encode()


@given(
    st.sampled_from(sorted(BUILT_IN)) | st.text(),
    st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
)
@example("start", b'{"\\ud800": 1, "\\ud800": 2}')
@example("start", b'{"a": 1e1000000000}')
@settings(deadline=None)
def test_no_bytes_raise_anything_but_a_command_error(name: str, payload: bytes) -> None:
    """Any name with any bytes gives a command or a CommandError."""
    check_answer(name, payload)


@given(
    st.sampled_from(sorted(BUILT_IN)),
    st.dictionaries(st.sampled_from(["id", "expires_at", "reason", "symbol"]) | st.text(), JSON),
)
@settings(deadline=None)
def test_no_json_raises_anything_but_a_command_error(name: str, values: dict[str, Any]) -> None:
    """Any JSON object gives a command or a CommandError."""
    check_answer(name, json.dumps(values).encode())

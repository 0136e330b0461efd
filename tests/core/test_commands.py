"""The command table and its arguments, against contract 4."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.commands import (
    BUILT_IN,
    RIGHTS,
    Command,
    KillArgs,
    OrderArgs,
    Response,
    RiskSetArgs,
    Scope,
    allows,
    decimal,
)
from sigma9_core.errors import HTTP_STATUS, CommandError

TS = datetime(2026, 11, 20, 14, 45, 0, 123456, tzinfo=UTC)

ORDER = (
    "symbol side quantity order_type limit_price stop_price trail_amount trail_percent time_in_force outside_rth "
    "bracket"
)
TABLE = {
    "start": ("", "trade", "POST /api/engine/start"),
    "stop": ("", "trade", "POST /api/engine/stop"),
    "pause": ("", "trade", "POST /api/engine/pause"),
    "resume": ("", "trade", "POST /api/engine/resume"),
    "control": ("command", "trade", "POST /api/control"),
    "kill_switch": ("flatten scope", "trade", "POST /api/kill-switch"),
    "reset_kill_switch": ("scope", "admin", "DELETE /api/kill-switch"),
    "kill_drill": ("", "admin", "POST /api/kill-switch/drill"),
    "heartbeat": ("", "trade", "POST /api/heartbeat"),
    "scan": ("strategies", "trade", "POST /api/scan"),
    "place_order": (ORDER, "trade", "POST /api/orders"),
    "preview_order": (ORDER, "trade", "POST /api/orders/preview"),
    "modify_order": (
        "order_id quantity limit_price stop_price trail_amount trail_percent",
        "trade",
        "PATCH /api/orders/{order_id}",
    ),
    "cancel_order": ("order_id", "trade", "DELETE /api/orders/{order_id}"),
    "cancel_all": ("protective", "trade", "DELETE /api/orders"),
    "close_position": ("symbol", "trade", "POST /api/positions/{symbol}/close"),
    "adopt_position": ("symbol strategy", "admin", "POST /api/positions/{symbol}/adopt"),
    "settle_position": ("symbol", "admin", "POST /api/positions/{symbol}/settle"),
    "watchlist_add": ("symbol", "trade", "PUT /api/watchlist/{symbol}"),
    "watchlist_remove": ("symbol", "trade", "DELETE /api/watchlist/{symbol}"),
    "broker_connect": ("", "trade", "POST /api/broker/connect"),
    "broker_disconnect": ("", "trade", "POST /api/broker/disconnect"),
    "plugin_enable": ("name", "admin", "POST /api/plugins/{name}/enable"),
    "plugin_disable": ("name", "admin", "POST /api/plugins/{name}/disable"),
    "risk_set": ("rule settings", "admin", "PATCH /api/risk/{rule}"),
    "risk_clear": ("rule", "admin", "POST /api/risk/{rule}/clear"),
    "acknowledge_journal": ("", "admin", "POST /api/journal/acknowledge"),
    "events": ("after limit", "read", None),
}
"""Name: arguments beside `reason`, right, REST alias, in the order of the contract."""


# --- the table ------------------------------------------------------------------------------------------------


def test_commands_are_those_of_the_contract() -> None:
    """Every command of the contract is there, in its order, and no other."""
    assert list(BUILT_IN) == list(TABLE)
    assert all(spec.name == name for name, spec in BUILT_IN.items())


@pytest.mark.parametrize("name", TABLE)
def test_row_of_the_table(name: str) -> None:
    """A command has the arguments, the right and the REST alias that the contract gives it."""
    arguments, right, alias = TABLE[name]
    spec = BUILT_IN[name]

    assert set(spec.args.model_fields) - {"reason"} == set(arguments.split())
    assert "reason" in spec.args.model_fields
    assert spec.right == right
    assert (f"{spec.alias.method} {spec.alias.path}" if spec.alias else None) == alias
    assert spec.summary.endswith(".")


def test_urgent_commands_are_never_held_back_as_repeats() -> None:
    """What a dashboard button with a constant id must be able to do twice is not a repeat."""
    urgent = {"kill_switch", "stop", "pause", "cancel_order", "cancel_all", "heartbeat"}
    reads = {"preview_order", "events"}

    assert {name for name, spec in BUILT_IN.items() if not spec.repeats} == urgent | reads


def test_only_what_leaves_no_trace_is_not_journalled() -> None:
    """A heartbeat, a preview and a reading are not journalled; everything else is."""
    quiet = {"heartbeat", "preview_order", "events"}

    assert {name for name, spec in BUILT_IN.items() if not spec.journalled} == quiet


def test_only_an_order_needs_an_id() -> None:
    """`place_order` requires an id; no other command does."""
    assert {name for name, spec in BUILT_IN.items() if spec.needs_id} == {"place_order"}


def test_aliases_are_unambiguous() -> None:
    """No two commands share a method and path, and every name in braces is an argument."""
    aliases = [spec.alias for spec in BUILT_IN.values() if spec.alias]
    assert len({(alias.method, alias.path) for alias in aliases}) == len(aliases)
    for spec in BUILT_IN.values():
        path = spec.alias.path if spec.alias else ""
        for part in path.split("/"):
            if part.startswith("{"):
                assert part.strip("{}") in spec.args.model_fields


@pytest.mark.parametrize("name", TABLE)
def test_plain_word_never_does_more_than_it_can_say(name: str) -> None:
    """A command takes PRESS, ON or its own name only if it needs no argument; its word fills a real argument."""
    spec = BUILT_IN[name]
    needed = {field for field, info in spec.args.model_fields.items() if info.is_required()}

    assert spec.fixed_words == (frozenset(("PRESS", "ON", name)) if not needed else frozenset())
    if spec.word is not None:
        assert needed == {spec.word}


def test_every_error_code_has_its_status() -> None:
    """The codes and their HTTP status are those of the contract."""
    assert dict(HTTP_STATUS) == {
        "invalid": 422, "unknown_command": 404, "not_found": 404, "unauthorized": 401, "forbidden": 403,
        "killed": 409, "conflict": 409, "busy": 409, "not_running": 409, "retained": 409, "expired": 410,
        "risk_rejected": 422, "rate_limited": 429, "broker_unavailable": 503, "internal": 500,
    }  # fmt: skip


def test_rights_include_each_other() -> None:
    """read < trade < admin: a right covers itself and what is below it."""
    assert [[allows(have, need) for need in RIGHTS] for have in RIGHTS] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


# --- arguments ------------------------------------------------------------------------------------------------


def order(**changes: Any) -> OrderArgs:
    return OrderArgs.model_validate({"symbol": "AAPL", "side": "buy", "quantity": 1, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"order_type": "limit", "limit_price": 1.5},
        {"order_type": "limit_on_close", "limit_price": 1},
        {"order_type": "market_on_close"},
        {"order_type": "stop", "stop_price": "1.5"},
        {"order_type": "stop_limit", "stop_price": 1, "limit_price": 2},
        {"order_type": "trailing_stop", "trail_amount": 0.5},
        {"order_type": "trailing_stop", "trail_percent": 2},
        {"quantity": 0.001, "time_in_force": "ioc", "outside_rth": True, "reason": "x"},
        {"bracket": {"stop_price": 1, "take_profit": 2}},
    ],
)
def test_sound_orders_are_taken(changes: dict[str, Any]) -> None:
    """An order with the prices that its type needs, and no others, is valid."""
    assert order(**changes).symbol == "AAPL"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"order_type": "limit"}, "limit_price is required for a limit order"),
        ({"order_type": "limit_on_close"}, "limit_price is required"),
        ({"order_type": "stop"}, "stop_price is required"),
        ({"order_type": "stop_limit", "stop_price": 1}, "limit_price is required"),
        ({"limit_price": 1}, "limit_price does not go with a market order"),
        ({"order_type": "limit", "limit_price": 1, "stop_price": 1}, "stop_price does not go with a limit order"),
        ({"order_type": "trailing_stop"}, "trail_amount is required for a trailing_stop order, or trail_percent"),
        ({"order_type": "trailing_stop", "trail_amount": 1, "trail_percent": 1}, "trail_percent does not go with"),
        ({"trail_amount": 1}, "trail_amount does not go with a market order"),
        ({"quantity": 0}, "quantity"),
        ({"quantity": -1}, "quantity"),
        ({"quantity": float("nan")}, "quantity"),
        ({"quantity": float("inf")}, "quantity"),
        ({"quantity": "many"}, "quantity"),
        ({"order_type": "limit", "limit_price": 0}, "limit_price"),
        ({"order_type": "limit", "limit_price": float("inf")}, "limit_price"),
        ({"side": "hold"}, "side"),
        ({"symbol": "A/B"}, "symbol"),
        ({"symbol": "*"}, "symbol"),
        ({"limt_price": 1}, "limt_price"),
        ({"bracket": {}}, r"bracket\.stop_price"),
        ({"bracket": {"stop_price": 1, "target": 2}}, r"bracket\.target"),
        ({"bracket": {"stop_price": float("inf")}}, r"bracket\.stop_price"),
        ({"reason": "   "}, "reason"),
    ],
)
def test_unsound_orders_are_refused(changes: dict[str, Any], what: str) -> None:
    """An order that lacks a price, has one too many, or says something else than it means is refused by field."""
    with pytest.raises(ValidationError, match=what):
        order(**changes)


def test_amounts_of_a_command_are_decimal() -> None:
    """A JSON number becomes the decimal that a person reads in it."""
    found = order(quantity=json.loads("0.1"), order_type="limit", limit_price=json.loads("187.3"))

    assert (found.quantity, found.limit_price) == (Decimal("0.1"), Decimal("187.3"))


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_number_becomes_its_shortest_decimal(number: float) -> None:
    """A float becomes the decimal of its shortest text, which is the same float again."""
    assert float(decimal(number)) == number
    assert decimal(0.1) == Decimal("0.1")


@pytest.mark.parametrize("scope", [{}, {"strategy": "a", "symbol": "AAPL"}, {"account": "x"}])
def test_scope_names_exactly_one_thing(scope: dict[str, Any]) -> None:
    """A kill's scope is one strategy or one symbol: anything else is refused, never read as everything."""
    with pytest.raises(ValidationError):
        KillArgs.model_validate({"scope": scope})
    assert KillArgs.model_validate({"scope": {"symbol": "AAPL"}}).scope == Scope(symbol="AAPL")
    assert KillArgs.model_validate({"scope": None}).scope is None


def test_reset_wants_a_reason() -> None:
    """Nobody unlatches without saying why."""
    model = BUILT_IN["reset_kill_switch"].args
    for bad in ({}, {"reason": None}, {"reason": " "}):
        with pytest.raises(ValidationError, match="reason"):
            model.model_validate(bad)
    assert model.model_validate({"reason": " checked "}).model_dump()["reason"] == "checked"


def test_risk_settings_may_stand_beside_the_rule() -> None:
    """`risk_set` takes the settings flat, as REST sends them, or in an object."""
    flat = RiskSetArgs.model_validate({"rule": "max_open", "positions": 2, "reason": "calm down"})
    nested = RiskSetArgs.model_validate({"rule": "max_open", "settings": {"positions": 2}, "reason": "calm down"})

    assert flat == nested
    assert flat.settings == {"positions": 2}


@pytest.mark.parametrize("limit", [0, 1001, -1])
def test_page_of_events_is_bounded(limit: int) -> None:
    """`events` gives 1 to 1000 at once, 100 where nothing is said."""
    model = BUILT_IN["events"].args
    with pytest.raises(ValidationError, match="limit"):
        model.model_validate({"after": 0, "limit": limit})
    with pytest.raises(ValidationError, match="after"):
        model.model_validate({"after": -1})
    assert model.model_validate({"after": 0}).model_dump()["limit"] == 100


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"risk_set"}))
def test_unknown_argument_is_named(name: str) -> None:
    """A misspelt argument is an error with its name; only a risk rule's own settings are open to the rule."""
    with pytest.raises(ValidationError, match="mispelt"):
        BUILT_IN[name].args.model_validate({"mispelt": 1})


# --- the answer -----------------------------------------------------------------------------------------------


def test_answer_has_the_keys_of_the_contract() -> None:
    """An answer carries all its keys, in the order of the contract, with its time and duration."""
    response = Response("K1", "start", True, {"engine": "running"}, None, "mqtt", TS, 3.14159)

    assert json.dumps(response.body()) == (
        '{"id": "K1", "command": "start", "ok": true, "result": {"engine": "running"}, "error": null, '
        '"source": "mqtt", "ts": "2026-11-20T14:45:00.123456Z", "duration_ms": 3.1}'
    )


def test_refusal_has_code_message_and_details() -> None:
    """The answer to a refused command carries the error and no result."""
    command = Command("start", {}, "api", id="K2")
    error = CommandError("killed", "the kill switch is on: reset it first", {"phase": "done"})
    body = Response.failed(command, error, ts=TS, duration_ms=0.04).body()

    assert (body["id"], body["command"], body["ok"], body["result"], body["source"]) == (
        "K2",
        "start",
        False,
        None,
        "api",
    )
    assert body["error"] == {
        "code": "killed",
        "message": "the kill switch is on: reset it first",
        "details": {"phase": "done"},
    }
    assert body["duration_ms"] == 0.0


def test_error_without_details_has_an_empty_object() -> None:
    """Details are always an object."""
    assert CommandError("invalid", "x").details == {}

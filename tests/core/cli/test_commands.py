"""Commands that ask a running server: what they send, what they print, how they end."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sigma9_core.models import OrderView

ORDER = {
    "status": "accepted",
    "order_id": "o1",
    "symbol": "AAPL",
    "side": "buy",
    "quantity": 10,
    "order_type": "limit",
    "limit_price": 150.5,
    "filled_quantity": 0,
    "strategy": None,
    "foreign": False,
    "reason": "because",
    "verdicts": [
        {"rule": "max_order_value", "code": "R2", "outcome": "allow", "used": 1505, "limit": 5000, "reason": None},
        {
            "rule": "session",
            "code": "R13",
            "outcome": "refuse",
            "used": None,
            "limit": None,
            "reason": "market closed",
        },
    ],
}


# --- status ---------------------------------------------------------------------------------------------------


def test_status(cli: Any, web: Any) -> None:
    """The status is readable at a glance."""
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in cli("status").out.splitlines())
    assert lines == {
        "node": "main (sigma9 0.1.0, up 1 d 2 h)",
        "engine": "running",
        "kill switch": "OFF",
        "broker": "paper: connected (socket up, link up, data up)",
        "feed": "simulated: running, last data 2026-11-20 14:45:00 UTC, market time",
        "mqtt": "connected",
        "market": "open until 2026-11-20 21:00:00 UTC, market time; the clock is simulated",
        "positions": "2",
        "open orders": "1",
        "watchlist": "50",
        "day P&L": "-12.5",
    }


def test_status_says_why_the_broker_is_not_there(cli: Any, web: Any) -> None:
    """The reason stands beside the state, and so does that nothing is sent."""
    status = web.answers["/api/status"][1]
    broker = {"name": "ibkr", "state": "disconnected", "readonly": True, "error": "it can't be reached"}
    web.says("/api/status", {**status, "broker": broker})
    assert "ibkr: disconnected; read-only, nothing is sent; it can't be reached\n" in cli("status").out


def test_status_names_what_is_held(cli: Any, web: Any) -> None:
    """A symbol that takes no orders is named with the reason, and how a person ends it."""
    status = web.answers["/api/status"][1]
    web.says("/api/status", {**status, "held": [{"symbol": "AAPL", "reason": "100 here, 60 there"}]})
    assert re.search(
        r"^held +AAPL: 100 here, 60 there \(sigma9 settle AAPL --reason \.\.\.\)$", cli("status").out, re.MULTILINE
    )


def test_status_says_what_the_broker_says(cli: Any, web: Any) -> None:
    """What a person should know of a connection that is up stands below it."""
    status = web.answers["/api/status"][1]
    web.says("/api/status", {**status, "broker": {**status["broker"], "note": "client id 1 is in use elsewhere"}})
    assert re.search(r"^broker says +client id 1 is in use elsewhere$", cli("status").out, re.MULTILINE)


def test_status_of_a_kill(cli: Any, web: Any) -> None:
    """A kill is told with its phase, reason, source, time and scopes."""
    killed = {
        "state": "ON",
        "phase": "flattening",
        "detail": "waiting_for_market",
        "reason": "fire",
        "source": "cli",
        "at": "2026-11-20T14:45:00.000000Z",
        "scopes": [{"strategy": "a"}, {"symbol": "X", "strategy": None}],
        "error": "broker lost",
    }
    market = {"open": False, "next_open": "2026-11-23T14:30:00.000000Z"}
    web.says("/api/status", {"kill_switch": killed, "market": market, "uptime": 59})
    out = cli("status").out
    why = "because: fire (by cli, 2026-11-20 14:45:00 UTC, wall time)"
    what = "ON, also for strategy a, symbol X; flattening; waiting_for_market"
    assert f"{what}; {why}; error: broker lost" in out
    assert "closed until 2026-11-23 14:30:00 UTC, market time" in out
    assert "up 59 s" in out


def test_status_of_a_part_that_is_killed(cli: Any, web: Any) -> None:
    """Where only a part is killed, the status does not read as if nothing were."""
    kill = {"state": "OFF", "phase": "done", "reason": "fire", "source": "cli", "scopes": [{"symbol": "X"}]}
    web.says("/api/status", {"kill_switch": kill})
    assert "OFF, but ON for symbol X; done; because: fire (by cli, -)" in cli("status").out


def test_status_json(cli: Any, web: Any) -> None:
    """--format json is the body as the server gave it."""
    assert cli("status", "--format", "json").json["journal_id"] == "j1"


# --- the engine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["start", "stop", "pause", "resume"])
def test_engine(cli: Any, web: Any, name: str) -> None:
    """The four send the command of their name, with the reason."""
    web.does(name, {"engine": "x"})
    result = cli(name, "--reason", "lunch")
    assert result.code == 0
    assert web.asked[0].path == f"/api/commands/{name}"
    assert web.asked[0].body == {"reason": "lunch"}
    assert cli(name, "--format", "json").json["command"] == name


def test_refused(cli: Any, web: Any) -> None:
    """A refusal is exit code 1, with the server's sentence on stderr and nothing on stdout."""
    web.refuses("start", "killed", "the kill switch is on: reset it first")
    result = cli("start")
    assert (result.code, result.out, result.err) == (1, "", "sigma9: the kill switch is on: reset it first\n")
    result = cli("start", "--format", "json")
    assert result.code == 1
    assert result.json["error"]["code"] == "killed"


def test_wrong_token(cli: Any, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token is exit code 1, and one sentence that does not repeat it."""
    monkeypatch.setenv("SIGMA9_TOKEN", "wrong-token")
    result = cli("start")
    assert result.code == 1
    assert "wants a valid token" in result.err
    assert "wrong-token" not in result.err


def test_reset_kill(cli: Any, web: Any) -> None:
    """reset-kill wants a reason and tells what comes next."""
    web.does("reset_kill_switch", {"state": "OFF", "scopes": []})
    assert cli("reset-kill").code == 2
    assert cli("reset-kill", "--reason", "checked").out == (
        "the kill switch is off\n`sigma9 start` starts the engine again\n"
    )
    assert (
        cli("reset-kill", "--reason", "checked", "--scope", "symbol=AAPL").out
        == "the kill of symbol AAPL is reset\n"
    )
    assert web.asked[-1].body == {"reason": "checked", "scope": {"symbol": "AAPL"}}


def test_reset_kill_names_what_remains(cli: Any, web: Any) -> None:
    """What stays latched is named after a reset, with the command that resets it."""
    web.does("reset_kill_switch", {"state": "OFF", "scopes": [{"strategy": "a"}, {"symbol": "X"}]})
    lines = cli("reset-kill", "--reason", "checked").out.splitlines()
    assert lines[1:3] == [
        "still killed: strategy a; `sigma9 reset-kill --scope strategy=a --reason ...` resets it",
        "still killed: symbol X; `sigma9 reset-kill --scope symbol=X --reason ...` resets it",
    ]
    web.does("reset_kill_switch", {"state": "ON", "scopes": []})
    lines = cli("reset-kill", "--reason", "checked", "--scope", "symbol=AAPL").out.splitlines()
    assert lines[1] == "the global kill switch is still on: `sigma9 reset-kill --reason ...` resets it"
    assert not any("sigma9 start" in line for line in lines)
    web.refuses("reset_kill_switch", "conflict", "the kill switch is not on")
    web.says("/api/status", {"kill_switch": {"state": "OFF", "scopes": [{"symbol": "X"}]}})
    result = cli("reset-kill", "--reason", "checked")
    assert (result.code, result.out) == (1, "")
    assert "still killed: symbol X; `sigma9 reset-kill --scope symbol=X --reason ...` resets it" in result.err


def test_journal_acknowledge(cli: Any, web: Any) -> None:
    """A person says why the journal was put back, and hears what that was."""
    web.does("acknowledge_journal", {"acknowledged": ["the journal was put back"]})
    assert cli("journal", "acknowledge").code == 2
    result = cli("journal", "acknowledge", "--reason", "a copy")
    assert (result.code, result.out) == (0, "acknowledged: the journal was put back\n")
    assert web.asked[-1].body == {"reason": "a copy"}


# --- orders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ([], {"order_type": "market"}),
        (["--limit-price", "150.5"], {"order_type": "limit", "limit_price": 150.5}),
        (["--stop-price", "140"], {"order_type": "stop", "stop_price": 140}),
        (
            ["--stop-price", "140", "--limit-price", "139"],
            {"order_type": "stop_limit", "stop_price": 140, "limit_price": 139},
        ),
        (["--trail-percent", "1.5"], {"order_type": "trailing_stop", "trail_percent": 1.5}),
        (["--type", "market_on_close"], {"order_type": "market_on_close"}),
        (
            ["--stop-loss", "140", "--take-profit", "170"],
            {"order_type": "market", "bracket": {"stop_price": 140, "take_profit": 170}},
        ),
        (
            ["--time-in-force", "gtc", "--outside-rth", "--reason", "test"],
            {"order_type": "market", "time_in_force": "gtc", "outside_rth": True, "reason": "test"},
        ),
    ],
)
def test_place(cli: Any, web: Any, arguments: list[str], sent: dict[str, Any]) -> None:
    """An order is sent once with an id of its own; its type follows from the prices that are given."""
    web.does("place_order", ORDER)
    result = cli("order", "place", "AAPL", "buy", "10", *arguments)
    assert result.code == 0
    assert result.out == "o1: accepted buy 10 AAPL limit, limit price 150.5\n"
    body = dict(web.asked[0].body)
    assert re.fullmatch(r"[0-9a-f]{32}", body.pop("id"))
    assert body == {"symbol": "AAPL", "side": "buy", "quantity": 10, **sent}


@pytest.mark.parametrize("quantity", ["0", "-5", "x", "nan", "inf", "1e999"])
def test_wrong_numbers(cli: Any, web: Any, quantity: str) -> None:
    """A quantity that is no positive number is wrong usage; nothing is sent."""
    assert cli("order", "place", "AAPL", "buy", quantity).code == 2
    assert cli("order", "place", "AAPL", "buy", "1", "--take-profit", "5").code == 2
    assert web.asked == []


def test_no_answer_to_an_order(cli: Any, web: Any) -> None:
    """An order without an answer is not called refused: its outcome is unknown, and its id makes a repeat safe."""
    web.says("/api/commands/place_order", None)
    result = cli("order", "place", "AAPL", "buy", "1", "--id", "mine-1")
    assert result.code == 3
    assert "whether it was carried out is not known" in result.err
    assert "--id mine-1" in result.err
    assert len(web.asked) == 1


def test_rejected_by_risk(cli: Any, web: Any) -> None:
    """An order that the rules refuse tells which rule said what."""
    details = {"verdicts": ORDER["verdicts"]}
    web.refuses("place_order", "risk_rejected", "refused by session", 422, **details)
    result = cli("order", "place", "AAPL", "buy", "1")
    assert result.code == 1
    assert result.err == "sigma9: refused by session\n  refuse session R13: market closed\n"

    web.refuses("place_order", "risk_rejected", "refused by session", 422, **details, order_id="o1")
    lines = cli("order", "place", "AAPL", "buy", "1").err.splitlines()
    assert lines[1:] == ["  refuse session R13: market closed", "  every rule's word: sigma9 risk explain o1"]


def test_preview(cli: Any, web: Any) -> None:
    """A preview shows every verdict, whether the order would be sent, and the rest of the answer."""
    body = {"approved": False, "intent": "entry", "verdicts": ORDER["verdicts"], "margin": None}
    web.does("preview_order", body)
    result = cli("order", "preview", "AAPL", "buy", "10")
    assert result.out.splitlines() == [
        "allow  max_order_value R2 (1505 of 5000)",
        "refuse session R13: market closed",
        "it would be refused",
        "intent: entry",
    ]
    assert "id" not in web.asked[0].body


def test_modify_and_cancel(cli: Any, web: Any) -> None:
    """Changing and cancelling name the order and only what changes."""
    web.does("modify_order", ORDER)
    web.does("cancel_order", {"order": {**ORDER, "status": "cancelled"}})
    web.does("cancel_all", {"cancelled": ["o1", "o2"], "pending": ["o3"]})
    assert cli("order", "modify", "o1", "--limit-price", "151").out.startswith("o1: accepted")
    assert cli("order", "cancel", "o1").out.startswith("o1: cancelled buy 10 AAPL")
    assert cli("order", "cancel-all").out == "cancelled: o1, o2\nnot confirmed yet: o3; see `sigma9 order list`\n"
    web.does("cancel_all", {"cancelled": [], "pending": []})
    assert cli("order", "cancel-all", "--protective").out == "there was nothing of ours to cancel\n"
    assert [asked.body for asked in web.asked] == [
        {"order_id": "o1", "limit_price": 151},
        {"order_id": "o1"},
        {},
        {"protective": True},
    ]


def test_list_orders(cli: Any, web: Any) -> None:
    """Open orders are listed as a table, as JSON with everything, or as CSV."""
    web.says("/api/orders", {"count": 1, "orders": [ORDER]})
    lines = cli("order", "list").out.splitlines()
    assert lines[0].split()[:3] == ["order", "id", "status"]
    assert lines[1].split()[:6] == ["o1", "accepted", "AAPL", "buy", "10", "0"]
    assert cli("order", "list", "--format", "json").json == [ORDER]
    header, row = cli("order", "list", "--format", "csv").out.splitlines()
    assert row.startswith("accepted,o1,,AAPL,buy,10,limit,150.5,")
    web.says("/api/orders", {"count": 0, "orders": []})
    assert cli("order", "list").out == "no open orders\n"
    assert cli("order", "list", "--format", "csv").out.splitlines() == [header]
    assert header.split(",") == list(OrderView.model_fields)


def test_close(cli: Any, web: Any) -> None:
    """One symbol, or all of ours, but never none and never both."""
    web.does("close_position", {"orders": [], "refused": {}})
    assert cli("close", "AAPL").out == "there is no position of ours to close\n"
    assert cli("close", "--all").code == 0
    assert cli("close", "*").code == 0
    assert [asked.body["symbol"] for asked in web.asked] == ["AAPL", "*", "*"]
    assert cli("close").code == 2
    assert cli("close", "AAPL", "--all").code == 2


def test_settle(cli: Any, web: Any) -> None:
    """A person takes the broker's word for a position, and says why."""
    web.does("settle_position", {"position": {"symbol": "AAPL", "quantity": 60}, "before": 100})
    result = cli("settle", "AAPL", "--reason", "sold by phone")
    assert result.out == (
        "AAPL was 100 by the journal and is 60 now, as the broker has it; the symbol is free again\n"
    )
    assert web.asked[0].body == {"symbol": "AAPL", "reason": "sold by phone"}
    assert cli("settle", "AAPL").code == 2


def test_what_is_closed(cli: Any, web: Any) -> None:
    """Each closing order is one readable line; what could not be closed is told, and is exit code 1."""
    order = {**ORDER, "side": "sell", "order_type": "market", "limit_price": None}
    some = {**order, "symbol": "X", "order_id": "o2", "filled_quantity": 4, "average_price": 9.5}
    done = {**some, "status": "filled", "filled_quantity": 10}
    web.does("close_position", {"orders": [order, {**some, "status": "partially_filled"}, done], "refused": {}})
    result = cli("close", "--all")
    assert result.code == 0
    assert result.out.splitlines() == [
        "closing AAPL: sell 10, accepted (order o1)",
        "closing X: sell 10, partially_filled 4 at 9.5 (order o2)",
        "closing X: sell 10, filled at 9.5 (order o2)",
    ]
    assert cli("close", "--all", "--format", "json").json["result"]["orders"][0] == order
    web.does("close_position", {"orders": [], "refused": {"MSFT": "it is being closed already"}})
    result = cli("close", "--all")
    assert (result.code, result.out) == (1, "nothing is being closed\n")
    assert result.err == "sigma9: MSFT is not closed: it is being closed already\n"


# --- plugins, risk, schedule ----------------------------------------------------------------------------------


def test_plugins(cli: Any, web: Any) -> None:
    """Plugins are listed with their health, and switched."""
    row = {"name": "x", "kind": "risk", "version": "1", "enabled": True, "healthy": False, "error": "broke"}
    web.says("/api/plugins", {"plugins": [row]})
    assert cli("plugin", "list").out.splitlines()[1].split() == ["x", "risk", "1", "yes", "no", "broke"]
    web.does("plugin_disable", {})
    assert cli("plugin", "disable", "x").out == "x is disabled\n"
    assert web.asked[-1].body == {"name": "x"}


def test_watchlist(cli: Any, web: Any) -> None:
    """What is watched is listed, added to and taken from."""
    row = {"symbol": "AAPL", "score": None, "last": 190.5, "strategies": ["manual"], "reasons": ["added by hand"]}
    web.says("/api/watchlist", {"items": [row]})
    assert cli("watchlist", "list", "--format", "json").json == [row]
    assert cli("watchlist", "list").out.splitlines()[1].split()[:4] == ["AAPL", "-", "-", "190.5"]
    web.says("/api/watchlist", {"items": []})
    assert cli("watchlist", "list").out == "nothing is watched\n"
    web.does("watchlist_add", {"count": 1})
    assert cli("watchlist", "add", "AAPL", "--reason", "r").out == "AAPL is watched\n"
    assert web.asked[-1].body == {"symbol": "AAPL", "reason": "r"}
    web.does("watchlist_remove", {"count": 0})
    assert cli("watchlist", "remove", "AAPL").out == "AAPL is not watched any more\n"
    assert web.asked[-1].body == {"symbol": "AAPL"}


def test_risk(cli: Any, web: Any) -> None:
    """Rules are listed, set with typed values, and cleared."""
    row = {"rule": "max_open", "enabled": True, "used": 2, "limit": 3, "tripped": False, "until": None}
    web.says("/api/risk", {"rules": [row]})
    assert cli("risk", "list", "--format", "json").json == [row]
    web.does("risk_set", {})
    web.does("risk_clear", {})
    result = cli(
        "risk", "set", "max_open", "max_positions=5", "names=[a, b]", "note='5'", "off=null", "--reason", "r"
    )
    assert result.out == "max_open is set\n"
    assert web.asked[-1].body == {
        "rule": "max_open",
        "reason": "r",
        "settings": {"max_positions": 5, "names": ["a", "b"], "note": "5", "off": None},
    }
    assert cli("risk", "clear", "loss_limit").out == "loss_limit is cleared\n"
    for wrong in ("max_positions", "=5", "x=["):
        assert cli("risk", "set", "max_open", wrong).code == 2


def test_explain(cli: Any, web: Any) -> None:
    """An order's verdicts are shown, each rule with its number and limit."""
    web.says("/api/orders/o%2F1", ORDER)
    result = cli("risk", "explain", "o/1")
    assert "o1: accepted buy 10 AAPL limit" in result.out
    assert re.search(r"session +R13 +refuse +- +- +market closed", result.out)
    assert cli("risk", "explain", "o/1", "--format", "json").json == ORDER["verdicts"]
    result = cli("risk", "explain", "none")
    assert result.code == 1

    numbers = {"used": 5000.123456789, "limit": 5000}
    verdict = {"rule": "max_order_value", "code": "R2", "outcome": "refuse", **numbers, "reason": "too much"}
    refused = {"status": "risk_rejected", "rule": "max_order_value", "reason": "too much", "verdicts": [verdict]}
    web.says("/api/orders/o2", {**ORDER, "order_id": "o2", **refused})
    result = cli("risk", "explain", "o2")
    assert result.out.splitlines()[1] == "refused by max_order_value: too much"
    assert re.search(r"max_order_value +R2 +refuse +5000.1235 +5000 +too much", result.out)
    assert cli("risk", "explain", "o2", "--format", "json").json == [verdict]


def test_schedule(cli: Any, web: Any) -> None:
    """The jobs are listed."""
    job = {"id": "scan", "next_run": "2026-11-20T14:45:00.000000Z", "last_run": None, "last_result": None}
    web.says("/api/schedule", {"timezone": "America/New_York", "jobs": [job]})
    assert cli("schedule", "list", "--format", "json").json == [job]
    header, row = cli("schedule", "list").out.splitlines()
    assert "next run (market time, UTC)" in header
    assert row.split() == ["scan", "2026-11-20", "14:45:00", "-", "-"]


# --- adopt ----------------------------------------------------------------------------------------------------


def test_adopt(cli: Any, web: Any) -> None:
    """A foreign position is taken for a strategy, which has to be named."""
    position = {"symbol": "AAPL", "quantity": 10, "average_cost": 150.5, "strategy": "ignition"}
    web.does("adopt_position", {"position": position})
    result = cli("adopt", "AAPL", "--strategy", "ignition")
    assert (result.code, result.out) == (0, "10 AAPL at 150.5 are ours now, of ignition\n")
    assert web.asked[-1].body == {"symbol": "AAPL", "strategy": "ignition"}
    assert cli("adopt", "AAPL").code == 2

"""Health, readiness and the figures for Prometheus."""

from __future__ import annotations

import copy
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node

STATUS: dict[str, Any] = {
    "server": "running",
    "engine": "running",
    "broker": {"name": "paper", "state": "connected", "socket": "up", "link": "up", "data": "up"},
    "feed": {"name": "simulated", "state": "connected", "last_at": None},
    "mqtt": "connected",
    "kill_switch": {"state": "OFF", "latched": False},
    "uptime": 12.5,
    "active_positions": 2,
    "open_orders": 0,
    "watchlist_count": 7,
    "seq": 41,
    "version": "0.1.0",
    "market": {"open": True},
}
NARROW: dict[str, Any] = {"state": "OFF", "latched": True, "scopes": [{"symbol": "AAPL"}]}
"""A kill of one symbol."""


async def test_a_node_is_ready_when_every_part_is(node: Node) -> None:
    """Readiness is 200 with nothing missing, or 503 with the names of what is, and needs no token."""
    changes: tuple[tuple[dict[str, Any], list[str]], ...] = (
        ({}, []),
        ({"mqtt": "disabled"}, []),
        ({"engine": "paused"}, ["engine"]),
        ({"engine": "killed", "kill_switch": {"state": "ON", "latched": True}}, ["kill_switch", "engine"]),
        ({"engine": "killed", "kill_switch": {"state": "ON", "latched": False}}, ["kill_switch", "engine"]),
        ({"kill_switch": NARROW}, []),
        ({"broker": {**STATUS["broker"], "link": "down"}}, ["broker"]),
        ({"mqtt": "disconnected"}, ["mqtt"]),
        ({"feed": {"name": "x", "state": "disconnected"}}, ["feed"]),
        ({"feed": None, "broker": None, "kill_switch": None}, ["broker", "feed"]),
    )
    async with node.http(None) as client:
        unknown = await client.get("/readyz")
        assert unknown.status_code == 503
        assert unknown.json() == {"ready": False, "not_ready": ["engine", "broker", "mqtt", "feed"]}
        for change, missing in changes:
            node.server.board.set("status", {**STATUS, **change})
            answer = await client.get("/readyz")
            assert answer.status_code == (503 if missing else 200), change
            assert answer.json() == {"ready": not missing, "not_ready": missing}
        node.server.board.set("status", STATUS)
        node.server.broken.append("journal")
        assert (await client.get("/readyz")).json() == {"ready": False, "not_ready": ["journal"]}


async def test_a_held_symbol_is_a_warning_that_names_nothing(node: Node) -> None:
    """Who may not read the status learns that a person should look at it, and nothing of what is held."""
    async with node.http(None) as client:
        for count, words in ((1, "1 symbol takes no orders"), (2, "2 symbols take no orders")):
            held = [{"symbol": f"S{n}", "reason": "100 here, 60 there"} for n in range(count)]
            node.server.board.set("status", {**STATUS, "held": held})
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.json()["ready"]) == (200, True)
            (warning,) = answer.json()["warnings"]
            assert words in warning
            assert "S0" not in answer.text


async def test_figures_are_written_for_prometheus(node: Node) -> None:
    """Every line is valid in the text format, each family has help and type once, and values are the board's."""
    board = node.server.board
    board.set("status", copy.deepcopy(STATUS))
    board.set("account", {"account": 'D"U\\1\n', "currency": "USD", "equity": Decimal("1000.50"), "day_pnl": None})
    board.set("risk", {"rules": [
        {"rule": "max_open", "enabled": True, "used": 2, "limit": 3, "tripped": False},
        {"rule": "off", "enabled": False, "used": 2, "limit": 3, "tripped": False},
    ]})  # fmt: skip
    async with node.http("secret-read") as client, node.ws() as feed:
        await feed.recv()
        await client.get("/api/nothing")
        answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.text.splitlines()
    assert answer.text.endswith("\n")
    values: dict[str, str] = {}
    declared: list[str] = []
    for line in lines:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("gauge", "counter")
            declared.append(name)
        elif not line.startswith("# HELP "):
            found = re.fullmatch(
                r'([a-z_0-9]+)(\{[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? (-?[0-9.e+-]+)',
                line,
            )
            assert found, line
            assert found[1] == declared[-1]
            values[found[1] + (found[2] or "")] = found[3]
    assert len(declared) == len(set(declared))
    assert values["sigma9_uptime_seconds"] == "12.5"
    assert values['sigma9_engine_state{state="running"}'] == "1"
    assert values['sigma9_engine_state{state="killed"}'] == "0"
    assert values["sigma9_kill_switch_latched"] == "0"
    assert values['sigma9_broker_up{part="link"}'] == "1"
    assert values["sigma9_events_last_seq"] == "41"
    assert values["sigma9_watchlist_symbols"] == "7"
    assert values[r'sigma9_account_equity{account="D\"U\\1\n",currency="USD"}'] == "1000.5"
    assert "sigma9_account_day_pnl" not in answer.text
    assert values['sigma9_risk_used{rule="max_open"}'] == "2"
    assert 'rule="off"' not in answer.text
    assert values["sigma9_websocket_clients"] == "1"
    assert values['sigma9_http_requests_total{status="404"}'] == "1"


async def test_the_figure_of_the_kill_switch_is_that_of_the_whole_node(node: Node) -> None:
    """A kill of everything counts, also where its latch could not be written; one of a single symbol does not."""
    async with node.http() as client:
        for kill, figure in (({"state": "ON", "latched": False}, "1"), (NARROW, "0")):
            node.server.board.set("status", {**STATUS, "kill_switch": kill})
            text = (await client.get("/metrics")).text
            assert f"\nsigma9_kill_switch_latched {figure}\n" in text


async def test_figures_of_an_empty_board_are_few_and_valid(node: Node) -> None:
    """Before anything is known nothing is made up."""
    async with node.http() as client:
        text = (await client.get("/metrics")).text
    assert text.startswith("# HELP sigma9_info ")
    assert "sigma9_account" not in text
    assert "sigma9_engine_state" not in text

"""Events as lines."""

from __future__ import annotations

from typing import Any

import pytest

from sigma9_core.cli.eventline import HEADER, event_line

AT = "2026-11-20T14:45:00.123456Z"


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        (
            "trade_event",
            {
                "event": "filled",
                "side": "buy",
                "quantity": 10,
                "symbol": "AAPL",
                "last_price": 150.25,
                "last_quantity": 4,
                "stop_price": 140,
                "order_id": "o1",
                "strategy": "mine",
                "rule": "r",
                "reason": "late",
                "recovered": True,
            },
            "trade_event      filled buy 10 AAPL, 4 at 150.25, stop 140, order o1, mine, rule r, late, recovered",
        ),
        (
            "trade_event",
            {
                "event": "accepted",
                "side": "sell",
                "quantity": 1,
                "symbol": "X",
                "limit_price": 5,
                "order_id": "o2",
            },
            "trade_event      accepted sell 1 X, limit 5, order o2",
        ),
        (
            "watchlist_update",
            {"reason": "scan", "count": 2, "added": ["A", "B"], "removed": ["C"]},
            "watchlist_update scan: 2 symbols +A +B -C",
        ),
        (
            "status_update",
            {
                "changed": ["engine", "broker", "market", "plugins"],
                "reason": "started",
                "status": {"engine": "running", "broker": {"state": "connected"}, "market": {"open": True}},
            },
            "status_update    engine running, broker connected, market open, plugins changed (started)",
        ),
        (
            "status_update",
            {"changed": ["kill_switch"], "status": {"kill_switch": {"state": "OFF", "scopes": [{"symbol": "X"}]}}},
            "status_update    kill_switch OFF, but ON for symbol X",
        ),
        (
            "status_update",
            {
                "changed": ["engine", "plugins"],
                "reason": "snapshot",
                "status": {
                    "engine": "paused",
                    "server": "running",
                    "kill_switch": {"state": "OFF"},
                    "clock": "simulated",
                },
            },
            "status_update    engine paused, server running, kill_switch OFF, simulated clock (snapshot)",
        ),
        (
            "market_data",
            {"kind": "quote", "symbol": "A", "bid": 1, "ask": 1.5},
            "market_data      quote A 1 / 1.5",
        ),
        (
            "market_data",
            {"kind": "trade", "symbol": "A", "last": 1, "last_size": 5, "halted": True},
            "market_data      trade A 1 x 5, halted",
        ),
        (
            "market_data",
            {"kind": "bar", "symbol": "A", "open": 1, "high": 2, "low": 0.5, "close": 1, "volume": 9},
            "market_data      bar A 1 2 0.5 1 volume 9",
        ),
        ("something_new", {"a": 1}, 'something_new    {"a": 1}'),
        ("trade_event", None, "trade_event      -"),
    ],
)
def test_lines(kind: str, data: Any, line: str) -> None:
    """Each type has its line; a type that is not known yet, or no data, is shown as it is."""
    assert event_line({"type": kind, "seq": 7, "ts": AT, "data": data}) == f"2026-11-20 14:45:00  #7     {line}"


def test_a_log_line_has_the_other_clock() -> None:
    """A log line's time is the wall clock's and says so; the header says what the others are."""
    data = {"level": "warning", "logger": "sigma9.x", "message": "late\x1b[2J", "dropped": 3}
    line = event_line({"type": "log", "seq": None, "ts": AT, "data": data})
    message = "log              warning sigma9.x: late [2J (3 lines were lost before)"
    assert line == f"wall time  14:45:00         {message}"
    assert HEADER.startswith("market time, UTC     number event")


def test_late_and_without_number() -> None:
    """A late event says so; one without a number leaves its place empty."""
    event = {
        "type": "log",
        "seq": None,
        "ts": AT,
        "late": True,
        "data": {"level": "info", "logger": "x", "message": "m"},
    }
    assert event_line(event) == "wall time  14:45:00         log              info x: m (late)"


def test_nothing_at_all() -> None:
    """An envelope without anything does not end the watching."""
    assert "None" in event_line({})

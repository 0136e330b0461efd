"""Events as lines."""

from __future__ import annotations

from typing import Any

import pytest

from sigma9_core.cli.eventline import event_line

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
                "strategy": "seismograph",
                "rule": "r",
                "reason": "late",
                "recovered": True,
            },
            "trade      filled buy 10 AAPL, 4 at 150.25, stop 140, order o1, seismograph, rule r, late, recovered",
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
            "trade      accepted sell 1 X, limit 5, order o2",
        ),
        (
            "watchlist_update",
            {"reason": "scan", "count": 2, "added": ["A", "B"], "removed": ["C"]},
            "watchlist  scan: 2 symbols +A +B -C",
        ),
        (
            "status_update",
            {
                "changed": ["engine", "broker", "market", "plugins"],
                "reason": "started",
                "status": {"engine": "running", "broker": {"state": "connected"}, "market": {"open": True}},
            },
            "status     engine running, broker connected, market open, plugins changed (started)",
        ),
        (
            "status_update",
            {"changed": [], "reason": "snapshot", "status": {"engine": "paused", "server": "running"}},
            "status     engine paused, server running (snapshot)",
        ),
        (
            "log",
            {"level": "warning", "logger": "sigma9.x", "message": "late\x1b[2J", "dropped": 3},
            "warning    sigma9.x: late [2J (3 lines were lost before)",
        ),
        ("market_data", {"kind": "quote", "symbol": "A", "bid": 1, "ask": 1.5}, "quote      A 1 / 1.5"),
        (
            "market_data",
            {"kind": "trade", "symbol": "A", "last": 1, "last_size": 5, "halted": True},
            "trade      A 1 x 5, halted",
        ),
        (
            "market_data",
            {"kind": "bar", "symbol": "A", "open": 1, "high": 2, "low": 0.5, "close": 1, "volume": 9},
            "bar        A 1 2 0.5 1 volume 9",
        ),
        ("something_new", {"a": 1}, 'something_new {"a": 1}'),
        ("log", None, "log -"),
    ],
)
def test_lines(kind: str, data: Any, line: str) -> None:
    """Each type has its line; a type that is not known yet, or no data, is shown as it is."""
    assert event_line({"type": kind, "seq": 7, "ts": AT, "data": data}) == f"2026-11-20 14:45:00  #7     {line}"


def test_late_and_without_number() -> None:
    """A late event says so; one without a number leaves its place empty."""
    event = {
        "type": "log",
        "seq": None,
        "ts": AT,
        "late": True,
        "data": {"level": "info", "logger": "x", "message": "m"},
    }
    assert event_line(event) == "2026-11-20 14:45:00         info       x: m (late)"


def test_nothing_at_all() -> None:
    """An envelope without anything does not end the watching."""
    assert "None" in event_line({})

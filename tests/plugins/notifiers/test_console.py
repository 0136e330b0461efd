"""The console notifier: every step of an order, the watchlist and the kill switch are one readable line each."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from sigma9_core.calendar import Calendar
from sigma9_core.clock import LiveClock
from sigma9_core.config import PluginSettings, Settings
from sigma9_core.contracts import PluginContext
from sigma9_core.events import (
    Event,
    EventData,
    EventType,
    LogLine,
    StatusUpdate,
    TradeEvent,
    WatchlistUpdate,
    encode,
)
from sigma9_core.models import OrderStatus
from sigma9_core.plugins import GROUP, PluginHost
from sigma9_plugins.notifiers.console import ConsoleConfig, ConsoleNotifier

NOW = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)


def event(kind: EventType, data: EventData) -> Event:
    """Wrap data as the bus would."""
    return Event(kind, 1, NOW, data, encode(kind, data, seq=1, ts=NOW, node="main"))


def trade(status: OrderStatus, **more: Any) -> Event:
    """Make a trade event of a buy of 120 ABCD."""
    fields: dict[str, Any] = {
        "order_id": "7",
        "symbol": "ABCD",
        "side": "buy",
        "quantity": Decimal(120),
        "order_type": "market",
        "time_in_force": "day",
        "filled_quantity": Decimal(0),
        "strategy": "seismograph",
        "source": "strategy",
    }
    return event("trade_event", TradeEvent(event=status, **(fields | more)))


def lines(caplog: pytest.LogCaptureFixture, *events: Event, **config: bool) -> list[tuple[str, str]]:
    """Notify events and give level and text of each line."""
    caplog.set_level(logging.INFO, "sigma9.console")
    notifier = ConsoleNotifier(ConsoleConfig(**config))
    for one in events:
        notifier.notify(one)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


CASES = [
    (OrderStatus.SUBMITTED, {}, "INFO", "BUY 120 ABCD market submitted (seismograph, order 7)"),
    (
        OrderStatus.SUBMITTED,
        {"order_type": "stop_limit", "stop_price": Decimal("5.1"), "limit_price": Decimal("5.125")},
        "INFO",
        "BUY 120 ABCD stop limit (limit 5.125, stop 5.10) submitted (seismograph, order 7)",
    ),
    (
        OrderStatus.SUBMITTED,
        {"order_type": "trailing_stop", "trail_percent": Decimal("1.50"), "side": "sell", "source": "exit"},
        "INFO",
        "SELL 120 ABCD trailing stop (trail 1.5 %) submitted (seismograph, order 7)",
    ),
    (
        OrderStatus.FILLED,
        {"last_price": Decimal("5.12"), "average_price": Decimal("5.11"), "commission": Decimal(1)},
        "INFO",
        "BUY 120 ABCD filled at 5.12, 5.11 on average (commission 1.00, seismograph, order 7)",
    ),
    (
        OrderStatus.FILLED,
        {"last_price": Decimal(5), "average_price": Decimal(5), "recovered": True},
        "INFO",
        "BUY 120 ABCD filled at 5.00 (seismograph, order 7, learnt by reading back)",
    ),
    (
        OrderStatus.PARTIALLY_FILLED,
        {"last_price": Decimal("5.12"), "last_quantity": Decimal(40), "filled_quantity": Decimal(100)},
        "INFO",
        "BUY 100 of 120 ABCD filled, 40 now at 5.12 (seismograph, order 7)",
    ),
    (OrderStatus.ACCEPTED, {}, "INFO", "BUY 120 ABCD accepted (seismograph, order 7)"),
    (OrderStatus.CANCELLED, {"reason": "late"}, "INFO", "BUY 120 ABCD cancelled: late (seismograph, order 7)"),
    (
        OrderStatus.RISK_REJECTED,
        {"rule": "max_open", "reason": "3 positions are open"},
        "WARNING",
        "BUY 120 ABCD refused by max_open: 3 positions are open (seismograph, order 7)",
    ),
    (
        OrderStatus.REJECTED,
        {"reason": "no\nsuch\x1b[31m symbol", "strategy": None, "source": "mqtt"},
        "WARNING",
        "BUY 120 ABCD rejected: no such [31m symbol (mqtt, order 7)",
    ),
    (
        OrderStatus.UNKNOWN,
        {},
        "WARNING",
        "BUY 120 ABCD is unknown: it was sent, and is being read back (seismograph, order 7)",
    ),
]


@pytest.mark.parametrize(("status", "more", "level", "text"), CASES)
def test_a_step_of_an_order_is_one_readable_line(
    caplog: pytest.LogCaptureFixture, status: OrderStatus, more: dict[str, Any], level: str, text: str
) -> None:
    """The line says side, quantity, symbol, what happened, why, and whose order it is; what is bad warns."""
    assert lines(caplog, trade(status, **more)) == [(level, text)]


@pytest.mark.parametrize("status", list(OrderStatus))
def test_every_status_has_a_line(caplog: pytest.LogCaptureFixture, status: OrderStatus) -> None:
    """No status is left out, whatever of its fields are empty."""
    ((_, text),) = lines(caplog, trade(status))

    assert "ABCD" in text
    assert "None" not in text


def test_a_change_of_the_watchlist_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Added and removed symbols are named, the first ones only where there are many."""
    many = tuple(f"S{number}" for number in range(10))
    texts = lines(
        caplog,
        event("watchlist_update", WatchlistUpdate(reason="scan", strategy="seismograph", added=many, count=10)),
        event("watchlist_update", WatchlistUpdate(reason="manual", removed=("S1",), count=1)),
        event("watchlist_update", WatchlistUpdate(reason="restored", count=1)),
    )

    assert [text for _, text in texts] == [
        "watchlist (scan, seismograph): 10 symbols; added S0, S1, S2, S3, S4, S5, S6, S7 and 2 more",
        "watchlist (manual): 1 symbol; removed S1",
        "watchlist (restored): 1 symbol; nothing changed",
    ]


def test_changes_of_the_kill_switch_are_lines_and_other_changes_are_not(caplog: pytest.LogCaptureFixture) -> None:
    """State, progress, who and why stand in the line; a status that moved for another reason gives none."""
    on = {
        "state": "ON",
        "latched": False,
        "phase": "flattening",
        "detail": "waiting_for_market",
        "reason": "panic",
        "source": "mqtt",
        "cancelled": ["1", "2"],
        "pending": ["ABCD"],
    }
    off = {"state": "OFF", "latched": False, "phase": "off"}
    texts = lines(
        caplog,
        event("status_update", StatusUpdate(changed=("engine", "kill_switch"), status={"kill_switch": on})),
        event("status_update", StatusUpdate(changed=("engine",), status={"kill_switch": on})),
        event("status_update", StatusUpdate(changed=("kill_switch",), status={"kill_switch": off})),
    )

    assert texts == [
        (
            "WARNING",
            "kill switch ON; flattening, waiting_for_market; 2 cancelled; 1 pending; NOT LATCHED: panic (by mqtt)",
        ),
        ("INFO", "kill switch OFF"),
    ]


def test_a_kill_switch_that_is_off_at_the_start_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """What did not change is not told: not OFF at a start, not the same state twice; a latch from before is."""
    off = {"state": "OFF", "latched": False, "phase": "off", "scopes": [], "cancelled": []}
    part = {**off, "latched": True, "phase": "done", "scopes": [{"symbol": "ABCD"}]}

    def told(state: dict[str, Any]) -> Event:
        return event("status_update", StatusUpdate(changed=("kill_switch",), status={"kill_switch": state}))

    assert lines(caplog, told(off), told(off)) == []
    caplog.clear()
    assert [level for level, _ in lines(caplog, told(part), told(part), told(off), told(off))] == [
        "WARNING",
        "INFO",
    ]


def test_what_is_switched_off_is_neither_wanted_nor_shown(caplog: pytest.LogCaptureFixture) -> None:
    """The settings decide which types are asked for; log lines are never shown, which would never end."""
    log = event("log", LogLine(level="info", logger="x", message="y"))

    assert lines(caplog, trade(OrderStatus.FILLED), log, trades=False) == []
    assert ConsoleNotifier(ConsoleConfig(trades=False)).types == {"watchlist_update", "status_update"}


def test_it_comes_through_the_public_door() -> None:
    """The entry point's module registers the notifier, and the host builds it from settings."""
    host = PluginHost(PluginSettings(), [EntryPoint("console", "sigma9_plugins.notifiers.console", GROUP)])
    host.load()
    context = PluginContext("console", Settings(), LiveClock(), Calendar("XNYS"), None)

    assert host.build("notifier", "console", {"watchlist": False}, context).types == {
        "trade_event",
        "status_update",
    }
    assert host.built_in("notifier", "console")

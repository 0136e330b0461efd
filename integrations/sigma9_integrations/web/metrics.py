"""Figures for Prometheus, written from the board in its text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sigma9_core.contracts import Server
from sigma9_integrations.web.schemas import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ENGINE_STATES: Sequence[str] = Status.model_fields["engine"].annotation.__args__  # type: ignore[union-attr]

Sample = tuple[Mapping[str, str], object]


class Metrics:
    """Counts what the web service does, and writes it with the node's state."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.requests: Counter[int] = Counter()
        """HTTP answers by status."""
        self.clients = 0
        """WebSocket clients at present."""
        self.fell_behind = 0
        """WebSocket clients that were closed because they fell behind."""

    def text(self) -> str:
        """Write all figures; what is not known is left out."""
        lines: list[str] = []
        for name, kind, text, samples in self._families():
            shown = [
                f"{name}{_labels(labels)} {number}" for labels, value in samples if (number := _number(value))
            ]
            if shown:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *shown]
        return "\n".join(lines) + "\n"

    def _families(self) -> Iterable[tuple[str, str, str, list[Sample]]]:
        board = self._server.board
        status = board.get("status") or {}
        account = board.get("account") or {}
        rules: Iterable[Mapping[str, Any]] = (board.get("risk") or {}).get("rules", ())
        version = {"node": self._server.settings.node, "version": str(status.get("version", ""))}
        engine = status.get("engine")
        kill: Mapping[str, Any] = board.get("kill_switch") or status.get("kill_switch") or {}

        yield "sigma9_info", "gauge", "The node and its version.", [(version, 1)]
        yield "sigma9_uptime_seconds", "gauge", "Seconds since the start.", [({}, status.get("uptime"))]
        states: list[Sample] = [({"state": state}, int(state == engine)) for state in ENGINE_STATES]
        yield "sigma9_engine_state", "gauge", "1 for the state that the engine is in.", states if engine else []
        yield (
            "sigma9_kill_switch_latched",
            "gauge",
            "1 while the kill switch is on for everything.",
            [({}, int(kill["state"] == "ON"))] if "state" in kill else [],
        )
        broker: Mapping[str, Any] = status.get("broker") or {}
        healths: list[Sample] = [
            ({"part": part}, int(broker[part] == "up")) for part in ("socket", "link", "data") if part in broker
        ]
        yield "sigma9_broker_up", "gauge", "1 where this part of the broker's connection is up.", healths
        mqtt: list[Sample] = [({}, int(status["mqtt"] == "connected"))] if "mqtt" in status else []
        yield "sigma9_mqtt_connected", "gauge", "1 while the MQTT broker is connected.", mqtt
        market: Mapping[str, Any] = status.get("market") or {}
        yield "sigma9_market_open", "gauge", "1 while the exchange is open.", [({}, market.get("open"))]
        yield "sigma9_events_last_seq", "gauge", "The number of the last durable event.", [({}, status.get("seq"))]
        for name, text, value in (
            ("positions", "Positions that are open.", status.get("active_positions")),
            ("open_orders", "Orders that are open.", status.get("open_orders")),
            ("watchlist_symbols", "Symbols on the watchlist.", status.get("watchlist_count")),
        ):
            yield f"sigma9_{name}", "gauge", text, [({}, value)]
        money = {"account": str(account.get("account") or ""), "currency": str(account.get("currency", ""))}
        for name in ("equity", "cash", "buying_power", "day_pnl", "realized_pnl", "unrealized_pnl"):
            text = f"The account's {name.replace('_', ' ')}."
            yield f"sigma9_account_{name}", "gauge", text, [(money, account.get(name))]
        rows = [rule for rule in rules if rule.get("enabled")]
        for key, text in (("used", "The present use of a risk rule."), ("limit", "The limit of a risk rule.")):
            yield (
                f"sigma9_risk_{key}",
                "gauge",
                text,
                [({"rule": str(rule["rule"])}, rule.get(key)) for rule in rows],
            )
        tripped: list[Sample] = [({"rule": str(rule["rule"])}, rule.get("tripped")) for rule in rows]
        yield "sigma9_risk_tripped", "gauge", "1 while a risk rule is tripped.", tripped
        answers: list[Sample] = [({"status": str(code)}, count) for code, count in sorted(self.requests.items())]
        yield "sigma9_http_requests_total", "counter", "HTTP answers by status.", answers
        yield "sigma9_websocket_clients", "gauge", "WebSocket clients.", [({}, self.clients)]
        text = "WebSocket clients that were closed because they fell behind."
        yield "sigma9_websocket_fell_behind_total", "counter", text, [({}, self.fell_behind)]


def _labels(labels: Mapping[str, str]) -> str:
    shown = ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())
    return f"{{{shown}}}" if shown else ""


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: object) -> str | None:
    match value:
        case bool():
            return str(int(value))
        case int() | float():
            return repr(value).replace("inf", "Inf").replace("nan", "NaN")
        case Decimal():
            return repr(float(value))
    return None

"""The entities of a Sigma9 node, as a table (contract 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sigma9_core.entities import EntityPlatform, EntitySpec
from sigma9_core.models import OrderStatus

ENGINE_STATES: Final = ("stopped", "starting", "running", "paused", "stopping", "killed")
KILL: Final = '{"reason": "kill button in Home Assistant"}'
RESET: Final = '{"reason": "reset button in Home Assistant"}'


def _rows(key: str, fields: Sequence[str], most: int, *more: str) -> str:
    """Write a template that keeps some fields of the first rows of a list: a recorder refuses large attributes."""
    row = ", ".join(f"'{field}': row.{field}" for field in fields)
    rest = "".join(f", '{field}': value_json.{field}" for field in more)
    return (
        "{% set found = namespace(rows=[]) %}"
        f"{{% for row in value_json['{key}'][:{most}] %}}"
        f"{{% set found.rows = found.rows + [{{{row}}}] %}}{{% endfor %}}"
        f"{{{{ {{'{key}': found.rows, 'count': value_json.count{rest}}} | to_json }}}}"
    )


POSITIONS: Final = _rows(
    "positions",
    ("symbol", "quantity", "average_cost", "last", "unrealized_pnl", "strategy", "protected", "foreign"),
    60,
)
ORDERS: Final = _rows(
    "orders",
    (
        "order_id",
        "symbol",
        "side",
        "quantity",
        "order_type",
        "limit_price",
        "stop_price",
        "status",
        "filled_quantity",
    ),
    40,
)
WATCHLIST: Final = _rows("items", ("symbol", "score", "stage", "last", "no_trade"), 100, "updated_at")
QUANTITY: Final = "{{ value_json.quantity if value_json is defined else none }}"
"""A Home Assistant that is slow to let go of a position hears its topic become empty, and must not trip over that."""
POSITION: Final = "{{ value_json | to_json if value_json is defined else '{}' }}"
KILLED: Final = (
    "{{ dict(value_json, cancelled=value_json.cancelled | count, closed=value_json.closed | count, "
    "pending=value_json.pending | count) | to_json }}"
)


def _entity(platform: EntityPlatform, name: str, title: str, **more: Any) -> EntitySpec:
    return EntitySpec(platform=platform, object=name, name=title, **more)


def _money(name: str, title: str, **more: Any) -> EntitySpec:
    return _entity(
        "sensor", name, title, state="account", value=name, device_class="monetary", state_class="total",
        unit="{currency}", precision=2, **more,
    )  # fmt: skip


ENTITIES: Final[tuple[EntitySpec, ...]] = (
    _entity("switch", "engine", "Engine", state="status", command="control", payload_on="start", payload_off="stop",
            template="{{ 'ON' if value_json.engine in ('starting', 'running', 'paused') else 'OFF' }}",
            icon="mdi:engine"),
    _entity("button", "kill_switch", "Kill switch", command="kill_switch", payload=KILL, icon="mdi:octagon"),
    _entity("button", "scan", "Scan", command="scan", icon="mdi:radar"),
    _entity("button", "cancel_all", "Cancel all entries", command="cancel_all", icon="mdi:playlist-remove"),
    _entity("button", "reset_kill_switch", "Reset kill switch", command="reset_kill_switch",
            payload=RESET, category="config", enabled=False, icon="mdi:lock-open-variant"),
    _entity("binary_sensor", "killed", "Killed", state="kill_switch", template="{{ value_json.state }}",
            attributes="kill_switch", attributes_template=KILLED, device_class="safety"),
    _entity("binary_sensor", "broker", "Broker", state="status", device_class="connectivity",
            template="{{ 'ON' if value_json.broker.state == 'connected' else 'OFF' }}"),
    _entity("binary_sensor", "market_open", "Market open", state="status", value="market.open", icon="mdi:store-clock"),
    _entity("sensor", "engine_state", "Engine state", state="status", value="engine", device_class="enum",
            options=ENGINE_STATES, icon="mdi:state-machine"),
    _money("equity", "Equity"),
    _money("cash", "Cash"),
    _money("day_pnl", "Day profit"),
    _money("unrealized_pnl", "Open profit"),
    _entity("sensor", "positions", "Positions", state="positions", value="count", attributes="positions",
            attributes_template=POSITIONS, state_class="measurement", icon="mdi:briefcase"),
    _entity("sensor", "open_orders", "Open orders", state="orders", value="count", attributes="orders",
            attributes_template=ORDERS, state_class="measurement", icon="mdi:file-document-multiple"),
    _entity("sensor", "watchlist", "Watchlist", state="watchlist", value="count", attributes="watchlist",
            attributes_template=WATCHLIST, state_class="measurement", icon="mdi:binoculars"),
    _entity("sensor", "last_scan", "Last scan", state="schedule", device_class="timestamp",
            template="{{ (value_json.jobs | selectattr('id', 'eq', 'market_open_scan') "
                     "| map(attribute='last_run') | list + [none]) | first }}"),
    _entity("sensor", "next_scan", "Next scan", state="schedule", device_class="timestamp",
            template="{{ (value_json.jobs | selectattr('id', 'eq', 'market_open_scan') "
                     "| map(attribute='next_run') | list + [none]) | first }}"),
    _entity("sensor", "last_error", "Last error", state="status", category="diagnostic", icon="mdi:alert-circle",
            template="{{ value_json.last_error.message[:250] if value_json.last_error else 'none' }}"),
    _entity("event", "trade", "Trade", event="trade_event", event_types=tuple(map(str, OrderStatus)),
            icon="mdi:swap-horizontal"),
    _entity("event", "watchlist_update", "Watchlist update", event="watchlist_update",
            event_types=("scan", "manual", "restored"), icon="mdi:playlist-edit"),
)  # fmt: skip


def position(symbol: str) -> EntitySpec:
    """Give the entity of one held position; its state topic has the symbol in it."""
    return _entity(
        "sensor", f"position_{object_of(symbol)}", f"Position {symbol}", state="position", template=QUANTITY,
        attributes="position", attributes_template=POSITION, state_class="measurement", unit="shares", icon="mdi:chart-line",
    )  # fmt: skip


def object_of(symbol: str) -> str:
    """Write a symbol as part of an object id: `.` and `-` as `_`."""
    return symbol.replace(".", "_").replace("-", "_")

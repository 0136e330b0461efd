"""The shapes of bodies as models, and their JSON Schemas for OpenAPI, AsyncAPI and /api/commands.

The models describe what the core puts on the board (contract 1 and 3); nothing is validated with them here.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from sigma9_core.commands import CommandSource, CommandSpec, Right, RiskSetArgs
from sigma9_core.errors import ErrorCode
from sigma9_core.events import EventType, LogLine, MarketData, StatusUpdate, TradeEvent, WatchlistUpdate
from sigma9_core.models import Account, Frozen, Moment, OrderView, Position, RuleUsage, WatchlistItem


class Body(BaseModel):
    """Base of the described bodies: fields may be added to them, so further ones are allowed."""

    model_config = ConfigDict(extra="allow")


class KillSwitch(Body):
    """The kill switch."""

    state: Literal["ON", "OFF"]
    latched: bool
    phase: Literal["off", "gated", "cancelling", "flattening", "done", "failed"]
    detail: str | None
    scopes: list[Any]
    reason: str | None
    source: str | None
    at: Moment | None
    cancelled: Any
    closed: Any
    pending: Any
    error: str | None
    last_drill: Any


class BrokerState(Body):
    """The broker's connection: three healths, none guessed from another."""

    name: str
    state: str
    socket: Literal["up", "down"]
    link: Literal["up", "down"]
    data: Literal["up", "down"]


class FeedState(Body):
    """The market data feed."""

    name: str
    state: str
    last_at: Moment | None


class Market(Body):
    """The exchange's session."""

    open: bool | None
    next_open: Moment | None
    next_close: Moment | None


class LastError(Body):
    """The newest log line of level error or critical."""

    at: Moment
    level: Literal["error", "critical"]
    logger: str
    message: str


class Status(Body):
    """The state of the server and all its parts."""

    server: Literal["running", "stopping"]
    engine: Literal["stopped", "starting", "running", "paused", "stopping", "killed"]
    ibkr: Literal["connected", "disconnected", "disabled"]
    broker: BrokerState
    feed: FeedState
    mqtt: Literal["connected", "disconnected", "disabled"]
    kill_switch: KillSwitch
    uptime: float
    active_positions: int
    open_orders: int
    watchlist_count: int
    day_pnl: float | None
    seq: int
    journal_id: str
    node: str
    version: str
    contract: int
    started_at: Moment
    last_error: LastError | None
    clock: Literal["live", "simulated", "replay"]
    market: Market


class Positions(Body):
    """All net positions."""

    count: int
    positions: list[Position]


class Orders(Body):
    """All open orders."""

    count: int
    orders: list[OrderView]


class Watchlist(Body):
    """The watched symbols."""

    count: int
    updated_at: Moment | None
    items: list[WatchlistItem]


class Risk(Body):
    """The risk rules."""

    rules: list[RuleUsage]


class Plugin(Body):
    """One plugin."""

    name: str
    kind: str
    version: str | None
    enabled: bool
    healthy: bool
    error: str | None


class Plugins(Body):
    """All plugins."""

    plugins: list[Plugin]


class Job(Body):
    """One job of the scheduler."""

    id: str
    next_run: Moment | None
    last_run: Moment | None
    last_result: Any


class Schedule(Body):
    """The scheduler."""

    timezone: str
    jobs: list[Job]


class Fill(TradeEvent):
    """A fill: the trade_event's data with its number and time; the commission is this fill's own."""

    model_config = ConfigDict(extra="allow")

    seq: int
    ts: Moment


class Trades(Body):
    """A page of fills."""

    trades: list[Fill]
    cursor: str | None


class Envelope(Body):
    """The envelope of every event."""

    type: EventType
    v: Literal[1]
    seq: int | None
    ts: Moment
    node: str
    data: dict[str, Any]


class Events(Body):
    """A page of durable events."""

    events: list[Envelope]
    next: int | None
    journal_id: str


class CommandAlias(Body):
    """The REST path of a command."""

    method: Literal["POST", "PUT", "PATCH", "DELETE"]
    path: str


class CommandRow(Body):
    """One command."""

    name: str
    summary: str
    right: Right
    needs_id: bool
    alias: CommandAlias | None
    args: dict[str, Any]


class Commands(Body):
    """Every command, with the JSON Schema of its arguments."""

    commands: list[CommandRow]


class ErrorObject(Body):
    """Why something was refused."""

    code: ErrorCode
    message: str
    details: dict[str, Any]


class Error(Body):
    """The body of a refused request."""

    error: ErrorObject


class CommandAnswer(Body):
    """The response object of a command, the same on every surface."""

    id: str | None
    command: str
    ok: bool
    result: dict[str, Any] | None
    error: ErrorObject | None
    source: CommandSource
    ts: Moment
    duration_ms: float


class Subscribe(Frozen):
    """What a WebSocket client may send: it replaces the filter."""

    action: Literal["subscribe"]
    types: tuple[EventType, ...] | None = None
    symbols: tuple[str, ...] | None = None
    level: Literal["debug", "info", "warning", "error", "critical"] | None = None


BODIES: tuple[type[BaseModel], ...] = (
    Status, Account, Positions, Orders, OrderView, Watchlist, Risk, Plugins, Schedule,
    Trades, Events, Commands, Error, CommandAnswer,
)  # fmt: skip
EVENT_DATA: dict[EventType, type[BaseModel]] = {
    "market_data": MarketData,
    "trade_event": TradeEvent,
    "watchlist_update": WatchlistUpdate,
    "log": LogLine,
    "status_update": StatusUpdate,
}


_SO_FAR = "The commission of the whole order so far: it grows from fill to fill, so it must not be summed."
DESCRIPTIONS: Mapping[tuple[str, str], str] = {
    ("TradeEvent", "commission"): _SO_FAR,
    ("TradeEvent", "last_quantity"): "What this fill traded, where the event is a fill.",
    ("TradeEvent", "last_price"): "The price of this fill, where the event is a fill.",
    ("OrderView", "commission"): _SO_FAR,
    ("Fill", "commission"): "The commission of this fill alone: it may be summed.",
    ("Fill", "last_quantity"): "What this fill traded: it may be summed.",
    ("Fill", "last_price"): "The price of this fill.",
    ("Fill", "quantity"): "Of the whole order, not of this fill.",
    ("Fill", "filled_quantity"): "What the whole order had traded with this fill.",
    ("Fill", "average_price"): "The average price of what the whole order had traded with this fill.",
}
"""What the name of a field does not say, by model and field."""


_ID: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": 64,
    "description": "The same id again gets the first answer and does nothing.",
}
_EXPIRES: Final = {
    "type": "string",
    "format": "date-time",
    "description": "A later arrival is refused as `expired`.",
}
_REASON: Final = {"type": ["string", "null"], "maxLength": 500, "description": "Kept with the command's record."}


class WireSchema(GenerateJsonSchema):
    """JSON Schema as the wire has it: money is a number, a time is an RFC 3339 text."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """Describe an amount as a number."""
        found: JsonSchemaValue = {"type": "number"}
        for bound, word in (
            ("gt", "exclusiveMinimum"),
            ("ge", "minimum"),
            ("lt", "exclusiveMaximum"),
            ("le", "maximum"),
        ):
            if bound in schema:
                found[word] = float(schema[bound])  # type: ignore[literal-required]
        return found

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Say that what we send always carries all its keys."""
        return self.mode == "serialization" or super().field_is_required(field, total)

    def ser_schema(self, schema: Any) -> JsonSchemaValue | None:
        """Describe what a serializer makes of money and times."""
        returned = schema.get("return_schema", {}).get("type")
        if returned == "union":
            return {"type": "number"}
        if returned == "str":
            return {"type": "string", "format": "date-time"}
        return super().ser_schema(schema)


@lru_cache(maxsize=256)
def arguments_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Give the self-contained JSON Schema of a command's arguments."""
    return _tidy(model.model_json_schema(schema_generator=WireSchema, mode="validation"))


def command_body(spec: CommandSpec, *, in_path: Collection[str] = ()) -> dict[str, Any]:
    """Give the JSON Schema of a command's payload: arguments, but those that stand in the path, id, expires_at."""
    schema = copy.deepcopy(arguments_schema(spec.args))
    properties = {name: part for name, part in schema.get("properties", {}).items() if name not in in_path}
    required = [name for name in schema.get("required", ()) if name not in in_path]
    more: Any = schema.get("additionalProperties", True)
    if issubclass(spec.args, RiskSetArgs):  # the settings may stand beside the rule
        required.remove("settings")
        more = True
    properties.setdefault("reason", _REASON)
    content: dict[str, Any] = {
        "type": "object",
        "properties": {**properties, "id": _ID, "expires_at": _EXPIRES},
        "additionalProperties": more,
    }
    if required:
        content["required"] = required
    if "$defs" in schema:
        content["$defs"] = schema["$defs"]
    return content


def components(models: Iterable[type[BaseModel]], mode: JsonSchemaMode = "serialization") -> dict[str, Any]:
    """Give the schemas of models and of all they hold, as `#/components/schemas/{name}` refers to them."""
    wanted = [(model, mode) for model in models]
    _, found = models_json_schema(wanted, schema_generator=WireSchema, ref_template="#/components/schemas/{model}")
    schemas = {name: _tidy(schema, closed=mode == "validation") for name, schema in found["$defs"].items()}
    for (name, field), text in DESCRIPTIONS.items():
        if name in schemas:
            schemas[name]["properties"][field]["description"] = text
    return schemas


def _tidy(schema: dict[str, Any], *, closed: bool = True) -> dict[str, Any]:
    """Drop titles that only repeat names and, in what we send, the promise that no field will be added."""
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            found[key] = {name: _tidy(part, closed=closed) for name, part in value.items()}
        elif key in ("anyOf", "prefixItems"):
            found[key] = [_tidy(part, closed=closed) for part in value]
        elif isinstance(value, dict) and key in ("items", "additionalProperties"):
            found[key] = _tidy(value, closed=closed)
        elif key != "title" and not (key == "additionalProperties" and value is False and not closed):
            found[key] = value
    return found

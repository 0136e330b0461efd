"""The five event types, their data and the one envelope that carries them (contract 2)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field

from sigma9_core.clock import rfc3339
from sigma9_core.models import (
    Adjustment,
    Frozen,
    Moment,
    Money,
    OrderSource,
    OrderStatus,
    OrderType,
    OrderView,
    Side,
    TimeInForce,
    Verdict,
    WatchlistItem,
)

EventType = Literal["market_data", "trade_event", "watchlist_update", "log", "status_update"]
EVENT_TYPES: Final[tuple[EventType, ...]] = (
    "market_data",
    "trade_event",
    "watchlist_update",
    "log",
    "status_update",
)
DURABLE: Final[frozenset[EventType]] = frozenset(("trade_event", "watchlist_update", "status_update"))
"""Written to the journal before they are published, numbered without a gap."""
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("debug", "info", "warning", "error", "critical")


class MarketData(Frozen):
    """market_data.data: a quote, a trade or a bar; what does not apply is null."""

    symbol: str
    kind: Literal["quote", "trade", "bar"]
    ts: Moment
    halted: bool = False
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    last: float | None = None
    last_size: float | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    volume: float | None = None
    bar_seconds: int | None = None


class TradeEvent(Frozen):
    """trade_event.data: one step in an order's life."""

    event: OrderStatus
    order_id: str
    broker_order_id: str | None = None
    symbol: str
    side: Side
    quantity: Money
    order_type: OrderType
    limit_price: Money | None = None
    stop_price: Money | None = None
    trail_amount: Money | None = None
    trail_percent: Money | None = None
    time_in_force: TimeInForce
    outside_rth: bool = False
    filled_quantity: Money
    average_price: Money | None = None
    last_quantity: Money | None = None
    last_price: Money | None = None
    commission: Money | None = None
    strategy: str | None = None
    source: OrderSource
    parent_id: str | None = None
    oca_group: str | None = None
    reason: str | None = None
    rule: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    recovered: bool = False
    good_after: Moment | None = None
    """The broker holds the order until then."""
    adjustment: Adjustment | None = None
    """The trailing stop that the broker makes of this stop by itself."""
    trade_id: str | None = None
    """The execution's id, where this event is a fill."""
    corrects: tuple[str, ...] = ()
    """The fills that were told before, and in whose place this one comes: none of them is a trade any more."""

    @classmethod
    def of(cls, order: OrderView, *, trade_id: str | None = None, corrects: tuple[str, ...] = ()) -> TradeEvent:
        """Tell an order's present state as the event that brought it there."""
        fields = {name: getattr(order, name) for name in OrderView.model_fields}
        del fields["foreign"]
        return cls(event=fields.pop("status"), trade_id=trade_id, corrects=corrects, **fields)


class WatchlistUpdate(Frozen):
    """watchlist_update.data: what changed, and the whole list."""

    reason: Literal["scan", "manual", "restored", "snapshot"]
    strategy: str | None = None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    count: int
    items: tuple[WatchlistItem, ...] = ()


class LogLine(Frozen):
    """log.data: one readable line; no secret ever stands in it."""

    level: LogLevel
    logger: str
    message: str
    fields: dict[str, Any] = Field(default_factory=dict)
    dropped: int = 0
    """Lines that were lost before this one."""


StatusPart = Literal["engine", "broker", "kill_switch", "mqtt", "feed", "plugins", "market"]


class StatusUpdate(Frozen):
    """status_update.data: which parts changed, and the body of `GET /api/status`."""

    changed: tuple[StatusPart, ...]
    reason: str | None = None
    status: dict[str, Any]


EventData = MarketData | TradeEvent | WatchlistUpdate | LogLine | StatusUpdate


@dataclass(frozen=True, slots=True)
class Event:
    """One event with the bytes that go, unchanged, to MQTT, WebSocket and journal."""

    type: EventType
    seq: int | None
    ts: datetime
    data: EventData
    raw: str
    """The encoded envelope: one JSON object, no line break."""

    @property
    def symbol(self) -> str | None:
        """Name the symbol that the event is about, where there is one."""
        return getattr(self.data, "symbol", None)


def encode(
    kind: EventType, data: EventData, *, seq: int | None, ts: datetime, node: str, late: bool = False
) -> str:
    """Write the envelope of contract 2 as JSON; `late` marks a delivery after an outage."""
    head = f'{{"type":"{kind}","v":1,"seq":{"null" if seq is None else seq},"ts":"{rfc3339(ts)}","node":"{node}"'
    mark = ',"late":true' if late else ""
    return f'{head}{mark},"data":{data.model_dump_json()}}}'


def mark_late(raw: str) -> str:
    """Give an envelope the `late` mark of a delivery after an outage."""
    body: dict[str, Any] = json.loads(raw)
    data = body.pop("data")
    return json.dumps({**body, "late": True, "data": data}, separators=(",", ":"), ensure_ascii=False)

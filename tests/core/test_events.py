"""The five event types and their one envelope, as contract 2 has them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.events import (
    DURABLE,
    EVENT_TYPES,
    LOG_LEVELS,
    Event,
    EventData,
    EventType,
    LogLine,
    MarketData,
    StatusUpdate,
    TradeEvent,
    WatchlistUpdate,
    encode,
    mark_late,
)
from sigma9_core.models import OrderStatus, OrderView, Verdict, WatchlistItem

TS = datetime(2026, 11, 20, 14, 45, 0, 123456, tzinfo=UTC)
TRADE = TradeEvent(
    event=OrderStatus.PARTIALLY_FILLED,
    order_id="01J",
    symbol="BRK.B",
    side="sell",
    quantity=Decimal(100),
    order_type="stop_limit",
    limit_price=Decimal("187.250"),
    time_in_force="gtc",
    filled_quantity=Decimal("0.5"),
    source="kill_switch",
    verdicts=(Verdict(rule="max_open", code="R7", outcome="allow", used=Decimal(1), limit=Decimal(3)),),
    reason='a "quote",\na line break and ü',
)
SAMPLES: dict[EventType, EventData] = {
    "market_data": MarketData(symbol="AAPL", kind="quote", ts=TS, bid=1.5, ask=float("nan")),
    "trade_event": TRADE,
    "watchlist_update": WatchlistUpdate(
        reason="scan", count=1, added=("AAPL",), items=(WatchlistItem(symbol="AAPL", added_at=TS),)
    ),
    "log": LogLine(level="warning", logger="sigma9", message="x"),
    "status_update": StatusUpdate(changed=("engine",), status={"engine": "running"}),
}

KEYS = {
    "market_data": (
        "symbol kind ts halted bid ask bid_size ask_size last last_size open high low close volume bar_seconds"
    ),
    "trade_event": (
        "event order_id broker_order_id symbol side quantity order_type limit_price stop_price trail_amount "
        "trail_percent time_in_force outside_rth filled_quantity average_price last_quantity last_price "
        "commission strategy source parent_id oca_group reason rule verdicts recovered "
        "good_after adjustment trade_id corrects"
    ),
    "watchlist_update": "reason strategy added removed count items",
    "log": "level logger message fields dropped",
    "status_update": "changed reason status",
}
"""What stands in the data of each type; `trade_id` is there for the trades of contract 5."""


def encoded(kind: EventType, **more: Any) -> str:
    return encode(kind, SAMPLES[kind], seq=more.pop("seq", None), ts=TS, node="main", **more)


def test_types_are_those_of_the_contract() -> None:
    """There are five types, and three of them are durable."""
    assert EVENT_TYPES == ("market_data", "trade_event", "watchlist_update", "log", "status_update")
    assert {"trade_event", "watchlist_update", "status_update"} == DURABLE
    assert LOG_LEVELS == ("debug", "info", "warning", "error", "critical")


def test_envelope_is_that_of_the_contract() -> None:
    """The envelope has exactly its keys, in the order of the contract, on one line."""
    raw = encoded("trade_event", seq=1042)

    assert raw.startswith(
        '{"type":"trade_event","v":1,"seq":1042,"ts":"2026-11-20T14:45:00.123456Z","node":"main","data":{'
    )
    assert "\n" not in raw
    assert list(json.loads(raw)) == ["type", "v", "seq", "ts", "node", "data"]


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_data_always_carry_all_their_keys(kind: EventType) -> None:
    """Every key of the contract is there, in its order, null where it does not apply; and it is valid JSON."""
    body = json.loads(encoded(kind), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    assert list(body["data"]) == KEYS[kind].split()


def test_numbers_and_times_are_written_as_the_contract_says() -> None:
    """Money is a number, a time is RFC 3339 in UTC, what is no number is null, a status is its word."""
    data = json.loads(encoded("trade_event"))["data"]
    assert (data["quantity"], data["limit_price"], data["filled_quantity"], data["stop_price"]) == (
        100,
        187.25,
        0.5,
        None,
    )
    assert isinstance(data["quantity"], int)
    assert data["event"] == "partially_filled"
    assert data["verdicts"][0]["limit"] == 3
    assert data["reason"] == TRADE.reason
    assert json.loads(encoded("market_data"))["data"]["ask"] is None
    assert json.loads(encoded("market_data"))["data"]["ts"] == "2026-11-20T14:45:00.123456Z"
    assert json.loads(encoded("watchlist_update"))["data"]["items"][0]["added_at"] == "2026-11-20T14:45:00.123456Z"


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_late_delivery_is_marked(kind: EventType) -> None:
    """A late event carries `late: true` beside the data, which stay as they were, and is marked once."""
    late = encoded(kind, seq=7, late=True)
    marked = mark_late(encoded(kind, seq=7))

    assert json.loads(late)["late"] is True
    assert json.loads(marked) == json.loads(late) == {**json.loads(encoded(kind, seq=7)), "late": True}
    assert list(json.loads(marked)) == list(json.loads(late)) == ["type", "v", "seq", "ts", "node", "late", "data"]
    assert json.loads(mark_late(marked)) == json.loads(late)
    assert "late" not in json.loads(encoded(kind))


@given(
    text=st.text(),
    number=st.decimals(-(10**12), 10**12, places=4),
    seq=st.none() | st.integers(1, 2**62),
    moment=st.datetimes(datetime(1970, 1, 1), datetime(2999, 1, 1)),  # noqa: DTZ001 - the zone is added below
)
def test_any_event_survives_encoding(text: str, number: Decimal, seq: int | None, moment: datetime) -> None:
    """Whatever stands in it, the envelope is JSON that says the same, marked late or not."""
    ts = moment.replace(tzinfo=UTC)
    data = TRADE.model_copy(update={"reason": text, "quantity": number})
    raw = encode("trade_event", data, seq=seq, ts=ts, node="main")

    for body in (json.loads(raw, parse_float=Decimal), json.loads(mark_late(raw), parse_float=Decimal)):
        assert body["seq"] == seq
        assert datetime.fromisoformat(body["ts"]) == ts
        assert body["data"]["reason"] == text
        assert abs(body["data"]["quantity"] - number) <= Decimal("0.0001")
        assert TradeEvent.model_validate(body["data"]).order_id == data.order_id


@given(number=st.decimals(-(10**9), 10**9, places=6))
def test_money_of_fifteen_digits_comes_back_equal(number: Decimal) -> None:
    """A price or quantity of up to fifteen digits is the same decimal after the wire."""
    raw = encode("trade_event", TRADE.model_copy(update={"quantity": number}), seq=1, ts=TS, node="main")

    assert TradeEvent.model_validate_json(json.dumps(json.loads(raw)["data"])).quantity == number


def test_order_becomes_the_event_that_brought_it_there() -> None:
    """An order's fields are those of its event, `status` being the event's word and `foreign` left out."""
    order = OrderView(
        status=OrderStatus.FILLED,
        order_id="01J",
        symbol="AAPL",
        side="buy",
        quantity=Decimal(5),
        order_type="market",
        time_in_force="day",
        filled_quantity=Decimal(5),
        average_price=Decimal("1.5"),
        source="mqtt",
        recovered=True,
        foreign=True,
    )
    found = TradeEvent.of(order, trade_id="E1")

    assert found.event is OrderStatus.FILLED
    assert found.trade_id == "E1"
    shared = set(TradeEvent.model_fields) & set(OrderView.model_fields)
    assert {name: getattr(found, name) for name in shared} == {name: getattr(order, name) for name in shared}
    assert set(OrderView.model_fields) - shared == {"status", "foreign"}
    assert set(TradeEvent.model_fields) - shared == {"event", "trade_id", "corrects"}


@pytest.mark.parametrize(
    ("kind", "symbol"),
    [("market_data", "AAPL"), ("trade_event", "BRK.B"), ("watchlist_update", None), ("log", None)],
)
def test_event_names_its_symbol(kind: EventType, symbol: str | None) -> None:
    """An event tells the symbol that it is about, where there is one."""
    assert Event(kind, None, TS, SAMPLES[kind], encoded(kind)).symbol == symbol


@pytest.mark.parametrize(("kind", "data"), SAMPLES.items())
def test_data_are_frozen_and_refuse_unknown_keys(kind: EventType, data: EventData) -> None:
    """Once made, an event's data do not change, and a misspelt key is an error that names it."""
    with pytest.raises(ValidationError, match="frozen"):
        setattr(data, next(iter(type(data).model_fields)), None)
    with pytest.raises(ValidationError, match="mispelt"):
        type(data).model_validate({**data.model_dump(), "mispelt": 1})
    assert kind in EVENT_TYPES


def test_time_of_another_zone_is_written_in_utc() -> None:
    """An event of any zone has its time in UTC."""
    new_york = TS.astimezone(timezone(timedelta(hours=-5)))
    raw = encode("log", SAMPLES["log"], seq=None, ts=new_york, node="main")

    assert json.loads(raw)["ts"] == "2026-11-20T14:45:00.123456Z"

"""The handlers: every command of the table is carried out, and answers with its object."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sigma9_core import keeping
from sigma9_core.commands import BUILT_IN
from sigma9_core.errors import StateError
from sigma9_core.handlers import NOT_KEPT, Handlers
from sigma9_core.money.records import NoteRecord
from sigma9_core.testing.engine_room import EngineRoom


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[EngineRoom]:
    async with EngineRoom(tmp_path) as room:
        yield room


async def test_every_command_has_a_handler(room: EngineRoom) -> None:
    """The table names each built-in command but `control`, which stands for others."""
    assert set(Handlers(room.engine).table()) == set(BUILT_IN) - {"control"}


async def test_a_list_is_saved_before_it_is_answered(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart right after the answer has the list; where the disk does not take it, the answer says so."""

    def kept() -> list[str]:
        return [item["symbol"] for item in (room.engine.documents.get("watchlist") or {"items": ()})["items"]]

    monkeypatch.setattr(keeping, "SAVE_AGAIN", 0.02)
    await room.do("watchlist_add", symbol="AAPL")
    assert kept() == ["AAPL"]
    save, full = room.engine.documents.save, True

    async def sometimes(name: str, body: Any) -> None:
        if full:
            raise StateError("no space left")
        await save(name, body)

    monkeypatch.setattr(room.engine.documents, "save", sometimes)
    told = await room.do("watchlist_remove", symbol="AAPL")
    assert told == {"count": 0, "note": NOT_KEPT}
    full = False
    await room.until(lambda: kept() == [])


async def test_the_watchlist_by_hand(room: EngineRoom) -> None:
    """Adding and removing answer with the count; twice the same is fine, and what is not there is not_found."""
    assert await room.do("watchlist_add", symbol="AAPL") == {"count": 1}
    assert await room.do("watchlist_add", symbol="AAPL") == {"count": 1}
    assert await room.do("watchlist_remove", symbol="AAPL") == {"count": 0}
    assert await room.refused("watchlist_remove", symbol="AAPL") == "not_found"


async def test_orders_from_placing_to_cancelling(room: EngineRoom) -> None:
    """place, preview, modify, cancel, cancel_all and close work on the money lane and answer with orders."""
    order = await room.order(order_type="limit", limit_price=9)
    preview = await room.do("preview_order", symbol="AAPL", side="buy", quantity=1)
    assert (preview["approved"], preview["intent"]) == (True, "entry")
    changed = await room.do("modify_order", order_id=order["order_id"], limit_price=8)
    assert changed["order"]["limit_price"] == 8
    assert (await room.do("cancel_order", order_id=order["order_id"]))["order"]["status"] == "cancelled"
    other = await room.order("MSFT", order_type="limit", limit_price=9)
    assert await room.do("cancel_all") == {"cancelled": [other["order_id"]], "pending": []}
    assert await room.do("close_position", symbol="*") == {"orders": [], "refused": {}}
    assert await room.refused("close_position", symbol="AAPL") == "not_found"
    assert await room.refused("adopt_position", symbol="AAPL", strategy="test") == "not_found"


async def test_the_same_order_twice_is_sent_once(room: EngineRoom) -> None:
    """The same id gets the first answer; the broker sees one order; other arguments are a conflict."""
    args: dict[str, Any] = {"symbol": "AAPL", "side": "buy", "quantity": 5}
    first = await room.do("place_order", id="once", **args)
    again = await room.do("place_order", id="once", **args)
    assert again == first
    assert len(room.exchange.submitted) == 1
    assert await room.refused("place_order", id="once", **{**args, "quantity": 6}) == "conflict"
    assert await room.refused("place_order", **args) == "invalid"


async def test_the_broker_by_command(room: EngineRoom) -> None:
    """Disconnect and connect answer with the broker's state."""
    assert await room.do("broker_disconnect") == {"broker": "disconnected"}
    assert room.body("status")["broker"]["state"] == "disconnected"
    assert await room.do("broker_connect") == {"broker": "connected"}
    assert await room.do("broker_connect") == {"broker": "connected"}


async def test_a_broker_that_takes_its_time_is_connecting(
    room: EngineRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`broker_connect` answers after two seconds at most, and goes on trying."""
    monkeypatch.setattr("sigma9_core.engine.CONNECT_WAIT", 0.2)
    monkeypatch.setattr("sigma9_core.money.link.FIRST_WAIT", 0.05)
    await room.do("broker_disconnect")
    connect, away = room.exchange.connect, [True]

    async def refuse(listener: object) -> None:
        if away:
            raise ConnectionRefusedError
        await connect(listener)  # type: ignore[arg-type]

    room.exchange.connect = refuse  # type: ignore[method-assign]
    assert await room.do("broker_connect") == {"broker": "connecting"}
    away.clear()
    await room.until(lambda: room.engine.path.link.ready)


async def test_without_a_timeout_a_heartbeat_arms_nothing(room: EngineRoom) -> None:
    """The answer says so."""
    assert await room.do("heartbeat") == {"armed": False}


async def test_events_after_a_number(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages go on where the last one ended, at what was asked for or at what one answer holds.

    A number that is not kept, or ahead, is a conflict with the range.
    """
    for symbol in ("A", "B", "C"):
        await room.do("watchlist_add", symbol=symbol)
    await room.until(lambda: room.engine.journal.last_seq >= 3)
    page = await room.do("events", after=0, limit=2)
    assert [event["seq"] for event in page["events"]] == [1, 2]
    following = await room.do("events", after=page["next"], limit=1)
    assert [event["seq"] for event in following["events"]] == [3]

    journal = [json.loads(raw) for raw in (await room.engine.events(0, 3)).events]
    sizes = [len(raw) for raw in (await room.engine.events(0, 3)).events]
    for room_for, expected in ((sum(sizes[:2]), 2), (sum(sizes[:2]) - 1, 1), (1, 1)):
        monkeypatch.setattr("sigma9_core.handlers.EVENTS_SIZE", room_for)
        page = await room.do("events", after=0, limit=1000)
        assert page["events"] == journal[:expected]
        assert page["next"] == expected

    response = await room.send("events", after=10**6)
    assert response.error is not None
    assert response.error["code"] == "conflict"
    assert response.error["details"]["first"] == 1


async def test_rights_are_checked_before_anything_happens(room: EngineRoom) -> None:
    """A reader trades nothing, and a trader changes no limits."""
    for name, right, args in (
        ("stop", "read", {}),
        ("risk_set", "trade", {"rule": "max_order_quantity", "max_shares": 1}),
        ("reset_kill_switch", "trade", {"reason": "x"}),
        ("plugin_disable", "trade", {"name": "max_order_quantity"}),
    ):
        response = await room.send(name, right=right, **args)  # type: ignore[arg-type]
        assert response.error is not None
        assert response.error["code"] == "forbidden"

    assert room.engine.state == "running"


async def test_a_journal_that_was_put_back_is_acknowledged_by_an_admin(room: EngineRoom) -> None:
    """A person says why, once; where nothing was found there is nothing to say."""
    response = await room.send("acknowledge_journal", reason="a copy")
    assert response.error is not None
    assert response.error["code"] == "conflict"
    journal = room.engine.journal
    note = NoteRecord("journal", room.engine.clock.now(), {"state": "put_back", "from": 9, "to": 5, "what": "it"})
    await journal.commit([note])
    refused = await room.send("acknowledge_journal", right="trade", reason="a copy")
    assert refused.error is not None
    assert refused.error["code"] == "forbidden"

    done = await room.do("acknowledge_journal", reason="a copy")

    assert [
        sentence.startswith("the journal was put back from event 9 to 5") for sentence in done["acknowledged"]
    ] == [True]
    assert journal.doubts() == []
    (kept,) = journal.notes("journal", 1)
    assert (kept.body["state"], kept.body["reason"]) == ("acknowledged", "a copy")

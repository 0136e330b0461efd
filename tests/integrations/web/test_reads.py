"""What REST reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from sigma9_core.errors import CommandError, JournalError

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node


BOARD: dict[str, dict[str, Any]] = {
    "status": {"engine": "running", "uptime": 1.5},
    "watchlist": {"count": 1, "updated_at": None, "items": [{"symbol": "AAPL"}]},
    "positions": {"count": 0, "positions": []},
    "orders": {"count": 1, "orders": [{"order_id": "o-1", "status": "accepted"}]},
    "account": {"account": "DU1", "equity": 100000.25},
    "risk": {"rules": [{"rule": "max_open", "used": 1, "limit": 3}]},
    "plugins": {"plugins": [{"name": "paper", "kind": "broker"}]},
    "schedule": {"timezone": "UTC", "jobs": []},
}


async def test_a_read_gives_the_body_of_its_state_topic(node: Node) -> None:
    """Each path answers with what stands on the board, and with the newest of it."""
    async with node.http("secret-read") as client:
        for name, body in BOARD.items():
            node.server.board.set(name, {"old": True})
            node.server.board.set(name, body)
            answer = await client.get(f"/api/{name}")
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == body


async def test_what_is_not_known_yet_is_not_shown_as_empty(node: Node) -> None:
    """Before the broker was read there is no list of positions, and the answer says so."""
    async with node.http() as client:
        for path in ("/api/status", "/api/account", "/api/positions", "/api/orders"):
            answer = await client.get(path)
            assert answer.status_code == 503, path
            assert "not known yet" in answer.json()["error"]["message"]
        assert (await client.get("/api/watchlist")).json() == {"count": 0, "updated_at": None, "items": []}
        assert (await client.get("/api/risk")).json() == {"rules": []}
        assert (await client.get("/api/plugins")).json() == {"plugins": []}
        assert (await client.get("/api/schedule")).json() == {"timezone": "America/New_York", "jobs": []}


async def test_bodies_of_the_board_may_hold_money_and_times(node: Node) -> None:
    """Decimal becomes a number, a time RFC 3339, and a number that is not finite null."""
    moment = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)
    body = {
        "equity": Decimal("100.10"),
        "cash": Decimal(7),
        "at": moment,
        "bad": float("nan"),
        "worse": [float("inf")],
    }
    node.server.board.set("account", body)
    async with node.http() as client:
        answer = await client.get("/api/account")
    assert answer.json() == {
        "equity": 100.1,
        "cash": 7,
        "at": "2026-11-20T14:45:00.000000Z",
        "bad": None,
        "worse": [None],
    }


async def test_an_order_is_found_open_and_afterwards(node: Node) -> None:
    """Our order comes from the journal as its last event left it, a foreign one from the board; others are 404."""
    foreign = {"order_id": "f-1", "status": "accepted", "foreign": True}
    node.server.board.set("orders", {"count": 1, "orders": [foreign]})
    node.server.trade(order_id="o-0", event="submitted")
    node.server.trade(order_id="o-0", event="filled")
    async with node.http() as client:
        assert (await client.get("/api/orders/f-1")).json() == foreign
        ended = await client.get("/api/orders/o-0")
        assert ended.status_code == 200
        assert (ended.json()["status"], ended.json()["average_price"]) == ("filled", 12.34)
        for unknown in ("o-2", "o", "%22", "..%5c", "%00"):
            missing = await client.get(f"/api/orders/{unknown}")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


async def test_events_are_given_page_by_page_as_they_were_encoded(node: Node) -> None:
    """Pages follow each other by `next` without a gap, and hold the very bytes that every surface gets."""
    emitted = [node.server.trade(), node.server.status(), node.server.watchlist(), node.server.trade()]
    found: list[str] = []
    after: int | None = 0
    async with node.http() as client:
        while after is not None:
            answer = await client.get("/api/events", params={"after": after, "limit": 3})
            page = answer.json()
            assert page["journal_id"] == "fake"
            found += [json.dumps(event, separators=(",", ":")) for event in page["events"]]
            for event in emitted:
                if after < (event.seq or 0) <= after + 3:
                    assert event.raw in answer.text
            after = page["next"]
        assert [json.loads(raw)["seq"] for raw in found] == [1, 2, 3, 4]
        trades = (await client.get("/api/events", params={"after": 0, "type": "trade_event"})).json()
        assert [event["seq"] for event in trades["events"]] == [1, 4]
        both = (await client.get("/api/events?after=1&type=trade_event,status_update")).json()
        assert [event["seq"] for event in both["events"]] == [2, 4]
        assert (await client.get("/api/events?after=4")).json()["events"] == []
        for query, numbers, following in (
            ("before=4&limit=2", [2, 3], 2),
            ("before=2", [1], None),
            ("symbol=NOPE", [], None),
            ("order_id=o-1&after=1", [4], None),
            ("order_id=o-1&limit=1", [4], 4),
        ):
            page = (await client.get(f"/api/events?{query}")).json()
            assert ([event["seq"] for event in page["events"]], page["next"]) == (numbers, following), query
        for query in ("before=x", "before=2&after=1", "symbol=%20"):
            assert (await client.get(f"/api/events?{query}")).status_code == 422, query


async def test_events_outside_of_what_is_kept_are_a_conflict(node: Node) -> None:
    """Ahead of the head and older than the retention are 409 with the range; without `after` all is given."""
    for _ in range(9):
        node.server.status()
    node.server.first = 5
    async with node.http() as client:
        for after, status in ((3, 409), (4, 200), (9, 200), (10, 409)):
            answer = await client.get("/api/events", params={"after": after})
            assert answer.status_code == status, after
            if status == 409:
                error = answer.json()["error"]
                assert error["code"] == "conflict"
                assert error["details"] == {"first": 5, "last": 9, "journal_id": "fake"}
        everything = (await client.get("/api/events")).json()
    assert [event["seq"] for event in everything["events"]] == [5, 6, 7, 8, 9]


BAD = (
    ("events?after=-1", "after"),
    ("events?after=x", "after"),
    ("events?after=", "after"),
    ("events?after=1.5", "after"),
    ("events?after=%D9%A1", "after"),
    ("events?after=99999999999999999999999", "after"),
    ("events?limit=0", "limit"),
    ("events?limit=1001", "limit"),
    ("events?type=log", "type"),
    ("events?type=", "type"),
    ("trades?limit=x", "limit"),
    ("trades?symbol=A%20B", "symbol"),
    ("trades?symbol=AAPL%0A", "symbol"),
    ("trades?since=yesterday", "since"),
    ("trades?since=2026-11-20T14:45:00", "since"),
)


async def test_a_bad_parameter_is_named(node: Node) -> None:
    """A parameter that is not valid is answered 422 with its name."""
    async with node.http() as client:
        for query, field in BAD:
            answer = await client.get(f"/api/{query}")
            assert (query, answer.status_code) == (query, 422)
            assert answer.json()["error"]["details"] == {"field": field}


async def test_trades_are_read_with_their_filters(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbol, time, limit and cursor reach the journal; a plus sign in the time need not be encoded."""
    asked: list[dict[str, Any]] = []

    async def trades(**wanted: Any) -> dict[str, Any]:
        asked.append(wanted)
        if wanted["cursor"] == "bad":
            raise CommandError("invalid", "the cursor is not one of ours", {"field": "cursor"})
        return {"trades": [{"trade_id": "x-1", "quantity": Decimal("1.5")}], "cursor": "more"}

    monkeypatch.setattr(node.server, "trades", trades)
    async with node.http() as client:
        answer = await client.get("/api/trades?symbol=BRK.B&since=2026-11-20T09:45:00+00:00&limit=5&cursor=c")
        assert answer.json() == {"trades": [{"trade_id": "x-1", "quantity": 1.5}], "cursor": "more"}
        await client.get("/api/trades")
        refused = await client.get("/api/trades?cursor=bad")
    assert asked[0] == {
        "symbol": "BRK.B",
        "since": datetime(2026, 11, 20, 9, 45, tzinfo=UTC),
        "limit": 5,
        "cursor": "c",
    }
    assert asked[1] == {"symbol": None, "since": None, "limit": 100, "cursor": None}
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid")


async def test_a_fault_inside_is_answered_and_logged(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the journal can't be read the answer is 500 without the details, which are in the log."""

    async def trades(**wanted: Any) -> dict[str, Any]:
        raise JournalError("the disk at /somewhere is gone")

    monkeypatch.setattr(node.server, "trades", trades)
    async with node.http() as client:
        answer = await client.get("/api/trades")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "somewhere" not in answer.text
    assert "somewhere" in caplog.text

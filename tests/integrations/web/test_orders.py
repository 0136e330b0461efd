"""Orders over REST, from the socket to the exchange: a real engine behind a real web service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from sigma9_core.contracts import ReportKind
from sigma9_core.models import Fill
from sigma9_core.testing.engine_room import EngineRoom
from sigma9_integrations.web.service import WebService

BUY = {"symbol": "AAPL", "side": "buy", "quantity": 10}


class Desk:
    """A client with the admin's token, and the room behind the service that it talks to."""

    def __init__(self, room: EngineRoom, client: httpx.AsyncClient) -> None:
        self.room = room
        self._client = client
        self._orders = 0

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """Make a request; give status and body."""
        answer = await self._client.request(method, path, json=body or {}, headers=headers)
        found: dict[str, Any] = answer.json()
        return answer.status_code, found

    async def do(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send a command that must be carried out; give its result."""
        status, answer = await self.ask(method, path, body)
        assert (status, answer["ok"], answer["error"]) == (200, True, None), answer
        result: dict[str, Any] = answer["result"]
        return result

    async def order(self, **changes: Any) -> tuple[int, str]:
        """Place an order; give the HTTP status, and the order's status or the code of the refusal."""
        self._orders += 1
        body = {**BUY, **changes}
        key = {"Idempotency-Key": f"order-{self._orders}"}
        status, answer = await self.ask("POST", "/api/orders", body, **key)
        assert (answer["id"], answer["command"], answer["source"]) == (
            f"order-{self._orders}",
            "place_order",
            "api",
        )
        if answer["ok"]:
            assert answer["error"] is None
            return status, str(answer["result"]["order"]["status"])
        assert answer["result"] is None
        assert answer["error"]["message"]
        return status, str(answer["error"]["code"])

    async def preview(self, **changes: Any) -> bool:
        """Ask whether an order would pass."""
        return bool((await self.do("POST", "/api/orders/preview", {**BUY, **changes}))["approved"])


@pytest.fixture(name="desk")
async def _desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with EngineRoom(tmp_path) as room:
        service = WebService()
        await service.start(room.engine)
        assert service.address is not None
        token = room.data.file("admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with httpx.AsyncClient(base_url=service.address.url, headers=headers, trust_env=False) as client:
                yield Desk(room, client)
        finally:
            await service.stop()


async def hold(desk: Desk, quantity: int = 10) -> str:
    """Buy, and fill it; give the order's id."""
    order = await desk.room.order(quantity=quantity)
    await desk.room.fill(order["order_id"])
    return str(order["order_id"])


async def test_an_order_without_a_broker_is_503(desk: Desk) -> None:
    """While the broker is disconnected orders are `broker_unavailable` and nothing is sent; afterwards they go."""
    assert await desk.do("POST", "/api/broker/disconnect") == {"broker": "disconnected"}
    for changes in ({}, {"side": "sell"}, {"order_type": "limit", "limit_price": 9}):
        assert await desk.order(**changes) == (503, "broker_unavailable")
    assert desk.room.exchange.submitted == []
    assert await desk.do("POST", "/api/broker/connect") == {"broker": "connected"}
    assert await desk.order() == (200, "accepted")
    assert len(desk.room.exchange.submitted) == 1


async def test_entries_of_an_engine_that_does_not_run_are_409(desk: Desk) -> None:
    """Paused or stopped, an entry is `not_running` and what reduces a position passes; a preview says the same."""
    await hold(desk)
    for path in ("/api/engine/pause", "/api/engine/stop"):
        await desk.do("POST", path)
        sent = len(desk.room.exchange.submitted)
        assert await desk.order() == (409, "not_running")
        assert await desk.order(symbol="MSFT", side="sell") == (409, "not_running")
        assert len(desk.room.exchange.submitted) == sent
        assert not await desk.preview()
        assert await desk.order(side="sell", quantity=1) == (200, "accepted")
    await desk.do("POST", "/api/engine/start")
    assert await desk.order() == (200, "accepted")


async def test_entries_while_killed_are_409(desk: Desk) -> None:
    """While the kill switch is on an entry is `killed`, as a start is; after the reset it is `not_running`."""
    await desk.do("POST", "/api/kill-switch", {"reason": "test", "flatten": False})
    assert await desk.order() == (409, "killed")
    assert not await desk.preview()
    for path in ("/api/engine/start", "/api/engine/resume"):
        status, answer = await desk.ask("POST", path)
        assert (status, answer["error"]["code"]) == (409, "killed")
    assert desk.room.exchange.submitted == []
    assert (await desk.ask("DELETE", "/api/kill-switch"))[0] == 422  # a reason is required
    await desk.do("DELETE", "/api/kill-switch", {"reason": "over"})
    assert await desk.order() == (409, "not_running")


async def test_a_narrow_kill_blocks_its_symbol_alone(desk: Desk) -> None:
    """With the scope of a symbol its entries are `killed` and others pass, until that scope is reset."""
    scope = {"symbol": "AAPL"}
    await desk.do("POST", "/api/kill-switch", {"scope": scope})
    assert await desk.order() == (409, "killed")
    assert await desk.order(symbol="MSFT") == (200, "accepted")
    status, answer = await desk.ask("DELETE", "/api/kill-switch", {"reason": "over"})
    assert (status, answer["error"]["code"]) == (409, "conflict")  # the global one is not on
    await desk.do("DELETE", "/api/kill-switch", {"reason": "over", "scope": scope})
    assert await desk.order() == (200, "accepted")


async def test_a_limit_is_a_risk_rejection(desk: Desk) -> None:
    """What a rule refuses is 422 `risk_rejected`, with the rule and its number."""
    await desk.do("PATCH", "/api/risk/max_order_quantity", {"max_shares": 5})
    status, answer = await desk.ask("POST", "/api/orders", {**BUY, "id": "one"})
    assert (status, answer["error"]["code"]) == (422, "risk_rejected")
    details = answer["error"]["details"]
    assert details["rule"] == "max_order_quantity"
    assert [(each["used"], each["limit"]) for each in details["verdicts"] if each["outcome"] == "refuse"] == [
        (10, 5)
    ]


async def test_trades_of_a_partly_filled_order_add_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three fills of an order are three trades: quantities and commissions sum up to the order's."""
    exchange = desk.room.exchange
    tell = exchange.report

    def charged(kind: ReportKind, order_id: str, *, fill: Fill | None = None, reason: str | None = None) -> None:
        tell(kind, order_id, fill=fill and replace(fill, commission=fill.quantity / 20), reason=reason)

    monkeypatch.setattr(exchange, "report", charged)
    order = await desk.room.order(quantity=100)
    for quantity, price in ((30, "10"), (50, "10.10"), (20, "10.20")):
        await desk.room.fill(order["order_id"], price, quantity)
    whole = (await desk.ask("GET", f"/api/orders/{order['order_id']}"))[1]
    trades = (await desk.ask("GET", "/api/trades"))[1]["trades"]
    own = [(trade["last_quantity"], trade["last_price"], trade["commission"]) for trade in trades]
    assert own == [(20, 10.2, 1.0), (50, 10.1, 2.5), (30, 10, 1.5)]
    assert (whole["filled_quantity"], whole["commission"]) == (100, 5)
    events = (await desk.ask("GET", "/api/events?type=trade_event"))[1]["events"]
    so_far = [event["data"]["commission"] for event in events if event["data"]["trade_id"]]
    assert so_far == [1.5, 4, 5]  # a trade_event tells the order's sum


async def test_a_commission_that_was_told_late_is_in_order_and_trade(desk: Desk) -> None:
    """An order that has ended is shown with what it has cost by now, and so is its trade."""
    order_id = (await desk.room.order(quantity=100))["order_id"]
    await desk.room.fill(order_id, "10", 100)
    fill = replace(desk.room.exchange.fills[-1], commission=Decimal("1.5"))

    async def tell() -> None:
        desk.room.exchange.report("commission", order_id, fill=fill)

    await desk.room.engine.money.call(tell())
    await desk.room.settled()
    whole = (await desk.ask("GET", f"/api/orders/{order_id}"))[1]
    (trade,) = (await desk.ask("GET", "/api/trades"))[1]["trades"]

    assert (whole["commission"], trade["commission"]) == (1.5, 1.5)

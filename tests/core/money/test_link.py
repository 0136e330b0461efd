"""Tests of `sigma9_core.money.link`: connected means connected and reconciled, whatever drops meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.contracts import BrokerHealth
from sigma9_core.money import link as link_module
from sigma9_core.testing.money_room import MoneyRoom

UP = BrokerHealth("up", "up", "up")


@pytest.fixture(name="room")
async def _room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MoneyRoom]:
    monkeypatch.setattr(link_module, "FIRST_WAIT", 0.01)
    async with MoneyRoom(tmp_path) as room:
        yield room


async def test_a_drop_during_the_reconciliation_starts_another_attempt(room: MoneyRoom) -> None:
    """A connection that goes down while it is being reconciled is not ready; it is tried again until it stands."""
    link, read, reads = room.path.link, room.exchange.positions, 0

    async def dropping() -> Any:
        nonlocal reads
        reads += 1
        if reads == 1:
            link.on_health(BrokerHealth())
        return await read()

    room.exchange.positions = dropping  # type: ignore[method-assign]
    link.on_health(UP)
    link.on_health(BrokerHealth())
    await room.until(lambda: link.ready)

    assert link.state == "connected"
    assert reads > 1


async def test_an_attempt_that_hangs_is_given_up(room: MoneyRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect that never returns ends after its time, says so, and is followed by the next."""
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT", 0.05)
    link, connect, tries = room.path.link, room.exchange.connect, 0

    async def hanging(listener: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await asyncio.Event().wait()
        await connect(listener)

    room.exchange.connect = hanging  # type: ignore[method-assign]
    link.on_health(BrokerHealth())
    await room.until(lambda: link.error is not None)
    assert "did not answer" in str(link.error)
    await room.until(lambda: link.ready)


async def test_a_brokers_own_link_that_comes_back_is_reconciled(room: MoneyRoom) -> None:
    """When the link behind the socket was away, what was missed meanwhile is read back."""
    order = await room.buy()
    link, listener = room.path.link, room.exchange.listener
    link.on_health(BrokerHealth("up", "down", "up"))
    room.exchange.listener = None
    room.exchange.fill(order.order_id, order.request.quantity / 10)
    room.exchange.listener = listener
    assert room.path.portfolio.quantity("AAPL") == 0
    link.on_health(UP)

    await room.until(lambda: room.path.portfolio.quantity("AAPL") == 100)

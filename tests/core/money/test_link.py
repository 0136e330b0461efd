"""Tests of `sigma9_core.money.link`: connected means connected and reconciled, whatever drops meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.contracts import BrokerHealth
from sigma9_core.errors import BrokerError, CommandError
from sigma9_core.models import OrderStatus
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


async def test_a_broker_that_can_t_be_connected_is_tried_again(
    room: MoneyRoom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure is said with its reason, the wait doubles up to the longest, and success forgets the error."""
    caplog.set_level("INFO")
    monkeypatch.setattr(link_module, "LONGEST_WAIT", 0.04)
    link, connect, tries = room.path.link, room.exchange.connect, 0

    seen: list[tuple[str, bool, str | None]] = []

    async def refusing(listener: Any) -> None:
        nonlocal tries
        tries += 1
        seen.append((link.state, link.ready, link.error))
        if tries < 5:
            raise ConnectionRefusedError("nobody there")
        await connect(listener)

    room.exchange.connect = refusing  # type: ignore[method-assign]
    link.on_health(BrokerHealth())
    await room.until(lambda: link.ready)

    assert (link.error, tries) == (None, 5)
    assert seen[1:] == [("disconnected", False, "ConnectionRefusedError: nobody there")] * 4
    assert caplog.messages[-1] == "the broker paper is connected, and what it knows is read back"
    waits = [
        record.args[2] for record in caplog.records if isinstance(record.args, tuple) and len(record.args) == 3
    ]
    assert waits == [0.01, 0.02, 0.04, 0.04]


async def test_a_reconciliation_that_fails_is_a_connection_that_failed(room: MoneyRoom) -> None:
    """Connected means reconciled: where reading back fails it is not ready, says why, and tries again."""
    link, read, fails = room.path.link, room.exchange.executions, True

    async def failing(since: Any) -> Any:
        if fails:
            raise TimeoutError("no executions")
        return await read(since)

    room.exchange.executions = failing  # type: ignore[method-assign]
    link.on_health(BrokerHealth())
    await room.until(lambda: link.error == "TimeoutError: no executions")
    assert not link.ready
    fails = False
    await room.until(lambda: link.ready)


async def test_who_disconnects_stays_disconnected(room: MoneyRoom) -> None:
    """After `disconnect` nothing connects by itself; orders stay at the broker, and a connect finds them."""
    order = await room.buy(order_type="limit", limit_price=Decimal(5))
    link = room.path.link
    await link.disconnect()
    await asyncio.sleep(0.05)
    assert (link.state, link.ready, link.health) == ("disconnected", False, BrokerHealth())
    with pytest.raises(CommandError) as caught:
        _ = link.broker
    assert caught.value.code == "broker_unavailable"

    link.connect()
    link.connect()
    await link.wait_ready()
    assert (order.working, link.state) == (True, "connected")


async def test_who_disconnects_ends_the_attempts(room: MoneyRoom) -> None:
    """`disconnect` ends an attempt that is under way or waiting."""
    link, tries = room.path.link, 0

    async def refusing(_listener: Any) -> None:
        nonlocal tries
        tries += 1
        raise ConnectionRefusedError

    room.exchange.connect = refusing  # type: ignore[assignment,method-assign]
    link.on_health(BrokerHealth())
    await room.until(lambda: tries > 1)
    await link.disconnect()
    made = tries
    await asyncio.sleep(0.05)

    assert tries == made


async def hang() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise OSError("already closed")


@pytest.mark.parametrize("broken", [hang, fail])
async def test_a_broker_that_does_not_disconnect_is_left_behind(
    room: MoneyRoom, broken: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However a broker ends, the link is down afterwards, says so, and can be connected again."""
    monkeypatch.setattr(link_module, "DISCONNECT_TIMEOUT", 0.05)
    link = room.path.link
    room.exchange.disconnect = broken  # type: ignore[method-assign]
    before = len(room.changes)
    await link.disconnect()

    assert (link.state, link.health) == ("disconnected", BrokerHealth())
    assert "did not disconnect in order" in caplog.text
    assert len(room.changes) > before
    link.connect()
    await link.wait_ready()


async def test_every_change_of_health_is_told(room: MoneyRoom) -> None:
    """The three healths are told as they change, each by itself; the same again is no news."""
    link = room.path.link
    room.changes.clear()
    for health in (BrokerHealth("up", "up", "down"), BrokerHealth("up", "up", "down"), UP):
        link.on_health(health)

    assert room.changes == ["broker", "broker"]
    assert (link.health, link.state, link.ready) == (UP, "connected", True)


async def test_a_reconciliation_that_fails_after_the_link_came_back_is_repeated(room: MoneyRoom) -> None:
    """Until one has succeeded nothing is called up to date; then what ended is known, and guarded anew."""
    order = await room.enter("AAPL", 100)
    await room.fill(order, "10")
    (stop,) = room.working(protective=True)
    link, listener, read, tries = room.path.link, room.exchange.listener, room.exchange.executions, 0

    async def failing(since: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BrokerError("the executions can't be read")
        return await read(since)

    link.on_health(BrokerHealth("up", "down", "down"))
    room.exchange.listener = None
    room.exchange.end(stop.order_id, "cancelled", "by a person")
    room.exchange.listener, room.exchange.executions = listener, failing  # type: ignore[method-assign]
    link.on_health(UP)
    assert room.desk.behind()
    await room.until(lambda: link.error is not None)
    assert not link.ready
    assert room.desk.behind()
    await room.until(lambda: link.ready)

    assert (link.error, room.desk.behind(), stop.status) == (None, False, OrderStatus.CANCELLED)
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)


async def test_a_link_that_goes_away_again_ends_no_attempts(room: MoneyRoom) -> None:
    """A link that flaps while a reconciliation waits for its next try is reconciled all the same."""
    link, read, fails = room.path.link, room.exchange.executions, True

    async def failing(since: Any) -> Any:
        if fails:
            raise BrokerError("the executions can't be read")
        return await read(since)

    room.exchange.executions = failing  # type: ignore[method-assign]
    for _ in range(2):
        link.on_health(BrokerHealth("up", "down", "down"))
        link.on_health(UP)
        await room.until(lambda: link.error is not None and not link.ready)
    fails = False
    await room.until(lambda: link.ready)

    assert not room.desk.behind()

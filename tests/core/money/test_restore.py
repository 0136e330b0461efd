"""Tests of `sigma9_core.money.restore`: what the journal knows, and that each part gets what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from sigma9_core.models import ExitPlan, OrderStatus
from sigma9_core.money.restore import Known, read
from sigma9_core.testing.money_room import OPEN, SESSIONS, AllowAll, MoneyRoom


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path, rule=AllowAll(refuses="NOPE")) as room:
        yield room


async def known(room: MoneyRoom) -> Known:
    """Read what a start would, once everything is written."""
    await room.desk.settle()
    return read(room.journal, room.clock.now())


async def test_a_new_journal_knows_its_opening_alone(room: MoneyRoom) -> None:
    """After the first connect there is the opening cash, and nothing else."""
    found = await known(room)

    assert found.opening == Decimal(100_000)
    assert (found.transfers, list(found.books), found.orders, found.guards) == (Decimal(0), [], [], {})
    assert found.entries == {"2026-03-02": 0}


async def test_what_works_and_what_is_in_doubt_is_taken_back(room: MoneyRoom) -> None:
    """Orders that have not ended come back with status, fills and terms; ended and refused ones do not."""
    resting = await room.buy("A", order_type="limit", limit_price=Decimal(9))
    await room.fill(resting, "9", 30)
    await room.desk.modify(resting.order_id, {"limit_price": Decimal(8)})
    room.exchange.faults.add("raise")
    lost = await room.buy("B")
    room.exchange.faults.clear()
    ended = await room.buy("C")
    await room.fill(ended, "10")
    refused = await room.buy("NOPE")
    orders = {order.order_id: order for order in (await known(room)).orders}

    assert set(orders) == {resting.order_id, lost.order_id}
    assert refused.order_id not in orders
    again = orders[resting.order_id]
    assert (again.status, again.filled, again.average_price) == (OrderStatus.REPLACED, Decimal(30), Decimal(9))
    assert (again.request.limit_price, again.request.quantity) == (Decimal(8), Decimal(100))
    assert again.broker_order_id == resting.broker_order_id
    assert again.verdicts == resting.verdicts
    assert orders[lost.order_id].status is OrderStatus.UNKNOWN


async def test_a_guard_comes_with_its_entry(room: MoneyRoom) -> None:
    """The newest note of each guard counts; the entry of one that has not ended comes back, filled or not."""
    entry = await room.enter("AAPL", plan=ExitPlan(time_stop_seconds=60))
    await room.fill(entry, "10.50")
    over = await room.enter("MSFT")
    room.exchange.end(over.order_id, "rejected", "no")
    found = await known(room)

    assert {symbol: note["ended"] for symbol, note in found.guards.items()} == {"AAPL": False, "MSFT": True}
    assert found.guards["AAPL"]["opened_at"] is not None
    orders = {order.order_id: order.status for order in found.orders}
    assert orders[entry.order_id] is OrderStatus.FILLED
    assert over.order_id not in orders


async def test_entries_are_those_of_the_day(room: MoneyRoom) -> None:
    """Approved entries of the date in New York, in the session or outside of it."""
    await room.buy("A")
    await room.buy("NOPE")
    await room.enter("B")
    assert (await known(room)).entries == {"2026-03-02": 2}

    room.clock.advance(OPEN + timedelta(hours=10))
    assert (await known(room)).entries == {"2026-03-02": 2}
    room.clock.advance(SESSIONS[1].open)
    assert (await known(room)).entries == {"2026-03-03": 0}


async def test_transfers_and_busts_are_summed_up(room: MoneyRoom) -> None:
    """Several transfers make one amount; the executions that were taken back are named."""
    for amount in (Decimal(500), Decimal(-200)):
        await room.path.link.disconnect()
        room.exchange.cash += amount
        room.path.link.connect()
        await room.path.link.wait_ready()
    found = await known(room)

    assert found.transfers == Decimal(300)
    assert found.busted == frozenset()


async def test_day_marks_and_rules_memory_come_back(room: MoneyRoom) -> None:
    """The newest day note is the one that counts, with the prices of what is held."""
    await room.tick("AAPL", 10)
    await room.fill(await room.buy(), "10")
    await room.tick("AAPL", 10.5)
    await room.path.stop()
    await room.journal.commit([])
    days = read(room.journal, room.clock.now()).days

    assert days["portfolio"]["day"] == "2026-03-02"
    assert days["portfolio"]["marks"]["AAPL"][0] == "10.5"
    assert "rules" in days

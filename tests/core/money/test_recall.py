"""Tests of `sigma9_core.money.recall`: an order from the journal is what it was in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from sigma9_core.models import OrderStatus
from sigma9_core.money.recall import recalled
from sigma9_core.testing.money_room import MoneyRoom


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path) as room:
        yield room


async def test_a_late_fill_does_not_bring_an_order_back(room: MoneyRoom) -> None:
    """A cancelled order that has filled after all comes back as cancelled, with what has filled."""
    order = await room.buy("AAPL")
    room.exchange.end(order.order_id, "cancelled", "asked for")
    await room.fill(order, "10", 30)
    await room.desk.settle()

    again = recalled(room.journal, order.order_id)

    assert again is not None
    assert (again.status, again.filled, again.working) == (OrderStatus.CANCELLED, Decimal(30), False)
    assert again.status is order.status


async def test_what_may_still_work_comes_back_as_it_stood(room: MoneyRoom) -> None:
    """An order that has not ended has the status of its newest event; nobody else's order comes back."""
    order = await room.buy("AAPL")
    await room.fill(order, "10", 30)
    await room.desk.settle()

    again = recalled(room.journal, order.order_id)

    assert again is not None
    assert (again.status, again.filled, again.working) == (OrderStatus.PARTIALLY_FILLED, Decimal(30), True)
    assert recalled(room.journal, "nobody's") is None


async def test_a_bust_ends_nothing_that_works(room: MoneyRoom) -> None:
    """An order of which a fill was taken back while the rest worked comes back working; a filled one as busted."""
    part, whole = await room.buy("AAPL"), await room.buy("MSFT")
    for order, quantity in ((part, 30), (whole, 100)):
        await room.fill(order, "10", quantity)
        fill = next(record.fill for record in room.journal.fills() if record.fill.order_id == order.order_id)
        room.exchange.report("busted", order.order_id, fill=fill)
        await room.desk.settle()

    again = [recalled(room.journal, order.order_id) for order in (part, whole)]

    assert [order and order.status for order in again] == [part.status, whole.status]
    assert [order and order.working for order in again] == [True, False]
    assert [*room.journal.last_order_events()] == [part.order_id]

"""Tests of `sigma9_core.money.tally`: what a run had at work, and what the rules refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from sigma9_core.contracts import BrokerReport
from sigma9_core.models import Fill, OrderRequest
from sigma9_core.testing.money_room import AllowAll, MoneyRoom


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path, rule=AllowAll(refuses="NOPE")) as room:
        yield room


async def test_what_was_at_work_is_counted_at_the_end_of_each_slice(room: MoneyRoom) -> None:
    """Slices, those with a position, the average and the largest value; a short position counts as much."""
    tally = room.path.tally
    assert tally.average == 0
    await room.tick("AAPL", 10)
    await room.fill(await room.buy(quantity=100), "10")
    await room.tick("AAPL", 11)
    short = OrderRequest(symbol="MSFT", side="sell", quantity=Decimal(50))
    await room.fill((await room.desk.submit([short]))[0], "20")
    await room.tick("MSFT", 20)
    out = OrderRequest(symbol="AAPL", side="sell", quantity=Decimal(100), intent="reduce")
    await room.fill((await room.desk.submit([out]))[0], "11")
    await room.tick("AAPL", 11)

    assert (tally.slices, tally.invested) == (4, 3)
    assert tally.peak == 1100 + 1000
    assert tally.average == Decimal(0 + 1100 + 2100 + 1000) / 4


async def test_orders_and_refusals_are_counted(room: MoneyRoom) -> None:
    """Orders that were sent, and refused ones by the rule that refused them first; a group's others as such."""
    tally = room.path.tally
    await room.buy()
    await room.buy("NOPE")
    entry = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(10))
    await room.desk.submit([entry, entry.model_copy(update={"symbol": "NOPE"})])

    assert tally.orders == 1
    assert dict(tally.refused) == {"allow_all": 2, "group": 1}


async def test_fees_are_those_of_this_run(room: MoneyRoom) -> None:
    """Every commission of the run is summed up; what came before a restart is not counted again."""
    order = await room.buy()
    for exec_id, fee in (("x1", "0.35"), ("x2", "1.05"), ("x2", "1.05")):
        now = room.clock.now()
        fill = Fill(exec_id, order.order_id, "AAPL", "buy", Decimal(50), Decimal(10), Decimal(fee), now)
        room.desk.on_report(BrokerReport("filled", order.order_id, now, fill=fill))
    assert room.path.tally.fees == Decimal("1.40")
    await room.desk.settle()
    async with await room.crash() as after:
        assert after.path.tally.fees == 0

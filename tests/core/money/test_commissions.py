"""A commission that is told after its execution is booked as if it had come with it, in every book there is."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from sigma9_core.contracts import BrokerReport
from sigma9_core.money.audit import audit
from sigma9_core.money.history import History
from sigma9_core.testing.money_room import MoneyRoom

ONE = Decimal("1.25")


async def test_a_late_commission_is_booked(tmp_path: Path) -> None:
    """Cash, fees and the result of a closed trade have it; told twice it counts once; a restart keeps it."""
    room = MoneyRoom(tmp_path)
    async with room:
        await room.tick("AAPL", 10)
        bought = await room.buy("AAPL", 100)
        await room.fill(bought, "10")
        (first,) = room.exchange.fills
        sold = await room.buy("AAPL", 100, side="sell", intent="reduce")
        await room.fill(sold, "11")
        before = room.path.portfolio.cash
        late = BrokerReport("commission", bought.order_id, first.ts, fill=replace(first, commission=ONE))
        for _ in range(2):
            room.desk.on_report(late)
        books = room.path.portfolio

        assert (books.cash, books.fees, books.realized) == (before - ONE, ONE, Decimal(100) - ONE)
        assert [trade.result for trade in books.trades] == [Decimal(100) - ONE]
        assert [trade.fees for trade in books.trades] == [ONE]
        await room.desk.settle()
        room.exchange.cash -= ONE
    again = room.again()
    async with again:
        books = again.path.portfolio

        assert (books.cash, books.fees, books.realized) == (before - ONE, ONE, Decimal(100) - ONE)
        assert len(list(again.journal.every("commission"))) == 1
        assert not list(again.journal.every("transfer"))
    history = History(f"sqlite:///{tmp_path / 'journal.db'}", "main")
    history.open()
    found = audit(history)
    history.close()

    assert not found.faults
    assert (found.fees, found.realized) == (ONE, Decimal(100) - ONE)


async def test_a_commission_of_nothing_is_ignored(tmp_path: Path) -> None:
    """That of an execution which was never counted changes nothing and is not noted."""
    async with MoneyRoom(tmp_path) as room:
        await room.tick("AAPL", 10)
        order = await room.buy("AAPL", 100)
        await room.fill(order, "10")
        (fill,) = room.exchange.fills
        cash = room.path.portfolio.cash
        strange = replace(fill, exec_id="never", commission=ONE)
        room.desk.on_report(BrokerReport("commission", order.order_id, fill.ts, fill=strange))
        room.desk.on_report(BrokerReport("commission", order.order_id, fill.ts))

        assert room.path.portfolio.cash == cash
        assert not list(room.journal.every("commission"))

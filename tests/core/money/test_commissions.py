"""A commission that is told after its execution is booked as if it had come with it, in every book there is."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.contracts import BrokerReport
from sigma9_core.events import TradeEvent
from sigma9_core.money.audit import audit
from sigma9_core.money.history import History
from sigma9_core.money.holding import Holding
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


async def test_an_order_has_the_commission_that_was_told_late(tmp_path: Path) -> None:
    """Its view, its trade, what comes next of it, and what a restart takes back all have it; the audit agrees."""
    room = MoneyRoom(tmp_path)
    async with room:
        await room.tick("AAPL", 10)
        order = await room.buy("AAPL", 100, order_type="limit", limit_price=Decimal(10))
        await room.fill(order, "10", 40)
        (fill,) = room.exchange.fills
        room.desk.on_report(
            BrokerReport("commission", order.order_id, fill.ts, fill=replace(fill, commission=ONE))
        )
        assert order.commission == ONE
        await room.until(lambda: [each["commission"] for each in shown(room)] == [1.25])
        await room.desk.settle()
        assert [trade["commission"] for trade in room.journal.trades(limit=9)["trades"]] == [1.25]

        await room.fill(order, "10", 10)
        assert [event.data.commission for event in room.events if isinstance(event.data, TradeEvent)][-1] == ONE
        second = room.exchange.fills[-1]
        late = BrokerReport("commission", order.order_id, fill.ts, fill=replace(second, commission=ONE))
        room.desk.on_report(late)
        await room.desk.settle()
        room.exchange.cash -= 2 * ONE
    async with room.again() as again:
        (known,) = again.desk.open_orders()
        assert known.commission == again.journal.commission(order.order_id) == 2 * ONE
        await again.fill(known, "10")
        assert known.commission == 2 * ONE
        assert again.journal.commission("nobody") is None
        assert not list(again.journal.every("transfer"))
    history = History(f"sqlite:///{tmp_path / 'journal.db'}", "main")
    history.open()
    found = audit(history)
    history.close()

    assert found.faults == []


def shown(room: MoneyRoom) -> list[Any]:
    """Give the orders that clients see."""
    return list((room.bodies.get("orders") or {"orders": []})["orders"])


async def test_a_late_commission_costs_no_look_at_other_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many fills a position has, only the one that it belongs to is looked at."""
    async with MoneyRoom(tmp_path) as room:
        await room.tick("AAPL", 10)
        order = await room.buy("AAPL", 100)
        for _ in range(100):
            room.exchange.fill(order.order_id, Decimal(10), Decimal(1))
        await room.desk.settle()
        monkeypatch.setattr(Holding, "take", None)
        for fill in room.exchange.fills:
            late = replace(fill, commission=ONE)
            room.desk.on_report(BrokerReport("commission", order.order_id, fill.ts, fill=late))

        assert room.path.portfolio.fees == order.commission == 100 * ONE
        assert room.desk.failed_reports == 0

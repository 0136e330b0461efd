"""Tests of `sigma9_core.money.restore`: what the journal knows, and that each part gets what is its own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from sigma9_core.commands import Scope
from sigma9_core.errors import JournalError
from sigma9_core.models import ExitPlan, OrderStatus
from sigma9_core.money.records import NoteRecord
from sigma9_core.money.restore import Known, read
from sigma9_core.testing.journal_places import FilePlace
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
    assert found.busts == []


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


# --- what can't be read ---------------------------------------------------------------------------------------


async def held(folder: Path) -> MoneyRoom:
    """Leave a guarded position, a transfer, and a resting order behind; give the room that has ended."""
    room = MoneyRoom(folder)
    async with room:
        await room.tick("AAPL", 10)
        for symbol in ("AAPL", "MSFT"):
            await room.fill(await room.enter(symbol), "10")
        await room.buy("IBM", order_type="limit", limit_price=Decimal(9))
        await room.path.link.disconnect()
        room.exchange.cash += 500
        room.path.link.connect()
        await room.path.link.wait_ready()
        await room.desk.settle()
    return room


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE notes SET body = json_set(body, '$.portfolio.day', 'x') WHERE kind = 'days'", "notes"),
        ("UPDATE notes SET body = '[' WHERE kind = 'days'", "notes"),
        ("UPDATE notes SET body = '{}' WHERE kind = 'transfer'", "notes"),
        ("UPDATE notes SET body = json_object('cash', 'lots') WHERE kind = 'opening'", "notes"),
        ("UPDATE fills SET quantity = 'many'", "fills"),
        ("UPDATE fills SET quantity = '-5'", "fills"),
        ("UPDATE fills SET side = 'hold'", "fills"),
        ("UPDATE fills SET ts = 'then'", "fills"),
        ("UPDATE orders SET request = '{'", "orders"),
        ("UPDATE events SET body = '{}' WHERE type = 'trade_event'", "event"),
        ("UPDATE events SET event = 'gone' WHERE type = 'trade_event'", "event"),
    ],
)
async def test_a_row_that_cant_be_read_is_one_sentence(tmp_path: Path, statement: str, row: str) -> None:
    """A start that reads a row which is not as it was written names it, and what to do."""
    room = await held(tmp_path)
    FilePlace(tmp_path / "journal.db").forge(statement)

    with pytest.raises(JournalError) as caught:
        async with room.again():
            pass

    told = str(caught.value)
    assert re.match(
        rf"the (row \d+ of {row}|{row} \d+) in the journal \S+ can't be read \(\w+.*\): see `sigma9", told
    )
    assert "\n" not in told


@pytest.mark.parametrize(
    "body", ["{}", "[", """json_set(body, '$.plan', 7)""", """json_set(body, '$.symbol', 'X')"""]
)
async def test_a_guard_that_cant_be_read_costs_its_symbol_alone(
    tmp_path: Path, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The symbol stays closed but for a kill, and says so; the other's exits go on, and the start goes through."""
    room = await held(tmp_path)
    value = body if body.startswith("json") else f"'{body}'"
    FilePlace(tmp_path / "journal.db").forge(
        f"UPDATE notes SET body = {value} WHERE kind = 'guard' AND symbol = 'AAPL'"  # noqa: S608
    )

    again = room.again()
    async with again:
        assert set(again.exits.guards) == {"MSFT"}
        order = await again.buy("AAPL", 10, side="sell", intent="reduce")
        assert order.status is OrderStatus.RISK_REJECTED
        assert "the exits of AAPL are not known" in (order.reason or "")
        assert (await again.buy("MSFT", 10)).working
        assert "the exits of AAPL are not known" in caplog.text
        await again.kill.fire(reason="flat", source="cli", scope=Scope(symbol="AAPL"), flatten=True)
        (closing,) = await again.closing()
        await again.fill(closing, "10")
        await again.until(lambda: again.path.portfolio.quantity("AAPL") == 0)
    async with room.again() as third:
        await third.kill.reset("flat", Scope(symbol="AAPL"), "cli")
        assert (await third.buy("AAPL", 10)).working


async def test_a_journal_of_many_notes_restores_right(tmp_path: Path) -> None:
    """Guards, transfers and busts count whatever their number is."""
    room = await held(tmp_path)
    before = room.path.portfolio.cash
    room.journal.open()
    guard = {"symbol": "AAPL", "ended": True}
    for kind, bodies in (
        ("guard", [dict(guard, symbol=f"S{number % 50}") for number in range(20_000)]),
        ("transfer", [{"amount": "1"}] * 20_000),
        ("bust", [{"exec_id": f"none-{number}", "order_id": "none"} for number in range(20_000)]),
    ):
        for start in range(0, len(bodies), 1000):
            notes = [NoteRecord(kind, room.clock.now(), body) for body in bodies[start : start + 1000]]
            await room.journal.commit(notes)
    room.exchange.cash += 20_000
    room.journal.close()

    again = room.again()
    async with again:
        assert set(again.exits.guards) == {"AAPL", "MSFT"}
        assert again.path.portfolio.cash == before + 20_000
        found = await known(again)
        assert len(found.busts) == 20_000
        assert found.transfers == 500 + 20_000

"""An execution that is corrected: the new one takes its place in one step, in every book there is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sigma9_core.commands import Command, KillArgs
from sigma9_core.contracts import BrokerReport
from sigma9_core.errors import BrokerRefused
from sigma9_core.events import TradeEvent
from sigma9_core.models import Fill, OrderStatus
from sigma9_core.money import path as path_module
from sigma9_core.money.audit import audit
from sigma9_core.money.desk import Step
from sigma9_core.money.history import History
from sigma9_core.money.orders import Order
from sigma9_core.testing.money_room import SESSIONS, MoneyRoom


def correct(room: MoneyRoom, old: Fill, price: str, name: str = "c", *, told: bool = True, **more: Any) -> Fill:
    """Put an execution right at the exchange, which tells the new one by itself, or only when it is asked."""
    terms = {"exec_id": f"{old.exec_id}{name}", "price": Decimal(price), "corrects": (old.exec_id,), **more}
    new = replace(old, **terms)
    room.exchange.fills[room.exchange.fills.index(old)] = new
    sign = 1 if old.side == "buy" else -1
    room.exchange.cash -= sign * (new.price * new.quantity - old.price * old.quantity)
    room.exchange.holdings[old.symbol] += sign * (new.quantity - old.quantity)
    if told:
        room.exchange.report("filled", old.order_id, fill=new)
    return new


def tell(room: MoneyRoom, fill: Fill, *, recovered: bool = False) -> None:
    """Tell a fill once more."""
    report = BrokerReport("filled", fill.order_id, fill.ts, fill.broker_order_id, fill)
    room.desk.on_report(report, recovered=recovered)


def steps(room: MoneyRoom, order: Order) -> list[TradeEvent]:
    """Give the events of an order."""
    told = [event.data for event in room.events if isinstance(event.data, TradeEvent)]
    return [step for step in told if step.order_id == order.order_id]


def facts(order: Order) -> tuple[object, ...]:
    """Give what has filled of an order, at which price, and how it stands."""
    return order.filled, order.average_price, str(order.status)


def audited(folder: Path) -> None:
    """See that everything in the journal agrees."""
    history = History(f"sqlite:///{folder / 'journal.db'}", "main")
    history.open()
    found = audit(history)
    history.close()
    assert found.faults == []


def shown(room: MoneyRoom) -> tuple[Any, ...]:
    """Give what the books have."""
    books = room.path.portfolio
    return books.cash, books.fees, books.realized, books.cost, books.positions(), books.trades


async def test_a_corrected_fill_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """Its price counts and the old one's does not, the order has filled once, and one event says all of it."""
    room = MoneyRoom(tmp_path)
    async with room:
        await room.tick("AAPL", 10)
        order = await room.buy("AAPL", 100)
        await room.fill(order, "10", 60)
        (old,) = room.exchange.fills
        new = correct(room, old, "9.5")
        await room.desk.settle()
        assert facts(order) == (60, Decimal("9.5"), "partially_filled")
        assert room.path.portfolio.position("AAPL").average_cost == Decimal("9.5")
        assert room.path.portfolio.cash == room.exchange.cash

        await room.fill(order, "10", 40)
        told = steps(room, order)
        assert [step.event for step in told] == ["submitted", "accepted", *["partially_filled"] * 2, "filled"]
        assert [step.filled_quantity for step in told[2:]] == [60, 60, 100]
        assert (told[3].trade_id, told[3].corrects) == (new.exec_id, (old.exec_id,))
        assert told[3].last_price == Decimal("9.5")
        trades = room.journal.trades(limit=10)["trades"]
        assert [trade["trade_id"] for trade in trades] == ["x2", new.exec_id]
        before = shown(room)
    async with room.again() as again:
        assert shown(again) == before
        assert not list(again.journal.every("transfer"))
        tell(again, old)
        tell(again, new)
        assert shown(again) == before
    audited(tmp_path)


async def test_a_correction_that_comes_before_what_it_corrects(tmp_path: Path) -> None:
    """The old one is never counted, also not by the next start."""
    room = MoneyRoom(tmp_path)
    async with room:
        await room.tick("AAPL", 10)
        order = await room.buy("AAPL", 100)
        listener, room.exchange.listener = room.exchange.listener, None
        old = room.exchange.fill(order.order_id, Decimal(10))
        room.exchange.listener = listener
        new = correct(room, old, "9.5")
        tell(room, old)
        newest = correct(room, new, "9.25", "d", corrects=(old.exec_id, new.exec_id))
        tell(room, new)
        await room.desk.settle()
        before = shown(room)

        assert facts(order) == (100, Decimal("9.25"), "filled")
        assert room.path.portfolio.position("AAPL").quantity == 100
    async with room.again() as again:
        for each in (old, new, newest):
            tell(again, each, recovered=True)
        await again.desk.settle()

        assert shown(again) == before
        assert len(list(again.journal.fills())) == 2
    audited(tmp_path)


@pytest.mark.parametrize("held", [True, False], ids=["held", "sold"])
@pytest.mark.parametrize("order_of", ["both", "new first", "new alone"])
async def test_a_correction_that_a_start_reads_back(tmp_path: Path, order_of: str, *, held: bool) -> None:
    """Whatever the read-back tells first, nobody sees both, and no exit closes what is not there."""
    room = MoneyRoom(tmp_path)
    async with room:
        await room.tick("AAPL", 10)
        order = await room.enter("AAPL", 100)
        await room.fill(order, "10")
        (old,) = room.exchange.fills
        await room.desk.settle()
        if not held:
            (stop,) = room.working(protective=True)
            await room.fill(stop, "9")
    new = correct(room, old, "9.5", told=False)
    place = room.exchange.fills.index(new)
    room.exchange.fills[place : place + 1] = {
        "both": [old, new],
        "new first": [new, old],
        "new alone": [new],
    }[order_of]
    again = room.again()
    seen: list[Decimal] = []

    def follow(step: Step) -> None:
        seen.append(again.path.portfolio.quantity("AAPL"))

    again.desk.followers.insert(0, follow)
    sent = len(room.exchange.submitted)
    async with again:
        await again.desk.settle()
        known = again.desk.orders[order.order_id]

        assert {*seen} <= {Decimal(100 if held else 0)}
        assert len(room.exchange.submitted) == sent
        assert facts(known) == (100, Decimal("9.5"), "filled")
        assert again.path.portfolio.cash == room.exchange.cash
        assert not again.path.reconciler.unexplained
        assert ("AAPL" in again.exits.guards) == held
        before = shown(again)
    async with room.again() as last:
        assert shown(last) == before
        assert not list(last.journal.every("transfer"))
    audited(tmp_path)


async def test_a_correction_of_an_order_that_was_cancelled(tmp_path: Path) -> None:
    """It stays cancelled, with what has filled of it, at its new price; a restart knows the same."""
    async with MoneyRoom(tmp_path) as room:
        await room.tick("AAPL", 10)
        order = await room.buy("AAPL", 100)
        await room.fill(order, "10", 40)
        room.exchange.end(order.order_id, "cancelled", "enough")
        correct(room, room.exchange.fills[0], "9.5")
        await room.desk.settle()

        assert facts(order) == (40, Decimal("9.5"), "cancelled")
        assert room.journal.status(order.order_id) is OrderStatus.CANCELLED
    audited(tmp_path)


async def test_a_correction_of_the_quantity_moves_the_position(tmp_path: Path) -> None:
    """Position, order and stop are those of the new quantity."""
    async with MoneyRoom(tmp_path) as room:
        await room.tick("AAPL", 10)
        order = await room.enter("AAPL", 100)
        await room.fill(order, "10")
        correct(room, room.exchange.fills[0], "10", quantity=Decimal(90))
        await room.desk.settle()

        assert order.filled == room.path.portfolio.quantity("AAPL") == 90
        assert [stop.remaining for stop in room.working(protective=True)] == [90]
    audited(tmp_path)


async def test_a_correction_of_what_a_stand_in_counts(tmp_path: Path) -> None:
    """Where the broker could give no execution, what stands for it counts; a late correction is no second fill."""
    async with MoneyRoom(tmp_path) as room:
        await room.tick("AAPL", 10)
        order = await room.buy("AAPL", 100, order_type="limit", limit_price=Decimal(10))
        listener, room.exchange.listener = room.exchange.listener, None
        old = room.exchange.fill(order.order_id, Decimal(10))
        room.exchange.listener = listener
        fills = [*room.exchange.fills]
        room.exchange.fills.clear()
        await room.path.reconciler.run(room.path.link)
        room.exchange.fills.extend(fills)
        correct(room, old, "9.5")
        tell(room, old)
        await room.desk.settle()

        assert order.filled == room.path.portfolio.quantity("AAPL") == 100
    audited(tmp_path)


async def test_what_a_corrected_entry_leaves_of_its_exit_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry was for less than its stop has closed: the short is nobody's, without a restart too."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    async with MoneyRoom(tmp_path) as room:
        entry = await room.enter("AAPL", 100)
        await room.fill(entry, "10")
        bought = room.exchange.fills[-1]
        (stop,) = room.working(protective=True)
        await room.fill(stop, "9.8")
        await room.until(lambda: "AAPL" not in room.path.exits.guards)
        correct(room, bought, "10", quantity=Decimal(60))
        await room.until(lambda: room.working(side="buy", intent="reduce"))
        (back,) = room.working(side="buy", intent="reduce")
        assert back.request.quantity == 40


async def test_what_a_corrected_exit_leaves_is_guarded_again(tmp_path: Path) -> None:
    """The stop has sold less than was told: what is left was wanted, and gets its stop, not a close."""
    async with MoneyRoom(tmp_path) as room:
        await room.fill(await room.enter("AAPL", 100), "10")
        (stop,) = room.working(protective=True)
        await room.fill(stop, "9.8")
        await room.until(lambda: "AAPL" not in room.path.exits.guards)
        correct(room, room.exchange.fills[-1], "9.8", quantity=Decimal(60))
        await room.until(lambda: room.path.portfolio.position("AAPL").protected)
        await room.desk.settle()
        (stop,) = room.working(intent="reduce")
        assert (stop.request.order_type, stop.request.quantity) == ("stop", Decimal(40))
        assert room.path.unwanted.states == {}


async def test_what_a_person_has_left_by_a_corrected_exit_stays(tmp_path: Path) -> None:
    """A person's sale was smaller than was told: nothing sells the rest."""
    async with MoneyRoom(tmp_path) as room:
        await room.fill(await room.buy(), "10")
        leave = await room.buy(side="sell", order_type="limit", limit_price=Decimal(11), intent="reduce")
        await room.fill(leave, "11")
        correct(room, room.exchange.fills[-1], "11", quantity=Decimal(60))
        await room.until(lambda: room.path.portfolio.quantity("AAPL") == 40)
        await room.desk.settle()
        assert (room.path.unwanted.states, room.desk.open_orders()) == ({}, [])


async def lone_stop(room: MoneyRoom, quantity: int = 100) -> tuple[Fill, Order]:
    """Hold 100 with a lone stop of a person's; give the fill and the stop."""
    await room.fill(await room.buy(), "10")
    terms: dict[str, Any] = {"order_type": "stop", "stop_price": Decimal(9), "intent": "reduce"}
    stop = await room.buy(side="sell", quantity=quantity, protective=True, source="api", **terms)
    return room.exchange.fills[-1], stop


async def test_a_lone_stop_shrinks_under_a_kill_too(tmp_path: Path) -> None:
    """While the close of a kill waits for the market, the stop must not outgrow what a correction leaves."""
    async with MoneyRoom(tmp_path) as room:
        bought, stop = await lone_stop(room)
        room.clock.advance(SESSIONS[0].close + timedelta(minutes=1))
        await room.path.kill(KillArgs(reason="test"), Command("kill_switch", {}, "api"))
        assert stop.working
        correct(room, bought, "10", quantity=Decimal(60))
        await room.until(lambda: room.exchange.orders[stop.order_id].request.quantity == 60)


async def test_a_lone_stop_that_can_t_be_made_smaller_is_sent_anew(tmp_path: Path, mocker: MockerFixture) -> None:
    """A broker that refuses the change loses it; one of the right size takes its place."""
    async with MoneyRoom(tmp_path) as room:
        bought, stop = await lone_stop(room)
        mocker.patch.object(room.exchange, "replace", side_effect=BrokerRefused("not this one"))
        correct(room, bought, "10", quantity=Decimal(60))
        await room.until(lambda: not stop.working and room.working(protective=True))
        (smaller,) = room.working(protective=True)
        assert (smaller.request.quantity, smaller.request.stop_price) == (Decimal(60), Decimal(9))


async def test_the_second_lone_stop_is_made_smaller_too(tmp_path: Path) -> None:
    """All that is held keeps a stop, whatever the number of those that stand alone."""
    async with MoneyRoom(tmp_path) as room:
        bought, _ = await lone_stop(room, 50)
        await room.buy(
            *("AAPL", 50), side="sell", order_type="stop", stop_price=Decimal(8), intent="reduce", protective=True
        )
        correct(room, bought, "10", quantity=Decimal(60))
        await room.until(lambda: {stop.request.quantity for stop in room.working(protective=True)} == {10, 50})

"""Tests of orders that were believed dead and live: they come back and are looked after; late words do nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.clock import SteppedClock
from sigma9_core.commands import BracketArgs, Command, OrderArgs
from sigma9_core.contracts import BrokerReport
from sigma9_core.events import TradeEvent
from sigma9_core.models import ExitPlan, OrderStatus
from sigma9_core.money import reconcile
from sigma9_core.money.audit import audit
from sigma9_core.money.orders import Order
from sigma9_core.money.restore import read
from sigma9_core.testing.model.exchange import RoughExchange
from sigma9_core.testing.money_room import OPEN, MoneyRoom


class Room(MoneyRoom):
    """A money room at a broker that may leave working orders out of its lists."""

    exchange: RoughExchange

    async def look(self, times: int = 4) -> None:
        """Look around and read back, as the path does every few seconds."""
        for _ in range(times):
            await self.path.reconciler.resolve_unknown(self.path.link)
            await self.path.reconciler.look_around(self.path.link)
            self.exits.keep_within_books()
            await self.desk.settle()

    async def lose(self, *orders: Order) -> None:
        """Leave orders out of sight until they are taken for ended."""
        self.exchange.lose_sight([order.order_id for order in orders])
        await self.look()
        assert not any(order.working for order in orders)

    async def find(self) -> None:
        """Let everything come into sight again."""
        self.exchange.out_of_sight.clear()
        await self.look(2)

    def again(self) -> MoneyRoom:
        """Give the room of the next start."""
        return Room(self.folder, exchange=self.exchange, clock=self.clock, settings=self.settings)

    def live(self) -> list[str]:
        """List what works at the exchange."""
        return [key for key, order in self.exchange.orders.items() if order.state == "working"]


def a_room(folder: Path) -> Room:
    """Make a room."""
    clock = SteppedClock("simulated", OPEN + timedelta(minutes=30))
    return Room(folder, exchange=RoughExchange(clock), clock=clock)


@pytest.fixture(name="room")
async def _room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(reconcile, "SURE_AFTER", 0.0)
    async with a_room(tmp_path) as room:
        yield room


async def resting(room: Room, **more: Any) -> Order:
    """Leave an entry at rest."""
    return await room.buy(order_type="limit", limit_price=Decimal(9), time_in_force="gtc", **more)


async def test_an_entry_that_was_out_of_sight_comes_back(room: Room) -> None:
    """It is told with its reason, counted by the gate, can be cancelled by a person, and the journal agrees."""
    order = await resting(room)
    await room.lose(order)
    assert order.status is OrderStatus.CANCELLED
    await room.find()

    assert await room.told(order) == ["submitted", "accepted", "cancelled", "accepted"]
    told = [event.data for event in room.events if isinstance(event.data, TradeEvent)][-1]
    assert (told.event, told.recovered) == (OrderStatus.ACCEPTED, True)
    assert told.reason == "it was taken for cancelled, and the broker shows it as working"
    assert room.desk.open_orders() == [order]
    assert [each.order_id for each in room.desk.view().working] == [order.order_id]
    assert room.desk.foreign == {}
    await room.path.cancel(order.order_id)
    assert (order.view().status, room.live()) == (OrderStatus.CANCELLED, [])
    await room.desk.settle()
    assert audit(room.journal).faults == []


async def test_what_has_come_back_fills_as_it_would_have(room: Room) -> None:
    """Its fill is a fill of an order that works, and ends it."""
    order = await resting(room)
    await room.lose(order)
    await room.find()
    await room.fill(order, "9", 40)
    assert order.view().status is OrderStatus.PARTIALLY_FILLED
    await room.fill(order, "9", 60)

    assert order.view().status is OrderStatus.FILLED
    assert room.path.portfolio.quantity("AAPL") == 100
    await room.desk.settle()
    assert audit(room.journal).faults == []


@pytest.mark.parametrize("shown", ["before", "after"])
async def test_it_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    """An order that has come back works after a restart; one that was believed dead comes back after it."""
    monkeypatch.setattr(reconcile, "SURE_AFTER", 0.0)
    room = a_room(tmp_path)
    await room.__aenter__()
    order = await resting(room)
    await room.lose(order)
    if shown == "before":
        await room.find()
        assert (await room.told(order))[-1] == "accepted"
    room.exchange.out_of_sight.clear()
    await room.desk.settle()
    known = [each.order_id for each in read(room.journal, room.clock.now()).orders]
    assert known == ([order.order_id] if shown == "before" else [])
    async with await room.crash() as again:
        (back,) = again.desk.open_orders()
        assert (back.order_id, back.status) == (order.order_id, OrderStatus.ACCEPTED)
        assert again.desk.foreign == {}
        await again.path.cancel(order.order_id)
        await again.desk.settle()
        assert audit(again.journal).faults == []


async def test_an_entry_and_its_stop_come_back_over_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were taken for ended, and their guard with them: the next start knows all three again."""
    monkeypatch.setattr(reconcile, "SURE_AFTER", 0.0)
    room = a_room(tmp_path)
    await room.__aenter__()
    entry = await room.enter(order_type="limit", limit_price=Decimal(10))
    (stop,) = room.working(protective=True)
    await room.lose(entry, stop)
    room.exchange.out_of_sight.clear()
    await room.desk.settle()
    async with await room.crash() as again:
        guard = again.exits.guards["AAPL"]
        assert (guard.entry_id, guard.stop_id) == (entry.order_id, stop.order_id)
        await again.fill(again.desk.orders[entry.order_id], "10")
        await again.desk.settle()
        assert again.path.portfolio.position("AAPL").protected
        assert [each.order_id for each in again.desk.open_orders()] == [stop.order_id]


async def test_one_that_comes_into_sight_long_after_a_restart_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no memory any more, and the journal knows it: it is no foreign order."""
    monkeypatch.setattr(reconcile, "SURE_AFTER", 0.0)
    room = a_room(tmp_path)
    await room.__aenter__()
    order = await resting(room)
    await room.lose(order)
    await room.desk.settle()
    async with await room.crash() as again:
        assert isinstance(again, Room)
        assert not again.desk.open_orders()
        again.exchange.out_of_sight.clear()
        await again.look()
        assert [each.order_id for each in again.desk.open_orders()] == [order.order_id]
        assert again.desk.foreign == {}


async def test_a_stop_that_was_replaced_is_taken_off(room: Room) -> None:
    """The stop comes back beside the one that was sent in its place: one of them is left, and it guards."""
    await room.fill(await room.enter(), "10")
    (first,) = room.working(protective=True)
    await room.lose(first)
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)
    (second,) = room.working(protective=True)
    assert {first.order_id, second.order_id} <= {*room.live()}
    await room.find()

    assert "accepted" in (await room.told(first))[-2:]
    assert (await room.told(first))[-1] == "cancelled"
    assert room.live() == [second.order_id]
    assert room.exits.guards["AAPL"].stop_id == second.order_id
    assert room.path.portfolio.position("AAPL").protected


async def test_a_trail_of_the_broker_s_is_not_doubled(room: Room) -> None:
    """The broker has made a trail of a stop that comes back; the one in its place would become another."""
    room.exchange.keeps = frozenset(("adjustment",))
    plan = ExitPlan(trail_percent=Decimal(1), trail_activation_percent=Decimal(5))
    await room.fill(await room.enter(plan=plan), "10")
    (first,) = room.working(protective=True)
    room.exchange.adjust(first.order_id)
    assert first.request.order_type == "trailing_stop"
    await room.lose(first)
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)
    (second,) = room.working(protective=True)
    await room.find()

    assert room.live() == [second.order_id]
    assert room.path.portfolio.position("AAPL").protected


async def test_a_stop_that_was_replaced_is_taken_off_where_the_position_is_in_doubt(room: Room) -> None:
    """A person has traded beside us, so that no exit is sent: the second stop of a group goes all the same."""
    await room.fill(await room.enter(), "10")
    (first,) = room.working(protective=True)
    await room.lose(first)
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)
    (second,) = room.working(protective=True)
    room.exchange.trade_by_hand("AAPL", "buy", Decimal(10), Decimal(10))
    await room.look()
    assert "AAPL" in room.path.reconciler.unexplained
    await room.find()

    assert room.live() == [second.order_id]


async def test_a_stop_that_nobody_has_replaced_guards_again(room: Room) -> None:
    """Where a person has taken the exits off, a stop that was believed dead is known again as the guard's."""
    await room.fill(await room.enter(), "10")
    (stop,) = room.working(protective=True)
    room.exits.release(["AAPL"])
    await room.lose(stop)
    assert not room.path.portfolio.position("AAPL").protected
    await room.find()

    assert room.exits.guards["AAPL"].stop_id == stop.order_id
    assert room.path.portfolio.position("AAPL").protected


async def test_a_stop_without_a_position_goes(room: Room) -> None:
    """A stop that comes back once its position is closed would open another one: it is cancelled."""
    await room.fill(await room.enter(), "10")
    (stop,) = room.working(protective=True)
    room.exits.release(["AAPL"])
    await room.lose(stop)
    room.exchange.orders[stop.order_id].request = stop.request.model_copy(update={"oca_group": None})
    closing = await room.buy(side="sell", intent="reduce")
    await room.fill(closing, "10")
    assert room.live() == [stop.order_id]
    await room.find()

    assert room.live() == []
    assert not room.desk.open_orders()
    assert room.path.portfolio.quantity("AAPL") == 0


async def test_an_entry_and_its_stop_come_back_together(room: Room) -> None:
    """Both are out of sight, and taken for ended: the guard is there again, and knows its stop."""
    entry = await room.enter(order_type="limit", limit_price=Decimal(10))
    (stop,) = room.working(protective=True)
    await room.lose(entry, stop)
    assert room.exits.guards == {}
    await room.find()

    guard = room.exits.guards["AAPL"]
    assert (guard.entry_id, guard.stop_id) == (entry.order_id, stop.order_id)
    assert sorted(room.live()) == sorted([entry.order_id, stop.order_id])
    await room.fill(entry, "10")
    await room.look(1)
    assert room.live() == [stop.order_id]
    assert room.path.portfolio.position("AAPL").protected


async def test_a_bracket_that_comes_back_has_its_prices(room: Room) -> None:
    """A person's stop stays where the person has put it, and the take-profit is there again."""
    args = OrderArgs(
        symbol="AAPL",
        side="buy",
        quantity=Decimal(100),
        order_type="limit",
        limit_price=Decimal(10),
        bracket=BracketArgs(stop_price=Decimal(7), take_profit=Decimal(15)),
    )
    await room.path.place(args, Command("place_order", {}, "api", id="p1"), [])
    entry, stop, profit = room.desk.open_orders()
    await room.lose(entry, stop, profit)
    await room.find()
    await room.fill(entry, "10")
    await room.look(1)

    guard = room.exits.guards["AAPL"]
    assert (guard.stop_id, guard.profit_id) == (stop.order_id, profit.order_id)
    assert room.exchange.orders[stop.order_id].request.stop_price == Decimal(7)


async def test_an_entry_whose_place_was_taken_goes(room: Room) -> None:
    """A strategy has entered again meanwhile: the first entry would double the position, and is cancelled."""
    first = await room.enter(order_type="limit", limit_price=Decimal(10))
    await room.lose(first, *room.working(protective=True))
    second = await room.enter(order_type="limit", limit_price=Decimal(10))
    (stop,) = room.working(protective=True)
    await room.find()
    await room.look(1)

    assert sorted(room.live()) == sorted([second.order_id, stop.order_id])
    assert room.exits.guards["AAPL"].entry_id == second.order_id
    assert (await room.told(first))[-2:] == ["accepted", "cancelled"]


async def test_entries_that_were_ended_stay_so(room: Room) -> None:
    """The engine was stopped, which ends entries: one that comes back after that is cancelled."""
    order = await resting(room)
    await room.lose(order)
    await room.path.end_entries()
    await room.find()

    assert room.live() == []
    assert (await room.told(order))[-2:] == ["accepted", "cancelled"]


async def test_a_kill_that_was_done_cancels_what_comes_back(room: Room) -> None:
    """It goes on: what it could not know of is cancelled, and only then is it done again."""
    order = await resting(room)
    await room.lose(order)
    await room.kill.fire(reason="enough", source="api", flatten=True)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    assert room.live() == [order.order_id]
    await room.find()
    await room.until(lambda: room.kill.body()["phase"] == "done" and not room.live())

    assert room.kill.body()["cancelled"] == [order.order_id]


async def test_a_kill_s_word_on_a_cancel_is_taken_back(room: Room) -> None:
    """What was told as cancelled and works again is not among what a kill has cancelled."""
    order = await resting(room)
    room.exchange.cancel_modes = ["swallow"] * 100
    await room.kill.fire(reason="enough", source="api", flatten=True)
    room.desk.on_report(BrokerReport("cancelled", order.order_id, room.clock.now()))
    await room.until(lambda: room.kill.body()["cancelled"] == [order.order_id])
    room.desk.on_report(BrokerReport("revived", order.order_id, room.clock.now(), reason="listed"))
    await room.until(lambda: room.kill.body()["pending"] == [order.order_id])
    assert room.kill.body()["cancelled"] == []
    room.exchange.cancel_modes = []


async def test_an_end_that_was_told_is_doubted_by_looks_in_a_row(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report said that it had ended: one list that shows it may be old, and several over some time are not."""
    monkeypatch.setattr(reconcile, "SURE_AFTER", 1000.0)
    order = await resting(room)
    room.desk.on_report(BrokerReport("rejected", order.order_id, room.clock.now(), reason="inactive"))
    await room.look(5)
    assert order.status is OrderStatus.REJECTED

    monkeypatch.setattr(reconcile, "SURE_AFTER", 0.0)
    await room.look(1)
    assert order.view().status is OrderStatus.ACCEPTED


async def test_a_list_that_is_old_revives_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-backs show the moment before the cancel for a while: the order stays cancelled."""
    monkeypatch.setattr(reconcile, "SURE_AFTER", 30.0)
    order = await resting(room)
    room.exchange.freeze(asyncio.get_running_loop().time())
    await room.path.cancel(order.order_id)
    await room.look(6)

    assert await room.told(order) == ["submitted", "accepted", "cancelled"]


async def test_an_end_during_the_read_back_is_newer(room: Room) -> None:
    """The list was asked for before the order ended: that it shows it as working says nothing."""
    order, other = await resting(room), await resting(room, symbol="MSFT")
    read = room.exchange.open_orders

    async def ends_meanwhile() -> Any:
        found = await read()
        room.exchange.end(order.order_id, "cancelled", "by the exchange")
        return found

    room.exchange.open_orders = ends_meanwhile  # type: ignore[method-assign]
    other.cancel_asked = True  # something is in doubt: all is read back
    await room.path.reconciler.resolve_unknown(room.path.link)
    room.exchange.open_orders = read  # type: ignore[method-assign]
    await room.look()

    assert await room.told(order) == ["submitted", "accepted", "cancelled"]


@pytest.mark.parametrize("how", ["late", "doubled"])
async def test_reports_that_are_late_or_doubled_revive_nothing(room: Room, how: str) -> None:
    """An `accepted` that comes after the true end changes nothing, and neither does it hang."""
    room.exchange.keeps_mail = how == "late"
    order = await resting(room)
    if how == "late":
        await room.look(1)  # read back before its report comes
        accepted, room.exchange.mail = room.exchange.mail, []
        room.exchange.keeps_mail = False
    else:
        accepted = room.exchange.told[-1:]
    await room.path.cancel(order.order_id)
    for report in accepted:
        room.desk.on_report(report)
    await room.look()

    assert await room.told(order) == ["submitted", "accepted", "cancelled"]
    assert room.path.reconciler.idle


async def test_what_has_filled_never_comes_back(room: Room) -> None:
    """A list that shows a filled order as working is wrong, however often it is shown."""
    order = await room.buy()
    await room.fill(order, "10")
    room.exchange.orders[order.order_id].state = "working"
    await room.look(6)
    room.desk.on_report(BrokerReport("revived", order.order_id, room.clock.now()))

    assert (await room.told(order))[-1] == "filled"
    assert not order.working


async def test_a_broker_may_say_it_itself(room: Room) -> None:
    """A broker that knows that its read-back is newer than the end reports it, and is believed at once."""
    order = await resting(room)
    room.desk.on_report(BrokerReport("rejected", order.order_id, room.clock.now()))
    room.desk.on_report(BrokerReport("revived", order.order_id, room.clock.now(), reason="it is listed"))

    assert (order.view().status, order.recovered, order.reason) == (OrderStatus.ACCEPTED, True, "it is listed")
    assert room.desk.open_orders() == [order]


# --- held: it is there, and does not work -----------------------------------------------------------------------


async def test_a_stop_that_is_held_guards_nothing(room: Room) -> None:
    """The broker has the stop and does not work it: the position is not protected by it, and gets another one."""
    await room.fill(await room.enter(plan=ExitPlan()), "10")
    (stop,) = room.working(protective=True)
    room.exchange.keeps_mail = True  # what is sent now is not confirmed yet
    room.desk.on_report(BrokerReport("held", stop.order_id, room.clock.now(), reason="locate"))
    assert not room.path.portfolio.position("AAPL").protected
    assert stop.status is OrderStatus.UNKNOWN
    room.exchange.keeps_mail = False
    room.exchange.deliver_all()
    await room.look(1)

    assert stop.view().status is OrderStatus.CANCELLED
    (other,) = room.working(protective=True)
    assert room.live() == [other.order_id]
    assert room.path.portfolio.position("AAPL").protected


async def test_an_order_that_is_held_stays_in_doubt_until_it_works(room: Room) -> None:
    """It is counted and can be cancelled, is neither absent nor confirmed, and holds up nothing else."""
    order = await resting(room)
    resting_there = room.exchange.orders[order.order_id]
    resting_there.held = True
    await room.look(5)
    assert await room.told(order) == ["submitted", "accepted", "unknown"]
    assert room.desk.open_orders() == [order]
    assert room.path.reconciler.idle

    resting_there.held = False
    await room.look(2)
    assert (await room.told(order))[-1] == "accepted"

"""Tests of `sigma9_core.money.exits`: no position stands without a stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sigma9_core.commands import Command, ModifyOrderArgs, OrderArgs, Scope
from sigma9_core.errors import BrokerRefused, CommandError, JournalError
from sigma9_core.models import ApprovedOrder, ExitPlan, OrderStatus
from sigma9_core.money.audit import audit
from sigma9_core.money.orders import Order
from sigma9_core.money.records import NoteRecord
from sigma9_core.testing.money_room import MoneyRoom
from sigma9_core.testing.small_exchange import Resting

PLAN = ExitPlan(time_stop_seconds=180, trail_amount=Decimal("0.15"))


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path) as room:
        yield room


async def test_the_stop_goes_out_with_the_entry(room: MoneyRoom) -> None:
    """Entry and protective stop are one unit at the broker, the stop a child 2 % below the reference."""
    entry = await room.enter(price="10")
    stop = room.working(protective=True)[0]

    assert room.exchange.submitted == [entry.order_id, stop.order_id]
    assert stop.request.parent_id == entry.order_id
    assert stop.request.stop_price == Decimal("9.80")
    assert stop.request.intent == "reduce"


async def test_the_stop_moves_to_the_fill(room: MoneyRoom) -> None:
    """Once the entry has filled, the stop lies 2 % below the price that was paid."""
    entry = await room.enter(price="10")
    await room.fill(entry, "10.50")

    assert room.working(protective=True)[0].request.stop_price == Decimal("10.29")
    assert room.path.portfolio.position("AAPL").protected


async def test_a_stop_whose_move_is_refused_later_is_moved_again(room: MoneyRoom) -> None:
    """The server does not believe that the stop has moved; it tries again after a while, and not at once."""
    entry = await room.enter(price="10")
    room.exchange.faults.add("no_change")
    await room.fill(entry, "10.50")
    stop = room.working(protective=True)[0]
    assert (await room.told(stop)).count("unchanged") == 1
    assert stop.request.stop_price == Decimal("9.80")
    room.exchange.faults.clear()
    await room.tick("AAPL", 10.5, seconds=6)
    await room.desk.settle()

    assert stop.request.stop_price == Decimal("10.29")


async def test_a_partly_filled_entry_keeps_a_stop_of_its_size(room: MoneyRoom) -> None:
    """When the rest of an entry is cancelled, the stop shrinks to what is held."""
    entry = await room.enter(quantity=100)
    await room.fill(entry, "10", 40)
    await room.desk.cancel(entry.order_id)
    await room.desk.settle()

    assert room.working(protective=True)[0].request.quantity == 40


async def test_an_entry_that_never_fills_takes_its_stop_along(room: MoneyRoom) -> None:
    """When the entry ends without a fill, its stop is cancelled and the symbol is free again."""
    entry = await room.enter()
    room.exchange.end(entry.order_id, "rejected", "no")
    await room.desk.settle()

    assert room.desk.open_orders() == []
    assert "AAPL" not in room.exits.guards


async def test_the_trail_starts_at_its_activation(room: MoneyRoom) -> None:
    """At +3 % a trailing stop joins the group of the protective stop; before, there is none."""
    entry = await room.enter(plan=PLAN)
    await room.fill(entry, "10")
    await room.tick("AAPL", 10.29)
    assert room.working(order_type="trailing_stop") == []

    await room.tick("AAPL", 10.30)
    trail = room.working(order_type="trailing_stop")[0]
    stop = room.working(order_type="stop")[0]

    assert trail.request.trail_amount == Decimal("0.15")
    assert trail.request.oca_group == stop.request.oca_group
    assert trail.request.protective


async def test_the_time_stop_leaves_at_the_market(room: MoneyRoom) -> None:
    """After three minutes without the trail the position is sold at the market, in the same group."""
    entry = await room.enter(plan=PLAN)
    await room.fill(entry, "10")
    await room.tick("AAPL", 10.01, seconds=179)
    assert room.working(order_type="market") == []

    await room.tick("AAPL", 10.01, seconds=2)
    leave = room.working(order_type="market")[0]
    await room.fill(leave, "10.01")

    assert room.path.portfolio.quantity("AAPL") == 0
    assert room.desk.open_orders() == []


async def test_the_trail_cancels_the_time_stop(room: MoneyRoom) -> None:
    """With the trail active, time no longer matters."""
    entry = await room.enter(plan=PLAN)
    await room.fill(entry, "10")
    await room.tick("AAPL", 10.40)
    await room.tick("AAPL", 10.35, seconds=600)

    assert room.working(order_type="market") == []


async def test_a_stop_that_vanishes_is_placed_again(room: MoneyRoom) -> None:
    """A position whose stop was cancelled from outside gets another one."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    room.exchange.end(stop.order_id, "cancelled", "by hand")
    await room.desk.settle()

    fresh = room.working(protective=True)[0]
    assert fresh.order_id != stop.order_id
    assert fresh.request.quantity == 100


async def test_a_crash_while_a_stop_is_placed_again_places_no_second_one(
    room: MoneyRoom, mocker: MockerFixture
) -> None:
    """Whose leg an order is, is durable together with its intent: a start does not place another beside it."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    mocker.patch.object(room.exits, "_remember")
    room.exchange.end(stop.order_id, "cancelled", "by hand")
    await room.desk.settle()
    fresh = room.working(protective=True)[0]
    async with await room.crash() as after:
        await after.tick("AAPL", 10, seconds=10)

        assert [order.order_id for order in after.working(protective=True)] == [fresh.order_id]


async def test_a_leg_that_never_was_is_named_by_no_note(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Where the intent of a leg fails, what was noted of the guard meanwhile names no order that is not there."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop, commit = room.working(protective=True)[0], room.journal.commit

    async def fails(records: Any, **more: Any) -> Any:
        if not room.journal.notes("failed", 1):
            room.desk.note([NoteRecord("failed", room.clock.now(), {})])
            await commit([])
            room.exits._remember(room.exits.guards["AAPL"])
            raise JournalError("no room")
        return await commit(records, **more)

    mocker.patch.object(room.journal, "commit", fails)
    room.exchange.end(stop.order_id, "cancelled", "by hand")
    await room.desk.settle()
    assert room.working(protective=True) == []
    assert audit(room.journal).faults == []
    await room.tick("AAPL", 10, seconds=6)
    assert len(room.working(protective=True)) == 1
    assert audit(room.journal).faults == []


async def test_a_position_that_can_t_be_protected_is_closed(room: MoneyRoom) -> None:
    """Where the broker rejects every stop, the position is closed at the market after three tries."""
    room.exchange.faults.add("reject_stops")
    entry = await room.enter()
    await room.fill(entry, "10")
    for _ in range(5):
        await room.tick("AAPL", 10, seconds=6)
    leave = room.working(order_type="market")

    assert len(leave) == 1
    assert leave[0].request.side == "sell"


async def test_one_strategy_owns_a_symbol_at_a_time(room: MoneyRoom) -> None:
    """A second entry in a symbol that is held or being entered is refused."""
    await room.enter()

    with pytest.raises(CommandError, match="AAPL is held or being entered already"):
        await room.enter()


async def test_exits_go_on_after_a_restart(tmp_path: Path) -> None:
    """After a crash the guard is there again: the time stop fires, and the stop is not doubled."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    entry = await room.enter(plan=PLAN)
    await room.fill(entry, "10")
    async with await room.crash() as after:
        assert [o.request.order_type for o in after.desk.open_orders()] == ["stop"]

        await after.tick("AAPL", 10.01, seconds=181)

        assert len(after.working(order_type="market")) == 1


async def test_a_stop_filled_while_we_were_away_is_counted(tmp_path: Path) -> None:
    """A stop that fills while Sigma9 is down is found by its execution, told as recovered, and the guard ends."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    entry = await room.enter(plan=PLAN)
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    after = await room.crash()
    after.exchange.fill(stop.order_id, Decimal("9.80"))
    async with after:
        assert after.path.portfolio.quantity("AAPL") == 0
        assert after.exits.guards == {}
        event = after.events[0].data
        assert (event.event, event.recovered) == (OrderStatus.FILLED, True)  # type: ignore[union-attr]


async def test_a_trail_waits_for_the_whole_entry(room: MoneyRoom) -> None:
    """While the entry is still filling no trail is sent: it would cover a part, and its fill end the stop."""
    entry = await room.enter(plan=PLAN.model_copy(update={"trail_activation_percent": Decimal(0)}))
    await room.fill(entry, "10", 40)
    await room.tick("AAPL", 10.5)
    assert room.working(order_type="trailing_stop") == []

    await room.fill(entry, "10")
    await room.tick("AAPL", 10.5)
    assert room.working(order_type="trailing_stop")[0].request.quantity == 100


async def test_what_an_exit_leaves_gets_a_stop(room: MoneyRoom) -> None:
    """When an exit that was too small takes the stop along, the rest of the position gets a stop of its own."""
    entry = await room.enter(plan=PLAN)
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    await room.fill(stop, "9.80", 60)
    room.exchange.end(stop.order_id, "cancelled", "the exchange gave up")
    await room.desk.settle()

    assert [order.request.quantity for order in room.working(protective=True)] == [Decimal(40)]


async def test_the_time_stop_first_takes_back_the_rest_of_the_entry(room: MoneyRoom) -> None:
    """An entry that still works is cancelled before its position is left."""
    entry = await room.enter(plan=PLAN)
    await room.fill(entry, "10", 40)
    await room.tick("AAPL", 10.01, seconds=181)
    assert entry.status is OrderStatus.CANCELLED

    await room.tick("AAPL", 10.01)
    assert room.working(order_type="market")[0].request.quantity == 40


async def test_a_late_fill_of_the_entry_is_guarded(room: MoneyRoom) -> None:
    """A fill that arrives when the entry and its guard had ended gets a stop at once."""
    entry = await room.enter()
    await room.desk.cancel(entry.order_id)
    await room.desk.settle()
    assert room.exits.guards == {}

    room.exchange.orders[entry.order_id].state = "working"
    await room.fill(entry, "10", 50)

    assert [order.request.quantity for order in room.working(protective=True)] == [Decimal(50)]


async def test_an_entry_that_fills_at_once_is_guarded_whole(room: MoneyRoom) -> None:
    """A fill that comes before the submit has returned starts the clock of the time stop all the same."""
    submit = room.exchange.submit

    async def quick(orders: list[object]) -> None:
        await submit(orders)  # type: ignore[arg-type]
        room.exchange.submit = submit  # type: ignore[method-assign]
        room.exchange.fill(orders[0].order_id, Decimal(10))  # type: ignore[attr-defined]

    room.exchange.submit = quick  # type: ignore[assignment,method-assign]
    await room.enter(plan=PLAN)
    await room.tick("AAPL", 10.01, seconds=181)

    assert len(room.working(order_type="market")) == 1


async def test_a_stop_that_a_person_moved_stays_there(room: MoneyRoom) -> None:
    """A person's change of a stop is kept, and after a restart as well."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    await room.desk.modify(stop.order_id, {"stop_price": Decimal("9.95")})
    await room.tick("AAPL", 10.05)

    assert room.working(protective=True)[0].request.stop_price == Decimal("9.95")


async def test_a_left_over_exit_is_asked_again(room: MoneyRoom) -> None:
    """An exit that can't be cancelled when the position is flat is asked for again until it has ended."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    room.exchange.faults.add("no_cancel")
    leave = (
        await room.desk.submit([stop.request.model_copy(update={"order_type": "market", "stop_price": None})])
    )[0]
    room.exchange.orders[stop.order_id].request = stop.request.model_copy(update={"oca_group": None})
    await room.fill(leave, "10")
    assert stop.working

    room.exchange.faults.clear()
    stop.cancel_asked = False
    await room.tick("AAPL", 10, seconds=6)
    assert stop.status is OrderStatus.CANCELLED
    assert room.exits.guards == {}


def bust(room: MoneyRoom, number: int) -> None:
    """Let the exchange take an execution back, counted from the end."""
    fill = room.exchange.fills[number]
    sign = 1 if fill.side == "buy" else -1
    room.exchange.holdings[fill.symbol] -= sign * fill.quantity
    room.exchange.report("busted", fill.order_id, fill=fill)


async def test_a_position_whose_exit_is_taken_back_is_guarded_again(room: MoneyRoom) -> None:
    """When the exchange takes back the fill of a stop, what is held again has a stop again, at the same price."""
    entry = await room.enter(plan=PLAN)
    await room.fill(entry, "10")
    await room.fill(room.working(protective=True)[0], "9.80")
    assert room.exits.guards == {}
    bust(room, -1)
    await room.desk.settle()

    (stop,) = room.working(protective=True)
    assert (stop.request.quantity, stop.request.stop_price) == (Decimal(100), Decimal("9.80"))
    await room.fill(stop, "9.80")
    assert (room.exits.guards, room.desk.open_orders()) == ({}, [])


async def test_an_exit_that_is_taken_back_after_a_restart_is_guarded_again(room: MoneyRoom) -> None:
    """The last guard with something to guard is remembered, though an entry that never filled came after it."""
    entry = await room.enter()
    await room.fill(entry, "10")
    await room.fill(room.working(protective=True)[0], "9.80")
    never = await room.enter(price="20")
    await room.desk.cancel(never.order_id)
    await room.desk.settle()
    async with await room.crash() as after:
        bust(after, -1)
        await after.until(lambda: after.working(protective=True))

        assert after.working(protective=True)[0].request.stop_price == Decimal("9.80")


async def test_what_an_entry_of_before_a_restart_has_opened_is_guarded(room: MoneyRoom) -> None:
    """A stop of long ago that is taken back leaves a long where a short was guarded: its own entry guards it."""
    entry = await room.enter(quantity=150)
    await room.fill(entry, "10")
    await room.fill(room.working(protective=True)[0], "9.80")
    async with await room.crash() as after:
        await after.fill(await after.enter(side="sell"), "10")
        await after.until(lambda: after.working(protective=True))
        bust(after, 1)
        await after.until(lambda: after.working(protective=True, side="sell"))

        assert (after.path.portfolio.quantity("AAPL"), after.path.unwanted.states) == (Decimal(50), {})
        (stop,) = after.working()
        assert (stop.request.quantity, after.exits.guards["AAPL"].entry_id) == (Decimal(50), entry.order_id)


async def test_what_fills_late_while_the_next_entry_is_refused_is_guarded(
    room: MoneyRoom, mocker: MockerFixture
) -> None:
    """The guard of an entry that comes to nothing leaves no share of an earlier one without a stop."""
    entry = await room.enter()
    await room.desk.cancel(entry.order_id)
    await room.desk.settle()

    async def meanwhile(*_args: Any, **_more: Any) -> None:
        room.exchange.orders[entry.order_id].state = "working"
        room.exchange.fill(entry.order_id, Decimal(10), Decimal(40))
        raise JournalError("the disk is full")

    mocker.patch.object(room.desk, "submit", meanwhile)
    with pytest.raises(JournalError):
        await room.enter()
    mocker.stopall()
    await room.until(lambda: room.working(protective=True))
    assert room.working(protective=True)[0].request.quantity == 40


async def test_the_last_guard_is_remembered_beside_an_entry_that_works(room: MoneyRoom) -> None:
    """A restart while the next entry works forgets the last guard no more than one after its end."""
    entry = await room.enter()
    await room.fill(entry, "10")
    await room.fill(room.working(protective=True)[0], "9.80")
    never = await room.enter(price="20")
    async with await room.crash() as once, await once.crash() as after:
        await after.desk.cancel(never.order_id)
        await after.until(lambda: not after.exits.guards)
        bust(after, -1)
        await after.until(lambda: after.working(protective=True))

        assert after.working(protective=True)[0].request.stop_price == Decimal("9.80")


async def test_the_stop_of_an_entry_that_works_guards_what_that_has_opened_alone(room: MoneyRoom) -> None:
    """Shares that a person adds meanwhile are not called protected by it before the entry has ended."""
    entry = await room.enter()
    await room.fill(entry, "10", 50)
    assert room.path.portfolio.position("AAPL").protected
    await room.fill(await room.buy(quantity=50), "10")
    assert not room.path.portfolio.position("AAPL").protected
    await room.fill(entry, "10", 50)
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)


async def test_a_kill_of_a_strategy_leaves_what_is_not_its_own_guarded(room: MoneyRoom) -> None:
    """Where a strategy's entry is taken back, what a person has added stays, with its stop, whatever is killed."""
    entry = await room.enter()
    await room.fill(entry, "10")
    await room.fill(await room.buy(quantity=50), "10")
    bust(room, 0)
    await room.desk.settle()
    await room.kill.fire(reason="test", source="api", flatten=True, scope=Scope(strategy="test"))
    (stop,) = room.working(protective=True)
    room.exchange.end(stop.order_id, "cancelled", "the exchange has lost it")
    await room.until(lambda: room.working(protective=True))

    assert room.path.portfolio.quantity("AAPL") == 50
    assert room.working(protective=True)[0].request.quantity == 50


async def test_a_sale_of_somebody_else_that_is_taken_back_wakes_no_guard(room: MoneyRoom) -> None:
    """A position without an exit plan gets none from the guard that the symbol had before."""
    entry = await room.enter()
    await room.fill(entry, "10")
    await room.fill(room.working(protective=True)[0], "9.80")
    await room.fill(await room.buy(), "10")
    await room.fill(await room.buy(side="sell", intent="reduce"), "10")
    bust(room, -1)
    await room.desk.settle()

    assert room.path.portfolio.quantity("AAPL") == 100
    assert (room.exits.guards, room.desk.open_orders()) == ({}, [])


async def test_a_guard_that_has_ended_leaves_the_next_one_alone(room: MoneyRoom) -> None:
    """An entry that was cancelled before it was sent does not take the guard of the next entry along."""
    pause, commit = asyncio.Event(), room.journal.commit

    async def slow(records: Any, **more: Any) -> Any:
        found = await commit(records, **more)
        await pause.wait()
        return found

    room.journal.commit = slow  # type: ignore[method-assign]
    first = asyncio.create_task(room.enter())
    await room.until(room.desk.open_orders)
    await room.desk.cancel(room.desk.open_orders()[0].order_id)
    await room.until(lambda: not room.exits.guards)
    second = asyncio.create_task(room.enter())
    await room.until(room.desk.open_orders)
    pause.set()
    await first
    order = await second
    await room.fill(order, "10")

    assert room.exits.guards["AAPL"].entry_id == order.order_id
    assert len(room.working(protective=True)) == 1


async def test_a_position_in_doubt_is_no_proof_against_stops(room: MoneyRoom) -> None:
    """While the symbol is held for its position no stop passes; freed again it gets one, and is not sold."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    room.path.gate.hold({"AAPL": "nobody knows what there is"})
    room.exchange.end(stop.order_id, "cancelled", "by hand")
    for _ in range(5):
        await room.tick("AAPL", 10, seconds=6)
    assert room.desk.open_orders() == []
    room.path.gate.hold({})
    await room.tick("AAPL", 10, seconds=6)

    assert [order.request.order_type for order in room.desk.open_orders()] == ["stop"]


async def test_an_exit_that_came_back_is_guarded_over_a_restart(room: MoneyRoom) -> None:
    """A guard that a bust has brought back is remembered at once, whether or not its stop could be sent."""
    entry = await room.enter()
    await room.fill(entry, "10")
    await room.fill(room.working(protective=True)[0], "9.80")
    room.exchange.faults.add("refuse")
    bust(room, -1)
    await room.desk.settle()
    after = await room.crash()
    after.exchange.faults.clear()
    async with after:
        await after.until(lambda: after.working(protective=True))


async def test_a_leftover_exit_whose_cancel_was_lost_goes_in_the_end(room: MoneyRoom) -> None:
    """A cancel that the broker swallows is asked for again once a read-back shows that the order works."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    room.exchange.faults.add("no_cancel")
    leave = stop.request.model_copy(
        update={"order_type": "market", "stop_price": None, "protective": False, "oca_group": "other"}
    )
    order = Order("by-hand", leave, (), room.clock.now())
    room.desk.orders["by-hand"] = order
    room.exchange.orders["by-hand"] = Resting("by-hand", "77", leave)
    room.exchange.fill("by-hand", Decimal(10))
    await room.desk.settle()
    assert not room.path.portfolio.quantity("AAPL")
    assert stop.working
    assert stop.cancel_asked

    room.exchange.faults.clear()
    await room.path.reconciler.resolve_unknown(room.path.link)
    await room.tick("AAPL", 10, seconds=6)
    assert stop.status is OrderStatus.CANCELLED


async def sell(room: MoneyRoom, quantity: int, price: str) -> Order:
    """Sell with a limit as a person does."""
    args = OrderArgs(
        symbol="AAPL", side="sell", quantity=Decimal(quantity), order_type="limit", limit_price=Decimal(price)
    )
    command = Command("place_order", {}, "api", id="c1")
    answer = await room.path.place(args, command, [])
    return room.desk.orders[answer["order"]["order_id"]]


@pytest.mark.parametrize("first", ["a person's exit", "the stop"])
async def test_every_exit_of_the_group_is_kept_in_line(room: MoneyRoom, first: str) -> None:
    """What a person's exit or the stop has sold in part, no other exit of the group sells once more."""
    entry = await room.enter()
    await room.fill(entry, "10")
    near, far = await sell(room, 100, "11"), await sell(room, 100, "12")
    stop = room.working(protective=True)[0]
    if first == "the stop":
        await room.fill(stop, "9", 40)
    else:
        await room.fill(near, "11", 40)
        await room.path.cancel(near.order_id)
    await room.desk.settle()

    assert {order.remaining for order in room.desk.open_orders()} == {Decimal(60)}
    await room.fill(far, "12")
    assert room.path.portfolio.quantity("AAPL") == 0
    assert room.exchange.holdings["AAPL"] == 0


async def test_an_exit_for_a_part_stays_one(room: MoneyRoom) -> None:
    """A person's exit for a part of a position is not made one for all of it."""
    entry = await room.enter()
    await room.fill(entry, "10")
    part = await sell(room, 30, "11")
    await room.tick("AAPL", 10)

    assert part.request.quantity == 30
    await room.fill(part, "11", 10)
    assert (part.remaining, room.working(protective=True)[0].remaining) == (Decimal(20), Decimal(90))


async def test_an_exit_beside_an_entry_is_kept_in_line(room: MoneyRoom) -> None:
    """While the entry still fills, a person's exit is no larger than what is held; of nothing it goes."""
    entry = await room.enter(order_type="limit", limit_price=Decimal(10))
    await room.fill(entry, "10", 40)
    mine = await sell(room, 40, "11")
    stop = room.working(protective=True)[0]
    await room.fill(stop, "9", 10)
    assert (mine.remaining, stop.remaining) == (Decimal(30), Decimal(90))

    await room.fill(stop, "9", 30)
    assert mine.status is OrderStatus.CANCELLED
    assert stop.remaining == 60


@pytest.mark.parametrize(("quantity", "filled"), [(200, 150), (80, 60)])
async def test_the_stop_follows_a_change_of_its_entry(room: MoneyRoom, quantity: int, filled: int) -> None:
    """An entry that is changed takes its stop along, so that nothing of it stands without one, or beyond it."""
    entry = await room.enter(order_type="limit", limit_price=Decimal(10))
    args = ModifyOrderArgs(order_id=entry.order_id, quantity=Decimal(quantity))
    answer = await room.path.modify(args, Command("modify_order", {}, "api", id="c1"), [])
    stop = room.working(protective=True)[0]

    assert answer["legs"] == [stop.order_id]
    assert stop.request.quantity == quantity
    await room.fill(entry, "10", filled)
    assert stop.request.quantity == quantity
    assert room.path.portfolio.position("AAPL").protected


async def test_a_stop_that_is_too_small_protects_nothing(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Where the stop could not follow its entry, the position is not called protected."""
    entry = await room.enter(order_type="limit", limit_price=Decimal(10))
    replace = room.exchange.replace

    async def refuses(order: ApprovedOrder) -> None:
        if order.request.protective:
            raise BrokerRefused("no changes of stops here")
        await replace(order)

    mocker.patch.object(room.exchange, "replace", refuses)
    await room.desk.modify(entry.order_id, {"quantity": Decimal(200)})
    await room.fill(entry, "10", 100)
    assert room.path.portfolio.position("AAPL").protected

    await room.fill(entry, "10", 50)
    assert not room.path.portfolio.position("AAPL").protected
    mocker.stopall()
    await room.tick("AAPL", 10, seconds=6)
    assert room.path.portfolio.position("AAPL").protected


async def test_a_refused_change_of_size_leaves_the_stop_where_a_person_put_it(
    room: MoneyRoom, mocker: MockerFixture
) -> None:
    """A stop that a person has moved stays there, also where a change of its quantity was refused."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    await room.desk.modify(stop.order_id, {"stop_price": Decimal("9.5")})
    mocker.patch.object(room.exchange, "replace", side_effect=BrokerRefused("not now"))
    await room.fill(stop, "9.5", 40)
    mocker.stopall()
    await sell(room, 10, "11")
    await room.fill(room.working(order_type="limit")[0], "11", 5)
    await room.tick("AAPL", 10, seconds=6)

    assert (stop.remaining, stop.request.stop_price) == (Decimal(55), Decimal("9.5"))


async def test_a_stop_that_fills_before_its_entry_is_heard_is_not_made_larger(room: MoneyRoom) -> None:
    """What it has closed shows that the entry has filled: it may close the rest of that, and no more."""
    entry = await room.enter(quantity=100)
    (stop,) = room.working(protective=True)
    listener, room.exchange.listener = room.exchange.listener, None
    room.exchange.fill(entry.order_id, Decimal(10))
    room.exchange.listener = listener
    room.exchange.fill(stop.order_id, Decimal("9.8"), Decimal(25))
    await room.until(lambda: room.path.portfolio.quantity("AAPL") == -25)
    await room.desk.settle()

    assert room.exchange.orders[stop.order_id].request.quantity == 100


async def test_a_lone_stop_shrinks_with_its_position(room: MoneyRoom) -> None:
    """No guard looks after a person's own stop; beyond what is held it would open a position."""
    await room.fill(await room.buy(), "10")
    stop = await room.buy(
        side="sell", order_type="stop", stop_price=Decimal(9), intent="reduce", protective=True, source="api"
    )
    await room.fill(await room.buy(quantity=40, side="sell"), "10")
    await room.until(lambda: room.exchange.orders[stop.order_id].request.quantity == 60)
    await room.fill(await room.buy(quantity=60, side="sell"), "10")
    await room.until(lambda: not stop.working)


async def test_a_lone_close_that_could_not_be_taken_back_goes_at_the_next_look(
    room: MoneyRoom, mocker: MockerFixture
) -> None:
    """Where its cancel is refused at first, the look that comes every few seconds asks again."""
    await room.fill(await room.buy(), "10")
    leave = await room.buy(side="sell", order_type="limit", limit_price=Decimal(11), intent="reduce")
    refusing = mocker.patch.object(room.exchange, "cancel", side_effect=BrokerRefused("not now"))
    await room.fill(await room.buy(quantity=100, side="sell"), "10")
    await room.until(lambda: refusing.called)
    await room.desk.settle()
    assert leave.working

    mocker.stopall()
    room.path.exits.keep_within_books()
    await room.until(lambda: not leave.working)


async def turned(room: MoneyRoom, *, told: bool) -> None:
    """Let an entry that was cancelled fill late, and turn the short of 30 that came after it into 50 long."""
    first = await room.enter(quantity=100)
    await room.fill(first, "10", 20)
    await room.desk.cancel(first.order_id)
    await room.desk.settle()
    (stop,) = room.working(protective=True)
    await room.fill(stop, "9.8")
    await room.until(lambda: "AAPL" not in room.path.exits.guards)
    await room.fill(await room.enter(quantity=30, side="sell"), "10")
    room.exchange.orders[first.order_id].state = "working"
    if not told:
        room.exchange.listener = None
    room.exchange.fill(first.order_id, Decimal(10), Decimal(80))


async def stop_of(room: MoneyRoom) -> tuple[str, Decimal, Decimal | None]:
    """Wait until the position is protected; give the side, size and price of its stop."""
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)
    (stop,) = room.working(protective=True)
    return stop.request.side, stop.request.quantity, stop.request.stop_price


async def test_what_turns_a_position_under_another_guard_is_guarded(room: MoneyRoom) -> None:
    """An entry that had been cancelled fills late under the guard of the next one: it has a plan of its own."""
    await turned(room, told=True)
    assert await stop_of(room) == ("sell", Decimal(50), Decimal("9.80"))


async def test_what_turned_a_position_while_away_is_guarded(tmp_path: Path) -> None:
    """The fill is learnt by the next start, which takes the other guard up first."""
    async with MoneyRoom(tmp_path) as room:
        await turned(room, told=False)
        after = await room.crash()
    async with after:
        assert await stop_of(after) == ("sell", Decimal(50), Decimal("9.80"))

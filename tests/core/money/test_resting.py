"""Tests of exits that rest at a broker which keeps to their terms by itself, whether or not the server runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sigma9_core.commands import CancelAllArgs, CloseArgs, Command
from sigma9_core.contracts import KEPT
from sigma9_core.errors import BrokerRefused, CommandError
from sigma9_core.models import Adjustment, ApprovedOrder, ExitPlan, OrderRequest, OrderStatus, Slice, Split, Trade
from sigma9_core.money.audit import audit
from sigma9_core.money.orders import Order
from sigma9_core.testing.money_room import MoneyRoom

PLAN = ExitPlan(time_stop_seconds=180, trail_amount=Decimal("0.15"))


def adjustment(trigger: str, stop: str, **distance: str) -> Adjustment:
    """Build an adjustment; without a distance it is the plan's."""
    terms = {name: Decimal(value) for name, value in (distance or {"trail_amount": "0.15"}).items()}
    return Adjustment(trigger_price=Decimal(trigger), stop_price=Decimal(stop), **terms)


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path) as room:
        room.exchange.keeps = frozenset(KEPT)
        yield room


async def held(room: MoneyRoom, price: str = "10", plan: ExitPlan = PLAN) -> Order:
    """Enter and fill at a price."""
    entry = await room.enter(plan=plan)
    await room.fill(entry, price)
    return entry


def stop_of(room: MoneyRoom) -> Order:
    """Give the one order that protects."""
    (stop,) = room.working(protective=True)
    return stop


def resting(room: MoneyRoom) -> list[Order]:
    """List the time stops that wait for their time."""
    return [order for order in room.desk.open_orders() if order.request.good_after is not None]


async def test_the_stop_carries_the_trail(room: MoneyRoom) -> None:
    """The stop that goes out with the entry says what it is to become, by the price that was decided on."""
    await room.enter(plan=PLAN)

    assert stop_of(room).request.adjustment == adjustment("10.30", "10.15")
    assert resting(room) == []


async def test_trigger_and_stop_move_to_the_fill(room: MoneyRoom) -> None:
    """Once the entry has filled, the stop and its trigger lie where the price that was paid wants them."""
    await held(room, "10.50")

    assert stop_of(room).request.stop_price == Decimal("10.29")
    assert stop_of(room).request.adjustment == adjustment("10.82", "10.67")
    sent = room.exchange.orders[stop_of(room).order_id].request
    assert (sent.stop_price, sent.adjustment) == (Decimal("10.29"), adjustment("10.82", "10.67"))


async def test_a_trail_by_percent(room: MoneyRoom) -> None:
    """A distance in percent is one at the broker, too."""
    plan = ExitPlan(trail_percent=Decimal(1), trail_activation_percent=Decimal(0))
    await held(room, plan=plan)

    assert stop_of(room).request.adjustment == adjustment("10.00", "9.90", trail_percent="1")


async def test_the_trail_never_begins_behind_the_stop(room: MoneyRoom) -> None:
    """A wide trail begins where the stop is: to start it must not cost protection."""
    await held(room, plan=ExitPlan(trail_amount=Decimal(1), trail_activation_percent=Decimal(1)))

    assert stop_of(room).request.adjustment == adjustment("10.10", "9.80", trail_amount="1")


async def test_a_short_position(room: MoneyRoom) -> None:
    """For a short everything lies on the other side."""
    request = OrderRequest(symbol="AAPL", side="sell", quantity=Decimal(100), strategy="test", exit_plan=PLAN)
    (entry, stop) = await room.path.enter(request, Decimal(10))
    await room.fill(entry, "10")

    assert stop.request.adjustment == adjustment("9.70", "9.85")
    assert [order.request.side for order in resting(room)] == ["buy"]


async def test_the_time_stop_rests_once_the_entry_has_filled(room: MoneyRoom) -> None:
    """It is for what is held, counts from the first fill, and is in the group of the stop."""
    entry = await room.enter(plan=PLAN)
    begun = room.clock.now()
    await room.fill(entry, "10", 40)
    assert resting(room) == []

    room.clock.advance(begun + timedelta(seconds=20))
    await room.fill(entry, "10")
    (rest,) = resting(room)
    assert rest.request.good_after == begun + timedelta(seconds=180)
    assert (rest.request.order_type, rest.request.time_in_force) == ("market", "gtc")
    assert rest.request.quantity == 100
    assert rest.request.oca_group == stop_of(room).request.oca_group
    assert not rest.request.protective
    assert rest.view().good_after == rest.request.good_after


async def test_the_server_sends_neither_a_second_time(room: MoneyRoom) -> None:
    """Beyond the trigger, and after the time, the orders at the broker are left to do it."""
    await held(room)
    sent = [*room.exchange.submitted]
    await room.tick("AAPL", 10.40)
    await room.tick("AAPL", 10.40, seconds=200)
    await room.tick("AAPL", 10.40, seconds=20)

    assert room.exchange.submitted == sent


async def test_an_adjusted_stop_is_the_trail(room: MoneyRoom) -> None:
    """What the broker has made of the stop is known as a trailing stop; time then no longer matters."""
    await held(room)
    stop, (rest,) = stop_of(room), resting(room)
    sent = [*room.exchange.submitted]
    room.exchange.adjust(stop.order_id)
    await room.desk.settle()

    assert (stop.request.order_type, stop.request.trail_amount) == ("trailing_stop", Decimal("0.15"))
    assert (stop.request.stop_price, stop.request.adjustment) == (None, None)
    assert (await room.told(stop))[-1] == "replaced"
    assert room.path.portfolio.position("AAPL").protected
    assert rest.status is OrderStatus.CANCELLED
    assert audit(room.journal).faults == []
    await room.tick("AAPL", 10.50, seconds=200)
    await room.fill(stop, "10.35", 60)
    assert stop.remaining == 40
    assert room.exchange.submitted == sent
    await room.fill(stop, "10.35")
    assert (room.exits.guards, room.desk.open_orders()) == ({}, [])


async def test_an_adjustment_that_is_told_twice_or_late(room: MoneyRoom) -> None:
    """The same adjustment once more, or after the end of the order, changes nothing."""
    await held(room)
    stop = stop_of(room)
    room.exchange.adjust(stop.order_id)
    room.exchange.report("adjusted", stop.order_id)
    await room.fill(stop, "10.35")
    room.exchange.report("adjusted", stop.order_id)
    await room.desk.settle()

    assert (await room.told(stop)).count("replaced") == 1
    assert stop.status is OrderStatus.FILLED


async def test_both_stay_as_large_as_the_position(room: MoneyRoom) -> None:
    """What one exit has closed in part, no other closes once more."""
    await held(room)
    stop, (rest,) = stop_of(room), resting(room)
    await room.fill(stop, "9.80", 30)

    assert (stop.remaining, rest.remaining) == (Decimal(70), Decimal(70))
    assert rest.request.good_after is not None


async def test_a_resting_time_stop_guards_nothing(room: MoneyRoom) -> None:
    """A position with nothing but a time stop is not protected, and gets a stop, also beside one that is due."""
    await held(room)
    stop = stop_of(room)
    room.exchange.faults.add("reject_stops")
    room.exchange.end(stop.order_id, "cancelled", "by hand")
    await room.desk.settle()
    assert len(resting(room)) == 1
    assert not room.path.portfolio.position("AAPL").protected

    room.exchange.faults.clear()
    await room.tick("AAPL", 10, seconds=200)
    assert stop_of(room).request.stop_price == Decimal("9.80")
    assert room.path.portfolio.position("AAPL").protected


async def test_a_person_closes_beside_a_resting_time_stop(room: MoneyRoom) -> None:
    """It is no close that is under way, and takes no quantity from one; once it is due it is one."""
    await held(room)
    (rest,) = resting(room)
    command = Command("close_position", {}, "api", id="c1")
    answer = await room.path.close(CloseArgs(symbol="AAPL"), command, [])
    close = room.desk.orders[answer["orders"][0]["order_id"]]
    assert close.request.quantity == 100
    await room.fill(close, "10.05")
    assert rest.status is OrderStatus.CANCELLED
    assert room.path.portfolio.quantity("AAPL") == 0
    assert room.desk.open_orders() == []

    await held(room)
    room.clock.advance(room.clock.now() + timedelta(seconds=200))
    with pytest.raises(CommandError, match="being closed already"):
        await room.path.close(CloseArgs(symbol="AAPL"), command, [])


async def test_a_time_stop_that_a_person_cancels(room: MoneyRoom) -> None:
    """Alone it comes again, as a stop does; with all exits it stays away."""
    await held(room)
    (rest,) = resting(room)
    await room.path.cancel(rest.order_id)
    assert resting(room) == []
    await room.tick("AAPL", 10, seconds=6)
    assert [order.request.good_after for order in resting(room)] == [rest.request.good_after]

    await room.path.cancel_all(CancelAllArgs(protective=True))
    await room.tick("AAPL", 10, seconds=6)
    assert room.desk.open_orders() == []


async def test_a_kill_takes_a_resting_time_stop_along(room: MoneyRoom) -> None:
    """A flattening kill cancels it like every exit; a halt leaves it, as it leaves the stop."""
    await held(room)
    (rest,) = resting(room)
    await room.kill.fire(reason="test", source="api", flatten=False)
    await room.desk.settle()
    assert rest.working

    await room.kill.fire(reason="test", source="api", flatten=True)
    (close,) = await room.closing()
    assert rest.status is OrderStatus.CANCELLED
    await room.fill(close, "10")
    await room.until(lambda: room.kill.body()["phase"] == "done")
    assert await room.exchange.open_orders() == []


class Refusing:
    """Has an exchange turn down what has one of the terms."""

    def __init__(self, room: MoneyRoom, mocker: MockerFixture, term: str) -> None:
        self.refused: list[str] = []
        submit = room.exchange.submit

        async def some(orders: list[ApprovedOrder]) -> None:
            await submit(orders)
            for order in orders:
                if getattr(order.request, term) is not None:
                    self.refused.append(order.order_id)
                    room.exchange.end(order.order_id, "rejected", "not on this exchange")

        mocker.patch.object(room.exchange, "submit", some)


async def test_a_time_stop_that_may_not_rest(
    room: MoneyRoom, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that refuses it is asked once; the server leaves at the time, here and in the next position."""
    refusing = Refusing(room, mocker, "good_after")
    await held(room)
    await room.tick("AAPL", 10, seconds=60)
    assert len(refusing.refused) == 1
    assert room.working(order_type="market") == []

    await room.tick("AAPL", 10, seconds=121)
    (leave,) = room.working(order_type="market")
    await room.fill(leave, "10")
    await held(room)
    await room.tick("AAPL", 10, seconds=181)
    assert len(room.working(order_type="market")) == 1
    assert len(refusing.refused) == 1
    told = [record.getMessage() for record in caplog.records if "by itself" in record.getMessage()]
    assert len(told) == 1
    assert "the time stop at rest of AAPL was refused (not on this exchange)" in told[0]


async def test_a_stop_that_may_not_carry_a_trail(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Another one without it is placed at once; the server starts the trail, and the next stop is plain too."""
    refusing = Refusing(room, mocker, "adjustment")
    await held(room)
    stop = stop_of(room)
    assert (stop.request.adjustment, len(refusing.refused)) == (None, 1)

    await room.tick("AAPL", 10.31)
    (trail,) = room.working(order_type="trailing_stop")
    assert resting(room) == []
    await room.fill(trail, "10.20")
    await room.enter(plan=PLAN)
    assert stop_of(room).request.adjustment is None
    assert len(refusing.refused) == 1


async def test_terms_that_the_broker_does_not_keep_are_never_sent(room: MoneyRoom) -> None:
    """An order that is to wait must not go to a broker that would trade at once."""
    room.exchange.keeps = frozenset()
    await held(room)
    assert (stop_of(room).request.adjustment, resting(room)) == (None, [])
    later = room.clock.now() + timedelta(minutes=5)
    sell = await room.buy(
        side="sell", intent="reduce", good_after=later, oca_group=stop_of(room).request.oca_group
    )

    assert sell.status is OrderStatus.REJECTED
    assert "does not keep to good_after" in str(sell.reason)
    assert sell.order_id not in room.exchange.submitted


async def test_what_happens_while_it_is_down(room: MoneyRoom) -> None:
    """A stop that was adjusted meanwhile is the same order, and what rests is neither doubled nor forgotten."""
    await held(room)
    stop, (rest,) = stop_of(room), resting(room)
    sent = [*room.exchange.submitted]
    after = await room.crash()
    after.exchange.adjust(stop.order_id)
    async with after:
        await after.until(lambda: after.desk.orders[rest.order_id].status is OrderStatus.CANCELLED)
        known = after.desk.orders[stop.order_id]
        assert (known.request.order_type, known.request.trail_amount) == ("trailing_stop", Decimal("0.15"))
        assert after.path.portfolio.position("AAPL").protected
        note = next(iter(after.journal.notes("reconciliation", 1)))
        assert note.body["orders"] == {stop.order_id: "adjusted"}
        await after.tick("AAPL", 10.5, seconds=200)
        assert after.exchange.submitted == sent
        async with await after.crash() as again:
            known = again.desk.orders[stop.order_id]
            assert (known.request.order_type, known.request.adjustment) == ("trailing_stop", None)
            assert [order.order_id for order in again.desk.open_orders()] == [stop.order_id]


@pytest.mark.parametrize("which", ["the trail", "the time stop"])
async def test_what_closes_while_it_is_down(room: MoneyRoom, which: str) -> None:
    """A trail or a time stop that fills without the server is counted, and nothing is left working."""
    await held(room)
    stop, (rest,) = stop_of(room), resting(room)
    after = await room.crash()
    if which == "the trail":
        after.exchange.adjust(stop.order_id)
        after.exchange.fill(stop.order_id, Decimal("10.20"))
    else:
        after.exchange.fill(rest.order_id, Decimal("10.20"))
    async with after:
        assert after.path.portfolio.quantity("AAPL") == 0
        assert (after.exits.guards, after.desk.open_orders()) == ({}, [])
        assert await after.exchange.open_orders() == []
        assert len(after.exchange.fills) == 2


async def test_a_crash_before_the_time_stop_is_at_rest(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A start sends the one that is missing, for the same time."""
    begun = room.clock.now()
    mocker.patch.object(room.exits, "_rest")
    await held(room)
    room.clock.advance(begun + timedelta(seconds=30))
    async with await room.crash() as after:
        await after.until(lambda: resting(after))
        assert [order.request.good_after for order in resting(after)] == [begun + timedelta(seconds=180)]


async def test_a_time_stop_that_is_nearly_due_is_not_sent_to_rest(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A time that has passed is no time to wait for: the server leaves by itself."""
    mocker.patch.object(room.exits, "_rest")
    await held(room)
    room.clock.advance(room.clock.now() + timedelta(seconds=179))
    async with await room.crash() as after:
        assert resting(after) == []
        await after.tick("AAPL", 10, seconds=2)
        assert [order.request.good_after for order in after.working(order_type="market")] == [None]


async def test_a_split(room: MoneyRoom) -> None:
    """Both are placed anew, for the new shares and the new prices."""
    entry = await held(room)
    before = resting(room)[0].request.good_after
    room.exchange.holdings["AAPL"] *= 2
    room.clock.advance(room.clock.now() + timedelta(seconds=10))
    now = room.clock.now()
    split = Split("AAPL", now, Decimal(2))
    await room.path.on_market(Slice(now, trades=(Trade("AAPL", now, 5.0, 100.0),), splits=(split,)))
    await room.tick("AAPL", 5, seconds=6)
    (rest,) = resting(room)

    assert (rest.request.quantity, rest.request.good_after) == (Decimal(200), before)
    assert stop_of(room).request.adjustment == adjustment("5.15", "5.08", trail_amount="0.075")
    assert entry.average_price == 10


async def test_a_person_moves_the_stop(room: MoneyRoom) -> None:
    """A stop that is moved nearer takes along where its trail begins, and keeps its trigger."""
    await held(room)
    stop = stop_of(room)
    await room.desk.modify(stop.order_id, {"stop_price": Decimal("10.20")})
    await room.tick("AAPL", 10.25)
    assert (stop.request.stop_price, stop.request.adjustment) == (Decimal("10.20"), adjustment("10.30", "10.20"))

    room.exchange.adjust(stop.order_id)
    room.exchange.end(stop.order_id, "cancelled", "by hand")
    await room.desk.settle()
    assert stop_of(room).request.stop_price == Decimal("10.20")


async def test_a_change_that_an_adjustment_overtakes(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A stop that has become a trail while its change was written down is not made a stop again."""
    await held(room)
    stop, commit = stop_of(room), room.journal.commit

    async def adjusts(records: Any, **more: Any) -> Any:
        found = await commit(records, **more)
        if stop.request.adjustment is not None:
            room.exchange.adjust(stop.order_id)
        return found

    mocker.patch.object(room.journal, "commit", adjusts)
    with pytest.raises(CommandError, match="was not sent: the broker has made a trailing_stop of it"):
        await room.desk.modify(stop.order_id, {"stop_price": Decimal("9.90")})
    assert room.exchange.orders[stop.order_id].request.order_type == "trailing_stop"


async def test_a_change_that_arrives_after_the_adjustment(room: MoneyRoom) -> None:
    """Where the broker has made a stop of the trail again, a read-back says so, and knows what it is to become."""
    await held(room)
    stop = stop_of(room)
    before = stop.request
    room.exchange.adjust(stop.order_id)
    room.exchange.orders[stop.order_id].request = before.model_copy(update={"stop_price": Decimal("9.85")})
    await room.path.reconciler.run(room.path.link)
    assert (stop.request.order_type, stop.request.stop_price) == ("stop", Decimal("9.85"))
    assert stop.request.adjustment == before.adjustment


async def test_an_exit_that_is_taken_back(room: MoneyRoom) -> None:
    """When the fill of the trail is busted, the position has its stop with the trail again, and its time stop."""
    await held(room)
    stop = stop_of(room)
    room.exchange.adjust(stop.order_id)
    await room.fill(stop, "10.20")
    fill = room.exchange.fills[-1]
    room.exchange.holdings["AAPL"] += fill.quantity
    room.exchange.report("busted", fill.order_id, fill=fill)
    await room.desk.settle()

    assert stop_of(room).request.adjustment == adjustment("10.30", "10.15")
    assert [order.request.quantity for order in resting(room)] == [Decimal(100)]


async def test_a_refusal_while_the_broker_is_cut_off_proves_nothing(
    room: MoneyRoom, mocker: MockerFixture
) -> None:
    """What was refused because nothing can be sent is sent to rest later."""
    entry = await room.enter(plan=PLAN)
    submit = room.exchange.submit

    async def refuses(orders: list[ApprovedOrder]) -> None:
        room.exits.waits = lambda: True
        raise BrokerRefused("the line is down")

    waits = room.exits.waits
    mocker.patch.object(room.exchange, "submit", refuses)
    await room.fill(entry, "10")
    assert resting(room) == []
    room.exits.waits = waits
    mocker.patch.object(room.exchange, "submit", submit)
    await room.tick("AAPL", 10, seconds=6)
    assert len(resting(room)) == 1

"""Tests of `sigma9_core.money.desk`: decided once, written down, sent once, followed to the end."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sigma9_core.commands import Command, KillArgs
from sigma9_core.errors import CommandError, JournalError
from sigma9_core.models import ApprovedOrder, Fill, OrderRequest, OrderStatus
from sigma9_core.money import desk as desk_module
from sigma9_core.money.audit import audit
from sigma9_core.money.desk import Step
from sigma9_core.money.exposure import reserved
from sigma9_core.money.journal import Journal
from sigma9_core.money.orders import Order
from sigma9_core.testing.journal_places import Commits, FilePlace, Outcome, Place, ServerPlace
from sigma9_core.testing.money_room import OPEN, AllowAll, MoneyRoom
from sigma9_core.testing.postgres_server import PostgresServer
from sigma9_plugins.risk.commitments import committed
from sigma9_plugins.risk.day_trades import DayTrades, DayTradesConfig
from sigma9_plugins.risk.max_open import MaxOpen, MaxOpenConfig
from sigma9_plugins.risk.self_trade import SelfTrade
from sigma9_plugins.risk.signal_age import SignalAge, SignalAgeConfig


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path, rule=AllowAll(refuses="NOPE")) as room:
        yield room


async def test_the_intent_is_durable_before_the_broker_sees_it(room: MoneyRoom) -> None:
    """When the exchange gets an order, its intent can be read from the journal already."""
    seen: list[bool] = []
    submit = room.exchange.submit

    async def spy(orders: list[object]) -> None:
        seen.extend(room.journal.intent(order.order_id) is not None for order in orders)  # type: ignore[attr-defined]
        await submit(orders)  # type: ignore[arg-type]

    room.exchange.submit = spy  # type: ignore[assignment,method-assign]
    await room.buy()

    assert seen == [True]


async def test_an_order_goes_through_its_life(room: MoneyRoom) -> None:
    """An order is submitted, accepted, filled in parts and filled, each told once, in order, from the journal."""
    order = await room.buy()
    await room.fill(order, "10", 40)
    await room.fill(order, "11")

    assert await room.told(order) == ["submitted", "accepted", "partially_filled", "filled"]
    assert room.path.portfolio.quantity("AAPL") == 100
    assert [e.seq for e in room.events] == list(range(1, len(room.events) + 1))


async def test_a_refused_order_is_told_and_never_sent(room: MoneyRoom) -> None:
    """What a rule refuses is journalled with its verdicts, told as risk_rejected, and never sent."""
    order = await room.buy("NOPE")

    assert order.status is OrderStatus.RISK_REJECTED
    assert order.rule == "allow_all"
    assert await room.told(order) == ["risk_rejected"]
    assert room.exchange.submitted == []
    intent = room.journal.intent(order.order_id)
    assert intent is not None
    assert not intent.approved


async def test_a_group_is_sent_whole_or_not_at_all(room: MoneyRoom) -> None:
    """Where one order of a group is refused, none of it is sent, and all of it is told as risk_rejected."""
    entry = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(10))
    leg = OrderRequest(symbol="NOPE", side="sell", quantity=Decimal(10))
    orders = await room.desk.submit([entry, leg])

    assert [order.status for order in orders] == [OrderStatus.RISK_REJECTED] * 2
    assert room.exchange.submitted == []
    assert room.desk.open_orders() == []


async def test_a_failing_journal_sends_nothing(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Where the intent can't be made durable, the order is not sent, not counted, and the caller hears why."""

    async def full(*_: object, **__: object) -> None:
        raise JournalError("disk full")

    mocker.patch.object(room.journal, "commit", full)
    with pytest.raises(JournalError, match="disk full"):
        await room.buy()

    assert room.exchange.submitted == []
    assert room.desk.open_orders() == []
    assert room.desk.view().entries_today == 0


async def test_a_refusal_by_the_broker_ends_the_order(room: MoneyRoom) -> None:
    """BrokerRefused means: dead, and told as rejected."""
    room.exchange.faults.add("refuse")
    order = await room.buy()

    assert await room.told(order) == ["submitted", "rejected"]


@pytest.mark.parametrize("fault", ["raise", "lost_ack", "hang"])
async def test_silence_is_unknown_and_never_a_rejection(
    room: MoneyRoom, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error or silence on submit makes the order unknown: it counts as working and is not sent again."""
    monkeypatch.setattr(desk_module, "SUBMIT_TIMEOUT", 0.05)
    room.exchange.faults.add(fault)  # type: ignore[arg-type]
    order = await room.buy()

    assert order.status is OrderStatus.UNKNOWN
    assert (await room.told(order))[-1] == "unknown"
    assert order in room.desk.open_orders()
    assert len(room.exchange.submitted) <= 1


async def test_an_unknown_order_is_settled_by_reading_back(room: MoneyRoom) -> None:
    """An order whose acknowledgement was lost is found at the broker; one that never arrived is rejected."""
    room.exchange.faults.add("lost_ack")
    arrived = await room.buy()
    room.exchange.faults = {"raise"}
    lost = await room.buy("MSFT")
    room.exchange.faults.clear()
    await room.path.reconciler.resolve_unknown(room.path.link)

    assert arrived.status is OrderStatus.ACCEPTED
    assert lost.status is OrderStatus.REJECTED
    assert room.exchange.submitted == [arrived.order_id]


async def test_an_order_on_its_way_is_not_settled_by_a_read_back(room: MoneyRoom) -> None:
    """A read-back in the middle of a submit leaves that order alone: its own answer says what became of it."""
    gate = asyncio.Event()
    submit = room.exchange.submit

    async def slow(orders: list[object]) -> None:
        await gate.wait()
        await submit(orders)  # type: ignore[arg-type]

    room.exchange.submit = slow  # type: ignore[assignment,method-assign]
    sending = asyncio.create_task(room.buy())
    await room.until(lambda: room.desk.in_flight)
    await room.path.reconciler.run(room.path.link)
    gate.set()
    order = await sending

    assert order.status is OrderStatus.ACCEPTED


async def test_a_doubled_report_counts_once(room: MoneyRoom) -> None:
    """Reports that come twice change nothing the second time: one fill, one event."""
    room.exchange.faults.add("doubled")
    order = await room.buy()
    await room.fill(order, "10")

    assert await room.told(order) == ["submitted", "accepted", "filled"]
    assert room.path.portfolio.quantity("AAPL") == 100
    assert len(list(room.journal.fills())) == 1


async def test_the_gate_counts_an_order_from_its_decision_on(room: MoneyRoom) -> None:
    """Orders that are decided side by side see each other: each decision counts the ones before it."""
    counted: list[int] = []
    decide = room.path.gate.decide

    async def spy(order_id: str, request: OrderRequest, view: object, **more: object) -> object:
        counted.append(len(view.working))  # type: ignore[attr-defined]
        return await decide(order_id, request, view, **more)  # type: ignore[arg-type]

    room.path.gate.decide = spy  # type: ignore[assignment,method-assign]
    await asyncio.gather(*(room.buy(symbol) for symbol in ("A", "B", "C", "D")))

    assert counted == [0, 1, 2, 3]


async def test_nothing_leaves_once_the_gate_has_closed(room: MoneyRoom) -> None:
    """A kill that comes while an intent is being written stops the order before it is sent."""
    commit = room.journal.commit

    async def slow(*records: object, **more: object) -> object:
        done = await commit(*records, **more)  # type: ignore[arg-type]
        room.path.gate.close(None)
        return done

    room.journal.commit = slow  # type: ignore[assignment,method-assign]
    order = await room.buy()
    room.path.gate.reopen(None)

    assert room.exchange.submitted == []
    assert await room.told(order) == ["submitted", "cancelled"]


async def test_orders_of_one_commit_leave_one_at_a_time(room: MoneyRoom) -> None:
    """Orders whose intents one commit has written do not leave in one go: other work comes in between."""
    rounds: list[int] = []
    now = 0

    async def count() -> None:
        nonlocal now
        while True:
            now += 1
            await asyncio.sleep(0)

    submit = room.exchange.submit

    async def noted(orders: Sequence[ApprovedOrder]) -> None:
        rounds.append(now)
        await submit(orders)

    room.exchange.submit = noted  # type: ignore[method-assign]
    counting = asyncio.create_task(count())
    await asyncio.gather(*(room.buy(quantity=1) for _ in range(40)))
    counting.cancel()

    assert len(rounds) == 40
    assert len(set(rounds)) == 40
    assert room.exchange.submitted == sorted(room.exchange.submitted)  # in the order of their decisions


async def test_a_kill_on_another_thread_stops_what_waits_for_its_turn(room: MoneyRoom) -> None:
    """What has not left when the barrier stands does not leave; each is told as cancelled, and counts no more."""
    submit, stands = room.exchange.submit, 0

    def bar() -> None:
        nonlocal stands
        room.kill.bar(KillArgs())
        stands = len(room.exchange.submitted)

    async def barred(orders: Sequence[ApprovedOrder]) -> None:
        await submit(orders)
        if len(room.exchange.submitted) == 10:
            killer.start()
            while not room.path.gate._barriers:
                time.sleep(0.001)  # noqa: ASYNC251 - the kill comes in the very moment in which this order leaves

    killer = threading.Thread(target=bar)
    room.exchange.submit = barred  # type: ignore[method-assign]
    orders = await asyncio.gather(*(room.buy(quantity=1) for _ in range(40)))
    killer.join()

    left = set(room.exchange.submitted)
    assert len(left) == 10
    assert stands == 10
    held_back = [order for order in orders if order.order_id not in left]
    assert {order.status for order in held_back} == {OrderStatus.CANCELLED}
    assert {order.reason for order in held_back} == {
        "not sent: the kill switch is on: reset it before placing orders"
    }


async def test_a_change_is_judged_and_told(room: MoneyRoom) -> None:
    """A working order is changed through the gate, and told as replaced with its new terms."""
    order = await room.buy(order_type="limit", limit_price=Decimal(9))
    await room.desk.modify(order.order_id, {"limit_price": Decimal(8)})

    assert order.view().limit_price == 8
    assert (await room.told(order))[-1] == "replaced"


async def test_a_change_that_is_refused_later_is_told(room: MoneyRoom) -> None:
    """The order stands as it was, in part filled as it may be; event and order say why, over a restart as well."""
    order = await room.buy(order_type="limit", limit_price=Decimal(9))
    await room.fill(order, "9", 40)
    room.exchange.faults.add("no_change")
    await room.desk.modify(order.order_id, {"limit_price": Decimal(8)})
    why = "the change was not made: no changes here"

    assert (await room.told(order))[-1] == "unchanged"
    assert (order.status, order.replacement, order.reason) == (OrderStatus.PARTIALLY_FILLED, None, why)
    assert order.view().limit_price == 9
    with pytest.raises(CommandError, match=f"order {order.order_id} stands as it was: {why}"):
        await room.desk.answered(order)
    assert room.journal.status(order.order_id) is OrderStatus.PARTIALLY_FILLED
    assert audit(room.journal).faults == []
    room.exchange.faults.clear()
    await room.desk.modify(order.order_id, {"limit_price": Decimal(8)})
    await room.desk.answered(order)
    assert (order.status, order.reason) == (OrderStatus.REPLACED, None)
    room.exchange.report("unchanged", order.order_id, reason="of long ago")
    assert (order.status, order.reason) == (OrderStatus.REPLACED, None)


async def test_a_change_that_never_arrived_is_told(room: MoneyRoom) -> None:
    """Where read-backs go on showing the order as it was, it is told; one that is made after all counts."""
    order = await room.buy(order_type="limit", limit_price=Decimal(9))
    room.exchange.faults.add("lost_change")
    await room.desk.modify(order.order_id, {"limit_price": Decimal(8)})
    await room.path.reconciler.resolve_unknown(room.path.link)

    assert (await room.told(order))[-1] == "unchanged"
    assert order.reason == "the change was not made: it never arrived at the broker"
    assert order.status is OrderStatus.ACCEPTED
    assert order.view().limit_price == 9
    room.exchange.report("replaced", order.order_id)
    assert order.view().limit_price == 8


async def test_a_cancel_and_a_fill_may_cross(room: MoneyRoom) -> None:
    """A fill that arrives after the cancel is counted, and the position is right."""
    order = await room.buy()
    await room.desk.cancel(order.order_id)
    room.exchange.orders[order.order_id].state = "working"
    await room.fill(order, "10", 30)

    assert order.status is OrderStatus.CANCELLED
    assert room.path.portfolio.quantity("AAPL") == 30


async def test_an_ended_or_unknown_id_is_answered(room: MoneyRoom) -> None:
    """Cancelling what does not exist is not_found; what has ended is a conflict that names its status."""
    order = await room.buy()
    await room.fill(order, "10")

    with pytest.raises(CommandError) as missing:
        await room.desk.cancel("nothing")
    with pytest.raises(CommandError) as ended:
        await room.desk.cancel(order.order_id)

    assert missing.value.code == "not_found"
    assert (ended.value.code, ended.value.details["status"]) == ("conflict", "filled")


async def test_a_report_on_a_strange_order_changes_nothing(room: MoneyRoom) -> None:
    """A report on an order that is not ours is counted and logged, and nothing else."""
    order = await room.buy()
    await room.fill(order, "10")
    before = len(room.events)
    room.desk.orders.clear()
    room.exchange.report("cancelled", order.order_id)

    assert room.desk.orphan_reports == 1
    assert len(room.events) == before


async def test_a_change_without_a_connection_is_not_sent(room: MoneyRoom) -> None:
    """A change while the broker is not connected says that nothing was sent, and leaves nothing behind."""
    order = await room.buy(order_type="limit", limit_price=Decimal(9))
    await room.path.link.disconnect()
    with pytest.raises(CommandError, match="was not sent") as refused:
        await room.desk.modify(order.order_id, {"limit_price": Decimal(8)})

    assert refused.value.code == "broker_unavailable"
    assert order.replacement is None


@pytest.mark.parametrize(
    ("end", "code"),
    [("kill", "killed"), ("pause", "not_running"), ("hold", "risk_rejected"), ("cancel", "conflict")],
)
@pytest.mark.parametrize("moment", ["written", "leaving"])
async def test_a_change_is_not_sent_once_the_gate_has_closed(
    room: MoneyRoom, end: str, code: str, moment: str
) -> None:
    """A kill, a pause or the order's end while the change is written or about to leave stops it, by its name."""
    order = await room.buy(order_type="limit", limit_price=Decimal(9))
    commit, leave = room.journal.commit, room.desk.gate.let_out

    def close() -> None:
        if end == "kill":
            room.path.gate.close(None)
        elif end == "pause":
            room.path.gate.pause("a person has paused it")
        elif end == "hold":
            room.path.gate.hold({"AAPL": "nobody knows what is held"})
        else:
            room.exchange.end(order.order_id, "cancelled", "day over")

    async def slow(*records: object, **more: object) -> object:
        done = await commit(*records, **more)  # type: ignore[arg-type]
        close()
        return done

    async def late(*args: Any, **more: Any) -> Any:
        close()
        return await leave(*args, **more)

    if moment == "written":
        room.journal.commit = slow  # type: ignore[assignment,method-assign]
    else:
        room.desk.gate.let_out = late  # type: ignore[method-assign]
    with pytest.raises(CommandError) as refused:
        await room.desk.modify(order.order_id, {"limit_price": Decimal(8)})
    room.path.gate.reopen(None)

    assert refused.value.code == code
    assert order.replacement is None
    assert room.exchange.orders[order.order_id].request.limit_price == 9


async def test_a_stopped_submit_leaves_no_phantom(room: MoneyRoom) -> None:
    """Whoever asks is stopped: what has not left is cancelled, and what was being sent is unknown."""
    pause, commit = asyncio.Event(), room.journal.commit

    async def slow(*records: object, **more: object) -> object:
        await pause.wait()
        return await commit(*records, **more)  # type: ignore[arg-type]

    room.journal.commit = slow  # type: ignore[assignment,method-assign]
    unsent = asyncio.create_task(room.buy())
    await room.until(room.desk.open_orders)
    unsent.cancel()
    await asyncio.gather(unsent, return_exceptions=True)
    assert room.desk.open_orders() == []

    pause.set()
    room.exchange.faults.add("hang")
    leaving = asyncio.create_task(room.buy())
    await room.until(lambda: room.exchange.submitted)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    assert [order.status for order in room.desk.open_orders()] == [OrderStatus.UNKNOWN]
    assert room.desk.in_flight == set()


async def test_a_submit_that_is_stopped_while_it_is_decided_leaves_nothing(room: MoneyRoom) -> None:
    """Of a group whose asker is stopped before anything was written down there is no order and no event."""
    decide, pause = room.desk.gate.decide, asyncio.Event()

    async def slow(*args: Any, **more: Any) -> Any:
        if room.desk.open_orders():
            await pause.wait()
        return await decide(*args, **more)

    room.desk.gate.decide = slow  # type: ignore[method-assign]
    before = room.journal.last_seq
    entering = asyncio.create_task(room.enter("AAPL"))
    await room.until(room.desk.open_orders)
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    await room.desk.settle()

    assert room.desk.open_orders() == []
    assert room.desk.in_flight == set()
    assert room.journal.last_seq == before


async def test_an_order_that_ended_before_it_was_sent_is_not_sent(room: MoneyRoom) -> None:
    """What is no longer submitted when its intent is durable never leaves."""
    commit = room.journal.commit

    async def slow(*records: object, **more: object) -> object:
        done = await commit(*records, **more)  # type: ignore[arg-type]
        room.desk.local(room.desk.open_orders()[0], "cancelled", "it ended meanwhile")
        return done

    room.journal.commit = slow  # type: ignore[assignment,method-assign]
    await room.buy()

    assert room.exchange.submitted == []


async def test_a_fill_that_makes_no_sense_is_not_counted(room: MoneyRoom) -> None:
    """A fill with a price below zero does not escape into the broker, changes nothing, and may be told again."""
    order = await room.buy()
    fill = Fill("e1", order.order_id, "AAPL", "buy", Decimal(100), Decimal(-1), Decimal(0), room.clock.now())
    room.exchange.report("filled", order.order_id, fill=fill)
    assert order.filled == 0
    assert room.desk.failed_reports == 1
    assert order.status is OrderStatus.ACCEPTED

    room.exchange.report("filled", order.order_id, fill=replace(fill, price=Decimal(10)))
    assert room.path.portfolio.quantity("AAPL") == 100


async def test_settling_bears_facts_that_the_journal_finishes_meanwhile(room: MoneyRoom) -> None:
    """A fact that the journal's thread finishes between two looks at what is owed is no error."""

    class LastMoment(set[Future[object]]):
        """A set that loses what is in it between the look whether there is something and the list of it."""

        def __iter__(self) -> Iterator[Future[object]]:
            self.clear()
            return super().__iter__()

    room.desk._facts = LastMoment((Future(),))
    await room.desk.settle()

    assert not room.desk._facts


async def test_what_waits_for_the_disk_can_be_cancelled_and_not_changed(room: MoneyRoom) -> None:
    """An order whose intent is being written is not sent once it is cancelled; a change of it is `busy`."""
    pause, write = asyncio.Event(), room.journal.commit

    async def slow(records: Any, **more: Any) -> Any:
        found = write(records, **more)
        task = asyncio.ensure_future(found)
        await pause.wait()
        return await task

    room.journal.commit = slow  # type: ignore[method-assign]
    sending = asyncio.create_task(room.enter())
    await room.until(lambda: len(room.desk.open_orders()) == 2)
    entry = room.desk.open_orders()[0]
    with pytest.raises(CommandError, match="is being sent at this moment") as caught:
        await room.desk.modify(entry.order_id, {"quantity": Decimal(50)})
    await room.desk.cancel(entry.order_id)
    pause.set()
    await sending
    await room.desk.settle()

    assert caught.value.code == "busy"
    assert (room.exchange.submitted, room.exchange.cancels) == ([], [])
    assert [order.status for order in room.desk.orders.values()] == [OrderStatus.CANCELLED] * 2
    assert (room.desk.open_orders(), room.exits.guards) == ([], {})


async def test_an_exit_that_has_become_too_large_is_not_sent(room: MoneyRoom) -> None:
    """While the intent is written a stop may fill in part: what was sized before would flip the position."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    pause, commit = asyncio.Event(), room.journal.commit

    async def slow(records: Any, **more: Any) -> Any:
        found = await commit(records, **more)
        await pause.wait()
        return found

    room.journal.commit = slow  # type: ignore[method-assign]
    leave = stop.request.model_copy(update={"order_type": "market", "stop_price": None, "protective": False})
    leaving = asyncio.create_task(room.desk.submit([leave]))
    await room.until(lambda: len(room.desk.open_orders()) == 2)
    room.exchange.fill(stop.order_id, Decimal("9.80"), Decimal(60))
    pause.set()
    (order,) = await leaving

    assert order.status is OrderStatus.CANCELLED
    assert "would not only reduce: the position is 40" in str(order.reason)
    assert len(room.exchange.submitted) == 2


async def test_a_change_that_has_become_too_large_is_not_sent(room: MoneyRoom) -> None:
    """The same for a change: what it would close is looked at once more when it leaves."""
    await room.fill(await room.buy(), "10")
    request = OrderRequest(symbol="AAPL", side="sell", quantity=Decimal(10), intent="reduce")
    first, second = [
        (await room.desk.submit([request.model_copy(update={"order_type": "limit", "limit_price": price})]))[0]
        for price in (Decimal(11), Decimal(12))
    ]
    pause, commit = asyncio.Event(), room.journal.commit

    async def slow(records: Any, **more: Any) -> Any:
        found = await commit(records, **more)
        await pause.wait()
        return found

    room.journal.commit = slow  # type: ignore[method-assign]
    changing = asyncio.create_task(room.desk.modify(second.order_id, {"quantity": Decimal(90)}))
    await room.until(lambda: second.replacement is not None)
    taken = room.desk.orders[first.order_id]
    room.path.portfolio.apply(replace(_fill_of(taken), quantity=Decimal(50)), None)
    pause.set()
    with pytest.raises(CommandError, match="was not sent: a sell of 90 AAPL would not only reduce") as caught:
        await changing

    assert caught.value.code == "conflict"
    assert second.replacement is None
    assert room.exchange.orders[second.order_id].request.quantity == 10


def _fill_of(order: Order) -> Fill:
    return Fill(
        "elsewhere",
        order.order_id,
        order.request.symbol,
        order.request.side,
        Decimal(1),
        Decimal(11),
        Decimal(0),
        OPEN,
    )


async def test_a_change_down_to_what_fills_meanwhile_ends_the_order(room: MoneyRoom) -> None:
    """What remains when the change arrives is nothing: the order has filled, here and in the journal."""
    order = await room.buy(order_type="limit", limit_price=Decimal(10))
    await room.fill(order, "10", 40)

    async def replace_late(change: ApprovedOrder) -> None:
        room.exchange.fill(order.order_id, Decimal(10), Decimal(10))
        resting = room.exchange.orders[order.order_id]
        resting.request, resting.state = change.request, "filled"
        room.exchange.report("replaced", order.order_id)

    room.exchange.replace = replace_late  # type: ignore[assignment,method-assign]
    await room.desk.modify(order.order_id, {"quantity": Decimal(50)})
    told = await room.told(order)

    assert told[-2:] == ["partially_filled", "filled"]
    assert (order.status, room.desk.open_orders()) == (OrderStatus.FILLED, [])
    assert room.journal.status(order.order_id) is OrderStatus.FILLED
    assert room.journal.last_order_events() == {}
    assert audit(room.journal).faults == []


async def test_both_prices_of_a_change_on_its_way_count(tmp_path: Path) -> None:
    """A buy that may be at the new price already is met by no sale of ours, and counts at the worse price."""
    async with MoneyRoom(tmp_path, rules=[SelfTrade("self_trade"), MaxOpen("max_open", MaxOpenConfig())]) as room:
        await room.tick("AAPL", 10)
        order = await room.buy(order_type="limit", limit_price=Decimal(9))

        async def unconfirmed(change: ApprovedOrder) -> None:
            room.exchange.orders[order.order_id].request = change.request

        room.exchange.replace = unconfirmed  # type: ignore[assignment,method-assign]
        await room.desk.modify(order.order_id, {"limit_price": Decimal(10), "quantity": Decimal(90)})
        view = room.desk.view()
        assert committed(view) == (Decimal(900), None)
        assert reserved(view.working, "AAPL", "buy") == 100
        assert room.path.gate.rules[1].rule.usage(view).used == 1

        met = await room.buy(quantity=50, side="sell", order_type="limit", limit_price=Decimal("9.8"))
        assert (met.status, met.rule) == (OrderStatus.RISK_REJECTED, "self_trade")
        room.exchange.report("replaced", order.order_id)
        clear = await room.buy(quantity=50, side="sell", order_type="limit", limit_price=Decimal("10.2"))
        assert clear.status is OrderStatus.ACCEPTED


@pytest.mark.parametrize("moment", ["view", "decided"])
async def test_a_group_whose_deciding_fails_leaves_nothing(
    room: MoneyRoom, mocker: MockerFixture, moment: str
) -> None:
    """Whatever fails before the intents are handed over, nothing of the group is counted, shown or written."""
    before = room.journal.last_seq
    if moment == "view":
        show, calls = room.desk.view, iter([False, True])
        mocker.patch.object(room.desk, "view", lambda *a: 1 / 0 if next(calls) else show(*a))
    else:
        mocker.patch.object(room.exits, "_note", side_effect=ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        await room.enter("AAPL")
    mocker.stopall()
    await room.desk.settle()

    assert (room.desk.open_orders(), len(room.desk.orders), room.desk.in_flight) == ([], 0, set())
    assert room.journal.last_seq == before
    view = room.desk.view()
    assert (view.entries_today, view.recent) == (0, ())
    assert (await room.enter("AAPL")).working


async def test_a_follower_that_fails_leaves_no_order_unsent_and_working(room: MoneyRoom) -> None:
    """An order that is written down and can't be sent for a failure of ours ends, by a name."""

    def fails(step: Step) -> None:
        if step.event is OrderStatus.SUBMITTED:
            raise ZeroDivisionError("a follower is broken")

    room.desk.followers.append(fails)
    with pytest.raises(ZeroDivisionError):
        await room.buy()
    (order,) = room.desk.orders.values()

    assert (order.status, order.reason) == (OrderStatus.CANCELLED, "not sent: a follower is broken")
    assert room.exchange.submitted == []
    assert room.desk.in_flight == set()


async def test_ended_orders_are_kept_up_to_a_number(room: MoneyRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """What works is never forgotten, however old it is; of what has ended, the newest are known."""
    monkeypatch.setattr(room.desk.orders, "_kept", 3)
    first = await room.buy(order_type="limit", limit_price=Decimal(9))
    ended = [await room.buy() for _ in range(5)]
    for order in ended:
        await room.fill(order, "10")
    last = await room.buy(order_type="limit", limit_price=Decimal(9))

    assert room.desk.open_orders() == [first, last]
    assert [*room.desk.orders.values()] == [*ended[-3:], first, last]


async def test_what_was_sold_today_is_known_after_a_restart(tmp_path: Path) -> None:
    """Proceeds of today are unsettled, however many fills they came in, a restart or not."""

    def rule() -> DayTrades:
        return DayTrades("day_trades", DayTradesConfig(account_type="cash"))

    def settled(room: MoneyRoom) -> Decimal | None:
        return rule().usage(room.desk.view()).limit

    async with MoneyRoom(tmp_path, rules=[rule()]) as room:
        await room.tick("AAPL", 10)
        await room.fill(await room.buy(quantity=1000), "10")
        sale = await room.buy(quantity=900, side="sell", intent="reduce")
        for _ in range(150):
            room.exchange.fill(sale.order_id, Decimal(10), Decimal(6))
        await room.desk.settle()

        assert room.path.portfolio.cash == 99_000
        assert settled(room) == 90_000
    again = MoneyRoom(tmp_path, exchange=room.exchange, clock=room.clock, rules=[rule()])
    async with again:
        assert settled(again) == 90_000
        again.clock.advance(OPEN + timedelta(days=1, hours=1))
        assert settled(again) == 99_000


async def test_a_change_of_a_strategys_entry_has_no_signal(tmp_path: Path) -> None:
    """A person changes it, on no signal: the age of the first one says nothing of the change."""
    async with MoneyRoom(tmp_path, rules=[SignalAge("signal_age", SignalAgeConfig())]) as room:
        terms: dict[str, Any] = {
            "source": "strategy",
            "strategy": "test",
            "order_type": "limit",
            "limit_price": Decimal(9),
        }
        first = await room.buy(signal={"ts": room.clock.now().isoformat()}, **terms)
        room.clock.advance(room.clock.now() + timedelta(minutes=5))
        await room.desk.modify(first.order_id, {"limit_price": Decimal("9.1")})

        assert first.request.limit_price == Decimal("9.1")
        late = await room.buy(signal={"ts": OPEN.isoformat()}, **terms)
        assert (late.status, late.rule) == (OrderStatus.RISK_REJECTED, "signal_age")


# --- an intent that does not get there, or nobody knows -------------------------------------------------------


_schemas = itertools.count()


@pytest.fixture(name="place", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def _place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return FilePlace(tmp_path / "journal.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    schema = f"desk_{next(_schemas)}"
    server.make_schema(schema)
    return ServerPlace(server, schema)


def room_at(place: Place, folder: Path, before: MoneyRoom | None = None) -> MoneyRoom:
    """Make a room whose journal is there; `before` is the room of the last start."""
    return MoneyRoom(
        folder,
        exchange=None if before is None else before.exchange,
        clock=None if before is None else before.clock,
        journal=lambda _url, node, on_events: Journal(place.url, node, on_events, marks=folder),
    )


async def disagreements(room: MoneyRoom) -> list[str]:
    """Audit a room's journal once it has written everything."""
    await room.until(lambda: room.journal.writes)
    await room.desk.settle()
    return (await asyncio.to_thread(audit, room.journal, marks=room.folder)).faults


@pytest.mark.parametrize("outcome", ["fail before", "fail after"])
@pytest.mark.parametrize("unreadable", [0, 3])
async def test_an_order_that_is_cancelled_while_its_intent_fails_leaves_one_trace(
    tmp_path: Path, place: Place, outcome: Outcome, unreadable: int
) -> None:
    """Cancelled before it was sent: its end is in the journal where its intent is, and else nothing of it is."""
    async with room_at(place, tmp_path / "room") as room:
        commits = Commits(room.journal, place)
        commits.plan, commits.unreadable, commits.pause = [outcome], unreadable, threading.Event()
        steps: list[tuple[str, OrderStatus]] = []
        room.desk.followers.append(lambda step: steps.append((step.order.order_id, step.event)))
        sending = asyncio.create_task(room.enter())
        await room.until(lambda: len(room.desk.open_orders()) == 2 and not commits.plan)
        entry, stop = room.desk.open_orders()
        await room.desk.cancel(entry.order_id)
        await asyncio.sleep(0)
        commits.pause.set()
        (error,) = await asyncio.gather(sending, return_exceptions=True)

        there = outcome == "fail after"
        known = unreadable == 0
        assert isinstance(error, JournalError) == (not (there and known))
        assert error.unknown == (not known) if isinstance(error, JournalError) else known
        assert await disagreements(room) == []
        assert steps.count((entry.order_id, OrderStatus.CANCELLED)) == 1
        assert (entry.working, stop.working) == (False, False)
        assert (room.exchange.submitted, room.exchange.cancels, room.exits.guards) == ([], [], {})
        assert room.desk.open_orders() == []
        for order in (entry, stop):
            assert await room.told(order) == (["submitted", "cancelled"] if there else [])
    async with room_at(place, tmp_path / "room", room) as again:
        assert (again.desk.open_orders(), again.exits.guards) == ([], {})
        assert await disagreements(again) == []


@pytest.mark.parametrize("outcome", ["fail before", "fail after"])
async def test_an_intent_of_unknown_outcome_is_an_order_that_was_never_sent(
    tmp_path: Path, place: Place, outcome: Outcome
) -> None:
    """Where it turns out to be there it ends as never sent, and else there is nothing; it may be sent anew."""
    async with room_at(place, tmp_path / "room") as room:
        commits = Commits(room.journal, place)
        commits.plan, commits.unreadable = [outcome], 3
        with pytest.raises(JournalError, match="whether this was made durable is not known yet") as caught:
            await room.enter()
        assert caught.value.unknown
        assert (room.desk.open_orders(), room.exits.guards) == ([], {})
        assert (room.desk.view().entries_today, room.exchange.submitted) == (0, [])
        assert await disagreements(room) == []
        intents = [intent.order_id for intent in room.journal.intents()]
        ends = [room.journal.order(order_id) for order_id in intents]

        assert len(ends) == (2 if outcome == "fail after" else 0)
        for end in ends:
            assert end is not None
            assert end.event is OrderStatus.CANCELLED
            assert end.reason == "never sent: the journal failed while its intent was being written"
        entry = await room.enter()
        await room.fill(entry, "10")
        assert await room.told(entry) == ["submitted", "accepted", "filled"]
        assert await disagreements(room) == []


async def test_a_crash_before_it_is_known_leaves_an_order_that_ends_at_the_next_start(
    tmp_path: Path, place: Place
) -> None:
    """The intent was there after all, and its end is not: the broker knows nothing of it, and so it ends."""
    room = room_at(place, tmp_path / "room")
    await room.__aenter__()
    commits = Commits(room.journal, place)
    commits.plan, commits.unreadable = ["fail after"], 10**9
    with pytest.raises(JournalError):
        await room.enter()
    await room.crash()
    async with room_at(place, tmp_path / "room", room) as again:
        intents = [intent.order_id for intent in again.journal.intents()]
        assert len(intents) == 2
        await again.until(lambda: not again.desk.open_orders())
        assert again.exits.guards == {}
        assert await disagreements(again) == []
        assert {again.journal.status(order_id) for order_id in intents} == {OrderStatus.REJECTED}
    assert room.exchange.submitted == []


async def test_who_is_stopped_while_an_intent_fails_leaves_nothing(tmp_path: Path) -> None:
    """Whoever asked is gone before the intent fails: no end is told of an order that is not in the journal."""
    place = FilePlace(tmp_path / "journal.db")
    async with room_at(place, tmp_path / "room") as room:
        commits = Commits(room.journal, place)
        commits.plan, commits.pause = ["fail before"], threading.Event()
        sending = asyncio.create_task(room.enter())
        await room.until(lambda: room.desk.open_orders() and not commits.plan)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert room.desk.open_orders() == []
        commits.pause.set()

        assert await disagreements(room) == []
        assert room.journal.last_order_events() == {}
        assert place.query("SELECT * FROM orders") == []


async def test_a_kill_over_a_failing_disk_leaves_a_journal_that_agrees(tmp_path: Path) -> None:
    """A kill cancels what waits for the disk; when that fails, nothing of the order is in the journal."""
    place = FilePlace(tmp_path / "journal.db")
    async with room_at(place, tmp_path / "room") as room:
        commits = Commits(room.journal, place)
        commits.plan, commits.pause = ["fail before"], threading.Event()
        sending = asyncio.create_task(room.enter())
        await room.until(lambda: room.desk.open_orders() and not commits.plan)
        (entry, _) = room.desk.open_orders()
        await room.path.kill(KillArgs(reason="test"), Command("kill_switch", {}, "api"))
        assert entry.status is OrderStatus.CANCELLED
        commits.pause.set()
        (error,) = await asyncio.gather(sending, return_exceptions=True)

        assert isinstance(error, JournalError)
        assert await disagreements(room) == []
        assert place.query("SELECT * FROM orders") == []

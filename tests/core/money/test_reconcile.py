"""Tests of `sigma9_core.money.reconcile`: what a read-back proves, what it does not, and what is counted late."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sigma9_core.contracts import BrokerPosition
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.events import TradeEvent
from sigma9_core.models import Adjustment, ApprovedOrder, Fill, OrderRequest, OrderStatus
from sigma9_core.money import reconcile
from sigma9_core.money.audit import audit
from sigma9_core.money.history import History
from sigma9_core.money.ids import OrderIds
from sigma9_core.money.orders import Order
from sigma9_core.testing.money_room import MoneyRoom
from sigma9_core.testing.small_exchange import Resting


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path) as room:
        yield room


async def look(room: MoneyRoom) -> None:
    """Read back what is in doubt, as the path does every few seconds."""
    await room.path.reconciler.resolve_unknown(room.path.link)


async def test_an_order_sent_during_a_read_back_is_not_settled_by_it(room: MoneyRoom) -> None:
    """What was sent after the first read is alive, though the read-back does not have it."""
    pause, read = asyncio.Event(), room.exchange.completed_orders

    async def slow(since: Any) -> Any:
        found = await read(since)
        await pause.wait()
        return found

    room.exchange.completed_orders = slow  # type: ignore[method-assign]
    running = asyncio.create_task(room.path.reconciler.run(room.path.link))
    await asyncio.sleep(0)
    order = await room.buy()
    pause.set()
    await running

    assert order.status is OrderStatus.ACCEPTED


async def test_an_order_that_waits_for_the_journal_is_not_settled(room: MoneyRoom) -> None:
    """An order between its decision and its sending is on its way: a read-back leaves it alone."""
    pause, commit = asyncio.Event(), room.journal.commit

    async def slow(*records: Any, **more: Any) -> Any:
        await pause.wait()
        return await commit(*records, **more)

    room.journal.commit = slow  # type: ignore[method-assign]
    sending = asyncio.create_task(room.buy())
    await room.until(room.desk.open_orders)
    await room.path.reconciler.run(room.path.link)
    assert room.desk.open_orders()[0].status is OrderStatus.SUBMITTED
    pause.set()

    assert (await sending).status is OrderStatus.ACCEPTED


async def test_one_absent_read_back_is_no_proof(room: MoneyRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that may be late is believed after three looks in a row that span the time, and not before."""
    room.exchange.immediate = False
    room.exchange.faults.add("raise")
    order = await room.buy()
    room.exchange.faults.clear()
    for _ in range(4):
        await look(room)
    assert order.status is OrderStatus.UNKNOWN

    monkeypatch.setattr(reconcile, "SURE_AFTER", 0.0)
    await room.path.reconciler.run(room.path.link)  # a new connection counts anew
    await look(room)
    assert order.working
    await look(room)
    assert order.view().status is OrderStatus.REJECTED


STOP: dict[str, Any] = {"order_type": "stop", "stop_price": Decimal(9)}
TRAIL: dict[str, Any] = {"order_type": "trailing_stop", "trail_amount": Decimal(1)}


def trail(trigger: int) -> Adjustment:
    """Make the trail that a stop becomes."""
    return Adjustment(trigger_price=Decimal(trigger), stop_price=Decimal(10), trail_amount=Decimal(1))


@pytest.mark.parametrize(
    ("terms", "change"),
    [
        ({**STOP, "adjustment": trail(12)}, {"adjustment": trail(11)}),
        (STOP, {"adjustment": trail(11)}),
        (TRAIL, {"trail_amount": Decimal("0.5")}),
        ({**TRAIL, "trail_amount": None, "trail_percent": Decimal(3)}, {"trail_percent": Decimal(2)}),
        ({"order_type": "limit_on_close", "limit_price": Decimal(9)}, {"limit_price": Decimal(10)}),
    ],
)
async def test_a_change_is_made_when_the_broker_shows_all_of_it(
    room: MoneyRoom, terms: dict[str, Any], change: dict[str, Any]
) -> None:
    """An order that is shown as it was is not changed; once it is shown with the change, it is."""
    room.exchange.keeps, room.exchange.immediate = frozenset(("adjustment",)), False
    await room.fill(await room.buy(), "10")
    order = await room.buy(side="sell", intent="reduce", **terms)
    room.exchange.faults.add("lost_change")
    await room.desk.modify(order.order_id, change)
    changed = order.replacement
    await look(room)

    assert changed is not None
    assert order.status is OrderStatus.ACCEPTED
    assert order.replacement == changed
    room.exchange.orders[order.order_id].request = changed
    await look(room)
    assert order.view().status is OrderStatus.REPLACED
    assert order.request == changed


async def test_a_trail_at_rest_that_differs_is_told(room: MoneyRoom) -> None:
    """What a stop becomes at the broker is what the broker says; the trail of a trailing stop as well."""
    room.exchange.keeps = frozenset(("adjustment",))
    await room.fill(await room.buy(), "10")
    stop = await room.buy(side="sell", quantity=50, intent="reduce", **STOP, adjustment=trail(12))
    trailing = await room.buy(side="sell", quantity=50, intent="reduce", **TRAIL)
    for order, other in ((stop, {"adjustment": trail(11)}), (trailing, {"trail_amount": Decimal(2)})):
        resting = room.exchange.orders[order.order_id]
        resting.request = resting.request.model_copy(update=other)
    await room.path.reconciler.run(room.path.link)

    assert stop.request.adjustment == trail(11)
    assert trailing.request.trail_amount == 2
    assert "trail_amount 1 is 2" in str(trailing.reason)


async def test_an_order_that_shows_late_is_taken(room: MoneyRoom) -> None:
    """An order that the broker shows at the second look works, and is not counted as lost."""
    room.exchange.immediate = False
    room.exchange.faults.add("lost_ack")
    order = await room.buy()
    hidden = room.exchange.orders.pop(order.order_id)
    await look(room)
    room.exchange.orders[order.order_id] = hidden
    await look(room)

    assert order.status is OrderStatus.ACCEPTED


async def test_a_submitted_order_without_a_trace_becomes_unknown_at_a_start(tmp_path: Path) -> None:
    """After a crash in the middle of a submit the order is unknown, and settled by the looks."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    room.exchange.immediate = False

    async def silent(_orders: Any) -> None:
        return

    room.exchange.submit = silent  # type: ignore[assignment,method-assign]
    order = await room.buy()
    async with await room.crash() as after:
        assert after.desk.orders[order.order_id].status is OrderStatus.UNKNOWN


async def test_a_look_follows_an_order_without_an_answer(room: MoneyRoom) -> None:
    """An order that was sent and never answered is looked at, though nothing is `unknown`."""
    submit = room.exchange.submit

    async def unheard(orders: Any) -> None:
        listener, room.exchange.listener = room.exchange.listener, None
        await submit(orders)
        room.exchange.listener = listener

    room.exchange.submit = unheard  # type: ignore[method-assign]
    order = await room.buy()
    assert await room.told(order) == ["submitted"]
    await look(room)

    assert order.status is OrderStatus.ACCEPTED


async def test_a_fill_of_an_order_that_ended_before_the_restart_is_ours(tmp_path: Path) -> None:
    """A fill that the exchange made after the cancel is counted after a restart, live or read back."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    order = await room.buy(order_type="limit", limit_price=Decimal(10))
    await room.desk.cancel(order.order_id)
    after = await room.crash()
    room.exchange.orders[order.order_id].state = "working"
    room.exchange.fill(order.order_id, Decimal(10), Decimal(60))
    room.exchange.orders[order.order_id].state = "cancelled"  # as it was: the fill was on its way
    async with after:
        position = after.path.portfolio.position("AAPL")
        assert position.quantity == 60
        assert not position.foreign
    again = after.again()
    async with again:
        assert order.order_id not in again.desk.orders
        await again.fill(order, "10", 40)
        assert again.path.portfolio.quantity("AAPL") == 100
        assert [f.recovered for f in again.journal.fills()] == [True, True]


async def test_a_refused_change_is_not_believed_after_a_restart(tmp_path: Path) -> None:
    """A restart takes an order as the broker has confirmed it, not as its newest intent wanted it."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    order = await room.buy(order_type="limit", limit_price=Decimal(10))

    async def refuse(_order: Any) -> None:
        raise BrokerRefused("too late")

    room.exchange.replace = refuse  # type: ignore[assignment,method-assign]
    with pytest.raises(Exception, match="too late"):
        await room.desk.modify(order.order_id, {"quantity": Decimal(50)})
    await room.desk.settle()
    room.exchange.orders.pop(order.order_id)  # no read-back can help
    room.exchange.immediate = False
    async with await room.crash() as after:
        assert after.desk.orders[order.order_id].request.quantity == 100


async def test_terms_that_differ_are_corrected(room: MoneyRoom) -> None:
    """What the broker works with is what counts: our terms are corrected, and the difference is reported."""
    order = await room.buy(order_type="limit", limit_price=Decimal(10))
    resting = room.exchange.orders[order.order_id]
    resting.request = resting.request.model_copy(update={"quantity": Decimal(70), "limit_price": Decimal(9)})
    found = await room.path.reconciler.run(room.path.link)

    assert order.request.quantity == 70
    assert order.request.limit_price == 9
    assert "quantity 100 is 70" in found.orders[order.order_id]


@pytest.mark.parametrize(("arrived", "price"), [(True, 8), (False, 9)])
async def test_a_change_of_unknown_outcome_is_settled(room: MoneyRoom, arrived: bool, price: int) -> None:
    """A change without an answer is taken where the broker has it, and forgotten where it has not."""
    order = await room.buy(order_type="limit", limit_price=Decimal(9))

    async def silent(changed: Any) -> None:
        if arrived:
            room.exchange.orders[changed.order_id].request = changed.request
        raise BrokerError("no answer")

    room.exchange.replace = silent  # type: ignore[assignment,method-assign]
    with pytest.raises(Exception, match="not known"):
        await room.desk.modify(order.order_id, {"limit_price": Decimal(8)})
    assert order.replacement is not None
    await look(room)

    assert order.replacement is None
    assert order.request.limit_price == price


async def test_a_fill_without_executions_is_counted_once(tmp_path: Path) -> None:
    """Where the broker says filled and has no execution, the rest is counted at the order's price; a late real
    execution adds nothing."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    order = await room.buy(order_type="limit", limit_price=Decimal(10))
    after = await room.crash()
    real = room.exchange.fill(order.order_id, Decimal("9.9"))
    room.exchange.fills.clear()
    async with after:
        assert after.desk.orders[order.order_id].status is OrderStatus.FILLED
        assert after.path.portfolio.quantity("AAPL") == 100
        after.exchange.report("filled", order.order_id, fill=dataclasses.replace(real, exec_id="late"))
        assert after.path.portfolio.quantity("AAPL") == 100
        await after.desk.settle()
        assert [f.fill.exec_id for f in after.journal.fills()] == ["readback-1"]


@asynccontextmanager
async def stood_for(tmp_path: Path) -> AsyncIterator[tuple[MoneyRoom, Order, list[Fill]]]:
    """Give a room that has counted an order of 100, of which the broker has no executions, and what they were."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    order = await room.buy(order_type="limit", limit_price=Decimal(10))
    after = await room.crash()
    real = [room.exchange.fill(order.order_id, Decimal("9.9"), Decimal(share)) for share in (40, 60)]
    room.exchange.fills.clear()
    async with after:
        await after.desk.settle()
        assert after.path.portfolio.quantity("AAPL") == 100
        yield after, after.desk.orders[order.order_id], real


def agrees(room: MoneyRoom) -> bool:
    """Audit the journal, and compare its books with those in memory."""
    history = History(f"sqlite:///{room.folder / 'journal.db'}", "main")
    history.open()
    try:
        found = audit(history)
    finally:
        history.close()
    assert found.faults == []
    books = room.path.portfolio
    held = {row["symbol"]: row["quantity"] for row in found.positions}
    mine = {position.symbol: position.quantity for position in books.positions()}
    return (held, found.cash, found.realized) == (mine, books.cash, books.realized)


@pytest.mark.parametrize("told", [False, True])
async def test_a_bust_of_what_a_stand_in_has_counted_is_taken_back(tmp_path: Path, told: bool) -> None:
    """Each of the executions that it stands for goes by itself, once, for good: books, cash and audit agree."""
    async with stood_for(tmp_path) as (room, order, real):
        for fill, left in zip(real, (60, 0), strict=True):
            if told:
                room.exchange.report("filled", order.order_id, fill=fill)
            room.exchange.holdings["AAPL"] = Decimal(left)
            room.exchange.cash += fill.quantity * fill.price
            for _ in range(2):
                room.exchange.report("busted", order.order_id, fill=fill)
                assert room.path.portfolio.quantity("AAPL") == left
            await room.path._settle_cash(at_once=True)
            await room.desk.settle()
            assert agrees(room)
            shown = [trade["trade_id"] for trade in room.journal.trades()["trades"]]
            assert shown == ["readback-1"] * (left > 0)
            room = await room.crash()  # noqa: PLW2901 - the next start
            await room.__aenter__()
            assert room.path.portfolio.quantity("AAPL") == left
            assert room.path.portfolio.cash == room.exchange.cash
            assert room.path.reconciler.unexplained == {}
            room.exchange.report("busted", order.order_id, fill=fill)
            await room.desk.settle()
            assert room.path.portfolio.quantity("AAPL") == left
        await room.__aexit__()


async def test_a_bust_of_what_was_never_told_is_no_fill(room: MoneyRoom) -> None:
    """The read-back finds an order that has filled: nothing is counted for what was taken back by then."""
    order = await room.buy(order_type="limit", limit_price=Decimal(10))
    listener, room.exchange.listener = room.exchange.listener, None
    fill = room.exchange.fill(order.order_id, Decimal("9.9"))
    room.exchange.listener = listener
    room.exchange.fills.clear()
    room.exchange.holdings["AAPL"] = Decimal(0)
    room.exchange.cash += 990
    for _ in range(2):
        room.exchange.report("busted", order.order_id, fill=fill)
    room.exchange.report("filled", order.order_id, fill=fill)
    await look(room)
    await room.path.reconciler.run(room.path.link)

    assert await room.told(order) == ["submitted", "accepted", "filled", "busted"]
    assert room.path.portfolio.positions() == ()
    assert room.path.portfolio.cash == room.exchange.cash
    assert room.path.reconciler.unexplained == {}
    assert agrees(room)


async def test_a_fill_that_is_a_moment_behind_its_position_is_waited_for(room: MoneyRoom) -> None:
    """A position that moves before its fill is told is read once more, and the symbol stays open."""
    order = await room.buy()
    await room.fill(order, "10", 50)
    read = room.exchange.positions
    reads = 0

    async def ahead() -> Sequence[BrokerPosition]:
        nonlocal reads
        reads += 1
        if reads == 1:
            listener, room.exchange.listener = room.exchange.listener, None
            room.exchange.fill(order.order_id, Decimal(10))
            room.exchange.listener = listener
        return await read()

    room.exchange.positions = ahead  # type: ignore[method-assign]
    found = await room.path.reconciler.run(room.path.link)

    assert found.unexplained == {}
    assert room.path.portfolio.quantity("AAPL") == 100


async def test_a_symbol_is_released_once_it_is_explained(room: MoneyRoom) -> None:
    """A symbol that was held for its position is free again when the difference has gone away."""
    order = await room.buy()
    await room.fill(order, "10")
    room.exchange.holdings["AAPL"] = Decimal(90)
    await room.path.reconciler.run(room.path.link)
    assert room.path.gate.closed_for(order.request) is not None
    await look(room)
    assert room.path.gate.closed_for(order.request) is not None
    room.exchange.holdings["AAPL"] = Decimal(100)
    await look(room)

    assert room.path.gate.closed_for(order.request) is None


async def test_what_is_foreign_is_shown_and_never_ours(tmp_path: Path) -> None:
    """Orders and positions that are not ours are shown as foreign, count in no result, and block one symbol."""
    room = MoneyRoom(tmp_path)
    room.exchange.holdings["IBM"] = Decimal(50)
    room.exchange.orders["hand"] = Resting(
        "", "77", OrderRequest(symbol="IBM", side="sell", quantity=Decimal(50)), Decimal(20)
    )
    async with room:
        position = room.path.portfolio.position("IBM")
        assert (position.quantity, position.foreign, position.strategy) == (Decimal(50), True, None)
        assert room.path.portfolio.quantity("IBM") == 0
        shown = room.desk.foreign["77"]
        assert (shown.order_id, shown.foreign, shown.status) == ("foreign-77", True, OrderStatus.PARTIALLY_FILLED)
        assert (await room.buy("IBM")).rule == "foreign_position"
        assert (await room.buy("AAPL")).status is OrderStatus.ACCEPTED
        note = room.journal.notes("reconciliation", 1)[0].body
        assert (note["foreign_orders"], note["foreign_positions"]) == (["77"], ["IBM"])

        room.exchange.orders["hand"].state = "cancelled"
        room.exchange.holdings["IBM"] = Decimal(0)
        await room.path.reconciler.run(room.path.link)
        assert room.desk.foreign == {}
        assert (await room.buy("IBM")).status is OrderStatus.ACCEPTED


async def test_a_position_that_can_t_be_explained_closes_its_symbol(room: MoneyRoom) -> None:
    """Neither entries nor exits pass in it, the reason says both numbers, and other symbols go on trading."""
    order = await room.buy()
    await room.fill(order, "10")
    room.exchange.holdings["AAPL"] = Decimal(60)
    found = await room.path.reconciler.run(room.path.link)
    sentence = found.unexplained["AAPL"]
    assert "the journal's fills make 100 of AAPL, the broker has 60" in sentence
    exit_request = OrderRequest(symbol="AAPL", side="sell", quantity=Decimal(10), intent="reduce")
    entry, leave = await room.buy(), (await room.desk.submit([exit_request]))[0]

    assert [(each.rule, each.reason) for each in (entry, leave)] == [("reconciliation", sentence)] * 2
    assert (await room.buy("MSFT")).status is OrderStatus.ACCEPTED
    assert room.journal.notes("reconciliation", 1)[0].body["unexplained"] == {"AAPL": sentence}


async def test_an_order_that_ended_while_we_were_away_is_told(tmp_path: Path) -> None:
    """Cancelled, expired and rejected orders are told as recovered, with the broker's reason, once."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    ends: tuple[Any, ...] = ("cancelled", "expired", "rejected")
    orders = [await room.buy(f"S{number}", order_type="limit", limit_price=Decimal(5)) for number in range(3)]
    after = await room.crash()
    for order, kind in zip(orders, ends, strict=True):
        after.exchange.end(order.order_id, kind, "meanwhile")
    async with after:
        told = [event.data for event in after.events if isinstance(event.data, TradeEvent)]
        assert [(data.event, data.recovered) for data in told] == [(kind, True) for kind in ends]
        assert after.desk.open_orders() == []
        note = after.journal.notes("reconciliation", 1)[0].body
        assert sorted(note["orders"].values()) == sorted(ends)
    async with after.again() as later:
        assert later.events == []


# --- what others do meanwhile ---------------------------------------------------------------------------------


async def around(room: MoneyRoom) -> bool:
    """Look around, as the path does every few seconds."""
    return await room.path.reconciler.look_around(room.path.link)


async def test_what_a_person_trades_by_hand_is_seen_without_a_reconnect(room: MoneyRoom) -> None:
    """A position that comes, grows and goes beside us is shown as foreign; one look alone proves nothing."""
    room.exchange.holdings["TSLA"] = Decimal(10)
    assert not await around(room)
    assert await around(room)
    assert room.path.portfolio.position("TSLA").foreign
    assert not await around(room)

    room.exchange.holdings["TSLA"] = Decimal(25)
    assert await around(room)
    assert room.path.portfolio.position("TSLA").quantity == 25
    room.exchange.holdings["TSLA"] = Decimal(0)
    assert await around(room)
    assert room.path.portfolio.position("TSLA").quantity == 0
    await room.desk.settle()
    assert room.journal.notes("reconciliation", 9)[-2].body["foreign_positions"] == ["TSLA"]


async def test_a_position_that_somebody_takes_away_closes_its_symbol(room: MoneyRoom) -> None:
    """Ours that is not there any more is no position to trade on; it is free again once the two agree."""
    await room.fill(await room.buy(), "10")
    room.exchange.holdings["AAPL"] = Decimal(40)
    assert not await around(room)
    assert await around(room)
    assert "the broker has 40" in room.path.reconciler.unexplained["AAPL"]
    assert (await room.buy(quantity=1)).rule == "reconciliation"

    room.exchange.holdings["AAPL"] = Decimal(100)
    assert await around(room)
    assert (await room.buy(quantity=1)).status is OrderStatus.ACCEPTED


@pytest.mark.parametrize("left", [40, 0, -20])
async def test_exits_trade_no_more_than_the_broker_has(room: MoneyRoom, left: int) -> None:
    """A stop that outlives what a person has sold would open a short: it shrinks, or goes, until all agree."""
    await room.fill(await room.enter("AAPL", 100), "10")
    room.exchange.holdings["AAPL"] = Decimal(left)
    for _ in range(2):
        await around(room)
    await room.desk.settle()
    stops = [order.remaining for order in room.working(protective=True)]
    assert stops == [Decimal(left)] * (left > 0)
    await room.tick("AAPL", 10, seconds=6)
    assert [order.remaining for order in room.working(protective=True)] == stops

    room.exchange.holdings["AAPL"] = Decimal(100)
    await look(room)
    await room.desk.settle()
    assert room.path.reconciler.unexplained == {}
    assert [order.remaining for order in room.working(protective=True)] == [Decimal(100)]


async def test_a_person_s_exits_trade_no_more_than_the_broker_has(room: MoneyRoom) -> None:
    """Exits without a guard, and those that protect nothing, are taken back as well; a refused change ends one."""
    await room.fill(await room.buy(), "10")
    stop, other = [
        await room.buy(
            side="sell",
            quantity=50,
            intent="reduce",
            protective=True,
            order_type="stop",
            stop_price=Decimal(price),
        )
        for price in (9, 8)
    ]
    room.exchange.holdings["AAPL"] = Decimal(40)
    for _ in range(2):
        await around(room)
    await room.desk.settle()
    assert (stop.remaining, other.status) == (Decimal(40), OrderStatus.CANCELLED)

    async def refuse(order: ApprovedOrder) -> None:
        raise BrokerRefused("not so small")

    room.exchange.replace = refuse  # type: ignore[method-assign]
    room.exchange.holdings["AAPL"] = Decimal(30)
    await look(room)
    await room.desk.settle()
    assert stop.status is OrderStatus.CANCELLED


async def test_the_rest_of_an_entry_goes_before_its_stop_is_too_large(room: MoneyRoom) -> None:
    """A stop covers what its entry has yet to open, and can sell it at once: the entry fills no more then."""
    entry = await room.enter("AAPL", 100, order_type="limit", limit_price=Decimal(10))
    await room.fill(entry, "10", 40)
    room.exchange.holdings["AAPL"] = Decimal(10)
    for _ in range(2):
        await around(room)
    await room.desk.settle()

    assert entry.status is OrderStatus.CANCELLED
    assert [order.remaining for order in room.working(protective=True)] == [Decimal(10)]


@pytest.mark.parametrize("when", ["held", "at once", "down", "crash"])
async def test_what_a_fill_of_ours_has_made_is_never_foreign(room: MoneyRoom, when: str) -> None:
    """A stop that sells what a person has sold before leaves a short that is no stranger's."""
    await room.fill(await room.enter("AAPL", 100), "10")
    (stop,) = room.working(protective=True)
    room.exchange.holdings["AAPL"] = Decimal(0)
    room.exchange.faults.add("no_cancel")
    if when == "held":
        for _ in range(2):
            await around(room)
    if when == "down":
        room.exchange.listener = None
    await room.fill(stop, "9.8")
    if when not in ("down", "crash"):
        for _ in range(2):
            await around(room)
        assert not room.path.portfolio.position("AAPL").foreign
        assert "make 0 of AAPL, the broker has -100" in room.path.reconciler.unexplained["AAPL"]
    after = await room.crash()
    for _ in range(2):
        async with after:
            assert not after.path.portfolio.position("AAPL").foreign
            assert "make 0 of AAPL, the broker has -100" in after.path.reconciler.unexplained["AAPL"]
            assert (await after.buy()).rule == "reconciliation"
        after = after.again()


async def test_what_a_person_has_bought_beside_ours_stays_theirs(room: MoneyRoom) -> None:
    """When ours is sold, what is left is foreign: no fill of ours has made it."""
    await room.fill(await room.enter("AAPL", 100), "10")
    room.exchange.holdings["AAPL"] = Decimal(150)
    for _ in range(2):
        await around(room)
    assert "AAPL" in room.path.reconciler.unexplained
    (stop,) = room.working(protective=True)
    await room.fill(stop, "9.8")
    for _ in range(2):
        await around(room)
    position = room.path.portfolio.position("AAPL")
    assert (position.foreign, position.quantity) == (True, Decimal(50))
    assert room.path.reconciler.unexplained == {}
    async with await room.crash() as after:
        assert after.path.portfolio.position("AAPL").foreign


async def test_a_short_after_an_agreement_is_a_person_s(room: MoneyRoom) -> None:
    """Once books and broker have agreed on flat, what comes is somebody else's, though we had sold there."""
    await room.fill(await room.enter("AAPL", 100), "10")
    await room.fill(room.working(protective=True)[0], "9.8")
    await around(room)
    room.exchange.holdings["AAPL"] = Decimal(-10)
    for _ in range(2):
        await around(room)

    assert room.path.portfolio.position("AAPL").foreign


async def test_a_fill_whose_report_is_late_is_no_difference(room: MoneyRoom) -> None:
    """A position that is ahead of its report for one look is believed to be ours."""
    order = await room.buy()
    room.exchange.holdings["AAPL"] = Decimal(100)
    assert not await around(room)
    room.exchange.holdings["AAPL"] = Decimal(0)
    await room.fill(order, "10")

    assert not await around(room)
    assert not await around(room)
    assert (room.path.reconciler.unexplained, room.path.portfolio.position("AAPL").foreign) == ({}, False)


async def test_foreign_orders_come_and_go(room: MoneyRoom) -> None:
    """The order that a person enters beside us is shown and counted, until it has ended."""
    request = OrderRequest(symbol="TSLA", side="buy", quantity=Decimal(5))
    room.exchange.orders["manual"] = Resting("manual", "77", request)
    assert await around(room)
    assert [order.symbol for order in room.desk.view().working] == ["TSLA"]
    room.exchange.orders["manual"].state = "cancelled"
    assert await around(room)
    assert room.desk.foreign == {}


# --- what happened without a report ---------------------------------------------------------------------------


@contextmanager
def unheard(room: MoneyRoom) -> Iterator[None]:
    """Let what happens at the exchange go untold, though the connection stands."""
    listener, room.exchange.listener = room.exchange.listener, None
    yield
    room.exchange.listener = listener


async def test_an_order_that_ends_without_a_report_is_noticed(room: MoneyRoom) -> None:
    """A stop that is gone and was never told of guards nothing: it ends here too, and another one is placed."""
    await room.fill(await room.enter(), "10")
    (stop,) = room.working(protective=True)
    with unheard(room):
        room.exchange.end(stop.order_id, "cancelled", "by the broker")
    assert await around(room)

    assert (stop.status, stop.recovered) == (OrderStatus.CANCELLED, True)
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)


async def test_an_order_that_vanishes_is_believed_gone_after_the_looks(
    room: MoneyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a broker shows neither an end nor a fill of it, looks in a row over some time decide, not one."""
    room.exchange.immediate = False
    order = await room.buy(order_type="limit", limit_price=Decimal(5))
    hidden = room.exchange.orders.pop(order.order_id)
    assert await around(room)
    assert order.working
    room.exchange.orders[order.order_id] = hidden
    await look(room)
    assert not await around(room)

    del room.exchange.orders[order.order_id]
    monkeypatch.setattr(reconcile, "SURE_AFTER", 0.0)
    assert await around(room)
    await look(room)
    assert order.working
    await look(room)
    assert (order.view().status, order.reason) == (OrderStatus.CANCELLED, reconcile.GONE)


@pytest.mark.parametrize("share", [40, 100])
async def test_a_fill_without_a_report_is_ours(room: MoneyRoom, share: int) -> None:
    """What an order of ours has filled is counted as recovered, guarded, and never called foreign."""
    order = await room.enter()
    with unheard(room):
        room.exchange.fill(order.order_id, Decimal(10), Decimal(share))
    for _ in range(3):
        await around(room)
        await look(room)
    await room.desk.settle()

    position = room.path.portfolio.position("AAPL")
    assert (position.quantity, position.foreign, position.protected) == (Decimal(share), False, True)
    assert [fill.recovered for fill in room.journal.fills()] == [True]
    assert room.path.reconciler.unexplained == {}


async def test_a_fill_of_an_ended_order_without_a_report_is_ours(room: MoneyRoom) -> None:
    """A cancel that was told, and the fill before it that was not, make no foreign position."""
    order = await room.buy()
    with unheard(room):
        room.exchange.fill(order.order_id, Decimal(10), Decimal(60))
    room.exchange.end(order.order_id, "cancelled", "the rest")
    assert await around(room)

    position = room.path.portfolio.position("AAPL")
    assert (position.quantity, position.foreign) == (Decimal(60), False)


async def test_executions_of_strangers_cost_one_query(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Thousands of orders of another system are looked up at once, not one by one; ours among them are found."""
    order = await room.buy()
    with unheard(room):
        room.exchange.fill(order.order_id, Decimal(10))
    del room.desk.orders[order.order_id]  # as if it had ended long ago
    await room.desk.settle()
    room.exchange.fills += [
        Fill(f"y{n}", f"other-{n}", "MSFT", "buy", Decimal(1), Decimal(10), Decimal(0), room.clock.now())
        for n in range(1200)
    ]
    threads = mocker.spy(asyncio, "to_thread")
    await room.path.reconciler.run(room.path.link)

    assert threads.call_count == 2
    assert room.path.portfolio.quantity("AAPL") == 100


async def test_orders_of_ours_that_the_journal_does_not_know_are_named(room: MoneyRoom) -> None:
    """What has filled under an id of our making, and is not in the journal, stands in the report by name."""
    lost, other = OrderIds().new(), "other-1"
    room.exchange.fills += [
        Fill(f"y-{name}", name, "MSFT", "buy", Decimal(1), Decimal(10), Decimal(0), room.clock.now())
        for name in (lost, other)
    ]
    found = await room.path.reconciler.run(room.path.link)

    assert found.unknown_orders == [lost]
    await room.desk.settle()
    assert room.journal.notes("reconciliation", 1)[0].body["unknown_orders"] == [lost]

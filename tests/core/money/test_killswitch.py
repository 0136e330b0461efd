"""Tests of `sigma9_core.money.killswitch`: gate, latch, cancels, closes, until nothing is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sigma9_core import afterwards
from sigma9_core.commands import AdoptArgs, CancelAllArgs, Command, OrderArgs, Scope
from sigma9_core.config import KillSwitchSettings, Settings
from sigma9_core.contracts import BrokerPosition
from sigma9_core.errors import BrokerRefused, CommandError, JournalError
from sigma9_core.models import OrderRequest, OrderStatus
from sigma9_core.money import killswitch as killswitch_module
from sigma9_core.money import killwork, latching
from sigma9_core.money.ids import is_kill_id, kill_id
from sigma9_core.money.kill import Kill
from sigma9_core.money.orders import Order
from sigma9_core.testing.money_room import MoneyRoom
from sigma9_core.testing.small_exchange import Resting


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path) as room:
        yield room


async def kill(room: MoneyRoom, **more: Any) -> dict[str, Any]:
    """Fire as a command does."""
    return dict(await room.kill.fire(reason="test", source="api", **more))


async def trail_written(room: MoneyRoom) -> None:
    """Wait until what is told of a kill afterwards is in the journal."""
    room.path.afterwards.flush()
    await room.journal.commit([])


async def fill_closes(room: MoneyRoom, price: str = "10") -> None:
    """Fill whatever closing orders work at the exchange."""
    for order in room.working(intent="kill"):
        await room.fill(order, price)


async def test_a_kill_cancels_closes_and_is_done(room: MoneyRoom) -> None:
    """Entries are cancelled, protective stops give way to one close, and the phase is done when flat."""
    held = await room.enter("AAPL")
    await room.fill(held, "10")
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    await kill(room)
    await room.closing()
    close = room.working(intent="kill")[0]

    assert resting.status is OrderStatus.CANCELLED
    assert (close.request.side, close.request.source) == ("sell", "kill_switch")
    assert close.request.quantity == 100
    assert room.kill.body()["phase"] == "flattening"

    await fill_closes(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    body = room.kill.body()
    assert (body["state"], body["latched"], body["closed"]) == ("ON", True, ["AAPL"])
    assert resting.order_id in body["cancelled"]
    assert room.desk.open_orders() == []
    assert room.killed == [None]


async def test_nothing_passes_while_killed(room: MoneyRoom) -> None:
    """After a kill every entry is refused by the core, until a reset and a new start of the engine."""
    await kill(room)
    refused = await room.buy()
    await room.until(lambda: room.kill.body()["phase"] == "done")
    await room.kill.reset("checked", None, "api")
    stopped = await room.buy()
    room.path.gate.pause(None)
    passed = await room.buy()

    assert (stopped.status, stopped.rule) == (OrderStatus.RISK_REJECTED, "engine")
    assert (refused.status, refused.rule) == (OrderStatus.RISK_REJECTED, "kill_switch")
    assert passed.status is OrderStatus.ACCEPTED


async def test_the_gate_closes_before_the_latch_is_written(room: MoneyRoom, mocker: MockerFixture) -> None:
    """The order of contract 4: gate in memory, then the latch file, then the cancels."""
    resting = await room.buy(order_type="limit", limit_price=Decimal(5))
    steps: list[str] = []
    write, cancel = room.latch.write, room.exchange.cancel

    def latch(state: Any) -> None:
        steps.append("gate closed" if room.path.gate.closed_for(resting.request) else "gate open")
        steps.append("latch")
        write(state)

    async def cancelled(order_id: str) -> None:
        steps.append("cancel")
        await cancel(order_id)

    mocker.patch.object(room.latch, "write", latch)
    mocker.patch.object(room.exchange, "cancel", cancelled)
    await kill(room)

    assert steps == ["gate closed", "latch", "cancel"]


async def test_a_latch_that_can_t_be_written_stops_nothing(room: MoneyRoom, mocker: MockerFixture) -> None:
    """With a full disk the kill goes on and says latched: false."""
    resting = await room.buy(order_type="limit", limit_price=Decimal(5))
    mocker.patch.object(room.latch, "write", side_effect=OSError(28, "No space left on device"))
    await kill(room)

    assert resting.status is OrderStatus.CANCELLED
    assert room.kill.body()["latched"] is False


async def test_a_latch_is_written_as_soon_as_its_disk_takes_it(
    room: MoneyRoom, mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill that could not be latched is, by itself, once there is space: a restart must know of it."""
    monkeypatch.setattr(latching, "LATCH_AGAIN", 0.02)
    write = room.latch.write
    mocker.patch.object(room.latch, "write", side_effect=OSError(28, "No space left on device"))
    await kill(room, scope=Scope(symbol="AAPL"))
    await kill(room)
    assert "the latch can't be written" in room.kill.body()["error"]
    await asyncio.sleep(0.1)
    assert not room.latch.read().scopes

    mocker.patch.object(room.latch, "write", write)
    await room.until(lambda: room.kill.body()["latched"])
    assert room.kill.body()["error"] is None
    assert {scope.key for scope in room.latch.read().scopes} == {None, ("symbol", "AAPL")}


async def test_a_kill_beside_a_reset_does_not_latch_it_again(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Two writes of the latch at once: the scope that is being reset stays out of the other kill's write."""
    await kill(room, scope=Scope(symbol="AAPL"))
    await room.until(lambda: room.kill.body()["phase"] == "done")
    write, slow = room.latch.write, threading.Event()

    def waiting(state: Any) -> None:
        slow.wait(0.2)
        write(state)

    mocker.patch.object(room.latch, "write", waiting)
    reset = asyncio.create_task(room.kill.reset("seen", Scope(symbol="AAPL"), "api"))
    await asyncio.sleep(0.02)
    other = asyncio.create_task(kill(room, scope=Scope(symbol="MSFT")))
    await asyncio.gather(reset, other)
    await room.until(lambda: bool(room.latch.read().scopes))

    assert [scope.key for scope in room.latch.read().scopes] == [("symbol", "MSFT")]


async def test_a_second_kill_joins_the_first(room: MoneyRoom) -> None:
    """Two kills make one close a symbol, and one latch."""
    held = await room.enter()
    await room.fill(held, "10")
    await kill(room)
    await kill(room)
    await room.closing()
    await kill(room)

    assert len(room.working(intent="kill")) == 1


async def test_who_joins_waits_for_cancels_of_its_own(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A round that began as a halt has not cancelled what a flatten cancels: its end answers no flatten."""
    await room.fill(await room.enter("AAPL"), "10")
    await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    cancel, flatten = room.exchange.cancel, room.kill._work._flatten
    asked, goes_on, sent = asyncio.Event(), asyncio.Event(), list[bool]()

    async def slow(order_id: str) -> None:
        asked.set()
        await goes_on.wait()
        await cancel(order_id)

    async def look(kill: Kill) -> None:
        sent.append(kill.cancels_sent.is_set())
        await flatten(kill)

    mocker.patch.object(room.exchange, "cancel", slow)
    mocker.patch.object(room.kill._work, "_flatten", look)
    halt = asyncio.create_task(kill(room, flatten=False))
    await asked.wait()
    joined = asyncio.create_task(kill(room, flatten=True))
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.gather(halt, joined)
    await fill_closes(room)

    assert sent[:2] == [False, True]


async def test_a_halt_leaves_the_stops_and_can_become_a_flatten(room: MoneyRoom) -> None:
    """Without flatten the entries go and the protective stops stay; a later flatten closes the position."""
    held = await room.enter()
    await room.fill(held, "10")
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    await kill(room, flatten=False)
    await room.until(lambda: room.kill.body()["phase"] == "done")

    assert resting.status is OrderStatus.CANCELLED
    assert len(room.working(protective=True)) == 1
    assert room.path.portfolio.position("AAPL").protected

    await kill(room, flatten=True)
    await room.closing()
    assert room.working(protective=True) == []


async def test_the_kill_goes_on_after_a_restart(tmp_path: Path) -> None:
    """After a crash in the middle of a kill the latch holds, the close is not sent twice, and it ends flat."""
    room = MoneyRoom(tmp_path)
    await room.__aenter__()
    held = await room.enter()
    await room.fill(held, "10")
    await kill(room)
    await room.closing()
    sent = len(room.exchange.submitted)
    async with await room.crash() as after:
        assert after.kill.latched
        refused = await after.buy("MSFT")
        assert refused.rule == "kill_switch"
        await after.until(lambda: after.kill.body()["phase"] == "flattening")
        assert len(after.exchange.submitted) == sent
        await fill_closes(after)
        await after.until(lambda: after.kill.body()["phase"] == "done")
        assert after.path.portfolio.quantity("AAPL") == 0


async def test_an_unreadable_latch_is_a_latched_one(tmp_path: Path) -> None:
    """A damaged latch file keeps everything closed at the next start."""
    async with MoneyRoom(tmp_path) as room:
        await room.buy()
    room.latch.path.write_bytes(b"\xff" * 4096)
    async with room.again() as after:
        assert after.kill.latched
        assert (await after.buy("MSFT")).rule == "kill_switch"


async def test_a_closed_market_makes_it_wait(room: MoneyRoom) -> None:
    """With the market shut the stop stays, no close is stacked, and the detail says waiting_for_market."""
    held = await room.enter()
    await room.fill(held, "10")
    room.clock.advance(room.clock.now() + timedelta(hours=7))
    await kill(room)
    await room.until(lambda: room.kill.body()["detail"] == "waiting_for_market")

    assert room.working(intent="kill") == []
    assert len(room.working(protective=True)) == 1

    room.clock.advance(room.clock.now() + timedelta(hours=17.5))
    await room.until(lambda: room.working(intent="kill"), within=5)


async def test_a_close_is_sized_from_a_fresh_read(room: MoneyRoom) -> None:
    """The close is never larger than what the broker shows at that moment: it can't go through zero."""
    held = await room.enter()
    await room.fill(held, "10")
    room.exchange.holdings["AAPL"] = Decimal(60)
    await kill(room)
    await room.closing()

    assert room.working(intent="kill")[0].request.quantity == 60


async def test_a_stop_that_won_t_cancel_keeps_the_close_back(room: MoneyRoom) -> None:
    """While a protective order may still fill, no close is sent beside it."""
    held = await room.enter()
    await room.fill(held, "10")
    room.exchange.faults.add("no_cancel")
    await kill(room)
    await room.until(lambda: room.exchange.cancels)

    assert room.working(intent="kill") == []
    assert room.kill.body()["pending"]


async def test_a_scoped_kill_blocks_only_its_scope(room: MoneyRoom) -> None:
    """A kill of one symbol closes that position alone, and others go on trading."""
    for symbol in ("AAPL", "MSFT"):
        await room.fill(await room.enter(symbol), "10")
    await kill(room, scope=Scope(symbol="AAPL"))
    await room.closing()

    assert [order.request.symbol for order in room.working(intent="kill")] == ["AAPL"]
    assert len(room.working(protective=True, symbol="MSFT")) == 1
    assert (await room.buy("IBM")).status is OrderStatus.ACCEPTED
    body = room.kill.body()
    assert (body["state"], body["scopes"]) == ("OFF", [{"symbol": "AAPL"}])


async def test_foreign_positions_are_left_alone(tmp_path: Path) -> None:
    """What our journal did not open is not touched by a kill, unless the configuration says so."""
    for foreign, sent in (("leave", 0), ("flatten", 1)):
        settings = Settings(kill_switch=KillSwitchSettings(foreign=foreign))
        room = MoneyRoom(tmp_path / foreign, settings=settings)
        room.exchange.holdings["IBM"] = Decimal(50)
        async with room:
            room.path.portfolio.set_foreign([BrokerPosition("IBM", Decimal(50), Decimal(100))])
            await kill(room)
            await room.until(lambda room=room, sent=sent: len(room.working(intent="kill")) == sent)  # type: ignore[misc]
            if not sent:
                await room.until(lambda room=room: room.kill.body()["phase"] == "done")  # type: ignore[misc]


async def test_a_kill_without_a_broker_acts_on_reconnect(room: MoneyRoom) -> None:
    """With the broker gone the gate is closed and latched at once; the work is done when it is back."""
    held = await room.enter()
    await room.fill(held, "10")
    await room.path.link.disconnect()
    await kill(room)
    assert room.kill.body()["latched"]

    room.path.link.connect()
    await room.closing()


async def test_a_late_fill_after_done_is_closed_too(room: MoneyRoom) -> None:
    """A fill that arrives when the kill was done already starts it again."""
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    room.exchange.orders[resting.order_id].state = "working"
    await room.fill(resting, "5")

    await room.closing()


async def test_a_drill_is_whole_and_leaves_the_switch_off(room: MoneyRoom) -> None:
    """A drill on a paper account goes the whole way and resets; on a live account it is refused."""
    result = await room.kill.drill("api")
    assert result["phase"] == "done"
    assert room.kill.body()["state"] == "OFF"
    assert room.kill.body()["last_drill"] is not None

    room.exchange.mode = "live"
    with pytest.raises(CommandError, match="refused on a live account"):
        await room.kill.drill("api")


async def test_a_reset_wants_a_kill(room: MoneyRoom) -> None:
    """Resetting what is not on is a conflict."""
    with pytest.raises(CommandError) as refused:
        await room.kill.reset("why not", None, "api")
    assert refused.value.code == "conflict"


async def test_a_kill_needs_no_journal(room: MoneyRoom, mocker: MockerFixture) -> None:
    """With a journal that fails the positions are closed all the same."""
    held = await room.enter()
    await room.fill(held, "10")

    def full(*_records: Any, **_more: Any) -> Future[Any]:
        failed: Future[Any] = Future()
        failed.set_exception(JournalError("disk full"))
        return failed

    mocker.patch.object(room.journal, "write", full)
    await kill(room)
    await room.until(lambda: room.working(intent="kill") and not room.desk.in_flight)

    assert room.exchange.submitted[-1] == room.working(intent="kill")[0].order_id


async def test_a_stop_stays_while_its_close_can_t_go(room: MoneyRoom) -> None:
    """Where another order of the symbol won't cancel, or a rule refuses the close, the protective stop stays."""
    held = await room.enter(quantity=100)
    await room.fill(held, "10", 50)
    cancel = room.exchange.cancel

    async def stubborn(order_id: str) -> None:
        if order_id != held.order_id:
            await cancel(order_id)

    room.exchange.cancel = stubborn  # type: ignore[method-assign]
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "flattening")

    assert len(room.working(protective=True)) == 1
    assert room.working(intent="kill") == []


async def test_a_close_that_is_refused_is_not_sent_in_a_flood(room: MoneyRoom) -> None:
    """A broker that rejects every close gets one now and then, each after a longer wait."""
    held = await room.enter()
    await room.fill(held, "10")
    submit = room.exchange.submit

    async def rejecting(orders: list[Any]) -> None:
        await submit(orders)
        for order in orders:
            room.exchange.end(order.order_id, "rejected", "no")

    room.exchange.submit = rejecting  # type: ignore[assignment,method-assign]
    before = len(room.exchange.submitted)
    await kill(room)
    await room.until(lambda: len(room.exchange.submitted) > before + 1)

    assert len(room.exchange.submitted) <= before + 3


async def test_a_real_kill_during_a_drill_stays_on(room: MoneyRoom) -> None:
    """A drill gives way to a kill: the drill's end does not reset it."""
    held = await room.enter()
    await room.fill(held, "10")
    drill = asyncio.create_task(room.kill.drill("api"))
    await room.closing()
    await kill(room)
    await fill_closes(room)

    with pytest.raises(CommandError, match="a real kill came during the drill"):
        await drill
    assert room.kill.latched


async def test_a_kill_during_a_reset_stays_on(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A kill that comes while the latch is being unlatched wins: the gate stays closed."""
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    write = room.latch.write
    slow = threading.Event()

    def waiting(state: Any) -> None:
        slow.wait(0.2)
        write(state)

    mocker.patch.object(room.latch, "write", waiting)
    reset = asyncio.create_task(room.kill.reset("seen", None, "api"))
    await asyncio.sleep(0.02)
    await kill(room)

    with pytest.raises(CommandError, match="another kill came"):
        await reset
    assert room.kill.latched
    assert (await room.buy("MSFT")).rule == "kill_switch"
    await room.until(lambda: room.latch.read().latched)


async def test_a_halt_beside_a_scoped_flatten_lets_other_exits_pass(room: MoneyRoom) -> None:
    """Under a halt of everything a stop can be replaced, also while one symbol is being flattened."""
    for symbol in ("AAPL", "MSFT"):
        await room.fill(await room.enter(symbol), "10")
    await kill(room, scope=Scope(symbol="AAPL"))
    await kill(room, flatten=False)
    stop = room.working(protective=True, symbol="MSFT")[0]
    room.exchange.end(stop.order_id, "cancelled", "by hand")
    await room.desk.settle()

    assert len(room.working(protective=True, symbol="MSFT")) == 1


async def test_the_answer_names_what_is_pending(room: MoneyRoom) -> None:
    """A kill that is not done says which orders and positions are left."""
    held = await room.enter()
    await room.fill(held, "10")
    answer = await kill(room)

    assert "AAPL" in answer["pending"]


async def test_every_phase_says_what_is_left(room: MoneyRoom) -> None:
    """A kill that is not done names the orders and positions that it still has to end, from its first body on."""
    held = await room.enter()
    await room.fill(held, "10")
    shown: list[dict[str, Any]] = []
    room.path._show_outside = lambda bodies: shown.append(dict(bodies["kill_switch"] or {}))
    await kill(room)
    await room.closing()
    await fill_closes(room)
    await room.until(lambda: shown[-1].get("phase") == "done")  # what is shown follows what is so

    phases = list(dict.fromkeys(body["phase"] for body in shown if body["state"] == "ON"))
    assert phases == ["cancelling", "flattening", "done"]
    left = {body["phase"]: "AAPL" in body["pending"] for body in shown if body["state"] == "ON"}
    assert left == {"cancelling": True, "flattening": True, "done": False}


async def stop_back(room: MoneyRoom) -> Order:
    """Wait until the kill has put a stop back, and it works at the exchange."""
    await room.until(
        lambda: any(o.order_id in room.exchange.orders for o in room.working(protective=True, intent="kill"))
    )
    return room.working(protective=True, intent="kill")[0]


async def test_a_position_whose_close_is_rejected_gets_its_stop_back(room: MoneyRoom) -> None:
    """While a broker rejects every close, the position has its stop; it goes when a close can work."""
    held = await room.enter()
    await room.fill(held, "10")
    before = room.working(protective=True)[0].request.stop_price
    room.exchange.faults.add("reject_markets")
    await kill(room)
    stop = await stop_back(room)
    assert (stop.request.stop_price, stop.request.quantity) == (before, Decimal(100))
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)

    room.exchange.faults.clear()
    (close,) = await room.closing()
    assert stop.status is OrderStatus.CANCELLED
    await room.fill(close, "9.9")
    await room.until(lambda: room.kill.body()["phase"] == "done")
    assert room.desk.open_orders() == []
    assert sum(each.request.order_type == "stop" for each in room.exchange.orders.values()) == 2


async def test_a_stop_that_fills_while_its_close_waits_ends_it(room: MoneyRoom) -> None:
    """The stop that a kill has put back may be what closes the position; nothing is sent after it."""
    held = await room.enter()
    await room.fill(held, "10")
    room.exchange.faults.add("reject_markets")
    await kill(room)
    await room.fill(await stop_back(room), "9.8")
    await room.until(lambda: room.kill.body()["phase"] == "done")
    sent = len(room.exchange.submitted)
    await asyncio.sleep(0.6)

    assert room.path.portfolio.quantity("AAPL") == 0
    assert len(room.exchange.submitted) == sent


async def test_a_broker_that_rejects_stops_as_well_is_not_flooded(room: MoneyRoom) -> None:
    """One stop is tried for each close that came to nothing."""
    held = await room.enter()
    await room.fill(held, "10")
    room.exchange.faults |= {"reject_markets", "reject_stops"}
    before = len(room.exchange.submitted)
    await kill(room)
    await asyncio.sleep(1.2)

    assert len(room.exchange.submitted) <= before + 6


async def test_a_reset_takes_back_what_the_kill_has_sent(room: MoneyRoom) -> None:
    """A close that still works would sell what a person has decided to keep: it goes, and the stop comes back."""
    held = await room.enter()
    await room.fill(held, "10")
    await kill(room)
    (close,) = await room.closing()
    await room.kill.reset("keep it", None, "api")
    await room.desk.settle()

    assert close.status is OrderStatus.CANCELLED
    assert room.path.portfolio.quantity("AAPL") == 100
    await room.until(lambda: room.working(protective=True, intent="reduce"))


async def test_a_close_that_can_t_be_taken_back_keeps_the_kill_on(
    room: MoneyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset that can't end the kill's own orders is refused, names them, and the kill goes on."""
    monkeypatch.setattr(killswitch_module, "ANSWER_WITHIN", 0.1)
    held = await room.enter()
    await room.fill(held, "10")
    await kill(room)
    (close,) = await room.closing()
    room.exchange.faults.add("no_cancel")
    with pytest.raises(CommandError, match=f"closing orders {close.order_id} still work") as refused:
        await room.kill.reset("keep it", None, "api")
    assert refused.value.code == "busy"
    assert room.kill.latched

    await room.fill(close, "10")
    await room.until(lambda: room.kill.body()["phase"] == "done")
    await room.kill.reset("seen", None, "api")


@pytest.mark.parametrize("filled", [False, True])
async def test_a_close_whose_intent_was_lost_is_found_again(
    tmp_path: Path, mocker: MockerFixture, filled: bool
) -> None:
    """After a full disk and a crash a kill's close is known by its id at the broker; none is sent beside it."""
    room = await MoneyRoom(tmp_path).__aenter__()
    held = await room.enter()
    await room.fill(held, "10")
    mocker.patch.object(room.journal, "write", return_value=Future())  # it waits for the disk for ever
    await kill(room)
    (close,) = await room.closing()
    if filled:
        room.exchange.fill(close.order_id, Decimal("9.9"))
    sent = list(room.exchange.submitted)
    mocker.stopall()

    async with await room.crash() as after:
        await after.until(lambda: close.order_id in after.desk.orders)
        if not filled:
            assert [order.order_id for order in await after.closing()] == [close.order_id]
            await after.fill(after.desk.orders[close.order_id], "9.9")
        await after.until(lambda: after.kill.body()["phase"] == "done")
        assert after.exchange.submitted == sent
        assert after.path.portfolio.quantity("AAPL") == 0
        assert (after.desk.foreign, after.path.reconciler.unexplained) == ({}, {})
        await after.desk.settle()
        assert after.journal.intent(close.order_id) is not None


async def test_another_servers_kill_is_not_taken_for_ours(room: MoneyRoom) -> None:
    """Two servers may trade one account: the mark in the id is that of one journal."""
    assert is_kill_id(kill_id("0" * 26, room.journal.journal_id), room.journal.journal_id)
    assert not is_kill_id(kill_id("0" * 26, "another journal"), room.journal.journal_id)
    assert not is_kill_id("0" * 26, room.journal.journal_id)


async def test_two_resets_at_once_are_one(room: MoneyRoom, mocker: MockerFixture) -> None:
    """The second of two resets is told so; a kill that comes right after the first is in the latch and stays."""
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    write = room.latch.write

    def slow(state: Any) -> None:
        threading.Event().wait(0.05)
        write(state)

    mocker.patch.object(room.latch, "write", slow)
    results = await asyncio.gather(
        room.kill.reset("one", None, "api"), room.kill.reset("two", None, "api"), return_exceptions=True
    )
    assert [getattr(result, "code", "ok") for result in results] == ["ok", "busy"]
    await kill(room)

    await room.until(lambda: room.latch.read().latched)
    assert room.kill.latched


async def test_a_reconnect_during_a_reset_closes_nothing(room: MoneyRoom) -> None:
    """While a reset takes the kill's closes back the kill does not begin its work again: a position stays."""
    held = await room.enter()
    await room.fill(held, "10")
    await kill(room)
    (close,) = await room.closing()
    room.exchange.faults.add("no_cancel")
    reset = asyncio.create_task(room.kill.reset("keep it", None, "api"))
    await room.until(lambda: close.order_id in room.exchange.cancels)
    room.kill.go_on()
    sent = len(room.exchange.submitted)
    room.exchange.end(close.order_id, "cancelled", "late")
    room.kill.go_on()
    await reset

    assert not room.kill.latched
    await room.until(lambda: len(room.exchange.submitted) > sent)
    await asyncio.sleep(0.05)
    closes = [room.exchange.orders[i].request for i in room.exchange.submitted[sent:]]
    assert [request.protective for request in closes] == [True]
    assert [request.intent for request in closes] == ["reduce"]


async def test_a_drill_that_is_reset_ends_at_once(room: MoneyRoom) -> None:
    """Whoever resets a drill ends it: it says so, and does not reset what comes after it."""
    held = await room.enter()
    await room.fill(held, "10")
    drill = asyncio.create_task(room.kill.drill("api"))
    await room.closing()
    await room.kill.reset("enough", None, "api")

    with pytest.raises(CommandError, match="the drill was reset before it was over"):
        await drill


async def test_a_kill_before_a_drill_stays_on(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A kill that comes while a drill asks for the account is no drill, and nobody resets it."""
    read = room.exchange.account

    async def slow() -> Any:
        await kill(room)
        return await read()

    mocker.patch.object(room.exchange, "account", slow)
    with pytest.raises(CommandError, match="a kill came before the drill"):
        await room.kill.drill("api")

    assert room.kill.latched


async def test_a_thousand_orders_in_the_queue_do_not_hold_a_kill_up(room: MoneyRoom) -> None:
    """Orders that wait for their turn are refused or not sent: nothing leaves any more but the kill's own."""
    held = await room.enter("MSFT")
    await room.fill(held, "10")
    submit = room.exchange.submit
    left: list[str] = []

    async def slow(orders: Any) -> None:
        left.extend(order.request.intent for order in orders)
        await asyncio.sleep(0.05)
        await submit(orders)

    room.exchange.submit = slow  # type: ignore[method-assign]
    queue = [asyncio.create_task(room.buy(f"S{number}", 1)) for number in range(1000)]
    await room.until(lambda: len(left) > 20)
    loop = asyncio.get_running_loop()
    began = loop.time()
    killing = asyncio.create_task(kill(room))
    await asyncio.sleep(0)
    assert room.path.gate.closed_for(held.request) is not None
    before = len(left)
    await killing
    # It is answered within 2 s; a thousand tasks that end meanwhile take their time on a slow machine.
    assert loop.time() - began < 6
    orders = [(await task) for task in queue]

    assert set(left[before:]) <= {"kill"}
    sent = set(room.exchange.submitted)
    assert all(order.order_id in sent or not order.working for order in orders)
    await room.closing()
    await fill_closes(room)
    await room.until(lambda: room.kill.body()["phase"] == "done", within=10)
    assert room.desk.open_orders() == []


async def test_a_finished_kill_keeps_its_record_over_a_restart(tmp_path: Path) -> None:
    """What was cancelled and closed is still shown, and what is done is not told as if it happened again."""
    async with MoneyRoom(tmp_path) as room:
        await room.fill(await room.enter(), "10")
        await kill(room)
        await room.closing()
        await fill_closes(room)
        await room.until(lambda: room.kill.body()["phase"] == "done")
        before = room.kill.body()
        await trail_written(room)
        told = len(room.journal.notes("kill", 99))
    async with room.again() as after:
        await asyncio.sleep(0.1)
        now = after.kill.body()
        assert {name: now[name] for name in ("phase", "cancelled", "closed", "pending", "reason")} == {
            name: before[name] for name in ("phase", "cancelled", "closed", "pending", "reason")
        }
        assert before["closed"] == ["AAPL"]
        assert len(after.journal.notes("kill", 99)) == told


async def test_a_finished_kill_does_not_say_done_of_what_its_books_hold(tmp_path: Path) -> None:
    """Where something has come since it was done, a restart does not say `done` before the broker is read."""
    async with MoneyRoom(tmp_path) as room:
        await kill(room, scope=Scope(symbol="AAPL"))
        await room.until(lambda: room.kill.body()["phase"] == "done")
        room.exchange.holdings["AAPL"] = Decimal(50)
        await room.path.reconciler.run(room.path.link)
        await room.path.adopt(AdoptArgs(symbol="AAPL", strategy="test"))
        after = await room.crash()
    after.journal.open()
    await after.path.start()

    assert after.kill.body()["phase"] == "gated"
    await after.__aexit__()


async def test_a_finished_kill_goes_on_where_something_came_meanwhile(tmp_path: Path) -> None:
    """A fill of ours that came while the server was down is closed: done is said once nothing is left again."""
    async with MoneyRoom(tmp_path) as room:
        order = await room.buy(order_type="limit", limit_price=Decimal(5))
        room.exchange.faults.add("no_cancel")
        await kill(room)
        room.exchange.faults.clear()
        room.exchange.end(order.order_id, "cancelled", "at last")
        await room.until(lambda: room.kill.body()["phase"] == "done")
    room.exchange.orders[order.order_id].state = "working"
    room.exchange.fill(order.order_id, Decimal(5))
    async with room.again() as after:
        await after.closing()
        assert after.kill.body()["phase"] == "flattening"
        await fill_closes(after)
        await after.until(lambda: after.kill.body()["phase"] == "done")
        assert after.path.portfolio.quantity("AAPL") == 0


async def test_a_foreign_order_whose_cancel_was_lost_is_asked_again(tmp_path: Path, mocker: MockerFixture) -> None:
    """Where foreign orders are to be cancelled, a cancel that came to nothing is sent again, and the kill ends."""
    mocker.patch.object(killwork, "ASK_AGAIN", timedelta(seconds=0.1))
    room = MoneyRoom(tmp_path, settings=Settings(kill_switch=KillSwitchSettings(foreign="cancel")))
    by_hand = OrderRequest(symbol="IBM", side="buy", quantity=Decimal(5))
    room.exchange.orders["7"] = Resting("7", "7", by_hand)
    async with room:
        room.exchange.faults.add("no_cancel")
        await kill(room)
        await room.until(lambda: room.exchange.cancels)
        room.exchange.faults.clear()

        await room.until(lambda: room.kill.body()["phase"] == "done")
        assert room.exchange.orders["7"].state == "cancelled"


async def test_a_read_back_that_never_returns_holds_the_kill_up_for_a_moment_alone(
    room: MoneyRoom, mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that hangs on one read is asked again: the close goes out, and a reset gets its answer."""
    monkeypatch.setattr(killwork, "READ_WITHIN", 0.05)
    await room.fill(await room.enter(), "10")
    positions, hung = room.exchange.positions, True

    async def hanging() -> Any:
        if hung:
            await asyncio.Event().wait()
        return await positions()

    mocker.patch.object(room.exchange, "positions", hanging)
    await kill(room)
    await room.until(lambda: "gave no answer (positions)" in str(room.kill.body()["error"]))
    assert room.working(intent="kill") == []

    hung = False
    await room.closing()
    await room.until(lambda: room.kill.body()["error"] is None)
    hung = True
    async with asyncio.timeout(3):
        await room.kill.reset("seen", None, "api")


@pytest.mark.parametrize("turns", range(5))
async def test_an_order_of_a_kill_is_cancelled_or_pending_in_its_answer(
    room: MoneyRoom, mocker: MockerFixture, turns: int
) -> None:
    """Whenever the broker reports a cancel, the answer has its order in the one list or in the other."""
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    cancel, waiting = room.exchange.cancel, list[asyncio.Task[None]]()

    async def later(order_id: str) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await cancel(order_id)

    async def a_moment_later(order_id: str) -> None:
        waiting.append(asyncio.create_task(later(order_id)))

    async def slow() -> Any:
        await asyncio.sleep(5)

    mocker.patch.object(room.exchange, "cancel", a_moment_later)
    mocker.patch.object(room.exchange, "open_orders", slow)
    fired = asyncio.create_task(kill(room))
    await room.until(lambda: not resting.working)
    answer = await fired

    assert [*answer["cancelled_orders"], *answer["pending"]] == [resting.order_id]


async def test_cancels_go_out_side_by_side(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Cancels that hang hold up neither the others, nor the answer, nor the close of another symbol."""
    await room.fill(await room.enter("IBM"), "10")
    resting = [await room.buy(f"S{n}", order_type="limit", limit_price=Decimal(5)) for n in range(6)]
    hanging = {order.order_id for order in resting[:2]}
    cancel = room.exchange.cancel

    async def hangs(order_id: str) -> None:
        if order_id in hanging:
            await asyncio.Event().wait()
        await cancel(order_id)

    mocker.patch.object(room.exchange, "cancel", hangs)
    began = asyncio.get_running_loop().time()
    answer = await kill(room)
    assert asyncio.get_running_loop().time() - began < 1
    assert [order.order_id for order in resting[2:]] == answer["cancelled_orders"]
    assert hanging < set(answer["pending"])

    await room.closing()
    assert asyncio.get_running_loop().time() - began < 2


async def test_a_cancel_that_could_not_leave_is_asked_again_at_once(
    room: MoneyRoom, mocker: MockerFixture
) -> None:
    """Where the link is down in that moment, the cancel does not wait for the time after which one is lost."""
    resting = await room.buy(order_type="limit", limit_price=Decimal(5))
    ask, failures = room.desk.ask_cancel, [CommandError("broker_unavailable", "gone")]

    async def away(order: Order) -> None:
        if failures:
            raise failures.pop()
        await ask(order)

    mocker.patch.object(room.desk, "ask_cancel", away)
    await kill(room)
    await room.until(lambda: resting.status is OrderStatus.CANCELLED, within=2)


async def test_what_a_last_round_hears_while_it_reads_back_is_told(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A close that fills, and a cancel that comes, during the read-back that says done stand in its record."""
    held = await room.enter()
    await room.fill(held, "10")
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    read = room.exchange.open_orders

    async def fills_meanwhile() -> Any:
        for order in room.working(intent="kill"):
            room.exchange.fill(order.order_id, Decimal(10), order.request.quantity)
        await asyncio.sleep(0.01)
        return await read()

    mocker.patch.object(room.exchange, "open_orders", fills_meanwhile)
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")

    body = room.kill.body()
    assert body["closed"] == ["AAPL"]
    assert resting.order_id in body["cancelled"]
    assert len(body["cancelled"]) == 2  # the stop of AAPL as well


async def test_done_is_said_of_nothing_that_the_broker_shows(room: MoneyRoom, mocker: MockerFixture) -> None:
    """An entry that fills while it is cancelled, and whose fill is told late, is not done."""
    entry = await room.buy()
    listener = room.exchange.listener

    async def races(order_id: str) -> None:
        room.exchange.listener = None
        room.exchange.fill(order_id, Decimal(10), Decimal(60))
        room.exchange.listener = listener
        room.exchange.end(order_id, "cancelled", "cancelled")

    mocker.patch.object(room.exchange, "cancel", races)
    await kill(room)
    await room.until(lambda: room.kill.body()["pending"] == ["AAPL"])
    body = room.kill.body()
    assert entry.status is OrderStatus.CANCELLED
    assert body["phase"] != "done"
    assert "the broker shows AAPL" in body["error"]

    await room.path.reconciler.count_fills(room.path.link)
    assert (await room.closing())[0].request.quantity == 60
    await fill_closes(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")


async def test_a_restart_compares_with_the_broker_before_it_says_done(tmp_path: Path) -> None:
    """A kill that was done is not done where the broker shows shares that nobody knows by now."""
    async with MoneyRoom(tmp_path) as room:
        await kill(room, scope=Scope(strategy="test"))
        await room.until(lambda: room.kill.body()["phase"] == "done")
    after = room.again()
    async with after:
        await after.until(lambda: after.kill.body()["phase"] == "done")
        after.exchange.holdings["MSFT"] = Decimal(5)
        after.kill.go_on()
        await after.until(lambda: after.kill.body()["pending"] == ["MSFT"])
        assert after.kill.body()["phase"] != "done"


async def test_a_failed_reset_leaves_no_unlatched_file(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Where the disk fails after the bytes are in, the kill is written again: a restart knows of it."""
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    flush = mocker.patch("sigma9_core.money.latch._flush", side_effect=OSError(5, "Input/output error"))
    with pytest.raises(CommandError, match="the kill stays on"):
        await room.kill.reset("seen", None, "api")
    assert room.kill.body()["latched"] is False
    mocker.stop(flush)
    await room.until(lambda: room.kill.body()["latched"])

    assert [scope.key for scope in room.latch.read().scopes] == [None]


async def test_two_kills_tell_of_the_one_with_furthest_to_go(room: MoneyRoom) -> None:
    """Beside a global halt that is done, a scope that still flattens is what the state tells of."""
    await room.fill(await room.enter("MSFT"), "10")
    gone = await room.buy("AAPL", order_type="limit", limit_price=Decimal(5))
    await kill(room, scope=Scope(symbol="AAPL"))
    await kill(room, scope=Scope(symbol="MSFT"))
    close = (await room.closing())[0]
    body = room.kill.body()
    assert (body["state"], body["phase"]) == ("OFF", "flattening")
    assert body["pending"] == [close.order_id, "MSFT"]
    assert gone.order_id in body["cancelled"]

    await kill(room, flatten=False)
    await room.until(lambda: room.kill._kills[None].phase == "done")
    body = room.kill.body()
    assert (body["state"], body["phase"], body["reason"]) == ("ON", "flattening", "test")
    assert "MSFT" in body["pending"]


async def test_kills_over_one_position_send_one_close_and_refuse_none(room: MoneyRoom) -> None:
    """Three scopes over one position: one close, and no order that the gate refuses."""
    await room.fill(await room.enter(), "10")
    await asyncio.gather(
        kill(room), kill(room, scope=Scope(symbol="AAPL")), kill(room, scope=Scope(strategy="test"))
    )
    await room.closing()
    await room.desk.settle()

    assert len(room.working(intent="kill")) == 1
    assert all(getattr(event.data, "event", None) != "risk_rejected" for event in room.events)
    assert room.kill.body()["error"] is None


async def test_a_reset_leaves_the_close_of_another_kill(room: MoneyRoom) -> None:
    """The global kill's close works on where a narrower kill is reset."""
    await room.fill(await room.enter(), "10")
    await kill(room, scope=Scope(symbol="AAPL"))
    await kill(room)
    close = (await room.closing())[0]
    await room.kill.reset("the rest is enough", Scope(symbol="AAPL"), "api")

    assert close.working
    assert close.order_id not in room.exchange.cancels


async def test_a_kill_s_close_waits_for_no_other_decision(room: MoneyRoom) -> None:
    """However long the rules think of other orders, a kill's own order is decided at once."""
    await room.fill(await room.enter(), "10")
    async with room.desk._decisions:
        await kill(room)
        await room.closing()


async def test_an_answer_tells_whether_it_is_latched(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Who kills hears that a restart would not know of it."""
    assert (await kill(room))["latched"] is True
    mocker.patch.object(room.latch, "write", side_effect=OSError(28, "No space left on device"))
    assert (await kill(room, scope=Scope(symbol="AAPL")))["latched"] is False


async def test_a_kill_of_a_symbol_that_is_not_ours_says_so(room: MoneyRoom) -> None:
    """`aapl` beside a held AAPL closes the gate for aapl, and the answer names the one that is held."""
    await room.fill(await room.enter("AAPL"), "10")
    note = (await kill(room, scope=Scope(symbol="aapl")))["note"]
    assert "nothing of ours has the symbol aapl" in note
    assert "AAPL" in note
    assert (await room.buy("aapl")).rule == "kill_switch"

    assert "note" not in await kill(room, scope=Scope(symbol="AAPL"))


async def test_closes_wait_until_the_broker_is_read_back(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Cancels go out at once after a reconnect; what is closed is sized from books that are up to date."""
    await room.fill(await room.enter(), "10")
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    room.path.link._ready.clear()
    await kill(room)
    await room.until(lambda: room.kill.body()["detail"] == "waiting_for_broker")
    await asyncio.sleep(0.4)
    assert resting.status is OrderStatus.CANCELLED
    assert room.working(intent="kill") == []
    assert len(room.working(protective=True)) == 1
    assert "not read back yet" in room.kill.body()["error"]

    room.path.link._ready.set()
    await room.closing()
    await room.until(lambda: room.kill.body()["error"] is None)


async def test_a_drill_that_waited_for_the_market_does_not_count(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Nothing was closed, so it was no drill."""
    mocker.patch.object(killswitch_module, "DRILL_ROUNDS", 2)
    await room.fill(await room.enter(), "10")
    room.clock.advance(room.clock.now() + timedelta(hours=7))
    result = await room.kill.drill("api")

    assert (result["phase"], result["detail"]) == ("flattening", "waiting_for_market")
    assert room.kill.body()["last_drill"] is None


async def test_a_restart_knows_the_last_drill(tmp_path: Path) -> None:
    """It is written in the trail."""
    async with MoneyRoom(tmp_path) as room:
        await room.kill.drill("api")
        drilled = room.kill.body()["last_drill"]
    async with room.again() as after:
        assert drilled is not None
        assert after.kill.body()["last_drill"] == drilled


async def test_a_stop_shrinks_to_its_position_while_the_close_waits(room: MoneyRoom) -> None:
    """An entry that had filled in part: its stop must not turn the position round while the market is closed."""
    entry = await room.enter()
    await room.fill(entry, "10", 60)
    stop = room.working(protective=True)[0]
    room.clock.advance(room.clock.now() + timedelta(hours=7))
    await kill(room)
    await room.until(lambda: stop.request.quantity == 60)

    assert room.kill.body()["detail"] == "waiting_for_market"
    assert room.exchange.orders[stop.order_id].request.quantity == 60
    await room.fill(stop, "9")
    assert room.exchange.holdings["AAPL"] == 0
    await room.until(lambda: room.kill.body()["phase"] == "done")


async def test_a_stop_that_could_not_shrink_is_tried_again(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Without market data the kill itself looks after it."""
    replace, failures = room.exchange.replace, [BrokerRefused("not now")]

    async def refuses(order: Any) -> None:
        if failures:
            raise failures.pop()
        await replace(order)

    mocker.patch.object(room.exchange, "replace", refuses)
    await room.fill(await room.enter(), "10", 60)
    stop = room.working(protective=True)[0]
    room.clock.advance(room.clock.now() + timedelta(hours=7))
    await kill(room)
    await room.until(lambda: not failures)
    await room.desk.settle()
    assert stop.request.quantity == 100
    room.clock.advance(room.clock.now() + timedelta(seconds=6))
    await room.until(lambda: stop.request.quantity == 60)


async def test_a_stop_does_not_move_under_a_flatten(room: MoneyRoom) -> None:
    """It shrinks, and a person can make of it nothing else."""
    await room.fill(await room.enter(), "10")
    stop = room.working(protective=True)[0]
    room.clock.advance(room.clock.now() + timedelta(hours=7))
    await kill(room)
    changes: dict[str, Any]
    for changes in ({"stop_price": Decimal(9)}, {"quantity": Decimal(50)}, {"quantity": Decimal(120)}):
        with pytest.raises(CommandError) as refused:
            await room.desk.modify(stop.order_id, changes)
        assert refused.value.code == "killed"


@pytest.mark.parametrize(
    "kind", [{"order_type": "stop", "stop_price": 9}, {"order_type": "trailing_stop", "trail_percent": 5}]
)
async def test_a_person_s_own_stop_guards_until_the_close_can_go(room: MoneyRoom, kind: dict[str, Any]) -> None:
    """Overnight a flatten leaves it, since it is what guards the position; it gives way to the close."""
    await room.fill(await room.buy(), "10")
    args = OrderArgs(symbol="AAPL", side="sell", quantity=100, time_in_force="gtc", **kind)
    placed = await room.path.place(args, Command("place_order", {}, "api", id="p1"), ())
    stop = room.desk.orders[placed["order"]["order_id"]]
    assert room.path.portfolio.position("AAPL").protected
    kept = await room.path.cancel_all(CancelAllArgs())
    assert kept["cancelled"] == []

    room.clock.advance(room.clock.now() + timedelta(hours=7))
    await kill(room)
    await room.until(lambda: room.kill.body()["detail"] == "waiting_for_market")
    assert stop.working
    assert room.exchange.cancels == []

    room.clock.advance(room.clock.now() + timedelta(hours=17.5))
    await room.until(lambda: room.working(intent="kill"), within=5)
    assert stop.status is OrderStatus.CANCELLED


async def test_a_person_s_own_stop_does_not_move_the_guard_s(room: MoneyRoom) -> None:
    """Beside the protective stop of the entry it has a price of its own."""
    await room.fill(await room.enter(), "10")
    guards = room.working(protective=True)[0]
    price = guards.request.stop_price
    args = OrderArgs(symbol="AAPL", side="sell", quantity=100, order_type="stop", stop_price=9.9)
    placed = await room.path.place(args, Command("place_order", {}, "api", id="p1"), ())
    await room.desk.modify(placed["order"]["order_id"], {"stop_price": Decimal("9.95")})
    await room.tick("AAPL", 10)

    assert room.exits.guards["AAPL"].stop_price == price
    assert guards.working
    assert guards.request.stop_price == price


async def test_a_failed_reset_says_that_it_is_not_latched(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Until the kill is written again, which may take a while, nobody is told that a restart knows of it."""
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    write, slow, calls = room.latch.write, threading.Event(), 0

    def first_fails(state: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            slow.wait(5)
        write(state)
        if calls == 1:
            raise OSError(5, "Input/output error")

    mocker.patch.object(room.latch, "write", first_fails)
    with pytest.raises(CommandError, match="the kill stays on"):
        await room.kill.reset("seen", None, "api")
    assert room.kill.body()["latched"] is False

    slow.set()
    await room.until(lambda: room.kill.body()["latched"])
    assert [scope.key for scope in room.latch.read().scopes] == [None]


async def test_a_stop_that_a_lost_kill_put_back_is_no_close(tmp_path: Path) -> None:
    """Found again at the broker without an intent, it is a stop, and the position is closed beside it."""
    room = await MoneyRoom(tmp_path).__aenter__()  # it ends by a crash
    await room.fill(await room.enter(), "10")
    room.exchange.faults.add("reject_markets")
    room.journal.write = lambda _records, **_more: Future()  # type: ignore[method-assign] # a disk that is full
    await kill(room)
    await room.until(lambda: room.working(intent="kill", protective=True), 10)
    stop = room.working(intent="kill", protective=True)[0]
    await room.until(lambda: stop.order_id in room.exchange.orders)
    after = await room.crash()
    after.exchange.faults.clear()
    async with after:
        back = after.desk.orders[stop.order_id]
        assert (back.request.order_type, back.request.protective) == ("stop", True)
        assert back.request.stop_price == stop.request.stop_price
        orders = after.exchange.orders
        await after.until(
            lambda: any(
                each.state == "working" and each.request.order_type == "market" for each in orders.values()
            ),
            10,
        )
        assert orders[stop.order_id].state == "cancelled"


async def test_a_cancel_that_the_broker_did_not_take_is_asked_for_again_soon(room: MoneyRoom) -> None:
    """An order that was on its way when its cancel was refused is cancelled within a second, not after five."""
    order = await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    cancel, refusals = room.exchange.cancel, 1

    async def not_yet(order_id: str) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise BrokerRefused("no order has this id")
        await cancel(order_id)

    room.exchange.cancel = not_yet  # type: ignore[method-assign]
    await kill(room)
    await room.until(lambda: order.status is OrderStatus.CANCELLED, 2)


async def test_a_kill_says_which_order_it_may_not_cancel_and_why(room: MoneyRoom) -> None:
    """The broker's reason stands in the state as long as it holds, and the kill goes on once it is over."""
    await room.fill(await room.enter("AAPL"), "10")
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(5))
    room.exchange.faults.add("no_right")
    await kill(room)
    why = f"order {resting.order_id} was sent by another client: cancel it there"
    await room.until(lambda: room.kill.body()["error"] == why)
    assert room.working(intent="kill") == []
    assert {*room.exchange.cancels} <= room.exchange.orders.keys()
    with pytest.raises(CommandError, match=r"goes on working: .* was sent by another client"):
        await room.desk.cancel(resting.order_id)

    room.exchange.faults.clear()
    await room.closing()
    await room.until(lambda: room.kill.body()["error"] is None)
    await fill_closes(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")


@pytest.mark.parametrize("scope", [None, Scope(symbol="AAPL")])
async def test_what_only_a_wider_cancel_stops_is_stopped_where_that_is_allowed(
    tmp_path: Path, scope: Scope | None
) -> None:
    """What of ours can't be cancelled is cancelled as what is foreign is: by a global kill with the permission."""
    room = MoneyRoom(tmp_path, settings=Settings(kill_switch=KillSwitchSettings(foreign="cancel")))
    async with room:
        await room.fill(await room.enter("AAPL"), "10")
        resting = await room.buy("AAPL", order_type="limit", limit_price=Decimal(5))
        room.exchange.faults.add("no_right")
        await kill(room, scope=scope)
        if scope is not None:
            await room.until(lambda: "another client" in str(room.kill.body()["error"]))
            assert {*room.exchange.cancels} <= room.exchange.orders.keys()
            return
        await room.closing()
        assert resting.status is OrderStatus.CANCELLED
        await fill_closes(room)
        await room.until(lambda: room.kill.body()["phase"] == "done")
        assert room.desk.open_orders() == []


async def test_a_kill_that_was_done_is_done_again_after_an_outage(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Looks that fail for want of a broker end in `failed`; once it is back, what was done is told as done."""
    mocker.patch.object(killswitch_module, "GIVE_UP_ROUNDS", 2)
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    await room.path.link.disconnect()
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "failed", 5)
    room.path.link.connect()
    await room.until(lambda: room.kill.body()["phase"] == "done", 10)
    assert (room.kill.body()["error"], room.kill.body()["pending"]) == (None, [])


async def test_a_reset_that_fails_in_any_way_leaves_the_kill_at_work(room: MoneyRoom) -> None:
    """Whatever the latch raises, the kill goes on: what is filled late is still closed."""
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")

    def broken(_state: object) -> None:
        raise ValueError("no latch")

    write = room.latch.write
    room.latch.write = broken  # type: ignore[assignment,method-assign]
    with pytest.raises(ValueError, match="no latch"):
        await room.kill.reset("seen", None, "api")
    room.latch.write = write  # type: ignore[method-assign]
    assert room.kill.body()["state"] == "ON"
    assert room.kill._tasks


async def test_a_kill_that_joins_a_drill_in_its_first_moment_is_a_real_one(room: MoneyRoom) -> None:
    """Its reason and source are the person's, in the latch as well, and the drill does not reset it."""
    await room.fill(await room.enter(), "10")
    drill = asyncio.create_task(room.kill.drill("cli"))
    await room.until(lambda: room.kill.latched)
    await room.kill.fire(reason="PANIC", source="mqtt")
    with pytest.raises(CommandError, match="a real kill came during the drill"):
        await drill
    body = room.kill.body()
    assert (body["state"], body["reason"], body["source"]) == ("ON", "PANIC", "mqtt")
    assert room.latch.read().scopes[0].reason == "PANIC"


async def test_cancelling_everything_leaves_a_kill_s_close(room: MoneyRoom) -> None:
    """`cancel_all` with protective orders is a person's wish for orders, and no end of a kill."""
    await room.fill(await room.enter(), "10")
    await kill(room)
    close = (await room.closing())[0]
    await room.path.cancel_entries(protective=True)
    assert close.working


async def test_a_kill_is_answered_before_it_is_told_of(
    room: MoneyRoom, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tells of it would hold its answer up: state, log and trail come a moment later, none is left out."""
    monkeypatch.setattr(afterwards, "AFTER", 0.5)  # a busy machine takes its time
    shown: list[str] = []
    room.path._show_outside = lambda bodies: shown.append((bodies["kill_switch"] or {})["phase"])
    held = await room.enter()
    await room.fill(held, "10")
    await room.path.desk.settle()
    room.path._touch()
    await asyncio.sleep(0.2)
    shown.clear()
    await kill(room)
    assert room.path.gate.closing(held.request) is not None
    assert "KILL SWITCH" not in caplog.text
    await room.until(lambda: "KILL SWITCH" in caplog.text)
    await room.until(lambda: "cancelling" in shown)
    await trail_written(room)
    assert [note.body["what"] for note in room.journal.notes("kill", 9)] == ["fired"]


async def test_who_killed_and_why_is_in_the_journal_with_the_answer(tmp_path: Path) -> None:
    """A crash right after the answer leaves the trail, not the latch alone."""
    async with MoneyRoom(tmp_path) as room:
        await kill(room, flatten=False)
        room.path.afterwards._steps.clear()  # the process ends here: nothing that was put off is done
        after = await room.crash()
    async with after:
        assert "fired" in [note.body.get("what") for note in after.journal.notes("kill", 10)]


async def test_the_trail_of_a_kill_with_nothing_to_do_is_in_order(room: MoneyRoom) -> None:
    """The trail tells what happened in its order, and a restart finds that the kill is done."""
    await kill(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")
    await trail_written(room)
    assert [note.body["what"] for note in room.journal.notes("kill", 9)] == ["done", "fired"]
    await room.kill.reset("test", None, "api")
    await room.kill.drill("api")
    await trail_written(room)
    newest_first = [note.body["what"] for note in room.journal.notes("kill", 9)]
    assert newest_first == ["reset", "drilled", "done", "fired", "reset", "done", "fired"]


async def test_kills_work_on_a_position_one_at_a_time(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A stop that one kill puts back while another one closes would have the close refused, for ever."""
    work, seen, goes_on = room.kill._work, list[str](), asyncio.Event()

    async def slow(_kill: Any, symbol: str, _quantity: Decimal) -> None:
        seen.append(symbol)
        await goes_on.wait()

    first = asyncio.create_task(work._alone(slow, mocker.Mock(), "AAPL", Decimal(100)))
    await asyncio.sleep(0)
    await work._alone(slow, mocker.Mock(), "AAPL", Decimal(100))
    assert seen == ["AAPL"]
    goes_on.set()
    await first
    await work._alone(slow, mocker.Mock(), "AAPL", Decimal(100))
    assert seen == ["AAPL", "AAPL"]

"""Tests of `sigma9_core.money.unwanted`: what exits have opened is found, over restarts too, and closed."""

from __future__ import annotations

import asyncio
import itertools
from decimal import Decimal
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sigma9_core.commands import AdoptArgs, CloseArgs, Command
from sigma9_core.errors import BrokerError, JournalError
from sigma9_core.models import Side
from sigma9_core.money import path as path_module
from sigma9_core.money import unwanted as unwanted_module
from sigma9_core.money.orders import Order
from sigma9_core.testing.money_room import MoneyRoom


async def close(room: MoneyRoom) -> Order:
    """Close the position in AAPL as a person does; give the order."""
    answer = await room.path.close(CloseArgs(symbol="AAPL"), Command("close_position", {}, "api", id="c1"), [])
    (left,) = answer["orders"]
    return room.desk.orders[left["order_id"]]


async def test_what_an_exit_opens_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that has filled beside a close, and was told late, leaves no naked short."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    async with MoneyRoom(tmp_path) as room:
        await room.fill(await room.enter("AAPL", 100), "10")
        await room.until(lambda: room.path.portfolio.position("AAPL").protected)
        (stop,) = room.working(protective=True)
        room.exchange.orders[stop.order_id].request = stop.request.model_copy(update={"oca_group": None})
        left = await close(room)
        room.exchange.faults.add("no_cancel")
        await room.fill(left, "10")
        await room.fill(stop, "9.8")
        assert room.path.portfolio.quantity("AAPL") == -100
        await room.until(lambda: room.working(side="buy"))
        (back,) = room.working(side="buy")
        assert (back.request.quantity, back.request.intent, back.request.source) == (
            Decimal(100),
            "reduce",
            "exit",
        )
        await asyncio.sleep(0.1)
        assert room.working(side="buy") == [back]
        await room.fill(back, "9.8")
        assert room.path.portfolio.quantity("AAPL") == 0
        await asyncio.sleep(0.1)
        assert not room.desk.open_orders()


async def overshoot(room: MoneyRoom) -> None:
    """Let a stop of 100 fill beside a close of 100, so that a short of 100 is left."""
    await room.fill(await room.enter("AAPL", 100), "10")
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)
    (stop,) = room.working(protective=True)
    room.exchange.orders[stop.order_id].request = stop.request.model_copy(update={"oca_group": None})
    left = await close(room)
    room.exchange.faults.add("no_cancel")
    await room.fill(left, "10")
    await room.fill(stop, "9.8")
    room.exchange.faults.clear()
    assert room.path.portfolio.quantity("AAPL") == -100


async def taken_back(room: MoneyRoom, side: Side = "buy") -> Order:
    """Wait for the order that closes what an exit has opened."""
    await room.until(lambda: room.working(side=side, intent="reduce"))
    (back,) = room.working(side=side, intent="reduce")
    await room.until(lambda: back.order_id in room.exchange.orders)
    return back


async def test_what_an_exit_opened_before_a_crash_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it crashes, and however little of it has filled: the journal's fills say who has opened it."""
    async with MoneyRoom(tmp_path) as room:
        await overshoot(room)
        after = await room.crash()
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    async with after:
        back = await taken_back(after)
        assert back.request.quantity == 100
        await after.fill(back, "9.8", 60)
        assert after.path.portfolio.quantity("AAPL") == -40
        again = await after.crash()
    async with again:
        await asyncio.sleep(0.05)
        assert [order.order_id for order in again.working(side="buy")] == [back.order_id]
        again.exchange.end(back.order_id, "cancelled", "the exchange says so")
        rest = await taken_back(again)
        assert (rest.request.quantity, rest.order_id != back.order_id) == (Decimal(40), True)
        await again.fill(rest, "9.8")
        assert again.path.portfolio.quantity("AAPL") == 0
        last = await again.crash()
    async with last:
        await asyncio.sleep(0.05)
        assert not last.desk.open_orders()


@pytest.mark.parametrize("how", ["gate", "refuse", "reject_markets", "disk"])
async def test_a_close_of_what_an_exit_opened_that_is_refused_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mocker: MockerFixture,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """Each reason is a warning once, the tries come at growing waits, up to a minute; in the end it goes out."""
    now = 0.0
    monkeypatch.setattr(unwanted_module, "monotonic", lambda: now)
    async with MoneyRoom(tmp_path) as room:
        await overshoot(room)
        if how == "gate":
            room.path.gate.hold({"AAPL": "nobody knows what there is"})
        elif how == "disk":
            mocker.patch.object(room.journal, "commit", side_effect=JournalError("the disk is full"))
        else:
            room.exchange.faults.add("refuse" if how == "refuse" else "reject_markets")
        asked = mocker.spy(room.desk, "submit")
        tried: list[float] = []
        while now < 300:
            before = asked.call_count
            await room.path.unwanted._take_back("AAPL")
            await room.desk.settle()
            tried += [now] * (asked.call_count - before)
            now += 5
        waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert waits[-2:] == [60, 60] or waits[-2:] == [65, 65]
        assert waits == sorted(waits)
        told = [each for each in caplog.records if "can't be closed yet" in each.getMessage()]
        assert [each.levelname for each in told] == ["WARNING"]

        room.path.gate.hold({})
        room.exchange.faults.clear()
        mocker.stopall()
        now += 65
        await room.path.unwanted._take_back("AAPL")
        now += 65
        await room.path.unwanted._take_back("AAPL")
        back = await taken_back(room)
        await room.fill(back, "9.8", 60)
        room.exchange.end(back.order_id, "cancelled", "the exchange says so")
        await room.path.unwanted._take_back("AAPL")
        rest = await taken_back(room)
        assert (rest.request.quantity, room.path.portfolio.quantity("AAPL")) == (Decimal(40), Decimal(-40))


async def test_a_close_of_what_nobody_wanted_shrinks_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another order has closed meanwhile, such as a late fill, its own close must not close once more."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    async with MoneyRoom(tmp_path) as room:
        await overshoot(room)
        back = await taken_back(room)
        await room.fill(await room.buy(quantity=60, order_type="limit", limit_price=Decimal(11)), "10")
        await room.until(lambda: not back.working)
        smaller = await taken_back(room)
        assert smaller.request.quantity == 40


async def test_what_flips_through_zero_is_as_unwanted_as_what_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late entry shrinks what an exit has opened, and the rest is nobody's; once it turns it, it is wanted."""
    async with MoneyRoom(tmp_path) as room:
        entry = await room.buy()
        await room.fill(entry, "10", 60)
        other = await room.buy(quantity=30, order_type="limit", limit_price=Decimal(9))
        leave = await room.buy(side="sell", quantity=60, intent="reduce")
        room.exchange.orders[leave.order_id].request = leave.request.model_copy(update={"quantity": Decimal(100)})
        await room.fill(leave, "10", 100)
        assert room.path.portfolio.quantity("AAPL") == -40
        await room.fill(other, "9")
        assert room.path.unwanted.states.keys() == {"AAPL"}
        after = await room.crash()
    async with after:
        assert after.path.portfolio.quantity("AAPL") == -10
        assert after.path.unwanted.states.keys() == {"AAPL"}
        await after.fill(entry, "10", 40)
        assert after.path.portfolio.quantity("AAPL") == 30
        assert after.path.unwanted.states == {}
        again = await after.crash()
    async with again:
        assert again.path.unwanted.states == {}


async def test_a_position_that_an_entry_or_a_person_wanted_stays(tmp_path: Path) -> None:
    """Neither a strategy's long nor a short, nor one that was adopted, is taken for the work of an exit."""
    room = MoneyRoom(tmp_path)
    room.exchange.holdings["IBM"] = Decimal(-50)
    async with room:
        await room.fill(await room.enter("AAPL", 100), "10")
        await room.fill(await room.buy("MSFT", 10), "10")
        await room.fill(await room.buy("TSLA", 10, side="sell"), "10")
        await room.path.adopt(AdoptArgs(symbol="IBM", strategy="mine"))
        after = await room.crash()
    async with after:
        assert len(after.path.portfolio.positions()) == 4
        assert after.path.unwanted.states == {}


async def test_what_an_exit_has_opened_by_a_bust_of_its_entry_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the buy that was taken back, the sale is a short that nobody wanted."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    async with MoneyRoom(tmp_path) as room:
        entry = await room.buy()
        await room.fill(entry, "10")
        bought = room.exchange.fills[0]
        left = await close(room)
        await room.fill(left, "10")
        room.exchange.holdings["AAPL"] = Decimal(-100)
        room.exchange.cash += 1000
        room.exchange.fills.remove(bought)
        room.exchange.report("busted", entry.order_id, fill=bought)
        assert (await taken_back(room)).request.quantity == 100


async def test_a_close_beside_a_guard_is_taken_back_when_it_would_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fill of a stop is taken back while what it has opened is being closed: that close goes as well."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    async with MoneyRoom(tmp_path) as room:
        await room.fill(await room.enter("AAPL", 10, side="sell"), "10")
        (stop,) = room.working(protective=True)
        ask = room.exchange.orders[stop.order_id].request
        room.exchange.orders[stop.order_id].request = ask.model_copy(update={"quantity": Decimal(60)})
        room.exchange.fill(stop.order_id, Decimal("10.2"), Decimal(60))
        await room.desk.settle()
        back = await taken_back(room, "sell")
        assert back.request.quantity == 50

        bought = room.exchange.fills[-1]
        room.exchange.holdings["AAPL"] -= 60
        room.exchange.cash += 60 * bought.price
        room.exchange.fills.remove(bought)
        room.exchange.report("busted", stop.order_id, fill=bought)
        await room.until(lambda: room.working(protective=True) and not back.working)
        assert room.path.portfolio.quantity("AAPL") == -10
        (left,) = room.desk.open_orders()
        assert (left.request.side, left.request.quantity) == ("buy", Decimal(10))


async def test_an_exit_that_is_told_before_its_entry_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports that come in another order are no position that nobody wanted: the read-back shows it."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    async with MoneyRoom(tmp_path) as room:
        entry = await room.enter("AAPL", 100)
        (stop,) = room.working(protective=True)
        listener, room.exchange.listener = room.exchange.listener, None
        room.exchange.fill(entry.order_id, Decimal(10))
        room.exchange.listener = listener
        room.exchange.fill(stop.order_id, Decimal("9.8"))
        await room.until(lambda: room.path.portfolio.quantity("AAPL") == 0)
        await asyncio.sleep(0.1)

        assert len(room.exchange.submitted) == 2


async def test_a_broker_that_gives_no_account_holds_no_close_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture
) -> None:
    """What nobody wanted is closed though the look at the cash fails each time."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    monkeypatch.setattr(path_module, "CASH_EVERY", 0.0)
    async with MoneyRoom(tmp_path) as room:
        mocker.patch.object(room.exchange, "account", side_effect=BrokerError("no account now"))
        await overshoot(room)
        assert (await taken_back(room)).request.quantity == 100

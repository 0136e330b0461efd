"""Tests of `sigma9_core.money.path`: what commands do to orders and positions, and what a restart takes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sigma9_core.clock import SteppedClock
from sigma9_core.commands import (
    AdoptArgs,
    BracketArgs,
    CancelAllArgs,
    CloseArgs,
    Command,
    CommandSource,
    KillArgs,
    ModifyOrderArgs,
    OrderArgs,
    SettleArgs,
)
from sigma9_core.contracts import BrokerAccount, BrokerOrder, BrokerPosition, BrokerReport, RiskView, Signal, Trip
from sigma9_core.errors import BrokerError, CommandError, JournalError
from sigma9_core.models import ExitPlan, OrderRequest, OrderStatus, RuleUsage, Slice, Trade, Verdict
from sigma9_core.money import desk as desk_module
from sigma9_core.money import path as path_module
from sigma9_core.money.orders import Order
from sigma9_core.money.records import CommandRecord
from sigma9_core.testing.journal_places import Commits, FilePlace, Outcome
from sigma9_core.testing.model.room import RoughJournal
from sigma9_core.testing.money_room import OPEN, SESSIONS, AllowAll, MoneyRoom


@pytest.fixture(name="room")
async def _room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MoneyRoom]:
    monkeypatch.setattr(path_module, "CANCELLED_WITHIN", 0.2)
    async with MoneyRoom(tmp_path, rule=AllowAll(refuses="NOPE")) as room:
        yield room


def command(name: str = "place_order", source: CommandSource = "api") -> Command:
    return Command(name, {}, source, id="c1")


def received(name: str = "place_order") -> CommandRecord:
    return CommandRecord("received", name, "c1", "digest", "api", None, OPEN)


async def place(
    room: MoneyRoom, symbol: str = "AAPL", side: Any = "buy", quantity: int = 100, **more: Any
) -> dict[str, Any]:
    """Place an order as a command does, its received row with it."""
    args = OrderArgs(symbol=symbol, side=side, quantity=Decimal(quantity), **more)
    return dict(await room.path.place(args, command(), [received()]))


async def close(room: MoneyRoom, symbol: str) -> dict[str, Any]:
    """Close as a command does."""
    return dict(
        await room.path.close(CloseArgs(symbol=symbol), command("close_position"), [received("close_position")])
    )


async def hold(room: MoneyRoom, symbol: str = "AAPL", quantity: int = 100, price: str = "10") -> Order:
    """Hold a position without any exit."""
    order = await room.buy(symbol, quantity)
    await room.fill(order, price)
    return order


def refusal(caught: pytest.ExceptionInfo[CommandError]) -> tuple[str, str]:
    return caught.value.code, caught.value.message


# --- place ------------------------------------------------------------------------------------------------------


async def test_an_order_is_answered_as_it_stands(room: MoneyRoom) -> None:
    """`place_order` answers with the order once it was sent; the received row is committed with the intent."""
    result = await place(room, order_type="limit", limit_price=Decimal("9.5"), reason="why not")
    order = result["order"]

    assert (order["status"], order["symbol"], order["limit_price"], order["reason"]) == (
        "accepted",
        "AAPL",
        9.5,
        "why not",
    )
    assert (order["source"], result["legs"]) == ("api", [])
    intent = room.journal.intent(order["order_id"])
    assert intent is not None
    assert (intent.cause, intent.request.intent) == ("c1", "entry")
    assert [row.stage for row in room.journal.command("place_order", "c1", OPEN)] == ["received"]


@pytest.mark.parametrize(
    ("source", "shown"), [("mqtt", "mqtt"), ("cli", "cli"), ("schedule", "schedule"), ("socket", "api")]
)
async def test_an_order_carries_its_source(room: MoneyRoom, source: CommandSource, shown: str) -> None:
    """MQTT, command line and schedule are named; every other surface is `api`."""
    args = OrderArgs(symbol="AAPL", side="buy", quantity=Decimal(1))
    result = await room.path.place(args, command(source=source), [])

    assert result["order"]["source"] == shown


async def test_a_refused_order_is_answered_with_rule_and_numbers(room: MoneyRoom) -> None:
    """risk_rejected names the rule and gives every verdict; nothing was sent."""
    with pytest.raises(CommandError) as caught:
        await place(room, "NOPE")

    assert refusal(caught) == ("risk_rejected", "allow_all: this symbol is refused")
    assert caught.value.details["rule"] == "allow_all"
    assert [verdict["outcome"] for verdict in caught.value.details["verdicts"]] == ["refuse"]
    refused = room.journal.order(caught.value.details["order_id"])
    assert refused is not None
    assert refused.rule == "allow_all"
    assert room.exchange.submitted == []


async def test_without_a_broker_nothing_is_placed_or_closed(room: MoneyRoom) -> None:
    """The answer is broker_unavailable; no intent is written for what could not be sent."""
    await hold(room)
    before = len(list(room.journal.intents()))
    await room.path.link.disconnect()
    for attempt in (place(room, "MSFT"), close(room, "AAPL"), close(room, "*")):
        with pytest.raises(CommandError) as caught:
            await attempt
        assert caught.value.code == "broker_unavailable"

    assert len(list(room.journal.intents())) == before


async def test_a_bracket_goes_out_as_one_unit(room: MoneyRoom) -> None:
    """Entry, stop and take-profit are sent together, the legs as children in one group; the stop protects."""
    bracket = BracketArgs(stop_price=Decimal("9.50"), take_profit=Decimal(12))
    result = await place(room, bracket=bracket)
    entry, stop, profit = (room.exchange.orders[order_id].request for order_id in room.exchange.submitted)

    assert [result["order"]["order_id"], *result["legs"]] == room.exchange.submitted
    assert (stop.order_type, stop.stop_price, stop.protective, stop.side) == (
        "stop",
        Decimal("9.50"),
        True,
        "sell",
    )
    assert (profit.order_type, profit.limit_price, profit.intent) == ("limit", Decimal(12), "reduce")
    assert entry.intent == "entry"
    assert stop.oca_group == profit.oca_group is not None
    assert stop.parent_id == profit.parent_id == result["order"]["order_id"]
    assert {stop.quantity, profit.quantity} == {Decimal(100)}


async def test_a_bracket_s_legs_end_each_other(room: MoneyRoom) -> None:
    """The stop stays where it was put, whatever the fill; when the profit is taken the stop is gone."""
    result = await place(room, bracket=BracketArgs(stop_price=Decimal("9.50"), take_profit=Decimal(12)))
    entry = room.desk.orders[result["order"]["order_id"]]
    await room.fill(entry, "10.20")
    stop, profit = (room.desk.orders[order_id] for order_id in result["legs"])
    assert stop.request.stop_price == Decimal("9.50")
    assert room.path.portfolio.position("AAPL").protected

    await room.fill(profit, "12")
    assert stop.status is OrderStatus.CANCELLED
    assert room.path.portfolio.quantity("AAPL") == 0
    assert room.desk.open_orders() == []


async def test_a_bracket_wants_an_order_that_opens(room: MoneyRoom) -> None:
    """Against a position a bracket is invalid, and the field is named."""
    await hold(room)
    with pytest.raises(CommandError) as caught:
        await place(room, side="sell", bracket=BracketArgs(stop_price=Decimal(12)))

    assert (caught.value.code, caught.value.details) == ("invalid", {"field": "bracket"})


async def test_what_is_against_a_position_reduces_it(room: MoneyRoom) -> None:
    """A sell of what is held passes as a reducing order, also where entries are refused; no more than that."""
    await hold(room, "NOPE2")
    room.path.gate.pause("the engine is paused")
    result = await place(room, "NOPE2", "sell", 60)
    assert result["order"]["status"] == "accepted"
    with pytest.raises(CommandError, match="would not only reduce"):
        await place(room, "NOPE2", "sell", 60)
    with pytest.raises(CommandError, match="the engine takes no entries"):
        await place(room, "NOPE2", "buy", 1)


async def test_a_sell_beside_a_stop_can_t_flip_the_position(room: MoneyRoom) -> None:
    """A person's order joins the group of the protective stop: one of them fills, and what is left is guarded."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    result = await place(room, side="sell", quantity=40, order_type="limit", limit_price=Decimal(11))
    order = room.desk.orders[result["order"]["order_id"]]
    assert order.request.oca_group == stop.request.oca_group

    await room.fill(order, "11")
    assert stop.status is OrderStatus.CANCELLED
    guards = room.working(protective=True)
    assert [guard.request.quantity for guard in guards] == [Decimal(60)]


async def test_a_preview_sends_nothing(room: MoneyRoom) -> None:
    """A preview gives the verdicts of every rule and the intent; no order, no event, no intent comes of it."""
    good = await room.path.preview(OrderArgs(symbol="AAPL", side="buy", quantity=Decimal(5)))
    bad = await room.path.preview(OrderArgs(symbol="NOPE", side="buy", quantity=Decimal(5)))

    assert (good["approved"], good["intent"], good["margin"]) == (True, "entry", None)
    assert (bad["approved"], bad["verdicts"][0]["reason"]) == (False, "this symbol is refused")
    assert (room.exchange.submitted, room.events, list(room.journal.intents())) == ([], [], [])
    assert room.desk.view().entries_today == 0


# --- modify and cancel ------------------------------------------------------------------------------------------


async def test_a_change_is_answered_with_the_new_terms(room: MoneyRoom) -> None:
    """`modify_order` changes what is named and nothing else."""
    order_id = (await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]
    args = ModifyOrderArgs(order_id=order_id, limit_price=Decimal(8))
    result = await room.path.modify(args, command("modify_order"), [received("modify_order")])

    assert (result["order"]["limit_price"], result["order"]["quantity"]) == (8, 100)
    assert result["order"]["status"] == "replaced"
    assert len(room.journal.command("modify_order", "c1", OPEN)) == 1


async def test_a_change_that_the_broker_refuses_in_time_is_answered_so(
    room: MoneyRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`modify_order` answers with the broker's words; of a broker that is silent it answers that it was sent."""
    order_id = (await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]
    args = ModifyOrderArgs(order_id=order_id, limit_price=Decimal(8))
    room.exchange.faults = {"lost_change"}
    changing = asyncio.create_task(room.path.modify(args, command("modify_order"), []))
    await room.until(lambda: room.desk.orders[order_id].replacement is not None and not room.desk.changing)
    room.exchange.report("unchanged", order_id, reason="no changes here")
    with pytest.raises(CommandError) as caught:
        await changing
    words = f"order {order_id} stands as it was: the change was not made: no changes here"
    assert refusal(caught) == ("conflict", words)

    monkeypatch.setattr(desk_module, "ANSWERED_WITHIN", 0.01)
    answer = await room.path.modify(args, command("modify_order"), [])
    assert (answer["order"]["status"], answer["order"]["limit_price"]) == ("accepted", 9)


async def test_a_change_of_nothing_is_invalid(room: MoneyRoom) -> None:
    """Without a field that changes the answer says what to name."""
    order_id = (await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]
    with pytest.raises(CommandError) as caught:
        await room.path.modify(ModifyOrderArgs(order_id=order_id), command("modify_order"), [])

    assert refusal(caught) == ("invalid", "name at least one field that changes, such as limit_price")


@pytest.mark.parametrize(
    ("terms", "changes", "field", "sentence"),
    [
        ({}, {"limit_price": 9}, "limit_price", "limit_price does not go with a market order"),
        (
            {"order_type": "stop", "stop_price": Decimal(11)},
            {"limit_price": 9, "quantity": 1000},
            "limit_price",
            "limit_price does not go with a stop order",
        ),
        (
            {"order_type": "limit", "limit_price": Decimal(9)},
            {"stop_price": 8, "trail_amount": 1},
            "stop_price",
            "stop_price does not go with a limit order; trail_amount does not go with a limit order",
        ),
        (
            {"order_type": "trailing_stop", "trail_percent": Decimal(2)},
            {"trail_amount": 1},
            "trail_percent",
            "trail_percent does not go with trail_amount: give one of the two",
        ),
    ],
)
async def test_a_change_fits_the_type_of_the_order(
    room: MoneyRoom, terms: dict[str, Any], changes: dict[str, Any], field: str, sentence: str
) -> None:
    """A price that does not go with the order's type is invalid, as it is with a new order; nothing is judged."""
    order = room.desk.orders[(await place(room, **terms))["order"]["order_id"]]
    before, numbered = order.request, room.journal.last_seq
    args = ModifyOrderArgs.model_validate({"order_id": order.order_id, **changes})
    with pytest.raises(CommandError) as caught:
        await room.path.modify(args, command("modify_order"), [])

    assert refusal(caught) == ("invalid", sentence)
    assert caught.value.details["field"] == field
    assert (order.request, room.journal.last_seq) == (before, numbered)


async def test_a_change_that_a_rule_refuses_leaves_the_order(room: MoneyRoom, mocker: MockerFixture) -> None:
    """A change is judged as a new order; refused, the old terms stand and can be changed again."""
    order = room.desk.orders[(await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]]
    rule = room.path.gate.rules[0].rule
    refuse = Verdict(rule="allow_all", code="T1", outcome="refuse", reason="too cheap")
    mocker.patch.object(rule, "check", return_value=refuse)
    with pytest.raises(CommandError, match="too cheap"):
        await room.path.modify(ModifyOrderArgs(order_id=order.order_id, limit_price=Decimal(8)), command(), [])
    mocker.stopall()
    assert order.replacement is None
    assert order.request.limit_price == 9

    await room.path.modify(ModifyOrderArgs(order_id=order.order_id, limit_price=Decimal(7)), command(), [])
    assert order.request.limit_price == 7


async def test_a_change_without_a_broker_was_not_sent(room: MoneyRoom) -> None:
    """With the broker away nothing is in doubt: the order stays as it is, and can be changed when it is back."""
    order = room.desk.orders[(await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]]
    await room.path.link.disconnect()
    with pytest.raises(CommandError, match="was not sent") as caught:
        await room.path.modify(ModifyOrderArgs(order_id=order.order_id, limit_price=Decimal(8)), command(), [])

    assert caught.value.code == "broker_unavailable"
    assert order.replacement is None


async def test_nothing_is_changed_before_it_is_known_what_has_happened(room: MoneyRoom) -> None:
    """While a reconnect is being reconciled a change is refused: it would be sized from what was."""
    order = room.desk.orders[(await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]]
    await room.path.link.disconnect()
    pause, read = asyncio.Event(), room.exchange.open_orders

    async def slow() -> Any:
        await pause.wait()
        return await read()

    room.exchange.open_orders = slow  # type: ignore[method-assign]
    room.path.link.connect()
    await room.until(lambda: room.path.link.state == "connected")
    args = ModifyOrderArgs(order_id=order.order_id, quantity=Decimal(50))
    with pytest.raises(CommandError, match="is not reconciled yet") as caught:
        await room.path.modify(args, command("modify_order"), [])
    pause.set()
    await room.path.link.wait_ready()
    await room.path.modify(args, command("modify_order"), [])

    assert caught.value.code == "broker_unavailable"
    assert order.request.quantity == 50


async def test_a_link_that_is_down_is_said_to_be(room: MoneyRoom) -> None:
    """While the broker's own link is down an order is refused for that, not as one that could be tried again."""
    up = room.path.link.health
    room.path.link.on_health(replace(up, link="down"))
    with pytest.raises(CommandError, match="has lost its own servers") as caught:
        await place(room, order_type="limit", limit_price=Decimal(9))
    room.path.link.on_health(up)
    await room.until(lambda: room.path.link.ready and not room.path.link.stale)
    answer = await place(room, order_type="limit", limit_price=Decimal(9))

    assert caught.value.code == "broker_unavailable"
    assert answer["order"]["order_id"] in room.exchange.orders


async def test_what_was_sized_before_a_reconnect_is_not_sent_in_it(room: MoneyRoom) -> None:
    """A close that waits for the disk while the stop fills unheard does not leave before that is known."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    disk, broker = asyncio.Event(), asyncio.Event()
    commit, read = room.journal.commit, room.exchange.open_orders

    async def slow_commit(records: Any, **more: Any) -> Any:
        found = await commit(records, **more)
        await disk.wait()
        return found

    async def slow_read() -> Any:
        await broker.wait()
        return await read()

    room.journal.commit = slow_commit  # type: ignore[method-assign]
    room.exchange.open_orders = slow_read  # type: ignore[method-assign]
    closing = asyncio.create_task(close(room, "AAPL"))
    await room.until(lambda: room.working(order_type="market"))
    await room.path.link.disconnect()
    room.exchange.fill(stop.order_id, Decimal("9.80"))
    room.path.link.connect()
    await room.until(lambda: room.path.link.state == "connected")
    disk.set()
    result = await closing
    broker.set()
    await room.path.link.wait_ready()

    assert result["orders"][0]["status"] == "cancelled"
    assert "is being read back" in result["orders"][0]["reason"]
    assert len(room.exchange.submitted) == 2
    assert (room.path.portfolio.quantity("AAPL"), room.desk.open_orders()) == (Decimal(0), [])


async def test_a_cancel_is_answered_when_it_is_done(room: MoneyRoom) -> None:
    """`cancel_order` gives the cancelled order; one that does not end in time is told as it stands."""
    order_id = (await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]
    assert (await room.path.cancel(order_id))["order"]["status"] == "cancelled"

    stubborn = (await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]
    room.exchange.faults.add("no_cancel")
    assert (await room.path.cancel(stubborn))["order"]["status"] == "accepted"
    with pytest.raises(CommandError) as caught:
        await room.path.cancel("nothing")
    assert caught.value.code == "not_found"


async def test_a_cancel_without_a_broker_can_be_asked_again(room: MoneyRoom) -> None:
    """A cancel that never left is not remembered as asked for."""
    order = room.desk.orders[(await place(room, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]]
    await room.path.link.disconnect()
    with pytest.raises(CommandError) as caught:
        await room.path.cancel(order.order_id)

    assert caught.value.code == "broker_unavailable"
    assert not order.cancel_asked


async def test_cancel_all_is_about_entries(room: MoneyRoom) -> None:
    """Our entries go, exits stay; what is foreign is not touched; the answer names what is still pending."""
    entry = await room.enter()
    await room.fill(entry, "10")
    stop = room.working(protective=True)[0]
    first = (await place(room, "MSFT", order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]
    assert await room.path.cancel_all(CancelAllArgs()) == {"cancelled": [first], "pending": []}
    assert stop.working

    room.exchange.faults.add("no_cancel")
    second = (await place(room, "MSFT", order_type="limit", limit_price=Decimal(8)))["order"]["order_id"]
    assert await room.path.cancel_all(CancelAllArgs()) == {"cancelled": [], "pending": [second]}


async def test_exits_that_a_person_cancels_stay_cancelled(room: MoneyRoom) -> None:
    """`cancel_all` with `protective` is not undone by the exit guard, nor by a restart; a new fill is guarded."""
    entry = await room.enter(quantity=100, plan=ExitPlan(time_stop_seconds=60))
    await room.fill(entry, "10", 40)
    result = await room.path.cancel_all(CancelAllArgs(protective=True))
    assert len(result["cancelled"]) == 2
    await room.tick("AAPL", 10, seconds=61)
    assert room.desk.open_orders() == []
    assert not room.path.portfolio.position("AAPL").protected

    async with await room.crash() as after:
        await after.tick("AAPL", 10, seconds=61)
        assert after.desk.open_orders() == []
        after.exchange.orders[entry.order_id].state = "working"
        await after.fill(entry, "10", 10)  # late: nobody has asked that it stands without a stop
        await after.until(lambda: after.working(protective=True))
        assert after.working(protective=True)[0].request.quantity == 50


async def test_exits_are_not_let_go_without_a_broker(room: MoneyRoom) -> None:
    """Where the cancels can't leave, the exits stay and go on being managed."""
    await room.fill(await room.enter(), "10")
    await room.path.link.disconnect()
    with pytest.raises(CommandError) as caught:
        await room.path.cancel_all(CancelAllArgs(protective=True))

    assert caught.value.code == "broker_unavailable"
    assert not room.exits.guards["AAPL"].released


async def test_a_broker_that_is_slow_to_cancel_is_asked_for_all_at_once(room: MoneyRoom) -> None:
    """One cancel that hangs does not hold up the others."""
    ids = [
        (await place(room, symbol, order_type="limit", limit_price=Decimal(9)))["order"]["order_id"]
        for symbol in ("A", "B", "C")
    ]
    cancel, hangs = room.exchange.cancel, asyncio.Event()

    async def slow(order_id: str) -> None:
        if order_id == ids[0]:
            await hangs.wait()
        await cancel(order_id)

    room.exchange.cancel = slow  # type: ignore[method-assign]
    cancelling = asyncio.create_task(room.path.cancel_all(CancelAllArgs()))
    await room.until(lambda: room.exchange.cancels == ids[1:])
    hangs.set()

    assert (await cancelling)["cancelled"] == ids


# --- the end of entries -----------------------------------------------------------------------------------------


async def test_entries_that_could_not_be_cancelled_go_when_the_broker_is_back(room: MoneyRoom) -> None:
    """A stop with the broker away is made good at the reconnect, before the entries could fill for long."""
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(9))
    await room.path.link.disconnect()
    await room.path.end_entries()
    assert resting.working
    room.path.link.connect()
    await room.until(lambda: not resting.working)

    assert resting.status is OrderStatus.CANCELLED


async def test_entries_stay_where_they_are_wanted_again(room: MoneyRoom) -> None:
    """Who starts again before the broker is back keeps the working entries; after a kill nothing is taken."""
    resting = await room.buy("MSFT", order_type="limit", limit_price=Decimal(9))
    await room.path.link.disconnect()
    await room.path.end_entries()
    assert await room.path.take_entries()
    room.path.link.connect()
    await room.path.link.wait_ready()
    await room.desk.settle()
    assert resting.working

    await room.path.kill(KillArgs(reason="test"), command("kill_switch"))
    assert not await room.path.take_entries()


# --- close ------------------------------------------------------------------------------------------------------


async def test_closing_a_position_leaves_no_exit_behind(room: MoneyRoom) -> None:
    """A market order in the group of the stop closes it; when it fills, the stop goes and the guard ends."""
    entry = await room.enter()
    await room.fill(entry, "10")
    result = await close(room, "AAPL")
    order = room.desk.orders[result["orders"][0]["order_id"]]
    assert (order.request.side, order.request.quantity, order.request.order_type) == (
        "sell",
        Decimal(100),
        "market",
    )
    assert (order.request.intent, order.request.strategy, order.request.reason) == (
        "reduce",
        "test",
        "closed by command",
    )

    await room.fill(order, "10.10")
    assert room.path.portfolio.quantity("AAPL") == 0
    assert (room.desk.open_orders(), room.exits.guards) == ([], {})
    assert len(room.journal.command("close_position", "c1", OPEN)) == 1


async def test_closing_twice_is_busy(room: MoneyRoom) -> None:
    """While a close works a second one is refused; nothing is sent twice."""
    await hold(room)
    await close(room, "AAPL")
    with pytest.raises(CommandError) as caught:
        await close(room, "AAPL")

    assert caught.value.code == "busy"
    assert len(room.working(intent="reduce")) == 1


async def test_closing_what_is_not_ours(room: MoneyRoom) -> None:
    """What is not held, or is foreign, is not_found."""
    room.path.portfolio.set_foreign([BrokerPosition("IBM", Decimal(50), Decimal(100))])
    for symbol in ("AAPL", "IBM"):
        with pytest.raises(CommandError) as caught:
            await close(room, symbol)
        assert (caught.value.code, caught.value.details) == ("not_found", {"field": "symbol"})


async def test_a_short_position_is_bought_back(room: MoneyRoom) -> None:
    """The close is on the other side of the position."""
    order = (await place(room, side="sell"))["order"]
    await room.fill(room.desk.orders[order["order_id"]], "10")
    result = await close(room, "AAPL")

    assert (result["orders"][0]["side"], result["orders"][0]["quantity"]) == ("buy", 100)


async def test_a_close_ends_the_entry_too(room: MoneyRoom) -> None:
    """Closing a position whose entry still works cancels the rest of the entry, so that it does not come back."""
    entry = await room.enter(quantity=100)
    await room.fill(entry, "10", 40)
    result = await close(room, "AAPL")
    order = room.desk.orders[result["orders"][0]["order_id"]]
    await room.fill(order, "10")

    assert (order.request.quantity, entry.status) == (Decimal(40), OrderStatus.CANCELLED)
    assert room.path.portfolio.quantity("AAPL") == 0
    assert room.desk.open_orders() == []


async def test_a_close_that_the_broker_rejects_leaves_the_stop(room: MoneyRoom) -> None:
    """A position whose close was rejected is guarded as before, and can be closed again."""
    entry = await room.enter()
    await room.fill(entry, "10")
    first = (await close(room, "AAPL"))["orders"][0]["order_id"]
    room.exchange.end(first, "rejected", "no market orders now")
    await room.desk.settle()
    assert len(room.working(protective=True)) == 1

    second = (await close(room, "AAPL"))["orders"][0]["order_id"]
    await room.fill(room.desk.orders[second], "10")
    assert room.desk.open_orders() == []


async def test_closing_all_closes_what_can_be_closed(room: MoneyRoom) -> None:
    """`*` closes every position of ours; what can't be closed is named with the reason, the others go."""
    for symbol in ("AAPL", "IBM", "MSFT"):
        await hold(room, symbol)
    room.path.portfolio.set_foreign([BrokerPosition("HAND", Decimal(50), Decimal(100))])
    await close(room, "IBM")
    room.path.gate.hold({"AAPL": "nobody knows what there is"})
    result = await close(room, "*")

    assert [order["symbol"] for order in result["orders"]] == ["MSFT"]
    assert result["refused"] == {
        "AAPL": "reconciliation: nobody knows what there is",
        "IBM": "IBM is being closed already",
    }
    assert len(room.journal.command("close_position", "c1", OPEN)) == 2


async def test_closing_all_of_nothing_is_done(room: MoneyRoom) -> None:
    """With nothing held there is nothing to close; the received row is kept."""
    assert await close(room, "*") == {"orders": [], "refused": {}}
    assert len(room.journal.command("close_position", "c1", OPEN)) == 1


async def test_closing_all_says_what_the_disk_stopped(room: MoneyRoom, mocker: MockerFixture) -> None:
    """Where the journal fails in the middle, what was sent is told and the rest named; nothing sent: the error."""
    for symbol in ("AAPL", "MSFT"):
        await hold(room, symbol)
    commit, calls = room.journal.commit, 0

    async def once(*records: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise JournalError("disk full")
        return await commit(*records, **more)

    mocker.patch.object(room.journal, "commit", once)
    result = await close(room, "*")
    assert [order["symbol"] for order in result["orders"]] == ["AAPL"]
    assert result["refused"] == {"MSFT": "disk full"}

    with pytest.raises(JournalError, match="disk full"):
        await close(room, "MSFT")


# --- strategies -------------------------------------------------------------------------------------------------


async def test_a_strategy_does_not_enter_what_a_person_holds(room: MoneyRoom) -> None:
    """One owner a symbol: its guard would take a person's shares for its own, and sell them with the time stop."""
    await hold(room, "AAPL")
    await place(room, "MSFT", order_type="limit", limit_price=Decimal(9))
    for symbol in ("AAPL", "MSFT"):
        with pytest.raises(CommandError, match=f"{symbol} is held or being entered already"):
            await room.enter(symbol)

    assert (await room.enter("IBM")).status is OrderStatus.ACCEPTED


async def test_sizing_values_an_order_as_the_rules_do(room: MoneyRoom) -> None:
    """A sizer gets equity, buying power, closed trades, and the worst price that the order may be valued at."""
    await room.tick("AAPL", 10.5)

    def facts(**more: Any) -> Any:
        return room.path.sizing("test", Signal("AAPL", "buy", OPEN, 10.0, ExitPlan(), **more))

    assert facts().price == Decimal("10.5")
    assert facts(order_type="limit", limit_price=10.2).price == Decimal("10.2")
    assert facts(order_type="limit", limit_price=9.0).price == Decimal("10.0")
    assert (facts().equity, facts().closed_trades) == (Decimal(100_000), ())
    unknown = room.path.sizing("test", Signal("IBM", "buy", OPEN, 20.0, ExitPlan()))
    assert unknown.price == Decimal(20)


# --- adopt ------------------------------------------------------------------------------------------------------


async def test_a_foreign_position_becomes_ours(tmp_path: Path) -> None:
    """Adopted it belongs to the strategy, moves neither cash nor result, and is ours after a restart."""
    room = MoneyRoom(tmp_path)
    room.exchange.holdings["IBM"] = Decimal(50)
    async with room:
        await room.tick("IBM", 100)
        portfolio = room.path.portfolio
        before = portfolio.account()
        assert portfolio.position("IBM").foreign
        result = await room.path.adopt(AdoptArgs(symbol="IBM", strategy="test"))

        position = result["position"]
        assert (position["quantity"], position["strategy"], position["foreign"]) == (50, "test", False)
        after = portfolio.account()
        assert (after.cash, after.equity, after.day_pnl) == (before.cash, before.equity, before.day_pnl)
        with pytest.raises(CommandError) as caught:
            await room.path.adopt(AdoptArgs(symbol="IBM", strategy="test"))
        assert caught.value.code == "not_found"
    async with room.again() as again:
        assert again.path.portfolio.quantity("IBM") == 50
        assert again.path.portfolio.position("IBM").strategy == "test"
        assert again.path.portfolio.account().cash == before.cash
        assert (await close(again, "IBM"))["orders"][0]["quantity"] == 50


async def test_two_adoptions_at_once_are_one(tmp_path: Path) -> None:
    """A double click does not double the position."""
    room = MoneyRoom(tmp_path)
    room.exchange.holdings["IBM"] = Decimal(50)
    async with room:
        args = AdoptArgs(symbol="IBM", strategy="test")
        results = await asyncio.gather(room.path.adopt(args), room.path.adopt(args), return_exceptions=True)

        assert sorted(isinstance(result, CommandError) for result in results) == [False, True]
        assert room.path.portfolio.quantity("IBM") == 50
        assert len(list(room.journal.fills())) == 1


@pytest.mark.parametrize("outcome", ["fail before", "fail after"])
async def test_an_adoption_of_unknown_outcome_is_made_sure_of(tmp_path: Path, outcome: Outcome) -> None:
    """It may be in the journal, and would count at the next start: so it counts now, and once."""
    room = MoneyRoom(tmp_path)
    room.exchange.holdings["IBM"] = Decimal(50)
    async with room:
        commits = Commits(room.journal, FilePlace(tmp_path / "journal.db"))
        commits.plan, commits.unreadable = [outcome], 3
        result = await room.path.adopt(AdoptArgs(symbol="IBM", strategy="test"))
        assert result["position"]["foreign"] is False
        await room.until(lambda: room.journal.writes)
    async with room.again() as again:
        assert again.path.portfolio.quantity("IBM") == 50
        assert not again.path.portfolio.position("IBM").foreign
        assert len(list(again.journal.fills())) == 1


# --- limits -----------------------------------------------------------------------------------------------------


class Limit(AllowAll):
    """A rule that trips when the test says so."""

    def __init__(self) -> None:
        super().__init__("limit")
        self.trips: list[Trip] = []
        self.known: dict[str, Any] = {}

    def trip(self, view: RiskView) -> Trip | None:
        return self.trips.pop() if self.trips else None

    def usage(self, view: RiskView) -> RuleUsage:
        return RuleUsage(rule=self.name, tripped=bool(self.known))

    def memory(self) -> dict[str, Any]:
        return self.known

    def remember(self, memory: Any) -> None:
        self.known = dict(memory)

    def clear(self) -> None:
        self.known = {}


@pytest.mark.parametrize("kill", [True, False])
async def test_a_limit_that_is_reached_acts_and_is_remembered(tmp_path: Path, kill: bool) -> None:
    """A trip fires the kill switch where it says so, in the name of `risk`; the rule's memory outlives a crash."""
    rule = Limit()
    async with MoneyRoom(tmp_path, rule=rule) as room:
        await hold(room)
        rule.known = {"tripped": True}
        rule.trips = [Trip("limit", "the day's loss is 3.1 %, the limit is 3 %", kill, Decimal("3.1"), Decimal(3))]
        await room.tick("AAPL", 9)
        if kill:
            body = room.kill.body()
            assert (body["state"], body["source"]) == ("ON", "risk")
            assert body["reason"] == "the day's loss is 3.1 %, the limit is 3 %"
            assert [order.request.quantity for order in await room.closing()] == [Decimal(100)]
        else:
            assert room.kill.body()["state"] == "OFF"
        await room.desk.settle()
        after = await room.crash()
    after.path.gate.rules[0].rule = again = Limit()
    async with after:
        assert again.known == {"tripped": True}
        await after.path.clear_rule("limit")
        assert again.known == {}
    once_more = after.again()
    once_more.path.gate.rules[0].rule = cleared = Limit()
    async with once_more:
        assert cleared.known == {}


async def test_a_rule_s_use_is_shown(room: MoneyRoom) -> None:
    """`state/risk` follows the rules, and a replaced rule shows at once."""
    await room.until(lambda: room.bodies.get("risk"))
    await room.path.replace_rule("allow_all", AllowAll(refuses="AAPL"))
    with pytest.raises(CommandError, match="this symbol is refused"):
        await place(room)

    assert room.bodies["risk"] == {
        "rules": [
            {"rule": "allow_all", "enabled": True, "used": None, "limit": None, "tripped": False, "until": None}
        ],
        "held": [],
    }


async def test_a_symbol_that_is_held_is_shown(room: MoneyRoom) -> None:
    """Whose position can't be explained is named with the reason, until it can be."""
    await room.fill(await room.buy("AAPL", 100), "10")
    room.exchange.holdings["AAPL"] = Decimal(60)
    await room.path.reconciler.run(room.path.link)
    room.path._show()
    (held,) = (room.bodies["risk"] or {})["held"]
    assert held["symbol"] == "AAPL"
    assert "the broker has 60" in held["reason"]
    await room.path.settle_position(*settling())
    await room.until(lambda: (room.bodies["risk"] or {})["held"] == [])


# --- what a restart takes back ----------------------------------------------------------------------------------


async def test_entries_of_the_day_are_counted_after_a_restart(room: MoneyRoom) -> None:
    """Entries that passed the gate in this session count, each once, however often it was changed; exits don't."""
    first = await room.buy("A", order_type="limit", limit_price=Decimal(9))
    await room.desk.modify(first.order_id, {"limit_price": Decimal(8)})
    await hold(room, "B")
    await close(room, "B")
    with pytest.raises(CommandError):
        await place(room, "NOPE")
    assert room.desk.view().entries_today == 2
    after = await room.crash()
    async with after:
        assert after.desk.view().entries_today == 2
        await after.buy("C")
        assert after.desk.view().entries_today == 3
        after.clock.advance(SESSIONS[1].open)
        assert after.desk.view().entries_today == 0


async def test_cash_and_results_are_the_same_after_a_restart(room: MoneyRoom) -> None:
    """Cash, realised result and positions are made again from the journal, to the last digit."""
    await room.tick("AAPL", 10)
    await hold(room, "AAPL", 300, "10.01")
    order = (await place(room, side="sell", quantity=100))["order"]
    await room.fill(room.desk.orders[order["order_id"]], "10.13")
    await room.tick("AAPL", 10.2)
    before = room.path.portfolio
    account = before.account()
    after = await room.crash()
    async with after:
        await after.tick("AAPL", 10.2)
        again = after.path.portfolio
        assert again.account() == account
        assert (again.realized, again.cost, again.put_in) == (before.realized, before.cost, before.put_in)


async def test_an_order_that_was_refused_by_a_closing_gate_is_told(room: MoneyRoom) -> None:
    """What a kill stopped on its way is cancelled in the journal too: a restart finds nothing in doubt."""
    await room.path.kill(KillArgs(reason="test"), command("kill_switch"))
    with pytest.raises(CommandError, match="the kill switch is on"):
        await place(room)
    after = await room.crash()
    async with after:
        assert after.desk.open_orders() == []


# --- transfers --------------------------------------------------------------------------------------------------


async def test_a_deposit_is_no_gain(room: MoneyRoom) -> None:
    """Cash that no fill explains is a transfer: equity moves, the result does not; it is kept over a restart."""
    await room.tick("AAPL", 10)
    await hold(room)
    await room.path.link.disconnect()
    room.exchange.cash += Decimal(5000)
    room.path.link.connect()
    await room.path.link.wait_ready()
    account = room.path.portfolio.account()
    assert (account.cash, account.equity, account.day_pnl) == (Decimal(104_000), Decimal(105_000), Decimal(0))
    assert [note.body["amount"] for note in room.journal.notes("transfer", 10)] == ["5000"]

    async with await room.crash() as after:
        assert after.path.portfolio.account().cash == Decimal(104_000)
        assert len(after.journal.notes("transfer", 10)) == 1
        assert after.path.portfolio.put_in == Decimal(105_000)


async def test_cash_in_another_currency_is_none_of_the_books(tmp_path: Path) -> None:
    """An account that is told in yen opens no books, and makes no transfer; one that has dollars by then does."""
    room = MoneyRoom(tmp_path)
    read, yen = room.exchange.account, True

    async def account() -> BrokerAccount:
        found = await read()
        return replace(found, currency="JPY", cash=Decimal(15_000_000)) if yen else found

    room.exchange.account = account  # type: ignore[method-assign]
    async with room:
        books = room.path.portfolio
        assert (books.account().currency, books.account().equity) == ("JPY", None)
        yen = False
        await room.path._settle_cash(at_once=True)
        assert books.account().equity == room.exchange.cash
        yen = True
        await room.path._settle_cash(at_once=True)
        assert books.account().equity is None
        assert (books.cash, room.journal.notes("transfer", 10)) == (room.exchange.cash, [])


async def test_a_fill_that_is_told_late_is_no_transfer(room: MoneyRoom) -> None:
    """Cash that has moved by a fill whose report is still on its way is explained by the execution."""
    order, read, looks = await room.buy(), room.exchange.account, 0

    async def account() -> BrokerAccount:
        nonlocal looks
        looks += 1
        if looks == 2:  # behind the read-back of the executions, before that of the cash
            listener, room.exchange.listener = room.exchange.listener, None
            room.exchange.fill(order.order_id, Decimal(10))
            room.exchange.listener = listener
        return await read()

    await room.path.link.disconnect()
    room.exchange.account = account  # type: ignore[method-assign]
    room.path.link.connect()
    await room.path.link.wait_ready()
    assert room.journal.notes("transfer", 10) == []
    assert room.path.portfolio.quantity("AAPL") == 100
    assert room.path.portfolio.cash == room.exchange.cash


async def test_less_than_a_cent_is_no_transfer(room: MoneyRoom) -> None:
    """What brokers round is left alone."""
    await room.path.link.disconnect()
    room.exchange.cash += Decimal("0.004")
    room.path.link.connect()
    await room.path.link.wait_ready()

    assert room.journal.notes("transfer", 10) == []


async def test_a_fill_during_the_reconciliation_is_no_transfer(room: MoneyRoom) -> None:
    """Cash that moves while the broker is read back is compared at one moment: no fill is taken for a transfer."""
    resting = await room.buy("MSFT", 100, order_type="limit", limit_price=Decimal(9))
    await room.path.link.disconnect()
    read_orders, read_account = room.exchange.open_orders, room.exchange.account
    looks = 0

    async def orders() -> Any:
        found = await read_orders()
        if room.exchange.orders[resting.order_id].filled == 0:
            room.exchange.fill(resting.order_id, Decimal(9), Decimal(40))
        return found

    async def account() -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            room.exchange.fill(resting.order_id, Decimal(9), Decimal(60))
        return await read_account()

    room.exchange.open_orders = orders  # type: ignore[method-assign]
    room.exchange.account = account  # type: ignore[method-assign]
    room.path.link.connect()
    await room.path.link.wait_ready()
    await room.desk.settle()

    assert room.path.portfolio.quantity("MSFT") == 100
    assert room.path.portfolio.account().cash == room.exchange.cash == Decimal(99_100)
    assert room.journal.notes("transfer", 10) == []


async def test_a_broker_that_does_not_tell_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a broker says on purpose of a look that failed is logged as said; anything else with its traceback."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    errors: list[Exception] = [BrokerError("it did not tell the positions within 10 s"), ValueError("a bug")]

    async def failing() -> Any:
        raise errors[0]

    async with MoneyRoom(tmp_path) as quick:
        quick.exchange.positions = failing  # type: ignore[method-assign]
        for error in list(errors):
            errors[0] = error
            await quick.until(lambda: any(str(errors[0]) in record.getMessage() for record in caplog.records))

    told = {
        record.getMessage().partition(";")[0]: bool(record.exc_info)
        for record in caplog.records
        if record.name == "sigma9.money"
    }
    assert told == {
        "reading back from the broker failed (it did not tell the positions within 10 s)": False,
        "reading back from the broker failed (ValueError: a bug)": True,
    }


async def test_cash_is_looked_at_while_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A withdrawal shows within the minute, a person's purchase with the position that it made."""
    monkeypatch.setattr(path_module, "READ_BACK_EVERY", 0.01)
    async with MoneyRoom(tmp_path) as quick:
        await quick.tick("AAPL", 100)
        monkeypatch.setattr(path_module, "CASH_EVERY", 0.0)
        quick.exchange.cash -= 90_000
        await quick.until(lambda: quick.path.portfolio.account().equity == 10_000)
        assert quick.path.portfolio.account().buying_power == 10_000
        monkeypatch.setattr(path_module, "CASH_EVERY", 1e9)
        quick.exchange.holdings["AAPL"] = Decimal(50)
        quick.exchange.cash -= 5000
        await quick.until(lambda: quick.path.portfolio.cash == 5000)
        account = quick.path.portfolio.account()
        assert (account.equity, account.day_pnl) == (Decimal(10_000), Decimal(0))


async def test_cash_ahead_of_its_fill_is_no_transfer(room: MoneyRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that may be late is believed once it has shown the same for a while, with no order in doubt."""
    monkeypatch.setattr(path_module, "CASH_EVERY", float("-inf"))
    now = 0.0
    monkeypatch.setattr(path_module, "monotonic", lambda: now)
    room.exchange.immediate = False

    async def look(seconds: float) -> list[Any]:
        nonlocal now
        now += seconds
        await room.path._watch_cash(changed=False)
        await room.desk.settle()
        return [note.body["amount"] for note in room.journal.notes("transfer", 10)]

    order = await room.buy()
    room.exchange.cash -= 1000
    assert await look(1) == await look(20) == []
    room.exchange.cash += 1000
    await room.fill(order, "10")
    assert await look(20) == await look(20) == []

    room.exchange.cash += 500
    assert await look(1) == await look(20) == []
    await room.fill(await room.buy("MSFT", 1), "10")  # it begins anew where our own cash has moved
    assert await look(20) == await look(20) == []
    assert await look(20) == ["500"]
    assert room.path.portfolio.cash == room.exchange.cash


async def test_cash_waits_while_an_order_is_in_doubt(room: MoneyRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an order without an answer has done to cash is not known: nothing is taken for a transfer."""
    monkeypatch.setattr(path_module, "CASH_EVERY", 0.0)
    room.exchange.faults.add("lost_ack")
    await room.buy()
    room.exchange.cash -= 1000
    await room.path._watch_cash(changed=True)

    assert room.path.portfolio.cash == 100_000


# --- a bust -----------------------------------------------------------------------------------------------------


async def test_a_busted_fill_is_taken_back_for_good(room: MoneyRoom) -> None:
    """Position, cash and result are as if it had never been, told once, also after a restart."""
    order = await hold(room)
    await hold(room, "MSFT")
    fill = room.exchange.fills[0]
    room.exchange.holdings["AAPL"] = Decimal(0)
    room.exchange.cash += Decimal(1000)
    report = BrokerReport("busted", order.order_id, room.clock.now(), "1", fill, "clearly erroneous")
    for _ in range(2):
        room.desk.on_report(report)
    portfolio = room.path.portfolio
    assert portfolio.quantity("AAPL") == 0
    assert (portfolio.quantity("MSFT"), portfolio.cash) == (Decimal(100), Decimal(99_000))
    assert await room.told(order) == ["submitted", "accepted", "filled", "busted"]
    room.exchange.fills.remove(fill)

    async with await room.crash() as after:
        assert after.path.portfolio.quantity("AAPL") == 0
        assert after.path.portfolio.cash == Decimal(99_000)
        assert after.path.reconciler.unexplained == {}
        after.desk.on_report(BrokerReport("filled", order.order_id, after.clock.now(), "1", fill))
        await after.desk.settle()
        assert after.path.portfolio.quantity("AAPL") == 0


async def test_the_rest_of_an_order_works_on_when_a_fill_is_taken_back(room: MoneyRoom) -> None:
    """A bust of one fill of a working order does not end the order, also not for a restart."""
    order = await room.buy(order_type="limit", limit_price=Decimal(10))
    await room.fill(order, "10", 40)
    fill = room.exchange.fills[-1]
    room.exchange.holdings["AAPL"] = Decimal(0)
    room.exchange.cash += 400
    room.exchange.report("busted", order.order_id, fill=fill)
    assert await room.told(order) == ["submitted", "accepted", "partially_filled", "busted"]
    assert (order.working, order.filled, room.path.portfolio.quantity("AAPL")) == (True, Decimal(40), Decimal(0))

    async with await room.crash() as after:
        again = after.desk.orders[order.order_id]
        assert (again.working, again.filled) == (True, Decimal(40))
        await after.fill(again, "10", 60)
        assert again.status is OrderStatus.FILLED
        assert after.path.portfolio.quantity("AAPL") == 60


async def test_the_guard_of_a_busted_entry_ends(room: MoneyRoom) -> None:
    """With its entry taken back a stop would open a position: it goes."""
    entry = await room.enter()
    await room.fill(entry, "10")
    fill = room.exchange.fills[0]
    room.exchange.holdings["AAPL"] = Decimal(0)
    room.desk.on_report(BrokerReport("busted", entry.order_id, room.clock.now(), "1", fill))
    await room.desk.settle()

    assert (room.desk.open_orders(), room.exits.guards) == ([], {})


# --- what is shown ----------------------------------------------------------------------------------------------


async def test_positions_and_orders_are_shown_together(room: MoneyRoom) -> None:
    """The bodies follow what happens: account, positions, each position, orders; a flat one is taken away."""
    await room.tick("AAPL", 10)
    order = await hold(room)
    await room.until(lambda: (room.bodies.get("positions") or {}).get("count") == 1)
    assert (room.bodies["position/AAPL"] or {})["quantity"] == 100
    assert (room.bodies["account"] or {})["cash"] == 99_000
    closing = (await close(room, "AAPL"))["orders"][0]["order_id"]
    await room.until(lambda: (room.bodies.get("orders") or {}).get("count") == 1)
    await room.fill(room.desk.orders[closing], "10")
    await room.until(lambda: (room.bodies.get("positions") or {}).get("count") == 0)

    assert room.bodies["position/AAPL"] is None
    assert order.status is OrderStatus.FILLED


async def test_a_new_session_begins_a_new_day(room: MoneyRoom) -> None:
    """The first slice of a session sets the day's marks before its prices count; a restart keeps them."""
    await room.tick("AAPL", 10)
    await hold(room)
    await room.tick("AAPL", 11)
    assert room.path.portfolio.account().day_pnl == Decimal(100)
    room.clock.advance(SESSIONS[1].open)
    await room.path.on_market(Slice(SESSIONS[1].open, trades=(Trade("AAPL", SESSIONS[1].open, 12.0, 1.0),)))
    assert room.path.portfolio.account().day_pnl == Decimal(100)

    async with await room.crash() as after:
        await after.tick("AAPL", 12)
        assert after.path.portfolio.account().day_pnl == Decimal(100)


async def test_the_end_goes_through_though_the_broker_does_not(
    room: MoneyRoom, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that fails to disconnect is said; day marks are kept all the same."""
    before = len(room.journal.notes("days", 100))

    async def fail() -> None:
        raise BrokerError("already gone")

    room.exchange.disconnect = fail  # type: ignore[method-assign]
    await room.path.stop()
    await room.journal.commit([])
    assert "did not disconnect in order: BrokerError already gone" in caplog.text
    assert len(room.journal.notes("days", 100)) == before + 1
    assert room.path.link.state == "disconnected"


async def test_time_stops_need_no_data(room: MoneyRoom) -> None:
    """A slice without data is a look at the clock: a time stop that is due fires."""
    entry = await room.enter(plan=ExitPlan(time_stop_seconds=60))
    await room.fill(entry, "10")
    room.clock.advance(room.clock.now() + timedelta(seconds=61))
    await room.path.on_market(Slice(room.clock.now()))

    assert [order.request.reason for order in room.working(order_type="market")] == ["time stop"]


@asynccontextmanager
async def catching_up(room: MoneyRoom, *stops: Order) -> AsyncIterator[tuple[MoneyRoom, asyncio.Event]]:
    """Start anew after a crash in which stops have filled, on an exchange whose read-back waits for the event."""
    open_orders, answer = room.exchange.open_orders, asyncio.Event()

    async def slowly() -> Sequence[BrokerOrder]:
        await answer.wait()
        return await open_orders()

    after = await room.crash()
    for stop in stops:
        after.exchange.fill(stop.order_id, Decimal("9.8"))
    after.exchange.open_orders = slowly  # type: ignore[method-assign]
    after.journal.open()
    await after.path.start()
    after.path.link.connect()
    await after.until(lambda: after.path.link.state == "connected")
    try:
        yield after, answer
    finally:
        answer.set()
        await after.__aexit__()


async def test_exits_wait_until_the_broker_is_reconciled(room: MoneyRoom) -> None:
    """A time stop that is due at a start is not sent before it is known what filled meanwhile: it would sell what
    the protective stop has sold already."""
    entry = await room.enter(plan=ExitPlan(time_stop_seconds=60))
    await room.fill(entry, "10")
    (stop,) = room.working(protective=True)
    async with catching_up(room, stop) as (after, answer):
        before = list(after.exchange.submitted)
        await after.tick("AAPL", 9.9, seconds=120)
        assert after.exchange.submitted == before

        answer.set()
        await after.path.link.wait_ready()
        await after.tick("AAPL", 9.9)
        assert after.exchange.submitted == before
        assert after.path.portfolio.quantity("AAPL") == 0


async def test_exits_that_were_due_go_out_once_the_broker_is_reconciled(room: MoneyRoom) -> None:
    """What had to wait for the read-back is sent with the first market data after it."""
    entry = await room.enter(plan=ExitPlan(time_stop_seconds=60))
    await room.fill(entry, "10")
    async with catching_up(room) as (after, answer):
        await after.tick("AAPL", 9.9, seconds=120)
        assert not after.working(reason="time stop")

        answer.set()
        await after.path.link.wait_ready()
        await after.tick("AAPL", 9.9)
        assert [order.request.quantity for order in after.working(reason="time stop")] == [100]


async def test_nobody_trades_until_the_broker_is_reconciled(room: MoneyRoom) -> None:
    """A close, an order and an entry are refused while it is not known what filled meanwhile."""
    await room.fill(await room.buy(), "10")
    async with catching_up(room) as (after, answer):
        for work in (close(after, "AAPL"), place(after, "MSFT"), after.enter("TSLA")):
            with pytest.raises(CommandError, match="reconciled") as error:
                await work
            assert error.value.code == "broker_unavailable"
        answer.set()
        await after.path.link.wait_ready()
        assert (await close(after, "AAPL"))["orders"]


# --- which day it belongs to, and what a crash leaves of it --------------------------------------------------


def day_of(room: MoneyRoom) -> tuple[str | None, float | None]:
    """Give the trading day and its result."""
    result = room.path.portfolio.account().day_pnl
    return room.path.portfolio.days_memory()["day"], None if result is None else float(result)


async def stopped(room: MoneyRoom) -> Order:
    """Enter 100 at 10 and give the stop that guards it."""
    await room.tick("AAPL", 10)
    await room.fill(await room.enter("AAPL", 100), "10")
    await room.tick("AAPL", 10)
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)
    return room.working(protective=True)[0]


async def test_a_loss_of_today_that_a_start_learns_is_of_today(tmp_path: Path) -> None:
    """The day begins before what was missed is counted, so that the daily limit sees it."""
    async with MoneyRoom(tmp_path) as room:
        stop = await stopped(room)
    room.clock.advance(SESSIONS[1].open + timedelta(minutes=5))
    room.exchange.fill(stop.order_id, Decimal(5))
    async with room.again() as after:
        assert day_of(after) == ("2026-03-03", -500)
        await after.tick("MSFT", 20)
        assert day_of(after) == ("2026-03-03", -500)


async def test_a_loss_of_yesterday_that_a_start_learns_is_of_yesterday(tmp_path: Path) -> None:
    """What happened before the day began is no result of it, whenever it is learnt; another start agrees."""
    async with MoneyRoom(tmp_path) as room:
        stop = await stopped(room)
    room.clock.advance(SESSIONS[0].close - timedelta(minutes=5))
    room.exchange.fill(stop.order_id, Decimal(5))
    room.clock.advance(SESSIONS[1].open + timedelta(minutes=5))
    async with room.again() as after:
        assert day_of(after) == ("2026-03-03", 0)
        assert after.path.portfolio.account().realized_pnl == 0
        assert after.path.portfolio.realized == -500
        again = await after.crash()
    async with again:
        assert day_of(again) == ("2026-03-03", 0)


async def test_a_fill_before_the_first_price_of_the_day_is_of_the_day(tmp_path: Path) -> None:
    """A gap that a stop meets at the open is a loss of the new day, though no slice has come yet."""
    async with MoneyRoom(tmp_path) as room:
        stop = await stopped(room)
        room.clock.advance(SESSIONS[1].open + timedelta(seconds=1))
        await room.fill(stop, "5")
        assert day_of(room) == ("2026-03-03", -500)


class Forgetful(Mapping[str, Any]):
    """A memory that can't be read."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("nobody knows")

    def __len__(self) -> int:
        return 1


async def test_a_day_that_can_t_be_noted_costs_no_fill(tmp_path: Path, mocker: MockerFixture) -> None:
    """A rule or a disk that fails when a fill begins the day is logged; the fill counts, the broker goes on."""
    rule = AllowAll()
    async with MoneyRoom(tmp_path, rule=rule) as room:
        stop = await stopped(room)
        mocker.patch.object(rule, "memory", Forgetful)
        room.clock.advance(SESSIONS[1].open + timedelta(seconds=1))
        await room.fill(stop, "5")
        assert day_of(room) == ("2026-03-03", -500)
        assert "nobody knows" in str(room.path.gate.rules[0].error)
        mocker.stopall()

        order = await room.buy("MSFT", 10)
        mocker.patch.object(room.desk, "before_report", side_effect=JournalError("the disk is full"))
        await room.fill(order, "10")
        assert room.path.portfolio.quantity("MSFT") == 10
        assert room.desk.failed_reports == 1


async def test_a_disk_that_fails_when_a_fill_begins_the_day_loses_nothing(tmp_path: Path) -> None:
    """The day's note and the fill are facts: they wait for the disk, and are written once it works."""
    async with MoneyRoom(tmp_path, journal=RoughJournal) as room:
        stop = await stopped(room)
        journal = room.journal
        assert isinstance(journal, RoughJournal)
        journal.fault = "before"
        room.clock.advance(SESSIONS[1].open + timedelta(seconds=1))
        room.exchange.fill(stop.order_id, Decimal(5))
        assert day_of(room) == ("2026-03-03", -500)
        assert not journal.healthy
        journal.heal()
        await room.desk.settle()
        after = await room.crash()
    async with after:
        assert day_of(after) == ("2026-03-03", -500)
        assert after.path.portfolio.quantity("AAPL") == 0


async def test_a_start_in_the_evening_counts_for_the_session_that_is_over(tmp_path: Path) -> None:
    """A loss of the session that has just closed does not wait for the next one's day."""
    async with MoneyRoom(tmp_path) as room:
        stop = await stopped(room)
    room.clock.advance(SESSIONS[1].close - timedelta(minutes=5))
    room.exchange.fill(stop.order_id, Decimal(5))
    room.clock.advance(SESSIONS[1].close + timedelta(hours=2))
    async with room.again() as after:
        assert day_of(after) == ("2026-03-03", -500)


async def test_a_crash_leaves_peak_and_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are noted while they move: the next day begins where the last one ended, and no kill fires for it."""
    monkeypatch.setattr(path_module, "NOTE_EVERY", 0.0)
    room = MoneyRoom(tmp_path)
    async with room:
        await room.tick("AAPL", 10)
        await room.fill(await room.buy("AAPL", 100), "10")
        for price in (11, 10.5, 9.6):
            await room.tick("AAPL", price)
        await room.desk.settle()
        after = await room.crash()
    after.clock.advance(SESSIONS[1].open + timedelta(seconds=1))
    async with after:
        assert after.path.portfolio.days_memory()["peak"] == "100.0"
        await after.tick("AAPL", 9.35)
        assert day_of(after) == ("2026-03-03", -25)


async def test_the_day_s_marks_are_noted_when_they_matter(room: MoneyRoom) -> None:
    """At each open and close of a position, and when the session ends; not at every price."""
    await room.tick("AAPL", 10)

    async def noted() -> int:
        await room.desk.settle()
        return len(room.journal.notes("days", 1000))

    before = await noted()
    order = await room.buy("AAPL", 100)
    await room.fill(order, "10", 50)
    await room.fill(order, "10", 50)
    for price in (10.1, 10.2, 10.3):
        await room.tick("AAPL", price)
    assert await noted() == before + 1
    await room.fill(await room.buy("AAPL", 100, side="sell", intent="reduce"), "10")
    assert await noted() == before + 2
    room.clock.advance(SESSIONS[0].close)
    await room.tick("MSFT", 20)
    await room.tick("MSFT", 20)
    assert await noted() == before + 3


async def test_only_the_clock_begins_a_day(room: MoneyRoom, caplog: pytest.LogCaptureFixture) -> None:
    """Data far ahead begin no day and are told of once a minute; late ones don't go back to the old day."""
    await room.tick("AAPL", 10)
    for _ in range(2):
        ahead = SESSIONS[1].open + timedelta(minutes=5)
        await room.path.on_market(Slice(ahead, trades=(Trade("AAPL", ahead, 10.0, 1.0),)))
    assert day_of(room)[0] == "2026-03-02"
    assert room.path.slices_ahead == 2
    assert caplog.text.count("ahead of the clock") == 1
    await room.tick("AAPL", 10.5)
    mark = room.path.portfolio.mark_of("AAPL")
    assert mark is not None
    assert (mark.price, mark.ts) == (Decimal("10.5"), room.clock.now())

    room.clock.advance(SESSIONS[1].open - timedelta(seconds=1))
    just = SESSIONS[1].open + timedelta(seconds=1)
    await room.path.on_market(Slice(just, trades=(Trade("AAPL", just, 10.0, 1.0),)))
    assert day_of(room)[0] == "2026-03-03"
    await room.desk.settle()
    before = len(room.journal.notes("days", 100))
    late = SESSIONS[0].open + timedelta(hours=5)
    for _ in range(5):
        await room.path.on_market(Slice(late, trades=(Trade("MSFT", late, 10.0, 1.0),)))
        await room.path.on_market(Slice(just, trades=(Trade("AAPL", just, 10.0, 1.0),)))
    await room.desk.settle()
    assert len(room.journal.notes("days", 100)) == before


# --- a position that can't be explained -----------------------------------------------------------------------


def settling(symbol: str = "AAPL") -> tuple[SettleArgs, Command]:
    """Make the command of a person."""
    return SettleArgs(symbol=symbol, reason="sold by phone"), Command("settle_position", {}, "api", actor="me")


async def test_a_person_settles_what_can_t_be_explained(room: MoneyRoom) -> None:
    """The books take the broker's quantity, for a reason and without a result; exits and gate follow, for good."""
    await room.fill(await room.enter("AAPL", 100), "10")
    await room.tick("AAPL", 11)
    room.exchange.holdings["AAPL"] = Decimal(60)
    room.exchange.cash += 440
    for _ in range(2):
        await room.path.reconciler.look_around(room.path.link)
    assert room.path.gate.closed_for(OrderRequest(symbol="AAPL", side="sell", quantity=Decimal(1))) is not None
    answer = await room.path.settle_position(*settling())
    await room.path._settle_cash(at_once=True)

    assert (answer["before"], answer["position"]["quantity"]) == (100, 60)
    assert room.path.reconciler.unexplained == {}
    assert room.path.portfolio.account().day_pnl == 100
    await room.until(lambda: [o.request.quantity for o in room.working(protective=True)] == [60])
    note = room.journal.notes("settlement", 1)[0].body
    assert (note["before"], note["after"], note["reason"], note["actor"]) == ("100", "60", "sold by phone", "me")
    assert [r.fill.exec_id[:8] for r in room.journal.fills() if r.recovered] == ["settled-"]
    async with await room.crash() as after:
        assert after.path.portfolio.quantity("AAPL") == 60
        assert after.path.portfolio.cash == after.exchange.cash
        assert after.path.reconciler.unexplained == {}


async def test_a_settled_position_that_is_gone_has_no_exits(room: MoneyRoom) -> None:
    """Where the broker has nothing, nothing is guarded any more, and a kill comes to its end."""
    await room.fill(await room.enter("AAPL", 100), "10")
    await room.tick("AAPL", 11)
    room.exchange.holdings["AAPL"] = Decimal(0)
    for _ in range(2):
        await room.path.reconciler.look_around(room.path.link)
    await room.desk.settle()
    assert not room.desk.open_orders()
    await room.path.settle_position(*settling())

    await room.until(lambda: not room.exits.guards and not room.desk.open_orders())
    assert room.path.portfolio.positions() == ()


async def test_what_a_stop_made_beyond_a_person_s_sale_is_settled(room: MoneyRoom) -> None:
    """The short becomes ours at the broker's price where no other is known, and can be closed."""
    await room.fill(await room.enter("AAPL", 100), "10")
    room.exchange.holdings["AAPL"] = Decimal(0)
    await room.fill(room.working(protective=True)[0], "9.8")
    for _ in range(2):
        await room.path.reconciler.look_around(room.path.link)

    async def positions() -> list[BrokerPosition]:
        return [BrokerPosition("AAPL", Decimal(-100), Decimal("9.8"))]

    room.exchange.positions = positions  # type: ignore[method-assign]
    answer = await room.path.settle_position(*settling())
    assert (answer["before"], answer["position"]["quantity"], answer["position"]["average_cost"]) == (0, -100, 9.8)
    assert not answer["position"]["foreign"]
    left = await room.path.close(CloseArgs(symbol="AAPL"), Command("close_position", {}, "api"), [])
    assert [(order["side"], order["quantity"]) for order in left["orders"]] == [("buy", 100)]


async def test_only_what_is_held_can_be_settled(room: MoneyRoom) -> None:
    """What is explained, was so by now, or moves at this moment, is refused with the reason."""
    await room.fill(await room.buy("AAPL", 100), "10")

    async def refused() -> tuple[str, str]:
        with pytest.raises(CommandError) as caught:
            await room.path.settle_position(*settling())
        return caught.value.code, caught.value.message

    assert (await refused())[0] == "not_found"
    room.exchange.holdings["AAPL"] = Decimal(60)
    await room.path.reconciler.run(room.path.link)
    room.exchange.holdings["AAPL"] = Decimal(70)
    assert "has just moved" in (await refused())[1]
    room.exchange.faults.add("lost_ack")
    await room.buy("MSFT", 1)
    assert "in doubt" in (await refused())[1]
    room.exchange.faults.clear()
    await room.path.reconciler.resolve_unknown(room.path.link)
    room.exchange.holdings["AAPL"] = Decimal(100)
    assert (await refused())[0] in ("conflict", "not_found")
    assert [record.fill.exec_id for record in room.journal.fills()] == ["x1"]


# --- a close whose exit has filled without our knowing it ------------------------------------------------------


@pytest.mark.parametrize("share", [30, 100])
async def test_a_close_is_sized_from_what_the_broker_has(room: MoneyRoom, share: int) -> None:
    """The stop's fill, of which no report has come, is counted first: nothing is sold twice."""
    await room.fill(await room.enter("AAPL", 100), "10")
    await room.until(lambda: room.path.portfolio.position("AAPL").protected)
    (stop,) = room.working(protective=True)
    listener, room.exchange.listener = room.exchange.listener, None
    room.exchange.fill(stop.order_id, Decimal("9.8"), Decimal(share))
    room.exchange.listener = listener
    args, command = CloseArgs(symbol="AAPL"), Command("close_position", {}, "api")
    if share == 100:
        with pytest.raises(CommandError, match="flat already"):
            await room.path.close(args, command, [])
    else:
        answer = await room.path.close(args, command, [])
        assert [order["quantity"] for order in answer["orders"]] == [70]
    assert room.path.portfolio.quantity("AAPL") == 100 - share


async def test_a_close_waits_where_books_and_broker_differ(room: MoneyRoom) -> None:
    """What the broker does not have can't be closed, and what can't be read is not closed blindly."""
    await room.fill(await room.buy("AAPL", 100), "10")
    room.exchange.holdings["AAPL"] = Decimal(0)
    args, command = CloseArgs(symbol="AAPL"), Command("close_position", {}, "api")
    with pytest.raises(CommandError, match="the broker has 0") as caught:
        await room.path.close(args, command, [])
    assert caught.value.code == "busy"

    async def silent() -> Any:
        raise BrokerError("no answer")

    room.exchange.positions = silent  # type: ignore[method-assign]
    with pytest.raises(CommandError, match="nothing was sent") as caught:
        await room.path.close(args, command, [])
    assert caught.value.code == "broker_unavailable"
    assert len(room.exchange.submitted) == 1


async def test_a_close_takes_no_more_than_is_ours(room: MoneyRoom) -> None:
    """Shares that a person has added at the broker are left alone."""
    await room.fill(await room.buy("AAPL", 100), "10")
    room.exchange.holdings["AAPL"] = Decimal(150)
    answer = await room.path.close(CloseArgs(symbol="AAPL"), Command("close_position", {}, "api"), [])

    assert [order["quantity"] for order in answer["orders"]] == [100]


async def test_entries_count_for_their_day_before_and_after_hours(tmp_path: Path) -> None:
    """The day is the date in New York, for the desk and for a restart alike: none is forgotten, none moves."""
    clock = SteppedClock("simulated", SESSIONS[0].open - timedelta(hours=2))

    async def entries(room: MoneyRoom, moment: datetime) -> int:
        clock.advance(moment)
        await room.buy("AAPL", 1, order_type="limit", limit_price=Decimal(9))
        await room.desk.settle()
        return room.desk.view().entries_today

    async with MoneyRoom(tmp_path, clock=clock) as room:
        assert await entries(room, SESSIONS[0].open - timedelta(hours=1)) == 1
        after = await room.crash()
    async with after:
        assert await entries(after, SESSIONS[0].open + timedelta(hours=1)) == 2
        late = datetime(2026, 3, 3, 1, tzinfo=UTC)  # it is the evening of the same day in New York
        assert await entries(after, late) == 3
        again = await after.crash()
    async with again:
        assert again.desk.view().entries_today == 3
        assert await entries(again, SESSIONS[1].open) == 1

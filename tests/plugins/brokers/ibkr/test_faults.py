"""Everything that goes wrong at IB, by name: no order doubled, none believed dead that lives, no fill lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.clock import monotonic
from sigma9_core.contracts import BrokerHealth, ReportKind
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import Adjustment, ApprovedOrder
from sigma9_core.testing.broker_contract import UP, Recorder
from sigma9_core.testing.orders import approve, request
from sigma9_core.testing.tws import KINDS
from sigma9_plugins.brokers.ibkr import broker as module
from sigma9_plugins.brokers.ibkr import client_ids
from sigma9_plugins.brokers.ibkr import orders as orders_module
from sigma9_plugins.brokers.ibkr.ids import FILE
from sigma9_plugins.brokers.ibkr.wire import ClientIdInUse
from sigma9_plugins.testing.ibkr_room import IbkrRoom, open_room

ENDS: frozenset[ReportKind] = frozenset(("cancelled", "rejected", "expired"))
RESTING: dict[str, Any] = {"limit_price": 9.5, "order_type": "limit", "time_in_force": "gtc"}


@pytest.fixture(autouse=True)
def _soon(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Try to have the other client id without a pause as well."""
    monkeypatch.setattr(client_ids, "TRY_AGAIN", 0.1)
    monkeypatch.setattr(client_ids, "WANTED_AGAIN", 0.05)


async def sent(room: IbkrRoom, **more: Any) -> ApprovedOrder:
    """Send a limit order that rests, and wait for nothing but its arrival."""
    order = approve(request(room.symbol, "buy", 100, **{**RESTING, **more}))
    count = len(room.tws.requests("placeOrder"))
    await room.broker.submit([order])
    await room.tws.until_received("placeOrder", count + 1)
    await room.caught_up()
    return order


async def again(room: IbkrRoom) -> None:
    """Connect again, with another listener."""
    room.heard = Recorder()
    await room.broker.connect(room.heard)


# --- orders -------------------------------------------------------------------------------------------------


async def test_reject(room: IbkrRoom) -> None:
    """A rejected order is reported so, with IB's words and the code, once."""
    room.tws.arm("reject")
    order = await sent(room)

    report = await room.ended(order, "rejected")
    assert report.reason is not None
    assert "(code 201)" in report.reason
    assert room.heard.kinds(order.order_id) == ["rejected"]


async def test_lost_order(room: IbkrRoom) -> None:
    """Of an order that never arrived nothing is reported; no read-back shows it, and it is not sent again."""
    room.tws.arm("lost-order")
    order = await sent(room)

    assert room.heard.reports == []
    assert await room.working(order) is None
    assert len(room.tws.requests("placeOrder")) == 1


async def test_a_unit_that_did_not_arrive_whole(room: IbkrRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry whose legs never arrived waits at TWS, where no read-back shows it: it is cancelled there."""
    monkeypatch.setattr(orders_module, "STUCK_AFTER", 0.1)
    parent = approve(request(room.symbol, "buy", 100, **RESTING))
    stop = approve(
        request(
            room.symbol, "sell", 100, stop_price=9, order_type="stop", intent="reduce", parent_id=parent.order_id
        )
    )
    room.tws.arm("lost-order", order_ref=stop.order_id)
    await room.broker.submit([parent, stop])
    await room.tws.until_received("placeOrder", 2)
    assert await room.broker.open_orders() == []
    assert room.tws.requests("cancelOrder") == []
    await asyncio.sleep(0.15)
    assert await room.broker.open_orders() == []
    report = await room.ended(parent, "cancelled")

    assert report.kind == "cancelled"
    assert not room.tws.orders(live=True)
    assert len(room.tws.requests("cancelOrder")) == 1


async def test_lost_acknowledgement(room: IbkrRoom) -> None:
    """An order that nobody acknowledged is found by its `orderRef`, and works like any other from then on."""
    room.tws.arm("lost-ack")
    order = await sent(room)
    assert room.heard.reports == []

    found = await room.working(order)
    assert found is not None
    assert len(room.tws.requests("placeOrder")) == 1
    await room.broker.cancel(order.order_id)
    await room.ended(order, "cancelled")


async def test_death_after_accept(room: IbkrRoom) -> None:
    """The connection that dies with an order says so; the next one finds the order, and it is not sent again."""
    room.tws.arm("death-after-accept")
    order = approve(request(room.symbol, "buy", 100, **RESTING))
    await room.broker.submit([order])
    await room.until(lambda: room.heard.healths[-1] == BrokerHealth(), "the end of the connection")
    assert room.heard.kinds(order.order_id) == []
    with pytest.raises(BrokerRefused):
        await room.broker.submit([approve(request(room.symbol, "buy", 1))])

    await again(room)
    assert await room.working(order) is not None
    assert len(room.tws.orders(live=True)) == 1
    with pytest.raises(BrokerError, match="submitted before"):
        await room.broker.submit([order])
    await room.move(room.symbol, 9.4)
    await room.filled(order)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.where == "order"])
async def test_codes_about_a_live_order(room: IbkrRoom, name: str) -> None:
    """Whatever code comes about an order that works: it is not believed dead, and its fill counts."""
    room.tws.arm(name)
    order = await sent(room)
    await room.accepted(order)
    await asyncio.sleep(0.1)

    assert room.heard.kinds(order.order_id) == ["accepted"]
    await room.move(room.symbol, 9.4)
    await room.filled(order)


UNMADE = [name for name, kind in KINDS.items() if kind.where == "modify" and name != "modify-untold"]


@pytest.mark.parametrize("name", UNMADE)
async def test_changes_that_are_not_made(room: IbkrRoom, name: str) -> None:
    """A change that was refused or lost is not reported as made; the order works on as it was."""
    order = await sent(room)
    room.tws.arm(name)
    changed = order.request.model_copy(update={"limit_price": Decimal("9.6")})
    await room.broker.replace(approve(changed, order.order_id))
    await room.tws.until_received("placeOrder", 2)
    await room.caught_up()
    await asyncio.sleep(0.1)

    found = await room.working(order)
    assert found is not None
    assert found.limit_price == Decimal("9.5")
    code = KINDS[name].code
    assert room.heard.kinds(order.order_id) == ["accepted"] + ["unchanged"] * bool(code)
    if code:
        assert f"(code {code})" in str(room.heard.reports[-1].reason)
    await room.broker.replace(approve(changed, order.order_id))
    await room.ended(order, "replaced")


def adjustment(trigger: str, stop: str = "10.15", trail: str = "0.15") -> Adjustment:
    """Make the trail that a stop becomes."""
    return Adjustment(trigger_price=Decimal(trigger), stop_price=Decimal(stop), trail_amount=Decimal(trail))


STOP: dict[str, Any] = {"order_type": "stop", "stop_price": 9.5, "adjustment": adjustment("10.6")}
TRAILING: dict[str, Any] = {"order_type": "trailing_stop", "trail_amount": Decimal(1), "stop_price": 9.2}
LESS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (STOP, {"adjustment": adjustment("10.3")}),
    (STOP, {"adjustment": adjustment("10.6", stop="10.2")}),
    (STOP, {"adjustment": adjustment("10.6", trail="0.2")}),
    (STOP, {"stop_price": Decimal("9.6")}),
    (STOP, {"quantity": Decimal(90)}),
    (TRAILING, {"stop_price": Decimal("9.6")}),
    (TRAILING, {"trail_amount": Decimal("0.9")}),
    ({**TRAILING, "trail_amount": None, "trail_percent": Decimal(3)}, {"trail_percent": Decimal(2)}),
    ({**RESTING, "order_type": "stop_limit", "stop_price": 9.6}, {"stop_price": Decimal("9.7")}),
]
"""Orders, and changes of one of their terms."""


@pytest.mark.parametrize(("terms", "change"), LESS)
async def test_a_change_is_made_when_all_of_it_is_there(
    room: IbkrRoom, terms: dict[str, Any], change: dict[str, Any]
) -> None:
    """A change that was lost is not told as made by any other message on its order; one that is made is."""
    await room.hold(200)
    order = approve(request(room.symbol, "sell", 100, intent="reduce", **terms))
    await room.broker.submit([order])
    await room.accepted(order)
    room.tws.arm("modify-lost")
    changed = approve(order.request.model_copy(update=change), order.order_id)
    await room.broker.replace(changed)
    await room.tws.until_received("placeOrder", 3)
    before = await room.working(order)

    assert before is not None
    assert room.heard.kinds(order.order_id) == ["accepted"]
    await room.broker.replace(changed)
    await room.ended(order, "replaced")
    found = await room.working(order)
    assert found is not None
    for name, value in change.items():
        assert getattr(found, name) == value
        assert getattr(before, name) != value


@pytest.mark.parametrize("code", [110, 201, 321, 463, 99_999])
async def test_refusals_of_a_change(room: IbkrRoom, code: int) -> None:
    """Whatever code refuses a change, it is told with IB's words once it is sure that the order is as it was."""
    order = await sent(room)
    room.tws.arm("refused", request="placeOrder", code=code, text="Not so.")
    changed = order.request.model_copy(update={"limit_price": Decimal("9.6")})
    await room.broker.replace(approve(changed, order.order_id))
    report = await room.ended(order, "unchanged")

    assert report.reason == f"Not so. (code {code})"
    assert room.heard.kinds(order.order_id) == ["accepted", "unchanged"]
    assert await room.working(order) is not None


async def test_a_code_about_one_of_two_changes(room: IbkrRoom) -> None:
    """Which of two changes a code refuses is not told: what the order has become says it."""
    order = await sent(room)
    first = order.request.model_copy(update={"limit_price": Decimal("9.6")})
    room.tws.arm("refused", request="placeOrder", code=201, text="Not so.")
    await room.broker.replace(approve(first, order.order_id))
    second = order.request.model_copy(update={"limit_price": Decimal("9.55")})
    await room.broker.replace(approve(second, order.order_id))
    await room.ended(order, "replaced")
    await asyncio.sleep(0.1)

    assert room.heard.kinds(order.order_id) == ["accepted", "replaced"]
    found = await room.working(order)
    assert found is not None
    assert found.limit_price == Decimal("9.55")


@pytest.mark.parametrize("code", [110, 321, 463])
async def test_codes_about_a_change_that_is_made(room: IbkrRoom, code: int) -> None:
    """A change that a read-back shows is made, whatever code has come about it."""
    order = await sent(room)
    room.tws.arm("modify-untold")
    changed = order.request.model_copy(update={"limit_price": Decimal("9.6")})
    await room.broker.replace(approve(changed, order.order_id))
    await room.tws.until_received("placeOrder", 2)
    room.tws.say(code, "Not so.", order.order_id)
    await room.ended(order, "replaced")
    await asyncio.sleep(0.1)

    assert room.heard.kinds(order.order_id) == ["accepted", "replaced"]


CANCELS = [name for name, kind in KINDS.items() if kind.where == "cancel" and name != "cancel-late"]


@pytest.mark.parametrize("name", CANCELS)
async def test_cancels_that_are_not_done(room: IbkrRoom, name: str) -> None:
    """A cancel that was refused or lost ends nothing: the order works, and can be cancelled again."""
    order = await sent(room)
    room.tws.arm(name)
    await room.broker.cancel(order.order_id)
    await room.tws.until_received("cancelOrder")
    await room.caught_up()
    await asyncio.sleep(0.1)

    assert await room.working(order) is not None
    assert not ENDS & set(room.heard.kinds(order.order_id))
    await room.broker.cancel(order.order_id)
    await room.ended(order, "cancelled")


async def test_late_cancel(room: IbkrRoom) -> None:
    """What fills before a late cancel counts, and the order ends as filled."""
    order = await sent(room)
    room.tws.arm("cancel-late", seconds=0.1)
    await room.broker.cancel(order.order_id)
    await room.tws.until_received("cancelOrder")
    await room.move(room.symbol, 9.4)
    await room.filled(order)
    await asyncio.sleep(0.15)

    assert await room.position() == 100
    assert not ENDS & set(room.heard.kinds(order.order_id))


async def test_fill_after_a_cancel(room: IbkrRoom) -> None:
    """A fill that comes after the cancel of its order is reported all the same."""
    order = await sent(room)
    await room.accepted(order)
    room.tws.arm("late-execution", seconds=0.1)
    room.tws.fill(order.order_id, 40)
    room.tws.cancel(order.order_id)
    await room.ended(order, "cancelled")
    await room.until(lambda: bool(room.heard.fills(order.order_id)), "the late fill")

    assert room.heard.fills(order.order_id)[0].quantity == 40


async def test_rejected_while_it_works(room: IbkrRoom) -> None:
    """An order that IB turns down after all is dead by its read-back, and not before."""
    order = await sent(room)
    await room.accepted(order)
    room.tws.reject(order.order_id)

    report = await room.ended(order, "rejected")
    assert report.reason


# --- too fast -----------------------------------------------------------------------------------------------


async def test_a_swallowed_order(room: IbkrRoom) -> None:
    """Code 100 names no order: the sender slows down, and what may have been swallowed is read back."""
    room.tws.arm("pacing-violation", request="placeOrder")
    burst = [approve(request(room.symbol, "buy", 1, **RESTING)) for _ in range(40)]
    for order in burst:
        await room.broker.submit([order])
    asked = len(room.tws.requests("reqAllOpenOrders"))
    await room.tws.until_received("placeOrder", 12)
    await room.caught_up()
    await asyncio.sleep(0.5)
    assert len(room.tws.requests("placeOrder")) == 12
    await room.tws.until_received("reqAllOpenOrders", asked + 1)
    await room.tws.until_received("placeOrder", 40)

    assert room.tws.orders(ref=burst[0].order_id) == []
    assert room.heard.kinds(burst[0].order_id) == []
    assert all(room.tws.orders(ref=order.order_id) for order in burst[1:])
    assert room.broker.health == UP


async def test_a_swallowed_cancel(room: IbkrRoom) -> None:
    """A cancel that code 100 has swallowed is sent again, once a read-back shows its order as working."""
    order = await sent(room)
    room.tws.arm("pacing-violation", request="cancelOrder")
    await room.broker.cancel(order.order_id)

    await room.ended(order, "cancelled")
    assert len(room.tws.requests("cancelOrder")) == 2


async def test_a_swallowed_change(room: IbkrRoom) -> None:
    """A change that code 100 has swallowed is not told as made, and can be asked for again."""
    order = await sent(room)
    room.tws.arm("pacing-violation", request="placeOrder")
    changed = order.request.model_copy(update={"limit_price": Decimal("9.6")})
    asked = len(room.tws.requests("reqAllOpenOrders"))
    await room.broker.replace(approve(changed, order.order_id))
    await room.tws.until_received("reqAllOpenOrders", asked + 1)
    await room.caught_up()
    assert room.heard.kinds(order.order_id) == ["accepted"]
    await room.broker.replace(approve(changed, order.order_id))
    await room.ended(order, "replaced")


# --- fills --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.where in ("fill", "status")])
async def test_fills_are_told_once(room: IbkrRoom, name: str) -> None:
    """However IB tells a fill, it is reported once, with its commission in the end."""
    room.tws.arm(name, times=None, **({"seconds": 0.4} if "late" in name else {}))
    begun = room.now()
    order = await sent(room)
    await room.move(room.symbol, 9.4)
    await room.filled(order)
    await room.until(lambda: all(fill.commission > 0 for fill in room.heard.fills()), "the commissions")
    await asyncio.sleep(0.1)

    assert sum(fill.quantity for fill in room.heard.fills()) == 100
    assert len({fill.exec_id for fill in room.heard.fills()}) == len(room.heard.fills())
    found = await room.broker.executions(begun - timedelta(minutes=1))
    assert list(found) == room.heard.fills()
    assert not ENDS & set(room.heard.kinds(order.order_id))


async def test_late_commission(room: IbkrRoom) -> None:
    """A fill does not wait long for its commission; that is reported by itself when it comes."""
    room.tws.arm("late-commission", seconds=0.5)
    order = await sent(room)
    await room.move(room.symbol, 9.4)
    await room.filled(order)
    assert room.heard.kinds(order.order_id) == ["accepted", "filled"]
    assert room.heard.fills()[0].commission == 0

    await room.ended(order, "commission")
    assert room.heard.fills()[0].commission > 0


async def test_executions_that_are_looked_for_again(room: IbkrRoom) -> None:
    """Where a read-back does not have yet what the status told, it is asked for again, ever more seldom."""
    room.tws.arm("later-execution", seconds=0.5)
    order = await sent(room)
    await room.move(room.symbol, 9.4)
    await room.tws.until_received("reqExecutions", 2)
    assert room.heard.fills() == []
    await room.filled(order)
    asked = len(room.tws.requests("reqExecutions"))
    assert asked <= 6
    await asyncio.sleep(1)

    assert len(room.tws.requests("reqExecutions")) == asked


async def test_executions_that_never_come(
    room: IbkrRoom, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What IB never tells is given up after some looks, with a word."""
    monkeypatch.setattr(module, "LOOKS", 2)
    room.tws.arm("later-execution", seconds=60)
    order = await sent(room)
    room.tws.fill(order.order_id, 100, 9.5)
    words = f"order {order.order_id}: IB does not tell executions of 100 more that have filled: compare with TWS"
    await room.until(lambda: words in caplog.text, "the word")
    await asyncio.sleep(1.2)  # questions have their pace

    assert len(room.tws.requests("reqExecutions")) == 3


async def test_a_quantity_that_is_put_right_is_no_doubt(room: IbkrRoom) -> None:
    """A correction to fewer shares lacks no execution, though the status of before told more."""
    order = await sent(room)
    execution = room.tws.fill(order.order_id, 100, 9.5)
    await room.filled(order)
    room.tws.correct(execution, 9.5, 90)
    await room.until(lambda: len(room.heard.fills()) == 2, "the corrected fill")
    await asyncio.sleep(0.3)

    assert room.tws.requests("reqExecutions") == []


async def test_corrected_execution(room: IbkrRoom) -> None:
    """A corrected execution takes the place of the old one, live and for who was away."""
    begun = room.now()
    order = await sent(room)
    execution = room.tws.fill(order.order_id, 100, 9.5)
    await room.filled(order)
    room.tws.correct(execution, 9.45)
    await room.until(lambda: len(room.heard.fills()) == 2, "the corrected fill")

    kinds = [kind for kind in room.heard.kinds(order.order_id) if kind != "commission"]
    assert kinds == ["accepted", "filled", "filled"]
    old, new = room.heard.fills()
    assert (old.corrects, new.corrects) == ((), (old.exec_id,))
    assert new.price == Decimal("9.45")
    (found,) = await room.broker.executions(begun - timedelta(minutes=1))
    assert (found.exec_id, found.price, found.corrects) == (new.exec_id, new.price, new.corrects)


async def test_correction_before_what_it_corrects(room: IbkrRoom) -> None:
    """An execution that comes after its correction is not told, and no fill waits for a commission of it."""
    room.tws.arm("late-execution", seconds=0.1)
    order = await sent(room)
    execution = room.tws.fill(order.order_id, 100, 9.5)
    new = room.tws.correct(execution, 9.45)
    await room.until(lambda: bool(room.heard.fills()), "the corrected fill")
    await room.until(lambda: execution.told_at is not None, "the execution that is late")
    await room.caught_up()

    assert [fill.exec_id for fill in room.heard.fills()] == [new.exec_id]


async def test_correction_of_what_waits_for_its_commission(room: IbkrRoom) -> None:
    """What has not been told when its correction comes is not told any more."""
    room.tws.arm("lost-commission")
    order = await sent(room)
    execution = room.tws.fill(order.order_id, 100, 9.5)
    new = room.tws.correct(room.tws.correct(execution, 9.47), 9.45)
    await room.until(lambda: bool(room.heard.fills()), "the corrected fill")
    await room.caught_up()

    assert room.heard.fills()[-1].exec_id == new.exec_id
    assert execution.exec_id not in [fill.exec_id for fill in room.heard.fills()]
    assert room.heard.fills()[-1].corrects[0] == execution.exec_id


async def test_commission_after_a_restart(room: IbkrRoom) -> None:
    """A fill that was told without its commission gets it in the next life: the read-back tells it by itself."""
    room.tws.arm("lost-commission")
    begun = room.now()
    order = await sent(room)
    await room.broker.disconnect()
    room.tws.fill(order.order_id)  # who has died had counted it, with no commission
    room.broker = room.another()
    await again(room)
    (found,) = await room.broker.executions(begun - timedelta(minutes=1))
    await room.broker.executions(begun - timedelta(minutes=1))

    told = [report for report in room.heard.reports if report.kind == "commission"]
    assert [report.fill for report in told] == [found]
    assert told[0].order_id == order.order_id
    assert found.commission > 0


@pytest.mark.parametrize("live", [True, False])
async def test_correction_after_a_restart(room: IbkrRoom, live: bool) -> None:
    """What an earlier life has counted is named as corrected when the next one hears of it."""
    begun = room.now()
    order = await sent(room)
    execution = room.tws.fill(order.order_id, 40, 9.5)
    await room.until(lambda: bool(room.heard.fills()), "the fill")
    await room.broker.disconnect()
    room.broker = room.another()
    if not live:
        room.tws.correct(execution, 9.45)
    await again(room)
    if live:
        room.tws.correct(execution, 9.45)
        await room.until(lambda: bool(room.heard.fills()), "the corrected fill")
    await room.broker.executions(begun - timedelta(minutes=1))
    await room.broker.executions(begun - timedelta(minutes=1))

    (found,) = await room.broker.executions(begun - timedelta(minutes=1))
    assert found.corrects == (execution.exec_id,)
    assert [fill.exec_id for fill in room.heard.fills()] == ([found.exec_id] if live else [])


async def test_fill_while_away_after_a_restart(room: IbkrRoom) -> None:
    """What fills between two lives of the server reads back once, under our id."""
    begun = room.now()
    order = await sent(room)
    await room.broker.disconnect()
    room.tws.fill(order.order_id, 60)
    room.broker = room.another()
    await again(room)
    found = await room.broker.executions(begun - timedelta(minutes=1))

    assert [(fill.order_id, fill.quantity) for fill in found] == [(order.order_id, Decimal(60))]
    working = await room.working(order)
    assert working is not None
    assert working.filled_quantity == 60
    room.tws.fill(order.order_id)
    await room.until(lambda: bool(room.heard.fills()), "the rest")
    assert [fill.quantity for fill in room.heard.fills()] == [40]


# --- what is not ours ---------------------------------------------------------------------------------------


async def test_references_of_other_programs(tmp_path: Path) -> None:
    """Orders of another client are foreign, whatever reference they carry: two of them the same, or ours."""
    async with open_room(tmp_path, foreign="cancel") as room:
        begun = room.now()
        ours = await sent(room)
        for ref in ("momentum", "momentum", ours.order_id):
            terms: Any = {"orderType": "LMT", "lmtPrice": 8, "orderRef": ref}
            room.tws.place_foreign(7, room.symbol, action="BUY", totalQuantity=3, **terms)
        shown = await room.broker.open_orders()
        tickets = room.tws.orders(client_id=7)
        assert [(each.order_id, each.broker_order_id) for each in shown] == [
            (ours.order_id, str(room.tws.orders(client_id=1)[0].perm_id)),
            *((None, str(ticket.perm_id)) for ticket in tickets),
        ]
        for ticket in tickets[:2]:
            room.tws.fill(ticket)
        await room.caught_up()
        executions = await room.broker.executions(begun - timedelta(minutes=1))
        ended = await room.broker.completed_orders(begun - timedelta(minutes=1))
        assert [fill.order_id for fill in executions] == ["", ""]
        assert [each.order_id for each in ended] == [None, None]
        assert room.heard.kinds(ours.order_id) == ["accepted"]
        assert len(room.heard.reports) == 1

        await room.broker.cancel(str(tickets[2].perm_id))
        await room.tws.until_received("reqGlobalCancel")
        await room.ended(ours, "cancelled")
        assert not room.tws.orders(live=True)


# --- the connection -----------------------------------------------------------------------------------------


async def test_link_lost_and_back(room: IbkrRoom) -> None:
    """1100 takes the link down and not the socket; nothing is sent until it is back, and cancels still are."""
    order = await sent(room)
    room.tws.lose_link()
    await room.until(lambda: room.broker.health.link == "down", "the loss of the link")

    assert room.broker.health == BrokerHealth("up", "down", "up")
    with pytest.raises(BrokerRefused, match="lost IB's servers"):
        await room.broker.submit([approve(request(room.symbol, "buy", 1))])
    await room.broker.cancel(order.order_id)
    for kept in (True, False):
        room.tws.lose_link()
        room.tws.regain_link(kept=kept)
        await room.until(lambda: room.heard.healths[-1] == UP, "the link")
    await room.ended(order, "cancelled")


async def test_what_has_not_left_when_the_link_is_lost(room: IbkrRoom) -> None:
    """After 1100 no order that waits for its turn leaves, and none later: each ends with the reason."""
    orders = [approve(request(room.symbol, "buy", 1, **RESTING)) for _ in range(60)]
    for order in orders:
        await room.broker.submit([order])
    await room.tws.until(lambda: len(room.tws.orders()) >= 10)
    room.tws.lose_link()
    await room.until(lambda: room.broker.health.link == "down", "the loss of the link")
    there = len(room.tws.requests("placeOrder"))
    await asyncio.sleep(2.1)  # two more turns of the lane
    assert len(room.tws.requests("placeOrder")) == there
    ended = {order.order_id for order in orders if room.heard.kinds(order.order_id) == ["cancelled"]}
    assert len(ended) == 60 - there
    reasons = {each.reason for each in room.heard.reports if each.kind == "cancelled"}
    assert reasons == {"it had not left when TWS lost IB's servers"}

    room.tws.regain_link()
    await room.until(lambda: room.broker.health == UP, "the link")
    await room.accepted(next(order for order in orders if order.order_id not in ended))
    await room.caught_up()
    assert {each.ref for each in room.tws.orders(live=True)} == {order.order_id for order in orders} - ended


async def test_changes_and_cancels_that_have_not_left_when_the_link_is_lost(room: IbkrRoom) -> None:
    """After 1100 a change that waits is given up; a cancel leaves, since it can only make things smaller."""
    orders = [await sent(room) for _ in range(3)]
    await room.accepted(orders[-1])
    burst = [approve(request(room.symbol, "buy", 1, **RESTING)) for _ in range(20)]
    for order in burst:
        await room.broker.submit([order])
    changed = orders[0].request.model_copy(update={"limit_price": Decimal("9.6")})
    await room.broker.replace(approve(changed, orders[0].order_id))
    room.tws.lose_link()
    await room.until(lambda: room.broker.health.link == "down", "the loss of the link")
    for order in orders[1:]:
        await room.broker.cancel(order.order_id)
    room.tws.regain_link()
    await room.ended(orders[2], "cancelled")
    await asyncio.sleep(1.1)

    assert len({each.order_id for each in room.tws.requests("placeOrder")}) == len(room.tws.requests("placeOrder"))
    assert {each.order_id for each in orders} & {each.ref for each in room.tws.orders(live=True)} == {
        orders[0].order_id
    }
    assert room.heard.kinds(orders[0].order_id) == ["accepted", "unchanged"]
    await room.broker.replace(approve(changed, orders[0].order_id))
    await room.ended(orders[0], "replaced")


async def test_link_back_without_its_loss(room: IbkrRoom) -> None:
    """Where 1102 comes without a 1100 the link is told as down and up: what was missed is reconciled."""
    seen = len(room.heard.healths)
    room.tws.say(1102, "Connectivity between IB and TWS has been restored- data maintained.")
    await room.until(lambda: len(room.heard.healths) >= seen + 2, "two changes of health")

    assert [health.link for health in room.heard.healths[seen:]] == ["down", "up"]


async def test_farms_flap(room: IbkrRoom) -> None:
    """A data farm that flaps changes the data's health alone."""
    room.tws.flap_farms()
    await room.until(lambda: len(room.heard.healths) >= 3, "the flap")
    await room.caught_up()

    assert {(health.socket, health.link) for health in room.heard.healths} == {("up", "up")}
    assert "down" in {health.data for health in room.heard.healths}
    assert room.broker.health == UP


async def test_nightly_restart_with_forgotten_ids(room: IbkrRoom) -> None:
    """After a restart that gives ids out again no id is used twice, and old orders can still be cancelled."""
    order = await sent(room)
    before = {each.order_id for each in room.tws.requests("placeOrder")}
    room.tws.restart()
    await room.until(lambda: room.broker.health == BrokerHealth(), "the end of the connection")
    room.broker = room.another()  # and our own process has restarted as well
    await again(room)
    new = await sent(room)
    numbers = {each.order_id for each in room.tws.requests("placeOrder")} - before

    assert len(numbers) == 1
    assert min(numbers) > max(before)
    assert {each.order_id for each in await room.broker.open_orders()} == {order.order_id, new.order_id}
    for each in (order, new):
        await room.broker.cancel(each.order_id)
        await room.ended(each, "cancelled")


async def test_ids_lie_above_those_of_other_clients(room: IbkrRoom) -> None:
    """IB refuses an id that is not above all that it has told: after each read-back ours begin there."""
    room.tws.place_foreign(7, room.symbol, 5000, action="BUY", totalQuantity=3, lmtPrice=8, orderType="LMT")
    await room.broker.open_orders()
    order = await sent(room)

    await room.accepted(order)
    assert [each.order_id for each in room.tws.requests("placeOrder")] == [5001]


async def test_an_id_that_is_refused_lifts_the_next(room: IbkrRoom) -> None:
    """Code 103 on an order is not its end, and not repeated: TWS is asked for the id that is free."""
    room.tws.clients[0].highest = 300  # it was told of by what this adapter has not heard
    lost = await sent(room)
    await room.tws.until_received("reqIds")
    await room.caught_up()
    order = await sent(room)

    await room.accepted(order)
    assert room.heard.kinds(lost.order_id) == []
    assert [each.order_id for each in room.tws.requests("placeOrder")] == [1, 301]


@pytest.mark.parametrize("filled", [False, True])
async def test_a_lost_mark(room: IbkrRoom, tmp_path: Path, filled: bool) -> None:
    """Where the mark is lost and TWS begins ids again, the id of an order of before is given to no other."""
    begun = room.now()
    old = await sent(room)
    if filled:
        room.tws.fill(old.order_id)
    room.tws.restart()
    await room.until(lambda: room.broker.health == BrokerHealth(), "the end of the connection")
    (tmp_path / FILE).write_text("")
    room.broker = room.another()
    await again(room)
    if filled:
        await room.broker.executions(begun - timedelta(minutes=1))
    new = await sent(room, limit_price=9.4)

    await room.accepted(new)
    assert [each.order_id for each in room.tws.requests("placeOrder")] == [1, 2]
    working = {each.order_id for each in await room.broker.open_orders()}
    assert working == ({new.order_id} if filled else {old.order_id, new.order_id})


async def test_client_id_in_use(tmp_path: Path) -> None:
    """A client id that is in use is said at once; after a while a spare one is taken, which sees all orders."""
    async with open_room(tmp_path, config={"client_id_seconds": 0.2}) as room:
        order = await sent(room)
        await room.broker.disconnect()
        room.tws.arm("client-id-in-use", client_id=1, times=None)
        with pytest.raises(ClientIdInUse, match="client id 1"):
            await again(room)
        assert room.broker.health.socket == "down"
        await asyncio.sleep(0.25)
        await again(room)

        assert [client.client_id for client in room.tws.clients] == [101]
        assert await room.working(order) is not None
        with pytest.raises(BrokerError, match="sent by client 1"):
            await room.broker.cancel(order.order_id)
        other = await sent(room, limit_price=9.4)
        await room.accepted(other)
        await room.broker.disconnect()
        room.tws.disarm()
        await again(room)
        assert [client.client_id for client in room.tws.clients] == [1]
        await room.broker.cancel(order.order_id)
        await room.ended(order, "cancelled")


async def under_the_spare_id(room: IbkrRoom) -> None:
    """Have the first client id taken away, and connect under the spare one."""
    await room.broker.disconnect()
    room.tws.arm("client-id-in-use", client_id=1, times=None)
    await again(room)
    assert [client.client_id for client in room.tws.clients] == [101]


async def test_only_an_unbroken_time_in_use_brings_the_spare_id(tmp_path: Path) -> None:
    """A gateway that was away meanwhile may have let go of the id: the wait begins anew."""
    async with open_room(tmp_path, config={"client_id_seconds": 0.2}) as room:
        await room.broker.disconnect()
        room.tws.arm("client-id-in-use", client_id=1, times=2)
        with pytest.raises(ClientIdInUse):
            await again(room)
        await room.tws.go_away()
        await asyncio.sleep(0.25)
        with pytest.raises(BrokerError, match="can't be reached"):
            await again(room)
        await room.tws.come_back()
        with pytest.raises(ClientIdInUse):
            await again(room)
        await again(room)

        assert [client.client_id for client in room.tws.clients] == [1]


async def test_the_spare_id_says_what_it_can_not(room: IbkrRoom) -> None:
    """Health and errors say which id is in use, and what a person can do; a kill may cancel by IB's own name."""
    order = await sent(room)
    await under_the_spare_id(room)

    assert "client id 1 is in use elsewhere" in str(room.broker.health.note)
    advice = "order .* was sent by client 1, and this is client 101: .*; end the program that uses client id 1"
    with pytest.raises(BrokerError, match=advice):
        await room.broker.cancel(order.order_id)
    with pytest.raises(BrokerError, match=advice):
        await room.broker.replace(approve(order.request, order.order_id))
    child = request(room.symbol, "sell", 100, stop_price=9, order_type="stop", parent_id=order.order_id)
    with pytest.raises(BrokerRefused, match="the child of another's"):
        await room.broker.submit([approve(child)])
    assert len(room.tws.requests("placeOrder")) == 1


async def test_the_wider_cancel_of_a_kill(tmp_path: Path) -> None:
    """By IB's own name an order of the first id goes with a global cancel, where that is allowed, and is told."""
    async with open_room(tmp_path, foreign="cancel") as room:
        order = await sent(room)
        await under_the_spare_id(room)
        (shown,) = await room.broker.open_orders()
        await room.broker.cancel(shown.broker_order_id)
        await room.ended(order, "cancelled")

        assert len(room.tws.requests("reqGlobalCancel")) == 1


async def test_back_to_the_first_id(room: IbkrRoom) -> None:
    """As soon as the first id is free the connection goes back to it; nothing is left that can't be cancelled."""
    first = await sent(room)
    await under_the_spare_id(room)
    spare = await sent(room, limit_price=9.4)
    other = await sent(room, limit_price=9.3)
    assert room.tws.order(spare.order_id).client_id == 101
    await asyncio.sleep(0.3)
    assert [client.client_id for client in room.tws.clients] == [101]
    room.tws.disarm()
    await room.until(lambda: room.broker.health == BrokerHealth(), "the end of the connection")
    await again(room)
    assert room.broker.health == UP
    await room.tws.until(lambda: [client.client_id for client in room.tws.clients] == [1, 101])
    await asyncio.sleep(0.1)
    await room.broker.cancel(first.order_id)
    await room.ended(first, "cancelled")
    changed = spare.request.model_copy(update={"limit_price": Decimal("9.2")})
    await room.broker.replace(approve(changed, spare.order_id))
    await room.ended(spare, "replaced")
    room.tws.arm("cancel-refused")
    await room.broker.cancel(spare.order_id)
    await room.caught_up()
    assert await room.working(spare) is not None
    await room.broker.cancel(spare.order_id)
    await room.ended(spare, "cancelled")
    room.tws.fill(other.order_id)
    await room.filled(other)
    await room.until(lambda: [client.client_id for client in room.tws.clients] == [1], "the end of the second")

    assert len(room.heard.fills()) == 1


async def test_the_spare_ids_orders_after_a_restart(room: IbkrRoom) -> None:
    """A server that starts under the first id finds what the spare one has sent, and can cancel it."""
    await under_the_spare_id(room)
    order = await sent(room)
    await room.broker.disconnect()
    room.tws.disarm()
    room.tws.arm("client-id-in-use", client_id=101)  # TWS has not noticed yet that we are gone
    room.broker = room.another()
    await again(room)
    with pytest.raises(BrokerError, match="can be as soon as TWS lets us connect as client 101 too"):
        await room.broker.cancel(order.order_id)
    await room.until(lambda: len(room.tws.clients) == 2, "the second connection")
    await asyncio.sleep(0.05)
    await room.broker.cancel(order.order_id)
    await room.ended(order, "cancelled")


@pytest.mark.parametrize("name", ["silent-handshake", "closed-at-once"])
async def test_greetings_that_fail(room: IbkrRoom, name: str) -> None:
    """A connection that is not greeted fails in time and leaves nothing behind; the next one works."""
    await room.broker.disconnect()
    room.tws.arm(name)
    with pytest.raises(BrokerError):
        await again(room)
    assert room.broker.health == BrokerHealth()

    await again(room)
    assert room.broker.health == UP


@pytest.mark.parametrize("code", [504, 507, 1300])
async def test_a_connection_of_no_use(room: IbkrRoom, code: int) -> None:
    """What TWS says of an open connection that it gives up, such as for another port, ends it at once."""
    room.tws.say(code, "This connection is being dropped.")
    await room.until(lambda: room.broker.health == BrokerHealth(), "the end of the connection")
    await again(room)

    assert room.broker.health == UP


async def test_nobody_listens(room: IbkrRoom) -> None:
    """Without a gateway a connection fails with a clear sentence, as often as it is tried."""
    await room.broker.disconnect()
    await room.tws.go_away()
    for _ in range(3):
        with pytest.raises(BrokerError, match=r"can't be reached \(Connection refused\): start TWS or IB Gateway"):
            await again(room)
    await room.tws.come_back()
    await again(room)

    assert room.broker.health == UP


async def test_half_open(tmp_path: Path) -> None:
    """A connection that is dead without a word is found by a question for the time, and given up."""
    async with open_room(tmp_path, config={"probe_seconds": 0.1}) as room:
        await asyncio.sleep(0.3)
        assert room.broker.health == UP  # a gateway that answers is left alone
        room.tws.mute()
        await room.until(lambda: room.broker.health == BrokerHealth(), "the end of the connection")
        await again(room)

        assert room.broker.health == UP


async def test_half_open_after_an_outage(tmp_path: Path) -> None:
    """The patience with a gateway without IB's servers ends with the outage: what dies next is found as fast."""
    async with open_room(tmp_path, config={"probe_seconds": 0.3}) as room:
        room.tws.lose_link()
        await room.until(lambda: room.broker.health.link == "down", "the outage")
        await asyncio.sleep(0.4)  # its probe is due, and is put off
        room.tws.regain_link(kept=True)
        await room.until(lambda: room.broker.health == UP, "the link")
        room.tws.mute()
        began = monotonic()
        await room.until(lambda: room.broker.health == BrokerHealth(), "the end of the connection")

        assert monotonic() - began < 1.5


QUESTIONS = {
    "reqAllOpenOrders": lambda room: room.broker.open_orders(),
    "reqPositions": lambda room: room.broker.positions(),
    "reqCompletedOrders": lambda room: room.broker.completed_orders(room.now() - timedelta(days=1)),
}
"""Questions that have no number, and how they are asked."""


async def answerable(room: IbkrRoom) -> None:
    """Leave several open orders, ended orders and positions behind."""
    orders = [approve(request(room.symbol, "buy", 100, **RESTING)) for _ in range(8)]
    for order in orders:
        await room.broker.submit([order])
    await room.tws.until_received("placeOrder", len(orders))
    for order in orders[::2]:
        room.tws.cancel(order.order_id)
    for symbol in ("AAPL", "MSFT"):
        room.tws.set_position(symbol, 100, 190)
    await room.caught_up()


@pytest.mark.parametrize("name", [*QUESTIONS])
async def test_late_answers_answer_nothing_else(tmp_path: Path, name: str) -> None:
    """What comes of an answer when nobody waits for it any more is no part of the next one, which is whole."""
    async with open_room(tmp_path, config={"answer_seconds": 0.6}) as room:
        await room.move(room.symbol, 10.0)
        await answerable(room)
        whole = len(await QUESTIONS[name](room))
        room.tws.arm("late-answer", request=name, seconds=0.8)
        with pytest.raises(BrokerError, match=r"did not tell the .* within 0.6 s"):
            await QUESTIONS[name](room)
        asked = len(room.tws.requests(name))

        for number in range(3):
            assert len(await QUESTIONS[name](room)) == whole
            assert len(room.tws.requests(name)) == asked + number + 1
        assert room.broker.health == UP


@pytest.mark.parametrize("name", [*QUESTIONS])
async def test_late_answers_to_who_has_stopped_waiting(room: IbkrRoom, name: str) -> None:
    """A kill waits for less time than others do: the answer that it has given up is not the next one either."""
    await answerable(room)
    whole = len(await QUESTIONS[name](room))
    room.tws.arm("late-answer", request=name, seconds=0.3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await QUESTIONS[name](room)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):  # its answer is owed still: nothing is asked
            await QUESTIONS[name](room)

    assert len(await QUESTIONS[name](room)) == whole


async def test_unanswered_question(tmp_path: Path) -> None:
    """A question that nobody answers is an error; the next one could not be told from it, so both begin anew."""
    async with open_room(tmp_path, config={"answer_seconds": 0.3}) as room:
        room.tws.arm("unanswered", request="reqCompletedOrders")
        with pytest.raises(BrokerError, match="completed orders within"):
            await room.broker.completed_orders(room.now())
        with pytest.raises(BrokerError, match=r"completed orders|not connected"):
            await room.broker.completed_orders(room.now())
        await room.until(lambda: room.broker.health == BrokerHealth(), "the end of the connection")
        assert len(room.tws.requests("reqCompletedOrders")) == 1
        await again(room)

        assert await room.broker.completed_orders(room.now()) == []


async def test_unanswered_question_in_an_outage(tmp_path: Path) -> None:
    """A gateway without IB's servers may have nobody to ask: it owes its answer as long as that lasts."""
    async with open_room(tmp_path, config={"answer_seconds": 0.1}) as room:
        room.tws.lose_link()
        await room.until(lambda: room.broker.health.link == "down", "the outage")
        with pytest.raises(BrokerError, match="positions within"):
            await room.broker.positions()
        await asyncio.sleep(0.3)
        with pytest.raises(BrokerError, match="still owes the positions"):
            await room.broker.positions()
        assert room.broker.health.socket == "up"
        room.tws.regain_link(kept=True)

        assert await room.broker.positions() == []


async def test_a_complaint_that_may_be_about_another_question(tmp_path: Path) -> None:
    """A complaint without a number fails what waits; an answer that comes all the same is not the next one."""
    async with open_room(tmp_path, config={"answer_seconds": 0.8}) as room:
        await room.move(room.symbol, 10.0)
        await answerable(room)
        room.tws.arm("late-answer", request="reqAllOpenOrders", seconds=0.3)
        asking = asyncio.ensure_future(room.broker.open_orders())
        await room.tws.until_received("reqAllOpenOrders", 2)
        room.tws.say(321, "Error validating request.")
        with pytest.raises(BrokerError, match="code 321"):
            await asking

        assert len(await room.broker.open_orders()) == 4
        room.tws.arm("unanswered", request="reqAllOpenOrders")
        asking = asyncio.ensure_future(room.broker.open_orders())
        await room.tws.until_received("reqAllOpenOrders", 4)
        room.tws.say(321, "Error validating request.")
        with pytest.raises(BrokerError, match="code 321"):
            await asking
        assert len(await room.broker.open_orders()) == 4


async def test_questions_end_with_the_connection(room: IbkrRoom) -> None:
    """Who waits for an answer when the connection ends is told at once."""
    room.tws.arm("unanswered", request="reqPositions")
    waiting = asyncio.ensure_future(room.broker.positions())
    await room.tws.until_received("reqPositions")
    room.tws.drop()

    with pytest.raises(BrokerError, match="ended before the answer"):
        await waiting

"""Orders that IB holds as inactive, and orders that were told as ended and live: a read-back decides."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.errors import BrokerRefused
from sigma9_core.models import ApprovedOrder
from sigma9_core.testing.orders import approve, request
from sigma9_core.testing.tws.answers import status_message
from sigma9_plugins.brokers.ibkr import orders as orders_module
from sigma9_plugins.testing.ibkr_room import IbkrRoom, open_room

RESTING: dict[str, Any] = {"limit_price": 9.5, "order_type": "limit", "time_in_force": "gtc"}


pytestmark = pytest.mark.usefixtures("soon")


async def sent(room: IbkrRoom, **more: Any) -> ApprovedOrder:
    """Send a limit order that rests, and wait for what is said of it."""
    terms = {"side": "buy", **RESTING, **more}
    order = approve(request(room.symbol, terms.pop("side"), 100, **terms))
    count = len(room.tws.requests("placeOrder"))
    await room.broker.submit([order])
    await room.tws.until_received("placeOrder", count + 1)
    await room.caught_up()
    return order


async def told(room: IbkrRoom, order: ApprovedOrder, *kinds: str) -> None:
    """Wait until exactly this was reported of an order, and a little for more."""
    await room.until(lambda: len(room.heard.kinds(order.order_id)) >= len(kinds), f"{kinds}")
    await asyncio.sleep(0.1)
    assert room.heard.kinds(order.order_id) == [*kinds]


def say(room: IbkrRoom, order: ApprovedOrder, status: str) -> None:
    """Let TWS tell a status that is not so."""
    ticket = room.tws.order(order.order_id)
    room.tws.world.tell(ticket, status_message(ticket, status))


# --- inactive ---------------------------------------------------------------------------------------------------


async def test_a_new_order_that_is_held_is_in_doubt(room: IbkrRoom) -> None:
    """It is held with IB's words, among the open orders, and neither accepted nor rejected; then it works."""
    room.tws.arm("locate-hold", seconds=60)
    order = await sent(room)
    await told(room, order, "held")
    reason = room.heard.reports[-1].reason or ""
    assert reason.startswith("IB holds it as inactive (for locate; Order held while securities are located")
    (listed,) = await room.broker.open_orders()
    assert (listed.order_id, listed.state) == (order.order_id, "held")

    room.tws.let_go(order.order_id)
    await told(room, order, "held", "accepted")
    (listed,) = await room.broker.open_orders()
    assert listed.state == "working"


async def test_a_new_order_that_is_held_can_be_cancelled(room: IbkrRoom) -> None:
    """A cancel goes out for what is held, and ends it."""
    room.tws.arm("locate-hold", seconds=60)
    order = await sent(room)
    await told(room, order, "held")
    await room.broker.cancel(order.order_id)

    await told(room, order, "held", "cancelled")
    assert not room.tws.orders(live=True)


async def test_a_new_order_that_is_held_may_be_turned_down(room: IbkrRoom) -> None:
    """Code 201 decides on what was held: no shares were found."""
    room.tws.arm("locate-hold", seconds=60)
    order = await sent(room)
    await told(room, order, "held")
    room.tws.reject(order.order_id, "Order rejected - reason:no shares")

    await told(room, order, "held", "rejected")
    assert "no shares" in (room.heard.reports[-1].reason or "")


async def test_a_stop_that_worked_is_held(room: IbkrRoom) -> None:
    """It is told as held, not as rejected and not as working, and as accepted once it works again."""
    order = await sent(room, side="sell", order_type="stop", limit_price=None, stop_price=9)
    await told(room, order, "accepted")
    room.tws.hold_order(order.order_id)
    await told(room, order, "accepted", "held")
    assert [each.state for each in await room.broker.open_orders()] == ["held"]

    room.tws.let_go(order.order_id)
    await told(room, order, "accepted", "held", "accepted")


async def test_what_is_held_and_not_listed_is_in_doubt(room: IbkrRoom) -> None:
    """Where TWS leaves inactive orders out of its list the order is in doubt all the same, and guards nothing."""
    order = await sent(room)
    room.tws.arm("open-order-hidden", times=None)
    room.tws.hold_order(order.order_id)
    await told(room, order, "accepted", "held")


async def test_a_rejection_of_what_worked_is_one_though_it_stays_listed(room: IbkrRoom) -> None:
    """Code 201 and Inactive are its end, though TWS goes on listing it: it works no more, and stops no kill."""
    room.tws.arm("rejected-listed", times=None)
    order = await sent(room)
    room.tws.reject(order.order_id, "Order rejected - reason:account in liquidation")

    await told(room, order, "accepted", "rejected")
    assert "in liquidation" in (room.heard.reports[-1].reason or "")
    assert await room.broker.open_orders() == []


async def test_a_cancel_that_is_too_late_for_what_is_inactive_decides(tmp_path: Path) -> None:
    """A server that was not there when IB turned an order down learns by the cancel that nothing is left of it."""
    async with open_room(tmp_path) as room:
        room.tws.arm("rejected-listed", times=None)
        order = await sent(room)
        await room.broker.disconnect()
        room.tws.reject(order.order_id)
        room.broker = room.another()
        await room.broker.connect(room.heard)
        assert [each.state for each in await room.broker.open_orders()] == ["held"]
        await room.broker.cancel(order.order_id)
        await room.ended(order, "rejected")
        assert await room.broker.open_orders() == []


# --- believed dead ----------------------------------------------------------------------------------------------


async def test_a_status_after_the_end_is_looked_at(room: IbkrRoom) -> None:
    """IB has said Cancelled, and then Submitted: a read-back that was asked for after both shows that it works."""
    order = await sent(room)
    say(room, order, "Cancelled")
    await told(room, order, "accepted", "cancelled")
    say(room, order, "Submitted")

    await told(room, order, "accepted", "cancelled", "revived")
    assert room.heard.reports[-1].reason == "it was told as cancelled, and IB lists it as Submitted"
    await room.broker.cancel(order.order_id)
    await told(room, order, "accepted", "cancelled", "revived", "cancelled")
    assert not room.tws.orders(live=True)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_status_that_is_late_revives_nothing(room: IbkrRoom, times: int) -> None:
    """The order has ended, and an older status comes behind that: the list does not have it, and it stays so."""
    order = await sent(room)
    await room.broker.cancel(order.order_id)
    await told(room, order, "accepted", "cancelled")
    for _ in range(times):
        say(room, order, "Submitted")

    await told(room, order, "accepted", "cancelled")
    assert await room.broker.open_orders() == []


async def test_a_read_back_shows_what_was_told_as_ended(room: IbkrRoom) -> None:
    """Nobody says any more that it works: the next list does, whoever asks for it."""
    order = await sent(room)
    say(room, order, "Cancelled")
    await told(room, order, "accepted", "cancelled")
    (listed,) = await room.broker.open_orders()

    assert (listed.order_id, listed.state) == (order.order_id, "working")
    await told(room, order, "accepted", "cancelled", "revived")


async def test_a_list_that_was_asked_for_before_the_end_proves_nothing(room: IbkrRoom) -> None:
    """The order ends while a list is on its way that has it: the next one decides."""
    order = await sent(room)
    connection = room.broker._connection
    assert connection is not None
    asking = asyncio.ensure_future(connection.reading.open_orders())
    await asyncio.sleep(0)
    known = room.broker._orders.book.by_id(order.order_id)
    assert known is not None
    room.broker._orders.settle(known, "cancelled", "a report was faster")
    asked = len(room.tws.requests("reqAllOpenOrders"))
    await asking

    assert room.heard.kinds(order.order_id) == ["accepted", "cancelled"]
    await told(room, order, "accepted", "cancelled", "revived")
    assert len(room.tws.requests("reqAllOpenOrders")) > asked


async def test_a_cancel_does_not_trust_an_end(room: IbkrRoom) -> None:
    """Who asks to cancel what was told as ended knows that it lives; what has filled is left alone."""
    order = await sent(room)
    say(room, order, "Cancelled")
    await told(room, order, "accepted", "cancelled")
    await room.broker.cancel(order.order_id)
    await room.tws.until_received("cancelOrder")
    await room.caught_up()
    assert not room.tws.orders(live=True)

    bought = await sent(room, order_type="market", limit_price=None, time_in_force="day")
    room.tws.fill(bought.order_id, 100, Decimal(10))
    await room.caught_up()
    with pytest.raises(BrokerRefused, match="filled already"):
        await room.broker.cancel(bought.order_id)


async def test_a_unit_that_is_held_is_left_alone(room: IbkrRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that is held has arrived with its legs: it does not wait at TWS untransmitted, listed or not."""
    monkeypatch.setattr(orders_module, "STUCK_AFTER", 0.1)
    room.tws.arm("open-order-hidden", times=None)
    parent = approve(request(room.symbol, "sell", 100, **{**RESTING, "limit_price": 10.5}))
    stop = approve(
        request(
            room.symbol, "buy", 100, stop_price=11, order_type="stop", intent="reduce", parent_id=parent.order_id
        )
    )
    room.tws.arm("locate-hold", times=2, seconds=60)
    await room.broker.submit([parent, stop])
    await told(room, parent, "held")
    await asyncio.sleep(0.15)
    await room.broker.open_orders()
    await room.caught_up()

    assert room.tws.requests("cancelOrder") == []

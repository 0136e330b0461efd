"""The table of codes, row by row, as TWS says them: what the broker makes of each."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any, Final

import pytest

from sigma9_core.contracts import BrokerHealth
from sigma9_core.errors import BrokerError
from sigma9_core.models import ApprovedOrder
from sigma9_core.testing.broker_contract import UP
from sigma9_core.testing.orders import approve, request
from sigma9_plugins.brokers.ibkr.codes import TABLE
from sigma9_plugins.brokers.ibkr.wire import ClientIdInUse
from sigma9_plugins.testing.ibkr_room import IbkrRoom

LINK_DOWN: Final = (1100, 2110)
LINK_BACK: Final = (1102, 1101)
FARM_DOWN: Final = (2103, 2105, 2157)
FARM_UP: Final = (2104, 2106, 2158)
REMARKS: Final = (2107, 2108, 2119, 2100)
IN_USE: Final = 326
OF_NO_USE: Final = (502, 504, 507, 1300)
TOO_FAST: Final = 100
QUESTIONS: Final = (162, 366, 420, 101, 354, 10089, 10090, 10167, 10168, 10197)
"""What ends a question without an answer."""
DOUBTS: Final = (103, 104, 105, 135, 136, 161, 463, 10147, 10148, 10311)
NO_ORDER: Final = (200, 201, 203, 10289)
CANCELLED: Final = 202
INVALID: Final = (110, 321, 434)
WARNINGS: Final = (399, 404, 2109, 10349)
ORDERS: Final = (*DOUBTS, *NO_ORDER, CANCELLED, *INVALID, *WARNINGS, 99_999)
"""What may come about an order; the last one stands in no table."""
SYSTEM: Final = (*LINK_DOWN, *LINK_BACK, *FARM_DOWN, *FARM_UP, *REMARKS, IN_USE, *OF_NO_USE, TOO_FAST)
RESTING: Final[dict[str, Any]] = {"limit_price": 9.5, "order_type": "limit", "time_in_force": "gtc"}
WORDS: Final = "So it is:usfarm"
QUIET: Final = 0.15
"""Seconds after which what has not been done will not be."""


pytestmark = pytest.mark.usefixtures("soon")


def reads(room: IbkrRoom) -> int:
    """Count the read-backs."""
    return len(room.tws.requests("reqAllOpenOrders"))


async def working(room: IbkrRoom) -> ApprovedOrder:
    """Send an order, and wait until it is acknowledged."""
    order = approve(request(room.symbol, "buy", 100, **RESTING))
    await room.broker.submit([order])
    await room.accepted(order)
    return order


def test_every_row_is_here() -> None:
    """What stands in the table is said in one of these tests."""
    told = [*SYSTEM, *QUESTIONS, *ORDERS]

    assert len(told) == len(set(told))
    assert set(told) == {*TABLE, 99_999}
    assert all(row.text for row in TABLE.values())


@pytest.mark.parametrize("code", [*LINK_DOWN, *LINK_BACK])
async def test_the_link(room: IbkrRoom, code: int) -> None:
    """The link is down, or back and everything is to be read back; the socket stays."""
    room.tws.say(code, WORDS)
    links = ["up", "down", "up"] if code in LINK_BACK else ["up", "down"]
    await room.until(lambda: [each.link for each in room.heard.healths] == links, "the link")

    assert room.broker.health.socket == "up"


@pytest.mark.parametrize("code", [*FARM_DOWN, *FARM_UP])
async def test_the_data_farms(room: IbkrRoom, code: int) -> None:
    """A farm is away or there, which is the data's health alone."""
    if code in FARM_UP:
        room.tws.say(FARM_DOWN[0], WORDS)
        await room.until(lambda: room.broker.health.data == "down", "the farm's end")
    room.tws.say(code, WORDS)
    health = BrokerHealth("up", "up", "up" if code in FARM_UP else "down")
    await room.until(lambda: room.broker.health == health, "the farm")


@pytest.mark.parametrize("code", [*REMARKS, IN_USE])
async def test_remarks(room: IbkrRoom, code: int) -> None:
    """What is a remark, or is about another connection, changes nothing."""
    order, seen = await working(room), reads(room)
    room.tws.say(code, WORDS)
    await room.caught_up()
    await asyncio.sleep(QUIET)

    assert room.heard.healths == [UP]
    assert room.heard.kinds(order.order_id) == ["accepted"]
    assert reads(room) == seen


async def test_a_client_id_in_use(room: IbkrRoom) -> None:
    """While a connection is made it says which id to try: the spare one, which is taken at once here."""
    await room.broker.disconnect()
    room.tws.arm("client-id-in-use", times=2)
    with pytest.raises(ClientIdInUse, match=f"code {IN_USE}"):
        await room.broker.connect(room.heard)


@pytest.mark.parametrize("code", OF_NO_USE)
async def test_a_connection_of_no_use(room: IbkrRoom, code: int) -> None:
    """A connection that TWS gives up is ended at once, and the next one works."""
    room.tws.say(code, WORDS)
    await room.until(lambda: room.broker.health == BrokerHealth(), "the end of the connection")
    await room.broker.connect(room.heard)

    assert room.broker.health == UP


async def test_too_fast(room: IbkrRoom) -> None:
    """Entries and questions wait, cancels do not, and what has just left is read back."""
    order, seen = await working(room), reads(room)
    room.tws.arm("lost-order")
    lost = approve(request(room.symbol, "buy", 1, **RESTING))
    await room.broker.submit([lost])
    await room.tws.until_received("placeOrder", 2)
    room.tws.say(TOO_FAST, WORDS)
    await asyncio.sleep(QUIET)
    await room.broker.submit([approve(request(room.symbol, "buy", 1, **RESTING))])
    await room.broker.cancel(order.order_id)
    await room.ended(order, "cancelled")

    assert len(room.tws.requests("placeOrder")) == 2
    assert reads(room) == seen
    await room.tws.until(lambda: reads(room) > seen)
    await room.tws.until_received("placeOrder", 3)
    assert room.heard.kinds(lost.order_id) == []


@pytest.mark.parametrize("code", [*QUESTIONS, *DOUBTS, *NO_ORDER, *INVALID[1:2], *OF_NO_USE[:1]])
async def test_questions(room: IbkrRoom, code: int) -> None:
    """A question ends with the code, and IB's words on it."""
    room.tws.arm("refused", request="reqAccountSummary", code=code, text="Not so.")
    with pytest.raises(BrokerError, match=rf"Not so. \(code {code}\)"):
        await room.broker.account()


@pytest.mark.parametrize("code", ORDERS)
async def test_new_orders(room: IbkrRoom, code: int) -> None:
    """An order that was never acknowledged is rejected where IB says so; of all else nothing is claimed."""
    seen = reads(room)
    room.tws.arm("refused", request="placeOrder", code=code, text="Not so.")
    order = approve(request(room.symbol, "buy", 100, **RESTING))
    await room.broker.submit([order])
    if code in NO_ORDER:
        report = await room.ended(order, "rejected")
        assert report.reason == f"Not so. (code {code})"
    elif code != CANCELLED:
        await room.tws.until(lambda: reads(room) > seen)
    await room.caught_up()
    await asyncio.sleep(QUIET)

    assert room.heard.kinds(order.order_id) == ["rejected"] * (code in NO_ORDER)
    assert (reads(room) > seen) == (code not in (*NO_ORDER, CANCELLED))


@pytest.mark.parametrize("code", ORDERS)
async def test_working_orders(room: IbkrRoom, code: int) -> None:
    """Whatever comes about an order that was acknowledged: it works, and is read back where that is in doubt."""
    order, seen = await working(room), reads(room)
    room.tws.say(code, "Not so.", order.order_id)
    await room.caught_up()
    await asyncio.sleep(QUIET)

    assert room.heard.kinds(order.order_id) == ["accepted"]
    assert (reads(room) > seen) == (code not in (CANCELLED, *INVALID, *WARNINGS))


@pytest.mark.parametrize("code", ORDERS)
async def test_changes(room: IbkrRoom, code: int) -> None:
    """What refuses a change is told with IB's words; a remark is none, and the order works on either way."""
    order, seen = await working(room), reads(room)
    room.tws.arm("refused", request="placeOrder", code=code, text="Not so.")
    changed = order.request.model_copy(update={"limit_price": Decimal("9.6")})
    await room.broker.replace(approve(changed, order.order_id))
    await room.tws.until_received("placeOrder", 2)
    await room.caught_up()
    await asyncio.sleep(QUIET)

    refused = code not in (CANCELLED, *WARNINGS)
    assert room.heard.kinds(order.order_id) == ["accepted"] + ["unchanged"] * refused
    assert (reads(room) > seen) == refused
    if refused:
        assert room.heard.reports[-1].reason == f"Not so. (code {code})"
    assert await room.working(order) is not None

"""Every fault of the peer, seen by a real client, and what is true in the book meanwhile."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.testing.tws import KINDS, FakeTws
from sigma9_core.testing.tws.book import Refused
from sigma9_core.testing.tws.faults import WARNINGS, Faults


def limit(lib: Any, quantity: float = 100, price: float = 180, **more: Any) -> Any:
    """Make a limit order."""
    return lib.LimitOrder("BUY", quantity, price, **{"tif": "DAY", **more})


def codes(heard: list[tuple[int, int, str]]) -> list[int]:
    """Give the codes that were heard."""
    return [code for _, code, _ in heard]


async def place(lib: Any, ib: Any, contract: Any, order: Any | None = None) -> Any:
    """Place an order, and let the answer come."""
    trade = ib.placeOrder(contract, order or limit(lib))
    await ib.reqCurrentTimeAsync()
    return trade


async def ends(ib: Any) -> None:
    """Wait until a client has noticed that its connection is gone."""
    if ib.isConnected():
        async with asyncio.timeout(5):
            await ib.disconnectedEvent


# --- orders -----------------------------------------------------------------------------------------------------


async def test_reject(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """reject: the order is Inactive, and code 201 says why."""
    tws.arm("reject")
    trade = await place(lib, ib, aapl)
    assert codes(heard) == [201]
    assert tws.order().status == "Inactive"
    assert trade.orderStatus.status in ("Inactive", "Cancelled")
    assert (await place(lib, ib, aapl)).orderStatus.status == "Submitted"


async def test_reject_with_words(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """reject: the text can be given."""
    tws.arm("reject", text="Order rejected - reason:no money")
    await place(lib, ib, aapl)
    assert heard[0][1:] == (201, "Order rejected - reason:no money")


async def test_read_only(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """read-only: code 321, and no order."""
    tws.arm("read-only", times=None)
    await place(lib, ib, aapl)
    assert codes(heard) == [321]
    assert tws.orders() == []


async def test_what_if_remark(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """what-if-remark: a code comes ahead of the margins, which come all the same."""
    heard: list[tuple[str, int]] = []
    ib.wrapper.error = lambda number, code, *_: heard.append(("error", code))
    ib.wrapper.openOrder = lambda number, *_: heard.append(("openOrder", number))
    tws.arm("what-if-remark")
    tws.arm("what-if-remark", code=2109, text="ignored")
    for number in range(2):
        ib.client.placeOrder(900 + number, aapl, limit(lib, whatIf=True))
    await ib.reqCurrentTimeAsync()
    assert heard == [("error", 399), ("openOrder", 900), ("error", 2109), ("openOrder", 901)]
    assert tws.orders() == []


async def test_locate_hold(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """locate-hold: the order is Inactive, says why, trades at no price, and works once it is let go."""
    tws.arm("locate-hold", seconds=60)
    trade = await place(lib, ib, aapl)
    assert codes(heard) == [404]
    told = [entry for entry in trade.log if entry.status == "Inactive"]
    assert told or trade.orderStatus.status == "ValidationError"
    assert trade.orderStatus.whyHeld == "locate"
    tws.set_price("AAPL", 170)
    assert [each.order.orderId for each in await ib.reqOpenOrdersAsync()] == [trade.order.orderId]
    assert (tws.order().status, float(tws.order().filled)) == ("Inactive", 0)
    tws.let_go()
    await ib.reqCurrentTimeAsync()
    assert (tws.order().status, trade.orderStatus.status) == ("Filled", "Filled")


async def test_an_order_that_works_is_held(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """hold_order: what works is held, can be cancelled, and what has ended can't be held."""
    trade = await place(lib, ib, aapl)
    tws.hold_order(why="locate")
    await ib.reqCurrentTimeAsync()
    assert (trade.orderStatus.status, trade.orderStatus.whyHeld) == ("Inactive", "locate")
    ib.client.cancelOrder(trade.order.orderId, "")
    await ib.reqCurrentTimeAsync()
    assert tws.order().status == "Cancelled"
    with pytest.raises(Refused):
        tws.hold_order()


async def test_open_order_hidden(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """open-order-hidden: the list lacks it, or some of it, and it works all the same."""
    for ref in ("a", "b"):
        await place(lib, ib, aapl, limit(lib, orderRef=ref))
    tws.arm("open-order-hidden", times=None, order_ref="a")
    assert [each.order.orderRef for each in await ib.reqAllOpenOrdersAsync()] == ["b"]
    tws.arm("open-order-hidden", times=None)
    assert await ib.reqAllOpenOrdersAsync() == []
    tws.disarm("open-order-hidden")
    assert len(await ib.reqAllOpenOrdersAsync()) == len(tws.orders(live=True)) == 2


async def test_rejected_listed(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """rejected-listed: an order that was turned down stays in the list as Inactive, and can't be cancelled."""
    tws.arm("rejected-listed", times=None)
    trade = await place(lib, ib, aapl)
    tws.reject(None, "Order rejected - reason:no more")
    assert await ib.reqCompletedOrdersAsync(False) == []
    assert [each.orderStatus.status for each in await ib.reqAllOpenOrdersAsync()] == ["Inactive"]
    ib.client.cancelOrder(trade.order.orderId, "")
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [201, 10148]
    tws.disarm()
    assert len(await ib.reqCompletedOrdersAsync(False)) == 1


async def test_lost_order(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """lost-order: nothing is in the book, and nothing is said."""
    tws.arm("lost-order")
    trade = await place(lib, ib, aapl)
    assert trade.orderStatus.status == "PendingSubmit"
    assert tws.orders() == []
    assert await ib.reqOpenOrdersAsync() == []


async def test_lost_ack(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """lost-ack: the order works, and even fills, untold; reading back brings it to light."""
    tws.arm("lost-ack", times=2)
    resting = await place(lib, ib, aapl, limit(lib, orderRef="rests"))
    filled = await place(lib, ib, aapl, limit(lib, price=200, orderRef="fills"))
    assert {resting.orderStatus.status, filled.orderStatus.status} == {"PendingSubmit"}
    assert tws.order("rests").live
    assert tws.order("fills").status == "Filled"

    assert [each.order.orderRef for each in await ib.reqOpenOrdersAsync()] == ["rests"]
    assert resting.orderStatus.status == "Submitted"
    assert [each.execution.orderRef for each in await ib.reqExecutionsAsync()] == ["fills"]
    tws.set_price("AAPL", 180)
    await ib.reqCurrentTimeAsync()
    assert resting.orderStatus.status == "Filled"


async def test_late_ack(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """late-ack: the order works, and is told of after a while; what has filled meanwhile can be asked for."""
    tws.arm("late-ack", times=2, seconds=5)
    resting = await place(lib, ib, aapl, limit(lib, orderRef="rests"))
    filled = await place(lib, ib, aapl, limit(lib, price=200, orderRef="fills"))
    assert {resting.orderStatus.status, filled.orderStatus.status} == {"PendingSubmit"}
    assert tws.order("rests").live

    tws.clock.advance(5)
    await ib.reqCurrentTimeAsync()
    assert (resting.orderStatus.status, filled.orderStatus.status) == ("Submitted", "Filled")
    assert [each.execution.orderRef for each in await ib.reqExecutionsAsync()] == ["fills"]


async def test_death_after_accept(lib: Any, ib: Any, aapl: Any, tws: FakeTws, connect: Any) -> None:
    """death-after-accept: the connection is gone, the order is not."""
    tws.arm("death-after-accept")
    ib.placeOrder(aapl, limit(lib, orderRef="x"))
    await ends(ib)
    assert tws.order("x").live
    await tws.until(lambda: not tws.clients)
    assert [each.order.orderRef for each in (await connect(1)).openTrades()] == ["x"]


async def test_modify_rejected(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """modify-rejected: code 201 for the change, and the order works on as it was."""
    trade = await place(lib, ib, aapl)
    tws.arm("modify-rejected")
    trade.order.lmtPrice = 181
    await place(lib, ib, aapl, trade.order)
    assert codes(heard) == [201]
    assert (tws.order().live, str(tws.order().limit)) == (True, "180")


async def test_modify_lost(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """modify-lost: nothing is said, nothing has changed."""
    trade = await place(lib, ib, aapl)
    tws.arm("modify-lost")
    trade.order.lmtPrice = 181
    await place(lib, ib, aapl, trade.order)
    assert (str(tws.order().limit), heard) == ("180", [])


@pytest.mark.parametrize("code", [code for code, (where, _) in WARNINGS.items() if where == "order"])
async def test_codes_of_orders(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any], *, code: int) -> None:
    """code-N: the code comes after the acceptance, and the order works on, whatever the library makes of it."""
    tws.arm(f"code-{code}")
    trade = await place(lib, ib, aapl)
    assert codes(heard) == [code]
    assert tws.order().live
    (found,) = tws.clients[0].sent[-2:-1]
    assert found[:4] == ("4", "2", str(trade.order.orderId), str(code))
    tws.set_price("AAPL", 180)
    await ib.reqCurrentTimeAsync()
    assert len(trade.fills) == 1


@pytest.mark.parametrize("code", [code for code, (where, _) in WARNINGS.items() if where == "modify"])
async def test_codes_of_changes(
    lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any], *, code: int
) -> None:
    """code-N: the change is answered by a code and not made."""
    trade = await place(lib, ib, aapl)
    tws.arm(f"code-{code}")
    trade.order.totalQuantity = 50
    await place(lib, ib, aapl, trade.order)
    assert codes(heard) == [code]
    assert (tws.order().live, str(tws.order().quantity)) == (True, "100")


@pytest.mark.parametrize("name", ["cancel-refused", "code-161", "code-10147", "code-10148"])
async def test_refused_cancels(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any], *, name: str) -> None:
    """cancel-refused and code-N: the cancel gets a code about an order that works on; the next one succeeds."""
    trade = await place(lib, ib, aapl)
    tws.arm(name)
    ib.cancelOrder(trade.order)
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [KINDS[name].code]
    assert tws.order().live
    ib.client.cancelOrder(trade.order.orderId, "")
    await ib.reqCurrentTimeAsync()
    assert not tws.order().live


async def test_cancel_lost(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """cancel-lost: the client believes in it for ever, and the order fills."""
    trade = await place(lib, ib, aapl)
    tws.arm("cancel-lost")
    ib.cancelOrder(trade.order)
    await ib.reqCurrentTimeAsync()
    assert trade.orderStatus.status == "PendingCancel"
    tws.set_price("AAPL", 180)
    await ib.reqCurrentTimeAsync()
    assert trade.orderStatus.status == "Filled"


async def test_global_cancel(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """cancel-refused, cancel-lost, cancel-late: they strike the orders of a global cancel one by one."""
    for ref in ("refused", "lost", "late", "done"):
        await place(lib, ib, aapl, limit(lib, orderRef=ref))
        if ref != "done":
            tws.arm(f"cancel-{ref}", order_ref=ref)
    ib.reqGlobalCancel()
    await ib.reqCurrentTimeAsync()
    assert [each.status for each in tws.orders()] == ["Submitted", "Submitted", "PendingCancel", "Cancelled"]
    assert sorted(codes(heard)) == [202, 10148]


async def test_cancel_late(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """cancel-late: until it is done the order works, and may fill."""
    tws.arm("cancel-late", times=2, seconds=3)
    trades = [await place(lib, ib, aapl), await place(lib, ib, aapl, limit(lib, price=170))]
    for each in trades:
        ib.cancelOrder(each.order)
    await ib.reqCurrentTimeAsync()
    assert {each.status for each in tws.orders()} == {"PendingCancel"}
    tws.set_price("AAPL", 180, depth=60)
    tws.clock.advance(2)
    await ib.reqCurrentTimeAsync()
    assert trades[0].orderStatus.filled == 60
    assert tws.orders()[0].status == "PendingCancel"
    tws.clock.advance(1)
    await ib.reqCurrentTimeAsync()
    assert [(each.orderStatus.status, each.orderStatus.filled) for each in trades] == [
        ("Cancelled", 60),
        ("Cancelled", 0),
    ]


# --- fills ------------------------------------------------------------------------------------------------------


async def test_partial_fills(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """partial-fills: one fill comes in several executions."""
    tws.arm("partial-fills", parts=3)
    trade = await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    assert [each.execution.shares for each in trade.fills] == [33, 33, 34]
    assert trade.orderStatus.status == "Filled"
    tws.arm("partial-fills", parts=3)
    trade = await place(lib, ib, aapl, lib.MarketOrder("BUY", 2, tif="DAY"))
    assert [each.execution.shares for each in trade.fills] == [1, 1]


async def test_late_execution(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """late-execution: the status says Filled long before the execution comes."""
    tws.arm("late-execution", seconds=5)
    trade = await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    assert (trade.orderStatus.status, trade.fills) == ("Filled", [])
    assert tws.book.executions[0].told_at is None
    tws.clock.advance(5)
    await ib.reqCurrentTimeAsync()
    (fill,) = trade.fills
    assert tws.book.executions[0].told_at == tws.clock.now()
    assert fill.commissionReport.commission == 1


async def test_lost_execution_is_told_when_asked_for(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """lost-execution: the read-back tells it, and the peer knows when."""
    tws.arm("lost-execution")
    await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    (execution,) = tws.book.executions
    assert execution.told_at is None
    assert len(await ib.reqExecutionsAsync()) == 1
    assert execution.told_at == tws.clock.now()


async def test_later_execution(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """later-execution: the status alone tells of the fill, and so does a read-back, until its time has come."""
    tws.arm("later-execution", seconds=5)
    trade = await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    assert (trade.orderStatus.filled, trade.fills) == (100, [])
    assert await ib.reqExecutionsAsync() == []
    tws.clock.advance(5)
    assert len(await ib.reqExecutionsAsync()) == 1


async def test_doubled_execution(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """doubled-execution: the same id comes twice on the wire."""
    tws.arm("doubled-execution")
    await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    told = [each for each in tws.clients[0].sent if each[0] == "11"]
    assert len(told) == 2
    assert told[0] == told[1]
    assert len(tws.book.executions) == 1


async def test_lost_execution(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """lost-execution: the status alone tells of the fill, until executions are asked for."""
    tws.arm("lost-execution")
    trade = await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    assert (trade.orderStatus.filled, trade.fills) == (100, [])
    assert len(await ib.reqExecutionsAsync()) == 1


async def test_late_commission(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """late-commission: the execution is there, what it costs comes later."""
    tws.arm("late-commission", seconds=5)
    trade = await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    assert trade.fills[0].commissionReport.execId == ""
    tws.clock.advance(5)
    await ib.reqCurrentTimeAsync()
    assert trade.fills[0].commissionReport.commission == 1


async def test_lost_commission(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """lost-commission: only asking for executions brings it."""
    tws.arm("lost-commission")
    trade = await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    assert trade.fills[0].commissionReport.execId == ""
    await ib.reqExecutionsAsync()
    assert trade.fills[0].commissionReport.commission == 1


async def test_doubled_status(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """doubled-status: the same status comes twice."""
    tws.arm("doubled-status")
    await place(lib, ib, aapl)
    told = [each for each in tws.clients[0].sent if each[0] == "3"]
    assert len(told) == 2
    assert told[0] == told[1]


# --- connections ------------------------------------------------------------------------------------------------


async def test_link_lost_and_back(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """link-lost, link-back: orders wait, the market trades on; 1102 brings what happened meanwhile."""
    resting = await place(lib, ib, aapl)
    ticker = ib.reqMktData(aapl)
    await ib.reqCurrentTimeAsync()
    tws.arm("link-lost")
    await ib.reqCurrentTimeAsync()
    sent = await place(lib, ib, aapl, limit(lib, price=170))
    tws.set_price("AAPL", 180)
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [1100]
    assert (ib.isConnected(), ib.client.isConnected()) == (True, True)
    assert [each.orderStatus.status for each in (resting, sent)] == ["Submitted", "PendingSubmit"]
    assert tws.order().status == "Filled"
    assert ticker.last == 190

    tws.arm("link-back")
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [1100, 1102]
    assert [each.orderStatus.status for each in (resting, sent)] == ["Filled", "Submitted"]
    tws.set_price("AAPL", 181)
    await ib.reqCurrentTimeAsync()
    assert ticker.last == 181


async def test_link_back_without_data(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """link-back-data-lost: 1101, and market data is silent until it is asked for again."""
    ticker = ib.reqMktData(aapl)
    await ib.reqCurrentTimeAsync()
    tws.arm("link-lost")
    await ib.reqCurrentTimeAsync()
    tws.arm("link-back-data-lost")
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", 181)
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [1100, 1101]
    assert ticker.last == 190


async def test_link_back_by_itself(ib: Any, tws: FakeTws, heard: list[Any]) -> None:
    """link-lost with `seconds`: the link comes back by itself."""
    tws.arm("link-lost", seconds=5)
    await ib.reqCurrentTimeAsync()
    tws.clock.advance(5)
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [1100, 1102]


async def test_farm_flap(ib: Any, tws: FakeTws, heard: list[Any]) -> None:
    """farm-flap: the farms go and come back, and the connection stays."""
    tws.arm("farm-flap")
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [2103, 2105, 2157, 2104, 2106, 2158]
    assert ib.isConnected()


async def test_nightly_restart(lib: Any, ib: Any, aapl: Any, tws: FakeTws, connect: Any) -> None:
    """nightly-restart: the connection is gone, ids begin at 1 again, orders and executions are kept."""
    await place(lib, ib, aapl, limit(lib, orderRef="x"))
    await place(lib, ib, aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    assert tws.book.next_id(1) > 1
    tws.arm("nightly-restart")
    ib.client.reqCurrentTime()
    await ends(ib)
    await tws.until(lambda: not tws.clients)
    again = await connect(1)
    assert ("9", "1", "1") in tws.clients[0].sent
    assert [each.order.orderRef for each in again.openTrades()] == ["x"]
    assert len(again.fills()) == 1


async def test_restart_takes_its_time(lib: Any, ib: Any, tws: FakeTws) -> None:
    """nightly-restart with `seconds`: nobody gets in meanwhile."""
    tws.arm("nightly-restart", seconds=30)
    ib.client.reqCurrentTime()
    await ends(ib)
    again = lib.IB()
    with pytest.raises((TimeoutError, ConnectionError)):
        await again.connectAsync(tws.host, tws.port, clientId=1, timeout=0.2)
    tws.clock.advance(30)
    await again.connectAsync(tws.host, tws.port, clientId=1, timeout=5)
    again.disconnect()


async def test_client_id_in_use(lib: Any, tws: FakeTws) -> None:
    """client-id-in-use: 326, then the connection closes; the next attempt succeeds."""
    tws.arm("client-id-in-use", client_id=3)
    ib = lib.IB()
    heard: list[int] = []
    ib.errorEvent += lambda number, code, text, contract: heard.append(code)
    with pytest.raises((TimeoutError, ConnectionError)):
        await ib.connectAsync(tws.host, tws.port, clientId=3, timeout=0.2)
    assert 326 in heard
    await ib.connectAsync(tws.host, tws.port, clientId=3, timeout=5)
    ib.disconnect()


@pytest.mark.parametrize("name", ["silent-handshake", "closed-at-once"])
async def test_no_handshake(lib: Any, tws: FakeTws, *, name: str) -> None:
    """silent-handshake, closed-at-once: connecting ends in a time-out; the next attempt succeeds."""
    tws.arm(name)
    ib = lib.IB()
    with pytest.raises((TimeoutError, ConnectionError)):
        await ib.connectAsync(tws.host, tws.port, clientId=1, timeout=0.2)
    await ib.connectAsync(tws.host, tws.port, clientId=1, timeout=5)
    ib.disconnect()


async def test_half_open(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """half-open: bytes are taken and nothing comes back; the client believes that it is connected."""
    tws.arm("half-open")
    ib.client.reqCurrentTime()
    trade = ib.placeOrder(aapl, limit(lib))
    await tws.until_received("placeOrder")
    assert ib.isConnected()
    assert trade.orderStatus.status == "PendingSubmit"
    assert tws.orders() == []
    tws.drop()
    await ends(ib)


async def test_rate_limit(ib: Any, tws: FakeTws, heard: list[Any]) -> None:
    """rate-limit: more than 50 messages in a second get code 100, and the third closes the connection."""
    tws.arm("rate-limit", times=None)
    ib.client.MaxRequests = 0
    for _ in range(60):
        ib.client.reqCurrentTime()
    await ends(ib)
    assert codes(heard) == [100, 100, 100]
    assert not tws.clients


async def test_pacing_violation(ib: Any, tws: FakeTws, heard: list[Any]) -> None:
    """pacing-violation: the third closes the connection."""
    tws.arm("pacing-violation", times=2)
    for _ in range(3):
        ib.client.reqCurrentTime()
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [100, 100]
    tws.arm("pacing-violation")
    ib.client.reqCurrentTime()
    await ends(ib)


async def test_unanswered(ib: Any, tws: FakeTws) -> None:
    """unanswered: a request of that name is swallowed, others are not."""
    tws.arm("unanswered", request="reqPositions")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await ib.reqPositionsAsync()
    assert await ib.reqPositionsAsync() == []


async def test_refused(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """refused: a new order, a change, a cancel or a question gets a code, and nothing comes of it."""
    trade = await place(lib, ib, aapl)
    told = {"placeOrder": 110, "cancelOrder": 161, "reqContractDetails": 200, "reqAllOpenOrders": 321}
    for name, code in told.items():
        tws.arm("refused", request=name, code=code, text="no")
    trade.order.lmtPrice = 181
    await place(lib, ib, aapl, trade.order)
    ib.cancelOrder(trade.order)
    assert await ib.reqContractDetailsAsync(aapl) == []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await ib.reqAllOpenOrdersAsync()
    assert codes(heard) == [*told.values()]
    assert [number for number, _, _ in heard][:2] == [trade.order.orderId] * 2
    assert heard[-1] == (-1, 321, "no")
    (order,) = tws.orders()
    assert order.status == "Submitted"
    assert order.limit == 180


async def test_modify_untold(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """modify-untold: the change is made, and told to who reads back."""
    trade = await place(lib, ib, aapl)
    tws.arm("modify-untold")
    before = len(tws.clients[0].sent)
    trade.order.lmtPrice = 181
    await place(lib, ib, aapl, trade.order)
    assert [each[0] for each in tws.clients[0].sent[before:]] == ["49"]
    assert tws.order().limit == 181
    await ib.reqAllOpenOrdersAsync()
    assert "5" in [each[0] for each in tws.clients[0].sent[before:]]


async def test_late_answer(ib: Any, tws: FakeTws) -> None:
    """late-answer: half of it comes at once, the rest with its end later; other answers are not late."""
    for symbol in ("AAPL", "AMD", "MSFT"):
        tws.set_position(symbol, 100, 10)
    await ib.reqCurrentTimeAsync()
    tws.arm("late-answer", request="reqPositions", seconds=0.1)
    told = len(tws.clients[0].sent)
    asking = asyncio.ensure_future(ib.reqPositionsAsync())
    await tws.until_received("reqPositions", len(tws.requests("reqPositions")) + 1)
    await ib.reqCurrentTimeAsync()
    assert not asking.done()
    assert [each[0] for each in tws.clients[0].sent[told:]] == ["61", "61", "49"]
    tws.clock.advance(0.1)
    assert len(await asking) == 3


# --- data -------------------------------------------------------------------------------------------------------


async def test_no_market_data(ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """no-market-data: code 10089."""
    tws.arm("no-market-data", symbol="AAPL")
    ib.reqMktData(aapl)
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [10089]


@pytest.mark.parametrize("name", ["history-pacing", "history-empty"])
async def test_no_history(ib: Any, aapl: Any, tws: FakeTws, heard: list[Any], *, name: str) -> None:
    """history-pacing, history-empty: code 162, and no bars."""
    tws.arm(name)
    assert not await ib.reqHistoricalDataAsync(aapl, "", "1 D", "1 min", "TRADES", True)
    assert codes(heard) == [162]


async def test_history_limits(ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """history-limits: not the same twice in 15 seconds, not 6 of a contract in 2, not over 60 in 10 minutes."""
    tws.arm("history-limits", times=None)

    async def asked(days: int) -> bool:
        return bool(await ib.reqHistoricalDataAsync(aapl, "", f"{days} D", "1 day", "TRADES", True))

    assert [await asked(1), await asked(1), await asked(2)] == [True, False, True]
    tws.clock.advance(15)
    assert [await asked(days) for days in (1, 2, 3, 4, 5, 6)] == [True] * 5 + [False]
    for days in range(7, 58):
        tws.clock.advance(3)
        assert await asked(days)
    assert not await asked(58)
    assert set(codes(heard)) == {162}
    tws.clock.advance(600)
    assert await asked(58)


async def test_history_unanswered(ib: Any, aapl: Any, tws: FakeTws) -> None:
    """history-unanswered: nothing comes."""
    tws.arm("history-unanswered")
    assert not await ib.reqHistoricalDataAsync(aapl, "", "1 D", "1 min", "TRADES", True, timeout=0.1)


async def test_bars_pacing(ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """bars-pacing: code 420, and no bars; asked for again they come."""
    tws.arm("bars-pacing")
    refused, bars = (ib.reqRealTimeBars(aapl, 5, "TRADES", False) for _ in range(2))
    await ib.reqCurrentTimeAsync()
    tws.clock.advance(5)
    await ib.reqCurrentTimeAsync()
    assert codes(heard) == [420]
    assert (len(refused), len(bars)) == (0, 1)


# --- the faults themselves --------------------------------------------------------------------------------------


async def test_matching(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A fault strikes what it is meant for: a symbol, a reference, a client."""
    tws.arm("lost-order", symbol="AMD")
    tws.arm("lost-order", order_ref="b")
    tws.arm("lost-order", client_id=9)
    for ref in ("a", "b", "c"):
        await place(lib, ib, aapl, limit(lib, orderRef=ref))
    assert [each.ref for each in tws.orders()] == ["a", "c"]
    assert tws.faults.happened == {"lost-order": 1}
    tws.disarm("lost-order")
    assert tws.faults.armed == []


def test_chance_is_by_the_seed() -> None:
    """The same seed strikes at the same times, another at others; a switch strikes always."""

    def times(seed: int) -> list[bool]:
        faults = Faults(seed)
        faults.arm("reject", times=None, chance=0.3)
        return [faults.strike("place") is not None for _ in range(200)]

    assert times(1) == times(1) != times(2)
    assert 30 < sum(times(1)) < 90
    faults = Faults()
    faults.arm("reject", times=None)
    assert all(faults.strike("place") for _ in range(10))
    faults.disarm("reject")
    assert faults.strike("place") is None


def test_unknown_fault() -> None:
    """An unknown name is an error, and so is a setting that a fault does not have."""
    with pytest.raises(KeyError, match="no fault is called 'rejct'"):
        Faults().arm("rejct")
    with pytest.raises(KeyError, match="no fault has the option 'secnds'"):
        Faults().arm("cancel-late", secnds=1)


def test_every_fault_is_tested() -> None:
    """Each fault stands in a test of this file, and has a sentence."""
    source = Path(__file__).read_text(encoding="utf-8")
    armed = set(re.findall(r'"([a-z-]+)"', source)) | {f"code-{code}" for code in WARNINGS}

    assert set(KINDS) - armed == set()
    assert all(kind.about.endswith(".") for kind in KINDS.values())

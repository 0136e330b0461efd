"""A real client trades at the peer: acceptance, fills, changes, cancels, and who hears of what."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sigma9_core.testing.tws import FakeTws


def limit(lib: Any, side: str = "BUY", quantity: float = 100, price: float = 180, **more: Any) -> Any:
    """Make a limit order."""
    return lib.LimitOrder(side, quantity, price, **{"tif": "DAY", **more})


async def test_accept_modify_cancel(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """An order is accepted, changed by its id and cancelled, each step told."""
    order = limit(lib, orderRef="a-1")
    trade = ib.placeOrder(aapl, order)
    await ib.reqCurrentTimeAsync()
    assert trade.orderStatus.status == "Submitted"
    assert trade.order.permId == tws.order("a-1").perm_id

    order.lmtPrice, order.totalQuantity = 181.5, 90
    ib.placeOrder(aapl, order)
    await ib.reqCurrentTimeAsync()
    assert str(tws.order("a-1").limit) == "181.5"
    assert trade.orderStatus.remaining == 90

    ib.cancelOrder(order)
    await ib.reqCurrentTimeAsync()
    assert trade.orderStatus.status == "Cancelled"
    assert [code for _, code, _ in heard] == [202]
    (done,) = await ib.reqCompletedOrdersAsync(False)
    assert (done.order.orderRef, done.orderStatus.status) == ("a-1", "Cancelled")


async def test_market_order(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A market order fills at once: execution, status and commission, position and cash."""
    trade = ib.placeOrder(aapl, lib.MarketOrder("BUY", 100, tif="DAY", orderRef="m"))
    await ib.reqCurrentTimeAsync()

    assert trade.orderStatus.status == "Filled"
    (fill,) = trade.fills
    assert (fill.execution.side, fill.execution.shares, fill.execution.price) == ("BOT", 100, 190)
    assert fill.execution.orderRef == "m"
    assert fill.execution.time == tws.clock.now()
    assert fill.commissionReport.commission == 1
    (position,) = ib.positions()
    assert (position.position, position.avgCost) == (100, 190.01)
    assert {each.tag: each.value for each in ib.accountValues()}["TotalCashValue"] == "80999.00"


async def test_bid_and_ask(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Market orders buy at the ask and sell at the bid."""
    tws.set_price("AAPL", 190, bid=189.9, ask=190.2)
    bought = ib.placeOrder(aapl, lib.MarketOrder("BUY", 1, tif="DAY"))
    sold = ib.placeOrder(aapl, lib.MarketOrder("SELL", 1, tif="DAY"))
    await ib.reqCurrentTimeAsync()

    assert (bought.orderStatus.avgFillPrice, sold.orderStatus.avgFillPrice) == (190.2, 189.9)


async def test_partial_fills(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A thin market fills a part; the control fills what it likes."""
    trade = ib.placeOrder(aapl, limit(lib, orderRef="p"))
    await tws.until_received("placeOrder")
    tws.set_price("AAPL", 180, depth=30)
    tws.fill("p", 20, "179.99")
    await ib.reqCurrentTimeAsync()
    assert (trade.orderStatus.status, trade.orderStatus.filled, trade.orderStatus.remaining) == (
        "Submitted",
        50,
        50,
    )
    assert trade.orderStatus.avgFillPrice == pytest.approx(179.996)

    ib.cancelOrder(trade.order)
    await ib.reqCurrentTimeAsync()
    assert (trade.orderStatus.status, trade.orderStatus.filled) == ("Cancelled", 50)
    (done,) = await ib.reqCompletedOrdersAsync(False)
    assert done.order.filledQuantity == 50


async def test_away_while_it_fills(lib: Any, ib: Any, aapl: Any, connect: Any, tws: FakeTws) -> None:
    """The market trades on while a client is away; executions and completed orders tell of it afterwards."""
    order = limit(lib, orderRef="away")
    ib.placeOrder(aapl, order)
    await tws.until_received("placeOrder")
    ib.disconnect()
    await tws.until(lambda: not tws.clients)
    tws.set_price("AAPL", 179)

    again = await connect(1)
    (fill,) = again.fills()
    assert (fill.execution.orderRef, fill.execution.price) == ("away", 179)
    assert fill.commissionReport.commission == 1
    assert again.openTrades() == []
    (done,) = await again.reqCompletedOrdersAsync(False)
    assert (done.order.orderRef, done.order.permId) == ("away", fill.execution.permId)
    before = tws.order("away").perm_id
    tws.new_day()
    assert tws.place_foreign(3, "AAPL", action="BUY", totalQuantity=1).perm_id > before
    tws.new_day()
    assert await again.reqExecutionsAsync() == []
    assert await again.reqCompletedOrdersAsync(False) == []


async def test_open_orders_after_reconnect(lib: Any, ib: Any, aapl: Any, connect: Any, tws: FakeTws) -> None:
    """A client that comes back finds its open orders with all their fields, and goes on with their ids."""
    order = lib.Order(
        action="SELL", totalQuantity=7, orderType="TRAIL LIMIT", tif="GTC", orderRef="t", trailStopPrice=170,
        auxPrice=5, lmtPriceOffset=0.1, outsideRth=True, triggerMethod=2,
    )  # fmt: skip
    ib.placeOrder(aapl, order)
    await tws.until_received("placeOrder")
    ib.disconnect()
    await tws.until(lambda: not tws.clients)

    again = await connect(1)
    (trade,) = again.openTrades()
    found = trade.order
    assert (found.orderType, found.tif, found.orderRef, found.outsideRth) == ("TRAIL LIMIT", "GTC", "t", True)
    # It began 5 below 175, and trails since: at 190 the stop is at 185.
    assert (found.trailStopPrice, found.auxPrice, found.triggerMethod) == (185, 5, 2)
    assert trade.orderStatus.status == "PreSubmitted"
    assert again.client.getReqId() > found.orderId


async def test_unknown_contract(lib: Any, ib: Any, heard: list[Any], tws: FakeTws) -> None:
    """An order for an unknown contract gets code 200, and is not in the book."""
    ib.placeOrder(lib.Stock("NOSUCH", "SMART", "USD"), limit(lib))
    await ib.reqCurrentTimeAsync()

    assert [code for _, code, _ in heard] == [200]
    assert tws.orders() == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"orderType": "PEG STK"}, 387),
        ({"tif": "SOON"}, 201),
        ({"totalQuantity": 0}, 434),
        ({"lmtPrice": 180.001}, 110),
        ({"account": "DU9"}, 321),
        ({"tif": "GTD", "goodTillDate": "tomorrow"}, 391),
        ({"parentId": 99}, 135),
        ({"orderType": "STP"}, 201),
        ({"orderType": "TRAIL"}, 201),
        ({"orderType": "STP LMT", "auxPrice": 0.0}, 201),
    ],
)
async def test_refused(
    lib: Any, ib: Any, aapl: Any, heard: list[Any], tws: FakeTws, *, fields: dict[str, Any], code: int
) -> None:
    """An order that a broker would not take is refused with its code."""
    order = limit(lib)
    for name, value in fields.items():
        setattr(order, name, value)
    ib.placeOrder(aapl, order)
    await ib.reqCurrentTimeAsync()

    assert [each for _, each, _ in heard] == [code]
    assert tws.orders() == []


async def test_order_ids(lib: Any, ib: Any, aapl: Any, heard: list[Any], tws: FakeTws) -> None:
    """An id below the next is a duplicate; that of a filled order can't be changed; another side is no change."""
    trade = ib.placeOrder(aapl, lib.MarketOrder("BUY", 1, tif="DAY"))
    await ib.reqCurrentTimeAsync()
    ib.client.placeOrder(trade.order.orderId, aapl, limit(lib))
    ib.client.placeOrder(1, aapl, limit(lib))
    live = ib.placeOrder(aapl, limit(lib))
    ib.client.placeOrder(live.order.orderId, aapl, limit(lib, "SELL"))
    ib.client.cancelOrder(999, "")
    ib.client.cancelOrder(trade.order.orderId, "")
    await ib.reqCurrentTimeAsync()

    assert [code for _, code, _ in heard] == [104, 103, 105, 10147, 10148]


async def test_order_ids_lie_above_all_that_were_told(
    lib: Any, ib: Any, aapl: Any, heard: list[Any], tws: FakeTws
) -> None:
    """A client that was told of another's order must stay above its id; `reqIds` gives one that does."""
    tws.place_foreign(7, "AMD", 5000, action="BUY", totalQuantity=5, orderType="LMT", lmtPrice=1)
    ib.client.placeOrder(40, aapl, limit(lib))
    await ib.reqAllOpenOrdersAsync()
    ib.client.placeOrder(41, aapl, limit(lib))
    ib.client.placeOrder(40, aapl, limit(lib, price=2))  # a change keeps its id
    await ib.reqCurrentTimeAsync()
    assert [(number, code) for number, code, _ in heard] == [(41, 103)]

    ib.client.reqIds(1)
    ib.client.placeOrder(5001, aapl, limit(lib))
    await ib.reqCurrentTimeAsync()
    assert [fields for fields in tws.clients[0].sent if fields[0] == "9"][-1][-1] == "5001"
    assert [each.order_id for each in tws.orders(client_id=1)] == [40, 5001]


async def test_time_in_force_is_never_empty(lib: Any, ib: Any, aapl: Any, heard: list[Any], tws: FakeTws) -> None:
    """An order without one becomes a day order, which code 10349 tells; it works on."""
    ib.placeOrder(aapl, limit(lib, tif=""))
    await ib.reqCurrentTimeAsync()

    assert [code for _, code, _ in heard] == [10349]
    assert tws.order().live
    assert len(await ib.reqOpenOrdersAsync()) == 1
    assert tws.order().shown()["tif"] == "DAY"


async def test_what_if(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A question about margins is answered, and makes no order."""
    state = await ib.whatIfOrderAsync(aapl, lib.MarketOrder("BUY", 100, tif="DAY"))

    assert float(state.initMarginChange) == 4750
    assert float(state.equityWithLoanAfter) == 99_999
    assert state.commission == 1
    assert tws.orders() == []


async def test_foreign_orders(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """A client hears of its own orders alone; all open orders show the others' once; it can't cancel them."""
    tws.place_foreign(7, "AMD", action="BUY", totalQuantity=5, orderType="LMT", lmtPrice=1, orderRef="theirs")
    by_hand = tws.place_manual("MSFT", action="SELL", totalQuantity=3, orderType="LMT", lmtPrice=999)
    ib.placeOrder(aapl, limit(lib, orderRef="mine"))
    await ib.reqCurrentTimeAsync()
    assert [each.order.orderRef for each in ib.openTrades()] == ["mine"]
    assert [each.order.orderRef for each in await ib.reqOpenOrdersAsync()] == ["mine"]

    everything = await ib.reqAllOpenOrdersAsync()
    assert {(each.order.clientId, each.contract.symbol) for each in everything} == {
        (7, "AMD"),
        (0, "MSFT"),
        (1, "AAPL"),
    }
    ib.client.cancelOrder(tws.order("theirs").order_id, "")
    await ib.reqCurrentTimeAsync()
    assert [code for _, code, _ in heard] in ([10147], [10148])
    assert tws.order("theirs").live

    ib.reqGlobalCancel()
    await ib.reqCurrentTimeAsync()
    assert tws.orders(live=True) == []
    assert by_hand.status == "Cancelled"


async def test_orders_by_hand(connect: Any, tws: FakeTws) -> None:
    """Client 0 hears of orders by hand, by a number below zero, and can cancel them."""
    early = tws.place_manual("MSFT", action="SELL", totalQuantity=3, orderType="LMT", lmtPrice=999)
    zero = await connect(0)
    (found,) = zero.openTrades()
    assert (found.order.permId, found.order.orderId) == (early.perm_id, -1)
    late = tws.place_manual("AMD", action="BUY", totalQuantity=4, orderType="LMT", lmtPrice=1)
    await zero.reqCurrentTimeAsync()
    assert {each.order.permId for each in zero.openTrades()} == {early.perm_id, late.perm_id}

    zero.client.cancelOrder(early.order_id, "")
    tws.fill(late.perm_id)
    await zero.reqCurrentTimeAsync()
    assert zero.openTrades() == []
    assert early.status == "Cancelled"
    assert [each.execution.permId for each in zero.fills()] == [late.perm_id]


async def test_master_client(lib: Any) -> None:
    """The master client hears of everybody's orders, and cancels only its own."""
    async with FakeTws(master_client_id=9) as tws:
        master, other = lib.IB(), lib.IB()
        await master.connectAsync(tws.host, tws.port, clientId=9)
        await other.connectAsync(tws.host, tws.port, clientId=1)
        trade = other.placeOrder(lib.Stock("AAPL", "SMART", "USD"), limit(lib, orderRef="x"))
        await other.reqCurrentTimeAsync()
        await master.reqCurrentTimeAsync()
        assert [each.order.orderRef for each in master.openTrades()] == ["x"]
        master.client.cancelOrder(trade.order.orderId, "")
        await master.reqCurrentTimeAsync()
        assert tws.order("x").live
        master.disconnect()
        other.disconnect()


async def test_executions_filter(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Executions are told by client, symbol, side and time."""
    ib.placeOrder(aapl, lib.MarketOrder("BUY", 1, tif="DAY"))
    await ib.reqCurrentTimeAsync()
    tws.clock.advance(60)
    tws.place_foreign(7, "AMD", action="SELL", totalQuantity=2)

    async def symbols(**wanted: Any) -> list[str]:
        return [each.contract.symbol for each in await ib.reqExecutionsAsync(lib.ExecutionFilter(**wanted))]

    assert await symbols() == ["AAPL", "AMD"]
    assert await symbols(clientId=7) == ["AMD"]
    assert await symbols(symbol="AAPL") == ["AAPL"]
    assert await symbols(side="SELL") == ["AMD"]
    assert await symbols(time="20260105 15:00:30") == ["AMD"]
    assert await symbols(acctCode="other") == []


async def test_correction(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A corrected execution has an id that differs in its last part alone."""
    ib.placeOrder(aapl, lib.MarketOrder("BUY", 10, tif="DAY"))
    await ib.reqCurrentTimeAsync()
    tws.correct(tws.book.executions[0], 189.5)
    await ib.reqCurrentTimeAsync()

    (position,) = ib.positions()
    assert position.avgCost == pytest.approx(189.6)
    first, second = (each.execution.execId for each in ib.fills())
    assert first.rpartition(".")[0] == second.rpartition(".")[0]
    assert (first[-2:], second[-2:]) == ("01", "02")


async def test_restart_forgets_ids(lib: Any, ib: Any, aapl: Any, connect: Any, tws: FakeTws) -> None:
    """After the nightly restart order ids begin at 1 again, and an id of an order that lives changes it."""
    for _ in range(2):
        ib.placeOrder(aapl, lib.MarketOrder("BUY", 1, tif="DAY"))
    await ib.reqCurrentTimeAsync()
    gone = asyncio.Event()
    ib.disconnectedEvent += gone.set
    tws.restart()
    async with asyncio.timeout(5):
        await gone.wait()
    await tws.until(lambda: not tws.clients)

    again = lib.IB()
    await again.connectAsync(tws.host, tws.port, clientId=1, readonly=True)
    assert tws.clients[0].sent[1] == ("9", "1", "1")
    assert len(tws.book.executions) == 2
    again.disconnect()

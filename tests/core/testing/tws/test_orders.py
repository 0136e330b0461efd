"""What price moves do to each type of order, to brackets and to one-cancels-all groups, seen by a real client."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from sigma9_core.testing.tws import FakeTws


def make(lib: Any, side: str, kind: str, quantity: float = 100, **more: Any) -> Any:
    """Make an order."""
    return lib.Order(action=side, orderType=kind, totalQuantity=quantity, **{"tif": "GTC", **more})


def state(trade: Any) -> tuple[str, float]:
    """Give status and filled quantity."""
    return trade.orderStatus.status, trade.orderStatus.filled


@pytest.mark.parametrize(
    ("side", "kind", "fields", "before", "at"),
    [
        ("BUY", "LMT", {"lmtPrice": 185}, 186, 185),
        ("SELL", "LMT", {"lmtPrice": 195}, 194, 196),
        ("BUY", "STP", {"auxPrice": 195}, 194, 196),
        ("SELL", "STP", {"auxPrice": 185}, 186, 184),
        ("BUY", "MIT", {"auxPrice": 185}, 186, 184),
        ("SELL", "MIT", {"auxPrice": 195}, 194, 196),
        ("BUY", "LIT", {"auxPrice": 185, "lmtPrice": 186}, 186, 184),
        ("SELL", "TRAIL", {"auxPrice": 5, "trailStopPrice": 184}, 186, 183),
        ("BUY", "TRAIL", {"trailingPercent": 10}, 208, 209),
        ("SELL", "STP LMT", {"auxPrice": 185, "lmtPrice": 184}, 186, 184.5),
    ],
)
async def test_triggers(
    lib: Any, ib: Any, aapl: Any, tws: FakeTws, *, side: str, kind: str, fields: Any, before: float, at: float
) -> None:
    """An order waits until the price is there, and fills at it."""
    trade = ib.placeOrder(aapl, make(lib, side, kind, **fields))
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", before)
    await ib.reqCurrentTimeAsync()
    waits = kind != "LMT"
    assert state(trade) == ("PreSubmitted" if waits else "Submitted", 0)
    assert trade.orderStatus.whyHeld == ("trigger" if waits else "")

    tws.set_price("AAPL", at)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Filled", 100)
    assert trade.orderStatus.avgFillPrice == at


async def test_stop_limit_that_gaps(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A stop limit that the price jumps over works as a limit, until the price comes back."""
    trade = ib.placeOrder(aapl, make(lib, "SELL", "STP LMT", auxPrice=185, lmtPrice=184))
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", 180)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Submitted", 0)
    tws.set_price("AAPL", 184)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Filled", 100)


async def test_trailing(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A trailing stop follows the price up and never down, and shows where it is."""
    trade = ib.placeOrder(aapl, make(lib, "SELL", "TRAIL", auxPrice=5))
    await ib.reqCurrentTimeAsync()
    for price in (200, 196):
        tws.set_price("AAPL", price)
    (found,) = await ib.reqOpenOrdersAsync()
    assert str(tws.order().stop) == "195"
    assert found is trade
    tws.set_price("AAPL", 195)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Filled", 100)


async def test_trail_begins_where_it_is_put(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """The first stop of a trailing order is the client's, or follows the price, and is told at once."""
    for fields, stop in (
        ({"trailingPercent": 10, "trailStopPrice": 180}, 180),
        ({"auxPrice": 4, "trailStopPrice": 189}, 189),
        ({"trailingPercent": 10}, 171),
    ):
        ib.placeOrder(aapl, make(lib, "SELL", "TRAIL", **fields))
        await ib.reqCurrentTimeAsync()
        assert tws.order().stop == stop
        first = next(each for each in reversed(tws.clients[0].sent) if each[0] == "5")
        assert stop in {float(each) for each in first if each.replace(".", "").isdigit()}


async def test_trail_limit(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A trailing stop limit takes no less than its offset below the stop."""
    order = make(lib, "SELL", "TRAIL LIMIT", auxPrice=5, trailStopPrice=184, lmtPriceOffset=0.5)
    trade = ib.placeOrder(aapl, order)
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", 183)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Submitted", 0)
    tws.set_price("AAPL", 184.6)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Filled", 100)


async def test_closing_orders(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Orders on the close trade at the close, where their limit allows; day orders expire then."""
    market = ib.placeOrder(aapl, make(lib, "BUY", "MOC", tif="DAY"))
    good = ib.placeOrder(aapl, make(lib, "BUY", "LOC", lmtPrice=191, tif="DAY"))
    poor = ib.placeOrder(aapl, make(lib, "BUY", "LOC", lmtPrice=180, tif="DAY"))
    day = ib.placeOrder(aapl, make(lib, "BUY", "LMT", lmtPrice=180, tif="DAY"))
    longer = ib.placeOrder(aapl, make(lib, "BUY", "LMT", lmtPrice=180))
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", 190.5)
    await ib.reqCurrentTimeAsync()
    assert {state(each)[0] for each in (market, good, poor)} == {"PreSubmitted"}
    tws.close_market()
    await ib.reqCurrentTimeAsync()

    assert state(market) == state(good) == ("Filled", 100)
    assert market.orderStatus.avgFillPrice == 190.5
    assert [state(each)[0] for each in (poor, day, longer)] == ["Cancelled", "Cancelled", "Submitted"]


async def test_out_of_hours(lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """Out of regular hours an order waits, which code 399 says, unless it may trade; at the opening it trades."""
    tws.close_market()
    waits = ib.placeOrder(aapl, make(lib, "BUY", "MKT", tif="DAY"))
    opening = ib.placeOrder(aapl, make(lib, "BUY", "MKT", tif="OPG"))
    poor = ib.placeOrder(aapl, make(lib, "BUY", "LMT", tif="OPG", lmtPrice=100))
    early = ib.placeOrder(aapl, make(lib, "BUY", "LMT", lmtPrice=191, outsideRth=True))
    await ib.reqCurrentTimeAsync()
    assert [each.status for each in tws.orders()] == ["PreSubmitted", "PreSubmitted", "PreSubmitted", "Filled"]
    assert state(early) == ("Filled", 100)
    assert [code for _, code, _ in heard] == [399, 399, 399]
    tws.open_market()
    await ib.reqCurrentTimeAsync()
    assert [state(each)[0] for each in (waits, opening, poor)] == ["Filled", "Filled", "Cancelled"]


async def test_times_in_force(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """At once or never, all or nothing, until a time, and not before one."""
    ioc = ib.placeOrder(aapl, make(lib, "BUY", "LMT", lmtPrice=180, tif="IOC"))
    gtd = ib.placeOrder(
        aapl, make(lib, "BUY", "LMT", lmtPrice=180, tif="GTD", goodTillDate="20260105 15:01:00 UTC")
    )
    later = ib.placeOrder(aapl, make(lib, "BUY", "MKT", tif="DAY", goodAfterTime="20260105 15:02:00 UTC"))
    await ib.reqCurrentTimeAsync()
    assert state(ioc) == ("Cancelled", 0)
    assert state(gtd) == ("Submitted", 0)
    assert state(later) == ("PreSubmitted", 0)
    tws.clock.advance(60)
    await ib.reqCurrentTimeAsync()
    assert state(gtd) == ("Cancelled", 0)
    assert state(later) == ("PreSubmitted", 0)
    tws.clock.advance(60)
    await ib.reqCurrentTimeAsync()
    assert state(later) == ("Filled", 100)


@pytest.mark.parametrize(
    ("action", "prices", "unit", "distance"),
    [("SELL", (192, 193, 196, 194.1, 194), 0, 2), ("BUY", (188, 187, 184, 185.8, 186.0), 100, 1)],
)
async def test_adjusted_stop(  # noqa: PLR0917 - the fixtures and the case
    lib: Any, ib: Any, aapl: Any, tws: FakeTws, action: str, prices: Sequence[float], unit: int, distance: float
) -> None:
    """A stop becomes a trailing one when its trigger price trades, and is told of with its new type."""
    stop, trigger, begins = (180, 193, 190.5) if action == "SELL" else (200, 187, 189.5)
    change: dict[str, Any] = {"triggerPrice": trigger, "adjustedOrderType": "TRAIL", "adjustedStopPrice": begins}
    change |= {"adjustableTrailingUnit": unit, "adjustedTrailingAmount": distance}
    trade = ib.placeOrder(aapl, make(lib, action, "STP", auxPrice=stop, tif="GTC", **change))
    told: list[Any] = []
    ib.openOrderEvent += lambda each: told.append((each.order.orderType, each.orderStatus.status))
    tws.set_price("AAPL", prices[0])
    await ib.reqCurrentTimeAsync()
    assert [kind for kind, _ in told] == ["STP"]
    assert (trade.order.triggerPrice, trade.order.adjustedOrderType) == (trigger, "TRAIL")

    for price in prices[1:4]:
        tws.set_price("AAPL", price)
    await ib.reqCurrentTimeAsync()
    assert told[1:] == [("TRAIL", "PreSubmitted")]
    assert state(trade) == ("PreSubmitted", 0)
    tws.set_price("AAPL", prices[4])
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Filled", 100)


async def test_adjusted_stop_is_changed(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A change that comes with a stop's terms makes a stop of it again, which is adjusted once more."""
    order = make(lib, "SELL", "STP", auxPrice=180, tif="GTC", triggerPrice=193, adjustedOrderType="TRAIL")
    order.adjustedStopPrice, order.adjustedTrailingAmount, order.adjustableTrailingUnit = 191, 2, 0
    ib.placeOrder(aapl, order)
    tws.set_price("AAPL", 193)
    await ib.reqCurrentTimeAsync()
    (ticket,) = tws.orders()
    assert (ticket.order.kind, ticket.stop) == ("TRAIL", Decimal(191))
    tws.set_price("AAPL", 192)
    order.orderType, order.auxPrice = "STP", 181
    order.triggerPrice, order.adjustedOrderType, order.adjustedStopPrice = 193, "TRAIL", 191
    order.adjustedTrailingAmount, order.trailStopPrice = 2, 1.7976931348623157e308
    ib.placeOrder(aapl, order)
    await ib.reqCurrentTimeAsync()
    assert (ticket.order.kind, ticket.stop) == ("STP", Decimal(181))
    tws.set_price("AAPL", 194)
    assert (ticket.order.kind, ticket.stop) == ("TRAIL", Decimal(192))


@pytest.mark.parametrize(
    ("code", "terms"),
    [
        (463, {"triggerPrice": 0}),
        (463, {"adjustedStopPrice": 0}),
        (463, {"adjustedTrailingAmount": 0}),
        (110, {"triggerPrice": 193.001}),
        (201, {"adjustedOrderType": "REL"}),
        (201, {"orderType": "MKT"}),
        (201, {"adjustableTrailingUnit": 7}),
        (391, {"goodAfterTime": "noon"}),
    ],
)
async def test_what_can_t_be_adjusted_or_held(  # noqa: PLR0917 - the fixtures and the case
    lib: Any, ib: Any, aapl: Any, tws: FakeTws, heard: list[Any], code: int, terms: dict[str, Any]
) -> None:
    """What makes no sense is refused with a code."""
    whole: dict[str, Any] = {
        "orderType": "STP",
        "triggerPrice": 193,
        "adjustedOrderType": "TRAIL",
        "adjustedStopPrice": 191,
    }
    whole |= {"adjustedTrailingAmount": 2, "adjustableTrailingUnit": 0, "auxPrice": 180} | terms
    ib.placeOrder(aapl, make(lib, "SELL", whole.pop("orderType"), tif="GTC", **whole))
    await ib.reqCurrentTimeAsync()
    assert [each for _, each, _ in heard] == [code]
    assert tws.orders() == []


async def test_a_later_time(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A change of the time holds an order until the new one; a group that has filled ends it before."""
    order = make(lib, "BUY", "MKT", tif="GTC", goodAfterTime="20260105-15:02:00")
    trade = ib.placeOrder(aapl, order)
    order.goodAfterTime = "20260105-15:05:00"
    ib.placeOrder(aapl, order)
    await ib.reqCurrentTimeAsync()
    tws.clock.advance(200)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("PreSubmitted", 0)
    tws.clock.advance(100)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Filled", 100)


async def test_halt(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Nothing fills in a halt."""
    tws.halt("AAPL")
    trade = ib.placeOrder(aapl, make(lib, "BUY", "MKT", tif="DAY"))
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", 188)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Submitted", 0)
    tws.halt("AAPL", halted=False)
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Filled", 100)


async def test_fills_by_hand_alone(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """With held fills a market order waits for the control."""
    tws.hold_fills()
    trade = ib.placeOrder(aapl, make(lib, "BUY", "MKT", tif="DAY"))
    await ib.reqCurrentTimeAsync()
    assert state(trade) == ("Submitted", 0)
    tws.fill(price=190.25)
    await ib.reqCurrentTimeAsync()
    assert (state(trade), trade.orderStatus.avgFillPrice) == (("Filled", 100), 190.25)


async def bracket(lib: Any, ib: Any, aapl: Any, kind: str = "LMT") -> tuple[Any, Any, Any]:
    """Place an entry with a profit target and a stop."""
    entry, target, stop = ib.bracketOrder("BUY", 100, 185, 195, 180, tif="GTC")
    entry.orderType = kind
    trades = [ib.placeOrder(aapl, each) for each in (entry, target, stop)]
    await ib.reqCurrentTimeAsync()
    return trades[0], trades[1], trades[2]


async def test_untransmitted(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Nothing is told of an order that is not transmitted, until one of its family is."""
    entry, target, _ = ib.bracketOrder("BUY", 100, 185, 195, 180, tif="GTC")
    trades = [ib.placeOrder(aapl, each) for each in (entry, target)]
    await ib.reqCurrentTimeAsync()
    assert {state(each)[0] for each in trades} == {"PendingSubmit"}
    assert {each.status for each in tws.orders()} == {"ApiPending"}
    tws.set_price("AAPL", 185)
    assert await ib.reqOpenOrdersAsync() == []
    target.transmit = True
    ib.placeOrder(aapl, target)
    await ib.reqCurrentTimeAsync()
    assert [state(each)[0] for each in trades] == ["Filled", "Submitted"]


async def test_bracket(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Children wait for their parent, then one of them cancels the other."""
    entry, target, stop = await bracket(lib, ib, aapl)
    assert [state(each)[0] for each in (entry, target, stop)] == ["Submitted", "PreSubmitted", "PreSubmitted"]
    assert target.orderStatus.whyHeld == "child"
    assert target.orderStatus.parentId == entry.order.orderId
    tws.set_price("AAPL", 196)  # would meet the target
    tws.set_price("AAPL", 185)
    await ib.reqCurrentTimeAsync()
    assert [state(each)[0] for each in (entry, target, stop)] == ["Filled", "Submitted", "PreSubmitted"]
    tws.set_price("AAPL", 179)
    await ib.reqCurrentTimeAsync()
    assert [state(each) for each in (target, stop)] == [("Cancelled", 0), ("Filled", 100)]
    assert ib.positions() == []


async def test_bracket_in_parts(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Children close no more than the parent has opened; a parent's cancel leaves them what it got."""
    entry, target, stop = await bracket(lib, ib, aapl)
    tws.set_price("AAPL", 185, depth=40)
    ib.cancelOrder(entry.order)
    await ib.reqCurrentTimeAsync()
    assert state(entry) == ("Cancelled", 40)
    assert [each.order.totalQuantity for each in (target, stop)] == [40, 40]
    tws.set_price("AAPL", 195, depth=10)
    await ib.reqCurrentTimeAsync()
    assert state(target) == ("Submitted", 10)
    assert stop.order.totalQuantity == 30
    tws.set_price("AAPL", 180)
    await ib.reqCurrentTimeAsync()
    assert [state(each) for each in (target, stop)] == [("Cancelled", 10), ("Filled", 30)]
    assert ib.positions() == []


async def test_child_at_the_close(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A child on the close closes what its parent has opened, and nothing where that is nothing."""
    for price, filled in ((180, 0), (190, 100)):
        entry = make(lib, "BUY", "LMT", lmtPrice=price, transmit=False)
        parent = ib.placeOrder(aapl, entry)
        child = ib.placeOrder(aapl, make(lib, "SELL", "MOC", tif="DAY", parentId=entry.orderId))
        await ib.reqCurrentTimeAsync()
        tws.close_market()
        tws.open_market()
        await ib.reqCurrentTimeAsync()
        assert (parent.orderStatus.filled, child.orderStatus.filled) == (filled, filled)


async def test_bracket_cancelled(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A parent that never filled takes its children with it, also where it was rejected."""
    trades = await bracket(lib, ib, aapl)
    ib.cancelOrder(trades[0].order)
    await ib.reqCurrentTimeAsync()
    assert {state(each)[0] for each in trades} == {"Cancelled"}
    trades = await bracket(lib, ib, aapl)
    tws.reject(trades[0].order.permId)
    await ib.reqCurrentTimeAsync()
    assert {state(each)[0] for each in trades[1:]} == {"Cancelled"}
    assert tws.order(trades[0].order.permId).status == "Inactive"


@pytest.mark.parametrize(("kind", "left"), [(1, None), (2, 70), (3, 70)])
async def test_groups(lib: Any, ib: Any, aapl: Any, tws: FakeTws, *, kind: int, left: float | None) -> None:
    """A fill in part cancels the rest of a group, or makes it smaller, as its type says."""
    group: dict[str, Any] = {"ocaGroup": "g", "ocaType": kind}
    first = ib.placeOrder(aapl, make(lib, "SELL", "LMT", lmtPrice=195, **group))
    other = ib.placeOrder(aapl, make(lib, "SELL", "STP", auxPrice=180, **group))
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", 195, depth=30)
    await ib.reqCurrentTimeAsync()

    assert state(first) == ("Submitted", 30)
    if left is None:
        assert state(other) == ("Cancelled", 0)
    else:
        assert (state(other), other.order.totalQuantity) == (("PreSubmitted", 0), left)
        tws.set_price("AAPL", 196)
        await ib.reqCurrentTimeAsync()
        assert (state(first), state(other)) == (("Filled", 100), ("Cancelled", 0))


async def test_every_field_comes_back(lib: Any, ib: Any, aapl: Any, connect: Any, tws: FakeTws) -> None:
    """An order with conditions, an algorithm, a hedge and a scale is understood and told again."""
    order = make(
        lib,
        "BUY",
        "LMT",
        lmtPrice=100,
        algoStrategy="Adaptive",
        algoParams=[lib.TagValue("adaptivePriority", "Urgent")],
        conditions=[
            lib.PriceCondition(conId=aapl.conId, exch="SMART", price=150.5),
            lib.TimeCondition(time="20260105 16:00:00 UTC"),
            lib.MarginCondition(percent=20),
            lib.ExecutionCondition(secType="STK", exch="SMART", symbol="AAPL"),
            lib.VolumeCondition(volume=5, conId=1),
            lib.PercentChangeCondition(changePercent=1.5, conId=1),
        ],
        hedgeType="B",
        hedgeParam="1.5",
        scaleInitLevelSize=10,
        scaleSubsLevelSize=5,
        scalePriceIncrement=0.5,
        scaleAutoReset=True,
        displaySize=10,
        minQty=5,
        orderRef="all",
    )
    ib.placeOrder(aapl, order)
    await tws.until_received("placeOrder")
    ib.disconnect()
    await tws.until(lambda: not tws.clients)
    (trade,) = (await connect(1)).openTrades()

    found = trade.order
    assert [type(each).__name__ for each in found.conditions] == [type(each).__name__ for each in order.conditions]
    assert found.conditions[0].price == 150.5
    assert found.algoParams == order.algoParams
    assert (found.hedgeType, found.hedgeParam) == ("B", "1.5")
    assert (found.scaleInitLevelSize, found.scalePriceIncrement, found.scaleAutoReset) == (10, 0.5, True)
    assert (found.displaySize, found.minQty, found.orderRef) == (10, 5, "all")
    tws.cancel("all")
    assert tws.order("all").status == "Cancelled"

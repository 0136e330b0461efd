"""A TWS or IB Gateway to test against: it speaks the wire protocol at server version 176 to any client library.

In the loop of the test::

    async with FakeTws(accounts=("DU1", "DU2"), cash=100_000) as tws:
        ib = ib_async.IB()
        await ib.connectAsync(tws.host, tws.port, clientId=1)
        tws.set_price("AAPL", 190)                  # market orders fill at it; limits, stops and trails follow it
        tws.set_price("AAPL", 189, depth=30)        # ... up to 30 shares a side
        ib.placeOrder(contract, order)
        await tws.until_received("placeOrder")      # or: await ib.reqCurrentTimeAsync(), which comes last
        tws.orders(live=True), tws.order("my-ref")  # `book.Ticket`: status, filled, remaining, order, perm_id
        tws.fill("my-ref", 40, 190.05)              # by orderRef, permId, order id, ticket; None: the newest order
        tws.arm("lost-ack")                         # a fault of `faults.KINDS`, for the next order
        tws.arm("reject", times=3, symbol="AMD")    # times=None: always; chance=0.1: by FakeTws(seed=1)
        tws.drop()                                  # cut connections; the market trades on
        tws.restart()                               # and forget the order ids

More of `Control`: add_contract, halt, hold_fills, cancel, reject, correct, place_foreign, place_manual, new_day,
set_position, set_cash, set_currency, set_value, set_shortable, set_bars, subscribe_data, open_market,
close_market, say, lose_link, regain_link, flap_farms, mute, received, requests, clients, until, state. `FakeTws`
adds go_away and come_back. With `FakeTws(clock=PeerClock(by_hand=True))` time stands still until
`tws.clock.advance(seconds)`.
"""

from sigma9_core.testing.tws.clock import PeerClock
from sigma9_core.testing.tws.faults import KINDS
from sigma9_core.testing.tws.server import FakeTws

__all__ = ["KINDS", "FakeTws", "PeerClock"]

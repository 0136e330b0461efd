"""The book by itself: whatever happens, money, positions and orders fit together."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest

from sigma9_core.testing.tws import FakeTws, PeerClock
from sigma9_core.testing.tws.book import Refused
from sigma9_core.testing.tws.tickets import Ticket

SYMBOLS = ("AAPL", "AMD")
CASH = 1_000_000
ZERO = Decimal(0)


class Trader:
    """Does anything at all, by a seed."""

    def __init__(self, seed: int) -> None:
        self.tws = FakeTws(cash=CASH, clock=PeerClock(by_hand=True), seed=seed)
        self.chance = random.Random(seed)
        self.prices = {"AAPL": Decimal(190), "AMD": Decimal(150)}

    def step(self) -> None:
        """Do one thing."""
        chance, tws = self.chance, self.tws
        act = chance.choice(
            (self.move, self.move, self.move, self.place, self.bracket, self.group, self.amend, self.end)
        )
        act()
        if chance.random() < 0.02:
            tws.close_market()
            tws.open_market()
        tws.clock.advance(chance.random())

    def move(self) -> None:
        symbol = self.chance.choice(SYMBOLS)
        price = self.prices[symbol] + Decimal(self.chance.randint(-300, 300)) / 100
        self.prices[symbol] = max(price, Decimal(100))
        depth = self.chance.choice((None, None, 10, 35))
        self.tws.set_price(symbol, self.prices[symbol], depth=depth)

    def terms(self, symbol: str) -> dict[str, Any]:
        """Make an order of any type, near the price."""
        chance, price = self.chance, self.prices[symbol]

        def near() -> Decimal:
            return price + Decimal(chance.randint(-400, 400)) / 100

        kind = chance.choice(("MKT", "LMT", "STP", "STP LMT", "TRAIL", "TRAIL LIMIT", "MIT", "LIT", "MOC", "LOC"))
        terms: dict[str, Any] = {
            "action": chance.choice(("BUY", "SELL")),
            "totalQuantity": chance.randint(1, 80),
            "orderType": kind,
            "tif": chance.choice(("DAY", "GTC", "IOC", "FOK") if kind == "LMT" else ("DAY", "GTC")),
            "lmtPrice": near(),
            "auxPrice": Decimal(chance.randint(1, 300)) / 100 if kind.startswith("TRAIL") else near(),
        }
        if kind == "TRAIL" and chance.random() < 0.5:
            del terms["auxPrice"]
            terms["trailingPercent"] = Decimal(chance.randint(1, 200)) / 100
        if kind == "TRAIL LIMIT":
            terms["lmtPriceOffset"] = Decimal("0.05")
        return terms

    def place(self) -> None:
        symbol = self.chance.choice(SYMBOLS)
        self.tws.place_foreign(self.chance.randint(1, 3), symbol, **self.terms(symbol))

    def bracket(self) -> None:
        symbol = self.chance.choice(SYMBOLS)
        price, buys, size = self.prices[symbol], self.chance.random() < 0.5, self.chance.randint(1, 80)
        sign = 1 if buys else -1
        entry, out = ("BUY", "SELL") if buys else ("SELL", "BUY")
        parent = self.tws.place_foreign(
            1,
            symbol,
            action=entry,
            totalQuantity=size,
            orderType="LMT",
            lmtPrice=price - sign,
            tif="GTC",
            transmit=0,
        )
        more: dict[str, Any] = {"action": out, "totalQuantity": size, "tif": "GTC", "parentId": parent.order_id}
        self.tws.place_foreign(1, symbol, orderType="LMT", lmtPrice=price + sign * 2, transmit=0, **more)
        self.tws.place_foreign(1, symbol, orderType="STP", auxPrice=price - sign * 3, transmit=1, **more)

    def group(self) -> None:
        symbol, name = self.chance.choice(SYMBOLS), f"g{self.chance.random()}"
        kind = self.chance.randint(1, 3)
        for _ in range(self.chance.randint(2, 3)):
            terms = {**self.terms(symbol), "totalQuantity": 50}
            self.tws.place_foreign(2, symbol, **terms, ocaGroup=name, ocaType=kind)

    def amend(self) -> None:
        ticket = self.any()
        if ticket is not None:
            changed = ticket.order.changed(totalQuantity=self.chance.randint(1, 90))
            try:
                self.tws.book.place(ticket.client_id, ticket.order_id, ticket.contract, changed)
            except Refused as refusal:
                assert refusal.code == 201  # noqa: PT017 - nothing else may be wrong with it

    def end(self) -> None:
        ticket = self.any()
        if ticket is not None:
            self.tws.cancel(ticket)

    def any(self) -> Ticket | None:
        live = self.tws.orders(live=True)
        return self.chance.choice(live) if live else None


def check(tws: FakeTws) -> None:
    """Hold the book to its promises."""
    book, account = tws.book, tws.world.accounts.first
    spent, held = ZERO, dict.fromkeys(SYMBOLS, ZERO)
    for each in book.executions:
        signed = each.quantity if each.ticket.order.buys else -each.quantity
        spent += signed * each.price + each.commission
        held[each.ticket.contract.symbol] += signed
    assert account.cash == CASH - spent
    assert {each.contract.symbol: each.quantity for each in account.held()} == {s: q for s, q in held.items() if q}
    for ticket in book.tickets.values():
        assert ZERO <= ticket.filled <= ticket.quantity, ticket.shown()
        assert (ticket.status == "Filled") == (ticket.filled == ticket.quantity), ticket.shown()
        assert ticket.live == (ticket.ended is None)
        if ticket.parent is not None:
            assert ticket.filled <= ticket.parent.filled
            assert not (ticket.live and not ticket.parent.live and not ticket.parent.filled)
    for execution in book.executions:
        limit = execution.ticket.order.number("lmtPrice")
        if execution.ticket.order.kind in ("LMT", "STP LMT", "LIT", "LOC") and limit is not None:
            assert execution.price <= limit if execution.ticket.order.buys else execution.price >= limit


@pytest.mark.parametrize("seed", range(20))
async def test_anything(seed: int) -> None:
    """After any orders, changes, cancels and prices, cash, positions and orders fit together."""
    trader = Trader(seed)
    for _ in range(300):
        trader.step()
        check(trader.tws)
    # Both children of a bracket, whatever they did, have closed no more than was opened.
    for parent in trader.tws.book.tickets.values():
        children = [each for each in trader.tws.book.tickets.values() if each.parent is parent]
        assert sum(each.filled for each in children) <= parent.filled
    assert len(trader.tws.book.executions) > 30


async def test_gain_and_loss() -> None:
    """A position that goes through zero realises what it closes, and begins anew."""
    async with FakeTws(clock=PeerClock(by_hand=True)) as tws:
        tws.book.least_commission = tws.book.commission = ZERO
        for side, quantity, price in (("BUY", 10, 100), ("BUY", 10, 110), ("SELL", 30, 120), ("BUY", 10, 125)):
            tws.set_price("AAPL", price)
            tws.place_foreign(1, "AAPL", action=side, totalQuantity=quantity)
        account = tws.world.accounts.first
        assert account.held() == []
        assert account.realized() == 20 * 15 - 10 * 5
        assert account.cash == 100_000 + 250
        assert [each.realized for each in tws.book.executions] == [None, None, 300, -50]
        assert [each.held for each in tws.book.executions] == [10, 20, -10, 0]
        assert [each.told_at for each in tws.book.executions] == [None] * 4  # nobody is there


async def test_no_fill_of_what_has_ended() -> None:
    """The control can't fill an order that has ended, and finds none that there is not."""
    async with FakeTws(clock=PeerClock(by_hand=True)) as tws:
        with pytest.raises(KeyError, match="no order is called 'x'"):
            tws.order("x")
        with pytest.raises(KeyError, match="no contract is called"):
            tws.set_price("NOSUCH", 1)
        with pytest.raises(KeyError, match="no request is called"):
            tws.requests("placeOrders")
        tws.place_foreign(1, "AAPL", action="BUY", totalQuantity=1, orderRef="x")
        with pytest.raises(Refused, match="Filled"):
            tws.fill("x")


async def test_several_with_one_client_id() -> None:
    """Each client has order ids of its own."""
    async with FakeTws(clock=PeerClock(by_hand=True), first_order_id=50) as tws:
        tickets = [
            tws.place_foreign(client_id, "AAPL", action="BUY", totalQuantity=1, orderType="LMT", lmtPrice=1)
            for client_id in (1, 1, 2)
        ]
        assert [(each.client_id, each.order_id) for each in tickets] == [(1, 50), (1, 51), (2, 50)]
        assert len({each.perm_id for each in tickets}) == 3


async def test_a_ticket_is_shown_in_a_line() -> None:
    """A failed assertion of another project names the order, not its hundred fields on the wire."""
    async with FakeTws() as tws:
        ticket = tws.place_foreign(7, "AAPL", action="BUY", totalQuantity=1, orderType="LMT", lmtPrice=180)

    assert (
        repr(ticket)
        == f"<Ticket {ticket.perm_id} of client 7, order id {ticket.order_id}: BUY 1 AAPL LMT Submitted, 0 filled>"
    )

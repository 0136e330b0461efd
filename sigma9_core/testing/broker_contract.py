"""What every broker adapter must keep to: numbered cases, from simple to complex.

Inherit `BrokerContract`, give it a `BrokerRoom` (the broker, connected, and a market that the test moves) and run
pytest. What a peer can't do is named in `BrokerRoom.lacks`; those cases are skipped, and say so.

class TestMyBroker(BrokerContract):
    def open_room(self, folder: Path) -> AbstractAsyncContextManager[BrokerRoom]:
        return my_room(folder)
"""

# ruff: noqa: S101, N802 - asserts are what a suite is made of; a case's name begins with its number

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import coroutine
from typing import Any, ClassVar, Final, Literal

import pytest

from sigma9_core.clock import monotonic
from sigma9_core.contracts import Broker, BrokerHealth, BrokerOrder, BrokerReport, Kept, ReportKind
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import Adjustment, ApprovedOrder, Fill, OrderRequest, Side
from sigma9_core.testing.orders import approve, request

Ability = Literal["partial", "foreign", "stop_limit", "trailing", "away"]
"""What a room may lack. `partial`: `thin`; `foreign`: `place_by_hand`; `away`: fills while nobody is connected."""
UP: Final = BrokerHealth("up", "up", "up")
ENDS: Final[frozenset[ReportKind]] = frozenset(("cancelled", "rejected", "expired", "busted"))
HELD: Final = 2.0
"""Seconds that an order is held in the cases of `good_after`."""
DISTANCES: Final = ({"trail_amount": Decimal("0.3")}, {"trail_percent": Decimal(3)})
PATIENCE: Final = 5.0
"""Seconds that a report may take."""


class Recorder:
    """A listener that keeps everything."""

    def __init__(self) -> None:
        self.reports: list[BrokerReport] = []
        self.healths: list[BrokerHealth] = []

    def on_report(self, report: BrokerReport) -> None:
        """Keep a report."""
        self.reports.append(report)

    def on_health(self, health: BrokerHealth) -> None:
        """Keep a change of health."""
        self.healths.append(health)

    def kinds(self, order_id: str) -> list[ReportKind]:
        """List what was reported of an order."""
        return [report.kind for report in self.reports if report.order_id == order_id]

    def fills(self, order_id: str | None = None) -> list[Fill]:
        """List the fills, of one order or of all, each with the commission that was told last."""
        mine = [r for r in self.reports if r.fill is not None and order_id in (None, r.order_id)]
        told = {r.fill.exec_id: r.fill for r in mine if r.kind == "commission" and r.fill is not None}
        return [told.get(r.fill.exec_id, r.fill) for r in mine if r.kind == "filled" and r.fill is not None]


class BrokerRoom(ABC):
    """A connected broker and a market that does what the test says; prices are about 10."""

    symbol: ClassVar[str] = "TEST"
    lacks: frozenset[Ability] = frozenset()
    broker: Broker
    heard: Recorder

    @abstractmethod
    async def move(self, symbol: str, price: float) -> None:
        """Let the symbol trade at a price, deep enough for every order that it reaches."""

    @abstractmethod
    def now(self) -> datetime:
        """Tell the market time."""

    async def pass_time(self, seconds: float) -> None:
        """Let market time pass; a room whose clock is moved by hand moves it."""
        await asyncio.sleep(seconds)

    async def thin(self, symbol: str, price: float, quantity: int) -> None:
        """Let the symbol trade at a price with so many shares for an order and no more."""
        raise NotImplementedError("a room without `thin` says so in `lacks`: partial")

    async def place_by_hand(self, wanted: OrderRequest) -> None:
        """Place an order past the adapter, as a person would."""
        raise NotImplementedError("a room without `place_by_hand` says so in `lacks`: foreign")

    # --- what the cases say -----------------------------------------------------------------------------------

    async def send(self, side: Side, quantity: int, **more: Any) -> ApprovedOrder:
        """Send an order in the room's symbol and wait until it is accepted."""
        order = approve(request(self.symbol, side, quantity, **more))
        await self.broker.submit([order])
        await self.accepted(order)
        return order

    async def accepted(self, order: ApprovedOrder) -> None:
        """Wait until an order is accepted."""
        await self.until(lambda: "accepted" in self.heard.kinds(order.order_id), f"{order.order_id} accepted")

    async def filled(self, order: ApprovedOrder) -> Fill:
        """Wait until an order has filled completely; give its last fill."""

        def done() -> bool:
            fills = self.heard.fills(order.order_id)
            return sum((fill.quantity for fill in fills), Decimal(0)) >= order.request.quantity

        await self.until(done, f"{order.order_id} filled")
        return self.heard.fills(order.order_id)[-1]

    async def ended(self, order: ApprovedOrder, kind: ReportKind) -> BrokerReport:
        """Wait for the report that ends an order."""
        await self.until(lambda: kind in self.heard.kinds(order.order_id), f"{order.order_id} {kind}")
        return next(r for r in self.heard.reports if r.order_id == order.order_id and r.kind == kind)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, and fail with what was heard where it does not come."""
        deadline = monotonic() + PATIENCE
        while not condition():
            assert monotonic() < deadline, f"{what} did not come; heard: {self.heard.reports}"
            await asyncio.sleep(0.005)

    async def working(self, order: ApprovedOrder) -> BrokerOrder | None:
        """Read an order back from what is working."""
        found = await self.broker.open_orders()
        return next((each for each in found if each.order_id == order.order_id), None)

    async def position(self) -> Decimal:
        """Read back the position in the room's symbol."""
        found = await self.broker.positions()
        return sum((each.quantity for each in found if each.symbol == self.symbol), Decimal(0))

    async def hold(self, quantity: int) -> None:
        """Buy shares at about 10."""
        order = await self.send("buy", quantity)
        await self.move(self.symbol, 10.0)
        await self.filled(order)

    async def reconnect(self) -> Recorder:
        """Disconnect, and connect another listener; give the old one."""
        await self.broker.disconnect()
        before, self.heard = self.heard, Recorder()
        await self.broker.connect(self.heard)
        return before


@coroutine
def first_step_of(work: Coroutine[Any, Any, None]) -> Any:
    """Run a coroutine up to where it first waits, and stop it there, as a cancellation does.

    What it does before that is all that the gate's last look covers (`RiskGate.let_out`).
    """
    try:
        work.send(None)
        waits = work.throw(asyncio.CancelledError())
        while True:  # it tidies up
            waits = work.send((yield waits))
    except (StopIteration, asyncio.CancelledError):
        pass


class BrokerContract(ABC):
    """The promises of a broker adapter, as tests."""

    @abstractmethod
    def open_room(self, folder: Path) -> AbstractAsyncContextManager[BrokerRoom]:
        """Open a room with a new account; `folder` is free to use."""

    @pytest.fixture
    async def room(self, tmp_path: Path) -> AsyncIterator[BrokerRoom]:
        """Give a connected broker whose market stands at 10."""
        async with self.open_room(tmp_path) as room:
            await room.move(room.symbol, 10.0)
            yield room

    def need(self, room: BrokerRoom, ability: Ability) -> None:
        """Skip a case that the room's peer can't play."""
        if ability in room.lacks:
            pytest.skip(f"the peer of this room lacks {ability}")

    def keep(self, room: BrokerRoom, term: Kept) -> None:
        """Skip a case of a term that the broker does not say it keeps to by itself."""
        if term not in getattr(room.broker, "keeps", ()):
            pytest.skip(f"this broker does not name {term} in keeps")

    # --- one order --------------------------------------------------------------------------------------------

    async def test_TC01_connected(self, room: BrokerRoom) -> None:
        """A connected broker has three healths, tells them, and reads its account back."""
        account = await room.broker.account()

        assert room.broker.health == UP
        assert room.heard.healths[-1] == UP
        assert account.account
        assert account.cash > 0
        assert len(account.currency) == 3
        assert await room.broker.positions() == []
        assert await room.broker.open_orders() == []

    async def test_TC02_market_order(self, room: BrokerRoom) -> None:
        """A market order is accepted under our id and the broker's, then fills near the market."""
        order = await room.send("buy", 100)
        await room.move(room.symbol, 10.0)
        fill = await room.filled(order)

        assert room.heard.kinds(order.order_id)[0] == "accepted"
        assert all(report.broker_order_id for report in room.heard.reports)
        assert (fill.order_id, fill.symbol, fill.side) == (order.order_id, room.symbol, "buy")
        assert Decimal("9.80") <= fill.price <= Decimal("10.20")
        assert fill.commission >= 0
        assert fill.ts.tzinfo is not None
        assert await room.position() == 100

    async def test_TC03_limit_order_rests(self, room: BrokerRoom) -> None:
        """A limit order away from the market rests, and reads back as it was sent."""
        order = await room.send("buy", 100, limit_price=9.5, order_type="limit", time_in_force="gtc")
        await room.move(room.symbol, 9.8)
        found = await room.working(order)

        assert found is not None
        assert (found.symbol, found.side) == (room.symbol, "buy")
        assert (found.quantity, found.filled_quantity) == (Decimal(100), Decimal(0))
        assert (found.order_type, found.limit_price, found.state) == ("limit", Decimal("9.5"), "working")
        assert found.time_in_force == "gtc"
        assert found.broker_order_id
        assert room.heard.fills() == []

    async def test_TC04_limit_order_fills(self, room: BrokerRoom) -> None:
        """A resting limit order fills once the market has passed its price, and never at a worse one."""
        order = await room.send("buy", 100, limit_price=9.5, order_type="limit")
        await room.move(room.symbol, 9.4)
        fill = await room.filled(order)

        assert fill.price <= Decimal("9.5")
        assert await room.working(order) is None

    async def test_TC05_limit_order_sells(self, room: BrokerRoom) -> None:
        """A limit order to sell fills at its price or above."""
        await room.hold(100)
        order = await room.send("sell", 100, limit_price=10.5, order_type="limit")
        await room.move(room.symbol, 10.6)
        fill = await room.filled(order)

        assert fill.price >= Decimal("10.5")
        assert await room.position() == 0

    async def test_TC06_marketable_limit(self, room: BrokerRoom) -> None:
        """A limit order that the market meets already fills at once, no worse than its limit."""
        order = await room.send("buy", 100, limit_price=10.3, order_type="limit")
        await room.move(room.symbol, 10.0)
        fill = await room.filled(order)

        assert fill.price <= Decimal("10.3")

    async def test_TC07_cancel(self, room: BrokerRoom) -> None:
        """A cancelled order is reported so, is no longer working, and never fills."""
        order = await room.send("buy", 100, limit_price=9.5, order_type="limit")
        await room.broker.cancel(order.order_id)
        await room.ended(order, "cancelled")
        await room.move(room.symbol, 9.0)

        assert await room.working(order) is None
        assert room.heard.fills() == []
        assert await room.position() == 0

    async def test_TC08_cancel_unknown(self, room: BrokerRoom) -> None:
        """To cancel an id that the broker does not know raises BrokerError, and nothing is reported."""
        with pytest.raises(BrokerError):
            await room.broker.cancel("never-sent")

        assert room.heard.reports == []

    async def test_TC09_cancel_after_fill(self, room: BrokerRoom) -> None:
        """A cancel that comes too late undoes nothing: the fill stands, and no other end is reported."""
        order = await room.send("buy", 100)
        await room.move(room.symbol, 10.0)
        await room.filled(order)
        try:
            await room.broker.cancel(order.order_id)
        except BrokerError:
            pass  # allowed: the order has ended
        await room.move(room.symbol, 10.0)

        assert not ENDS & set(room.heard.kinds(order.order_id))
        assert await room.position() == 100

    async def test_TC10_replace(self, room: BrokerRoom) -> None:
        """A replaced order is reported so, reads back with its new terms, and works by them."""
        order = await room.send("buy", 100, limit_price=9.0, order_type="limit")
        changed = order.request.model_copy(update={"limit_price": Decimal("9.6"), "quantity": Decimal(60)})
        await room.broker.replace(approve(changed, order.order_id))
        await room.ended(order, "replaced")
        found = await room.working(order)

        assert found is not None
        assert (found.limit_price, found.quantity) == (Decimal("9.6"), Decimal(60))
        await room.move(room.symbol, 9.5)
        assert (await room.filled(approve(changed, order.order_id))).price <= Decimal("9.6")
        assert await room.position() == 60

    async def test_TC11_replace_ended(self, room: BrokerRoom) -> None:
        """To replace an order that has ended raises BrokerError and brings nothing to life."""
        order = await room.send("buy", 100, limit_price=9.0, order_type="limit")
        await room.broker.cancel(order.order_id)
        await room.ended(order, "cancelled")
        changed = order.request.model_copy(update={"limit_price": Decimal(11)})

        with pytest.raises(BrokerError):
            await room.broker.replace(approve(changed, order.order_id))
        await room.move(room.symbol, 10.0)
        assert await room.position() == 0

    async def test_TC12_rejected(self, room: BrokerRoom) -> None:
        """An order that no exchange takes is rejected by a report, or refused; nothing works."""
        order = approve(request(room.symbol, "buy", 0))
        try:
            await room.broker.submit([order])
        except BrokerRefused:
            pass  # allowed: surely not taken
        else:
            report = await room.ended(order, "rejected")
            assert report.reason

        assert await room.working(order) is None

    # --- stops ------------------------------------------------------------------------------------------------

    async def test_TC13_stop(self, room: BrokerRoom) -> None:
        """A stop waits until its price is reached, and then sells at the market."""
        await room.hold(100)
        order = await room.send("sell", 100, stop_price=9.5, order_type="stop", intent="reduce")
        await room.move(room.symbol, 9.6)
        assert room.heard.fills(order.order_id) == []

        await room.move(room.symbol, 9.5)
        await room.move(room.symbol, 9.5)
        fill = await room.filled(order)

        assert fill.price <= Decimal("9.6")
        assert await room.position() == 0

    async def test_TC14_stop_to_buy(self, room: BrokerRoom) -> None:
        """A stop to buy waits for a higher price."""
        order = await room.send("buy", 100, stop_price=10.5, order_type="stop")
        await room.move(room.symbol, 10.4)
        assert room.heard.fills(order.order_id) == []

        await room.move(room.symbol, 10.6)
        await room.move(room.symbol, 10.6)

        assert (await room.filled(order)).price >= Decimal("10.5")

    async def test_TC15_stop_limit(self, room: BrokerRoom) -> None:
        """A stop-limit order that is set off trades at its limit or better only."""
        self.need(room, "stop_limit")
        order = await room.send("buy", 100, stop_price=10.5, limit_price=10.6, order_type="stop_limit")
        await room.move(room.symbol, 10.4)
        assert room.heard.fills() == []
        await room.move(room.symbol, 10.9)
        await room.move(room.symbol, 10.9)
        assert room.heard.fills() == []

        await room.move(room.symbol, 10.55)
        await room.move(room.symbol, 10.55)

        assert (await room.filled(order)).price <= Decimal("10.6")

    @pytest.mark.parametrize("terms", [{"trail_amount": 0.3}, {"trail_percent": 3}], ids=["amount", "percent"])
    async def test_TC16_trailing_stop(self, room: BrokerRoom, terms: dict[str, Any]) -> None:
        """A trailing stop follows the market up, never down, and sells once it falls by its distance."""
        self.need(room, "trailing")
        await room.hold(100)
        order = await room.send("sell", 100, order_type="trailing_stop", intent="reduce", **terms)
        for price in (10.2, 10.6, 11.0, 10.8, 10.75):
            await room.move(room.symbol, price)
        assert room.heard.fills(order.order_id) == []

        await room.move(room.symbol, 10.6)
        await room.move(room.symbol, 10.6)

        assert Decimal("10.4") <= (await room.filled(order)).price <= Decimal("10.75")

    # --- several orders ---------------------------------------------------------------------------------------

    async def test_TC17_partial_fill(self, room: BrokerRoom) -> None:
        """A partial fill is reported with its quantity, and the rest goes on."""
        self.need(room, "partial")
        order = await room.send("buy", 100)
        await room.thin(room.symbol, 10.0, 30)
        await room.until(lambda: bool(room.heard.fills(order.order_id)), "a partial fill")
        found = await room.working(order)

        assert room.heard.fills(order.order_id)[0].quantity == 30
        assert found is not None
        assert found.filled_quantity == 30
        await room.move(room.symbol, 10.0)
        await room.filled(order)
        assert await room.position() == 100

    async def test_TC18_cancel_the_rest(self, room: BrokerRoom) -> None:
        """The rest of a partly filled order can be cancelled, and what filled stays."""
        self.need(room, "partial")
        order = await room.send("buy", 100)
        await room.thin(room.symbol, 10.0, 30)
        await room.until(lambda: bool(room.heard.fills(order.order_id)), "a partial fill")
        await room.broker.cancel(order.order_id)
        await room.ended(order, "cancelled")
        await room.move(room.symbol, 10.0)

        assert await room.position() == 30

    async def test_TC19_one_cancels_all(self, room: BrokerRoom) -> None:
        """When a leg of a one-cancels-all group fills, the others are cancelled and never fill."""
        await room.hold(100)
        common: dict[str, Any] = {"oca_group": "g1", "intent": "reduce"}
        stop = await room.send("sell", 100, stop_price=9.5, order_type="stop", **common)
        profit = await room.send("sell", 100, limit_price=10.5, order_type="limit", **common)
        await room.move(room.symbol, 10.6)
        await room.filled(profit)
        await room.ended(stop, "cancelled")
        await room.move(room.symbol, 9.0)
        await room.move(room.symbol, 9.0)

        assert room.heard.fills(stop.order_id) == []
        assert await room.position() == 0

    async def bracket(self, room: BrokerRoom, **entry: Any) -> tuple[ApprovedOrder, ApprovedOrder, ApprovedOrder]:
        """Send an entry with a stop and a profit leg as one unit."""
        parent = approve(request(room.symbol, "buy", 100, **entry))
        legs: dict[str, Any] = {
            "oca_group": f"g-{parent.order_id}",
            "parent_id": parent.order_id,
            "intent": "reduce",
        }
        stop = approve(request(room.symbol, "sell", 100, stop_price=9.0, order_type="stop", **legs))
        profit = approve(request(room.symbol, "sell", 100, limit_price=11, order_type="limit", **legs))
        group = (parent, stop, profit)
        await room.broker.submit(group)
        for order in group:
            await room.accepted(order)
        return group

    async def test_TC20_bracket(self, room: BrokerRoom) -> None:
        """Children wait for their parent; then the stop guards the position, and its fill ends the other leg."""
        parent, stop, profit = await self.bracket(room, limit_price=9.8, order_type="limit")
        await room.move(room.symbol, 11.5)
        assert room.heard.fills() == []

        await room.move(room.symbol, 9.7)
        await room.filled(parent)
        assert await room.working(stop) is not None
        await room.move(room.symbol, 8.9)
        await room.move(room.symbol, 8.9)
        await room.filled(stop)
        await room.ended(profit, "cancelled")

        assert await room.position() == 0
        assert await room.broker.open_orders() == []

    async def test_TC21_bracket_without_entry(self, room: BrokerRoom) -> None:
        """When a parent ends unfilled, its children end with it."""
        parent, stop, profit = await self.bracket(room, limit_price=9.5, order_type="limit")
        await room.broker.cancel(parent.order_id)
        for order in (parent, stop, profit):
            await room.ended(order, "cancelled")
        await room.move(room.symbol, 8.0)

        assert await room.broker.open_orders() == []
        assert await room.position() == 0

    async def test_TC22_duplicate(self, room: BrokerRoom) -> None:
        """The same order id again is an error, and nothing is doubled."""
        order = await room.send("buy", 100, limit_price=9.5, order_type="limit")
        with pytest.raises(BrokerError):
            await room.broker.submit([order])
        await room.move(room.symbol, 9.4)
        await room.filled(order)
        await room.move(room.symbol, 9.4)

        assert await room.position() == 100
        with pytest.raises(BrokerError):
            await room.broker.submit([order])

    # --- reading back -----------------------------------------------------------------------------------------

    async def test_TC23_executions(self, room: BrokerRoom) -> None:
        """Executions read back as they were reported, oldest first, each under an id of its own."""
        begun = room.now()
        await room.hold(100)
        await room.hold(50)
        order = await room.send("sell", 150)
        await room.move(room.symbol, 10.0)
        await room.filled(order)
        found = list(await room.broker.executions(begun - timedelta(minutes=1)))

        assert sorted(found, key=lambda fill: fill.exec_id) == sorted(
            room.heard.fills(), key=lambda fill: fill.exec_id
        )
        assert len({fill.exec_id for fill in found}) == len(found)
        assert [fill.ts for fill in found] == sorted(fill.ts for fill in found)
        assert await room.broker.executions(room.now() + timedelta(days=1)) == []

    async def test_TC24_positions(self, room: BrokerRoom) -> None:
        """Positions are net, go through zero to short, and vanish when they are flat."""
        await room.hold(100)
        for side, quantity, after in (("sell", 160, -60), ("buy", 60, 0)):
            order = await room.send("sell" if side == "sell" else "buy", quantity)
            await room.move(room.symbol, 10.0)
            await room.filled(order)
            assert await room.position() == after

        assert [each for each in await room.broker.positions() if each.quantity] == []

    async def test_TC25_average_cost(self, room: BrokerRoom) -> None:
        """A position's average cost lies between the prices that were paid."""
        await room.hold(100)
        order = await room.send("buy", 100)
        await room.move(room.symbol, 11.0)
        await room.filled(order)
        prices = [fill.price for fill in room.heard.fills()]
        (found,) = [each for each in await room.broker.positions() if each.symbol == room.symbol]

        assert min(prices) <= found.average_cost <= max(prices) + Decimal("0.1")

    async def test_TC26_cash(self, room: BrokerRoom) -> None:
        """Cash changes by what was traded and its commission, to the cent."""
        before = (await room.broker.account()).cash
        await room.hold(100)
        order = await room.send("sell", 40)
        await room.move(room.symbol, 10.2)
        await room.filled(order)
        spent = sum(
            (fill.quantity * fill.price * (1 if fill.side == "buy" else -1) + fill.commission)
            for fill in room.heard.fills()
        )

        assert abs(before - (await room.broker.account()).cash - spent) < Decimal("0.01")

    async def test_TC27_completed(self, room: BrokerRoom) -> None:
        """Orders that have ended read back with how they ended, from the time that is asked for."""
        begun = room.now()
        filled = await room.send("buy", 100)
        await room.move(room.symbol, 10.0)
        await room.filled(filled)
        cancelled = await room.send("buy", 100, limit_price=9.0, order_type="limit")
        await room.broker.cancel(cancelled.order_id)
        await room.ended(cancelled, "cancelled")
        found = await room.broker.completed_orders(begun - timedelta(minutes=1))
        ends = {each.order_id: (each.state, each.filled_quantity) for each in found}

        assert ends[filled.order_id] == ("filled", Decimal(100))
        assert ends[cancelled.order_id] == ("cancelled", Decimal(0))
        assert await room.broker.completed_orders(room.now() + timedelta(days=1)) == []

    async def test_TC28_foreign(self, room: BrokerRoom) -> None:
        """What a person did at the broker reads back without an id of ours, and is not reported as ours."""
        self.need(room, "foreign")
        begun = room.now()
        await room.place_by_hand(request(room.symbol, "buy", 70))
        await room.place_by_hand(request(room.symbol, "buy", 5, limit_price=8, order_type="limit"))
        await room.move(room.symbol, 10.0)
        (resting,) = await room.broker.open_orders()
        executions = await room.broker.executions(begun - timedelta(minutes=1))

        assert resting.order_id is None
        assert resting.broker_order_id
        assert [fill.order_id for fill in executions] == [""] * len(executions)
        assert sum(fill.quantity for fill in executions) == 70
        assert await room.position() == 70
        assert room.heard.reports == []

    # --- connection -------------------------------------------------------------------------------------------

    async def test_TC29_disconnected(self, room: BrokerRoom) -> None:
        """A broker that is not connected says so in its health, and surely takes no order."""
        await room.broker.disconnect()

        assert room.broker.health.socket == "down"
        with pytest.raises(BrokerRefused):
            await room.broker.submit([approve(request(room.symbol, "buy", 100))])
        room.heard = Recorder()
        await room.broker.connect(room.heard)
        assert await room.broker.open_orders() == []

    async def test_TC30_reconnect(self, room: BrokerRoom) -> None:
        """Working orders outlive the connection; their fills then go to the new listener alone."""
        order = await room.send("buy", 100, limit_price=9.5, order_type="limit", time_in_force="gtc")
        before = await room.reconnect()
        found = await room.working(order)
        assert found is not None
        count = len(before.reports)
        await room.move(room.symbol, 9.4)
        await room.filled(order)

        assert len(before.reports) == count
        assert room.broker.health == UP

    async def test_TC31_filled_while_away(self, room: BrokerRoom) -> None:
        """A fill that nobody heard reads back once, under an id that it keeps."""
        self.need(room, "away")
        begun = room.now()
        order = await room.send("buy", 100, limit_price=9.5, order_type="limit", time_in_force="gtc")
        await room.broker.disconnect()
        await room.move(room.symbol, 9.4)
        room.heard = Recorder()
        await room.broker.connect(room.heard)
        first = await room.broker.executions(begun - timedelta(minutes=1))
        await room.reconnect()
        second = await room.broker.executions(begun - timedelta(minutes=1))

        assert sum(fill.quantity for fill in first) == 100
        assert [fill.order_id for fill in first] == [order.order_id] * len(first)
        assert list(first) == list(second)
        assert await room.working(order) is None
        assert await room.position() == 100

    # --- the gate's last look -----------------------------------------------------------------------------------

    async def test_TC32_submit_awaits_nothing_first(self, room: BrokerRoom) -> None:
        """A group is handed over before anything is awaited, so that no kill can come between."""
        parent = approve(request(room.symbol, "buy", 100, limit_price=9.5, order_type="limit"))
        child = approve(
            request(
                room.symbol,
                "sell",
                100,
                stop_price=9.0,
                order_type="stop",
                intent="reduce",
                parent_id=parent.order_id,
            )
        )
        await first_step_of(room.broker.submit([parent, child]))
        await room.accepted(parent)
        await room.accepted(child)

    async def test_TC33_replace_awaits_nothing_first(self, room: BrokerRoom) -> None:
        """A change, too, is handed over before anything is awaited."""
        order = await room.send("buy", 100, limit_price=9.0, order_type="limit")
        changed = order.request.model_copy(update={"limit_price": Decimal("9.5")})
        await first_step_of(room.broker.replace(approve(changed, order.order_id)))
        await room.ended(order, "replaced")
        found = await room.working(order)

        assert found is not None
        assert found.limit_price == Decimal("9.5")

    # --- terms that a broker may keep to by itself --------------------------------------------------------------

    async def held(self, room: BrokerRoom, **more: Any) -> ApprovedOrder:
        """Hold 100 shares, and send the order that sells them in a moment."""
        self.keep(room, "good_after")
        await room.hold(100)
        terms: dict[str, Any] = {"good_after": room.now() + timedelta(seconds=HELD), "intent": "reduce"}
        return await room.send("sell", 100, **terms, **more)

    async def test_TC34_held_until_its_time(self, room: BrokerRoom) -> None:
        """An order that is good later is accepted, works, and trades no sooner."""
        order = await self.held(room)
        await room.move(room.symbol, 10.0)
        found = await room.working(order)

        assert found is not None
        assert order.request.good_after is not None
        assert found.good_after is not None
        assert timedelta(0) <= found.good_after - order.request.good_after <= timedelta(seconds=1)
        assert (found.order_type, found.state) == ("market", "working")
        assert room.heard.fills(order.order_id) == []
        await room.pass_time(HELD + 1)
        await room.move(room.symbol, 10.0)
        fill = await room.filled(order)
        assert fill.ts >= order.request.good_after
        assert await room.position() == 0

    async def test_TC35_held_in_a_group(self, room: BrokerRoom) -> None:
        """An order that is held ends with its one-cancels-all group, and never trades."""
        order = await self.held(room, oca_group="g2")
        stop = await room.send("sell", 100, stop_price=9.5, order_type="stop", intent="reduce", oca_group="g2")
        await room.move(room.symbol, 9.4)
        await room.move(room.symbol, 9.4)
        await room.filled(stop)
        await room.ended(order, "cancelled")
        await room.pass_time(HELD + 1)
        await room.move(room.symbol, 9.4)

        assert room.heard.fills(order.order_id) == []
        assert await room.position() == 0

    async def test_TC36_change_what_is_held(self, room: BrokerRoom) -> None:
        """A change of its quantity leaves an order held until its time, and a cancel ends it before."""
        order = await self.held(room)
        changed = order.request.model_copy(update={"quantity": Decimal(60)})
        await room.broker.replace(approve(changed, order.order_id))
        await room.ended(order, "replaced")
        await room.move(room.symbol, 10.0)
        assert room.heard.fills(order.order_id) == []

        await room.broker.cancel(order.order_id)
        await room.ended(order, "cancelled")
        await room.pass_time(HELD + 1)
        await room.move(room.symbol, 10.0)
        assert await room.position() == 100

    async def adjustable(self, room: BrokerRoom, distance: Any = DISTANCES[0], **more: Any) -> ApprovedOrder:
        """Send a stop at 9.5 that is to trail from 10.5 on, beginning at 10.2."""
        self.keep(room, "adjustment")
        change = Adjustment(trigger_price=Decimal("10.5"), stop_price=Decimal("10.2"), **distance)
        terms: dict[str, Any] = {"stop_price": 9.5, "order_type": "stop", "intent": "reduce"}
        return await room.send("sell", 100, **terms, adjustment=change, **more)

    @pytest.mark.parametrize("distance", DISTANCES, ids=["amount", "percent"])
    async def test_TC37_adjustment(self, room: BrokerRoom, distance: dict[str, Decimal]) -> None:
        """A stop becomes a trailing stop when its trigger price trades, once, and stays the same order."""
        self.keep(room, "adjustment")
        await room.hold(100)
        order = await self.adjustable(room, distance)
        await room.move(room.symbol, 10.4)
        before = await room.working(order)
        assert "adjusted" not in room.heard.kinds(order.order_id)
        assert before is not None
        assert (before.order_type, before.stop_price) == ("stop", Decimal("9.5"))
        assert before.adjustment == order.request.adjustment

        await room.move(room.symbol, 10.5)
        await room.ended(order, "adjusted")
        await room.move(room.symbol, 11.0)
        found = await room.working(order)
        assert room.heard.kinds(order.order_id).count("adjusted") == 1
        assert found is not None
        assert (found.order_type, found.adjustment, found.quantity) == ("trailing_stop", None, Decimal(100))
        name, value = next(iter(distance.items()))
        assert getattr(found, name) == value
        await room.move(room.symbol, 10.8)
        assert room.heard.fills(order.order_id) == []
        await room.move(room.symbol, 10.6)
        await room.move(room.symbol, 10.6)
        assert Decimal("10.4") <= (await room.filled(order)).price <= Decimal("10.8")

    async def test_TC38_not_adjusted(self, room: BrokerRoom) -> None:
        """Before its trigger has traded it is a plain stop."""
        self.keep(room, "adjustment")
        await room.hold(100)
        order = await self.adjustable(room)
        await room.move(room.symbol, 9.4)
        await room.move(room.symbol, 9.4)

        assert (await room.filled(order)).price <= Decimal("9.6")
        assert "adjusted" not in room.heard.kinds(order.order_id)

    async def test_TC39_adjusted_child(self, room: BrokerRoom) -> None:
        """A child is adjusted once its parent has filled, and not before."""
        self.keep(room, "adjustment")
        parent = approve(request(room.symbol, "buy", 100, limit_price=9.8, order_type="limit"))
        change = Adjustment(trigger_price=Decimal("10.5"), stop_price=Decimal("10.2"), **DISTANCES[0])
        terms: dict[str, Any] = {"stop_price": 9.0, "order_type": "stop", "adjustment": change}
        ask = request(
            room.symbol, "sell", 100, intent="reduce", parent_id=parent.order_id, oca_group="g3", **terms
        )
        stop = approve(ask)
        await room.broker.submit([parent, stop])
        await room.accepted(stop)
        await room.move(room.symbol, 10.6)
        assert "adjusted" not in room.heard.kinds(stop.order_id)

        await room.move(room.symbol, 9.7)
        await room.filled(parent)
        await room.move(room.symbol, 10.6)
        await room.ended(stop, "adjusted")
        await room.move(room.symbol, 10.1)
        await room.move(room.symbol, 10.1)
        await room.filled(stop)
        assert await room.position() == 0

    async def test_TC40_change_what_was_adjusted(self, room: BrokerRoom) -> None:
        """What was adjusted is changed as the trailing stop that it is."""
        self.keep(room, "adjustment")
        await room.hold(100)
        order = await self.adjustable(room)
        await room.move(room.symbol, 10.6)
        await room.ended(order, "adjusted")
        changed = order.request.adjusted().model_copy(update={"quantity": Decimal(60)})
        await room.broker.replace(approve(changed, order.order_id))
        await room.ended(order, "replaced")
        found = await room.working(order)

        assert found is not None
        assert (found.order_type, found.quantity) == ("trailing_stop", Decimal(60))
        await room.move(room.symbol, 9.9)
        await room.move(room.symbol, 9.9)
        await room.until(lambda: bool(room.heard.fills(order.order_id)), "the fill of the trail")
        assert await room.position() == 40

    async def test_TC41_adjusted_while_away(self, room: BrokerRoom) -> None:
        """What was adjusted while nobody was connected reads back as the trailing stop that it is."""
        self.keep(room, "adjustment")
        self.need(room, "away")
        await room.hold(100)
        order = await self.adjustable(room, time_in_force="gtc")
        await room.broker.disconnect()
        await room.move(room.symbol, 10.6)
        room.heard = Recorder()
        await room.broker.connect(room.heard)
        found = await room.working(order)

        assert found is not None
        assert (found.order_type, found.trail_amount) == ("trailing_stop", Decimal("0.3"))
        await room.broker.disconnect()
        await room.move(room.symbol, 10.1)
        room.heard = Recorder()
        await room.broker.connect(room.heard)
        assert await room.working(order) is None
        assert await room.position() == 0

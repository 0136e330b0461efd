"""A split that a feed reports: shares, costs and exits follow, once, and a restart knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from sigma9_core.models import ExitPlan, OrderRequest, Slice, Split, Trade
from sigma9_core.money.audit import audit
from sigma9_core.money.history import History
from sigma9_core.testing.money_room import SESSIONS, MoneyRoom


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path) as room:
        yield room


async def split(room: MoneyRoom, new: int = 2, old: int = 1, *, price: float | None = None) -> Split:
    """Let the exchange split AAPL, and the feed report it with the first price after it."""
    share = Decimal(new) / Decimal(old)
    room.exchange.holdings["AAPL"] = room.exchange.holdings.get("AAPL", Decimal(0)) * share
    now = room.clock.now() + timedelta(seconds=1)
    room.clock.advance(now)
    told = Split("AAPL", now, Decimal(new), Decimal(old))
    trades = () if price is None else (Trade("AAPL", now, price, 100.0),)
    await room.path.on_market(Slice(now, trades=trades, splits=(told,)))
    await room.desk.settle()
    return told


async def test_shares_double_and_nothing_is_won_or_lost(room: MoneyRoom) -> None:
    """After 2 for 1 there are twice the shares at half the cost; result and equity stay what they were."""
    await room.fill(await room.buy(), "10")
    await room.tick("AAPL", 10.0)
    before = room.path.portfolio.account()
    await split(room, price=5.0)
    position = room.path.portfolio.position("AAPL")

    assert (position.quantity, position.average_cost) == (Decimal(200), Decimal(5))
    assert room.path.portfolio.account().equity == before.equity
    assert not await room.path.reconciler.look_around(room.path.link)
    assert not await room.path.reconciler.look_around(room.path.link)
    assert room.path.reconciler.unexplained == {}


@pytest.mark.parametrize(("new", "old", "quantity", "price"), [(2, 1, 200, "4.90"), (1, 10, 10, "98.00")])
async def test_the_stop_follows(room: MoneyRoom, new: int, old: int, quantity: int, price: str) -> None:
    """The stop guards the new shares at the new price, also where the exchange leaves the old order working."""
    await room.fill(await room.enter(), "10")
    assert room.working(protective=True)[0].request.stop_price == Decimal("9.80")
    await split(room, new, old)
    await room.until(
        lambda: (
            [(o.request.quantity, o.request.stop_price) for o in room.working(protective=True)]
            == [(Decimal(quantity), Decimal(price))]
        )
    )


async def test_the_trail_starts_at_the_split_price(room: MoneyRoom) -> None:
    """What a trail is measured from is divided as well: half the price is no fall, and 3 % above it starts it."""
    plan = ExitPlan(trail_amount=Decimal("0.40"))
    await room.fill(await room.enter(plan=plan), "10")
    await split(room, price=5.0)
    await room.tick("AAPL", 5.1)
    assert not [o for o in room.working(protective=True) if o.request.order_type == "trailing_stop"]
    await room.tick("AAPL", 5.16)

    (trail,) = [o for o in room.working(protective=True) if o.request.order_type == "trailing_stop"]
    assert (trail.request.quantity, trail.request.trail_amount) == (Decimal(200), Decimal("0.20"))


async def test_a_split_that_is_told_again_counts_once(tmp_path: Path) -> None:
    """Neither a feed that repeats itself nor a restart doubles it; the books are made from fills and splits."""
    async with MoneyRoom(tmp_path) as room:
        await room.fill(await room.enter(), "10")
        told = await split(room)
        await room.path.on_market(Slice(room.clock.now(), splits=(told,)))
        await room.fill(await room.buy("MSFT"), "7")
        assert room.path.portfolio.quantity("AAPL") == 200
    async with room.again() as after:
        await after.path.on_market(Slice(after.clock.now(), splits=(told,)))
        assert after.path.portfolio.quantity("AAPL") == 200
        assert after.path.reconciler.unexplained == {}
        assert after.exits.guards["AAPL"].factor == Decimal("0.5")
        await after.until(
            lambda: [o.request.stop_price for o in after.working(protective=True)] == [Decimal("4.90")]
        )


async def test_a_split_without_sense_is_ignored(room: MoneyRoom, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is divided by zero: it is said, and everything stays."""
    await room.fill(await room.buy(), "10")
    now = room.clock.now()
    await room.path.on_market(Slice(now, splits=(Split("AAPL", now, Decimal(0)),)))

    assert room.path.portfolio.quantity("AAPL") == 100
    assert "a split that makes no sense" in caplog.text


async def test_one_split_under_two_times_counts_once(room: MoneyRoom) -> None:
    """Feeds that tell one split as of midnight and as of the open tell the same one; the next day's is another."""
    await room.fill(await room.buy(), "10")

    async def tell(at: datetime, new: int, old: int = 1) -> Decimal:
        room.clock.advance(room.clock.now() + timedelta(seconds=1))
        told = Split("AAPL", at, Decimal(new), Decimal(old))
        await room.path.on_market(Slice(room.clock.now(), splits=(told,)))
        await room.desk.settle()
        return room.path.portfolio.quantity("AAPL")

    first, second = SESSIONS[0].open, SESSIONS[1].open
    for at in (first, first + timedelta(seconds=1), first.replace(hour=0, minute=0)):
        assert await tell(at, 2) == 200
    assert await tell(first, 4, 2) == 200
    assert await tell(first, 3) == 600
    async with await room.crash() as after:
        room = after
        assert await tell(first + timedelta(seconds=2), 2) == 600
        assert await tell(second, 2) == 1200


async def around(room: MoneyRoom) -> None:
    """Look around as often as a difference needs to be believed."""
    for _ in range(3):
        await room.path.reconciler.look_around(room.path.link)


@pytest.mark.parametrize(("side", "left"), [("buy", 33), ("sell", -33)])
async def test_a_fraction_that_a_split_leaves_is_cash_in_lieu(
    tmp_path: Path, room: MoneyRoom, side: str, left: int
) -> None:
    """Where the broker has the whole shares alone, the rest is closed in the books, and nothing is won or lost."""
    await room.fill(await room.buy(side=side), "3")
    await room.tick("AAPL", 3)
    await split(room, 1, 3, price=9.0)
    room.exchange.holdings["AAPL"] = Decimal(left)
    await around(room)
    await room.desk.settle()
    books = room.path.portfolio
    assert (books.quantity("AAPL"), books.cash, room.path.reconciler.unexplained) == (
        Decimal(left),
        room.exchange.cash,
        {},
    )
    assert abs(books.account().day_pnl or Decimal(0)) < Decimal("0.0001")
    assert room.path.gate.closed_for(OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(1))) is None
    (fill,) = [record.fill for record in room.journal.fills() if record.fill.exec_id.startswith("in-lieu-")]
    assert (fill.price, fill.quantity) == (Decimal("9.0"), Decimal("0.33333333"))

    async with await room.crash() as after:
        assert after.path.portfolio.quantity("AAPL") == left
        assert after.path.portfolio.cash == after.exchange.cash
        assert after.path.reconciler.unexplained == {}
    history = History(f"sqlite:///{tmp_path / 'journal.db'}", "main")
    history.open_unchecked()
    found = audit(history)
    history.close()
    assert (found.faults, [row["quantity"] for row in found.positions]) == ([], [Decimal(left)])


async def test_a_start_finds_the_fraction_as_well(room: MoneyRoom) -> None:
    """The broker has paid while we were away: the first reconciliation settles it."""
    await room.fill(await room.buy(), "3")
    await split(room, 1, 3, price=9.0)
    after = await room.crash()
    after.exchange.holdings["AAPL"] = Decimal(33)
    after.exchange.cash += 3
    async with after:
        assert after.path.portfolio.quantity("AAPL") == 33
        assert after.path.portfolio.cash == after.exchange.cash
        assert after.path.reconciler.unexplained == {}


async def test_what_a_split_does_not_explain_stays_unexplained(room: MoneyRoom) -> None:
    """Another quantity than the whole shares is no cash in lieu, nor is a fraction without a split."""
    await room.fill(await room.buy(), "3")
    await split(room, 1, 3, price=9.0)
    room.exchange.holdings["AAPL"] = Decimal(32)
    request = OrderRequest(symbol="MSFT", side="buy", quantity=Decimal("1.5"))
    (order,) = await room.desk.submit([request])
    room.exchange.fill(order.order_id, Decimal(9))
    room.exchange.holdings["MSFT"] = Decimal(1)
    await around(room)

    assert set(room.path.reconciler.unexplained) == {"AAPL", "MSFT"}


async def test_a_kill_ends_where_a_split_has_left_a_fraction(room: MoneyRoom) -> None:
    """The broker has nothing left, and neither have the books: the kill says that it is done."""
    await room.fill(await room.buy(), "3")
    await split(room, 1, 3, price=9.0)
    room.exchange.holdings["AAPL"] = Decimal(33)
    firing = asyncio.create_task(room.kill.fire(reason="x", source="api", flatten=True))
    for order in await room.closing():
        await room.fill(order, "9")
    await firing
    await around(room)
    await room.until(lambda: room.kill.body()["phase"] == "done")

    assert room.path.portfolio.quantity("AAPL") == 0

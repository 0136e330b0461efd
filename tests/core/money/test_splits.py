"""A split that a feed reports: shares, costs and exits follow, once, and a restart knows of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from sigma9_core.models import ExitPlan, Slice, Split, Trade
from sigma9_core.testing.money_room import MoneyRoom


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

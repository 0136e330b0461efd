"""What a failing feed, an absurd price and a wrong clock do to a running engine: entries close, exits go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sigma9_core import engine as engine_module
from sigma9_core import market as market_module
from sigma9_core.clock import wall_now
from sigma9_core.config import InstanceSettings
from sigma9_core.testing.engine_room import EngineRoom, write_calendar

RULES = ("price_collar", "clock", "feed_health")


@pytest.fixture(name="room")
async def _room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineRoom]:
    """Give a live engine with the rules that judge feed and clock; what waits, waits a moment."""
    monkeypatch.setattr(engine_module, "REFRESH", 0.05)
    monkeypatch.setattr(market_module, "FIRST_WAIT", 0.05)
    async with EngineRoom(
        tmp_path,
        plugin_settings={"hand": {"clock": "live"}},
        calendar=partial(write_calendar, always=True),
        risk=tuple(InstanceSettings(plugin=name) for name in RULES),
    ) as room:
        yield room


async def entry(room: EngineRoom, symbol: str = "AAPL") -> str:
    """Try an entry; give the status of its order, or the rule that refused it."""
    response = await room.send("place_order", id=f"{wall_now()}", symbol=symbol, side="buy", quantity=10)
    if response.error is not None:
        return str(response.error["details"]["rule"])
    return str((response.result or {})["order"]["status"])


async def leave(room: EngineRoom) -> str:
    """Close the position in MSFT by an order, a part at a time."""
    order = await room.order("MSFT", "sell", 10)
    await room.fill(order["order_id"], "10")
    return str(room.steps(order["order_id"])[-1])


async def hold(room: EngineRoom) -> None:
    """Hold 100 shares of MSFT."""
    await room.tick("AAPL", "MSFT")
    await room.fill((await room.order("MSFT"))["order_id"], "10")


async def test_a_feed_that_fails_closes_entries_until_a_person_clears_it(room: EngineRoom) -> None:
    """Three failed connects in session close entries, also once the feed is back; exits pass all the while."""
    await hold(room)
    assert await entry(room) == "accepted"
    refusals = [OSError("429 Too Many Requests")] * 3
    connect = room.feed.connect

    async def refused(since: datetime | None) -> None:
        if refusals:
            raise refusals.pop()
        await connect(since)

    room.feed.connect = refused  # type: ignore[method-assign]
    room.feed.put(OSError("stream reset"))
    await room.until(lambda: room.engine.market.failures >= 3, "three failures")
    assert await entry(room) == "feed_health"
    assert await leave(room) == "filled"
    await room.until(lambda: room.engine.market.state == "connected", "the feed")
    await room.tick("AAPL", "MSFT")
    assert await entry(room) == "feed_health"
    (row,) = [row for row in room.body("risk")["rules"] if row["rule"] == "feed_health"]
    assert row["tripped"] is True

    await room.do("risk_clear", rule="feed_health")
    assert await entry(room) == "accepted"
    reasons = [update.reason or "" for update in room.updates()]
    assert any("429 Too Many Requests" in reason for reason in reasons)
    assert any("the feed failed to connect" in reason for reason in reasons)
    (trip,) = room.engine.journal.notes("trip", 9)
    assert trip.body["rule"] == "feed_health"


async def test_a_silent_symbol_closes_and_reopens_by_itself(
    room: EngineRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute without a tick: no entry in that symbol; with the next tick there is."""
    await hold(room)
    now = room.engine.clock.now
    monkeypatch.setattr(room.engine.clock, "now", lambda: now() + timedelta(seconds=31))
    assert await entry(room) == "feed_health"
    assert await leave(room) == "filled"
    await room.tick("AAPL")

    assert await entry(room) == "accepted"


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf"), 1e9, 0.0001])
async def test_an_absurd_price_moves_nothing(room: EngineRoom, price: float) -> None:
    """One bad print is no price: positions are valued, and entries judged, by the last sane one."""
    await hold(room)
    before = room.engine.path.portfolio.account().equity
    await room.tick("AAPL", "MSFT", price=price, quotes=False)

    assert room.engine.path.portfolio.account().equity == before
    assert await entry(room) == "accepted"
    assert await leave(room) == "filled"


async def test_a_clock_that_is_off_closes_entries(room: EngineRoom) -> None:
    """More than a second off the broker's time: no entries until the clocks agree; exits pass."""
    await hold(room)
    around: Any = room.engine.path.desk.surroundings
    for offset, wanted in ((-1.5, "clock"), (0.2, "accepted"), (3.0, "clock"), (0.0, "accepted")):
        around.clock_offset = offset
        assert await entry(room) == wanted
        assert await leave(room) == "filled"

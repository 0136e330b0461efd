"""A paper exchange for tests: the broker, its clock, and slices made by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock
from sigma9_core.config import Settings
from sigma9_core.contracts import PluginContext
from sigma9_core.models import ApprovedOrder, Bar, Fill, OrderRequest, Quote, Session, Side, Slice, Trade
from sigma9_core.testing.broker_contract import BrokerRoom, Recorder
from sigma9_core.testing.orders import approve, request
from sigma9_plugins.brokers.paper import PaperBroker, PaperConfig

OPEN = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
HOURS = timedelta(hours=6, minutes=30)
SESSIONS = [
    Session(start.date().isoformat(), start, start + HOURS)
    for start in (OPEN + timedelta(days=n) for n in range(4))
]
START = OPEN + timedelta(minutes=30)


def paper(
    folder: Path | None = None, *, clock: SteppedClock | None = None, kind: Any = "simulated", **config: Any
) -> PaperBroker:
    """Build a paper broker on the test's calendar; fees and slippage are as in the defaults."""
    clock = clock or SteppedClock(kind, START)
    context = PluginContext("paper", Settings(), clock, Calendar("XNYS", SESSIONS), folder)
    return PaperBroker(PaperConfig(**config), context)


class Exchange(BrokerRoom):
    """A paper broker whose market is moved by slices; time goes on by a second with each of them."""

    def __init__(self, broker: PaperBroker, clock: SteppedClock) -> None:
        self.broker: PaperBroker = broker
        self.clock = clock
        self.heard = Recorder()

    def now(self) -> datetime:
        """Tell the market time."""
        return self.clock.now()

    async def slice(self, *items: Quote | Trade | Bar, at: datetime | None = None) -> None:
        """Give the broker a slice: at a time, or a second later."""
        self.clock.advance(at or self.now() + timedelta(seconds=1))
        quotes = tuple(item for item in items if isinstance(item, Quote))
        trades = tuple(item for item in items if isinstance(item, Trade))
        bars = tuple(item for item in items if isinstance(item, Bar))
        now = self.clock.now()
        session = next((each for each in SESSIONS if each.open <= now < each.close), None)
        await self.broker.on_market(Slice(now, quotes, trades, bars), session)

    async def move(self, symbol: str, price: float) -> None:
        """Trade a lot at a price, and quote a cent around it."""
        now = self.now() + timedelta(seconds=1)
        await self.slice(
            Trade(symbol, now, price, 1_000_000),
            Quote(symbol, now, price - 0.01, price + 0.01, 10_000, 10_000),
            at=now,
        )

    async def thin(self, symbol: str, price: float, quantity: int) -> None:
        """Show so many shares on each side."""
        now = self.now() + timedelta(seconds=1)
        await self.slice(Quote(symbol, now, price - 0.01, price + 0.01, quantity, quantity), at=now)

    async def place_by_hand(self, wanted: OrderRequest) -> None:
        """Place an order past the adapter."""
        self.broker.place_by_hand(wanted)

    async def bar(
        self, low_to_high: tuple[float, float, float, float], *, volume: float = 1e6, seconds: int = 60
    ) -> None:
        """Give a bar (open, high, low, close) that begins now, and is known at its end."""
        start = self.now()
        end = start + timedelta(seconds=seconds)
        await self.slice(Bar(self.symbol, start, *low_to_high, volume, seconds), at=end)

    async def trade(self, price: float, size: float = 1e6) -> None:
        """Give a trade without a quote, ten seconds later: no quote is fresh then."""
        now = self.now() + timedelta(seconds=10)
        await self.slice(Trade(self.symbol, now, price, size), at=now)

    async def quote(self, bid: float | None, ask: float | None, **more: Any) -> None:
        """Give a quote a second later."""
        now = self.now() + timedelta(seconds=1)
        await self.slice(Quote(self.symbol, now, bid, ask, **more), at=now)

    async def order(self, side: Side, quantity: float | str, **more: Any) -> ApprovedOrder:
        """Send an order without waiting for anything."""
        order = approve(request(self.symbol, side, quantity, **more))
        await self.broker.submit([order])
        return order

    def fills(self, order: ApprovedOrder) -> list[Fill]:
        """List an order's fills."""
        return self.heard.fills(order.order_id)

    def prices(self, order: ApprovedOrder) -> list[tuple[int, str]]:
        """List an order's fills as quantity and price."""
        return [(int(fill.quantity), str(fill.price)) for fill in self.fills(order)]

    def end(self, order: ApprovedOrder) -> tuple[str, str | None] | None:
        """Tell how an order ended, and why."""
        ends = [
            r for r in self.heard.reports if r.order_id == order.order_id and r.kind not in ("accepted", "filled")
        ]
        return (ends[-1].kind, ends[-1].reason) if ends else None


@asynccontextmanager
async def exchange(folder: Path | None = None, **config: Any) -> AsyncIterator[Exchange]:
    """Open a connected exchange."""
    clock = SteppedClock("simulated", START)
    room = Exchange(paper(folder, clock=clock, **config), clock)
    await room.broker.connect(room.heard)
    yield room
    await room.broker.disconnect()

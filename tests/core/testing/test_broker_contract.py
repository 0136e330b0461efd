"""The broker contract finds what it is there to find."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from sigma9_core.clock import SteppedClock
from sigma9_core.contracts import KEPT
from sigma9_core.models import ApprovedOrder
from sigma9_core.testing import broker_contract
from sigma9_core.testing.broker_contract import BrokerContract, BrokerRoom, Recorder
from sigma9_core.testing.small_exchange import SmallExchange

NOW = datetime(2026, 3, 2, 15, tzinfo=UTC)


class Waiting(SmallExchange):
    """A broker that waits for a lock before it sends, even where nobody holds it."""

    async def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Wait, then take orders."""
        await asyncio.sleep(0)
        await super().submit(orders)

    async def replace(self, order: ApprovedOrder) -> None:
        """Wait, then change an order."""
        await asyncio.sleep(0)
        await super().replace(order)


class SmallRoom(BrokerRoom):
    """A client of the small exchange."""

    def __init__(self, exchange: SmallExchange) -> None:
        self.broker = self.exchange = exchange
        self.heard = Recorder()

    def now(self) -> datetime:
        """Tell the time."""
        return self.exchange.clock.now()

    async def move(self, symbol: str, price: float) -> None:
        """Fill every market order at a price."""
        for order in [*self.exchange.orders.values()]:
            if order.state == "working" and order.request.order_type == "market":
                self.exchange.fill(order.order_id, Decimal(str(price)))


class Cases(BrokerContract):
    """The cases of the contract at a small exchange."""

    def __init__(self, exchange: SmallExchange) -> None:
        self.exchange = exchange

    def open_room(self, folder: Path) -> AbstractAsyncContextManager[BrokerRoom]:
        """Open a room."""
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[BrokerRoom]:
        room = SmallRoom(self.exchange)
        await room.broker.connect(room.heard)
        yield room


@pytest.mark.parametrize(
    "case", ["test_TC32_submit_awaits_nothing_first", "test_TC33_replace_awaits_nothing_first"]
)
@pytest.mark.parametrize("kind", [SmallExchange, Waiting])
async def test_a_broker_that_awaits_something_first_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, kind: type[SmallExchange]
) -> None:
    """Who waits before an order has left fails the case; who does not passes it."""
    monkeypatch.setattr(broker_contract, "PATIENCE", 0.05)
    cases = Cases(kind(SteppedClock("simulated", NOW)))
    async with cases.open_room(tmp_path) as room:
        run = getattr(cases, case)(room)
        if kind is Waiting:
            with pytest.raises(AssertionError, match="did not come"):
                await run
        else:
            await run


@pytest.mark.parametrize("case", ["test_TC34_held_until_its_time", "test_TC39_adjusted_child"])
async def test_a_broker_that_claims_to_keep_what_it_does_not_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Who names a term and overlooks it fails its cases; who names none skips them."""
    monkeypatch.setattr(broker_contract, "PATIENCE", 0.05)
    exchange = SmallExchange(SteppedClock("simulated", NOW))
    async with Cases(exchange).open_room(tmp_path) as room:
        with pytest.raises(pytest.skip.Exception):
            await getattr(Cases(exchange), case)(room)
        exchange.keeps = frozenset(KEPT)
        with pytest.raises(AssertionError):
            await getattr(Cases(exchange), case)(room)

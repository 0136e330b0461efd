"""What the money path knows of the world around it: contracts, margins, the feed's health, the broker's clock.

Nothing here can hold a kill or an exit up: a contract is asked about before an entry is decided, within a budget,
and what nobody answers is said to be unknown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from sigma9_core.clock import wall_now
from sigma9_core.contracts import (
    Broker,
    FeedHealth,
    Instrument,
    Margin,
    MarginBroker,
    ReferenceBroker,
    TimedBroker,
)
from sigma9_core.errors import BrokerRefused, CommandError
from sigma9_core.models import ZERO, OrderRequest

log = logging.getLogger("sigma9.money")

ANSWER_WITHIN: Final = 2.0
"""Seconds that a broker has to tell of a contract, a margin or its time."""
CLOCK_EVERY: Final = 60.0
"""Seconds between two looks at the broker's clock."""


class Surroundings:
    """Asks the broker, keeps the answers, and shows them to the risk rules; on the money lane."""

    def __init__(self, broker: Callable[[], Broker]) -> None:
        """Store; `broker` gives the connected broker, or raises CommandError."""
        self.feed: FeedHealth | None = None
        self.clock_offset: float | None = None
        """Seconds that this machine's clock is ahead of the broker's."""
        self._broker = broker
        self._instruments: dict[str, Instrument] = {}
        self._shown: Mapping[str, Instrument] = MappingProxyType({})

    @property
    def instruments(self) -> Mapping[str, Instrument]:
        """Give what is known of the contracts, by symbol; it does not change any more."""
        return self._shown

    def forget(self) -> None:
        """Ask about every contract again: what may be sold short changes with the day."""
        self._instruments = {}
        self._shown = MappingProxyType({})

    async def learn(self, symbol: str) -> None:
        """Learn of a symbol's contract, once; without an answer it can't be traded, and is asked about again."""
        known = self._instruments.get(symbol)
        if known is not None and not known.fault:
            return
        broker = self._connected()
        if not isinstance(broker, ReferenceBroker):
            return
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                found = await broker.instrument(symbol)
            if not isinstance(found, Instrument) or found.symbol != symbol:
                raise TypeError(f"instrument() gave {found!r}")
        except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; then nothing is known
            what = str(error) or f"no answer within {ANSWER_WITHIN:g} s"
            log.warning("the broker does not tell what %s is: %s", symbol, what)
            found = Instrument(symbol, fault=f"the broker does not tell what {symbol} is ({what})"[:180])
        self._instruments[symbol] = found
        self._shown = MappingProxyType(dict(self._instruments))

    async def margin(self, request: OrderRequest) -> Margin | None:
        """Ask what an order would do to the account: None where no broker can say, a `fault` where it won't."""
        broker = self._connected()
        if not isinstance(broker, MarginBroker):
            return None
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                return await broker.what_if(request)
        except BrokerRefused as error:
            return Margin(ZERO, ZERO, fault=f"the broker would not take the order: {error}"[:180])
        except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; the order is not covered then
            what = str(error) or f"no answer within {ANSWER_WITHIN:g} s"
            return Margin(ZERO, ZERO, fault=f"the broker does not tell the order's margin ({what})"[:180])

    async def look_at_clock(self) -> None:
        """Compare this machine's clock with the broker's; the way there and back counts half."""
        broker = self._connected()
        if not isinstance(broker, TimedBroker):
            return
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                before = wall_now()
                theirs = await broker.time()
                after = wall_now()
            self.clock_offset = (before + (after - before) / 2 - theirs).total_seconds()
        except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; the last look stands
            log.warning("the broker does not tell its time: %s", str(error) or type(error).__name__)

    async def keep_looking(self) -> None:
        """Look at the broker's clock now and then."""
        while True:
            await self.look_at_clock()
            await asyncio.sleep(CLOCK_EVERY)

    def _connected(self) -> Broker | None:
        try:
            return self._broker()
        except CommandError:
            return None


__all__ = ["Surroundings"]

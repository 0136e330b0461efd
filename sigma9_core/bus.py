"""The event bus: every event goes out here, once, to subscribers that each have a bounded mailbox.

Durable events arrive in the order of their numbers, after the journal has them, and are never dropped in silence;
market data are conflated by symbol and kind (the newest wins); log lines are dropped oldest first and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from sigma9_core.events import DURABLE, LOG_LEVELS, Event, EventType, LogLevel, LogLine, MarketData, encode

LOG_ROOM = 500
"""Log lines that wait for one subscriber."""


@dataclass(frozen=True, slots=True)
class Interest:
    """What a subscriber wants; None means everything."""

    types: frozenset[EventType] | None = None
    symbols: frozenset[str] | None = None
    """Applies to market_data and trade_event."""
    level: LogLevel = "info"
    """The lowest level of log lines."""

    def wants(self, event: Event) -> bool:
        """Tell whether an event is of interest."""
        if self.types is not None and event.type not in self.types:
            return False
        if event.type == "log":
            return LOG_LEVELS.index(event.data.level) >= LOG_LEVELS.index(self.level)  # type: ignore[union-attr]
        if self.symbols is not None and event.type in ("market_data", "trade_event"):
            return event.symbol in self.symbols
        return True


class Subscription:
    """One subscriber's mailbox; read it with `take` on the loop of the bus."""

    def __init__(
        self, name: str, interest: Interest, durable_room: int, node: str, end: Callable[[], None]
    ) -> None:
        self.name = name
        self.interest = interest
        self.overflowed = False
        """Set once more durable events waited than there is room for; no more arrive until `resume`."""
        self._room = durable_room
        self._node = node
        self._end = end
        self._durable: deque[Event] = deque()
        self._logs: deque[Event] = deque()
        self._market: dict[tuple[str, str], Event] = {}
        self._dropped = 0
        self._wake = asyncio.Event()

    def offer(self, event: Event) -> None:
        """Put an event into the mailbox, by the rules of its type."""
        if not self.interest.wants(event):
            return
        if event.type in DURABLE:
            if self.overflowed:
                return
            if len(self._durable) >= self._room:
                self.overflowed = True
            else:
                self._durable.append(event)
        elif isinstance(event.data, MarketData):
            self._market[event.data.symbol, event.data.kind] = event
        else:
            if len(self._logs) >= LOG_ROOM:
                self._logs.popleft()
                self._dropped += 1
            self._logs.append(event)
        self._wake.set()

    async def take(self, most: int = 100) -> list[Event]:
        """Wait for something and take up to `most` events: durable ones, then logs, then market data.

        Gives an empty list only when the mailbox has overflowed or was closed and is empty.
        """
        while not (self._durable or self._logs or self._market or self.overflowed):
            self._wake.clear()
            await self._wake.wait()
        taken: list[Event] = []
        while self._durable and len(taken) < most:
            taken.append(self._durable.popleft())
        while self._logs and len(taken) < most:
            taken.append(self._count_dropped(self._logs.popleft()))
        while self._market and len(taken) < most:
            taken.append(self._market.pop(next(iter(self._market))))
        return taken

    def resume(self) -> None:
        """Take durable events again after an overflow that the subscriber has made good from the journal."""
        self._durable.clear()
        self.overflowed = False

    def close(self) -> None:
        """Leave the bus."""
        self.overflowed = True
        self._wake.set()
        self._end()

    def _count_dropped(self, event: Event) -> Event:
        if not self._dropped or not isinstance(event.data, LogLine):
            return event
        data = event.data.model_copy(update={"dropped": self._dropped})
        self._dropped = 0
        return replace(event, data=data, raw=encode("log", data, seq=None, ts=event.ts, node=self._node))


class EventBus:
    """Fans events out to subscriptions, on the outer loop."""

    def __init__(self, node: str, last_seq: int = 0) -> None:
        self.node = node
        self.last_seq = last_seq
        """The number of the newest durable event that was dispatched."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: list[Subscription] = []

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop that the bus belongs to."""
        self._loop = loop

    def subscribe(self, name: str, interest: Interest | None = None, *, durable_room: int = 1000) -> Subscription:
        """Open a mailbox; events that are dispatched from now on arrive in it."""
        subscription = Subscription(
            name, interest or Interest(), durable_room, self.node, lambda: self._leave(subscription)
        )
        self._subscriptions.append(subscription)
        return subscription

    def dispatch(self, events: Iterable[Event]) -> None:
        """Deliver events now; on the loop of the bus only."""
        for event in events:
            if event.seq is not None:
                self.last_seq = event.seq
            for subscription in tuple(self._subscriptions):
                subscription.offer(event)

    def post(self, events: Iterable[Event]) -> None:
        """Deliver events soon, from any thread, in the order of posting."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.dispatch, events)

    def _leave(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

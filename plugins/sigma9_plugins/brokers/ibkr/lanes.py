"""What leaves for TWS, so many messages a second: cancels first, then exits, then entries; beside them questions.

IB counts messages and closes the socket of who sends too many. Of the rate entries get three tenths, entries and
exits together half, and questions a fifth; all that is left, and at least as much as entries get, belongs to the
urgent lane, which has cancels and the orders of a kill: whatever entry has left within the last second can be
cancelled at once, and what protects or closes a position waits behind no entry. A parcel (an entry and its legs)
goes out as a whole, at once where there is room; one that has not left can be taken back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sigma9_core.clock import monotonic

LaneName = Literal["urgent", "exits", "orders", "questions"]
LANES: Final[tuple[LaneName, ...]] = ("urgent", "exits", "orders", "questions")
SHARES: Final[Mapping[LaneName, int]] = {"urgent": 20, "exits": 10, "orders": 6, "questions": 4}
"""What each may send at most, in twentieths of the rate; exits and entries together no more than exits may."""
SLOWEST: Final = 4
"""Messages a second that are sent whatever IB complains of."""
TRADES: Final = ("exits", "orders")
WINDOW: Final = 1.0
"""Seconds that IB counts over."""


@dataclass(slots=True, eq=False)
class Parcel:
    """Messages that leave together."""

    lane: LaneName
    messages: int
    send: Callable[[], None]
    left: bool = False
    left_at: float = 0.0
    """When it left, by the clock that never goes back."""


class Lanes:
    """Sends parcels, by the clock of the running loop."""

    def __init__(self, rate: int, *, reserved: bool = True) -> None:
        """Store; `rate` is what may leave in a second, of which some is `reserved` for the urgent lane."""
        self._rate = rate
        self._shares = SHARES if reserved else dict.fromkeys(LANES, 20)
        self._sent: deque[tuple[float, int, LaneName]] = deque()
        """When how many have left, and by which lane."""
        self._waiting: dict[LaneName, deque[Parcel]] = {name: deque() for name in LANES}
        self._timer: asyncio.TimerHandle | None = None

    def put(self, lane: LaneName, messages: int, send: Callable[[], None]) -> Parcel:
        """Send now where there is room and nobody waits before it; else as soon as there is."""
        parcel = Parcel(lane, messages, send)
        self._waiting[lane].append(parcel)
        self._go_on()
        return parcel

    def drop(self, parcel: Parcel) -> bool:
        """Take back what has not left; tell whether it was taken back."""
        waiting = self._waiting[parcel.lane]
        if parcel.left or parcel not in waiting:
            return False
        waiting.remove(parcel)
        return True

    @property
    def waiting(self) -> int:
        """Count the parcels that have not left."""
        return sum(map(len, self._waiting.values()))

    def clear(self) -> None:
        """Take back everything: the connection is gone."""
        for waiting in self._waiting.values():
            waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause(self) -> None:
        """Send no entry and no question for a second, and all a quarter slower from then on: IB has complained."""
        self._rate = max(self._rate * 3 // 4, min(self._rate, SLOWEST))
        now = asyncio.get_running_loop().time()
        self._sent.append((now, self._most("orders"), "orders"))
        self._sent.append((now, self._most("questions"), "questions"))

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._sent and now - self._sent[0][0] >= WINDOW:
            self._sent.popleft()
        behind = False
        for name in LANES:
            waiting = self._waiting[name]
            if name == "orders" and behind:
                continue  # a small entry would take the room that an exit waits for
            while waiting and self._room(waiting[0]):
                parcel = waiting.popleft()
                self._sent.append((now, parcel.messages, name))
                parcel.left, parcel.left_at = True, monotonic()
                parcel.send()
            if waiting and name == "urgent":
                break  # nothing overtakes it
            behind = behind or (name == "exits" and bool(waiting))
        if self.waiting and self._sent:
            self._timer = loop.call_at(self._sent[0][0] + WINDOW, self._go_on)

    def _room(self, parcel: Parcel) -> bool:
        total = sum(count for _, count, _ in self._sent)
        mine = sum(count for _, count, name in self._sent if name == parcel.lane)
        fits = mine + parcel.messages <= self._most(parcel.lane) and total + parcel.messages <= self._rate
        if parcel.lane in TRADES:
            trades = sum(count for _, count, name in self._sent if name in TRADES)
            fits = fits and trades + parcel.messages <= self._most("exits")
        return fits or not self._sent  # what is larger than a second's share goes when all is quiet

    def _most(self, name: LaneName) -> int:
        return max(self._rate * self._shares[name] // 20, 1)

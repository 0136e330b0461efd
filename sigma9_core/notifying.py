"""Notifiers at work: each gets its events on a worker thread of its own; the money path never waits for one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sigma9_core.bus import EventBus, Interest, Subscription
from sigma9_core.contracts import Notifier
from sigma9_core.events import Event
from sigma9_core.workers import Worker

log = logging.getLogger("sigma9.notify")

BUDGET: Final = 30.0
FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 300.0
TRIES: Final = 3
"""How often one event is told until it is left out: it may be the event that the notifier can't bear."""


@dataclass(slots=True)
class _Teller:
    name: str
    notifier: Notifier
    worker: Worker
    enabled: bool = True
    failures: int = 0
    """In a row."""
    subscription: Subscription | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Notifying:
    """Runs the notifiers; one that fails is logged and told the same again, with back-off, a few times."""

    def __init__(
        self, notifiers: Sequence[tuple[str, Notifier]], set_health: Callable[[str, str | None], None]
    ) -> None:
        self._tellers = {name: _Teller(name, each, Worker(name, BUDGET)) for name, each in notifiers}
        self._set_health = set_health

    def names(self) -> tuple[str, ...]:
        """Name the notifiers."""
        return tuple(self._tellers)

    def enable(self, name: str, enabled: bool) -> bool:
        """Switch a notifier on or off; False where there is none of that name."""
        teller = self._tellers.get(name)
        if teller is None:
            return False
        teller.enabled = enabled
        return True

    def start(self, bus: EventBus) -> None:
        """Subscribe each notifier to the events that it wants; one that can't say what it wants is left out."""
        for teller in self._tellers.values():
            try:
                types = frozenset(teller.notifier.types)
            except Exception as error:  # a plugin may raise anything; the start does not depend on a notifier
                log.exception("the notifier %s does not say which events it wants", teller.name)
                self._set_health(teller.name, f"it has no usable `types`: {type(error).__name__}: {error}")
                continue
            teller.subscription = bus.subscribe(teller.name, Interest(types=types))
            work = self._tell(teller, teller.subscription)
            teller.task = asyncio.get_running_loop().create_task(work, name=f"notifier[{teller.name}]")

    async def stop(self) -> None:
        """Leave the bus and end the workers."""
        for teller in self._tellers.values():
            if teller.subscription is not None:
                teller.subscription.close()
            if teller.task is not None:
                teller.task.cancel()
                await asyncio.gather(teller.task, return_exceptions=True)
            teller.worker.stop()

    async def _tell(self, teller: _Teller, subscription: Subscription) -> None:
        while True:
            events = await subscription.take()
            if subscription.overflowed:
                log.warning("the notifier %s fell behind; what it has missed is in the journal", teller.name)
                subscription.resume()
            for event in events:
                for attempt in range(1, TRIES + 1):
                    if not teller.enabled or await self._told(teller, event, last=attempt == TRIES):
                        break

    async def _told(self, teller: _Teller, event: Event, *, last: bool) -> bool:
        """Tell one event; where that fails, wait a while, longer each time, before anything else is told."""
        try:
            await teller.worker.call(teller.notifier.notify, event)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it is told and tried later
            wait = min(FIRST_WAIT * 2 ** min(teller.failures, 20), LONGEST_WAIT)
            teller.failures += 1
            what = "this event is left out, the next one is told" if last else "it is told the same again"
            log.warning("the notifier %s failed (%s); %s in %.0f s", teller.name, error, what, wait)
            self._set_health(teller.name, str(error) or type(error).__name__)
            await asyncio.sleep(wait)
            return False
        if teller.failures:
            self._set_health(teller.name, None)
            teller.failures = 0
        return True

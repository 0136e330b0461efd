"""Command topics are never retained: who published to one with the retain flag has it cleared (contract 4).

MQTT 5 shows the flag of a live message, 3.1.1 does not: there every topic of a live command is cleared, so that
what may have been stored never stays.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from sigma9_core.clock import monotonic
from sigma9_integrations.mqtt.answers import Answers
from sigma9_integrations.mqtt.topics import Topics

_LOG = logging.getLogger("sigma9.mqtt")

INTERVAL: Final = 1.0
"""Seconds between two times that one topic is cleared; what comes between is cleared at their end."""
ROOM: Final = 1000
"""Topics looked after at once; what a flood of invented names stores beyond it stays for the next start."""


class Sweeper:
    """Clears the node's own command topics, each at most once a second; it belongs to the loop of its connection.

    Topics of everybody (`{base}/all/`) are nobody's to clear.
    """

    def __init__(self, answers: Answers, topics: Topics) -> None:
        self.blind = False
        """Whether the connection doesn't show if a live message was published with the retain flag."""
        self._answers = answers
        self._topics = topics
        self._cleared: dict[str, float] = {}
        """When each topic was cleared last, in order, as long as that matters."""
        self._held: dict[str, asyncio.TimerHandle] = {}

    def after_live(self, name: str, *, own: bool, retain: bool) -> None:
        """Clear the topic of a command that has just come, where something may have been stored there."""
        if own and (retain or self.blind):
            self.clear(name, known=retain)

    def clear(self, name: str, *, known: bool = True) -> None:
        """Clear a command's own topic, now or once its second is over; one `known` to be retained is warned of."""
        if name in self._held:
            return  # it is cleared after this message as well
        now = monotonic()
        self._forget(now - INTERVAL)
        wait = self._cleared.get(name, now - INTERVAL) + INTERVAL - now
        if wait > 0:
            loop = asyncio.get_running_loop()
            self._held[name] = loop.call_later(wait, self._release, name)
        elif len(self._cleared) < ROOM:
            self._send(name, now)
        else:
            return
        if known:
            _LOG.warning(
                "%s was published with the retain flag: commands are never retained, cleared",
                self._topics.command(name if name.isprintable() else ascii(name)),
            )

    def flush(self) -> None:
        """Clear at once what waits for its second: the connection ends."""
        for name in tuple(self._held):
            self._held[name].cancel()
            self._release(name)

    def _release(self, name: str) -> None:
        del self._held[name]
        self._send(name, monotonic())

    def _send(self, name: str, now: float) -> None:
        self._cleared.pop(name, None)
        self._cleared[name] = now
        self._answers.clear(self._topics.command(name))

    def _forget(self, before: float) -> None:
        while self._cleared:
            name, at = next(iter(self._cleared.items()))
            if at > before:
                return
            del self._cleared[name]

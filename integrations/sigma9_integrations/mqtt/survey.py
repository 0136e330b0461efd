"""A look at an external broker before the node connects: what it holds of an earlier run, and who is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sigma9_integrations.broker.accounts import covers
from sigma9_integrations.mqtt.connection import Arrival, Endpoint, Protocol5, Refused, Wire, open_wire
from sigma9_integrations.mqtt.topics import Topics

QUIET_SECONDS: Final = 0.05
"""Stored messages have all come when none came for this long."""
LOOK_SECONDS: Final = 1.0
"""How long stored messages are waited for at most."""
ANSWER_SECONDS: Final = 1.5
"""How long another server has to answer before the node takes itself for the only one."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the broker holds."""

    states: frozenset[str]
    """Board names of the node's stored state topics."""
    discovery: Mapping[str, str]
    """What is stored of the node below Home Assistant's prefix, by topic."""
    occupied: bool
    """Whether another server answers as this node."""
    commands: frozenset[str] = frozenset()
    """Commands stored on the node's own topics, as far as MQTT 5 would hide them from who listens for new ones."""


class Survey:
    """One connection that listens, asks, and leaves; its client id is its own, so it disturbs nobody."""

    def __init__(
        self, endpoint: Endpoint, topics: Topics, protocols: Sequence[Protocol5], discovery: Sequence[str] = ()
    ) -> None:
        """Store; `discovery` are the filters of the node's messages below Home Assistant's prefix."""
        self._endpoint = endpoint
        self._topics = topics
        self._protocols = protocols
        self._states: set[str] = set()
        self._commands: set[str] = set()
        self._filters = discovery
        self._discovery: dict[str, str] = {}
        self._online = False
        self._ask = secrets.token_hex(8)
        self._news = asyncio.Event()
        self._answered = asyncio.Event()

    async def look(self) -> Findings:
        """Look once; raise MqttError where the broker can't be reached or refuses."""
        name = f"sigma9-{self._topics.node}-look-{self._ask}"
        wire = await open_wire(self._endpoint, name, self._protocols, self._note)
        try:
            await wire.fetch((self._topics.availability, self._topics.states, self._topics.response("events")))
            if wire.protocol == "5":
                own = self._topics.commands[0]
                await wire.fetch((own,))
                await wire.unsubscribe(own)  # who sends one now is to hear that nobody is there
            if self._filters:
                with contextlib.suppress(Refused):  # a broker may keep the prefix from this user
                    await wire.fetch(self._filters)
            await self._until_quiet(wire)
            occupied = self._online and await self._somebody_answers(wire)
        finally:
            await wire.close()
        return Findings(frozenset(self._states), dict(self._discovery), occupied, frozenset(self._commands))

    async def _until_quiet(self, wire: Wire) -> None:
        """Wait for the end of the stored messages.

        They come at once after the subscription; a message to itself comes behind them on most brokers.
        """
        echo = f"{self._topics.base}/reply/{self._ask}"
        await wire.fetch((echo,))
        await wire.room()
        wire.post(echo, self._ask, qos=0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._news.wait()
                while self._news.is_set():
                    self._news.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(QUIET_SECONDS):
                            await self._news.wait()

    async def _somebody_answers(self, wire: Wire) -> bool:
        """Ask who is online for an answer: `online` may also be what a broker kept of a node that died with it."""
        await wire.room()
        question = {"id": self._ask, "after": 0, "limit": 1}
        wire.post(self._topics.command("events"), json.dumps(question), qos=1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._answered.wait()
        return self._answered.is_set()

    def _note(self, arrival: Arrival) -> None:
        command = self._topics.address(arrival.topic)
        if command is not None:
            if not arrival.retain:
                return  # it is new, and the node is not there yet
            self._commands.add(command.name)
        self._news.set()
        if arrival.topic == self._topics.availability:
            self._online = arrival.payload == b"online"
        elif arrival.topic == self._topics.response("events"):
            if self._ask.encode() in arrival.payload:
                self._answered.set()
        elif arrival.retain:
            name = self._topics.state_name(arrival.topic)
            if name is not None:
                self._states.add(name)
            elif arrival.payload and any(covers(each, arrival.topic) for each in self._filters):
                self._discovery[arrival.topic] = arrival.payload.decode(errors="replace")

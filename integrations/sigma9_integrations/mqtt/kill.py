"""The kill's own door: a connection on the doors' lane that hears kill commands and nothing else.

Nothing overtakes inside one subscription, so neither a flood of commands nor telemetry may share it. The command
connection hears kills as well, and carries one out where this one did not: `KillLedger` sees to it that each is
carried out by exactly one of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

import aiomqtt

from sigma9_core.clock import monotonic
from sigma9_core.commands import Command, Response
from sigma9_core.contracts import Server
from sigma9_core.errors import CommandError
from sigma9_core.payload import read_command
from sigma9_integrations.mqtt.answers import Answers, id_of
from sigma9_integrations.mqtt.connection import Arrival, Wire
from sigma9_integrations.mqtt.sweep import Sweeper
from sigma9_integrations.mqtt.topics import KILL, Topics

Door = Literal["kill", "command"]
MEMORY_SECONDS: Final = 5.0
"""How long a message that one door took is remembered, for the other one to meet it."""
MEMORY_UP_SECONDS: Final = 300.0
"""The same while the kill's own connection is up: behind a flood of commands the other one meets it much later."""
MEMORY_MOST: Final = 20_000
"""Messages that are remembered at most."""
ASIDE: Final = 64
"""Kills of a narrower scope that are worked on at once; a global one is never held back."""


class KillLedger:
    """Knows which kill messages were taken by which door, so that a message is carried out by one of them only."""

    def __init__(self) -> None:
        self.up = False
        """Whether the kill's own connection is subscribed."""
        self.heard_at = 0.0
        """When the kill's own connection heard one last (monotonic)."""
        self._lock = threading.Lock()
        self._taken: dict[tuple[str, bytes], deque[tuple[Door, float]]] = {}
        self._order: deque[tuple[float, tuple[str, bytes]]] = deque()

    def take(self, door: Door, arrival: Arrival) -> bool:
        """Tell whether this door is to carry the message out; False where the other door has taken it."""
        key = (arrival.topic, hashlib.blake2b(arrival.payload, digest_size=16).digest())
        now = monotonic()
        with self._lock:
            # With the kill's connection down a message that is forgotten is at worst carried out twice; remembered
            # for too long it could swallow the next kill of the same words, which only one door hears.
            self._forget(now - (MEMORY_UP_SECONDS if self.up else MEMORY_SECONDS))
            marks = self._taken.setdefault(key, deque())
            if marks and marks[0][0] != door:
                marks.popleft()
                return False
            marks.append((door, now))
            self._order.append((now, key))
            return True

    def renew(self, door: Door, before: float) -> None:
        """Note that a door is about to subscribe anew: what the other one took before then never reaches it.

        Left in the memory, such a mark would swallow the next kill of the same words that only this door hears.
        """
        with self._lock:
            for marks in self._taken.values():
                kept = [mark for mark in marks if mark[0] == door or mark[1] >= before]
                marks.clear()
                marks.extend(kept)

    def _forget(self, before: float) -> None:
        while self._order and (self._order[0][0] < before or len(self._order) >= MEMORY_MOST):
            at, key = self._order.popleft()
            marks = self._taken.get(key)
            if marks and marks[0][1] == at:
                marks.popleft()
            if not marks:
                self._taken.pop(key, None)
        if not self._order:
            self._taken = {}  # one that was full once stays as large


class KillDoor:
    """The session of the kill's connection; everything here runs on the doors' lane, but for the constructor."""

    will: aiomqtt.Will | None = None

    def __init__(self, server: Server, topics: Topics, ledger: KillLedger, on_up: Callable[[bool], None]) -> None:
        self._server = server
        self._topics = topics
        self._ledger = ledger
        self._on_up = on_up
        self._answers = Answers(topics)
        self._sweeper = Sweeper(self._answers, topics)
        self._begun: set[asyncio.Future[None]] = set()
        """Kills that have no answer yet; of these, `_aside` have a narrower scope."""
        self._aside = 0

    def on_message(self, arrival: Arrival) -> None:
        """Carry out a kill at once."""
        if (
            arrival.topic not in self._topics.kills
            or not arrival.payload
            or not self._ledger.take("kill", arrival)
        ):
            return
        own = arrival.topic == self._topics.kills[0]
        if arrival.stored:
            refuse_stored(self._answers, KILL, arrival)
            if own:
                self._sweeper.clear(KILL)
            return
        try:
            self._ledger.heard_at = arrival.at
            command = read_kill(self._server, arrival)
            scoped = command.args.get("scope") is not None
            if scoped and self._aside >= ASIDE:
                raise CommandError(
                    "rate_limited", f"{ASIDE} kills of a narrower scope are in work: try again soon"
                )
        except CommandError as error:
            self._answers.refuse(KILL, arrival, error, id_of(arrival.payload))
        else:
            done = asyncio.get_running_loop().create_future()
            # It returns with the gate closed; the answer comes later.
            self._server.begin(command, partial(self._answered, arrival, scoped, done))
            self._begun.add(done)
            self._aside += scoped
        self._sweeper.after_live(KILL, own=own, retain=arrival.retain)

    async def serve(self, wire: Wire) -> None:
        """Subscribe, and answer until the connection is lost."""
        wire.on_subscribed = self._up
        self._sweeper.blind = wire.protocol != "5"
        self._ledger.renew("kill", monotonic())
        try:
            await wire.listen(self._topics.kills)
            async with asyncio.TaskGroup() as group:
                group.create_task(wire.lost(), name="mqtt-kill-lost")
                group.create_task(self._answers.write(wire), name="mqtt-kill-answers")
        finally:
            self._ledger.up = False
            self._on_up(False)

    async def finish(self, wire: Wire | None, seconds: float) -> None:
        """Let kills in work come to their answer and the answers leave, within a time limit."""
        self._sweeper.flush()
        try:
            async with asyncio.timeout(seconds):
                if self._begun:
                    await asyncio.wait(set(self._begun))
                if wire is not None:
                    await self._answers.written(wire)
        except TimeoutError:
            pass  # the kill goes on without its answer: it is in the engine's hands

    def _up(self) -> None:
        self._ledger.up = True
        self._on_up(True)

    def _answered(self, arrival: Arrival, scoped: bool, done: asyncio.Future[None], response: Response) -> None:
        self._aside -= scoped
        self._begun.discard(done)
        done.set_result(None)
        self._answers.give(response, arrival)
        self._answers.hasten()


def read_kill(server: Server, arrival: Arrival) -> Command:
    """Read a kill command; raise CommandError."""
    return read_command(KILL, arrival.payload, server.specs, source="mqtt", right="admin")


def refuse_stored(answers: Answers, name: str, arrival: Arrival) -> None:
    """Answer a stored message with `retained`."""
    answers.refuse_with(
        name,
        arrival,
        "retained",
        f"{name} was stored by the broker and is not carried out: publish it without retain",
    )

"""Commands from MQTT: read at once, worked on side by side, every one answered (contract 4).

A message is taken by `on_message` without waiting. Each command name has a lane of its own with a few places, so
that a slow `scan` or a flood of one command stands in nobody else's way, and a limit, beyond which it is answered
`rate_limited`. Kills pass all of that by.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import aiomqtt

from sigma9_core.clock import monotonic
from sigma9_core.commands import Command, Response
from sigma9_core.contracts import Server
from sigma9_core.errors import CommandError
from sigma9_core.payload import read_command
from sigma9_integrations.mqtt.answers import Answers, id_of
from sigma9_integrations.mqtt.connection import Arrival, Wire
from sigma9_integrations.mqtt.kill import KillLedger, read_kill, refuse_stored
from sigma9_integrations.mqtt.survey import Findings
from sigma9_integrations.mqtt.sweep import Sweeper
from sigma9_integrations.mqtt.topics import KILL, Topics

_LOG = logging.getLogger("sigma9.mqtt")

RATE: Final = 100.0
"""Commands of one name a second that are taken in the long run."""
BURST: Final = 200.0
"""Commands of one name that are taken at once."""
PLACES: Final = 16
"""Commands of one name that are worked on at once."""
ONE_BY_ONE: Final = frozenset(("events",))
"""Commands whose answers are long: to write several in a row would hold up everything else on the loop."""
WAITING: Final = 500
"""Commands that wait for a place, all names together."""
KILLS_WATCHED: Final = 5000
"""Kills of a flood that this connection looks after while the kill's own connection is up."""
KILL_GRACE: Final = 0.25
"""Seconds that the kill's own connection has before this one carries a kill out in its place."""
GIVE_WAY: Final = 0.004
"""Seconds for which commands are not read while the kill's own connection answers a kill."""
GIVE_WAY_EVERY: Final = 0.01
"""Seconds between two such pauses at least: a flood of kills must not stop the commands."""
STORED_GRACE: Final = 1.0
"""The same for a stored kill while the kill's own connection is not up yet: it will get it as well."""


@dataclass(slots=True)
class _Lane:
    """One command name: what may still come, what waits, what runs."""

    tokens: float = BURST
    at: float = field(default_factory=monotonic)
    waiting: deque[tuple[Command, Arrival]] = field(default_factory=deque)
    running: int = 0
    places: int = PLACES

    def admit(self) -> bool:
        """Take one token, unless none is left."""
        now = monotonic()
        self.tokens = min(BURST, self.tokens + (now - self.at) * RATE)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class CommandDoor:
    """The session of the command connection, on the outer loop."""

    will: aiomqtt.Will | None = None

    def __init__(self, server: Server, topics: Topics, ledger: KillLedger, on_up: Callable[[bool], None]) -> None:
        self._server = server
        self._topics = topics
        self._ledger = ledger
        self._on_up = on_up
        self._answers = Answers(topics)
        self._sweeper = Sweeper(self._answers, topics)
        self._lanes: dict[str, _Lane] = {}
        self._unknown = _Lane()
        self._waiting = 0
        self._work: set[asyncio.Task[None]] = set()
        """Kills that are looked after."""
        self._begun: dict[int, tuple[Command, Arrival]] = {}
        """Commands that are not answered yet."""
        self._numbers = itertools.count()
        self._idle = asyncio.Event()
        self._stopping = False
        self._gave_way = 0.0

    def on_message(self, arrival: Arrival) -> None:
        """Take a message: answer what can't be carried out, and start or queue what can."""
        address = self._topics.address(arrival.topic)
        if address is None or not arrival.payload:
            return
        name = address.name
        if name == KILL:
            self._take_kill(arrival, own=address.own)
            return
        if arrival.stored:
            refuse_stored(self._answers, name, arrival)
            if address.own:
                self._sweeper.clear(name)
            return
        self._take(name, arrival)
        self._sweeper.after_live(name, own=address.own, retain=arrival.retain)

    def expect(self, findings: Findings) -> None:
        """Learn which commands the broker has stored: they never act, and they go."""
        for name in sorted(findings.commands):
            self._sweeper.clear(name)

    async def serve(self, wire: Wire) -> None:
        """Subscribe, and answer until the connection is lost."""
        wire.gives_way = self._give_way
        self._sweeper.blind = wire.protocol != "5"
        self._ledger.renew("command", monotonic() - STORED_GRACE)  # a kill may still be looked after
        try:
            await wire.listen(self._topics.commands)
            self._on_up(True)
            async with asyncio.TaskGroup() as group:
                group.create_task(wire.lost(), name="mqtt-commands-lost")
                group.create_task(self._answers.write(wire), name="mqtt-commands-answers")
        finally:
            self._on_up(False)

    async def finish(self, wire: Wire | None, seconds: float) -> None:
        """Take no more commands, let those in work come to their answer, answer the rest; within a time limit."""
        self._stopping = True
        self._sweeper.flush()
        for name, lane in self._lanes.items():
            while lane.waiting:
                command, arrival = lane.waiting.popleft()
                self._refuse_stopping(name, arrival, command.id)
        try:
            async with asyncio.timeout(seconds):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds * 0.6):
                        await self._ended()
                self._give_up()
                await asyncio.gather(*self._work, return_exceptions=True)
                if wire is not None:
                    await self._answers.written(wire)
        except TimeoutError:
            pass  # a broker that takes nothing any more gets no answers either

    async def _ended(self) -> None:
        """Wait until everything that was begun is answered."""
        if self._work:
            await asyncio.wait(set(self._work))
        while self._begun:
            self._idle.clear()
            await self._idle.wait()

    def _give_up(self) -> None:
        """Answer what is still in work, here and now; it goes on without this door."""
        for task in tuple(self._work):
            task.cancel()
        begun, self._begun = self._begun, {}
        for command, arrival in begun.values():
            error = CommandError("internal", "the server is stopping: whether this was done is not known")
            self._answers.refuse(command.name, arrival, error, command.id)

    def _give_way(self) -> float:
        """Tell for how long nothing is to be read: a kill that is being answered shares this interpreter."""
        now = monotonic()
        if now - self._ledger.heard_at >= GIVE_WAY or now - self._gave_way < GIVE_WAY_EVERY:
            return 0.0
        self._gave_way = now
        return GIVE_WAY

    # --- ordinary commands ------------------------------------------------------------------------------------

    def _take(self, name: str, arrival: Arrival) -> None:
        lane = self._lane(name)
        admitted = lane.admit()
        if not admitted and name != "control":
            self._answers.refuse_with(
                name, arrival, "rate_limited", f"more than {RATE:g} {name} commands a second: send fewer"
            )
            return
        try:
            command = read_command(name, arrival.payload, self._server.specs, source="mqtt", right="admin")
            is_kill = name == "control" and command.args.get("command") == "kill"
            if not admitted and not is_kill:
                raise CommandError("rate_limited", f"more than {RATE:g} {name} commands a second: send fewer")
            if arrival.stale and not is_kill:
                raise CommandError(
                    "expired",
                    "the server, or the network to it, stood still since this was sent: it is not carried out",
                )
            if self._stopping and not is_kill:
                raise CommandError("not_running", "the server is stopping; nothing was done")
            if lane.running >= lane.places and not is_kill and self._waiting >= WAITING:
                raise CommandError("busy", f"{WAITING} commands are waiting already: try again soon")
        except CommandError as error:
            self._answers.refuse(name, arrival, error, id_of(arrival.payload))
            return
        if lane.running < lane.places or is_kill:
            self._start(lane, command, arrival)
        else:
            self._waiting += 1
            lane.waiting.append((command, arrival))

    def _lane(self, name: str) -> _Lane:
        if name not in self._server.specs:
            return self._unknown
        if name not in self._lanes:
            self._lanes[name] = _Lane(places=1 if name in ONE_BY_ONE else PLACES)
        return self._lanes[name]

    def _start(self, lane: _Lane, command: Command, arrival: Arrival) -> None:
        lane.running += 1
        number = next(self._numbers)
        self._begun[number] = command, arrival
        self._server.begin(command, partial(self._answered, lane, number))

    def _answered(self, lane: _Lane, number: int, response: Response) -> None:
        lane.running -= 1
        self._next(lane)
        begun = self._begun.pop(number, None)
        if begun is None:
            return  # this door is closed, and has said that nobody knows
        self._answers.give(response, begun[1])
        self._answers.hasten()
        if not self._begun:
            self._idle.set()

    def _next(self, lane: _Lane) -> None:
        while lane.waiting and lane.running < lane.places:
            self._waiting -= 1
            self._start(lane, *lane.waiting.popleft())

    # --- kills ------------------------------------------------------------------------------------------------

    def _take_kill(self, arrival: Arrival, *, own: bool) -> None:
        """Leave a kill to its own connection, and carry it out where that one has not taken it."""
        if self._ledger.up:
            if len(self._work) > KILLS_WATCHED:
                return  # its own connection has it; this one would only look whether it does
            pause = KILL_GRACE
        else:
            pause = STORED_GRACE if arrival.stored else 0.0
        self._spawn(self._kill(arrival, own, pause), KILL)

    async def _kill(self, arrival: Arrival, own: bool, pause: float) -> None:
        await asyncio.sleep(pause)
        if not self._ledger.take("command", arrival):
            return
        if arrival.stored:
            refuse_stored(self._answers, KILL, arrival)
            if own:
                self._sweeper.clear(KILL)
            return
        try:
            command = read_kill(self._server, arrival)
        except CommandError as error:
            self._answers.refuse(KILL, arrival, error, id_of(arrival.payload))
        else:
            self._answers.give(await self._server.doors.call(self._server.kill(command)), arrival)
            self._answers.hasten()
        self._sweeper.after_live(KILL, own=own, retain=arrival.retain)

    # --- owned work -------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"mqtt-command-{name}")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _refuse_stopping(self, name: str, arrival: Arrival, command_id: str | None) -> None:
        error = CommandError("not_running", "the server is stopping; nothing was done")
        self._answers.refuse(name, arrival, error, command_id)

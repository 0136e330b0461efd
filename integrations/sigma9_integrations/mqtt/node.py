"""The three connections of a node: one that tells, one that takes commands, and the kill's own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

import aiomqtt

from sigma9_core.contracts import Server
from sigma9_core.errors import ConfigError, Fault
from sigma9_integrations.homeassistant.discovery import Discovery
from sigma9_integrations.mqtt.commands import CommandDoor
from sigma9_integrations.mqtt.connection import PAUSE_LEAST, PAUSE_MOST, Endpoint, Link, protocols
from sigma9_integrations.mqtt.kill import KillDoor, KillLedger
from sigma9_integrations.mqtt.outbox import Outbox
from sigma9_integrations.mqtt.presence import Part, Presence
from sigma9_integrations.mqtt.publisher import Publisher
from sigma9_integrations.mqtt.survey import Findings, Survey
from sigma9_integrations.mqtt.topics import Topics
from sigma9_integrations.tasks import end

_LOG = logging.getLogger("sigma9.mqtt")

START_SECONDS: Final = 3.0
"""How long a start waits for `online`; afterwards the node goes on trying."""
STOP_SECONDS: Final = 1.2
"""How long a stop waits for the broker to take the last words."""
LANE_SECONDS: Final = 1.0
"""How long a stop waits for the doors' lane, which may be busy with a kill."""


MEMORY: Final = "homeassistant.json"
"""What Home Assistant was told of the node, in the data folder."""


class Node:
    """Connects one server to one broker; it belongs to the outer loop, its kill connection to the doors' lane."""

    def __init__(
        self, server: Server, endpoint: Callable[[], Endpoint], outbox: Outbox, *, look_first: bool
    ) -> None:
        settings = server.settings
        self._server = server
        self._endpoint = endpoint
        self._look_first = look_first
        self._topics = Topics(settings.mqtt.base_topic, settings.node)
        self._presence = Presence(self._report)
        self._settled = asyncio.Event()
        """Set once the node is online, or once a connection could not be made."""
        self._loop = asyncio.get_running_loop()
        ledger = KillLedger()
        self._discovery = Discovery(
            settings.home_assistant,
            self._topics,
            server.entities,
            server.board,
            lambda: server.url,
            commands=server.specs,
            memory=None if outbox.folder is None else outbox.folder / MEMORY,
        )
        self._publisher = Publisher(
            server, self._topics, outbox, self._presence, self._discovery, on_online=self._settled.set
        )
        self._commands = CommandDoor(server, self._topics, ledger, lambda up: self._presence.set("commands", up))
        self._kill = KillDoor(server, self._topics, ledger, lambda up: self._post_presence("kill", up))
        mark = _mark(self._topics.prefix, endpoint())
        protocol = settings.mqtt.protocol

        def link(purpose: str, session: Publisher | CommandDoor | KillDoor) -> Link:
            identifier = f"sigma9-{settings.node}-{mark}-{purpose}"
            return Link(purpose, session, endpoint, identifier, protocol, on_failure=self._note_failure)

        self._publisher_link = link("events", self._publisher)
        self._command_link = link("commands", self._commands)
        self._kill_link = link("kill", self._kill)
        self._tasks: list[asyncio.Task[Any]] = []
        self._kill_task: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Connect and return once the node is online, or once it is clear that it will take longer.

        Raise ConfigError where another server is online as the same node.
        """
        self._publisher.start()
        await asyncio.to_thread(self._discovery.recall)
        found = await self._look()
        if found is None:  # the broker can't be reached now: it is looked at before anything is told
            self._publisher.note_outage()
            self._settled.set()
            self._tasks.append(asyncio.create_task(self._look_and_connect(), name="mqtt-look"))
        else:
            await self._connect(found)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._settled.wait()

    async def _connect(self, found: Findings) -> None:
        self._publisher.expect(found)
        self._commands.expect(found)
        for name, link in (("publisher", self._publisher_link), ("commands", self._command_link)):
            self._tasks.append(asyncio.create_task(link.run(), name=f"mqtt-{name}"))
        await self._server.doors.call(self._start_kill())

    async def _look_and_connect(self) -> None:
        """Look until the broker answers and nobody else is this node, then connect."""
        pause = PAUSE_LEAST
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_MOST)
            try:
                found = await self._look()
            except ConfigError as error:
                _LOG.critical("not connected: %s", error)
                continue
            if found is not None:
                await self._connect(found)
                return

    async def stop(self) -> None:
        """Say goodbye and disconnect, within a few seconds even where the broker answers nothing."""
        if not self._tasks:
            self._publisher.stop()
            return
        commands, publisher = self._command_link.wire, self._publisher_link.wire
        await self._commands.finish(commands, STOP_SECONDS / 2)
        await self._publisher.finish(publisher, STOP_SECONDS / 2)
        ends: list[Coroutine[Any, Any, object]] = [end(task) for task in self._tasks]
        ends.append(self._within_lane_time(self._stop_kill()))
        await asyncio.gather(*ends)
        self._tasks.clear()
        self._publisher.stop()

    def hurry(self) -> None:
        """Try to connect now: the broker is back."""
        self._publisher_link.hurry()
        self._command_link.hurry()
        self._server.doors.post(self._kill_link.hurry)

    async def _look(self) -> Findings | None:
        """Look at an external broker before connecting; None where it can't be reached now."""
        if not self._look_first:
            return Findings(frozenset(), {}, occupied=False)
        offered = protocols(self._server.settings.mqtt.protocol)
        survey = Survey(self._endpoint(), self._topics, offered, self._discovery.filters)
        try:
            findings = await survey.look()
        except (aiomqtt.MqttError, OSError) as error:
            if not self._settled.is_set():
                _LOG.warning("the MQTT broker can't be reached: %s: %s; trying again", self._endpoint(), error)
            return None
        if findings.occupied:
            message = (
                f"another server is online as {self._topics.prefix} on {self._endpoint()}: "
                "give this one another node name, or stop the other"
            )
            raise ConfigError([Fault("server_config.yaml", "node", message)])
        return findings

    async def _start_kill(self) -> None:
        self._kill_task = asyncio.get_running_loop().create_task(self._kill_link.run(), name="mqtt-kill")

    async def _stop_kill(self) -> None:
        await self._kill.finish(self._kill_link.wire, STOP_SECONDS / 4)
        if self._kill_task is not None:
            await end(self._kill_task)

    async def _within_lane_time(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(LANE_SECONDS):
                await self._server.doors.call(work)
        except TimeoutError:
            _LOG.warning("the doors' lane was busy: the kill's MQTT connection ends with it")

    def _post_presence(self, part: Part, up: bool) -> None:
        with contextlib.suppress(RuntimeError):  # the outer loop has ended before the doors' lane
            self._loop.call_soon_threadsafe(self._presence.set, part, up)

    def _note_failure(self, _: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._failed)

    def _failed(self) -> None:
        self._publisher.note_outage()
        self._settled.set()

    def _report(self, complete: bool) -> None:
        self._server.report_mqtt("connected" if complete else "disconnected")


def _mark(prefix: str, endpoint: Endpoint) -> str:
    """Give what the client ids of a node have in common, the same after every start.

    Who connects with another one's client id throws it out, whatever his own rights are: so it can be worked out
    only by who knows the login. A new connection of the node still takes the place of a dead one.
    """
    secret = endpoint.password or ""
    if not secret and endpoint.tls.key is not None:
        with contextlib.suppress(OSError):
            secret = endpoint.tls.key.read_text(encoding="ascii", errors="replace")
    return hashlib.sha256(f"{prefix}\0{secret}".encode()).hexdigest()[:12]

"""What the node tells: retained state, events, and whether it is there; the session of the first connection.

Durable events leave in the order of their numbers, in a window of unacknowledged ones. After a lost connection
they go on behind the last acknowledged one, read from the journal and marked late; none is lost, and what is sent
twice is known by its `seq`. Market data and log lines are conflated and dropped by the bus's mailbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import aiomqtt

from sigma9_core.bus import Interest, Subscription
from sigma9_core.contracts import EventPage, Server
from sigma9_core.errors import CommandError, JournalError
from sigma9_core.events import LogLevel, mark_late
from sigma9_integrations.homeassistant.discovery import Discovery, Letter
from sigma9_integrations.mqtt.connection import FAILURE, Arrival, Refused, Wire, is_topic
from sigma9_integrations.mqtt.outbox import Mark, Outbox
from sigma9_integrations.mqtt.presence import Presence
from sigma9_integrations.mqtt.state import StateQueue, Unwritable
from sigma9_integrations.mqtt.survey import Findings
from sigma9_integrations.mqtt.topics import QoS, Topics

_LOG = logging.getLogger("sigma9.mqtt")

MAILBOX: Final = 5000
"""Durable events that wait in memory; beyond that they are read from the journal."""
PAGE: Final = 200
"""Events read from the journal at once."""
YOUNG: Final = 100
"""A journal with no more events is published whole where nothing is known of an earlier run."""
SAVE_SECONDS: Final = 1.0
"""How often the outbox file is written at most."""
JOURNAL_PAUSE: Final = 1.0
"""Seconds before a journal that could not be read is asked again."""
OFFLINE_PATIENCE: Final = 1.0
"""Seconds that the other connections have to come up before the node says `offline`."""


class Publisher:
    """The session of the connection that publishes."""

    def __init__(
        self,
        server: Server,
        topics: Topics,
        outbox: Outbox,
        presence: Presence,
        discovery: Discovery,
        *,
        on_online: Callable[[], None],
    ) -> None:
        self.will: aiomqtt.Will | None = aiomqtt.Will(topics.availability, "offline", qos=1, retain=True)
        self._server = server
        self._topics = topics
        self._outbox = outbox
        self._presence = presence
        self._discovery = discovery
        self._birth = asyncio.Event()
        """Home Assistant has come up: it is to be told everything again."""
        self._on_online = on_online
        self._state = StateQueue(server.board)
        self._mailbox: Subscription | None = None
        self._begin = 0
        """The newest durable event at the start."""
        self._journal_id: str | None = None
        self._known = False
        """Whether `_acked` belongs to the journal that there is."""
        self._sent = self._acked = self._saved = 0
        """Numbers of durable events: handed to the connection, acknowledged, and written to the outbox file."""
        self._flying: deque[list[int]] = deque()
        """Sent and not acknowledged, in order: [seq, 1 if acknowledged]."""
        self._late_until = 0
        """Events up to this number are delivered after an outage."""
        self._outage = False
        self._refused: set[str] = set()

    def start(self) -> None:
        """Begin to gather what there is to tell."""
        bus = self._server.bus
        level: LogLevel = "debug" if self._server.settings.server.debug else "info"
        self._mailbox = bus.subscribe("mqtt", Interest(level=level), durable_room=MAILBOX)
        self._begin = self._sent = self._acked = self._saved = bus.last_seq
        self._state.start()

    def expect(self, findings: Findings) -> None:
        """Learn what the broker holds of an earlier run: what there is no more is cleared."""
        self._state.published.update(findings.states)
        self._discovery.expect(findings.discovery)

    def stop(self) -> None:
        """Leave bus and board, and write down how far the broker is."""
        self._state.stop()
        if self._mailbox is not None:
            self._mailbox.close()
        self._save()

    def note_outage(self, _: str = "") -> None:
        """Learn that a connection was lost or could not be made."""
        self._outage = True

    def on_message(self, arrival: Arrival) -> None:
        """Hear that Home Assistant has come up; what a broker had stored of it says nothing new."""
        if not arrival.stored and self._discovery.hear(arrival.topic, arrival.payload):
            self._birth.set()

    async def serve(self, wire: Wire) -> None:
        """Publish all retained state, then say that the node is there, and tell what happens."""
        self._flying.clear()
        self._sent = self._acked
        if self._outage:
            self._late_until = self._server.bus.last_seq
        self._outage = True  # from here on, unless it is stopped, the next connection follows an outage
        await self._hear_birth(wire)
        self._birth.clear()
        await self._post_letters(wire, self._discovery.announce())
        self._state.all_again(removals=True)
        while not self._state.idle:
            await self._post_state(wire)
        self._presence.set("state", True)
        try:
            async with asyncio.TaskGroup() as group:
                for name, work in (
                    ("lost", wire.lost()),
                    ("availability", self._tell_availability(wire)),
                    ("state", self._tell_state(wire)),
                    ("births", self._tell_births(wire)),
                    ("events", self._tell_events(wire)),
                    ("outbox", self._keep_outbox()),
                ):
                    group.create_task(work, name=f"mqtt-publisher-{name}")
        finally:
            self._presence.set("state", False)

    async def finish(self, wire: Wire | None, seconds: float) -> None:
        """Let the newest events leave and say `offline`, within a time limit."""
        if wire is None:
            return
        try:
            async with asyncio.timeout(seconds):
                try:
                    async with asyncio.timeout(seconds * 0.6):
                        while self._acked < self._server.bus.last_seq or not self._state.idle:  # noqa: ASYNC110 - rare
                            await asyncio.sleep(0.005)
                except TimeoutError:
                    _LOG.info(
                        "not every event reached the MQTT broker before the stop: the next start sends the rest"
                    )
                told = asyncio.Event()
                await wire.room()
                self._post(
                    wire, self._topics.availability, "offline", qos=1, retain=True, on_ack=lambda _: told.set()
                )
                await told.wait()
        except (TimeoutError, aiomqtt.MqttError):
            pass  # a broker that takes nothing any more publishes the last will by itself

    # --- availability and state -------------------------------------------------------------------------------

    async def _tell_availability(self, wire: Wire) -> None:
        told: bool | None = None
        while True:
            self._presence.changed.clear()
            if told is None and not self._presence.complete:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(OFFLINE_PATIENCE):
                        await self._presence.changed.wait()
            complete = self._presence.complete
            if complete != told:
                told = complete
                await wire.room()
                self._post(
                    wire,
                    self._topics.availability,
                    "online" if complete else "offline",
                    qos=1,
                    retain=True,
                    on_ack=(lambda _: self._on_online()) if complete else None,
                )
            await self._presence.changed.wait()

    async def _tell_state(self, wire: Wire) -> None:
        while True:
            await self._post_state(wire)

    async def _post_state(self, wire: Wire) -> None:
        await wire.room()
        try:
            name, payload = await self._state.next()
        except Unwritable as error:
            _LOG.exception("a state topic is not published")
            if error.name not in self._state.published:
                return
            name, payload = error.name, ""
        topic = self._topics.state(name)
        if not self._fits(wire, topic, payload):
            payload = ""  # it can't be told; what stood there before would be a lie, and goes
        wait = self._discovery.patience(name)
        if not wait:
            await self._post_letters(wire, self._discovery.before(name))
            wait = 0.0 if payload else self._discovery.patience(name)  # its entity is only leaving
        if wait:
            self._state.hold(name, wait)
            return
        await wire.room()
        self._post(wire, topic, payload, qos=self._topics.state_qos(name), retain=True)

    # --- Home Assistant ---------------------------------------------------------------------------------------

    async def _hear_birth(self, wire: Wire) -> None:
        """Ask to hear when Home Assistant comes up; a broker that refuses it costs only that."""
        if not self._discovery.enabled:
            return
        try:
            await wire.listen((self._discovery.birth,))
        except Refused as error:
            self._complain(self._discovery.birth, f"not subscribed: {error}")

    async def _tell_births(self, wire: Wire) -> None:
        while True:
            await self._birth.wait()
            self._birth.clear()
            _LOG.info("Home Assistant has come up: it is told everything again")
            await self._post_letters(wire, self._discovery.revive())
            await self._post_letters(wire, self._discovery.announce())
            self._state.all_again(removals=False)

    async def _post_letters(self, wire: Wire, letters: Sequence[Letter]) -> None:
        for letter in letters:
            await wire.room()
            self._post(wire, letter.topic, letter.payload, qos=1, retain=letter.retain)
            if letter.pause:
                await asyncio.sleep(letter.pause)

    # --- events -----------------------------------------------------------------------------------------------

    async def _tell_events(self, wire: Wire) -> None:
        if self._mailbox is None:
            raise RuntimeError("the publisher is not started: call start() first")
        await self._find_place()
        while True:
            await self._catch_up(wire, self._server.bus.last_seq)
            await self._tell_live(wire, self._mailbox)

    async def _tell_live(self, wire: Wire, mailbox: Subscription) -> None:
        """Pass on what comes, until events are missing that the journal must give."""
        while True:
            loose: list[tuple[str, str]] = []
            for event in await mailbox.take():
                if event.seq is None:
                    loose.append((self._topics.event(event.type, event.data), event.raw))
                    continue
                if event.seq > self._sent + 1:
                    await self._catch_up(wire, event.seq - 1)
                if event.seq > self._sent:
                    topic = self._topics.event(event.type, event.data)
                    await self._post_durable(wire, event.seq, topic, event.raw)
            if loose:
                await wire.room()
                wire.post_all([(topic, raw) for topic, raw in loose if self._fits(wire, topic, raw)])
            if mailbox.overflowed:
                _LOG.info("the MQTT broker is slower than the events: the rest is read from the journal")
                mailbox.resume()
                self._late_until = self._server.bus.last_seq
                return

    async def _catch_up(self, wire: Wire, until: int) -> None:
        """Send the events after the last one sent, up to a number, from the journal."""
        while self._sent < until:
            page = await self._read(self._sent, PAGE)
            if page is None:
                continue  # the place has moved to what there still is
            if not page.events:
                return
            if page.first > self._sent + 1:
                _LOG.warning("the journal has no events before %d any more: MQTT goes on there", page.first)
            for raw in page.events:
                body = json.loads(raw)
                seq = int(body["seq"])
                if seq > self._sent:
                    await self._post_durable(wire, seq, self._topics.event(body["type"], body["data"]), raw)

    async def _post_durable(self, wire: Wire, seq: int, topic: str, raw: str) -> None:
        payload = mark_late(raw) if seq <= self._late_until else raw
        await wire.room()
        flight = [seq, 0]
        self._flying.append(flight)
        self._sent = seq

        def acknowledged(_: int) -> None:
            flight[1] = 1
            while self._flying and self._flying[0][1]:
                self._acked = self._flying.popleft()[0]

        if not self._post(wire, topic, payload, qos=1, on_ack=acknowledged):
            acknowledged(0)

    # --- the journal and the outbox file ----------------------------------------------------------------------

    async def _find_place(self) -> None:
        """Find the place in the journal to go on from, once in the life of the process."""
        if self._known:
            return
        mark = self._outbox.load()
        page = await self._read(mark.seq if mark is not None else max(0, self._begin - 1), 1)
        self._known = True
        if mark is not None and page is not None and page.journal_id == mark.journal_id and mark.seq <= page.last:
            self._sent = self._acked = self._saved = mark.seq
            self._late_until = max(self._late_until, self._begin)
        elif mark is None or page is not None:
            self._sent = self._acked = 0 if self._begin <= YOUNG else self._begin

    async def _read(self, after: int, limit: int) -> EventPage | None:
        """Read from the journal; None where it has no such events any more."""
        while True:
            try:
                page = await self._server.events(after, limit)
            except JournalError as error:
                _LOG.warning("the journal can't be read (%s): MQTT waits with the events", error)
                await asyncio.sleep(JOURNAL_PAUSE)
            except CommandError as error:
                first = error.details.get("first")
                newest = self._server.bus.last_seq
                start = first - 1 if isinstance(first, int) and after < first - 1 <= newest else newest
                _LOG.warning(
                    "events %d to %d are not in the journal any more: MQTT goes on behind them", after + 1, start
                )
                self._sent = self._acked = start
                return None
            else:
                self._journal_id = page.journal_id
                return page

    async def _keep_outbox(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            if self._acked != self._saved or self._discovery.has_news:
                await asyncio.to_thread(self._save)

    def _save(self) -> None:
        self._discovery.save()
        if self._known and self._journal_id is not None and self._acked != self._saved:
            self._saved = self._acked
            self._outbox.save(Mark(self._journal_id, self._saved))

    # --- one message ------------------------------------------------------------------------------------------

    def _post(
        self,
        wire: Wire,
        topic: str,
        payload: str,
        *,
        qos: QoS,
        retain: bool = False,
        on_ack: Callable[[int], None] | None = None,
    ) -> bool:
        """Post a message; tell whether the broker is to acknowledge it. A refusal is logged once a topic."""
        if not self._fits(wire, topic, payload):
            return False

        def acknowledged(code: int) -> None:
            if code >= FAILURE:
                self._complain(topic, f"the broker refuses it with code {code}: check the rights of mqtt.username")
            if on_ack is not None:
                on_ack(code)

        wire.post(topic, payload, qos=qos, retain=retain, on_ack=acknowledged if qos else None)
        return True

    def _fits(self, wire: Wire, topic: str, payload: str) -> bool:
        """Tell whether a message can be published, and say why it can't."""
        if not is_topic(topic):
            self._complain(repr(topic), "no MQTT topic can be called so")
            return False
        if not wire.fits(topic, payload):
            size = len(payload.encode())
            self._complain(topic, f"its {size} bytes are more than the broker takes ({wire.largest})")
            return False
        return True

    def _complain(self, topic: str, reason: str) -> None:
        if topic not in self._refused and len(self._refused) < 1000:
            self._refused.add(topic)
            _LOG.error("%s is not published: %s", topic, reason)

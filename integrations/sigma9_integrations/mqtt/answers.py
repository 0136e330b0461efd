"""Answers to commands: written once, to the command's response topic and to where the request asked for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from dataclasses import dataclass
from typing import Final, NoReturn

import aiomqtt

from sigma9_core.clock import monotonic, wall_now
from sigma9_core.commands import Command, Response
from sigma9_core.errors import CommandError, ErrorCode
from sigma9_integrations.mqtt.connection import Arrival, Wire
from sigma9_integrations.mqtt.topics import Topics

_LOG = logging.getLogger("sigma9.mqtt")

ROOM: Final = 5000
"""Messages that wait to be written; beyond that the oldest are dropped, and the log says so: of a flood's refusals
first, and only of those while other answers have room."""
FLOOD: Final = frozenset(("rate_limited", "busy"))
"""Refusals for being one too many: they wait behind all other answers."""
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
LONGEST_TOPIC: Final = 65535
"""Bytes of a topic at most: to publish a longer one would end the connection."""


@dataclass(frozen=True, slots=True)
class _Letter:
    topic: str
    payload: str
    correlation: bytes | None = None
    retain: bool = False


class Answers:
    """A bounded outbox of answers; what was handed to a connection once is never sent again.

    An answer that finds no connection waits for the next one. It belongs to the loop of its connection.
    """

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._letters: deque[_Letter] = deque()
        self._refusals: deque[_Letter] = deque()
        """Those of a flood: it must cost nobody else an answer."""
        self._wake = asyncio.Event()
        self._wire: Wire | None = None
        """The connection that takes them."""
        self._dropped = 0

    def give(self, response: Response, arrival: Arrival) -> None:
        """Answer a command: on `{p}/response/{name}`, and below `{base}/reply/` where it named a topic there."""
        try:
            text = _COMPACT.encode(response.body())
        except (TypeError, ValueError):
            _LOG.exception("the result of %s can't be written as JSON", response.command)
            error = CommandError("internal", f"the result of {response.command} can't be written as JSON")
            command = Command(response.command, {}, response.source, id=response.id)
            text = json.dumps(
                Response.failed(command, error, ts=response.ts, duration_ms=response.duration_ms).body()
            )
        row = self._letters if response.error is None or response.error["code"] not in FLOOD else self._refusals
        if arrival.reply_to is not None and self._topics.may_reply(arrival.reply_to):
            self._put(_Letter(arrival.reply_to, text, arrival.correlation), row)
        topic = self._topics.response(response.command)
        if len(topic.encode()) <= LONGEST_TOPIC:
            self._put(_Letter(topic, text), row)
        else:  # its command's topic was the longest that there is
            _LOG.warning("a command whose name has %d characters has no answer", len(response.command))

    def refuse(self, name: str, arrival: Arrival, error: CommandError, command_id: str | None = None) -> None:
        """Answer a command that is not carried out."""
        command = Command(name, {}, "mqtt", id=command_id)
        took = (monotonic() - arrival.at) * 1000
        self.give(Response.failed(command, error, ts=wall_now(), duration_ms=took), arrival)

    def refuse_with(self, name: str, arrival: Arrival, code: ErrorCode, message: str) -> None:
        """Answer a command that was not read with a code and one sentence."""
        self.refuse(name, arrival, CommandError(code, message), id_of(arrival.payload))

    def clear(self, topic: str) -> None:
        """Clear a retained topic of this node."""
        self._put(_Letter(topic, "", retain=True), self._letters)

    async def write(self, wire: Wire) -> NoReturn:
        """Send what is there and what comes, until cancelled."""
        self._wire = wire
        try:
            while True:
                while not self._waits:
                    self._wake.clear()
                    await self._wake.wait()
                await wire.room()
                self._post(wire)
        finally:
            self._wire = None

    def hasten(self) -> None:
        """Send at once what the connection takes at once; not to be called by what it calls itself."""
        wire = self._wire
        try:
            while wire is not None and self._waits and wire.has_room:
                self._post(wire)
                wire.write()
        except aiomqtt.MqttError:
            pass  # `write` has heard of it as well

    def _post(self, wire: Wire) -> None:
        row = self._letters or self._refusals
        if not row:
            return  # it was hastened meanwhile
        letter = row.popleft()
        payload = letter.payload
        if not wire.fits(letter.topic, payload, letter.correlation):
            payload = _too_large(payload, wire.largest)
            if not wire.fits(letter.topic, payload, letter.correlation):
                _LOG.error("an answer is not sent: the broker takes no more than %s bytes", wire.largest)
                return
        try:
            wire.post(letter.topic, payload, qos=1, retain=letter.retain, correlation=letter.correlation)
        except aiomqtt.MqttError:  # the connection is gone and has not taken it: it waits for the next one
            row.appendleft(letter)
            raise

    async def written(self, wire: Wire) -> None:
        """Wait until everything is sent and acknowledged; the caller sets the deadline."""
        while self._waits:  # noqa: ASYNC110 - `write` empties it
            await asyncio.sleep(0.005)
        await wire.settled()

    @property
    def _waits(self) -> bool:
        """Tell whether there is anything to send."""
        return bool(self._letters or self._refusals)

    def _put(self, letter: _Letter, row: deque[_Letter]) -> None:
        if len(row) >= ROOM:
            row.popleft()
            if not self._dropped:
                _LOG.warning("more than %d answers wait for the MQTT broker: the oldest are dropped", ROOM)
            self._dropped += 1
        elif max(len(self._letters), len(self._refusals)) < ROOM // 2:
            self._dropped = 0
        row.append(letter)
        self._wake.set()


def _too_large(answer: str, largest: int) -> str:
    """Put an error in the place of an answer that the broker does not take: sent, it would end the connection."""
    body = json.loads(answer)
    size = len(answer.encode())
    done = "it was carried out, but " if body["ok"] else ""
    message = f"{done}the answer has {size} bytes, and the broker takes no more than {largest} bytes: ask for less"
    error = {"code": "internal", "message": message, "details": {"size": size, "limit": largest}}
    _LOG.warning("the answer to %s is not sent: %s", body["command"][:64], message)
    return json.dumps({**body, "ok": False, "result": None, "error": error}, separators=(",", ":"))


def id_of(payload: bytes) -> str | None:
    """Find the id of a command that can't be read, so that its answer can be told from others."""
    if len(payload) > 65536 or not payload.lstrip().startswith(b"{"):
        return None
    try:
        found = json.loads(payload).get("id")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, str) and 1 <= len(found) <= 64 and found.isprintable() else None

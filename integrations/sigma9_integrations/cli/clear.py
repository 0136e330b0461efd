"""`sigma9 discovery clear`: take a node away that will not come back."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import aiomqtt

from sigma9_core.board import Board
from sigma9_core.cli.client import Refused, Unreachable, WrongUsage
from sigma9_core.config import HomeAssistantSettings
from sigma9_integrations.broker.accounts import covers
from sigma9_integrations.cli.reach import Reach, connected, find_broker
from sigma9_integrations.homeassistant.discovery import LET_GO_SECONDS, Discovery
from sigma9_integrations.mqtt.connection import FAILURE, Arrival, Wire
from sigma9_integrations.mqtt.survey import Survey
from sigma9_integrations.mqtt.topics import Topics

QUIET: Final = 0.3
"""Stored messages have all come when none came for this many seconds."""
LOOK: Final = 5.0
"""Seconds that they are waited for at most."""


@dataclass(slots=True)
class Found:
    """What the broker holds of a node."""

    topics: set[str] = field(default_factory=set)
    """Retained topics below the node's own."""
    discovery: dict[str, str] = field(default_factory=dict)
    """Its messages to Home Assistant."""

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        return bool(self.topics or self.discovery)

    def __str__(self) -> str:
        """Count it."""
        topics, messages = _counted(self.topics, "retained topic"), _counted(self.discovery, "message")
        return f"{topics} and {messages} to Home Assistant"


def clear(args: argparse.Namespace) -> int:
    """Look, ask, clear, look again, and say what was removed."""
    reach = find_broker(args, "sigma9")
    topics = Topics(reach.base, reach.node)
    found = asyncio.run(_look(reach, topics))
    if not found:
        print(f"the broker {reach.endpoint} holds nothing of {topics.prefix}")
        return 0
    if not args.yes and not _confirmed(f"{topics.prefix} on {reach.endpoint}: {found}", sorted(found.topics)):
        print("nothing was removed")
        return 1
    left = asyncio.run(_clear(reach, topics, found))
    if left:
        raise Refused(
            f"the broker still holds {left} of {topics.prefix}: does '{reach.endpoint.username}' have the rights "
            "of the server (the role sigma9)? Or does somebody publish them again?"
        )
    print(f"removed of {topics.prefix}: {found}")
    for topic in (*sorted(found.discovery), *sorted(found.topics)):
        print(f"  {topic}")
    return 0


def _confirmed(what: str, topics: Iterable[str]) -> bool:
    if not sys.stdin.isatty():
        raise WrongUsage(f"this would remove {what}: say --yes; nothing was removed")
    print(f"This removes {what}:")
    for topic in topics:
        print(f"  {topic}")
    try:
        return input("Remove them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


async def _look(reach: Reach, topics: Topics) -> Found:
    """List what there is; raise Refused where the node is online."""
    holder = _Holder(reach, topics)
    async with connected(reach, holder.note) as wire:
        try:
            found = await holder.collect(wire)
        except aiomqtt.MqttError as error:
            raise _lost(reach, error) from error
    if holder.online:
        survey = Survey(reach.endpoint, topics, reach.protocols, holder.filters)
        try:
            answers = (await survey.look()).occupied
        except (aiomqtt.MqttError, OSError) as error:
            raise _lost(reach, error) from error
        if answers:
            raise Refused(
                f"{topics.prefix} is online, and nothing was removed: stop that server first, or set "
                "home_assistant.enabled to false there, which takes its device out of Home Assistant"
            )
        print(
            f"sigma9: {topics.prefix} says online, but nobody answers there: it was left behind by a server that "
            "is gone",
            file=sys.stderr,
        )
    return found


async def _clear(reach: Reach, topics: Topics, found: Found) -> Found:
    """Clear, first what Home Assistant shows; give what is still there afterwards."""
    holder = _Holder(reach, topics)
    async with connected(reach, holder.note) as wire:
        refused: set[str] = set()
        try:
            if letters := holder.letters(found.discovery):
                await _empty(wire, letters, refused)
                await asyncio.sleep(LET_GO_SECONDS)
            await _empty(wire, sorted(found.topics), refused)
        except (aiomqtt.MqttError, TimeoutError) as error:
            raise _lost(reach, error) from error
    again = _Holder(reach, topics)
    async with connected(reach, again.note) as wire:
        try:
            left = await again.collect(wire)
        except aiomqtt.MqttError as error:
            raise _lost(reach, error) from error
    if refused and left:
        raise Refused(
            f"the broker does not let '{reach.endpoint.username}' clear {min(refused)}: log in as the "
            "server (the role sigma9)"
        )
    return left


async def _empty(wire: Wire, topics: Iterable[str], refused: set[str]) -> None:
    """Empty topics and wait for the broker; note which it does not let us empty."""
    for topic in topics:
        await wire.room()
        wire.post(
            topic,
            "",
            qos=1,
            retain=True,
            on_ack=lambda code, topic=topic: refused.add(topic) if code >= FAILURE else None,  # type: ignore[misc]
        )
    async with asyncio.timeout(LOOK * 4):
        await wire.settled()


class _Holder:
    """Collects what a broker holds of one node."""

    def __init__(self, reach: Reach, topics: Topics) -> None:
        self.online = False
        self._topics = topics
        self._found = Found()
        self._news = asyncio.Event()
        settings = HomeAssistantSettings(prefix=reach.prefix)
        self._discovery = Discovery(settings, topics, (), Board(), commands=())
        self.filters = self._discovery.filters

    async def collect(self, wire: Wire) -> Found:
        await wire.fetch((f"{self._topics.prefix}/#", *self.filters))
        until = asyncio.get_running_loop().time() + LOOK
        while asyncio.get_running_loop().time() < until:
            self._news.clear()
            try:
                async with asyncio.timeout(QUIET):
                    await self._news.wait()
            except TimeoutError:
                break
        return self._found

    def letters(self, stored: Mapping[str, str]) -> list[str]:
        """Give the topics that take the node out of Home Assistant."""
        self._discovery.expect(stored)
        return [letter.topic for letter in self._discovery.clear()]

    def note(self, arrival: Arrival) -> None:
        if not arrival.retain or not arrival.payload:
            return
        self._news.set()
        text = arrival.payload.decode("utf-8", "replace")
        if arrival.topic.startswith(f"{self._topics.prefix}/"):
            self._found.topics.add(arrival.topic)
            if arrival.topic == self._topics.availability:
                self.online = text == "online"
        elif any(covers(each, arrival.topic) for each in self.filters):
            self._found.discovery[arrival.topic] = text


def _counted(things: Iterable[object], noun: str) -> str:
    number = len(list(things))
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _lost(reach: Reach, error: BaseException) -> Unreachable:
    return Unreachable(f"the connection to {reach.endpoint} failed ({error}): run this again, it removes the rest")

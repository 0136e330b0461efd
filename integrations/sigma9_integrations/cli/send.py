"""`sigma9 mqtt send`: a command over MQTT, and its answer."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import aiomqtt

from sigma9_core.cli.answers import listing, tell
from sigma9_core.cli.client import Refused, Unreachable, WrongUsage
from sigma9_core.cli.output import show_rows
from sigma9_integrations.cli.reach import Reach, connected, find_broker
from sigma9_integrations.mqtt.connection import FAILURE, Arrival, Wire

NOBODY: Final = 0x10
"""The acknowledgement of a message that nobody has subscribed to, on MQTT 5."""
GRACE: Final = 2.0
"""Seconds that a node has which is not online: it may just be coming back."""
LOOK: Final = 0.3
"""Seconds in which the broker tells who is online."""


def send(args: argparse.Namespace) -> int:
    """Send, wait, show; give the exit code."""
    body = read_arguments(args.json)
    name: str = args.name
    if not name or any(sign in name for sign in "/+#\0") or len(name.encode()) > 1000:
        raise WrongUsage(f"'{name}' can't be the name of a command: it is one level of a topic")
    if args.everybody and args.node is not None:
        raise WrongUsage("--all and --node exclude each other")
    body.setdefault("id", f"cli-{secrets.token_hex(8)}")
    reach = find_broker(args, "admin")
    if args.everybody:
        asked = _Everybody(reach, name, body, args.timeout)
        return tell_all(asyncio.run(asked.ask()), asked.silent(), args.format)
    asked_one = _One(reach, name, body, args.timeout)
    return tell(asyncio.run(asked_one.ask()), args.format, listing)


def read_arguments(text: str | None) -> dict[str, Any]:
    """Read the JSON of the command line; raise WrongUsage that names the place of what is wrong."""
    if text is None:
        return {}
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        message = f"the JSON can't be read at {place}: {error.msg}; nothing was sent"
        if not text.lstrip().startswith(("{", "[")):
            message += f" (arguments are written by name, such as '{_SAMPLE}')"
        raise WrongUsage(message) from error
    except RecursionError as error:
        raise WrongUsage("the JSON is nested too deep; nothing was sent") from error
    if not isinstance(found, dict):
        raise WrongUsage(
            f"the JSON is not an object: write the arguments by name, such as '{_SAMPLE}'; nothing was sent"
        )
    return found


_SAMPLE: Final = '{"symbol": "BEME"}'


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise WrongUsage(f"the JSON has '{twice}' twice; nothing was sent")
    return found


def _no_number(text: str) -> NoReturn:
    raise WrongUsage(f"the JSON has {text}, which is no number in JSON; nothing was sent")


def tell_all(answers: Mapping[str, Mapping[str, Any]], silent: Sequence[str], form: str) -> int:
    """Print the answers of several nodes; 1 where one refused, 3 where one that is online did not answer."""
    rows = [{"node": node, **answer, "answer": _sentence(answer)} for node, answer in sorted(answers.items())]
    if form == "json":
        rows = [{key: value for key, value in row.items() if key != "answer"} for row in rows]
    show_rows(rows, ("node", "ok", "answer"), form, empty="no node has answered")
    if silent:
        raise Unreachable(f"no answer from {', '.join(silent)}: whether it was carried out there is not known")
    if not answers:
        raise Unreachable("no node has answered: none is online on this broker")
    return 0 if all(answer.get("ok") is True for answer in answers.values()) else 1


def _sentence(answer: Mapping[str, Any]) -> str:
    if answer.get("ok") is True:
        return listing(answer.get("result") or {})
    return str((answer.get("error") or {}).get("message") or "refused")


class _Asked:
    """One command on its way: what has come back, and who is there."""

    def __init__(self, reach: Reach, name: str, body: Mapping[str, Any], seconds: float) -> None:
        self._reach = reach
        self._name = name
        self._body = body
        self._seconds = seconds
        self._reply = f"{reach.base}/reply/cli-{secrets.token_hex(8)}"
        self._mark = secrets.token_bytes(12)
        self._available: dict[str, str] = {}
        """What each node's availability topic says."""
        self._answers: dict[str, dict[str, Any]] = {}
        """By node."""
        self._acknowledged: int | None = None
        self._news = asyncio.Event()

    def _note(self, arrival: Arrival) -> None:
        parts = arrival.topic.removeprefix(f"{self._reach.base}/").split("/")
        if parts[1:] == ["availability"]:
            self._available[parts[0]] = arrival.payload.decode("utf-8", "replace")
        elif arrival.topic == self._reply and arrival.correlation == self._mark:
            self._take(self._reach.node, arrival.payload, by_id=False)
        elif parts[1:] == ["response", self._name] and not arrival.retain:
            self._take(parts[0], arrival.payload, by_id=True)
        self._news.set()

    def _take(self, node: str, payload: bytes, *, by_id: bool) -> None:
        try:
            answer = json.loads(payload)
        except (ValueError, RecursionError):
            return
        if isinstance(answer, dict) and "ok" in answer and (not by_id or answer.get("id") == self._body["id"]):
            self._answers.setdefault(node, answer)

    def _acknowledge(self, code: int) -> None:
        self._acknowledged = code
        self._news.set()

    async def _news_by(self, wire: Wire, until: float) -> bool:
        """Wait for news; False once the time is up. Raise MqttError where the connection is lost."""
        wait = asyncio.ensure_future(self._news.wait())
        lost = asyncio.ensure_future(wire.lost())
        try:
            left = until - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait((wait, lost), timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if lost in done:
                lost.result()
        finally:
            wait.cancel()
            lost.cancel()
        self._news.clear()
        return bool(done)

    async def _publish(self, wire: Wire, topic: str, *, reply: bool) -> None:
        await wire.room()
        wire.post(
            topic,
            json.dumps(self._body, ensure_ascii=False),
            qos=1,
            correlation=self._mark if reply else None,
            reply_to=self._reply if reply else None,
            on_ack=self._acknowledge,
        )

    def _check_acknowledged(self, topic: str) -> None:
        """Raise Refused where the broker did not let the command through."""
        if self._acknowledged is not None and self._acknowledged >= FAILURE:
            raise Refused(
                f"the broker does not let '{self._reach.endpoint.username}' publish to {topic}: "
                "log in as admin, or as operator for a command with the right trade"
            )

    def _lost(self, error: BaseException) -> Unreachable:
        return Unreachable(
            f"the connection to {self._reach.endpoint} failed ({error}): whether the command was carried out is "
            "not known"
        )


class _One(_Asked):
    """A command to one node."""

    async def ask(self) -> dict[str, Any]:
        """Give the answer; raise Unreachable where none comes, Refused where the broker refuses."""
        node = f"{self._reach.base}/{self._reach.node}"
        topic = f"{node}/command/{self._name}"
        loop = asyncio.get_running_loop()
        async with connected(self._reach, self._note) as wire:
            newer = wire.protocol == "5"
            try:
                # A response topic of one's own takes MQTT 5 at both ends, and the node may speak 3.1.1: an
                # answer is known by its id, too.
                filters = [f"{node}/response/{self._name}", f"{node}/availability"]
                await wire.fetch([self._reply, *filters] if newer else filters)
                began = loop.time()
                await self._publish(wire, topic, reply=newer)
                while not self._answers:
                    self._check_acknowledged(topic)
                    away = self._available.get(self._reach.node) != "online"
                    until = began + (min(self._seconds, GRACE) if away else self._seconds)
                    nobody = self._acknowledged == NOBODY and loop.time() > began + LOOK
                    if nobody or not await self._news_by(
                        wire, min(until, began + LOOK) if self._acknowledged == NOBODY else until
                    ):
                        raise self._no_answer(node)
            except aiomqtt.MqttError as error:
                raise self._lost(error) from error
        return self._answers[self._reach.node]

    def _no_answer(self, node: str) -> Unreachable:
        said = self._available.get(self._reach.node)
        if said != "online":
            how = "has never been on this broker" if said is None else f"is {said}"
            return Unreachable(
                f"no answer: {node} {how} ({self._reach.endpoint}); commands don't wait, it will not act later"
            )
        return Unreachable(
            f"no answer from {node} within {self._seconds:g} s: whether it was carried out is not known"
        )


class _Everybody(_Asked):
    """A command to every node."""

    async def ask(self) -> dict[str, dict[str, Any]]:
        """Give the answers by node, once all that are online have answered, or the time is up."""
        base = self._reach.base
        topic = f"{base}/all/command/{self._name}"
        loop = asyncio.get_running_loop()
        async with connected(self._reach, self._note) as wire:
            try:
                await wire.fetch([f"{base}/+/availability", f"{base}/+/response/{self._name}"])
                began = loop.time()
                await self._publish(wire, topic, reply=False)
                # Who is there is known after a moment; after that the last one that is online is waited for.
                while self.silent() or loop.time() < began + LOOK:
                    self._check_acknowledged(topic)
                    if not await self._news_by(wire, began + (self._seconds if self.silent() else LOOK)):
                        break
            except aiomqtt.MqttError as error:
                raise self._lost(error) from error
        return self._answers

    def silent(self) -> list[str]:
        """List the nodes that are online and have not answered."""
        return sorted(
            node for node, said in self._available.items() if said == "online" and node not in self._answers
        )

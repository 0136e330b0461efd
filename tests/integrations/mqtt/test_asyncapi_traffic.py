"""What really passes over the broker, against the AsyncAPI document: no topic or payload that it doesn't know."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft7Validator, FormatChecker

from sigma9_core.clock import wall_now
from sigma9_core.config import PluginSettings
from sigma9_core.events import Event, LogLine, encode
from sigma9_core.testing.engine_room import EngineRoom
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.mqtt.testing import Client, Heard, Mosquitto, service_for, settings_for
from sigma9_integrations.web.asyncapi import asyncapi
from sigma9_integrations.web.listener import Address

pytestmark = pytest.mark.mosquitto

MALFORMED = ('{"id": "bad", "quantity": }', '{"id": "wrong", "symbol": "A B", "side": "hold"}', "maybe")
FORMATS = FormatChecker(())
HERE = Address([], "127.0.0.1", 8080, "http://127.0.0.1:8080", loopback=True)


@FORMATS.checks("date-time", raises=ValueError)
def _is_moment(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


class Described:
    """The channels of a document, to judge messages by."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._validators: dict[str, Draft7Validator] = {}

    def channel(self, topic: str) -> str | None:
        """Name the one channel of a topic."""
        found = [
            name for name, part in self.document["channels"].items() if part["address"] and self._fits(part, topic)
        ]
        assert len(found) <= 1, (topic, found)
        return found[0] if found else None

    def message(self, channel: str, payload: str, topic: str = "") -> str | None:
        """Name the first message of a channel that a payload is; of a command's topic those of that command."""
        names = list(self.document["channels"][channel]["messages"])
        if channel.startswith("command") and topic:
            own = f"command_{topic.rsplit('/', 1)[1]}"
            names = [name for name in names if name in (own, f"{own}_word", "removed")]
        for name in names:
            message = self.document["components"]["messages"][name]
            try:
                value = payload if message["contentType"] == "text/plain" else json.loads(payload)
            except ValueError:
                continue
            if self._validator(name).is_valid(value):
                return str(name)
        return None

    def faults(self, channel: str, payload: str) -> list[str]:
        """Say why a payload is no message of a channel."""
        return [
            f"{name}: {error.json_path}: {error.message}"
            for name in self.document["channels"][channel]["messages"]
            for error in self._validator(name).iter_errors(json.loads(payload))
        ]

    def binding(self, channel: str, message: str) -> tuple[int, bool]:
        """Give QoS and retain of a message that the server sends or receives."""
        found = {
            (operation["bindings"]["mqtt"]["qos"], operation["bindings"]["mqtt"]["retain"])
            for operation in self.document["operations"].values()
            if f"#/channels/{channel}/messages/{message}" in [each["$ref"] for each in operation["messages"]]
        }
        assert len(found) == 1, (channel, message, found)
        return found.pop()

    def _fits(self, channel: dict[str, Any], topic: str) -> bool:
        def part(name: str) -> str:
            values = channel["parameters"][name].get("enum")
            if values:
                return f"(?:{'|'.join(map(re.escape, values))})"
            return ".+" if name == "any" else "[^/]+"

        pieces = re.split(r"\{(\w+)\}", channel["address"])
        pattern = "".join(part(piece) if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))
        return re.fullmatch(pattern, topic) is not None

    def _validator(self, message: str) -> Draft7Validator:
        if message not in self._validators:
            payload = self.document["components"]["messages"][message]["payload"]
            schema = {"components": self.document["components"], "allOf": [payload]}
            self._validators[message] = Draft7Validator(schema, format_checker=FORMATS)
        return self._validators[message]


def judge(described: Described, heard: list[Heard]) -> dict[str, set[str]]:
    """Hold every message to the document; give the messages that were seen, by channel."""
    seen: dict[str, set[str]] = {}
    for one in heard:
        channel = described.channel(one.topic)
        assert channel is not None, f"the document has no {one.topic}"
        if "/command/" in one.topic and one.payload in MALFORMED:
            continue
        message = described.message(channel, one.payload, one.topic)
        assert message is not None, (one.topic, one.payload, described.faults(channel, one.payload))
        qos, retained = described.binding(channel, message)
        assert one.qos == qos, one.topic
        assert retained or not one.retain, one.topic
        seen.setdefault(channel, set()).add(message)
    return seen


async def live(room: EngineRoom, client: Client) -> None:
    """Do what a day brings: orders, fills, a scan list, refusals, a kill and its reset."""

    async def say(name: str, payload: str | dict[str, Any], **more: Any) -> dict[str, Any]:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        before = len(client.payloads(f"sigma9/main/response/{name}"))
        await client.publish(f"sigma9/main/command/{name}", text, **more)
        await client.until(lambda _: len(client.payloads(f"sigma9/main/response/{name}")) > before, what=name)
        found: dict[str, Any] = json.loads(client.payloads(f"sigma9/main/response/{name}")[before])
        return found

    assert (await say("start", "PRESS"))["ok"]
    assert (await say("watchlist_add", "MSFT"))["ok"]
    await room.tick("AAPL", "MSFT")
    await client.until_heard("sigma9/main/event/market_data/AAPL")
    await client.until(lambda heard: any("/state/quote/" in one.topic for one in heard), what="a quote")
    order: dict[str, Any] = {"id": "o-1", "symbol": "AAPL", "side": "buy", "quantity": 100}
    order |= {"reason": "test", "expires_at": "2099-01-01T00:00:00Z"}
    order |= {"bracket": {"stop_price": 9.5, "take_profit": 12}}
    answer = await say("place_order", order, reply_to="sigma9/reply/phone/1", correlation=b"\x00\x07")
    assert answer["ok"], answer
    await room.fill(answer["result"]["order"]["order_id"], "10.01", 40)
    await room.fill(answer["result"]["order"]["order_id"], "10.01")
    await room.tick("AAPL", "MSFT", price=10.4)
    await client.until_heard("sigma9/main/state/position/AAPL")
    resting = {"id": "o-2", "symbol": "MSFT", "side": "buy", "quantity": 5, "order_type": "limit"}
    answer = await say("place_order", {**resting, "limit_price": 9.25})
    assert answer["ok"], answer
    await say("cancel_order", answer["result"]["order"]["order_id"])
    await say(
        "place_order", {**order, "id": "o-3", "symbol": "MSFT", "quantity": 20_000}
    )  # more than the rule allows
    await say("preview_order", {"symbol": "AAPL", "side": "sell", "quantity": 1})
    for payload in MALFORMED:
        assert not (await say("place_order", payload))["ok"]
    await say("events", {"after": 0, "limit": 3})
    await say("risk_set", {"rule": "max_order_quantity", "max_shares": 50_000})
    await client.publish("sigma9/all/command/heartbeat", "heartbeat")
    await client.publish("sigma9/main/command/pause", "PRESS", retain=True)
    await client.publish("homeassistant/status", "online", qos=1)
    line = LogLine(level="error", logger="test", message="a fault", fields={"x": 1})
    ts = room.engine.clock.now()
    room.engine.bus.dispatch([Event("log", None, ts, line, encode("log", line, seq=None, ts=ts, node="main"))])
    await say("watchlist_remove", {"symbol": "MSFT"})
    await say("close_position", {"symbol": "AAPL", "id": "c-1"})
    await room.fill_all("10.2")
    await client.until_heard("sigma9/main/state/position/AAPL", "")
    await say("kill_switch", {"flatten": True, "reason": "test"})
    await say("reset_kill_switch", {"reason": "over"})


@pytest.mark.parametrize("form", ["device", "entity"])
async def test_real_traffic_is_as_described(
    broker: Mosquitto, tmp_path: Path, form: Literal["device", "entity"]
) -> None:
    """A day of a real engine: every message has its channel, fits its schema, and has the QoS and retain told."""
    settings = settings_for(broker)
    home = settings.home_assistant.model_copy(update={"format": form})
    room = EngineRoom(tmp_path / "room", services=True, mqtt=settings.mqtt, home_assistant=home)
    async with Client.of(broker, "admin") as client:
        await client.subscribe("#")
        async with room:
            shown = FakeServer(room.settings.model_copy(update={"plugins": PluginSettings()}))
            shown.specs = room.engine.specs
            described = Described(asyncapi(shown, HERE))
            service = service_for(room.settings, tmp_path)
            await service.start(room.engine)
            try:
                await client.until_heard("sigma9/main/availability", "online")
                await live(room, client)
                await asyncio.sleep(0.3)
                async with Client.of(broker, "viewer") as late:
                    await late.subscribe("#")
                    await late.until(lambda heard: len(heard) > 10)
                    await asyncio.sleep(0.2)
                    stored = {one.topic: one for one in late.heard if one.retain}
            finally:
                await service.stop()
        await client.until_heard("sigma9/main/availability", "offline")
        seen = judge(described, client.heard)
        judge(described, list(stored.values()))
    expected = {row for row in described.document["channels"] if row.startswith(("state_", "event_"))}
    missing = expected - set(seen)
    assert missing == set()
    assert "removed" in seen["state_position"]
    assert "removed" in seen["command"]
    assert seen["reply"] == {"response", "echo"}
    assert f"discovery_{form}" in seen
    assert {"command_all", "response", "discovery_birth"} <= set(seen)
    for topic, one in stored.items():
        channel = described.channel(topic)
        assert channel is not None
        assert described.binding(channel, described.message(channel, one.payload) or "")[1], topic


def test_the_judge_finds_faults() -> None:
    """A topic that is not there, a missing key, a wrong type and a bad time are all seen."""
    described = Described(asyncapi(FakeServer(), HERE))
    assert described.channel("sigma9/main/state/secrets") is None
    assert described.channel("sigma9/main/event/log/loud") is None
    body: dict[str, Any] = {"symbol": "AAPL", "kind": "quote", "ts": wall_now().isoformat(), "halted": False}
    numbers = "bid ask bid_size ask_size last last_size open high low close volume bar_seconds"
    body |= dict.fromkeys(numbers.split())
    assert described.message("state_quote", json.dumps(body)) == "state_quote"
    for change in ({"ts": "soon"}, {"bid": "much"}, {"kind": "rumour"}):
        assert described.message("state_quote", json.dumps({**body, **change})) is None
    del body["last"]
    assert described.message("state_quote", json.dumps(body)) is None
    assert described.message("command", json.dumps({"symbol": "AAPL", "side": "hold"})) is None
    assert described.message("state_quote", "") == "removed"

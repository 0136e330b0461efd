"""A real server on a real broker that fails: what it lost is got back with `events`, and the trading goes on."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from sigma9_core.testing.server_process import ServerProcess
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.mqtt.testing import Client, Mosquitto

pytestmark = pytest.mark.mosquitto

QUEUE = 5
"""Messages that the broker keeps for somebody who is away."""


@pytest.fixture(name="broker")
async def _broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mosquitto]:
    """Run a Mosquitto that drops, without a word, what its small queues don't hold."""
    program = mosquitto.find()
    if program is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    small = mosquitto.SETTINGS.replace("max_queued_messages 100000", f"max_queued_messages {QUEUE}")
    monkeypatch.setattr(mosquitto, "SETTINGS", small)
    broker = Mosquitto(tmp_path / "broker", program)
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture(name="server")
async def _server(tmp_path: Path, broker: Mosquitto) -> AsyncIterator[ServerProcess]:
    """Run a server on it, ten times as fast as a user's."""
    mqtt = {"broker": "external", "port": broker.port, "username": "sigma9"}
    server = ServerProcess(tmp_path, "plugins.settings.simulated.speed=600", f"mqtt={json.dumps(mqtt)}")
    server.settings = tuple(each for each in server.settings if each != "mqtt.port=0")
    server.environment["SIGMA9_MQTT__PASSWORD"] = broker.passwords["sigma9"]
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


def durable(client: Client) -> list[Mapping[str, Any]]:
    """List the durable events that a client has heard."""
    kinds = (
        "/event/trade_event/",
        "/event/watchlist_update",
        "/event/status_update",
    )  # to read all takes too long
    return [
        json.loads(message.payload) for message in client.heard if any(kind in message.topic for kind in kinds)
    ]


def state(client: Client, name: str) -> Any:
    """Give the newest body of a state topic that a client has heard."""
    return json.loads(client.payloads(f"sigma9/main/state/{name}")[-1])


def absent(broker: Mosquitto) -> aiomqtt.Client:
    """Make a client whose session the broker keeps while it is away."""
    return aiomqtt.Client(
        broker.host,
        broker.port,
        username="viewer",
        password=broker.passwords["viewer"],
        identifier="absent",
        protocol=aiomqtt.ProtocolVersion.V311,
        clean_session=False,
    )


async def seq_of(server: ServerProcess) -> int:
    status = await asyncio.to_thread(server.get, "/api/status")
    return int(status["seq"])


async def test_what_a_full_queue_lost_is_got_with_events(broker: Mosquitto, server: ServerProcess) -> None:
    """Who comes back sees by `seq` what the broker dropped for him, and has it all by the command `events`."""
    async with absent(broker) as client:
        await client.subscribe("sigma9/main/event/#", 1)
        first = await seq_of(server)
    while await seq_of(server) < first + 4 * QUEUE:  # noqa: ASYNC110 - the server is another process
        await asyncio.sleep(0.1)
    heard: list[int] = []
    async with absent(broker) as client, Client.of(broker, "operator") as operator:
        last = await seq_of(server)
        async for message in client.messages:
            body = json.loads(bytes(message.payload))
            heard += [] if body["seq"] is None else [body["seq"]]
            if heard and heard[-1] > last:
                break
        gaps = [(a, b) for a, b in itertools.pairwise([first, *heard]) if b > a + 1]
        assert gaps, "the broker kept more than it was to"
        await operator.subscribe("sigma9/main/response/events")
        got: list[int] = []
        for after, before in gaps:
            wanted = {"id": f"after {after}", "after": after, "limit": before - after - 1}
            await operator.publish("sigma9/main/command/events", json.dumps(wanted))
            await operator.until(lambda found: len(found) > 0, what="the answer")
            answer = json.loads(operator.heard.pop().payload)
            assert answer["ok"], answer
            got += [event["seq"] for event in answer["result"]["events"]]
    assert sorted({*heard, *got}) == list(range(first + 1, heard[-1] + 1))


async def test_a_killed_broker_changes_nothing_but_the_time(broker: Mosquitto, server: ServerProcess) -> None:
    """After kill -9 the trading has gone on, every event is told, in order and late; state is the server's."""
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/#")
        await client.until(lambda _: len(durable(client)) > 2, 20, what="events")
        acknowledged = durable(client)[-1]["seq"]
    await broker.kill()
    away = await seq_of(server)
    while await seq_of(server) < away + 3:  # noqa: ASYNC110 - the server is another process
        await asyncio.sleep(0.1)
    await broker.start()
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/#")
        await client.until_heard("sigma9/main/availability", "online", 20)
        now = await seq_of(server)
        await client.until(lambda _: bool(durable(client)) and durable(client)[-1]["seq"] >= now, 10, what="all")
        told = durable(client)
        numbers = [body["seq"] for body in told]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert acknowledged - 3 < numbers[0] <= away + 1
        assert all(body.get("late") for body in told if away < body["seq"] <= away + 3)
        await asyncio.to_thread(server.sigma9, "stop")
        await asyncio.to_thread(server.sigma9, "close", "*")
        for name in ("positions", "orders"):
            body = await asyncio.to_thread(server.get, f"/api/{name}")
            await client.until(lambda _, name=name, body=body: state(client, name) == body, what=name)  # type: ignore[misc]

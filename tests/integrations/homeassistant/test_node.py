"""Discovery on a real broker: with the state, at each birth, after each loss, and nothing left of what is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest

from sigma9_core.config import HomeAssistantSettings
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.homeassistant.table import ENTITIES
from sigma9_integrations.homeassistant.testing import Home
from sigma9_integrations.mqtt.testing import Client, Heard, Mosquitto, Proxy, serving, settings_for

pytestmark = pytest.mark.mosquitto

Form = Literal["device", "entity"]
POSITION = "position/BRK.B"
STATE = "sigma9/main/state/position/BRK.B"


def served(broker: Mosquitto, form: Form = "device", *, enabled: bool = True, **mqtt: Any) -> FakeServer:
    """Make a server with the entities of the table."""
    settings = settings_for(broker, **mqtt)
    home = HomeAssistantSettings(format=form, enabled=enabled)
    server = FakeServer(settings.model_copy(update={"home_assistant": home}))
    server.entities = ENTITIES
    server.board.set("account", {"currency": "USD", "equity": 1.0})
    return server


async def watcher(client: Client) -> Home:
    """Let a client follow everything below the prefix and the node's state; give its Home Assistant."""
    await client.subscribe("homeassistant/#", "sigma9/main/state/#")
    return Home()


def follow(home: Home, heard: list[Heard]) -> Home:
    """Let a Home Assistant hear what a client has heard."""
    for message in heard:
        if message.topic.endswith("/config"):
            home.hear(message.topic, message.payload)
    return home


def configs(heard: list[Heard]) -> list[str]:
    """List the payloads of discovery messages."""
    return [message.payload for message in heard if message.topic.endswith("/config") and message.payload]


@pytest.mark.parametrize("form", ["device", "entity"])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_home_assistant_that_comes_later_finds_everything(
    broker: Mosquitto, form: Form, protocol: Literal["5", "3.1.1"]
) -> None:
    """Whoever subscribes later gets all of it from the broker, retained, and at QoS 1."""
    server = served(broker, form, protocol=protocol)
    async with serving(server.settings, server), Client.of(broker, "admin") as client:
        await client.subscribe("homeassistant/#")
        count = 1 if form == "device" else len(ENTITIES)
        await client.until(lambda heard: len(configs(heard)) == count)
        assert all(message.retain and message.qos == 1 for message in client.heard)
        assert len(follow(Home(), client.heard).configs) == len(ENTITIES)


async def test_a_birth_brings_everything_again(broker: Mosquitto) -> None:
    """When Home Assistant comes up, discovery and state are published again; its other words change nothing."""
    server = served(broker)
    async with serving(server.settings, server), Client.of(broker, "admin") as client:
        home = await watcher(client)
        await client.until_heard("sigma9/main/state/account")
        client.heard.clear()
        await client.publish("homeassistant/status", "offline")
        await client.publish("homeassistant/status", "online")
        await client.until_heard("sigma9/main/state/account")
        assert len(configs(client.heard)) == 1
        first = next(message.topic for message in client.heard if message.topic != "homeassistant/status")
        assert first == "homeassistant/device/sigma9_main/config", "discovery goes before the state"
        assert len(follow(home, client.heard).configs) == len(ENTITIES)


@pytest.mark.parametrize("form", ["device", "entity"])
async def test_a_position_that_ended_while_home_assistant_was_away(broker: Mosquitto, form: Form) -> None:
    """After the birth its entity is told of for a moment, and then removed: the registry keeps nothing of it."""
    server = served(broker, form)
    async with serving(server.settings, server), Client.of(broker, "admin") as client:
        home = await watcher(client)
        server.board.set(POSITION, {"symbol": "BRK.B", "quantity": 3})
        await client.until_heard(STATE)
        follow(home, client.heard)
        assert "sigma9_main_position_BRK_B" in home.configs
        await client.publish("homeassistant/status", "offline")
        client.heard.clear()
        server.board.set(POSITION, None)
        await client.until_heard(STATE, "")
        async with Client.of(broker, "viewer") as reader:
            await reader.subscribe("homeassistant/#")
            await reader.until(lambda heard: len(configs(heard)) >= (1 if form == "device" else len(ENTITIES)))
            home.restart({message.topic: message.payload for message in reader.heard if message.retain})
        assert "sigma9_main_position_BRK_B" in home.configs, "only a registry that forgets would not keep it"
        client.heard.clear()
        await client.publish("homeassistant/status", "online")
        await client.until_heard("sigma9/main/state/account")
        assert set(follow(home, client.heard).configs) == {f"sigma9_main_{spec.object}" for spec in ENTITIES}


async def test_a_stored_birth_is_no_news(broker: Mosquitto) -> None:
    """A birth message that somebody retained does not make a node announce in circles."""
    async with Client.of(broker, "admin") as client:
        await client.publish("homeassistant/status", "online", retain=True)
        server = served(broker, protocol="3.1.1")
        await client.subscribe("homeassistant/device/#", "sigma9/main/availability")
        async with serving(server.settings, server):
            await client.until_heard("sigma9/main/availability", "online")
            await asyncio.sleep(0.3)
            assert len(configs(client.heard)) == 1


@pytest.mark.parametrize("form", ["device", "entity"])
async def test_a_position_s_entity_goes_before_its_topic(broker: Mosquitto, form: Form) -> None:
    """Its entity is there while it is held, and away before the empty payload that it could not read."""
    server = served(broker, form)
    async with serving(server.settings, server), Client.of(broker, "viewer") as client:
        home = await watcher(client)
        await client.until_heard("sigma9/main/state/account")
        server.board.set(POSITION, {"symbol": "BRK.B", "quantity": 3})
        await client.until_heard(STATE)
        follow(home, client.heard)
        assert "sigma9_main_position_BRK_B" in home.configs
        client.heard.clear()
        server.board.set(POSITION, None)
        await client.until(lambda heard: any(message.topic.endswith("/config") for message in heard))
        await asyncio.sleep(0.3)
        assert not client.payloads(STATE), "Home Assistant needs a moment to let go of it"
        await client.until_heard(STATE, "")
        emptied = next(index for index, message in enumerate(client.heard) if message.topic == STATE)
        follow(home, client.heard[:emptied])
        assert "sigma9_main_position_BRK_B" not in home.configs


@pytest.mark.parametrize("form", ["device", "entity"])
async def test_a_burst_of_positions(broker: Mosquitto, form: Form) -> None:
    """Positions that open, and end, in one moment: each has its entity for as long as its topic has a body."""
    server = served(broker, form)
    names = [f"position/S{number}" for number in range(4)]
    topics = [f"sigma9/main/state/{name}" for name in names]
    async with serving(server.settings, server), Client.of(broker, "viewer") as client:
        home = await watcher(client)
        await client.until_heard("sigma9/main/state/account")
        for body in ({"symbol": "S", "quantity": 1}, None):
            client.heard.clear()
            for name in names:
                server.board.set(name, body)
                await asyncio.sleep(0.02)
            for topic in topics:
                await client.until_heard(topic)
            configs_of_it = [message for message in client.heard if message.topic.endswith("/config")]
            assert len(configs_of_it) <= (4 if form == "entity" or body is None else 2)
            for message in client.heard:
                if message.topic.endswith("/config"):
                    home.hear(message.topic, message.payload)
                elif message.topic in topics:
                    unique = f"sigma9_main_position_S{message.topic[-1]}"
                    assert (unique in home.configs) == (body is not None)


async def test_a_broker_that_forgot_everything_is_told_again(broker: Mosquitto, tmp_path: Path) -> None:
    """After kill -9 of a broker that keeps nothing, discovery is there again with the state."""
    server = served(broker)
    async with serving(server.settings, server):
        await broker.kill()
        await broker.start()
        async with Client.of(broker, "viewer") as client:
            home = await watcher(client)
            await client.until_heard("sigma9/main/state/account", seconds=20)
            assert len(follow(home, client.heard).configs) == len(ENTITIES)


@pytest.mark.parametrize(("old", "new"), [("device", "entity"), ("entity", "device")])
async def test_another_form_takes_the_place_of_the_first(broker: Mosquitto, old: Form, new: Form) -> None:
    """Moving to the other form keeps every entity, and leaves no message of the old form."""
    async with Client.of(broker, "admin") as client:
        home = await watcher(client)
        for form in (old, new):
            server = served(broker, form)
            async with serving(server.settings, server):
                await asyncio.sleep(1.5)
        follow(home, client.heard)
        assert len(home.configs) == len(ENTITIES)
        assert not any(step.startswith("-") for step in home.log)
    async with Client.of(broker, "viewer") as late:
        await late.subscribe("homeassistant/#")
        await late.until(lambda heard: len(configs(heard)) == (1 if new == "device" else len(ENTITIES)))
        assert all(("/device/" in message.topic) == (new == "device") for message in late.heard)


async def test_what_is_left_of_an_earlier_run_goes(broker: Mosquitto, proxy: Proxy) -> None:
    """Entities and topics of positions that are gone are cleared, also where the broker was away at the start."""
    server = served(broker)
    server.board.set(POSITION, {"symbol": "BRK.B", "quantity": 3})
    async with Client.of(broker, "viewer") as client:
        home = await watcher(client)
        async with serving(server.settings, server):
            await client.until_heard(STATE)
        assert "sigma9_main_position_BRK_B" in follow(home, client.heard).configs
        client.heard.clear()
        proxy.cut()
        later = served(broker, port=proxy.port)
        async with serving(later.settings, later):
            await asyncio.sleep(0.2)
            proxy.mend()
            await client.until_heard(STATE, "", seconds=20)
            await client.until_heard("sigma9/main/state/account", seconds=20)
        follow(home, client.heard)
        assert "sigma9_main_position_BRK_B" not in home.configs
        assert len(home.configs) == len(ENTITIES)


async def test_switched_off_it_takes_everything_away(broker: Mosquitto) -> None:
    """A server with `enabled: false` clears what an earlier one had announced, and announces nothing."""
    async with Client.of(broker, "viewer") as client:
        for enabled in (True, False):
            server = served(broker, enabled=enabled)
            async with serving(server.settings, server):
                await asyncio.sleep(0.2)
        await client.subscribe("homeassistant/#")
        await asyncio.sleep(0.2)
        assert client.heard == []

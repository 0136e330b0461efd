"""The roles, with real logins beside a real server: on Mosquitto by both protocols, and on amqtt."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import aiomqtt
import pytest

from sigma9_core.commands import BUILT_IN
from sigma9_core.config import MqttSettings, Settings
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.broker.accounts import Role
from sigma9_integrations.broker.embedded import HOST
from sigma9_integrations.homeassistant.table import ENTITIES
from sigma9_integrations.mqtt.testing import Client, Heard, service_for, serving
from sigma9_integrations.mqtt.topics import TABLE

Protocol = Literal["5", "3.1.1"]

PLACES = {
    "{base}": "sigma9",
    "{symbol}": "AAPL",
    "{event}": "filled",
    "{level}": "error",
    "{name}": "start",
    "{any}": "x",
}
OURS = (
    *(row.pattern.replace("{p}", "sigma9/{node}") for row in TABLE if "/command/" not in row.pattern),
    *("{base}/{node}/state/brand_new", "{base}/{node}/anything", "{base}/anything"),
)
"""Where the server alone speaks."""
DISCOVERY = (
    "homeassistant/device/sigma9_main/config",
    "homeassistant/switch/sigma9_main/engine/config",
    "homeassistant/device/sigma9_other/config",
    "homeassistant/light/kitchen/config",
)


def filled(pattern: str, node: str) -> str:
    """Fill a pattern of the topic table in."""
    text = pattern.replace("{node}", node)
    for name, value in PLACES.items():
        text = text.replace(name, value)
    return text


POSES = sorted({filled(pattern, node) for pattern in OURS for node in ("main", "other", "all")} | set(DISCOVERY))


@dataclass
class Site:
    """A server on its embedded broker."""

    server: FakeServer
    broker: Any
    protocol: Protocol

    def client(self, role: Role) -> Client:
        """Make a client of a role."""
        return Client(self.broker.port, role, self.broker.passwords[role], self.protocol)


@pytest.fixture(
    name="site",
    params=[
        pytest.param(("mosquitto", "5"), marks=pytest.mark.mosquitto, id="mosquitto-5"),
        pytest.param(("mosquitto", "3.1.1"), marks=pytest.mark.mosquitto, id="mosquitto-3.1.1"),
        pytest.param(("amqtt", "3.1.1"), id="amqtt"),
    ],
)
async def _site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    kind, protocol = request.param
    if kind == "mosquitto":
        request.getfixturevalue("mosquitto_program")
    else:
        monkeypatch.setattr(mosquitto, "find", lambda: None)
    settings = Settings(data_dir=tmp_path, mqtt=MqttSettings(port=0))
    service = service_for(settings, tmp_path)
    server = FakeServer(settings)
    server.entities = ENTITIES
    server.board.set("account", {"equity": 1})
    async with serving(settings, server, service=service):
        yield Site(server, cast(Any, service)._broker, protocol)


async def tried(
    site: Site, role: Role, topics: list[str], allowed: set[str] | None = None, *, retain: bool = False
) -> None:
    """Let a role publish to topics, and see that it is heard on those that are allowed and on no other one."""
    wanted = allowed or set()

    def heard(messages: list[Heard]) -> set[str]:
        return {message.topic for message in messages if message.payload == f"by {role}"}

    async with site.client("viewer") as listener, site.client("sigma9") as last:
        await listener.subscribe("sigma9/#", "homeassistant/#")
        async with site.client(role) as client:
            for topic in topics:
                await client.publish(topic, f"by {role}", retain=retain)
            await listener.until(lambda messages: wanted <= heard(messages), what=f"{wanted}")
        await last.publish("sigma9/end", role)
        await listener.until_heard("sigma9/end", role)
        if site.broker.kind == "amqtt":  # there a later message of another client may come first
            await asyncio.sleep(0.2)
        assert heard(listener.heard) == wanted


async def test_a_viewer_reads_everything(site: Site) -> None:
    """State, availability, discovery, commands of others and their answers: a viewer sees them all."""
    async with site.client("viewer") as viewer, site.client("operator") as operator:
        await viewer.subscribe("sigma9/#", "homeassistant/#")
        await viewer.until_heard("sigma9/main/availability", "online")
        await viewer.until_heard("sigma9/main/state/account", '{"equity":1}')
        await viewer.until_heard("homeassistant/device/sigma9_main/config")
        await operator.publish("sigma9/main/command/pause", "PRESS")
        await viewer.until_heard("sigma9/main/command/pause", "PRESS")
        assert json.loads((await viewer.until_heard("sigma9/main/response/pause")).payload)["ok"] is True


async def test_a_viewer_publishes_nothing(site: Site) -> None:
    """Nothing of a viewer arrives anywhere, retained or not, and the server hears nothing of it."""
    commands = [f"sigma9/{node}/command/{name}" for name in (*BUILT_IN, "unheard_of") for node in ("main", "all")]
    everywhere = [*commands, *POSES, "homeassistant/status", "sigma9/reply/x"]
    for retain in (False, True):
        await tried(site, "viewer", everywhere, retain=retain)
    assert site.server.commands == site.server.kills == []


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
async def test_nobody_poses_as_the_server(site: Site, role: Role) -> None:
    """States, events, answers, availability and discovery, of this node and any other: only the server's role."""
    for retain in (False, True):
        await tried(site, role, POSES, retain=retain)
    async with site.client("viewer") as later:
        await later.subscribe("sigma9/main/availability", "sigma9/main/state/account")
        await later.until_heard("sigma9/main/availability", "online")
        await later.until_heard("sigma9/main/state/account", '{"equity":1}')


async def test_the_server_speaks_everywhere(site: Site) -> None:
    """The other side of it: what is refused to the others is heard when the server's role says it."""
    node = [topic for topic in POSES if "/main/" not in topic and "sigma9_main" not in topic]
    await tried(site, "sigma9", node, set(node))


async def test_rights_are_those_of_the_table(site: Site) -> None:
    """Each command reaches the server from an operator where its right is trade or read, from an admin always."""
    names = sorted(set(BUILT_IN) - {"kill_switch"})
    topics = {name: f"sigma9/main/command/{name}" for name in names}
    allowed = {topics[name] for name in names if BUILT_IN[name].right != "admin"}
    await tried(site, "operator", list(topics.values()), allowed)
    await tried(site, "admin", list(topics.values()), set(topics.values()))
    everybody = {name: f"sigma9/all/command/{name}" for name in names}
    allowed = {everybody[name] for name in names if BUILT_IN[name].right != "admin"}
    await tried(site, "operator", list(everybody.values()), allowed)
    await tried(site, "operator", ["sigma9/main/command/unheard_of", "sigma9/main/command/a/b"])
    async with site.client("operator") as operator:
        await operator.subscribe("sigma9/main/response/+")
        await operator.publish("sigma9/main/command/kill_switch", "PRESS")
        assert json.loads((await operator.until_heard("sigma9/main/response/kill_switch")).payload)["ok"] is True
    assert len(site.server.kills) == 1


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
async def test_a_last_will_is_no_way_round(site: Site, role: Role) -> None:
    """A will on a topic that the role may not publish to is refused with the login, or never published."""
    version = aiomqtt.ProtocolVersion.V5 if site.protocol == "5" else aiomqtt.ProtocolVersion.V311
    will = aiomqtt.Will("sigma9/main/availability", "offline", retain=True)
    login: dict[str, Any] = {"username": role, "password": site.broker.passwords[role]}
    async with site.client("viewer") as listener, site.client("sigma9") as last:
        await listener.subscribe("sigma9/main/#", "sigma9/end")
        await listener.until_heard("sigma9/main/availability", "online")
        try:
            async with aiomqtt.Client(
                HOST, site.broker.port, protocol=version, timeout=3, will=will, **login
            ) as c:
                cast(Any, c)._client._sock_close()  # without a word
        except aiomqtt.MqttError:
            pass
        await asyncio.sleep(0.1)
        await last.publish("sigma9/end", "end")
        await listener.until_heard("sigma9/end")
        assert listener.payloads("sigma9/main/availability") == ["online"]


async def test_no_role_and_wrong_passwords(site: Site) -> None:
    """Nobody without a role gets in, nor a role with another one's password."""
    version = aiomqtt.ProtocolVersion.V5 if site.protocol == "5" else aiomqtt.ProtocolVersion.V311
    passwords = site.broker.passwords
    logins: list[dict[str, Any]] = [
        {},
        {"username": "nobody", "password": passwords["viewer"]},
        {"username": "", "password": passwords["viewer"]},
        {"username": "operator"},
        {"username": "operator", "password": ""},
        {"username": "operator", "password": passwords["viewer"]},
        {"username": "sigma9", "password": passwords["admin"]},
        {"username": "sigma9 ", "password": passwords["sigma9"]},
        {"username": "SIGMA9", "password": passwords["sigma9"]},
    ]
    for login in logins:
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client(HOST, site.broker.port, protocol=version, timeout=3, **login):
                pass


async def test_nobody_takes_the_servers_place(site: Site) -> None:
    """A viewer that calls itself as the server's connections are called does not throw them out."""
    version = aiomqtt.ProtocolVersion.V5 if site.protocol == "5" else aiomqtt.ProtocolVersion.V311
    marks = {hashlib.sha256(text).hexdigest() for text in (b"sigma9/main", b"sigma9/main\0")}
    names = [f"sigma9-main-{mark[:length]}" for mark in marks for length in (8, 12)]
    login: dict[str, Any] = {"username": "viewer", "password": site.broker.passwords["viewer"]}
    async with site.client("viewer") as listener:
        await listener.subscribe("sigma9/main/availability")
        await listener.until_heard("sigma9/main/availability", "online")
        for name in [f"{name}-{purpose}" for name in names for purpose in ("events", "commands", "kill")]:
            async with aiomqtt.Client(HOST, site.broker.port, identifier=name, protocol=version, **login):
                await asyncio.sleep(0.05)
        assert site.server.mqtt == "connected"
        assert listener.payloads("sigma9/main/availability") == ["online"]

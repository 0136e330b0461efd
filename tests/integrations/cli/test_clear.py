"""`sigma9 discovery clear`, on a real broker with real servers."""

from __future__ import annotations

import asyncio
import io
import os
import pty
from collections.abc import Mapping
from typing import Any

import pytest

from sigma9_core.clock import monotonic
from sigma9_core.config import HomeAssistantSettings
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.homeassistant.discovery import LET_GO_SECONDS
from sigma9_integrations.homeassistant.table import ENTITIES
from sigma9_integrations.mqtt.testing import Client, Mosquitto, serving, settings_for

pytestmark = pytest.mark.mosquitto


@pytest.fixture(name="login")
def _login(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setenv("PASSWORD", broker.passwords["sigma9"])
    where = ("--host", "127.0.0.1", "--port", str(broker.port))
    return (*where, "--username", "sigma9", "--password-env", "PASSWORD")


async def retained(broker: Mosquitto) -> Mapping[str, str]:
    """Read everything that the broker holds."""
    async with Client.of(broker, "viewer") as viewer, Client.of(broker, "sigma9") as server:
        await viewer.subscribe("sigma9/#", "homeassistant/#")
        await server.publish("sigma9/end", "end")
        await viewer.until_heard("sigma9/end")
        return {message.topic: message.payload for message in viewer.heard if message.retain}


async def live_for_a_while(broker: Mosquitto, node: str, form: Any = "device") -> None:
    """Let a server come, say what it has, and go."""
    settings = settings_for(broker).model_copy(
        update={"node": node, "home_assistant": HomeAssistantSettings(format=form)}
    )
    server = FakeServer(settings)
    server.entities = ENTITIES
    server.board.set("account", {"equity": 1})
    server.board.set("position/AAPL", {"quantity": 1})
    async with serving(settings, server), Client.of(broker, "viewer") as viewer:
        await viewer.subscribe(f"sigma9/{node}/#")
        await viewer.until_heard(f"sigma9/{node}/availability", "online")
        await viewer.until_heard(f"sigma9/{node}/state/position/AAPL")


@pytest.mark.parametrize("form", ["device", "entity"])
async def test_a_node_that_is_gone(cli: Any, broker: Mosquitto, login: tuple[str, ...], form: str) -> None:
    """All that is retained of the node goes, in either form of discovery, and nothing else; what went is said."""
    await live_for_a_while(broker, "main")
    async with Client.of(broker, "sigma9") as client:
        for topic in (
            "sigma9/ol/state/x",
            "sigma9/old2/state/x",
            "sigma9/old",
            "homeassistant/sensor/other/x/config",
        ):
            await client.publish(topic, "theirs", retain=True)
    before = await retained(broker)
    await live_for_a_while(broker, "old", form)
    async with Client.of(broker, "sigma9") as client:  # what somebody left there
        await client.publish("sigma9/old/command/start", "PRESS", retain=True)
    added = set(await retained(broker)) - set(before)
    assert any(topic.startswith("homeassistant/") for topic in added)
    result = await cli("discovery", "clear", "--node", "old", "--yes", *login)
    assert (result.code, result.err) == (0, "")
    assert await retained(broker) == before
    first, *lines = result.out.splitlines()
    assert first.startswith("removed of sigma9/old: ")
    assert {line.strip() for line in lines} == added
    again = await cli("discovery", "clear", "--node", "old", "--yes", *login)
    assert (again.code, "holds nothing of sigma9/old" in again.out) == (0, True)


@pytest.mark.parametrize("form", ["device", "entity"])
async def test_home_assistant_lets_go_first(
    cli: Any, broker: Mosquitto, login: tuple[str, ...], form: str
) -> None:
    """No state topic is emptied before Home Assistant had its second to unsubscribe: it would trip over it."""
    await live_for_a_while(broker, "main", form)
    times: list[tuple[float, str, bool]] = []
    async with Client.of(broker, "viewer") as viewer:

        async def note() -> None:
            while True:
                new = viewer.heard[len(times) :]
                times.extend((monotonic(), message.topic, message.retain) for message in new)
                await asyncio.sleep(0.01)

        await viewer.subscribe("sigma9/main/state/#", "homeassistant/#")
        noting = asyncio.create_task(note(), name="noting")
        assert (await cli("discovery", "clear", "--yes", *login)).code == 0
        noting.cancel()
    told = max(at for at, topic, stored in times if not stored and topic.startswith("homeassistant/"))
    emptied = min(at for at, topic, stored in times if not stored and topic.startswith("sigma9/"))
    assert emptied - told > LET_GO_SECONDS * 0.9


async def test_a_node_that_is_online(cli: Any, broker: Mosquitto, login: tuple[str, ...]) -> None:
    """It is left alone, whatever is said, and the sentence names the ways to do it."""
    settings = settings_for(broker)
    server = FakeServer(settings)
    server.entities = ENTITIES
    server.board.set("account", {"equity": 1})
    async with serving(settings, server):
        before = await retained(broker)
        result = await cli("discovery", "clear", "--yes", *login)
        assert (result.code, result.out) == (1, "")
        assert "sigma9/main is online, and nothing was removed: stop that server first" in result.err
        assert "home_assistant.enabled to false" in result.err
        assert await retained(broker) == before


async def test_an_online_that_nobody_said(
    cli: Any, broker: Mosquitto, login: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`online` that was left behind by a server and a broker that died together does not keep it."""
    monkeypatch.setattr("sigma9_integrations.mqtt.survey.ANSWER_SECONDS", 0.2)
    async with Client.of(broker, "sigma9") as client:
        await client.publish("sigma9/old/availability", "online", retain=True)
    result = await cli("discovery", "clear", "--node", "old", "--yes", *login)
    assert result.code == 0
    assert "nobody answers there" in result.err
    assert await retained(broker) == {}


async def test_it_asks_first(
    cli: Any, broker: Mosquitto, login: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --yes nothing goes where there is no terminal; on one, only `y` removes."""
    async with Client.of(broker, "sigma9") as client:
        await client.publish("sigma9/old/state/status", "{}", retain=True)
    arguments = ("discovery", "clear", "--node", "old", *login)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    result = await cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "say --yes" in result.err
    for answer, code, left in ((b"\n", 1, 1), (b"n\n", 1, 1), (b"y\n", 0, 0)):
        ours, theirs = pty.openpty()
        os.write(ours, answer)
        with os.fdopen(theirs) as terminal:
            monkeypatch.setattr("sys.stdin", terminal)
            result = await cli(*arguments)
        os.close(ours)
        assert (result.code, len(await retained(broker))) == (code, left)
        assert "sigma9/old/state/status" in result.out


async def test_a_login_without_the_right(
    cli: Any, broker: Mosquitto, login: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that may not speak as a node clears nothing, and is not told that it did: on MQTT 5 and on 3.1.1."""
    async with Client.of(broker, "sigma9") as client:
        await client.publish("sigma9/old/state/status", "{}", retain=True)
    monkeypatch.setenv("PASSWORD", broker.passwords["admin"])
    asked = ("discovery", "clear", "--node", "old", "--yes", *login[:4], "--username", "admin", *login[6:])
    for protocol in ("5", "3.1.1"):
        monkeypatch.setenv("SIGMA9_MQTT__PROTOCOL", protocol)
        result = await cli(*asked)
        assert (result.code, result.out) == (1, "")
        assert "the role sigma9" in result.err
        assert len(await retained(broker)) == 1


@pytest.mark.parametrize("node", ["all", "reply", "a/b", "", "Main"])
async def test_a_node_that_can_not_be(cli: Any, node: str) -> None:
    """A name that no node has is refused."""
    assert (await cli("discovery", "clear", "--node", node)).code == 2

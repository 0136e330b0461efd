"""`sigma9 mqtt send`, to real servers on real brokers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.config import MqttSettings, Settings
from sigma9_core.datadir import DataDir
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.cli import send
from sigma9_integrations.mqtt.testing import Client, Mosquitto, serving, settings_for


@pytest.fixture(name="server", params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
async def _server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, alone: Path
) -> AsyncIterator[FakeServer]:
    """Run a server with its embedded broker: Mosquitto by MQTT 5, and amqtt by 3.1.1."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto_program")
    else:
        monkeypatch.setattr(mosquitto, "find", lambda: None)
    data_dir = DataDir(alone / "data")
    data_dir.lock("main")
    settings = Settings(data_dir=data_dir.path, mqtt=MqttSettings(port=0))
    try:
        async with serving(settings, data_dir=data_dir.path) as server:
            yield server
    finally:
        data_dir.unlock()


@pytest.fixture(name="login")
def _login(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Give the options that log in as admin on a test's broker."""
    for role, password in broker.passwords.items():
        monkeypatch.setenv(f"PASSWORD_OF_{role.upper()}", password)
    return login_of(broker, "admin")


def login_of(broker: Mosquitto, role: str) -> tuple[str, ...]:
    where = ("--host", "127.0.0.1", "--port", str(broker.port))
    return (*where, "--username", role, "--password-env", f"PASSWORD_OF_{role.upper()}")


async def test_a_command_is_answered(cli: Any, server: FakeServer) -> None:
    """A command arrives with its arguments, once, live, and its answer is shown as other commands show theirs."""
    server.answers["scan"] = {"strategies": ["seismograph"], "count": 3}
    result = await cli("mqtt", "send", "scan")
    assert (result.code, result.out, result.err) == (0, "strategies: seismograph, count: 3\n", "")
    result = await cli("mqtt", "send", "watchlist_add", '{"symbol": "BEME", "id": "mine"}', "--format", "json")
    assert (result.code, result.json["ok"], result.json["id"]) == (0, True, "mine")
    assert [(command.name, command.source) for command in server.commands] == [
        ("scan", "mqtt"),
        ("watchlist_add", "mqtt"),
    ]
    assert server.commands[1].args["symbol"] == "BEME"
    assert server.commands[0].id is not None
    result = await cli("mqtt", "send", "kill_switch", '{"reason": "trying"}')
    assert (result.code, len(server.kills)) == (0, 1)
    assert "reset_kill_switch" not in result.err
    assert (await cli("mqtt", "send", "plugin_disable", '{"name": "paper"}')).code == 0  # the right admin


async def test_what_the_server_refuses(cli: Any, server: FakeServer) -> None:
    """A name that it does not know and arguments that are wrong are its own to refuse: exit code 1."""
    result = await cli("mqtt", "send", "brew_coffee")
    assert (result.code, result.out) == (1, "")
    assert "brew_coffee" in result.err
    result = await cli("mqtt", "send", "watchlist_add", '{"symbol": "BEME", "expires_at": "soon"}')
    assert result.code == 1
    assert "expires_at" in result.err
    assert server.commands == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1,}', "at line 1, column 9: "),
        ('{"a":\n  nope}', "at line 2, column 3: "),
        ("start", "at line 1, column 1: "),
        ("", "at line 1, column 1: "),
        ("[1]", "not an object"),
        ("BEME", "arguments are written by name"),
        ('{"a": NaN}', "has NaN"),
        ('{"a": 1, "a": 2}', "has 'a' twice"),
        ("[" * 100_000, "nested too deep"),
    ],
)
async def test_json_that_is_none(cli: Any, text: str, sentence: str) -> None:
    """JSON that can't be read is refused here, with its place; no broker is looked for."""
    result = await cli("mqtt", "send", "scan", text)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert "nothing was sent" in result.err


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a\0"])
async def test_a_name_that_can_not_be(cli: Any, name: str) -> None:
    """What can't be a level of a topic is no name of a command."""
    result = await cli("mqtt", "send", name)
    assert result.code == 2
    assert "can't be the name of a command" in result.err


@pytest.mark.mosquitto
async def test_it_is_never_retained(cli: Any, broker: Mosquitto, login: tuple[str, ...]) -> None:
    """The command goes out once, at QoS 1, live, with an id; nothing of it stays on the broker."""
    async with Client.of(broker, "viewer") as viewer:
        await viewer.subscribe("sigma9/#")
        async with serving(settings_for(broker)):
            assert (await cli("mqtt", "send", "pause", *login)).code == 0
        sent = [message for message in viewer.heard if message.topic == "sigma9/main/command/pause"]
        assert [(message.retain, message.qos) for message in sent] == [(False, 1)]
        assert json.loads(sent[0].payload)["id"].startswith("cli-")
        replies = [message for message in viewer.heard if message.topic.startswith("sigma9/reply/cli-")]
        assert len(replies) == 1
        assert replies[0].correlation
    async with Client.of(broker, "viewer") as later:
        await later.subscribe("sigma9/main/command/#", "sigma9/reply/#", "sigma9/main/availability")
        await later.until_heard("sigma9/main/availability", "offline")
        assert len(later.heard) == 1


@pytest.mark.mosquitto
async def test_nobody_there(cli: Any, broker: Mosquitto, login: tuple[str, ...]) -> None:
    """A node that never was and one that is offline are told at once, with exit code 3: commands don't wait."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    result = await cli("mqtt", "send", "start", *login)
    assert (result.code, result.out) == (3, "")
    assert "sigma9/main has never been on this broker" in result.err
    async with serving(settings_for(broker)):
        pass
    result = await cli("mqtt", "send", "start", *login)
    assert result.code == 3
    assert "sigma9/main is offline" in result.err
    assert loop.time() - began < 4
    async with Client.of(broker, "viewer") as viewer:  # somebody listens, but no node
        await viewer.subscribe("sigma9/#")
        result = await cli("mqtt", "send", "start", *login)
        assert (result.code, "is offline" in result.err) == (3, True)


@pytest.mark.mosquitto
async def test_no_answer_in_time(cli: Any, broker: Mosquitto, login: tuple[str, ...]) -> None:
    """A node that is online and does not answer: exit code 3 after --timeout, and the outcome is not claimed."""
    async with Client.of(broker, "sigma9") as silent:
        await silent.publish("sigma9/main/availability", "online", retain=True)
        await silent.subscribe("sigma9/main/command/+")
        result = await cli("mqtt", "send", "start", "--timeout", "0.8", *login)
    assert result.code == 3
    assert "no answer from sigma9/main within 0.8 s: whether it was carried out is not known" in result.err


@pytest.mark.mosquitto
@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_what_the_broker_refuses(cli: Any, broker: Mosquitto, login: tuple[str, ...], role: str) -> None:
    """A login without the right is told by the broker on MQTT 5: exit code 1 at once, and nothing arrives."""
    async with serving(settings_for(broker)) as server:
        result = await cli("mqtt", "send", "risk_set", '{"rule": "x"}', *login_of(broker, role))
        assert result.code == 1
        assert f"does not let '{role}' publish to sigma9/main/command/risk_set" in result.err
        if role == "operator":
            assert (await cli("mqtt", "send", "pause", *login_of(broker, role))).code == 0
        assert [command.name for command in server.commands] == ["pause"] * (role == "operator")


@pytest.mark.mosquitto
async def test_to_another_node_and_to_all(cli: Any, broker: Mosquitto, login: tuple[str, ...]) -> None:
    """--node names another one, --all asks every node that is online; one that refuses or is silent is told."""
    first = settings_for(broker)
    second = first.model_copy(update={"node": "second"})
    async with serving(first) as one, serving(second) as two:
        assert (await cli("mqtt", "send", "pause", "--node", "second", *login)).code == 0
        assert [len(server.commands) for server in (one, two)] == [0, 1]
        result = await cli("mqtt", "send", "pause", "--all", "--format", "json", *login)
        assert (result.code, [row["node"] for row in result.json]) == (0, ["main", "second"])
        assert all(row["ok"] for row in result.json)
        assert [len(server.commands) for server in (one, two)] == [1, 2]
        result = await cli("mqtt", "send", "nonsense", "--all", *login)
        assert result.code == 1
        assert result.out.count("nonsense") == 2
        async with Client.of(broker, "sigma9") as silent:
            await silent.publish("sigma9/third/availability", "online", retain=True)
            result = await cli("mqtt", "send", "pause", "--all", "--timeout", "0.8", *login)
            assert result.code == 3
            assert "no answer from third" in result.err
            assert "second" in result.out
            await silent.publish("sigma9/third/availability", "", retain=True)
    result = await cli("mqtt", "send", "pause", "--all", *login)
    assert result.code == 3
    assert "no node has answered" in result.err
    assert (await cli("mqtt", "send", "pause", "--all", "--node", "x", *login)).code == 2


@pytest.mark.mosquitto
async def test_answers_of_others_are_not_mine(
    cli: Any, broker: Mosquitto, login: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On MQTT 3.1.1 the answer is known by its id: what others hear on the same topic is not taken for it."""
    monkeypatch.setenv("SIGMA9_MQTT__PROTOCOL", "3.1.1")
    async with Client.of(broker, "sigma9") as node:
        await node.publish("sigma9/main/availability", "online", retain=True)
        await node.subscribe("sigma9/main/command/+")
        sending = asyncio.create_task(cli("mqtt", "send", "start", *login))
        sent = await node.until_heard("sigma9/main/command/start")
        own = json.loads(sent.payload)["id"]
        for answer in ({"id": "other", "ok": False}, {"id": None, "ok": False}, {"id": own, "ok": True}):
            await node.publish("sigma9/main/response/start", json.dumps(answer))
        result = await sending
    assert (result.code, result.out, result.err) == (0, "done\n", "")


@pytest.mark.mosquitto
@pytest.mark.parametrize("ends", [("5", "5"), ("5", "3.1.1"), ("3.1.1", "5"), ("3.1.1", "3.1.1")])
async def test_both_ends_may_speak_either_protocol(
    cli: Any, broker: Mosquitto, login: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, ends: Sequence[str]
) -> None:
    """A node that speaks MQTT 3.1.1 sees no response topic, and its answer is found nevertheless."""
    monkeypatch.setenv("SIGMA9_MQTT__PROTOCOL", ends[0])
    async with serving(settings_for(broker, protocol=ends[1])) as server:
        server.answers["scan"] = {"count": 3}
        result = await cli("mqtt", "send", "scan", "--timeout", "5", *login)
        assert (result.code, result.out, result.err) == (0, "count: 3\n", "")
        assert [command.name for command in server.commands] == ["scan"]


@pytest.mark.mosquitto
async def test_a_connection_that_breaks(cli: Any, broker: Mosquitto, login: tuple[str, ...]) -> None:
    """Where the broker goes before the answer, the outcome is said to be unknown: exit code 3."""
    async with Client.of(broker, "sigma9") as node:
        await node.publish("sigma9/main/availability", "online", retain=True)
        await node.subscribe("sigma9/main/command/+")
        sending = asyncio.create_task(cli("mqtt", "send", "start", *login))
        await node.until_heard("sigma9/main/command/start")
        await broker.kill()
        result = await sending
    assert result.code == 3
    assert "whether the command was carried out is not known" in result.err
    assert send.GRACE < 5

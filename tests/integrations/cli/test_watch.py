"""`sigma9 mqtt watch`, beside real servers and real brokers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.config import MqttSettings, Settings
from sigma9_core.datadir import DataDir
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.broker.note import read_note
from sigma9_integrations.mqtt.service import FOLDER
from sigma9_integrations.mqtt.testing import Client, Mosquitto, serving, settings_for


@pytest.fixture(name="kind", params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose which embedded broker the machine has."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto_program")
    else:
        monkeypatch.setattr(mosquitto, "find", lambda: None)
    return str(request.param)


async def test_it_finds_the_embedded_broker(cli: Any, kind: str, alone: Path) -> None:
    """On the server's machine it needs no option: broker, port and password are found; stored ones are marked."""
    data_dir = DataDir(alone / "data")
    settings = Settings(data_dir=data_dir.path, mqtt=MqttSettings(port=0))
    data_dir.lock("main")
    try:
        async with serving(settings, data_dir=data_dir.path) as server:
            server.board.set("account", {"equity": 1})
            await asyncio.sleep(0.2)
            note = read_note(data_dir.path / FOLDER, os.getpid())
            assert note is not None
            assert (note.kind, note.node) == (kind, "main")
            assert (data_dir.path / FOLDER / "broker.json").stat().st_mode & 0o777 == 0o600
            for arguments in ((), ("--data-dir", "data")):
                result = await cli("mqtt", "watch", "sigma9/main/availability", "--count", "1", *arguments)
                assert (result.code, result.err) == (0, "")
                time, topic, mark, payload = result.out.split()
                assert (topic, mark, payload) == ("sigma9/main/availability", "(retained)", "online")
                assert len(time) == len("16:02:11.123")
            result = await cli("mqtt", "watch", "sigma9/+/state/#", "--json", "--count", "1")
            assert result.json["payload"] == {"equity": 1}
            assert result.json["retained"] is True
            assert set(result.json) == {"ts", "topic", "retained", "payload"}
    finally:
        data_dir.unlock()
    assert not (data_dir.path / FOLDER / "broker.json").exists()


@pytest.mark.mosquitto
async def test_a_broker_by_name(cli: Any, broker: Mosquitto, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --host any broker is watched; the password comes by the environment; a live message is not marked."""
    monkeypatch.setenv("PASSWORD", broker.passwords["viewer"])
    login = (
        "--host",
        "127.0.0.1",
        "--port",
        str(broker.port),
        "--username",
        "viewer",
        "--password-env",
        "PASSWORD",
    )
    async with Client.of(broker, "sigma9") as server:
        watching = asyncio.create_task(cli("mqtt", "watch", *login, "--count", "2"))
        await asyncio.sleep(0.5)
        await server.publish("sigma9/main/event/log/info", '{"a":\n"\x1b[31m"}')
        await server.publish("sigma9/main/state/positions", "x" * 1000)
        lines = (await watching).out.splitlines()
    assert lines[0].split("  ")[1:] == ["sigma9/main/event/log/info", '{"a": " [31m"}']
    assert lines[1].endswith("xxx… (1000 bytes)")
    assert len(lines) == 2
    monkeypatch.setenv("PASSWORD", "wrong")
    result = await cli("mqtt", "watch", *login)
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("refuses the login 'viewer': check the name and the password\n")


@pytest.mark.mosquitto
async def test_the_configuration_names_it(
    cli: Any, broker: Mosquitto, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a running server the external broker of server_config.yaml is used, with its login."""
    (alone / "server_config.yaml").write_text(
        f"mqtt: {{broker: external, port: {broker.port}, username: sigma9, password: '${{MQTT_PASSWORD}}'}}\n"
    )
    result = await cli("mqtt", "watch")
    assert (result.code, "MQTT_PASSWORD" in result.err) == (2, True)
    monkeypatch.setenv("MQTT_PASSWORD", broker.passwords["sigma9"])
    async with Client.of(broker, "sigma9") as server:
        await server.publish("sigma9/main/availability", "offline", retain=True)
        assert "offline" in (await cli("mqtt", "watch", "--count", "1")).out


@pytest.mark.mosquitto
async def test_a_running_server_with_an_external_broker(
    cli: Any, broker: Mosquitto, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running server's broker is found by its note; its login is in the configuration, or given."""
    data_dir = DataDir(alone / "far")
    data_dir.lock("main")
    monkeypatch.setenv("PASSWORD", broker.passwords["viewer"])
    try:
        async with serving(settings_for(broker, data_dir=data_dir.path), data_dir=data_dir.path):
            one = ("mqtt", "watch", "sigma9/main/availability", "--count", "1", "--data-dir", "far")
            result = await cli(*one)
            assert result.code == 2
            assert "--config" in result.err
            assert "online" in (await cli(*one, "--username", "viewer", "--password-env", "PASSWORD")).out
            login = f"username: sigma9, password: {broker.passwords['sigma9']}"
            (alone / "conf.yaml").write_text(f"mqtt: {{broker: external, port: {broker.port}, {login}}}\n")
            (alone / "conf.yaml").chmod(0o600)
            assert "online" in (await cli(*one, "--config", "conf.yaml")).out
    finally:
        data_dir.unlock()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 3, "and no broker is named"),
        (["--data-dir", "nowhere"], 3, "there is no folder"),
        (["--host", "127.0.0.1", "--port", "9"], 3, "no MQTT broker at mqtt://127.0.0.1:9"),
        (["--host", "127.0.0.1", "--ca", "nothing.crt"], 3, "can't be used: No such file"),
        (["--host", "x", "--username", "a", "--password-env", "NOTHING"], 2, "no variable NOTHING"),
        (["--host", "x", "--password-env", "NOTHING"], 2, "goes with --username"),
        (["--port", "x"], 2, "write a port"),
        (["a/#/b"], 2, "is no topic filter"),
        (["a/b+"], 2, "is no topic filter"),
        ([""], 2, "is no topic filter"),
    ],
)
async def test_what_can_not_be(cli: Any, arguments: list[str], code: int, sentence: str) -> None:
    """Nobody there is 3, wrong usage 2; one sentence says what is meant."""
    result = await cli("mqtt", "watch", *arguments)
    assert (result.code, result.out) == (code, "")
    assert sentence in result.err
    assert "Traceback" not in result.err


@pytest.mark.mosquitto
async def test_it_ends_with_ctrl_c_and_outlives_the_broker(broker: Mosquitto, alone: Path) -> None:
    """A broker that goes and comes again is watched on; Ctrl-C ends it quietly with 130."""
    environ = {**os.environ, "PASSWORD": broker.passwords["viewer"]}
    login = (
        "--host",
        "127.0.0.1",
        "--port",
        str(broker.port),
        "--username",
        "viewer",
        "--password-env",
        "PASSWORD",
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sigma9_core", "mqtt", "watch", *login),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    for text in ("first", "second"):
        async with Client.of(broker, "sigma9") as server:
            for _ in range(100):
                await server.publish("sigma9/main/event/log/info", text)
                try:
                    line = await asyncio.wait_for(process.stdout.readline(), 0.1)
                except TimeoutError:
                    continue
                if text in line.decode():
                    break
            else:
                pytest.fail(f"{text} is not shown")
        if text == "first":
            await broker.kill()
            said = (await asyncio.wait_for(process.stderr.readline(), 5)).decode()
            assert said.startswith("sigma9: the connection was lost")
            await broker.start()
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.wait_for(process.communicate(), 5)
    assert process.returncode == 130
    assert b"Traceback" not in errors


@pytest.mark.mosquitto
async def test_a_reader_that_has_seen_enough(broker: Mosquitto, alone: Path) -> None:
    """`sigma9 mqtt watch | head -1` ends without a word."""
    environ = {**os.environ, "PASSWORD": broker.passwords["viewer"]}
    async with Client.of(broker, "sigma9") as server:
        for number in range(3):
            await server.publish(f"sigma9/main/state/quote/S{number}", "1", retain=True)
        command = (
            f"{sys.executable} -m sigma9_core mqtt watch --host 127.0.0.1 --port {broker.port} --username viewer "
            "--password-env PASSWORD | head -1"
        )
        process = await asyncio.create_subprocess_shell(
            command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environ
        )
        reading = asyncio.create_task(process.communicate())
        while not reading.done():
            await server.publish("sigma9/main/event/log/info", "x")
            await asyncio.sleep(0.1)
        out, errors = await reading
    assert out.count(b"\n") == 1
    assert errors == b""

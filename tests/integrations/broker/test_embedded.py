"""The embedded broker, with real logins: Mosquitto and amqtt."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import aiomqtt
import pytest

from sigma9_core.clock import monotonic
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.broker.accounts import PASSWORDS, access
from sigma9_integrations.broker.embedded import HOST, EmbeddedBroker, EmbeddedBrokerError, can_log_in, free_port
from sigma9_integrations.mqtt.testing import Client

RULES = access("sigma9", "homeassistant")


def make(folder: Path | None, port: int = 0, **more: Any) -> tuple[EmbeddedBroker, list[str]]:
    banner: list[str] = []
    return EmbeddedBroker(folder, port, "sigma9", RULES, announce=banner.append, **more), banner


def client_of(broker: EmbeddedBroker, role: Any) -> Client:
    protocol: Literal["5", "3.1.1"] = "5" if broker.kind == "mosquitto" else "3.1.1"
    return Client(broker.port, role, broker.passwords[role], protocol)


async def until_login(broker: EmbeddedBroker, seconds: float = 10) -> None:
    deadline = monotonic() + seconds
    while not await can_log_in(broker.host, broker.port, "sigma9", broker.passwords["sigma9"]):
        assert monotonic() < deadline, "the broker is not back"
        await asyncio.sleep(0.01)


@pytest.fixture(name="broker", params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
async def _broker(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[EmbeddedBroker]:
    """Run the embedded broker, once as Mosquitto and once as amqtt."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto_program")
    else:
        monkeypatch.setattr(mosquitto, "find", lambda: None)
    broker, _ = make(tmp_path / "mqtt")
    await broker.start()
    assert broker.kind == request.param
    yield broker
    await broker.stop()


async def test_the_roles_are_told_apart(broker: EmbeddedBroker) -> None:
    """A viewer reads everything and publishes nothing; operators trade, admins command; nobody poses as us."""
    attempts = {
        "sigma9/main/command/start": {"operator", "admin", "sigma9"},
        "sigma9/all/command/kill_switch": {"operator", "admin", "sigma9"},
        "sigma9/main/command/reset_kill_switch": {"admin", "sigma9"},
        "sigma9/main/command/risk_set": {"admin", "sigma9"},
        "sigma9/main/state/status": {"sigma9"},
        "sigma9/main/availability": {"sigma9"},
        "sigma9/main/response/start": {"sigma9"},
        "sigma9/main/event/status_update": {"sigma9"},
        "sigma9/reply/x": {"sigma9"},
        "elsewhere": set(),
    }
    async with client_of(broker, "viewer") as reader, client_of(broker, "sigma9") as server:
        await reader.subscribe("sigma9/#", "homeassistant/#")
        for role in ("viewer", "operator", "admin", "sigma9"):
            async with client_of(broker, role) as client:
                for topic in attempts:
                    await client.publish(topic, role)
        await server.publish("sigma9/end", "end")
        await reader.until_heard("sigma9/end")
    for topic, allowed in attempts.items():
        assert set(reader.payloads(topic)) == allowed, topic


async def test_nobody_reads_outside_of_his_branch(broker: EmbeddedBroker) -> None:
    """A subscription wider than the role's branch shows nothing of it, or is refused."""
    async with client_of(broker, "viewer") as viewer, client_of(broker, "sigma9") as server:
        await server.publish("homeassistant/x/config", "kept", retain=True)
        await viewer.subscribe("$SYS/#", "elsewhere/#")
        await viewer.subscribe("sigma9/#")
        await server.publish("elsewhere/x", "secret")
        await server.publish("sigma9/end", "end")
        await viewer.until_heard("sigma9/end")
        assert {message.topic for message in viewer.heard} == {"sigma9/end"}


async def test_who_publishes_and_leaves_at_once_is_heard(broker: EmbeddedBroker) -> None:
    """A QoS 0 command of `mosquitto_pub` arrives, whatever others have subscribed to and is retained for them."""
    program = shutil.which("mosquitto_pub")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto-clients are missing, and CI skips nothing")
        pytest.skip("mosquitto_pub is not installed (Debian: mosquitto-clients)")
    topic = "sigma9/main/command/pause"
    async with client_of(broker, "viewer") as reader, client_of(broker, "sigma9") as server:
        for number in range(30):
            await server.publish(f"sigma9/main/state/quote/S{number}", "x" * 400, retain=True)
        await reader.subscribe("sigma9/#")
        for number in range(5):
            login = (
                "-h",
                broker.host,
                "-p",
                str(broker.port),
                "-u",
                "operator",
                "-P",
                broker.passwords["operator"],
            )
            child = await asyncio.create_subprocess_exec(program, *login, "-t", topic, "-m", str(number))
            assert await child.wait() == 0
        await server.publish("sigma9/end", "end")
        await reader.until_heard("sigma9/end")
    assert reader.payloads(topic) == ["0", "1", "2", "3", "4"]


async def test_strangers_are_refused(broker: EmbeddedBroker) -> None:
    """No name, a wrong password, an unknown name, and a will that the role may not publish: all refused."""
    version = aiomqtt.ProtocolVersion.V311
    password = broker.passwords["viewer"]
    will = aiomqtt.Will("sigma9/main/command/kill_switch", "PRESS")
    logins: list[dict[str, Any]] = [
        {},
        {"username": "viewer", "password": "wrong"},
        {"username": "viewer"},
        {"username": "root", "password": password},
    ]
    for login in logins:
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client(HOST, broker.port, protocol=version, timeout=5, **login):
                pass
    async with client_of(broker, "viewer") as watcher, client_of(broker, "sigma9") as server:
        await watcher.subscribe("sigma9/#")
        try:
            async with aiomqtt.Client(
                HOST, broker.port, protocol=version, timeout=5, username="viewer", password=password, will=will
            ) as client:
                sock: Any = client._client.socket()
                sock.shutdown(socket.SHUT_RDWR)  # the connection breaks: the broker is to publish the will
        except aiomqtt.MqttError:
            pass
        await server.publish("sigma9/end", "end")
        await watcher.until_heard("sigma9/end")
        assert watcher.payloads("sigma9/main/command/kill_switch") == []


async def test_it_is_restarted_when_it_is_killed(broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture) -> None:
    """After kill -9 the broker is back at the same port with the same passwords, and the log says so."""
    assert broker.pid is not None
    before = broker.port, dict(broker.passwords), broker.pid
    os.kill(broker.pid, signal.SIGKILL)
    deadline = monotonic() + 5
    while broker.pid in (before[2], None):
        assert monotonic() < deadline
        await asyncio.sleep(0.005)
    await until_login(broker)
    assert (broker.port, dict(broker.passwords)) == before[:2]
    assert "SIGKILL" in caplog.text


async def test_a_frozen_one_is_ended(broker: EmbeddedBroker) -> None:
    """A broker that is frozen does not hold up the stop for long."""
    pid = broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = monotonic()
    await broker.stop()
    assert monotonic() - began < 1.5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.mosquitto
async def test_it_takes_the_next_free_port(mosquitto_program: str, tmp_path: Path) -> None:
    """Where the configured port is taken, the next free one is used, and the banner says so."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        broker, banner = make(tmp_path, port)
        await broker.start()
        try:
            assert port < broker.port <= port + 50
            assert any(f"port {port} is taken" in line for line in banner)
            assert f"MQTT  mqtt://127.0.0.1:{broker.port} (embedded mosquitto)" in banner
        finally:
            await broker.stop()


@pytest.mark.mosquitto
async def test_two_at_once_do_not_collide(mosquitto_program: str, tmp_path: Path) -> None:
    """Two servers with the same configured port each get a broker of their own."""
    port = free_port()
    one, _ = make(tmp_path / "1", port)
    two, _ = make(tmp_path / "2", port)
    await asyncio.gather(one.start(), two.start())
    try:
        assert one.port != two.port
        for mine, other in ((one, two), (two, one)):
            assert await can_log_in(HOST, mine.port, "sigma9", mine.passwords["sigma9"])
            assert not await can_log_in(HOST, mine.port, "sigma9", other.passwords["sigma9"])
    finally:
        await asyncio.gather(one.stop(), two.stop())


@pytest.mark.mosquitto
async def test_its_files_are_private(mosquitto_program: str, tmp_path: Path) -> None:
    """Every file is readable by its owner alone; without a folder nothing stays behind."""
    broker, banner = make(tmp_path / "mqtt")
    await broker.start()
    await broker.stop()
    files = list((tmp_path / "mqtt").iterdir())
    assert PASSWORDS in {path.name for path in files}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert not any(broker.passwords[role] in line for role in ("admin", "operator", "sigma9") for line in banner)
    nowhere, _ = make(None)
    await nowhere.start()
    folder = nowhere._folder
    assert folder.exists()
    await nowhere.stop()
    assert not folder.exists()


@pytest.mark.mosquitto
async def test_its_own_log_is_quiet(
    mosquitto_program: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the broker says goes to our log at debug level; an ordinary day says nothing louder."""
    caplog.set_level(logging.DEBUG, "sigma9.mqtt.broker")
    broker, _ = make(tmp_path)
    await broker.start()
    async with client_of(broker, "viewer") as client:
        await client.subscribe("sigma9/#")
    await broker.stop()
    assert any("New client connected" in record.message for record in caplog.records)
    assert {record.levelno for record in caplog.records if record.name.startswith("sigma9")} == {logging.DEBUG}


async def test_a_mosquitto_that_does_not_start_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Mosquitto is there but does not start, its last words are logged and amqtt takes its place."""
    broken = tmp_path / "mosquitto"
    broken.write_text("#!/bin/sh\necho 'Error: a broken library' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(mosquitto, "find", lambda: str(broken))
    broker, _ = make(tmp_path / "mqtt")
    await broker.start()
    assert broker.kind == "amqtt"
    assert "a broken library" in caplog.text
    await broker.stop()


async def test_no_broker_at_all_is_an_error_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every port is taken, the error names the setting, and nothing stays behind."""
    monkeypatch.setattr("sigma9_integrations.broker.embedded._is_free", lambda port: False)
    broker, _ = make(None, 1883)
    with pytest.raises(EmbeddedBrokerError, match=r"mqtt\.port"):
        await broker.start()
    assert not broker._folder.exists()

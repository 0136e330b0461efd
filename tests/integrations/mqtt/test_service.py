"""The service as a whole: with the embedded broker, with an external one, through crashes of either side."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from sigma9_core.clock import monotonic
from sigma9_core.config import MqttSettings, Settings
from sigma9_core.contracts import PluginContext
from sigma9_core.errors import ConfigError
from sigma9_core.events import StatusUpdate
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.broker.accounts import load_passwords
from sigma9_integrations.mqtt import register_services
from sigma9_integrations.mqtt.service import FOLDER, MqttService
from sigma9_integrations.mqtt.testing import Client, Mosquitto, Proxy, service_for, serving, settings_for

CHILD = """
import asyncio, os, sys
from pathlib import Path
from sigma9_core.config import MqttSettings, Settings
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.mqtt.testing import service_for, serving

async def main():
    folder = Path(sys.argv[1])
    settings = Settings(data_dir=folder, mqtt=MqttSettings(**eval(sys.argv[2])))
    service = service_for(settings, folder)
    async with serving(settings, service=service) as server:
        broker = service._broker
        print(server.mqtt, broker and broker.port, broker and broker.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def embedded(folder: Path, **mqtt: Any) -> Settings:
    return Settings(data_dir=folder, mqtt=MqttSettings(port=0, **mqtt))


def broker_of(service: MqttService) -> Any:
    return cast(Any, service)._broker


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and waits to be collected does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return state.strip() != "" and not state.strip().startswith("Z")


async def start_child(folder: Path, mqtt: dict[str, Any]) -> tuple[asyncio.subprocess.Process, list[str]]:
    """Run a server in a process of its own; give it with what it says once it is online."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(folder), repr(mqtt), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said = (await asyncio.wait_for(process.stdout.readline(), 15)).decode().split()
    assert said[0] == "connected"
    return process, said


@pytest.fixture(name="kind", params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose which embedded broker the machine has."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto_program")
    else:
        monkeypatch.setattr(mosquitto, "find", lambda: None)
    return str(request.param)


async def test_it_is_online_in_time(kind: str, tmp_path: Path) -> None:
    """From start to `online` with an embedded broker takes less than two seconds; the banner says where it is."""
    settings = embedded(tmp_path)
    began = monotonic()
    async with serving(settings, data_dir=tmp_path) as server:
        assert monotonic() - began < 2
        assert server.mqtt == "connected"
        passwords = load_passwords(tmp_path / FOLDER)
        port = server.banner[0].rpartition(":")[2].split()[0]
        assert server.banner[0] == f"MQTT  mqtt://127.0.0.1:{port} (embedded {kind})"
        login = f"-u viewer -P {passwords['viewer']}"
        assert server.banner[1] == f"mosquitto_sub -h 127.0.0.1 -p {port} {login} -v -t 'sigma9/#'"
        secret = [passwords["sigma9"], passwords["admin"], passwords["operator"]]
        assert not any(password in line for password in secret for line in server.banner)
    assert server.mqtt == "disconnected"


@pytest.mark.mosquitto
async def test_the_shown_line_works(mosquitto_program: str, tmp_path: Path) -> None:
    """Whoever pastes the banner's mosquitto_sub line sees the node."""
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("mosquitto_sub is not installed")
    async with serving(embedded(tmp_path), data_dir=tmp_path) as server:
        line = next(line for line in server.banner if line.startswith("mosquitto_sub"))
        process = await asyncio.create_subprocess_shell(f"{line} -C 1", stdout=asyncio.subprocess.PIPE)
        shown, _ = await asyncio.wait_for(process.communicate(), 5)
        assert shown.decode().strip() == "sigma9/main/availability online"


async def test_everything_works_on_either_broker(kind: str, tmp_path: Path) -> None:
    """State, removal, events, commands, kills and their answers: on Mosquitto, and on amqtt as far as it can."""
    protocol: Literal["5", "3.1.1"] = "5" if kind == "mosquitto" else "3.1.1"
    settings = embedded(tmp_path)
    server = FakeServer(settings)
    server.board.set("account", {"equity": 1})
    service = service_for(settings, tmp_path)
    async with serving(settings, server, service=service):
        broker = broker_of(service)
        operator = Client(broker.port, "operator", broker.passwords["operator"], protocol)
        async with operator, Client(broker.port, "viewer", broker.passwords["viewer"], protocol) as viewer:
            await viewer.subscribe("sigma9/#")
            await viewer.until_heard("sigma9/main/state/account", '{"equity":1}')
            await viewer.until_heard("sigma9/main/availability", "online")
            server.board.set("account", {"equity": 2})
            await viewer.until_heard("sigma9/main/state/account", '{"equity":2}')
            server.board.set("account", None)
            await viewer.until_heard("sigma9/main/state/account", "")
            for number in range(300):
                server.emit("status_update", StatusUpdate(changed=("engine",), status={"n": number}), durable=True)
            topic = "sigma9/main/event/status_update"
            await viewer.until(lambda heard: sum(message.topic == topic for message in heard) >= 300)
            assert [json.loads(text)["seq"] for text in viewer.payloads(topic)] == list(range(1, 301))
            await operator.publish("sigma9/main/command/start", "PRESS", retain=True)
            await operator.publish("sigma9/main/command/kill_switch", '{"id": "k"}', retain=True)
            await operator.publish("sigma9/main/command/stop", "{")
            for name, ok in (("start", True), ("kill_switch", True), ("stop", False)):
                answer = json.loads((await viewer.until_heard(f"sigma9/main/response/{name}")).payload)
                assert answer["ok"] is ok
            assert [command.name for command in server.commands] == ["start"]
            assert [command.id for command in server.kills] == ["k"]
        viewer = Client(broker.port, "viewer", broker.passwords["viewer"], protocol)
        async with viewer:
            await viewer.subscribe("sigma9/main/state/#", "sigma9/main/command/#", "sigma9/main/availability")
            await viewer.until_heard("sigma9/main/availability", "online")
            assert viewer.payloads("sigma9/main/state/account") == []
            assert [one for one in viewer.heard if "/command/" in one.topic] == []  # retained, and cleared


async def test_a_killed_embedded_broker_comes_back(kind: str, tmp_path: Path) -> None:
    """After kill -9 of the embedded broker the node is online again by itself, and all state is there again."""
    protocol: Literal["5", "3.1.1"] = "5" if kind == "mosquitto" else "3.1.1"
    settings = embedded(tmp_path)
    service = service_for(settings, tmp_path)
    async with serving(settings, service=service) as server:
        server.board.set("account", {"equity": 1})
        broker = broker_of(service)
        os.kill(broker.pid, signal.SIGKILL)
        await wait_for(lambda: server.mqtt == "disconnected")
        await wait_for(lambda: server.mqtt == "connected", 10)
        async with Client(broker.port, "viewer", broker.passwords["viewer"], protocol) as viewer:
            await viewer.subscribe("sigma9/#")
            await viewer.until_heard("sigma9/main/state/account", '{"equity":1}')
            await viewer.until_heard("sigma9/main/availability", "online")


async def test_a_frozen_embedded_broker_does_not_hold_up_the_stop(kind: str, tmp_path: Path) -> None:
    """With the embedded broker frozen the stop ends within three seconds, and the broker with it."""
    settings = embedded(tmp_path)
    service = service_for(settings, tmp_path)
    async with serving(settings, service=service) as server:
        pid = broker_of(service).pid
        os.kill(pid, signal.SIGSTOP)
        server.board.set("account", {"equity": 1})
        server.emit("status_update", StatusUpdate(changed=("engine",), status={}), durable=True)
        began = monotonic()
    assert monotonic() - began < 3
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.mosquitto
async def test_a_killed_server_takes_its_broker_along(mosquitto_program: str, tmp_path: Path) -> None:
    """After kill -9 of the server its embedded broker is gone within two seconds."""
    process, said = await start_child(tmp_path, {"port": 0})
    pid = int(said[2])
    process.kill()
    await process.wait()
    await wait_for(lambda: not is_running(pid), 2)


@pytest.mark.mosquitto
async def test_a_killed_server_is_offline(broker: Mosquitto, tmp_path: Path) -> None:
    """After kill -9 of the server the broker publishes the last will, retained."""
    mqtt = settings_for(broker).mqtt.model_dump(include={"broker", "host", "port", "username"})
    process, _ = await start_child(tmp_path, {**mqtt, "password": broker.passwords["sigma9"]})
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/availability")
        await client.until_heard("sigma9/main/availability", "online")
        process.kill()
        await process.wait()
        await client.until_heard("sigma9/main/availability", "offline")
        async with Client.of(broker, "viewer") as later:
            await later.subscribe("sigma9/main/availability")
            assert (await later.until_heard("sigma9/main/availability")).payload == "offline"


@pytest.mark.mosquitto
async def test_a_broker_that_comes_later_is_found(broker: Mosquitto) -> None:
    """Where the external broker is away at the start, the start does not wait for it; the node connects later."""
    await broker.stop()
    settings = settings_for(broker)
    began = monotonic()
    async with serving(settings) as server:
        assert monotonic() - began < 1
        assert server.mqtt == "disconnected"
        server.emit("status_update", StatusUpdate(changed=("engine",), status={}), durable=True)
        await broker.start()
        async with Client.of(broker, "viewer") as client:
            await client.subscribe("sigma9/#")
            await client.until_heard("sigma9/main/availability", "online")
            event = await client.until_heard("sigma9/main/event/status_update")
            assert json.loads(event.payload)["late"] is True


@pytest.mark.parametrize("host", ["", "mqtt..lan", ".lan", f"{'a' * 64}.lan"])
async def test_a_name_that_no_machine_can_have(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """A mistyped `mqtt.host` is told in one sentence, and the server runs without its broker."""
    settings = Settings(mqtt=MqttSettings(broker="external", host=host))
    async with serving(settings) as server:
        assert server.mqtt == "disconnected"
    assert f"'{host}' can't be the name or the address of a machine" in caplog.text


@pytest.mark.mosquitto
async def test_a_second_server_of_the_same_node_is_refused(broker: Mosquitto) -> None:
    """Two servers on one {base}/{node}: the second is refused with the reason, the first is not disturbed."""
    settings = settings_for(broker)
    async with serving(settings) as first, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/availability")
        with pytest.raises(ConfigError, match="another server is online as sigma9/main"):
            async with serving(settings):
                pass
        assert first.mqtt == "connected"
        assert client.payloads("sigma9/main/availability") == ["online"]
        other = settings.model_copy(update={"node": "second"})
        async with serving(other) as second:
            assert second.mqtt == "connected"


@pytest.mark.mosquitto
async def test_two_servers_that_start_together_are_told(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither sees the other at its start; that each throws the other out is said."""
    settings = settings_for(broker)
    services = [service_for(settings) for _ in range(2)]
    async with FakeServer(settings) as first, FakeServer(settings) as second:
        await asyncio.gather(*(each.start(server) for each, server in zip(services, (first, second), strict=True)))
        deadline = monotonic() + 10
        while "does a second server run as this node" not in caplog.text:
            assert monotonic() < deadline
            await asyncio.sleep(0.05)
        await asyncio.gather(*(each.stop() for each in services))


@pytest.mark.mosquitto
async def test_a_leftover_online_is_no_second_server(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """`online` that a broker kept of a node which died together with it does not keep the node out."""
    monkeypatch.setattr("sigma9_integrations.mqtt.survey.ANSWER_SECONDS", 0.2)
    async with Client.of(broker, "sigma9") as client:
        await client.publish("sigma9/main/availability", "online", retain=True)
    async with serving(settings_for(broker)) as server:
        assert server.mqtt == "connected"


@pytest.mark.mosquitto
async def test_availability_needs_every_connection(
    broker: Mosquitto, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that has lost a connection is offline until it is back."""
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.PAUSE_LEAST", 0.3)
    settings = settings_for(broker)
    service = service_for(settings)
    async with serving(settings, service=service) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/availability")
        await client.until_heard("sigma9/main/availability", "online")
        node = cast(Any, service)._node
        node._command_link._pause = 0.3
        await node._command_link.wire.drop()
        await client.until(lambda heard: [m.payload for m in heard] == ["online", "offline"])
        assert server.mqtt == "disconnected"
        await client.until(lambda heard: [m.payload for m in heard] == ["online", "offline", "online"])
        assert server.mqtt == "connected"


async def test_a_stop_during_the_start_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """Where another part fails while this one starts, the stop ends what has begun, at any moment."""
    for step in range(8):
        settings = embedded(tmp_path)
        service = service_for(settings, tmp_path)
        async with FakeServer(settings) as server:
            starting = asyncio.create_task(service.start(server))
            await asyncio.sleep(step * 0.02)
            await service.stop()
            await asyncio.gather(starting, return_exceptions=True)
            assert broker_of(service) is None
            assert server.mqtt == "disconnected"
    assert len(asyncio.all_tasks()) == 1
    ps = await asyncio.create_subprocess_exec(
        "ps", "-o", "args=", "--ppid", str(os.getpid()), stdout=asyncio.subprocess.PIPE
    )
    children, _ = await ps.communicate()
    assert str(tmp_path) not in children.decode()


async def test_disabled_means_disabled(tmp_path: Path) -> None:
    """Switched off, the service starts nothing and says so."""
    async with serving(embedded(tmp_path, enabled=False), data_dir=tmp_path) as server:
        assert server.mqtt == "disabled"
        assert server.banner == []
    assert not (tmp_path / FOLDER).exists()


async def test_amqtt_and_protocol_5_do_not_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that wants MQTT 5 alone is refused where the embedded broker is amqtt, and nothing stays."""
    monkeypatch.setattr(mosquitto, "find", lambda: None)
    settings = embedded(tmp_path, protocol="5")
    service = service_for(settings, tmp_path)
    with pytest.raises(ConfigError, match="install Mosquitto"):
        async with serving(settings, service=service):
            pass
    assert broker_of(service) is None


def test_the_module_registers_one_service() -> None:
    """The entry point offers the service `mqtt` through the public hook."""
    found: list[str] = []

    def register(name: str, factory: Any, config: Any = None) -> None:
        found.append(name)
        context = PluginContext("mqtt", Settings(), cast(Any, None), cast(Any, None), None)
        assert isinstance(factory(None, context), MqttService)

    register_services(cast(Any, register))
    assert found == ["mqtt"]


def test_loading_the_plugin_imports_no_client() -> None:
    """All plugin modules are imported at every start: this one brings neither aiomqtt nor amqtt."""
    code = "import sys, sigma9_integrations.mqtt; print({'aiomqtt', 'amqtt', 'paho'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"

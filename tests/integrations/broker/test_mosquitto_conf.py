"""The shipped mosquitto.conf: a real Mosquitto takes it, every listener works, and every line has its reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiomqtt
import pytest

from sigma9_core.clock import monotonic
from sigma9_core.config import MqttSettings, MqttTls, Settings
from sigma9_integrations.broker.accounts import Role, load_passwords
from sigma9_integrations.broker.embedded import HOST, can_log_in, free_port
from sigma9_integrations.broker.mosquitto import SETTINGS
from sigma9_integrations.cli.setup import setup
from sigma9_integrations.mqtt.connection import TlsSocket
from sigma9_integrations.mqtt.testing import serving

FILE = Path(__file__).parents[3] / "mosquitto.conf"
PORTS = (1883, 8883, 8884, 8885)


def settings(text: str) -> dict[str, str]:
    lines = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, value in lines if name != "log_type"}


def set_up(folder: Path, *, tls: bool = True, force: bool = False) -> None:
    """Do what `sigma9 mqtt setup` does."""
    args = {"folder": folder, "base_topic": "sigma9", "prefix": "homeassistant", "tls": tls, "hosts": []}
    assert setup(SimpleNamespace(**args, days=None, force=force)) == 0  # type: ignore[arg-type]


def trusting(ca: Path) -> ssl.SSLContext:
    """Trust one authority alone, and check the name."""
    context = ssl.create_default_context(cafile=str(ca))
    context.sslsocket_class = TlsSocket
    return context


@dataclass
class Shipped:
    """A Mosquitto with the shipped configuration, as `sigma9 mqtt setup` has filled it in."""

    folder: Path
    ports: dict[int, int]
    passwords: dict[Role, str]
    said: bytes = b""

    def tls(self, **more: str) -> MqttTls:
        """Trust this broker's authority; `cert="sigma9"` shows that certificate."""
        files = {
            name: self.folder / f"{value}.{'key' if name == 'key' else 'crt'}" for name, value in more.items()
        }
        return MqttTls(ca=self.folder / "ca.crt", **files)

    def settings(self, port: int, tls: MqttTls, *, host: str = HOST, login: bool = True) -> Settings:
        """Give the settings of a server that lives on this broker."""
        values: dict[str, Any] = {"username": "sigma9", "password": self.passwords["sigma9"]} if login else {}
        return Settings(mqtt=MqttSettings(broker="external", host=host, port=self.ports[port], tls=tls, **values))

    def client(self, role: Role, port: int = 1883, **more: Any) -> aiomqtt.Client:
        """Make a client of a role."""
        options = {"protocol": aiomqtt.ProtocolVersion.V5, "timeout": 5, **more}
        return aiomqtt.Client(HOST, self.ports[port], username=role, password=self.passwords[role], **options)

    def context(self, **more: str) -> ssl.SSLContext:
        """Trust this broker's authority alone, and check the name."""
        context = trusting(self.folder / "ca.crt")
        if more:
            context.load_cert_chain(
                str(self.folder / f"{more['cert']}.crt"), str(self.folder / f"{more['cert']}.key")
            )
        return context


@contextlib.asynccontextmanager
async def running(program: str, folder: Path) -> AsyncIterator[Shipped]:
    """Run Mosquitto with what was set up in `folder`, on free ports."""
    text = (folder / "mosquitto.conf").read_text()
    ports = {port: free_port() for port in PORTS}
    for port, free in ports.items():
        text = text.replace(f"\nlistener {port}", f"\nlistener {free}")
    text = text.replace("/var/lib/mosquitto/", f"{folder}/").replace("log_dest syslog", "log_dest stderr")
    if os.geteuid() == 0:
        text += "\nuser root\n"
    config = folder / "test.conf"
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(program, "-c", str(config), stderr=asyncio.subprocess.PIPE)
    shipped = Shipped(folder, ports, dict(load_passwords(folder)))
    try:
        deadline = monotonic() + 5
        while not await can_log_in(HOST, ports[1883], "viewer", shipped.passwords["viewer"]):
            assert monotonic() < deadline
            assert process.returncode is None, await process.communicate()
            await asyncio.sleep(0.01)
        yield shipped
    finally:
        if process.returncode is None:
            process.terminate()
        _, shipped.said = await process.communicate()


@pytest.fixture(name="shipped")
async def _shipped(mosquitto_program: str, tmp_path: Path) -> AsyncIterator[Shipped]:
    set_up(tmp_path / "sigma9")
    async with running(mosquitto_program, tmp_path / "sigma9") as shipped:
        yield shipped


def test_every_line_has_its_reason() -> None:
    """Each setting, or group of settings, stands below a comment."""
    before = ""
    for line in FILE.read_text().splitlines():
        if line and not line.startswith("#"):
            assert before, f"no reason above: {line}"
        before = line


def test_it_agrees_with_the_embedded_one() -> None:
    """Limits and locks are the same in the shipped file and in the embedded broker."""
    shipped, embedded = settings(FILE.read_text()), settings(SETTINGS)
    same = set(embedded) - {"persistence", "sys_interval", "log_dest", "log_timestamp"}
    assert {name: shipped[name] for name in same} == {name: embedded[name] for name in same}


@pytest.mark.mosquitto
@pytest.mark.parametrize("tls", [False, True])
async def test_mosquitto_runs_with_it(mosquitto_program: str, tmp_path: Path, *, tls: bool) -> None:
    """As the documented command makes it, with and without TLS: roles log in, strangers don't."""
    set_up(tmp_path / "sigma9", tls=tls)
    async with running(mosquitto_program, tmp_path / "sigma9") as shipped:
        port = shipped.ports[1883]
        assert await can_log_in(HOST, port, "admin", shipped.passwords["admin"])
        assert not await can_log_in(HOST, port, "viewer", "wrong")
    assert b"Error" not in shipped.said


@pytest.mark.mosquitto
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(("port", "transport"), [(8883, "tcp"), (8884, "websockets")])
async def test_a_client_over_the_network(
    shipped: Shipped, tmp_path: Path, port: int, transport: Any, version: Any
) -> None:
    """Over TLS, and over WebSocket with it, a client with a login and ca.crt reads and commands, and no other."""
    context = shipped.context()
    context.minimum_version = context.maximum_version = version
    web: dict[str, Any] = {"websocket_path": "/mqtt"} if transport == "websockets" else {}
    options: dict[str, Any] = {"transport": transport, **web}
    async with (
        shipped.client("viewer") as plain,
        shipped.client("operator", port, tls_context=context, **options) as phone,
    ):
        await plain.subscribe("sigma9/#", 1)
        await phone.subscribe("sigma9/#", 1)
        await phone.publish("sigma9/main/state/status", "forged", 1)
        await phone.publish("sigma9/main/command/pause", "PRESS", 1)
        for client in (plain, phone):
            message = await asyncio.wait_for(anext(aiter(client.messages)), 5)
            assert (str(message.topic), message.payload) == ("sigma9/main/command/pause", b"PRESS")
    strangers: list[dict[str, Any]] = [
        {"username": "operator", "password": "wrong", "tls_context": context},
        {"tls_context": context},
    ]
    if transport == "tcp":  # plain text on the port for TLS
        strangers.append({"username": "operator", "password": shipped.passwords["operator"]})
    for login in strangers:
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client(HOST, shipped.ports[port], timeout=3, **options, **login):
                pass
    set_up(tmp_path / "other")
    wrong = trusting(tmp_path / "other" / "ca.crt")
    with pytest.raises(aiomqtt.MqttError, match="CERTIFICATE_VERIFY_FAILED"):
        async with shipped.client("operator", port, tls_context=wrong, **options):
            pass


@pytest.mark.mosquitto
async def test_old_tls_is_refused(shipped: Shipped) -> None:
    """A client that speaks TLS 1.1 at most gets no connection, whatever its library allows."""
    for port in (8883, 8884, 8885):
        context = shipped.context()
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(HOST, shipped.ports[port], ssl=context)


@pytest.mark.mosquitto
async def test_a_certificate_is_a_login(shipped: Shipped, tmp_path: Path) -> None:
    """On 8885 the client certificate is the role; without one, or with another authority's, nobody gets in."""
    version = aiomqtt.ProtocolVersion.V5
    port = shipped.ports[8885]
    context = shipped.context(cert="sigma9")
    async with (
        shipped.client("viewer") as viewer,
        aiomqtt.Client(HOST, port, protocol=version, timeout=5, tls_context=context) as server,
    ):
        await viewer.subscribe("sigma9/#", 1)
        await server.publish("sigma9/main/state/status", "{}", 1)
        assert str((await asyncio.wait_for(anext(aiter(viewer.messages)), 5)).topic) == "sigma9/main/state/status"
    other = tmp_path / "other"
    set_up(other)
    foreign = trusting(shipped.folder / "ca.crt")
    foreign.load_cert_chain(str(other / "sigma9.crt"), str(other / "sigma9.key"))
    # The broker's own certificate is no client's: it is signed by the authority, but for another purpose.
    logins = [shipped.context(), foreign, shipped.context(cert="server")]
    for tls in logins:
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client(
                HOST,
                port,
                protocol=version,
                timeout=2,
                tls_context=tls,
                username="sigma9",
                password=shipped.passwords["sigma9"],
            ):
                pass


@pytest.mark.mosquitto
@pytest.mark.parametrize("port", [8883, 8885])
async def test_a_server_lives_on_it(shipped: Shipped, port: int) -> None:
    """A server connects over TLS, by password or by certificate, and answers."""
    by_cert = port == 8885
    tls = shipped.tls(cert="sigma9", key="sigma9") if by_cert else shipped.tls()
    wanted = shipped.settings(port, tls, login=not by_cert)
    async with serving(wanted) as server, shipped.client("admin") as client:
        assert server.mqtt == "connected"
        assert server.banner == [f"MQTT  mqtts://{HOST}:{shipped.ports[port]} (external)"]
        server.board.set("account", {"equity": 1})
        await client.subscribe("sigma9/main/response/heartbeat", 1)
        await client.publish("sigma9/main/command/heartbeat", "PRESS", 1)
        await asyncio.wait_for(anext(aiter(client.messages)), 3)
        await client.subscribe("sigma9/main/state/account", 1)
        message = await asyncio.wait_for(anext(aiter(client.messages)), 5)
        assert message.payload == b'{"equity":1}'


@pytest.mark.mosquitto
async def test_many_messages_in_one_record(shipped: Shipped) -> None:
    """A broker or a proxy that packs many messages into one TLS record leaves none of them lying."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)  # one record
                await asyncio.sleep(0.05)
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, shipped.ports[1883])
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        for end in (writer, far_writer):
            with contextlib.suppress(OSError):
                await end.wait_closed()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(shipped.folder / "server.crt"), str(shipped.folder / "server.key"))
    proxy = await asyncio.start_server(serve, HOST, 0, ssl=context)
    shipped.ports[443] = proxy.sockets[0].getsockname()[1]
    async with serving(shipped.settings(443, shipped.tls())) as server, shipped.client("admin") as client:
        await client.subscribe("sigma9/main/response/scan", 1)
        for number in range(60):
            client._client.publish("sigma9/main/command/scan", f'{{"id": "{number}"}}', 0)
        for _ in range(60):
            await asyncio.wait_for(anext(aiter(client.messages)), 1)
        assert len(server.commands) == 60
    proxy.close()
    await proxy.wait_closed()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait(others, timeout=3)  # the proxy's connections end


async def refused(settings: Settings, caplog: pytest.LogCaptureFixture) -> str:
    """Start a server on a broker that it can't trust, and give the one sentence of its log."""
    caplog.clear()
    async with serving(settings) as server:
        assert server.mqtt == "disconnected"
        await asyncio.sleep(0.5)  # it goes on trying, and says nothing more
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert lines[0].exc_info is None
    return lines[0].getMessage()


@pytest.mark.mosquitto
async def test_what_is_not_trusted_is_one_sentence(
    shipped: Shipped, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another authority, another name, a file that is missing or wrong: the log says which, once."""
    set_up(tmp_path / "other")
    theirs = tmp_path / "other" / "ca.crt"
    said = await refused(shipped.settings(8883, MqttTls(ca=theirs)), caplog)
    assert f"not signed by an authority in {theirs} (mqtt.tls.ca)" in said
    said = await refused(shipped.settings(8883, shipped.tls(), host="127.0.0.2"), caplog)
    assert "its certificate is not for the name 127.0.0.2: set mqtt.host" in said
    said = await refused(shipped.settings(1883, shipped.tls()), caplog)
    assert "is it the port for TLS?" in said
    said = await refused(shipped.settings(8883, MqttTls(ca=tmp_path / "nothing.crt")), caplog)
    assert f"mqtt.tls.ca {tmp_path / 'nothing.crt'} can't be used: No such file" in said
    said = await refused(shipped.settings(8883, shipped.tls(cert="sigma9", key="server")), caplog)
    assert "mqtt.tls.cert" in said
    assert "another one's key" in said
    said = await refused(shipped.settings(8885, shipped.tls(), login=False), caplog)
    assert "want another client certificate (mqtt.tls.cert)" in said
    assert all("_ssl.c" not in record.getMessage() for record in caplog.records)

"""Real peers for tests: a Mosquitto of the test's own, a network that can be cut, a client that remembers.

And `serving`: a `FakeServer` with the service `mqtt` in front of such a broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from sigma9_core.clock import SteppedClock, monotonic
from sigma9_core.config import MqttSettings, ServerSettings, Settings
from sigma9_core.contracts import PluginContext
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.broker.accounts import Role, access, write_files
from sigma9_integrations.broker.embedded import HOST, can_log_in, free_port
from sigma9_integrations.mqtt.service import MqttService


class Mosquitto:
    """A Mosquitto with the roles of the embedded one, which a test may kill, freeze and start again."""

    def __init__(self, folder: Path, program: str, base: str = "sigma9", *, more: str = "") -> None:
        self.host = HOST
        self.port = free_port()
        self.passwords = write_files(folder, access(base, "homeassistant"))
        self._folder = folder
        self._program = program
        self._more = more
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and return once it lets clients in; raise AssertionError where it does not."""
        command = mosquitto.command(self._program, self._folder, self.host, self.port, more=self._more)
        self._process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        deadline = monotonic() + 5
        while not await can_log_in(self.host, self.port, "sigma9", self.passwords["sigma9"]):
            if monotonic() > deadline or self._process.returncode is not None:
                raise AssertionError(f"mosquitto does not start on port {self.port}")
            await asyncio.sleep(0.005)

    async def kill(self) -> None:
        """End it with SIGKILL: what it held in memory is gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """End it, frozen or not; it keeps nothing anyway, and SIGTERM takes it a tenth of a second."""
        await self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop its execution with SIGSTOP: its sockets stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    async def _end(self, how: signal.Signals) -> None:
        self._signal(how)
        process, self._process = self._process, None
        if process is not None:
            await process.wait()

    def _signal(self, which: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, which)


class Proxy:
    """A piece of network between a server and its broker: it can be cut, and hold what is sent."""

    def __init__(self, broker: Mosquitto) -> None:
        self.port = 0
        self._broker = broker
        self._listener: asyncio.Server | None = None
        self._streams: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        self._flows = asyncio.Event()
        self._flows.set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._listener = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and end what is open."""
        self.cut()
        self.let_go()
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection, and every new one from now on."""
        self._open = False
        for writer in tuple(self._streams):
            writer.transport.abort()

    def mend(self) -> None:
        """Let connections through again."""
        self._open = True

    def hold(self) -> None:
        """Keep everything that is sent, the end of a connection as well, until it is let go."""
        self._flows.clear()

    def let_go(self) -> None:
        """Pass on what was held."""
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(self._broker.host, self._broker.port)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._streams.update(pair)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink, pair), name="test-proxy")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        try:
            while data := await source.read(65536):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
            await self._flows.wait()
        except OSError:
            pass  # it was cut
        finally:
            for writer in pair:
                writer.transport.abort()
                self._streams.discard(writer)


def settings_for(
    broker: Mosquitto, *, port: int | None = None, data_dir: Path | None = None, **mqtt: Any
) -> Settings:
    """Give the settings of a server that uses a test's broker as an external one."""
    values: dict[str, Any] = {
        "broker": "external",
        "host": broker.host,
        "port": port or broker.port,
        "username": "sigma9",
        "password": broker.passwords["sigma9"],
        **mqtt,
    }
    return Settings(mqtt=MqttSettings(**values), data_dir=data_dir or Path("data"), server=ServerSettings())


def service_for(settings: Settings, data_dir: Path | None = None) -> MqttService:
    """Make the service; without a folder it keeps nothing."""
    return MqttService(PluginContext("mqtt", settings, SteppedClock("simulated"), cast(Any, None), data_dir))


@asynccontextmanager
async def serving(
    settings: Settings,
    server: FakeServer | None = None,
    *,
    data_dir: Path | None = None,
    service: MqttService | None = None,
) -> AsyncIterator[FakeServer]:
    """Run the service `mqtt` for a `FakeServer`, and stop it at the end."""
    async with server or FakeServer(settings) as served:
        service = service or service_for(settings, data_dir)
        await service.start(served)
        try:
            yield served
        finally:
            await service.stop()


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that a client has received."""

    topic: str
    payload: str
    retain: bool
    qos: int
    correlation: bytes | None = None


class Client:
    """An MQTT client that logs in as a role and keeps every message, in order."""

    def __init__(self, port: int, role: str, password: str, protocol: Literal["5", "3.1.1"] = "5") -> None:
        self.heard: list[Heard] = []
        version = aiomqtt.ProtocolVersion.V5 if protocol == "5" else aiomqtt.ProtocolVersion.V311
        self._client = aiomqtt.Client(
            HOST,
            port,
            username=role,
            password=password,
            protocol=version,
            timeout=5,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        self._client.pending_calls_threshold = 100_000
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    @classmethod
    def of(cls, broker: Mosquitto, role: Role, protocol: Literal["5", "3.1.1"] = "5") -> Client:
        """Make a client of a role on a test's broker."""
        return cls(broker.port, role, broker.passwords[role], protocol)

    async def __aenter__(self) -> Self:
        """Connect and begin to listen."""
        await self._client.__aenter__()
        self._reader = asyncio.create_task(self._read(), name="test-client")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Disconnect."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        with contextlib.suppress(aiomqtt.MqttError):
            await self._client.__aexit__(None, None, None)

    async def subscribe(self, *filters: str, qos: int = 1) -> Sequence[int]:
        """Subscribe and give the broker's codes."""
        codes = await self._client.subscribe([(topic, qos) for topic in filters])
        return [code if isinstance(code, int) else code.value for code in codes]

    async def publish(
        self,
        topic: str,
        payload: str | bytes = "",
        *,
        qos: int = 1,
        retain: bool = False,
        reply_to: str | None = None,
        correlation: bytes | None = None,
    ) -> None:
        """Publish and wait for the acknowledgement."""
        properties = None
        if reply_to is not None or correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if reply_to is not None:
                properties.ResponseTopic = reply_to
            if correlation is not None:
                properties.CorrelationData = correlation
        await self._client.publish(topic, payload, qos, retain, properties)

    async def until(
        self, condition: Callable[[list[Heard]], bool], seconds: float = 20, *, what: str = ""
    ) -> None:
        """Wait until the messages fulfil a condition; raise AssertionError, showing the last, where they don't."""
        deadline = monotonic() + seconds
        while not condition(self.heard):
            self._news.clear()
            left = deadline - monotonic()
            if left <= 0:
                last = "\n".join(f"{m.topic} {m.payload[:200]}" for m in self.heard[-20:])
                raise AssertionError(
                    f"not within {seconds:g} s: {what}; heard {len(self.heard)}, the last:\n{last}"
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(left, 0.1))

    async def until_heard(self, topic: str, payload: str | None = None, seconds: float = 20) -> Heard:
        """Wait for a message on a topic and give the first one."""

        def fits(message: Heard) -> bool:
            return message.topic == topic and (payload is None or message.payload == payload)

        await self.until(lambda heard: any(map(fits, heard)), seconds, what=f"{topic} {payload or ''}")
        return next(message for message in self.heard if fits(message))

    def payloads(self, topic: str) -> list[str]:
        """List what was heard on a topic."""
        return [message.payload for message in self.heard if message.topic == topic]

    async def _read(self) -> None:
        with contextlib.suppress(aiomqtt.MqttError):
            async for message in self._client.messages:
                correlation = getattr(message.properties, "CorrelationData", None)
                text = bytes(message.payload).decode()
                self.heard.append(Heard(str(message.topic), text, message.retain, message.qos, correlation))
                self._news.set()

"""The embedded broker: a child process on loopback that starts with the server and never outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from sigma9_core.clock import monotonic
from sigma9_core.errors import Sigma9Error
from sigma9_core.log import redact
from sigma9_integrations.broker import amqtt_child, guard, mosquitto
from sigma9_integrations.broker.accounts import PASSWORDS, Access, Role, write_files
from sigma9_integrations.broker.files import private_folder
from sigma9_integrations.tasks import end

_LOG = logging.getLogger("sigma9.mqtt.broker")

HOST: Final = "127.0.0.1"
Kind = Literal["mosquitto", "amqtt"]

PORTS_TRIED: Final = 50
"""How many ports are tried, from the configured one on."""
START_SECONDS: Final = 10.0
"""How long a child may take until it lets the server log in; Mosquitto needs some 30 ms, amqtt 300."""
STOP_SECONDS: Final = 0.7
"""How long a child may take to end before it is killed."""
RESTART_MOST: Final = 5.0
"""The longest pause before a restart, in seconds."""
STEADY_SECONDS: Final = 30.0
"""A child that lived this long is restarted without a growing pause."""


class EmbeddedBrokerError(Sigma9Error):
    """The embedded broker can't be started: install Mosquitto, free a port, or name an external broker."""


class EmbeddedBroker:
    """Runs Mosquitto, or amqtt where the machine has none, and restarts it whenever it ends.

    `folder` keeps passwords and configuration; None means a temporary one. `port` 0 takes any free port.
    `on_ready` is called after each restart, so that clients need not wait for their next attempt.
    """

    def __init__(
        self,
        folder: Path | None,
        port: int,
        base: str,
        rules: Mapping[Role, Access],
        *,
        announce: Callable[[str], None],
        on_ready: Callable[[], None] = lambda: None,
        guard_mode: guard.Mode | None = None,
    ) -> None:
        self.kind: Kind = "mosquitto"
        self.host = HOST
        self.port = port
        """The port that it listens on, once `start` has returned."""
        self.passwords: Mapping[Role, str] = {}
        self._wanted = port
        self._base = base
        self._rules = rules
        self._announce = announce
        self._on_ready = on_ready
        self._guard_mode = guard_mode or guard.mode()
        self._kept = folder
        self._folder = folder or Path()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=8)

    @property
    def pid(self) -> int | None:
        """Give the child's process id."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child and return once it lets the server log in; raise EmbeddedBrokerError where it can't.

        Call it on the main thread: the kernel ends the child with the thread that started it.
        """
        self._folder = private_folder(self._kept or Path(tempfile.mkdtemp(prefix="sigma9-mqtt-")))
        self.passwords = write_files(self._folder, self._rules)
        for role, password in self.passwords.items():
            if role != "viewer":  # that one is shown on purpose
                redact(password)
        try:
            await self._launch_any()
        except BaseException:
            self._forget_folder()
            raise
        self._tell()
        self._supervisor = asyncio.create_task(self._supervise(), name="mqtt-broker-supervisor")

    async def stop(self) -> None:
        """End the child: by SIGTERM, and by SIGKILL where it does not end in time."""
        if self._supervisor is not None:
            await end(self._supervisor)
            self._supervisor = None
        await self._end_child()
        self._forget_folder()

    def _tell(self) -> None:
        if self._wanted not in (0, self.port):
            text = f"port {self._wanted} is taken on this machine: the embedded broker listens on {self.port}"
            self._announce(f"MQTT  {text}")
            _LOG.warning("%s", text)
        self._announce(f"MQTT  mqtt://{self.host}:{self.port} (embedded {self.kind})")
        topics = shlex.quote(f"{self._base}/#")
        login = f"-u viewer -P {shlex.quote(self.passwords['viewer'])}"
        self._announce(f"mosquitto_sub -h {self.host} -p {self.port} {login} -v -t {topics}")
        if self._kept is not None:
            self._announce(f"MQTT  passwords of admin and operator: {self._folder / PASSWORDS}")

    # --- the child --------------------------------------------------------------------------------------------

    async def _launch_any(self) -> None:
        """Start Mosquitto, or amqtt where there is no Mosquitto or it does not start."""
        program = mosquitto.find()
        if program is not None:
            try:
                await self._launch("mosquitto", program)
            except EmbeddedBrokerError as error:
                _LOG.warning("%s; amqtt takes its place", error)
            else:
                return
        await self._launch("amqtt", None)

    async def _launch(self, kind: Kind, program: str | None) -> None:
        """Start the child on the first port that is free."""
        last = self.port
        for port in self._ports():
            last = port
            if not _is_free(port):
                continue
            if program is not None:
                command = mosquitto.command(program, self._folder, self.host, port)
            else:
                command = amqtt_child.command(self._folder, self.host, port, self.passwords, self._rules)
            if await self._run(command, port):
                self.kind, self.port = kind, port
                return
            if _is_free(port):
                said = " | ".join(self._said) or "it said nothing"
                raise EmbeddedBrokerError(f"the embedded broker {kind} does not start: {said}")
        raise EmbeddedBrokerError(
            f"no port from {self._wanted} to {last} is free for the embedded broker: set mqtt.port to one that is"
        )

    def _ports(self) -> Iterator[int]:
        """Give the ports to try: the one it had, the configured one, and those after it."""
        if self.port:
            yield self.port
        for step in range(PORTS_TRIED):
            port = free_port() if self._wanted == 0 else self._wanted + step
            if port <= 65535:
                yield port

    async def _run(self, command: list[str], port: int) -> bool:
        """Run the child; tell whether the server can log in. What does not get that far is ended."""
        self._said.clear()
        process = await asyncio.create_subprocess_exec(
            *guard.command(command, os.getpid(), self._guard_mode),
            stdin=asyncio.subprocess.PIPE if self._guard_mode == "pipe" else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at the terminal is for the server, which ends its broker last
        )
        self._process = process
        self._reader = asyncio.create_task(self._read(process), name="mqtt-broker-log")
        try:
            ready = await self._until_ready(process, port)
        except BaseException:
            await self._end_child()
            raise
        if not ready:
            await self._end_child()
        return ready

    async def _until_ready(self, process: asyncio.subprocess.Process, port: int) -> bool:
        deadline = monotonic() + START_SECONDS
        while process.returncode is None and monotonic() < deadline:
            if await can_log_in(self.host, port, "sigma9", self.passwords["sigma9"]):
                return process.returncode is None
            await asyncio.sleep(0.004)
        if process.returncode is None:
            self._said.append(f"the server could not log in within {START_SECONDS:g} s")
        elif self._reader is not None:
            await asyncio.wait([self._reader], timeout=0.5)  # its last words say why
        return False

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what the child says: quietly, but for its errors."""
        stream = process.stderr
        while stream is not None:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than the buffer; the rest follows as lines of its own
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").strip()
            self._said.append(text)
            _LOG.log(logging.WARNING if text.startswith("Error") else logging.DEBUG, "%s: %s", self.kind, text)

    async def _supervise(self) -> None:
        pause = 0.05
        while self._process is not None:
            began = monotonic()
            code = await self._process.wait()
            await self._end_child()
            if monotonic() - began > STEADY_SECONDS:
                pause = 0.05
            why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            _LOG.warning("the embedded broker %s has ended (%s): starting it again", self.kind, why)
            pause = await self._relaunch(pause)
            self._on_ready()

    async def _relaunch(self, pause: float) -> float:
        """Start the child again, with growing pauses until it runs; give the next pause."""
        before = self.port
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - it spreads attempts, it keeps no secret
            pause = min(pause * 2, RESTART_MOST)
            try:
                await self._launch_any()
            except (EmbeddedBrokerError, OSError) as error:
                _LOG.error("%s; trying again in %.1f s", error, pause)
                continue
            if self.port != before:
                _LOG.warning("port %d was taken meanwhile: the embedded broker listens on %d", before, self.port)
            return pause

    async def _end_child(self) -> None:
        """End the child and everything that it started, and wait for it."""
        process, self._process = self._process, None
        reader, self._reader = self._reader, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                _LOG.warning("the embedded broker did not end within %g s and was killed", STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads its own group: nothing of it stays
        await process.wait()
        if reader is not None:
            await asyncio.wait([reader], timeout=0.2)
            await end(reader)

    def _forget_folder(self) -> None:
        if self._kept is None and self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except PermissionError as error:
            raise EmbeddedBrokerError(
                f"port {port} needs special rights: set mqtt.port to 1024 or more for the embedded broker"
            ) from error
        except OSError:
            return False
    return True


def free_port() -> int:
    """Let the system choose a port of loopback that is free now."""
    with socket.socket() as trial:
        trial.bind((HOST, 0))
        port: int = trial.getsockname()[1]
    return port


def _connect_packet(user: str, password: str) -> bytes:
    """Build an MQTT 3.1.1 CONNECT with a clean session, a keepalive of 10 s and a login."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return len(raw).to_bytes(2, "big") + raw

    flags = 0b1100_0010  # user name, password, clean session
    body = (
        text("MQTT")
        + bytes((4, flags, 0, 10))
        + text(f"probe-{secrets.token_hex(4)}")
        + text(user)
        + text(password)
    )
    return bytes((0x10, len(body))) + body


async def can_log_in(host: str, port: int, user: str, password: str) -> bool:
    """Tell whether an MQTT broker that knows the login answers at the address."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_connect_packet(user, password))
                accepted = await reader.readexactly(4) == bytes((0x20, 2, 0, 0))
                writer.write(bytes((0xE0, 0)))  # DISCONNECT
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, EOFError, TimeoutError):
        return False
    return accepted

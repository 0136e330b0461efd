"""A real server in a process of its own, as a user starts it, and a real MQTT client beside it: for tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

PATIENCE: Final = 60.0
"""Seconds that a test waits for something that must come."""
_CALENDARS: Final[dict[str, bytes]] = {}
"""What servers of this process have worked out already, by file name: two seconds of a core each."""


class ServerProcess:
    """`sigma9 run` as a user starts it; everything that it prints is kept."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.settings = ("server.port=0", "mqtt.port=0", f"data_dir={self.data}", *settings)
        self.environment: dict[str, str] = {}
        """Variables that the server has beside the test's own."""
        self.lines: list[str] = []
        self.started = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []
        self._works_out = False
        """It has found no calendar, and works one out."""

    @property
    def process(self) -> subprocess.Popen[str]:
        """Give the running process."""
        if self._process is None:
            raise RuntimeError("the server is not running: start() it")
        return self._process

    @property
    def running(self) -> bool:
        """Tell whether a process is there that was not waited for."""
        return self._process is not None

    def start(self) -> ServerProcess:
        """Start it and wait for its banner."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._give_calendars()
        self.lines.clear()
        options = [part for each in self.settings for part in ("--set", each)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGMA9_")} | self.environment
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sigma9_core", "run", *options],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for stream in (self._process.stdout, self._process.stderr):
            reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
            reader.start()
            self._readers.append(reader)
        self.until(lambda: any("Stop everything" in line for line in self.lines), "the banner")
        return self

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it by a signal and give its exit code."""
        process = self.process
        if process.poll() is None:
            process.send_signal(number)
        code = process.wait(20)
        for reader in self._readers:
            reader.join(5)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        self._readers.clear()
        self._process = None
        if self._works_out:
            _CALENDARS.update((path.name, path.read_bytes()) for path in self.data.glob("calendar-*.json"))
        return code

    def _give_calendars(self) -> None:
        """Let a new server find the calendar that another one has worked out."""
        if _CALENDARS and not self.data.exists():
            self.data.mkdir(mode=0o700)
            for name, content in _CALENDARS.items():
                (self.data / name).write_bytes(content)
        self._works_out = not any(self.data.glob("calendar-*.json"))

    def __enter__(self) -> ServerProcess:
        """Start it where it does not run yet."""
        return self if self.running else self.start()

    def __exit__(self, *exc: object) -> None:
        """End it where the test has not."""
        if self._process is not None:
            self.stop(signal.SIGKILL if exc[0] else signal.SIGINT)

    # --- using it -------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Tell where REST is."""
        url = json.loads((self.data / "server.json").read_text())["url"]
        host, _, port = url.partition("//")[2].partition(":")
        return host, int(port)

    @property
    def token(self) -> str:
        """Give the admin token."""
        return (self.data / "admin.token").read_text().strip()

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Make one REST request as the admin; give status and JSON."""
        connection = http.client.HTTPConnection(*self.address, timeout=15)
        with contextlib.closing(connection):
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Authorization": f"Bearer {self.token}", **(headers or {})})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")

    def get(self, path: str) -> Any:
        """Read a body."""
        status, body = self.request("GET", path)
        if status != http.HTTPStatus.OK:
            raise AssertionError(f"GET {path}: {status} {body}")
        return body

    def sigma9(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run the command line beside the server."""
        return subprocess.run(
            [sys.executable, "-m", "sigma9_core", *args, "--data-dir", str(self.data)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    @property
    def viewer(self) -> list[str]:
        """Give the options of the mosquitto clients that the banner shows."""
        line = next(line for line in self.lines if "mosquitto_sub" in line)
        found = re.search(r"-h (\S+) -p (\d+) -u (\S+) -P (\S+)", line)
        if found is None:
            raise AssertionError(f"no login in: {line}")
        return ["-h", found[1], "-p", found[2], "-u", found[3], "-P", found[4]]

    def login(self, role: str) -> list[str]:
        """Give the options of the mosquitto clients for another role."""
        passwords = json.loads((self.data / "mqtt" / "passwords.json").read_text())
        options = self.viewer
        return [*options[:4], "-u", role, "-P", passwords[role]]

    def mosquitto_pub(self, role: str, topic: str, payload: str) -> None:
        """Publish as a role with `mosquitto_pub`, at QoS 1."""
        subprocess.run(
            ["mosquitto_pub", *self.login(role), "-q", "1", "-t", topic, "-m", payload], check=True, timeout=15
        )

    def until(self, what: Callable[[], object], why: str, within: float = PATIENCE) -> Any:
        """Wait until something is true; give it."""
        end = time.monotonic() + within
        while True:
            found = what()
            if found:
                return found
            if time.monotonic() > end or (self._process is not None and self._process.poll() is not None):
                raise AssertionError(f"{why} did not come; the server said:\n" + "\n".join(self.lines[-60:]))
            time.sleep(0.02)

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.lines.append(line.rstrip("\n"))


class MqttListener:
    """`mosquitto_sub -v` beside the server: topic and payload of everything that goes by."""

    def __init__(self, server: ServerProcess, *topics: str, options: Sequence[str] = ()) -> None:
        self.messages: list[tuple[str, str]] = []
        wanted = [part for topic in topics or ("sigma9/#",) for part in ("-t", topic)]
        self._process = subprocess.Popen(
            ["mosquitto_sub", *(options or server.viewer), "-v", *wanted], stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> MqttListener:
        """Give itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(5)
        self._reader.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def of(self, part: str) -> list[str]:
        """List the payloads of topics that contain a text."""
        return [payload for topic, payload in tuple(self.messages) if part in topic]

    def _read(self) -> None:
        for line in self._process.stdout or ():
            topic, _, payload = line.rstrip("\n").partition(" ")
            self.messages.append((topic, payload))

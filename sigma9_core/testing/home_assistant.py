"""A real Home Assistant in a process of its own, as a person has it: set up by REST, read by its WebSocket."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from websockets.sync.client import ClientConnection, connect

HOST: Final = "127.0.0.1"
FOLDED: Final = {"set_client_cert": False, "set_ca_cert": "off"}
"""What newer versions ask for in the folded part of the form for MQTT."""
LAMP: Final = """
from homeassistant.components.light import ColorMode, LightEntity

async def async_setup_platform(hass, config, async_add_entities, discovery_info=None):
    async_add_entities([Lamp()])

class Lamp(LightEntity):
    _attr_name = "Trial"
    _attr_should_poll = False
    _attr_is_on = True
    _attr_brightness = 100
    _attr_rgb_color = (0, 255, 0)
    _attr_color_mode = ColorMode.RGB
    _attr_supported_color_modes = {ColorMode.RGB}

    async def async_turn_on(self, **how):
        self._attr_rgb_color = how.get("rgb_color", self._attr_rgb_color)
        self.async_write_ha_state()
"""
"""A lamp with a colour, for every version of Home Assistant alike."""
CONFIGURATION: Final = """
homeassistant: {{name: Trial, time_zone: UTC, unit_system: metric, latitude: 50, longitude: 8, elevation: 0}}
http: {{server_host: 127.0.0.1, server_port: {port}}}
api:
config:
history:
logbook:
notify:
zone:
recorder: {{commit_interval: 1}}
logger: {{default: warning, logs: {{homeassistant.components.mqtt: info}}}}
input_boolean: {{away: {{name: Away}}}}
light: [{{platform: trial}}]
person: [{{name: Tester, id: tester, device_trackers: [device_tracker.phone]}}]
lovelace: {{dashboards: {{the-dashboard: {{mode: yaml, title: Dashboard, filename: dashboard.yaml}}}}}}
automation: !include automations.yaml
"""
WARNS: Final = re.compile(r" (WARNING|ERROR|CRITICAL) ")


class HomeAssistant:
    """The program, what it logs, and the states of its entities."""

    def __init__(self, program: Path, folder: Path, *, about: Callable[[str], bool]) -> None:
        """Store; `folder` holds its configuration, and `about` chooses the entities that are followed."""
        with socket.create_server((HOST, 0)) as free:
            self.port: int = free.getsockname()[1]
        self.lines: list[str] = []
        """What it has logged."""
        self.states: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, list[dict[str, Any] | None]] = defaultdict(list)
        """Every state that an entity had, in order; None where it went."""
        self._about = about
        self._folder = folder
        self._command = [str(program), "-c", str(folder), "--log-no-color"]
        self._process: subprocess.Popen[str] | None = None
        self._login: dict[str, str] = {}
        self._socket: ClientConnection | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[int, Any] = {}

    def configure(self) -> None:
        """Write a configuration: a dashboard.yaml may be put beside it, and automations into automations.yaml."""
        lamp = self._folder / "custom_components" / "trial"
        lamp.mkdir(parents=True)
        (lamp / "light.py").write_text(LAMP)
        (lamp / "__init__.py").touch()
        about = {"domain": "trial", "name": "Trial", "version": "1", "documentation": "", "codeowners": []}
        (lamp / "manifest.json").write_text(json.dumps(about))
        (self._folder / "configuration.yaml").write_text(CONFIGURATION.format(port=self.port))
        (self._folder / "automations.yaml").write_text("[]")

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and follow its states; the first time it may install for minutes, and gets its owner."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        threading.Thread(target=self._read_log, args=(self._process,), daemon=True).start()
        wait(lambda: self._rest("GET", "/api/onboarding")[0] == http.HTTPStatus.OK, "Home Assistant", 900)
        if not self._login:
            client = {"client_id": f"http://{HOST}:{self.port}/"}
            owner = {**client, "name": "Test", "username": "test", "password": "test", "language": "en"}
            code = self.rest("POST", "/api/onboarding/users", owner)["auth_code"]
            grant = {**client, "grant_type": "authorization_code", "code": code}
            self._login = self.rest("POST", "/auth/token", urlencode(grant))
        wait(lambda: self.rest("GET", "/api/config")["state"] == "RUNNING", "the end of its start", 300)
        self._listen()

    def stop(self, within: float = 60) -> None:
        """End it in order, or at once where that takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def add_mqtt(self, port: int, user: str, password: str) -> None:
        """Set the integration MQTT up as a person does."""
        flow = "/api/config/config_entries/flow"
        step = self.rest("POST", flow, {"handler": "mqtt", "show_advanced_options": False})
        values: dict[str, Any] = {"broker": HOST, "port": port, "username": user, "password": password}
        values |= {part["name"]: dict(FOLDED) for part in step["data_schema"] if part.get("type") == "expandable"}
        step = self.rest("POST", f"{flow}/{step['flow_id']}", values)
        if step["type"] != "create_entry":
            raise AssertionError(f"no MQTT: {step}")

    def log_in(self, user: str, password: str) -> None:
        """Change the login of MQTT, while it does not run."""
        entries = self._folder / ".storage" / "core.config_entries"
        stored = json.loads(entries.read_text())
        for entry in stored["data"]["entries"]:
            if entry["domain"] == "mqtt":
                entry["data"] |= {"username": user, "password": password}
        entries.write_text(json.dumps(stored))

    # --- using it ---------------------------------------------------------------------------------------------

    def rest(self, method: str, path: str, body: Any = None) -> Any:
        """Make a REST request that succeeds; a text is sent as a form."""
        status, found = self._rest(method, path, body)
        if status not in (http.HTTPStatus.OK, http.HTTPStatus.CREATED):
            raise AssertionError(f"{method} {path}: {status} {found}")
        return found

    def _rest(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"}
        if self._login:
            headers["Authorization"] = f"Bearer {self._login['access_token']}"
        if isinstance(body, str):
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif body is not None:
            body = json.dumps(body)
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                text = answer.read()
            except OSError:
                return 0, None  # it does not listen yet
        try:
            return answer.status, json.loads(text or b"null")
        except ValueError:
            return answer.status, text

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a WebSocket command and give its result."""
        if self._socket is None:
            raise AssertionError("it is not running")
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "type": command, **arguments}))
        answer = wait(lambda: self._answers.pop(number, None), command)
        if not answer["success"]:
            raise AssertionError(f"{command}: {answer['error']}")
        return answer["result"]

    def call(self, service: str, **data: Any) -> None:
        """Call a service, such as `button.press`."""
        self.rest("POST", f"/api/services/{service.replace('.', '/')}", data)

    def state(self, entity: str) -> str | None:
        """Give the state of an entity; None where there is none."""
        found = self.states.get(entity)
        return None if found is None else str(found["state"])

    def attributes(self, entity: str) -> dict[str, Any]:
        """Give the attributes of an entity that is there."""
        return dict(self.states[entity]["attributes"])

    def followed(self) -> dict[str, str]:
        """Give the states of the entities that are followed."""
        return {entity: str(state["state"]) for entity, state in tuple(self.states.items()) if self._about(entity)}

    def dashboard_texts(self) -> list[str]:
        """Give the texts of the dashboard's markdown cards."""
        return list(_contents(self.ask("lovelace/config", url_path="the-dashboard")))

    def reads(self, entity: str, state: str, within: float = 20) -> None:
        """Wait until an entity has a state."""
        wait(lambda: self.state(entity) == state, f"{entity} = {state}", within)

    def told(self, pattern: str) -> None:
        """Wait for a persistent notification."""
        wait(lambda: any(re.search(pattern, note) for note in self.notes()), f"a notification '{pattern}'")

    def registry(self) -> dict[str, Any]:
        """Give the entries of the registry for the entities that are followed."""
        entries = self.ask("config/entity_registry/list")
        return {each["entity_id"]: each for each in entries if self._about(each["entity_id"])}

    def notes(self) -> list[str]:
        """Give the persistent notifications."""
        return [f"{each['title']}: {each['message']}" for each in self.ask("persistent_notification/get")]

    def warnings(self) -> list[str]:
        """Give the lines of the log that warn."""
        return [line for line in self.lines if WARNS.search(line)]

    # --- listening --------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        stream = self._socket = connect(f"ws://{HOST}:{self.port}/api/websocket", max_size=None)
        stream.recv()
        stream.send(json.dumps({"type": "auth", "access_token": self._login["access_token"]}))
        stream.recv()
        self.states = {}
        threading.Thread(target=self._read_socket, args=(stream,), daemon=True).start()
        self.ask("subscribe_events", event_type="state_changed")
        for each in self.ask("get_states"):
            self.states.setdefault(each["entity_id"], each)

    def _read_socket(self, stream: ClientConnection) -> None:
        with contextlib.suppress(Exception):  # it ends with Home Assistant, in one way or another
            for text in stream:
                message = json.loads(text)
                if message["type"] == "result":
                    self._answers[message["id"]] = message
                elif message["type"] == "event":
                    self._note(**message["event"]["data"])

    def _note(self, entity_id: str, new_state: dict[str, Any] | None, **_: Any) -> None:
        self.seen[entity_id].append(new_state)
        if new_state is None:
            self.states.pop(entity_id, None)
        else:
            self.states[entity_id] = new_state

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self.lines.append(line.rstrip("\n"))


def _contents(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "content" in part:
            yield part["content"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from _contents(each)


def wait(what: Callable[[], Any], why: str, within: float = 30) -> Any:
    """Wait until something is true, and give it."""
    end = time.monotonic() + within
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s: {why}")
        time.sleep(0.05)
    return found


__all__ = ["HOST", "HomeAssistant", "wait"]

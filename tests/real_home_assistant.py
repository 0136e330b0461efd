"""Try a real Home Assistant with nothing but discovery: entities, states, a simulated day, buttons, failures, its log.

python tests/real_home_assistant.py --hass VENV/bin/hass [--format device|entity] [--keep FOLDER]

Run by hand, not a test: it takes some ten minutes and needs a Home Assistant (`pip install homeassistant` into an
environment of its own), which at its first start installs what its integrations need. In a temporary folder it runs
Mosquitto with the shipped mosquitto.conf and the roles of `sigma9 mqtt setup`, a server with the simulated market,
and Home Assistant with the blueprints and the dashboard of `examples/`. It prints a line for each check and all that
Home Assistant has warned of, and ends with 1 where a check fails. `--format entity` is for Home Assistant before
2024.11. The folder is `--keep`, where it is given, and stays then.
"""

# ruff: noqa: T201, ASYNC251 - a program that prints
from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from websockets.sync.client import ClientConnection, connect

from sigma9_core.testing.server_process import ServerProcess
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.broker.accounts import PASSWORDS
from sigma9_integrations.broker.embedded import HOST, free_port

REPOSITORY: Final = Path(__file__).parent.parent
EXAMPLES: Final = REPOSITORY / "examples" / "home_assistant"
STATES: Final = ["stopped", "starting", "running", "paused", "stopping", "killed"]
COUNT: Final = {"state_class": "measurement"}
MONEY: Final = {"device_class": "monetary", "state_class": "total", "unit_of_measurement": "USD"}
TIME: Final = {"device_class": "timestamp"}
ENTITIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "switch.sigma9_engine": {},
    "button.sigma9_kill_switch": {},
    "button.sigma9_scan": {},
    "button.sigma9_cancel_all": {},
    "binary_sensor.sigma9_killed": {"device_class": "safety"},
    "binary_sensor.sigma9_broker": {"device_class": "connectivity"},
    "binary_sensor.sigma9_market_open": {},
    "sensor.sigma9_engine_state": {"device_class": "enum", "options": STATES},
    "sensor.sigma9_equity": MONEY,
    "sensor.sigma9_cash": MONEY,
    "sensor.sigma9_day_pnl": MONEY,
    "sensor.sigma9_unrealized_pnl": MONEY,
    "sensor.sigma9_positions": COUNT,
    "sensor.sigma9_open_orders": COUNT,
    "sensor.sigma9_watchlist": COUNT,
    "sensor.sigma9_last_scan": TIME,
    "sensor.sigma9_next_scan": TIME,
    "sensor.sigma9_last_error": {},
    "event.sigma9_trade": {},
    "event.sigma9_watchlist_update": {"event_types": ["scan", "manual", "restored"]},
}
"""Every entity that is there by itself, with the attributes that the contract promises."""
RESET: Final = "button.sigma9_reset_kill_switch"
POSITION: Final = "sensor.sigma9_position_"
LIGHT: Final = "light.trial"
AUTOMATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "notify_on_fill": {},
    "notify_on_kill": {},
    "light_red_when_killed": {"lights": [LIGHT], "afterwards": [0, 0, 255]},
    "kill_on_day_loss": {"limit": 0.1, "unit": "money", "seconds": 1},
    "pause_when_nobody_is_home": {"memory": "input_boolean.away", "away": 0, "back": 0},
    "notify_when_unavailable": {"minutes": 0},
    "daily_summary": {"minutes": 0},
}
ASLEEP: Final = ("kill_on_day_loss", "pause_when_nobody_is_home")
"""Automations that are turned on when their turn comes."""
LAMP: Final = '''
from homeassistant.components.light import ATTR_RGB_COLOR, ColorMode, LightEntity

async def async_setup_platform(hass, config, async_add_entities, discovery_info=None):
    async_add_entities([Lamp()])

class Lamp(LightEntity):
    """A lamp with a colour, that does as it is told."""
    _attr_name = "Trial"
    _attr_should_poll = False
    _attr_is_on = True
    _attr_rgb_color = (0, 255, 0)
    _attr_brightness = 100
    _attr_color_mode = ColorMode.RGB
    _attr_supported_color_modes = {ColorMode.RGB}

    async def async_turn_on(self, **how):
        self._attr_is_on = True
        self._attr_rgb_color = how.get(ATTR_RGB_COLOR, self._attr_rgb_color)
        self.async_write_ha_state()

    async def async_turn_off(self, **how):
        self._attr_is_on = False
        self.async_write_ha_state()
'''
CONFIGURATION: Final = """
homeassistant: {{name: Trial, time_zone: UTC, unit_system: metric, latitude: 50, longitude: 8, elevation: 0}}
http: {{server_host: 127.0.0.1, server_port: {port}}}
api:
config:
history:
logbook:
recorder: {{commit_interval: 1}}
zone:
logger: {{default: warning, logs: {{homeassistant.components.mqtt: info}}}}
input_boolean: {{away: {{name: Away}}}}
light: [{{platform: trial}}]
person: [{{name: Tester, id: tester, device_trackers: [device_tracker.phone]}}]
lovelace: {{dashboards: {{trial-sigma9: {{mode: yaml, title: Sigma9, filename: dashboard.yaml}}}}}}
notify:
automation: !include automations.yaml
"""
PLAIN: Final = {"set_client_cert": False, "set_ca_cert": "off"}
"""What newer versions ask for in the folded part of the MQTT form."""
NOT_US: Final = (
    "custom integration trial",  # the lamp
    "Disconnected from MQTT server",  # the trial kills the broker
    *("Python version", "homeassistant.util.package", "homeassistant.setup", "ffmpeg", "FFmpeg", "zlib", "turbojpeg"),
)
"""Warnings of the environment; any other one counts as a warning about us."""


class Broker:
    """A Mosquitto with the shipped configuration."""

    def __init__(self, folder: Path, program: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        setup = [sys.executable, "-m", "sigma9_core", "mqtt", "setup", str(folder)]
        subprocess.run(setup, check=True, capture_output=True)
        self.passwords: dict[str, str] = json.loads((folder / PASSWORDS).read_text())
        conf = folder / mosquitto.CONFIG_FILE
        text = conf.read_text().replace("listener 1883", f"listener {self.port}")
        text = text.replace("/var/lib/mosquitto/", f"{folder}/").replace("log_dest syslog", "log_dest stderr")
        conf.write_text(text + ("\nuser root\n" if os.geteuid() == 0 else ""))

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self._folder / "mosquitto.log").open("ab") as log:
            conf = str(self._folder / mosquitto.CONFIG_FILE)
            self._process = subprocess.Popen([self._program, "-c", conf], stderr=log)
        wait(self._listens, "Mosquitto")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def kill(self) -> None:
        """End it by SIGKILL, and take what it had stored away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        (self._folder / "mosquitto.db").unlink(missing_ok=True)


class HomeAssistant:
    """A real Home Assistant, and what its REST and WebSocket interfaces tell."""

    def __init__(self, hass: Path, folder: Path) -> None:
        self.port = free_port()
        self.lines: list[str] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, list[dict[str, Any] | None]] = defaultdict(list)
        """Every state of each of our entities, in order; None where it went."""
        self._command = [str(hass), "-c", str(folder), "--log-no-color"]
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._login: dict[str, str] = {}
        self._socket: ClientConnection | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[int, Any] = {}
        self._write_configuration()

    def _write_configuration(self) -> None:
        shutil.copytree(EXAMPLES / "blueprints", self._folder / "blueprints")
        shutil.copy(EXAMPLES / "dashboard.yaml", self._folder)
        lamp = self._folder / "custom_components" / "trial"
        lamp.mkdir(parents=True)
        (lamp / "light.py").write_text(LAMP)
        (lamp / "__init__.py").touch()
        about = {"domain": "trial", "name": "Trial", "version": "1", "documentation": "", "codeowners": []}
        (lamp / "manifest.json").write_text(json.dumps(about))
        text = CONFIGURATION.format(port=self.port)
        (self._folder / "configuration.yaml").write_text(text)
        (self._folder / "automations.yaml").write_text("[]")

    def automate(self) -> None:
        """Make an automation of each blueprint."""
        rules = [
            {
                "id": name,
                "alias": name,
                "initial_state": name not in ASLEEP,
                "use_blueprint": {"path": f"sigma9/{name}.yaml", "input": chosen},
            }
            for name, chosen in AUTOMATIONS.items()
        ]
        (self._folder / "automations.yaml").write_text(json.dumps(rules))
        self.call("automation.reload")

    def start(self) -> None:
        """Start it, log in, and follow its states; the first time as a new user, who takes some minutes."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        threading.Thread(target=self._read_log, args=(self._process,), daemon=True).start()
        wait(lambda: self._rest("GET", "/api/onboarding")[0] == http.HTTPStatus.OK, "Home Assistant", 900)
        if not self._login:
            self._onboard()
        wait(lambda: self.rest("GET", "/api/config")["state"] == "RUNNING", "the end of its start", 300)
        self._listen()

    def stop(self, within: float = 60) -> None:
        """End it in order, or at once where it takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _onboard(self) -> None:
        client = {"client_id": f"http://{HOST}:{self.port}/"}
        owner = {**client, "name": "Trial", "username": "trial", "password": "trial", "language": "en"}
        code = self.rest("POST", "/api/onboarding/users", owner)["auth_code"]
        grant = {**client, "grant_type": "authorization_code", "code": code}
        self._login = {**client, **self.rest("POST", "/auth/token", urlencode(grant))}

    def add_mqtt(self, port: int, login: tuple[str, str]) -> None:
        """Set the MQTT integration up as a person does: broker, port, login."""
        flow = "/api/config/config_entries/flow"
        step = self.rest("POST", flow, {"handler": "mqtt", "show_advanced_options": False})
        values: dict[str, Any] = {"broker": HOST, "port": port, "username": login[0], "password": login[1]}
        values |= {part["name"]: dict(PLAIN) for part in step["data_schema"] if part.get("type") == "expandable"}
        step = self.rest("POST", f"{flow}/{step['flow_id']}", values)
        assert step["type"] == "create_entry", step

    def log_in(self, role: str, password: str) -> None:
        """Change the MQTT login, while it does not run."""
        path = self._folder / ".storage" / "core.config_entries"
        stored = json.loads(path.read_text())
        entry = next(entry for entry in stored["data"]["entries"] if entry["domain"] == "mqtt")
        entry["data"] |= {"username": role, "password": password}
        path.write_text(json.dumps(stored))

    # --- using it -----------------------------------------------------------------------------------------------

    def rest(self, method: str, path: str, body: Any = None) -> Any:
        """Make a REST request that succeeds."""
        status, found = self._rest(method, path, body)
        assert status in (200, 201), f"{method} {path}: {status} {found}"
        return found

    def _rest(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        token = self._login.get("access_token")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers["Content-Type"] = "application/json"
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
                return 0, None
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(text or b"null")
        return answer.status, text

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a WebSocket command and give its result."""
        assert self._socket is not None
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "type": command, **arguments}))
        answer = wait(lambda: self._answers.pop(number, None), command)
        assert answer["success"], answer
        return answer["result"]

    def call(self, service: str, **data: Any) -> None:
        """Call a service, such as `button.press`."""
        self.rest("POST", f"/api/services/{service.replace('.', '/')}", data)

    def state(self, entity: str) -> str | None:
        """Give the state of an entity; None where there is none."""
        found = self.states.get(entity)
        return None if found is None else str(found["state"])

    def ours(self) -> dict[str, dict[str, Any]]:
        """Give the states of all our entities."""
        return {entity: state for entity, state in tuple(self.states.items()) if is_ours(entity)}

    def registry(self) -> dict[str, Any]:
        """Give our part of the registry of entities."""
        return {
            each["entity_id"]: each
            for each in self.ask("config/entity_registry/list")
            if is_ours(each["entity_id"])
        }

    def notes(self) -> list[str]:
        """Give the persistent notifications."""
        return [f"{each['title']}: {each['message']}" for each in self.ask("persistent_notification/get")]

    def warnings(self) -> list[str]:
        """Give the lines of the log that warn, without those that the trial itself has caused."""
        bad = re.compile(r" (WARNING|ERROR|CRITICAL) ")
        return [line for line in self.lines if bad.search(line) and not any(each in line for each in NOT_US)]

    def _listen(self) -> None:
        self._socket = connect(f"ws://{HOST}:{self.port}/api/websocket", max_size=None)
        self._socket.recv()
        self._socket.send(json.dumps({"type": "auth", "access_token": self._login["access_token"]}))
        assert json.loads(self._socket.recv())["type"] == "auth_ok"
        threading.Thread(target=self._read_socket, args=(self._socket,), daemon=True).start()
        self.ask("subscribe_events", event_type="state_changed")
        self.states = {each["entity_id"]: each for each in self.ask("get_states")} | {}

    def _read_socket(self, stream: ClientConnection) -> None:
        with contextlib.suppress(Exception):  # it ends with Home Assistant
            for text in stream:
                message = json.loads(text)
                if message["type"] == "result":
                    self._answers[message["id"]] = message
                elif message["type"] == "event":
                    entity, new = message["event"]["data"]["entity_id"], message["event"]["data"]["new_state"]
                    if new is None:
                        self.states.pop(entity, None)
                    else:
                        self.states[entity] = new
                    self.seen[entity].append(new)

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self.lines.append(line.rstrip("\n"))


class Trial:
    """The three programs, and the checks in the order in which they are made."""

    def __init__(self, folder: Path, hass: Path, form: str, program: str) -> None:
        self.failed = 0
        self.form = form
        self.broker = Broker(folder / "mosquitto", program)
        self.server = ServerProcess(folder / "sigma9", "plugins.settings.simulated.speed=600")
        mqtt = {"broker": "external", "port": self.broker.port, "username": "sigma9"}
        self.server.settings = (
            *(each for each in self.server.settings if each != "mqtt.port=0"),
            f"mqtt={json.dumps(mqtt)}",
        )
        self.server.environment["SIGMA9_MQTT__PASSWORD"] = self.broker.passwords["sigma9"]
        self.set_form(form)
        (folder / "config").mkdir()
        self.home = HomeAssistant(hass, folder / "config")

    def set_form(self, form: str) -> None:
        """Choose the form of discovery for the next start of the server."""
        kept = (each for each in self.server.settings if not each.startswith("home_assistant."))
        self.server.settings = (*kept, f"home_assistant.format={form}")

    @contextmanager
    def check(self, promise: str) -> Iterator[None]:
        """Print whether a promise was kept."""
        started = time.monotonic()
        try:
            yield
        except Exception as fault:  # noqa: BLE001 - whatever went wrong, the rest is tried all the same
            self.failed += 1
            print(f"FAIL  {promise}: {type(fault).__name__} {fault}", flush=True)
        else:
            print(f"ok    {promise} ({time.monotonic() - started:.0f} s)", flush=True)

    # --- what is compared ---------------------------------------------------------------------------------------

    def truth(self) -> dict[str, str | float]:
        """Give the state that each entity should have, from the server's own REST interface."""
        get = self.server.get
        status, account = get("/api/status"), get("/api/account")
        jobs = {job["id"]: job for job in get("/api/schedule")["jobs"]}["market_open_scan"]
        engine = status["engine"]
        error = status.get("last_error")
        found: dict[str, Any] = {
            "switch.sigma9_engine": "on" if engine in ("starting", "running", "paused") else "off",
            "binary_sensor.sigma9_killed": status["kill_switch"]["state"].lower(),
            "binary_sensor.sigma9_broker": "on" if status["broker"]["state"] == "connected" else "off",
            "binary_sensor.sigma9_market_open": "on" if status["market"]["open"] else "off",
            "sensor.sigma9_engine_state": engine,
            "sensor.sigma9_last_error": error["message"][:250] if error else "none",
            "sensor.sigma9_last_scan": moment(jobs["last_run"]),
            "sensor.sigma9_next_scan": moment(jobs["next_run"]),
        }
        for name in ("equity", "cash", "day_pnl", "unrealized_pnl"):
            found[f"sensor.sigma9_{name}"] = account[name]
        for name, path in (("positions", "positions"), ("open_orders", "orders"), ("watchlist", "watchlist")):
            found[f"sensor.sigma9_{name}"] = get(f"/api/{path}")["count"]
        for held in get("/api/positions")["positions"]:
            found[POSITION + re.sub(r"[.-]", "_", held["symbol"]).lower()] = held["quantity"]
        return found

    def agree(self, within: float = 20) -> None:
        """Wait until each entity has shown the server's own state at some moment, and none is too many."""
        wrong: dict[str, tuple[Any, Any]] = {}
        right: set[str] = set()

        def look() -> bool:
            before = {entity: state["state"] for entity, state in self.home.ours().items()}
            want = self.truth()
            now = {entity: state["state"] for entity, state in self.home.ours().items()}
            wrong.clear()
            for entity in want.keys() | {each for each in now if each.startswith(POSITION)}:
                shown = (before.get(entity), now.get(entity))
                if entity in want and any(same(want[entity], each) for each in shown):
                    right.add(entity)
                elif entity not in want or entity not in right:
                    wrong[entity] = (want.get(entity), shown)
            return not wrong

        try:
            wait(look, "the right state", within)
        except AssertionError as error:
            raise AssertionError(f"wanted and shown: {wrong}") from error

    def quiet(self) -> None:
        """Stop the trading: nothing is held, nothing moves."""
        self.post("/api/engine/stop")
        self.server.request("DELETE", "/api/orders", {"protective": True})
        wait(self._flat, "the end of the positions")

    def _flat(self) -> bool:
        if self.server.get("/api/positions")["count"]:
            self.server.request("POST", "/api/positions/*/close")
            return False
        return bool(self.server.get("/api/orders")["count"] == 0)

    def post(self, path: str, body: Any = None) -> Any:
        """Send a command by REST that succeeds."""
        status, answer = self.server.request("POST", path, body)
        assert status == http.HTTPStatus.OK, answer
        return answer

    def reads(self, entity: str, *states: str | None, within: float = 20) -> None:
        """Wait until an entity has one of some states."""
        wait(
            lambda: self.home.state(entity) in states,
            f"{entity} = {states} (it is {self.home.state(entity)})",
            within,
        )

    def press(self, name: str) -> None:
        """Press a button as a person does."""
        self.home.call("button.press", entity_id=f"button.sigma9_{name}")

    def heard(self, entity: str, since: int = 0) -> list[int]:
        """Give the numbers of the events that an event entity has shown, in order."""
        shown = [each["attributes"].get("seq") for each in self.home.seen[entity] if each]
        return [seq for seq in shown if seq is not None and seq > since]

    # --- the checks, in order -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Start everything and try it."""
        self.broker.start()
        self.server.start()
        self.home.start()
        print(f"Home Assistant {self.home.rest('GET', '/api/config')['version']}, format {self.form}", flush=True)
        self.home.add_mqtt(self.broker.port, ("operator", self.broker.passwords["operator"]))
        self.appear()
        self.follow_a_day()
        self.press_and_switch()
        self.automate()
        self.kill_and_reset()
        self.survive()
        if self.form == "device":
            self.change_form()
        self.clear()

    def appear(self) -> None:
        """Look at what discovery alone has made."""
        with self.check("every entity appears, with its id, its attributes and its state"):
            wait(lambda: ENTITIES.keys() <= self.home.ours().keys(), "all entities")
            self.agree()
            for entity, wanted in ENTITIES.items():
                shown = self.home.states[entity]["attributes"]
                if self.form == "entity":  # before 2024.11 it knows no options
                    wanted = {key: value for key, value in wanted.items() if key != "options"}
                assert {key: shown.get(key) for key in wanted} == wanted, f"{entity}: {shown}"
        with self.check("one device, stable ids, categories, the reset disabled"):
            registry = self.home.registry()
            assert len({each["device_id"] for each in registry.values()}) == 1
            for entity, each in registry.items():
                assert (
                    each["unique_id"]
                    == f"sigma9_main_{entity.partition('sigma9_')[2]}".replace("position_beme", "position_BEME")
                    or POSITION in entity
                )
            assert registry[RESET]["disabled_by"] == "integration"
            assert registry[RESET]["entity_category"] == "config"
            assert registry["sensor.sigma9_last_error"]["entity_category"] == "diagnostic"
            device = registry[RESET]["device_id"]
            about = next(each for each in self.home.ask("config/device_registry/list") if each["id"] == device)
            assert (about["name"], about["manufacturer"], about["model"]) == ("Sigma9", "Sigma9", "Trading server")
        with self.check("the blueprints are valid, and their automations are there"):
            self.home.automate()
            found = self.home.ask("blueprint/list", domain="automation")
            ours = {path: each for path, each in found.items() if path.startswith("sigma9/")}
            assert len(ours) == len(AUTOMATIONS)
            assert not [each for each in ours.values() if "error" in each], ours
            for name in AUTOMATIONS:
                self.reads(f"automation.{name}", "off" if name in ASLEEP else "on")
        with self.check("the dashboard is taken, and every entity in it exists"):
            board = json.dumps(self.home.ask("lovelace/config", url_path="trial-sigma9"))
            named = set(re.findall(r"\b(?:sensor|binary_sensor|switch|button|event)\.sigma9_\w+", board))
            assert named
            assert named <= self.home.ours().keys(), named - self.home.ours().keys()

    def follow_a_day(self) -> None:
        """Let a whole day of the market pass, and the night after it."""
        with self.check("it follows a simulated day: states right all day, positions come and go, the day turns"):
            since = self.server.get("/api/status")["seq"]
            begun = self.truth()["sensor.sigma9_last_scan"]
            looks = 0
            while self.truth()["sensor.sigma9_last_scan"] == begun:  # it is made once a day
                self.agree()
                looks += 1
            self.agree()
            assert looks > 5
            came_and_went = [e for e, seen in self.home.seen.items() if e.startswith(POSITION) and None in seen]
            assert came_and_went, "no position's sensor came and went"
        with self.check("stopped and flat, every state is the server's at once"):
            self.quiet()
            self.agree()
        for entity, kind in (
            ("event.sigma9_trade", "trade_event"),
            ("event.sigma9_watchlist_update", "watchlist_update"),
        ):
            with self.check(f"{entity} has fired for each {kind} of the journal, in order, once"):
                events = self.server.get(f"/api/events?after={since}&type={kind}&limit=1000")["events"]
                wanted = [event["seq"] for event in events]
                assert wanted
                wait(lambda: self.heard(entity, since) == wanted, f"{wanted} (heard {self.heard(entity, since)})")
        with self.check("notify_on_fill tells of fills, daily_summary of the day"):
            told = self.home.notes()
            assert any(re.match(r"Sigma9: (BUY|SELL) \w+ filled: \d", note) for note in told), told
            assert any(re.match(r"Sigma9: .*USD today: Equity ", note) for note in told), told

    def press_and_switch(self) -> None:
        """Use the switch and the buttons as the operator."""
        with self.check("the switch starts and stops the engine"):
            for service, engine in (("turn_on", "running"), ("turn_off", "stopped"), ("turn_on", "running")):
                self.home.call(f"switch.{service}", entity_id="switch.sigma9_engine")
                wait(lambda engine=engine: self.server.get("/api/status")["engine"] == engine, engine)  # type: ignore[misc]
                self.reads("switch.sigma9_engine", "on" if engine == "running" else "off")
                self.reads("sensor.sigma9_engine_state", engine)
        with self.check("the button scan scans"):
            before = len(self.heard("event.sigma9_watchlist_update"))
            self.press("scan")
            wait(lambda: len(self.heard("event.sigma9_watchlist_update")) > before, "the scan")
            assert self.home.states["event.sigma9_watchlist_update"]["attributes"]["event_type"] == "scan"
        with self.check("the button cancel_all cancels an entry"):
            self.quiet()
            self.post("/api/engine/start")
            self.place_entry()
            rows = "sensor.sigma9_open_orders"
            wait(lambda: "BEME" in json.dumps(self.home.states[rows]["attributes"]["orders"]), "the entry")
            self.press("cancel_all")
            wait(lambda: "BEME" not in json.dumps(self.home.states[rows]["attributes"]["orders"]), "its end")
            self.agree()

    def place_entry(self) -> None:
        """Place an order that waits for a lower price."""
        self.server.request("PUT", "/api/watchlist/BEME")
        last = wait(self._last_of_beme, "a price of BEME")
        order = {"symbol": "BEME", "side": "buy", "quantity": 10, "order_type": "limit", "time_in_force": "day"}
        self.post("/api/orders", {**order, "limit_price": round(last * 0.97, 2), "id": f"trial {last}"})

    def _last_of_beme(self) -> float | None:
        items = self.server.get("/api/watchlist")["items"]
        return next((item["last"] for item in items if item["symbol"] == "BEME"), None)

    def automate(self) -> None:
        """Let the blueprints act that act on the server."""
        phone = "/api/states/device_tracker.phone"
        with self.check("pause_when_nobody_is_home pauses, and resumes what it has paused"):
            self.home.rest("POST", phone, {"state": "home", "attributes": {"source_type": "gps"}})
            self.reads("zone.home", "1")
            self.home.call("automation.turn_on", entity_id="automation.pause_when_nobody_is_home")
            self.post("/api/engine/start")
            self.reads("sensor.sigma9_engine_state", "running")
            self.home.rest("POST", phone, {"state": "not_home", "attributes": {"source_type": "gps"}})
            self.reads("sensor.sigma9_engine_state", "paused")
            self.reads("input_boolean.away", "on")
            self.home.rest("POST", phone, {"state": "home", "attributes": {"source_type": "gps"}})
            self.reads("sensor.sigma9_engine_state", "running")
            self.reads("input_boolean.away", "off")
            self.home.call("automation.turn_off", entity_id="automation.pause_when_nobody_is_home")
        with self.check("kill_on_day_loss kills beyond its limit, and says so"):
            self.quiet()
            self.home.call("automation.turn_on", entity_id="automation.kill_on_day_loss")
            self.post("/api/engine/start")
            self.reads(
                "binary_sensor.sigma9_killed", "on", within=180
            )  # a day begins without a loss, and soon has one
            assert "day loss in Home Assistant" in self.server.get("/api/status")["kill_switch"]["reason"]
            wait(lambda: any("killed, the day loss is" in note for note in self.home.notes()), "its notification")
            self.home.call("automation.turn_off", entity_id="automation.kill_on_day_loss")
        with self.check("light_red_when_killed: red now, and after the reset as before"):
            wait(lambda: self.colour() == [255, 0, 0], f"red (it is {self.colour()})")
            assert self.server.sigma9("reset-kill", "--reason", "trial").returncode == 0
            self.reads("binary_sensor.sigma9_killed", "off")
            wait(lambda: self.colour() == [0, 255, 0], f"green (it is {self.colour()})")

    def colour(self) -> list[int]:
        """Give the lamp's colour."""
        return list(self.home.states[LIGHT]["attributes"]["rgb_color"] or ())

    def kill_and_reset(self) -> None:
        """Kill by the button; restart Home Assistant as the admin, with the reset button enabled; reset."""
        with self.check("the button kill_switch kills: latched, flat, the switch off, and told"):
            self.post("/api/engine/start")
            wait(lambda: self.server.get("/api/positions")["count"], "a position", 60)
            self.press("kill_switch")
            self.reads("binary_sensor.sigma9_killed", "on")
            wait(lambda: self.server.get("/api/status")["kill_switch"]["phase"] == "done", "the end of the kill")
            self.reads("sensor.sigma9_positions", "0")
            self.agree()
            kill = self.home.states["binary_sensor.sigma9_killed"]["attributes"]
            assert (kill["reason"], kill["phase"]) == ("kill button in Home Assistant", "done"), kill
            assert not [entity for entity in self.home.ours() if entity.startswith(POSITION)]
            wait(
                lambda: any("Sigma9" in note and "kill button" in note for note in self.home.notes()),
                "a notification",
            )
        with self.check("the switch goes back to off while killed"):
            self.home.call("switch.turn_on", entity_id="switch.sigma9_engine")
            time.sleep(3)
            self.reads("switch.sigma9_engine", "off")
        with self.check("Home Assistant restarted, now as admin: the same entities, with their states, light red"):
            self.home.ask("config/entity_registry/update", entity_id=RESET, disabled_by=None)
            before = {entity: each["id"] for entity, each in self.home.registry().items()}
            self.home.stop()
            self.home.log_in("admin", self.broker.passwords["admin"])
            self.home.start()
            wait(lambda: {*ENTITIES, RESET} <= self.home.ours().keys(), "all entities")
            self.agree()
            assert {entity: each["id"] for entity, each in self.home.registry().items()} == before
            wait(lambda: self.colour() == [255, 0, 0], f"red (it is {self.colour()})")
        with self.check("the admin's button reset_kill_switch resets; the light gets its colour"):
            self.press("reset_kill_switch")
            self.reads("binary_sensor.sigma9_killed", "off")
            self.reads("sensor.sigma9_engine_state", "stopped")
            wait(lambda: self.colour() == [0, 0, 255], f"blue (it is {self.colour()})")

    def survive(self) -> None:
        """Kill the server, then the broker, and let them come back."""
        self.post("/api/engine/start")
        everything = {*ENTITIES, RESET}
        with self.check("kill -9 of the server makes everything unavailable, its restart heals it"):
            self.server.stop(signal.SIGKILL)
            wait(lambda: all(each["state"] == "unavailable" for each in self.home.ours().values()), "unavailable")
            self.server.start()
            wait(lambda: self.all_there(everything), "everything")
            self.agree()
            wait(lambda: any("away" in note for note in self.home.notes()), "notify_when_unavailable")
        with self.check("a broker that was killed, and lost its database, is healed"):
            self.broker.kill()
            wait(lambda: all(each["state"] == "unavailable" for each in self.home.ours().values()), "unavailable")
            self.broker.start()
            wait(lambda: self.all_there(everything), "everything", 60)
            self.agree()
        with self.check("Home Assistant restarted while the engine trades: everything is there again"):
            self.home.stop()
            self.home.start()
            wait(lambda: self.all_there(everything), "everything", 60)
            self.agree()

    def all_there(self, entities: set[str]) -> bool:
        """Tell whether entities are there, and none of ours unavailable."""
        ours = self.home.ours()
        return entities <= ours.keys() and not any(each["state"] == "unavailable" for each in ours.values())

    def change_form(self) -> None:
        """Move to the other form and back."""
        for form in ("entity", "device"):
            with self.check(f"moved to the form {form}, entities keep their place in the registry"):
                self.quiet()
                before = {entity: each["id"] for entity, each in self.home.registry().items()}
                self.server.stop()
                self.set_form(form)
                self.server.start()
                wait(lambda: self.all_there({*ENTITIES, RESET}), "everything")
                self.post("/api/engine/stop")
                self.agree()
                after = {entity: each["id"] for entity, each in self.home.registry().items()}
                assert {entity: after.get(entity) for entity in before} == before
        with self.check("a press still acts after that"):
            self.post("/api/engine/stop")
            self.home.call("switch.turn_on", entity_id="switch.sigma9_engine")
            self.reads("sensor.sigma9_engine_state", "running")

    def clear(self) -> None:
        """Retire the node."""
        with self.check("`sigma9 discovery clear` takes everything away"):
            self.server.stop()
            environment = {**os.environ, "TRIAL": self.broker.passwords["sigma9"]}
            command = [sys.executable, "-m", "sigma9_core", "discovery", "clear", "--yes", "--host", HOST]
            command += ["--port", str(self.broker.port), "--username", "sigma9", "--password-env", "TRIAL"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            wait(lambda: not self.home.ours(), f"the end of {sorted(self.home.ours())}")
            assert not self.home.registry()
            devices = self.home.ask("config/device_registry/list")
            assert not [each for each in devices if each["manufacturer"] == "Sigma9"]

    def judge(self) -> None:
        """Look at Home Assistant's log."""
        warned = self.home.warnings()
        about = [line for line in self.home.lines if re.search("sigma9", line, re.IGNORECASE)]
        print(f"{len(about)} lines of its log name us, the last of each kind:")
        kinds = {re.sub(r"^\S+ \S+|sigma9\w*( \w+)?|'[^']*'", "", line): line for line in about}
        for line in kinds.values():
            print(f"      {line[:300]}")
        with self.check("Home Assistant's log has no warning"):
            assert not warned, "\n".join(["", *warned[:100]])

    def end(self) -> None:
        """Stop everything."""
        self.home.stop(20)
        if self.server.running:
            self.server.stop(signal.SIGKILL)
        self.broker.kill()


def is_ours(entity: str) -> bool:
    """Tell whether an entity is of the node."""
    return entity.partition(".")[2].startswith("sigma9_")


def moment(text: str | None) -> str:
    """Write a time as Home Assistant does."""
    if text is None:
        return "unknown"
    return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="seconds")


def same(wanted: Any, shown: str | None) -> bool:
    """Tell whether a state is what it should be; numbers may be written in their own way."""
    if wanted is None:
        return shown == "unknown"
    if isinstance(wanted, str):
        return shown == wanted
    try:
        return shown is not None and abs(float(shown) - float(wanted)) < 0.005
    except ValueError:
        return False


def wait(what: Callable[[], Any], why: str, within: float = 30) -> Any:
    """Wait until something is true, and give it."""
    end = time.monotonic() + within
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s: {why}")
        time.sleep(0.05)
    return found


def main() -> int:
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hass", type=Path, required=True, help="the program hass of an environment")
    parser.add_argument("--format", choices=("device", "entity"), default="device")
    parser.add_argument("--keep", type=Path, help="a new folder for everything, which stays")
    args = parser.parse_args()
    program = mosquitto.find()
    if program is None:
        sys.exit("mosquitto is not installed")
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder.mkdir(parents=True, exist_ok=True)
        trial = Trial(folder.absolute(), args.hass.absolute(), args.format, program)
        try:
            trial.run()
        finally:
            with contextlib.suppress(Exception):
                trial.judge()
            trial.end()
            (folder / "home_assistant.log").write_text("\n".join(trial.home.lines))
    print("all checks passed" if not trial.failed else f"{trial.failed} checks failed")
    return 1 if trial.failed else 0


if __name__ == "__main__":
    sys.exit(main())

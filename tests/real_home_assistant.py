"""Try a real Home Assistant with nothing but discovery; run by hand, not a test.

python tests/real_home_assistant.py --hass VENV/bin/hass [--format device|entity] [--keep FOLDER]

It needs a Home Assistant (`pip install homeassistant` in an environment of its own), which installs more at its
first start, and takes five to ten minutes. In a temporary folder, or in the new one `--keep`, it runs Mosquitto
with the shipped mosquitto.conf and the roles of `sigma9 mqtt setup`, a server with the simulated market, and Home
Assistant with the blueprints and the dashboard of `examples/`. It prints a line for each check and what Home
Assistant's log says of us, and ends with 1 where a check fails. Before 2024.11 it needs `--format entity`.
"""

# ruff: noqa: T201 - a program that prints
from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sigma9_core.testing.home_assistant import HOST, HomeAssistant, wait
from sigma9_core.testing.server_process import ServerProcess
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.broker.accounts import PASSWORDS
from sigma9_integrations.broker.embedded import free_port

EXAMPLES: Final = Path(__file__).parent.parent / "examples" / "home_assistant"
STATES: Final = ["stopped", "starting", "running", "paused", "stopping", "killed"]
COUNT: Final = {"state_class": "measurement"}
MONEY: Final = {"device_class": "monetary", "state_class": "total", "unit_of_measurement": "USD"}
TIME: Final = {"device_class": "timestamp"}
ENTITIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "switch.sigma9_engine": {},
    "binary_sensor.sigma9_market_open": {},
    **{f"button.sigma9_{name}": {} for name in ("kill_switch", "scan", "cancel_all")},
    **{f"sensor.sigma9_{name}": MONEY for name in ("equity", "cash", "day_pnl", "unrealized_pnl")},
    **{f"sensor.sigma9_{name}": COUNT for name in ("positions", "open_orders", "watchlist")},
    **{f"sensor.sigma9_{name}": TIME for name in ("last_scan", "next_scan")},
    "sensor.sigma9_engine_state": {"device_class": "enum", "options": STATES},
    "sensor.sigma9_last_error": {},
    "binary_sensor.sigma9_killed": {"device_class": "safety"},
    "binary_sensor.sigma9_broker": {"device_class": "connectivity"},
    "event.sigma9_trade": {},
    "event.sigma9_watchlist_update": {"event_types": ["scan", "manual", "restored"]},
}
"""Every entity that is there by itself, with the attributes that the contract promises."""
RESET: Final = "button.sigma9_reset_kill_switch"
POSITION: Final = "sensor.sigma9_position_"
LAMP: Final = "light.trial"
RED: Final = [255, 0, 0]
GREEN: Final = [0, 255, 0]
BLUE: Final = [0, 0, 255]
AUTOMATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "notify_on_fill": {},
    "notify_on_kill": {},
    "light_red_when_killed": {"lights": [LAMP], "afterwards": BLUE},
    "kill_on_day_loss": {"limit": 0.1, "unit": "money", "seconds": 1},
    "pause_when_nobody_is_home": {"memory": "input_boolean.away", "away": 0, "back": 0},
    "notify_when_unavailable": {"minutes": 0},
    "daily_summary": {"minutes": 0},
}
ASLEEP: Final = ("kill_on_day_loss", "pause_when_nobody_is_home")
"""Automations that are turned on when their turn comes."""
NOT_US: Final = (
    "custom integration trial",  # the lamp
    "Disconnected from MQTT server",  # the trial kills the broker
    "The connection was lost",
    "Error doing job: Task exception was never retrieved",  # its birth message, when the broker is killed
    "No device components to cleanup",  # from `device` to `entity`: no order of messages is without it
    *("Python version", "util.package", "homeassistant.setup", "ffmpeg", "FFmpeg", "aiohttp_", "turbojpeg"),
)
"""What the environment and the trial itself make Home Assistant warn of; for the rest the fault is ours."""


class Broker:
    """A Mosquitto with the shipped configuration."""

    def __init__(self, folder: Path, program: str) -> None:
        self.port = free_port()
        self._database = folder / "mosquitto.db"
        self._conf = folder / mosquitto.CONFIG_FILE
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        setup = [sys.executable, "-m", "sigma9_core", "mqtt", "setup", str(folder)]
        subprocess.run(setup, check=True, capture_output=True)
        self.passwords: dict[str, str] = json.loads((folder / PASSWORDS).read_text())
        text = self._conf.read_text().replace("listener 1883", f"listener {self.port}")
        text = text.replace("/var/lib/mosquitto/", f"{folder}/").replace("log_dest syslog", "log_dest none")
        self._conf.write_text(text + ("\nuser root\n" if os.geteuid() == 0 else ""))

    def start(self) -> None:
        command = [self._program, "-c", str(self._conf)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait(self._listens, "Mosquitto")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def kill(self) -> None:
        """End it by SIGKILL, and take away what it had stored."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._database.unlink(missing_ok=True)


class Trial:
    """The three programs, and the checks in the order in which they are made."""

    def __init__(self, folder: Path, hass: Path, form: str, program: str) -> None:
        self.failed = 0
        self.began = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
        self.form = form
        self.broker = Broker(folder / "mosquitto", program)
        self.server = ServerProcess(folder / "sigma9", "plugins.settings.simulated.speed=600")
        mqtt = {"broker": "external", "port": self.broker.port, "username": "sigma9"}
        kept = (each for each in self.server.settings if each != "mqtt.port=0")
        self.server.settings = (*kept, f"mqtt={json.dumps(mqtt)}")
        self.server.environment["SIGMA9_MQTT__PASSWORD"] = self.broker.passwords["sigma9"]
        self.config = folder / "config"
        self.home = HomeAssistant(hass, self.config, about=is_ours)
        self.home.configure()
        shutil.copytree(EXAMPLES / "blueprints", self.config / "blueprints")
        shutil.copy(EXAMPLES / "dashboard.yaml", self.config)

    def run(self) -> None:
        """Start everything and make the checks."""
        self.set_form(self.form)
        self.broker.start()
        self.server.start()
        wait(lambda: self.scan()["last_run"], "the first scan")
        self.home.start()
        version = self.home.rest("GET", "/api/config")["version"]
        knows_device = tuple(map(int, version.split(".")[:2])) >= (2024, 11)
        print(f"Home Assistant {version}, format {self.form}", flush=True)
        self.home.add_mqtt(self.broker.port, "operator", self.broker.passwords["operator"])
        self.appear(with_options=knows_device)
        self.take_examples()
        self.follow_a_day()
        self.press_and_switch()
        self.automate()
        self.kill_and_reset()
        self.survive()
        if knows_device:
            self.change_form()
        self.clear()

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

    # --- what is compared -------------------------------------------------------------------------------------

    def truth(self) -> dict[str, Any]:
        """Give the state that each entity should have, from the server's own REST interface."""
        get = self.server.get
        status, account = get("/api/status"), get("/api/account")
        scan = self.scan()
        running = status["engine"] in ("starting", "running", "paused")
        error = status["last_error"]
        found: dict[str, Any] = {
            "switch.sigma9_engine": "on" if running else "off",
            "binary_sensor.sigma9_killed": status["kill_switch"]["state"].lower(),
            "binary_sensor.sigma9_broker": "on" if status["broker"]["state"] == "connected" else "off",
            "binary_sensor.sigma9_market_open": "on" if status["market"]["open"] else "off",
            "sensor.sigma9_engine_state": status["engine"],
            "sensor.sigma9_last_error": error["message"][:250] if error else "none",
            "sensor.sigma9_last_scan": moment(scan["last_run"]),
            "sensor.sigma9_next_scan": moment(scan["next_run"]),
        }
        for name in ("equity", "cash", "day_pnl", "unrealized_pnl"):
            found[f"sensor.sigma9_{name}"] = account[name]
        for name, path in (("positions", "positions"), ("open_orders", "orders"), ("watchlist", "watchlist")):
            found[f"sensor.sigma9_{name}"] = get(f"/api/{path}")["count"]
        for held in get("/api/positions")["positions"]:
            found[position_of(held["symbol"])] = held["quantity"]
        return found

    def scan(self) -> Any:
        """Give the times of the daily scan."""
        return next(job for job in self.server.get("/api/schedule")["jobs"] if job["id"] == "market_open_scan")

    def agree(self, within: float = 20) -> None:
        """Wait until each entity has shown the server's own state at some moment, and none is too many."""
        wrong: dict[str, tuple[Any, Any]] = {}
        right: set[str] = set()

        def look() -> bool:
            before = self.home.followed()
            truth = self.truth()
            now = self.home.followed()
            right.update(
                entity
                for entity, wanted in truth.items()
                if same(wanted, before.get(entity)) or same(wanted, now.get(entity))
            )
            missing = truth.keys() - right
            too_many = {entity for entity in now if entity.startswith(POSITION)} - truth.keys()
            wrong.clear()
            wrong.update((entity, (truth.get(entity), now.get(entity))) for entity in missing | too_many)
            return not wrong

        try:
            wait(look, "the right state", within)
        except AssertionError:
            raise AssertionError(f"wanted and shown: {wrong}") from None

    def all_there(self, *more: str) -> bool:
        """Tell whether every entity is there, and none unavailable."""
        shown = self.home.followed()
        return {*ENTITIES, *more} <= shown.keys() and "unavailable" not in shown.values()

    def all_away(self) -> bool:
        """Tell whether every entity is unavailable."""
        return set(self.home.followed().values()) == {"unavailable"}

    def colour(self, wanted: list[int]) -> None:
        """Wait until the lamp has a colour."""
        wait(lambda: list(self.home.attributes(LAMP)["rgb_color"] or ()) == wanted, f"the colour {wanted}")

    def heard(self, entity: str, since: int) -> list[int]:
        """Give the numbers of the events after one that an event entity has shown, in order."""
        shown = [each["attributes"].get("seq") for each in self.home.seen[entity] if each]
        return [seq for seq in shown if seq is not None and seq > since]

    def places(self) -> dict[str, str]:
        """Give each entity's own entry in the registry, those of positions aside."""
        registry = self.home.registry().items()
        return {entity: each["id"] for entity, each in registry if not entity.startswith(POSITION)}

    # --- what is done -----------------------------------------------------------------------------------------

    def command(self, method: str, path: str, body: Any = None) -> Any:
        """Send a command by REST that succeeds."""
        status, answer = self.server.request(method, path, body)
        assert status == http.HTTPStatus.OK, answer
        return answer

    def press(self, name: str) -> None:
        self.home.call("button.press", entity_id=f"button.sigma9_{name}")

    def quiet(self) -> None:
        """Stop the trading: nothing is held, nothing waits."""
        self.command("POST", "/api/engine/stop")
        self.server.request("DELETE", "/api/orders", {"protective": True})
        wait(self._flat, "the end of the positions")

    def _flat(self) -> bool:
        if self.server.get("/api/positions")["count"]:
            self.server.request("POST", "/api/positions/*/close")
            return False
        return bool(self.server.get("/api/orders")["count"] == 0)

    # --- the checks, in order ---------------------------------------------------------------------------------

    def appear(self, *, with_options: bool) -> None:
        """Look at what discovery alone has made."""
        with self.check("every entity appears, with its id, its attributes and its state"):
            wait(self.all_there, "all entities")
            self.agree()
            for entity, promised in ENTITIES.items():
                wanted = {key: value for key, value in promised.items() if with_options or key != "options"}
                shown = self.home.attributes(entity)
                assert {key: shown.get(key) for key in wanted} == wanted, f"{entity}: {shown}"
        with self.check("one device, stable ids, categories, the reset disabled"):
            registry = self.home.registry()
            (device,) = {each["device_id"] for each in registry.values()}
            about = next(each for each in self.home.ask("config/device_registry/list") if each["id"] == device)
            assert (about["name"], about["manufacturer"], about["model"]) == ("Sigma9", "Sigma9", "Trading server")
            for entity in (*ENTITIES, RESET):
                assert registry[entity]["unique_id"] == f"sigma9_main_{entity.partition('.sigma9_')[2]}"
            assert registry[RESET]["disabled_by"] == "integration"
            assert registry[RESET]["entity_category"] == "config"
            assert registry["sensor.sigma9_last_error"]["entity_category"] == "diagnostic"

    def take_examples(self) -> None:
        """Make an automation of each blueprint, and read the dashboard."""
        with self.check("the blueprints are valid, and their automations are there"):
            rules = [
                {"id": name, "alias": name, "initial_state": name not in ASLEEP,
                 "use_blueprint": {"path": f"sigma9/{name}.yaml", "input": chosen}}
                for name, chosen in AUTOMATIONS.items()
            ]  # fmt: skip
            (self.config / "automations.yaml").write_text(json.dumps(rules))
            self.home.call("automation.reload")
            found = self.home.ask("blueprint/list", domain="automation")
            ours = {path: each for path, each in found.items() if path.startswith("sigma9/")}
            assert len(ours) == len(AUTOMATIONS)
            assert not [each for each in ours.values() if "error" in each], ours
            for name in AUTOMATIONS:
                self.home.reads(f"automation.{name}", "off" if name in ASLEEP else "on")
        with self.check("the dashboard is taken, and every entity in it exists"):
            board = json.dumps(self.home.ask("lovelace/config", url_path="the-dashboard"))
            named = set(re.findall(r"\b(?:sensor|binary_sensor|switch|button|event)\.sigma9_\w+", board))
            assert named
            assert named <= self.home.followed().keys(), named - self.home.followed().keys()

    def follow_a_day(self) -> None:
        """Let the market pass from one daily scan to the next."""
        since = self.server.get("/api/status")["seq"]
        with self.check("it follows a simulated day: states right all day, positions come and go"):
            scanned = self.scan()["last_run"]
            looks = 0
            while self.scan()["last_run"] == scanned:
                self.agree()
                looks += 1
            assert looks > 5
            assert any(entity.startswith(POSITION) and None in seen for entity, seen in self.home.seen.items())
        with self.check("a position's sensor has the attributes of the position"):
            wait(self._position_is_shown, "a position with its attributes", 60)
        with self.check("the dashboard's cards with text render"):
            texts = self.home.dashboard_texts()
            shown = [str(self.home.rest("POST", "/api/template", {"template": text})) for text in texts]
            assert "| Symbol |" in "".join(shown)
        with self.check("stopped and flat, every state is the server's, and the lists are in the attributes"):
            self.quiet()
            self.agree()
            assert self.home.attributes("sensor.sigma9_positions")["positions"] == []
            assert self.home.attributes("sensor.sigma9_open_orders")["orders"] == []
            rows = self.home.attributes("sensor.sigma9_watchlist")["items"]
            items = self.server.get("/api/watchlist")["items"]
            assert [row["symbol"] for row in rows] == [item["symbol"] for item in items]
        for kind in ("trade", "watchlist_update"):
            with self.check(f"event.sigma9_{kind} has fired for each event of the journal, in order, once"):
                name = "trade_event" if kind == "trade" else kind
                body = self.server.get(f"/api/events?after={since}&type={name}&limit=1000")
                wanted = [event["seq"] for event in body["events"]]
                assert wanted
                entity = f"event.sigma9_{kind}"
                wait(lambda e=entity, w=wanted: self.heard(e, since) == w, "each of them")  # type: ignore[misc]
        with self.check("notify_on_fill tells of fills, daily_summary of the day"):
            self.home.told(r"^Sigma9: (BUY|SELL) \w+ filled: \d")
            self.home.told(r"^Sigma9: .*USD today: Equity ")

    def _position_is_shown(self) -> bool:
        for held in self.server.get("/api/positions")["positions"]:
            state = self.home.states.get(position_of(held["symbol"]))
            if state is not None:
                fixed = ("symbol", "quantity", "average_cost", "strategy", "opened_at", "foreign")
                return all(state["attributes"].get(key) == held[key] for key in fixed)
        return False

    def press_and_switch(self) -> None:
        """Use the switch and the buttons as the operator."""
        with self.check("the switch starts and stops the engine"):
            for service, engine in (("turn_on", "running"), ("turn_off", "stopped"), ("turn_on", "running")):
                self.home.call(f"switch.{service}", entity_id="switch.sigma9_engine")
                self.home.reads("sensor.sigma9_engine_state", engine)
                self.home.reads("switch.sigma9_engine", service.removeprefix("turn_"))
                assert self.server.get("/api/status")["engine"] == engine
        with self.check("the button scan scans"):
            before = self.server.get("/api/status")["seq"]
            self.press("scan")
            wait(lambda: self.heard("event.sigma9_watchlist_update", before), "the scan")
            assert self.home.attributes("event.sigma9_watchlist_update")["event_type"] == "scan"
        with self.check("the button cancel_all cancels an entry"):
            self.quiet()
            self.command("POST", "/api/engine/start")
            self.server.request("PUT", "/api/watchlist/BEME")
            last = wait(self._price_of_beme, "a price of BEME")
            order = {"symbol": "BEME", "side": "buy", "quantity": 10, "order_type": "limit", "id": "trial"}
            self.command("POST", "/api/orders", {**order, "limit_price": round(last * 0.97, 2)})
            wait(self._beme_waits, "the entry")
            self.press("cancel_all")
            wait(lambda: not self._beme_waits(), "its end")
            self.agree()

    def _price_of_beme(self) -> float | None:
        items = self.server.get("/api/watchlist")["items"]
        return next((item["last"] for item in items if item["symbol"] == "BEME"), None)

    def _beme_waits(self) -> bool:
        rows = self.home.attributes("sensor.sigma9_open_orders")["orders"]
        return any(row["symbol"] == "BEME" for row in rows)

    def automate(self) -> None:
        """Let those blueprints run that act on the server."""
        with self.check("pause_when_nobody_is_home pauses, and resumes what it has paused"):
            self.come("home")
            self.home.reads("zone.home", "1")
            self.home.call("automation.turn_on", entity_id="automation.pause_when_nobody_is_home")
            self.command("POST", "/api/engine/start")
            self.home.reads("sensor.sigma9_engine_state", "running")
            for where, engine, memory in (("not_home", "paused", "on"), ("home", "running", "off")):
                self.come(where)
                self.home.reads("sensor.sigma9_engine_state", engine)
                self.home.reads("input_boolean.away", memory)
            self.home.call("automation.turn_off", entity_id="automation.pause_when_nobody_is_home")
        with self.check("kill_on_day_loss kills beyond its limit, and says so"):
            self.home.call("automation.turn_on", entity_id="automation.kill_on_day_loss")
            self.command("POST", "/api/engine/start")
            self.home.reads("binary_sensor.sigma9_killed", "on", within=300)  # a day begins without a loss
            assert "day loss in Home Assistant" in self.server.get("/api/status")["kill_switch"]["reason"]
            self.home.told("^Sigma9: killed, the day loss is beyond its limit")
            self.home.call("automation.turn_off", entity_id="automation.kill_on_day_loss")
        with self.check("light_red_when_killed: red, and after the reset as before"):
            self.colour(RED)
            assert self.server.sigma9("reset-kill", "--reason", "trial").returncode == 0
            self.home.reads("binary_sensor.sigma9_killed", "off")
            self.colour(GREEN)

    def come(self, where: str) -> None:
        """Let the only inhabitant come home, or go."""
        phone = {"state": where, "attributes": {"source_type": "gps"}}
        self.home.rest("POST", "/api/states/device_tracker.phone", phone)

    def kill_and_reset(self) -> None:
        """Kill by the button; restart Home Assistant as the admin, with the reset button enabled; reset."""
        with self.check("the button kill_switch kills: latched, flat, the switch off, and told"):
            self.command("POST", "/api/engine/start")
            wait(lambda: self.server.get("/api/positions")["count"], "a position", 60)
            self.press("kill_switch")
            self.home.reads("binary_sensor.sigma9_killed", "on")
            wait(lambda: self.home.attributes("binary_sensor.sigma9_killed")["phase"] == "done", "its end")
            assert self.home.attributes("binary_sensor.sigma9_killed")["reason"] == "kill button in Home Assistant"
            self.agree()
            assert self.server.get("/api/positions")["count"] == 0
            self.home.told("kill button in Home Assistant")
        with self.check("the switch goes back to off while killed"):
            self.home.call("switch.turn_on", entity_id="switch.sigma9_engine")
            time.sleep(3)
            self.home.reads("switch.sigma9_engine", "off")
        with self.check("Home Assistant restarted, now as admin: the same entities, with their states; light red"):
            self.home.ask("config/entity_registry/update", entity_id=RESET, disabled_by=None)
            before = self.places()
            self.home.stop()
            self.home.log_in("admin", self.broker.passwords["admin"])
            self.home.start()
            wait(lambda: self.all_there(RESET), "all entities")
            self.agree()
            assert self.places() == before
            self.colour(RED)
        with self.check("the admin's button reset_kill_switch resets; the light gets its colour"):
            self.press("reset_kill_switch")
            self.home.reads("binary_sensor.sigma9_killed", "off")
            self.home.reads("sensor.sigma9_engine_state", "stopped")
            self.colour(BLUE)

    def survive(self) -> None:
        """Kill the server, then the broker, and restart Home Assistant; the engine trades."""
        self.command("POST", "/api/engine/start")
        with self.check("kill -9 of the server makes everything unavailable, its restart heals it"):
            self.server.stop(signal.SIGKILL)
            wait(self.all_away, "unavailable")
            self.home.told("^Sigma9.*away")
            self.server.start()
            wait(lambda: self.all_there(RESET), "everything")
            self.agree()
        with self.check("a broker that was killed, and lost its database, is healed"):
            self.broker.kill()
            wait(self.all_away, "unavailable")
            self.broker.start()
            wait(lambda: self.all_there(RESET), "everything", 60)
            self.agree()
        with self.check(
            "Home Assistant restarted: everything is there again, and nothing of positions that ended"
        ):
            wait(lambda: any(entity.startswith(POSITION) for entity in self.home.followed()), "a position", 60)
            before = self.places()
            self.home.stop()
            self.quiet()
            self.home.start()
            wait(lambda: self.all_there(RESET), "everything", 60)
            self.agree()
            assert self.places() == before
            assert not [entity for entity in self.home.registry() if entity.startswith(POSITION)]
            self.command("POST", "/api/engine/start")
        with self.check("the recorder makes statistics of the money"):
            wait(self._has_statistics, "statistics, which are made every five minutes", 330)

    def _has_statistics(self) -> bool:
        time.sleep(2)
        money = [entity for entity, wanted in ENTITIES.items() if wanted is MONEY]
        asked = {"start_time": self.began, "period": "5minute", "statistic_ids": money}
        found = self.home.ask("recorder/statistics_during_period", **asked)
        return all(found.get(entity) for entity in money)

    def change_form(self) -> None:
        """Move to the other form and back."""
        for form in ("entity" if self.form == "device" else "device", self.form):
            with self.check(f"moved to the form {form}, entities keep their place in the registry"):
                before = self.places()
                self.server.stop()
                self.set_form(form)
                self.server.start()
                wait(lambda: self.all_there(RESET), "everything")
                self.agree()
                assert self.places() == before
        with self.check("the switch still acts after that"):
            self.home.call("switch.turn_off", entity_id="switch.sigma9_engine")
            self.home.reads("sensor.sigma9_engine_state", "stopped")

    def clear(self) -> None:
        """Retire the node."""
        with self.check("`sigma9 discovery clear` takes everything away"):
            self.server.stop()
            environment = {**os.environ, "TRIAL": self.broker.passwords["sigma9"]}
            command = [sys.executable, "-m", "sigma9_core", "discovery", "clear", "--yes", "--host", HOST]
            command += ["--port", str(self.broker.port), "--username", "sigma9", "--password-env", "TRIAL"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            wait(lambda: not self.home.followed(), "the end of all entities")
            assert not self.home.registry()
            devices = self.home.ask("config/device_registry/list")
            assert not [each for each in devices if each["manufacturer"] == "Sigma9"]

    def judge(self) -> None:
        """Look at Home Assistant's log."""
        about = [line for line in self.home.lines if re.search("sigma9", line, re.IGNORECASE)]
        kinds = {re.sub(r"^\S+ \S+|\S*sigma9\S*( \w+)?", "", line)[:70]: line for line in about}
        print(f"{len(about)} lines of its log name us; one of each kind:")
        for line in kinds.values():
            print(f"      {line[:200]}")
        with self.check("Home Assistant's log has no warning"):
            ours = [line for line in self.home.warnings() if not any(each in line for each in NOT_US)]
            assert not ours, "\n".join(["", *ours[:100]])

    def end(self) -> None:
        """Stop everything."""
        self.home.stop(20)
        if self.server.running:
            self.server.stop(signal.SIGKILL)
        self.broker.kill()


def is_ours(entity: str) -> bool:
    """Tell whether an entity is of the node."""
    return entity.partition(".")[2].startswith("sigma9_")


def position_of(symbol: str) -> str:
    """Give the entity of a position."""
    return POSITION + re.sub(r"[.-]", "_", symbol).lower()


def moment(text: str | None) -> str:
    """Write a time as Home Assistant does."""
    if text is None:
        return "unknown"
    return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="seconds")


def same(wanted: Any, shown: str | None) -> bool:
    """Tell whether a state is what it should be; a number may be written in another way."""
    if wanted is None or isinstance(wanted, str):
        return shown == (wanted or "unknown")
    try:
        return shown is not None and abs(float(shown) - float(wanted)) < 0.005
    except ValueError:
        return False


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
            trial.judge()
            trial.end()
            (folder / "home_assistant.log").write_text("\n".join(trial.home.lines))
    print(f"{trial.failed} checks failed" if trial.failed else "all checks passed")
    return 1 if trial.failed else 0


if __name__ == "__main__":
    sys.exit(main())

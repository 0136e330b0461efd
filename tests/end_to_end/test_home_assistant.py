"""A Home Assistant follows a server through trades, a kill and a reset: it sees everything, and nothing odd."""

from __future__ import annotations

import json
from typing import Any

from sigma9_core.testing.server_process import MqttListener, ServerProcess
from sigma9_integrations.homeassistant.testing import Home


class Follower:
    """Reads what a listener hears as Home Assistant does: entities come, get their states, and go."""

    def __init__(self, listener: MqttListener) -> None:
        self.home = Home()
        self.states: dict[str, str] = {}
        self.events: list[str] = []
        self.attributes: dict[str, dict[str, Any]] = {}
        self._listener = listener
        self._read = 0

    def look(self) -> Follower:
        """Take what has come since the last look."""
        news = self._listener.messages[self._read :]
        self._read += len(news)
        for topic, payload in news:
            if topic.startswith("homeassistant/") and topic.endswith("/config"):
                self.home.hear(topic, payload)
                continue
            for unique, config in self.home.configs.items():
                if _matches(config.get("state_topic"), topic):
                    assert payload, f"{unique}: its topic was emptied while it was there"
                    self.states[unique] = self.home.state(unique, payload)
                    if config["platform"] == "event":
                        self.events.append(json.loads(self.states[unique])["event_type"])
                if config.get("json_attributes_topic") == topic:
                    self.attributes[unique] = self.home.attributes(unique, payload)
        return self

    def of(self, name: str) -> str | None:
        """Give the state of an entity of the main node."""
        return self.look().states.get(f"sigma9_main_{name}")

    def without_state(self) -> set[str]:
        """Name the entities there are now that have shown nothing yet; a button never does."""
        shows = {unique for unique, config in self.home.configs.items() if config["platform"] != "button"}
        return shows - set(self.states)

    def press(self, server: ServerProcess, name: str, key: str = "payload_press") -> None:
        """Send what an entity's button or switch sends."""
        config = self.home.configs[f"sigma9_main_{name}"]
        server.mosquitto_pub("admin", config["command_topic"], config[key])


def _matches(wanted: str | None, topic: str) -> bool:
    if wanted is None or not wanted.endswith("/+"):
        return wanted == topic
    head = wanted.removesuffix("+")
    return topic.startswith(head) and "/" not in topic.removeprefix(head)


def test_it_follows_a_day_with_a_kill(server: ServerProcess) -> None:
    """Every entity gets a state that it can show; positions come and go; switch, kill, reset and scan do what they
    say."""
    with server.start(), MqttListener(server, "homeassistant/#", "sigma9/#") as listener:
        home = Follower(listener)
        server.until(lambda: home.of("engine_state") == "running", "the running engine")
        server.until(lambda: "filled" in home.look().events, "a fill")
        server.until(lambda: any("position_" in step for step in home.look().home.log), "a position's entity")
        server.until(lambda: any(step.startswith("-") for step in home.look().home.log), "its end")
        server.until(
            lambda: home.look().without_state() <= {"sigma9_main_watchlist_update"}, "a state of each entity"
        )
        assert home.attributes["sigma9_main_watchlist"]["items"]
        assert (home.of("engine"), home.of("killed"), home.of("broker")) == ("ON", "OFF", "ON")

        home.press(server, "engine", "payload_off")
        server.until(lambda: home.of("engine") == "OFF", "the stopped engine")
        home.press(server, "engine", "payload_on")
        server.until(lambda: home.of("engine") == "ON", "the started engine")
        home.press(server, "scan")
        server.until(lambda: "scan" in home.look().events, "a scan")
        home.press(server, "kill_switch")
        server.until(lambda: home.of("killed") == "ON" and home.of("engine") == "OFF", "the kill")
        server.until(lambda: home.of("positions") == "0", "the end of all positions")
        assert home.attributes["sigma9_main_killed"]["reason"] == "kill button in Home Assistant"
        home.press(server, "reset_kill_switch")
        server.until(lambda: home.of("killed") == "OFF", "the reset")
        server.until(lambda: home.of("engine_state") == "stopped", "the stopped engine")

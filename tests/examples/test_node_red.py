"""The Node-RED flow: whole, made of what comes with Node-RED, and right in its topics and commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from sigma9_core.testing.server_process import ServerProcess
from sigma9_integrations.broker import mosquitto

CORE: Final = {
    *("tab", "comment", "mqtt-broker", "mqtt in", "mqtt out", "inject", "switch", "change", "template", "debug"),
    *("http in", "http response", "function", "status", "trigger"),
}
"""The types that are used; all come with Node-RED."""
BROKER: Final = "s9broker00000001"
KILL: Final = "s9kill000000001"


@pytest.fixture(name="flow")
def _flow(examples: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((examples / "node_red" / "flow.json").read_text())
    return found


def of_type(flow: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Give the nodes of a type."""
    return [node for node in flow if node["type"] == kind]


def test_the_flow_is_whole(flow: Any) -> None:
    """Ids are unique, wires lead to nodes, every node stands on the tab and has what leads to it or starts it."""
    by_id = {node["id"]: node for node in flow}
    assert len(by_id) == len(flow)
    assert {node["type"] for node in flow} == CORE
    (tab,) = of_type(flow, "tab")
    reached = set()
    for node in flow:
        for wire in [each for port in node.get("wires", ()) for each in port]:
            assert by_id[wire]["z"] == tab["id"]
            assert by_id[wire].get("d") == node.get("d"), f"{node['id']} leads to {wire}, which is disabled or not"
            reached.add(wire)
        if "broker" in node and node["type"] != "mqtt-broker":
            assert node["broker"] == BROKER
        assert all(each in by_id for each in node.get("scope") or ())
    starts = {"tab", "comment", "mqtt-broker", "mqtt in", "inject", "http in", "status"}
    for node in flow:
        assert (node["id"] in reached) == (node["type"] not in starts), node["id"]
    for node in of_type(flow, "switch"):
        assert len(node["rules"]) == len(node["wires"]) == node["outputs"]


def test_the_flow_holds_no_login(flow: Any) -> None:
    """Who imports it gives user and password; a session starts clean, so that nothing waits for it."""
    (broker,) = of_type(flow, "mqtt-broker")
    assert not {"credentials", "user", "password"} & set(broker)
    assert broker["cleansession"] is True
    assert not any(broker[f"{name}Topic"] for name in ("birth", "close", "will"))


def test_what_the_flow_hears_exists(flow: Any, moments: Mapping[str, Any], contract: Any) -> None:
    """Subscriptions are in the topic table, with QoS 1; the sentence of a fill has what a trade event has."""
    listeners = of_type(flow, "mqtt in")
    assert len(listeners) == 4
    for node in listeners:
        contract.check_filter(node["topic"])
        assert node["qos"] == "1"
        assert node["datatype"] == ("utf8" if node["topic"].endswith("/availability") else "json")
    event = moments["running"].events["sigma9/main/event/trade_event/filled"][-1]
    sentence = next(node["template"] for node in of_type(flow, "template") if "payload.data" in node["template"])
    for part in sentence.replace("{{{", "{{").split("{{")[1:]:
        name = part.partition("}")[0].lstrip("#/")
        assert name.removeprefix("payload.data.") in event["data"], name


def test_what_the_flow_sends_is_taken(flow: Any, contract: Any) -> None:
    """Every publisher sends a command that an operator may send, QoS 1, never retained, with valid arguments."""
    publishers = of_type(flow, "mqtt out")
    assert {node["topic"].rpartition("/")[2] for node in publishers} == {"kill_switch", "pause", "resume"}
    for node in publishers:
        assert (node["qos"], node["retain"], node["respTopic"]) == ("1", "false", "sigma9/reply/node-red")
        sources = [each for each in flow if any(node["id"] in port for port in each.get("wires", ()))]
        assert sources
        for source in sources:
            if source["type"] == "inject":
                assert (source["payloadType"], source["once"], source["repeat"]) == ("json", False, "")
                payload = source["payload"]
            else:
                (rule,) = source["rules"]
                assert (source["type"], rule["p"], rule["tot"]) == ("change", "payload", "json")
                payload = rule["to"]
            assert json.loads(payload)["reason"]
            contract.check_command(node["topic"], payload)


def test_the_web_page_is_off(flow: Any) -> None:
    """What Node-RED would let anybody press is disabled until a person has set a password."""
    assert all(node["d"] for node in flow if node["id"].startswith("s9page"))
    assert all("d" not in node for node in flow if not node["id"].startswith("s9page"))


# --- with the program itself ----------------------------------------------------------------------------------


@pytest.fixture(name="program")
def _program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bring Node-RED by npm; skip where there is none."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node_red")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "node-red@4"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=180)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm can't bring Node-RED: {error}")
    return folder / "node_modules" / "node-red" / "red.js"


class NodeRed:
    """A Node-RED with the flow, logged in at a server's broker as its operator."""

    def __init__(self, program: Path, folder: Path, flow: Any, server: ServerProcess) -> None:
        login = server.login("operator")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        for node in flow:
            if node["type"] == "mqtt-broker":
                node["port"] = login[login.index("-p") + 1]
            if node["type"] == "debug":
                node |= {"console": True, "active": True}
        folder.mkdir()
        (folder / "flows.json").write_text(json.dumps(flow))
        secrets = {BROKER: {"user": "operator", "password": login[login.index("-P") + 1]}}
        (folder / "flows_cred.json").write_text(json.dumps(secrets))
        (folder / "settings.js").write_text(
            "module.exports = {flowFile: 'flows.json', uiHost: '127.0.0.1', credentialSecret: false, "
            f"uiPort: {self.port}, logging: {{console: {{level: 'info'}}}}}}"
        )
        self.log = folder / "log"
        with self.log.open("w") as log:
            options = ["-u", str(folder), "-s", str(folder / "settings.js"), "flows.json"]
            self._process = subprocess.Popen(["node", str(program), *options], cwd=folder, stdout=log, stderr=log)

    def press(self, node: str) -> None:
        """Press an inject node."""
        url = f"http://127.0.0.1:{self.port}/inject/{node}"
        with urllib.request.urlopen(urllib.request.Request(url, b"", method="POST"), timeout=10) as answer:
            assert answer.status == 200

    def until(self, text: str, within: float = 60) -> None:
        """Wait until the log has a text."""
        end = time.monotonic() + within
        while text not in self.log.read_text():
            if time.monotonic() > end or self._process.poll() is not None:
                raise AssertionError(f"no {text!r} in:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[ServerProcess]:
    if mosquitto.find() is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto is not installed")
        pytest.skip("mosquitto is not installed")
    with ServerProcess(tmp_path / "server") as server:
        yield server


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.timeout(400)
def test_node_red_takes_the_flow(program: Path, flow: Any, server: ServerProcess, tmp_path: Path) -> None:
    """Imported as it is, it connects, tells a fill, and its button kills and shows the answer."""
    red = NodeRed(program, tmp_path / "red", flow, server)
    try:
        red.until("Connected to broker")
        assert "Waiting for missing types" not in red.log.read_text()
        red.until("[debug:put your notifier here] buy ")
        red.press(KILL)
        red.until("[debug:done] kill_switch")
        red.until("command: 'kill_switch'")  # the answer to the flow alone
        assert "[error]" not in red.log.read_text()
        kill = server.get("/api/status")["kill_switch"]
        assert (kill["state"], kill["reason"]) == ("ON", "kill button in Node-RED")
    finally:
        red.stop()

"""The kill switch from every door of a real server, and over kill -9 and a new start."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from sigma9_core.testing.server_process import MqttListener, ServerProcess


def by_rest(server: ServerProcess) -> None:
    """Kill by REST."""
    status, body = server.request("POST", "/api/kill-switch", {"reason": "test"})
    assert (status, body["ok"]) == (200, True)


def by_mqtt(server: ServerProcess) -> None:
    """Kill by MQTT."""
    options = server.login("operator")
    subprocess.run(
        ["mosquitto_pub", *options, "-t", "sigma9/main/command/kill_switch", "-m", "PRESS", "-q", "1"], check=True
    )


def by_command_line(server: ServerProcess) -> None:
    """Kill by `sigma9 kill`."""
    result = server.sigma9("kill", "--reason", "test")
    assert result.returncode == 0, result.stderr


def by_signal(server: ServerProcess) -> None:
    """Kill by SIGUSR1."""
    os.kill(server.process.pid, signal.SIGUSR1)


@pytest.mark.parametrize("door", [by_rest, by_mqtt, by_command_line, by_signal])
def test_every_door_kills(server: ServerProcess, door: Callable[[ServerProcess], None]) -> None:
    """From each door: latched, orders cancelled, positions flat, start refused until a person resets it."""
    with server.start(), MqttListener(server, "sigma9/main/state/kill_switch") as listener:
        server.until(lambda: server.get("/api/positions")["count"], "a position")
        door(server)
        server.until(lambda: server.get("/api/status")["kill_switch"]["phase"] == "done", "the end of the kill")
        status = server.get("/api/status")
        assert status["engine"] == "killed"
        assert status["kill_switch"]["latched"] is True
        assert server.get("/api/positions")["count"] == 0
        assert server.get("/api/orders")["count"] == 0
        server.until(lambda: any('"phase":"done"' in body for body in listener.of("kill_switch")), "done on MQTT")
        refused, body = server.request("POST", "/api/engine/start")
        assert (refused, body["error"]["code"]) == (409, "killed")
        entry = {"symbol": "BEME", "side": "buy", "quantity": 1, "id": "x1"}
        refused, body = server.request("POST", "/api/orders", entry)
        assert (refused, body["error"]["code"]) == (409, "killed")
        reset, _ = server.request("DELETE", "/api/kill-switch", {"reason": "checked"})
        assert reset == 200
        assert server.get("/api/status")["engine"] == "stopped"
        started, _ = server.request("POST", "/api/engine/start")
        assert started == 200


def test_a_kill_outlives_kill_9(server: ServerProcess) -> None:
    """Killed, then kill -9 and a new start: still latched, nothing starts, and it goes on until flat."""
    server.start()
    server.until(lambda: server.get("/api/positions")["count"], "a position")
    by_signal(server)
    server.until(lambda: server.get("/api/status")["kill_switch"]["latched"], "the latch")
    server.stop(signal.SIGKILL)
    with server.start():
        server.until(lambda: server.get("/api/status")["kill_switch"]["phase"] == "done", "the end of the kill")
        assert server.get("/api/status")["engine"] == "killed"
        assert server.get("/api/positions")["count"] == 0
        assert server.request("POST", "/api/engine/start")[1]["error"]["code"] == "killed"

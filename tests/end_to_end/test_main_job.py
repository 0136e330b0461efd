"""The main job, end to end: `sigma9 run` with nothing configured, seen by real MQTT and WebSocket clients."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from websockets.sync.client import connect

from sigma9_core.testing.server_process import MqttListener, ServerProcess

DURABLE = ("trade_event", "watchlist_update", "status_update")


def durable(listener: MqttListener) -> list[str]:
    """List the durable events that went by, as they came."""
    return [
        payload
        for topic, payload in tuple(listener.messages)
        if any(f"/event/{kind}" in topic for kind in DURABLE)
    ]


def seqs(envelopes: list[str]) -> list[int]:
    """List the numbers of envelopes."""
    return [json.loads(envelope)["seq"] for envelope in envelopes]


def read_feed(server: ServerProcess, after: int, count: int) -> list[str]:
    """Read that many durable envelopes from the WebSocket."""
    host, port = server.address
    frames: list[str] = []
    with connect(
        f"ws://{host}:{port}/ws/feed?after={after}&types={','.join(DURABLE)}",
        additional_headers={"Authorization": f"Bearer {server.token}"},
    ) as socket:
        while len(frames) < count:
            frame = socket.recv(timeout=20)
            assert isinstance(frame, str)
            if json.loads(frame)["seq"] is not None:
                frames.append(frame)
    return frames


def closed_trades(server: ServerProcess) -> list[Any]:
    """List the exits that have filled."""
    return [trade for trade in server.get("/api/trades")["trades"] if trade["source"] == "exit"]


def test_it_scans_trades_and_closes_and_everybody_sees_the_same(server: ServerProcess) -> None:
    """A scan fills the watchlist, entries fill, exits close; MQTT and WebSocket carry the same bytes, no gap,
    and after a restart the numbers go on."""
    with server.start(), MqttListener(server) as listener:
        server.until(lambda: listener.of("/availability"), "availability")
        assert listener.of("/availability")[0] == "online"
        server.until(lambda: server.get("/api/watchlist")["count"] > 0, "the watchlist")
        server.until(lambda: closed_trades(server), "a closed trade")
        heard = durable(listener)
        numbers = seqs(heard)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        frames = read_feed(server, numbers[0] - 1, len(heard))
        assert frames == heard
        stored = server.get(f"/api/events?after={numbers[0] - 1}&limit={len(heard)}")
        assert [json.loads(frame) for frame in frames] == stored["events"]
        states = {json.loads(each)["data"].get("event") for each in heard}
        assert {"submitted", "accepted", "filled"} <= states
        journal_id = stored["journal_id"]
        assert server.stop() == 0
        server.until(lambda: listener.of("/availability")[-1] == "offline", "offline")
    last = max(seqs(durable(listener)))
    with server.start():
        status = server.get("/api/status")
        assert status["journal_id"] == journal_id
        assert status["seq"] > last
        page = server.get(f"/api/events?after={last}")
        assert page["events"][0]["seq"] == last + 1


def test_the_embedded_broker_dies_with_its_server(server: ServerProcess) -> None:
    """After kill -9 of the server no broker process is left behind."""
    server.start()
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(server.process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    assert children
    server.stop(signal.SIGKILL)

    def gone() -> bool:
        ask = ["ps", "-o", "stat=", "-p", ",".join(children)]
        states = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
        return all(state.startswith("Z") for state in states)  # its heir may be slow to reap it

    server.until(gone, "the end of the broker, and of the child that works out the calendar")


def test_a_second_server_on_the_same_data_is_refused(server: ServerProcess) -> None:
    """Two servers never share a data folder: the second one says who is there, and ends with 1."""
    with server.start():
        second = subprocess.run(
            [*server.process.args],  # type: ignore[misc]
            cwd=server.folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert second.returncode == 1
        assert str(server.process.pid) in second.stderr


def test_a_wrong_setting_ends_the_start_with_one_message(server: ServerProcess) -> None:
    """Every fault is named with its place, nothing starts, and the exit code is 2."""
    server.folder.mkdir(exist_ok=True)
    (server.folder / "server_config.yaml").write_text(
        "node: all\nserver: {prot: 8000}\nrisk:\n  - plugin: max_open\n    config: {max_positions: -1}\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "sigma9_core", "run"],
        cwd=server.folder,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 2
    assert "server_config.yaml:1" in result.stderr
    assert "server_config.yaml:2" in result.stderr
    assert "port" in result.stderr

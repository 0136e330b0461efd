"""A disk that is full: no order goes out whose intent is not on it, the kill works, and all goes on by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from sigma9_core.money.history import History
from sigma9_core.money.orders import ENDED
from sigma9_core.testing.server_process import ServerProcess

SMALL = "size=12m"


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small disk."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", SMALL, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(name="cramped")
def _cramped(tmp_path: Path, disk: Path) -> Iterator[ServerProcess]:
    """Give a server whose data lie on the small disk."""
    server = ServerProcess(tmp_path, "plugins.settings.simulated.speed=600")
    server.data = disk / "data"
    server.settings = (*server.settings[:2], f"data_dir={server.data}", *server.settings[3:])
    try:
        yield server
    finally:
        if server.running:
            server.stop(signal.SIGKILL)


def fill_up(disk: Path) -> Path:
    """Take every byte that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast


def sent(server: ServerProcess, number: int) -> tuple[int, str]:
    """Try an entry; give the status and the code, or the order's id."""
    entry = {"symbol": "BEME", "side": "buy", "quantity": 1, "id": f"disk-{number}"}
    status, body = server.request("POST", "/api/orders", entry)
    return status, body["error"]["code"] if body["error"] else body["result"]["order"]["order_id"]


def test_a_full_disk_stops_orders_and_no_kill(cramped: ServerProcess, disk: Path) -> None:
    """Entries are refused while nothing can be written, the kill flattens, and all goes on by itself after it."""
    server = cramped.start()
    server.until(lambda: server.get("/api/positions")["count"], "a position")
    ballast = fill_up(disk)
    server.until(lambda: any("can't be written" in line for line in server.lines), "the journal's word")
    status, code = sent(server, 1)
    assert (status, code) == (500, "internal")
    assert "journal" in server.request("GET", "/readyz")[1]["not_ready"]

    killed = server.sigma9("kill", "--reason", "full disk")
    assert killed.returncode == 0, killed.stderr
    server.until(lambda: server.get("/api/status")["kill_switch"]["phase"] == "done", "the end of the kill")
    assert server.get("/api/positions")["count"] == 0
    assert server.get("/api/status")["kill_switch"]["latched"] is True  # the latch has its room beforehand

    ballast.unlink()
    server.until(lambda: "journal" not in server.request("GET", "/readyz")[1]["not_ready"], "the journal")
    status, body = server.request("DELETE", "/api/kill-switch", {"reason": "there is space again"})
    assert status == 200, body
    assert server.request("POST", "/api/engine/start")[0] == 200
    status, order_id = sent(server, 2)
    assert status == 200, order_id
    server.until(lambda: server.get(f"/api/orders/{order_id}")["status"] in ENDED, "its fill")
    assert server.stop() == 0

    history = History(f"sqlite:///{server.data / 'sigma9.db'}", "main")
    history.open()
    after = 0
    while (page := history.events(after, 1000)).events:
        assert [json.loads(body)["seq"] for body in page.events] == [
            *range(after + 1, after + 1 + len(page.events))
        ]
        after += len(page.events)
    assert after == history.events(0, 1).last
    unwritten = [fill.fill.order_id for fill in history.fills() if history.intent(fill.fill.order_id) is None]
    assert unwritten == []


BLOCKER = """
import time
from pathlib import Path
from time import monotonic
from sigma9_core.hookspecs import hookimpl

class Blocker:
    async def start(self, server):
        import asyncio
        self.task = asyncio.get_running_loop().create_task(self.wait())

    async def wait(self):
        import asyncio
        while not Path("block").exists():
            await asyncio.sleep(0.05)
        Path("blocked").touch()
        while Path("block").exists():  # the outer loop stands still
            time.sleep(0.05)

    async def stop(self):
        self.task.cancel()

@hookimpl
def register_services(register):
    register("blocker", lambda config, context: Blocker())
"""


def test_a_kill_works_while_nothing_else_does(cramped: ServerProcess, disk: Path, tmp_path: Path) -> None:
    """Event loop blocked by a plugin, disk full, MQTT frozen, all at once: positions are closed all the same."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "blocker.py").write_text(BLOCKER)
    cramped.settings = (*cramped.settings, f"plugins.paths=[{plugins}]")
    server = cramped.start()
    server.until(lambda: server.get("/api/positions")["count"], "a position")
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    brokers = [int(pid) for pid in children if "mosquitto" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert brokers
    for pid in brokers:
        os.kill(pid, signal.SIGSTOP)
    ballast = fill_up(disk)
    (tmp_path / "block").touch()
    server.until((tmp_path / "blocked").exists, "the blocked loop")

    answers = [json.loads(server.sigma9("kill", "--reason", "all is lost", "--format", "json").stdout)]
    patience = monotonic() + 30  # the simulated market waits 5 s for the blocked loop before it goes on and fills
    while answers[-1]["result"]["pending"] and monotonic() < patience:
        answers.append(json.loads(server.sigma9("kill", "--reason", "again", "--format", "json").stdout))
    assert answers[-1]["ok"], answers[-1]
    assert answers[-1]["result"]["pending"] == []
    assert answers[-1]["result"]["closed_positions"]

    ballast.unlink()
    for pid in brokers:
        os.kill(pid, signal.SIGCONT)
    (tmp_path / "block").unlink()
    server.until(lambda: server.get("/api/status")["kill_switch"]["phase"] == "done", "the word that it is done")
    assert server.get("/api/positions")["count"] == 0
    assert server.get("/api/status")["engine"] == "killed"
    assert server.stop() == 0

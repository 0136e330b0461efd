"""Measure the kill under load: a real server, 100 working orders, 50 positions, and plugins that misbehave.

python tests/bench_kill.py [--closings 1000] [--drills 100]

A kill's time runs from just before its bytes are written to the kill's socket, in another process, to the closed
gate and to the first cancel that the broker gets, both by the machine's monotonic clock. A drill is the whole way:
orders cancelled, positions closed, read back, reset. After a closed gate only the kill's own orders may go.
Beside it stands a bare program that just notes when bytes arrive, with a busy thread and one that syncs a
file in its process: no server in Python that journals and lives with such a plugin can be sooner on this machine.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sigma9_core.engine import SWITCH_INTERVAL
from sigma9_core.testing.engine_room import write_calendar
from sigma9_core.testing.server_process import ServerProcess

CONFIG = """
feed: bench_ticks
broker: bench_exchange
scanners: [{{plugin: bench_eager}}]
notifiers: []
risk:
  - {{plugin: max_order_quantity}}
  - {{plugin: price_collar, config: {{max_distance_percent: 50}}}}
  - {{plugin: max_open, config: {{max_positions: 1000, max_orders: 3000, max_entries_per_day: 10000000}}}}
  - {{plugin: session, config: {{last_minutes: 0}}}}
plugins: {{paths: [{plugin}]}}
scheduler: {{enabled: false}}
mqtt: {{enabled: false}}
"""


BARE = f"""
import os, socket, sys, threading, time

def compute():
    number = 0
    while True:
        for _ in range(1000):
            number = (number * 1103515245 + 12345) % 2**31

def sync():
    with open(sys.argv[1] + ".synced", "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            time.sleep(0.002)

sys.setswitchinterval({SWITCH_INTERVAL})
threading.Thread(target=compute, daemon=True).start()
threading.Thread(target=sync, daemon=True).start()
with socket.socket(socket.AF_UNIX) as door:
    door.bind(sys.argv[1])
    door.listen()
    print("ready", flush=True)
    while True:
        visitor, _ = door.accept()
        if visitor.recv(65536):
            visitor.sendall(str(time.monotonic_ns()).encode() + bytes([10]))
        visitor.close()
"""


class Load:
    """The server, what it has written down, and the kill's socket."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / "trace"
        self._read = 0
        self._control: Any = None
        plugins = folder / "plugins"
        plugins.mkdir()
        shutil.copy(Path(__file__).with_name("bench_kill_plugin.py"), plugins / "bench_kill_plugin.py")
        (folder / "server_config.yaml").write_text(CONFIG.format(plugin=plugins))
        write_calendar(folder / "data", always=True)
        os.environ["BENCH_TRACE"] = str(self.trace)
        os.environ["BENCH_CONTROL"] = str(folder / "control.sock")
        self.server = ServerProcess(folder)

    def steps(self) -> list[tuple[int, str]]:
        """Give what was written down since the last look."""
        text = self.trace.read_bytes()[self._read :]
        self._read += len(text)
        return [(int(at), what) for at, _, what in (line.partition(" ") for line in text.decode().splitlines())]

    def kill(self, **args: Any) -> int:
        """Kill by the socket; give the time just before its bytes left."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.connect(str(self.server.data / "kill.sock"))
            line = json.dumps({"reason": "bench", **args}).encode() + b"\n"
            began = time.monotonic_ns()
            door.sendall(line)
            with door.makefile("rb") as answers:
                answer = json.loads(answers.readline())
        if not answer["ok"]:
            raise AssertionError(answer)
        return began

    def control(self, what: str) -> str:
        """Let the plugin do something on the money lane: `fill`, `reset`, `phase`."""
        if self._control is None:
            door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            door.connect(os.environ["BENCH_CONTROL"])
            self._control = door.makefile("rw")
        self._control.write(f"{what}\n")
        self._control.flush()
        return str(self._control.readline()).strip()

    def fill_up(self) -> None:
        """Hold 50 positions and let 100 entries rest."""
        told = self.control("fill")
        if not told.startswith("150 "):
            raise AssertionError(f"only {told} of 150 orders passed")

    def until_done(self) -> None:
        """Wait for the end of the kill."""
        while self.control("phase") != "done":
            time.sleep(0.005)


def tell(what: str, times: Sequence[float], limit: float) -> None:
    """Print a row of milliseconds."""
    p99 = quantiles(times, n=100, method="inclusive")[98]
    verdict = "ok" if p99 <= limit else "TOO SLOW"
    print(
        f"{what:34} n={len(times):5} p50 {median(times):7.2f} p99 {p99:7.2f} max {max(times):7.2f} ms  {verdict}"
    )


def bare(folder: Path, count: int) -> None:
    """Knock at the bare program's door."""
    path, times = folder / "bare.sock", list[float]()
    with subprocess.Popen([sys.executable, "-c", BARE, str(path)], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        for _ in range(count):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                door.connect(str(path))
                began = time.monotonic_ns()
                door.sendall(b"kill\n")
                with door.makefile("rb") as answers:
                    times.append((int(answers.readline()) - began) / 1e6)
            time.sleep(0.005)
        program.kill()
    path.unlink()
    tell("bare: bytes sent to bytes heard", times, 5)


def closings(load: Load, count: int) -> int:
    """Close the gate by a halt, again and again; give how many foreign orders left after it."""
    times: list[float] = []
    after = 0
    for _ in range(count):
        load.steps()
        began = load.kill(flatten=False)
        found = load.steps()
        closed = next(at for at, what in found if what == "gate" and at >= began)
        times.append((closed - began) / 1e6)
        after += sum(what.startswith("submit") and " kill " not in what and at > closed for at, what in found)
        load.control("reset")
    tell("bytes sent to gate closed", times, 5)
    return after


def drills(load: Load, count: int) -> int:
    """Kill everything, wait until the broker shows nothing left, fill up again."""
    gates: list[float] = []
    cancels: list[float] = []
    wholes: list[float] = []
    after = 0
    for _ in range(count):
        load.fill_up()
        load.steps()
        began = load.kill(flatten=True)
        load.until_done()
        ended = time.monotonic_ns()
        found = load.steps()
        closed = next(at for at, what in found if what == "gate" and at >= began)
        first = next(at for at, what in found if what == "cancel" and at >= began)
        gates.append((closed - began) / 1e6)
        cancels.append((first - began) / 1e6)
        wholes.append((ended - began) / 1e6)
        after += sum(what.startswith("submit") and " kill " not in what and at > closed for at, what in found)
        load.control("reset")
    tell("drill: bytes sent to gate closed", gates, 5)
    tell("drill: bytes sent to first cancel", cancels, 50)
    tell("drill: bytes sent to all closed", wholes, 60_000)
    return after


def main(argv: Sequence[str]) -> int:
    """Run both and print the figures."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--closings", type=int, default=1000)
    options.add_argument("--drills", type=int, default=100)
    wanted = options.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="sigma9-bench-"))
    try:
        bare(folder, wanted.closings // 2)
        load = Load(folder)
        with load.server:
            load.server.until(lambda: load.server.get("/api/status")["engine"] == "running", "the start")
            load.fill_up()
            after = closings(load, wanted.closings)
            load.kill(flatten=True)
            load.until_done()
            load.control("reset")
            after += drills(load, wanted.drills)
        bare(folder, wanted.closings // 2)
        print(f"orders that left after a closed gate and were not the kill's own: {after}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if after else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

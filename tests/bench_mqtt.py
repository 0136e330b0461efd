"""Measure MQTT beside bare clients, all in one run against one Mosquitto; run by hand, not a test.

python tests/bench_mqtt.py [--rounds 3]: what the node publishes, counted by the C program mosquitto_sub, beside
bare aiomqtt and bare paho; and commands to a real server, from request to answer, idle and beside a flood, with a
bare aiomqtt program that answers beside it. Quote ratios.
"""

# ruff: noqa: T201, ASYNC110, ASYNC251 - a bench of programs in processes of their own
from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from sigma9_core.clock import wall_now
from sigma9_core.events import MarketData, StatusUpdate
from sigma9_core.testing.fakes import FakeServer
from sigma9_core.testing.server_process import ServerProcess
from sigma9_integrations.broker import mosquitto
from sigma9_integrations.broker.embedded import HOST
from sigma9_integrations.mqtt.testing import Mosquitto, serving, settings_for

SECONDS = 2.0
"""How long each publisher runs in a round."""
WITHIN_BURST = 190
"""Commands of one name that a server takes at once: more are refused, which takes less time."""
PAUSE = 0.01
"""Seconds between two commands: a person's press finds a server that rests."""
KILL_ROUNDS = 5
"""Of 150 kills each; told is the median of their p99: one pause of the machine makes the p99 of a round."""
OUTSTANDING = 5000
"""Messages that may be on their way to the subscriber, of the node and of bare paho alike."""
STEP = 100
"""How many are handed over between two looks at what has arrived."""
PAYLOAD = json.dumps({"type": "market_data", "v": 1, "seq": None, "node": "main", "data": {"x": "y" * 120}})
INSERT = "INSERT INTO t VALUES (?)"
ECHO = f"""
import asyncio, os, socket, sqlite3, sys
from concurrent.futures import ThreadPoolExecutor
import aiomqtt

base = sys.argv[4]
database = sqlite3.connect(base + ".db", isolation_level=None, check_same_thread=False)
database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (x)")
latch = os.open(base + ".latch", os.O_RDWR | os.O_CREAT)
os.pwrite(latch, b" " * 4096, 0)
os.fsync(latch)
writer, money = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

def commit():
    database.execute(sys.argv[5], ("x" * 300,))

def kill():
    writer.submit(lambda: (os.pwrite(latch, b"x" * 2048, 0), os.fdatasync(latch))).result()

async def main():
    loop = asyncio.get_running_loop()
    nodelay = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    async with aiomqtt.Client({HOST!r}, int(sys.argv[1]), username=sys.argv[2], password=sys.argv[3],
                              protocol=aiomqtt.ProtocolVersion.V5, socket_options=nodelay) as client:
        await client.subscribe("sigma9/bench/command/+", 1)
        async for message in client.messages:
            what = str(message.topic).rpartition("/")[2]
            if what == "commit":
                await loop.run_in_executor(writer, commit)
            elif what == "kill":
                await loop.run_in_executor(money, kill)
            await client.publish("sigma9/main/response/bare", message.payload, 1)

asyncio.run(main())
"""
"""A bare program that answers at once, after a commit, or after the hops and the flush of a kill: what no server
in Python can be faster than."""
FLOOD = f"""
import json, sys, time
import paho.mqtt.client as paho
client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
client.username_pw_set(sys.argv[2], sys.argv[3])
client.connect({HOST!r}, int(sys.argv[1]))
client.loop_start()
began, sent = time.monotonic(), 0
while True:
    due = int((time.monotonic() - began) * 2000)
    while sent < due:
        client.publish(sys.argv[4], json.dumps({{"id": str(sent)}}), 0)
        sent += 1
    time.sleep(0.002)
"""


@contextmanager
def counting(broker: Mosquitto, topic: str, qos: int) -> Iterator[Callable[[], int]]:
    """Count with mosquitto_sub what arrives on a topic while the block runs."""
    login = ["-h", HOST, "-p", str(broker.port), "-u", "viewer", "-P", broker.passwords["viewer"]]
    with tempfile.TemporaryFile() as out:
        reader = subprocess.Popen(["mosquitto_sub", *login, "-q", str(qos), "-F", "x", "-t", topic], stdout=out)
        time.sleep(0.3)

        def count() -> int:
            out.flush()
            return os.fstat(out.fileno()).st_size // 2

        try:
            yield count
        finally:
            reader.terminate()
            reader.wait()


async def settled(count: Callable[[], int]) -> int:
    """Wait until no more arrives; give the number."""
    seen = -1
    while count() != seen:
        seen = count()
        await asyncio.sleep(0.4)
    return seen


async def node_market_data(broker: Mosquitto) -> float:
    """Let a node publish market data as fast as its connection takes it; give messages a second."""
    server = FakeServer(settings_for(broker))
    now = wall_now()
    data = [MarketData(symbol=f"S{n:04d}", kind="quote", ts=now, bid=1.0, ask=1.1) for n in range(OUTSTANDING)]
    async with serving(server.settings, server):
        with counting(broker, "sigma9/main/event/market_data/#", 0) as count:
            began, sent = time.perf_counter(), 0
            while time.perf_counter() - began < SECONDS:
                start = sent % OUTSTANDING
                for each in data[start : start + STEP]:  # each symbol waits once: nothing is conflated
                    server.emit("market_data", each, durable=False)
                sent += STEP
                await asyncio.sleep(0)
                while sent + STEP - count() > OUTSTANDING and time.perf_counter() - began < SECONDS:
                    await asyncio.sleep(0.001)
            return await settled(count) / SECONDS


async def node_durable(broker: Mosquitto) -> float:
    """Let a node publish durable events at QoS 1; give messages a second."""
    server = FakeServer(settings_for(broker))
    async with serving(server.settings, server):
        with counting(broker, "sigma9/main/event/status_update", 1) as count:
            began, number = time.perf_counter(), 0
            while time.perf_counter() - began < SECONDS:
                for _ in range(200):
                    number += 1
                    server.emit(
                        "status_update", StatusUpdate(changed=("engine",), status={"n": number}), durable=True
                    )
                while number - count() > 2000 and time.perf_counter() - began < SECONDS:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0)
            ended = time.perf_counter() - began
            return min(await settled(count), number) / max(ended, time.perf_counter() - began - 0.8)


async def bare_aiomqtt(broker: Mosquitto, qos: int) -> float:
    """Publish with aiomqtt, 100 at a time."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    async with aiomqtt.Client(
        HOST, broker.port, username="sigma9", password=broker.passwords["sigma9"],
        protocol=aiomqtt.ProtocolVersion.V5, socket_options=options, max_inflight_messages=100,
    ) as client:  # fmt: skip
        client.pending_calls_threshold = 100_000
        with counting(broker, "sigma9/bare/#", qos) as count:
            began = time.perf_counter()
            while time.perf_counter() - began < SECONDS:
                await asyncio.gather(*(client.publish("sigma9/bare/x", PAYLOAD, qos) for _ in range(100)))
            return await settled(count) / SECONDS


async def bare_paho(broker: Mosquitto, qos: int) -> float:
    """Publish with paho and its own thread, a window of 100."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.username_pw_set("sigma9", broker.passwords["sigma9"])
    client.max_inflight_messages_set(100)
    client.connect(HOST, broker.port)
    client.loop_start()
    with counting(broker, "sigma9/bare/#", qos) as count:
        began, sent = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            client.publish("sigma9/bare/x", PAYLOAD, qos)
            sent += 1
            if sent % STEP == 0:
                while sent - count() > OUTSTANDING:
                    time.sleep(0.001)
        number = await settled(count)
    client.disconnect()
    client.loop_stop()
    return number / SECONDS


async def throughput(broker: Mosquitto, rounds: int) -> None:
    """Print messages a second of each publisher, and the ratios."""
    rows: dict[str, list[float]] = {}
    makers: Sequence[tuple[str, Callable[[], Awaitable[float]]]] = (
        ("market data (QoS 0), node", lambda: node_market_data(broker)),
        ("QoS 0, bare aiomqtt", lambda: bare_aiomqtt(broker, 0)),
        ("QoS 0, bare paho", lambda: bare_paho(broker, 0)),
        ("durable events (QoS 1), node", lambda: node_durable(broker)),
        ("QoS 1, bare aiomqtt", lambda: bare_aiomqtt(broker, 1)),
        ("QoS 1, bare paho", lambda: bare_paho(broker, 1)),
    )
    for _ in range(rounds):
        for name, make in makers:
            rows.setdefault(name, []).append(await make())
    medians = {name: median(values) for name, values in rows.items()}
    for name, value in medians.items():
        print(f"{name:32} {value:9.0f} messages/s")
    aims = (("QoS 0", "market data (QoS 0), node", 0.8), ("QoS 1", "durable events (QoS 1), node", 0.5))
    for start, name, aim in aims:
        best = max(value for key, value in medians.items() if key.startswith(start))
        print(f"{name}: {medians[name] / best:.2f} of the best bare Python publisher (aim {aim})")


def _no_delay(_client: Any, _userdata: Any, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Asker:
    """A paho client that sends a message and waits for the next one on a topic."""

    def __init__(self, host: str, port: int, user: str, password: str) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.username_pw_set(user, password)
        self._client.on_message = self._heard
        self._client.on_socket_open = _no_delay
        self._client.connect(host, port)
        self._answer: float | None = None
        self._mark = b""

    def subscribe(self, topic: str) -> None:
        """Listen to a topic."""
        self._client.subscribe(topic, 1)
        self._turn(0.3)

    def ask(self, topic: str, payload: str, mark: str) -> float:
        """Send; give milliseconds until a message with the mark arrives."""
        self._answer, self._mark = None, mark.encode()
        began = time.perf_counter()
        self._client.publish(topic, payload, 1)
        while self._answer is None:
            self._client.loop(0.01)
            if time.perf_counter() - began > 10:
                raise AssertionError(f"no answer to {payload}")
        return (self._answer - began) * 1000

    def rest(self, seconds: float) -> None:
        """Do nothing but what keeps the connection alive."""
        self._turn(seconds)

    def drop(self) -> None:
        """Hear nothing more."""
        self._client.disconnect()
        self._turn(0.05)

    def _turn(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self._client.loop(min(seconds, 0.01))

    def _heard(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        if self._answer is None and self._mark in message.payload:
            self._answer = time.perf_counter()


def told(what: str, times: Sequence[float]) -> tuple[float, float]:
    """Print p50 and p99; give both."""
    p99 = quantiles(times, n=100, method="inclusive")[98]
    print(f"{what:44} n={len(times):5} p50 {median(times):6.2f} p99 {p99:6.2f} max {max(times):6.2f} ms")
    return median(times), p99


class BareCommit:
    """One commit with synchronous FULL and nothing around it: the least that something durable takes."""

    def __init__(self, path: Path, *schema: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
        for statement in schema:
            self._database.execute(statement)

    def __call__(self, insert: str, row: Sequence[Any]) -> float:
        """Add a row; give milliseconds."""
        began = time.perf_counter()
        self._database.execute(insert, row)
        return (time.perf_counter() - began) * 1000


class CommandRow:
    """The row of a journalled command in a table like the journal's, with its indexes and without its triggers."""

    def __init__(self, journal: Path, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(journal)) as source:
            named = "tbl_name = 'commands' AND type <> 'trigger' AND sql IS NOT NULL"
            schema = [sql for (sql,) in source.execute(f"SELECT sql FROM sqlite_master WHERE {named}")]  # noqa: S608
            found = source.execute("SELECT * FROM commands WHERE stage = 'received'")
            self._names = [column[0] for column in found.description]
            self._row = dict(zip(self._names, found.fetchone(), strict=True))
        self._commit = BareCommit(path, *schema)
        self._insert = f"INSERT INTO commands VALUES ({','.join('?' * len(self._names))})"  # noqa: S608
        self._number = itertools.count(1)

    def __call__(self) -> float:
        """Commit it once more; give milliseconds."""
        number = next(self._number)
        self._row |= {"n": number, "id": f"row-{number}"}
        return self._commit(self._insert, [self._row[name] for name in self._names])


def quiet(server: ServerProcess) -> None:
    """Wait until a fresh server has done what it does once, at low priority: it works out the calendar."""
    server.until(lambda: [*server.data.glob("calendar-*.json")], "the calendar")
    time.sleep(1)


def commands(server: ServerProcess, asker: Asker, folder: Path) -> None:
    """Print how long commands take when nothing else happens, beside bare programs; all of them in turns."""
    add = "main/command/watchlist_add"
    topics: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]] = {
        "bare aiomqtt program that answers": (["bench/command/bare"], {}),
        "the same after a commit": (["bench/command/commit"], {}),
        "heartbeat, idle": (["main/command/heartbeat"], {}),
        "watchlist_add (journalled), idle": ([add], {"symbol": "BEME"}),
        "a change of the watchlist (journalled, saved)": (
            [add, add.replace("add", "remove")],
            {"symbol": "BENCH"},
        ),
    }
    bare_commit = BareCommit(folder / "bare-commit.db", "CREATE TABLE t (x)")
    row_commit = CommandRow(server.data / "sigma9.db", folder / "row-commit.db")
    times: dict[str, list[float]] = {name: [] for name in (*topics, "one column", "its row")}
    for number in range(WITHIN_BURST):
        for name, (turns, more) in topics.items():
            topic = turns[number % len(turns)]
            mark = f"b{os.getpid()}-{number}-{len(name)}"
            times[name].append(asker.ask(f"sigma9/{topic}", json.dumps({**more, "id": mark}), mark))
            asker.rest(PAUSE)
        times["one column"].append(bare_commit(INSERT, ("x" * 300,)))
        asker.rest(PAUSE)
        times["its row"].append(row_commit())
        asker.rest(PAUSE)
    bare, _, beat, watch, change = (told(name, times[name])[0] for name in topics)
    column, row = median(times["one column"]), median(times["its row"])
    print(f"heartbeat: {beat / bare:.2f} of the bare round trip (aim 1.5)")
    print(f"a bare commit: {row:.2f} ms for the command's row with its indexes, {column:.2f} for one short column")
    aim, least = 1.5 * bare + 2 * row, 1.5 * bare + 2 * column
    print(
        f"journalled: {watch:.2f} ms (a change, saved as well: {change:.2f}); aim: 1.5 bare round trips + two "
        f"commits of its row: {aim:.2f} ms ({watch / aim:.2f}); with commits of one short column {least:.2f} "
        f"({watch / least:.2f})"
    )


def latency(folder: Path) -> None:
    """Print how long commands take on a real server, idle and beside a flood."""
    server = ServerProcess(folder, "plugins.settings.simulated.speed=0")
    with server.start():
        login, own = server.login("admin"), server.login("sigma9")
        host, port, user, password = login[1], int(login[3]), login[5], login[7]
        echo = subprocess.Popen(
            [sys.executable, "-c", ECHO, str(port), own[5], own[7], str(folder / "bare"), INSERT]
        )
        time.sleep(1)
        asker = Asker(host, port, user, password)
        asker.subscribe("sigma9/main/response/#")
        quiet(server)
        asker.ask("sigma9/main/command/watchlist_add", json.dumps({"symbol": "BEME", "id": "first"}), "first")
        commands(server, asker, folder)
        killer = Asker(host, port, user, password)
        for name in ("kill_switch", "reset_kill_switch", "bare"):
            killer.subscribe(f"sigma9/main/response/{name}")
        told("the bare program with a kill's hops", _times(killer, "sigma9/bench/command/kill", 50))
        told("kill, idle", _kills(killer, 50))
        flood = subprocess.Popen(
            [sys.executable, "-c", FLOOD, str(port), user, password, "sigma9/main/command/heartbeat"]
        )
        time.sleep(1)
        try:
            told(
                "heartbeat-like reads beside 2,000/s (scan of events)",
                _times(asker, "sigma9/main/command/events", 200),
            )
            asker.drop()  # it hears all the flood's answers
            told("the bare program with a kill's hops", _times(killer, "sigma9/bench/command/kill", 200))
            rounds = [told("kill beside 2,000 commands/s", _kills(killer, 150)) for _ in range(KILL_ROUNDS)]
            print(f"kill beside 2,000 commands/s: p99 {median(p99 for _, p99 in rounds):.2f} ms (aim 5)")
            crowded = Asker(host, port, user, password)
            crowded.subscribe("sigma9/main/response/#")
            told("the same, where the asker hears all answers", _kills(crowded, 100))
        finally:
            flood.kill()
            flood.wait()
            echo.kill()
            echo.wait()


def _times(asker: Asker, topic: str, count: int) -> list[float]:
    given: dict[str, Any] = {"events": {"after": 0, "limit": 1}}
    more = given.get(topic.rpartition("/")[2], {})
    times = []
    for number in range(count):
        mark = f"b{os.getpid()}-{topic[-4:]}-{number}"
        times.append(asker.ask(topic, json.dumps({**more, "id": mark}), mark))
    return times


def _kills(asker: Asker, count: int) -> list[float]:
    times = []
    for number in range(count):
        mark = f"k{time.monotonic_ns()}"
        times.append(
            asker.ask("sigma9/main/command/kill_switch", json.dumps({"id": mark, "reason": "bench"}), mark)
        )
        asker.rest(PAUSE)
        mark = f"r{number}-{time.monotonic_ns()}"
        body = {"id": mark, "reason": "bench"}
        asker.ask("sigma9/main/command/reset_kill_switch", json.dumps(body), mark)
        asker.rest(PAUSE)
    return times


async def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=3)
    wanted = options.parse_args()
    program = mosquitto.find()
    if program is None:
        sys.exit("mosquitto is not installed")
    with tempfile.TemporaryDirectory(prefix="sigma9-bench-") as name:
        folder = Path(name)
        latency(folder / "server")
        broker = Mosquitto(folder / "broker", program)
        await broker.start()
        with contextlib.suppress(asyncio.CancelledError):
            await throughput(broker, wanted.rounds)
        await broker.stop()


if __name__ == "__main__":
    asyncio.run(main())

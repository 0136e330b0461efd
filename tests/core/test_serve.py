"""The process around the engine: lock, signals, banner, and an end in order unless it is asked for twice."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.datadir import KILL_SOCKET, DataDir, DataDirLocked
from sigma9_core.engine import Engine
from sigma9_core.errors import DataError, JournalError
from sigma9_core.log import Logging
from sigma9_core.serve import FORCED, Process, program
from sigma9_core.testing.engine_room import EngineRoom, threads
from sigma9_core.testing.server_process import ServerProcess

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run(room: EngineRoom, work: Callable[[Engine], Awaitable[int]] | None) -> int:
    """Run the process around the room's engine, in this process, with the signals of the main thread."""
    room.write()
    logs = Logging()
    try:
        return Process(room.settings, logs, time.monotonic(), work=work, services=False).run()
    finally:
        logs.stop()


def send(number: int) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110 - other threads are awaited
            await asyncio.sleep(0.005)


@pytest.fixture(name="room")
def _room(tmp_path: Path) -> EngineRoom:
    return EngineRoom(tmp_path)


def test_the_work_s_code_is_the_process_s(room: EngineRoom) -> None:
    """While it runs the data are locked and the door is open; afterwards everything is as it was."""
    before = [signal.getsignal(number) for number in HANDLED]
    seen: list[Any] = []

    async def work(engine: Engine) -> int:
        other = DataDir(room.data.path)
        with pytest.raises(DataDirLocked):
            other.lock("other")
        seen.append(stat.S_IMODE(room.data.path.stat().st_mode))
        seen.append(room.data.file(KILL_SOCKET).is_socket())
        await until(lambda: engine.state == "running")
        return 7

    assert run(room, work) == 7
    assert seen == [0o700, True]
    assert not room.data.file(KILL_SOCKET).exists()
    assert [signal.getsignal(number) for number in HANDLED] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threads() == set()
    with DataDir(room.data.path) as data:
        data.lock("next")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(room: EngineRoom, number: int) -> None:
    """Work that is cut off by Ctrl-C or SIGTERM is stopped in order and says so by its code."""
    states: list[str] = []
    engines: list[Engine] = []

    async def work(engine: Engine) -> int:
        engines.append(engine)
        await until(lambda: engine.state == "running")
        send(number)
        try:
            await asyncio.sleep(5)
        finally:
            states.append(engine.state)
        return 0

    assert run(room, work) == FORCED
    assert states == ["running"]
    assert engines[0].state == "stopping"
    assert threads() == set()


def test_a_server_that_is_asked_to_end_has_done_its_work(
    room: EngineRoom, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server runs until a signal, prints its banner on stdout, and ends with 0."""
    timer = threading.Timer(0.5, send, (signal.SIGTERM,))
    timer.start()
    assert run(room, None) == 0
    timer.join()

    out = capsys.readouterr().out
    assert "Sigma9 " in out
    assert "node main: simulated market, exchange broker; up in" in out
    assert str(room.data.file("admin.token")) in out
    assert f"{program()} kill --data-dir {room.data.path}" in out
    assert room.data.file("admin.token").read_text().strip() not in out


def test_the_banner_names_both_clocks(room: EngineRoom, capsys: pytest.CaptureFixture[str]) -> None:
    """Which clock and zone the log lines have, and what time it is on a market that is not live, is told."""
    timer = threading.Timer(0.3, send, (signal.SIGTERM,))
    timer.start()
    run(room, None)
    timer.join()

    line = next(line for line in capsys.readouterr().out.splitlines() if "Clocks" in line)
    assert "log lines: wall time, UTC" in line
    assert "market: 2026-03-02 10:00 America/New_York, simulated" in line


@pytest.mark.parametrize("started", ["sigma9", "python", "missing"])
def test_the_program_can_be_typed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: str) -> None:
    """The program is named by its whole path: that of this start, else the one beside the interpreter."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "sigma9").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["sigma9" if started == "sigma9" else "__main__.py"])
    monkeypatch.setattr(sys, "executable", str((folder if started == "python" else tmp_path) / "python"))
    expected = f"{tmp_path}/python -m sigma9_core" if started == "missing" else f"'{folder}/sigma9'"
    assert program() == expected


def last_line(server: ServerProcess) -> str:
    """End a server by Ctrl-C and give the last line that it printed on stdout."""
    assert server.stop(signal.SIGINT) == 0
    return next(line for line in reversed(server.lines) if line.startswith("Sigma9 has"))


def test_the_last_word(tmp_path: Path) -> None:
    """A server says at its very end that it has stopped, and what it leaves at the broker; its exit code is 0."""
    server = ServerProcess(tmp_path, "mqtt.enabled=false", "scheduler.enabled=false")
    with server.start():
        assert last_line(server) == "Sigma9 has stopped in order; at the broker: no positions and no open orders"
    with server.start():
        assert server.request("POST", "/api/kill-switch")[0] == 200
        assert last_line(server).endswith("; the kill switch stays on")


CLUMSY = """
from sigma9_core.hookspecs import hookimpl

class Clumsy:
    async def start(self, server):
        pass

    async def stop(self):
        raise ValueError("it fell")

@hookimpl
def register_services(register):
    register("clumsy", lambda config, context: Clumsy())
"""


def test_an_end_that_was_not_in_order(tmp_path: Path) -> None:
    """Where something failed on the way out, the last word does not call it orderly."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "clumsy.py").write_text(CLUMSY)
    plugins = f"plugins.paths=[{tmp_path / 'plugins'}]"
    server = ServerProcess(tmp_path, "mqtt.enabled=false", plugins, "scheduler.enabled=false")
    with server.start():
        server.until(lambda: server.get("/api/status")["engine"] == "running", "the engine")
        assert last_line(server).startswith("Sigma9 has stopped, but not everything ended in order (the log says")


def test_what_is_wrong_with_the_engine_is_raised_before_it_starts(room: EngineRoom) -> None:
    """A check that refuses ends it with its error, before anything was started; the data are unlocked."""
    room.write()
    seen: list[str] = []

    def check(engine: Engine) -> None:
        seen.append(engine.state)
        raise DataError("too few bars")

    with pytest.raises(DataError, match="too few bars"):
        Process(room.settings, Logging(), time.monotonic(), services=False, check=check).run()
    assert seen == ["stopped"]
    assert not room.data.file("sigma9.db").exists()
    with DataDir(room.data.path) as data:
        data.lock("next")


def test_sigusr1_kills(room: EngineRoom) -> None:
    """The signal is a kill, in the name of `signal`; the server runs on, killed."""

    async def work(engine: Engine) -> int:
        await until(lambda: engine.state == "running")
        send(signal.SIGUSR1)
        await until(lambda: engine.state == "killed")
        await until(lambda: (engine.board.get("kill_switch") or {}).get("source") == "signal")
        return 0

    assert run(room, work) == 0


def test_a_signal_in_the_middle_of_the_start_ends_it(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that hangs can be left by Ctrl-C, and a kill is heard in it."""
    hung = threading.Event()

    async def hang(engine: Engine) -> None:
        send(signal.SIGUSR1)
        await until(lambda: engine.path.killswitch.latched)
        hung.set()
        await asyncio.Event().wait()

    def interrupt() -> None:
        hung.wait(5)
        send(signal.SIGINT)

    monkeypatch.setattr(Engine, "_start_services", hang)
    monkeypatch.setattr("sigma9_core.money.killswitch.ANSWER_WITHIN", 0.2)
    timer = threading.Thread(target=interrupt)
    timer.start()
    began = time.monotonic()
    assert run(room, None) == 0
    timer.join()

    assert time.monotonic() - began < 4
    assert threads() == set()


def test_a_ctrl_c_that_polars_catches_ends_the_start(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C that comes out of the start as KeyboardInterrupt, as polars does it, is an end in order."""

    async def interrupted(_engine: Engine) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_start_services", interrupted)
    assert run(room, None) == 0
    assert threads() == set()


def test_a_start_that_is_refused_leaves_nothing_behind(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised, the lock is free, the signals are as before."""

    def refuse(_engine: Engine, *_: object) -> None:
        raise JournalError("the journal is damaged")

    before = [signal.getsignal(number) for number in HANDLED]
    with monkeypatch.context() as patch:
        patch.setattr("sigma9_core.money.journal.Journal.open", refuse)
        with pytest.raises(JournalError, match="damaged"):
            run(room, None)
    assert [signal.getsignal(number) for number in HANDLED] == before
    assert threads() == set()

    async def work(_engine: Engine) -> int:
        return 3

    assert run(room, work) == 3


STUBBORN = """
import asyncio
from sigma9_core.hookspecs import hookimpl

class Stubborn:
    async def start(self, server):
        pass

    async def stop(self):
        print("stubborn", flush=True)
        await asyncio.Event().wait()

@hookimpl
def register_services(register):
    register("stubborn", lambda config, context: Stubborn())
"""


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    """Where the orderly end hangs, another Ctrl-C leaves at once, and says what that means."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "stubborn.py").write_text(STUBBORN)
    folder = tmp_path / "plugins"
    server = ServerProcess(tmp_path, "mqtt.enabled=false", f"plugins.paths=[{folder}]", "scheduler.enabled=false")
    with server.start():
        server.process.send_signal(signal.SIGINT)
        server.until(lambda: "stubborn" in server.lines, "the orderly end")
        began = time.monotonic()
        assert server.stop(signal.SIGINT) == FORCED
        assert time.monotonic() - began < 3
        assert any("ended at once" in line for line in server.lines)

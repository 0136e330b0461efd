"""Tests of `sigma9_core.money.door`: a kill by socket or signal needs nothing else, and nothing else kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.clock import wall_now
from sigma9_core.commands import BUILT_IN, Command, Response
from sigma9_core.money import door as module
from sigma9_core.money.door import LONGEST_LINE, KillDoor


class Room:
    """A door, what came in by it, and a wake-up socket as the interpreter writes to it."""

    def __init__(self, folder: Path) -> None:
        self.kills: list[Command] = []
        self.ends = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.heard, self.wake = socket.socketpair()
        self.heard.setblocking(False)
        self.door = KillDoor(folder / "kill.sock", self._kill, BUILT_IN, self._end, self.heard)

    async def _kill(self, command: Command) -> Response:
        self.kills.append(command)
        await self.hold.wait()
        return Response(command.id, command.name, True, {"pending": []}, None, command.source, wall_now(), 0.1)

    def _end(self) -> None:
        self.ends += 1

    async def say(self, *parts: bytes, end: bool = False) -> dict[str, Any] | None:
        """Say something at the door; give the answer, None where there is none."""
        reader, writer = await asyncio.open_unix_connection(self.door.path)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            if end:
                writer.write_eof()
            line = await asyncio.wait_for(reader.readline(), 5)
        except ConnectionError:
            return None
        finally:
            writer.close()
        return json.loads(line) if line else None

    def signal(self, *numbers: int) -> None:
        """Let signals arrive, as the interpreter notes them."""
        self.wake.send(bytes(numbers))

    async def until(self, what: Any) -> None:
        async with asyncio.timeout(5):
            while not what():  # noqa: ASYNC110 - sockets are awaited
                await asyncio.sleep(0.002)


@pytest.fixture(name="room")
async def _room() -> AsyncIterator[Room]:
    with tempfile.TemporaryDirectory() as folder:  # short: a Unix socket takes about 104 bytes of path
        room = Room(Path(folder))
        await room.door.open()
        yield room
        room.hold.set()
        await room.door.close()
        asyncio.get_running_loop().remove_reader(room.heard)
        room.heard.close()
        room.wake.close()


async def test_a_kill_by_the_socket_is_answered(room: Room) -> None:
    """One line of JSON, or a plain word, is a kill in the name of `socket`, with all rights, and is answered."""
    answer = await room.say(b'{"reason": "smoke", "flatten": false, "scope": {"symbol": "AAPL"}}\n')
    assert answer is not None
    assert (answer["ok"], answer["command"], answer["source"]) == (True, "kill_switch", "socket")
    word = await room.say(b"PRESS\n")
    assert word is not None
    assert word["ok"] is True

    first, second = room.kills
    assert (first.args["reason"], first.args["flatten"], first.right, first.actor) == (
        "smoke",
        False,
        "admin",
        "local",
    )
    assert (second.args, second.source) == ({}, "socket")


async def test_a_line_without_its_end_counts_where_the_visitor_is_done(room: Room) -> None:
    """Who sends a whole command and closes its side has said it, with or without a line break."""
    answer = await room.say(b'{"reason"', b': "smoke"}', end=True)

    assert answer is not None
    assert answer["ok"] is True
    assert [command.args for command in room.kills] == [{"reason": "smoke"}]


async def test_a_visitor_without_a_word_kills_nothing(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """Who only looks whether somebody listens has sent no command: an empty payload is never one."""
    assert await room.say(end=True) is None
    reader, writer = await asyncio.open_unix_connection(room.door.path)
    writer.close()
    await room.until(lambda: caplog.text.count("left without a word; nothing was done") == 2)

    assert room.kills == []
    assert reader is not None


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\n", "invalid"),
        (b"   \n", "invalid"),
        (b"STOP IT\n", "invalid"),
        (b'{"reason": \n', "invalid"),
        (b"[1]\n", "invalid"),
        (b"\xff\xfe\n", "invalid"),
        (b'{"id": 7}\n', "invalid"),
    ],
)
async def test_what_makes_no_sense_is_answered_and_kills_nothing(room: Room, line: bytes, code: str) -> None:
    """Whatever is malformed gets an error in the answer, and nothing happens."""
    answer = await room.say(line)

    assert answer is not None
    assert (answer["ok"], answer["error"]["code"]) == (False, code)
    assert answer["error"]["message"]
    assert room.kills == []


async def test_a_line_that_never_ends_is_left(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor that says too much, or stays silent, is left after a while; others are served meanwhile."""
    monkeypatch.setattr(module, "READ_WITHIN", 0.1)
    silent = asyncio.create_task(room.say(b'{"reason": '))
    assert await room.say(b"x" * (LONGEST_LINE + 10_000)) is None
    too_long = await room.say(b"x" * (LONGEST_LINE - 10), b"x" * 20 + b"\n")
    assert too_long is None or too_long["error"]["code"] == "invalid"  # its end may come too late to be read
    answer = await room.say(b"PRESS\n")

    assert answer is not None
    assert await silent is None
    assert len(room.kills) == 1


async def test_the_gate_is_closed_before_anything_else_has_its_turn(room: Room) -> None:
    """The kill begins in the callback that reads its last byte, not a task later."""
    turns: list[int] = []
    begun = room.door._kill

    def noted(command: Command) -> Any:
        turns.append(sum(task.get_name() == "kill-by-socket" for task in asyncio.all_tasks()))
        return begun(command)

    room.door._kill = noted
    assert await room.say(b'{"reason": ', b'"x"}\n') is not None
    assert turns == [0]


async def test_two_visitors_do_not_wait_for_each_other(room: Room) -> None:
    """A second kill goes in while the first one is being answered."""
    room.hold.clear()
    visits = [asyncio.create_task(room.say(b"PRESS\n")) for _ in range(2)]
    await room.until(lambda: len(room.kills) == 2)
    room.hold.set()

    assert all(answer is not None and answer["ok"] for answer in await asyncio.gather(*visits))


async def test_a_visitor_that_leaves_early_has_killed(room: Room) -> None:
    """Who does not wait for the answer has given the command all the same."""
    room.hold.clear()
    _, writer = await asyncio.open_unix_connection(room.door.path)
    writer.write(b"PRESS\n")
    await writer.drain()
    await room.until(lambda: room.kills)
    writer.close()
    room.hold.set()
    answer = await room.say(b"PRESS\n")

    assert answer is not None
    assert len(room.kills) == 2


async def test_the_socket_is_its_owner_s_alone(room: Room) -> None:
    """The socket file has mode 0600, takes the place of one that a crash has left, and is gone at the end."""
    assert stat.S_IMODE(room.door.path.stat().st_mode) == 0o600
    await room.door.close()
    assert not room.door.path.exists()

    room.door.path.write_text("left behind")
    room.door._signals = None
    await room.door.open()
    assert await room.say(b"PRESS\n") is not None


async def test_a_path_that_is_too_long_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where a Unix socket can't be, REST is named instead, and signals are heard all the same."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    room = Room(folder)
    await room.door.open()
    room.signal(signal.SIGUSR1)
    await room.until(lambda: room.kills)
    await room.door.close()
    asyncio.get_running_loop().remove_reader(room.heard)
    room.heard.close()
    room.wake.close()

    assert "is too long for a Unix socket; `sigma9 kill` goes by REST" in caplog.text


# --- signals ----------------------------------------------------------------------------------------------------


async def test_sigusr1_kills_and_the_others_end(room: Room) -> None:
    """SIGUSR1 is a kill in the name of `signal`; SIGINT and SIGTERM ask for the end; others are not ours."""
    room.signal(signal.SIGUSR1)
    await room.until(lambda: room.kills)
    room.signal(signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    await room.until(lambda: room.ends == 2)
    await asyncio.sleep(0.02)

    command = room.kills[0]
    assert (command.source, command.right, command.args) == ("signal", "admin", {"reason": "SIGUSR1"})
    assert (len(room.kills), room.ends) == (1, 2)


async def test_signals_that_come_together_are_all_heard(room: Room) -> None:
    """However many bytes wait in the socket, none is lost."""
    room.signal(*[signal.SIGINT] * 100, signal.SIGUSR1)
    await room.until(lambda: room.kills)

    assert room.ends == 100


async def test_a_real_signal_is_heard(room: Room) -> None:
    """What the operating system delivers comes through the wake-up socket of the interpreter."""
    room.wake.setblocking(False)
    handler = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    before = signal.set_wakeup_fd(room.wake.fileno(), warn_on_full_buffer=False)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        await room.until(lambda: room.kills)
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, handler)

    assert room.kills[0].source == "signal"


# --- the end ----------------------------------------------------------------------------------------------------


async def test_the_end_waits_for_answers_and_not_for_loiterers(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill that is being answered gets its answer; a visitor that says nothing holds nobody up."""
    monkeypatch.setattr(module, "ANSWERED_WITHIN", 0.3)
    loiterer, writer = await asyncio.open_unix_connection(room.door.path)
    room.hold.clear()
    visit = asyncio.create_task(room.say(b"PRESS\n"))
    await room.until(lambda: room.kills)
    closing = asyncio.create_task(room.door.close())
    await asyncio.sleep(0.02)
    room.hold.set()
    answer = await visit
    async with asyncio.timeout(2):
        await closing

    assert answer is not None
    assert answer["ok"] is True
    assert await asyncio.wait_for(loiterer.read(), 2) == b""
    writer.close()
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        await asyncio.open_unix_connection(room.door.path)


async def test_signals_are_heard_until_the_lane_ends(room: Room) -> None:
    """After the socket has closed a second Ctrl-C still counts: the orderly end may hang."""
    await room.door.close()
    room.signal(signal.SIGINT)
    await room.until(lambda: room.ends == 1)


@pytest.mark.parametrize("when", ["start", "end"])
async def test_a_folder_that_may_not_be_written_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """A data folder that became read-only stops neither the start nor the end: one sentence says it."""

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(30, "Read-only file system", str(path))

    with tempfile.TemporaryDirectory() as folder:
        room = Room(Path(folder))
        if when == "end":
            await room.door.open()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", unlink)
            if when == "start":
                await room.door.open()
            await room.door.close()
        asyncio.get_running_loop().remove_reader(room.heard)
        room.heard.close()
        room.wake.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "can't be removed" in caplog.text

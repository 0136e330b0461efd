"""`sigma9 kill`: by its own door, by REST, and whatever is broken around it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sigma9_core.cli import kill
from sigma9_core.datadir import KILL_SOCKET, DataDir
from sigma9_core.tokens import TokenBook

RESULT = {"cancelled_orders": ["o1", "o2"], "closed_positions": ["AAPL"], "pending": []}
DONE = {"id": None, "command": "kill_switch", "ok": True, "result": RESULT, "error": None}


class Door:
    """The kill's own door: a Unix socket that answers one line with another."""

    def __init__(self, path: Path) -> None:
        self.asked: list[Any] = []
        self.answer: Callable[[], bytes] = lambda: json.dumps(DONE).encode() + b"\n"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:
                return
            with visitor, visitor.makefile("rb") as lines:
                self.asked.append(json.loads(lines.readline()))
                with contextlib.suppress(OSError):  # the visitor may have left
                    visitor.sendall(self.answer())

    def close(self) -> None:
        """Close the door."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture(name="local")
def _local(
    tmp_path_factory: pytest.TempPathFactory, web: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DataDir]:
    """Run a server on this machine: a locked data folder whose note leads to the web server."""
    data = DataDir(tmp_path_factory.mktemp("k"))
    for name in ("SIGMA9_URL", "SIGMA9_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SIGMA9_DATA_DIR", str(data.path))
    with data:
        data.lock("main")
        data.announce(web.url, "main")
        data.write_private("admin.token", "the-right-token")
        yield data


@pytest.fixture(name="door")
def _door(local: DataDir) -> Iterator[Door]:
    door = Door(local.file(KILL_SOCKET))
    yield door
    door.close()


def test_by_the_door(cli: Any, web: Any, door: Door) -> None:
    """On the server's machine a kill goes through its own door, and REST is left alone."""
    result = cli("kill")
    assert (result.code, result.out, result.err) == (0, "killed: 2 orders cancelled, 1 position closed\n", "")
    assert door.asked == [{"reason": "sigma9 kill"}]
    assert web.asked == []


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["--no-flatten"], {"reason": "sigma9 kill", "flatten": False}),
        (["--flatten", "--reason", "fire"], {"reason": "fire", "flatten": True}),
        (["--scope", "strategy=a=b"], {"reason": "sigma9 kill", "scope": {"strategy": "a=b"}}),
        (["--scope", "symbol=BRK.B"], {"reason": "sigma9 kill", "scope": {"symbol": "BRK.B"}}),
    ],
)
def test_what_is_sent(cli: Any, door: Door, arguments: list[str], sent: dict[str, Any]) -> None:
    """The options become the arguments of kill_switch; what is not said is left to the server."""
    result = cli("kill", *arguments)
    assert result.code == 0
    assert result.out.startswith(
        "killed" + "".join(f" {kind} {name}" for kind, name in sent.get("scope", {}).items())
    )
    assert door.asked == [sent]


@pytest.mark.parametrize("scope", ["AAPL", "symbol=", "account=1", "=x"])
def test_wrong_scope(cli: Any, scope: str) -> None:
    """A scope that makes no sense is wrong usage, and nothing is sent."""
    result = cli("kill", "--scope", scope)
    assert result.code == 2
    assert "write strategy=NAME or symbol=SYM" in result.err
    assert cli("kill", "--flatten", "--no-flatten").code == 2


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"[]\n", b'{"x": 1}\n'])
def test_rest_when_the_door_is_stuck(cli: Any, web: Any, door: Door, answer: bytes) -> None:
    """A door that gives no answer is told, and REST is tried: a second kill joins the first."""
    door.answer = lambda: answer
    web.does("kill_switch", RESULT)
    result = cli("kill", "--reason", "fire")
    assert (result.code, result.out) == (0, "killed: 2 orders cancelled, 1 position closed\n")
    assert web.asked[0].body == {"reason": "fire"}


def test_a_door_that_hangs(cli: Any, web: Any, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """A door that takes too long is left for REST."""
    monkeypatch.setattr(kill, "DOOR_SECONDS", 0.1)
    release = threading.Event()

    def hang() -> bytes:
        release.wait(10)
        return b""

    door.answer = hang
    web.does("kill_switch", RESULT)
    result = cli("kill")
    release.set()
    assert result.code == 0
    assert "the kill's own door gave no answer (timed out); trying REST" in result.err


def test_rest_without_a_door(cli: Any, web: Any, local: DataDir) -> None:
    """Without the socket file, or with one that nobody listens at, the kill goes by REST."""
    web.does("kill_switch", {**RESULT, "pending": ["o3", "TSLA"], "latched": False})
    result = cli("kill")
    assert result.code == 0
    assert result.err == ""
    assert "still going on: o3, TSLA" in result.out
    assert "latch could not be written" in result.out
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(local.file(KILL_SOCKET)))
    result = cli("kill")
    assert result.code == 0
    assert "Connection refused" in result.err


def test_a_server_without_rest(cli: Any, web: Any, local: DataDir, door: Door, mocker: MockerFixture) -> None:
    """A server that says no address, for it serves no REST or only begins, is killed by its door, and by no other
    way: at the usual address another server may listen."""
    rest = mocker.patch("http.client.HTTPConnection.connect")
    local.remove("server.json")
    assert cli("kill").code == 0
    assert len(door.asked) == 1
    door.answer = lambda: b""
    result = cli("kill")
    assert result.code == 3
    assert "it has told no address for REST" in result.err
    assert "the last resort is `kill -USR1" in result.err
    rest.assert_not_called()


@dataclass
class Others:
    """Servers that run and are not meant: at the address of client_config.yaml, and on this folder's data."""

    url: str
    by_door: list[Any]
    by_rest: list[Any]


@pytest.fixture(name="others")
def _others(web: Any, local: DataDir, door: Door, alone: Path, monkeypatch: pytest.MonkeyPatch) -> Others:
    monkeypatch.delenv("SIGMA9_DATA_DIR")
    (alone / "client_config.yaml").write_text(
        f"server: {{host: 127.0.0.1, port: {web.http.server_port}, token: the-right-token}}", encoding="utf-8"
    )
    (alone / "data").symlink_to(local.path)
    (alone / "dead").mkdir()
    for name in ("kill_switch", "stop", "cancel_all", "close_position"):
        web.does(name, {})
    return Others(web.url, door.asked, web.asked)


def test_the_others_would_be_reached(cli: Any, others: Others) -> None:
    """Without a data folder that is named they are what a command finds."""
    assert cli("kill").code == 0
    assert cli("stop").code == 0
    assert (len(others.by_door), len(others.by_rest)) == (1, 1)


@pytest.mark.parametrize("folder", ["dead", "missing"])
@pytest.mark.parametrize("variable", ["SIGMA9_URL", "SIGMA9_DATA_DIR"])
def test_a_named_data_folder_without_a_server(
    cli: Any, others: Others, monkeypatch: pytest.MonkeyPatch, variable: str, folder: str
) -> None:
    """A kill of a data folder on which no server runs kills nothing, says so with its name, and is exit code 3:
    with the folder in SIGMA9_DATA_DIR as with --data-dir, which also beats SIGMA9_URL."""
    path = str(Path(folder).absolute())
    by_option = variable == "SIGMA9_URL"
    monkeypatch.setenv(variable, others.url if by_option else path)
    result = cli("kill", *(["--data-dir", folder] if by_option else []))
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("sigma9: nothing was killed: ")
    assert path in result.err
    assert result.err.count("\n") == 1
    assert (others.by_door, others.by_rest) == ([], [])


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "watch",
        "stop",
        "close --all",
        "order cancel-all",
        "order list",
        "risk list",
        "plugin list",
        "schedule list",
        "journal list",
        "journal follow",
        "reset-kill --reason x",
    ],
)
def test_no_command_goes_elsewhere(cli: Any, alone: Path, others: Others, command: str) -> None:
    """Every command that asks a server keeps to the data folder that is named."""
    result = cli(*command.split(), "--data-dir", "dead")
    assert (result.code, result.out) == (3, "")
    assert f"no server runs on the data folder {alone / 'dead'} (named by --data-dir)" in result.err
    assert (others.by_door, others.by_rest) == ([], [])


def test_the_named_data_folder_is_killed(cli: Any, web: Any, alone: Path, door: Door, local: DataDir) -> None:
    """A named data folder beats SIGMA9_URL and client_config.yaml; its server is killed by its own door."""
    (alone / "client_config.yaml").write_text("server: {host: trader}", encoding="utf-8")
    assert cli("kill", "--data-dir", str(local.path)).code == 0
    assert (len(door.asked), web.asked) == (1, [])
    door.answer = lambda: b""
    web.does("kill_switch", RESULT)
    result = cli("kill", "--data-dir", str(local.path))
    assert result.code == 0
    assert len(web.asked) == 1


def test_elsewhere(cli: Any, web: Any, door: Door) -> None:
    """A kill of another server goes there, and not through the door of this machine."""
    web.says("/other/api/commands/kill_switch", DONE)
    assert cli("kill", "--url", f"{web.url}/other", "--token", "the-right-token").code == 0
    assert door.asked == []
    assert len(web.asked) == 1


def test_refused(cli: Any, door: Door) -> None:
    """A refusal is exit code 1 with the server's sentence; --format json prints the answer all the same."""
    error = {"code": "internal", "message": "the strategy is not known", "details": {}}
    refused = {**DONE, "ok": False, "result": None, "error": error}
    door.answer = lambda: json.dumps(refused).encode() + b"\n"
    result = cli("kill")
    assert (result.code, result.out, result.err) == (1, "", "sigma9: the strategy is not known\n")
    result = cli("kill", "--format", "json")
    assert result.code == 1
    assert result.json == refused


def test_nobody_there(cli: Any) -> None:
    """Without a server it says so, with exit code 3."""
    result = cli("kill", "--url", "127.0.0.1:9")
    assert result.code == 3
    assert result.err.startswith("sigma9: the kill was not confirmed: no server at http://127.0.0.1:9")


def test_the_last_resort(cli: Any, web: Any, local: DataDir) -> None:
    """Where the process runs and answers nowhere, the signal that still works is named with its pid."""
    web.says("/api/commands/kill_switch", None)
    holder = local.holder()
    assert holder is not None
    result = cli("kill")
    assert result.code == 3
    assert f"kill -USR1 {holder.pid}" in result.err
    assert "a second kill joins the first" in result.err


def test_a_broken_client_config(cli: Any, alone: Path, local: DataDir, door: Door) -> None:
    """A fault in client_config.yaml is told, and does not stand before the kill of this machine's server."""
    (alone / "client_config.yaml").write_text("server: {hots: x}\n", encoding="utf-8")
    result = cli("kill")
    assert result.code == 0
    assert "killing the server on this machine" in result.err
    assert "client_config.yaml:1: server.hots" in result.err
    local.remove("server.json")
    assert cli("kill").code == 0
    assert len(door.asked) == 2


def test_a_broken_client_config_and_an_url(cli: Any, web: Any, alone: Path, door: Door) -> None:
    """A fault in client_config.yaml does not stand before the kill of a server that is named by its URL either."""
    (alone / "client_config.yaml").write_text("server: {hots: x}\n", encoding="utf-8")
    web.does("kill_switch", RESULT)
    result = cli("kill", "--url", web.url, "--token", "the-right-token")
    assert result.code == 0
    assert f"killing the server at {web.url}, although: " in result.err
    assert (len(web.asked), door.asked) == (1, [])


def test_a_broken_client_config_and_no_server(cli: Any, alone: Path) -> None:
    """With nothing on this machine a broken client_config.yaml is what there is to say."""
    (alone / "client_config.yaml").write_text("server: {hots: x}\n", encoding="utf-8")
    result = cli("kill")
    assert result.code == 2
    assert "server.hots" in result.err


def test_broken_server_config(cli: Any, alone: Path, door: Door) -> None:
    """A server_config.yaml full of faults does not matter to a kill."""
    (alone / "server_config.yaml").write_text("nonsense: {", encoding="utf-8")
    assert cli("kill").code == 0


def test_a_damaged_token(cli: Any, alone: Path, door: Door, local: DataDir) -> None:
    """A token file that can't be read does not stand before the door, which needs none."""
    local.file("admin.token").write_bytes(b"\xff")
    assert TokenBook(local) is not None
    result = cli("kill")
    assert result.code == 0
    assert "killing the server on this machine" in result.err


def test_json(cli: Any, door: Door) -> None:
    """--format json is the response object and nothing else."""
    assert cli("kill", "--format", "json").json == DONE


def test_a_note_is_told(cli: Any, door: Door) -> None:
    """A kill of a symbol in which nothing of ours is says so."""
    note = "nothing of ours has the symbol aapl; the gate is closed for it; did you mean AAPL?"
    result = {"cancelled_orders": [], "closed_positions": [], "pending": [], "latched": True, "note": note}
    door.answer = lambda: json.dumps({**DONE, "result": result}).encode() + b"\n"
    out = cli("kill", "--scope", "symbol=aapl").out
    assert out == f"killed symbol aapl: 0 orders cancelled, 0 positions closed\n{note}\n"


def test_a_drill(cli: Any, web: Any) -> None:
    """It goes by REST, asks nothing, and says what it did; one that did not finish is exit code 1."""
    done = {**RESULT, "phase": "done", "detail": None, "seconds": 1.25}
    web.does("kill_drill", done)
    result = cli("kill", "--drill")
    told = "2 orders cancelled, 1 position closed in 1.25 s; the kill switch is off again\n"
    assert (result.code, result.out) == (0, f"drilled: {told}")
    assert web.asked[0].body == {}

    waited = {**done, "phase": "flattening", "detail": "waiting_for_market", "pending": ["AAPL"]}
    web.does("kill_drill", waited)
    result = cli("kill", "--drill")
    assert result.code == 1
    assert "did not finish and does not count (flattening waiting_for_market; left: AAPL)" in result.out


@pytest.mark.parametrize("more", [["--flatten"], ["--no-flatten"], ["--scope", "symbol=AAPL"]])
def test_a_drill_is_whole(cli: Any, web: Any, more: list[str]) -> None:
    """There is no drill of a part."""
    result = cli("kill", "--drill", *more)
    assert result.code == 2
    assert "--drill tries the whole kill" in result.err
    assert web.asked == []

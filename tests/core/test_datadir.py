"""The data folder: private files, one server, and a note where it listens."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sigma9_core.datadir import DataDir, DataDirLocked, ServerNote, local_url
from sigma9_core.errors import StateError

HOLD = """
import sys, time
from pathlib import Path
from sigma9_core.datadir import DataDir
data = DataDir(Path(sys.argv[1]))
data.lock("other")
data.announce("http://127.0.0.1:1234/", "other")
print("locked", flush=True)
sys.stdin.read()
if sys.argv[2] == "orderly":
    data.unlock()
"""


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


def hold(data: DataDir, end: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data.path), end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def release(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=10)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_private(data: DataDir) -> None:
    """Folder and files are for their owner alone, whatever they were before."""
    data.make()
    assert mode(data.path) == 0o700
    data.path.chmod(0o755)
    data.make()
    assert mode(data.path) == 0o700
    data.write_private("note", "text")
    assert mode(data.file("note")) == 0o600
    data.file("note").chmod(0o644)
    data.write_private("note", "new")
    assert mode(data.file("note")) == 0o600
    assert data.read("note") == "new"


def test_write_is_all_or_nothing(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the old file and nothing else."""
    data.make()
    data.write_private("note", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="note can't be written: No space left"):
        data.write_private("note", "new")
    assert data.read("note") == "old"
    assert [path.name for path in data.path.iterdir()] == ["note"]


def test_readers_never_see_half(data: DataDir) -> None:
    """Whoever reads while others write sees one whole text."""
    data.make()
    texts = {str(n) * 50_000 for n in range(4)}
    data.write_private("note", min(texts))
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(data.read("note") or "")

    reader = threading.Thread(target=read)
    reader.start()
    for text in sorted(texts) * 5:
        data.write_private("note", text)
    done.set()
    reader.join()
    assert seen <= texts


def test_names(data: DataDir) -> None:
    """A file lies directly in the folder."""
    for name in ("", "..", "a/b", "/etc/passwd", "a\0b"):
        with pytest.raises(ValueError, match="not the name of a file"):
            data.file(name)


def test_read(data: DataDir) -> None:
    """What is not there is None; what can't be read is a StateError."""
    data.make()
    assert data.read("nothing") is None
    data.file("binary").write_bytes(b"\xff")
    with pytest.raises(StateError, match="UTF-8"):
        data.read("binary")
    data.file("folder").mkdir()
    with pytest.raises(StateError, match="can't be read"):
        data.read("folder")
    data.remove("nothing")


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    """A data_dir that is a file is one clear sentence."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match=r"the data folder .* can't be made"):
            DataDir(path).lock("main")


def test_one_server(data: DataDir) -> None:
    """A second server is refused in one sentence that names the first one's process; after its end it gets in."""
    process = hold(data, "orderly")
    with pytest.raises(
        DataDirLocked, match=rf"in use by the server in process {process.pid} \(node other\)"
    ) as caught:
        data.lock("main")
    assert caught.value.holder.pid == process.pid
    assert data.server() == ServerNote("http://127.0.0.1:1234", process.pid, "other")
    release(process)
    assert data.server() is None
    assert not data.file("server.json").exists()
    with data:
        data.lock("main")
        holder = data.holder()
        assert holder is not None
        assert holder.pid == os.getpid()
    assert data.holder() is None


def test_after_a_crash(data: DataDir) -> None:
    """A killed server leaves its note, but it is known as stale, and the next server takes over."""
    process = hold(data, "killed")
    process.send_signal(signal.SIGKILL)
    release(process)
    assert data.file("server.json").exists()
    assert data.holder() is None
    assert data.server() is None
    data.lock("main")
    assert not data.file("server.json").exists()
    assert data.server() is None  # it runs, and has not said where it listens
    data.announce("http://[::1]:8000", "main", Path("/some/cert.pem"))
    note = data.server()
    assert note == ServerNote("http://[::1]:8000", os.getpid(), "main", "/some/cert.pem")
    data.unlock()
    data.unlock()
    assert not data.file("server.json").exists()


def test_lookers_do_not_keep_a_server_out(data: DataDir) -> None:
    """A server starts while the command line keeps looking whether one runs."""
    data.make()
    data.file("server.lock").touch()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            data.holder()

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            server = DataDir(data.path)
            server.lock("main")
            server.unlock()
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_locking_twice_is_fine(data: DataDir) -> None:
    """The holder may ask again; another object of the same process may not."""
    data.lock("main")
    data.lock("main")
    with pytest.raises(DataDirLocked):
        DataDir(data.path).lock("main")
    data.unlock()


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"pid": 1}', '{"url": 1, "x": 2}'])
def test_a_damaged_note(data: DataDir, text: str) -> None:
    """A note that makes no sense is no note."""
    data.lock("main")
    data.file("server.json").write_text(text)
    assert data.server() is None
    data.file("server.lock").write_text(text)
    holder = data.holder()
    assert holder is not None
    assert holder.pid == 0
    data.unlock()


def test_a_note_of_another_process(data: DataDir) -> None:
    """A note counts only for the process that holds the lock."""
    data.lock("main")
    note = {"url": "http://x:1", "pid": os.getpid() + 1, "node": "main", "cert": None}
    data.write_private("server.json", json.dumps(note))
    assert data.server() is None
    data.unlock()


def test_nobody_there(tmp_path: Path) -> None:
    """Looking for a server makes nothing."""
    data = DataDir(tmp_path / "none")
    assert data.holder() is None
    assert data.server() is None
    assert not data.path.exists()


@pytest.mark.parametrize(
    ("host", "tls", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:8000"),
        ("0.0.0.0", False, "http://127.0.0.1:8000"),  # noqa: S104 - nothing is bound
        ("::", True, "https://[::1]:8000"),
        ("::1", False, "http://[::1]:8000"),
        ("trader.lan", True, "https://trader.lan:8000"),
    ],
)
def test_local_url(host: str, tls: bool, url: str) -> None:
    """This machine reaches a server at the address it listens on, or at loopback where it listens on all."""
    assert local_url(host, 8000, tls=tls) == url

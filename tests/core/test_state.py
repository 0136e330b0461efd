"""Documents: small, readable, and whole after any crash."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core import state
from sigma9_core.errors import StateError
from sigma9_core.state import Documents

SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "documents.json"


@pytest.fixture(name="documents")
def _documents(path: Path) -> Iterator[Documents]:
    documents = Documents(path)
    documents.open()
    yield documents
    documents.close()


def again(path: Path) -> Documents:
    """Open the file as the next process would."""
    documents = Documents(path)
    documents.open()
    return documents


# --- documents ------------------------------------------------------------------------------------------------


def test_new_file_has_no_documents(documents: Documents) -> None:
    """A new file is empty, and asking for a document gives None."""
    assert documents.names() == []
    assert documents.get("watchlist") is None
    documents.delete("watchlist")


def test_document_survives_a_restart(documents: Documents, path: Path) -> None:
    """What was put is there after a restart, the newest of each name."""
    documents.put("watchlist", {"items": ["AAPL"]})
    documents.put("risk", {"max_open": {"limit": 3}})
    documents.put("watchlist", {"items": []})
    documents.delete("risk")
    documents.put("schedule", {})

    kept = again(path)
    assert sorted(kept.names()) == ["schedule", "watchlist"]
    assert kept.get("watchlist") == {"items": []}
    assert kept.get("risk") is None


@given(body=st.dictionaries(st.text(), JSON, max_size=5))
def test_any_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, body: dict[str, object]) -> None:
    """A JSON object comes back equal, from memory and from the file."""
    path = tmp_path_factory.mktemp("documents") / "documents.json"
    first = again(path)
    first.put("any", body)

    assert first.get("any") == body
    assert again(path).get("any") == body


def test_readers_get_copies(documents: Documents) -> None:
    """Changing what `get` gave, or what `put` took, changes nothing."""
    body = {"items": ["AAPL"]}
    documents.put("watchlist", body)
    body["items"].append("MSFT")
    found = documents.get("watchlist")
    assert found is not None
    found["items"].clear()

    assert documents.get("watchlist") == {"items": ["AAPL"]}


@pytest.mark.parametrize(
    "body",
    [{"a": object()}, {"a": float("nan")}, {"a": {1, 2}}, {"a": "\ud800"}, {"a": "x" * (state.MOST_BYTES + 1)}],
)
def test_what_does_not_fit_is_refused(documents: Documents, path: Path, body: dict[str, object]) -> None:
    """A document that is not JSON, or is too large, is refused by name, and nothing changes."""
    documents.put("settings", {"a": 1})
    before = path.read_bytes()

    with pytest.raises(StateError, match=r"the document settings .* nothing was changed"):
        documents.put("settings", body)

    assert documents.get("settings") == {"a": 1}
    assert path.read_bytes() == before


def test_person_can_read_the_file(documents: Documents, path: Path) -> None:
    """The file is JSON in lines, with its letters as they are."""
    documents.put("watchlist", {"note": "größer"})

    assert json.loads(path.read_text("utf-8"))["documents"]["1"] == {
        "name": "watchlist",
        "body": {"note": "größer"},
    }
    assert "größer" in path.read_text("utf-8")
    assert path.read_text("utf-8").count("\n") > 3


def test_files_are_private(documents: Documents, path: Path) -> None:
    """Only the owner may read the file, its previous generation and its folder; an open one is closed."""
    documents.put("a", {})
    documents.put("b", {})
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name("documents.json.bak").stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700

    path.chmod(0o644)
    again(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_same_document_is_not_written_again(documents: Documents, path: Path) -> None:
    """Putting what is there already leaves the file alone."""
    documents.put("a", {"n": 1})
    before = path.stat().st_ino

    documents.put("a", {"n": 1})

    assert path.stat().st_ino == before


def test_closed_documents_say_so(path: Path) -> None:
    """Before `open` and after `close` every call names the file that is not open."""
    documents = Documents(path)

    with pytest.raises(StateError, match="is not open"):
        documents.get("a")
    documents.open()
    documents.close()
    documents.close()
    with pytest.raises(StateError, match="is not open"):
        documents.put("a", {})


# --- off the loop ---------------------------------------------------------------------------------------------


async def test_save_writes_in_order_off_the_loop(documents: Documents, path: Path) -> None:
    """Saves from a loop are written by one worker, in the order of the calls, and awaited until durable."""
    threads = set()
    put = documents.put

    def watched(name: str, body: dict[str, object]) -> None:
        threads.add(threading.current_thread().name)
        put(name, body)

    documents.put = watched  # type: ignore[method-assign, assignment]
    await asyncio.gather(*(documents.save("n", {"n": n}) for n in range(20)))

    assert documents.get("n") == {"n": 19}
    assert again(path).get("n") == {"n": 19}
    assert len(threads) == 1
    assert threads.pop().startswith("sigma9-documents")


async def test_save_takes_the_document_as_it_is_now(documents: Documents) -> None:
    """Changing the object after `save` was called does not change what is written."""
    body = {"n": 1}
    saving = asyncio.ensure_future(documents.save("n", body))
    await asyncio.sleep(0)
    body["n"] = 2
    await saving

    assert documents.get("n") == {"n": 1}


async def test_cancelled_save_is_finished(documents: Documents, path: Path) -> None:
    """A save whose caller has gone while it waited is written all the same, before `close` returns."""
    busy = threading.Event()
    assert documents._disk is not None
    documents._disk.submit(busy.wait, 10.0)
    saving = asyncio.ensure_future(documents.save("n", {"n": 1}))
    await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    busy.set()
    documents.close()

    assert again(path).get("n") == {"n": 1}


async def test_save_raises_what_went_wrong(documents: Documents) -> None:
    """A document that is refused is refused to the one who awaits it."""
    with pytest.raises(StateError, match="can't be written as JSON"):
        await documents.save("n", {"n": object()})


def test_threads_do_not_lose_each_others_documents(documents: Documents, path: Path) -> None:
    """Four threads that write and read at once leave every last document there."""
    seen: list[object] = []

    def work(number: int) -> None:
        for turn in range(15):
            documents.put(f"d{number}", {"turn": turn})
            seen.append(documents.get(f"d{number}") == {"turn": turn})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen == [True] * 60
    assert [again(path).get(f"d{number}") for number in range(4)] == [{"turn": 14}] * 4


# --- crashes --------------------------------------------------------------------------------------------------


def test_damaged_file_falls_back_to_the_generation_before(
    documents: Documents, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An unreadable newest file is put aside with a warning, and the one before it is used and kept."""
    documents.put("n", {"n": 1})
    documents.put("n", {"n": 2})
    documents.close()
    path.write_text('{"documents": {"1": {"na')

    kept = again(path)
    assert kept.get("n") == {"n": 1}
    assert "the generation before it is used" in caplog.text
    assert path.with_name("documents.json.damaged").read_text() == '{"documents": {"1": {"na'

    kept.put("n", {"n": 3})
    assert json.loads(path.with_name("documents.json.bak").read_text())["documents"]["1"]["body"] == {"n": 1}
    assert again(path).get("n") == {"n": 3}


def test_crash_between_the_two_renames_loses_nothing(documents: Documents, path: Path) -> None:
    """Where the newest file is missing, the generation before it, the last acknowledged one, is used."""
    documents.put("n", {"n": 1})
    documents.close()
    path.rename(path.with_name("documents.json.bak"))

    assert again(path).get("n") == {"n": 1}


@pytest.mark.parametrize("rubbish", [b"", b"\xff\xfe", b"[]", b"{", b'{"documents": 3}'])
def test_two_damaged_generations_are_an_error(path: Path, rubbish: bytes) -> None:
    """Where no generation is whole the start is refused, and says what to do; nothing is thrown away."""
    path.parent.mkdir()
    path.write_bytes(rubbish)
    path.with_name("documents.json.bak").write_bytes(rubbish)

    with pytest.raises(StateError, match="restore one of them, or move both away"):
        again(path)
    assert path.read_bytes() == rubbish


def test_failed_write_changes_nothing(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk refuses a write, the caller is told and the document is as it was."""
    documents.put("n", {"n": 1})

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StateError, match=r"can't be written \(No space left on device\)"):
        documents.put("n", {"n": 2})
    monkeypatch.undo()

    assert documents.get("n") == {"n": 1}
    documents.put("n", {"n": 3})
    assert again(documents.path).get("n") == {"n": 3}


WRITER = """
import sys
from pathlib import Path
from sigma9_core.state import Documents
documents = Documents(Path(sys.argv[1]))
documents.open()
found = documents.get("n")
start = found["n"] if found else 0
print("ready", start, flush=True)
for n in range(start + 1, start + 100000):
    documents.put("n", {"n": n, "filler": "x" * (n * 37 % 4000)})
    print(n, flush=True)
"""


def test_kill_9_never_loses_an_acknowledged_document(path: Path) -> None:
    """After each of 15 kills in the middle of writing, the file is whole and has at least the last answer."""
    acknowledged = 0
    for turn in range(15):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        word, start = writer.stdout.readline().split()
        assert word == "ready"
        assert int(start) >= acknowledged
        acknowledged = int(writer.stdout.readline())
        time.sleep(turn * 0.0013)  # not a wait for anything: it moves the kill about within a write
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read()
        writer.stdout.close()
        writer.wait()
        whole = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = int(whole[-1]) if whole else acknowledged

    kept = again(path).get("n")
    assert kept is not None
    assert kept["n"] >= acknowledged
    assert acknowledged >= 15

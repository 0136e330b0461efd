"""The journal on PostgreSQL, where the server dies, sessions are lost, and somebody else wants to write."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.errors import JournalError
from sigma9_core.events import Event, WatchlistUpdate
from sigma9_core.money import journal as journal_module
from sigma9_core.money.audit import audit
from sigma9_core.money.history import History
from sigma9_core.money.journal import Journal
from sigma9_core.money.postgres import take_writer
from sigma9_core.money.records import EventRecord, NoteRecord
from sigma9_core.money.tables import address, where
from sigma9_core.testing.journal_places import ServerPlace
from sigma9_core.testing.postgres_server import PASSWORD, PostgresServer

pytestmark = pytest.mark.postgres

TS = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)
DEADLINE = 20.0

_schemas = itertools.count()


@pytest.fixture(name="place")
def _place(postgres_server: PostgresServer) -> ServerPlace:
    schema = f"only_{next(_schemas)}"
    postgres_server.make_schema(schema)
    return ServerPlace(postgres_server, schema)


@pytest.fixture(name="heard")
def _heard() -> list[int]:
    return []


@pytest.fixture(name="journal")
def _journal(place: ServerPlace, heard: list[int]) -> Iterator[Journal]:
    def on_events(events: Any) -> None:
        heard.extend(event.seq for event in events)

    journal = Journal(place.url, "main", on_events)
    journal.open()
    yield journal
    journal.close()


def update(strategy: str = "seismograph") -> EventRecord:
    return EventRecord("watchlist_update", WatchlistUpdate(reason="scan", strategy=strategy, count=0), TS)


def note(**body: Any) -> NoteRecord:
    return NoteRecord("trip", TS, body)


def written(journal: Journal, *, fact: bool = False) -> tuple[Event, ...]:
    return journal.write([update(), note()], fact=fact).result(DEADLINE)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def sound(place: ServerPlace) -> int:
    """Audit the journal; give the number of its newest event."""
    history = History(place.url, "main")
    history.open()
    found = audit(history)
    history.close()
    assert found.faults == []
    return found.last_seq


def sessions(place: ServerPlace, name: str = "sigma9 main") -> list[int]:
    """Find the writers' sessions in the database."""
    found = place.query(f"SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'")  # noqa: S608
    return [pid for (pid,) in found]


# --- what dies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "immediate", pytest.param("fast", marks=pytest.mark.slow)])
def test_server_that_dies_during_commits_loses_nothing(
    journal: Journal, heard: list[int], place: ServerPlace, how: Any
) -> None:
    """Killed, crashed or stopped amid commits: facts get there in order, once, and intents are told."""
    server = place.server
    facts: list[Future[Any]] = []
    asked: list[Future[Any]] = []
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            facts.append(journal.write([update(), note(n=len(facts))], fact=True))
            asked.append(journal.write([update("asked")]))
            time.sleep(0.0005)

    writer = threading.Thread(target=work)
    writer.start()
    try:
        until(lambda: len(heard) > 20)
        server.kill() if how == "kill" else server.stop(how)
        until(lambda: not journal.healthy)
        time.sleep(0.05)
    finally:
        server.start()
        ended.set()
        writer.join()
    for future in facts:
        future.result(DEADLINE)
    until(lambda: journal.healthy)
    last = written(journal)[0].seq

    assert heard == [*range(1, len(heard) + 1)]
    assert sound(place) == last == heard[-1]
    assert [found.body["n"] for found in reversed(journal.notes("trip", 100_000)) if found.body] == [
        *range(len(facts))
    ]
    refused = [future for future in asked if future.exception(DEADLINE) is not None]
    assert refused
    assert len(heard) >= len(facts) + len(asked) - len(refused)
    assert PASSWORD not in "".join(str(future.exception()) for future in refused)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_session_that_is_lost_at_a_commit(
    journal: Journal, heard: list[int], place: ServerPlace, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Whether a commit that got no answer went through is read back, and it is there exactly once."""
    written(journal)
    assert journal._engine is not None
    commit = journal._engine.dialect.do_commit
    cut = [True]

    def do_commit(connection: Any) -> None:
        if not cut:
            commit(connection)
            return
        cut.clear()
        if moment == "after":
            commit(connection)
        (pid,) = sessions(place)
        place.query(f"SELECT pg_terminate_backend({pid}, 5000)")
        connection.execute("SELECT 1") if moment == "before" else connection.cursor().execute("SELECT 1")

    monkeypatch.setattr(journal._engine.dialect, "do_commit", do_commit)
    fact = journal.write([update("doubt"), note(what="doubt")], fact=True)

    assert fact.result(DEADLINE)[0].seq == 2
    until(lambda: journal.healthy)
    assert written(journal)[0].seq == 3
    assert heard == [1, 2, 3]
    assert len([found for found in journal.notes("trip", 9) if found.body]) == 1
    assert sound(place) == 3


def test_lost_connection_comes_back(journal: Journal, place: ServerPlace) -> None:
    """A session that the database ends between two writes is replaced; readers notice nothing."""
    written(journal)
    (pid,) = sessions(place)
    place.query(f"SELECT pg_terminate_backend({pid}, 5000)")
    for (reader,) in place.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'sigma9 (reads)'"):
        place.query(f"SELECT pg_terminate_backend({reader}, 5000)")

    assert journal.last_ts() is not None
    assert written(journal, fact=True)[0].seq == 2
    assert written(journal)[0].seq == 3
    (again,) = sessions(place)
    assert again != pid
    assert sound(place) == 3


WRITER = """
import sys, threading
sys.path.insert(0, sys.argv[2])
from test_postgres import note, update
from sigma9_core.money.journal import Journal
journal = Journal(sys.argv[1], "main", lambda events: None)
journal.open()
print("ready", journal.last_seq, flush=True)
while True:
    futures = [journal.write([update(), note(), update()], fact=turn % 2 == 0) for turn in range(5)]
    for future in futures:
        print(future.result()[-1].seq, flush=True)
"""


def test_writer_that_is_killed_gives_way_at_once(place: ServerPlace) -> None:
    """After kill -9 the next start of the same node gets the lock, and everything answered is there, whole."""
    answered = 0
    for turn in range(3):
        arguments = [sys.executable, "-c", WRITER, place.url, str(Path(__file__).parent)]
        writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        word, start = writer.stdout.readline().split()
        assert (word, int(start) >= answered) == ("ready", True)
        answered = int(writer.stdout.readline())
        time.sleep(turn * 0.0031)  # not a wait for anything: it moves the kill about within a commit
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().splitlines(keepends=True)
        writer.stdout.close()
        writer.wait()
        answered = int(next((line for line in reversed(rest) if line.endswith("\n")), str(answered)))
    assert sound(place) >= answered
    assert sound(place) % 2 == 0


# --- one writer -----------------------------------------------------------------------------------------------


def test_second_writer_is_told_who_writes(
    journal: Journal, place: ServerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names the session that writes, and not the password; another node is welcome."""
    monkeypatch.setattr(journal_module, "LOCK_SECONDS", 0.1)
    (pid,) = sessions(place)
    with pytest.raises(JournalError) as caught:
        Journal(place.url, "main", lambda _: None).open()

    assert str(caught.value) == (
        f"another server writes the journal postgresql+psycopg://127.0.0.1:{place.server.port}/postgres "
        f"as the node main (from 127.0.0.1, session {pid}): stop it, or give this one a `node` of its own"
    )
    other = Journal(place.url, "second", lambda _: None)
    other.open()
    assert written(other)[0].seq == 1
    other.close()


def test_same_node_in_another_schema_is_another_journal(journal: Journal, place: ServerPlace) -> None:
    """Two fleets may share a database, each in a schema of its own."""
    place.server.make_schema("fleet")
    other = Journal(place.server.url("fleet"), "main", lambda _: None)
    other.open()
    assert written(other)[0].seq == 1
    assert written(journal)[0].seq == 1
    other.close()


def test_lock_that_another_has_taken_stops_the_first(
    journal: Journal, heard: list[int], place: ServerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has lost its session, and finds another server in its place, never gives a number a second time."""
    written(journal)
    free = threading.Event()

    def late(*args: Any, **options: Any) -> None:
        assert free.wait(DEADLINE)
        take_writer(*args, **options)

    monkeypatch.setattr(journal_module, "take_writer", late)
    (pid,) = sessions(place)
    place.query(f"SELECT pg_terminate_backend({pid}, 5000)")
    fact = journal.write([update("mine")], fact=True)
    asked = journal.write([update("mine")])

    monkeypatch.setattr(journal_module, "take_writer", take_writer)
    other = Journal(place.url, "main", lambda _: None)
    other.open()
    assert written(other)[0].seq == 2
    free.set()
    assert isinstance(asked.exception(DEADLINE), JournalError)
    assert not fact.done()
    other.close()  # the lock is free again, and still its numbers are taken
    time.sleep(0.2)
    assert "another server writes to it as the node main" in str(
        journal.write([update("mine")]).exception(DEADLINE)
    )
    assert heard == [1]
    assert sound(place) == 2


# --- what a row may not hold ----------------------------------------------------------------------------------


def test_record_that_no_table_takes_is_refused_alone(journal: Journal, place: ServerPlace) -> None:
    """A value that the database can't hold fails by itself, and the session with its lock stays."""
    (pid,) = sessions(place)
    wrong = journal.write([EventRecord(update().kind, update().data, TS, cause=object())], fact=True)  # type: ignore[arg-type]
    right = journal.write([update()], fact=True)

    assert "can't take this record" in str(wrong.exception(DEADLINE))
    assert right.result(DEADLINE)[0].seq == 1
    assert journal.healthy
    assert sessions(place) == [pid]


def test_missing_rights_are_the_database_s_fault(journal: Journal, place: ServerPlace) -> None:
    """Facts wait, and are not lost, where the role may not write any more; they get there once it may."""
    written(journal)
    place.forge("ALTER TABLE events RENAME TO gone")
    fact = journal.write([update("fact")], fact=True)
    until(lambda: not journal.healthy)
    assert not fact.done()
    place.forge("ALTER TABLE gone RENAME TO events")
    assert fact.result(DEADLINE)[0].seq == 2
    assert sound(place) == 2


# --- durability and addresses ---------------------------------------------------------------------------------


def test_commits_are_durable_whatever_the_role_says(place: ServerPlace) -> None:
    """A role that would not wait for the disk is overruled; readers can't write."""
    place.query("SELECT 1")
    url = place.server.url(place.schema, options=f"-csearch_path={place.schema} -csynchronous_commit=off")
    journal = Journal(url, "main", lambda _: None)
    journal.open()
    assert journal._connection is not None
    with journal._connection.begin():
        assert journal._connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    journal.close()


def test_restored_database_gets_a_new_id(
    place: ServerPlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a mark in a folder of this machine a database that was put back is noticed, as a file is."""
    journal = Journal(place.url, "main", lambda _: None, marks=tmp_path)
    journal.open()
    for _ in range(3):
        written(journal)
    known = journal.journal_id
    journal.close()
    place.forge("DELETE FROM events WHERE seq > 1", "DELETE FROM notes WHERE n > 3")

    history = History(place.url, "main")
    history.open_unchecked()
    assert "the mark beside the journal says that event 3 was written" in audit(history, marks=tmp_path).faults[0]
    history.close()
    journal.open()
    assert journal.journal_id != known
    assert "was put back from event 3 to 1" in caplog.text
    assert written(journal)[0].seq == 2
    journal.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"password": "wrong"}, "password authentication failed for user"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist): make it on the database server'),
        ({"port": 1}, "Connection refused): see that the database server runs, and that database.url names it"),
        ({"host": "no.such.host.invalid"}, "see that database.url names the host of the database server"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(place: ServerPlace, change: Any, said: str) -> None:
    """A start that can't reach the database says why and what to do, and never shows the password."""
    url = address(place.url).set(**change).render_as_string(hide_password=False)
    with pytest.raises(JournalError) as caught:
        Journal(url, "main", lambda _: None).open()
    assert said in str(caught.value)
    for text in (str(caught.value), repr(caught.value.__cause__)):
        assert PASSWORD not in text
        assert "wrong" not in text


def test_password_in_a_query_is_not_shown() -> None:
    """Whatever stands behind the question mark is left out of messages."""
    assert where("postgresql://sigma9@db:5433/fleet?password=secret&sslmode=require") == (
        "postgresql+psycopg://db:5433/fleet"
    )
    assert where("postgresql+psycopg://u:secret@/fleet?host=/run/postgresql") == (
        "postgresql+psycopg:///run/postgresql/fleet"
    )


@pytest.mark.parametrize("url", ["postgresql://u:pa#ss@db:x/fleet", "mysql://u:secret@db/x", "secret", "://"])
def test_unreadable_address_is_not_shown(url: str) -> None:
    """An address that can't be read is refused in a sentence that does not repeat it."""
    with pytest.raises(JournalError, match=r"database\.url can't be read: write postgresql\+psycopg://") as caught:
        Journal(url, "main", lambda _: None).open()
    assert "secret" not in str(caught.value)
    assert "pa#ss" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the sentence says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(JournalError, match=r"pip install 'sigma9\[postgres\]'"):
        Journal("postgresql://db/fleet", "main", lambda _: None).open()

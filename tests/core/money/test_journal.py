"""The journal: durable before anybody hears of it, numbered without a gap, and never changed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from sigma9_core.config import DatabaseSettings
from sigma9_core.errors import CommandError, JournalError
from sigma9_core.events import Event, LogLine, StatusUpdate, TradeEvent, WatchlistUpdate
from sigma9_core.models import ExitPlan, Fill, OrderRequest, OrderStatus, Verdict, writable
from sigma9_core.money import journal as journal_module
from sigma9_core.money import tables
from sigma9_core.money.highwater import Mark, read_mark
from sigma9_core.money.history import PAGE, History
from sigma9_core.money.journal import Journal, journal_url
from sigma9_core.money.orders import Order
from sigma9_core.money.records import CommandRecord, EventRecord, FillRecord, IntentRecord, NoteRecord, Record
from sigma9_core.testing.journal_places import Commits, FilePlace, Outcome, Place, ServerPlace
from sigma9_core.testing.postgres_server import PostgresServer

TS = datetime(2026, 11, 20, 14, 45, 0, 123456, tzinfo=UTC)
DEADLINE = 10.0


class Heard:
    """What a journal has told: its events, in the calls that brought them, and its health."""

    def __init__(self) -> None:
        self.calls: list[list[Event]] = []
        self.health: list[tuple[bool, str]] = []
        self.let_go = threading.Event()
        self.let_go.set()
        self.held = threading.Event()

    @property
    def events(self) -> list[Event]:
        return [event for call in self.calls for event in call]

    def on_events(self, events: Sequence[Event]) -> None:
        self.calls.append(list(events))
        self.held.set()
        assert self.let_go.wait(DEADLINE)

    def on_health(self, healthy: bool, reason: str) -> None:
        self.health.append((healthy, reason))

    @contextmanager
    def hold(self, journal: Journal) -> Iterator[None]:
        """Keep the writer busy, so that what is written meanwhile becomes one group."""
        self.let_go.clear()
        self.held.clear()
        journal.write([update("hold")])
        assert self.held.wait(DEADLINE)
        try:
            yield
        finally:
            self.let_go.set()


@pytest.fixture(name="heard")
def _heard() -> Heard:
    return Heard()


_schemas = itertools.count()


@pytest.fixture(name="place", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def _place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return FilePlace(tmp_path / "data" / "sigma9.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    schema = f"journal_{next(_schemas)}"
    server.make_schema(schema)
    return ServerPlace(server, schema)


sqlite_only = pytest.mark.parametrize("place", ["sqlite"], indirect=True)
"""For what only a file can do, or have done to it."""


@pytest.fixture(name="path")
def _path(place: Place) -> Path:
    assert isinstance(place, FilePlace)
    return place.path


def make(place: Place, heard: Heard, node: str = "main") -> Journal:
    journal = Journal(place.url, node, heard.on_events, on_health=heard.on_health)
    journal.open()
    return journal


@pytest.fixture(name="journal")
def _journal(place: Place, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.05)
    journal = make(place, heard)
    yield journal
    heard.let_go.set()
    journal.close()


# --- records to write -----------------------------------------------------------------------------------------


def update(strategy: str = "seismograph") -> EventRecord:
    return EventRecord("watchlist_update", WatchlistUpdate(reason="scan", strategy=strategy, count=0), TS)


def trade(
    order_id: str = "O1",
    event: OrderStatus = OrderStatus.SUBMITTED,
    *,
    trade_id: str | None = None,
    symbol: str = "AAPL",
    ts: datetime = TS,
) -> EventRecord:
    data = TradeEvent(
        event=event,
        order_id=order_id,
        symbol=symbol,
        side="buy",
        quantity=Decimal(100),
        order_type="limit",
        limit_price=Decimal("187.25"),
        time_in_force="day",
        filled_quantity=Decimal(100 if trade_id else 0),
        source="strategy",
        trade_id=trade_id,
    )
    return EventRecord("trade_event", data, ts, cause="C1")


def fill(exec_id: str = "E1", order_id: str = "O1") -> FillRecord:
    execution = Fill(exec_id, order_id, "AAPL", "buy", Decimal(100), Decimal("187.25"), Decimal("0.35"), TS, "B1")
    return FillRecord(execution, "seismograph", "strategy")


def intent(order_id: str = "O1", *, approved: bool = True, ts: datetime = TS, **changes: Any) -> IntentRecord:
    request = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(100), **changes)
    verdict = Verdict(
        rule="max_open", code="R7", outcome="allow" if approved else "refuse", used=Decimal(1), limit=Decimal(3)
    )
    return IntentRecord(order_id, ts, request, (verdict,), approved, "C1", {"config": "abc"})


def note(kind: str = "trip", **body: Any) -> NoteRecord:
    return NoteRecord(kind, TS, body)


def command(stage: Any = "received", id: str | None = "K1", ts: datetime = TS) -> CommandRecord:  # noqa: A002
    return CommandRecord(stage, "place_order", id, "digest", "mqtt", "phone", ts, {"symbol": "AAPL"})


def poison() -> NoteRecord:
    """A record that can't be written as JSON."""
    return NoteRecord("trip", TS, {"a": object()})


def poison_for_the_database() -> EventRecord:
    """A record that becomes a row, and the database won't take the row."""
    return EventRecord("watchlist_update", WatchlistUpdate(reason="scan", count=0), TS, cause=object())  # type: ignore[arg-type]


def done(future: Future[tuple[Event, ...]]) -> tuple[Event, ...]:
    return future.result(DEADLINE)


def refused(future: Future[tuple[Event, ...]]) -> str:
    error = future.exception(DEADLINE)
    assert isinstance(error, JournalError)
    return str(error)


def is_unknown(future: Future[tuple[Event, ...]]) -> bool:
    error = future.exception(DEADLINE)
    assert isinstance(error, JournalError)
    return error.unknown


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def gapless(place: Place, node: str = "main") -> int:
    """Check that the numbers go from 1 on without a gap, in the envelopes as in the keys; give the last."""
    found = place.query(f"SELECT seq, body FROM events WHERE node = '{node}' ORDER BY seq")  # noqa: S608
    assert [seq for seq, _ in found] == list(range(1, len(found) + 1))
    assert [json.loads(body)["seq"] for _, body in found] == [seq for seq, _ in found]
    return len(found)


# --- numbers and bytes ----------------------------------------------------------------------------------------


@sqlite_only
def test_new_journal_is_empty_and_private(journal: Journal, path: Path) -> None:
    """A new journal has an id of its own and nothing else, and only its owner may read its files."""
    assert len(journal.journal_id) == 32
    assert journal.last_seq == 0
    assert journal.healthy
    assert journal.last_ts() is None
    assert journal.events(0, 10).events == []
    assert (journal.events(0, 10).first, journal.events(0, 10).last) == (1, 0)
    assert journal.trades() == {"trades": [], "cursor": None}
    assert not [*journal.fills(), *journal.intents(), *journal.notes("trip", 9)]
    done(journal.write([update()]))
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


@sqlite_only
def test_commits_are_durable_by_configuration(journal: Journal) -> None:
    """The writer's connection has the write-ahead log and flushes at every commit."""
    assert journal._connection is not None
    with journal._connection.begin():
        assert journal._connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert journal._connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_numbers_go_on_over_restarts(place: Place, heard: Heard) -> None:
    """Each event is one more than the last, also after a restart, and the journal keeps its id."""
    ids = set()
    for turn in range(3):
        journal = make(place, heard)
        ids.add(journal.journal_id)
        assert journal.last_seq == turn * 4
        for _ in range(2):
            done(journal.write([update(), note(), trade()]))
        journal.close()
        assert not isinstance(place, FilePlace) or not place.path.with_name("sigma9.db-wal").exists()

    assert len(ids) == 1
    assert [event.seq for event in heard.events] == list(range(1, 13))
    assert gapless(place) == 12


def test_stored_text_is_the_published_text(journal: Journal, heard: Heard) -> None:
    """Whatever an event says, the journal gives back exactly the bytes that went out, and they say the same."""
    text = st.text(max_size=30)
    numbers = st.decimals(-(10**9), 10**9, places=6)

    @settings(max_examples=60, deadline=None)
    @given(
        reason=text, quantity=numbers, price=st.none() | numbers, status=st.sampled_from(OrderStatus), extra=text
    )
    def check(reason: str, quantity: Decimal, price: Decimal | None, status: OrderStatus, extra: str) -> None:
        data = TradeEvent(
            event=status,
            order_id=f"O{len(heard.events)}",
            symbol="BRK.B",
            side="sell",
            quantity=quantity,
            order_type="market",
            limit_price=price,
            time_in_force="gtc",
            filled_quantity=Decimal(0),
            source="api",
            reason=reason,
        )
        status_update = StatusUpdate(changed=("engine",), status={"text": extra, "n": float(quantity)})
        published = done(
            journal.write([EventRecord("trade_event", data, TS), EventRecord("status_update", status_update, TS)])
        )

        page = journal.events((published[0].seq or 0) - 1, 10)
        assert list(page.events) == [event.raw for event in published]
        assert [event.raw for event in heard.calls[-1]] == list(page.events)
        body = json.loads(page.events[0], parse_float=Decimal)
        assert body["data"]["quantity"] == quantity
        assert body["data"]["reason"] == reason
        assert journal.order(data.order_id) == data

    check()


def test_events_that_are_not_durable_are_refused(journal: Journal) -> None:
    """Log lines and market data have no place in the journal, and a time needs its zone."""
    line = LogLine(level="info", logger="x", message="y")

    assert "log events are not kept" in refused(journal.write([EventRecord("log", line, TS)]))
    assert "has no zone" in refused(
        journal.write([EventRecord(update().kind, update().data, TS.replace(tzinfo=None))])
    )
    assert done(journal.write([update()]))[0].seq == 1


# --- one call, one transaction --------------------------------------------------------------------------------


def test_records_of_one_call_are_there_together(journal: Journal, place: Place) -> None:
    """A record that can't be written takes its own call along, whole, and uses up no number."""
    assert "can't take this record (EventRecord, NoteRecord" in refused(
        journal.write([update(), note(), poison()])
    )

    assert done(journal.write([update(), note()]))[0].seq == 1
    assert place.query("SELECT count(*) FROM notes") == [(1,)]
    assert journal.healthy


@pytest.mark.parametrize("bad", [poison, poison_for_the_database])
def test_poisoned_call_does_not_take_others_along(
    journal: Journal, heard: Heard, place: Place, bad: Callable[[], Record]
) -> None:
    """Of calls that wait for one commit only the one at fault fails; the others keep their order."""
    with heard.hold(journal):
        first = journal.write([update("first")])
        wrong = journal.write([update("wrong"), bad()])
        second = journal.write([update("second")], fact=True)

    assert done(first)[0].seq == 2
    assert "can't take this record" in refused(wrong)
    assert done(second)[0].seq == 3
    assert journal.healthy
    assert heard.health == []
    assert gapless(place) == 3


def test_poisoned_fact_is_refused_and_told(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """A fact that no journal can take fails instead of standing in the way of all others, and is in the log."""
    assert "can't take this record" in refused(journal.write([poison()], fact=True))
    assert "lost for the journal" in caplog.text
    assert done(journal.write([update()]))[0].seq == 1


def test_what_waits_becomes_one_commit(journal: Journal, heard: Heard) -> None:
    """Calls that wait while a commit runs share the next one."""
    with heard.hold(journal):
        futures = [journal.write([update()]) for _ in range(50)]
    wait(futures, DEADLINE)

    assert [len(call) for call in heard.calls] == [1, 50]


def test_one_commit_is_bounded(journal: Journal, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes so many records and leaves the rest to the next; a larger call goes by itself."""
    monkeypatch.setattr(journal_module, "GROUP_RECORDS", 4)
    with heard.hold(journal):
        futures = [journal.write([update()] * size) for size in (2, 2, 1, 9, 1)]
    wait(futures, DEADLINE)

    assert [len(call) for call in heard.calls] == [1, 4, 1, 9, 1]


def test_empty_call_waits_for_all_before_it(journal: Journal, heard: Heard) -> None:
    """A call without records is done when all that was handed over before is durable."""
    with heard.hold(journal):
        before = journal.write([update()])
        barrier = journal.write([])
        assert not barrier.done()

    assert done(barrier) == ()
    assert before.done()


def named(
    exec_id: str = "E1", strategy: str | None = "seismograph", broker_order_id: str | None = "B1"
) -> FillRecord:
    amounts = Decimal(100), Decimal("187.25"), Decimal("0.35")
    return FillRecord(Fill(exec_id, "O1", "AAPL", "buy", *amounts, TS, broker_order_id), strategy, "strategy")


@pytest.mark.parametrize(
    "record",
    [
        named("e" * 300),
        named("e\0x"),
        named("e\ud800x"),
        named("\N{BLACK CHESS KING}" * 70),
        named(broker_order_id="b" * 300),
        named(broker_order_id="\0"),
        named(strategy="s" * 300),
        named(strategy="a\0\udfff"),
        EventRecord("watchlist_update", WatchlistUpdate(reason="scan", count=0), TS, cause="a\0b\ud800"),
        CommandRecord("received", "scan", "a\0b", "d", "mqtt", "p\ud800", TS, {"a": "\0"}),
        note(reason="a\0b"),
        NoteRecord("k" * 300, TS, {}),
    ],
)
def test_whatever_something_is_called_is_kept(journal: Journal, place: Place, record: Record) -> None:
    """Long names, NUL characters and halves of characters lose no record, whichever database keeps it."""
    done(journal.write([record], fact=True))

    assert journal.healthy
    if isinstance(record, FillRecord):
        (kept,) = journal.fills()
        assert kept.fill == record.fill
        done(journal.write([record], fact=True))
        assert journal.duplicates == 1


def test_an_execution_that_is_lost_is_not_lost_in_silence(
    journal: Journal, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a fill can't be written for what is in it, the journal is not healthy any more, and says why."""
    assert "can't take this record" in refused(
        journal.write([fill("E2"), EventRecord("log", update().data, TS)], fact=True)
    )
    assert not journal.healthy
    assert journal.writes
    sentence = "can't take an execution (E2 of order O1 in AAPL"
    assert [(healthy, sentence in reason) for healthy, reason in heard.health] == [(False, True)]
    assert sentence in caplog.text
    assert done(journal.write([update()]))
    assert not journal.healthy


# --- who hears when -------------------------------------------------------------------------------------------


def test_events_go_out_after_the_commit_and_before_the_futures(place: Place) -> None:
    """The listener hears durable events in order, and only then are those told who wait for them."""
    futures: list[Future[tuple[Event, ...]]] = []
    seen: list[tuple[int, bool, int]] = []
    ready = threading.Event()

    def on_events(events: Sequence[Event]) -> None:
        assert ready.wait(DEADLINE)
        durable = place.query("SELECT max(seq) FROM events")[0][0]
        waiting = [future for future in futures if not future.done()]
        seen.extend((event.seq or 0, durable >= (event.seq or 0), len(waiting)) for event in events)

    journal = Journal(place.url, "main", on_events)
    journal.open()
    try:
        futures += [journal.write([update(), update()]) for _ in range(5)]
        ready.set()
        results = [done(future) for future in futures]
    finally:
        journal.close()

    assert [seq for seq, _, _ in seen] == list(range(1, 11))
    assert all(durable for _, durable, _ in seen)
    # Each event was heard while its own future was still open.
    assert all(waiting >= 5 - (seq - 1) // 2 for seq, _, waiting in seen)
    assert [event.seq for events in results for event in events] == list(range(1, 11))


def test_failing_listener_does_not_stop_the_journal(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the listener raises is logged, and those who wait are answered."""

    def on_events(_events: Sequence[Event]) -> None:
        raise RuntimeError("no ears")

    journal = Journal(place.url, "main", on_events)
    journal.open()
    try:
        assert done(journal.write([update()]))[0].seq == 1
        assert done(journal.write([update()]))[0].seq == 2
    finally:
        journal.close()
    assert "no ears" in caplog.text


async def test_commit_can_be_awaited_on_any_loop(journal: Journal, place: Place) -> None:
    """Tasks of two loops in two threads wait for their own records."""

    async def many(count: int) -> list[int | None]:
        return [
            events[0].seq for events in await asyncio.gather(*(journal.commit([update()]) for _ in range(count)))
        ]

    here, there = await asyncio.gather(many(30), asyncio.to_thread(lambda: asyncio.run(many(30))))

    assert sorted(seq or 0 for seq in here + there) == list(range(1, 61))
    assert here == sorted(here, key=lambda seq: seq or 0)
    assert gapless(place) == 60


async def test_record_of_a_cancelled_caller_is_written(journal: Journal, heard: Heard, place: Place) -> None:
    """Cancelling who waits does not take the record back: it was handed over."""
    with heard.hold(journal):
        task = asyncio.ensure_future(journal.commit([update()]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    done(journal.write([]))

    assert gapless(place) == 2


def test_threads_share_the_journal(journal: Journal, heard: Heard, place: Place) -> None:
    """Eight threads at once: every call's events stand side by side, and all are numbered without a gap."""
    results: list[list[int]] = []

    def work() -> None:
        for turn in range(25):
            found = done(journal.write([trade(), note(), update()], fact=turn % 2 == 0))
            results.append([event.seq or 0 for event in found])
            journal.events(0, 5)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(second == first + 1 for first, second in results)
    assert sorted(seq for pair in results for seq in pair) == list(range(1, 401))
    assert [event.seq for event in heard.events] == list(range(1, 401))
    assert gapless(place) == 400


# --- when the disk does not play along ------------------------------------------------------------------------


def test_intent_fails_where_it_cannot_be_made_durable(journal: Journal, heard: Heard, place: Place) -> None:
    """While the journal can't be written an intent fails, leaves nothing, uses no number, and health says so."""
    with place.locked():
        reason = refused(journal.write([intent(), trade()]))
        assert not journal.healthy
        at_once = journal.write([intent()])
        assert at_once.done()
        assert refused(at_once) == reason

    assert f"can't be written ({place.busy}); nothing was made durable" in reason
    until(lambda: journal.healthy)
    assert done(journal.write([intent("O2"), trade("O2")]))[0].seq == 1
    assert [found.order_id for found in journal.intents()] == ["O2"]
    assert [healthy for healthy, _ in heard.health] == [False, True]
    assert heard.health[0][1] == reason


def test_facts_wait_and_go_through_in_order(journal: Journal, heard: Heard, place: Place) -> None:
    """Facts are kept in order until the journal works again; what is not a fact never passes them."""
    with place.locked():
        facts = [journal.write([trade(f"O{n}"), fill(f"E{n}", f"O{n}")], fact=True) for n in range(5)]
        until(lambda: not journal.healthy)
        intents = [journal.write([trade(f"I{n}")]) for n in range(3)]
        facts += [journal.write([trade(f"O{n}"), fill(f"E{n}", f"O{n}")], fact=True) for n in range(5, 8)]
        assert all(refused(future) for future in intents)
        assert not any(future.done() for future in facts)
        assert heard.events == []

    assert [done(future)[0].seq for future in facts] == list(range(1, 9))
    assert [json.loads(event.raw)["data"]["order_id"] for event in heard.events] == [f"O{n}" for n in range(8)]
    assert [found.fill.exec_id for found in journal.fills()] == [f"E{n}" for n in range(8)]
    assert gapless(place) == 8


def test_group_that_fails_keeps_its_facts_before_later_ones(journal: Journal, heard: Heard, place: Place) -> None:
    """Facts of a failed group, of what waited behind it and of what came later stay in this order."""
    with heard.hold(journal):
        blocker = ExitStack()
        blocker.enter_context(place.locked())
        first = journal.write([trade("A")], fact=True)
        wrong = journal.write([poison_for_the_database()], fact=True)
        asked = journal.write([trade("B")])
        second = journal.write([trade("C")], fact=True)
    until(lambda: not journal.healthy)
    third = journal.write([trade("D")], fact=True)
    blocker.close()

    assert [done(future)[0].seq for future in (first, second, third)] == [2, 3, 4]
    assert place.busy in refused(asked)
    assert "can't take this record" in refused(wrong)


def test_facts_behind_a_failed_group_stay_behind_it(
    journal: Journal, heard: Heard, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that fails goes back before what waits behind it, however small the groups are."""
    monkeypatch.setattr(journal_module, "GROUP_RECORDS", 1)
    with heard.hold(journal):
        blocker = ExitStack()
        blocker.enter_context(place.locked())
        facts = [journal.write([trade(name)], fact=True) for name in "ABCD"]
    until(lambda: not journal.healthy)
    blocker.close()

    assert [done(fact)[0].seq for fact in facts] == [2, 3, 4, 5]


def test_disk_that_fails_while_the_poison_is_looked_for(journal: Journal, heard: Heard, place: Place) -> None:
    """Where the disk fails too while calls are tried one by one, the facts that are left keep their order."""
    commits = Commits(journal, place)
    with heard.hold(journal):
        commits.plan = ["work", "fail before"]
        first = journal.write([trade("A")])
        wrong = journal.write([poison_for_the_database()])
        facts = [journal.write([trade(name)], fact=True) for name in "BC"]
        asked = journal.write([trade("D")])

    assert done(first)[0].seq == 2
    assert "can't take this record" in refused(wrong)
    assert [done(fact)[0].seq for fact in facts] == [3, 4]
    assert "disk I/O error" in refused(asked)
    until(lambda: journal.healthy)
    assert gapless(place) == 4


def test_journal_comes_back_by_itself(journal: Journal, heard: Heard, place: Place) -> None:
    """Without anybody writing the journal notices that it works again, and keeps a note of the outage."""
    with place.locked():
        refused(journal.write([intent()]))

    until(lambda: journal.healthy and heard.health[-1][0])  # who listens is told a moment later
    (found,) = journal.notes("journal", 10)
    assert found.body["state"] == "failing"
    assert place.busy in found.body["reason"]
    assert "works again" in heard.health[-1][1]


def test_full_disk(tmp_path: Path, heard: Heard) -> None:
    """On a full disk intents fail and facts wait; once there is space again all goes on without a gap."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        journal = make(FilePlace(folder / "sigma9.db"), heard)
        written = 0
        future = journal.write([update()])
        while future.exception(DEADLINE) is None:
            written += 1
            future = journal.write([update("x" * 5000)])
        assert "database or disk is full" in refused(future)
        facts = [journal.write([trade(f"O{n}")], fact=True) for n in range(3)]
        assert "disk is full" in refused(journal.write([intent()]))

        subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)

        assert [done(fact)[0].seq for fact in facts] == [written + 1, written + 2, written + 3]
        assert done(journal.write([intent(), trade("O9")]))[0].seq == written + 4
        assert [healthy for healthy, _ in heard.health] == [False, True]
        journal.close()
        assert gapless(FilePlace(folder / "sigma9.db")) == written + 4
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_commit_that_failed_is_tried_again(journal: Journal, heard: Heard, place: Place) -> None:
    """A commit that fails three times is done at the fourth try, once."""
    Commits(journal, place).plan = ["damage", "fail before", "damage"]

    assert done(journal.write([trade(), fill()], fact=True))[0].seq == 1

    assert gapless(place) == 1
    assert [healthy for healthy, _ in heard.health] == [False, True]


def test_commit_that_went_through_in_spite_of_its_error_counts(
    journal: Journal, heard: Heard, place: Place
) -> None:
    """Where the database reports a failure after the deed, it is read back and nothing is written twice."""
    Commits(journal, place).plan = ["fail after"]

    assert done(journal.write([intent(), trade()]))[0].seq == 1
    assert done(journal.write([trade("O2")]))[0].seq == 2

    assert [event.seq for event in heard.events] == [1, 2]
    assert heard.health == []
    assert gapless(place) == 2


@pytest.mark.parametrize("unreadable", [1, 2, 3, 4])
def test_commit_of_unknown_outcome_is_settled_later(
    journal: Journal, heard: Heard, place: Place, unreadable: int
) -> None:
    """Where even the reading back fails for a while, a later try finds what is there and loses nothing."""
    commits = Commits(journal, place)
    commits.unreadable = unreadable
    with heard.hold(journal):
        commits.plan = ["fail after"]
        asked = journal.write([trade("A")])
        fact = journal.write([trade("B")], fact=True)
    until(asked.done)
    later = journal.write([trade("C")], fact=True)

    assert "whether this was made durable is not known yet" in refused(asked)
    assert is_unknown(asked)
    assert [event.seq for event in done(fact)] == [3]
    assert [event.seq for event in done(later)] == [4]
    until(lambda: journal.healthy)
    assert len(journal.notes("journal", 9)) == 1
    assert done(journal.write([trade("D")]))[0].seq == 5
    assert [event.seq for event in heard.events] == [1, 2, 3, 4, 5]
    assert gapless(place) == 5


def test_what_waits_behind_a_commit_of_unknown_outcome_is_known_not_to_be_there(
    journal: Journal, place: Place
) -> None:
    """Only what was in the commit is in doubt; what has not been tried yet is told so, and is not there."""
    commits = Commits(journal, place)
    commits.plan, commits.unreadable, commits.pause = ["fail after"], 1, threading.Event()
    asked = journal.write([intent("A"), trade("A")])
    until(lambda: not commits.plan)
    behind = journal.write([intent("B"), trade("B")])
    commits.pause.set()

    assert "whether this was made durable is not known yet" in refused(asked)
    assert "nothing was made durable" in refused(behind)
    assert (is_unknown(asked), is_unknown(behind)) == (True, False)
    until(lambda: journal.writes)
    assert place.query("SELECT order_id FROM orders") == [("A",)]


@pytest.mark.parametrize(("outcome", "kept"), [("fail after", ["A", "A"]), ("fail before", [])])
def test_facts_of_an_order_are_there_only_with_its_intent(
    journal: Journal, heard: Heard, place: Place, outcome: Outcome, kept: list[str]
) -> None:
    """What is told of an order whose intent came to an unknown end is written once that is there, or never."""
    commits = Commits(journal, place)
    commits.plan, commits.unreadable = [outcome], 3
    asked = journal.write([intent("A"), trade("A")])
    assert "is not known yet" in refused(asked)
    fact = journal.write([trade("A"), note()], fact=True, of="A")
    other = journal.write([trade("B")], fact=True)

    assert len(done(fact)) == len(kept) // 2
    assert len(done(other)) == 1
    assert [event.data.order_id for event in heard.events if isinstance(event.data, TradeEvent)] == [*kept, "B"]
    assert len(journal.notes("trip", 9)) == len(kept) // 2
    with heard.hold(journal):  # the intent in the same commit counts, and one that is refused does not
        journal.write([intent("C"), trade("C")])
        together = journal.write([trade("C")], fact=True, of="C")
        bad = journal.write([intent("D"), replace(trade("D"), ts=TS.replace(tzinfo=None))])
        alone = journal.write([trade("D")], fact=True, of="D")
    assert (len(done(together)), done(alone)) == (1, ())
    assert "has no zone" in refused(bad)
    assert gapless(place) == len(heard.events)


def test_second_server_of_a_node_is_refused(
    journal: Journal, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who would write a node's journal while another does is told so, and the first one goes on."""
    monkeypatch.setattr(journal_module, "LOCK_SECONDS", 0.1)
    with pytest.raises(JournalError, match=r"another server writes the journal .* as the node main") as caught:
        make(place, Heard())

    assert "stop it, or give this one a `node` of its own" in str(caught.value)
    assert done(journal.write([update()]))[0].seq == 1
    journal.close()
    again = make(place, Heard())
    assert done(again.write([update()]))[0].seq == 2
    again.close()


def test_rows_of_another_writer_are_noticed(journal: Journal, heard: Heard, place: Place) -> None:
    """Where somebody has written in spite of the lock, the journal stops and says so: no number is given twice."""
    done(journal.write([update()]))
    columns = "node, ts, wall, type, body"
    place.forge(f"INSERT INTO events (seq, {columns}) SELECT 2, {columns} FROM events")  # noqa: S608

    assert "another server writes to it as the node main" in refused(journal.write([update()]))

    assert not journal.healthy
    assert "stop one of the two" in heard.health[0][1]
    assert len(place.query("SELECT seq FROM events")) == 2


# --- memory ---------------------------------------------------------------------------------------------------


def test_waiting_records_are_bounded(
    journal: Journal, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the room for all an intent fails at once; beyond that for facts a fact does, and is in the log."""
    monkeypatch.setattr(journal_module, "ROOM", 4)
    monkeypatch.setattr(journal_module, "FACT_ROOM", 6)
    with heard.hold(journal):
        kept = [journal.write([update(), update()]) for _ in range(2)]
        assert "is behind by 4 records; nothing was made durable" in refused(journal.write([update()]))
        kept.append(journal.write([update(), update()], fact=True))
        assert "is behind by 6 records" in refused(journal.write([fill("E7")], fact=True))

    assert [event.seq for future in kept for event in done(future)] == [2, 3, 4, 5, 6, 7]
    assert "lost for the journal" in caplog.text
    assert "E7" in caplog.text


# --- life -----------------------------------------------------------------------------------------------------


def test_close_writes_what_waits(journal: Journal, heard: Heard, place: Place) -> None:
    """Closing drains the queue; afterwards writes and reads say that the journal is not open."""
    with heard.hold(journal):
        futures = [journal.write([update()]) for _ in range(20)]
        closing_ = threading.Thread(target=journal.close)
        closing_.start()
    closing_.join(DEADLINE)

    assert [done(future)[0].seq for future in futures] == list(range(2, 22))
    assert gapless(place) == 21
    assert "is not open; nothing was made durable" in refused(journal.write([update()]))
    with pytest.raises(JournalError, match="is not open"):
        journal.last_ts()
    journal.close()


def test_close_gives_facts_a_last_try_and_names_what_is_lost(
    journal: Journal, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that fails to the end does not hang: its facts fail, and the log has them."""
    with place.locked():
        fact = journal.write([fill("E1")], fact=True)
        until(lambda: not journal.healthy)
        journal.close()

    assert place.busy in refused(fact)
    assert "lost for the journal" in caplog.text
    assert "E1" in caplog.text


def test_closed_journal_opens_again(journal: Journal) -> None:
    """After `close` the same object can be opened and goes on."""
    done(journal.write([update()]))
    journal.close()
    journal.open()

    assert done(journal.write([update()]))[0].seq == 2


WRITER = """
import sys
from sigma9_core.money.journal import Journal
sys.path.insert(0, sys.argv[2])
from test_journal import fill, intent, trade
from sigma9_core.models import OrderStatus
journal = Journal(sys.argv[1], "main", lambda events: None)
journal.open()
print("ready", journal.last_seq, flush=True)
number = journal.last_seq
while True:
    waiting = []
    for _ in range(7):
        number += 1
        ids = f"E{number}", f"O{number}"
        event = trade(ids[1], OrderStatus.FILLED, trade_id=ids[0])
        waiting.append(journal.write([intent(ids[1]), event, fill(*ids)], fact=number % 2 == 0))
    for future in waiting:
        print(future.result()[0].seq, flush=True)
"""


@pytest.mark.parametrize(
    "place",
    ["sqlite", pytest.param("postgresql", marks=[pytest.mark.postgres, pytest.mark.slow])],  # see test_postgres
    indirect=True,
)
def test_kill_9_leaves_whole_calls_without_a_gap(place: Place, heard: Heard) -> None:
    """After each of 6 kills in the middle of commits every answered call is there, whole, without a gap."""
    answered = 0
    for turn in range(6):
        arguments = [sys.executable, "-c", WRITER, place.url, str(Path(__file__).parent)]
        writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        word, start = writer.stdout.readline().split()
        assert word == "ready"
        assert int(start) >= answered
        answered = int(writer.stdout.readline())
        time.sleep(turn * 0.0031)  # not a wait for anything: it moves the kill about within a commit
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().splitlines(keepends=True)
        writer.stdout.close()
        writer.wait()
        answered = int(next((line for line in reversed(rest) if line.endswith("\n")), str(answered)))

    journal = make(place, heard)
    journal.check()
    assert journal.last_seq >= answered >= 6
    expected = [f"O{n}" for n in range(1, journal.last_seq + 1)]
    assert [found.fill.order_id for found in journal.fills()] == expected
    assert [found.order_id for found in journal.intents()] == expected
    assert gapless(place) == journal.last_seq
    journal.close()


# --- append-only ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["meta", "events", "orders", "fills", "commands", "notes"])
def test_rows_are_never_changed(journal: Journal, place: Place, table: str) -> None:
    """No program can change or delete a row by accident: the database itself refuses."""
    done(journal.write([trade(), intent(), fill(), command(), note()]))
    before = place.query(f"SELECT * FROM {table} ORDER BY 2")  # noqa: S608
    assert before
    statements = [f"UPDATE {table} SET node = 'x'", f"DELETE FROM {table}"]  # noqa: S608
    statements += [f"TRUNCATE {table}"] if place.kind == "postgresql" else []
    for statement in statements:
        with pytest.raises(Exception, match="the journal is append-only"):
            place.query(statement)
    assert place.query(f"SELECT * FROM {table} ORDER BY 2") == before  # noqa: S608


@sqlite_only
def test_writer_cannot_replace_a_row(journal: Journal) -> None:
    """On the journal's own connection even INSERT OR REPLACE does not change a row."""
    done(journal.write([trade()]))
    assert journal._connection is not None
    with pytest.raises(Exception, match="append-only"), journal._connection.begin():
        journal._connection.exec_driver_sql("INSERT OR REPLACE INTO events SELECT * FROM events")


# --- fills ----------------------------------------------------------------------------------------------------


def test_fill_is_there_once(place: Place, heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    """A fill that is handed over again, in one call, in one commit or after a restart, is ignored and reported."""
    told: list[Record] = [trade("O1", OrderStatus.FILLED, trade_id="E1"), fill("E1", "O1")]
    journal = make(place, heard)
    with heard.hold(journal):
        first, second = journal.write([*told, fill("E1", "O1")], fact=True), journal.write(told, fact=True)
    assert [event.seq for event in done(first)] == [2]
    assert done(second) == ()
    journal.close()
    journal = make(place, heard)
    assert done(journal.write([*told, note("reconciled")], fact=True)) == ()

    assert [found.fill.exec_id for found in journal.fills()] == ["E1"]
    assert len(journal.trades()["trades"]) == 1
    assert len(journal.notes("reconciled", 9)) == 1
    assert journal.duplicates == 1
    assert caplog.text.count("is in the journal already") == 3
    assert journal.healthy
    journal.close()


def test_same_execution_id_of_another_order_is_another_fill(journal: Journal) -> None:
    """Two orders may share an execution id; both fills are kept."""
    done(journal.write([fill("E1", "O1"), fill("E1", "O2")]))

    assert [found.fill.order_id for found in journal.fills()] == ["O1", "O2"]
    assert journal.duplicates == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    amounts=st.tuples(*[st.decimals(allow_nan=False, allow_infinity=False)] * 3),
    microseconds=st.integers(0, 10**15),
    strategy=st.none() | st.text(max_size=20).map(writable),
)
@sqlite_only
def test_fill_comes_back_to_the_last_digit(
    journal: Journal, amounts: tuple[Decimal, Decimal, Decimal], microseconds: int, strategy: str | None
) -> None:
    """Every decimal, time and text of a fill is read back as it was written."""
    number = sum(1 for _ in journal.fills())
    ts = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    record = FillRecord(Fill(f"X{number}", "", "BRK.B", "sell", *amounts, ts), strategy, "exit", recovered=True)
    done(journal.write([record], fact=True))

    found = list(journal.fills())[-1]
    assert found == record
    assert str(found.fill.price) == str(amounts[1])


# --- reading --------------------------------------------------------------------------------------------------


def test_events_are_read_in_pages(journal: Journal) -> None:
    """Pages follow each other without a gap, filtered or not; the last one says so."""
    for number in range(7):
        done(journal.write([trade(f"O{number}"), update()]))

    page = journal.events(0, 5)
    assert [json.loads(raw)["seq"] for raw in page.events] == [1, 2, 3, 4, 5]
    assert (page.next, page.first, page.last, page.journal_id) == (5, 1, 14, journal.journal_id)
    page = journal.events(5, 9)
    assert [json.loads(raw)["seq"] for raw in page.events] == list(range(6, 15))
    assert page.next is None
    page = journal.events(2, 3, frozenset(("trade_event",)))
    assert [json.loads(raw)["seq"] for raw in page.events] == [3, 5, 7]
    assert page.next == 7
    assert journal.events(14, 5).events == []
    assert journal.events(99, 5).last == 14
    assert journal.events(0, 5, frozenset()).events == []


def test_trades_are_fills_newest_first(journal: Journal) -> None:
    """A trade is a fill's event with its number and time; every other event is none."""
    later = TS + timedelta(hours=1)
    done(journal.write([trade("O1"), fill("E1", "O1"), trade("O1", OrderStatus.PARTIALLY_FILLED, trade_id="E1")]))
    done(journal.write([trade("O1", OrderStatus.CANCELLED), update()]))
    done(
        journal.write([trade("O2", OrderStatus.FILLED, trade_id="E2", symbol="MSFT", ts=later), fill("E2", "O2")])
    )

    answer = journal.trades()
    assert [(each["trade_id"], each["seq"], each["symbol"]) for each in answer["trades"]] == [
        ("E2", 5, "MSFT"),
        ("E1", 2, "AAPL"),
    ]
    assert answer["trades"][1]["ts"] == "2026-11-20T14:45:00.123456Z"
    assert set(answer["trades"][0]) == {*TradeEvent.model_fields, "seq", "ts"}
    assert answer["cursor"] is None
    assert [each["trade_id"] for each in journal.trades(symbol="AAPL")["trades"]] == ["E1"]
    assert [each["trade_id"] for each in journal.trades(since=later)["trades"]] == ["E2"]
    first = journal.trades(limit=1)
    assert [each["trade_id"] for each in first["trades"]] == ["E2"]
    second = journal.trades(limit=1, cursor=first["cursor"])
    assert [each["trade_id"] for each in second["trades"]] == ["E1"]
    assert second["cursor"] is None


AMOUNT = st.decimals(0, 10_000, places=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(parts=st.lists(st.tuples(st.integers(1, 500), st.decimals("0.01", 10_000, places=2), AMOUNT), min_size=1))
def test_a_trade_has_what_its_own_fill_did_and_cost(
    journal: Journal, parts: list[tuple[int, Decimal, Decimal]]
) -> None:
    """Quantities and commissions of an order's trades add up to the order's, however many fills it took."""
    order_id = f"P{sum(1 for _ in journal.fills())}"
    request = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(sum(quantity for quantity, *_ in parts)))
    order = Order(order_id, request, (), TS)
    for number, (quantity, price, commission) in enumerate(parts):
        execution = Fill(f"X{number}", order_id, "AAPL", "buy", Decimal(quantity), price, commission, TS)
        order.take("filled", fill=execution)
        told = EventRecord("trade_event", TradeEvent.of(order.view(), trade_id=execution.exec_id), TS)
        done(journal.write([FillRecord(execution, None, "api"), told]))

    trades = journal.trades(limit=len(parts))["trades"]
    own = [(trade["last_quantity"], trade["last_price"], trade["commission"]) for trade in reversed(trades)]
    assert own == [(quantity, float(price), float(commission)) for quantity, price, commission in parts]
    assert {trade["quantity"] for trade in trades} == {int(request.quantity)}


def test_what_the_exchange_took_back_is_no_trade(journal: Journal) -> None:
    """A busted execution is left out; one of another order that bears the same id stays."""
    for order_id in ("O1", "O2"):
        done(journal.write([fill("E1", order_id), trade(order_id, OrderStatus.FILLED, trade_id="E1")]))
    done(journal.write([note("bust", exec_id="E1", order_id="O1"), trade("O1", OrderStatus.BUSTED)]))

    assert [each["order_id"] for each in journal.trades()["trades"]] == ["O2"]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "²", "9" * 30, "1 OR 1=1"])
def test_strange_cursor_is_refused(journal: Journal, cursor: str) -> None:
    """A cursor that no answer gave is `invalid`, and names the field."""
    with pytest.raises(CommandError) as caught:
        journal.trades(cursor=cursor)

    assert caught.value.code == "invalid"
    assert caught.value.details == {"field": "cursor"}


def test_orders_that_have_not_ended(journal: Journal) -> None:
    """The newest event of each order that may still work is given; a late fill does not revive an ended order."""
    for order_id, *life in (
        ("O1", OrderStatus.SUBMITTED),
        ("O2", OrderStatus.SUBMITTED, OrderStatus.ACCEPTED),
        ("O3", OrderStatus.SUBMITTED, OrderStatus.CANCELLED),
        ("O4", OrderStatus.SUBMITTED, OrderStatus.CANCELLED, OrderStatus.PARTIALLY_FILLED),
        ("O5", OrderStatus.RISK_REJECTED),
        ("O6", OrderStatus.SUBMITTED, OrderStatus.UNKNOWN),
        ("O7", OrderStatus.SUBMITTED, OrderStatus.REPLACED),
    ):
        done(journal.write([trade(order_id, status) for status in life]))

    found = journal.last_order_events()
    assert {order_id: data.event for order_id, data in found.items()} == {
        "O1": "submitted",
        "O2": "accepted",
        "O6": "unknown",
        "O7": "replaced",
    }
    assert found["O1"] == trade("O1").data
    newest = journal.order("O4")
    assert newest is not None
    assert newest.event == "partially_filled"
    assert journal.order("O99") is None


def test_intents_come_back_as_they_were(journal: Journal) -> None:
    """An intent is read back with its request, verdicts and snapshot; an order's newest approved one counts."""
    plan = ExitPlan(trail_amount=Decimal("0.1234567890123456789012345"), time_stop_seconds=180)
    first = intent("O1", order_type="limit", limit_price=Decimal("187.25"), exit_plan=plan, signal={"score": 81.5})
    changed = intent("O1", order_type="limit", limit_price=Decimal("187.30"), ts=TS + timedelta(minutes=1))
    too_much = intent("O1", approved=False, ts=TS + timedelta(minutes=2))
    never = intent("O2", approved=False, ts=TS + timedelta(minutes=3))
    for record in (first, changed, too_much, never):
        done(journal.write([record]))

    assert list(journal.intents()) == [first, changed, too_much, never]
    assert list(journal.intents(TS + timedelta(minutes=2))) == [too_much, never]
    assert journal.intent("O1") == changed
    assert journal.intent("O2") == never
    assert journal.intent("O3") is None


def test_commands_of_one_key_newest_first(journal: Journal) -> None:
    """A command's rows are found by name and id since a time, newest first."""
    received, answered = command(), command("answered", ts=TS + timedelta(seconds=1))
    done(journal.write([received, command(id=None), command(id="K2")]))
    done(journal.write([answered]))

    assert journal.command("place_order", "K1", TS) == [answered, received]
    assert journal.command("place_order", "K1", TS + timedelta(seconds=1)) == [answered]
    assert journal.command("cancel_order", "K1", TS) == []
    assert journal.command("place_order", "K9", TS) == []


def test_notes_newest_first(journal: Journal) -> None:
    """The last notes of a kind are given, newest first."""
    for number in range(4):
        done(journal.write([note("day", n=number, equity=Decimal("100000.10")), note("trip", n=number)]))

    assert [found.body["n"] for found in journal.notes("day", 3)] == [3, 2, 1]
    assert journal.notes("day", 1) == [NoteRecord("day", TS, {"n": 3, "equity": "100000.10"})]
    assert journal.notes("other", 3) == []


def test_long_reads_go_page_by_page(journal: Journal) -> None:
    """More fills than one page holds are all given, in order, also while others are written."""
    for start in range(0, PAGE + 200, 300):
        done(journal.write([fill(f"E{start + n}", "O1") for n in range(300)]))
    reading = journal.fills()
    first = next(reading)
    done(journal.write([fill("later", "O1")]))

    assert [first.fill.exec_id, *(found.fill.exec_id for found in reading)] == [
        *(f"E{n}" for n in range(1200)),
        "later",
    ]


def test_events_of_an_order_or_a_symbol_are_found_from_either_end(journal: Journal) -> None:
    """The newest by default, page by page backwards; or the oldest after a number."""
    for number in range(1, 13):
        done(journal.write([trade(f"O{number % 2}", symbol=f"S{number % 3}")]))

    def found(**wanted: Any) -> tuple[list[int], int | None]:
        page = journal.find_events(3, **wanted)
        assert (page.first, page.last, page.journal_id) == (1, 12, journal.journal_id)
        return [json.loads(raw)["seq"] for raw in page.events], page.next

    assert found(order_id="O1") == ([7, 9, 11], 7)
    assert found(order_id="O1", before=7) == ([1, 3, 5], None)
    assert found(order_id="O1", after=0) == ([1, 3, 5], 5)
    assert found(symbol="S0") == ([6, 9, 12], 6)
    assert found(symbol="S0", order_id="O0", after=6) == ([12], None)
    assert found(types=frozenset({"watchlist_update"})) == ([], None)
    assert found(before=3) == ([1, 2], None)


def test_last_market_time(journal: Journal) -> None:
    """The newest event's market time is where a simulated market goes on."""
    done(journal.write([trade(ts=TS + timedelta(days=9))]))
    done(journal.write([trade(ts=TS)]))

    assert journal.last_ts() == TS


def test_trade_events_since_a_market_time(journal: Journal) -> None:
    """The trade events of the last while are given oldest first, over many pages, and none that is older."""
    old = [trade("old", ts=TS - timedelta(days=1))] * (PAGE + 10)
    new = [trade(f"O{n}", ts=TS + timedelta(seconds=n)) for n in range(PAGE + 200)]
    late = [trade("late", ts=TS - timedelta(seconds=1)), trade("last", ts=TS)]
    done(journal.write([*old, *new, *late]))

    found = journal.trade_events(TS)
    assert [event.order_id for event, _ in found] == [*(f"O{n}" for n in range(PAGE + 200)), "last"]
    assert [ts for _, ts in found[:2]] == [TS, TS + timedelta(seconds=1)]
    assert journal.trade_events(TS + timedelta(days=1)) == []


# --- nodes ----------------------------------------------------------------------------------------------------


def test_nodes_share_a_database(place: Place) -> None:
    """Two nodes in one database have numbers, ids, fills and orders of their own, also when both write at once."""
    ears = Heard(), Heard()
    nodes = make(place, ears[0], "main"), make(place, ears[1], "second")

    def work(journal: Journal) -> None:
        for number in range(20):
            done(journal.write([trade(f"O{number}"), fill(f"E{number}", f"O{number}"), note()]))

    threads = [threading.Thread(target=work, args=(journal,)) for journal in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert nodes[0].journal_id != nodes[1].journal_id
    for journal, heard in zip(nodes, ears, strict=True):
        assert gapless(place, journal.node) == 20
        assert [event.seq for event in heard.events] == list(range(1, 21))
        assert len(list(journal.fills())) == 20
        assert len(journal.last_order_events()) == 20
        assert journal.events(0, 99).journal_id == journal.journal_id
        assert json.loads(journal.events(0, 1).events[0])["node"] == journal.node
        assert journal.healthy
        journal.close()


# --- what a start finds ---------------------------------------------------------------------------------------


@sqlite_only
def test_restored_copy_gets_a_new_id(
    place: Place, path: Path, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that was put back to an earlier time has a new id, because its numbers are given once more."""
    journal = make(place, heard)
    done(journal.write([update()] * 3))
    old = journal.journal_id
    journal.close()
    shutil.copy(path, path.with_name("copy"))
    journal.open()
    done(journal.write([update()] * 2))
    journal.close()
    shutil.copy(path.with_name("copy"), path)

    journal.open()
    assert journal.journal_id != old
    assert journal.last_seq == 3
    assert "was put back from event 5 to 3" in caplog.text
    new = journal.journal_id
    assert done(journal.write([update()]))[0].seq == 4
    journal.close()
    journal.open()
    assert journal.journal_id == new
    journal.close()


@sqlite_only
@pytest.mark.parametrize("mark", [b"", b"rubbish", b"\xff\xff 12\n"])
def test_unreadable_mark_is_no_restore(place: Place, path: Path, heard: Heard, mark: bytes) -> None:
    """A damaged mark beside the journal changes nothing."""
    journal = make(place, heard)
    done(journal.write([update()]))
    known = journal.journal_id
    journal.close()
    path.with_name("sigma9.db.main.head").write_bytes(mark)

    journal.open()
    assert journal.journal_id == known
    journal.close()


@sqlite_only
def test_a_mark_is_written_again_once_it_can_be(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that was full for a moment is warned of once, and costs no more than that moment."""

    def full(_descriptor: int, _data: bytes, _at: int) -> int:
        raise OSError(28, "No space left on device")

    mark = path.with_name("sigma9.db.main.head")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        for _ in range(3):
            done(journal.write([update()]))
    assert read_mark(mark) == Mark(journal.journal_id, 0, 3, "", read_mark(mark).row_hash)  # type: ignore[union-attr]
    done(journal.write([update(), note()]))

    found = read_mark(mark)
    assert found is not None
    assert (found.seq, found.n) == (4, 4)
    assert caplog.text.count("can't be written") == 1
    assert caplog.text.count("can be written again") == 1


@sqlite_only
def test_a_mark_that_cant_be_locked_is_refused(place: Place, path: Path, heard: Heard) -> None:
    """Without the lock a second server would not be noticed, so there is no start."""
    path.parent.mkdir(parents=True)
    path.with_name("sigma9.db.main.head").mkdir()
    with pytest.raises(JournalError, match=r"mark .* can't be opened and locked .*a second server"):
        make(place, heard)


@sqlite_only
def test_new_file_beside_an_old_mark_is_a_new_journal(place: Place, path: Path, heard: Heard) -> None:
    """Where the file was moved away a new journal begins at 1, with an id of its own."""
    journal = make(place, heard)
    done(journal.write([update()]))
    known = journal.journal_id
    journal.close()
    path.unlink()

    journal.open()
    assert journal.journal_id != known
    assert journal.last_seq == 0
    journal.close()


@sqlite_only
def test_file_that_is_no_database_is_refused(place: Place, path: Path, heard: Heard) -> None:
    """A file of rubbish is named in one sentence, and left as it is."""
    path.parent.mkdir()
    path.write_bytes(b"rubbish" * 1000)

    with pytest.raises(JournalError, match=r"sigma9\.db can't be used \(file is not a database\): restore a copy"):
        make(place, heard)
    assert path.read_bytes() == b"rubbish" * 1000


@sqlite_only
def test_damaged_page_is_refused(place: Place, path: Path, heard: Heard) -> None:
    """A file with a damaged page is refused at the start, before anything is written to it."""
    journal = make(place, heard)
    done(journal.write([update("x" * 3000)] * 60))
    journal.close()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 4096] = b"\xa5" * 4096
    path.write_bytes(raw)

    with pytest.raises(
        JournalError, match=r"sigma9\.db (is damaged|can't be used) \(.*restore a copy of it, or move"
    ):
        make(place, heard)


def test_missing_events_are_refused(place: Place, heard: Heard) -> None:
    """A journal in which numbers are missing is refused, and says how many."""
    journal = make(place, heard)
    done(journal.write([update()] * 9))
    journal.close()
    place.forge("DELETE FROM events WHERE seq IN (3, 4)")

    with pytest.raises(JournalError, match="2 of the events 1 to 9 are missing"):
        make(place, heard)


def test_journal_of_a_newer_version_is_refused(place: Place, heard: Heard) -> None:
    """Tables of a newer Sigma9 are not written to."""
    make(place, heard).close()
    place.forge("INSERT INTO meta (node, n, wall, key, value) VALUES ('other', 99, '', 'schema', '7')")

    with pytest.raises(JournalError, match=r"newer Sigma9 \(tables 7, this one knows 2\)"):
        make(place, heard)


@sqlite_only
def test_locked_journal_is_refused(
    place: Place, path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that can't get the lock says who is in the way."""
    make(place, heard).close()
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.05)

    with (
        place.locked(),
        pytest.raises(JournalError, match=r"\(database is locked\): try again when the other program"),
    ):
        make(place, heard)


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path, heard: Heard) -> None:
    """Where the folder can't be made the sentence says so."""
    (tmp_path / "data").write_text("a file")

    with pytest.raises(JournalError, match=r"can't be opened \((File exists|Not a directory)\)"):
        make(FilePlace(tmp_path / "data" / "sigma9.db"), heard)


@sqlite_only
def test_open_narrows_the_mode(place: Place, path: Path, heard: Heard) -> None:
    """A journal that others could read is closed to them at the start."""
    make(place, heard).close()
    path.chmod(0o644)
    make(place, heard).close()

    assert path.stat().st_mode & 0o777 == 0o600


def test_memory_is_no_journal(heard: Heard) -> None:
    """A database in memory is refused: nothing in it is durable."""
    with pytest.raises(JournalError, match="can't be kept in memory"):
        Journal("sqlite://", "main", heard.on_events).open()


# --- reading without writing ----------------------------------------------------------------------------------


def test_history_reads_beside_the_writer(journal: Journal, place: Place) -> None:
    """The command line may read a journal that a server writes, and changes nothing in it."""
    done(journal.write([trade(), fill()]))
    history = History(place.url, "main")
    history.open()

    assert len(list(history.fills())) == 1
    done(journal.write([trade("O2")]))
    assert history.events(0, 9).last == 2
    history.check()
    assert history._readers is not None
    with history._readers.connect() as connection, pytest.raises(Exception, match=r"read-?only"):
        connection.exec_driver_sql("INSERT INTO meta (node, n, wall, key, value) VALUES ('x', 1, '', '', '')")
    history.close()
    assert journal.healthy


def test_history_of_no_journal_makes_none(place: Place) -> None:
    """Reading where there is no journal says so, and makes none."""
    with pytest.raises(JournalError, match="there is no journal at"):
        History(place.url, "main").open()
    if isinstance(place, FilePlace):
        assert not place.path.exists()
    else:
        assert place.query("SELECT 1 FROM pg_class WHERE relname = 'events' AND pg_table_is_visible(oid)") == []


# --- addresses ------------------------------------------------------------------------------------------------


def test_address_comes_from_the_configuration(tmp_path: Path, heard: Heard) -> None:
    """The file, or the address, that the configuration names is used; its password is never shown."""
    strange = tmp_path / "a b?c#d%20e" / "sigma9.db"
    journal = Journal(journal_url(DatabaseSettings(path=strange)), "main", heard.on_events)
    journal.open()
    journal.close()
    assert strange.is_file()

    fleet = "postgresql+psycopg://sigma9:secret@db/fleet"
    assert journal_url(DatabaseSettings(type="postgresql", url=SecretStr(fleet))) == fleet
    assert "secret" not in History(fleet, "main").where
    with pytest.raises(JournalError, match=r"database\.url"):
        journal_url(DatabaseSettings(type="postgresql"))

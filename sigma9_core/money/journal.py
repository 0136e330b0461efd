"""The journal: what happened, in order, durable before anybody hears of it.

    write(records) → waiting → one writer thread → one commit for all that waits → on_events → futures

What one call hands over is durable together or not at all. An intent or an answer (`fact=False`) that can't be
made durable fails at once, and then nothing of it is there, unless the error says that its outcome is `unknown`:
the commit may have gone through, and its events are told once that is read back. A fact (`fact=True`: a fill, an
event about what has already happened) waits in memory, in order, and is tried again until it goes through; one
`of` an order whose intent may have failed is left out where the journal does not have that. While the journal
fails it keeps one note of its own among the facts, so it comes back by itself as soon as the disk does, whether
or not anybody writes.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, Table, insert, select
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    IntegrityError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)

from sigma9_core.clock import monotonic, rfc3339, wall_now
from sigma9_core.config import DatabaseSettings
from sigma9_core.errors import JournalError
from sigma9_core.events import DURABLE, Event, TradeEvent, encode
from sigma9_core.models import Fill, writable
from sigma9_core.money import rows
from sigma9_core.money.chain import linked
from sigma9_core.money.highwater import HighWater, Mark
from sigma9_core.money.history import History
from sigma9_core.money.integrity import (
    COVERED,
    NOTE,
    PUT_BACK,
    UNGUARDED,
    Head,
    cause_of,
    departure,
    head_of,
    unreadable,
    value_of,
    verify,
)
from sigma9_core.money.postgres import LOCK_SECONDS, give_up_writer, take_writer
from sigma9_core.money.records import CommandRecord, EventRecord, FillRecord, IntentRecord, NoteRecord, Record
from sigma9_core.money.tables import (
    COMMANDS,
    EVENTS,
    FILLS,
    HASH,
    META,
    NOTES,
    ORDERS,
    SCHEMA,
    Inserts,
    adapt,
    create,
    prepare,
)
from sigma9_core.money.wakes import Wakes

log = logging.getLogger("sigma9.journal")

GROUP_RECORDS: Final = 500
"""One commit takes whatever waits, up to about this many records."""
ROOM: Final = 5_000
"""Records that may wait; beyond it a write that is not a fact fails at once."""
FACT_ROOM: Final = 50_000
"""Records that may wait, facts included; beyond it a fact fails too: the broker has it and is read back."""
FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 2.0
"""Seconds between two tries of a journal that fails; the wait doubles."""

Events = tuple[Event, ...]
OnEvents = Callable[[Sequence[Event]], None]
OnHealth = Callable[[bool, str], None]


def journal_url(settings: DatabaseSettings) -> str:
    """Give the address of the journal that the configuration names."""
    if settings.url is not None:
        return settings.url.get_secret_value()
    if settings.type != "sqlite":
        raise JournalError(f"database.type is {settings.type}: say where it is in database.url")
    return URL.create("sqlite", database=str(settings.path)).render_as_string(hide_password=False)


@dataclass(slots=True, eq=False)
class _Batch:
    """What one call of `write` handed over."""

    records: tuple[Record, ...]
    fact: bool
    future: Future[Events]
    of: str | None = None
    """The order without whose intent it is not to be there."""


@dataclass(slots=True, eq=False)
class _Plan:
    """A group of batches with everything numbered, as one transaction writes it."""

    head: Head
    wall: str
    batches: list[tuple[_Batch, Events]] = field(default_factory=list)
    rows: dict[Table, list[rows.Row]] = field(default_factory=dict)
    executions: set[tuple[str, str]] = field(default_factory=set)
    """Fills that are there already, this plan's included."""
    intended: set[str] = field(default_factory=set)
    """Orders of this plan's `of` whose intents are there already, and every order of its own intents."""
    doubles: list[Fill] = field(default_factory=list)
    """Fills that were handed over once more."""


class Journal(History):
    """Writes a node's journal, and reads it as every `History` does."""

    def __init__(
        self,
        url: str,
        node: str,
        on_events: OnEvents,
        *,
        on_health: OnHealth | None = None,
        marks: Path | None = None,
    ) -> None:
        """Store; `marks` is the folder of the high-water mark where a database server keeps the journal."""
        super().__init__(url, node)
        self.journal_id = ""
        self.duplicates = 0
        """Fills that were handed over a second time, and ignored."""
        self._on_events = on_events
        self._on_health = on_health
        self._marks = marks
        self._mark = HighWater(None)
        self._wakes = Wakes()
        self._engine: Engine | None = None
        self._inserts: Inserts | None = None
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._head = Head()
        self._doubt: _Plan | None = None
        """A plan whose commit failed in a way that leaves its outcome open."""
        # What follows belongs to whoever holds the lock.
        self._changed = threading.Condition()
        self._waiting: deque[_Batch] = deque()
        self._waiting_records = 0
        self._closing = True
        self._failure: str | None = None
        self._lost = False
        """An execution was refused for what is in it: what the journal's fills make is not what the broker has."""
        self._pause = FIRST_WAIT
        self._retry_at = 0.0

    @property
    def healthy(self) -> bool:
        """Tell whether the last commit went through, and no execution was lost since the start."""
        return self._failure is None and not self._lost

    @property
    def writes(self) -> bool:
        """Tell whether the last commit went through."""
        return self._failure is None

    @property
    def last_seq(self) -> int:
        """Give the number of the newest durable event."""
        return self._head.seq

    # --- life -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make or check the tables, read where the journal stands, start the writer (blocks: disk).

        Raise JournalError where the file is damaged, of a newer version, locked, or can't be made.
        """
        try:
            self._claim()
            self._engine = adapt(self._url, writer=self.node)
            self._inserts = Inserts(self._engine)
            self._connection = self._session(LOCK_SECONDS)
            with self._connection.begin():
                gone = create(self._connection)
                verify(self._connection, self.node, self.where, full=False)
                self._begin(self._connection, gone)
            self._note_mark()
            self._readers = adapt(self._url, writer=None)
        except JournalError:
            self._let_go()
            raise
        except SQLAlchemyError as error:
            self._let_go()
            raise unreadable(self.where, error) from error
        except OSError as error:
            self._let_go()
            raise JournalError(
                f"the journal {self.where} can't be opened ({error.strerror}): see that its folder may be written"
            ) from error
        self._closing, self._failure, self._lost, self._pause = False, None, False, FIRST_WAIT
        self._thread = threading.Thread(target=self._run, name="sigma9-journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, end the writer and let go of the files (blocks: disk).

        Facts that can't be written even now fail with JournalError and are named in the log.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._let_go()

    def _claim(self) -> None:
        """Make the file where it is one, and be the only one on this machine who writes it as this node."""
        prepare(self._url)
        self._mark = HighWater(self.mark(self._marks))
        if not self._mark.claim():
            raise JournalError(
                f"another server writes the journal {self.where} as the node {self.node}: "
                "stop it, or give this one a `node` of its own"
            )

    def _begin(self, connection: Connection, gone: Sequence[str]) -> None:
        """Read where the journal stands; give a new or a restored one a new id.

        What a person must know of, now and later, is written down: `gone` is what had kept the tables append-only.
        """
        self._head = head = head_of(connection, self.node)
        mark = self._mark.read()
        known = value_of(connection, self.node, "journal_id")
        facts: dict[str, str] = {}
        doubts: list[dict[str, Any]] = []
        if known is None or value_of(connection, self.node, COVERED) is None:
            facts = {"schema": str(SCHEMA), COVERED: f"{head.seq} {head.n}"}
        elif gone:
            log.error("the journal %s: %s", self.where, "; ".join(gone))
            doubts.append({"state": UNGUARDED, "what": [*gone]})
        departed = None
        if known is not None and mark is not None and mark.journal_id == known:
            departed = departure(connection, self.node, mark, head)
        if departed is not None and mark is not None:
            log.error(
                "the journal %s was put back from event %d to %d, or changed (%s): it gets a new journal_id; "
                "`sigma9 journal verify` disagrees until a person has acknowledged it",
                self.where,
                mark.seq,
                head.seq,
                departed,
            )
            put_back = {"from": mark.seq, "to": head.seq, "from_row": mark.n, "to_row": head.n}
            doubts.append({"state": PUT_BACK, "what": departed, **put_back, "journal_id": known})
        if known is None or departed is not None:
            facts["journal_id"] = known = uuid.uuid4().hex
        for key, value in facts.items():
            self._append(connection, META, {"key": key, "value": value})
        for doubt in doubts:
            self._append(connection, NOTES, rows.note_row(NoteRecord(NOTE, wall_now(), doubt)))
        self.journal_id = known or ""

    def _append(self, connection: Connection, table: Table, row: rows.Row) -> None:
        """Write a row of the journal's own, before the writer runs."""
        n = self._head.n + 1
        row |= {"node": self.node, "n": n, "wall": rfc3339(wall_now())}
        row[HASH] = linked(self._head.row_hash, table.name, row)
        connection.execute(insert(table), row)
        self._head = self._head._replace(n=n, row_hash=row[HASH])

    def _note_mark(self) -> None:
        self._mark.note(Mark(self.journal_id, *self._head))

    def _let_go(self) -> None:
        super().close()
        if self._connection is not None and self._connection.dialect.name != "sqlite":
            try:
                give_up_writer(self._connection)
            except SQLAlchemyError as error:
                log.debug("the journal's session ended before its lock was given up: %s", cause_of(error))
        self._disconnect()
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        self._mark.close()

    # --- writing, from any thread ---------------------------------------------------------------------------

    def write(self, records: Sequence[Record], *, fact: bool = False, of: str | None = None) -> Future[Events]:
        """Hand over records that belong together; the future gives their events once they are durable.

        It fails with JournalError where they are not and won't be, or where that is not known (`unknown`); it
        can't be cancelled. No records: the future is done when all that was handed over before is durable. The
        records must not change any more. Those `of` an order are left out, and give no events, where its intent
        is not in the journal when their turn comes.
        """
        future: Future[Events] = Future()
        future.set_running_or_notify_cancel()
        batch = _Batch(tuple(records), fact, future, of)
        with self._changed:
            refusal = self._refusal(batch)
            if refusal is None:
                self._waiting.append(batch)
                self._waiting_records += len(batch.records)
                self._changed.notify()
        if refusal is not None:
            _fail([batch], refusal)
        return future

    async def commit(self, records: Sequence[Record], *, fact: bool = False) -> Events:
        """Hand over records and wait, on any loop, until they are durable; the rest is as in `write`."""
        return await self._wakes.wait(self.write(records, fact=fact))

    def _refusal(self, batch: _Batch) -> str | None:
        if self._closing:
            return f"the journal {self.where} is not open; nothing was made durable"
        if self._failure is not None and not batch.fact:
            return self._failure
        room = FACT_ROOM if batch.fact else ROOM
        if self._waiting_records + len(batch.records) > room:
            return (
                f"the journal {self.where} is behind by {self._waiting_records} records; nothing was made durable"
            )
        return None

    # --- the writer thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while group := self._take():
            try:
                self._commit(group)
            finally:
                self._wakes.flush()

    def _take(self) -> list[_Batch]:
        """Wait for work and take as much as one commit should have; nothing at the end."""
        with self._changed:
            while not self._closing:
                pause = None if self._failure is None else self._retry_at - monotonic()
                if self._waiting and (pause is None or pause <= 0):
                    break
                self._changed.wait(pause if self._waiting else None)
            group: list[_Batch] = []
            size = 0
            while self._waiting and (not group or size + len(self._waiting[0].records) <= GROUP_RECORDS):
                batch = self._waiting.popleft()
                size += len(batch.records)
                group.append(batch)
            self._waiting_records -= size
        return group

    def _commit(self, group: list[_Batch]) -> None:
        """Write a group as one transaction; where the database won't take one of its batches, each by itself."""
        error = self._attempt(group)
        if error is None:
            return
        if not _is_own(error):
            self._fall_back(group, error)
            return
        for index, batch in enumerate(group):
            if len(group) > 1:
                error = self._attempt([batch])
            if error is None:
                continue
            if not _is_own(error):
                self._fall_back(group[index:], error)
                return
            self._refuse(batch, error)

    def _attempt(self, group: Sequence[_Batch]) -> Exception | None:
        """Write batches as one transaction and publish them; give what went wrong, then nothing of it is there."""
        try:
            if self._doubt is not None:
                self._settle_doubt()
            plan = self._store([batch for batch in group if not batch.future.done()])
        except Exception as error:  # noqa: BLE001 - the writer must outlive whatever a record or a database does
            standing = self._look_again(error)
            left = [batch for batch in group if not batch.future.done()]
            # An earlier commit has turned out to be there; what was not part of it has still to be written.
            return self._attempt(left) if standing is None and left else standing
        self._publish(plan)
        return None

    def _store(self, group: Sequence[_Batch]) -> _Plan:
        connection, inserts = self._connect()
        transaction = connection.begin()
        plan = self._plan(group, self._known(connection, group), self._intended(connection, group))
        for table, lines in plan.rows.items():
            inserts.run(connection, table, lines)
        self._doubt = plan
        transaction.commit()
        self._doubt = None
        return plan

    def _look_again(self, error: Exception) -> Exception | None:
        """See what a failed transaction left behind; give the error that stands, None where it went through."""
        self._roll_back()
        try:
            if self._doubt is not None and self._settle_doubt():
                return None
            if isinstance(error, IntegrityError) and self._read_head() != self._head:
                return self._intruder()
        except JournalError as again:
            log.debug("%s", again)
        return error

    def _settle_doubt(self) -> bool:
        """Read back whether a commit of unknown outcome went through; publish it if it did."""
        head = self._read_head()
        plan, self._doubt = self._doubt, None
        if plan is None or head == self._head:
            return False
        if head != plan.head:
            raise self._intruder()
        self._publish(plan)
        return True

    def _read_head(self) -> Head:
        """Read where the journal stands, once no session of ours is at work in it any more.

        A server may still be committing for a session that was lost; but such a session holds the writer's lock.
        """
        if self._engine is not None and self._engine.dialect.name != "sqlite":
            try:
                connection, _ = self._connect()
                looking = connection.begin()
                head = head_of(connection, self.node)
                looking.rollback()
            except SQLAlchemyError as error:
                self._disconnect()
                raise unreadable(self.where, error) from error
            return head
        with self._read() as connection:
            return head_of(connection, self.node)

    def _intruder(self) -> JournalError:
        return JournalError(f"another server writes to it as the node {self.node}: stop one of the two")

    def _plan(self, group: Iterable[_Batch], executions: set[tuple[str, str]], intended: set[str]) -> _Plan:
        """Number and encode a group; a batch that can't be encoded is refused by itself."""
        plan = _Plan(self._head, rfc3339(wall_now()), executions=executions, intended=intended)
        for batch in group:
            if batch.of is not None and batch.of not in plan.intended:
                log.info("left out, because the intent of order %s was never written: %s", batch.of, batch.records)
                plan.batches.append((batch, ()))
                continue
            try:
                self._add(plan, batch)
            except Exception as error:  # noqa: BLE001 - a record may hold whatever a plugin put into it
                self._refuse(batch, error)
        return plan

    def _add(self, plan: _Plan, batch: _Batch) -> None:
        seq, n, event_hash, row_hash = plan.head
        lines: list[tuple[Table, rows.Row]] = []
        events: list[Event] = []
        told = {
            (record.fill.exec_id, record.fill.order_id)
            for record in batch.records
            if isinstance(record, FillRecord)
        }
        doubled = told & plan.executions
        fresh: set[tuple[str, str]] = set()
        doubles: list[Fill] = []
        for record in batch.records:
            if isinstance(record, EventRecord):
                data = record.data
                if doubled and isinstance(data, TradeEvent) and (data.trade_id, data.order_id) in doubled:
                    continue
                if record.kind not in DURABLE:
                    raise ValueError(f"{record.kind} events are not kept: post them on the bus")
                seq += 1
                raw = encode(record.kind, data, seq=seq, ts=record.ts, node=self.node)
                events.append(Event(record.kind, seq, record.ts, data, raw))
                lines.append((EVENTS, rows.event_row(record, events[-1])))
                continue
            if isinstance(record, FillRecord):
                key = (record.fill.exec_id, record.fill.order_id)
                if key in doubled or key in fresh:
                    doubles.append(record.fill)
                    continue
                fresh.add(key)
            n += 1
            table, row = _row(record)
            row["n"] = n
            lines.append((table, row))
        for table, row in lines:
            row["node"] = self.node
            if table is not COMMANDS:
                row["wall"] = plan.wall
            for name, value in row.items():
                if isinstance(value, str):
                    row[name] = writable(value)
            if table is EVENTS:
                row[HASH] = event_hash = linked(event_hash, table.name, row)
            else:
                row[HASH] = row_hash = linked(row_hash, table.name, row)
        for table, row in lines:
            plan.rows.setdefault(table, []).append(row)
        plan.executions |= fresh
        plan.intended.update(record.order_id for record in batch.records if isinstance(record, IntentRecord))
        plan.doubles += doubles
        plan.batches.append((batch, tuple(events)))
        plan.head = Head(seq, n, event_hash, row_hash)

    def _known(self, connection: Connection, group: Iterable[_Batch]) -> set[tuple[str, str]]:
        """Find which of a group's fills the journal has already."""
        told = sorted({r.fill.exec_id for batch in group for r in batch.records if isinstance(r, FillRecord)})
        known: set[tuple[str, str]] = set()
        for start in range(0, len(told), GROUP_RECORDS):
            query = select(FILLS.c.exec_id, FILLS.c.order_id).where(
                FILLS.c.node == self.node, FILLS.c.exec_id.in_(told[start : start + GROUP_RECORDS])
            )
            known.update((row.exec_id, row.order_id) for row in connection.execute(query))
        return known

    def _intended(self, connection: Connection, group: Iterable[_Batch]) -> set[str]:
        """Find which of the orders that a group's batches are `of` have an intent in the journal."""
        asked = sorted({batch.of for batch in group if batch.of is not None})
        known: set[str] = set()
        for start in range(0, len(asked), GROUP_RECORDS):
            query = select(ORDERS.c.order_id).where(
                ORDERS.c.node == self.node, ORDERS.c.order_id.in_(asked[start : start + GROUP_RECORDS])
            )
            known.update(connection.execute(query).scalars())
        return known

    def _publish(self, plan: _Plan) -> None:
        """Tell what is durable: the events first and in order, then those who wait."""
        self._head = plan.head
        for double in plan.doubles:
            self.duplicates += 1
            log.warning(
                "the fill %s of order %s is in the journal already: the second one is ignored",
                double.exec_id,
                double.order_id,
            )
        events = [event for _, events in plan.batches for event in events]
        if plan.rows:
            self._note_mark()
        if events:
            self._tell(self._on_events, events)
        with self._changed:
            recovered = self._failure is not None
            self._failure, self._pause = None, FIRST_WAIT
        if recovered:
            log.warning("the journal %s works again", self.where)
            self._tell(self._on_health, True, f"the journal {self.where} works again")
        for batch, mine in plan.batches:
            if not batch.future.done():
                batch.future.set_result(mine)

    # --- when it does not go through ------------------------------------------------------------------------

    def _fall_back(self, group: Sequence[_Batch], error: Exception) -> None:
        """Put the facts of a group back to where they stood, fail all else that waits, and try again later."""
        doubtful = {batch for batch, _ in self._doubt.batches} if self._doubt is not None else set()
        with self._changed:
            fault = f"the journal {self.where} can't be written ({cause_of(error)})"
            again = "it goes on by itself once it can"
            unknown = f"{fault}; whether this was made durable is not known yet; {again}"
            nothing = f"{fault}; nothing was made durable; {again}"
            reason = unknown if doubtful else nothing
            began = self._failure is None
            self._failure = nothing
            self._retry_at = monotonic() + self._pause
            self._pause = min(self._pause * 2, LONGEST_WAIT)
            waiting = [batch for batch in (*group, *self._waiting) if not batch.future.done()]
            kept = [] if self._closing else [batch for batch in waiting if batch.fact]
            lost = [batch for batch in waiting if self._closing or not batch.fact]
            if began and not self._closing:
                kept.append(self._own_note(reason))
            self._waiting = deque(kept)
            self._waiting_records = sum(len(batch.records) for batch in kept)
        if began:
            log.critical("%s", reason)
            self._tell(self._on_health, False, reason)
        _fail([batch for batch in lost if batch in doubtful], unknown, unknown=True)
        _fail([batch for batch in lost if batch not in doubtful], nothing)

    def _refuse(self, batch: _Batch, error: Exception) -> None:
        """Fail what no journal can take; that an execution was lost so is told until the next start."""
        cause = cause_of(error)
        fills = [record.fill for record in batch.records if isinstance(record, FillRecord)]
        if fills:
            self._lost = True
            named = ", ".join(f"{fill.exec_id} of order {fill.order_id} in {fill.symbol}" for fill in fills)
            reason = (
                f"the journal {self.where} can't take an execution ({named}: {cause}): what its fills make is not "
                "what the broker has; settle it at the broker, and start the server again"
            )
            log.critical("%s", reason)
            self._tell(self._on_health, False, reason)
        kinds = ", ".join(sorted({type(record).__name__ for record in batch.records}))
        _fail([batch], f"the journal {self.where} can't take this record ({kinds}: {cause})", error)

    def _own_note(self, reason: str) -> _Batch:
        """Make the fact that brings a failing journal back by itself, and leaves a trail of it."""
        future: Future[Events] = Future()
        note = NoteRecord(NOTE, wall_now(), {"state": "failing", "reason": reason})
        return _Batch((note,), True, future)

    def _tell(self, listener: Callable[..., None] | None, *args: object) -> None:
        if listener is None:
            return
        try:
            listener(*args)
        except Exception:
            # What is durable stays so, and the writer must go on.
            log.exception("a listener of the journal %s failed", self.where)

    # --- the connection -------------------------------------------------------------------------------------

    def _connect(self) -> tuple[Connection, Inserts]:
        """Give the writer's session, a new one where the old one is lost."""
        if self._engine is None or self._inserts is None:
            raise JournalError(f"the journal {self.where} is not open")
        if self._connection is None:
            connection = self._session(0)
            try:
                looking = connection.begin()
                # Whoever wrote meanwhile has given numbers that we would give again.
                moved = self._doubt is None and head_of(connection, self.node) != self._head
                looking.rollback()
            except SQLAlchemyError:
                connection.close()
                raise
            if moved:
                connection.close()
                raise self._intruder()
            self._connection = connection
        return self._connection, self._inserts

    def _session(self, patience: float) -> Connection:
        """Open the one session that writes as this node."""
        if self._engine is None:
            raise JournalError(f"the journal {self.where} is not open")
        connection = self._engine.connect()
        if connection.dialect.name == "sqlite":
            return connection
        try:
            take_writer(connection, self.node, self.where, patience=patience)
            connection.rollback()  # the lock belongs to the session and stays
        except (SQLAlchemyError, JournalError):
            connection.close()
            raise
        return connection

    def _roll_back(self) -> None:
        """Undo whatever is open; a sound session to a server is kept, because the writer's lock hangs on it."""
        connection = self._connection
        if connection is not None and connection.dialect.name != "sqlite" and self._doubt is None:
            try:
                connection.rollback()
            except SQLAlchemyError as error:
                log.debug("the journal's session is lost: %s", cause_of(error))
            else:
                if not connection.invalidated:
                    return
        self._disconnect()

    def _disconnect(self) -> None:
        """Close the connection, and with it whatever transaction is open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError as error:
                log.debug("the journal's connection did not close in order: %s", cause_of(error))


def _row(record: IntentRecord | FillRecord | CommandRecord | NoteRecord) -> tuple[Table, rows.Row]:
    match record:
        case IntentRecord():
            return ORDERS, rows.intent_row(record)
        case FillRecord():
            return FILLS, rows.fill_row(record)
        case CommandRecord():
            return COMMANDS, rows.command_row(record)
        case NoteRecord():
            return NOTES, rows.note_row(record)


def _fail(
    batches: Iterable[_Batch], reason: str, error: Exception | None = None, *, unknown: bool = False
) -> None:
    """Fail the futures; a fact that is lost is told in the log too, because nobody may be waiting for it."""
    for batch in batches:
        if batch.fact:
            log.critical("lost for the journal: %s: %s", batch.records, reason)
        failure = JournalError(reason, unknown=unknown)
        failure.__cause__ = error
        batch.future.set_exception(failure)


def _is_own(error: Exception) -> bool:
    """Tell whether a record is at fault, and not the database or its disk."""
    if isinstance(error, JournalError | OSError | MemoryError | OperationalError | InternalError):
        return False
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return False
        state = getattr(error.orig, "sqlstate", None)
        if state is not None:  # PostgreSQL: what a row has in it, and what the tables' constraints say of it
            return str(state)[:2] in ("22", "23")
    return type(error) is not DatabaseError  # the bare one: the file is damaged

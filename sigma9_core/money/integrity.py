"""Whether a journal is sound, where it stands, and the one sentence that says so where it is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, func, select
from sqlalchemy.exc import SQLAlchemyError

from sigma9_core.errors import JournalError
from sigma9_core.money.chain import BEGIN
from sigma9_core.money.highwater import Mark
from sigma9_core.money.tables import EVENTS, META, NUMBERED, SCHEMA, fault_of, size_of

QUICK_BYTES: Final = 64 * 1024 * 1024
"""A file up to this size is read whole at each start (0.1 s here); a larger one by `check` alone."""
QUICK_EVENTS: Final = 10_000
"""The newest events whose numbers are looked over at each start."""
NOTE: Final = "journal"
"""The kind of note that the journal makes of itself."""
PUT_BACK: Final = "put_back"
UNGUARDED: Final = "unguarded"
ACKNOWLEDGED: Final = "acknowledged"
"""States of such notes: the first two are disagreements until a person has acknowledged them."""
COVERED: Final = "chain"
"""The journal's own fact that says after which event and which row its chains begin."""


class Head(NamedTuple):
    """Where a node's journal stands: the newest row of each of its two chains."""

    seq: int = 0
    """The number of the newest event; 0 where there is none."""
    n: int = 0
    """The number of the newest row of any other table."""
    event_hash: str = BEGIN
    row_hash: str = BEGIN
    """Their hashes, which the next rows are chained to."""


def head_of(connection: Connection, node: str) -> Head:
    """Read where a node's journal stands."""
    newest_event = select(EVENTS.c.seq, EVENTS.c.hash).where(EVENTS.c.node == node).order_by(EVENTS.c.seq.desc())
    event = connection.execute(newest_event.limit(1)).first()
    row = max((found for table in NUMBERED if (found := _newest(connection, node, table))), default=(0, BEGIN))
    return Head(event.seq if event else 0, row[0], (event.hash if event else None) or BEGIN, row[1])


def _newest(connection: Connection, node: str, table: Table) -> tuple[int, str] | None:
    query = select(table.c.n, table.c.hash).where(table.c.node == node).order_by(table.c.n.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else (row.n, row.hash or BEGIN)


def departure(connection: Connection, node: str, mark: Mark, head: Head) -> str | None:
    """Say how a journal is not the one that its mark was made of, nor one that went on from there; else None."""
    made = "the mark beside the journal says that"
    if mark.seq > head.seq:
        return f"{made} event {mark.seq} was written, and the newest is {head.seq}"
    if mark.n > head.n:
        return f"{made} the row {mark.n} was written, and the newest is {head.n}"
    if mark.event_hash:
        query = select(EVENTS.c.hash).where(EVENTS.c.node == node, EVENTS.c.seq == mark.seq)
        if connection.execute(query).scalar() != mark.event_hash:
            return f"event {mark.seq} is another one than the mark beside the journal was made of"
    if mark.row_hash:
        hashes = [
            connection.execute(select(table.c.hash).where(table.c.node == node, table.c.n == mark.n)).scalar()
            for table in NUMBERED
        ]
        if mark.row_hash not in hashes:
            return f"the row {mark.n} is another one than the mark beside the journal was made of"
    return None


def doubts(notes: Iterable[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Give a sentence for each note of the journal's own that no person has acknowledged; they come in order."""
    found: list[str] = []
    for n, body in notes:
        state = body.get("state")
        if state == PUT_BACK:
            found.append(
                f"the journal was put back from event {body.get('from')} to {body.get('to')}, or changed "
                f"(the note {n}: {body.get('what')})"
            )
        elif state == UNGUARDED:
            found.append(f"a start has found the journal without what keeps it append-only (the note {n})")
        elif state == ACKNOWLEDGED:
            found.clear()
    return found


def value_of(connection: Connection, node: str, key: str) -> str | None:
    """Read the newest value of one of the journal's own facts, such as `journal_id`."""
    query = select(META.c.value).where(META.c.node == node, META.c.key == key).order_by(META.c.n.desc()).limit(1)
    return connection.execute(query).scalar()


def verify(connection: Connection, node: str, name: str, *, full: bool) -> None:
    """Raise JournalError naming the first fault: of the file, of the tables' version, of the event numbers."""
    if full or size_of(connection) <= QUICK_BYTES:
        fault = fault_of(connection)
        if fault is not None:
            raise JournalError(f"the journal {name} is damaged ({fault}): {ADVICE}")
    schemas = connection.execute(select(META.c.value).where(META.c.key == "schema")).scalars()
    schema = max(map(int, schemas), default=SCHEMA)
    if schema > SCHEMA:
        raise JournalError(
            f"the journal {name} was written by a newer Sigma9 (tables {schema}, this one knows {SCHEMA}): "
            "install that version again, or name another file"
        )
    last = head_of(connection, node).seq
    first = 0 if full else max(0, last - QUICK_EVENTS)
    count = connection.execute(
        select(func.count(EVENTS.c.seq)).where(EVENTS.c.node == node, EVENTS.c.seq > first)
    ).scalar_one()
    if count != last - first:
        raise JournalError(
            f"the journal {name} is damaged ({last - first - count} of the events {first + 1} to {last} are "
            f"missing): {ADVICE}"
        )


ADVICE: Final = "restore a copy of it, or move it away to begin a new one"


def cause_of(error: BaseException) -> str:
    """Give the database's own words, without SQLAlchemy's around them."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def unreadable(name: str, error: SQLAlchemyError) -> JournalError:
    """Say in one sentence that a journal can't be used, and what to do."""
    cause = cause_of(error)
    advice = next((advice for word, advice in _ADVICE if word in cause), ADVICE)
    return JournalError(f"the journal {name} can't be used ({cause}): {advice}")


def nothing_of(name: str, node: str) -> JournalError:
    """Say that a database has no journal of this node."""
    return JournalError(f"the journal {name} has nothing of the node {node}: name another node")


def unreadable_row(name: str, table: str, number: int, error: Exception) -> JournalError:
    """Say in one sentence which row can't be read."""
    row = f"the event {number}" if table == EVENTS.name else f"the row {number} of {table}"
    told = str(error).splitlines()
    why = f"{type(error).__name__}: {told[0]}" if told else type(error).__name__
    return JournalError(
        f"{row} in the journal {name} can't be read ({why}): see `sigma9 journal verify`, and restore a copy"
    )


_ADVICE: Final = (
    ("authentication", "see the user and the password in database.url"),
    ("does not exist", "make it on the database server, or name another one in database.url"),
    ("resolve host", "see that database.url names the host of the database server"),
    ("connection", "see that the database server runs, and that database.url names it"),
    ("permission denied", "let the role of database.url make and fill tables there"),
    ("locked", "try again when the other program is done with it"),
    ("full", "free some space on its disk"),
    ("open", "see that the folder is there and may be written"),
    ("readonly", "see that the file and its folder may be written"),
)

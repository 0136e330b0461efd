"""Whether a journal is sound, where it stands, and the one sentence that says so where it is not."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select, union_all
from sqlalchemy.exc import SQLAlchemyError

from sigma9_core.errors import JournalError
from sigma9_core.money.tables import EVENTS, META, NUMBERED, SCHEMA, fault_of, size_of

QUICK_BYTES: Final = 64 * 1024 * 1024
"""A file up to this size is read whole at each start (0.1 s here); a larger one by `check` alone."""
QUICK_EVENTS: Final = 10_000
"""The newest events whose numbers are looked over at each start."""


class Head(NamedTuple):
    """Where a node's journal stands."""

    seq: int
    """The number of the newest event; 0 where there is none."""
    n: int
    """The number of the newest row of any other table."""


def head_of(connection: Connection, node: str) -> Head:
    """Read where a node's journal stands."""
    seq = connection.execute(select(func.max(EVENTS.c.seq)).where(EVENTS.c.node == node)).scalar()
    newest = union_all(*(select(func.max(table.c.n).label("n")).where(table.c.node == node) for table in NUMBERED))
    n = connection.execute(select(func.max(newest.subquery().c.n))).scalar()
    return Head(seq or 0, n or 0)


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

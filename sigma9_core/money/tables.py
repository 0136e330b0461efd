"""The journal's tables: append-only, keyed by node and number, the same on SQLite and PostgreSQL.

Numbers come from the node's one writer, never from the database. Times are RFC 3339 text in UTC with
microseconds, which sorts as time does; amounts of money are the text of their decimal. What SQLite alone
needs stands at the end, from `file_of` on; what PostgreSQL needs is in `postgres.py`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Index,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
)
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool, PoolProxiedConnection

from sigma9_core.errors import JournalError
from sigma9_core.money.postgres import (
    DRIVER,
    append_only_faults,
    keep_append_only,
    lock_tables,
    postgres_engine,
)

SCHEMA: Final = 2
"""The version of these tables; a journal of a newer one is not opened."""
HASH: Final = "hash"
"""The column of the chain (`chain.py`); empty in rows that are older than it."""
BUSY_SECONDS: Final = 2.0
"""How long a write waits for another process's lock."""

METADATA: Final = MetaData()


def _text() -> Text:
    """A text that PostgreSQL sorts as SQLite and Python do, by its code points, whatever its locale is.

    It has no longest length: what a broker or a client calls something is kept, or refused where it comes in.
    """
    return Text().with_variant(Text(collation="C"), "postgresql")


def _node() -> Column[str]:
    return Column("node", _text(), primary_key=True)


def _number(name: str = "n") -> Column[int]:
    return Column(name, BigInteger, primary_key=True, autoincrement=False)


def _moment(name: str) -> Column[str]:
    return Column(name, _text(), nullable=False)


def _hash() -> Column[str]:
    return Column(HASH, Text)


META: Final = Table(
    "meta",
    METADATA,
    _node(),
    _number(),
    _moment("wall"),
    Column("key", _text(), nullable=False),
    Column("value", Text, nullable=False),
    _hash(),
)
"""The journal's own facts, such as its id; the newest value of a key counts."""

EVENTS: Final = Table(
    "events",
    METADATA,
    _node(),
    _number("seq"),
    _moment("ts"),
    _moment("wall"),
    Column("type", _text(), nullable=False),
    Column("symbol", _text()),
    Column("source", _text()),
    Column("cause", Text),
    Column("order_id", _text()),
    Column("event", _text()),
    Column("trade_id", _text()),
    Column("body", Text, nullable=False),
    _hash(),
    Index("events_by_order", "node", "order_id", "seq", "event"),
    Index("events_by_trade", "node", "trade_id", "seq"),
)
"""Durable events; `body` is the envelope exactly as it was published."""

ORDERS: Final = Table(
    "orders",
    METADATA,
    _node(),
    _number(),
    Column("order_id", _text(), nullable=False),
    _moment("ts"),
    _moment("wall"),
    Column("approved", Boolean, nullable=False),
    Column("request", Text, nullable=False),
    Column("verdicts", Text, nullable=False),
    Column("source", _text()),
    Column("cause", Text),
    Column("snapshot", Text, nullable=False),
    _hash(),
    Index("orders_by_id", "node", "order_id", "n"),
    Index("orders_by_time", "node", "ts"),
)

FILLS: Final = Table(
    "fills",
    METADATA,
    _node(),
    _number(),
    Column("exec_id", _text(), nullable=False),
    Column("order_id", _text(), nullable=False),
    Column("broker_order_id", _text()),
    Column("symbol", _text(), nullable=False),
    Column("side", _text(), nullable=False),
    Column("quantity", Text, nullable=False),
    Column("price", Text, nullable=False),
    Column("commission", Text, nullable=False),
    _moment("ts"),
    _moment("wall"),
    Column("strategy", _text()),
    Column("source", _text(), nullable=False),
    Column("cause", Text),
    Column("recovered", Boolean, nullable=False),
    _hash(),
    UniqueConstraint("node", "exec_id", "order_id", name="fills_once"),
)

COMMANDS: Final = Table(
    "commands",
    METADATA,
    _node(),
    _number(),
    Column("stage", _text(), nullable=False),
    Column("command", _text(), nullable=False),
    Column("id", _text()),
    Column("digest", _text(), nullable=False),
    Column("source", _text(), nullable=False),
    Column("actor", Text),
    Column("cause", Text),
    _moment("ts"),
    Column("body", Text, nullable=False),
    _hash(),
    Index("commands_by_id", "node", "command", "id", "n"),
)

NOTES: Final = Table(
    "notes",
    METADATA,
    _node(),
    _number(),
    Column("kind", _text(), nullable=False),
    Column("symbol", _text()),
    Column("source", _text()),
    Column("cause", Text),
    _moment("ts"),
    _moment("wall"),
    Column("body", Text, nullable=False),
    _hash(),
    Index("notes_by_kind", "node", "kind", "n"),
    Index("notes_by_symbol", "node", "kind", "symbol", "n"),
)

NUMBERED: Final[tuple[Table, ...]] = (META, ORDERS, FILLS, COMMANDS, NOTES)
"""The tables whose rows share one count, so that `n` is the order in which they were committed."""


def address(url: str) -> URL:
    """Read an address; raise JournalError, which never shows the address, because a password may stand in it."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        backend = None
    if backend == "postgresql":
        return parsed.set(drivername=DRIVER) if parsed.drivername == "postgresql" else parsed
    if backend != "sqlite":
        raise JournalError(
            "database.url can't be read: write postgresql+psycopg://user:password@host:5432/name, and in the "
            "password %40 for @, %3A for :, %2F for / and %23 for #"
        ) from None
    return parsed


def where(url: str) -> str:
    """Name a journal in a message: the file, or the address without its password."""
    parsed = address(url)
    if parsed.get_backend_name() == "sqlite":
        return parsed.database or "(in memory)"
    # What may be told, and nothing else: a query, too, can hold a password.
    host = parsed.host or parsed.query.get("host") or "localhost"
    return f"{parsed.drivername}://{host}{f':{parsed.port}' if parsed.port else ''}/{parsed.database or ''}"


def file_of(url: str) -> Path | None:
    """Give the file that a journal is kept in, None where a database server keeps it."""
    parsed = address(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    if parsed.database in (None, "", ":memory:"):
        raise JournalError("a journal can't be kept in memory: give database.path a file")
    return Path(str(parsed.database))


def mark_of(url: str, node: str, folder: Path | None) -> Path | None:
    """Tell where a node's high-water mark lies: beside the file, else in a folder, None where there is neither."""
    path = file_of(url)
    if path is not None:
        return path.with_name(f"{path.name}.{node}.head")
    return None if folder is None else folder / f"journal.{node}.head"


def adapt(url: str, *, writer: str | None) -> Engine:
    """Build an engine: for the writer of a node, whose commits are durable, or (None) for readers.

    Readers change nothing and see one moment in each transaction.
    """
    parsed = address(url)
    if file_of(url) is None:
        return postgres_engine(parsed, writer, BUSY_SECONDS)
    engine = create_engine(
        parsed,
        poolclass=NullPool if writer else None,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # Python's own BEGIN would come too late and take no lock
        cursor = connection.cursor()
        try:
            if writer:
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.execute("PRAGMA synchronous=FULL")
                cursor.execute("PRAGMA fullfsync=ON")  # macOS: past the drive's cache
                cursor.execute("PRAGMA journal_size_limit=67108864")
            else:
                cursor.execute("PRAGMA query_only=ON")
        finally:
            cursor.close()

    begin = "BEGIN IMMEDIATE" if writer else "BEGIN"

    def do_begin(connection: PoolProxiedConnection) -> None:
        connection.execute(begin)  # as the driver takes it: a statement of SQLAlchemy's costs ten times as much

    engine.dialect.do_begin = do_begin  # type: ignore[method-assign, assignment]
    return engine


def prepare(url: str) -> None:
    """Make the folder (0700) and the file (0600) that a journal needs, where it is a file."""
    path = file_of(url)
    if path is None:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # its -wal and -shm files take the same mode
    finally:
        os.close(descriptor)


def create(connection: Connection) -> list[str]:
    """Make the tables where they are missing, with what keeps them append-only; bring older ones up to date.

    Give a sentence for each thing that should have kept them so and was not there any more.
    """
    if connection.dialect.name != "sqlite":
        lock_tables(connection)
    found = exists(connection)
    older = found and not is_current(connection)
    METADATA.create_all(connection)
    if older:
        _bring_up_to_date(connection)
    gone = unguarded(connection)
    if connection.dialect.name != "sqlite":
        if gone:
            keep_append_only(connection, METADATA.tables)
    else:
        _keep_append_only(connection)
    return gone if found and not older else []


def is_current(connection: Connection) -> bool:
    """Tell whether the tables that are there have all the columns that this version knows."""
    return HASH in {column["name"] for column in inspect(connection).get_columns(META.name)}


def _bring_up_to_date(connection: Connection) -> None:
    """Add the columns and indexes that older tables lack; every row stays as it is."""
    looker = inspect(connection)
    sqlite = connection.dialect.name == "sqlite"
    for table in METADATA.sorted_tables:
        there = {column["name"]: column["type"] for column in looker.get_columns(table.name)}
        for column in table.c:
            kind = column.type.compile(dialect=connection.dialect)
            if column.name not in there:
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
            elif not sqlite and getattr(there[column.name], "length", None):
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ALTER COLUMN {column.name} TYPE {kind}")
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def unguarded(connection: Connection) -> list[str]:
    """Give a sentence for each thing that should keep the tables append-only, and is not there as it was made."""
    if connection.dialect.name != "sqlite":
        return append_only_faults(connection, METADATA.tables)
    wanted, found = _triggers(), _found_triggers(connection)
    faults = [
        f"the trigger {name}, which keeps the journal append-only, is {'changed' if name in found else 'missing'}"
        for name, text in wanted.items()
        if found.get(name) != text
    ]
    return faults + [
        f"the trigger {name} on the journal's tables is not Sigma9's" for name in found if name not in wanted
    ]


def _triggers() -> dict[str, str]:
    """Write what refuses every UPDATE, DELETE and REPLACE, whoever connects: the triggers by name."""
    refuse = "BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END"
    made = {}
    for table in METADATA.sorted_tables:
        keys = [list(table.primary_key.columns)]
        keys += [list(each.columns) for each in table.constraints if isinstance(each, UniqueConstraint)]
        same = [" AND ".join(f"{column.name} = NEW.{column.name}" for column in key) for key in keys]
        there = " OR ".join(
            f"EXISTS (SELECT 1 FROM {table.name} WHERE {key})"  # noqa: S608 - names of our own tables
            for key in (*same, "rowid = NEW.rowid")
        )
        for name, when in (
            (f"{table.name}_no_update", f"BEFORE UPDATE ON {table.name}"),
            (f"{table.name}_no_delete", f"BEFORE DELETE ON {table.name}"),
            # INSERT OR REPLACE takes away what has the same key, and fires no trigger of a deletion.
            (f"{table.name}_no_replace", f"BEFORE INSERT ON {table.name} WHEN {there}"),
        ):
            made[name] = f"CREATE TRIGGER {name} {when} {refuse}"
    return made


def _found_triggers(connection: Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")
    return {row.name: row.sql for row in rows if row.tbl_name in METADATA.tables}


def _keep_append_only(connection: Connection) -> None:
    found = _found_triggers(connection)
    for name, text in _triggers().items():
        if found.get(name) != text:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
            connection.exec_driver_sql(text)


def exists(connection: Connection) -> bool:
    """Tell whether a database has a journal in it."""
    return inspect(connection).has_table(META.name)


def fault_of(connection: Connection) -> str | None:
    """Ask the database to read its whole file; give the first fault, None where there is none."""
    if connection.dialect.name != "sqlite":
        return None
    answer: Any = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    return None if answer == "ok" else str(answer).splitlines()[-1]


class Inserts:
    """The INSERT of each table as the driver takes it, worked out once: every commit runs some of them."""

    def __init__(self, engine: Engine) -> None:
        self._made: dict[Table, tuple[str, Sequence[str] | None]] = {}
        for table in METADATA.sorted_tables:
            made = insert(table).compile(dialect=engine.dialect, column_keys=[column.name for column in table.c])
            self._made[table] = str(made), made.positiontup if made.positional else None

    def run(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows that name every column."""
        statement, names = self._made[table]
        if names is None:
            connection.exec_driver_sql(statement, list(rows))
            return
        values = [tuple([row[name] for name in names]) for row in rows]
        try:  # straight to the driver: SQLAlchemy's own way takes twice as long
            connection.connection.cursor().executemany(statement, values)
        except sqlite3.Error as error:
            raise DBAPIError.instance(statement, None, error, sqlite3.Error, dialect=connection.dialect) from error


def size_of(connection: Connection) -> int:
    """Give the bytes of the database's file, 0 where it has none of its own."""
    if connection.dialect.name != "sqlite":
        return 0
    pages: int = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    size: int = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
    return pages * size

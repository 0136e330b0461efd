"""What PostgreSQL alone needs to keep a journal: durable sessions, tables that refuse changes, a writer's lock."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.pool import NullPool

from sigma9_core.clock import monotonic
from sigma9_core.errors import JournalError

log = logging.getLogger("sigma9.journal")

DRIVER: Final = "postgresql+psycopg"
CONNECT_SECONDS: Final = 5
LOST_AFTER: Final = 10
"""Seconds of silence after which either end takes the other for gone."""
LOCK_SECONDS: Final = 2.0
"""How long a start waits for a server that has just died to be noticed, before it believes in a second one."""


def postgres_engine(url: URL, node: str | None, busy_seconds: float) -> Engine:
    """Build an engine: for the one writer of a node, or (no node) for readers who see one moment a transaction.

    A write waits up to `busy_seconds` for whoever has locked a table.

    Raise JournalError where the driver is not installed.
    """
    defaults = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": LOST_AFTER // 2,
        "keepalives_interval": LOST_AFTER // 4,
        "keepalives_count": 2,
        "tcp_user_timeout": LOST_AFTER * 1000,
        "application_name": f"sigma9 {node}" if node else "sigma9 (reads)",
    }
    more: dict[str, Any] = {"poolclass": NullPool} if node else {"pool_pre_ping": True}
    if not node:
        more["execution_options"] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    try:
        engine = create_engine(
            url,
            connect_args={name: value for name, value in defaults.items() if name not in url.query},
            hide_parameters=True,  # no order stands in an error's text, and no secret of a plugin
            **more,
        )
    except ModuleNotFoundError as error:
        raise JournalError(
            f"database.url needs the driver of PostgreSQL ({error.name}): "
            f"{sys.executable} -m pip install 'sigma9[postgres]'"
        ) from error
    if node:
        event.listen(engine, "connect", lambda connection, _record: _make_durable(connection, busy_seconds))
    return engine


def _make_durable(connection: Any, busy_seconds: float) -> None:
    """Let a commit mean that it is on disk, whatever the role's defaults are; never less than is configured."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {int(busy_seconds * 1000)}")
        cursor.execute("SELECT current_setting('synchronous_commit'), current_setting('fsync')")
        commit, fsync = cursor.fetchone()
        if commit == "off":
            cursor.execute("SET synchronous_commit = on")
        if fsync == "off":
            log.warning(
                "the database server runs with fsync off: what it calls durable may be lost with its power"
            )
        # The server, too, must notice a client that is gone: it holds the writer's lock until then.
        for name, value in (("idle", LOST_AFTER // 2), ("interval", LOST_AFTER // 4), ("count", 2)):
            cursor.execute(f"SET tcp_keepalives_{name} = {value}")
    connection.commit()


def lock_tables(connection: Connection) -> None:
    """Let nodes that start at once on an empty database make the tables one after the other."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _key(connection, "tables")})


_REFUSE: Final = (
    " BEGIN RAISE EXCEPTION 'the journal is append-only' USING ERRCODE = 'integrity_constraint_violation'; END "
)


def append_only_faults(connection: Connection, tables: Iterable[str]) -> list[str]:
    """Give a sentence for each table whose trigger does not refuse every UPDATE, DELETE and TRUNCATE."""
    found = {
        row.relname: row
        for row in connection.execute(
            text(
                "SELECT c.relname, t.tgenabled, t.tgtype, p.prosrc FROM pg_trigger t "
                "JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
                "JOIN pg_proc p ON p.oid = t.tgfoid "
                "WHERE t.tgname = 'append_only' AND n.nspname = current_schema()"
            )
        )
    }
    faults = []
    for table in tables:
        row = found.get(table)
        if row is None:
            faults.append(f"the trigger append_only of {table}, which keeps the journal append-only, is missing")
        elif (_word(row.tgenabled), row.tgtype, row.prosrc) != ("O", _BEFORE_ALL_CHANGES, _REFUSE):
            faults.append(f"the trigger append_only of {table}, which keeps the journal append-only, is changed")
    return faults


_BEFORE_ALL_CHANGES: Final = 2 | 8 | 16 | 32
"""PostgreSQL's own bits of a trigger: BEFORE, DELETE, UPDATE, TRUNCATE, for each statement."""


def _word(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def keep_append_only(connection: Connection, tables: Iterable[str]) -> None:
    """Let the database refuse every UPDATE, DELETE and TRUNCATE."""
    connection.exec_driver_sql(
        f"CREATE OR REPLACE FUNCTION sigma9_append_only() RETURNS trigger LANGUAGE plpgsql AS $${_REFUSE}$$"
    )
    for table in tables:
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS append_only ON {table}")
        connection.exec_driver_sql(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION sigma9_append_only()"
        )


def take_writer(connection: Connection, node: str, name: str, *, patience: float = LOCK_SECONDS) -> None:
    """Make this session the one that writes a node's journal, for as long as it lasts.

    Raise JournalError naming the session that does already, after `patience` seconds.
    """
    deadline = monotonic() + patience
    asked = {"key": _key(connection, f"writer {node}")}
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), asked).scalar():
        if monotonic() >= deadline:
            raise JournalError(
                f"another server writes the journal {name} as the node {node}{_holder(connection, asked['key'])}: "
                "stop it, or give this one a `node` of its own"
            )
        connection.rollback()
        time.sleep(0.05)


def give_up_writer(connection: Connection) -> None:
    """Let another server write at once, instead of when the database has noticed that this session ended."""
    connection.execute(text("SELECT pg_advisory_unlock_all()"))
    connection.rollback()


def _holder(connection: Connection, key: int) -> str:
    """Tell who holds a lock, as far as the database shows it."""
    found = connection.execute(
        text(
            "SELECT a.pid, host(a.client_addr) AS address "
            "FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND ((l.classid::bigint << 32) | l.objid::bigint) = :key"
        ),
        {"key": key},
    ).first()
    if found is None:
        return ""
    return f" (from {found.address or 'the same machine'}, session {found.pid})"


def _key(connection: Connection, what: str) -> int:
    """Give an advisory lock's number: 63 bits of a name in this schema; locks belong to the whole database."""
    schema = connection.execute(text("SELECT current_schema()")).scalar()
    return int.from_bytes(hashlib.sha256(f"sigma9 {schema} {what}".encode()).digest()[:8]) >> 1

"""Where a test keeps a journal: a SQLite file, or a schema of a PostgreSQL server; both can be read and forged."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sigma9_core.money.tables import METADATA

if TYPE_CHECKING:
    from sigma9_core.testing.postgres_server import PostgresServer


class Place(ABC):
    """One database, as somebody sees it who goes round the journal."""

    kind: ClassVar[str]
    url: str
    busy: ClassVar[str]
    """What the database says where another session holds the lock that a write needs."""

    @abstractmethod
    def query(self, query: str) -> list[tuple[Any, ...]]:
        """Read rows in a session of one's own."""

    @abstractmethod
    def forge(self, *statements: str) -> None:
        """Change what is append-only, in one transaction, as the database's owner can; leave no other trace."""

    @abstractmethod
    def locked(self) -> Any:
        """Hold, within a `with`, the lock that a write needs."""

    @abstractmethod
    def error(self, message: str, *, damaged: bool = False) -> Exception:
        """Make the error of a disk that fails, or of a file that is damaged, as the driver raises it."""


class FilePlace(Place):
    """A SQLite file."""

    kind = "sqlite"
    busy = "database is locked"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def query(self, query: str) -> list[tuple[Any, ...]]:
        """Read rows in a session of one's own."""
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute(query).fetchall()

    def forge(self, *statements: str) -> None:
        """Change what is append-only, in one transaction, as the database's owner can; leave no other trace."""
        with closing(sqlite3.connect(self.path)) as db:
            triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for name, _ in triggers:
                db.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                db.execute(statement)
            for _, sql in triggers:
                db.execute(sql)
            db.commit()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that a write needs."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")

    def error(self, message: str, *, damaged: bool = False) -> Exception:
        """Make the error of a disk that fails, or of a file that is damaged, as the driver raises it."""
        return sqlite3.DatabaseError(message) if damaged else sqlite3.OperationalError(message)


class ServerPlace(Place):
    """A schema of a PostgreSQL server."""

    kind = "postgresql"
    busy = "canceling statement due to lock timeout"

    def __init__(self, server: PostgresServer, schema: str) -> None:
        self.server = server
        self.schema = schema
        self.url = server.url(schema)

    def query(self, query: str) -> list[tuple[Any, ...]]:
        """Read rows in a session of one's own."""
        with self.server.connect(self.schema) as session:
            return session.execute(query.encode()).fetchall()

    def forge(self, *statements: str) -> None:
        """Change what is append-only, in one transaction, as the database's owner can; leave no other trace."""
        with self.server.connect(self.schema) as session, session.transaction():
            session.execute("SET LOCAL session_replication_role = replica")
            for statement in statements:
                session.execute(statement.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that a write needs."""
        with self.server.connect(self.schema) as session, session.transaction(force_rollback=True):
            session.execute(f"LOCK TABLE {', '.join(METADATA.tables)} IN EXCLUSIVE MODE".encode())
            yield

    def error(self, message: str, *, damaged: bool = False) -> Exception:
        """Make the error of a disk that fails, or of a file that is damaged, as the driver raises it."""
        from psycopg import errors  # noqa: PLC0415 - an extra that may be absent

        return errors.DataCorrupted(message) if damaged else errors.IoError(message)

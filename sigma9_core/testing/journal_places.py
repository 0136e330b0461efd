"""Where a test keeps a journal: a SQLite file, or a schema of a PostgreSQL server; both can be read and forged."""

from __future__ import annotations

import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sigma9_core.errors import JournalError
from sigma9_core.money.tables import METADATA

if TYPE_CHECKING:
    from sigma9_core.money.integrity import Head
    from sigma9_core.money.journal import Journal
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


Outcome = Literal["work", "fail before", "fail after", "damage"]


class Commits:
    """Stands between a journal and its database: commits fail as they are told to, before or after the deed."""

    def __init__(self, journal: Journal, place: Place) -> None:
        self.plan: list[Outcome] = []
        """What the next commits do; those after them work."""
        self.unreadable = 0
        """How often it can't be read back what became of a commit."""
        self.pause: threading.Event | None = None
        """What a commit that is planned waits for."""
        self._place = place
        engine = journal._engine  # noqa: SLF001 - a hook from outside
        if engine is None:
            raise ValueError("open the journal first")
        dialect: Any = engine.dialect  # of this engine alone
        self._commit = dialect.do_commit
        dialect.do_commit = self
        self._read = journal._read_head  # noqa: SLF001
        journal._read_head = self._read_head  # type: ignore[method-assign]  # noqa: SLF001

    def __call__(self, connection: Any) -> None:
        """Commit, or not."""
        what = self.plan.pop(0) if self.plan else "work"
        if what in ("work", "fail after"):
            self._commit(connection)
        if what == "work":
            return
        if self.pause is not None:
            self.pause.wait()
        if what == "damage":
            raise self._place.error("database disk image is malformed", damaged=True)
        raise self._place.error("disk I/O error")

    def _read_head(self) -> Head:
        if self.unreadable:
            self.unreadable -= 1
            raise JournalError("it can't be read")
        return self._read()

"""Small documents by name (watchlist, plugin settings, token hashes, schedule marks): one JSON file, by TinyDB.

A person may read the file. Every write is a new generation: a temporary file, made durable, takes the place of the
newest, which becomes `.bak`; so a crash leaves the last acknowledged generation or a newer one, always whole.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tinydb import Storage, TinyDB, where
from tinydb.table import Table

from sigma9_core.datadir import sync_folder
from sigma9_core.errors import StateError

log = logging.getLogger("sigma9.state")

MOST_BYTES: Final = 1024 * 1024
"""The largest document; what grows without bound belongs to the journal."""

_Tables = dict[str, dict[str, Any]]


class GenerationStorage(Storage):
    """A TinyDB storage that replaces its file as a whole and keeps the generation before it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._previous = path.with_name(f"{path.name}.bak")
        self._text = self._load()

    def read(self) -> _Tables | None:
        """Give the newest generation, a copy of its own for each caller; None where there is none yet."""
        return None if self._text is None else _parse(self._text)

    def write(self, data: _Tables) -> None:
        """Make a new generation durable; the old one stands until then. Raise StateError."""
        try:
            text = json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1)
            encoded = text.encode()
        except (TypeError, ValueError) as error:
            raise StateError(f"the document can't be written as JSON ({error}): nothing was changed") from error
        if text == self._text:
            return
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(descriptor)
            if self._path.exists():
                self._path.replace(self._previous)
            fresh.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            raise StateError(f"{self._path} can't be written ({error.strerror}): nothing was changed") from error
        self._text = text

    def _load(self) -> str | None:
        """Read the newest generation that is whole, and put a damaged one aside for a person to look at."""
        fault = None
        try:
            return _checked(self._path)
        except FileNotFoundError:
            if not self._previous.exists():
                return None
            fault = "is missing"
        except (OSError, ValueError) as error:
            fault = f"is not readable ({error})"
        try:
            text = _checked(self._previous)
        except (OSError, ValueError) as error:
            raise StateError(
                f"{self._path} {fault}, and {self._previous.name} is not readable either ({error}): "
                "restore one of them, or move both away to begin anew"
            ) from error
        log.warning("%s %s: the generation before it is used", self._path, fault)
        if self._path.exists():
            # Left where it is, it would become the .bak of the next write, in place of the whole one.
            damaged = self._path.with_name(f"{self._path.name}.damaged")
            self._path.replace(damaged)
            log.warning("the damaged file is kept as %s", damaged)
        return text


class Documents:
    """The documents of one file; one process owns it, any of its threads may call.

    Reading never waits for a write. Loops use `save`; the other calls that write block for the disk (5 ms).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: TinyDB | None = None
        self._writing = threading.Lock()
        self._disk: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Read the file, or begin a new one. Raise StateError where no generation is whole."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in (self.path, self.path.with_name(f"{self.path.name}.bak")):
                if name.exists():
                    name.chmod(0o600)
        except OSError as error:
            raise StateError(f"{self.path} can't be used ({error.strerror}): see to its folder") from error
        self._database = TinyDB(self.path, storage=GenerationStorage)
        self._disk = ThreadPoolExecutor(1, "sigma9-documents")

    def close(self) -> None:
        """Finish the writes that were begun, and let go of the file."""
        if self._disk is not None:
            self._disk.shutdown(wait=True)
            self._disk = None
        if self._database is not None:
            self._database.close()
            self._database = None

    def get(self, name: str) -> dict[str, Any] | None:
        """Give a document, a copy of its own for each caller; None where there is none."""
        found = self._table().get(where("name") == name)
        return None if found is None else found["body"]

    def names(self) -> list[str]:
        """List the documents."""
        return [document["name"] for document in self._table().all()]

    def put(self, name: str, body: Mapping[str, Any]) -> None:
        """Replace a document; it is durable when this returns. Raise StateError, and then nothing has changed."""
        row = {"name": name, "body": _bounded(name, body)}
        with self._writing:
            table = self._table()
            if table.contains(where("name") == name):
                table.update(row, where("name") == name)
            else:
                table.insert(row)

    def delete(self, name: str) -> None:
        """Remove a document; one that is not there is fine."""
        with self._writing:
            table = self._table()
            if table.contains(where("name") == name):
                table.remove(where("name") == name)

    async def save(self, name: str, body: Mapping[str, Any]) -> None:
        """Replace a document from a loop, without blocking it; writes are done in the order of the calls."""
        if self._disk is None:
            raise StateError(f"{self.path} is not open")
        frozen = _bounded(name, body)
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._disk, self.put, name, frozen))

    def _table(self) -> Table:
        if self._database is None:
            raise StateError(f"{self.path} is not open")
        return self._database.table("documents")


def _bounded(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Take a copy as JSON would give it back, and see that it is small."""
    try:
        text = json.dumps(dict(body), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise StateError(f"the document {name} can't be written as JSON ({error}): nothing was changed") from error
    if size > MOST_BYTES:
        raise StateError(f"the document {name} has {size} bytes, more than {MOST_BYTES}: nothing was changed")
    copy: dict[str, Any] = json.loads(text)
    return copy


def _parse(text: str) -> _Tables:
    tables = json.loads(text)
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ValueError("it is not an object of tables")
    return tables


def _checked(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    _parse(text)
    return text

"""The data folder: private files, the lock that lets one server in, and the note that tells where it listens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from sigma9_core.errors import StateError

LOCK_FILE: Final = "server.lock"
SERVER_FILE: Final = "server.json"
KILL_SOCKET: Final = "kill.sock"
"""The kill's own door on this machine."""
FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700

_LOCK_TRIES: Final = 30
_LOCK_PAUSE: Final = 0.01
"""Whoever looks whether a server runs holds the lock for some microseconds; a starting server waits that out."""

_log = logging.getLogger("sigma9.datadir")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Holder:
    """The server that holds the lock, as it wrote itself down."""

    pid: int
    node: str


@dataclass(frozen=True, slots=True)
class ServerNote:
    """What `server.json` says of the running server."""

    url: str
    """Where this machine reaches REST and WebSocket, such as `http://127.0.0.1:8000`."""
    pid: int
    node: str
    cert: str | None = None
    """The server's own certificate where it speaks TLS: local clients trust exactly this one."""


class DataDirLocked(StateError):
    """Another server uses this data folder; stop it, or give this one a data_dir of its own."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        who = f"process {holder.pid} (node {holder.node})" if holder.pid else "another process"
        super().__init__(f"{path} is in use by the server in {who}: stop that one, or set another data_dir")


class DataDir:
    """One folder of data; a server locks it, the command line reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._announced = False

    def file(self, name: str) -> Path:
        """Give the path of a file directly in the folder."""
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"'{name}' is not the name of a file in {self.path}")
        return self.path / name

    def make(self) -> None:
        """Make the folder, for its owner alone; raise StateError where that can't be done."""
        try:
            self.path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            mode = self.path.stat().st_mode & 0o777
        except OSError as error:
            raise StateError(f"the data folder {self.path} can't be made: {error.strerror}") from error
        if mode & 0o077:
            try:
                self.path.chmod(FOLDER_MODE)
            except OSError:
                _log.warning("others can look into the data folder %s: chmod 700 it", self.path)

    # files ------------------------------------------------------------------

    def write_private(self, name: str, text: str) -> None:
        """Replace a file at once and durably, with mode 0600; raise StateError, and then the old file stays."""
        target = self.file(name)
        temporary = self.path / f".{name}.{secrets.token_hex(6)}.tmp"
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(self.path)
        except OSError as error:
            raise StateError(f"{target} can't be written: {error.strerror}") from error

    def read(self, name: str) -> str | None:
        """Read a file of text; None where there is none, StateError where it can't be read."""
        try:
            return self.file(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{self.file(name)} can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise StateError(f"{self.file(name)} can't be read: it is not UTF-8 text") from error

    def remove(self, name: str) -> None:
        """Remove a file where it is there."""
        try:
            self.file(name).unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"{self.file(name)} can't be removed: {error.strerror}") from error

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold a lock file for a read-change-write that other processes may do as well."""
        with self._opened(name) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # the one server ---------------------------------------------------------

    def lock(self, node: str) -> None:
        """Make the folder and keep every other server out of it; raise DataDirLocked naming the one inside."""
        if self._lock is not None:
            return
        self.make()
        with self._opened(LOCK_FILE) as handle:
            for attempt in range(_LOCK_TRIES):
                if _try_lock(handle, fcntl.LOCK_EX):
                    break
                if attempt == _LOCK_TRIES - 1:
                    raise DataDirLocked(self.path, _read_holder(handle))
                time.sleep(_LOCK_PAUSE)
            note = json.dumps(asdict(Holder(os.getpid(), node))).encode()
            os.ftruncate(handle, 0)
            os.pwrite(handle, note, 0)
            self._lock = os.dup(handle)  # the lock belongs to the open file, so that the copy keeps it
            os.set_inheritable(self._lock, False)
        self.remove(SERVER_FILE)  # left by a server that did not end in order

    def announce(self, url: str, node: str, cert: Path | None = None) -> None:
        """Write where the running server listens, so that this machine's command line finds it."""
        note = ServerNote(url.rstrip("/"), os.getpid(), node, None if cert is None else str(cert))
        self.write_private(SERVER_FILE, json.dumps(asdict(note)))
        self._announced = True

    def unlock(self) -> None:
        """Take the note away and let the next server in."""
        if self._lock is None:
            return
        if self._announced:
            self.remove(SERVER_FILE)
            self._announced = False
        os.ftruncate(self._lock, 0)
        os.close(self._lock)
        self._lock = None

    def __enter__(self) -> DataDir:
        """Give itself: `with data_dir:` unlocks at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock."""
        self.unlock()

    # looking in from outside -------------------------------------------------

    def holder(self) -> Holder | None:
        """Tell which server holds the lock now; None where none does."""
        try:
            handle = os.open(self.path / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return None if _try_lock(handle, fcntl.LOCK_SH) else _read_holder(handle)
        finally:
            os.close(handle)

    def server(self) -> ServerNote | None:
        """Tell where the running server listens; None where none runs, or none has announced itself."""
        holder = self.holder()
        if holder is None:
            return None
        try:
            text = self.read(SERVER_FILE)
        except StateError:
            return None
        note = _decode(text, ServerNote)
        return note if note is not None and note.pid == holder.pid else None

    # ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        path = self.file(name)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise StateError(f"{path} can't be opened: {error.strerror}") from error
        try:
            yield handle
        finally:
            os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable: a file that was renamed into it stays so over a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def local_url(host: str, port: int, *, tls: bool) -> str:
    """Give the URL at which this machine reaches a server that listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - no binding here
    shown = f"[{reached}]" if ":" in reached and not reached.startswith("[") else reached
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(handle: int) -> Holder:
    """Read who holds the lock; pid 0 where that is not written (yet)."""
    text = os.pread(handle, 4096, 0).decode("utf-8", "replace")
    return _decode(text, Holder) or Holder(0, "?")


def _decode(text: str | None, kind: type[T]) -> T | None:
    """Build a note from JSON; None where it is not one."""
    try:
        value: Any = json.loads(text or "")
        return kind(**value) if isinstance(value, dict) else None
    except (ValueError, TypeError):
        return None

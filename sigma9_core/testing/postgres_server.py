"""A PostgreSQL server of the tests' own, in a folder of its own and on a free port: to fill, kill and restart."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import quote

if TYPE_CHECKING:
    import psycopg

PATIENCE: Final = 30.0
USER: Final = "sigma9"
PASSWORD: Final = "pa:ss/w@rd#1"  # noqa: S105 - it opens nothing else
"""It has every sign that an address must escape."""
ACCOUNT: Final = "postgres"
"""Who runs it where the tests run as root: PostgreSQL refuses to."""


def find_programs() -> Path | None:
    """Find the folder of `initdb` and `postgres`: on the PATH, or where Debian keeps the newest version."""
    named = shutil.which("initdb")
    if named is not None and shutil.which("postgres") is not None:
        return Path(named).resolve().parent
    kept = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return next((each.parent for each in sorted(kept, key=lambda p: int(p.parts[-3]), reverse=True)), None)


def missing() -> str | None:
    """Say why there can be no server here, None where there can."""
    if find_programs() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    try:
        import psycopg  # noqa: F401, PLC0415 - an extra that may be absent
    except ImportError:
        return "the driver is not installed: pip install 'sigma9[postgres]'"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(ACCOUNT)
        except KeyError:
            return f"PostgreSQL does not run as root, and there is no user {ACCOUNT} to run it"
    return None


class PostgresServer:
    """Use it with `with`; it is stopped and removed at the end."""

    def __init__(self) -> None:
        self.port = 0
        self._programs = find_programs() or Path("/nowhere")
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Make the cluster and start it."""
        self._folder = Path(tempfile.mkdtemp(prefix="sigma9-pg-"))
        self._folder.chmod(0o755)
        self._data.mkdir()
        (self._folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            owner = pwd.getpwnam(ACCOUNT)
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        self._call("initdb", "-N", "-U", USER, "-A", "scram-sha-256", "--pwfile", str(self._folder / "password"))
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it and remove everything."""
        self.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                *self._as_account("postgres"),
                *("-D", str(self._data), "-p", str(self.port), "-k", str(self._folder)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=50"),
                *("-c", "shared_buffers=16MB", "-c", "log_min_messages=fatal"),
            ],
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.connect().close()
            except self._error():
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it: `fast` in order, `immediate` as a crash, with what is not durable lost."""
        if self._process is None:
            return
        self._postmaster(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        self._process.wait(PATIENCE)
        self._process = None

    def kill(self) -> None:
        """Kill its first process, and wait until those of its sessions have noticed."""
        if self._process is None:
            return
        self._postmaster(signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._process = None
        deadline = time.monotonic() + PATIENCE
        segment = (self._data / "postmaster.pid").read_text().split("\n")[6].split()
        while segment and _attached(segment[1]) and time.monotonic() < deadline:
            time.sleep(0.02)  # sessions that are left keep the next start from its memory
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def url(self, schema: str = "public", **query: str) -> str:
        """Give the address of a schema, with the password in it as an address must have it."""
        parts = {"options": f"-csearch_path={schema}", **query}
        told = "&".join(f"{name}={quote(value, safe='')}" for name, value in parts.items())
        return f"postgresql+psycopg://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/postgres?{told}"

    def connect(self, schema: str = "public") -> psycopg.Connection[tuple[Any, ...]]:
        """Open a session of one's own, each statement of which counts at once."""
        import psycopg  # noqa: PLC0415 - an extra that may be absent

        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=PASSWORD,
            dbname="postgres",
            options=f"-csearch_path={schema}",
            autocommit=True,
        )

    def make_schema(self, name: str) -> None:
        """Make an empty schema."""
        with self.connect() as session:
            session.execute(f"CREATE SCHEMA {name}".encode())

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _error(self) -> type[Exception]:
        import psycopg  # noqa: PLC0415 - an extra that may be absent

        return psycopg.OperationalError

    def _as_account(self, program: str) -> list[str]:
        command = [str(self._programs / program)]
        if os.geteuid() == 0:
            owner = pwd.getpwnam(ACCOUNT)
            command = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups", *command]
        return command

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_account(program), "-D", str(self._data), *arguments],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr or done.stdout}")

    def _postmaster(self, number: signal.Signals) -> None:
        """Signal the server itself: `setpriv` has become it, so it is the process that was started."""
        if self._process is not None:
            os.kill(self._process.pid, number)


def _attached(segment: str) -> bool:
    """Tell whether anybody is attached to a System V memory segment (Linux; elsewhere nobody waits)."""
    try:
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    except OSError:
        return False
    return any(fields[1] == segment and int(fields[6]) > 0 for fields in map(str.split, lines))

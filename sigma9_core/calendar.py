"""The exchange calendar: sessions with their real opens and closes, early closes and holidays right.

exchange_calendars brings pandas (about a second and 78 MB), so it runs in a child process once in a while
(`calendar_build.py`); the sessions it gives are kept as a small file, and most starts need no child at all.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from sigma9_core.clock import wall_now
from sigma9_core.errors import DataError
from sigma9_core.models import Session

FIRST: Final = date(2010, 1, 1)
"""The calendar starts here, unless the data ask for more."""
AHEAD: Final = timedelta(days=2 * 365)
"""A calendar is built this far beyond the day that is needed."""
SPARE: Final = timedelta(days=60)
"""A calendar that ends sooner than this after the day that is needed is built anew."""
VERSION: Final = 1
"""Version of the cache file."""
BUILD_SECONDS: Final = 120.0
"""A child that takes longer has failed."""
RETRY_SECONDS: Final = (5.0, 300.0)
"""The first pause after a failure, doubled each time, and the longest one."""
CHECK_SECONDS: Final = 60.0
"""How often a loaded calendar is compared with the clock."""
RUNS_OUT: Final = timedelta(days=30)
"""A calendar whose last session comes sooner than this is complained about: its package knows no more."""
WITHOUT: Final = "without it nothing is scanned or traded"

log = logging.getLogger("sigma9.calendar")


NEW_YORK: Final = ZoneInfo("America/New_York")


def trading_day(moment: datetime) -> str:
    """Name the day that what is done at a moment counts for: the date in New York, before and after hours too."""
    return moment.astimezone(NEW_YORK).date().isoformat()


class CalendarMissing(DataError):
    """exchange_calendars has no exchange of this name: asking again does not help."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The sessions and the columns to search them by; replaced as a whole, so that readers need no lock."""

    sessions: tuple[Session, ...] = ()
    opens: tuple[datetime, ...] = ()
    days: tuple[str, ...] = ()


class Calendar:
    """The sessions of one exchange, sorted by time; empty until it is loaded. Safe to use from every lane."""

    def __init__(self, name: str, sessions: Sequence[Session] = ()) -> None:
        self.name = name
        self.error: str | None = None
        """Why the sessions could not be loaded, in one sentence; None while nothing is wrong."""
        self._table = _Table()
        self._lock = threading.Lock()
        self._loaded = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        if sessions:
            self.fill(sessions)

    @property
    def loaded(self) -> bool:
        """Tell whether the sessions are there."""
        return self._loaded

    @property
    def first(self) -> date | None:
        """Give the date of the first session that is known."""
        days = self._table.days
        return date.fromisoformat(days[0]) if days else None

    @property
    def final(self) -> date | None:
        """Give the date of the last session that is known."""
        days = self._table.days
        return date.fromisoformat(days[-1]) if days else None

    def fill(self, sessions: Sequence[Session]) -> None:
        """Take the sessions, sorted by time, and let those who wait on any loop go on; from any thread."""
        opens = tuple(session.open for session in sessions)
        if any(later <= earlier for earlier, later in pairwise(opens)):
            raise ValueError(f"the sessions of the calendar {self.name} are not sorted by time")
        table = _Table(tuple(sessions), opens, tuple(session.day for session in sessions))
        with self._lock:
            self._table = table
            self._loaded = True
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # that loop was closed meanwhile: nobody waits there any more
                continue

    async def ready(self) -> None:
        """Wait, on whatever loop this is, until the sessions are there."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._loaded:
                return
            future: asyncio.Future[None] = loop.create_future()
            entry = (loop, future)
            self._waiting.append(entry)
        try:
            await future
        finally:
            with self._lock:
                if entry in self._waiting:
                    self._waiting.remove(entry)

    def at(self, moment: datetime) -> Session | None:
        """Give the session that is in progress (open ≤ moment < close), None outside of one."""
        session = self.last(moment)
        return session if session is not None and moment < session.close else None

    def on(self, day: date) -> Session | None:
        """Give the session of a New York date, None on a day without one."""
        table = self._table
        index = bisect.bisect_left(table.days, day.isoformat())
        if index < len(table.days) and table.days[index] == day.isoformat():
            return table.sessions[index]
        return None

    def after(self, moment: datetime) -> Session | None:
        """Give the next session that opens after a moment, None past the end of the calendar."""
        table = self._table
        index = bisect.bisect_right(table.opens, moment)
        return table.sessions[index] if index < len(table.sessions) else None

    def last(self, moment: datetime) -> Session | None:
        """Give the newest session that has opened by a moment."""
        table = self._table
        index = bisect.bisect_right(table.opens, moment) - 1
        return table.sessions[index] if index >= 0 else None

    def before(self, day: date, count: int) -> list[Session]:
        """Give the `count` sessions up to and including a date, oldest first."""
        table = self._table
        end = bisect.bisect_right(table.days, day.isoformat())
        return list(table.sessions[max(0, end - count) : end])

    def between(self, first: date, last: date) -> list[Session]:
        """Give the sessions from `first` to `last`, both included."""
        table = self._table
        start = bisect.bisect_left(table.days, first.isoformat())
        return list(table.sessions[start : bisect.bisect_right(table.days, last.isoformat())])


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


# --- loading --------------------------------------------------------------------------------------------------


def load_calendar(
    name: str,
    cache_dir: Path | None,
    *,
    first: date = FIRST,
    need: date | None = None,
    today: date | None = None,
) -> Calendar:
    """Load the sessions from `first` to two years beyond `need` (default: today), and wait for them.

    The cache in `cache_dir` is used where it covers that, and made where it doesn't; None keeps nothing. Raise
    DataError in one sentence where the sessions can't be had.
    """
    need = max(need or date.min, today or wall_now().date())
    calendar = Calendar(name)
    kept = _read_cache(name, cache_dir)
    if kept is None or not kept.fresh(first, need):
        try:
            kept = _build(name, min(first, FIRST), need)
        except CalendarMissing:
            raise
        except DataError:
            if kept is None or not kept.covers(first, need):
                raise
            log.warning("the calendar %s could not be renewed; the old one is used", name)
        else:
            _write_cache(kept, cache_dir)
    calendar.fill(kept.sessions)
    return calendar


def start_loading(
    calendar: Calendar,
    cache_dir: Path | None,
    *,
    first: date = FIRST,
    now: Callable[[], datetime] = wall_now,
    told: Callable[[str | None], None] | None = None,
) -> asyncio.Task[None]:
    """Load the sessions in the background, on the running loop, and keep them two years ahead; return at once.

    A cache that covers `now()` is taken before this returns. The task is the caller's: cancel and await it.
    What goes wrong stands in `calendar.error`, is logged each time, and is tried again; `told` is called with it
    whenever it changes, and with None once it is over.
    """
    kept = _read_cache(calendar.name, cache_dir)
    if kept is not None and kept.covers(first, now().date()):
        calendar.fill(kept.sessions)
    else:
        kept = None
    keeper = _Keeper(calendar, cache_dir, first, now, told)
    task = asyncio.get_running_loop().create_task(keeper.run(kept), name=f"calendar-{calendar.name}")
    task.add_done_callback(keeper.ended)
    return task


class _Keeper:
    """Keeps one calendar loaded and two years ahead, and says so whenever it can't."""

    def __init__(
        self,
        calendar: Calendar,
        cache_dir: Path | None,
        first: date,
        now: Callable[[], datetime],
        told: Callable[[str | None], None] | None,
    ) -> None:
        self._calendar = calendar
        self._cache_dir = cache_dir
        self._first = first
        self._now = now
        self._told = told
        self._said: date | None = None
        """The day on which it was last said that the calendar runs out."""

    async def run(self, kept: _Kept | None) -> None:
        """Build what is missing, again and again, until it is cancelled."""
        pause, longest = RETRY_SECONDS
        while True:
            if kept is not None and kept.fresh(self._first, self._now().date()):
                self._look_ahead(kept)
                await asyncio.sleep(CHECK_SECONDS)
                continue
            try:
                kept = await self._build()
            except DataError as error:
                # Also where no exchange has this name: the package may be updated while the server runs.
                pause = longest if isinstance(error, CalendarMissing) else pause
                self._complain(f"{error}; trying again in {pause:g} seconds")
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
                continue
            pause = RETRY_SECONDS[0]
            self._set_error(None)
            _write_cache(kept, self._cache_dir)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Say that nothing keeps the calendar any more: its owner cancels it, and nothing else may end it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._complain(f"the exchange calendar {self._calendar.name} is no longer kept up: {error!r}")

    async def _build(self) -> _Kept:
        name = self._calendar.name
        kept = await _build_async(name, min(self._first, FIRST), max(self._now(), wall_now()).date())
        try:
            self._calendar.fill(kept.sessions)
        except ValueError as error:
            raise DataError(f"the exchange calendar {name} can't be built: {error}") from error
        return kept

    def _look_ahead(self, kept: _Kept) -> None:
        """Complain once a day about a calendar that ends soon, although its package was asked for more."""
        now = self._now()
        if kept.until - now.date() > RUNS_OUT:
            self._set_error(None)
            return
        if self._said == now.date():
            return
        self._said = now.date()
        verb = "ends" if self._sees_more() else "ended"
        self._complain(
            f"the exchange calendar {kept.name} {verb} on {kept.until}, and exchange_calendars {kept.package} "
            "knows no more of it: update that package"
        )

    def _complain(self, error: str) -> None:
        """Log it as an error where there is no session at all to look forward to, else as a warning."""
        if self._sees_more():
            log.warning("%s", error)
        else:
            log.error("%s; %s", error, WITHOUT)
        self._set_error(error)

    def _sees_more(self) -> bool:
        now = self._now()
        return (self._calendar.at(now) or self._calendar.after(now)) is not None

    def _set_error(self, error: str | None) -> None:
        changed = error != self._calendar.error
        self._calendar.error = error
        if changed and self._told is not None:
            self._told(error)


def user_cache() -> Path | None:
    """Give the folder for caches of commands that need no server: `SIGMA9_DATA_DIR`, else the user's own."""
    if folder := os.environ.get("SIGMA9_DATA_DIR"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "sigma9"
    try:
        return Path.home() / ".cache" / "sigma9"
    except RuntimeError:  # an account without a home: every call then builds the calendar anew
        return None


# --- the cache file and the child -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the child gives and the cache file keeps: all sessions from `first` to `last`."""

    name: str
    package: str
    first: date
    last: date
    sessions: Sequence[Session]
    text: bytes
    """The JSON object that it was read from."""

    @classmethod
    def parse(cls, text: bytes) -> _Kept:
        """Read the JSON; raise ValueError, KeyError or TypeError where it is broken."""
        body: dict[str, Any] = json.loads(text)
        if body["version"] != VERSION:
            raise ValueError(f"its version is {body['version']}, not {VERSION}")
        read = datetime.fromisoformat
        sessions = [Session(day, read(opens), read(closes)) for day, opens, closes in body["sessions"]]
        if not sessions:
            raise ValueError("it has no sessions")
        if any(later.open < earlier.close for earlier, later in pairwise(sessions)):
            raise ValueError("its sessions are out of order")
        first, last = date.fromisoformat(body["first"]), date.fromisoformat(body["last"])
        return cls(str(body["name"]), str(body["package"]), first, last, sessions, text)

    @property
    def until(self) -> date:
        """Give the date of the last session; the package may know fewer than it was asked for."""
        return date.fromisoformat(self.sessions[-1].day)

    def covers(self, first: date, need: date) -> bool:
        """Tell whether it reaches from `first` to `need`."""
        return self.first <= first and need <= self.last

    def fresh(self, first: date, need: date) -> bool:
        """Tell whether it covers that with time to spare, and is of the package that is installed."""
        return self.covers(first, need + SPARE) and self.package == package_version()


def package_version() -> str:
    """Tell the version of exchange_calendars that is installed."""
    try:
        return metadata.version("exchange_calendars")
    except metadata.PackageNotFoundError:
        return "missing"


def _cache_file(name: str, cache_dir: Path) -> Path:
    return cache_dir / f"calendar-{re.sub('[^A-Za-z0-9._-]', '_', name)}.json"


def _read_cache(name: str, cache_dir: Path | None) -> _Kept | None:
    """Read the cache; whatever is wrong with it, it is built anew."""
    if cache_dir is None:
        return None
    try:
        kept = _Kept.parse(_cache_file(name, cache_dir).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning(
            "the calendar's cache %s is broken (%r): it is built anew", _cache_file(name, cache_dir), error
        )
        return None
    return kept if kept.name == name else None


def _write_cache(kept: _Kept, cache_dir: Path | None) -> None:
    """Keep the sessions for the next start; a folder that can't be written costs time, not correctness."""
    if cache_dir is None:
        return
    target = _cache_file(kept.name, cache_dir)
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123 - the mode is set as the file is made
            file.write(kept.text)
        scratch.replace(target)
    except OSError as error:
        log.warning("the calendar could not be kept in %s: %s", target, error)
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _command(name: str, first: date, need: date) -> list[str]:
    last = need + AHEAD
    build = [sys.executable, "-P", "-m", "sigma9_core.calendar_build"]
    return [*build, name, first.isoformat(), last.isoformat()]


def child_environment() -> dict[str, str]:
    """Let the child find this very package: `-P` keeps the current folder out of its path."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


def _build(name: str, first: date, need: date) -> _Kept:
    try:
        done = subprocess.run(  # noqa: S603 - our own module, its arguments are a name and two dates
            _command(name, first, need),
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"the exchange calendar {name} can't be built: {error}") from error
    return _outcome(name, done.returncode, done.stdout, done.stderr)


async def _build_async(name: str, first: date, need: date) -> _Kept:
    try:
        child = await asyncio.create_subprocess_exec(
            *_command(name, first, need),
            env=child_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise DataError(f"the exchange calendar {name} can't be built: {error}") from error
    try:
        async with asyncio.timeout(BUILD_SECONDS):
            out, err = await child.communicate()
    except TimeoutError as error:
        raise DataError(
            f"the exchange calendar {name} can't be built: it took over {BUILD_SECONDS:g} seconds"
        ) from error
    finally:
        if child.returncode is None:  # too slow, or the owner cancels: leave no child behind
            child.kill()
            await child.wait()
    return _outcome(name, child.returncode or 0, out, err)


def _outcome(name: str, code: int, out: bytes, err: bytes) -> _Kept:
    said = err.decode(errors="replace").strip().splitlines()
    why = said[-1] if said else f"its process ended with code {code}"
    if code == 2:
        raise CalendarMissing(f"the exchange calendar {name} can't be built: {why}")
    if code != 0:
        raise DataError(f"the exchange calendar {name} can't be built: {why}")
    try:
        return _Kept.parse(out)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the exchange calendar {name} can't be built: the child's answer is broken") from error

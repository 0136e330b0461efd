"""The schedule: what happens when, on the market clock and on the exchange's real sessions.

APScheduler keeps the jobs and, on a live clock, the time; on a stepped clock it is started paused and `step` runs
what has become due, from the same store and triggers. It is imported late, on the start path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sigma9_core.calendar import Calendar
from sigma9_core.clock import Clock, rfc3339
from sigma9_core.config import SchedulerSettings
from sigma9_core.errors import ConfigError, Fault, Sigma9Error
from sigma9_core.models import Session

RECHECK: Final = timedelta(hours=1)
"""A session job looks again after this where the calendar ends before its next run."""
SLACK: Final = timedelta(seconds=1)
"""A wall clock may be set back this far between the timer and the job that it starts."""
TICK_SECONDS: Final = 30.0
"""How often the timer is compared with the wall clock: a machine that slept or was set must not miss a job."""
MICROSECOND: Final = timedelta(microseconds=1)

log = logging.getLogger("sigma9.schedule")

Run = Callable[[str], Awaitable[str]]
"""Carries out the job of an id; the text that it gives is the job's last result."""
Marks = Mapping[str, Mapping[str, Any]]
"""By job id: `last_run` and `next_run` (RFC 3339, market time; the second may be null) and `last_result`."""


class Trigger(Protocol):
    """When a job is due: APScheduler's own interface."""

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """Give the next time after the previous one (None: from now on); None ends the job."""


@dataclass(frozen=True, slots=True)
class Due:
    """A time at which a session job should have run by now, and until when that is worth making good."""

    at: datetime
    until: datetime | None
    after_close: bool


class SessionTrigger:
    """Fires once a session, at the moment that `moment` gives for it; None leaves a session out."""

    def __init__(self, calendar: Calendar, text: str, moment: Callable[[Session], datetime | None]) -> None:
        self._calendar = calendar
        self._text = text
        self._moment = moment

    def __str__(self) -> str:
        """Say when it fires, for APScheduler's log lines."""
        return self._text

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Give the next time; where the calendar ends before it, a time at which to look again."""
        after = now - MICROSECOND if previous_fire_time is None else previous_fire_time
        return self.next(after) or max(after, now) + RECHECK

    def next(self, after: datetime) -> datetime | None:
        """Give the first time after a moment, None past the end of the calendar."""
        since = after - timedelta(days=2)
        session = self._calendar.last(since) or self._calendar.after(since)
        while session is not None:
            at = self._moment(session)
            if at is not None and at > after:
                return at
            session = self._calendar.after(session.open)
        return None

    def due(self, now: datetime) -> Due | None:
        """Give the newest time that has come by now."""
        for session in reversed(self._calendar.before(now.date() + timedelta(days=1), 5)):
            at = self._moment(session)
            if at is None or at > now:
                continue
            if at < session.close:
                return Due(at, session.close, after_close=False)
            following = self._calendar.after(session.open)
            return Due(at, following.open if following else None, after_close=True)
        return None


def at_open(calendar: Calendar, minutes: int) -> SessionTrigger:
    """Fire so many minutes after the open (negative: before it); never where the session is over by then."""

    def moment(session: Session) -> datetime | None:
        at = session.open + timedelta(minutes=minutes)
        return at if at < session.close else None

    return SessionTrigger(calendar, f"open {minutes:+d} min", moment)


def at_time(calendar: Calendar, time: str, timezone: str) -> SessionTrigger:
    """Fire at a time of day (`16:30`) of a time zone on the date of each session, early closes included."""
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigError([Fault("configuration", "scheduler.timezone", f"no time zone '{timezone}'")]) from error
    of_day = clock_time.fromisoformat(time)

    def moment(session: Session) -> datetime:
        return datetime.combine(date.fromisoformat(session.day), of_day, zone).astimezone(UTC)

    return SessionTrigger(calendar, f"{time} {timezone}", moment)


@dataclass(slots=True)
class _Mark:
    last_run: datetime
    last_result: str
    next_run: datetime | None
    """When it was to run next, as seen from there."""


@dataclass(slots=True)
class _Job:
    id: str
    trigger: Trigger
    run: Run
    mark: _Mark | None = None
    running: bool = False


class Schedule:
    """Runs the jobs; on the outer loop.

    `market_open_scan` and `daily_data_update` come from the settings, `add` brings more. The marks (when a job ran
    last, and with what result) are loaded at the start and saved after every run.
    """

    def __init__(  # noqa: PLR0917 - the parts that it is put together from, in the order of the flow
        self,
        settings: SchedulerSettings,
        clock: Clock,
        calendar: Calendar,
        run: Run,
        load_marks: Callable[[], Marks],
        save_marks: Callable[[Marks], Awaitable[None] | None],
        *,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._calendar = calendar
        self._load_marks = load_marks
        self._save_marks = save_marks
        self._changed = changed or (lambda: None)
        self._jobs: dict[str, _Job] = {}
        self._marks: dict[str, Mapping[str, Any]] = {}
        self._scheduler: Any = None
        self._ticker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if settings.enabled and settings.market_open_scan:
            trigger = at_open(calendar, settings.market_open_offset_minutes)
            self._jobs["market_open_scan"] = _Job("market_open_scan", trigger, run)
        if settings.enabled and settings.daily_data_update:
            trigger = at_time(calendar, settings.data_update_time, settings.timezone)
            self._jobs["daily_data_update"] = _Job("daily_data_update", trigger, run)

    def add(self, job_id: str, trigger: Trigger, run: Run) -> None:
        """Add a job: `at_open`, `at_time` or a trigger of APScheduler; nothing runs where the scheduler is off."""
        if job_id in self._jobs:
            raise ValueError(f"there is a job '{job_id}' already")
        if not self._settings.enabled:
            return
        job = self._jobs[job_id] = _Job(job_id, trigger, run)
        self._take_mark(job)
        if self._scheduler is not None:
            self._enter(job)
            self._changed()

    # --- life -------------------------------------------------------------------------------------------------

    def recall(self) -> None:
        """Load the marks: what was known before a restart is shown until the calendar is there."""
        self._marks = dict(self._load_marks())
        for job in self._jobs.values():
            self._take_mark(job)

    async def start(self) -> None:
        """Wait for the calendar, load the marks, and let the jobs run from now on."""
        if not self._settings.enabled or self._scheduler is not None:
            return
        await self._calendar.ready()
        from apscheduler.schedulers.asyncio import AsyncIOScheduler  # noqa: PLC0415 - only a server that starts pays

        if not self._marks:
            self.recall()
        live = self._clock.kind == "live"
        # However late it is, a job is run, once: whether that is still worth it is decided in _fire.
        self._scheduler = AsyncIOScheduler(
            timezone=UTC, job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        )
        self._scheduler.start(paused=not live)
        for job in self._jobs.values():
            self._enter(job)
        if live:
            self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="schedule")
        self._changed()

    async def catch_up(self) -> None:
        """Make good, once, what was missed while the server was down, and return when it is done.

        A run of the session in progress is made good until its close; one that was due after a close until the
        next open, and only where the job has run before.
        """
        now = self._clock.now()
        missed: list[tuple[datetime, _Job]] = []
        for job in self._jobs.values():
            due = self._outstanding(job, now)
            if due is not None and not (due.after_close and job.mark is None):
                missed.append((due.at, job))
        for at, job in sorted(missed, key=lambda entry: entry[0]):
            log.info("%s was due at %s and is made good now", job.id, rfc3339(at))
            await self._carry_out(job)

    async def step(self, now: datetime) -> None:
        """On a stepped clock: run what has become due by `now`, one after the other; return when it is done."""
        if self._scheduler is None or self._clock.kind == "live":
            return
        while (entry := self._first_due(now)) is not None:
            job, at = entry
            following = job.trigger.get_next_fire_time(at, now)
            while following is not None and following <= now:  # a jump: several runs of a job become one
                following = job.trigger.get_next_fire_time(following, now)
            if following is None:
                self._scheduler.remove_job(job.id)
            else:
                self._scheduler.modify_job(job.id, next_run_time=following)
            await self._fire(job, now)

    async def stop(self) -> None:
        """End the timer, cancel what runs, and wait for its end; a run that is cut off leaves no mark."""
        scheduler, self._scheduler = self._scheduler, None
        tasks = [*self._tasks] + ([self._ticker] if self._ticker else [])
        self._ticker = None
        if scheduler is not None:
            scheduler.shutdown(wait=False)
            await asyncio.sleep(0)  # it shuts down on the next turn of the loop
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what clients see -------------------------------------------------------------------------------------

    def body(self) -> dict[str, Any]:
        """Give the body of `state/schedule` (contract 1)."""
        return {"timezone": self._settings.timezone, "jobs": [self._row(job) for job in self._jobs.values()]}

    def _row(self, job: _Job) -> dict[str, Any]:
        following = self._next_run(job)
        return {
            "id": job.id,
            "next_run": None if following is None else rfc3339(following),
            "last_run": None if job.mark is None else rfc3339(job.mark.last_run),
            "last_result": None if job.mark is None else job.mark.last_result,
        }

    def _next_run(self, job: _Job) -> datetime | None:
        if self._scheduler is None:
            planned = None if job.mark is None else job.mark.next_run
            return None if planned is None or planned <= self._clock.now() else planned
        if isinstance(job.trigger, SessionTrigger):
            return job.trigger.next(self._clock.now())
        entry = self._scheduler.get_job(job.id)
        following: datetime | None = None if entry is None else entry.next_run_time
        return following

    # --- jobs -------------------------------------------------------------------------------------------------

    def _enter(self, job: _Job) -> None:
        from apscheduler.triggers.base import BaseTrigger  # noqa: PLC0415 - see start

        if not isinstance(job.trigger, BaseTrigger):
            BaseTrigger.register(type(job.trigger))
        first = job.trigger.get_next_fire_time(None, self._clock.now())
        if first is not None:
            self._scheduler.add_job(
                self._timer_fired, job.trigger, args=[job], id=job.id, name=job.id, next_run_time=first
            )

    async def _timer_fired(self, job: _Job) -> None:
        """Start a job for APScheduler in a task of our own, which `stop` cancels and awaits."""
        work = self._fire(job, self._clock.now() + SLACK)
        task = asyncio.get_running_loop().create_task(work, name=f"schedule[{job.id}]")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._scheduler.wakeup()

    def _first_due(self, now: datetime) -> tuple[_Job, datetime] | None:
        entries = [entry for entry in self._scheduler.get_jobs() if entry.next_run_time <= now]
        if not entries:
            return None
        first = min(entries, key=lambda entry: entry.next_run_time)
        return self._jobs[first.id], first.next_run_time

    async def _fire(self, job: _Job, now: datetime) -> None:
        """Run a job that is due; a session job that is late (a jump, a sleeping machine) while it is worth it."""
        if isinstance(job.trigger, SessionTrigger) and self._outstanding(job, now) is None:
            log.info("%s is left out: its time is over, or it has run already", job.id)
            return
        await self._carry_out(job)

    def _outstanding(self, job: _Job, now: datetime) -> Due | None:
        """Give the run that a session job has missed and that is still worth making good."""
        if not isinstance(job.trigger, SessionTrigger) or self._scheduler is None:
            return None
        due = job.trigger.due(now)
        if due is None or (due.until is not None and now >= due.until):
            return None
        return None if job.mark is not None and job.mark.last_run >= due.at else due

    async def _carry_out(self, job: _Job) -> None:
        if job.running:
            log.warning("%s is still running; it is not started again", job.id)
            return
        job.running = True
        started = self._clock.now()
        try:
            result = await job.run(job.id)
        except Sigma9Error as error:
            result = f"failed: {error}"
            log.warning("%s failed: %s", job.id, error)
        except Exception as error:  # whatever a job runs into, the others and its next run go on
            result = f"failed: {type(error).__name__}: {error}"
            log.exception("%s failed", job.id)
        finally:
            job.running = False
        job.mark = _Mark(started, result, self._next_run(job))
        self._marks[job.id] = {key: value for key, value in self._row(job).items() if key != "id"}
        try:
            saving = self._save_marks(dict(self._marks))
            if saving is not None:
                await saving
        except (Sigma9Error, OSError) as error:
            log.warning("the schedule's marks could not be saved: %s", error)
        self._changed()

    def _take_mark(self, job: _Job) -> None:
        """Take what was remembered of a job; a mark ahead of the clock is of another run of this market's time."""
        mark = self._marks.get(job.id)
        if mark is None:
            return
        try:
            last_run, result = datetime.fromisoformat(mark["last_run"]), str(mark["last_result"])
            following = mark.get("next_run")
            if last_run <= self._clock.now():
                next_run = None if following is None else max(last_run, datetime.fromisoformat(following))
                job.mark = _Mark(last_run, result, next_run)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("the mark of %s can't be read (%r): it counts as never run", job.id, error)

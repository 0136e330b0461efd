"""The schedule: right on early closes, holidays and clock changes, on a stepped clock and on a live one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest

from sigma9_core import schedule as module
from sigma9_core.calendar import Calendar, load_calendar
from sigma9_core.clock import LiveClock, SteppedClock, wall_now
from sigma9_core.config import SchedulerSettings
from sigma9_core.errors import CommandError, ConfigError, StateError
from sigma9_core.models import Session
from sigma9_core.schedule import Schedule, at_open, at_time

NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture(scope="session", name="xnys")
def _xnys(tmp_path_factory: pytest.TempPathFactory) -> Calendar:
    return load_calendar("XNYS", tmp_path_factory.getbasetemp() / "sigma9", today=date(2026, 11, 20))


def ny(text: str) -> datetime:
    """Read a New York time."""
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).astimezone(UTC)


class Desk:
    """A schedule with everything that it needs, and a log of what it ran."""

    def __init__(self, calendar: Calendar, start: str | datetime, **settings: Any) -> None:
        self.clock = SteppedClock("simulated", ny(start) if isinstance(start, str) else start)
        self.calendar = calendar
        self.ran: list[tuple[str, str]] = []
        self.saved: Mapping[str, Mapping[str, Any]] = {}
        self.changes = 0
        self.fails: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.settings = SchedulerSettings(**settings)
        self.schedule = self.make()

    def make(self) -> Schedule:
        """Make a new schedule over the same marks, as a restart does."""
        return Schedule(
            self.settings, self.clock, self.calendar, self.run, lambda: self.saved, self.save, changed=self.changed
        )

    def changed(self) -> None:
        self.changes += 1

    def save(self, marks: Mapping[str, Mapping[str, Any]]) -> None:
        self.saved = json.loads(json.dumps(marks))

    async def run(self, job: str) -> str:
        if self.gate is not None:
            await self.gate.wait()
        self.ran.append((job, f"{self.clock.now().astimezone(NEW_YORK):%m-%d %H:%M}"))
        if self.fails is not None:
            raise self.fails
        return f"run {len(self.ran)}"

    async def walk(self, until: str, minutes: int = 5) -> None:
        """Move the clock in steps, as a feed does."""
        end = ny(until)
        while self.clock.now() < end:
            self.clock.advance(min(self.clock.now() + timedelta(minutes=minutes), end))
            await self.schedule.step(self.clock.now())

    def times(self, job: str) -> list[str]:
        return [at for name, at in self.ran if name == job]

    def row(self, job: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.schedule.body()["jobs"]
        return next(row for row in rows if row["id"] == job)


# --- a stepped clock ------------------------------------------------------------------------------------------


async def test_thanksgiving_week(xnys: Calendar) -> None:
    """No scan on Thanksgiving and at the weekend, one on the early close, and the update at 16:30 then, too."""
    desk = Desk(xnys, "2026-11-25 00:00")
    await desk.schedule.start()
    await desk.walk("2026-12-01 00:00")

    assert desk.times("market_open_scan") == ["11-25 09:45", "11-27 09:45", "11-30 09:45"]
    assert desk.times("daily_data_update") == ["11-25 16:30", "11-27 16:30", "11-30 16:30"]
    await desk.schedule.stop()


async def test_christmas_week(xnys: Calendar) -> None:
    """Christmas Eve is an early close, Christmas is none, and the week after goes on."""
    desk = Desk(xnys, "2026-12-23 12:00")
    await desk.schedule.start()
    await desk.walk("2026-12-29 00:00")

    assert desk.times("market_open_scan") == ["12-24 09:45", "12-28 09:45"]
    assert desk.times("daily_data_update") == ["12-23 16:30", "12-24 16:30", "12-28 16:30"]
    await desk.schedule.stop()


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [
        ("2026-03-05 00:00", "2026-03-10 00:00", [14, 14, 13]),
        ("2026-10-29 00:00", "2026-11-03 00:00", [13, 13, 14]),
    ],
)
async def test_clock_changes(xnys: Calendar, start: str, end: str, hours: list[int]) -> None:
    """Over both clock changes the scan stays at 09:45 and the update at 16:30 in New York; UTC moves."""
    desk = Desk(xnys, start)
    utc: list[int] = []
    run = desk.run

    async def noted(job: str) -> str:
        if job == "market_open_scan":
            utc.append(desk.clock.now().hour)
        return await run(job)

    desk.schedule = Schedule(desk.settings, desk.clock, xnys, noted, dict, desk.save)
    await desk.schedule.start()
    await desk.walk(end)

    assert [at[-5:] for at in desk.times("market_open_scan")] == ["09:45"] * 3
    assert [at[-5:] for at in desk.times("daily_data_update")] == ["16:30"] * 3
    assert utc == hours
    await desk.schedule.stop()


async def test_a_negative_offset_scans_before_the_open(xnys: Calendar) -> None:
    """An offset of -30 scans at 09:00, on the days that have a session."""
    desk = Desk(xnys, "2026-11-25 12:00", market_open_offset_minutes=-30, daily_data_update=False)
    await desk.schedule.start()
    await desk.walk("2026-12-01 00:00")

    assert desk.ran == [("market_open_scan", "11-27 09:00"), ("market_open_scan", "11-30 09:00")]
    assert [row["id"] for row in desk.schedule.body()["jobs"]] == ["market_open_scan"]
    await desk.schedule.stop()


async def test_a_scan_that_would_come_after_an_early_close_is_left_out(xnys: Calendar) -> None:
    """Five hours after the open there is no session on an early close."""
    desk = Desk(xnys, "2026-11-25 00:00", market_open_offset_minutes=300, daily_data_update=False)
    await desk.schedule.start()
    await desk.walk("2026-12-01 00:00")

    assert desk.times("market_open_scan") == ["11-25 14:30", "11-30 14:30"]
    await desk.schedule.stop()


async def test_the_body_tells_next_and_last(xnys: Calendar) -> None:
    """state/schedule has RFC 3339 times of the next and last run, and each run's result; `changed` is called."""
    desk = Desk(xnys, "2026-11-27 09:44")
    assert desk.row("market_open_scan") == {
        "id": "market_open_scan",
        "next_run": None,
        "last_run": None,
        "last_result": None,
    }
    await desk.schedule.start()
    assert desk.changes == 1
    assert desk.row("market_open_scan")["next_run"] == "2026-11-27T14:45:00.000000Z"
    await desk.walk("2026-11-27 09:45", minutes=1)

    assert desk.changes == 2
    assert desk.schedule.body() == {
        "timezone": "America/New_York",
        "jobs": [
            {
                "id": "market_open_scan",
                "next_run": "2026-11-30T14:45:00.000000Z",
                "last_run": "2026-11-27T14:45:00.000000Z",
                "last_result": "run 1",
            },
            {
                "id": "daily_data_update",
                "next_run": "2026-11-27T21:30:00.000000Z",
                "last_run": None,
                "last_result": None,
            },
        ],
    }
    await desk.schedule.stop()


async def test_a_jump_runs_each_job_once_and_in_order(xnys: Calendar) -> None:
    """A clock that jumps over days runs the newest of each job, and no scan of a session that is over."""
    desk = Desk(xnys, "2026-11-23 00:00")
    await desk.schedule.start()
    desk.clock.advance(ny("2026-11-25 10:00"))
    await desk.schedule.step(desk.clock.now())
    assert desk.ran == [("market_open_scan", "11-25 10:00")]

    desk.clock.advance(ny("2026-11-28 12:00"))
    await desk.schedule.step(desk.clock.now())
    assert desk.ran[1:] == [("daily_data_update", "11-28 12:00")]
    await desk.schedule.stop()


async def test_a_step_without_anything_due_does_nothing(xnys: Calendar) -> None:
    """The same time twice, or a time before the next run, runs nothing; before the start nothing runs at all."""
    desk = Desk(xnys, "2026-11-27 09:45")
    await desk.schedule.step(desk.clock.now())
    assert desk.ran == []
    await desk.schedule.start()
    for _ in range(3):
        await desk.schedule.step(desk.clock.now())

    assert desk.times("market_open_scan") == ["11-27 09:45"]
    await desk.schedule.stop()


async def test_a_failure_is_a_result(xnys: Calendar) -> None:
    """A job that fails says so in its last result, is not repeated, and the next one runs."""
    desk = Desk(xnys, "2026-11-25 09:00")
    await desk.schedule.start()
    desk.fails = RuntimeError("no bars")
    await desk.walk("2026-11-25 12:00")
    assert desk.row("market_open_scan")["last_result"] == "failed: RuntimeError: no bars"
    desk.fails = CommandError("busy", "a scan is running already")
    await desk.walk("2026-11-25 17:00")
    assert desk.row("daily_data_update")["last_result"] == "failed: a scan is running already"
    desk.fails = None
    await desk.walk("2026-11-27 10:00")

    assert len(desk.ran) == 3
    assert desk.row("market_open_scan")["last_result"] == "run 3"
    await desk.schedule.stop()


async def test_past_the_calendars_end_it_looks_again(xnys: Calendar) -> None:
    """Where the calendar ends no next run is shown; once it has grown the job runs again."""
    friday = xnys.on(date(2026, 11, 27))
    monday = xnys.on(date(2026, 11, 30))
    assert friday is not None
    assert monday is not None
    short = Calendar("XNYS", [friday])
    desk = Desk(short, "2026-11-27 09:00", daily_data_update=False)
    await desk.schedule.start()
    await desk.walk("2026-11-28 12:00")
    assert desk.times("market_open_scan") == ["11-27 09:45"]
    assert desk.row("market_open_scan")["next_run"] is None

    short.fill([friday, monday])
    assert desk.row("market_open_scan")["next_run"] == "2026-11-30T14:45:00.000000Z"
    await desk.walk("2026-12-02 00:00")
    assert desk.times("market_open_scan") == ["11-27 09:45", "11-30 09:45"]
    await desk.schedule.stop()


async def test_it_waits_for_the_calendar(xnys: Calendar) -> None:
    """A start before the sessions are there goes on once they are."""
    later = Calendar("XNYS")
    desk = Desk(later, "2026-11-27 09:00")
    starting = asyncio.create_task(desk.schedule.start())
    await asyncio.sleep(0)
    assert not starting.done()
    assert desk.row("market_open_scan")["next_run"] is None
    later.fill(xnys.between(date(2026, 11, 1), date(2026, 12, 31)))
    async with asyncio.timeout(5):
        await starting

    assert desk.row("market_open_scan")["next_run"] == "2026-11-27T14:45:00.000000Z"
    await desk.schedule.stop()


# --- settings -------------------------------------------------------------------------------------------------


async def test_switched_off_it_has_no_jobs(xnys: Calendar) -> None:
    """enabled: false gives a body without jobs, and nothing ever runs, added jobs included."""
    desk = Desk(xnys, "2026-11-25 00:00", enabled=False)
    desk.schedule.add("more", at_open(xnys, 0), desk.run)
    await desk.schedule.start()
    await desk.walk("2026-12-01 00:00", minutes=60)
    await desk.schedule.catch_up()

    assert desk.schedule.body() == {"timezone": "America/New_York", "jobs": []}
    assert desk.ran == []
    await desk.schedule.stop()


async def test_more_jobs_can_be_added(xnys: Calendar) -> None:
    """add takes session triggers and APScheduler's own, before and after the start; a name is taken once."""
    from apscheduler.triggers.interval import IntervalTrigger

    desk = Desk(xnys, "2026-11-27 09:00", daily_data_update=False, market_open_scan=False)
    desk.schedule.add("first", at_open(xnys, 0), desk.run)
    await desk.schedule.start()
    desk.schedule.add("second", at_time(xnys, "10:30", "Europe/London"), desk.run)
    desk.schedule.add("third", IntervalTrigger(hours=2, start_date=ny("2026-11-27 10:00"), timezone=UTC), desk.run)
    with pytest.raises(ValueError, match="'first' already"):
        desk.schedule.add("first", at_open(xnys, 0), desk.run)
    assert desk.row("third")["next_run"] == "2026-11-27T15:00:00.000000Z"
    await desk.walk("2026-11-27 13:00", minutes=10)
    await desk.walk("2026-11-30 06:00", minutes=600)

    assert desk.times("first") == ["11-27 09:30"]
    assert desk.times("second") == ["11-30 06:00"]
    assert desk.times("third")[:2] == ["11-27 10:00", "11-27 12:00"]
    await desk.schedule.stop()


def test_a_wrong_time_zone_is_a_configuration_fault(xnys: Calendar) -> None:
    """The setting is named."""
    with pytest.raises(ConfigError, match="no time zone 'Mars/Olympus'"):
        at_time(xnys, "16:30", "Mars/Olympus")


def test_importing_the_schedule_imports_no_apscheduler() -> None:
    """apscheduler is imported by the start alone."""
    import subprocess

    code = "import sys, sigma9_core.schedule; sys.exit('apscheduler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- restarts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "ran"),
    [
        ("2026-11-27 09:30", []),
        ("2026-11-27 09:46", ["11-27 09:46"]),
        ("2026-11-27 12:59", ["11-27 12:59"]),
        ("2026-11-27 13:00", []),
        ("2026-11-28 12:00", []),
        ("2026-11-26 12:00", []),
    ],
)
async def test_a_missed_scan_is_made_good_in_its_session(xnys: Calendar, start: str, ran: list[str]) -> None:
    """A first start between scan time and close scans at once; before, after, and on a holiday it does not."""
    desk = Desk(xnys, start)
    await desk.schedule.start()
    await desk.schedule.catch_up()
    await desk.schedule.catch_up()
    await desk.schedule.step(desk.clock.now())

    assert desk.ran == [("market_open_scan", at) for at in ran]
    await desk.schedule.stop()


async def test_marks_survive_a_restart(xnys: Calendar) -> None:
    """What ran before the restart is not run again that day, and is still told; the next session is new."""
    desk = Desk(xnys, "2026-11-27 09:00")
    await desk.schedule.start()
    await desk.walk("2026-11-27 10:00")
    await desk.schedule.stop()
    scan = {"next_run": "2026-11-30T14:45:00.000000Z", "last_run": "2026-11-27T14:45:00.000000Z"}
    assert desk.saved == {"market_open_scan": {**scan, "last_result": "run 1"}}

    desk.schedule = desk.make()
    await desk.schedule.start()
    await desk.schedule.catch_up()
    assert len(desk.ran) == 1
    assert desk.row("market_open_scan")["last_result"] == "run 1"
    await desk.schedule.stop()

    desk.clock.advance(ny("2026-11-30 11:00"))
    desk.schedule = desk.make()
    await desk.schedule.start()
    await desk.schedule.catch_up()
    assert desk.times("market_open_scan") == ["11-27 09:45", "11-30 11:00"]
    await desk.schedule.stop()


async def test_a_missed_update_is_made_good_until_the_next_open(xnys: Calendar) -> None:
    """The update of Friday is made good on Sunday, but not on Monday in session, and never on a first start."""
    desk = Desk(xnys, "2026-11-28 12:00", market_open_scan=False)
    await desk.schedule.start()
    await desk.schedule.catch_up()
    assert desk.ran == []
    await desk.schedule.stop()

    old = {"daily_data_update": {"last_run": "2026-11-25T21:30:00.000000Z", "last_result": "ok"}}
    for start, count in (("2026-11-29 12:00", 1), ("2026-11-30 09:30", 0)):
        desk = Desk(xnys, start, market_open_scan=False)
        desk.saved = old
        await desk.schedule.start()
        await desk.schedule.catch_up()
        assert len(desk.ran) == count
        await desk.schedule.stop()


async def test_a_mark_of_the_future_does_not_count(xnys: Calendar) -> None:
    """A market that starts over (a replay, a reset simulation) scans again on its earlier days."""
    desk = Desk(xnys, "2026-11-25 09:00")
    desk.saved = {"market_open_scan": {"last_run": "2026-12-24T14:45:00.000000Z", "last_result": "x"}}
    await desk.schedule.start()
    assert desk.row("market_open_scan")["last_run"] is None
    await desk.walk("2026-11-25 10:00")

    assert desk.times("market_open_scan") == ["11-25 09:45"]
    await desk.schedule.stop()


async def test_what_was_known_is_shown_until_the_calendar_is_there(xnys: Calendar) -> None:
    """Recalled after a restart, last and next run are told before the start; a next run that is over is not."""
    desk = Desk(xnys, "2026-11-27 09:00")
    await desk.schedule.start()
    await desk.walk("2026-11-27 10:00")
    known = desk.row("market_open_scan")
    assert known["next_run"] == "2026-11-30T14:45:00.000000Z"
    await desk.schedule.stop()

    desk.schedule = desk.make()
    desk.schedule.recall()
    assert desk.row("market_open_scan") == known
    desk.clock.advance(ny("2026-11-30 11:00"))
    assert desk.row("market_open_scan") == {**known, "next_run": None}


@pytest.mark.parametrize(
    "mark",
    [
        {},
        {"last_run": 5, "last_result": ""},
        {"last_run": "x", "last_result": ""},
        {"last_run": "2026-11-25T14:46:00Z", "last_result": "", "next_run": "2026-11-26T14:45:00"},
        [],
        "?",
    ],
)
async def test_a_broken_mark_counts_as_never_run(xnys: Calendar, mark: Any) -> None:
    """The schedule starts all the same, and makes the scan good."""
    desk = Desk(xnys, "2026-11-25 10:00")
    desk.saved = {"market_open_scan": mark}
    await desk.schedule.start()
    await desk.schedule.catch_up()

    assert desk.times("market_open_scan") == ["11-25 10:00"]
    await desk.schedule.stop()


async def test_marks_that_cannot_be_saved_do_not_stop_the_day(xnys: Calendar) -> None:
    """An asynchronous save is awaited; one that fails is logged, and the next job runs."""
    desk = Desk(xnys, "2026-11-25 09:00")
    saves: list[str] = []

    async def save(marks: Mapping[str, Mapping[str, Any]]) -> None:
        saves.extend(marks)
        raise StateError("the disk is full")

    desk.schedule = Schedule(desk.settings, desk.clock, xnys, desk.run, dict, save)
    await desk.schedule.start()
    await desk.walk("2026-11-25 17:00")

    assert [job for job, _ in desk.ran] == ["market_open_scan", "daily_data_update"]
    assert saves == ["market_open_scan", "market_open_scan", "daily_data_update"]
    await desk.schedule.stop()


async def test_marks_survive_in_a_file(xnys: Calendar, tmp_path: Path) -> None:
    """The marks are plain JSON: whatever keeps documents can keep them."""
    file = tmp_path / "marks.json"
    desk = Desk(xnys, "2026-11-27 09:00")

    def load() -> Any:
        return json.loads(file.read_text()) if file.exists() else {}

    def save(marks: Mapping[str, Mapping[str, Any]]) -> None:
        file.write_text(json.dumps(marks))

    def made() -> Schedule:
        return Schedule(desk.settings, desk.clock, xnys, desk.run, load, save)

    desk.schedule = made()
    await desk.schedule.start()
    await desk.walk("2026-11-27 10:00")
    await desk.schedule.stop()
    desk.schedule = made()
    await desk.schedule.start()

    assert desk.row("market_open_scan")["last_run"] == "2026-11-27T14:45:00.000000Z"
    await desk.schedule.stop()


# --- a live clock ---------------------------------------------------------------------------------------------


async def _until(condition: Callable[[], object]) -> None:
    """Wait until something holds, at most ten seconds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come true in ten seconds")


def _live(desk: Desk, opens: datetime, length: timedelta = timedelta(hours=6)) -> Schedule:
    """Make a live schedule over one session that opens about now."""
    calendar = Calendar("TEST", [Session(opens.date().isoformat(), opens, opens + length)])
    settings = SchedulerSettings(market_open_offset_minutes=0, daily_data_update=False)
    return Schedule(settings, LiveClock(), calendar, desk.run, lambda: desk.saved, desk.save, changed=desk.changed)


async def test_a_live_clock_runs_a_job_when_its_time_comes(xnys: Calendar) -> None:
    """APScheduler starts the job at its time, once; the body then shows it, and the calendar's end."""
    desk = Desk(xnys, "2026-11-27 09:00")
    opens = wall_now() + timedelta(seconds=0.3)
    desk.schedule = _live(desk, opens)
    await desk.schedule.start()
    await desk.schedule.catch_up()
    assert desk.ran == []
    assert desk.row("market_open_scan")["next_run"] is not None
    await _until(lambda: desk.saved)

    assert wall_now() >= opens
    assert len(desk.ran) == 1
    row = desk.row("market_open_scan")
    assert (row["next_run"], row["last_result"]) == (None, "run 1")
    await desk.schedule.stop()


async def test_a_live_start_in_session_catches_up_once(xnys: Calendar) -> None:
    """A live start after the scan time scans at once, and a second start that day does not."""
    desk = Desk(xnys, "2026-11-27 09:00")
    opens = wall_now() - timedelta(minutes=5)
    for _ in range(2):
        desk.schedule = _live(desk, opens)
        await desk.schedule.start()
        await desk.schedule.catch_up()
        await desk.schedule.stop()

    assert len(desk.ran) == 1


async def test_a_machine_that_slept_runs_what_it_missed(xnys: Calendar, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that does not fire is made up for by the next look at the wall clock."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.05)
    desk = Desk(xnys, "2026-11-27 09:00")
    desk.schedule = _live(desk, wall_now() + timedelta(seconds=0.2))
    await desk.schedule.start()
    await asyncio.sleep(0)
    monkeypatch.setattr(desk.schedule._scheduler, "_start_timer", lambda _seconds: None)
    desk.schedule._scheduler._stop_timer()
    await _until(lambda: desk.saved)

    assert len(desk.ran) == 1
    await desk.schedule.stop()


@pytest.mark.parametrize("when", ["running", "idle"])
async def test_stop_ends_what_runs(xnys: Calendar, when: Literal["running", "idle"]) -> None:
    """stop cancels a running job and leaves no task behind; what was cut off has no mark and is made good."""
    desk = Desk(xnys, "2026-11-27 09:00")
    desk.gate = asyncio.Event()
    opens = wall_now() + timedelta(seconds=0.05 if when == "running" else 3600)
    desk.schedule = _live(desk, opens)
    await desk.schedule.start()
    if when == "running":
        await _until(lambda: desk.schedule._jobs["market_open_scan"].running)
    await desk.schedule.stop()
    await desk.schedule.stop()

    assert desk.saved == {}
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("schedule")] == []
    if when == "running":
        desk.gate = None
        desk.schedule = _live(desk, opens)
        await desk.schedule.start()
        await desk.schedule.catch_up()
        assert len(desk.ran) == 1
        await desk.schedule.stop()


async def test_a_job_that_is_still_running_is_not_started_again(xnys: Calendar) -> None:
    """Catching up while the timer's run goes on starts no second one."""
    desk = Desk(xnys, "2026-11-27 09:00")
    desk.gate = asyncio.Event()
    desk.schedule = _live(desk, wall_now() - timedelta(minutes=5))
    await desk.schedule.start()
    first = asyncio.create_task(desk.schedule.catch_up())
    await _until(lambda: desk.schedule._jobs["market_open_scan"].running)
    await desk.schedule.catch_up()
    desk.gate.set()
    await first

    assert len(desk.ran) == 1
    await desk.schedule.stop()

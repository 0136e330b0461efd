"""The exchange calendar: real sessions, a cache that survives anything, and waiting from every lane."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from sigma9_core import calendar as module
from sigma9_core.calendar import Calendar, CalendarMissing, load_calendar, start_loading, user_cache
from sigma9_core.errors import DataError
from sigma9_core.lanes import Lane
from sigma9_core.models import Session

TODAY = date(2026, 11, 20)


@pytest.fixture(scope="session", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of a run: the child takes about a second."""
    return tmp_path_factory.getbasetemp() / "sigma9"


@pytest.fixture(scope="session", name="xnys")
def _xnys(folder: Path) -> Calendar:
    return load_calendar("XNYS", folder, today=TODAY)


@pytest.fixture(name="cache")
def _cache(folder: Path, xnys: Calendar, tmp_path: Path) -> Path:
    """A cache folder of the test's own, filled."""
    assert xnys.loaded
    (tmp_path / "calendar-XNYS.json").write_bytes((folder / "calendar-XNYS.json").read_bytes())
    return tmp_path


def _no_child(*_: object) -> list[str]:
    raise AssertionError("a child was started, and the cache was good")


def _session(day: str, opens: int = 14, closes: int = 21) -> Session:
    first = datetime.fromisoformat(day).replace(tzinfo=UTC)
    return Session(day, first + timedelta(hours=opens), first + timedelta(hours=closes))


@pytest.mark.parametrize(
    ("day", "opens", "closes"),
    [
        (date(2011, 3, 11), "14:30", "21:00"),
        (date(2011, 3, 14), "13:30", "20:00"),
        (date(2016, 11, 25), "14:30", "18:00"),
        (date(2026, 11, 25), "14:30", "21:00"),
        (date(2026, 11, 27), "14:30", "18:00"),
        (date(2026, 12, 24), "14:30", "18:00"),
        (date(2027, 11, 26), "14:30", "18:00"),
    ],
)
def test_sessions_have_their_real_hours(xnys: Calendar, day: date, opens: str, closes: str) -> None:
    """Daylight saving and early closes are right, from 2011 to 2027."""
    session = xnys.on(day)

    assert session is not None
    assert (f"{session.open:%H:%M}", f"{session.close:%H:%M}") == (opens, closes)


@pytest.mark.parametrize("day", [date(2026, 11, 26), date(2026, 6, 19), date(2027, 6, 18), date(2016, 1, 18)])
def test_holidays_have_no_session(xnys: Calendar, day: date) -> None:
    """Thanksgiving, Juneteenth (observed, too) and Martin Luther King Day have no session."""
    assert xnys.on(day) is None


def test_it_reaches_from_2010_to_two_years_ahead(xnys: Calendar) -> None:
    """Real data back to 2011 and simulated days are covered."""
    assert xnys.first == date(2010, 1, 4)
    assert xnys.final is not None
    assert xnys.final > TODAY + timedelta(days=700)


def test_searching_is_by_half_open_sessions(xnys: Calendar) -> None:
    """The open belongs to a session, the close does not; after and last look to both sides."""
    friday = xnys.on(date(2026, 11, 27))
    assert friday is not None

    assert xnys.at(friday.open) == friday
    assert xnys.at(friday.close) is None
    assert xnys.at(friday.open - timedelta(microseconds=1)) is None
    assert xnys.last(friday.close) == friday
    following = xnys.after(friday.open)
    assert following is not None
    assert following.day == "2026-11-30"
    assert [s.day for s in xnys.before(date(2026, 11, 28), 2)] == ["2026-11-25", "2026-11-27"]
    assert [s.day for s in xnys.between(date(2026, 11, 26), date(2026, 11, 30))] == ["2026-11-27", "2026-11-30"]


def test_an_empty_calendar_knows_nothing() -> None:
    """Before it is loaded every question is answered with nothing."""
    empty = Calendar("XNYS")
    now = datetime(2026, 11, 20, 15, tzinfo=UTC)

    assert (empty.loaded, empty.first, empty.final, empty.error) == (False, None, None, None)
    assert (empty.at(now), empty.on(now.date()), empty.after(now), empty.last(now)) == (None,) * 4
    assert empty.before(now.date(), 3) == empty.between(now.date(), now.date()) == []


def test_sessions_out_of_order_are_refused() -> None:
    """A calendar that could not be searched is not taken."""
    with pytest.raises(ValueError, match="not sorted"):
        Calendar("X", [_session("2026-11-23"), _session("2026-11-20")])


# --- the cache ------------------------------------------------------------------------------------------------


def test_the_cache_is_private_small_and_quick(cache: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The cache file has mode 0600, stays below a megabyte, and loads without a child in some 10 ms."""
    monkeypatch.setattr(module, "_command", _no_child)
    kept = folder / "calendar-XNYS.json"
    times = []
    for _ in range(5):
        began = time.process_time()  # of the clock's time, a busy machine takes what it likes
        load_calendar("XNYS", cache, today=TODAY)
        times.append(time.process_time() - began)

    assert kept.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert kept.stat().st_size < 1_000_000
    assert min(times) < 0.03


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b"{}",
        b'{"version":99}',
        b'{"version":1,"name":"XNYS","package":"1","first":"x","last":"y","sessions":[]}',
        b'{"version":1,"name":"XNYS","package":"1","first":"2010-01-01","last":"2030-01-01","sessions":[["a"]]}',
        (
            b'{"version":1,"name":"XNYS","package":"1","first":"2010-01-01","last":"2030-01-01",'
            b'"sessions":[["2020-01-02","2020-01-02T14:30Z","2020-01-02T21:00Z"],'
            b'["2020-01-01","2020-01-01T14:30Z","2020-01-01T21:00Z"]]}'
        ),
    ],
)
def test_a_broken_cache_is_built_anew(
    text: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Whatever stands in the cache file, the sessions come from the child and the file is written again."""
    good = (folder / "calendar-XNYS.json").read_bytes()
    monkeypatch.setattr(module, "_command", lambda *_: ["cat", str(folder / "calendar-XNYS.json")])
    (cache / "calendar-XNYS.json").write_bytes(text)

    assert load_calendar("XNYS", cache, today=TODAY).on(date(2026, 11, 27)) is not None
    assert (cache / "calendar-XNYS.json").read_bytes() == good


@pytest.mark.parametrize("change", ["package", "ends soon", "starts late"])
def test_a_cache_that_no_longer_fits_is_built_anew(
    change: str, cache: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Another version of the package, less than 60 days ahead, or data from before its start: the child runs."""
    asked: list[tuple[date, date]] = []

    def command(_name: str, first: date, need: date) -> list[str]:
        asked.append((first, need))
        return ["cat", str(folder / "calendar-XNYS.json")]

    monkeypatch.setattr(module, "_command", command)
    today, first = TODAY, module.FIRST
    body = json.loads((cache / "calendar-XNYS.json").read_bytes())
    if change == "package":
        body["package"] = "0.0"
    elif change == "ends soon":
        body["last"] = (TODAY + timedelta(days=59)).isoformat()
    else:
        first = date(2005, 6, 1)
    (cache / "calendar-XNYS.json").write_text(json.dumps(body))

    load_calendar("XNYS", cache, today=today, first=first)

    assert asked == [(first, TODAY)]


def test_an_old_cache_is_used_where_the_child_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that still covers the day beats no calendar at all."""
    body = json.loads((cache / "calendar-XNYS.json").read_bytes())
    (cache / "calendar-XNYS.json").write_text(json.dumps({**body, "package": "0.0"}))
    monkeypatch.setattr(module, "_command", lambda *_: ["false"])

    assert load_calendar("XNYS", cache, today=TODAY).loaded


def test_an_unwritable_cache_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Where the folder can't be made the calendar is loaded all the same."""
    monkeypatch.setattr(module, "_command", lambda *_: ["cat", str(folder / "calendar-XNYS.json")])
    (tmp_path / "file").write_text("")

    assert load_calendar("XNYS", tmp_path / "file", today=TODAY).loaded


def test_a_name_with_a_slash_stays_in_its_folder(tmp_path: Path) -> None:
    """A calendar such as 24/7 can't write elsewhere."""
    assert module._cache_file("../24/7", tmp_path).parent == tmp_path


def test_commands_without_a_server_share_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SIGMA9_DATA_DIR, then XDG_CACHE_HOME, then the home folder."""
    monkeypatch.setenv("SIGMA9_DATA_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert user_cache() == tmp_path / "a"
    monkeypatch.delenv("SIGMA9_DATA_DIR")
    assert user_cache() == tmp_path / "b" / "sigma9"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "sigma9"


# --- the child ------------------------------------------------------------------------------------------------


def test_an_unknown_exchange_is_said_in_one_sentence(tmp_path: Path) -> None:
    """The real child names what it does not know, and what to do."""
    with pytest.raises(
        CalendarMissing, match=r"^the exchange calendar XNOPE can't be built: .* another one"
    ) as hit:
        load_calendar("XNOPE", tmp_path, today=TODAY)

    assert "\n" not in str(hit.value)
    assert list(tmp_path.iterdir()) == []


def test_a_calendar_that_the_package_fails_on_is_said_in_one_short_sentence(tmp_path: Path) -> None:
    """Whatever the package raises (Athens fails with some versions of pandas) is one line, and exit code 1."""
    broken = tmp_path / "exchange_calendars"
    broken.mkdir()
    (broken / "errors.py").write_text("class InvalidCalendarName(ValueError): pass\n")
    (broken / "__init__.py").write_text(
        "def get_calendar(name, **_):\n    raise NotImplementedError('several\\nlines ' + 'x' * 5000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sigma9_core.calendar_build", "ASEX", "2020-01-01", "2021-01-01"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "failed with NotImplementedError: several lines xxx" in done.stderr
    assert len(done.stderr) < 400


def test_an_exchange_with_bounds_is_built_within_them() -> None:
    """Tokyo is known from 1997 on: asking for more is no error."""
    tokyo = load_calendar("XTKS", None, first=date(1990, 1, 1), today=date(2000, 1, 1))

    assert tokyo.first == date(1997, 1, 6)


@pytest.mark.parametrize("child", [["false"], ["echo", "no JSON"], ["no-such-program-at-all"]])
def test_a_failing_child_is_said_in_one_sentence(child: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that fails, talks nonsense or does not exist gives a DataError, no traceback."""
    monkeypatch.setattr(module, "_command", lambda *_: child)

    with pytest.raises(DataError, match="the exchange calendar XNYS can't be built") as hit:
        load_calendar("XNYS", None, today=TODAY)

    assert "\n" not in str(hit.value)


# --- loading in the background --------------------------------------------------------------------------------


async def _until(condition: Callable[[], object]) -> None:
    """Wait until something holds, at most ten seconds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come true in ten seconds")


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_good_cache_is_there_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """start_loading with a cache returns with the sessions in place, and needs no child."""
    monkeypatch.setattr(module, "_command", _no_child)
    calendar = Calendar("XNYS")
    task = start_loading(calendar, cache, now=lambda: datetime(2026, 11, 20, 15, tzinfo=UTC))

    assert calendar.loaded
    assert task.get_name() == "calendar-XNYS"
    await _end(task)


async def test_a_failure_is_readable_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, xnys: Calendar
) -> None:
    """While the child fails `error` says so; once it works the sessions come and the error goes."""
    assert xnys.loaded
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.05, 0.05))
    monkeypatch.setattr(module, "_command", lambda *_: ["false"])
    calendar = Calendar("XNYS")
    task = start_loading(calendar, tmp_path, now=lambda: datetime(2026, 11, 20, 15, tzinfo=UTC))
    await _until(lambda: calendar.error)
    assert calendar.error is not None
    assert "trying again in 0.05 seconds" in calendar.error

    monkeypatch.setattr(module, "_command", lambda *_: ["cat", str(folder / "calendar-XNYS.json")])
    await _until(lambda: calendar.loaded and calendar.error is None)
    await _until((tmp_path / "calendar-XNYS.json").exists)
    await _end(task)


async def test_an_unknown_exchange_is_asked_again_seldom(
    monkeypatch: pytest.MonkeyPatch, folder: Path, xnys: Calendar, caplog: pytest.LogCaptureFixture
) -> None:
    """The longest pause lies between two tries; an update of the package that brings it is taken while it runs."""
    assert xnys.loaded
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.01, 0.3))
    monkeypatch.setattr(module, "_command", lambda *_: ["sh", "-c", "echo no exchange >&2; exit 2"])
    told: list[str | None] = []
    calendar = Calendar("XNYS")
    task = start_loading(calendar, None, now=lambda: datetime(2026, 11, 20, 15, tzinfo=UTC), told=told.append)
    await _until(lambda: told)
    monkeypatch.setattr(module, "_command", lambda *_: ["cat", str(folder / "calendar-XNYS.json")])
    assert told == ["the exchange calendar XNYS can't be built: no exchange; trying again in 0.3 seconds"]
    assert calendar.error == told[0]
    assert not calendar.loaded

    await _until(lambda: len(told) == 2)
    assert (told[1], calendar.error, calendar.loaded) == (None, None, True)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "without it nothing is scanned or traded" in caplog.text
    await _end(task)


@pytest.mark.parametrize(
    ("moment", "level", "words"),
    [
        (datetime(2026, 11, 20, 15, tzinfo=UTC), None, ""),
        (datetime(2028, 10, 20, 15, tzinfo=UTC), "WARNING", "ends on 2028-11-10"),
        (datetime(2028, 11, 12, 15, tzinfo=UTC), "ERROR", "ended on 2028-11-10"),
    ],
)
async def test_a_calendar_that_its_package_does_not_know_further_is_complained_about(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    moment: datetime,
    level: str | None,
    words: str,
) -> None:
    """Sessions that end too soon (as of Shanghai in 2026) are a warning, and an error once they are over."""
    file = cache / "calendar-XNYS.json"
    body = json.loads(file.read_bytes())
    body["sessions"] = [row for row in body["sessions"] if row[0] <= "2028-11-10"]
    file.write_text(json.dumps({**body, "last": "2030-12-31"}))
    monkeypatch.setattr(module, "_command", _no_child)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.001)
    calendar = Calendar("XNYS")
    task = start_loading(calendar, cache, now=lambda: moment)
    await asyncio.sleep(0.05)

    assert [record.levelname for record in caplog.records] == ([] if level is None else [level])  # once a day
    assert words in (calendar.error or "")
    assert bool(calendar.error) is (level is not None)
    assert ("update that package" in caplog.text) is (level is not None)
    assert ("nothing is scanned" in caplog.text) is (level == "ERROR")
    await _end(task)


async def test_a_keeper_that_ends_is_never_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever ends the loading, the calendar says that it is no longer kept up."""

    def command(*_: object) -> list[str]:
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(module, "_command", command)
    calendar = Calendar("XNYS")
    task = start_loading(calendar, None)
    await asyncio.gather(task, return_exceptions=True)
    await _until(lambda: calendar.error)

    assert calendar.error == "the exchange calendar XNYS is no longer kept up: KeyError('nobody foresaw this')"
    assert "nothing is scanned or traded" in caplog.text


async def test_sessions_that_make_no_sense_are_a_failure_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that gives a session twice is tried again, and the error says why."""
    row = ["2026-11-20", "2026-11-20T14:30Z", "2026-11-20T14:30Z"]
    body = {"version": 1, "name": "XNYS", "package": "1", "first": "2010-01-01", "last": "2030-01-01"}
    (tmp_path / "odd.json").write_text(json.dumps({**body, "sessions": [row, row]}))
    monkeypatch.setattr(module, "_command", lambda *_: ["cat", str(tmp_path / "odd.json")])
    calendar = Calendar("XNYS")
    task = start_loading(calendar, None)
    await _until(lambda: calendar.error)

    assert "not sorted by time; trying again" in str(calendar.error)
    assert not task.done()
    await _end(task)


async def test_a_market_clock_that_runs_ahead_gets_more_sessions(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulated market that comes within 60 days of the calendar's end has it built on."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    asked: list[date] = []

    def command(_name: str, _first: date, need: date) -> list[str]:
        asked.append(need)
        return ["false"]

    monkeypatch.setattr(module, "_command", command)
    moment = datetime(2026, 11, 20, 15, tzinfo=UTC)
    calendar = Calendar("XNYS")
    task = start_loading(calendar, cache, now=lambda: moment)
    await asyncio.sleep(0.05)
    assert asked == []

    moment = datetime(2028, 10, 20, 15, tzinfo=UTC)
    await _until(lambda: calendar.error)
    assert asked == [date(2028, 10, 20)]
    assert calendar.on(date(2026, 11, 27)) is not None
    await _end(task)


async def test_cancelling_the_loader_leaves_no_child_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The owner's cancel ends the child process, too."""
    note = tmp_path / "pid"
    monkeypatch.setattr(module, "_command", lambda *_: ["sh", "-c", f"echo $$ > {note}; exec sleep 60"])
    task = start_loading(Calendar("XNYS"), None)
    await _until(lambda: note.exists() and note.read_text().strip())
    await _end(task)

    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


async def test_every_lane_may_wait_and_any_thread_may_fill() -> None:
    """Those who wait on two other loops and on this one all go on when a thread fills the calendar."""
    calendar = Calendar("XNYS")
    lanes = [Lane("one"), Lane("two")]
    for lane in lanes:
        lane.start()
    waiting = [asyncio.wrap_future(lane.submit(calendar.ready())) for lane in lanes for _ in range(3)]
    here = asyncio.create_task(calendar.ready())
    given_up = asyncio.create_task(calendar.ready())
    await _until(lambda: len(calendar._waiting) == 8)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert len(calendar._waiting) == 7

    thread = threading.Thread(target=calendar.fill, args=([_session("2026-11-20")],))
    thread.start()
    async with asyncio.timeout(5):
        await asyncio.gather(here, *waiting)
    thread.join()
    await calendar.ready()
    for lane in lanes:
        lane.stop()


async def test_filling_outlives_a_loop_that_was_closed() -> None:
    """A lane that waited and was stopped does not disturb the one who fills."""
    calendar = Calendar("XNYS")
    loop = asyncio.new_event_loop()
    entry = (loop, loop.create_future())
    calendar._waiting.append(entry)
    loop.close()

    calendar.fill([_session("2026-11-20")])

    assert calendar.loaded

"""Two clocks, and the one way to write a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.clock import EPOCH, LiveClock, SteppedClock, monotonic, rfc3339, wall_now

TS = datetime(2026, 11, 20, 14, 45, 0, 123456, tzinfo=UTC)
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(1900, 1, 2), datetime(2999, 12, 30), timezones=ZONES)  # noqa: DTZ001 - the zone is added


def test_time_is_written_as_the_contract_says() -> None:
    """A time is RFC 3339 in UTC with six digits of microseconds, whatever its zone and whether it has any."""
    new_york = timezone(timedelta(hours=-5))

    assert rfc3339(TS) == "2026-11-20T14:45:00.123456Z"
    assert rfc3339(TS.astimezone(new_york)) == "2026-11-20T14:45:00.123456Z"
    assert rfc3339(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00.000000Z"


@given(moment=MOMENTS)
def test_time_is_read_back_as_it_was(moment: datetime) -> None:
    """Python reads what was written as the same moment, in UTC."""
    assert datetime.fromisoformat(rfc3339(moment)) == moment
    assert datetime.fromisoformat(rfc3339(moment)).utcoffset() == timedelta(0)


@given(first=MOMENTS, second=MOMENTS)
def test_written_times_sort_as_time_does(first: datetime, second: datetime) -> None:
    """Sorting the text sorts the moments; the journal's queries rely on it."""
    assert (rfc3339(first) < rfc3339(second)) == (first < second)


def test_live_clock_is_the_wall_clock() -> None:
    """The live market clock tells the wall's time, aware and in UTC."""
    before = wall_now()
    now = LiveClock().now()

    assert before <= now <= wall_now()
    assert now.utcoffset() == timedelta(0)
    assert LiveClock().kind == "live"


def test_monotonic_never_goes_back() -> None:
    """Seconds for intervals rise."""
    ticks = [monotonic() for _ in range(100)]

    assert ticks == sorted(ticks)


@pytest.mark.parametrize("kind", ["simulated", "replay"])
def test_stepped_clock_stands_until_it_is_moved(kind: str) -> None:
    """A stepped clock tells the time it was moved to, and begins at the epoch."""
    clock = SteppedClock(kind)  # type: ignore[arg-type]
    assert clock.now() == EPOCH

    clock.advance(TS)

    assert clock.now() == clock.now() == TS
    assert clock.kind == kind


@given(moments=st.lists(MOMENTS, max_size=20), start=MOMENTS)
def test_stepped_clock_never_goes_back(moments: list[datetime], start: datetime) -> None:
    """However it is moved, the clock shows the latest moment so far."""
    clock = SteppedClock("replay", start)
    latest = start
    for moment in moments:
        clock.advance(moment)
        latest = max(latest, moment)
        assert clock.now() == latest

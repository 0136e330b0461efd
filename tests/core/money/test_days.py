"""Day and week marks."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.errors import StateError
from sigma9_core.models import Session
from sigma9_core.money.days import Days, iso_week


def session(day: date) -> Session:
    """Make a session of a date."""
    opened = datetime(day.year, day.month, day.day, 14, 30, tzinfo=UTC)
    return Session(day.isoformat(), opened, opened + timedelta(hours=6.5))


@given(
    days=st.lists(st.dates(date(2020, 1, 1), date(2030, 12, 31)), min_size=1, max_size=20, unique=True).map(
        sorted
    ),
    results=st.lists(st.decimals("-1000", "1000", places=2), min_size=20, max_size=20),
)
def test_a_week_begins_with_its_first_session(days: list[date], results: list[Decimal]) -> None:
    """Over any row of sessions, years and holidays included, the week's mark is that of its first session."""
    marks = Days()
    first: dict[tuple[int, int], Decimal] = {}
    for day, result in zip(days, results, strict=False):
        assert marks.roll(session(day), result, result / 2)
        assert not marks.roll(session(day), Decimal(99), Decimal(99))
        year, week, _ = day.isocalendar()
        first.setdefault((year, week), result)
        assert marks.week_start == first[year, week]
        assert (marks.day_start, marks.realized_start) == (result, result / 2)
    kept = Days()
    kept.restore(json.loads(json.dumps(marks.memory())))
    assert kept == marks


def test_the_year_of_a_week_is_its_own() -> None:
    """The first days of January may belong to the last week of the year before."""
    assert iso_week("2027-01-01") == "2026-W53"
    assert iso_week("2026-11-20") == "2026-W47"


def test_marks_move_together() -> None:
    """What is no result shifts day, week and peak; what is not known stays so."""
    marks = Days()
    marks.shift(Decimal(5))
    assert (marks.day_start, marks.week_start, marks.peak) == (None, None, None)
    marks.roll(session(date(2026, 11, 20)), Decimal(10), Decimal(0))
    marks.reached(Decimal(30))
    marks.reached(Decimal(20))
    marks.shift(Decimal(5))

    assert [marks.day_start, marks.week_start, marks.peak, marks.realized_start] == [15, 15, 35, 0]


def test_a_broken_memory_changes_nothing() -> None:
    """Marks that can't be read raise, and leave what was there."""
    marks = Days()
    marks.roll(session(date(2026, 11, 20)), Decimal(10), Decimal(0))
    before = marks.memory()
    with pytest.raises(StateError):
        marks.restore({"day": "2026-11-23", "week": "2026-W48", "day_start": "1", "peak": "x"})

    assert marks.memory() == before

"""The memory of commands that the journal may know."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sigma9_core.repeats import Key, Known

NOW = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)
DAY = NOW - timedelta(hours=24)


def key(number: int) -> Key:
    """Name a command."""
    return "start", str(number)


def test_anything_may_be_known_before_the_journal_was_read() -> None:
    """Without the journal's own pairs nobody knows what is new."""
    known = Known()
    assert not known.is_new(key(1), DAY)
    known.recall([], after=None)
    assert known.is_new(key(1), DAY)


def test_what_was_carried_out_is_not_new() -> None:
    """Neither what the journal had, nor what came before it was read, nor what came afterwards."""
    known = Known()
    known.add(key(1), NOW)
    known.recall([(key(2), NOW), (key(2), NOW), (key(3), DAY)], after=None)
    known.add(key(4), NOW)
    assert [known.is_new(key(number), DAY) for number in range(1, 6)] == [False, False, False, False, True]


def test_the_oldest_give_way_and_are_looked_up() -> None:
    """Where there is room for three, a pair that fell out may be known for as long as its answer is kept."""
    known = Known(3)
    known.recall([], after=None)
    for number in range(5):
        known.add(key(number), NOW + timedelta(hours=number))
    assert not known.is_new(key(0), NOW)
    assert not known.is_new(key(99), NOW + timedelta(hours=1))
    assert known.is_new(key(99), NOW + timedelta(hours=1, microseconds=1))


def test_a_pair_that_comes_again_is_the_youngest() -> None:
    """It falls out after those that came between."""
    known = Known(2)
    known.recall([], after=None)
    for number in (1, 2, 1, 3):
        known.add(key(number), NOW)
    assert not known.is_new(key(1), NOW + timedelta(seconds=1))
    assert known.is_new(key(2), NOW + timedelta(seconds=1))


def test_a_journal_that_was_read_in_part_is_known_in_part() -> None:
    """What is older than the oldest row that was read is looked up, also where the clock was put back."""
    known = Known()
    known.recall([(key(2), NOW), (key(1), DAY)], after=DAY)
    assert not known.is_new(key(9), DAY)
    assert known.is_new(key(9), DAY + timedelta(seconds=1))
    assert not known.is_new(key(9), DAY - timedelta(hours=1))

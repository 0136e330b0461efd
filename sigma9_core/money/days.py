"""Day and week: where the result stood when the session and its week began, and at its best.

Only results are kept, never amounts of cash, so that a deposit or a withdrawal can't look like a gain or a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from sigma9_core.clock import rfc3339
from sigma9_core.errors import StateError
from sigma9_core.models import Session


@dataclass(slots=True)
class Days:
    """The starting marks of the trading day and week; every figure is a result since the books began."""

    day: str | None = None
    """The session's date in New York."""
    week: str | None = None
    """Its ISO week, such as `2026-W47`."""
    day_start: Decimal | None = None
    week_start: Decimal | None = None
    """The result, realised and open, when they began."""
    realized_start: Decimal | None = None
    """The realised result when the day began."""
    peak: Decimal | None = None
    """The best result that there ever was, on fresh marks."""
    day_opened: datetime | None = None
    week_opened: datetime | None = None
    """When they began: what happened before, and is learnt later, is no result of theirs."""

    def roll(self, session: Session, result: Decimal, realized: Decimal) -> bool:
        """Begin a session's day (and week); the one in progress, or an older one, changes nothing."""
        if self.day is not None and session.day <= self.day:
            return False
        week = iso_week(session.day)
        if week != self.week:
            self.week, self.week_start, self.week_opened = week, result, session.open
        self.day_opened = session.open
        self.day, self.day_start, self.realized_start = session.day, result, realized
        if self.peak is None:
            self.peak = result
        return True

    def reached(self, result: Decimal) -> None:
        """Raise the peak to a result that was measured on fresh marks."""
        if self.peak is None or result > self.peak:
            self.peak = result

    def learn(self, at: datetime, result: Decimal, realized: Decimal) -> None:
        """Move the starting marks of what began after `at` by what is learnt only now to have happened then."""
        if self.day_opened is not None and at < self.day_opened:
            if self.day_start is not None:
                self.day_start += result
            if self.realized_start is not None:
                self.realized_start += realized
        if self.week_opened is not None and at < self.week_opened and self.week_start is not None:
            self.week_start += result

    def shift(self, amount: Decimal) -> None:
        """Move every starting mark, for what changed the result without being won or lost."""
        if self.day_start is not None:
            self.day_start += amount
        if self.week_start is not None:
            self.week_start += amount
        if self.peak is not None:
            self.peak += amount

    def memory(self) -> dict[str, Any]:
        """Give what must survive a restart, as JSON."""
        return {
            "day": self.day,
            "week": self.week,
            "day_start": _text(self.day_start),
            "week_start": _text(self.week_start),
            "realized_start": _text(self.realized_start),
            "peak": _text(self.peak),
            "day_opened": None if self.day_opened is None else rfc3339(self.day_opened),
            "week_opened": None if self.week_opened is None else rfc3339(self.week_opened),
        }

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Take back what `memory` gave; raise StateError where it can't be read."""
        try:
            day, week = memory.get("day"), memory.get("week")
            if day is not None and week != iso_week(day):
                raise ValueError(f"the week of {day} is not {week}")
            numbers = {
                name: _number(memory.get(name)) for name in ("day_start", "week_start", "realized_start", "peak")
            }
            day_opened, week_opened = _moment(memory.get("day_opened")), _moment(memory.get("week_opened"))
        except (ValueError, TypeError, InvalidOperation) as error:
            raise StateError(f"the remembered day and week marks can't be read: {error}") from error
        self.day, self.week = day, week
        self.day_start, self.week_start = numbers["day_start"], numbers["week_start"]
        self.realized_start, self.peak = numbers["realized_start"], numbers["peak"]
        self.day_opened, self.week_opened = day_opened, week_opened


def iso_week(day: str) -> str:
    """Name the ISO week of a date, such as `2026-W47`."""
    year, week, _ = date.fromisoformat(day).isocalendar()
    return f"{year}-W{week:02d}"


def _text(number: Decimal | None) -> str | None:
    return None if number is None else str(number)


def _moment(text: object) -> datetime | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(str(text))
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment


def _number(text: object) -> Decimal | None:
    if text is None:
        return None
    number = Decimal(str(text))
    if not number.is_finite():
        raise ValueError(f"{text} is not a number")
    return number

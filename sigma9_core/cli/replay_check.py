"""Whether the daily bars of a replay are enough for its scans: said at the start, not by an empty result."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from sigma9_core.errors import DataError

if TYPE_CHECKING:
    from sigma9_core.calendar import Calendar
    from sigma9_core.config import SchedulerSettings

NEW_YORK: Final = ZoneInfo("America/New_York")
ADVICE: Final = "give other --daily files, or leave --daily out to watch every symbol of --data"


class DailyCheck:
    """Compares daily bars with what the scans of a replay need of them."""

    def __init__(self, calendar: Calendar, scheduler: SchedulerSettings, lookbacks: dict[str, int]) -> None:
        self._calendar = calendar
        self._scheduler = scheduler
        self._lookbacks = lookbacks
        """How many sessions each scanner looks back, by its name."""

    def look(
        self,
        days: Sequence[date],
        symbols: frozenset[str],
        first: datetime,
        last: datetime,
        traded: frozenset[str],
    ) -> list[str]:
        """Give the warnings; raise DataError in one sentence where no scan could give a watchlist.

        `days` and `symbols` are those of the daily bars, the days sorted; the bars of `traded` are replayed from
        `first` to `last`.
        """
        if not (self._scheduler.enabled and self._scheduler.market_open_scan):
            return ["scheduler.market_open_scan is off: the daily bars are not scanned, and nothing is watched"]
        if not days:
            raise DataError(f"the daily bars have no row that can be used: {ADVICE}")
        needed = self._needed(first, last)
        if traded.isdisjoint(symbols):
            raise DataError(f"the daily bars have none of the symbols that are replayed: {ADVICE}")
        known = set(days)
        missing = [(day, before) for day, before in needed if before not in known]
        if len(missing) == len(needed):
            raise DataError(
                f"the daily bars ({days[0]} to {days[-1]}) have none of the sessions that the scans of this "
                f"replay need, {needed[0][1]} being the first: {ADVICE}"
            )
        warnings = [self._gap(missing, needed)] if missing else []
        shorts = {name: self._short(days, needed, lookback) for name, lookback in self._lookbacks.items()}
        texts = [
            _short(name, self._lookbacks[name], short[-1], days[0]) for name, short in shorts.items() if short
        ]
        if all(len(short) == len(needed) for short in shorts.values()):
            raise DataError(f"{'; '.join(texts)}: {ADVICE}")
        return [*warnings, *(f"{text}: up to then it lists nothing" for text in texts)]

    @staticmethod
    def _short(days: Sequence[date], needed: Sequence[tuple[date, date]], lookback: int) -> list[tuple[date, int]]:
        """List the scans that have too few sessions behind them, with how many they have."""
        counts = [(day, bisect.bisect(days, before)) for day, before in needed]
        return [(day, count) for day, count in counts if count < lookback]

    def _needed(self, first: datetime, last: datetime) -> list[tuple[date, date]]:
        """List the days on which the replay scans, each with the session whose bars that takes."""
        minutes = self._scheduler.market_open_offset_minutes
        sessions = self._calendar.between(first.astimezone(NEW_YORK).date(), last.astimezone(NEW_YORK).date())
        scans = [s for s in sessions if first <= s.open + timedelta(minutes=minutes) <= last]
        days = [date.fromisoformat(session.day) for session in scans]
        pairs = [(day, self._calendar.before(day - timedelta(days=1), 1)) for day in days]
        needed = [(day, date.fromisoformat(before[-1].day)) for day, before in pairs if before]
        if not needed:
            span = " to ".join(f"{each.astimezone(NEW_YORK):%Y-%m-%d %H:%M}" for each in (first, last))
            raise DataError(
                f"no scan falls into the replay ({span} New York): it scans {minutes} minutes after each open, "
                "and without a scan nothing is watched; replay more, or leave --daily out"
            )
        return needed

    @staticmethod
    def _gap(missing: Sequence[tuple[date, date]], needed: Sequence[tuple[date, date]]) -> str:
        day, before = missing[0]
        return (
            f"the daily bars do not have {before}, the session before {day}: "
            f"{len(missing)} of the {len(needed)} scans of this replay find nothing new"
        )


def check_daily(
    check: DailyCheck,
    *,
    daily: Sequence[Path],
    data: Sequence[Path],
    stamp: str,
    seconds: int,
    first: datetime,
    to: date | datetime | None,
    traded: frozenset[str],
) -> list[str]:
    """Read the files and look at them; `first` is when the replay begins, `to` its --to."""
    from sigma9_core.bars import read_bars

    bars = read_bars(daily)
    minutes = read_bars(data, kind="intraday", stamp="end" if stamp == "end" else "start", seconds=seconds)
    last: datetime = minutes.frame["ts"].max() + timedelta(seconds=seconds)  # type: ignore[operator,assignment]
    if to is not None:
        last = min(last, _moment(to))
    days: list[date] = bars.frame["ts"].unique().sort().to_list()
    return check.look(days, frozenset(bars.frame["symbol"].unique()), first, last, traded)


def _moment(to: date | datetime) -> datetime:
    """Give --to as an aware time, as the replay feed reads it: a date counts whole, New York is the zone."""
    if not isinstance(to, datetime):
        to = datetime.combine(to + timedelta(days=1), datetime.min.time())
    return to.replace(tzinfo=NEW_YORK) if to.tzinfo is None else to


def _short(name: str, lookback: int, last: tuple[date, int], begin: date) -> str:
    day, count = last
    return (
        f"the scanner {name} looks back {lookback} sessions, and the daily bars, which begin on {begin}, "
        f"have {count} before {day}"
    )

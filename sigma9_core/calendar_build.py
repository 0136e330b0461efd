"""Build an exchange's sessions with exchange_calendars: `python -m sigma9_core.calendar_build NAME FIRST LAST`.

A program of its own, because the package brings pandas: the server starts it as a child with low priority and
reads one JSON object from its output. Exit code 2: no such exchange, or wrong arguments; 1: anything else.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import date
from typing import Any

from sigma9_core.calendar import VERSION, package_version


def build(name: str, first: date, last: date) -> dict[str, Any]:
    """Give the sessions from `first` to `last` as the JSON object of the cache file; times in UTC."""
    import exchange_calendars  # noqa: PLC0415 - brings pandas, a second and 78 MB

    calendar = exchange_calendars.get_calendar(name)
    earliest, latest = calendar.bound_min(), calendar.bound_max()  # lunar holidays are known for some years alone
    start = first if earliest is None else max(first, earliest.date())
    end = last if latest is None else min(last, latest.date())
    # `end` is always given: by default the calendar ends a year ahead
    schedule = exchange_calendars.get_calendar(name, start=start.isoformat(), end=end.isoformat()).schedule
    days = schedule.index.strftime("%Y-%m-%d")
    opens = schedule["open"].dt.strftime("%Y-%m-%dT%H:%MZ")
    closes = schedule["close"].dt.strftime("%Y-%m-%dT%H:%MZ")
    return {
        "version": VERSION,
        "name": name,
        "package": package_version(),
        "first": first.isoformat(),
        "last": last.isoformat(),
        "sessions": [list(row) for row in zip(days, opens, closes, strict=True)],
    }


def main(args: list[str]) -> int:
    """Print the sessions; complain in one sentence on stderr."""
    try:
        name, first, last = args[0], date.fromisoformat(args[1]), date.fromisoformat(args[2])
    except (IndexError, ValueError):
        sys.stderr.write("usage: python -m sigma9_core.calendar_build NAME FIRST LAST (dates as YYYY-MM-DD)\n")
        return 2
    os.nice(10)
    try:
        from exchange_calendars.errors import CalendarError, InvalidCalendarName  # noqa: PLC0415 - brings pandas
    except ImportError as error:
        sys.stderr.write(f"exchange_calendars can't be imported ({error}): install it\n")
        return 1
    try:
        body = build(name, first, last)
    except InvalidCalendarName:
        sys.stderr.write(f"exchange_calendars knows no exchange {name!r}: name another one, such as XNYS\n")
        return 2
    except (CalendarError, ValueError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    json.dump(body, sys.stdout, separators=(",", ":"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

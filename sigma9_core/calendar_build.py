"""Build an exchange's sessions with exchange_calendars: `python -m sigma9_core.calendar_build NAME FIRST LAST`.

A program of its own, because the package brings pandas: the server starts it as a child with low priority and
reads one JSON object from its output. Exit code 2: no such exchange, or wrong arguments; 1: anything else. With
`--names` it prints the names of all exchanges, one a line.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import date
from typing import Any, Final

from sigma9_core.calendar import VERSION, package_version

LONGEST_REASON: Final = 200
"""How much of an error of exchange_calendars is repeated, in characters."""


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
    """Print the sessions, or the names; complain in one sentence on stderr."""
    if args == ["--names"]:
        return _print_names()
    try:
        name, first, last = args[0], date.fromisoformat(args[1]), date.fromisoformat(args[2])
    except (IndexError, ValueError):
        sys.stderr.write("usage: python -m sigma9_core.calendar_build NAME FIRST LAST (dates as YYYY-MM-DD)\n")
        return 2
    os.nice(10)
    try:
        from exchange_calendars.errors import InvalidCalendarName  # noqa: PLC0415 - brings pandas
    except ImportError as error:
        sys.stderr.write(f"exchange_calendars can't be imported ({error}): install it\n")
        return 1
    try:
        body = build(name, first, last)
    except InvalidCalendarName:
        sys.stderr.write(f"exchange_calendars knows no exchange {name!r}: name another one, such as XNYS\n")
        return 2
    except Exception as error:  # noqa: BLE001 - the package raises whatever its pandas does, and we say it in one line
        sys.stderr.write(f"{_why(error)}; another version of exchange_calendars or pandas may do\n")
        return 1
    json.dump(body, sys.stdout, separators=(",", ":"))
    return 0


def _print_names() -> int:
    try:
        import exchange_calendars  # noqa: PLC0415 - brings pandas
    except ImportError as error:
        sys.stderr.write(f"exchange_calendars can't be imported ({error}): install it\n")
        return 1
    sys.stdout.write("\n".join(exchange_calendars.get_calendar_names(include_aliases=True)) + "\n")
    return 0


def _why(error: Exception) -> str:
    """Write what the package raised as one short line; some of its messages list thousands of dates."""
    text = " ".join(str(error).split()) or "no reason given"
    short = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
    return f"exchange_calendars {package_version()} failed with {type(error).__name__}: {short}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

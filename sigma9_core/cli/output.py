"""What commands print: rows as a table, JSON or CSV, and single objects as lines or JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sigma9_core.cli.times import utc

Row = Mapping[str, Any]

LONGEST_WHOLE: Final = 32
"""Characters up to which a terminal's table keeps a cell on one line; a longer text may go on below."""
ROOMY: Final = 10_000


def show_rows(
    rows: Iterable[Row],
    columns: Sequence[str],
    form: str,
    *,
    empty: str = "nothing to list",
    fields: Sequence[str] | None = None,
    times: Mapping[str, str] | None = None,
) -> None:
    """Print rows: as a table of the columns, as CSV of the fields, or as a JSON array of whole rows.

    `fields` are all that a row has, in their order (default: the columns): CSV has the same header for any rows,
    also for none. `times` labels the columns that are times; a table shows them to the second.
    """
    listed = list(rows)
    if form == "json":
        print(json.dumps(listed, indent=2, ensure_ascii=False))
    elif form == "csv":
        _show_csv(listed, fields or columns)
    elif not listed:
        print(empty)
    else:
        times = times or {}
        titles = [title(name) + (f" ({times[name]})" if name in times else "") for name in columns]
        cells = [
            [cell(utc(row.get(name)) if name in times else row.get(name)) for name in columns] for row in listed
        ]
        right = [_is_number(listed, name) for name in columns]
        if not (sys.stdout.isatty() and _show_rich(titles, cells, right)):
            _show_plain(titles, cells, right)


def show_object(body: Mapping[str, Any], form: str, lines: Iterable[tuple[str, Any]]) -> None:
    """Print one object: as aligned `name: value` lines, or as it is in JSON."""
    if form == "json":
        print(json.dumps(body, indent=2, ensure_ascii=False))
        return
    pairs = [(name, cell(value)) for name, value in lines]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


def cell(value: Any) -> str:
    """Write a value for a person: `-` for nothing, yes and no, lists with commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, Mapping):
        return clean(json.dumps(value, ensure_ascii=False))
    if isinstance(value, list | tuple):
        return ", ".join(cell(entry) for entry in value) or "-"
    return clean(str(value))


def clean(text: str) -> str:
    """Take out what would move the cursor or change the colours of a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def title(name: str) -> str:
    """Write a field's name for a person: `opened_at` is `opened`."""
    return name.removesuffix("_at").replace("_", " ")


def _show_plain(titles: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    lines = [titles, *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    for line in lines:
        parts = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ]
        print("  ".join(parts).rstrip())


def _show_rich(titles: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> bool:
    """Print a table for a terminal; False where it is too narrow for it: nothing is ever cut off."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(titles):
        natural = max(len(line[index]) for line in cells)
        table.add_column(
            name,
            justify="right" if right[index] else "left",
            min_width=natural if natural <= LONGEST_WHOLE else None,
            overflow="fold",
        )
    for line in cells:
        table.add_row(*map(Text, line))
    roomy = console.options.update(width=ROOMY)
    if Measurement.get(console, roomy, table).minimum > console.width:
        return False
    console.print(table)
    return True


def _show_csv(rows: Sequence[Row], names: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_csv_value(row.get(name)) for name in names])
    print(text.getvalue(), end="")


def _csv_value(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return value


def _is_number(rows: Sequence[Row], name: str) -> bool:
    values = [row.get(name) for row in rows if row.get(name) is not None]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)

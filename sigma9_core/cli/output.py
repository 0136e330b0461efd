"""What commands print: rows as a table, JSON or CSV, and single objects as lines or JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def show_rows(rows: Iterable[Row], columns: Sequence[str], form: str, *, empty: str = "nothing to list") -> None:
    """Print rows: as a table of the columns, as CSV with every key, or as a JSON array of whole rows."""
    listed = list(rows)
    if form == "json":
        print(json.dumps(listed, indent=2, ensure_ascii=False))
    elif form == "csv":
        _show_csv(listed, columns)
    elif not listed:
        print(empty)
    elif sys.stdout.isatty():
        _show_rich(listed, columns)
    else:
        _show_plain(listed, columns)


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


def _show_plain(rows: Sequence[Row], columns: Sequence[str]) -> None:
    cells = [[name.replace("_", " ") for name in columns]]
    cells += [[cell(row.get(name)) for name in columns] for row in rows]
    right = [_is_number(rows, name) for name in columns]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        parts = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ]
        print("  ".join(parts).rstrip())


def _show_rich(rows: Sequence[Row], columns: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right" if _is_number(rows, name) else "left")
    for row in rows:
        table.add_row(*(Text(cell(row.get(name))) for name in columns))
    Console(highlight=False).print(table)


def _show_csv(rows: Sequence[Row], columns: Sequence[str]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(columns)
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

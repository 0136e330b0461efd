"""`sigma9 scan`: run a scanner over daily bars from files; no server needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.cli.options import add_format, add_server_file

if TYPE_CHECKING:
    from sigma9_core.bars import BarTable
    from sigma9_core.config import Settings
    from sigma9_core.contracts import Scanner
    from sigma9_core.scanning import ScanResult

NAMED: Final = 5
"""So many rejected rows are named; `sigma9 data check` names them all."""
COLUMNS: Final = ("symbol", "priority", "score", "stage", "last", "as_of", "reasons")
FIELDS: Final = ("symbol", "priority", "score", "stage", "signals", "intensities", "last", "as_of", "reasons")
"""A row's fields (contract 9)."""
MORE: Final = ("listed", "excluded")
"""What a row has besides with --all."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `scan`."""
    parser = subparsers.add_parser(
        "scan",
        help="scan daily bars from files for what is worth watching",
        description="Scan daily bars (Parquet or CSV) and list what the scanner would put on the watchlist.",
    )
    parser.add_argument(
        "--data", nargs="+", action="extend", required=True, type=Path, metavar="FILE", help="files of daily bars"
    )
    parser.add_argument(
        "--as-of", type=_day, metavar="YYYY-MM-DD", help="scan as of this day (default: the newest in the data)"
    )
    parser.add_argument(
        "--scanner",
        metavar="NAME",
        help="a scanner of the configuration, or a plugin (default: the first one there)",
    )
    parser.add_argument("--all", action="store_true", help="list every scored symbol, not only the watchlist")
    add_server_file(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Read the bars, scan them, and list the symbols; what is not the list goes to stderr."""
    from sigma9_core.bars import read_bars
    from sigma9_core.cli.output import show_rows
    from sigma9_core.clock import monotonic
    from sigma9_core.configfile import load_settings
    from sigma9_core.scanning import scan

    settings = load_settings(args.config, args.overrides)
    name, scanner = _scanner(settings, args.scanner)
    began = monotonic()
    table = read_bars(args.data, calendar=settings.scheduler.calendar)
    _report_bars(table, monotonic() - began)
    result = scan(table.lazy(), scanner, args.as_of, name)
    if result.error is not None:
        _say(result.error.rstrip())
        _say(f"sigma9: the scanner '{name}' failed; nothing is listed")
        return 1
    _report_scan(result)
    rows = _all_rows(result) if args.all else [row.body() for row in result.rows]
    more = MORE if args.all else ()
    show_rows(rows, COLUMNS + more, args.format, fields=FIELDS + more, empty="no symbol to list")
    return 0


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no date: write it as 2026-11-20") from error


def _scanner(settings: Settings, wanted: str | None) -> tuple[str, Scanner]:
    """Build the scanner: the configured instance of that name, else the plugin with its default settings."""
    from sigma9_core.calendar import Calendar
    from sigma9_core.clock import LiveClock
    from sigma9_core.config import InstanceSettings
    from sigma9_core.contracts import PluginContext
    from sigma9_core.errors import ConfigError, Fault
    from sigma9_core.plugins import PluginHost

    host = PluginHost(settings.plugins)
    host.load()
    for index, entry in enumerate(settings.scanners):
        if wanted in (None, entry.instance):
            path = f"scanners.{index}.config"
            break
    else:
        if wanted is None:
            raise ConfigError([Fault("configuration", "scanners", "it names no scanner: give one with --scanner")])
        known = sorted({entry.instance for entry in settings.scanners} | set(host.factories("scanner")))
        if wanted not in host.factories("scanner"):
            raise ConfigError([Fault("--scanner", "", f"no scanner '{wanted}'; there are {', '.join(known)}")])
        entry, path = InstanceSettings(plugin=wanted), ""
    context = PluginContext(entry.instance, settings, LiveClock(), Calendar(settings.scheduler.calendar), None)
    scanner: Scanner = host.build("scanner", entry.plugin, entry.config, context, path=path)
    return entry.instance, scanner


def _all_rows(result: ScanResult) -> list[Mapping[str, Any]]:
    listed = {row.symbol for row in result.rows}
    return [{**row.body(), "listed": row.symbol in listed, "excluded": row.excluded} for row in result.all_rows()]


def _report_bars(table: BarTable, seconds: float) -> None:
    _say(f"read {table.rows:,} rows in {seconds:.2f} s")
    if not table.rejected_count:
        return
    counts = ", ".join(f"{count:,} {reason}" for reason, count in table.reasons.items())
    _say(f"left out {table.rejected_count:,} rows: {counts}")
    for row in table.rejected[:NAMED]:
        _say(f"  {row}")
    if table.rejected_count > NAMED:
        _say(f"  ... and {table.rejected_count - NAMED:,} more: `sigma9 data check` names them")


def _report_scan(result: ScanResult) -> None:
    _say(f"{result.name} as of {result.as_of} in {result.seconds:.2f} s")
    for step, count in result.steps:
        _say(f"  {count:>7,} {step}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)

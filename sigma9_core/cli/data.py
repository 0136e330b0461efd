"""`sigma9 data check`: look at files of bars before they are used; no server needed."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from sigma9_core.cli.options import add_format


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data check`."""
    parser = subparsers.add_parser("data", help="check files of market data")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="read files of bars and name every row that can't be used",
        description="Read Parquet or CSV files of bars; exit with 1 where a row had to be left out.",
    )
    check.add_argument("files", nargs="+", metavar="FILE")
    check.add_argument("--kind", choices=("daily", "intraday"), default="daily", help="default: daily")
    check.add_argument("--stamp", choices=("start", "end"), help="what the time of an intraday bar means")
    check.add_argument("--seconds", type=int, default=60, help="the length of an intraday bar (default: 60)")
    add_format(check)


def run(args: argparse.Namespace) -> int:
    """Check the files."""
    from sigma9_core.bars import read_bars
    from sigma9_core.cli.output import show_rows

    table = read_bars(args.files, kind=args.kind, stamp=args.stamp, seconds=args.seconds)
    rows = [dataclasses.asdict(row) for row in table.rejected]
    symbols = table.frame["symbol"].n_unique()
    span = f", {table.frame['ts'].min()!s} to {table.frame['ts'].max()!s}" if table.frame.height else ""
    summary = [f"{table.rows} rows, {table.frame.height} bars of {symbols} symbols{span}"]
    summary += [f"{count} left out: {reason}" for reason, count in table.reasons.items()]
    print("\n".join(summary), file=sys.stdout if args.format == "table" else sys.stderr)
    if rows or args.format != "table":
        show_rows(rows, ("file", "row", "symbol", "ts", "reason"), args.format)
    if len(rows) < table.rejected_count:
        print(f"the first {len(rows)} of {table.rejected_count} are listed", file=sys.stderr)
    return 1 if table.rejected_count else 0

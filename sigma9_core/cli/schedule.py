"""`sigma9 schedule`: what happens when."""

from __future__ import annotations

import argparse

from sigma9_core.cli.options import add_format, add_server_address


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `schedule list`."""
    parser = subparsers.add_parser("schedule", help="list the scheduled jobs")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="list the jobs with their next and last run")
    add_server_address(show)
    add_format(show)


def run(args: argparse.Namespace) -> int:
    """List the jobs."""
    from sigma9_core.cli.client import Client, find_target
    from sigma9_core.cli.output import show_rows
    from sigma9_core.cli.times import MARKET

    body = Client(find_target(args)).get("schedule")
    show_rows(
        body["jobs"],
        ("id", "next_run", "last_run", "last_result"),
        args.format,
        empty="no job is scheduled",
        times={"next_run": MARKET, "last_run": MARKET},
    )
    return 0

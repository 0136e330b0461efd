"""`sigma9 settle`: take the broker's word for a position that can't be explained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sigma9_core.cli.options import add_format, add_server_address
from sigma9_core.cli.output import cell, clean


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `settle`."""
    parser = subparsers.add_parser(
        "settle", help="take the broker's word for a position that the journal can't explain"
    )
    parser.add_argument("symbol", help="one that `sigma9 status` lists as held")
    parser.add_argument("--reason", required=True, help="why, for the journal")
    add_server_address(parser)
    add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Send the command."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, find_target

    request = {"symbol": args.symbol, "reason": args.reason}
    answer = Client(find_target(args)).command("settle_position", request, repeat="look at `sigma9 status` first")
    return tell(answer, args.format, describe)


def describe(result: Mapping[str, Any]) -> str:
    """Write what was settled."""
    position = result.get("position") or {}
    return clean(
        f"{position.get('symbol')} was {cell(result.get('before'))} by the journal and is "
        f"{cell(position.get('quantity'))} now, as the broker has it; the symbol is free again"
    )

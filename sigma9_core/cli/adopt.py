"""`sigma9 adopt`: a foreign position becomes ours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sigma9_core.cli.options import add_format, add_server_address
from sigma9_core.cli.output import cell, clean


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `adopt`."""
    parser = subparsers.add_parser(
        "adopt",
        help="make a foreign position ours",
        description="Take a position that is not ours into the books, for a strategy; nothing is bought or sold. "
        "From then on a close, a kill and the risk rules act on it.",
    )
    parser.add_argument("symbol", help="as the broker writes it: symbols are case-sensitive")
    parser.add_argument("--strategy", required=True, metavar="NAME", help="whose position it becomes")
    parser.add_argument("--reason", help="why, for the journal")
    add_server_address(parser)
    add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Send the command."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, find_target

    request = {"symbol": args.symbol, "strategy": args.strategy, "reason": args.reason}
    answer = Client(find_target(args)).command("adopt_position", request, repeat="see the positions first")
    return tell(answer, args.format, describe)


def describe(result: Mapping[str, Any]) -> str:
    """Write the position as it stands in the books now."""
    position = result.get("position") or {}
    quantity, cost = cell(position.get("quantity")), cell(position.get("average_cost"))
    return clean(f"{quantity} {position.get('symbol')} at {cost} are ours now, of {position.get('strategy')}")

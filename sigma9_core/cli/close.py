"""`sigma9 close`: close a position at the market."""

from __future__ import annotations

import argparse

from sigma9_core.cli.options import add_format, add_server_address


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `close`."""
    parser = subparsers.add_parser("close", help="close a position at the market")
    parser.add_argument("symbol", nargs="?", help="or '*', in quotes, for all that are ours")
    parser.add_argument("--all", action="store_true", help="the same as '*'")
    parser.add_argument("--reason", help="why, for the journal")
    add_server_address(parser)
    add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Send the command."""
    from sigma9_core.cli.answers import listing, tell
    from sigma9_core.cli.client import Client, WrongUsage, find_target

    if args.all == (args.symbol is not None):
        raise WrongUsage("name one symbol, or --all")
    request = {"symbol": "*" if args.all else args.symbol, "reason": args.reason}
    answer = Client(find_target(args)).command(
        "close_position", request, repeat="look at `sigma9 order list` first"
    )
    return tell(answer, args.format, listing)

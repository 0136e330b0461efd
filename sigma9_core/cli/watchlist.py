"""`sigma9 watchlist`: what is watched, and what a person adds to it."""

from __future__ import annotations

import argparse

from sigma9_core.cli.options import add_format, add_server_address


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `watchlist` and its actions."""
    parser = subparsers.add_parser("watchlist", help="list, add or remove watched symbols")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="list what is watched, the best first")
    add_server_address(show)
    add_format(show)
    for name, what in (
        ("add", "watch a symbol: the feed brings its prices, strategies do not trade it"),
        ("remove", "stop watching a symbol"),
    ):
        action = actions.add_parser(name, help=what)
        action.add_argument("symbol")
        action.add_argument("--reason", help="why, for the journal")
        add_server_address(action)
        add_format(action, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, find_target
    from sigma9_core.cli.output import show_rows

    client = Client(find_target(args))
    if args.action == "list":
        columns = ("symbol", "priority", "score", "last", "strategies", "reasons", "no_trade")
        show_rows(client.get("watchlist")["items"], columns, args.format, empty="nothing is watched")
        return 0
    request = {"symbol": args.symbol, "reason": args.reason}
    answer = client.command(f"watchlist_{args.action}", request, repeat="see `sigma9 watchlist list`")
    done = "is watched" if args.action == "add" else "is not watched any more"
    return tell(answer, args.format, lambda _: f"{args.symbol} {done}")

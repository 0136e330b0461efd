"""`sigma9 close`: close a position at the market."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from sigma9_core.cli.options import add_format, add_server_address
from sigma9_core.cli.output import cell, clean


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `close`."""
    parser = subparsers.add_parser("close", help="close a position at the market")
    parser.add_argument("symbol", nargs="?", help="or '*', in quotes, for all that are ours")
    parser.add_argument("--all", action="store_true", help="the same as '*'")
    parser.add_argument("--reason", help="why, for the journal")
    add_server_address(parser)
    add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Send the command; exit with 1 where a position could not be closed."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, WrongUsage, find_target

    if args.all == (args.symbol is not None):
        raise WrongUsage("name one symbol, or --all")
    request = {"symbol": "*" if args.all else args.symbol, "reason": args.reason}
    answer = Client(find_target(args)).command(
        "close_position", request, repeat="look at `sigma9 order list` first"
    )
    code = tell(answer, args.format, describe)
    refused = (answer.get("result") or {}).get("refused") or {}
    for symbol, why in refused.items():
        print(f"sigma9: {clean(f'{symbol} is not closed: {why}')}", file=sys.stderr)
    return 1 if refused else code


def describe(result: Mapping[str, Any]) -> str:
    """Write one line for each closing order."""
    orders = result.get("orders") or []
    if not orders:
        return "nothing is being closed" if result.get("refused") else "there is no position of ours to close"
    return "\n".join(map(closing_line, orders))


def closing_line(order: Mapping[str, Any]) -> str:
    """Write how the closing of a position stands, such as `closing AAPL: sell 10, filled at 150.2 (order o1)`."""
    text = (
        f"closing {order.get('symbol')}: {order.get('side')} {cell(order.get('quantity'))}, {order.get('status')}"
    )
    if order.get("average_price") is not None:
        some = order.get("filled_quantity")
        part = "" if some == order.get("quantity") else f" {cell(some)}"
        text += f"{part} at {cell(order['average_price'])}"
    return clean(f"{text} (order {order.get('order_id')})")

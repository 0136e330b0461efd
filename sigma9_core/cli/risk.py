"""`sigma9 risk`: the risk rules, and why an order was let through or not."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from sigma9_core.cli.options import add_format, add_server_address


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `risk` and its actions."""
    parser = subparsers.add_parser("risk", help="list, set or clear risk rules; explain an order")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="list the rules with their use and limit")
    change = actions.add_parser("set", help="change a rule's settings")
    change.add_argument("rule")
    change.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="such as limit=500")
    clear = actions.add_parser("clear", help="clear a trip that a person must clear")
    clear.add_argument("rule")
    explain = actions.add_parser("explain", help="show what each rule said of an order")
    explain.add_argument("order_id")
    for action in (change, clear):
        action.add_argument("--reason", help="why, for the journal")
    for action, formats in (
        (show, ("table", "json", "csv")),
        (change, ("table", "json")),
        (clear, ("table", "json")),
        (explain, ("table", "json", "csv")),
    ):
        add_server_address(action)
        add_format(action, formats)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, find_target
    from sigma9_core.cli.output import show_rows
    from sigma9_core.cli.times import MARKET

    settings = read_pairs(args.settings) if args.action == "set" else {}
    client = Client(find_target(args))
    if args.action == "list":
        columns = ("rule", "enabled", "used", "limit", "tripped", "until")
        rules = _shown(client.get("risk")["rules"], args.format)
        empty = "no rule is enabled: entries are refused"
        show_rows(rules, columns, args.format, empty=empty, times={"until": MARKET})
        return 0
    if args.action == "explain":
        return _explain(client.get(f"orders/{quote(args.order_id, safe='')}"), args.format)
    request: dict[str, Any] = {"rule": args.rule, "reason": args.reason}
    if args.action == "set":
        request["settings"] = settings
    answer = client.command(f"risk_{args.action}", request, repeat="see `sigma9 risk list`")
    done = "is set" if args.action == "set" else "is cleared"
    return tell(answer, args.format, lambda _: f"{args.rule} {done}")


def read_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE, the values as YAML; raise WrongUsage where one is no pair."""
    from sigma9_core.cli.client import WrongUsage
    from sigma9_core.yamltext import plain_value, read_yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        document = read_yaml(text)
        if not equals or not key or document.faults:
            raise WrongUsage(f"'{pair}' is no KEY=VALUE")
        found[key] = None if document.tree is None else plain_value(document.tree)
    return found


def _explain(order: Mapping[str, Any], form: str) -> int:
    from sigma9_core.cli.order import order_line
    from sigma9_core.cli.output import clean, show_rows

    if form == "table":
        print(order_line(order))
        if order.get("reason"):
            refused = order.get("status") == "risk_rejected" and order.get("rule")
            print(clean(f"refused by {refused}: {order['reason']}" if refused else f"reason: {order['reason']}"))
    columns = ("rule", "code", "outcome", "used", "limit", "reason")
    rows = _shown(order.get("verdicts") or [], form)
    show_rows(rows, columns, form, empty="no rule was asked about this order")
    return 0


def _shown(rows: Sequence[Mapping[str, Any]], form: str) -> list[Mapping[str, Any]]:
    """Round the numbers of the rules where a person reads them."""
    from sigma9_core.cli.answers import short

    return [{name: short(value) if form == "table" else value for name, value in row.items()} for row in rows]

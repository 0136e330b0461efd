"""`sigma9 plugin`: list plugins, enable and disable instances."""

from __future__ import annotations

import argparse

from sigma9_core.cli.options import add_format, add_server_address


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plugin` and its actions."""
    parser = subparsers.add_parser("plugin", help="list, enable or disable plugins")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="list the plugins in use, and those that failed")
    add_server_address(show)
    add_format(show)
    for name in ("enable", "disable"):
        action = actions.add_parser(name, help=f"{name} one until the next change")
        action.add_argument("name")
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
        columns = ("name", "kind", "version", "enabled", "healthy", "error")
        show_rows(client.get("plugins")["plugins"], columns, args.format, empty="no plugins")
        return 0
    request = {"name": args.name, "reason": args.reason}
    answer = client.command(f"plugin_{args.action}", request, repeat="see `sigma9 plugin list`")
    return tell(answer, args.format, lambda _: f"{args.name} is {args.action}d")

"""`sigma9 discovery`: what Home Assistant and other clients still see of a node that is gone."""

from __future__ import annotations

import argparse

from sigma9_integrations.cli.options import add_broker, add_node


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `discovery`, and below it `clear`."""
    parser = subparsers.add_parser(
        "discovery",
        help="take a retired node off the broker and out of Home Assistant",
        description="Clear what a broker still holds of a node.",
    )
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    clear = actions.add_parser(
        "clear",
        help="clear everything retained of a node that is gone",
        description="Clear all that is retained below TOPIC/NODE, and the node's messages to Home Assistant, so "
        "that its device disappears. A node that is online is left alone. It needs the server's login (the role "
        "sigma9).",
    )
    clear.add_argument("--yes", action="store_true", help="don't ask")
    add_node(clear)
    add_broker(clear)


def run(args: argparse.Namespace) -> int:
    """Clear."""
    from sigma9_integrations.cli.clear import clear

    return clear(args)

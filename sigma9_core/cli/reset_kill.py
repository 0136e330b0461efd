"""`sigma9 reset-kill`: unlatch the kill switch."""

from __future__ import annotations

import argparse

from sigma9_core.cli.kill import add_scope
from sigma9_core.cli.options import add_format, add_server_address


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `reset-kill`."""
    parser = subparsers.add_parser(
        "reset-kill",
        help="unlatch the kill switch",
        description="Unlatch the kill switch; the engine stays stopped until `sigma9 start`.",
    )
    parser.add_argument("--reason", required=True, help="why it is safe again, for the journal")
    add_scope(parser)
    add_server_address(parser)
    add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Send the command."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, find_target

    request = {"reason": args.reason, "scope": args.scope}
    answer = Client(find_target(args)).command("reset_kill_switch", request, repeat="see `sigma9 status`")
    return tell(answer, args.format, lambda _: "the kill switch is off; `sigma9 start` starts the engine again")

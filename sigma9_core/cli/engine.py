"""`sigma9 start`, `stop`, `pause`, `resume`: the engine."""

from __future__ import annotations

import argparse
from typing import Final

from sigma9_core.cli.options import add_format, add_server_address

_HELP: Final = {
    "start": ("start the engine", "the engine starts"),
    "stop": ("end entries and strategies; exits go on", "the engine stops; exits go on"),
    "pause": ("take no new entries; exits go on", "paused: no new entries; exits go on"),
    "resume": ("take entries again", "entries are taken again"),
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the four."""
    for name, (summary, _) in _HELP.items():
        parser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        parser.add_argument("--reason", help="why, for the journal")
        add_server_address(parser)
        add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Send the command of the same name."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, find_target

    name = args.sigma9_command
    answer = Client(find_target(args)).command(name, {"reason": args.reason}, repeat="see `sigma9 status`")
    return tell(answer, args.format, lambda _: _HELP[name][1])

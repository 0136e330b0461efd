"""`sigma9 reset-kill`: unlatch the kill switch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

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
    from sigma9_core.cli.status import scope_words

    request = {"reason": args.reason, "scope": args.scope}
    client = Client(find_target(args))
    answer = client.command("reset_kill_switch", request, repeat="see `sigma9 status`")
    what = scope_words(args.scope) if args.scope else None
    code = tell(answer, args.format, lambda result: describe(result, what))
    if (answer.get("error") or {}).get("code") == "conflict":  # it was not on; perhaps another one is
        for line in remaining(client.get("status").get("kill_switch") or {}):
            print(f"sigma9: {line}", file=sys.stderr)
    return code


def describe(kill: Mapping[str, Any], what: str | None) -> str:
    """Write what was reset, and everything that remains latched; `kill` is the kill switch's new state."""
    lines = ["the kill switch is off" if what is None else f"the kill of {what} is reset", *remaining(kill)]
    if what is None and kill.get("state") != "ON":
        lines.append("`sigma9 start` starts the engine again")
    return "\n".join(lines)


def remaining(kill: Mapping[str, Any]) -> list[str]:
    """Write a line for everything that is latched."""
    from sigma9_core.cli.status import scope_words

    lines = []
    if kill.get("state") == "ON":
        lines.append("the global kill switch is still on: `sigma9 reset-kill --reason ...` resets it")
    for scope in kill.get("scopes") or []:
        option = " ".join(f"--scope {name}={value}" for name, value in dict(scope).items() if value)
        lines.append(f"still killed: {scope_words(scope)}; `sigma9 reset-kill {option} --reason ...` resets it")
    return lines

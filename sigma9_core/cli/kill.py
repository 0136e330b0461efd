"""`sigma9 kill`: the kill switch, by its own door on this machine, else by REST; and its drill."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.cli.options import add_format, add_server_address, data_dir_named, data_dir_of
from sigma9_core.cli.output import cell, clean

if TYPE_CHECKING:
    from sigma9_core.cli.client import Target

DOOR_SECONDS: Final = 5.0
"""How long the kill's own door may take; after it REST is tried."""
REST_SECONDS: Final = 10.0
DRILL_SECONDS: Final = 90.0
"""A drill takes as long as its closes, 60 s at most, and starts again what ran before."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `kill`."""
    parser = subparsers.add_parser(
        "kill",
        help="close the gate, cancel our orders, close our positions",
        description="Fire the kill switch. It stays latched until `sigma9 reset-kill`.",
    )
    parser.add_argument("--no-flatten", action="store_true", help="halt only: cancel entries, keep the positions")
    parser.add_argument(
        "--flatten", action="store_true", help="close positions, whatever kill_switch.flatten says"
    )
    add_scope(parser)
    parser.add_argument(
        "--drill",
        action="store_true",
        help="on a paper or simulated account: really kill everything, reset, start again what ran before",
    )
    parser.add_argument("--reason", help="why, for the journal (default: sigma9 kill)")
    add_server_address(parser)
    add_format(parser, ("table", "json"))


def add_scope(parser: argparse.ArgumentParser) -> None:
    """Add `--scope strategy=NAME|symbol=SYM`."""
    parser.add_argument(
        "--scope", type=scope, metavar="strategy=NAME|symbol=SYM", help="a part only (default: everything)"
    )


def scope(text: str) -> dict[str, str]:
    """Read a scope; argparse turns the error into a usage message."""
    kind, equals, name = text.partition("=")
    if kind not in ("strategy", "symbol") or not equals or not name:
        raise argparse.ArgumentTypeError("write strategy=NAME or symbol=SYM")
    return {kind: name}


def run(args: argparse.Namespace) -> int:
    """Kill, and say what was done."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import WrongUsage

    if args.flatten and args.no_flatten:
        raise WrongUsage("--flatten and --no-flatten exclude each other")
    if args.drill:
        if args.flatten or args.no_flatten or args.scope is not None:
            raise WrongUsage("--drill tries the whole kill: it goes without --flatten, --no-flatten and --scope")
        return _drill(args)
    request: dict[str, Any] = {"reason": args.reason or "sigma9 kill"}
    if args.flatten or args.no_flatten:
        request["flatten"] = bool(args.flatten)
    if args.scope is not None:
        request["scope"] = args.scope
    target = _target(args)
    answer = by_door(target.local.path, request) if target.local is not None else None
    if answer is None:
        answer = _by_rest(target, request)
    what = "".join(f" {kind} {name}" for kind, name in (args.scope or {}).items())
    return tell(answer, args.format, lambda result: describe(result, what))


def describe(result: Mapping[str, Any], what: str = "") -> str:
    """Write what a kill did; `what` names its scope."""
    orders, positions = _count(result, "cancelled_orders", "order"), _count(result, "closed_positions", "position")
    lines = [f"killed{what}: {orders} cancelled, {positions} closed"]
    pending = result.get("pending") or []
    if pending:
        lines.append(f"still going on: {', '.join(map(str, pending))}; `sigma9 status` tells how far it is")
    if result.get("latched") is False:
        lines.append(
            "the latch could not be written so far: until it is, which `sigma9 status` tells, "
            "the kill holds until the process ends, not beyond"
        )
    if result.get("note"):
        lines.append(clean(str(result["note"])))
    return "\n".join(lines)


def drilled(result: Mapping[str, Any]) -> str:
    """Write how a drill went."""
    orders, positions = _count(result, "cancelled_orders", "order"), _count(result, "closed_positions", "position")
    what = (
        f"{orders} cancelled, {positions} closed in {cell(result.get('seconds'))} s; the kill switch is off again"
    )
    if result.get("phase") == "done":
        return f"drilled: {what}"
    left = ", ".join(map(str, result.get("pending") or [])) or "nothing"
    how = " ".join(str(each) for each in (result.get("phase"), result.get("detail")) if each)
    return clean(f"the drill did not finish and does not count ({how}; left: {left}): {what}")


def _drill(args: argparse.Namespace) -> int:
    """Let the server drill; exit with 1 where it did not come to its end."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, find_target

    client = Client(find_target(args), DRILL_SECONDS)
    answer = client.command("kill_drill", {"reason": args.reason}, repeat="see `sigma9 status` first")
    code = tell(answer, args.format, drilled)
    return code or int((answer.get("result") or {}).get("phase") != "done")


def by_door(data_dir: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Knock at the kill's own door; None where it is not there or gives no answer, so that REST is tried."""
    from sigma9_core.datadir import KILL_SOCKET

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(DOOR_SECONDS)
            door.connect(str(data_dir / KILL_SOCKET))
            door.sendall(json.dumps(request).encode() + b"\n")
            with door.makefile("rb") as answers:
                line = answers.readline()
        answer = json.loads(line)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        print(f"sigma9: the kill's own door gave no answer ({why}); trying REST", file=sys.stderr)
        return None
    return answer if isinstance(answer, dict) and "ok" in answer else None


def _target(args: argparse.Namespace) -> Target:
    """Find the server; a fault in client_config.yaml must not stand before the kill of this machine's own one."""
    from sigma9_core.cli.client import Target, Unreachable, find_target, url_of
    from sigma9_core.datadir import DataDir
    from sigma9_core.errors import ConfigError, StateError
    from sigma9_core.tokens import TokenBook

    try:
        return find_target(args, door=True)
    except Unreachable as error:
        raise Unreachable(f"nothing was killed: {error}") from error
    except (ConfigError, StateError) as error:
        url = args.url or (None if data_dir_named(args) else os.environ.get("SIGMA9_URL"))
        if url:
            print(f"sigma9: killing the server at {url}, although: {error}", file=sys.stderr)
            return Target(url_of(url), args.token or os.environ.get("SIGMA9_TOKEN"))
        data_dir = DataDir(data_dir_of(args))
        note = data_dir.server()
        if data_dir.holder() is None:
            raise
        print(f"sigma9: killing the server on this machine ({data_dir.path}), although: {error}", file=sys.stderr)
        try:
            token = TokenBook(data_dir).admin()
        except StateError:
            token = None
        cert = Path(note.cert) if note is not None and note.cert else None
        return Target("" if note is None else note.url, args.token or token, cert=cert, local=data_dir)


def _by_rest(target: Target, request: Mapping[str, Any]) -> dict[str, Any]:
    """Kill by REST; raise Unreachable, which names the signal that still works on this machine."""
    from sigma9_core.cli.client import Client, Unreachable

    try:
        if not target.url:
            raise Unreachable("the server's own door gave no answer, and it has told no address for REST")
        return Client(target, min(target.timeout, REST_SECONDS)).command(
            "kill_switch", request, repeat="kill again, a second kill joins the first"
        )
    except Unreachable as error:
        holder = target.local.holder() if target.local is not None else None
        last = f"; the last resort is `kill -USR1 {holder.pid}`" if holder is not None and holder.pid else ""
        raise Unreachable(f"the kill was not confirmed: {error}{last}") from error


def _count(result: Mapping[str, Any], key: str, noun: str) -> str:
    number = len(result.get(key) or [])
    return f"{number} {noun}{'' if number == 1 else 's'}"

"""`sigma9 journal`: the durable events that the server keeps."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.cli.options import add_format, add_server_address

if TYPE_CHECKING:
    from sigma9_core.cli.client import Client

Event = dict[str, Any]

PAGE: Final = 1000
POLL_SECONDS: Final = 1.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `journal list` and `journal follow`."""
    parser = subparsers.add_parser("journal", help="list or follow the durable events")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="list the newest events, or those after a number")
    show.add_argument("--after", type=int, metavar="SEQ", help="the events after this number, oldest first")
    show.add_argument("--limit", type=_positive, default=50, help="at most so many (default: 50)")
    follow = actions.add_parser("follow", help="print events as they are written, until Ctrl-C")
    follow.add_argument("--after", type=int, metavar="SEQ", help="begin after this number (default: now)")
    for action, formats in ((show, ("table", "json", "csv")), (follow, ("lines", "json"))):
        action.add_argument("--type", choices=("trade_event", "watchlist_update", "status_update"))
        add_server_address(action)
        add_format(action, formats)


def run(args: argparse.Namespace) -> int:
    """List, or follow."""
    from sigma9_core.cli.client import Client, find_target

    client = Client(find_target(args))
    if args.action == "follow":
        return _follow(client, args)
    return _list(client, args)


def _list(client: Client, args: argparse.Namespace) -> int:
    from sigma9_core.cli.eventline import HEADER, event_line
    from sigma9_core.cli.output import show_rows

    if args.after is not None:
        events = _after(client, args.after, args.type, args.limit)
    else:
        events = _newest(client, args.type, args.limit)
    if args.format != "table":
        show_rows(events, ("type", "v", "seq", "ts", "node", "data"), args.format)
        return 0
    print("\n".join([HEADER, *map(event_line, events)]) if events else "no events")
    return 0


def _follow(client: Client, args: argparse.Namespace) -> int:
    from sigma9_core.cli.client import Refused, Unreachable
    from sigma9_core.cli.eventline import HEADER, event_line

    after = _head(client) if args.after is None else args.after
    lost = False
    if args.format != "json":
        print(HEADER, flush=True)
    while True:
        try:
            body = client.get("events", after=after, limit=PAGE)
            if lost:
                _say("connected again")
            lost = False
            for event in body["events"]:
                after = max(after, int(event["seq"]))
                if args.type in (None, event["type"]):
                    text = json.dumps(event, ensure_ascii=False) if args.format == "json" else event_line(event)
                    print(text, flush=True)
            if body["next"] is not None:
                continue
        except Unreachable as error:
            if not lost:
                _say(f"{error}; trying again")
            lost = True
        except Refused as error:
            if error.code != "conflict" or not isinstance(error.details.get("last"), int):
                raise
            _say(f"{error}; going on with what comes now")
            after = error.details["last"]
        time.sleep(POLL_SECONDS)


def _head(client: Client) -> int:
    return int(client.get("status")["seq"] or 0)


def _after(client: Client, after: int, kind: str | None, limit: int) -> list[Event]:
    """Read forwards, page by page."""
    found: list[Event] = []
    position: int | None = after
    while position is not None and len(found) < limit:
        body = client.get("events", after=position, type=kind, limit=min(PAGE, limit - len(found)))
        found += body["events"]
        position = body["next"]
    return found


def _newest(client: Client, kind: str | None, limit: int) -> list[Event]:
    """Read backwards, window by window, because the server reads forwards only."""
    found: list[Event] = []
    upper = _head(client)
    while upper > 0 and len(found) < limit:
        size = PAGE if kind is not None else min(PAGE, limit - len(found))
        lower = max(0, upper - size)
        lower, events = _window(client, lower, size)
        found = [one for one in events if int(one["seq"]) <= upper and kind in (None, one["type"])] + found
        upper = lower
    return found[-limit:]


def _window(client: Client, lower: int, size: int) -> tuple[int, list[Event]]:
    """Read one window; where it is older than what is kept, read the oldest, and give 0: there is no more."""
    from sigma9_core.cli.client import Refused

    try:
        return lower, client.get("events", after=lower, limit=size)["events"]
    except Refused as error:
        first = error.details.get("first")
        if error.code != "conflict" or not isinstance(first, int) or first <= lower:
            raise
        return 0, client.get("events", after=first - 1, limit=size)["events"]


def _say(text: str) -> None:
    print(f"sigma9: {text}", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no positive whole number")
    return int(text)

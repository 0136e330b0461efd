"""`sigma9 journal`: what the server has written down, to list, follow, export and verify.

`list` and `follow` ask the server, from any machine. What only the database knows, and `export` and `verify`, is
read from the database that the configuration names, with a server beside it or without one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.cli.journal_local import TABLES
from sigma9_core.cli.options import add_data_dir, add_format, add_server_address, add_server_file

if TYPE_CHECKING:
    from sigma9_core.cli.client import Client

Event = dict[str, Any]

PAGE: Final = 1000
POLL_SECONDS: Final = 1.0
TYPES: Final = ("trade_event", "watchlist_update", "status_update")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `journal list`, `follow`, `export` and `verify`."""
    parser = subparsers.add_parser("journal", help="list, follow, export or verify what was written down")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="list the newest events, or those after a number")
    show.add_argument("--after", type=_number, metavar="SEQ", help="those after this number, oldest first")
    show.add_argument("--limit", type=_positive, default=50, help="at most so many (default: 50)")
    show.add_argument("--table", choices=TABLES, help="default: events; others imply --local")
    follow = actions.add_parser("follow", help="print events as they are written, until Ctrl-C")
    follow.add_argument("--after", type=_number, metavar="SEQ", help="begin after this number (default: now)")
    for action in (show, follow):
        _add_filters(action)
        action.add_argument("--local", action="store_true", help="read the database itself, with no server's help")
        add_server_address(action)
        _add_database(action)
    add_format(show)
    add_format(follow, ("lines", "json"))
    out = actions.add_parser(
        "export",
        help="write a table into a file",
        description="Write a table of the journal into a CSV or Parquet file of mode 0600. Secrets are masked, "
        "amounts keep every digit, times are in UTC.",
    )
    out.add_argument("out", type=Path, metavar="OUT", help="the file, such as fills.parquet")
    out.add_argument("--table", choices=TABLES, help="default: events")
    out.add_argument("--format", choices=("csv", "parquet"), help="default: what the file's name ends in")
    out.add_argument("--after", type=_number, metavar="NUMBER", help="the rows after this number (seq, else n)")
    out.add_argument("--replace", action="store_true", help="overwrite the file where there is one")
    _add_filters(out)
    check = actions.add_parser(
        "verify",
        help="prove that events, orders, fills and positions agree",
        description="Replay the whole journal and compare everything in it with everything else: numbers, orders, "
        "fills, positions, cash, day marks, exits and commands; and, where the server runs on this machine, with "
        "the positions that it shows. Exit with 1 where anything disagrees; each disagreement is one sentence.",
    )
    known = actions.add_parser(
        "acknowledge",
        help="say why the journal was put back; verify is content from then on",
        description="Acknowledge what a start has found of the journal itself: that it was put back to an earlier "
        "time, or was without what keeps it append-only. The server writes down who said so and why.",
    )
    known.add_argument("--reason", required=True, help="why it is so, for the journal")
    add_server_address(known)
    add_format(known, ("table", "json"))
    for action in (out, check):
        add_data_dir(action)
        _add_database(action)
    add_format(check, ("table", "json"))


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which rows")
    group.add_argument("--type", choices=TYPES, help="of events")
    group.add_argument("--symbol", metavar="SYM")
    group.add_argument("--order", metavar="ID", help="an order's id")
    group.add_argument("--strategy", metavar="NAME")
    group.add_argument("--source", metavar="NAME", help="who sent the order or the command, such as exit or mqtt")
    group.add_argument(
        "--cause", metavar="ID", help="what led to it: an order, a command, a job (implies --local)"
    )
    group.add_argument("--kind", metavar="KIND", help="of notes, such as guard (implies --table notes)")
    group.add_argument(
        "--command", dest="command_name", metavar="NAME", help="of commands (implies --table commands)"
    )
    group.add_argument("--actor", metavar="NAME", help="who sent a command (implies --table commands)")
    group.add_argument("--since", type=_moment, metavar="T", help="a market time in UTC, or a date")
    group.add_argument("--until", type=_moment, metavar="T", help="the time before which it was, or a date")


def _add_database(parser: argparse.ArgumentParser) -> None:
    add_server_file(parser)
    parser.add_argument("--node", metavar="NAME", help="whose journal (default: the configuration's node)")


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    from sigma9_core.cli import journal_local
    from sigma9_core.cli.client import Client, WrongUsage, find_target

    if args.action == "verify":
        return journal_local.verify(args)
    if args.action == "export":
        return journal_local.write(args)
    if args.action == "acknowledge":
        return _acknowledge(Client(find_target(args)), args)
    named = (args.cause, args.kind, args.command_name, args.actor)
    table = getattr(args, "table", None) or "events"
    if args.local or table != "events" or any(name is not None for name in named):
        if args.url:
            raise WrongUsage(
                "--url goes with what a server can tell; --local, --table, --cause, --kind, --command and --actor "
                "read the database"
            )
        return journal_local.follow(args, POLL_SECONDS) if args.action == "follow" else journal_local.show(args)
    client = Client(find_target(args))
    if args.action == "follow":
        return _follow(client, args)
    return _list(client, args)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events of those that the server gives are wanted."""

    type: str | None = None
    symbol: str | None = None
    order: str | None = None
    strategy: str | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Filter:
        """Read the options."""
        return cls(args.type, args.symbol, args.order, args.strategy, args.source, args.since, args.until)

    @property
    def leaves_out(self) -> bool:
        """Tell whether it leaves anything out."""
        return self != Filter()

    def takes(self, event: Event) -> bool:
        """Tell whether an event is wanted."""
        data = event["data"]
        pairs = (
            (self.type, event["type"]),
            (self.symbol, data.get("symbol")),
            (self.order, data.get("order_id")),
            (self.strategy, data.get("strategy")),
            (self.source, data.get("source")),
        )
        if any(wanted is not None and wanted != found for wanted, found in pairs):
            return False
        if self.since is None and self.until is None:
            return True
        at = datetime.fromisoformat(event["ts"])
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


def _acknowledge(client: Client, args: argparse.Namespace) -> int:
    from sigma9_core.cli.answers import tell

    answer = client.command("acknowledge_journal", {"reason": args.reason}, repeat="see `sigma9 journal verify`")
    return tell(
        answer, args.format, lambda result: "\n".join(f"acknowledged: {each}" for each in result["acknowledged"])
    )


def _list(client: Client, args: argparse.Namespace) -> int:
    from sigma9_core.cli.eventline import HEADER, event_line
    from sigma9_core.cli.output import show_rows

    if args.after is not None:
        events = _after(client, args.after, Filter.of(args), args.limit)
    else:
        events = _newest(client, Filter.of(args), args.limit)
    if args.format != "table":
        show_rows(events, ("type", "v", "seq", "ts", "node", "data"), args.format)
        return 0
    print("\n".join([HEADER, *map(event_line, events)]) if events else "no events")
    return 0


def _follow(client: Client, args: argparse.Namespace) -> int:
    from sigma9_core.cli.client import Refused, Unreachable
    from sigma9_core.cli.eventline import HEADER, event_line

    wanted = Filter.of(args)
    after = _head(client) if args.after is None else args.after
    lost = False
    if args.format != "json":
        print(HEADER, flush=True)
    while True:
        try:
            body = client.get("events", after=after, limit=PAGE, symbol=wanted.symbol, order_id=wanted.order)
            if lost:
                _say("connected again")
            lost = False
            for event in body["events"]:
                after = max(after, int(event["seq"]))
                if wanted.takes(event):
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


def _after(client: Client, after: int, wanted: Filter, limit: int) -> list[Event]:
    """Read forwards, page by page."""
    found: list[Event] = []
    position: int | None = after
    while position is not None and len(found) < limit:
        size = PAGE if wanted.leaves_out else min(PAGE, limit - len(found))
        body = client.get(
            "events",
            after=position,
            type=wanted.type,
            limit=size,
            symbol=wanted.symbol,
            order_id=wanted.order,
        )
        found += filter(wanted.takes, body["events"])
        position = body["next"]
    return found[:limit]


def _newest(client: Client, wanted: Filter, limit: int) -> list[Event]:
    """Read backwards, window by window, because the server reads forwards only.

    It ends at the first whole window that is older than what is wanted: market times are in order but for those of
    a feed that was set back.
    """
    if wanted.symbol is not None or wanted.order is not None:
        return _newest_of(client, wanted, limit)
    found: list[Event] = []
    upper = _head(client)
    while upper > 0 and len(found) < limit:
        size = PAGE if wanted.leaves_out else min(PAGE, limit - len(found))
        lower = max(0, upper - size)
        lower, events = _window(client, lower, size)
        found = [one for one in events if int(one["seq"]) <= upper and wanted.takes(one)] + found
        since = wanted.since
        if since is not None and events and all(datetime.fromisoformat(one["ts"]) < since for one in events):
            break
        upper = lower
    return found[-limit:]


def _newest_of(client: Client, wanted: Filter, limit: int) -> list[Event]:
    """Let the server find the newest events of an order or a symbol; it reads backwards then."""
    found: list[Event] = []
    before: int | None = None
    while len(found) < limit:
        body = client.get(
            "events",
            before=before,
            type=wanted.type,
            limit=PAGE,
            symbol=wanted.symbol,
            order_id=wanted.order,
        )
        events = body["events"]
        found = [event for event in events if wanted.takes(event)] + found
        since = wanted.since
        if since is not None and events and all(datetime.fromisoformat(one["ts"]) < since for one in events):
            break
        if body["next"] is None or body["next"] == before:
            break
        before = body["next"]
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


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of an event: write 0 or more")
    return int(text)


def _moment(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no time: write 2026-11-20, or 2026-11-20T14:45 (UTC)"
        ) from error
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no positive whole number")
    return int(text)

"""`sigma9 watch`: follow the events as they happen, over any break of the connection."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.cli.options import add_format, add_server_address

if TYPE_CHECKING:
    from sigma9_core.cli.client import Target

DURABLE: Final = frozenset(("trade_event", "watchlist_update", "status_update"))
CONSOLE: Final = "sigma9.console"
"""The logger whose lines say once more what the events of the other types say."""
SHOWN: Final = "trade_event,watchlist_update,status_update,log"
"""What is shown by default: market data would drown it."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `watch`."""
    parser = subparsers.add_parser(
        "watch",
        help="follow orders, fills, the watchlist, states and the log as they happen",
        description="Print events until Ctrl-C: all but market data, which come with --all or --types, and the "
        "console notifier's log lines, which say the same again.",
    )
    parser.add_argument(
        "--types",
        metavar="TYPE,...",
        help=f"only these, such as market_data,trade_event (default: {SHOWN})",
    )
    parser.add_argument(
        "--all", action="store_true", help="every type: market data (quotes, trades, bars) as well"
    )
    parser.add_argument("--symbols", metavar="SYMBOL,...", help="trade_event and market_data of these only")
    parser.add_argument(
        "--level",
        choices=("debug", "info", "warning", "error", "critical"),
        help="log lines from this level on (default: info)",
    )
    parser.add_argument("--after", type=int, metavar="SEQ", help="begin with the durable events after this number")
    add_server_address(parser)
    add_format(parser, ("lines", "json"))


def run(args: argparse.Namespace) -> int:
    """Watch; json prints one envelope a line."""
    from sigma9_core.cli.client import WrongUsage

    if args.all and args.types is not None:
        raise WrongUsage("--all and --types exclude each other")
    watcher = Watcher(args)
    while True:
        pause = watcher.follow()
        time.sleep(pause)


class Watcher:
    """Follows one server and remembers the last durable number, so that nothing is missed between connections."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._after: int | None = args.after
        self._journal: str | None = None
        self._connected = False
        self._reconnect = 0.0
        self._headed = False
        self._repeating = False
        """Whether this connection's snapshots only repeat what was shown; a person need not see them again."""
        self._filter = {
            name: value for name in ("types", "symbols", "level") if (value := getattr(args, name)) is not None
        }
        if not args.all:
            self._filter.setdefault("types", SHOWN)

    def follow(self) -> float:
        """Follow one connection to its end and give the pause before the next one, in seconds.

        Raise Unreachable where the first connection fails, Refused where the token is not (or no longer) valid.
        """
        from websockets.exceptions import ConnectionClosed, InvalidStatus

        from sigma9_core.cli.client import Unreachable, find_target, open_feed

        query = dict(self._filter)
        if self._after is not None:
            query["after"] = str(self._after)
        try:
            target = find_target(self._args)  # a server that starts again may listen elsewhere
            self._reconnect = target.reconnect
            connection = open_feed(target, query)
        except Unreachable as error:
            if not self._connected:
                raise
            _say(f"{error}; trying again in {self._reconnect:g} s")
            return self._reconnect
        except InvalidStatus as error:
            return self._refused(target, error.response.status_code, error.response.body)
        with connection:
            if self._connected:
                _say("connected again")
            self._repeating, self._connected = self._connected, True
            try:
                for frame in connection:
                    self._take(json.loads(frame))
            except ConnectionClosed:
                pass
            code, reason = connection.close_code, connection.close_reason
        if code == 1008:
            from sigma9_core.cli.client import Refused

            raise Refused(f"the server closed the feed: {reason or 'the token is no longer valid'}")
        _say(f"the connection ended ({reason or code}); trying again in {target.reconnect:g} s")
        return target.reconnect

    def _refused(self, target: Target, status: int, content: bytes | bytearray | None) -> float:
        from sigma9_core.cli.client import Refused

        try:
            error: Mapping[str, Any] = json.loads(content or b"{}").get("error") or {}
        except (ValueError, AttributeError):
            error = {}
        message = str(error.get("message") or f"the server refused the feed (HTTP {status})")
        if status == 409 and self._after is not None and self._connected:
            _say(f"{message}; going on with what comes now")
            self._after = None
            return 0.0
        if status >= 500 and self._connected:
            _say(f"{message}; trying again in {target.reconnect:g} s")
            return target.reconnect
        raise Refused(message, str(error.get("code", "")))

    def _take(self, frame: Any) -> None:
        for event in frame if isinstance(frame, list) else [frame]:
            if not isinstance(event, dict):
                continue
            data = event.get("data") or {}
            if event.get("type") in DURABLE and event.get("seq") is not None:
                self._after = event["seq"]
            elif data.get("reason") == "snapshot":
                self._note_snapshot(event, data)
                if self._repeating and self._args.format != "json":
                    continue
            if not self._says_it_again(event, data):
                self._print(event)

    def _says_it_again(self, event: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
        """Tell whether a person sees the same as an event beside it; who chooses the types gets all of them."""
        chosen = self._args.all or self._args.types is not None or self._args.format == "json"
        return not chosen and event.get("type") == "log" and data.get("logger") == CONSOLE

    def _note_snapshot(self, event: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Remember where the live events begin, and notice a journal that is another one."""
        if isinstance(data.get("as_of_seq"), int):
            self._after = data["as_of_seq"]
        if event.get("type") != "status_update":
            return
        journal = (data.get("status") or {}).get("journal_id")
        if self._journal is not None and journal != self._journal:
            _say("the server has another journal: its numbers begin anew")
            self._repeating = False
        self._journal = journal

    def _print(self, event: Mapping[str, Any]) -> None:
        if self._args.format == "json":
            print(json.dumps(event, ensure_ascii=False), flush=True)
        else:
            from sigma9_core.cli.eventline import HEADER, event_line

            if not self._headed:
                self._headed = True
                print(HEADER, flush=True)
            print(event_line(event), flush=True)


def _say(text: str) -> None:
    print(f"sigma9: {text}", file=sys.stderr, flush=True)

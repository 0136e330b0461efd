"""`sigma9 fake-tws`: a TWS to test against, for hand work and for other projects."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigma9_core.testing.tws import FakeTws


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fake-tws`."""
    parser = subparsers.add_parser(
        "fake-tws",
        help="run a TWS to test against",
        description="Run a stand-in for TWS or IB Gateway that any IB API client can connect to. "
        "No order leaves this machine. Ctrl-C ends it.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7497, help="the port (default: 7497, as a paper TWS; 0: any)")
    parser.add_argument(
        "--accounts", default="DU1234567", metavar="A,B", help="the accounts of the login (default: DU1234567)"
    )
    parser.add_argument("--cash", default="100000", help="each account's cash (default: 100000)")
    parser.add_argument(
        "--symbol",
        dest="symbols",
        action="append",
        default=[],
        metavar="SYMBOL=PRICE",
        help="a stock and its price; may be repeated. A dozen are known anyway",
    )
    parser.add_argument(
        "--any-symbol", action="store_true", help="make up every stock that a client names, at 100"
    )
    parser.add_argument("--spread", default="0.02", help="between bid and ask (default: 0.02)")
    parser.add_argument(
        "--wander", type=float, default=0.0, metavar="SECONDS", help="let prices move every so many seconds"
    )
    parser.add_argument("--delayed-data", action="store_true", help="have no subscription to live market data")
    parser.add_argument(
        "--fault",
        dest="faults",
        action="append",
        default=[],
        metavar="NAME[:N|:CHANCE|:always][,KEY=VALUE]",
        help="goes wrong the next N times (default: 1), by a chance such as 0.1, or always. May be repeated. "
        "Keys: symbol, order_ref, client_id, request, seconds, parts, text",
    )
    parser.add_argument("--list-faults", action="store_true", help="list what can go wrong, and end")
    parser.add_argument("--seed", type=int, default=0, help="of chances, prices and history (default: 0)")
    parser.add_argument("--first-order-id", type=int, default=1, metavar="N", help="the first nextValidId")
    parser.add_argument("--master-client-id", type=int, metavar="N", help="this client hears of all orders")
    parser.add_argument("--zone", default="UTC", help="the zone of times on the wire (default: UTC)")
    parser.add_argument("--client-version", action="store_true", help="print the versions that each client offers")
    parser.add_argument("--verbose", action="store_true", help="print the conversations, one line a message")
    parser.add_argument(
        "--control",
        type=int,
        metavar="PORT",
        help="answer JSON lines on this port (0: any), print the ports as JSON, and end when standard input does",
    )


def run(args: argparse.Namespace) -> int:
    """Run it until Ctrl-C."""
    import asyncio

    from sigma9_core.testing.tws.faults import KINDS
    from sigma9_core.testing.tws.serving import serve

    if args.list_faults:
        width = max(map(len, KINDS))
        for kind in KINDS.values():
            print(f"{kind.name:{width}}  {kind.about}")
        return 0
    tws = _made(args)
    if tws is None:
        return 2

    def begin(started: FakeTws) -> None:
        if args.wander:
            started.wander(args.wander)
        if args.control is None:
            accounts = ", ".join(started.world.accounts.all)
            print(
                f"a TWS to test against listens on {started.host}:{started.port}, accounts {accounts}", flush=True
            )

    try:
        asyncio.run(serve(tws, begin, args.control))
    except OSError as problem:
        print(f"sigma9: can't listen on {args.host}:{args.port}: {problem.strerror}", file=sys.stderr)
        return 1
    return 0


def _made(args: argparse.Namespace) -> FakeTws | None:
    """Make the peer as it is wanted; None where something can't be understood, which has been said then."""
    from decimal import InvalidOperation
    from zoneinfo import ZoneInfo

    from sigma9_core.testing.tws import FakeTws

    try:
        ZoneInfo(args.zone)
        tws = FakeTws(
            accounts=tuple(name.strip() for name in args.accounts.split(",") if name.strip()),
            cash=args.cash,
            spread=args.spread,
            seed=args.seed,
            zone=args.zone,
            master_client_id=args.master_client_id,
            first_order_id=args.first_order_id,
            live_data=not args.delayed_data,
            any_symbol=args.any_symbol,
            host=args.host,
            port=args.port,
            log=_log(args),
        )
        for symbol, _, price in (each.partition("=") for each in args.symbols):
            tws.add_contract(symbol, price or 100)
        for each in args.faults:
            tws.faults.arm_as_told(each)
    except (ValueError, KeyError, InvalidOperation) as problem:
        said = problem.args[0] if problem.args and isinstance(problem.args[0], str) else "a number is not one"
        print(f"sigma9: {said}", file=sys.stderr)
        return None
    return tws


def _log(args: argparse.Namespace) -> Callable[[str], None] | None:
    """Give what prints each line, as far as they are wanted."""
    from sigma9_core.clock import wall_now

    def log(line: str) -> None:
        if args.verbose or " > API " in line:
            print(f"{wall_now():%H:%M:%S.%f}"[:12], line, file=sys.stderr, flush=True)

    return log if args.verbose or args.client_version else None

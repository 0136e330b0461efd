"""`sigma9 status`: how the server is doing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sigma9_core.cli.options import add_format, add_server_address
from sigma9_core.cli.times import market as market_time
from sigma9_core.cli.times import wall as wall_time


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `status`."""
    parser = subparsers.add_parser("status", help="show how the server is doing")
    add_server_address(parser)
    add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Print the status."""
    from sigma9_core.cli.client import Client, find_target
    from sigma9_core.cli.output import show_object

    body = Client(find_target(args)).get("status")
    show_object(body, args.format, status_lines(body))
    return 0


def status_lines(status: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Give the lines of the readable form."""
    broker, feed, market = (status.get(name) or {} for name in ("broker", "feed", "market"))
    return [
        ("node", f"{status.get('node')} (sigma9 {status.get('version')}, up {duration(status.get('uptime'))})"),
        ("engine", status.get("engine")),
        ("kill switch", kill_line(status.get("kill_switch") or {})),
        ("broker", broker_line(broker)),
        *((("broker says", broker["note"]),) if broker.get("note") else ()),
        ("feed", f"{feed.get('name')}: {feed.get('state')}, last data {market_time(feed.get('last_at'))}"),
        ("mqtt", status.get("mqtt")),
        ("market", market_line(market, status.get("clock"))),
        ("positions", status.get("active_positions")),
        ("open orders", status.get("open_orders")),
        ("watchlist", status.get("watchlist_count")),
        ("day P&L", status.get("day_pnl")),
        *(("held", held_line(held)) for held in status.get("held") or ()),
    ]


def broker_line(broker: Mapping[str, Any]) -> str:
    """Write how the broker is, whether anything is sent to it, and why it is not there."""
    healths = ", ".join(f"{name} {broker.get(name)}" for name in ("socket", "link", "data") if name in broker)
    parts = [f"{broker.get('name')}: {broker.get('state')}" + (f" ({healths})" if healths else "")]
    if broker.get("readonly"):
        parts.append("read-only, nothing is sent")
    if broker.get("error"):
        parts.append(str(broker["error"]))
    return "; ".join(parts)


def held_line(held: Mapping[str, Any]) -> str:
    """Write which symbol takes no orders, why, and how a person ends it."""
    symbol = held.get("symbol")
    return f"{symbol}: {held.get('reason')} (sigma9 settle {symbol} --reason ...)"


def kill_line(kill: Mapping[str, Any]) -> str:
    """Write the kill switch's state in one line: the global latch, then the narrower ones that stand."""
    parts = [kill_state(kill)]
    if kill.get("phase") not in (None, "off"):
        parts.append(str(kill["phase"]))
    if kill.get("detail"):
        parts.append(str(kill["detail"]))
    if kill.get("reason") and (kill.get("state") == "ON" or kill.get("scopes")):
        parts.append(f"because: {kill['reason']} (by {kill.get('source')}, {wall_time(kill.get('at'))})")
    if kill.get("error"):
        parts.append(f"error: {kill['error']}")
    return "; ".join(parts)


def kill_state(kill: Mapping[str, Any]) -> str:
    """Write what is killed: everything, nothing, or the narrower scopes."""
    state, scopes = str(kill.get("state", "?")), kill.get("scopes") or []
    joined = "also" if state == "ON" else "but ON"
    return f"{state}, {joined} for {', '.join(map(scope_words, scopes))}" if scopes else state


def market_line(market: Mapping[str, Any], clock: object) -> str:
    """Write whether the market is open, and what comes next."""
    if market.get("open") is None:
        state = "not known yet"
    elif market["open"]:
        state = f"open until {market_time(market.get('next_close'))}"
    else:
        state = f"closed until {market_time(market.get('next_open'))}"
    return state if clock in (None, "live") else f"{state}; the clock is {clock}"


def scope_words(scope: object) -> str:
    """Write what a narrower kill stands for, such as `strategy seismograph`."""
    if not isinstance(scope, dict):
        return str(scope)
    return " ".join(f"{name} {value}" for name, value in scope.items() if name in ("strategy", "symbol") and value)


def duration(seconds: object) -> str:
    """Write seconds as days, hours, minutes and seconds, the two largest that apply."""
    if not isinstance(seconds, int | float):
        return "?"
    left = int(seconds)
    parts: list[str] = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (name == "s" and not parts):
            parts.append(f"{left // size} {name}")
            left %= size
    return " ".join(parts[:2])

"""`sigma9 order`: place, preview, modify, cancel and list orders."""

from __future__ import annotations

import argparse
import math
import uuid
from collections.abc import Mapping
from typing import Any, Final

from sigma9_core.cli.options import add_format, add_server_address

COLUMNS: Final = (
    "order_id",
    "status",
    "symbol",
    "side",
    "quantity",
    "filled_quantity",
    "order_type",
    "limit_price",
    "stop_price",
    "strategy",
    "foreign",
)
FIELDS: Final = (
    "status",
    "order_id",
    "broker_order_id",
    "symbol",
    "side",
    "quantity",
    "order_type",
    "limit_price",
    "stop_price",
    "trail_amount",
    "trail_percent",
    "time_in_force",
    "outside_rth",
    "filled_quantity",
    "average_price",
    "last_quantity",
    "last_price",
    "commission",
    "strategy",
    "source",
    "parent_id",
    "oca_group",
    "reason",
    "rule",
    "verdicts",
    "recovered",
    "good_after",
    "adjustment",
    "foreign",
)
"""An order's fields (contract 1)."""
_TYPES: Final = (
    "market",
    "limit",
    "stop",
    "stop_limit",
    "trailing_stop",
    "market_on_close",
    "limit_on_close",
)
_TIMES: Final = ("day", "gtc", "ioc", "fok", "gtd", "opg")
_PRICES: Final = ("limit_price", "stop_price", "trail_amount", "trail_percent")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `order` and its actions."""
    parser = subparsers.add_parser("order", help="place, preview, modify, cancel or list orders")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("place", "send an order through the risk gate"),
        ("preview", "ask what the risk rules would say; nothing is sent"),
    ):
        order = actions.add_parser(name, help=summary)
        order.add_argument("symbol", help="such as AAPL")
        order.add_argument("side", choices=("buy", "sell"))
        order.add_argument("quantity", type=number, help="shares, above 0")
        order.add_argument("--type", choices=_TYPES, help="default: what the prices given imply, else market")
        _add_prices(order)
        order.add_argument("--time-in-force", choices=_TIMES, help="default: day")
        order.add_argument("--outside-rth", action="store_true", help="may fill outside regular trading hours")
        order.add_argument("--stop-loss", type=number, metavar="PRICE", help="a protective stop beside the order")
        order.add_argument("--take-profit", type=number, metavar="PRICE", help="goes with --stop-loss")
        order.add_argument("--reason", help="why, for the journal")
        if name == "place":
            order.add_argument(
                "--id", help="repeating a command with its id does nothing twice (default: a new id)"
            )
        _add_common(order, ("table", "json"))
    modify = actions.add_parser("modify", help="change a working order")
    modify.add_argument("order_id")
    modify.add_argument("--quantity", type=number)
    _add_prices(modify)
    modify.add_argument("--reason", help="why, for the journal")
    _add_common(modify, ("table", "json"))
    cancel = actions.add_parser("cancel", help="cancel a working order")
    cancel.add_argument("order_id")
    cancel.add_argument("--reason", help="why, for the journal")
    _add_common(cancel, ("table", "json"))
    everything = actions.add_parser("cancel-all", help="cancel our working entries; protective orders stay")
    everything.add_argument("--protective", action="store_true", help="protective orders as well")
    everything.add_argument("--reason", help="why, for the journal")
    _add_common(everything, ("table", "json"))
    _add_common(actions.add_parser("list", help="list the open orders"), ("table", "json", "csv"))


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    from sigma9_core.cli.answers import tell
    from sigma9_core.cli.client import Client, find_target
    from sigma9_core.cli.output import show_rows

    client = Client(find_target(args))
    match args.action:
        case "list":
            orders = client.get("orders")["orders"]
            show_rows(orders, COLUMNS, args.format, fields=FIELDS, empty="no open orders")
            return 0
        case "place":
            request = order_request(args)
            request["id"] = args.id or uuid.uuid4().hex
            repeat = (
                f"look at `sigma9 order list`, or send it again with --id {request['id']}: it is never sent twice"
            )
            answer = client.command("place_order", request, repeat=repeat)
            return tell(answer, args.format, order_line)
        case "preview":
            return tell(client.command("preview_order", order_request(args)), args.format, preview_lines)
        case "modify":
            request = {"order_id": args.order_id, "quantity": args.quantity, "reason": args.reason}
            request |= {name: getattr(args, name) for name in _PRICES}
            answer = client.command("modify_order", request, repeat="look at `sigma9 order list`")
            return tell(answer, args.format, order_line)
        case "cancel":
            request = {"order_id": args.order_id, "reason": args.reason}
            answer = client.command("cancel_order", request, repeat="cancel again, that is harmless")
            return tell(answer, args.format, order_line)
        case _:
            request = {"protective": args.protective or None, "reason": args.reason}
            answer = client.command("cancel_all", request, repeat="cancel again, that is harmless")
            return tell(answer, args.format, cancelled_line)


def order_request(args: argparse.Namespace) -> dict[str, Any]:
    """Build the arguments of place_order and preview_order."""
    from sigma9_core.cli.client import WrongUsage

    request: dict[str, Any] = {
        "symbol": args.symbol,
        "side": args.side,
        "quantity": args.quantity,
        "order_type": args.type or _implied(args),
        "time_in_force": args.time_in_force,
        "outside_rth": args.outside_rth or None,
        "reason": args.reason,
    }
    request |= {name: getattr(args, name) for name in _PRICES}
    if args.stop_loss is not None:
        request["bracket"] = {"stop_price": args.stop_loss}
        if args.take_profit is not None:
            request["bracket"]["take_profit"] = args.take_profit
    elif args.take_profit is not None:
        raise WrongUsage("--take-profit goes with --stop-loss: a bracket always has a stop")
    return request


def number(text: str) -> int | float:
    """Read a positive number for the wire; argparse turns the error into a usage message."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no positive number")
    return int(value) if value.is_integer() else value


def order_line(result: Mapping[str, Any]) -> str:
    """Write an order in one line."""
    from sigma9_core.cli.answers import listing
    from sigma9_core.cli.output import cell

    order = result.get("order", result)
    if not isinstance(order, Mapping) or "order_id" not in order or "symbol" not in order:
        return listing(result)
    prices = [f"{name.replace('_', ' ')} {cell(order[name])}" for name in _PRICES if order.get(name) is not None]
    words = [
        order.get("status"),
        order.get("side"),
        order.get("quantity"),
        order["symbol"],
        order.get("order_type"),
    ]
    text = " ".join(cell(word) for word in words if word is not None)
    return f"{order['order_id']}: {text}{''.join(f', {price}' for price in prices)}"


def preview_lines(result: Mapping[str, Any]) -> str:
    """Write what each rule says, and whether the order would be sent."""
    from sigma9_core.cli.answers import listing, verdict_line

    lines = [verdict_line(verdict) for verdict in result.get("verdicts") or []]
    rest = {name: value for name, value in result.items() if name not in ("verdicts", "approved") and value}
    if "approved" in result:
        lines.append("it would be sent" if result["approved"] else "it would be refused")
    return "\n".join([*lines, listing(rest)] if rest else lines)


def cancelled_line(result: Mapping[str, Any]) -> str:
    """Write what cancel_all did."""
    cancelled, pending = (list(map(str, result.get(name) or [])) for name in ("cancelled", "pending"))
    if not cancelled and not pending:
        return "there was nothing of ours to cancel"
    parts = [f"cancelled: {', '.join(cancelled)}"] if cancelled else []
    parts += [f"not confirmed yet: {', '.join(pending)}; see `sigma9 order list`"] if pending else []
    return "\n".join(parts)


def _implied(args: argparse.Namespace) -> str:
    if args.trail_amount is not None or args.trail_percent is not None:
        return "trailing_stop"
    if args.stop_price is not None:
        return "stop_limit" if args.limit_price is not None else "stop"
    return "limit" if args.limit_price is not None else "market"


def _add_prices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit-price", type=number, metavar="PRICE")
    parser.add_argument("--stop-price", type=number, metavar="PRICE")
    parser.add_argument("--trail-amount", type=number, metavar="MONEY")
    parser.add_argument("--trail-percent", type=number, metavar="PERCENT")


def _add_common(parser: argparse.ArgumentParser, formats: tuple[str, ...]) -> None:
    add_server_address(parser)
    add_format(parser, formats)

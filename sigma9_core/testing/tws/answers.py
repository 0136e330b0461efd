"""What the peer answers: one function a message, and how it is shown to a person."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from sigma9_core.testing.tws.accounts import Account, Position, PriceOf
from sigma9_core.testing.tws.orders import Told, completed_order, open_order
from sigma9_core.testing.tws.tickets import Execution, Ticket
from sigma9_core.testing.tws.times import stamp
from sigma9_core.testing.tws.wire import UNSET, Message, message, text

NAMES: Final[Mapping[str, str]] = {
    "1": "tickPrice",
    "2": "tickSize",
    "3": "orderStatus",
    "4": "error",
    "5": "openOrder",
    "6": "accountValue",
    "7": "portfolioValue",
    "8": "accountTime",
    "9": "nextValidId",
    "10": "contractDetails",
    "11": "execDetails",
    "15": "managedAccounts",
    "17": "historicalData",
    "45": "tickGeneric",
    "46": "tickString",
    "49": "currentTime",
    "50": "realtimeBar",
    "52": "contractDetailsEnd",
    "53": "openOrderEnd",
    "54": "accountDownloadEnd",
    "55": "execDetailsEnd",
    "57": "tickSnapshotEnd",
    "58": "marketDataType",
    "59": "commissionReport",
    "61": "position",
    "62": "positionEnd",
    "63": "accountSummary",
    "64": "accountSummaryEnd",
    "71": "positionMulti",
    "72": "positionMultiEnd",
    "73": "accountUpdateMulti",
    "74": "accountUpdateMultiEnd",
    "79": "symbolSamples",
    "81": "tickReqParams",
    "88": "headTimestamp",
    "90": "historicalDataUpdate",
    "93": "marketRule",
    "94": "pnl",
    "95": "pnlSingle",
    "100": "orderBound",
    "101": "completedOrder",
    "102": "completedOrdersEnd",
    "107": "userInfo",
}
"""The messages of a server by their number."""


def shown(sent: Message) -> str:
    """Say a message in one line: its name and what is in it, without the long tail of an order."""
    number, *fields = sent
    name = NAMES.get(number, number)
    if number == "5":
        fields = [*fields[:1], fields[2], *fields[12:18], *fields[22:25]]
    elif number == "101":
        fields = [fields[1], *fields[11:17], *fields[21:23]]
    elif number == "10":
        fields = [fields[0], fields[1], f"conId={fields[11]}"]
    elif number == "17":
        fields = [*fields[:4], "..."]
    return f"{name} {','.join(fields)}"


def error(code: int, words: str, request: int = -1, rejected: str = "") -> Message:
    """Write error; -1 stands for none in particular."""
    return message(4, 2, request, code, words, rejected)


def told(ticket: Ticket, zone: str, **more: tuple[str, ...]) -> Told:
    """Give what is told of a ticket beside its order."""
    ended = ticket.ended is not None
    return Told(
        order_id=ticket.order_id,
        client_id=ticket.client_id,
        perm_id=ticket.perm_id,
        parent_id=ticket.parent_id,
        status=ticket.status,
        account=ticket.account,
        quantity=ticket.quantity,
        filled=ticket.filled,
        completed_time=stamp(ticket.ended, zone) if ticket.ended is not None else "",
        completed_status=_completed(ticket) if ended else "",
        **more,
    )


def _completed(ticket: Ticket) -> str:
    if ticket.status == "Filled":
        return f"Filled Size: {text(ticket.filled)}"
    return f"{ticket.status} by Trader" if ticket.reason == "" else f"{ticket.status}: {ticket.reason}"


def order_message(ticket: Ticket, zone: str) -> Message:
    """Write openOrder of a ticket."""
    return open_order(ticket.contract, ticket.told(), told(ticket, zone))


def completed_message(ticket: Ticket, zone: str) -> Message:
    """Write completedOrder of a ticket."""
    return completed_order(ticket.contract, ticket.told(), told(ticket, zone))


def status_message(ticket: Ticket, status: str = "") -> Message:
    """Write orderStatus of a ticket."""
    return message(
        3,
        *(ticket.order_id, status or ticket.status, ticket.filled, ticket.remaining, ticket.average),
        *(ticket.perm_id, ticket.parent_id, ticket.last_price, ticket.client_id, ticket.why_held, "0"),
    )


def execution_message(each: Execution, request: int, zone: str) -> Message:
    """Write execDetails; -1 stands for a live one."""
    ticket = each.ticket
    exchange = ticket.contract.primary_exchange or "NYSE"
    return message(
        11,
        *(request, ticket.order_id, *ticket.contract.eleven(), each.exec_id, stamp(each.time, zone)),
        *(ticket.account, exchange, "BOT" if ticket.order.buys else "SLD", each.quantity, each.price),
        *(ticket.perm_id, ticket.client_id, 0, each.cumulative, each.average, ticket.ref, "", "", "", 2),
    )


def commission_message(each: Execution) -> Message:
    """Write commissionReport."""
    realized = UNSET if each.realized is None else each.realized.quantize(Decimal("0.0001"))
    return message(59, 1, each.exec_id, each.commission, "USD", realized, UNSET, "")


def position_message(account: str, position: Position) -> Message:
    """Write position."""
    return message(61, 3, account, *position.contract.eleven(), position.quantity, position.cost)


def portfolio_message(account: Account, position: Position, price_of: PriceOf) -> Message:
    """Write portfolioValue."""
    price = price_of(position.contract.con_id)
    quantity = position.quantity
    unrealized = (price - position.cost) * quantity
    return message(
        7,
        *(8, *position.contract.portfolio(), quantity, price, price * quantity, position.cost),
        *(unrealized, position.realized, account.name),
    )

"""How requests about orders are answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Final

from sigma9_core.testing.tws.answers import (
    commission_message,
    completed_message,
    error,
    execution_message,
    order_message,
    status_message,
)
from sigma9_core.testing.tws.book import Refused
from sigma9_core.testing.tws.client import Client
from sigma9_core.testing.tws.contracts import Contract
from sigma9_core.testing.tws.orders import Told, WireOrder, open_order
from sigma9_core.testing.tws.requests import Request
from sigma9_core.testing.tws.tickets import Ticket
from sigma9_core.testing.tws.wire import Message, message
from sigma9_core.testing.tws.world import World, about

Answer = Callable[[World, Client, Request], None]
CENT: Final = Decimal("0.01")


def place(world: World, client: Client, request: Request) -> None:
    """Take a new order or a change, or tell what it would do to the margin."""
    order, order_id = request.order, request.order_id
    contract = _known(world, request.contract)
    if order is None:
        return
    if contract is None:
        client.send(error(200, "No security definition has been found for the request", order_id))
        return
    if order.flag("whatIf"):
        _what_if(world, client, request, contract)
        return
    known = world.book.numbers.get((client.client_id, order_id))
    if known is not None and known.live:
        _change(world, client, known, contract, order)
        return
    facts = {"symbol": contract.symbol, "order_ref": order.get("orderRef"), "client_id": client.client_id}
    fault = world.faults.strike("place", **facts)
    name = "" if fault is None else fault.kind.name
    if name == "lost-order":
        return
    if fault is not None and name in ("lost-ack", "late-ack", "death-after-accept"):
        ticket = _untold(world, client, request, contract, dies=name == "death-after-accept")
        if ticket is not None and name == "late-ack":
            world.clock.later(fault.option("seconds", 2), lambda: world.acknowledge(ticket))
        return
    if fault is not None and name == "read-only":
        client.send(error(fault.kind.code, fault.kind.text, order_id))
        return
    held = "locate" if name == "locate-hold" else ""
    rejects = str(fault.options.get("text", fault.kind.text)) if fault is not None and not held else None
    try:
        if known is None and 0 < order_id <= client.highest:
            raise Refused(103, "Duplicate order id")
        placed = world.book.place(client.client_id, order_id, contract, order, rejects, held=held)
    except Refused as refusal:
        client.send(error(refusal.code, refusal.text, order_id))
        return
    if fault is not None and held:
        world.clock.later(fault.option("seconds", 2), lambda: world.book.let_go(placed))


def _untold(world: World, client: Client, request: Request, contract: Contract, *, dies: bool) -> Ticket | None:
    """Take an order without a word; where the connection dies, that is all that keeps it from being told."""
    if request.order is None:
        return None
    client.muted = True
    if dies:
        client.close(at_once=True)
    try:
        ticket = world.book.place(client.client_id, request.order_id, contract, request.order)
        ticket.withheld = not dies
    except Refused:
        return None  # a refusal is not told either
    else:
        return ticket
    finally:
        client.muted = dies


def _change(world: World, client: Client, ticket: Ticket, contract: Contract, order: WireOrder) -> None:
    fault = world.faults.strike("modify", **about(ticket))
    ticket.withheld = ticket.withheld or (fault is not None and fault.kind.name == "modify-untold")
    if fault is not None and not ticket.withheld:
        if fault.kind.code:
            client.send(error(fault.kind.code, fault.kind.text, ticket.order_id))
        return
    try:
        world.book.place(client.client_id, ticket.order_id, contract, order)
    except Refused as refusal:
        client.send(error(refusal.code, refusal.text, ticket.order_id))


def _known(world: World, wanted: Contract | None) -> Contract | None:
    """Find the contract that a client means; None where it is none, or more than one."""
    found = [] if wanted is None else world.contracts.matching(wanted)
    if wanted is None or len(found) != 1:
        return None
    return replace(found[0].contract, exchange=wanted.exchange or "SMART")


def _what_if(world: World, client: Client, request: Request, contract: Contract) -> None:
    """Tell what an order would do to the margin."""
    order = request.order
    account = None if order is None else world.accounts.get(order.get("account"))
    if order is None or account is None:
        client.send(error(321, "Invalid account code.", request.order_id))
        return
    about_it = {"symbol": contract.symbol, "client_id": client.client_id}
    if (fault := world.faults.strike("what-if", **about_it)) is not None:
        code = int(fault.option("code", fault.kind.code))
        client.send(error(code, str(fault.options.get("text", fault.kind.text)), request.order_id))
    price_of = world.market.price
    quantity = order.number("totalQuantity") or Decimal(0)
    signed = quantity if order.buys else -quantity
    held = account.position(contract).quantity
    change = (abs(held + signed) - abs(held)) * price_of(contract.con_id) * account.margin_rate
    before, equity = account.in_base(account.gross(price_of) * account.margin_rate), account.worth(price_of)
    change = account.in_base(change)
    commission = max(quantity * world.book.commission, world.book.least_commission)
    paid = account.in_base(commission)
    numbers = (before, before, equity, change, change, -paid)
    after = (before + change, before + change, equity - paid)
    told = Told(
        order_id=request.order_id,
        client_id=client.client_id,
        perm_id=0,
        parent_id=0,
        status="PreSubmitted",
        account=account.name,
        quantity=quantity,
        margins=tuple(format(each.quantize(CENT), "f") for each in (*numbers, *after)),
        commission=(format(commission.quantize(CENT), "f"), "", "", "USD", ""),
    )
    client.send(open_order(contract, order, told))


def cancel(world: World, client: Client, request: Request) -> None:
    """Cancel an order of the client's own."""
    order_id = request.order_id
    ticket = world.book.numbers.get((client.client_id, order_id))
    if ticket is None:
        client.send(error(10147, f"OrderId {order_id} that needs to be cancelled is not found.", order_id))
    elif not _kept(world, ticket):
        world.book.cancel(ticket)


def _kept(world: World, ticket: Ticket) -> bool:
    """Tell whether a fault or its state keeps an order from being cancelled now; what is to be said is said."""
    order_id = ticket.order_id
    fault = world.faults.strike("cancel", **about(ticket))
    if fault is not None and fault.kind.name == "cancel-late" and ticket.live:
        ticket.status = "PendingCancel"
        world.tell(ticket, status_message(ticket))
        world.clock.later(fault.option("seconds", 2), lambda: world.book.cancel(ticket))
        return True
    if fault is not None:
        if fault.kind.code:
            world.tell(ticket, error(fault.kind.code, fault.kind.text.format(order_id=order_id), order_id))
        return True
    if not ticket.live:
        words = f"OrderId {order_id} that needs to be cancelled cannot be cancelled, state: {ticket.status}."
        world.tell(ticket, error(10148, words, order_id))
        return True
    return False


def global_cancel(world: World, client: Client, request: Request) -> None:
    """Cancel every order of every client, and those by hand."""
    for ticket in world.book.working():
        if ticket.live and not _kept(world, ticket):
            world.book.cancel(ticket)


def open_orders(world: World, client: Client, request: Request) -> None:
    """Tell a client its own open orders; client 0 also those by hand, which get a number by it."""
    if client.client_id == 0:
        for ticket in world.book.working():
            if ticket.client_id == 0:
                world.bind(ticket)
    for ticket in _listed(world):
        if world.owns(client, ticket):
            _tell_open(world, client, ticket)
    client.send(message(53, 1))


def all_open_orders(world: World, client: Client, request: Request) -> None:
    """Tell a client the open orders of everybody."""
    for ticket in _listed(world):
        _tell_open(world, client, ticket)
    client.send(message(53, 1))


def _listed(world: World) -> list[Ticket]:
    """List the open orders as they are told: without those that a fault hides, with those that it keeps."""
    return [
        ticket
        for ticket in world.book.tickets.values()
        if ticket.transmitted
        and (ticket.live or _keeps(world, ticket))
        and world.faults.strike("list", "open-order-hidden", **about(ticket)) is None
    ]


def _keeps(world: World, ticket: Ticket) -> bool:
    """Tell whether an order that was rejected stays in the list of open orders."""
    return ticket.status == "Inactive" and not ticket.past and world.faults.on("rejected-listed")


def _tell_open(world: World, client: Client, ticket: Ticket) -> None:
    ticket.withheld = False
    client.highest = max(client.highest, ticket.order_id)
    client.send(order_message(ticket, world.zone), status_message(ticket))


def auto_open(world: World, client: Client, request: Request) -> None:
    """Let client 0 hear of orders by hand from now on."""
    if client.client_id != 0:
        client.send(error(321, "Error validating request: only the default client (0) can auto bind orders."))
        return
    client.binds = request.get("bind") == "1"


def completed_orders(world: World, client: Client, request: Request) -> None:
    """Tell the orders that have ended today; those by hand only where they are wanted."""
    only_api = request.get("apiOnly") == "1"
    for ticket in world.book.tickets.values():
        if _keeps(world, ticket):
            continue
        if ticket.ended is not None and not ticket.past and not (only_api and ticket.order_id <= 0):
            ticket.withheld = False
            client.send(completed_message(ticket, world.zone))
    client.send(message(102))


def executions(world: World, client: Client, request: Request) -> None:
    """Tell the executions of the day that a filter lets through, each with its commission."""
    for each in world.book.executions:
        if not each.hidden and _wanted(request, each.ticket, each.time.strftime("%Y%m%d %H:%M:%S")):
            each.ticket.withheld = False
            each.told_at = each.told_at or world.clock.now()
            client.send(execution_message(each, request.req_id, world.zone), commission_message(each))
    client.send(message(55, 1, request.req_id))


def _wanted(request: Request, ticket: Ticket, time: str) -> bool:
    since = request.get("time").replace("-", " ", 1)
    contract = ticket.contract
    wishes = {
        "account": ticket.account,
        "symbol": contract.symbol,
        "secType": contract.sec_type,
        "exchange": contract.primary_exchange,
    }
    if any(request.get(name) not in ("", value) for name, value in wishes.items()):
        return False
    if request.integer("clientId") not in (0, ticket.client_id):
        return False
    side = request.get("side").upper()
    if side and (side[0] == "B") != ticket.order.buys:
        return False
    return not since or time >= since[:17]


def ids(world: World, client: Client, request: Request) -> None:
    """Tell the next order id."""
    client.send(next_id(world, client))


def next_id(world: World, client: Client) -> Message:
    """Write nextValidId."""
    return message(9, 1, max(world.book.next_id(client.client_id), client.highest + 1))


ANSWERS: Final[Mapping[str, Answer]] = {
    "placeOrder": place,
    "cancelOrder": cancel,
    "reqGlobalCancel": global_cancel,
    "reqOpenOrders": open_orders,
    "reqAllOpenOrders": all_open_orders,
    "reqAutoOpenOrders": auto_open,
    "reqCompletedOrders": completed_orders,
    "reqExecutions": executions,
    "reqIds": ids,
}

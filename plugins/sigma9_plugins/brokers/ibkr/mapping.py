"""Our orders as IB takes them, and IB's orders as we show them.

Time in force and outside-hours are always written out: what is left out is filled in from presets in TWS.
`orderRef` carries our order id, by which an order is found again; IB's order id belongs to a session.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal

from sigma9_core.contracts import BrokerOrder
from sigma9_core.errors import BrokerRefused
from sigma9_core.models import ZERO, OrderRequest, OrderType, TimeInForce
from sigma9_plugins.brokers.ibkr.contracts import name_of
from sigma9_plugins.brokers.ibkr.figures import price, quantity
from sigma9_plugins.brokers.ibkr.library import Library

TYPES: Final[Mapping[OrderType, str]] = {
    "market": "MKT",
    "limit": "LMT",
    "stop": "STP",
    "stop_limit": "STP LMT",
    "trailing_stop": "TRAIL",
    "market_on_close": "MOC",
    "limit_on_close": "LOC",
}
OURS: Final[Mapping[str, OrderType]] = {**{theirs: ours for ours, theirs in TYPES.items()}, "STPLMT": "stop_limit"}
TIFS: Final[Mapping[TimeInForce, str]] = {
    "day": "DAY",
    "gtc": "GTC",
    "ioc": "IOC",
    "fok": "FOK",
    "opg": "OPG",
}
"""`gtd` is not among them: a request has no date to go with it."""
LIMITED: Final = frozenset(("limit", "stop_limit", "limit_on_close"))
STOPPED: Final = frozenset(("stop", "stop_limit"))
OCA_REDUCE: Final = 2
"""A fill of one takes as much off the others, with overfill protection: a partial fill bares no other part."""
TRIGGER_DEFAULT: Final = 0

WORKING: Final = frozenset(
    ("PendingSubmit", "ApiPending", "PreSubmitted", "Submitted", "PendingCancel", "Inactive")
)
CONFIRMED: Final = frozenset(("PreSubmitted", "Submitted"))
CANCELLED: Final = frozenset(("Cancelled", "ApiCancelled"))
State = Literal["working", "filled", "cancelled", "rejected", "expired"]


def to_ib(
    library: Library,
    request: OrderRequest,
    order_id: str,
    *,
    account: str,
    number: int,
    parent: int = 0,
    transmit: bool = True,
) -> Any:
    """Write an order; raise BrokerRefused for one that IB has no words for."""
    wrong = fault(request)
    if wrong is not None:
        raise BrokerRefused(f"order {order_id} was not sent: {wrong}")
    order = library.order()
    order.orderId = number
    order.action = "BUY" if request.side == "buy" else "SELL"
    order.totalQuantity = float(request.quantity)
    order.orderType = TYPES[request.order_type]
    order.tif = TIFS[request.time_in_force]
    order.outsideRth = request.outside_rth
    order.orderRef = order_id
    order.account = account
    order.parentId = parent
    order.transmit = transmit
    order.triggerMethod = TRIGGER_DEFAULT
    if request.oca_group is not None:
        order.ocaGroup = request.oca_group
        order.ocaType = OCA_REDUCE
    if request.order_type in LIMITED:
        order.lmtPrice = _float(request.limit_price)
    if request.order_type in STOPPED:
        order.auxPrice = _float(request.stop_price)
    if request.order_type == "trailing_stop":
        if request.trail_amount is not None:
            order.auxPrice = _float(request.trail_amount)
        else:
            order.trailingPercent = _float(request.trail_percent)
        if request.stop_price is not None:
            order.trailStopPrice = _float(request.stop_price)
    return order


def fault(request: OrderRequest) -> str | None:
    """Say why IB would not understand a request; None where it does."""
    kind = request.order_type
    if not request.quantity.is_finite() or request.quantity <= ZERO:
        return f"the quantity must be above zero, not {request.quantity}"
    if request.time_in_force not in TIFS:
        return f"a time in force of {request.time_in_force} needs a date, which orders do not have here"
    if kind in ("market_on_close", "limit_on_close") and request.time_in_force != "day":
        return f"an order on the close is for the day, not {request.time_in_force}"
    if kind in LIMITED and not _positive(request.limit_price):
        return f"a {kind} order needs a limit price above zero"
    if kind in STOPPED and not _positive(request.stop_price):
        return f"a {kind} order needs a stop price above zero"
    if kind == "trailing_stop" and not (_positive(request.trail_amount) or _positive(request.trail_percent)):
        return "a trailing stop needs an amount or a percentage above zero"
    return None


def from_ib(
    contract: Any,
    order: Any,
    *,
    state: State,
    filled: Decimal,
    total: Decimal | None = None,
    parent_id: str | None = None,
    reason: str | None = None,
) -> BrokerOrder:
    """Show an order of IB; one of a type that we have no word for is shown as a limit, or else a market order."""
    limit, stop = price(order.lmtPrice), price(order.auxPrice)
    kind = OURS.get(str(order.orderType).upper(), "limit" if limit is not None else "market")
    trail = kind == "trailing_stop"
    return BrokerOrder(
        order_id=order.orderRef or None,
        broker_order_id=broker_id(order.permId, order.clientId, order.orderId),
        symbol=name_of(contract),
        side="buy" if order.action == "BUY" else "sell",
        quantity=quantity(order.totalQuantity) if total is None else total,
        filled_quantity=filled,
        order_type=kind,
        state=state,
        limit_price=limit if kind in LIMITED else None,
        stop_price=stop if kind in STOPPED else None,
        trail_amount=stop if trail else None,
        trail_percent=price(order.trailingPercent) if trail else None,
        time_in_force=_time_in_force(order.tif),
        oca_group=order.ocaGroup or None,
        parent_id=parent_id,
        reason=reason,
    )


def broker_id(perm_id: int, client_id: int, number: int) -> str:
    """Name an order at IB: by its permanent id, or, before it has one, by client and number."""
    return str(perm_id) if perm_id else f"{client_id}/{number}"


def state_of(status: str) -> State | None:
    """Say what a status means for an order; None where it means nothing that is sure."""
    if status in CANCELLED:
        return "cancelled"
    if status == "Filled":
        return "filled"
    return "working" if status in WORKING else None


def same_terms(request: OrderRequest, order: Any) -> bool:
    """Tell whether an order at IB has the quantity and prices of a request."""
    if quantity(order.totalQuantity) != request.quantity:
        return False
    kind = request.order_type
    if kind in LIMITED and price(order.lmtPrice) != request.limit_price:
        return False
    if kind in STOPPED and price(order.auxPrice) != request.stop_price:
        return False
    if kind == "trailing_stop":
        if request.trail_amount is not None:
            return price(order.auxPrice) == request.trail_amount
        return price(order.trailingPercent) == request.trail_percent
    return True


def _time_in_force(tif: str) -> TimeInForce:
    return next((ours for ours, theirs in TIFS.items() if theirs == tif), "gtd" if tif == "GTD" else "day")


def _positive(value: Decimal | None) -> bool:
    return value is not None and value.is_finite() and value > ZERO


def _float(value: Decimal | None) -> float:
    return 0.0 if value is None else float(value)

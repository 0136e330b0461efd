"""Our orders as IB takes them, and IB's orders as we show them.

Time in force and outside-hours are always written out: what is left out is filled in from presets in TWS.
`orderRef` carries our order id, by which an order is found again; IB's order id belongs to a session.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sigma9_core.contracts import BrokerOrder
from sigma9_core.errors import BrokerRefused
from sigma9_core.models import ZERO, Adjustment, OrderRequest, OrderType, TimeInForce
from sigma9_plugins.brokers.ibkr.contracts import name_of
from sigma9_plugins.brokers.ibkr.figures import amount, price, quantity
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
CHANGEABLE: Final = ("quantity", "limit_price", "stop_price", "trail_amount", "trail_percent", "adjustment")
"""The terms of a working order that a change may change."""
BY_AMOUNT: Final = 0
BY_PERCENT: Final = 100
"""What the distance of an adjusted stop is in."""

WORKING: Final = frozenset(("PendingSubmit", "ApiPending", "PreSubmitted", "Submitted", "PendingCancel"))
CONFIRMED: Final = frozenset(("PreSubmitted", "Submitted"))
CANCELLED: Final = frozenset(("Cancelled", "ApiCancelled"))
INACTIVE: Final = "Inactive"
"""IB has the order and does not work it: it is held, such as for shares to borrow, or it was turned down."""
State = Literal["working", "held", "filled", "cancelled", "rejected", "expired"]


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
    if request.good_after is not None:
        order.goodAfterTime = stamp(request.good_after)
    if request.adjustment is not None:
        _adjust(order, request.adjustment)
    if request.order_type == "trailing_stop":
        if request.trail_amount is not None:
            order.auxPrice = _float(request.trail_amount)
        else:
            order.trailingPercent = _float(request.trail_percent)
        if request.stop_price is not None:
            order.trailStopPrice = _float(request.stop_price)
    return order


def _adjust(order: Any, change: Adjustment) -> None:
    """Write what a stop is to become."""
    order.triggerPrice = _float(change.trigger_price)
    order.adjustedOrderType = TYPES["trailing_stop"]
    order.adjustedStopPrice = _float(change.stop_price)
    by_amount = change.trail_amount is not None
    order.adjustableTrailingUnit = BY_AMOUNT if by_amount else BY_PERCENT
    order.adjustedTrailingAmount = _float(change.trail_amount if by_amount else change.trail_percent)


def _adjustment(order: Any) -> Adjustment | None:
    """Read what a stop of IB is to become; None where it stays what it is, or becomes no trailing stop."""
    trigger, stop, distance = (
        price(getattr(order, name)) for name in ("triggerPrice", "adjustedStopPrice", "adjustedTrailingAmount")
    )
    if str(order.adjustedOrderType).upper() != TYPES["trailing_stop"] or order.orderType == TYPES["trailing_stop"]:
        return None
    if trigger is None or stop is None or distance is None:
        return None
    name = "trail_percent" if amount(order.adjustableTrailingUnit) == BY_PERCENT else "trail_amount"
    return Adjustment(trigger_price=trigger, stop_price=stop, **{name: distance})


def stamp(moment: datetime) -> str:
    """Write a time as IB takes it in UTC, with a dash; IB knows whole seconds, of which the next one is given."""
    return f"{moment.astimezone(UTC) + timedelta(microseconds=999_999):%Y%m%d-%H:%M:%S}"


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
    if request.adjustment is not None and (wrong := _unadjustable(request, request.adjustment)) is not None:
        return wrong
    if kind == "trailing_stop" and not (_positive(request.trail_amount) or _positive(request.trail_percent)):
        return "a trailing stop needs an amount or a percentage above zero"
    return None


def _unadjustable(request: OrderRequest, change: Adjustment) -> str | None:
    if request.order_type != "stop":
        return f"a {request.order_type} order is not adjusted, only a stop"
    if not (_positive(change.trigger_price) and _positive(change.stop_price)):
        return "an adjustment needs a trigger price and a stop price above zero"
    if _positive(change.trail_amount) == _positive(change.trail_percent):
        return "an adjustment needs either an amount or a percentage above zero"
    return None


def from_ib(
    contract: Any,
    order: Any,
    *,
    order_id: str | None,
    state: State,
    filled: Decimal,
    total: Decimal | None = None,
    parent_id: str | None = None,
    reason: str | None = None,
) -> BrokerOrder:
    """Show an order of IB; one of a type that we have no word for is shown as a limit, or else a market order."""
    limit = price(order.lmtPrice)
    kind = OURS.get(str(order.orderType).upper(), "limit" if limit is not None else "market")
    terms = _terms(kind, order)
    return BrokerOrder(
        order_id=order_id,
        broker_order_id=broker_id(order.permId, order.clientId, order.orderId),
        symbol=name_of(contract),
        side="buy" if order.action == "BUY" else "sell",
        quantity=quantity(order.totalQuantity) if total is None else total,
        filled_quantity=filled,
        order_type=kind,
        state=state,
        limit_price=terms["limit_price"],
        stop_price=terms["stop_price"],
        trail_amount=terms["trail_amount"],
        trail_percent=terms["trail_percent"],
        time_in_force=_time_in_force(order.tif),
        oca_group=order.ocaGroup or None,
        parent_id=parent_id,
        reason=reason,
        good_after=moment_of(order.goodAfterTime or ""),
        adjustment=terms["adjustment"],
    )


def _terms(kind: OrderType, order: Any) -> dict[str, Any]:
    """Read what a change may change, as an order of such a kind has it at IB; None for what it does not have."""
    aux, trails = price(order.auxPrice), kind == "trailing_stop"
    return {
        "quantity": quantity(order.totalQuantity),
        "limit_price": price(order.lmtPrice) if kind in LIMITED else None,
        "stop_price": aux if kind in STOPPED else price(order.trailStopPrice) if trails else None,
        "trail_amount": aux if trails else None,
        "trail_percent": price(order.trailingPercent) if trails else None,
        "adjustment": _adjustment(order),
    }


def moment_of(text: str) -> datetime | None:
    """Read IB's `20260105 16:00:00 US/Eastern` (or with a dash, then in UTC); None where it can't be read."""
    dashed = text[8:9] == "-"
    words = (f"{text[:8]} {text[9:]}" if dashed else text).split()
    try:
        naive = datetime.strptime(" ".join(words[:2]), "%Y%m%d %H:%M:%S")  # noqa: DTZ007 - its zone follows
        zone = ZoneInfo(words[2]) if len(words) > 2 else UTC if dashed else None
    except (ValueError, IndexError, ZoneInfoNotFoundError):
        return None
    return naive.replace(tzinfo=zone).astimezone(UTC)


def adjusts(request: OrderRequest | None, order: Any) -> bool:
    """Tell whether IB has made of a stop what it was to become; of one without a `request` that may be so."""
    became = OURS.get(str(order.orderType).upper()) == "trailing_stop"
    return became and (request is None or request.adjustment is not None)


def broker_id(perm_id: int, client_id: int, number: int) -> str:
    """Name an order at IB: by its permanent id, or, before it has one, by client and number."""
    return str(perm_id) if perm_id else f"{client_id}/{number}"


def state_of(status: str) -> State | None:
    """Say what a status means for an order; None where it means nothing that is sure."""
    if status in CANCELLED:
        return "cancelled"
    if status == "Filled":
        return "filled"
    if status == INACTIVE:
        return "held"
    return "working" if status in WORKING else None


def same_terms(request: OrderRequest, order: Any, before: OrderRequest | None = None) -> bool:
    """Tell whether an order at IB has the terms of a change: all that it changes from what was `before`.

    IB moves the price of a trailing stop on by itself: one that is nearer to the market than asked will do.
    """
    if request.order_type == "stop" and adjusts(request, order):
        return False  # it was adjusted before the change has come: the change makes a stop of it again
    shown = _terms(request.order_type, order)
    for name in CHANGEABLE:
        asked, there = getattr(request, name), shown[name]
        if before is not None and getattr(before, name) == asked:
            continue
        if name == "stop_price" and request.order_type == "trailing_stop" and asked is not None:
            if there is None or (there < asked if request.side == "sell" else there > asked):
                return False
        elif there != asked and (asked is not None or name == "adjustment"):
            return False
    return True


def _time_in_force(tif: str) -> TimeInForce:
    return next((ours for ours, theirs in TIFS.items() if theirs == tif), "gtd" if tif == "GTD" else "day")


def _positive(value: Decimal | None) -> bool:
    return value is not None and value.is_finite() and value > ZERO


def _float(value: Decimal | None) -> float:
    return 0.0 if value is None else float(value)

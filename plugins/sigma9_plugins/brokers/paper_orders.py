"""What the paper exchange takes: an order's faults, and its terms as they will work."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from sigma9_core.calendar import Calendar
from sigma9_core.models import OrderRequest, Session, TimeInForce
from sigma9_plugins.brokers.paper_book import LIMITS, ON_CLOSE, STOPS
from sigma9_plugins.brokers.paper_costs import in_favour, nearest

NEW_YORK: Final = ZoneInfo("America/New_York")
LATE: Final = time(20, 0)
"""Trading outside regular hours ends at this time in New York."""
AT_ONCE: Final[frozenset[TimeInForce]] = frozenset(("ioc", "fok", "opg"))


def terms(request: OrderRequest) -> dict[str, Any]:
    """Give an order's prices on the tick: limits never worse than asked, stops at the nearest tick."""
    return {
        "limit_price": None if request.limit_price is None else in_favour(request.side, request.limit_price),
        "stop_price": None if request.stop_price is None else nearest(request.stop_price),
        "trail_amount": None if request.trail_amount is None else nearest(request.trail_amount),
        "trail_percent": request.trail_percent,
    }


def fault(request: OrderRequest, prices: Mapping[str, Any]) -> str | None:
    """Say in one sentence why an exchange would not take an order; None where it would."""
    quantity, kind, force = request.quantity, request.order_type, request.time_in_force
    if not quantity.is_finite() or quantity <= 0:
        return f"the quantity must be above zero, not {quantity}"
    if quantity != quantity.to_integral_value():
        return f"the quantity must be a whole number of shares, not {quantity}"
    needed = []
    if kind in LIMITS:
        needed.append("limit_price")
    if kind in STOPS and kind != "trailing_stop":
        needed.append("stop_price")
    for name in needed:
        if prices[name] is None:
            return f"a {kind} order needs a {name}"
    for name, price in prices.items():
        if price is not None and (not price.is_finite() or price <= 0):
            return f"the {name} must be above zero, not {getattr(request, name)}"
    if kind == "trailing_stop" and (prices["trail_amount"] is None) == (prices["trail_percent"] is None):
        return "a trailing_stop order needs exactly one of trail_amount and trail_percent"
    if prices["trail_percent"] is not None and prices["trail_percent"] >= 100:
        return f"the trail_percent must be below 100, not {prices['trail_percent']}"
    if force == "gtd":
        return "gtd needs a date, which an order can't carry here: use day or gtc"
    if kind in ON_CLOSE and force != "day":
        return f"a {kind} order is good for the day, not {force}"
    if force in AT_ONCE and kind not in ("market", "limit"):
        return f"{force} goes with market and limit orders, not with a {kind} order"
    return None


def wrong_side(request: OrderRequest, prices: Mapping[str, Any], market: Decimal | None) -> str | None:
    """Say why an entry's stop lies on the wrong side of the market: it would be a market order.

    A stop that reduces a position is taken anyhow, and so is a stop-limit order: both are set off at once.
    """
    stop = prices["stop_price"]
    if request.intent != "entry" or request.parent_id is not None or stop is None or market is None:
        return None
    if request.order_type != "stop":
        return None
    if request.side == "buy" and stop <= market:
        return f"a buy stop at {stop} lies at or below the market at {market}: it would trade at once"
    if request.side == "sell" and stop >= market:
        return f"a sell stop at {stop} lies at or above the market at {market}: it would trade at once"
    return None


def lifetime(request: OrderRequest, now: datetime, calendar: Calendar) -> tuple[datetime | None, datetime | None]:
    """Give when an order opens (`opg` only) and when it expires; None: never."""
    if request.time_in_force == "opg":
        opening = calendar.after(now)
        return (opening.open, opening.close) if opening is not None else (None, None)
    if request.time_in_force == "gtc":
        return None, None
    recent = calendar.last(now)
    for session in (recent, calendar.after(now)):
        if session is not None:
            end = late(session) if request.outside_rth and request.order_type not in ON_CLOSE else session.close
            if now < end:
                return None, end
    return None, None


def late(session: Session) -> datetime:
    """Give the end of trading outside regular hours on a session's day."""
    local = datetime.combine(date.fromisoformat(session.day), LATE, NEW_YORK)
    return max(local.astimezone(session.close.tzinfo), session.close)

"""The console notifier: orders, the watchlist and the kill switch as readable lines in the log."""

from __future__ import annotations

import logging
from datetime import UTC
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.contracts import PluginContext
from sigma9_core.events import StatusUpdate, TradeEvent, WatchlistUpdate
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sigma9_core.contracts import Register
    from sigma9_core.events import Event, EventType

logger = logging.getLogger("sigma9.console")

SYMBOLS_SHOWN: Final = 8
"""How many symbols a line names before it says how many more there are."""

_FILLS: Final = frozenset((OrderStatus.FILLED, OrderStatus.PARTIALLY_FILLED))
_BAD: Final = frozenset(
    (
        OrderStatus.REJECTED,
        OrderStatus.RISK_REJECTED,
        OrderStatus.BUSTED,
        OrderStatus.UNKNOWN,
        OrderStatus.UNCHANGED,
    )
)


class ConsoleConfig(Frozen):
    """What the console shows."""

    trades: bool = True
    watchlist: bool = True
    kill_switch: bool = True


class ConsoleNotifier:
    """Writes one log line an event, on the logger `sigma9.console`."""

    def __init__(self, config: ConsoleConfig) -> None:
        wanted: dict[EventType, bool] = {
            "trade_event": config.trades,
            "watchlist_update": config.watchlist,
            "status_update": config.kill_switch,
        }
        self.types: frozenset[EventType] = frozenset(name for name, on in wanted.items() if on)
        self._kill = _kill_key({})
        """How the kill switch was when it was last told; off at the start, which is no news."""

    def notify(self, event: Event) -> None:
        """Log an event of a wanted type; a status update is of interest when the kill switch has changed."""
        data = event.data
        if event.type not in self.types:
            return
        if isinstance(data, TradeEvent):
            logger.log(logging.WARNING if data.event in _BAD else logging.INFO, "%s", trade_line(data))
        elif isinstance(data, WatchlistUpdate):
            logger.info("%s", watchlist_line(data))
        elif isinstance(data, StatusUpdate) and "kill_switch" in data.changed:
            self._tell_kill(data)

    def _tell_kill(self, data: StatusUpdate) -> None:
        state = data.status.get("kill_switch") or {}
        key = _kill_key(state)
        if key == self._kill:
            return
        self._kill = key
        killed = state.get("state") == "ON" or bool(state.get("scopes"))
        logger.log(logging.WARNING if killed else logging.INFO, "%s", kill_line(data))


def trade_line(data: TradeEvent) -> str:
    """Write a step of an order, such as `BUY 120 ABCD filled at 5.12 (seismograph, order 7)`."""
    side, quantity = data.side.upper(), _number(data.quantity)
    what = f"{side} {quantity} {data.symbol}"
    price = "" if data.last_price is None else f" at {_price(data.last_price)}"
    match data.event:
        case OrderStatus.FILLED:
            average = data.average_price
            mean = "" if average in (None, data.last_price) else f", {_price(average)} on average"
            text = f"{what} filled{price}{mean}"
        case OrderStatus.PARTIALLY_FILLED:
            now = "" if data.last_quantity is None else f", {_number(data.last_quantity)} now{price}"
            text = f"{side} {_number(data.filled_quantity)} of {quantity} {data.symbol} filled{now}"
        case OrderStatus.SUBMITTED | OrderStatus.REPLACED:
            text = f"{what} {_kind(data)} {data.event.value}"
        case OrderStatus.RISK_REJECTED:
            text = f"{what} refused by {data.rule or 'the risk gate'}"
        case OrderStatus.UNKNOWN:
            text = f"{what} is unknown: it was sent, and is being read back"
        case _:
            text = f"{what} {data.event.value}"
    if data.reason and data.event not in _FILLS:
        text += f": {_one_line(data.reason)}"
    by = [data.strategy or data.source, f"order {data.order_id}"]
    if data.commission and data.event in _FILLS:
        by.insert(0, f"commission {_price(data.commission)}")
    if data.recovered:
        by.append("learnt by reading back")
    return f"{text} ({', '.join(by)})"


def watchlist_line(data: WatchlistUpdate) -> str:
    """Write a change of the watchlist as one line."""
    source = f"{data.reason}, {data.strategy}" if data.strategy else data.reason
    parts = [f"watchlist ({source}): {data.count} symbol{'' if data.count == 1 else 's'}"]
    parts += [f"added {_symbols(data.added)}"] if data.added else []
    parts += [f"removed {_symbols(data.removed)}"] if data.removed else []
    return "; ".join(parts if len(parts) > 1 else [*parts, "nothing changed"])


def kill_line(data: StatusUpdate) -> str:
    """Write the kill switch's state as one line."""
    state = data.status.get("kill_switch") or {}
    parts = [f"kill switch {state.get('state', 'unknown')}"]
    if state.get("phase") not in (None, "off"):
        detail = f", {_one_line(str(state['detail']))}" if state.get("detail") else ""
        parts.append(f"{state['phase']}{detail}")
    if state.get("scopes"):
        parts.append(f"scopes {_one_line(str(state['scopes']))}")
    for key in ("cancelled", "closed", "pending"):
        if state.get(key):
            count = len(state[key]) if isinstance(state[key], list | tuple) else state[key]
            parts.append(f"{count} {key}")
    # While it is `gated` the latch is being written: that takes a tenth of a millisecond.
    if state.get("latched") is False and state.get("state") == "ON" and state.get("phase") != "gated":
        parts.append("NOT LATCHED")
    text = "; ".join(parts)
    why = state.get("error") or state.get("reason") or data.reason
    who = f" (by {_one_line(str(state['source']))})" if state.get("source") else ""
    return f"{text}: {_one_line(str(why))}{who}" if why else f"{text}{who}"


def _kill_key(state: Mapping[str, Any]) -> tuple[object, ...]:
    """Give what is news of the kill switch where it changes."""
    lists = tuple(repr(state.get(key) or []) for key in ("scopes", "cancelled", "closed", "pending"))
    known = (state.get("state") or "OFF", state.get("phase") or "off", state.get("detail"), state.get("error"))
    return (*known, bool(state.get("latched")), *lists)


def _kind(data: TradeEvent) -> str:
    prices = {"limit": data.limit_price, "stop": data.stop_price, "trail": data.trail_amount}
    given = [f"{name} {_price(value)}" for name, value in prices.items() if value is not None]
    if data.trail_percent is not None:
        given.append(f"trail {_number(data.trail_percent)} %")
    if data.good_after is not None:
        given.append(f"held until {data.good_after.astimezone(UTC):%H:%M:%S} UTC")
    kind = data.order_type.replace("_", " ")
    return f"{kind} ({', '.join(given)})" if given else kind


def _symbols(symbols: Sequence[str]) -> str:
    more = len(symbols) - SYMBOLS_SHOWN
    shown = ", ".join(symbols[:SYMBOLS_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _number(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _price(value: Decimal) -> str:
    text = _number(value)
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction:0<2}"


def _one_line(text: str) -> str:
    """Keep foreign text from making a line of its own in the log."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


@hookimpl
def register_notifiers(register: Register) -> None:
    """Offer the console."""

    def build(config: ConsoleConfig, context: PluginContext) -> ConsoleNotifier:
        return ConsoleNotifier(config)

    register("console", build, config=ConsoleConfig)

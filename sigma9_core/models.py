"""The nouns of trading: market data, orders, fills, positions, account, watchlist.

Market data are plain slotted records of floats, because thousands pass a second. What concerns money is a
frozen pydantic model of `Decimal`, written to JSON as a number. Every wire model always carries all its keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer, StringConstraints

from sigma9_core.clock import rfc3339

SYMBOL_PATTERN: Final = r"^[A-Za-z0-9._-]{1,32}$"


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


Money = Annotated[Decimal, PlainSerializer(_number, return_type=int | float, when_used="json")]
"""An amount, price or quantity: `Decimal` inside, a JSON number on the wire."""
Moment = Annotated[datetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
"""An aware time: RFC 3339 in UTC with microseconds on the wire."""
Symbol = Annotated[str, StringConstraints(pattern=SYMBOL_PATTERN)]

ZERO: Final = Decimal(0)
CURRENCY: Final = "USD"
"""What the books are kept in, and everything is traded in."""


class Frozen(BaseModel):
    """Base of every message: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


# --- market data (floats; times are aware and in UTC) ---------------------------------------------------------


def writable(text: str) -> str:
    """Write out, as `\\x00` and `\\ud800`, what no database or UTF-8 stream can carry; keep any other text."""
    if text.isascii():
        return text if "\0" not in text else text.replace("\0", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def make_writable(record: Any, *names: str) -> None:
    """Make texts of a frozen dataclass writable as it is made: brokers call things what they like."""
    for name in names:
        text = getattr(record, name)
        if text is not None and (clean := writable(text)) != text:
            object.__setattr__(record, name, clean)


@dataclass(frozen=True, slots=True)
class Quote:
    """The best bid and ask of a symbol."""

    symbol: str
    ts: datetime
    bid: float | None
    ask: float | None
    bid_size: float | None = None
    ask_size: float | None = None
    halted: bool = False


@dataclass(frozen=True, slots=True)
class Trade:
    """One trade in the market; `side` is the aggressor's where the feed knows it."""

    symbol: str
    ts: datetime
    price: float
    size: float
    side: Literal["buy", "sell"] | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of `seconds` that began at `ts`; prices in the account's currency, volume in shares."""

    symbol: str
    ts: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    seconds: int = 60


@dataclass(frozen=True, slots=True)
class Split:
    """`new` shares for every `old` ones, from market time `ts` on: 2 for 1, or 1 for 10 in a reverse split."""

    symbol: str
    ts: datetime
    new: Decimal
    old: Decimal = Decimal(1)


@dataclass(frozen=True, slots=True)
class Slice:
    """Everything that became known at one market time `ts`; a bar comes in the slice of its end."""

    ts: datetime
    quotes: tuple[Quote, ...] = ()
    trades: tuple[Trade, ...] = ()
    bars: tuple[Bar, ...] = ()
    splits: tuple[Split, ...] = ()
    """Splits that take effect with this slice, whose prices are those after them. One that comes again is none."""


@dataclass(frozen=True, slots=True)
class Session:
    """One trading session of the exchange calendar; times are aware and in UTC."""

    day: str
    """The session's date in New York, `YYYY-MM-DD`."""
    open: datetime
    close: datetime


# --- orders ---------------------------------------------------------------------------------------------------

Side = Literal["buy", "sell"]
OrderType = Literal["market", "limit", "stop", "stop_limit", "trailing_stop", "market_on_close", "limit_on_close"]
TimeInForce = Literal["day", "gtc", "ioc", "fok", "gtd", "opg"]
OrderSource = Literal["strategy", "exit", "api", "mqtt", "cli", "schedule", "kill_switch"]
Intent = Literal["entry", "reduce", "kill"]
"""What an order is for: it grows exposure, shrinks it, or belongs to a kill."""


class OrderStatus(StrEnum):
    """Where an order stands; also the `event` of a trade_event (contract 2)."""

    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EXPIRED = "expired"
    REPLACED = "replaced"
    BUSTED = "busted"
    RISK_REJECTED = "risk_rejected"
    UNKNOWN = "unknown"
    UNCHANGED = "unchanged"
    """A change of it was refused, or never arrived; the order stands as it did, and this is an event alone."""


class ExitPlan(Frozen):
    """How a position is left: a resting stop, a time stop and a trail, all in one one-cancels-all group.

    Prices of the legs are worked out from the entry's fill price; percent values are in percent.
    """

    stop_percent: Money = Decimal(2)
    """The protective stop lies this far on the losing side of the fill."""
    time_stop_seconds: int | None = None
    """Leave at the market after this many seconds of market time, unless the trail is active."""
    trail_amount: Money | None = None
    """The trailing stop's distance in money, such as 1.5 × ATR."""
    trail_percent: Money | None = None
    """The trailing stop's distance in percent, used where there is no amount."""
    trail_activation_percent: Money = Decimal(3)
    """The trail starts once the price is this far on the winning side of the fill; 0 starts it at once."""


class Adjustment(Frozen):
    """What the broker makes of a stop, by itself and once, when the trigger price trades: a trailing stop."""

    trigger_price: Money
    """At or above it sets off a stop that sells, at or below it one that buys."""
    stop_price: Money
    """Where the trailing stop begins; from there it trails the best price by the distance."""
    trail_amount: Money | None = None
    """The distance in money; either this or a percentage."""
    trail_percent: Money | None = None


class OrderRequest(Frozen):
    """What somebody wants: an order before the risk gate has seen it."""

    symbol: Symbol
    side: Side
    quantity: Money
    order_type: OrderType = "market"
    limit_price: Money | None = None
    stop_price: Money | None = None
    trail_amount: Money | None = None
    trail_percent: Money | None = None
    good_after: Annotated[AwareDatetime, PlainSerializer(rfc3339, return_type=str, when_used="json")] | None = None
    """The broker holds the order until then; only for a broker that names `good_after` in `keeps`."""
    adjustment: Adjustment | None = None
    """What the broker makes of this stop; only for a broker that names `adjustment` in `keeps`."""
    time_in_force: TimeInForce = "day"
    outside_rth: bool = False
    strategy: str | None = None
    source: OrderSource = "api"
    intent: Intent = "entry"
    parent_id: str | None = None
    oca_group: str | None = None
    reason: str | None = None
    exit_plan: ExitPlan | None = None
    """What is to be done once this entry fills."""
    protective: bool = False
    """A stop that guards a position: a halt leaves it, a flatten replaces it."""
    signal: Mapping[str, Any] | None = None
    """The decision log: the strategy's scores, the sizing, and the market time of the signal."""

    def adjusted(self) -> OrderRequest:
        """Give what this order is once the broker has made its adjustment; itself where it has none."""
        change = self.adjustment
        if change is None:
            return self
        terms = {"trail_amount": change.trail_amount, "trail_percent": change.trail_percent}
        return self.model_copy(
            update={"order_type": "trailing_stop", "stop_price": None, "adjustment": None, **terms}
        )

    def closes(self, now: datetime) -> bool:
        """Tell whether it leaves a position at the market now; one that the broker holds until later does not."""
        waits = self.good_after is not None and self.good_after > now
        return self.intent != "entry" and self.order_type == "market" and not waits


class Verdict(Frozen):
    """What one risk rule said of one order."""

    rule: str
    code: str
    """The reason code, such as `R2`."""
    outcome: Literal["allow", "warn", "refuse"]
    reason: str | None = None
    used: Money | None = None
    """The rule's number with this order counted."""
    limit: Money | None = None


_APPROVAL: Final = object()


@dataclass(frozen=True, slots=True)
class ApprovedOrder:
    """An order that the risk gate has passed; only the gate makes one, and a broker takes nothing else."""

    order_id: str
    request: OrderRequest
    verdicts: tuple[Verdict, ...]
    approved_at: datetime
    seal: object = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an order that the risk gate did not make."""
        if self.seal is not _APPROVAL:
            raise TypeError("only the risk gate makes an ApprovedOrder: send an OrderRequest to the order desk")


class OrderView(Frozen):
    """An order as clients see it: the fields of trade_event.data with `status` for `event` (contract 1)."""

    status: OrderStatus
    order_id: str
    broker_order_id: str | None = None
    symbol: str
    side: Side
    quantity: Money
    order_type: OrderType
    limit_price: Money | None = None
    stop_price: Money | None = None
    trail_amount: Money | None = None
    trail_percent: Money | None = None
    time_in_force: TimeInForce
    outside_rth: bool = False
    filled_quantity: Money = ZERO
    average_price: Money | None = None
    last_quantity: Money | None = None
    last_price: Money | None = None
    commission: Money | None = None
    strategy: str | None = None
    source: OrderSource
    parent_id: str | None = None
    oca_group: str | None = None
    reason: str | None = None
    rule: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    recovered: bool = False
    good_after: Moment | None = None
    adjustment: Adjustment | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution; `exec_id` is the broker's and identifies it for ever. Quantity is positive."""

    exec_id: str
    order_id: str
    symbol: str
    side: Side
    quantity: Decimal
    price: Decimal
    commission: Decimal
    ts: datetime
    broker_order_id: str | None = None
    corrects: tuple[str, ...] = ()
    """The executions that this one takes the place of: none of them counts, whichever is told first."""

    def __post_init__(self) -> None:
        """Write out what the journal could not hold: the execution is known by the same name for ever."""
        told = f"{self.exec_id}{self.order_id}{self.symbol}{self.broker_order_id}{''.join(self.corrects)}"
        if not told.isascii() or "\0" in told:
            make_writable(self, "exec_id", "order_id", "symbol", "broker_order_id")
            object.__setattr__(self, "corrects", tuple(map(writable, self.corrects)))


@dataclass(frozen=True, slots=True)
class ClosedTrade:
    """A round trip: from flat to flat, or to the other side of zero."""

    symbol: str
    strategy: str | None
    quantity: Decimal
    """Everything that was entered; negative for a short trade."""
    entry_cost: Decimal
    """What was paid for it, or received for it when short, without fees: above zero."""
    result: Decimal
    """After fees."""
    percent: Decimal
    """The result in percent of the entry's cost."""
    fees: Decimal
    opened_at: datetime
    closed_at: datetime


# --- positions, account, risk, watchlist ----------------------------------------------------------------------


class Position(Frozen):
    """A net position as clients see it (contract 1); the quantity is negative when short."""

    symbol: str
    quantity: Money
    average_cost: Money
    last: Money | None = None
    market_value: Money | None = None
    unrealized_pnl: Money | None = None
    realized_pnl: Money = ZERO
    strategy: str | None = None
    opened_at: Moment | None = None
    protected: bool = False
    foreign: bool = False


class Account(Frozen):
    """The account as clients see it (contract 1)."""

    account: str | None
    mode: Literal["paper", "live", "simulated"]
    currency: str = CURRENCY
    """Where the broker tells none of the money that the books are in it is another one, and no amount is known."""
    equity: Money | None = None
    cash: Money | None = None
    buying_power: Money | None = None
    day_pnl: Money | None = None
    realized_pnl: Money | None = None
    unrealized_pnl: Money | None = None


class RuleUsage(Frozen):
    """A risk rule's present use against its limit (contract 1, `state/risk`)."""

    rule: str
    enabled: bool = True
    used: Money | None = None
    limit: Money | None = None
    tripped: bool = False
    until: Moment | None = None
    """When a trip ends by itself; null while tripped means that a person clears it."""


class WatchlistItem(Frozen):
    """One watched symbol (contract 2)."""

    symbol: str
    priority: int = 0
    score: float | None = None
    stage: int = 0
    strategies: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    last: float | None = None
    added_at: Moment
    no_trade: str | None = None
    """Why it is not traded at present; null where it may be."""

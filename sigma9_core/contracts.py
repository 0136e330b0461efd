"""What a plugin's objects look like: the protocols that the core calls, and what it hands to them.

Hooks register factories (`hookspecs.py`); the objects that factories build follow the protocols here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol, runtime_checkable

from sigma9_core.entities import EntitySpec
from sigma9_core.models import (
    Account,
    Adjustment,
    ApprovedOrder,
    Bar,
    ClosedTrade,
    ExitPlan,
    Fill,
    Frozen,
    Intent,
    OrderRequest,
    OrderType,
    OrderView,
    Position,
    RuleUsage,
    Session,
    Side,
    Slice,
    TimeInForce,
    Verdict,
    WatchlistItem,
    make_writable,
)

if TYPE_CHECKING:
    import polars as pl

    from sigma9_core.board import Board
    from sigma9_core.bus import EventBus
    from sigma9_core.calendar import Calendar
    from sigma9_core.clock import Clock, ClockKind
    from sigma9_core.commands import Command, CommandSpec, Response, Right
    from sigma9_core.config import Settings
    from sigma9_core.events import Event, EventType, TradeEvent
    from sigma9_core.lanes import Lane

API_VERSION = 1
"""A plugin may name the version it was written for as `SIGMA9_API`; another one is quarantined."""

PluginKind = Literal["scanner", "risk", "sizer", "broker", "feed", "notifier", "service", "command", "entity"]


class NoConfig(Frozen):
    """The configuration of a plugin that has no settings."""


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What a factory may know when it builds an instance."""

    name: str
    """The instance's name in the configuration."""
    settings: Settings
    clock: Clock
    calendar: Calendar
    """The exchange calendar; `await calendar.ready()` before it is asked, it loads in the background."""
    data_dir: Path | None
    """Where the instance may keep files of its own; None means: keep everything in memory."""


# --- scanners and their triggers ------------------------------------------------------------------------------


class Scanner(Protocol):
    """A scanner strategy: one pure function from daily bars to scores, and perhaps a trigger."""

    version: str
    lookback: int
    """How many bars of a symbol its last score needs."""
    watchlist_size: int

    def scan(self, bars: pl.LazyFrame) -> pl.LazyFrame:
        """Score every bar: the same rows in any order, with columns added.

        In: symbol (str), ts (date), open, high, low, close (float64), volume (float64), sorted by symbol, ts.
        Out: all of these, `score` (float64, 0 to 100, null where it can't be scored), and optionally
        `priority` (int, 0 to 100), `stage` (int, 0 to 4), `keep` (bool: good enough for the list), `excluded`
        (str: why the universe filters leave it out, else null), `reasons` (list of str), `signals` (struct of
        bool), `intensities` (struct of float64), and own columns named `x_*`. It must not look ahead, must not
        mix symbols, and must give a bar the same score whatever bars follow it.
        """

    def trigger(self) -> Trigger | None:
        """Build the intraday trigger of this strategy; None where it only scans."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A strategy's wish to enter; sizing, risk rules and the order desk come after it."""

    symbol: str
    side: Side
    ts: datetime
    price: float
    """The price that it was decided on: reference of sizing and of the decision log."""
    exit_plan: ExitPlan
    score: float | None = None
    reasons: tuple[str, ...] = ()
    order_type: OrderType = "market"
    limit_price: float | None = None
    stop_price: float | None = None
    time_in_force: TimeInForce = "day"
    size_factor: float = 1.0
    """A share of what the sizer gives."""
    max_quantity: Decimal | None = None
    """An upper bound of the quantity, such as half of the first entry."""
    details: Mapping[str, Any] = field(default_factory=dict)


class Trigger(Protocol):
    """Watches market data of the watchlist and gives signals; called on one worker thread of its own, in order."""

    def watch(self, items: Sequence[WatchlistItem], history: Mapping[str, Sequence[Bar]]) -> None:
        """Take the whole watchlist; `history` has the session's minute bars of symbols that are new to it."""

    def on_slice(self, data: Slice, session: Session | None) -> Sequence[Signal]:
        """Take what became known at one market time; `session` is the one in progress, None outside of one."""

    def on_trade_event(self, event: TradeEvent, ts: datetime) -> None:
        """Take one step of an order of this strategy; `ts` is the market time.

        After a restart the steps of the last day, and those since the oldest open position was opened, are told
        once more before the first slice.
        """


# --- sizing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SizingContext:
    """What a sizer decides on; money in the account's currency."""

    signal: Signal
    equity: Decimal
    buying_power: Decimal
    price: Decimal
    closed_trades: Sequence[Decimal] = ()
    """Results of this strategy's closed trades in percent of their cost, oldest first."""


class Sizer(Protocol):
    """Turns a signal into a quantity; a step before the risk rules."""

    def size(self, context: SizingContext) -> Decimal:
        """Give the whole number of shares to trade; 0 means no order."""


# --- risk -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest price of a symbol on the market clock."""

    symbol: str
    price: Decimal
    ts: datetime
    bid: Decimal | None = None
    ask: Decimal | None = None
    halted: bool = False
    bar_seconds: int = 0
    """The length of the bar that it is the close of; 0 for a trade or a quote."""


@dataclass(frozen=True, slots=True)
class Submission:
    """An order that passed the gate, as the duplicate and rate rules remember it."""

    at: datetime
    """Market time."""
    request: OrderRequest
    order_id: str


@dataclass(frozen=True, slots=True)
class Execution:
    """A fill beside the price that was expected when its order was decided."""

    fill: Fill
    intent: Intent
    strategy: str | None
    expected: Decimal | None
    """A stop's own price; none for a trail; else what the market showed: the ask, the bid, or the last price."""


@dataclass(frozen=True, slots=True)
class Turnover:
    """What has filled in a symbol on one side within an hour."""

    symbol: str
    side: Side
    hour: datetime
    """Its beginning."""
    value: Decimal
    """Without commissions."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """What the broker knows of a symbol's contract; None where it does not say."""

    symbol: str
    fault: str | None = None
    """Why it can't be traded, in one sentence: no such contract, several of them, or no answer about it."""
    asset_class: str = "stock"
    tick: Decimal | None = None
    """The smallest step of a price; None: SEC Rule 612, a cent, a hundredth of one below a dollar."""
    lot: Decimal = Decimal(1)
    """The smallest step of a quantity."""
    shortable: bool | None = None
    """Whether there are shares to borrow."""
    short_restricted: bool | None = None
    """Whether Rule 201 allows short sales above the bid alone, today."""


@dataclass(frozen=True, slots=True)
class Margin:
    """The broker's answer to what an order would do to the account, in the currency of the books."""

    initial_change: Decimal
    """What it adds to the initial margin; negative where it frees some."""
    available_after: Decimal
    """The funds that would be left for other orders; below zero: it is not covered."""
    commission: Decimal | None = None
    fault: str | None = None
    """Why the order is not covered, in one sentence: the broker would not take it, or gave no answer."""


FeedState = Literal["connected", "disconnected", "ended"]


@dataclass(frozen=True, slots=True)
class FeedHealth:
    """How the feed stands."""

    state: FeedState
    failures: int = 0
    """Attempts to connect anew that have failed since its last data; before its first data none counts."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RiskView:
    """Everything a risk rule may judge by: one moment, immutable, reservations for working orders included."""

    now: datetime
    session: Session | None
    """The session in progress, None outside of one."""
    account: Account
    day_start_equity: Decimal | None
    week_start_equity: Decimal | None
    peak_equity: Decimal | None
    positions: Mapping[str, Position]
    working: Sequence[OrderView]
    """Orders that may still fill, those decided a moment ago and `unknown` ones included."""
    intents: Mapping[str, Intent]
    """The intent of each working order, by order id."""
    marks: Mapping[str, Mark]
    recent: Sequence[Submission]
    """Orders that passed the gate in the last minutes, oldest first."""
    entries_today: int
    marks_fresh: bool
    """Whether every held symbol has a mark of the last minute: losses are judged on fresh marks only."""
    changes: Sequence[datetime] = ()
    """When changes of working orders passed the gate in the last minutes, oldest first."""
    closed: Sequence[ClosedTrade] = ()
    """The round trips of our books, oldest first."""
    executions: Sequence[Execution] = ()
    """The newest fills since the start, oldest first."""
    traded: Sequence[Turnover] = ()
    """All fills of ours of the last two weeks in sums, oldest first; a restart forgets none."""
    instruments: Mapping[str, Instrument] = field(default_factory=dict)
    """By symbol, where the broker tells; a symbol that was not asked about yet is not in it."""
    margin: Margin | None = None
    """What the order would do, where the broker tells and a rule that is enabled wants it."""
    feed: FeedHealth | None = None
    """None before the feed's first word."""
    clock_offset: float | None = None
    """Seconds that this machine's clock is ahead of the broker's; None where nobody told."""


@dataclass(frozen=True, slots=True)
class Trip:
    """A limit was reached: entries stop, and perhaps the kill switch fires, or a strategy is switched off."""

    rule: str
    reason: str
    kill: bool
    used: Decimal
    limit: Decimal
    strategy: str | None = None
    """The strategy to switch off until a person enables it again."""


class RiskRule(ABC):
    """One pre-trade rule; it only tightens. `check` is synchronous and has no side effects."""

    code: ClassVar[str]
    """The reason code, such as `R2`."""
    wants_margin: ClassVar[bool] = False
    """Whether the broker is asked what an entry would do to the margin before the rule judges it."""

    __verdict: Verdict | None = None
    """The one that lets an order pass without a number."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge one order against the view."""

    @abstractmethod
    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the present use against the limit."""

    def trip(self, view: RiskView) -> Trip | None:
        """Tell that a limit is reached now; asked whenever marks or fills have moved the account."""
        return None

    def clear(self) -> None:  # noqa: B027 - most rules have nothing to forget
        """Forget a trip that a person has cleared."""

    def memory(self) -> Mapping[str, Any]:
        """Give what must survive a restart, as a small JSON object."""
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:  # noqa: B027 - most rules keep nothing
        """Take back what `memory` gave before a restart."""

    def allow(self, used: Decimal | None = None, limit: Decimal | None = None) -> Verdict:
        """Build the verdict that lets an order pass."""
        if used is None and limit is None:  # most orders pass most rules without a number: one verdict will do
            if self.__verdict is None:
                self.__verdict = Verdict(rule=self.name, code=self.code, outcome="allow")
            return self.__verdict
        return Verdict(rule=self.name, code=self.code, outcome="allow", used=used, limit=limit)

    def refuse(self, reason: str, used: Decimal | None = None, limit: Decimal | None = None) -> Verdict:
        """Build the verdict that refuses an order, with one clear sentence."""
        return Verdict(rule=self.name, code=self.code, outcome="refuse", reason=reason, used=used, limit=limit)


# --- brokers --------------------------------------------------------------------------------------------------

Kept = Literal["good_after", "adjustment"]
"""Terms of an order that only some brokers keep to by themselves, by their names in `OrderRequest`."""
KEPT: Final[tuple[Kept, ...]] = ("good_after", "adjustment")
OrderReport = Literal[
    "accepted",
    "filled",
    "cancelled",
    "rejected",
    "expired",
    "replaced",
    "unchanged",
    "adjusted",
    "busted",
    "held",
    "revived",
]
"""What a report says of the order itself."""
ReportKind = Literal[OrderReport, "commission"]
"""`unchanged`: a change was refused, and the order works on as it was; `reason` has the broker's words.
`adjusted`: the broker has made the order's adjustment, and it is a trailing stop from here on.
`commission`: that of an execution which was told before it was known; its `fill` is that execution, with it.
`held`: the broker has the order and does not work it, and may come to; `accepted` follows, or an end.
`revived`: it was told as ended, and a read-back that was asked for after that shows it working."""


@dataclass(frozen=True, slots=True)
class BrokerReport:
    """What a broker says of one of its orders; a fill may be partial, and may follow a cancel.

    An execution that the exchange has taken back is `busted`; one that it has put right is told as another fill,
    which names in `corrects` what it takes the place of.
    """

    kind: ReportKind
    order_id: str
    """Our id, as the order carried it."""
    ts: datetime
    broker_order_id: str | None = None
    fill: Fill | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        """Write out what the journal could not hold."""
        make_writable(self, "order_id", "broker_order_id", "reason")


@dataclass(frozen=True, slots=True)
class BrokerOrder:
    """An order as the broker reads it back; `order_id` is None for what is not ours."""

    order_id: str | None
    broker_order_id: str
    symbol: str
    side: Side
    quantity: Decimal
    filled_quantity: Decimal
    order_type: OrderType
    state: Literal["working", "held", "filled", "cancelled", "rejected", "expired"]
    """`held`: it is there, does not work, and may come to; it is among the open orders."""
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_amount: Decimal | None = None
    trail_percent: Decimal | None = None
    time_in_force: TimeInForce = "day"
    oca_group: str | None = None
    parent_id: str | None = None
    reason: str | None = None
    good_after: datetime | None = None
    """Until when the broker holds it."""
    adjustment: Adjustment | None = None
    """What the broker will make of it; none any more once it is made."""

    def __post_init__(self) -> None:
        """Write out what the journal could not hold."""
        make_writable(self, "order_id", "broker_order_id", "symbol", "oca_group", "parent_id", "reason")


@dataclass(frozen=True, slots=True)
class BrokerPosition:
    """A net position as the broker reads it back; negative when short."""

    symbol: str
    quantity: Decimal
    average_cost: Decimal

    def __post_init__(self) -> None:
        """Write out what the journal could not hold."""
        make_writable(self, "symbol")


@dataclass(frozen=True, slots=True)
class BrokerAccount:
    """The account as the broker reads it back."""

    account: str
    mode: Literal["paper", "live", "simulated"]
    currency: str
    """Of both amounts: USD, as the books are; in any other nothing is sized, and no entry passes."""
    cash: Decimal
    buying_power: Decimal | None = None


Up = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class BrokerHealth:
    """Three healths, none guessed from another."""

    socket: Up = "down"
    link: Up = "down"
    data: Up = "down"
    note: str | None = None
    """What a person should know of a connection that is up, and can do about it; it stands in the status."""


class BrokerListener(Protocol):
    """Where a broker puts what it learns; both calls return at once."""

    def on_report(self, report: BrokerReport) -> None:
        """Take a report, in the order in which the broker gave it."""

    def on_health(self, health: BrokerHealth) -> None:
        """Take a change of health."""


class Broker(Protocol):
    """Executes orders; lives on the money lane. Silence and errors mean `unknown`, never `rejected`.

    `health` says all three up before anything is believed of it. A broker whose read-backs show an order the
    moment it was sent may set `immediate = True`; of any other, an order that one lacks is looked for again.

    A broker may name in `keeps`, a frozenset of `Kept`, the terms of an order that it keeps to by itself, whether
    or not this server runs: `good_after`, by a clock that goes as the market's does, and `adjustment`. Exits then
    rest there; an order with a term that is not named in it is never sent.
    """

    health: BrokerHealth

    async def connect(self, listener: BrokerListener) -> None:
        """Connect; what changes from here on is told to the listener."""

    async def disconnect(self) -> None:
        """Disconnect; working orders stay at the broker."""

    async def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Send one order, or a group (parent first, then children and one-cancels-all legs) as one unit.

        Await nothing before it is handed over to the transport: the gate's last look and the first step of this
        coroutine are one, so that a kill comes before both or after both. An order that waits in here is one that
        leaves after the kill. What would have to be waited for (a lock, a login) is refused instead, with
        BrokerRefused.

        Return once it is handed over; what becomes of it comes as reports. Raise BrokerRefused only where the
        broker surely took none of it; anything else that is raised leaves the outcome unknown.
        """

    async def replace(self, order: ApprovedOrder) -> None:
        """Change a working order to the request of the same order id; the outcome comes as a report.

        Await nothing before it is handed over, as in `submit`.
        """

    async def cancel(self, order_id: str) -> None:
        """Ask to cancel; the outcome comes as a report. An unknown id raises BrokerError.

        A kill names by the broker's own id what is not ours, and what of ours could not be cancelled by our id. It
        does so only where `kill_switch.foreign` is not `leave`: more than that order may go with it.
        """

    async def open_orders(self) -> Sequence[BrokerOrder]:
        """Read back what is working now, foreign orders included."""

    async def completed_orders(self, since: datetime) -> Sequence[BrokerOrder]:
        """Read back what has ended since `since`."""

    async def executions(self, since: datetime) -> Sequence[Fill]:
        """Read back the executions since `since`, oldest first; a foreign one has the order id ''."""

    async def positions(self) -> Sequence[BrokerPosition]:
        """Read back the net positions, foreign ones included."""

    async def account(self) -> BrokerAccount:
        """Read back the account."""


@runtime_checkable
class MarginBroker(Protocol):
    """A broker that can say what an order would do to the account, without sending it."""

    async def what_if(self, order: OrderRequest) -> Margin:
        """Tell; raise BrokerRefused, with its reason, for an order that the broker would not take at all."""


@runtime_checkable
class ReferenceBroker(Protocol):
    """A broker that knows the contracts behind symbols."""

    async def instrument(self, symbol: str) -> Instrument:
        """Give what is known of a symbol; one that can't be traded has a `fault`."""


@runtime_checkable
class TimedBroker(Protocol):
    """A broker that tells its time."""

    async def time(self) -> datetime:
        """Give the broker's time now."""


@runtime_checkable
class MarketDriven(Protocol):
    """A broker that simulates fills from market data (the paper broker)."""

    async def on_market(self, data: Slice, session: Session | None) -> None:
        """Match working orders against a slice; fills are reported before this returns."""


# --- feeds ----------------------------------------------------------------------------------------------------


class Feed(Protocol):
    """Gives market data; lives on the market lane.

    A feed with a stepped clock is driven in lock step: the next slice is taken when everything of the last one
    (fills, exits, triggers, orders) has settled; the feed itself waits between slices where it has a speed.
    """

    clock_kind: ClockKind

    async def connect(self, since: datetime | None) -> None:
        """Connect; a simulated market goes on at `since`, the last market time that is known."""

    async def disconnect(self) -> None:
        """Disconnect."""

    def subscribe(self, symbols: frozenset[str]) -> None:
        """Want quotes, trades and bars of exactly these symbols from the next slice on."""

    def slices(self) -> AsyncIterator[Slice]:
        """Give slices in time order; ends where the data end."""

    def daily_bars(self, as_of: date, sessions: int) -> pl.LazyFrame:
        """Give the daily bars of all symbols for the last `sessions` sessions up to `as_of` (called on a worker).

        Columns: symbol (str), ts (date), open, high, low, close (float64), volume (float64 or int64).
        """

    def minute_bars(self, symbol: str, until: datetime, count: int) -> Sequence[Bar]:
        """Give the last `count` minute bars of the session that ended by `until`, oldest first (on a worker)."""


# --- notifiers, services, commands ----------------------------------------------------------------------------


class Notifier(Protocol):
    """Tells a person; called on a worker thread, the money path never waits for it."""

    types: frozenset[EventType]

    def notify(self, event: Event) -> None:
        """Tell one event."""


class Server(Protocol):
    """What integrations and services see of the running server; everything here belongs to the outer loop."""

    settings: Settings
    clock: Clock
    bus: EventBus
    board: Board
    doors: Lane
    """For connections that must not wait behind anything else: the kill's own doors run here, and nothing else."""
    specs: Mapping[str, CommandSpec]
    """Every command, the built-in ones first."""
    url: str | None
    """Where REST and the dashboard are reached on this machine, once they are."""
    entities: Sequence[EntitySpec]
    """What Home Assistant shows of the node, but for held positions."""

    def dispatch(self, command: Command) -> Coroutine[Any, Any, Response]:
        """Carry out a command and give its answer; never raises for a bad command."""

    def begin(self, command: Command, answered: Callable[[Response], None]) -> None:
        """Carry out a command beside others; `answered` gets its answer on this loop, once.

        A `kill_switch` may come on any loop; the gate is closed when the call returns.
        """

    def kill(self, command: Command) -> Coroutine[Any, Any, Response]:
        """Carry out a `kill_switch` command, from any loop; the gate is closed when the call returns."""

    async def events(self, after: int, limit: int, types: frozenset[EventType] | None = None) -> EventPage:
        """Read durable events after a number from the journal."""

    async def find_events(
        self,
        limit: int,
        *,
        types: frozenset[EventType] | None = None,
        symbol: str | None = None,
        order_id: str | None = None,
        after: int | None = None,
        before: int | None = None,
    ) -> EventPage:
        """Read events of an order or a symbol: the oldest after a number, else the newest before one, or of all.

        `next` is the `after`, or the `before`, of the next page.
        """

    async def order(self, order_id: str) -> Mapping[str, Any] | None:
        """Read an order, working or ended, in the shape of `state/orders`; None where there is none."""

    async def trades(
        self, *, symbol: str | None, since: datetime | None, limit: int, cursor: str | None
    ) -> Mapping[str, Any]:
        """Read fills from the journal, newest first: `{"trades": [...], "cursor"}` (contract 5)."""

    def faults(self) -> Sequence[str]:
        """Name the inner parts that keep it from trading, such as `journal`; the status has the others."""

    def right_of(self, token: str) -> tuple[str, Right] | None:
        """Tell a token's name and right; None where it is not valid."""

    def report_mqtt(self, state: Literal["connected", "disconnected", "disabled"]) -> None:
        """Say how the MQTT connection stands, for the status."""

    def serves_at(self, url: str) -> None:
        """Say where REST is reached on this machine, for the local command line."""

    def announce(self, line: str) -> None:
        """Add a line to the start banner: an address, where a secret is found, what to try."""


@dataclass(frozen=True, slots=True)
class EventPage:
    """Durable events in order, as they were first encoded."""

    events: Sequence[str]
    next: int | None
    """The `after` of the next page, None where this is the end."""
    journal_id: str
    first: int
    """The oldest number that is still kept."""
    last: int
    """The newest number."""


class Service(Protocol):
    """Something that runs beside the engine on the outer loop, such as an integration."""

    async def start(self, server: Server) -> None:
        """Start, and return once it serves (or has begun to try)."""

    async def stop(self) -> None:
        """Stop and undo what `start` did, in reverse."""


CommandHandler = Callable[[Any], Any]
"""Takes the validated arguments, gives the result object; runs on a worker thread."""

Factory = Callable[[Any, PluginContext], Any]


class Register(Protocol):
    """The callback that a `register_*` hook gets."""

    def __call__(self, name: str, factory: Factory, config: type[Frozen] = NoConfig) -> None:
        """Offer `factory(config, context)` under a name that is unique among its kind."""


class RegisterCommand(Protocol):
    """The callback of `register_commands`."""

    def __call__(self, spec: CommandSpec, handler: CommandHandler) -> None:
        """Add a command to every surface."""


class RegisterEntity(Protocol):
    """The callback of `register_entities`."""

    def __call__(self, spec: EntitySpec) -> None:
        """Add an entity to the node's device in Home Assistant."""

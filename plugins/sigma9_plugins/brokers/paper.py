"""The paper broker: an exchange and an account of its own, with money that does not exist.

It fills orders from the feed's data, never before the data that came after the order (`matching` has the rules),
for a stated commission and slippage. It is its own truth, as a real broker is: with a data folder it keeps
everything in a file, and working orders, positions and executions survive the end of the process.

| setting | default | |
|---|---|---|
| `cash` | 100000 | what the account starts with, in USD |
| `leverage` | 1 | exposure, long and short, may reach so many times the equity |
| `commission_per_share`, `commission_minimum` | 0.005, 1.00 | per order that fills, the larger of both |
| `commission_maximum_percent` | 1.0 | of what the order traded; beats the minimum |
| `slippage_percent` | 0.05 | what market and stop orders lose against the price they meet |
| `participation` | 0.1 | the share of a trade's or bar's volume that fills at most |
| `limit_fill` | through | a resting limit fills when its price is passed (`touch`: when it is met) |
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from sigma9_core.contracts import (
    BrokerAccount,
    BrokerHealth,
    BrokerListener,
    BrokerOrder,
    BrokerPosition,
    Instrument,
    PluginContext,
    Register,
)
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, ApprovedOrder, Fill, Money, OrderRequest, Session, Slice
from sigma9_plugins.brokers.matching import Matcher
from sigma9_plugins.brokers.order_matching import MatchingRules
from sigma9_plugins.brokers.paper_book import PaperOrder
from sigma9_plugins.brokers.paper_costs import decimal, nearest
from sigma9_plugins.brokers.paper_ledger import Ledger
from sigma9_plugins.brokers.paper_log import PaperLog
from sigma9_plugins.brokers.paper_orders import fault, lifetime, terms, wrong_side

ACCOUNT: Final = "PAPER"
FILE: Final = "paper.jsonl"


class PaperConfig(MatchingRules):
    """Settings of the paper broker."""

    cash: Annotated[Money, Field(gt=0, allow_inf_nan=False)] = Decimal(100_000)
    """What the account starts with, in USD; a file that is there already keeps its own."""
    leverage: Annotated[Money, Field(ge=1, le=10)] = Decimal(1)
    """Exposure, long and short, may reach so many times the equity."""


class PaperBroker:
    """Executes orders against simulated, replayed or live market data; lives on the money lane."""

    immediate = True  # the book is here: what a read-back does not show is not there

    def __init__(self, config: PaperConfig, context: PluginContext) -> None:
        self.health = BrokerHealth()
        self._config = config
        self._context = context
        folder = context.data_dir
        self._ledger = Ledger(config.cash, config, PaperLog(folder / FILE if folder is not None else None))
        self._matcher = Matcher(config, self._ledger, context.calendar)
        self._loaded = False
        self._connected = False
        self._newest: datetime | None = None

    # --- connection -------------------------------------------------------------------------------------------

    async def connect(self, listener: BrokerListener) -> None:
        """Connect; the first time, read the file (not for a replay: it begins anew, and its book is empty)."""
        await self._context.calendar.ready()
        if not self._loaded:
            if self._context.clock.kind == "replay":
                self._ledger.forget()
            else:
                self._ledger.load()
                self._matcher.behind = self._ledger.book.newest
            self._loaded = True
        self._connected = True
        self._ledger.listener = listener
        self.health = BrokerHealth("up", "up", "up")
        listener.on_health(self.health)

    async def disconnect(self) -> None:
        """Disconnect; working orders stay, and go on filling unheard."""
        listener, self._ledger.listener = self._ledger.listener, None
        self._connected = False
        self._ledger.close()
        self.health = BrokerHealth()
        if listener is not None:
            listener.on_health(self.health)

    # --- orders -----------------------------------------------------------------------------------------------

    async def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Take one order or a group as a unit: all are accepted, or all are rejected, by reports."""
        self._check_connected()
        seen: set[str] = set()
        for order in orders:
            if order.order_id in self._ledger.book.numbers or order.order_id in seen:
                raise BrokerError(
                    f"the order {order.order_id} was submitted before: nothing was done; read it back"
                )
            seen.add(order.order_id)
        if orders:
            self._take([(order.order_id, order.request) for order in orders])

    async def replace(self, order: ApprovedOrder) -> None:
        """Change quantity and prices of a working order; raise BrokerRefused where it stays as it is."""
        self._check_connected()
        current = self._working(order.order_id)
        request = order.request
        fixed = ("symbol", "side", "order_type", "time_in_force")
        changed = [name for name in fixed if getattr(request, name) != getattr(current, name)]
        if changed:
            raise BrokerRefused(
                f"the {' and '.join(changed)} of order {order.order_id} can't be changed: cancel it"
            )
        prices = terms(request)
        wrong = fault(request, prices)
        if wrong is not None:
            raise BrokerRefused(f"order {order.order_id} stays as it is: {wrong}")
        if request.quantity <= current.filled:
            raise BrokerRefused(
                f"order {order.order_id} stays as it is: {current.filled} of it have filled, "
                f"so its quantity can't become {request.quantity}"
            )
        if request.quantity > current.quantity and request.intent == "entry":
            short = self._shortage(request.model_copy(update={"quantity": request.quantity - current.quantity}))
            if short is not None:
                raise BrokerRefused(f"order {order.order_id} stays as it is: {short}")
        changes = {"quantity": request.quantity, **prices}
        parent = self._ledger.book.orders.get(current.parent) if current.parent is not None else None
        if parent is not None and parent.state != "working":
            changes["parent"] = None  # whoever changes it now knows what its parent has come to
        self._ledger.replace(current, changes, self._now())

    async def cancel(self, order_id: str) -> None:
        """Cancel at once; an unknown id raises BrokerError, an order that has ended BrokerRefused.

        An order by hand is named by the broker's id.
        """
        self._check_connected()
        self._ledger.end(self._working(order_id), "cancelled", "cancelled on request", self._now())

    def place_by_hand(self, request: OrderRequest) -> str:
        """Place an order as a person would at the broker's own screen: it is foreign. Give the broker's id of it.

        Raise BrokerRefused where the exchange rejects it.
        """
        order = self._take([(None, request)])[0]
        if order.state == "rejected":
            raise BrokerRefused(order.reason or "rejected")
        return order.number

    async def on_market(self, data: Slice, session: Session | None) -> None:
        """Match working orders against a slice; fills are reported before this returns."""
        self._newest = data.ts if self._newest is None else max(self._newest, data.ts)
        if self._loaded:
            for split in data.splits:
                self._ledger.split(split)
            self._matcher.on_market(data, session)

    # --- reading back -----------------------------------------------------------------------------------------

    async def open_orders(self) -> Sequence[BrokerOrder]:
        """Read back what is working, waiting children and orders by hand included."""
        self._check_connected()
        return [self._shown(order) for order in self._ledger.book.all_working()]

    async def completed_orders(self, since: datetime) -> Sequence[BrokerOrder]:
        """Read back what has ended since `since`."""
        self._check_connected()
        ended = (order for order in self._ledger.book.orders.values() if order.ended_at is not None)
        return [self._shown(order) for order in ended if order.ended_at is not None and order.ended_at >= since]

    async def executions(self, since: datetime) -> Sequence[Fill]:
        """Read back the executions since `since`, oldest first."""
        self._check_connected()
        return [fill for fill in self._ledger.book.executions if fill.ts >= since]

    async def positions(self) -> Sequence[BrokerPosition]:
        """Read back the net positions."""
        self._check_connected()
        return [
            BrokerPosition(symbol, held.quantity, held.average_cost)
            for symbol, held in sorted(self._ledger.book.holdings.items())
        ]

    async def account(self) -> BrokerAccount:
        """Read back the account."""
        self._check_connected()
        mode: Literal["paper", "simulated"] = "paper" if self._context.clock.kind == "live" else "simulated"
        return BrokerAccount(ACCOUNT, mode, "USD", self._ledger.book.cash, self._buying_power())

    async def instrument(self, symbol: str) -> Instrument:
        """Tell that there are always shares to borrow: short sales are simulated without a locate."""
        return Instrument(symbol, shortable=True, short_restricted=False)

    # --- inside -----------------------------------------------------------------------------------------------

    def _take(self, wanted: Sequence[tuple[str | None, OrderRequest]]) -> list[PaperOrder]:
        now, book = self._now(), self._ledger.book
        orders: list[PaperOrder] = []
        faulty = False
        for index, (order_id, request) in enumerate(wanted, 1):
            prices = terms(request)
            order = PaperOrder(
                number=f"P{book.count + index}",
                order_id=order_id,
                symbol=request.symbol,
                side=request.side,
                quantity=request.quantity,
                order_type=request.order_type,
                since=now,
                time_in_force=request.time_in_force,
                outside_rth=request.outside_rth,
                oca_group=request.oca_group,
                **prices,
            )
            order.opens_at, order.expires_at = lifetime(request, now, self._context.calendar)
            order.reason = fault(request, prices) or self._join(order, request.parent_id, orders)
            if order.reason is None and request.parent_id is None:
                market = self._matcher.reference(request.symbol, request.side)
                order.reason = wrong_side(request, prices, market) or self._shortage(request)
            if order.order_type == "trailing_stop" and order.active and request.symbol in self._matcher.last:
                order.best = decimal(self._matcher.last[request.symbol].value)
            faulty = faulty or order.reason is not None
            orders.append(order)
        for order in orders if faulty else ():
            order.state, order.ended_at = "rejected", now
            order.reason = order.reason or "another order of its group was rejected"
        self._ledger.add(orders, now)
        return [book.orders[order.number] for order in orders]

    def _join(self, order: PaperOrder, parent_id: str | None, group: Sequence[PaperOrder]) -> str | None:
        """Tie a child to its parent; say why where that can't be done."""
        if parent_id is None:
            return None
        parent = next((each for each in group if each.order_id == parent_id), None)
        parent = parent or self._ledger.book.by_id(parent_id)
        if parent is None:
            return f"its parent {parent_id} is not known"
        if parent.symbol != order.symbol:
            return f"its parent {parent_id} is an order of {parent.symbol}"
        if parent.state not in ("working", "filled") and parent.filled == ZERO:
            return f"its parent {parent_id} ended unfilled"
        order.parent, order.active = parent.number, parent.filled > ZERO
        return None

    def _working(self, order_id: str) -> PaperOrder:
        order = self._ledger.book.by_id(order_id) or self._ledger.book.orders.get(order_id)
        if order is None:
            raise BrokerError(f"the paper broker knows no order {order_id}")
        if order.state != "working":
            raise BrokerRefused(f"the order {order_id} has ended already: it is {order.state}")
        return order

    def _shown(self, order: PaperOrder) -> BrokerOrder:
        parent = self._ledger.book.orders.get(order.parent) if order.parent is not None else None
        level = order.stop_level() if order.order_type == "trailing_stop" else order.stop_price
        return BrokerOrder(
            order_id=order.order_id,
            broker_order_id=order.number,
            symbol=order.symbol,
            side=order.side,
            quantity=order.quantity,
            filled_quantity=order.filled,
            order_type=order.order_type,
            state=order.state,
            limit_price=order.limit_price,
            stop_price=None if level is None else nearest(level),
            trail_amount=order.trail_amount,
            trail_percent=order.trail_percent,
            time_in_force=order.time_in_force,
            oca_group=order.oca_group,
            parent_id=parent.order_id if parent is not None else None,
            reason=order.reason,
        )

    def _now(self) -> datetime:
        """Give the market time: the clock's, or the newest of data and file where these are ahead of it."""
        moments = (self._context.clock.now(), self._newest, self._ledger.book.newest)
        return max(moment for moment in moments if moment is not None)

    def _check_connected(self) -> None:
        if not self._connected:
            raise BrokerRefused("the paper broker is not connected: await connect() first")

    # --- buying power -----------------------------------------------------------------------------------------

    def _mark(self, symbol: str) -> Decimal:
        """Value a share at the newest price, or at its cost where there has been none."""
        price = self._matcher.last.get(symbol)
        if price is not None:
            return decimal(price.value)
        held = self._ledger.book.holdings.get(symbol)
        return held.average_cost if held is not None else ZERO

    def _growth(self, request: OrderRequest | PaperOrder, quantity: Decimal) -> Decimal:
        """Give the value by which an order would grow the exposure."""
        held = self._ledger.book.holdings.get(request.symbol)
        before = held.quantity if held is not None else ZERO
        after = before + (quantity if request.side == "buy" else -quantity)
        price = request.limit_price or self._matcher.reference(request.symbol, request.side) or request.stop_price
        return max(ZERO, abs(after) - abs(before)) * (price or ZERO)

    def _buying_power(self) -> Decimal:
        book = self._ledger.book
        values = {symbol: held.quantity * self._mark(symbol) for symbol, held in book.holdings.items()}
        equity = book.cash + sum(values.values(), ZERO)
        exposure = sum(map(abs, values.values()), ZERO)
        reserved = sum(
            (self._growth(order, order.remaining) for order in book.all_working() if order.parent is None), ZERO
        )
        return max(ZERO, equity * self._config.leverage - exposure - reserved)

    def _shortage(self, request: OrderRequest) -> str | None:
        """Say that the account can't pay for an entry; what reduces a position always passes."""
        if request.intent != "entry":
            return None
        needed, power = self._growth(request, request.quantity), self._buying_power()
        if needed > power:
            return f"it needs {needed:.2f} USD of buying power, and there are {power:.2f}"
        return None


@hookimpl
def register_brokers(register: Register) -> None:
    """Offer the paper broker."""
    register("paper", _build, config=PaperConfig)


def _build(config: Any, context: PluginContext) -> PaperBroker:
    return PaperBroker(config, context)

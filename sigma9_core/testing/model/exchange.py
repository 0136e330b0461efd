"""An exchange with an account of its own that misbehaves on demand, as real ones do, and keeps the truth.

Reports wait in the mail, come twice or in another order, and are lost with the connection; cancels and changes
take their time; what was submitted arrives or not, answered or not; read-backs are old, or leave out what works;
people trade in the same account. What no exchange does, it does not do: it fills no more than was ordered, of a
child no more than its parent has opened, of a one-cancels-all group one order, and it takes an order id once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from sigma9_core.contracts import (
    BrokerAccount,
    BrokerHealth,
    BrokerListener,
    BrokerOrder,
    BrokerPosition,
    BrokerReport,
    ReportKind,
)
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import ZERO, ApprovedOrder, Fill, OrderRequest, Side
from sigma9_core.testing.small_exchange import Resting, SmallExchange

SubmitMode = Literal[
    "take",
    "refuse",
    "lose",
    "lose_answer",
    "no_answer",
    "swallow",
    "slow",
    "reject",
    "reject_stops",
    "reject_market",
    "reject_terms",
]
"""lose: it never arrives, and the call raises. lose_answer: it arrives, and the call raises. no_answer: it
arrives, and the call never returns. swallow: it never arrives, and nobody says so. slow: it arrives later.
reject_terms: what the exchange would have to keep to by itself is turned down."""
CancelMode = Literal["take", "lose", "swallow", "slow"]
ReplaceMode = Literal["take", "refuse", "lose", "lose_answer", "slow"]
End = Literal["cancelled", "rejected", "expired"]

UP: Final = BrokerHealth("up", "up", "up")
SLOW: Final = 1.0
"""Seconds that a slow submit is on its way."""
OLDEST: Final = 10.0
"""Seconds that a read-back may be behind at most."""


@dataclass(slots=True)
class Old:
    """What the read-backs showed at a moment."""

    since: float
    working: list[BrokerOrder]
    completed: list[BrokerOrder]
    fills: list[Fill]
    positions: list[BrokerPosition]


@dataclass
class RoughExchange(SmallExchange):
    """The exchange; `own` and `by_hand` add up to `holdings`."""

    immediate: bool = False
    reads: int = 0
    """Lists that are being read at this moment."""
    own: dict[str, Decimal] = field(default_factory=dict)
    """What our orders' fills, and adoptions, have made."""
    by_hand: dict[str, Decimal] = field(default_factory=dict)
    """What a person has traded beside us."""
    mail: list[BrokerReport] = field(default_factory=list)
    """Reports on their way."""
    told: list[BrokerReport] = field(default_factory=list)
    """Reports that were delivered."""
    keeps_mail: bool = False
    submit_modes: list[SubmitMode] = field(default_factory=list)
    """What becomes of the next submits; where there is none, the exchange takes it."""
    cancel_modes: list[CancelMode] = field(default_factory=list)
    replace_modes: list[ReplaceMode] = field(default_factory=list)
    away: bool = False
    """Nobody can connect."""
    read_seconds: float = 0.0
    """How long each read-back takes."""
    mail_seconds: float = 0.0
    """How long each report is on its way; they arrive in order."""
    cancel_seconds: float = 0.0
    """How long it takes until a cancel is carried out."""
    putting_off: list[Callable[[], None]] = field(default_factory=list)
    """Cancels and changes that were taken and wait for `carry_out`."""
    old: Old | None = None
    excused: dict[str, str] = field(default_factory=dict)
    """Symbols in which something happened that nobody could have prevented, and what."""
    causes: dict[str, str] = field(default_factory=dict)
    """Symbols whose books can't be right before a person settles it, and why."""
    openers: dict[str, list[OrderRequest]] = field(default_factory=dict)
    """The entries that have filled since a symbol was flat."""
    adoptions: dict[str, Fill] = field(default_factory=dict)
    enlarged: dict[str, Decimal] = field(default_factory=dict)
    """By how much a child was made larger than its parent while that worked, by order id."""
    split_ever: set[str] = field(default_factory=set)
    unheard: list[BrokerReport] = field(default_factory=list)
    """Reports on fills of which no read-back gives the executions; they may come late, or never."""
    wrong: list[str] = field(default_factory=list)
    """What must never happen, and did."""
    arrives: Callable[[ApprovedOrder, str], None] = lambda _order, _how: None
    """Told of each order and change when it reaches the exchange, before anything comes of it."""
    out_of_sight: set[str] = field(default_factory=set)
    """Working orders that the list of open orders leaves out."""
    lost_sight: set[str] = field(default_factory=set)
    """Those that it has left out since all was calm: they may have been taken for ended."""
    hides: bool = False
    """The next fill is one that nobody is told of."""
    hidden: set[str] = field(default_factory=set)
    """Executions that no read-back gives."""
    _fills: int = 0

    # --- the line -------------------------------------------------------------------------------------------

    async def connect(self, listener: BrokerListener) -> None:
        """Connect, with a fresh picture."""
        if self.away:
            raise BrokerError("nobody answers")
        self.old = None
        self.listener = listener
        self.health = UP

    async def disconnect(self) -> None:
        """Disconnect in order; what is in the mail is lost."""
        self.hang_up()

    def hang_up(self) -> None:
        """Lose the connection, and the mail with it, without a word to anybody."""
        self.listener = None
        for report in self.mail:
            if report.kind == "busted":
                self.causes[self.orders[report.order_id].request.symbol] = "nobody was told of a bust"
        self.mail.clear()
        self.health = BrokerHealth()

    def drop(self) -> None:
        """Lose the connection, and let the other side notice."""
        listener = self.listener
        self.hang_up()
        if listener is not None:
            listener.on_health(self.health)

    def link(self, up: bool) -> None:
        """Let the broker's own link to the exchange go or come back, with a fresh picture."""
        if self.listener is not None:
            self.old = None
            self.health = UP if up else BrokerHealth("up", "down", "down")
            self.listener.on_health(self.health)

    def _check(self) -> None:
        if self.listener is None or self.health.socket == "down":
            raise BrokerError("there is no connection")

    # --- orders ---------------------------------------------------------------------------------------------

    async def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Take orders as the mode says."""
        self._check()
        mode = self.submit_modes.pop(0) if self.submit_modes else "take"
        if self.health.link == "down":
            mode = "swallow"
        if mode == "refuse":
            raise BrokerRefused("the exchange is closed to you")
        if mode == "lose":
            raise BrokerError("the line broke before it left")
        if mode == "swallow":
            return
        if mode == "slow":
            for order in orders:
                self.arrives(
                    order, "sent"
                )  # decided and sent now; what happens on the way is not its sender's doing
            begun = len(self.fills)
            await asyncio.sleep(SLOW)
            self._check()
            self._take(orders, mode, [fill.order_id for fill in self.fills[begun:]])
            return
        for order in orders:
            self.arrives(order, "sent")
        self._take(orders, mode)
        if mode == "no_answer":
            await asyncio.Event().wait()
        if mode == "lose_answer":
            raise BrokerError("the line broke before the answer came")

    def _take(self, orders: Sequence[ApprovedOrder], mode: SubmitMode, filled: Collection[str] = ()) -> None:
        """Take orders; `filled` names those that have filled while they were on their way."""
        for order in orders:
            if order.order_id in self.orders:
                self.wrong.append(f"order {order.order_id} was sent twice")
                raise BrokerError("this order is here already")
            self.submitted.append(order.order_id)
            self.orders[order.order_id] = Resting(order.order_id, str(len(self.orders) + 1), order.request)
        for order in orders:
            resting, ask = self.orders[order.order_id], order.request
            refused = (
                mode == "reject"
                or (mode == "reject_stops" and ask.order_type == "stop")
                or (mode == "reject_market" and ask.order_type == "market")
                or (mode == "reject_terms" and (ask.good_after is not None or ask.adjustment is not None))
            )
            if resting.state != "working":
                continue  # its parent was rejected a moment ago
            if refused:
                self.end(order.order_id, "rejected", "not here")
            elif self._group_has_filled(ask, filled):
                self.end(order.order_id, "cancelled", "its one-cancels-all group has filled")
            elif mode not in ("no_answer", "lose_answer"):
                self.report("accepted", order.order_id)

    def _group_has_filled(self, ask: OrderRequest, filled: Collection[str]) -> bool:
        """Tell whether an order joins a group in which a fill was made that its sender could not know of."""
        if ask.oca_group is None:
            return False
        waiting = {report.order_id for report in self.mail if report.kind == "filled"}
        there = [self.orders[order_id] for order_id in {*waiting, *filled} if order_id in self.orders]
        return any(order.request.oca_group == ask.oca_group for order in there)

    async def replace(self, order: ApprovedOrder) -> None:
        """Change a working order as the mode says."""
        self._check()
        mode = self.replace_modes.pop(0) if self.replace_modes else "take"
        if self.health.link == "down":
            mode = "lose"
        resting = self._working(order.order_id)
        if mode == "refuse" or order.request.quantity <= resting.filled:
            raise BrokerRefused("it stays as it is")
        if mode == "lose":
            raise BrokerError("the line broke before it left")
        self.arrives(order, "changed")
        if mode == "slow":
            self.putting_off.append(lambda: self.change(order))
            return
        self.change(order)
        if mode == "lose_answer":
            raise BrokerError("the line broke before the answer came")

    def change(self, order: ApprovedOrder) -> None:
        """Carry out a change, where the order can still be changed."""
        resting = self.orders[order.order_id]
        if resting.state != "working" or order.request.quantity <= resting.filled:
            return
        parent = self._parent(resting)
        request = order.request
        unheard = parent is not None and any(report.order_id == parent.order_id for report in self.mail)
        if parent is None or (parent.state != "working" and not unheard):
            request = request.model_copy(
                update={"parent_id": None}
            )  # its sender knows what the parent has come to
        else:
            self.enlarged[order.order_id] = max(ZERO, request.quantity - parent.request.quantity)
        resting.request = request
        self.report("replaced", order.order_id)

    async def cancel(self, order_id: str) -> None:
        """Cancel a working order as the mode says; one that is not ours goes by the broker's number."""
        self._check()
        self.cancels.append(order_id)
        resting = self._working(self._key(order_id))
        mode = self.cancel_modes.pop(0) if self.cancel_modes else "take"
        if self.health.link == "down":
            mode = "swallow"
        if mode == "lose":
            raise BrokerError("the line broke before it left")
        if mode == "slow":
            self.putting_off.append(lambda: self._cancel(resting))
        elif mode == "take" and self.cancel_seconds:
            asyncio.get_running_loop().call_later(self.cancel_seconds, self._cancel, resting)
        elif mode == "take":
            self._cancel(resting)

    def _cancel(self, resting: Resting) -> None:
        if resting.state == "working":
            self.end(self._key_of(resting), "cancelled", "cancelled on request")

    def _key(self, name: str) -> str:
        if name in self.orders:
            return name
        return next((key for key, order in self.orders.items() if order.number == name), name)

    def _key_of(self, resting: Resting) -> str:
        return next(key for key, order in self.orders.items() if order is resting)

    # --- reading back ---------------------------------------------------------------------------------------

    def freeze(self, now: float) -> None:
        """Let the read-backs show this moment for a while; `now` is the loop's time."""
        self.old = Old(now, self._works(), self._ended(), [*self.fills], self._held())

    def lose_sight(self, order_ids: Collection[str]) -> None:
        """Leave working orders out of the list of open orders until they come into sight again."""
        self.out_of_sight |= {*order_ids}
        self.lost_sight |= self.out_of_sight

    def hold(self, order_id: str) -> None:
        """Work an order no more, until it is let go."""
        self.orders[order_id].held = True
        self.lost_sight.add(order_id)  # another one may take its place
        self.report("held", order_id, reason="not now")

    def let_go(self) -> None:
        """Work everything again that is held."""
        for order_id, order in self.orders.items():
            if order.held and order.state == "working":
                order.held = False
                self.report("accepted", order_id)

    async def _read(self) -> None:
        self._check()
        self.reads += 1
        try:
            await asyncio.sleep(self.read_seconds)
        finally:
            self.reads -= 1
        self._check()
        if self.old is not None and asyncio.get_running_loop().time() - self.old.since > OLDEST:
            self.old = None

    def _works(self) -> list[BrokerOrder]:
        working = (order for key, order in self.orders.items() if key not in self.out_of_sight)
        return [self._shown(order) for order in working if order.state == "working"]

    def _ended(self) -> list[BrokerOrder]:
        return [self._shown(order) for order in self.orders.values() if order.state != "working"]

    def _held(self) -> list[BrokerPosition]:
        return [BrokerPosition(symbol, held, Decimal(10)) for symbol, held in self.holdings.items() if held]

    @staticmethod
    def _shown(order: Resting) -> BrokerOrder:
        return replace(order.shown(), order_id=order.order_id or None)

    async def open_orders(self) -> Sequence[BrokerOrder]:
        """Read back what works."""
        await self._read()
        return self.old.working if self.old is not None else self._works()

    async def completed_orders(self, since: datetime) -> Sequence[BrokerOrder]:
        """Read back what has ended."""
        await self._read()
        return self.old.completed if self.old is not None else self._ended()

    async def executions(self, since: datetime) -> Sequence[Fill]:
        """Read back the executions."""
        await self._read()
        fills = self.old.fills if self.old is not None else self.fills
        return [fill for fill in fills if fill.ts >= since and fill.exec_id not in self.hidden]

    async def positions(self) -> Sequence[BrokerPosition]:
        """Read back the positions."""
        await self._read()
        return self.old.positions if self.old is not None else self._held()

    async def account(self) -> BrokerAccount:
        """Read back the account."""
        await self._read()
        return BrokerAccount("TEST", self.mode, "USD", self.cash)

    # --- what happens at the exchange ---------------------------------------------------------------------------

    def fillable(self, order: Resting) -> Decimal:
        """Give how much of a working order may fill now: a child closes no more than its parent has opened.

        What it was enlarged by, beyond its parent, counts from the parent's end on. One that is held until a time
        fills no sooner, and one that is held not at all.
        """
        if order.held:
            return ZERO
        if order.request.good_after is not None and order.request.good_after > self.clock.now():
            return ZERO
        covers, parent = order.request.quantity, self._parent(order)
        if parent is not None:
            more = ZERO if parent.state == "working" else self.enlarged.get(order.order_id, ZERO)
            covers = min(covers, parent.filled + more)
        return max(ZERO, covers - order.filled)

    def _parent(self, order: Resting) -> Resting | None:
        parent_id = order.request.parent_id
        return None if parent_id is None else self.orders.get(parent_id)

    def fill(
        self, order_id: str, price: Decimal, quantity: Decimal | None = None, commission: Decimal = ZERO
    ) -> Fill:
        """Fill an order, in part or whole, and cancel the rest of its one-cancels-all group."""
        order = self.orders[order_id]
        ask = order.request
        size = self.fillable(order) if quantity is None else quantity
        if not ZERO < size <= ask.quantity - order.filled:
            raise ValueError(f"{size} of {order} can't fill")
        order.filled += size
        fill = self._book(
            order_id if order.order_id else "", order.number, ask.symbol, ask.side, size, price, commission
        )
        self._watch(order, fill)
        if order.filled >= ask.quantity:
            order.state = "filled"
        if order.order_id:
            self.report("filled", order_id, fill=fill)
        for key, other in self.orders.items():
            together = ask.oca_group is not None and other.request.oca_group == ask.oca_group
            if together and other is not order and other.state == "working":
                self.end(key, "cancelled", "one cancels all")
        parent = self._parent(order)
        alone = parent is not None and parent.state != "working"
        if alone and order.state == "working" and not self.fillable(order):
            self.end(order_id, "cancelled", "its parent has filled no more")
        return fill

    def fill_unheard(self, order_id: str, price: Decimal, quantity: Decimal, commission: Decimal) -> None:
        """Fill the rest of an order, and give neither a report nor an execution: it is read back as filled."""
        self.hides = True
        self.fill(order_id, price, quantity, commission)
        self.hides = False

    def tell_late(self, index: int) -> None:
        """Report a fill of which nobody was told."""
        self.mail.append(self.unheard.pop(index % len(self.unheard)))
        self.deliver_all()

    def _book(  # noqa: PLR0917 - the fields of a fill, in their order
        self,
        order_id: str,
        number: str,
        symbol: str,
        side: Side,
        size: Decimal,
        price: Decimal,
        commission: Decimal,
    ) -> Fill:
        self._fills += 1
        fill = Fill(
            f"x{self._fills}", order_id, symbol, side, size, price, commission, self.clock.now(), number or None
        )
        self.fills.append(fill)
        sign = 1 if side == "buy" else -1
        self.cash -= sign * size * price + commission
        books = self.own if order_id else self.by_hand
        books[symbol] = books.get(symbol, ZERO) + sign * size
        self._sum(symbol)
        return fill

    def _sum(self, symbol: str) -> None:
        self.holdings[symbol] = self.own.get(symbol, ZERO) + self.by_hand.get(symbol, ZERO)

    def _watch(self, order: Resting, fill: Fill) -> None:
        """See that an exit does not take the position through zero; an entry that shrinks one is remembered."""
        ask = order.request
        if not order.order_id:
            return
        if order.order_id in self.lost_sight:
            self.excuse(ask.symbol, "an order has filled that may have been taken for ended")
        signed = fill.quantity if fill.side == "buy" else -fill.quantity
        after = self.own[ask.symbol]
        before = after - signed
        if not before:
            self.openers[ask.symbol] = []
        if ask.intent == "entry":
            self.openers.setdefault(ask.symbol, []).append(ask)
        if ask.intent == "entry":
            if before * signed < 0:
                self.excuse(ask.symbol, "an entry has shrunk the position that exits were made for")
            return
        if before * after < 0 or (before == 0 and after != 0):
            self._blame(
                ask.symbol, f"the {ask.intent} order {order.order_id} took {ask.symbol} from {before} to {after}"
            )
        net = self.holdings[ask.symbol]
        if ask.intent == "kill" and (net - signed) * net < 0:
            self._blame(
                ask.symbol, f"the kill's order {order.order_id} took the account from {net - signed} to {net}"
            )

    def _blame(self, symbol: str, what: str) -> None:
        if symbol not in self.excused:
            self.wrong.append(what)

    def excuse(self, symbol: str, why: str) -> None:
        """Remember that in this symbol something happened that nobody could have prevented."""
        self.excused.setdefault(symbol, why)

    def end(self, order_id: str, kind: End, reason: str) -> None:
        """End an order from the exchange's side, and the children that are left without a parent's fill."""
        order = self.orders[order_id]
        order.state = kind
        if order.order_id:
            self.report(kind, order_id, reason=reason)
        for key, child in self.orders.items():
            orphan = child.state == "working" and self._parent(child) is order and order.order_id != ""
            if orphan and not self.fillable(child):
                self.end(key, "cancelled", "its parent has ended")

    def expire(self) -> None:
        """End the day orders with the session."""
        for order in [*self.orders.values()]:
            if order.order_id and order.state == "working" and order.request.time_in_force == "day":
                self.end(order.order_id, "expired", "the day is over")

    def carry_out(self) -> None:
        """Do the next thing that was put off."""
        if self.putting_off:
            self.putting_off.pop(0)()

    def may_fill_late(self) -> list[Resting]:
        """List the orders of ours that have ended before they had filled."""
        ended = (order for order in self.orders.values() if order.state in ("cancelled", "expired"))
        return [order for order in ended if order.order_id and order.filled < order.request.quantity]

    def fill_late(self, order_id: str, price: Decimal) -> None:
        """Fill an order after its cancel was told: rare, and nobody's fault."""
        order = self.orders[order_id]
        self.excuse(order.request.symbol, "a fill after the cancel")
        size = order.request.quantity - order.filled
        order.state = "working"
        order.request = order.request.model_copy(update={"oca_group": None, "parent_id": None})
        self.fill(order_id, price, size)

    def bust(self, fill: Fill) -> None:
        """Take an execution back; its order does not work again for it."""
        self.excuse(fill.symbol, "an execution was taken back")
        self.fills.remove(fill)
        self.unheard = [report for report in self.unheard if report.fill != fill]
        sign = 1 if fill.side == "buy" else -1
        self.cash += sign * fill.quantity * fill.price + fill.commission
        self.own[fill.symbol] -= sign * fill.quantity
        if not self.own[fill.symbol]:
            self.openers[fill.symbol] = []
        elif all(adopted.symbol != fill.symbol for adopted in self.adoptions.values()):
            self._open_again(fill.symbol)
        self._sum(fill.symbol)
        if self.listener is None:
            self.causes[fill.symbol] = "nobody was told of a bust"
        self.report("busted", fill.order_id, fill=fill, reason="clearly erroneous")

    def may_correct(self) -> list[Fill]:
        """List the executions of ended orders that may have been for less, where nothing else moved as well.

        None in the middle of a read-back by a broker that shows everything at once: its lists are of one moment.
        """
        if self.immediate and self.reads:
            return []
        odd = self.split_ever | {fill.symbol for fill in self.adoptions.values()}
        ours = (fill for fill in self.fills if fill.order_id and fill.symbol not in odd and fill.quantity > 1)
        return [f for f in ours if f.exec_id not in self.hidden and self.orders[f.order_id].state != "working"]

    def correct(self, fill: Fill, quantity: Decimal) -> None:
        """Put the quantity of an execution right: a new one takes its place, told now and read back later."""
        self.excuse(fill.symbol, "an execution was corrected")
        new = replace(fill, exec_id=f"{fill.exec_id}c", quantity=quantity, corrects=(fill.exec_id, *fill.corrects))
        self.fills[self.fills.index(fill)] = new
        gone = (fill.quantity - quantity) * (1 if fill.side == "buy" else -1)
        self.cash += gone * fill.price
        self.own[fill.symbol] -= gone
        self.orders[fill.order_id].filled -= fill.quantity - quantity
        self._sum(fill.symbol)
        self._open_again(fill.symbol)
        self.report("filled", fill.order_id, fill=new)

    def _open_again(self, symbol: str) -> None:
        """Work out from the executions which entries have opened what is held."""
        openers, held = list[OrderRequest](), ZERO
        for fill in self.fills:
            if fill.symbol != symbol or not fill.order_id:
                continue
            before, held = held, held + (fill.quantity if fill.side == "buy" else -fill.quantity)
            if before == ZERO or before * held <= ZERO:
                openers.clear()
            if self.orders[fill.order_id].request.intent == "entry":
                openers.append(self.orders[fill.order_id].request)
        self.openers[symbol] = openers

    def trade_by_hand(self, symbol: str, side: Side, size: Decimal, price: Decimal) -> None:
        """Trade as a person does at the broker's own screen."""
        self._book("", "", symbol, side, size, price, ZERO)

    def rest_by_hand(self, request: OrderRequest) -> str:
        """Place an order as a person does; give the broker's number."""
        number = str(len(self.orders) + 1)
        self.orders[f"hand-{number}"] = Resting("", number, request)
        return number

    def adopted(self, fill: Fill) -> None:
        """A position that was traded by hand has been made ours."""
        self.adoptions[fill.exec_id] = fill
        self._hand_over(fill, 1)

    def know_adoptions(self, fills: Collection[Fill]) -> None:
        """Take back the adoptions that no journal knows of, and take up those that only a journal knows of."""
        known = {fill.exec_id: fill for fill in fills}
        for exec_id in [exec_id for exec_id in self.adoptions if exec_id not in known]:
            self._hand_over(self.adoptions.pop(exec_id), -1)
        for exec_id in [exec_id for exec_id in known if exec_id not in self.adoptions]:
            self.adopted(known[exec_id])

    def _hand_over(self, fill: Fill, sign: int) -> None:
        symbol, signed = fill.symbol, sign * (fill.quantity if fill.side == "buy" else -fill.quantity)
        if not self.own.get(symbol):
            self.openers[symbol] = []
        self.own[symbol] = self.own.get(symbol, ZERO) + signed
        self.by_hand[symbol] = self.by_hand.get(symbol, ZERO) - signed

    def split(self, symbol: str, new: int) -> None:
        """Give `new` shares for one; what works in the symbol is cancelled, as exchanges do with many orders."""
        for key, order in self.orders.items():
            if order.state == "working" and order.request.symbol == symbol:
                self.end(key, "cancelled", "split")
        for books in (self.own, self.by_hand):
            books[symbol] = books.get(symbol, ZERO) * new
        self._sum(symbol)
        self.split_ever.add(symbol)

    # --- the mail ---------------------------------------------------------------------------------------------

    def report(
        self, kind: ReportKind, order_id: str, *, fill: Fill | None = None, reason: str | None = None
    ) -> None:
        """Put a report in the mail; it is delivered at once unless the mail is kept. Without a line it is lost."""
        report = BrokerReport(kind, order_id, self.clock.now(), self.orders[order_id].number, fill, reason)
        if kind == "filled" and fill is not None and self.hides:
            self.hides = False  # what it may set off is told
            self.hidden.add(fill.exec_id)
            self.unheard.append(report)
            return
        if self.listener is None:
            return
        self.mail.append(report)
        if not self.keeps_mail and self.health.link == "up":
            if self.mail_seconds:
                asyncio.get_running_loop().call_later(self.mail_seconds, self._arrive, self.mail[-1])
            else:
                self.deliver_all()

    def _arrive(self, report: BrokerReport) -> None:
        """Deliver a report that was on its way, and those before it."""
        if not self.keeps_mail and self.health.link == "up" and any(each is report for each in self.mail):
            while self.mail:
                last = self.mail[0] is report
                self.deliver()
                if last:
                    break

    def overtaking(self) -> int:
        """Choose the second report, unless it takes back what the first one tells."""
        mail = self.mail
        takes_back = len(mail) > 1 and mail[1].kind == "busted" and mail[1].fill == mail[0].fill
        return 1 if len(mail) > 1 and not takes_back else 0

    def deliver(self, index: int = 0) -> None:
        """Deliver one report; another than the first one overtakes those before it."""
        report = self.mail.pop(index % len(self.mail))
        self.told.append(report)
        if self.listener is not None:
            self.listener.on_report(report)

    def deliver_all(self) -> None:
        """Deliver everything, in order."""
        while self.mail:
            self.deliver()

    def repeat(self, index: int) -> None:
        """Deliver once more what was delivered before."""
        if self.told and self.listener is not None:
            self.listener.on_report(self.told[index % len(self.told)])

    def calm(self) -> None:
        """Behave, and carry out what was put off."""
        self.submit_modes, self.cancel_modes, self.replace_modes = [], [], []
        self.keeps_mail = self.away = False
        self.old = None
        self.let_go()
        self.out_of_sight, self.lost_sight = set(), set()
        while self.putting_off:
            self.carry_out()
        if self.health.link == "down":
            self.link(up=True)
        self.deliver_all()


__all__ = ["RoughExchange"]

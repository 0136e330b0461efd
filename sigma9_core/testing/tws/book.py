"""The book: the orders of all clients, what price moves do to them, and the executions of the day.

Nothing here knows of connections or faults: what the book says is the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import Final, Protocol

from sigma9_core.testing.tws.accounts import Account, Accounts
from sigma9_core.testing.tws.clock import PeerClock
from sigma9_core.testing.tws.contracts import Contract
from sigma9_core.testing.tws.market import Market, Quote
from sigma9_core.testing.tws.orders import WireOrder
from sigma9_core.testing.tws.tickets import AT_CLOSE, STOPS, TOUCHES, ZERO, Execution, Ticket
from sigma9_core.testing.tws.times import moment

KINDS: Final = frozenset(("MKT", "LMT", *STOPS, *TOUCHES, *AT_CLOSE))
"""The types of orders that the book knows; others are refused."""
TIFS: Final = frozenset(("", "DAY", "GTC", "IOC", "FOK", "GTD", "OPG"))
NEEDS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "LMT": (("lmtPrice",),),
    "LOC": (("lmtPrice",),),
    "STP": (("auxPrice",),),
    "MIT": (("auxPrice",),),
    "STP LMT": (("lmtPrice",), ("auxPrice",)),
    "LIT": (("lmtPrice",), ("auxPrice",)),
    "TRAIL": (("auxPrice", "trailingPercent"),),
    "TRAIL LIMIT": (("auxPrice", "trailingPercent"), ("lmtPriceOffset", "lmtPrice")),
}
"""The prices that each type of order needs: of each group at least one."""
NOT_ADJUSTED: Final = ("", "None")
BY_PERCENT: Final = 100
"""The unit of a distance in percent; 0 stands for one in money."""
FIRST_PERM_ID: Final = 1_700_000_001


class Refused(Exception):
    """The book does not do what it was asked: an error code and a text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Listener(Protocol):
    """Hears what becomes of orders."""

    def accepted(self, ticket: Ticket) -> None:
        """Hear that an order is in the book."""

    def changed(self, ticket: Ticket) -> None:
        """Hear that an order has other terms, or another state."""

    def parts(self, ticket: Ticket, quantity: Decimal) -> Sequence[Decimal]:
        """Say in how many executions a fill comes."""

    def filled(self, ticket: Ticket, execution: Execution) -> None:
        """Hear of a fill."""

    def cancelled(self, ticket: Ticket) -> None:
        """Hear that an order was cancelled."""

    def rejected(self, ticket: Ticket, code: int) -> None:
        """Hear that an order was turned down after all."""


@dataclass(slots=True)
class Book:
    """All orders, and the executions of the day."""

    accounts: Accounts
    market: Market
    clock: PeerClock
    listener: Listener
    commission: Decimal = Decimal("0.005")
    """Of every share, at least one for an order's fill."""
    least_commission: Decimal = Decimal(1)
    holds: bool = False
    """Fills come from the control alone, not from prices."""
    first_id: int = 1
    """The first order id of every client."""
    tickets: dict[int, Ticket] = field(default_factory=dict)
    """By their permanent id, oldest first."""
    numbers: dict[tuple[int, int], Ticket] = field(default_factory=dict)
    """By client id and order id."""
    next_ids: dict[int, int] = field(default_factory=dict)
    executions: list[Execution] = field(default_factory=list)
    _bound: int = 0
    _fill_count: int = 0

    # --- what clients and people ask for ------------------------------------------------------------------------

    def next_id(self, client_id: int) -> int:
        """Give the smallest order id that a client may use next."""
        return self.next_ids.get(client_id, self.first_id)

    def place(
        self,
        client_id: int,
        order_id: int,
        contract: Contract,
        order: WireOrder,
        rejects: str | None = None,
        *,
        held: str = "",
    ) -> Ticket:
        """Take a new order, or change a live one of that id; raise Refused."""
        known = self.numbers.get((client_id, order_id))
        if known is not None and order_id > 0:
            return self._modify(known, contract, order)
        if 0 < order_id < self.next_id(client_id):
            raise Refused(103, "Duplicate order id")
        account = self._check(contract, order)
        if order_id > 0:
            self.next_ids[client_id] = order_id + 1
        ticket = Ticket(
            perm_id=FIRST_PERM_ID + len(self.tickets),
            client_id=client_id,
            order_id=order_id,
            contract=contract,
            order=order,
            account=account.name,
            quantity=order.number("totalQuantity") or ZERO,
            created=self.clock.now(),
            held=held,
        )
        if parent_id := order.integer("parentId"):
            ticket.parent = self.numbers.get((client_id, parent_id))
            if ticket.parent is None or not ticket.parent.live:
                raise Refused(135, f"Can't find order with id = {parent_id}")
        self.tickets[ticket.perm_id] = ticket
        if order_id > 0:
            self.numbers[client_id, order_id] = ticket
        if rejects is not None:
            self.reject(ticket, rejects)
            return ticket
        if not order.flag("transmit"):
            ticket.transmitted, ticket.status = False, "ApiPending"
            return ticket
        self._enter(self._family(ticket))
        return ticket

    def bind(self, ticket: Ticket) -> None:
        """Give an order by hand a number below zero, by which client 0 can change and cancel it."""
        if ticket.order_id == 0:
            self._bound -= 1
            ticket.order_id = self._bound
            self.numbers[0, ticket.order_id] = ticket

    def cancel(self, ticket: Ticket, reason: str = "") -> None:
        """Cancel a live order, and the children that it leaves without a position."""
        if not ticket.live:
            return
        ticket.status, ticket.reason, ticket.ended, ticket.held = "Cancelled", reason, self.clock.now(), ""
        self.listener.cancelled(ticket)
        for child in self._children(ticket):
            most = child.filled + self._to_close(child)
            if most <= child.filled:
                self.cancel(child, "parent cancelled")
            elif child.quantity > most:
                child.quantity = most
                self.listener.changed(child)

    def reject(self, ticket: Ticket, reason: str, code: int = 201) -> None:
        """Turn an order down, also one that was accepted."""
        ticket.status, ticket.reason, ticket.ended, ticket.held = "Inactive", reason, self.clock.now(), ""
        ticket.transmitted = True
        self.listener.rejected(ticket, code)
        for child in self._children(ticket):
            self.cancel(child, "parent rejected")

    def hold(self, ticket: Ticket, why: str) -> None:
        """Work a live order no more, until it is let go."""
        if not ticket.live:
            raise Refused(161, f"the order {ticket.perm_id} is {ticket.status}")
        ticket.held, ticket.status = why, "Inactive"
        self.listener.changed(ticket)

    def let_go(self, ticket: Ticket) -> None:
        """Work an order that was held."""
        if ticket.held:
            ticket.held, ticket.status = "", "PreSubmitted"
            self._activate(ticket)

    def working(self) -> list[Ticket]:
        """List what can fill, oldest first."""
        return [each for each in self.tickets.values() if each.live]

    # --- the market ---------------------------------------------------------------------------------------------

    def trade(self, con_id: int, depth: Decimal | None = None) -> None:
        """Let orders meet a contract's newest price; each side fills up to `depth`."""
        quote = self.market.quote(con_id)
        if quote is None:
            return
        left = {True: depth, False: depth}
        for ticket in [each for each in self.working() if each.contract.con_id == con_id]:
            if not ticket.live or not ticket.transmitted or ticket.held:
                continue
            self._adjust(ticket, quote)
            self._trail(ticket, quote)
            took = self._meet(ticket, quote, left[ticket.order.buys])
            room = left[ticket.order.buys]
            left[ticket.order.buys] = None if room is None else room - took
            if took == ZERO:
                self._at_once(ticket)

    def open_market(self) -> None:
        """Begin regular hours: what waits for the opening trades, and what it left of OPG orders is cancelled."""
        self.market.phase = "open"
        for con_id in list(self.market.quotes):
            self.trade(con_id)
        for ticket in self.working():
            if ticket.order.get("tif") == "OPG":
                self.cancel(ticket, "not filled at the opening")

    def close_market(self) -> None:
        """End regular hours: orders on the close trade, then what was good for the day is cancelled."""
        for ticket in self.working():
            quote = self.market.quote(ticket.contract.con_id)
            able = ticket.live and ticket.transmitted and not ticket.held and not self.holds
            if ticket.order.kind in AT_CLOSE and quote is not None and able:
                limit, price = ticket.limit, quote.last
                quantity = self._able(ticket)
                if quantity and (limit is None or (price <= limit if ticket.order.buys else price >= limit)):
                    self.fill(ticket, quantity, price)
        self.market.phase = "closed"
        for ticket in self.working():
            if ticket.order.get("tif") in ("", "DAY") or ticket.order.kind in AT_CLOSE:
                self.cancel(ticket, "expired")

    def new_day(self) -> None:
        """Begin another day: what has ended and what was executed is told no more."""
        self.executions.clear()
        for ticket in self.tickets.values():
            ticket.past = not ticket.live

    def fill(self, ticket: Ticket, quantity: Decimal, price: Decimal) -> Execution:
        """Fill an order, and do what follows for its children and its group."""
        if not ticket.live:
            raise Refused(104, f"the order {ticket.perm_id} is {ticket.status}")
        signed = quantity if ticket.order.buys else -quantity
        least = self.least_commission if not ticket.filled else ZERO
        commission = max(quantity * self.commission, least)
        account = self.accounts.all[ticket.account]
        realized = account.position(ticket.contract).take(signed, price, commission)
        account.cash -= signed * price + commission
        ticket.filled += quantity
        ticket.paid += quantity * price
        ticket.last_price = price
        ticket.fills += 1
        self._fill_count += 1
        done = ticket.filled >= ticket.quantity
        if done or ticket.status != "PendingCancel":
            ticket.status = "Filled" if done else "Submitted"
        ticket.triggered, ticket.held = True, ""
        if done:
            ticket.ended = self.clock.now()
        execution = Execution(
            exec_id=f"00025b46.{ticket.perm_id:08x}.{self._fill_count:02d}.01",
            ticket=ticket,
            quantity=quantity,
            price=price,
            time=self.clock.now(),
            cumulative=ticket.filled,
            average=ticket.average,
            commission=commission,
            realized=realized,
            held=account.position(ticket.contract).quantity,
        )
        self.executions.append(execution)
        self.listener.filled(ticket, execution)
        self._group(ticket, quantity, done=done)
        for child in self._children(ticket):
            if child.status == "PreSubmitted":
                self._activate(child)
        return execution

    def correct(self, execution: Execution, price: Decimal, quantity: Decimal | None = None) -> Execution:
        """Correct an execution: the same id with its last part one higher; perhaps it was for another quantity."""
        head, _, last = execution.exec_id.rpartition(".")
        ticket, size = execution.ticket, execution.quantity if quantity is None else quantity
        account = self.accounts.all[ticket.account]
        position = account.position(ticket.contract)
        sign = 1 if ticket.order.buys else -1
        change = (price - execution.price) * execution.quantity * sign
        account.cash -= change
        if execution.realized is not None:
            position.realized -= change
        elif position.quantity:
            position.cost += change / position.quantity
        ticket.paid += (price - execution.price) * execution.quantity
        if (more := size - execution.quantity) != ZERO:
            position.take(more * sign, price, ZERO)
            account.cash -= more * sign * price
            ticket.filled += more
            ticket.paid += more * price
        fixed = replace(
            execution,
            exec_id=f"{head}.{int(last) + 1:02d}",
            quantity=size,
            price=price,
            cumulative=execution.cumulative + more,
            held=position.quantity,
            told_at=None,
        )
        self.executions.append(fixed)
        self.listener.filled(ticket, fixed)
        return fixed

    # --- inside -------------------------------------------------------------------------------------------------

    def _check(self, contract: Contract, order: WireOrder) -> Account:
        """Raise Refused where an order can't be taken."""
        account = self.accounts.get(order.get("account"))
        if account is None:
            named = order.get("account")
            raise Refused(
                *((321, f"Invalid account code '{named}'.") if named else (435, "You must specify an account."))
            )
        if order.kind not in KINDS:
            raise Refused(387, f"Unsupported order type for this exchange and security type: {order.kind}.")
        if order.get("tif") not in TIFS:
            raise Refused(201, f"Order rejected - reason:The time-in-force is invalid: {order.get('tif')}.")
        quantity = order.number("totalQuantity")
        if quantity is None or quantity <= ZERO:
            raise Refused(434, "The order size cannot be zero.")
        for either in NEEDS.get(order.kind, ()):
            if not any(order.number(name) for name in either):
                raise Refused(201, f"Order rejected - reason:The order needs {' or '.join(either)}.")
        for name in ("goodTillDate", "goodAfterTime"):
            try:
                if at := order.get(name):
                    moment(at, "UTC")
            except ValueError:
                raise Refused(391, f"The time is invalid: {name} {order.get(name)}.") from None
        _check_adjustment(order)
        tick = self.market.contracts.by_id(contract.con_id).min_tick
        for name in ("lmtPrice", "auxPrice", "triggerPrice", "adjustedStopPrice"):
            price = order.number(name)
            if price is not None and price % tick and not order.kind.startswith("TRAIL"):
                raise Refused(110, "The price does not conform to the minimum price variation for this contract.")
        return account

    def _modify(self, ticket: Ticket, contract: Contract, order: WireOrder) -> Ticket:
        if ticket.status == "Filled":
            raise Refused(104, "Cannot modify a filled order.")
        if not ticket.live:
            raise Refused(103, "Duplicate order id")
        if contract.con_id != ticket.contract.con_id or order.buys != ticket.order.buys:
            raise Refused(105, "Order being modified does not match original order.")
        self._check(contract, order)
        quantity = order.number("totalQuantity") or ZERO
        if quantity <= ticket.filled:
            raise Refused(201, f"Order rejected - reason:{ticket.filled} have been filled already.")
        kept = {name: ticket.order.get(name) for name in ("ocaGroup", "ocaType") if not order.get(name)}
        moved = any(order.get(name) != ticket.order.get(name) for name in ("goodAfterTime", "goodTillDate"))
        ticket.order = order.changed(**kept) if ticket.order.get("ocaGroup") else order
        ticket.quantity = quantity
        ticket.best = None
        if not ticket.transmitted:
            if order.flag("transmit"):
                self._enter(self._family(ticket))
            return ticket
        if moved:
            ticket.good = False
            self._schedule(ticket)
        self.listener.changed(ticket)
        self._arrive(ticket)
        return ticket

    def _family(self, ticket: Ticket) -> Iterable[Ticket]:
        """Give what is transmitted with an order: its parent and its siblings, parents first."""
        root = ticket.parent or ticket
        family = [root, *(each for each in self.tickets.values() if each.parent is root)]
        waiting = [each for each in family if each.live and not each.transmitted]
        return waiting if ticket in waiting else [*waiting, ticket]

    def _to_close(self, child: Ticket) -> Decimal:
        """Give what a child may still fill: what its parent has opened and its group has not closed yet."""
        parent, group = child.parent, child.order.get("ocaGroup")
        if parent is None:
            return child.remaining
        closed = sum(
            each.filled
            for each in self.tickets.values()
            if each.parent is parent and (each is child or each.order.get("ocaGroup") == group)
        )
        return parent.filled - closed

    def _able(self, ticket: Ticket) -> Decimal:
        """Give what of an order may fill now."""
        return max(ZERO, min(ticket.remaining, self._to_close(ticket)))

    def _children(self, ticket: Ticket) -> list[Ticket]:
        return [each for each in self.tickets.values() if each.parent is ticket and each.live]

    def _enter(self, tickets: Iterable[Ticket]) -> None:
        """Put orders to the market: all are accepted before any meets a price, so that none fills too early."""
        entering = list(tickets)
        for ticket in entering:
            ticket.transmitted = True
            self._schedule(ticket)
            parent = ticket.parent
            if parent is not None and not ticket.order.get("ocaGroup"):
                ticket.order = ticket.order.changed(ocaGroup=str(parent.perm_id), ocaType=3)
            ticket.status = "Inactive" if ticket.held else "PreSubmitted" if self._waits(ticket) else "Submitted"
            if (quote := self.market.quote(ticket.contract.con_id)) is not None:
                self._trail(ticket, quote)
            self.listener.accepted(ticket)
        for ticket in entering:
            if ticket.live:  # a child may have filled, or been cancelled, with its parent
                self._arrive(ticket)

    def _schedule(self, ticket: Ticket) -> None:
        """Come back when an order begins to be good, and when it ends to be."""
        now = self.clock.now()
        for name, action in (("goodTillDate", self._expire), ("goodAfterTime", self._begin)):
            if at := ticket.order.get(name):
                self.clock.later(max(0.0, (moment(at, "UTC") - now).total_seconds()), partial(action, ticket, at))

    def _expire(self, ticket: Ticket, at: str) -> None:
        if ticket.order.get("tif") == "GTD" and ticket.order.get("goodTillDate") == at:
            self.cancel(ticket, "expired")

    def _begin(self, ticket: Ticket, at: str) -> None:
        if ticket.order.get("goodAfterTime") != at:
            return  # it was changed meanwhile
        ticket.good = True
        if ticket.live:
            self._activate(ticket)

    def _activate(self, ticket: Ticket) -> None:
        if not self._waits(ticket) and not ticket.held:
            ticket.status = "Submitted"
        self.listener.changed(ticket)
        self._arrive(ticket)

    def _arrive(self, ticket: Ticket) -> None:
        """Let an order meet the price that there is."""
        quote = self.market.quote(ticket.contract.con_id)
        if ticket.held:
            return
        if quote is not None and ticket.live:
            self._adjust(ticket, quote)
            self._trail(ticket, quote)
            self._meet(ticket, quote, None)
        self._at_once(ticket)

    def _at_once(self, ticket: Ticket) -> None:
        if ticket.live and ticket.order.get("tif") in ("IOC", "FOK") and not self.holds:
            self.cancel(ticket, "could not be filled at once")

    def _waits(self, ticket: Ticket) -> bool:
        """Tell whether an order rests at the broker and not at the exchange."""
        order, parent = ticket.order, ticket.parent
        return (
            (parent is not None and not parent.filled)
            or (order.kind in STOPS | TOUCHES and not ticket.triggered)
            or order.kind in AT_CLOSE
            or self.outside(ticket)
            or self.early(ticket)
        )

    def outside(self, ticket: Ticket) -> bool:
        """Tell whether an order waits for the market to open."""
        if self.market.phase == "open":
            return False
        return not ticket.order.flag("outsideRth") or ticket.order.get("tif") == "OPG"

    def early(self, ticket: Ticket) -> bool:
        """Tell whether an order is not good yet."""
        after = ticket.order.get("goodAfterTime")
        return after != "" and not ticket.good and moment(after, "UTC") > self.clock.now()

    def _adjust(self, ticket: Ticket, quote: Quote) -> None:
        """Make of a stop what it is to become, once, when its trigger price has traded."""
        order, trigger = ticket.order, ticket.order.number("triggerPrice")
        if trigger is None or order.get("adjustedOrderType") in NOT_ADJUSTED or ticket.triggered:
            return
        if quote.halted or self.outside(ticket) or (ticket.parent is not None and not ticket.parent.filled):
            return
        if quote.last > trigger if order.buys else quote.last < trigger:
            return
        distance = order.number("adjustedTrailingAmount")
        percent = order.integer("adjustableTrailingUnit") == BY_PERCENT
        ticket.order = order.changed(
            orderType=order.get("adjustedOrderType"),
            auxPrice=0 if percent else distance,
            trailingPercent=distance if percent else "",
            trailStopPrice=order.number("adjustedStopPrice"),
            **dict.fromkeys(
                ("adjustedOrderType", "triggerPrice", "adjustedStopPrice", "adjustedTrailingAmount"), ""
            ),
        )
        ticket.best = None
        self.listener.changed(ticket)

    def _trail(self, ticket: Ticket, quote: Quote) -> None:
        if not ticket.order.kind.startswith("TRAIL") or ticket.triggered:
            return
        if ticket.parent is not None and not ticket.parent.filled:
            return
        if ticket.best is None:
            ticket.best = _best(ticket.order) or quote.last
        ticket.best = (min if ticket.order.buys else max)(ticket.best, quote.last)

    def _meet(self, ticket: Ticket, quote: Quote, room: Decimal | None) -> Decimal:
        """Trigger and fill an order as far as the price allows; give what it took."""
        order, buys = ticket.order, ticket.order.buys
        if quote.halted or order.kind in AT_CLOSE or self.outside(ticket) or self.early(ticket):
            return ZERO
        if ticket.parent is not None and not ticket.parent.filled:
            return ZERO
        if order.kind in STOPS | TOUCHES and not ticket.triggered:
            level, up = ticket.stop, buys == (order.kind in STOPS)
            if level is None or not (quote.last >= level if up else quote.last <= level):
                return ZERO
            ticket.triggered = True
        if ticket.status == "PreSubmitted" and not self._waits(ticket):
            ticket.status = "Submitted"
            self.listener.changed(ticket)
        if self.holds:
            return ZERO
        price, limit = quote.side(buys=buys), ticket.limit
        if limit is not None and not (price <= limit if buys else price >= limit):
            price = quote.last
            if not (price <= limit if buys else price >= limit):
                return ZERO
        quantity = self._able(ticket)
        if room is not None:
            if order.get("tif") == "FOK" and room < quantity:
                return ZERO
            quantity = min(quantity, room)
        if quantity <= ZERO:
            return ZERO
        before = ticket.filled
        for part in self.listener.parts(ticket, quantity):
            if ticket.live:
                self.fill(ticket, part, price)
        return ticket.filled - before

    def _group(self, ticket: Ticket, quantity: Decimal, *, done: bool) -> None:
        """Do to a one-cancels-all group what its type says."""
        group = ticket.order.get("ocaGroup")
        if not group:
            return
        others = [each for each in self.working() if each is not ticket and each.order.get("ocaGroup") == group]
        reduces = ticket.order.integer("ocaType") in (2, 3)
        for other in others:
            if other.account != ticket.account or not other.live:
                continue
            if reduces and not done and other.remaining > quantity:
                other.quantity -= quantity
                self.listener.changed(other)
            else:
                self.cancel(other, "one cancels all")


def _check_adjustment(order: WireOrder) -> None:
    """Raise Refused where a stop can't become what it is to become."""
    if order.get("adjustedOrderType") in NOT_ADJUSTED:
        return
    if order.kind != "STP" or order.get("adjustedOrderType").upper() != "TRAIL":
        raise Refused(201, "Order rejected - reason:The adjusted order type is invalid for this order.")
    if any(not order.number(name) for name in ("triggerPrice", "adjustedStopPrice", "adjustedTrailingAmount")):
        raise Refused(463, "You must enter a valid stop price.")
    if order.integer("adjustableTrailingUnit") not in (0, BY_PERCENT):
        raise Refused(201, "Order rejected - reason:The trailing unit must be 0 (amount) or 100 (percent).")


def _best(order: WireOrder) -> Decimal | None:
    """Give the price at which a trailing stop would be where the client has put it; None where it has not."""
    stop, percent, distance = (order.number(name) for name in ("trailStopPrice", "trailingPercent", "auxPrice"))
    sign = -1 if order.buys else 1
    if stop is None:
        return None
    return stop + sign * (distance or ZERO) if percent is None else stop / (1 - sign * percent / 100)

"""Orders out and their reports in: what TWS says in order messages counts, what a code says is looked up.

Nothing waits between `submit` and the bytes on the socket: the contract is known or named by its symbol, and the
order id is counted up in memory. What was sent is never sent again; an order that nobody has confirmed is found by
its `orderRef` in a read-back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sigma9_core.clock import monotonic, wall_now
from sigma9_core.contracts import BrokerReport, ReportKind
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import ApprovedOrder, OrderRequest
from sigma9_plugins.brokers.ibkr.book import Book, End, Known, learn
from sigma9_plugins.brokers.ibkr.codes import action, order_action, refuses, says
from sigma9_plugins.brokers.ibkr.contracts import Contracts
from sigma9_plugins.brokers.ibkr.executions import Executions
from sigma9_plugins.brokers.ibkr.figures import quantity
from sigma9_plugins.brokers.ibkr.ids import OrderNumbers
from sigma9_plugins.brokers.ibkr.lanes import LaneName, Parcel
from sigma9_plugins.brokers.ibkr.mapping import CONFIRMED, INACTIVE, adjusts, fault, same_terms, state_of, to_ib
from sigma9_plugins.brokers.ibkr.wire import Wire

log = logging.getLogger("sigma9.ibkr")

FIXED = ("symbol", "side", "order_type", "time_in_force", "outside_rth")
"""What a change can't change."""


PROTECTING = ("stop", "stop_limit", "trailing_stop")
SWALLOWED = 2.0
"""Seconds before a code 100 in which what has left may be what it was about."""
STUCK_AFTER = 5.0
"""Seconds without any word after which a unit counts as one that did not arrive whole."""


class Orders:
    """Sends, changes and cancels, and makes reports; it outlives connections, each of which is attached."""

    def __init__(
        self,
        contracts: Contracts,
        numbers: OrderNumbers,
        report: Callable[[BrokerReport], None],
        look: Callable[[Known], None],
        patience: float,
    ) -> None:
        """Store; `look` is called for an order that is in doubt, which is then to be read back."""
        self.book = Book()
        self.account = ""
        self.executions = Executions(self.book, report, self._acknowledge, look, patience)
        self._contracts = contracts
        self._numbers = numbers
        self._report = report
        self._look = look
        self._wire: Wire | None = None
        self._beside: Wire | None = None
        """A connection under the other client id of ours, by which its orders are changed and cancelled."""
        self.advice: dict[int, str] = {}
        """What a person can do about the orders of a client id that is not connected."""

    def attach(self, wire: Wire, account: str) -> None:
        """Use a connection from here on."""
        self._wire, self.account = wire, account
        self._listen(wire)

    def attach_beside(self, wire: Wire) -> None:
        """Use a second connection, for what was sent under its client id."""
        self._beside = wire
        self._listen(wire)

    def _listen(self, wire: Wire) -> None:
        wire.on(
            {
                "openOrder": self._on_open_order,
                "orderStatus": self._on_status,
                "execDetails": self._on_execution,
                "commissionReport": self.executions.on_commission,
                "error": partial(self._on_error, wire),
            }
        )
        wire.on(
            {
                "openOrder": self._heard,
                "orderStatus": self._heard,
                "execDetails": lambda _request, _contract, execution: self._heard(execution.orderId),
                "nextValidId": lambda number: self._heard(number - 1),
            }
        )

    def detach(self) -> None:
        """Learn that the connection is gone: what has not left never will."""
        wire, self._wire, self._beside = self._wire, None, None
        self.executions.flush()
        if wire is not None:
            self._take_back(wire, "it had not left when the connection ended")

    def cut_off(self) -> None:
        """Learn that TWS has lost IB's servers: what has not left would be late, and never leaves; cancels do."""
        if self._wire is not None:
            self._take_back(self._wire, "it had not left when TWS lost IB's servers")

    # --- out ---------------------------------------------------------------------------------------------------

    def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Send one order or a group as one unit: all but the last wait at TWS for the last."""
        wire = self._connected()
        self._check_new(orders)
        numbers = {order.order_id: self._numbers.next() for order in orders}
        knowns: list[Known] = []
        calls: list[tuple[str, tuple[Any, ...]]] = []
        linked = any(order.request.parent_id in numbers for order in orders)
        for index, order in enumerate(orders):
            request, number = order.request, numbers[order.order_id]
            parent = self._parent(request.parent_id, numbers, wire)
            contract = self._contracts.contract(wire.library, request.symbol)
            written = to_ib(
                wire.library,
                request,
                order.order_id,
                account=self.account,
                number=number,
                parent=parent,
                transmit=not linked or index == len(orders) - 1,
            )
            calls.append(("placeOrder", (number, contract, written)))
            knowns.append(
                Known(
                    order.order_id,
                    wire.client_id,
                    number,
                    parent=parent,
                    quantity=request.quantity,
                    request=request,
                    group=() if written.transmit else tuple(numbers),
                )
            )
        for known in knowns:
            self.book.add(known)
        parcel = wire.put(self._lane([order.request for order in orders]), *calls)
        for known, call in zip(knowns, calls, strict=True):
            known.parcel, known.call = parcel, None if parcel.left else call

    def replace(self, order: ApprovedOrder) -> None:
        """Change quantity and prices of a working order, under its own number."""
        known, wire = self._mine(order.order_id)
        request = order.request
        if not known.acknowledged:
            # To IB it is the same message as the order: where that never arrived, it would be a new one.
            raise BrokerRefused(f"order {known.order_id} is not confirmed yet: change it once it is there")
        if known.request is not None:
            fixed = [name for name in FIXED if getattr(request, name) != getattr(known.request, name)]
            if fixed:
                raise BrokerRefused(
                    f"the {' and '.join(fixed)} of order {known.order_id} can't be changed: cancel it"
                )
        wrong = fault(request)
        if wrong is None and request.quantity <= known.counted:
            wrong = f"{known.counted} of it have filled, so its quantity can't become {request.quantity}"
        if wrong is not None:
            raise BrokerRefused(f"order {known.order_id} stays as it is: {wrong}")
        written = to_ib(
            wire.library,
            request,
            known.order_id,
            account=self.account,
            number=known.number,
            parent=known.parent,
        )
        contract = self._contracts.contract(wire.library, request.symbol)
        known.change, known.objection = request, None
        known.changes.append(wire.put(self._lane([request]), ("placeOrder", (known.number, contract, written))))

    def cancel(self, order_id: str) -> None:
        """Cancel an order of ours ahead of everything that waits; one that has not left is taken back.

        An end that was told keeps no cancel back: who asks for it has read back that the order is there.
        """
        known, wire = self._mine(order_id, ended=True)
        if known.parcel is not None and known.waiting:
            self._withdraw(wire, known, known.parcel)
            return
        for parcel in known.changes:  # it would come behind the cancel, and bring to life what has ended
            wire.lanes.drop(parcel)
        self._forget_change(known)
        known.cancelling = wire.put("urgent", ("cancelOrder", (known.number, "")))

    # --- in ----------------------------------------------------------------------------------------------------

    def _on_execution(self, request: int, contract: Any, execution: Any) -> None:
        self.executions.on_execution(request, contract, execution, self.account)

    def _heard(self, number: int, *_: Any) -> None:
        """Stay above every order id that IB tells, whoever has it: it refuses one below (code 103)."""
        self._numbers.heard(number)

    def _on_open_order(self, number: int, _contract: Any, order: Any, state: Any) -> None:
        if order.whatIf or not self._is_mine(order.account):
            return
        known = learn(self.book, order, number)
        if known is None:
            return
        known.parent = order.parentId or known.parent
        known.quantity = quantity(order.totalQuantity)
        change = known.change
        if change is not None and same_terms(change, order, known.request) and state.status in CONFIRMED:
            known.request, known.adjusted = change, False
            self._forget_change(known)
            self._report(BrokerReport("replaced", known.order_id, wall_now(), known.broker_order_id))
        if not known.adjusted and state.status in CONFIRMED and adjusts(known.request, order):
            self._acknowledge(known, wall_now())
            known.adjusted, known.request = True, None if known.request is None else known.request.adjusted()
            self._report(BrokerReport("adjusted", known.order_id, wall_now(), known.broker_order_id))
        self._stands(known, state.status)

    def _on_status(
        self,
        number: int,
        status: str,
        filled: float,
        _remaining: float,
        _average: float,
        perm_id: int,
        _parent: int,
        _last: float,
        client_id: int,
        *more: Any,
    ) -> None:
        known = self.book.find(perm_id=perm_id, client_id=client_id, number=number)
        if known is None:
            return
        self.book.name(known, perm_id, client_id, number)
        known.told = max(known.told, quantity(filled))
        known.why_held = str(more[0]) if more else ""
        self._stands(known, status)
        if known.told > known.counted:
            self._look(known)

    def _stands(self, known: Known, status: str) -> None:
        """Take a status that IB tells of an order."""
        state = state_of(status)
        if status in CONFIRMED and known.end is not None:
            if known.end != "filled" and not known.back:
                log.warning("order %s is %s, and IB says %s: it is read back", known.order_id, known.end, status)
                known.back = True  # or it was late
                self._look(known)
        elif status in CONFIRMED:
            self._works(known)
        elif state == "cancelled":
            self.executions.flush(known)
            self._ends(known, "cancelled", known.said)
        elif state == "filled":
            self._acknowledge(known, wall_now())
            known.end = "filled"
        elif state == "held" and known.end is None:
            known.inactive = True
            if not known.held:
                self._look(known)  # held, or turned down: a code may say more by then

    def _on_error(self, wire: Wire, number: int, code: int, text: str, *_: Any) -> None:
        """Take a code about an order of ours: what it asks for stands in the table of codes."""
        if action(code) == "slow_down":
            self._look_at_newest()
            return
        known = self.book.find(client_id=wire.client_id, number=number)
        if known is None or number <= 0:
            return
        words = says(code, text)
        asked = order_action(code, acknowledged=known.acknowledged, changing=known.changing)
        log.warning("order %s: %s", known.order_id, words)
        if asked != "log":
            known.said = words
        known.refused = known.refused or (refuses(code, inactive=known.inactive) and known.change is None)
        match asked:
            case "reject":
                if known.end is None:
                    self._ends(known, "rejected", words)
            case "keep_change_off" if len(known.changes) == 1:
                self._keeps(known, words)
                self._look(known)
            case "keep_change_off" | "read_back" | "ask_for_ids":
                if asked == "ask_for_ids":
                    wire.put("questions", ("reqIds", (1,)))  # the answer lifts ours, and so does the read-back
                known.objection = words if known.changing else None  # of several it is not told which is meant
                self._look(known)

    def _look_at_newest(self) -> None:
        """Have read back what has just left and was not confirmed: one of these messages was swallowed."""
        since = monotonic() - SWALLOWED
        for known in self.book.open():
            cancelling = known.cancelling
            known.cancel_again = known.cancel_again or (cancelling is not None and _left_since(cancelling, since))
            changed = known.changing and _left_since(known.changes[-1], since)
            placed = not known.acknowledged and known.parcel is not None and _left_since(known.parcel, since)
            if placed or changed or known.cancel_again:
                self._look(known)

    def settle(self, known: Known, end: End, reason: str | None) -> None:
        """Take the end of an order that a read-back has shown."""
        if known.end is None:
            self.executions.flush(known)
            if end == "filled":
                known.end = "filled"
            else:
                self._ends(known, end, reason)

    def shown(self, known: Known, status: str, order: Any, asked_at: float) -> None:
        """Take the status and the terms with which a read-back that was asked for at some time lists an order."""
        if known.end is None and status == INACTIVE:
            self.inactive(known)
        elif known.end is None and status in CONFIRMED:
            self._works(known)
        elif known.end is None and not known.held:
            self._acknowledge(known, wall_now())
        elif status in CONFIRMED and known.end != "filled" and known.ended_at < asked_at:
            why = f"it was told as {known.end}, and IB lists it as {status}"
            log.warning("order %s works again: %s", known.order_id, why)
            known.end, known.acknowledged = None, True
            known.inactive = known.held = known.refused = known.back = False
            report = BrokerReport("revived", known.order_id, wall_now(), known.broker_order_id, reason=why)
            self._report(report)
        if known.end is None:
            self._compare(known, order)

    def inactive(self, known: Known) -> None:
        """Take that IB has an order and does not work it: where a code has turned it down it is rejected.

        Else it is in doubt, and may come to work, such as a short sale once its shares are located.
        """
        known.inactive = True
        if known.refused:
            self._ends(known, "rejected", known.said)
        elif not known.held:
            known.held = True
            words = "; ".join(filter(None, (known.why_held and f"for {known.why_held}", known.said)))
            reason = f"IB holds it as inactive ({words or 'it does not say why'})"
            report = BrokerReport("held", known.order_id, wall_now(), known.broker_order_id, reason=reason)
            self._report(report)

    def _compare(self, known: Known, order: Any) -> None:
        """Take with which terms a read-back shows what has not ended; a change that is made was told."""
        wire = self._wire_of(known)
        if known.cancel_again and wire is not None:
            known.cancel_again = False
            known.cancelling = wire.put("urgent", ("cancelOrder", (known.number, "")))
        change, words = known.change, known.objection
        if not known.changing or change is None or words is None:
            return
        if not same_terms(change, order, known.request):
            self._keeps(known, words)

    def release(self, shown: Collection[str]) -> None:
        """Cancel what may lie at TWS untransmitted: the first orders of a unit of which the last never arrived.

        Nobody would see it in a read-back, and a person could still transmit it. Where any order of the unit is
        there, or has filled, the last one has arrived; one that was turned down proves nothing.
        """
        wire = self._wire
        if wire is None or not wire.is_open:
            return
        for known in list(self.book.open()):
            if not known.group or known.client_id != wire.client_id or known.parcel is None or known.waiting:
                continue
            if monotonic() - max(known.parcel.left_at, known.released_at) < STUCK_AFTER:
                continue
            unit = [self.book.by_id(order_id) for order_id in known.group]
            if not any(
                each is None or each.acknowledged or each.held or each.counted or each.order_id in shown
                for each in unit
            ):
                log.warning("order %s may wait at TWS for one that never arrived: it is cancelled", known.order_id)
                known.released_at = monotonic()  # a cancel may be lost as well
                wire.put("urgent", ("cancelOrder", (known.number, "")))

    def may_change(self, known: Known) -> bool:
        """Tell whether IB lets us change and cancel an order: by a connection of the client that has sent it."""
        return self._wire_of(known) is not None

    def _wire_of(self, known: Known) -> Wire | None:
        wires = (wire for wire in (self._wire, self._beside) if wire is not None and wire.is_open)
        return next((wire for wire in wires if wire.client_id == known.client_id), None)

    # --- inside ------------------------------------------------------------------------------------------------

    def _withdraw(self, wire: Wire, known: Known, parcel: Parcel) -> None:
        """Take back an order that has not left, and of its unit what can't stand without it.

        That is all of it where the order has children there, or is the last that would protect its entry: an entry
        never leaves without the stop that it was decided with. Else the others leave in their turn.
        """
        unit = [each for each in self.book.open() if each.parcel is parcel]
        left = [each for each in unit if each is not known]
        bare = _protects(known) and not any(map(_protects, left))
        if bare or any(each.parent == known.number for each in left):
            left = []
        calls = [each.call for each in left if each.call is not None]
        if calls:
            calls[-1][1][-1].transmit = True
            wire.rewrite(parcel, *calls)
            for each in left:
                each.group = tuple(name for name in each.group if name != known.order_id)
            left[-1].group = ()
        else:
            wire.lanes.drop(parcel)
        for each in unit:
            if each not in left:
                each.parcel = each.call = None
                why = "" if each is known else f", with {known.order_id}, which it can't stand without"
                self._ends(each, "cancelled", f"cancelled before it was sent{why}")

    def _take_back(self, wire: Wire, why: str) -> None:
        """End every order that has not left, and give up every change of one that has not."""
        for known in self.book.open():
            waiting = [parcel for parcel in known.changes if not parcel.left]
            for parcel in waiting:
                (self._wire_of(known) or wire).lanes.drop(parcel)
            if waiting:
                self._keeps(known, why)
            if known.parcel is not None and known.waiting:
                wire.lanes.drop(known.parcel)
                known.parcel = known.call = None
                self._ends(known, "cancelled", why)

    def _acknowledge(self, known: Known, ts: datetime) -> None:
        if not known.acknowledged or known.held:
            known.acknowledged, known.held = True, False
            self._report(BrokerReport("accepted", known.order_id, ts, known.broker_order_id))

    def _works(self, known: Known) -> None:
        known.inactive = known.refused = False
        self._acknowledge(known, wall_now())

    def _keeps(self, known: Known, words: str) -> None:
        """Tell that a change was refused: the order stands as it was."""
        self._forget_change(known)
        self._report(BrokerReport("unchanged", known.order_id, wall_now(), known.broker_order_id, reason=words))

    @staticmethod
    def _forget_change(known: Known) -> None:
        known.change, known.changes, known.objection = None, [], None

    def _ends(self, known: Known, kind: ReportKind, reason: str | None) -> None:
        if known.end is not None:
            return
        known.end = "rejected" if kind == "rejected" else "expired" if kind == "expired" else "cancelled"
        known.ended_at = monotonic()
        self._forget_change(known)
        self._report(BrokerReport(kind, known.order_id, wall_now(), known.broker_order_id, reason=reason))

    def _connected(self) -> Wire:
        if self._wire is None or not self._wire.is_open:
            raise BrokerRefused("not connected to TWS: nothing was sent")
        return self._wire

    def _is_mine(self, account: str) -> bool:
        return not account or not self.account or account == self.account

    def _check_new(self, orders: Sequence[ApprovedOrder]) -> None:
        seen: set[str] = set()
        for order in orders:
            if order.order_id in self.book or order.order_id in seen:
                raise BrokerError(f"order {order.order_id} was submitted before: nothing was sent; read it back")
            seen.add(order.order_id)

    def _parent(self, parent_id: str | None, group: dict[str, int], wire: Wire) -> int:
        """Give the number of a parent that works still, or goes out with its children.

        Raise BrokerRefused for one of another client: by its number IB would take another order for the parent.
        """
        if parent_id is None:
            return 0
        if parent_id in group:
            return group[parent_id]
        known = self.book.by_id(parent_id)
        if known is None or known.end is not None:
            return 0
        if known.client_id != wire.client_id:
            raise BrokerRefused(
                f"order {parent_id} was sent by client {known.client_id}, and this is client {wire.client_id}: IB "
                "takes no order of one client as the child of another's; nothing was sent"
            )
        return known.number

    def _lane(self, requests: Sequence[OrderRequest]) -> LaneName:
        """Choose by what they are for; a child whose parent waits still leaves behind it."""
        if all(request.intent == "kill" for request in requests):
            return "urgent"
        for request in requests:
            parent = None if request.parent_id is None else self.book.by_id(request.parent_id)
            if parent is not None and parent.waiting and parent.parcel is not None:
                return parent.parcel.lane
        return "orders" if any(request.intent == "entry" for request in requests) else "exits"

    def _mine(self, order_id: str, *, ended: bool = False) -> tuple[Known, Wire]:
        """Give an order, and the connection that may change it; raise BrokerError or BrokerRefused.

        One that has filled is never given, one that has `ended` as far as was told only where that is asked for.
        """
        known = self.book.by_id(order_id)
        if known is None:
            raise BrokerError(f"no order of ours has the id {order_id}")
        if known.end is not None and not (ended and known.end != "filled"):
            raise BrokerRefused(f"order {order_id} is {known.end} already")
        main, wire = self._connected(), self._wire_of(known)
        if wire is None:
            advice = self.advice.get(known.client_id, "cancel it in TWS")
            raise BrokerError(
                f"order {order_id} was sent by client {known.client_id}, and this is client {main.client_id}: "
                f"IB lets only the client that has sent an order change or cancel it; {advice}"
            )
        return known, wire


def _left_since(parcel: Parcel, moment: float) -> bool:
    return parcel.left and parcel.left_at >= moment


def _protects(known: Known) -> bool:
    """Tell whether it is a stop of its entry."""
    request = known.request
    return request is not None and (
        request.protective or (request.intent == "reduce" and request.order_type in PROTECTING)
    )

"""The life of an order: one table, status × message → status; what is not in it is illegal and is named.

A message that adds nothing (a second `accepted`) changes nothing. A fill always counts, even after a cancel:
the exchange's word on a trade beats its word on the order. What has ended works again by one message alone,
`revived`: a read-back that was asked for after the end shows it working; a report may have been late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from sigma9_core.contracts import OrderReport
from sigma9_core.models import ZERO, Fill, OrderRequest, OrderStatus, OrderView, Verdict

Message = Literal[OrderReport, "lost", "refused", "absent"]
"""What a broker reports, and what we conclude ourselves: `lost` (sent, no answer), `refused` (surely not taken),
`absent` (the read-back finds no trace of it), `revived` (it shows what has ended as working)."""

PRICES: Final = ("limit_price", "stop_price", "trail_amount", "trail_percent")

GRAIN: Final = Decimal("1e-8")
"""Average prices are rounded to it; positions and cash are worked out from the fills, not from averages."""

_S = OrderStatus
WORKING: Final = frozenset((_S.SUBMITTED, _S.ACCEPTED, _S.PARTIALLY_FILLED, _S.REPLACED, _S.UNKNOWN))
"""May still fill."""
ENDED: Final = frozenset((_S.FILLED, _S.CANCELLED, _S.REJECTED, _S.EXPIRED, _S.BUSTED, _S.RISK_REJECTED))
REVIVABLE: Final = frozenset((_S.CANCELLED, _S.REJECTED, _S.EXPIRED, _S.BUSTED))
"""Ended, and perhaps not: what has filled, or was never sent, does not come back."""


def _table() -> Mapping[tuple[OrderStatus, Message], OrderStatus | None]:
    """Build the table; None means: legal, and nothing changes."""
    table: dict[tuple[OrderStatus, Message], OrderStatus | None] = {}
    for status in WORKING:
        begun = status in (_S.PARTIALLY_FILLED, _S.REPLACED)
        table[status, "accepted"] = None if begun or status is _S.ACCEPTED else _S.ACCEPTED
        table[status, "filled"] = _S.PARTIALLY_FILLED  # `Order.take` says FILLED where nothing remains
        table[status, "cancelled"] = _S.CANCELLED
        table[status, "rejected"] = _S.REJECTED  # `Order.take` says CANCELLED where some of it has filled
        table[status, "expired"] = _S.EXPIRED
        table[status, "replaced"] = _S.REPLACED  # the same where nothing remains of the new quantity
        table[status, "unchanged"] = _S.UNCHANGED
        table[status, "adjusted"] = _S.REPLACED
        table[status, "busted"] = _S.BUSTED
        table[status, "lost"] = _S.UNKNOWN if status is _S.SUBMITTED else None
        table[status, "held"] = _S.UNKNOWN
    table[_S.SUBMITTED, "refused"] = _S.REJECTED
    table[_S.UNKNOWN, "refused"] = _S.REJECTED
    table[_S.SUBMITTED, "absent"] = _S.REJECTED
    table[_S.UNKNOWN, "absent"] = _S.REJECTED
    for status in (_S.FILLED, _S.CANCELLED, _S.REJECTED, _S.EXPIRED, _S.BUSTED):
        table[status, "filled"] = _S.PARTIALLY_FILLED
        table[status, "busted"] = _S.BUSTED
        table[status, "adjusted"] = table[status, "unchanged"] = None  # its end was faster
    # The end of an order is often told twice: by the answer to a cancel and by the order's own status.
    table[_S.CANCELLED, "cancelled"] = None
    table[_S.REJECTED, "rejected"] = None
    table[_S.REJECTED, "cancelled"] = None
    table[_S.EXPIRED, "expired"] = None
    table[_S.EXPIRED, "cancelled"] = None
    table[_S.FILLED, "accepted"] = None
    for status in REVIVABLE:
        table[status, "revived"] = _S.ACCEPTED
    return table


TRANSITIONS: Final = _table()


def standing(status: OrderStatus, event: OrderStatus) -> OrderStatus:
    """Tell where an order stands after an event: a late fill revives nothing, a bust ends nothing that works.

    What has ended is told as `accepted` only where it works again; a change that was not made changes nothing.
    """
    late = event is _S.PARTIALLY_FILLED and status in ENDED
    kept = event is _S.UNCHANGED or (event is _S.BUSTED and status in WORKING)
    return status if late or kept else event


class IllegalMessage(Exception):
    """A broker said something that the order's status does not allow; the order stays as it is."""


@dataclass(slots=True)
class Order:
    """One order and what became of it; it lives on the money lane and changes through `take` alone."""

    order_id: str
    request: OrderRequest
    verdicts: tuple[Verdict, ...]
    created_at: datetime
    status: OrderStatus = OrderStatus.SUBMITTED
    broker_order_id: str | None = None
    filled: Decimal = ZERO
    average_price: Decimal | None = None
    last_quantity: Decimal | None = None
    last_price: Decimal | None = None
    commission: Decimal | None = None
    reason: str | None = None
    rule: str | None = None
    recovered: bool = False
    cancel_asked: bool = False
    held: bool = False
    """The broker has it and does not work it; it may come to."""
    replacement: OrderRequest | None = None
    """What a modify has asked for, until the broker has confirmed it."""
    unchanged: OrderRequest | None = None
    """The newest change, where it was not made."""
    met: Decimal | None = None
    """What the market showed on the other side when it was decided; None after a restart."""
    _view: OrderView | None = field(default=None, repr=False)
    _body: tuple[OrderView, Mapping[str, Any]] | None = field(default=None, repr=False, compare=False)

    @property
    def working(self) -> bool:
        """Tell whether it may still fill."""
        return self.status in WORKING

    @property
    def remaining(self) -> Decimal:
        """Give the quantity that has not filled; zero once it has ended."""
        return max(ZERO, self.request.quantity - self.filled) if self.working else ZERO

    def take(
        self,
        message: Message,
        *,
        fill: Fill | None = None,
        reason: str | None = None,
        wrong: Sequence[Fill] = (),
    ) -> OrderStatus | None:
        """Apply a message; give the event to publish, or None where nothing changed.

        `wrong` are fills that were counted, and in whose place this one comes.
        Raise IllegalMessage where the table has no such row.
        """
        try:
            target = TRANSITIONS[self.status, message]
        except KeyError:
            raise IllegalMessage(f"order {self.order_id} is {self.status} and can't be {message}") from None
        if target is None or (message == "adjusted" and self.request.adjustment is None):
            return None
        if (message == "held" and self.held) or (message == "revived" and self.filled >= self.request.quantity):
            return None
        if message == "unchanged" and self.replacement is None:
            return None  # it is known
        if self.held and message not in ("busted", "unchanged"):
            self.held, self.reason = False, None  # why it was held is over
        self.held = self.held or message == "held"
        self._view = None
        self.last_quantity = self.last_price = None
        if message == "filled":
            if fill is None:
                raise IllegalMessage(f"order {self.order_id}: a fill without an execution")
            return self._fill(fill, wrong)
        if message == "replaced":
            made = self.replacement or self.unchanged  # which was given up, and is made after all
            if made is not None:
                self.request, self.replacement, self.unchanged = made, None, None
            self.reason = None  # what was said of a change before is none of this one
            if self.filled >= self.request.quantity:  # changed down to what had filled meanwhile
                target = OrderStatus.FILLED
        elif message == "unchanged":
            self.replacement, self.unchanged = None, self.replacement
            reason = f"the change was not made: {reason or 'the broker gives no reason'}"
        elif message == "adjusted":
            self.request = self.request.adjusted()
        elif target is OrderStatus.REJECTED and self.filled:
            target = OrderStatus.CANCELLED  # who refuses the rest of an order has cancelled it
        elif message == "revived":
            self.cancel_asked = False  # whatever was asked for did not end it
        self.status = standing(self.status, target)
        self.reason = reason or self.reason
        return target

    def view(self) -> OrderView:
        """Show it as clients see it."""
        if self._view is None:
            ask = self.request
            self._view = OrderView.model_construct(
                status=self.status,
                order_id=self.order_id,
                broker_order_id=self.broker_order_id,
                symbol=ask.symbol,
                side=ask.side,
                quantity=ask.quantity,
                order_type=ask.order_type,
                limit_price=ask.limit_price,
                stop_price=ask.stop_price,
                trail_amount=ask.trail_amount,
                trail_percent=ask.trail_percent,
                good_after=ask.good_after,
                adjustment=ask.adjustment,
                time_in_force=ask.time_in_force,
                outside_rth=ask.outside_rth,
                filled_quantity=self.filled,
                average_price=self.average_price,
                last_quantity=self.last_quantity,
                last_price=self.last_price,
                commission=self.commission,
                strategy=ask.strategy,
                source=ask.source,
                parent_id=ask.parent_id,
                oca_group=ask.oca_group,
                reason=self.reason or ask.reason,
                rule=self.rule,
                verdicts=self.verdicts,
                recovered=self.recovered,
                foreign=False,
            )
        return self._view

    def body(self) -> Mapping[str, Any]:
        """Write it as JSON, as `state/orders` has it; what has not changed is not written again."""
        view = self.view()
        if self._body is None or self._body[0] is not view:
            self._body = (view, view.model_dump(mode="json"))
        return self._body[1]

    def possible(self) -> tuple[OrderView, ...]:
        """Show it as it may stand at the broker: as confirmed, and as a change that is on its way would make it.

        Where their prices differ both are shown, in one one-cancels-all group, since one of them is there.
        """
        now, change = self.view(), self.replacement
        if change is None:
            return (now,)
        if all(getattr(change, name) == getattr(self.request, name) for name in PRICES):
            return (now.model_copy(update={"quantity": max(now.quantity, change.quantity)}),)
        # The group and the lone order share one name space: a group can't be called like an order's id.
        group = {"oca_group": now.oca_group or self.order_id}
        terms = {name: getattr(change, name) for name in ("quantity", *PRICES)}
        return now.model_copy(update=group), now.model_copy(update=group | terms)

    def touch(self) -> None:
        """Forget the cached view after a field was set from outside `take`."""
        self._view = None

    def charge(self, more: Decimal) -> None:
        """Take a commission that was told after its fill."""
        self.commission = (self.commission or ZERO) + more
        self.touch()

    def _fill(self, fill: Fill, wrong: Sequence[Fill]) -> OrderStatus:
        cost = (self.average_price or ZERO) * self.filled + fill.price * fill.quantity
        self.filled += fill.quantity
        self.commission = (self.commission or ZERO) + fill.commission
        for each in wrong:
            cost -= each.price * each.quantity
            self.filled -= each.quantity
            self.commission -= each.commission
        self.average_price = (cost / self.filled).quantize(GRAIN)
        self.last_quantity, self.last_price = fill.quantity, fill.price
        if self.filled > self.request.quantity:  # a change has arrived, and its confirmation has not
            grown = self.replacement
            if grown is not None and grown.quantity >= self.filled:
                self.request, self.replacement = grown, None
            else:
                self.request = self.request.model_copy(update={"quantity": self.filled})
        event = OrderStatus.FILLED if self.filled >= self.request.quantity else OrderStatus.PARTIALLY_FILLED
        if self.working or event is OrderStatus.FILLED:
            self.status = event
        return event  # a fill after a cancel is published, and the rest stays cancelled

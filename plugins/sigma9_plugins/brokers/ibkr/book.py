"""The orders that this adapter knows, under every name that IB has for them; it outlives connections."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, get_args

from sigma9_core.models import ZERO, OrderRequest
from sigma9_core.money.ids import made_at
from sigma9_plugins.brokers.ibkr.lanes import Parcel
from sigma9_plugins.brokers.ibkr.mapping import broker_id

End = Literal["filled", "cancelled", "rejected", "expired"]
MOST: Final = 10_000
"""Orders in the book, where a server runs for months: then the older half of what has ended goes."""
ENDS: Final[Mapping[str, End]] = {end: end for end in get_args(End)}


@dataclass(slots=True, eq=False)
class Known:
    """One order that carries an id of ours."""

    order_id: str
    client_id: int
    number: int
    """IB's order id, in the session of the client that has sent it."""
    perm_id: int = 0
    parent: int = 0
    """IB's order id of its parent."""
    quantity: Decimal = ZERO
    """In all, as it was sent or told last."""
    request: OrderRequest | None = None
    """None where an earlier process has sent it."""
    acknowledged: bool = False
    inactive: bool = False
    """IB has said that it has it and does not work it; what that means a read-back decides."""
    why_held: str = ""
    """What IB holds it for, such as `locate`."""
    held: bool = False
    """It was told as held."""
    refused: bool = False
    """A code has said that IB does not take it, and it has not worked since."""
    end: End | None = None
    ended_at: float = 0.0
    """When its end was told; a read-back that was asked for before proves nothing."""
    back: bool = False
    """IB has said that it works after its end was told: a read-back is to decide."""
    told: Decimal = ZERO
    """What the order status says has filled."""
    executions: dict[str, Decimal] = field(default_factory=dict)
    """The quantities of its executions; one that was corrected is none any more."""
    said: str | None = None
    """The newest words of IB on it."""
    change: OrderRequest | None = None
    """A change that was sent and not confirmed."""
    changes: list[Parcel] = field(default_factory=list)
    """What its changes leave in; one that has left stays until IB has confirmed a change, or refused it."""
    objection: str | None = None
    """Words of IB that may refuse the change: what a read-back then shows decides."""
    adjusted: bool = False
    """IB has made of the stop what it was to become, and that was told."""
    cancelling: Parcel | None = None
    """What its newest cancel has left in, or will."""
    cancel_again: bool = False
    """That cancel may have been swallowed: where a read-back shows the order as working, it is sent again."""
    parcel: Parcel | None = None
    """What it leaves in, while it has not left."""
    call: tuple[str, tuple[Any, ...]] | None = None
    """The message that it leaves as, while it has not left."""
    group: tuple[str, ...] = ()
    """The orders that were sent as one unit with it, where it waits at TWS for the last of them."""
    released_at: float = 0.0
    """When it was last cancelled as one that may wait there in vain."""

    @property
    def counted(self) -> Decimal:
        """Give what its executions say has filled."""
        return sum(self.executions.values(), ZERO)

    @property
    def broker_order_id(self) -> str:
        """Name it as IB does."""
        return broker_id(self.perm_id, self.client_id, self.number)

    @property
    def changing(self) -> bool:
        """Tell whether its newest change has left, and IB has not said what became of it."""
        return self.change is not None and bool(self.changes) and self.changes[-1].left

    @property
    def waiting(self) -> bool:
        """Tell whether it has not left yet."""
        return self.parcel is not None and not self.parcel.left


class Book:
    """Finds orders by our id, by IB's permanent id, and by a client's order id."""

    def __init__(self) -> None:
        self.clients: Collection[int] = ()
        """The client ids that we send orders under."""
        self._by_id: dict[str, Known] = {}
        self._by_perm: dict[int, Known] = {}
        self._by_number: dict[tuple[int, int], Known] = {}

    def __contains__(self, order_id: str) -> bool:
        return order_id in self._by_id

    def add(self, known: Known) -> None:
        """Take an order."""
        if len(self._by_id) >= MOST:
            self._thin_out()
        self._by_id[known.order_id] = known
        self.name(known, known.perm_id, known.client_id, known.number)

    def is_ours(self, reference: str, client_id: int | None = None) -> bool:
        """Tell whether a reference is an order id of ours; other programs write references as well.

        It is where we have sent it, where a client of ours has, or by its form, which nobody else gives; of an
        order that has ended IB tells no client.
        """
        return reference != "" and (
            reference in self._by_id or client_id in self.clients or made_at(reference) is not None
        )

    def name(self, known: Known, perm_id: int, client_id: int, number: int) -> None:
        """Learn what IB calls it now; what it was called in an earlier session may be another order's by then."""
        if perm_id:
            known.perm_id = perm_id
            self._by_perm[perm_id] = known
        if number:
            if self._by_number.get((known.client_id, known.number)) is known:
                del self._by_number[known.client_id, known.number]
            known.client_id, known.number = client_id, number
            self._by_number[client_id, number] = known

    def by_id(self, order_id: str) -> Known | None:
        """Find it by our id."""
        return self._by_id.get(order_id)

    def find(self, *, perm_id: int = 0, client_id: int = -1, number: int = 0) -> Known | None:
        """Find it by IB's names; the permanent id counts for more."""
        known = self._by_perm.get(perm_id) if perm_id else None
        if known is None and number:
            known = self._by_number.get((client_id, number))
            if known is not None and perm_id and known.perm_id not in (0, perm_id):
                return None  # the number was given out again
        return known

    def by_broker_id(self, broker_order_id: str) -> Known | None:
        """Find it by the name that reports give it."""
        return next((each for each in self._by_id.values() if each.broker_order_id == broker_order_id), None)

    def open(self) -> Iterable[Known]:
        """Give those that have not ended, as far as is known."""
        return [each for each in self._by_id.values() if each.end is None]

    def _thin_out(self) -> None:
        """Forget the older half of what has ended; what IB still tells of it is found by a read-back."""
        ended = [each for each in self._by_id.values() if each.end is not None]
        gone = {*ended[: len(ended) // 2]}
        self._by_id = {name: each for name, each in self._by_id.items() if each not in gone}
        self._by_perm = {name: each for name, each in self._by_perm.items() if each not in gone}
        self._by_number = {name: each for name, each in self._by_number.items() if each not in gone}


def learn(book: Book, order: Any, number: int) -> Known | None:
    """Find the order that a message of IB is about, or take it into the book where it carries an id of ours."""
    known = book.by_id(order.orderRef) if order.orderRef else None
    if known is not None and known.perm_id and order.permId not in (0, known.perm_id):
        return None  # somebody else's, with the same reference
    if known is None:
        known = book.find(perm_id=order.permId, client_id=order.clientId, number=number)
        if known is not None and order.orderRef and order.orderRef != known.order_id:
            return None
    if known is None:
        if not book.is_ours(order.orderRef, order.clientId):
            return None
        known = Known(order.orderRef, order.clientId, number, acknowledged=True)
        book.add(known)
    book.name(known, order.permId, order.clientId, number)
    return known

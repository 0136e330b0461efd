"""Tests of `sigma9_core.money.orders`."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.models import Fill, OrderRequest, OrderStatus
from sigma9_core.money.ids import OrderIds
from sigma9_core.money.orders import ENDED, TRANSITIONS, WORKING, IllegalMessage, Message, Order, standing

NOW = datetime(2026, 3, 2, 15, tzinfo=UTC)
MESSAGES: tuple[Message, ...] = get_args(Message)


def make(status: OrderStatus = OrderStatus.SUBMITTED, quantity: int = 100) -> Order:
    """Make an order in a status."""
    request = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(quantity))
    return Order("id", request, (), NOW, status=status)


def fill(quantity: int, price: str = "10", number: int = 1) -> Fill:
    """Make an execution."""
    return Fill(f"x{number}", "id", "AAPL", "buy", Decimal(quantity), Decimal(price), Decimal(1), NOW)


def test_every_status_is_working_or_ended() -> None:
    """Each status says whether an order may still fill, and none says both."""
    assert set(OrderStatus) - {OrderStatus.UNCHANGED} == WORKING | ENDED  # which is an event alone
    assert not WORKING & ENDED


@pytest.mark.parametrize("status", sorted(WORKING))
def test_a_working_order_takes_every_report(status: OrderStatus) -> None:
    """A working order can be accepted, filled, cancelled, rejected, expired, replaced and busted."""
    for message in ("accepted", "filled", "cancelled", "rejected", "expired", "replaced", "busted", "lost"):
        assert (status, message) in TRANSITIONS


def test_illegal_messages_are_named_and_change_nothing() -> None:
    """What the table does not have raises, naming order, status and message, and leaves the order as it was."""
    order = make(OrderStatus.FILLED)

    with pytest.raises(IllegalMessage, match="order id is filled and can't be cancelled"):
        order.take("cancelled")

    assert order.status is OrderStatus.FILLED


@pytest.mark.parametrize("status", sorted(ENDED))
def test_what_has_ended_works_again_where_it_may(status: OrderStatus) -> None:
    """What was cancelled, rejected or expired may turn out to work; what has filled or was never sent may not."""
    order = make(status)
    order.cancel_asked = True
    if status in (OrderStatus.FILLED, OrderStatus.RISK_REJECTED):
        with pytest.raises(IllegalMessage):
            order.take("revived")
        return
    assert order.take("revived", reason="it is listed") is OrderStatus.ACCEPTED
    assert order.working
    assert not order.cancel_asked  # it can be asked for again
    assert order.reason == "it is listed"
    assert standing(status, OrderStatus.ACCEPTED) is OrderStatus.ACCEPTED


def test_a_late_report_brings_nothing_back() -> None:
    """An `accepted` that comes after the end is no proof, and neither is a read-back of what has filled whole."""
    order = make(OrderStatus.CANCELLED)
    with pytest.raises(IllegalMessage):
        order.take("accepted")
    order.take("filled", fill=fill(100))
    order.take("busted")
    assert order.take("revived") is None
    assert not order.working


def test_what_the_broker_holds_is_unknown_until_it_works() -> None:
    """An order that the broker has and does not work may still fill; it is told once."""
    order = make(OrderStatus.ACCEPTED)
    assert order.take("held", reason="locate") is OrderStatus.UNKNOWN
    assert order.take("held", reason="locate") is None
    assert order.held
    assert order.working
    assert order.take("accepted") is OrderStatus.ACCEPTED
    assert (order.held, order.reason) == (False, None)


def test_a_refused_order_takes_nothing_at_all() -> None:
    """An order that the gate has refused was never sent: no message about it is legal."""
    for message in MESSAGES:
        with pytest.raises(IllegalMessage):
            make(OrderStatus.RISK_REJECTED).take(message, fill=fill(1))


def test_fills_add_up() -> None:
    """Partial fills give quantity, average price and commission; the last one ends the order."""
    order = make()

    assert order.take("filled", fill=fill(40, "10")) is OrderStatus.PARTIALLY_FILLED
    assert order.take("filled", fill=fill(60, "11", 2)) is OrderStatus.FILLED

    assert order.filled == 100
    assert order.average_price == Decimal("10.6")
    assert order.commission == 2
    assert order.remaining == 0


def test_a_fill_after_a_cancel_counts() -> None:
    """A fill that was on its way when the cancel came is counted, and the rest stays cancelled."""
    order = make()
    order.take("cancelled")

    assert order.take("filled", fill=fill(40)) is OrderStatus.PARTIALLY_FILLED

    assert order.filled == 40
    assert order.status is OrderStatus.CANCELLED
    assert not order.working


def test_the_rest_works_on_when_a_fill_is_taken_back() -> None:
    """A bust of a working order is told, and the order works on; one that had filled is busted."""
    order = make()
    order.take("filled", fill=fill(40))

    assert order.take("busted", fill=fill(40)) is OrderStatus.BUSTED
    assert order.view().status is OrderStatus.PARTIALLY_FILLED
    order.take("filled", fill=fill(60, number=2))
    assert order.take("busted", fill=fill(60, number=2)) is OrderStatus.BUSTED
    assert order.view().status is OrderStatus.BUSTED


def test_fills_beyond_the_size_are_proof_of_a_change() -> None:
    """What fills is never more than what was ordered: a change whose confirmation was lost has been made."""
    order = make()
    order.replacement = order.request.model_copy(update={"quantity": Decimal(150)})
    assert order.take("filled", fill=fill(120)) is OrderStatus.PARTIALLY_FILLED
    assert (order.request.quantity, order.remaining) == (Decimal(150), Decimal(30))
    assert order.replacement is None

    forgotten = make()  # a restart takes an order as the broker has confirmed it
    assert forgotten.take("filled", fill=fill(120)) is OrderStatus.FILLED
    assert forgotten.view().quantity == forgotten.view().filled_quantity == 120


def test_unknown_is_working_until_it_is_settled() -> None:
    """A lost order is `unknown`, counts as working, and is settled by what is read back."""
    order = make()

    assert order.take("lost") is OrderStatus.UNKNOWN
    assert order.working
    assert order.take("accepted") is OrderStatus.ACCEPTED


def test_the_rest_of_a_partly_filled_order_is_cancelled_not_rejected() -> None:
    """A broker that refuses what remains has cancelled the order: its fills stand."""
    order = make()
    order.take("filled", fill=fill(40))

    assert order.take("rejected", reason="no more") is OrderStatus.CANCELLED

    changed = make()  # also where its newest event is another one
    changed.take("filled", fill=fill(40))
    changed.take("replaced")
    assert changed.take("rejected", reason="no more") is OrderStatus.CANCELLED


def test_a_change_down_to_what_has_filled_ends_the_order() -> None:
    """Nothing remains of the new quantity when the change is confirmed: the order has filled."""
    order = make()
    order.take("filled", fill=fill(40))
    order.replacement = order.request.model_copy(update={"quantity": Decimal(50)})
    order.take("filled", fill=fill(10, number=2))

    assert order.take("replaced") is OrderStatus.FILLED
    assert not order.working
    assert (order.view().quantity, order.view().filled_quantity) == (Decimal(50), Decimal(50))


def test_a_price_that_is_being_changed_is_shown_beside_the_present_one() -> None:
    """Until the change is confirmed either may be at the exchange, and one of them is: a group of their own."""
    order = make()
    assert order.possible() == (order.view(),)

    order.replacement = order.request.model_copy(update={"quantity": Decimal(150)})
    assert [shown.quantity for shown in order.possible()] == [150]

    order.replacement = order.request.model_copy(update={"limit_price": Decimal(12)})
    now, then = order.possible()
    assert now == order.view().model_copy(update={"oca_group": order.order_id})
    assert then == now.model_copy(update={"limit_price": Decimal(12)})


@given(st.lists(st.sampled_from(MESSAGES), max_size=30))
def test_no_sequence_brings_an_ended_order_back(messages: list[Message]) -> None:
    """Once ended, an order works again by one message alone, and it never has more filled than was traded."""
    order, traded, ended = make(), Decimal(0), False
    for number, message in enumerate(messages):
        piece = fill(30, number=number)
        try:
            event = order.take(message, fill=piece if message == "filled" else None)
        except IllegalMessage:
            continue
        if message == "filled" and event is not None:
            traded += 30
        ended = (ended or not order.working) and message != "revived"
        assert order.filled == traded
        assert not (ended and order.working)
        assert order.remaining or not order.working


def test_ids_are_unique_and_rise() -> None:
    """Ids of one process rise strictly as text, also within one millisecond."""
    maker = OrderIds()
    made = [maker.new() for _ in range(5000)]

    assert made == sorted(set(made))
    assert {len(each) for each in made} == {26}

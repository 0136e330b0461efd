"""Tests of `sigma9_core.money.orderbook`: what works is found, and what has ended is kept up to a number."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.clock import EPOCH
from sigma9_core.models import OrderStatus
from sigma9_core.money.orderbook import OrderBook
from sigma9_core.money.orders import Order
from sigma9_core.testing.orders import request


def make(name: str) -> Order:
    return Order(name, request("AAPL", "buy", 1), (), EPOCH)


@given(st.lists(st.tuples(st.sampled_from(("add", "end", "forget", "look")), st.integers(0, 20)), max_size=60))
def test_it_is_one_book_whatever_happens(steps: list[tuple[str, int]]) -> None:
    """An order is there until it is taken out or too old an ended one; working ones are listed as they came."""
    book, working, ended = OrderBook(3), dict[str, Order](), list[str]()
    for number, (step, pick) in enumerate(steps):
        name = f"o{number}"
        if step == "add":
            book[name] = working[name] = make(name)
        elif step == "end" and working:
            name = [*working][pick % len(working)]
            working.pop(name).status = OrderStatus.CANCELLED
            ended.append(name)
            assert not book[name].working  # also before anybody looks
        elif step == "forget" and working:
            name = [*working][pick % len(working)]
            del working[name], book[name]
            assert name not in book
        assert book.working() == [*working.values()]
        ended = ended[-3:]
        assert [*book] == [*ended, *working]
        assert len(book) == len(ended) + len(working)


def test_an_ended_order_that_is_taken_back_is_known() -> None:
    """An order that a late fill has called back from the journal stands among the ended ones, as the newest."""
    book = OrderBook(2)
    for name in ("a", "b", "c"):
        book[name] = make(name)
        book[name].status = OrderStatus.FILLED

    assert book.working() == []
    assert [*book] == ["b", "c"]
    back = make("a")
    back.status, back.filled = OrderStatus.CANCELLED, Decimal(1)
    book.setdefault("a", back)
    assert book["a"] is back
    assert book.working() == []
    assert [*book] == ["c", "a"]
    assert book.get("b") is None

"""Marks: which price of a symbol is believed."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.models import Bar, Quote, Slice, Trade
from sigma9_core.money.marks import MarkBook
from sigma9_core.testing.risk_views import NOW


def read(thing: object, *names: str) -> tuple[Any, ...]:
    """Read some fields, to compare them with plain numbers."""
    return tuple(getattr(thing, name) for name in names)


def later(seconds: float) -> datetime:
    """Tell a moment some seconds on."""
    return NOW + timedelta(seconds=seconds)


def print_(book: MarkBook, *prices: float, start: float = 0) -> None:
    """Let trades be printed, a second apart."""
    for n, price in enumerate(prices):
        ts = later(start + n)
        book.take(Slice(ts, trades=(Trade("AAPL", ts, price, 1),)))


def quote(book: MarkBook, bid: float | None, ask: float | None, *, at: float = 0, halted: bool = False) -> None:
    """Let a quote come."""
    book.take(Slice(later(at), quotes=(Quote("AAPL", later(at), bid, ask, halted=halted),)))


def price(book: MarkBook) -> Decimal | None:
    """Read the mark's price."""
    mark = book.get("AAPL")
    return None if mark is None else mark.price


@pytest.mark.parametrize("bad", [math.nan, 0.0, -3.0, math.inf, -math.inf])
def test_what_is_no_price_is_nothing(bad: float) -> None:
    """NaN, zero, negative and infinite prices change no mark and make none."""
    book = MarkBook()
    print_(book, bad)
    book.take(Slice(NOW, bars=(Bar("AAPL", NOW, 1, 1, 1, bad, 1),)))
    assert price(book) is None
    print_(book, 10.0)
    print_(book, bad, bad, bad, bad, start=1)

    assert price(book) == 10
    mark = book.get("AAPL")
    assert mark is not None
    assert mark.ts == NOW


@pytest.mark.parametrize(
    ("bid", "ask"),
    [(None, 10.0), (10.0, None), (0.0, 10.0), (10.0, 9.9), (1.0, 100.0), (math.nan, 10.0), (9.0, math.inf)],
)
def test_a_quote_that_makes_no_sense_has_no_middle(bid: float | None, ask: float | None) -> None:
    """A one-sided, crossed, absurdly wide or non-numeric quote gives no price."""
    book = MarkBook()
    quote(book, bid, ask)

    assert price(book) is None


def test_prices_are_the_digits_that_were_meant() -> None:
    """A float becomes the shortest decimal that names it, without binary dust."""
    book = MarkBook()
    print_(book, 0.1 + 0.2)
    quote(book, 10.01, 10.04, at=1)

    assert price(book) == Decimal("0.30000000000000004")
    for n in range(2, 4):
        quote(book, 10.01, 10.04, at=n)
    assert price(book) == Decimal("10.025")


def test_the_newest_wins_and_time_never_goes_back() -> None:
    """A late report does not undo a newer price; a stamp from the future counts as now."""
    book = MarkBook()
    print_(book, 10.0, 10.1, start=5)
    book.take(Slice(later(7), trades=(Trade("AAPL", later(1), 9.0, 1),)))
    assert price(book) == Decimal("10.1")
    book.take(Slice(later(8), trades=(Trade("AAPL", later(500), 10.2, 1),)))
    print_(book, 10.3, start=9)

    assert price(book) == Decimal("10.3")


def test_a_bar_counts_from_its_end() -> None:
    """A bar's mark is stamped at the end of the bar."""
    book = MarkBook()
    book.take(Slice(later(60), bars=(Bar("AAPL", NOW, 10, 11, 9, 10.5, 100),)))

    assert book.at("AAPL") == later(60)


def test_an_absurd_price_is_believed_when_it_repeats() -> None:
    """Two prints 20 % off are doubted; with the third the price is the new one."""
    book = MarkBook()
    print_(book, 100.0, 79.0, 78.0)
    assert price(book) == 100
    print_(book, 78.5, start=3)
    assert price(book) == Decimal("78.5")


def test_doubt_begins_anew_with_a_sane_print_or_another_absurd_one() -> None:
    """Absurd prints count only in a row, and only where they agree with one another."""
    book = MarkBook()
    print_(book, 100.0, 50.0, 50.0, 100.0, 50.0, 50.0)
    assert price(book) == 100
    print_(book, 200.0, 50.0, 200.0, 50.0, 10.0, 1000.0, start=6)
    assert price(book) == 100


def test_many_prints_in_one_slice_each_count() -> None:
    """Three trades at one market time are three prints."""
    book = MarkBook()
    print_(book, 100.0)
    book.take(Slice(later(1), trades=tuple(Trade("AAPL", later(1), 60.0, 1) for _ in range(3))))

    assert price(book) == 60


@given(st.lists(st.floats(min_value=0.01, max_value=10_000, allow_nan=False), min_size=2, max_size=30))
def test_no_single_print_moves_a_mark_far(prices: list[float]) -> None:
    """Whatever is printed, a mark moves by more than 20 % only after three prints near one another in a row."""
    book = MarkBook()
    print_(book, prices[0])
    before = prices[0]
    for n, each in enumerate(prices[1:], 1):
        print_(book, each, start=n)
        found = price(book)
        assert found is not None
        now = float(found)
        if abs(now - before) > 0.2 * before:
            last = prices[n - 2 : n + 1]
            assert len(last) == 3
            assert now == each
            assert all(abs(p - before) > 0.2 * before for p in last)
        before = now


def test_a_halt_keeps_the_price_and_says_so() -> None:
    """A halted symbol keeps its last price and its age, whatever the quote holds, until a quote ends the halt."""
    book = MarkBook()
    print_(book, 100.0)
    quote(book, 99.0, 99.1, at=10, halted=True)
    mark = book.get("AAPL")
    assert mark is not None
    assert read(mark, "price", "ts", "halted") == (100, NOW, True)
    quote(book, None, None, at=20)
    mark = book.get("AAPL")
    assert mark is not None
    assert (mark.halted, mark.ts) == (False, NOW)


def test_a_symbol_that_was_halted_before_its_first_price_is_halted() -> None:
    """A halt that came before any price is not forgotten."""
    book = MarkBook()
    quote(book, None, None, halted=True)
    print_(book, 100.0, start=1)
    mark = book.get("AAPL")

    assert mark is not None
    assert mark.halted


def test_a_quote_is_shown_beside_a_price_of_its_time_alone() -> None:
    """Bid and ask go with the mark while they are at most five seconds older than the price."""
    book = MarkBook()
    quote(book, 99.9, 100.1)
    print_(book, 100.05, start=5)
    mark = book.get("AAPL")
    assert mark is not None
    assert (mark.bid, mark.ask) == (Decimal("99.9"), Decimal("100.1"))
    print_(book, 100.05, start=6)
    mark = book.get("AAPL")
    assert mark is not None
    assert (mark.bid, mark.ask) == (None, None)


def test_a_doubted_quote_shows_no_bid_and_ask() -> None:
    """A quote far from the believed price is neither a price nor shown."""
    book = MarkBook()
    print_(book, 100.0)
    quote(book, 49.9, 50.1, at=1)
    mark = book.get("AAPL")

    assert mark is not None
    assert read(mark, "price", "bid", "ask") == (100, None, None)


def test_a_snapshot_stays() -> None:
    """What was taken from the book does not change with it."""
    book = MarkBook()
    print_(book, 100.0)
    before = book.snapshot()
    assert book.snapshot() is before
    print_(book, 101.0, start=1)

    assert before["AAPL"].price == 100
    assert book.snapshot()["AAPL"].price == 101
    assert (list(before), len(before), "AAPL" in before, "MSFT" in before) == (["AAPL"], 1, True, False)
    with pytest.raises(KeyError):
        before["MSFT"]


def test_changes_are_told() -> None:
    """Taking a slice tells which marks have changed."""
    book = MarkBook()
    both = Slice(NOW, trades=(Trade("AAPL", NOW, 1.0, 1), Trade("MSFT", NOW, math.nan, 1)))

    assert book.take(both) == {"AAPL"}
    assert book.take(Slice(later(1))) == set()


def test_a_seed_never_beats_a_price() -> None:
    """A mark from before a restart counts until the first price comes, and judges it."""
    book = MarkBook()
    book.seed("AAPL", Decimal(100), later(-3600))
    print_(book, 10.0)
    assert price(book) == 100
    print_(book, 101.0, start=1)
    book.seed("AAPL", Decimal(50), later(99))

    assert price(book) == 101

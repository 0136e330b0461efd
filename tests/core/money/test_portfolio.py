"""The portfolio: fills into positions, cash and results, exact to the last digit."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.clock import SteppedClock
from sigma9_core.contracts import BrokerAccount, BrokerPosition
from sigma9_core.errors import StateError
from sigma9_core.models import Bar, Fill, Quote, Session, Side, Slice, Trade
from sigma9_core.money.portfolio import Applied, Portfolio

FRIDAY = Session(
    "2026-11-20", datetime(2026, 11, 20, 14, 30, tzinfo=UTC), datetime(2026, 11, 20, 21, 0, tzinfo=UTC)
)
MONDAY = Session(
    "2026-11-23", datetime(2026, 11, 23, 14, 30, tzinfo=UTC), datetime(2026, 11, 23, 21, 0, tzinfo=UTC)
)
TUESDAY = Session(
    "2026-11-24", datetime(2026, 11, 24, 14, 30, tzinfo=UTC), datetime(2026, 11, 24, 21, 0, tzinfo=UTC)
)


class Books:
    """A portfolio with a clock, and short words for what a test does with it."""

    def __init__(self, cash: str | None = "10000", start: datetime = FRIDAY.open) -> None:
        self.clock = SteppedClock("replay", start)
        self.portfolio = Portfolio(self.clock)
        if cash is not None:
            self.portfolio.set_cash(Decimal(cash))
        self.number = 0

    def fill(
        self,
        side: Side,
        quantity: str | int | Decimal,
        price: str | int | Decimal,
        *,
        symbol: str = "AAPL",
        fee: str | int | Decimal = 0,
        strategy: str | None = "s",
        exec_id: str | None = None,
    ) -> Applied:
        """Apply one fill."""
        self.number += 1
        numbers = (Decimal(quantity), Decimal(price), Decimal(fee))
        fill = Fill(exec_id or f"x{self.number}", "o", symbol, side, *numbers, self.clock.now())
        applied = self.portfolio.apply(fill, strategy)
        assert applied is not None
        return applied

    def trade(self, price: float, symbol: str = "AAPL", seconds: float = 1) -> None:
        """Let a trade be printed some seconds later."""
        self.clock.advance(self.clock.now() + timedelta(seconds=seconds))
        now = self.clock.now()
        self.portfolio.mark(Slice(now, trades=(Trade(symbol, now, price, 100),)))

    def account(self, field: str) -> Any:
        """Read a field of the account."""
        return getattr(self.portfolio.account(), field)


def read(thing: object, *names: str) -> tuple[Any, ...]:
    """Read some fields, to compare them with plain numbers."""
    return tuple(getattr(thing, name) for name in names)


# --- fills ------------------------------------------------------------------------------------------------------


def test_a_round_trip() -> None:
    """Bought, added to, partly sold and closed: average cost without fees, result and cash with them."""
    books = Books()
    assert books.fill("buy", 10, 100, fee=1).opened
    books.fill("buy", 10, 110, fee=1)

    position = books.portfolio.position("AAPL")
    assert read(position, "quantity", "average_cost", "realized_pnl") == (20, 105, -2)
    assert (position.strategy, position.opened_at) == ("s", FRIDAY.open)
    part = books.fill("sell", 5, 120, fee="0.5")
    assert read(part, "before", "after", "realized", "closed") == (20, 15, Decimal("74.5"), None)
    assert books.portfolio.position("AAPL").average_cost == 105
    last = books.fill("sell", 15, 100, fee="0.5")

    trade = last.closed
    assert trade is not None
    assert read(trade, "symbol", "strategy", "quantity", "entry_cost") == ("AAPL", "s", 20, 2100)
    assert (trade.result, trade.fees) == (Decimal(-3), Decimal(3))
    assert trade.percent == pytest.approx(Decimal(-300) / 2100)
    assert books.portfolio.positions() == ()
    assert books.portfolio.cash == 10_000 - 3
    assert (books.portfolio.realized, books.portfolio.fees) == (Decimal(-3), Decimal(3))


def test_a_short_round_trip() -> None:
    """A short position has a negative quantity and value, and wins when the price falls."""
    books = Books()
    books.fill("sell", 10, 100)
    books.trade(90)

    position = books.portfolio.position("AAPL")
    assert read(position, "quantity", "market_value", "unrealized_pnl") == (-10, -900, 100)
    assert books.account("equity") == 10_100
    closed = books.fill("buy", 10, 95).closed
    assert closed is not None
    assert read(closed, "quantity", "entry_cost", "result", "percent") == (-10, 1000, 50, 5)


def test_a_flip_closes_one_trade_and_opens_another() -> None:
    """A fill through zero ends the old round trip and begins the new one; its fee is shared by quantity."""
    books = Books()
    books.fill("buy", 10, 100, strategy="one")
    books.trade(100, seconds=60)
    flip = books.fill("sell", 30, 110, fee=3, strategy="two")

    assert read(flip, "flipped", "opened", "before", "after") == (True, True, 10, -20)
    assert flip.closed is not None
    assert read(flip.closed, "strategy", "result", "fees") == ("one", 99, 1)
    position = books.portfolio.position("AAPL")
    assert read(position, "quantity", "average_cost", "strategy") == (-20, 110, "two")
    assert position.opened_at == FRIDAY.open + timedelta(seconds=60)
    assert position.realized_pnl == -2
    back = books.fill("buy", 20, 105)
    assert back.closed is not None
    assert read(back.closed, "result", "fees", "strategy") == (98, 2, "two")


def test_an_execution_counts_once() -> None:
    """The same execution told twice changes nothing the second time."""
    books = Books()
    books.fill("buy", 10, 100, exec_id="e")
    again = Fill("e", "o", "AAPL", "buy", Decimal(10), Decimal(100), Decimal(0), FRIDAY.open)

    assert books.portfolio.apply(again, "s") is None
    assert books.portfolio.quantity("AAPL") == 10
    assert books.portfolio.cash == 9_000


@pytest.mark.parametrize(
    "bad",
    [{"quantity": 0}, {"quantity": -1}, {"quantity": "NaN"}, {"price": "-1"}, {"price": "NaN"}, {"fee": "inf"}],
)
def test_a_fill_that_makes_no_sense_changes_nothing(bad: dict[str, Any]) -> None:
    """Numbers that no execution can have are an error that names it; a later correct one still counts."""
    books = Books()
    with pytest.raises(ValueError, match="the execution e of AAPL can't be counted"):
        books.fill("buy", **{"quantity": 1, "price": 1, "exec_id": "e", **bad})

    assert books.portfolio.positions() == ()
    assert books.portfolio.cash == 10_000
    books.fill("buy", 1, 1, exec_id="e")
    assert books.portfolio.quantity("AAPL") == 1


def test_the_owner_of_a_position_stays() -> None:
    """An exit or an addition without a strategy does not change whose position it is."""
    books = Books()
    books.fill("buy", 10, 100, strategy="one")
    applied = books.fill("sell", 5, 100, strategy=None)
    closed = books.fill("sell", 5, 100, strategy=None).closed

    assert applied.strategy == "one"
    assert closed is not None
    assert closed.strategy == "one"
    assert books.portfolio.position("AAPL").strategy is None


def test_results_by_strategy() -> None:
    """Closed trades are told by strategy, in percent of their cost, oldest first."""
    books = Books()
    for strategy, price in (("one", 110), ("two", 90), ("one", 95)):
        books.fill("buy", 10, 100, strategy=strategy)
        books.fill("sell", 10, price)

    assert books.portfolio.closed_trades("one") == [Decimal(10), Decimal(-5)]
    assert books.portfolio.closed_trades("two") == [Decimal(-10)]
    assert books.portfolio.closed_trades("three") == []
    assert [trade.result for trade in books.portfolio.trades] == [100, -100, -50]


def test_a_busted_execution_never_was() -> None:
    """Taking an execution back leaves the books as if it had not been told, and it is not counted again."""
    books, clean = Books(), Books()
    for number, each in enumerate((books, clean)):
        each.fill("buy", 10, 100, fee=1)
        if number == 0:
            each.fill("sell", 10, 150, fee=2, exec_id="wrong")
        else:
            each.number += 1
        each.fill("buy", 5, 120, fee=1)
        each.fill("sell", 3, 130, fee=1)

    assert books.portfolio.bust("wrong")
    assert not books.portfolio.bust("wrong")
    assert not books.portfolio.bust("never heard of")

    for name in ("cash", "fees", "realized", "cost", "trades"):
        assert getattr(books.portfolio, name) == getattr(clean.portfolio, name), name
    assert books.portfolio.positions() == clean.portfolio.positions()
    again = Fill("wrong", "o", "AAPL", "sell", Decimal(10), Decimal(150), Decimal(0), FRIDAY.open)
    assert books.portfolio.apply(again, None) is None


def test_a_part_of_an_execution_never_was() -> None:
    """What stands keeps price and commission; the rest is as if it had not been told, and goes once."""
    books, clean = Books(), Books()
    for each, size in ((books, 10), (clean, 6)):
        each.fill("buy", size, 100, fee=1, exec_id="part")
        each.fill("sell", 3, 130, fee=1)
    assert books.portfolio.bust("part", Decimal(4))
    assert (left := books.portfolio.standing("part")) is not None
    assert left.quantity == 6
    for name in ("cash", "fees", "realized", "cost", "trades"):
        assert getattr(books.portfolio, name) == getattr(clean.portfolio, name), name
    assert books.portfolio.positions() == clean.portfolio.positions()

    assert books.portfolio.bust("part", Decimal(20))
    assert books.portfolio.standing("part") is None
    assert books.portfolio.quantity("AAPL") == -3
    assert not books.portfolio.bust("part")


# --- the identity -----------------------------------------------------------------------------------------------

prices = st.decimals("0.000001", "999.999999", places=6)
fees = st.decimals("-1", "20", places=4)
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("fill"),
            st.sampled_from(("AAPL", "MSFT")),
            st.sampled_from(("buy", "sell")),
            st.one_of(st.integers(1, 1000).map(Decimal), st.decimals("0.0001", "100", places=4)),
            prices,
            fees,
        ),
        st.tuples(st.just("split"), st.sampled_from(("AAPL", "MSFT")), st.integers(1, 20), st.integers(1, 20)),
        st.tuples(st.just("transfer"), st.decimals("-5000", "5000", places=2)),
        st.tuples(st.just("mark"), st.sampled_from(("AAPL", "MSFT")), st.floats(0.01, 900)),
        st.tuples(st.just("bust"), st.integers(0, 40)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(moves=steps)
def test_no_cent_is_lost(moves: list[tuple[Any, ...]]) -> None:
    """Over fills with flips, splits, transfers and busts: cash + cost = what was put in + realised, exactly."""
    books = Books("25000.25")
    portfolio = books.portfolio
    told: list[Fill] = []
    paid = put = Fraction(0)
    for move in moves:
        match move:
            case "fill", symbol, side, quantity, price, fee:
                books.fill(side, quantity, price, symbol=symbol, fee=fee)
                told.append(Fill(f"x{books.number}", "o", symbol, side, quantity, price, fee, FRIDAY.open))
            case "split", symbol, new, old:
                portfolio.split(symbol, Decimal(new), Decimal(old))
            case "transfer", amount:
                portfolio.transfer(amount)
                put += Fraction(amount)
            case "mark", symbol, price:
                books.trade(price, symbol)
            case "bust", number if number < len(told):
                portfolio.bust(told.pop(number).exec_id)
    for fill in told:
        sign = 1 if fill.side == "sell" else -1
        paid += sign * Fraction(fill.quantity) * Fraction(fill.price) - Fraction(fill.commission)

    assert Fraction(portfolio.cash) == Fraction("25000.25") + put + paid
    assert Fraction(portfolio.put_in) == Fraction("25000.25") + put
    assert Fraction(portfolio.cash) + Fraction(portfolio.cost) == Fraction(portfolio.put_in) + Fraction(
        portfolio.realized
    )
    assert Fraction(portfolio.fees) == sum((Fraction(fill.commission) for fill in told), Fraction(0))
    for position in portfolio.positions():
        assert position.quantity != 0


afterwards = st.lists(
    st.one_of(
        st.tuples(
            st.just("fill"),
            st.sampled_from(("AAPL", "MSFT")),
            st.sampled_from(("buy", "sell")),
            st.integers(1, 20).map(Decimal),
            prices,
            fees,
        ),
        st.tuples(st.just("split"), st.sampled_from(("AAPL", "MSFT")), st.integers(1, 5), st.integers(1, 5)),
        st.tuples(st.just("charge"), st.integers(0, 30), fees),
        st.tuples(st.just("correct"), st.integers(0, 30), prices, fees),
        st.tuples(st.just("bust"), st.integers(0, 30)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(moves=afterwards)
def test_what_is_put_right_later_is_as_if_it_had_come_so(moves: list[tuple[Any, ...]]) -> None:
    """After late commissions, corrections and busts the books are those of the fills that stand, in order."""
    books = Books("25000.25")
    portfolio = books.portfolio
    story: list[Any] = []
    for number, move in enumerate(moves):
        places = [place for place, each in enumerate(story) if isinstance(each, Fill)]
        place = places[move[1] % len(places)] if places and isinstance(move[1], int) else 0
        old = story[place] if places else None
        match move:
            case "fill", symbol, side, quantity, price, fee:
                story.append(Fill(f"x{number}", "o", symbol, side, quantity, price, fee, FRIDAY.open))
                portfolio.apply(story[-1], "s")
            case "split", symbol, new, share:
                story.append((symbol, Decimal(new), Decimal(share)))
                portfolio.split(*story[-1])
            case "charge", _, fee if isinstance(old, Fill):
                story[place] = replace(old, commission=fee)
                assert portfolio.commission(old.exec_id, fee) == fee - old.commission
            case "correct", _, price, fee if isinstance(old, Fill):
                fill = replace(old, exec_id=f"x{number}", price=price, commission=fee, corrects=(old.exec_id,))
                story[place] = fill
                applied = portfolio.apply(fill, "s")
                assert applied is not None
                assert not applied.moved
                assert portfolio.apply(old, "s") is None
            case "bust", _ if isinstance(old, Fill):
                del story[place]
                portfolio.bust(old.exec_id)
    fresh = Books("25000.25").portfolio
    for each in story:
        if isinstance(each, Fill):
            fresh.apply(each, "s")
        else:
            fresh.split(*each)

    for name in ("cash", "fees", "realized", "cost"):
        assert getattr(portfolio, name) == getattr(fresh, name), name
    assert portfolio.positions() == fresh.positions()
    assert sorted(portfolio.trades, key=repr) == sorted(fresh.trades, key=repr)
    for symbol in ("AAPL", "MSFT"):
        assert portfolio.opened_by(symbol) == fresh.opened_by(symbol)


@settings(max_examples=100, deadline=None)
@given(
    row=st.lists(
        st.tuples(st.sampled_from(("buy", "sell")), st.integers(1, 300), prices, fees), min_size=1, max_size=30
    )
)
def test_positions_follow_an_independent_sum(row: list[tuple[Side, int, Decimal, Decimal]]) -> None:
    """Quantities are the sum of the fills, and every round trip's result is the cash that it moved."""
    books = Books("0")
    flow = Fraction(0)
    results = []
    for side, quantity, price, fee in row:
        applied = books.fill(side, quantity, price, fee=fee)
        sign = 1 if side == "buy" else -1
        flow += -sign * quantity * Fraction(price) - Fraction(fee)
        assert applied.after == applied.before + sign * quantity
        if applied.after == 0:
            results.append(flow)
            assert applied.closed is not None
        if applied.closed is not None:
            assert (applied.closed.quantity > 0) == (applied.before > 0)

    assert books.portfolio.quantity("AAPL") == sum(q if side == "buy" else -q for side, q, _, _ in row)
    if results:  # at the last time it was flat, all cash that ever moved is the sum of the trades
        trades = books.portfolio.trades
        upto = [sum((Fraction(t.result) for t in trades[: n + 1]), Fraction(0)) for n in range(len(trades))]
        assert results[-1] in upto


def test_the_callers_decimal_context_does_not_matter() -> None:
    """Books are exact even where somebody has made the decimal context coarse."""
    with localcontext() as context:
        context.prec = 6
        books = Books("123456789.01")
        books.fill("buy", "333", "1234.5678", fee="0.0101")
        books.fill("sell", "111", "1234.5679")

    assert getcontext().prec == 28
    bought, sold = Decimal(333) * Decimal("1234.5678"), Decimal(111) * Decimal("1234.5679")
    assert books.portfolio.cash == Decimal("123456789.01") - bought - Decimal("0.0101") + sold


# --- marks and the account --------------------------------------------------------------------------------------


def test_equity_is_cash_and_everything_at_its_mark() -> None:
    """A position counts at its cost until there is a mark, then at the mark."""
    books = Books()
    books.fill("buy", 10, 100, fee=1)
    assert books.account("equity") == 9_999
    assert books.portfolio.position("AAPL").last is None
    books.trade(104.5)

    assert books.account("equity") == 10_044
    assert books.account("unrealized_pnl") == 45
    position = books.portfolio.position("AAPL")
    assert read(position, "last", "market_value", "unrealized_pnl") == (Decimal("104.5"), 1045, 45)


def test_before_the_cash_is_known_there_is_no_equity() -> None:
    """Without an opening cash the account says null instead of a guess."""
    books = Books(None)

    assert (books.account("equity"), books.account("cash"), books.account("buying_power")) == (None, None, None)
    books.portfolio.set_cash(Decimal(0))
    assert (books.account("equity"), books.account("cash")) == (0, 0)


def test_the_account_names_itself() -> None:
    """Name and mode are the broker's; before it has told them, the clock's kind stands for the mode."""
    books = Books()
    assert (books.account("account"), books.account("mode"), books.account("currency")) == (
        None,
        "simulated",
        "USD",
    )
    books.portfolio.set_account(BrokerAccount("DU1", "paper", "USD", Decimal(1), Decimal(40_000)))

    assert (books.account("account"), books.account("mode")) == ("DU1", "paper")
    assert (books.account("cash"), books.account("buying_power")) == (10_000, 40_000)


def test_another_money_is_no_money_of_the_books() -> None:
    """Of an account that is told in another currency no amount is known, until it is told in the books' own."""
    books = Books()
    books.portfolio.set_account(BrokerAccount("DU1", "paper", "JPY", Decimal(15_000_000), Decimal(60_000_000)))

    assert books.account("currency") == "JPY"
    assert [books.account(name) for name in ("cash", "equity", "buying_power")] == [None, None, None]
    books.portfolio.set_account(BrokerAccount("DU1", "paper", "USD", Decimal(10_000), Decimal(40_000)))
    assert (books.account("currency"), books.account("equity")) == ("USD", 10_000)


@pytest.mark.parametrize("told", [None, 40_000])
def test_buying_power_shrinks_with_what_is_held(told: int | None) -> None:
    """It is the broker's, else the cash; a purchase takes its cost, a short sale its value, a close gives back."""
    books = Books()
    power = None if told is None else Decimal(told)
    books.portfolio.set_account(BrokerAccount("A", "paper", "USD", Decimal(10_000), power))
    start = told or 10_000

    books.fill("buy", 10, 100)
    assert books.account("buying_power") == start - 1_000
    books.fill("sell", 10, 100)
    assert books.account("buying_power") == start
    books.fill("sell", 10, 100)
    assert books.account("buying_power") == start - 1_000
    books.fill("buy", 10, 100)
    books.fill("buy", 500, 100)
    assert books.account("buying_power") == max(start - 50_000, 0)


def test_marks_are_fresh_for_a_minute_of_market_time() -> None:
    """Freshness wants a recent mark for every position of ours, and for nothing else."""
    books = Books()
    assert books.portfolio.marks_fresh
    books.fill("buy", 1, 100)
    assert not books.portfolio.marks_fresh
    books.trade(100)
    assert books.portfolio.marks_fresh
    books.clock.advance(books.clock.now() + timedelta(seconds=60))
    assert books.portfolio.marks_fresh
    books.clock.advance(books.clock.now() + timedelta(seconds=1))
    assert not books.portfolio.marks_fresh
    books.fill("sell", 1, 100)
    assert books.portfolio.marks_fresh


def test_one_absurd_print_moves_nothing() -> None:
    """A price 20 % off is believed only when it comes a third time."""
    books = Books()
    books.fill("buy", 10, 100)
    books.trade(100)
    books.trade(50)
    books.trade(50)
    assert books.account("equity") == 10_000
    books.trade(51)
    assert books.account("equity") == 9_510


def test_foreign_positions_are_shown_and_are_no_result_of_ours() -> None:
    """They are part of equity, at their cost before the first mark, and their moves are no gain or loss."""
    books = Books()
    books.portfolio.roll(FRIDAY)
    books.portfolio.set_foreign(
        [BrokerPosition("KO", Decimal(10), Decimal(60)), BrokerPosition("X", Decimal(0), Decimal(1))]
    )

    assert [p.symbol for p in books.portfolio.positions()] == ["KO"]
    assert books.portfolio.position("KO").foreign
    assert books.portfolio.quantity("KO") == 0
    assert books.account("equity") == 10_600
    books.trade(30, "KO")
    assert (books.account("equity"), books.account("day_pnl"), books.account("unrealized_pnl")) == (10_300, 0, 0)
    assert books.portfolio.risk_view(None, (), {}, (), 0).day_start_equity == 10_300
    assert books.portfolio.marks_fresh
    books.portfolio.set_foreign([])
    assert books.portfolio.positions() == ()


def test_ours_is_shown_before_a_foreign_one() -> None:
    """Where both are held, the position that is shown is ours, so that nobody closes more than that."""
    books = Books()
    books.fill("buy", 10, 100)
    books.portfolio.set_foreign([BrokerPosition("AAPL", Decimal(500), Decimal(90))])

    position = books.portfolio.position("AAPL")
    assert read(position, "quantity", "foreign") == (10, False)
    books.fill("sell", 10, 100)
    assert read(books.portfolio.position("AAPL"), "quantity", "foreign") == (500, True)


def test_adopting_is_no_result() -> None:
    """An adopted position costs no cash, and what it had lost before is no loss of the day."""
    books = Books()
    books.portfolio.roll(FRIDAY)
    books.portfolio.set_foreign([BrokerPosition("KO", Decimal(10), Decimal(60))])
    books.trade(50, "KO")
    equity = books.account("equity")
    fill = Fill("adopt-1", "adopted", "KO", "buy", Decimal(10), Decimal(60), Decimal(0), books.clock.now())
    books.portfolio.adopt(fill, "mine")

    position = books.portfolio.position("KO")
    assert read(position, "quantity", "average_cost", "strategy", "foreign") == (
        10,
        60,
        "mine",
        False,
    )
    assert books.portfolio.cash == 10_000
    assert (books.account("equity"), books.account("day_pnl")) == (equity, 0)
    books.trade(49, "KO")
    assert books.account("day_pnl") == -10
    assert books.portfolio.adopt(fill, "mine") is None
    assert books.portfolio.cash + books.portfolio.cost == books.portfolio.put_in + books.portfolio.realized


def test_protection_is_shown() -> None:
    """A position says whether a stop guards it."""
    books = Books()
    books.fill("buy", 10, 100)
    assert not books.portfolio.position("AAPL").protected
    books.portfolio.set_protected("AAPL", True)
    assert books.portfolio.position("AAPL").protected
    books.portfolio.set_protected("AAPL", False)
    assert not books.portfolio.position("AAPL").protected


@pytest.mark.parametrize(("new", "old", "quantity"), [(2, 1, 600), (1, 10, 30), (3, 2, 450), (1, 3, 100)])
def test_a_split_changes_shares_and_nothing_else(new: int, old: int, quantity: int) -> None:
    """Shares and price change, cost, value, equity and the round trip's result do not."""
    books = Books("100000")
    books.fill("buy", 300, 100)
    books.trade(120)
    equity = books.account("equity")
    books.portfolio.split("AAPL", Decimal(new), Decimal(old))

    position = books.portfolio.position("AAPL")
    assert position.quantity == quantity
    assert books.portfolio.cost == 30_000
    assert books.account("equity") == pytest.approx(equity)
    price = Decimal(120) * old / new
    books.trade(float(price))
    assert books.account("equity") == pytest.approx(equity)
    closed = books.fill("sell", quantity, str(price)).closed
    assert closed is not None
    assert read(closed, "quantity", "entry_cost") == (quantity, 30_000)
    assert closed.result == pytest.approx(Decimal(6_000))


@pytest.mark.parametrize("bad", [(0, 1), (-1, 2), ("NaN", 1), (1, 0)])
def test_a_split_into_nothing_is_refused(bad: tuple[Any, Any]) -> None:
    """A split needs two numbers above zero."""
    with pytest.raises(ValueError, match="a split of AAPL"):
        Books().portfolio.split("AAPL", Decimal(bad[0]), Decimal(bad[1]))


# --- days -------------------------------------------------------------------------------------------------------


def view_of(books: Books) -> tuple[Any, Any, Any]:
    """Read day's start, week's start and peak as the rules see them."""
    seen = books.portfolio.risk_view(None, (), {}, (), 0)
    return seen.day_start_equity, seen.week_start_equity, seen.peak_equity


def test_day_and_week_begin_with_their_sessions() -> None:
    """Each session begins a day; the first session of an ISO week begins the week; the gap is the new day's."""
    books = Books()
    assert view_of(books)[:2] == (None, None)
    assert books.portfolio.roll(FRIDAY)
    books.fill("buy", 10, 100)
    books.trade(110)
    assert (books.account("day_pnl"), books.account("realized_pnl")) == (100, 0)
    assert not books.portfolio.roll(FRIDAY)

    books.clock.advance(MONDAY.open)
    assert books.portfolio.roll(MONDAY)
    assert view_of(books)[:2] == (10_100, 10_100)
    books.trade(105)
    assert (books.account("day_pnl"), view_of(books)[0]) == (-50, 10_100)
    books.fill("sell", 10, 105)
    assert (books.account("day_pnl"), books.account("realized_pnl")) == (-50, 50)

    books.clock.advance(TUESDAY.open)
    books.portfolio.roll(TUESDAY)
    assert view_of(books)[:2] == (10_050, 10_100)
    assert (books.account("day_pnl"), books.account("realized_pnl")) == (0, 0)
    assert not books.portfolio.roll(MONDAY)


def test_money_that_comes_and_goes_is_no_gain_or_loss() -> None:
    """A deposit moves equity and the starting marks alike."""
    books = Books()
    books.portfolio.roll(FRIDAY)
    books.fill("buy", 10, 100)
    books.trade(90)
    books.portfolio.transfer(Decimal(5_000))
    books.portfolio.transfer(Decimal(-7_000))

    assert (books.account("equity"), books.account("day_pnl")) == (7_900, -100)
    assert view_of(books) == (8_000, 8_000, 8_000)
    books.portfolio.set_cash(Decimal(20_000))
    assert (books.account("day_pnl"), view_of(books)[0]) == (-100, 21_000)


def test_the_peak_is_the_best_on_fresh_marks() -> None:
    """The peak rises with the result, not with stale prices, and stays."""
    books = Books()
    books.fill("buy", 10, 100)
    books.trade(110)
    books.trade(95)
    assert view_of(books)[2] == 10_100
    books.trade(105)
    assert view_of(books)[2] == 10_100
    books.trade(115)
    assert view_of(books)[2] == 10_150


def test_the_peak_waits_for_every_mark() -> None:
    """A result that counts one position at a stale price is no peak."""
    books = Books()
    for symbol in ("AAPL", "MSFT"):
        books.fill("buy", 10, 100, symbol=symbol)
        books.trade(100, symbol)
    peak = view_of(books)[2]
    books.trade(115, "AAPL", seconds=61)
    assert view_of(books)[2] - books.account("equity") == peak - 10_000 - 150
    books.trade(90, "MSFT")
    assert view_of(books)[2] == 10_050


def test_a_restart_in_the_middle_of_the_day_changes_nothing() -> None:
    """Fills from the journal and the small memory give the same day, week and peak, before any new price."""
    first = Books()
    first.portfolio.roll(FRIDAY)
    first.fill("buy", 10, 100, fee=1)
    first.trade(104)
    first.clock.advance(MONDAY.open)
    first.portfolio.roll(MONDAY)
    first.trade(103)
    first.fill("sell", 4, 102, fee=1)
    memory = json.loads(json.dumps(first.portfolio.days_memory()))

    second = Books(start=MONDAY.open + timedelta(minutes=5))
    second.fill("buy", 10, 100, fee=1)
    second.fill("sell", 4, 102, fee=1)
    second.portfolio.restore_days(memory)
    assert not second.portfolio.marks_fresh
    second.portfolio.roll(MONDAY)

    assert view_of(second) == view_of(first)
    mine, theirs = first.portfolio.account(), second.portfolio.account()
    assert theirs == mine
    assert second.portfolio.positions()[0].last == 103
    second.clock.advance(TUESDAY.open)
    second.portfolio.roll(TUESDAY)
    assert view_of(second)[0] == mine.equity


@pytest.mark.parametrize(
    "bad",
    [
        {"day": "2026-11-20", "week": "2026-W01"},
        {"day": "yesterday", "week": "x"},
        {"day": 7},
        {"day_start": "many"},
        {"day_start": "NaN"},
        {"marks": {"AAPL": ["x", "y"]}},
        {"marks": {"AAPL": 3}},
        {"marks": 3},
    ],
)
def test_a_memory_that_makes_no_sense_is_an_error(bad: dict[str, Any]) -> None:
    """What can't be read back is said in one sentence instead of guessed."""
    with pytest.raises(StateError, match="can't be read"):
        Books().portfolio.restore_days(bad)


def test_an_empty_memory_is_a_new_beginning() -> None:
    """A journal without day marks starts without any."""
    books = Books()
    books.portfolio.restore_days({})

    assert view_of(books) == (None, None, None)


# --- reading ----------------------------------------------------------------------------------------------------


def test_a_flat_symbol_has_a_flat_position() -> None:
    """Asking for what is not held gives a position of zero."""
    position = Books().portfolio.position("AAPL")

    assert read(position, "quantity", "average_cost", "strategy") == (0, 0, None)


def test_what_was_shown_does_not_change_and_is_not_made_twice() -> None:
    """A position is the same object until something about it changes."""
    books = Books()
    books.fill("buy", 10, 100)
    books.fill("buy", 10, 100, symbol="MSFT")
    before = books.portfolio.positions()
    account = books.portfolio.account()
    assert books.portfolio.position("AAPL") is before[0]
    assert books.portfolio.account() is account
    books.trade(101, "MSFT")

    after = books.portfolio.positions()
    assert after[0] is before[0]
    assert before[1].last is None
    assert after[1].last == 101
    assert account.unrealized_pnl == 0


def test_bars_and_quotes_mark_too() -> None:
    """The mark comes from whatever there is: trade, then the middle of the quote, then a bar's close."""
    books = Books()
    now = books.clock.now()
    bar = Bar("AAPL", now - timedelta(seconds=60), 100, 102, 99, 101, 1_000)
    quote = Quote("AAPL", now, 99.98, 100.02)
    trade = Trade("AAPL", now, 100.5, 10)
    for data, price in (
        (Slice(now, bars=(bar,)), 101),
        (Slice(now, bars=(bar,), quotes=(quote,)), 100),
        (Slice(now, bars=(bar,), quotes=(quote,), trades=(trade,)), Decimal("100.5")),
    ):
        books.portfolio.mark(data)
        mark = books.portfolio.mark_of("AAPL")
        assert mark is not None
        assert mark.price == price
    assert read(mark, "bid", "ask") == (Decimal("99.98"), Decimal("100.02"))

"""The board shows the newest quote of each symbol that is watched or held, and of no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sigma9_core.board import Board
from sigma9_core.events import MarketData
from sigma9_core.models import Bar, Quote, Slice, Trade
from sigma9_core.quotes import Quotes

NOW = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)


@pytest.fixture(name="board")
def _board() -> Board:
    return Board()


@pytest.fixture(name="quotes")
def _quotes(board: Board) -> Quotes:
    quotes = Quotes(board)
    quotes.keep(frozenset(("AAPL",)))
    return quotes


def quote(
    bid: float | None, ask: float | None, *, symbol: str = "AAPL", at: int = 0, halted: bool = False
) -> Slice:
    ts = NOW + timedelta(seconds=at)
    return Slice(ts, quotes=(Quote(symbol, ts, bid, ask, 100.0, 200.0, halted),))


def trade(price: float, *, symbol: str = "AAPL", at: int = 0) -> Slice:
    ts = NOW + timedelta(seconds=at)
    return Slice(ts, trades=(Trade(symbol, ts, price, 50.0),))


def bar(close: float, *, at: int = 0) -> Slice:
    ts = NOW + timedelta(seconds=at)
    return Slice(ts, bars=(Bar("AAPL", ts, 1.0, 9.0, 0.5, close, 700.0),))


def shown(board: Board) -> dict[str, Any]:
    body = board.get("quote/AAPL")
    assert body is not None
    return dict(body)


def test_a_quote_is_shown_when_asked_for_with_all_its_keys(board: Board, quotes: Quotes) -> None:
    """Nothing is on the board before `show`; then the body has every key of market_data.data."""
    quotes.take(quote(9.99, 10.01))
    assert board.names() == ()

    quotes.show()
    body = shown(board)
    assert set(body) == set(MarketData.model_fields)
    assert (body["kind"], body["bid"], body["ask"], body["last"]) == ("quote", 9.99, 10.01, None)
    assert body["ts"] == "2026-03-02T15:00:00.000000Z"


def test_the_newest_quote_replaces_the_older_one_whole(board: Board, quotes: Quotes) -> None:
    """A side that the newest quote lacks is null: no stale bid stands beside a new ask."""
    quotes.take(quote(9.99, 10.01))
    quotes.take(quote(None, 10.05, at=1, halted=True))
    quotes.show()

    body = shown(board)
    assert (body["bid"], body["ask"], body["halted"]) == (None, 10.05, True)

    quotes.take(quote(9.9, 10.1, at=2))
    quotes.show()
    assert shown(board)["halted"] is False


def test_the_last_trade_stands_beside_the_quote(board: Board, quotes: Quotes) -> None:
    """Quote and trade are shown together, whichever came first, with the time of the newer one."""
    quotes.take(trade(10.0))
    quotes.take(quote(9.99, 10.01, at=1))
    quotes.take(trade(10.01, at=2))
    quotes.show()

    body = shown(board)
    assert (body["kind"], body["bid"], body["last"], body["last_size"]) == ("quote", 9.99, 10.01, 50.0)
    assert body["ts"] == "2026-03-02T15:00:02.000000Z"


def test_a_feed_of_trades_alone_has_quotes_too(board: Board, quotes: Quotes) -> None:
    """Where nothing is quoted the newest trade is shown."""
    quotes.take(trade(10.0))
    quotes.take(trade(10.5, at=1))
    quotes.show()

    assert (shown(board)["kind"], shown(board)["last"]) == ("trade", 10.5)


def test_a_feed_of_bars_alone_goes_on(board: Board, quotes: Quotes) -> None:
    """Where there are bars and nothing else, each bar replaces the one before it."""
    for minute, close in enumerate((10.0, 10.5, 11.0)):
        quotes.take(bar(close, at=60 * minute))
        quotes.show()

        assert (shown(board)["kind"], shown(board)["close"], shown(board)["last"]) == ("bar", close, close)


def test_a_bar_does_not_stand_before_a_quote(board: Board, quotes: Quotes) -> None:
    """A bar is of use only while there is neither quote nor trade."""
    quotes.take(bar(10.0))
    quotes.take(quote(9.99, 10.01, at=60))
    quotes.take(bar(12.0, at=60))
    quotes.show()

    assert (shown(board)["kind"], shown(board)["bid"], shown(board)["close"]) == ("quote", 9.99, None)


def test_only_what_is_kept_is_shown_and_what_is_dropped_is_removed(board: Board, quotes: Quotes) -> None:
    """A symbol that is neither watched nor held has no quote: none is begun, and an old one is taken away."""
    seen: list[str] = []
    quotes.take(quote(9.99, 10.01))
    quotes.take(quote(1.0, 1.1, symbol="OTHER"))
    quotes.show()
    assert board.names() == ("quote/AAPL",)

    board.watch(seen.append)
    quotes.take(quote(9.98, 10.0, at=1))
    quotes.keep(frozenset(("OTHER",)))
    quotes.show()
    assert board.names() == ()
    assert seen == ["quote/AAPL"]

    quotes.take(quote(1.0, 1.2, symbol="OTHER", at=2))
    quotes.show()
    assert board.names() == ("quote/OTHER",)


def test_a_quote_is_shown_once(board: Board, quotes: Quotes) -> None:
    """However many quotes came since the last look, one message goes out; without news, none."""
    seen: list[str] = []
    board.watch(seen.append)
    for second in range(5):
        quotes.take(quote(9.99, 10.01 + second, at=second))
    quotes.show()
    quotes.show()

    assert seen == ["quote/AAPL"]
    assert shown(board)["ask"] == 14.01


def test_a_body_that_was_shown_does_not_change_any_more(board: Board, quotes: Quotes) -> None:
    """What readers have taken from the board stays as it was: a newer quote is a body of its own."""
    quotes.take(quote(9.99, 10.01))
    quotes.show()
    before = shown(board)
    quotes.take(trade(11.0, at=1))

    assert board.get("quote/AAPL") == before


def test_the_last_price_is_a_trade_s_else_a_bar_s(quotes: Quotes) -> None:
    """A quote has no last price; what is not kept has none at all."""
    quotes.keep(frozenset(("AAPL",)))
    assert quotes.last("AAPL") is None
    quotes.take(Slice(NOW, (Quote("AAPL", NOW, 9.9, 10.1),), (), (Bar("AAPL", NOW, 10, 10, 10, 10.2, 5),)))
    assert quotes.last("AAPL") == 10.2
    quotes.take(trade(10.3))
    assert quotes.last("AAPL") == 10.3
    assert quotes.last("MSFT") is None

"""Quotes on the board: the newest of each watched or held symbol, at most one a second each (contract 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sigma9_core.board import Board
from sigma9_core.market import market_data
from sigma9_core.models import Bar, Quote, Slice, Trade


@dataclass(slots=True)
class _Newest:
    """What the market said last of a symbol, as it came: it is written out only when it is shown."""

    quote: Quote | None = None
    trade: Trade | None = None
    bar: Bar | None = None

    def body(self) -> dict[str, Any]:
        """Write the quote with the last trade beside it; the trade or the bar alone where there is no quote."""
        quote, trade, bar = self.quote, self.trade, self.bar
        if quote is None and trade is None:
            return market_data(bar).model_dump(mode="json") | {"last": bar.close} if bar is not None else {}
        if quote is None or trade is None:
            return market_data(quote or trade).model_dump(mode="json")  # type: ignore[arg-type] # one is there
        ts = max(quote.ts, trade.ts)
        data = market_data(quote).model_copy(update={"ts": ts, "last": trade.price, "last_size": trade.size})
        return data.model_dump(mode="json")


class Quotes:
    """Collects what the market says and shows it when asked to, once a second; on the outer loop."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._newest: dict[str, _Newest] = {}
        self._waiting: set[str] = set()
        self._kept: frozenset[str] = frozenset()

    def take(self, data: Slice) -> None:
        """Remember the newest quote, trade and bar of each symbol that is kept."""
        for quote in data.quotes:
            if quote.symbol in self._kept:
                self._of(quote.symbol).quote = quote
        for trade in data.trades:
            if trade.symbol in self._kept:
                self._of(trade.symbol).trade = trade
        for bar in data.bars:
            if bar.symbol in self._kept:
                self._of(bar.symbol).bar = bar

    def keep(self, symbols: frozenset[str]) -> None:
        """Drop the quotes of symbols that are neither watched nor held."""
        if symbols == self._kept:
            return
        self._kept = symbols
        for symbol in set(self._newest) - symbols:
            del self._newest[symbol]
            self._waiting.discard(symbol)
            self._board.set(f"quote/{symbol}", None)

    def last(self, symbol: str) -> float | None:
        """Give the newest price of a kept symbol: a trade's, else a bar's close; None before the first."""
        newest = self._newest.get(symbol)
        if newest is None:
            return None
        if newest.trade is not None:
            return newest.trade.price
        return None if newest.bar is None else newest.bar.close

    def show(self) -> None:
        """Put what has changed on the board."""
        for symbol in self._waiting:
            self._board.set(f"quote/{symbol}", self._newest[symbol].body())
        self._waiting.clear()

    def _of(self, symbol: str) -> _Newest:
        self._waiting.add(symbol)
        return self._newest.setdefault(symbol, _Newest())

"""Quotes on the board: the newest of each watched or held symbol, at most one a second each (contract 1)."""

from __future__ import annotations

from typing import Any

from sigma9_core.board import Board
from sigma9_core.market import market_data
from sigma9_core.models import Slice


class Quotes:
    """Collects what the market says and shows it when asked to, once a second; on the outer loop."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._newest: dict[str, dict[str, Any]] = {}
        self._waiting: set[str] = set()
        self._kept: frozenset[str] = frozenset()

    def take(self, data: Slice) -> None:
        """Remember the newest quote of each symbol, and its last trade beside it."""
        for quote in data.quotes:
            self._merge(quote.symbol, market_data(quote).model_dump(mode="json"))
        for trade in data.trades:
            self._merge(trade.symbol, {"last": trade.price, "last_size": trade.size})
        for bar in data.bars:
            if bar.symbol not in self._newest:
                self._merge(bar.symbol, {**market_data(bar).model_dump(mode="json"), "last": bar.close})

    def keep(self, symbols: frozenset[str]) -> None:
        """Drop the quotes of symbols that are neither watched nor held."""
        if symbols == self._kept:
            return
        self._kept = symbols
        for symbol in set(self._newest) - symbols:
            del self._newest[symbol]
            self._waiting.discard(symbol)
            self._board.set(f"quote/{symbol}", None)

    def show(self) -> None:
        """Put what has changed on the board."""
        for symbol in self._waiting:
            self._board.set(f"quote/{symbol}", dict(self._newest[symbol]))
        self._waiting.clear()

    def _merge(self, symbol: str, body: dict[str, Any]) -> None:
        if symbol not in self._kept:
            return
        before = self._newest.get(symbol)
        if before is None:
            if "kind" not in body:
                return  # a trade before the first quote or bar: the next one brings the whole
            self._newest[symbol] = body
        else:
            before.update({key: value for key, value in body.items() if value is not None})
        self._waiting.add(symbol)

"""The newest believable price of each symbol.

In a slice a trade beats the middle of a sane quote, and that beats a bar's close. A price that is not a number
above zero is nothing; one that jumps is believed only once it repeats, so that one absurd print moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from sigma9_core.contracts import Mark
from sigma9_core.models import Quote, Slice

QUOTE_LIVES: Final = timedelta(seconds=5)
"""A bid and ask that are older than this, beside a newer price, are not shown with it."""
SANE_SPREAD_PERCENT: Final = 10.0
"""A wider quote has no middle worth believing."""


@dataclass(slots=True)
class _Raw:
    """A price as it came, never changed; turned into a `Mark` once, when somebody asks."""

    price: float
    ts: datetime
    bid: float | None = None
    ask: float | None = None
    quoted: datetime | None = None
    halted: bool = False
    bar_seconds: int = 0
    made: Mark | None = field(default=None, init=False, compare=False)


@dataclass(slots=True)
class _Doubt:
    """A price that jumped, and how often it has repeated."""

    price: float
    times: int


class Snapshot(Mapping[str, Mark]):
    """The marks of one moment; cheap for those that nobody asks about."""

    def __init__(self, raw: Mapping[str, _Raw]) -> None:
        self._raw = raw

    def __getitem__(self, symbol: str) -> Mark:
        """Give the mark of a symbol."""
        return _mark(symbol, self._raw[symbol])

    def __iter__(self) -> Iterator[str]:
        """List the symbols that have a mark."""
        return iter(self._raw)

    def __len__(self) -> int:
        """Count the symbols that have a mark."""
        return len(self._raw)

    def __contains__(self, symbol: object) -> bool:
        """Tell whether a symbol has a mark."""
        return symbol in self._raw


class MarkBook:
    """Takes market data and keeps one mark a symbol."""

    def __init__(self, absurd_percent: float = 20.0, repeats: int = 3) -> None:
        """Store; a price more than `absurd_percent` off the last one is believed at its `repeats`-th time."""
        self._absurd = absurd_percent / 100
        self._repeats = repeats
        self._raw: dict[str, _Raw] = {}
        self._doubts: dict[str, _Doubt] = {}
        self._halted: set[str] = set()
        self._snapshot: Snapshot | None = None

    def take(self, data: Slice) -> set[str]:
        """Take a slice; give the symbols whose mark has changed."""
        changed: set[str] = set()
        told: set[str] = set()
        for trade in data.trades:
            told.add(trade.symbol)
            if self._price(trade.symbol, trade.price, min(trade.ts, data.ts)):
                changed.add(trade.symbol)
        for quote in data.quotes:
            if self._quote(quote, min(quote.ts, data.ts), priced=quote.symbol in told):
                changed.add(quote.symbol)
            if _middle(quote) is not None:
                told.add(quote.symbol)
        for bar in data.bars:
            end = min(bar.ts + timedelta(seconds=bar.seconds), data.ts)
            if bar.symbol not in told and self._price(bar.symbol, bar.close, end):
                changed.add(bar.symbol)
            raw = self._raw.get(bar.symbol)
            if raw is not None and raw.ts == end and raw.bar_seconds != bar.seconds:
                self._raw[bar.symbol] = replace(raw, bar_seconds=bar.seconds)  # the next price is due a bar later
                self._snapshot = None
        if changed:
            self._snapshot = None
        return changed

    def get(self, symbol: str) -> Mark | None:
        """Give the mark of a symbol, None where there never was a price."""
        raw = self._raw.get(symbol)
        return None if raw is None else _mark(symbol, raw)

    def snapshot(self) -> Snapshot:
        """Give all marks of this moment; they do not change any more."""
        if self._snapshot is None:
            self._snapshot = Snapshot(dict(self._raw))
        return self._snapshot

    def at(self, symbol: str) -> datetime | None:
        """Tell when the mark of a symbol was made."""
        raw = self._raw.get(symbol)
        return None if raw is None else raw.ts

    def seed(self, symbol: str, price: Decimal, ts: datetime) -> None:
        """Take back a mark from before a restart, unless there is one already."""
        if symbol not in self._raw and price.is_finite() and price > 0:
            self._raw[symbol] = _Raw(float(price), ts)
            self._snapshot = None

    def split(self, symbol: str, new: Decimal, old: Decimal) -> None:
        """Divide the mark of a symbol that gives `new` shares for `old` ones."""
        raw = self._raw.get(symbol)
        if raw is not None:
            self._raw[symbol] = _Raw(raw.price * float(old / new), raw.ts, halted=raw.halted)
            self._doubts.pop(symbol, None)
            self._snapshot = None

    def _price(self, symbol: str, price: float, ts: datetime) -> bool:
        if not (0 < price < math.inf):  # false for NaN as well
            return False
        last = self._raw.get(symbol)
        if last is None:
            self._raw[symbol] = _Raw(price, ts, halted=symbol in self._halted)
            return True
        if ts < last.ts or not self._believed(symbol, price, last.price):
            return False
        self._raw[symbol] = _Raw(price, ts, last.bid, last.ask, last.quoted, last.halted)
        return True

    def _quote(self, quote: Quote, ts: datetime, *, priced: bool) -> bool:
        symbol = quote.symbol
        if quote.halted:
            self._halted.add(symbol)
        else:
            self._halted.discard(symbol)
        middle = None if quote.halted else _middle(quote)
        changed = middle is not None and not priced and self._price(symbol, middle, ts)
        last = self._raw.get(symbol)
        if last is None:
            return False
        bid, ask, quoted = last.bid, last.ask, last.quoted
        if middle is not None and (quoted is None or ts >= quoted):
            off = abs(middle - last.price) > self._absurd * last.price
            bid, ask, quoted = (None, None, None) if off else (quote.bid, quote.ask, ts)
        if (bid, ask, quoted, quote.halted) == (last.bid, last.ask, last.quoted, last.halted):
            return changed
        self._raw[symbol] = _Raw(last.price, last.ts, bid, ask, quoted, quote.halted, last.bar_seconds)
        return True

    def _believed(self, symbol: str, price: float, last: float) -> bool:
        if abs(price - last) <= self._absurd * last:
            self._doubts.pop(symbol, None)
            return True
        doubt = self._doubts.get(symbol)
        if doubt is not None and abs(price - doubt.price) <= self._absurd * doubt.price:
            doubt.times += 1
        else:
            doubt = self._doubts[symbol] = _Doubt(price, 1)
        if doubt.times < self._repeats:
            return False
        del self._doubts[symbol]
        return True


def _middle(quote: Quote) -> float | None:
    """Give the middle of a sane quote: two prices, not crossed, not absurdly wide."""
    bid, ask = quote.bid, quote.ask
    if bid is None or ask is None or not (0 < bid <= ask < math.inf):
        return None
    middle = (bid + ask) / 2
    return round(middle, 6) if (ask - bid) <= SANE_SPREAD_PERCENT / 100 * middle else None


def _mark(symbol: str, raw: _Raw) -> Mark:
    if raw.made is None:
        quoted = raw.quoted is not None and raw.ts - raw.quoted <= QUOTE_LIVES
        raw.made = Mark(
            symbol=symbol,
            price=_decimal(raw.price),
            ts=raw.ts,
            bid=_decimal(raw.bid) if quoted and raw.bid is not None else None,
            ask=_decimal(raw.ask) if quoted and raw.ask is not None else None,
            halted=raw.halted,
            bar_seconds=raw.bar_seconds,
        )
    return raw.made


def _decimal(price: float) -> Decimal:
    return Decimal(repr(float(price)))

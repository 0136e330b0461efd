"""Ticks of one symbol, as TWS sends them piece by piece, into quotes, trades and bars.

Trades come from the tick of volume, which has price, size and time of each; a last price alone may be old. Delayed
data have ticks of their own, and are given under the time that they are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from sigma9_core.models import Bar, Quote, Trade

GENERIC: Final = "233"
"""The generic tick that brings each trade."""
PRICES: Final[Mapping[int, str]] = {1: "bid", 2: "ask", 4: "last", 66: "bid", 67: "ask", 68: "last"}
SIZES: Final[Mapping[int, str]] = {0: "bid_size", 3: "ask_size", 69: "bid_size", 70: "ask_size", 71: "last_size"}
LATE: Final = frozenset((66, 67, 68, 69, 70, 71))
HALTED: Final = 49
VOLUME: Final = 48
DELAY: Final = timedelta(minutes=15)
"""How old delayed data are, at least."""
FIVE: Final = 5
MINUTE: Final = 60


class Ticker:
    """What is known of one symbol's market, and what of it is new."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.delayed = False
        self._values: dict[str, float] = {}
        self._halted = False
        self._quoted = False
        self._trades: list[Trade] = []
        self._last: tuple[float, float] | None = None

    def price(self, kind: int, price: float, size: float, now: datetime) -> None:
        """Take a price with its size; one that is not above zero means that there is none."""
        name = PRICES.get(kind)
        if name is None:
            return
        if kind in LATE:
            self.delayed = True
        if name == "last":
            if kind in LATE:
                self._late_trade(price, size, now)
            return
        if price > 0:
            self._values[name] = price
            self._values[f"{name}_size"] = size
        else:
            self._values.pop(name, None)
            self._values.pop(f"{name}_size", None)
        self._quoted = True

    def size(self, kind: int, size: float) -> None:
        """Take a size by itself."""
        name = SIZES.get(kind)
        if name is None or name == "last_size":
            return
        if self._values.get(name) != size:
            self._values[name] = size
            self._quoted = True

    def generic(self, kind: int, value: float) -> None:
        """Take a number; of those only the halt counts."""
        if kind == HALTED and self._halted != (value > 0):
            self._halted = value > 0
            self._quoted = True

    def text(self, kind: int, text: str, now: datetime) -> None:
        """Take a text: of those only trades count, as `price;size;milliseconds;volume;average;single`."""
        if kind != VOLUME:
            return
        try:
            price, size, stamp = (float(part) for part in text.split(";")[:3])
            moment = datetime.fromtimestamp(stamp / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            return  # a volume without a trade has no price
        if price > 0 and size > 0:
            self._trades.append(Trade(self.symbol, min(moment, now), price, size))

    def take(self, now: datetime) -> tuple[list[Quote], list[Trade]]:
        """Give what is new since the last time."""
        trades, self._trades = self._trades, []
        if not self._quoted:
            return [], trades
        self._quoted = False
        value = self._values.get
        quote = Quote(
            self.symbol,
            now - DELAY if self.delayed else now,
            value("bid"),
            value("ask"),
            value("bid_size"),
            value("ask_size"),
            self._halted,
        )
        return [quote], trades

    def _late_trade(self, price: float, size: float, now: datetime) -> None:
        if price > 0 and (price, size) != self._last:
            if self._last is not None:
                self._trades.append(Trade(self.symbol, now - DELAY, price, size))
            self._last = (price, size)


class Minutes:
    """Makes minute bars out of those of five seconds."""

    def __init__(self, symbol: str) -> None:
        self._symbol = symbol
        self._bar: Bar | None = None
        self._begun: datetime | None = None
        """The first bar of five seconds in the minute: one that is not whole is none."""

    def take(self, bar: Bar) -> list[Bar]:
        """Take a bar of five seconds; give the minute that it ends."""
        start = bar.ts.replace(second=0, microsecond=0)
        done: list[Bar] = []
        if self._bar is not None and self._bar.ts != start:
            done += self._whole()
        if self._bar is None:
            self._bar = Bar(self._symbol, start, bar.open, bar.high, bar.low, bar.close, bar.volume, MINUTE)
            self._begun = bar.ts
        else:
            minute = self._bar
            self._bar = Bar(
                self._symbol,
                start,
                minute.open,
                max(minute.high, bar.high),
                min(minute.low, bar.low),
                bar.close,
                minute.volume + bar.volume,
                MINUTE,
            )
        if bar.ts.second >= MINUTE - FIVE:
            done += self._whole()
        return done

    def _whole(self) -> list[Bar]:
        bar, self._bar = self._bar, None
        return [] if bar is None or self._begun != bar.ts else [bar]

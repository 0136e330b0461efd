"""The market: quotes by contract, whether it is open, and which of it a trade has changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal

from sigma9_core.testing.tws.contracts import PRICES, Contracts

Phase = Literal["open", "closed"]
HUNDRED: Final = Decimal(100)


@dataclass(slots=True)
class Quote:
    """What is known of a contract's price."""

    last: Decimal
    bid: Decimal
    ask: Decimal
    last_size: Decimal = HUNDRED
    bid_size: Decimal = HUNDRED
    ask_size: Decimal = HUNDRED
    volume: Decimal = HUNDRED
    open: Decimal = Decimal(0)
    high: Decimal = Decimal(0)
    low: Decimal = Decimal(0)
    close: Decimal = Decimal(0)
    """Of the day before."""
    halted: bool = False
    shortable: Decimal = Decimal(1_000_000)
    """Shares that can be borrowed."""
    seen: list[Decimal] = field(default_factory=list)
    """Prices since the last bar of five seconds."""

    def trade(self, last: Decimal, bid: Decimal, ask: Decimal, size: Decimal) -> None:
        """Take a trade."""
        self.last, self.bid, self.ask, self.last_size = last, bid, ask, size
        self.volume += size
        self.high, self.low = max(self.high, last), min(self.low, last)
        self.seen.append(last)

    def side(self, *, buys: bool) -> Decimal:
        """Give the price at which a market order trades."""
        return self.ask if buys else self.bid

    def ticks(self, *, delayed: bool) -> Iterator[tuple[int, int | None, Decimal, Decimal | None]]:
        """Give tick type, its size's tick type, price and size of everything that a quote shows."""
        late = delayed
        yield 66 if late else 1, 69 if late else 0, self.bid, self.bid_size
        yield 67 if late else 2, 70 if late else 3, self.ask, self.ask_size
        yield 68 if late else 4, 71 if late else 5, self.last, self.last_size
        yield 72 if late else 6, None, self.high, None
        yield 73 if late else 7, None, self.low, None
        yield 75 if late else 9, None, self.close, None
        yield 76 if late else 14, None, self.open, None


class Market:
    """The quotes of every contract."""

    def __init__(self, contracts: Contracts, spread: Decimal) -> None:
        self.contracts = contracts
        self.spread = spread
        self.phase: Phase = "open"
        self.quotes: dict[int, Quote] = {}
        for symbol, (con_id, _, _, price) in PRICES.items():
            if contracts.named(symbol):
                self.begin(con_id, Decimal(price))

    def expect(self, con_id: int) -> None:
        """Give a contract that was made up a price."""
        self.begin(con_id, HUNDRED)

    def begin(self, con_id: int, price: Decimal) -> Quote:
        """Give a contract its first price, which nothing trades at."""
        half = self.spread / 2
        quote = Quote(price, price - half, price + half, open=price, high=price, low=price, close=price)
        self.quotes[con_id] = quote
        return quote

    def move(
        self, con_id: int, last: Decimal, bid: Decimal | None, ask: Decimal | None, size: Decimal = HUNDRED
    ) -> Quote:
        """Let a contract trade at a price; bid and ask are a spread about it unless they are given."""
        quote = self.quotes.get(con_id) or self.begin(con_id, last)
        half = self.spread / 2
        quote.trade(last, last - half if bid is None else bid, last + half if ask is None else ask, size)
        return quote

    def quote(self, con_id: int) -> Quote | None:
        """Give a contract's quote; None where it has none."""
        return self.quotes.get(con_id)

    def price(self, con_id: int) -> Decimal:
        """Give the last price of a contract, 0 where there is none."""
        quote = self.quotes.get(con_id)
        return Decimal(0) if quote is None else quote.last

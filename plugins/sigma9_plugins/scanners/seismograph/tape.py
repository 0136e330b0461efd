"""The tape of one symbol in one session: its trades and minute bars, and what the trigger reads off them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from sigma9_core.models import Bar, Quote, Session, Trade
from sigma9_plugins.scanners.seismograph.ignition import Ignition, judge_bar, judge_trades
from sigma9_plugins.scanners.seismograph.trigger_config import IgnitionConfig
from sigma9_plugins.scanners.seismograph.windows import VOLUME_SECONDS, Flow, Minute, Minutes

BAR_SECONDS: Final = 60


class Tape:
    """Takes trades and bars, each in constant time; its memory is fixed, whatever comes."""

    __slots__ = (
        "_close",
        "_flow",
        "_known_since",
        "_last_trade",
        "_observed",
        "_open",
        "_paid",
        "_volume",
        "high",
        "minutes",
        "price",
    )

    def __init__(self, session: Session, now: datetime, history: Iterable[Bar] = ()) -> None:
        """Begin at a market time, with the session's minute bars so far, oldest first."""
        self.price = math.nan
        """The last trade's, or the last bar's close; not a number before the first."""
        self.high = -math.inf
        """The high of the day."""
        self.minutes = Minutes()
        self._open = session.open.timestamp()
        self._close = session.close.timestamp()
        self._observed = now.timestamp()
        self._known_since = self._observed
        self._flow = Flow(self._observed)
        self._paid = 0.0
        self._volume = 0.0
        self._last_trade = -math.inf
        for bar in history:
            minute = self._sound(bar)
            if minute is not None:
                self._add(minute)

    @property
    def vwap(self) -> float | None:
        """Give the session's volume-weighted average price, None before any volume.

        Volume that no trade told of counts at its bar's typical price, (high + low + close) / 3.
        """
        return self._paid / self._volume if self._volume > 0 else None

    def trade(self, trade: Trade, now: float, quote: Quote | None) -> bool:
        """Take a trade, `now` in seconds since 1970; tell whether it counts (it has a price, in the session)."""
        price, size = trade.price, trade.size
        at = trade.ts.timestamp()
        if at > now:  # noqa: PLR1730 - min() costs as much as the rest of this line, a thousand times a second
            at = now  # what is known can't lie ahead
        if not (0.0 < price < math.inf and 0.0 <= size < math.inf and self._open <= at):
            return False
        self._flow.trade(at, price, size, _side(trade, quote))
        self.minutes.trade(int(at) // BAR_SECONDS, price, size)
        self._paid += price * size
        self._volume += size
        if price > self.high:  # noqa: PLR1730 - likewise
            self.high = price
        self.price = price
        self._last_trade = at
        return True

    def judge(self, now: float, config: IgnitionConfig) -> Ignition | None:
        """Score the symbol by its trades; None where it surely stays below the threshold."""
        self._flow.advance(now)
        known = now - self._known_since >= VOLUME_SECONDS
        return judge_trades(self._flow, self.price, self.minutes.box, config, volume_known=known)

    def bar(self, bar: Bar, config: IgnitionConfig) -> Ignition | None:
        """Take the feed's bar of a minute that has ended; where it came without trades, score the symbol by it.

        A whole minute with volume that was observed without a trade means: the feed gives bars alone.
        """
        minute = self._sound(bar)
        if minute is None:
            return None
        start = minute.start * BAR_SECONDS
        if minute.volume <= 0 or start < self._observed or self._last_trade >= start:
            self._add(minute)
            return None
        ignition = judge_bar(minute, self.minutes, config)
        self._add(minute)
        self.price = minute.close
        return ignition

    def _add(self, minute: Minute) -> None:
        """Add a bar; of its volume only what no trade told of."""
        missed = minute.volume - self.minutes.take(minute)
        if missed > 0:
            self._flow.fill(minute.start, missed)
            self._paid += missed * (minute.high + minute.low + minute.close) / 3
            self._volume += missed
        self._known_since = min(self._known_since, minute.start * BAR_SECONDS)
        self.high = max(self.high, minute.high)

    def _sound(self, bar: Bar) -> Minute | None:
        """Take a one-minute bar of the session; None for any other, and for one that can't be."""
        prices = (bar.open, bar.high, bar.low, bar.close)
        start = bar.ts.timestamp()
        if bar.seconds != BAR_SECONDS or not self._open <= start < self._close:
            return None
        if not all(0.0 < price < math.inf for price in prices) or not bar.low <= bar.close <= bar.high:
            return None
        return Minute(int(start // BAR_SECONDS), *prices, bar.volume) if 0.0 <= bar.volume < math.inf else None


def _side(trade: Trade, quote: Quote | None) -> int:
    """Tell who began a trade: the feed's word, else the quote rule; 0 leaves it to the tick rule."""
    if trade.side is not None:
        return 1 if trade.side == "buy" else -1
    if quote is not None and quote.bid is not None and quote.ask is not None and quote.bid < quote.ask:
        if trade.price >= quote.ask:
            return 1
        if trade.price <= quote.bid:
            return -1
    return 0

"""The simulated market's days: every daily bar as a pure function of (seed, symbol, day).

A symbol lives in blocks of weekdays (`market_blocks`), and nothing is chained beyond one block and its neighbour:
any day can be had at once, in any order, after any restart. Prices are whole cents and volumes whole shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Final

from sigma9_core.calendar import Calendar
from sigma9_core.models import Session
from sigma9_plugins.feeds.market_blocks import BlockBuilder, Draft, events_of
from sigma9_plugins.feeds.market_points import Frame, Point, calm_points, event_points
from sigma9_plugins.feeds.market_stocks import (
    BLOCK,
    NEW_YORK,
    TRADABLE,
    Ignition,
    Kind,
    Outcome,
    Stock,
    found,
    generator,
    minutes_of,
    weekday_date,
    weekday_number,
)

OUTCOMES: Final[tuple[Outcome, ...]] = ("runner", "failure", "runner", "sideways", "runner", "failure")
"""The outcomes of a day's ignitions, in turn, from a place that changes by the day."""
FEWEST_SHARES: Final = 8_000
"""A day has at least this volume: every minute then has a dozen trades."""


@dataclass(frozen=True, slots=True)
class Day:
    """One symbol's day: the daily bar, and the points that its minutes are led through."""

    day: date
    open: int
    high: int
    low: int
    close: int
    volume: int
    points: tuple[Point, ...]
    ignition: Ignition | None = None


class MarketModel:
    """The whole market; safe to call from any thread: everything follows from the seed and is only cached."""

    def __init__(self, seed: int, count: int, calendar: Calendar) -> None:
        self.seed = seed
        self.stocks: Mapping[str, Stock] = {stock.symbol: stock for stock in found(seed, count)}
        self._calendar = calendar
        self._dates = lru_cache(maxsize=1024)(self._make_dates)
        self._drafts = lru_cache(maxsize=8 * count)(self._make_drafts)
        self._days = lru_cache(maxsize=5 * count)(self._make_days)
        self._planted = lru_cache(maxsize=128)(self._make_planted)
        self._ignitions = lru_cache(maxsize=128)(self._make_ignitions)

    def planted(self, day: date) -> Mapping[str, Kind]:
        """Tell which patterns a scan of the session before `day` finds; empty on a day without a session."""
        return self._planted(day)

    def ignitions(self, day: date) -> Mapping[str, Ignition]:
        """Tell which symbols are set off on a day."""
        return self._ignitions(day)

    def day(self, symbol: str, day: date) -> Day | None:
        """Give a symbol's day, None where there is no session."""
        return self._days(symbol, _block_of(self.stocks[symbol], day)).get(day)

    # --- what is planted when ---------------------------------------------------------------------------------

    def _make_planted(self, day: date) -> Mapping[str, Kind]:
        if self._session(day) is None:
            return {}
        planted: dict[str, Kind] = {}
        for stock in self.stocks.values():
            block = _block_of(stock, day)
            for kind, event in events_of(stock, block, self._dates(stock.phase, block)):
                if event == day:
                    planted[stock.symbol] = kind
        return planted

    def _make_ignitions(self, day: date) -> Mapping[str, Ignition]:
        session = self._session(day)
        if session is None:
            return {}
        rng = generator(self.seed, "ignitions", day.toordinal())
        symbols = [symbol for symbol, kind in self.planted(day).items() if kind in TRADABLE]
        rng.shuffle(symbols)
        shift = rng.randrange(len(OUTCOMES))
        first, last = 50, minutes_of(session) - 45
        ignitions: dict[str, Ignition] = {}
        for index, symbol in enumerate(symbols):
            if index < 2:  # 10:06 and 10:10: somebody who starts at 10:00 need not wait
                minute = 36 + 4 * index
            else:
                space = (last - first) / max(1, len(symbols) - 2)
                minute = first + int(space * (index - 2 + 0.2 + 0.6 * rng.random()))
            ignitions[symbol] = Ignition(minute, OUTCOMES[(index + shift) % len(OUTCOMES)])
        return ignitions

    # --- days -------------------------------------------------------------------------------------------------

    def _make_dates(self, phase: int, block: int) -> tuple[date, ...]:
        first = block * BLOCK + phase
        return tuple(day for day in map(weekday_date, range(first, first + BLOCK)) if self._session(day))

    def _make_drafts(self, symbol: str, block: int) -> tuple[Draft, ...]:
        stock = self.stocks[symbol]
        dates = self._dates(stock.phase, block)
        if not dates:
            return ()

        def outcome(day: date) -> Outcome | None:
            ignition = self.ignitions(day).get(symbol)
            return ignition.outcome if ignition is not None else None

        builder = BlockBuilder(stock, dates, outcome, generator(self.seed, symbol, "block", block))
        anchor, target = self._anchor(stock, block), self._anchor(stock, block + 1)
        return builder.build(anchor, target, events_of(stock, block, dates))

    def _anchor(self, stock: Stock, block: int) -> int:
        """Give the close of a block's first session."""
        sway = 0.04 * math.sin(block * 0.9 + (stock.lane or 0))
        noise = 0.02 * generator(self.seed, stock.symbol, "anchor", block).random()
        return round(stock.price * (1 + sway + noise))

    def _make_days(self, symbol: str, block: int) -> Mapping[date, Day]:
        stock = self.stocks[symbol]
        earlier = self._drafts(symbol, block - 1)
        before = earlier[-1].close if earlier else self._anchor(stock, block)
        days: dict[date, Day] = {}
        for index, draft in enumerate(self._drafts(symbol, block)):
            volume, step = draft.volume, draft.close - before
            if index == 0 and step:  # the first day's move is known only here
                volume = round(stock.per_cent * abs(step) * (0.98 if step > 0 else 1.02))
            days[draft.day] = self._day(stock, draft, before, max(FEWEST_SHARES, volume))
            before = draft.close
        return days

    def _day(self, stock: Stock, draft: Draft, before: int, volume: int) -> Day:
        session = self._session(draft.day)
        minutes = minutes_of(session) if session else 390
        frame = Frame(before, max(1, before + draft.gap), draft.close, draft.reach, minutes)
        rng = generator(self.seed, stock.symbol, "day", draft.day.toordinal())
        ignition = self.ignitions(draft.day).get(stock.symbol) if draft.event else None
        points = calm_points(frame, rng) if ignition is None else event_points(stock, ignition, frame, rng)
        prices = [point.price for point in points]
        return Day(draft.day, frame.open, max(prices), min(prices), draft.close, volume, tuple(points), ignition)

    def _session(self, day: date) -> Session | None:
        """Give a day's session; weekdays before the calendar begins count as full sessions."""
        first = self._calendar.first
        if first is not None and day < first and day.weekday() < 5:
            opens = datetime.combine(day, time(9, 30), NEW_YORK)
            return Session(day.isoformat(), opens, opens + timedelta(hours=6, minutes=30))
        return self._calendar.on(day)


def _block_of(stock: Stock, day: date) -> int:
    return (weekday_number(day) - stock.phase) // BLOCK

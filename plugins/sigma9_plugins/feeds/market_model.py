"""The simulated market's days: every daily bar as a pure function of (seed, symbol, day).

A symbol lives in blocks of 28 weekdays. In each block it builds up two accumulation patterns, and after each comes
the day on which it is planted: found by a scan of the session before, and set off during that day if its pattern is
tradable. Nothing is chained beyond one block, so that any day can be had at once, in any order, after any restart.

Prices are whole cents and volumes whole shares. That only the planted symbols show a pattern is so by construction:

- A day moves by 1.4 to 2.4 % and has a range of 2.6 to 3.4 %, so that nothing is quiet by chance (tight range).
- The volume follows the move, never more than `k` shares a cent on a rise and never less on a fall, so that
  the on-balance volume can't rise while the price falls. A planted divergence breaks this on its last day, and
  the day after it pays back: it closes lower on that much more volume.
- Volumes lie between 0.7 and 1.3 of the average (dry-out, accumulation bar); heavier days have large bodies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Final, Literal
from zoneinfo import ZoneInfo

from sigma9_core.calendar import Calendar
from sigma9_core.models import Session

Kind = Literal["imminent", "tight", "absorbing", "heavy", "divergent", "dry"]
"""The planted patterns; `PRIORITY` says what a scan makes of each."""
PRIORITY: Final[Mapping[Kind, int]] = {
    "imminent": 100,  # tight range and OBV divergence
    "tight": 80,  # tight range
    "absorbing": 70,  # accumulation bar and OBV divergence
    "heavy": 50,  # accumulation bar
    "divergent": 30,  # OBV divergence
    "dry": 10,  # volume dry-out
}
TRADABLE: Final[frozenset[Kind]] = frozenset(("imminent", "tight", "absorbing", "heavy"))
Outcome = Literal["runner", "failure", "sideways"]
"""What follows an ignition: it runs 4 to 8 % and falls back; it fails by more than 2 %; it goes nowhere."""
OUTCOMES: Final[tuple[Outcome, ...]] = ("runner", "failure", "runner", "sideways", "runner", "failure")

NEW_YORK: Final = ZoneInfo("America/New_York")
BLOCK: Final = 28
"""Weekdays of a block."""
FIRST_EVENT: Final = 9
SECOND_EVENT: Final = 23
"""The weekdays of a block on which its two planted days fall."""
PAIRS: Final[tuple[tuple[Kind, Kind], ...]] = (
    ("tight", "imminent"),
    ("tight", "absorbing"),
    ("heavy", "imminent"),
    ("dry", "divergent"),
)
"""The patterns of a block; a symbol takes the next pair with each block. Only a second one may diverge."""
FEWEST_SHARES: Final = 8_000
"""A day has at least this volume: every minute then has a dozen trades."""
FEWEST: Final = 40
"""With fewer symbols some days would have nothing planted."""


@dataclass(frozen=True, slots=True)
class Stock:
    """A fictional company: what stays the same all its life."""

    symbol: str
    price: int
    """The level that it returns to, in cents."""
    volume: int
    """The average daily volume, in shares."""
    lane: int | None
    """Its place among the symbols that get patterns; None for the quiet ones in the background."""

    @property
    def phase(self) -> int:
        """Give the weekday on which its blocks begin."""
        return (self.lane or 0) % BLOCK

    @property
    def per_cent(self) -> float:
        """Give the shares that go with a move of one cent: the average move takes the average volume."""
        return self.volume * 2 / sum(self.moves)

    @property
    def moves(self) -> tuple[int, int]:
        """Give the least and the most that an ordinary day moves, in cents.

        The most is at least 5/3 of the least: so four moves or more lead to every price within reach (`bridge`).
        """
        low = math.ceil(self.price * 0.014)
        return low, max(math.ceil(self.price * 0.024), math.ceil(low * 5 / 3))

    def cents(self, percent: float) -> int:
        """Turn percent of the price level into at least one cent."""
        return max(1, round(self.price * percent / 100))


@dataclass(frozen=True, slots=True)
class Ignition:
    """A planned burst: where it begins (minutes after the open) and how it ends."""

    minute: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Point:
    """A price that the day's path goes through at the end of a minute; `wobble` is its noise on the way, in cents."""

    minute: int
    price: int
    wobble: int


@dataclass(frozen=True, slots=True)
class Day:
    """One symbol's day: the daily bar, and the points that its minutes go through."""

    day: date
    open: int
    high: int
    low: int
    close: int
    volume: int
    points: tuple[Point, ...]
    ignition: Ignition | None = None


@dataclass(slots=True)
class _Draft:
    """A day while its block is being made; the close of the day before comes from the day before."""

    day: date
    close: int
    volume: int
    reach: int
    """High less low, in cents, the close before included."""
    gap: int = 0
    event: Kind | None = None


class MarketModel:
    """The whole market; safe to call from any thread, since everything is computed from the seed and only cached."""

    def __init__(self, seed: int, count: int, calendar: Calendar) -> None:
        self.seed = seed
        self.stocks: Mapping[str, Stock] = {stock.symbol: stock for stock in _found(seed, count)}
        self._calendar = calendar
        self._drafts = lru_cache(maxsize=8 * count)(self._make_drafts)
        self._days = lru_cache(maxsize=5 * count)(self._make_days)
        self._sessions = lru_cache(maxsize=1024)(self._make_sessions)
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
        stock = self.stocks[symbol]
        return self._days(symbol, _block_of(stock, day)).get(day)

    def random(self, *key: object) -> random.Random:
        """Make the generator that belongs to a key: the same one at every start of Python."""
        return _random(self.seed, *key)

    # --- what is planted when ---------------------------------------------------------------------------------

    def _make_planted(self, day: date) -> Mapping[str, Kind]:
        if self._session(day) is None:
            return {}
        found: dict[str, Kind] = {}
        for stock in self.stocks.values():
            if stock.lane is None:
                continue
            block = _block_of(stock, day)
            for kind, event in self._events(stock, block, self._sessions(stock.phase, block)):
                if event == day:
                    found[stock.symbol] = kind
        return found

    def _events(self, stock: Stock, block: int, dates: Sequence[date]) -> list[tuple[Kind, date]]:
        """Give a block's planted days: those that are sessions, with enough sessions before them."""
        if stock.lane is None:
            return []
        first = block * BLOCK + stock.phase
        planned = zip(_pair(stock, block), (FIRST_EVENT, SECOND_EVENT), (7, 20), strict=True)
        events = [(kind, _weekday_date(first + slot), need) for kind, slot, need in planned]
        return [(kind, day) for kind, day, need in events if day in dates and dates.index(day) >= need]

    def _make_ignitions(self, day: date) -> Mapping[str, Ignition]:
        session = self._session(day)
        if session is None:
            return {}
        rng = self.random("ignitions", day.toordinal())
        symbols = [symbol for symbol, kind in self.planted(day).items() if kind in TRADABLE]
        rng.shuffle(symbols)
        shift = rng.randrange(len(OUTCOMES))
        first, last = 50, minutes_of(session) - 45
        found: dict[str, Ignition] = {}
        for index, symbol in enumerate(symbols):
            if index < 2:  # 10:06 and 10:10: somebody who starts at 10:00 need not wait
                minute = 36 + 4 * index
            else:
                space = (last - first) / max(1, len(symbols) - 2)
                minute = first + int(space * (index - 2 + 0.2 + 0.6 * rng.random()))
            found[symbol] = Ignition(minute, OUTCOMES[(index + shift) % len(OUTCOMES)])
        return found

    def _make_sessions(self, phase: int, block: int) -> tuple[date, ...]:
        first = block * BLOCK + phase
        return tuple(day for day in map(_weekday_date, range(first, first + BLOCK)) if self._session(day))

    def _session(self, day: date) -> Session | None:
        """Give a day's session; weekdays before the calendar begins count as full sessions."""
        first = self._calendar.first
        if first is not None and day < first and day.weekday() < 5:
            opens = datetime.combine(day, time(9, 30), NEW_YORK)
            return Session(day.isoformat(), opens, opens + timedelta(hours=6, minutes=30))
        return self._calendar.on(day)

    # --- a block's closes and volumes -------------------------------------------------------------------------

    def _make_drafts(self, symbol: str, block: int) -> tuple[_Draft, ...]:
        stock = self.stocks[symbol]
        dates = self._sessions(stock.phase, block)
        if not dates:
            return ()
        rng = self.random(symbol, "block", block)
        low, high = stock.moves
        anchor, target = self._anchor(stock, block), self._anchor(stock, block + 1)
        closes = [anchor]
        special: dict[int, _Draft] = {}
        for kind, day in self._events(stock, block, dates):
            self._build_up(stock, kind, dates, dates.index(day), closes, special, rng)
        closes += bridge(rng, closes[-1], target, len(dates) - len(closes) + 1, low, high)[:-1]
        return tuple(
            special.get(i) or self._plain(stock, dates[i], closes[i], closes[i - 1] if i else None, rng)
            for i in range(len(dates))
        )

    def _build_up(
        self,
        stock: Stock,
        kind: Kind,
        dates: Sequence[date],
        event: int,
        closes: list[int],
        special: dict[int, _Draft],
        rng: random.Random,
    ) -> None:
        """Add the closes up to a planted day, with the special days before it and the day itself."""
        last = event - 1
        diverges = kind in ("imminent", "absorbing", "divergent")
        steps = self._last_steps(stock, kind)
        low, high = stock.moves
        if diverges:  # the close is to lie a little below the one 19 sessions before
            closes += _wander(rng, closes[-1], last - 18 - len(closes), low, high)
            end = closes[last - 19] - stock.cents(0.4 + 0.4 * rng.random())
            moves = last - len(steps) - len(closes) + 1
            closes += bridge(rng, closes[-1], end - sum(steps), moves, low, high)
        else:
            closes += _wander(rng, closes[-1], last - len(steps) - len(closes) + 1, low, high)
        for step in steps:
            closes.append(closes[-1] + step)
        average, per_cent = stock.volume, stock.per_cent
        if kind in ("imminent", "tight"):
            before = last - 5  # a wide day just before makes the five quiet ones count from the fifth on
            wide = self._plain(stock, dates[before], closes[before], closes[before - 1], rng)
            wide.reach = stock.cents(6.5)
            special[before] = wide
            for i in range(last - 4, last + 1):
                share = 0.8 if closes[i] >= closes[i - 1] else 0.35  # a fall on much volume would be distribution
                volume = round(average * (share + 0.15 * rng.random()))
                special[i] = _Draft(dates[i], closes[i], volume, max(2, stock.cents(0.8)))
        if kind == "dry":
            for i, share in zip(range(last - 2, last + 1), (0.48, 0.24, 0.1), strict=True):
                volume = round(average * share * (0.95 + 0.1 * rng.random()))
                special[i] = _Draft(dates[i], closes[i], volume, self._reach(stock, rng))
        peak = {"imminent": 2.0, "divergent": 2.0, "absorbing": 4.6, "heavy": 5.4}.get(kind)
        if peak is not None:
            draft = special.get(last) or _Draft(dates[last], closes[last], 0, self._reach(stock, rng))
            draft.volume = round(average * (peak + 0.2 * rng.random()))
            special[last] = draft
        excess = max(0.0, special[last].volume - per_cent * steps[-1]) if diverges else 0.0
        special[event] = self._event_day(stock, kind, dates[event], closes, excess, rng)
        closes.append(special[event].close)

    def _last_steps(self, stock: Stock, kind: Kind) -> list[int]:
        """Give the moves of the pattern's last days, in cents."""
        if kind == "imminent":
            return [0, 0, -1, 0, 1]
        if kind == "tight":
            return [0, -1, 0, 0, 0]
        if kind == "dry":
            return [0, stock.cents(0.6), 0]
        return [{"absorbing": stock.cents(2.0), "divergent": stock.cents(0.5)}.get(kind, 0)]

    def _event_day(
        self, stock: Stock, kind: Kind, day: date, closes: Sequence[int], excess: float, rng: random.Random
    ) -> _Draft:
        """Draw the planted day; where the pattern diverged it pays back the volume that was too much."""
        ignition = self.ignitions(day).get(stock.symbol)
        outcome = ignition.outcome if ignition else None
        if kind == "absorbing":
            percent = -2.9 - 0.6 * rng.random()  # so large a body is no accumulation bar, whatever its volume
        elif kind in ("imminent", "divergent"):
            percent = -0.3 - 0.3 * rng.random()
        elif outcome == "runner":
            percent = 2.6 + 1.8 * rng.random()
        elif kind == "dry":
            percent = rng.choice((1, -1)) * (2.2 + 0.4 * rng.random())
        else:
            percent = -1.9 - 0.8 * rng.random()
        step = (1 if percent > 0 else -1) * stock.cents(abs(percent))
        volume = stock.per_cent * abs(step) * (0.98 if step > 0 else 1.02)
        if excess:
            volume += excess + 0.1 * stock.volume
        return _Draft(day, closes[-1] + step, round(volume), self._reach(stock, rng), event=kind)

    def _plain(self, stock: Stock, day: date, close: int, before: int | None, rng: random.Random) -> _Draft:
        """Draw a day of no importance; without a close before, the move is taken up when the blocks are joined."""
        noise = 0.03 * rng.random()
        step = 0 if before is None else close - before
        volume = stock.volume * (0.85 + 0.3 * rng.random())
        if step:
            volume = stock.per_cent * abs(step) * (1 - noise if step > 0 else 1 + noise)
        gap = round(stock.price * 0.003 * (2 * rng.random() - 1))
        return _Draft(day, close, round(volume), self._reach(stock, rng), gap)

    def _reach(self, stock: Stock, rng: random.Random) -> int:
        return stock.cents(2.6 + 0.8 * rng.random())

    def _anchor(self, stock: Stock, block: int) -> int:
        """Give the close of a block's first session."""
        sway = 0.04 * math.sin(block * 0.9 + (stock.lane or 0))
        return round(stock.price * (1 + sway + 0.02 * self.random(stock.symbol, "anchor", block).random()))

    # --- from closes to days ----------------------------------------------------------------------------------

    def _make_days(self, symbol: str, block: int) -> Mapping[date, Day]:
        stock = self.stocks[symbol]
        drafts = self._drafts(symbol, block)
        earlier = self._drafts(symbol, block - 1)
        before = earlier[-1].close if earlier else self._anchor(stock, block)
        days: dict[date, Day] = {}
        for index, draft in enumerate(drafts):
            rng = self.random(symbol, "day", draft.day.toordinal())
            volume = draft.volume
            step = draft.close - before
            if index == 0 and step:  # the first day's move is known only here
                volume = round(stock.per_cent * abs(step) * (0.98 if step > 0 else 1.02))
            days[draft.day] = self._day(stock, draft, before, max(FEWEST_SHARES, volume), rng)
            before = draft.close
        return days

    def _day(self, stock: Stock, draft: _Draft, before: int, volume: int, rng: random.Random) -> Day:
        session = self._session(draft.day)
        minutes = minutes_of(session) if session else 390
        opens = max(1, before + draft.gap)
        ignition = self.ignitions(draft.day).get(stock.symbol) if draft.event else None
        if ignition is None:
            points = self._calm_points(stock, draft, before, opens, minutes, rng)
        else:
            points = event_points(stock, ignition, opens, draft.close, minutes, rng)
        prices = [point.price for point in points]
        return Day(draft.day, opens, max(prices), min(prices), draft.close, volume, tuple(points), ignition)

    def _calm_points(
        self, stock: Stock, draft: _Draft, before: int, opens: int, minutes: int, rng: random.Random
    ) -> list[Point]:
        """Lead the path through a high and a low that are `reach` apart and hold the close before between them."""
        top, bottom = max(before, opens, draft.close), min(before, opens, draft.close)
        spare = max(0, draft.reach - (top - bottom))
        above = rng.randint(0, spare)
        high, low = top + above, max(1, bottom - (spare - above))
        early, late = sorted(rng.sample(range(8, minutes - 8), 2))
        wobble = max(1, (high - low) // 8)
        first, second = (high, low) if draft.close < opens else (low, high)
        return [
            Point(-1, opens, 0),
            Point(early, first, wobble),
            Point(late, second, wobble),
            Point(minutes - 1, draft.close, wobble),
        ]


# --- an ignition's path ---------------------------------------------------------------------------------------


def event_points(
    stock: Stock, ignition: Ignition, opens: int, close: int, minutes: int, rng: random.Random
) -> list[Point]:
    """Lead a planted day's path: a tight box, the break-out, what comes of it, and on to the close."""
    start = ignition.minute
    box = stock.cents(0.25)
    # one wiggle in the box's last half hour each way, so that its high and low are known exactly
    points = [
        Point(-1, opens, 0),
        Point(max(1, start - 24), opens + box, box // 2),
        Point(start - 12, opens - box, box // 2),
        Point(start - 1, opens + box // 2, box // 2),
    ]
    top = opens + box
    entry = max(top + 2, math.ceil(top * 1.0085))
    points.append(Point(start, entry, 0))
    if ignition.outcome == "runner":
        peak_at = start + rng.randint(6, 13)
        peak = round(entry * (1.05 + 0.035 * rng.random()))
        points += [
            Point(start + 1, round(entry * 1.019), 0),
            Point(start + 2, round(entry * 1.037), 0),
            Point(peak_at, peak, 1),
            Point(peak_at + 4, round(peak * 0.97), 1),
        ]
        second = peak_at + 4 + rng.randint(14, 24)
        if rng.random() < 0.5 and second + 12 < minutes:  # a second leg to a new high: the double tap
            points += [
                Point(second - 3, round(peak * 0.985), 1),
                Point(second, round(peak * 1.012), 1),
                Point(second + 6, round(peak * 0.985), 1),
            ]
    elif ignition.outcome == "failure":
        points += [
            Point(start + 1, round(entry * 0.993), 0),
            Point(start + 2, round(entry * 0.972), 0),
            Point(start + 4, round(entry * 0.965), 1),
        ]
    else:
        points += [
            Point(start + 2, round(entry * 1.003), 1),
            Point(start + 4, round(entry * 0.996), 1),
            Point(start + 7, round(entry * 1.001), 1),
        ]
    if ignition.outcome != "runner":  # a wide day, so that the quiet days before it end here
        dip_at = rng.randint(points[-1].minute + 8, minutes - 10)
        points.append(Point(dip_at, min(close, opens) - stock.cents(4.8), stock.cents(0.3)))
    points.append(Point(minutes - 1, close, stock.cents(0.3)))
    return points


# --- arithmetic -----------------------------------------------------------------------------------------------


def bridge(rng: random.Random, start: int, target: int, moves: int, low: int, high: int) -> list[int]:
    """Give the closes of `moves` days that end at `target`, each moving by `low` to `high` cents.

    From four moves on every target within reach can be had so; a target beyond it, or fewer moves, takes
    larger or smaller moves.
    """
    if moves <= 0:
        return []
    gap = target - start
    fits = [
        ups
        for ups in range(moves + 1)
        if ups * low - (moves - ups) * high <= gap <= ups * high - (moves - ups) * low
    ]
    if not fits:
        return [start + gap * (i + 1) // moves for i in range(moves)]
    nearest = min(abs(2 * ups - moves) for ups in fits)
    ups = rng.choice([ups for ups in fits if abs(2 * ups - moves) <= nearest + 1])
    signs = [1] * ups + [-1] * (moves - ups)
    rng.shuffle(signs)
    sizes = [rng.randint(low, high) for _ in signs]
    order = list(range(moves))
    rng.shuffle(order)
    missing = gap - sum(sign * size for sign, size in zip(signs, sizes, strict=True))
    for i in order:
        wanted = sizes[i] + signs[i] * missing
        allowed = min(high, max(low, wanted))
        missing -= signs[i] * (allowed - sizes[i])
        sizes[i] = allowed
    closes, price = [], start
    for sign, size in zip(signs, sizes, strict=True):
        price += sign * size
        closes.append(price)
    return closes


def _wander(rng: random.Random, start: int, moves: int, low: int, high: int) -> list[int]:
    """Give the closes of days that go nowhere in particular: about as many rises as falls."""
    if moves <= 0:
        return []
    ups = (moves + rng.randrange(2)) // 2
    drift = sum(rng.choice((low, high)) for _ in range(ups)) - (moves - ups) * (low + high) // 2
    return bridge(rng, start, start + drift, moves, low, high)


def minutes_of(session: Session) -> int:
    """Count a session's minutes."""
    return round((session.close - session.open).total_seconds() / 60)


def _weekday_number(day: date) -> int:
    """Number the weekdays without a gap; a weekend has the number of its Friday."""
    weeks, weekday = divmod(day.toordinal() - 1, 7)
    return weeks * 5 + min(weekday, 4)


def _weekday_date(number: int) -> date:
    weeks, weekday = divmod(number, 5)
    return date.fromordinal(weeks * 7 + weekday + 1)


def _block_of(stock: Stock, day: date) -> int:
    return (_weekday_number(day) - stock.phase) // BLOCK


def _pair(stock: Stock, block: int) -> tuple[Kind, Kind]:
    return PAIRS[((stock.lane or 0) // BLOCK + block) % len(PAIRS)]


def _random(*key: object) -> random.Random:
    mixed = 0xCBF29CE484222325
    for part in key:
        for byte in str(part).encode() + b"|":
            mixed = ((mixed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return random.Random(mixed)  # noqa: S311 - a simulated market, no secret


def _found(seed: int, count: int) -> list[Stock]:
    """Found the companies: most at 3.00 to 8.40 USD, a few in the background dearer or hardly traded."""
    rng = _random(seed, "stocks")
    names = [a + b + c + d for a in "BDFGKLMPRSTVZ" for b in "AEIOU" for c in "BDKLMNPRTVX" for d in "AEIO"]
    _random("names").shuffle(names)  # the same names whatever the seed
    background = max(4, count // 15)
    symbols = names[:count]
    lanes = list(range(count - background))
    rng.shuffle(lanes)
    stocks = []
    for index, symbol in enumerate(symbols):
        if index < count - background:
            price = round(300 * (840 / 300) ** rng.random())
            volume = round(250_000 * 10 ** rng.random())
            stocks.append(Stock(symbol, price, volume, lanes[index]))
        elif index % 2:
            stocks.append(Stock(symbol, rng.randint(1_400, 6_000), round(800_000 * 4 ** rng.random()), None))
        else:
            stocks.append(Stock(symbol, rng.randint(300, 800), rng.randint(30_000, 60_000), None))
    return sorted(stocks, key=lambda stock: stock.symbol)

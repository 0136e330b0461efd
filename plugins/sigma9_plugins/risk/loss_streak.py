"""R19: no entries for a while after several losing trades in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from operator import is_
from typing import Annotated, Any

from pydantic import Field

from sigma9_core.clock import rfc3339
from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView, Trip
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ClosedTrade, Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_plugins.risk.figures import Positive

Scope = str | None
"""The strategy whose trades are counted; None: everybody's."""


class LossStreakConfig(Frozen):
    """Settings of `loss_streak`; without `losses_in_a_row` it is off."""

    losses_in_a_row: Annotated[int, Field(ge=1)] | None = None
    """Closed trades without a gain, one after the other, at which entries stop."""
    cool_down_minutes: Positive | None = Decimal(60)
    """Market time from the last loss until entries are taken again; null: until a person clears the trip."""
    per_strategy: bool = True
    """Whether each strategy's own losses are counted as well as everybody's."""


@dataclass(frozen=True, slots=True)
class Streak:
    """Losses in a row that nothing has ended yet."""

    count: int
    last: datetime
    """When the newest one was closed."""


@dataclass(frozen=True, slots=True)
class Latch:
    """A trip of one scope; a later loss makes it last longer, a gain ends the streak but not the trip."""

    streak: Streak
    until: datetime | None
    """When it ends by itself; None: a person clears it."""
    told: bool

    def shut(self, now: datetime) -> bool:
        """Tell whether it stands at a market time."""
        return self.until is None or now < self.until


class LossStreak(RiskRule):
    """Stops entries, of everybody or of one strategy, after so many losing trades in a row.

    Only a gain (or a person) ends a streak: after the cool-down the next loss stops entries again.
    """

    code = "R19"

    def __init__(self, name: str, config: LossStreakConfig) -> None:
        super().__init__(name)
        self._losses = config.losses_in_a_row
        self._limit = None if config.losses_in_a_row is None else Decimal(config.losses_in_a_row)
        minutes = config.cool_down_minutes
        self._cool_down = None if minutes is None else timedelta(minutes=float(minutes))
        self._per_strategy = config.per_strategy
        self._latches: dict[Scope, Latch] = {}
        self._seen: Sequence[ClosedTrade] = ()
        """The trades of the last look; the same object until one closes."""
        self._streaks: dict[Scope, Streak] = {}
        """What they come to."""
        self._since: datetime | None = None
        """Trades that were closed up to here do not count: a person has cleared them."""
        self._clearing = False
        """A person has cleared everything that the next look finds."""

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the trades so far before an entry."""
        if self._losses is None or order.intent != "entry":
            return self.allow()
        streaks = self._count(view.closed)
        for scope in self._scopes(order.strategy):
            for latch in (self._latch(streaks.get(scope)), self._latches.get(scope)):
                if latch is not None and latch.shut(view.now):
                    lost, until = latch.streak.count, latch.until
                    end = "a person clears it" if until is None else rfc3339(until)
                    return self.refuse(f"{_lost(scope, lost)}: no entries until {end}", Decimal(lost), self._limit)
        own = streaks.get(None)
        return self.allow(Decimal(0 if own is None else own.count), self._limit)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the longest streak there is now, and whether entries are stopped, by whomever's losses."""
        if self._losses is None:
            return RuleUsage(rule=self.name)
        streaks = self._count(view.closed)
        longest = max((s.count for scope, s in streaks.items() if scope is None or self._per_strategy), default=0)
        shut = [latch for latch in self._latches.values() if latch.shut(view.now)]
        ends = [latch.until for latch in shut]
        until = None if None in ends else max((end for end in ends if end is not None), default=None)
        return RuleUsage(rule=self.name, used=Decimal(longest), limit=self._limit, tripped=bool(shut), until=until)

    def trip(self, view: RiskView) -> Trip | None:
        """Count the trades that have closed; tell a trip once, everybody's before a strategy's."""
        if self._losses is None or self._limit is None:
            return None
        if self._clearing:
            newest = view.closed[-1].closed_at if view.closed else view.now
            self._since, self._clearing = max(view.now, newest), False
            self._seen, self._streaks = view.closed, {}
        if view.closed is not self._seen:
            self._streaks, self._seen = dict(self._count(view.closed)), view.closed
        for scope in [scope for scope, latch in self._latches.items() if not latch.shut(view.now)]:
            del self._latches[scope]
        for scope, streak in self._streaks.items():
            self._follow(scope, streak, view.now)
        untold = [scope for scope, latch in self._latches.items() if not latch.told]
        if not untold:
            return None
        scope = None if None in untold else untold[0]
        lost = self._latches[scope].streak
        for other in untold:  # a strategy's trip by the very loss that stops everybody is no news
            if other == scope or (scope is None and self._latches[other].streak.last == lost.last):
                self._latches[other] = replace(self._latches[other], told=True)
        return Trip(
            rule=self.name,
            reason=_lost(scope, lost.count),
            kill=False,
            used=Decimal(lost.count),
            limit=self._limit,
        )

    def clear(self) -> None:
        """Let entries in again: the losses so far do not count any more."""
        self._latches.clear()
        self._streaks = {}
        self._clearing = True

    def memory(self) -> Mapping[str, Any]:
        """Give the trips, and what a person has cleared; the trades themselves are in the journal."""
        if not self._latches and not self._clearing and self._since is None:
            return {}
        return {
            "since": None if self._since is None else rfc3339(self._since),
            "clearing": self._clearing,
            "trips": [
                {
                    "strategy": scope,
                    "losses": latch.streak.count,
                    "last": rfc3339(latch.streak.last),
                    "until": None if latch.until is None else rfc3339(latch.until),
                }
                for scope, latch in self._latches.items()
            ],
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take back what `memory` gave."""
        since = memory.get("since")
        self._since = None if since is None else datetime.fromisoformat(since)
        self._clearing = bool(memory.get("clearing"))
        for kept in memory.get("trips", ()):
            until = None if kept["until"] is None else datetime.fromisoformat(kept["until"])
            streak = Streak(int(kept["losses"]), datetime.fromisoformat(kept["last"]))
            self._latches[kept["strategy"]] = Latch(streak, until, told=True)
        self._seen, self._streaks = (), {}

    def _scopes(self, strategy: str | None) -> tuple[Scope, ...]:
        return (None, strategy) if self._per_strategy and strategy is not None else (None,)

    def _follow(self, scope: Scope, streak: Streak, now: datetime) -> None:
        """Trip a scope, or let its trip last longer."""
        if scope is not None and not self._per_strategy:
            return
        new = self._latch(streak)
        old = self._latches.get(scope)
        if new is None or not new.shut(now) or (old is not None and old.streak.last >= streak.last):
            return
        self._latches[scope] = replace(new, told=old is not None and old.told)

    def _latch(self, streak: Streak | None) -> Latch | None:
        """Give the trip that a streak makes, None where it is too short."""
        if streak is None or self._losses is None or streak.count < self._losses:
            return None
        return Latch(streak, None if self._cool_down is None else streak.last + self._cool_down, told=False)

    def _count(self, closed: Sequence[ClosedTrade]) -> Mapping[Scope, Streak]:
        """Give the streaks that the trades end with; those of the last look are not counted again."""
        if closed is self._seen:
            return self._streaks
        if self._clearing:
            return {}
        begun = len(self._seen)
        goes_on = begun <= len(closed) and all(map(is_, closed, self._seen))  # a bust may change any of them
        streaks = dict(self._streaks) if goes_on else {}
        for index in range(begun if goes_on else 0, len(closed)):
            trade = closed[index]
            if self._since is not None and trade.closed_at <= self._since:
                continue
            gained = trade.result.is_finite() and trade.result > 0
            for scope in {None, trade.strategy}:
                before = streaks.pop(scope, None)
                if not gained:
                    streaks[scope] = Streak(1 if before is None else before.count + 1, trade.closed_at)
        return streaks


def _lost(scope: Scope, losses: int) -> str:
    what = "trade lost" if losses == 1 else "trades in a row lost"
    return f"{losses} {what}" if scope is None else f"{losses} {what} by {scope}"


def build(config: LossStreakConfig, context: PluginContext) -> LossStreak:
    """Build the rule of one instance."""
    return LossStreak(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `loss_streak`."""
    register("loss_streak", build, config=LossStreakConfig)

"""R18: no entries after a series of fills at prices much worse than expected."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from sigma9_core.clock import rfc3339
from sigma9_core.contracts import Execution, PluginContext, Register, RiskRule, RiskView, Trip
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.pricing import usable
from sigma9_plugins.risk.figures import Positive, plain

GRAIN: Final = Decimal("0.0001")
"""Slippage is kept to a ten-thousandth of a basis point."""
MOST: Final = Decimal(1_000_000)
"""No fill counts as more than a hundred times its expected price, so that nonsense stays a number."""
REMEMBERED: Final = 128
"""Executions that are known as counted; the view never shows as many."""

Scope = str | None
"""The strategy whose fills are judged; None: everybody's."""


class SlippageWatchConfig(Frozen):
    """Settings of `slippage_watch`; without `max_basis_points` it is off."""

    max_basis_points: Positive | None = None
    """The average loss against the expected price, in hundredths of a percent of it."""
    fills: Annotated[int, Field(ge=1, le=100)] = 20
    """How many of the newest fills the average is of, entries and exits alike."""
    least: Annotated[int, Field(ge=1)] = 5
    """Fewer fills than these prove nothing."""
    cool_down_minutes: Positive | None = None
    """Market time until entries are taken again by themselves; absent, a person clears the trip."""

    @model_validator(mode="after")
    def _window(self) -> SlippageWatchConfig:
        if self.least > self.fills:
            raise ValueError(
                f"least: {self.least} fills never come together where only {self.fills} are looked at"
            )
        return self


@dataclass(frozen=True, slots=True)
class Latch:
    """A trip of one scope."""

    average: Decimal
    until: datetime | None
    """When it ends by itself; None: a person clears it."""

    def shut(self, now: datetime) -> bool:
        """Tell whether it stands at a market time."""
        return self.until is None or now < self.until


class SlippageWatch(RiskRule):
    """Stops entries, of everybody or of one strategy, where fills have cost too much on average.

    Each fill counts once, by its execution's id: what has led to a trip, or was cleared, leads to no other.
    """

    code = "R18"

    def __init__(self, name: str, config: SlippageWatchConfig) -> None:
        super().__init__(name)
        self._config = config
        minutes = config.cool_down_minutes
        self._cool_down = None if minutes is None else timedelta(minutes=float(minutes))
        self._windows: dict[Scope, deque[Decimal]] = {}
        self._latches: dict[Scope, Latch] = {}
        self._counted: dict[str, None] = {}
        """Ids of the executions that have been counted, oldest first."""
        self._moved: set[Scope] = set()
        """Scopes whose average has not been judged since it changed."""

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the fills so far before an entry."""
        limit = self._config.max_basis_points
        if limit is None or order.intent != "entry":
            return self.allow()
        for scope in (None, order.strategy):
            latch = self._latches.get(scope)
            if latch is not None and latch.shut(view.now):
                end = "a person clears it" if latch.until is None else rfc3339(latch.until)
                return self.refuse(
                    f"{_whose(scope)} cost {latch.average:.1f} basis points on average, more than {plain(limit)}: "
                    f"no entries until {end}",
                    latch.average,
                    limit,
                )
        fresh = self._fresh(view.executions)
        if fresh:
            for scope in (None, order.strategy):
                average = self._average(scope, fresh)
                if average is not None and average > limit:
                    reason = (
                        f"{_whose(scope)} cost {average:.1f} basis points on average, more than {plain(limit)}"
                    )
                    return self.refuse(reason, average, limit)
        return self.allow(self._average(None, fresh), limit)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the worst average in basis points, a gain as a negative number, and whether entries are stopped."""
        limit = self._config.max_basis_points
        if limit is None:
            return RuleUsage(rule=self.name)
        shut = [latch for latch in self._latches.values() if latch.shut(view.now)]
        averages = [latch.average for latch in shut]
        if not averages:
            found = (self._average(scope) for scope in self._windows)
            averages = [average for average in found if average is not None]
        ends = [latch.until for latch in shut]
        until = None if None in ends else max((end for end in ends if end is not None), default=None)
        used = max(averages, default=None)
        return RuleUsage(rule=self.name, used=used, limit=limit, tripped=bool(shut), until=until)

    def trip(self, view: RiskView) -> Trip | None:
        """Count what has filled since the last look; tell a trip once, everybody's before a strategy's."""
        limit = self._config.max_basis_points
        if limit is None:
            return None
        for scope in [scope for scope, latch in self._latches.items() if not latch.shut(view.now)]:
            del self._latches[scope]
            self._moved.add(scope)
        for execution in self._fresh(view.executions):
            self._count(execution)
        if None in self._latches:
            return None  # everybody is stopped; a strategy's own fills are judged once that ends
        while self._moved:
            scope = None if None in self._moved else min(filter(None, self._moved))
            self._moved.discard(scope)
            average = self._average(scope)
            if average is None or average <= limit or scope in self._latches:
                continue
            until = None if self._cool_down is None else view.now + self._cool_down
            self._latches[scope] = Latch(average, until)
            if scope is None:  # one series is told once
                self._windows.clear()
                self._moved.clear()
            else:
                del self._windows[scope]
            reason = f"{_whose(scope)} cost {average:.1f} basis points on average, more than {plain(limit)}"
            return Trip(rule=self.name, reason=reason, kill=False, used=average, limit=limit)
        return None

    def clear(self) -> None:
        """Let entries in again; only fills from here on count."""
        self._latches.clear()
        self._windows.clear()
        self._moved.clear()

    def memory(self) -> Mapping[str, Any]:
        """Give the trips, the fills that averages are of, and which executions have been counted."""
        if not self._counted and not self._latches:
            return {}
        return {
            "counted": list(self._counted),
            "fills": [
                {"strategy": scope, "basis_points": [str(each) for each in window]}
                for scope, window in self._windows.items()
            ],
            "trips": [
                {
                    "strategy": scope,
                    "average": str(latch.average),
                    "until": None if latch.until is None else rfc3339(latch.until),
                }
                for scope, latch in self._latches.items()
            ],
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take back what `memory` gave."""
        self._counted = dict.fromkeys(memory.get("counted", ()))
        for kept in memory.get("fills", ()):
            window = self._window(kept["strategy"])
            window.extend(Decimal(each) for each in kept["basis_points"])
            self._moved.add(kept["strategy"])  # the limit may be another one now
        for kept in memory.get("trips", ()):
            until = None if kept["until"] is None else datetime.fromisoformat(kept["until"])
            self._latches[kept["strategy"]] = Latch(Decimal(kept["average"]), until)

    def _fresh(self, executions: Sequence[Execution]) -> Sequence[Execution]:
        """Give the executions that have not been counted: they are the newest ones."""
        first = len(executions)
        while first and executions[first - 1].fill.exec_id not in self._counted:
            first -= 1
        return executions[first:]

    def _count(self, execution: Execution) -> None:
        exec_id = execution.fill.exec_id
        if exec_id in self._counted:
            return
        self._counted[exec_id] = None
        if len(self._counted) > REMEMBERED:
            del self._counted[next(iter(self._counted))]
        lost = slippage(execution)
        if lost is None:
            return
        for scope in {None, execution.strategy}:
            self._window(scope).append(lost)
            self._moved.add(scope)

    def _window(self, scope: Scope) -> deque[Decimal]:
        return self._windows.setdefault(scope, deque(maxlen=self._config.fills))

    def _average(self, scope: Scope, fresh: Sequence[Execution] = ()) -> Decimal | None:
        """Give the average of a scope's newest fills, None where there are too few."""
        values = list(self._windows.get(scope, ()))
        for execution in fresh:
            if scope is None or execution.strategy == scope:
                lost = slippage(execution)
                if lost is not None:
                    values.append(lost)
        values = values[-self._config.fills :]
        return sum(values, ZERO) / len(values) if len(values) >= self._config.least else None


def slippage(execution: Execution) -> Decimal | None:
    """Give what a fill lost against its expected price in basis points, negative for a gain; None: not known."""
    expected, price = execution.expected, execution.fill.price
    if not usable(expected) or not usable(price):
        return None
    lost = price - expected if execution.fill.side == "buy" else expected - price
    return max(min(lost / expected * 10_000, MOST), -MOST).quantize(GRAIN)


def _whose(scope: Scope) -> str:
    return "the newest fills" if scope is None else f"the newest fills of {scope}"


def build(config: SlippageWatchConfig, context: PluginContext) -> SlippageWatch:
    """Build the rule of one instance."""
    return SlippageWatch(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `slippage_watch`."""
    register("slippage_watch", build, config=SlippageWatchConfig)

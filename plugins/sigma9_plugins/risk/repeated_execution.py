"""R10: a strategy that enters the same symbol again and again is switched off until a person enables it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import Field

from sigma9_core.clock import rfc3339
from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView, Submission, Trip
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Verdict

SETTLING: Final = timedelta(seconds=5)
"""Market time in which a strategy's entries are refused after its trip: what it has signalled while it is being
switched off must not count as the beginning of a new row."""
FORGOTTEN: Final = timedelta(minutes=10)
"""How long the core shows an order that passed the gate."""


class RepeatedExecutionConfig(Frozen):
    """Settings of `repeated_execution`."""

    max_entries: Annotated[int, Field(ge=1)] = 5
    """Entries of one symbol by one strategy, filled or not; with this one it is switched off."""
    window_seconds: Annotated[float, Field(gt=0, le=FORGOTTEN.total_seconds())] = 300.0
    """On the market clock; 600 at most, the core remembers no longer."""


@dataclass(slots=True)
class Stop:
    """A strategy's trip."""

    at: datetime
    """When it tripped; entries up to then do not count any more."""
    over: bool = False
    """It has entered again, so a person has enabled it."""


class RepeatedExecution(RiskRule):
    """Refuses an entry beyond the limit, and has the strategy switched off that reached it.

    Once a person has enabled the strategy again its count starts afresh, in every symbol. A person's own orders
    count together and are refused beyond the limit, but switch nothing off. `risk_clear` forgives all entries up
    to the last look at the market.
    """

    code = "R10"

    def __init__(self, name: str, config: RepeatedExecutionConfig) -> None:
        super().__init__(name)
        self._max = config.max_entries
        self._window = timedelta(seconds=config.window_seconds)
        self._stops: dict[str, Stop] = {}
        self._looked_at: datetime | None = None
        self._cleared_at: datetime | None = None
        self._newest: Submission | None = None

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge an entry by those that passed before it."""
        if order.intent != "entry":
            return self.allow()
        strategy, limit = order.strategy, Decimal(self._max)
        stop = self._stops.get(strategy) if strategy is not None else None
        if stop is not None and view.now - stop.at < SETTLING:
            return self.refuse(
                f"the strategy {strategy} was switched off a moment ago, for {self._max} entries of one symbol "
                f"within {self._window.total_seconds():g} s: look into it, then enable it",
                limit,
                limit,
            )
        since, symbol, count = self._since(strategy, view), order.symbol, 1
        for sent in reversed(view.recent):
            if sent.at <= since:
                break
            request = sent.request
            if request.symbol == symbol and request.strategy == strategy and request.intent == "entry":
                count += 1
        if count > self._max:
            return self.refuse(
                f"it would be entry {count} of {symbol} by {_who(strategy)} within "
                f"{self._window.total_seconds():g} s, more than {self._max}",
                Decimal(count),
                limit,
            )
        return self.allow(Decimal(count), limit)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the most entries of one symbol by one strategy, and whether one is switched off because of it."""
        used = max(self._counts(view).values(), default=0)
        tripped = any(not stop.over for stop in self._stops.values())
        return RuleUsage(rule=self.name, used=Decimal(used), limit=Decimal(self._max), tripped=tripped)

    def trip(self, view: RiskView) -> Trip | None:
        """Tell that a strategy has reached the limit, once; with it the strategy's count starts afresh."""
        self._looked_at = view.now
        newest = view.recent[-1] if view.recent else None
        if newest is self._newest:
            return None  # nothing has passed since the last look, and counts only shrink with time
        self._look_back(view)
        for (strategy, symbol), count in self._counts(view).items():
            if count >= self._max and strategy is not None:
                self._stops[strategy] = Stop(view.now)
                return Trip(
                    rule=self.name,
                    reason=f"the strategy {strategy} entered {symbol} {count} times within "
                    f"{self._window.total_seconds():g} s: it is switched off until a person enables it",
                    kill=False,
                    used=Decimal(count),
                    limit=Decimal(self._max),
                    strategy=strategy,
                )
        self._newest = newest
        return None

    def clear(self) -> None:
        """Forget every trip, and forgive the entries up to the last look."""
        self._stops.clear()
        self._cleared_at = self._looked_at

    def memory(self) -> Mapping[str, Any]:
        """Give the trips, and when a person has cleared them."""
        kept: dict[str, Any] = {}
        if self._stops:
            kept["stops"] = {
                strategy: {"at": rfc3339(stop.at), "over": stop.over} for strategy, stop in self._stops.items()
            }
        if self._cleared_at is not None:
            kept["cleared_at"] = rfc3339(self._cleared_at)
        return kept

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take them back; a trip is not told again, the engine remembers what it has switched off."""
        for strategy, stop in memory.get("stops", {}).items():
            self._stops[strategy] = Stop(datetime.fromisoformat(stop["at"]), bool(stop["over"]))
        if "cleared_at" in memory:
            self._cleared_at = datetime.fromisoformat(memory["cleared_at"])

    def _since(self, strategy: str | None, view: RiskView) -> datetime:
        """Give the time after which a strategy's entries count."""
        since = view.now - self._window
        if self._cleared_at is not None and self._cleared_at > since:
            since = self._cleared_at
        stop = self._stops.get(strategy) if strategy is not None else None
        return since if stop is None else max(since, stop.at)

    def _counts(self, view: RiskView) -> Counter[tuple[str | None, str]]:
        """Count the entries that still count, by strategy and symbol."""
        counts: Counter[tuple[str | None, str]] = Counter()
        since: dict[str | None, datetime] = {}
        for sent in _entries(view, view.now - self._window):
            request = sent.request
            if request.strategy not in since:
                since[request.strategy] = self._since(request.strategy, view)
            if sent.at > since[request.strategy]:
                counts[request.strategy, request.symbol] += 1
        return counts

    def _look_back(self, view: RiskView) -> None:
        """Notice which strategies are at work again, and drop what makes no difference any more."""
        for sent in _entries(view, view.now - FORGOTTEN):
            stop = self._stops.get(sent.request.strategy or "")
            if stop is not None and sent.at > stop.at:
                stop.over = True
        for strategy in [name for name, s in self._stops.items() if s.over and view.now - s.at > FORGOTTEN]:
            del self._stops[strategy]


def _entries(view: RiskView, since: datetime) -> list[Submission]:
    """List the entries that passed after a time, newest first."""
    found = []
    for sent in reversed(view.recent):
        if sent.at <= since:
            break
        if sent.request.intent == "entry":
            found.append(sent)
    return found


def _who(strategy: str | None) -> str:
    return "persons" if strategy is None else f"the strategy {strategy}"


def build(config: RepeatedExecutionConfig, context: PluginContext) -> RepeatedExecution:
    """Build the rule of one instance."""
    return RepeatedExecution(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `repeated_execution`."""
    register("repeated_execution", build, config=RepeatedExecutionConfig)

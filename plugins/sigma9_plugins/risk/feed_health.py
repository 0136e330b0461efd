"""R25: no entries on a feed that is down, or in a symbol that has fallen silent."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field

from sigma9_core.contracts import Mark, PluginContext, Register, RiskRule, RiskView, Trip
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_plugins.risk.figures import Positive


class FeedHealthConfig(Frozen):
    """Settings of `feed_health`."""

    max_silence_seconds: Positive = Decimal(30)
    """Market time without a price in session, for quotes and trades; of bars, half as long again as they are."""
    max_failures: Annotated[int, Field(ge=1)] | None = 3
    """Attempts to connect a lost feed anew that fail without any data between them, at which entries stop until a
    person clears the rule; null: they go on as soon as the feed does."""


class FeedWatch(RiskRule):
    """Refuses entries while there is nothing to go by: recovers with the data, except after too many failures."""

    code = "R25"

    def __init__(self, name: str, config: FeedHealthConfig) -> None:
        super().__init__(name)
        self._silence = float(config.max_silence_seconds)
        self._most = config.max_failures
        self._limit = None if config.max_failures is None else Decimal(config.max_failures)
        self._tripped = False
        self._failed = 0
        """The failures that have led to the trip."""
        self._forgiven: int | None = 0
        """The failures that a person has cleared; None: what the next look finds. Fewer once data have come."""

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the feed and the symbol's newest price before an entry."""
        if order.intent != "entry":
            return self.allow()
        failures = self._failures(view)
        if self._tripped or (self._most is not None and failures >= self._most):
            failed = max(failures, self._failed if self._tripped else 0)
            # Out of session nothing trips: what comes of the feed lets entries in again.
            trips = self._tripped or view.session is not None
            until = (
                f"a person clears {self.name} (sigma9 risk clear {self.name})" if trips else "it has given data"
            )
            return self.refuse(
                f"the feed failed to connect {failed} times: no entries until {until}",
                Decimal(failed),
                self._limit,
            )
        feed = view.feed
        if feed is not None and feed.state != "connected":
            what = "has come to its end" if feed.state == "ended" else "is disconnected"
            return self.refuse(
                f"the feed {what}: no entries until it is connected", Decimal(failures), self._limit
            )
        if view.session is None:
            return self.allow()
        mark = view.marks.get(order.symbol)
        if mark is None:
            return self.refuse(f"the feed has not given any price of {order.symbol} yet")
        silent, most = (view.now - mark.ts).total_seconds(), self._patience(mark)
        if silent > most:
            return self.refuse(
                f"the feed has had no price of {order.symbol} for {silent:.0f} s, longer than {most:g} s",
                Decimal(f"{silent:.3f}"),
                Decimal(str(most)),
            )
        return self.allow()

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the failures in a row, and whether entries are stopped until a person clears it."""
        return RuleUsage(
            rule=self.name,
            used=Decimal(max(self._failures(view), self._failed if self._tripped else 0)),
            limit=self._limit,
            tripped=self._tripped,
        )

    def trip(self, view: RiskView) -> Trip | None:
        """Tell once that the feed has failed too often."""
        now = 0 if view.feed is None else view.feed.failures
        self._forgiven = now if self._forgiven is None else min(self._forgiven, now)
        failures = now - self._forgiven
        if self._limit is None or failures < self._limit or view.session is None:
            return None  # nights are when gateways restart: what counts is whether it is there in the session
        told, self._tripped, self._failed = self._tripped, True, max(failures, self._failed)
        if told:
            return None
        error = "" if view.feed is None or not view.feed.error else f" ({view.feed.error[:200]})"
        reason = f"the feed failed to connect {failures} times{error}"
        return Trip(rule=self.name, reason=reason, kill=False, used=Decimal(failures), limit=self._limit)

    def clear(self) -> None:
        """Let entries in again as soon as the feed gives data; what has failed so far does not count any more."""
        self._tripped, self._failed, self._forgiven = False, 0, None

    def memory(self) -> Mapping[str, Any]:
        """Give the trip; failures are counted anew from a start on."""
        return {"failures": self._failed} if self._tripped else {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take back the trip."""
        self._tripped, self._failed = "failures" in memory, int(memory.get("failures", 0))

    def _failures(self, view: RiskView) -> int:
        """Give the failures that count: those that no person has cleared."""
        if view.feed is None or self._forgiven is None:
            return 0
        return max(view.feed.failures - self._forgiven, 0)

    def _patience(self, mark: Mark) -> float:
        return max(self._silence, 1.5 * mark.bar_seconds)


def build(config: FeedHealthConfig, context: PluginContext) -> FeedWatch:
    """Build the rule of one instance."""
    return FeedWatch(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `feed_health`."""
    register("feed_health", build, config=FeedHealthConfig)

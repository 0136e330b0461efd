"""R9: not more messages to the broker than a rate."""

from __future__ import annotations

from bisect import bisect_right
from datetime import timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, Final

from pydantic import Field

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Verdict

SECOND: Final = timedelta(seconds=1)
MINUTE: Final = timedelta(minutes=1)
_at: Final = attrgetter("at")


class OrderRateConfig(Frozen):
    """Settings of `order_rate`: messages in any second and in any minute of market time."""

    max_per_second: Annotated[int, Field(ge=1)] = 10
    """An entry with its protective stop is two messages."""
    max_per_minute: Annotated[int, Field(ge=1)] = 120


class OrderRate(RiskRule):
    """Refuses an entry that would be one message too many; every order that passed and every change counts.

    Reducing orders count, and pass with a warning. Cancels never count and never wait: a cancel is no order, so
    it does not come by here. A change is judged without the message that first sent its order.
    """

    code = "R9"

    def __init__(self, name: str, config: OrderRateConfig) -> None:
        super().__init__(name)
        self._windows = (
            (SECOND, config.max_per_second, "second"),
            (MINUTE, config.max_per_minute, "minute"),
        )

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the rate with the order counted."""
        if not view.recent and not view.changes:
            return self.allow()
        nearest = (0, 1)
        for window, limit, what in self._windows:
            count = messages(view, window) + 1
            if count > limit:
                return self.refuse(
                    f"it would be message {count} within a {what} of market time, more than {limit}",
                    Decimal(count),
                    Decimal(limit),
                )
            if count * nearest[1] > nearest[0] * limit:
                nearest = (count, limit)
        return self.allow(Decimal(nearest[0]), Decimal(nearest[1]))

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the messages of the last second or minute, whichever are nearer to their limit."""
        counts = [(messages(view, window), limit) for window, limit, _ in self._windows]
        used, limit = max(counts, key=lambda count: count[0] / count[1])
        return RuleUsage(rule=self.name, used=Decimal(used), limit=Decimal(limit))


def messages(view: RiskView, window: timedelta) -> int:
    """Count the orders and changes that passed within a window up to now; its beginning is not part of it."""
    since = view.now - window
    orders = len(view.recent) - bisect_right(view.recent, since, key=_at)
    return orders + len(view.changes) - bisect_right(view.changes, since)


def build(config: OrderRateConfig, context: PluginContext) -> OrderRate:
    """Build the rule of one instance."""
    return OrderRate(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `order_rate`."""
    register("order_rate", build, config=OrderRateConfig)

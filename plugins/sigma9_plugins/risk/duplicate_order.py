"""R11: not the same order twice within a moment."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_plugins.risk.figures import Positive, plain

ONE = Decimal(1)


class DuplicateOrderConfig(Frozen):
    """Settings of `duplicate_order`."""

    window_seconds: Positive = Decimal(10)
    """On the market clock."""


class DuplicateOrder(RiskRule):
    """Refuses an order of the same symbol, side, quantity, prices and purpose as one that passed a moment ago."""

    code = "R11"

    def __init__(self, name: str, config: DuplicateOrderConfig) -> None:
        super().__init__(name)
        self._window = timedelta(seconds=float(config.window_seconds))

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the order against those that passed within the window."""
        since = view.now - self._window
        same = 0
        for sent in reversed(view.recent):
            if sent.at <= since:
                break
            if sent.request.symbol == order.symbol and likeness(sent.request) == likeness(order):
                same += 1
        if same:
            return self.refuse(
                f"the same order to {order.side} {plain(order.quantity)} {order.symbol} passed less than "
                f"{self._window.total_seconds():g} s ago",
                Decimal(same + 1),
                ONE,
            )
        return self.allow(ONE, ONE)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell how often the most repeated order of the window has passed."""
        since = view.now - self._window
        counts: dict[object, int] = {}
        for sent in view.recent:
            if sent.at > since:
                key = likeness(sent.request)
                counts[key] = counts.get(key, 0) + 1
        return RuleUsage(rule=self.name, used=Decimal(max(counts.values(), default=0)), limit=ONE)


def likeness(order: OrderRequest) -> tuple[object, ...]:
    """Give what two orders must share to be the same."""
    return (
        order.symbol,
        order.side,
        order.quantity,
        order.limit_price,
        order.stop_price,
        order.trail_amount,
        order.trail_percent,
        order.intent,
    )


def build(config: DuplicateOrderConfig, context: PluginContext) -> DuplicateOrder:
    """Build the rule of one instance."""
    return DuplicateOrder(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `duplicate_order`."""
    register("duplicate_order", build, config=DuplicateOrderConfig)

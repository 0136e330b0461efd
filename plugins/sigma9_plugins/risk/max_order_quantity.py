"""R1: no order larger than a number of shares."""

from __future__ import annotations

from decimal import Decimal

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.exposure import held, remaining
from sigma9_plugins.risk.figures import Positive, plain


class MaxOrderQuantityConfig(Frozen):
    """Settings of `max_order_quantity`."""

    max_shares: Positive = Decimal(10_000)


class MaxOrderQuantity(RiskRule):
    """Refuses an order above `max_shares`.

    A reducing order may be as large as the position: it can't be a slip of the finger beyond what is held, and a
    position that grew above the limit in two steps must still be closable in one.
    """

    code = "R1"

    def __init__(self, name: str, config: MaxOrderQuantityConfig) -> None:
        super().__init__(name)
        self._max = config.max_shares

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the order's quantity."""
        limit = self._max
        if order.intent != "entry":
            limit = max(limit, abs(held(order.symbol, view)))
        if order.quantity > limit:
            return self.refuse(
                f"an order of {plain(order.quantity)} shares is more than the {plain(limit)} of one order",
                order.quantity,
                limit,
            )
        return self.allow(order.quantity, limit)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the largest working order of ours."""
        used = max((remaining(order) for order in view.working if not order.foreign), default=ZERO)
        return RuleUsage(rule=self.name, used=used, limit=self._max)


def build(config: MaxOrderQuantityConfig, context: PluginContext) -> MaxOrderQuantity:
    """Build the rule of one instance."""
    return MaxOrderQuantity(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `max_order_quantity`."""
    register("max_order_quantity", build, config=MaxOrderQuantityConfig)

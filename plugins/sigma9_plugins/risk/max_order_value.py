"""R2: no order worth more than an amount, or more than a share of equity."""

from __future__ import annotations

from decimal import Decimal

from pydantic import model_validator

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, OrderView, RuleUsage, Verdict
from sigma9_core.money.exposure import remaining
from sigma9_core.money.pricing import reference_price
from sigma9_plugins.risk.figures import Positive, known, money


class MaxOrderValueConfig(Frozen):
    """Settings of `max_order_value`; the tighter of the two limits holds."""

    max_money: Positive | None = Decimal(25_000)
    """In the account's currency."""
    max_percent_of_equity: Positive | None = None

    @model_validator(mode="after")
    def _some(self) -> MaxOrderValueConfig:
        if self.max_money is None and self.max_percent_of_equity is None:
            raise ValueError("set max_money or max_percent_of_equity; to have no limit, leave the rule out")
        return self


class MaxOrderValue(RiskRule):
    """Refuses an order whose value, at the worst price it may trade at, is above the limit."""

    code = "R2"

    def __init__(self, name: str, config: MaxOrderValueConfig) -> None:
        super().__init__(name)
        self._money = config.max_money
        self._percent = config.max_percent_of_equity

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the order's value."""
        limit = self._limit(view)
        if limit is None:
            return self.refuse("the account's equity is not known, and the largest order is a share of it")
        price = reference_price(order, view.marks.get(order.symbol))
        if price is None:
            return self.refuse(f"there is no price of {order.symbol} to value the order at", None, limit)
        value = order.quantity * price
        if value > limit:
            return self.refuse(
                f"an order worth {money(value)} is more than the {money(limit)} of one order",
                value,
                limit,
            )
        return self.allow(value, limit)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the value of the largest working order of ours."""
        used = max((self._value(order, view) for order in view.working if not order.foreign), default=ZERO)
        return RuleUsage(rule=self.name, used=used, limit=self._limit(view))

    def _limit(self, view: RiskView) -> Decimal | None:
        if self._percent is None:
            return self._money
        equity = view.account.equity
        if not known(equity):
            return None
        share = equity * self._percent / 100
        return share if self._money is None else min(share, self._money)

    def _value(self, order: OrderView, view: RiskView) -> Decimal:
        return remaining(order) * (reference_price(order, view.marks.get(order.symbol)) or ZERO)


def build(config: MaxOrderValueConfig, context: PluginContext) -> MaxOrderValue:
    """Build the rule of one instance."""
    return MaxOrderValue(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `max_order_value`."""
    register("max_order_value", build, config=MaxOrderValueConfig)

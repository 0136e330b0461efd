"""R14: no entry that the account, or the broker's what-if check, does not cover."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from sigma9_core.contracts import Margin, PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, Money, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.pricing import reference_price
from sigma9_plugins.risk.commitments import committed, growing
from sigma9_plugins.risk.figures import money


class BuyingPowerConfig(Frozen):
    """Settings of `buying_power`."""

    reserve_percent: Annotated[Money, Field(ge=0, lt=100)] = Decimal(2)
    """The part of the buying power that is left for fees and slippage, in percent."""
    what_if: bool = True
    """Whether the broker is asked what an entry would do to the margin, where it can tell."""


class BuyingPower(RiskRule):
    """Refuses an entry that the buying power does not cover once every working entry has filled.

    Orders are valued at the worst price that they may trade at, foreign buys included; what reduces a position
    passes. Where the broker tells what the order would do to the margin, that has to be enough as well.
    """

    code = "R14"
    wants_margin = True

    def __init__(self, name: str, config: BuyingPowerConfig) -> None:
        super().__init__(name)
        self._usable = 1 - config.reserve_percent / 100
        if not config.what_if:
            self.wants_margin = False  # type: ignore[misc] # the gate asks the instance

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge what the order would bind, beside everything that works."""
        if order.intent != "entry":
            return self.allow()
        quantity = growing(order, view)
        if quantity <= ZERO:
            return self.allow()
        limit = self._limit(view)
        if limit is None:
            return self.refuse("the account's buying power is not known: nothing can be bought on it")
        price = reference_price(order, view.marks.get(order.symbol))
        working, unpriced = committed(view)
        if price is None or unpriced is not None:
            what = f"there is no price of {unpriced or order.symbol} to value its orders at"
            return self.refuse(what, limit=limit)
        used = working + quantity * price
        if used > limit:
            return self.refuse(
                f"with the working entries it takes {money(used)} of buying power, and {money(limit)} are usable",
                used,
                limit,
            )
        if view.margin is not None and self.wants_margin:
            return self._margin(view.margin, view) or self.allow(used, limit)
        return self.allow(used, limit)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell what the working entries may still take of the usable buying power."""
        return RuleUsage(rule=self.name, used=committed(view)[0], limit=self._limit(view))

    def _limit(self, view: RiskView) -> Decimal | None:
        power = view.account.buying_power
        return power * self._usable if power is not None and power.is_finite() else None

    def _margin(self, margin: Margin, view: RiskView) -> Verdict | None:
        """Refuse what the broker says is not covered; it does not know yet of entries that were just decided."""
        if margin.fault is not None:
            return self.refuse(margin.fault)
        left = margin.available_after
        if not left.is_finite():
            return self.refuse(f"the broker's what-if check gave no number for the funds that are left: {left}")
        waiting, _ = committed(view, unaccepted=True)
        if left < waiting:
            return self.refuse(
                f"the broker would have {money(left)} left after it, less than the {money(waiting)} of entries "
                "that are on their way to it",
                waiting,
                left,
            )
        return None


def build(config: BuyingPowerConfig, context: PluginContext) -> BuyingPower:
    """Build the rule of one instance."""
    return BuyingPower(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `buying_power`."""
    register("buying_power", build, config=BuyingPowerConfig)

"""R23: no order that would act in a symbol while it is halted."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from sigma9_core.contracts import NoConfig, PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, OrderRequest, OrderType, RuleUsage, Verdict

RESTING: Final[frozenset[OrderType]] = frozenset(("stop", "stop_limit", "trailing_stop"))
"""Types of a reducing order that wait for their price."""


class Halts(RiskRule):
    """Refuses entries, and reducing orders that would act at once, while the feed shows the symbol as halted.

    Such a reducing order waits: the core tries its exits again, a person sends theirs again. Stops that guard a
    position pass, so that none is ever without; they act when the symbol trades again.
    """

    code = "R23"

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge whether the symbol trades."""
        mark = view.marks.get(order.symbol)
        if mark is None or not mark.halted:
            return self.allow()
        if order.intent == "entry":
            return self.refuse(f"{order.symbol} is halted: there are no entries until it trades again")
        if order.protective or order.order_type in RESTING:
            return self.allow()
        return self.refuse(
            f"{order.symbol} is halted: a {order.order_type} order to leave it waits until it trades again"
        )

    def usage(self, view: RiskView) -> RuleUsage:
        """Count the halted symbols that are held or have working orders."""
        concerned = {
            *(s for s, p in view.positions.items() if p.quantity),
            *(order.symbol for order in view.working),
        }
        halted = sum(mark is not None and mark.halted for mark in map(view.marks.get, concerned))
        return RuleUsage(rule=self.name, used=Decimal(halted), limit=ZERO)


def build(config: NoConfig, context: PluginContext) -> Halts:
    """Build the rule of one instance."""
    return Halts(context.name)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `halts`."""
    register("halts", build, config=NoConfig)

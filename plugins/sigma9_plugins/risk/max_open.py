"""R7: no more positions, working orders and entries a day than a limit each."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Verdict

Count = Annotated[int, Field(ge=1)]


class MaxOpenConfig(Frozen):
    """Settings of `max_open`."""

    max_positions: Count = 3
    """Symbols that are held or being entered."""
    max_orders: Count = 50
    """Working orders, protective ones included."""
    max_entries_per_day: Count = 50
    """Entries that passed the gate in a session, whether or not they were filled: a loop must end, too."""
    count_foreign: bool = True
    """Whether positions and orders that are not ours use up the limits."""


class MaxOpen(RiskRule):
    """Refuses an entry that would be one too many; a symbol with a working entry counts as a position."""

    code = "R7"

    def __init__(self, name: str, config: MaxOpenConfig) -> None:
        super().__init__(name)
        self._config = config

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the number of positions, orders and entries with this one counted."""
        if order.intent != "entry":
            return self.allow()
        limits = self._config
        orders = self._orders(view) + 1
        if orders > limits.max_orders:
            return self._too_many(f"{orders} orders would work at once", orders, limits.max_orders)
        entries = view.entries_today + 1
        if entries > limits.max_entries_per_day:
            return self._too_many(f"it would be entry {entries} of the day", entries, limits.max_entries_per_day)
        symbols = self._symbols(view)
        if order.symbol in symbols:
            return self.allow(Decimal(len(symbols)), Decimal(limits.max_positions))
        positions = len(symbols) + 1
        if positions > limits.max_positions:
            return self._too_many(f"{positions} positions would be open", positions, limits.max_positions)
        return self.allow(Decimal(positions), Decimal(limits.max_positions))

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the count that is nearest to its limit: positions, orders or entries of the day."""
        limits = self._config
        counts = (
            (len(self._symbols(view)), limits.max_positions),
            (self._orders(view), limits.max_orders),
            (view.entries_today, limits.max_entries_per_day),
        )
        used, limit = max(counts, key=lambda count: count[0] / count[1])
        return RuleUsage(rule=self.name, used=Decimal(used), limit=Decimal(limit))

    def _symbols(self, view: RiskView) -> set[str]:
        """Give the symbols that are held or that a working entry (or a foreign order) may open."""
        foreign = self._config.count_foreign
        symbols = {symbol for symbol, p in view.positions.items() if p.quantity and (foreign or not p.foreign)}
        intents = view.intents
        for order in view.working:
            if intents.get(order.order_id) == "entry" or (foreign and order.foreign):
                symbols.add(order.symbol)
        return symbols

    def _orders(self, view: RiskView) -> int:
        foreign = self._config.count_foreign
        # An order whose price is being changed is there twice.
        return len({order.order_id for order in view.working if foreign or not order.foreign})

    def _too_many(self, what: str, used: int, limit: int) -> Verdict:
        return self.refuse(f"{what}, more than {limit}", Decimal(used), Decimal(limit))


def build(config: MaxOpenConfig, context: PluginContext) -> MaxOpen:
    """Build the rule of one instance."""
    return MaxOpen(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `max_open`."""
    register("max_open", build, config=MaxOpenConfig)

"""R4: no position in a symbol above a share of equity, working orders counted."""

from __future__ import annotations

from decimal import Decimal

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_plugins.risk.figures import Positive, known, money, percent, plain
from sigma9_plugins.risk.worth import Pending, Unpriced, openings, worth, worths


class MaxPositionConfig(Frozen):
    """Settings of `max_position`."""

    max_percent_of_equity: Positive = Decimal(10)


class MaxPosition(RiskRule):
    """Refuses an entry that could bring a position, long or short, above the limit.

    Working entries and foreign orders are taken to fill at their worst, each at its own price; what is held counts
    at the last price. An entry that makes the value no larger passes.
    """

    code = "R4"

    def __init__(self, name: str, config: MaxPositionConfig) -> None:
        super().__init__(name)
        self._percent = config.max_percent_of_equity

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the position that the order could make."""
        if order.intent != "entry":
            return self.allow(limit=self._percent)
        equity = view.account.equity
        if not known(equity):
            return self.refuse("the account's equity is not known, and the largest position is a share of it")
        symbol = order.symbol
        position = view.positions.get(symbol)
        orders: list[Pending] = [each for each in openings(view, foreign=True) if each.symbol == symbol]
        try:
            before = _larger(worth(symbol, position, orders, view))
            after = _larger(worth(symbol, position, [*orders, order], view))
        except Unpriced as error:
            return self.refuse(str(error), limit=self._percent)
        used = percent(after, equity)
        if used > self._percent and after > before:
            return self.refuse(
                f"with working orders the position in {symbol} could become worth {money(after)}, "
                f"{used:.2f} % of equity, more than {plain(self._percent)} %",
                used,
                self._percent,
            )
        return self.allow(used, self._percent)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the largest position in percent of equity, working entries counted."""
        equity = view.account.equity
        if not known(equity):
            return RuleUsage(rule=self.name, limit=self._percent)
        try:
            found = worths(view.positions, openings(view, foreign=True), view)
        except Unpriced:
            return RuleUsage(rule=self.name, limit=self._percent)
        largest = max(map(found.gross, found.low), default=ZERO)
        return RuleUsage(rule=self.name, used=percent(largest, equity), limit=self._percent)


def _larger(values: tuple[Decimal, Decimal]) -> Decimal:
    """Give the larger of a lowest and a highest value, long or short."""
    low, high = values
    return max(high, -low)


def build(config: MaxPositionConfig, context: PluginContext) -> MaxPosition:
    """Build the rule of one instance."""
    return MaxPosition(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `max_position`."""
    register("max_position", build, config=MaxPositionConfig)

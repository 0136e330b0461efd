"""R5: no gross and no net exposure above a share of equity, working orders counted."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, Position, RuleUsage, Side, Verdict
from sigma9_plugins.risk.figures import Positive, known, percent, plain
from sigma9_plugins.risk.worth import Unpriced, Worths, openings, worths


class MaxExposureConfig(Frozen):
    """Settings of `max_exposure`."""

    max_gross_percent: Positive = Decimal(100)
    """Of the equity: everything long and everything short, added."""
    max_net_percent: Positive = Decimal(100)
    """Of the equity: what is long less what is short, or the other way round."""
    count_foreign: bool = True
    """Whether positions and orders that are not ours count."""


class MaxExposure(RiskRule):
    """Refuses an entry with which the account could be exposed beyond a limit.

    Gross, every working entry is taken to fill, in each symbol the side that makes it larger. Net, a buy is judged
    as if every working buy filled and no sale, and a sale the other way round. An entry that makes the gross no
    larger passes its limit; what exits would do to the net does not count, for the book is hedged while they wait.
    """

    code = "R5"

    def __init__(self, name: str, config: MaxExposureConfig) -> None:
        super().__init__(name)
        self._gross = config.max_gross_percent
        self._net = config.max_net_percent
        self._foreign = config.count_foreign

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the exposure that the order could lead to."""
        if order.intent != "entry":
            return self.allow()
        equity = view.account.equity
        if not known(equity):
            return self.refuse(
                "the account's equity is not known, and exposure is a share of it", limit=self._gross
            )
        positions, orders = self._positions(view), openings(view, foreign=self._foreign)
        symbol = order.symbol
        try:
            found = worths(positions, orders, view)
            before = found.gross(symbol)
            found.add(order, positions.get(symbol), orders, view)
        except Unpriced as error:
            return self.refuse(str(error), limit=self._gross)
        gross = percent(found.total(), equity)
        if gross > self._gross and found.gross(symbol) > before:
            return self._too_much("gross", gross, self._gross)
        net = percent(_net(found, order.side), equity)
        if net > self._net:
            return self._too_much("net", net, self._net)
        return self.allow(*self._nearest(gross, net))

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell gross or net exposure in percent of equity, whichever is nearer to its limit."""
        equity = view.account.equity
        if not known(equity):
            return RuleUsage(rule=self.name, limit=self._gross)
        try:
            found = worths(self._positions(view), openings(view, foreign=self._foreign), view)
        except Unpriced:
            return RuleUsage(rule=self.name, limit=self._gross)
        net = max(_net(found, "buy"), _net(found, "sell"))
        used, limit = self._nearest(percent(found.total(), equity), percent(net, equity))
        return RuleUsage(rule=self.name, used=used, limit=limit)

    def _positions(self, view: RiskView) -> Mapping[str, Position]:
        if self._foreign:
            return view.positions
        return {symbol: held for symbol, held in view.positions.items() if not held.foreign}

    def _nearest(self, gross: Decimal, net: Decimal) -> tuple[Decimal, Decimal]:
        if gross * self._net >= net * self._gross:
            return gross, self._gross
        return net, self._net

    def _too_much(self, what: str, used: Decimal, limit: Decimal) -> Verdict:
        return self.refuse(
            f"with working orders the {what} exposure could become {used:.2f} % of equity, more than "
            f"{plain(limit)} %",
            used,
            limit,
        )


def _net(found: Worths, side: Side) -> Decimal:
    """Give the largest value on one side of everything together, with the working orders of that side filled."""
    return sum(found.high.values(), ZERO) if side == "buy" else -sum(found.low.values(), ZERO)


def build(config: MaxExposureConfig, context: PluginContext) -> MaxExposure:
    """Build the rule of one instance."""
    return MaxExposure(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `max_exposure`."""
    register("max_exposure", build, config=MaxExposureConfig)

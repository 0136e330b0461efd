"""R22: no short sale, or none without shares to borrow and against a short-sale restriction."""

from __future__ import annotations

from decimal import Decimal

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.exposure import held
from sigma9_core.money.pricing import usable
from sigma9_plugins.risk.commitments import growing
from sigma9_plugins.risk.figures import plain


class ShortSalesConfig(Frozen):
    """Settings of `short_sales`."""

    allowed: bool = False
    """Whether positions may be short at all; False: long only."""


class ShortSales(RiskRule):
    """Refuses an order that could open or enlarge a short position, every working sale taken to fill before it.

    Selling what is held passes. Where short sales are allowed, the broker must say that there are shares to
    borrow, and a restriction (Rule 201) leaves only limit orders above the bid.
    """

    code = "R22"

    def __init__(self, name: str, config: ShortSalesConfig) -> None:
        super().__init__(name)
        self._allowed = config.allowed

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the part of a sale that nothing is held for."""
        if order.side != "sell" or order.intent != "entry":
            return self.allow()
        short = growing(order, view)
        if short <= ZERO:
            return self.allow()
        if not self._allowed:
            have = max(held(order.symbol, view), ZERO)
            return self.refuse(
                f"{plain(short)} of the {plain(order.quantity)} {order.symbol} would be sold short (held are "
                f"{plain(have)}, less what working sales take), and short sales are not allowed",
                short,
                ZERO,
            )
        reason = self._hindrance(order, view)
        return self.allow(short) if reason is None else self.refuse(reason, short)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell how many shares of ours are short."""
        shares = (-p.quantity for p in view.positions.values() if p.quantity < 0 and not p.foreign)
        return RuleUsage(rule=self.name, used=sum(shares, ZERO), limit=None if self._allowed else Decimal(0))

    @staticmethod
    def _hindrance(order: OrderRequest, view: RiskView) -> str | None:
        """Say why a symbol can't be sold short by this order; None where it can."""
        symbol = order.symbol
        instrument = view.instruments.get(symbol)
        if instrument is None or instrument.shortable is None:
            return f"the broker does not tell whether there are shares of {symbol} to borrow for a short sale"
        if not instrument.shortable:
            return f"there are no shares of {symbol} to borrow for a short sale"
        if not instrument.short_restricted:
            return None
        mark = view.marks.get(symbol)
        bid = None if mark is None else mark.bid
        if not usable(bid):
            return f"{symbol} is restricted to short sales above the bid, and its bid is not known"
        if order.order_type != "limit" or order.limit_price is None or order.limit_price <= bid:
            return f"{symbol} is restricted: sell it short with a limit above the bid of {plain(bid)}"
        return None


def build(config: ShortSalesConfig, context: PluginContext) -> ShortSales:
    """Build the rule of one instance."""
    return ShortSales(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `short_sales`."""
    register("short_sales", build, config=ShortSalesConfig)

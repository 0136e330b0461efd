"""R4: no position in a symbol above a share of equity, working orders counted."""

from __future__ import annotations

from decimal import Decimal

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, OrderView, RuleUsage, Verdict
from sigma9_core.money.exposure import held, reserved
from sigma9_core.money.pricing import reference_price, usable
from sigma9_plugins.risk.figures import Positive, known, percent, plain


class MaxPositionConfig(Frozen):
    """Settings of `max_position`."""

    max_percent_of_equity: Positive = Decimal(10)


class MaxPosition(RiskRule):
    """Refuses an order that could bring a position, long or short, above the limit.

    Every working order on the order's side is taken to fill before it; what is held counts at the last price, what
    comes to it at the worst price that the order may trade at. An order that makes the position no larger passes.
    """

    code = "R4"

    def __init__(self, name: str, config: MaxPositionConfig) -> None:
        super().__init__(name)
        self._percent = config.max_percent_of_equity

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the position that the order could make."""
        sign = 1 if order.side == "buy" else -1
        have = held(order.symbol, view)
        before = have + sign * reserved(view.working, order.symbol, order.side)
        after = before + sign * order.quantity
        if abs(after) <= max(abs(have), abs(before)):
            return self.allow(limit=self._percent)
        equity = view.account.equity
        if not known(equity):
            return self.refuse("the account's equity is not known, and the largest position is a share of it")
        mark = view.marks.get(order.symbol)
        price = reference_price(order, mark)
        if price is None:
            return self.refuse(
                f"there is no price of {order.symbol} to value the position at", limit=self._percent
            )
        kept = abs(have) if have * after > 0 else ZERO
        last = mark.price if mark is not None and usable(mark.price) else price
        used = percent(kept * last + (abs(after) - kept) * price, equity)
        if used > self._percent:
            return self.refuse(
                f"with working orders the position in {order.symbol} could become {plain(after)} shares, "
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
        entries: dict[str, list[OrderView]] = {symbol: [] for symbol in view.positions}
        for order in view.working:
            if view.intents.get(order.order_id) == "entry":
                entries.setdefault(order.symbol, []).append(order)
        largest = max((self._value(symbol, orders, view) for symbol, orders in entries.items()), default=ZERO)
        return RuleUsage(rule=self.name, used=percent(largest, equity), limit=self._percent)

    @staticmethod
    def _value(symbol: str, entries: list[OrderView], view: RiskView) -> Decimal:
        """Give the value of a position with its working entries filled, on whichever side makes it larger."""
        mark = view.marks.get(symbol)
        have = held(symbol, view)
        prices = [reference_price(order, mark) for order in entries]
        last = mark.price if mark is not None and usable(mark.price) else None
        if last is None and symbol in view.positions:
            last = abs(view.positions[symbol].average_cost)
        price = max((price for price in (last, *prices) if price is not None), default=ZERO)
        most = abs(have)
        if entries:
            bought, sold = reserved(entries, symbol, "buy"), reserved(entries, symbol, "sell")
            most = max(most, abs(have + bought), abs(have - sold))
        return abs(have) * (last or price) + (most - abs(have)) * price


def build(config: MaxPositionConfig, context: PluginContext) -> MaxPosition:
    """Build the rule of one instance."""
    return MaxPosition(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `max_position`."""
    register("max_position", build, config=MaxPositionConfig)

"""R3: no order at a price too far from a fresh reference."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from sigma9_core.contracts import Mark, PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, OrderView, RuleUsage, Verdict
from sigma9_core.money.pricing import usable
from sigma9_plugins.risk.figures import Positive, percent, plain


class PriceCollarConfig(Frozen):
    """Settings of `price_collar`."""

    max_age_seconds: Positive = Decimal(90)
    """How old the reference may be on the market clock. The default lets minute bars through with half a minute to
    spare; with live quotes 5 is right."""
    max_distance_percent: Positive = Decimal(5)


class PriceCollar(RiskRule):
    """Refuses an order far off the last price, and any order while that price is missing, stale or no number.

    A limit, a stop and the start of a trail are measured as they stand; an order at the market by the quote that
    it would meet.
    """

    code = "R3"

    def __init__(self, name: str, config: PriceCollarConfig) -> None:
        super().__init__(name)
        self._age = timedelta(seconds=float(config.max_age_seconds))
        self._percent = config.max_distance_percent

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the order's prices against the last one."""
        mark = view.marks.get(order.symbol)
        if mark is None or not usable(mark.price):
            return self.refuse(
                f"there is no price of {order.symbol} to measure the order against: only what is watched or held "
                f"has prices (sigma9 watchlist add {order.symbol}), if the feed gives any: the log says why not",
                limit=self._percent,
            )
        if mark.halted:
            return self.refuse(f"{order.symbol} is halted: its last price is no reference", limit=self._percent)
        age = view.now - mark.ts
        if age > self._age:
            return self.refuse(
                f"the last price of {order.symbol} is {age.total_seconds():.0f} s old, "
                f"older than {self._age.total_seconds():.0f} s",
                limit=self._percent,
            )
        used = distance(order, mark)
        if used is None:
            return self.refuse(f"a price of the order in {order.symbol} is not above zero", limit=self._percent)
        if used > self._percent:
            return self.refuse(
                f"the order in {order.symbol} is {used:.2f} % off the last price of {plain(mark.price)}, "
                f"more than {plain(self._percent)} %",
                used,
                self._percent,
            )
        return self.allow(used, self._percent)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell how far the farthest working entry is from the market, in percent."""
        used = ZERO
        for order in view.working:
            mark = view.marks.get(order.symbol)
            if view.intents.get(order.order_id) == "entry" and mark is not None and usable(mark.price):
                used = max(used, distance(order, mark) or ZERO)
        return RuleUsage(rule=self.name, used=used, limit=self._percent)


def distance(order: OrderRequest | OrderView, mark: Mark) -> Decimal | None:
    """Give how far an order's prices are from the mark in percent; None where one is not above zero."""
    prices = [price for price in (order.limit_price, order.stop_price) if price is not None]
    if order.trail_amount is not None:
        prices.append(mark.price - order.trail_amount if order.side == "sell" else mark.price + order.trail_amount)
    if order.order_type in ("market", "market_on_close"):
        met = mark.ask if order.side == "buy" else mark.bid
        prices += [] if met is None else [met]
    if not all(usable(price) for price in prices):
        return None
    far = max((percent(abs(price - mark.price), mark.price) for price in prices), default=ZERO)
    return far if order.trail_percent is None else max(far, order.trail_percent)


def build(config: PriceCollarConfig, context: PluginContext) -> PriceCollar:
    """Build the rule of one instance."""
    return PriceCollar(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `price_collar`."""
    register("price_collar", build, config=PriceCollarConfig)

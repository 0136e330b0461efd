"""R20: no entry that could trade with one's own order on the other side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sigma9_core.contracts import Mark, NoConfig, PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, OrderRequest, OrderType, OrderView, RuleUsage, Side, Verdict
from sigma9_core.money.exposure import held, is_exit
from sigma9_core.money.pricing import LIMITED, usable
from sigma9_plugins.risk.figures import plain

ANY: Final = Decimal("Infinity")
"""The highest price of an order that takes whatever price there is."""
TRIGGERED: Final[frozenset[OrderType]] = frozenset(("stop", "stop_limit", "trailing_stop"))


class SelfTrade(RiskRule):
    """Refuses an entry that could trade with an opposite working order of the account, ours or foreign.

    Limits meet where they cross or touch; an order at the market meets every limit and every order at the market.
    A stop meets an order only if it would be triggered at the price that this order trades at: a protective stop
    below the market does not forbid adding to a position, but a buy that would wait at or below that stop is
    refused, since the stop's own sale would fill it. Nobody tells how far a working trail has come, so it is taken
    to lie anywhere behind the market. Where a symbol has no price, a stop is taken to meet everything.
    An exit that has nothing to close yet waits for its entry, and meets nothing.
    """

    code = "R20"

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge an entry against the working orders on the other side."""
        if order.intent != "entry":
            return self.allow()
        symbol, side = order.symbol, order.side
        others = [each for each in view.working if each.symbol == symbol and each.side != side]
        met = meeting(order, others, view) if others else others
        if not met:
            return self.allow(ZERO, ZERO)
        first = met[0]
        whose = "a foreign" if first.foreign else "our own"
        price = first.limit_price or first.stop_price
        return self.refuse(
            f"it could trade with {whose} {first.order_type} order {first.order_id[:40]} to {first.side} {symbol}"
            f"{'' if price is None else f' at {plain(price)}'}: cancel that one, or keep clear of it",
            Decimal(len(met)),
            ZERO,
        )

    def usage(self, view: RiskView) -> RuleUsage:
        """Count the working entries that could meet an order on the other side."""
        sides: dict[tuple[str, Side], list[OrderView]] = {}
        for order in view.working:
            sides.setdefault((order.symbol, order.side), []).append(order)
        used = 0
        for (symbol, side), orders in sides.items():
            others = sides.get((symbol, "sell" if side == "buy" else "buy"))
            if others:
                entries = [order for order in orders if view.intents.get(order.order_id) == "entry"]
                used += sum(bool(meeting(order, others, view)) for order in entries)
        return RuleUsage(rule=self.name, used=Decimal(used), limit=ZERO)


@dataclass(slots=True)
class Reach:
    """Where an order trades; prices of a sale are negative, so that for both sides a higher one gives more."""

    top: Decimal
    """The most that it gives."""
    trigger: Decimal | None
    """Where a stop begins to trade; None: at once."""
    trails: bool
    """The trigger follows the market, so it may come to lie anywhere beyond it."""
    now: Decimal | None
    """The market's price for it at this moment; None where nobody knows."""
    last: Decimal | None
    """The last price."""

    def meets_limit(self, limit: Decimal) -> bool:
        """Tell whether it could trade with an order that asks a price: it gives as much, and trades there."""
        if self.top < limit:
            return False
        if self.trigger is None or self.trails or self.trigger <= limit:
            return True
        return self.now is not None and self.trigger <= self.now

    def meets_stop(self, stop: Decimal | None, *, trailing: bool) -> bool:
        """Tell whether it trades where a stop on the other side is triggered; None: nobody tells where that is."""
        begins = [price for price in (self.trigger, self.now) if price is not None]
        at = min(self.top, max(begins, default=ANY))
        if at == ANY:
            return True
        if stop is not None:
            return at <= stop
        if not trailing or self.now is None or self.last is None:
            return True
        return at < min(self.now, self.last)  # a trail that has not been triggered lies behind the market

    def behind(self, limit: Decimal) -> bool:
        """Tell whether an order that asks this price may rest: the market gives no more, or it is the market."""
        return self.now is None or self.now <= limit


def meeting(order: OrderRequest | OrderView, others: Iterable[OrderView], view: RiskView) -> list[OrderView]:
    """Give the orders, all on the other side of the same symbol, that an order could trade with."""
    sign = 1 if order.side == "buy" else -1
    have = held(order.symbol, view) * sign
    mine = _reach(order, sign, view.marks.get(order.symbol))
    found = []
    for other in others:
        if is_exit(view.intents.get(other.order_id)) and have <= 0:
            continue  # it waits for its entry: there is nothing to close yet
        if order.oca_group is not None and order.oca_group == other.oca_group:
            continue  # of a group one alone fills
        if other.good_after is not None and other.good_after > view.now:
            continue  # the broker holds it: there is nothing to meet now
        if _meet(mine, other, sign):
            found.append(other)
    return found


def _reach(order: OrderRequest | OrderView, sign: int, mark: Mark | None) -> Reach:
    last = None if mark is None or not usable(mark.price) else mark.price * sign
    quote = None if mark is None else mark.ask if order.side == "buy" else mark.bid
    now = quote * sign if usable(quote) else last
    top = order.limit_price * sign if order.order_type in LIMITED and usable(order.limit_price) else ANY
    trigger = _stop(order, sign) if order.order_type in TRIGGERED else None
    trails = order.order_type == "trailing_stop"
    if trails and trigger is None and now is not None:
        share = (order.trail_percent or ZERO) / 100 * abs(now)
        trigger = now + (share if order.trail_amount is None else order.trail_amount)
    return Reach(top, trigger, trails, now, last)


def _meet(mine: Reach, other: OrderView, sign: int) -> bool:
    """Tell whether an order on the other side could trade with this one."""
    kind = other.order_type
    limit = other.limit_price * sign if kind in LIMITED and usable(other.limit_price) else -ANY
    if kind not in TRIGGERED:
        return mine.meets_limit(limit) if kind in LIMITED else True
    if mine.meets_stop(_stop(other, sign), trailing=kind == "trailing_stop") and mine.top >= limit:
        return True
    # A stop with a limit may have been triggered before, and rest at its limit since.
    return kind == "stop_limit" and mine.behind(limit) and mine.meets_limit(limit)


def _stop(order: OrderRequest | OrderView, sign: int) -> Decimal | None:
    return order.stop_price * sign if usable(order.stop_price) else None


def build(config: NoConfig, context: PluginContext) -> SelfTrade:
    """Build the rule of one instance."""
    return SelfTrade(context.name)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `self_trade`."""
    register("self_trade", build, config=NoConfig)

"""R6: not too much of the equity in one group of symbols, or in the hands of one strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

from pydantic import Field

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, OrderView, Position, RuleUsage, Verdict
from sigma9_plugins.risk.figures import Positive, known, percent, plain
from sigma9_plugins.risk.symbols import Ticker
from sigma9_plugins.risk.worth import Unpriced, openings, worths


class ConcentrationConfig(Frozen):
    """Settings of `concentration`; without a group and a limit for strategies it allows everything."""

    groups: Mapping[Annotated[str, Field(min_length=1)], Annotated[tuple[Ticker, ...], Field(min_length=1)]] = {}
    """Symbols that move together, by a name of your own, such as `semis: [NVDA, AMD]`; a symbol may be in many."""
    max_percent_of_equity: Positive = Decimal(25)
    """Of each group: everything long and everything short, added."""
    max_strategy_percent: Positive | None = None
    """Of the equity, in the positions and working entries of one strategy; absent, no limit."""
    count_foreign: bool = True
    """Whether positions and orders that are not ours count in a group."""


@dataclass(slots=True)
class Part:
    """A part of the account with a limit of its own."""

    what: str
    limit: Decimal
    """In percent of equity."""
    positions: Mapping[str, Position]
    orders: Sequence[OrderView]
    """Those that may make a position of it larger."""
    used: Decimal = ZERO

    def nearer(self, other: Part | None) -> Part:
        """Give whichever of two is nearer to its limit."""
        return self if other is None or self.used * other.limit > other.used * self.limit else other


class Concentration(RiskRule):
    """Refuses an entry that could bring a group of symbols, or the order's strategy, above its share of equity.

    Working entries are taken to fill, at the worst price that they may trade at. An order that makes the share no
    larger passes. A person's order belongs to no strategy. Symbols are caught in small letters, too.
    """

    code = "R6"

    def __init__(self, name: str, config: ConcentrationConfig) -> None:
        super().__init__(name)
        self._groups = {group: frozenset(symbols) for group, symbols in config.groups.items()}
        self._of: dict[str, list[str]] = {}
        for group, symbols in self._groups.items():
            for symbol in symbols:
                self._of.setdefault(symbol, []).append(group)
        self._percent = config.max_percent_of_equity
        self._strategy_percent = config.max_strategy_percent
        self._foreign = config.count_foreign

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the shares that the order would add to."""
        if order.intent != "entry":
            return self.allow()
        groups = self._of.get(order.symbol.upper(), ())
        strategy = order.strategy if self._strategy_percent is not None else None
        if not groups and strategy is None:
            return self.allow()
        equity = view.account.equity
        if not known(equity):
            return self.refuse(
                "the account's equity is not known, and concentration is a share of it", limit=self._percent
            )
        parts = [self._group(group, view) for group in groups]
        if strategy is not None:
            parts.append(self._strategy(strategy, view))
        nearest: Part | None = None
        for part in parts:
            try:
                found = worths(part.positions, part.orders, view)
                before = found.total()
                found.add(order, part.positions.get(order.symbol), part.orders, view)
            except Unpriced as error:
                return self.refuse(str(error), limit=part.limit)
            part.used = percent(found.total(), equity)
            if part.used > part.limit and found.total() > before:
                return self.refuse(
                    f"with working orders {part.what} could become {part.used:.2f} % of equity, more than "
                    f"{plain(part.limit)} %",
                    part.used,
                    part.limit,
                )
            nearest = part.nearer(nearest)
        return self.allow() if nearest is None else self.allow(nearest.used, nearest.limit)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the share that is nearest to its limit, in percent of equity; nothing where nothing is limited."""
        equity = view.account.equity
        if not known(equity):
            return RuleUsage(rule=self.name)
        parts = [self._group(group, view) for group in self._groups]
        if self._strategy_percent is not None:
            named = {*(p.strategy for p in view.positions.values()), *(order.strategy for order in view.working)}
            parts += [self._strategy(strategy, view) for strategy in named if strategy is not None]
        nearest: Part | None = None
        for part in parts:
            try:
                part.used = percent(worths(part.positions, part.orders, view).total(), equity)
            except Unpriced:
                return RuleUsage(rule=self.name, limit=part.limit)
            nearest = part.nearer(nearest)
        if nearest is None:
            return RuleUsage(rule=self.name)
        return RuleUsage(rule=self.name, used=nearest.used, limit=nearest.limit)

    def _group(self, group: str, view: RiskView) -> Part:
        symbols, foreign = self._groups[group], self._foreign
        positions = {
            symbol: held
            for symbol, held in view.positions.items()
            if symbol.upper() in symbols and (foreign or not held.foreign)
        }
        orders = [order for order in openings(view, foreign=foreign) if order.symbol.upper() in symbols]
        return Part(f"the group {group}", self._percent, positions, orders)

    def _strategy(self, strategy: str, view: RiskView) -> Part:
        positions = {symbol: held for symbol, held in view.positions.items() if held.strategy == strategy}
        orders = [order for order in openings(view, foreign=False) if order.strategy == strategy]
        return Part(f"the strategy {strategy}", self._strategy_percent or ZERO, positions, orders)


def build(config: ConcentrationConfig, context: PluginContext) -> Concentration:
    """Build the rule of one instance."""
    return Concentration(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `concentration`."""
    register("concentration", build, config=ConcentrationConfig)

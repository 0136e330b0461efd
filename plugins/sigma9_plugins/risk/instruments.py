"""R12: only the symbols, the kinds of instruments and the directions that are allowed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.exposure import held, reserved
from sigma9_plugins.risk.figures import plain
from sigma9_plugins.risk.symbols import Ticker

AssetClass = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True, to_lower=True)]


class InstrumentsConfig(Frozen):
    """Settings of `instruments`."""

    allowed: tuple[Ticker, ...] = ()
    """Nothing else is entered; empty, every symbol may be."""
    restricted: tuple[Ticker, ...] = ()
    """Never entered, also where `allowed` names them."""
    asset_classes: Annotated[tuple[AssetClass, ...], Field(min_length=1)] = ("stock", "etf")
    """What may be entered, judged where the broker tells what a symbol is."""
    long_only: bool = False
    """Whether no entry may make a position short."""


class Instruments(RiskRule):
    """Refuses entries in what is not allowed; a position in it may always be reduced.

    Names match to the letter, as the order has them; a restricted one is caught in small letters, too.
    """

    code = "R12"

    def __init__(self, name: str, config: InstrumentsConfig) -> None:
        super().__init__(name)
        self._allowed = frozenset(config.allowed)
        self._restricted = frozenset(config.restricted)
        self._classes = frozenset(config.asset_classes)
        self._named = ", ".join(config.asset_classes)
        self._long_only = config.long_only

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge what an entry would buy or sell."""
        if order.intent != "entry":
            return self.allow()
        symbol = order.symbol
        if self._restricted and symbol.upper() in self._restricted:
            return self.refuse(f"{symbol} is restricted: it is not entered")
        if self._allowed and symbol not in self._allowed:
            return self.refuse(f"{symbol} is not among the {len(self._allowed)} symbols that are allowed")
        known = view.instruments.get(symbol)
        if known is not None and known.fault is None and known.asset_class.lower() not in self._classes:
            return self.refuse(f"{symbol} is of the class {known.asset_class}; allowed are {self._named}")
        if self._long_only and order.side == "sell":
            after = held(symbol, view) - reserved(view.working, symbol, "sell") - order.quantity
            if after < 0:
                return self.refuse(
                    f"with working orders the position in {symbol} could become {plain(after)} shares, and "
                    "only long ones are allowed"
                )
        return self.allow()

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell that the rule is there; it has no number."""
        return RuleUsage(rule=self.name)


def build(config: InstrumentsConfig, context: PluginContext) -> Instruments:
    """Build the rule of one instance."""
    return Instruments(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `instruments`."""
    register("instruments", build, config=InstrumentsConfig)

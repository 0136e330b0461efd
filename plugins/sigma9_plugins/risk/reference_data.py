"""R17: a known contract, prices on the tick, a quantity in whole lots."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Final

from sigma9_core.contracts import Instrument, PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.exposure import held
from sigma9_core.money.pricing import usable
from sigma9_plugins.risk.figures import plain

ONE: Final = Decimal(1)
CENT: Final = Decimal("0.01")
FINE: Final = Decimal("0.0001")

Wrong = tuple[str, Decimal | None, Decimal | None]
"""What is wrong with an order, the number, and its step."""


class ReferenceDataConfig(Frozen):
    """Settings of `reference_data`."""

    fractional: bool = False
    """Whether parts of a share are taken: as small as the broker's lot, or any where it does not tell of one."""


class ReferenceData(RiskRule):
    """Refuses a contract that the broker can't trade, a price off the tick, and a quantity off the lot.

    Where the broker does not tell the tick it is that of SEC Rule 612: a cent, below a dollar a hundredth of one.
    It judges exits as well, but never holds a position fast: the whole of one can always be closed, fractions that
    a split has left included, and a contract's fault is a warning once there is a position in it.
    """

    code = "R17"

    def __init__(self, name: str, config: ReferenceDataConfig) -> None:
        super().__init__(name)
        self._fractional = config.fractional

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the order against what is known of its contract."""
        instrument = view.instruments.get(order.symbol)
        wrong = self._quantity(order, instrument, view) or _prices(order, instrument)
        fault = None if instrument is None else _fault(instrument)
        if fault is not None and order.intent == "entry":
            return self.refuse(fault)
        if wrong is not None:
            return self.refuse(*wrong)
        if fault is not None:
            return Verdict(rule=self.name, code=self.code, outcome="warn", reason=fault)
        return self.allow()

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell that the rule is there; it has no number."""
        return RuleUsage(rule=self.name)

    def _quantity(self, order: OrderRequest, instrument: Instrument | None, view: RiskView) -> Wrong | None:
        quantity = order.quantity
        lot = ONE if instrument is None or not usable(instrument.lot) else instrument.lot
        if self._fractional and instrument is None:
            return None
        if lot < ONE and not self._fractional:
            lot = ONE
        if _fits(quantity, lot) or (order.intent != "entry" and quantity == abs(held(order.symbol, view))):
            return None
        kind = "a whole number of shares" if lot == ONE else f"a multiple of the lot of {plain(lot)}"
        return f"{plain(quantity)} {order.symbol} is not {kind}", quantity, lot


def _prices(order: OrderRequest, instrument: Instrument | None) -> Wrong | None:
    told = None if instrument is None or not usable(instrument.tick) else instrument.tick
    prices = (("limit price", order.limit_price), ("stop price", order.stop_price), ("trail", order.trail_amount))
    for what, price in prices:
        if price is None:
            continue
        if not usable(price):
            number = price if price.is_finite() else None
            return f"the {what} of {plain(price)} in {order.symbol} is not above zero", number, None
        tick = told or (CENT if price >= ONE else FINE)
        if not _fits(price, tick):
            return f"the {what} of {plain(price)} in {order.symbol} is off the tick of {plain(tick)}", price, tick
    return None


def _fault(instrument: Instrument) -> str | None:
    """Say why a contract can't be entered; None where it can."""
    if instrument.fault is not None:
        return instrument.fault
    if not usable(instrument.lot) or not (instrument.tick is None or usable(instrument.tick)):
        lot, tick = instrument.lot, instrument.tick
        return f"the broker's lot of {lot} or tick of {tick} in {instrument.symbol} makes no sense"
    return None


def _fits(number: Decimal, step: Decimal) -> bool:
    """Tell whether a number is a multiple of a step above zero."""
    try:
        return number % step == 0
    except InvalidOperation:  # infinite, or so many steps that nobody can count them
        return False


def build(config: ReferenceDataConfig, context: PluginContext) -> ReferenceData:
    """Build the rule of one instance."""
    return ReferenceData(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `reference_data`."""
    register("reference_data", build, config=ReferenceDataConfig)

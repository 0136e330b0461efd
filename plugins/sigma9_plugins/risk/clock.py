"""R24: no entries while this machine's clock and the broker's disagree."""

from __future__ import annotations

import math
from decimal import Decimal

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_plugins.risk.figures import Positive, plain


class ClockConfig(Frozen):
    """Settings of `clock`."""

    max_seconds: Positive = Decimal(1)
    """How far this machine's clock may be off the broker's, either way."""


class ClockRule(RiskRule):
    """Refuses entries while the machine's clock is off; where no broker tells its time, nothing is judged."""

    code = "R24"

    def __init__(self, name: str, config: ClockConfig) -> None:
        super().__init__(name)
        self._max = config.max_seconds
        self._seconds = float(config.max_seconds)

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the clock before an entry."""
        offset = view.clock_offset
        if offset is None or order.intent != "entry":
            return self.allow()
        if not math.isfinite(offset):
            return self.refuse("how far the clock is off the broker's is not known: its time made no sense")
        if abs(offset) > self._seconds:
            way = "ahead of" if offset > 0 else "behind"
            return self.refuse(
                f"set this machine's clock: it is {abs(offset):.3f} s {way} the broker's, more than "
                f"{plain(self._max)} s",
                _seconds(offset),
                self._max,
            )
        return self.allow(_seconds(offset), self._max)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell how far the clock is off, either way, in seconds; nothing where nobody told."""
        offset = view.clock_offset
        known = offset is not None and math.isfinite(offset)
        return RuleUsage(
            rule=self.name, used=_seconds(offset) if known and offset is not None else None, limit=self._max
        )


def _seconds(offset: float) -> Decimal:
    return Decimal(f"{abs(offset):.6f}")


def build(config: ClockConfig, context: PluginContext) -> ClockRule:
    """Build the rule of one instance."""
    return ClockRule(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `clock`."""
    register("clock", build, config=ClockConfig)

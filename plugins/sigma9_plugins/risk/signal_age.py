"""R16: no entry on a signal that is too old, from the future, or missing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import Field

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, Money, OrderRequest, RuleUsage, Verdict
from sigma9_plugins.risk.figures import Positive, plain

MICROSECOND: Final = timedelta(microseconds=1)


class SignalAgeConfig(Frozen):
    """Settings of `signal_age`."""

    max_age_seconds: Positive = Decimal(30)
    """Of market time, from the signal to the decision on its order."""
    max_ahead_seconds: Annotated[Money, Field(ge=0)] = Decimal(1)
    """How far a signal's time may lie ahead of the market clock: a live feed's clock is not quite ours."""


class SignalAge(RiskRule):
    """Refuses a strategy's entry whose signal is stale, lies in the future, can't be dated, or is not there.

    A person's order has no signal and passes; so does a change of a working entry, whose first signal is not what
    the person who changes it decides on.
    """

    code = "R16"

    def __init__(self, name: str, config: SignalAgeConfig) -> None:
        super().__init__(name)
        self._age = config.max_age_seconds
        self._ahead = config.max_ahead_seconds

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the time of the signal that an entry is based on."""
        if order.intent != "entry":
            return self.allow()
        signal = order.signal
        if signal is None:
            if order.source != "strategy":
                return self.allow()
            return self.refuse(
                f"the strategy's order in {order.symbol} has no signal that says when it was decided",
                limit=self._age,
            )
        at = time_of(signal)
        if at is None:
            return self.refuse(f"the time of the signal in {order.symbol} can't be read", limit=self._age)
        age = seconds(view.now - at)
        if age > self._age:
            return self.refuse(
                f"the signal in {order.symbol} is {plain(age)} s old, older than {plain(self._age)} s",
                age,
                self._age,
            )
        if -age > self._ahead:
            return self.refuse(
                f"the signal in {order.symbol} lies {plain(-age)} s in the future of the market clock",
                age,
                self._age,
            )
        return self.allow(max(age, ZERO), self._age)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell how old the oldest signal was that an order of the last minutes passed with."""
        used = ZERO
        for sent in view.recent:
            at = None if sent.request.signal is None else time_of(sent.request.signal)
            if at is not None:
                used = max(used, seconds(sent.at - at))
        return RuleUsage(rule=self.name, used=used, limit=self._age)


def time_of(signal: Mapping[str, Any]) -> datetime | None:
    """Give the market time of a signal; None where there is none, or one that names no time zone."""
    at = signal.get("ts")
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            return None
    return at if isinstance(at, datetime) and at.tzinfo is not None else None


def seconds(span: timedelta) -> Decimal:
    """Give a span in seconds, exactly."""
    return Decimal(span // MICROSECOND).scaleb(-6)


def build(config: SignalAgeConfig, context: PluginContext) -> SignalAge:
    """Build the rule of one instance."""
    return SignalAge(context.name, config)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `signal_age`."""
    register("signal_age", build, config=SignalAgeConfig)

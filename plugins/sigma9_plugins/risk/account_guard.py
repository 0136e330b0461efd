"""R15: orders go to the account that the configuration means, and to a live one only with consent."""

from __future__ import annotations

from typing import Literal

from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import CURRENCY, Frozen, OrderRequest, RuleUsage, Verdict


class AccountGuardConfig(Frozen):
    """Settings of `account_guard`."""

    account: str | None = None
    """The account's name at the broker; absent, `ibkr.account` where the broker is `ibkr`, else any."""
    mode: Literal["paper", "live", "simulated"] | None = None
    """The kind of account that is meant; absent, any (a live one still wants `live: true`)."""
    live: bool = False
    """The explicit consent to trade real money."""


class AccountGuard(RiskRule):
    """Refuses every order, reducing ones and a kill's own included, on an account that is not the one meant.

    On one whose money is told in another currency than the books are kept in it refuses entries alone.
    """

    code = "R15"

    def __init__(self, name: str, config: AccountGuardConfig, account: str | None = None) -> None:
        """Store; `account` is the one to expect where the settings name none."""
        super().__init__(name)
        self._account = config.account or account
        self._mode = config.mode
        self._live = config.live

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the account that the order would go to."""
        wrong = self._wrong(view)
        if wrong is None and order.intent == "entry":
            wrong = self._unreadable(view)
        return self.allow() if wrong is None else self.refuse(wrong)

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell whether the account is the one that is meant; it has no number."""
        return RuleUsage(rule=self.name, tripped=(self._wrong(view) or self._unreadable(view)) is not None)

    def _unreadable(self, view: RiskView) -> str | None:
        """Say that sizes and limits would be made of another money."""
        currency = view.account.currency
        if currency == CURRENCY:
            return None
        return (
            f"the account is told in {currency}, and the broker tells no {CURRENCY} of it, which sizes and limits "
            f"are made of: hold some {CURRENCY} in it"
        )

    def _wrong(self, view: RiskView) -> str | None:
        account = view.account
        if self._account is not None and account.account != self._account:
            found = "not known" if account.account is None else account.account
            return f"the account is {found}, but the configuration means {self._account}"
        if self._mode is not None and account.mode != self._mode:
            return f"the account is a {account.mode} one, but the configuration means a {self._mode} one"
        if account.mode == "live" and not self._live:
            return f"this is a live account: set `live: true` in the settings of {self.name} to trade real money"
        return None


def build(config: AccountGuardConfig, context: PluginContext) -> AccountGuard:
    """Build the rule of one instance."""
    settings = context.settings
    return AccountGuard(context.name, config, settings.ibkr.account if settings.broker == "ibkr" else None)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `account_guard`."""
    register("account_guard", build, config=AccountGuardConfig)

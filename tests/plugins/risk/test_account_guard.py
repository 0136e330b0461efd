"""R15, account_guard."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock
from sigma9_core.config import IbkrSettings, Settings
from sigma9_core.contracts import PluginContext, RiskRule, RiskView
from sigma9_core.models import Intent, OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract, decide
from sigma9_core.testing.risk_views import holding, order, view
from sigma9_plugins.risk.account_guard import AccountGuard, AccountGuardConfig, build


def rule(**config: object) -> AccountGuard:
    """Build the rule with some settings."""
    return AccountGuard("r15", AccountGuardConfig.model_validate(config))


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an order on a paper account."""
        return order(), view(mode="paper")

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an order on a live account without consent."""
        return order(), view(mode="live")


@pytest.mark.parametrize("intent", ["entry", "reduce", "kill"])
def test_no_order_of_any_kind_goes_to_the_wrong_account(intent: Intent) -> None:
    """Entries, exits and a kill's own orders are refused alike."""
    wrong = view(positions=[holding()], account="U777")
    side = "buy" if intent == "entry" else "sell"

    decision = decide(rule(account="DU1"), order(side=side, intent=intent), wrong)

    assert decision.approved is None
    assert decision.refused is not None
    assert "U777" in (decision.refused.reason or "")
    assert "DU1" in (decision.refused.reason or "")


def test_live_trading_wants_consent() -> None:
    """A live account trades with `live: true` alone, and the refusal says so."""
    moment = view(mode="live")

    assert "live: true" in (rule().check(order(), moment).reason or "")
    assert rule(live=True).check(order(), moment).outcome == "allow"
    assert rule(mode="live").check(order(), moment).outcome == "refuse"


def test_no_entry_is_made_of_another_money() -> None:
    """Where the account is told in another currency no entry passes; what reduces and what a kill sends does."""
    yen = view(positions=[holding()], currency="JPY", equity=None)

    refused = rule().check(order(), yen)
    assert refused.outcome == "refuse"
    assert "told in JPY, and the broker tells no USD of it" in (refused.reason or "")
    for intent in ("reduce", "kill"):
        assert rule().check(order(side="sell", intent=intent), yen).outcome == "allow"
    assert rule().usage(yen).tripped


def test_the_kind_of_account_can_be_named() -> None:
    """A named mode refuses any other."""
    assert rule(mode="paper").check(order(), view(mode="simulated")).outcome == "refuse"
    assert rule(mode="paper").check(order(), view(mode="paper")).outcome == "allow"


def test_an_unknown_account_is_not_the_one_meant() -> None:
    """Before the broker has named the account, one that is expected is missing."""
    assert rule(account="DU1").check(order(), view(account=None)).outcome == "refuse"


def test_usage_says_whether_the_account_is_wrong() -> None:
    """The rule shows as tripped while the account is not the one meant; a person sets it right."""
    usage = rule(account="DU1").usage(view())

    assert (usage.tripped, usage.until, usage.used, usage.limit) == (True, None, None, None)
    assert not rule(account="SIM1").usage(view()).tripped


@pytest.mark.parametrize(("broker", "expected"), [("ibkr", "DU123"), ("other", None)])
def test_the_brokers_account_is_the_default(broker: str, expected: str | None, tmp_path: Path) -> None:
    """Where the broker is IB, `ibkr.account` is the one meant; the rule's own setting beats it."""
    settings = Settings(broker=broker, feed="live", ibkr=IbkrSettings(account="DU123"))
    context = PluginContext("r15", settings, SteppedClock("replay"), Calendar("XNYS"), tmp_path)
    moment = view(account="SIM1")

    outcome = build(AccountGuardConfig(), context).check(order(), moment).outcome

    assert outcome == ("refuse" if expected else "allow")
    assert build(AccountGuardConfig(account="SIM1"), context).check(order(), moment).outcome == "allow"

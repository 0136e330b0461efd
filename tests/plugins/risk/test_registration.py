"""The built-in rules come through the public door, by name and with defaults that make sense."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest
from pydantic import ValidationError

from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock
from sigma9_core.config import DEFAULT_RISK, Settings
from sigma9_core.contracts import PluginContext, RiskRule
from sigma9_core.models import Frozen
from sigma9_core.money.gate import TABLE, GuardedRule, RiskGate
from sigma9_core.testing.risk_views import NOW, holding, order, view

CODES = {
    "max_order_quantity": "R1",
    "max_order_value": "R2",
    "price_collar": "R3",
    "max_position": "R4",
    "max_exposure": "R5",
    "concentration": "R6",
    "max_open": "R7",
    "loss_limit": "R8",
    "order_rate": "R9",
    "repeated_execution": "R10",
    "duplicate_order": "R11",
    "instruments": "R12",
    "session": "R13",
    "buying_power": "R14",
    "account_guard": "R15",
    "signal_age": "R16",
    "reference_data": "R17",
    "slippage_watch": "R18",
    "loss_streak": "R19",
    "self_trade": "R20",
    "day_trades": "R21",
    "short_sales": "R22",
    "halts": "R23",
    "clock": "R24",
    "feed_health": "R25",
}


def offered(plugin: str) -> tuple[Any, type[Frozen]]:
    """Give what a plugin's hook registers under the plugin's own name."""
    found: dict[str, tuple[Any, type[Frozen]]] = {}

    def register(name: str, factory: Any, config: type[Frozen]) -> None:
        found[name] = (factory, config)

    importlib.import_module(f"sigma9_plugins.risk.{plugin}").register_risk_rules(register)
    assert list(found) == [plugin]
    return found[plugin]


def built(plugin: str, **config: object) -> RiskRule:
    """Build a rule as the engine does."""
    factory, model = offered(plugin)
    context = PluginContext(f"my_{plugin}", Settings(), SteppedClock("replay", NOW), Calendar("XNYS"), None)
    rule = factory(model.model_validate(config), context)
    assert isinstance(rule, RiskRule)
    return rule


def test_the_default_set_is_the_built_in_rules() -> None:
    """A configuration without `risk` runs all nine."""
    assert [entry.plugin for entry in DEFAULT_RISK] == list(CODES)


@pytest.mark.parametrize(("plugin", "code"), CODES.items())
def test_each_has_its_name_and_code(plugin: str, code: str) -> None:
    """An instance carries the name of its entry and the code of the safety page."""
    rule = built(plugin)

    assert (rule.name, rule.code) == (f"my_{plugin}", code)
    assert code in TABLE


@pytest.mark.parametrize("plugin", CODES)
def test_an_unknown_setting_is_refused(plugin: str) -> None:
    """A misspelt setting is an error and not silently a default."""
    with pytest.raises(ValidationError, match="max_shars"):
        built(plugin, max_shars=3)


@pytest.mark.parametrize("plugin", CODES)
def test_settings_survive_json(plugin: str) -> None:
    """What `risk_set` keeps as JSON gives the same settings back."""
    _, model = offered(plugin)

    assert model.model_validate_json(model().model_dump_json()) == model()


def test_the_defaults_let_an_ordinary_day_pass() -> None:
    """With every default, three entries of a tenth of equity pass one by one, and a fourth is refused."""
    gate = RiskGate([GuardedRule(built(plugin)) for plugin in CODES], SteppedClock("replay", NOW))
    symbols = ("AAPL", "MSFT", "NVDA", "TSLA")

    refused = []
    for number, symbol in enumerate(symbols):
        moment = view(positions=[holding(held) for held in symbols[:number]], entries_today=number)
        decision = asyncio.run(gate.decide(f"o{number}", order(symbol, quantity=100), moment))
        refused.append(decision.refused and decision.refused.rule)

    assert refused == [None, None, None, "my_max_open"]

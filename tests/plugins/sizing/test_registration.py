"""The built-in sizers come through the public door."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock
from sigma9_core.config import Settings
from sigma9_core.contracts import PluginContext, Signal, SizingContext
from sigma9_core.models import ExitPlan, Frozen


@pytest.mark.parametrize("plugin", ["fixed_fraction", "kelly"])
def test_each_is_offered_under_its_name_and_sizes(plugin: str) -> None:
    """With its defaults each gives a tenth of equity to a strategy that has no trades yet."""
    found: dict[str, tuple[Any, type[Frozen]]] = {}

    def register(name: str, factory: Any, config: type[Frozen]) -> None:
        found[name] = (factory, config)

    importlib.import_module(f"sigma9_plugins.sizing.{plugin}").register_sizers(register)
    factory, model = found[plugin]
    context = PluginContext(plugin, Settings(), SteppedClock("replay"), Calendar("XNYS"), None)
    signal = Signal("AAPL", "buy", datetime(2026, 11, 20, 16, tzinfo=UTC), 100.0, ExitPlan())

    shares = factory(model(), context).size(
        SizingContext(signal, Decimal(100_000), Decimal(100_000), Decimal("99.99"))
    )

    assert shares == 100
    assert list(found) == [plugin]

"""Settings of the seismograph; the defaults are the readings that its formulas were written for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sigma9_core.models import Frozen, Symbol
from sigma9_plugins.scanners.seismograph.trigger_config import TriggerConfig

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=-100, le=1000, allow_inf_nan=False)]


class UniverseConfig(Frozen):
    """Which scored symbols may come onto the list; a bound of null is no bound."""

    min_price: Price | None = 2.0
    max_price: Price | None = 10.0
    """The last close, in the account's currency, both bounds included."""
    min_average_volume: Price | None = 100_000.0
    """The mean volume of the last 20 bars, in shares a day."""
    min_change: Percent | None = 0.0
    max_change: Percent | None = 5.0
    """The last day's change in percent, both bounds included."""
    min_market_cap: Price | None = 50e6
    max_market_cap: Price | None = 300e6
    """Applied where the bars have a column `market_cap`, both bounds included."""
    max_float: Price | None = 15e6
    """Applied where the bars have a column `float`, in shares; it must be less than this."""
    whitelist: frozenset[Symbol] = frozenset()
    """Symbols that no exclusion by name or type touches."""
    exclude: frozenset[Symbol] = frozenset()
    """Symbols to leave out."""
    exclude_types: frozenset[str] = frozenset(("warrant", "right", "unit"))
    """Applied where the bars have a column `security_type`; upper and lower case are the same."""
    exclude_patterns: bool = True
    """Without a known type: leave out Nasdaq's fifth letter W, R or U, and forms such as `.WS`, `-W`, `+`."""

    @model_validator(mode="after")
    def _order(self) -> UniverseConfig:
        for name in ("price", "change", "market_cap"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} ({low:g}) is above max_{name} ({high:g})")
        return self


class SeismographConfig(Frozen):
    """Settings of one seismograph."""

    keep_priority: Annotated[int, Field(ge=0, le=100)] = 50
    keep_score: Annotated[float, Field(ge=0, le=100)] = 50.0
    """A symbol is kept if its priority or its score (to one decimal) reaches this."""
    watchlist_size: Annotated[int, Field(ge=1, le=1000)] = 50
    universe: UniverseConfig = UniverseConfig()
    trigger: TriggerConfig = TriggerConfig()

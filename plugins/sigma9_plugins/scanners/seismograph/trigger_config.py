"""Settings of the seismograph's intraday trigger, with the ranges in which they make sense."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from sigma9_core.models import Frozen, Money


class IgnitionConfig(Frozen):
    """The four parts of the ignition score: velocity 35, burst 30, break 20 and pressure 15 of 100."""

    threshold: Annotated[float, Field(ge=50, le=90)] = 70
    """The score from which an entry is made."""
    velocity: Annotated[float, Field(ge=4, le=15)] = 8
    """Trades of the last 10 s over the 10-s average of the 50 s before: full above this, half above its half."""
    burst: Annotated[float, Field(ge=3, le=12)] = 6
    """Volume of the last minute over the average of the 5 minutes before: full above this, half above its half."""
    break_percent: Annotated[float, Field(ge=0.3, le=1.0)] = 0.5
    """How far the price must be above the box for the full part; above the box at all is half."""
    pressure: Annotated[float, Field(ge=1.5, le=2.5)] = 1.8
    """Buy over sell volume of the last 60 s: full above this, half above its half."""
    bars_only: Literal["reweight", "off"] = "reweight"
    """Where the feed gives bars and no trades the velocity is unknown: `reweight` scales the other three parts to
    100, `off` gives such symbols no score."""


class TrapConfig(Frozen):
    """The anti-trap filters; all of them must hold."""

    max_spread_percent: Annotated[float, Field(ge=0.5, le=2.0)] = 1.0
    """(ask − bid) / mid must be below this."""
    minutes_after_open: Annotated[float, Field(ge=5, le=30)] = 15
    """No entry in the first minutes of the session."""
    quote_age_seconds: Annotated[float, Field(ge=1, le=60)] = 5
    """A quote older than this, in market time, counts as missing."""


class ExitConfig(Frozen):
    """How an entry is left."""

    stop_percent: Annotated[Money, Field(ge=Decimal("1.5"), le=3)] = Decimal(2)
    """The protective stop below the fill."""
    time_stop_seconds: Annotated[int, Field(ge=120, le=300)] = 180
    """Leave at the market after this, unless the trail is active."""
    trail_atr: Annotated[float, Field(ge=1.0, le=2.0)] = 1.5
    """The trail's distance in 14-bar average true ranges of one-minute bars."""
    trail_activation_percent: Annotated[Money, Field(ge=2, le=5)] = Decimal(3)
    """The gain at which the trail starts."""
    trail_fallback_percent: Annotated[float, Field(ge=1.0, le=5.0)] = 2.5
    """The trail's distance in percent of the price where there are too few bars for an average true range."""


class DoubleTapConfig(Frozen):
    """The one re-entry in a symbol and day."""

    enabled: bool = True
    after_loss: bool = False
    """Whether an exit with a loss may be followed by a re-entry."""
    wait_seconds: Annotated[int, Field(ge=60, le=600)] = 180
    """The cool-down after the first exit; the high of the day is frozen at its end."""
    offset: Annotated[Money, Field(gt=0, le=1)] = Decimal("0.01")
    """The stop lies this far above the frozen high of the day."""
    limit_percent: Annotated[float, Field(ge=0, le=2.0)] = 0.5
    """The limit of the stop-limit order lies this far above its stop."""
    size_percent: Annotated[int, Field(ge=10, le=100)] = 50
    """The re-entry's quantity in percent of the first entry's, rounded down."""
    trail_percent: Annotated[Money, Field(ge=Decimal("0.5"), le=3)] = Decimal(1)
    """The re-entry is left by a trail of this distance, active at once."""


class TriggerConfig(Frozen):
    """Everything the trigger can be told."""

    ignition: IgnitionConfig = IgnitionConfig()
    traps: TrapConfig = TrapConfig()
    exits: ExitConfig = ExitConfig()
    double_tap: DoubleTapConfig = DoubleTapConfig()
    order_type: Literal["market", "limit"] = "market"
    """`limit` is a marketable limit: at the ask plus `limit_offset_percent`, immediate or cancel."""
    limit_offset_percent: Annotated[float, Field(ge=0, le=2.0)] = 0.3
    """How far above the ask a marketable limit lies."""
    min_stage: Annotated[int, Field(ge=3, le=4)] = 3
    """An item of a lower stage never enters."""
    cool_off_seconds: Annotated[int, Field(ge=1, le=600)] = 30
    """No new signal in a symbol for this long after an entry was refused, cancelled or never heard of."""

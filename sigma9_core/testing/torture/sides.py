"""The other side of a torture: the venue that lives on, the broker plugin that reaches it, what fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sigma9_core.testing.exchange.control import EXCHANGE as EXCHANGE_MODULE
from sigma9_core.testing.exchange.control import ExchangeProcess
from sigma9_core.testing.torture.plugin import SOURCE
from sigma9_core.testing.torture.points import POINTS, Point

Settings = tuple[dict[str, Any], dict[str, Any]]
"""Settings of the server, and those of its plugins."""


@dataclass(frozen=True, slots=True)
class Side:
    """A venue, and the broker plugin that reaches it."""

    venue: str
    """The module that is run as the venue's process."""
    source: str
    """The file in the server's plugin folder."""
    settings: Callable[[ExchangeProcess], Settings]
    rates: Mapping[str, float]
    """What goes wrong between server and venue while the servers live."""
    points: Mapping[str, Point] = field(default_factory=lambda: POINTS)
    """Where the server can die."""
    at_once: Callable[[bool], Sequence[str]] = lambda _at_once: ()
    """Gives the settings of a life in which the venue takes in at once what it is sent."""


EXCHANGE: Final = Side(
    venue=EXCHANGE_MODULE,
    source=SOURCE,
    settings=lambda venue: ({"broker": "far_exchange"}, {"far_exchange": {"port": venue.port}}),
    at_once=lambda at_once: (f"plugins.settings.far_exchange.at_once={str(at_once).lower()}",),
    rates={
        "drop": 0.04,
        "delay": 0.08,
        "double": 0.05,
        "reorder": 0.05,
        "answer_drop": 0.03,
        "answer_delay": 0.05,
        "intake": 0.05,
        "reject": 0.03,
        "cut": 0.004,
        "outage": 0.008,
        "cancel": 0.004,
        "bust": 0.01,
        "late": 0.25,
    },
)

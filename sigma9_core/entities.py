"""What a home automation can show and press: entities, described by what they are.

An entity reads a state topic (a name on the board) or a kind of event, and may send commands. Plugins offer their
own with the hook `register_entities`; Sigma9's own table comes through the same hook.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from sigma9_core.models import Frozen

EntityPlatform = Literal["sensor", "binary_sensor", "switch", "button", "event"]
Category = Literal["diagnostic", "config"]
Word = Literal["trade_event", "watchlist_update"]

OBJECT: Final = r"[A-Za-z0-9_]{1,64}"
PATH: Final = r"[a-z0-9_]{1,64}(\.[a-z0-9_]{1,64}){0,7}"
BOARD_NAME: Final = r"[a-z0-9_]{1,64}"

SENSOR_CLASSES: Final = frozenset(
    (
        "apparent_power", "battery", "current", "data_rate", "data_size", "date", "distance", "duration",
        "energy", "enum", "frequency", "humidity", "monetary", "power", "pressure", "signal_strength", "speed",
        "temperature", "timestamp", "voltage",
    )
)  # fmt: skip
BINARY_CLASSES: Final = frozenset(
    (
        "battery", "connectivity", "door", "heat", "light", "lock", "motion", "moving", "occupancy", "opening",
        "plug", "power", "presence", "problem", "running", "safety", "sound", "tamper", "update", "vibration",
        "window",
    )
)  # fmt: skip


class EntitySpec(Frozen):
    """One entity of the server's device."""

    platform: EntityPlatform
    object: str = Field(pattern=f"^{OBJECT}$")
    """Unique among the entities of a node, and stable: automations hold on to it."""
    name: str = Field(min_length=1, max_length=64)
    """For people; the device's name stands before it already."""
    state: str | None = Field(None, pattern=f"^{BOARD_NAME}$")
    """The board name whose body it shows, such as `account`."""
    value: str | None = Field(None, pattern=f"^{PATH}$")
    """The dotted path of the value in that body; a binary sensor or switch is on where it is true."""
    template: str | None = None
    """A Jinja template over `value_json` in place of a path; a binary one gives ON or OFF."""
    attributes: str | None = Field(None, pattern=f"^{BOARD_NAME}$")
    """The board name whose body becomes attributes."""
    attributes_template: str | None = None
    """A Jinja template over `value_json` that gives them as JSON: a recorder keeps no more than 16 kB of them."""
    event: Word | None = None
    """Of an event entity: the events that fire it."""
    event_types: tuple[str, ...] = ()
    command: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """The command that a button or switch sends."""
    payload: str = "PRESS"
    """What a button sends."""
    payload_on: str = "ON"
    payload_off: str = "OFF"
    """What a switch sends."""
    device_class: str | None = None
    state_class: Literal["measurement", "total", "total_increasing"] | None = None
    unit: str | None = None
    """Of measurement; `{currency}` stands for the account's."""
    precision: int | None = Field(None, ge=0, le=8)
    """Decimals to show."""
    options: tuple[str, ...] = ()
    """Of a sensor of the class `enum`: every value there is."""
    category: Category | None = None
    icon: str | None = Field(None, pattern=r"^mdi:[a-z0-9-]+$")
    enabled: bool = True
    """Shown at once; else a person has to enable it first."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for problem in _problems(self):
            raise ValueError(problem)
        return self


def _problems(spec: EntitySpec) -> list[str]:
    """Say what a home automation would refuse, or warn of at each message."""
    shows = spec.platform in ("sensor", "binary_sensor", "switch")
    sends = spec.platform in ("button", "switch")
    found = [
        (shows and spec.state is None, f"a {spec.platform} needs the board name of its state"),
        (shows and (spec.value is None) == (spec.template is None), "give either value or template"),
        (not shows and spec.state is not None, f"a {spec.platform} has no state"),
        (sends and spec.command is None, f"a {spec.platform} needs a command"),
        (not sends and spec.command is not None, f"a {spec.platform} sends no command"),
        (
            (spec.platform == "event") != (spec.event is not None),
            "event belongs to an event entity, which needs it",
        ),
        ((spec.platform == "event") != bool(spec.event_types), "event_types belong to an event entity"),
        (spec.platform == "sensor" and spec.category == "config", "a sensor can't be of the category config"),
        (
            spec.platform == "sensor" and spec.device_class not in (None, *SENSOR_CLASSES),
            f"no sensor has the device class {spec.device_class}",
        ),
        (
            spec.platform == "binary_sensor" and spec.device_class not in (None, *BINARY_CLASSES),
            f"no binary sensor has the device class {spec.device_class}",
        ),
        (spec.attributes_template is not None and spec.attributes is None, "attributes_template needs attributes"),
        ((spec.device_class == "enum") != bool(spec.options), "options and the device class enum go together"),
        (
            spec.device_class == "monetary" and spec.state_class not in (None, "total"),
            "money has the state class total, or none",
        ),
        (
            spec.device_class in ("timestamp", "enum", "date") and (spec.unit or spec.state_class) is not None,
            f"a sensor of the class {spec.device_class} has no unit and no state class",
        ),
        (
            spec.platform != "sensor" and (spec.unit, spec.precision, spec.state_class) != (None, None, None),
            "unit, precision and state class belong to a sensor",
        ),
    ]
    return [sentence for wrong, sentence in found if wrong]


__all__ = ["EntityPlatform", "EntitySpec"]

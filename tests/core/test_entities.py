"""What an entity may be: Home Assistant refuses the rest, or warns of it at each message."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sigma9_core.entities import EntitySpec

SENSOR: dict[str, Any] = {
    "platform": "sensor",
    "object": "load",
    "name": "Load",
    "state": "status",
    "value": "uptime",
}
BUTTON: dict[str, Any] = {"platform": "button", "object": "go", "name": "Go", "command": "scan"}


@pytest.mark.parametrize(
    "given",
    [
        SENSOR,
        BUTTON,
        {**SENSOR, "value": None, "template": "{{ value_json.uptime }}"},
        {**SENSOR, "device_class": "enum", "options": ("a", "b")},
        {**SENSOR, "device_class": "monetary", "state_class": "total", "unit": "{currency}", "precision": 2},
        {**SENSOR, "platform": "switch", "command": "control"},
        {"platform": "event", "object": "e", "name": "E", "event": "trade_event", "event_types": ("filled",)},
    ],
)
def test_what_fits_is_taken(given: dict[str, Any]) -> None:
    """Each platform with what belongs to it."""
    assert EntitySpec.model_validate(given).platform == given["platform"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({**SENSOR, "state": None}, "a sensor needs the board name of its state"),
        ({**SENSOR, "template": "{{ 1 }}"}, "give either value or template"),
        ({**SENSOR, "value": None}, "give either value or template"),
        ({**SENSOR, "command": "scan"}, "a sensor sends no command"),
        ({**SENSOR, "category": "config"}, "can't be of the category config"),
        ({**SENSOR, "device_class": "money"}, "no sensor has the device class money"),
        ({**SENSOR, "device_class": "enum"}, "options and the device class enum go together"),
        ({**SENSOR, "device_class": "monetary", "state_class": "measurement"}, "state class total, or none"),
        ({**SENSOR, "device_class": "timestamp", "unit": "s"}, "has no unit and no state class"),
        ({**SENSOR, "event_types": ("a",)}, "event_types belong to an event entity"),
        ({**SENSOR, "attributes_template": "{}"}, "attributes_template needs attributes"),
        ({**SENSOR, "object": "a.b"}, "object"),
        ({**SENSOR, "icon": "car"}, "icon"),
        ({**SENSOR, "state": "position/AAPL"}, "state"),
        ({**BUTTON, "command": None}, "a button needs a command"),
        ({**BUTTON, "state": "status"}, "a button has no state"),
        ({**BUTTON, "precision": 1}, "belong to a sensor"),
        ({**BUTTON, "platform": "event", "command": None}, "event belongs to an event entity"),
        ({**SENSOR, "platform": "binary_sensor", "device_class": "monetary"}, "no binary sensor has"),
    ],
)
def test_what_would_be_refused_is_refused_here(given: dict[str, Any], sentence: str) -> None:
    """The sentence says what does not go together."""
    with pytest.raises(ValidationError, match=sentence):
        EntitySpec.model_validate(given)

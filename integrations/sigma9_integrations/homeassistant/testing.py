"""What Home Assistant asks of discovery messages, as it was seen to: a stand-in for the program itself.

`Home` reads the messages as Home Assistant does, keeps its registry of entities, and raises where it would refuse
a message or warn. It follows one broker's traffic: give it each message in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2.sandbox import ImmutableSandboxedEnvironment

PLATFORMS: Final = ("sensor", "binary_sensor", "switch", "button", "event")
TOPIC: Final = re.compile(r"homeassistant/(?:(device)|(\w+)/([a-zA-Z0-9_-]+))/([a-zA-Z0-9_-]+)/config")
NEEDED: Final = {
    "sensor": {"state_topic"},
    "binary_sensor": {"state_topic"},
    "switch": {"command_topic", "state_topic"},
    "button": {"command_topic"},
    "event": {"state_topic", "event_types"},
}
SHARED: Final = frozenset(("device", "origin", "availability_topic", "state_topic", "command_topic"))
"""What a component of the device form takes from the top of its message; all else there means nothing to it."""
COMMON: Final = frozenset(
    (
        *("unique_id", "name", "object_id", "default_entity_id", "icon", "device_class", "entity_category"),
        *("enabled_by_default", "availability_topic", "device", "origin", "qos", "platform"),
        *("json_attributes_topic", "json_attributes_template"),
    )
)
OWN: Final = {
    "sensor": {"state_topic", "value_template", "state_class", "unit_of_measurement", "options",
               "suggested_display_precision"},
    "binary_sensor": {"state_topic", "value_template"},
    "switch": {"state_topic", "value_template", "command_topic", "payload_on", "payload_off", "state_on",
               "state_off", "retain"},
    "button": {"command_topic", "payload_press", "retain"},
    "event": {"state_topic", "value_template", "event_types"},
}  # fmt: skip

_JINJA: Final = ImmutableSandboxedEnvironment()
_JINJA.filters["to_json"] = json.dumps


def render(template: str, payload: str) -> str:
    """Render a template over a payload, as Home Assistant does; a missing key is a fault here."""
    variables = {"value": payload}
    if payload:  # an empty one has no value_json
        variables["value_json"] = json.loads(payload)
    return str(_JINJA.from_string(template).render(variables))


@dataclass
class Home:
    """What Home Assistant knows."""

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each entity's configuration, by unique_id."""
    origin_of: dict[str, str] = field(default_factory=dict)
    """The topic that an entity came by."""
    log: list[str] = field(default_factory=list)
    """How entities came and went, in order."""

    def hear(self, topic: str, payload: str) -> None:
        """Take a message below the prefix."""
        match = TOPIC.fullmatch(topic)
        assert match is not None, f"{topic} is no discovery topic"
        if payload == '{"migrate_discovery": true}':
            for unique in [key for key, where in self.origin_of.items() if where == topic]:
                del self.origin_of[unique]  # unloaded, and kept in the registry for whoever brings it next
            return
        if match[1]:
            self._device(topic, payload)
        else:
            assert match[2] in PLATFORMS, topic
            known = self.origin_of.get(f"{match[3]}_{match[4]}")
            assert known in (None, topic), f"{topic} conflicts with {known}"
            self._single(topic, match[2], payload)

    def _device(self, topic: str, payload: str) -> None:
        mine = {key for key, where in self.origin_of.items() if where == topic}
        if not payload:
            self._remove(mine)
            return
        message = json.loads(payload)
        assert message["origin"]["name"], "the device form needs an origin with a name"
        assert set(message) <= SHARED | {"components"}, f"nothing at the top of {topic} may be without effect"
        shared = {key: value for key, value in message.items() if key != "components"}
        for key, component in message["components"].items():
            assert re.fullmatch(r"[a-zA-Z0-9_-]+", key), key
            if set(component) == {"platform"}:  # this is how a component is removed
                self._remove({each for each in mine if each.endswith(f"_{key}")})
                continue
            self._add(topic, component["platform"], {**shared, **component})
        # What is left out stays: it has to be sent once by its platform alone.

    def _single(self, topic: str, platform: str, payload: str) -> None:
        if not payload:
            self._remove({key for key, where in self.origin_of.items() if where == topic})
            return
        self._add(topic, platform, json.loads(payload))

    def _add(self, topic: str, platform: str, config: dict[str, Any]) -> None:
        where = f"{topic} {config.get('name')}"
        assert platform in PLATFORMS, where
        assert NEEDED[platform] <= set(config), where
        assert set(config) <= COMMON | OWN[platform], f"{where}: {set(config) - COMMON - OWN[platform]}"
        unique = config["unique_id"]
        known = self.origin_of.get(unique)
        assert known in (None, topic), f"{where}: the unique_id stands twice"
        assert config["device"]["identifiers"], where
        assert not config["name"].startswith(config["device"]["name"]), where
        assert re.fullmatch(rf"{platform}\.[a-z0-9_]+", config["default_entity_id"]), where
        assert config["qos"] == 1, where
        for field_name in ("value_template", "json_attributes_template"):
            if field_name in config:
                _JINJA.from_string(config[field_name])
        if unique not in self.configs:
            self.log.append(f"+{unique}")
        self.configs[unique] = {**config, "platform": platform}
        self.origin_of[unique] = topic

    def _remove(self, uniques: set[str]) -> None:
        for unique in uniques:
            self.log.append(f"-{unique}")
            del self.configs[unique], self.origin_of[unique]

    def restart(self, retained: Mapping[str, str]) -> None:
        """Start anew on what the broker has: the registry stays, and what is not told again can't be removed."""
        self.origin_of.clear()
        for topic, payload in retained.items():
            self.hear(topic, payload)

    # --- states -----------------------------------------------------------------------------------------------

    def state(self, unique: str, payload: str) -> str:
        """Give what an entity would show for a payload on its state topic; raise where it would warn."""
        config = self.configs[unique]
        shown = render(config.get("value_template", "{{ value }}"), payload)
        if config["platform"] == "sensor":
            self._check_sensor(unique, config, shown)
        elif config["platform"] in ("binary_sensor", "switch"):
            assert shown in ("ON", "OFF"), f"{unique}: {shown}"
        elif config["platform"] == "event":
            body = json.loads(shown)
            assert body["event_type"] in config["event_types"], f"{unique}: {body['event_type']}"
            assert len(shown) < 16_384, f"{unique}: {len(shown)} bytes of attributes"
        return shown

    def attributes(self, unique: str, payload: str) -> dict[str, Any]:
        """Give an entity's attributes for a payload on their topic."""
        shown = render(self.configs[unique].get("json_attributes_template", "{{ value }}"), payload)
        found = json.loads(shown)
        assert isinstance(found, dict), unique
        assert len(shown) < 16_384, f"{unique}: {len(shown)} bytes of attributes are not recorded"
        return found

    @staticmethod
    def _check_sensor(unique: str, config: dict[str, Any], shown: str) -> None:
        if shown == "None":
            return  # unknown
        assert len(shown) <= 255, f"{unique}: a state has at most 255 characters"
        kind = config.get("device_class")
        if kind == "enum":
            assert shown in config["options"], f"{unique}: {shown}"
        elif kind == "timestamp":
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", shown), (
                f"{unique}: {shown}"
            )
        elif config.get("unit_of_measurement") or config.get("state_class"):
            float(shown)

"""What is published below Home Assistant's prefix so that it knows a node: its messages, in both forms.

`device` is one message for everything; `entity` is a message for each entity, for Home Assistant before 2024.11.
Whatever an earlier run has left is moved over or taken away, so that no entity stands twice or dead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sigma9_core import __version__
from sigma9_core.board import Board
from sigma9_core.clock import monotonic
from sigma9_core.config import HomeAssistantSettings
from sigma9_core.entities import EntitySpec
from sigma9_integrations.broker.files import write_private
from sigma9_integrations.homeassistant.table import position
from sigma9_integrations.mqtt.topics import Topics

_LOG = logging.getLogger("sigma9.homeassistant")

POSITION: Final = "position/"
"""The head of the board names of held positions."""
CURRENCY: Final = "USD"
"""The unit of money until the account is known."""
ORIGIN: Final[Mapping[str, str]] = {"name": "Sigma9", "sw_version": __version__}
MIGRATE: Final = '{"migrate_discovery": true}'
MIGRATE_SECONDS: Final = 1.0
"""How long Home Assistant takes to let go of the old form; at once it warns of a conflict for each entity."""
CALM_SECONDS: Final = 1.0
"""Seconds between two messages of the device form that change something.

While Home Assistant is at work on one component of a message, it drops from the next message all that stands
behind that component (2025.4 and 2026.2 do): of three positions opened at once two would have no entity.
"""
REPEAT_SECONDS: Final = 10.0
"""After so long a change is told once more, for a Home Assistant that was slower than that."""
LET_GO_SECONDS: Final = 1.0
"""How long Home Assistant has to let go of an entity before the topic is emptied that it would trip over."""
REVIVE_SECONDS: Final = 2.0
"""How long Home Assistant has, when it has just come up, to take up entities that it then removes."""
DEAF_SECONDS: Final = 60.0
"""So long before its last word Home Assistant may have heard nothing any more: it was going down."""
_EVENTS: Final[Mapping[str, str]] = {
    "trade_event": (
        "{% set data = value_json.data %}"
        "{{ dict(data, event_type=data.event, seq=value_json.seq, ts=value_json.ts, "
        "late=value_json.late | default(false), "
        "verdicts=data.verdicts | rejectattr('outcome', 'eq', 'allow') | list) | to_json }}"
    ),
    "watchlist_update": (
        "{% set data = value_json.data %}{{ {'event_type': data.reason, 'strategy': data.strategy, "
        "'added': data.added, 'removed': data.removed, 'count': data.count, 'seq': value_json.seq, "
        "'ts': value_json.ts} | to_json }}"
    ),
}


@dataclass(frozen=True, slots=True)
class Letter:
    """One message to publish; an empty retained payload takes a topic away."""

    topic: str
    payload: str
    retain: bool = True
    pause: float = 0.0
    """Seconds to wait after it."""


class Discovery:
    """Knows what Home Assistant is told of a node, and what the broker holds of it."""

    def __init__(
        self,
        settings: HomeAssistantSettings,
        topics: Topics,
        entities: Sequence[EntitySpec],
        board: Board,
        url: Callable[[], str | None] = lambda: None,
        *,
        commands: Collection[str],
        memory: Path | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Store; an entity that sends none of `commands` is left out, and said.

        `memory` is the file that keeps what was told: a broker that forgets it leaves Home Assistant with it.
        """
        self.birth = f"{settings.prefix}/status"
        """Where Home Assistant says that it has come up."""
        self._settings = settings
        self._topics = topics
        self._entities = tuple(spec for spec in entities if spec.command is None or spec.command in commands)
        for spec in entities:
            if spec not in self._entities:
                _LOG.error("the entity %s is left out: there is no command '%s'", spec.object, spec.command)
        self._board = board
        self._url = url
        self._id = f"sigma9_{topics.node}"
        self._device = f"{settings.prefix}/device/{self._id}/config"
        self._stored: dict[str, str] = {}
        """What the broker, or Home Assistant, holds of this node below the prefix, as far as is known."""
        self._memory = memory
        self._clock = clock
        self._saved: dict[str, str] = {}
        self._told = self._frame()
        self._said: set[str] = set()
        self._once_held: set[str] = set()
        """The positions' entities that were told of in this run, the closed ones as well."""
        self._told_held: frozenset[str] = frozenset()
        """The board names of the positions that the last message has."""
        self._away = False
        """Whether Home Assistant has said, or its last will, that it is gone."""
        self._ended: dict[str, float] = {}
        """When each position has ended."""
        self._missed: set[str] = set()
        """The board names of positions that ended while it was away."""
        self._leaving: dict[str, float] = {}
        """Until when the topics of positions stay whose entities were just removed."""
        self._calm_at = 0.0
        """When the next change may be told."""
        self._repeat_at: float | None = None

    @property
    def enabled(self) -> bool:
        """Tell whether Home Assistant is told of this node at all."""
        return self._settings.enabled

    @property
    def filters(self) -> tuple[str, ...]:
        """Give the topic filters below which this node's messages are found."""
        return self._device, f"{self._settings.prefix}/+/{self._id}/+/config"

    def expect(self, stored: Mapping[str, str]) -> None:
        """Learn what the broker holds of an earlier run."""
        self._stored.update(stored)

    def recall(self) -> None:
        """Take up what an earlier run has told; what can't be read is as good as nothing (blocks)."""
        if self._memory is None or not self._memory.exists():
            return
        try:
            found = json.loads(self._memory.read_text(encoding="utf-8"))
            self._stored |= {str(topic): str(payload) for topic, payload in found.items()}
            self._saved = dict(self._stored)
        except (OSError, ValueError, AttributeError) as error:
            _LOG.warning(
                "%s can't be read (%s): what an earlier run told Home Assistant may stay", self._memory, error
            )

    @property
    def has_news(self) -> bool:
        """Tell whether something was told that is not kept yet."""
        return self._memory is not None and self._stored != self._saved

    def save(self) -> None:
        """Keep what was told for the next run, where it has changed (blocks)."""
        told = dict(self._stored)
        if self._memory is None or told == self._saved:
            return
        try:
            write_private(self._memory, json.dumps(told), durable=False)
            self._saved = told
        except OSError as error:
            _LOG.warning("%s can't be written (%s)", self._memory, error)

    def hear(self, topic: str, payload: bytes) -> bool:
        """Take what Home Assistant says of itself; tell whether it has come up."""
        if topic != self.birth:
            return False
        self._away = payload == b"offline"
        if self._away:
            since = self._clock() - DEAF_SECONDS
            self._missed |= {name for name, at in self._ended.items() if at >= since}
        return payload == b"online"

    # --- what to publish --------------------------------------------------------------------------------------

    def announce(self) -> list[Letter]:
        """Give everything, as a new connection and Home Assistant's birth need it.

        Entities of closed positions go once more: their removal may have been lost with its connection, or undone
        by a broker that came back with what it had saved before.
        """
        if not self.enabled:
            return self._take_away(self._stored)
        return self._whole() if self._settings.format == "device" else self._single()

    def revive(self) -> list[Letter]:
        """Give what a birth needs before everything is announced: positions that ended while nobody heard it.

        Home Assistant keeps them in its registry, and removes only what it has been told of since its start.
        """
        missed = [(position(name.removeprefix(POSITION)), name) for name in sorted(self._missed - self._held())]
        self._missed.clear()
        missed = [(spec, name) for spec, name in missed if spec.object in self._once_held]
        if not missed or not self.enabled:
            return []
        self._calm_at = self._clock() + REVIVE_SECONDS
        self._repeat_at = self._calm_at + REPEAT_SECONDS
        if self._settings.format == "device":
            components = {
                spec.object: {"platform": spec.platform, **self._body(spec, name)}
                for spec, name in (*self._all(), *missed)
            }
            return [Letter(self._device, self._message(components), retain=False, pause=REVIVE_SECONDS)]
        letters = [Letter(topic, json.dumps(body), retain=False) for topic, body in map(self._config_of, missed)]
        letters[-1] = replace(letters[-1], pause=REVIVE_SECONDS)
        return letters

    def patience(self, name: str) -> float:
        """Give the seconds that a position's topic has to wait: for its entity to come, or to be let go of."""
        if not self.enabled or not name.startswith(POSITION):
            return 0.0
        now = self._clock()
        left = self._leaving.get(name, now) - now
        if left <= 0:
            self._leaving.pop(name, None)
        early = self._calm_at - now if self._held() != self._told_held else 0.0
        return max(0.0, left, early)

    def before(self, name: str) -> list[Letter]:
        """Give what goes out before a state topic: a position's entity comes and goes ahead of its topic.

        The topic of a position is asked for its `patience` first, and again before it is emptied.
        """
        if not self.enabled:
            return []
        now = self._clock()
        if self._repeat_at is not None and now >= max(self._repeat_at, self._calm_at):
            self._repeat_at = None
            return self.announce()
        held = name.startswith(POSITION) and self._held() != self._told_held
        if not (held or self._frame() != self._told) or now < self._calm_at:
            return []
        return self._whole(only_news=True) if self._settings.format == "device" else self._single(only_news=True)

    def clear(self) -> list[Letter]:
        """Give what takes the node away for good."""
        return self._take_away(self._stored)

    # --- the device form --------------------------------------------------------------------------------------

    def _whole(self, *, only_news: bool = False) -> list[Letter]:
        components = {
            spec.object: {"platform": spec.platform, **self._body(spec, state)} for spec, state in self._all()
        }
        gone = {
            key: {"platform": platform}
            for key, platform in _components(self._stored.get(self._device, "")).items()
            if key not in components
        }
        if not only_news:
            gone |= {key: {"platform": "sensor"} for key in sorted(self._once_held - components.keys())}
        payload = self._message(components)
        if only_news and not gone and self._stored.get(self._device) == payload:
            return []
        self._calm_at = self._clock() + CALM_SECONDS
        if only_news:
            self._repeat_at = self._clock() + REPEAT_SECONDS
        letters = self._move(
            [topic for topic in self._stored if topic != self._device], self._topics_of(components)
        )
        if gone:  # leaving a component out does not remove it: it has to be sent once by its platform alone
            letters.append(Letter(self._device, self._message({**components, **gone})))
        return [*letters, self._keep(Letter(self._device, payload))]

    def _topics_of(self, components: Mapping[str, Mapping[str, Any]]) -> set[str]:
        return {self._topic_of(str(body["platform"]), key) for key, body in components.items()}

    def _topic_of(self, platform: str, key: str) -> str:
        return f"{self._settings.prefix}/{platform}/{self._id}/{key}/config"

    def _message(self, components: Mapping[str, Any]) -> str:
        return json.dumps({**self._shared(), "components": components})

    # --- one message an entity ----------------------------------------------------------------------------------

    def _single(self, *, only_news: bool = False) -> list[Letter]:
        configs = {topic: json.dumps(config) for topic, config in map(self._config_of, self._all())}
        letters: list[Letter] = []
        if self._device in self._stored:
            known = _components(self._stored[self._device])
            gone = {
                key: platform for key, platform in known.items() if self._topic_of(platform, key) not in configs
            }
            if gone:
                components = {key: {"platform": platform} for key, platform in gone.items()}
                letters.append(Letter(self._device, self._message(components)))
            letters += self._move([self._device], {self._device})
        old = [topic for topic in self._stored if topic not in configs]
        if not only_news:
            closed = (self._topic_of("sensor", key) for key in sorted(self._once_held))
            old += [topic for topic in closed if topic not in configs and topic not in old]
        letters += self._take_away(old)
        letters += [
            self._keep(Letter(topic, config))
            for topic, config in configs.items()
            if not only_news or self._stored.get(topic) != config
        ]
        return letters

    def _move(self, old: Sequence[str], wanted: Collection[str]) -> list[Letter]:
        """Let Home Assistant let go of entities of the other form without losing them, and take their topics away.

        What is not `wanted` any more is removed. New messages may follow; sent at once, or before the old topics
        are empty, they would be taken for conflicts.
        """
        letters = [Letter(topic, MIGRATE, retain=False) for topic in old if topic in wanted]
        if letters:
            letters[-1] = replace(letters[-1], pause=MIGRATE_SECONDS)
        letters += self._take_away(old)
        if letters:
            letters[-1] = replace(letters[-1], pause=MIGRATE_SECONDS)
        return letters

    def _config_of(self, entity: tuple[EntitySpec, str | None]) -> tuple[str, dict[str, Any]]:
        spec, state = entity
        return self._topic_of(spec.platform, spec.object), {**self._shared(), **self._body(spec, state)}

    # --- parts ------------------------------------------------------------------------------------------------

    def _held(self) -> frozenset[str]:
        """Give the board names of the positions that there are."""
        return frozenset(name for name in self._board.names() if name.startswith(POSITION))

    def _all(self) -> Iterable[tuple[EntitySpec, str | None]]:
        """Give every entity with the board name that it shows."""
        held = self._held()
        until = self._clock() + LET_GO_SECONDS
        ended = self._told_held - held
        self._leaving |= dict.fromkeys(ended, until)
        self._ended |= dict.fromkeys(ended, self._clock())
        if self._away:
            self._missed |= ended
        self._told_held = held
        taken: dict[str, str] = {}
        for spec in self._entities:
            taken[spec.object] = spec.name
            yield spec, spec.state
        for name in self._board.names():
            if name not in held:
                continue
            spec = position(name.removeprefix(POSITION))
            if spec.object in taken:
                if name not in self._said:
                    self._said.add(name)
                    _LOG.warning("%s has no entity of its own: %s has the same id", spec.name, taken[spec.object])
                continue
            taken[spec.object] = spec.name
            self._once_held.add(spec.object)
            yield spec, name

    def _shared(self) -> dict[str, Any]:
        """Give what stands at the top of every message."""
        title = "Sigma9" if self._topics.node == "main" else f"Sigma9 {self._topics.node}"
        device: dict[str, Any] = {
            "identifiers": [self._id],
            "name": title,
            "manufacturer": "Sigma9",
            "model": "Trading server",
            "sw_version": __version__,
        }
        self._told = self._frame()
        if self._told[1] is not None:
            device["configuration_url"] = self._told[1]
        return {
            "device": device,
            "origin": dict(ORIGIN),
            "availability_topic": self._topics.availability,
        }

    def _body(self, spec: EntitySpec, state: str | None) -> dict[str, Any]:
        """Write one entity as Home Assistant reads it."""
        node = self._topics.node
        short = f"sigma9_{spec.object}" if node == "main" else f"{self._id}_{spec.object}"
        topics = self._topics
        of_position = state is not None and state.startswith(POSITION)
        attributes = state if of_position else spec.attributes
        body: dict[str, Any] = {
            "unique_id": f"{self._id}_{spec.object}",
            "name": spec.name,
            "object_id": short.lower(),  # before 2025.10
            "default_entity_id": f"{spec.platform}.{short.lower()}",
            "icon": spec.icon,
            "qos": 1,  # at the top of the device form it is taken, and means nothing: a kill would go at QoS 0
            "device_class": spec.device_class,
            "state_class": spec.state_class,
            "unit_of_measurement": spec.unit and spec.unit.replace("{currency}", self._frame()[0]),
            "suggested_display_precision": spec.precision,
            "options": list(spec.options) or None,
            "entity_category": spec.category,
            "enabled_by_default": None if spec.enabled else False,
        }
        if state is not None:
            body["state_topic"] = topics.state(state)
            body["value_template"] = spec.template or _template(spec)
        if attributes is not None:
            body["json_attributes_topic"] = topics.state(attributes)
            body["json_attributes_template"] = spec.attributes_template
        if spec.event is not None:
            last = "/+" if spec.event == "trade_event" else ""
            body["state_topic"] = f"{topics.prefix}/event/{spec.event}{last}"
            body["value_template"] = _EVENTS[spec.event]
            body["event_types"] = list(spec.event_types)
        if spec.command is not None:
            body["command_topic"] = topics.command(spec.command)
            body["retain"] = False
        if spec.platform == "button":
            body["payload_press"] = spec.payload
        if spec.platform == "switch":
            body |= {"payload_on": spec.payload_on, "payload_off": spec.payload_off}
            body |= {"state_on": "ON", "state_off": "OFF"}
        return {key: value for key, value in body.items() if value is not None}

    def _frame(self) -> tuple[str, str | None]:
        """Give what all entities are written with and what may become known late: currency and address."""
        return str((self._board.get("account") or {}).get("currency") or CURRENCY), self._url()

    def _keep(self, letter: Letter) -> Letter:
        if letter.payload:
            self._stored[letter.topic] = letter.payload
        else:
            self._stored.pop(letter.topic, None)
        return letter

    def _take_away(self, topics: Iterable[str]) -> list[Letter]:
        return [self._keep(Letter(topic, "")) for topic in tuple(topics)]


def _template(spec: EntitySpec) -> str:
    if spec.platform == "sensor":
        return f"{{{{ value_json.{spec.value} }}}}"
    return f"{{{{ 'ON' if value_json.{spec.value} else 'OFF' }}}}"


def _components(payload: str) -> Mapping[str, str]:
    """Find the components of a stored message, each with its platform; what can't be read has none."""
    try:
        found = json.loads(payload or "{}").get("components", {})
        return {str(key): str(value["platform"]) for key, value in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


__all__ = ["Discovery", "Letter"]

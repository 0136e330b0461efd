"""What plugins offer: factories and commands, each under a name that is unique among its kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

from sigma9_core.commands import BUILT_IN, CommandSpec
from sigma9_core.contracts import CommandHandler, Factory, NoConfig, PluginKind
from sigma9_core.entities import EntitySpec
from sigma9_core.errors import PluginError
from sigma9_core.models import Frozen
from sigma9_core.payload import ENVELOPE

REGISTER_HOOKS: Final[Mapping[str, PluginKind]] = {
    "register_scanners": "scanner",
    "register_risk_rules": "risk",
    "register_sizers": "sizer",
    "register_brokers": "broker",
    "register_feeds": "feed",
    "register_notifiers": "notifier",
    "register_services": "service",
    "register_commands": "command",
    "register_entities": "entity",
}
"""The kind that each registering hook offers."""

BUILT_IN_PACKAGES: Final = ("sigma9_plugins", "sigma9_integrations")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_COMMAND_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(slots=True)
class Plugin:
    """One plugin: where it comes from, what it offers, and why it is quarantined, where it is."""

    name: str
    origin: str
    """The distribution and module, or the file, in words for a person."""
    module: str
    """The module's dotted name."""
    version: str | None = None
    loaded: object | None = None
    """The module or object with the hooks; None where it could not be imported."""
    registrations: list[Registration] = field(default_factory=list)
    commands: list[PluginCommand] = field(default_factory=list)
    entities: list[EntitySpec] = field(default_factory=list)
    error: str | None = None
    """Why it is quarantined, in one sentence."""
    offered: list[tuple[PluginKind, str]] = field(default_factory=list)
    """What it had registered by the time it was quarantined, kept to explain what is missing."""

    @property
    def built_in(self) -> bool:
        """Tell whether it is part of Sigma9's own packages."""
        return self.module.partition(".")[0] in BUILT_IN_PACKAGES

    def quarantine(self, error: str) -> None:
        """Roll back what it registered, and say why."""
        self.error = error
        self.offered = [(entry.kind, entry.name) for entry in self.registrations]
        self.offered += [("command", command.spec.name) for command in self.commands]
        self.offered += [("entity", entity.object) for entity in self.entities]
        self.registrations.clear()
        self.commands.clear()
        self.entities.clear()


@dataclass(frozen=True, slots=True)
class Registration:
    """A factory under a name, with the model of its settings."""

    kind: PluginKind
    name: str
    factory: Factory
    config: type[Frozen]
    plugin: Plugin


@dataclass(frozen=True, slots=True)
class PluginCommand:
    """A command that a plugin adds, with its handler."""

    spec: CommandSpec
    handler: CommandHandler
    plugin: Plugin


class Registrar:
    """The callback that a registering hook of one plugin gets; it works during that call only."""

    def __init__(self, plugin: Plugin, kind: PluginKind) -> None:
        self._plugin = plugin
        self._kind = kind
        self._open = True

    @property
    def offer(self) -> Callable[..., None]:
        """Give the callback of this kind of hook."""
        if self._kind == "command":
            return self.command
        return self.entity if self._kind == "entity" else self.factory

    def close(self) -> None:
        """Refuse whatever comes later: everything is registered at the start, once."""
        self._open = False

    def factory(self, name: str, factory: Factory, config: type[Frozen] = NoConfig) -> None:
        """Offer a factory (the `register` of most hooks)."""
        self._check_open(name)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(f"{name!r} is no name of a {self._kind}: use letters, digits, '.', '_' and '-'")
        if not callable(factory):
            raise PluginError(f"the factory of the {self._kind} '{name}' can't be called")
        if not (isinstance(config, type) and issubclass(config, BaseModel)):
            raise PluginError(f"the config of the {self._kind} '{name}' is not a pydantic model")
        self._plugin.registrations.append(Registration(self._kind, name, factory, config, self._plugin))

    def command(self, spec: CommandSpec, handler: CommandHandler) -> None:
        """Offer a command (the `register` of register_commands)."""
        if not isinstance(spec, CommandSpec):
            raise PluginError(f"a command is registered by a CommandSpec, not by {type(spec).__name__}")
        self._check_open(spec.name)
        check_spec(spec)
        if not callable(handler):
            raise PluginError(f"the handler of the command '{spec.name}' can't be called")
        self._plugin.commands.append(PluginCommand(spec, handler, self._plugin))

    def entity(self, spec: EntitySpec) -> None:
        """Offer an entity (the `register` of register_entities)."""
        if not isinstance(spec, EntitySpec):
            raise PluginError(f"an entity is registered by an EntitySpec, not by {type(spec).__name__}")
        self._check_open(spec.object)
        self._plugin.entities.append(spec)

    def _check_open(self, name: object) -> None:
        if not self._open:
            raise PluginError(f"'{name}' is registered too late: call register inside the hook")


def check_spec(spec: CommandSpec) -> None:
    """Refuse a command that no surface could carry."""
    if not _COMMAND_NAME.fullmatch(spec.name):
        raise PluginError(f"{spec.name!r} is no name of a command: use small letters, digits and '_'")
    if not (isinstance(spec.args, type) and issubclass(spec.args, BaseModel)):
        raise PluginError(f"the arguments of the command '{spec.name}' are not a pydantic model")
    taken = ENVELOPE & set(spec.args.model_fields)
    if taken:
        raise PluginError(
            f"the command '{spec.name}' can't have an argument '{min(taken)}': every payload has that key"
        )
    if spec.word is not None and spec.word not in spec.args.model_fields:
        raise PluginError(f"the command '{spec.name}' has no argument '{spec.word}' for a plain word to fill")


class Registry:
    """Everything that healthy plugins offer; two of one name within a kind refuse the start."""

    def __init__(self) -> None:
        self._entries: dict[tuple[PluginKind, str], Registration] = {}
        self._commands: dict[str, PluginCommand] = {}
        self._entities: dict[str, tuple[EntitySpec, Plugin]] = {}

    def add(self, plugin: Plugin) -> None:
        """Take what a plugin registered; raise PluginError naming both where a name is taken."""
        for entry in plugin.registrations:
            other = self._entries.get((entry.kind, entry.name))
            if other is not None:
                raise _doubled(f"{entry.kind} '{entry.name}'", other.plugin, plugin)
            self._entries[entry.kind, entry.name] = entry
        for command in plugin.commands:
            name = command.spec.name
            if name in BUILT_IN:
                raise PluginError(
                    f"the command '{name}' is built in, and {plugin.origin} registers it again: "
                    f"rename it there, or name '{plugin.name}' in plugins.disabled"
                )
            known = self._commands.get(name)
            if known is not None:
                raise _doubled(f"command '{name}'", known.plugin, plugin)
            self._commands[name] = command
        for spec in plugin.entities:
            taken = self._entities.get(spec.object)
            if taken is not None:
                raise _doubled(f"entity '{spec.object}'", taken[1], plugin)
            self._entities[spec.object] = (spec, plugin)

    def get(self, kind: PluginKind, name: str) -> Registration | None:
        """Find a registration."""
        return self._entries.get((kind, name))

    def entities(self) -> tuple[EntitySpec, ...]:
        """Give every entity, the built-in ones first."""
        found = sorted(self._entities.values(), key=lambda each: not each[1].built_in)
        return tuple(spec for spec, _ in found)

    def of_kind(self, kind: PluginKind) -> Mapping[str, Registration]:
        """Give the registrations of a kind, by name."""
        return {name: entry for (of, name), entry in self._entries.items() if of == kind}

    def commands(self) -> Mapping[str, PluginCommand]:
        """Give the commands that plugins add, by name."""
        return dict(self._commands)

    def __iter__(self) -> Iterator[Registration]:
        """Go through all registrations."""
        return iter(self._entries.values())


def _doubled(what: str, first: Plugin, second: Plugin) -> PluginError:
    if first is second:
        return PluginError(f"the {what} is registered twice by {first.origin}: remove one of the two")
    return PluginError(
        f"the {what} is registered by two plugins, '{first.name}' ({first.origin}) and '{second.name}' "
        f"({second.origin}): remove one, or name it in plugins.disabled"
    )

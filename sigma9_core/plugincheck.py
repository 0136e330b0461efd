"""Whether the plugins that the settings name are there, and whether their settings fit: every fault at once.

A file that has faults of its own is checked on: what could be read of it names plugins, too, and a person wants to
mend everything in one go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sigma9_core.config import DEFAULT_RISK, PluginSettings, Settings
from sigma9_core.configfile import Loaded, Places, Survey, survey_settings
from sigma9_core.configsense import is_plugin_path
from sigma9_core.contracts import PluginKind
from sigma9_core.errors import ConfigError, Fault, PluginError
from sigma9_core.plugins import PluginHost

KINDS: Final[tuple[PluginKind, ...]] = ("scanner", "risk", "sizer", "broker", "feed", "notifier", "service")
"""The kinds that have settings."""
UNSURE: Final = " (or it lies in plugins.paths, which has a fault)"
"""Said of what is missing where not every folder with plugins is known."""

_PLACE: Final = re.compile(r"(?P<variable>the variable )|(?P<option>the option )|.*:(?P<line>\d+)", re.DOTALL)

Named = tuple[PluginKind, str, dict[str, Any] | None, str]
"""A plugin that the settings name: kind, name, its settings, and where the entry stands; None: it has no entry."""


def read_checked(
    path: Path | None = None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Loaded:
    """Read the server's settings; where they have faults, raise ConfigError with these and the plugins' in one.

    Where they have none the plugins are not looked at: whoever loads them next calls `check_plugins`.
    """
    survey = survey_settings(path, overrides, environ)
    if survey.faults or survey.settings is None:
        raise ConfigError(every_fault(survey))
    return Loaded(survey.settings, survey.places)


def every_fault(survey: Survey) -> list[Fault]:
    """List the faults of the file and of the plugins that it names, by line; plugins are loaded for it."""
    if survey.settings is None:
        return list(survey.faults)
    settings, places = _readable(survey.settings, survey.places), survey.places
    given = places.refused("broker")
    if isinstance(given, str):
        settings = settings.model_copy(update={"broker": given})
    found = _faults(PluginHost(settings.plugins, locate=places), settings, places)
    # A broker that is not there goes with no feed: that it is not there is what a person needs to hear.
    misspelt = [fault for fault in found if fault.path == "broker" and given is not None]
    found = [fault for fault in found if not _follows(fault, places)] + misspelt
    own = [fault for fault in survey.faults if not (misspelt and fault.path == "broker")]
    if places.is_faulty("plugins") or places.is_partial("plugins.paths"):
        found = [_unsure(fault) for fault in found]
    return in_order([*own, *found])


def check_plugins(host: PluginHost, settings: Settings, locate: Callable[[str], str]) -> None:
    """Load the plugins; raise ConfigError with everything that is wrong with them and their settings, by line."""
    faults = _faults(host, settings, locate)
    if faults:
        raise ConfigError(in_order(faults))


def faults_of(host: PluginHost, settings: Settings, locate: Callable[[str], str]) -> list[Fault]:
    """List what is wrong, in the order of the configuration; the host has loaded."""
    faults: list[Fault] = []
    for kind, name, config, path in _wanted(host, settings):
        try:
            host.validate(kind, name, config, path=f"{path}.config" if config is not None else "")
        except ConfigError as error:
            faults += error.faults
        except PluginError as error:
            faults.append(_missing(name, path if config is None else f"{path}.plugin", error, settings, locate))
    for kind, name in _unused(host, settings):
        try:
            host.validate(kind, name)
        except ConfigError as error:  # what is missing there may come from whatever uses it, such as a replay
            faults += [fault for fault in error.faults if fault.message != "is required"]
    return [_concealed(fault, locate) for fault in faults]


def in_order(faults: Iterable[Fault]) -> list[Fault]:
    """Sort faults: the file's by line, then those of variables, then those of options; leave out doubles."""
    return sorted(dict.fromkeys(faults), key=_rank)


def missing_rules(settings: Settings) -> list[str]:
    """Name the built-in risk rules that a `risk` section of one's own has left out."""
    listed = {entry.plugin for entry in settings.risk}
    return [entry.plugin for entry in DEFAULT_RISK if entry.plugin not in listed]


def _faults(host: PluginHost, settings: Settings, locate: Callable[[str], str]) -> list[Fault]:
    try:
        host.load()
    except PluginError as error:  # two of one name: which of them is meant is not known
        return [Fault(locate("plugins"), "plugins", str(error))]
    except ConfigError as error:  # the last thing that loading looks at, so that the rest can be checked
        return [*error.faults, *faults_of(host, settings, locate)]
    return faults_of(host, settings, locate)


def _wanted(host: PluginHost, settings: Settings) -> Iterator[Named]:
    yield "broker", settings.broker, None, "broker"
    yield "feed", settings.feed, None, "feed"
    yield "sizer", settings.sizer.plugin, settings.sizer.config, "sizer"
    lists: tuple[tuple[PluginKind, str, Any], ...] = (
        ("scanner", "scanners", settings.scanners),
        ("risk", "risk", settings.risk),
        ("notifier", "notifiers", settings.notifiers),
    )
    for kind, section, instances in lists:
        for index, one in enumerate(instances):
            yield kind, one.plugin, one.config, f"{section}.{index}"
    for name in host.factories("service"):  # every service that is installed runs
        yield "service", name, None, f"plugins.settings.{name}"


def _unused(host: PluginHost, settings: Settings) -> Iterator[tuple[PluginKind, str]]:
    """Give the plugins that have settings and are not in use: those settings are checked as well."""
    used = {name for _, name, _, _ in _wanted(host, settings)}
    for name in settings.plugins.settings:
        kinds = [kind for kind in KINDS if host.factories(kind).get(name) is not None]
        if name not in used and len(kinds) == 1:
            yield kinds[0], name


def _missing(name: str, path: str, error: PluginError, settings: Settings, locate: Callable[[str], str]) -> Fault:
    """Say that a plugin is not there: where it is named, or where it is switched off, if that is why."""
    if name in settings.plugins.disabled and locate(path) == locate(""):
        path = f"plugins.disabled.{settings.plugins.disabled.index(name)}"
    return Fault(locate(path), path, str(error))


def _concealed(fault: Fault, locate: Callable[[str], str]) -> Fault:
    return locate.conceal(fault) if isinstance(locate, Places) else fault


def _rank(fault: Fault) -> tuple[int, int]:
    place = _PLACE.fullmatch(fault.where) or _PLACE.match(fault.where)
    if place is None:
        return 0, 0
    if place["line"]:
        return 0, int(place["line"])
    return (1, 0) if place["variable"] else (2, 0)


# --- a file with faults ---------------------------------------------------------------------------------------


def _readable(settings: Settings, places: Places) -> Settings:
    """Leave out of `plugins` what could not be read or is not there, so that the rest can be loaded."""
    plugins = settings.plugins
    kept = PluginSettings(
        paths=tuple(path for path in plugins.paths if is_plugin_path(path)),
        disabled=tuple(
            name
            for index, name in enumerate(plugins.disabled)
            if not places.is_faulty(f"plugins.disabled.{index}")
        ),
        settings=plugins.settings,
    )
    return settings.model_copy(update={"plugins": kept})


def _follows(fault: Fault, places: Places) -> bool:
    """Tell whether a fault only follows from one that the file's own check has found at the same place."""
    if places.is_faulty(fault.path):
        return True
    # A sentence about the whole of somebody's settings says little while part of them is missing.
    return fault.path.endswith(".config") and places.is_partial(fault.path)


def _unsure(fault: Fault) -> Fault:
    missing = fault.message.startswith(("there is no ", "no plugin has this name"))
    return replace(fault, message=fault.message + UNSURE) if missing else fault

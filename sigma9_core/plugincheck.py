"""Whether the plugins that the settings name are there, and whether their settings fit: every fault at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sigma9_core.config import DEFAULT_RISK, Settings
from sigma9_core.contracts import PluginKind
from sigma9_core.errors import ConfigError, Fault, PluginError
from sigma9_core.plugins import PluginHost


def faults_of(host: PluginHost, settings: Settings, locate: Callable[[str], str]) -> list[Fault]:
    """List what is wrong, in the order of the configuration; the host has loaded."""
    faults: list[Fault] = []
    for kind, name, config, path in _wanted(settings):
        try:
            host.validate(kind, name, config, path=f"{path}.config" if config is not None else "")
        except ConfigError as error:
            faults += error.faults
        except PluginError as error:
            faults.append(Fault(locate(path), path, str(error)))
    return faults


def missing_rules(settings: Settings) -> list[str]:
    """Name the built-in risk rules that a `risk` section of one's own has left out."""
    listed = {entry.plugin for entry in settings.risk}
    return [entry.plugin for entry in DEFAULT_RISK if entry.plugin not in listed]


def _wanted(settings: Settings) -> list[tuple[PluginKind, str, dict[str, Any] | None, str]]:
    """List the plugins that the settings name: kind, name, settings, and where they are named."""
    wanted: list[tuple[PluginKind, str, dict[str, Any] | None, str]] = [
        ("broker", settings.broker, None, "broker"),
        ("feed", settings.feed, None, "feed"),
        ("sizer", settings.sizer.plugin, settings.sizer.config, "sizer"),
    ]
    lists: tuple[tuple[PluginKind, str, Any], ...] = (
        ("scanner", "scanners", settings.scanners),
        ("risk", "risk", settings.risk),
        ("notifier", "notifiers", settings.notifiers),
    )
    for kind, section, instances in lists:
        wanted += [(kind, one.plugin, one.config, f"{section}.{index}") for index, one in enumerate(instances)]
    return wanted

"""The seismograph plugin: a daily accumulation scan, and the ignition trigger that acts on its list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigma9_core.hookspecs import hookimpl
from sigma9_plugins.scanners.seismograph.config import SeismographConfig
from sigma9_plugins.scanners.seismograph.scanner import Seismograph

if TYPE_CHECKING:
    from sigma9_core.contracts import PluginContext, Register

__all__ = ["Seismograph", "SeismographConfig", "register_scanners"]


@hookimpl
def register_scanners(register: Register) -> None:
    """Offer the seismograph."""
    register("seismograph", build, config=SeismographConfig)


def build(config: SeismographConfig, context: PluginContext) -> Seismograph:
    """Build a seismograph from its settings."""
    return Seismograph(config, context.name)

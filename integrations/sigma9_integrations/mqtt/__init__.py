"""MQTT: the server lives on the broker; state, events and commands are topics (contract 1, 2 and 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sigma9_core.contracts import PluginContext, Register
from sigma9_core.hookspecs import hookimpl
from sigma9_integrations.mqtt.service import MqttService

if TYPE_CHECKING:
    import argparse

__all__ = ["MqttService", "register_cli", "register_services"]


@hookimpl
def register_services(register: Register) -> None:
    """Offer the service `mqtt`."""

    def build(config: Any, context: PluginContext) -> MqttService:
        return MqttService(context)

    register("mqtt", build)


@hookimpl
def register_cli(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands `mqtt` and `discovery`."""
    from sigma9_integrations.cli import discovery, mqtt  # noqa: PLC0415 - the command line alone needs them

    mqtt.register(subparsers)
    discovery.register(subparsers)

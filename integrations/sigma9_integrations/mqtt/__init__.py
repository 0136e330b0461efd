"""MQTT: the server lives on the broker; state, events and commands are topics (contract 1, 2 and 4)."""

from __future__ import annotations

from typing import Any

from sigma9_core.contracts import PluginContext, Register
from sigma9_core.hookspecs import hookimpl
from sigma9_integrations.mqtt.service import MqttService

__all__ = ["MqttService", "register_services"]


@hookimpl
def register_services(register: Register) -> None:
    """Offer the service `mqtt`."""

    def build(config: Any, context: PluginContext) -> MqttService:
        return MqttService(context)

    register("mqtt", build)

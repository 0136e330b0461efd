"""The web integration: REST, WebSocket, their descriptions, metrics and a small dashboard (contract 5 and 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigma9_core.hookspecs import hookimpl
from sigma9_integrations.web.service import WebService

if TYPE_CHECKING:
    from sigma9_core.contracts import NoConfig, PluginContext, Register


def build(config: NoConfig, context: PluginContext) -> WebService:
    """Build the service; it learns its settings from the server when it starts."""
    return WebService()


@hookimpl
def register_services(register: Register) -> None:
    """Offer the service `web`."""
    register("web", build)

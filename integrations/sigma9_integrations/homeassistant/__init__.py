"""Home Assistant: a node appears by itself, with every entity of the table and of the plugins (contract 7)."""

from __future__ import annotations

from sigma9_core.contracts import RegisterEntity
from sigma9_core.hookspecs import hookimpl
from sigma9_integrations.homeassistant.table import ENTITIES

__all__ = ["register_entities"]


@hookimpl
def register_entities(register: RegisterEntity) -> None:
    """Offer the entities of the contract."""
    for spec in ENTITIES:
        register(spec)

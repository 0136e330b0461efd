"""Every hook that a plugin can implement; all are called once, at the start, and none picks a winner.

A plugin is a module (or an object) with functions of these names, marked with `hookimpl`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import argparse

    from sigma9_core.contracts import Register, RegisterCommand, RegisterEntity, Server

PROJECT = "sigma9"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_scanners(register: Register) -> None:
    """Offer scanner strategies: `register("name", factory, config=Model)`."""


@hookspec
def register_risk_rules(register: Register) -> None:
    """Offer risk rules."""


@hookspec
def register_sizers(register: Register) -> None:
    """Offer sizers."""


@hookspec
def register_brokers(register: Register) -> None:
    """Offer brokers."""


@hookspec
def register_feeds(register: Register) -> None:
    """Offer feeds."""


@hookspec
def register_notifiers(register: Register) -> None:
    """Offer notifiers."""


@hookspec
def register_services(register: Register) -> None:
    """Offer services: they run beside the engine, on the outer loop."""


@hookspec
def register_commands(register: RegisterCommand) -> None:
    """Add commands to every surface."""


@hookspec
def register_entities(register: RegisterEntity) -> None:
    """Add entities to the node's device in Home Assistant: `register(EntitySpec(...))`."""


@hookspec
def register_cli(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add sub-commands to the `sigma9` command line."""


@hookspec
def engine_started(server: Server) -> None:
    """Learn that the engine has started."""


@hookspec
def engine_stopping(server: Server) -> None:
    """Learn that the engine is about to stop."""

"""Health and readiness from the status (contract 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sigma9_core.contracts import Server

FEED_READY = frozenset(("connected", "running", "up"))


def not_ready(server: Server) -> list[str]:
    """Name the parts that keep the node from trading; an empty list means that it is ready."""
    status = server.board.get("status")
    if status is None:
        return ["engine", "broker", "mqtt", "feed"]
    missing = []
    if _part(status, "kill_switch").get("state") == "ON":  # a narrower kill blocks its own scope alone
        missing.append("kill_switch")
    if status.get("engine") != "running":
        missing.append("engine")
    broker = _part(status, "broker")
    if any(broker.get(health) != "up" for health in ("socket", "link", "data")):
        missing.append("broker")
    if status.get("mqtt") not in ("connected", "disabled"):
        missing.append("mqtt")
    if _part(status, "feed").get("state") not in FEED_READY:
        missing.append("feed")
    return [*missing, *server.faults()]


def warnings(server: Server) -> list[str]:
    """Say what a person should look at, though the node is ready; anybody may read it, so it names no symbol."""
    held = len((server.board.get("status") or {}).get("held") or ())
    if not held:
        return []
    what = "1 symbol takes" if held == 1 else f"{held} symbols take"
    return [f"{what} no orders: what is held of it can't be explained; `sigma9 status` says more"]


def _part(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = status.get(name)
    return part if isinstance(part, Mapping) else {}

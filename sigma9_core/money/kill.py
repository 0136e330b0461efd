"""A kill: what it covers, why, how far it has come, and what it has done."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from sigma9_core.commands import Scope
from sigma9_core.models import OrderRequest
from sigma9_core.money.gate import Scope as GateScope
from sigma9_core.money.orders import Order

Phase = Literal["off", "gated", "cancelling", "flattening", "done", "failed"]
Key = GateScope
"""What a kill covers: None is everything, else ("strategy", name) or ("symbol", symbol)."""


def key_of(scope: Scope | None) -> Key:
    """Turn a command's scope into the key that gate and latch use."""
    if scope is None:
        return None
    if scope.strategy is not None:
        return ("strategy", scope.strategy)
    return ("symbol", str(scope.symbol))


def scope_body(key: Key) -> dict[str, str] | None:
    """Write a key as the contract's scope object."""
    return None if key is None else {key[0]: key[1]}


@dataclass(slots=True)
class Kill:
    """One kill that is in force: what it covers, why, and what it has done so far."""

    key: Key
    flatten: bool
    reason: str
    source: str
    at: datetime
    phase: Phase = "gated"
    told: Phase | None = None
    """The phase that others were told of last."""
    detail: str | None = None
    error: str | None = None
    latched: bool = False
    latch_error: str | None = None
    """Why a restart would not know of it."""
    cancelled: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Symbols of which the broker shows what our books do not explain."""
    closing: dict[str, str] = field(default_factory=dict)
    """The closing order of each symbol, by id."""
    asked: dict[str, datetime] = field(default_factory=dict)
    """When each cancel was last asked for (wall clock)."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why the newest cancel of a working order of ours came to nothing, by order id."""
    cancels_sent: asyncio.Event = field(default_factory=asyncio.Event)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    idle_rounds: int = 0
    drill: bool = False
    """Begun by a drill, and no real kill has joined it."""
    joins: int = 0
    """How often it was fired; a reset that was overtaken by another fire does not reset."""
    in_trail: bool = False
    """The trail tells that it was fired; that it is done stands after that."""
    ending: bool = False
    """A reset asks the work to end; it is never cut off in the middle of an order."""
    tries: dict[str, int] = field(default_factory=dict)
    """Closes that came to nothing, by symbol."""
    guarded: dict[str, int] = field(default_factory=dict)
    """At which of these tries a stop was put back."""
    not_before: dict[str, float] = field(default_factory=dict)
    """When the next close of a symbol may be sent (monotonic): the wait grows with the tries."""

    def covers(self, request: OrderRequest) -> bool:
        """Tell whether an order falls under this kill."""
        if self.key is None:
            return True
        kind, name = self.key
        return (request.strategy if kind == "strategy" else request.symbol) == name


def told_key(key: Key) -> str:
    """Name what a kill covers in a sentence."""
    return "everything" if key is None else f"{key[0]} {key[1]}"


def closes(order: Order) -> bool:
    """Tell whether an order is a kill's close; a stop that a kill has put back is none."""
    return order.request.intent == "kill" and not order.request.protective


__all__ = ["Key", "Kill", "Phase", "closes", "key_of", "scope_body", "told_key"]

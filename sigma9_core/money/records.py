"""What the journal keeps: one frozen record a kind, each appended once and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sigma9_core.events import EventData, EventType
from sigma9_core.models import Fill, OrderRequest, OrderSource, Verdict

CommandStage = Literal["received", "answered"]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A durable event; the journal gives it its number and its bytes."""

    kind: EventType
    data: EventData
    ts: datetime
    """Market time."""
    cause: str | None = None
    """What led to it: an order's id, a command's id, the name of a job."""


@dataclass(frozen=True, slots=True)
class IntentRecord:
    """What was decided on an order, written before anything is sent; a changed order gets another one."""

    order_id: str
    ts: datetime
    """Market time."""
    request: OrderRequest
    verdicts: tuple[Verdict, ...]
    approved: bool
    """False: the risk gate refused it, and nothing was sent."""
    cause: str | None = None
    snapshot: Mapping[str, Any] = field(default_factory=dict)
    """What the decision was made under, such as the digest of the configuration."""


@dataclass(frozen=True, slots=True)
class FillRecord:
    """An execution; the journal keeps each (exec_id, order_id) once."""

    fill: Fill
    strategy: str | None
    source: OrderSource
    recovered: bool = False
    """Learnt by reading back from the broker."""


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """A command's arrival, or its answer: the audit row, and the memory that holds back repeats."""

    stage: CommandStage
    command: str
    id: str | None
    digest: str
    """Of the arguments: the same id with another digest is a conflict."""
    source: str
    actor: str | None
    ts: datetime
    """Wall clock."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of a received command, the response of an answered one."""


@dataclass(frozen=True, slots=True)
class NoteRecord:
    """Anything else that must be found again: the kill's trail, day marks, reconciliations, trips."""

    kind: str
    ts: datetime
    """Market time."""
    body: Mapping[str, Any] = field(default_factory=dict)
    n: int = field(default=0, compare=False)
    """The number of its row, once it is in the journal."""


Record = EventRecord | IntentRecord | FillRecord | CommandRecord | NoteRecord

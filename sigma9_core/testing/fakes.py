"""Small stand-ins for tests; each is the least that its contract allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self

from sigma9_core.board import Board
from sigma9_core.bus import EventBus
from sigma9_core.clock import Clock, SteppedClock, wall_now
from sigma9_core.commands import BUILT_IN, Command, CommandSpec, Response, Right, allows
from sigma9_core.config import Settings
from sigma9_core.contracts import EventPage
from sigma9_core.entities import EntitySpec
from sigma9_core.errors import CommandError
from sigma9_core.events import Event, EventData, EventType, TradeEvent, encode
from sigma9_core.lanes import Lane


class FakeServer:
    """A `Server` without an engine: it records commands, answers them, and keeps its events in a list."""

    def __init__(self, settings: Settings | None = None, start: datetime | None = None) -> None:
        self.settings = settings or Settings()
        self.stepped = SteppedClock("simulated", start or wall_now())
        self.clock: Clock = self.stepped
        self.bus = EventBus(self.settings.node)
        self.board = Board()
        self.doors = Lane("doors")
        self.specs: Mapping[str, CommandSpec] = BUILT_IN
        self.entities: Sequence[EntitySpec] = ()
        self.commands: list[Command] = []
        self.kills: list[Command] = []
        self.banner: list[str] = []
        self.mqtt = "disconnected"
        self.url: str | None = None
        self.broken: list[str] = []
        self.journal: list[Event] = []
        self.tokens: dict[str, tuple[str, Right]] = {"secret-admin": ("admin", "admin")}
        self.answers: dict[str, Mapping[str, Any]] = {}
        self._begun: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Start the doors' lane and bind the bus to the running loop."""
        self.doors.start()
        self.bus.bind(asyncio.get_running_loop())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop the doors' lane."""
        self.doors.stop()

    def emit(self, kind: EventType, data: EventData, *, durable: bool) -> Event:
        """Dispatch an event as the engine would: numbered and kept where it is durable."""
        seq = len(self.journal) + 1 if durable else None
        ts = self.clock.now()
        event = Event(kind, seq, ts, data, encode(kind, data, seq=seq, ts=ts, node=self.settings.node))
        if durable:
            self.journal.append(event)
        self.bus.dispatch([event])
        return event

    async def dispatch(self, command: Command) -> Response:
        """Record a command and answer it; one beyond its sender's right is refused and not recorded."""
        spec = self.specs.get(command.name)
        if spec is not None and not allows(command.right, spec.right):
            error = CommandError("forbidden", f"{command.name} needs the right {spec.right}, not {command.right}")
            return Response.failed(command, error, ts=wall_now(), duration_ms=0.1)
        self.commands.append(command)
        result = self.answers.get(command.name, {})
        return Response(command.id, command.name, True, result, None, command.source, wall_now(), 0.1)

    def begin(self, command: Command, answered: Callable[[Response], None]) -> None:
        """Do as `dispatch` or `kill` does, in a task."""

        async def run() -> None:
            work = self.kill if command.name == "kill_switch" else self.dispatch
            answered(await work(command))

        task = asyncio.get_running_loop().create_task(run(), name=f"command[{command.name}]")
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    def faults(self) -> Sequence[str]:
        """Name what the test says is broken."""
        return self.broken

    async def kill(self, command: Command) -> Response:
        """Record a kill and answer it."""
        self.kills.append(command)
        result: dict[str, Any] = {"cancelled_orders": [], "closed_positions": [], "pending": []}
        return Response(command.id, command.name, True, result, None, command.source, wall_now(), 0.1)

    async def events(self, after: int, limit: int, types: frozenset[EventType] | None = None) -> EventPage:
        """Read kept events after a number."""
        found = [e for e in self.journal if (e.seq or 0) > after and (types is None or e.type in types)]
        more = found[limit - 1].seq if len(found) > limit else None
        return EventPage([e.raw for e in found[:limit]], more, "fake", 1, len(self.journal))

    async def find_events(
        self,
        limit: int,
        *,
        types: frozenset[EventType] | None = None,
        symbol: str | None = None,
        order_id: str | None = None,
        after: int | None = None,
        before: int | None = None,
    ) -> EventPage:
        """Read kept events of an order or a symbol, from either end."""
        found = [
            e
            for e in self.journal
            if (types is None or e.type in types)
            and (symbol is None or e.symbol == symbol)
            and (order_id is None or getattr(e.data, "order_id", None) == order_id)
            and (after is None or (e.seq or 0) > after)
            and (before is None or (e.seq or 0) < before)
        ]
        page = found[:limit] if after is not None else found[-limit:]
        more = len(found) > limit
        edge = (page[-1] if after is not None else page[0]).seq if more else None
        return EventPage([e.raw for e in page], edge, "fake", 1, len(self.journal))

    async def order(self, order_id: str) -> Mapping[str, Any] | None:
        """Read the newest trade event of an order."""
        for event in reversed(self.journal):
            if isinstance(event.data, TradeEvent) and event.data.order_id == order_id:
                body = event.data.model_dump(mode="json", exclude={"trade_id"})
                return {"status": body.pop("event"), **body, "foreign": False}
        return None

    async def trades(
        self, *, symbol: str | None, since: datetime | None, limit: int, cursor: str | None
    ) -> Mapping[str, Any]:
        """Read no fills."""
        return {"trades": [], "cursor": None}

    def right_of(self, token: str) -> tuple[str, Right] | None:
        """Tell a token's name and right."""
        return self.tokens.get(token)

    def report_mqtt(self, state: Literal["connected", "disconnected", "disabled"]) -> None:
        """Remember how the MQTT connection stands."""
        self.mqtt = state

    def serves_at(self, url: str) -> None:
        """Remember where REST is reached."""
        self.url = url

    def announce(self, line: str) -> None:
        """Keep a banner line."""
        self.banner.append(line)

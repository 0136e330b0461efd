"""One moment of a journal: all its rows as streams, in whatever order is asked for, beside a server that writes.

What is read is never held whole: a journal of a million events needs no more memory than one of a thousand. The
moment ends with the `with` of `History.snapshot`.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, Connection, Select, Table, func, select

from sigma9_core.clock import rfc3339
from sigma9_core.errors import Sigma9Error
from sigma9_core.events import EventType
from sigma9_core.money.adoption import ADOPTED
from sigma9_core.money.highwater import Mark
from sigma9_core.money.integrity import departure, head_of
from sigma9_core.money.tables import COMMANDS, EVENTS, FILLS, META, NOTES, NUMBERED, ORDERS, fault_of, unguarded

Row = Mapping[str, Any]

PAGE: Final = 1000
"""Rows that are fetched at once."""
TABLES: Final = {"events": EVENTS, "orders": ORDERS, "fills": FILLS, "commands": COMMANDS, "notes": NOTES}
"""What can be exported, by its name."""
LOOKED_UP: Final = 10_000
"""Order ids whose intents are remembered while references to them are followed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows of a table are wanted; what is None leaves nothing out."""

    types: frozenset[EventType] | None = None
    symbol: str | None = None
    order_id: str | None = None
    strategy: str | None = None
    source: str | None = None
    cause: str | None = None
    """What led to it: an order's id, a command's id, the name of a job."""
    kind: str | None = None
    """Of notes."""
    command: str | None = None
    actor: str | None = None
    """Of commands."""
    since: datetime | None = None
    until: datetime | None = None
    """Market times; the first is part of it, the second is not. Of commands: wall times."""
    after: int | None = None
    """The number after which it begins."""


class Refusal(Sigma9Error):
    """A table has no such column; the text names both."""

    exit_code = 2


class Snapshot:
    """What a node's journal holds at one moment; of one thread."""

    def __init__(self, connection: Connection, node: str) -> None:
        self.node = node
        self._connection = connection.execution_options(stream_results=True, yield_per=PAGE)
        self.head = head_of(connection, node)
        """The newest numbers: of the events, and of all other rows."""
        self.has_order: Callable[[str], bool] = lru_cache(LOOKED_UP)(self._has_order)
        """Tells whether an order has an intent."""

    def damage(self) -> str | None:
        """Let the database read its whole file; give the first thing that is wrong, None where it is sound."""
        return fault_of(self._connection)

    def unguarded(self) -> list[str]:
        """Give a sentence for each thing that should keep the tables append-only and does not."""
        return unguarded(self._connection)

    def departure(self, mark: Mark) -> str | None:
        """Say how the journal is not the one that a mark was made of; None where it is."""
        return departure(self._connection, self.node, mark, self.head)

    # --- in the order of their numbers ------------------------------------------------------------------------

    def meta(self) -> Iterator[Row]:
        """Give the journal's own facts."""
        return self._stream(self._mine(META).order_by(META.c.n))

    def events(self) -> Iterator[Row]:
        """Give the events."""
        return self._stream(self._mine(EVENTS).order_by(EVENTS.c.seq))

    def numbered(self) -> Iterator[tuple[int, str, Row]]:
        """Give all other rows, each with its number and its table: they share one count."""
        streams = [_named(self._stream(self._mine(table).order_by(table.c.n)), table.name) for table in NUMBERED]
        return heapq.merge(*streams, key=itemgetter(0, 1))

    def other_events(self) -> Iterator[Row]:
        """Give the events that tell of no order."""
        return self._stream(self._mine(EVENTS).where(EVENTS.c.order_id.is_(None)).order_by(EVENTS.c.seq))

    def intents(self) -> Iterator[Row]:
        """Give the intents, without what they asked for."""
        columns = (ORDERS.c.n, ORDERS.c.order_id, ORDERS.c.wall, ORDERS.c.approved)
        return self._stream(select(*columns).where(ORDERS.c.node == self.node).order_by(ORDERS.c.n))

    def fills(self) -> Iterator[Row]:
        """Give the fills."""
        return self._stream(self._mine(FILLS).order_by(FILLS.c.n))

    def commands(self) -> Iterator[Row]:
        """Give the rows of commands."""
        return self._stream(self._mine(COMMANDS).order_by(COMMANDS.c.n))

    def notes(self, *kinds: str) -> Iterator[Row]:
        """Give the notes of some kinds."""
        return self._stream(self._mine(NOTES).where(NOTES.c.kind.in_(kinds)).order_by(NOTES.c.n))

    # --- by order ---------------------------------------------------------------------------------------------

    def orders(self) -> Iterator[tuple[str, int, Row]]:
        """Give all that is there of each order, order by order: its intents (0), its events (1), its fills (2).

        Adoptions are fills of no order.
        """
        intents = self._mine(ORDERS).order_by(ORDERS.c.order_id, ORDERS.c.n)
        events = self._mine(EVENTS).where(EVENTS.c.order_id.is_not(None)).order_by(EVENTS.c.order_id, EVENTS.c.seq)
        fills = self._mine(FILLS).where(FILLS.c.order_id != ADOPTED).order_by(FILLS.c.order_id, FILLS.c.n)
        streams = [_of_orders(self._stream(query), kind) for kind, query in enumerate((intents, events, fills))]
        return heapq.merge(*streams, key=_by_order)

    def fill(self, exec_id: str, order_id: str) -> Row | None:
        """Find a fill."""
        query = self._mine(FILLS).where(FILLS.c.exec_id == exec_id, FILLS.c.order_id == order_id)
        return next(self._stream(query), None)

    def shared_executions(self) -> Iterator[str]:
        """Give the execution ids that stand more than once."""
        mine = select(FILLS.c.exec_id).where(FILLS.c.node == self.node)
        query = mine.group_by(FILLS.c.exec_id).having(func.count() > 1)
        return (row["exec_id"] for row in self._stream(query))

    def first_intent(self, order_id: str) -> int | None:
        """Give the row of an order's first intent, None where it has none."""
        query = select(func.min(ORDERS.c.n).label("n")).where(
            ORDERS.c.node == self.node, ORDERS.c.order_id == order_id
        )
        row = next(self._stream(query), None)
        return None if row is None else row["n"]

    # --- for lists and exports --------------------------------------------------------------------------------

    def columns(self, name: str) -> list[str]:
        """Name the columns of a table."""
        return [column.name for column in TABLES[name].c]

    def rows(self, name: str, wanted: Wanted, *, newest: int | None = None) -> Iterator[Row]:
        """Give the rows of a table that are wanted, oldest first; of many, only the `newest` so many.

        Raise Refusal where the table can't be asked so.
        """
        table = TABLES[name]
        number = table.c.seq if table is EVENTS else table.c.n
        query = self._mine(table).where(*_conditions(name, table, number, wanted))
        if newest is None:
            yield from (row for row in self._stream(query.order_by(number)) if _is_of(row, wanted.strategy))
            return
        found: list[Row] = []
        for row in self._stream(query.order_by(number.desc())):
            if len(found) == newest:
                break
            if _is_of(row, wanted.strategy):
                found.append(row)
        yield from reversed(found)

    # --- inside -----------------------------------------------------------------------------------------------

    def _mine(self, table: Table) -> Select[Any]:
        return select(table).where(table.c.node == self.node)

    def _stream(self, query: Select[Any]) -> Iterator[Row]:
        with self._connection.execute(query) as result:
            yield from cast("Iterable[Row]", result.mappings())

    def _has_order(self, order_id: str) -> bool:
        query = select(ORDERS.c.n).where(ORDERS.c.node == self.node, ORDERS.c.order_id == order_id).limit(1)
        return next(self._stream(query), None) is not None


def _named(rows: Iterator[Row], name: str) -> Iterator[tuple[int, str, Row]]:
    for row in rows:
        yield row["n"], name, row


def _of_orders(rows: Iterator[Row], kind: int) -> Iterator[tuple[str, int, Row]]:
    for row in rows:
        yield row["order_id"], kind, row


def _by_order(entry: tuple[str, int, Row]) -> tuple[str, int]:
    return entry[0], entry[1]


_NAMES: Final = {
    "types": ("type", "--type"),
    "symbol": ("symbol", "--symbol"),
    "order_id": ("order_id", "--order"),
    "source": ("source", "--source"),
    "cause": ("cause", "--cause"),
    "kind": ("kind", "--kind"),
    "command": ("command", "--command"),
    "actor": ("actor", "--actor"),
}


def _conditions(name: str, table: Table, number: ColumnElement[int], wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for field, (column, option) in _NAMES.items():
        value = getattr(wanted, field)
        if value is None:
            continue
        if column not in table.c:
            raise Refusal(f"{option}: the table {name} has no {column}; it has {', '.join(table.c.keys()[1:])}")
        conditions.append(table.c[column].in_(sorted(value)) if field == "types" else table.c[column] == value)
    if wanted.strategy is not None:
        if "strategy" in table.c:
            conditions.append(table.c.strategy == wanted.strategy)
        elif name in ("events", "orders"):  # in the text; what is found is looked at again
            text = table.c.body if name == "events" else table.c.request
            conditions.append(text.contains(f'"strategy":{json.dumps(wanted.strategy)}', autoescape=True))
        else:
            raise Refusal(f"--strategy: the table {name} has no strategy")
    if wanted.since is not None:
        conditions.append(table.c.ts >= rfc3339(wanted.since))
    if wanted.until is not None:
        conditions.append(table.c.ts < rfc3339(wanted.until))
    if wanted.after is not None:
        conditions.append(number > wanted.after)
    return conditions


def _is_of(row: Row, strategy: str | None) -> bool:
    if strategy is None or "strategy" in row:
        return True
    told = json.loads(row["body"])["data"] if "body" in row else json.loads(row["request"])
    return bool(told.get("strategy") == strategy)

"""Reading the journal: from any worker thread, each call on a connection of its own."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from functools import reduce
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    Table,
    and_,
    case,
    func,
    select,
    tuple_,
)
from sqlalchemy.exc import SQLAlchemyError

from sigma9_core.clock import rfc3339
from sigma9_core.contracts import EventPage
from sigma9_core.errors import CommandError, JournalError, StateError
from sigma9_core.events import EventType, TradeEvent
from sigma9_core.models import OrderStatus
from sigma9_core.money import rows
from sigma9_core.money.integrity import NOTE, doubts, nothing_of, unreadable, unreadable_row, value_of, verify
from sigma9_core.money.orders import ENDED, standing
from sigma9_core.money.records import CommandRecord, FillRecord, IntentRecord, NoteRecord
from sigma9_core.money.snapshot import Snapshot
from sigma9_core.money.tables import (
    COMMANDS,
    EVENTS,
    FILLS,
    NOTES,
    ORDERS,
    adapt,
    exists,
    file_of,
    is_current,
    mark_of,
    where,
)

T = TypeVar("T")

SPLIT: Final = "split"
"""The kind of note that a split is: symbol, market time, new and old shares."""
SOME: Final = 500
"""Ids that one query asks for."""
PAGE: Final = 1000
"""Rows that a long read takes at once, so that it never holds a snapshot open for long."""


def _newest(kinds: Collection[OrderStatus]) -> ColumnElement[int]:
    """Give the number of the newest event of some kinds in a group, 0 where there is none."""
    return func.max(case((EVENTS.c.event.in_(sorted(kinds)), EVENTS.c.seq), else_=0))


class History:
    """What a node's journal holds; every call is synchronous and thread-safe, and a failure is a JournalError."""

    def __init__(self, url: str, node: str) -> None:
        self.node = node
        self.where = where(url)
        """The file, or the address without its password."""
        self._url = url
        self._readers: Engine | None = None

    def open(self) -> None:
        """Begin to read, beside whoever writes; raise JournalError where there is no sound journal."""
        self.open_unchecked()
        try:
            with self._read() as connection:
                verify(connection, self.node, self.where, full=False)
                if value_of(connection, self.node, "journal_id") is None:
                    raise nothing_of(self.where, self.node)
        except JournalError:
            self.close()
            raise

    def open_unchecked(self) -> None:
        """Begin to read, also what is not sound, so that an audit can say what is wrong with it."""
        path = file_of(self._url)
        if path is not None and not path.is_file():
            raise JournalError(f"there is no journal at {path}: start the server once, or name another file")
        self._readers = adapt(self._url, writer=None)
        try:
            with self._read() as connection:
                if not exists(connection):
                    raise JournalError(
                        f"there is no journal at {self.where}: start the server once, or name another one"
                    )
                if not is_current(connection):
                    raise JournalError(
                        f"the journal {self.where} was written by an older Sigma9: start the server once, "
                        "which brings its tables up to date"
                    )
        except JournalError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connections."""
        if self._readers is not None:
            self._readers.dispose()
            self._readers = None

    def check(self) -> None:
        """Read the whole journal (seconds, where it is large); raise JournalError naming the first fault."""
        with self._read() as connection:
            verify(connection, self.node, self.where, full=True)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """See one moment of the journal for as long as the `with` lasts: whole tables, as streams."""
        with self._read() as connection:
            yield Snapshot(connection, self.node)

    def mark(self, folder: Path | None = None) -> Path | None:
        """Tell where the high-water mark lies: beside the file, else in the folder where there is one."""
        return mark_of(self._url, self.node, folder)

    # --- events ---------------------------------------------------------------------------------------------

    def events(self, after: int, limit: int, types: frozenset[EventType] | None = None) -> EventPage:
        """Give up to `limit` durable events after a number, oldest first; `after` past the head gives none."""
        mine = [EVENTS.c.node == self.node]
        with self._read() as connection:
            first, last = connection.execute(
                select(func.min(EVENTS.c.seq), func.max(EVENTS.c.seq)).where(*mine)
            ).one()
            wanted: list[ColumnElement[bool]] = [*mine, EVENTS.c.seq > after]
            if types is not None:
                wanted.append(EVENTS.c.type.in_(sorted(types)))
            found = connection.execute(
                select(EVENTS.c.seq, EVENTS.c.body).where(*wanted).order_by(EVENTS.c.seq).limit(limit + 1)
            ).all()
            journal_id = value_of(connection, self.node, "journal_id")
        more = found[limit - 1].seq if len(found) > limit else None
        return EventPage([row.body for row in found[:limit]], more, journal_id or "", first or 1, last or 0)

    def find_events(
        self,
        limit: int,
        *,
        types: frozenset[EventType] | None = None,
        symbol: str | None = None,
        order_id: str | None = None,
        after: int | None = None,
        before: int | None = None,
    ) -> EventPage:
        """Give events of an order or a symbol in order: the oldest after a number, else the newest before one.

        With neither number the newest of all. `next` is the `after`, or the `before`, of the next page.
        """
        mine = EVENTS.c.node == self.node
        wanted: list[ColumnElement[bool]] = [mine]
        if types is not None:
            wanted.append(EVENTS.c.type.in_(sorted(types)))
        if symbol is not None:
            wanted.append(EVENTS.c.symbol == symbol)
        if order_id is not None:
            wanted.append(EVENTS.c.order_id == order_id)
        if after is not None:
            wanted.append(EVENTS.c.seq > after)
        if before is not None:
            wanted.append(EVENTS.c.seq < before)
        order = EVENTS.c.seq if after is not None else EVENTS.c.seq.desc()
        with self._read() as connection:
            head = select(func.min(EVENTS.c.seq), func.max(EVENTS.c.seq)).where(mine)
            first, last = connection.execute(head).one()
            query = select(EVENTS.c.seq, EVENTS.c.body).where(*wanted).order_by(order).limit(limit + 1)
            found = connection.execute(query).all()
            journal_id = value_of(connection, self.node, "journal_id")
        more = found[limit - 1].seq if len(found) > limit else None
        page = [row.body for row in found[:limit]]
        if after is None:
            page.reverse()
        return EventPage(page, more, journal_id or "", first or 1, last or 0)

    def trades(
        self,
        *,
        symbol: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Give fills, newest first: `{"trades": [...], "cursor"}`; the cursor is null at the end (contract 5).

        A trade's `commission` is this fill's own, as its `last_quantity` is, so that both may be summed; one that
        was told later is in it. An execution that the exchange took back or corrected is no trade any more.
        `since` is a market time. Raise CommandError `invalid` for a cursor that this did not give.
        """
        wanted = [EVENTS.c.node == self.node, EVENTS.c.trade_id.is_not(None)]
        if cursor is not None:
            if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
                raise CommandError("invalid", "cursor: pass on the one of the last answer", {"field": "cursor"})
            wanted.append(EVENTS.c.seq < int(cursor))
        if symbol is not None:
            wanted.append(EVENTS.c.symbol == symbol)
        if since is not None:
            wanted.append(EVENTS.c.ts >= rfc3339(since))
        # The event tells the order's commission so far; the fill's own stands beside it.
        own = (FILLS.c.node == EVENTS.c.node, FILLS.c.exec_id == EVENTS.c.trade_id)
        query = (
            select(*(EVENTS.c[name] for name in ("seq", "ts", "body", "order_id", "trade_id")), FILLS.c.commission)
            .outerjoin(FILLS, and_(*own, FILLS.c.order_id == EVENTS.c.order_id))
            .order_by(EVENTS.c.seq.desc())
        )
        with self._read() as connection:
            busts = connection.execute(
                select(NOTES.c.body).where(NOTES.c.node == self.node, NOTES.c.kind == "bust")
            ).scalars()
            whole = (bust for bust in map(json.loads, busts) if "quantity" not in bust)
            if busted := [(bust["exec_id"], bust["order_id"]) for bust in whole]:
                wanted.append(tuple_(EVENTS.c.trade_id, EVENTS.c.order_id).not_in(busted))
            found = connection.execute(query.where(*wanted).limit(limit + 1)).all()
            late = self._late_commissions(connection, {row.order_id for row in found})
        trades = [
            {
                **json.loads(row.body)["data"],
                "commission": None if row.commission is None else float(late.get(row.trade_id, row.commission)),
                "seq": row.seq,
                "ts": row.ts,
            }
            for row in found[:limit]
        ]
        return {"trades": trades, "cursor": str(found[limit - 1].seq) if len(found) > limit else None}

    def trade_events(self, since: datetime) -> list[tuple[TradeEvent, datetime]]:
        """Give the trade events at or after a market time with their times, oldest first.

        It reads backwards from the newest and ends at the first whole page that is older: market times of events
        are in order but for those of a feed that was set back.
        """
        newest = [EVENTS.c.node == self.node, EVENTS.c.type == "trade_event"]
        first = rfc3339(since)
        found: list[tuple[TradeEvent, datetime]] = []
        before: int | None = None
        while True:
            wanted = newest if before is None else [*newest, EVENTS.c.seq < before]
            query = select(EVENTS.c.seq, EVENTS.c.ts, EVENTS.c.body).where(*wanted).order_by(EVENTS.c.seq.desc())
            with self._read() as connection:
                page = connection.execute(query.limit(PAGE)).all()
            recent = [row for row in page if row.ts >= first]
            found += [(self._trade(row.seq, row.body), datetime.fromisoformat(row.ts)) for row in recent]
            if len(page) < PAGE or not recent:
                found.reverse()
                return found
            before = page[-1].seq

    def last_ts(self) -> datetime | None:
        """Give the market time of the newest durable event, None in a new journal."""
        query = select(EVENTS.c.ts).where(EVENTS.c.node == self.node).order_by(EVENTS.c.seq.desc()).limit(1)
        with self._read() as connection:
            found = connection.execute(query).scalar()
        return None if found is None else datetime.fromisoformat(found)

    # --- orders and fills -----------------------------------------------------------------------------------

    def order(self, order_id: str) -> TradeEvent | None:
        """Give the newest event of an order, None for an order that is not ours."""
        query = (
            select(EVENTS.c.seq, EVENTS.c.body)
            .where(EVENTS.c.node == self.node, EVENTS.c.order_id == order_id)
            .order_by(EVENTS.c.seq.desc())
            .limit(1)
        )
        with self._read() as connection:
            row = connection.execute(query).first()
        return None if row is None else self._trade(row.seq, row.body)

    def commission(self, order_id: str) -> Decimal | None:
        """Give what an order has cost so far: what was told after its fills is in it; None without a fill.

        Its newest event may be older than that.
        """
        mine = (EVENTS.c.node == self.node, EVENTS.c.order_id == order_id, EVENTS.c.trade_id.is_not(None))
        own = (FILLS.c.node == EVENTS.c.node, FILLS.c.exec_id == EVENTS.c.trade_id)
        query = (
            select(EVENTS.c.trade_id, FILLS.c.commission)
            .join(FILLS, and_(*own, FILLS.c.order_id == EVENTS.c.order_id))
            .where(*mine)
        )
        with self._read() as connection:
            fees = {row.trade_id: Decimal(row.commission) for row in connection.execute(query)}
            late = self._late_commissions(connection, {order_id})
            wrong = rows.corrections(self._notes_of(connection, "bust", {order_id}))
        gone = {name for names in wrong.values() for name in names}
        left = [late.get(name, fee) for name, fee in fees.items() if name not in gone]
        return sum(left, Decimal(0)) if left else None

    def _notes_of(self, connection: Connection, kind: str, order_ids: Collection[str]) -> Iterator[dict[str, Any]]:
        mine = (NOTES.c.node == self.node, NOTES.c.kind == kind, NOTES.c.cause.in_(order_ids))
        for body in connection.execute(select(NOTES.c.body).where(*mine).order_by(NOTES.c.n)).scalars():
            yield json.loads(body)

    def _late_commissions(self, connection: Connection, order_ids: Collection[str]) -> dict[str, Decimal]:
        """Give the commissions that were told after their fills, by execution id; the newest of each counts."""
        told = self._notes_of(connection, "commission", order_ids)
        return {str(body["exec_id"]): Decimal(body["amount"]) for body in told}

    def known_orders(self, order_ids: Sequence[str]) -> set[str]:
        """Give those of these orders that are ours."""
        found: set[str] = set()
        with self._read() as connection:
            for start in range(0, len(order_ids), SOME):
                some = order_ids[start : start + SOME]
                query = select(EVENTS.c.order_id).where(EVENTS.c.node == self.node, EVENTS.c.order_id.in_(some))
                found.update(connection.execute(query.distinct()).scalars())
        return found

    def status(self, order_id: str) -> OrderStatus | None:
        """Tell where an order stands, which its newest event alone may not say; None for one that is not ours."""
        mine = (EVENTS.c.node == self.node, EVENTS.c.order_id == order_id)
        query = select(EVENTS.c.seq, EVENTS.c.event).where(*mine).order_by(EVENTS.c.seq)
        with self._read() as connection:
            events = connection.execute(query).all()
        try:
            return reduce(standing, (OrderStatus(row.event) for row in events)) if events else None
        except ValueError as error:
            raise unreadable_row(self.where, EVENTS.name, events[-1].seq, error) from error

    def last_order_events(self) -> dict[str, TradeEvent]:
        """Give the newest event of each order that has not ended, by order id, oldest order first.

        One may be `busted`: a fill of an order that works on was taken back. What is `accepted` after its end has
        not ended: the broker has turned out to work it.
        """
        newest = (
            select(func.max(EVENTS.c.seq).label("seq"))
            .where(EVENTS.c.node == self.node, EVENTS.c.order_id.is_not(None))
            .group_by(EVENTS.c.order_id)
            .having(_newest(ENDED - {OrderStatus.BUSTED}) <= _newest({OrderStatus.ACCEPTED}))
            .subquery()
        )
        query = (
            select(EVENTS.c.seq, EVENTS.c.order_id, EVENTS.c.body)
            .join(newest, EVENTS.c.seq == newest.c.seq)
            .where(EVENTS.c.node == self.node)
            .order_by(EVENTS.c.order_id)
        )
        with self._read() as connection:
            return {row.order_id: self._trade(row.seq, row.body) for row in connection.execute(query)}

    def intent(self, order_id: str) -> IntentRecord | None:
        """Give the newest approved intent of an order, else the newest refused one, None where there is none."""
        query = (
            select(ORDERS)
            .where(ORDERS.c.node == self.node, ORDERS.c.order_id == order_id)
            .order_by(ORDERS.c.approved.desc(), ORDERS.c.n.desc())
            .limit(1)
        )
        with self._read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else self._as(rows.intent, ORDERS, row)

    def intents(self, since: datetime | None = None) -> Iterator[IntentRecord]:
        """Give the intents decided at or after a market time, oldest first."""
        query = select(ORDERS).where(ORDERS.c.node == self.node)
        if since is not None:
            query = query.where(ORDERS.c.ts >= rfc3339(since))
        return (self._as(rows.intent, ORDERS, row) for row in self._pages(query, ORDERS.c.n))

    def fills(self) -> Iterator[FillRecord]:
        """Give every fill, oldest first, in the order in which they were committed."""
        return (record for _, record in self._fills())

    def books(self) -> Iterator[FillRecord | NoteRecord]:
        """Give every fill and every split (a note), oldest first, in the order in which they were committed.

        A fill has the commission that was told after it, where one was, and names those that it corrects.
        """
        query = select(NOTES).where(NOTES.c.node == self.node, NOTES.c.kind == SPLIT)
        splits = ((row["n"], self._as(rows.note, NOTES, row)) for row in self._pages(query, NOTES.c.n))
        told = {
            self.told(note, str, "exec_id"): self.told(note, rows.amount, "amount")
            for note in self.every("commission")
        }
        wrong = rows.corrections(note.body for note in self.every("bust"))
        fills: Iterator[tuple[int, FillRecord | NoteRecord]] = (
            (n, rows.with_commission(rows.with_corrections(record, wrong), told))
            for n, record in self._fills(counted=True)
        )
        return (record for _, record in heapq.merge(fills, splits, key=itemgetter(0)))

    def newest(self, kinds: Collection[str]) -> int:
        """Give the number of the newest row that is a fill or a note of one of these kinds; 0 without one."""
        fills = select(func.max(FILLS.c.n)).where(FILLS.c.node == self.node)
        notes = select(func.max(NOTES.c.n)).where(NOTES.c.node == self.node, NOTES.c.kind.in_(kinds))
        with self._read() as connection:
            return max(connection.execute(query).scalar() or 0 for query in (fills, notes))

    def _fills(self, *, counted: bool = False) -> Iterator[tuple[int, FillRecord]]:
        columns = [FILLS.c.n, *(FILLS.c[name] for name in rows.FILL_COLUMNS)]
        query = select(*columns).where(FILLS.c.node == self.node).order_by(FILLS.c.n).limit(PAGE)
        after = -1
        while True:
            with self._read() as connection:
                page = connection.execute(query.where(FILLS.c.n > after)).all()
            for row in page:
                try:
                    record = rows.fill_of(row[1:])
                    if counted:
                        rows.countable(record)
                except rows.UNREADABLE as error:
                    raise unreadable_row(self.where, FILLS.name, row[0], error) from error
                yield row[0], record
            if len(page) < PAGE:
                return
            after = page[-1][0]

    # --- commands and notes ---------------------------------------------------------------------------------

    def command(self, command: str, id: str, since: datetime) -> list[CommandRecord]:  # noqa: A002 - the contract's name
        """Give what is known of a (command, id) since a wall time, newest first."""
        query = (
            select(COMMANDS)
            .where(
                COMMANDS.c.node == self.node,
                COMMANDS.c.command == command,
                COMMANDS.c.id == id,
                COMMANDS.c.ts >= rfc3339(since),
            )
            .order_by(COMMANDS.c.n.desc())
            .limit(PAGE)
        )
        with self._read() as connection:
            return [self._as(rows.command, COMMANDS, row) for row in connection.execute(query).mappings()]

    def commands_known(self, limit: int) -> list[tuple[str, str, datetime]]:
        """Give command, id and time of the last `limit` rows of commands that have an id, newest first."""
        query = (
            select(COMMANDS.c.command, COMMANDS.c.id, COMMANDS.c.ts)
            .where(COMMANDS.c.node == self.node, COMMANDS.c.id.is_not(None))
            .order_by(COMMANDS.c.n.desc())
            .limit(limit)
        )
        with self._read() as connection:
            return [(row.command, row.id, datetime.fromisoformat(row.ts)) for row in connection.execute(query)]

    def notes(self, kind: str, limit: int) -> list[NoteRecord]:
        """Give the last `limit` notes of a kind, newest first."""
        query = (
            select(NOTES)
            .where(NOTES.c.node == self.node, NOTES.c.kind == kind)
            .order_by(NOTES.c.n.desc())
            .limit(limit)
        )
        with self._read() as connection:
            return [self._as(rows.note, NOTES, row) for row in connection.execute(query).mappings()]

    def every(self, kind: str) -> Iterator[NoteRecord]:
        """Give all notes of a kind, oldest first."""
        query = select(NOTES).where(NOTES.c.node == self.node, NOTES.c.kind == kind)
        return (self._as(rows.note, NOTES, row) for row in self._pages(query, NOTES.c.n))

    def newest_by_symbol(self, kind: str) -> dict[str, NoteRecord | JournalError]:
        """Give the newest note of a kind of each symbol, or what is wrong with it.

        Rows that are older than their column of the symbol say it in their body alone.
        """
        mine = (NOTES.c.node == self.node, NOTES.c.kind == kind)
        newest = select(func.max(NOTES.c.n)).where(*mine, NOTES.c.symbol.is_not(None)).group_by(NOTES.c.symbol)
        query = select(NOTES).where(NOTES.c.node == self.node, NOTES.c.n.in_(newest))
        with self._read() as connection:
            named = connection.execute(query).mappings().all()
        found: dict[str, NoteRecord | JournalError] = {}
        for row in self._pages(select(NOTES).where(*mine, NOTES.c.symbol.is_(None)), NOTES.c.n):
            note = self._as(rows.note, NOTES, row)
            found[str(note.body.get("symbol"))] = note
        for row in named:
            try:
                found[row["symbol"]] = self._as(rows.note, NOTES, row)
            except JournalError as error:
                found[row["symbol"]] = error
        return found

    def told(self, note: NoteRecord, read: Callable[[Any], T], name: str | None = None) -> T:
        """Read a note's body, or what it has under a name; JournalError names a note that can't be read."""
        try:
            return read(note.body if name is None else note.body[name])
        except (*rows.UNREADABLE, StateError) as error:
            raise unreadable_row(self.where, NOTES.name, note.n, error) from error

    def doubts(self) -> list[str]:
        """Give what has been found of the journal itself at starts, and no person has acknowledged."""
        return doubts((note.n, note.body) for note in self.every(NOTE))

    def _trade(self, seq: int, body: str) -> TradeEvent:
        try:
            return rows.trade_event(body)
        except rows.UNREADABLE as error:
            raise unreadable_row(self.where, EVENTS.name, seq, error) from error

    def _as(self, read: Callable[[RowMapping], T], table: Table, row: RowMapping) -> T:
        """Read a row; one that is not as it was written is a JournalError that names it."""
        try:
            return read(row)
        except rows.UNREADABLE as error:
            raise unreadable_row(self.where, table.name, row["n"], error) from error

    # --- connections ----------------------------------------------------------------------------------------

    def _read(self) -> _Reading:
        if self._readers is None:
            raise JournalError(f"the journal {self.where} is not open")
        return _Reading(self._readers, self.where)

    def _pages(self, query: Select[Any], number: ColumnElement[int]) -> Iterator[RowMapping]:
        after = -1
        while True:
            with self._read() as connection:
                page = (
                    connection.execute(query.where(number > after).order_by(number).limit(PAGE)).mappings().all()
                )
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1]["n"]


class _Reading:
    """One connection that sees one moment; what fails in it is a JournalError that names the journal."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name

    def __enter__(self) -> Connection:
        try:
            self._connection = self._engine.connect()
        except SQLAlchemyError as error:
            raise unreadable(self._name, error) from error
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._connection.close()
        if isinstance(error, SQLAlchemyError):
            raise unreadable(self._name, error) from error

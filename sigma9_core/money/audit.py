"""The audit of a journal: whether its events, orders, fills, positions, commands and notes agree with one another.

It reads one moment as streams, beside a server that writes or without one, and needs no more memory for a long
journal than for a short one. Each disagreement is one sentence that names the rows. What happens to an honest
journal, such as a command that a crash has left without an answer, is a remark and no disagreement.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from sigma9_core.clock import monotonic
from sigma9_core.money.books import NOTES, Books
from sigma9_core.money.chain import BEGIN, linked
from sigma9_core.money.exits import NOTE as GUARD
from sigma9_core.money.exits import Guard
from sigma9_core.money.highwater import read_mark
from sigma9_core.money.history import History
from sigma9_core.money.ids import made_at
from sigma9_core.money.integrity import ADVICE, COVERED, NOTE, Head, doubts, nothing_of
from sigma9_core.money.life import Life, told
from sigma9_core.money.rows import corrections
from sigma9_core.money.snapshot import Snapshot
from sigma9_core.money.tables import HASH, SCHEMA

Row = Mapping[str, Any]
Tell = Callable[[str], None]

MOST: Final = 1000
"""Disagreements that are told in words; the rest is counted."""
AHEAD: Final = timedelta(seconds=1)
"""How far an order's id may be ahead of the row that it was written with."""


@dataclass(slots=True)
class Audit:
    """What an audit has found."""

    where: str
    node: str
    journal_id: str = ""
    last_seq: int = 0
    """The newest event that was looked at."""
    rows: Counter[str] = field(default_factory=Counter)
    """How many rows of each kind were looked at."""
    faults: list[str] = field(default_factory=list)
    """The disagreements, as far as they are told in words."""
    count: int = 0
    """How many there are."""
    remarks: list[str] = field(default_factory=list)
    positions: list[dict[str, Any]] = field(default_factory=list)
    """What the fills make: symbol, quantity, average cost, realised result of the round trip, strategy."""
    cash: Decimal | None = None
    realized: Decimal = Decimal(0)
    """Since the books began, after fees."""
    fees: Decimal = Decimal(0)
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Tell whether everything agrees."""
        return self.count == 0

    def body(self) -> dict[str, Any]:
        """Give it as JSON; amounts are text, to the last digit."""
        return {
            "journal": self.where,
            "node": self.node,
            "journal_id": self.journal_id,
            "agrees": self.agrees,
            "disagreements": self.count,
            "faults": self.faults,
            "remarks": self.remarks,
            "last_seq": self.last_seq,
            "rows": dict(self.rows),
            "positions": [
                {name: str(value) if isinstance(value, Decimal) else value for name, value in row.items()}
                for row in self.positions
            ],
            "cash": None if self.cash is None else str(self.cash),
            "realized_pnl": str(self.realized),
            "fees": str(self.fees),
            "seconds": round(self.seconds, 3),
        }

    def tell(self, sentence: str) -> None:
        """Take a disagreement."""
        self.count += 1
        if len(self.faults) < MOST:
            self.faults.append(sentence)


def audit(history: History, *, marks: Path | None = None) -> Audit:
    """Audit a journal that is open for reading (blocks: half a minute for a million events).

    `marks` is where the high-water mark lies, if it is not beside the file. Raise JournalError where the journal
    can't be read at all.
    """
    began = monotonic()
    found = Audit(history.where, history.node)
    mark = history.mark(marks)  # before the rows: a server that goes on writing is never behind its mark
    before = read_mark(mark) if mark is not None else None
    with history.snapshot() as rows:
        found.last_seq = rows.head.seq
        damage = rows.damage()
        if damage is not None:
            found.tell(f"the file is damaged ({damage}): {ADVICE}")
            return found  # what else there is can't be believed
        covered = _meta(rows, found)
        _chains(rows, found, covered)
        if before is not None and before.journal_id == found.journal_id:
            departed = rows.departure(before)
            if departed is not None:
                found.tell(departed)
        elif mark is not None and before is None and rows.head.n:
            found.remarks.append(
                "there is no mark beside the journal: newest rows that are missing are not noticed"
            )
        for fault in rows.unguarded():
            found.tell(fault)
        for doubt in doubts((note["n"], _body(note)) for note in rows.notes(NOTE)):
            found.tell(f"{doubt}; `sigma9 journal acknowledge --reason ...` once you know why")
        _events(rows, found)
        _orders(rows, found)
        _ids(rows, found)
        _books(rows, found)
        _guards(rows, found)
        _commands(rows, found)
    found.seconds = monotonic() - began
    return found


# --- numbers --------------------------------------------------------------------------------------------------


def _meta(rows: Snapshot, found: Audit) -> Head:
    """Look at the journal's own facts; give the event and the row after which its chains begin."""
    ids = []
    covered: Head | None = None
    for row in rows.meta():
        if row["key"] == "journal_id":
            ids.append(row["value"])
            if len(row["value"]) != 32:
                found.tell(f"the journal_id {row['value']} (row {row['n']}) is none")
        elif row["key"] == "schema" and not (row["value"].isdigit() and int(row["value"]) <= SCHEMA):
            found.tell(f"the tables say that they are of version {row['value']} (row {row['n']})")
        elif row["key"] == COVERED:
            if covered is not None or not re.fullmatch(r"\d+ \d+", row["value"]):
                found.tell(f"the row {row['n']} says that the chains begin after {row['value']}, which is not so")
                continue
            seq, n = map(int, row["value"].split())
            covered = Head(seq, n)
    if not ids:
        raise nothing_of(found.where, found.node)
    found.journal_id = ids[-1]
    if len(ids) > 1:
        found.remarks.append(f"the journal was put back to an earlier time (journal_ids: {', '.join(ids)})")
    if covered is None:
        covered = rows.head
    if covered.n:
        found.remarks.append(
            f"the chain covers the events after {covered.seq} and the rows after {covered.n}: "
            "what is older was written before there was one"
        )
    return covered


def _chains(rows: Snapshot, found: Audit, covered: Head) -> None:
    """Follow both chains in one pass: numbers without a gap or a double, each hash made of the one before it."""
    last, chain = 0, _Chain(found, covered.seq)
    for row in rows.events():
        seq = row["seq"]
        if seq != last + 1:
            found.tell(_gap("event", last + 1, seq - 1) if seq > last else f"event {seq} comes after event {last}")
        chain.follow("events", seq, row, follows=seq == last + 1)
        last = seq
        found.rows["events"] += 1
    last, before, chain = 0, "", _Chain(found, covered.n)
    for n, table, row in rows.numbered():
        if n == last:
            found.tell(f"the row {n} is in {before} and in {table}")
        elif n != last + 1:
            found.tell(_gap("row", last + 1, n - 1))
        chain.follow(table, n, row, follows=n == last + 1)
        last, before = n, table
        found.rows[table] += 1


@dataclass(slots=True)
class _Chain:
    """Follows one chain; a row that does not fit is told, and the next one is held against what that row says."""

    found: Audit
    after: int
    """The number after which it begins."""
    before: str = BEGIN

    def follow(self, table: str, number: int, row: Row, *, follows: bool) -> None:
        """Look at a row; one after a gap has nothing to be held against."""
        if number <= self.after:
            return
        told = row[HASH]
        if told is None:
            self.found.tell(f"{_what(table, number, row)} has no hash, and the chain begins after {self.after}")
        elif (follows or number == self.after + 1) and told != linked(self.before, table, row):
            self.found.tell(
                f"{_what(table, number, row)} is not as it was written: its hash is not made of it and of the row "
                "before it"
            )
        self.before = told or BEGIN


def _what(table: str, number: int, row: Row) -> str:
    """Say which row it is, and what it is."""
    match table:
        case "events":
            about = f" of order {row['order_id']}" if row["order_id"] else ""
            return f"event {number} (a {row['type']}{about})"
        case "orders":
            return f"the intent of order {row['order_id']} (row {number} of orders)"
        case "fills":
            return f"the fill {row['exec_id']} of order {row['order_id']} (row {number} of fills)"
        case "commands":
            named = f" {row['id']}" if row["id"] else ""
            return f"the command {row['command']}{named}, {row['stage']} (row {number} of commands)"
        case "notes":
            return f"the note {number} ({row['kind']})"
        case _:
            return f"the journal's own {row['key']} (row {number} of {table})"


def _gap(what: str, first: int, last: int) -> str:
    return f"the {what} {first} is missing" if first == last else f"the {what}s {first} to {last} are missing"


def _events(rows: Snapshot, found: Audit) -> None:
    """Look at the events that tell of no order; the others are looked at with their orders."""
    for row in rows.other_events():
        if told(row, found.tell) is not None and row["type"] == "trade_event":
            found.tell(f"event {row['seq']} is a trade_event of no order")


# --- orders, fills, positions ---------------------------------------------------------------------------------


def _orders(rows: Snapshot, found: Audit) -> None:
    later: dict[str, list[Row]] = {}
    for note in rows.notes("bust", "commission"):
        later.setdefault(str(_body(note).get("order_id")), []).append(note)
    orders = 0
    for order_id, entries in groupby(rows.orders(), key=lambda entry: entry[0]):
        kinds: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
        for _, kind, row in entries:
            kinds[kind].append(row)
        Life(order_id, found.tell).follow(*kinds, later.get(order_id, []))
        orders += 1
    found.rows["different orders"] = orders


def _ids(rows: Snapshot, found: Audit) -> None:
    """Orders' ids rise as they are made; those of a kill may be written down later, and changes name old ones."""
    highest, wall, back = "", "", 0
    for row in rows.intents():
        order_id, made = row["order_id"], made_at(row["order_id"])
        if row["wall"] < wall:
            back += 1  # the machine's clock was set back: ids may, too
            highest = ""
        wall = row["wall"]
        if made is None or len(order_id) > 26 or order_id == highest:
            continue
        try:
            late = made > datetime.fromisoformat(wall) + AHEAD
        except ValueError:
            found.tell(f"the intent of order {order_id} (row {row['n']}) has the time {wall}")
            continue
        if late:
            when = f"{made.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
            found.tell(
                f"the id of order {order_id} was made at {when}, after its row {row['n']} was written at {wall}"
            )
        elif order_id > highest:
            highest = order_id
        elif rows.first_intent(order_id) == row["n"]:  # and not a change of an older order
            found.tell(
                f"the id of order {order_id} (row {row['n']}) is older than {highest}, which was written before it"
            )
    if back:
        found.remarks.append(f"the machine's clock was set back between intents ({back} times)")


def _books(rows: Snapshot, found: Audit) -> None:
    watched = set()
    for note in rows.notes("bust", "commission"):
        body = _body(note)
        for name in ("exec_id", "by"):
            fill = rows.fill(str(body.get(name)), str(body.get("order_id")))
            if fill is not None:
                watched.add(fill["symbol"])
    shared = {*rows.shared_executions()}
    books = Books(found.tell, frozenset(watched), corrections(map(_body, rows.notes("bust"))))
    seen: dict[str, str] = {}
    for kind, row in _by_number(rows.fills(), rows.notes(*NOTES)):
        if kind == 1:
            books.note(row)
        elif row["exec_id"] not in seen:
            books.fill(row)
            if row["exec_id"] in shared:
                seen[row["exec_id"]] = row["order_id"]
        else:
            found.tell(
                f"the fill {row['exec_id']} stands for the orders {seen[row['exec_id']]} and {row['order_id']}: "
                "only the first counts"
            )
    found.positions = [*books.positions()]
    found.cash, found.realized, found.fees = books.cash, books.realized, books.fees
    if books.opening is None and found.rows["fills"]:
        found.remarks.append("the books were never opened: there is no note of the cash at the first connect")


def _by_number(*streams: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    """Merge streams by the rows' numbers; each row comes with the number of its stream."""
    tagged = [_tagged(stream, kind) for kind, stream in enumerate(streams)]
    for _, kind, row in heapq.merge(*tagged, key=itemgetter(0, 1)):
        yield kind, row


def _tagged(rows: Iterable[Row], kind: int) -> Iterator[tuple[int, int, Row]]:
    for row in rows:
        yield row["n"], kind, row


# --- notes and commands ---------------------------------------------------------------------------------------


def _guards(rows: Snapshot, found: Audit) -> None:
    for note in rows.notes(GUARD):
        try:
            guard = Guard.remembered(_body(note))
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            found.tell(f"the note {note['n']} ({GUARD}) can't be read: {error!r}")
            continue
        known = {
            "entry": guard.entry_id or None,
            "stop": guard.stop_id,
            "trail": guard.trail_id,
            "exit": guard.time_id,
            "time stop": guard.rest_id,
            "profit": guard.profit_id,
        }
        for name, order_id in known.items():
            if order_id is not None and not rows.has_order(order_id):
                found.tell(
                    f"the note {note['n']} ({GUARD}) of {guard.symbol} names the {name} {order_id}, "
                    "which has no intent"
                )


def _commands(rows: Snapshot, found: Audit) -> None:
    """Pair arrivals with answers; a refusal needs no arrival, since it did nothing."""
    open_: Counter[tuple[Any, ...]] = Counter()
    for row in rows.commands():
        key = tuple(row[name] for name in ("command", "id", "digest", "source", "actor"))
        named = f"{row['command']} {row['id']}" if row["id"] is not None else row["command"]
        body = _body(row)
        if not body and row["stage"] == "answered":
            found.tell(f"the answer of the command {named} (row {row['n']}) can't be read")
        elif row["stage"] == "received":
            open_[key] += 1
        elif row["stage"] != "answered":
            found.tell(f"the command {named} (row {row['n']}) is {row['stage']}: neither received nor answered")
        elif open_[key]:
            open_[key] -= 1
            if not open_[key]:
                del open_[key]
        elif body.get("ok") and body.get("kept", True):
            found.tell(f"the command {named} was answered (row {row['n']}), and was never received")
    left = sum(open_.values())
    if left:
        names = ", ".join(sorted({key[0] for key in open_}))
        have = "1 command has" if left == 1 else f"{left} commands have"
        found.remarks.append(f"{have} no answer (in progress, or cut off by a crash): {names}")


def _body(row: Row) -> Mapping[str, Any]:
    """Read a row's body; one that can't be read is empty, and is told by whoever needs it."""
    try:
        body = json.loads(row["body"])
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}

"""The audit: an honest journal agrees with itself, and each way of forging one is named by row and id."""

# ruff: noqa: E501 - in the table of forgeries each statement is one line
from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.commands import AdoptArgs
from sigma9_core.errors import JournalError
from sigma9_core.events import StatusUpdate, TradeEvent
from sigma9_core.models import Fill, OrderRequest, Side
from sigma9_core.money import audit as audit_module
from sigma9_core.money.audit import Audit, audit
from sigma9_core.money.chain import linked
from sigma9_core.money.history import History
from sigma9_core.money.ids import OrderIds, made_at
from sigma9_core.money.journal import Journal
from sigma9_core.money.orders import Order
from sigma9_core.money.portfolio import Portfolio
from sigma9_core.money.records import CommandRecord, EventRecord, FillRecord, IntentRecord, NoteRecord, Record
from sigma9_core.money.tables import METADATA
from sigma9_core.testing.journal_places import FilePlace, Place, ServerPlace
from sigma9_core.testing.money_room import MoneyRoom
from sigma9_core.testing.postgres_server import PostgresServer

TS = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)


@dataclass(frozen=True)
class Honest:
    """A journal that a real money path has written, and where to find things in it."""

    path: Path
    entry: str
    """An entry with a guard, filled in two parts."""
    refused: str
    late: str
    """Cancelled, and filled in part afterwards."""
    busted: str
    """Filled, and taken back."""
    positions: dict[str, Decimal]
    cash: Decimal
    realized: Decimal


def command(stage: Any, name: str, id: str | None, **body: Any) -> CommandRecord:  # noqa: A002 - the contract's name
    return CommandRecord(stage, name, id, "digest", "mqtt", "phone", TS, body)


async def trade(folder: Path) -> Honest:
    """Trade: a guarded entry, a change, a refusal, a late fill, a bust, a crash, an adoption, commands."""
    room = MoneyRoom(folder)
    async with room:
        await room.tick("AAPL", 10)
        entry = await room.enter("AAPL", 100)
        await room.fill(entry, "10.10", 40)
        await room.fill(entry, "10.20")
        resting = await room.buy("MSFT", 50, order_type="limit", limit_price=Decimal(9))
        await room.desk.modify(resting.order_id, {"limit_price": Decimal("9.50")}, cause="c1")
        late = await room.buy("NVDA", 60)
        room.exchange.end(late.order_id, "cancelled", "asked for")
        await room.fill(late, "30.3", 20)
        busted = await room.buy("TSLA", 10)
        await room.fill(busted, "200")
        fill = next(each for each in room.exchange.fills if each.order_id == busted.order_id)
        room.exchange.holdings["TSLA"] -= 10
        room.exchange.cash += 2000
        room.exchange.report("busted", busted.order_id, fill=fill)
        await room.desk.settle()
        room.desk.gate.pause("the engine does not run")
        refused = await room.buy("IBM")
        room.desk.gate.pause(None)
        room.exchange.faults.add("raise")
        await room.buy("AMD")
        room.exchange.faults.clear()
        room.exchange.holdings["ORCL"] = Decimal(7)
        room.exchange.cash += 500
        await room.desk.settle()
        room = await room.crash()
    async with room:
        await room.path.adopt(AdoptArgs(symbol="ORCL", strategy="test"))
        await room.tick("AAPL", 12, seconds=86_400)
        sale = await room.buy("NVDA", 20, side="sell", intent="reduce")
        await room.fill(sale, "31")
        for record in (
            command("received", "pause", None, reason="lunch"),
            command("answered", "pause", None, ok=True),
            command("received", "scan", "k1"),
            command("answered", "scan", "k1", ok=True, kept=True),
            command("answered", "place_order", "k2", ok=False, kept=False),  # refused before anything was done
            command("received", "scan", "k3"),
        ):
            await room.journal.commit([record])
        status = StatusUpdate(changed=("engine",), status={"engine": "running"})
        await room.journal.commit([EventRecord("status_update", status, room.clock.now())])
        await room.desk.settle()
        books: Portfolio = room.path.portfolio
        held = {p.symbol: p.quantity for p in books.positions() if not p.foreign}
        realized, cash = books.realized, books.cash
    return Honest(
        folder / "journal.db",
        entry.order_id,
        refused.order_id,
        late.order_id,
        busted.order_id,
        held,
        cash,
        realized,
    )


def sent_and_filled(order_id: str, number: int, side: Side = "buy") -> tuple[list[Record], list[Record]]:
    """Make the records of an order: what is written before it is sent, and its fill."""
    ask = OrderRequest(symbol="AAPL", side=side, quantity=Decimal(5))
    fill = Fill(f"F{number}", order_id, "AAPL", side, Decimal(5), Decimal(10), Decimal("0.1"), TS)
    order = Order(order_id, ask, (), TS)
    sent = TradeEvent.of(order.view())
    order.take("filled", fill=fill)
    filled = TradeEvent.of(order.view(), trade_id=fill.exec_id)
    return (
        [IntentRecord(order_id, TS, ask, (), True), EventRecord("trade_event", sent, TS)],
        [FillRecord(fill, None, "api"), EventRecord("trade_event", filled, TS)],
    )


@pytest.fixture(name="honest", scope="module")
def _honest(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    return asyncio.run(trade(tmp_path_factory.mktemp("honest")))


@pytest.fixture(name="place")
def _place(honest: Honest, tmp_path: Path) -> FilePlace:
    """A copy that may be forged."""
    for file in honest.path.parent.glob(f"{honest.path.name}*"):
        shutil.copy(file, tmp_path)
    return FilePlace(tmp_path / honest.path.name)


def look(place: Place) -> Audit:
    history = History(place.url, "main")
    history.open_unchecked()
    try:
        return audit(history)
    finally:
        history.close()


def disagreements(found: Audit) -> list[str]:
    """Give what does not agree, but for the hash of a row that a test has changed."""
    return [fault for fault in found.faults if "is not as it was written" not in fault]


def one(place: Place, query: str) -> Any:
    return place.query(query)[0][0]


# --- what agrees ----------------------------------------------------------------------------------------------


def test_an_honest_journal_agrees(place: Place, honest: Honest) -> None:
    """What a money path has written agrees, and its fills make the positions, cash and result that it had."""
    found = look(place)

    assert found.faults == []
    assert found.agrees
    assert {row["symbol"]: row["quantity"] for row in found.positions} == honest.positions
    assert set(honest.positions) == {"AAPL", "ORCL"}
    assert found.cash == honest.cash
    assert found.realized == honest.realized != 0
    assert found.rows["events"] == found.last_seq == one(place, "SELECT max(seq) FROM events")
    assert found.rows["fills"] == 6
    assert found.journal_id == one(place, "SELECT value FROM meta WHERE key = 'journal_id'")
    assert found.remarks == ["1 command has no answer (in progress, or cut off by a crash): scan"]
    body = json.loads(json.dumps(found.body()))
    assert (body["agrees"], body["disagreements"], body["cash"]) == (True, 0, str(honest.cash))


def test_splits_have_their_place_among_fills(tmp_path: Path) -> None:
    """A split changes what is held at its time, also where a fill before it is taken back afterwards."""
    place = FilePlace(tmp_path / "split.db")
    journal = Journal(place.url, "main", lambda _events: None)
    journal.open()
    ids = OrderIds()
    first, second, third = ids.new(), ids.new(), ids.new()
    journal.write([record for part in sent_and_filled(first, 1) for record in part])
    journal.write([record for part in sent_and_filled(second, 2) for record in part])
    split = {"symbol": "AAPL", "at": "2026-11-20T14:45:00.000000Z", "new": "3", "old": "1"}
    journal.write([NoteRecord("split", TS, split)])
    journal.write([record for part in sent_and_filled(third, 3) for record in part]).result()
    assert [row["quantity"] for row in look(place).positions] == [35]

    busted = Order(second, OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(5)), (), TS)
    busted.take("filled", fill=Fill("F2", second, "AAPL", "buy", Decimal(5), Decimal(10), Decimal("0.1"), TS))
    busted.take("busted")
    told = EventRecord("trade_event", TradeEvent.of(busted.view()), TS)
    journal.write([NoteRecord("bust", TS, {"exec_id": "F2", "order_id": second}), told]).result()
    journal.close()
    found = look(place)
    assert found.faults == []
    assert [row["quantity"] for row in found.positions] == [20]
    assert found.fees == Decimal("0.2")


def test_an_empty_journal_agrees(tmp_path: Path) -> None:
    """A new journal has nothing to disagree about; one of another node is not there."""
    place = FilePlace(tmp_path / "new.db")
    journal = Journal(place.url, "main", lambda _events: None)
    journal.open()
    journal.close()

    assert look(place).agrees
    other = History(place.url, "other")
    with pytest.raises(JournalError, match="has nothing of the node other"):
        other.open()
    other.open_unchecked()
    with pytest.raises(JournalError, match="has nothing of the node other"):
        audit(other)
    other.close()


def test_a_journal_is_audited_while_it_is_written(place: FilePlace) -> None:
    """Beside a writer that goes on, each audit sees one whole moment."""
    journal = Journal(place.url, "main", lambda _events: None)
    journal.open()
    ids, ended = OrderIds(), threading.Event()

    def write() -> None:
        for number in itertools.count():
            if ended.is_set():
                return
            sent, filled = sent_and_filled(ids.new(), number)
            journal.write(sent)
            journal.write(filled, fact=True).result()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    try:
        for _ in range(4):
            found = look(place)
            assert found.faults == []
            seen.append(found.last_seq)
            # An audit may see a commit before the journal itself has told of it.
            while journal.last_seq <= found.last_seq and writer.is_alive():
                time.sleep(0.001)
    finally:
        ended.set()
        writer.join()
        journal.close()
    assert seen == sorted(set(seen))


@pytest.mark.postgres
def test_postgresql_is_audited_alike(place: FilePlace, honest: Honest, postgres_server: PostgresServer) -> None:
    """The same rows in PostgreSQL agree, make the same positions, and are found out alike when forged."""
    postgres_server.make_schema("audit")
    other = ServerPlace(postgres_server, "audit")
    journal = Journal(other.url, "main", lambda _events: None)
    journal.open()
    journal.close()
    with postgres_server.connect("audit") as session:
        session.execute("SET session_replication_role = replica")
        for table in METADATA.tables:
            session.execute(f"DELETE FROM {table}".encode())  # noqa: S608
            columns = METADATA.tables[table].c.keys()
            flags = [columns.index(name) for name in ("approved", "recovered") if name in columns]
            marks = ", ".join(["%s"] * len(columns))
            for found in place.query(f"SELECT * FROM {table}"):  # noqa: S608
                row = [bool(value) if index in flags else value for index, value in enumerate(found)]
                session.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})".encode(), row)  # noqa: S608

    here, there = look(place), look(other)
    assert there.faults == []
    assert (there.positions, there.cash, there.rows) == (here.positions, here.cash, here.rows)
    other.forge(f"UPDATE fills SET quantity = '41' WHERE order_id = '{honest.entry}' AND quantity = '40'")  # noqa: S608
    assert any("has the quantity 40, its row" in fault for fault in look(other).faults)


# --- what was forged ------------------------------------------------------------------------------------------


FORGED: dict[str, tuple[str, ...]] = {
    "an event is missing": (
        r"the event 3 is missing",
        "DELETE FROM events WHERE seq = 3",
    ),
    "events are missing": (
        r"the events 3 to 4 are missing",
        "DELETE FROM events WHERE seq IN (3, 4)",
    ),
    "the newest events are missing": (
        r"the mark beside the journal says that event \d+ was written, and the newest is \d+",
        "DELETE FROM events WHERE seq > (SELECT max(seq) - 2 FROM events)",
    ),
    "a fill is missing": (
        r"tells the fill x\d+ of order LATE, and there is no such fill",
        "DELETE FROM fills WHERE order_id = 'LATE'",
    ),
    "a row is missing": (
        r"the row \d+ is missing",
        "DELETE FROM notes WHERE kind = 'opening'",
    ),
    "a number is there twice": (
        r"the row \d+ is in (fills and in notes|notes and in fills)",
        "UPDATE notes SET n = (SELECT max(n) FROM fills) WHERE n = (SELECT max(n) FROM notes)",
    ),
    "an intent is missing": (
        r"event \d+ tells of the order REFUSED, which has no intent",
        "DELETE FROM orders WHERE order_id = 'REFUSED'",
    ),
    "an order has no event": (
        r"the order 00\w+ has an intent \(row \d+\) and no event",
        "UPDATE orders SET order_id = '00' || substr('REFUSED', 3) WHERE order_id = 'REFUSED'",
    ),
    "a refused order was sent": (
        r"event \d+: the order BUSTED begins as submitted, and its intent \(row \d+\) was refused",
        "UPDATE orders SET approved = 0 WHERE order_id = 'BUSTED'",
    ),
    "an approved order was refused": (
        r"the intent of order REFUSED \(row \d+\) is approved, and engine refused it",
        "UPDATE orders SET approved = 1 WHERE order_id = 'REFUSED'",
    ),
    "an intent can't be read": (
        r"the intent of order LATE \(row \d+\) can't be read",
        "UPDATE orders SET request = '{' WHERE order_id = 'LATE'",
    ),
    "an intent asked for something else": (
        r"event \d+: the order LATE has the symbol NVDA, its intent XX",
        "UPDATE orders SET request = json_set(request, '$.symbol', 'XX') WHERE order_id = 'LATE'",
    ),
    "an intent asked for more": (
        r"event \d+: the order LATE is over 60, its intent over 6",
        "UPDATE orders SET request = json_set(request, '$.quantity', '6') WHERE order_id = 'LATE'",
    ),
    "a step is illegal": (
        r"event \d+: the order LATE is cancelled and can't become replaced",
        "UPDATE events SET body = json_set(body, '$.data.event', 'replaced') WHERE order_id = 'LATE' AND event = 'partially_filled'",
        "UPDATE events SET event = 'replaced' WHERE order_id = 'LATE' AND event = 'partially_filled'",
    ),
    "an order begins in the middle": (
        r"event \d+: the order LATE begins as accepted, not as submitted",
        "UPDATE events SET body = json_set(body, '$.data.event', 'accepted') WHERE order_id = 'LATE' AND event = 'submitted'",
        "UPDATE events SET event = 'accepted' WHERE order_id = 'LATE' AND event = 'submitted'",
    ),
    "more is told as filled": (
        r"event \d+: the order ENTRY has 41 filled, its fills make 40",
        "UPDATE events SET body = json_set(body, '$.data.filled_quantity', 41) WHERE order_id = 'ENTRY' AND event = 'partially_filled'",
    ),
    "a fill is larger": (
        r"event \d+: the fill x\d+ of order ENTRY has the quantity 40, its row \d+ has 400",
        "UPDATE fills SET quantity = '400' WHERE order_id = 'ENTRY' AND quantity = '40'",
    ),
    "a fill is dearer": (
        r"event \d+: the order ENTRY has the average price 10.16, its fills make 10.56",
        "UPDATE fills SET price = '11.10' WHERE order_id = 'ENTRY' AND quantity = '40'",
    ),
    "a fill is on the other side": (
        r"event \d+: the fill x\d+ of order LATE has the side buy, its row \d+ has sell",
        "UPDATE fills SET side = 'sell' WHERE order_id = 'LATE'",
    ),
    "a commission was added": (
        r"event \d+: the order LATE has a commission of 0, its fills make 1.5",
        "UPDATE fills SET commission = '1.5' WHERE order_id = 'LATE'",
    ),
    "a fill is no fill": (
        r"the fill x\d+ of order LATE \(row \d+\) can't be counted",
        "UPDATE fills SET quantity = 'NaN' WHERE order_id = 'LATE'",
    ),
    "a fill was told by nobody": (
        r"the fill ghost of order LATE \(row \d+\) has no event",
        "UPDATE fills SET exec_id = 'ghost' WHERE order_id = 'LATE'",
    ),
    "a fill is told twice": (
        r"events \d+ and \d+ tell the fill x\d+ of order ENTRY twice",
        "UPDATE events SET body = json_set(body, '$.data.trade_id', (SELECT trade_id FROM events WHERE order_id = 'ENTRY' AND event = 'partially_filled')) WHERE order_id = 'ENTRY' AND event = 'filled'",
    ),
    "a fill stands for two orders": (
        r"the fill x\d+ stands for the orders \w+ and \w+: only the first counts",
        "UPDATE fills SET exec_id = (SELECT exec_id FROM fills WHERE order_id = 'LATE') WHERE order_id = 'BUSTED'",
    ),
    "a fill is no fill's event": (
        r"event \d+: the order LATE is partially_filled, and no fill is named",
        "UPDATE events SET body = json_set(body, '$.data.trade_id', NULL) WHERE order_id = 'LATE' AND trade_id IS NOT NULL",
    ),
    "a bust was forgotten": (
        r"event \d+ takes back a fill of order BUSTED, and no note says which",
        "UPDATE notes SET kind = 'other' WHERE kind = 'bust'",
    ),
    "a bust was invented": (
        r"the note \d+ takes back the fill x\d+ of order LATE, and no event does",
        "INSERT INTO notes (node, n, kind, ts, wall, body) SELECT node, NEXT, 'bust', ts, wall, json_object('exec_id', (SELECT exec_id FROM fills WHERE order_id = 'LATE'), 'order_id', 'LATE') FROM notes WHERE kind = 'opening'",
    ),
    "a bust is of another fill": (
        r"the note \d+ takes back the fill x99 of order BUSTED, which is not held at that time",
        "UPDATE notes SET body = json_set(body, '$.exec_id', 'x99') WHERE kind = 'bust'",
    ),
    "an event is of another symbol": (
        r"event \d+ says symbol NVDA, its column XX",
        "UPDATE events SET symbol = 'XX' WHERE order_id = 'LATE' AND event = 'submitted'",
    ),
    "an event has another number": (
        r"event \d+ says seq 99999, its column \d+",
        "UPDATE events SET body = json_set(body, '$.seq', 99999) WHERE order_id = 'LATE' AND event = 'submitted'",
    ),
    "an event is of another time": (
        r"event \d+ says ts 2026-.*, its column 2020-01-01T00:00:00.000000Z",
        "UPDATE events SET ts = '2020-01-01T00:00:00.000000Z' WHERE type = 'status_update'",
    ),
    "an event can't be read": (
        r"event \d+ can't be read",
        "UPDATE events SET body = 'rubbish' WHERE type = 'status_update'",
    ),
    "a step can't be read": (
        r"event \d+ of order LATE can't be read",
        "UPDATE events SET body = json_set(body, '$.data.filled_quantity', 'many') WHERE order_id = 'LATE' AND event = 'submitted'",
    ),
    "the books were opened twice": (
        r"the notes \d+ and \d+ both open the books, with 100000 and 100000",
        "INSERT INTO notes (node, n, kind, ts, wall, body) SELECT node, NEXT, kind, ts, wall, body FROM notes WHERE kind = 'opening'",
    ),
    "the opening is no amount": (
        r"the note \d+ \(opening\) can't be read: NaN is no amount",
        "UPDATE notes SET body = json_set(body, '$.cash', 'NaN') WHERE kind = 'opening'",
    ),
    "a transfer can't be read": (
        r"the note \d+ \(transfer\) can't be read: 'amount'",
        "UPDATE notes SET body = '{}' WHERE kind = 'transfer'",
    ),
    "a split is told twice": (
        r"the notes \d+ and \d+ both tell the split of IBM at 2026-03-02",
        """INSERT INTO notes (node, n, kind, ts, wall, body) SELECT node, NEXT, 'split', ts, wall, '{"symbol": "IBM", "at": "2026-03-02", "new": "2", "old": "1"}' FROM notes WHERE kind = 'opening'""",
        """INSERT INTO notes (node, n, kind, ts, wall, body) SELECT node, NEXT, 'split', ts, wall, '{"symbol": "IBM", "at": "2026-03-02", "new": "2", "old": "1"}' FROM notes WHERE kind = 'opening'""",
    ),
    "a split can't be read": (
        r"the note \d+ \(split\) can't be read: 'new'",
        """INSERT INTO notes (node, n, kind, ts, wall, body) SELECT node, NEXT, 'split', ts, wall, '{"symbol": "IBM", "at": "2026-03-02"}' FROM notes WHERE kind = 'opening'""",
    ),
    "a day begins elsewhere": (
        r"the note \d+ \(days\) begins 2026-03-0\d with a realised result of 5, the fills before it make 0",
        "UPDATE notes SET body = json_set(body, '$.portfolio.realized_start', '5') WHERE kind = 'days'",
    ),
    "a day is of another week": (
        r"the note \d+ \(days\) can't be read: .*the week of 2026-03-0\d is not 2026-W01",
        "UPDATE notes SET body = json_set(body, '$.portfolio.week', '2026-W01') WHERE kind = 'days'",
    ),
    "a day remembers what is not held": (
        r"the note \d+ \(days\) has a price of ZZZ as held, and the fills hold none of it then",
        "UPDATE notes SET body = json_set(body, '$.portfolio.marks.ZZZ', json('[\"1\", \"2026-03-02\"]')) WHERE kind = 'days'",
    ),
    "a guard is of an unknown entry": (
        r"the note \d+ \(guard\) of AAPL names the entry nobody, which has no intent",
        "UPDATE notes SET body = json_set(body, '$.entry_id', 'nobody') WHERE kind = 'guard'",
    ),
    "a guard has an unknown stop": (
        r"the note \d+ \(guard\) of AAPL names the stop none, which has no intent",
        "UPDATE notes SET body = json_set(body, '$.stop_id', 'none') WHERE kind = 'guard'",
    ),
    "a guard can't be read": (
        r"the note \d+ \(guard\) can't be read: KeyError\('plan'\)",
        "UPDATE notes SET body = json_remove(body, '$.plan') WHERE kind = 'guard'",
    ),
    "an answer has no command": (
        r"the command scan k1 was answered \(row \d+\), and was never received",
        "UPDATE commands SET digest = 'other' WHERE id = 'k1' AND stage = 'received'",
    ),
    "an answer can't be read": (
        r"the answer of the command scan k1 \(row \d+\) can't be read",
        "UPDATE commands SET body = '[' WHERE id = 'k1' AND stage = 'answered'",
    ),
    "a command is something else": (
        r"the command scan k3 \(row \d+\) is thought: neither received nor answered",
        "UPDATE commands SET stage = 'thought' WHERE id = 'k3'",
    ),
    "an id is older than those before it": (
        r"the id of order 00\w+ \(row \d+\) is older than \w+, which was written before it",
        "UPDATE orders SET order_id = '00' || substr('REFUSED', 3) WHERE order_id = 'REFUSED'",
        "UPDATE events SET order_id = '00' || substr('REFUSED', 3), body = json_set(body, '$.data.order_id', '00' || substr('REFUSED', 3)) WHERE order_id = 'REFUSED'",
    ),
    "an id is younger than its row": (
        r"the id of order REFUSED was made at 20\d\d-.*, after its row \d+ was written at 2020-01-01",
        "UPDATE orders SET wall = '2020-01-01T00:00:00.000000Z' WHERE order_id = 'REFUSED'",
    ),
    "the journal has no good id": (
        r"the journal_id x \(row \d+\) is none",
        "UPDATE meta SET value = 'x' WHERE key = 'journal_id'",
    ),
}
"""The sentence that is looked for, then the statements that forge; ENTRY and the like are ids of the journal's."""

NEXT = "(SELECT max(n) + 1 FROM (SELECT n FROM orders UNION SELECT n FROM fills UNION SELECT n FROM commands UNION SELECT n FROM notes))"


@pytest.mark.parametrize("what", FORGED)
def test_what_was_forged_is_named(place: FilePlace, honest: Honest, what: str) -> None:
    """Each way in which rows no longer agree is told in a sentence that names them."""
    ids = {name.upper(): getattr(honest, name) for name in ("entry", "refused", "late", "busted")} | {"NEXT": NEXT}
    names = re.compile("|".join(ids))
    sentence, *statements = (names.sub(lambda found: ids[found[0]], text) for text in FORGED[what])
    place.forge(*statements)

    found = look(place)

    assert not found.agrees
    assert [fault for fault in found.faults if re.search(sentence, fault)], found.faults


def test_a_damaged_file_is_named(place: FilePlace) -> None:
    """Where a page of the file is damaged the audit says so, and believes nothing else that it reads there."""
    raw = bytearray(place.path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 4096] = b"\xa5" * 4096
    place.path.write_bytes(raw)

    try:
        (told,) = look(place).faults
    except JournalError as error:  # it may be the very page that the audit begins with
        told = str(error)
    assert "malformed" in told or "the file is damaged (" in told
    assert "restore a copy of it" in told


def test_many_disagreements_are_counted(place: FilePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many sentences the rest is only counted."""
    monkeypatch.setattr(audit_module, "MOST", 3)
    place.forge("UPDATE events SET symbol = 'ZZ' WHERE type = 'trade_event'")
    found = look(place)

    assert len(found.faults) == 3
    assert found.count > 10


def test_a_clock_that_was_set_back_is_a_remark(place: FilePlace, honest: Honest) -> None:
    """Ids that fall because the machine's clock did are no disagreement."""
    ids = [row[0] for row in place.query("SELECT DISTINCT order_id FROM orders ORDER BY n")]
    assert ids == sorted(ids)
    made = made_at(honest.entry)
    assert made is not None
    first = one(place, "SELECT min(n) FROM orders")
    place.forge(
        f"UPDATE orders SET wall = '2030-01-01T00:00:00.000000Z' WHERE n = {first}",  # noqa: S608
    )
    found = look(place)

    assert not disagreements(found)
    assert "the machine's clock was set back between intents (1 times)" in found.remarks


def test_a_journal_that_was_put_back_disagrees_until_a_person_has_acknowledged_it(place: FilePlace) -> None:
    """Numbers were given again from there on: a start gives a new id, and does not make the fact go away."""
    old, seq = (
        one(place, "SELECT value FROM meta WHERE key = 'journal_id'"),
        one(place, "SELECT max(seq) FROM events"),
    )
    place.forge(
        "DELETE FROM events WHERE seq > 5",
        *(f"DELETE FROM {table} WHERE n > 9" for table in ("orders", "fills", "commands", "notes")),  # noqa: S608
    )
    journal = Journal(place.url, "main", lambda _events: None)
    for _ in range(2):
        journal.open()
        journal.close()

    found = look(place)
    fault = next(fault for fault in found.faults if "put back" in fault)
    assert f"the journal was put back from event {seq} to 5" in fault
    assert "sigma9 journal acknowledge" in fault
    assert len([fault for fault in found.faults if "put back" in fault]) == 1
    assert found.journal_id != old
    assert f"the journal was put back to an earlier time (journal_ids: {old}, {found.journal_id})" in found.remarks

    journal.open()
    assert journal.doubts() != []
    journal.write(
        [NoteRecord("journal", TS, {"state": "acknowledged", "reason": "a copy", "by": "admin"})]
    ).result()
    assert journal.doubts() == []
    journal.close()
    assert not [fault for fault in look(place).faults if "put back" in fault]


# --- the chain ------------------------------------------------------------------------------------------------

CELLS: dict[str, str] = {
    "the opening cash": "UPDATE notes SET body = json_set(body, '$.cash', '1100000') WHERE kind = 'opening'",
    "an adopted quantity": "UPDATE fills SET quantity = '700' WHERE order_id = 'adopted'",
    "a limit price": "UPDATE orders SET request = json_set(request, '$.limit_price', '900') WHERE cause = 'c1'",
    "a strategy": "UPDATE fills SET strategy = 'evil' WHERE order_id = 'adopted'",
    "a time": "UPDATE orders SET ts = '2020-01-01T00:00:00.000000Z' WHERE cause = 'c1'",
    "a written time": "UPDATE events SET wall = '2020-01-01T00:00:00.000000Z' WHERE seq = 3",
    "a cause": "UPDATE events SET cause = 'somebody' WHERE seq = 3",
    "a verdict": "UPDATE orders SET verdicts = '[]' WHERE cause = 'c1'",
    "a snapshot": "UPDATE orders SET snapshot = '{\"limit\": 1}' WHERE cause = 'c1'",
    "what a command said": "UPDATE commands SET body = json_set(body, '$.reason', 'forged') WHERE command = 'pause' AND stage = 'received'",
    "who sent a command": "UPDATE commands SET actor = 'evil' WHERE id = 'k3'",
    "an answer": "UPDATE commands SET body = json_set(body, '$.ok', json('false')) WHERE id = 'k1' AND stage = 'answered'",
    "a guard's plan": "UPDATE notes SET body = json_set(body, '$.plan.stop_percent', 50) WHERE n = (SELECT max(n) FROM notes WHERE kind = 'guard')",
    "a reconciliation": "UPDATE notes SET body = '{}' WHERE n = (SELECT max(n) FROM notes WHERE kind = 'reconciliation')",
    "white space": """UPDATE events SET body = replace(body, '"v":1', '"v": 1') WHERE seq = 3""",
    "the journal's id": "UPDATE meta SET value = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' WHERE key = 'journal_id'",
    "a hash": "UPDATE events SET hash = NULL WHERE seq = 3",
}


@pytest.mark.parametrize("what", CELLS)
def test_each_cell_is_part_of_the_chain(place: FilePlace, what: str) -> None:
    """A row that was changed where nothing else says so is named, by its table, its number and what it is."""
    place.forge(CELLS[what])

    found = look(place)

    assert not found.agrees
    pattern = r"\(a \w+.*\)|row \d+ of \w+|the note \d+ \(\w+\)"
    assert all(re.search(pattern, fault) for fault in found.faults[:1]), found.faults


NEWEST = "(SELECT max(n) FROM (SELECT n FROM orders UNION SELECT n FROM fills UNION SELECT n FROM commands UNION SELECT n FROM notes))"


def test_a_newest_row_that_is_missing_is_noticed(place: FilePlace) -> None:
    """The mark beside the journal knows the newest rows of both counts."""
    place.forge(f"DELETE FROM notes WHERE n = {NEWEST}", f"DELETE FROM commands WHERE n = {NEWEST}")  # noqa: S608

    assert [fault for fault in look(place).faults if "the mark beside the journal says that the row" in fault]


def test_a_row_that_took_the_place_of_the_newest_is_noticed(place: FilePlace) -> None:
    """Also where its hash was made anew: the mark has the hash of what was there."""
    seq = one(place, "SELECT max(seq) FROM events")
    with_other = f"UPDATE events SET wall = '2020-01-01T00:00:00.000000Z' WHERE seq = {seq}"  # noqa: S608
    place.forge(with_other)
    row = dict(
        zip(
            [c.name for c in METADATA.tables["events"].c],
            place.query(f"SELECT * FROM events WHERE seq = {seq}")[0],  # noqa: S608
            strict=True,
        )
    )
    before = one(place, f"SELECT hash FROM events WHERE seq = {seq - 1}")  # noqa: S608
    place.forge(f"UPDATE events SET hash = '{linked(before, 'events', row)}' WHERE seq = {seq}")  # noqa: S608

    assert look(place).faults == [f"event {seq} is another one than the mark beside the journal was made of"]


def test_the_chain_begins_where_an_older_journal_ends(place: FilePlace) -> None:
    """A journal without hashes is kept whole: the chain begins with the next row, and verify says where."""
    place.forge(
        "DELETE FROM meta WHERE key = 'chain'",
        "UPDATE meta SET n = 2 WHERE key = 'journal_id'",
        *(f"UPDATE {table} SET n = n - 1 WHERE n > 2" for table in ("orders", "fills", "commands", "notes")),  # noqa: S608
    )
    older = place.path.with_name("older.db")
    with closing(sqlite3.connect(place.path)) as db:
        for name, kind in db.execute(
            "SELECT name, type FROM sqlite_master WHERE type = 'trigger' OR name = 'notes_by_symbol'"
        ).fetchall():
            db.execute(f"DROP {kind} {name}")
        new = {
            "orders": ("source",),
            "fills": ("cause",),
            "commands": ("cause",),
            "notes": ("source", "cause", "symbol"),
        }
        for table in METADATA.tables:
            for column in (*new.get(table, ()), "hash"):
                db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        db.commit()
    place.path.rename(older)
    place = FilePlace(older)
    with pytest.raises(JournalError, match="was written by an older Sigma9: start the server once"):
        look(place)
    seq = one(place, "SELECT max(seq) FROM events")
    rows = {table: one(place, f"SELECT count(*) FROM {table}") for table in METADATA.tables}  # noqa: S608

    journal = Journal(place.url, "main", lambda _events: None)
    journal.open()
    journal.write([NoteRecord("trip", TS, {"a": 1}), command("received", "pause", None)]).result()
    journal.close()
    found = look(place)
    assert found.faults == []
    assert [
        remark
        for remark in found.remarks
        if f"the chain covers the events after {seq} and the rows after" in remark
    ]
    assert {table: found.rows[table] for table in ("orders", "fills")} == {t: rows[t] for t in ("orders", "fills")}
    journal.open()
    journal.close()
    assert look(place).faults == []
    place.forge("UPDATE notes SET body = '{}' WHERE kind = 'trip'")
    assert [fault for fault in look(place).faults if "is not as it was written" in fault]


def test_two_nodes_have_a_chain_each(tmp_path: Path) -> None:
    """In one database every node's rows are chained by themselves."""
    place = FilePlace(tmp_path / "two.db")
    journals = [Journal(place.url, node, lambda _events: None) for node in ("main", "other")]
    for journal in journals:
        journal.open()
    for _ in range(3):
        for journal in journals:
            journal.write([NoteRecord("trip", TS, {"a": 1})]).result()
    for journal in journals:
        journal.close()
    assert look(place).faults == []
    place.forge("UPDATE notes SET body = '{}' WHERE node = 'other'")
    assert look(place).faults == []


# --- what keeps it append-only --------------------------------------------------------------------------------


def test_nothing_is_replaced_from_another_connection(place: FilePlace) -> None:
    """UPDATE, DELETE and every way of REPLACE are refused by the database itself, whoever connects."""
    tries = [
        f"REPLACE INTO {table} SELECT * FROM {table} LIMIT 1"  # noqa: S608
        for table in METADATA.tables
    ]
    tries += [
        "INSERT OR REPLACE INTO notes (rowid, node, n, kind, ts, wall, body) VALUES (1, 'main', 9999, 'a', '', '', '')",
        (
            "INSERT OR REPLACE INTO fills SELECT node, 9999, exec_id, order_id, broker_order_id, symbol, side, '5', price, "
            "commission, ts, wall, strategy, source, cause, recovered, hash FROM fills LIMIT 1"
        ),
        "INSERT INTO notes SELECT * FROM notes WHERE true LIMIT 1 ON CONFLICT DO UPDATE SET body = ''",
        "UPDATE OR REPLACE notes SET n = 1",
        "DELETE FROM notes",
    ]
    with closing(sqlite3.connect(place.path)) as db:
        for each in tries:
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(each)
    assert look(place).agrees


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "DROP TRIGGER fills_no_delete",
            "the trigger fills_no_delete, which keeps the journal append-only, is missing",
        ),
        (
            "CREATE TRIGGER mine AFTER INSERT ON fills BEGIN SELECT 1; END",
            "the trigger mine on the journal's tables is not Sigma9's",
        ),
    ],
)
def test_a_journal_that_is_not_guarded_is_told_before_and_after_a_start(
    place: FilePlace, statement: str, sentence: str
) -> None:
    """What had kept it append-only is named by verify; a start makes it anew, and leaves a trace until acknowledged."""
    with closing(sqlite3.connect(place.path)) as db:
        db.execute(statement)
        db.commit()
    assert sentence in look(place).faults

    journal = Journal(place.url, "main", lambda _events: None)
    journal.open()
    journal.close()
    assert [fault for fault in look(place).faults if "without what keeps it append-only" in fault]


# --- size -----------------------------------------------------------------------------------------------------


@pytest.fixture(name="grown")
def _grown(tmp_path: Path) -> Callable[[int], FilePlace]:
    """Make a journal of so many orders, each sent and filled."""

    def grow(orders: int) -> FilePlace:
        place = FilePlace(tmp_path / f"{orders}.db")
        journal = Journal(place.url, "main", lambda _events: None)
        journal.open()
        ids = OrderIds()
        for number in range(orders):
            sent, filled = sent_and_filled(ids.new(), number, "buy" if number % 2 == 0 else "sell")
            future = journal.write([*sent, *filled], fact=True)
            if number % 500 == 0:
                future.result()
        journal.close()
        return place

    return grow


def test_memory_does_not_grow_with_the_journal(grown: Callable[[int], FilePlace]) -> None:
    """A journal twenty times as long needs hardly more memory to be audited."""
    peaks = []
    for orders in (100, 1500):
        place = grown(orders)
        look(place)
        tracemalloc.start()
        found = look(place)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.faults == []
        assert found.rows["events"] == 2 * orders
        assert found.positions == []
    assert peaks[1] < peaks[0] * 3 + 3_000_000


def test_a_number_that_no_event_can_hold_is_compared_as_it_is_told(grown: Callable[[int], FilePlace]) -> None:
    """Amounts with more digits than a float has agree with the events that tell them rounded."""
    place = grown(2)
    long = "5.000000000000000000000001"
    place.forge(f"UPDATE fills SET quantity = '{long}'")  # noqa: S608
    assert not disagreements(look(place))


def test_ids_tell_when_they_were_made() -> None:
    """An id of ours has its time in it; anything else has none."""
    made = made_at(OrderIds().new())
    assert made is not None
    assert abs((datetime.now(UTC) - made).total_seconds()) < 60
    assert made_at("O1") is None
    assert made_at(f"{OrderIds().new()}-K0a1b2c") is not None

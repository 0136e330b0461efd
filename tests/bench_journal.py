"""Measure the journal's group commit beside a bare sqlite3 one of the same rows; run by hand, not a test.

python tests/bench_journal.py [FOLDER]: 50 waiting writers, synchronous FULL; quote the ratio, not the rates. Once
with an event a commit, once with what an order needs before it is sent: its intent and its event.
"""

# ruff: noqa: T201
from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

from sigma9_core.events import TradeEvent
from sigma9_core.models import OrderRequest, OrderStatus, Verdict
from sigma9_core.money.journal import Journal
from sigma9_core.money.latch import Latch, LatchState
from sigma9_core.money.records import EventRecord, IntentRecord, Record

WRITERS = 50
ROUNDS = 60
TS = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)


VERDICTS = tuple(
    Verdict(rule=rule, code=code, outcome="allow", used=Decimal(used), limit=Decimal(limit))
    for rule, code, used, limit in (
        ("max_order_quantity", "R1", "100", "10000"),
        ("max_order_value", "R2", "18725", "25000"),
        ("price_collar", "R3", "0.2", "5"),
        ("max_open", "R7", "2", "3"),
    )
)


def event(number: int) -> list[Record]:
    """Make one trade_event."""
    data = TradeEvent(
        event=OrderStatus.SUBMITTED,
        order_id=f"01J{number:023d}",
        symbol="AAPL",
        side="buy",
        quantity=Decimal(100),
        order_type="limit",
        limit_price=Decimal("187.25"),
        time_in_force="day",
        filled_quantity=Decimal(0),
        strategy="seismograph",
        source="strategy",
    )
    return [EventRecord("trade_event", data, TS)]


def intent(number: int) -> list[Record]:
    """Make what an order desk commits before it sends an order: intent and event, with the rules' verdicts."""
    request = OrderRequest(
        symbol="AAPL",
        side="buy",
        quantity=Decimal(100),
        order_type="limit",
        limit_price=Decimal("187.25"),
        strategy="seismograph",
        source="strategy",
        signal={"score": 81.5, "stage": 3, "reason": "accumulation_bar"},
    )
    (told,) = event(number)
    assert isinstance(told, EventRecord)
    told = EventRecord(told.kind, told.data.model_copy(update={"verdicts": VERDICTS}), TS)
    order_id = f"01J{number:023d}"
    return [IntentRecord(order_id, TS, request, VERDICTS, True, None, {"config": "0" * 64}), told]


Make = Callable[[int], list[Record]]


def journal_rate(folder: Path, make: Make) -> float:
    """Give commits a second through the journal, awaited one by one by 50 tasks on one loop."""
    made = [make(number) for number in range(WRITERS * ROUNDS)]
    journal = Journal(f"sqlite:///{folder / 'journal.db'}", "main", lambda _events: None)
    journal.open()

    async def writer(number: int) -> None:
        for turn in range(ROUNDS):
            await journal.commit(made[number * ROUNDS + turn])

    async def run() -> None:
        await asyncio.gather(*(writer(number) for number in range(WRITERS)))

    began = time.perf_counter()
    asyncio.run(run())
    seconds = time.perf_counter() - began
    journal.close()
    return WRITERS * ROUNDS / seconds


class Bare:
    """The least that a group commit of the same rows needs: one thread, one sqlite3 connection, no journal."""

    def __init__(self, copy_of: Path, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.inserts: list[str] = []
        columns = []
        with closing(sqlite3.connect(copy_of)) as source:
            for table in ("events", "orders"):
                found = source.execute(f"SELECT * FROM {table} ORDER BY 2").fetchall()  # noqa: S608
                if not found:
                    continue
                schema = source.execute(
                    "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL AND type <> 'trigger'",
                    (table,),
                )
                for (sql,) in schema:
                    self.db.execute(sql)
                self.inserts.append(f"INSERT INTO {table} VALUES ({','.join('?' * len(found[0]))})")  # noqa: S608
                columns.append(found)
        self.rows = list(zip(*columns, strict=True))
        self.waiting: list[tuple[tuple[Any, ...], Future[None]]] = []
        self.changed = threading.Condition()
        self.done = False

    def run(self) -> None:
        """Commit whatever waits until it is told to stop."""
        while True:
            with self.changed:
                while not self.waiting and not self.done:
                    self.changed.wait()
                group, self.waiting = self.waiting, []
            if not group:
                return
            self.db.execute("BEGIN IMMEDIATE")
            for index, insert in enumerate(self.inserts):
                self.db.executemany(insert, [row[index] for row, _ in group])
            self.db.execute("COMMIT")
            for _, future in group:
                future.set_result(None)

    def write(self, row: tuple[Any, ...]) -> Future[None]:
        """Hand over a row, or one of each table."""
        future: Future[None] = Future()
        with self.changed:
            self.waiting.append((row, future))
            self.changed.notify()
        return future


def bare_rate(folder: Path) -> float:
    """Give commits a second through the bare group commit, with the same 50 tasks."""
    bare = Bare(folder / "journal.db", folder / "bare.db")
    rows = iter(bare.rows)
    thread = threading.Thread(target=bare.run)
    thread.start()

    async def writer() -> None:
        for _ in range(ROUNDS):
            await asyncio.wrap_future(bare.write(next(rows)))

    async def run() -> None:
        await asyncio.gather(*(writer() for _ in range(WRITERS)))

    began = time.perf_counter()
    asyncio.run(run())
    seconds = time.perf_counter() - began
    with bare.changed:
        bare.done = True
        bare.changed.notify()
    thread.join()
    bare.db.close()
    return len(bare.rows) / seconds


def latch_times(folder: Path) -> list[float]:
    """Give the seconds of 200 latch writes, sorted."""
    latch = Latch(folder / "latch")
    latch.create()
    times = []
    for _ in range(200):
        began = time.perf_counter()
        latch.write(LatchState())
        times.append(time.perf_counter() - began)
    latch.close()
    return sorted(times)


def main() -> None:
    """Run everything five times, side by side, and print the medians."""
    for what, make in (("events", event), ("intents", intent)):
        ratios = []
        for _ in range(5):
            with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
                ours, bare = journal_rate(Path(name), make), bare_rate(Path(name))
            ratios.append(ours / bare)
            print(f"{what}: journal {ours:8,.0f}/s   bare sqlite3 {bare:8,.0f}/s   ratio {ours / bare:.2f}")
        print(f"{what}: median ratio {median(ratios):.2f}, least {min(ratios):.2f}")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        times = latch_times(Path(name))
    print(f"latch write: median {median(times) * 1e3:.3f} ms, p99 {times[197] * 1e3:.3f} ms")


if __name__ == "__main__":
    main()

"""Measure the journal's group commit beside a bare sqlite3 one of the same rows; run by hand, not a test.

python tests/bench_journal.py [FOLDER]: 50 waiting writers, synchronous FULL; quote the ratio, not the rates.
"""

# ruff: noqa: T201
from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

from sigma9_core.events import TradeEvent
from sigma9_core.models import OrderStatus
from sigma9_core.money.journal import Journal
from sigma9_core.money.latch import Latch, LatchState
from sigma9_core.money.records import EventRecord

WRITERS = 50
ROUNDS = 60
TS = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)


def record(number: int) -> EventRecord:
    """Make one trade_event."""
    data = TradeEvent(
        event=OrderStatus.ACCEPTED,
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
    return EventRecord("trade_event", data, TS)


def journal_rate(folder: Path) -> float:
    """Give events a second through the journal, awaited one by one by 50 tasks on one loop."""
    journal = Journal(f"sqlite:///{folder / 'journal.db'}", "main", lambda _events: None)
    journal.open()

    async def writer(number: int) -> None:
        for turn in range(ROUNDS):
            await journal.commit([record(number * ROUNDS + turn)])

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
        with sqlite3.connect(copy_of) as source:
            self.rows = source.execute("SELECT * FROM events ORDER BY seq").fetchall()
            schema = source.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'events' AND sql IS NOT NULL")
            statements = [sql for (sql,) in schema if "TRIGGER" not in sql]
        source.close()
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        for sql in statements:
            self.db.execute(sql)
        self.insert = f"INSERT INTO events VALUES ({','.join('?' * len(self.rows[0]))})"  # noqa: S608
        self.waiting: list[tuple[Any, Future[None]]] = []
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
            self.db.executemany(self.insert, [row for row, _ in group])
            self.db.execute("COMMIT")
            for _, future in group:
                future.set_result(None)

    def write(self, row: Any) -> Future[None]:
        """Hand over a row."""
        future: Future[None] = Future()
        with self.changed:
            self.waiting.append((row, future))
            self.changed.notify()
        return future


def bare_rate(folder: Path) -> float:
    """Give rows a second through the bare group commit, with the same 50 tasks."""
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
    ratios = []
    for _ in range(5):
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
            ours, bare = journal_rate(Path(name)), bare_rate(Path(name))
        ratios.append(ours / bare)
        print(f"journal {ours:8,.0f}/s   bare sqlite3 {bare:8,.0f}/s   ratio {ours / bare:.2f}")
    print(f"median ratio {median(ratios):.2f}")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        times = latch_times(Path(name))
    print(f"latch write: median {median(times) * 1e3:.3f} ms, p99 {times[197] * 1e3:.3f} ms")


if __name__ == "__main__":
    main()

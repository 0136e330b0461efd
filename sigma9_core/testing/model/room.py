"""A money room whose disk and broker may fail at any moment, for the model test."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

from sigma9_core.clock import SteppedClock
from sigma9_core.config import Settings
from sigma9_core.contracts import RiskRule
from sigma9_core.errors import BrokerError
from sigma9_core.models import Fill, Session
from sigma9_core.money.adoption import ADOPTED
from sigma9_core.money.journal import Events, Journal
from sigma9_core.money.kill import Key, Kill
from sigma9_core.money.portfolio import Applied, Portfolio
from sigma9_core.money.records import NoteRecord, Record
from sigma9_core.money.restore import split_of
from sigma9_core.testing.model.exchange import RoughExchange
from sigma9_core.testing.money_room import OPEN, MoneyRoom

SESSIONS: Final = [
    Session(f"2026-03-{day:02d}", start, start + timedelta(hours=6.5))
    for day in range(2, 28)
    if (start := OPEN + timedelta(days=day - 2)).weekday() < 5
]
"""Four weeks of sessions."""
SLOW: Final = 0.3
"""Seconds that a slow disk takes for a commit."""


class RoughJournal(Journal):
    """A journal whose disk fails, tells of failures that were none, or takes its time, as a test says."""

    fault: Literal["before", "after"] | None = None
    """before: a commit fails. after: it is done, and an error is told all the same."""
    slow: Literal["before", "after"] | None = None
    """When who waits for a commit waits: before it is durable, or after."""

    def open(self) -> None:
        """Open, and do the writer's work in place of its thread from here on."""
        super().open()
        if self._engine is not None:
            dialect: Any = self._engine.dialect
            self._do_commit: Callable[[Any], None] = dialect.do_commit
            dialect.do_commit = self._commit_or_fail
        database = None if self._connection is None else self._connection.connection.dbapi_connection
        if database is not None:
            database.cursor().execute("PRAGMA synchronous=OFF")  # no crash here takes the machine along
        thread, self._thread = self._thread, None
        with self._changed:
            self._closing = True
            self._changed.notify()
        if thread is not None:
            thread.join()
        self._closing = False

    def close(self) -> None:
        """Write what waits, as the thread would have done, and close."""
        self._closing = True
        while group := self._take():
            self._commit(group)
        super().close()

    def write(self, records: Sequence[Record], *, fact: bool = False, of: str | None = None) -> Future[Events]:
        """Hand over records, and write them before anything else happens, unless the disk fails or is slow."""
        future = super().write(records, fact=fact, of=of)
        if self.slow == "before":
            asyncio.get_running_loop().call_later(SLOW, self._pump)
        else:
            self._pump()
        return future

    async def commit(self, records: Sequence[Record], *, fact: bool = False) -> Events:
        """Hand over records and wait, a while longer where the disk is slow."""
        events = await asyncio.wrap_future(self.write(records, fact=fact))
        if self.slow == "after":
            await asyncio.sleep(SLOW)
        return events

    def heal(self) -> None:
        """Let the disk work again, and write everything that waited."""
        self.fault = None
        self._retry_at = 0.0
        self._pump()

    def lose(self) -> list[Record]:
        """Forget what is not on the disk, as a crash does, and give it."""
        lost = [record for batch in self._waiting for record in batch.records]
        self._waiting.clear()
        self._waiting_records = 0
        return lost

    def _pump(self) -> None:
        while self._waiting and not self._closing and (self.healthy or self._retry_at <= 0):
            self._commit(self._take())

    def _commit_or_fail(self, connection: Any) -> None:
        if self.fault != "before":
            self._do_commit(connection)
        if self.fault is not None:
            raise sqlite3.OperationalError("disk I/O error")


class RoughRoom(MoneyRoom):
    """A room at a rough exchange, which is told of adoptions; its parts are there to be looked into."""

    exchange: RoughExchange
    journal: RoughJournal

    def __init__(
        self,
        folder: Path,
        exchange: RoughExchange,
        clock: SteppedClock,
        settings: Settings,
        rules: Sequence[RiskRule],
    ) -> None:
        super().__init__(
            folder,
            exchange=exchange,
            clock=clock,
            settings=settings,
            rules=rules,
            sessions=SESSIONS,
            journal=RoughJournal,
        )
        self.on_kill: Callable[[], None] = lambda: None
        """Told of each step of a kill."""
        self.restored = False
        """The books are as the journal has them; what is adopted from here on is new."""
        self.path.portfolio.adopt = self._adopt  # type: ignore[method-assign]

    @property
    def kills(self) -> Mapping[Key, Kill]:
        """Give the kills that are in force."""
        return self.kill._kills  # noqa: SLF001 - a test looks inside

    @property
    def paused(self) -> bool:
        """Tell whether no entries are taken."""
        return self.path.gate._paused is not None  # noqa: SLF001

    @property
    def up_to_date(self) -> bool:
        """Tell whether the journal has heard of everything that the books have."""
        return self.journal.healthy and not self.desk._facts  # noqa: SLF001

    async def start(self) -> None:
        """Open everything, and begin to connect."""
        self.journal.open()
        if not self.latch.path.exists():
            self.latch.create()
        fills = (record.fill for record in self.journal.fills())
        self.exchange.know_adoptions([fill for fill in fills if fill.order_id == ADOPTED])
        await self.path.start()
        self.restored = True
        self.path.link.connect()

    def kill_9(self) -> None:
        """End at once: nothing more reaches the exchange or the disk. The loop's tasks are the caller's to end."""
        self.exchange.hang_up()
        self.path.link._broker = _Dead()  # noqa: SLF001
        for record in self.journal.lose():
            if isinstance(record, NoteRecord) and record.kind == "bust":
                symbol = self.exchange.orders[str(record.body["order_id"])].request.symbol
                self.exchange.causes[symbol] = "a bust that was told never came to the disk"
            elif isinstance(record, NoteRecord) and record.kind == "split":
                self.exchange.causes[split_of(record.body).symbol] = "a split that was told never came to the disk"
        self.journal.close()
        self.latch.close()
        if self.path._show_timer is not None:  # noqa: SLF001
            self.path._show_timer.cancel()  # noqa: SLF001

    def fill_the_latch_s_disk(self) -> None:
        """Let every write of the latch fail from here on."""

        def full(_state: object) -> None:
            raise OSError(28, "No space left on device")

        self.latch.write = full  # type: ignore[assignment,method-assign]

    def heal(self) -> None:
        """Let the disks work again."""
        vars(self.latch).pop("write", None)
        self.journal.heal()

    def _adopt(self, fill: Fill, strategy: str | None) -> Applied | None:
        applied = Portfolio.adopt(self.path.portfolio, fill, strategy)
        if applied is not None and self.restored:
            self.exchange.adopted(fill)
        return applied

    def _changed(self, part: Literal["broker", "kill_switch"]) -> None:
        super()._changed(part)
        if part == "kill_switch":
            self.on_kill()


class _Dead:
    """What a process that was killed has for a broker."""

    health: Any = None

    def __getattr__(self, name: str) -> Any:
        raise BrokerError("this process is dead")


__all__ = ["SESSIONS", "RoughJournal", "RoughRoom"]

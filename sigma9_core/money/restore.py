"""What a start takes back from the journal: cash, fills, orders in doubt or working, day marks, exit guards."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sigma9_core.calendar import trading_day
from sigma9_core.clock import rfc3339
from sigma9_core.contracts import Submission
from sigma9_core.models import ZERO, OrderStatus, Split
from sigma9_core.money.adoption import ADOPTED
from sigma9_core.money.desk import REMEMBERED, OrderDesk
from sigma9_core.money.exits import NOTE as GUARD
from sigma9_core.money.exits import ExitManager
from sigma9_core.money.gate import RiskGate
from sigma9_core.money.journal import Journal
from sigma9_core.money.orders import Order
from sigma9_core.money.portfolio import Portfolio
from sigma9_core.money.recall import recalled
from sigma9_core.money.records import FillRecord, NoteRecord

MANY: Final = 10_000
A_DAY: Final = timedelta(days=1, hours=1)
"""A trading day is no longer, also where the clocks are put back."""
TRAIL: Final = 100
"""Notes of the kills' trail that a start looks at."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the journal knows."""

    opening: Decimal | None
    """The cash of the first connect; None before it."""
    transfers: Decimal
    books: Sequence[FillRecord | NoteRecord]
    """Fills and splits, in the order in which they were committed."""
    busted: frozenset[str]
    """Executions that the exchange took back."""
    orders: Sequence[Order]
    """Orders that had not ended, and the entries that guards refer to."""
    entries: Mapping[str, int]
    """Entries of the trading day, by its name."""
    recent: Sequence[Submission]
    """Orders that passed the gate in the last minutes: a restart forgets no duplicate and no rate."""
    days: Mapping[str, Any]
    guards: Mapping[str, Mapping[str, Any]]
    """The newest note of each guard, by symbol."""
    kills: Sequence[NoteRecord]
    """The newest notes of the kills' trail, newest first."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile: there is none in a journal's rows, and looking takes as long as reading."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@_uncollected()
def read(journal: Journal, now: datetime) -> Known:
    """Read it all (blocks: disk; 1 s for 100,000 fills)."""
    opening = next(iter(journal.notes("opening", 1)), None)
    days = next(iter(journal.notes("days", 1)), None)
    guards: dict[str, Mapping[str, Any]] = {}
    for note in journal.notes(GUARD, MANY):  # newest first: the first of a symbol counts
        guards.setdefault(str(note.body["symbol"]), note.body)
    working = journal.last_order_events()
    ids = [*working]
    ids += [str(guard["entry_id"]) for guard in guards.values() if not guard["ended"] and guard["entry_id"]]
    orders = [order for order_id in dict.fromkeys(ids) if (order := recalled(journal, order_id)) is not None]
    for order in orders:
        if order.order_id in working and order.status is OrderStatus.BUSTED:
            order.status = OrderStatus.PARTIALLY_FILLED  # the rest works on when a fill is taken back
    day = trading_day(now)
    sent = {
        intent.order_id
        for intent in journal.intents(now - A_DAY)
        if intent.approved and intent.request.intent == "entry" and trading_day(intent.ts) == day
    }
    recent: dict[str, Submission] = {}
    for intent in journal.intents(now - REMEMBERED):
        if intent.approved:
            recent.setdefault(intent.order_id, Submission(intent.ts, intent.request, intent.order_id))
    return Known(
        opening=None if opening is None else Decimal(opening.body["cash"]),
        transfers=sum((Decimal(note.body["amount"]) for note in journal.notes("transfer", MANY)), ZERO),
        books=tuple(journal.books()),
        busted=frozenset(str(note.body["exec_id"]) for note in journal.notes("bust", MANY)),
        orders=orders,
        entries={day: len(sent)},
        recent=tuple(recent.values()),
        days={} if days is None else days.body,
        guards=guards,
        kills=journal.notes("kill", TRAIL),
    )


@_uncollected()
def restore(known: Known, portfolio: Portfolio, desk: OrderDesk, gate: RiskGate, exits: ExitManager) -> None:
    """Give each part what is its own; on the money lane."""
    if known.opening is not None:
        portfolio.set_cash(known.opening)
    for record in known.books:
        if isinstance(record, NoteRecord):
            split = split_of(record.body)
            portfolio.split(split.symbol, split.new, split.old)
        elif record.fill.order_id == ADOPTED:
            portfolio.adopt(record.fill, record.strategy)
        else:
            portfolio.apply(record.fill, record.strategy)
    for exec_id in known.busted:
        portfolio.bust(exec_id)
    if known.transfers:
        portfolio.transfer(known.transfers)
    fills = [record.fill for record in known.books if isinstance(record, FillRecord)]
    traded = (fill for fill in fills if fill.order_id != ADOPTED and fill.exec_id not in known.busted)
    desk.adopt(known.orders, (fill.exec_id for fill in fills), known.entries, known.recent, traded)
    if known.days:
        portfolio.restore_days(known.days.get("portfolio", {}))
        gate.remember(known.days.get("rules", {}))
    exits.resume(known.guards)


def split_body(split: Split) -> dict[str, str]:
    """Write a split as the body of its note."""
    return {"symbol": split.symbol, "at": rfc3339(split.ts), "new": str(split.new), "old": str(split.old)}


def split_of(body: Mapping[str, Any]) -> Split:
    """Read a split from the body of its note."""
    at = datetime.fromisoformat(body["at"])
    return Split(body["symbol"], at, Decimal(body["new"]), Decimal(body["old"]))

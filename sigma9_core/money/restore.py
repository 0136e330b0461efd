"""What a start takes back from the journal: cash, fills, orders in doubt or working, day marks, exit guards."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any, Final

from sigma9_core.calendar import trading_day
from sigma9_core.clock import rfc3339
from sigma9_core.contracts import Submission
from sigma9_core.errors import JournalError
from sigma9_core.garbage import uncollected
from sigma9_core.models import ZERO, Fill, OrderStatus, Split
from sigma9_core.money.adoption import ADOPTED
from sigma9_core.money.days import Days
from sigma9_core.money.desk import REMEMBERED, OrderDesk
from sigma9_core.money.exits import NOTE as GUARD
from sigma9_core.money.exits import ExitManager, Guard
from sigma9_core.money.gate import RiskGate
from sigma9_core.money.holding import EXACT
from sigma9_core.money.journal import Journal
from sigma9_core.money.orders import Order
from sigma9_core.money.portfolio import Portfolio
from sigma9_core.money.recall import recalled
from sigma9_core.money.records import FillRecord, NoteRecord

log = logging.getLogger("sigma9.journal")

A_DAY: Final = timedelta(days=1, hours=1)
"""A trading day is no longer, also where the clocks are put back."""
TRAIL: Final = 100
"""Notes of the kills' trail that a start looks at."""


@dataclass(frozen=True, slots=True)
class Bust:
    """An execution that the exchange took back, or corrected."""

    exec_id: str
    """As the books have it: it may be the one that stands for those which the broker could not give."""
    quantity: Decimal | None
    """None: all that still stood of it."""
    told: str
    """As the exchange has it."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Bust:
        """Read it from the body of its note."""
        exec_id, quantity = str(body["exec_id"]), body.get("quantity")
        return cls(exec_id, None if quantity is None else _amount(quantity), body.get("told", exec_id))


@dataclass(frozen=True, slots=True)
class Known:
    """What the journal knows."""

    opening: Decimal | None
    """The cash of the first connect; None before it."""
    transfers: Decimal
    books: Sequence[FillRecord | NoteRecord]
    """Fills and splits, in the order in which they were committed."""
    busts: Sequence[Bust]
    """What the exchange took back, in the order in which it was told; what was corrected is in the books."""
    orders: Sequence[Order]
    """Orders that had not ended, and the entries that guards refer to."""
    entries: Mapping[str, int]
    """Entries of the trading day, by its name."""
    recent: Sequence[Submission]
    """Orders that passed the gate in the last minutes: a restart forgets no duplicate and no rate."""
    days: Mapping[str, Any]
    guards: Mapping[str, Mapping[str, Any]]
    """The newest note of each guard, by symbol."""
    unguarded: Mapping[str, str]
    """Symbols whose newest guard can't be read, each with what is wrong with it."""
    unexplained: Mapping[str, str]
    """What the newest reconciliation left unexplained, by symbol."""
    since: Sequence[Fill]
    """Our orders' fills since then, in the order in which they were committed."""
    kills: Sequence[NoteRecord]
    """The newest notes of the kills' trail, newest first."""


@uncollected()  # there is no garbage in a journal's rows, and looking for it takes as long as reading them
def read(journal: Journal, now: datetime) -> Known:
    """Read it all (blocks: disk; 1 s for 100,000 fills)."""
    opening = next(iter(journal.notes("opening", 1)), None)
    days = next(iter(journal.notes("days", 1)), None)
    guards, unguarded = _guards(journal)
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
    with localcontext(EXACT):
        transfers = sum((journal.told(note, _amount, "amount") for note in journal.every("transfer")), ZERO)
    books = tuple(journal.books())
    reconciled = next(iter(journal.notes("reconciliation", 1)), None)
    since = [
        record.fill
        for record in books
        if isinstance(record, FillRecord) and record.fill.order_id != ADOPTED
        if reconciled is None or record.fill.ts >= reconciled.ts
    ]
    return Known(
        opening=None if opening is None else journal.told(opening, _amount, "cash"),
        transfers=transfers,
        books=books,
        busts=[journal.told(note, Bust.of) for note in journal.every("bust") if "by" not in note.body],
        orders=orders,
        entries={day: len(sent)},
        recent=tuple(recent.values()),
        days={} if days is None else journal.told(days, _memory),
        guards=guards,
        unguarded=unguarded,
        unexplained={} if reconciled is None else journal.told(reconciled, _unexplained),
        since=since,
        kills=[note for note in journal.notes("kill", TRAIL) if _is_trail(note)],
    )


def _guards(journal: Journal) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Read the newest guard of each symbol; one that can't be read costs that symbol, and no other."""
    guards: dict[str, Mapping[str, Any]] = {}
    unguarded: dict[str, str] = {}
    for symbol, note in journal.newest_by_symbol(GUARD).items():
        try:
            if isinstance(note, JournalError):
                raise note
            if journal.told(note, Guard.remembered).symbol != symbol:
                raise JournalError(f"the note {note.n} of {symbol} tells of {note.body['symbol']}")
            guards[symbol] = note.body
        except JournalError as error:
            unguarded[symbol] = f"the exits of {symbol} are not known: {error}"
    return guards, unguarded


def _is_trail(note: NoteRecord) -> bool:
    """Tell whether a note of a kill says what it has done; without that the kill goes on from its latch."""
    body = note.body
    lists = isinstance(body.get("cancelled"), list) and isinstance(body.get("closed"), list)
    if not (isinstance(body.get("what"), str) and lists and isinstance(body.get("scope"), dict | None)):
        log.error("the row %d of notes, of a kill's trail, can't be read: what it did is not told", note.n)
        return False
    return True


def _amount(text: object) -> Decimal:
    number = Decimal(str(text))
    if not number.is_finite():
        raise ValueError(f"{text} is no amount")
    return number


def _unexplained(body: Mapping[str, Any]) -> Mapping[str, str]:
    return {str(symbol): str(why) for symbol, why in body["unexplained"].items()}


def _memory(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a day note's body back where it can be taken up again."""
    portfolio = body.get("portfolio", {})
    Days().restore(portfolio)
    for price, ts in portfolio.get("marks", {}).values():
        _amount(price)
        datetime.fromisoformat(ts)
    return body


@uncollected()  # as `read`
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
    for bust in known.busts:
        portfolio.bust(bust.exec_id, bust.quantity)
    if known.transfers:
        portfolio.transfer(known.transfers)
    fills = [record.fill for record in known.books if isinstance(record, FillRecord)]
    traded = (fill for fill in fills if fill.order_id != ADOPTED and portfolio.standing(fill.exec_id))
    busted = (bust.told for bust in known.busts)
    executions = (name for fill in fills for name in (fill.exec_id, *fill.corrects))
    desk.adopt(known.orders, executions, known.entries, known.recent, traded, busted=busted)
    if known.days:
        portfolio.restore_days(known.days.get("portfolio", {}))
        gate.remember(known.days.get("rules", {}))
    exits.resume(known.guards, known.unguarded)
    working = {order.request.symbol for order in known.orders if order.working}
    closed = {
        symbol: (
            f"{sentence}; no order but a kill's passes in it: `sigma9 kill --flatten --scope symbol={symbol}` "
            "closes it, and it is free again at the first start after that"
        )
        for symbol, sentence in known.unguarded.items()
        if portfolio.quantity(symbol) != ZERO or symbol in working
    }
    for sentence in closed.values():
        log.critical("%s", sentence)
    gate.keep_closed(closed)


def split_body(split: Split) -> dict[str, str]:
    """Write a split as the body of its note."""
    return {"symbol": split.symbol, "at": rfc3339(split.ts), "new": str(split.new), "old": str(split.old)}


def split_of(body: Mapping[str, Any]) -> Split:
    """Read a split from the body of its note."""
    at = datetime.fromisoformat(body["at"])
    return Split(body["symbol"], at, Decimal(body["new"]), Decimal(body["old"]))

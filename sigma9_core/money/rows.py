"""Records to rows of the journal's tables, and rows back to records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter
from pydantic_core import to_json

from sigma9_core.clock import rfc3339
from sigma9_core.events import Event, EventData, StatusUpdate, TradeEvent, WatchlistUpdate
from sigma9_core.models import Fill, OrderRequest, OrderStatus, Verdict
from sigma9_core.money.records import CommandRecord, EventRecord, FillRecord, IntentRecord, NoteRecord

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

Row = dict[str, Any]

_VERDICTS: Final = TypeAdapter(tuple[Verdict, ...])


def moment(ts: datetime) -> str:
    """Write a time for a column; one without a zone is an error, because it would be read as local."""
    if ts.tzinfo is None:
        raise ValueError(f"the time {ts} has no zone: give it one")
    return rfc3339(ts)


def text(value: object) -> str:
    """Write a value as JSON; decimals become text, so that no digit is lost."""
    return to_json(value, inf_nan_mode="null").decode()


# --- to rows --------------------------------------------------------------------------------------------------


def event_row(record: EventRecord, event: Event) -> Row:
    """Write an event: its bytes, and the columns that it is found by."""
    data = record.data
    trade = data if isinstance(data, TradeEvent) else None
    source, cause = _origin(data)
    return {
        "seq": event.seq,
        "ts": moment(record.ts),
        "type": record.kind,
        "symbol": event.symbol,
        "source": source,
        "cause": record.cause or cause,
        "order_id": trade.order_id if trade else None,
        "event": str(trade.event) if trade else None,
        # A busted execution is no trade any more; its event names it all the same.
        "trade_id": trade.trade_id if trade and trade.event is not OrderStatus.BUSTED else None,
        "body": event.raw,
    }


def _origin(data: EventData) -> tuple[str, str]:
    """Give an event's source, and what led to it where its record does not say."""
    match data:
        case TradeEvent():
            return data.source, data.order_id
        case WatchlistUpdate():
            return data.strategy or "engine", data.reason
        case StatusUpdate():
            return "engine", ", ".join(data.changed)
        case _:
            return "engine", "engine"


def intent_row(record: IntentRecord) -> Row:
    """Write an intent."""
    request = record.request
    cause = (
        f"signal of {request.strategy}"
        if request.source == "strategy"
        else f"{request.intent} by {request.source}"
    )
    return {
        "order_id": record.order_id,
        "ts": moment(record.ts),
        "approved": record.approved,
        "request": text(request.model_dump()),
        "verdicts": text(_VERDICTS.dump_python(record.verdicts)),
        "source": request.source,
        "cause": record.cause or cause,
        "snapshot": text(dict(record.snapshot)),
    }


def fill_row(record: FillRecord) -> Row:
    """Write a fill."""
    fill = record.fill
    return {
        "exec_id": fill.exec_id,
        "order_id": fill.order_id,
        "broker_order_id": fill.broker_order_id,
        "symbol": fill.symbol,
        "side": fill.side,
        "quantity": str(fill.quantity),
        "price": str(fill.price),
        "commission": str(fill.commission),
        "ts": moment(fill.ts),
        "strategy": record.strategy,
        "source": record.source,
        "cause": fill.order_id,
        "recovered": record.recovered,
    }


def command_row(record: CommandRecord) -> Row:
    """Write a command's arrival or answer."""
    return {
        "stage": record.stage,
        "command": record.command,
        "id": record.id,
        "digest": record.digest,
        "source": record.source,
        "actor": record.actor,
        "cause": record.id or record.actor or record.source,
        "ts": moment(record.ts),
        "body": text(dict(record.body)),
    }


def note_row(record: NoteRecord) -> Row:
    """Write a note; most say in their body what they are about, and who or what led to them."""
    body = dict(record.body)
    symbol = body.get("symbol")
    source, cause = _NOTED.get(record.kind, ("engine", record.kind))
    return {
        "kind": record.kind,
        "symbol": symbol if isinstance(symbol, str) else None,
        "source": _said(body, "source") or source,
        "cause": next((said for name in cause.split() if (said := _said(body, name))), cause),
        "ts": moment(record.ts),
        "body": text(body),
    }


_NOTED: Final[Mapping[str, tuple[str, str]]] = {
    "opening": ("broker", "connect"),
    "transfer": ("broker", "cash"),
    "bust": ("broker", "order_id"),
    "commission": ("broker", "order_id"),
    "split": ("feed", "symbol"),
    "days": ("engine", "session"),
    "guard": ("exit", "entry_id group"),
    "kill": ("engine", "reason"),
    "trip": ("risk", "rule reason"),
    "reconciliation": ("broker", "read-back"),
    "journal": ("journal", "state"),
}
"""By kind of note: its source where the body names none, and the names in its body of what led to it."""


def _said(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) and value else None


# --- back to records ------------------------------------------------------------------------------------------


UNREADABLE: Final = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError)
"""What reading a row raises that is not as it was written."""


def trade_event(body: str) -> TradeEvent:
    """Read the data of a trade_event out of its envelope."""
    return TradeEvent.model_validate(json.loads(body, parse_float=Decimal)["data"])


def intent(row: RowMapping) -> IntentRecord:
    """Read an intent."""
    return IntentRecord(
        order_id=row["order_id"],
        ts=datetime.fromisoformat(row["ts"]),
        request=OrderRequest.model_validate_json(row["request"]),
        verdicts=_VERDICTS.validate_json(row["verdicts"]),
        approved=row["approved"],
        cause=row["cause"],
        snapshot=json.loads(row["snapshot"]),
    )


FILL_COLUMNS: Final = (
    *("exec_id", "order_id", "symbol", "side", "quantity", "price", "commission", "ts", "broker_order_id"),
    *("strategy", "source", "recovered"),
)
"""What a fill is read from, in the order of `fill_of`."""


def fill(row: RowMapping) -> FillRecord:
    """Read a fill."""
    return fill_of([row[name] for name in FILL_COLUMNS])


def fill_of(values: Sequence[Any]) -> FillRecord:
    """Read a fill from the values of its columns: a start reads all there are."""
    exec_id, order_id, symbol, side, quantity, price, commission, ts, broker_order_id, *more = values
    amounts = Decimal(quantity), Decimal(price), Decimal(commission)
    execution = Fill(exec_id, order_id, symbol, side, *amounts, datetime.fromisoformat(ts), broker_order_id)
    return FillRecord(execution, *more)


def countable(record: FillRecord) -> FillRecord:
    """Give a fill back whose numbers and side make sense; raise ValueError for any other."""
    fill = record.fill
    finite = fill.quantity.is_finite() and fill.price.is_finite() and fill.commission.is_finite()
    if not finite or fill.quantity <= 0 or fill.price < 0 or fill.side not in ("buy", "sell"):
        raise ValueError(
            f"the fill {fill.exec_id}: {fill.side} {fill.quantity} at {fill.price}, commission {fill.commission}"
        )
    return record


def with_commission(record: FillRecord, told: Mapping[str, Decimal]) -> FillRecord:
    """Give a fill the commission that was told after it, by execution id; most had theirs at once."""
    if not told or (amount := told.get(record.fill.exec_id)) is None:
        return record
    return replace(record, fill=replace(record.fill, commission=amount))


def corrections(busts: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Give what each correction takes the place of, by execution ids, from the bodies of the notes of busts."""
    found: dict[str, tuple[str, ...]] = {}
    for body in busts:
        if (by := body.get("by")) is not None:
            found[by] = (*found.get(by, ()), str(body.get("exec_id")))
    return found


def with_corrections(record: FillRecord, wrong: Mapping[str, tuple[str, ...]]) -> FillRecord:
    """Give a fill the names of those that it takes the place of; most are right at once."""
    if not wrong or (names := wrong.get(record.fill.exec_id)) is None:
        return record
    return replace(record, fill=replace(record.fill, corrects=names))


def amount(text: object) -> Decimal:
    """Read an amount; raise ValueError for what is no number."""
    number = Decimal(str(text))
    if not number.is_finite():
        raise ValueError(f"{text} is no amount")
    return number


def command(row: RowMapping) -> CommandRecord:
    """Read a command's arrival or answer."""
    return CommandRecord(
        stage=row["stage"],
        command=row["command"],
        id=row["id"],
        digest=row["digest"],
        source=row["source"],
        actor=row["actor"],
        ts=datetime.fromisoformat(row["ts"]),
        body=json.loads(row["body"]),
    )


def note(row: RowMapping) -> NoteRecord:
    """Read a note."""
    return NoteRecord(row["kind"], datetime.fromisoformat(row["ts"]), json.loads(row["body"]), row["n"])

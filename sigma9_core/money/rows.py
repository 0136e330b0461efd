"""Records to rows of the journal's tables, and rows back to records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter
from pydantic_core import to_json

from sigma9_core.clock import rfc3339
from sigma9_core.events import Event, TradeEvent
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
    return {
        "seq": event.seq,
        "ts": moment(record.ts),
        "type": record.kind,
        "symbol": event.symbol,
        "source": trade.source if trade else None,
        "cause": record.cause,
        "order_id": trade.order_id if trade else None,
        "event": str(trade.event) if trade else None,
        # A busted execution is no trade any more; its event names it all the same.
        "trade_id": trade.trade_id if trade and trade.event is not OrderStatus.BUSTED else None,
        "body": event.raw,
    }


def intent_row(record: IntentRecord) -> Row:
    """Write an intent."""
    return {
        "order_id": record.order_id,
        "ts": moment(record.ts),
        "approved": record.approved,
        "request": text(record.request.model_dump()),
        "verdicts": text(_VERDICTS.dump_python(record.verdicts)),
        "cause": record.cause,
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
        "ts": moment(record.ts),
        "body": text(dict(record.body)),
    }


def note_row(record: NoteRecord) -> Row:
    """Write a note."""
    return {"kind": record.kind, "ts": moment(record.ts), "body": text(dict(record.body))}


# --- back to records ------------------------------------------------------------------------------------------


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
    return NoteRecord(row["kind"], datetime.fromisoformat(row["ts"]), json.loads(row["body"]))

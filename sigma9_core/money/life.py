"""The life of one order as the journal tells it: whether its intents, events and fills agree with one another."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import isclose
from typing import Any, Final

from sigma9_core.models import ZERO, OrderStatus
from sigma9_core.money.orders import TRANSITIONS, WORKING, standing
from sigma9_core.money.rows import corrections

Row = Mapping[str, Any]
Tell = Callable[[str], None]

_S = OrderStatus
FILLED: Final = (_S.PARTIALLY_FILLED, _S.FILLED)
NEAR: Final = 1e-9
"""How far a number of an event may be from the fills' sum, as its share: events are written as floats."""
ROUNDED: Final = 1e-6
"""The same for average prices, which are rounded with each fill."""


def _reachable() -> frozenset[tuple[OrderStatus, OrderStatus]]:
    """List the events that may come in a status, fills aside, by the desk's own table."""
    return frozenset(
        (status, target)
        for (status, message), target in TRANSITIONS.items()
        if target is not None and message != "filled"
    )


NEXT: Final = _reachable()
FILLABLE: Final = frozenset(status for status, message in TRANSITIONS if message == "filled")


@dataclass(slots=True)
class Life:
    """Follows one order; every disagreement is told as one sentence."""

    order_id: str
    tell: Tell
    status: OrderStatus | None = None
    filled: Decimal = ZERO
    cost: Decimal = ZERO
    fees: Decimal = ZERO
    taken_back: Decimal = ZERO
    """What the exchange took back of it; an event may count it or leave it out."""
    fees_back: Decimal = ZERO
    _asked: Mapping[str, Any] | None = None
    _fills: dict[str, Row] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)
    """Executions that events have told, with the event's number."""
    _taken: dict[str, Decimal] = field(default_factory=dict)
    """How much of each fill was taken back."""
    _busts: Sequence[Row] = ()
    _busted: int = 0
    _fees: dict[str, Decimal] = field(default_factory=dict)
    """What each execution that was told has cost."""
    _charged: deque[tuple[str, Decimal]] = field(default_factory=deque)
    """Commissions that were told after their executions, and that no event has shown so far."""
    _wrong: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The executions that each correction takes the place of."""

    def follow(
        self, intents: Sequence[Row], events: Sequence[Row], fills: Sequence[Row], later: Sequence[Row]
    ) -> None:
        """Follow it from its first intent to its newest event; `later` are the notes of its busts and commissions.

        When a commission was told, its note does not say beside the events: any event from its fill on may be the
        first that has it.
        """
        bodies = [(note, json.loads(note["body"])) for note in later]
        self._wrong = corrections(body for note, body in bodies if note["kind"] == "bust")
        self._busts = [note for note, body in bodies if note["kind"] == "bust" and "by" not in body]
        try:
            self._charged.extend(
                (body["exec_id"], Decimal(body["amount"])) for note, body in bodies if note["kind"] == "commission"
            )
        except (KeyError, ArithmeticError):
            pass  # the books tell of a note that can't be read
        for fill in fills:
            if fill["exec_id"] in self._fills:
                self.tell(f"the fill {fill['exec_id']} of order {self.order_id} stands twice (row {fill['n']})")
            self._fills[fill["exec_id"]] = fill
        self._begin(intents, events)
        for row in events:
            body = told(row, self.tell)
            if body is not None:
                self._step(row["seq"], body["data"])
        for exec_id, fill in self._fills.items():
            if exec_id not in self._told:
                self.tell(f"the fill {exec_id} of order {self.order_id} (row {fill['n']}) has no event")
        for bust in self._busts[self._busted :]:
            name = json.loads(bust["body"]).get("exec_id")
            self.tell(
                f"the note {bust['n']} takes back the fill {name} of order {self.order_id}, and no event does"
            )

    def _begin(self, intents: Sequence[Row], events: Sequence[Row]) -> None:
        if not events:
            rows = ", ".join(str(intent["n"]) for intent in intents)
            what = f"an intent (row {rows})" if intents else "fills"
            self.tell(f"the order {self.order_id} has {what} and no event")
            return
        first = events[0]
        if not intents:
            last = f" to {events[-1]['seq']}" if len(events) > 1 else ""
            self.tell(f"event {first['seq']}{last} tells of the order {self.order_id}, which has no intent")
            return
        for intent in intents:
            try:
                asked = json.loads(intent["request"])
                refused = [v["rule"] for v in json.loads(intent["verdicts"]) if v["outcome"] == "refuse"]
                same = self._asked is None or all(asked[n] == self._asked[n] for n in ("symbol", "side"))
            except (ValueError, TypeError, KeyError, AttributeError):
                self.tell(f"the intent of order {self.order_id} (row {intent['n']}) can't be read")
                continue
            if self._asked is None:
                self._asked = asked
            if not same:
                self.tell(f"the intent of order {self.order_id} (row {intent['n']}) is of another symbol or side")
            if intent["approved"] and refused:
                self.tell(
                    f"the intent of order {self.order_id} (row {intent['n']}) is approved, "
                    f"and {refused[0]} refused it"
                )
        sent = first["event"] != _S.RISK_REJECTED
        if sent != bool(intents[0]["approved"]):
            what = "approved" if intents[0]["approved"] else "refused"
            self.tell(
                f"event {first['seq']}: the order {self.order_id} begins as {first['event']}, and its intent "
                f"(row {intents[0]['n']}) was {what}"
            )

    def _step(self, seq: int, data: Mapping[str, Any]) -> None:
        try:
            event = OrderStatus(data["event"])
            self._terms(seq, data)
            if self.status is None:
                if event not in (_S.SUBMITTED, _S.RISK_REJECTED):
                    self.tell(f"event {seq}: the order {self.order_id} begins as {event}, not as submitted")
                self.status = event
            elif event in FILLED:
                self._fill(seq, event, data)
            elif (self.status, event) in NEXT:
                self.status = standing(self.status, event)
                if event is _S.BUSTED:
                    self._bust(seq)
            else:
                self.tell(f"event {seq}: the order {self.order_id} is {self.status} and can't become {event}")
                self.status = event
            self._sums(seq, data)
        except (ValueError, TypeError, KeyError) as error:
            self.tell(f"event {seq} of order {self.order_id} can't be read: {error!r}")

    def _terms(self, seq: int, data: Mapping[str, Any]) -> None:
        asked = self._asked
        if asked is None:
            return
        becomes = "trailing_stop" if asked.get("adjustment") else None  # the broker's adjustment
        for name in ("symbol", "side", "order_type"):
            if data[name] != asked[name] and not (name == "order_type" and data[name] == becomes):
                self.tell(
                    f"event {seq}: the order {self.order_id} has the {name} {data[name]}, its intent {asked[name]}"
                )
        if self.status is None and not _close(data["quantity"], Decimal(asked["quantity"])):
            self.tell(
                f"event {seq}: the order {self.order_id} is over {data['quantity']}, "
                f"its intent over {asked['quantity']}"
            )

    def _fill(self, seq: int, event: OrderStatus, data: Mapping[str, Any]) -> None:
        if self.status not in FILLABLE:
            self.tell(f"event {seq}: the order {self.order_id} is {self.status} and can't fill")
        exec_id = data["trade_id"]
        fill = self._fills.get(exec_id) if exec_id is not None else None
        if exec_id is None:
            # A change down to what had filled already ends an order without a fill of its own.
            if self.status not in WORKING or not _either(data["quantity"], self.filled, self.taken_back):
                self.tell(f"event {seq}: the order {self.order_id} is {event}, and no fill is named")
        elif fill is None:
            self.tell(f"event {seq} tells the fill {exec_id} of order {self.order_id}, and there is no such fill")
        elif exec_id in self._told:
            self.tell(
                f"events {self._told[exec_id]} and {seq} tell the fill {exec_id} of order {self.order_id} twice"
            )
            fill = None
        if exec_id is not None:
            self._told.setdefault(exec_id, seq)
        if fill is not None:
            quantity, price = Decimal(fill["quantity"]), Decimal(fill["price"])
            self._count(exec_id, fill, 1)
            self._replace(exec_id)
            pairs = (
                ("quantity", data["last_quantity"], quantity),
                ("price", data["last_price"], price),
            )
            for name, here, there in pairs:
                if not _close(here, there):
                    self.tell(
                        f"event {seq}: the fill {exec_id} of order {self.order_id} has the {name} {here}, "
                        f"its row {fill['n']} has {there}"
                    )
            for name in ("symbol", "side"):
                if data[name] != fill[name]:
                    self.tell(
                        f"event {seq}: the fill {exec_id} of order {self.order_id} has the {name} {data[name]}, "
                        f"its row {fill['n']} has {fill[name]}"
                    )
        whole = data["filled_quantity"] >= data["quantity"] or _close(data["filled_quantity"], data["quantity"])
        if whole != (event is _S.FILLED):
            self.tell(
                f"event {seq}: the order {self.order_id} is {event} with {data['filled_quantity']} "
                f"of {data['quantity']} filled"
            )
        if self.status is not None:
            self.status = standing(self.status, event)

    def _count(self, exec_id: str, fill: Row, sign: int) -> None:
        """Count a fill, or (-1) count it no more."""
        quantity = Decimal(fill["quantity"])
        self.filled += sign * quantity
        self.cost += sign * quantity * Decimal(fill["price"])
        if sign > 0:
            self._fees[exec_id] = Decimal(fill["commission"])
            self.fees += self._fees[exec_id]
        else:
            self.fees -= self._fees.pop(exec_id, ZERO)

    def _replace(self, exec_id: str) -> None:
        """Count no more what a fill takes the place of, where it was told."""
        for name in self._wrong.get(exec_id, ()):
            if name in self._fees and name in self._fills:
                self._count(name, self._fills[name], -1)

    def _bust(self, seq: int) -> None:
        if self._busted >= len(self._busts):
            self.tell(f"event {seq} takes back a fill of order {self.order_id}, and no note says which")
            return
        note = self._busts[self._busted]
        self._busted += 1
        body = json.loads(note["body"])
        exec_id = body.get("exec_id")
        fill = self._fills.get(exec_id)
        if fill is None:
            self.tell(
                f"the note {note['n']} takes back the fill {exec_id} of order {self.order_id}, which is not there"
            )
            return
        before = self._taken.get(exec_id, ZERO)
        part = Decimal(body["quantity"]) if "quantity" in body else Decimal(fill["quantity"]) - before
        if not ZERO < part <= Decimal(fill["quantity"]) - before:
            self.tell(
                f"the note {note['n']} takes back {part} of the fill {exec_id} of order {self.order_id}, "
                f"of which {Decimal(fill['quantity']) - before} stood"
            )
        self._taken[exec_id] = before + part
        self.taken_back += part
        self.fees_back += ZERO if "quantity" in body else self._fees.get(exec_id, ZERO)

    def _sums(self, seq: int, data: Mapping[str, Any]) -> None:
        if not _either(data["filled_quantity"], self.filled, self.taken_back):
            self.tell(
                f"event {seq}: the order {self.order_id} has {data['filled_quantity']} filled, "
                f"its fills make {self.filled - self.taken_back}"
            )
        if not self._paid(data["commission"] or 0):
            self.tell(
                f"event {seq}: the order {self.order_id} has a commission of {data['commission']}, "
                f"its fills make {self.fees - self.fees_back}"
            )
        average = data["average_price"]
        if not self.filled or self.taken_back:
            return
        if average is None or not isclose(average, float(self.cost / self.filled), rel_tol=ROUNDED):
            self.tell(
                f"event {seq}: the order {self.order_id} has the average price {average}, "
                f"its fills make {self.cost / self.filled:.8f}"
            )

    def _paid(self, commission: float) -> bool:
        """Tell whether an event has the commissions that were known by then."""
        if not self._charged or _either(commission, self.fees, self.fees_back):
            return _either(commission, self.fees, self.fees_back)
        charged, fees, total = tuple(self._charged), dict(self._fees), self.fees
        while not _either(commission, self.fees, self.fees_back):
            if not self._charged:
                self._charged.extend(charged)
                self.fees, self._fees = total, fees
                return False
            exec_id, amount = self._charged.popleft()
            if exec_id in self._fees:
                self.fees += amount - self._fees[exec_id]
                self._fees[exec_id] = amount
        return True


def told(row: Row, tell: Tell) -> Mapping[str, Any] | None:
    """Read an event's envelope and compare it with its columns; None where it can't be read."""
    try:
        body = json.loads(row["body"])
        data = body["data"]
        columns = {name: row[name] for name in ("seq", "node", "type", "ts", "symbol")}
        envelope = {name: body[name] for name in ("seq", "node", "type", "ts")} | {"symbol": data.get("symbol")}
        if row["type"] == "trade_event":
            for name in ("order_id", "event", "source", "trade_id"):
                columns[name], envelope[name] = row[name], data[name]
            if data["event"] == _S.BUSTED:
                columns["trade_id"] = envelope["trade_id"] = None
        elif row["order_id"] is not None:
            tell(f"event {row['seq']} is a {row['type']} and has the order {row['order_id']}")
    except (ValueError, TypeError, KeyError, AttributeError):
        tell(f"event {row['seq']} can't be read")
        return None
    for name, value in columns.items():
        if envelope[name] != value:
            tell(f"event {row['seq']} says {name} {envelope[name]}, its column {value}")
    return body  # type: ignore[no-any-return]


def _close(number: float, exact: Decimal | float) -> bool:
    return isclose(number, float(exact), rel_tol=NEAR, abs_tol=NEAR)


def _either(number: float, gross: Decimal, back: Decimal) -> bool:
    return _close(number, gross) or (back != ZERO and _close(number, gross - back))

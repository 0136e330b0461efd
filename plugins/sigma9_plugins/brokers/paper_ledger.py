"""What happens at the paper exchange, with everything that follows from it, as one step.

A step is worked out, written to the file, applied to the book, and only then reported: one-cancels-all legs end in
the same step as the fill that ends them, and children live and die with their parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sigma9_core.contracts import BrokerListener, BrokerReport, ReportKind
from sigma9_core.models import ZERO, Split
from sigma9_plugins.brokers.paper_book import Book, PaperOrder, Record, State
from sigma9_plugins.brokers.paper_costs import Costs, against
from sigma9_plugins.brokers.paper_log import PaperLog

_REPORTS: Final[dict[str, ReportKind]] = {
    "accept": "accepted",
    "reject": "rejected",
    "fill": "filled",
    "replace": "replaced",
}


class Ledger:
    """The book, its file and its listener."""

    def __init__(self, cash: Decimal, costs: Costs, log: PaperLog) -> None:
        self.book = Book(cash)
        self.listener: BrokerListener | None = None
        self._costs = costs
        self._log = log

    def load(self) -> None:
        """Read the file and begin it anew, compacted; raise BrokerError where it is broken."""
        for record in self._log.read():
            self.book.apply(record)
        self._log.start(self.book.snapshot())

    def forget(self) -> None:
        """Begin anew, with an empty book."""
        self._log.start(self.book.snapshot())

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    # --- steps ------------------------------------------------------------------------------------------------

    def add(self, orders: Sequence[PaperOrder], ts: datetime) -> None:
        """Take new orders as one unit: accepted, or rejected where their state says so."""
        self._commit(
            [
                {
                    "do": "reject" if order.state == "rejected" else "accept",
                    "ts": ts.isoformat(),
                    "order": order.to_json(),
                }
                for order in orders
            ]
        )

    def fill(self, order: PaperOrder, quantity: Decimal, price: Decimal, ts: datetime) -> None:
        """Fill an order at a price on the tick, cancel what it cancels, and wake its children."""
        price = against(order.side, price)
        due = self._costs.commission(order.filled + quantity, order.value + quantity * price)
        identity = order.order_id or f"hand-{ts:%Y%m%dT%H%M%S}-{order.number}"
        step: list[Record] = [
            {
                "do": "fill",
                "ts": ts.isoformat(),
                "number": order.number,
                "exec_id": f"{identity}.{order.fills + 1}",
                "quantity": str(quantity),
                "price": str(price),
                "commission": str(due - order.paid),
            }
        ]
        if order.oca_group is not None:
            for other in self.book.all_working():
                if other.oca_group == order.oca_group and other is not order:
                    self._end(step, other, "cancelled", f"one-cancels-all: {_name(order)} has filled", ts)
        parent = self.book.orders.get(order.parent) if order.parent is not None else None
        dead = parent is not None and parent.state != "working" and order.filled + quantity >= parent.filled
        if parent is not None and dead and quantity < order.remaining:
            self._end(step, order, "cancelled", f"its parent filled no more than {parent.filled} shares", ts)
        step += [
            {"do": "activate", "ts": ts.isoformat(), "number": child.number, "best": str(price)}
            for child in self._children(order)
            if not child.active
        ]
        self._commit(step)

    def end(self, order: PaperOrder, state: State, reason: str, ts: datetime) -> None:
        """End an order, and with it the children that its death leaves without a position."""
        step: list[Record] = []
        self._end(step, order, state, reason, ts)
        self._commit(step)

    def trigger(self, order: PaperOrder, ts: datetime) -> None:
        """Set a stop off."""
        self._commit([{"do": "trigger", "ts": ts.isoformat(), "number": order.number}])

    def trail(self, order: PaperOrder, best: Decimal, ts: datetime) -> None:
        """Let a trailing stop see a better price."""
        self._commit([{"do": "trail", "ts": ts.isoformat(), "number": order.number, "best": str(best)}])

    def replace(self, order: PaperOrder, changes: dict[str, Any], ts: datetime) -> None:
        """Change an order's terms; they count from `ts` on."""
        plain = {name: None if value is None else str(value) for name, value in changes.items()}
        self._commit([{"do": "replace", "ts": ts.isoformat(), "number": order.number, "changes": plain}])

    def split(self, split: Split) -> None:
        """Give new shares for old ones, once; orders in the symbol are cancelled, as exchanges do."""
        told = (split.symbol, split.ts.isoformat(), str(split.new), str(split.old))
        if told in self.book.splits:
            return
        step: list[Record] = []
        for order in self.book.working(split.symbol):
            self._end(step, order, "cancelled", f"{split.symbol} is split", split.ts)
        symbol, at, new, old = told
        step.append({"do": "split", "ts": at, "symbol": symbol, "at": at, "new": new, "old": old})
        self._commit(step)

    # --- inside -----------------------------------------------------------------------------------------------

    def _children(self, order: PaperOrder) -> list[PaperOrder]:
        return [child for child in self.book.working(order.symbol) if child.parent == order.number]

    def _end(self, step: list[Record], order: PaperOrder, state: State, reason: str, ts: datetime) -> None:
        if any(each["do"] == "end" and each["number"] == order.number for each in step):
            return
        moment = ts.isoformat()
        step.append({"do": "end", "ts": moment, "number": order.number, "state": state, "reason": reason})
        for child in self._children(order):
            if order.filled == ZERO:
                self._end(step, child, "cancelled", f"its parent {_name(order)} ended unfilled", ts)
            elif child.filled >= order.filled:
                self._end(step, child, "cancelled", f"its parent filled no more than {order.filled} shares", ts)

    def _commit(self, step: Sequence[Record]) -> None:
        self._log.append(step)
        for record in step:
            self.book.apply(record)
        if self.listener is None:
            return
        for record in step:
            report = self._report(record)
            if report is not None:
                self.listener.on_report(report)

    def _report(self, record: Record) -> BrokerReport | None:
        what = record["do"]
        if what == "split":
            return None
        number = record["order"]["number"] if what in ("accept", "reject") else record["number"]
        order = self.book.orders[number]
        kind = record["state"] if what == "end" else _REPORTS.get(what)
        if kind is None or order.order_id is None:
            return None
        fill = None
        if what == "fill":
            fill = next(f for f in reversed(self.book.executions) if f.exec_id == record["exec_id"])
        reason = order.reason if what in ("reject", "end") else None
        ts = datetime.fromisoformat(record["ts"])
        return BrokerReport(kind, order.order_id, ts, number, fill, reason)


def _name(order: PaperOrder) -> str:
    return order.order_id or order.number

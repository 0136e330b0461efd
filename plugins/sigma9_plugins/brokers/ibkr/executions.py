"""Fills: made from executions and their commission reports alone, once each, also where IB tells them twice.

A commission report follows its execution a moment later; a fill waits for it, though not for long. One that comes
after that is reported by itself. An execution that corrects another has its id with a higher last part: it is a
fill in place of that one, whichever comes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from sigma9_core.contracts import BrokerReport
from sigma9_core.models import ZERO, Fill
from sigma9_plugins.brokers.ibkr.book import Book, Known
from sigma9_plugins.brokers.ibkr.contracts import name_of
from sigma9_plugins.brokers.ibkr.figures import amount, quantity
from sigma9_plugins.brokers.ibkr.recent import Recent

log = logging.getLogger("sigma9.ibkr")

LIVE: Final = -1
"""The request number of an execution that nobody asked for."""


def fill_of(contract: Any, execution: Any, order_id: str, commission: Decimal) -> Fill:
    """Make a fill; its time is that of the exchange."""
    moment = execution.time
    return Fill(
        exec_id=execution.execId,
        order_id=order_id,
        symbol=name_of(contract),
        side="buy" if execution.side == "BOT" else "sell",
        quantity=quantity(execution.shares),
        price=quantity(execution.price),
        commission=commission,
        ts=moment.astimezone(UTC) if isinstance(moment, datetime) else datetime.now(UTC),
        broker_order_id=str(execution.permId) if execution.permId else None,
        corrects=corrected_by(execution.execId),
    )


def corrected_by(exec_id: str) -> tuple[str, ...]:
    """Name the executions that this one corrects: `x.01` where it is `x.02`."""
    stem, dot, last = exec_id.rpartition(".")
    if not dot or not last.isdigit() or len(last) != 2:
        return ()
    return tuple(f"{stem}.{number:02d}" for number in range(1, int(last)))


class Executions:
    """Takes executions as they happen, and tells the fills of our orders."""

    def __init__(
        self,
        book: Book,
        report: Callable[[BrokerReport], None],
        acknowledge: Callable[[Known, datetime], None],
        look: Callable[[Known], None],
        patience: float,
    ) -> None:
        """Store; `look` has an order read back whose fills lack their commission."""
        self._book = book
        self._report = report
        self._acknowledge = acknowledge
        self._look = look
        self._patience = patience
        self._commissions = Recent[Decimal]()
        self._waiting: dict[str, tuple[Known, Fill, asyncio.TimerHandle]] = {}
        """Fills that wait for their commission report."""
        self._owed: dict[str, Fill] = {}
        """Fills that were told, or read back, without one."""
        self._read = Recent[None]()
        """Executions that were read back with their commission."""
        self._corrected = Recent[None]()
        """Executions that were corrected: they are not told any more."""

    # --- as it happens -----------------------------------------------------------------------------------------

    def on_execution(self, request: int, contract: Any, execution: Any, account: str = "") -> None:
        """Take an execution that nobody asked for; those that were asked for go to who asked."""
        if request != LIVE or (account and execution.acctNumber and execution.acctNumber != account):
            return
        known = self._known(execution)
        if known is None or execution.execId in known.executions or execution.execId in self._corrected:
            return  # a stranger's, or told twice, or too late
        if execution.permId:
            self._book.name(known, execution.permId, known.client_id, 0)
        fill = fill_of(contract, execution, known.order_id, self._commissions.get(execution.execId, ZERO))
        self._take(known, fill)
        if fill.exec_id in self._commissions or self._patience == 0:
            self._tell(known, fill)
            return
        timer = asyncio.get_running_loop().call_later(self._patience, self._late, fill.exec_id)
        self._waiting[fill.exec_id] = (known, fill, timer)

    def on_commission(self, report: Any) -> None:
        """Take a commission report."""
        commission = amount(report.commission)
        if commission is None:
            return
        exec_id = report.execId
        self._commissions[exec_id] = commission
        waiting = self._waiting.pop(exec_id, None)
        if waiting is not None:
            known, fill, timer = waiting
            timer.cancel()
            self._tell(known, replace(fill, commission=commission))
        owed = self._owed.pop(exec_id, None)
        if owed is not None:
            self._tell_commission(replace(owed, commission=commission))

    def flush(self, known: Known | None = None) -> None:
        """Tell now what waits for its commission: of one order, which is about to end, or all."""
        for exec_id, (of, _, timer) in tuple(self._waiting.items()):
            if known is None or of is known:
                timer.cancel()
                self._late(exec_id)

    def owes(self, known: Known) -> bool:
        """Tell whether an order has fills whose commission was not told."""
        return any(fill.order_id == known.order_id for fill in self._owed.values())

    def has_commission(self, exec_id: str) -> bool:
        """Tell whether the commission report of an execution has come."""
        return exec_id in self._commissions

    def read_back(self, contract: Any, execution: Any, *, ours: bool) -> Fill:
        """Make the fill that a read-back shows: whoever asked for it counts it, so it is not told again.

        A fill that waits for its commission is told all the same: who counts by execution ids counts it once.
        """
        exec_id = execution.execId
        known = self._known(execution) if ours else None
        order_id = execution.orderRef or ("" if known is None else known.order_id)
        fill = fill_of(contract, execution, order_id if ours else "", self._commissions.get(exec_id, ZERO))
        if not fill.order_id:
            return fill
        if exec_id not in self._commissions:
            self._owed[exec_id] = fill
        elif exec_id not in self._read:
            self._read[exec_id] = None
            self._tell_commission(fill)  # it may have been counted without, also by an earlier process
        self._take(known, fill)
        return fill

    # --- inside ------------------------------------------------------------------------------------------------

    def _known(self, execution: Any) -> Known | None:
        if execution.orderRef:
            return self._book.by_id(execution.orderRef)
        return self._book.find(perm_id=execution.permId, client_id=execution.clientId, number=execution.orderId)

    def _late(self, exec_id: str) -> None:
        waiting = self._waiting.pop(exec_id, None)
        if waiting is not None:
            known, fill, _ = waiting
            self._owed[exec_id] = fill
            self._tell(known, fill)
            self._look(known)

    def _tell(self, known: Known, fill: Fill) -> None:
        self._acknowledge(known, fill.ts)
        self._report(BrokerReport("filled", known.order_id, fill.ts, known.broker_order_id, fill))

    def _tell_commission(self, fill: Fill) -> None:
        self._report(BrokerReport("commission", fill.order_id, fill.ts, fill.broker_order_id, fill))

    def _take(self, known: Known | None, fill: Fill) -> None:
        """Note an execution, in place of those that it corrects: what waits of them is told no more."""
        if known is not None and fill.exec_id not in self._corrected:
            known.executions[fill.exec_id] = fill.quantity
        for old in fill.corrects:
            if old in self._corrected:
                continue
            self._corrected[old] = None
            log.warning("execution %s of order %s was corrected by %s", old, fill.order_id, fill.exec_id)
            self._owed.pop(old, None)
            if known is not None and (wrong := known.executions.pop(old, None)) is not None:
                known.told = max(
                    known.told - wrong + fill.quantity, ZERO
                )  # the status was told before it was put right
            if (waiting := self._waiting.pop(old, None)) is not None:
                waiting[2].cancel()

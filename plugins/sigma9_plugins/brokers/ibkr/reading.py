"""Read-backs: what works, what has ended and what was traded, as TWS tells it when it is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sigma9_core.clock import monotonic
from sigma9_core.contracts import BrokerOrder
from sigma9_core.models import Fill
from sigma9_plugins.brokers.ibkr.asking import Answer, Asking
from sigma9_plugins.brokers.ibkr.book import ENDS, Known, learn
from sigma9_plugins.brokers.ibkr.contracts import Contracts
from sigma9_plugins.brokers.ibkr.executions import corrected_by
from sigma9_plugins.brokers.ibkr.figures import amount, quantity
from sigma9_plugins.brokers.ibkr.mapping import State, from_ib, moment_of, state_of
from sigma9_plugins.brokers.ibkr.orders import Orders
from sigma9_plugins.brokers.ibkr.wire import Handler, Wire

log = logging.getLogger("sigma9.ibkr")


class _Shown:
    """What the messages of one read say of one order."""

    def __init__(self, number: int, contract: Any, order: Any, status: str) -> None:
        self.number, self.contract, self.order, self.status = number, contract, order, status
        self.filled: Decimal | None = None


class Reading:
    """Reads back over one connection."""

    def __init__(
        self, wire: Wire, asking: Asking, orders: Orders, contracts: Contracts, *, account: str, patience: float
    ) -> None:
        self._wire = wire
        self._asking = asking
        self._orders = orders
        self._contracts = contracts
        self._account = account
        self._patience = patience

    async def open_orders(self) -> list[BrokerOrder]:
        """Read what works in the account, sent by whomever; a foreign order has no id of ours."""
        asked_at = monotonic()
        listed = [self._listed(each, asked_at) for each in await self._open()]
        shown = [each for each in listed if each is not None]
        self._orders.release({each.order_id for each in shown if each.order_id})
        return shown

    async def completed_orders(self, since: datetime) -> list[BrokerOrder]:
        """Read what has ended since; IB keeps a day of it."""

        def handlers(answer: Answer[tuple[Any, Any, Any]]) -> dict[str, Handler]:
            def take(contract: Any, order: Any, state: Any) -> None:
                if self._is_mine(order.account):
                    answer.items.append((contract, order, state))

            return {"completedOrder": take, "completedOrdersEnd": answer.finish}

        told = await self._asking.single("completed orders", handlers, ("reqCompletedOrders", (False,)))
        found: dict[str, BrokerOrder] = {}
        for contract, order, state in told:
            ended = moment_of(state.completedTime)
            if ended is not None and ended < since:
                continue
            end = ended_as(state.status, state.completedStatus)
            filled, total = quantity(order.filledQuantity), quantity(order.totalQuantity)
            if end == "filled" and not filled:
                filled = total
            shown = from_ib(
                contract,
                order,
                order_id=order.orderRef if self._orders.book.is_ours(order.orderRef) else None,
                state=end,
                filled=filled,
                total=max(total, filled),  # of a completed order IB tells what remains: nothing
                reason=" ".join(str(state.completedStatus).split()) or None,
            )
            found[shown.broker_order_id] = shown
        return list(found.values())

    async def executions(self, since: datetime) -> list[Fill]:
        """Read the executions since, oldest first; IB keeps those of the day."""
        told = await self._executions()
        fills = [
            self._orders.executions.read_back(contract, execution, ours=self._is_ours(execution))
            for contract, execution in told
            if _moment(execution) >= since
        ]
        return sorted(fills, key=lambda fill: fill.ts)

    async def settle(self, doubted: Sequence[Known]) -> None:
        """Look what became of orders, and tell it where it is sure."""
        asked_at = monotonic()
        listed = {each.order.orderRef: each for each in await self._open() if _is_open(each.status)}
        for known in doubted:
            if known.ended_at < asked_at:
                known.back = False
            if known.order_id in listed:
                each = listed[known.order_id]
                self._orders.shown(known, each.status, each.order, asked_at)
        owes = self._orders.executions.owes
        if any(known.told > known.counted or owes(known) for known in doubted):
            for contract, execution in await self._executions():
                self._orders.executions.on_execution(-1, contract, execution, self._account)
        gone = [known for known in doubted if known.order_id not in listed and known.end is None]
        if not gone:
            return
        ended = {each.order_id: each for each in await self.completed_orders(datetime.min.replace(tzinfo=UTC))}
        for known in gone:
            found = ended.get(known.order_id)
            end = None if found is None else ENDS.get(found.state)
            if found is not None and end is not None:
                self._orders.settle(known, end, found.reason)
            elif known.inactive and known.end is None:
                self._orders.inactive(known)

    # --- inside ------------------------------------------------------------------------------------------------

    async def _open(self) -> list[_Shown]:
        def handlers(answer: Answer[_Shown]) -> dict[str, Handler]:
            shown: dict[object, _Shown] = {}

            def key(perm_id: int, client_id: int, number: int) -> object:
                return perm_id or (client_id, number)

            def take(number: int, contract: Any, order: Any, state: Any) -> None:
                if order.whatIf or not self._is_mine(order.account):
                    return
                name = key(order.permId, order.clientId, number)
                filled = shown[name].filled if name in shown else None
                shown[name] = _Shown(number, contract, order, state.status)
                shown[name].filled = filled

            def status(number: int, word: str, filled: float, *more: Any) -> None:
                perm_id, client_id = int(more[2]), int(more[5])
                each = shown.get(key(perm_id, client_id, number))
                if each is not None:
                    each.status, each.filled = word, quantity(filled)

            def end() -> None:
                answer.items.extend(shown.values())
                answer.finish()

            return {"openOrder": take, "orderStatus": status, "openOrderEnd": end}

        return await self._asking.single("open orders", handlers, ("reqAllOpenOrders", ()))

    def _listed(self, shown: _Shown, asked_at: float) -> BrokerOrder | None:
        """Give an order that is listed; None for one that works no more, as far as IB says."""
        order, state = shown.order, state_of(shown.status)
        if not _is_open(shown.status):
            return None
        self._contracts.seen(self._wire.library, shown.contract)
        known = learn(self._orders.book, order, shown.number)
        if known is not None:
            known.parent = order.parentId or known.parent
            if state == "working" and not known.held:
                known.acknowledged = True  # whoever asks learns it by the answer
            self._orders.shown(known, shown.status, order, asked_at)
            if state == "held" and known.end is not None:
                return None  # it was turned down, and IB still has it in its list
        parent = (
            self._orders.book.find(client_id=order.clientId, number=order.parentId) if order.parentId else None
        )
        filled = shown.filled
        if filled is None:
            filled = amount(order.filledQuantity) or Decimal(0)
        return from_ib(
            shown.contract,
            order,
            order_id=None if known is None else known.order_id,
            state="held" if state == "held" else "working",
            filled=filled,
            parent_id=None if parent is None else parent.order_id,
            reason=None if known is None or state != "held" else known.said,
        )

    async def _executions(self) -> list[tuple[Any, Any]]:
        def handlers(answer: Answer[tuple[Any, Any]], number: int) -> dict[str, Handler]:
            def take(request: int, contract: Any, execution: Any) -> None:
                if request == number and self._is_mine(execution.acctNumber):
                    answer.items.append((contract, execution))

            def end(request: int) -> None:
                if request == number:
                    answer.finish()

            return {"execDetails": take, "execDetailsEnd": end}

        wanted = self._wire.library.execution_filter(acctCode=self._account)
        told = await self._asking.numbered(
            "executions", handlers, lambda number: ("reqExecutions", (number, wanted))
        )
        newest = {execution.execId: (contract, execution) for contract, execution in told}
        for exec_id in [*newest]:
            for wrong in corrected_by(exec_id):  # it counts no more
                newest.pop(wrong, None)
        await self._commissions([*newest])
        return list(newest.values())

    async def _commissions(self, exec_ids: Sequence[str]) -> None:
        """Wait a moment for the commission reports, which follow the executions."""
        executions = self._orders.executions
        missing = {exec_id for exec_id in exec_ids if not executions.has_commission(exec_id)}
        if not missing or not self._patience:
            return
        done = asyncio.get_running_loop().create_future()

        def take(report: Any) -> None:
            missing.discard(report.execId)
            if not missing and not done.done():
                done.set_result(None)

        with self._wire.listening({"commissionReport": take}):
            try:
                async with asyncio.timeout(self._patience):
                    await done
            except TimeoutError:
                pass  # they are reported when they come

    def _is_ours(self, execution: Any) -> bool:
        book = self._orders.book
        return (
            book.is_ours(execution.orderRef, execution.clientId) or book.find(perm_id=execution.permId) is not None
        )

    def _is_mine(self, account: str) -> bool:
        return not account or account == self._account


def _is_open(status: str) -> bool:
    """Tell whether an order may still trade: it works, or IB holds it."""
    return state_of(status) in ("working", "held")


def ended_as(status: str, words: str) -> State:
    """Tell how a completed order has ended, by its status and IB's words on it."""
    told = words.lower()
    if status == "Filled":
        return "filled"
    if "reject" in told or status in ("Rejected", "Inactive"):
        return "rejected"
    return "expired" if "expire" in told else "cancelled"


def _moment(execution: Any) -> datetime:
    moment = execution.time
    return moment if isinstance(moment, datetime) else datetime.now(UTC)

"""The broker plugin of the exchange in another process: contracts.Broker over a socket.

A connection that breaks, or an answer that does not come, leaves the outcome of an order unknown, and it says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sigma9_core.contracts import (
    BrokerAccount,
    BrokerHealth,
    BrokerListener,
    BrokerOrder,
    BrokerPosition,
    BrokerReport,
)
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import ApprovedOrder, Fill, Frozen

ANSWER: Final = 0.6
"""Seconds until the silence on an order, a change or a cancel is an error."""
READ: Final = 10.0
"""Seconds that a read-back may take."""
LONGEST_LINE: Final = 64 * 1024 * 1024
UP: Final = BrokerHealth("up", "up", "up")

_DECIMALS: Final = frozenset(
    ("quantity", "filled_quantity", "limit_price", "stop_price", "trail_amount", "trail_percent", "price")
) | {"commission", "average_cost", "cash"}
_TERMS: Final = ("symbol", "side", "order_type", "time_in_force", "oca_group", "parent_id")
_AMOUNTS: Final = ("quantity", "limit_price", "stop_price", "trail_amount", "trail_percent")


class ExchangeConfig(Frozen):
    """Settings of the broker."""

    port: int
    at_once: bool = False
    """The exchange takes in what is sent the moment that it comes: what a read-back lacks is not there."""


class ExchangeBroker:
    """One client of the exchange; lives on the money lane."""

    def __init__(self, config: ExchangeConfig) -> None:
        self.health = BrokerHealth()
        self.immediate = config.at_once
        self._port = config.port
        self._listener: BrokerListener | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._count = 0

    # --- connection ---------------------------------------------------------------------------------------------

    async def connect(self, listener: BrokerListener) -> None:
        """Connect; a connection that is still there is given up for the new one."""
        await self._hang_up()
        try:
            reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=LONGEST_LINE)
        except OSError as error:
            raise BrokerError(f"the exchange can't be reached: {error.strerror or error}") from error
        self._listener = listener
        self._reading = asyncio.get_running_loop().create_task(self._read(reader), name="exchange-reader")
        await self._ask("hello", READ, role="broker", at_once=self.immediate)
        self._tell_health(UP)

    async def disconnect(self) -> None:
        """Disconnect; working orders stay at the exchange."""
        await self._hang_up()
        self._tell_health(BrokerHealth())
        self._listener = None

    # --- orders -------------------------------------------------------------------------------------------------

    async def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Send orders as one unit; raise BrokerRefused where nothing has left, BrokerError where nobody knows."""
        await self._ask("submit", ANSWER, orders=[_body(order) for order in orders])

    async def replace(self, order: ApprovedOrder) -> None:
        """Change a working order; raise BrokerRefused where it stays as it is."""
        await self._ask("replace", ANSWER, order=_body(order))

    async def cancel(self, order_id: str) -> None:
        """Cancel a working order, one by hand by the exchange's number of it."""
        await self._ask("cancel", ANSWER, id=order_id)

    # --- reading back -------------------------------------------------------------------------------------------

    async def open_orders(self) -> Sequence[BrokerOrder]:
        """Read back what works."""
        return [BrokerOrder(**_typed(body)) for body in await self._ask("open_orders", READ)]

    async def completed_orders(self, since: datetime) -> Sequence[BrokerOrder]:
        """Read back what has ended."""
        found = await self._ask("completed_orders", READ, since=_moment(since))
        return [BrokerOrder(**_typed(body)) for body in found]

    async def executions(self, since: datetime) -> Sequence[Fill]:
        """Read back the executions."""
        return [_fill(body) for body in await self._ask("executions", READ, since=_moment(since))]

    async def positions(self) -> Sequence[BrokerPosition]:
        """Read back the positions."""
        return [BrokerPosition(**_typed(body)) for body in await self._ask("positions", READ)]

    async def account(self) -> BrokerAccount:
        """Read back the account."""
        return BrokerAccount(**_typed(await self._ask("account", READ)))

    # --- inside -------------------------------------------------------------------------------------------------

    async def _ask(self, what: str, within: float, **more: Any) -> Any:
        """Send a message and wait for its answer."""
        if self._writer is None or self._writer.is_closing():
            raise BrokerRefused("the exchange is not connected: await connect() first")
        self._count += 1
        number = self._count
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._write({"op": what, "n": number, **more})
            async with asyncio.timeout(within):
                return self._body_of(what, await answer)
        except TimeoutError as error:
            raise BrokerError(f"{what}: the exchange did not answer within {within:g} s") from error
        finally:
            self._waiting.pop(number, None)

    def _write(self, message: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")

    def _body_of(self, what: str, answer: dict[str, Any]) -> Any:
        if answer["ok"]:
            return answer["body"]
        if answer["code"] == "refused":
            raise BrokerRefused(f"{what}: {answer['message']}")
        raise BrokerError(f"{what}: {answer['message']}")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):  # it ends as any other connection does
            async for line in reader:
                if line.endswith(b"\n"):
                    self._take(json.loads(line))
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._fail_waiting()
        self._tell_health(BrokerHealth())

    def _take(self, message: dict[str, Any]) -> None:
        """Take a message of the exchange: an answer, a report, or how its link is."""
        if "report" in message:
            if self._listener is not None:
                self._listener.on_report(_report(message["report"]))
        elif "health" in message:
            self._tell_health(BrokerHealth(**message["health"]))
        else:
            waiting = self._waiting.get(message["n"])
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    async def _hang_up(self) -> None:
        """Close what is open, without a word to the listener."""
        task, self._reading = self._reading, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(BrokerError("the connection to the exchange broke before the answer came"))

    def _tell_health(self, health: BrokerHealth) -> None:
        self.health = health
        if self._listener is not None:
            self._listener.on_health(health)


def _body(order: ApprovedOrder) -> dict[str, Any]:
    """Write an order as the exchange takes it."""
    ask = order.request
    amounts = {name: getattr(ask, name) for name in _AMOUNTS}
    return {
        "order_id": order.order_id,
        **{name: getattr(ask, name) for name in _TERMS},
        **{name: None if amount is None else str(amount) for name, amount in amounts.items()},
    }


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


def _typed(body: dict[str, Any]) -> dict[str, Any]:
    """Turn the text of amounts into decimals."""
    return {
        name: Decimal(value) if name in _DECIMALS and value is not None else value for name, value in body.items()
    }


def _fill(body: dict[str, Any]) -> Fill:
    return Fill(**{**_typed(body), "ts": datetime.fromisoformat(body["ts"])})


def _report(body: dict[str, Any]) -> BrokerReport:
    return BrokerReport(
        kind=body["kind"],
        order_id=body["order_id"],
        ts=datetime.fromisoformat(body["ts"]),
        broker_order_id=body["broker_order_id"],
        fill=None if body["fill"] is None else _fill(body["fill"]),
        reason=body["reason"],
    )

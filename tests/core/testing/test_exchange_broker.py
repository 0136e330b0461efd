"""The exchange in another process and its broker plugin keep to the broker contract, and its faults are faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.clock import EPOCH
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import ApprovedOrder, OrderRequest
from sigma9_core.testing.broker_contract import UP, BrokerContract, BrokerRoom, Recorder
from sigma9_core.testing.exchange.broker import ExchangeBroker, ExchangeConfig, _body
from sigma9_core.testing.exchange.control import ExchangeProcess
from sigma9_core.testing.exchange.faults import Faults
from sigma9_core.testing.orders import approve, request


class ExchangeRoom(BrokerRoom):
    """A client of the exchange, and the exchange's other side."""

    def __init__(self, exchange: ExchangeProcess, *, at_once: bool) -> None:
        self.broker: ExchangeBroker = ExchangeBroker(ExchangeConfig(port=exchange.port, at_once=at_once))
        self.exchange = exchange
        self.heard = Recorder()

    def now(self) -> datetime:
        """Tell the time."""
        return datetime.now(UTC)

    async def ask(self, what: str, **more: Any) -> Any:
        """Ask the exchange, and let the client hear what it said before."""
        answer = await asyncio.to_thread(self.exchange.ask, what, **more)
        if self.broker.health.socket == "up":
            await self.broker.account()  # on the same line, behind every report
        return answer

    async def move(self, symbol: str, price: float) -> None:
        """Trade at a price."""
        await self.ask("trade", symbol=symbol, price=str(price))

    async def thin(self, symbol: str, price: float, quantity: int) -> None:
        """Trade so many shares."""
        await self.ask("trade", symbol=symbol, price=str(price), depth=quantity)

    async def place_by_hand(self, wanted: OrderRequest) -> None:
        """Place an order past the client."""
        await self.ask("by_hand", order=_body(approve(wanted)))


@pytest.fixture(name="process", scope="module")
def _process() -> Iterator[ExchangeProcess]:
    """Start one exchange for the tests of its faults."""
    with ExchangeProcess(seed=1) as exchange:
        yield exchange


@asynccontextmanager
async def open_exchange(*, at_once: bool) -> AsyncIterator[ExchangeRoom]:
    """Open a new exchange and a client that is connected to it."""
    with ExchangeProcess(seed=1) as exchange:
        room = ExchangeRoom(exchange, at_once=at_once)
        await room.broker.connect(room.heard)
        yield room
        await room.broker.disconnect()


class TestContract(BrokerContract):
    """With an exchange that may show things late."""

    def open_room(self, folder: Path) -> AbstractAsyncContextManager[BrokerRoom]:
        """Open a new exchange."""
        return open_exchange(at_once=False)


async def connected(process: ExchangeProcess, *, at_once: bool = False, **rates: Any) -> ExchangeRoom:
    """Connect a client of its own to the exchange, with these faults."""
    room = ExchangeRoom(process, at_once=at_once)
    await room.broker.connect(room.heard)
    await room.ask("faults", rates=rates)
    return room


def named(room: ExchangeRoom, symbol: str, **more: Any) -> ApprovedOrder:
    """Make an order under an id that no other test uses."""
    return approve(request(symbol, "buy", 10, **more), f"{symbol}-{len(room.exchange.ask('dump')['orders'])}")


async def test_a_lost_answer_leaves_the_outcome_open(process: ExchangeProcess) -> None:
    """An answer that is dropped raises BrokerError, never BrokerRefused, and the order is there all the same."""
    room = await connected(process, answer_drop=1.0)
    order = named(room, "LOST")

    with pytest.raises(BrokerError) as error:
        await room.broker.submit([order])

    assert not isinstance(error.value, BrokerRefused)
    assert await room.working(order) is not None
    await room.broker.disconnect()


async def test_reports_get_lost_and_doubled_and_read_backs_do_not(process: ExchangeProcess) -> None:
    """A dropped report is never heard and a doubled one twice; the executions tell the fill once each time."""
    for times in (0, 2):
        room = await connected(process, drop=float(times == 0), double=float(times == 2))
        order = named(room, f"TWICE{times}")
        await room.broker.submit([order])
        await room.move(order.request.symbol, 10)
        fills = [fill for fill in await room.broker.executions(EPOCH) if fill.order_id == order.order_id]

        assert len(room.heard.fills(order.order_id)) == times
        assert len(fills) == 1
        await room.broker.disconnect()


async def test_a_report_comes_behind_the_next_one(process: ExchangeProcess) -> None:
    """Reports that change places are all heard, and the first is not the first."""
    room = await connected(process, reorder=1.0, late=0.05)
    order = named(room, "TURN")
    await room.broker.submit([order])
    await room.ask("faults", rates={})
    await room.move("TURN", 10)
    await room.until(lambda: len(room.heard.kinds(order.order_id)) == 2, "both reports")

    assert room.heard.kinds(order.order_id) == ["filled", "accepted"]
    await room.broker.disconnect()


async def test_an_order_on_its_way_arrives_after_its_sender_has_gone(process: ExchangeProcess) -> None:
    """A read-back does not show what the intake holds; it arrives later, though nobody is connected any more."""
    room = await connected(process, intake=1.0, late=0.4)
    order = named(room, "SLOW")
    sending = asyncio.create_task(room.broker.submit([order]))
    await asyncio.sleep(0)
    seen = [each.order_id for each in await room.broker.open_orders()]
    await room.broker.disconnect()
    with pytest.raises(BrokerError):
        await sending
    await room.until(
        lambda: any(each["order_id"] == order.order_id for each in process.ask("dump")["orders"]), "the order"
    )

    assert order.order_id not in seen


async def test_a_new_session_sees_what_the_old_one_sent(process: ExchangeProcess) -> None:
    """A client that is taken in at once finds what the one before it had sent a moment ago."""
    before = await connected(process, intake=1.0, late=5.0)
    order = named(before, "HEIR")
    sending = asyncio.create_task(before.broker.submit([order]))
    await before.until(lambda: process.ask("dump")["waiting"] == 1, "the order in the intake")
    after = await connected(process, at_once=True)

    assert await after.working(order) is not None
    with pytest.raises(BrokerError):
        await sending
    await after.broker.disconnect()


async def test_half_a_message_never_arrived(process: ExchangeProcess) -> None:
    """A message that its sender could not end is no message."""
    room = await connected(process)
    order = named(room, "HALF")
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    hello = {"op": "hello", "role": "broker", "at_once": True, "n": 1}
    line = json.dumps({"op": "submit", "n": 2, "orders": [_body(order)]}).encode()
    writer.write(json.dumps(hello).encode() + b"\n" + line[: len(line) // 2])
    assert json.loads(await reader.readline())["ok"]
    writer.close()
    await writer.wait_closed()

    assert order.order_id not in [each["order_id"] for each in process.ask("dump")["orders"]]
    await room.broker.disconnect()


async def test_a_link_that_was_away_is_told(process: ExchangeProcess) -> None:
    """While the link behind the connection is away its health says so, reports are lost, and then it is back."""
    room = await connected(process, outage=1.0, late=0.2)
    await room.ask("run", every=0.02, step=0.0, base={"AWAY": 10.0}, busts=[])
    await room.until(lambda: any(health.link == "down" for health in room.heard.healths), "the outage")
    await room.ask("faults", rates={})
    await room.ask("hold")
    await room.until(lambda: room.heard.healths[-1] == UP, "the end of the outage")

    assert room.broker.health == UP
    await room.broker.disconnect()


async def test_a_cut_is_told(process: ExchangeProcess) -> None:
    """A connection that the exchange closes is known at once, and a new one works."""
    room = await connected(process, cut=1.0)
    await asyncio.to_thread(process.ask, "run", every=0.02, step=0.0, base={"CUT": 10.0}, busts=[])
    await room.until(lambda: room.heard.healths[-1].socket == "down", "the cut")
    await asyncio.to_thread(process.ask, "faults", rates={})
    await asyncio.to_thread(process.ask, "hold")
    with pytest.raises(BrokerRefused):
        await room.broker.submit([named(room, "CUT")])

    await room.broker.connect(room.heard)
    assert (await room.broker.account()).account == "EXCHANGE"
    await room.broker.disconnect()


async def test_a_trade_is_taken_back(process: ExchangeProcess) -> None:
    """A trade that is taken back is reported with its execution; position and cash are as before it."""
    room = await connected(process)
    cash = (await room.broker.account()).cash
    order = named(room, "BUST")
    await room.broker.submit([order])
    await room.move("BUST", 10)
    (fill,) = room.heard.fills(order.order_id)
    await room.ask("bust", exec_id=fill.exec_id)

    assert room.heard.kinds(order.order_id) == ["accepted", "filled", "busted"]
    assert "BUST" not in [position.symbol for position in await room.broker.positions()]
    assert (await room.broker.account()).cash == cash
    assert fill.exec_id not in [each.exec_id for each in await room.broker.executions(EPOCH)]
    await room.broker.disconnect()


async def test_the_faults_follow_from_the_seed() -> None:
    """The same seed gives the same faults in the same places, another seed others."""

    def drawn(seed: int) -> list[bool]:
        faults = Faults(seed)
        faults.set({"drop": 0.3, "delay": 0.5})
        return [faults.strikes("drop") for _ in range(50)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)

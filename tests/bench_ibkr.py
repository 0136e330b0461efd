"""Measure what an order costs on its way to TWS, beside the bare library in the same run.

python tests/bench_ibkr.py [--orders 500]

bare     `IB.placeOrder` of the library alone, to the bytes at the socket
broker   our `submit`, to the same
desk     the order desk: risk gate, durable intent, `submit`, to the same; and how much of it is the journal's

All against a TWS in this process, in turns, so that the machine is the same for each. The pace of 50 messages a
second is switched off here for both.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from sigma9_core.calendar import Calendar
from sigma9_core.clock import LiveClock
from sigma9_core.contracts import PluginContext
from sigma9_core.models import OrderRequest, Session
from sigma9_core.money.gate import GuardedRule
from sigma9_core.money.journal import Journal
from sigma9_core.money.latch import Latch
from sigma9_core.money.path import MoneyPath
from sigma9_core.testing.broker_contract import Recorder
from sigma9_core.testing.money_room import AllowAll
from sigma9_core.testing.orders import approve
from sigma9_core.testing.tws import FakeTws
from sigma9_plugins.brokers.ibkr import library
from sigma9_plugins.brokers.ibkr.broker import IbkrBroker
from sigma9_plugins.brokers.ibkr.settings import IbkrConfig
from sigma9_plugins.testing.ibkr_room import context

UNLIMITED = 1_000_000
LIMIT = 0.001
"""Seconds that ours may add at the median."""
REQUEST = OrderRequest(
    symbol="AAPL", side="buy", quantity=Decimal(10), order_type="limit", limit_price=Decimal("1.5"), source="api"
)


class Stopwatch:
    """Tells when bytes are handed to a socket."""

    def __init__(self, connection: Any) -> None:
        self.at = 0.0
        send = connection.sendMsg

        def stamped(message: bytes) -> None:
            send(message)
            self.at = perf_counter()

        connection.sendMsg = stamped


async def bare(tws: FakeTws) -> tuple[Callable[[], Awaitable[float]], Callable[[], None]]:
    """Connect the library alone."""
    module = importlib.import_module(library.load().name)
    ib = module.IB()
    ib.client.MaxRequests = 0
    await ib.connectAsync(tws.host, tws.port, clientId=9)
    watch = Stopwatch(ib.client.conn)
    contract = module.Stock("AAPL", "SMART", "USD")
    await ib.qualifyContractsAsync(contract)

    async def one() -> float:
        order = module.LimitOrder(
            "BUY", 10, 1.5, tif="DAY", outsideRth=False, orderRef="bare", account="DU1234567"
        )
        begun = perf_counter()
        ib.placeOrder(contract, order)
        return watch.at - begun

    return one, ib.disconnect


async def ours(tws: FakeTws) -> tuple[Callable[[], Awaitable[float]], IbkrBroker]:
    """Connect the broker."""
    broker = IbkrBroker(IbkrConfig.model_construct(messages_per_second=UNLIMITED), context(tws))
    await broker.connect(Recorder())
    await broker.instrument("AAPL")
    watch = _watched(broker)

    async def one() -> float:
        order = approve(REQUEST)
        begun = perf_counter()
        await broker.submit([order])
        return watch.at - begun

    return one, broker


def _watched(broker: IbkrBroker) -> Stopwatch:
    connection = broker._connection
    assert connection is not None
    return Stopwatch(connection.wire._client.conn)


async def measure(orders: int, folder: Path) -> None:
    """Measure in turns, and print."""
    now = datetime.now(UTC)
    async with FakeTws() as tws:
        tws.hold_fills()
        bare_one, bare_end = await bare(tws)
        broker_one, broker = await ours(tws)
        third = IbkrBroker(
            IbkrConfig.model_construct(messages_per_second=UNLIMITED),
            context(tws, client_id=20),
        )
        journal = Journal(f"sqlite:///{folder / 'journal.db'}", "main", lambda _events: None)
        latch = Latch(folder / "kill.latch")
        journal.open()
        latch.create()
        plugin: PluginContext = context(tws)
        path = MoneyPath(
            settings=plugin.settings,
            clock=LiveClock(),
            calendar=Calendar(
                "XNYS", [Session(f"{now:%Y-%m-%d}", now - timedelta(hours=1), now + timedelta(hours=6))]
            ),
            journal=journal,
            latch=latch,
            broker=third,
            rules=[GuardedRule(AllowAll())],
            snapshot={},
            show=lambda _bodies: None,
            on_change=lambda _part: None,
            on_kill=lambda _key: None,
        )
        await path.start()
        path.link.connect()
        await path.link.wait_ready()
        watch = _watched(third)
        writing: list[float] = []
        commit = journal.commit

        async def timed(records: Any) -> None:
            begun = perf_counter()
            await commit(records)
            writing.append(perf_counter() - begun)

        path.desk.journal.commit = timed  # type: ignore[method-assign, assignment]

        async def desk_one() -> float:
            begun = perf_counter()
            await path.desk.submit([REQUEST])
            return watch.at - begun

        ways = {"bare": bare_one, "broker": broker_one, "desk": desk_one}
        took: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(orders + 20):
            for name, one in ways.items():
                seconds = await one()
                if number >= 20:  # the first ones warm up
                    took[name].append(seconds)
                await asyncio.sleep(0.002)  # the answers are read meanwhile
        await path.stop()
        journal.close()
        latch.close()
        await broker.disconnect()
        bare_end()
    took["its journal"] = writing[20:]
    print(f"{library.load().name} {library.load().version}, {orders} orders each; milliseconds to the socket")
    for name, times in took.items():
        print(f"  {name:<12} median {median(times) * 1e3:7.3f}   99 % {quantiles(times, n=100)[98] * 1e3:7.3f}")
    more = median(took["broker"]) - median(took["bare"])
    print(f"  ours above the bare library: {more * 1e3:+.3f} (at most {LIMIT * 1e3:g})")
    rest = median(took["desk"]) - median(took["its journal"]) - median(took["bare"])
    print(f"  the desk without its journal above the bare library: {rest * 1e3:+.3f}")
    assert more <= LIMIT, "an order costs more than it may"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=500)
    logging.getLogger().setLevel(logging.ERROR)
    library.load()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(parser.parse_args().orders, Path(folder)))


if __name__ == "__main__":
    main()

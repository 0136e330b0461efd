"""Measure what the simulated feed, the replay feed and the paper broker cost; run by hand, not a test.

python tests/bench_feeds.py: a simulated session with 50 symbols, alone and with a broker, and a replay.
"""

# ruff: noqa: T201
from __future__ import annotations

import asyncio
import tempfile
from datetime import date
from pathlib import Path
from time import process_time
from typing import Any

from sigma9_core.clock import SteppedClock
from sigma9_core.contracts import PluginContext
from sigma9_core.testing.broker_contract import Recorder
from sigma9_core.testing.orders import approve, request
from sigma9_plugins.brokers.paper import PaperBroker, PaperConfig
from sigma9_plugins.testing.market_room import at, calendar, context, replay, simulated

DAY = date(2026, 3, 2)


async def drive(feed: Any, broker: PaperBroker | None, clock: SteppedClock) -> tuple[int, int, float]:
    """Take a session's slices, and give them to the broker; tell slices, items and seconds of processor time."""
    known = calendar()
    slices = items = 0
    begun = process_time()
    async for data in feed.slices():
        clock.advance(data.ts)
        slices += 1
        items += len(data.quotes) + len(data.trades) + len(data.bars)
        if broker is not None:
            await broker.on_market(data, known.at(data.ts))
        if data.ts >= at(DAY, 16):
            break
    return slices, items, process_time() - begun


def told(what: str, slices: int, items: int, seconds: float, market: float) -> None:
    """Print one line."""
    share = 100 * seconds / (market / 60)
    counts = f"{slices:6} slices {items:8} items {seconds:6.2f} s"
    print(f"{what:42} {counts}  {market / seconds:8.0f} x  {share:5.2f} % at 60 x")


async def main() -> None:
    """Measure."""
    feed = simulated(start=DAY, start_time="09:30")
    symbols = list(feed.symbols)[:50]
    for working in (None, 0, 100):
        feed = simulated(start=DAY, start_time="09:30")
        await feed.connect(None)
        feed.subscribe(frozenset(symbols))
        clock, broker = SteppedClock("simulated", at(DAY, 9, 30)), None
        if working is not None:
            with tempfile.TemporaryDirectory() as folder:
                plain = context("paper")
                made = PluginContext("paper", plain.settings, clock, plain.calendar, Path(folder))
                broker = PaperBroker(PaperConfig(), made)
                await broker.connect(Recorder())
                for n in range(working):
                    terms = {"order_type": "limit", "limit_price": 0.5, "time_in_force": "gtc"}
                    await broker.submit([approve(request(symbols[n % 50], "buy", 100, **terms))])
                figures = await drive(feed, broker, clock)
                await broker.disconnect()
        else:
            figures = await drive(feed, None, clock)
        name = "simulated, 50 symbols" + ("" if working is None else f", paper, {working} orders")
        told(name, *figures, 6.5 * 3600)
    with tempfile.TemporaryDirectory() as folder:
        import polars as pl

        day = simulated()
        await day.connect(at(DAY, 16))
        rows = [
            (bar.symbol, bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume)
            for symbol in symbols
            for bar in day.minute_bars(symbol, at(DAY, 16), 390)
        ]
        columns = ["symbol", "ts", "open", "high", "low", "close", "volume"]
        file = Path(folder) / "bars.parquet"
        pl.DataFrame(rows, schema=columns, orient="row").write_parquet(file)
        again = replay(files=[file], stamp="start")
        await again.connect(None)
        told("replay, 50 symbols", *await drive(again, None, SteppedClock("replay", at(DAY, 9, 30))), 6.5 * 3600)


if __name__ == "__main__":
    asyncio.run(main())

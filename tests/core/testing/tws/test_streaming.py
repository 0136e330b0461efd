"""A real client takes market data, bars and history from the peer."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from sigma9_core.testing.tws import FakeTws
from sigma9_core.testing.tws.history import Bar


async def test_market_data(ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A subscriber sees the quote, then what changes, until it cancels."""
    ticker = ib.reqMktData(aapl, "233,236")
    await ib.reqCurrentTimeAsync()
    assert (ticker.bid, ticker.ask, ticker.last, ticker.close) == (190, 190, 190, 190)
    assert ticker.marketDataType == 1
    assert ticker.shortableShares == 1_000_000
    tws.set_price("AAPL", 192, bid=191.9, ask=192.1, size=300)
    await ib.reqCurrentTimeAsync()
    assert (ticker.bid, ticker.ask, ticker.last, ticker.lastSize) == (191.9, 192.1, 192, 300)
    assert (ticker.high, ticker.low, ticker.volume) == (192, 190, 400)
    tws.set_shortable("AAPL", 0)
    tws.halt("AAPL")
    await ib.reqCurrentTimeAsync()
    assert (ticker.shortableShares, ticker.halted) == (0, 1)
    ib.cancelMktData(aapl)
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", 193)
    await ib.reqCurrentTimeAsync()
    assert ticker.last == 192


async def test_snapshot(ib: Any, aapl: Any, tws: FakeTws) -> None:
    """A snapshot ends by itself."""
    (ticker,) = await ib.reqTickersAsync(aapl)

    assert ticker.marketPrice() == 190
    assert tws.world.streaming.streams(tws.clients[0]).tickers == {}


async def test_delayed(ib: Any, aapl: Any, tws: FakeTws, heard: list[Any]) -> None:
    """Without a subscription there is code 10089, and delayed data where it is asked for."""
    tws.subscribe_data(live=False)
    ticker = ib.reqMktData(aapl)
    await ib.reqCurrentTimeAsync()
    assert [code for _, code, _ in heard] == [10089]
    assert math.isnan(ticker.last)
    ib.cancelMktData(aapl)
    ib.reqMarketDataType(3)
    ticker = ib.reqMktData(aapl)
    await ib.reqCurrentTimeAsync()
    assert (ticker.last, ticker.bid, ticker.marketDataType) == (190, 190, 3)


async def test_unknown(lib: Any, ib: Any, heard: list[Any]) -> None:
    """Data of an unknown contract is refused."""
    ib.client.reqMktData(77, lib.Stock("NOSUCH", "SMART", "USD"), "", False, False, [])
    await ib.reqCurrentTimeAsync()

    assert [(number, code) for number, code, _ in heard] == [(77, 200)]


async def test_real_time_bars(ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Every five seconds of the peer's clock there is a bar of the trades."""
    bars = ib.reqRealTimeBars(aapl, 5, "TRADES", False)
    await ib.reqCurrentTimeAsync()
    for price in (191, 189, 190.5):
        tws.set_price("AAPL", price)
    tws.clock.advance(5)
    tws.clock.advance(5)
    await ib.reqCurrentTimeAsync()

    first, second = bars
    assert (first.open_, first.high, first.low, first.close, first.volume, first.count) == (
        191,
        191,
        189,
        190.5,
        300,
        3,
    )
    assert (second.open_, second.close, second.volume, second.count) == (190.5, 190.5, 0, 0)
    assert second.time - first.time == timedelta(seconds=5)
    ib.cancelRealTimeBars(bars)
    tws.clock.advance(10)
    await ib.reqCurrentTimeAsync()
    assert len(bars) == 2


async def history(ib: Any, contract: Any, duration: str, size: str, **more: Any) -> Any:
    """Ask for history."""
    options = {"whatToShow": "TRADES", "useRTH": True, "formatDate": 2, "endDateTime": "", **more}
    return await ib.reqHistoricalDataAsync(contract, durationStr=duration, barSizeSetting=size, **options)


async def test_daily_history(ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Daily bars are of trading days, lead to today's price, and are the same each time."""
    bars = await history(ib, aapl, "5 D", "1 day")

    assert [each.date for each in bars] == [
        date(2025, 12, 30), date(2025, 12, 31), date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 5),
    ]  # fmt: skip
    assert bars[-1].close == 190
    assert all(each.low <= min(each.open, each.close) <= max(each.open, each.close) <= each.high for each in bars)
    assert [each.open for each in bars[1:]] == [each.close for each in bars[:-1]]
    assert list(await history(ib, aapl, "5 D", "1 day")) == list(bars)
    assert len(await history(ib, aapl, "1 Y", "1 day")) == 261


async def test_minute_history(ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Minute bars are of regular hours, or of the long day; both ways of writing times are read."""
    bars = await history(ib, aapl, "1 D", "1 min")
    assert bars[0].date.astimezone(UTC) == datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
    assert len(bars) == 30
    early = await history(ib, aapl, "1 D", "5 mins", useRTH=False, formatDate=1)
    assert early[0].date.astimezone(UTC) == datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
    past = await history(ib, aapl, "1 D", "1 hour", endDateTime="20260102 23:59:59 UTC")
    assert [f"{each.date.astimezone(UTC):%H%M}" for each in past] == [
        "1430",
        *(f"{hour}00" for hour in range(15, 21)),
    ]
    assert {each.volume for each in await history(ib, aapl, "1 D", "1 hour", whatToShow="BID")} == {-1}


async def test_given_history(ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Bars that a test has given are served as they are."""
    day = datetime(2026, 1, 2, 5, tzinfo=UTC)
    tws.set_bars("AAPL", "1 day", [Bar(day, 1, 4, 0.5, 2, 77)])

    (bar,) = await history(ib, aapl, "5 D", "1 day")

    assert (bar.date, bar.open, bar.high, bar.low, bar.close, bar.volume) == (date(2026, 1, 2), 1, 4, 0.5, 2, 77)


async def test_history_kept_up_to_date(ib: Any, aapl: Any, tws: FakeTws) -> None:
    """The newest bar follows the price, and another begins when its time is over."""
    bars = await history(ib, aapl, "1 D", "1 min", keepUpToDate=True)
    count = len(bars)
    tws.clock.advance(61)
    tws.set_price("AAPL", 195)
    await ib.reqCurrentTimeAsync()
    assert (len(bars), bars[-1].close) == (count + 2, 195)
    tws.set_price("AAPL", 194)
    await ib.reqCurrentTimeAsync()
    assert (len(bars), bars[-1].close, bars[-1].high) == (count + 2, 194, 195)
    ib.cancelHistoricalData(bars)
    tws.set_price("AAPL", 150)
    await ib.reqCurrentTimeAsync()
    assert bars[-1].low == 190


@pytest.mark.parametrize(
    ("end", "duration", "size", "what", "code"),
    [
        ("", "5 X", "1 day", "TRADES", 321),
        ("", "5 D", "1 fortnight", "TRADES", 321),
        ("yesterday", "5 D", "1 day", "TRADES", 321),
        ("20260102 23:59:59 UTC", "5 D", "1 day", "ADJUSTED_LAST", 321),
        ("", "30 D", "5 secs", "TRADES", 321),
        ("20260103 23:59:59 UTC", "600 S", "1 min", "TRADES", 162),  # a Saturday
    ],
)
async def test_wrong_history(
    ib: Any, aapl: Any, heard: list[Any], *, end: str, duration: str, size: str, what: str, code: int
) -> None:
    """What makes no sense is refused, and says so; so is what is empty."""
    ib.client.reqHistoricalData(77, aapl, end, duration, size, what, True, 1, False, [])
    await ib.reqCurrentTimeAsync()

    assert [(number, code) for number, code, _ in heard] == [(77, code)]


async def test_head_timestamp(ib: Any, aapl: Any) -> None:
    """There is a first day."""
    found = await ib.reqHeadTimeStampAsync(aapl, "TRADES", True, 2)

    assert found.year == 1990

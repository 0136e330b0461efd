"""The feed of IB: what TWS sends becomes slices, losses are mended, and the past comes at its pace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.calendar import Calendar
from sigma9_core.contracts import PluginContext
from sigma9_core.errors import DataError
from sigma9_core.models import Bar, Session, Slice
from sigma9_core.testing.tws import FakeTws, PeerClock
from sigma9_core.testing.tws.answers import error
from sigma9_core.testing.tws.history import Bar as TheirBar
from sigma9_plugins.brokers.ibkr import feed as feed_module
from sigma9_plugins.brokers.ibkr import history
from sigma9_plugins.brokers.ibkr.feed import IbkrFeed
from sigma9_plugins.brokers.ibkr.history import FILE, Pace
from sigma9_plugins.brokers.ibkr.settings import IbkrConfig
from sigma9_plugins.brokers.ibkr.ticks import Minutes, Ticker
from sigma9_plugins.testing.ibkr_room import context

NOW = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)
WITHIN = 5.0


class FeedRoom:
    """A TWS, a feed that is connected to it, and what it has given."""

    def __init__(self, tws: FakeTws, feed: IbkrFeed) -> None:
        self.tws = tws
        self.feed = feed
        self.heard: list[Slice] = []
        self._came = asyncio.Event()

    async def listen(self) -> None:
        """Take slices until the feed ends."""
        async for each in self.feed.slices():
            self.heard.append(each)
            self._came.set()

    async def until(self, what: Callable[[], object]) -> None:
        """Wait until something is true, looked at after each slice."""
        async with asyncio.timeout(WITHIN):
            while not what():
                self._came.clear()
                await self._came.wait()

    def all(self, kind: str) -> list[Any]:
        """Give all quotes, trades or bars so far."""
        return [item for each in self.heard for item in getattr(each, kind)]


@asynccontextmanager
async def opened(
    folder: Path | None = None, *, peer: Any = None, calendar: Calendar | None = None, **config: Any
) -> AsyncIterator[FeedRoom]:
    """Open a TWS and a feed that listens to it."""
    async with FakeTws(**(peer or {})) as tws:
        tws.add_contract("TEST", 10)
        given = context(tws, folder)
        if calendar is not None:
            given = PluginContext("ibkr", given.settings, given.clock, calendar, folder)
        feed = IbkrFeed(IbkrConfig(connect_seconds=2, answer_seconds=2, **config), given)
        await feed.connect(None)
        room = FeedRoom(tws, feed)
        listening = asyncio.ensure_future(room.listen())
        try:
            yield room
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await feed.disconnect()


# --- live data ------------------------------------------------------------------------------------------------


async def test_quotes_and_trades() -> None:
    """A subscribed symbol gives quotes and trades, with the peer's numbers; no other symbol does."""
    async with opened(peer={"spread": "0.02"}) as room:
        room.feed.subscribe(frozenset({"TEST"}))
        await room.until(lambda: room.all("quotes"))
        room.tws.set_price("TEST", 10.5, size=300)
        room.tws.set_price("AAPL", 191)
        await room.until(lambda: any(trade.price == 10.5 for trade in room.all("trades")))
        quote, trade = room.all("quotes")[-1], room.all("trades")[-1]

        assert (quote.symbol, quote.bid, quote.ask, quote.halted) == ("TEST", 10.49, 10.51, False)
        assert (trade.symbol, trade.price, trade.size) == ("TEST", 10.5, 300)
        assert abs((trade.ts - datetime.now(UTC)).total_seconds()) < 5
        assert [client.client_id for client in room.tws.clients] == [2]
        assert room.feed.delayed == frozenset()


async def test_halt() -> None:
    """A halt is part of the quote, and so is its end."""
    async with opened() as room:
        room.feed.subscribe(frozenset({"TEST"}))
        await room.until(lambda: room.all("quotes"))
        for halted in (True, False):
            room.tws.halt("TEST", halted=halted)
            await room.until(lambda halted=halted: room.all("quotes")[-1].halted is halted)  # type: ignore[misc]


async def test_subscriptions_change() -> None:
    """Exactly the wanted symbols are subscribed; what is not wanted any more is cancelled, once."""
    async with opened() as room:
        room.feed.subscribe(frozenset({"TEST", "AAPL"}))
        room.feed.subscribe(frozenset({"AAPL", "MSFT"}))
        await room.tws.until_received("reqMktData", 3)
        await room.tws.until_received("cancelMktData", 1)
        await room.tws.until_received("reqRealTimeBars", 2)
        wanted = {each.contract.symbol: each.req_id for each in room.tws.requests("reqMktData") if each.contract}

        assert set(wanted) == {"TEST", "AAPL", "MSFT"}
        assert [each.req_id for each in room.tws.requests("cancelMktData")] == [wanted["TEST"]]
        bars = {each.contract.symbol for each in room.tws.requests("reqRealTimeBars") if each.contract}
        assert {"AAPL", "MSFT"} <= bars


async def test_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars of five seconds come as they are, and twelve of them make a minute."""
    clock = PeerClock(by_hand=True, start=NOW - timedelta(seconds=10))
    async with opened(peer={"clock": clock}) as room:
        room.feed.subscribe(frozenset({"TEST"}))
        await room.tws.until_received("reqRealTimeBars")
        for step in range(14):
            room.tws.set_price("TEST", 10 + step / 10)
            clock.advance(5)
            await room.until(lambda step=step: len([b for b in room.all("bars") if b.seconds == 5]) > step)  # type: ignore[misc]
        await room.until(lambda: any(bar.seconds == 60 for bar in room.all("bars")))
        (minute,) = [bar for bar in room.all("bars") if bar.seconds == 60]
        five = [bar for bar in room.all("bars") if bar.seconds == 5 and bar.ts >= NOW]

        assert minute.ts == NOW
        assert (minute.open, minute.close) == (five[0].open, five[11].close)
        assert minute.high == max(bar.high for bar in five[:12])
        assert minute.volume == sum(bar.volume for bar in five[:12])


@pytest.fixture(name="soon")
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again soon for what was refused."""
    monkeypatch.setattr(feed_module, "AGAIN_FIRST", 0.02)
    monkeypatch.setattr(history, "SAME", 0.01)


@pytest.mark.usefixtures("soon")
async def test_bars_that_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Bars that IB refuses are asked for again, with growing pauses, until they come; a refusal is said once."""
    caplog.set_level("INFO", "sigma9.ibkr")
    clock = PeerClock(by_hand=True, start=NOW)
    async with opened(peer={"clock": clock}) as room:
        room.tws.arm("bars-pacing", times=3, symbol="TEST")
        room.feed.subscribe(frozenset({"TEST"}))
        await room.tws.until_received("reqRealTimeBars", 4)
        room.tws.set_price("TEST", 11)
        clock.advance(5)
        await room.until(lambda: room.all("bars"))
        await asyncio.sleep(0.1)

        assert len(room.tws.requests("reqRealTimeBars")) == 4
        assert caplog.text.count("(code 420)") == 1
        assert "TEST: its real-time bars are there again" in caplog.text
        room.tws.arm("bars-pacing", symbol="AAPL", times=None)
        room.feed.subscribe(frozenset({"AAPL"}))
        await room.tws.until_received("reqRealTimeBars", 7)
        room.feed.subscribe(frozenset({"TEST"}))
        await room.tws.until_received("reqRealTimeBars", 8)
        before = len(room.tws.requests("reqRealTimeBars"))
        await asyncio.sleep(0.5)
        assert len(room.tws.requests("reqRealTimeBars")) == before  # what is not wanted any more is not asked for


@pytest.mark.usefixtures("soon")
async def test_what_was_said_is_said_again_once_it_was_good(caplog: pytest.LogCaptureFixture) -> None:
    """A complaint is said once while it stands, and anew where it comes back after live data."""
    caplog.set_level("INFO", "sigma9.ibkr")
    async with opened() as room:
        room.feed.subscribe(frozenset({"TEST"}))
        await room.until(lambda: room.all("quotes"))
        number = room.tws.requests("reqMktData")[0].req_id
        for price in (11, 12):
            for _ in range(2):
                room.tws.world.tell_all(error(10197, "No market data during competing live session", number))
            room.tws.set_price("TEST", price)
            await room.until(lambda price=price: any(trade.price == price for trade in room.all("trades")))  # type: ignore[misc]

        assert caplog.text.count("(code 10197)") == 2
        assert caplog.text.count("TEST: its live data are there again") == 2


async def test_delayed_data_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """Delayed data are left out with a word, or given under the time that they are of."""
    async with opened(peer={}) as room:
        room.tws.subscribe_data(live=False)
        room.feed.subscribe(frozenset({"TEST", "AAPL"}))
        await room.tws.until_received("reqMktData", 2)
        room.tws.subscribe_data(live=True)
        room.feed.subscribe(frozenset({"TEST", "AAPL", "MSFT"}))
        await room.until(lambda: room.all("quotes"))

        assert {quote.symbol for quote in room.all("quotes")} == {"MSFT"}
        assert room.feed.delayed == {"TEST", "AAPL"}
        assert caplog.text.count("TEST: its data are delayed, and are left out") == 1
    async with opened(allow_delayed=True) as room:
        room.tws.subscribe_data(live=False)
        room.feed.subscribe(frozenset({"TEST"}))
        await room.until(lambda: room.all("quotes"))
        room.tws.set_price("TEST", 10.7)
        await room.until(lambda: room.all("trades"))
        late = datetime.now(UTC) - timedelta(minutes=14)

        assert room.all("quotes")[-1].ts < late
        assert room.all("trades")[-1].ts < late
        assert room.all("trades")[-1].price == 10.7
        assert room.heard[-1].ts > late


async def test_no_data_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """What TWS says of a symbol without data is said once; the others go on."""
    async with opened() as room:
        room.feed.subscribe(frozenset({"NOSUCH", "TEST"}))
        await room.until(lambda: room.all("quotes"))

        assert "NOSUCH: No security definition" in caplog.text


# --- losses ---------------------------------------------------------------------------------------------------


async def test_lost_connection_and_another() -> None:
    """A connection that ends ends the slices with an error; the next one subscribes what is wanted anew."""
    async with opened() as room:
        room.feed.subscribe(frozenset({"TEST"}))
        await room.until(lambda: room.all("quotes"))
        ending = asyncio.ensure_future(anext(aiter(room.feed.slices())))
        room.tws.drop()
        listened = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        done, _ = await asyncio.wait({ending, *listened}, timeout=WITHIN, return_when=asyncio.FIRST_EXCEPTION)
        assert any(isinstance(task.exception(), DataError) for task in done if not task.cancelled())
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        await room.feed.connect(NOW)
        room.feed.subscribe(frozenset({"TEST"}))
        listening = asyncio.ensure_future(room.listen())
        room.heard.clear()
        await room.until(lambda: room.all("quotes"))
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_data_lost_is_subscribed_again() -> None:
    """After 1101 everything is asked for again; after 1102 nothing is."""
    async with opened() as room:
        room.feed.subscribe(frozenset({"TEST"}))
        await room.tws.until_received("reqMktData")
        room.tws.lose_link()
        room.tws.regain_link(kept=True)
        room.tws.lose_link()
        room.tws.regain_link(kept=False)
        await room.tws.until_received("reqMktData", 2)
        room.tws.set_price("TEST", 12)
        await room.until(lambda: any(trade.price == 12 for trade in room.all("trades")))

        assert len(room.tws.requests("reqMktData")) == 2


@pytest.mark.parametrize(("broker", "times"), [("ibkr", 0), ("paper", 1)])
async def test_a_lost_link_is_said_once(caplog: pytest.LogCaptureFixture, broker: str, times: int) -> None:
    """What TWS tells every connection is said by the broker, and by the feed where the broker is another one."""
    async with FakeTws() as tws:
        given = context(tws)
        settings = given.settings.model_copy(update={"broker": broker})
        given = PluginContext("ibkr", settings, given.clock, given.calendar, None)
        feed = IbkrFeed(IbkrConfig(connect_seconds=2), given)
        await feed.connect(None)
        listening = asyncio.ensure_future(FeedRoom(tws, feed).listen())
        tws.lose_link()
        tws.regain_link()
        feed.subscribe(frozenset({"AAPL"}))
        await tws.until_received("reqMktData")
        await asyncio.sleep(0.05)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await feed.disconnect()

    assert caplog.text.count("(code 1100)") == caplog.text.count("(code 1102)") == times


async def test_half_open_feed() -> None:
    """A connection that is dead without a word ends the slices."""
    async with opened(probe_seconds=0.1) as room:
        room.tws.mute()
        async with asyncio.timeout(WITHIN):
            with pytest.raises(DataError, match="ended"):
                await room.listen()


async def test_no_gateway() -> None:
    """Without a gateway the connection fails with a clear sentence, and so do questions."""
    async with opened() as room:
        await room.feed.disconnect()
        await room.tws.go_away()
        with pytest.raises(DataError, match=r"no market data from IB: .* can't be reached"):
            await room.feed.connect(None)
        room.feed.subscribe(frozenset({"TEST"}))
        assert await asyncio.to_thread(room.feed.minute_bars, "TEST", NOW, 10) == []


# --- the past -------------------------------------------------------------------------------------------------


async def test_daily_bars(tmp_path: Path) -> None:
    """Daily bars come in the shape of the contract, are asked for once, and are on disk for the next start."""
    async with opened(tmp_path, symbols=("TEST", "AAPL", "NOSUCH")) as room:
        today = datetime.now(UTC).date()
        frame = (await asyncio.to_thread(room.feed.daily_bars, today, 30)).collect()
        asked = len(room.tws.requests("reqHistoricalData"))
        await asyncio.to_thread(room.feed.daily_bars, today, 20)

        assert frame.columns == ["symbol", "ts", "open", "high", "low", "close", "volume"]
        assert set(frame["symbol"]) == {"TEST", "AAPL"}
        assert frame.filter(symbol="TEST").height >= 20
        assert frame["ts"].max() <= today  # type: ignore[operator]
        assert asked == 3
        again = [each.contract.symbol for each in room.tws.requests("reqHistoricalData")[asked:] if each.contract]
        assert set(again) <= {"NOSUCH"}
        assert set(json.loads((tmp_path / FILE).read_text())) == {"TEST", "AAPL"}
    async with opened(tmp_path, symbols=("TEST",)) as room:
        found = (await asyncio.to_thread(room.feed.daily_bars, today - timedelta(days=7), 20)).collect()

        assert room.tws.requests("reqHistoricalData") == []
        assert found["ts"].max() <= today - timedelta(days=7)  # type: ignore[operator]


async def test_a_scan_that_comes_before_the_connection() -> None:
    """The first scan of a start waits for the feed to be connected."""
    async with opened(symbols=("TEST",)) as room:
        await room.feed.disconnect()
        scan = asyncio.ensure_future(asyncio.to_thread(room.feed.daily_bars, datetime.now(UTC).date(), 30))
        await asyncio.sleep(0.05)
        assert not scan.done()
        await room.feed.connect(None)

        assert (await scan).collect().height >= 20


async def test_daily_bars_of_nothing() -> None:
    """Without symbols, or without an answer for any, it says so."""
    async with opened() as room:
        with pytest.raises(DataError, match="scans no symbols"):
            await asyncio.to_thread(room.feed.daily_bars, date(2026, 1, 5), 30)
    async with opened(symbols=("TEST",)) as room:
        room.tws.arm("history-pacing")
        with pytest.raises(DataError, match="no daily bars"):
            await asyncio.to_thread(room.feed.daily_bars, datetime.now(UTC).date(), 30)


async def test_a_file_of_daily_bars_that_is_none(tmp_path: Path) -> None:
    """What can't be read is asked for again."""
    (tmp_path / FILE).write_text('{"TEST": {"bars": [["x"]]}}')
    async with opened(tmp_path, symbols=("TEST",)) as room:
        frame = (await asyncio.to_thread(room.feed.daily_bars, datetime.now(UTC).date(), 30)).collect()

        assert frame.height >= 20


async def test_minute_bars() -> None:
    """The minute bars of the session so far, none of them unfinished; a refusal gives none."""
    session = Session("2026-01-05", NOW - timedelta(minutes=30), NOW + timedelta(hours=6))
    calendar = Calendar("XNYS", [session])
    bars = [TheirBar(NOW + timedelta(minutes=n), 10, 11, 9, 10.5, 100) for n in range(-40, 40)]
    async with opened(calendar=calendar, peer={"clock": PeerClock(by_hand=True, start=NOW)}) as room:
        room.tws.set_bars("TEST", "1 min", bars)
        room.tws.arm("history-empty", symbol="AAPL")
        room.feed.subscribe(frozenset({"TEST", "AAPL"}))
        found = await asyncio.to_thread(room.feed.minute_bars, "TEST", NOW, 390)
        none = await asyncio.to_thread(room.feed.minute_bars, "AAPL", NOW, 390)
        unwatched = await asyncio.to_thread(room.feed.minute_bars, "MSFT", NOW, 390)

    assert unwatched == []
    assert [bar.ts for bar in found] == [NOW + timedelta(minutes=n) for n in range(-30, -1)]
    assert found[0] == Bar("TEST", session.open, 10, 11, 9, 10.5, 100)
    assert none == []


@pytest.mark.usefixtures("soon")
async def test_minute_bars_that_were_refused(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal of the minutes so far is not final: they come later, ahead of those that came live meanwhile."""
    bars = [TheirBar(NOW + timedelta(minutes=n), 10, 11, 9, 10.5, 100) for n in range(-5, 1)]
    clock = PeerClock(by_hand=True, start=NOW)
    async with opened(peer={"clock": clock}) as room:
        room.tws.set_bars("TEST", "1 min", bars)
        refusal = room.tws.arm("history-pacing", times=None)
        room.feed.subscribe(frozenset({"TEST"}))
        await room.tws.until_received("reqRealTimeBars")
        await room.tws.until_received("reqHistoricalData", 3)
        for step in range(12):
            room.tws.set_price("TEST", 10)
            clock.advance(5)
            await room.until(lambda step=step: len([b for b in room.all("bars") if b.seconds == 5]) > step)  # type: ignore[misc]
        later = NOW + timedelta(minutes=2)
        assert [bar.ts for bar in await asyncio.to_thread(room.feed.minute_bars, "TEST", later, 390)] == [NOW]
        room.tws.faults.armed.remove(refusal)
        for _ in range(100):
            found = await asyncio.to_thread(room.feed.minute_bars, "TEST", later, 390)
            if len(found) > 1:
                break
            await asyncio.sleep(0.02)

        assert [bar.ts for bar in found] == [NOW + timedelta(minutes=n) for n in range(-5, 1)]
        assert caplog.text.count("no minute bars of TEST") == 1


async def test_update(tmp_path: Path) -> None:
    """The daily job reads the newest session that has closed."""
    day = datetime.now(UTC).replace(hour=14, minute=30, second=0, microsecond=0)
    sessions = [
        Session(f"{at:%Y-%m-%d}", at, at + timedelta(hours=6.5))
        for at in (day - timedelta(days=n) for n in (4, 3, 2, 1))
    ]
    async with opened(tmp_path, symbols=("TEST",), calendar=Calendar("XNYS", sessions)) as room:
        first = await asyncio.to_thread(room.feed.update)
        second = await asyncio.to_thread(room.feed.update)

        assert (first, second) == ("daily bars of 1 symbols", "daily bars of 0 symbols")


async def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than IB allows: in ten minutes, of one contract in two seconds, and of the same question."""
    now = 1000.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    monkeypatch.setattr(history, "monotonic", lambda: now)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace = Pace()
    for number in range(6):
        await pace.turn("TEST", number)
    assert slept == [2.0]
    await pace.turn("TEST", 5)
    assert slept[1:] == [15.0]
    for number in range(51):
        await pace.turn(f"S{number}", "days")
    assert len(slept) == 2
    await pace.turn("LAST", "days")
    assert now - 1000 == pytest.approx(600)


# --- ticks ----------------------------------------------------------------------------------------------------


def test_ticks() -> None:
    """Prices that are none, sizes by themselves, volumes without a trade: each does what it says."""
    ticker = Ticker("TEST")
    ticker.price(1, 10.0, 5, NOW)
    ticker.price(2, 10.1, 6, NOW)
    ticker.price(4, 10.05, 100, NOW)  # a last price alone may be hours old
    ticker.price(14, 9.0, 0, NOW)
    ticker.size(0, 7)
    ticker.size(8, 1000)
    ticker.generic(24, 0.3)
    ticker.text(45, "1767625200", NOW)
    ticker.text(48, ";;", NOW)
    ticker.text(48, "nonsense", NOW)
    (quote,), trades = ticker.take(NOW)
    assert (quote.bid, quote.ask, quote.bid_size, quote.ask_size) == (10.0, 10.1, 7, 6)
    assert trades == []
    assert ticker.take(NOW) == ([], [])
    ticker.price(1, -1.0, 0, NOW)
    ((quote,), _) = ticker.take(NOW)
    assert (quote.bid, quote.ask) == (None, 10.1)
    later = NOW + timedelta(seconds=5)
    ticker.text(48, f"10.2;30;{int(later.timestamp() * 1000)};500;10.1;true", NOW)
    (_, (trade,)) = ticker.take(NOW)
    assert (trade.price, trade.size, trade.ts) == (10.2, 30, NOW)  # never from the future


def test_minutes_that_are_not_whole() -> None:
    """A minute that began before the first bar is none; one without its last bar ends with the next."""
    minutes = Minutes("TEST")

    def bar(second: int) -> Bar:
        return Bar("TEST", NOW + timedelta(seconds=second), 1, 2, 0.5, 1.5, 10, 5)

    assert [minutes.take(bar(second)) for second in (45, 50, 55)] == [[], [], []]
    assert [minutes.take(bar(second)) for second in (60, 65)] == [[], []]
    assert [(each.ts, each.volume) for each in minutes.take(bar(120))] == [(NOW + timedelta(minutes=1), 20)]

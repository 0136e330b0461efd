"""How requests for market data, bars and history are answered, and what subscribers hear when a price moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sigma9_core.testing.tws.answers import error
from sigma9_core.testing.tws.client import Client
from sigma9_core.testing.tws.clock import PeerClock
from sigma9_core.testing.tws.contracts import Contract, Contracts
from sigma9_core.testing.tws.faults import KINDS, Faults
from sigma9_core.testing.tws.history import Bar, History, Pace
from sigma9_core.testing.tws.market import Market, Quote
from sigma9_core.testing.tws.requests import Request
from sigma9_core.testing.tws.times import DAY, bar_seconds, moment, stamp
from sigma9_core.testing.tws.wire import Message, Value, message

BEAT: Final = 5
"""Seconds of a real-time bar."""
DELAYED: Final = frozenset((3, 4))
NOT_SUBSCRIBED: Final = (
    "Requested market data requires additional subscription for API. Delayed market data is available."
)
EMPTY: Final = "Historical Market Data Service error message:HMDS query returned no data"


@dataclass(frozen=True, slots=True)
class Ticker:
    """A client's wish for market data."""

    contract: Contract
    delayed: bool
    generic: frozenset[str] = frozenset()


@dataclass(slots=True)
class Bars:
    """A client's wish for bars: of five seconds, or history that is kept up to date."""

    contract: Contract
    seconds: int
    what: str
    live: bool
    """History, and not bars of five seconds."""
    epoch: bool = False
    bar: Bar | None = None
    """The one that is not complete yet."""
    count: int = 0


@dataclass(slots=True)
class Streams:
    """What a client has subscribed to."""

    tickers: dict[int, Ticker] = field(default_factory=dict)
    bars: dict[int, Bars] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)


class Streaming:
    """The subscriptions of all clients, and the beat of the bars."""

    def __init__(
        self, contracts: Contracts, market: Market, faults: Faults, clock: PeerClock, *, zone: str, seed: int
    ) -> None:
        self.history_of = History(seed)
        self.up = True
        """Whether the link behind the gateway is."""
        self.live = True
        """Whether live data is subscribed."""
        self._contracts = contracts
        self._market = market
        self._faults = faults
        self._clock = clock
        self._zone = zone
        self.answers: Mapping[str, Callable[[Client, Request], None]] = {
            "reqMktData": self.market_data,
            "cancelMktData": self.cancel_market_data,
            "reqMarketDataType": self.market_data_type,
            "reqRealTimeBars": self.real_time_bars,
            "cancelRealTimeBars": self.cancel_bars,
            "reqHistoricalData": self.history,
            "cancelHistoricalData": self.cancel_bars,
            "reqHeadTimestamp": self.head_timestamp,
            "cancelHeadTimestamp": self.cancel_bars,
        }
        self.of: dict[Client, Streams] = {}
        self._beating = False

    def streams(self, client: Client) -> Streams:
        """Give what a client has subscribed to."""
        return self.of.setdefault(client, Streams())

    def forget(self, client: Client | None = None) -> None:
        """Drop the subscriptions of a client, or all."""
        for each in [client] if client is not None else list(self.of):
            self.of.pop(each, None)

    # --- market data --------------------------------------------------------------------------------------------

    def market_data(self, client: Client, request: Request) -> None:
        """Send what a quote shows, and from now on what changes."""
        contract, number = self._contract(client, request), request.req_id
        if contract is None:
            return
        quote = self._market.quote(contract.con_id)
        fault = self._faults.strike("data", symbol=contract.symbol, client_id=client.client_id)
        live = self.live and fault is None
        if not live and client.data_type not in DELAYED:
            client.send(error(10089, NOT_SUBSCRIBED, number))
            return
        ticker = Ticker(contract, not live, frozenset(request.get("genericTicks").split(",")))
        kind = client.data_type if not live else 1
        client.send(message(58, 1, number, kind), message(81, number, "0.01", "9c0001", 3))
        if quote is not None:
            client.send(*_ticks(number, quote, ticker))
            client.send(*self._more(number, quote, ticker))
        if request.get("snapshot") == "1" or request.get("regulatorySnapshot") == "1":
            client.send(message(57, 1, number))
        else:
            self.streams(client).tickers[number] = ticker

    def _more(self, number: int, quote: Quote, ticker: Ticker) -> list[Message]:
        """Write what was asked for by generic ticks, the volume, the time and a halt."""
        now = self._clock.now()
        late = ticker.delayed
        more = [
            message(2, 6, number, 74 if late else 8, quote.volume),
            message(46, 6, number, 88 if late else 45, int(now.timestamp())),
            message(45, 6, number, 49, int(quote.halted)),
        ]
        if "233" in ticker.generic and not late:
            parts = (quote.last, quote.last_size, int(now.timestamp() * 1000), quote.volume, quote.last, "true")
            more.append(message(46, 6, number, 48, ";".join(str(part) for part in parts)))
        if "236" in ticker.generic:
            more.append(message(45, 6, number, 46, "3.0" if quote.shortable else "1.0"))
            more.append(message(2, 6, number, 89, quote.shortable))
        return more

    def price_moved(self, con_id: int) -> None:
        """Tell the subscribers a new price."""
        quote = self._market.quote(con_id)
        if quote is None or not self.up:
            return
        for client, streams in list(self.of.items()):
            for number, ticker in streams.tickers.items():
                if ticker.contract.con_id == con_id:
                    client.send(*_ticks(number, quote, ticker), *self._more(number, quote, ticker))
            for number, wish in streams.bars.items():
                if wish.live and wish.contract.con_id == con_id:
                    self._update(client, number, wish, quote)

    def market_data_type(self, client: Client, request: Request) -> None:
        """Take which kind of market data a client wants where there is no live one."""
        client.data_type = request.integer("type") or 1

    def halt_told(self, con_id: int) -> None:
        """Tell the subscribers whether a contract is halted."""
        quote = self._market.quote(con_id)
        for client, streams in list(self.of.items()):
            for number, ticker in streams.tickers.items():
                if quote is not None and ticker.contract.con_id == con_id and self.up:
                    client.send(message(45, 6, number, 49, int(quote.halted)))

    def cancel_market_data(self, client: Client, request: Request) -> None:
        """Send no more of it."""
        if self.streams(client).tickers.pop(request.req_id, None) is None:
            client.send(error(300, f"Can't find EId with tickerId:{request.req_id}", request.req_id))

    # --- bars ---------------------------------------------------------------------------------------------------

    def real_time_bars(self, client: Client, request: Request) -> None:
        """Send a bar every five seconds from now on."""
        contract = self._contract(client, request)
        if contract is None:
            return
        about = {"symbol": contract.symbol, "client_id": client.client_id}
        if (fault := self._faults.strike("history", "bars-pacing", **about)) is not None:
            client.send(error(fault.kind.code, fault.kind.text, request.req_id))
            return
        what = request.get("whatToShow")
        self.streams(client).bars[request.req_id] = Bars(contract, BEAT, what, live=False)
        self._beat()

    def history(self, client: Client, request: Request) -> None:
        """Send the bars of the past, and from now on what becomes of the newest where that is wanted."""
        contract, number = self._contract(client, request), request.req_id
        if contract is None:
            return
        what = request.get("whatToShow")
        about = {"symbol": contract.symbol, "client_id": client.client_id}
        fault = self._faults.strike("history", "history-pacing", "history-empty", "history-unanswered", **about)
        if fault is not None:
            if fault.kind.code:
                client.send(error(fault.kind.code, fault.kind.text, number))
            return
        pace = self.streams(client).pace
        now = self._clock.now().timestamp()
        if self._faults.on("history-limits") and pace.too_fast(now, contract.con_id, request.raw[2:]):
            pacing = KINDS["history-pacing"]
            client.send(error(pacing.code, pacing.text, number))
            return
        size, end_text = request.get("barSize"), request.get("end")
        if end_text and (what == "ADJUSTED_LAST" or request.get("keepUpToDate") == "1"):
            client.send(error(321, "Error validating request.-'bH' : cause - End date not supported", number))
            return
        try:
            end = moment(end_text, self._zone) if end_text else self._clock.now()
            price = float(self._market.price(contract.con_id))
            regular = request.get("useRTH") == "1"
            bars = self.history_of.bars(
                contract.con_id, price, end, request.get("duration"), size, regular=regular
            )
        except ValueError as problem:
            client.send(error(321, f"Error validating request.-'bH' : cause - {problem}", number))
            return
        if not bars:
            client.send(error(162, EMPTY, number))
            return
        epoch, seconds = request.get("formatDate") == "2", bar_seconds(size)
        fields: list[Value] = []
        for each in bars:
            fields += [self._date(each.start, seconds, epoch=epoch), *_ohlc(each), *_volume(each, what)]
        first, last = stamp(bars[0].start, self._zone), stamp(end, self._zone)
        client.send(message(17, number, first, last, len(bars), *fields))
        if request.get("keepUpToDate") == "1":
            wish = Bars(contract, seconds, what, live=True, epoch=epoch, bar=bars[-1])
            self.streams(client).bars[number] = wish
            self._beat()

    def head_timestamp(self, client: Client, request: Request) -> None:
        """Say since when there is history."""
        if self._contract(client, request) is not None:
            first = datetime(1990, 1, 2, 14, 30, tzinfo=UTC)
            shown: Value = (
                int(first.timestamp()) if request.get("formatDate") == "2" else f"{first:%Y%m%d-%H:%M:%S}"
            )
            client.send(message(88, request.req_id, shown))

    def cancel_bars(self, client: Client, request: Request) -> None:
        """Send no more of them."""
        self.streams(client).bars.pop(request.req_id, None)

    def _beat(self) -> None:
        """Come back at the end of the bar of five seconds that runs now."""
        if not self._beating:
            self._beating = True
            now = self._clock.now().timestamp()
            self._clock.later(BEAT - now % BEAT, self._on_beat)

    def _on_beat(self) -> None:
        self._beating = False
        end = round(self._clock.now().timestamp())
        wishes = [(c, n, w) for c, streams in self.of.items() for n, w in streams.bars.items()]
        quotes = {wish.contract.con_id: self._market.quote(wish.contract.con_id) for _, _, wish in wishes}
        for client, number, wish in wishes:
            quote = quotes[wish.contract.con_id]
            if quote is None or not self.up:
                continue
            if wish.live:
                self._update(client, number, wish, quote, traded=False)
                continue
            seen = quote.seen or [quote.last]
            prices = (seen[0], max(seen), min(seen), seen[-1])
            size = quote.last_size * len(quote.seen)
            average = sum(seen, Decimal(0)) / len(seen)
            client.send(message(50, 3, number, end - BEAT, *prices, size, average, len(quote.seen)))
        for quote in quotes.values():
            if quote is not None:
                quote.seen.clear()
        if wishes:
            self._beat()

    def _update(self, client: Client, number: int, wish: Bars, quote: Quote, *, traded: bool = True) -> None:
        """Bring the newest bar up to date, or begin another, and tell it."""
        now, price, size = self._clock.now(), float(quote.last), float(quote.last_size) if traded else 0.0
        bar = wish.bar
        if bar is None or (now - bar.start).total_seconds() >= wish.seconds:
            start = (
                now
                if wish.seconds >= DAY
                else datetime.fromtimestamp(now.timestamp() // wish.seconds * wish.seconds, UTC)
            )
            bar, wish.count = Bar(start, price, price, price, price, 0), 0
        high, low = max(bar.high, price), min(bar.low, price)
        wish.bar = bar = replace(bar, high=high, low=low, close=price, volume=bar.volume + size)
        wish.count += int(traded)
        start_text = self._date(bar.start, wish.seconds, epoch=wish.epoch)
        prices = (bar.open, bar.close, bar.high, bar.low, bar.average)
        client.send(message(90, number, wish.count, start_text, *prices, bar.volume))

    # --- inside -------------------------------------------------------------------------------------------------

    def _contract(self, client: Client, request: Request) -> Contract | None:
        found = [] if request.contract is None else self._contracts.matching(request.contract)
        if len(found) == 1:
            return found[0].contract
        client.send(error(200, "No security definition has been found for the request", request.req_id))
        return None

    def _date(self, start: datetime, seconds: int, *, epoch: bool) -> str:
        """Write the time of a bar: a day, or a time as it was asked for."""
        if seconds >= DAY:
            return f"{start:%Y%m%d}"
        return str(int(start.timestamp())) if epoch else stamp(start, self._zone)


def _ticks(number: int, quote: Quote, ticker: Ticker) -> list[Message]:
    """Write the prices and sizes of a quote."""
    ticks: list[Message] = []
    for kind, size_kind, price, size in quote.ticks(delayed=ticker.delayed):
        ticks.append(message(1, 6, number, kind, price, size, 1))
        if size_kind is not None:
            ticks.append(message(2, 6, number, size_kind, size))
    return ticks


def _ohlc(bar: Bar) -> tuple[Value, ...]:
    return (bar.open, bar.high, bar.low, bar.close)


def _volume(bar: Bar, what: str) -> tuple[Value, ...]:
    """Write volume, average and count, which quotes do not have."""
    if what in ("BID", "ASK", "MIDPOINT", "BID_ASK"):
        return (-1, -1, -1)
    return (bar.volume, bar.average, max(1, int(bar.volume // 100)))

"""The main job at Interactive Brokers, end to end: `sigma9 run` with `broker: ibkr` and `feed: ibkr`, and a TWS.

Scan, trigger, bracket, fills, exits, flat; seen on MQTT and REST, and at the gateway itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pytest

from sigma9_core.calendar import VERSION, package_version
from sigma9_core.testing.server_process import MqttListener, ServerProcess
from sigma9_core.testing.tws import FakeTws
from sigma9_core.testing.tws.history import Bar

T = TypeVar("T")
NEW_YORK = ZoneInfo("America/New_York")
MOVERS = """
from decimal import Decimal
from sigma9_core.contracts import Signal
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ExitPlan

class Rise:
    def __init__(self):
        self.watched, self.first = frozenset(), {}

    def watch(self, items, history):
        self.watched = frozenset(item.symbol for item in items)

    def on_slice(self, data, session):
        signals = []
        for trade in data.trades if session is not None else ():
            first = self.first.setdefault(trade.symbol, trade.price)
            if trade.symbol in self.watched and trade.price > first * 1.005:
                self.first[trade.symbol] = 1e9
                plan = ExitPlan(stop_percent=Decimal(2), time_stop_seconds=2)
                signals.append(Signal(trade.symbol, "buy", data.ts, trade.price, plan, reasons=("it rises",)))
        return signals

    def on_trade_event(self, event, ts):
        pass

class Movers:
    version, lookback, watchlist_size = "1", 2, 10

    def scan(self, bars):
        import polars as pl
        return bars.with_columns(score=(pl.col("close") * 5).clip(0, 100))

    def trigger(self):
        return Rise()

@hookimpl
def register_scanners(register):
    register("movers", lambda settings, context: Movers())
"""
CONFIG = """
broker: ibkr
feed: ibkr
scanners: [{{plugin: movers}}]
ibkr: {{port: {port}, auto_connect: {auto_connect}}}
plugins: {{paths: [mine], settings: {{ibkr: {{symbols: [TEST, DULL]}}}}}}
engine: {{auto_start: true}}
"""


class Gateway:
    """A TWS in a thread of its own, whose market the test moves."""

    def __init__(self) -> None:
        self.tws = FakeTws(spread="0.02")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self.wait(self._begin())

    def do(self, what: Callable[[], T]) -> T:
        """Call something on the gateway's loop."""

        async def call() -> T:
            return what()

        return self.wait(call())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine on the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _begin(self) -> int:
        await self.tws.start()
        days = [datetime.now(UTC).replace(hour=5, minute=0) - timedelta(days=n) for n in range(1, 40)]
        for symbol, price in (("TEST", 10.0), ("DULL", 1.0)):
            self.tws.add_contract(symbol, price)
            self.tws.set_bars(symbol, "1 day", [Bar(day, price, price, price, price, 1e6) for day in days])
        return self.tws.port

    def trade(self, price: float) -> None:
        """Let the symbol trade, until the server has heard of it."""
        self.do(lambda: self.tws.set_price("TEST", price))

    def live(self) -> list[dict[str, str]]:
        """Give the terms of what works."""
        orders = self.do(lambda: self.tws.orders(live=True))
        return [dict(order.told().values) for order in orders]

    def filled(self, side: str) -> list[Any]:
        """List the orders of a side that have filled."""
        orders = self.do(lambda: self.tws.orders(status="Filled"))
        return [order for order in orders if order.order.get("action") == side]

    def stop(self) -> None:
        """End it."""
        self.wait(self.tws.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(name="gateway")
def _gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.stop()


def market_is_open(folder: Path) -> None:
    """Write a calendar whose session is in progress now, and was at this time each day."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    base = (datetime.now(UTC) - timedelta(hours=6)).replace(second=0, microsecond=0)
    opens = [base + timedelta(days=n) for n in range(-60, 6)]
    sessions = [
        [
            f"{at.astimezone(NEW_YORK):%Y-%m-%d}",
            f"{at:%Y-%m-%dT%H:%MZ}",
            f"{at + timedelta(hours=23):%Y-%m-%dT%H:%MZ}",
        ]
        for at in opens
    ]
    body = {"version": VERSION, "name": "XNYS", "package": package_version(), "sessions": sessions}
    body |= {"first": "2010-01-01", "last": "2099-12-31"}
    (folder / "calendar-XNYS.json").write_text(json.dumps(body, separators=(",", ":")))


def configured(tmp_path: Path, port: int, *, auto_connect: bool = True, plan: str = "") -> ServerProcess:
    """Give a server whose gateway listens at a port; its strategy leaves by a `plan`, else after two seconds."""
    server = ServerProcess(tmp_path)
    market_is_open(server.data)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "movers.py").write_text(
        MOVERS.replace("time_stop_seconds=2", plan or "time_stop_seconds=2")
    )
    text = CONFIG.format(port=port, auto_connect=str(auto_connect).lower())
    (tmp_path / "server_config.yaml").write_text(text)
    (tmp_path / "server_config.yaml").chmod(0o600)
    return server


def events(listener: MqttListener, kind: str) -> list[Any]:
    """List what MQTT has told of one step of orders."""
    bodies = [json.loads(payload)["data"] for payload in listener.of("/event/trade_event")]
    return [body for body in bodies if body["event"] == kind]


def test_scan_trigger_bracket_fills_exits_flat(tmp_path: Path, gateway: Gateway) -> None:
    """What rises is bought with its stop as one unit, left by the time stop, and both sides end flat and agree."""
    with configured(tmp_path, gateway.port) as server, MqttListener(server) as listener:
        server.until(lambda: server.get("/api/status")["engine"] == "running", "the engine")
        status = server.get("/api/status")
        assert (status["ibkr"], status["broker"]["socket"], status["broker"]["link"]) == ("connected", "up", "up")
        server.until(lambda: server.request("POST", "/api/scan", {})[0] == 200, "a scan")
        server.until(lambda: server.get("/api/watchlist")["count"] > 0, "the watchlist")
        server.until(lambda: gateway.do(lambda: gateway.tws.requests("reqMktData")), "the subscription")

        moves = itertools.count()

        def rises() -> bool:
            gateway.trade(10.0 if next(moves) % 100 < 50 else 10.1)  # the strategy must see it below first
            return bool(gateway.filled("BUY"))

        server.until(rises, "the entry")
        placed = gateway.do(lambda: [each.values for each in gateway.tws.requests("placeOrder")])
        sent = [each for each in placed if each["whatIf"] != "1"]
        assert [each["transmit"] for each in sent[:2]] == ["0", "1"]
        assert sent[1]["parentId"] == sent[0]["orderId"]
        assert sent[1]["orderType"] == "STP"

        def flat() -> bool:
            gateway.trade(10.1)
            return bool(gateway.filled("SELL")) and server.get("/api/status")["active_positions"] == 0

        server.until(flat, "the exit")
        server.until(lambda: not gateway.do(lambda: gateway.tws.orders(live=True)), "the end of the stop")
        assert not gateway.do(gateway.tws.state)["accounts"]["DU1234567"]["positions"]
        server.until(lambda: len(events(listener, "filled")) >= 2, "the fills on MQTT")
        bought, sold = events(listener, "filled")[:2]
        assert (bought["side"], sold["side"], bought["symbol"]) == ("buy", "sell", "TEST")
        trades = server.get("/api/trades")["trades"]
        assert {trade["commission"] > 0 for trade in trades} == {True}
        account = server.get("/api/account")
        assert account["mode"] == "paper"
        cash = gateway.do(gateway.tws.state)["accounts"]["DU1234567"]["cash"]
        assert account["cash"] == pytest.approx(float(cash), abs=0.01)
        assert server.get("/api/status")["held"] == []
        assert server.stop() == 0


def bought(server: ServerProcess, gateway: Gateway) -> None:
    """Have the strategy buy."""
    server.until(lambda: server.get("/api/status")["engine"] == "running", "the engine")
    server.until(lambda: server.request("POST", "/api/scan", {})[0] == 200, "a scan")
    server.until(lambda: gateway.do(lambda: gateway.tws.requests("reqMktData")), "the subscription")
    moves = itertools.count()

    def rises() -> bool:
        gateway.trade(10.0 if next(moves) % 100 < 50 else 10.1)
        return bool(gateway.filled("BUY"))

    server.until(rises, "the entry")


@pytest.mark.parametrize("by", ["trail", "time"])
def test_exits_that_rest_at_ib_need_no_server(tmp_path: Path, gateway: Gateway, by: str) -> None:
    """With the server killed, its trail or time stop closes at IB; the next start counts that and adds nothing."""
    seconds = 600 if by == "trail" else 8
    plan = f"time_stop_seconds={seconds}, trail_amount=Decimal('0.10'), trail_activation_percent=Decimal(1)"
    with configured(tmp_path, gateway.port, plan=plan) as server:
        bought(server, gateway)

        def at_rest() -> bool:
            live = {each["orderType"]: each for each in gateway.live()}
            stop, rest = live.get("STP"), live.get("MKT")
            return bool(stop and rest and stop["triggerPrice"] and rest["goodAfterTime"] and len(live) == 2)

        server.until(at_rest, "the stop with its trail, and the time stop")
        server.stop(signal.SIGKILL)
        sent = len(gateway.do(lambda: gateway.tws.requests("placeOrder")))
        if by == "trail":
            gateway.trade(10.3)
            assert {each["orderType"] for each in gateway.live()} == {"TRAIL", "MKT"}
            gateway.trade(10.19)

        end = time.monotonic() + 20
        while gateway.live():
            assert time.monotonic() < end, gateway.live()
            time.sleep(0.1)
        assert len(gateway.filled("SELL")) == 1
        assert not gateway.do(gateway.tws.state)["accounts"]["DU1234567"]["positions"]

        server.start()
        server.until(lambda: server.get("/api/status")["ibkr"] == "connected", "the connection")
        server.until(lambda: server.get("/api/status")["active_positions"] == 0, "the recovered fill")
        trades = server.get("/api/trades")["trades"]
        assert [(trade["side"], trade["quantity"]) for trade in trades] == [
            ("sell", trades[0]["quantity"]),
            ("buy", trades[0]["quantity"]),
        ]
        time.sleep(1)
        status = server.get("/api/status")
        assert (status["held"], status["active_positions"]) == ([], 0)
        assert server.get("/api/orders")["orders"] == []
        assert not gateway.live()
        assert len(gateway.do(lambda: gateway.tws.requests("placeOrder"))) == sent
        cash = gateway.do(gateway.tws.state)["accounts"]["DU1234567"]["cash"]
        assert server.get("/api/account")["cash"] == pytest.approx(float(cash), abs=0.01)
        assert server.stop() == 0


def test_without_a_gateway(tmp_path: Path, gateway: Gateway) -> None:
    """With no gateway the server serves and says so; a gateway that comes is connected by itself."""
    gateway.wait(gateway.tws.go_away())
    with configured(tmp_path, gateway.port) as server:
        status = server.get("/api/status")
        assert (status["server"], status["ibkr"], status["broker"]["socket"]) == (
            "running",
            "disconnected",
            "down",
        )
        server.until(lambda: "can't be reached" in str(server.get("/api/status")["broker"]["error"]), "the reason")
        gateway.wait(gateway.tws.come_back())
        server.until(lambda: server.get("/api/status")["ibkr"] == "connected", "the connection")
        server.until(lambda: server.get("/api/status")["broker"]["error"] is None, "the end of the reason")
        gateway.do(gateway.tws.restart)
        server.until(lambda: server.get("/api/status")["ibkr"] == "disconnected", "the restart")
        server.until(lambda: server.get("/api/status")["ibkr"] == "connected", "the connection")
        assert server.stop() == 0


def test_it_waits_for_a_command(tmp_path: Path, gateway: Gateway) -> None:
    """With `auto_connect: false` orders wait for `broker_connect`; the server is there all the same."""
    with configured(tmp_path, gateway.port, auto_connect=False) as server:
        server.until(lambda: gateway.do(lambda: gateway.tws.clients), "the feed")
        assert [client.client_id for client in gateway.do(lambda: gateway.tws.clients)] == [2]
        status = server.get("/api/status")
        assert (status["ibkr"], status["broker"]["readonly"]) == ("disconnected", False)
        assert status["broker"]["error"] == "ibkr.auto_connect is off; send broker_connect"
        server.until(
            lambda: any("auto_connect is off; send broker_connect" in line for line in server.lines), "why"
        )
        assert server.request("POST", "/api/broker/connect")[0] == 200
        server.until(lambda: server.get("/api/status")["ibkr"] == "connected", "the connection")
        assert server.stop() == 0

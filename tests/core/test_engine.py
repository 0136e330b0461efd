"""The engine: its states and who may change them, what survives a restart, and what no plugin can stop."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from pytest_mock import MockerFixture

from sigma9_core import deadman as deadman_module
from sigma9_core import dispatcher as dispatcher_module
from sigma9_core import engine as engine_module
from sigma9_core import keeping
from sigma9_core import watchdog as watchdog_module
from sigma9_core.clock import rfc3339
from sigma9_core.errors import CommandError, JournalError, PluginError, StateError
from sigma9_core.events import StatusUpdate, TradeEvent, WatchlistUpdate
from sigma9_core.models import OrderRequest, Slice, Trade
from sigma9_core.money import path as path_module
from sigma9_core.money.records import CommandRecord
from sigma9_core.state import MOST_BYTES
from sigma9_core.status import AT_MOST_EVERY
from sigma9_core.testing.engine_room import START, EngineRoom, threads, write_calendar

ALWAYS_OPEN = partial(write_calendar, always=True)
LIVE: dict[str, Any] = {"plugin_settings": {"hand": {"clock": "live"}}, "calendar": ALWAYS_OPEN}

SCANNER = """
from datetime import timedelta
import polars as pl
from sigma9_core.contracts import Signal
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ExitPlan
from sigma9_core.testing.engine_room import HandFeed

def make_bars(symbols, as_of, sessions):
    days = [as_of - timedelta(days=n) for n in reversed(range(sessions))]
    rows = [(symbol, day, 10.0, 10.1, 9.9, 10.0, 1e6) for symbol in symbols for day in days]
    return pl.LazyFrame(rows, schema=["symbol", "ts", "open", "high", "low", "close", "volume"], orient="row")

HandFeed.make_bars = staticmethod(make_bars)

class Trigger:
    def __init__(self, owner):
        self.owner = owner
        self.lists = []
        self.prices = []
        self.events = []
        self.fails = False
        self.calls = 0

    def watch(self, items, history):
        self.lists.append([item.symbol for item in items])

    def on_slice(self, data, session):
        self.calls += 1
        self.prices += [trade.price for trade in data.trades]
        if self.fails:
            raise KeyError("no such box")
        hits = [trade for trade in data.trades if trade.price == 11]
        return [Signal(trade.symbol, "buy", trade.ts, trade.price, ExitPlan()) for trade in hits]

    def on_trade_event(self, event, ts):
        self.events.append(str(event.event))

class Scanner:
    version = "1"
    lookback = 2
    watchlist_size = 10

    def __init__(self):
        self.instance = Trigger(self)

    def scan(self, bars):
        return bars.with_columns(score=pl.lit(80.0), priority=pl.lit(100), stage=pl.lit(4))

    def trigger(self):
        return self.instance

@hookimpl
def register_scanners(register):
    register("breakout", lambda config, context: Scanner())
"""
BREAKOUT: dict[str, Any] = {"plugins": {"breakout": SCANNER}, "scanners": ({"plugin": "breakout"},)}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what looks around now and then do so at once."""
    monkeypatch.setattr(engine_module, "REFRESH", 0.05)
    monkeypatch.setattr(deadman_module, "LOOK", 0.02)
    monkeypatch.setattr(path_module, "CANCELLED_WITHIN", 0.3)


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[EngineRoom]:
    async with EngineRoom(tmp_path) as room:
        yield room


@pytest.fixture(name="trading")
async def _trading(tmp_path: Path) -> AsyncIterator[EngineRoom]:
    async with EngineRoom(tmp_path, **BREAKOUT) as room:
        yield room


def state_of(room: EngineRoom) -> str:
    return room.engine.state


def trigger_of(room: EngineRoom) -> Any:
    return room.engine.runner.strategies["breakout"].trigger


async def entry(room: EngineRoom, symbol: str = "AAPL") -> str:
    """Try an entry; give the status of its order, or the code that refused it."""
    response = await room.send("place_order", id=f"{time.monotonic_ns()}", symbol=symbol, side="buy", quantity=10)
    return str(response.error["code"] if response.error else (response.result or {})["order"]["status"])


# --- states -----------------------------------------------------------------------------------------------------


async def test_the_states_and_what_they_let_in(room: EngineRoom) -> None:
    """Running takes entries; paused and stopped take none, and say so; exits are taken in every state."""
    engine = room.engine
    assert (engine.state, await entry(room)) == ("running", "accepted")
    held = await room.order("MSFT")
    await room.fill(held["order_id"])

    assert await room.do("pause") == {"engine": "paused"}
    assert await entry(room) == "not_running"
    exit_order = await room.order("MSFT", "sell", 40)
    assert exit_order["status"] == "accepted"
    await room.fill(exit_order["order_id"])

    assert await room.do("resume") == {"engine": "running"}
    assert await entry(room) == "accepted"

    assert await room.do("stop") == {"engine": "stopped"}
    refused = await room.send("place_order", id="x", symbol="AAPL", side="buy", quantity=1)
    assert refused.error is not None
    assert "the engine is not running" in refused.error["message"]
    assert (await room.do("close_position", symbol="MSFT"))["orders"][0]["status"] == "accepted"

    assert await room.do("start") == {"engine": "running"}
    assert await entry(room) == "accepted"


async def test_commands_that_change_nothing_are_fine_and_the_others_say_why(room: EngineRoom) -> None:
    """Starting what runs, pausing what is paused and stopping what stands is fine; pausing what stands is not."""
    for name, state in (("start", "running"), ("pause", "paused"), ("pause", "paused"), ("start", "running")):
        assert await room.do(name) == {"engine": state}
    assert await room.do("resume") == {"engine": "running"}
    for _ in range(2):
        assert await room.do("stop") == {"engine": "stopped"}
    assert await room.refused("pause") == "not_running"
    assert await room.refused("resume") == "not_running"
    assert await room.do("control", command="start") == {"engine": "running"}
    assert await room.do("control", command="stop") == {"engine": "stopped"}


async def test_a_stop_ends_entries_and_leaves_exits(trading: EngineRoom) -> None:
    """Working entries are cancelled; the protective stop of a position goes on working."""
    await trading.do("scan")
    await trading.tick("AAPL", price=11)
    await trading.fill_all("11")
    resting = await trading.order("MSFT", order_type="limit", limit_price=5)
    await trading.do("stop")

    await trading.until(lambda: trading.steps(resting["order_id"])[-1] == "cancelled")
    orders = trading.engine.path.desk.open_orders()
    assert [order.request.reason for order in orders] == ["protective stop"]


async def test_each_change_is_told_with_its_reason(room: EngineRoom) -> None:
    """A status_update names the part, the new state and who wanted it."""
    await room.do("pause", reason="lunch")
    await room.until(lambda: any("engine paused: lunch" in str(u.reason) for u in room.updates()))
    await room.do("stop")
    await room.until(lambda: any("engine stopped: command by api" in str(u.reason) for u in room.updates()))

    update = room.updates()[-1]
    assert "engine" in update.changed
    assert update.status["engine"] == room.body("status")["engine"] == "stopped"


async def test_nothing_starts_before_the_broker_is_reconciled(room: EngineRoom) -> None:
    """Without a broker a start is refused and says so; the engine stays as it was."""
    await room.do("stop")
    assert room.body("status")["broker"]["error"] is None
    assert await room.do("broker_disconnect") == {"broker": "disconnected"}
    await room.until(lambda: room.body("status")["broker"]["error"] == "it was disconnected: send broker_connect")
    response = await room.send("start")

    assert response.error is not None
    assert response.error["code"] == "broker_unavailable"
    assert room.engine.state == "stopped"
    assert await room.do("broker_connect") == {"broker": "connected"}
    assert await room.do("start") == {"engine": "running"}


# --- changes that cross each other ------------------------------------------------------------------------------


async def hold_start(room: EngineRoom) -> tuple[asyncio.Task[Any], threading.Event]:
    """Begin to start, and hold the start while a trigger is told its list."""
    await room.do("watchlist_add", symbol="AAPL")
    await room.do("stop")
    await room.do("scan")
    room.engine.runner.strategies["breakout"].watched = frozenset()
    entered, held = threading.Event(), threading.Event()

    def wait(_symbol: str) -> Any:
        entered.set()
        held.wait(5)
        return ()

    room.feed.on_minute_bars = wait
    starting = asyncio.create_task(room.send("start"))
    await asyncio.to_thread(entered.wait, 5)
    assert room.engine.state == "starting"
    return starting, held


async def test_a_stop_beats_a_start_that_is_on_its_way(trading: EngineRoom) -> None:
    """Who stops while the engine starts finds it stopped, with the gate closed."""
    starting, held = await hold_start(trading)
    stopping = asyncio.create_task(trading.do("stop"))
    await asyncio.sleep(0.02)
    held.set()

    assert await stopping == {"engine": "stopped"}
    response = await starting
    assert (response.error or {}).get("code") == "conflict"
    assert trading.engine.state == "stopped"
    assert not trading.engine.runner.entering
    assert await entry(trading) == "not_running"


async def test_a_stop_beats_a_gate_that_is_being_opened(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that comes in the very moment of the start is not undone by it."""
    await room.do("stop")
    take, opening = room.engine.path.take_entries, threading.Event()

    async def slow() -> bool:
        taken = await take()
        opening.set()
        await asyncio.sleep(0.1)
        return taken

    monkeypatch.setattr(room.engine.path, "take_entries", slow)
    starting = asyncio.create_task(room.send("start"))
    await asyncio.to_thread(opening.wait, 5)
    assert await room.do("stop") == {"engine": "stopped"}

    assert ((await starting).error or {}).get("code") == "conflict"
    assert (room.engine.state, room.engine.runner.entering) == ("stopped", False)
    assert await entry(room) == "not_running"


async def test_a_kill_beats_a_start_that_is_on_its_way(trading: EngineRoom) -> None:
    """A kill does not wait for the start, and the start is refused."""
    starting, held = await hold_start(trading)
    await trading.do("kill_switch", reason="test")
    held.set()

    assert ((await starting).error or {}).get("code") == "killed"
    await trading.until(lambda: trading.engine.state == "killed")
    await trading.do("reset_kill_switch", reason="seen")
    assert trading.engine.state == "stopped"
    assert await entry(trading) == "not_running"


async def test_a_start_waits_for_a_stop_that_is_on_its_way(room: EngineRoom) -> None:
    """A switch that is turned off and on again quickly ends on, whatever the cancels take."""
    await room.order(order_type="limit", limit_price=5)
    room.exchange.faults.add("no_cancel")
    stopping = asyncio.create_task(room.do("stop"))
    await room.until(lambda: room.engine.state == "stopping")
    starting = asyncio.create_task(room.do("start"))
    await asyncio.sleep(0.05)
    assert not starting.done()

    assert await stopping == {"engine": "stopped"}
    assert await starting == {"engine": "running"}
    assert room.engine.runner.entering
    assert await entry(room, "MSFT") == "accepted"


async def test_a_kill_beats_a_pause_that_is_on_its_way(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause that ends after a kill does not hide it."""
    ask = room.engine.money.ask

    async def slow(function: Any, *args: Any) -> Any:
        if function == room.engine.path.gate.pause:
            await asyncio.sleep(0.1)
        return await ask(function, *args)

    monkeypatch.setattr(room.engine.money, "ask", slow)
    pausing = asyncio.create_task(room.send("pause"))
    await asyncio.sleep(0.02)
    await room.do("kill_switch", reason="test")
    response = await pausing

    assert response.error is not None
    assert room.engine.state == "killed"


async def test_many_commands_at_once_leave_state_and_gate_in_line(room: EngineRoom) -> None:
    """Whatever order they run in: what the state says is what the gate does."""
    for number in range(12):
        names = [("start", "stop", "pause", "resume")[(number + n * n) % 4] for n in range(6)]
        await asyncio.gather(*(room.send(name) for name in names))
        state = room.engine.state
        assert state in ("running", "paused", "stopped")
        assert (
            (await entry(room, f"S{number}") == "accepted") == (state == "running") == room.engine.runner.entering
        )


# --- what a person said last ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (("stop",), "stopped"),
        (("pause",), "paused"),
        (("stop", "start"), "running"),
        (("pause", "resume"), "running"),
        (("pause", "stop"), "stopped"),
    ],
)
async def test_what_a_person_said_last_beats_the_automatic_start(
    room: EngineRoom, said: tuple[str, ...], state: str
) -> None:
    """Start, stop and pause are durable: the next start is as the person left it."""
    for name in said:
        await room.do(name)
    await room.__aexit__()
    async with room.again() as after:
        assert after.engine.state == state
        assert (await entry(after) == "accepted") == (state == "running")


async def test_a_person_s_start_of_what_runs_is_remembered(room: EngineRoom) -> None:
    """A person's start of what had started by itself counts after a restart without auto start."""
    await room.do("start")
    await room.__aexit__()
    async with room.again(engine={"auto_start": False}) as after:
        assert after.engine.state == "running"


async def test_without_a_person_s_word_the_configuration_decides(tmp_path: Path) -> None:
    """`auto_start: false` leaves it stopped."""
    async with EngineRoom(tmp_path, engine={"auto_start": False}) as room:
        assert room.engine.state == "stopped"
        assert await entry(room) == "not_running"


@pytest.mark.parametrize(("mode", "state"), [("paper", "running"), ("live", "stopped")])
async def test_a_live_account_is_not_started_by_itself(
    tmp_path: Path, mode: Literal["paper", "live"], state: str
) -> None:
    """Where nobody has said anything a paper account trades at once, a live one waits for a person."""
    settings: dict[str, Any] = {"hand": {"clock": "live"}, "exchange": {"mode": mode}}
    async with EngineRoom(tmp_path, plugin_settings=settings, calendar=ALWAYS_OPEN) as room:
        assert (room.engine.state, room.engine.clock.kind) == (state, "live")
        await room.until(lambda: room.body("account")["mode"] == mode)


async def test_the_dead_man_s_pause_is_nobody_s_word(tmp_path: Path) -> None:
    """What was paused by the dead man's switch runs after a restart."""
    async with EngineRoom(tmp_path, dead_man={"timeout": 0.3}) as room:
        await room.do("heartbeat")
        await room.until(lambda: room.engine.state == "paused")
    async with room.again() as after:
        assert after.engine.state == "running"


# --- kill and reset ---------------------------------------------------------------------------------------------


async def test_killed_refuses_start_until_a_person_resets_it(room: EngineRoom) -> None:
    """Killed is a state that only a reset ends; after it the engine is stopped and takes no entries."""
    await room.do("kill_switch", reason="test")
    await room.until(lambda: state_of(room) == "killed")
    assert [await room.refused(name) for name in ("start", "resume")] == ["killed"] * 2
    assert await entry(room) == "killed"

    await room.do("reset_kill_switch", reason="seen")
    assert state_of(room) == "stopped"
    refused = await room.send("place_order", id="x", symbol="AAPL", side="buy", quantity=1)
    assert refused.error is not None
    assert refused.error["details"]["rule"] == "engine"
    assert await room.do("start") == {"engine": "running"}
    assert await entry(room) == "accepted"


async def test_a_kill_outlives_a_restart_and_so_does_its_reset(room: EngineRoom) -> None:
    """Killed stays killed; after a reset nothing starts by itself."""
    await room.do("kill_switch", reason="test")
    await room.__aexit__()
    async with room.again() as after:
        assert state_of(after) == "killed"
        assert after.body("status")["kill_switch"]["latched"] is True
        assert await after.refused("start") == "killed"
        await after.do("reset_kill_switch", reason="seen")
        assert state_of(after) == "stopped"
    async with after.again() as later:
        assert later.engine.state == "stopped"


async def test_a_scoped_kill_stops_its_strategy_and_no_other(trading: EngineRoom) -> None:
    """The strategy sees no more market and the engine runs on; so it stays over a restart, until it is reset."""
    await trading.do("scan")
    await trading.do("kill_switch", reason="test", scope={"strategy": "breakout"})
    await trading.tick("AAPL", price=11)
    assert trigger_of(trading).prices == []
    assert (trading.engine.state, await entry(trading)) == ("running", "accepted")
    await trading.__aexit__()

    async with trading.again() as after:
        assert after.engine.state == "running"
        await after.tick("AAPL", price=11)
        assert trigger_of(after).prices == []
        await after.do("reset_kill_switch", reason="seen", scope={"strategy": "breakout"})
        await after.tick("AAPL", price=11)
        assert trigger_of(after).prices == [11.0]
        await after.until(lambda: trigger_of(after).events[:1] == ["submitted"])


async def test_a_kill_of_a_strategy_that_is_not_there_is_no_kill(trading: EngineRoom) -> None:
    """A misspelt name is told, with those that there are: `ok` would claim that something was stopped."""
    response = await trading.send("kill_switch", scope={"strategy": "brakeout"})
    assert response.error is not None
    assert response.error["code"] == "not_found"
    assert response.error["details"]["field"] == "scope.strategy"
    assert "nothing was stopped; there are: breakout" in response.error["message"]
    assert trading.body("kill_switch")["scopes"] == []

    await trading.do("scan")
    await trading.tick("AAPL", price=11)
    await trading.fill_all("11")
    await trading.__aexit__()
    gone: dict[str, Any] = {"plugins": {}, "scanners": ()}
    async with trading.again(**gone) as after:  # its position is there, though its plugin is not any more
        await after.do("kill_switch", scope={"strategy": "breakout"})
        assert after.engine.path.killswitch.covers_strategy("breakout")


async def test_a_person_s_sale_of_a_strategy_s_position_is_told_to_the_strategy(trading: EngineRoom) -> None:
    """Whoever reduces it, the trigger hears that its position is gone."""
    await trading.do("scan")
    await trading.tick("AAPL", price=11)
    await trading.fill_all("11")
    held = int(trading.engine.path.portfolio.quantity("AAPL"))
    sale = await trading.order("AAPL", "sell", held)
    await trading.fill(sale["order_id"], "11")

    told = [each for each in trading.told(TradeEvent) if each.order_id == sale["order_id"]]
    assert [str(each.event) for each in told] == ["submitted", "accepted", "filled"]
    assert {each.strategy for each in told} == {"breakout"}


async def test_what_a_kill_means_for_the_next_start_is_saved_once_it_can_be(
    room: EngineRoom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a full disk it waits, is said once, and is there as soon as the disk is; a later word beats it."""
    monkeypatch.setattr(keeping, "SAVE_AGAIN", 0.02)
    save, full = room.engine.documents.save, True

    async def sometimes(name: str, body: Any) -> None:
        if full:
            raise StateError("no space left")
        await save(name, body)

    monkeypatch.setattr(room.engine.documents, "save", sometimes)
    await room.do("kill_switch", reason="test")
    await room.until(lambda: "the document commanded is saved as soon as it can be" in caplog.text)
    await asyncio.sleep(0.1)
    assert caplog.text.count("the document commanded is saved as soon as it can be") == 1
    full = False
    await room.until(lambda: room.engine.documents.get("commanded") == {"state": "stop"})

    await room.do("reset_kill_switch", reason="seen")
    full = True
    room.engine.keeping.keep("commanded", {"state": "stop"})
    await asyncio.sleep(0.03)
    full = False
    await room.do("start")
    await asyncio.sleep(0.1)
    assert room.engine.documents.get("commanded") == {"state": "start"}


async def test_a_document_that_cannot_be_saved_holds_up_no_other(
    room: EngineRoom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a kill means for the next start is saved, and told of, whatever waits before it."""
    monkeypatch.setattr(keeping, "SAVE_AGAIN", 0.02)
    room.engine.keeping.keep("watchlist", {"text": "x" * (MOST_BYTES + 1)})
    await room.until(lambda: "the document watchlist is saved as soon as it can be" in caplog.text)
    room.engine.keeping.keep("commanded", {"state": "stop"})
    await room.until(lambda: room.engine.documents.get("commanded") == {"state": "stop"})

    assert caplog.text.count("the document watchlist is saved as soon as it can be") == 1


async def test_a_start_that_cannot_be_saved_leaves_the_word_before_it(
    room: EngineRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that is refused because its word can't be saved does not make a kill's word be forgotten."""
    monkeypatch.setattr(keeping, "SAVE_AGAIN", 0.02)
    save, full = room.engine.documents.save, True

    async def sometimes(name: str, body: Any) -> None:
        if full:
            raise StateError("no space left")
        await save(name, body)

    monkeypatch.setattr(room.engine.documents, "save", sometimes)
    room.engine.keeping.keep("commanded", {"state": "stop"})
    assert await room.refused("start") == "internal"
    full = False

    await room.until(lambda: room.engine.documents.get("commanded") == {"state": "stop"})


async def test_what_was_paused_starts_paused(room: EngineRoom) -> None:
    """A restart of a paused engine never passes through `running`: no entry can slip in."""
    await room.do("pause")
    await room.__aexit__()
    async with room.again() as after:
        assert after.engine.state == "paused"
        assert await entry(after) == "not_running"
        states = [update.status["engine"] for update in after.updates()]
        assert "running" not in states
        await after.do("resume")
        assert await entry(after) == "accepted"


async def test_a_simulated_market_goes_on_where_it_was_though_it_crashed(room: EngineRoom) -> None:
    """The clock is kept now and then, so that a quiet hour is not played again after a kill -9."""
    await room.tick("AAPL", seconds=3600)
    now = room.engine.clock.now()
    await room.until(lambda: (room.engine.documents.get("clock") or {}).get("ts") == rfc3339(now))
    await room.__aexit__()
    async with room.again() as after:
        assert after.engine.clock.now() == now
        assert after.feed.connected_since == [now]


async def test_a_trigger_hears_after_a_restart_what_became_of_its_orders(trading: EngineRoom) -> None:
    """Its open position and its day are told before the first slice, so that it goes on as if nothing had been."""
    await trading.do("scan")
    await trading.tick("AAPL", price=11)
    await trading.fill_all("11")
    await trading.until(lambda: "filled" in trigger_of(trading).events)
    before = list(trigger_of(trading).events)
    await trading.__aexit__()

    async with trading.again() as after:
        assert trigger_of(after).events[: len(before)] == before
        assert after.engine.path.portfolio.quantity("AAPL") > 0


@pytest.mark.parametrize("before", ["running", "paused", "stopped"])
async def test_a_drill_leaves_the_engine_as_it_was(room: EngineRoom, before: str) -> None:
    """After a drill what ran runs, what was paused is paused, and what stood stands, also after a restart."""
    if before != "running":
        await room.do({"paused": "pause", "stopped": "stop"}[before])
    result = await room.do("kill_drill")
    assert result["phase"] == "done"
    assert (room.engine.state, room.body("kill_switch")["state"]) == (before, "OFF")
    assert (await entry(room) == "accepted") == (before == "running")
    await room.__aexit__()

    async with room.again() as after:
        assert after.engine.state == before


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_a_stop_during_a_drill_is_kept(room: EngineRoom, turns: int, mocker: MockerFixture) -> None:
    """Whoever stops the engine while a drill works, at whatever moment, finds it stopped, also after a restart."""
    tell, stops = room.engine._set_state, list[asyncio.Task[Any]]()

    async def stop() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await room.do("stop")

    def hear(state: Any, reason: str) -> None:
        tell(state, reason)
        if state == "killed":
            stops.append(asyncio.create_task(stop()))

    mocker.patch.object(room.engine, "_set_state", hear)
    await room.do("kill_drill")
    await stops[0]
    assert (room.engine.state, room.body("kill_switch")["state"]) == ("stopped", "OFF")
    await room.__aexit__()

    async with room.again() as after:
        assert after.engine.state == "stopped"


async def test_a_stop_while_it_starts_counts_for_more(room: EngineRoom, mocker: MockerFixture) -> None:
    """A stop that comes while a start has only been noted is not undone by it."""
    await room.do("stop")
    save, noted, go_on = room.engine.keeping.save, asyncio.Event(), asyncio.Event()

    async def slow(name: str, document: Any) -> None:
        await save(name, document)
        noted.set()
        await go_on.wait()

    mocker.patch.object(room.engine.keeping, "save", slow)
    start = asyncio.create_task(room.refused("start"))
    await noted.wait()
    stop = asyncio.create_task(room.do("stop"))
    await room.until(lambda: (room.engine.documents.get("commanded") or {}).get("state") == "stop")
    go_on.set()
    await stop
    assert await start == "conflict"
    assert room.engine.state == "stopped"


# --- plugins, rules, watchlist over a restart -------------------------------------------------------------------


async def test_a_switched_off_strategy_stays_off(trading: EngineRoom) -> None:
    """It sees nothing and scans nothing, now and after a restart; switched on it gets the whole list."""
    await trading.do("scan")
    await trading.do("plugin_disable", name="breakout")
    assert trading.row("breakout")["enabled"] is False
    await trading.tick("AAPL", price=11)
    assert trigger_of(trading).prices == []
    assert await trading.refused("scan") == "conflict"
    await trading.__aexit__()

    async with trading.again() as after:
        assert after.row("breakout")["enabled"] is False
        assert trigger_of(after).lists == []
        await after.do("plugin_enable", name="breakout")
        assert trigger_of(after).lists == [["AAPL", "MSFT"]]
        await after.tick("AAPL", price=11)
        assert trigger_of(after).prices == [11.0]


async def test_a_switched_off_rule_stays_off(room: EngineRoom) -> None:
    """With the only rule off no entry passes, also after a restart; switched on, entries pass."""
    await room.do("plugin_disable", name="max_order_quantity")
    assert await entry(room) == "risk_rejected"
    await room.__aexit__()
    async with room.again() as after:
        assert await entry(after) == "risk_rejected"
        assert after.row("max_order_quantity")["enabled"] is False
        await after.do("plugin_enable", name="max_order_quantity")
        assert await entry(after) == "accepted"


async def test_what_is_not_there_can_t_be_switched(room: EngineRoom) -> None:
    """An unknown name is not_found, and says which there are."""
    response = await room.send("plugin_disable", name="nothing")

    assert response.error is not None
    assert response.error["code"] == "not_found"
    assert "max_order_quantity" in response.error["message"]


async def test_a_rule_s_settings_outlive_a_restart(room: EngineRoom) -> None:
    """`risk_set` counts at once and after a restart, with numbers as every surface sends them."""
    result = await room.do("risk_set", rule="max_order_quantity", max_shares=Decimal("7.5"))
    assert result == {"rule": "max_order_quantity", "settings": {"max_shares": 7.5}}
    assert await entry(room) == "risk_rejected"
    await room.__aexit__()
    async with room.again() as after:
        assert await entry(after) == "risk_rejected"
        await after.do("risk_set", rule="max_order_quantity", max_shares=20)
        assert await entry(after) == "accepted"


async def test_a_rule_that_is_off_stays_off_when_it_is_changed(room: EngineRoom) -> None:
    """New settings do not switch a rule on, and the status does not say so."""
    await room.do("plugin_disable", name="max_order_quantity")
    await room.do("risk_set", rule="max_order_quantity", max_shares=50)
    await room.until(lambda: room.row("max_order_quantity")["enabled"] is False)

    assert await entry(room) == "risk_rejected"


async def test_settings_that_do_not_fit_change_nothing(room: EngineRoom) -> None:
    """The answer names the field; rule, status and memory stay as they were; an unknown rule is not_found."""
    response = await room.send("risk_set", rule="max_order_quantity", max_shares=-1)
    assert response.error is not None
    assert (response.error["code"], "max_shares" in response.error["message"]) == ("invalid", True)
    assert await room.refused("risk_set", rule="max_order_quantity", nonsense=1) == "invalid"
    assert await room.refused("risk_set", rule="nothing", limit=1) == "not_found"
    assert await room.refused("risk_clear", rule="nothing") == "not_found"
    assert await entry(room) == "accepted"
    assert room.engine.documents.get("risk") is None
    assert await room.do("risk_clear", rule="max_order_quantity") == {"rule": "max_order_quantity"}


async def test_settings_that_can_t_be_kept_are_not_used(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk refuses, the answer says so, and the old limit stands."""

    async def full(*_: object) -> None:
        raise JournalError("no space left")

    monkeypatch.setattr(room.engine.documents, "save", full)
    assert await room.refused("risk_set", rule="max_order_quantity", max_shares=1) == "internal"

    assert await entry(room) == "accepted"


async def test_a_stop_acts_though_it_can_t_be_kept(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk a stop and a pause still end the entries; the answer says that it was not kept."""

    async def full(*_: object) -> None:
        raise JournalError("no space left")

    monkeypatch.setattr(room.engine.documents, "save", full)
    assert await room.refused("pause") == "internal"
    assert (room.engine.state, await entry(room)) == ("paused", "not_running")
    assert await room.refused("stop") == "internal"
    assert (room.engine.state, await entry(room)) == ("stopped", "not_running")


async def test_the_watchlist_is_kept(trading: EngineRoom) -> None:
    """After a restart the list is there again, told as `restored`, known to the triggers and subscribed."""
    await trading.do("scan")
    await trading.do("watchlist_add", symbol="HAND")
    before = trading.body("watchlist")
    assert [item["symbol"] for item in before["items"]] == ["AAPL", "MSFT", "HAND"]
    await trading.__aexit__()

    async with trading.again() as after:
        assert after.body("watchlist") == before
        await after.until(lambda: after.told(WatchlistUpdate))
        assert [update.reason for update in after.told(WatchlistUpdate)] == ["restored"]
        assert trigger_of(after).lists == [["AAPL", "MSFT"]]
        assert after.feed.subscribed[-1] == {"AAPL", "MSFT", "HAND"}
        assert after.body("status")["watchlist_count"] == 3


async def test_a_damaged_watchlist_does_not_keep_the_server_down(
    room: EngineRoom, caplog: pytest.LogCaptureFixture
) -> None:
    """A list that can't be read is said and left; everything else starts."""
    await room.engine.documents.save("watchlist", {"items": [{"symbol": "AAPL"}]})
    await room.__aexit__()
    async with room.again() as after:
        assert after.engine.state == "running"
        assert after.body("watchlist")["count"] == 0
        assert "the watchlist that was kept can't be read" in caplog.text


# --- the dead man's switch --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "state", "flat"),
    [("pause", "paused", False), ("halt", "killed", False), ("flatten", "killed", True)],
)
async def test_the_dead_man_s_switch_acts(
    tmp_path: Path,
    action: Literal["pause", "halt", "flatten"],
    state: str,
    flat: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without heartbeats it pauses, halts (stops stay) or flattens, in the name of `dead_man`."""
    now = [1000.0]
    monkeypatch.setattr(deadman_module, "monotonic", lambda: now[0])
    async with EngineRoom(tmp_path, dead_man={"timeout": 30, "action": action}, **BREAKOUT) as room:
        assert await room.do("heartbeat") == {"armed": True}
        await room.do("scan")
        await room.tick("AAPL", price=11)
        await room.fill_all("11")
        now[0] += 31
        await room.until(lambda: room.engine.state == state)
        if state == "killed":
            await room.until(lambda: room.body("kill_switch")["source"] == "dead_man")
            assert "no heartbeat for 30 s" in room.body("kill_switch")["reason"]

        def closes() -> list[str]:
            return [o.request.intent for o in room.engine.path.desk.open_orders() if not o.request.protective]

        if flat:
            await room.until(lambda: closes() == ["kill"])
        else:
            await asyncio.sleep(0.3)
            assert closes() == []
            assert [o.request.protective for o in room.engine.path.desk.open_orders()] == [True]


async def test_the_dead_man_sleeps_outside_of_the_session(tmp_path: Path) -> None:
    """With the market closed nobody has to beat."""
    async with EngineRoom(tmp_path, dead_man={"timeout": 0.2}) as room:
        await room.tick(seconds=8 * 3600)
        await room.do("heartbeat")
        await asyncio.sleep(0.5)

        assert room.engine.state == "running"


# --- the market -------------------------------------------------------------------------------------------------


async def test_a_slice_goes_through_money_and_strategies_before_the_next(trading: EngineRoom) -> None:
    """In lock step a signal of one slice is an order before the next slice is taken."""
    await trading.do("scan")
    ts = trading.engine.clock.now()
    for n in range(1, 6):
        moment = ts + timedelta(seconds=n)
        price = 11.0 if n == 3 else 10.0
        trading.feed.put(Slice(moment, trades=(Trade("AAPL", moment, price, 100.0),)))
    await trading.until(lambda: len(trigger_of(trading).prices) == 5)
    await trading.settled()

    intents = [i for i in trading.engine.journal.intents() if i.request.intent == "entry"]
    assert [intent.ts for intent in intents] == [ts + timedelta(seconds=3)]
    await trading.until(lambda: trigger_of(trading).events == ["submitted"] * 2 + ["accepted"] * 2)


async def test_a_renewed_list_is_known_before_the_next_slice(tmp_path: Path) -> None:
    """What a scan of one slice puts on the list every trigger knows at the next one, however slow others are."""
    second = {"plugin": "breakout", "name": "second"}
    settings = {**BREAKOUT, "scanners": ({"plugin": "breakout"}, second)}
    scheduler = {"market_open_scan": True, "market_open_offset_minutes": 60, "daily_data_update": False}
    async with EngineRoom(tmp_path, scheduler=scheduler, **settings) as room:
        two = room.engine.runner.strategies["second"]
        room.engine.runner.stopped.add("breakout")  # it is told the list, and stands before nobody's slice
        slow = threading.Event()

        def bars(_symbol: str) -> Any:
            slow.wait(0.1)
            return ()

        room.feed.on_minute_bars = bars
        known: list[int] = []
        on_slice = two.trigger.on_slice  # type: ignore[union-attr]

        def look(data: Slice, session: Any) -> Any:
            known.append(len(two.trigger.lists))  # type: ignore[union-attr]
            return on_slice(data, session)

        two.trigger.on_slice = look  # type: ignore[union-attr,method-assign]
        for minutes in (10, 25, 35, 36):
            ts = START + timedelta(minutes=minutes)
            room.feed.put(Slice(ts, trades=(Trade("AAPL", ts, 10.0, 1.0),)))
        await room.until(lambda: len(known) == 4)

    assert known == [1, 1, 1, 2]


async def test_quotes_are_of_what_is_watched_or_held(room: EngineRoom) -> None:
    """A quote is shown of watched, held and ordered symbols, and taken away when a symbol is none of these."""
    engine = room.engine
    await room.do("watchlist_add", symbol="AAPL")
    held = await room.order("MSFT")
    await room.until(lambda: room.feed.subscribed[-1] == {"AAPL", "MSFT"})
    await room.fill(held["order_id"])
    await room.until(lambda: room.body("position/MSFT"))
    await room.tick("AAPL", "MSFT", "IBM")
    engine.quotes.show()
    assert {name for name in engine.board.names() if name.startswith("quote/")} == {"quote/AAPL", "quote/MSFT"}
    assert room.body("quote/MSFT")["last"] == 10.0

    await room.do("watchlist_remove", symbol="AAPL")
    await room.do("close_position", symbol="MSFT")
    await room.fill_all()
    await room.until(lambda: not [name for name in engine.board.names() if name.startswith("quote/")])
    await room.until(lambda: room.feed.subscribed[-1] == frozenset())


async def test_a_symbol_is_subscribed_with_its_first_order(
    room: EngineRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order's symbol has data before the board shows the order, and keeps them when the list is renewed."""
    monkeypatch.setattr(path_module, "SHOW_EVERY", 60.0)
    await room.do("watchlist_add", symbol="MSFT")
    await room.until(lambda: room.engine.path._show_timer is None)  # one from before would show the order
    await room.order("MSFT")
    await room.do("watchlist_remove", symbol="MSFT")
    await room.settled()

    assert room.body("orders")["count"] == 0
    assert room.engine.market._wanted == {"MSFT"}


async def test_a_feed_that_fails_is_in_the_status(room: EngineRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed's state, its row and an event say so; when it is back they say that."""
    room.engine.market._wait = 0.4  # long enough for an event of its own
    room.feed.put(ConnectionError("the line broke"))
    await room.until(lambda: room.body("status")["feed"]["state"] == "disconnected")
    assert room.row("hand")["error"] == "ConnectionError: the line broke"
    await room.until(lambda: room.body("status")["feed"]["state"] == "connected")
    await room.until(lambda: room.row("hand")["healthy"])

    assert any("the line broke" in str(update.reason) for update in room.updates())


async def test_open_and_close_of_the_market_are_told(room: EngineRoom) -> None:
    """The status follows the session, and a status_update tells when it changes."""
    await room.tick()
    assert room.body("status")["market"]["open"] is True
    await room.tick(seconds=8 * 3600)
    await room.until(lambda: any("the market has closed" in str(u.reason) for u in room.updates()))

    market = room.body("status")["market"]
    assert (market["open"], market["next_close"]) == (False, None)
    assert market["next_open"] == "2026-03-03T14:30:00.000000Z"


async def test_a_simulated_market_goes_on_where_it_stopped(room: EngineRoom) -> None:
    """After a restart the clock stands where the last event was, and the feed is told so."""
    await room.tick(seconds=3600)
    await room.do("watchlist_add", symbol="AAPL")
    await room.__aexit__()
    async with room.again() as after:
        assert after.engine.clock.now() == START + timedelta(hours=1)
        assert after.feed.connected_since == [START + timedelta(hours=1)]


async def test_a_live_market_does_not_wait_for_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the broker away the feed connects and a missed scan is made; the engine starts once it is there."""
    scheduler = {"market_open_scan": True, "market_open_offset_minutes": 0, "daily_data_update": False}
    room = EngineRoom(tmp_path, scheduler=scheduler, **{**LIVE, **BREAKOUT})
    room.data.lock("main")
    engine = room.build()
    monkeypatch.setattr("sigma9_core.money.link.FIRST_WAIT", 0.02)
    connect, away = room.exchange.connect, [True]

    async def refuse(listener: Any) -> None:
        if away:
            raise ConnectionError("nobody there")
        await connect(listener)

    monkeypatch.setattr(room.exchange, "connect", refuse)
    try:
        await engine.start()
        await room.until(lambda: engine.market.state == "connected")
        await room.until(lambda: engine.watchlist.symbols() == {"AAPL", "MSFT"})
        assert engine.state == "stopped"
        away.clear()
        await room.until(lambda: engine.state == "running")
    finally:
        await room.__aexit__()


# --- plugins that misbehave -------------------------------------------------------------------------------------


async def test_a_trigger_that_raises_is_disabled_after_three_and_the_status_says_so(trading: EngineRoom) -> None:
    """Three failures in a row disable the strategy; row and event name it; a person enables it again."""
    await trading.do("scan")
    trigger_of(trading).fails = True
    trigger_of(trading).calls = 0
    for n in range(5):
        await trading.tick("AAPL", price=10 + n / 100)
    await trading.until(lambda: not trading.row("breakout")["enabled"])

    row = trading.row("breakout")
    assert "disabled after 3 failures in a row; the last one: KeyError: 'no such box'" in row["error"]
    assert row["healthy"] is False
    assert trigger_of(trading).calls == 3
    await trading.until(lambda: any("breakout is disabled" in str(u.reason) for u in trading.updates()))
    assert any("plugins" in update.changed for update in trading.updates())

    trigger_of(trading).fails = False
    await trading.do("plugin_enable", name="breakout")
    await trading.tick("AAPL", price=11)
    assert trigger_of(trading).prices[-1] == 11.0
    await trading.until(lambda: trading.row("breakout")["healthy"])


RULE = """
import threading
from sigma9_core.contracts import RiskRule
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import RuleUsage

class Moody(RiskRule):
    code = "X1"
    mood = "hang"
    held = threading.Event()

    def check(self, order, view):
        if self.mood == "hang":
            self.held.wait(5)
        if self.mood == "raise":
            raise ZeroDivisionError("moody")
        return self.allow()

    def usage(self, view):
        return RuleUsage(rule=self.name)

@hookimpl
def register_risk_rules(register):
    register("moody", lambda config, context: Moody(context.name))
"""


@pytest.mark.parametrize("mood", ["hang", "raise"])
async def test_a_rule_that_fails_refuses_entries_and_lets_exits_pass(tmp_path: Path, mood: str) -> None:
    """A rule plugin that hangs or raises refuses an entry in its name, warns on an exit, and is in the status."""
    risk = ({"plugin": "max_order_quantity"}, {"plugin": "moody"})
    async with EngineRoom(tmp_path, plugins={"moody": RULE}, risk=risk) as room:
        rule: Any = next(g for g in room.engine.path.gate.rules if g.name == "moody").rule
        rule.mood = "well"
        held = await room.order("AAPL")
        await room.fill(held["order_id"])
        rule.mood = mood
        began = time.monotonic()
        refused = await room.send("place_order", id="x", symbol="MSFT", side="buy", quantity=1)
        assert time.monotonic() - began < 1
        assert refused.error is not None
        assert (refused.error["code"], refused.error["details"]["rule"]) == ("risk_rejected", "moody")

        closing = (await room.do("close_position", symbol="AAPL"))["orders"][0]
        assert closing["status"] == "accepted"
        assert [v["outcome"] for v in closing["verdicts"] if v["rule"] == "moody"] == ["warn"]
        await room.until(lambda: not room.row("moody")["healthy"])
        await room.until(lambda: any("the risk rule moody fails" in str(u.reason) for u in room.updates()))

        rule.mood = "well"
        rule.held.set()
        await asyncio.sleep(0.05)
        assert await entry(room, "MSFT") == "accepted"
        await room.until(lambda: room.row("moody")["healthy"])


NOTIFIER = """
from sigma9_core.hookspecs import hookimpl

class Broken:
    types = frozenset(("status_update", "trade_event"))
    tried = 0

    def notify(self, event):
        self.tried += 1
        raise OSError("no network")

@hookimpl
def register_notifiers(register):
    register("broken", lambda config, context: Broken())
"""


async def test_a_notifier_that_raises_disturbs_nobody(tmp_path: Path) -> None:
    """Orders go through at once, and the notifier's row says what is wrong; switched off it stays off."""
    settings: dict[str, Any] = {"plugins": {"broken": NOTIFIER}, "notifiers": ({"plugin": "broken"},)}
    async with EngineRoom(tmp_path, **settings) as room:
        began = time.monotonic()
        assert await entry(room) == "accepted"
        assert time.monotonic() - began < 0.5
        await room.until(lambda: room.row("broken")["error"] == "no network")
        await room.do("plugin_disable", name="broken")
    async with room.again() as after:
        assert after.row("broken")["enabled"] is False


SLEEPER = """
import asyncio
import time
from sigma9_core.hookspecs import hookimpl

class Sleeper:
    async def start(self, server):
        self.server = server

    async def stop(self):
        pass

    def sleep(self, seconds):
        time.sleep(seconds)

@hookimpl
def register_services(register):
    register("sleeper", lambda config, context: Sleeper())
"""


async def test_a_kill_is_answered_while_the_money_lane_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker plugin that blocks the money lane: the door says so, and the kill goes on when it can."""
    monkeypatch.setattr(dispatcher_module, "KILL_ANSWERED", 0.2)
    async with EngineRoom(tmp_path, services=True) as room:
        stuck = threading.Event()
        room.engine.money.post(stuck.wait, 10)
        _, answer = await asyncio.to_thread(room.knock)
        assert answer["ok"] is True
        assert "the gate is closed and nothing leaves" in answer["result"]["note"]
        refused = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(1))
        assert room.engine.path.gate.closed_for(refused) is not None

        stuck.set()
        await room.until(lambda: room.engine.state == "killed")
        await room.until(lambda: room.body("kill_switch")["phase"] == "done")


@pytest.mark.parametrize("action", ["pause", "flatten"])
async def test_the_dead_man_acts_while_the_outer_loop_is_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """A plugin that blocks the outer loop silences every heartbeat, and not the switch."""
    monkeypatch.setattr(deadman_module, "GRACE", 0.3)
    async with EngineRoom(tmp_path, dead_man={"timeout": 0.3, "action": action}) as room:
        await room.do("heartbeat")
        time.sleep(1.5)  # noqa: ASYNC251 - what a plugin does that blocks the loop
        entry = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(1))
        said = room.engine.path.gate.closed_for(entry)
        assert said is not None
        assert ("paused" if action == "pause" else "kill switch") in said
        await room.until(lambda: room.engine.state == ("paused" if action == "pause" else "killed"))


async def test_a_kill_does_not_wait_for_a_blocked_outer_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a service sleeps on the outer loop a kill by the socket is answered at once; the watchdog says so."""
    monkeypatch.setattr(watchdog_module, "BEAT", 0.1)
    monkeypatch.setattr(watchdog_module, "STALLED_AFTER", 0.8)
    settings = {**BREAKOUT, "plugins": {"breakout": SCANNER, "sleeper": SLEEPER}}
    async with EngineRoom(tmp_path, services=True, **settings) as room:
        await room.do("scan")
        await room.tick("AAPL", price=11)
        await room.fill_all("11")
        resting = await room.order("MSFT", order_type="limit", limit_price=5)
        service: Any = dict(room.engine.services)["sleeper"]
        answers: list[tuple[float, dict[str, Any]]] = []

        def knock() -> None:
            time.sleep(0.3)
            answers.append(room.knock())

        knocking = threading.Thread(target=knock)
        knocking.start()
        service.sleep(2)
        asleep = "the outer loop has not run for" in caplog.text
        knocking.join(5)

        seconds, answer = answers[0]
        assert answer["ok"] is True
        assert seconds < 0.2
        assert room.exchange.orders[resting["order_id"]].state == "cancelled"
        assert [o.request.side for o in room.exchange.orders.values() if o.request.intent == "kill"] == ["sell"]
        assert asleep
        await room.until(lambda: room.engine.state == "killed")
        await room.until(lambda: "the outer loop runs again" in caplog.text)


UNSTABLE = """
import asyncio
from sigma9_core.hookspecs import hookimpl

class Unstable:
    starts = 0
    stopped = 0

    async def start(self, server):
        self.starts += 1
        if self.starts == 1:
            raise OSError("no port is free")

    async def stop(self):
        self.stopped += 1

class Hanging:
    async def start(self, server):
        await asyncio.Event().wait()

    async def stop(self):
        await asyncio.Event().wait()

class Unbuildable:
    def __init__(self):
        raise ValueError("no licence")

@hookimpl
def register_services(register):
    register("unstable", lambda config, context: Unstable())
    register("hanging", lambda config, context: Hanging())
    register("unbuildable", lambda config, context: Unbuildable())
"""


async def test_services_of_others_never_hold_up_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One can't be built, one raises and one hangs: the server starts, says so, tries again, and ends."""
    monkeypatch.setattr(engine_module, "SERVICE_WAIT", 0.2)
    monkeypatch.setattr(engine_module, "SERVICE_AGAIN", 0.3)
    monkeypatch.setattr(engine_module, "SERVICE_END", 0.1)
    async with EngineRoom(tmp_path, plugins={"unstable": UNSTABLE}, services=True) as room:
        assert await entry(room) == "accepted"
        assert room.row("unstable")["error"] == "OSError: no port is free"
        assert "no licence" in caplog.text
        unstable: Any = dict(room.engine.services)["unstable"]
        await room.until(lambda: unstable.starts == 2)
        await room.until(lambda: room.row("unstable")["healthy"])

    assert unstable.stopped == 1
    assert "the service hanging did not end within 0.1 s" in caplog.text
    assert threads() == set()


async def test_two_plugins_of_one_name_refuse_the_start(tmp_path: Path) -> None:
    """The start is refused, naming both, and nothing has been begun."""
    plugins = {"one": NOTIFIER, "two": NOTIFIER}
    with pytest.raises(PluginError, match=r"registered by two plugins, 'one' \(.*\) and 'two' \(.*\)"):
        async with EngineRoom(tmp_path, plugins=plugins):
            pass

    assert threads() == set()


async def test_a_plugin_that_can_t_be_imported_is_named_and_the_server_runs(tmp_path: Path) -> None:
    """A plugin that nobody needs is quarantined; the status says why."""
    async with EngineRoom(tmp_path, plugins={"torn": "import nothing_like_it"}) as room:
        assert "nothing_like_it" in room.row("torn")["error"]
        assert await entry(room) == "accepted"


# --- status and events ------------------------------------------------------------------------------------------


async def test_status_updates_are_few_and_a_kill_s_is_at_once(room: EngineRoom) -> None:
    """However often parts change, at most one event in 250 ms; a kill is told without waiting; no gap."""
    times: list[float] = []
    emit = room.engine.status._emit

    def spy(update: StatusUpdate) -> None:
        times.append(time.monotonic())
        emit(update)

    room.engine.status._emit = spy
    end = time.monotonic() + 0.8
    for number in itertools.count():
        room.engine.on_feed("connected", f"slow {number}")
        await asyncio.sleep(0.01)
        if time.monotonic() > end:
            break
    assert 2 <= len(times) <= 5
    assert all(later - earlier > AT_MOST_EVERY - 0.01 for earlier, later in itertools.pairwise(times))

    room.engine.on_feed("connected", "just now")
    before = len(times)
    began = time.monotonic()
    await room.kill_by_socket()
    await room.until(lambda: len(times) > before)
    assert time.monotonic() - began < 0.2
    await room.settled()
    await room.until(lambda: any(u.status["kill_switch"]["state"] == "ON" for u in room.updates()))
    numbers = [event.seq for event in room.events if event.seq is not None]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_a_failing_journal_is_told_once_it_is_back(room: EngineRoom) -> None:
    """While the journal fails changes are collected; one update tells them when it works again."""
    engine = room.engine
    await asyncio.sleep(0.3)
    seen = len(room.updates())
    engine.journal._failure = "no space left"
    for number in range(3):
        engine.report_mqtt("connected" if number % 2 else "disconnected")
        await asyncio.sleep(AT_MOST_EVERY + 0.02)
    assert len(room.updates()) == seen
    assert room.body("status")["mqtt"] == "disconnected"

    engine.journal._failure = None
    engine._on_journal(True, "it works again")
    await room.until(lambda: len(room.updates()) > seen)
    assert room.updates()[-1].changed == ("mqtt",)


async def test_what_integrations_read(room: EngineRoom) -> None:
    """Orders, trades and events can be read as they were told; what is not there is None or empty."""
    order = await room.order()
    await room.fill(order["order_id"], "10.5")
    engine = room.engine
    body = await engine.order(order["order_id"])
    assert body is not None
    assert (body["status"], body["filled_quantity"], body["foreign"]) == ("filled", 100, False)
    assert await engine.order("nothing") is None
    trades = await engine.trades(symbol="AAPL", since=None, limit=10, cursor=None)
    assert [trade["last_price"] for trade in trades["trades"]] == [10.5]

    page = await room.do("events", after=0, limit=1000)
    await room.until(lambda: len(room.events) >= len(page["events"]))
    assert page["events"] == [json.loads(event.raw) for event in room.events if event.seq][: len(page["events"])]
    assert page["journal_id"] == engine.journal.journal_id
    assert await room.refused("events", after=10_000) == "conflict"
    token = room.data.file("admin.token").read_text().strip()
    assert engine.right_of(token) == ("admin", "admin")
    assert engine.right_of("wrong") is None


async def test_a_lost_answer_of_an_order_is_found_again(room: EngineRoom) -> None:
    """An order whose answer was lost in a crash is found by the command's id; one that never was is not."""
    order = await room.order()
    record = CommandRecord("received", "place_order", "test-0-AAPL", "digest", "api", None, START)
    found = await room.engine._recover_order(record)
    lost = CommandRecord("received", "place_order", "never", "digest", "api", None, START)

    assert found is not None
    assert found["order"]["order_id"] == order["order_id"]
    assert await room.engine._recover_order(lost) is None


async def test_a_refusal_whose_answer_was_lost_is_a_refusal_again(tmp_path: Path, mocker: MockerFixture) -> None:
    """A repeat after a crash in the moment of the answer must not be told that all went well."""
    async with EngineRoom(tmp_path) as room:
        await room.tick("AAPL")
        mocker.patch.object(room.engine.dispatcher._rows, "do")  # the process ends before the row is written
        asked: dict[str, Any] = {"symbol": "AAPL", "side": "buy", "quantity": 10_000_000}
        first = await room.send("place_order", id="p1", **asked)
        again = room.again()
    async with again as room:
        second = await room.send("place_order", id="p1", **asked)
    assert first.error is not None
    assert second.error is not None
    assert (first.error["code"], first.error["message"]) == (second.error["code"], second.error["message"])


async def test_jobs(trading: EngineRoom) -> None:
    """The scan is a job; a feed that keeps its own data has nothing to update; any other name is unknown."""
    assert await trading.engine._run_job("market_open_scan") == "2 on the watchlist"
    assert await trading.engine._run_job("daily_data_update") == "the feed keeps its own data"
    with pytest.raises(CommandError, match="no job is called 'tea'"):
        await trading.engine._run_job("tea")


# --- beginning and end ------------------------------------------------------------------------------------------


async def test_the_end_leaves_nothing_behind(room: EngineRoom) -> None:
    """After `stop` no thread and no task of the engine is left; stopping twice is fine."""
    await entry(room)
    engine = room.engine
    await engine.stop()
    await engine.stop()

    assert threads() == set()
    left = {task.get_name() for task in asyncio.all_tasks()} - {"test-reader"}
    assert not [name for name in left if not name.startswith("Task-")]


@pytest.mark.parametrize("part", ["start", "stop"])
async def test_a_start_that_fails_stops_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Whatever fails, also while it is undone, is raised, and the next start finds everything free."""
    room = EngineRoom(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("no more threads")

    with monkeypatch.context() as patch:
        patch.setattr("sigma9_core.notifying.Notifying.start", fail)
        if part == "stop":
            patch.setattr("sigma9_core.money.path.MoneyPath.stop", fail)
        with pytest.raises(OSError, match="no more threads"):
            async with room:
                pass
    assert {name for name in threads() if "latch" not in name} == set()
    async with EngineRoom(tmp_path) as after:
        assert await entry(after) == "accepted"


async def test_a_stop_goes_through_though_trading_does_not_end_in_order(
    room: EngineRoom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that fails in the cancels keeps nothing from being stopped."""

    async def fail(**_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(room.engine.path, "cancel_entries", fail)
    await room.engine.stop()

    assert "the trading did not end in order" in caplog.text
    assert threads() == set()


async def test_entries_are_cancelled_at_the_end_and_exits_stay(trading: EngineRoom) -> None:
    """An orderly end cancels entries; the stop of a position stays at the broker."""
    await trading.do("scan")
    await trading.tick("AAPL", price=11)
    await trading.fill_all("11")
    await trading.order("MSFT", order_type="limit", limit_price=5)
    await trading.__aexit__()

    left = [order.request for order in trading.exchange.orders.values() if order.state == "working"]
    assert [(request.symbol, request.protective) for request in left] == [("AAPL", True)]


async def test_a_position_of_a_restart_is_protected_and_told_once(trading: EngineRoom) -> None:
    """After a restart position and stop are there, nothing is told twice, and the time stop's plan goes on."""
    await trading.do("scan")
    await trading.tick("AAPL", price=11)
    await trading.fill_all("11")
    await trading.settled()
    await trading.__aexit__()
    async with trading.again() as after:
        await after.until(lambda: after.body("position/AAPL").get("protected"))
        assert after.body("positions")["count"] == 1
        assert after.told(TradeEvent) == []
        assert len(after.engine.path.desk.open_orders()) == 1

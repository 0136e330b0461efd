"""What the node tells: state, availability, events; against a real Mosquitto."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from sigma9_core.clock import monotonic, wall_now
from sigma9_core.events import LogLine, MarketData, StatusUpdate, TradeEvent, WatchlistUpdate
from sigma9_core.models import OrderStatus
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.mqtt.publisher import YOUNG
from sigma9_integrations.mqtt.testing import Client, Heard, Mosquitto, Proxy, service_for, serving, settings_for

pytestmark = pytest.mark.mosquitto


async def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def emit_status(server: FakeServer, count: int = 1) -> None:
    for _ in range(count):
        number = len(server.journal) + 1
        server.emit("status_update", StatusUpdate(changed=("engine",), status={"number": number}), durable=True)


def bodies(heard: list[Heard], part: str = "/event/") -> list[dict[str, Any]]:
    return [json.loads(message.payload) for message in heard if part in message.topic]


def numbers(heard: list[Heard]) -> list[int]:
    return [body["seq"] for body in bodies(heard) if body["seq"] is not None]


def reaches(seq: int) -> Callable[[list[Heard]], bool]:
    """Build the condition that the newest event heard is `seq`; it looks at the last message alone."""

    def newest(heard: list[Heard]) -> bool:
        last = next((message for message in reversed(heard) if "/event/" in message.topic), None)
        return last is not None and json.loads(last.payload)["seq"] == seq

    return newest


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_state_is_retained_before_online(broker: Mosquitto, protocol: Literal["5", "3.1.1"]) -> None:
    """A subscriber who comes later finds the state, and who was there first hears all of it before `online`."""
    settings = settings_for(broker, protocol=protocol)
    server = FakeServer(settings)
    server.board.set("account", {"equity": 1.5})
    server.board.set("position/BRK.B", {"symbol": "BRK.B"})
    async with Client.of(broker, "viewer") as early:
        await early.subscribe("sigma9/#")
        async with serving(settings, server):
            assert server.mqtt == "connected"
            await early.until_heard("sigma9/main/availability", "online")
            topics = [message.topic for message in early.heard]
            assert topics.index("sigma9/main/state/account") < topics.index("sigma9/main/availability")
            async with Client.of(broker, "viewer") as later:
                await later.subscribe("sigma9/#")
                await later.until_heard("sigma9/main/availability", "online")
                found = await later.until_heard("sigma9/main/state/account")
                assert (found.retain, json.loads(found.payload)) == (True, {"equity": 1.5})
                assert (await later.until_heard("sigma9/main/state/position/BRK.B")).retain
        await early.until_heard("sigma9/main/availability", "offline")
    assert server.mqtt == "disconnected"


async def test_removed_state_is_cleared(broker: Mosquitto) -> None:
    """A name that leaves the board leaves the broker: an empty retained payload, and nothing for late comers."""
    settings = settings_for(broker)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/state/#")
        server.board.set("position/AAPL", {"symbol": "AAPL"})
        await client.until_heard("sigma9/main/state/position/AAPL", '{"symbol":"AAPL"}')
        server.board.set("position/AAPL", None)
        await client.until_heard("sigma9/main/state/position/AAPL", "")
        async with Client.of(broker, "viewer") as later:
            await later.subscribe("sigma9/main/#")
            await later.until_heard("sigma9/main/availability")
            assert later.payloads("sigma9/main/state/position/AAPL") == []


async def test_a_removal_that_was_lost_is_sent_again(broker: Mosquitto, proxy: Proxy) -> None:
    """A position that was closed in the moment of a cut does not stay on the broker for ever."""
    settings = settings_for(broker, port=proxy.port)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/state/#", "sigma9/main/availability")
        server.board.set("position/AAPL", {"symbol": "AAPL"})
        await client.until_heard("sigma9/main/state/position/AAPL", '{"symbol":"AAPL"}')
        broker.freeze()
        server.board.set("position/AAPL", None)
        await asyncio.sleep(0.1)  # it has left, and nobody reads it
        proxy.cut()
        await wait_for(lambda: server.mqtt == "disconnected")
        broker.thaw()
        proxy.mend()
        await client.until_heard("sigma9/main/state/position/AAPL", "")


async def test_a_broker_that_comes_back_with_an_old_database_is_put_right(
    broker: Mosquitto, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crashed broker had saved before a position was closed goes again at the reconnect."""
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.PAUSE_MOST", 0.1)
    settings = settings_for(broker, port=proxy.port)
    async with serving(settings) as server:
        server.board.set("position/AAPL", {"symbol": "AAPL"})
        async with Client.of(broker, "viewer") as client:
            await client.subscribe("sigma9/main/state/#")
            await client.until_heard("sigma9/main/state/position/AAPL", '{"symbol":"AAPL"}')
            server.board.set("position/AAPL", None)
            await client.until_heard("sigma9/main/state/position/AAPL", "")
        proxy.cut()
        await broker.kill()
        await broker.start()
        async with Client.of(broker, "sigma9") as client:
            await client.publish("sigma9/main/state/position/AAPL", '{"symbol":"AAPL"}', retain=True)
            await client.subscribe("sigma9/main/#")
            proxy.mend()
            await client.until_heard("sigma9/main/availability", "online", 10)
            assert client.payloads("sigma9/main/state/position/AAPL") == ['{"symbol":"AAPL"}', ""]


async def test_stale_state_of_an_earlier_run_is_cleared(broker: Mosquitto) -> None:
    """State topics that the broker kept from an earlier run go at the start, unless the board has them again."""
    async with Client.of(broker, "sigma9") as client:
        for name in ("position/OLD", "quote/OLD", "account"):
            await client.publish(f"sigma9/main/state/{name}", '{"old":true}', retain=True)
        await client.publish("sigma9/other/state/account", '{"old":true}', retain=True)
        settings = settings_for(broker)
        server = FakeServer(settings)
        server.board.set("account", {"old": False})
        await client.subscribe("sigma9/#")
        async with serving(settings, server):
            await client.until_heard("sigma9/main/availability", "online")
            for name in ("position/OLD", "quote/OLD"):
                assert client.payloads(f"sigma9/main/state/{name}") == ['{"old":true}', ""]
            assert client.payloads("sigma9/main/state/account")[-1] == '{"old":false}'
            assert client.payloads("sigma9/other/state/account") == ['{"old":true}']


async def test_state_is_conflated_and_paced(broker: Mosquitto) -> None:
    """Changes in a row give fewer messages, the newest last; status and each quote at most one a second."""
    settings = settings_for(broker)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/state/#")
        began = monotonic()
        for number in range(100):
            for name in ("status", "quote/AAPL", "orders"):
                server.board.set(name, {"number": number})
            if number % 5 == 0:
                await asyncio.sleep(0)
        last = '{"number":99}'
        await client.until_heard("sigma9/main/state/orders", last)
        await client.until_heard("sigma9/main/state/status", last)
        assert monotonic() - began >= 0.9
        await client.until_heard("sigma9/main/state/quote/AAPL", last)
        assert client.payloads("sigma9/main/state/status") == ['{"number":0}', last]
        assert client.payloads("sigma9/main/state/quote/AAPL") == ['{"number":0}', last]
        assert len(client.payloads("sigma9/main/state/orders")) < 50


async def test_a_body_that_is_not_json_harms_nothing_else(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that can't be written is named in the log; other topics go on."""
    settings = settings_for(broker)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/state/#")
        server.board.set("account", {"equity": float("nan")})
        server.board.set("orders", {"count": 0})
        await client.until_heard("sigma9/main/state/orders")
        assert client.payloads("sigma9/main/state/account") == []
        assert "state/account" in caplog.text
        server.board.set("account", {"equity": 1})
        server.board.set("orders", {"count": 1})
        await client.until_heard("sigma9/main/state/orders", '{"count":1}')
        server.board.set("account", {"equity": float("nan")})
        await client.until_heard("sigma9/main/state/account", "")  # the old one is not so any more


async def test_events_have_their_topics_and_bytes(broker: Mosquitto) -> None:
    """Every event type goes to its topic, unchanged, not retained; durable ones in the order of their numbers."""
    settings = settings_for(broker)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/#")
        trade = TradeEvent(
            event=OrderStatus.FILLED,
            order_id="1",
            symbol="AAPL",
            side="buy",
            quantity=1,
            order_type="market",
            time_in_force="day",
            filled_quantity=1,
            source="api",
        )
        events = [
            server.emit("trade_event", trade, durable=True),
            server.emit("watchlist_update", WatchlistUpdate(reason="scan", count=0), durable=True),
            server.emit("status_update", StatusUpdate(changed=("mqtt",), status={}), durable=True),
            server.emit("log", LogLine(level="error", logger="x", message="y"), durable=False),
            server.emit(
                "market_data", MarketData(symbol="BRK.B", kind="trade", ts=wall_now(), last=1.0), durable=False
            ),
        ]
        topics = ["trade_event/filled", "watchlist_update", "status_update", "log/error", "market_data/BRK.B"]
        for topic, event in zip(topics, events, strict=True):
            message = await client.until_heard(f"sigma9/main/event/{topic}")
            assert (message.payload, message.retain) == (event.raw, False)
        assert numbers(client.heard) == [1, 2, 3]


async def test_a_symbol_that_no_topic_can_hold_costs_only_itself(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """A feed may name things as it likes: what can't be published is named once in the log, the rest goes out."""
    settings = settings_for(broker)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/#")
        for symbol in ("AAPL", "A#B", "A+B", "A#B", "MSFT"):
            data = MarketData(symbol=symbol, kind="trade", ts=wall_now(), last=1.0)
            server.emit("market_data", data, durable=False)
        await client.until_heard("sigma9/main/event/market_data/MSFT")
        topics = [message.topic.rpartition("/")[2] for message in client.heard]
        assert topics == ["AAPL", "MSFT"]
    assert [record.message.count("A#B") for record in caplog.records if "no MQTT topic" in record.message] == [
        1,
        0,
    ]


async def test_a_burst_arrives_whole_and_in_order(broker: Mosquitto) -> None:
    """Three thousand durable events at once arrive all, once, in order, and none is marked late."""
    settings = settings_for(broker)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/status_update")
        emit_status(server, 3000)
        await client.until(lambda heard: len(heard) >= 3000, 10, what="3000 events")
        assert numbers(client.heard) == list(range(1, 3001))
        assert not any("late" in body for body in bodies(client.heard))


async def test_more_events_than_the_mailbox_holds(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events beyond the room in memory are read from the journal: none is lost, the order stays."""
    monkeypatch.setattr("sigma9_integrations.mqtt.publisher.MAILBOX", 50)
    settings = settings_for(broker)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/status_update")
        emit_status(server, 700)
        await client.until(lambda heard: len(heard) >= 700, what="700 events")
        emit_status(server, 3)
        await client.until(lambda heard: len(heard) >= 703, what="703 events")
        assert numbers(client.heard) == list(range(1, 704))


async def test_broker_killed_in_a_burst_loses_no_durable_event(broker: Mosquitto, proxy: Proxy) -> None:
    """After kill -9 of the broker in a burst, everything that was not acknowledged comes again: in order, late."""
    settings = settings_for(broker, port=proxy.port)
    service = service_for(settings)
    async with serving(settings, service=service) as server:
        publisher = cast(Any, service)._node._publisher
        emit_status(server, 1950)
        await wait_for(lambda: publisher._acked >= 300)
        await broker.kill()
        proxy.cut()
        await wait_for(lambda: server.mqtt == "disconnected")
        acknowledged = publisher._acked
        assert 300 <= acknowledged < 1950, "the broker lived too long for this test"
        emit_status(server, 100)
        server.board.set("account", {"equity": 2})
        await broker.start()
        async with Client.of(broker, "viewer") as second:
            await second.subscribe("sigma9/#")
            proxy.mend()
            await second.until(reaches(2050), what="2050")
            await second.until_heard("sigma9/main/state/account", '{"equity":2}')
            await second.until_heard("sigma9/main/availability", "online")
            emit_status(server)
            await second.until(reaches(2051), what="2051")
        again = numbers(second.heard)
        assert again == list(range(acknowledged + 1, 2052))
        late = [body["seq"] for body in bodies(second.heard) if body.get("late")]
        assert late == list(range(again[0], 2051))
        assert json.loads(second.payloads("sigma9/main/event/status_update")[0])["data"]["status"] == {
            "number": again[0]
        }


async def test_a_cut_network_repeats_only_what_was_not_acknowledged(
    broker: Mosquitto, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the broker alive, a subscriber who stays has every event in the end, in order, repeats known by seq."""
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.PAUSE_MOST", 0.1)
    settings = settings_for(broker, port=proxy.port)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/#", "sigma9/main/availability")
        await client.until(lambda heard: "online" in [each.payload for each in heard], what="the server")
        for _ in range(3):
            emit_status(server, 400)
            await asyncio.sleep(0.01)
            proxy.cut()
            emit_status(server, 20)
            await client.until(lambda heard: heard[-1].payload == "offline", what="the will")
            proxy.mend()
            await wait_for(lambda: server.mqtt == "connected")
        total = len(server.journal)
        await client.until(reaches(total), what=f"event {total}")
        heard = numbers(client.heard)
        assert list(dict.fromkeys(heard)) == list(range(1, total + 1))
        assert len(heard) - len(set(heard)) <= 3 * 100


async def test_a_frozen_broker_hinders_neither_events_nor_the_stop(broker: Mosquitto) -> None:
    """With the broker frozen (SIGSTOP) events go on being taken, and the stop ends within three seconds."""
    settings = settings_for(broker)
    async with serving(settings) as server:
        broker.freeze()
        began = monotonic()
        emit_status(server, 500)
        for number in range(5000):
            data = MarketData(symbol=f"S{number % 50}", kind="trade", ts=wall_now(), last=float(number))
            server.emit("market_data", data, durable=False)
            server.board.set("orders", {"number": number})
            if number % 500 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert monotonic() - began < 2
        began = monotonic()
    assert monotonic() - began < 3


@pytest.mark.slow
async def test_a_frozen_broker_is_noticed_and_served_again(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen broker is noticed after two keepalives; once it goes on, everything comes, in order, late."""
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.KEEPALIVE", 1)
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.PAUSE_MOST", 0.2)
    settings = settings_for(broker)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/#")
        emit_status(server, 5)
        await client.until(reaches(5))
        broker.freeze()
        emit_status(server, 300)
        await wait_for(lambda: server.mqtt == "disconnected", 8)
        emit_status(server, 5)
        broker.thaw()
        await wait_for(lambda: server.mqtt == "connected", 15)
        await client.until(reaches(310))
        assert list(dict.fromkeys(numbers(client.heard))) == list(range(1, 311))
        assert any(body.get("late") for body in bodies(client.heard))


async def test_acknowledged_events_are_not_sent_again_after_a_restart(broker: Mosquitto, tmp_path: Path) -> None:
    """A restarted server goes on behind what the broker has acknowledged, marking what happened meanwhile late."""
    settings = settings_for(broker)
    server = FakeServer(settings)
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/#", "sigma9/main/availability")
        async with serving(settings, server, data_dir=tmp_path):
            emit_status(server, 5)
            await client.until(reaches(5))
        emit_status(server, 2)  # while MQTT is off, such as the end of the engine
        async with serving(settings, server, data_dir=tmp_path):
            emit_status(server)
            await client.until(reaches(8))
    assert numbers(client.heard) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [body["seq"] for body in bodies(client.heard) if body.get("late")] == [6, 7]
    assert (tmp_path / "mqtt_outbox.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "mark", ['{"journal_id": "another", "seq": 3}', '{"journal_id": "fake", "seq": 900}', "garbage"]
)
async def test_a_mark_of_another_journal_is_not_believed(broker: Mosquitto, tmp_path: Path, mark: str) -> None:
    """A new or restored journal, or a broken file, neither hides events nor stops the service."""
    (tmp_path / "mqtt_outbox.json").write_text(mark)
    settings = settings_for(broker)
    server = FakeServer(settings)
    emit_status(server, 4)
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/#")
        async with serving(settings, server, data_dir=tmp_path):
            emit_status(server)
            await client.until(reaches(5))
    assert numbers(client.heard) == [1, 2, 3, 4, 5]


async def test_a_long_history_is_not_published_at_the_first_start(broker: Mosquitto) -> None:
    """Where nothing is known of an earlier run, an old journal's history stays where it is."""
    settings = settings_for(broker)
    server = FakeServer(settings)
    emit_status(server, YOUNG + 1)
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/event/#")
        async with serving(settings, server):
            emit_status(server)
            await client.until(lambda heard: len(heard) > 0)
    assert numbers(client.heard) == [YOUNG + 2]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_what_is_too_large_holds_up_nothing_else(
    broker: Mosquitto, protocol: Literal["5", "3.1.1"], caplog: pytest.LogCaptureFixture
) -> None:
    """A body and an event over the shipped limit are named in the log; no connection ends, and no lie stays."""
    settings = settings_for(broker, protocol=protocol)
    async with serving(settings) as server, Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/#")
        server.board.set("watchlist", {"count": 1})
        await client.until_heard("sigma9/main/state/watchlist", '{"count":1}')
        server.board.set("watchlist", {"count": 2, "items": "x" * 1_100_000})
        await client.until_heard("sigma9/main/state/watchlist", "")
        server.emit(
            "status_update", StatusUpdate(changed=("engine",), status={"x": "x" * 1_100_000}), durable=True
        )
        emit_status(server)
        await client.until(reaches(2))
        assert client.payloads("sigma9/main/availability") == ["online"]
        assert "more than the broker takes (1048576)" in caplog.text


async def test_a_refused_topic_is_named_once(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    """A user without the right to publish state is told so in the log, by topic; nothing is repeated for ever."""
    settings = settings_for(broker, username="admin", password=broker.passwords["admin"])
    async with serving(settings) as server:
        emit_status(server, 20)
        await wait_for(lambda: "event/status_update is not published" in caplog.text)
        assert caplog.text.count("event/status_update is not published") == 1

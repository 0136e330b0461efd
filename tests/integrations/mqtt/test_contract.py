"""Contract 4 from the broker to the exchange: real engines behind a real Mosquitto, on both protocols."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import aiomqtt
import pytest

from sigma9_core.clock import rfc3339, wall_now
from sigma9_core.testing.engine_room import EngineRoom
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.mqtt.commands import STORED_GRACE, CommandDoor
from sigma9_integrations.mqtt.connection import Wire
from sigma9_integrations.mqtt.kill import KillDoor
from sigma9_integrations.mqtt.testing import Client, Heard, Mosquitto, service_for, serving, settings_for

pytestmark = pytest.mark.mosquitto

Protocol = Literal["5", "3.1.1"]
Ask = Callable[..., Awaitable[dict[str, Any]]]
both = pytest.mark.parametrize("protocol", ["5", "3.1.1"])
BUY = {"symbol": "AAPL", "side": "buy", "quantity": 10}


def room_for(broker: Mosquitto, folder: Path, protocol: Protocol, node: str = "main") -> EngineRoom:
    return EngineRoom(folder / node, node=node, mqtt=settings_for(broker, protocol=protocol).mqtt)


@asynccontextmanager
async def on_mqtt(room: EngineRoom) -> AsyncIterator[EngineRoom]:
    """Run a real engine with the service in front of it."""
    async with room:
        service = service_for(room.settings, room.folder)
        await service.start(room.engine)
        try:
            yield room
        finally:
            await service.stop()


def asker(client: Client, node: str = "main") -> Ask:
    """Give what sends a command to a node and returns the next answer to one of its name."""

    async def ask(name: str, payload: str | dict[str, Any], *, to: str = node, **more: Any) -> dict[str, Any]:
        topic = f"sigma9/{node}/response/{name}"
        before = len(client.payloads(topic))
        text = payload if isinstance(payload, str) else json.dumps(payload)
        await client.publish(f"sigma9/{to}/command/{name}", text, **more)
        await client.until(lambda _: len(client.payloads(topic)) > before, what=f"an answer to {name} {text}")
        answer: dict[str, Any] = json.loads(client.payloads(topic)[before])
        return answer

    return ask


def two_at(topic: str) -> Callable[[list[Heard]], bool]:
    return lambda heard: sum(one.topic == topic for one in heard) == 2


def code(answer: dict[str, Any]) -> str | None:
    return None if answer["error"] is None else str(answer["error"]["code"])


@both
async def test_a_repeat_across_restarts_does_nothing(
    broker: Mosquitto, tmp_path: Path, protocol: Protocol
) -> None:
    """The same (command, id) after a restart has the first answer; other arguments conflict; buttons work."""
    room = room_for(broker, tmp_path, protocol)
    async with Client.of(broker, "admin", protocol) as client:
        await client.subscribe("sigma9/main/response/+")
        ask = asker(client)
        async with on_mqtt(room):
            assert code(await ask("start", "start")) is None
            await room.tick("AAPL")
            order = {**BUY, "id": "one"}
            first = await ask("place_order", order)
            assert first["ok"], first
            assert await ask("place_order", order) == first
            added = await ask("watchlist_add", {"symbol": "MSFT", "id": "w"})
            assert code(await ask("watchlist_remove", {"symbol": "MSFT", "id": "w"})) is None  # a key of its own
            assert len(room.exchange.submitted) == 1
        again = room.again()
        async with on_mqtt(again):
            await again.tick("AAPL")
            placed = len(again.exchange.submitted)
            assert await ask("place_order", order) == first
            assert await ask("place_order", {**order, "reason": "other words"}) == first
            assert code(await ask("place_order", {**order, "quantity": 11})) == "conflict"
            assert await ask("watchlist_add", {"symbol": "MSFT", "id": "w"}) == added
            assert "MSFT" not in again.engine.watchlist.symbols()
            for _ in range(2):  # what a button repeats is never held back
                assert code(await ask("pause", {"id": "button"})) is None
                assert again.engine.state == "paused"
                assert code(await ask("resume", "PRESS")) is None
            assert len(again.exchange.submitted) == placed
        assert len(client.payloads("sigma9/main/response/place_order")) == 5


@both
async def test_a_late_command_is_refused(broker: Mosquitto, tmp_path: Path, protocol: Protocol) -> None:
    """After its expires_at a command, a kill too, is answered `expired` and does nothing; before it, it acts."""
    soon, past = (rfc3339(wall_now() + timedelta(hours=hours)) for hours in (1, -1))
    room = room_for(broker, tmp_path, protocol)
    async with Client.of(broker, "operator", protocol) as client, on_mqtt(room):
        await client.subscribe("sigma9/main/response/+")
        ask = asker(client)
        assert code(await ask("start", {"expires_at": soon})) is None
        await room.tick("AAPL")
        for name, args in (("place_order", {**BUY, "id": "x"}), ("pause", {}), ("kill_switch", {})):
            late = await ask(name, {**args, "expires_at": past})
            assert code(late) == "expired"
            assert late["error"]["details"]["expires_at"] == past
        for wrong in ("soon", "2026-11-20T14:45:00", 5, "9999-99-99T00:00:00Z"):
            answer = await ask("kill_switch", {"expires_at": wrong})
            assert (code(answer), answer["error"]["details"]["field"]) == ("invalid", "expires_at")
        assert room.exchange.submitted == []
        assert (room.engine.state, room.body("kill_switch")["state"]) == ("running", "OFF")
        assert code(await ask("kill_switch", {"expires_at": soon})) is None
        await room.until(lambda: room.body("kill_switch")["state"] == "ON")


@both
async def test_plain_words_do_what_they_say(broker: Mosquitto, tmp_path: Path, protocol: Protocol) -> None:
    """Words in any case, with space around them, start and stop; a word that does not fit names what would."""
    room = room_for(broker, tmp_path, protocol)
    async with Client.of(broker, "admin", protocol) as client, on_mqtt(room):
        await client.subscribe("sigma9/main/response/+")
        ask = asker(client)
        for name, word, state in (
            ("stop", "STOP", "stopped"),
            ("start", "PRESS", "running"),
            ("pause", "on", "paused"),
            ("resume", " resume\n", "running"),
            ("control", "stop", "stopped"),
            ("control", "start", "running"),
            ("control", "kill", "killed"),
        ):
            assert code(await ask(name, word)) is None, (name, word)
            assert room.engine.state == state, (name, word)
        assert code(await ask("watchlist_add", "BRK.B")) is None
        assert "BRK.B" in room.engine.watchlist.symbols()
        for name, word in (("reset_kill_switch", "PRESS"), ("place_order", "ON"), ("control", "explode")):
            answer = await ask(name, word)
            assert (code(answer), answer["result"]) == ("invalid", None)
            assert answer["error"]["message"]
        for word in ("OFF", "null", "true", "0", "\u017ftart", "star\u200bt"):
            assert code(await ask("start", word)) == "invalid"
        assert room.engine.state == "killed"


@both
async def test_unknown_commands_are_answered(broker: Mosquitto, protocol: Protocol) -> None:
    """Whom the broker lets publish it is told that there is no such command; an operator's never arrives."""
    settings = settings_for(broker, protocol=protocol)
    async with (
        serving(settings) as server,
        Client.of(broker, "admin", protocol) as admin,
        Client.of(broker, "operator", protocol) as operator,
    ):
        await admin.subscribe("sigma9/main/response/+")
        ask = asker(admin)
        answer = await ask("strat", '{"id": "1"}')
        assert (code(answer), answer["id"], answer["command"]) == ("unknown_command", "1", "strat")
        assert "start" in answer["error"]["message"]
        assert code(await ask("Start", "PRESS", to="all")) == "unknown_command"
        await operator.publish("sigma9/main/command/strat", "PRESS")
        await ask("stop", "stop")
        assert len(admin.payloads("sigma9/main/response/strat")) == 1
    assert [command.name for command in server.commands] == ["stop"]


@both
async def test_a_retained_command_never_stays(
    broker: Mosquitto, protocol: Protocol, caplog: pytest.LogCaptureFixture
) -> None:
    """Published live with the retain flag it acts once and is soon gone from the broker, a second one as well.

    What everybody hears is left alone. MQTT 3.1.1 doesn't show the flag, so there is no warning.
    """
    settings = settings_for(broker, protocol=protocol)
    names = ("start", "kill_switch", "strat", "place_order")
    async with Client.of(broker, "admin", protocol) as client, Client.of(broker, "viewer") as viewer:
        await client.subscribe("sigma9/main/response/+")
        ask = asker(client)
        async with serving(settings) as server:
            for _ in range(2):
                for name in names:
                    await ask(name, '{"id": "1"}' if name != "place_order" else "{", retain=True)
            await ask("stop", "PRESS", to="all", retain=True)
            await asyncio.sleep(1.3)
            await viewer.subscribe("sigma9/+/command/+", "sigma9/main/availability")
            await viewer.until_heard("sigma9/main/availability")
            assert {one.topic for one in viewer.heard} == {"sigma9/all/command/stop", "sigma9/main/availability"}
        assert [command.name for command in server.commands] == ["start", "start", "stop"]
        assert len(server.kills) == 2
        assert all(len(client.payloads(f"sigma9/main/response/{name}")) == 2 for name in names)
    assert ("retain flag" in caplog.text) is (protocol == "5")
    assert "sigma9/all" not in caplog.text


@both
async def test_a_command_stored_while_the_node_was_away_goes_at_its_start(
    broker: Mosquitto, protocol: Protocol, caplog: pytest.LogCaptureFixture
) -> None:
    """It never acts, whatever it is, and does not stay for a client that shows it; others are left alone."""
    settings = settings_for(broker, protocol=protocol)
    async with Client.of(broker, "admin", protocol) as client, Client.of(broker, "viewer") as viewer:
        for topic in ("main/command/start", "main/command/kill_switch", "main/command/strat", "all/command/stop"):
            await client.publish(f"sigma9/{topic}", "PRESS", retain=True)
        async with serving(settings) as server:
            await client.subscribe("sigma9/main/response/events")
            await asker(client)("events", '{"after": 0}')
            await asyncio.sleep(0.1)
            await viewer.subscribe("sigma9/+/command/+", "sigma9/main/availability")
            await viewer.until_heard("sigma9/main/availability")
            assert {one.topic for one in viewer.heard} == {"sigma9/all/command/stop", "sigma9/main/availability"}
        assert [command.name for command in server.commands] == ["events"]
        assert not server.kills
    assert "sigma9/main/command/start was published with the retain flag" in caplog.text
    assert "sigma9/all" not in caplog.text


async def test_a_stop_clears_what_would_have_been_cleared_later(broker: Mosquitto) -> None:
    """On MQTT 3.1.1 a second retained command just before a stop is not left for the next start to find."""
    settings = settings_for(broker, protocol="3.1.1")
    async with Client.of(broker, "admin") as client, Client.of(broker, "viewer") as viewer:
        await client.subscribe("sigma9/main/response/+")
        ask = asker(client)
        async with serving(settings):
            for _ in range(2):
                await ask("start", "PRESS", retain=True)
                await ask("kill_switch", "PRESS", retain=True)
        await viewer.subscribe("sigma9/+/command/+", "sigma9/main/availability")
        await viewer.until_heard("sigma9/main/availability")
        assert {one.topic for one in viewer.heard} == {"sigma9/main/availability"}


@both
async def test_everybody_answers_what_everybody_hears(
    broker: Mosquitto, tmp_path: Path, protocol: Protocol
) -> None:
    """Of two nodes on one broker each hears its own topics, both hear `all`, and each answers on its own."""
    rooms = [room_for(broker, tmp_path, protocol, node) for node in ("main", "second")]
    async with (
        Client.of(broker, "admin", protocol) as client,
        on_mqtt(rooms[0]) as main,
        on_mqtt(rooms[1]) as second,
    ):
        await client.subscribe("sigma9/+/response/+", "sigma9/+/availability")
        for node in ("main", "second"):
            await client.until_heard(f"sigma9/{node}/availability", "online")
        assert code(await asker(client, "second")("stop", "PRESS")) is None
        assert (main.engine.state, second.engine.state) == ("running", "stopped")
        await client.publish("sigma9/all/command/start", '{"id": "both"}')
        for node in ("main", "second"):
            answer = json.loads((await client.until_heard(f"sigma9/{node}/response/start")).payload)
            assert (answer["ok"], answer["id"]) == (True, "both")
        assert (main.engine.state, second.engine.state) == ("running", "running")
        await client.publish("sigma9/all/command/kill_switch", "PRESS")
        for node in ("main", "second"):
            await client.until_heard(f"sigma9/{node}/response/kill_switch")
        await main.until(lambda: (main.engine.state, second.engine.state) == ("killed", "killed"))
        assert code(await asker(client, "second")("reset_kill_switch", '{"reason": "over"}')) is None
        assert (main.engine.state, second.engine.state) == ("killed", "stopped")
        await asyncio.sleep(0.3)  # long enough for the command connections to look after the kill
        assert [len(client.payloads(f"sigma9/{node}/response/kill_switch")) for node in ("main", "second")] == [
            1,
            1,
        ]


async def test_each_node_answers_where_the_request_asked(broker: Mosquitto) -> None:
    """An MQTT 5 request to `all` has an answer of each node at its response topic, with its correlation data."""
    main, second = settings_for(broker), settings_for(broker).model_copy(update={"node": "second"})
    async with serving(main), serving(second), Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/reply/#", "sigma9/+/response/+")
        for name in ("stop", "kill_switch"):
            topic = f"sigma9/reply/phone/{name}"
            await client.publish(f"sigma9/all/command/{name}", "PRESS", reply_to=topic, correlation=b"\xff\x00")
            await client.until(two_at(topic))
            assert {one.correlation for one in client.heard if one.topic == topic} == {b"\xff\x00"}
            for node in ("main", "second"):
                await client.until_heard(f"sigma9/{node}/response/{name}")
        await client.publish("sigma9/main/command/stop", "PRESS", reply_to="sigma9/reply/plain")
        assert (await client.until_heard("sigma9/reply/plain")).correlation is None
        await client.until(lambda _: len(client.payloads("sigma9/main/response/stop")) == 2)
        answers = len(client.heard)
        await client.publish("sigma9/main/command/stop", "{", reply_to="sigma9/reply/wrong", correlation=b"w")
        refused = await client.until_heard("sigma9/reply/wrong")
        assert (json.loads(refused.payload)["error"]["code"], refused.correlation) == ("invalid", b"w")
        await client.publish("sigma9/main/command/stop", "", reply_to="sigma9/reply/empty", correlation=b"e")
        for elsewhere in ("sigma9/second/command/kill_switch", "sigma9/replyx/a", "other/reply/a"):
            await client.publish("sigma9/main/command/stop", "stop", reply_to=elsewhere, correlation=b"o")
        await client.until(lambda heard: len(heard) == answers + 2 + 3)
        await asyncio.sleep(0.1)
        assert len(client.heard) == answers + 2 + 3
        assert client.payloads("sigma9/reply/empty") == []


async def test_a_node_on_mqtt_3_answers_on_its_response_topic_alone(broker: Mosquitto) -> None:
    """It can't see where an MQTT 5 client asks to be answered."""
    settings = settings_for(broker, protocol="3.1.1")
    async with serving(settings), Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/reply/#", "sigma9/+/response/+")
        await client.publish("sigma9/main/command/stop", "stop", reply_to="sigma9/reply/a", correlation=b"1")
        await client.until_heard("sigma9/main/response/stop")
        await asyncio.sleep(0.1)
        assert [one.topic for one in client.heard] == ["sigma9/main/response/stop"]


@both
async def test_a_name_too_long_to_answer_ends_nothing(broker: Mosquitto, protocol: Protocol) -> None:
    """The longest topic there is has none for its answer, which goes where the request asked, if it did."""
    settings = settings_for(broker, protocol=protocol)
    async with serving(settings) as server, Client.of(broker, "admin") as client:
        await client.subscribe("sigma9/#")
        await client.until_heard("sigma9/main/availability", "online")
        client.heard.clear()
        name = "x" * (65535 - len("sigma9/main/command/"))
        await client.publish(f"sigma9/main/command/{name}", "{}", reply_to="sigma9/reply/long", correlation=b"1")
        assert code(await asker(client)("stop", "stop")) is None
        if protocol == "5":
            answer = json.loads((await client.until_heard("sigma9/reply/long")).payload)
            assert (code(answer), answer["command"]) == ("unknown_command", name)
        assert client.payloads("sigma9/main/availability") == []
        assert server.mqtt == "connected"


async def test_a_kill_is_heard_by_whichever_connection_there_is(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill's own connection alone is there, then the commands' alone: the same button works both times."""
    refused: list[type] = [CommandDoor]
    wires: dict[type, Wire] = {}

    def guarded(door: type[KillDoor] | type[CommandDoor], serve: Any) -> Any:
        async def guard(self: Any, wire: Wire) -> None:
            if door in refused:
                raise aiomqtt.MqttError("refused for the test")
            wires[door] = wire
            await serve(self, wire)

        return guard

    for door in (KillDoor, CommandDoor):
        monkeypatch.setattr(door, "serve", guarded(door, door.serve))
    async with serving(settings_for(broker)) as server, Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+")
        ask = asker(client)
        assert code(await ask("kill_switch", "PRESS")) is None
        await asyncio.sleep(STORED_GRACE)
        refused.remove(CommandDoor)
        refused.append(KillDoor)
        await client.until(lambda _: CommandDoor in wires)
        await server.doors.call(wires[KillDoor].drop())
        assert code(await ask("stop", "stop")) is None
        assert code(await ask("kill_switch", "PRESS")) is None
        assert len(server.kills) == 2


@both
async def test_an_answer_larger_than_the_shipped_limit_is_told(broker: Mosquitto, protocol: Protocol) -> None:
    """Mosquitto does not say what its `message_size_limit` is: it hangs up on MQTT 5, and is silent on 3.1.1."""
    settings = settings_for(broker, protocol=protocol)
    server = FakeServer(settings)
    server.answers = {"events": {"events": ["x" * 1_100_000]}}
    async with Client.of(broker, "admin") as client, serving(settings, server):
        await client.subscribe("sigma9/main/availability", "sigma9/main/response/+")
        await client.until_heard("sigma9/main/availability", "online")
        answer = await asker(client)("events", '{"id": "e", "after": 0}')
        assert (code(answer), answer["id"]) == ("internal", "e")
        assert "1048576 bytes" in answer["error"]["message"]
        assert client.payloads("sigma9/main/availability") == ["online"]


async def test_what_a_request_asks_back_counts(mosquitto_program: str, tmp_path: Path) -> None:
    """Large correlation data in a request end no connection: the answer is on the command's response topic."""
    broker = Mosquitto(tmp_path / "broker", mosquitto_program, more="max_packet_size 2000\n")
    await broker.start()
    settings = settings_for(broker)
    server = FakeServer(settings)
    server.answers = {"events": {"events": ["x" * 400]}}
    try:
        async with Client.of(broker, "admin") as client, serving(settings, server):
            await client.subscribe("sigma9/main/availability", "sigma9/main/response/+", "sigma9/reply/mine")
            await client.until_heard("sigma9/main/availability", "online")
            topic, body = "sigma9/main/command/events", '{"id": "e", "after": 0}'
            await client.publish(topic, body, reply_to="sigma9/reply/mine", correlation=b"x" * 1850)
            assert json.loads((await client.until_heard("sigma9/main/response/events")).payload)["ok"] is True
            await client.publish("sigma9/main/command/start", "PRESS")
            await client.until_heard("sigma9/main/response/start")
            assert client.payloads("sigma9/main/availability") == ["online"]
    finally:
        await broker.stop()


async def test_an_answer_larger_than_the_broker_takes_is_told(mosquitto_program: str, tmp_path: Path) -> None:
    """In its place comes an error that says so, and nobody's connection ends."""
    broker = Mosquitto(tmp_path / "broker", mosquitto_program, more="max_packet_size 2000\n")
    await broker.start()
    settings = settings_for(broker)
    server = FakeServer(settings)
    server.answers = {"events": {"events": ["x" * 3000]}}
    try:
        async with Client.of(broker, "admin") as client, serving(settings, server):
            await client.subscribe("sigma9/main/availability", "sigma9/main/response/+")
            await client.until_heard("sigma9/main/availability", "online")
            answer = await asker(client)("events", '{"id": "e", "after": 0}')
            assert (code(answer), answer["id"], answer["command"]) == ("internal", "e", "events")
            assert "2000 bytes" in answer["error"]["message"]
            assert client.payloads("sigma9/main/availability") == ["online"]
    finally:
        await broker.stop()

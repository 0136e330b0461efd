"""Commands from MQTT: every rule of contract 4, against a real Mosquitto, on both protocols."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import aiomqtt
import pytest
from pytest_mock import MockerFixture

from sigma9_core.clock import monotonic, wall_now
from sigma9_core.commands import Command, Response
from sigma9_core.config import Settings
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.mqtt.answers import Answers
from sigma9_integrations.mqtt.commands import BURST, GIVE_WAY_EVERY
from sigma9_integrations.mqtt.connection import Arrival, Endpoint, Wire, open_wire
from sigma9_integrations.mqtt.kill import KillDoor, KillLedger
from sigma9_integrations.mqtt.testing import Client, Heard, Mosquitto, Proxy, service_for, serving, settings_for
from sigma9_integrations.mqtt.topics import Topics

pytestmark = pytest.mark.mosquitto

Protocol = Literal["5", "3.1.1"]
both = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


class SlowServer(FakeServer):
    """A fake whose scan takes until it is let go."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scanned = asyncio.Event()
        self.kill_threads: set[str] = set()
        self.killed_at = 0.0

    async def dispatch(self, command: Command) -> Response:
        if command.name == "scan":
            await self.scanned.wait()
        return await super().dispatch(command)

    async def kill(self, command: Command) -> Response:
        self.killed_at = monotonic()
        self.kill_threads.add(threading.current_thread().name)
        return await super().kill(command)


class SlowKills(FakeServer):
    """A fake whose kills take a while."""

    async def kill(self, command: Command) -> Response:
        await asyncio.sleep(0.05)
        return await super().kill(command)


async def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def answers(heard: list[Heard], name: str) -> list[dict[str, Any]]:
    return [json.loads(m.payload) for m in heard if m.topic == f"sigma9/main/response/{name}"]


async def ask(client: Client, name: str, payload: str | bytes, **more: Any) -> dict[str, Any]:
    """Send a command and give the next answer to one of its name."""
    before = len(answers(client.heard, name))
    await client.publish(f"sigma9/main/command/{name}", payload, **more)
    await client.until(lambda heard: len(answers(heard, name)) > before, what=f"an answer to {name} {payload!r}")
    return answers(client.heard, name)[before]


def answered(name: str, count: int) -> Callable[[list[Heard]], bool]:
    """Tell whether so many answers to a command have come."""
    return lambda heard: len(answers(heard, name)) == count


@both
async def test_words_and_objects_are_carried_out(broker: Mosquitto, protocol: Protocol) -> None:
    """A plain word that fits and a JSON object become a command; the answer has all its keys."""
    settings = settings_for(broker, protocol=protocol)
    async with serving(settings) as server, Client.of(broker, "operator", protocol) as client:
        await client.subscribe("sigma9/main/response/+")
        answer = await ask(client, "start", "PRESS")
        assert list(answer) == ["id", "command", "ok", "result", "error", "source", "ts", "duration_ms"]
        assert (answer["command"], answer["ok"], answer["source"]) == ("start", True, "mqtt")
        answer = await ask(client, "watchlist_add", "BRK.B")
        answer = await ask(client, "cancel_order", '{"id": "x-1", "order_id": "7", "reason": "because"}')
        assert answer["id"] == "x-1"
        await client.publish("sigma9/all/command/stop", "stop")
        await client.until_heard("sigma9/main/response/stop")
    taken = [(command.name, dict(command.args), command.id) for command in server.commands]
    assert taken == [
        ("start", {}, None),
        ("watchlist_add", {"symbol": "BRK.B"}, None),
        ("cancel_order", {"order_id": "7", "reason": "because"}, "x-1"),
        ("stop", {}, None),
    ]
    assert {(command.source, command.right, command.actor) for command in server.commands} == {
        ("mqtt", "admin", None)
    }


@pytest.mark.parametrize(
    ("name", "payload", "code", "command_id"),
    [
        ("start", b"{not json", "invalid", None),
        ("start", b"\xff\xfe", "invalid", None),
        ("start", b"[1, 2]", "invalid", None),
        ("start", b'{"id": "a-1", "expires_at": "soon"}', "invalid", "a-1"),
        ("start", b'{"id": 5}', "invalid", None),
        ("start", b"x" * 70_000, "invalid", None),
        ("strat", b"PRESS", "unknown_command", None),
        ("start", b"[" * 5000, "invalid", None),
    ],
)
async def test_malformed_payloads_are_answered(
    broker: Mosquitto, name: str, payload: bytes, code: str, command_id: str | None
) -> None:
    """What can't be read is answered with what is wrong, and the id where there is one; nothing happens."""
    async with serving(settings_for(broker)) as server, Client.of(broker, "admin") as client:
        await client.subscribe("sigma9/main/response/+")
        answer = await ask(client, name, payload)
        assert (answer["ok"], answer["error"]["code"], answer["id"]) == (False, code, command_id)
        assert answer["error"]["message"]
        assert server.commands == []


@both
async def test_an_empty_payload_is_no_command(broker: Mosquitto, protocol: Protocol) -> None:
    """Clearing a retained topic is ignored without an answer, on the kill's topic as well."""
    settings = settings_for(broker, protocol=protocol)
    async with serving(settings) as server, Client.of(broker, "admin", protocol) as client:
        await client.subscribe("sigma9/main/response/+")
        for name in ("start", "kill_switch"):
            await client.publish(f"sigma9/main/command/{name}", "")
            await client.publish(f"sigma9/main/command/{name}", "", retain=True)
        await ask(client, "stop", "stop")
        assert [message.topic for message in client.heard] == ["sigma9/main/response/stop"]
        assert [command.name for command in server.commands] == ["stop"]
        assert server.kills == []


async def test_the_answer_goes_where_the_request_asked(broker: Mosquitto) -> None:
    """A response topic below {base}/reply/ gets the answer with the correlation data; any other is ignored."""
    async with serving(settings_for(broker)), Client.of(broker, "sigma9") as client:
        await client.subscribe("sigma9/#", "elsewhere/#")
        for name in ("stop", "kill_switch"):
            topic = f"sigma9/reply/phone/{name}"
            answer = await ask(client, name, '{"id": "q"}', reply_to=topic, correlation=b"\x00\x01")
            reply = await client.until_heard(topic)
            assert (json.loads(reply.payload), reply.correlation) == (answer, b"\x00\x01")
        for topic in ("sigma9/main/state/status", "sigma9/reply/", "sigma9/main/command/start", "elsewhere/x"):
            await ask(client, "resume", '{"id": "r"}', reply_to=topic, correlation=b"2")
        await ask(client, "resume", "resume")
        strange = [
            m for m in client.heard if m.correlation is not None and m.topic.startswith("sigma9/main/state")
        ]
        assert strange == []
        assert client.payloads("sigma9/reply/") == client.payloads("elsewhere/x") == []
        assert client.payloads("sigma9/main/command/start") == []


async def test_stored_commands_are_not_sent_on_mqtt_5(broker: Mosquitto) -> None:
    """On MQTT 5 a command that was stored while the node was away neither acts nor is answered."""
    async with Client.of(broker, "admin") as client:
        await client.subscribe("sigma9/main/response/+")
        for name in ("start", "kill_switch"):
            await client.publish(f"sigma9/main/command/{name}", "PRESS", retain=True)
            await client.publish(f"sigma9/main/command/{name}", "PRESS")  # and one that is simply too early
        async with serving(settings_for(broker)) as server:
            await ask(client, "stop", "stop")
            assert [message.topic for message in client.heard] == ["sigma9/main/response/stop"]
        assert [command.name for command in server.commands] == ["stop"]
        assert server.kills == []


async def test_stored_commands_are_refused_on_mqtt_3(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    """On 3.1.1 a stored command is answered `retained`, once, and cleared where the topic is the node's own."""
    settings = settings_for(broker, protocol="3.1.1")
    async with Client.of(broker, "admin") as client:
        await client.subscribe("sigma9/main/response/+")
        for name in ("start", "kill_switch"):
            await client.publish(f"sigma9/main/command/{name}", '{"id": "old"}', retain=True)
        await client.publish("sigma9/all/command/pause", "pause", retain=True)
        async with serving(settings) as server:
            for name in ("start", "kill_switch", "pause"):
                await client.until_heard(f"sigma9/main/response/{name}")
            await ask(client, "stop", "stop")
            await asyncio.sleep(0.4)  # long enough for the command connection to look after the kill
            refused = [
                answer for name in ("start", "kill_switch", "pause") for answer in answers(client.heard, name)
            ]
            assert [answer["error"]["code"] for answer in refused] == ["retained"] * 3
            assert [answer["id"] for answer in refused] == ["old", "old", None]
        assert [command.name for command in server.commands] == ["stop"]
        assert server.kills == []
        async with Client.of(broker, "viewer") as viewer:
            await viewer.subscribe("sigma9/+/command/+", "sigma9/main/availability")
            await viewer.until_heard("sigma9/main/availability")
            assert {message.topic for message in viewer.heard} == {
                "sigma9/all/command/pause",
                "sigma9/main/availability",
            }
    assert "commands are never retained" in caplog.text


async def test_a_command_published_retained_acts_once(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    """On MQTT 5 a live command with the retain flag is carried out once, and the node's own topic cleared."""
    async with Client.of(broker, "admin") as client, Client.of(broker, "viewer") as viewer:
        await client.subscribe("sigma9/main/response/+")
        async with serving(settings_for(broker)) as server:
            await ask(client, "start", "PRESS", retain=True)
            await ask(client, "kill_switch", "PRESS", retain=True)
            await client.publish("sigma9/all/command/stop", "PRESS", retain=True)
            await client.until_heard("sigma9/main/response/stop")
            await asyncio.sleep(0.3)  # long enough for the command connection to look after the kill
            assert [command.name for command in server.commands] == ["start", "stop"]
            assert len(server.kills) == 1
        await viewer.subscribe("sigma9/+/command/+", "sigma9/main/availability")
        await viewer.until_heard("sigma9/main/availability")
        assert {m.topic for m in viewer.heard} == {"sigma9/all/command/stop", "sigma9/main/availability"}
    assert [len(answers(client.heard, name)) for name in ("start", "kill_switch", "stop")] == [1, 1, 1]
    assert "sigma9/main/command/start was published with the retain flag" in caplog.text


async def test_a_slow_scan_holds_nobody_up(broker: Mosquitto) -> None:
    """While scans are at work and more of them wait, `stop` is answered; each scan has its answer in the end."""
    settings = settings_for(broker)
    server = SlowServer(settings)
    async with serving(settings, server), Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+")
        for _ in range(40):
            await client.publish("sigma9/main/command/scan", "scan")
        assert (await ask(client, "stop", "stop"))["ok"]
        assert answers(client.heard, "scan") == []
        server.scanned.set()
        await client.until(lambda heard: len(answers(heard, "scan")) == 40)


async def test_long_answers_are_made_one_at_a_time(broker: Mosquitto) -> None:
    """A flood of `events`, which have the longest answers, never makes more than one of them at a time."""
    settings = settings_for(broker)
    server = FakeServer(settings)
    at_once: set[int] = set()
    running = 0

    async def dispatch(command: Command) -> Response:
        nonlocal running
        running += 1
        at_once.add(running)
        await asyncio.sleep(0.002)
        running -= 1
        return Response(command.id, command.name, True, {}, None, "mqtt", wall_now(), 2.0)

    server.dispatch = dispatch  # type: ignore[method-assign]
    async with serving(settings, server), Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/events")
        for number in range(50):
            await client.publish("sigma9/main/command/events", f'{{"after": 0, "id": "{number}"}}', qos=0)
        await client.until(lambda heard: len(heard) == 50)
    assert at_once == {1}
    assert [answer["id"] for answer in answers(client.heard, "events")] == [*map(str, range(50))]


async def test_commands_in_work_are_answered_at_the_stop(broker: Mosquitto) -> None:
    """A stop answers what it interrupts, outcome unknown, and what had not begun: nothing was done."""
    settings = settings_for(broker)
    server = SlowServer(settings)
    async with Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+")
        async with serving(settings, server):
            for number in range(20):
                await client.publish("sigma9/main/command/scan", json.dumps({"id": f"s{number}"}))
            await ask(client, "stop", "stop")
        await client.until(lambda heard: len(answers(heard, "scan")) == 20)
    codes = {answer["id"]: answer["error"]["code"] for answer in answers(client.heard, "scan")}
    assert codes == {f"s{number}": "internal" if number < 16 else "not_running" for number in range(20)}


async def test_a_stop_keeps_no_kill_out(broker: Mosquitto) -> None:
    """While a stop waits for a command, `control kill` still kills, and all else is refused."""
    settings = settings_for(broker)
    server = SlowServer(settings)
    service = service_for(settings)
    async with Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+", "sigma9/main/availability")
        async with serving(settings, server, service=service):
            await client.publish("sigma9/main/command/scan", "PRESS")
            await ask(client, "heartbeat", "PRESS")
            stopping = asyncio.create_task(service.stop())
            await asyncio.sleep(0.05)
            assert (await ask(client, "control", "start"))["error"]["code"] == "not_running"
            assert (await ask(client, "control", "kill"))["ok"]
            await stopping
    assert [command.name for command in server.commands] == ["heartbeat", "control"]


@both
async def test_a_kill_passes_a_flood_by(broker: Mosquitto, protocol: Protocol) -> None:
    """Amid 2,000 commands a kill is answered at once, from the doors' lane; every flood message has one answer."""
    settings = settings_for(broker, protocol=protocol)
    server = SlowServer(settings)
    async with (
        serving(settings, server),
        Client.of(broker, "operator") as attacker,
        Client.of(broker, "operator") as client,
        Client.of(broker, "viewer") as viewer,
    ):
        await client.subscribe("sigma9/main/response/kill_switch")
        await viewer.subscribe("sigma9/main/response/heartbeat")
        flood = asyncio.gather(
            *(
                attacker.publish("sigma9/main/command/heartbeat", json.dumps({"id": str(number)}), qos=0)
                for number in range(2000)
            )
        )
        began = monotonic()
        answer = await ask(client, "kill_switch", '{"reason": "flood"}')
        took = monotonic() - began
        await flood
        assert answer["ok"]
        assert took < 6  # the flood, its answers and this client share one loop, and on a busy machine a slow one
        assert server.kill_threads == {"sigma9-doors"}
        await viewer.until(lambda heard: len(heard) >= 2000, 10, what="2,000 answers")
        assert server.killed_at < monotonic() - 0.05, "the kill came no earlier than the end of the flood"
        given = answers(viewer.heard, "heartbeat")
        assert sorted(int(one["id"]) for one in given) == list(range(2000))
        refused = [one for one in given if not one["ok"]]
        assert {one["error"]["code"] for one in refused} == {"rate_limited"}
        assert len(given) - len(refused) >= BURST
        await asyncio.sleep(0.3)
        assert len(server.kills) == 1
        assert len(answers(client.heard, "kill_switch")) == 1


async def test_the_refusals_of_a_flood_cost_nobody_an_answer(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more wait than there is room for, refusals for being too many go, the oldest first, and no others."""
    monkeypatch.setattr("sigma9_integrations.mqtt.answers.ROOM", 20)
    waiting = Answers(Topics("sigma9", "main"))
    started = Arrival("sigma9/main/command/start", b"PRESS", False, False, False, monotonic())
    waiting.give(Response("mine", "start", True, {}, None, "mqtt", wall_now(), 1.0), started)
    for number in range(100):
        beat = replace(started, payload=json.dumps({"id": str(number)}).encode())
        waiting.refuse_with("heartbeat", beat, "rate_limited", "too many")
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/main/response/+")
        endpoint = Endpoint(broker.host, broker.port, "sigma9", broker.passwords["sigma9"])
        wire = await open_wire(endpoint, "test", ("5",), lambda _: None)
        writing = asyncio.create_task(waiting.write(wire))
        async with asyncio.timeout(5):
            await waiting.written(wire)
        await client.until(lambda heard: len(heard) >= 21)
        writing.cancel()
        await wire.close()
    assert [json.loads(one.payload)["id"] for one in client.heard] == ["mine", *map(str, range(80, 100))]


async def test_control_kill_is_never_rate_limited(broker: Mosquitto) -> None:
    """A flood of `control start` is limited; a `control kill` in it is carried out."""
    async with serving(settings_for(broker)) as server, Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+")
        for _ in range(int(BURST) * 2):
            await client.publish("sigma9/main/command/control", "start", qos=0)
        await client.publish("sigma9/main/command/control", '{"command": "kill", "id": "k"}')
        await client.until(lambda heard: len(heard) > BURST * 2)
        assert any(command.args["command"] == "kill" for command in server.commands)
        codes = {answer["error"]["code"] for answer in answers(client.heard, "control") if not answer["ok"]}
        assert codes == {"rate_limited"}


async def test_a_kill_is_carried_out_without_its_own_connection(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kill's connection can't be made, the command connection carries kills out, each once."""

    async def refuse(self: KillDoor, wire: Wire) -> None:
        raise aiomqtt.MqttError("refused for the test")

    monkeypatch.setattr(KillDoor, "serve", refuse)
    settings = settings_for(broker)
    server = SlowServer(settings)
    async with serving(settings, server), Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+")
        await client.until(lambda _: server.mqtt == "disconnected")
        for number in range(3):
            assert (await ask(client, "kill_switch", "PRESS"))["ok"]
            assert len(server.kills) == number + 1
        answer = await ask(client, "kill_switch", '{"flatten": tru}')
        assert answer["error"]["code"] == "invalid"
    assert server.kill_threads == {"sigma9-doors"}


async def test_a_kill_that_its_own_connection_misses_is_carried_out_once(broker: Mosquitto) -> None:
    """Where the doors' lane does not come to its message in time, two doors have it and one carries it out."""
    settings = settings_for(broker)
    server = SlowServer(settings)
    async with serving(settings, server), Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+")
        server.doors.post(time.sleep, 0.6)
        await client.publish("sigma9/main/command/kill_switch", "PRESS")
        await client.until_heard("sigma9/main/response/kill_switch")
        await asyncio.sleep(0.3)
        assert len(server.kills) == len(answers(client.heard, "kill_switch")) == 1


async def test_a_kill_that_the_command_connection_hears_late_is_carried_out_once(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a flood of commands a kill reaches the command connection when its own has long answered it."""
    monkeypatch.setattr("sigma9_integrations.mqtt.kill.MEMORY_SECONDS", 0.2)
    monkeypatch.setattr("sigma9_integrations.mqtt.commands.KILL_GRACE", 0.6)
    async with serving(settings_for(broker)) as server, Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+")
        await client.publish("sigma9/main/command/kill_switch", "PRESS")
        await client.until_heard("sigma9/main/response/kill_switch")
        await asyncio.sleep(1)
        assert len(server.kills) == len(answers(client.heard, "kill_switch")) == 1


async def test_kills_one_after_another_are_each_answered(broker: Mosquitto) -> None:
    """A button with a constant payload works every time: each press is carried out and answered once."""
    async with serving(settings_for(broker)) as server, Client.of(broker, "operator") as client:
        await client.subscribe("sigma9/main/response/+")
        for _ in range(50):
            await client.publish("sigma9/main/command/kill_switch", '{"id": "button"}')
        await client.publish("sigma9/all/command/kill_switch", '{"scope": {"symbol": "AAPL"}}')
        await client.until(lambda heard: len(heard) >= 51)
        await asyncio.sleep(0.3)
        assert len(server.kills) == len(client.heard) == 51


async def test_commands_do_not_queue_while_the_node_is_away(broker: Mosquitto) -> None:
    """A command that was sent between two runs of the node never acts."""
    settings = settings_for(broker)
    server = FakeServer(settings)
    async with Client.of(broker, "operator") as client:
        async with serving(settings, server):
            pass
        await client.publish("sigma9/main/command/start", "PRESS")
        async with serving(settings, server):
            await client.subscribe("sigma9/main/response/+")
            await ask(client, "stop", "stop")
        assert [command.name for command in server.commands] == ["stop"]


@both
async def test_what_waited_for_a_process_that_stood_still_does_not_act(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    """A command that lay in a suspended machine is answered `expired`, a kill is carried out; then all is well."""
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.AWAY_SECONDS", 1.5)
    settings = settings_for(broker, protocol=protocol)
    async with serving(settings) as server, Client.of(broker, "operator", protocol) as client:
        await client.subscribe("sigma9/main/response/+", "sigma9/main/availability")
        await client.until_heard("sigma9/main/availability", "online")
        sending = [
            asyncio.create_task(client.publish(f"sigma9/main/command/{name}", payload))
            for name, payload in (("start", "PRESS"), ("control", "stop"), ("control", "kill"), ("scan", "PRESS"))
        ]
        await asyncio.sleep(0)
        time.sleep(2)  # noqa: ASYNC251 - nothing of this process runs
        await asyncio.gather(*sending)
        await client.until(lambda heard: len(answers(heard, "control")) == 2, what="the answers")
        await client.until_heard("sigma9/main/response/scan")
        found = [
            *answers(client.heard, "start"),
            *answers(client.heard, "control"),
            *answers(client.heard, "scan"),
        ]
        assert sorted(str(answer["error"] and answer["error"]["code"]) for answer in found) == [
            *["None"],
            *["expired"] * 3,
        ]
        assert [dict(command.args)["command"] for command in server.commands] == ["kill"]
        await client.until(
            lambda heard: [m.payload for m in heard if "avail" in m.topic][-2:] == ["offline", "online"]
        )
        assert (await ask(client, "start", "PRESS"))["ok"] is True


@both
async def test_what_waited_in_a_network_that_stood_still_does_not_act(
    broker: Mosquitto, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    """What comes when the broker takes the node for gone is not carried out, but for a kill; then all is well."""
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.KEEPALIVE", 3)
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.AWAY_SECONDS", 4.5)
    settings = settings_for(broker, protocol=protocol, port=proxy.port)
    async with serving(settings) as server, Client.of(broker, "operator", protocol) as client:
        await client.subscribe("sigma9/main/response/+", "sigma9/main/availability")
        await client.until_heard("sigma9/main/availability", "online")
        proxy.hold()
        await client.publish("sigma9/main/command/start", "PRESS")
        await client.publish("sigma9/main/command/kill_switch", "PRESS")
        await asyncio.sleep(5)  # the node itself gives up after 6
        proxy.let_go()
        await client.until(
            lambda heard: [m.payload for m in heard if "avail" in m.topic][-2:] == ["offline", "online"]
        )
        assert len(server.kills) == 1
        assert (await ask(client, "stop", "PRESS"))["ok"] is True
        assert [command.name for command in server.commands] == ["stop"]
        codes = {answer["error"]["code"] for answer in answers(client.heard, "start")}
        assert codes <= {"expired"}, "the broker may have closed the connection before the answer"


@both
async def test_commands_wait_a_moment_while_a_kill_is_answered(
    broker: Mosquitto, protocol: Protocol, mocker: MockerFixture
) -> None:
    """They are not read meanwhile, at most for one pause in a while however many kills come, and none is lost."""
    rested = mocker.spy(Wire, "_rest")
    settings = settings_for(broker, protocol=protocol)
    async with serving(settings) as server, Client.of(broker, "operator", protocol) as client:
        await client.subscribe("sigma9/main/response/+")
        began, sent = monotonic(), 0
        while not rested.call_count and sent < 100:  # where all is answered before the next is read, nothing waits
            for number in range(sent, sent + 20):
                await client.publish("sigma9/main/command/kill_switch", f'{{"id": "k{number}"}}', qos=0)
                await client.publish("sigma9/main/command/heartbeat", f'{{"id": "h{number}"}}', qos=0)
            sent += 20
            await client.until(answered("heartbeat", sent), what="all heartbeats")
            await client.until(answered("kill_switch", sent), what="all kills")
        took = monotonic() - began
        assert 1 <= rested.call_count <= 1 + took / GIVE_WAY_EVERY
    assert [command.id for command in server.commands if command.name == "heartbeat"] == [
        f"h{number}" for number in range(sent)
    ]


async def test_an_end_waits_for_the_kills_that_are_in_work_and_for_no_later_one() -> None:
    """Kills that keep coming while it ends do not keep it from handing the answers over."""
    server = SlowKills(Settings())
    topics = Topics("sigma9", "main")
    door = KillDoor(server, topics, KillLedger(), lambda _up: None)
    number = itertools.count()

    def hear() -> None:
        payload = json.dumps({"reason": str(next(number))}).encode()
        door.on_message(Arrival(topics.kills[0], payload, False, False, False, monotonic()))

    async def go_on() -> None:
        while True:
            hear()
            await asyncio.sleep(0.005)

    hear()
    later = asyncio.create_task(go_on())
    began = monotonic()
    await door.finish(None, 5)
    took = monotonic() - began
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert took < 2
    assert not door._begun

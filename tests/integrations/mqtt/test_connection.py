"""One connection: what it refuses, how it ends, what it falls back to; against real brokers."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import aiomqtt
import pytest

from sigma9_core.clock import monotonic
from sigma9_integrations.mqtt import connection
from sigma9_integrations.mqtt.connection import WINDOW, Arrival, Endpoint, Link, Wire, is_topic, open_wire
from sigma9_integrations.mqtt.testing import Client, Mosquitto, Proxy


def ignore(arrival: Arrival) -> None:
    """Take a message and do nothing."""


def endpoint_of(broker: Mosquitto, role: Any = "sigma9", password: str | None = None) -> Endpoint:
    return Endpoint(broker.host, broker.port, role, password or broker.passwords[role])


async def is_quiet() -> bool:
    """Tell whether no task but the test's own is left."""
    await asyncio.sleep(0.01)
    return len(asyncio.all_tasks()) == 1


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_messages_leave_in_order_and_are_acknowledged(broker: Mosquitto, protocol: Any) -> None:
    """A thousand messages, handed over without waiting for each, arrive in order, and each is acknowledged."""
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/x")
        wire = await open_wire(endpoint_of(broker), "test", (protocol,), ignore)
        codes: list[int] = []
        for number in range(1000):
            await wire.room()
            wire.post("sigma9/x", str(number), qos=1, on_ack=codes.append)
        async with asyncio.timeout(5):
            await wire.settled()
        assert len(codes) == 1000
        assert max(codes) < 0x80
        await client.until(lambda heard: len(heard) == 1000)
        assert client.payloads("sigma9/x") == [str(number) for number in range(1000)]
        await wire.close()


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_messages_of_any_size_leave_as_one_write(broker: Mosquitto, protocol: Any) -> None:
    """Many messages at QoS 0 go out together, between others: each arrives whole, in order, on its own topic."""
    sizes = [0, 1, 100, 127, 128, 16_383, 16_384, 200_000]  # where the length takes one byte more
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/#")
        wire = await open_wire(endpoint_of(broker), "test", (protocol,), ignore)
        await wire.room()
        wire.post("sigma9/x", "before", qos=1)
        wire.post_all([(f"sigma9/é/{size}", "é" * size) for size in sizes])
        wire.post("sigma9/x", "after", qos=1)
        async with asyncio.timeout(5):
            await wire.settled()
        await client.until(lambda heard: len(heard) == len(sizes) + 2)
        told = [(message.topic, message.payload) for message in client.heard]
        assert told == [
            ("sigma9/x", "before"),
            *((f"sigma9/é/{size}", "é" * size) for size in sizes),
            ("sigma9/x", "after"),
        ]
        assert not any(message.retain or message.qos for message in client.heard[1:-1])
        await wire.close()


@pytest.mark.mosquitto
async def test_what_a_full_socket_does_not_take_leaves_when_it_does(broker: Mosquitto) -> None:
    """A broker that reads nothing for a while gets all of it afterwards, whole and in order."""
    large = "x" * 300_000
    async with Client.of(broker, "viewer") as client:
        await client.subscribe("sigma9/x")
        wire = await open_wire(endpoint_of(broker), "test", ("5",), ignore)
        broker.freeze()
        posted = 0
        while not wire._full:
            wire.post("sigma9/x", f"{posted} {large}", qos=1)
            posted += 1
            await asyncio.sleep(0.001)
        wire.post("sigma9/x", f"{posted} last", qos=1)
        assert wire._unwritten
        broker.thaw()
        async with asyncio.timeout(10):
            await wire.settled()
        await client.until(lambda heard: len(heard) == posted + 1)
        assert [text.partition(" ")[0] for text in client.payloads("sigma9/x")] == [*map(str, range(posted + 1))]
        assert not wire._full
        await wire.close()


@pytest.mark.parametrize("text", ["", "a/+", "#", "nul\0", "half \ud800", "x" * 65_536])
def test_what_no_topic_can_be_is_known(text: str) -> None:
    """A wildcard, a NUL, half a character or too many of them: the broker would end the connection for it."""
    assert is_topic("sigma9/é") is True
    assert is_topic(text) is False


@pytest.mark.mosquitto
async def test_nagle_is_off_and_the_window_is_the_brokers(mosquitto_program: str, tmp_path: Any) -> None:
    """TCP_NODELAY is set; no more QoS 1 messages are outstanding than the broker says it takes."""
    broker = Mosquitto(tmp_path / "broker", mosquitto_program, more="max_inflight_messages 7\n")
    await broker.start()
    try:
        wire = await open_wire(endpoint_of(broker), "test", ("5",), ignore)
        sock: Any = wire._client.socket()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert wire._window == 7 < WINDOW
        for _ in range(50):
            await wire.room()
            wire.post("sigma9/x", "y", qos=1)
            assert len(wire._acks) <= 7
        await wire.close()
    finally:
        await broker.stop()


@pytest.mark.mosquitto
async def test_a_wrong_password_is_refused_by_name(broker: Mosquitto) -> None:
    """A refused login raises, says so, and leaves neither task nor socket."""
    for protocols in (("5",), ("3.1.1",), ("5", "3.1.1")):
        with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authori[sz]ed"):
            await open_wire(endpoint_of(broker, password="wrong"), "test", protocols, ignore)
    assert await is_quiet()


@pytest.mark.mosquitto
async def test_a_frozen_broker_is_given_up_in_time(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer a CONNECT is given up after the deadline; a connection closes at once."""
    monkeypatch.setattr(connection, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(connection, "FIRST_SECONDS", 0.2)
    wire = await open_wire(endpoint_of(broker), "before", ("5",), ignore)
    broker.freeze()
    began = monotonic()
    with pytest.raises(aiomqtt.MqttError, match="no answer"):
        await open_wire(endpoint_of(broker), "test", ("5", "3.1.1"), ignore)
    assert 0.4 < monotonic() - began < 1.5
    began = monotonic()
    await wire.close()
    assert monotonic() - began < 0.6
    assert await is_quiet()


@pytest.mark.mosquitto
async def test_a_lost_connection_wakes_whoever_waits(broker: Mosquitto, proxy: Proxy) -> None:
    """When the network is cut, `lost`, `room` and `settled` all raise at once."""
    endpoint = Endpoint(broker.host, proxy.port, "sigma9", broker.passwords["sigma9"])
    wire = await open_wire(endpoint, "test", ("5",), ignore)
    broker.freeze()
    for _ in range(WINDOW):
        await wire.room()
        wire.post("sigma9/x", "y", qos=1)
    waiting = [asyncio.ensure_future(work) for work in (wire.lost(), wire.room(), wire.settled())]
    await asyncio.sleep(0.05)
    proxy.cut()
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 2)
    assert all(isinstance(result, aiomqtt.MqttError) for result in results)
    with pytest.raises(aiomqtt.MqttError):
        wire.post("sigma9/x", "y", qos=1)
    await wire.drop()
    assert await is_quiet()


@pytest.mark.parametrize(("answer", "tried"), [(b"", [5, 4, 5, 4]), (b"\x20\x02\x00\x01", [5, 4])])
async def test_an_old_broker_gets_the_old_protocol(answer: bytes, tried: list[int]) -> None:
    """A broker that hangs up on MQTT 5, twice, or refuses its version, is tried again with 3.1.1."""
    levels: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(2)
        body = await reader.readexactly(head[1])
        levels.append(body[6])
        if body[6] == 5:
            writer.write(answer)
        else:
            writer.write(b"\x20\x02\x00\x00")
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    wire = await open_wire(Endpoint("127.0.0.1", port), "test", ("5", "3.1.1"), ignore)
    assert (levels, wire.protocol) == (tried, "3.1.1")
    await wire.drop()
    with pytest.raises(aiomqtt.MqttError, match=None if answer else "does this port want TLS"):
        await open_wire(Endpoint("127.0.0.1", port), "test", ("5",), ignore)
    listener.close()
    await listener.wait_closed()


@pytest.mark.mosquitto
async def test_a_broker_that_was_frozen_still_speaks_mqtt_5(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that did not answer MQTT 5 for a moment, and then 3.1.1, is not held for an old one."""
    monkeypatch.setattr("sigma9_integrations.mqtt.connection.FIRST_SECONDS", 0.3)
    broker.freeze()
    opening = asyncio.create_task(open_wire(endpoint_of(broker), "test", ("5", "3.1.1"), ignore))
    await asyncio.sleep(0.5)
    broker.thaw()
    wire = await opening
    assert wire.protocol == "5"
    await wire.close()
    assert await is_quiet()


@pytest.mark.mosquitto
async def test_a_connect_that_is_cancelled_leaves_nothing(broker: Mosquitto) -> None:
    """Cancelling at any moment of a connect leaves no task, and no client on the broker."""
    async with Client.of(broker, "sigma9") as watcher:
        await watcher.subscribe("sigma9/will")
        for step in range(30):
            will = aiomqtt.Will("sigma9/will", str(step), qos=1)
            task = asyncio.ensure_future(open_wire(endpoint_of(broker), f"c{step}", ("5",), ignore, will))
            await asyncio.sleep(step * 0.0002)
            task.cancel()
            try:
                await (await task).drop()
            except asyncio.CancelledError:
                pass
        wire = await open_wire(endpoint_of(broker), "last", ("5",), ignore)
        await wire.room()
        wire.post("sigma9/will", "end", qos=1)
        await watcher.until_heard("sigma9/will", "end")
        await wire.close()
    await asyncio.to_thread(lambda: None)
    assert await is_quiet()


@pytest.mark.mosquitto
async def test_a_refused_subscription_is_said(broker: Mosquitto) -> None:
    """A SUBACK with a failure code raises, naming the filter."""

    class Refusing(Wire):
        async def subscribe(self, *args: Any, **more: Any) -> Any:
            codes = await super().subscribe(*args, **more)
            return [0x87 for _ in codes]

    wire = Refusing(endpoint_of(broker), "test", "5", ignore)
    await wire.open()
    with pytest.raises(aiomqtt.MqttError, match="sigma9/a"):
        await wire.listen(("sigma9/a", "sigma9/b"))
    await wire.close()


async def test_attempts_slow_down_and_hurry_ends_a_pause() -> None:
    """Pauses between attempts grow up to their bound; `hurry` ends one, and a reason is logged once."""

    class Nothing:
        will: aiomqtt.Will | None = None

        def on_message(self, arrival: Arrival) -> None:
            raise AssertionError

        async def serve(self, wire: Wire) -> None:
            raise AssertionError

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        failures: list[float] = []
        fifth = asyncio.Event()

        def note(_: str) -> None:
            failures.append(monotonic())
            if len(failures) == 5:
                fifth.set()

        link = Link(
            "test",
            Nothing(),
            lambda: Endpoint("127.0.0.1", port),
            "x",
            "auto",
            on_failure=note,
        )
        task = asyncio.create_task(link.run())
        await asyncio.wait_for(fifth.wait(), 5)
        gaps = [later - earlier for earlier, later in itertools.pairwise(failures)]
        assert gaps[0] < 0.2
        assert 0.35 < gaps[3] < 1.2
        link.hurry()
        await asyncio.sleep(0.1)
        assert len(failures) == 6
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

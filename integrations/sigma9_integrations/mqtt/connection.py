"""One connection to the broker, and what keeps it connected.

A `Wire` is one client for one connection, never used again: aiomqtt's client with publishing that is not awaited
one by one, messages that go straight to their handler, and an end that never waits. A `Link` makes one wire after
another, with back-off and jitter, and lets its session work on each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn, Protocol

import aiomqtt
import paho.mqtt.client as paho
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from sigma9_core.clock import awake_or_not, monotonic
from sigma9_core.config import MqttTls
from sigma9_integrations.mqtt.topics import QoS
from sigma9_integrations.tasks import end

_LOG = logging.getLogger("sigma9.mqtt")
_CLIENT_LOG = logging.getLogger("sigma9.mqtt.client")
_CLIENT_LOG.setLevel(logging.CRITICAL)  # what it calls errors are lost connections, which a Link reports

PLAIN: Final = 1883
"""The port at which nobody expects TLS."""
KEEPALIVE: Final = 10
"""Seconds; a broker that is frozen is noticed after twice as many."""
AWAY_SECONDS: Final = 1.5 * KEEPALIVE
"""After so long without a word the broker says that the node is away."""
STALE_SECONDS: Final = 1.0
"""How long a connection is still read on which this process stood still for longer: then a new one is made."""
CONNECT_SECONDS: Final = 3.0
"""How long a TCP connect may take."""
CALL_SECONDS: Final = 5.0
"""How long the broker may take to answer a CONNECT or a SUBSCRIBE."""
FIRST_SECONDS: Final = 2.0
"""How long it may take to answer a CONNECT while there is an older protocol left to try."""
WINDOW: Final = 100
"""QoS 1 messages that may wait for their acknowledgement."""
BATCH: Final = 50
"""Messages that are handed over before the loop gets to write and read."""
CLOSE_SECONDS: Final = 0.3
"""How long an orderly disconnect may take."""
PAUSE_LEAST: Final = 0.1
PAUSE_MOST: Final = 15.0
"""The shortest and longest pause between two attempts, in seconds."""
STEADY_SECONDS: Final = 5.0
"""A connection that lasted this long starts the pauses anew."""
SHORT_MOST: Final = 4
"""Connections in a row that were made and lost at once: then somebody else may have this node's client id."""
LONGEST_TOPIC: Final = 0xFFFF
LARGEST: Final = 1024 * 1024
"""Bytes that a broker takes which does not say: the `message_size_limit` of mosquitto.conf, which Mosquitto keeps
to itself. On MQTT 5 it ends the connection of whoever sends more, on 3.1.1 it drops the message without a word."""
FAILURE: Final = 0x80
"""Reason codes from here on are refusals."""

_NO_TOPIC: Final = re.compile(r"[+#\x00\ud800-\udfff]")
_SILENT: Final = 0
"""For paho, a packet that is written without a word to anybody."""
_NODELAY: Final = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
_TOO_OLD: Final = frozenset((1, 0x84))
"""CONNACK codes of a broker that does not speak MQTT 5."""

_NO_REASON: Final = (paho.MQTT_ERR_CONN_LOST, 0x80)
"""What paho gives as the reason where it knows none, on MQTT 3.1.1 and on 5."""

Protocol5 = Literal["5", "3.1.1"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The broker, as the node's three connections reach it."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: MqttTls = field(default_factory=MqttTls)
    is_amqtt: bool = False
    """The embedded amqtt: it speaks MQTT 3.1.1 only, and anybody who knows a client id can end its session."""

    def __str__(self) -> str:
        """Give the address for a log line."""
        return f"mqtt{'s' if self.tls != MqttTls() else ''}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that has arrived."""

    topic: str
    payload: bytes
    retain: bool
    stored: bool
    """The broker had kept it: it is not new. Only MQTT 3.1.1 delivers such commands, 5 is asked not to."""
    stale: bool
    """It may be old: this process, the whole machine or the network stood still, and it waited meanwhile."""
    at: float
    """Monotonic seconds."""
    reply_to: str | None = None
    correlation: bytes | None = None


class Session(Protocol):
    """What is done with a connection, again with each new one."""

    will: aiomqtt.Will | None

    def on_message(self, arrival: Arrival) -> None:
        """Take a message at once, without waiting for anything."""

    async def serve(self, wire: Wire) -> None:
        """Work on a connection until it is lost, which raises MqttError."""


class Wire(aiomqtt.Client):
    """One connection: a client that is made, connected, used and dropped."""

    def __init__(
        self,
        endpoint: Endpoint,
        identifier: str,
        protocol: Protocol5,
        on_message: Callable[[Arrival], None],
        will: aiomqtt.Will | None = None,
    ) -> None:
        super().__init__(
            endpoint.host,
            endpoint.port,
            username=endpoint.username,
            password=endpoint.password,
            logger=_CLIENT_LOG,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5 if protocol == "5" else aiomqtt.ProtocolVersion.V311,
            will=will,
            timeout=CALL_SECONDS,
            keepalive=KEEPALIVE,
            max_inflight_messages=WINDOW,
            socket_options=[_NODELAY],
            tls_context=_tls_context(endpoint.tls),
        )
        self._endpoint = endpoint
        self._client.connect_timeout = CONNECT_SECONDS
        self.protocol: Protocol5 = protocol
        self.largest = LARGEST
        """The largest packet that the broker takes, in bytes."""
        self.on_subscribed: Callable[[], None] = lambda: None
        """Called at once when a subscription is confirmed, before a message that follows it is handled."""
        self.gives_way: Callable[[], float] = lambda: 0.0
        """Tells, before anything is read, for how many seconds it is to wait in the machine."""
        self._handle = on_message
        self._thread = threading.get_ident()
        self._acks: dict[int, Callable[[int], None]] = {}
        self._unwritten = 0
        self._full = False
        """The socket took no more: the selector says when it does again."""
        self._room = asyncio.Event()
        self._window = WINDOW
        self._given_up = False
        self._opened = False
        self._awake_at = awake_or_not()
        self._heard_at = monotonic()
        """When something was read last."""
        self._stale = False

    # --- life -------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; raise MqttError where that fails. Whatever happens, nothing is left behind."""
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()  # a task group of Python 3.11 leaves its own behind
        try:
            async with asyncio.timeout(CONNECT_SECONDS + self.timeout):
                await self.__aenter__()
            if task is not None and task.cancelling() > before:
                raise asyncio.CancelledError  # aiomqtt has swallowed it, see tasks.py
        except (TimeoutError, aiomqtt.MqttError) as error:
            silent = self._opened and not isinstance(error, MqttConnectError | NoAnswer)
            self._give_up()
            if silent:
                raise NoAnswer(f"no answer to a CONNECT within {self.timeout:g} s") from error
            if isinstance(error, TimeoutError):
                raise aiomqtt.MqttError(f"no connection within {CONNECT_SECONDS:g} s") from error
            raise
        except BaseException:
            self._give_up()
            raise

    async def close(self) -> None:
        """Disconnect orderly, within a short time, and drop what is left of the connection."""
        if not self._disconnected.done() and self._client.socket() is not None:
            self._client.disconnect()
            await asyncio.wait([self._disconnected], timeout=CLOSE_SECONDS)
        await self.drop()

    async def drop(self) -> None:
        """End the connection at once, without a word to the broker, which then publishes the will."""
        self._give_up()
        if self._misc_task is not None:
            await end(self._misc_task)

    async def lost(self) -> NoReturn:
        """Wait until the connection is lost and raise MqttError."""
        await asyncio.wait([self._disconnected])
        reason = self._disconnected.exception()
        known = isinstance(reason, aiomqtt.MqttCodeError) and reason.rc in _NO_REASON
        text = "closed by the broker or the network" if reason is None or known else str(reason)
        raise aiomqtt.MqttError(f"the connection was lost: {text}") from reason

    def _give_up(self) -> None:
        self._given_up = True
        if self._opened:
            self._client._sock_close()  # noqa: SLF001 - paho has no public way to end without writing first
        for future in (self._connected, self._disconnected):
            if not future.done():
                future.set_exception(aiomqtt.MqttError("the connection was ended by this side"))
            if not future.cancelled():
                future.exception()  # it has been seen
        self._room.set()

    def _client_connect(self) -> None:
        try:
            super()._client_connect()
        except ssl.SSLError as error:
            raise OSError(_tls_fault(error, self._endpoint)) from error
        except ConnectionResetError as error:
            if self._endpoint.tls == MqttTls():
                raise
            raise OSError("the broker hung up before it spoke TLS: is it the port for TLS?") from error
        except ValueError as error:  # an empty name, or one with an empty or a long label
            raise OSError(f"'{self._endpoint.host}' can't be the name or the address of a machine") from error

    # --- messages ---------------------------------------------------------------------------------------------

    async def listen(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1 to live messages; raise MqttError where the broker refuses one of the filters.

        On MQTT 5 stored messages are not asked for, and the retain flag stays as it was published.
        """
        if self.protocol == "5":
            options = SubscribeOptions(
                qos=1, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND
            )
            codes = await self.subscribe([(topic, options) for topic in filters])
        else:
            codes = await self.subscribe([(topic, 1) for topic in filters])
        self._check_codes(filters, codes)

    async def fetch(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 0 to live and stored messages; raise MqttError where the broker refuses."""
        self._check_codes(filters, await self.subscribe([(topic, 0) for topic in filters]))

    async def room(self) -> None:
        """Wait until one more message may be posted; between batches the loop gets to write and read.

        Raise MqttError where the connection is gone.
        """
        while not self.has_room:
            await self._stir()

    @property
    def has_room(self) -> bool:
        """Tell whether one more message may be posted now."""
        return len(self._acks) < self._window and self._unwritten < BATCH

    def post(
        self,
        topic: str,
        payload: str | bytes,
        *,
        qos: QoS,
        retain: bool = False,
        correlation: bytes | None = None,
        reply_to: str | None = None,
        on_ack: Callable[[int], None] | None = None,
    ) -> None:
        """Hand one message over, after `room`; `on_ack` gets the reason code of its acknowledgement (QoS 1).

        Correlation data and response topic go with it on MQTT 5. Raise MqttError where the connection is gone.
        """
        if self._disconnected.done():
            raise aiomqtt.MqttError("the connection is gone")
        properties = None
        if correlation is not None and self.protocol == "5":
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = correlation
            if reply_to is not None:
                properties.ResponseTopic = reply_to
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttError(f"the connection is gone: {paho.error_string(info.rc)}")
        self._unwritten += 1
        if qos:
            self._acks[info.mid] = on_ack or _ignore

    def post_all(self, messages: Sequence[tuple[str, str]]) -> None:
        """Hand over topics (of which `is_topic` holds) and payloads at QoS 0, after `room`, as one write.

        paho's own way takes a system call and several objects for each; a market has thousands a second. Raise
        MqttError where the connection is gone.
        """
        if self._disconnected.done():
            raise aiomqtt.MqttError("the connection is gone")
        frames = b"".join([_frame(topic, payload, self.protocol) for topic, payload in messages])
        self._client._packet_queue(_SILENT, frames, 0, 0)  # noqa: SLF001 - the one queue of what is written
        self._unwritten += len(messages)

    async def settled(self) -> None:
        """Wait until all is written and every QoS 1 message acknowledged; raise MqttError as `room` does."""
        while self._acks or self._unwritten:
            await self._stir()

    def fits(self, topic: str, payload: str, correlation: bytes | None = None) -> bool:
        """Tell whether the broker takes a message of this size."""
        properties = 32 if correlation is None else 32 + len(correlation)
        return len(topic.encode()) + len(payload.encode()) + properties <= self.largest

    async def _stir(self) -> None:
        """Wait until something is written, acknowledged or lost."""
        if self._disconnected.done():
            raise aiomqtt.MqttError("the connection is gone")
        self._room.clear()
        await self._room.wait()

    def _check_codes(self, filters: Sequence[str], codes: Sequence[int | ReasonCode]) -> None:
        for topic, code in zip(filters, codes, strict=True):
            if (code.value if isinstance(code, ReasonCode) else code) >= FAILURE:
                raise Refused(f"the broker refuses the subscription to {topic}: check the user's rights")

    # --- what paho calls; while connecting, the two that open and write run on the connecting thread --------

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        if reason_code.value == 0 and properties is not None:
            self._window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
            self.largest = getattr(properties, "MaximumPacketSize", LARGEST)
        if not self._connected.done():
            super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        if not self._connected.done():
            text = "the broker closed the connection without an answer"
            if self._endpoint.tls != MqttTls():  # with TLS 1.3 a client certificate is refused after the handshake
                text += ": does this port want another client certificate (mqtt.tls.cert), or WebSocket?"
            elif self._endpoint.port != PLAIN:
                text += ": does this port want TLS (mqtt.tls.ca; on the command line --ca)?"
            self._connected.set_exception(NoAnswer(text))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)
        self._room.set()

    def _on_subscribe(
        self, client: Any, userdata: Any, mid: int, reason_codes: Any, properties: Any = None
    ) -> None:
        if all(code.value < FAILURE for code in reason_codes):
            self.on_subscribed()
        super()._on_subscribe(client, userdata, mid, reason_codes, properties)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        acknowledged = self._acks.pop(mid, None)
        if acknowledged is not None:
            acknowledged(reason_code.value)
            self._room.set()

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties if self.protocol == "5" else None
        try:
            self._handle(
                Arrival(
                    message.topic,
                    bytes(message.payload),
                    message.retain,
                    message.retain and self.protocol != "5",
                    self._stale,
                    monotonic(),
                    getattr(properties, "ResponseTopic", None),
                    getattr(properties, "CorrelationData", None),
                )
            )
        except Exception:  # noqa: BLE001 - one bad message must not end the connection that a kill may need
            _LOG.exception("a message of %d bytes could not be handled", len(message.payload))

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._adopt, sock)
        except RuntimeError:  # the loop has ended while this thread was connecting
            sock.close()

    def _on_socket_close(self, client: Any, userdata: Any, sock: Any) -> None:
        if sock.fileno() > -1:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
        self._full = False
        if self._misc_task is not None and not self._misc_task.done():
            self._misc_task.cancel()

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self.write)  # the socket nearly always takes it: the selector need not be asked
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended while this thread was connecting
            self._loop.call_soon_threadsafe(self._start_writing, sock)

    def _on_socket_unregister_write(self, client: Any, userdata: Any, sock: Any) -> None:
        self._unwritten = 0
        self._room.set()

    def _adopt(self, sock: Any) -> None:
        """Take the socket that the connecting thread has opened into the loop."""
        current = self._client.socket()
        if current is None or current is not sock:
            return
        self._opened = True
        if self._given_up:
            self._give_up()
            return
        self._misc_task = self._loop.create_task(self._misc_loop(), name=f"mqtt-{self.identifier}-keepalive")
        self._loop.add_reader(current.fileno(), self._read)

    def _start_writing(self, sock: Any) -> None:
        if self._client.socket() is sock:
            self.write()

    async def _misc_loop(self) -> None:
        while self._client.loop_misc() == paho.MQTT_ERR_SUCCESS:
            self._notice_a_standstill()
            self._awake_at = awake_or_not()
            await asyncio.sleep(1)

    def _read(self) -> None:
        seconds = self.gives_way()
        if seconds:
            self._rest(seconds)
            return
        self._notice_a_standstill()
        self._notice_a_silence()
        self._guarded(self._read_all)
        self._heard_at = monotonic()

    def _rest(self, seconds: float) -> None:
        """Read nothing for a moment: what comes meanwhile waits in the machine."""
        sock: Any = self._client.socket()
        open_now = sock is not None and sock.fileno() > -1
        if open_now and self._loop.remove_reader(sock.fileno()):
            self._loop.call_later(seconds, self._read_on, sock)

    def _read_on(self, sock: Any) -> None:
        current: Any = self._client.socket()
        if current is sock:  # the connection is still there
            self._loop.add_reader(sock.fileno(), self._read)
            self._read()  # what TLS had decrypted before makes no noise on the socket

    def _notice_a_standstill(self) -> None:
        """Take what waits to be read for old where this process, or the machine, stood still for too long."""
        if not self._stale and awake_or_not() - self._awake_at > AWAY_SECONDS:
            self._make_stale("this process, or the machine, stood still")

    def _notice_a_silence(self) -> None:
        """Take what comes for old where nothing had come for too long, not even the answer to a ping."""
        if not self._stale and monotonic() - self._heard_at > max(AWAY_SECONDS, 1.5 * self._client.keepalive):
            self._make_stale("nothing had come for so long that the broker says the node was away")

    def _make_stale(self, why: str) -> None:
        self._stale = True
        self._loop.call_later(STALE_SECONDS, self._end_stale, why)

    def _end_stale(self, why: str) -> None:
        if not self._disconnected.done():
            self._disconnected.set_exception(aiomqtt.MqttError(why))
        self._room.set()

    def _read_all(self) -> None:
        """Read one message, and on TLS all that was decrypted with it: that makes no noise on the socket."""
        for _ in range(BATCH):
            self._client.loop_read()
            pending: Callable[[], int] | None = getattr(self._client.socket(), "pending", None)
            if pending is None or not pending():
                return
        self._loop.call_soon(self._read)

    def write(self) -> None:
        """Write now what was posted, as far as the socket takes it; never from a callback of the connection."""
        if not self._client.want_write():
            return
        self._guarded(self._client.loop_write)
        sock: Any = self._client.socket()
        full = sock is not None and sock.fileno() > -1 and self._client.want_write()
        if full and not self._full:
            self._loop.add_writer(sock.fileno(), self.write)
        elif self._full and not full and sock is not None:
            self._loop.remove_writer(sock.fileno())
        self._full = full

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever a broken connection raises ends this connection alone
            if not self._disconnected.done():
                self._disconnected.set_exception(error)
            self._room.set()


def _tls_context(tls: MqttTls) -> ssl.SSLContext | None:
    """Build what a TLS connection trusts and shows, None for a plain one; raise MqttError naming a bad file.

    It is built anew for each connection, so that a renewed certificate needs no restart.
    """
    if tls == MqttTls():
        return None
    try:
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
    except (OSError, ssl.SSLError) as error:
        raise aiomqtt.MqttError(f"mqtt.tls.ca {tls.ca} can't be used: {_why(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = TlsSocket
    if tls.cert is not None:
        try:
            context.load_cert_chain(str(tls.cert), None if tls.key is None else str(tls.key))
        except (OSError, ssl.SSLError) as error:
            files = f"{tls.cert}" if tls.key is None else f"{tls.cert} and mqtt.tls.key {tls.key}"
            raise aiomqtt.MqttError(f"mqtt.tls.cert {files} can't be used: {_why(error)}") from error
    return context


class TlsSocket(ssl.SSLSocket):
    """Closes itself where the handshake fails: paho leaves it to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands, or close."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "it holds no certificate, or one and another one's key"
    return error.strerror or str(error)


_WRONG_NAME: Final = frozenset((62, 64))
_EXPIRED: Final = 10
"""OpenSSL's verify codes."""


def _tls_fault(error: ssl.SSLError, endpoint: Endpoint) -> str:
    """Say in one sentence why there is no TLS connection, and what to look at."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"the broker does not speak TLS as it should ({reason}): is it the port for TLS?"
    if error.verify_code in _WRONG_NAME:
        return (
            f"its certificate is not for the name {endpoint.host}: set mqtt.host to a name that it has, or make "
            f"one that has this name (sigma9 mqtt setup --tls --host {endpoint.host})"
        )
    if error.verify_code == _EXPIRED:
        return "its certificate has ended: renew it (sigma9 mqtt setup --tls)"
    trusted = "that this machine trusts" if endpoint.tls.ca is None else f"in {endpoint.tls.ca} (mqtt.tls.ca)"
    return (
        f"its certificate is not signed by an authority {trusted}: set mqtt.tls.ca to the broker's own ca.crt "
        f"({error.verify_message})"
    )


class Refused(aiomqtt.MqttError):
    """The broker does not let this user subscribe to a filter."""


class NoAnswer(aiomqtt.MqttError):
    """The broker did not answer a CONNECT, as old ones do with MQTT 5: they hang up, or wait for more."""


def is_topic(text: str) -> bool:
    """Tell whether a text can be published to: no wildcard, no NUL, and no more than UTF-8 and its length hold."""
    return _NO_TOPIC.search(text) is None and 0 < len(text.encode()) <= LONGEST_TOPIC


def _frame(topic: str, payload: str, protocol: Protocol5) -> bytes:
    """Write one PUBLISH at QoS 0, not retained, without properties (MQTT 5, section 3.3; 3.1.1 alike)."""
    name, body = topic.encode(), payload.encode()
    properties = b"\0" if protocol == "5" else b""
    left = 2 + len(name) + len(properties) + len(body)
    head = bytearray((0x30,))
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return b"".join((head, len(name).to_bytes(2, "big"), name, properties, body))


def _ignore(code: int) -> None:
    """Take an acknowledgement that nobody waits for."""


def protocols(setting: Literal["auto", "5", "3.1.1"]) -> tuple[Protocol5, ...]:
    """Give the protocols to try, in order, for `mqtt.protocol`."""
    return ("5", "3.1.1") if setting == "auto" else (setting,)


async def open_wire(
    endpoint: Endpoint,
    identifier: str,
    tried: Sequence[Protocol5],
    on_message: Callable[[Arrival], None],
    will: aiomqtt.Will | None = None,
) -> Wire:
    """Connect with the first protocol that the broker speaks; raise MqttError where it can't be done."""
    if endpoint.is_amqtt:  # a client id that nobody can guess
        identifier = f"{identifier}-{secrets.token_hex(4)}"

    async def attempt(protocol: Protocol5, seconds: float) -> Wire:
        wire = Wire(endpoint, identifier, protocol, on_message, will)
        wire.timeout = seconds
        try:
            await wire.open()
        except aiomqtt.MqttError:
            await wire.drop()
            raise
        wire.timeout = CALL_SECONDS
        return wire

    *newer, last = tried
    silent: Protocol5 | None = None
    for protocol in newer:
        try:
            return await attempt(protocol, FIRST_SECONDS)
        except (MqttConnectError, NoAnswer) as error:
            if not _is_too_old(error):
                raise
            silent = protocol if isinstance(error, NoAnswer) else None
    wire = await attempt(last, CALL_SECONDS)
    if silent != "5":
        return wire
    # It may only have been busy, or frozen for a moment. Now that it answers it is asked for MQTT 5 once more: on
    # 3.1.1 nobody who names a response topic would get an answer, for as long as the server runs.
    await wire.close()
    try:
        return await attempt(silent, FIRST_SECONDS)
    except (MqttConnectError, NoAnswer):
        return await attempt(last, CALL_SECONDS)


def _is_too_old(error: aiomqtt.MqttError) -> bool:
    if isinstance(error, MqttConnectError):
        code = error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
        return code in _TOO_OLD
    return True


class Link:
    """Keeps one purpose connected: a new wire after each loss, with pauses that grow and scatter.

    It belongs to the loop that `run` runs on.
    """

    def __init__(
        self,
        purpose: str,
        session: Session,
        endpoint: Callable[[], Endpoint],
        identifier: str,
        protocol: Literal["auto", "5", "3.1.1"],
        *,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.wire: Wire | None = None
        self._purpose = purpose
        self._session = session
        self._endpoint = endpoint
        self._identifier = identifier
        self._protocols = protocols(protocol)
        self._on_failure = on_failure
        self._pause = PAUSE_LEAST
        self._hurry = asyncio.Event()
        self._last_said = ""
        self._made = False
        self._short = 0
        """Connections in a row that were made and did not last."""

    def hurry(self) -> None:
        """End a pause: the broker is back."""
        self._pause = PAUSE_LEAST
        self._hurry.set()

    async def run(self) -> NoReturn:
        """Connect, serve, and connect again, until cancelled."""
        while True:
            began, self._made = monotonic(), False
            try:
                await self._once()
            except* (aiomqtt.MqttError, OSError) as group:
                self._say(_first(group))
            except* Exception as group:  # noqa: BLE001 - a fault must not end it for good: the next starts afresh
                self._say(_first(group), trace=True)
            if monotonic() - began > STEADY_SECONDS:
                self._pause = PAUSE_LEAST
                self._short = 0
            elif self._made:
                self._note_short()
            await self._rest()

    async def _once(self) -> None:
        endpoint = self._endpoint()
        self.wire = await open_wire(
            endpoint,
            self._identifier,
            ("3.1.1",) if endpoint.is_amqtt else self._protocols,
            self._session.on_message,
            self._session.will,
        )
        self._made = True
        if self.wire.protocol != self._protocols[0] and not endpoint.is_amqtt:
            _LOG.info("%s speaks MQTT %s, not %s", endpoint, self.wire.protocol, self._protocols[0])
            self._protocols = (self.wire.protocol, self._protocols[0])
        if self._last_said:
            _LOG.info("the MQTT connection for %s is back", self._purpose)
            self._last_said = ""
        try:
            await self._session.serve(self.wire)
        except asyncio.CancelledError:
            await self.wire.close()
            raise
        finally:
            wire, self.wire = self.wire, None
            await wire.drop()

    def _note_short(self) -> None:
        self._short += 1
        if self._short == SHORT_MOST:
            _LOG.error(
                "the MQTT connection for %s was made and lost %d times in a row: does a second server run as this "
                "node, and each throws the other out? Stop one of them, or give it another node name",
                self._purpose,
                self._short,
            )

    async def _rest(self) -> None:
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads attempts, it keeps no secret
            async with asyncio.timeout(pause):
                await self._hurry.wait()
        self._pause = min(self._pause * 2, PAUSE_MOST)

    def _say(self, error: BaseException, *, trace: bool = False) -> None:
        """Log a loss once, and again only when its reason changes."""
        text = f"{self._endpoint()}: {error}"
        self._on_failure(text)
        if text != self._last_said:
            self._last_said = text
            _LOG.warning(
                "the MQTT connection for %s failed: %s; trying again",
                self._purpose,
                text,
                exc_info=error if trace else None,
            )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

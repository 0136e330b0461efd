"""The WebSocket feed: handshake, backlog, snapshots, live events, filters, slow clients."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sigma9_core.bus import Interest
from sigma9_core.clock import rfc3339, wall_now
from sigma9_core.errors import JournalError
from sigma9_core.events import LogLevel
from sigma9_integrations.web import feed
from sigma9_integrations.web.filters import read_subscribe
from sigma9_integrations.web.httpd import FeedProtocol

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Frames, Node, Serve


async def refused(node: Node, query: str = "", **more: Any) -> tuple[int, dict[str, Any]]:
    """Give status and body of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        await node.ws(query, **more)
    response = caught.value.response
    assert not node.server.bus._subscriptions
    return response.status_code, json.loads(response.body or b"{}")["error"]


# --- handshake ------------------------------------------------------------------------------------------------


async def test_a_token_comes_by_header_query_or_subprotocol(node: Node, frames: type[Frames]) -> None:
    """Each of the three is taken, and the sub-protocol is echoed, as a browser expects."""
    ways: tuple[dict[str, Any], ...] = (
        {"token": "secret-read"},
        {"token": None, "query": "?token=secret-read"},
        {"token": None, "subprotocols": ["sigma9.token.secret-read"]},
        {"token": None, "subprotocols": ["other", "sigma9.token.secret%2Dread"]},
    )
    for way in ways:
        async with node.ws(**way) as connection:
            assert len(await frames(connection).snapshots()) == 2
            offered = way.get("subprotocols", [None])[-1]
            assert connection.subprotocol == offered


async def test_a_handshake_without_a_valid_token_is_refused_before_it_is_accepted(node: Node) -> None:
    """No token and a wrong one, however they come, are answered 401 and never accepted."""
    ways: tuple[dict[str, Any], ...] = (
        {"token": None},
        {"token": "wrong"},
        {"token": None, "query": "?token=wrong"},
        {"token": None, "query": "?token="},
        {"token": None, "subprotocols": ["sigma9.token.wrong"]},
        {"token": None, "subprotocols": ["sigma9.token."]},
        {"token": "wrong", "query": "?token=secret-read"},
    )
    for way in ways:
        status, error = await refused(node, **way)
        assert (status, error["code"]) == (401, "unauthorized")


async def test_a_browser_from_elsewhere_is_refused(serve: Serve) -> None:
    """A page's origin must be our own or an allowed one; programs send none."""
    async with serve(allowed_origins=["https://dash.example.com"]) as node:
        for origin in (f"http://127.0.0.1:{node.port}", "https://dash.example.com"):
            async with node.ws(origin=origin):
                pass
        for origin in ("https://evil.example.com", "http://127.0.0.1:1", "null", "https://dash.example.com.evil"):
            status, error = await refused(node, origin=origin)
            assert (origin, status, error["code"]) == (origin, 403, "forbidden")


async def test_a_rebound_name_is_refused(node: Node) -> None:
    """A handshake under a foreign Host header is refused even where its origin fits that name."""
    with socket.create_connection(("127.0.0.1", node.port)) as raw:
        raw.sendall(handshake("/ws/feed", host="evil.example.com", extra="Origin: http://evil.example.com\r\n"))
        answer = await asyncio.to_thread(raw.recv, 4096)
    assert answer.startswith(b"HTTP/1.1 403 ")


async def test_a_bad_query_is_refused_with_its_name(node: Node) -> None:
    """What the query holds is checked before the handshake is accepted."""
    node.server.status()
    for query, field in (
        ("?types=trades", "types"),
        ("?types=", "types"),
        ("?symbols=A%20B", "symbols"),
        ("?symbols=AAPL,", "symbols"),
        ("?level=loud", "level"),
        ("?batch=maybe", "batch"),
        ("?after=x", "after"),
        ("?after=-1", "after"),
    ):
        status, error = await refused(node, query)
        assert (query, status, error["code"], error["details"]) == (query, 422, "invalid", {"field": field})


async def test_a_refused_handshake_has_the_headers_of_every_answer(node: Node) -> None:
    """No cache keeps a refusal, and no browser guesses its type."""
    for query, token in (("", None), ("?after=x", "secret-read")):
        with pytest.raises(InvalidStatus) as caught:
            await node.ws(query, token=token)
        headers = caught.value.response.headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


async def test_a_number_outside_of_what_is_kept_is_refused(node: Node) -> None:
    """Ahead of the head and older than the retention are answered 409 with the range."""
    for _ in range(5):
        node.server.status()
    node.server.first = 3
    for after in (1, 6):
        status, error = await refused(node, f"?after={after}")
        assert (status, error["code"]) == (409, "conflict")
        assert error["details"] == {"first": 3, "last": 5, "journal_id": "fake"}
    for after in (2, 5):
        async with node.ws(f"?after={after}"):
            pass


async def test_a_journal_that_fails_refuses_the_handshake(node: Node) -> None:
    """Where the journal can't be read the client is told so, by 500."""

    async def broken() -> None:
        raise JournalError("gone")

    node.server.before_page = broken
    assert (await refused(node, "?after=0"))[0] == 500


# --- snapshots and live events --------------------------------------------------------------------------------


async def test_a_stream_opens_with_two_snapshots(node: Node, frames: type[Frames]) -> None:
    """Status and watchlist come first, without a number, with the number that they stand for."""
    node.server.status()
    node.server.watchlist()
    status = {"engine": "running", "seq": 2}
    items = [{"symbol": "AAPL", "priority": 3}]
    node.server.board.set("status", status)
    node.server.board.set("watchlist", {"count": 1, "updated_at": None, "items": items})
    async with node.ws() as connection:
        first, second = await frames(connection).take(2)
        event = node.server.trade()
        raw = await connection.recv()
    assert list(first) == ["type", "v", "seq", "ts", "node", "data"]
    assert (first["type"], first["v"], first["seq"], first["node"]) == ("status_update", 1, None, "main")
    assert first["data"]["reason"] == "snapshot"
    assert first["data"]["as_of_seq"] == 2
    assert first["data"]["status"] == status
    assert (second["type"], second["seq"]) == ("watchlist_update", None)
    assert second["data"] == {
        "reason": "snapshot",
        "strategy": None,
        "added": [],
        "removed": [],
        "count": 1,
        "items": items,
        "as_of_seq": 2,
    }
    assert event.seq == 3
    assert raw == event.raw


async def test_frames_are_the_very_bytes_of_the_event(node: Node, frames: type[Frames]) -> None:
    """Live or out of the journal, a frame is the event's own encoding, unchanged."""
    old = [node.server.trade(), node.server.status()]
    async with node.ws("?after=0") as connection:
        assert [await connection.recv() for _ in old] == [event.raw for event in old]
        await frames(connection).snapshots()
        new = [node.server.log("hello"), node.server.quote(), node.server.watchlist()]
        found = {await connection.recv() for _ in new}
        assert found == {event.raw for event in new}


@pytest.mark.parametrize("page", [1, 3, 200])
async def test_nothing_is_lost_or_doubled_at_the_seam(
    node: Node, frames: type[Frames], seqs: Any, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Events that happen while a client catches up come exactly once and in order, whatever the pages are."""
    monkeypatch.setattr(feed, "PAGE", page)
    server = node.server
    for _ in range(20):
        server.status()

    async def meanwhile() -> None:
        if len(server.journal) < 60:
            server.status()
            await asyncio.sleep(0)
            server.trade()

    server.before_page = meanwhile
    async with node.ws("?after=5") as connection:
        reader = frames(connection)
        opening = await reader.snapshots()
        server.before_page = lambda: None
        for _ in range(10):
            server.status()
        server.log("end")
        rest = await reader.until("end")
    numbers = seqs(opening) + seqs(rest)
    assert numbers == list(range(6, len(server.journal) + 1))
    snapshot = opening[-1]
    assert snapshot["data"]["as_of_seq"] == max([5, *seqs(opening)])


async def test_a_journal_ahead_of_the_bus_is_not_sent_twice(node: Node, frames: type[Frames], seqs: Any) -> None:
    """Events that are durable but not dispatched yet come live, after the snapshots, once."""
    server = node.server
    for _ in range(5):
        server.status()
    server.bus.last_seq = 3  # the bus has dispatched three of five
    late = server.journal[3:]
    async with node.ws("?after=0") as connection:
        reader = frames(connection)
        assert seqs(await reader.snapshots()) == [1, 2, 3]
        server.bus.dispatch(late)
        server.log("end")
        assert seqs(await reader.until("end")) == [4, 5]
    server.bus.last_seq = 3
    async with node.ws("?after=5") as connection:  # it has them, from the journal, already
        reader = frames(connection)
        await reader.snapshots()
        server.bus.dispatch(late)
        server.status()
        server.log("end")
        assert seqs(await reader.until("end")) == [6]


async def test_a_backlog_outgrows_the_mailbox_without_loss(
    serve: Serve, frames: type[Frames], seqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens while a client catches up may be more than its mailbox holds: the journal gives it."""
    monkeypatch.setattr(feed, "PAGE", 10)
    async with serve(ws_queue=10) as node:
        server = node.server
        for _ in range(30):
            server.status()

        def burst() -> None:
            if server.pages in (2, 3):
                for _ in range(50):
                    server.status()

        server.before_page = burst
        async with node.ws("?after=0") as connection:
            reader = frames(connection)
            opening = await reader.snapshots()
            server.log("end")
            numbers = seqs(opening) + seqs(await reader.until("end"))
    assert numbers == list(range(1, 131))


async def test_a_retention_that_overtakes_a_backlog_ends_it(
    node: Node, frames: type[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose next event is no longer kept is closed, instead of being given a stream with a hole."""
    monkeypatch.setattr(feed, "PAGE", 5)
    for _ in range(20):
        node.server.status()

    def forget() -> None:
        if node.server.pages == 2:
            node.server.first = 15

    node.server.before_page = forget
    async with node.ws("?after=0") as connection:
        assert [frame["seq"] for frame in await frames(connection).take(5)] == [1, 2, 3, 4, 5]
        with pytest.raises(ConnectionClosed):
            await connection.recv()
    assert connection.close_code == 1013


# --- filters --------------------------------------------------------------------------------------------------


async def flood(node: Node) -> None:
    """Emit one of everything for two symbols."""
    for symbol in ("AAPL", "MSFT"):
        node.server.quote(symbol)
        node.server.trade(symbol)
    node.server.status()
    node.server.watchlist()
    levels: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")
    for level in levels:
        node.server.log(level, level)


def shown(found: list[dict[str, Any]]) -> list[str]:
    """Write frames as words, in order of their kind."""
    words = {"market_data": "symbol", "trade_event": "symbol", "log": "level"}
    return sorted(f"{f['type']} {f['data'].get(words.get(f['type']), '')}".strip() for f in found)


DURABLE_ALL = ["status_update", "trade_event AAPL", "trade_event MSFT", "watchlist_update"]
FILTERS: tuple[tuple[dict[str, Any], list[str]], ...] = (
    ({}, ["log error", "log info", "log warning", "market_data AAPL", "market_data MSFT", *DURABLE_ALL]),
    ({"types": ["trade_event"]}, ["trade_event AAPL", "trade_event MSFT"]),
    ({"types": ["log", "status_update"]}, ["log error", "log info", "log warning", "status_update"]),
    (
        {"symbols": ["MSFT", "BRK.B"]},
        [
            *("log error", "log info", "log warning", "market_data MSFT"),
            *("status_update", "trade_event MSFT", "watchlist_update"),
        ],
    ),
    ({"types": ["log"], "level": "warning"}, ["log error", "log warning"]),
    ({"types": ["log"], "level": "debug"}, ["log debug", "log error", "log info", "log warning"]),
    ({"types": ["market_data", "trade_event"], "symbols": ["AAPL"]}, ["market_data AAPL", "trade_event AAPL"]),
)


async def collect(node: Node, reader: Frames, expected: int) -> list[dict[str, Any]]:
    """Take what is expected, and see that nothing more waits."""
    found = await reader.take(expected)
    with pytest.raises(TimeoutError):
        await reader.next(timeout=0.05)
    return found


async def test_a_query_filters_the_stream(node: Node, frames: type[Frames]) -> None:
    """types, symbols and level choose what comes after the snapshots; market data wait behind what is durable."""
    for wish, expected in FILTERS:
        parts = [f"{name}={value if isinstance(value, str) else ','.join(value)}" for name, value in wish.items()]
        async with node.ws("?" + "&".join(parts)) as connection:
            reader = frames(connection)
            await reader.snapshots()
            await flood(node)
            assert shown(await collect(node, reader, len(expected))) == sorted(expected), wish


async def test_a_message_replaces_the_filter(node: Node, frames: type[Frames], eventually: Any) -> None:
    """Each subscribe action replaces the whole filter, what is absent meaning everything."""
    async with node.ws("?types=log") as connection:
        reader = frames(connection)
        await reader.snapshots()
        (subscription,) = node.server.bus._subscriptions
        for wish, expected in FILTERS:
            subscription.interest = unlike = Interest(level="critical")
            await connection.send(json.dumps({"action": "subscribe", **wish}))
            await eventually(lambda: subscription.interest is not unlike)  # noqa: B023 - called at once
            await flood(node)
            assert shown(await collect(node, reader, len(expected))) == sorted(expected), wish


async def test_a_filtered_backlog_has_what_was_asked_for(node: Node, frames: type[Frames], seqs: Any) -> None:
    """The events of the journal pass the same filter, and as_of_seq counts those that were left out too."""
    node.server.trade("AAPL")
    node.server.status()
    node.server.trade("MSFT")
    node.server.trade("AAPL")
    node.server.watchlist()
    async with node.ws("?after=0&types=trade_event&symbols=AAPL") as connection:
        opening = await frames(connection).snapshots()
    assert seqs(opening) == [1, 4]
    assert opening[-1]["data"]["as_of_seq"] == 5


async def test_events_that_waited_under_an_old_filter_are_not_shown(
    node: Node, frames: type[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the mailbox when the filter changes is judged by the new one."""
    async with node.ws() as connection:
        reader = frames(connection)
        await reader.snapshots()
        (subscription,) = node.server.bus._subscriptions
        node.server.trade("AAPL")
        subscription.interest = read_subscribe('{"action": "subscribe", "types": ["log"]}')
        node.server.log("end")
        assert await reader.until("end") == []


ODD: tuple[str | bytes, ...] = (
    "nonsense",
    "",
    "[]",
    "5",
    '{"action": "unsubscribe"}',
    '{"action": "subscribe", "types": ["x"]}',
    '{"action": "subscribe", "types": []}',
    '{"action": "subscribe", "symbols": ["A B"]}',
    '{"action": "subscribe", "level": "loud"}',
    '{"action": "subscribe", "colour": "red"}',
    '{"command": "start"}',
    b"\x00\xff",
    "[" * 10_000,
)


async def test_anything_else_is_answered_by_a_warning_to_that_client_alone(
    node: Node, frames: type[Frames]
) -> None:
    """A message that is not understood gets a log event, under any filter, and changes nothing."""
    async with node.ws("?types=trade_event&level=error") as odd, node.ws() as other:
        reader, quiet = frames(odd), frames(other)
        await reader.snapshots()
        await quiet.snapshots()
        for message in ODD:
            await odd.send(message)
            answer = await reader.next()
            assert (answer["type"], answer["seq"], answer["data"]["level"]) == ("log", None, "warning"), message
            assert answer["data"]["message"].startswith("a message of this client was not understood: ")
            node.server.trade()
            assert (await reader.next())["type"] == "trade_event"
            assert (await quiet.next())["type"] == "trade_event"


async def test_a_warning_has_wall_time_and_a_snapshot_market_time(node: Node, frames: type[Frames]) -> None:
    """Where the market has its own clock, a log event tells the wall clock's time and a snapshot the market's."""
    node.server.stepped.advance(wall_now() + timedelta(days=400))
    market = rfc3339(node.server.clock.now())
    async with node.ws() as connection:
        reader = frames(connection)
        assert [frame["ts"] for frame in await reader.snapshots()] == [market, market]
        before = rfc3339(wall_now())
        await connection.send("nonsense")
        assert before <= (await reader.next())["ts"] <= rfc3339(wall_now())


async def test_warnings_wait_for_the_snapshots(
    node: Node, frames: type[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that talks before the stream has opened still gets its backlog and snapshots first."""
    monkeypatch.setattr(feed, "PAGE", 1)
    for _ in range(3):
        node.server.status()
    gate = asyncio.Event()
    node.server.before_page = lambda: gate.wait() if node.server.pages == 2 else None
    async with node.ws("?after=0") as connection:
        reader = frames(connection)
        assert (await reader.next())["seq"] == 1
        await connection.send("nonsense")
        await (await connection.ping())
        await asyncio.sleep(0.02)  # the listener has the message now, and must keep its answer back
        gate.set()
        opening = await reader.snapshots()
        assert [frame["type"] for frame in opening] == ["status_update"] * 3 + ["watchlist_update"]
        assert (await reader.next())["type"] == "log"


# --- batches --------------------------------------------------------------------------------------------------


async def test_events_that_wait_together_may_come_as_an_array(node: Node, frames: type[Frames], seqs: Any) -> None:
    """With batch=true several envelopes share a frame, in order; one alone stays an object."""
    async with node.ws("?batch=true") as connection:
        reader = frames(connection)
        await reader.snapshots()
        first = reader.arrays
        for _ in range(250):
            node.server.status()
        node.server.log("end")
        assert seqs(await reader.until("end")) == list(range(1, 251))
        assert 1 <= reader.arrays - first < 10
        alone = node.server.trade()
        assert await connection.recv() == alone.raw


async def test_a_batch_is_bounded(node: Node, frames: type[Frames], monkeypatch: pytest.MonkeyPatch) -> None:
    """Large events are not put together without end, and one that is larger than a batch comes alone."""
    monkeypatch.setattr(feed, "FRAME", 1000)
    async with node.ws("?batch=true") as connection:
        await frames(connection).snapshots()
        for length in (10, 10, 5000, 10, 600, 600):
            node.server.log("x" * length)
        found = [json.loads(await connection.recv()) for _ in range(4)]
    sizes = [[len(each["data"]["message"]) for each in (f if isinstance(f, list) else [f])] for f in found]
    assert sizes == [[10, 10], [5000], [10, 600], [600]]


async def test_without_batch_every_frame_is_an_object(node: Node, frames: type[Frames]) -> None:
    """A client that did not ask for arrays never sees one."""
    async with node.ws("?batch=false") as connection:
        reader = frames(connection)
        await reader.snapshots()
        for _ in range(50):
            node.server.status()
        await reader.take(50)
        assert reader.arrays == 0


# --- slow clients ---------------------------------------------------------------------------------------------


def handshake(path: str, host: str = "localhost", extra: str = "") -> bytes:
    """Write a WebSocket handshake."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    ).encode()


def deaf(node: Node) -> socket.socket:
    """Connect a client with a small window that will not read."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", node.port))
    raw.sendall(handshake("/ws/feed?token=secret-read"))
    return raw


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    """Split what a server sent after its handshake into opcode and payload."""
    data = data.partition(b"\r\n\r\n")[2]
    found = []
    while len(data) >= 2:
        opcode, length, at = data[0] & 15, data[1] & 127, 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length, at = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
        if len(data) < at + length:
            break
        found.append((opcode, data[at : at + length]))
        data = data[at + length :]
    return found


async def test_a_client_that_never_reads_stalls_nobody_and_is_cut(
    serve: Serve, frames: type[Frames], seqs: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    """A deaf client keeps a bounded amount of memory, costs the others nothing, and is gone after a while."""
    async with serve(ws_queue=50) as node:
        raw = deaf(node)
        port = raw.getsockname()[1]
        patience = property(lambda self: 0.3 if self.client[1] == port else 30.0)
        monkeypatch.setattr(FeedProtocol, "stall_seconds", patience)
        await eventually(lambda: len(node.server.bus._subscriptions) == 1)
        (mailbox,) = node.server.bus._subscriptions
        async with node.ws() as healthy:
            reader = frames(healthy)
            await reader.snapshots()
            others = node.server.bus._subscriptions[-1]
            reading = asyncio.create_task(reader.until("end"))
            text = "x" * 20_000
            for number in range(300):
                node.server.status()
                node.server.log(text)
                node.server.quote(f"S{number % 3}")
                if number % 10 == 9:
                    await eventually(lambda: not (others._durable or others._logs))
                    assert len(mailbox._durable) <= 50
                    assert len(mailbox._logs) <= 500
                    assert len(mailbox._market) <= 3
            node.server.log("end")
            assert seqs(await reading) == list(range(1, 301))
            await eventually(lambda: mailbox not in node.server.bus._subscriptions)
            node.server.status()
            assert (await reader.next())["seq"] == 301
        raw.close()


async def test_a_client_that_falls_behind_is_closed_and_resumes(
    serve: Serve, frames: type[Frames], seqs: Any, eventually: Any
) -> None:
    """Past ws_queue a client gets what waited, then 1013, and loses nothing when it resumes with `after`."""
    async with serve(ws_queue=20) as node, node.http() as client:
        raw = deaf(node)
        await eventually(lambda: len(node.server.bus._subscriptions) == 1)
        (mailbox,) = node.server.bus._subscriptions
        node.server.log("x" * 4_000_000)  # fills every buffer on the way
        await asyncio.sleep(0.05)
        for _ in range(100):
            node.server.status()
        assert mailbox.overflowed
        raw.settimeout(5)
        data = bytearray()
        while chunk := await asyncio.to_thread(raw.recv, 1 << 20):
            data += chunk
            if (8, b"") in [(opcode, b"") for opcode, _ in frames_of(bytes(data))]:
                break
        raw.close()
        received = frames_of(bytes(data))
        opcode, payload = received[-1]
        assert (opcode, int.from_bytes(payload[:2], "big")) == (8, 1013)
        numbers = seqs([json.loads(body) for code, body in received if code == 1])
        assert numbers == list(range(1, len(numbers) + 1))
        assert 1 <= len(numbers) < 100
        assert payload[2:].decode().endswith(f"after={numbers[-1]}")
        async with node.ws(f"?after={numbers[-1]}") as connection:
            assert seqs(await frames(connection).snapshots()) == list(range(numbers[-1] + 1, 101))
        assert "sigma9_websocket_fell_behind_total 1" in (await client.get("/metrics")).text


async def test_market_data_of_a_slow_client_are_conflated(
    node: Node, frames: type[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of quotes that wait, the newest of each symbol comes."""
    async with node.ws() as connection:
        reader = frames(connection)
        await reader.snapshots()
        for bid in range(100):  # the sender has no turn in between
            node.server.quote("AAPL", float(bid))
            node.server.quote("MSFT", float(bid))
        found = await collect(node, reader, 2)
    assert [(each["data"]["symbol"], each["data"]["bid"]) for each in found] == [("AAPL", 99.0), ("MSFT", 99.0)]


async def test_lost_log_lines_are_counted(node: Node, frames: type[Frames]) -> None:
    """The oldest lines are dropped, and the next one that gets through says how many."""
    async with node.ws() as connection:
        reader = frames(connection)
        await reader.snapshots()
        for number in range(600):
            node.server.log(str(number))
        first = await reader.next()
    assert (first["data"]["message"], first["data"]["dropped"]) == ("100", 100)


# --- the end of a connection ----------------------------------------------------------------------------------


async def test_a_client_that_vanishes_is_forgotten(node: Node, frames: type[Frames], eventually: Any) -> None:
    """A closed connection and a torn one leave neither mailbox nor task."""
    async with node.ws() as connection:
        await frames(connection).snapshots()
    torn = await node.ws()
    torn.transport.abort()
    await eventually(lambda: not node.server.bus._subscriptions)
    await eventually(lambda: not [task for task in asyncio.all_tasks() if "websocket of" in task.get_name()])


async def test_a_client_that_goes_during_its_backlog_is_forgotten(
    node: Node, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that does not wait for the journal leaves nothing behind, and no fault in the log."""
    node.server.status()
    gate = asyncio.Event()
    node.server.before_page = gate.wait
    raw = deaf(node)
    raw.close()
    raw = socket.create_connection(("127.0.0.1", node.port))
    raw.sendall(handshake("/ws/feed?token=secret-read&after=0"))
    await eventually(lambda: node.server.pages == 1)
    raw.close()
    await asyncio.sleep(0.02)
    gate.set()
    await eventually(lambda: not node.server.bus._subscriptions)
    assert caplog.text == ""


async def test_a_token_that_is_revoked_ends_its_stream(
    node: Node, frames: type[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection does not outlive its token for long: it is closed with 1008."""
    monkeypatch.setattr(feed, "CHECK_SECONDS", 0.02)
    async with node.ws() as connection:
        await frames(connection).snapshots()
        await asyncio.sleep(0.05)
        del node.server.tokens["secret-read"]
        async with asyncio.timeout(5):
            await connection.wait_closed()
    assert connection.close_code == 1008


async def test_a_fault_ends_one_stream_alone(
    node: Node, frames: type[Frames], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a backlog can't be read on, that client is closed with 1011, the log says why, and others go on."""
    monkeypatch.setattr(feed, "PAGE", 1)
    for _ in range(3):
        node.server.status()
    async with node.ws() as healthy:
        reader = frames(healthy)
        await reader.snapshots()

        def broken() -> None:
            if node.server.pages > 1:
                raise JournalError("the disk is gone")

        node.server.before_page = broken
        async with node.ws("?after=0") as unlucky, asyncio.timeout(5):
            await unlucky.wait_closed()
        assert unlucky.close_code == 1011
        assert "the disk is gone" in caplog.text
        node.server.status()
        assert (await reader.next())["seq"] == 4


async def test_new_clients_are_refused_while_the_server_stops(node: Node) -> None:
    """Between the closing of the streams and the end of the server a handshake is answered 503."""
    assert node.service._feed is not None
    await node.service._feed.close()
    assert (await refused(node))[0] == 503


async def test_a_message_that_is_too_large_ends_the_connection(node: Node, frames: type[Frames]) -> None:
    """Nobody can make the server keep a huge message: 1009."""
    async with node.ws() as connection:
        await frames(connection).snapshots()
        await connection.send("x" * 100_000)
        async with asyncio.timeout(5):
            await connection.wait_closed()
    assert connection.close_code == 1009

"""Commands over REST: aliases, arguments, ids, statuses and bodies of every shape."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sigma9_core.commands import BUILT_IN, Alias, Command, CommandSpec, NoArgs, Response
from sigma9_core.errors import HTTP_STATUS, CommandError, ErrorCode
from sigma9_integrations.web import bodies
from sigma9_integrations.web.actions import aliases

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node

KEYS = ["id", "command", "ok", "result", "error", "source", "ts", "duration_ms"]


async def test_a_command_is_built_from_body_path_and_header(node: Node) -> None:
    """Body and path give the arguments, Idempotency-Key the id, expires_at the expiry; numbers stay exact."""
    node.server.answers["modify_order"] = {"order_id": "o-1", "limit_price": Decimal("12.30")}
    async with node.http("secret-trade") as client:
        answer = await client.patch(
            "/api/orders/o-1",
            content=b'{"limit_price": 12.30, "quantity": 3, "expires_at": "2026-11-20T14:45:00Z", "reason": "x"}',
            headers={"Idempotency-Key": "key-1"},
        )
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == KEYS
    assert (body["id"], body["command"], body["ok"], body["source"]) == ("key-1", "modify_order", True, "api")
    assert body["result"] == {"order_id": "o-1", "limit_price": 12.3}
    (command,) = node.server.commands
    assert command.name == "modify_order"
    assert command.args == {
        "order_id": "o-1",
        "limit_price": Decimal("12.30"),
        "quantity": 3,
        "reason": "x",
    }
    assert command.id == "key-1"
    assert command.expires_at == datetime(2026, 11, 20, 14, 45, tzinfo=UTC)
    assert (command.source, command.right, command.actor) == ("api", "trade", "phone")
    assert command.received > 0


async def test_the_command_line_is_named_as_the_source(node: Node) -> None:
    """A command of `sigma9` itself says `cli`, as its audit row and its orders do; any other client says `api`."""
    async with node.http() as client:
        await client.post("/api/engine/pause", headers={"User-Agent": "sigma9-cli/0.1.0"})
        await client.post("/api/engine/pause", headers={"User-Agent": "curl/8"})
    assert [command.source for command in node.server.commands] == ["cli", "api"]


async def test_every_alias_of_the_table_is_served(node: Node) -> None:
    """Each row of the command table is reached under its path, with the path's parts as arguments."""
    values = {"order_id": "o-9", "symbol": "BRK.B", "name": "paper", "rule": "loss_limit"}
    async with node.http() as client:
        for spec in BUILT_IN.values():
            if spec.alias is None:
                continue
            node.server.commands.clear()
            answer = await client.request(spec.alias.method, spec.alias.path.format(**values))
            assert answer.status_code == 200, spec.name
            (command,) = node.server.commands
            expected = {name: value for name, value in values.items() if f"{{{name}}}" in spec.alias.path}
            assert (command.name, dict(command.args)) == (spec.name, expected)


async def test_a_symbol_may_be_everything(node: Node) -> None:
    """`*` in the path closes all that is ours, encoded or not."""
    async with node.http() as client:
        for path in ("/api/positions/*/close", "/api/positions/%2A/close"):
            await client.post(path)
    assert [dict(command.args) for command in node.server.commands] == [{"symbol": "*"}] * 2


async def test_a_kill_needs_no_body_and_goes_to_the_dispatcher(node: Node) -> None:
    """The kill switch works by its path alone, and with scope and reason."""
    async with node.http("secret-trade") as client:
        assert (await client.post("/api/kill-switch")).status_code == 200
        await client.post(
            "/api/kill-switch", json={"flatten": False, "scope": {"symbol": "AAPL"}, "reason": "news"}
        )
        reset = await client.request("DELETE", "/api/kill-switch", json={"reason": "over"})
    assert [dict(command.args) for command in node.server.commands] == [
        {},
        {"flatten": False, "scope": {"symbol": "AAPL"}, "reason": "news"},
    ]
    assert (reset.status_code, reset.json()["error"]["code"]) == (403, "forbidden")


async def test_each_error_code_has_its_status(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dispatcher refuses is answered with the status of its code, inside the response object."""
    code: ErrorCode = "invalid"

    async def refuse(command: Command) -> Response:
        error = CommandError(code, "because", {"rule": "R1"})
        return Response.failed(command, error, ts=datetime(2026, 1, 1, tzinfo=UTC), duration_ms=1.26)

    monkeypatch.setattr(node.server, "dispatch", refuse)
    async with node.http() as client:
        for code, status in HTTP_STATUS.items():
            answer = await client.post("/api/scan", headers={"Idempotency-Key": "a"})
            assert (code, answer.status_code) == (code, status)
            assert answer.json() == {
                "id": "a",
                "command": "scan",
                "ok": False,
                "result": None,
                "error": {"code": code, "message": "because", "details": {"rule": "R1"}},
                "source": "api",
                "ts": "2026-01-01T00:00:00.000000Z",
                "duration_ms": 1.3,
            }


MALFORMED: tuple[tuple[str, bytes, dict[str, str], tuple[int, str]], ...] = (
    ("/api/engine/start", b"PRESS", {}, (400, "invalid")),
    ("/api/engine/start", b"{", {}, (400, "invalid")),
    ("/api/engine/start", b"\xff\xfe", {}, (400, "invalid")),
    ("/api/engine/start", b"a=1&b=2", {}, (400, "invalid")),
    ("/api/engine/start", b"[]", {}, (422, "invalid")),
    ("/api/engine/start", b'"start"', {}, (422, "invalid")),
    ("/api/engine/start", b"null", {}, (422, "invalid")),
    ("/api/engine/start", b'{"reason": "a", "reason": "b"}', {}, (422, "invalid")),
    ("/api/engine/start", b'{"id": 5}', {}, (422, "invalid")),
    ("/api/engine/start", b'{"expires_at": "soon"}', {}, (422, "invalid")),
    ("/api/engine/start", b"[" * 60_000, {}, (422, "invalid")),
    ("/api/engine/start", b"x" * 65_537, {}, (413, "invalid")),
    ("/api/engine/start", b"{}", {"Idempotency-Key": "x" * 65}, (422, "invalid")),
    ("/api/engine/start", b"{}", {"Idempotency-Key": ""}, (422, "invalid")),
    ("/api/engine/start", b'{"id": "a"}', {"Idempotency-Key": "b"}, (422, "invalid")),
    ("/api/positions/AAPL/close", b'{"symbol": "MSFT"}', {}, (422, "invalid")),
    ("/api/positions/A%00/close", b"", {}, (422, "invalid")),
    ("/api/commands/nope", b"", {}, (404, "unknown_command")),
    ("/api/commands/strat", b"", {}, (404, "unknown_command")),
)


async def test_a_malformed_command_is_refused_and_not_dispatched(node: Node) -> None:
    """What is malformed gets the response object with an error, and nothing happens."""
    async with node.http() as client:
        for path, content, headers, refusal in MALFORMED:
            answer = await client.post(path, content=content, headers=headers)
            case = (path, content[:40], headers)
            assert (case, answer.status_code, answer.json()["error"]["code"]) == (case, *refusal)
            assert list(answer.json()) == KEYS
    assert node.server.commands == []


async def test_a_refusal_names_the_id_and_the_sender(node: Node) -> None:
    """What never reaches the dispatcher is answered with the id of its header, and as what it came."""
    async with node.http() as client, node.http("wrong") as stranger:
        for who, headers, status, told in (
            (client, {"Idempotency-Key": "a"}, 400, ("a", "api")),
            (client, {"Idempotency-Key": "b", "User-Agent": "sigma9-cli/1"}, 400, ("b", "cli")),
            (client, {"Idempotency-Key": "x" * 65}, 400, (None, "api")),
            (stranger, {"Idempotency-Key": "c"}, 401, ("c", "api")),
        ):
            answer = await who.post("/api/orders", content=b"{", headers=headers)
            assert (answer.status_code, (answer.json()["id"], answer.json()["source"])) == (status, told)


async def test_a_body_may_repeat_what_path_and_header_say(node: Node) -> None:
    """The same value twice is no contradiction."""
    async with node.http() as client:
        answer = await client.post(
            "/api/positions/AAPL/close", json={"symbol": "AAPL", "id": "a"}, headers={"Idempotency-Key": "a"}
        )
    assert answer.status_code == 200
    assert (node.server.commands[0].id, dict(node.server.commands[0].args)) == ("a", {"symbol": "AAPL"})


async def test_a_large_body_without_a_length_is_cut_off(node: Node) -> None:
    """A chunked body is counted while it arrives."""

    async def chunks() -> Any:
        for _ in range(80):
            yield b" " * 1024

    async with node.http() as client:
        answer = await client.post("/api/engine/start", content=chunks())
        assert answer.status_code == 413
        assert (await client.post("/api/engine/start")).status_code == 200


async def test_a_body_that_does_not_arrive_is_not_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that announces a body and never sends it is answered 408."""
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(
        b"POST /api/engine/start HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret-admin\r\n"
        b"Content-Length: 10\r\n\r\n{"
    )
    async with asyncio.timeout(5):
        assert b" 408 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert node.server.commands == []


async def test_a_client_that_goes_while_it_sends_does_no_harm(
    node: Node, caplog: pytest.LogCaptureFixture, eventually: Any
) -> None:
    """A connection that breaks inside the body is no command, and no fault in the log."""
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(
        b"POST /api/kill-switch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret-admin\r\n"
        b'Content-Length: 100\r\n\r\n{"reason"'
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with node.http() as client:
        await client.get("/healthz")
    assert node.server.commands == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_dispatcher_that_breaks_is_answered(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even a fault in the dispatcher gives a response object, and its cause goes to the log alone."""

    async def broken(command: Command) -> Response:
        raise RuntimeError("cause")

    monkeypatch.setattr(node.server, "dispatch", broken)
    async with node.http() as client:
        answer = await client.post("/api/scan")
    assert (answer.status_code, answer.json()["command"]) == (500, "scan")
    assert "cause" not in answer.text
    assert "cause" in caplog.text


async def test_commands_are_listed_with_their_arguments(node: Node) -> None:
    """`GET /api/commands` names every command with right, alias and the JSON Schema of its arguments."""
    async with node.http("secret-read") as client:
        rows = (await client.get("/api/commands")).json()["commands"]
    assert [row["name"] for row in rows] == list(BUILT_IN)
    by_name = {row["name"]: row for row in rows}
    order = by_name["place_order"]
    assert (order["right"], order["needs_id"]) == ("trade", True)
    assert order["alias"] == {"method": "POST", "path": "/api/orders"}
    assert order["args"]["required"] == ["symbol", "side", "quantity"]
    assert order["args"]["properties"]["quantity"] == {"exclusiveMinimum": 0.0, "type": "number"}
    assert "$defs" in order["args"]
    assert by_name["events"]["alias"] is None


class PluginArgs(NoArgs):
    """Arguments of a plugin's command."""

    symbol: str


def spec(name: str, alias: Alias | None) -> CommandSpec:
    return CommandSpec(name, PluginArgs, "trade", "A plugin's.", alias)


async def test_commands_of_plugins_are_served_like_the_built_in_ones(serve: Any, monkeypatch: Any) -> None:
    """A command that a plugin adds has its alias, its name below /api/commands, and its place in the documents."""
    from sigma9_core.testing import fakes

    mine = spec("sweep", Alias("POST", "/api/sweep/{symbol}"))
    monkeypatch.setattr(fakes, "BUILT_IN", {**BUILT_IN, "sweep": mine})
    async with serve() as node, node.http() as client:
        assert (await client.post("/api/sweep/AAPL")).json()["command"] == "sweep"
        assert (await client.post("/api/commands/sweep", json={"symbol": "MSFT"})).status_code == 200
        assert [dict(c.args) for c in node.server.commands] == [{"symbol": "AAPL"}, {"symbol": "MSFT"}]
        document = (await client.get("/openapi.json")).json()
        assert document["paths"]["/api/sweep/{symbol}"]["post"]["operationId"] == "sweep"


def test_an_alias_that_is_taken_or_no_path_of_ours_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """The first command keeps a path; the other one is told in the log and stays reachable by its name."""
    specs = {
        each.name: each
        for each in (
            BUILT_IN["start"],
            spec("thief", Alias("POST", "/api/engine/start")),
            spec("outside", Alias("POST", "/healthz")),
            spec("odd", Alias("POST", "/api/a b")),
            spec("shadow", Alias("POST", "/api/commands/{name}")),
            replace(BUILT_IN["events"], name="quiet"),
        )
    }
    assert aliases(specs, set()) == {("/api/engine/start", "POST"): "start"}
    for name in ("thief", "outside", "odd", "shadow"):
        assert name in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
KNOWN = st.sampled_from(["id", "reason", "symbol", "expires_at", "order_id", "scope", "settings", "quantity"])
BODIES = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(KNOWN | st.text(max_size=5), JSON, max_size=6).map(lambda value: json.dumps(value).encode()),
    st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
PATHS = st.sampled_from(
    ["/api/engine/stop", "/api/orders", "/api/kill-switch", "/api/positions/AAPL/close", "/api/commands/risk_set"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.tuples(PATHS, BODIES, st.none() | st.text("ab \x7fé~", max_size=70)), min_size=1, max_size=4)
)
def test_any_body_is_answered_with_a_response_object(data: list[tuple[str, bytes, str | None]]) -> None:
    """Whatever bytes come, the answer is a response object with a status of the table, never a fault."""
    asyncio.run(fuzz(data))


async def fuzz(data: list[tuple[str, bytes, str | None]]) -> None:
    from starlette.types import ASGIApp

    from sigma9_core.config import Settings
    from sigma9_core.testing.fakes import FakeServer
    from sigma9_integrations.web.app import build_app
    from sigma9_integrations.web.listener import Address

    server = FakeServer(Settings())
    app: ASGIApp = build_app(server, Address([], "127.0.0.1", 8000, "http://127.0.0.1:8000", True))[0]
    transport = httpx.ASGITransport(app)
    headers = {"Authorization": "Bearer secret-admin"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
        for path, body, key in data:
            more: dict[bytes, bytes]
            more = {} if key is None else {b"Idempotency-Key": key.encode("utf-8")}
            answer = await client.post(path, content=body, headers=more)
            assert answer.status_code in (200, 400, 422), answer.text
            found = answer.json()
            assert list(found) == KEYS
            assert found["ok"] is (answer.status_code == 200)
            assert found["ok"] or found["error"]["code"] == "invalid"

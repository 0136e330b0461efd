"""Tokens, rights, Host headers, origins and headers of security, on every path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sigma9_core.commands import BUILT_IN, allows
from sigma9_integrations.web.pages import FILES
from sigma9_integrations.web.reads import READS

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node, Serve

OPEN = ("/healthz", "/readyz", *FILES)
GUARDED = (
    *(read.path.replace("{order_id}", "o-1") for read in READS),
    "/api/commands",
    "/openapi.json",
    "/asyncapi.json",
    "/metrics",
)


async def test_open_paths_need_no_token_and_all_others_do(node: Node) -> None:
    """Only health, readiness, the pages and their files answer without a token; even a missing path wants one."""
    async with node.http(None) as client:
        for path in OPEN:
            assert (await client.get(path)).status_code in (200, 503), path
        for path in (*GUARDED, "/api/nothing", "/nothing"):
            refused = await client.get(path)
            assert refused.status_code == 401, path
            assert refused.json()["error"]["code"] == "unauthorized"
            assert refused.headers["www-authenticate"].startswith("Bearer")


WRONG = (None, "", "Bearer", "Bearer wrong", "Basic c2VjcmV0LWFkbWlu", "secret-admin", f"Bearer {'x' * 5000}")


async def test_a_wrong_token_is_refused(node: Node) -> None:
    """A token that is missing, of another scheme, unknown or far too long is answered 401."""
    async with node.http(None) as client:
        for header in WRONG:
            headers = {} if header is None else {"Authorization": header}
            read = await client.get("/api/schedule", headers=headers)
            assert (header, read.status_code) == (header, 401)
            refused = await client.post("/api/engine/start", headers=headers)
            assert refused.status_code == 401
            assert refused.json()["command"] == "start"
            assert refused.json()["ok"] is False
            assert refused.json()["error"]["code"] == "unauthorized"
    assert node.server.commands == []


async def test_a_refusal_looks_up_exactly_one_token(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing, a malformed and a wrong token cost the same single look-up as a valid one."""
    asked: list[str] = []
    right_of = node.server.right_of

    def counting(token: str) -> Any:
        asked.append(token)
        return right_of(token)

    monkeypatch.setattr(node.server, "right_of", counting)
    async with node.http(None) as client:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secret-read"}):
            await client.get("/api/schedule", headers=header)
    assert asked == ["", "wrong", "secret-read"]


async def test_the_scheme_of_the_header_may_be_in_any_case(node: Node) -> None:
    """`bearer` is as good as `Bearer`."""
    async with node.http(None) as client:
        assert (
            await client.get("/api/schedule", headers={"Authorization": "bearer secret-read"})
        ).status_code == 200


async def test_a_token_in_the_query_is_not_taken_by_rest(node: Node) -> None:
    """`?token=` is for WebSocket handshakes alone: addresses end up in histories and logs."""
    async with node.http(None) as client:
        assert (await client.get("/api/schedule?token=secret-admin")).status_code == 401


@pytest.mark.parametrize("token", ["secret-read", "secret-trade", "secret-admin"])
async def test_each_command_needs_its_right(node: Node, token: str) -> None:
    """Every alias and every name is carried out with enough right, and answered 403 `forbidden` with less."""
    name, have = node.server.tokens[token]
    async with node.http(token) as client:
        for spec in BUILT_IN.values():
            places = [("POST", f"/api/commands/{spec.name}")]
            if spec.alias is not None:
                path = spec.alias.path.format(order_id="o-1", symbol="AAPL", name="x", rule="r")
                places.append((spec.alias.method, path))
            for method, path in places:
                node.server.commands.clear()
                response = await client.request(method, path)
                body = response.json()
                if allows(have, spec.right):
                    assert response.status_code == 200, path
                    assert [(c.name, c.right, c.actor, c.source) for c in node.server.commands] == [
                        (spec.name, have, name, "api")
                    ]
                else:
                    assert response.status_code == 403, path
                    assert body["error"]["code"] == "forbidden"
                    assert node.server.commands == []
                assert body["command"] == spec.name


async def test_every_token_may_read(node: Node) -> None:
    """The lowest right reads everything that REST gives."""
    node.server.board.set("status", {"engine": "running"})
    async with node.http("secret-read") as client:
        for path in GUARDED:
            assert (await client.get(path)).status_code not in (401, 403), path


HOSTS = (
    ("localhost:8000", 200),
    ("LOCALHOST", 200),
    ("localhost.", 200),
    ("127.0.0.1", 200),
    ("[::1]:8000", 200),
    ("dash.example.com", 200),
    ("evil.example.com", 403),
    ("evil.example.com:8000", 403),
    ("127.0.0.1.evil.example.com", 403),
    ("localhost@evil.example.com", 403),
    ("[::2]", 403),
    ("", 403),
)


async def test_a_loopback_server_answers_only_to_its_own_names(serve: Serve) -> None:
    """A page that rebinds its own name to 127.0.0.1 gets nothing, the pages included; a named proxy does."""
    async with serve(allowed_origins=["https://dash.example.com"]) as node, node.http() as client:
        for host, status in HOSTS:
            for path in ("/", "/healthz", "/api/schedule"):
                answer = await client.get(path, headers={"Host": host})
                assert (host, path, answer.status_code) == (host, path, status)


async def test_browsers_of_allowed_origins_may_read_answers(serve: Serve) -> None:
    """CORS is granted to `allowed_origins` alone; the request before the request needs no token."""
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with serve(allowed_origins=["https://Dash.example.com:443/"]) as node, node.http() as client:
        origin = {"Origin": "https://dash.example.com"}
        granted = await client.options("/api/engine/start", headers={**origin, **preflight, "Authorization": ""})
        assert granted.status_code == 200
        assert granted.headers["access-control-allow-origin"] == "https://dash.example.com"
        read = await client.get("/api/schedule", headers=origin)
        assert read.headers["access-control-allow-origin"] == "https://dash.example.com"
        refused = await client.get("/api/schedule", headers={**origin, "Authorization": "x"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://dash.example.com"
        foreign = {"Origin": "https://evil.example.com"}
        assert (await client.options("/api/engine/start", headers={**foreign, **preflight})).status_code == 400
        assert "access-control-allow-origin" not in (await client.get("/api/schedule", headers=foreign)).headers


async def test_without_allowed_origins_no_browser_elsewhere_is_let_in(node: Node) -> None:
    """By default no answer carries a CORS header."""
    async with node.http() as client:
        answer = await client.get("/api/schedule", headers={"Origin": "https://dash.example.com"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await client.options("/api/engine/start")).status_code == 405


async def test_every_answer_carries_the_headers_of_security(node: Node) -> None:
    """No sniffing, no framing, no referrer; data is never stored, and pages run only our own scripts."""
    async with node.http() as client:
        answers = [await client.get(path) for path in ("/", "/docs", "/api/schedule", "/api/nothing")]
        answers += [await client.get("/", headers={"Host": "evil"}), await client.post("/api/engine/start")]
    for answer in answers[:4] + answers[5:]:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
    for page in answers[:2]:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
    assert answers[2].headers["cache-control"] == "no-store"


async def test_old_clients_without_a_host_header_are_served(node: Node) -> None:
    """HTTP/1.0 without a Host header is no browser, and is answered."""
    import asyncio

    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert b" 200 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


def test_the_identity_hides_its_token() -> None:
    """A token does not get into a traceback or a log line by way of a repr."""
    from sigma9_integrations.web.access import Identity

    assert "secret" not in repr(Identity("owner", "admin", "secret-admin"))


async def test_errors_of_the_protocol_are_json_too(node: Node) -> None:
    """A missing path is 404, a wrong method 405 with what is allowed, both as JSON."""
    async with node.http() as client:
        missing = await client.get("/api/nothing")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        for path, allowed in (
            ("/api/status", "GET, HEAD"),
            ("/api/engine/start", "POST"),
            ("/api/orders", "DELETE, GET, HEAD, POST"),
            ("/api/orders/o-1", "DELETE, GET, HEAD, PATCH"),
            ("/", "GET, HEAD"),
            ("/healthz", "GET, HEAD"),
        ):
            refused = await client.put(path)
            assert refused.status_code == 405, path
            assert refused.headers["allow"] == allowed
            assert set(refused.json()["error"]) == {"code", "message", "details"}
        head: httpx.Response = await client.head("/api/schedule")
        assert head.status_code == 200
        assert head.content == b""

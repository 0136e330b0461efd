"""The service: starting, stopping, and what it says when it can't start."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sigma9_core.config import Settings
from sigma9_core.contracts import NoConfig
from sigma9_core.errors import Sigma9Error
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations import web
from sigma9_integrations.web.service import WebService

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node, Serve


EVERYWHERE = "0.0.0.0"  # noqa: S104 - what the tests are about


def settings(**server: Any) -> Settings:
    return Settings.model_validate({"server": {"port": 0, **server}})


async def failure(**server: Any) -> str:
    """Give the sentence with which a start is refused."""
    async with FakeServer(settings(**server)) as fake:
        service = WebService()
        with pytest.raises(Sigma9Error) as caught:
            await service.start(fake)
        await service.stop()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_plugin_offers_the_service_web() -> None:
    """The plugin registers one service of the name web, whose factory builds it."""
    offered: dict[str, Any] = {}

    def register(name: str, factory: Any, config: Any = NoConfig) -> None:
        offered[name] = factory

    web.register_services(register)
    assert list(offered) == ["web"]
    assert isinstance(offered["web"](NoConfig(), None), WebService)


def test_importing_the_plugin_imports_no_web_framework() -> None:
    """The plugin module is imported at every start, so it leaves uvicorn, starlette and websockets alone."""
    script = (
        "import sys, sigma9_integrations.web\n"
        "assert not {'uvicorn', 'starlette', 'websockets', 'polars'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


async def test_a_start_announces_where_it_serves(node: Node) -> None:
    """The banner names the address of REST and WebSocket, and the dashboard's; the command line learns it too."""
    assert node.server.url == node.url
    assert node.server.banner == [f"REST and WebSocket  {node.url}", f"Dashboard           {node.url}/"]
    async with node.http(None) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_a_second_start_is_refused(node: Node) -> None:
    """A service that runs is not started again."""
    with pytest.raises(Sigma9Error, match="running already"):
        await node.service.start(node.server)


async def test_a_service_starts_again_after_a_stop() -> None:
    """Start and stop can follow each other, and a stop without a start does nothing."""
    async with FakeServer(settings()) as fake:
        service = WebService()
        await service.stop()
        for _ in range(2):
            await service.start(fake)
            assert service.address is not None
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(f"{service.address.url}/healthz")).status_code == 200
            await service.stop()
            await service.stop()


async def test_a_taken_port_is_named() -> None:
    """A start on a port that another program has says so, with host and port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = await failure(port=port)
    assert f"127.0.0.1:{port} is in use" in message
    assert "server.port" in message


@pytest.mark.parametrize(
    ("server", "parts"),
    [
        ({"host": EVERYWHERE}, ("server.host", "server.tls.cert", "server.insecure")),
        ({"host": "::"}, ("server.host", "server.tls.cert")),
        ({"host": ""}, ("every interface", "server.tls.cert")),
        ({"host": "192.0.2.1", "insecure": True}, ("192.0.2.1", "no interface")),
        ({"host": "no-such-host.invalid"}, ("server.host", "no-such-host.invalid", "resolved")),
        ({"allowed_origins": ["*"]}, ("server.allowed_origins", "'*'")),
        ({"allowed_origins": ["example.com"]}, ("server.allowed_origins", "'example.com'")),
        ({"tls": {"key": "key.pem"}}, ("server.tls.cert",)),
        ({"tls": {"cert": "no-such-file.pem"}}, ("server.tls.cert", "no-such-file.pem")),
        ({"tls": {"cert": __file__}}, ("server.tls", "PEM")),
    ],
)
async def test_a_start_that_can_not_be_is_refused_with_the_setting(
    server: dict[str, Any], parts: tuple[str, ...]
) -> None:
    """What is wrong is one sentence that names the setting, and nothing keeps running."""
    message = await failure(**server)
    for part in parts:
        assert part in message


async def test_every_interface_is_served_where_the_owner_insists(serve: Serve) -> None:
    """`insecure: true` serves 0.0.0.0 without TLS; the banner shows an address that can be opened here."""
    async with serve(host=EVERYWHERE, insecure=True) as node, node.http() as client:
        assert node.url == f"http://127.0.0.1:{node.port}"
        assert (await client.get("/healthz", headers={"Host": "my-nas.local:8000"})).status_code == 200


async def test_localhost_serves_both_families(serve: Serve) -> None:
    """A host name with several addresses is served on all of them, on one port."""
    async with serve(host="localhost") as node, node.http() as client:
        assert node.url.startswith("http://localhost:")
        assert (await client.get("/healthz")).status_code == 200
        assert node.service.address is not None
        assert len({listening.getsockname()[1] for listening in node.service.address.sockets}) == 1


async def test_answers_do_not_wait_for_a_delayed_acknowledgement(node: Node) -> None:
    """Small answers leave at once (TCP_NODELAY): without it each one takes 40 ms."""
    async with node.http() as client:
        await client.post("/api/heartbeat")
        began = time.perf_counter()
        for _ in range(10):
            await client.post("/api/heartbeat", json={"reason": "x"})
        assert time.perf_counter() - began < 0.3


async def test_signals_stay_with_the_process(node: Node) -> None:
    """The HTTP server installs no signal handlers of its own."""
    for number in (signal.SIGTERM, signal.SIGINT):
        assert "uvicorn" not in repr(signal.getsignal(number))
        assert "HttpServer" not in repr(signal.getsignal(number))


async def test_a_stop_closes_everything_in_time() -> None:
    """A stop with connected clients closes WebSockets with 1001, frees the port, and leaks nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with FakeServer(settings()) as fake:
            service = WebService()
            await service.start(fake)
            assert service.address is not None
            port = service.address.port
            async with (
                httpx.AsyncClient(trust_env=False) as client,
                connect(f"ws://127.0.0.1:{port}/ws/feed?token=secret-admin", proxy=None) as reading,
            ):
                await client.get(f"http://127.0.0.1:{port}/healthz")
                await reading.recv()
                silent = socket.create_connection(("127.0.0.1", port))
                began = time.perf_counter()
                await service.stop()
                assert time.perf_counter() - began < 1.5
                await reading.wait_closed()
                assert reading.close_code == 1001
                silent.close()
            with socket.create_server(("127.0.0.1", port)):
                pass
            assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()
    assert [str(each.message) for each in caught] == []


async def test_a_request_that_outlives_the_stop_is_answered(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A command that does not end is answered that its outcome is not known, instead of a torn connection."""
    async with serve() as node:
        started = asyncio.Event()

        async def never(command: object) -> object:
            started.set()
            return await asyncio.Event().wait()

        monkeypatch.setattr(node.server, "dispatch", never)
        async with node.http() as client:
            request = asyncio.create_task(client.post("/api/scan", timeout=10))
            await started.wait()
            began = time.perf_counter()
            await node.service.stop()
            assert time.perf_counter() - began < 2.5
            answer = await request
    assert answer.status_code == 503
    assert "not known" in answer.json()["error"]["message"]
    assert "Traceback" not in caplog.text


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost with the openssl program."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    try:
        subprocess.run(
            [*made, *subject, "-days", "2", "-keyout", str(key), "-out", str(cert)],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("the openssl program is not installed")
    return cert, key


async def test_tls_serves_rest_and_websocket(serve: Serve, tmp_path: Path) -> None:
    """With a certificate the same paths are served as https and wss."""
    cert, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(cert))
    async with serve(tls={"cert": str(cert), "key": str(key)}) as node:
        assert node.url.startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(verify=trust, trust_env=False) as client:
            assert (await client.get(f"{node.url}/healthz")).status_code == 200
        url = f"wss://127.0.0.1:{node.port}/ws/feed?token=secret-read"
        async with connect(url, ssl=trust, proxy=None) as feed:
            assert "snapshot" in str(await feed.recv())


def test_an_encrypted_key_is_an_error_and_no_question(tmp_path: Path) -> None:
    """A key with a password is refused, instead of asking on the terminal."""
    cert, key = make_certificate(tmp_path)
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:x", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    message = asyncio.run(failure(tls={"cert": str(cert), "key": str(locked)}))
    assert "server.tls" in message
    assert "unencrypted" in message


async def test_no_token_ever_stands_in_the_log(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Tokens in headers, queries and sub-protocols, valid or not, are never logged, whatever the level is."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "websockets.client"):
        logging.getLogger(name).setLevel(logging.WARNING)
    async with node.http("wrong-secret") as client:
        await client.get("/api/status")
        await client.get("/api/status?token=secret-admin")
    async with node.http("secret-admin") as client:
        await client.post("/api/commands/nope", content=b"\xff")
    carriers: tuple[dict[str, Any], ...] = (
        {"query": "?token=secret-admin"},
        {"query": "?%74oken=secret-admin"},
        {"subprotocols": ["sigma9.token.secret-admin"]},
    )
    for carrier in carriers:
        async with node.ws(token=None, **carrier) as feed:
            await feed.recv()
    with pytest.raises(InvalidStatus):
        await node.ws("?token=wrong-secret", token=None)
    # Where somebody turns uvicorn's log on, it shows addresses: tokens are no longer in them.
    caplog.set_level(logging.INFO, logger="uvicorn.error")
    async with node.ws("?after=0&%74oken=secret-admin&types=log", token=None) as feed:
        await feed.recv()
    assert "/ws/feed?after=0&types=log" in caplog.text
    assert "secret" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

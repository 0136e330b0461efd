"""Finding the server, and asking it."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.cli.client import Client, Refused, Target, Unreachable, WrongUsage, find_target
from sigma9_core.cli.options import add_server_address
from sigma9_core.datadir import DataDir
from sigma9_core.errors import ConfigError
from sigma9_core.tokens import TokenBook

TOKEN = "the-right-token"


def find(*arguments: str, **environ: str) -> Target:
    return find_target(parsed(*arguments), environ)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_server_address(parser)
    return parser.parse_args(arguments)


@pytest.fixture(name="local")
def _local(alone: Path) -> Iterator[DataDir]:
    data = DataDir(alone / "data")
    with data:
        data.lock("main")
        data.announce("http://127.0.0.1:8123", "main")
        TokenBook(data).start()
        yield data


# --- finding --------------------------------------------------------------------------------------------------


def test_nothing_known() -> None:
    """Without anything it is the usual address, without a token."""
    target = find()
    assert (target.url, target.token, target.local) == ("http://localhost:8000", None, None)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://trader:9000", "http://trader:9000"),
        ("https://trader/sigma9/", "https://trader/sigma9"),
        ("trader:9000", "http://trader:9000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_given_url(given: str, url: str) -> None:
    """--url and SIGMA9_URL name the server; --url wins."""
    assert find("--url", given).url == url
    assert find(SIGMA9_URL=given).url == url
    assert find("--url", given, SIGMA9_URL="http://other").url == url


@pytest.mark.parametrize("given", ["ftp://x", "http://", "http://a b", "http://x:99999", "http://x:y", "\n"])
def test_no_url(given: str) -> None:
    """What is no URL is wrong usage."""
    with pytest.raises(WrongUsage, match="is no URL of a server"):
        find("--url", given)


def test_client_config(alone: Path) -> None:
    """client_config.yaml names server, token, paths and times; options and variables beat it."""
    text = (
        "server: {host: trader, port: 9000, tls: true, token: t1, api_path: /x/api/, ws_path: /x/feed}\n"
        "connection: {timeout: 3, reconnect_interval: 2}\n"
    )
    (alone / "client_config.yaml").write_text(text, encoding="utf-8")
    target = find()
    assert target == Target("https://trader:9000", "t1", "/x/api", "/x/feed", 3.0, 2.0)
    assert find(SIGMA9_TOKEN="t2").token == "t2"
    assert find("--token", "t3", SIGMA9_TOKEN="t2").token == "t3"
    (alone / "other.yaml").write_text("server: {host: elsewhere}", encoding="utf-8")
    assert find("--client-config", "other.yaml").url == "http://elsewhere:8000"
    (alone / "client_config.yaml").write_text("auth: {token: x}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"belongs in server_config\.yaml"):
        find()


def test_the_server_of_this_machine(local: DataDir, alone: Path) -> None:
    """On the server's own machine address and token are found in the data folder."""
    admin = TokenBook(local).admin()
    target = find()
    assert (target.url, target.token) == ("http://127.0.0.1:8123", admin)
    assert target.local is not None
    (alone / "client_config.yaml").write_text("server: {host: localhost, port: 8000}", encoding="utf-8")
    assert find().url == "http://127.0.0.1:8123"
    (alone / "client_config.yaml").write_text("server: {token: mine}", encoding="utf-8")
    assert (find().url, find().token) == ("http://127.0.0.1:8123", "mine")


def test_the_data_folder_is_found(alone: Path) -> None:
    """The data folder is the one of --data-dir, SIGMA9_DATA_DIR or the server's configuration."""
    data = DataDir(alone / "far" / "away")
    with data:
        data.lock("main")
        data.announce("http://127.0.0.1:8124", "main")
        assert find().local is None
        assert find("--data-dir", "far/away").url == "http://127.0.0.1:8124"
        assert find(SIGMA9_DATA_DIR=str(data.path)).url == "http://127.0.0.1:8124"
        (alone / "server_config.yaml").write_text("data_dir: far/away\nbroken: x", encoding="utf-8")
        assert find().url == "http://127.0.0.1:8124"


@pytest.mark.parametrize("how", ["option", "environment"])
@pytest.mark.parametrize("folder", ["dead", "missing"])
def test_a_named_data_folder_is_meant(local: DataDir, alone: Path, how: str, folder: str) -> None:
    """Where no server runs on the data folder that is named, no other server is given: not the configured one, not
    the one of this folder, not the usual address."""
    assert local.server() is not None
    (alone / "dead").mkdir()
    (alone / "dead" / "server.json").write_text('{"url": "http://127.0.0.1:8123", "pid": 1, "node": "main"}')
    (alone / "client_config.yaml").write_text("server: {host: trader, token: mine}", encoding="utf-8")
    path = str(alone / folder)
    arguments: tuple[str, ...] = ()
    environ = {"SIGMA9_DATA_DIR": path}
    if how == "option":
        arguments, environ = (("--data-dir", path), {"SIGMA9_URL": "http://other:9000"})
    with pytest.raises(Unreachable) as caught:
        find(*arguments, **environ)
    assert path in str(caught.value)
    assert ("--data-dir" if how == "option" else "SIGMA9_DATA_DIR") in str(caught.value)
    assert "no other server is asked" in str(caught.value)
    assert find("--data-dir", path, "--url", "trader").url == "http://trader"


def test_the_order_of_what_names_a_server(local: DataDir, alone: Path) -> None:
    """--url beats --data-dir, which beats SIGMA9_URL and client_config.yaml with their tokens and paths."""
    admin = TokenBook(local).admin()
    text = "server: {host: trader, token: mine, api_path: /x/api}\nconnection: {timeout: 3}"
    (alone / "client_config.yaml").write_text(text, encoding="utf-8")
    target = find("--data-dir", "data", SIGMA9_URL="http://other:9000", SIGMA9_TOKEN="of the other")
    assert (target.url, target.token, target.api_path) == ("http://127.0.0.1:8123", admin, "/api")
    assert target.timeout == 3
    assert find("--data-dir", "data", SIGMA9_TOKEN="t").token == "t"
    assert find("--data-dir", "data", "--token", "t").token == "t"
    (alone / "client_config.yaml").write_text("server: {token: mine}", encoding="utf-8")
    assert find("--data-dir", "data").token == "mine"
    assert find("--data-dir", "data", "--url", "http://other").token == "mine"


def test_two_variables_that_do_not_agree(local: DataDir, alone: Path) -> None:
    """Where SIGMA9_URL and SIGMA9_DATA_DIR name different servers, a command guesses none of them."""
    both = {"SIGMA9_DATA_DIR": str(local.path), "SIGMA9_URL": "http://localhost:8123"}
    assert find(**both).url == "http://127.0.0.1:8123"
    for other in ({"SIGMA9_URL": "http://trader:8123"}, {"SIGMA9_DATA_DIR": str(alone / "dead")}):
        with pytest.raises(WrongUsage, match="do not name the same running server: say with --url or --data-dir"):
            find(**{**both, **other})


def test_the_admin_token_stays_at_home(local: DataDir, alone: Path) -> None:
    """The admin token of the data folder goes to the server of that folder and to no other one."""
    admin = TokenBook(local).admin()
    assert find("--url", "http://localhost:8123").token == admin
    for other in (
        "http://trader:8123",
        "http://127.0.0.1:8000",
        "https://127.0.0.1:8123",
        "http://127.0.0.1:8123/x",
    ):
        assert find("--url", other).token is None
        assert find("--url", other).local is None
    (alone / "client_config.yaml").write_text("server: {host: trader}", encoding="utf-8")
    assert find().token is None
    (alone / "client_config.yaml").write_text("server: {port: 9999}", encoding="utf-8")
    assert (find().url, find().token) == ("http://localhost:9999", None)


def test_a_server_that_says_no_address(alone: Path) -> None:
    """A running server without a note is told so, and no address is guessed for it; its own door is enough."""
    data = DataDir(alone / "data")
    with data:
        data.lock("main")
        TokenBook(data).start()
        for arguments in ((), ("--data-dir", "data")):
            with pytest.raises(Unreachable, match=rf"the server on the data folder {data.path} .*told no address"):
                find(*arguments)
            args = parsed(*arguments)
            target = find_target(args, {}, door=True)
            assert (target.url, target.local is not None) == ("", True)
        assert find("--url", "http://localhost:8000").local is None
        (alone / "client_config.yaml").write_text("server: {host: trader}", encoding="utf-8")
        assert find().local is None


# --- asking ---------------------------------------------------------------------------------------------------


def ask(web: Any, timeout: float = 5, token: str | None = TOKEN, path: str = "") -> Client:
    return Client(Target(web.url + path, token, timeout=timeout))


def test_get(web: Any) -> None:
    """A read has its query, the token and our name, and gives the body."""
    web.says("/api/events?after=5&limit=10", {"events": []})
    assert ask(web).get("events", after=5, limit=10, type=None) == {"events": []}
    asked = web.asked[0]
    assert asked.method == "GET"
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["user-agent"].startswith("sigma9-cli/")


def test_command(web: Any) -> None:
    """A command is posted with its arguments, those that are None left out; a refusal is an answer too."""
    web.does("pause", {"engine": "paused"})
    answer = ask(web).command("pause", {"reason": "lunch", "scope": None})
    assert answer["result"] == {"engine": "paused"}
    assert (web.asked[0].method, web.asked[0].path) == ("POST", "/api/commands/pause")
    assert web.asked[0].body == {"reason": "lunch"}
    web.refuses("start", "killed", "the kill switch is on")
    assert ask(web).command("start", {})["error"]["code"] == "killed"


def test_a_path_before_the_api(web: Any) -> None:
    """A server behind a path of a proxy is reached there."""
    web.says("/sigma9/api/status", {"engine": "running"})
    assert ask(web, path="/sigma9").get("status") == {"engine": "running"}


def test_wrong_token(web: Any) -> None:
    """A token that is not valid is one sentence that says where there is one."""
    for token in ("wrong", None):
        with pytest.raises(Refused, match="wants a valid token: set SIGMA9_TOKEN"):
            ask(web, token=token).get("status")
    web.refuses("start", "forbidden", "start needs the right trade", status=403)
    with pytest.raises(Refused, match="needs the right trade"):
        ask(web).command("start", {})


def test_refusals(web: Any) -> None:
    """An error body is raised with its sentence, code and details."""
    web.says("/api/events", {"error": {"code": "conflict", "message": "too old", "details": {"first": 3}}}, 409)
    with pytest.raises(Refused, match="too old") as caught:
        ask(web).get("events", after=1)
    assert (caught.value.code, caught.value.details) == ("conflict", {"first": 3})


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (404, b"nothing"), (500, [1]), (502, {"detail": "x"}), (200, b"\xff")]
)
def test_another_program(web: Any, status: int, body: Any) -> None:
    """Something else that answers at the address is no server of ours."""
    web.says("/api/status", body, status)
    with pytest.raises(Unreachable, match="not as a Sigma9 server"):
        ask(web).get("status")
    web.says("/api/commands/start", [1])
    with pytest.raises(Unreachable, match="not as a Sigma9 server"):
        ask(web).command("start", {})


def test_nobody_listens() -> None:
    """A closed port, a name that does not exist and a wrong port are one sentence."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(Unreachable, match=rf"no server at http://127\.0\.0\.1:{port} \(Connection refused\)"):
            Client(Target(f"http://127.0.0.1:{port}", None)).get("status")
    with pytest.raises(Unreachable, match=r"no server at http://nowhere\.invalid"):
        Client(Target("http://nowhere.invalid", None, timeout=5)).get("status")


def test_no_answer() -> None:
    """A server that takes the request and stays silent, or hangs up, is told apart from one that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            Unreachable, match=r"did not answer within 0\.2 s; whether it was carried out is not known"
        ):
            Client(Target(url, None), 0.2).command("place_order", {}, repeat="look first")

        def hang_up() -> None:
            for _ in range(2):
                server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(Unreachable, match=r"broke the connection before it answered$"):
            Client(Target(url, None), 5).get("status")
        thread.join()


def test_another_protocol() -> None:
    """A port that speaks something else than HTTP is no server."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail.example.org ESMTP\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(Unreachable, match="broke the connection"):
            Client(Target(f"http://127.0.0.1:{server.getsockname()[1]}", None), 5).get("status")
        thread.join()


# --- TLS ------------------------------------------------------------------------------------------------------


@pytest.fixture(name="cert", scope="module")
def _cert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the program openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "3650",
    ]
    names = ["-subj", "/CN=trader", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([openssl, *command, *names], check=True, capture_output=True)
    return cert, key


@pytest.fixture(name="secure")
def _secure(cert: tuple[Path, Path]) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*cert)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as stream:
                    stream.recv(10_000)
                    body = json.dumps({"engine": "running"}).encode()
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def test_tls(cert: tuple[Path, Path], secure: str) -> None:
    """A certificate that nobody knows is refused; that of this machine's own server is trusted, and no other."""
    with pytest.raises(Unreachable, match="does not speak TLS as it should"):
        Client(Target(secure, None), 5).get("status")
    assert Client(Target(secure, None, cert=cert[0]), 5).get("status") == {"engine": "running"}
    with pytest.raises(Unreachable, match="can't be read"):
        Client(Target(secure, None, cert=Path("nowhere.pem")), 5).get("status")


def test_tls_at_a_plain_port(web: Any) -> None:
    """https at a server that speaks plain HTTP says so."""
    with pytest.raises(Unreachable, match="does not speak TLS"):
        Client(Target(web.url.replace("http:", "https:"), None), 5).get("status")

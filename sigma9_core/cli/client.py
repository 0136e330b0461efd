"""The client behind the commands: it finds the server, asks it by REST, and follows its WebSocket."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit

from sigma9_core import __version__
from sigma9_core.cli.options import data_dir_named, data_dir_of
from sigma9_core.config import ClientSettings
from sigma9_core.configfile import load_client_settings
from sigma9_core.datadir import DataDir, ServerNote, local_url
from sigma9_core.errors import Sigma9Error
from sigma9_core.tokens import TokenBook

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

USER_AGENT: Final = f"sigma9-cli/{__version__}"
LARGEST_ANSWER: Final = 64 * 1024 * 1024
THIS_MACHINE: Final = frozenset(("localhost", "127.0.0.1", "::1", "0.0.0.0", "::"))  # noqa: S104 - compared with

_DEFAULT: Final = ClientSettings()


class Unreachable(Sigma9Error):
    """The server can't be reached: start it, or name where it is."""

    exit_code = 3


class Refused(Sigma9Error):
    """The server refused; the sentence is its own."""

    exit_code = 1

    def __init__(self, message: str, code: str = "", details: Mapping[str, Any] | None = None) -> None:
        self.code = code
        self.details = dict(details or {})
        super().__init__(message)


class WrongUsage(Sigma9Error):
    """The command line does not make sense."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Target:
    """The server that a command talks to."""

    url: str
    """Empty where a server runs in `local` that has told no address: it can be asked through its door alone."""
    token: str | None
    api_path: str = _DEFAULT.server.api_path
    ws_path: str = _DEFAULT.server.ws_path
    timeout: float = _DEFAULT.connection.timeout
    """Seconds."""
    reconnect: float = _DEFAULT.connection.reconnect_interval
    """Seconds."""
    cert: Path | None = None
    """The certificate to trust, of a server on this machine."""
    local: DataDir | None = None
    """The data folder, where it is this machine's own running server: the kill's own door is in it."""


def find_target(
    args: argparse.Namespace, environ: Mapping[str, str] | None = None, *, door: bool = False
) -> Target:
    """Find the server: --url, --data-dir, SIGMA9_URL, SIGMA9_DATA_DIR, client_config.yaml, or this folder's data.

    A data folder that is named outright means the server that runs on it: where none does, this raises Unreachable
    and never gives another one. So it does where that server has told no address, unless `door` says that its own
    door is enough. A client_config.yaml that names this machine and the usual port says nothing new: then the
    running server says itself where it listens. The admin token of the data_dir goes to that very server and to no
    other one.
    """
    environ = os.environ if environ is None else environ
    data_dir = DataDir(data_dir_of(args, environ))
    named = None if args.url else data_dir_named(args, environ)
    if named is not None:
        return _on_data_dir(args, environ, data_dir, named, door=door)
    settings = load_client_settings(args.client_config, environ=environ)
    note = data_dir.server()
    given = args.url or environ.get("SIGMA9_URL") or None
    server = settings.server
    if given is not None:
        url = url_of(given)
    elif note is not None and _may_be(settings, note):
        url = note.url
    elif note is None and _says_nothing(settings) and data_dir.holder() is not None:
        return _of_this_machine(args, environ, data_dir, settings, door=door)
    else:
        url = local_url(server.host, server.port, tls=server.tls)
    told = note is not None and _same(url, note.url)
    token = args.token or environ.get("SIGMA9_TOKEN") or None
    if token is None and server.token is not None:
        token = server.token.get_secret_value()
    if token is None and told:
        token = TokenBook(data_dir).admin()
    return Target(
        url,
        token,
        server.api_path.rstrip("/"),
        server.ws_path,
        settings.connection.timeout,
        settings.connection.reconnect_interval,
        Path(note.cert) if told and note is not None and note.cert else None,
        data_dir if told else None,
    )


def no_server_on(data_dir: DataDir, named: str) -> Unreachable:
    """Say in one sentence that no server runs on a data folder that was named, and what to do."""
    path = data_dir.path
    if not path.is_dir():
        why = f"there is no folder {path}"
    elif not os.access(path, os.R_OK | os.X_OK):
        why = f"the data folder {path} can't be read by this user"
    else:
        why = f"no server runs on the data folder {path}"
    return Unreachable(
        f"{why} (named by {named}), and no other server is asked: "
        "start it with `sigma9 run`, or name the right one with --data-dir or --url"
    )


def _on_data_dir(
    args: argparse.Namespace, environ: Mapping[str, str], data_dir: DataDir, named: str, *, door: bool
) -> Target:
    """Give the server that runs on the data folder that was named; there is no other way from here."""
    url = environ.get("SIGMA9_URL") or None
    note = data_dir.server()
    if url is not None and named == "SIGMA9_DATA_DIR" and (note is None or not _same(url_of(url), note.url)):
        raise WrongUsage(
            f"SIGMA9_URL ({url}) and SIGMA9_DATA_DIR ({data_dir.path}) do not name the same running server: "
            "say with --url or --data-dir which one is meant"
        )
    if data_dir.holder() is None:
        raise no_server_on(data_dir, named)
    # A token of the environment goes with the URL beside it.
    environ = environ if url is None or named == "SIGMA9_DATA_DIR" else {**environ, "SIGMA9_TOKEN": ""}
    return _of_this_machine(
        args, environ, data_dir, load_client_settings(args.client_config, environ=environ), door=door
    )


def _of_this_machine(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    data_dir: DataDir,
    settings: ClientSettings,
    *,
    door: bool,
) -> Target:
    """Give the server that runs on this data folder, at the address that it tells itself."""
    note = data_dir.server()
    if note is None and not door:
        holder = data_dir.holder()
        who = f"process {holder.pid}" if holder is not None and holder.pid else "another process"
        raise Unreachable(
            f"the server on the data folder {data_dir.path} ({who}) has told no address: "
            "it is only starting, or it serves no REST"
        )
    token = args.token or environ.get("SIGMA9_TOKEN") or None
    if token is None and settings.server.token is not None and (note is None or _may_be(settings, note)):
        token = settings.server.token.get_secret_value()
    return Target(
        "" if note is None else note.url,
        token or TokenBook(data_dir).admin(),
        timeout=settings.connection.timeout,
        reconnect=settings.connection.reconnect_interval,
        cert=Path(note.cert) if note is not None and note.cert else None,
        local=data_dir,
    )


def _says_nothing(settings: ClientSettings) -> bool:
    """Tell whether the client's settings lead to this machine's usual address."""
    return settings.server.host in THIS_MACHINE and settings.server.port == _DEFAULT.server.port


def _may_be(settings: ClientSettings, note: ServerNote) -> bool:
    """Tell whether the client's settings mean the server of this machine, wherever it listens by now."""
    return settings.server.host in THIS_MACHINE and settings.server.port in (
        _DEFAULT.server.port,
        urlsplit(note.url).port,
    )


class Client:
    """Asks one server by REST; every call is a connection of its own."""

    def __init__(self, target: Target, timeout: float | None = None) -> None:
        self.target = target
        self._timeout = target.timeout if timeout is None else timeout

    def get(self, path: str, **query: object) -> Any:
        """Read `/api/{path}`; raise Unreachable, or Refused with the server's sentence."""
        given = {name: value for name, value in query.items() if value is not None}
        tail = f"?{urlencode(given)}" if given else ""
        return self._ask("GET", f"{path}{tail}", None)

    def command(self, name: str, arguments: Mapping[str, Any], *, repeat: str | None = None) -> dict[str, Any]:
        """Send a command and give its response object, which may say `ok: false`.

        `repeat` is what to type again where it was sent and no answer came.
        """
        body = {key: value for key, value in arguments.items() if value is not None}
        answer = self._ask("POST", f"commands/{quote(name)}", body, repeat=repeat)
        if not isinstance(answer, dict):
            raise Unreachable(f"{self.target.url} answers, but not as a Sigma9 server: check the URL")
        return answer

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, *, repeat: str | None = None) -> Any:
        target = self.target
        parts = urlsplit(target.url)
        headers = {"Accept": "application/json", "User-Agent": USER_AGENT}
        data = None
        if target.token is not None:
            headers["Authorization"] = f"Bearer {target.token}"
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            try:
                connection.connect()
            except ssl.SSLError as error:
                raise Unreachable(
                    f"{target.url} does not speak TLS as it should: {error.reason or error}"
                ) from error
            except OSError as error:
                raise unreachable(target, error) from error
            try:
                connection.request(method, f"{parts.path}{target.api_path}/{path}", body=data, headers=headers)
                response = connection.getresponse()
                content = response.read(LARGEST_ANSWER)
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer(error, repeat) from error
        finally:
            connection.close()
        return self._answer(response.status, content)

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.target.url)
        host = parts.hostname or "localhost"
        if parts.scheme == "https":
            return http.client.HTTPSConnection(
                host, parts.port, timeout=self._timeout, context=tls_context(self.target.cert)
            )
        return http.client.HTTPConnection(host, parts.port, timeout=self._timeout)

    def _no_answer(self, error: Exception, repeat: str | None) -> Unreachable:
        late = isinstance(error, TimeoutError)
        why = f"did not answer within {self._timeout:g} s" if late else "broke the connection before it answered"
        advice = f"; whether it was carried out is not known: {repeat}" if repeat else ""
        return Unreachable(f"the server at {self.target.url} {why}{advice}")

    def _answer(self, status: int, content: bytes) -> Any:
        try:
            body = json.loads(content)
        except ValueError as error:
            raise Unreachable(
                f"{self.target.url} answers (HTTP {status}), but not as a Sigma9 server: check the URL"
            ) from error
        if isinstance(body, dict) and "ok" not in body and isinstance(body.get("error"), dict):
            raise refusal(self.target, status, body["error"])
        if isinstance(body, dict) and body.get("ok") is False and status in (401, 403):
            raise refusal(self.target, status, body.get("error") or {})
        if status >= 400 and not (isinstance(body, dict) and "ok" in body):
            raise Unreachable(
                f"{self.target.url} answers (HTTP {status}), but not as a Sigma9 server: check the URL"
            )
        return body


def unreachable(target: Target, error: OSError) -> Unreachable:
    """Say in one sentence that nobody listens, and what to do."""
    why = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error))
    return Unreachable(
        f"no server at {target.url} ({why}): start one with `sigma9 run`, or name it with --url or SIGMA9_URL"
    )


def refusal(target: Target, status: int, error: Mapping[str, Any]) -> Refused:
    """Turn the server's error object into the sentence that the user reads."""
    message = str(error.get("message") or f"the server refused (HTTP {status})")
    if status == 401:
        message = (
            f"the server at {target.url} wants a valid token: set SIGMA9_TOKEN "
            "(on the server's machine `sigma9 token --show` prints one)"
        )
    return Refused(message, str(error.get("code", "")), error.get("details") or {})


def open_feed(target: Target, query: Mapping[str, str], open_timeout: float = 10) -> ClientConnection:
    """Open the WebSocket; raise Unreachable, Refused (the token), or websockets' InvalidStatus for the rest."""
    from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus
    from websockets.sync.client import connect

    parts = urlsplit(target.url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "localhost", parts.port or (443 if secure else 80)
    tail = f"?{urlencode(query)}" if query else ""
    uri = f"{'wss' if secure else 'ws'}://{parts.netloc}{parts.path}{target.ws_path}{tail}"
    headers = {"Authorization": f"Bearer {target.token}"} if target.token is not None else {}
    try:
        # A socket of our own, so that no proxy of the environment gets to see a local server's token.
        plain = socket.create_connection((host, port), timeout=open_timeout)
        plain.settimeout(None)
        return connect(
            uri,
            sock=plain,
            ssl=tls_context(target.cert) if secure else None,
            server_hostname=host if secure else None,
            compression=None,
            additional_headers=headers,
            user_agent_header=USER_AGENT,
            open_timeout=open_timeout,
            max_size=LARGEST_ANSWER,
        )
    except InvalidStatus as error:
        if error.response.status_code in (401, 403):
            raise refusal(target, error.response.status_code, _error_of(error.response.body)) from error
        raise
    except (InvalidMessage, EOFError) as error:
        raise Unreachable(f"{target.url} answers, but not as a Sigma9 server: check the URL") from error
    except InvalidHandshake as error:
        raise Unreachable(f"{target.url}{target.ws_path} is no WebSocket: check the URL") from error
    except OSError as error:
        raise unreachable(target, error) from error


def tls_context(cert: Path | None) -> ssl.SSLContext:
    """Trust the system's authorities, or exactly one certificate: that of the server on this machine."""
    if cert is None:
        return ssl.create_default_context()
    try:
        context = ssl.create_default_context(cafile=str(cert))
    except OSError as error:
        raise Unreachable(f"the server's certificate {cert} can't be read: {error.strerror or error}") from error
    context.check_hostname = False  # it is found in the data folder, which says more than a name
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _error_of(body: bytes | bytearray | None) -> Mapping[str, Any]:
    try:
        found = json.loads(body or b"{}").get("error")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def url_of(url: str) -> str:
    """Complete a URL; raise WrongUsage where it is none."""
    text = url.strip()
    text = (text if "://" in text else f"http://{text}").rstrip("/")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not text.isprintable() or " " in text:
        raise WrongUsage(f"'{url}' is no URL of a server: write it like http://trader:8000")
    return text


def _same(one: str, other: str) -> bool:
    """Tell whether two URLs name the same server on this machine."""
    first, second = urlsplit(one), urlsplit(other)
    if (first.scheme, first.port, first.path) != (second.scheme, second.port, second.path):
        return False
    hosts = {first.hostname or "", second.hostname or ""}
    return len(hosts) == 1 or hosts <= THIS_MACHINE

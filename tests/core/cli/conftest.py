"""A command line that is run in this process, alone in an empty folder, and a small real server to talk to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sigma9_core import log
from sigma9_core.cli.frame import main

TOKEN = "the-right-token"

STATUS = {
    "server": "running",
    "engine": "running",
    "ibkr": "disabled",
    "broker": {"name": "paper", "state": "connected", "socket": "up", "link": "up", "data": "up"},
    "feed": {"name": "simulated", "state": "running", "last_at": "2026-11-20T14:45:00.000000Z"},
    "mqtt": "connected",
    "kill_switch": {"state": "OFF", "phase": "off", "scopes": []},
    "uptime": 93784,
    "active_positions": 2,
    "open_orders": 1,
    "watchlist_count": 50,
    "day_pnl": -12.5,
    "seq": 7,
    "journal_id": "j1",
    "node": "main",
    "version": "0.1.0",
    "contract": 1,
    "started_at": "2026-11-20T14:00:00.000000Z",
    "last_error": None,
    "clock": "simulated",
    "market": {"open": True, "next_open": None, "next_close": "2026-11-20T21:00:00.000000Z"},
}


@dataclass
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Read stdout as JSON: nothing else may stand there."""
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture(name="alone", autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("SIGMA9_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_pattern", None)
    return tmp_path


@pytest.fixture(name="cli")
def _cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: str) -> Result:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@dataclass
class Asked:
    """One request that the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class WebServer:
    """A real HTTP server with canned answers; every request is remembered."""

    http: ThreadingHTTPServer
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Give its address."""
        return f"http://127.0.0.1:{self.http.server_port}"

    def says(self, path: str, body: Any, status: int = 200) -> None:
        """Answer a path with a body: JSON, or bytes as they are."""
        self.answers[path] = (status, body)

    def does(self, name: str, result: Any) -> None:
        """Answer a command with a result."""
        body = {"id": None, "command": name, "ok": True, "result": result, "error": None, "source": "api"}
        self.says(f"/api/commands/{name}", {**body, "ts": "2026-11-20T14:45:00.000000Z", "duration_ms": 1.0})

    def refuses(self, name: str, code: str, message: str, status: int = 409, **details: Any) -> None:
        """Refuse a command."""
        error = {"code": code, "message": message, "details": details}
        body = {"id": None, "command": name, "ok": False, "result": None, "error": error, "source": "api"}
        self.says(f"/api/commands/{name}", body, status)

    def answer(self, asked: Asked) -> tuple[int, Any]:
        """Find the answer; a missing token is 401, an unknown path 404."""
        self.asked.append(asked)
        if asked.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": {"code": "unauthorized", "message": "who are you?", "details": {}}}
        for path in (asked.path, asked.path.partition("?")[0]):
            if path in self.answers:
                return self.answers[path]
        return 404, {"error": {"code": "not_found", "message": f"no {asked.path}", "details": {}}}


@pytest.fixture(name="web")
def _web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answer = server.answer(Asked(self.command, self.path, headers, body))
            if answer is None:  # hang up
                self.close_connection = True
                return
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = WebServer(http)
    server.says("/api/status", STATUS)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("SIGMA9_URL", server.url)
    monkeypatch.setenv("SIGMA9_TOKEN", TOKEN)
    yield server
    http.shutdown()
    thread.join()
    http.server_close()

"""`sigma9 watch`, against a real WebSocket server that breaks off, refuses and forgets."""

from __future__ import annotations

import argparse
import http
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from sigma9_core.cli.client import Refused, Unreachable
from sigma9_core.cli.watch import Watcher
from sigma9_core.datadir import DataDir

TOKEN = "the-right-token"
SHOWN = {"types": "trade_event,watchlist_update,status_update,log"}


def event(kind: str, seq: int | None, **data: Any) -> dict[str, Any]:
    return {"type": kind, "v": 1, "seq": seq, "ts": "2026-11-20T14:45:00.000000Z", "node": "main", "data": data}


def snapshots(seq: int, journal: str = "j1") -> list[dict[str, Any]]:
    status = {"engine": "running", "server": "running", "journal_id": journal}
    return [
        event("status_update", None, changed=[], reason="snapshot", as_of_seq=seq, status=status),
        event("watchlist_update", None, reason="snapshot", as_of_seq=seq, count=0),
    ]


class Feed:
    """A WebSocket server: each connection gets the next list of frames, and is closed after them."""

    def __init__(self) -> None:
        self.rounds: list[tuple[list[Any], int]] = []
        self.queries: list[dict[str, str]] = []
        self.refuse: list[tuple[int, Any]] = []
        self.stay = threading.Event()
        self.stay.set()
        self._server: Server = serve(self._serve, "127.0.0.1", 0, process_request=self._admit, compression=None)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        """Give the address."""
        return f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def gives(self, *frames: Any, code: int = 1001) -> None:
        """Let the next connection get these frames, and then be closed with a code."""
        self.rounds.append((list(frames), code))

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        parts = urlsplit(request.path)
        assert parts.path == "/ws/feed"
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return connection.respond(http.HTTPStatus(401), "{}")
        self.queries.append({name: values[0] for name, values in parse_qs(parts.query).items()})
        if self.refuse:
            status, body = self.refuse.pop(0)
            return connection.respond(http.HTTPStatus(status), json.dumps(body))
        return None

    def _serve(self, connection: ServerConnection) -> None:
        frames, code = self.rounds.pop(0)
        for frame in frames:
            connection.send(json.dumps(frame))
        self.stay.wait(20)
        connection.close(code, "bye")

    def close(self) -> None:
        """End the server."""
        self.stay.set()
        self._server.shutdown()
        self._thread.join()


@pytest.fixture(name="feed")
def _feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    feed = Feed()
    monkeypatch.setenv("SIGMA9_URL", feed.url)
    monkeypatch.setenv("SIGMA9_TOKEN", TOKEN)
    yield feed
    feed.close()


@pytest.fixture(name="watcher")
def _watcher() -> Callable[..., Watcher]:
    def make(**options: Any) -> Watcher:
        given = {"types": None, "all": False, "symbols": None, "level": None, "after": None, "format": "json"}
        address = {"url": None, "token": None, "client_config": None, "data_dir": None}
        return Watcher(argparse.Namespace(**{**given, **address, **options}))

    return make


def seen(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()]


def test_follow(feed: Feed, watcher: Callable[..., Watcher], capsys: pytest.CaptureFixture[str]) -> None:
    """Events are printed as they come; after a break the next connection asks for what was missed."""
    feed.gives(*snapshots(4), event("trade_event", 5), event("log", None), event("trade_event", 6))
    feed.gives(event("trade_event", 7), *snapshots(7), event("status_update", 8))
    watching = watcher()
    assert watching.follow() == 5.0
    assert seen(capsys) == [None, None, 5, None, 6]
    watching.follow()
    assert seen(capsys) == [7, None, None, 8]
    assert feed.queries == [SHOWN, {**SHOWN, "after": "6"}]


def test_snapshots_are_shown_once(
    feed: Feed, watcher: Callable[..., Watcher], capsys: pytest.CaptureFixture[str]
) -> None:
    """For a person the snapshots of a second connection are not repeated, unless the journal is another one."""
    for journal in ("j1", "j1", "j2"):
        feed.gives(*snapshots(4, journal))
    watching = watcher(format="lines")
    for expected in (3, 0, 2):  # the first time with a header
        watching.follow()
        captured = capsys.readouterr()
        assert len(captured.out.splitlines()) == expected
    assert "another journal" in captured.err


def test_filters(feed: Feed, watcher: Callable[..., Watcher]) -> None:
    """The filters and --after are sent along; a batch of events in one frame is fine."""
    feed.gives([event("trade_event", 10), event("trade_event", 11)], "nonsense", 5)
    feed.gives()
    watching = watcher(types="trade_event", symbols="AAPL", level="error", after=9)
    watching.follow()
    watching.follow()
    kept = {"types": "trade_event", "symbols": "AAPL", "level": "error"}
    assert feed.queries == [{**kept, "after": "9"}, {**kept, "after": "11"}]


def test_market_data_only_where_asked_for(feed: Feed, watcher: Callable[..., Watcher], cli: Any) -> None:
    """By default market data stay away: a person asks for them by --all or by --types, not by both."""
    for options in ({}, {"symbols": "AAPL"}, {"all": True}, {"types": "market_data"}):
        feed.gives()
        watcher(**options).follow()
    assert feed.queries == [SHOWN, {**SHOWN, "symbols": "AAPL"}, {}, {"types": "market_data"}]
    assert "market data" in cli("watch", "--help").out
    assert cli("watch", "--all", "--types", "log").code == 2


@pytest.mark.parametrize(
    ("options", "shown"), [({}, 1), ({"format": "json"}, 2), ({"all": True}, 2), ({"types": "log"}, 2)]
)
def test_the_same_is_not_said_twice(
    feed: Feed,
    watcher: Callable[..., Watcher],
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    shown: int,
) -> None:
    """A person who has not chosen the types sees an order as its event, not as the console's log line too."""
    line = event("log", None, level="info", logger="sigma9.console", message="BUY 1 X filled")
    feed.gives(event("trade_event", 5, event="filled"), line)
    watcher(**{"format": "lines", **options}).follow()
    lines = [line for line in capsys.readouterr().out.splitlines() if "filled" in line]
    assert len(lines) == shown


def test_a_server_that_is_away_is_not_another_one(
    feed: Feed, watcher: Callable[..., Watcher], alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the server of a named data folder starts anew, the watch waits for it, and asks nobody else."""
    data = DataDir(alone / "far")
    with data:
        data.lock("main")
        data.announce(feed.url, "main")
        watching = watcher(data_dir=data.path, token=TOKEN)
        feed.gives()
        watching.follow()
    assert watching.follow() == 5.0
    assert f"no server runs on the data folder {data.path}" in capsys.readouterr().err
    assert len(feed.queries) == 1


def test_a_quiet_time_is_not_lost(feed: Feed, watcher: Callable[..., Watcher]) -> None:
    """Where only the snapshots came, the next connection still asks from their number on."""
    feed.gives(*snapshots(42))
    feed.gives()
    watching = watcher()
    watching.follow()
    watching.follow()
    assert feed.queries[1] == {**SHOWN, "after": "42"}


def test_out_of_range(feed: Feed, watcher: Callable[..., Watcher], capsys: pytest.CaptureFixture[str]) -> None:
    """A number that is no longer kept is told, and watching goes on; asked for by --after it is a refusal."""
    body = {"error": {"code": "conflict", "message": "after=6 is older than what is kept", "details": {}}}
    feed.gives(event("trade_event", 6))
    watching = watcher()
    watching.follow()
    feed.refuse = [(409, body)]
    assert watching.follow() == 0.0
    assert "older than what is kept; going on with what comes now" in capsys.readouterr().err
    feed.gives()
    watching.follow()
    assert feed.queries[-1] == SHOWN
    feed.refuse = [(409, body)]
    with pytest.raises(Refused, match="older than what is kept"):
        watcher(after=6).follow()


def test_wrong_filter(feed: Feed, watcher: Callable[..., Watcher]) -> None:
    """A filter that the server refuses is its sentence."""
    feed.refuse = [(400, {"error": {"code": "invalid", "message": "there is no type 'x'", "details": {}}})]
    with pytest.raises(Refused, match="no type 'x'"):
        watcher(types="x").follow()


def test_wrong_token(feed: Feed, watcher: Callable[..., Watcher]) -> None:
    """A token that is not valid ends the watching, also where it was valid before."""
    with pytest.raises(Refused, match="wants a valid token"):
        watcher(token="wrong").follow()
    feed.gives(code=1008)
    with pytest.raises(Refused, match="the server closed the feed: bye"):
        watcher().follow()


def test_the_server_comes_back(
    feed: Feed,
    watcher: Callable[..., Watcher],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that is away, or not ready yet, is waited for, but only once it was there."""
    monkeypatch.setenv("SIGMA9_URL", "http://127.0.0.1:9")
    watching = watcher()
    with pytest.raises(Unreachable):
        watching.follow()
    monkeypatch.setenv("SIGMA9_URL", feed.url)
    feed.gives()
    watching.follow()
    monkeypatch.setenv("SIGMA9_URL", "http://127.0.0.1:9")
    assert watching.follow() == 5.0
    monkeypatch.setenv("SIGMA9_URL", feed.url)
    feed.refuse = [(503, {"error": {"code": "internal", "message": "the server is stopping"}})]
    assert watching.follow() == 5.0
    feed.gives()
    watching.follow()
    err = capsys.readouterr().err
    assert "trying again in 5 s" in err
    assert "the server is stopping; trying again" in err
    assert "connected again" in err


def test_not_a_websocket(web: Any, watcher: Callable[..., Watcher]) -> None:
    """A server without the feed says so."""
    with pytest.raises(Refused, match="no /ws/feed"):
        watcher().follow()


def test_until_interrupted(feed: Feed) -> None:
    """The command prints readable lines until Ctrl-C, which ends it quietly with 130."""
    feed.stay.clear()
    feed.gives(*snapshots(4), event("log", None, level="info", logger="sigma9.engine", message="hello"))
    process = subprocess.Popen(
        [sys.executable, "-m", "sigma9_core", "watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert lines[0].startswith("market time, UTC")
    assert "engine running" in lines[1]
    assert lines[3].endswith("info sigma9.engine: hello\n")
    assert (process.returncode, errors) == (130, "")

"""The journal of a real server, as a file and on PostgreSQL: killed, started again, and found to agree."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigma9_core.testing.postgres_server import PASSWORD, PostgresServer
from sigma9_core.testing.server_process import ServerProcess

_schemas = itertools.count()


@pytest.fixture(
    name="database",
    params=[
        pytest.param("sqlite", marks=pytest.mark.slow),  # other tests kill a server with a file, too
        pytest.param("postgresql", marks=pytest.mark.postgres),
    ],
)
def _database(
    request: pytest.FixtureRequest, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Tell server and command line, by the environment, where the journal is."""
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        schema = f"server_{next(_schemas)}"
        postgres.make_schema(schema)
        monkeypatch.setenv("SIGMA9_DATABASE__URL", postgres.url(schema))
        server.environment["SIGMA9_DATABASE__URL"] = postgres.url(schema)
    return request.param  # type: ignore[no-any-return]


def trade(server: ServerProcess, name: str) -> None:
    """Buy a little, and wait until it has filled."""
    symbol = server.until(
        lambda: next((item["symbol"] for item in server.get("/api/watchlist")["items"]), None), "the watchlist"
    )
    order = {"symbol": symbol, "side": "buy", "quantity": 1, "order_type": "market"}
    status, body = server.request("POST", "/api/orders", order, {"Idempotency-Key": name})
    assert status < 500, body  # the strategy may hold the symbol already
    server.until(lambda: server.get("/api/trades")["trades"], "a trade")


def gapless(server: ServerProcess) -> int:
    """Read all events; give the number of the last one."""
    after, found = 0, []
    while after is not None:
        page = server.get(f"/api/events?after={after}&limit=1000")
        found += [event["seq"] for event in page["events"]]
        after = page["next"]
    assert found == [*range(1, len(found) + 1)]
    return len(found)


def test_journal_survives_kill_9_and_agrees(server: ServerProcess, database: str) -> None:
    """After kill -9 it goes on where it stopped, numbers have no gap, and `journal verify` proves the rest."""
    server.start()
    trade(server, "first")
    known = server.get("/api/status")["journal_id"]
    server.stop(signal.SIGKILL)
    left = json.loads(server.sigma9("journal", "verify", "--format", "json").stdout)
    assert left["faults"] == []

    server.start()
    status = server.get("/api/status")
    assert status["journal_id"] == known
    assert gapless(server) >= left["last_seq"] > 0
    trade(server, "second")
    beside = server.sigma9("journal", "verify")
    assert beside.returncode == 0, beside.stdout
    assert "everything agrees" in beside.stdout
    assert "the running server shows the same positions" in beside.stdout or "moved all the while" in beside.stdout
    assert server.stop() == 0
    assert PASSWORD not in "\n".join(server.lines) + beside.stdout + beside.stderr
    assert (server.data / "sigma9.db").exists() == (database == "sqlite")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.postgres
@pytest.mark.slow
def test_second_server_of_a_node_is_refused(server: ServerProcess, database: str, tmp_path: Path) -> None:
    """A server with a data folder of its own that names the same node in the same database does not start."""
    server.start()
    other = ServerProcess(tmp_path / "other", *server.settings[3:])
    other.environment = server.environment
    with pytest.raises(AssertionError, match="another server writes the journal") as caught:
        other.start()
    assert "as the node main" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert other.stop(signal.SIGKILL) == 1
    assert server.get("/api/status")["server"] == "running"

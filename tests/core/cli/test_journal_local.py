"""`sigma9 journal` on the database itself: list, follow, export and verify, without a server."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sigma9_core.datadir import DataDir
from sigma9_core.errors import DataError
from sigma9_core.events import TradeEvent, WatchlistUpdate
from sigma9_core.export import export
from sigma9_core.models import Fill, OrderRequest, Side
from sigma9_core.money.ids import OrderIds
from sigma9_core.money.journal import Journal
from sigma9_core.money.orders import Order
from sigma9_core.money.records import CommandRecord, EventRecord, FillRecord, IntentRecord, NoteRecord, Record
from sigma9_core.testing.journal_places import FilePlace
from sigma9_core.tokens import ADMIN_FILE

TS = datetime(2026, 11, 20, 14, 45, 0, 123456, tzinfo=UTC)
IDS = OrderIds()


def traded(
    symbol: str, quantity: str, price: str, *, side: Side = "buy", strategy: str | None = None, cause: str = "c1"
) -> list[Record]:
    """Make the records of a filled order."""
    order_id = IDS.new()
    ask = OrderRequest(symbol=symbol, side=side, quantity=Decimal(quantity), strategy=strategy, source="mqtt")
    order = Order(order_id, ask, (), TS)
    intent = IntentRecord(order_id, TS, ask, (), True, cause)
    sent = EventRecord("trade_event", TradeEvent.of(order.view()), TS, cause)
    fill = Fill(f"x-{order_id}", order_id, symbol, side, ask.quantity, Decimal(price), Decimal("0.35"), TS)
    order.take("filled", fill=fill)
    filled = EventRecord("trade_event", TradeEvent.of(order.view(), trade_id=fill.exec_id), TS, order_id)
    return [intent, sent, FillRecord(fill, strategy, "mqtt"), filled]


@contextmanager
def writing(path: Path) -> Iterator[Journal]:
    journal = Journal(f"sqlite:///{path}", "main", lambda _events: None)
    journal.open()
    try:
        yield journal
    finally:
        journal.close()


@pytest.fixture(name="path")
def _path(alone: Path) -> Path:
    """A journal where `sigma9 run` in this folder would keep it."""
    path = alone / "data" / "sigma9.db"
    body = {"symbol": "AAPL", "token": "abc123", "nested": {"api_key": 'q"x', "note": "Bearer eyJhbGci.payload"}}
    with writing(path) as journal:
        journal.write(traded("AAPL", "100", "187.25", strategy="seismograph")).result()
        journal.write(traded("MSFT", "0.123456789012345678", "1234567.5", cause="c2")).result()
        watch = WatchlistUpdate(reason="scan", strategy="seismograph", count=0)
        journal.write([EventRecord("watchlist_update", watch, TS.replace(hour=16))]).result()
        journal.write([CommandRecord("received", "plug", None, "d", "api", None, TS, body)]).result()
        journal.write([NoteRecord("trip", TS, {"rule": "loss_limit"})]).result()
    return path


def numbers(text: str) -> list[int]:
    return [event["seq"] for event in json.loads(text)]


# --- list and follow ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ((), [1, 2, 3, 4, 5]),
        (("--limit", "2"), [4, 5]),
        (("--after", "1", "--limit", "2"), [2, 3]),
        (("--type", "watchlist_update"), [5]),
        (("--symbol", "MSFT"), [3, 4]),
        (("--strategy", "seismograph"), [1, 2, 5]),
        (("--strategy", "seismo"), []),
        (("--source", "mqtt", "--symbol", "AAPL"), [1, 2]),
        (("--cause", "c2"), [3]),
        (("--since", "2026-11-20T16:00"), [5]),
        (("--until", "2026-11-20T14:45:00.123456Z"), []),
        (("--until", "2026-11-21", "--symbol", "AAPL"), [1, 2]),
    ],
)
def test_events_are_filtered(cli: Any, path: Path, options: tuple[str, ...], right: list[int]) -> None:
    """Each filter leaves out what it says; the rows also tell their cause."""
    result = cli("journal", "list", "--local", "--format", "json", *options)
    assert (result.code, numbers(result.out)) == (0, right)
    assert {"type", "seq", "ts", "data", "cause", "wall"} <= set(
        result.json[0] if right else {"type", "seq", "ts", "data", "cause", "wall"}
    )


def test_an_order_is_found_in_every_table(cli: Any, path: Path) -> None:
    """An order's intent, events and fills are listed by its id."""
    order_id = cli("journal", "list", "--local", "--format", "json", "--symbol", "MSFT").json[0]["data"][
        "order_id"
    ]
    for table, count in (("events", 2), ("orders", 1), ("fills", 1)):
        found = cli("journal", "list", "--local", "--table", table, "--order", order_id, "--format", "json").json
        assert len(found) == count
    shown = cli("journal", "list", "--table", "fills").out
    assert "0.123456789012345678" in shown
    assert shown.splitlines()[0].startswith("n  ts (market time, UTC)")
    assert (
        cli("journal", "list", "--table", "notes", "--format", "csv").out.splitlines()[0]
        == "node,n,kind,symbol,source,cause,ts,wall,body,hash"
    )
    assert cli("journal", "list", "--local").out.splitlines()[0].startswith("market time, UTC")
    assert cli("journal", "list", "--local", "--format", "csv").out.startswith(
        "seq,ts,wall,type,symbol,source,cause"
    )
    assert cli("journal", "list", "--table", "fills", "--symbol", "NO").out == "no fills\n"


def test_notes_by_kind_and_commands_by_name_or_actor(cli: Any, path: Path) -> None:
    """A kind of note, a command or who sent it is found in its own table, listed and exported."""

    def rows(*options: str) -> list[dict[str, Any]]:
        return cli("journal", "list", "--format", "json", *options).json  # type: ignore[no-any-return]

    notes = rows("--table", "notes")
    kind = notes[0]["kind"]
    assert rows("--kind", kind) == [note for note in notes if note["kind"] == kind]
    commands = rows("--table", "commands")
    first = commands[0]
    with writing(path) as journal:
        journal.write([CommandRecord("received", "scan", "k9", "d", "mqtt", "phone", TS, {})]).result()
    assert [row["id"] for row in rows("--actor", "phone")] == ["k9"]
    assert [row["id"] for row in rows("--actor", "phone", "--command", "scan")] == ["k9"]
    assert rows("--command", first["command"])[0] == first
    for option in ("--command", "--actor"):
        assert rows(option, "nobody") == []
    assert cli("journal", "export", "out.csv", "--kind", kind).code == 0
    with Path("out.csv").open() as file:
        assert {row["kind"] for row in csv.DictReader(file)} == {kind}
    assert "--kind: the table fills has no kind" in cli("journal", "list", "--table", "fills", "--kind", "x").err
    assert cli("journal", "follow", "--kind", kind).code == 2


@pytest.mark.parametrize("table", ["events", "orders", "fills", "commands", "notes"])
def test_every_row_has_its_time_source_and_cause(cli: Any, path: Path, table: str) -> None:
    """In lists and in exports of either form, whatever was written."""
    named = [cli("journal", "list", "--local", "--table", table, "--format", "csv").out]
    assert cli("journal", "export", "rows.csv", "--table", table).code == 0
    named.append(Path("rows.csv").read_text())
    for text in named:
        rows = list(csv.DictReader(text.splitlines()))
        assert rows
        assert all(row["ts"] and row["source"] and row["cause"] for row in rows)
    assert cli("journal", "export", "rows.parquet", "--table", table).code == 0
    frame = pl.read_parquet("rows.parquet")
    assert frame.select("ts", "source", "cause").null_count().row(0) == (0, 0, 0)


def test_what_a_table_does_not_have(cli: Any, path: Path) -> None:
    """A filter that a table can't answer is named, with the columns that there are, and exit code 2."""
    result = cli("journal", "list", "--table", "orders", "--symbol", "AAPL")
    assert result.code == 2
    assert "--symbol: the table orders has no symbol; it has n, order_id" in result.err
    assert cli("journal", "list", "--table", "notes", "--strategy", "x").code == 2


def test_a_node_that_is_not_there(cli: Any, path: Path) -> None:
    """A node that the journal has nothing of is the same error everywhere, and no file is written."""
    for action in (
        ("list", "--local"),
        ("list", "--table", "fills"),
        ("follow", "--local"),
        ("verify",),
        ("export", "x.csv"),
    ):
        result = cli("journal", *action, "--node", "nope")
        assert (result.code, result.out) == (1, "")
        assert "has nothing of the node nope: name another node" in result.err
    assert not Path("x.csv").exists()


def test_without_a_journal(cli: Any, alone: Path) -> None:
    """Where there is no journal the sentence says where it was looked for."""
    for action in (("list", "--local"), ("follow", "--local"), ("verify",), ("export", "x.csv")):
        result = cli("journal", *action)
        assert result.code == 1
        assert f"there is no journal at {alone}/data/sigma9.db" in result.err
    assert not (alone / "data").exists()


def test_the_configuration_names_it(cli: Any, path: Path, alone: Path) -> None:
    """--config, --set, --data-dir and --node say which journal is meant."""
    path.rename(alone / "other.db")
    Path(f"{path}.main.head").rename(alone / "other.db.main.head")
    (alone / "other.yaml").write_text(f"database: {{path: {alone / 'other.db'}}}\n")
    assert cli("journal", "verify", "--config", "other.yaml").code == 0
    assert cli("journal", "verify", "--set", f"database.path={alone / 'other.db'}").code == 0
    result = cli("journal", "verify", "--config", "other.yaml", "--node", "second")
    assert (result.code, "has nothing of the node second" in result.err) == (1, True)
    (alone / "moved").mkdir()
    (alone / "other.db").rename(alone / "moved" / "sigma9.db")
    assert cli("journal", "verify", "--data-dir", "moved").code == 0
    assert cli("journal", "list", "--data-dir", "moved", "--local").code == 0


def test_follow(cli: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Following prints what is written beside it, filtered, until Ctrl-C."""
    turns = iter(range(3))

    def pause(_: float) -> None:
        turn = next(turns)
        if turn == 2:
            raise KeyboardInterrupt
        with writing(path) as journal:
            journal.write(traded(("IBM", "AAPL")[turn], "1", "10")).result()

    monkeypatch.setattr(time, "sleep", pause)
    result = cli("journal", "follow", "--local", "--symbol", "IBM", "--format", "json")
    assert result.code == 130
    assert [json.loads(line)["seq"] for line in result.out.splitlines()] == [6, 7]


# --- export ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["events", "orders", "fills", "commands", "notes"])
def test_export(cli: Any, path: Path, alone: Path, table: str) -> None:
    """Each table comes out whole as CSV and as Parquet with the same values, in files of one's own."""
    import polars as pl

    for name in (f"{table}.csv", f"{table}.parquet"):
        result = cli("journal", "export", name, "--table", table)
        assert (result.code, result.out) == (0, "")
        assert (alone / name).stat().st_mode & 0o777 == 0o600
    with (alone / f"{table}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    frame = pl.read_parquet(alone / f"{table}.parquet")
    assert rows
    assert frame.columns == list(rows[0])
    for row, other in zip(rows, frame.rows(named=True), strict=True):
        for column, value in row.items():
            there = other[column]
            if isinstance(there, datetime):
                assert datetime.fromisoformat(value) == there
            elif isinstance(there, Decimal):
                assert Decimal(value) == there
            elif isinstance(there, bool):
                assert value == str(there).lower()
            else:
                assert value == ("" if there is None else str(there))
    assert {each.name for each in alone.iterdir()} == {"data", f"{table}.csv", f"{table}.parquet"}


def test_amounts_keep_every_digit(cli: Any, path: Path, alone: Path) -> None:
    """A fill's quantity comes out to the last digit; what no decimal of Parquet can hold stays text."""
    import polars as pl

    cli("journal", "export", "fills.parquet", "--table", "fills")
    frame = pl.read_parquet("fills.parquet")
    assert frame["quantity"].to_list() == [Decimal(100), Decimal("0.123456789012345678")]
    assert frame.schema["quantity"] == pl.Decimal(38, 18)
    place = FilePlace(path)
    place.forge(f"UPDATE fills SET quantity = '0.{'1' * 50}' WHERE symbol = 'MSFT'")  # noqa: S608
    cli("journal", "export", "fills.parquet", "--table", "fills", "--replace")
    assert pl.read_parquet("fills.parquet")["quantity"].to_list() == ["100", f"0.{'1' * 50}"]


def test_export_filters(cli: Any, path: Path, alone: Path) -> None:
    """An export takes the same filters as a list."""
    result = cli("journal", "export", "out", "--format", "csv", "--symbol", "MSFT", "--after", "3")
    assert result.code == 0
    assert "out: 1 events" in result.err
    assert len((alone / "out").read_text().splitlines()) == 2


def test_secrets_do_not_leave(cli: Any, path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the configuration knows as secret, and what is called one, is masked in files and lists."""
    monkeypatch.setenv("SIGMA9_POLYGON__API_KEY", "loss_limit")  # it stands in a note, of all places
    for table in ("commands", "notes"):
        cli("journal", "export", f"{table}.csv", "--table", table)
        listed = cli("journal", "list", "--table", table, "--format", "json").out
        for text in ((alone / f"{table}.csv").read_text(), listed):
            for secret in ("abc123", 'q\\"x', "eyJhbGci", "loss_limit"):
                assert secret not in text
            assert "********" in text


def test_an_export_that_fails_leaves_nothing(cli: Any, path: Path, alone: Path) -> None:
    """A file that is there is not overwritten unasked, and one that can't be written is no half a file."""
    (alone / "out.csv").write_text("mine")
    result = cli("journal", "export", "out.csv")
    assert (result.code, (alone / "out.csv").read_text()) == (1, "mine")
    assert "out.csv exists already: name another file, or say --replace" in result.err
    assert cli("journal", "export", "out.csv", "--replace").code == 0
    assert "seq" in (alone / "out.csv").read_text()
    assert "can't be written" in cli("journal", "export", "no/such/folder.csv").err
    assert cli("journal", "export", "what").code == 2

    def rows() -> Iterator[dict[str, Any]]:
        yield {"n": 1}
        raise OSError(28, "No space left on device")

    before = sorted(alone.iterdir())
    with pytest.raises(DataError, match="No space left on device"):
        export(rows(), {"n": "number"}, alone / "half.csv", "csv")
    assert sorted(alone.iterdir()) == before


# --- verify ---------------------------------------------------------------------------------------------------


def test_verify(cli: Any, path: Path) -> None:
    """A journal that agrees is told with its positions and cash, and the exit code is 0."""
    result = cli("journal", "verify")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "everything agrees"
    assert "looked at 5 events, 2 orders, 2 fills, 1 commands, 1 notes, up to event 5" in result.out
    assert "AAPL    100" in result.out
    body = cli("journal", "verify", "--format", "json").json
    assert (body["agrees"], [row["symbol"] for row in body["positions"]]) == (True, ["AAPL", "MSFT"])
    assert body["positions"][1]["quantity"] == "0.123456789012345678"


def test_verify_names_what_disagrees(cli: Any, path: Path) -> None:
    """Disagreements are listed one a line, and the exit code is 1; also where a start would refuse the journal."""
    FilePlace(path).forge(
        "UPDATE fills SET quantity = '7' WHERE symbol = 'AAPL'", "DELETE FROM events WHERE seq = 5"
    )
    result = cli("journal", "verify")
    assert result.code == 1
    assert "disagreements:" in result.out
    assert any("has the quantity 100, its row" in line for line in result.out.splitlines())
    assert "the mark beside the journal says that event 5 was written, and the newest is 4" in result.out
    body = cli("journal", "verify", "--format", "json")
    assert (body.code, body.json["agrees"]) == (1, False)


def running(alone: Path, web: Any, positions: dict[str, float], journal_id: str) -> DataDir:
    """Let a server run on the data folder that shows these positions."""
    data = DataDir(alone / "data")
    data.lock("main")
    data.announce(web.url, "main", None)
    data.write_private(ADMIN_FILE, "the-right-token")
    web.says("/api/status", {"journal_id": journal_id})
    shown = [{"symbol": name, "quantity": quantity, "foreign": False} for name, quantity in positions.items()]
    foreign = {"symbol": "TSLA", "quantity": 5, "foreign": True}
    web.says("/api/positions", {"count": 9, "positions": [*shown, foreign]})
    return data


@pytest.mark.parametrize(
    ("quantity", "said"),
    [
        (100.0, "note: the running server shows the same positions"),
        (99.0, "the server shows 99 of AAPL, the fills make 100"),
        (None, "the server shows 0 of AAPL, the fills make 100"),
    ],
)
def test_verify_compares_with_the_running_server(
    cli: Any, web: Any, path: Path, quantity: float | None, said: str
) -> None:
    """Where the server runs on this machine, the positions that it shows are those that the fills make."""
    alone = path.parents[1]
    journal_id = cli("journal", "verify", "--format", "json").json["journal_id"]
    positions = {"MSFT": 0.123456789012345678} | ({} if quantity is None else {"AAPL": quantity})
    with running(alone, web, positions, journal_id):
        result = cli("journal", "verify")
    assert result.code == (0 if quantity == 100 else 1)
    assert said in result.out


def test_verify_beside_a_server_of_another_journal(cli: Any, web: Any, path: Path, alone: Path) -> None:
    """A server on the same folder that writes another journal is not compared."""
    with running(alone, web, {}, "another"):
        result = cli("journal", "verify")
    assert result.code == 0
    assert "note: the server on this data folder writes another journal (another)" in result.out


def test_verify_beside_a_server_that_does_not_answer(cli: Any, web: Any, path: Path, alone: Path) -> None:
    """A server that can't be asked is told of: its positions were not compared."""
    journal_id = cli("journal", "verify", "--format", "json").json["journal_id"]
    with running(alone, web, {}, journal_id):
        web.says("/api/positions", {"error": {"code": "internal", "message": "no", "details": {}}}, 500)
        result = cli("journal", "verify")
    assert result.code == 0
    assert "note: the positions of the running server were not compared: no" in result.out


def test_verify_beside_a_position_that_comes_and_goes(
    cli: Any, web: Any, path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position that is closed between two looks, before the server has shown it, is no difference."""
    journal_id = cli("journal", "verify", "--format", "json").json["journal_id"]
    with writing(path) as journal, running(alone, web, {"MSFT": 0.123456789012345678, "AAPL": 100}, journal_id):
        journal.write(traded("NVDA", "7", "10")).result()
        sells = iter([traded("NVDA", "7", "11", side="sell")])
        monkeypatch.setattr(time, "sleep", lambda _: [journal.write(sell).result() for sell in sells])
        result = cli("journal", "verify")
    assert result.code == 0, result.out
    assert "note: the running server shows the same positions" in result.out


def test_verify_while_positions_move(
    cli: Any, web: Any, path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that never stand still during an audit are not compared, and that is said."""
    journal_id = cli("journal", "verify", "--format", "json").json["journal_id"]
    quantities = iter(range(100))
    with running(alone, web, {}, journal_id):

        def move(_: float) -> None:
            shown = [{"symbol": "AAPL", "quantity": next(quantities), "foreign": False}]
            web.says("/api/positions", {"positions": shown})

        monkeypatch.setattr(time, "sleep", move)
        result = cli("journal", "verify")
    assert result.code == 0
    assert "note: the server's positions moved all the while" in result.out

"""What `sigma9 journal` does with the database itself, with a server beside it or without one."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sigma9_core.cli.client import Client
    from sigma9_core.export import Form, Kind
    from sigma9_core.money.audit import Audit
    from sigma9_core.money.history import History
    from sigma9_core.money.snapshot import Wanted

Row = Mapping[str, Any]

TABLES: Final = ("events", "orders", "fills", "commands", "notes")
SHOWN: Final[Mapping[str, Sequence[str]]] = {
    "orders": ("n", "ts", "order_id", "approved", "request", "source", "cause"),
    "fills": (
        *("n", "ts", "symbol", "side", "quantity", "price", "commission"),
        *("order_id", "exec_id", "strategy", "source", "cause", "recovered"),
    ),
    "commands": ("n", "ts", "stage", "command", "id", "source", "actor", "cause", "body"),
    "notes": ("n", "ts", "kind", "symbol", "source", "cause", "body"),
}
"""What a table shows of the rows; JSON and CSV have all of them."""
KINDS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(("seq", "n"), "number"),
    **dict.fromkeys(("ts", "wall"), "moment"),
    **dict.fromkeys(("approved", "recovered"), "flag"),
    **dict.fromkeys(("quantity", "price", "commission"), "amount"),
}
LOOKS: Final = 10
"""How often the running server is looked at, until what it shows is what the fills make."""
STANDS: Final = 5
"""Looks in a row, with nothing moving, after which a difference is one: what is shown lags what is written."""
LAG: Final = 0.3
"""Seconds between two looks."""


@contextmanager
def opened(args: argparse.Namespace, *, checked: bool = True) -> Iterator[tuple[History, Path]]:
    """Open the journal that the configuration names, for reading; its secrets are masked from here on.

    Gives the journal and the data folder.
    """
    from sigma9_core.configfile import load_settings, secrets_of
    from sigma9_core.log import redact
    from sigma9_core.money.history import History
    from sigma9_core.money.journal import journal_url

    overrides = [*args.overrides]
    if args.data_dir is not None:
        path = str(args.data_dir.expanduser().absolute()).replace("${", "$${")
        overrides.append(f"data_dir={json.dumps(path)}")
    settings = load_settings(args.config, overrides)
    for secret in secrets_of(settings):
        redact(secret)
    history = History(journal_url(settings.database), args.node or settings.node)
    if checked:
        history.open()
    else:
        history.open_unchecked()
    try:
        yield history, settings.data_dir
    finally:
        history.close()


def show(args: argparse.Namespace) -> int:
    """List rows of a table."""
    table = table_of(args)
    from sigma9_core.cli.eventline import HEADER, event_line
    from sigma9_core.cli.output import show_rows
    from sigma9_core.cli.times import MARKET, WALL
    from sigma9_core.export import masked

    with opened(args) as (history, _), history.snapshot() as rows:
        newest = args.limit if args.after is None else None
        found = rows.rows(table, wanted(args), newest=newest)
        listed = [dict(row) for _, row in zip(range(args.limit), found, strict=False)]
    if table == "events":
        events = [json.loads(masked(row["body"])) for row in listed]
        if args.format == "table":
            print("\n".join([HEADER, *map(event_line, events)]) if events else "no events")
        elif args.format == "csv":
            columns = (
                "seq",
                "ts",
                "wall",
                "type",
                "symbol",
                "source",
                "cause",
                "order_id",
                "event",
                "trade_id",
                "body",
            )
            show_rows(({**row, "body": masked(row["body"])} for row in listed), columns, "csv")
        else:
            more = [{"cause": row["cause"], "wall": row["wall"]} for row in listed]
            show_rows([event | extra for event, extra in zip(events, more, strict=True)], (), args.format)
        return 0
    clean = [
        {name: masked(value) if isinstance(value, str) else value for name, value in row.items()} for row in listed
    ]
    fields = [*listed[0]] if listed else [*SHOWN[table]]
    times = {"ts": WALL if table == "commands" else MARKET}
    show_rows(clean, SHOWN[table], args.format, empty=f"no {table}", fields=fields, times=times)
    return 0


def follow(args: argparse.Namespace, pause: float) -> int:
    """Print events as they are written, until Ctrl-C."""
    from dataclasses import replace

    from sigma9_core.cli.eventline import HEADER, event_line
    from sigma9_core.export import masked

    with opened(args) as (history, _):
        if args.format != "json":
            print(HEADER, flush=True)
        after = args.after
        while True:
            with history.snapshot() as rows:
                if after is None:
                    after = rows.head.seq
                for row in rows.rows("events", replace(wanted(args), after=after)):
                    event = json.loads(masked(row["body"]))
                    more = {"cause": row["cause"], "wall": row["wall"]}
                    print(
                        json.dumps(event | more, ensure_ascii=False)
                        if args.format == "json"
                        else event_line(event),
                        flush=True,
                    )
                after = max(after, rows.head.seq)
            time.sleep(pause)


def write(args: argparse.Namespace) -> int:
    """Export a table."""
    from sigma9_core.export import export

    forms: Mapping[str, Form] = {".parquet": "parquet", ".csv": "csv"}
    form: Form | None = args.format or forms.get(args.out.suffix.lower())
    if form is None:
        print(f"sigma9: {args.out}: say --format csv or --format parquet", file=sys.stderr)
        return 2
    table = table_of(args)
    with opened(args) as (history, _), history.snapshot() as rows:
        columns: dict[str, Kind] = {name: KINDS.get(name, "text") for name in rows.columns(table)}
        count = export(rows.rows(table, wanted(args)), columns, args.out, form, replace=args.replace)
    print(f"{args.out}: {count} {table}", file=sys.stderr)
    return 0


def table_of(args: argparse.Namespace) -> str:
    """Tell which table is wanted: the one that was named, else the one that alone has what was asked for."""
    if args.table is not None:
        return str(args.table)
    if args.kind is not None:
        return "notes"
    return "commands" if args.command_name is not None or args.actor is not None else "events"


def wanted(args: argparse.Namespace) -> Wanted:
    """Read the filters."""
    from sigma9_core.money.snapshot import Wanted

    return Wanted(
        types=None if args.type is None else frozenset((args.type,)),
        symbol=args.symbol,
        order_id=args.order,
        strategy=args.strategy,
        source=args.source,
        cause=args.cause,
        kind=args.kind,
        command=args.command_name,
        actor=args.actor,
        since=args.since,
        until=args.until,
        after=args.after,
    )


# --- verify ---------------------------------------------------------------------------------------------------


def verify(args: argparse.Namespace) -> int:
    """Audit the journal; 0 where everything agrees, 1 where not."""
    from sigma9_core.cli.client import Client
    from sigma9_core.errors import Sigma9Error
    from sigma9_core.money.audit import audit

    with opened(args, checked=False) as (history, data_dir):
        client = _server(data_dir)
        at = _moved(history)
        found = audit(history, marks=data_dir)
        if isinstance(client, Client):
            try:
                found = _compared(client, history, found, at, lambda: audit(history, marks=data_dir))
            except Sigma9Error as error:
                found.remarks.append(f"the positions of the running server were not compared: {error}")
    if args.format == "json":
        print(json.dumps(found.body(), indent=2, ensure_ascii=False))
    else:
        _tell(found)
    return 0 if found.agrees else 1


def _server(data_dir: Path) -> Client | None:
    """Find the server that runs on a data folder; None where there is none, or it serves no REST."""
    from sigma9_core.cli.client import Client, find_target
    from sigma9_core.datadir import DataDir
    from sigma9_core.errors import Sigma9Error

    if DataDir(data_dir).server() is None:
        return None
    asked = argparse.Namespace(url=None, token=None, client_config=None, data_dir=data_dir)
    try:
        return Client(find_target(asked, {}))
    except Sigma9Error:
        return None


def _compared(client: Client, history: History, found: Audit, at: int, again: Callable[[], Audit]) -> Audit:
    """Compare what the running server holds with what the fills make, at a moment when neither moves.

    `at` is the newest row that had moved a position before the journal was looked at. A position may have come and
    gone between two looks at the server, so the rows are what tells that nothing moved.
    """
    journal_id = client.get("status")["journal_id"]
    if journal_id != found.journal_id:
        found.remarks.append(f"the server on this data folder writes another journal ({journal_id})")
        return found
    stood, shown = 0, _positions(client)
    for _ in range(LOOKS):
        moved = _moved(history)
        if moved != at:
            stood, at, found = 0, moved, again()
        time.sleep(LAG)
        before, shown = shown, _positions(client)
        if shown != before or _moved(history) != at:
            stood = 0
            continue
        differences = _differences(shown, {row["symbol"]: row["quantity"] for row in found.positions})
        if not differences:
            found.remarks.append("the running server shows the same positions")
            return found
        stood += 1
        if stood == STANDS:
            for sentence in differences:
                found.tell(sentence)
            return found
    found.remarks.append("the server's positions moved all the while: they were not compared with the fills")
    return found


def _moved(history: History) -> int:
    from sigma9_core.money.books import NOTES

    return history.newest(NOTES)


def _positions(client: Client) -> dict[str, float]:
    return {one["symbol"]: one["quantity"] for one in client.get("positions")["positions"] if not one["foreign"]}


def _differences(theirs: Mapping[str, float], ours: Mapping[str, Any]) -> list[str]:
    told = []
    for symbol in sorted({*ours, *theirs}):
        here, there = ours.get(symbol, 0), theirs.get(symbol, 0)
        if not isclose(float(here), there, rel_tol=1e-9):
            told.append(f"the server shows {there:.10g} of {symbol}, the fills make {_text(here)}")
    return told


def _tell(found: Audit) -> None:
    from sigma9_core.cli.output import show_rows

    counts = ", ".join(f"{found.rows[name]:,} {name}" for name in TABLES if found.rows[name])
    print(f"journal {found.where}, node {found.node}, id {found.journal_id}")
    print(f"looked at {counts or 'nothing: it is empty'}, up to event {found.last_seq}, in {found.seconds:.1f} s")
    if found.positions:
        print("positions by the fills:")
        show_rows(
            [{name: _text(value) for name, value in row.items()} for row in found.positions],
            ("symbol", "quantity", "average_cost", "strategy"),
            "table",
        )
    else:
        print("positions by the fills: none")
    if found.cash is not None:
        print(f"cash {found.cash:,.2f}, realised result {found.realized:,.2f}, fees {found.fees:,.2f}")
    for remark in found.remarks:
        print(f"note: {remark}")
    if found.agrees:
        print("everything agrees")
        return
    print(f"{found.count:,} disagreement{'s' if found.count > 1 else ''}:")
    for fault in found.faults:
        print(f"  {fault}")
    if found.count > len(found.faults):
        print(f"  and {found.count - len(found.faults):,} more")


def _text(value: Any) -> Any:
    from decimal import Decimal

    if not isinstance(value, Decimal):
        return value
    text = f"{value:.8f}".rstrip("0").rstrip(".")
    return text or "0"

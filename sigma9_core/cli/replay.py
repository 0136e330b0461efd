"""`sigma9 replay`: the same engine, driven by bars from files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.cli.frame import STARTED
from sigma9_core.cli.options import add_format, add_server_file

if TYPE_CHECKING:
    from sigma9_core.config import Settings
    from sigma9_core.contracts import Feed
    from sigma9_core.engine import Engine

MARK: Final = "this-is-a-replay"
"""The file that marks a data folder of replays: only such a folder is emptied."""
PROGRESS_EVERY: Final = 0.1


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `replay`."""
    parser = subparsers.add_parser(
        "replay",
        help="drive the engine with bars from files",
        description="Replay intraday bars (Parquet or CSV) through triggers, risk rules, paper broker, exits. "
        "Without --daily every symbol of the files is watched; with it the scan decides, as it does live.",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        required=True,
        type=Path,
        metavar="FILE",
        help="files of intraday bars",
    )
    parser.add_argument(
        "--daily", nargs="+", action="extend", default=[], type=Path, metavar="FILE", help="daily bars to scan"
    )
    parser.add_argument(
        "--stamp", choices=("start", "end"), default="start", help="what a bar's time is (default: its start)"
    )
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="length of a bar (default: 60)")
    parser.add_argument("--speed", type=_speed, default="max", metavar="N", help="60 is 60 times; default: max")
    parser.add_argument("--from", dest="first", type=_moment, metavar="T", help="a date, or a time in New York")
    parser.add_argument("--to", dest="last", type=_moment, metavar="T", help="a date (counted whole), or a time")
    parser.add_argument(
        "--symbols", nargs="+", action="extend", default=[], metavar="SYMBOL", help="only these symbols"
    )
    parser.add_argument(
        "--no-publish", action="store_true", help="no MQTT, no web server: only the trades and the summary"
    )
    parser.add_argument("--verbose", action="store_true", help="show the log lines as a server does")
    add_server_file(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Replay the files and print the summary on stdout; everything else goes to stderr."""
    from sigma9_core.configfile import load_settings
    from sigma9_core.log import Logging
    from sigma9_core.serve import Process

    logs = Logging(background=True)
    logs.start()
    try:
        settings = _settings(load_settings(args.config, args.overrides), args)
        if not args.verbose:
            import logging

            logging.getLogger("sigma9").setLevel(logging.WARNING)
        _fresh(settings.data_dir)

        async def work(engine: Engine) -> int:
            await _follow(engine)
            from sigma9_core.cli.replay_summary import show, summary

            show(await engine.money.call(summary(engine)), args.format)
            return 0

        watch: Callable[[Feed], Sequence[str]] | None = None if args.daily else _all_symbols
        return Process(settings, logs, STARTED, work=work, services=not args.no_publish, watch=watch).run()
    finally:
        logs.stop()


def _settings(base: Settings, args: argparse.Namespace) -> Settings:
    """Turn the server's settings into those of a replay: a node and a data folder of its own."""
    from sigma9_core.config import Settings

    feed = {
        **base.plugins.settings.get("replay", {}),
        "files": [str(path) for path in args.data],
        "daily_files": [str(path) for path in args.daily],
        "stamp": args.stamp,
        "seconds": args.seconds,
        "speed": args.speed,
        "from": args.first,
        "to": args.last,
        "symbols": args.symbols,
    }
    folder = base.data_dir / "replay"
    body: dict[str, Any] = {name: getattr(base, name) for name in Settings.model_fields}
    body |= {
        "node": "replay",
        "feed": "replay",
        "broker": "paper",
        "data_dir": folder,
        "plugins": base.plugins.model_copy(update={"settings": {**base.plugins.settings, "replay": feed}}),
        "database": base.database.model_copy(update={"type": "sqlite", "path": folder / "sigma9.db", "url": None}),
        "engine": base.engine.model_copy(update={"auto_start": True}),
        "scheduler": base.scheduler.model_copy(
            update={
                "market_open_scan": bool(args.daily) and base.scheduler.market_open_scan,
                "daily_data_update": False,
            }
        ),
        "server": base.server.model_copy(update={"port": _port(base.server.host, base.server.port)}),
    }
    return Settings.model_validate(body)


def _port(host: str, wanted: int) -> int:
    """Give the configured port, or 0 (any free one) where another server has it."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError:
            return 0
    return wanted


def _fresh(folder: Path) -> None:
    """Empty the data folder of the last replay: each replay begins anew, so that its trades can be compared."""
    import shutil

    from sigma9_core.datadir import DataDir, DataDirLocked
    from sigma9_core.errors import StateError

    data = DataDir(folder)
    holder = data.holder()
    if holder is not None:
        raise DataDirLocked(folder, holder)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise StateError(f"{folder} is not of a replay, so it is not emptied: move it away")
        kept = {path.name: path.read_bytes() for path in folder.glob("calendar-*.json")}
        shutil.rmtree(folder)
        data.make()
        for name, content in kept.items():
            (folder / name).write_bytes(content)
    data.make()
    (folder / MARK).write_text("sigma9 replay empties this folder at each start\n")


def _all_symbols(feed: Feed) -> Sequence[str]:
    symbols: Sequence[str] = getattr(feed, "symbols", ())
    return symbols


async def _follow(engine: Engine) -> None:
    """Wait for the end of the data, with a progress bar on a terminal."""
    import asyncio

    finished = asyncio.ensure_future(engine.finished())
    if not sys.stderr.isatty():
        await finished
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replay", total=getattr(engine.feed, "total_slices", None))
        while not finished.done():
            progress.update(
                task,
                completed=getattr(engine.feed, "done_slices", 0),
                description=f"{engine.clock.now():%Y-%m-%d %H:%M}",
            )
            await asyncio.wait((finished,), timeout=PROGRESS_EVERY)
    await finished


def _speed(text: str) -> float | str:
    if text == "max":
        return text
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no speed: write a number such as 60, or max") from error
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("the speed must be above 0")
    return value


def _moment(text: str) -> date | datetime:
    try:
        return date.fromisoformat(text)
    except ValueError:
        try:
            return datetime.fromisoformat(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"'{text}' is no time: write 2019-02-11 or 2019-02-11T10:00"
            ) from error

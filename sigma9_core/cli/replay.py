"""`sigma9 replay`: the same engine, driven by bars from files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.cli.frame import STARTED
from sigma9_core.cli.options import add_format, add_own_data_dir, add_server_file

if TYPE_CHECKING:
    from sigma9_core.cli.replay_progress import LogStream
    from sigma9_core.config import Settings
    from sigma9_core.contracts import Feed
    from sigma9_core.engine import Engine

MARK: Final = "this-is-a-replay"
"""The file that marks a data folder of replays: only such a folder is emptied."""


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
    add_own_data_dir(parser)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Replay the files and print the summary on stdout; everything else goes to stderr."""
    from sigma9_core.cli.replay_progress import LogStream
    from sigma9_core.log import Logging
    from sigma9_core.plugincheck import read_checked
    from sigma9_core.serve import FORCED, Process

    stream = LogStream(sys.stderr)
    logs = Logging(background=True, stream=stream.as_text())
    logs.start()
    try:
        settings = _settings(read_checked(args.config, args.overrides).settings, args)
        if not args.verbose:
            import logging

            logging.getLogger("sigma9").setLevel(logging.WARNING)
        _fresh(settings.data_dir)

        began = False

        async def work(engine: Engine) -> int:
            nonlocal began
            began = True
            return await _replay(engine, args, stream)

        def check(engine: Engine) -> None:
            for warning in _warnings(engine, args) if args.daily else ():
                _say(warning)

        watch: Callable[[Feed], Sequence[str]] | None = None if args.daily else _all_symbols
        process = Process(
            settings, logs, STARTED, work=work, services=not args.no_publish, watch=watch, check=check
        )
        code = process.run()
        if code == FORCED and not began:
            _say("interrupted before the first bar: nothing ran")
        return code
    finally:
        logs.stop()


async def _replay(engine: Engine, args: argparse.Namespace, stream: LogStream) -> int:
    """Follow the replay to its end, or to Ctrl-C, and print the summary of what ran."""
    import asyncio

    from sigma9_core.cli.replay_progress import follow
    from sigma9_core.cli.replay_summary import show, summary
    from sigma9_core.datadir import DataDir
    from sigma9_core.serve import FORCED, clocks, where_it_is

    if not args.no_publish:
        for line in (
            "replay: published here while it runs",
            *where_it_is(engine, DataDir(engine.settings.data_dir)),
        ):
            print(line, file=sys.stderr)
    if args.verbose:
        _say(clocks(engine))
    interrupted = False
    try:
        await follow(engine, stream)
    except asyncio.CancelledError:
        interrupted = True
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()  # what follows has to be carried out all the same
        await engine.market.stop()
        done, total = (getattr(engine.feed, name, "?") for name in ("done_slices", "total_slices"))
        _say(f"interrupted after {done} of {total} slices: this is the summary of what ran so far")
    show(await engine.money.call(summary(engine, interrupted=interrupted)), args.format)
    return FORCED if interrupted else 0


def _warnings(engine: Engine, args: argparse.Namespace) -> list[str]:
    """Look whether the daily bars are enough for the scans; raise DataError where they are not."""
    from sigma9_core.calendar import load_calendar
    from sigma9_core.cli.replay_check import DailyCheck, check_daily

    lookbacks = {name: each.scanner.lookback for name, each in engine.runner.strategies.items()}
    calendar = load_calendar(engine.calendar.name, engine.settings.data_dir)
    return check_daily(
        DailyCheck(calendar, engine.settings.scheduler, lookbacks),
        daily=args.daily,
        data=args.data,
        stamp=args.stamp,
        seconds=args.seconds,
        first=getattr(engine.feed, "starts_at", engine.clock.now()),
        to=args.last,
        traded=frozenset(_all_symbols(engine.feed)),
    )


def _say(text: str) -> None:
    print(f"sigma9: {text}", file=sys.stderr, flush=True)


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

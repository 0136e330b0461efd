"""The process around an engine: the lock on its data, signals, the kill's door, the banner, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from sigma9_core import __version__
from sigma9_core.clock import monotonic, wall_now
from sigma9_core.config import Settings
from sigma9_core.configfile import Loaded, secrets_of
from sigma9_core.contracts import Feed
from sigma9_core.datadir import KILL_SOCKET, DataDir
from sigma9_core.engine import Engine
from sigma9_core.log import ROOT, Logging, redact, watch_loop
from sigma9_core.money.door import KillDoor
from sigma9_core.plugincheck import check_plugins, missing_rules
from sigma9_core.plugins import PluginHost
from sigma9_core.tokens import ADMIN_FILE, TokenBook

log = logging.getLogger("sigma9.server")

HEARD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
FORCED: Final = 130
"""Exit code of work that was cut off, and of a second Ctrl-C, which does not wait for the orderly end."""
LABEL: Final = 20
"""Characters that the labels of the banner have."""

Work = Callable[[Engine], Awaitable[int]]


def run_server(loaded: Loaded, started: float, logs: Logging) -> int:
    """Run the server until Ctrl-C or SIGTERM; `started` is when the process began (monotonic seconds).

    Raise ConfigError or another Sigma9Error where the start is refused.
    """
    process = Process(loaded.settings, logs, started, locate=loaded.locate)
    code = process.run()
    logs.stop()  # what is still on its way to stderr comes before the last word
    sys.stdout.write(f"{process.last_word}\n")
    sys.stdout.flush()
    return code


class Process:
    """Runs one engine until it is asked to end, or until its work is done."""

    def __init__(
        self,
        settings: Settings,
        logs: Logging,
        started: float,
        *,
        work: Work | None = None,
        locate: Callable[[str], str] | None = None,
        services: bool = True,
        watch: Callable[[Feed], Sequence[str]] | None = None,
        check: Callable[[Engine], None] | None = None,
    ) -> None:
        """Store; `check` may look at the engine before anything is started, and raise what is wrong with it."""
        self.settings = settings
        self.last_word = "Sigma9 has stopped"
        """How it ended, in one sentence, once `run` is done."""
        self._logs = logs
        self._started = started
        self._work = work or self._serve
        self._code_when_asked = 0 if work is None else FORCED
        self._services = services
        self._watch = watch
        self._check = check
        self._locate = locate
        self._data = DataDir(settings.data_dir)
        self._asked = 0
        self._end: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> int:
        """Lock the data, build the engine, run it, and give the exit code."""
        fixed = self.settings.auth.token
        for secret in secrets_of(self.settings):
            redact(secret)
        self._data.lock(self.settings.node)
        with self._data, _wakeup() as signals:
            tokens = TokenBook(self._data, fixed.get_secret_value() if fixed else None)
            tokens.start()
            if admin := tokens.admin():
                redact(admin)
            host = PluginHost(self.settings.plugins, locate=self._locate)
            check_plugins(host, self.settings, self._locate or (lambda _path: "configuration"))
            left_out = missing_rules(self.settings)
            if left_out:
                log.warning("risk: these built-in rules are not listed and do not run: %s", ", ".join(left_out))
            engine = Engine(
                self.settings,
                host=host,
                data_dir=self._data,
                tokens=tokens,
                services=self._services,
                watch=self._watch,
            )
            if self._check is not None:
                self._check(engine)
            return asyncio.run(self._main(engine, signals))

    async def _main(self, engine: Engine, signals: socket.socket) -> int:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        watch_loop(self._loop, "outer")
        self._logs.bridge(engine.publish_log)
        door = KillDoor(self._data.file(KILL_SOCKET), engine.kill, engine.specs, self._asked_to_end, signals)
        try:
            return await self._until_asked(self._start_and_work(engine, door))
        finally:
            with _errors() as errors:
                await engine.stop()
            self.last_word = last_word(engine, in_order=not errors.seen)

    async def _start_and_work(self, engine: Engine, door: KillDoor) -> int:
        try:
            await engine.start(door)
        except KeyboardInterrupt:  # polars makes it of a Ctrl-C that comes while it reads files for the start
            return self._code_when_asked
        # What stands by now stays; a collection that goes through all of it holds every thread up, a kill's too.
        gc.freeze()
        if engine.url is not None:
            self._data.announce(engine.url, self.settings.node, self.settings.server.tls.cert)
        return await self._work(engine)

    async def _until_asked(self, doing: Coroutine[Any, Any, int]) -> int:
        """Start and do the work, but end it when a signal asks for the end, also in the middle of the start."""
        if self._end is None:
            raise RuntimeError("the process is not running")
        work = asyncio.ensure_future(doing)
        end = asyncio.ensure_future(self._end.wait())
        await asyncio.wait((work, end), return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if work.done():
            return work.result()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return self._code_when_asked

    async def _serve(self, engine: Engine) -> int:
        show_banner(engine, self._data, monotonic() - self._started)
        await asyncio.Event().wait()
        return 0

    def _asked_to_end(self) -> None:
        """Take SIGINT or SIGTERM, on the doors' lane; a second one does not wait."""
        self._asked += 1
        if self._asked > 1:
            sys.stderr.write("ended at once: positions and orders stay as they are at the broker\n")
            os._exit(FORCED)
        log.info("stopping; press Ctrl-C again to leave at once")
        if self._loop is not None and self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)


def show_banner(engine: Engine, data: DataDir, seconds: float) -> None:
    """Print where everything is, on stdout: addresses, the token's place, and what to try."""
    settings = engine.settings
    what = f"{engine.clock.kind} market, {settings.broker} broker"
    lines = [
        f"Sigma9 {__version__}, node {settings.node}: {what}; up in {seconds:.1f} s",
        *where_it_is(engine, data),
        _aligned(f"Clocks  {clocks(engine)}"),
        _aligned(f"Stop everything  {program()} kill --data-dir {shlex.quote(str(data.path.absolute()))}"),
        _aligned("End the server  Ctrl-C: in order, without a kill"),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def where_it_is(engine: Engine, data: DataDir) -> list[str]:
    """List where it can be reached, and where the token is: what the services announced, aligned."""
    return [_aligned(line) for line in (*engine.banner, f"Token  {data.file(ADMIN_FILE)}")]


def clocks(engine: Engine) -> str:
    """Tell which clock and which zone the log lines have, and what time it is on the market."""
    offset = wall_now().astimezone().strftime("%z")
    wall = "UTC" if offset == "+0000" else f"UTC{offset[:3]}:{offset[3:5]}"
    if engine.clock.kind == "live":
        return f"log lines and market: wall time, {wall}"
    zone = engine.settings.scheduler.timezone
    now = engine.clock.now().astimezone(ZoneInfo(zone))
    return f"log lines: wall time, {wall}; market: {now:%Y-%m-%d %H:%M} {zone}, {engine.clock.kind}"


def program() -> str:
    """Give the `sigma9` program as it can be typed in any folder."""
    started, beside = Path(sys.argv[0]), Path(sys.executable).with_name("sigma9")
    for path in (started, beside):
        if path.name == "sigma9" and path.is_file():
            return shlex.quote(str(path.absolute()))
    return f"{shlex.quote(sys.executable)} -m sigma9_core"


def last_word(engine: Engine, *, in_order: bool) -> str:
    """Say that the server has stopped, and what it has left standing at the broker."""
    how = " in order" if in_order else ", but not everything ended in order (the log says what)"
    parts = [f"Sigma9 has stopped{how}"]
    positions, orders = engine.board.get("positions"), engine.board.get("orders")
    if positions is not None and orders is not None:
        left = [
            f"{body['count'] or 'no'} {noun}{'' if body['count'] == 1 else 's'}"
            for body, noun in ((positions, "position"), (orders, "open order"))
        ]
        parts.append(f"at the broker: {' and '.join(left)}")
    if engine.path.killswitch.latched:
        parts.append("the kill switch stays on")
    return "; ".join(parts)


def _aligned(line: str) -> str:
    """Indent a line of the banner; where it has a label, parted by two spaces or more, let all begin alike."""
    label, gap, rest = line.partition("  ")
    return f"  {label:<{LABEL}}{rest.strip()}" if gap else f"  {line}"


class _Errors(logging.Handler):
    """Notices whether an error was logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take note."""
        self.seen = True


@contextmanager
def _errors() -> Iterator[_Errors]:
    """Notice the errors that Sigma9's loggers tell."""
    logger, handler = logging.getLogger(ROOT), _Errors()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


@contextmanager
def _wakeup() -> Iterator[socket.socket]:
    """Let signals be read from a socket: the interpreter writes there at once, whatever the main thread does."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    handlers = {number: signal.signal(number, _heard) for number in HEARD}
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _heard(_number: int, _frame: object) -> None:
    """Do nothing: the number has gone to the wake-up socket, and the doors' lane reads it there."""

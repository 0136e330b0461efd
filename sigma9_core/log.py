"""Logging: readable lines on stderr, the same lines on the bus, and no secret in either."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import queue
import re
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TextIO
from urllib.parse import quote

from sigma9_core.clock import rfc3339

if TYPE_CHECKING:
    import asyncio

    from sigma9_core.events import LogLevel, LogLine

ROOT: Final = "sigma9"
"""Every logger of Sigma9 is below this one: `logging.getLogger("sigma9.engine")`."""
MASK: Final = "********"

_MOST_DEPTH: Final = 6
_SHORT: Final = 8
_LONGEST_MESSAGE: Final = 8_000
_WAITING_LINES: Final = 10_000
_COLOURS: Final[Mapping[int, str]] = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_PLAIN: Final = "\x1b[0m"
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CREDENTIAL: Final = re.compile(r"((?:\btoken=|\bBearer\s+|\bsigma9\.token\.))[^\s&\"',;]+", re.IGNORECASE)

# --- redaction ------------------------------------------------------------------------------------------------

_secrets: set[str] = set()
_pattern: re.Pattern[str] | None = None
_secrets_lock = threading.Lock()


def redact(secret: str) -> None:
    """Never let this secret appear in a log line again, in no common spelling of it; an empty one is ignored.

    A short one is masked where it stands alone: inside of words it would blacken half of every line.
    """
    global _pattern  # noqa: PLW0603 - one set of secrets for the process, as logging itself is
    if not secret:
        return
    spellings = {secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    with _secrets_lock:
        if spellings <= _secrets:
            return
        _secrets.update(spellings)
        longest_first = sorted(_secrets, key=len, reverse=True)
        _pattern = re.compile("|".join(map(_masking, longest_first)))


def _masking(secret: str) -> str:
    if len(secret) >= _SHORT:
        return re.escape(secret)
    return rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])"


def redacted(text: str) -> str:
    """Give the text with every known secret, and what follows `token=` or `Bearer`, masked."""
    pattern = _pattern
    if pattern is not None:
        text = pattern.sub(MASK, text)
    return _CREDENTIAL.sub(rf"\g<1>{MASK}", text)


class Redaction(logging.Filter):
    """Masks secrets in a record's message, exception and fields before a handler sees them."""

    _exceptions: Final = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record in place, and let it pass."""
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - arguments that don't fit the text are somebody else's mistake
            message = f"{record.msg} (its arguments don't fit: {error})"
        record.msg, record.args = redacted(message[:_LONGEST_MESSAGE]), None
        if record.exc_info and not record.exc_text:
            record.exc_text = self._exceptions.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redacted(record.exc_text)
        if record.stack_info:
            record.stack_info = redacted(record.stack_info)
        return True


# --- the console ----------------------------------------------------------------------------------------------


class ConsoleFormatter(logging.Formatter):
    """Writes `HH:MM:SS LEVEL    logger: message`, in local time, on a terminal with colours."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; further lines of it are indented, so that no message can pass for another one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix(f"{ROOT}.")
        lines = [f"{clock} {record.levelname:<8} {name}: {record.getMessage()}"]
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        lines += [part for part in (record.exc_text, record.stack_info) if part]
        text = _CONTROL.sub("?", "\n".join(lines)).replace("\n", "\n    ")
        colour = _COLOURS.get(record.levelno) if self._colours else None
        return f"{colour}{text}{_PLAIN}" if colour else text


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream, and stays quiet when nobody reads it any more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore a closed pipe or stream; report anything else as logging does."""
        if not isinstance(sys.exc_info()[1], ValueError | OSError):
            super().handleError(record)


class BackgroundHandler(ConsoleHandler):
    """Writes from a thread of its own: a terminal that stands still must not hold up the money lane."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="sigma9-log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        atexit.register(self.finish)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record over without waiting; where too many wait already it is counted and dropped."""
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def finish(self, timeout: float = 2.0) -> None:
        """Write what still waits, for at most `timeout` seconds, and end the thread."""
        atexit.unregister(self.finish)
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _write(self) -> None:
        while (record := self._lines.get()) is not None:
            super().emit(record)
            if self._dropped:
                lost, self._dropped = self._dropped, 0
                text = f"{lost} lines were lost here: the console stood still"
                super().emit(logging.LogRecord(f"{ROOT}.log", logging.WARNING, "", 0, text, None, None))


def wants_colours(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that shows colours (NO_COLOR and TERM=dumb say no)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Logging:
    """The process's logging, from `start` to `stop`; a server writes in the background."""

    def __init__(self, *, debug: bool = False, background: bool = False, stream: TextIO | None = None) -> None:
        self._debug = debug
        self._background = background
        self._stream = stream
        self._handler: logging.Handler | None = None
        self._bridges: list[LogBridge] = []
        self._before: list[Callable[[], None]] = []

    def start(self) -> None:
        """Write lines to stderr (or the stream given), and log warnings and uncaught exceptions as well."""
        if self._handler is not None:
            return
        stream = self._stream or sys.stderr
        handler = BackgroundHandler(stream) if self._background else ConsoleHandler(stream)
        if isinstance(handler, BackgroundHandler):
            handler.start()
        handler.setFormatter(ConsoleFormatter(colours=wants_colours(stream)))
        handler.addFilter(Redaction())
        self._handler = handler
        everything, ours = logging.getLogger(), logging.getLogger(ROOT)
        levels = everything.level, ours.level
        hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
        everything.addHandler(handler)
        everything.setLevel(logging.WARNING)  # libraries are chatty
        self.set_debug(on=self._debug)
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_thread
        sys.unraisablehook = _log_unraisable

        def undo() -> None:
            sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
            logging.captureWarnings(False)
            everything.setLevel(levels[0])
            ours.setLevel(levels[1])
            everything.removeHandler(handler)
            if isinstance(handler, BackgroundHandler):
                handler.finish()

        self._before.append(undo)

    def set_debug(self, *, on: bool) -> None:
        """Show debug lines of Sigma9, or only those from info on."""
        logging.getLogger(ROOT).setLevel(logging.DEBUG if on else logging.INFO)

    def bridge(self, publish: Callable[[LogLine], None]) -> LogBridge:
        """Send the lines of Sigma9's loggers to `publish` as well, until `stop`."""
        bridge = LogBridge(publish)
        logging.getLogger(ROOT).addHandler(bridge)
        self._bridges.append(bridge)
        return bridge

    def stop(self) -> None:
        """Put everything back as it was before `start`."""
        for bridge in self._bridges:
            logging.getLogger(ROOT).removeHandler(bridge)
        self._bridges.clear()
        while self._before:
            self._before.pop()()
        self._handler = None


def watch_loop(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """Log what nobody caught on an event loop; `name` says which one it is."""
    logger = logging.getLogger(f"{ROOT}.{name}")

    def log(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        task = context.get("task") or context.get("future")
        name_of = getattr(task, "get_name", None)  # a task has a name, a bare future has none
        where = f" in the task {name_of()}" if name_of is not None else ""
        logger.error("%s%s", context.get("message", "uncaught error"), where, exc_info=error)

    loop.set_exception_handler(log)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        logging.getLogger(f"{ROOT}.process").critical("uncaught error", exc_info=(kind, error, trace))


def _log_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = args.thread.name if args.thread is not None else "?"
    info = (args.exc_type, args.exc_value, args.exc_traceback)
    logging.getLogger(f"{ROOT}.thread").error("uncaught error in the thread %s", name, exc_info=info)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is None:
        return
    info = (args.exc_type, args.exc_value, args.exc_traceback)
    message = args.err_msg or "an error that nobody could be told of"
    logging.getLogger(f"{ROOT}.process").error("%s: %s", message, type(args.object).__name__, exc_info=info)


# --- the bus --------------------------------------------------------------------------------------------------


class LogBridge(logging.Handler):
    """Turns records of `sigma9.*` into LogLine events; `publish` must return at once.

    `logger.info("bought", extra={"fields": {"symbol": "AAPL"}})` fills the line's fields. A line that `publish`
    itself logs is not published again.
    """

    def __init__(self, publish: Callable[[LogLine], None]) -> None:
        super().__init__()
        self._publish = publish
        self._busy = threading.local()
        self.addFilter(Redaction())

    def emit(self, record: logging.LogRecord) -> None:
        """Publish one record; a failure is told on the console alone."""
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._publish(_line(record))
        except Exception:  # noqa: BLE001 - logging must never break what it reports on
            self.handleError(record)
        finally:
            self._busy.now = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say on the console that a line did not get through (the bridge is busy, so that it is not published)."""
        logging.getLogger(f"{ROOT}.log").exception("a log line of %s could not be published", record.name)


def _line(record: logging.LogRecord) -> LogLine:
    from sigma9_core.events import LogLine  # noqa: PLC0415 - the command line logs without loading the models

    given = getattr(record, "fields", None)
    fields = {str(key): _plain(value, 0) for key, value in given.items()} if isinstance(given, Mapping) else {}
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        fields.setdefault("exception", redacted(f"{type(error).__name__}: {error}"))
    message = _CONTROL.sub("?", record.getMessage())
    return LogLine(level=_level(record.levelno), logger=record.name, message=message, fields=fields)


def _level(number: int) -> LogLevel:
    if number >= logging.CRITICAL:
        return "critical"
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"


def _plain(value: Any, depth: int) -> Any:
    """Give a field as JSON can hold it, secrets masked."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _plain(float(value), depth) if value.is_finite() else None
    if isinstance(value, datetime):
        return rfc3339(value) if value.tzinfo else value.isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if depth < _MOST_DEPTH:
        if isinstance(value, Mapping):
            return {str(key): _plain(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(entry, depth + 1) for entry in value]
    return _CONTROL.sub("?", redacted(str(value)[:_LONGEST_MESSAGE]))

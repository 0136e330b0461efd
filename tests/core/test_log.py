"""Logging: readable lines, no secrets, the bridge to the bus, and nothing uncaught in silence."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core import log
from sigma9_core.events import LogLine
from sigma9_core.log import LogBridge, Logging, redact, redacted, wants_colours, watch_loop


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_pattern", None)


@pytest.fixture(name="console")
def _console() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs = Logging(stream=stream)
    logs.start()
    yield stream
    logs.stop()


@pytest.fixture(name="lines")
def _lines() -> Iterator[list[LogLine]]:
    lines: list[LogLine] = []
    logs = Logging(stream=io.StringIO())
    logs.start()
    logs.bridge(lines.append)
    yield lines
    logs.stop()


# --- the console ----------------------------------------------------------------------------------------------


def test_a_line(console: io.StringIO) -> None:
    """A line has the time, the level, the short name of the logger and the message."""
    logging.getLogger("sigma9.engine").info("bought %d of %s", 5, "AAPL")
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO     engine: bought 5 of AAPL\n", console.getvalue())


def test_levels() -> None:
    """Sigma9 speaks from info on, or from debug on; libraries from warnings on."""
    stream = io.StringIO()
    logs = Logging(stream=stream)
    logs.start()
    for name in ("sigma9.x", "library"):
        logging.getLogger(name).debug("debug of %s", name)
        logging.getLogger(name).info("info of %s", name)
        logging.getLogger(name).warning("warning of %s", name)
    logs.set_debug(on=True)
    logging.getLogger("sigma9.x").debug("now shown")
    logs.stop()
    found = [line.partition(": ")[2] for line in stream.getvalue().splitlines()]
    assert found == ["info of sigma9.x", "warning of sigma9.x", "warning of library", "now shown"]


def test_nobody_forges_a_line(console: io.StringIO) -> None:
    """A message with line breaks and control characters stays one line and its indented rest."""
    logging.getLogger("sigma9.x").warning("a\n12:00:00 INFO     kill: reset\r\x1b[2J\u2028b")
    lines = console.getvalue().splitlines()
    assert lines[1] == "    12:00:00 INFO     kill: reset??[2J?b"
    assert len(lines) == 2


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours are for terminals that want them."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    logs = Logging(stream=stream)
    logs.start()
    logging.getLogger("sigma9.x").error("red")
    logging.getLogger("sigma9.x").info("plain")
    logs.stop()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("\x1b[31m")
    assert first.endswith("\x1b[0m")
    assert "\x1b" not in second
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colours(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colours(Terminal())
    assert not wants_colours(io.StringIO())


def test_a_wrong_call_still_says_something(console: io.StringIO) -> None:
    """Arguments that don't fit the text cost neither the line nor the program."""
    logging.getLogger("sigma9.x").warning("%d of %s", "many")  # noqa: PLE1206 - that is the point
    assert "%d of %s (its arguments don't fit" in console.getvalue()


def test_stop_undoes_start() -> None:
    """After stop everything is as it was."""
    before = (
        logging.getLogger().handlers[:],
        logging.getLogger().level,
        logging.getLogger("sigma9").level,
        sys.excepthook,
        threading.excepthook,
        sys.unraisablehook,
        warnings.showwarning,
    )
    logs = Logging(stream=io.StringIO())
    logs.start()
    logs.start()
    logs.bridge(print)
    logs.stop()
    logs.stop()
    assert before == (
        logging.getLogger().handlers[:],
        logging.getLogger().level,
        logging.getLogger("sigma9").level,
        sys.excepthook,
        threading.excepthook,
        sys.unraisablehook,
        warnings.showwarning,
    )
    assert logging.getLogger("sigma9").handlers == []


def test_a_closed_pipe_is_quiet() -> None:
    """When nobody reads stderr any more, logging goes on in silence."""
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(os.fdopen(writer, "wb", buffering=0), write_through=True) as stream:
        logs = Logging(stream=stream)
        logs.start()
        logging.getLogger("sigma9.x").info("into nothing")
        logs.stop()


# --- the background -------------------------------------------------------------------------------------------


def test_background_writes_everything() -> None:
    """Lines written in the background arrive in order, all of them by the end of stop."""
    stream = io.StringIO()
    logs = Logging(background=True, stream=stream)
    logs.start()
    for number in range(500):
        logging.getLogger("sigma9.x").info("line %d", number)
    logs.stop()
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == [str(n) for n in range(500)]
    assert not [thread for thread in threading.enumerate() if thread.name == "sigma9-log"]


def test_a_terminal_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console that does not take lines holds nobody up; what does not fit is counted, and said later."""
    monkeypatch.setattr(log, "_WAITING_LINES", 10)
    release = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            release.wait(10)
            return super().write(text)

    stream = Stuck()
    logs = Logging(background=True, stream=stream)
    logs.start()
    began = time.monotonic()
    for number in range(100):
        logging.getLogger("sigma9.x").info("line %d", number)
    assert time.monotonic() - began < 1
    release.set()
    logs.stop()
    lost = re.search(r"(\d+) lines were lost", stream.getvalue())
    assert lost is not None
    assert stream.getvalue().count(" x: line ") + int(lost[1]) == 100


def test_the_last_lines_before_a_crash(tmp_path: Path) -> None:
    """What was logged before the process ends by an exception is written, and the exception as well."""
    code = (
        "import logging; from sigma9_core.log import Logging, redact\n"
        "Logging(background=True).start(); redact('a-long-secret')\n"
        "logging.getLogger('sigma9.x').info('last words')\nraise ValueError('bad: a-long-secret')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "INFO     x: last words" in done.stderr
    assert "CRITICAL process: uncaught error" in done.stderr
    assert "ValueError: bad: ********" in done.stderr
    assert "a-long-secret" not in done.stderr


# --- secrets --------------------------------------------------------------------------------------------------


def test_no_secret_in_a_line(console: io.StringIO) -> None:
    """A secret is masked in the message, its arguments, the exception, the stack and quoted spellings."""
    secret = 'p/ss "wörd"'
    redact(secret)
    logger = logging.getLogger("sigma9.x")
    logger.warning("plain %s", secret)
    logger.warning(secret)
    logger.warning("object %s, json %s, url ?x=p%%2Fss%%20%%22w%%C3%%B6rd%%22", [secret], json.dumps(secret))
    try:
        raise ValueError(secret)
    except ValueError:
        logger.exception("failed")
    text = console.getvalue()
    assert "ss" not in text.replace("pass", "").replace("ss/", "")
    assert text.count("********") >= 6


def test_tokens_that_nobody_registered() -> None:
    """What follows token=, Bearer or the sub-protocol's name is masked, known or not."""
    text = redacted("GET /ws/feed?token=abc&x=1 Authorization: Bearer abc.def-g, sigma9.token.abc end")
    assert "abc" not in text
    assert "x=1" in text
    assert text.endswith("end")


def test_short_secrets() -> None:
    """A short secret is masked where it stands alone and leaves words readable; an empty one masks nothing."""
    redact("")
    redact("cat")
    assert redacted("cat, concat 'cat'") == "********, concat '********'"


def test_one_secret_inside_another() -> None:
    """Of two secrets of which one begins the other the longer one is masked whole."""
    redact("abcdefgh")
    redact("abcdefgh-and-more")
    assert redacted("abcdefgh-and-more abcdefgh") == "******** ********"


@settings(deadline=None, max_examples=60)
@given(secret=st.text(min_size=8, max_size=30).filter(lambda text: "*" not in text), before=st.text(max_size=20))
def test_any_secret(secret: str, before: str) -> None:
    """No registered secret of useful length survives, wherever it stands."""
    redact(secret)
    assert secret not in redacted(before + secret + before)


# --- the bridge -----------------------------------------------------------------------------------------------


def test_lines_for_the_bus(lines: list[LogLine]) -> None:
    """A record becomes a LogLine with its level, logger, message and fields; other loggers stay outside."""
    logging.getLogger("sigma9.engine").warning("late by %d s", 3, extra={"fields": {"symbol": "AAPL"}})
    logging.getLogger("library").error("not ours")
    assert lines == [
        LogLine(level="warning", logger="sigma9.engine", message="late by 3 s", fields={"symbol": "AAPL"})
    ]


@pytest.mark.parametrize(
    ("number", "level"),
    [(10, "debug"), (20, "info"), (25, "info"), (30, "warning"), (45, "error"), (60, "critical")],
)
def test_levels_of_lines(lines: list[LogLine], number: int, level: str) -> None:
    """A level between two is told as the lower one."""
    logging.getLogger("sigma9").setLevel(1)
    logging.getLogger("sigma9.x").log(number, "x")
    assert lines[0].level == level


def test_fields_are_json(lines: list[LogLine]) -> None:
    """Fields are turned into what JSON can hold, without secrets; an exception becomes a field."""
    redact("secret-value")
    cycle: list[Any] = []
    cycle.append(cycle)
    fields = {
        "n": 1,
        "d": Decimal("1.5"),
        "nan": float("nan"),
        "big": Decimal("NaN"),
        "at": datetime(2026, 11, 20, tzinfo=UTC),
        "day": date(2026, 11, 20),
        "list": (1, {2}),
        "s": "secret-value",
        "o": object,
        5: {"x": None},
        "cycle": cycle,
    }
    try:
        raise RuntimeError("with secret-value")
    except RuntimeError:
        logging.getLogger("sigma9.x").exception("failed", extra={"fields": fields})
    found = json.loads(lines[0].model_dump_json())["fields"]
    assert found["d"] == 1.5
    assert found["nan"] is found["big"] is None
    assert found["at"] == "2026-11-20T00:00:00.000000Z"
    assert found["list"] == [1, [2]]
    assert found["s"] == "********"
    assert found["5"] == {"x": None}
    assert found["exception"] == "RuntimeError: with ********"


def test_fields_that_are_none(lines: list[LogLine]) -> None:
    """Whatever stands in `fields`, the line goes out."""
    logging.getLogger("sigma9.x").info("a", extra={"fields": None})
    logging.getLogger("sigma9.x").info("b", extra={"fields": "text"})
    assert [line.fields for line in lines] == [{}, {}]


def test_no_recursion() -> None:
    """A publisher that logs is not called with its own line, and one that raises costs the line alone."""
    seen: list[str] = []
    logger = logging.getLogger("sigma9.x")

    def publish(line: LogLine) -> None:
        seen.append(line.message)
        logger.info("published %s", line.message)
        raise RuntimeError("full")

    stream = io.StringIO()
    logs = Logging(stream=stream)
    logs.start()
    logs.bridge(publish)
    logger.info("first")
    logger.info("second")
    logs.stop()
    assert seen == ["first", "second"]
    assert stream.getvalue().count("a log line of sigma9.x could not be published") == 2
    assert "published first" in stream.getvalue()


def test_threads_publish_side_by_side(lines: list[LogLine]) -> None:
    """Every line of every thread arrives."""

    def say(number: int) -> None:
        for _ in range(50):
            logging.getLogger("sigma9.x").info("%d", number)

    threads = [threading.Thread(target=say, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line.message for line in lines) == sorted(str(n) for n in range(4) for _ in range(50))


def test_a_bridge_of_its_own() -> None:
    """A bridge works as a plain handler too, with its own redaction."""
    redact("secret-value")
    lines: list[LogLine] = []
    bridge = LogBridge(lines.append)
    logger = logging.getLogger("sigma9.own")
    logger.addHandler(bridge)
    logger.error("has secret-value")
    logger.removeHandler(bridge)
    assert lines[0].message == "has ********"


# --- nothing uncaught in silence ------------------------------------------------------------------------------


def test_warnings_are_logged(console: io.StringIO) -> None:
    """Python's warnings are log lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    assert "py.warnings: " in console.getvalue()
    assert "old way" in console.getvalue()


def test_threads(lines: list[LogLine]) -> None:
    """What ends a thread is logged with the thread's name; leaving it by SystemExit is not."""

    def fail() -> None:
        raise ValueError("broken")

    for target in (fail, sys.exit):
        thread = threading.Thread(target=target, name="worker-7")
        thread.start()
        thread.join()
    assert [line.message for line in lines] == ["uncaught error in the thread worker-7"]
    assert lines[0].fields["exception"] == "ValueError: broken"


def test_errors_that_nobody_can_be_told_of(lines: list[LogLine]) -> None:
    """An exception in a finaliser is logged."""

    class Bad:
        def __del__(self) -> None:
            raise ValueError("in the finaliser")

    Bad()
    gc.collect()
    assert lines[0].fields["exception"] == "ValueError: in the finaliser"


def test_loops(lines: list[LogLine]) -> None:
    """A task whose error nobody takes is logged under the loop's name, with the task's own."""

    async def fail() -> None:
        raise ValueError("broken")

    async def main() -> None:
        watch_loop(asyncio.get_running_loop(), "money")
        task = asyncio.create_task(fail(), name="exits")
        await asyncio.wait([task])
        del task
        gc.collect()
        asyncio.get_running_loop().call_exception_handler({"message": "odd"})

    asyncio.run(main())
    assert [(line.logger, line.level) for line in lines] == [("sigma9.money", "error")] * 2
    assert "in the task exits" in lines[0].message
    assert lines[0].fields["exception"] == "ValueError: broken"
    assert lines[1].message == "odd"


def test_light_to_import() -> None:
    """The module loads neither asyncio nor pydantic: the command line starts with it."""
    code = "import sys, sigma9_core.log; print([m for m in ('asyncio', 'pydantic', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

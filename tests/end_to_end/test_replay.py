"""`sigma9 replay`: the same data, seed and configuration give the same trades to the cent, at any speed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.testing.terminal import on_terminal

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL = SHARED / "intraday_1m_eqker_2019-02.parquet"
MAIN = [sys.executable, "-m", "sigma9_core", "replay"]


def replay(folder: Path, *args: str) -> dict[str, Any]:
    """Run a replay and give its summary."""
    folder.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGMA9_")}
    result = subprocess.run(
        [*MAIN, *args, "--format", "json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    body: dict[str, Any] = json.loads(result.stdout)
    return body


def made_up(path: Path) -> Path:
    """Write two hours of minute bars of three symbols that break out of their boxes."""
    rng = random.Random(7)
    rows = ["symbol,ts,open,high,low,close,volume"]
    start = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
    for symbol, at in (("AAA", 50), ("BBB", 55), ("CCC", 90)):
        price = 5.0
        for minute in range(120):
            burst = at <= minute < at + 12
            step = 0.03 if burst else rng.uniform(-0.004, 0.004)
            close = round(price + step, 4)
            high, low = max(price, close) + 0.002, min(price, close) - 0.002
            volume = 40_000 if burst else rng.randint(800, 1200)
            ts = (start + timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M:%SZ")
            rows.append(f"{symbol},{ts},{price:.4f},{high:.4f},{low:.4f},{close:.4f},{volume}")
            price = close
    rows.insert(30, "AAA,2026-03-02T14:30:00Z,-1,2,1,1,5")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_replay_trades_the_same_at_any_speed(tmp_path: Path) -> None:
    """As fast as it goes, at 1,200 times, published and not: the same trades; bad rows are counted."""
    data = made_up(tmp_path / "bars.csv")
    alone = replay(tmp_path / "a", "--data", str(data), "--no-publish")
    paced = replay(tmp_path / "b", "--data", str(data), "--no-publish", "--speed", "1200")
    told = replay(tmp_path / "c", "--data", str(data), "--set", "mqtt.port=0", "--set", "server.port=0")

    assert alone["trades"]
    assert alone["summary"]["rejected_rows"] == 1
    assert alone == paced == told


def test_a_second_replay_begins_anew(tmp_path: Path) -> None:
    """A replay in the same folder starts with the same cash and gives the same trades."""
    data = made_up(tmp_path / "bars.csv")
    first = replay(tmp_path, "--data", str(data), "--no-publish")

    assert replay(tmp_path, "--data", str(data), "--no-publish") == first


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    """Start a replay whose log lines and summary are read by the test."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGMA9_")}
    return subprocess.Popen(
        [*MAIN, *args, "--verbose"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read stderr up to a line that has the text in it."""
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line.rstrip("\n"))
        if text in line:
            return lines
    raise AssertionError(f"'{text}' did not come: {lines}")


def test_an_interrupted_replay_tells_what_ran(tmp_path: Path) -> None:
    """Ctrl-C ends a replay with the summary of what ran so far, marked as interrupted, and exit code 130."""
    data = made_up(tmp_path / "bars.csv")
    process = start(tmp_path, "--data", str(data), "--no-publish", "--speed", "2400", "--format", "json")
    try:
        read_until(process, "filled")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    summary = json.loads(out)["summary"]
    assert process.returncode == 130
    assert summary["interrupted"] is True
    assert summary["orders"] > 0
    assert 0 < summary["slices"] < 120
    assert "sigma9: interrupted after " in errors
    assert "of 120 slices" in errors
    assert "Traceback" not in errors


def test_a_replay_says_where_it_publishes(tmp_path: Path) -> None:
    """A replay that is published says where, as a server does: MQTT, REST, and the token's place; on stderr."""
    data = made_up(tmp_path / "bars.csv")
    process = start(tmp_path, "--data", str(data), "--set", "mqtt.port=0", "--set", "server.port=0")
    try:
        told = "\n".join(read_until(process, "Token"))
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    folder = tmp_path / "data" / "replay"
    assert re.search(r"REST and WebSocket +http://127\.0\.0\.1:\d+", told)
    assert re.search(r"MQTT +mqtt://127\.0\.0\.1:\d+", told)
    assert f"{folder / 'admin.token'}" in told
    assert (folder / "admin.token").read_text().strip() not in told
    assert "REST and WebSocket" not in out
    assert "opened (UTC)" in out


def test_a_replay_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal every log line begins a line of its own, above the bar; ids and times are not cut."""
    data = made_up(tmp_path / "bars.csv")
    command = [*MAIN, "--data", str(data), "--no-publish", "--verbose", "--speed", "4800"]
    environ = {**dict.fromkeys((k for k in os.environ if k.startswith("SIGMA9_")), ""), "COLUMNS": "100"}
    code, out = on_terminal(command, tmp_path, environ=environ)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    assert "━" in plain  # there was a bar
    starts = re.findall(r"(.?)(\d\d:\d\d:\d\d (?:DEBUG|INFO|WARNING|ERROR) )", plain, re.DOTALL)
    assert len(starts) > 10
    assert {before for before, _ in starts} <= {"\n", "\r", ""}
    assert re.search(r"AAA.*2026-03-02 \d\d:\d\d:\d\d +2026-03-02 \d\d:\d\d:\d\d", plain)
    assert "…" not in plain


def test_daily_bars_that_can_not_be_enough_are_told_at_once(tmp_path: Path) -> None:
    """A replay whose daily bars do not reach its days ends with one sentence before it begins."""
    data = made_up(tmp_path / "bars.csv")
    daily = tmp_path / "daily.csv"
    daily.write_text("symbol,ts,open,high,low,close,volume\nAAA,2026-01-05,5,5,5,5,1000\n")
    result = subprocess.run(
        [*MAIN, "--data", str(data), "--daily", str(daily), "--no-publish"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith("sigma9: the daily bars (2026-01-05 to 2026-01-05) have none of the sessions")
    assert "market_open_scan" not in result.stderr


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    """A missing file ends the replay with one sentence and exit code 1."""
    result = subprocess.run(
        [*MAIN, "--data", "missing.parquet", "--no-publish"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 1
    assert "missing.parquet" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.shared_data
@pytest.mark.skipif(not REAL.exists(), reason="the real US bars are not beside the repository")
def test_a_week_of_real_bars(tmp_path: Path) -> None:
    """18 symbols, five real sessions: trades happen, every position is closed, and twice is the same."""
    args = ("--data", str(REAL), "--stamp", "end", "--no-publish")
    first = replay(tmp_path / "a", *args)
    again = replay(tmp_path / "b", *args)

    assert first == again
    assert first["summary"]["trades"] > 0
    assert first["summary"]["open_positions"] == 0
    assert first["summary"]["slices"] > 1900
    cash = 100_000 + first["summary"]["realized_pnl"]
    assert first["summary"]["equity"] == pytest.approx(cash, abs=0.01)

"""`sigma9 replay`: the same data, seed and configuration give the same trades to the cent, at any speed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

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


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    """A missing file ends the replay with one sentence and exit code 1."""
    result = subprocess.run(
        [*MAIN, "--data", "missing.parquet", "--no-publish"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
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

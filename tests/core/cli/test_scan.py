"""`sigma9 scan`: from files to the list, without a server."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest

from sigma9_core.calendar import load_calendar

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real bars beside the repository are missing")
FIELDS = ["symbol", "priority", "score", "stage", "signals", "intensities", "last", "as_of", "reasons"]


class Result(Protocol):
    """What the fixture `cli` gives."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Read stdout as JSON."""


class Cli(Protocol):
    """Runs a command line."""

    def __call__(self, *arguments: str) -> Result:
        """Run it."""


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let commands share one calendar cache, and not the user's."""
    base = tmp_path_factory.getbasetemp()
    load_calendar("XNYS", base / "sigma9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))


@pytest.fixture(name="bars")
def _bars(tmp_path: Path) -> Path:
    """Bars of 25 real sessions: BURST has an accumulation bar, QUIET says nothing, DEAR is too dear, NEW is new."""
    sessions = load_calendar("XNYS", None if _BASE is None else _BASE).between(date(2026, 10, 1), date(2026, 11, 5))
    days = [session.day for session in sessions][:25]
    lines = ["symbol,ts,open,high,low,close,volume"]
    for name, price in (("BURST", 5.0), ("QUIET", 5.0), ("DEAR", 50.0), ("NEW", 5.0)):
        for index, day in enumerate(days):
            if name == "NEW" and index < 15:
                continue
            volume = 1_000_000 if index == 24 and name in ("BURST", "DEAR") else 200_000
            lines.append(f"{name},{day},{price},{price + 0.25},{price - 0.25},{price},{volume}")
    file = tmp_path / "bars.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


_BASE: Path | None = None


def test_the_list_as_json_has_the_fields_of_the_contract(cli: Cli, bars: Path) -> None:
    """stdout is a JSON array of rows; steps and times are on stderr."""
    result = cli("scan", "--data", str(bars), "--format", "json")

    assert result.code == 0
    assert result.json == [
        {
            "symbol": "BURST",
            "priority": 50,
            "score": 25.0,
            "stage": 3,
            "signals": {
                "tight_range": False,
                "obv_divergence": False,
                "accumulation_bar": True,
                "volume_dryout": False,
            },
            "intensities": {
                "tight_range": 0.0,
                "obv_divergence": 0.0,
                "accumulation_bar": 1.0,
                "volume_dryout": 0.0,
            },
            "last": 5.0,
            "as_of": "2026-11-04",
            "reasons": ["accumulation bar 1.0"],
        }
    ]
    assert "read 85 rows in" in result.err
    for step in ("4 symbols in the last 25 sessions", "4 with a bar of", "3 with 20 bars or more", "1 listed"):
        assert step in result.err

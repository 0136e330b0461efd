"""`sigma9 data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HEAD = "symbol,ts,open,high,low,close,volume\n"
GOOD = "AAPL,2024-03-05,1,2,0.5,1.5,100\nMSFT,2024-03-06,1,2,0.5,1.5,100\n"


@pytest.fixture(name="files")
def _files(alone: Path) -> Path:
    (alone / "good.csv").write_text(HEAD + GOOD, encoding="utf-8")
    (alone / "bad.csv").write_text(
        HEAD + GOOD + "AAPL,2024-03-07,1,0.5,2,1,100\nX,never,1,1,1,1,1\n", encoding="utf-8"
    )
    return alone


def test_good(cli: Any, files: Path) -> None:
    """A file without a fault is summed up, with exit code 0."""
    result = cli("data", "check", "good.csv")
    assert (result.code, result.err) == (0, "")
    assert result.out == "2 rows, 2 bars of 2 symbols, 2024-03-05 to 2024-03-06\n"


def test_bad(cli: Any, files: Path) -> None:
    """Rows that can't be used are counted by reason and named, with exit code 1."""
    result = cli("data", "check", "bad.csv")
    assert result.code == 1
    assert "4 rows, 2 bars of 2 symbols" in result.out
    assert result.out.count("left out: ") == 2
    assert "never" in result.out


def test_json(cli: Any, files: Path) -> None:
    """In JSON stdout is the array of rejected rows and nothing else."""
    result = cli("data", "check", "bad.csv", "--format", "json")
    assert [row["row"] for row in result.json] == [3, 4]
    assert "4 rows" in result.err
    assert cli("data", "check", "good.csv", "--format", "json").json == []


def test_no_table(cli: Any, files: Path) -> None:
    """What is no file of bars is one sentence, with exit code 1."""
    (files / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    for name in ("other.csv", "nowhere.csv"):
        result = cli("data", "check", name)
        assert result.code == 1
        assert result.err.startswith("sigma9: ")
        assert "Traceback" not in result.err
    assert cli("data", "check", "good.csv", "--kind", "intraday").code == 1

"""The server is killed with `kill -9` again and again on an exchange that lives on: nothing is lost or doubled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

from sigma9_core.testing.torture.lives import lacking, torture

FAULTS: Final = ("drop", "delay", "double", "reorder")


def test_crashes_lose_and_double_nothing(
    tmp_path: Path, crashes: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """After every crash the files are whole and the latch is what it was; at the end no order was sent twice,
    every fill is in the journal once, positions, orders and cash are the exchange's, and `seq` has no gap."""
    folder = tmp_path / "torture"
    score = torture(folder, seed=seed, crashes=crashes)
    with capsys.disabled():
        print(f"\nseed {seed}: {score.told()}")  # noqa: T201 - what was exercised belongs into the build's log

    assert lacking(score, crashes, FAULTS) == []
    shutil.rmtree(folder)  # a run that fails keeps it


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_crashes_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    """The same in its long form, by another seed: every point has had its crash."""
    score = torture(tmp_path / "torture", seed=seed + 1000, crashes=200)

    assert lacking(score, 200, FAULTS) == []

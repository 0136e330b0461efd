"""The crash torture with Interactive Brokers as the broker: the TWS peer lives on in a process of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sigma9_core.testing.torture.lives import lacking, torture
from sigma9_core.testing.tws.insync import run_with_ib_insync
from sigma9_plugins.testing.ibkr_torture import IBKR


def test_crashes_at_tws_lose_and_double_nothing(
    tmp_path: Path, at_tws: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No order is at IB twice by its `orderRef`, every execution is in the journal once, positions, orders and
    cash are IB's, `seq` has no gap, the files are whole and the latch is what it was."""
    run(tmp_path / "torture", at_tws, seed, capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_crashes_at_tws_lose_and_double_nothing(
    tmp_path: Path, at_tws_long: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same in its long form, by another seed: every point has had its crash."""
    run(tmp_path / "torture", at_tws_long, seed + 1000, capsys)


@pytest.mark.slow
@pytest.mark.insync
@pytest.mark.timeout(1800)
def test_crashes_at_tws_lose_and_double_nothing_with_ib_insync(
    at_tws_insync: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with the other library, in an environment of its own."""
    short = test_crashes_at_tws_lose_and_double_nothing.__name__
    chosen = (f"{__file__}::{short}", "--crashes", str(at_tws_insync), "--seed", str(seed))
    said = run_with_ib_insync(*chosen, within=1700)
    with capsys.disabled():
        print(said)  # noqa: T201 - what was exercised belongs into the build's log


def run(folder: Path, crashes: int, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the torture, and see that it was one."""
    score = torture(folder, IBKR, seed=seed, crashes=crashes)
    with capsys.disabled():
        print(f"\nseed {seed}: {score.told()}")  # noqa: T201 - what was exercised belongs into the build's log

    assert (
        lacking(score, crashes, ("doubled-status", "partial-fills", "late-execution", "lost-ack", "correct")) == []
    )
    shutil.rmtree(folder)  # a run that fails keeps it

"""The server is killed with `kill -9` again and again on an exchange that lives on: nothing is lost or doubled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sigma9_core.testing.torture.lives import Score, torture
from sigma9_core.testing.torture.points import POINTS

EACH_GROUP = 25
"""From so many crashes on, every part of the issue's sentence must have had one."""
EACH_POINT = 180
"""From so many on, every single point must have had one."""
GROUPS = {
    "outside",
    "intent and send",
    "send and answer",
    "fill and journal",
    "kill",
    "group commit",
    "document write",
    "recovery",
    "exits",
}


def test_crashes_lose_and_double_nothing(
    tmp_path: Path, crashes: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """After every crash the files are whole and the latch is what it was; at the end no order was sent twice,
    every fill is in the journal once, positions, orders and cash are the exchange's, and `seq` has no gap."""
    folder = tmp_path / "torture"
    score = torture(folder, seed=seed, crashes=crashes)
    with capsys.disabled():
        print(f"\nseed {seed}: {score.told()}")  # noqa: T201 - what was exercised belongs into the build's log

    exercised(score, crashes)
    shutil.rmtree(folder)  # a run that fails keeps it


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_crashes_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    """The same in its long form, by another seed: every point has had its crash."""
    score = torture(tmp_path / "torture", seed=seed + 1000, crashes=200)

    exercised(score, 200)


def exercised(score: Score, crashes: int) -> None:
    """See that it was a torture: a run in which nothing happens proves nothing."""
    if crashes >= EACH_POINT:
        assert set(score.crashes) >= set(POINTS), f"no crash at {set(POINTS) - set(score.crashes)}"
    numbers = score.numbers
    assert score.crashes.total() == crashes
    assert score.crashes.total() - score.groups["outside"] >= crashes * 0.4, "too few servers came by their point"
    if crashes >= EACH_GROUP:
        assert set(score.groups) >= GROUPS, f"no crash in {GROUPS - set(score.groups)}"
    for what, least in (
        ("orders at the exchange", 2 * crashes),
        ("fills", crashes),
        ("fills recovered", crashes // 3),
        ("fills while no server was there", crashes // 6),
        ("orders filled in part", crashes // 3),
        ("orders that were unknown", crashes // 30),
        ("kills", crashes // 30),
        ("looks at a settled server", crashes // 15),
    ):
        assert numbers[what] >= least, f"{what}: {numbers[what]}, and {least} were expected at the least"
    assert numbers["latches behind their answer"] <= 1 + numbers["kills"] // 4, "kills do not wait for their latch"
    for fault in ("drop", "delay", "double", "reorder"):
        assert score.faults[fault], f"the exchange never had a {fault}"

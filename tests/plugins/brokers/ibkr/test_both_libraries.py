"""All tests of the plugin once more, with the other library, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sigma9_plugins.brokers.ibkr import library

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
SHORT = "not days_that_go_wrong"
"""Whole days are traded with one of the two: what differs between them is in the other tests."""
PYTHON = ROOT / ".venv" / "insync" / "bin" / "python"


@pytest.mark.insync
@pytest.mark.timeout(400)
def test_everything_with_ib_insync() -> None:
    """What holds with `ib_async` holds with `ib_insync`: contract, faults, orders, feed and parts."""
    if library.load().name == "ib_insync":
        pytest.skip("this run has ib_insync already")
    if not (PYTHON.parents[1] / ".ready").exists():
        why = f"there is no environment with ib_insync: `make test` makes {PYTHON.parents[1]}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [
            PYTHON,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not insync and not slow",
            "-k",
            SHORT,
            HERE,
        ],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout

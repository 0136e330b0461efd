"""Tests once more in the environment that has `ib_insync`, which can't be in one with `ib_async`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
PLACE: Final = ROOT / ".venv" / "insync"


def run_with_ib_insync(*arguments: str | Path, within: float) -> str:
    """Run pytest there, `within` so many seconds, and give what it said; a failure of it is one of this test.

    Skip where there is no such environment, but never in CI.
    """
    if not (PLACE / ".ready").exists():
        why = f"there is no environment with ib_insync: `make test` makes {PLACE}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [PLACE / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    if done.returncode != 0 or " passed" not in done.stdout:
        pytest.fail(done.stdout[-4000:] + done.stderr[-1000:])
    return done.stdout


__all__ = ["run_with_ib_insync"]

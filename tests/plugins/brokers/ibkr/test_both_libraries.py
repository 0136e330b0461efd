"""All tests of the plugin once more, with the other library, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigma9_core.testing.tws.insync import run_with_ib_insync
from sigma9_plugins.brokers.ibkr import library

HERE = Path(__file__).parent
SHORT = "not days_that_go_wrong"
"""Whole days are traded with one of the two: what differs between them is in the other tests."""


@pytest.mark.insync
@pytest.mark.timeout(400)
def test_everything_with_ib_insync() -> None:
    """What holds with `ib_async` holds with `ib_insync`: contract, faults, orders, feed and parts."""
    if library.load().name == "ib_insync":
        pytest.skip("this run has ib_insync already")
    run_with_ib_insync("-m", "not insync and not slow", "-k", SHORT, HERE, within=380)

"""What tests of several parts share: a PostgreSQL server of their own, and what is run first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import pytest

from sigma9_core.testing.postgres_server import PostgresServer, missing

LONG: Final = ("test_both_libraries", "test_week", "test_crash_torture", "test_crash_torture_ibkr", "test_model")
"""Files with tests of a minute and more: one that came last would have all other workers wait for it."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, all others in their order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(name="postgres_server", scope="session")
def _postgres_server() -> Iterator[PostgresServer]:
    """Run one PostgreSQL for the whole run of tests; skip where there can be none, but never in CI."""
    reason = missing()
    if reason is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with PostgresServer() as server:
        yield server

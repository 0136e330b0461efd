"""What tests of several parts share: a PostgreSQL server of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sigma9_core.testing.postgres_server import PostgresServer, missing


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

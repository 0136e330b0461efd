"""What the end-to-end tests share: a server of their own, and the clients that must be there."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigma9_core.testing.server_process import ServerProcess


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[ServerProcess]:
    """Give a server that is not started yet, ten times as fast as a user's."""
    server = ServerProcess(tmp_path, "plugins.settings.simulated.speed=600")
    try:
        yield server
    finally:
        if server.running:
            server.stop(signal.SIGKILL)


@pytest.fixture(autouse=True)
def _clients() -> None:
    """The end-to-end tests listen with the real clients; CI has them."""
    if shutil.which("mosquitto_sub") is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto-clients are missing, and CI skips nothing")
        pytest.skip("mosquitto_sub is not installed (Debian: mosquitto-clients)")

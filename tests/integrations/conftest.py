"""What the tests of the integrations share: the mosquitto program, and brokers of the tests' own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sigma9_integrations.broker import mosquitto
from sigma9_integrations.mqtt.testing import Mosquitto, Proxy


@pytest.fixture(name="mosquitto_program")
def _mosquitto_program() -> str:
    """Find the mosquitto program; skip where there is none, but never in CI."""
    program = mosquitto.find()
    if program is None:
        reason = "mosquitto is not installed: apt-get install mosquitto"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@pytest.fixture(name="broker")
async def _broker(mosquitto_program: str, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """Run a Mosquitto on a free port."""
    broker = Mosquitto(tmp_path / "broker", mosquitto_program)
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture(name="proxy")
async def _proxy(broker: Mosquitto) -> AsyncIterator[Proxy]:
    """Put a network that can be cut before the broker."""
    proxy = Proxy(broker)
    await proxy.start()
    yield proxy
    await proxy.stop()

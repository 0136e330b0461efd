"""What tests of the broker share: a room whose stock has a price, and read-backs without a pause."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sigma9_plugins.brokers.ibkr import broker
from sigma9_plugins.testing.ibkr_room import IbkrRoom, open_room


@pytest.fixture(name="soon")
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back at once what is in doubt."""
    monkeypatch.setattr(broker, "LOOK_AFTER", 0.02)
    monkeypatch.setattr(broker, "LOOK_AGAIN", 0.05)


@pytest.fixture(name="room")
async def _room(tmp_path: Path) -> AsyncIterator[IbkrRoom]:
    async with open_room(tmp_path) as room:
        await room.move(room.symbol, 10.0)
        yield room

"""The watchdog says that the outer loop stands still, and that it runs again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from sigma9_core import watchdog as module
from sigma9_core.lanes import Lane
from sigma9_core.watchdog import Watchdog

PATIENCE = 5.0


class Room:
    """A watchdog that looks every 10 ms, from a lane of its own, at a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "BEAT", 0.01)
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        self.lane = Lane("money")
        self.dog = Watchdog()

    def block(self, until: Callable[[], bool]) -> None:
        """Block the loop that calls this, as a bad plugin does, until something is true."""
        end = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < end, "it did not come true in time"
            time.sleep(0.005)


@pytest.fixture(name="room")
def _room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    room = Room(monkeypatch)
    room.lane.start()
    yield room
    room.lane.stop()


async def test_a_stall_is_told_while_it_lasts_and_when_it_ends(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """While the loop is blocked the money lane says so, once; when it runs again that is said; each time anew."""
    room.dog.start()
    room.lane.submit(room.dog.watch())
    for stall in (1, 2):
        room.now += 1.9
        await asyncio.sleep(0.1)
        assert len(caplog.records) == 2 * (stall - 1)

        room.now += 3
        room.block(lambda stall=stall: len(caplog.records) > 2 * (stall - 1))  # type: ignore[misc]
        assert caplog.records[-1].levelname == "ERROR"
        assert "the outer loop has not run for 3.0 s" in caplog.records[-1].getMessage()
        room.now += 7
        time.sleep(0.05)  # noqa: ASYNC251 - it has time to say it twice
        assert room.dog.stalled_since is not None

        async with asyncio.timeout(PATIENCE):
            while room.dog.stalled_since is not None:  # noqa: ASYNC110 - another thread is awaited
                await asyncio.sleep(0.01)
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * stall
        assert "the outer loop runs again after 10.0 s" in caplog.records[-1].getMessage()
    room.dog.stop()


async def test_no_beat_is_left_behind(room: Room) -> None:
    """After `stop` no timer beats on; stopping what never began is fine."""
    room.dog.stop()
    room.dog.start()
    room.dog.stop()

    assert room.dog._timer is not None
    assert room.dog._timer.cancelled()

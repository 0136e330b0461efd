"""The status: one body for everybody, and an event when a part of it changes, but not too many."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from sigma9_core.board import Board
from sigma9_core.events import StatusUpdate
from sigma9_core.status import AT_MOST_EVERY, StatusTeller


class Room:
    """A status with a kill switch and a number, and when what was told."""

    def __init__(self) -> None:
        self.board = Board()
        self.body: dict[str, Any] = {"engine": "stopped", "uptime": 0, "kill_switch": self.kill("OFF", "off")}
        self.told: list[tuple[float, StatusUpdate]] = []
        self.teller = StatusTeller(self.board, lambda: dict(self.body), self._emit)

    @staticmethod
    def kill(state: str, phase: str, *closed: str) -> dict[str, Any]:
        return {"state": state, "phase": phase, "scopes": [], "closed": list(closed)}

    def _emit(self, update: StatusUpdate) -> None:
        self.told.append((asyncio.get_running_loop().time(), update))

    async def count(self, number: int) -> None:
        async with asyncio.timeout(5):
            while len(self.told) < number:  # noqa: ASYNC110 - a timer of the loop is awaited
                await asyncio.sleep(0.005)


@pytest.fixture(name="room")
def _room() -> Room:
    return Room()


def test_numbers_that_move_refresh_the_board_alone(room: Room) -> None:
    """`refresh` puts the newest body on the board and tells no event."""
    room.body["uptime"] = 7

    assert room.teller.refresh() == room.body
    assert room.board.get("status") == room.body
    assert room.told == []


async def test_the_first_change_is_told_soon(room: Room) -> None:
    """After a quiet time a change goes out with the next turn of the loop, with the body of that moment."""
    room.teller.changed("engine", "engine running: command by api")
    room.body["engine"] = "running"
    await asyncio.sleep(0.01)

    assert len(room.told) == 1
    update = room.told[0][1]
    assert (update.changed, update.reason) == (("engine",), "engine running: command by api")
    assert update.status["engine"] == "running"
    assert room.board.get("status") == room.body


async def test_many_changes_are_at_most_one_in_250_ms(room: Room) -> None:
    """What changes meanwhile waits and goes out together: every part, every reason, once."""
    number = 0
    async with asyncio.timeout(5):
        while len(room.told) < 4:
            number += 1
            room.teller.changed("feed", f"slow {number % 2}")
            room.teller.changed("plugins")
            await asyncio.sleep(0.003)

    times = [at for at, _ in room.told]
    assert all(later - earlier >= AT_MOST_EVERY - 0.002 for earlier, later in itertools.pairwise(times))
    assert room.told[1][1].changed == ("feed", "plugins")
    assert room.told[1][1].reason in ("slow 0", "slow 1")


async def test_a_reason_is_not_lost_to_a_change_without_one(room: Room) -> None:
    """The newest reason of a part stands, also where a later change of it has none."""
    room.teller.changed("broker", "the line broke")
    room.teller.changed("broker")
    room.teller.changed("feed", "the line broke")
    await room.count(1)

    assert room.told[0][1].reason == "the line broke"


async def test_a_kill_is_told_at_once(room: Room) -> None:
    """A kill waits for nothing: it goes out before the call returns, with what was waiting."""
    room.teller.changed("engine")
    await room.count(1)
    room.teller.changed("feed", "lost")
    room.body["kill_switch"] = room.kill("ON", "gated")
    room.teller.changed("kill_switch", "kill switch")

    assert len(room.told) == 2
    assert room.told[1][1].changed == ("feed", "kill_switch")
    assert room.told[1][1].reason == "lost; kill switch"
    await asyncio.sleep(AT_MOST_EVERY + 0.05)
    assert len(room.told) == 2


async def test_each_phase_of_a_kill_is_told_at_once_and_its_lists_are_not(room: Room) -> None:
    """Fifty closed positions make no fifty events: phases go out at once, the growing lists together."""
    for phase in ("gated", "cancelling", "flattening"):
        room.body["kill_switch"] = room.kill("ON", phase)
        room.teller.changed("kill_switch")
    assert [update.status["kill_switch"]["phase"] for _, update in room.told] == [
        "gated",
        "cancelling",
        "flattening",
    ]

    closed = [f"S{number}" for number in range(50)]
    for number in range(50):
        room.body["kill_switch"] = room.kill("ON", "flattening", *closed[: number + 1])
        room.teller.changed("kill_switch")
    assert len(room.told) == 3

    await room.count(4)
    assert room.told[3][1].status["kill_switch"]["closed"] == closed


async def test_the_end_tells_what_is_left_and_nothing_after_it(room: Room) -> None:
    """`stop` tells what waits; later changes go nowhere, and no timer is left behind."""
    room.teller.changed("engine")
    await room.count(1)
    room.teller.changed("broker", "disconnected")
    room.teller.stop()
    room.teller.changed("feed")
    await asyncio.sleep(AT_MOST_EVERY + 0.05)

    assert [update.changed for _, update in room.told] == [("engine",), ("broker",)]


async def test_flush_tells_what_waits_now(room: Room) -> None:
    """With nothing to tell, nothing is told."""
    room.teller.flush()
    assert room.told == []

    room.teller.changed("mqtt", "connected")
    room.teller.flush()
    assert [update.changed for _, update in room.told] == [("mqtt",)]

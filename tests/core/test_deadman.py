"""The dead man's switch acts once when heartbeats stop, in session while the engine runs, whatever fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import pytest

from sigma9_core import deadman as module
from sigma9_core.config import DeadManSettings
from sigma9_core.deadman import DeadMan
from sigma9_core.lanes import Lane

LOOK = 0.01


class Room:
    """A switch whose duty, broker and time are set by the test; it looks every 10 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.now = 1000.0
        self.broker_up = True
        self.duty = True
        self.looks = 0
        self.acted: list[tuple[str, str]] = []
        self.failures = 0
        self.lane = Lane("judge")
        self.lane.start()
        monkeypatch.setattr(module, "LOOK", LOOK)
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        self.man = DeadMan(
            DeadManSettings(**settings), on_duty=self._on_duty, broker_up=lambda: self.broker_up, act=self._act
        )

    def _on_duty(self) -> bool:
        self.looks += 1
        return self.duty

    async def _act(self, action: str, why: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the money lane is busy")
        self.acted.append((action, why))

    async def looked(self, times: int = 2) -> None:
        """Wait until it has looked so often again."""
        wanted = self.looks + times
        async with asyncio.timeout(5):
            while self.looks < wanted:  # noqa: ASYNC110 - a task of the switch is awaited
                await asyncio.sleep(LOOK / 2)

    async def passes(self, seconds: float) -> None:
        """Let time pass, and let it look: the first look after such a jump takes it for a stall."""
        self.now += seconds
        await self.looked(3)
        await asyncio.sleep(3 * LOOK)  # while the outer loop is listened to
        await self.looked(3)


Open = Callable[..., Room]


@pytest.fixture(name="opened")
async def _opened(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    rooms: list[Room] = []

    def opened(**settings: Any) -> Room:
        rooms.append(Room(monkeypatch, **settings))
        rooms[-1].man.start(rooms[-1].lane)
        return rooms[-1]

    yield opened
    for room in rooms:
        await room.man.stop()
        room.lane.stop()


@pytest.mark.parametrize("action", ["pause", "halt", "flatten"])
async def test_it_acts_when_heartbeats_stop(opened: Open, action: Literal["pause", "halt", "flatten"]) -> None:
    """Heartbeats hold it back; after the last one, and the time, it does what the configuration says."""
    room = opened(timeout=30, action=action)
    for _ in range(4):
        room.man.beat()
        await room.passes(29)
        assert room.acted == []

    await room.passes(2)
    assert room.acted == [(action, "dead man's switch: no heartbeat for 30 s")]


async def test_it_is_armed_by_the_first_heartbeat(opened: Open) -> None:
    """Whoever never beats is not missed."""
    room = opened(timeout=30)
    await room.passes(100)
    assert (room.man.armed, room.acted) == (False, [])

    room.man.beat()
    assert room.man.armed
    await room.passes(31)
    assert len(room.acted) == 1


async def test_it_acts_once_until_it_is_armed_again(opened: Open) -> None:
    """After it has acted it waits for a heartbeat, and then acts again."""
    room = opened(timeout=30)
    room.man.beat()
    await room.passes(31)
    await room.passes(100)
    assert (len(room.acted), room.man.armed) == (1, False)

    room.man.beat()
    await room.passes(31)
    assert len(room.acted) == 2


async def test_a_heartbeat_while_it_acts_arms_it_again(opened: Open) -> None:
    """Acting may take a while: a heartbeat that comes meanwhile counts."""
    room = opened(timeout=30)
    room.man.beat()
    act = room.man._act

    async def slow(action: str, why: str) -> None:
        room.man.beat()
        await act(action, why)

    room.man._act = slow
    await room.passes(31)

    assert len(room.acted) == 1
    assert room.man.armed


async def test_off_duty_nobody_is_missed(opened: Open) -> None:
    """Outside of the session, or while the engine stands, time does not count; it counts anew from the start."""
    room = opened(timeout=30)
    room.man.beat()
    await room.passes(20)
    room.duty = False
    await room.passes(100)
    room.duty = True
    await room.passes(20)
    assert room.acted == []

    await room.passes(11)
    assert len(room.acted) == 1


async def test_a_lost_broker_is_missed_too(opened: Open) -> None:
    """`broker_lost` needs no heartbeat; a broker that comes back in time was not lost."""
    room = opened(broker_lost=60, action="halt")
    await room.passes(1)
    room.broker_up = False
    await room.passes(50)
    room.broker_up = True
    await room.passes(20)
    room.broker_up = False
    await room.passes(50)
    assert room.acted == []

    await room.passes(20)
    assert room.acted == [("halt", "dead man's switch: the broker has been lost for 60 s")]


async def test_what_fails_is_tried_again(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    """An action that raises does not end the switch: it is logged, and tried with each look until it works."""
    room = opened(timeout=30, broker_lost=60)
    room.failures = 3
    room.man.beat()
    await room.passes(31)
    async with asyncio.timeout(5):
        while not room.acted:  # noqa: ASYNC110 - a lane of the switch is awaited
            await asyncio.sleep(LOOK)
    assert caplog.text.count("could not act") == 3
    assert len(room.acted) == 1

    room.failures = 1
    await room.looked()
    room.broker_up = False
    await room.looked()
    await room.passes(61)
    await room.looked()
    assert "the broker has been lost" in room.acted[1][1]


async def test_heartbeats_that_wait_are_read_before_it_judges(opened: Open) -> None:
    """After a stall of the outer loop a heartbeat that came meanwhile is heard first."""
    room = opened(timeout=30)
    loop = asyncio.get_running_loop()

    def heard(hops: int) -> None:  # as a heartbeat comes by MQTT or REST: over several turns of the loop
        if hops:
            loop.call_soon(heard, hops - 1)
        else:
            room.man.beat()

    room.man.beat()
    await room.looked()
    loop.call_soon(heard, 5)
    room.now += 31
    time.sleep(10 * LOOK)  # noqa: ASYNC251 - the stall: the switch looks at it all the while
    await asyncio.sleep(5 * LOOK)
    await room.looked(4)
    assert room.acted == []

    await room.passes(31)
    assert len(room.acted) == 1


async def test_a_blocked_outer_loop_is_judged_after_the_grace(opened: Open) -> None:
    """A plugin that blocks the outer loop does not silence the switch: after timeout and grace it acts."""
    room = opened(timeout=30)
    room.man.beat()
    await room.looked()
    room.now += 31
    looks = room.looks
    while room.looks < looks + 4:
        time.sleep(LOOK / 4)  # noqa: ASYNC251 - the outer loop is blocked from here on
    assert room.acted == []
    room.now += module.GRACE + 0.1
    looks = room.looks
    while room.looks < looks + 5:
        time.sleep(LOOK / 4)  # noqa: ASYNC251 - and still is
    assert len(room.acted) == 1


async def test_without_settings_it_does_nothing(opened: Open) -> None:
    """Neither timeout nor broker_lost: nothing looks, and stopping is fine."""
    room = opened()
    await asyncio.sleep(5 * LOOK)

    assert room.looks == 0


async def test_it_ends_when_it_is_stopped(opened: Open) -> None:
    """After `stop` nothing looks any more."""
    room = opened(timeout=30)
    room.man.beat()
    await room.looked()
    await room.man.stop()
    looks = room.looks
    room.now += 100
    await asyncio.sleep(5 * LOOK)

    assert (room.looks, room.acted) == (looks, [])

"""Notifiers get what they want on threads of their own; one that fails disturbs nobody and is told again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from sigma9_core import notifying as module
from sigma9_core.bus import EventBus
from sigma9_core.events import Event, EventType, LogLine, StatusUpdate
from sigma9_core.notifying import TRIES, Notifying

NOW = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)


def status(number: int) -> Event:
    return Event("status_update", number, NOW, StatusUpdate(changed=("feed",), status={"n": number}), "{}")


def line(text: str) -> Event:
    return Event("log", None, NOW, LogLine(level="info", logger="sigma9.test", message=text), "{}")


class Bell:
    """A notifier that keeps what it was told, and fails when it is to."""

    def __init__(self, *types: EventType) -> None:
        self.types: frozenset[EventType] = frozenset(types or ("status_update",))
        self.heard: list[int | str] = []
        self.tried: list[int | str] = []
        self.threads: set[str] = set()
        self.fails: Callable[[Event], bool] = lambda _event: False

    def notify(self, event: Event) -> None:
        self.threads.add(threading.current_thread().name)
        what = event.data.status["n"] if isinstance(event.data, StatusUpdate) else event.data.message  # type: ignore[union-attr]
        self.tried.append(what)
        if self.fails(event):
            raise ConnectionError("the bell is broken")
        self.heard.append(what)


class Room:
    """A bus and notifiers on it."""

    def __init__(self) -> None:
        self.bus = EventBus("main")
        self.health: list[tuple[str, str | None]] = []
        self.notifying = Notifying([], self._health)

    def _health(self, name: str, error: str | None) -> None:
        self.health.append((name, error))

    def start(self, **bells: Any) -> None:
        self.notifying = Notifying(list(bells.items()), self._health)
        self.notifying.start(self.bus)

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not what():  # noqa: ASYNC110 - threads are awaited
                await asyncio.sleep(0.002)

    async def heard(self, bell: Bell, what: Iterable[int | str]) -> None:
        wanted = list(what)
        await self.until(lambda: len(bell.heard) >= len(wanted))
        assert bell.heard == wanted


@pytest.fixture(name="room")
async def _room(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    room = Room()
    yield room
    await room.notifying.stop()


async def test_each_gets_what_it_wants_in_order_on_its_own_thread(room: Room) -> None:
    """Events arrive in order, those of the wanted types alone, on a thread that is the notifier's."""
    bell, ear = Bell(), Bell("log")
    room.start(bell=bell, ear=ear)
    for number in range(20):
        room.bus.dispatch([status(number), line(f"line {number}")])

    await room.heard(bell, range(20))
    await room.heard(ear, [f"line {number}" for number in range(20)])
    assert bell.threads == {"sigma9-worker-bell"}
    assert room.health == []


async def test_one_that_fails_is_told_the_same_again(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """After a failure the same event is told again: a network that was away for a moment costs nothing."""
    bell = Bell()
    bell.fails = lambda _event: len(bell.tried) <= TRIES - 1
    room.start(bell=bell)
    room.bus.dispatch([status(1), status(2)])

    await room.heard(bell, [1, 2])
    assert bell.tried == [1] * TRIES + [2]
    assert room.health == [("bell", "the bell is broken")] * (TRIES - 1) + [("bell", None)]
    assert "the notifier bell failed (the bell is broken); it is told the same again" in caplog.text


async def test_an_event_that_it_can_t_bear_is_left_out(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """An event that fails every time is given up, said, and the next one is told."""
    bell = Bell()
    bell.fails = lambda event: event.seq == 1
    room.start(bell=bell)
    room.bus.dispatch([status(1), status(2)])

    await room.heard(bell, [2])
    assert bell.tried == [1] * TRIES + [2]
    assert "this event is left out" in caplog.text


async def test_the_pause_grows_and_begins_anew(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pauses double up to the longest one, over all events, and begin anew after a success."""
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)
    bell = Bell()
    bell.fails = lambda event: event.seq != 3
    room.start(bell=bell)
    room.bus.dispatch([status(number) for number in range(1, 5)])
    await room.until(lambda: len(bell.tried) == 3 * TRIES + 1)
    await room.until(lambda: len(caplog.records) == 3 * TRIES)

    pauses = [record.args[3] for record in caplog.records if isinstance(record.args, tuple)]
    assert pauses == [0.01, 0.02, 0.04, 0.05, 0.05, 0.05, 0.01, 0.02, 0.04]


async def test_one_that_fails_or_hangs_disturbs_nobody(room: Room) -> None:
    """While one raises and another blocks, a third one gets its events at once."""
    broken, stuck, well = Bell(), Bell(), Bell()
    held = threading.Event()
    broken.fails = lambda _event: True
    stuck.fails = lambda _event: not held.wait(5)
    room.start(broken=broken, stuck=stuck, well=well)
    try:
        for number in range(50):
            room.bus.dispatch([status(number)])
        await room.heard(well, range(50))
        assert stuck.heard == []
    finally:
        held.set()


async def test_one_that_falls_behind_goes_on(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """More events than there is room for are left out and said; later ones arrive again."""
    bell = Bell()
    held = threading.Event()
    bell.fails = lambda _event: not held.wait(5)
    room.start(bell=bell)
    room.bus.dispatch([status(0)])
    await room.until(lambda: bell.tried == [0])
    room.bus.dispatch([status(number) for number in range(1, 2000)])
    held.set()
    await room.until(lambda: "fell behind" in caplog.text)
    room.bus.dispatch([status(5000)])

    await room.until(lambda: bell.heard[-1] == 5000)
    assert len(bell.heard) < 2000


async def test_one_that_is_switched_off_is_silent(room: Room) -> None:
    """A disabled notifier is told nothing, not even again; once enabled, what comes from then on."""
    bell = Bell()
    bell.fails = lambda event: event.seq == 1
    room.start(bell=bell)
    room.bus.dispatch([status(1)])
    await room.until(lambda: bell.tried == [1])
    assert room.notifying.enable("bell", False)
    room.bus.dispatch([status(2)])
    await asyncio.sleep(0.1)
    tried = len(bell.tried)
    assert room.notifying.enable("bell", True)
    room.bus.dispatch([status(3)])

    await room.heard(bell, [3])
    assert bell.tried[tried:] == [3]
    assert 2 not in bell.tried


async def test_names(room: Room) -> None:
    """Notifiers are known by name; one that is not there can't be switched."""
    room.start(a=Bell(), b=Bell())

    assert room.notifying.names() == ("a", "b")
    assert not room.notifying.enable("c", True)


async def test_one_without_types_is_left_out(room: Room) -> None:
    """A notifier that does not say what it wants is named in the status; the others and the start go on."""
    bell = Bell()
    room.start(mute=object(), bell=bell)
    room.bus.dispatch([status(1)])

    await room.heard(bell, [1])
    assert room.health[0][0] == "mute"
    assert "types" in (room.health[0][1] or "")


async def test_after_the_end_nothing_is_told(room: Room) -> None:
    """`stop` leaves the bus and ends the tasks and threads."""
    bell = Bell()
    room.start(bell=bell)
    room.bus.dispatch([status(1)])
    await room.heard(bell, [1])
    await room.notifying.stop()
    room.bus.dispatch([status(2)])

    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("notifier")]
    await room.until(lambda: not any(t.name == "sigma9-worker-bell" for t in threading.enumerate()))
    assert bell.heard == [1]

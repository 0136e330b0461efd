"""What comes after an answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sigma9_core.afterwards import AFTER, Afterwards
from sigma9_core.lanes import Lane


async def test_steps_come_a_moment_later_and_in_order() -> None:
    """Whoever asks for them goes on first."""
    done: list[int] = []
    afterwards = Afterwards()
    for number in range(3):
        afterwards.do(lambda number=number: done.append(number))  # type: ignore[misc]
    await asyncio.sleep(0)
    assert done == []
    await asyncio.sleep(5 * AFTER)
    assert done == [0, 1, 2]


async def test_flush_does_them_once_and_at_once() -> None:
    """What the end of a part has done is not done again by its timer."""
    done: list[int] = []
    afterwards = Afterwards()
    afterwards.do(lambda: done.append(1))
    afterwards.flush()
    assert done == [1]
    await asyncio.sleep(5 * AFTER)
    assert done == [1]


async def test_a_step_that_fails_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""
    done: list[int] = []
    afterwards = Afterwards()
    afterwards.do(lambda: 1 / 0)
    afterwards.do(lambda: done.append(1))
    afterwards.flush()
    assert done == [1]
    assert "after an answer failed" in caplog.text


async def test_the_steps_of_another_loop_are_left_to_it() -> None:
    """Whoever hurries his own on does not mix up the order of theirs; at the end they are done all the same."""
    done: list[str] = []
    afterwards = Afterwards()
    lane = Lane("doors")
    lane.start()
    await lane.ask(afterwards.do, lambda: done.append("theirs"))
    afterwards.do(lambda: done.append("mine"))
    afterwards.flush()
    assert done == ["mine"]
    lane.stop()
    afterwards.end()
    assert done == ["mine", "theirs"]


async def test_the_end_does_not_overtake_what_a_loop_is_doing() -> None:
    """The row of an answer does not come before the one of its command, which another thread is about to write."""
    done: list[int] = []
    afterwards = Afterwards()
    begun, goes_on = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        goes_on.wait(5)
        done.append(1)

    lane = Lane("doors")
    lane.start()
    await lane.ask(afterwards.do, first)
    await lane.ask(afterwards.do, lambda: done.append(2))
    await asyncio.to_thread(begun.wait, 5)
    end = asyncio.create_task(asyncio.to_thread(afterwards.end))
    await asyncio.sleep(0.05)
    goes_on.set()
    await end
    lane.stop()
    assert done == [1, 2]

"""A lane is an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from pytest_mock import MockerFixture

from sigma9_core.lanes import Lane

DEADLINE = 10.0


@pytest.fixture(name="lane")
def _lane() -> Iterator[Lane]:
    lane = Lane("money")
    lane.start()
    yield lane
    lane.stop()


async def where() -> str:
    return threading.current_thread().name


async def native() -> int:
    return threading.get_native_id()


def test_lane_runs_in_a_thread_of_its_name(lane: Lane) -> None:
    """Work runs on the lane's own thread, which does not keep the process alive."""
    assert lane.running
    assert lane.submit(where()).result(DEADLINE) == "sigma9-money"
    threads = {thread.name: thread for thread in threading.enumerate()}
    assert threads["sigma9-money"].daemon


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="it has no such schedulers")
def test_an_urgent_lane_is_woken_first_where_the_system_grants_it() -> None:
    """Its thread has real-time priority where that is granted, and hands it on to no thread that it starts."""

    async def policies() -> tuple[int, int]:
        return os.sched_getscheduler(0), await asyncio.to_thread(os.sched_getscheduler, 0)

    lane = Lane("doors", urgent=True)
    lane.start()
    mine, child = lane.submit(policies()).result(DEADLINE)
    lane.stop()
    assert child == os.SCHED_OTHER
    try:  # a thread of the test's own: what the system grants it, it grants the lane
        with ThreadPoolExecutor(1) as pool:
            pool.submit(os.sched_setscheduler, 0, os.SCHED_RR, os.sched_param(1)).result(DEADLINE)
    except OSError:
        assert mine == os.SCHED_OTHER
    else:
        assert mine == os.SCHED_RR | os.SCHED_RESET_ON_FORK


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="it has no such schedulers")
def test_a_lane_is_hurried_for_as_long_as_anybody_wants_it(lane: Lane, mocker: MockerFixture) -> None:
    """Two kills at once: it is urgent until both are answered."""
    set_to = mocker.patch("os.sched_setscheduler", side_effect=PermissionError)
    with lane.hurried():
        with lane.hurried():
            assert set_to.call_count == 1
        assert set_to.call_count == 1
    policies = [call.args[1] & ~os.SCHED_RESET_ON_FORK for call in set_to.call_args_list]
    threads = {call.args[0] for call in set_to.call_args_list}
    assert policies == [os.SCHED_RR, os.SCHED_OTHER]
    assert threads == {lane.submit(native()).result(DEADLINE)}


def test_an_urgent_lane_works_without_the_right(mocker: MockerFixture) -> None:
    """Where the system refuses, or has no such call, the lane runs as any other."""
    for refusal in (PermissionError(1, "no"), AttributeError("sched_setscheduler")):
        mocker.patch("os.sched_setscheduler", side_effect=refusal)
        lane = Lane("doors", urgent=True)
        lane.start()
        assert lane.submit(where()).result(DEADLINE) == "sigma9-doors"
        lane.stop()


def test_lane_has_a_loop_between_start_and_stop_alone() -> None:
    """Before `start` and after `stop` the error says what to call; stopping twice is fine."""
    lane = Lane("market")
    with pytest.raises(RuntimeError, match=r"the lane market is not running: call start\(\) first"):
        _ = lane.loop
    lane.stop()
    lane.start()
    assert lane.loop.is_running()
    lane.stop()
    lane.stop()

    assert not lane.running
    with pytest.raises(RuntimeError, match="is not running"):
        lane.post(print)
    assert not any(thread.name == "sigma9-market" for thread in threading.enumerate())


def test_lane_starts_again() -> None:
    """A stopped lane can be started anew."""
    lane = Lane("market")
    for _ in range(2):
        lane.start()
        assert lane.submit(where()).result(DEADLINE) == "sigma9-market"
        lane.stop()


async def test_ask_calls_a_function_on_the_lane(lane: Lane) -> None:
    """A plain function runs on the lane; its result, or what it raises, comes to whoever asked, on any loop."""
    assert await lane.ask(lambda text: (threading.current_thread().name, text), "x") == ("sigma9-money", "x")
    with pytest.raises(ValueError, match="invalid literal"):
        await lane.ask(int, "not a number")

    async def from_within() -> str:
        return await lane.ask(lambda: threading.current_thread().name)

    assert await lane.call(from_within()) == "sigma9-money"


async def test_call_brings_the_result_to_this_loop(lane: Lane) -> None:
    """A coroutine runs over there, its result and its error arrive here."""

    async def fail() -> None:
        raise ValueError("over there")

    assert await lane.call(where()) == "sigma9-money"
    with pytest.raises(ValueError, match="over there"):
        await lane.call(fail())


def test_call_on_the_lane_itself_does_not_wait_for_itself(lane: Lane) -> None:
    """Calling a lane from itself runs the work in place."""

    async def inside() -> str:
        return await lane.call(where())

    assert lane.submit(inside()).result(DEADLINE) == "sigma9-money"


async def test_cancelling_a_call_cancels_the_work(lane: Lane) -> None:
    """Who stops waiting ends the work over there."""
    began, ended = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.ensure_future(lane.call(work()))
    await asyncio.to_thread(began.wait, DEADLINE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await asyncio.to_thread(ended.wait, DEADLINE)


def test_posts_keep_their_order(lane: Lane) -> None:
    """What one thread posts is called in its order, on the lane."""
    seen: list[int] = []
    last = threading.Event()
    for number in range(500):
        lane.post(seen.append, number)
    lane.post(last.set)

    assert last.wait(DEADLINE)
    assert seen == list(range(500))


def test_stop_cancels_what_runs_and_lets_it_clean_up(lane: Lane) -> None:
    """Stopping cancels the lane's tasks and waits until they have cleaned up, generators included."""
    began = threading.Event()
    steps: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            steps.append("generator closed")

    generator = numbers()

    async def work() -> None:
        await anext(generator)
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned")

    future = lane.submit(work())
    assert began.wait(DEADLINE)
    lane.stop()

    assert steps == ["cleaned", "generator closed"]
    with pytest.raises(CancelledError):
        future.result(DEADLINE)


def test_lanes_run_side_by_side(lane: Lane) -> None:
    """A lane that is held up does not hold up another."""
    other = Lane("market")
    other.start()
    blocked = threading.Event()
    lane.post(blocked.wait, DEADLINE)

    assert other.submit(where()).result(DEADLINE) == "sigma9-market"

    blocked.set()
    other.stop()

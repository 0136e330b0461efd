"""Tests of `sigma9_core.money.wakes`: many answers, one wake-up a loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from sigma9_core.money.wakes import Wakes


def settle(wakes: Wakes, futures: list[Future[int]]) -> None:
    """Complete futures on a thread of its own, as the journal's writer does."""

    def work() -> None:
        for number, future in enumerate(futures):
            if number == 3:
                future.set_exception(ValueError("the third"))
            else:
                future.set_result(number)
        wakes.flush()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def waiting(wakes: Wakes, futures: list[Future[int]]) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(wakes.wait(future)) for future in futures]
    await asyncio.sleep(0)
    return tasks


async def test_fifty_answers_wake_a_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits gets the result or the error of its own future, by one wake-up for all."""
    wakes, futures = Wakes(), [Future[int]() for _ in range(50)]
    loop, calls = asyncio.get_running_loop(), []
    call = loop.call_soon_threadsafe

    def count(*args: Any, **more: Any) -> Any:
        calls.append(args)
        return call(*args, **more)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    tasks = await waiting(wakes, futures)
    settle(wakes, futures)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [result for result in results if isinstance(result, int)] == [n for n in range(50) if n != 3]
    assert isinstance(results[3], ValueError)
    assert len(calls) == 1


async def test_two_loops_are_both_woken() -> None:
    """Futures of coroutines on different loops are told on their own loops."""
    wakes, here, there = Wakes(), Future[int](), Future[int]()
    ready = threading.Event()

    async def other() -> int:
        asyncio.get_running_loop().call_soon(ready.set)
        return await wakes.wait(there)

    work = asyncio.create_task(asyncio.to_thread(asyncio.run, other()))
    task = asyncio.create_task(wakes.wait(here))
    await asyncio.to_thread(ready.wait, 10)
    settle(wakes, [here, there])

    assert (await task, await work) == (0, 1)


async def test_what_is_done_already_needs_no_wake_up() -> None:
    """A future that is done before anybody waits is told at once."""
    wakes, future = Wakes(), Future[int]()
    future.set_result(7)

    assert await wakes.wait(future) == 7
    failed = Future[int]()
    failed.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await wakes.wait(failed)


async def test_who_stopped_waiting_stands_in_nobody_s_way() -> None:
    """A cancelled waiter takes neither its future nor the others along."""
    wakes, futures = Wakes(), [Future[int](), Future[int]()]
    tasks = await waiting(wakes, futures)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    settle(wakes, futures)

    assert await tasks[1] == 1
    assert futures[0].result() == 0


def test_a_loop_that_has_ended_is_passed_over() -> None:
    """Answers for a loop that is gone are dropped, and the thread goes on."""
    wakes, future = Wakes(), Future[int]()

    async def leave() -> None:
        task = asyncio.create_task(wakes.wait(future))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    settle(wakes, [future])

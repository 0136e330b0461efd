"""Workers and guards: plugin code of unknown speed never blocks, never piles up, never holds up the exit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from sigma9_core.workers import Guard, GuardDisabled, Worker, WorkerStopped, WorkerStuck


@pytest.fixture(name="worker")
async def _worker() -> AsyncIterator[Worker]:
    worker = Worker("sleepy", 0.1)
    yield worker
    worker.stop()


class Gate:
    """A function that blocks until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        self.open.wait(5)
        return "late"


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is awaited happens on a thread
            await asyncio.sleep(0.005)


async def test_a_call_gives_its_result_from_a_thread_of_its_own(worker: Worker) -> None:
    """Calls run one after the other on one thread that is not the caller's."""
    threads = [await worker.call(threading.get_ident) for _ in range(3)]

    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_calls_run_in_the_order_of_calling(worker: Worker) -> None:
    """Calls that wait together run first come first served."""
    seen: list[int] = []
    await asyncio.gather(*(worker.call(seen.append, number) for number in range(50)))

    assert seen == list(range(50))


async def test_a_call_from_another_loop_gets_its_result_there(worker: Worker) -> None:
    """A worker serves callers of any event loop."""
    await worker.call(lambda: None)
    result = await asyncio.to_thread(lambda: asyncio.run(worker.call(lambda: "other")))

    assert result == "other"


async def test_an_exception_reaches_the_caller_and_counts(worker: Worker) -> None:
    """What a function raises is raised to the caller; failures in a row are counted, a success forgets them."""
    for count in (1, 2):
        with pytest.raises(ZeroDivisionError):
            await worker.call(lambda: 1 // 0)
        assert worker.failures == count
    await worker.call(lambda: None)

    assert worker.failures == 0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration])
async def test_a_raise_that_would_end_the_loop_is_an_ordinary_error(
    worker: Worker, error: type[BaseException]
) -> None:
    """SystemExit and its like from plugin code become a RuntimeError, and the thread goes on."""

    def bad() -> None:
        raise error

    with pytest.raises(RuntimeError, match=f"sleepy raised {error.__name__}"):
        await worker.call(bad)

    assert await worker.call(lambda: 1) == 1


async def test_a_call_that_outlives_its_budget_times_out_and_blocks_nobody(worker: Worker) -> None:
    """A timeout comes at the budget; what comes later is refused at once and runs nowhere."""
    gate = Gate()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"sleepy did not answer within 0\.1 s"):
        await worker.call(gate)
    assert 0.09 < time.monotonic() - began < 1.0
    assert worker.stuck
    assert worker.failures == 1
    ran: list[int] = []
    began = time.monotonic()
    with pytest.raises(WorkerStuck, match="sleepy is stuck"):
        await worker.call(ran.append, 1)
    assert time.monotonic() - began < 0.05

    gate.open.set()
    await until(lambda: not worker.stuck)
    await worker.call(ran.append, 2)

    assert ran == [2]


async def test_calls_that_wait_behind_a_stuck_one_are_refused_together(worker: Worker) -> None:
    """What waits in the queue is refused as soon as the running call is stuck."""
    gate = Gate()
    first = asyncio.create_task(worker.call(gate))
    await until(gate.entered.is_set)
    waiting = [asyncio.create_task(worker.call(int)) for _ in range(5)]
    results = await asyncio.gather(first, *waiting, return_exceptions=True)
    gate.open.set()

    assert type(results[0]) is TimeoutError
    assert [type(result) for result in results[1:]] == [WorkerStuck] * 5


async def test_a_waiting_call_has_its_whole_budget_from_its_own_start(worker: Worker) -> None:
    """The budget counts the function's own time, not the time behind others."""
    calls = [worker.call(time.sleep, 0.06) for _ in range(4)]

    assert await asyncio.gather(*calls) == [None] * 4
    assert worker.failures == 0


async def test_being_stuck_counts_once_a_budget_however_often_it_is_called(worker: Worker) -> None:
    """A thousand refused calls are not a thousand failures."""
    gate = Gate()
    with pytest.raises(TimeoutError):
        await worker.call(gate)
    for _ in range(1000):
        with pytest.raises(WorkerStuck):
            await worker.call(int)
    quick = worker.failures
    await asyncio.sleep(0.12)
    with pytest.raises(WorkerStuck):
        await worker.call(int)
    gate.open.set()

    assert quick < 3
    assert worker.failures > quick


async def test_a_stuck_call_is_noticed_although_its_caller_has_gone(worker: Worker) -> None:
    """The next caller finds the worker stuck where the first one was cancelled."""
    gate = Gate()
    task = asyncio.create_task(worker.call(gate))
    await until(gate.entered.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(WorkerStuck):
        await worker.call(int)
    gate.open.set()


async def test_a_cancelled_call_that_has_not_begun_never_runs(worker: Worker) -> None:
    """Cancelling a waiting call takes it out of the queue."""
    worker.budget = 5
    gate = Gate()
    ran: list[int] = []
    first = asyncio.create_task(worker.call(gate))
    await until(gate.entered.is_set)
    second = asyncio.create_task(worker.call(ran.append, 1))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.open.set()

    assert await first == "late"
    await worker.call(ran.append, 2)
    assert ran == [2]


async def test_a_stopped_worker_refuses_and_its_thread_ends() -> None:
    """After stop nothing runs, and the thread is gone."""
    worker = Worker("gone", 1)
    await worker.call(int)
    worker.stop()
    with pytest.raises(WorkerStopped):
        await worker.call(int)

    assert not [thread for thread in threading.enumerate() if thread.name == "sigma9-worker-gone"]


def test_a_stuck_thread_does_not_hold_up_the_exit_of_the_process() -> None:
    """A process with a worker that never comes back ends by itself, at once."""
    program = (
        "import asyncio, time\n"
        "from sigma9_core.workers import Worker\n"
        "async def main():\n"
        "    worker = Worker('w', 0.05)\n"
        "    try:\n"
        "        await worker.call(time.sleep, 600)\n"
        "    except TimeoutError as error:\n"
        "        print(error)\n"
        "    worker.stop()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)

    assert done.stdout == "w did not answer within 0.05 s\n"
    assert done.stderr == ""


class Log:
    """What a guard told."""

    def __init__(self) -> None:
        self.disabled: list[tuple[str, str]] = []
        self.health: list[tuple[str, str | None]] = []

    def on_disabled(self, name: str, sentence: str) -> None:
        self.disabled.append((name, sentence))

    def on_health(self, name: str, error: str | None) -> None:
        self.health.append((name, error))


def fail() -> None:
    """Raise an ordinary error."""
    raise ValueError("no columns")


async def test_a_guard_disables_after_the_limit_and_says_so(worker: Worker) -> None:
    """Three failures in a row disable; nothing is called any more, and status hears of it once."""
    log = Log()
    guard = Guard("mine", worker, 3, log.on_disabled, log.on_health)
    for _ in range(3):
        with pytest.raises(ValueError, match="no columns"):
            await guard.call(fail)
    ran: list[int] = []
    with pytest.raises(GuardDisabled, match="mine is disabled: disabled after 3 failures in a row"):
        await guard.call(ran.append, 1)

    assert ran == []
    assert [name for name, _ in log.disabled] == ["mine"]
    assert [log.health[-1]] == log.disabled
    guard.enable()
    await guard.call(ran.append, 2)
    assert ran == [2]
    assert log.health[-1] == ("mine", None)


async def test_a_good_call_forgets_the_failures_before_it(worker: Worker) -> None:
    """Only failures in a row count, and the health comes back."""
    log = Log()
    guard = Guard("mine", worker, 3, log.on_disabled, log.on_health)
    for _ in range(4):
        for _ in range(2):
            with pytest.raises(ValueError, match="no columns"):
                await guard.call(fail)
        await guard.call(int)

    assert log.disabled == []
    assert log.health == [("mine", "ValueError: no columns"), ("mine", None)] * 4


async def test_a_guard_disables_what_stays_stuck(worker: Worker) -> None:
    """A worker that never comes back is disabled after the limit times its budget."""
    worker.budget = 0.03
    log = Log()
    guard = Guard("mine", worker, 3, log.on_disabled, log.on_health)
    gate = Gate()
    async with asyncio.timeout(5):
        while not guard.disabled:
            with pytest.raises(TimeoutError):
                await guard.call(gate)
            await asyncio.sleep(0.005)
    gate.open.set()

    assert "mine" in log.disabled[0][0]
    assert "stuck" in log.disabled[0][1]
    assert len(log.health) == 2

"""Plugin code of unknown speed runs off the loops: one thread an instance, a time budget a call, and a guard.

A call can't be killed, so a worker that outlives its budget is stuck: its caller gets a TimeoutError, what waits
is refused at once, and it is used again when it comes back. Its thread is a daemon and never holds up the exit.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from sigma9_core.clock import monotonic

T = TypeVar("T")

logger = logging.getLogger("sigma9.workers")

STOP_PATIENCE: Final = 1.0
"""Seconds that `stop` waits for a running call."""


class WorkerStuck(TimeoutError):
    """An earlier call has outlived its budget and is still running: nothing was started; try again later."""


class WorkerStopped(RuntimeError):
    """The worker was stopped: build another one."""


class _Call:
    """One call: what to run, and the loop that waits for its result."""

    __slots__ = ("args", "function", "future", "loop", "started")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.started: float | None = None

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Hand over the outcome, from any thread."""
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            pass  # the caller's loop has ended, and nobody waits any more

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Worker:
    """One daemon thread that runs the calls of one plugin instance, first come first served."""

    def __init__(self, name: str, budget_seconds: float) -> None:
        self.name = name
        self.budget = budget_seconds
        self.failures = 0
        """Failures in a row: raised, timed out, or stuck for one more budget."""
        self._lock = threading.Condition()
        self._waiting: deque[_Call] = deque()
        self._running: _Call | None = None
        self._stuck = False
        self._stopped = False
        self._counted = 0.0
        self._thread: threading.Thread | None = None

    @property
    def stuck(self) -> bool:
        """Tell whether a call has outlived its budget and still runs."""
        return self._stuck

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function on the worker and await its result; callable from any event loop.

        The budget counts from when the function starts. Raise TimeoutError when it is used up (the function may
        still finish, and its result is dropped), WorkerStuck while an earlier call blocks the worker (nothing
        was started), WorkerStopped after `stop`, or whatever the function raises.
        """
        call = _Call(function, args)
        with self._lock:
            self._check_overdue()
            if self._stopped:
                raise WorkerStopped(f"the worker of {self.name} was stopped")
            if self._stuck:
                self._count_stuck()
                raise self._stuck_error()
            self._waiting.append(call)
            self._lock.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"sigma9-worker-{self.name}", daemon=True)
                self._thread.start()
        try:
            result: T = await self._outcome(call)
        finally:
            if not call.future.done():
                call.future.cancel()  # what it still brings is dropped
                self._forget(call)
        return result

    def stop(self) -> None:
        """Refuse what waits, let a running call finish for a moment, and end the thread (once it can)."""
        with self._lock:
            self._stopped = True
            self._refuse_waiting(WorkerStopped(f"the worker of {self.name} was stopped"))
            self._lock.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(0.0 if self._stuck else min(STOP_PATIENCE, self.budget))

    async def _outcome(self, call: _Call) -> Any:
        while True:
            with self._lock:
                running = self._running
                begun = call.started if call.started is not None else running.started if running else None
            wait = self.budget if begun is None else max(0.0, begun + self.budget - monotonic())
            await asyncio.wait((call.future,), timeout=wait)
            if call.future.done():
                return call.future.result()
            with self._lock:
                self._check_overdue()
                if call is self._running and self._stuck:
                    raise TimeoutError(f"{self.name} did not answer within {self.budget:g} s")

    def _check_overdue(self) -> None:
        """Mark the worker as stuck once its running call has used up the budget (the lock is held)."""
        call = self._running
        if call is None or call.started is None or self._stuck or monotonic() < call.started + self.budget:
            return
        self._stuck = True
        self.failures += 1
        self._counted = monotonic()
        self._refuse_waiting(self._stuck_error())

    def _count_stuck(self) -> None:
        """Count being stuck as one more failure for each budget that passes, however often it is called."""
        if monotonic() - self._counted >= self.budget:
            self.failures += 1
            self._counted = monotonic()

    def _stuck_error(self) -> WorkerStuck:
        call = self._running
        since = monotonic() - call.started if call is not None and call.started is not None else self.budget
        return WorkerStuck(
            f"{self.name} is stuck: a call with {self.budget:g} s to answer runs for {since:.1f} s now"
        )

    def _refuse_waiting(self, error: Exception) -> None:
        while self._waiting:
            self._waiting.popleft().finish(None, error)

    def _forget(self, call: _Call) -> None:
        """Take back a call that nobody waits for any more, if it has not begun."""
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)

    def _work(self) -> None:
        while (call := self._next()) is not None:
            result: Any = None
            failure: BaseException | None = None
            try:
                result = call.function(*call.args)
            except BaseException as error:  # noqa: BLE001 - plugin code may raise anything, and its thread goes on
                failure = error
            if failure is not None and (not isinstance(failure, Exception) or isinstance(failure, StopIteration)):
                # A future takes no StopIteration, and SystemExit in a future would end the caller's loop.
                wrapped = RuntimeError(f"{self.name} raised {type(failure).__name__}")
                wrapped.__cause__ = failure
                failure = wrapped
            self._end(call, failure)
            call.finish(result, failure)
            del call, result, failure

    def _next(self) -> _Call | None:
        with self._lock:
            while not self._waiting:
                if self._stopped:
                    return None
                self._lock.wait()
            call = self._waiting.popleft()
            call.started = monotonic()
            self._running = call
            return call

    def _end(self, call: _Call, failure: BaseException | None) -> None:
        with self._lock:
            late = self._stuck
            self._stuck = False
            self._running = None
            if not late:
                self.failures = 0 if failure is None else self.failures + 1
        if late and call.started is not None:
            logger.warning(
                "%s came back after %.1f s; its result is dropped", self.name, monotonic() - call.started
            )


class Guard:
    """Calls a plugin instance through its worker, and disables it after some failures in a row."""

    def __init__(
        self,
        name: str,
        worker: Worker,
        limit: int = 3,
        on_disabled: Callable[[str, str], object] | None = None,
        on_health: Callable[[str, str | None], object] | None = None,
    ) -> None:
        """Store; `on_disabled(name, sentence)` is called once, `on_health(name, error or None)` at each change."""
        self.name = name
        self.limit = limit
        self.disabled = False
        self.error: str | None = None
        """What went wrong in the last call, None after a good one."""
        self._worker = worker
        self._on_disabled = on_disabled
        self._on_health = on_health

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function on the worker; what fails is logged, counted and raised again.

        Raise GuardDisabled without calling anything once the limit is reached. What is to be checked of the
        answer is checked inside the function, so that a wrong one counts as a failure.
        """
        if self.disabled:
            raise GuardDisabled(f"{self.name} is disabled: {self.error}")
        try:
            result = await self._worker.call(function, *args)
        except Exception as error:
            self._failed(error)
            raise
        if self.error is not None:
            self._set(None)
        return result

    def enable(self) -> None:
        """Forget the failures and go on; a person asked for it."""
        self._worker.failures = 0
        self.disabled = False
        self._set(None)

    def stop(self) -> None:
        """Stop the worker."""
        self._worker.stop()

    def _failed(self, error: Exception) -> None:
        if self.disabled:
            return
        sentence = _sentence(error)
        if not isinstance(error, WorkerStuck):
            logger.error("%s failed: %s", self.name, sentence, exc_info=error)
        if self._worker.failures >= self.limit:
            self.disabled = True
            sentence = f"disabled after {self._worker.failures} failures in a row; the last one: {sentence}"
            logger.error("%s is %s", self.name, sentence)
            self._set(sentence)
            if self._on_disabled is not None:
                self._on_disabled(self.name, sentence)
        elif sentence != self.error and not (self.error and isinstance(error, WorkerStuck)):
            self._set(sentence)

    def _set(self, error: str | None) -> None:
        self.error = error
        if self._on_health is not None:
            self._on_health(self.name, error)


def _sentence(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, TimeoutError) and text else f"{type(error).__name__}: {text}"


class GuardDisabled(RuntimeError):
    """The instance was disabled after too many failures: repair it, then enable it again."""

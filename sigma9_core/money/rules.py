"""Risk rules under guard: inline where their speed is known, on a thread of their own where it is not.

Whatever a rule does (raise, hang, answer nonsense), its caller gets an answer or a Failure, in time.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.workers import Worker

log = logging.getLogger("sigma9.risk")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rule gave no answer."""

    reason: str


@dataclass(slots=True)
class GuardedRule:
    """A risk rule as the gate uses it."""

    rule: RiskRule
    inline: bool = True
    """It runs on the money lane itself: for rules whose speed is known. Others run on a thread of their own."""
    enabled: bool = True
    error: str | None = None
    """What is wrong with it; None after an answer that counts."""

    @property
    def name(self) -> str:
        """Give the instance's name."""
        return self.rule.name

    @property
    def code(self) -> str:
        """Give the reason code; `?` where the rule's author forgot it."""
        return getattr(self.rule, "code", "?")

    def failed(self, failure: Failure) -> None:
        """Note that it gave no usable answer; logged once until it changes."""
        if self.error != failure.reason:
            log.error("the risk rule %s fails: %s", self.name, failure.reason)
        self.error = failure.reason

    def fine(self) -> None:
        """Note that it gave an answer that counts."""
        if self.error is not None:
            log.warning("the risk rule %s answers again", self.name)
            self.error = None


def answer_of(function: Callable[..., T], *args: Any) -> T | Failure:
    """Call a rule's method; what it raises becomes a Failure."""
    try:
        answer = function(*args)
    except (Exception, SystemExit) as error:  # a rule is a plugin: it may raise anything
        log.debug("a risk rule raised", exc_info=error)
        return Failure(described(error))
    if inspect.iscoroutine(answer):
        answer.close()
        return Failure("its methods must not be async")
    return answer


def described(error: BaseException) -> str:
    """Write an exception as a clause."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True, slots=True)
class _Look:
    """What one background look at a rule has found."""

    trip: object
    usage: object
    memory: object


class OutsideRule:
    """A rule on a thread of its own: asked for verdicts in time, and looked at in the background."""

    def __init__(self, guard: GuardedRule, budget_seconds: float) -> None:
        self.memory: object = None
        """What the newest look found; None before the first."""
        self._rule = guard.rule
        self._guard = guard
        self._budget = budget_seconds
        self._worker = Worker(f"risk-{guard.name}", budget_seconds)
        self._trip: object = None
        self._usage: object = None
        self._look: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, function: Callable[..., T], *args: Any) -> T | Failure:
        """Call a method of the rule within the budget; while an earlier call is stuck it fails at once."""
        try:
            async with asyncio.timeout(self._budget):
                return await self._worker.call(answer_of, function, *args)
        except TimeoutError as error:  # the worker's own says more than the outer limit's
            return Failure(str(error) or f"it did not answer within {self._budget:g} s")
        except Exception as error:  # noqa: BLE001 - the worker was stopped, or the rule raised past its guard
            return Failure(described(error))

    def trip(self, view: RiskView) -> object:
        """Give the trip that the last look found, once, and begin the next look."""
        found, self._trip = self._trip, None
        self._begin(view)
        return found

    def usage(self, view: RiskView) -> object:
        """Give the usage that the last look found, None before the first, and begin the next look."""
        self._begin(view)
        return self._usage

    def do(self, function: Callable[..., object], *args: Any) -> None:
        """Call a method of the rule in the background, in turn."""
        task = asyncio.get_running_loop().create_task(
            self._do(function, *args), name=f"risk-rule[{self._guard.name} {function.__name__}]"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait for the look that is under way; it has a time limit of its own."""
        if self._look is not None:
            await asyncio.wait((self._look,))

    async def stop(self) -> None:
        """Cancel what is under way and end the thread."""
        running = [*self._tasks, *([self._look] if self._look is not None else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.to_thread(self._worker.stop)  # it joins its thread for a moment

    def _begin(self, view: RiskView) -> None:
        if self._look is None or self._look.done():
            name = f"risk-rule[{self._guard.name} look]"
            self._look = asyncio.get_running_loop().create_task(self._watch(view), name=name)

    async def _watch(self, view: RiskView) -> None:
        found = await self.ask(self._see, view)
        if isinstance(found, Failure):
            self._guard.failed(found)
            return
        self._trip = found.trip if found.trip is not None else self._trip
        self._usage, self.memory = found.usage, found.memory

    def _see(self, view: RiskView) -> _Look:
        rule = self._rule
        return _Look(answer_of(rule.trip, view), answer_of(rule.usage, view), answer_of(rule.memory))

    async def _do(self, function: Callable[..., object], *args: Any) -> None:
        answer = await self.ask(function, *args)
        if isinstance(answer, Failure):
            self._guard.failed(answer)


__all__ = ["Failure", "GuardedRule", "OutsideRule", "answer_of", "described"]

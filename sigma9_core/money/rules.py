"""Risk rules under guard: inline where their speed is known, on a thread where it is not.

Whatever a rule does (raise, hang, answer nonsense), its caller gets an answer or a Failure, in time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import CoroutineType
from typing import Any, TypeVar

from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.workers import Worker, WorkerStuck

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
    """It runs on the money lane itself: for rules whose speed is known. Others are asked on a thread."""
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
    except BaseException as error:  # a rule is a plugin: it may raise anything, SystemExit too
        log.debug("a risk rule raised", exc_info=error)
        return Failure(described(error))
    if isinstance(answer, CoroutineType):
        answer.close()
        return Failure("its methods must not be async")
    return answer


def described(error: BaseException) -> str:
    """Write an exception as a clause."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True, slots=True)
class Question:
    """One call of one rule's method."""

    guard: GuardedRule
    function: Callable[..., object]
    args: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """What one background look at a rule has found; each may be a Failure."""

    trip: object
    usage: object
    memory: object


class _Round:
    """Some questions that share one hop to the thread; guarded by the lock of its `OutsideRules`."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.answers: list[object] = []
        self.running: GuardedRule | None = None
        self.over = False
        """The asker has given up; whoever is on the thread comes too late."""

    @property
    def done(self) -> bool:
        """Tell whether every question has its answer."""
        return len(self.answers) == len(self.questions)


class OutsideRules:
    """The rules of unknown speed: one shared thread asks them in turn, so that an order pays one hop for all.

    A rule that outlives the budget is stuck: it fails at once until its call comes back, and the others go on with
    a new thread. So no rule holds up an order for longer than the budget, and each can block one thread at most.
    """

    def __init__(self, budget_seconds: float) -> None:
        self._budget = budget_seconds
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._stuck: dict[int, RiskRule] = {}
        self._looks: dict[str, Look] = {}
        self._looking: asyncio.Task[None] | None = None
        self._errands: dict[asyncio.Task[None], GuardedRule] = {}
        self._number = 0

    async def ask(self, questions: Sequence[Question]) -> list[object]:
        """Ask in turn, within one budget; give an answer or a Failure for each question."""
        free = [id(question.guard.rule) not in self._stuck for question in questions]
        round_ = _Round([question for question, is_free in zip(questions, free, strict=True) if is_free])
        try:
            async with asyncio.timeout(self._budget):
                await self._errands_of(questions)
                while not round_.done:
                    worker = self._thread()
                    try:
                        await worker.call(self._run, worker, round_)
                    except WorkerStuck:  # a call before ours; its asker has given up, or is about to
                        self._forget(worker)
        except TimeoutError:
            pass  # what has no answer gets a Failure below
        finally:
            holder = self._give_up(round_)
        answers = iter(round_.answers)
        return [
            next(answers, self._late(question, holder))
            if is_free
            else Failure("an earlier call has not come back yet")
            for question, is_free in zip(questions, free, strict=True)
        ]

    def look(self, guards: Sequence[GuardedRule], view: RiskView) -> None:
        """Begin a look at each rule in the background: trip, usage and memory; one look at a time."""
        if guards and (self._looking is None or self._looking.done()):
            task = self._watch(tuple(guards), view)
            self._looking = asyncio.get_running_loop().create_task(task, name="risk-rules[look]")

    def seen(self, guard: GuardedRule) -> Look | None:
        """Give what the newest look at a rule has found, None before the first."""
        return self._looks.get(guard.name)

    def take_trip(self, guard: GuardedRule) -> object:
        """Give the trip that a look has found, once."""
        look = self._looks.get(guard.name)
        if look is None or look.trip is None:
            return None
        self._looks[guard.name] = replace(look, trip=None)
        return look.trip

    def put_memory(self, guard: GuardedRule, memory: object) -> None:
        """Take a memory as known until the next look."""
        look = self._looks.get(guard.name) or Look(None, None, None)
        self._looks[guard.name] = replace(look, memory=memory)

    def forget(self, guard: GuardedRule) -> None:
        """Drop what the looks have found: the rule is another one now."""
        self._looks.pop(guard.name, None)

    def send(self, guard: GuardedRule, function: Callable[..., object], *args: object) -> None:
        """Call a method of a rule in the background, in the order of the calls and before its next question."""
        errand = self._errand(Question(guard, function, args))
        task = asyncio.get_running_loop().create_task(errand, name=f"risk-rules[{guard.name} {function.__name__}]")
        self._errands[task] = guard
        task.add_done_callback(self._errands.pop)

    async def settle(self) -> None:
        """Wait for the errands and the look that are under way; their budget bounds it."""
        under_way = [*self._errands, *([self._looking] if self._looking is not None else [])]
        if under_way:
            await asyncio.wait(under_way)

    async def stop(self) -> None:
        """Cancel what is under way and end the thread."""
        under_way = [*self._errands, *([self._looking] if self._looking is not None else [])]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.stop)  # it joins its thread for a moment

    async def _watch(self, guards: Sequence[GuardedRule], view: RiskView) -> None:
        for guard in guards:  # each a call of its own, so that an order waits for one rule at most
            found = (await self.ask([Question(guard, _see, (guard.rule, view))]))[0]
            if isinstance(found, Look):
                kept = self._looks.get(guard.name)
                if found.trip is None and kept is not None:
                    found = replace(found, trip=kept.trip)  # not fetched yet
                self._looks[guard.name] = found
            elif isinstance(found, Failure):
                guard.failed(found)

    async def _errands_of(self, questions: Sequence[Question]) -> None:
        """Wait for what was sent to the asked rules before; an errand of theirs waits for the ones before it."""
        mine, asked = asyncio.current_task(), {id(question.guard) for question in questions}
        for task, guard in list(self._errands.items()):
            if task is mine:
                break
            if id(guard) in asked:
                await asyncio.wait([task])

    async def _errand(self, question: Question) -> None:
        answer = (await self.ask([question]))[0]
        if isinstance(answer, Failure):
            question.guard.failed(answer)

    def _thread(self) -> Worker:
        if self._worker is None:
            self._number += 1
            self._worker = Worker(f"risk-rules-{self._number}", self._budget)
        return self._worker

    def _forget(self, worker: Worker) -> None:
        if self._worker is worker:
            self._worker = None

    def _run(self, worker: Worker, round_: _Round) -> None:
        """Ask the questions of a round, on the thread."""
        for question in round_.questions:
            with self._lock:
                if round_.over:
                    break
                round_.running = question.guard
            answer = answer_of(question.function, *question.args)
            with self._lock:
                if round_.over:  # too late: the rule is free again, its thread is not needed any more
                    self._stuck.pop(id(question.guard.rule), None)
                    break
                round_.running = None
                round_.answers.append(answer)
        if self._worker is not worker:  # another thread has taken over
            worker.stop()

    def _give_up(self, round_: _Round) -> GuardedRule | None:
        """End a round; give the rule that holds the thread, where one does, and take another thread next time."""
        with self._lock:
            if round_.done:
                return None
            round_.over = True
            holder = round_.running
            if holder is not None:
                self._stuck[id(holder.rule)] = holder.rule
                self._worker = None
            return holder

    def _late(self, question: Question, holder: GuardedRule | None) -> Failure:
        if holder is question.guard:
            return Failure(f"it did not answer within {self._budget:g} s")
        return Failure(f"it was not asked in time: {holder.name if holder else 'another rule'} holds the thread")


def _see(rule: RiskRule, view: RiskView) -> Look:
    return Look(answer_of(rule.trip, view), answer_of(rule.usage, view), answer_of(rule.memory))


__all__ = ["Failure", "GuardedRule", "Look", "OutsideRules", "Question", "answer_of", "described"]

"""Questions to TWS and their answers: a question has one answer, an error, or the end of the connection.

An answer without a number does not say which question it is for. So there is one such question of a kind at a
time, and its turn ends with its answer, not with the patience of who has asked: an answer that comes late is
nobody's, and the next question is not sent before. Where it never comes, the connection is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from sigma9_core.errors import BrokerError
from sigma9_plugins.brokers.ibkr.codes import request_fails, says
from sigma9_plugins.brokers.ibkr.lanes import Parcel
from sigma9_plugins.brokers.ibkr.wire import Handler, Wire

T = TypeVar("T")
COMPLAINTS: Final = frozenset((320, 321, 322, 323))
"""Codes that may be about a question that has no number."""


class RequestFailed(BrokerError):
    """TWS answered a question with a code."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(says(code, text))


class Answer(Generic[T]):
    """Collects the messages that answer one question."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.on_end: Callable[[], None] = lambda: None
        """Told when it is complete, also where nobody waits for it any more."""
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self, *_: Any) -> None:
        """Say that it is complete."""
        if not self._done.done():
            self._done.set_result(None)
        self.on_end()

    def fail(self, error: BrokerError) -> None:
        """Say that there will be none."""
        if not self._done.done():
            self._done.set_exception(error)

    async def wait(self) -> list[T]:
        """Wait for it; it goes on where who waits is stopped."""
        await asyncio.shield(self._done)
        return self.items

    def forget(self) -> None:
        """Leave it, so that a failure that comes later is nobody's."""
        if self._done.done():
            if not self._done.cancelled():
                self._done.exception()
        else:
            self._done.cancel()


class _Single:
    """One question without a number, from its turn's beginning to its answer's end."""

    def __init__(
        self,
        wire: Wire,
        what: str,
        answer: Answer[Any],
        handlers: Mapping[str, Handler],
        *,
        over: Callable[[], None],
        after: tuple[str, tuple[Any, ...]] | None,
    ) -> None:
        """Begin to listen; `over` is called once, when nothing of the answer can come any more."""
        self.answer = answer
        self.parcel: Parcel | None = None
        self.disputed = False
        """A complaint of TWS may have been its answer."""
        self._wire = wire
        self._what = what
        self._handlers = handlers
        self._over = over
        self._after = after
        self._left = self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        answer.on_end = self._end
        wire.on(handlers)

    def leave(self, patience: float, excused: Callable[[], bool]) -> None:
        """Say that nobody waits any more; what TWS owes yet has `patience` seconds, and longer while `excused`."""
        self.answer.forget()
        self._left = True
        gone = self.parcel is None or self._wire.lanes.drop(self.parcel)
        if gone or self._ended or not self._wire.is_open:
            self._close(sent=not gone)
        else:
            wait = patience / 2 if self.disputed else patience  # who asks next waits no longer than that
            self._timer = asyncio.get_running_loop().call_later(wait, self._late, patience, excused)

    def _end(self) -> None:
        self._ended = True
        if self._left:
            self._close(sent=True)

    def _late(self, patience: float, excused: Callable[[], bool]) -> None:
        if self._wire.is_open and not self.disputed:
            if excused():
                self._timer = asyncio.get_running_loop().call_later(patience, self._late, patience, excused)
                return
            self._wire.abort(f"TWS owes the {self._what} for too long: its answer could be taken for another's")
        self._close(sent=True)

    def _close(self, *, sent: bool) -> None:
        """End the turn, and what the question has begun."""
        if self._timer is not None:
            self._timer.cancel()
        self.answer.on_end = lambda: None
        self._wire.off(self._handlers)
        self._over()
        if sent and self._after is not None and self._wire.is_open:
            self._wire.put("questions", self._after)


class Asking:
    """Asks over one wire."""

    def __init__(self, wire: Wire, within: float, excused: Callable[[], bool] = lambda: False) -> None:
        """Store; answers that are `excused` may take as long as they like: TWS has nobody to ask."""
        self._wire = wire
        self._within = within
        self._excused = excused
        self._open: dict[int, Answer[Any]] = {}
        self._singles: set[_Single] = set()
        self._guarded: set[Answer[Any]] = set()
        self._turns: dict[str, asyncio.Lock] = {}
        wire.on({"error": self._error})

    async def numbered(
        self,
        what: str,
        handlers: Callable[[Answer[T], int], dict[str, Handler]],
        call: Callable[[int], tuple[str, tuple[Any, ...]]],
        *,
        within: float | None = None,
        after: Callable[[int], tuple[str, tuple[Any, ...]]] | None = None,
    ) -> list[T]:
        """Ask a question that has a number; `after` is sent when it is over, such as the end of a subscription.

        Raise RequestFailed for an error, BrokerError where no answer came.
        """
        number, answer = self._wire.number(), Answer[T]()
        self._open[number] = answer
        parcel: Parcel | None = None
        try:
            with self._wire.listening(handlers(answer, number)):
                parcel = self._wire.put("questions", call(number))
                return await self._wait(what, answer, within)
        finally:
            del self._open[number]
            answer.forget()
            self._over(parcel, None if after is None else after(number))

    async def single(
        self,
        what: str,
        handlers: Callable[[Answer[T]], dict[str, Handler]],
        *calls: tuple[str, tuple[Any, ...]],
        after: tuple[str, tuple[Any, ...]] | None = None,
    ) -> list[T]:
        """Ask a question that has no number: one at a time, so that the answer is that of this question.

        Raise RequestFailed for a complaint, BrokerError where no answer came, or the one before is still owed.
        """
        turn = self._turns.setdefault(what, asyncio.Lock())
        try:
            async with asyncio.timeout(self._within):
                await turn.acquire()
        except TimeoutError as error:
            raise BrokerError(f"TWS still owes the {what} that it was asked for before") from error
        answer = Answer[T]()
        single = _Single(self._wire, what, answer, handlers(answer), over=turn.release, after=after)
        self._singles.add(single)
        try:
            single.parcel = self._wire.put("questions", *calls)
            return await self._wait(what, answer, None)
        finally:
            self._singles.discard(single)
            single.leave(self._within, self._excused)

    @asynccontextmanager
    async def guarded(
        self, what: str, answer: Answer[Any], handlers: dict[str, Handler], within: float
    ) -> AsyncIterator[None]:
        """Listen for the answer to what the body sends: it fails with the connection, and after a time."""
        self._guarded.add(answer)
        try:
            with self._wire.listening(handlers):
                async with asyncio.timeout(within):
                    yield
        except TimeoutError as error:
            raise BrokerError(f"TWS did not tell the {what} within {within:g} s") from error
        finally:
            self._guarded.discard(answer)

    def fail_all(self, why: str) -> None:
        """Tell everybody who waits that the connection has ended."""
        singles = (single.answer for single in self._singles)
        for answer in (*self._open.values(), *self._guarded, *singles):
            answer.fail(BrokerError(f"the connection to TWS ended before the answer came: {why}"))

    def _over(self, parcel: Parcel | None, after: tuple[str, tuple[Any, ...]] | None) -> None:
        """Take back a question that has not left and that nobody waits for any more; end what it has begun."""
        if parcel is None or self._wire.lanes.drop(parcel):
            return
        if after is not None and self._wire.is_open:
            self._wire.put("questions", after)

    async def _wait(self, what: str, answer: Answer[T], within: float | None) -> list[T]:
        limit = within or self._within
        try:
            async with asyncio.timeout(limit):
                return await answer.wait()
        except TimeoutError as error:
            raise BrokerError(f"TWS did not tell the {what} within {limit:g} s") from error

    def _error(self, number: int, code: int, text: str, *_: Any) -> None:
        answer = self._open.get(number)
        if answer is not None and request_fails(code):
            answer.fail(RequestFailed(code, text))
        elif number == -1 and code in COMPLAINTS:
            for single in self._singles:  # which of them is meant is not told: their turns go on
                single.disputed = True
                single.answer.fail(RequestFailed(code, text))

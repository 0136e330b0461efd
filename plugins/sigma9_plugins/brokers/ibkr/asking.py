"""Questions to TWS and their answers: a question has one answer, an error, or the end of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
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
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self, *_: Any) -> None:
        """Say that it is complete."""
        if not self._done.done():
            self._done.set_result(None)

    def fail(self, error: BrokerError) -> None:
        """Say that there will be none."""
        if not self._done.done():
            self._done.set_exception(error)

    async def wait(self) -> list[T]:
        """Wait for it."""
        await self._done
        return self.items

    def forget(self) -> None:
        """Leave it, so that a failure that comes later is nobody's."""
        if self._done.done():
            if not self._done.cancelled():
                self._done.exception()
        else:
            self._done.cancel()


class Asking:
    """Asks over one wire."""

    def __init__(self, wire: Wire, within: float) -> None:
        self._wire = wire
        self._within = within
        self._open: dict[int, Answer[Any]] = {}
        self._unnumbered: set[Answer[Any]] = set()
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
        """Ask a question that has no number: one at a time, so that the answer is that of this question."""
        async with self._turns.setdefault(what, asyncio.Lock()):
            answer = Answer[T]()
            self._unnumbered.add(answer)
            parcel: Parcel | None = None
            try:
                with self._wire.listening(handlers(answer)):
                    parcel = self._wire.put("questions", *calls)
                    return await self._wait(what, answer, None)
            finally:
                self._unnumbered.discard(answer)
                answer.forget()
                self._over(parcel, after)

    @asynccontextmanager
    async def guarded(
        self, what: str, answer: Answer[Any], handlers: dict[str, Handler], within: float
    ) -> AsyncIterator[None]:
        """Listen for the answer to what the body sends: it fails with the connection, and after a time."""
        self._unnumbered.add(answer)
        try:
            with self._wire.listening(handlers):
                async with asyncio.timeout(within):
                    yield
        except TimeoutError as error:
            raise BrokerError(f"TWS did not tell the {what} within {within:g} s") from error
        finally:
            self._unnumbered.discard(answer)

    def fail_all(self, why: str) -> None:
        """Tell everybody who waits that the connection has ended."""
        for answer in (*self._open.values(), *self._unnumbered):
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
            for each in self._unnumbered:
                each.fail(RequestFailed(code, text))

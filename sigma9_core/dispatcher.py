"""The one dispatcher: every surface's commands are checked, carried out once, answered and journalled.

    right → arguments → id → expiry → repeat? → received row → handler → answered row → response

The rows of a command are its audit and the memory of repeats. A received row is durable before the handler acts,
and for orders together with their intent; an answer is a fact that the journal writes when it can. What must act
even with a failing journal (kill, stop, pause, cancels) never waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, Final, Protocol

from pydantic import BaseModel

from sigma9_core.afterwards import Afterwards
from sigma9_core.clock import monotonic, rfc3339, wall_now
from sigma9_core.commands import Command, CommandSpec, ControlArgs, KillArgs, Response, allows
from sigma9_core.contracts import CommandHandler
from sigma9_core.errors import (
    BrokerError,
    BrokerRefused,
    CommandError,
    ConfigError,
    JournalError,
    PluginError,
    Sigma9Error,
)
from sigma9_core.explain import Problem, Wrong, validated
from sigma9_core.models import Frozen
from sigma9_core.money.records import CommandRecord, Record
from sigma9_core.payload import find_spec
from sigma9_core.plain import plain
from sigma9_core.registry import check_spec
from sigma9_core.repeats import Key, Known
from sigma9_core.workers import Worker, WorkerStuck

log = logging.getLogger("sigma9.commands")


KEPT_FOR: Final = timedelta(hours=24)
"""How long a repeat is answered with the first answer."""
JOINED: Final = frozenset(("place_order", "modify_order", "close_position"))
"""Their handlers commit the received row together with the intent."""
ALWAYS: Final = frozenset(("kill_switch", "stop", "pause", "cancel_order", "cancel_all"))
"""They act although the journal fails; their rows are facts."""
CONTROLS: Final[Mapping[str, str]] = {"start": "start", "stop": "stop", "kill": "kill_switch"}
"""What the words of `control` stand for."""
PLUGIN_BUDGET: Final = 10.0
"""Seconds that the handler of a plugin's command may take."""
READ_BUDGET: Final = 5.0
"""Seconds that the journal may take to say whether a command is a repeat."""
LONGEST_REASON: Final = 500
_SORTED: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
KILL_ANSWERED: Final = 3.0
"""Seconds until a kill is answered although its work has not: it answers within 2 where the money lane runs."""
STUCK: Final = (
    "the gate is closed and nothing leaves, but what moves the money does not answer (does the broker block it?): "
    "orders are cancelled and positions closed as soon as it can; it may be that only ending the process helps"
)
BEGUN: Final = (
    "a command with this id was begun before a restart, and its answer was lost: read the state, and send it "
    "again under another id if it is still wanted"
)


@dataclass(frozen=True, slots=True)
class Call:
    """One command on its way through its handler."""

    command: Command
    records: Sequence[Record] = ()
    """Of a joined command: to be committed together with the first intent. Empty for all others."""


Handler = Callable[[Any, Call], Awaitable[Mapping[str, Any] | None]]
"""Takes the validated arguments and the call, gives the result.

It raises CommandError only before it has done anything: such an answer is not kept, and the same id may try again.
What it learns after it has acted belongs into the result.
"""

Recover = Callable[[CommandRecord], Awaitable[Mapping[str, Any] | None]]
"""Finds the true result of a command that was begun before a restart, None where it can't be known."""


class Hold(Protocol):
    """What stands in for a command from the moment in which it is heard."""

    def lift(self) -> None:
        """Take it off, from any thread and without waiting for a lock; twice is once."""


class _Held:
    """Keeps a hold for as long as anybody may carry out its command.

    Only the command knows of it. Where that is dropped before its work has begun, as with a coroutine that nobody
    awaits or a task that is cancelled before its first step, nothing else would ever take the hold off.
    """

    __slots__ = ("_hold",)

    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    def lift(self) -> None:
        """Take it off."""
        self._hold.lift()

    def __del__(self) -> None:
        """Take it off; nothing is logged, because garbage may be collected while the log holds a lock."""
        self._hold.lift()


class _Once:
    """Hands on the first answer to a command, and no other: a kill may have one before its work has."""

    __slots__ = ("_answered",)

    def __init__(self, answered: Callable[[Response], None]) -> None:
        self._answered: Callable[[Response], None] | None = answered

    def give(self, response: Callable[[], Response]) -> None:
        """Hand on what `response` makes, unless there was an answer before."""
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(response())


class CommandJournal(Protocol):
    """What the dispatcher needs of the journal."""

    def write(self, records: Sequence[Record], *, fact: bool = False) -> Future[Any]:
        """Hand over records from any thread, at once."""

    async def commit(self, records: Sequence[Record], *, fact: bool = False) -> Any:
        """Hand over records and wait until they are durable; JournalError where they won't be."""

    def command(self, command: str, id: str, since: datetime) -> list[CommandRecord]:  # noqa: A002 - the contract's name
        """Give what is known of a (command, id), newest first (blocks)."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer whose row may not be durable yet."""

    digest: str
    response: Response
    kept: bool
    at: datetime


class Dispatcher:
    """Carries out commands on the outer loop; `kill_switch` alone may come from any loop."""

    def __init__(
        self,
        specs: Mapping[str, CommandSpec],
        handlers: Mapping[str, Handler],
        *,
        journal: CommandJournal,
        clock_wall: Callable[[], datetime] = wall_now,
        recover: Mapping[str, Recover] | None = None,
        bar: Callable[[KillArgs], Hold] | None = None,
    ) -> None:
        """Store; `bar` closes the gate at once for a kill that is valid, on whatever thread it is heard."""
        self._specs = dict(specs)
        self._handlers = dict(handlers)
        self._journal = journal
        self._now = clock_wall
        self._recover = dict(recover or {})
        self._bar = bar
        self._reader = Worker("journal reader", READ_BUDGET)
        self._workers: list[Worker] = []
        self._running: dict[Key, str] = {}
        """The digest of each (command, id) in progress."""
        self._answers: dict[Key, _Answer] = {}
        """Answers whose rows are not known to be durable."""
        self._known = Known()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._rows = Afterwards()
        self._lines = Afterwards()
        """What is written, and told, of what was answered."""

    @property
    def specs(self) -> Mapping[str, CommandSpec]:
        """Give the table of commands: the built-in ones first, then those of plugins."""
        return self._specs

    def register(
        self, spec: CommandSpec, handler: CommandHandler, *, budget_seconds: float = PLUGIN_BUDGET
    ) -> None:
        """Add a plugin's command, whose handler runs on a worker of its own; raise PluginError for a clash."""
        check_spec(spec)
        if spec.name in self._handlers or self._specs.get(spec.name, spec) is not spec:
            raise PluginError(f"there are two commands '{spec.name}': rename one")
        worker = Worker(f"the command {spec.name}", budget_seconds)

        async def run(args: Frozen, _call: Call) -> Mapping[str, Any] | None:
            try:
                result: Mapping[str, Any] | None = await worker.call(_checked, handler, args)
            except WorkerStuck as error:
                raise CommandError("busy", str(error)) from error
            return result

        self._workers.append(worker)
        self._specs[spec.name] = spec
        self._handlers[spec.name] = run

    def dispatch(self, command: Command) -> Coroutine[Any, Any, Response]:
        """Carry out a command and answer it; never raises but where the caller itself is cancelled.

        A caller that goes away does not stop a command in the middle of its work. When this returns, before
        anything is awaited, the gate is closed for a kill; all else happens when it is awaited. A kill that is
        never awaited does nothing else, and the gate is as it was once its coroutine is gone.
        """
        return self._dispatch(*self._held(command))

    def begin(self, command: Command, answered: Callable[[Response], None]) -> None:
        """Carry out a command beside others, as `dispatch` does; `answered` gets its answer on this loop, once.

        Once this returns the gate is closed for a kill.
        """
        self._begin(*self._held(command), answered)

    def _begin(self, command: Command, args: Frozen | None, answered: Callable[[Response], None]) -> None:
        """Carry out a command in a task of its own: each further one would cost a kill a turn of the loop."""
        loop, lift = asyncio.get_running_loop(), command.taken
        first = _Once(answered)
        task = loop.create_task(self._deliver(command, args, first), name=f"command[{command.name}]")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if lift is not None:
            timer = loop.call_later(KILL_ANSWERED, lambda: first.give(partial(self._stuck, command)))
            task.add_done_callback(lambda _: timer.cancel())
            task.add_done_callback(lambda _: lift())
        # It may be cancelled before its first step.
        task.add_done_callback(lambda _: first.give(partial(self._cut_off, command)))

    async def _deliver(self, command: Command, args: Frozen | None, first: _Once) -> None:
        response = await self._answer(command, args)
        if command.taken is not None:
            command.taken()  # before the answer: whoever has that finds the gate as it is to be
        first.give(lambda: response)

    def _held(self, command: Command) -> tuple[Command, Frozen | None]:
        """Close the gate for a valid kill; give its arguments too, None where nobody has validated them yet."""
        if self._bar is None or command.name not in ("kill_switch", "control"):
            return command, None
        try:
            args = self.validate(command)
        except CommandError:
            return command, None  # it is told in its answer
        kill = args
        if isinstance(args, ControlArgs):
            if args.command != "kill":
                return command, args
            kill = KillArgs(reason=args.reason)
        return replace(command, taken=_Held(self._bar(kill)).lift), args

    async def _dispatch(self, command: Command, args: Frozen | None) -> Response:
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def answered(response: Response) -> None:
            if not answer.done():
                answer.set_result(response)

        self._begin(command, args, answered)
        return await answer  # a caller that is cancelled while it waits takes nothing of the command with it

    def _cut_off(self, command: Command) -> Response:
        error = CommandError("internal", "the server stopped before the command was done: read the state")
        return self._failed(command, error, command.received or monotonic())

    def _stuck(self, command: Command) -> Response:
        """Answer a kill of which nothing has been done yet but what its door could do by itself."""
        result = {"cancelled_orders": [], "closed_positions": [], "pending": [], "latched": False, "note": STUCK}
        log.critical("kill_switch by %s: %s", command.source, STUCK)
        took = (monotonic() - (command.received or monotonic())) * 1000
        return Response(command.id, command.name, True, result, None, command.source, self._now(), took)

    def kill(self, command: Command) -> Coroutine[Any, Any, Response]:
        """Carry out a `kill_switch` command at once, as `dispatch` does; callable on any loop."""
        return self.dispatch(command) if command.name == "kill_switch" else self._no_kill(command)

    async def _no_kill(self, command: Command) -> Response:
        error = CommandError("forbidden", f"this way is for kill_switch alone, not for {command.name}")
        return self._failed(command, error, command.received or monotonic())

    def remember(self, known: Sequence[tuple[str, str, datetime]], *, after: datetime | None) -> None:
        """Learn of which commands the journal has rows, newest first: of all, or of all `after` a time.

        Until then each command is looked up in the journal.
        """
        self._known.recall((((command, id_), at) for command, id_, at in known), after=after)

    async def stop(self, patience: float = 5.0) -> None:
        """Let commands in progress on this loop finish for a while, cancel what is left, end the workers.

        From now on nothing is begun any more but what ends, cancels or only reads.
        """
        self._stopping = True
        loop = asyncio.get_running_loop()
        mine = {
            task for task in tuple(self._tasks) if task.get_loop() is loop and task is not asyncio.current_task()
        }
        if mine:
            _, late = await asyncio.wait(mine, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for worker in (*self._workers, self._reader):
            worker.stop()
        self.flush()

    def flush(self) -> None:
        """Write now the rows of what was answered, and tell of it; no lane answers a kill meanwhile."""
        self._rows.end()
        self._lines.end()

    # --- checks -----------------------------------------------------------------------------------------------

    def validate(self, command: Command) -> Any:
        """Check right, arguments, id and expiry and give the arguments' model; raise CommandError.

        The sentence and `details.errors` name every field that is wrong, `details.field` the first of them.
        """
        spec = find_spec(command.name, self._specs)
        if not allows(command.right, spec.right):
            raise CommandError(
                "forbidden",
                f"{spec.name} needs the right '{spec.right}', and this access has '{command.right}'",
                {"needs": spec.right, "has": command.right},
            )
        args = _validated(spec, command.args)
        if spec.needs_id and command.id is None:
            raise CommandError(
                "invalid", f"{spec.name} requires an id, so that it can't be carried out twice", {"field": "id"}
            )
        now = self._now()
        if command.expires_at is not None and command.expires_at <= now:
            raise CommandError(
                "expired",
                f"{spec.name} was to be carried out until {rfc3339(command.expires_at)}, and came later",
                {"expires_at": rfc3339(command.expires_at), "now": rfc3339(now)},
            )
        return args

    # --- one command ------------------------------------------------------------------------------------------

    async def _answer(self, command: Command, args: Frozen | None) -> Response:
        began = command.received or monotonic()
        try:
            if args is None:
                args = self.validate(command)
            if isinstance(args, ControlArgs) and command.name == "control":
                # It is the command that it stands for, with that command's row and repeats.
                inner = replace(command, name=CONTROLS[args.command], args={"reason": args.reason})
                response = await self._carry_out(inner, self.validate(inner), began)
                response = replace(response, command=command.name)
            else:
                response = await self._carry_out(command, args, began)
        except CommandError as error:
            response = self._failed(command, error, began)
        except Exception as error:  # noqa: BLE001 - a surface must get an answer whatever happens
            response = self._failed(command, _unexpected(command, error), began)
        self._tell(command, response)
        return response

    async def _carry_out(self, command: Command, args: Frozen, began: float) -> Response:
        spec = self._specs[command.name]
        if self._stopping and spec.journalled and spec.name not in ALWAYS:
            raise CommandError("not_running", "the server is stopping; nothing was done")
        if spec.name in ALWAYS and not spec.repeats:
            return await self._act_first(spec, command, args, began)
        received = self._received(command, args) if spec.journalled else None
        if received is None or command.id is None or not spec.repeats:
            return await self._act(spec, command, args, received, began)
        key, digest = (spec.name, command.id), received.digest
        running = self._running.get(key)
        if running is not None:
            raise (
                _conflict(key)
                if running != digest
                else CommandError("busy", f"{spec.name} with the id '{command.id}' is in progress")
            )
        self._running[key] = digest
        try:
            first = await self._first_answer(key, digest)
            return first if first is not None else await self._act(spec, command, args, received, began)
        finally:
            del self._running[key]

    def _received(self, command: Command, args: Frozen, at: datetime | None = None) -> CommandRecord:
        values = plain(args)
        body = values if command.args.get("reason") is None else {**values, "reason": command.args["reason"]}
        return CommandRecord(
            stage="received",
            command=command.name,
            id=command.id,
            digest=_digest(type(args), values),
            source=command.source,
            actor=command.actor,
            ts=at or self._now(),
            body=body,
        )

    async def _act(
        self, spec: CommandSpec, command: Command, args: Frozen, received: CommandRecord | None, began: float
    ) -> Response:
        """Let a command's handler act, between its two rows; without a `received` one it has none."""
        handler = self._handler(spec)
        if received is None:
            response, _ = await self._outcome(command, handler(args, Call(command)), began)
            return response
        joined = spec.name in JOINED
        fact = spec.name in ALWAYS
        if command.id is not None and spec.repeats:
            self._known.add((spec.name, command.id), received.ts)
        if not fact:
            # They must come before the rows of this command: one of them may tell that the same (command, id) was
            # refused before, and, standing last, would let it act once more after a crash.
            self._rows.flush()
        if not joined and not fact:
            try:
                await self._journal.commit([received])
            except JournalError as error:
                refusal = CommandError("internal", f"nothing was done: {error}")
                if error.unknown:  # the row may be there: without an answer it would pass for a command cut off
                    self._keep(received, self._failed(command, refusal, began), kept=False)
                raise refusal from error
        call = Call(command, (received,) if joined else ())
        if fact:
            self._rows.do(lambda: self._write(received))
        response, kept = await self._outcome(command, handler(args, call), began)
        self._keep(received, response, kept=kept)
        return response

    async def _act_first(self, spec: CommandSpec, command: Command, args: Frozen, began: float) -> Response:
        """Let a command's handler act before anything is written; its rows are made once its answer has left."""
        handler, at = self._handler(spec), self._now()
        received = cache(lambda: self._received(command, args, at))
        self._rows.do(lambda: self._write(received()))
        response, kept = await self._outcome(command, handler(args, Call(command)), began)
        then = self._now()
        self._rows.do(lambda: self._write(_answered(received(), response, then, kept=kept)))
        return response

    def _handler(self, spec: CommandSpec) -> Handler:
        handler = self._handlers.get(spec.name)
        if handler is None:
            raise CommandError("internal", f"nothing carries out the command {spec.name}")
        return handler

    async def _outcome(
        self, command: Command, work: Awaitable[Mapping[str, Any] | None], began: float
    ) -> tuple[Response, bool]:
        """Await a handler; give the response, and whether it has done anything (or nobody knows)."""
        try:
            result = plain(await work or {})
        except CommandError as error:
            return self._failed(command, error, began), False
        except JournalError as error:
            return self._failed(command, CommandError("internal", f"nothing was done: {error}"), began), False
        except BrokerRefused as error:
            return self._failed(command, CommandError("broker_unavailable", str(error)), began), False
        except BrokerError as error:
            refusal = CommandError("broker_unavailable", f"the outcome is not known: {error}")
            return self._failed(command, refusal, began), True
        except ConfigError as error:
            # A rule's setting is an argument of its own: that is how the contract has it sent.
            found = [Problem(fault.path.removeprefix("settings."), fault.message) for fault in error.faults]
            return self._failed(command, _invalid(command.name, found), began), False
        except Sigma9Error as error:
            return self._failed(command, CommandError("internal", str(error)), began), True
        except Exception as error:  # noqa: BLE001 - a handler may raise anything, and the surface gets an answer
            return self._failed(command, _unexpected(command, error), began), True
        took = (monotonic() - began) * 1000
        return Response(command.id, command.name, True, result, None, command.source, self._now(), took), True

    # --- repeats ----------------------------------------------------------------------------------------------

    async def _first_answer(self, key: Key, digest: str) -> Response | None:
        """Find what the same (command, id) was answered in the last 24 hours; None where it may act.

        Raise CommandError: `conflict` for other arguments, `internal` where the answer can't be known.
        """
        since = self._now() - KEPT_FOR
        waiting = self._answers.get(key)
        if waiting is not None and waiting.at >= since:
            if not waiting.kept:
                return None
            if waiting.digest != digest:
                raise _conflict(key)
            return waiting.response
        if self._known.is_new(key, since):
            return None
        try:
            known = await self._reader.call(self._journal.command, *key, since)
        except (JournalError, TimeoutError) as error:
            raise CommandError(
                "internal", f"nothing was done: the journal can't tell whether it is a repeat: {error}"
            ) from error
        if not known:
            return None
        newest = known[0]
        if newest.stage == "answered" and not newest.body.get("kept", True):
            return None
        if newest.digest != digest:
            raise _conflict(key)
        if newest.stage == "answered":
            return _response_of(newest)
        return await self._recovered(newest)

    async def _recovered(self, received: CommandRecord) -> Response:
        """Answer a command whose first answer was lost: by what can be found out, else honestly."""
        recover = self._recover.get(received.command)
        found = await recover(received) if recover is not None else None
        command = Command(received.command, {}, received.source, id=received.id)  # type: ignore[arg-type]
        if found is None:
            raise CommandError("internal", BEGUN, {"begun_at": rfc3339(received.ts)})
        response = Response(received.id, command.name, True, plain(found), None, command.source, self._now(), 0.0)
        self._keep(received, response, kept=True)
        return response

    def _keep(self, received: CommandRecord, response: Response, *, kept: bool) -> None:
        """Remember an answer, and write its row; once that is durable the journal remembers alone."""
        now = self._now()
        if received.id is None or not self._specs[received.command].repeats:
            self._rows.do(lambda: self._write(_answered(received, response, now, kept=kept)))
            return
        key = (received.command, received.id)
        answer = _Answer(received.digest, response, kept, now)
        self._forget_old(now - KEPT_FOR)
        self._answers[key] = answer
        loop = asyncio.get_running_loop()
        self._rows.do(lambda: self._write_answer(received, key, answer, loop))

    def _write_answer(
        self, received: CommandRecord, key: Key, answer: _Answer, loop: asyncio.AbstractEventLoop
    ) -> None:
        written = self._write(_answered(received, answer.response, answer.at, kept=answer.kept))
        if written is not None:
            written.add_done_callback(lambda future: _soon(loop, self._written, key, answer, future))

    def _written(self, key: Key, answer: _Answer, future: Future[Any]) -> None:
        if future.exception() is None and self._answers.get(key) is answer:
            del self._answers[key]

    def _forget_old(self, since: datetime) -> None:
        for key in [key for key, answer in self._answers.items() if answer.at < since]:
            del self._answers[key]

    def _write(self, record: CommandRecord) -> Future[Any] | None:
        """Hand a row to the journal as a fact, without waiting; the journal logs what it loses."""
        try:
            return self._journal.write([record], fact=True)
        except Exception:  # whatever becomes of the row, the command has an answer
            log.exception("the %s row of %s could not be handed to the journal", record.stage, record.command)
            return None

    # --- answers ----------------------------------------------------------------------------------------------

    def _failed(self, command: Command, error: CommandError, began: float) -> Response:
        safe = CommandError(error.code, error.message, plain(error.details))
        return Response.failed(command, safe, ts=self._now(), duration_ms=(monotonic() - began) * 1000)

    def _tell(self, command: Command, response: Response) -> None:
        spec = self._specs.get(command.name)
        quiet = spec is not None and not spec.journalled
        who = f"{command.source} ({command.actor})" if command.actor else command.source
        name = command.name if spec is not None else repr(command.name[:64])
        level = logging.DEBUG if quiet else logging.INFO if response.error is None else logging.WARNING
        if not log.isEnabledFor(level):
            return
        if response.error is None:
            took = response.duration_ms
            self._lines.do(lambda: log.log(level, "%s by %s: done in %.1f ms", name, who, took))
        else:
            code, message = response.error["code"], response.error["message"]
            self._lines.do(lambda: log.log(level, "%s by %s: %s: %s", name, who, code, message))


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        pass  # the loop has ended, and with it whoever might ask


def _validated(spec: CommandSpec, given: Mapping[str, Any]) -> Frozen:
    """Validate raw arguments; every command takes a reason, whether its arguments have a field for it or not."""
    args = dict(given)
    if "reason" in args and "reason" not in spec.args.model_fields:
        reason = args.pop("reason")
        if reason is not None and not (isinstance(reason, str) and len(reason) <= LONGEST_REASON):
            message = f"{spec.name}: reason must be a text of at most {LONGEST_REASON} characters"
            raise CommandError("invalid", message, {"field": "reason"})
    try:
        return validated(spec.args, args)
    except Wrong as error:
        raise _invalid(spec.name, error.problems) from error


def _invalid(name: str, found: Sequence[Problem]) -> CommandError:
    """Refuse arguments: the sentence and `errors` name every field that is wrong, `field` the first of them."""
    details = {
        "field": next((problem.path for problem in found if problem.path), None),
        "errors": [{"field": problem.path or None, "message": problem.message} for problem in found],
    }
    return CommandError("invalid", f"{name}: {'; '.join(map(str, found))}", details)


def _digest(model: type[Frozen], values: Mapping[str, Any]) -> str:
    """Tell arguments apart; the reason is none, unless the command can't do without one."""
    field = model.model_fields.get("reason")
    if field is not None and not field.is_required():
        values = {key: value for key, value in values.items() if key != "reason"}
    return hashlib.sha256(_SORTED.encode(values).encode()).hexdigest()


def _answered(received: CommandRecord, response: Response, at: datetime, *, kept: bool) -> CommandRecord:
    return replace(received, stage="answered", ts=at, body={**response.body(), "kept": kept})


def _response_of(record: CommandRecord) -> Response:
    body = record.body
    return Response(
        id=body["id"],
        command=body["command"],
        ok=body["ok"],
        result=body["result"],
        error=body["error"],
        source=body["source"],
        ts=datetime.fromisoformat(body["ts"]),
        duration_ms=body["duration_ms"],
    )


def _conflict(key: Key) -> CommandError:
    name, id_ = key
    return CommandError(
        "conflict",
        f"{name} with the id '{id_}' was sent before with other arguments: use a new id",
        {"field": "id"},
    )


def _unexpected(command: Command, error: Exception) -> CommandError:
    """Log an error that nobody foresaw; its own text may hold anything, so only its type is told."""
    log.error("the command %s failed", command.name[:64], exc_info=error)
    if isinstance(error, TimeoutError):
        return CommandError("internal", f"{command.name} did not answer in time, and its outcome is not known")
    return CommandError("internal", f"{command.name} failed with {type(error).__name__}: the log has the details")


def _checked(handler: CommandHandler, args: Frozen) -> Mapping[str, Any] | None:
    result = handler(args)
    if result is not None and not isinstance(result, Mapping | BaseModel):
        raise TypeError(f"a command's handler gives an object or nothing, not {type(result).__name__}")
    checked: Mapping[str, Any] | None = plain(result)
    return checked

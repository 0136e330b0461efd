"""The dispatcher: every command gets one answer, acts once, and leaves its rows; the kill waits for nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from sigma9_core import dispatcher as dispatcher_module
from sigma9_core.afterwards import AFTER
from sigma9_core.clock import SteppedClock
from sigma9_core.commands import BUILT_IN, Command, CommandSpec, KillArgs, NoArgs, OrderArgs, Response
from sigma9_core.dispatcher import ALWAYS, JOINED, Call, Dispatcher, Handler, Recover
from sigma9_core.errors import (
    BrokerError,
    BrokerRefused,
    CommandError,
    ConfigError,
    Fault,
    JournalError,
    StateError,
)
from sigma9_core.lanes import Lane
from sigma9_core.models import Frozen, OrderRequest
from sigma9_core.money.audit import audit
from sigma9_core.money.gate import RiskGate
from sigma9_core.money.journal import Journal
from sigma9_core.money.records import CommandRecord, Record
from sigma9_core.plain import plain
from sigma9_core.testing.journal_places import Commits, FilePlace

ORDER = {"symbol": "ABCD", "side": "buy", "quantity": 10}


class Wall:
    """A wall clock that tests move."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 14, 45, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Bench:
    """A dispatcher with a real journal and handlers that record what they get."""

    dispatcher: Dispatcher
    journal: Journal
    wall: Wall
    calls: list[tuple[str, Any]]
    path: Path

    async def send(self, name: str, args: Mapping[str, Any] | None = None, **more: Any) -> Response:
        """Dispatch a command."""
        return await self.dispatcher.dispatch(Command(name, args or {}, "mqtt", **more))

    async def rows(self, command: str, id: str) -> list[CommandRecord]:  # noqa: A002 - the contract's name
        """Read the rows of a command, oldest first, once everything that waits is written."""
        self.dispatcher.flush()
        await self.journal.commit([])
        return self.journal.command(command, id, self.wall.now - timedelta(days=9))[::-1]


def recorder(name: str, calls: list[tuple[str, Any]], journal: Journal) -> Handler:
    """Build a handler that records its arguments, commits the records of a joined command, and answers."""

    async def handle(args: Any, call: Call) -> Mapping[str, Any]:
        calls.append((name, args))
        if call.records:
            await journal.commit(call.records)
        return {"did": name, "count": len(calls)}

    return handle


def make(path: Path, wall: Wall, recover: Mapping[str, Recover] | None = None, **handlers: Handler) -> Bench:
    """Open a journal at a path and put a dispatcher before it."""
    journal = Journal(f"sqlite:///{path}", "main", lambda events: None)
    journal.open()
    calls: list[tuple[str, Any]] = []
    table: dict[str, Handler] = {name: recorder(name, calls, journal) for name in BUILT_IN}
    dispatcher = Dispatcher(BUILT_IN, {**table, **handlers}, journal=journal, clock_wall=wall, recover=recover)
    return Bench(dispatcher, journal, wall, calls, path)


async def end(bench: Bench) -> None:
    """Stop a bench."""
    await bench.dispatcher.stop()
    await asyncio.to_thread(bench.journal.close)


@pytest.fixture(name="bench")
async def _bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = make(tmp_path / "sigma9.db", Wall())
    yield bench
    await end(bench)


def code_of(response: Response) -> str | None:
    """Give the error's code, None where it is fine."""
    assert response.ok == (response.error is None)
    return None if response.error is None else response.error["code"]


# --- answers and checks ---------------------------------------------------------------------------------------


async def test_a_command_is_answered_with_its_result(bench: Bench) -> None:
    """The answer is the object of contract 4."""
    response = await bench.send("start", {"reason": "morning"}, id="s1", received=time.monotonic())

    body = response.body()
    duration = body.pop("duration_ms")
    assert body == {
        "id": "s1",
        "command": "start",
        "ok": True,
        "result": {"did": "start", "count": 1},
        "error": None,
        "source": "mqtt",
        "ts": "2026-11-20T14:45:00.000000Z",
    }
    assert 0 < duration < 5000
    assert bench.calls == [("start", NoArgs(reason="morning"))]


@pytest.mark.parametrize(
    ("name", "args", "more", "code", "message"),
    [
        ("strat", {}, {}, "unknown_command", "there is no command 'strat'; did you mean 'start'?"),
        ("start", {}, {"right": "read"}, "forbidden", "start needs the right 'trade', and this access has 'read'"),
        ("kill_drill", {}, {"right": "trade"}, "forbidden", "kill_drill needs the right 'admin'"),
        ("place_order", ORDER, {}, "invalid", "place_order requires an id"),
        ("start", {"now": 1}, {}, "invalid", "start: now is not known here"),
        (
            "place_order",
            {**ORDER, "quantity": -1, "side": "up"},
            {"id": "o1"},
            "invalid",
            "place_order: side must be 'buy' or 'sell', not 'up'; quantity must be greater than 0, not -1",
        ),
        (
            "place_order",
            {**ORDER, "order_type": "limit"},
            {"id": "o1"},
            "invalid",
            "place_order: limit_price is required for a limit order",
        ),
        (
            "close_position",
            {"symbol": "a b"},
            {},
            "invalid",
            "close_position: symbol must be a symbol: 1 to 32 letters",
        ),
        ("kill_switch", {"scope": {}}, {}, "invalid", "kill_switch: scope must name exactly one"),
        (
            "control",
            {"command": "kil"},
            {},
            "invalid",
            "control: command must be 'start', 'stop' or 'kill', not 'kil'",
        ),
    ],
)
async def test_a_bad_command_is_answered_with_an_error_and_does_nothing(
    bench: Bench, *, name: str, args: dict[str, Any], more: dict[str, Any], code: str, message: str
) -> None:
    """Code and sentence say what is wrong; no handler runs and no row is written."""
    response = await bench.send(name, args, **more)

    assert code_of(response) == code
    assert response.error is not None
    assert response.error["message"].startswith(message)
    assert bench.calls == []
    assert await bench.rows(name, more.get("id", "")) == []


async def test_every_wrong_field_is_in_the_details(bench: Bench) -> None:
    """Details list the fields, so that a form can mark them."""
    response = await bench.send("place_order", {"symbol": "A", "bracket": {"stop_price": 0}}, id="o1")

    assert response.error is not None
    assert response.error["details"]["field"] == "side"
    assert [entry["field"] for entry in response.error["details"]["errors"]] == [
        "side",
        "quantity",
        "bracket.stop_price",
    ]


async def test_a_command_after_its_expiry_is_refused(bench: Bench) -> None:
    """`expires_at` is judged on the wall clock; one that lies ahead is fine."""
    late = await bench.send("start", expires_at=bench.wall.now)
    good = await bench.send("start", expires_at=bench.wall.now + timedelta(seconds=1))

    assert (code_of(late), code_of(good)) == ("expired", None)
    assert len(bench.calls) == 1


async def test_a_kill_that_came_too_late_is_refused_too(bench: Bench) -> None:
    """Old messages never act, the kill's included."""
    assert code_of(await bench.send("kill_switch", expires_at=bench.wall.now - timedelta(hours=1))) == "expired"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CommandError("killed", "the kill switch is on"), "killed", "the kill switch is on"),
        (JournalError("the disk is full"), "internal", "nothing was done: the disk is full"),
        (BrokerRefused("no such contract"), "broker_unavailable", "no such contract"),
        (BrokerError("no answer"), "broker_unavailable", "the outcome is not known: no answer"),
        (ConfigError([Fault("f:1", "percent", "is wrong")]), "invalid", "start: percent is wrong"),
        (StateError("the documents can't be written"), "internal", "the documents can't be written"),
        (KeyError("token=secret"), "internal", "start failed with KeyError: the log has the details"),
        (TimeoutError("secret"), "internal", "start did not answer in time, and its outcome is not known"),
    ],
)
async def test_what_a_handler_raises_is_an_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, code: str, message: str
) -> None:
    """Foreseen errors keep their sentence; of others only the type is told, and the log has the traceback."""

    async def fail(_args: Any, _call: Call) -> None:
        raise error

    bench = make(tmp_path / "j.db", Wall(), start=fail)
    response = await bench.send("start")
    await end(bench)

    assert code_of(response) == code
    assert response.error is not None
    assert response.error["message"] == message
    assert "secret" not in json.dumps(response.body())
    unforeseen = isinstance(error, KeyError | TimeoutError)
    assert any(record.exc_info for record in caplog.records) == unforeseen


async def test_a_result_is_plain_json(tmp_path: Path) -> None:
    """Money, times and models in a result become JSON; a result that can't is an error, not a broken surface."""
    results = iter(
        [{"price": Decimal("1.50"), "at": datetime(2026, 1, 2, tzinfo=UTC), "n": float("nan")}, {"x": object()}]
    )

    async def give(_args: Any, _call: Call) -> Mapping[str, Any]:
        return next(results)

    bench = make(tmp_path / "j.db", Wall(), start=give)
    good, bad = await bench.send("start"), await bench.send("start")
    await end(bench)

    assert good.result == {"price": 1.5, "at": "2026-01-02T00:00:00.000000Z", "n": None}
    assert code_of(bad) == "internal"


async def test_the_reason_is_taken_by_every_command(tmp_path: Path) -> None:
    """A command whose arguments have no field for a reason takes one all the same, and its row has it."""

    class Args(Frozen):
        text: str

    bench = make(tmp_path / "j.db", Wall())
    bench.dispatcher.register(CommandSpec("shout", Args, "read", "Shout."), lambda args: {"said": args.text})
    good = await bench.send("shout", {"text": "a", "reason": "because"}, id="1")
    bad = await bench.send("shout", {"text": "a", "reason": 7}, id="2")
    rows = await bench.rows("shout", "1")
    await end(bench)

    assert good.result == {"said": "a"}
    assert (code_of(bad), bad.error and bad.error["details"]) == ("invalid", {"field": "reason"})
    assert rows[0].body == {"text": "a", "reason": "because"}


@pytest.mark.parametrize(("word", "target"), [("start", "start"), ("stop", "stop"), ("kill", "kill_switch")])
async def test_control_is_the_command_that_it_stands_for(bench: Bench, word: str, target: str) -> None:
    """`control` has the target's handler and row, and answers under its own name."""
    response = await bench.send("control", {"command": word, "reason": "dash"}, id="c1")

    assert (response.command, response.result) == ("control", {"did": target, "count": 1})
    assert bench.calls[0][0] == target
    assert bench.calls[0][1].reason == "dash"
    assert [row.stage for row in await bench.rows(target, "c1")] == ["received", "answered"]


async def test_the_callers_end_does_not_stop_a_command_half_way(tmp_path: Path) -> None:
    """A client that disconnects cancels its wait, not the work."""
    entered, leave, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_args: Any, _call: Call) -> None:
        entered.set()
        await leave.wait()
        done.set()

    bench = make(tmp_path / "j.db", Wall(), start=slow)
    task = asyncio.create_task(bench.send("start"))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    leave.set()
    await asyncio.wait_for(done.wait(), 5)
    await end(bench)


async def test_a_stop_gives_those_who_wait_an_answer(tmp_path: Path) -> None:
    """What is still in progress at the end is cancelled, and its caller hears that the outcome is in the state."""
    entered = asyncio.Event()

    async def hang(_args: Any, _call: Call) -> None:
        entered.set()
        await asyncio.sleep(600)

    bench = make(tmp_path / "j.db", Wall(), start=hang)
    task = asyncio.create_task(bench.send("start"))
    await entered.wait()
    await bench.dispatcher.stop(patience=0.01)
    response = await asyncio.wait_for(task, 5)
    await end(bench)

    assert code_of(response) == "internal"
    assert response.error is not None
    assert response.error["message"] == "the server stopped before the command was done: read the state"


async def test_a_command_is_begun_beside_others(bench: Bench) -> None:
    """Whoever begins a command waits for nothing, and gets the same answer as whoever awaits one, once."""
    answers: list[Response] = []
    bench.dispatcher.begin(Command("start", {}, "mqtt", id="b1"), answers.append)
    bench.dispatcher.begin(Command("start", {"what": 1}, "mqtt", id="b2"), answers.append)
    assert answers == []
    async with asyncio.timeout(5):
        while len(answers) < 2:  # noqa: ASYNC110 - they come by a plain call
            await asyncio.sleep(0.001)
    refused, done = answers
    assert (done.id, done.result) == ("b1", {"did": "start", "count": 1})
    assert (refused.id, code_of(refused)) == ("b2", "invalid")
    assert (await bench.send("start", id="b1")).body() == done.body()
    assert len(bench.calls) == 1
    assert [row.stage for row in await bench.rows("start", "b1")] == ["received", "answered"]


async def test_a_stop_answers_what_was_begun(tmp_path: Path) -> None:
    """What was begun and is still in progress at the end is cancelled, and answered once."""
    answers: list[Response] = []

    async def hang(_args: Any, _call: Call) -> None:
        await asyncio.sleep(600)

    bench = make(tmp_path / "j.db", Wall(), start=hang)
    bench.dispatcher.begin(Command("start", {}, "mqtt"), answers.append)
    await asyncio.sleep(0)
    await bench.dispatcher.stop(patience=0.01)
    await end(bench)

    (answer,) = answers
    assert answer.error is not None
    assert answer.error["message"] == "the server stopped before the command was done: read the state"


@pytest.mark.parametrize("door", ["dispatch", "begin"])
async def test_what_is_cancelled_before_its_first_step_is_answered(bench: Bench, door: str) -> None:
    """A stop may come between a command and the first step of its work: its caller must not wait for ever."""
    answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    command = Command("start", {}, "mqtt")
    if door == "begin":
        bench.dispatcher.begin(command, answer.set_result)
    else:
        asyncio.ensure_future(bench.dispatcher.dispatch(command)).add_done_callback(
            lambda done: answer.set_result(done.result())
        )
        while not bench.dispatcher._tasks:  # noqa: ASYNC110 - the caller's own first step
            await asyncio.sleep(0)
    (task,) = bench.dispatcher._tasks
    task.cancel()

    assert code_of(await asyncio.wait_for(answer, 5)) == "internal"
    assert bench.calls == []


async def test_nothing_is_begun_while_it_stops(tmp_path: Path) -> None:
    """While a stop waits for what is in progress an order is refused; a stop, a kill and what reads are not."""
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def slow(_args: Any, _call: Call) -> None:
        begun.set()
        await let_go.wait()

    bench = make(tmp_path / "j.db", Wall(), scan=slow)
    scan = asyncio.create_task(bench.send("scan"))
    await begun.wait()
    stopping = asyncio.create_task(bench.dispatcher.stop(patience=5))
    await asyncio.sleep(0)
    refused = [await bench.send(name) for name in ("start", "resume")]
    refused.append(await bench.send("control", {"command": "start"}))
    done = [await bench.send(name) for name in ("stop", "kill_switch", "cancel_all", "heartbeat")]
    done.append(await bench.send("control", {"command": "kill"}))
    let_go.set()
    done.append(await scan)
    await stopping
    await end(bench)

    assert [code_of(answer) for answer in refused] == ["not_running"] * 3
    assert [answer.error for answer in done] == [None] * 6


# --- repeats --------------------------------------------------------------------------------------------------


async def test_a_repeat_gets_the_first_answer_and_does_nothing(bench: Bench) -> None:
    """The same command and id is carried out once, however it is spelled and whatever its reason and expiry."""
    first = await bench.send("place_order", ORDER, id="o1")
    bench.wall.now += timedelta(hours=23)
    again = await bench.send(
        "place_order",
        {**ORDER, "quantity": Decimal("10.0"), "reason": "retry"},
        id="o1",
        expires_at=bench.wall.now + timedelta(1),
    )
    other = await bench.send("place_order", {**ORDER, "quantity": 11}, id="o1")

    assert again.body() == first.body()
    assert code_of(other) == "conflict"
    assert [name for name, _ in bench.calls] == ["place_order"]


async def test_a_repeat_after_a_restart_gets_the_first_answer(tmp_path: Path) -> None:
    """The journal remembers for a new process, and a conflict stays one."""
    wall = Wall()
    bench = make(tmp_path / "j.db", wall)
    first = await bench.send("place_order", ORDER, id="o1")
    await end(bench)
    bench = make(tmp_path / "j.db", wall)
    again = await bench.send("place_order", ORDER, id="o1")
    other = await bench.send("place_order", {**ORDER, "side": "sell"}, id="o1")
    await end(bench)

    assert again.body() == first.body()
    assert code_of(other) == "conflict"
    assert bench.calls == []


async def test_a_key_is_free_again_after_24_hours(bench: Bench) -> None:
    """An id may be used anew a day later."""
    await bench.send("place_order", ORDER, id="o1")
    bench.wall.now += timedelta(hours=24, seconds=1)
    again = await bench.send("place_order", {**ORDER, "quantity": 12}, id="o1")

    assert again.result == {"did": "place_order", "count": 2}


async def test_the_key_is_command_and_id(bench: Bench) -> None:
    """The same id under another command is another key."""
    await bench.send("start", id="1")
    response = await bench.send("resume", id="1")

    assert response.result == {"did": "resume", "count": 2}


async def test_one_still_in_progress_is_busy_and_with_other_arguments_a_conflict(tmp_path: Path) -> None:
    """While the first works, the same again is told so and does nothing."""
    entered, leave = asyncio.Event(), asyncio.Event()
    calls = 0

    async def slow(_args: Any, call: Call) -> Mapping[str, Any]:
        nonlocal calls
        calls += 1
        entered.set()
        await leave.wait()
        return {"calls": calls}

    bench = make(tmp_path / "j.db", Wall(), place_order=slow)
    first = asyncio.create_task(bench.send("place_order", ORDER, id="o1"))
    await entered.wait()
    again = await bench.send("place_order", ORDER, id="o1")
    other = await bench.send("place_order", {**ORDER, "quantity": 2}, id="o1")
    leave.set()
    done = await first
    later = await bench.send("place_order", ORDER, id="o1")
    await end(bench)

    assert (code_of(again), code_of(other)) == ("busy", "conflict")
    assert done.result == later.result == {"calls": 1}


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (CommandError("risk_rejected", "too large"), 2),
        (JournalError("full"), 2),
        (BrokerRefused("no"), 2),
        (BrokerError("silence"), 1),
        (ValueError("bug"), 1),
    ],
)
async def test_an_answer_that_did_nothing_is_not_kept(tmp_path: Path, error: Exception, calls: int) -> None:
    """A refusal lets the same id try again; an answer whose outcome nobody knows is kept."""
    seen: list[int] = []

    async def refuse(_args: Any, call: Call) -> Mapping[str, Any]:
        seen.append(1)
        if len(seen) == 1:
            await bench.journal.commit(call.records)  # as the desk does, with the refused intent
            raise error
        return {"second": True}

    wall = Wall()
    bench = make(tmp_path / "j.db", wall, place_order=refuse)
    first = await bench.send("place_order", ORDER, id="o1")
    await bench.journal.commit([])
    again = await bench.send("place_order", ORDER, id="o1")
    await end(bench)
    bench = make(tmp_path / "j.db", wall, place_order=refuse)
    third = await bench.send("place_order", ORDER, id="o1")
    await end(bench)

    assert len(seen) == calls
    assert not first.ok
    assert again.ok == (calls == 2)
    assert third.body() == again.body()


@pytest.mark.parametrize("name", ["kill_switch", "stop", "pause", "cancel_order", "cancel_all", "heartbeat"])
async def test_a_button_with_a_constant_id_works_twice(bench: Bench, name: str) -> None:
    """These commands are never held back as repeats."""
    args = {"order_id": "7"} if name == "cancel_order" else {}
    for count in (1, 2):
        response = await bench.send(name, args, id="button")
        assert response.result == {"did": name, "count": count}


async def test_a_command_without_an_id_is_never_a_repeat(bench: Bench) -> None:
    """Without an id each message is a command of its own."""
    for count in (1, 2):
        assert (await bench.send("start")).result == {"did": "start", "count": count}


async def test_what_was_begun_before_a_restart_says_so_or_is_found_out(tmp_path: Path) -> None:
    """A received row without an answer never acts again: its outcome is found out, or left to the state."""
    wall = Wall()
    bench = make(tmp_path / "j.db", wall)
    args = OrderArgs.model_validate(ORDER)
    await bench.send("place_order", ORDER, id="model")
    received = (await bench.rows("place_order", "model"))[0]
    await bench.journal.commit([replace(received, id="lost"), replace(received, id="found")])
    await end(bench)

    async def recover(record: CommandRecord) -> Mapping[str, Any] | None:
        assert record.body["symbol"] == args.symbol
        return {"order": "known"} if record.id == "found" else None

    bench = make(tmp_path / "j.db", wall, {"place_order": recover})
    lost = await bench.send("place_order", ORDER, id="lost")
    found = await bench.send("place_order", ORDER, id="found")
    conflict = await bench.send("place_order", {**ORDER, "quantity": 1}, id="lost")
    rows = await bench.rows("place_order", "found")
    await end(bench)

    assert code_of(lost) == "internal"
    assert lost.error is not None
    assert "was begun before a restart" in lost.error["message"]
    assert found.result == {"order": "known"}
    assert [row.stage for row in rows] == ["received", "answered"]
    assert code_of(conflict) == "conflict"
    assert bench.calls == []


# --- rows -----------------------------------------------------------------------------------------------------


async def test_a_command_leaves_a_received_and_an_answered_row(bench: Bench) -> None:
    """The rows say who sent what, and what was answered."""
    await bench.send("watchlist_add", {"symbol": "ABCD", "reason": "news"}, id="w1", actor="dash")
    received, answered = await bench.rows("watchlist_add", "w1")

    assert (received.stage, received.source, received.actor) == ("received", "mqtt", "dash")
    assert received.body == {"reason": "news", "symbol": "ABCD"}
    assert answered.stage == "answered"
    assert answered.digest == received.digest
    assert answered.body["ok"] is True
    assert answered.body["result"] == {"did": "watchlist_add", "count": 1}


async def test_a_received_row_is_durable_before_the_handler_acts(tmp_path: Path) -> None:
    """When the handler runs, the row can be read; a joined command's handler commits it itself."""
    seen: dict[str, tuple[int, int]] = {}

    def watcher(name: str) -> Handler:
        async def handle(_args: Any, call: Call) -> None:
            rows = bench.journal.command(name, "1", bench.wall.now - timedelta(days=1))
            seen[name] = (len(rows), len(call.records))

        return handle

    args: dict[str, dict[str, Any]] = {
        "place_order": ORDER,
        "modify_order": {"order_id": "7"},
        "close_position": {"symbol": "*"},
    }
    names = ["scan", "resume", *args]
    bench = make(tmp_path / "j.db", Wall(), None, **{name: watcher(name) for name in names})
    for name in names:
        assert (await bench.send(name, args.get(name), id="1")).ok
    await end(bench)

    assert seen == {name: (0, 1) if name in JOINED else (1, 0) for name in names}


async def test_commands_that_are_not_journalled_leave_no_row(bench: Bench) -> None:
    """Heartbeats, previews and reads would only fill the journal."""
    await bench.send("heartbeat", id="1")
    await bench.send("preview_order", ORDER, id="1")

    assert await bench.rows("heartbeat", "1") == []
    assert await bench.rows("preview_order", "1") == []


async def test_a_journal_that_fails_refuses_commands_but_never_a_kill_or_a_cancel(tmp_path: Path) -> None:
    """Without the journal nothing is begun, except what makes things safer."""
    bench = make(tmp_path / "j.db", Wall())
    bench.journal.close()
    for name, spec in BUILT_IN.items():
        if name in ("control", "place_order", "preview_order", "modify_order", "close_position"):
            continue
        fields = {
            "order_id": "7",
            "symbol": "A",
            "name": "x",
            "rule": "x",
            "settings": {"max_shares": 1},
            "strategy": "x",
            "reason": "x",
        }
        args = {key: value for key, value in fields.items() if key in spec.args.model_fields} | (
            {"after": 0} if name == "events" else {}
        )
        bench.calls.clear()
        response = await bench.send(name, args)
        acts = name in ALWAYS or not spec.journalled
        assert (name, response.ok, len(bench.calls)) == (name, acts, int(acts))
        if not acts:
            assert response.error is not None
            assert response.error["code"] == "internal"
            assert "the journal" in response.error["message"]
    bench.calls.clear()
    order = await bench.send("place_order", ORDER, id="o1")
    await end(bench)

    assert code_of(order) == "internal"
    assert bench.calls == []


async def test_a_received_row_of_unknown_outcome_gets_an_answer(tmp_path: Path) -> None:
    """The row turns out to be there: without an answer the same id would be told that it had been cut off."""
    bench = make(tmp_path / "j.db", Wall())
    commits = Commits(bench.journal, FilePlace(tmp_path / "j.db"))
    commits.plan, commits.unreadable = ["fail after"], 2
    refused = await bench.send("start", id="s1")
    await bench.journal.commit([], fact=True)  # it is there once the disk works again
    rows = await bench.rows("start", "s1")
    again = await bench.send("start", id="s1")
    await end(bench)
    bench = make(tmp_path / "j.db", bench.wall)
    faults = audit(bench.journal).faults
    await end(bench)

    assert refused.error is not None
    assert refused.error["message"].startswith("nothing was done: ")
    assert [row.stage for row in rows] == ["received", "answered"]
    assert again.ok
    assert faults == []


class Stalled:
    """A journal whose disk hangs: nothing that is handed over ever becomes durable."""

    def write(self, records: Sequence[Record], *, fact: bool = False) -> Future[Any]:
        """Take it and hang."""
        return Future()

    async def commit(self, records: Sequence[Record], *, fact: bool = False) -> Any:
        """Hang."""
        await asyncio.sleep(600)

    def command(self, command: str, id: str, since: datetime) -> list[CommandRecord]:  # noqa: A002 - the contract's name
        """Know nothing."""
        return []


@pytest.mark.parametrize("name", sorted(ALWAYS))
async def test_a_journal_that_hangs_does_not_hold_up_what_must_act(name: str) -> None:
    """Kill, stop, pause and cancels are carried out and answered with a disk that never answers."""

    async def handle(_args: Any, _call: Call) -> Mapping[str, Any]:
        return {"done": True}

    dispatcher = Dispatcher(BUILT_IN, {name: handle}, journal=Stalled())
    args = {"order_id": "7"} if name == "cancel_order" else {}
    response = await asyncio.wait_for(dispatcher.dispatch(Command(name, args, "mqtt", id="1")), 1)
    await dispatcher.stop()

    assert response.ok


async def test_an_answer_that_is_not_durable_yet_is_remembered_all_the_same() -> None:
    """Between the answer and its row a repeat still gets the first answer."""
    calls: list[int] = []

    async def handle(_args: Any, _call: Call) -> Mapping[str, Any]:
        calls.append(1)
        return {"calls": len(calls)}

    dispatcher = Dispatcher(BUILT_IN, {"place_order": handle}, journal=Stalled())
    command = Command("place_order", ORDER, "api", id="o1")
    first, again = await dispatcher.dispatch(command), await dispatcher.dispatch(command)
    await dispatcher.stop()

    assert first.body() == again.body()
    assert calls == [1]


async def test_the_kills_handler_begins_before_its_row_is_written() -> None:
    """The order of a kill is: handler first, then the journal, which does not wait for the handler's end."""
    order: list[str] = []

    class Listening(Stalled):
        def write(self, records: Sequence[Record], *, fact: bool = False) -> Future[Any]:
            order.extend(f"{record.stage} fact={fact}" for record in records if isinstance(record, CommandRecord))
            return Future()

    async def handle(_args: Any, _call: Call) -> None:
        order.append("gate closed")
        await asyncio.sleep(10 * AFTER)
        order.append("cancels left")

    dispatcher = Dispatcher(BUILT_IN, {"kill_switch": handle}, journal=Listening())
    await dispatcher.dispatch(Command("kill_switch", {}, "mqtt"))
    dispatcher.flush()

    assert order == ["gate closed", "received fact=True", "cancels left", "answered fact=True"]


@pytest.mark.parametrize(
    ("name", "args", "barred"),
    [
        ("kill_switch", {"flatten": False}, [False]),
        ("kill_switch", {"scope": {"symbol": "ABCD"}}, [None]),
        ("kill_switch", {"flatten": "perhaps"}, []),
        ("control", {"command": "kill"}, [None]),
        ("control", {"command": "stop"}, []),
        ("stop", {}, []),
    ],
)
@pytest.mark.parametrize("door", ["dispatch", "begin"])
async def test_the_gate_is_closed_for_a_kill_when_it_is_heard(
    name: str, args: Any, barred: list[bool | None], door: str
) -> None:
    """A valid kill bars the gate before anything is awaited; the barrier goes at the latest at the end."""
    heard: list[KillArgs] = []
    lifted: list[str] = []
    begun: list[Callable[[], None] | None] = []

    class Barrier:
        def lift(self) -> None:
            lifted.append("lifted")

    def bar(args: KillArgs) -> Barrier:
        heard.append(args)
        return Barrier()

    async def handle(_args: Any, call: Call) -> Mapping[str, Any]:
        begun.append(call.command.taken)
        assert not lifted
        return {}

    class Quiet:
        def write(self, _records: Sequence[Record], *, fact: bool = False) -> Future[Any]:
            return Future()

    dispatcher = Dispatcher(BUILT_IN, {"kill_switch": handle, "stop": handle}, journal=Quiet(), bar=bar)  # type: ignore[arg-type]
    answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    work: Awaitable[Response] = answered
    if door == "begin":
        dispatcher.begin(Command(name, args, "mqtt"), answered.set_result)
    else:
        work = dispatcher.dispatch(Command(name, args, "mqtt"))
    assert [each.flatten for each in heard] == barred

    await work
    assert all((taken is not None) == bool(barred) for taken in begun)
    await asyncio.sleep(0)
    assert bool(lifted) == bool(barred)


async def test_whoever_has_the_answer_to_a_refused_kill_finds_the_gate_as_it_was() -> None:
    """The barrier of a kill that does not come about goes before its answer does."""
    gate = RiskGate([], SteppedClock("replay", Wall().now))
    order = OrderRequest(symbol="ABCD", side="buy", quantity=Decimal(1))

    async def refuse(_args: Any, _call: Call) -> None:
        raise CommandError("not_found", "there is no such strategy")

    dispatcher = Dispatcher(
        BUILT_IN,
        {"kill_switch": refuse},
        journal=Stalled(),
        bar=lambda args: gate.bar(None, halt=not args.flatten),
    )
    seen: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    dispatcher.begin(Command("kill_switch", {}, "mqtt"), lambda _: seen.set_result(gate.closed_for(order)))
    assert gate.closed_for(order) is not None
    assert await seen is None


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_a_kill_that_nobody_carries_out_leaves_no_barrier(how: str) -> None:
    """Its coroutine is dropped, or its task is cancelled before the first step: the gate is as it was."""
    gate = RiskGate([], SteppedClock("replay", Wall().now))
    handled: list[Any] = []

    async def handle(args: Any, _call: Call) -> None:
        handled.append(args)

    dispatcher = Dispatcher(
        BUILT_IN,
        {"kill_switch": handle},
        journal=Stalled(),
        bar=lambda args: gate.bar(None, halt=not args.flatten),
    )
    order = OrderRequest(symbol="ABCD", side="buy", quantity=Decimal(1))
    work = dispatcher.dispatch(Command("kill_switch", {}, "mqtt"))
    assert gate.closed_for(order) is not None
    if how == "closed":
        work.close()
    else:
        task = asyncio.ensure_future(work)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
    del work
    await asyncio.sleep(0)  # the loop has let go of the task, too
    gc.collect()

    assert gate.closed_for(order) is None
    assert handled == []


@pytest.mark.parametrize("door", ["kill", "begin"])
async def test_a_kill_whose_work_is_stuck_is_answered_and_stays_barred(
    monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """Whoever kills hears that the gate is closed, though nothing else answers; the barrier goes with the work."""
    monkeypatch.setattr(dispatcher_module, "KILL_ANSWERED", 0.05)
    lifted: list[str] = []
    stuck = asyncio.Event()

    class Barrier:
        def lift(self) -> None:
            lifted.append("lifted")

    class Quiet:
        def write(self, _records: Sequence[Record], *, fact: bool = False) -> Future[Any]:
            return Future()

    async def handle(_args: Any, _call: Call) -> Mapping[str, Any]:
        await stuck.wait()
        return {}

    handlers: dict[str, Handler] = {"kill_switch": handle}
    dispatcher = Dispatcher(BUILT_IN, handlers, journal=Quiet(), bar=lambda _args: Barrier())  # type: ignore[arg-type]
    answers: asyncio.Queue[Response] = asyncio.Queue()
    command = Command("kill_switch", {}, "socket")
    if door == "begin":
        dispatcher.begin(command, answers.put_nowait)
    else:
        answers.put_nowait(await dispatcher.kill(command))
    del command
    response = await answers.get()
    assert response.ok
    assert response.result is not None
    assert response.result["latched"] is False
    assert "the gate is closed and nothing leaves" in response.result["note"]
    gc.collect()
    assert not lifted

    stuck.set()
    await asyncio.sleep(0.01)
    assert lifted
    assert answers.empty(), "it was answered once already"


async def test_a_kill_is_carried_out_on_the_money_lane_beside_a_blocked_loop(tmp_path: Path) -> None:
    """`kill` works on another loop while the outer one is blocked, and takes nothing but a kill."""
    lane = Lane("money")
    lane.start()
    threads: list[int] = []

    async def handle(_args: Any, _call: Call) -> None:
        threads.append(threading.get_ident())

    bench = make(tmp_path / "j.db", Wall(), kill_switch=handle)
    future = lane.submit(bench.dispatcher.kill(Command("kill_switch", {}, "socket", id="k")))
    response = future.result(timeout=5)  # this thread's loop is blocked meanwhile
    other = lane.submit(bench.dispatcher.kill(Command("start", {}, "socket"))).result(timeout=5)
    rows = await bench.rows("kill_switch", "k")
    lane.stop()
    await end(bench)

    assert response.ok
    assert threads != [threading.get_ident()]
    assert code_of(other) == "forbidden"
    assert [row.stage for row in rows] == ["received", "answered"]


# --- plugin commands ------------------------------------------------------------------------------------------


class ShoutArgs(NoArgs):
    """Arguments of a plugin's command."""

    text: str


SHOUT = CommandSpec("shout", ShoutArgs, "read", "Shout.", word="text")


async def test_a_plugins_command_runs_on_a_worker(bench: Bench) -> None:
    """Its handler is synchronous, off the loop, and its command is in the table."""
    threads: list[int] = []

    def shout(args: ShoutArgs) -> Mapping[str, Any]:
        threads.append(threading.get_ident())
        return {"said": args.text.upper()}

    bench.dispatcher.register(SHOUT, shout)
    response = await bench.send("shout", {"text": "hello"}, id="1", right="read")

    assert response.result == {"said": "HELLO"}
    assert threads != [threading.get_ident()]
    assert list(bench.dispatcher.specs)[-1] == "shout"
    assert [row.stage for row in await bench.rows("shout", "1")] == ["received", "answered"]


@pytest.mark.parametrize(
    ("handler", "code", "message"),
    [
        (lambda args: [1], "internal", "shout failed with TypeError: the log has the details"),
        (lambda args: {"x": {1, "a"}}, "internal", "shout failed with TypeError"),
        (lambda args: 1 // 0, "internal", "shout failed with ZeroDivisionError"),
        (lambda args: sys.exit(3), "internal", "shout failed with RuntimeError"),
    ],
)
async def test_a_plugins_bad_answer_is_an_error(
    bench: Bench, handler: Callable[[Any], Any], code: str, message: str
) -> None:
    """Whatever a plugin's handler gives or raises, the surface gets an answer."""
    bench.dispatcher.register(SHOUT, handler)
    response = await bench.send("shout", {"text": "x"})

    assert code_of(response) == code
    assert response.error is not None
    assert response.error["message"].startswith(message)


async def test_a_plugins_command_error_is_its_answer(bench: Bench) -> None:
    """A plugin refuses with a code of the contract."""

    def refuse(_args: Any) -> None:
        raise CommandError("not_found", "nobody listens")

    bench.dispatcher.register(SHOUT, refuse)
    response = await bench.send("shout", {"text": "x"})

    assert response.error == {"code": "not_found", "message": "nobody listens", "details": {}}


async def test_a_plugins_command_that_hangs_times_out_and_the_next_is_busy(bench: Bench) -> None:
    """A hung plugin holds up nobody; other commands go on."""
    leave = threading.Event()
    bench.dispatcher.register(SHOUT, lambda args: leave.wait(5) and None, budget_seconds=0.05)
    hung = await bench.send("shout", {"text": "x"})
    busy = await bench.send("shout", {"text": "x"})
    other = await bench.send("start")
    leave.set()

    assert hung.error is not None
    assert hung.error["message"] == "shout did not answer in time, and its outcome is not known"
    assert code_of(busy) == "busy"
    assert other.ok


async def test_two_commands_of_one_name_are_refused(bench: Bench) -> None:
    """Neither a built-in command nor another plugin's can be replaced."""
    bench.dispatcher.register(SHOUT, lambda args: None)
    for spec in (SHOUT, replace(SHOUT, name="start")):
        with pytest.raises(Exception, match=f"there are two commands '{spec.name}'"):
            bench.dispatcher.register(spec, lambda args: None)


# --- fuzz -----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.decimals(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted({name for spec in BUILT_IN.values() for name in spec.args.model_fields})


@given(
    st.sampled_from(sorted(BUILT_IN)),
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), JSON, max_size=5),
    st.sampled_from(["read", "trade", "admin"]),
    st.none() | st.text(min_size=1, max_size=64),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_command_makes_the_dispatcher_raise(
    name: str, args: dict[str, Any], right: Any, id_: str | None
) -> None:
    """Any arguments give one answer, and its body is JSON."""

    async def handle(args: Any, _call: Call) -> Mapping[str, Any]:
        return {"args": plain(args)}

    class Fast(Stalled):
        async def commit(self, records: Sequence[Record], *, fact: bool = False) -> Any:
            json.dumps(
                [dict(record.body) for record in records if isinstance(record, CommandRecord)], allow_nan=False
            )

    async def run() -> Response:
        dispatcher = Dispatcher(BUILT_IN, dict.fromkeys(BUILT_IN, handle), journal=Fast())
        response = await dispatcher.dispatch(Command(name, args, "mqtt", right=right, id=id_))
        await dispatcher.stop()
        return response

    logging.disable(logging.CRITICAL)
    try:
        response = asyncio.run(run())
    finally:
        logging.disable(logging.NOTSET)

    assert response.ok == (response.error is None)
    assert response.command == name
    json.dumps(response.body(), allow_nan=False)


# --- looking up -----------------------------------------------------------------------------------------------


def lookups(bench: Bench, mocker: MockerFixture) -> Any:
    """Count how often the journal is asked for a command."""
    return mocker.spy(bench.journal, "command")


def remember(bench: Bench) -> None:
    """Tell the dispatcher what the journal knows, as a start does."""
    bench.dispatcher.remember(bench.journal.commands_known(100), after=None)


async def test_a_new_command_is_not_looked_up_once_the_journals_are_known(
    bench: Bench, mocker: MockerFixture
) -> None:
    """Before, the journal says that it is new; a repeat gets the first answer either way."""
    asked = lookups(bench, mocker)
    await bench.send("start", id="1")
    assert asked.call_count == 1
    remember(bench)
    first = await bench.send("start", id="2")
    again = await bench.send("start", id="2")
    await bench.rows("start", "2")
    assert asked.call_count == 2  # the one that `rows` makes
    assert (again, len(bench.calls)) == (first, 2)


async def test_a_repeat_is_known_over_a_restart_that_remembers(tmp_path: Path, mocker: MockerFixture) -> None:
    """What was answered is answered again, what was cut off says so, and nothing acts twice."""
    wall = Wall()
    bench = make(tmp_path / "j.db", wall)
    first = await bench.send("start", id="1")
    received = (await bench.rows("start", "1"))[0]
    await bench.journal.commit([replace(received, id="cut off")])
    await end(bench)

    bench = make(tmp_path / "j.db", wall)
    remember(bench)
    asked = lookups(bench, mocker)
    again = await bench.send("start", id="1")
    lost = await bench.send("start", id="cut off")
    other = await bench.send("start", id="3")
    await end(bench)

    assert again.result == first.result
    assert code_of(lost) == "internal"
    assert other.ok
    assert [call.args[1] for call in asked.call_args_list] == ["1", "cut off"]
    assert len(bench.calls) == 1


async def test_a_command_cut_off_before_its_commit_was_told_is_looked_up(
    bench: Bench, mocker: MockerFixture
) -> None:
    """Its row may be there: whatever became of the commit, the next one with its id asks the journal."""
    remember(bench)
    mocker.patch.object(bench.journal, "commit", side_effect=JournalError("the disk is gone"))
    assert code_of(await bench.send("start", id="1")) == "internal"
    mocker.stopall()
    asked = lookups(bench, mocker)
    assert (await bench.send("start", id="1")).ok
    assert asked.call_count == 1


async def test_the_rows_of_answers_wait_for_the_next_commit_at_most_a_moment(bench: Bench) -> None:
    """They are durable together with the next command, and without one soon after."""
    await bench.send("start", id="1")
    await bench.send("start", id="2")
    known = bench.journal.command("start", "1", bench.wall.now - timedelta(days=1))
    assert [row.stage for row in known] == ["answered", "received"]
    await asyncio.sleep(10 * AFTER)
    await bench.journal.commit([])
    known = bench.journal.command("start", "2", bench.wall.now - timedelta(days=1))
    assert [row.stage for row in known] == ["answered", "received"]


async def test_an_order_that_is_sent_again_after_a_refusal_is_not_sent_twice_after_a_crash(
    tmp_path: Path,
) -> None:
    """The row of the refusal comes before those of the second try, however fast that is: the last row counts."""
    refusals = [CommandError("risk_rejected", "too large")]
    sent: list[str] = []
    wall = Wall()

    async def place(_args: Any, call: Call) -> Mapping[str, Any]:
        if refusals:
            raise refusals.pop()
        await bench.journal.commit(call.records)
        sent.append(call.command.id or "")
        raise asyncio.CancelledError  # the process dies right here, before the second answer is written

    bench = make(tmp_path / "j.db", wall, place_order=place)
    assert code_of(await bench.send("place_order", ORDER, id="1")) == "risk_rejected"
    assert code_of(await bench.send("place_order", ORDER, id="1")) == "internal"
    await end(bench)

    bench = make(tmp_path / "j.db", wall)
    remember(bench)
    again = await bench.send("place_order", ORDER, id="1")
    stages = [row.stage for row in await bench.rows("place_order", "1")]
    await end(bench)
    assert (code_of(again), sent, bench.calls) == ("internal", ["1"], [])
    assert stages == ["answered", "received"]

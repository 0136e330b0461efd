"""Random and mutated commands: no crash, no action but by what is valid, one answer each that names what is wrong.

The doors, the dispatcher and the reading of payloads are the real ones; handlers record what they are given.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import string
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NoReturn, cast, get_args

import pytest
from jsonschema import Draft7Validator

from sigma9_core.clock import monotonic, rfc3339, wall_now
from sigma9_core.commands import BUILT_IN, Command, Response
from sigma9_core.dispatcher import CONTROLS, Call, Dispatcher, Handler
from sigma9_core.errors import ErrorCode
from sigma9_core.money.records import CommandRecord, Record
from sigma9_core.repeats import Known
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.mqtt import commands
from sigma9_integrations.mqtt.commands import CommandDoor
from sigma9_integrations.mqtt.connection import Arrival, Wire
from sigma9_integrations.mqtt.kill import KillDoor, KillLedger
from sigma9_integrations.mqtt.testing import Client, Mosquitto, serving, settings_for
from sigma9_integrations.mqtt.topics import KILL, Topics
from sigma9_integrations.web.asyncapi import asyncapi
from sigma9_integrations.web.listener import Address

SEED: Final = 20261120
CODES: Final = frozenset(get_args(ErrorCode))
TOPICS: Final = Topics("sigma9", "main")

# --- what is sent ---------------------------------------------------------------------------------------------

ORDER: Final[Mapping[str, Any]] = {
    "symbol": "AAPL",
    "side": "buy",
    "quantity": 10,
    "order_type": "limit",
    "limit_price": 9.5,
    "time_in_force": "gtc",
    "outside_rth": True,
    "bracket": {"stop_price": 9, "take_profit": 12.25},
}
EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "control": {"command": "start"},
    "kill_switch": {"flatten": False, "scope": {"symbol": "AAPL"}},
    "reset_kill_switch": {"reason": "over", "scope": {"strategy": "seismograph"}},
    "scan": {"strategies": ["seismograph"]},
    "modify_order": {"order_id": "o-1", "quantity": 3, "limit_price": 9.5},
    "cancel_order": {"order_id": "o-1"},
    "cancel_all": {"protective": True},
    "close_position": {"symbol": "*"},
    "adopt_position": {"symbol": "AAPL", "strategy": "seismograph"},
    "settle_position": {"symbol": "AAPL", "reason": "seen"},
    "acknowledge_journal": {"reason": "seen"},
    "watchlist_add": {"symbol": "BRK.B"},
    "watchlist_remove": {"symbol": "BRK.B"},
    "plugin_enable": {"name": "console"},
    "plugin_disable": {"name": "console"},
    "risk_set": {"rule": "max_open", "settings": {"max_positions": 5}},
    "risk_clear": {"rule": "max_open"},
    "events": {"after": 7, "limit": 10},
    "place_order": ORDER,
    "preview_order": ORDER,
}
"""Valid arguments; a command that is not here needs none."""
GARBAGE: Final[Sequence[Any]] = ([[1]], {"x": {}}, [None], [{}], "\x00", "\ud800")
"""Values that no field of any command takes."""
ODD: Final[Sequence[Any]] = (
    *(None, True, False, 0, -1, 1, 2**63, 10**30, 0.1, -0.0, "", " ", "5", "buy", "A" * 500, [], {}, ["AAPL"]),
    *("NaN", "Infinity", "1e5", "true", "null", "*", "AAPL", "a b", "ä", "\u202e", "\n", "2026-11-20T14:45:00Z"),
)
"""Values that some fields take and most don't."""
TOKENS: Final = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999999999", b"1e-999999999", b"-1", b"0", b"1" * 400, b"true"),
    *(b"null", b'"\\ud800"', b'"\\u0000"', b'"\xff"', b"[" * 300, b"{" * 300, b'{"a":' * 300, b"0x10", b"'a'"),
)
WORDS: Final = (
    *("PRESS!", "ON OFF", "OFF", "null", "true", "stop it", "kill; start", "<b>", "{{ states }}", "unavailable"),
    *(
        "nan",
        "--help",
        "'start'",
        "ſtart",
        "ЅTART",
        "start\x00",
        "\ufeffstart",
        "s t o p",
        "=1+1",
        "%s%n",
        "../..",
    ),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One message, and what is known of it."""

    number: int
    name: str
    payload: bytes
    refused: bool | None
    """It must be refused, it must be carried out, or nobody knows."""
    how: str
    own: bool = True
    retain: bool = False
    stored: bool = False

    @property
    def topic(self) -> str:
        return TOPICS.command(self.name) if self.own else f"sigma9/all/command/{self.name}"

    @property
    def reply_to(self) -> str:
        return f"sigma9/reply/fuzz/{self.number}"


class Mutator:
    """Makes cases from a seed: a few that are valid, all others wrong in one way or in many."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._number = 0
        self._ways: tuple[Callable[[str], tuple[bytes, bool | None]], ...] = (
            *(self._lacking, self._mistyped, self._odd, self._unknown_key, self._cut, self._flipped, self._noise),
            *(
                self._text,
                self._not_an_object,
                self._inner,
                self._word,
                self._doubled,
                self._bad_id,
                self._bad_time,
            ),
            *(self._token, self._encoded, self._several),
        )

    def cases(self, count: int) -> Iterator[Case]:
        names = [*BUILT_IN, KILL, KILL, "control"]
        for _ in range(count):
            self._number += 1
            name, chance = self._random.choice(names), self._random.random()
            how = self._random.choice(self._ways)
            own, stored, retain = self._random.random() < 0.9, False, self._random.random() < 0.02
            if chance < 0.03:
                payload, refused, what = self._written(self._values(name)), False, "valid"
            elif chance < 0.05:
                payload, refused, what, stored = self._written(self._values(name)), True, "stored", True
            elif chance < 0.07:
                payload, refused, what = b"", None, "empty"
            elif chance < 0.12:
                name = self._name()
                payload, refused, what = self._written({}), True, "unknown"
            elif chance < 0.122:
                payload, refused, what = self._large(name), True, "large"
            else:
                (payload, refused), what = how(name), how.__name__
            if not payload:
                refused, what = None, "empty"
            yield Case(self._number, name, payload, refused, what, own, retain or stored, stored)

    # --- whole payloads ---------------------------------------------------------------------------------------

    def _values(self, name: str) -> dict[str, Any]:
        """Give valid values, with an id of their own."""
        values = dict(EXAMPLES.get(name, {}))
        for key in [key for key in values if key not in self._required(name)]:
            if self._random.random() < 0.3 and key not in ("limit_price", "order_type"):
                del values[key]
        values["id"] = f"{self._number}-{name}"
        if self._random.random() < 0.3:
            values["expires_at"] = rfc3339(wall_now() + timedelta(days=1))
        if self._random.random() < 0.3:
            values.setdefault("reason", "fuzz")
        return values

    def _required(self, name: str) -> list[str]:
        spec = BUILT_IN[name]
        needed = [key for key, info in spec.args.model_fields.items() if info.is_required()]
        return [*needed, "id"] if spec.needs_id else needed

    def _written(self, values: Any) -> bytes:
        spaces = self._random.choice(((",", ":"), (", ", ": ")))
        plain = self._random.random() < 0.5
        try:
            return json.dumps(values, separators=spaces, ensure_ascii=plain).encode()
        except UnicodeEncodeError:  # a surrogate alone
            return json.dumps(values, separators=spaces).encode()

    # --- ways to be wrong -------------------------------------------------------------------------------------

    def _lacking(self, name: str) -> tuple[bytes, bool | None]:
        values, needed = self._values(name), self._required(name)
        if not needed:
            return self._unknown_key(name)
        del values[self._random.choice(needed)]
        return self._written(values), True

    def _mistyped(self, name: str) -> tuple[bytes, bool | None]:
        values = self._values(name)
        key = self._random.choice([*values, "reason", "id", "expires_at"])
        if key == "settings":  # the rule knows what it takes
            return self._unknown_key(name)
        values[key] = self._random.choice(GARBAGE)
        return self._written(values), True

    def _odd(self, name: str) -> tuple[bytes, bool | None]:
        values = self._values(name)
        for _ in range(self._random.randint(1, 3)):
            values[self._random.choice([*values, *BUILT_IN[name].args.model_fields])] = self._random.choice(ODD)
        return self._written(values), None

    def _unknown_key(self, name: str) -> tuple[bytes, bool | None]:
        values = self._values(name)
        key = "".join(self._random.choices(string.printable, k=self._random.randint(1, 80)))
        values[
            self._random.choice([f"x{key}", "Reason", "ID", "symbol ", "__class__", "quantitty", "commmand"])
        ] = 1
        flat = name == "risk_set" and "settings" not in values
        return self._written(values), None if flat else True

    def _cut(self, name: str) -> tuple[bytes, bool | None]:
        whole = self._written(self._values(name)).rstrip()
        return whole[: self._random.randrange(1, len(whole))], True

    def _flipped(self, name: str) -> tuple[bytes, bool | None]:
        payload = bytearray(self._written(self._values(name)))
        for _ in range(self._random.randint(1, 4)):
            payload[self._random.randrange(len(payload))] = self._random.randrange(256)
        return bytes(payload), None

    def _noise(self, name: str) -> tuple[bytes, bool | None]:
        return b"\xfe" + self._random.randbytes(self._random.randint(0, 200)), True

    def _text(self, name: str) -> tuple[bytes, bool | None]:
        signs = "".join(chr(self._random.randrange(1, 0xD7FF)) for _ in range(self._random.randint(1, 60)))
        return f"!{signs}".encode(), True

    def _not_an_object(self, name: str) -> tuple[bytes, bool | None]:
        values = self._values(name)
        some: tuple[Any, ...] = ([values], [], [1, 2], "start it", "start", [[[]]], -1.5)
        wrong = self._random.choice(some if name == "control" or BUILT_IN[name].word is None else some[:-1])
        return self._written(wrong), True  # -1.5 may well be a symbol

    def _inner(self, name: str) -> tuple[bytes, bool | None]:
        """Put an object into itself, deeper than is read."""
        values: Any = self._values(name)
        for _ in range(self._random.randint(9, 40)):
            values = {"reason": values}
        return self._written(values), True

    def _word(self, name: str) -> tuple[bytes, bool | None]:
        word = self._random.choice(WORDS)
        spec = BUILT_IN[name]
        fits = spec.word is not None and spec.word != "command" and word.isascii() and word.isalpha()
        return word.encode(), None if fits or spec.word is not None else True

    def _doubled(self, name: str) -> tuple[bytes, bool | None]:
        body = self._written(self._values(name))
        return b'{"id": "first",' + body[1:], True

    def _bad_id(self, name: str) -> tuple[bytes, bool | None]:
        wrong = ("", "x" * 65, 5, True, ["a"], {"a": 1}, "tab\t", "null\x00", "line\n", 1.5)
        return self._written({**self._values(name), "id": self._random.choice(wrong)}), True

    def _bad_time(self, name: str) -> tuple[bytes, bool | None]:
        past = rfc3339(datetime(2020, 1, 1, tzinfo=UTC))
        wrong = ("soon", "", 0, 1e9, "2026-13-01T00:00:00Z", "2099-01-01T00:00:00", [past], past, "9" * 40, True)
        return self._written({**self._values(name), "expires_at": self._random.choice(wrong)}), True

    def _token(self, name: str) -> tuple[bytes, bool | None]:
        """Put something in the place of a value that a careless reader would choke on."""
        values = self._values(name)
        key = self._random.choice(list(values))
        values[key] = "@@@"
        return self._written(values).replace(b'"@@@"', self._random.choice(TOKENS)), None

    def _encoded(self, name: str) -> tuple[bytes, bool | None]:
        text = self._written(self._values(name)).decode()
        return text.encode(self._random.choice(("utf-16", "utf-32", "utf-8-sig", "cp037"))), True

    def _several(self, name: str) -> tuple[bytes, bool | None]:
        body = self._written(self._values(name))
        return body + self._random.choice((b",", b"\n", b" ", b"")) + body, True

    def _large(self, name: str) -> bytes:
        return self._written({**self._values(name), "reason": "x" * self._random.randint(65_537, 80_000)})

    def _name(self) -> str:
        near = self._random.choice([*BUILT_IN])
        far = "".join(self._random.choices(string.ascii_letters + "äß€.-_ $%~", k=self._random.randint(1, 90)))
        return self._random.choice((near.upper(), f"{near}s", near[:-1] + "_", far + "?", "x" * 3000))


# --- what takes it --------------------------------------------------------------------------------------------


class Memory:
    """A journal of commands that keeps its rows in memory."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[CommandRecord]] = {}

    def write(self, records: Sequence[Record], *, fact: bool = False) -> Future[Any]:
        for record in records:
            if isinstance(record, CommandRecord) and record.id is not None:
                self.rows.setdefault((record.command, record.id), []).insert(0, record)
        done: Future[Any] = Future()
        done.set_result(None)
        return done

    async def commit(self, records: Sequence[Record], *, fact: bool = False) -> None:
        self.write(records, fact=fact)

    def command(self, command: str, id: str, since: datetime) -> list[CommandRecord]:  # noqa: A002 - the contract's name
        return list(self.rows.get((command, id), ()))


class Recording(FakeServer):
    """A server with the real dispatcher, whose handlers note what they are given and do nothing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory = Memory()
        self.acted: list[tuple[str, Command]] = []
        table: dict[str, Handler] = {name: self._handler(name) for name in BUILT_IN}
        self.dispatcher = Dispatcher(BUILT_IN, table, journal=self.memory)

    def _handler(self, name: str) -> Handler:
        async def handle(args: Any, call: Call) -> Mapping[str, Any]:
            self.acted.append((name, call.command))
            return {}

        return handle

    async def dispatch(self, command: Command) -> Response:
        return await self.dispatcher.dispatch(command)

    def begin(self, command: Command, answered: Callable[[Response], None]) -> None:
        self.dispatcher.begin(command, answered)

    async def kill(self, command: Command) -> Response:
        return await self.dispatcher.kill(command)


class Posts:
    """A connection that keeps what is posted to it."""

    def __init__(self) -> None:
        self.protocol = "5"
        self.largest: int | None = None
        self.on_subscribed: Callable[[], None] = lambda: None
        self.posted: list[tuple[str, str, bytes | None]] = []

    async def listen(self, filters: Sequence[str]) -> None:
        self.on_subscribed()

    async def lost(self) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError("never")

    async def room(self) -> None:
        await asyncio.sleep(0)

    has_room = True

    def write(self) -> None: ...

    def rest(self, seconds: float) -> None: ...

    async def settled(self) -> None: ...

    def fits(self, topic: str, payload: str, correlation: bytes | None = None) -> bool:
        return True

    def post(self, topic: str, payload: str, **more: Any) -> None:
        assert len(topic.encode()) <= 65535, "paho would raise"
        self.posted.append((topic, payload, more.get("correlation")))


# --- what must come of it -------------------------------------------------------------------------------------


class Judge:
    """Holds answers and actions to the cases that they are of."""

    def __init__(self) -> None:
        document = asyncapi(FakeServer(), Address([], "127.0.0.1", 8080, "http://127.0.0.1:8080", loopback=True))
        schemas = document["components"]["schemas"]
        self.seen: Counter[str] = Counter()
        self._schemas = {
            name: Draft7Validator({"components": {"schemas": schemas}, "allOf": [schemas[f"command_{name}"]]})
            for name in BUILT_IN
        }
        self._keys = set(schemas["CommandAnswer"]["properties"])

    def judge(
        self, cases: Sequence[Case], replies: Mapping[int, list[str]], acted: Sequence[tuple[str, Command]]
    ) -> None:
        """Judge a batch: its cases, the answers to each, and what was carried out."""
        done: Counter[tuple[str, str | None]] = Counter((command.name, command.id) for _, command in acted)
        for case in cases:
            answers = replies.get(case.number, [])
            if not case.payload:
                assert answers == [], case
                self.seen["empty"] += 1
                continue
            assert len(answers) == 1, (case, answers)
            body = json.loads(answers[0])
            assert set(body) == self._keys, case
            assert (body["command"], body["source"]) == (case.name, "mqtt"), case
            if body["ok"]:
                self._carried_out(case, body)
                self.seen["ok"] += 1
            else:
                self._refused(case, body)
                self.seen[body["error"]["code"]] += 1
                # An id that is a case's own tells what was carried out for it.
                own = f"{case.number}-{case.name}"
                stands_for = CONTROLS.get(str(EXAMPLES["control"]["command"])) if case.name == "control" else None
                assert not done[(stands_for or case.name, own)], case
        for name, command in acted:
            assert command.right == "admin"
            assert command.source == "mqtt"
            assert name in BUILT_IN
            BUILT_IN[name].args.model_validate(dict(command.args))
        assert len(acted) <= sum(json.loads(one)["ok"] for each in replies.values() for one in each)

    def _carried_out(self, case: Case, body: dict[str, Any]) -> None:
        """What was carried out fits the documented schema, or is a word."""
        assert case.refused is not True, case
        assert not case.stored, case
        assert body["error"] is None
        assert isinstance(body["result"], dict)
        text = case.payload.decode().strip()
        if text.startswith("{"):
            values = json.loads(text)
            errors = [error.message for error in self._schemas[case.name].iter_errors(lenient(values))]
            assert errors == [], (case, errors)
        else:
            spec = BUILT_IN[case.name]
            assert spec.word is not None or text.isascii(), case

    def _refused(self, case: Case, body: dict[str, Any]) -> None:
        assert case.refused is not False, (case, body)
        error = body["error"]
        assert body["result"] is None
        # An odd id may be another case's as well: that one may still be at work, or have other arguments.
        never = {"internal", "rate_limited", *(() if case.refused is None else ("busy", "conflict"))}
        assert error["code"] in CODES - never, (case, error)
        assert len(error["message"]) > 10, case
        assert "Traceback" not in error["message"]
        assert len(error["message"]) < 2000, case
        if case.how == "unknown":
            assert error["code"] == "unknown_command" or not case.payload, (case, error)
        if case.stored:
            assert error["code"] == "retained"
        elif error["code"] == "invalid":
            names = error["details"]["field"]
            assert "field" in error["details"], case
            if isinstance(names, str) and names.isprintable() and len(names) <= 64 and names:
                last = names.rsplit(".", 1)[-1]
                assert last in error["message"] or "?" in error["message"], (case, error)


def lenient(values: Any) -> Any:
    """Write what is also taken as the schema has it: numbers and flags as texts, null for what is not given."""
    flags = {
        "true": True,
        "on": True,
        "yes": True,
        "1": True,
        "false": False,
        "off": False,
        "no": False,
        "0": False,
    }

    def one(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return lenient(value)
        if key in ("flatten", "protective", "outside_rth") and not isinstance(value, bool) and value is not None:
            known = flags.get(str(value).lower(), value)
            return bool(known) if isinstance(known, int | float) and known in (0, 1) else known
        if key in NUMBERS and isinstance(value, str):
            number = float(value)
            return int(number) if number.is_integer() else number
        return value

    return {
        key: one(key, value)
        for key, value in values.items()
        if value is not None or key not in ("id", "expires_at", "reason")
    }


NUMBERS: Final = frozenset(
    ("quantity", "limit_price", "stop_price", "take_profit", "trail_amount", "trail_percent", "after", "limit")
)


# --- in this process ------------------------------------------------------------------------------------------


@dataclass
class Doors:
    """Both doors of a node, each on its own loop, and the connections that they write to."""

    server: Recording
    command: CommandDoor
    kill: KillDoor
    ledger: KillLedger
    posts: tuple[Posts, Posts] = field(default_factory=lambda: (Posts(), Posts()))
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def open(cls, server: Recording) -> Doors:
        ledger = KillLedger()
        doors = cls(
            server,
            CommandDoor(server, TOPICS, ledger, lambda up: None),
            KillDoor(server, TOPICS, ledger, lambda up: None),
            ledger,
        )
        doors.tasks.append(asyncio.create_task(doors.command.serve(cast(Wire, doors.posts[0]))))
        await server.doors.call(doors._serve_kills())
        await asyncio.sleep(0.01)
        return doors

    async def _serve_kills(self) -> None:
        self.tasks.append(asyncio.create_task(self.kill.serve(cast(Wire, self.posts[1]))))

    async def close(self) -> None:
        self.tasks[0].cancel()
        await asyncio.gather(self.tasks[0], return_exceptions=True)
        await self.server.doors.call(self._end_kills())
        await self.server.dispatcher.stop()

    async def _end_kills(self) -> None:
        self.tasks[1].cancel()
        await asyncio.gather(self.tasks[1], return_exceptions=True)

    async def send(self, cases: Sequence[Case]) -> dict[int, list[str]]:
        """Deliver cases as the broker does, kills to both doors, and give the answers by case."""
        for case in cases:
            arrival = Arrival(
                case.topic,
                case.payload,
                case.retain,
                case.stored,
                False,
                monotonic(),
                case.reply_to,
                str(case.number).encode(),
            )
            if case.name == KILL:
                self.server.doors.post(self.kill.on_message, arrival)
            self.command.on_message(arrival)
        while self.command._begun or self.command._work or self.command._answers._waits:  # noqa: ASYNC110 - they tell nobody
            await asyncio.sleep(0.001)
        await self.server.doors.call(self._kills_done())
        await asyncio.sleep(0)
        replies: dict[int, list[str]] = {}
        responses = 0
        for posts in self.posts:
            for topic, payload, correlation in posts.posted:
                if topic.startswith("sigma9/reply/"):
                    assert correlation == topic.rsplit("/", 1)[1].encode()
                    replies.setdefault(int(correlation), []).append(payload)
                elif "/response/" in topic:
                    responses += 1
                else:
                    assert ("/command/" in topic, payload) == (True, "")
            posts.posted.clear()
        assert responses == sum(map(len, replies.values()))
        return replies

    def memory(self) -> int:
        """Give the bytes in use, without the kills that both doors know for five seconds."""
        self.ledger._forget(monotonic())
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async def _kills_done(self) -> None:
        while self.kill._begun or self.kill._answers._waits:  # noqa: ASYNC110 - they tell nobody
            await asyncio.sleep(0.001)


@pytest.fixture(name="quiet", autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take commands as fast as they come, and let pytest keep no log line of each."""
    monkeypatch.setattr(commands, "RATE", 1e12)
    monkeypatch.setattr(commands, "KILL_GRACE", 0.02)
    logger = logging.getLogger("sigma9")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
async def test_no_payload_crashes_or_acts_or_goes_unanswered(count: int) -> None:
    """Whatever comes is answered once, by its code and field; only valid commands act; nothing is kept of it."""
    batch = 250
    mutator, judge = Mutator(SEED), Judge()
    async with Recording() as server:
        doors = await Doors.open(server)
        tracemalloc.start()
        try:
            used = 0
            for number in range(count // batch):
                cases = list(mutator.cases(batch))
                replies = await doors.send(cases)
                judge.judge(cases, replies, server.acted)
                server.acted.clear()
                server.memory.rows.clear()
                server.dispatcher._known = Known()
                if number == count // batch // 4:
                    used = doors.memory()
            grown = doors.memory() - used
        finally:
            tracemalloc.stop()
        assert grown < 150_000, f"{grown} bytes more than after a quarter of the messages"
        assert not doors.tasks[0].done()
        assert not doors.tasks[1].done()
        assert set(doors.command._lanes) <= set(BUILT_IN)
        assert doors.command._waiting == 0
        async with asyncio.timeout(10):
            while server.dispatcher._answers:  # noqa: ASYNC110 - their rows follow the answers; nobody tells of them
                await asyncio.sleep(0.01)
        assert not server.dispatcher._running
        await doors.close()
    told = judge.seen
    assert sum(told.values()) == count
    assert told["invalid"] > count * 0.6
    assert count * 0.02 < told["ok"] < count * 0.15
    assert {"unknown_command", "expired", "retained", "empty"} <= set(told)


# --- over a broker --------------------------------------------------------------------------------------------


@pytest.mark.mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_no_payload_disturbs_a_node_on_a_broker(broker: Mosquitto, protocol: Literal["5", "3.1.1"]) -> None:
    """The same through a real Mosquitto: each is answered once, the node stays connected and goes on."""
    settings = settings_for(broker, protocol=protocol)
    server, judge = Recording(settings), Judge()
    mutator = Mutator(SEED + 1)
    async with Client.of(broker, "admin") as client, serving(settings, server):
        await client.subscribe("sigma9/main/availability", "sigma9/reply/#", "sigma9/main/response/#")
        await client.until_heard("sigma9/main/availability", "online")
        for _ in range(8):
            cases = [case for case in mutator.cases(250) if not case.stored]
            client.heard.clear()
            expected = sum(1 for case in cases if case.payload)
            await asyncio.gather(
                *(
                    client.publish(
                        case.topic,
                        case.payload,
                        retain=case.retain,
                        reply_to=case.reply_to,
                        correlation=str(case.number).encode(),
                    )
                    for case in cases
                )
            )

            def complete(heard: Sequence[Any], expected: int = expected) -> bool:
                return sum("/response/" in one.topic for one in heard) >= expected

            await client.until(complete, 15, what=f"{expected} answers")
            await asyncio.sleep(0.05)
            replies: dict[int, list[str]] = {}
            for one in client.heard:
                if one.correlation is not None:
                    replies.setdefault(int(one.correlation), []).append(one.payload)
            responses = Counter(one.topic.rsplit("/", 1)[1] for one in client.heard if "/response/" in one.topic)
            assert responses == Counter(case.name for case in cases if case.payload)
            if protocol == "5":
                judge.judge(cases, replies, server.acted)
            server.acted.clear()
        assert server.mqtt == "connected"
        assert client.payloads("sigma9/main/availability") == []
        await client.publish("sigma9/main/command/heartbeat", '{"id": "last"}')
        await client.until(lambda heard: any('"last"' in one.payload for one in heard))

"""What a wrong command is answered: the field by name, in words of JSON, for every argument of every command."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Final

import pytest

from sigma9_core.commands import BUILT_IN, CommandSpec, RiskSetArgs
from sigma9_core.config import PluginSettings
from sigma9_core.dispatcher import Call, Dispatcher
from sigma9_core.errors import CommandError
from sigma9_core.models import Frozen
from sigma9_core.money.records import CommandRecord, Record
from sigma9_core.payload import read_command
from sigma9_core.plugins import PluginHost

PYTHON: Final = re.compile(
    r"\b(tuple|dict|dictionary|NoneType|None|Decimal|str|string|int|integer|float|bool|boolean|True|False|instance"
    r"|valid \w+|Input|Args|pydantic|ValueError|\w+Args)\b|\^|\\|\{\d"
)
"""What nobody who clicks together a dashboard should have to read, regular expressions included."""

WORDS = ("true", "1.5", "[]", "{}", '[["a"]]')
"""No text, as JSON."""
WRONG: Final[dict[str, tuple[str, ...]]] = {
    "reason": (*WORDS, '""', '"  "', json.dumps("x" * 501)),
    "name": (*WORDS, '""', "null", json.dumps("x" * 201)),
    "optional name": (*WORDS, '""', json.dumps("x" * 201)),
    "symbol": (*WORDS, '""', "null", '"A/B"', '"a b"', json.dumps("A" * 33)),
    "optional symbol": (*WORDS, '""', '"A/B"'),
    "choice": (*WORDS, '""', "null", '"other"'),
    "optional choice": (*WORDS, '""', '"other"'),
    "positive": ("true", "false", '"many"', '""', "[]", "{}", "0", "-1", "-0.01", "1e19", "NaN", "null"),
    "optional positive": ("true", '"many"', '""', "[]", "{}", "0", "-1", "Infinity", "1e400"),
    "flag": ('"maybe"', "2", "1.5", "[]", "{}", "null", '""'),
    "optional flag": ('"maybe"', "2", "[]", "{}", '""'),
    "whole": ("true", "false", "1.5", '"x"', '""', "-1", "[]", "{}", "null", "9" * 20, str(2**53 + 1)),
    "names": ('"a"', "5", "true", '{"a": 1}'),
    "object": ('"a"', "5", "true", "[]", '[["a", 1]]'),
    "needed object": ('"a"', "5", "true", "[]", "{}", "null"),
}  # fmt: skip
"""Values that are wrong for each kind of argument: another type, out of range, empty; written as JSON."""

ORDER = '{"symbol": "AAPL", "side": "buy", "quantity": 1, "id": "o1"}'
ORDER_FIELDS = {
    "symbol": "symbol",
    "side": "choice",
    "quantity": "positive",
    "order_type": "choice",
    "limit_price": "optional positive",
    "stop_price": "optional positive",
    "trail_amount": "optional positive",
    "trail_percent": "optional positive",
    "time_in_force": "choice",
    "outside_rth": "flag",
    "bracket": "object",
    "reason": "reason",
}
SCOPE_FIELDS = {"scope": "object", "scope.strategy": "optional name", "scope.symbol": "optional symbol"}
BRACKET_FIELDS = {"bracket.stop_price": "positive", "bracket.take_profit": "optional positive"}
ONLY_REASON: dict[str, str] = {"reason": "reason"}

TABLE: Final[dict[str, tuple[str, dict[str, str]]]] = {
    **dict.fromkeys(
        ("start", "stop", "pause", "resume", "kill_drill", "heartbeat", "broker_connect", "broker_disconnect"),
        ("{}", ONLY_REASON),
    ),
    "control": ('{"command": "stop"}', {"command": "choice", "reason": "reason"}),
    "kill_switch": ("{}", {"flatten": "optional flag", **SCOPE_FIELDS, "reason": "reason"}),
    "reset_kill_switch": ('{"reason": "checked"}', {**SCOPE_FIELDS, "reason": "reason"}),
    "acknowledge_journal": ('{"reason": "a copy"}', {"reason": "reason"}),
    "scan": ("{}", {"strategies": "names", "strategies.0": "name", "reason": "reason"}),
    "place_order": (ORDER, {**ORDER_FIELDS, **BRACKET_FIELDS}),
    "preview_order": (ORDER, {**ORDER_FIELDS, **BRACKET_FIELDS}),
    "modify_order": (
        '{"order_id": "7", "quantity": 2}',
        {
            "order_id": "name",
            **dict.fromkeys(
                ("quantity", "limit_price", "stop_price", "trail_amount", "trail_percent"), "optional positive"
            ),
            "reason": "reason",
        },
    ),
    "cancel_order": ('{"order_id": "7"}', {"order_id": "name", "reason": "reason"}),
    "cancel_all": ("{}", {"protective": "flag", "reason": "reason"}),
    "close_position": ('{"symbol": "*"}', {"symbol": "symbol", "reason": "reason"}),
    "adopt_position": (
        '{"symbol": "AAPL", "strategy": "s"}',
        {"symbol": "symbol", "strategy": "name", "reason": "reason"},
    ),
    "settle_position": (
        '{"symbol": "AAPL", "reason": "checked"}',
        {"symbol": "symbol", "reason": "reason"},
    ),
    "watchlist_add": ('{"symbol": "AAPL"}', {"symbol": "symbol", "reason": "reason"}),
    "watchlist_remove": ('{"symbol": "AAPL"}', {"symbol": "symbol", "reason": "reason"}),
    "plugin_enable": ('{"name": "x"}', {"name": "name", "reason": "reason"}),
    "plugin_disable": ('{"name": "x"}', {"name": "name", "reason": "reason"}),
    "risk_set": (
        '{"rule": "max_open", "settings": {"max_positions": 2}}',
        {"rule": "name", "settings": "needed object", "reason": "reason"},
    ),
    "risk_clear": ('{"rule": "loss_limit"}', {"rule": "name", "reason": "reason"}),
    "events": ('{"after": 0}', {"after": "whole", "limit": "whole", "reason": "reason"}),
}
"""Each command: a payload that is right, and the kind of each of its arguments."""


class NoJournal:
    """A journal that forgets everything at once."""

    def write(self, records: Sequence[Record], *, fact: bool = False) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(None)
        return done

    async def commit(self, records: Sequence[Record], *, fact: bool = False) -> None:
        """Forget."""

    def command(self, command: str, id: str, since: datetime) -> list[CommandRecord]:  # noqa: A002 - the protocol's
        return []


def refusal(name: str, payload: str) -> CommandError:
    """Send a payload that must be refused through the reader and the dispatcher's checks."""
    dispatcher = Dispatcher(BUILT_IN, {}, journal=NoJournal())
    with pytest.raises(CommandError) as caught:
        dispatcher.validate(read_command(name, payload.encode(), BUILT_IN, source="mqtt", right="admin"))
    return caught.value


def with_value(payload: str, path: str, value: str) -> str:
    """Put a value, written as JSON, into a payload; numbers that JSON has no word for stay as they are written."""
    body: dict[str, Any] = json.loads(payload)
    mark = "the value goes here"
    head, _, tail = path.partition(".")
    if not tail:
        body[head] = mark
    elif tail.isdecimal():
        body[head] = [mark]
    elif head == "bracket":
        body[head] = {"stop_price": 1, tail: mark}
    else:
        body[head] = {tail: mark}
    return json.dumps(body).replace(json.dumps(mark), value)


def judge(error: CommandError, name: str, path: str) -> None:
    """Hold an answer against the rule: it names the field, in its details and its sentence, and no Python."""
    assert error.code == "invalid"
    assert error.details["field"] == path
    assert re.search(rf"\b{re.escape(path)}\b", error.message)
    assert not PYTHON.search(error.message.replace(name, "")), error.message
    assert "\n" not in error.message
    assert len(error.message) < 250
    for each in error.details.get("errors", []):
        assert each["message"] in error.message


def test_the_table_holds_every_argument_of_every_command() -> None:
    """No command and no argument is left out of these tests."""
    assert set(TABLE) == set(BUILT_IN)
    for name, (_, fields) in TABLE.items():
        assert {path for path in fields if "." not in path} == set(BUILT_IN[name].args.model_fields), name


@pytest.mark.parametrize("name", TABLE)
def test_a_wrong_value_is_answered_in_words_of_json(name: str) -> None:
    """Another type, an empty value or one out of range: the answer names the field and says what JSON it wants."""
    payload, fields = TABLE[name]
    dispatcher = Dispatcher(BUILT_IN, {}, journal=NoJournal())
    dispatcher.validate(read_command(name, payload.encode(), BUILT_IN, source="mqtt", right="admin"))
    for path, kind in fields.items():
        for value in WRONG[kind]:
            judge(refusal(name, with_value(payload, path, value)), name, path)


@pytest.mark.parametrize("name", TABLE)
def test_what_is_missing_or_not_known_is_named(name: str) -> None:
    """A required argument that is left out, and one that nobody knows, are told by their names."""
    payload, _ = TABLE[name]
    body = json.loads(payload)
    for field, info in BUILT_IN[name].args.model_fields.items():
        if info.is_required():
            error = refusal(name, json.dumps({key: value for key, value in body.items() if key != field}))
            judge(error, name, field)
            assert f"{field} is required" in error.message
    error = refusal(name, json.dumps({**body, "mispelt": 1}))
    judge(error, name, "mispelt")
    assert "mispelt is not known here" in error.message


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("scan", '{"strategies": "a"}', "scan: strategies must be a list, not 'a'"),
        ("scan", '{"strategies": [5]}', "scan: strategies.0 must be text, not 5"),
        ("events", '{"after": true}', "events: after must be a whole number, not true"),
        ("events", '{"after": 1.5}', "events: after must be a whole number, not 1.5"),
        ("cancel_all", '{"protective": "x"}', "cancel_all: protective must be true or false, not 'x'"),
        (
            "kill_switch",
            '{"scope": "AAPL"}',
            "kill_switch: scope must be an object of keys and values, not 'AAPL'",
        ),
        (
            "kill_switch",
            '{"scope": {"stratgy": "a"}}',
            "kill_switch: scope.stratgy is not known here; did you mean 'strategy'?",
        ),
        ("kill_switch", '{"scope": {}}', "kill_switch: scope must name exactly one of strategy and symbol"),
        (
            "watchlist_add",
            '{"symbol": "A/B"}',
            "watchlist_add: symbol must be a symbol: 1 to 32 letters, digits, dots, - and _, not 'A/B'",
        ),
        ("cancel_order", '{"order_id": ""}', "cancel_order: order_id must not be empty"),
        ("start", '{"reason": []}', "start: reason must be text, not a list"),
        (
            "preview_order",
            '{"symbol": "A", "side": "Buy", "quantity": "x", "limt_price": 1}',
            (
                "preview_order: side must be 'buy' or 'sell', not 'Buy'; quantity must be a number, not 'x'; "
                "limt_price is not known here; did you mean 'limit_price'?"
            ),
        ),
    ],
)
def test_the_sentence_is_one_that_a_person_can_act_on(name: str, payload: str, message: str) -> None:
    """The sentence says which field, what it must be, and what it is."""
    assert refusal(name, payload).message == message


# --- the prices of an order -----------------------------------------------------------------------------------

NEEDS: Final = {
    "market": (),
    "limit": ("limit_price",),
    "stop": ("stop_price",),
    "stop_limit": ("limit_price", "stop_price"),
    "trailing_stop": ("one trail",),
    "market_on_close": (),
    "limit_on_close": ("limit_price",),
}
PRICES: Final = ("limit_price", "stop_price", "trail_amount", "trail_percent")


@pytest.mark.parametrize("name", ["place_order", "preview_order"])
@pytest.mark.parametrize("order_type", NEEDS)
def test_every_combination_of_prices_names_the_fields_that_are_wrong(name: str, order_type: str) -> None:
    """Whatever prices an order has, every one that is missing or too much is named, and nothing else."""
    needs = NEEDS[order_type]
    dispatcher = Dispatcher(BUILT_IN, {}, journal=NoJournal())
    for given in itertools.chain.from_iterable(itertools.combinations(PRICES, count) for count in range(5)):
        wrong = [field for field in PRICES[:2] if (field in needs) != (field in given)]
        trails = [field for field in PRICES[2:] if field in given]
        if "one trail" not in needs:
            wrong += trails
        elif not trails:
            wrong.append("trail_amount")
        elif len(trails) == 2:
            wrong.append("trail_percent")
        body = {**json.loads(ORDER), "order_type": order_type, **dict.fromkeys(given, 1.5)}
        if not wrong:
            dispatcher.validate(
                read_command(name, json.dumps(body).encode(), BUILT_IN, source="mqtt", right="admin")
            )
            continue
        error = refusal(name, json.dumps(body))
        assert [each["field"] for each in error.details["errors"]] == wrong
        judge(error, name, wrong[0])


def test_a_limit_order_without_its_price() -> None:
    """The answer that the order ticket of a dashboard marks its field by."""
    error = refusal("place_order", with_value(ORDER, "order_type", '"limit"'))

    assert error.details == {
        "field": "limit_price",
        "errors": [{"field": "limit_price", "message": "is required for a limit order"}],
    }


# --- what only the rule or a plugin can know ------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    ['"max_positions": "many", "max_odrers": 3', '"settings": {"max_positions": "many", "max_odrers": 3}'],
)
async def test_a_wrong_setting_of_a_rule_is_named_by_its_own_name(settings: str) -> None:
    """`risk_set` is flat: the field is the setting itself, in the sentence, the details and every error."""
    host = PluginHost(PluginSettings())
    host.load()

    async def risk_set(args: RiskSetArgs, _call: Call) -> None:
        host.validate("risk", args.rule, args.settings, path="settings")

    dispatcher = Dispatcher(BUILT_IN, {"risk_set": risk_set}, journal=NoJournal())
    payload = f'{{"rule": "max_open", {settings}}}'
    command = read_command("risk_set", payload.encode(), BUILT_IN, source="mqtt", right="admin")

    response = await dispatcher.dispatch(command)
    await dispatcher.stop()

    assert response.error == {
        "code": "invalid",
        "message": "risk_set: max_positions must be a whole number, not 'many'; "
        "max_odrers is not known here; did you mean 'max_orders'?",
        "details": {
            "field": "max_positions",
            "errors": [
                {"field": "max_positions", "message": "must be a whole number, not 'many'"},
                {"field": "max_odrers", "message": "is not known here; did you mean 'max_orders'?"},
            ],
        },
    }


def test_a_rule_without_settings_is_refused() -> None:
    """`risk_set` that changes nothing says what is missing, flat or not."""
    for payload in ('{"rule": "max_open"}', '{"rule": "max_open", "settings": {}, "reason": "x"}'):
        error = refusal("risk_set", payload)
        judge(error, "risk_set", "settings")
        assert "settings is required: name at least one setting" in error.message


def test_a_plugins_command_speaks_alike() -> None:
    """The arguments of a plugin's own command are answered in the same words."""

    class Args(Frozen):
        count: int
        levels: tuple[float, ...] = ()

    spec = CommandSpec("measure", Args, "read", "Measure.")
    dispatcher = Dispatcher({"measure": spec}, {}, journal=NoJournal())
    with pytest.raises(CommandError) as caught:
        dispatcher.validate(
            read_command(
                "measure", b'{"count": true, "levels": [1, false]}', {"measure": spec}, source="api", right="read"
            )
        )

    assert caught.value.message == (
        "measure: count must be a whole number, not true; levels.1 must be a number, not false"
    )


@pytest.mark.parametrize("word", ["null", "true", "false"])
def test_a_template_that_failed_is_no_symbol(word: str) -> None:
    """JSON's own words are no plain words: a dashboard that sends them had nothing to say."""
    error = refusal("watchlist_add", word)

    assert error.code == "invalid"
    assert "does not fit watchlist_add" in error.message
    assert error.details["field"] == "symbol"


@pytest.mark.parametrize("payload", [b"{", b"[1]", b"", b"\xff", b"{}]", b'"start"'])
def test_what_is_not_an_object_names_no_field(payload: bytes) -> None:
    """Details always have the key `field`; it is null where there is no field to name."""
    with pytest.raises(CommandError) as caught:
        read_command("start", payload, BUILT_IN, source="mqtt", right="admin")

    assert caught.value.code == "invalid"
    assert caught.value.details["field"] is None

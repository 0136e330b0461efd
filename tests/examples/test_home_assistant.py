"""Dashboard and blueprints for Home Assistant: all that they name is there, all that they send is taken."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import CodeType
from typing import Any, Final

import jinja2
import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sigma9_core.models import OrderStatus
from sigma9_integrations.homeassistant.table import ENGINE_STATES

HERE: Final = Path(__file__).parents[2] / "examples" / "home_assistant"
DASHBOARD: Final = HERE / "dashboard.yaml"
BLUEPRINTS: Final = sorted((HERE / "blueprints" / "automation" / "sigma9").glob("*.yaml"))
CARDS: Final = {
    *("button", "conditional", "divider", "entities", "glance", "history-graph", "horizontal-stack", "logbook"),
    *("markdown", "vertical-stack"),
}
"""The cards that are used; all of them come with Home Assistant."""
GIVEN: Final[Mapping[str, Any]] = {
    "lights": ["light.desk", "light.hall"], "limit": 0.4, "memory": "input_boolean.sigma9_away",
}  # fmt: skip
"""What a person fills in where there is no default."""
MQTT_KEYS: Final = {"topic", "payload", "qos", "retain"}

COMPILED: Final[dict[str, CodeType]] = {}
"""Compiling a template takes longer than all else here."""

each_blueprint = pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)


@dataclass(frozen=True)
class Input:
    """An `!input`."""

    name: str


class Loader(yaml.SafeLoader):
    """Reads YAML as Home Assistant does."""


def _input(loader: Loader, node: yaml.ScalarNode) -> Input:
    return Input(str(loader.construct_scalar(node)))


Loader.add_constructor("!input", _input)


def load(path: Path) -> Any:
    """Read a file; a key that stands twice is a fault."""
    root = yaml.compose(path.read_text(), Loader=Loader)
    for node in nodes(root):
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{path.name}: {keys}"
    return yaml.load(path.read_text(), Loader=Loader)  # noqa: S506 - a safe loader with one tag more


def nodes(node: Any) -> Iterator[Any]:
    """Give a YAML node and all below it."""
    yield node
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for each in pair:
                yield from nodes(each)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from nodes(each)


def walk(value: Any) -> Iterator[Any]:
    """Give a value and all below it, depth first, in order."""
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        yield from walk(each)


def fill(value: Any, inputs: Mapping[str, Any]) -> Any:
    """Put inputs in, as Home Assistant does when an automation uses a blueprint."""
    if isinstance(value, Input):
        return inputs[value.name]
    if isinstance(value, dict):
        return {key: fill(each, inputs) for key, each in value.items()}
    return [fill(each, inputs) for each in value] if isinstance(value, list) else value


def inputs_of(blueprint: Any) -> dict[str, Any]:
    """Give the defaults, and a person's choice where there is none."""
    declared = blueprint["blueprint"]["input"]
    return {name: spec["default"] if "default" in spec else GIVEN[name] for name, spec in declared.items()}


def automation(path: Path, **chosen: Any) -> Any:
    """Make an automation of a blueprint."""
    blueprint = load(path)
    values = {**inputs_of(blueprint), **chosen}
    return fill({key: value for key, value in blueprint.items() if key != "blueprint"}, values)


# --- templates ------------------------------------------------------------------------------------------------


class World:
    """Home Assistant's templates over entities: what is missing is a fault here, where it would warn."""

    def __init__(self, entities: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        self.entities = {
            "zone.home": ("1", {}),
            "input_boolean.sigma9_away": ("on", {}),
            **entities,
        }
        self.jinja = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        self.jinja.globals |= {
            "states": self.states,
            "state_attr": self.attribute,
            "is_state": lambda entity, state: self.states(entity) == state,
            "has_value": lambda entity: self.states(entity) not in ("unknown", "unavailable"),
            "utcnow": lambda: datetime.now(UTC),
            "now": lambda: datetime.now(UTC),
            "timedelta": timedelta,
            "as_timestamp": self.timestamp,
        }
        self.jinja.filters |= {
            "to_json": json.dumps,
            "as_timestamp": self.timestamp,
            "float": self.number,
            "int": lambda value, default=None: int(self.number(value, default)),
        }

    def states(self, entity: str, rounded: bool = False, with_unit: bool = False) -> str:
        """Give a state, perhaps with its unit."""
        state, attributes = self.entities[entity]
        if rounded and state not in ("unknown", "unavailable"):
            state = f"{float(state):.2f}"
        unit = attributes.get("unit_of_measurement") if with_unit else None
        return f"{state} {unit}" if unit else state

    def attribute(self, entity: str, name: str) -> Any:
        """Give an attribute; one that an entity never has is a fault."""
        state, attributes = self.entities[entity]
        if state in ("unavailable", "unknown"):
            return attributes.get(name)
        assert name in attributes, f"{entity} has no attribute {name}: {sorted(attributes)}"
        return attributes[name]

    @staticmethod
    def number(value: Any, default: Any = None) -> Any:
        """Read a number; without a default what is none is a fault."""
        try:
            return float(value)
        except (ValueError, TypeError):
            assert default is not None, f"{value!r} is no number, and there is no default"
            return default

    @staticmethod
    def timestamp(value: Any, default: Any = None) -> Any:
        """Read a time."""
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except (ValueError, TypeError):
            assert default is not None, value
            return default
        return moment.timestamp()

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """Render, as Home Assistant strips it."""
        if template not in COMPILED:
            COMPILED[template] = self.jinja.compile(template)
        made = jinja2.Template.from_code(self.jinja, COMPILED[template], self.jinja.make_globals(None))
        return made.render(variables).strip()

    def value(self, template: Any, variables: Mapping[str, Any]) -> Any:
        """Render what is a template, all the way down, to native values."""
        if isinstance(template, dict):
            return {key: self.value(each, variables) for key, each in template.items()}
        if isinstance(template, list):
            return [self.value(each, variables) for each in template]
        if not is_template(template):
            return template
        text = self.render(template, variables)
        return {"True": True, "False": False}.get(text, text)


def is_template(value: Any) -> bool:
    """Tell whether a text is a template."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def start_of(rule: Any, world: World, trigger: Mapping[str, Any], last: datetime | None) -> dict[str, Any]:
    """Give what the templates of an automation see when it has been triggered."""
    this = {"entity_id": "automation.ours", "attributes": {"last_triggered": last}}
    found: dict[str, Any] = {"trigger": trigger, "this": this}
    for name, value in [*rule.get("trigger_variables", {}).items(), *rule.get("variables", {}).items()]:
        found[name] = world.value(value, found)
    return found


def triggers_of(rule: Any, moment: Any) -> list[dict[str, Any]]:
    """Make what Home Assistant hands over for each trigger, with the events that went by."""
    found: list[dict[str, Any]] = []
    for index, trigger in enumerate(rule["trigger"]):
        data = {"id": trigger.get("id", str(index)), "platform": trigger["platform"]}
        if trigger["platform"] == "mqtt":
            found += [
                {**data, "topic": topic, "payload_json": envelope}
                for topic, envelopes in moment.events.items()
                if "/trade_event/" in topic
                for envelope in (*envelopes, {**envelopes[-1], "late": True})
            ]
        elif trigger["platform"] == "state":
            found += [{**data, "from_state": {"state": state}} for state in ("off", "unavailable")]
            found.append({**data, "from_state": None})
        else:
            found.append(data)
    return found


@dataclass
class Run:
    """What the actions of an automation did, with every condition and choice taken as it stands."""

    world: World
    variables: dict[str, Any]
    done: list[tuple[str, Any]]

    def test(self, condition: Any) -> bool:
        """Try a condition."""
        if isinstance(condition, str):
            return self.truth(condition)
        if condition["condition"] == "state":
            return bool(self.world.states(condition["entity_id"]) == condition["state"])
        assert condition["condition"] == "template", condition
        return self.truth(condition["value_template"])

    def truth(self, template: str) -> bool:
        """Render a template that is true or false, and nothing else."""
        text = self.world.render(template, self.variables).lower()
        assert text in ("true", "false"), f"{template} gave {text!r}"
        return text == "true"

    def play(self, steps: Any, *, waits: bool) -> bool:
        """Carry steps out; `waits` says how each wait ends. Tell whether it came to the end."""
        for step in steps:
            if "condition" in step:
                if not self.test(step):
                    return False
            elif "if" in step:
                branch = "then" if all(self.test(each) for each in step["if"]) else "else"
                if not self.play(step.get(branch, ()), waits=waits):
                    return False
            elif "choose" in step:
                chosen = (each["sequence"] for each in step["choose"] if self.truth(each["conditions"]))
                if not self.play(next(chosen, ()), waits=waits):
                    return False
            elif "wait_template" in step:
                self.truth(step["wait_template"])
                endless = "timeout" not in step
                self.variables["wait"] = {"completed": waits or endless}
                if not waits and not endless and not step["continue_on_timeout"]:
                    return False
            elif "variables" in step:
                for name, value in step["variables"].items():
                    self.variables[name] = self.world.value(value, self.variables)
            elif "service" in step:
                data = {**step.get("target", {}), **step.get("data", {})}
                self.done.append((step["service"], self.world.value(data, self.variables)))
            else:
                assert "delay" in step, step
        return True


def runs(path: Path, moment: Any, **chosen: Any) -> Iterator[Run]:
    """Run an automation for each of its triggers, with waits that end and waits that don't."""
    rule = automation(path, **chosen)
    longago = datetime(2026, 1, 1, tzinfo=UTC)
    for trigger, waits, last in itertools.product(triggers_of(rule, moment), (True, False), (None, longago)):
        world = World(moment.entities())
        run = Run(world, start_of(rule, world, trigger, last), [])
        for each in rule["trigger"]:
            if "value_template" in each:
                run.truth(each["value_template"])
        if all(run.test(each) for each in rule.get("condition", ())):
            run.play(rule["action"], waits=waits)
            yield run


# --- blueprints -----------------------------------------------------------------------------------------------


def test_there_are_blueprints() -> None:
    """The four that were asked for, and more."""
    names = {path.stem for path in BLUEPRINTS}
    assert {"notify_on_fill", "light_red_when_killed", "kill_on_day_loss", "pause_when_nobody_is_home"} < names


@each_blueprint
def test_a_blueprint_is_whole(path: Path, moments: Mapping[str, Any]) -> None:
    """It has its header; inputs that are declared are used, and the other way round; defaults fit selectors."""
    blueprint = load(path)
    head = blueprint["blueprint"]
    assert head["domain"] == "automation"
    assert head["name"].startswith("Sigma9: ")
    assert len(head["description"]) > 50
    assert set(blueprint) <= {
        *("blueprint", "mode", "max", "max_exceeded", "trigger_variables", "trigger", "variables", "condition"),
        "action",
    }
    used = {each.name for each in walk(blueprint) if isinstance(each, Input)}
    assert used == set(head["input"])
    entities = moments["running"].entities()
    for name, spec in head["input"].items():
        assert spec["name"]
        ((kind, selector),) = spec["selector"].items()
        assert "default" in spec or name in GIVEN, name
        default = spec.get("default")
        if kind == "entity" and str(default).partition(".")[2].startswith("sigma9_"):
            assert default in entities
            assert selector["filter"] == [{"integration": "mqtt", "domain": default.partition(".")[0]}]
        elif kind == "select":
            values = [option["value"] for option in selector["options"]]
            assert set(default if selector.get("multiple") else [default]) <= set(values)
        elif kind == "number" and default is not None:
            assert selector["min"] <= default <= selector["max"]


@each_blueprint
def test_a_blueprint_listens_as_it_should(path: Path, contract: Any) -> None:
    """MQTT triggers are in the topic table; no trigger is an event entity's state; states are ones that exist."""
    for trigger in automation(path)["trigger"]:
        if trigger["platform"] == "mqtt":
            rule = automation(path)
            wanted = World({}).render(trigger["topic"], rule["trigger_variables"])
            contract.check_filter(wanted)
            assert trigger["qos"] == 1
        if trigger["platform"] == "state":
            entity = trigger["entity_id"]
            assert not entity.startswith("event.")
            allowed = set(ENGINE_STATES) if "engine" in entity else {"on", "off"}
            for key in ("from", "to"):
                wanted_states = trigger.get(key, [])
                for state in [wanted_states] if isinstance(wanted_states, str) else wanted_states:
                    assert state in allowed | {"unavailable", "unknown"}, f"{key}: {state}"


@each_blueprint
def test_a_blueprint_works_at_every_moment(path: Path, moments: Mapping[str, Any], contract: Any) -> None:
    """Whatever the node's state and whatever triggers it: no template fails, and each command is taken."""
    services = set()
    for moment in moments.values():
        for run in runs(path, moment):
            for service, data in run.done:
                services.add(service)
                if service == "mqtt.publish":
                    assert set(data) == MQTT_KEYS
                    assert (data["qos"], data["retain"]) == (1, False)
                    contract.check_command(data["topic"], data["payload"])
                if service.startswith("notify."):
                    assert set(data) == {"title", "message"}
                    assert all(data.values()), data
                    assert "None" not in f"{data}", data
    assert services, f"{path.stem} never does anything"


def test_fills_are_told(moments: Mapping[str, Any]) -> None:
    """Exactly the events that were chosen, with what a person wants to know."""
    path = next(path for path in BLUEPRINTS if path.stem == "notify_on_fill")
    told = [data for run in runs(path, moments["running"]) for _, data in run.done]
    assert {data["title"] for data in told} == {"Sigma9: BUY AAPL filled"}
    assert told[0]["message"] == "10 of 10 AAPL at 10 (api)"
    assert any(data["message"].endswith("(api; told late, after an outage)") for data in told)
    every = load(path)["blueprint"]["input"]["events"]["selector"]["select"]["options"]
    values = [option["value"] for option in every]
    assert set(values) < set(map(str, OrderStatus))
    told = [data for run in runs(path, moments["killed"], events=values) for _, data in run.done]
    assert {"Sigma9: BUY MSFT cancelled", "Sigma9: BUY AAPL partially filled"} <= {data["title"] for data in told}
    assert not any("None" in data["message"] for data in told)


@pytest.mark.parametrize(
    ("unit", "limit", "killed"),
    [("money", 499, True), ("money", 501, False), ("percent", 0.49, True), ("percent", 0.51, False)],
)
def test_the_day_loss_kills_beyond_its_limit(
    moments: Mapping[str, Any], unit: str, limit: float, killed: bool
) -> None:
    """A loss of 500 of 100,000 is 0.5 percent; a node that is away or killed already is sent nothing."""
    path = next(path for path in BLUEPRINTS if path.stem == "kill_on_day_loss")

    def sent(name: str) -> list[Any]:
        found = [run.done for run in runs(path, moments[name], unit=unit, limit=limit)]
        return [data for done in found for service, data in done if service == "mqtt.publish"]

    assert bool(sent("running")) == killed
    assert all("-500" in json.loads(data["payload"])["reason"] for data in sent("running"))
    assert not sent("away")
    assert not sent("fresh")
    assert not sent("killed")


def test_no_percentage_of_nothing_kills(moments: Mapping[str, Any]) -> None:
    """An equity that was zero or less at the day's start has no percentage: that is no reason to kill."""
    rule = automation(next(path for path in BLUEPRINTS if path.stem == "kill_on_day_loss"))
    entities = {**moments["running"].entities(), "sensor.sigma9_equity": ("-500", {})}
    world = World(entities)
    run = Run(world, start_of(rule, world, {"id": "0", "platform": "template"}, None), [])
    run.play(rule["action"], waits=True)
    assert run.done == []


def test_an_unconfirmed_kill_is_said(moments: Mapping[str, Any]) -> None:
    """Where the kill does not show within its time, the notification says so."""
    path = next(path for path in BLUEPRINTS if path.stem == "kill_on_day_loss")
    titles = [
        data["title"] for run in runs(path, moments["running"]) for service, data in run.done if "title" in data
    ]
    assert any("NOT CONFIRMED" in title for title in titles)


def test_only_its_own_pause_is_resumed(moments: Mapping[str, Any]) -> None:
    """With the helper off a pause was a person's: nothing is resumed, whoever comes home."""
    path = next(path for path in BLUEPRINTS if path.stem == "pause_when_nobody_is_home")
    rule = automation(path)
    for helper, wanted in (("on", ["mqtt.publish"]), ("off", [])):
        entities = {**moments["paused"].entities(), "input_boolean.sigma9_away": (helper, {})}
        world = World(entities)
        run = Run(world, start_of(rule, world, {"id": "back", "platform": "template"}, None), [])
        run.play(rule["action"], waits=True)
        assert [service for service, _ in run.done] == wanted


def test_the_light_is_restored_only_where_it_was_seen_before(moments: Mapping[str, Any]) -> None:
    """A kill that was not seen to begin may have found the light red already: then a colour is chosen."""
    path = next(path for path in BLUEPRINTS if path.stem == "light_red_when_killed")
    for run in runs(path, moments["killed"]):
        services = [service for service, _ in run.done]
        before = run.variables["trigger"].get("from_state")
        if before is not None and before["state"] == "off":
            assert services == ["scene.create", "light.turn_on", "scene.turn_on"]
            assert run.done[0][1]["scene_id"] == run.done[2][1]["entity_id"].removeprefix("scene.")
        else:
            assert services == ["light.turn_on", "light.turn_on"]
    assert not list(runs(path, moments["running"]))


# --- dashboard ------------------------------------------------------------------------------------------------


def cards() -> list[dict[str, Any]]:
    """Give every card, and every row that has a type."""
    return [each for each in walk(load(DASHBOARD)) if isinstance(each, dict) and "type" in each]


def test_the_dashboard_has_only_what_comes_with_home_assistant() -> None:
    """No card from HACS, and the views that were promised."""
    board = load(DASHBOARD)
    assert [view["title"] for view in board["views"]] == ["Overview", "Positions", "Trades"]
    assert {card["type"] for card in cards()} <= CARDS
    assert len({view["path"] for view in board["views"]}) == len(board["views"])


def test_what_trades_asks_first() -> None:
    """The kill, the engine and cancelling want a confirmation; a long press on the kill does nothing."""
    buttons = {card["entity"]: card for card in cards() if card["type"] == "button"}
    for entity in ("button.sigma9_kill_switch", "switch.sigma9_engine", "button.sigma9_cancel_all"):
        assert buttons[entity]["tap_action"]["action"] == "toggle"
        assert buttons[entity]["tap_action"]["confirmation"]["text"]
    assert buttons["button.sigma9_kill_switch"]["hold_action"] == {"action": "none"}
    rows = [each for each in walk(load(DASHBOARD)) if isinstance(each, dict) and "entity" in each]
    for row in rows:
        if row["entity"].startswith(("button.", "switch.")):
            assert row.get("type") == "button", "a row of a list would press without asking"


@pytest.mark.parametrize("name", ["fresh", "running", "paused", "killed", "away"])
def test_the_cards_with_text_show_what_is(moments: Mapping[str, Any], name: str) -> None:
    """Every template renders at every moment; positions, orders, watchlist and the last event are there."""
    moment = moments[name]
    world = World(moment.entities())
    text = "\n".join(world.render(card["content"], {}) for card in cards() if card["type"] == "markdown")
    if name == "running":
        assert "| **AAPL** | 10 | 10.00 | 9.50 |" in text
        assert "| **MSFT** | buy | 5 | 0 | limit | 9 |" in text
        assert text.count("**AAPL**") == 2
        assert "**BUY 5 MSFT accepted**" in text
    if name == "killed":
        assert "a test's kill" in text
    if name == "away":
        assert text.count("The server is away.") == 3


# --- all files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [DASHBOARD, *BLUEPRINTS, HERE / "README.md"], ids=lambda path: path.name)
def test_every_entity_and_topic_exists(path: Path, moments: Mapping[str, Any], contract: Any) -> None:
    """Entity ids are those that discovery asks for; topics are in the topic table; nothing is retained."""
    text = path.read_text()
    entities = moments["running"].entities()
    named = set(re.findall(r"\b(?:sensor|binary_sensor|switch|button|event)\.sigma9_\w+", text))
    assert named - {"sensor.sigma9_position_"} <= set(entities), named - set(entities)
    for topic in re.findall(r"\bsigma9/main/[\w/{}#+]+", text):
        contract.check_filter(re.sub(r"\{\w+\}", "+", topic))
    assert not re.search(r"retain: *true|\s-r\b", text)

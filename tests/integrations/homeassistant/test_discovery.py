"""What Home Assistant is told of a node: every message as it wants it, in both forms, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.board import Board
from sigma9_core.commands import BUILT_IN
from sigma9_core.config import HomeAssistantSettings
from sigma9_core.entities import EntitySpec
from sigma9_integrations.homeassistant.discovery import (
    CALM_SECONDS,
    DEAF_SECONDS,
    LET_GO_SECONDS,
    REPEAT_SECONDS,
    Discovery,
    Letter,
)
from sigma9_integrations.homeassistant.table import ENTITIES, object_of
from sigma9_integrations.homeassistant.testing import Home
from sigma9_integrations.mqtt.topics import Topics

Form = Literal["device", "entity"]
CONTRACT = {
    *("switch.engine", "button.kill_switch", "button.scan", "button.cancel_all", "button.reset_kill_switch"),
    *("binary_sensor.killed", "binary_sensor.broker", "binary_sensor.market_open", "sensor.engine_state"),
    *("sensor.equity", "sensor.cash", "sensor.day_pnl", "sensor.unrealized_pnl", "sensor.positions"),
    *("sensor.open_orders", "sensor.watchlist", "sensor.last_scan", "sensor.next_scan", "sensor.last_error"),
    *("event.trade", "event.watchlist_update"),
}
both = pytest.mark.parametrize("form", ["device", "entity"])


class Room:
    """A node's discovery, a broker that keeps what is retained, and a Home Assistant that hears it all."""

    def __init__(self, form: Form = "device", *, node: str = "main", enabled: bool = True, **more: Any) -> None:
        self.board = Board()
        self.home = Home()
        self.retained: dict[str, str] = {}
        self.url: str | None = None
        self.now = 0.0
        self.begin(form, node=node, enabled=enabled, **more)

    def begin(self, form: Form, *, node: str = "main", enabled: bool = True, entities: Any = ENTITIES) -> None:
        """Start the node, anew, on the same broker."""
        settings = HomeAssistantSettings(format=form, enabled=enabled)
        self.discovery = Discovery(
            settings,
            Topics("sigma9", node),
            entities,
            self.board,
            lambda: self.url,
            commands=BUILT_IN,
            clock=lambda: self.now,
        )
        self.discovery.expect(self.retained)

    def send(self, letters: Iterable[Letter]) -> list[str]:
        """Publish; give the topics."""
        topics = []
        for letter in letters:
            topics.append(letter.topic)
            self.home.hear(letter.topic, letter.payload)
            if letter.retain:
                self.retained[letter.topic] = letter.payload
                if not letter.payload:
                    self.retained.pop(letter.topic, None)
        return topics

    def put(self, name: str, body: Any) -> list[str]:
        """Change a board name after a calm moment, and publish what goes out before its topic."""
        self.now += CALM_SECONDS
        self.board.set(name, body)
        return self.send(self.discovery.before(name))

    def objects(self) -> set[str]:
        """Name the entities that Home Assistant has, as the contract does."""
        return {
            f"{config['platform']}.{unique.removeprefix('sigma9_main_')}"
            for unique, config in self.home.configs.items()
        }


@both
def test_every_entity_of_the_contract_is_there(form: Form) -> None:
    """Contract 7: the whole table, with ids that stay, the availability topic, device and origin."""
    room = Room(form)
    topics = room.send(room.discovery.announce())

    assert room.objects() == CONTRACT
    assert len(topics) == (1 if form == "device" else len(CONTRACT))
    for unique, config in room.home.configs.items():
        assert unique.startswith("sigma9_main_")
        assert config["availability_topic"] == "sigma9/main/availability"
        assert config["origin"]["name"] == "Sigma9"
        assert config["device"]["identifiers"] == ["sigma9_main"]
        assert config["default_entity_id"] == f"{config['platform']}.{unique.replace('_main', '').lower()}"
    reset = room.home.configs["sigma9_main_reset_kill_switch"]
    assert reset["enabled_by_default"] is False
    assert json.loads(reset["payload_press"])["reason"]
    assert all(config.get("retain") in (None, False) for config in room.home.configs.values())


@both
def test_announcing_again_changes_nothing(form: Form) -> None:
    """A reconnect or a birth sends the same messages; no entity goes or comes."""
    room = Room(form)
    first = room.send(room.discovery.announce())
    kept = dict(room.retained)

    assert room.send(room.discovery.announce()) == first
    assert room.retained == kept
    assert len(room.home.log) == len(CONTRACT)


@both
def test_positions_come_and_go(form: Form) -> None:
    """A position's entity is there before its topic has a body, and gone before it is emptied."""
    room = Room(form)
    room.send(room.discovery.announce())
    room.put("position/BRK.B", {"symbol": "BRK.B", "quantity": 3})
    room.put("position/AAPL", {"symbol": "AAPL", "quantity": 1})
    config = room.home.configs["sigma9_main_position_BRK_B"]
    assert config["state_topic"] == config["json_attributes_topic"] == "sigma9/main/state/position/BRK.B"
    assert config["default_entity_id"] == "sensor.sigma9_position_brk_b"
    assert room.home.state("sigma9_main_position_BRK_B", '{"quantity": 3}') == "3"
    assert room.home.attributes("sigma9_main_position_BRK_B", '{"quantity": 3}') == {"quantity": 3}
    # A Home Assistant that is slow to let go of it hears the empty topic as well.
    assert room.home.state("sigma9_main_position_BRK_B", "") == "None"
    assert room.home.attributes("sigma9_main_position_BRK_B", "") == {}

    assert room.put("position/AAPL", {"symbol": "AAPL", "quantity": 2}) == []  # it only moved
    assert room.put("position/BRK.B", None) != []
    assert "sigma9_main_position_BRK_B" not in room.home.configs
    assert room.home.log[-1] == "-sigma9_main_position_BRK_B"
    assert "BRK" not in json.dumps(room.retained)


@both
def test_a_closed_position_is_removed_again_at_each_announcement(form: Form) -> None:
    """A removal that was lost, or undone by a broker with an old database, leaves no dead entity."""
    room = Room(form)
    room.send(room.discovery.announce())
    room.put("position/BRK.B", {"symbol": "BRK.B", "quantity": 3})
    before = dict(room.retained)
    room.board.set("position/BRK.B", None)
    room.discovery.before("position/BRK.B")  # lost on its way
    for _ in range(2):
        room.retained = dict(before)
        for topic, payload in before.items():
            room.home.hear(topic, payload)
        assert "sigma9_main_position_BRK_B" in room.home.configs
        room.send(room.discovery.announce())
        assert room.objects() == CONTRACT
        assert "BRK" not in json.dumps(room.retained)
    room.put("position/BRK.B", {"symbol": "BRK.B", "quantity": 1})
    room.send(room.discovery.announce())
    assert "sigma9_main_position_BRK_B" in room.home.configs


@both
def test_a_position_that_ended_while_home_assistant_was_away_is_removed(form: Form) -> None:
    """It is told of once more, so that its place in the registry can be removed; one that is held again stays."""
    room = Room(form)
    room.send(room.discovery.announce())
    for symbol in ("BRK.B", "AAPL", "MSFT"):
        room.put(f"position/{symbol}", {"symbol": symbol, "quantity": 3})
    room.put("position/MSFT", None)
    room.now += DEAF_SECONDS
    home, room.home = room.home, Home()  # it hears nothing any more
    room.put("position/BRK.B", None)
    assert not room.discovery.hear("homeassistant/status", b"offline")
    room.put("position/AAPL", None)
    room.put("position/AAPL", {"symbol": "AAPL", "quantity": 1})
    room.home = home
    room.home.restart(room.retained)
    assert {"sensor.position_BRK_B", "sensor.position_AAPL"} < room.objects()
    assert room.discovery.hear("homeassistant/status", b"online")
    kept = dict(room.retained)
    told = len(room.home.log)
    letters = room.discovery.revive()
    assert letters[-1].pause
    room.send(letters)
    room.send(room.discovery.announce())
    assert room.objects() == CONTRACT | {"sensor.position_AAPL"}
    assert room.home.log[told:] == ["-sigma9_main_position_BRK_B"]
    assert room.retained == kept
    assert room.discovery.revive() == []


def test_changes_of_a_moment_are_one_message() -> None:
    """Home Assistant loses what comes while it is at work on the last message: no second one follows at once."""
    room = Room("device")
    room.send(room.discovery.announce())
    room.now += CALM_SECONDS / 2
    names = [f"position/{symbol}" for symbol in ("A", "B", "C")]
    for name in names:
        room.board.set(name, {"quantity": 1})
        assert room.discovery.patience(name) == pytest.approx(CALM_SECONDS / 2)
        assert room.discovery.before(name) == []
    room.board.set("account", {"currency": "EUR"})
    assert (room.discovery.patience("account"), room.discovery.before("account")) == (0, []), "no state waits"
    room.now += CALM_SECONDS / 2
    assert room.discovery.patience("position/B") == 0
    assert len(room.send(room.discovery.before("position/B"))) == 1
    assert {f"sensor.position_{symbol}" for symbol in "ABC"} < room.objects()
    assert room.home.configs["sigma9_main_equity"]["unit_of_measurement"] == "EUR"
    assert [room.discovery.patience(name) for name in names] == [0, 0, 0]
    assert [room.discovery.before(name) for name in names] == [[], [], []]


@both
def test_topics_of_a_moment_are_all_emptied_later(form: Form) -> None:
    """Of several positions that end together each topic waits until its entity is let go of."""
    room = Room(form)
    names = ["position/A", "position/B"]
    for name in names:
        room.board.set(name, {"quantity": 1})
    room.send(room.discovery.announce())
    room.now += CALM_SECONDS
    for name in names:
        room.board.set(name, None)
    room.send(room.discovery.before("position/A"))
    assert room.objects() == CONTRACT
    assert [room.discovery.patience(name) for name in names] == pytest.approx([LET_GO_SECONDS] * 2)
    room.now += LET_GO_SECONDS
    assert [room.discovery.patience(name) for name in names] == [0, 0]


def test_a_change_is_told_twice() -> None:
    """A Home Assistant that was slow, and lost a part of a change, hears it once more."""
    room = Room("device")
    room.send(room.discovery.announce())
    assert len(room.put("position/A", {"quantity": 1})) == 1
    assert room.put("status", {"engine": "running"}) == []
    room.now += REPEAT_SECONDS
    home, room.home = room.home, Home()
    assert len(room.put("status", {"engine": "paused"})) == 1
    assert room.home.configs == home.configs
    room.now += REPEAT_SECONDS
    assert room.put("status", {"engine": "running"}) == []


@pytest.mark.parametrize(("old", "new"), [("device", "entity"), ("entity", "device")])
def test_the_form_can_be_changed(old: Form, new: Form) -> None:
    """Moving to the other form keeps every entity: none is removed, and nothing of the old form stays behind."""
    room = Room(old)
    room.board.set("position/AAPL", {"quantity": 1})
    room.send(room.discovery.announce())
    known = set(room.home.configs)
    room.begin(new)
    letters = room.discovery.announce()
    room.send(letters)

    moves = [letter for letter in letters if not letter.retain]
    assert [bool(letter.pause) for letter in moves] == [*[False] * (len(moves) - 1), True]
    assert set(room.home.configs) == known
    assert not any(step.startswith("-") for step in room.home.log)
    assert all(("/device/" in topic) == (new == "device") for topic in room.retained)


@both
def test_what_an_earlier_run_left_is_taken_away(form: Form) -> None:
    """Entities of a plugin that is gone, and of positions that were closed meanwhile, vanish at the start."""
    extra = EntitySpec(platform="button", object="plugin_button", name="Do it", command="scan")
    room = Room(form, entities=[*ENTITIES, extra])
    room.board.set("position/AAPL", {"quantity": 1})
    room.send(room.discovery.announce())
    assert {"button.plugin_button", "sensor.position_AAPL"} < room.objects()

    room.board.set("position/AAPL", None)
    room.begin(form)
    room.send(room.discovery.announce())
    assert room.objects() == CONTRACT
    assert "plugin_button" not in json.dumps(room.retained)


@both
def test_switching_it_off_removes_everything(form: Form) -> None:
    """With `enabled: false` nothing is announced, and what there was goes; `clear` does the same."""
    room = Room(form)
    room.send(room.discovery.announce())
    room.begin(form, enabled=False)
    room.send(room.discovery.announce())
    assert (room.home.configs, room.retained) == ({}, {})
    assert room.send(room.discovery.announce()) == []
    assert room.put("position/AAPL", {"quantity": 1}) == []

    room.begin(form)
    room.send(room.discovery.announce())
    room.send(room.discovery.clear())
    assert (room.home.configs, room.retained) == ({}, {})


@both
def test_currency_and_address_are_told_when_they_are_known(form: Form) -> None:
    """Money has the account's currency, and the device a link to the dashboard, as soon as there are some."""
    room = Room(form)
    room.send(room.discovery.announce())
    assert room.home.configs["sigma9_main_equity"]["unit_of_measurement"] == "USD"
    assert room.put("account", {"currency": "USD"}) == []

    room.put("account", {"currency": "EUR"})
    assert room.home.configs["sigma9_main_equity"]["unit_of_measurement"] == "EUR"
    room.url = "http://127.0.0.1:8000"
    room.put("status", {"engine": "running"})
    assert room.home.configs["sigma9_main_cash"]["device"]["configuration_url"] == room.url
    assert room.put("status", {"engine": "stopped"}) == []


def test_another_node_is_another_device() -> None:
    """Two nodes on one broker share no id."""
    one, two = Room(), Room(node="second")
    one.send(one.discovery.announce())
    two.send(two.discovery.announce())

    assert not set(one.home.configs) & set(two.home.configs)
    assert not set(one.retained) & set(two.retained)
    ids = [{config["default_entity_id"] for config in room.home.configs.values()} for room in (one, two)]
    assert not ids[0] & ids[1]
    assert two.home.configs["sigma9_second_equity"]["device"]["name"] == "Sigma9 second"


def test_an_entity_without_its_command_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """What sends a command that nobody knows would be a button that lies."""
    lost = EntitySpec(platform="button", object="lost", name="Lost", command="no_such_command")
    room = Room(entities=[*ENTITIES, lost])
    room.send(room.discovery.announce())

    assert room.objects() == CONTRACT
    assert "the entity lost is left out: there is no command 'no_such_command'" in caplog.text


def test_two_symbols_of_one_id_are_told_apart_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """BRK.B and BRK-B have one object id: the second one is said to have no entity."""
    room = Room("entity")
    room.board.set("position/BRK.B", {"quantity": 1})
    room.board.set("position/BRK-B", {"quantity": 1})
    room.send(room.discovery.announce())

    assert "sensor.position_BRK_B" in room.objects()
    assert caplog.text.count("Position BRK-B has no entity of its own") == 1


@settings(deadline=None, max_examples=50)
@given(symbol=st.from_regex(r"[A-Za-z0-9._-]{1,32}", fullmatch=True))
def test_every_symbol_makes_a_valid_topic(symbol: str) -> None:
    """Home Assistant takes letters, digits, _ and - in ids, and nothing else."""
    for form in ("device", "entity"):
        room = Room(form)
        room.board.set(f"position/{symbol}", {"quantity": 1})
        room.send(room.discovery.announce())
        assert f"sigma9_main_position_{object_of(symbol)}" in room.home.configs


@both
def test_garbage_of_an_earlier_run_does_no_harm(form: Form) -> None:
    """What can't be read below our own topics is replaced or taken away."""
    room = Room(form)
    topics = ["homeassistant/device/sigma9_main/config", "homeassistant/sensor/sigma9_main/old/config"]
    room.retained = {topics[0]: '{"components": {"x": 3}}', topics[1]: "{"}
    room.begin(form)
    for letter in room.discovery.announce():
        if letter.retain:
            room.retained[letter.topic] = letter.payload
    assert not room.retained[topics[1]]
    assert bool(room.retained[topics[0]]) == (form == "device")


@both
def test_what_was_told_is_known_after_a_restart(form: Form, tmp_path: Path) -> None:
    """A broker that forgets leaves Home Assistant with what it was told: the next run takes it away."""
    room = Room(form)
    board, extra = room.board, EntitySpec(platform="button", object="gone", name="Gone", command="scan")
    file = tmp_path / "homeassistant.json"

    def discovery(entities: Any) -> Discovery:
        settings = HomeAssistantSettings(format=form)
        made = Discovery(settings, Topics("sigma9", "main"), entities, board, commands=BUILT_IN, memory=file)
        made.recall()
        return made

    first = discovery([*ENTITIES, extra])
    room.send(first.announce())
    assert first.has_news
    first.save()
    assert not first.has_news
    room.retained.clear()  # the broker was started without its database
    room.send(discovery(ENTITIES).announce())
    assert room.objects() == CONTRACT
    assert file.stat().st_mode & 0o077 == 0


def test_a_broken_memory_is_said_and_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that can't be read, or can't be written, costs a warning."""
    file = tmp_path / "homeassistant.json"
    file.write_text("[1")
    made = Discovery(
        HomeAssistantSettings(), Topics("sigma9", "main"), ENTITIES, Board(), commands=BUILT_IN, memory=file
    )
    made.recall()
    assert "can't be read" in caplog.text
    assert len(made.announce()) == 1
    file.unlink()
    tmp_path.chmod(0o500)
    made.save()
    tmp_path.chmod(0o700)


def test_the_page_names_every_entity() -> None:
    """docs/home-assistant.md has each entity of the table, by its id or as `_name` in its row."""
    page = (Path(__file__).parents[3] / "docs" / "home-assistant.md").read_text(encoding="utf-8")
    for spec in ENTITIES:
        assert f"{spec.platform}.sigma9_{spec.object}" in page or f"`_{spec.object}`" in page, spec.object
    assert "sensor.sigma9_position_" in page

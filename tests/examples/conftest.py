"""What the tests of the examples share: what a real engine publishes, and what may be heard and sent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from sigma9_core.board import Board
from sigma9_core.commands import BUILT_IN
from sigma9_core.config import HomeAssistantSettings
from sigma9_core.models import Account
from sigma9_core.payload import read_command
from sigma9_core.testing.engine_room import EngineRoom
from sigma9_integrations.broker.accounts import access, covers
from sigma9_integrations.homeassistant.discovery import Discovery
from sigma9_integrations.homeassistant.table import ENTITIES
from sigma9_integrations.homeassistant.testing import Home
from sigma9_integrations.mqtt.topics import TABLE, Topics

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
NODE: Final = "sigma9/main"
ROWS: Final = {
    re.sub(r"\{\w+\}", "+", row.pattern.replace("{p}", NODE).replace("{base}", "sigma9")): row for row in TABLE
}
"""The topic table as filters of the node `main`."""
ACCOUNT: Final = Account(
    account="PAPER", mode="simulated", equity=Decimal(99500), cash=Decimal(99400), buying_power=Decimal(99400),
    day_pnl=Decimal(-500), realized_pnl=Decimal(-505), unrealized_pnl=Decimal(5),
)  # fmt: skip
FIELDS: Final = {"market_data": "symbol", "trade_event": "event", "log": "level"}


@dataclass
class Moment:
    """What the broker holds of a node at one time, and the events that have gone by."""

    bodies: dict[str, Any] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Envelopes by topic."""
    available: bool = True
    _entities: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def retained(self, topic: str) -> str | None:
        """Give what is retained under a topic."""
        if topic == f"{NODE}/availability":
            return "online" if self.available else "offline"
        body = self.bodies.get(topic.removeprefix(f"{NODE}/state/"))
        return None if body is None else json.dumps(body)

    def entities(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Give the state and attributes of each entity as Home Assistant has them from discovery, by entity id."""
        if not self._entities:
            self._entities = self._discovered()
        return self._entities

    def _discovered(self) -> dict[str, tuple[str, dict[str, Any]]]:
        board = Board()
        for name, body in self.bodies.items():
            board.set(name, body)
        home = Home()
        settings = HomeAssistantSettings()
        discovery = Discovery(settings, Topics("sigma9", "main"), ENTITIES, board, commands=BUILT_IN)
        for letter in discovery.announce():
            home.hear(letter.topic, letter.payload)
        found = {}
        for unique, config in home.configs.items():
            shown: str | None = None
            attributes: dict[str, Any] = {}
            if config["platform"] == "event":
                heard = [e[-1] for topic, e in self.events.items() if covers(config["state_topic"], topic)]
                if heard:
                    last = max(heard, key=lambda envelope: envelope["seq"])
                    attributes = json.loads(home.state(unique, json.dumps(last)))
                    shown = "2026-11-20T14:45:00.000+00:00"
            elif "state_topic" in config:
                payload = self.retained(config["state_topic"])
                shown = None if payload is None else home.state(unique, payload)
            if "json_attributes_topic" in config:
                payload = self.retained(config["json_attributes_topic"])
                attributes = {} if payload is None else home.attributes(unique, payload)
            state = "unknown" if shown in (None, "None") else str(shown)
            if config["platform"] in ("binary_sensor", "switch"):
                state = state.lower()
            if config["platform"] == "sensor":
                attributes["unit_of_measurement"] = config.get("unit_of_measurement")
            found[config["default_entity_id"]] = (state, attributes) if self.available else ("unavailable", {})
        return found


async def _record(folder: Path) -> dict[str, Moment]:
    moments: dict[str, Moment] = {}
    async with EngineRoom(folder) as room:

        def keep(name: str) -> None:
            board = room.engine.board
            bodies = {each: json.loads(json.dumps(board.get(each))) for each in board.names()}
            events: dict[str, list[dict[str, Any]]] = {}
            for event in room.events:
                envelope = json.loads(event.raw)
                last = FIELDS.get(event.type)
                topic = f"{NODE}/event/{event.type}" + (f"/{envelope['data'][last]}" if last else "")
                events.setdefault(topic, []).append(envelope)
            if name != "fresh":  # the account before the broker has told it, and then
                bodies["account"] = ACCOUNT.model_dump(mode="json")
            moments[name] = Moment({each: body for each, body in bodies.items() if body is not None}, events)

        keep("fresh")
        await room.tick("AAPL", "MSFT")
        await room.do("watchlist_add", symbol="AAPL")
        order = await room.order(quantity=10)
        await room.fill(order["order_id"], quantity=4)
        await room.fill(order["order_id"])
        await room.order("MSFT", order_type="limit", limit_price=9, quantity=5)
        await room.tick("AAPL", "MSFT", price=9.5)
        await room.until(lambda: room.body("position/AAPL").get("last") == 9.5, "the position")
        await room.until(lambda: room.body("orders").get("count") == 1, "the order")
        keep("running")
        await room.do("pause", reason="test")
        await room.settled()
        keep("paused")
        await room.do("kill_switch", reason="a test's kill", flatten=False)
        await room.until(lambda: room.body("kill_switch")["phase"] == "done", "the kill's end")
        await room.settled()
        keep("killed")
    moments["away"] = replace(moments["running"], available=False)
    return moments


@pytest.fixture(name="moments", scope="session")
def _moments(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Moment]:
    """Give what a real engine published, before it traded, while it did, paused, killed and away."""
    return asyncio.run(_record(tmp_path_factory.mktemp("engine")))


class Contract:
    """What an example may subscribe to and send."""

    def check_filter(self, wanted: str) -> None:
        """Want a filter that shows something of the topic table, and that a viewer may read."""
        assert any(covers(wanted, row) or covers(row, wanted) for row in ROWS), f"no topic fits {wanted}"
        assert access("sigma9", "homeassistant")["viewer"].may_read(wanted), wanted

    def check_command(self, topic: str, payload: str) -> Mapping[str, Any]:
        """Want a command that exists, that an operator may send, and a valid payload; give its arguments."""
        assert topic.startswith(f"{NODE}/command/"), topic
        name = topic.removeprefix(f"{NODE}/command/")
        assert access("sigma9", "homeassistant")["operator"].may_write(topic), f"an operator can't send {name}"
        command = read_command(name, payload.encode(), BUILT_IN, source="mqtt", right="trade")
        BUILT_IN[name].args.model_validate(dict(command.args))
        return command.args


@pytest.fixture(name="contract")
def _contract() -> Contract:
    return Contract()


@pytest.fixture(name="examples")
def _examples() -> Path:
    return EXAMPLES

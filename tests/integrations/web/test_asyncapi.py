"""The AsyncAPI document: the feed and every MQTT topic, valid by the official parser and by real traffic."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sigma9_core.commands import BUILT_IN, CommandSpec
from sigma9_core.config import Settings
from sigma9_core.events import DURABLE, EVENT_TYPES, LOG_LEVELS
from sigma9_core.models import Frozen, OrderStatus
from sigma9_core.testing.fakes import FakeServer
from sigma9_integrations.mqtt.topics import DISCOVERY, TABLE, Topics
from sigma9_integrations.web.asyncapi import asyncapi
from sigma9_integrations.web.listener import Address

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node

PARSER = Path(__file__).parents[3] / ".venv" / "asyncapi" / "node_modules" / "@asyncapi" / "parser"
"""Where `make test` puts the official parser."""
HERE = Address([], "127.0.0.1", 8080, "http://127.0.0.1:8080", loopback=True)


def follow(document: dict[str, Any], reference: dict[str, str]) -> Any:
    """Give what a local reference leads to."""
    found: Any = document
    for part in reference["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(value: object) -> list[str]:
    if isinstance(value, dict):
        here = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return here + [each for inner in value.values() for each in references(inner)]
    return [each for inner in value for each in references(inner)] if isinstance(value, list) else []


def document_of(**settings: Any) -> dict[str, Any]:
    """Describe a node with these settings."""
    server = FakeServer(Settings.model_validate(settings))
    found: dict[str, Any] = asyncapi(server, HERE)
    return found


async def test_the_document_describes_every_event_type(node: Node) -> None:
    """Each type has a message whose payload is its envelope, and the channel is the feed on this server."""
    async with node.http("secret-read") as client:
        document = (await client.get("/asyncapi.json")).json()
    assert document["asyncapi"] == "3.0.0"
    assert document["info"]["version"]
    assert document["servers"]["websocket"] == {
        "host": f"127.0.0.1:{node.port}",
        "protocol": "ws",
        "security": [{"$ref": "#/components/securitySchemes/bearer"}],
    }
    channel = document["channels"]["feed"]
    assert channel["address"] == "/ws/feed"
    assert set(channel["messages"]) == {*EVENT_TYPES, "subscribe"}
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
        there = follow(document, operation["channel"])["messages"]
        for reference in operation["messages"]:
            assert follow(document, reference) in there.values()
            message = follow(document, follow(document, reference))
            assert message["payload"]
    for name in EVENT_TYPES:
        payload = follow(document, channel["messages"][name])["payload"]
        assert payload["required"] == ["type", "v", "seq", "ts", "node", "data"]
        assert payload["properties"]["type"] == {"const": name}
        assert ("integer" in payload["properties"]["seq"]["type"]) is (name in DURABLE)
        data = follow(document, payload["properties"]["data"])
        assert data["type"] == "object"
        assert data["properties"]
    subscribe = follow(document, follow(document, channel["messages"]["subscribe"])["payload"])
    assert subscribe["required"] == ["action"]
    assert follow(document, document["servers"]["websocket"]["security"][0])["scheme"] == "bearer"


# --- MQTT -----------------------------------------------------------------------------------------------------


def test_every_topic_of_the_table_has_its_channel() -> None:
    """Each row is a channel with the node's own address and, from the server's side, operations at its QoS."""
    document = document_of(node="desk", mqtt={"base_topic": "home/s9"}, home_assistant={"prefix": "ha"})
    topics = Topics("home/s9", "desk")
    channels, operations = document["channels"], document["operations"]
    assert set(channels) == {"feed", "requested_reply", *(row.key for row in (*TABLE, *DISCOVERY))}
    assert channels["state_position"]["address"] == "home/s9/desk/state/position/{symbol}"
    assert channels["command_all"]["address"] == "home/s9/all/command/{name}"
    assert channels["discovery_device"]["address"] == "ha/device/sigma9_desk/config"
    for row in (*TABLE, *DISCOVERY):
        channel = channels[row.key]
        assert channel["address"] == topics.fill(row.pattern, "ha")
        assert channel["servers"] == [{"$ref": "#/servers/mqtt"}]
        assert set(channel.get("parameters", {})) == {
            part[1:-1] for part in channel["address"].split("/") if part.startswith("{")
        }
        mine = [o for o in operations.values() if o["channel"]["$ref"] == f"#/channels/{row.key}"]
        assert mine
        for operation in mine:
            binding = operation["bindings"]["mqtt"]
            if operation["messages"][0]["$ref"].endswith("/echo"):  # to the node itself, before it is online
                continue
            cleared = operation["messages"][0]["$ref"].endswith("/removed")
            assert operation["action"] == ("send" if row.sent or cleared else "receive")
            assert (binding["qos"], binding["retain"]) == (row.qos, row.retained or cleared)
            assert "reply" in operation or row.body != "command" or cleared
    assert channels["event_log"]["parameters"]["level"]["enum"] == list(LOG_LEVELS)
    assert set(channels["event_trade_event"]["parameters"]["event"]["enum"]) == set(OrderStatus)
    assert channels["command"]["parameters"]["name"]["enum"] == list(BUILT_IN)
    assert "removed" in channels["state_quote"]["messages"]
    assert "removed" not in channels["state_orders"]["messages"]
    for reference in references(document):
        assert follow(document, {"$ref": reference}) is not None


def test_the_broker_is_described() -> None:
    """The server has the last will and says how to log in; an embedded broker's port may be another one."""
    server = document_of()["servers"]["mqtt"]
    assert (server["host"], server["protocol"]) == ("127.0.0.1:{port}", "mqtt")
    assert server["variables"]["port"]["default"] == "1883"
    assert server["bindings"]["mqtt"]["lastWill"] == {
        "topic": "sigma9/main/availability",
        "qos": 1,
        "message": "offline",
        "retain": True,
    }
    assert server["security"] == [{"$ref": "#/components/securitySchemes/mqtt_user"}]
    tls = {"ca": "ca.pem", "cert": "c.pem", "key": "k.pem"}
    external = {"broker": "external", "host": "broker.local", "port": 8883, "tls": tls, "protocol": "3.1.1"}
    server = document_of(mqtt=external)["servers"]["mqtt"]
    assert (server["host"], server["protocol"], server["protocolVersion"]) == (
        "broker.local:8883",
        "secure-mqtt",
        "3.1.1",
    )
    assert server["security"] == [{"$ref": "#/components/securitySchemes/mqtt_certificate"}]
    assert "username" not in json.dumps(server)


@pytest.mark.parametrize("settings", [{"mqtt": {"enabled": False}}, {"plugins": {"disabled": ["mqtt"]}}])
def test_a_node_without_mqtt_describes_its_feed_alone(settings: dict[str, Any]) -> None:
    """Where MQTT is off the document knows nothing of it, and is whole."""
    document = document_of(**settings)
    assert list(document["servers"]) == ["websocket"]
    assert list(document["channels"]) == ["feed"]
    assert "command" not in json.dumps(document["operations"])
    for reference in references(document):
        assert follow(document, {"$ref": reference}) is not None


def test_commands_are_described_by_their_models() -> None:
    """Each command is an operation with its arguments, id, expires_at and reason, and its plain words."""
    document = document_of()
    schemas, messages = document["components"]["schemas"], document["components"]["messages"]
    for name, spec in BUILT_IN.items():
        schema = schemas[f"command_{name}"]
        assert {*spec.args.model_fields, "id", "expires_at", "reason"} == set(schema["properties"])
        assert ("id" in schema.get("required", ())) is spec.needs_id
        operation = document["operations"][f"receive_{name}"]
        assert f"`{spec.right}`" in operation["description"]
        names = {reference["$ref"].rsplit("/", 1)[1] for reference in operation["messages"]}
        words = {f"command_{name}_word"} if spec.fixed_words or spec.word else set()
        assert names == {f"command_{name}", *words}
    assert messages["command_start_word"]["payload"]["enum"] == ["ON", "PRESS", "start"]
    assert messages["command_control_word"]["payload"]["enum"] == ["start", "stop", "kill"]
    assert messages["command_start"]["bindings"]["mqtt"]["responseTopic"]["pattern"] == "^sigma9/reply/."
    reply = document["operations"]["receive_start"]["reply"]
    assert reply["address"]["location"] == "$message.header#/responseTopic"
    assert follow(document, reply["channel"])["address"] is None  # AsyncAPI wants it so beside a reply's address
    assert follow(document, messages["response"]["correlationId"])["location"] == (
        "$message.header#/correlationData"
    )
    older = document_of(mqtt={"protocol": "3.1.1"})
    assert older["operations"]["receive_start"]["reply"]["channel"] == {"$ref": "#/channels/response"}
    assert "requested_reply" not in older["channels"]


def test_a_plugin_s_command_is_described() -> None:
    """A command that a plugin adds stands in the document by itself, models that refer to themselves included."""

    class Tree(Frozen):
        """Arguments inside arguments."""

        name: str
        below: tuple[Tree, ...] = ()

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    server = FakeServer(Settings())
    server.specs = {**BUILT_IN, "prune": CommandSpec("prune", Tree, "trade", "Cut a tree.")}
    document = asyncapi(server, HERE)
    assert "receive_prune" in document["operations"]
    for reference in references(document):
        assert follow(document, {"$ref": reference}) is not None


def parse(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let the official parser read documents; skip where it is not there, but never in CI."""
    node = shutil.which("node")
    if node is None or not PARSER.is_dir():
        reason = "the official AsyncAPI parser is not installed: `make test` does it where there is npm"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    script = Path(__file__).with_name("asyncapi_parser.cjs")
    done = subprocess.run(
        [node, script, PARSER], input=json.dumps(documents), capture_output=True, text=True, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def is_sound(found: dict[str, Any]) -> bool:
    """Tell whether the parser says nothing but that there is a newer version of AsyncAPI."""
    return found["valid"] and {each["code"] for each in found["diagnostics"]} <= {"asyncapi-latest-version"}


def test_the_official_parser_takes_it() -> None:
    """AsyncAPI's own parser finds nothing wrong, and refuses a document with a fault."""
    broken = document_of(mqtt={"enabled": False})
    broken["operations"]["sendEvents"]["channel"] = {"$ref": "#/channels/nowhere"}
    found, fault = parse([document_of(), broken])
    assert is_sound(found), found["diagnostics"]
    assert not fault["valid"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"mqtt": {"protocol": "3.1.1"}}, {"mqtt": {"enabled": False}}])
def test_the_official_parser_takes_every_form(settings: dict[str, Any]) -> None:
    """So is the document of an older protocol, and of a node without MQTT."""
    (found,) = parse([document_of(**settings)])
    assert is_sound(found), found["diagnostics"]

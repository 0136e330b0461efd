"""The AsyncAPI document of the feed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sigma9_core.events import DURABLE, EVENT_TYPES

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node


def follow(document: dict[str, Any], reference: dict[str, str]) -> Any:
    """Give what a local reference leads to."""
    found: Any = document
    for part in reference["$ref"].removeprefix("#/").split("/"):
        found = found[part]
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
        assert follow(document, operation["channel"]) == channel
        for reference in operation["messages"]:
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

"""The AsyncAPI 3.0 document of the WebSocket, generated from the event models."""

from __future__ import annotations

from typing import Any

from sigma9_core import __version__
from sigma9_core.contracts import Server
from sigma9_core.events import DURABLE, EVENT_TYPES, LOG_LEVELS
from sigma9_integrations.web.listener import Address
from sigma9_integrations.web.schemas import EVENT_DATA, Subscribe, components


def asyncapi(server: Server, address: Address) -> dict[str, Any]:
    """Describe `/ws/feed`: every event type that it sends, and the one message that it takes."""
    secure = address.url.startswith("https:")
    messages: dict[str, Any] = {name: _message(name) for name in EVENT_TYPES}
    subscribe = {
        "title": "Replace the filter",
        "contentType": "application/json",
        "payload": {"$ref": "#/components/schemas/Subscribe"},
    }
    channel = {
        "address": "/ws/feed",
        "title": "The event feed",
        "description": "With `after` the durable events since that number come first, then two snapshots, then "
        "live events.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in (*EVENT_TYPES, "subscribe")},
        "bindings": {"ws": {"method": "GET", "query": _query(), "bindingVersion": "0.1.0"}},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Sigma9 events of the node {server.settings.node}",
            "version": __version__,
            "description": "Every frame is one event envelope, or with `batch=true` possibly an array of them.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "websocket": {
                "host": address.url.partition("://")[2],
                "protocol": "wss" if secure else "ws",
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
            }
        },
        "channels": {"feed": channel},
        "operations": {
            "sendEvents": {
                "action": "send",
                "summary": "Events, as they happen.",
                "channel": {"$ref": "#/channels/feed"},
                "messages": [{"$ref": f"#/channels/feed/messages/{name}"} for name in EVENT_TYPES],
            },
            "receiveSubscribe": {
                "action": "receive",
                "summary": "Replace the filter; anything else is answered by a log event of level warning.",
                "channel": {"$ref": "#/channels/feed"},
                "messages": [{"$ref": "#/channels/feed/messages/subscribe"}],
            },
        },
        "components": {
            "messages": {**messages, "subscribe": subscribe},
            "schemas": {
                **components(EVENT_DATA.values()),
                **components([Subscribe], "validation"),
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _message(name: str) -> dict[str, Any]:
    durable = name in DURABLE
    model = EVENT_DATA[name]  # type: ignore[index]
    return {
        "name": name,
        "title": name,
        "summary": (model.__doc__ or "").strip(),
        "contentType": "application/json",
        "payload": {
            "type": "object",
            "required": ["type", "v", "seq", "ts", "node", "data"],
            "properties": {
                "type": {"const": name},
                "v": {"const": 1},
                # A snapshot of a durable type has no number.
                "seq": {"type": ["integer", "null"]} if durable else {"type": "null"},
                "ts": {"type": "string", "format": "date-time"},
                "node": {"type": "string"},
                "late": {"const": True},
                "data": {"$ref": f"#/components/schemas/{model.__name__}"},
            },
        },
    }


def _query() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "token": {"type": "string", "description": "Where neither a header nor a sub-protocol can carry it."},
            "after": {"type": "integer", "minimum": 0},
            "types": {"type": "string", "description": f"Of {', '.join(EVENT_TYPES)}, with commas between."},
            "symbols": {"type": "string", "description": "For market_data and trade_event, with commas between."},
            "level": {"type": "string", "enum": list(LOG_LEVELS), "default": "info"},
            "batch": {"type": "boolean", "default": False},
        },
    }

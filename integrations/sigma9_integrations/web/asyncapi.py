"""The AsyncAPI 3.0 document: the WebSocket, and every MQTT topic from the table that the topics are made from.

Operations are told from the server's side: it sends events and state, it receives commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from sigma9_core import __version__
from sigma9_core.commands import CommandSpec
from sigma9_core.config import MqttTls
from sigma9_core.contracts import Server
from sigma9_core.events import DURABLE, EVENT_TYPES, LOG_LEVELS
from sigma9_core.models import SYMBOL_PATTERN, Account, OrderStatus, Position
from sigma9_core.payload import WORD_PATTERN
from sigma9_integrations.mqtt.topics import DISCOVERY, TABLE, TopicRow, Topics
from sigma9_integrations.web.listener import Address
from sigma9_integrations.web.schemas import (
    EVENT_DATA,
    CommandAnswer,
    KillSwitch,
    Orders,
    Plugins,
    Positions,
    Risk,
    Schedule,
    Status,
    Subscribe,
    Watchlist,
    command_body,
    components,
)

Part = dict[str, Any]

_STATES: Final[Mapping[str, type[BaseModel]]] = {
    model.__name__: model
    for model in (Status, KillSwitch, Account, Positions, Position, Orders, Watchlist, Risk, Plugins, Schedule)
} | {"MarketData": EVENT_DATA["market_data"]}
"""The bodies of the state topics, by the names that the topic table has for them."""
_JSON: Final = "application/json"
_TEXT: Final = "text/plain"
_BINDING: Final = "0.2.0"
_NAMES: Final = re.compile(r"\{(\w+)\}")
_MQTT_FIVE: Final = (
    "On MQTT 5 a request may name a response topic below `{base}/reply/` and correlation data; the answer then "
    "goes there as well."
)


def asyncapi(server: Server, address: Address) -> dict[str, Any]:
    """Describe `/ws/feed` and, where this node lives on MQTT, its whole topic tree."""
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Sigma9 events of the node {server.settings.node}",
            "version": __version__,
            "description": "Events, state and commands. On the WebSocket every frame is one event envelope, or "
            "with `batch=true` possibly an array of them; on MQTT every message of an event topic is one.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": _JSON,
        "servers": {
            "websocket": {
                "host": address.url.partition("://")[2],
                "protocol": "wss" if address.url.startswith("https:") else "ws",
                "security": [_to("components", "securitySchemes", "bearer")],
            }
        },
        "channels": {"feed": _feed()},
        "operations": _feed_operations(),
        "components": {
            "messages": {**{name: _event(name) for name in EVENT_TYPES}, "subscribe": _subscribe()},
            "schemas": {
                **components([Status, *EVENT_DATA.values()]),
                **components([Subscribe], "validation"),
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
    schemas = document["components"]["schemas"]
    schemas["StatusUpdate"]["properties"]["status"] = _to("components", "schemas", "Status")
    if server.settings.mqtt.enabled and "mqtt" not in server.settings.plugins.disabled:
        _Mqtt(server).describe(document)
    return document


# --- the WebSocket --------------------------------------------------------------------------------------------


def _feed() -> Part:
    return {
        "address": "/ws/feed",
        "title": "The event feed",
        "description": "With `after` the durable events since that number come first, then two snapshots, then "
        "live events.",
        "servers": [_to("servers", "websocket")],
        "messages": {name: _to("components", "messages", name) for name in (*EVENT_TYPES, "subscribe")},
        "bindings": {"ws": {"method": "GET", "query": _query(), "bindingVersion": "0.1.0"}},
    }


def _feed_operations() -> Part:
    return {
        "sendEvents": {
            "action": "send",
            "summary": "Events, as they happen.",
            "channel": _to("channels", "feed"),
            "messages": [_to("channels", "feed", "messages", name) for name in EVENT_TYPES],
        },
        "receiveSubscribe": {
            "action": "receive",
            "summary": "Replace the filter; anything else is answered by a log event of level warning.",
            "channel": _to("channels", "feed"),
            "messages": [_to("channels", "feed", "messages", "subscribe")],
        },
    }


def _subscribe() -> Part:
    return {
        "name": "subscribe",
        "title": "Replace the filter",
        "contentType": _JSON,
        "payload": _to("components", "schemas", "Subscribe"),
    }


def _event(name: str) -> Part:
    durable = name in DURABLE
    model = EVENT_DATA[name]  # type: ignore[index]
    return {
        "name": name,
        "title": name,
        "summary": (model.__doc__ or "").strip(),
        "contentType": _JSON,
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


def _query() -> Part:
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


# --- MQTT -----------------------------------------------------------------------------------------------------


class _Mqtt:
    """Adds the MQTT side of a node to the document."""

    def __init__(self, server: Server) -> None:
        self._settings = server.settings.mqtt
        self._home = server.settings.home_assistant
        self._specs = server.specs
        self._topics = Topics(self._settings.base_topic, server.settings.node)
        self._five = self._settings.protocol != "3.1.1"

    def describe(self, document: Part) -> None:
        """Add servers, channels, operations and components."""
        parts = document["components"]
        document["servers"]["mqtt"] = self._server()
        rows = (*TABLE, *(DISCOVERY if self._home.enabled else ()))
        for row in rows:
            document["channels"][row.key] = self._channel(row)
        if self._five:
            document["channels"]["requested_reply"] = {
                "address": None,
                "title": "Where an MQTT 5 request asks to be answered",
                "description": _MQTT_FIVE.replace("{base}", self._topics.base),
                "servers": [_to("servers", "mqtt")],
                "messages": {"response": _to("components", "messages", "response")},
            }
        document["operations"] |= {name: part for row in rows for name, part in self._operations(row)}
        parts["messages"] |= self._messages()
        parts["schemas"] |= components([*_STATES.values(), CommandAnswer])
        parts["schemas"]["StatusUpdate"]["properties"]["status"] = _to("components", "schemas", "Status")
        parts["schemas"] |= {f"command_{name}": _self_contained(spec) for name, spec in self._specs.items()}
        parts["schemas"]["request_headers"] = self._request_headers()
        parts["correlationIds"] = {"request": self._correlation()}
        parts["securitySchemes"] |= {
            "mqtt_user": {"type": "userPassword", "description": "A user and password of the broker."},
            "mqtt_certificate": {"type": "X509", "description": "A client certificate that the broker knows."},
        }

    # --- where ------------------------------------------------------------------------------------------------

    def _server(self) -> Part:
        settings = self._settings
        embedded = settings.broker == "embedded"
        tls = not embedded and settings.tls != MqttTls()
        found: Part = {
            "host": "127.0.0.1:{port}" if embedded else f"{settings.host}:{settings.port}",
            "protocol": "secure-mqtt" if tls else "mqtt",
            "protocolVersion": "5" if self._five else "3.1.1",
            "title": "The broker that the node lives on",
            "description": "The node speaks MQTT 5, and 3.1.1 where the broker speaks only that."
            if self._five
            else "The node speaks MQTT 3.1.1.",
            "bindings": {
                "mqtt": {
                    "cleanSession": True,
                    "lastWill": {
                        "topic": self._topics.availability,
                        "qos": 1,
                        "message": "offline",
                        "retain": True,
                    },
                    "bindingVersion": _BINDING,
                }
            },
        }
        if embedded:
            found["variables"] = {
                "port": {
                    "default": str(settings.port),
                    "description": "Where it is taken, the next free one, which the start of the server says.",
                }
            }
            found["description"] += " The embedded Mosquitto takes both, the embedded amqtt 3.1.1 alone."
        security = []
        if embedded or settings.username is not None:
            security.append(_to("components", "securitySchemes", "mqtt_user"))
        if tls and settings.tls.cert is not None:
            security.append(_to("components", "securitySchemes", "mqtt_certificate"))
        return found | ({"security": security} if security else {})

    def _channel(self, row: TopicRow) -> Part:
        address = self._topics.fill(row.pattern, self._home.prefix)
        found: Part = {
            "address": address,
            "title": row.payload,
            "description": "Retained." if row.retained else "Not retained.",
            "servers": [_to("servers", "mqtt")],
            "messages": {name: _to("components", "messages", name) for name in self._names(row)},
        }
        parameters = {name: self._parameter(row, name) for name in _NAMES.findall(address)}
        return found | ({"parameters": parameters} if parameters else {})

    def _parameter(self, row: TopicRow, name: str) -> Part:
        event = row.key.startswith("event_")
        location = {"location": f"$message.payload#/data/{name}"} if event else {}
        match name:
            case "symbol":
                return {"description": f"A symbol: {SYMBOL_PATTERN}", "examples": ["AAPL", "BRK.B"], **location}
            case "event":
                return {
                    "description": "What became of the order.",
                    "enum": [s.value for s in OrderStatus],
                    **location,
                }
            case "level":
                return {"description": "How grave the line is.", "enum": list(LOG_LEVELS), **location}
            case "name" if row.body == "command":
                return {"description": "The command.", "enum": list(self._specs)}
            case "name":
                return {"description": "The command, as it was sent.", "location": "$message.payload#/command"}
            case "any":
                return {"description": "One or more levels of the client's choice, without wildcards."}
        return {"description": "As Home Assistant names it."}

    # --- what happens -----------------------------------------------------------------------------------------

    def _operations(self, row: TopicRow) -> Iterable[tuple[str, Part]]:
        channel = _to("channels", row.key)
        bindings = {"mqtt": {"qos": row.qos, "retain": row.retained, "bindingVersion": _BINDING}}
        base: Part = {"summary": row.payload, "channel": channel, "bindings": bindings}
        if row.key == "command":
            for name, spec in self._specs.items():
                messages = [_to("channels", row.key, "messages", each) for each in self._of_command(name)]
                about = {"summary": spec.summary, "description": self._about(spec), "messages": messages}
                yield f"receive_{name}", {"action": "receive", **base, **about, "reply": self._reply()}
            yield (
                "send_command_cleared",
                {
                    "action": "send",
                    **base,
                    "summary": "Take away a command that somebody has published with the retain flag.",
                    "messages": [_to("channels", row.key, "messages", "removed")],
                    "bindings": {"mqtt": {**bindings["mqtt"], "retain": True}},
                },
            )
            return
        names = self._names(row)
        if row.key == "reply":
            names.remove("echo")
            yield (
                "send_echo",
                {
                    "action": "send",
                    **base,
                    "summary": "A node that starts asks the broker whether it has told all that it holds.",
                    "messages": [_to("channels", row.key, "messages", "echo")],
                    "bindings": {"mqtt": {**bindings["mqtt"], "qos": 0}},
                },
            )
        messages = [_to("channels", row.key, "messages", name) for name in names]
        action = "send" if row.sent else "receive"
        reply = {"reply": self._reply()} if row.body == "command" else {}
        yield f"{action}_{row.key}", {"action": action, **base, "messages": messages, **reply}

    def _reply(self) -> Part:
        if not self._five:
            messages = [_to("channels", "response", "messages", "response")]
            return {"channel": _to("channels", "response"), "messages": messages}
        return {
            "address": {
                "location": "$message.header#/responseTopic",
                "description": f"Below {self._topics.base}/reply/, any other is ignored; and always to "
                f"{self._topics.response('{name}')}.",
            },
            "channel": _to("channels", "requested_reply"),
            "messages": [_to("channels", "requested_reply", "messages", "response")],
        }

    def _about(self, spec: CommandSpec) -> str:
        said = [f"Needs the right `{spec.right}`."]
        if spec.needs_id:
            said.append("Needs an id.")
        if spec.repeats and spec.journalled:
            said.append("The same id is carried out once in 24 hours, and answered again.")
        else:
            said.append("Never held back as a repeat.")
        return " ".join([*said, "An empty payload is no command and has no answer."])

    # --- messages ---------------------------------------------------------------------------------------------

    def _names(self, row: TopicRow) -> list[str]:
        """Name the messages of a channel."""
        match row.body:
            case "command":
                names = [each for name in self._specs for each in self._of_command(name)]
                # The node clears its own topic where somebody has published to it with the retain flag.
                return [*names, "removed"] if row.key == "command" else names
            case body if body in _STATES:
                names = [row.key]
            case body if row.key == "reply":
                names = [body, "echo"]
            case body:
                names = [body]
        return [*names, "removed"] if row.removed else names

    def _of_command(self, name: str) -> list[str]:
        return [f"command_{name}", *([f"command_{name}_word"] if _words(self._specs[name]) else [])]

    def _messages(self) -> Part:
        found: Part = {
            "availability": _text_message("availability", {"enum": ["online", "offline"]}),
            "birth": _text_message("birth", {"enum": ["online", "offline"]}),
            "removed": _text_message("removed", {"maxLength": 0}) | {"summary": "Empty: the topic is gone."},
            "echo": _text_message("echo", {"pattern": "^[0-9a-f]{16}$"})
            | {"summary": "A node that starts writes to itself, to learn that the broker has told all it holds."},
            "discovery": {
                "name": "discovery",
                "title": "discovery",
                "summary": "What Home Assistant's MQTT discovery reads.",
                "contentType": _JSON,
                "payload": {"type": "object"},
            },
            "response": {
                "name": "response",
                "title": "The answer to a command",
                "contentType": _JSON,
                "payload": _to("components", "schemas", "CommandAnswer"),
                "correlationId": _to("components", "correlationIds", "request"),
            },
        }
        if not self._home.enabled:
            del found["birth"], found["discovery"]
        for row in TABLE:
            if row.body in _STATES:
                found[row.key] = {
                    "name": row.key,
                    "title": row.payload,
                    "contentType": _JSON,
                    "payload": _to("components", "schemas", _STATES[row.body].__name__),
                }
        for name, spec in self._specs.items():
            found |= self._command_messages(name, spec)
        return found

    def _command_messages(self, name: str, spec: CommandSpec) -> Part:
        request: Part = {
            "name": name,
            "title": spec.summary,
            "summary": self._about(spec),
            "correlationId": _to("components", "correlationIds", "request"),
        }
        if self._five:
            topic = {"type": "string", "pattern": f"^{re.escape(self._topics.base)}/reply/."}
            request["headers"] = _to("components", "schemas", "request_headers")
            request["bindings"] = {"mqtt": {"responseTopic": topic, "bindingVersion": _BINDING}}
        body = {**request, "contentType": _JSON, "payload": _to("components", "schemas", f"command_{name}")}
        found = {f"command_{name}": body}
        words = _words(spec)
        if words is not None:
            found[f"command_{name}_word"] = {**request, "contentType": _TEXT, "payload": words}
        return found

    def _request_headers(self) -> Part:
        return {
            "type": "object",
            "description": _MQTT_FIVE.replace("{base}", self._topics.base),
            "properties": {
                "responseTopic": {"type": "string"},
                "correlationData": {"type": "string", "description": "Bytes, given back unchanged."},
            },
        }

    def _correlation(self) -> Part:
        if self._five:
            return {
                "description": "MQTT 5's correlation data. Without it the `id` tells answers apart.",
                "location": "$message.header#/correlationData",
            }
        return {"description": "The `id` that the request gave.", "location": "$message.payload#/id"}


def _text_message(name: str, schema: Part) -> Part:
    return {"name": name, "title": name, "contentType": _TEXT, "payload": {"type": "string", **schema}}


def _words(spec: CommandSpec) -> Part | None:
    """Give the schema of the plain words that a command takes, None where it takes none."""
    fixed: Part = {"type": "string", "enum": sorted(spec.fixed_words), "description": "In any case."}
    if spec.word is None:
        return fixed if spec.fixed_words else None
    own: Part = {"type": "string", "pattern": WORD_PATTERN, "description": f"The `{spec.word}`."}
    taken = command_body(spec)["properties"][spec.word]
    if "enum" in taken:
        own["enum"] = taken["enum"]
    return {"anyOf": [fixed, own]} if spec.fixed_words else own


def _self_contained(spec: CommandSpec) -> Part:
    """Give a command's schema, whose own definitions are found from the top of the document."""
    body = command_body(spec)
    if spec.needs_id:
        body["required"] = [*body.get("required", ()), "id"]
    moved: Part = _moved(body, f"#/components/schemas/command_{spec.name}/$defs/")
    return moved


def _moved(value: Any, home: str) -> Any:
    if isinstance(value, dict):
        found = {key: _moved(inner, home) for key, inner in value.items()}
        reference = found.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/$defs/"):
            found["$ref"] = home + reference.removeprefix("#/$defs/")
        return found
    return [_moved(inner, home) for inner in value] if isinstance(value, list) else value


def _to(*path: str) -> dict[str, str]:
    """Point to a part of the document."""
    return {"$ref": f"#/{'/'.join(path)}"}

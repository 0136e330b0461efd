"""The OpenAPI document: generated from the tables, complete, and sound in its structure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sigma9_core.commands import BUILT_IN
from sigma9_core.errors import HTTP_STATUS
from sigma9_integrations.web.reads import READS

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node


async def document(node: Node) -> dict[str, Any]:
    async with node.http("secret-read") as client:
        answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(found: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, verbs in found["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


async def test_the_document_names_every_path_that_is_served(node: Node) -> None:
    """Each read and each alias stands in the document, and each operation of the document is answered."""
    found = await document(node)
    assert found["openapi"] == "3.1.0"
    shown = {(path, verb) for path, verb, _ in operations(found)}
    expected = {(read.path, "get") for read in READS}
    expected |= {(spec.alias.path, spec.alias.method.lower()) for spec in BUILT_IN.values() if spec.alias}
    plain = ("/api/commands", "/healthz", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json")
    expected |= {(path, "get") for path in plain} | {("/api/commands/{name}", "post")}
    assert shown == expected
    async with node.http() as client:
        for path, verb in shown:
            answer = await client.request(verb.upper(), re.sub(r"\{\w+\}", "start", path))
            assert answer.status_code != 405, (verb, path)


async def test_the_document_is_sound(node: Node) -> None:
    """Operation ids are unique, path parameters are declared, references lead somewhere, answers are described."""
    found = await document(node)
    schemas = found["components"]["schemas"]
    names = [operation.get("operationId") for _, _, operation in operations(found)]
    named = [name for name in names if name]
    assert len(named) == len(set(named))
    for path, verb, operation in operations(found):
        where = f"{verb} {path}"
        declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path)), where
        for each in operation.get("parameters", ()):
            assert each["in"] in ("path", "query", "header"), where
            assert "schema" in each, where
            assert each["in"] != "path" or each["required"] is True, where
        assert operation["responses"], where
        for status, answer in operation["responses"].items():
            assert re.fullmatch(r"[2-5]\d\d", status), where
            assert answer["description"], where
        assert {tag["name"] for tag in found["tags"]} >= set(operation["tags"]), where
        local = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        for reference in references(operation):
            home, name = reference.rsplit("/", 1)
            assert name in (schemas if home == "#/components/schemas" else local["$defs"]), (where, reference)
        if any(reference.startswith("#/$defs/") for reference in references(local)):
            assert local["$id"].startswith("urn:"), where  # so that #/$defs means its own
    for reference in references(schemas):
        assert reference.removeprefix("#/components/schemas/") in schemas


async def test_only_open_paths_are_without_security(node: Node) -> None:
    """The document asks for a bearer token wherever the server does."""
    found = await document(node)
    assert found["security"] == [{"bearer": []}]
    assert found["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    open_paths = {path for path, _, operation in operations(found) if operation.get("security") == []}
    assert open_paths == {"/healthz", "/readyz"}


async def test_commands_are_described_by_their_models(node: Node) -> None:
    """A command's body has its arguments but those of the path, id and expires_at; all its statuses are named."""
    paths = (await document(node))["paths"]
    modify = paths["/api/orders/{order_id}"]["patch"]
    schema = modify["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {
        *("quantity", "limit_price", "stop_price", "trail_amount", "trail_percent"),
        *("reason", "id", "expires_at"),
    }
    assert schema["additionalProperties"] is False
    assert modify["requestBody"]["required"] is False
    assert set(modify["responses"]) == {"200", "400", "413", *map(str, HTTP_STATUS.values())}
    reset = paths["/api/kill-switch"]["delete"]["requestBody"]
    assert reset["required"] is True
    assert reset["content"]["application/json"]["schema"]["required"] == ["reason"]
    risk = paths["/api/risk/{rule}"]["patch"]["requestBody"]["content"]["application/json"]["schema"]
    assert risk["additionalProperties"] is True
    assert "required" not in risk
    assert "trade" in paths["/api/engine/start"]["post"]["description"]


async def test_bodies_are_described_as_they_are_sent(node: Node) -> None:
    """Money is a number, times are RFC 3339, all keys always come, and fields may be added one day."""
    schemas = (await document(node))["components"]["schemas"]
    position = schemas["Position"]
    assert set(position["required"]) == set(position["properties"])
    assert position["properties"]["quantity"]["type"] == "number"
    assert {"type": "number"} in position["properties"]["last"]["anyOf"]
    assert {"format": "date-time", "type": "string"} in position["properties"]["opened_at"]["anyOf"]
    for name, schema in schemas.items():
        assert schema.get("additionalProperties") is not False, name
    assert set(HTTP_STATUS) == set(schemas["ErrorObject"]["properties"]["code"]["enum"])
    assert set(schemas["Status"]["properties"]) == {
        *("server", "engine", "ibkr", "broker", "feed", "mqtt", "kill_switch", "uptime", "active_positions"),
        *("open_orders", "watchlist_count", "day_pnl", "seq", "journal_id", "node", "version", "contract"),
        *("started_at", "last_error", "clock", "market"),
    }


async def test_the_document_says_whose_commission_is_told(node: Node) -> None:
    """A trade's commission is said to be the fill's own, an order's and a trade_event's to be cumulative."""
    found = await document(node)
    schemas = found["components"]["schemas"]
    trades = found["paths"]["/api/trades"]["get"]["description"]
    assert "In a trade_event, and in an order, `commission` is cumulative per order" in trades
    assert "this fill alone" in schemas["Fill"]["properties"]["commission"]["description"]
    assert "whole order" in schemas["OrderView"]["properties"]["commission"]["description"]
    assert schemas["Fill"]["properties"]["quantity"] == {
        "type": "number",
        "description": "Of the whole order, not of this fill.",
    }
    async with node.http() as client:
        events = (await client.get("/asyncapi.json")).json()["components"]["schemas"]
    assert "whole order so far" in events["TradeEvent"]["properties"]["commission"]["description"]

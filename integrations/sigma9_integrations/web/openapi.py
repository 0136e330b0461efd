"""The OpenAPI 3.1 document, generated from the table of reads and the command table."""

from __future__ import annotations

import re
from typing import Any, Final

from sigma9_core import __version__
from sigma9_core.commands import CommandSpec
from sigma9_core.contracts import Server
from sigma9_core.errors import HTTP_STATUS
from sigma9_integrations.web.reads import READS, Read
from sigma9_integrations.web.schemas import BODIES, command_body, components

_NAMES: Final = re.compile(r"\{([a-z_]+)\}")


def openapi(server: Server, aliases: dict[tuple[str, str], str]) -> dict[str, Any]:
    """Describe every path of this node, those of commands that plugins add included."""
    paths: dict[str, dict[str, Any]] = {}
    for read in READS:
        paths.setdefault(read.path, {})["get"] = _read(read)
    for (path, method), name in aliases.items():
        paths.setdefault(path, {})[method.lower()] = _command(server.specs[name], path)
    paths["/api/commands"] = {"get": _simple("Every command, with its arguments' schema.", "Commands", "commands")}
    paths["/api/commands/{name}"] = {"post": _any_command(server)}
    paths |= _plain_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sigma9",
            "version": __version__,
            "summary": "A self-hosted trading server.",
            "description": "Reads need the right `read`; each command names its own: read < trade < admin. Events "
            "come over the WebSocket `/ws/feed`, described by `/asyncapi.json`.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [
            {"name": "state", "description": "What is."},
            {"name": "commands", "description": "What changes something."},
            {"name": "server", "description": "The server itself."},
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": components(BODIES),
        },
    }


def _read(read: Read) -> dict[str, Any]:
    query = [
        {"name": each.name, "in": "query", "schema": dict(each.schema), "description": each.summary}
        for each in read.parameters
    ]
    operation = _simple(read.summary, read.body, "state", _path_parameters(read.path) + query)
    operation["operationId"] = "get_" + _NAMES.sub(r"\1", read.path.removeprefix("/api/")).replace("/", "_")
    if read.description:
        operation["description"] = read.description
    for status, summary in (read.statuses or {}).items():
        operation["responses"][str(status)] = _body(summary, "Error")
    if read.parameters:
        operation["responses"]["422"] = _body("A parameter is not valid.", "Error")
    return operation


def _command(spec: CommandSpec, path: str) -> dict[str, Any]:
    content = command_body(spec, in_path=_NAMES.findall(path))
    return {
        "operationId": spec.name,
        "tags": ["commands"],
        "summary": spec.summary,
        "description": f"Needs the right `{spec.right}`." + (" Needs an id." if spec.needs_id else ""),
        "parameters": [*_path_parameters(path), _key_header(spec)],
        "requestBody": {
            "required": "required" in content,
            "content": {"application/json": {"schema": _local_refs(content, spec.name)}},
        },
        "responses": _command_answers(),
    }


def _any_command(server: Server) -> dict[str, Any]:
    names = {"type": "string", "enum": list(server.specs)}
    return {
        "operationId": "command",
        "tags": ["commands"],
        "summary": "Any command by its name.",
        "parameters": [
            {"name": "name", "in": "path", "required": True, "schema": names},
            _key_header(None),
        ],
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": {"type": "object", "additionalProperties": True}}},
        },
        "responses": _command_answers(),
    }


def _command_answers() -> dict[str, Any]:
    by_status: dict[int, list[str]] = {400: ["invalid (not JSON)"], 413: ["invalid (too large)"]}
    for code, status in HTTP_STATUS.items():
        by_status.setdefault(status, []).append(code)
    answers = {"200": _body("It was carried out.", "CommandAnswer")}
    for status, codes in sorted(by_status.items()):
        answers[str(status)] = _body(", ".join(codes), "CommandAnswer")
    return answers


def _key_header(spec: CommandSpec | None) -> dict[str, Any]:
    text = (
        "The command's id." if spec is None or spec.repeats else "The command's id; never held back as a repeat."
    )
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 64},
        "description": text,
    }


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _NAMES.findall(path)
    ]


def _plain_paths() -> dict[str, Any]:
    ready = {
        "type": "object",
        "required": ["ready", "not_ready"],
        "properties": {
            "ready": {"type": "boolean"},
            "not_ready": {"type": "array", "items": {"type": "string"}},
            "warnings": {"type": "array", "items": {"type": "string"}},
        },
    }
    alive = {"type": "object", "properties": {"status": {"type": "string", "enum": ["ok"]}}}
    document: dict[str, Any] = {"type": "object"}
    return {
        "/healthz": {"get": _open("The process answers.", "application/json", alive)},
        "/readyz": {
            "get": _open(
                "Ready to trade; not_ready names what isn't, warnings what a person should look at.",
                "application/json",
                ready,
                {503: "Not ready."},
            )
        },
        "/metrics": {"get": _text("Figures for Prometheus.", "text/plain", {"type": "string"})},
        "/openapi.json": {"get": _text("This document.", "application/json", document)},
        "/asyncapi.json": {"get": _text("The events, as AsyncAPI 3.0.", "application/json", document)},
    }


def _simple(summary: str, schema: str, tag: str, parameters: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [tag],
        "summary": summary,
        "responses": {"200": _body(summary, schema), "401": _body("The token is missing or not valid.", "Error")},
    }
    if parameters:
        operation["parameters"] = parameters
    return operation


def _body(summary: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": summary, "content": content}


def _text(summary: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "tags": ["server"],
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {kind: {"schema": schema}}},
            "401": _body("The token is missing or not valid.", "Error"),
        },
    }


def _open(summary: str, kind: str, schema: dict[str, Any], more: dict[int, str] | None = None) -> dict[str, Any]:
    answers = {200: summary, **(more or {})}
    content = {kind: {"schema": schema}}
    return {
        "tags": ["server"],
        "summary": summary,
        "security": [],
        "responses": {str(status): {"description": text, "content": content} for status, text in answers.items()},
    }


def _local_refs(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Give a schema an address of its own, so that its `#/$defs/` mean its own definitions."""
    return {"$id": f"urn:sigma9:command:{name}", **schema} if "$defs" in schema else schema

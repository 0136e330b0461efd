"""Commands over REST: every row of the command table under its alias and under /api/commands (contract 4, 5)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from sigma9_core.clock import monotonic, wall_now
from sigma9_core.commands import Command, CommandSource, CommandSpec
from sigma9_core.commands import Response as CommandResponse
from sigma9_core.contracts import Server
from sigma9_core.errors import HTTP_STATUS, CommandError
from sigma9_core.payload import MAX_ID, make_command
from sigma9_integrations.web.access import Identity
from sigma9_integrations.web.answers import answer, headers_of, status_of
from sigma9_integrations.web.bodies import read_values
from sigma9_integrations.web.schemas import arguments_schema

logger = logging.getLogger("sigma9.web")

_PATH: Final = re.compile(r"/api(/[a-z0-9_-]+|/\{[a-z_]+\})+")


async def carry_out(server: Server, name: str, request: Request, identity: Identity) -> Response:
    """Build the command that a request means, dispatch it, and answer with its response object."""
    received = monotonic()
    path = {key: value for key, value in request.path_params.items() if key != "command_name"}
    try:
        values = await read_values(request, path)
        command = make_command(
            name, values, server.specs, source=_source(request), right=identity.right, actor=identity.name
        )
    except CommandError as error:
        return refuse_command(name, error, request, received)
    response = await server.dispatch(command)
    status = 200
    if response.error is not None:
        status = HTTP_STATUS.get(response.error["code"], 500)
    return answer(response.body(), status)


def _source(request: Request) -> CommandSource:
    """Tell the command line from other clients: the journal says so, nothing is decided by it."""
    return "cli" if request.headers.get("user-agent", "").startswith("sigma9-cli/") else "api"


def refuse_command(name: str, error: CommandError, request: Request, received: float | None = None) -> Response:
    """Answer a command that never reached the dispatcher with the response object that says why."""
    duration = 0.0 if received is None else (monotonic() - received) * 1000
    key = request.headers.get("idempotency-key", "")
    command = Command(name, {}, _source(request), id=key if 0 < len(key) <= MAX_ID and key.isprintable() else None)
    body = CommandResponse.failed(command, error, ts=wall_now(), duration_ms=duration).body()
    return answer(body, status_of(error), headers_of(error))


def aliases(specs: Mapping[str, CommandSpec], taken: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Give the command of each (path, method); the first one wins, and a lost alias is logged.

    A command without its alias still goes to /api/commands/{name}.
    """
    found: dict[tuple[str, str], str] = {}
    for spec in specs.values():
        if spec.alias is None:
            continue
        place = (spec.alias.path, spec.alias.method)
        if not _PATH.fullmatch(spec.alias.path) or spec.alias.path.startswith("/api/commands"):
            logger.warning("the alias %s %s of the command %s is not a path below /api", *place[::-1], spec.name)
        elif place in found or place in taken:
            logger.warning("the alias %s %s of the command %s is taken", *place[::-1], spec.name)
        else:
            found[place] = spec.name
    return found


def command_table(server: Server) -> dict[str, Any]:
    """Give the body of `GET /api/commands`: names, rights and the JSON schema of the arguments."""
    return {"commands": [_row(spec) for spec in server.specs.values()]}


def _row(spec: CommandSpec) -> dict[str, Any]:
    alias = None if spec.alias is None else {"method": spec.alias.method, "path": spec.alias.path}
    return {
        "name": spec.name,
        "summary": spec.summary,
        "right": spec.right,
        "needs_id": spec.needs_id,
        "alias": alias,
        "args": arguments_schema(spec.args),
    }

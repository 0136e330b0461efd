"""The application: every path with its methods, put together from the tables."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from sigma9_core.contracts import Server
from sigma9_core.errors import CommandError
from sigma9_integrations.web.access import Access, Identity, bearer
from sigma9_integrations.web.actions import aliases, carry_out, command_table, refuse_command
from sigma9_integrations.web.answers import Refusal, answer, refuse, to_json
from sigma9_integrations.web.asyncapi import asyncapi
from sigma9_integrations.web.feed import Feed
from sigma9_integrations.web.guard import Guard
from sigma9_integrations.web.health import not_ready, warnings
from sigma9_integrations.web.listener import Address
from sigma9_integrations.web.metrics import CONTENT_TYPE, Metrics
from sigma9_integrations.web.openapi import openapi
from sigma9_integrations.web.pages import load_pages
from sigma9_integrations.web.reads import READS

logger = logging.getLogger("sigma9.web")

Handler = Callable[[Request, Identity], Awaitable[Response]]
Refuser = Callable[[Request, CommandError], Response]
OpenHandler = Callable[[Request], Response]


@dataclass(frozen=True, slots=True)
class Method:
    """What one method of a path does for who has a token, and how it says no."""

    handler: Handler
    refuser: Refuser


def build_app(server: Server, address: Address) -> tuple[ASGIApp, Feed]:
    """Build the application of one node, and the feed that must be closed before it ends."""
    access = Access(server, address)
    metrics = Metrics(server)
    feed = Feed(server, access, metrics)
    taken = {(read.path, "GET") for read in READS}
    names = aliases(server.specs, taken)

    paths: dict[str, dict[str, Method]] = {}
    for read in READS:
        paths.setdefault(read.path, {})["GET"] = _reader(server, read.handler)
    for (path, method), name in names.items():
        paths.setdefault(path, {})[method] = _alias(server, name)
    paths["/api/commands"] = {"GET": _document(lambda: command_table(server))}
    paths["/api/commands/{command_name}"] = {"POST": _any_command(server)}
    paths["/openapi.json"] = {"GET": _document(lambda: openapi(server, names))}
    paths["/asyncapi.json"] = {"GET": _document(lambda: asyncapi(server, address))}
    paths["/metrics"] = {"GET": _metrics(metrics)}

    routes: list[BaseRoute] = [WebSocketRoute("/ws/feed", feed)]
    routes += [Route(path, _Open(handler), methods=None) for path, handler in _open_paths(server).items()]
    # A path without a name in it comes before one that would take it as a name.
    for path in sorted(paths, key=lambda path: ("{" in path, path)):
        routes.append(Route(path, _Resource(access, paths[path]), methods=None))
    starlette = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _missing(access)},
    )
    starlette.router.redirect_slashes = False
    app: ASGIApp = starlette
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=access.origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key"),
            max_age=600,
        )
    return Guard(app, access, metrics), feed


class _Resource:
    """One path: finds the method, checks the token, and turns errors into bodies."""

    def __init__(self, access: Access, methods: Mapping[str, Method]) -> None:
        self._access = access
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        method = self._methods.get("GET" if request.method == "HEAD" else request.method)
        refuser = _refuse if method is None else method.refuser
        try:
            identity = self._access.identify(bearer(request.headers))
            if method is None:
                raise _not_allowed(self._methods)
            return await method.handler(request, identity)
        except CommandError as error:
            return refuser(request, error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:  # the boundary of HTTP: whatever went wrong gets an answer, and the log the rest
            logger.exception("%s %s met a fault", request.method, request.url.path)
            return refuser(request, CommandError("internal", "the request met a fault in the server: see its log"))


class _Open:
    """One path that needs no token."""

    def __init__(self, handler: OpenHandler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        read = request.method in ("GET", "HEAD")
        response = self._handler(request) if read else refuse(_not_allowed(("GET",)))
        await response(scope, receive, send)


def _refuse(request: Request, error: CommandError) -> Response:
    return refuse(error)


def _reader(server: Server, read: Callable[[Server, Request], Awaitable[Response]]) -> Method:
    async def handler(request: Request, identity: Identity) -> Response:
        return await read(server, request)

    return Method(handler, _refuse)


def _alias(server: Server, name: str) -> Method:
    async def handler(request: Request, identity: Identity) -> Response:
        return await carry_out(server, name, request, identity)

    return Method(handler, lambda request, error: refuse_command(name, error, request))


def _any_command(server: Server) -> Method:
    async def handler(request: Request, identity: Identity) -> Response:
        return await carry_out(server, request.path_params["command_name"], request, identity)

    return Method(
        handler, lambda request, error: refuse_command(request.path_params["command_name"], error, request)
    )


def _document(build: Callable[[], dict[str, Any]]) -> Method:
    """Answer with a body that never changes, and is built when it is first asked for."""
    text = functools.cache(lambda: to_json(build()))

    async def handler(request: Request, identity: Identity) -> Response:
        return Response(text(), media_type="application/json")

    return Method(handler, _refuse)


def _metrics(metrics: Metrics) -> Method:
    async def handler(request: Request, identity: Identity) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return Method(handler, _refuse)


def _open_paths(server: Server) -> dict[str, OpenHandler]:
    """Give the paths that need no token."""

    def ready(request: Request) -> Response:
        missing = not_ready(server)
        told = {"warnings": look} if (look := warnings(server)) else {}
        return answer({"ready": not missing, "not_ready": missing, **told}, 503 if missing else 200)

    paths: dict[str, OpenHandler] = {path: page.respond for path, page in load_pages().items()}
    paths["/healthz"] = lambda request: answer({"status": "ok"})
    paths["/readyz"] = ready
    return paths


def _missing(access: Access) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def respond(request: Request, error: Exception) -> Response:
        try:
            access.identify(bearer(request.headers))
            raise CommandError("not_found", "there is nothing at this path: /openapi.json lists what there is")
        except CommandError as refusal:
            return refuse(refusal)

    return respond


def _not_allowed(methods: Any) -> Refusal:
    allowed = sorted({*methods, "HEAD"} if "GET" in methods else methods)
    return Refusal(405, f"this path takes {', '.join(allowed)}", {}, {"Allow": ", ".join(allowed)})

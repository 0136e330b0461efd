"""What REST reads: one row a path, each answered from the board or the journal (contract 5)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from sigma9_core.contracts import EventPage, Server
from sigma9_core.errors import CommandError
from sigma9_core.events import DURABLE, EventType
from sigma9_core.explain import listed, quoted
from sigma9_core.models import SYMBOL_PATTERN
from sigma9_integrations.web.answers import Refusal, answer, to_json

MOST: Final = 1000
"""The largest `limit` of a page."""
USUAL: Final = 100

_NUMBER: Final = re.compile(r"\d{1,18}")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter of a read."""

    name: str
    schema: Mapping[str, Any]
    summary: str


@dataclass(frozen=True, slots=True)
class Read:
    """One row of the table: a path that answers GET."""

    path: str
    summary: str
    body: str
    """The name of the body's schema in the OpenAPI document."""
    handler: Callable[[Server, Request], Awaitable[Response]]
    parameters: tuple[Parameter, ...] = ()
    statuses: Mapping[int, str] | None = None
    """Further answers that the description names."""
    description: str = ""


def _board(
    name: str, missing: Callable[[Server], Mapping[str, Any]] | None = None
) -> Callable[[Server, Request], Awaitable[Response]]:
    async def handler(server: Server, request: Request) -> Response:
        body = server.board.get(name)
        if body is None and missing is not None:
            body = missing(server)
        if body is None:
            # An empty answer would say that there is nothing; nobody knows yet.
            if name == "status":
                raise Refusal(503, "the status is not known yet: the server is starting", code="not_running")
            raise CommandError("broker_unavailable", f"{name}: not known yet, the broker was not read so far")
        return answer(body)

    return handler


async def _order(server: Server, request: Request) -> Response:
    order_id: str = request.path_params["order_id"]
    found = await server.order(order_id)
    if found is None:  # a foreign order is not in our journal, but on the board while it is open
        orders = (server.board.get("orders") or {}).get("orders", ())
        found = next((order for order in orders if order.get("order_id") == order_id), None)
    if found is None:
        raise CommandError("not_found", f"no order has the id {quoted(order_id)}", {"order_id": order_id[:100]})
    return answer(found)


async def _trades(server: Server, request: Request) -> Response:
    query = request.query_params
    body = await server.trades(
        symbol=_symbol(query),
        since=_moment(query.get("since")),
        limit=_whole("limit", query.get("limit"), USUAL, 1, MOST),
        cursor=query.get("cursor"),
    )
    return answer(body)


async def _events(server: Server, request: Request) -> Response:
    query = request.query_params
    types = _types(query.get("type"))
    limit = _whole("limit", query.get("limit"), USUAL, 1, MOST)
    after = read_after(query.get("after"))
    if {"symbol", "order_id", "before"} & {*query}:
        page = await _found(server, query, types, limit, after)
    elif after is not None:
        page = await server.events(after, limit, types)
        check_range(after, page)
    else:  # from the oldest that is kept
        page = await server.events(0, limit, types)
        if page.first > 1:
            page = await server.events(page.first - 1, limit, types)
    # The events stand here as they were first encoded: the same bytes as on every other surface.
    events = ",".join(page.events)
    body = f'{{"events":[{events}],"next":{to_json(page.next)},"journal_id":{to_json(page.journal_id)}}}'
    return Response(body, media_type="application/json")


async def _found(
    server: Server, query: QueryParams, types: frozenset[EventType] | None, limit: int, after: int | None
) -> EventPage:
    """Find the events of an order or a symbol, or those before a number."""
    if after is not None and "before" in query:
        raise CommandError("invalid", "before: goes without after", {"field": "before"})
    page = await server.find_events(
        limit,
        types=types,
        symbol=_symbol(query),
        order_id=query.get("order_id"),
        after=after,
        before=None if "before" not in query else _whole("before", query["before"], 0, 0, None),
    )
    if after is not None:
        check_range(after, page)
    return page


def _symbol(query: QueryParams) -> str | None:
    symbol = query.get("symbol")
    if symbol is not None and not re.fullmatch(SYMBOL_PATTERN, symbol):
        raise CommandError("invalid", f"symbol must match {SYMBOL_PATTERN}", {"field": "symbol"})
    return symbol


def check_range(after: int, page: EventPage) -> None:
    """Raise `conflict` with the available range where `after` is ahead of the head or older than the retention."""
    if page.first - 1 <= after <= page.last:
        return
    side = "ahead of the newest event" if after > page.last else "older than the oldest event that is kept"
    raise CommandError(
        "conflict",
        f"after={after} is {side}: it may be {page.first - 1} to {page.last}; read the state anew",
        {"first": page.first, "last": page.last, "journal_id": page.journal_id},
    )


def _whole(name: str, text: str | None, usual: int, least: int, most: int | None) -> int:
    if text is None:
        return usual
    if _NUMBER.fullmatch(text) and text.isascii() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    bound = f"from {least} to {most}" if most is not None else f"of at least {least}"
    raise CommandError("invalid", f"{name} must be a whole number {bound}", {"field": name})


def read_after(text: str | None) -> int | None:
    """Read the `after` of a handshake; raise `invalid` for what is no number."""
    return None if text is None else _whole("after", text, 0, 0, None)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        # A plus sign that was not encoded arrives as a space.
        moment = datetime.fromisoformat(text.strip().replace(" ", "+").upper())
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        message = "since must be a time in RFC 3339 with its zone, such as 2026-11-20T14:45:00Z"
        raise CommandError("invalid", message, {"field": "since"})
    return moment


def _types(text: str | None) -> frozenset[EventType] | None:
    if text is None:
        return None
    names = frozenset(text.split(","))
    if not names <= DURABLE:
        message = f"type must be of {listed(DURABLE)}: only these are kept"
        raise CommandError("invalid", message, {"field": "type"})
    return cast("frozenset[EventType]", names)


def _no_watchlist(server: Server) -> Mapping[str, Any]:
    return {"count": 0, "updated_at": None, "items": []}


def _no_rules(server: Server) -> Mapping[str, Any]:
    return {"rules": []}


def _no_plugins(server: Server) -> Mapping[str, Any]:
    return {"plugins": []}


def _no_jobs(server: Server) -> Mapping[str, Any]:
    return {"timezone": server.settings.scheduler.timezone, "jobs": []}


_COUNT: Final = {"type": "integer", "minimum": 1, "maximum": MOST, "default": USUAL}
_UNKNOWN: Final = {503: "Not known yet: the server is starting, or the broker was not read so far."}

READS: Final = (
    Read("/api/status", "The state of the server and all its parts.", "Status", _board("status"), (), _UNKNOWN),
    Read("/api/account", "The account.", "Account", _board("account"), (), _UNKNOWN),
    Read("/api/positions", "Net positions.", "Positions", _board("positions"), (), _UNKNOWN),
    Read("/api/orders", "Open orders.", "Orders", _board("orders"), (), _UNKNOWN),
    Read(
        "/api/orders/{order_id}",
        "One order: open, or as its last event left it.",
        "OrderView",
        _order,
        (),
        {404: "There is no order of this id."},
    ),
    Read("/api/watchlist", "The watched symbols.", "Watchlist", _board("watchlist", _no_watchlist)),
    Read("/api/risk", "The risk rules, with use and limit.", "Risk", _board("risk", _no_rules)),
    Read("/api/plugins", "The plugins and their health.", "Plugins", _board("plugins", _no_plugins)),
    Read("/api/schedule", "The jobs of the scheduler.", "Schedule", _board("schedule", _no_jobs)),
    Read(
        "/api/trades",
        "Fills, newest first.",
        "Trades",
        _trades,
        (
            Parameter("symbol", {"type": "string", "pattern": SYMBOL_PATTERN}, "Only this symbol."),
            Parameter("since", {"type": "string", "format": "date-time"}, "Only fills since this time."),
            Parameter("limit", _COUNT, "At most so many."),
            Parameter("cursor", {"type": "string"}, "The `cursor` of the page before."),
        ),
        description="A trade is one fill. Its `commission`, `last_quantity` and `last_price` are its own, so that "
        "commissions and quantities may be summed. In a trade_event, and in an order, `commission` is cumulative "
        "per order: each further fill tells the sum so far. A fill that the exchange took back (`busted`) or "
        "corrected (`corrects` of the new one names it) is no longer listed.",
    ),
    Read(
        "/api/events",
        "Durable events in order.",
        "Events",
        _events,
        (
            Parameter(
                "after", {"type": "integer", "minimum": 0}, "Events after this number; absent: all that are kept."
            ),
            Parameter("type", {"type": "string"}, "Only these types, with commas between."),
            Parameter("symbol", {"type": "string", "pattern": SYMBOL_PATTERN}, "Only of this symbol."),
            Parameter("order_id", {"type": "string"}, "Only of this order."),
            Parameter(
                "before",
                {"type": "integer", "minimum": 0},
                "The newest before this number, in place of `after`; with `symbol` or `order_id` and neither "
                "number the newest of all. `next` is then the `before` of the page before.",
            ),
            Parameter("limit", _COUNT, "At most so many."),
        ),
        {409: "`after` is ahead of the newest event or older than the retention; details name the range."},
    ),
)
"""Every read of contract 5; `/api/commands` is in `actions.py`."""

"""What a WebSocket client wants to see: from the query of its address, or from a subscribe message."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic import ValidationError
from starlette.datastructures import QueryParams

from sigma9_core.bus import Interest
from sigma9_core.errors import CommandError
from sigma9_core.events import EVENT_TYPES, LOG_LEVELS, EventType
from sigma9_core.explain import problems
from sigma9_core.models import SYMBOL_PATTERN
from sigma9_core.payload import read_object
from sigma9_integrations.web.reads import read_after
from sigma9_integrations.web.schemas import Subscribe

_SYMBOL: Final = re.compile(SYMBOL_PATTERN)
_TRUTH: Final[Mapping[str, bool]] = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a handshake asks for."""

    interest: Interest
    after: int | None
    batch: bool


def read_wish(query: QueryParams) -> Wish:
    """Read a handshake's query; raise `invalid` that names the parameter. Unknown parameters are not looked at."""
    types, symbols = _listed(query.get("types")), _listed(query.get("symbols"))
    batch = _TRUTH.get(query.get("batch", "false").lower())
    if batch is None:
        raise CommandError("invalid", "batch must be true or false", {"field": "batch"})
    return Wish(_interest(types, symbols, query.get("level")), read_after(query.get("after")), batch)


def read_subscribe(text: str | None) -> Interest:
    """Read a client's message; raise `invalid` with a sentence for anything but a subscribe action."""
    if text is None:
        raise CommandError("invalid", "a message must be text, not bytes")
    values = read_object(text.encode("utf-8", "surrogatepass"))
    if values.get("action") != "subscribe":
        raise CommandError(
            "invalid", 'only {"action": "subscribe", ...} is understood; commands go to REST or MQTT'
        )
    try:
        wish = Subscribe.model_validate(values)
    except ValidationError as error:
        raise CommandError("invalid", "; ".join(str(each) for each in problems(error, values))) from error
    return _interest(wish.types, wish.symbols, wish.level)


def wants(interest: Interest, envelope: Mapping[str, Any]) -> bool:
    """Tell whether a durable event that was read back from the journal is of interest."""
    if interest.types is not None and envelope["type"] not in interest.types:
        return False
    if interest.symbols is not None and envelope["type"] == "trade_event":
        return envelope["data"]["symbol"] in interest.symbols
    return True


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _interest(types: Collection[str] | None, symbols: Collection[str] | None, level: str | None) -> Interest:
    if types is not None and (not types or not set(types) <= set(EVENT_TYPES)):
        raise _invalid("types", f"must name some of {', '.join(EVENT_TYPES)}; leave it out for all")
    if symbols is not None and (not symbols or not all(_SYMBOL.fullmatch(symbol) for symbol in symbols)):
        raise _invalid("symbols", f"must name symbols that match {SYMBOL_PATTERN}; leave it out for all")
    if level is not None and level not in LOG_LEVELS:
        raise _invalid("level", f"must be one of {', '.join(LOG_LEVELS)}")
    return Interest(
        None if types is None else frozenset(cast("Collection[EventType]", types)),
        None if symbols is None else frozenset(symbols),
        level or "info",
    )


def _invalid(field: str, message: str) -> CommandError:
    return CommandError("invalid", f"{field} {message}", {"field": field})

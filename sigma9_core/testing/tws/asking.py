"""The control as plain data: what another thread or process can ask of the peer, and what it is answered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from sigma9_core.testing.tws.contracts import Details
from sigma9_core.testing.tws.faults import Armed
from sigma9_core.testing.tws.requests import Request
from sigma9_core.testing.tws.server import FakeTws
from sigma9_core.testing.tws.tickets import Execution, Ticket

METHODS: Final = frozenset(
    (
        *("add_contract", "set_price", "halt", "set_shortable", "subscribe_data", "open_market", "close_market"),
        *("wander", "new_day", "orders", "order", "fill", "hold_fills", "cancel", "reject", "place_foreign"),
        *("hold_order", "let_go", "set_currency", "set_value"),
        *("place_manual", "set_position", "set_cash", "arm", "disarm", "say", "lose_link"),
        *("regain_link", "flap_farms", "drop", "mute", "requests", "state", "go_away", "come_back", "restart"),
    )
)
"""Methods of `FakeTws` that can be asked for by name."""
MORE: Final[Mapping[str, Callable[..., Any]]] = {
    "received": lambda tws: tws.received,
    "advance": lambda tws, seconds: tws.clock.advance(seconds),
    "correct": lambda tws, number, price, quantity=None: tws.correct(tws.book.executions[number], price, quantity),
}
"""What can be asked for besides."""


async def asked(tws: FakeTws, what: str, more: Mapping[str, Any]) -> Any:
    """Do what is asked for, and give the answer as plain data; raise KeyError for what there is not."""
    if what in MORE:
        return plain(MORE[what](tws, **more))
    if what not in METHODS:
        raise KeyError(f"nothing is called {what!r}: there are {sorted(METHODS | set(MORE))}")
    answer = getattr(tws, what)(**more)
    return plain(await answer if inspect.isawaitable(answer) else answer)


def plain(value: Any) -> Any:
    """Show an answer as plain data."""
    match value:
        case Ticket() | Execution():
            return value.shown()
        case Details():
            return value.contract.shown()
        case Request():
            return {"client_id": value.client_id, "name": value.name, "text": str(value), **value.values}
        case Armed():
            return value.kind.name
        case list() | tuple():
            return [plain(each) for each in value]
    return value

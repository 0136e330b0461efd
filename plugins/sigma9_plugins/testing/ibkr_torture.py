"""The crash torture with Interactive Brokers as the broker: the TWS peer lives on, and the plugin dies."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from sigma9_core.money import link
from sigma9_core.testing.exchange.control import ExchangeProcess
from sigma9_core.testing.torture import plugin
from sigma9_core.testing.torture.points import POINTS, Fuse, Point, after, before
from sigma9_core.testing.torture.sides import Settings, Side
from sigma9_plugins.brokers.ibkr import broker, lanes, orders
from sigma9_plugins.brokers.ibkr.book import Known
from sigma9_plugins.brokers.ibkr.executions import LIVE, Executions
from sigma9_plugins.brokers.ibkr.ids import OrderNumbers
from sigma9_plugins.brokers.ibkr.orders import Orders
from sigma9_plugins.brokers.ibkr.wire import Wire

Calls = tuple[tuple[str, tuple[Any, ...]], ...]

SOURCE: Final = """
from sigma9_core.testing.torture.plugin import register_feeds, register_scanners, register_services
from sigma9_plugins.testing.ibkr_torture import prepare
prepare()
"""
"""The file in the plugin folder."""
PATIENCE: Final[Mapping[tuple[Any, str], object]] = {
    **plugin.PATIENCE,
    (link, "FIRST_WAIT"): 0.1,
    (lanes, "WINDOW"): 0.2,
    (broker, "LOOK_AFTER"): 0.1,
    (broker, "LOOK_AGAIN"): 0.3,
    (orders, "STUCK_AFTER"): 0.5,
}
RATES: Final[Mapping[str, float]] = {
    "reject": 0.03,
    "lost-order": 0.02,
    "lost-ack": 0.03,
    "late-ack": 0.03,
    "death-after-accept": 0.01,
    "modify-rejected": 0.03,
    "modify-lost": 0.03,
    "cancel-refused": 0.03,
    "cancel-lost": 0.03,
    "cancel-late": 0.05,
    "doubled-status": 0.1,
    "late-execution": 0.06,
    "doubled-execution": 0.06,
    "lost-execution": 0.04,
    "late-commission": 0.05,
    "lost-commission": 0.04,
    "partial-fills": 0.15,
    "code-399": 0.03,
    "code-2109": 0.02,
    "cancel": 0.004,
    "correct": 0.02,
    "outage": 0.006,
    "cut": 0.003,
    "mute": 0.001,
    "flap": 0.01,
    "restart": 0.0015,
    "late": 0.25,
}
"""Faults of the peer by their names, at each message that they can strike, and accidents, at each step."""


def prepare() -> None:
    """Lay the fuse that this life has, and shorten the waits."""
    plugin.prepare(FUSES, PATIENCE)


def _orders(_wire: Wire, calls: Calls) -> bool:
    return any(name == "placeOrder" for name, _ in calls)


def _first_word(_orders: Orders, known: Known, *_: Any) -> bool:
    return not known.acknowledged


def _live(_executions: Executions, request: int, *_: Any, **_more: Any) -> bool:
    return request == LIVE


def _half_sent(fuse: Fuse) -> None:
    """Burn in the middle of an order, or of a unit of them: half of it has left."""
    inner = Wire._send  # noqa: SLF001 - a hook from outside

    @functools.wraps(inner)
    def send(wire: Wire, calls: Calls) -> None:
        if _orders(wire, calls) and fuse.last():
            connection = wire._client.conn  # noqa: SLF001 - see above
            whole = connection.sendMsg

            def half(data: bytes) -> None:
                whole(data[: len(data) // 2])
                fuse.die()

            connection.sendMsg = half
        inner(wire, calls)

    setattr(Wire, "_send", send)  # noqa: B010 - see above


FUSES: Final[Mapping[str, Point]] = {
    **POINTS,
    "before the send": Point("intent and send", before(Wire, "_send", _orders)),
    "half of the send": Point("send and answer", _half_sent),
    "behind the send": Point("send and answer", after(Wire, "_send", _orders)),
    "answer come": Point("send and answer", before(Orders, "_acknowledge", _first_word)),
    "change sent": Point("send and answer", after(Orders, "replace"), 4, "changes"),
    "cancel sent": Point("send and answer", after(Orders, "cancel"), 4, "changes"),
    "execution heard": Point("fill and journal", before(Executions, "on_execution", _live)),
    "fill without its commission": Point("fill and journal", after(Executions, "on_execution", _live)),
    "order ids reserved": Point("recovery", before(OrderNumbers, "reserve"), 1, "nothing"),
}
"""The places to die at: those of the money path, and those of the plugin where the exchange has its own."""


def _settings(venue: ExchangeProcess) -> Settings:
    server = {
        "broker": "ibkr",
        "ibkr": {"host": "127.0.0.1", "port": venue.ask("gateway"), "client_id": 1, "auto_connect": True},
    }
    quick = {
        "connect_seconds": 1.0,
        "answer_seconds": 1.0,
        "probe_seconds": 0.3,
        "client_id_seconds": 2.0,
        "commission_seconds": 0.05,
    }
    return server, {"ibkr": quick}


IBKR: Final = Side(
    venue="sigma9_core.testing.torture.gateway",
    source=SOURCE,
    settings=_settings,
    rates=RATES,
    points=FUSES,
)

__all__ = ["IBKR", "prepare"]

"""Every topic of a node, as a table (contract 1), and the addresses made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sigma9_core.events import EventData

QoS = Literal[0, 1]


@dataclass(frozen=True, slots=True)
class TopicRow:
    """One row of the table; `{p}` stands for `{base}/{node}`, another name in braces for one level."""

    pattern: str
    retained: bool
    qos: QoS
    payload: str


TABLE: Final[tuple[TopicRow, ...]] = (
    TopicRow("{p}/availability", True, 1, "online, or offline: also the last will"),
    TopicRow("{p}/state/status", True, 1, "the body of GET /api/status, at most once a second"),
    TopicRow("{p}/state/kill_switch", True, 1, "the kill switch: latch, phase, scopes, what is pending"),
    TopicRow("{p}/state/account", True, 1, "equity, cash, buying power and results"),
    TopicRow("{p}/state/positions", True, 1, "all positions"),
    TopicRow("{p}/state/position/{symbol}", True, 1, "one position; removed when it is flat"),
    TopicRow("{p}/state/orders", True, 1, "all open orders"),
    TopicRow("{p}/state/watchlist", True, 1, "the watchlist"),
    TopicRow("{p}/state/quote/{symbol}", True, 0, "the last market data of a symbol, at most once a second"),
    TopicRow("{p}/state/risk", True, 1, "every risk rule's use against its limit"),
    TopicRow("{p}/state/plugins", True, 1, "every plugin and how it is"),
    TopicRow("{p}/state/schedule", True, 1, "every job with its last and next run"),
    TopicRow("{p}/event/market_data/{symbol}", False, 0, "event envelope"),
    TopicRow("{p}/event/trade_event/{event}", False, 1, "event envelope"),
    TopicRow("{p}/event/watchlist_update", False, 1, "event envelope"),
    TopicRow("{p}/event/log/{level}", False, 0, "event envelope"),
    TopicRow("{p}/event/status_update", False, 1, "event envelope"),
    TopicRow("{p}/command/{name}", False, 1, "a command for this node: never retained"),
    TopicRow("{base}/all/command/{name}", False, 1, "a command for every node on the broker: never retained"),
    TopicRow("{p}/response/{name}", False, 1, "a command's answer"),
    TopicRow(
        "{base}/reply/{any}", False, 1, "a command's answer, where an MQTT 5 request names this response topic"
    ),
)

KILL: Final = "kill_switch"
"""The command that has a connection of its own."""

_DETAIL: Final[Mapping[str, str]] = {"market_data": "symbol", "trade_event": "event", "log": "level"}
"""The field of an event's data that is the last level of its topic."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a command arrived: its name, and whether the topic is the node's own or everybody's."""

    name: str
    own: bool


class Topics:
    """The addresses of one node."""

    def __init__(self, base: str, node: str) -> None:
        self.base = base
        self.node = node
        self.prefix = f"{base}/{node}"
        self.availability = f"{self.prefix}/availability"
        self.states = f"{self.prefix}/state/#"
        self.commands = (f"{self.prefix}/command/+", f"{base}/all/command/+")
        self.kills = (f"{self.prefix}/command/{KILL}", f"{base}/all/command/{KILL}")

    def state(self, name: str) -> str:
        """Give the topic of a board name, such as `positions` or `position/AAPL`."""
        return f"{self.prefix}/state/{name}"

    def state_name(self, topic: str) -> str | None:
        """Give the board name of a state topic, None for another topic."""
        head = f"{self.prefix}/state/"
        return topic.removeprefix(head) if topic.startswith(head) else None

    def state_qos(self, name: str) -> QoS:
        """Give the quality of service of a board name."""
        return 0 if name.startswith("quote/") else 1

    def event(self, kind: str, data: Mapping[str, Any] | EventData) -> str:
        """Give the topic of an event from its type and its data, or from those as they stand in an envelope."""
        field = _DETAIL.get(kind)
        if field is None:
            return f"{self.prefix}/event/{kind}"
        last = data[field] if isinstance(data, Mapping) else getattr(data, field)
        return f"{self.prefix}/event/{kind}/{last}"

    def command(self, name: str) -> str:
        """Give the node's own topic of a command."""
        return f"{self.prefix}/command/{name}"

    def response(self, name: str) -> str:
        """Give the topic of a command's answers."""
        return f"{self.prefix}/response/{name}"

    def address(self, topic: str) -> Address | None:
        """Tell which command a topic means, None where it means none."""
        for head, own in ((f"{self.prefix}/command/", True), (f"{self.base}/all/command/", False)):
            name = topic.removeprefix(head)
            if name != topic and name and "/" not in name:
                return Address(name, own)
        return None

    def may_reply(self, topic: str) -> bool:
        """Tell whether a response topic lies below `{base}/reply/`, where answers may be sent."""
        head = f"{self.base}/reply/"
        return (
            topic.startswith(head)
            and len(topic) > len(head)
            and not any(sign in topic for sign in "+#\0")
            and len(topic.encode()) <= 65535
        )

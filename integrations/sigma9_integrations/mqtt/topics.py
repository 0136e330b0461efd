"""Every topic of a node, as a table (contract 1), and the addresses made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sigma9_core.events import EventData

QoS = Literal[0, 1]


Body = Literal[
    "availability", "Status", "KillSwitch", "Account", "Positions", "Position", "Orders", "Watchlist", "MarketData",
    "Risk", "Plugins", "Schedule", "market_data", "trade_event", "watchlist_update", "log", "status_update",
    "command", "response", "discovery", "birth",
]  # fmt: skip
"""What a payload is: a text, the name of a body's model, an event type, or a side of a command."""


@dataclass(frozen=True, slots=True)
class TopicRow:
    """One row of the table; `{p}` stands for `{base}/{node}`, another name in braces for one level or more."""

    key: str
    """What the AsyncAPI document calls the channel."""
    pattern: str
    retained: bool
    qos: QoS
    body: Body
    payload: str
    sent: bool = True
    """The node publishes it; False: it listens there."""
    removed: bool = False
    """An empty retained payload takes the topic away once it no longer applies."""


TABLE: Final[tuple[TopicRow, ...]] = (
    TopicRow("availability", "{p}/availability", True, 1, "availability", "online, or offline: also the last will"),
    TopicRow("state_status", "{p}/state/status", True, 1, "Status", "the body of GET /api/status, at most once a second"),
    TopicRow("state_kill_switch", "{p}/state/kill_switch", True, 1, "KillSwitch", "the kill switch: latch, phase, scopes, what is pending"),
    TopicRow("state_account", "{p}/state/account", True, 1, "Account", "equity, cash, buying power and results"),
    TopicRow("state_positions", "{p}/state/positions", True, 1, "Positions", "all positions"),
    TopicRow("state_position", "{p}/state/position/{symbol}", True, 1, "Position", "one position; removed when it is flat", removed=True),
    TopicRow("state_orders", "{p}/state/orders", True, 1, "Orders", "all open orders"),
    TopicRow("state_watchlist", "{p}/state/watchlist", True, 1, "Watchlist", "the watchlist"),
    TopicRow("state_quote", "{p}/state/quote/{symbol}", True, 0, "MarketData", "the last market data of a symbol that is watched or held, at most once a second", removed=True),
    TopicRow("state_risk", "{p}/state/risk", True, 1, "Risk", "every risk rule's use against its limit"),
    TopicRow("state_plugins", "{p}/state/plugins", True, 1, "Plugins", "every plugin and how it is"),
    TopicRow("state_schedule", "{p}/state/schedule", True, 1, "Schedule", "every job with its last and next run"),
    TopicRow("event_market_data", "{p}/event/market_data/{symbol}", False, 0, "market_data", "event envelope"),
    TopicRow("event_trade_event", "{p}/event/trade_event/{event}", False, 1, "trade_event", "event envelope"),
    TopicRow("event_watchlist_update", "{p}/event/watchlist_update", False, 1, "watchlist_update", "event envelope"),
    TopicRow("event_log", "{p}/event/log/{level}", False, 0, "log", "event envelope"),
    TopicRow("event_status_update", "{p}/event/status_update", False, 1, "status_update", "event envelope"),
    TopicRow("command", "{p}/command/{name}", False, 1, "command", "a command for this node: never retained", sent=False),
    TopicRow("command_all", "{base}/all/command/{name}", False, 1, "command", "a command for every node on the broker: never retained", sent=False),
    TopicRow("response", "{p}/response/{name}", False, 1, "response", "a command's answer"),
    TopicRow("reply", "{base}/reply/{any}", False, 1, "response", "a command's answer, where an MQTT 5 request names this response topic"),
)  # fmt: skip
"""Everything below `{base}`: `tests/integrations/mqtt` holds the addresses, docs/mqtt.md and AsyncAPI to it."""

DISCOVERY: Final[tuple[TopicRow, ...]] = (
    TopicRow("discovery_device", "{prefix}/device/{id}/config", True, 1, "discovery", "the node as a device of Home Assistant", removed=True),
    TopicRow("discovery_entity", "{prefix}/{platform}/{id}/{object}/config", True, 1, "discovery", "one entity of Home Assistant, where it is told of each alone", removed=True),
    TopicRow("discovery_birth", "{prefix}/status", False, 1, "birth", "Home Assistant has come up: it is told everything again", sent=False),
)  # fmt: skip
"""What is below Home Assistant's prefix."""

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

    def fill(self, pattern: str, prefix: str = "homeassistant") -> str:
        """Put this node into a pattern of the table; what changes from message to message stays in its braces."""
        known = {"{p}": self.prefix, "{base}": self.base, "{prefix}": prefix, "{id}": f"sigma9_{self.node}"}
        for name, value in known.items():
            pattern = pattern.replace(name, value)
        return pattern

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

"""A connected client: how to reach it, and what it has asked to hear of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from sigma9_core.testing.tws.answers import shown
from sigma9_core.testing.tws.wire import Message, encode

MANY: Final = frozenset(("6", "63", "73"))
"""Messages that come by the dozen: the log has the first."""

KEPT: Final = 200_000
"""How many messages are remembered, at most, where a peer runs for days."""


def forget(remembered: list[Any]) -> None:
    """Drop the older half of what is remembered when it is too much."""
    if len(remembered) > KEPT:
        del remembered[: KEPT // 2]


@dataclass(eq=False, slots=True)
class Client:
    """A connected client, and what it wants to hear of."""

    number: int
    """The how-manieth connection it is."""
    write: Callable[[bytes], None]
    hang_up: Callable[[bool], None]
    """Closes: at once, or when everything has been sent."""
    log: Callable[[str], None]
    client_id: int = -1
    ready: bool = False
    """It has said its client id."""
    offered: str = ""
    """The versions that it has offered."""
    muted: bool = False
    """Nothing reaches it, and nothing is read from it."""
    held: list[Message] | None = None
    """What is sent goes here, where it is not to leave yet."""
    binds: bool = False
    """It wants the orders by hand."""
    positions: bool = False
    accounts: set[str] = field(default_factory=set)
    multi: dict[int, str] = field(default_factory=dict)
    pnl: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Account and contract by request; contract 0 for the account as a whole."""
    data_type: int = 1
    """1 live, 2 frozen, 3 delayed, 4 delayed and frozen."""
    highest: int = 0
    """The highest order id that it was told of any client's order: its new orders must lie above."""
    strikes: int = 0
    """How often it has been too fast."""
    times: list[float] = field(default_factory=list)
    """When its newest messages came."""
    values: dict[Message, str] = field(default_factory=dict)
    """The account values that it was told last."""
    sent: list[Message] = field(default_factory=list)

    def close(self, *, at_once: bool = False) -> None:
        """Close the connection; nothing more is read from it."""
        self.ready, self.muted = False, True
        self.hang_up(at_once)

    def send(self, *messages: Message) -> None:
        """Send messages, unless it is muted."""
        if self.held is not None:
            self.held.extend(messages)
            return
        if self.muted:
            return
        forget(self.sent)
        before = ""
        for each in messages:
            self.sent.append(each)
            if each[0] != before or each[0] not in MANY:
                self.log(f"#{self.number}/{self.client_id} < {shown(each)}")
            elif each is messages[-1]:
                self.log(f"#{self.number}/{self.client_id} < ... {len(messages)} in all")
            before = each[0]
            self.write(encode(each))

    def news(self, messages: list[Message]) -> list[Message]:
        """Give the values among these that it has not been told yet."""
        fresh = []
        for each in messages:
            at = 3 if each[0] == "6" else 6
            key = (*each[:at], *each[at + 1 :])
            if self.values.get(key) != each[at]:
                self.values[key] = each[at]
                fresh.append(each)
        return fresh

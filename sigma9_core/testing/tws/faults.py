"""What can go wrong, by name: armed for the next few matching messages, by a seeded chance, or switched on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Where = Literal[
    "connection",
    "start",
    "place",
    "modify",
    "cancel",
    "order",
    "fill",
    "status",
    "list",
    "history",
    "data",
    "any",
    "what-if",
]
"""What a fault strikes: a new connection, startApi, a new order, a change, a cancel, the answer to an order, a
fill, an order status, an order in a list of open ones, a request for history (or bars) or for market data, any
message of a client, a what-if."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault."""

    name: str
    where: Where
    about: str
    code: int = 0
    text: str = ""


WARNINGS: Final[Mapping[int, tuple[Where, str]]] = {
    104: ("modify", "Cannot modify a filled order."),
    105: ("modify", "Order being modified does not match original order"),
    110: ("order", "The price does not conform to the minimum price variation for this contract."),
    161: ("cancel", "Cancel attempted when order is not in a cancellable state. Order permId ="),
    321: ("order", "Error validating request.-'bW' : cause - The account does not have trading permissions."),
    399: (
        "order",
        "Order Message:\nWarning: your order will not be placed at the exchange until the market opens",
    ),
    404: ("order", "Order held while securities are located."),
    434: ("order", "The order size cannot be zero."),
    463: ("order", "You must enter a valid price."),
    2109: ("order", "Order Event Warning: Attribute 'Outside Regular Trading Hours' is ignored"),
    10147: ("cancel", "OrderId {order_id} that needs to be cancelled is not found."),
    10148: ("cancel", "OrderId {order_id} that needs to be cancelled cannot be cancelled, state: PendingSubmit."),
    10311: (
        "order",
        "This order will be directly routed to NASDAQ. Direct routed orders may result in higher trade fees.",
    ),
    10349: ("order", "Order TIF was set to DAY based on order preset."),
}
"""Codes that are sent about an order which works on, when each comes, and its text."""
WHEN: Final = {
    "order": "comes after an order is accepted",
    "modify": "answers a change, which is not made",
    "cancel": "answers a cancel, which is not done",
}
PLAIN: Final = (
    Kind(
        "reject",
        "place",
        "A new order is rejected: error 201 with `text`, and the status Inactive.",
        201,
        "Order rejected - reason:fake",
    ),
    Kind(
        "locate-hold",
        "place",
        "A new order is held: code 404, and the status Inactive. It works after `seconds` (2).",
        404,
        WARNINGS[404][1],
    ),
    Kind("lost-order", "place", "A new order is swallowed: it is not in the book, and nothing is answered."),
    Kind("lost-ack", "place", "A new order works, and nothing is told of it until a client reads it back."),
    Kind("late-ack", "place", "A new order works, and nothing is told of it for `seconds` (2)."),
    Kind("death-after-accept", "place", "The connection dies right after a new order was taken, unanswered."),
    Kind(
        "modify-rejected",
        "modify",
        "A change gets error 201; the order works on as it was.",
        201,
        "Order rejected - reason:fake",
    ),
    Kind(
        "read-only",
        "place",
        "A new order is refused with error 321, as by a gateway whose API is read-only.",
        321,
        "Error validating request.-'bW' : cause - The API interface is currently in Read-Only mode.",
    ),
    Kind(
        "what-if-remark",
        "what-if",
        "A what-if gets code 399, or `code` with `text`, ahead of its answer.",
        399,
        WARNINGS[399][1],
    ),
    Kind("modify-untold", "modify", "A change is made, and nothing is told of it until a client reads it back."),
    Kind("modify-lost", "modify", "A change is swallowed: the order works on as it was."),
    Kind("cancel-refused", "cancel", "A cancel gets error 10148; the order works on.", 10148, WARNINGS[10148][1]),
    Kind("cancel-lost", "cancel", "A cancel is swallowed: the order works on."),
    Kind(
        "cancel-late", "cancel", "A cancel is done `seconds` (2) later; until then the order works, and can fill."
    ),
    Kind(
        "link-lost",
        "any",
        "The link behind the gateway is lost (1100): orders wait, the market goes on. Back after `seconds`.",
    ),
    Kind("link-back", "any", "The link is back and data was kept (1102): what happened meanwhile is told."),
    Kind(
        "link-back-data-lost",
        "any",
        "The link is back and data was lost (1101): market data must be asked for again.",
    ),
    Kind("farm-flap", "any", "Data farms go and come back: 2103, 2105, 2157, then 2104, 2106, 2158."),
    Kind(
        "nightly-restart", "any", "The gateway restarts: connections close, for `seconds`; order ids begin again."
    ),
    Kind("client-id-in-use", "start", "The client id is in use: error 326, then the connection closes."),
    Kind("silent-handshake", "connection", "The connection is taken, and the handshake never answered."),
    Kind("closed-at-once", "connection", "The connection is taken and closed."),
    Kind("half-open", "any", "The connection goes deaf and mute, and stays up."),
    Kind("rate-limit", "any", "A gateway's limit of 50 messages a second holds: error 100, the third closes."),
    Kind("pacing-violation", "any", "This message breaks the limit of messages: error 100, the third closes."),
    Kind("doubled-status", "status", "An order status comes twice."),
    Kind("open-order-hidden", "list", "An order that works is left out of a list of open orders."),
    Kind(
        "rejected-listed",
        "list",
        "While armed, rejected orders stay in the lists of open orders, Inactive, and are not completed.",
    ),
    Kind("late-execution", "fill", "An execution is told `seconds` (2) after the order's new status."),
    Kind("doubled-execution", "fill", "An execution comes twice, with the same id."),
    Kind("lost-execution", "fill", "An execution is not told live; reqExecutions has it."),
    Kind(
        "later-execution",
        "fill",
        "An execution comes neither live nor by reqExecutions for `seconds` (2); then reqExecutions has it.",
    ),
    Kind("late-commission", "fill", "A commission report comes `seconds` (2) late."),
    Kind("lost-commission", "fill", "A commission report does not come live; reqExecutions brings it."),
    Kind("partial-fills", "fill", "A fill comes in `parts` (2) executions."),
    Kind("unanswered", "any", "A request is swallowed; `request` says which one."),
    Kind(
        "refused",
        "any",
        "A request is refused: error `code` (321) and `text`, and nothing else; `request` says which one.",
        321,
        "Error validating request: refused.",
    ),
    Kind(
        "late-answer",
        "any",
        "Half of an answer comes at once, the rest `seconds` (2) later; `request` says to what.",
    ),
    Kind(
        "history-pacing",
        "history",
        "History is refused: error 162, pacing.",
        162,
        "Historical Market Data Service error message:Historical data request pacing violation",
    ),
    Kind(
        "history-empty",
        "history",
        "There is no history: error 162.",
        162,
        "Historical Market Data Service error message:HMDS query returned no data",
    ),
    Kind("history-limits", "history", "IB's limits of history hold: as `history-pacing` where one is broken."),
    Kind("history-unanswered", "history", "A request for history is never answered."),
    Kind(
        "bars-pacing",
        "history",
        "Bars of five seconds are refused: error 420, pacing.",
        420,
        "Invalid Real-time Query:Historical data request pacing violation",
    ),
    Kind(
        "no-market-data",
        "data",
        "Live data is not subscribed: error 10089, and only delayed data comes.",
        10089,
        "Requested market data requires additional subscription for API. Delayed market data is available.",
    ),
)
KINDS: Final[Mapping[str, Kind]] = {
    each.name: each
    for each in (
        *PLAIN,
        *(
            Kind(f"code-{code}", where, f"Code {code} {WHEN[where]}; the order works on.", code, text)
            for code, (where, text) in WARNINGS.items()
        ),
    )
}
"""Every fault by its name."""


@dataclass(eq=False, slots=True)
class Armed:
    """A fault that waits for its moment."""

    kind: Kind
    times: int | None
    """How often it may still strike; None: always."""
    chance: float = 1.0
    match: dict[str, Any] = field(default_factory=dict)
    """What it strikes alone: `symbol`, `order_ref`, `client_id`, `request` (its name)."""
    options: dict[str, Any] = field(default_factory=dict)

    def option(self, name: str, default: float) -> float:
        """Give a number that was named when it was armed."""
        return float(self.options.get(name, default))


MATCHES: Final = frozenset(("symbol", "order_ref", "client_id", "request"))
OPTIONS: Final = frozenset(("seconds", "parts", "text", "code"))


class Faults:
    """The armed faults, and what has happened; each kind has a stream of chance of its own."""

    def __init__(self, seed: int = 0) -> None:
        self.armed: list[Armed] = []
        self.happened: Counter[str] = Counter()
        self._seed = seed
        self._streams: dict[str, random.Random] = {}

    def arm(self, name: str, times: int | None = 1, chance: float = 1.0, **more: Any) -> Armed:
        """Arm a fault; raise KeyError for an unknown one, or for an unknown option."""
        if name not in KINDS:
            raise KeyError(f"no fault is called {name!r}: `sigma9 fake-tws --list-faults` lists them")
        if unknown := sorted(set(more) - MATCHES - OPTIONS):
            raise KeyError(f"no fault has the option {unknown[0]!r}: there are {sorted(MATCHES | OPTIONS)}")
        match = {key: value for key, value in more.items() if key in MATCHES}
        armed = Armed(KINDS[name], times, chance, match, {k: v for k, v in more.items() if k not in MATCHES})
        self.armed.append(armed)
        return armed

    def arm_as_told(self, told: str) -> Armed:
        """Arm a fault as the command line has it: `NAME`, `NAME:3`, `NAME:0.1`, `NAME:always`, more behind commas.

        Raise ValueError where it is not understood.
        """
        head, *pairs = told.split(",")
        name, _, often = head.partition(":")
        more: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals:
                raise ValueError(f"{pair!r} is not KEY=VALUE")
            more[key] = int(value) if key == "client_id" else value
        try:
            if often == "always":
                return self.arm(name, None, **more)
            if "." in often:
                return self.arm(name, None, float(often), **more)
            return self.arm(name, int(often or 1), **more)
        except KeyError as problem:
            raise ValueError(problem.args[0]) from None

    def disarm(self, name: str | None = None) -> None:
        """Take back a fault of that name, or all."""
        self.armed = [each for each in self.armed if name is not None and each.kind.name != name]

    def on(self, name: str) -> bool:
        """Tell whether a fault is armed."""
        return any(each.kind.name == name for each in self.armed)

    def strike(self, where: Where, *names: str, **about: Any) -> Armed | None:
        """Give the fault that strikes here, the oldest first; None where nothing goes wrong."""
        for each in self.armed:
            if each.kind.where != where or (names and each.kind.name not in names):
                continue
            if any(about.get(key) != value for key, value in each.match.items()):
                continue
            if each.chance < 1 and self._stream(each.kind.name).random() >= each.chance:
                continue
            if each.times is not None:
                each.times -= 1
                if each.times <= 0:
                    self.armed.remove(each)
            self.happened[each.kind.name] += 1
            return each
        return None

    def _stream(self, name: str) -> random.Random:
        if name not in self._streams:
            self._streams[name] = random.Random(f"{self._seed}-{name}")  # noqa: S311 - repeatable on purpose
        return self._streams[name]

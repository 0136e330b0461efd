"""The table of IB's codes: what each means, and what is done about it. Only this module decides by a code.

A code is no order status. An order that was acknowledged dies by an order status or a read-back alone; a code says
at most where to look. What is not in the table about an order is a doubt, and is read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Meaning = Literal[
    "link_down",
    "link_back",
    "link_back_lost",
    "farm_down",
    "farm_up",
    "client_id_in_use",
    "not_connected",
    "too_fast",
    "history",
    "market_data",
    "doubt",
    "used_id",
    "no_order",
    "cancelled",
    "invalid",
    "warning",
    "notice",
]
"""`no_order` is final for an order that was never acknowledged. An `invalid` and a `warning` say nothing of one
that was; an `invalid` may be all that is told of a change that was not made."""
Action = Literal[
    "mark_down",
    "reconcile",
    "resubscribe",
    "mark_data_down",
    "mark_data_up",
    "other_client_id",
    "connect_again",
    "slow_down",
    "fail_request",
    "read_back",
    "ask_for_ids",
    "reject",
    "keep_change_off",
    "await_status",
    "log",
]


@dataclass(frozen=True, slots=True)
class Code:
    """One row."""

    number: int
    meaning: Meaning
    text: str


_ROWS: Final = (
    Code(1100, "link_down", "TWS has lost IB's servers; the socket stays up"),
    Code(2110, "link_down", "TWS has lost IB's servers; it comes back by itself"),
    Code(1102, "link_back", "TWS has IB's servers again, and the data were kept"),
    Code(1101, "link_back_lost", "TWS has IB's servers again, and the data were lost"),
    Code(2103, "farm_down", "a market data farm is away"),
    Code(2105, "farm_down", "a historical data farm is away"),
    Code(2157, "farm_down", "the security definition farm is away"),
    Code(2104, "farm_up", "a market data farm is there"),
    Code(2106, "farm_up", "a historical data farm is there"),
    Code(2158, "farm_up", "the security definition farm is there"),
    Code(2107, "notice", "a historical data farm sleeps until it is asked"),
    Code(2108, "notice", "a market data farm sleeps until it is asked"),
    Code(2119, "notice", "a market data farm is being connected"),
    Code(2100, "notice", "account updates go elsewhere from here on"),
    Code(326, "client_id_in_use", "the client id is in use"),
    Code(502, "not_connected", "TWS can't be reached"),
    Code(504, "not_connected", "not connected"),
    Code(507, "not_connected", "the socket is broken"),
    Code(1300, "not_connected", "TWS listens on another port"),
    Code(100, "too_fast", "more than 50 messages a second; the third time closes the socket"),
    Code(162, "history", "historical data: too fast, or there are none"),
    Code(366, "history", "historical data: no such question"),
    Code(420, "history", "real-time bars: too fast, or not allowed"),
    Code(101, "market_data", "more symbols than the market data lines of the account"),
    Code(354, "market_data", "no subscription to these market data"),
    Code(10089, "market_data", "these market data want another subscription; delayed ones are there"),
    Code(10090, "market_data", "a part of these market data wants another subscription"),
    Code(10167, "market_data", "no subscription: delayed data are given"),
    Code(10168, "market_data", "no subscription, and delayed data are not switched on"),
    Code(10197, "market_data", "another session of the same user has the market data"),
    Code(103, "used_id", "the order id was used before, or lies below one that this client was told"),
    Code(104, "doubt", "a change of an order that has filled or is being cancelled"),
    Code(105, "doubt", "a change does not match the order"),
    Code(135, "doubt", "the order id is not known"),
    Code(136, "doubt", "the order can't be cancelled now"),
    Code(161, "doubt", "the order is in no state to be cancelled"),
    Code(463, "doubt", "the stop price is not valid"),
    Code(10147, "doubt", "the order to cancel was not found"),
    Code(10148, "doubt", "the order can't be cancelled in its state"),
    Code(10311, "doubt", "direct routing wants a confirmation"),
    Code(200, "no_order", "there is no such contract"),
    Code(201, "no_order", "the order was rejected"),
    Code(203, "no_order", "the account may not trade this security"),
    Code(10289, "no_order", "cash quantity is not set up for the account"),
    Code(202, "cancelled", "the order was cancelled; a fill may still come"),
    Code(110, "invalid", "the price is off the tick"),
    Code(321, "invalid", "TWS does not understand a part of the request"),
    Code(399, "warning", "a note on the order, such as when it will be sent"),
    Code(404, "warning", "shares to borrow are being looked for"),
    Code(434, "invalid", "the order's size"),
    Code(2109, "warning", "outside regular hours is ignored for this order"),
    Code(10349, "warning", "the time in force was set by the order preset"),
)
TABLE: Final[Mapping[int, Code]] = {row.number: row for row in _ROWS}

FAILURES: Final = frozenset((321,))
"""Warnings on an order that are the end of any other question."""

_ACTIONS: Final[Mapping[Meaning, Action]] = {
    "link_down": "mark_down",
    "link_back": "reconcile",
    "link_back_lost": "resubscribe",
    "farm_down": "mark_data_down",
    "farm_up": "mark_data_up",
    "client_id_in_use": "other_client_id",
    "not_connected": "connect_again",
    "too_fast": "slow_down",
    "history": "fail_request",
    "market_data": "fail_request",
    "doubt": "read_back",
    "cancelled": "await_status",
    "notice": "log",
}


def action(number: int) -> Action:
    """Say what a code that is about no order asks for."""
    row = TABLE.get(number)
    return "log" if row is None else _ACTIONS.get(row.meaning, "log")


def order_action(number: int, *, acknowledged: bool, changing: bool) -> Action:
    """Say what a code about an order of ours asks for: of what was acknowledged none is final.

    A change that is refused leaves its order as it was, and whether it is still there is read back. Where a code
    leaves it open whether the change was made, the read-back's terms decide.
    """
    row = TABLE.get(number)
    match None if row is None else row.meaning:
        case "no_order":
            if changing:
                return "keep_change_off"
            return "read_back" if acknowledged else "reject"
        case "invalid":
            return "log" if acknowledged and not changing else "read_back"
        case "warning":
            return "log" if acknowledged else "read_back"
        case "cancelled":
            return "await_status"
        case "notice":
            return "log"
        case "used_id":
            return "ask_for_ids"
        case _:
            return "read_back"


UNCANCELLABLE: Final = frozenset((135, 136, 161, 10147, 10148))
"""There is no order to cancel, or it is in no state to be."""


def refuses(number: int, *, inactive: bool) -> bool:
    """Tell whether a code about an order says that IB does not take it, or, of an inactive one, has it no more.

    One that is inactive since IB has turned it down can't be cancelled any more; one that is held can.
    """
    row = TABLE.get(number)
    return (row is not None and row.meaning == "no_order") or (inactive and number in UNCANCELLABLE)


def request_fails(number: int) -> bool:
    """Tell whether a code about a question other than an order ends it without an answer."""
    row = TABLE.get(number)
    if row is None:
        return not 2100 <= number < 2200  # IB's range of warnings
    return (
        row.meaning in ("history", "market_data", "no_order", "doubt", "used_id", "not_connected")
        or number in FAILURES
    )


def says(number: int, text: str) -> str:
    """Put a code and IB's words into one clear clause."""
    words = " ".join(text.split())
    return f"{words or (TABLE[number].text if number in TABLE else 'no words')} (code {number})"

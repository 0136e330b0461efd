"""What clients ask: the table of requests, and a message read into names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sigma9_core.testing.tws.contracts import Contract
from sigma9_core.testing.tws.orders import WireOrder, read_order
from sigma9_core.testing.tws.wire import Cursor, Message, WireError, integer

TABLE: Final[Mapping[int, tuple[str, str]]] = {
    1: ("reqMktData", "version reqId CONTRACT LEGS NEUTRAL genericTicks snapshot regulatorySnapshot options"),
    2: ("cancelMktData", "version reqId"),
    3: ("placeOrder", ""),
    4: ("cancelOrder", "version orderId manualCancelTime"),
    5: ("reqOpenOrders", "version"),
    6: ("reqAccountUpdates", "version subscribe account"),
    7: ("reqExecutions", "version reqId clientId account time symbol secType exchange side"),
    8: ("reqIds", "version count"),
    9: ("reqContractDetails", "version reqId CONTRACT includeExpired secIdType secId issuerId"),
    14: ("setServerLogLevel", "version level"),
    15: ("reqAutoOpenOrders", "version bind"),
    16: ("reqAllOpenOrders", "version"),
    17: ("reqManagedAccts", "version"),
    20: (
        "reqHistoricalData",
        "reqId CONTRACT includeExpired end barSize duration useRTH whatToShow formatDate LEGS keepUpToDate opt",
    ),
    25: ("cancelHistoricalData", "version reqId"),
    49: ("reqCurrentTime", "version"),
    50: ("reqRealTimeBars", "version reqId CONTRACT barSize whatToShow useRTH options"),
    51: ("cancelRealTimeBars", "version reqId"),
    58: ("reqGlobalCancel", "version"),
    59: ("reqMarketDataType", "version type"),
    61: ("reqPositions", "version"),
    62: ("reqAccountSummary", "version reqId group tags"),
    63: ("cancelAccountSummary", "version reqId"),
    64: ("cancelPositions", "version"),
    71: ("startApi", "version clientId capabilities"),
    74: ("reqPositionsMulti", "version reqId account model"),
    75: ("cancelPositionsMulti", "version reqId"),
    76: ("reqAccountUpdatesMulti", "version reqId account model ledgerAndNLV"),
    77: ("cancelAccountUpdatesMulti", "version reqId"),
    81: ("reqMatchingSymbols", "reqId pattern"),
    87: ("reqHeadTimestamp", "reqId CONTRACT includeExpired useRTH whatToShow formatDate"),
    90: ("cancelHeadTimestamp", "reqId"),
    91: ("reqMarketRule", "ruleId"),
    92: ("reqPnL", "reqId account model"),
    93: ("cancelPnL", "reqId"),
    94: ("reqPnLSingle", "reqId account model conId"),
    95: ("cancelPnLSingle", "reqId"),
    99: ("reqCompletedOrders", "apiOnly"),
    104: ("reqUserInfo", "reqId"),
}
"""Number, name and fields of each request; words in capitals stand for several fields."""
NAMES: Final = frozenset(name for name, _ in TABLE.values())


@dataclass(frozen=True, slots=True)
class Request:
    """One message of a client."""

    client_id: int
    """-1 before startApi."""
    name: str
    raw: Message
    values: Mapping[str, str] = field(default_factory=dict)
    contract: Contract | None = None
    order: WireOrder | None = None
    order_id: int = 0

    def get(self, name: str) -> str:
        """Give a field; empty where there is none."""
        return self.values.get(name, "")

    def integer(self, name: str) -> int:
        """Give a field as a whole number."""
        return integer(self.get(name))

    @property
    def req_id(self) -> int:
        """Give the request's number, -1 where it has none."""
        return integer(self.values["reqId"]) if "reqId" in self.values else -1

    def __str__(self) -> str:
        """Say it in one line."""
        if self.order is not None and self.contract is not None:
            order = self.order
            shown = {
                name: order.get(name)
                for name in ("lmtPrice", "auxPrice", "tif", "ocaGroup", "account", "orderRef", "parentId")
                if order.get(name) not in ("", "0")
            }
            if not order.flag("transmit"):
                shown["transmit"] = "0"
            words = " ".join(f"{name}={value}" for name, value in shown.items())
            symbol = self.contract.symbol or self.contract.con_id
            head = f"{order.get('action')} {order.get('totalQuantity')} {symbol}"
            return f"placeOrder {self.order_id} {head} {order.get('orderType')} {words}"
        parts = [] if self.contract is None else [self.contract.symbol or f"conId={self.contract.con_id}"]
        parts += [f"{name}={value}" for name, value in self.values.items() if value and name != "version"]
        return " ".join((self.name, *parts))


def read_request(client_id: int, fields: Message) -> Request:
    """Read a message of a client; one of an unknown number is called `unknown`. Raise WireError."""
    if not fields:
        raise WireError("an empty message")
    name, layout = TABLE.get(integer(fields[0]), ("unknown", ""))
    cursor = Cursor(fields[1:])
    if name == "placeOrder":
        order_id, contract, order = read_order(cursor)
        values = {"orderId": str(order_id), **order.values}
        return Request(client_id, name, fields, values, contract, order, order_id)
    values, found = {}, None
    for word in layout.split():
        if word == "CONTRACT":
            found = Contract.read(cursor)
        elif word == "LEGS":
            if found is not None and found.sec_type == "BAG":
                cursor.take(4 * cursor.count())
        elif word == "NEUTRAL":
            if cursor.next() == "1":
                cursor.take(3)
        else:
            values[word] = cursor.next()
    return Request(client_id, name, fields, values, found, None, integer(values.get("orderId", "")))

"""The peer's world: the book and all that belongs to it, the clients, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import ROUND_DOWN, Decimal
from typing import Final

from sigma9_core.testing.tws.accounts import DOLLAR, Account, Accounts
from sigma9_core.testing.tws.answers import (
    commission_message,
    error,
    execution_message,
    order_message,
    portfolio_message,
    position_message,
    status_message,
)
from sigma9_core.testing.tws.book import Book
from sigma9_core.testing.tws.client import Client
from sigma9_core.testing.tws.clock import PeerClock
from sigma9_core.testing.tws.contracts import Contract, Contracts
from sigma9_core.testing.tws.faults import WARNINGS, Armed, Faults
from sigma9_core.testing.tws.market import Market
from sigma9_core.testing.tws.requests import Request
from sigma9_core.testing.tws.streaming import Streaming
from sigma9_core.testing.tws.tickets import Execution, Ticket
from sigma9_core.testing.tws.wire import Message, message

HEALTHY: Final = (
    (2104, "Market data farm connection is OK:usfarm"),
    (2106, "HMDS data farm connection is OK:ushmds"),
    (2158, "Sec-def data farm connection is OK:secdefnj"),
)
HELD: Final = "Order Message:\nWarning: your order will not be placed at the exchange until the market opens."
LOCATING: Final = WARNINGS[404][1]
BROKEN: Final = (
    (2103, "Market data farm connection is broken:usfarm"),
    (2105, "HMDS data farm connection is broken:ushmds"),
    (2157, "Sec-def data farm connection is broken:secdefnj"),
)


class World:
    """Everything that the peer is, without its sockets. It hears what becomes of orders, and tells the clients."""

    def __init__(
        self,
        *,
        accounts: Sequence[str],
        cash: Decimal,
        spread: Decimal,
        seed: int,
        clock: PeerClock,
        zone: str,
        master_client_id: int | None,
        first_order_id: int,
        live_data: bool = True,
        any_symbol: bool = False,
    ) -> None:
        self.clock = clock
        self.zone = zone
        self.master_client_id = master_client_id
        self.seed = seed
        self.contracts = Contracts()
        self.market = Market(self.contracts, spread)
        if any_symbol:
            self.contracts.made_up = lambda made: self.market.expect(made.contract.con_id)
        self.accounts = Accounts(tuple(accounts), cash)
        self.faults = Faults(seed)
        self.streaming = Streaming(self.contracts, self.market, self.faults, clock, zone=zone, seed=seed)
        self.streaming.live = live_data
        self.book = Book(self.accounts, self.market, clock, self, first_id=first_order_id)
        self.clients: list[Client] = []
        self.received: list[Request] = []
        self.link_up = True
        self.waiting: list[Callable[[], None]] = []
        """What is done when the link is back."""
        self.restart: Callable[[float], None] = lambda seconds: None

    # --- who hears ----------------------------------------------------------------------------------------------

    def ready(self) -> list[Client]:
        """List the clients that have said their id."""
        return [each for each in self.clients if each.ready]

    def hearers(self, ticket: Ticket) -> list[Client]:
        """List those who are told of an order: its own client, client 0 of orders by hand, and the master."""
        return [
            each for each in self.ready() if self.owns(each, ticket) or each.client_id == self.master_client_id
        ]

    def owns(self, client: Client, ticket: Ticket) -> bool:
        """Tell whether a client may change an order."""
        if client.client_id != ticket.client_id:
            return False
        return ticket.order_id != 0

    def tell(self, ticket: Ticket, *messages: Message) -> None:
        """Send messages about an order to those who hear of it."""
        for client in self.hearers(ticket):
            client.send(*messages)

    def tell_all(self, *messages: Message) -> None:
        """Send messages to every client."""
        for client in self.ready():
            client.send(*messages)

    def _when_up(self, action: Callable[[], None]) -> None:
        """Do something now, or once the link is back."""
        if self.link_up:
            action()
        else:
            self.waiting.append(action)

    # --- what becomes of orders (`book.Listener`) ---------------------------------------------------------------

    def accepted(self, ticket: Ticket) -> None:
        """Tell of an order that is in the book, and of what is remarkable about it."""
        self._bind(ticket)
        outside = self.book.outside(ticket)

        def report() -> None:
            self._tell_order(ticket)
            if ticket.order.get("tif") == "" and ticket.client_id:
                self.tell(ticket, error(10349, "Order TIF was set to DAY based on order preset.", ticket.order_id))
            if outside:
                self.tell(ticket, error(399, HELD, ticket.order_id))
            if ticket.held:
                self.tell(ticket, error(404, LOCATING, ticket.order_id))
            if (fault := self.faults.strike("order", **about(ticket))) is not None:
                self.tell(ticket, error(fault.kind.code, fault.kind.text, ticket.order_id))

        self._report(ticket, report)

    def changed(self, ticket: Ticket) -> None:
        """Tell of an order that has other terms, or another state."""
        self._report(ticket, lambda: self._tell_order(ticket))

    def parts(self, ticket: Ticket, quantity: Decimal) -> Sequence[Decimal]:
        """Split a fill where the fault `partial-fills` strikes."""
        fault = self.faults.strike("fill", "partial-fills", **about(ticket))
        if fault is None:
            return (quantity,)
        count = int(fault.option("parts", 2))
        part = (quantity / count).to_integral_value(ROUND_DOWN) or Decimal(1)
        sizes: list[Decimal] = []
        while quantity > 0 and len(sizes) < count - 1:
            sizes.append(min(part, quantity))
            quantity -= sizes[-1]
        return (*sizes, quantity) if quantity > 0 else tuple(sizes)

    def filled(self, ticket: Ticket, execution: Execution) -> None:
        """Tell of a fill: the execution, the order's state, the commission, and what it does to the account."""
        report = self._fill_report(ticket, execution)
        self._report(ticket, report)
        self._when_up(lambda: self.account_moved(self.accounts.all[ticket.account], ticket.contract))

    def _fill_report(self, ticket: Ticket, execution: Execution) -> Callable[[], None]:
        detail = execution_message(execution, -1, self.zone)
        commission = commission_message(execution)
        order, status = order_message(ticket, self.zone), status_message(ticket)

        def tell(*messages: Message) -> None:
            if any(not each.muted for each in self.hearers(ticket)):
                execution.told_at = execution.told_at or self.clock.now()
            self.tell(ticket, *messages)

        def report() -> None:
            fault = self.faults.strike(
                "fill", "late-execution", "doubled-execution", "lost-execution", "later-execution", **about(ticket)
            )
            late = self.faults.strike("fill", "late-commission", "lost-commission", **about(ticket))
            name = "" if fault is None else fault.kind.name
            if name in ("", "doubled-execution"):
                tell(*([detail] * (2 if name else 1)))
            self.tell(ticket, order)
            self._tell_status(ticket, status)
            if fault is not None and name == "later-execution":
                execution.hidden = True
                self._later(fault, lambda: setattr(execution, "hidden", False))
            if name in ("lost-execution", "later-execution"):
                return
            if fault is not None and name == "late-execution":
                self._later(fault, lambda: tell(detail, commission))
            elif late is None:
                self.tell(ticket, commission)
            elif late.kind.name == "late-commission":
                self._later(late, lambda: self.tell(ticket, commission))

        return report

    def cancelled(self, ticket: Ticket) -> None:
        """Tell that an order was cancelled: code 202, then the status."""
        status = status_message(ticket)

        def report() -> None:
            self.tell(ticket, error(202, "Order Canceled - reason:" + ticket.reason, ticket.order_id))
            self._tell_status(ticket, status)

        self._report(ticket, report)

    def rejected(self, ticket: Ticket, code: int) -> None:
        """Tell that an order was turned down."""
        status = status_message(ticket)

        def report() -> None:
            self.tell(ticket, error(code, ticket.reason, ticket.order_id))
            self._tell_status(ticket, status)

        self._report(ticket, report)

    def _report(self, ticket: Ticket, report: Callable[[], None]) -> None:
        if not ticket.withheld:
            self._when_up(report)

    def acknowledge(self, ticket: Ticket) -> None:
        """Tell an order of which nothing was told so far."""
        if ticket.withheld:
            ticket.withheld = False
            self._when_up(lambda: self._tell_order(ticket))

    def _tell_order(self, ticket: Ticket) -> None:
        self.tell(ticket, order_message(ticket, self.zone))
        self._tell_status(ticket, status_message(ticket))

    def _tell_status(self, ticket: Ticket, status: Message) -> None:
        twice = self.faults.strike("status", **about(ticket)) is not None
        self.tell(ticket, *([status] * (2 if twice else 1)))

    def _later(self, fault: Armed, action: Callable[[], None]) -> None:
        self.clock.later(fault.option("seconds", 2), action)

    def _bind(self, ticket: Ticket) -> None:
        """Give an order by hand a number where client 0 wants to hear of them."""
        if ticket.order_id == 0 and any(each.client_id == 0 and each.binds for each in self.ready()):
            self.bind(ticket)

    def bind(self, ticket: Ticket) -> None:
        """Give an order by hand a number below zero, and tell client 0."""
        if ticket.order_id != 0:
            return
        self.book.bind(ticket)
        for client in self.ready():
            if client.client_id == 0:
                client.send(message(100, ticket.perm_id, 0, ticket.order_id))

    # --- accounts -----------------------------------------------------------------------------------------------

    def account_moved(self, account: Account, contract: Contract) -> None:
        """Tell the subscribers of positions, portfolios and values what a trade has changed."""
        position = account.position(contract)
        for client in self.ready():
            if client.positions:
                client.send(position_message(account.name, position))
            if account.name in client.accounts:
                client.send(portfolio_message(account, position, self.market.price))
        self.values_moved(account)

    def value_messages(self, account: Account) -> list[Message]:
        """Write accountValue for everything that is reported of an account."""
        return [
            message(6, 2, tag, value, currency, account.name) for tag, value, currency in self._values(account)
        ]

    def multi_messages(self, account: Account, request: int) -> list[Message]:
        """Write accountUpdateMulti for everything that is reported of an account."""
        return [
            message(73, 1, request, account.name, "", tag, value, currency)
            for tag, value, currency in self._values(account)
        ]

    def _values(self, account: Account) -> list[tuple[str, str, str]]:
        """Give what is told of an account: its values, and the balances of each currency where it has several."""
        values = [*account.values(self.market.price)]
        if account.currency != DOLLAR:
            values += account.ledger("ALL", self.market.price)
        return values

    def tell_pnl(self, client: Client, only: int | None = None) -> None:
        """Send a client the profits that it has asked for."""
        for request, (name, con_id) in client.pnl.items():
            account = self.accounts.get(name)
            if account is None or only not in (None, request):
                continue
            if con_id == 0:
                unrealized, realized = account.unrealized(self.market.price), account.realized()
                client.send(message(94, request, unrealized + realized, unrealized, realized))
                continue
            position = account.position(self.contracts.by_id(con_id).contract)
            price = self.market.price(con_id)
            unrealized = (price - position.cost) * position.quantity
            daily, value = unrealized + position.realized, price * position.quantity
            client.send(message(95, request, position.quantity, daily, unrealized, position.realized, value))

    def values_moved(self, account: Account) -> None:
        """Tell the subscribers of an account's values what they are now."""
        for client in self.ready():
            if account.name in client.accounts:
                fresh = client.news(self.value_messages(account))
                client.send(*fresh, message(8, 1, f"{self.clock.now():%H:%M}"))
            for request, name in client.multi.items():
                if name in ("", "All", account.name):
                    client.send(*client.news(self.multi_messages(account, request)))
            self.tell_pnl(client)

    def price_moved(self, con_id: int) -> None:
        """Tell the subscribers of market data and of profits a new price."""
        self.streaming.price_moved(con_id)
        if self.link_up:
            for client in self.ready():
                self.tell_pnl(client)

    # --- the link behind the gateway ----------------------------------------------------------------------------

    def lose_link(self) -> None:
        """Lose the link: orders wait, nothing is told, the market trades on."""
        if self.link_up:
            self.link_up = self.streaming.up = False
            self.tell_all(error(1100, "Connectivity between IB and Trader Workstation has been lost."))

    def regain_link(self, *, kept: bool = True) -> None:
        """Have the link back; where data was lost, market data must be asked for again."""
        if self.link_up:
            return
        self.link_up = self.streaming.up = True
        words = "Connectivity between IB and Trader Workstation has been restored - data "
        if kept:
            self.tell_all(error(1102, words + "maintained."))
        else:
            self.streaming.forget()
            self.tell_all(error(1101, words + "lost."))
        waiting, self.waiting = self.waiting, []
        for action in waiting:
            action()

    def flap_farms(self) -> None:
        """Let the data farms go and come back."""
        self.tell_all(*(error(code, words) for code, words in (*BROKEN, *HEALTHY)))


def about(ticket: Ticket) -> dict[str, str | int]:
    """Give what a fault can be matched by."""
    return {
        "symbol": ticket.contract.symbol,
        "order_ref": ticket.ref,
        "client_id": ticket.client_id,
        "perm_id": ticket.perm_id,
    }

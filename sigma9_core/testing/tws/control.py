"""What a test can do to the peer's world and ask of it: plain calls, which take effect before they return."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

from sigma9_core.testing.tws.answers import error
from sigma9_core.testing.tws.book import Book
from sigma9_core.testing.tws.client import Client
from sigma9_core.testing.tws.clock import PeerClock
from sigma9_core.testing.tws.contracts import Details
from sigma9_core.testing.tws.faults import Armed, Faults
from sigma9_core.testing.tws.history import Bar
from sigma9_core.testing.tws.orders import WireOrder
from sigma9_core.testing.tws.requests import NAMES, Request
from sigma9_core.testing.tws.tickets import Execution, Ticket
from sigma9_core.testing.tws.wire import Value
from sigma9_core.testing.tws.world import World

Number = Decimal | float | int | str
PATIENCE: Final = 10.0


def decimal(value: Number) -> Decimal:
    """Read a number as it is written."""
    return value if isinstance(value, Decimal) else Decimal(str(value))


class Control:
    """The peer from a test's side."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults: Faults = world.faults
        self.clock: PeerClock = world.clock
        self.book: Book = world.book
        self._expected: deque[tuple[Callable[[], bool], asyncio.Future[None]]] = deque()

    # --- the market ---------------------------------------------------------------------------------------------

    def add_contract(self, symbol: str, price: Number = 100, **details: Any) -> Details:
        """Make a contract known, with a price; `details` are those of `Contracts.add`."""
        found = self.world.contracts.add(symbol, **details)
        self.world.market.begin(found.contract.con_id, decimal(price))
        return found

    def set_price(
        self,
        symbol: str,
        last: Number,
        *,
        bid: Number | None = None,
        ask: Number | None = None,
        depth: Number | None = None,
        size: Number = 100,
    ) -> None:
        """Let a symbol trade at a price: orders trigger and fill, each side up to `depth` shares (None: all)."""
        con_id = self.world.contracts.named(symbol).contract.con_id
        self.world.market.move(
            con_id,
            decimal(last),
            None if bid is None else decimal(bid),
            None if ask is None else decimal(ask),
            decimal(size),
        )
        self.world.price_moved(con_id)
        self.book.trade(con_id, None if depth is None else decimal(depth))

    def halt(self, symbol: str, *, halted: bool = True) -> None:
        """Halt a symbol, or let it trade again: in a halt nothing fills."""
        con_id = self.world.contracts.named(symbol).contract.con_id
        quote = self.world.market.quotes[con_id]
        quote.halted = halted
        self.world.streaming.halt_told(con_id)
        if not halted:
            self.book.trade(con_id)

    def set_shortable(self, symbol: str, shares: Number) -> None:
        """Say how many shares can be borrowed (generic tick 236)."""
        con_id = self.world.contracts.named(symbol).contract.con_id
        self.world.market.quotes[con_id].shortable = decimal(shares)
        self.world.streaming.price_moved(con_id)

    def set_bars(self, symbol: str, size: str, bars: Sequence[Bar]) -> None:
        """Give a symbol's history in a bar size such as `1 min` or `1 day`, instead of the made-up one."""
        self.world.streaming.history_of.give(self.world.contracts.named(symbol).contract.con_id, size, bars)

    def subscribe_data(self, *, live: bool = True) -> None:
        """Say whether live data is subscribed: where it is not, there is 10089, and delayed data for type 3."""
        self.world.streaming.live = live

    def open_market(self) -> None:
        """Begin regular hours: orders that waited for it trade."""
        self.book.open_market()

    def close_market(self) -> None:
        """End regular hours: orders on the close trade, day orders expire; later ones wait for the opening."""
        self.book.close_market()

    def wander(self, every: float = 1, step: float = 0.001) -> None:
        """Let every price move by up to `step` of itself, every so many seconds, by the seed."""
        chance = random.Random(f"{self.world.seed}-wander")  # noqa: S311 - repeatable on purpose

        def move() -> None:
            for con_id, quote in list(self.world.market.quotes.items()):
                details = self.world.contracts.by_id(con_id)
                moved = quote.last * decimal(1 + chance.uniform(-step, step))
                tick = details.min_tick
                last = max(tick, (moved / tick).to_integral_value() * tick)
                self.set_price(details.contract.symbol, last, size=chance.randint(1, 10) * 100)
            self.clock.later(every, move)

        self.clock.later(every, move)

    def new_day(self) -> None:
        """Begin another day: executions, completed orders and today's profits are no longer told."""
        self.book.new_day()
        for account in self.world.accounts.all.values():
            for position in account.positions.values():
                position.realized = Decimal(0)
        for quote in self.world.market.quotes.values():
            quote.close, quote.open = quote.last, quote.last
            quote.high, quote.low, quote.volume = quote.last, quote.last, Decimal(0)

    # --- orders -------------------------------------------------------------------------------------------------

    def orders(self, *, live: bool | None = None, **match: object) -> list[Ticket]:
        """List orders, oldest first: `ref`, `symbol`, `client_id`, `account`, `status` narrow it down."""
        return [
            each
            for each in self.book.tickets.values()
            if (live is None or each.live == live)
            and all(_fact(each, key) == value for key, value in match.items())
        ]

    def order(self, wanted: Ticket | str | int | None = None) -> Ticket:
        """Give an order by its reference, permanent id or order id; the newest for None. Raise KeyError."""
        if isinstance(wanted, Ticket):
            return wanted
        for each in reversed(self.book.tickets.values()):
            if wanted is None or wanted in (each.ref, each.perm_id, each.order_id):
                return each
        raise KeyError(f"no order is called {wanted!r}")

    def fill(
        self, wanted: Ticket | str | int | None = None, quantity: Number | None = None, price: Number | None = None
    ) -> Execution:
        """Fill an order, or a part of it, at a price (its limit, or the market's, unless one is given)."""
        ticket = self.order(wanted)
        at = ticket.limit or self.world.market.price(ticket.contract.con_id) if price is None else decimal(price)
        return self.book.fill(ticket, ticket.remaining if quantity is None else decimal(quantity), at)

    def hold_fills(self, *, hold: bool = True) -> None:
        """Let prices fill nothing: fills come by `fill` alone."""
        self.book.holds = hold

    def cancel(self, wanted: Ticket | str | int | None = None, reason: str = "") -> None:
        """Cancel an order from the broker's side."""
        self.book.cancel(self.order(wanted), reason)

    def reject(
        self, wanted: Ticket | str | int | None = None, reason: str = "Order rejected - reason:fake"
    ) -> None:
        """Turn down an order that was accepted before."""
        self.book.reject(self.order(wanted), reason)

    def hold_order(self, wanted: Ticket | str | int | None = None, why: str = "locate") -> None:
        """Work a live order no more: it is Inactive, and says why it is held."""
        self.book.hold(self.order(wanted), why)

    def let_go(self, wanted: Ticket | str | int | None = None) -> None:
        """Work an order that is held."""
        self.book.let_go(self.order(wanted))

    def correct(self, execution: Execution, price: Number, quantity: Number | None = None) -> Execution:
        """Correct an execution, or its quantity too: told again, with the last part of its id one higher."""
        size = None if quantity is None else decimal(quantity)
        return self.book.correct(execution, decimal(price), size)

    def place_foreign(self, client_id: int, symbol: str, order_id: int = 0, **values: Value) -> Ticket:
        """Place an order as another client does: `place_foreign(7, "AAPL", action="BUY", totalQuantity=1)`."""
        number = order_id or self.book.next_id(client_id)
        return self.book.place(client_id, number, self.world.contracts.named(symbol).contract, _order(values))

    def place_manual(self, symbol: str, **values: Value) -> Ticket:
        """Place an order by hand, as a person does at the workstation: it has no order id until it is bound."""
        return self.book.place(0, 0, self.world.contracts.named(symbol).contract, _order(values))

    # --- accounts -----------------------------------------------------------------------------------------------

    def set_position(self, symbol: str, quantity: Number, cost: Number = 0, account: str = "") -> None:
        """Give an account a position that no order has made; subscribers are told."""
        found = self.world.accounts.get(account) or self.world.accounts.first
        contract = self.world.contracts.named(symbol).contract
        position = found.position(contract)
        position.quantity, position.cost = decimal(quantity), decimal(cost)
        self.world.account_moved(found, contract)

    def set_cash(self, cash: Number, account: str = "") -> None:
        """Set an account's cash; subscribers are told."""
        found = self.world.accounts.get(account) or self.world.accounts.first
        found.cash = decimal(cash)
        self.world.values_moved(found)

    def set_currency(self, currency: str, rate: Number = 1, home: Number = 0, account: str = "") -> None:
        """Give an account another base currency: what a dollar is worth in it, and how much of it there is."""
        found = self.world.accounts.get(account) or self.world.accounts.first
        found.currency, found.rate, found.home = currency, decimal(rate), decimal(home)
        self.world.values_moved(found)

    def set_value(self, tag: str, value: str, account: str = "") -> None:
        """Set a value as the broker reports it, such as `BuyingPower`, whatever the positions say."""
        found = self.world.accounts.get(account) or self.world.accounts.first
        found.more[tag] = value
        self.world.values_moved(found)

    # --- faults -------------------------------------------------------------------------------------------------

    def arm(self, name: str, times: int | None = 1, chance: float = 1.0, **more: Any) -> Armed:
        """Arm a fault for the next `times` matching messages (None: all), each with a chance; see `faults`."""
        return self.faults.arm(name, times, chance, **more)

    def disarm(self, name: str | None = None) -> None:
        """Take back a fault, or all."""
        self.faults.disarm(name)

    def say(self, code: int, text: str, order: Ticket | str | int | None = None) -> None:
        """Send an error: about an order to those who hear of it, or to everybody."""
        if order is None:
            self.world.tell_all(error(code, text))
            return
        ticket = self.order(order)
        self.world.tell(ticket, error(code, text, ticket.order_id))

    def lose_link(self) -> None:
        """Lose the link behind the gateway (1100)."""
        self.world.lose_link()

    def regain_link(self, *, kept: bool = True) -> None:
        """Have the link back, with the data (1102) or without (1101)."""
        self.world.regain_link(kept=kept)

    def flap_farms(self) -> None:
        """Let the data farms go and come back."""
        self.world.flap_farms()

    def drop(self, client_id: int | None = None) -> None:
        """Cut the connection of a client, or of all, without a word."""
        for client in list(self.world.clients):
            if client_id in (None, client.client_id):
                client.close(at_once=True)

    def mute(self, client_id: int | None = None, *, muted: bool = True) -> None:
        """Make the connection of a client half-open: what it sends is taken and forgotten, nothing is answered."""
        for client in self.world.clients:
            if client_id in (None, client.client_id):
                client.muted = muted

    # --- looking ------------------------------------------------------------------------------------------------

    @property
    def received(self) -> list[Request]:
        """Give every message that clients have sent, oldest first."""
        return self.world.received

    def requests(self, name: str) -> list[Request]:
        """Give what has come of one kind, such as `placeOrder`; raise KeyError for an unknown kind."""
        if name not in NAMES:
            raise KeyError(f"no request is called {name!r}")
        return [each for each in self.world.received if each.name == name]

    @property
    def clients(self) -> list[Client]:
        """Give the connected clients."""
        return self.world.ready()

    async def until(self, happened: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """Wait until something is true, looked at after each message that comes; raise TimeoutError."""
        if happened():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected.append((happened, future))
        async with asyncio.timeout(timeout):
            await future

    async def until_received(self, name: str, count: int = 1, timeout: float = PATIENCE) -> Request:
        """Wait until so many messages of a kind have come, and give the last of them."""
        await self.until(lambda: len(self.requests(name)) >= count, timeout)
        return self.requests(name)[count - 1]

    def look(self, _: object = None) -> None:
        """Look at what is waited for."""
        for happened, future in list(self._expected):
            if future.done() or happened():
                self._expected.remove((happened, future))
                if not future.done():
                    future.set_result(None)

    def state(self) -> dict[str, Any]:
        """Show the whole world as plain data."""
        world = self.world
        return {
            "time": world.clock.now().isoformat(),
            "link": "up" if world.link_up else "lost",
            "market": world.market.phase,
            "clients": [each.client_id for each in world.ready()],
            "orders": [each.shown() for each in self.book.tickets.values()],
            "executions": [each.shown() for each in self.book.executions],
            "accounts": {
                name: {
                    "cash": str(account.cash),
                    "positions": {each.contract.symbol: str(each.quantity) for each in account.held()},
                }
                for name, account in world.accounts.all.items()
            },
            "faults": dict(world.faults.happened),
        }


def _order(values: dict[str, Value]) -> WireOrder:
    return WireOrder.made(**{"orderType": "MKT", **values})


def _fact(ticket: Ticket, key: str) -> object:
    return ticket.contract.symbol if key == "symbol" else getattr(ticket, key)

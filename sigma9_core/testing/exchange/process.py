"""The exchange's process: `python -m sigma9_core.testing.exchange.process`, JSON lines on a loopback port.

It prints its port and ends when its standard input does, so that it never outlives the test that started it. A
client says first who it is: `broker` (the newest one hears the reports), `feed` (hears the prices) or `control`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Final, Literal

from sigma9_core.testing.exchange.book import Body, Book, Execution, Refused
from sigma9_core.testing.exchange.faults import Faults
from sigma9_core.testing.exchange.venue import Client, Market, Venue, run

DRAIN: Final = 3.0
"""Seconds that a new client waits until what the one before it had sent is taken in."""
MUTATIONS: Final = frozenset(("submit", "replace", "cancel"))
"""They go through the intake, and their answers may get lost; all else is answered at once."""


class Exchange(Venue):
    """The book, those who are connected to it, and what goes wrong between them."""

    def __init__(self, seed: int, cash: Decimal) -> None:
        super().__init__(seed)
        self.book = Book(cash, self._tell)
        self.faults = Faults(seed)
        self._client: Client | None = None
        self._sessions = 0
        self._session_began = ""
        self._intake: deque[tuple[float, Client, Body]] = deque()
        self._due = 0.0
        """When the newest message of the intake is taken."""
        self._away_until = 0.0
        """The link behind the client's connection is away until then."""
        self._held_back: list[Body] = []
        """Reports that are sent behind the next one."""
        self._received: list[Body] = []
        """Every message that sent, changed or cancelled orders, as it came."""
        self._away = {"fills": 0, "ends": 0, "busts": 0}
        """What happened while no client was there to hear of it."""
        self._untold: set[str] = set()
        """Executions taken back whose report nobody was sent."""

    # --- connections --------------------------------------------------------------------------------------------

    async def _take_over(self, client: Client) -> None:
        """Let a client in once everything that the one before it had sent is there, as a session's login does."""
        before, self._client = self._client, client
        self._sessions += 1
        self._session_began = self.book.now()
        self._held_back.clear()
        if before is not None:
            try:
                async with asyncio.timeout(DRAIN):
                    await before.closed.wait()
            except TimeoutError:
                before.writer.close()
        if client.at_once:
            self._away_until = 0.0
            while self._intake:
                _, sender, message = self._intake.popleft()
                self._mutate(sender, message)

    def _gone(self, client: Client) -> None:
        if self._client is client:
            self._client = None

    def _hear(self, client: Client, message: Body) -> None:
        what = message["op"]
        if what not in MUTATIONS or client.role == "control":
            super()._hear(client, message)
            return
        now = asyncio.get_running_loop().time()
        wait = self.faults.seconds() if not client.at_once and self.faults.strikes("intake") else 0.0
        self._due = max(now + wait, self._due, self._away_until)
        self._intake.append((self._due, client, message))
        if self._due <= now:
            self._take_in()
        else:
            asyncio.get_running_loop().call_later(self._due - now, self._take_in)

    def _take_in(self) -> None:
        now = asyncio.get_running_loop().time() + 0.001
        while self._intake and self._intake[0][0] <= now:
            _, client, message = self._intake.popleft()
            self._mutate(client, message)

    def _mutate(self, client: Client, message: Body) -> None:
        what = message["op"]
        received = {"op": what, "session": self._sessions, "at": self.book.now()}
        if what == "submit":
            received["ids"] = [order["order_id"] for order in message["orders"]]
        else:
            received["ids"] = [message["order"]["order_id"] if what == "replace" else message["id"]]
        self._received.append(received)

        def work() -> None:
            if what == "submit":
                rejects = "the exchange does not like it" if self.faults.strikes("reject") else None
                self.book.submit(message["orders"], rejects=rejects)
            elif what == "replace":
                self.book.replace(message["order"])
            else:
                self.book.cancel(message["id"])

        if self.faults.strikes("answer_drop"):
            self._answer(None, message, work)
        else:
            late = self.faults.seconds() if self.faults.strikes("answer_delay") else 0.0
            self._answer(client, message, work, late=late)

    # --- reports ------------------------------------------------------------------------------------------------

    def _tell(self, report: Body) -> None:
        client = self._client
        away = asyncio.get_running_loop().time() < self._away_until
        if client is None:
            kind = {"filled": "fills", "busted": "busts"}.get(report["kind"], "ends")
            self._away[kind] += 1
        if client is None or away or self.faults.strikes("drop"):
            self._lost(report)
            return
        message = {"report": report}
        if self.faults.strikes("delay"):
            asyncio.get_running_loop().call_later(self.faults.seconds(), self._send, client, message)
            return
        if self.faults.strikes("reorder"):
            self._held_back.append(message)
            asyncio.get_running_loop().call_later(self.faults.seconds(), self._let_go, client)
            return
        self._send(client, message)
        if self.faults.strikes("double"):
            self._send(client, message)
        self._let_go(client)

    def _let_go(self, client: Client) -> None:
        held, self._held_back = self._held_back, []
        for message in held:
            self._send(client, message)

    def _send(self, client: Client, message: Body) -> None:
        if client is self._client:  # a session's reports end with it
            client.send(message)
            if message["report"]["kind"] == "filled":
                self.book.told(message["report"]["fill"]["exec_id"])
        else:
            self._lost(message["report"])

    def _lost(self, report: Body) -> None:
        if report["kind"] == "busted":  # no read-back tells it
            self._untold.add(report["fill"]["exec_id"])

    # --- the market ---------------------------------------------------------------------------------------------

    def _trade(self, symbol: str, price: Decimal, depth: Decimal | None) -> None:
        self.book.trade(symbol, price, depth)

    def _accidents(self, market: Market) -> None:
        for ticket in self.book.all_working():
            if self.faults.strikes("cancel"):
                state: Literal["cancelled", "expired"] = ("cancelled", "expired")[self.faults.pick("cancel", 2)]
                self.book.end(ticket, state, "the exchange has ended it")
        if self.faults.strikes("bust"):
            self._bust(market.busts)
        if self._client is not None and not self._client.at_once and self.faults.strikes("outage"):
            self._lose_link(self._client, self.faults.seconds())
        if self._client is not None and self.faults.strikes("cut"):
            self._client.writer.close()

    def _bust(self, symbols: tuple[str, ...]) -> None:
        """Take a trade back that an earlier session was told of, while somebody is there to be told."""
        able = [
            each
            for each in self.book.executions[-200:]
            if not each.busted
            and each.fill["order_id"]
            and each.fill["symbol"] in symbols
            and each.told_at is not None
            and each.told_at < self._session_began
        ]
        if able and self._client is not None:
            self.book.bust(able[self.faults.pick("bust", len(able))])

    def _lose_link(self, client: Client, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._away_until = loop.time() + seconds
        client.send({"health": {"socket": "up", "link": "down", "data": "down"}})
        loop.call_later(seconds, client.send, {"health": {"socket": "up", "link": "up", "data": "up"}})

    # --- what is asked ------------------------------------------------------------------------------------------

    def _ask(self, what: str, message: Body) -> Any:
        book = self.book
        match what:
            case "open_orders":
                return book.open_orders()
            case "completed_orders":
                return book.completed_orders(message["since"])
            case "executions":
                return book.fills(message["since"])
            case "positions":
                return book.positions()
            case "account":
                return {"account": "EXCHANGE", "mode": "paper", "currency": "USD", "cash": str(book.cash)}
            case "trade":
                depth = message.get("depth")
                book.trade(message["symbol"], Decimal(message["price"]), None if depth is None else Decimal(depth))
            case "by_hand":
                book.submit([message["order"]], by_hand=True)
            case "cancel":
                book.cancel(message["id"])
            case "bust":
                book.bust(self._execution(message["exec_id"]))
            case "faults":
                self.faults.set(message["rates"])
            case "dump":
                return self._dump()
            case _:
                return super()._ask(what, message)
        return None

    def _execution(self, exec_id: str) -> Execution:
        found = next((each for each in self.book.executions if each.fill["exec_id"] == exec_id), None)
        if found is None:
            raise Refused("unknown", f"no execution is called {exec_id}")
        return found

    def _dump(self) -> Body:
        """Give everything that a test may want to compare."""
        book = self.book
        return {
            "received": self._received,
            "waiting": len(self._intake),
            "orders": [ticket.shown() | {"active": ticket.active} for ticket in book.tickets.values()],
            "executions": [asdict(each) for each in book.executions],
            "untold_busts": sorted(self._untold),
            "positions": {symbol: str(held.quantity) for symbol, held in book.holdings.items()},
            "cash": str(book.cash),
            "sessions": self._sessions,
            "connected": self._client is not None,
            "away": self._away,
            "faults": dict(self.faults.happened),
        }


if __name__ == "__main__":
    run(Exchange)

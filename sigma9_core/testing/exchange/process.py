"""The exchange's process: `python -m sigma9_core.testing.exchange.process`, JSON lines on a loopback port.

It prints its port and ends when its standard input does, so that it never outlives the test that started it. A
client says first who it is: `broker` (the newest one hears the reports), `feed` (hears the prices) or `control`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal

from sigma9_core.testing.exchange.book import Body, Book, Execution, Refused
from sigma9_core.testing.exchange.faults import Faults

Role = Literal["broker", "feed", "control"]

CENT: Final = Decimal("0.01")
LONGEST_LINE: Final = 64 * 1024 * 1024
DRAIN: Final = 3.0
"""Seconds that a new client waits until what the one before it had sent is taken in."""
MUTATIONS: Final = frozenset(("submit", "replace", "cancel"))
"""They go through the intake, and their answers may get lost; all else is answered at once."""


@dataclass(eq=False, slots=True)
class Client:
    """One connection."""

    writer: asyncio.StreamWriter
    role: Role
    at_once: bool = False
    """What it sends is taken in the moment that it comes."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, message: Body) -> None:
        """Send a message, where the client is still there."""
        if not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")


@dataclass(slots=True)
class Market:
    """Prices that wander about where they began."""

    every: float
    """Seconds from step to step."""
    step: float
    """How far a price goes in one step, as a share of it."""
    base: dict[str, float]
    thin: float = 0.6
    """How often there are few shares to be had."""
    busts: tuple[str, ...] = ()
    """Symbols in which a trade may be taken back."""
    now: dict[str, float] = field(default_factory=dict)


class Exchange:
    """The book, those who are connected to it, and what goes wrong between them."""

    def __init__(self, seed: int, cash: Decimal) -> None:
        self.book = Book(cash, self._tell)
        self.faults = Faults(seed)
        self._prices = random.Random(f"{seed}-prices")  # noqa: S311 - a repeatable market
        self._client: Client | None = None
        self._feeds: set[Client] = set()
        self._sessions = 0
        self._session_began = ""
        self._intake: deque[tuple[float, Client, Body]] = deque()
        self._due = 0.0
        """When the newest message of the intake is taken."""
        self._away_until = 0.0
        """The link behind the client's connection is away until then."""
        self._held_back: list[Body] = []
        """Reports that are sent behind the next one."""
        self._market: Market | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._received: list[Body] = []
        """Every message that sent, changed or cancelled orders, as it came."""
        self._away = {"fills": 0, "ends": 0, "busts": 0}
        """What happened while no client was there to hear of it."""
        self._untold: set[str] = set()
        """Executions taken back whose report nobody was sent."""

    # --- connections --------------------------------------------------------------------------------------------

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        client: Client | None = None
        try:
            hello = json.loads(await reader.readline())
            client = Client(writer, hello["role"], bool(hello.get("at_once")))
            if client.role == "broker":
                await self._take_over(client)
            elif client.role == "feed":
                self._feeds.add(client)
            client.send({"n": hello["n"], "ok": True, "body": None})
            async for line in reader:
                if line.endswith(b"\n"):  # what was cut off in the middle never arrived
                    self._hear(client, json.loads(line))
        except (ConnectionError, ValueError, asyncio.IncompleteReadError):
            pass  # a client that is killed leaves half a line, or none
        finally:
            if client is not None:
                client.closed.set()
                self._feeds.discard(client)
                if self._client is client:
                    self._client = None
            writer.close()

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

    def _hear(self, client: Client, message: Body) -> None:
        what = message["op"]
        if what not in MUTATIONS or client.role == "control":
            self._answer(client, message, lambda: self._ask(what, message))
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

    def _answer(self, client: Client | None, message: Body, work: Callable[[], Any], *, late: float = 0.0) -> None:
        try:
            answer = {"n": message["n"], "ok": True, "body": work()}
        except Refused as error:
            answer = {"n": message["n"], "ok": False, "code": error.code, "message": str(error)}
        if client is None:
            return
        if late:
            asyncio.get_running_loop().call_later(late, client.send, answer)
        else:
            client.send(answer)

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

    async def _tick(self, market: Market) -> None:
        while True:
            await asyncio.sleep(market.every)
            self._step(market)

    def _step(self, market: Market) -> None:
        ticks: list[tuple[str, float]] = []
        for symbol, base in market.base.items():
            price = market.now.get(symbol, base)
            drift = 0.1 * (base - price) / base
            price *= 1 + drift * market.step + self._prices.gauss(0, market.step)
            market.now[symbol] = price
            depth = Decimal(self._prices.randrange(1, 60)) if self._prices.random() < market.thin else None
            traded = max(CENT, Decimal(price).quantize(CENT))
            self.book.trade(symbol, traded, depth)
            ticks.append((symbol, float(traded)))
        for feed in self._feeds:
            feed.send({"ticks": ticks})
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
            case "run":
                self._run(message)
            case "hold":
                self._hold()
            case "dump":
                return self._dump()
            case _:
                raise Refused("unknown", f"nothing is called {what} here")
        return None

    def _execution(self, exec_id: str) -> Execution:
        found = next((each for each in self.book.executions if each.fill["exec_id"] == exec_id), None)
        if found is None:
            raise Refused("unknown", f"no execution is called {exec_id}")
        return found

    def _run(self, message: Body) -> None:
        """Let the market run by itself."""
        self._hold()
        if self._market is None:
            self._market = Market(
                message["every"], message["step"], message["base"], busts=tuple(message["busts"])
            )
        self._ticking = asyncio.get_running_loop().create_task(self._tick(self._market), name="market")

    def _hold(self) -> None:
        """Let the market stand still: nothing trades or ends but by a client's wish."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

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


async def serve(exchange: Exchange, told: Callable[[int], None], end: Awaitable[object]) -> None:
    """Serve on a free loopback port until `end` comes."""
    server = await asyncio.start_server(exchange.visit, "127.0.0.1", 0, limit=LONGEST_LINE)
    told(server.sockets[0].getsockname()[1])
    await end
    server.close()


async def _main(seed: int, cash: Decimal) -> None:
    def tell(port: int) -> None:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()

    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await serve(Exchange(seed, cash), tell, reader.read())


def main() -> None:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cash", type=Decimal, default=Decimal(100_000))
    args = parser.parse_args()
    asyncio.run(_main(args.seed, args.cash))


if __name__ == "__main__":
    main()

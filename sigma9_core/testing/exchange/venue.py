"""What any venue of a tortured server has: its connections, its feed, and a market that wanders by a seed."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal

from sigma9_core.testing.exchange.book import Body, Refused

Role = Literal["broker", "feed", "control"]

CENT: Final = Decimal("0.01")
LONGEST_LINE: Final = 64 * 1024 * 1024


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

    def walk(self, draw: random.Random) -> Iterator[tuple[str, Decimal, Decimal | None]]:
        """Go one step: give each symbol's new price, and how many shares can be had at it (None: any)."""
        for symbol, base in self.base.items():
            price = self.now.get(symbol, base)
            drift = 0.1 * (base - price) / base
            price *= 1 + drift * self.step + draw.gauss(0, self.step)
            self.now[symbol] = price
            depth = Decimal(draw.randrange(1, 60)) if draw.random() < self.thin else None
            yield symbol, max(CENT, Decimal(price).quantize(CENT)), depth


class Venue:
    """Takes connections, tells the prices, and answers its control: `run`, `hold`, `faults`, `by_hand`, `dump`."""

    def __init__(self, seed: int) -> None:
        self._prices = random.Random(f"{seed}-prices")  # noqa: S311 - a repeatable market
        self._feeds: set[Client] = set()
        self._market: Market | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Open what it has beside its own port."""

    async def end(self) -> None:
        """Close it again."""

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
                self._gone(client)
            writer.close()

    async def _take_over(self, client: Client) -> None:
        """Let a broker in."""
        raise ValueError("brokers do not come here")

    def _gone(self, client: Client) -> None:
        """Learn that a connection has ended."""

    def _hear(self, client: Client, message: Body) -> None:
        self._answer(client, message, lambda: self._ask(message["op"], message))

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

    def _ask(self, what: str, message: Body) -> Any:
        """Do what is asked for, and give the answer; raise Refused."""
        match what:
            case "run":
                self._run(message)
            case "hold":
                self._hold()
            case _:
                raise Refused("unknown", f"nothing is called {what} here")

    # --- the market ---------------------------------------------------------------------------------------------

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

    async def _tick(self, market: Market) -> None:
        while True:
            await asyncio.sleep(market.every)
            ticks: list[tuple[str, float]] = []
            for symbol, price, depth in market.walk(self._prices):
                self._trade(symbol, price, depth)
                ticks.append((symbol, float(price)))
            for feed in self._feeds:
                feed.send({"ticks": ticks})
            self._accidents(market)

    def _trade(self, symbol: str, price: Decimal, depth: Decimal | None) -> None:
        """Let a symbol trade."""
        raise NotImplementedError

    def _accidents(self, market: Market) -> None:
        """Let something go wrong, by chance, at a step of the market."""
        raise NotImplementedError


async def serve(venue: Venue, told: Callable[[int], None], end: Awaitable[object]) -> None:
    """Serve on a free loopback port until `end` comes."""
    await venue.begin()
    server = await asyncio.start_server(venue.visit, "127.0.0.1", 0, limit=LONGEST_LINE)
    told(server.sockets[0].getsockname()[1])
    await end
    server.close()
    await venue.end()


async def _main(venue: Venue) -> None:
    def tell(port: int) -> None:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()

    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await serve(venue, tell, reader.read())


def run(make: Callable[[int, Decimal], Venue]) -> None:
    """Run a venue, made from seed and cash, until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cash", type=Decimal, default=Decimal(100_000))
    args = parser.parse_args()
    asyncio.run(_main(make(args.seed, args.cash)))

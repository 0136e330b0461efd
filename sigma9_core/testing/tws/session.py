"""One connection: the handshake, the client's id, and what is done with each message that comes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from sigma9_core.clock import monotonic
from sigma9_core.testing.tws import reading, trading
from sigma9_core.testing.tws.answers import error
from sigma9_core.testing.tws.client import Client, forget
from sigma9_core.testing.tws.faults import Armed
from sigma9_core.testing.tws.requests import Request, read_request
from sigma9_core.testing.tws.times import stamp
from sigma9_core.testing.tws.wire import HELLO, VERSION, WireError, decode, encode, message, read_frame
from sigma9_core.testing.tws.world import HEALTHY, World

Answer = Callable[[World, Client, Request], None]
ANSWERS: Final[Mapping[str, Answer]] = {**trading.ANSWERS, **reading.ANSWERS}
NOW: Final = frozenset(("reqCurrentTime", "reqIds", "reqManagedAccts", "setServerLogLevel"))
"""Requests that the gateway answers by itself, also while its link is lost."""
FASTEST: Final = 50
"""Messages a second."""
STRUCK_OUT: Final = 3
AT_ONCE: Final = (
    *("link-lost", "link-back", "link-back-data-lost", "farm-flap", "nightly-restart", "half-open"),
    *("unanswered", "refused", "pacing-violation"),
)
"""Faults that strike whatever message comes."""


class Session:
    """Serves one connection to its end."""

    def __init__(
        self, world: World, client: Client, reader: asyncio.StreamReader, arrived: Callable[[Request], None]
    ) -> None:
        self._world = world
        self._client = client
        self._reader = reader
        self._arrived = arrived

    async def run(self) -> None:
        """Shake hands, then answer what comes until either side closes."""
        world, client = self._world, self._client
        fault = world.faults.strike("connection")
        if fault is not None and fault.kind.name == "closed-at-once":
            client.close(at_once=True)
            return
        if fault is not None:
            client.muted = True
        try:
            if await self._reader.readexactly(len(HELLO)) != HELLO:
                raise WireError("no hello")
            client.offered = (await read_frame(self._reader)).decode(errors="replace")
            client.log(f"#{client.number} > API {client.offered}")
            if not self._greet():
                return
            while True:
                self._hear(decode(await read_frame(self._reader)))
        except (asyncio.IncompleteReadError, ConnectionError):
            client.log(f"#{client.number}/{client.client_id} - the connection is closed")
        except WireError as problem:
            client.log(f"#{client.number}/{client.client_id} - closed: {problem}")
            client.close()

    def _greet(self) -> bool:
        """Announce the version, where the client takes it."""
        offered = re.match(r"v(\d+)(?:\.\.(\d+))?", self._client.offered)
        low, high = (int(offered[1]), int(offered[2] or offered[1])) if offered else (0, 0)
        if not low <= VERSION <= high:
            self._client.log(f"#{self._client.number} - closed: the version {VERSION} is not among those offered")
            self._client.close()
            return False
        if not self._client.muted:
            self._client.write(encode((str(VERSION), stamp(self._world.clock.now(), self._world.zone))))
        return True

    def _hear(self, fields: tuple[str, ...]) -> None:
        client = self._client
        request = read_request(client.client_id, fields)
        client.log(f"#{client.number}/{client.client_id} > {request}")
        try:
            if client.muted:
                return
            if request.name == "startApi":
                self._start(request)
            elif client.ready and not self._struck(request):
                self._answer(request)
        finally:
            forget(self._world.received)
            self._world.received.append(request)
            self._arrived(request)

    def _start(self, request: Request) -> None:
        """Take the client id, unless another connection has it."""
        world, client = self._world, self._client
        client.client_id = request.integer("clientId")
        fault = world.faults.strike("start", client_id=client.client_id)
        taken = any(each.client_id == client.client_id for each in world.ready() if each is not client)
        if taken or fault is not None:
            words = "Unable to connect as the client id is already in use. Retry with a unique client id."
            client.send(error(326, words))
            client.close()
            return
        client.ready = True
        client.send(message(15, 1, ",".join(world.accounts.all)), trading.next_id(world, client))
        client.send(*(error(code, words) for code, words in HEALTHY))
        if not world.link_up:
            client.send(error(1100, "Connectivity between IB and Trader Workstation has been lost."))

    def _answer(self, request: Request) -> None:
        world, client = self._world, self._client
        streams, answer = world.streaming.answers.get(request.name), ANSWERS.get(request.name)
        if streams is not None:
            action = partial(streams, client, request)
        elif answer is not None:
            action = partial(answer, world, client, request)
        else:
            client.log(f"#{client.number} - no answer to {request.raw}")
            return
        if (fault := world.faults.strike("any", "late-answer", **self._about(request))) is not None:
            action = partial(self._late, fault, action)
        if world.link_up or request.name in NOW:
            action()
        else:
            world.waiting.append(action)

    def _struck(self, request: Request) -> bool:
        """Tell whether a fault or the limit of messages has taken a message away."""
        world = self._world
        if world.faults.on("rate-limit") and self._too_fast():
            self._slow_down()
            return True
        fault = world.faults.strike("any", *AT_ONCE, **self._about(request))
        if fault is not None and fault.kind.name == "refused":
            text, code = (
                str(fault.options.get("text", fault.kind.text)),
                int(fault.option("code", fault.kind.code)),
            )
            self._client.send(error(code, text, request.order_id or request.req_id))
            return True
        return fault is not None and self._happens(fault)

    def _about(self, request: Request) -> dict[str, str | int]:
        """Give what a fault can be matched by."""
        about: dict[str, str | int] = {"client_id": self._client.client_id, "request": request.name}
        if request.order is not None and request.contract is not None:
            about |= {"order_ref": request.order.get("orderRef"), "symbol": request.contract.symbol}
        return about

    def _late(self, fault: Armed, action: Callable[[], None]) -> None:
        """Answer half now, the rest later."""
        client = self._client
        held = client.held = []
        try:
            action()
        finally:
            client.held = None
        client.send(*held[: len(held) // 2])
        self._world.clock.later(fault.option("seconds", 2), lambda: client.send(*held[len(held) // 2 :]))

    def _happens(self, fault: Armed) -> bool:
        """Let a fault happen; tell whether the message is gone with it."""
        world, client = self._world, self._client
        match fault.kind.name:
            case "link-lost":
                world.lose_link()
                if seconds := fault.option("seconds", 0):
                    world.clock.later(seconds, world.regain_link)
            case "link-back":
                world.regain_link()
            case "link-back-data-lost":
                world.regain_link(kept=False)
            case "farm-flap":
                world.flap_farms()
            case "nightly-restart":
                world.restart(fault.option("seconds", 0))
                return True
            case "half-open":
                client.muted = True
                return True
            case "pacing-violation":
                self._slow_down()
                return True
            case "unanswered":
                return True
        return False

    def _too_fast(self) -> bool:
        now = monotonic()
        times = [each for each in self._client.times if now - each < 1]
        self._client.times = [*times, now]
        return len(times) >= FASTEST

    def _slow_down(self) -> None:
        client = self._client
        client.strikes += 1
        words = f"Max rate of messages per second has been exceeded:max={FASTEST} rec={len(client.times)}"
        client.send(error(100, f"{words} ({client.strikes})"))
        if client.strikes >= STRUCK_OUT:
            client.close()

"""The link to the broker: connects, keeps trying with back-off, and tells who asks how it stands."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from sigma9_core.contracts import Broker, BrokerHealth, BrokerReport
from sigma9_core.errors import BrokerError, CommandError, in_words

log = logging.getLogger("sigma9.broker")

LinkState = Literal["connected", "disconnected", "disabled"]
FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 30.0
CONNECT_TIMEOUT: Final = 30.0
"""Seconds until an attempt to connect that does not end is given up."""
DISCONNECT_TIMEOUT: Final = 5.0


class BrokerLink:
    """Owns the broker's connection on the money lane; it is the broker's listener."""

    def __init__(
        self,
        name: str,
        broker: Broker,
        *,
        on_report: Callable[[BrokerReport], None],
        on_connected: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.state: LinkState = "disconnected"
        self.health = BrokerHealth()
        self._ready = asyncio.Event()
        self.error: str | None = None
        self._broker = broker
        self._report = on_report
        self._connected = on_connected
        self._change = on_change
        self._task: asyncio.Task[None] | None = None
        self._again: asyncio.Task[None] | None = None
        self._stale = True
        """Something was away, and no reconciliation has begun since."""

    @property
    def ready(self) -> bool:
        """Tell whether it is connected, and what the broker knows has been reconciled with the journal."""
        return self._ready.is_set()

    @property
    def tries(self) -> bool:
        """Tell whether it is trying to connect, or to read back."""
        return not (_over(self._task) and _over(self._again))

    @property
    def stale(self) -> bool:
        """Tell whether something was away, and it has not begun to be read back since."""
        return self._stale

    async def wait_ready(self) -> None:
        """Wait until it is ready; on the money lane."""
        await self._ready.wait()

    @property
    def broker(self) -> Broker:
        """Give the broker while it is connected; a CommandError says what to do while it is not."""
        if self.state != "connected":
            raise CommandError(
                "broker_unavailable", f"the broker {self.name} is not connected: send broker_connect, or wait"
            )
        return self._broker

    @property
    def keeps(self) -> frozenset[str]:
        """Name the terms of an order that the broker keeps to by itself, connected or not."""
        return frozenset(getattr(self._broker, "keeps", ()))

    def on_report(self, report: BrokerReport) -> None:
        """Take a report and hand it to the order desk."""
        self._report(report)

    def on_health(self, health: BrokerHealth) -> None:
        """Take a change of health: a socket that went down starts the next attempt.

        A broker's own link that comes back after it was down has to be reconciled again.
        """
        if health == self.health:
            return
        lost = self.health.socket == "up" and health.socket == "down"
        back = self.health.link == "down" and health.link == "up"
        self.health = health
        if lost and self.state == "connected":
            log.error("the broker %s lost its connection; trying again", self.name)
            self._down()
            self.connect()
        elif back and self.state == "connected":
            self._stale = True  # a reconciliation that is under way is followed by another
            if _over(self._task) and _over(self._again):
                self._again = asyncio.get_running_loop().create_task(
                    self._reconcile_again(), name=f"broker-link-again[{self.name}]"
                )
        self._change()

    def connect(self) -> None:
        """Begin to connect and keep at it until it succeeds or `disconnect` is called."""
        if self.state == "connected" or not _over(self._task):
            return
        self._task = asyncio.get_running_loop().create_task(self._keep_trying(), name=f"broker-link[{self.name}]")

    async def disconnect(self) -> None:
        """Disconnect and stay so; working orders stay at the broker."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._again is not None:
            self._again.cancel()
            await asyncio.gather(self._again, return_exceptions=True)
            self._again = None
        if self.state == "connected":
            self._down()
            try:
                async with asyncio.timeout(DISCONNECT_TIMEOUT):
                    await self._broker.disconnect()
            except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; it is left behind
                log.warning(
                    "the broker %s did not disconnect in order: %s %s", self.name, type(error).__name__, error
                )
        self.health, self.error = BrokerHealth(), None
        self._change()

    def _down(self) -> None:
        self.state = "disconnected"
        self._ready.clear()
        if self._again is not None:
            self._again.cancel()

    def _stands(self) -> bool:
        return self.state == "connected" and self.health.socket != "down"

    async def _reconcile(self) -> None:
        self._stale = True
        while self._stale and self._stands():
            self._stale = False
            await self._connected()

    async def _reconcile_again(self) -> None:
        """Compare once more after the broker's own link was away, and keep at it until it has succeeded."""
        wait = FIRST_WAIT
        while self._stands():
            try:
                await self._reconcile()
            except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; it is told and retried
                self.error = in_words(error)
                self._ready.clear()  # what the broker knows is not reconciled any more
                log.warning(
                    "reconciling after the link of the broker %s came back failed (%s); next try in %.1f s",
                    self.name,
                    self.error,
                    wait,
                )
                self._change()
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
                wait = min(wait * 2, LONGEST_WAIT)
            else:
                if self._stands():
                    self.error = None
                    self._ready.set()
                    self._change()
                return

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._broker.connect(self)
        except TimeoutError as error:
            raise BrokerError(f"it did not answer within {CONNECT_TIMEOUT:g} s") from error

    async def _keep_trying(self) -> None:
        wait = FIRST_WAIT
        while True:
            try:
                await self._connect()
                self.state, self.health, self.error = "connected", self._broker.health, None
                await self._reconcile()
                if not self._stands():
                    raise BrokerError("the connection went down while it was being reconciled")
            except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; it is told and retried
                self.error = in_words(error)
                self._down()
                log.warning(
                    "the broker %s can't be connected (%s); next try in %.1f s", self.name, self.error, wait
                )
                self._change()
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
                wait = min(wait * 2, LONGEST_WAIT)
            else:
                log.info("the broker %s is connected, and what it knows is read back", self.name)
                self._ready.set()
                self._change()
                return


def _over(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()

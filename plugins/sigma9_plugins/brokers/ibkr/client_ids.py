"""The two client ids of the broker: IB lets only the client that has sent an order change or cancel it.

The first one is used wherever it can be had. Where it is in use for too long, by another program or by a dead
connection of our own that TWS believes in, a spare one is taken, and as soon as the first is free again the
connection goes back to it. What was sent under the spare one meanwhile is changed and cancelled by a second
connection, which stands beside the first as long as such orders work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from sigma9_core.clock import monotonic
from sigma9_core.config import IbkrSettings
from sigma9_core.errors import BrokerError
from sigma9_plugins.brokers.ibkr.health import Health
from sigma9_plugins.brokers.ibkr.library import Library
from sigma9_plugins.brokers.ibkr.orders import Orders
from sigma9_plugins.brokers.ibkr.settings import IbkrConfig
from sigma9_plugins.brokers.ibkr.wire import ClientIdInUse, Wire

log = logging.getLogger("sigma9.ibkr")

SPARE: Final = 100
"""The spare client id lies so far above the first one."""
TRY_AGAIN: Final = 5.0
"""Seconds between two tries to have the other client id, where nobody waits for it."""
WANTED_AGAIN: Final = 0.5
"""The same where an order of it is to be cancelled."""


class ClientIds:
    """Opens connections under the one or the other; lives as long as the broker."""

    def __init__(self, settings: IbkrSettings, config: IbkrConfig, health: Health, orders: Orders) -> None:
        self.first = settings.client_id
        self.spare = config.spare_client_id or settings.client_id + SPARE
        orders.book.clients = (self.first, self.spare)
        self.wanted = asyncio.Event()
        """Somebody waits for the client id that is not connected."""
        self._settings = settings
        self._config = config
        self._health = health
        self._orders = orders
        self._in_use_since: float | None = None
        self._next: tuple[Wire, list[tuple[Any, ...]]] | None = None
        """The first id, had again beside the spare one, and the codes that have come: the next connection."""

    async def open(self, library: Library) -> Wire:
        """Connect under the first id, or under the spare one where that has been in use for too long.

        Raise ClientIdInUse where it is in use, and not for so long; BrokerError where there is no connection.
        """
        if (had := self._had_again()) is not None:
            return had
        try:
            wire = await self._dial(library, self.first)
        except ClientIdInUse:
            self._in_use_since = self._in_use_since or monotonic()
            if monotonic() - self._in_use_since < self._config.client_id_seconds:
                raise
        except BaseException:
            self._in_use_since = None  # who has it may be gone with the gateway: only an unbroken time counts
            raise
        else:
            self._in_use_since = None
            return wire
        log.warning("client id %d is in use: connecting as %d", self.first, self.spare)
        return await self._dial(library, self.spare)

    def explain(self, wire: Wire) -> None:
        """Say which orders a new connection may not touch, and what a person can do about it."""
        first, spare = self.first, self.spare
        self._orders.advice = {
            first: f"end the program that uses client id {first}, or cancel the order in TWS; the id is taken "
            "back as soon as it is free",
            spare: f"it can be as soon as TWS lets us connect as client {spare} too, which is being tried",
        }
        if wire.client_id != first:
            self._health.note = (
                f"connected as client {wire.client_id}, because client id {first} is in use elsewhere: orders "
                "that were sent under it can be neither changed nor cancelled, by a kill only where "
                f"kill_switch.foreign is cancel or flatten; end the program that uses client id {first}, or "
                "cancel them in TWS (the id is taken back as soon as it is free)"
            )
        theirs = [known.order_id for known in self._orders.book.open() if known.client_id != wire.client_id]
        if theirs:
            log.warning(
                "this is client %d, and another client has sent %s: IB lets only that one change and cancel them",
                wire.client_id,
                ", ".join(theirs),
            )

    async def keep(self, main: Wire, lost: Callable[[str], None]) -> None:
        """Keep at having the other id, until the connection ends; `lost` ends the one under the spare id."""
        if main.client_id == self.first:
            await self._keep_spare(main)
            return
        had = await self._have_first(main)
        try:
            while main.lanes.waiting:  # what has not left when a connection ends never does
                await self._until_wanted(WANTED_AGAIN)
        except BaseException:
            had[0].close()
            raise
        self._next = had
        lost(f"client id {self.first} is free again, and is used from here on")
        main.close()

    def close(self) -> None:
        """Let go of what was opened for the next connection."""
        if (wire := self._had_again()) is not None:
            wire.close()

    # --- inside ------------------------------------------------------------------------------------------------

    async def _dial(self, library: Library, client_id: int) -> Wire:
        wire = Wire(library, self._config.messages_per_second)
        self._health.watch(wire)
        await self._open_as(wire, client_id)
        return wire

    async def _open_as(self, wire: Wire, client_id: int) -> None:
        await wire.open(self._settings.host, self._settings.port, client_id, self._config.connect_seconds)

    def _had_again(self) -> Wire | None:
        """Take the first id's connection that was made beside the spare one's, where it stands."""
        had, self._next = self._next, None
        if had is None or not had[0].is_open:
            return None
        wire, told = had
        self._in_use_since = None
        self._health.watch(wire)
        for code in tuple(told):
            self._health.on_code(*code)
        return wire

    async def _have_first(self, main: Wire) -> tuple[Wire, list[tuple[Any, ...]]]:
        """Connect under the first id as soon as it is free."""
        while True:
            await self._until_wanted(TRY_AGAIN)
            told: list[tuple[Any, ...]] = []
            wire = Wire(main.library, self._config.messages_per_second)
            wire.on({"error": lambda *code, told=told: told.append(code)})
            try:
                await self._open_as(wire, self.first)
            except BrokerError as error:
                log.debug("client id %d can't be had again yet: %s", self.first, error)
            else:
                return wire, told

    async def _keep_spare(self, main: Wire) -> None:
        """Be connected under the spare id as well, as long as orders work that it has sent."""
        beside: Wire | None = None
        try:
            while True:
                needed = any(known.client_id == self.spare for known in self._orders.book.open())
                if beside is not None and not (needed and beside.is_open):
                    beside.close()
                    beside = None
                if needed and beside is None:
                    beside = await self._stand_beside(main)
                await self._until_wanted(TRY_AGAIN)
        finally:
            if beside is not None:
                beside.close()

    async def _stand_beside(self, main: Wire) -> Wire | None:
        wire = Wire(main.library, self._config.messages_per_second, beside=main)
        try:
            await self._open_as(wire, self.spare)
        except BrokerError as error:
            log.warning("orders of client id %d can't be changed or cancelled yet: %s", self.spare, error)
            return None
        self._orders.attach_beside(wire)
        log.warning("connected as client %d too, as long as orders work that it has sent", self.spare)
        return wire

    async def _until_wanted(self, longest: float) -> None:
        """Wait until somebody waits for the other id, or for so long; TWS is never asked without a pause."""
        await asyncio.sleep(min(longest, WANTED_AGAIN))
        try:
            async with asyncio.timeout(longest - WANTED_AGAIN):
                await self.wanted.wait()
        except TimeoutError:
            pass  # time to look
        self.wanted.clear()

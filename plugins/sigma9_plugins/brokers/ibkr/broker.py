"""The broker: one connection at a time, put together from its parts; lives on the money lane."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sigma9_core.clock import monotonic
from sigma9_core.contracts import (
    KEPT,
    BrokerAccount,
    BrokerHealth,
    BrokerListener,
    BrokerOrder,
    BrokerPosition,
    BrokerReport,
    Instrument,
    Margin,
    PluginContext,
)
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import ApprovedOrder, Fill, OrderRequest
from sigma9_plugins.brokers.ibkr import library
from sigma9_plugins.brokers.ibkr.accounts import choose, funds_of, positions_of, what_if
from sigma9_plugins.brokers.ibkr.asking import Answer, Asking
from sigma9_plugins.brokers.ibkr.blackout import Blackout
from sigma9_plugins.brokers.ibkr.book import Known
from sigma9_plugins.brokers.ibkr.client_ids import ClientIds
from sigma9_plugins.brokers.ibkr.contracts import Contracts
from sigma9_plugins.brokers.ibkr.health import Health, keep_probing
from sigma9_plugins.brokers.ibkr.ids import OrderNumbers
from sigma9_plugins.brokers.ibkr.mapping import to_ib
from sigma9_plugins.brokers.ibkr.orders import Orders
from sigma9_plugins.brokers.ibkr.reading import Reading
from sigma9_plugins.brokers.ibkr.settings import IbkrConfig
from sigma9_plugins.brokers.ibkr.wire import Handler, Wire

log = logging.getLogger("sigma9.ibkr")

LOOK_AFTER: Final = 1.0
"""Seconds until an order in doubt is read back: what explains it is often on its way."""
LOOK_AGAIN: Final = 5.0
LOOKS: Final = 6
"""So often what an order lacks is looked for again, each pause three times as long: for half an hour."""
WHAT_IF_WITHIN: Final = 1.8
"""Seconds; the gate waits a moment longer, and so hears why there is no answer."""


class Connection:
    """What belongs to one connection and ends with it."""

    def __init__(
        self,
        wire: Wire,
        account: str,
        orders: Orders,
        contracts: Contracts,
        config: IbkrConfig,
        *,
        cut_off: Callable[[], bool],
    ) -> None:
        """Store; `cut_off` tells that TWS has lost IB's servers, and may have nobody to ask."""
        self.wire = wire
        self.account = account
        self.rate: Decimal | None = None
        """What a dollar is worth in the account's base currency, as it was told last."""
        self.asking = Asking(wire, config.answer_seconds, cut_off)
        self.reading = Reading(
            wire, self.asking, orders, contracts, account=account, patience=config.commission_seconds
        )
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Any, name: str) -> None:
        """Run something until the connection ends."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def end(self, why: str) -> None:
        """End what waits, and what runs."""
        self.asking.fail_all(why)
        for task in self.tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed: %s", task.get_name(), error, exc_info=error)


class IbkrBroker:
    """Executes orders at Interactive Brokers."""

    def __init__(self, config: IbkrConfig, context: PluginContext) -> None:
        self.health = BrokerHealth()
        # IB holds orders by the clock on the wall: a market that is simulated has another one.
        self.keeps = frozenset(KEPT if context.clock.kind == "live" else ("adjustment",))
        self._config = config
        self._settings = context.settings.ibkr
        self._foreign = context.settings.kill_switch.foreign
        self._clock = context.clock
        self._blackout = Blackout(config.restart, context.settings.scheduler.timezone)
        self._health = Health(self._tell_health)
        self._contracts = Contracts()
        self._numbers = OrderNumbers(context.data_dir)
        self._orders = Orders(self._contracts, self._numbers, self._tell, self._look, config.commission_seconds)
        self._ids = ClientIds(self._settings, config, self._health, self._orders)
        self._listener: BrokerListener | None = None
        self._connection: Connection | None = None
        self._doubts: set[Known] = set()
        self._looked: dict[Known, int] = {}
        """How often executions or commissions of an order were read back in vain, on this connection."""
        self._swept = 0.0

    # --- connection --------------------------------------------------------------------------------------------

    async def connect(self, listener: BrokerListener) -> None:
        """Connect once, choose the account, and learn what works; who calls keeps trying."""
        await self._hang_up("a new connection is made")
        loaded = await asyncio.to_thread(library.load)
        self._listener = listener
        wire = await self._ids.open(loaded)
        try:
            account = choose(self._settings.account, wire.accounts)
            await asyncio.to_thread(self._numbers.begin, wire.first_free_id)
            connection = Connection(
                wire,
                account,
                self._orders,
                self._contracts,
                self._config,
                cut_off=lambda: self._health.cut_off,
            )
            self._orders.attach(wire, account)
            self._connection = connection
            wire.on_lost = self._lost
            if not wire.is_open:
                raise BrokerError("TWS closed the connection at once")
            await connection.reading.open_orders()
            self._reserve_ids()  # an id that was heard of may lie above the mark
            self._ids.explain(wire)
        except BaseException:
            self._connection = None
            self._orders.detach()
            wire.close()
            raise
        self._looked = {}
        self._health.up()
        connection.spawn(keep_probing(wire, self._health, self._config.probe_seconds), "ibkr-probe")
        connection.spawn(self._ids.keep(wire, self._lost), "ibkr-client-id")

    async def disconnect(self) -> None:
        """Disconnect; working orders stay at IB."""
        await self._hang_up("disconnected")
        self._ids.close()
        self._health.down()
        self._listener = None

    def _lost(self, why: str) -> None:
        """Learn that the connection has ended by itself."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        log.error("the connection to TWS has ended: %s", why)
        self._orders.detach()
        connection.end(why)
        self._health.down()

    async def _hang_up(self, why: str) -> None:
        """End the connection without a word to the listener."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.wire.on_lost = lambda _why: None
        self._orders.detach()
        connection.end(why)
        connection.wire.close()
        await asyncio.gather(*connection.tasks, return_exceptions=True)

    # --- orders ------------------------------------------------------------------------------------------------

    async def submit(self, orders: Sequence[ApprovedOrder]) -> None:
        """Send one order or a group as a unit; nothing is awaited before it has left."""
        self._check_may_send([order.request for order in orders])
        self._orders.submit(orders)
        self._reserve_ids()

    async def replace(self, order: ApprovedOrder) -> None:
        """Change a working order; nothing is awaited before it has left."""
        self._check_may_send([order.request])
        self._orders.replace(order)

    async def cancel(self, order_id: str) -> None:
        """Cancel an order of ours; one that this client has not sent only by a global cancel, where a kill may.

        A kill that may asks for it by IB's name of the order.
        """
        self._check_may_change()
        book = self._orders.book
        known = book.by_id(order_id) or book.by_broker_id(order_id)
        may = known is not None and self._orders.may_change(known)
        if known is None or (not may and known.order_id != order_id):
            await self._cancel_foreign(order_id)
            return
        if not may:
            self._ids.wanted.set()
        self._orders.cancel(known.order_id)

    async def _cancel_foreign(self, broker_order_id: str) -> None:
        """Cancel everything in the account: IB has no narrower cancel for what another client has sent."""
        if not broker_order_id.replace("/", "").lstrip("-").isdigit():
            raise BrokerError(f"no order has the id {broker_order_id}")
        if self._foreign == "leave":
            raise BrokerError(
                f"order {broker_order_id} was not sent by this server: IB lets only its own client cancel it"
            )
        connection = self._connected()
        if monotonic() - self._swept >= 1.0:  # one of them covers all that are asked for together
            self._swept = monotonic()
            log.warning("a global cancel is sent: kill_switch.foreign is %s", self._foreign)
            connection.wire.put("urgent", ("reqGlobalCancel", ()))
            for known in self._orders.book.open():
                if not self._orders.may_change(known):
                    self._look(known)  # what becomes of it is told to the client that has sent it

    def _check_may_send(self, requests: Sequence[OrderRequest]) -> None:
        """Raise BrokerRefused where nothing may be sent now."""
        self._check_may_change()
        if self.health.link == "down":
            raise BrokerRefused("TWS has lost IB's servers: nothing was sent")
        entering = any(request.intent == "entry" for request in requests)
        if entering and self._blackout.covers(self._clock.now()):
            raise BrokerRefused(f"the gateway restarts: there are no entries from {self._blackout}")

    def _check_may_change(self) -> None:
        if self._settings.readonly:
            raise BrokerRefused("ibkr.readonly is set: nothing is sent")
        self._connected()

    # --- reading back ------------------------------------------------------------------------------------------

    async def open_orders(self) -> Sequence[BrokerOrder]:
        """Read back what works in the account, orders of other clients and by hand included."""
        return await self._connected().reading.open_orders()

    async def completed_orders(self, since: datetime) -> Sequence[BrokerOrder]:
        """Read back what has ended; IB keeps a day of it."""
        return await self._connected().reading.completed_orders(since)

    async def executions(self, since: datetime) -> Sequence[Fill]:
        """Read back the executions; IB keeps those of the day."""
        return await self._connected().reading.executions(since)

    async def positions(self) -> Sequence[BrokerPosition]:
        """Read back the positions."""
        connection = self._connected()
        return await positions_of(connection.wire, connection.asking, self._contracts, connection.account)

    async def account(self) -> BrokerAccount:
        """Read back the account."""
        connection = self._connected()
        account, connection.rate = await funds_of(connection.asking, connection.account)
        return account

    async def instrument(self, symbol: str) -> Instrument:
        """Qualify a symbol's contract, once: its orders then carry IB's own number of it."""
        connection = self._connected()
        return await self._contracts.learn(connection.wire.library, connection.asking, symbol)

    async def what_if(self, order: OrderRequest) -> Margin:
        """Ask what an order would do to the margin; nothing is sent that could trade."""
        if self._settings.readonly:
            raise BrokerRefused("ibkr.readonly is set: TWS answers no what-if")
        connection = self._connected()
        if connection.rate is None:
            await self.account()
        wire, number = connection.wire, self._numbers.next()
        written = to_ib(wire.library, order, "", account=connection.account, number=number)
        written.whatIf, written.ocaGroup, written.parentId = True, "", 0
        contract = self._contracts.contract(wire.library, order.symbol)
        return await what_if(
            wire, connection.asking, contract, written, within=WHAT_IF_WITHIN, rate=connection.rate
        )

    async def time(self) -> datetime:
        """Tell IB's time; it comes in whole seconds, of which the middle is given."""

        def handlers(answer: Answer[int]) -> dict[str, Handler]:
            def take(seconds: int) -> None:
                answer.items.append(seconds)
                answer.finish()

            return {"currentTime": take}

        told = await self._connected().asking.single("time", handlers, ("reqCurrentTime", ()))
        return datetime.fromtimestamp(told[0], UTC) + timedelta(seconds=0.5)

    # --- inside ------------------------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is None or not connection.wire.is_open:
            raise BrokerRefused("not connected to TWS: nothing was sent")
        return connection

    def _tell(self, report: BrokerReport) -> None:
        if self._listener is not None:
            self._listener.on_report(report)

    def _tell_health(self, health: BrokerHealth) -> None:
        self.health = health
        if self._listener is not None:
            self._listener.on_health(health)
        if health.link == "down" and self._connection is not None:
            self._orders.cut_off()  # once it is known why: nobody sends it again before the link is back

    def _look(self, known: Known) -> None:
        """Have an order that is in doubt read back, together with all that fall into doubt meanwhile."""
        connection = self._connection
        if connection is None:
            return  # whoever connects reads everything back
        first = not self._doubts
        self._doubts.add(known)
        if first:
            connection.spawn(self._settle_doubts(connection), "ibkr-read-back")

    async def _settle_doubts(self, connection: Connection) -> None:
        wait = LOOK_AFTER
        try:
            while self._doubts:
                await asyncio.sleep(wait)
                doubted = [known for known in self._doubts if self._doubtful(known)]
                self._doubts.clear()
                if not doubted:
                    return
                try:
                    await connection.reading.settle(doubted)
                except BrokerError as error:
                    log.warning("orders in doubt can't be read back yet: %s", error)
                    self._doubts.update(doubted)
                else:
                    for known in doubted:
                        if self._lacks(known):
                            self._missing(connection, known)
                        else:
                            self._looked.pop(known, None)
                wait = LOOK_AGAIN
        finally:
            if self._connection is not connection:
                self._doubts.clear()

    def _missing(self, connection: Connection, known: Known) -> None:
        """Look again later for what a read-back did not have of an order's fills; at last say what is missing."""
        looks = self._looked[known] = self._looked.get(known, 0) + 1
        if looks <= LOOKS:
            pause = LOOK_AGAIN * 3 ** (looks - 1)
            connection.spawn(self._look_after(pause, known), f"ibkr-look-again[{known.order_id}]")
        elif looks == LOOKS + 1:
            missing = known.told - known.counted
            what = f"executions of {missing} more that have filled" if missing > 0 else "a commission"
            log.error("order %s: IB does not tell %s: compare with TWS", known.order_id, what)

    async def _look_after(self, pause: float, known: Known) -> None:
        await asyncio.sleep(pause)
        if self._lacks(known):
            self._look(known)

    def _lacks(self, known: Known) -> bool:
        """Tell whether executions are missing, or commissions of those that are there."""
        return known.told > known.counted or self._orders.executions.owes(known)

    def _doubtful(self, known: Known) -> bool:
        """Tell whether there is still something to find out."""
        return known.end is None or known.back or self._lacks(known)

    def _reserve_ids(self) -> None:
        if self._numbers.runs_low and self._connection is not None:
            self._connection.spawn(asyncio.to_thread(self._numbers.reserve), "ibkr-ids")

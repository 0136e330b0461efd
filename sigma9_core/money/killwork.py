"""The work of a kill: cancels, closes and read-backs, round by round, until the broker shows nothing left.

A kill acts on what our journal opened; what is foreign is touched only where `kill_switch.foreign` says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeVar

from sigma9_core.calendar import Calendar
from sigma9_core.clock import Clock, monotonic, wall_now
from sigma9_core.config import KillSwitchSettings
from sigma9_core.contracts import BrokerOrder
from sigma9_core.errors import BrokerError, CommandError
from sigma9_core.models import ZERO, OrderRequest, OrderStatus
from sigma9_core.money.adoption import adoption
from sigma9_core.money.desk import OrderDesk
from sigma9_core.money.exits import ExitManager
from sigma9_core.money.gate import RiskGate
from sigma9_core.money.kill import Kill, Phase, closes
from sigma9_core.money.link import BrokerLink
from sigma9_core.money.orders import Order
from sigma9_core.money.records import FillRecord

log = logging.getLogger("sigma9.kill")

T = TypeVar("T")

ROUND: Final = 0.25
"""Seconds between two looks while a kill works; reports wake it earlier."""
WAITING_FOR_MARKET: Final = "waiting_for_market"
NOT_READ_BACK: Final = (
    "what the broker has done while it was away is not read back yet: a close could be of the wrong size, "
    "so cancels go out and closes wait"
)
LONGEST_WAIT: Final = 10.0
"""Seconds between two closes of a symbol that keep coming to nothing."""
ASK_AGAIN: Final = timedelta(seconds=5)
"""Time until a cancel that came to nothing is asked for again."""
REFUSED_AGAIN: Final = timedelta(seconds=0.5)
"""The same for a cancel that the broker did not take."""
READ_WITHIN: Final = 5.0
"""Seconds that one of the broker's read-backs may take; then the round ends, and the next one asks again."""
CANCELS_WITHIN: Final = 0.5
"""Seconds that a round gives its cancels; one that hangs goes on by itself, and holds nothing else up."""

Work = Callable[[Kill, str, Decimal], Awaitable[None]]
"""What is done with the position of a kill in a symbol."""


class KillWork:
    """Does what a kill can do at a moment; on the money lane."""

    def __init__(
        self,
        *,
        gate: RiskGate,
        desk: OrderDesk,
        exits: ExitManager,
        clock: Clock,
        calendar: Calendar,
        settings: KillSwitchSettings,
        enter: Callable[[Kill, Phase], None],
    ) -> None:
        """Store; `enter` is told of each phase that a kill enters."""
        self.asking: set[asyncio.Task[None]] = set()
        """Cancels that are on their way."""
        self._at_work: set[str] = set()
        """Positions that a kill is closing, or giving their stop back, at this moment."""
        self._gate = gate
        self._desk = desk
        self._exits = exits
        self._clock = clock
        self._calendar = calendar
        self._settings = settings
        self._enter = enter
        self._link: BrokerLink | None = None

    def attach(self, link: BrokerLink) -> None:
        """Name the link that orders go out by."""
        self._link = link

    def link_up(self) -> BrokerLink:
        """Give the link; raise CommandError where the broker is not connected."""
        if self._link is None or self._link.state != "connected":
            raise CommandError("broker_unavailable", "the broker is not connected; the kill acts when it is")
        return self._link

    def pending(self, kill: Kill) -> list[str]:
        """Name what is left: our working orders and, where it flattens, our positions."""
        orders = [
            order.order_id
            for order in self._desk.open_orders()
            if kill.covers(order.request) and (kill.flatten or order.request.intent == "entry")
        ]
        return [*orders, *(self.positions(kill) if kill.flatten else ()), *kill.unknown]

    async def round(self, kill: Kill) -> bool:
        """Do what can be done now; tell whether nothing is left."""
        try:
            return await self._round(kill)
        finally:
            self.take_down(kill)  # a broker's reports come while a round waits, and this one may be the last

    async def _round(self, kill: Kill) -> bool:
        link = self.link_up()
        cancels, joins = self._to_cancel(kill), kill.joins
        first = kill.phase == "gated"
        if first:
            kill.phase = "cancelling"
        await self._cancel(kill, cancels)
        if kill.joins == joins:  # who has joined meanwhile may want more of them
            kill.cancels_sent.set()
        if first and self.pending(kill):  # where there is nothing to do it is done before anybody could hear of it
            self._enter(kill, "cancelling")
        foreign = (
            await self._foreign_orders(kill) if self._settings.foreign != "leave" and kill.key is None else []
        )
        if kill.error == NOT_READ_BACK:
            kill.error = None
        if kill.flatten and self._behind(link):
            kill.detail, kill.error = "waiting_for_broker", NOT_READ_BACK
        elif kill.flatten:
            await self._flatten(kill)
        left = await self._left_orders(kill)
        await self._cancel_strays(kill, left)
        kill.unknown = []
        if left or foreign or not link.ready or self.pending(kill):
            return False
        if kill.flatten and (unknown := await self._unknown_positions(kill)):
            kill.unknown = unknown
            kill.error = f"the broker shows {', '.join(unknown)}, and our books do not explain it yet"
        return not kill.unknown

    def _to_cancel(self, kill: Kill) -> list[Order]:
        """List the orders to cancel now: all but verified reducing ones, which go when their close can work."""
        return [
            order
            for order in self._desk.open_orders()
            if kill.covers(order.request)
            and self._to_go(order)
            and (kill.flatten or order.request.intent == "entry")
        ]

    def _to_go(self, order: Order) -> bool:
        """Tell whether an order can go now; a stop goes with its close, or once there is nothing left to guard."""
        if order.request.protective:
            return order.request.intent == "kill" and not self._desk.portfolio.quantity(order.request.symbol)
        return order.request.intent != "kill"

    async def _cancel(self, kill: Kill, orders: list[Order]) -> None:
        """Ask for cancels, side by side, and take down what has come of them."""
        asked = [order for order in orders if order.working and self._may_ask(kill, order.order_id)]
        await self.side_by_side(self._ask_cancel(kill, order) for order in asked)
        self.take_down(kill)

    def take_down(self, kill: Kill) -> None:
        """Note what of that which was asked for has come: cancelled orders, closed positions."""
        working = {order.order_id for order in self._desk.open_orders()}
        kill.failed = {order_id: why for order_id, why in kill.failed.items() if order_id in working}
        kill.cancelled = [order_id for order_id in kill.cancelled if order_id not in working]
        for order_id in kill.asked:
            ended = self._desk.orders.get(order_id)
            if (
                ended is not None
                and ended.status in (OrderStatus.CANCELLED, OrderStatus.EXPIRED)
                and order_id not in kill.cancelled
            ):
                kill.cancelled.append(order_id)
        for symbol, order_id in kill.closing.items():
            if symbol not in kill.closed and self._desk.portfolio.quantity(symbol) == ZERO:
                order = self._desk.orders.get(order_id)
                if order is None or not order.working:
                    kill.closed.append(symbol)

    async def _ask_cancel(self, kill: Kill, order: Order) -> None:
        try:
            failed = await self._desk.ask_cancel(order)
        except CommandError as error:  # nothing has left: it is asked for again as soon as it can
            kill.asked.pop(order.order_id, None)
            kill.error = str(error)
        else:
            if failed is None:
                kill.failed.pop(order.order_id, None)
            else:
                kill.failed[order.order_id] = failed
            if (
                order.working and not order.cancel_asked
            ):  # refused, or never arrived: the order may be on its way yet
                kill.asked[order.order_id] = wall_now() - ASK_AGAIN + REFUSED_AGAIN

    async def _cancel_strays(self, kill: Kill, left: list[str]) -> None:
        """Cancel what the broker still shows of ours although our books say that it has ended."""
        ended = [each for each in left if (order := self._desk.orders.get(each)) is None or not order.working]
        await self._cancel_at_broker(kill, ended)

    async def _cancel_at_broker(self, kill: Kill, ids: Sequence[str]) -> None:
        """Cancel orders that our books do not have as working."""
        broker = self.link_up().broker
        asked = [each for each in ids if self._may_ask(kill, each)]
        await self.side_by_side(self._cancel_stray(kill, each, broker.cancel(each)) for each in asked)

    async def _cancel_stray(self, kill: Kill, order_id: str, cancel: Awaitable[None]) -> None:
        try:
            await self.read("cancel", cancel)
        except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; a cancel is asked again
            log.warning("the cancel of order %s failed: %s", order_id, error)
            if kill.phase != "done":
                kill.error = f"the cancel of order {order_id} failed: {error}"

    def _may_ask(self, kill: Kill, order_id: str) -> bool:
        """Tell whether a cancel may be asked for now, and take down that it was."""
        now = wall_now()
        last = kill.asked.get(order_id)
        if last is not None and now - last < ASK_AGAIN:
            return False
        kill.asked[order_id] = now
        return True

    async def side_by_side(self, cancels: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Send cancels in one go and give them a moment; one that hangs goes on beside everything else."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(cancel, name="kill-cancel") for cancel in cancels]
        self.asking.update(tasks)
        for task in tasks:
            task.add_done_callback(self.asking.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=CANCELS_WITHIN)

    async def _flatten(self, kill: Kill) -> None:
        if kill.phase == "cancelling":
            kill.phase = "flattening"
            if self.positions(kill):
                self._enter(kill, "flattening")
        market_open = self._calendar.at(self._clock.now()) is not None
        waiting: list[str] = []
        work: list[Coroutine[Any, Any, None]] = []
        for symbol, quantity in self.positions(kill).items():
            closing = self._working_close(symbol)
            if closing is not None:  # one working close a symbol; `unknown` counts as working
                kill.closing[symbol] = closing.order_id
            elif not market_open or self._halted(symbol):
                waiting.append(symbol)
                self._exits.fit(symbol)
            elif monotonic() >= kill.not_before.get(symbol, 0.0):
                work.append(self._alone(self._close, kill, symbol, quantity))
            else:
                work.append(self._alone(self._protect, kill, symbol, quantity))
        ends = await asyncio.gather(*work, return_exceptions=True)  # one that hangs holds up no other symbol
        kill.detail = WAITING_FOR_MARKET if waiting else None
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _alone(self, work: Work, kill: Kill, symbol: str, quantity: Decimal) -> None:
        """Work on a position unless another kill does: a stop put back now would be in the way of its close."""
        if symbol in self._at_work:
            return
        self._at_work.add(symbol)
        try:
            await work(kill, symbol, quantity)
        finally:
            self._at_work.discard(symbol)

    async def _close(self, kill: Kill, symbol: str, quantity: Decimal) -> None:
        """Close one position: nothing that protects it goes before its close is known to pass."""
        legs = [o for o in self._desk.open_orders() if o.request.symbol == symbol and not closes(o)]
        others = [order for order in legs if not order.request.protective]
        await self._cancel(kill, others)
        if any(order.working for order in others):
            return  # an entry or exit that may still fill would change what is to be closed
        fresh = await self._fresh(symbol)
        if fresh == ZERO or (fresh > 0) != (quantity > 0):
            return
        request = self._request(kill, symbol, min(abs(fresh), abs(quantity)), "sell" if fresh > 0 else "buy")
        view = self._desk.view()
        alone = replace(view, working=[order for order in view.working if order.symbol != symbol])
        decision = await self._gate.decide("preview", request, alone)
        if decision.refused is not None:
            self._later(kill, symbol, f"{symbol}: {decision.refused.rule}: {decision.refused.reason}")
            return
        await self._cancel(kill, legs)
        if any(order.working for order in legs):
            return  # a stop that may still fill would take the position through zero
        fresh = await self._fresh(symbol)  # a stop may have filled meanwhile
        if fresh == ZERO or (fresh > 0) != (quantity > 0):
            return
        request = request.model_copy(update={"quantity": min(abs(fresh), abs(quantity))})
        if kill.ending or self._working_close(symbol) is not None:
            return  # a reset asks for the end, or another kill over the same position was faster
        if self._desk.portfolio.position(symbol).foreign:
            self._adopt(symbol)
        self._later(kill, symbol, None)
        order = (await self._desk.submit([request], cause="kill_switch", urgent=True))[0]
        if order.status is OrderStatus.RISK_REJECTED:
            self._later(kill, symbol, f"{symbol}: {order.reason}")
        else:
            kill.closing[symbol] = order.order_id

    def _request(self, kill: Kill, symbol: str, quantity: Decimal, side: Literal["buy", "sell"]) -> OrderRequest:
        return OrderRequest(
            symbol=symbol,
            side=side,
            quantity=quantity,
            strategy=self._desk.portfolio.position(symbol).strategy,
            source="kill_switch",
            intent="kill",
            reason=f"kill switch: {kill.reason}"[:200],
        )

    async def _protect(self, kill: Kill, symbol: str, quantity: Decimal) -> None:
        """Put a stop back while the next close of a position waits: the last one came to nothing.

        Its stops had to go before the close could work; without one, a broker that refuses every close would
        leave the position to the market.
        """
        legs = [o for o in self._desk.open_orders() if o.request.symbol == symbol]
        tried = kill.guarded.get(symbol) == kill.tries.get(symbol)
        if symbol not in kill.closing or tried or any(order.request.protective for order in legs):
            return
        kill.guarded[symbol] = kill.tries.get(symbol, 0)
        side: Literal["buy", "sell"] = "sell" if quantity > 0 else "buy"
        price = self._exits.stop_price_of(symbol)
        if price is None:
            return
        stop = self._request(kill, symbol, abs(quantity), side).model_copy(
            update={"order_type": "stop", "stop_price": price, "time_in_force": "gtc", "protective": True}
        )
        order = (await self._desk.submit([stop], cause="kill_switch", urgent=True))[0]
        log.error("the close of %s came to nothing; its stop at %s is put back (%s)", symbol, price, order.status)

    def _later(self, kill: Kill, symbol: str, error: str | None) -> None:
        """Let the next close of a symbol wait, each time longer: a broker that refuses is not flooded."""
        tries = kill.tries[symbol] = kill.tries.get(symbol, 0) + 1
        kill.not_before[symbol] = monotonic() + min(LONGEST_WAIT, ROUND * 2**tries)
        if error is not None:
            kill.error = error

    def _adopt(self, symbol: str) -> None:
        """Take a foreign position that is to be closed into the books: its close is then no short of ours."""
        fill = adoption(self._desk.portfolio.position(symbol), self._clock.now())
        self._desk.note([FillRecord(fill, None, "kill_switch", recovered=True)])
        self._desk.portfolio.adopt(fill, None)

    def _working_close(self, symbol: str) -> Order | None:
        """Find a close of this or an earlier kill that still works, such as one sent before a restart."""
        for order in self._desk.open_orders():
            if order.request.symbol == symbol and closes(order):
                return order
        return None

    # --- reading ----------------------------------------------------------------------------------------------

    def positions(self, kill: Kill) -> dict[str, Decimal]:
        """Give what is to be closed: ours in scope, and foreign ones where the configuration says `flatten`."""
        found: dict[str, Decimal] = {}
        for position in self._desk.portfolio.positions():
            if position.foreign and not (self._settings.foreign == "flatten" and kill.key is None):
                continue
            wanted = kill.key is None or (
                position.strategy == kill.key[1] if kill.key[0] == "strategy" else position.symbol == kill.key[1]
            )
            if wanted and position.quantity != ZERO:
                found[position.symbol] = position.quantity
        return found

    async def _fresh(self, symbol: str) -> Decimal:
        """Read a position back from the broker."""
        positions = await self.read("positions", self.link_up().broker.positions())
        return next((p.quantity for p in positions if p.symbol == symbol), ZERO)

    async def _unknown_positions(self, kill: Kill) -> list[str]:
        """Name the symbols in which the broker shows more, or less, than our books and what is known as foreign.

        Such as a fill whose report is on its way: nothing is done as long as the broker shows what nobody knows.
        """
        portfolio, unknown = self._desk.portfolio, []
        for shown in await self.read("positions", self.link_up().broker.positions()):
            symbol = shown.symbol
            if kill.key is not None and (
                symbol != kill.key[1] if kill.key[0] == "symbol" else portfolio.quantity(symbol) != ZERO
            ):
                continue  # it is none of this kill's
            if shown.quantity not in (ZERO, portfolio.position(symbol).quantity):
                unknown.append(symbol)
        return unknown

    async def _left_orders(self, kill: Kill) -> list[str]:
        """Read back which of our orders in scope still work; under a halt protective ones may."""
        left: list[str] = []
        for each in await self.read("open orders", self.link_up().broker.open_orders()):
            order = self._desk.orders.get(each.order_id or "")
            if order is None or not kill.covers(order.request):
                continue
            if kill.flatten or order.request.intent == "entry":
                left.append(order.order_id)
        return left

    async def _foreign_orders(self, kill: Kill) -> list[BrokerOrder]:
        """Cancel what is not ours, where the configuration says so in writing.

        An order of ours that the broker does not let us cancel is like one: it is named as the broker names it, so
        that a broker with a wider cancel may use that.
        """
        working = await self.read("open orders", self.link_up().broker.open_orders())
        foreign = [
            each
            for each in working
            if (each.order_id or "") not in self._desk.orders or each.order_id in kill.failed
        ]
        await self._cancel_at_broker(kill, [each.broker_order_id for each in foreign])
        return foreign

    async def read(self, what: str, answer: Awaitable[T]) -> T:
        """Wait a while for what the broker is asked: an answer that never comes must not hold the kill up."""
        try:
            async with asyncio.timeout(READ_WITHIN):
                return await answer
        except TimeoutError as error:
            message = f"the broker gave no answer ({what}) within {READ_WITHIN:g} s: it is asked again"
            raise BrokerError(message) from error

    def _halted(self, symbol: str) -> bool:
        mark = self._desk.portfolio.mark_of(symbol)
        return mark is not None and mark.halted

    def _behind(self, link: BrokerLink) -> bool:
        """Tell whether our books may not have yet what the broker has: nothing is sized from them before."""
        return not link.ready or self._desk.behind()


__all__ = ["NOT_READ_BACK", "ROUND", "WAITING_FOR_MARKET", "KillWork"]

"""What nobody wanted: positions that exits have opened by filling beyond theirs, such as a stop beside a close.

They are found as their fills come, and from the journal's fills after a restart or a bust; each is closed at the
market once a fresh read shows it at the broker too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from sigma9_core.clock import Clock, monotonic
from sigma9_core.errors import CommandError, JournalError
from sigma9_core.models import ZERO, OrderRequest, OrderStatus
from sigma9_core.money.desk import OrderDesk, Step
from sigma9_core.money.exits import ExitManager, opposite
from sigma9_core.money.ids import is_kill_id
from sigma9_core.money.journal import Journal
from sigma9_core.money.link import BrokerLink
from sigma9_core.money.reconcile import Reconciler

log = logging.getLogger("sigma9.unwanted")

FIRST_WAIT: Final = 5.0
LONGEST_WAIT: Final = 60.0
"""Seconds until a close that came to nothing is tried again: the first time, and at most."""


@dataclass(slots=True)
class TakingBack:
    """How the close of what an exit has opened has gone so far."""

    order_id: str | None = None
    """The newest close that was sent."""
    wait: float = 0.0
    not_before: float = 0.0
    told: set[str] = field(default_factory=set)
    """Why it could not be sent or was refused, each reason told once."""


class Unwanted:
    """Finds and closes positions that exits have opened and no entry has added to; on the money lane."""

    def __init__(
        self,
        *,
        desk: OrderDesk,
        exits: ExitManager,
        reconciler: Reconciler,
        link: BrokerLink,
        journal: Journal,
        clock: Clock,
        owns_exits: Callable[[str, str | None], bool],
    ) -> None:
        self.states: dict[str, TakingBack] = {}
        """By symbol."""
        self._desk = desk
        self._exits = exits
        self._reconciler = reconciler
        self._link = link
        self._journal = journal
        self._clock = clock
        self._owns_exits = owns_exits
        exits.left = self.look_at
        desk.followers.append(self._follow)

    async def find(self, symbols: Sequence[str]) -> None:
        """Work out from the fills that stand in which of these symbols exits have opened what is held.

        What an entry with a plan has opened, and nobody guards any more, is guarded again.
        """
        portfolio = self._desk.portfolio
        asks: dict[str, OrderRequest | None] = {}
        while asked := {f.order_id for symbol in symbols for f in portfolio.opened_by(symbol)} - {*asks}:
            known = {key: order.request for key in asked if (order := self._desk.orders.get(key)) is not None}
            asks |= known
            if known.keys() != asked:
                asks |= await asyncio.to_thread(self._read, asked - known.keys())
        for symbol in symbols:
            fills = portfolio.opened_by(symbol)
            if not fills or any(self._wanted(fill.order_id, asks[fill.order_id]) for fill in fills):
                self.states.pop(symbol, None)
                self._exits.guard_opened(symbol, asks)
            elif symbol not in self.states:
                self.states[symbol] = TakingBack()
                log.error("%s: exits have opened %s that nobody wanted", symbol, portfolio.quantity(symbol))

    def look_again(self) -> None:
        """Find anew what is known as unwanted, once a person may have said that it is wanted."""
        if self.states:
            self._desk.spawn(self.find([*self.states]), "find-unwanted")

    async def close(self) -> None:
        """Close what can be closed now; called every few seconds."""
        for symbol in sorted(self.states):
            await self._take_back(symbol)

    def look_at(self, symbol: str) -> None:
        """Find anew who has opened what is held of a symbol."""
        self._desk.spawn(self.find([symbol]), f"find-unwanted[{symbol}]")

    def _read(self, order_ids: Collection[str]) -> dict[str, OrderRequest | None]:
        """Give what was asked for with orders that are not in memory any more (blocks: disk)."""
        intents = {order_id: self._journal.intent(order_id) for order_id in order_ids}
        return {key: None if intent is None else intent.request for key, intent in intents.items()}

    def _wanted(self, order_id: str, ask: OrderRequest | None) -> bool:
        """Tell whether who made an order wanted what it opens: an entry, or a person's word."""
        return not is_kill_id(order_id, self._journal.journal_id) if ask is None else ask.intent == "entry"

    async def _take_back(self, symbol: str) -> None:
        position, state = self._desk.portfolio.position(symbol), self.states.get(symbol)
        if self._owns_exits(symbol, position.strategy) or self._exits.waits():
            return
        if state is None or monotonic() < state.not_before:
            return
        working = [order.request for order in self._desk.open_orders() if order.request.symbol == symbol]
        if any(ask.closes(self._clock.now()) for ask in working):
            return
        if (last := self._desk.orders.get(state.order_id or "")) is not None:
            state.order_id = None  # it has ended without a fill, which would have begun anew
            self._put_off(symbol, f"its close is {last.status}: {last.reason}")
            return
        try:
            quantity = await self._reconciler.closable(self._link, symbol)
            request = OrderRequest(
                symbol=symbol,
                side=opposite("buy" if quantity > 0 else "sell"),
                quantity=abs(quantity),
                strategy=position.strategy,
                source="exit",
                intent="reduce",
                reason="an exit has filled beyond its position",
            )
            order = (await self._desk.submit([request]))[0]
        except (CommandError, JournalError) as error:
            if self._desk.portfolio.quantity(symbol) == ZERO:
                self.states.pop(symbol, None)  # the books had heard of things in another order
            else:
                self._put_off(symbol, str(error))
            return
        if order.working:
            state.order_id = order.order_id
        elif not order.filled:
            self._put_off(symbol, str(order.reason))

    def _put_off(self, symbol: str, why: str) -> None:
        """Try a close that came to nothing again after a while, each time a longer one, and say why once."""
        state = self.states.get(symbol)
        if state is None:
            return
        state.wait = min(2 * state.wait or FIRST_WAIT, LONGEST_WAIT)
        state.not_before = monotonic() + state.wait
        if why not in state.told:
            state.told.add(why)
            log.warning("%s: what an exit has opened can't be closed yet, and is tried again: %s", symbol, why)

    def _follow(self, step: Step) -> None:
        applied = step.applied
        symbol, exits = step.order.request.symbol, step.order.request.intent != "entry"
        corrected = applied is not None and bool(applied.fill.corrects)
        if corrected or step.event is OrderStatus.BUSTED:  # what is held was opened by what stands now
            self.look_at(symbol)
            return
        if applied is not None and applied.opened and exits:
            self.states[symbol] = TakingBack()
            log.error(
                "%s: the exit %s has filled beyond the position: %s are held that nobody wanted; closing them",
                symbol,
                step.order.order_id,
                applied.after,
            )
        elif applied is not None and (applied.after == ZERO or (applied.grown and not exits)):
            self.states.pop(symbol, None)
        elif applied is not None and symbol in self.states:
            self.states[symbol] = TakingBack()  # it moves: the rest is tried at once

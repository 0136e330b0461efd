"""What must be so of the money path whatever happens: at any moment, at certain moments, and once all is calm.

| when | what |
|---|---|
| at any moment | cash + positions at cost = put in + realised; nothing overfills; exits fit, none is doubled |
| now and then | the journal makes the same books |
| an event is published | no number is missing; ids rise; what the gate refused is not at the exchange |
| an order leaves | its intent is durable; no kill, pause or doubt stands before it |
| a kill says done | nothing of ours works in its scope, and nothing is held |
| all is calm | books and exchange agree; exits are as large as their position, and fit the account; kills end |
| all is calm | an audit finds that the journal agrees with itself |
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from sigma9_core.events import TradeEvent
from sigma9_core.models import ZERO, ApprovedOrder, OrderStatus
from sigma9_core.money.adoption import ADOPTED
from sigma9_core.money.audit import audit
from sigma9_core.money.kill import Kill
from sigma9_core.money.orders import Order
from sigma9_core.money.portfolio import Portfolio
from sigma9_core.money.records import NoteRecord
from sigma9_core.money.restore import Bust, split_of
from sigma9_core.testing.model.room import RoughRoom
from sigma9_core.testing.model.world import SYMBOLS, MoneyWorld
from sigma9_core.testing.small_exchange import Resting

MANY: Final = 10_000
REPLAY_EVERY: Final = 4
"""Looks from one comparison with the journal to the next."""
MADE: Final = frozenset((OrderStatus.SUBMITTED, OrderStatus.RISK_REJECTED))
STAMP: Final = 10
"""Characters of an order's id that are its millisecond."""


class MoneyChecks:
    """Looks at a world; what it finds is an AssertionError, at the latest at the next `look`."""

    def __init__(self, world: MoneyWorld) -> None:
        self.failed = False
        self._world = world
        self._looks = 0
        self._seq = 0
        self._newest = ""
        self._phases: dict[object, str] = {}
        world.exchange.arrives = self._arrives
        world.opened = self._opened
        world.looked = self._hear

    # --- at any moment ----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look at what must be so at any moment."""
        self._looks += 1
        self._nothing_is_wrong()
        self._money_adds_up()
        self._nothing_fills_beyond_its_size()
        self._exits_fit_their_position()
        self._no_exit_is_doubled()
        if self._looks % REPLAY_EVERY == 0:
            self.replay()

    def require(self, holds: object, what: str) -> None:
        """Raise AssertionError where something does not hold."""
        if not holds:
            self.failed = True
            raise AssertionError(what)

    def _nothing_is_wrong(self) -> None:
        self.require(not self._world.wrong, "\n".join(dict.fromkeys(self._world.wrong)))

    def _money_adds_up(self) -> None:
        books = self._world.room.path.portfolio
        left, right = books.cash + books.cost, books.put_in + books.realized
        self.require(left == right, f"cash and cost are {left}, put in and realised {right}")

    def _nothing_fills_beyond_its_size(self) -> None:
        for order in self._world.room.desk.orders.values():
            size = max(order.request.quantity, order.replacement.quantity if order.replacement else ZERO)
            self.require(order.filled <= size, f"{order.filled} of {size} have filled: {order}")

    def _exits_fit_their_position(self) -> None:
        """See that exits can't trade more at the exchange than there is to close: none can flip a position."""
        for symbol in SYMBOLS:
            for side in ("buy", "sell") if symbol not in self._world.exchange.excused else ():
                room, asked = self._exits(symbol, side)
                self.require(asked <= room, f"exits may {side} {asked} {symbol}, and there are {room} to close")

    def _no_exit_is_doubled(self) -> None:
        """See that no position has two stops, two trails or two time stops of our own making at the exchange.

        What may have been taken for ended may have got another one in its place.
        """
        seen: set[tuple[str, str]] = set()
        for order in self._world.working():
            ask = order.request
            if order.order_id in self._world.exchange.lost_sight:
                continue
            if ask.source == "exit" and ask.oca_group is not None:
                key = ask.oca_group, ask.order_type
                self.require(key not in seen, f"{ask.symbol} has two exits of a kind: {order}")
                seen.add(key)

    def _exits(self, symbol: str, side: str, *, protective: bool = False) -> tuple[Decimal, Decimal]:
        """Give how much of ours there is to close at the exchange, and how much exits may trade, groups once.

        Of the exits, perhaps only those that protect are counted; those that were out of sight in the calm alone.
        """
        exchange = self._world.exchange
        own = exchange.own.get(symbol, ZERO)
        groups: dict[str, Decimal] = {}
        for order in self._world.working():
            ask = order.request
            wanted = ask.intent != "entry" and (ask.protective or not protective)
            wanted = wanted and order.order_id not in exchange.lost_sight
            if ask.symbol == symbol and ask.side == side and wanted:
                group = ask.oca_group or order.order_id
                groups[group] = max(groups.get(group, ZERO), exchange.fillable(order))
        return max(own if side == "sell" else -own, ZERO), sum(groups.values(), ZERO)

    def replay(self) -> None:
        """Make the books anew from the journal, and compare, unless one of them has heard of more at present."""
        world, room = self._world, self._world.room
        if not room.up_to_date or any(task.get_name() == "adopt" for task in world.tasks):
            return
        again, books = Portfolio(world.clock), room.path.portfolio
        for opening in room.journal.notes("opening", 1):
            again.set_cash(Decimal(opening.body["cash"]))
        for record in room.journal.books():
            if isinstance(record, NoteRecord):
                split = split_of(record.body)
                again.split(split.symbol, split.new, split.old)
            else:
                adopted = record.fill.order_id == ADOPTED
                (again.adopt if adopted else again.apply)(record.fill, record.strategy)
        for back in map(Bust.of, (note.body for note in room.journal.every("bust"))):
            again.bust(back.exec_id, back.quantity)
        for transfer in room.journal.notes("transfer", MANY):
            again.transfer(Decimal(transfer.body["amount"]))
        for name in ("cash", "put_in", "realized", "cost", "fees"):
            mine, told = getattr(books, name), getattr(again, name)
            self.require(mine == told, f"{name} is {mine}, and {told} by the journal")
        for symbol in SYMBOLS:
            mine, told = books.quantity(symbol), again.quantity(symbol)
            self.require(mine == told, f"{mine} {symbol} are held, and {told} by the journal")

    # --- at certain moments -------------------------------------------------------------------------------------

    def _opened(self, room: RoughRoom) -> None:
        self._phases.clear()
        self._newest = self._newest[:STAMP]
        room.on_kill = self._kill_moved

    def _only_shrinks(self, order: ApprovedOrder) -> bool:
        """Tell whether a change does nothing but make what protects a position no larger than it."""
        desk, ask = self._world.room.desk, order.request
        mine = desk.orders.get(order.order_id)
        if mine is None or not mine.working or not ask.protective:
            return False
        same = mine.request.model_copy(update={"quantity": ask.quantity}) == ask.model_copy(
            update={"signal": mine.request.signal, "source": mine.request.source}
        )
        have, there = desk.portfolio.quantity(ask.symbol), self._world.room.path.reconciler.there(ask.symbol)
        guarded = abs(have) if there is None else min(abs(have), max(there if have > 0 else -there, ZERO))
        left = ask.quantity - mine.filled
        # It may be so already, by a change that was put off and came to be while this one was on its way.
        return same and ask.quantity <= mine.request.quantity and left >= guarded

    def _arrives(self, order: ApprovedOrder, how: str) -> None:
        """Look at an order, or a change, in the moment in which it leaves for the exchange."""
        room, ask, wrong = self._world.room, order.request, self._world.wrong
        told = f"{ask.intent} order {order.order_id} ({ask.side} {ask.quantity} {ask.symbol}) {how}"
        kills = [kill for kill in room.kills.values() if kill.covers(ask)]
        if ask.intent == "kill":
            # A person may change what a kill that is over has left working.
            if how != "changed" and not any(kill.flatten for kill in kills):
                wrong.append(f"{told} without a kill that is on")
            return
        wrong += [
            f"{told} while the kill of {kill.key or 'everything'} is on"
            for kill in kills
            if (kill.flatten or ask.intent == "entry") and not self._only_shrinks(order)
        ]
        if ask.symbol in room.path.reconciler.unexplained and not self._only_shrinks(order):
            wrong.append(f"{told} while its symbol is held: nobody knows what there is")
        if room.paused and ask.intent == "entry":
            wrong.append(f"{told} while the engine is paused")
        intent = room.journal.intent(order.order_id)
        same = ask if intent is None else ask.model_copy(update={"source": intent.request.source})
        if intent is None or not intent.approved or intent.request != same:
            wrong.append(f"{told} before its intent was durable")

    def _hear(self) -> None:
        """Look at what was published: without a gap, and with ids that rise."""
        if not self._world.begun:
            return
        events = self._world.room.events
        for event in events[:]:
            if event.seq != self._seq + 1:
                self._world.wrong.append(f"event {event.seq} came where {self._seq + 1} was due")
            self._seq = event.seq or 0
            if isinstance(event.data, TradeEvent) and event.data.event in MADE:
                self._made(event.data)
        events.clear()

    def _made(self, data: TradeEvent) -> None:
        if data.event is OrderStatus.RISK_REJECTED and data.order_id in self._world.exchange.orders:
            self._world.wrong.append(f"order {data.order_id} was refused by the gate and is at the exchange")
        if data.source == "kill_switch":
            return  # its intent may be written late, where the disk fails
        if data.order_id <= self._newest:
            self._world.wrong.append(f"the id {data.order_id} came after {self._newest}")
        self._newest = data.order_id

    def _kill_moved(self) -> None:
        """Look at the truth in the moment in which a kill says that it is done."""
        room = self._world.room
        for key, kill in room.kills.items():
            before, self._phases[key] = self._phases.get(key), kill.phase
            told = room.restored and room.path.link.ready  # before that it says what it was when it ended
            if kill.phase == "done" and before != "done" and told:
                self._world.wrong += [
                    f"the kill of {key or 'everything'} is done, and {e}" for e in self._left(kill)
                ]

    def _left(self, kill: Kill) -> list[str]:
        """Name what a kill has left, where it could know."""
        exchange = self._world.exchange
        if exchange.old is not None:
            return []
        unheard = {exchange.orders[report.order_id].request.symbol for report in exchange.mail}
        left = [
            f"order {order.order_id} works"
            for order in self._world.working()
            if kill.covers(order.request) and (kill.flatten or order.request.intent == "entry")
            if order.order_id not in exchange.out_of_sight
        ]
        for symbol in self._world.held() if kill.flatten else ():
            strategy = self._world.room.path.portfolio.position(symbol).strategy
            mine = kill.key is None or kill.key in (("symbol", symbol), ("strategy", strategy))
            if mine and symbol not in unheard and symbol not in exchange.excused:
                left.append(f"{exchange.own[symbol]} {symbol} are held")
        return left

    # --- when all is calm ---------------------------------------------------------------------------------------

    def look_in_the_calm(self) -> None:
        """Look at what must be so once everything has worked for a while."""
        world, room = self._world, self._world.room
        self._nothing_is_wrong()
        self.require(room.path.link.ready, f"the broker is not ready: {room.path.link.error}")
        self.require(not world.tasks, f"without an answer: {[task.get_name() for task in world.tasks]}")
        for kill in room.kills.values():
            self._has_ended(kill)
        self.replay()
        faults = audit(room.journal).faults
        self.require(not faults, f"the journal disagrees: {faults}")
        for symbol in SYMBOLS:
            self._agree_on(symbol)
            self._is_guarded(symbol)
            self._exits_fit_the_account(symbol)
        ours = {order.order_id: order for order in room.desk.open_orders()}
        theirs = {order.order_id: order for order in world.working()}
        for order_id in {*ours, *theirs}:
            self._agree_on_order(ours.get(order_id), theirs.get(order_id))
        self.require(not room.desk.in_flight and not room.desk.changing, "something is still on its way")
        mine, actual = room.path.portfolio.cash, world.exchange.cash
        self.require(abs(mine - actual) < Decimal("0.01"), f"cash is {mine}, at the exchange {actual}")

    def _cause(self, symbol: str) -> bool:
        """Tell whether a person has to settle a position: somebody traded beside us, or nobody told of a bust."""
        exchange = self._world.exchange
        return bool(exchange.by_hand.get(symbol)) or symbol in exchange.causes

    def _has_ended(self, kill: Kill) -> None:
        if any(self._cause(symbol) for symbol in SYMBOLS):
            return
        name = f"the kill of {kill.key or 'everything'}"
        state = f"{kill.phase} {kill.detail} {kill.error} {kill.pending}"
        self.require(kill.phase == "done", f"{name} does not end: {state}")
        left = self._left(kill)
        self.require(not left, f"{name} was done, and {left}")

    def _agree_on(self, symbol: str) -> None:
        room = self._world.room
        mine, theirs = room.path.portfolio.quantity(symbol), self._world.exchange.own.get(symbol, ZERO)
        sentence, cause = room.path.reconciler.unexplained.get(symbol), self._cause(symbol)
        self.require(mine == theirs or cause, f"{mine} {symbol} in the books, {theirs} at the exchange")
        self.require(sentence is None or cause, f"{symbol} is held: {sentence}")

    def _exits_fit_the_account(self, symbol: str) -> None:
        """See that exits can sell no more than the account has where a person has sold what is ours."""
        net = self._world.exchange.holdings.get(symbol, ZERO)
        for side in ("buy", "sell"):
            _, asked = self._exits(symbol, side)
            room = max(net if side == "sell" else -net, ZERO)
            self.require(asked <= room, f"exits may {side} {asked} {symbol}, and the account has {net}")

    def _agree_on_order(self, mine: Order | None, theirs: Resting | None) -> None:
        if mine is None or theirs is None:
            self.require(False, f"it works in one place alone: {mine or theirs}")
            return
        doubt = mine.status in (OrderStatus.SUBMITTED, OrderStatus.UNKNOWN) or mine.replacement is not None
        self.require(not doubt, f"still in doubt: {mine}")
        self.require(mine.filled == theirs.filled, f"{mine} has filled {theirs.filled} at the exchange")
        for name in ("quantity", "order_type", "limit_price", "stop_price", "good_after"):
            told, actual = getattr(mine.request, name), getattr(theirs.request, name)
            self.require(told == actual, f"the {name} of {mine} is {actual} at the exchange")

    def _is_guarded(self, symbol: str) -> None:
        """See that a position with an exit plan has exits of its whole size, and one that exits opened a close."""
        world, room = self._world, self._world.room
        own = world.exchange.own.get(symbol, ZERO)
        position = room.path.portfolio.position(symbol)
        if not own or own != position.quantity or symbol in room.path.reconciler.unexplained:
            return
        if position.foreign and self._cause(symbol):
            return  # it is ours by a bust that nobody was told of
        working = [order.request for order in world.working() if order.request.symbol == symbol]
        side = "sell" if own > 0 else "buy"
        protected = self._exits(symbol, side, protective=True)[1] >= abs(own)
        self.require(position.protected == protected, f"{symbol} is protected: {position.protected}, {working}")
        opened = world.exchange.openers.get(symbol, ())
        planned = any(ask.exit_plan is not None and (ask.side == "buy") == (own > 0) for ask in opened)
        adopted = any(fill.symbol == symbol for fill in world.exchange.adoptions.values())
        unwanted = not opened and not adopted and not position.foreign
        if room.kill.owns_exits(symbol, position.strategy) or not (planned or unwanted):
            return
        if symbol in world.bare and not unwanted:
            return
        entries = [request for request in working if request.intent == "entry"]
        if entries and (symbol in world.exchange.excused or any(request.exit_plan for request in entries)):
            return  # the stop of an entry that works covers what this entry has opened, and no more
        _, asked = self._exits(symbol, side)
        if unwanted and asked and any(ask.order_type == "market" and ask.side == side for ask in working):
            return  # a person may have made its close smaller: the rest is closed once that has filled
        self.require(asked >= abs(own), f"{own} {symbol} are held, and exits guard {asked} of it")


__all__ = ["MoneyChecks"]

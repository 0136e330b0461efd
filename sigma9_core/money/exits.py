"""The exit manager: it guards every position that was opened with an exit plan, in every engine state.

The protective stop goes out with the entry as its child, so that no position is naked between fill and stop. Once
the entry has filled, the stop is moved to the fill's price and quantity; the trail and the time stop join the
same one-cancels-all group. Guards are written to the journal as notes and taken up again after a restart.

Where the broker keeps to such terms by itself, the trail and the time stop rest there and work without this
server: the stop carries what it is to become, and the time stop is an order that the broker holds until its time.
A broker that refuses either of them is asked no more, and the server does it by itself, as at any other broker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sigma9_core.clock import Clock, rfc3339
from sigma9_core.contracts import Kept
from sigma9_core.errors import CommandError, JournalError
from sigma9_core.models import ZERO, Adjustment, ExitPlan, OrderRequest, OrderStatus, OrderView, Side, Slice, Split
from sigma9_core.money.desk import OrderDesk, Step, rounded
from sigma9_core.money.exposure import is_exit, reserved
from sigma9_core.money.gate import CORE
from sigma9_core.money.orders import Order
from sigma9_core.money.records import NoteRecord, Record

log = logging.getLogger("sigma9.exits")

NOTE: Final = "guard"
RETRY: Final = timedelta(seconds=5)
"""Market time until a leg that was refused is tried again."""
PASSING: Final = frozenset(("R23", CORE))
"""Reason codes of what passes and says nothing of whether stops are taken: a halt, a position that is in doubt."""
SOON: Final = timedelta(seconds=2)
"""A time stop that is due within this does not go to rest any more: the server sends it when it is due."""
SLOTS: Final = ("stop_id", "trail_id", "time_id", "rest_id", "profit_id")
"""Where a guard has its own orders."""
PASSES: Final = frozenset(("busy", "broker_unavailable"))
"""Codes of refused changes after which the same is tried again at the next look."""
MOST_STOPS: Final = 3
"""Stops that may be refused in a row before the position is closed at the market."""


def opposite(side: Side) -> Side:
    """Give the side that closes."""
    return "sell" if side == "buy" else "buy"


def _late_group(symbol: str, order_id: str) -> str:
    """Name the group of exits that are sent once an order has filled: none of the group before works any more."""
    return f"exit-{symbol}-{order_id}"


def _slot_of(ask: OrderRequest) -> str:
    """Say where a guard has an exit of its own making."""
    if ask.protective:
        return "trail_id" if ask.order_type == "trailing_stop" else "stop_id"
    if ask.order_type == "limit":
        return "profit_id"
    return "time_id" if ask.good_after is None else "rest_id"


def _may_trail(ask: OrderRequest) -> bool:
    """Tell whether an order is a trailing stop, or becomes one at the broker."""
    return ask.order_type == "trailing_stop" or ask.adjustment is not None


@dataclass(slots=True)
class Guard:
    """The exits of one position."""

    symbol: str
    side: Side
    """The entry's side."""
    strategy: str | None
    entry_id: str
    group: str
    plan: ExitPlan
    opened_at: datetime | None = None
    stop_id: str | None = None
    time_id: str | None = None
    """The order that leaves at the market: the time stop, or a person's close."""
    rest_id: str | None = None
    """The time stop that the broker holds until its time."""
    profit_id: str | None = None
    """The take-profit of a person's bracket."""
    trail_id: str | None = None
    stop_price: Decimal | None = None
    """Where the stop was moved to, by the fill or by a person."""
    factor: Decimal = Decimal(1)
    """What a price of before the splits since its entry is multiplied by."""
    refused: int = 0
    retry_at: datetime | None = None
    ended: bool = False
    exits: list[str] = field(default_factory=list)
    """The orders that have closed some of it: one that is taken back brings the guard back."""
    released: bool = False
    """A person has cancelled its exits: what works is kept in line, and nothing new is sent."""
    before: Guard | None = field(default=None, repr=False)
    """The guard of the symbol's last position, which has ended: an exit of it may be taken back all the same."""
    busy: bool = field(default=False, repr=False)
    """A change of this guard's legs is on its way."""
    rest_at: datetime | None = field(default=None, repr=False)
    """When the time stop may be sent to rest again: it was not taken, and not for its terms."""

    @property
    def due(self) -> datetime | None:
        """Tell when the time stop leaves; None where there is none, or nothing has filled."""
        limit = self.plan.time_stop_seconds
        return None if limit is None or self.opened_at is None else self.opened_at + timedelta(seconds=limit)

    def memory(self) -> dict[str, Any]:
        """Give what a restart needs, as JSON."""
        return {
            "symbol": self.symbol,
            "side": self.side,
            "strategy": self.strategy,
            "entry_id": self.entry_id,
            "group": self.group,
            "plan": self.plan.model_dump(mode="json"),
            "opened_at": rfc3339(self.opened_at) if self.opened_at else None,
            "stop_id": self.stop_id,
            "time_id": self.time_id,
            "rest_id": self.rest_id,
            "profit_id": self.profit_id,
            "trail_id": self.trail_id,
            "stop_price": None if self.stop_price is None else str(self.stop_price),
            "factor": str(self.factor),
            "ended": self.ended,
            "exits": self.exits,
            "released": self.released,
            "before": None if self.before is None else self.before.memory(),
        }

    @classmethod
    def remembered(cls, body: Mapping[str, Any]) -> Guard:
        """Take up a guard that `memory` wrote."""
        opened = body["opened_at"]
        return cls(
            symbol=body["symbol"],
            side=body["side"],
            strategy=body["strategy"],
            entry_id=body["entry_id"],
            group=body["group"],
            plan=ExitPlan.model_validate(body["plan"]),
            opened_at=datetime.fromisoformat(opened) if opened else None,
            stop_id=body["stop_id"],
            time_id=body["time_id"],
            rest_id=body.get("rest_id"),
            profit_id=body.get("profit_id"),
            trail_id=body["trail_id"],
            stop_price=None if body.get("stop_price") is None else Decimal(body["stop_price"]),
            factor=Decimal(body.get("factor", 1)),
            ended=body["ended"],
            exits=[*body.get("exits", ())],
            released=body.get("released", False),
            before=None if body.get("before") is None else cls.remembered(body["before"]),
        )


class ExitManager:
    """Sends, moves and ends protective stops, trails and time stops; on the money lane."""

    def __init__(self, desk: OrderDesk, clock: Clock) -> None:
        self.guards: dict[str, Guard] = {}
        """By symbol: one strategy owns a symbol at a time."""
        self.stands_down: Callable[[str, str | None], bool] = lambda _symbol, _strategy: False
        """Tells whether a flattening kill owns the exits of a symbol and strategy."""
        self.waits: Callable[[], bool] = lambda: False
        """Tells that it is not known at present what has filled: an exit might sell what a stop has sold."""
        self.broker_has: Callable[[str], Decimal | None] = lambda _symbol: None
        """Gives what the broker has of a symbol whose position can't be explained, None for any other."""
        self.left: Callable[[str], object] = lambda _symbol: None
        """Is told of a symbol whose guard has ended while something else of it is held."""
        self._unknown: frozenset[str] = frozenset()
        """Symbols whose exits the journal could not give."""
        self._shrinking: set[str] = set()
        """Orders that are being made smaller at this moment."""
        self._smaller: dict[str, Decimal] = {}
        """Lone stops that are cancelled because they could not be made smaller: what takes their place."""
        self._declined: set[tuple[str, Kept]] = set()
        """Symbols and terms that the broker has refused since the start."""
        self._over: dict[str, Guard] = {}
        """The last guard of each symbol that has ended."""
        self._desk = desk
        self._clock = clock
        desk.followers.append(self._follow)

    async def enter(
        self,
        request: OrderRequest,
        reference: Decimal,
        *,
        stop_price: Decimal | None = None,
        take_profit: Decimal | None = None,
        cause: str | None = None,
        records: Sequence[Record] = (),
    ) -> list[Order]:
        """Send an entry with its protective stop as one unit; `reference` is the price it was decided on.

        A person's bracket names the stop's price, and perhaps a take-profit. Raise CommandError `conflict` where
        the symbol is held or being entered already.
        """
        plan = request.exit_plan
        if plan is None:
            return await self._desk.submit([request], cause=cause, records=records)
        if request.symbol in self.guards or self._owned(request.symbol):
            raise CommandError("conflict", f"{request.symbol} is held or being entered already")
        group = f"exit-{request.symbol}-{rfc3339(self._clock.now())}"
        guard = Guard(request.symbol, request.side, request.strategy, "", group, plan, stop_price=stop_price)
        guard.before = self._last(request.symbol)
        self.guards[request.symbol] = guard
        legs = [self._stop(guard, request.quantity, reference)]
        if take_profit is not None:
            terms = {"order_type": "limit", "limit_price": take_profit, "time_in_force": "gtc"}
            legs.append(self._leg(guard, request.quantity, "take profit").model_copy(update=terms))

        def decided(orders: Sequence[Order]) -> Sequence[Record]:
            guard.entry_id, guard.stop_id = orders[0].order_id, orders[1].order_id
            guard.profit_id = orders[2].order_id if take_profit is not None else None
            return [self._note(guard)]  # durable together with the intents: a crash leaves no position unguarded

        try:
            orders = await self._desk.submit([request, *legs], cause=cause, records=records, decided=decided)
        except BaseException:
            if not guard.entry_id or guard.entry_id not in self._desk.orders:
                self._forget(guard)
            raise
        if orders[0].status is OrderStatus.RISK_REJECTED:
            self._forget(guard)
            return orders
        self._review(guard)
        return orders

    def on_market(self, data: Slice) -> None:
        """Start trails and time stops that are due at this market time."""
        now = data.ts
        if not self.guards or self.waits():
            return
        best: dict[str, tuple[float, float]] = {}
        for bar in data.bars:
            best[bar.symbol] = (bar.high, bar.low)
        for trade in data.trades:
            high, low = best.get(trade.symbol, (trade.price, trade.price))
            best[trade.symbol] = (max(high, trade.price), min(low, trade.price))
        for guard in tuple(self.guards.values()):
            entry = self._desk.orders.get(guard.entry_id)
            if not self._tried_again(guard) or self._stands_down(guard):
                continue
            if guard.opened_at is None or entry is None or entry.average_price is None or guard.released:
                continue
            if guard.symbol in best and not entry.working:
                self._trail(guard, entry.average_price * guard.factor, *best[guard.symbol])
            due = guard.due
            leaves = self._works(guard.time_id) or self._works(guard.rest_id)
            if due is not None and now >= due and not leaves and not self._trails(guard):
                self._leave(guard, "time stop")
            self._review(guard)

    def protected(self, symbol: str) -> bool:
        """Tell whether stops that guard the symbol work at the broker, for all that is held of it."""
        stops = [
            self._covering(order)
            for order in self._desk.open_orders()
            if order.request.protective
            and order.request.symbol == symbol
            and order.status is not OrderStatus.SUBMITTED
            and not order.held
        ]
        if not stops:
            return False
        held = self._held(symbol)
        return reserved(stops, symbol, "sell" if held > ZERO else "buy") >= abs(held)

    def _covering(self, stop: Order) -> OrderView:
        """Show a stop with what it can close now: one that went out with an entry closes what that has opened."""
        view, entry = stop.view(), self._order(stop.request.parent_id)
        if entry is None or not entry.working:
            return view
        covered = max(ZERO, min(stop.remaining, entry.filled - stop.filled))
        return view.model_copy(update={"quantity": stop.filled + covered})

    def legs_of(self, entry_id: str) -> list[str]:
        """List the working exits that follow an entry, by id."""
        guard = next((guard for guard in self.guards.values() if guard.entry_id == entry_id), None)
        return [] if guard is None else [leg.order_id for leg in self._group(guard)]

    def split(self, split: Split) -> None:
        """Move the exits of a position to the prices after a split; its legs go, and are placed anew."""
        guard = self.guards.get(split.symbol)
        if guard is None:
            return
        share = split.old / split.new
        guard.factor *= share
        if guard.stop_price is not None:
            guard.stop_price = rounded(guard.stop_price * share, self._desk.tick_of(split.symbol))
        if guard.plan.trail_amount is not None:
            guard.plan = guard.plan.model_copy(update={"trail_amount": guard.plan.trail_amount * share})
        self._remember(guard)
        for leg in [order for order in self._desk.open_orders() if order.request.oca_group == guard.group]:
            self.drop(leg)

    def stop_price_of(self, symbol: str) -> Decimal | None:
        """Give the price at which a position of ours is to be stopped out, None where nobody guards it."""
        guard = self.guards.get(symbol)
        if guard is None:
            return None
        entry = self._desk.orders.get(guard.entry_id)
        price = None if entry is None or entry.average_price is None else entry.average_price * guard.factor
        if price is None:
            price = self._desk.portfolio.position(symbol).average_cost
        return self._stop(guard, abs(self._held(symbol)), price).stop_price

    def resume(self, notes: Mapping[str, Mapping[str, Any]], unknown: Collection[str] = ()) -> None:
        """Take up the guards of positions that are still open after a restart (the newest note by symbol).

        The exits of `unknown` symbols can't be read: nobody guards them before the next start.
        """
        self._unknown = frozenset(unknown)
        for body in notes.values():
            guard = Guard.remembered(body)
            entry = self._desk.orders.get(guard.entry_id)
            entering = entry is not None and entry.working
            legs = any(order.request.oca_group == guard.group for order in self._desk.open_orders())
            if not guard.ended and (entering or legs or self._held(guard.symbol) != ZERO):
                self.guards[guard.symbol] = guard
                if guard.before is not None:
                    self._over[guard.symbol] = guard.before
                if guard.opened_at is None and entry is not None and entry.filled:
                    guard.opened_at = (
                        entry.created_at
                    )  # the crash came before its note; the time stop runs from here
            else:
                self._over[guard.symbol] = guard if guard.exits or guard.before is None else guard.before

    def release(self, symbols: Collection[str]) -> None:
        """Send no more exits for these positions, which a person has cancelled; a new fill is guarded."""
        for guard in [guard for symbol, guard in self.guards.items() if symbol in symbols]:
            guard.released = True
            self._remember(guard)

    def review(self) -> None:
        """Check every guard against its position and its working legs; called once the broker is reconciled."""
        for guard in tuple(self.guards.values()):
            guard.retry_at = None
            self._review(guard)
        for position in self._desk.portfolio.positions():
            self._desk.portfolio.set_protected(position.symbol, self.protected(position.symbol))

    def recheck(self, symbols: Iterable[str]) -> None:
        """Look at the exits of symbols whose position can't be explained, or can be explained again."""
        if self.waits():
            return  # it follows the reconciliation
        for symbol in symbols:
            there, guard = self.broker_has(symbol), self.guards.get(symbol)
            if there is not None:
                self._keep_within(symbol, there)
            elif guard is not None:
                guard.retry_at = None
                self._review(guard)

    def keep_within_books(self) -> None:
        """Take back what exits that no guard looks after may trade beyond what is held: it would open a position.

        Such are a person's lone stop, or the close of what an exit has opened, when another order closes first.
        """
        exits = (order.request for order in self._desk.open_orders() if is_exit(order.request.intent))
        for symbol in {ask.symbol for ask in exits}:
            self._keep_lone_exits_within(symbol)

    def fit(self, symbol: str) -> None:
        """Try again what could not be brought in line, while a kill's close waits and no market data come."""
        guard = self.guards.get(symbol)
        if guard is not None and guard.retry_at is not None:
            self._tried_again(guard)

    # --- legs -----------------------------------------------------------------------------------------------

    def _stop(self, guard: Guard, quantity: Decimal, price: Decimal) -> OrderRequest:
        share = guard.plan.stop_percent / 100
        stop_price = guard.stop_price or rounded(
            price * (1 - share if guard.side == "buy" else 1 + share), self._desk.tick_of(guard.symbol)
        )
        adjustment = self._adjustment(guard, price, stop_price)
        return self._leg(guard, quantity, "protective stop", protective=True).model_copy(
            update={
                "order_type": "stop",
                "stop_price": stop_price,
                "time_in_force": "gtc",
                "adjustment": adjustment,
            }
        )

    def _adjustment(self, guard: Guard, entry_price: Decimal, stop_price: Decimal) -> Adjustment | None:
        """Give the trail that the broker is to make of the stop; it never begins behind the stop.

        None where the plan has no trail, or the server does it.
        """
        plan, tick = guard.plan, self._desk.tick_of(guard.symbol)
        if not self._rests(guard.symbol, "adjustment") or not (plan.trail_amount or plan.trail_percent):
            return None
        sign = 1 if guard.side == "buy" else -1
        trigger = rounded(entry_price * (1 + sign * plan.trail_activation_percent / 100), tick)
        distance = self._distance(plan, tick)
        away = distance.get("trail_amount") or trigger * distance["trail_percent"] / 100
        begins = (max if guard.side == "buy" else min)(rounded(trigger - sign * away, tick), stop_price)
        return Adjustment(trigger_price=trigger, stop_price=begins, **distance)

    @staticmethod
    def _distance(plan: ExitPlan, tick: Decimal | None) -> dict[str, Any]:
        if plan.trail_amount is not None:
            return {"trail_amount": rounded(plan.trail_amount, tick)}
        return {"trail_percent": plan.trail_percent}

    def _rests(self, symbol: str, term: Kept) -> bool:
        """Tell whether the broker keeps to a term by itself, and has not refused it."""
        return term in self._desk.keeps and (symbol, term) not in self._declined

    def _leg(
        self, guard: Guard, quantity: Decimal, reason: str, *, protective: bool = False, grouped: bool = True
    ) -> OrderRequest:
        return OrderRequest(
            symbol=guard.symbol,
            side=opposite(guard.side),
            quantity=quantity,
            strategy=self._owner(guard),
            source="exit",
            intent="reduce",
            oca_group=guard.group if grouped else None,
            reason=reason,
            protective=protective,
        )

    def _trail(self, guard: Guard, entry_price: Decimal, high: float, low: float) -> None:
        plan, stop, rest = guard.plan, self._order(guard.stop_id), self._order(guard.rest_id)
        if self._trails(guard) or self._works(guard.time_id) or guard.busy:
            return
        if stop is not None and stop.working and stop.request.adjustment is not None:
            return  # the broker makes the trail of it
        if rest is not None and rest.working and rest.request.closes(self._clock.now()):
            return
        if plan.trail_amount is None and plan.trail_percent is None:
            return
        share = plan.trail_activation_percent / 100
        if guard.side == "buy":
            reached = Decimal(str(high)) >= entry_price * (1 + share)
        else:
            reached = Decimal(str(low)) <= entry_price * (1 - share)
        held = abs(self._held(guard.symbol))
        if not reached or held == ZERO:
            return
        distance = self._distance(plan, self._desk.tick_of(guard.symbol))
        leg = self._leg(guard, held, "trailing stop", protective=True).model_copy(
            update={"order_type": "trailing_stop", "time_in_force": "gtc", **distance}
        )
        self._send(guard, leg, "trail_id")

    def _leave(self, guard: Guard, reason: str) -> None:
        held = abs(self._held(guard.symbol))
        entry = self._desk.orders.get(guard.entry_id)
        if entry is not None and entry.working:
            self.drop(entry)  # first the rest of the entry: what it still fills would stand without an exit
        elif held and not guard.busy:
            self._send(guard, self._leg(guard, held, reason), "time_id")

    def _send(self, guard: Guard, leg: OrderRequest, slot: str) -> None:
        guard.busy = True
        self._desk.spawn(self._submit(guard, leg, slot), f"exit[{leg.symbol} {leg.reason}]")

    async def _submit(self, guard: Guard, leg: OrderRequest, slot: str) -> None:
        def decided(orders: Sequence[Order]) -> Sequence[Record]:
            setattr(guard, slot, orders[0].order_id)
            return [self._note(guard)]  # durable together with the intent: a start knows whose leg it is

        try:
            order = (await self._desk.submit([leg], cause=guard.entry_id, decided=decided))[0]
        except (JournalError, CommandError) as error:
            setattr(guard, slot, None)
            self._remember(guard)  # a note of meanwhile may have named it, and is left out
            log.error("%s of %s could not be sent (%s); it is tried again", leg.reason, guard.symbol, error)
            if slot != "rest_id":  # it has a time of its own, and holds nothing else up
                self._try_later(guard)
            return
        finally:
            guard.busy = False
        if order.status is OrderStatus.RISK_REJECTED:
            self._refused(guard, order)
        elif slot != "rest_id" and (order.working or order.filled):
            guard.refused = 0
        elif slot != "rest_id" and order.status is OrderStatus.CANCELLED:
            self._try_later(guard)  # it was not sent
        self._review(guard)

    async def _move(self, guard: Guard, leg: Order, changes: Mapping[str, Any]) -> None:
        try:
            if leg.working:
                await self._desk.modify(leg.order_id, changes, cause=guard.entry_id)
        except (JournalError, CommandError) as error:
            if "stop_price" in changes:
                guard.stop_price = None
            if leg.working:
                log.warning("%s of %s could not be changed: %s", leg.request.reason, guard.symbol, error)
                self._try_later(guard)
        finally:
            guard.busy = False
        self._review(guard)

    # --- what happened --------------------------------------------------------------------------------------

    def _follow(self, step: Step) -> None:
        symbol = step.order.request.symbol
        self._desk.portfolio.set_protected(symbol, self.protected(symbol))
        smaller = None if step.order.working else self._smaller.pop(step.order.order_id, None)
        if smaller is not None and step.event is OrderStatus.CANCELLED:
            self._desk.spawn(self._send_smaller(step.order, smaller), f"exit[{symbol} smaller]")
        guard = self._taken_up(step) if step.revived else self.guards.get(symbol) or self._revive(step)
        if self.broker_has(symbol) is not None:
            self.recheck([symbol])
        if guard is not None:
            self._follow_guarded(guard, step)
        if step.fill is not None or step.revived:
            self._keep_lone_exits_within(symbol)

    def _follow_guarded(self, guard: Guard, step: Step) -> None:
        order_id = step.order.order_id
        moved = step.event is OrderStatus.REPLACED and step.order.request.order_type == "stop"
        if moved and order_id == guard.stop_id:
            guard.stop_price = step.order.request.stop_price  # also where a person moved it: it is not moved back
        if step.event is OrderStatus.UNCHANGED and order_id in (getattr(guard, slot) for slot in SLOTS):
            guard.stop_price = None if order_id == guard.stop_id else guard.stop_price
            self._try_later(guard)  # it is asked for again, and not at once
        filled = None if step.applied is None or not step.applied.moved else step.applied.fill
        if order_id == guard.entry_id and filled is not None and (guard.opened_at is None or guard.released):
            guard.opened_at, guard.released = guard.opened_at or filled.ts, False
            self._remember(guard)
        if filled is not None and step.order.request.intent != "entry" and order_id not in guard.exits:
            guard.exits.append(order_id)
        slots = [slot for slot in SLOTS if getattr(guard, slot) == order_id]
        if slots and not step.order.working:
            if step.event in (OrderStatus.REJECTED, OrderStatus.EXPIRED):
                self._refused(guard, step.order)
            for slot in slots:
                setattr(guard, slot, None)
            self._remember(guard)
        self._review(guard)

    def _revive(self, step: Step) -> Guard | None:
        """Guard a position that is there after all: an entry filled late, or an exit was taken back."""
        request, order_id = step.order.request, step.order.order_id
        if step.fill is None or (step.applied is not None and not step.applied.moved):
            return None
        if request.intent == "entry":
            if request.exit_plan is None:
                return None
            guard = self._guard_of(order_id, request, request.exit_plan)
        else:
            over = self._over.get(request.symbol)
            back = step.event is OrderStatus.BUSTED or bool(step.fill.corrects)
            if over is None or order_id not in over.exits or not back:
                return None
            fresh: dict[str, Any] = {"ended": False, "released": False, "refused": 0, "busy": False}
            fresh |= {"retry_at": None, "rest_at": None}
            guard = replace(over, group=_late_group(request.symbol, order_id), **fresh)
            guard.before = None
        self.guards[request.symbol] = guard
        self._remember(guard)
        return guard

    def _taken_up(self, step: Step) -> Guard | None:
        """Give the guard of a symbol in which an order has come back; an entry with a plan gets one again."""
        order, guard = step.order, self.guards.get(step.order.request.symbol)
        ask, plan = order.request, order.request.exit_plan
        if ask.intent != "entry" or plan is None or guard is not None:
            return guard
        if self._owned(ask.symbol, beside=order):
            self.drop(order)  # another one has taken its place
            return None
        guard = self._guard_of(order.order_id, ask, plan)
        legs = [each.request for each in self._desk.orders.values() if each.request.parent_id == order.order_id]
        for leg in legs:  # they may come back as well
            guard.group = leg.oca_group or guard.group
            if leg.order_type == "stop" and ask.strategy is None:
                guard.stop_price = leg.stop_price  # a person's bracket says where
        self.guards[ask.symbol] = guard
        self._remember(guard)
        return guard

    def guard_opened(self, symbol: str, requests: Mapping[str, OrderRequest | None]) -> None:
        """Guard what an entry with a plan has opened and nobody guards, as after a late fill (requests by id)."""
        if self._held(symbol) == ZERO or symbol in self.guards or symbol in self._unknown:
            return
        for fill in self._desk.portfolio.opened_by(symbol):
            ask = requests.get(fill.order_id)
            if ask is None or ask.intent != "entry" or ask.exit_plan is None:
                continue
            guard = self._guard_of(fill.order_id, ask, ask.exit_plan)
            guard.opened_at = fill.ts
            self.guards[symbol] = guard
            self._remember(guard)
            self._review(guard)
            return

    def _guard_of(self, entry_id: str, ask: OrderRequest, plan: ExitPlan) -> Guard:
        """Make a guard for an entry that has filled without one."""
        group = _late_group(ask.symbol, entry_id)
        guard = Guard(ask.symbol, ask.side, ask.strategy, entry_id, group, plan)
        guard.before = self._last(ask.symbol)
        return guard

    def _review(self, guard: Guard) -> None:
        """Bring the legs in line with the position: the right quantity, the right price, or the end."""
        if not guard.entry_id or guard.ended or self.waits():
            return  # the review that follows a reconciliation looks at it
        entry = self._desk.orders.get(guard.entry_id)
        entering = entry is not None and entry.working
        held = self._held(guard.symbol)
        right_way = held > 0 if guard.side == "buy" else held < 0
        if not entering and not right_way:
            self._end(guard)
            return
        if guard.busy:
            return
        standing_down, known = self._stands_down(guard), self.broker_has(guard.symbol) is None
        if not standing_down:
            self._know_again(guard, held=right_way and known)
        if guard.retry_at is not None or not known:
            return  # nobody knows what there is to guard: `recheck` keeps what works within it
        quantity = abs(held) if right_way else ZERO
        price = (
            self._desk.portfolio.position(guard.symbol).average_cost
            if entry is None
            else entry.average_price and entry.average_price * guard.factor
        )
        slots = [getattr(guard, slot) for slot in SLOTS]
        guarded = guard.released or self._works(guard.time_id) or any(not stop.held for stop in self._stops(guard))
        if right_way and not standing_down and not guarded:
            if not entering or price is not None:
                self._restore(guard, quantity, price)
            return
        for leg in self._group(guard):
            if leg.cancel_asked or leg.status in (OrderStatus.UNKNOWN, OrderStatus.SUBMITTED) or leg.replacement:
                continue
            changes: dict[str, Any] = {}
            # What went out with the entry covers what is still to fill of it, too.
            coming = entry.remaining if entry is not None and leg.request.parent_id == entry.order_id else ZERO
            # A leg that is told before its entry's fill takes the books beyond zero for a while.
            size = max(ZERO, (held if guard.side == "buy" else -held) + coming)
            if leg.order_id not in slots:
                size = min(size, leg.remaining)  # a person's exit may be for a part: it is never enlarged
            if standing_down and (not leg.request.protective or not ZERO < size < leg.remaining):
                continue  # the kill's: what guards until its close can go must not outgrow the position
            if size == ZERO or (leg.order_id == guard.rest_id and self._trails(guard)):
                self.drop(leg)  # with the trail active, time no longer matters
                continue
            if leg.remaining != size:
                changes["quantity"] = size + leg.filled
            own = leg.order_id == guard.stop_id and leg.request.order_type == "stop"
            if own and price is not None and not entering and not standing_down:
                if guard.stop_price is None:
                    guard.stop_price = self._stop(guard, quantity, price).stop_price
                    if guard.stop_price != leg.request.stop_price:
                        changes["stop_price"] = guard.stop_price
                if leg.request.adjustment is not None and guard.stop_price is not None:
                    adjustment = self._adjustment(guard, price, guard.stop_price)
                    if adjustment not in (None, leg.request.adjustment):
                        changes["adjustment"] = adjustment
            if changes:
                guard.busy = True
                self._desk.spawn(
                    self._move(guard, leg, changes), f"exit[{guard.symbol} move {leg.request.reason}]"
                )
                return
        if right_way and not entering and not standing_down:
            self._rest(guard, quantity)

    def _know_again(self, guard: Guard, *, held: bool) -> None:
        """Take exits of ours that have come back into their place, or off where another one has it by now.

        So is an entry beside the guard's, and, once something is `held`, a stop that the broker does not work: it
        guards nothing, and another one is sent.
        """
        for order in self._desk.open_orders():
            ask = order.request
            if ask.symbol == guard.symbol and ask.exit_plan is not None and order.order_id != guard.entry_id:
                self.drop(order)
        for leg in self._group(guard):
            mine = [slot for slot in SLOTS if getattr(guard, slot) == leg.order_id]
            if leg.held and leg.request.protective:
                if held:
                    self.drop(leg)
            elif leg.request.source == "exit" and not mine:
                slot = _slot_of(leg.request)
                trails = any(_may_trail(stop.request) for stop in self._stops(guard))
                if self._works(getattr(guard, slot)) or (trails and _may_trail(leg.request)):
                    self.drop(leg)
                else:
                    setattr(guard, slot, leg.order_id)
                    self._remember(guard)

    def _rest(self, guard: Guard, quantity: Decimal) -> None:
        """Send the time stop to rest at the broker, where that keeps to a time by itself."""
        now, due = self._clock.now(), guard.due
        if due is None or due - now <= SOON or guard.released or not self._rests(guard.symbol, "good_after"):
            return
        if self._works(guard.rest_id) or self._works(guard.time_id) or self._trails(guard):
            return
        if guard.rest_at is None or now >= guard.rest_at:
            terms = {"good_after": due, "time_in_force": "gtc"}
            guard.rest_at = now + RETRY
            self._send(guard, self._leg(guard, quantity, "time stop").model_copy(update=terms), "rest_id")

    def _keep_lone_exits_within(self, symbol: str) -> None:
        position, guard = self._desk.portfolio.position(symbol), self.guards.get(symbol)
        if self.broker_has(symbol) is None and not self.waits():  # else it follows the reconciliation
            killed = self.stands_down(symbol, position.strategy)
            beside = None if guard is None else guard.group
            self._keep_within(symbol, position.quantity, beside=beside, killed=killed)

    def _keep_within(
        self, symbol: str, there: Decimal, *, beside: str | None = None, killed: bool = False
    ) -> None:
        """Take back what exits, whosever, may trade beyond what there is: it would open a position.

        What protects comes first and is made smaller; all else goes. The rest of an entry goes before its stop,
        which covers what it has yet to open as well. A kill that owns the exits takes back all else by itself. The
        group that they stand `beside` is its guard's to change: what it closes is taken into account alone.
        """
        held = self._held(symbol)
        left = min(abs(held), max(there if held > ZERO else -there, ZERO))
        groups: dict[str, list[Order]] = {}
        for order in self._desk.open_orders():
            if order.request.symbol == symbol and is_exit(order.request.intent):
                groups.setdefault(order.request.oca_group or order.order_id, []).append(order)
        ranks = {
            name: (name != beside, not any(leg.request.protective for leg in legs))
            for name, legs in groups.items()
        }
        for name in sorted(groups, key=ranks.__getitem__):
            taken = ZERO
            for leg in groups[name]:
                ask, parent = leg.request, self._order(leg.request.parent_id)
                coming = ZERO if parent is None or parent.filled else parent.remaining
                closes = held * (1 if ask.side == "sell" else -1) > ZERO
                size = min(leg.remaining, coming + (left if closes else ZERO))
                taken = max(taken, size - coming)
                unsure = leg.status in (OrderStatus.UNKNOWN, OrderStatus.SUBMITTED) or leg.replacement
                fits = size == leg.remaining or name == beside
                if fits or unsure or leg.cancel_asked or leg.order_id in self._shrinking:
                    continue
                if killed and (not ask.protective or ask.intent == "kill" or size == ZERO):
                    continue
                if parent is not None and parent.working:
                    self.drop(parent)
                    continue
                log.error("%s: %s may trade %s, there is %s", symbol, leg.order_id, leg.remaining, there)
                if ask.protective and size > ZERO:
                    self._shrinking.add(leg.order_id)
                    self._desk.spawn(self._shrink(leg, leg.filled + size), f"exit[{symbol} shrink {ask.reason}]")
                else:
                    self.drop(leg)
            left -= min(left, taken)

    async def _shrink(self, leg: Order, quantity: Decimal) -> None:
        try:
            if leg.working:
                await self._desk.modify(leg.order_id, {"quantity": quantity})
        except (JournalError, CommandError) as error:
            log.warning("%s of %s could not be made smaller: %s", leg.request.reason, leg.request.symbol, error)
            if leg.working and isinstance(error, CommandError) and error.code not in PASSES:
                if leg.request.symbol not in self.guards:
                    self._smaller[leg.order_id] = quantity - leg.filled
                self.drop(leg)  # it would open a position; a smaller one takes its place
        finally:
            self._shrinking.discard(leg.order_id)

    async def _send_smaller(self, leg: Order, quantity: Decimal) -> None:
        """Send a stop anew that stood alone and could not be made smaller, now that it is gone."""
        ask = leg.request
        terms = {"quantity": quantity, "parent_id": None, "oca_group": None, "source": "exit", "signal": None}
        try:
            order = (await self._desk.submit([ask.model_copy(update=terms)], cause=leg.order_id))[0]
        except (JournalError, CommandError) as error:
            log.error("%s has no stop any more: the one of %s was not sent (%s)", ask.symbol, quantity, error)
            return
        if not order.working and not order.filled:
            log.error("%s has no stop any more: the one of %s is %s", ask.symbol, quantity, order.status)

    def _group(self, guard: Guard) -> list[Order]:
        """List every working exit of a guard's group: its own, and those that a person has put beside them."""
        orders = self._desk.open_orders()
        return [
            each for each in orders if each.request.oca_group == guard.group and each.request.intent == "reduce"
        ]

    def _restore(self, guard: Guard, quantity: Decimal, price: Decimal | None) -> None:
        if guard.refused >= MOST_STOPS or price is None:
            log.error("%s can't be protected by a stop; closing it at the market", guard.symbol)
            self._leave(guard, "no stop could be placed")
        else:
            log.warning("%s has no working stop; placing one", guard.symbol)
            self._send(guard, self._stop(guard, quantity, price), "stop_id")

    def _tried_again(self, guard: Guard) -> bool:
        """Review a guard whose time to try again has come; False where it has not."""
        if guard.retry_at is not None:
            if self._clock.now() < guard.retry_at:
                return False
            guard.retry_at = None
            self._review(guard)
        return True

    def _refused(self, guard: Guard, order: Order) -> None:
        ask = order.request
        term: Kept | None = (
            "good_after" if ask.good_after is not None else "adjustment" if ask.adjustment is not None else None
        )
        if term is not None and order.status is OrderStatus.REJECTED and not self.waits():
            self._declined.add((guard.symbol, term))
            log.warning(
                "%s of %s was refused (%s): until the next start this server does it by itself in %s",
                "the time stop at rest" if term == "good_after" else "the trail at rest",
                guard.symbol,
                order.reason,
                guard.symbol,
            )
            return
        if term == "good_after":
            return  # the server does it when it is due, unless it comes to rest before
        passing = any(verdict.code in PASSING and verdict.outcome == "refuse" for verdict in order.verdicts)
        guard.refused += not passing
        log.error("%s of %s was refused: %s", order.request.reason, guard.symbol, order.reason)
        self._try_later(guard)

    def _try_later(self, guard: Guard) -> None:
        guard.retry_at = self._clock.now() + RETRY

    def _end(self, guard: Guard) -> None:
        left = [order for order in self._desk.open_orders() if order.request.oca_group == guard.group]
        for order in left:
            self.drop(order)
        if left:
            guard.retry_at = self._clock.now() + RETRY  # it stays until every leg has ended
            return
        guard.ended = True
        if guard.opened_at is not None:
            self._over[guard.symbol] = guard
        self._forget(guard)
        self._remember(self._over.get(guard.symbol, guard))  # a restart reads the newest note of the symbol

    def _forget(self, guard: Guard) -> None:
        """Take a guard off its symbol, unless the symbol has another one by now."""
        if self.guards.get(guard.symbol) is guard:
            del self.guards[guard.symbol]
            if self._held(guard.symbol) != ZERO:
                self.left(guard.symbol)

    def drop(self, order: Order) -> None:
        """Ask once for a cancel; one that fails is asked for again at the next look."""
        if not order.cancel_asked:
            order.cancel_asked = True
            self._desk.spawn(self._drop(order), f"exit[{order.request.symbol} cancel {order.request.reason}]")

    async def _drop(self, order: Order) -> None:
        if not order.working:
            return  # the broker's own group has cancelled it already
        try:
            await self._desk.ask_cancel(order)
        except CommandError as error:
            order.cancel_asked = False
            log.warning("an order of %s could not be cancelled: %s", order.request.symbol, error)

    # --- small things ---------------------------------------------------------------------------------------

    def _stands_down(self, guard: Guard) -> bool:
        """Tell whether a kill has taken the exits over."""
        return self.stands_down(guard.symbol, self._owner(guard))

    def _owner(self, guard: Guard) -> str | None:
        """Name the strategy that a kill would know the position by: the books' word, not that of its first entry.

        The two differ where the entry was taken back and what others have added is left.
        """
        position = self._desk.portfolio.position(guard.symbol)
        return position.strategy if position.quantity else guard.strategy

    def _last(self, symbol: str) -> Guard | None:
        """Give the guard of a symbol's last position, without the one before it."""
        over = self._over.get(symbol)
        return None if over is None else replace(over, before=None)

    def _owned(self, symbol: str, *, beside: Order | None = None) -> bool:
        """Tell whether shares of ours are there, or on their way, that a guard must not take for its own."""
        entering = (o for o in self._desk.open_orders() if o.request.intent == "entry" and o is not beside)
        return self._held(symbol) != ZERO or any(order.request.symbol == symbol for order in entering)

    def _held(self, symbol: str) -> Decimal:
        return self._desk.portfolio.quantity(symbol)

    def _order(self, order_id: str | None) -> Order | None:
        return self._desk.orders.get(order_id) if order_id else None

    def _trails(self, guard: Guard) -> bool:
        """Tell whether the trail is active: the server's own, or the one that the broker has made of the stop."""
        return any(stop.request.order_type == "trailing_stop" for stop in self._stops(guard))

    def _stops(self, guard: Guard) -> list[Order]:
        """List the stop and the trail of a guard, as far as they work."""
        orders = (self._order(order_id) for order_id in (guard.stop_id, guard.trail_id))
        return [order for order in orders if order is not None and order.working]

    def _works(self, order_id: str | None) -> bool:
        order = self._order(order_id)
        return order is not None and order.working

    def _note(self, guard: Guard) -> NoteRecord:
        return NoteRecord(NOTE, self._clock.now(), guard.memory())

    def _remember(self, guard: Guard) -> None:
        names = (guard.entry_id, *(getattr(guard, slot) for slot in SLOTS))
        unsure = (name for name in names if name is not None and self._desk.is_unwritten(name))
        self._desk.note([self._note(guard)], of=next(unsure, None))  # what it names must be there too

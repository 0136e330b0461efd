"""The rules of the model test: what may happen to the money path, in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, ClassVar, Final

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sigma9_core.commands import (
    AdoptArgs,
    BracketArgs,
    CancelAllArgs,
    CloseArgs,
    Command,
    KillArgs,
    ModifyOrderArgs,
    OrderArgs,
    Scope,
)
from sigma9_core.config import KillSwitchSettings, Settings
from sigma9_core.contracts import KEPT, RiskRule
from sigma9_core.models import ZERO, ExitPlan, OrderRequest, Side
from sigma9_core.testing.model.checks import MoneyChecks
from sigma9_core.testing.model.room import RoughRoom
from sigma9_core.testing.model.world import SYMBOLS, MoneyWorld
from sigma9_core.testing.money_room import AllowAll
from sigma9_core.testing.small_exchange import Resting

STRATEGIES: Final = ("alpha", "beta")
PLANS: Final = (
    ExitPlan(),
    ExitPlan(time_stop_seconds=20),
    ExitPlan(trail_percent=Decimal(1), trail_activation_percent=Decimal(0)),
    ExitPlan(time_stop_seconds=60, trail_amount=Decimal("0.15"), stop_percent=Decimal(5)),
)
FULL: Final = Decimal(100)
ABSURD: Final = (400, -90)
"""Moves in percent that nobody believes."""

symbols = st.sampled_from(SYMBOLS)
quantities = st.sampled_from((1, 10, 40, 100)).map(Decimal)
picks = st.integers(0, 30)
"""Which of those that there are, counted around."""
sides = st.sampled_from(("buy", "sell"))
plans = st.sampled_from(PLANS)
scopes = st.sampled_from(
    (None, None, None, *(Scope(symbol=name) for name in SYMBOLS), *(Scope(strategy=name) for name in STRATEGIES))
)


class MoneyMachine(RuleBasedStateMachine):
    """The machine: each rule lets one thing happen, and after each the checks look."""

    gate: ClassVar[Callable[[], Sequence[RiskRule]]] = staticmethod(lambda: [AllowAll()])
    """Builds the risk rules of a room."""
    steps: ClassVar[int] = 0
    """Steps of all machines of the class, for a report."""

    def __init__(self) -> None:
        super().__init__()
        self.world = MoneyWorld(type(self).gate)
        self.checks = MoneyChecks(self.world)

    @property
    def room(self) -> RoughRoom:
        """Give the room of the moment."""
        return self.world.room

    @initialize(
        foreign=st.sampled_from(("leave", "leave", "cancel", "flatten")),
        held=st.tuples(
            *[st.sampled_from(("nothing", "long", "long", "short", "partly", "hand", "bracket", "person"))] * 3
        ),
        plan=plans,
        prompt=st.booleans(),
        slow_disk=st.sampled_from((None, None, "before", "after")),
        slow_mail=st.sampled_from((0.0, 0.0, 0.2)),
        slow_cancels=st.sampled_from((0.0, 0.5)),
        slow_reads=st.sampled_from((0.0, 0.0, 0.4)),
        keeps=st.sampled_from(((), KEPT, KEPT, *((term,) for term in KEPT))),
    )
    def begin(self, foreign: Any, held: Sequence[str], plan: ExitPlan, prompt: bool, **climate: Any) -> None:
        """Start the first room with some positions, and in a climate that lasts."""
        world, exchange = self.world, self.world.exchange
        world.settings = Settings(kill_switch=KillSwitchSettings(foreign=foreign))
        exchange.immediate, exchange.keeps = prompt, frozenset(climate["keeps"])
        world.open()
        for symbol, what in zip(SYMBOLS, held, strict=True):
            world.tick(symbol, ZERO, 1)
            self._hold(symbol, what, plan)
        world.slow_disk = world.room.journal.slow = climate["slow_disk"]
        exchange.mail_seconds, exchange.read_seconds = climate["slow_mail"], climate["slow_reads"]
        exchange.cancel_seconds = climate["slow_cancels"]

    def _hold(self, symbol: str, what: str, plan: ExitPlan) -> None:
        world, exchange = self.world, self.world.exchange
        if what == "hand":
            exchange.trade_by_hand(symbol, "buy", FULL, world.prices[symbol])
            world.happen(exchange.drop)
            world.settle(2.0)
        elif what in ("long", "short", "partly"):
            self.enter(symbol, STRATEGIES[0], "sell" if what == "short" else "buy", FULL, plan, False)
            world.fill_newest_entry(symbol, 2 if what == "partly" else 1)
        elif what != "nothing":
            self.place(symbol, "buy", FULL, "bracket" if what == "bracket" else "market")
            world.fill_newest_entry(symbol, 1)

    @invariant()
    def all_is_well(self) -> None:
        """Look at what must be so at any moment."""
        if self.world.begun:
            type(self).steps += 1
            self.checks.look()

    def teardown(self) -> None:
        """See that everything comes right in the end, also over a restart; then tidy up."""
        try:
            if self.world.begun and not self.checks.failed:
                self.calm(False)
                self.world.close()
                self.world.open()
                self.calm(False)
                self.world.close()
        finally:
            self.world.end()

    def _picked(self, orders: Sequence[Resting], pick: int) -> Resting:
        order = orders[pick % len(orders)]
        ask = order.request
        note(f"# {ask.intent} {ask.side} {ask.quantity} {ask.symbol} {ask.order_type} ({ask.reason})")
        return order

    # --- who asks for something -------------------------------------------------------------------------------

    @rule(
        symbol=symbols,
        strategy=st.sampled_from(STRATEGIES),
        side=st.sampled_from(("buy", "buy", "sell")),
        quantity=quantities,
        plan=plans,
        limited=st.booleans(),
    )
    def enter(  # noqa: PLR0917 - the names stand at the rule
        self, symbol: str, strategy: str, side: Side, quantity: Decimal, plan: ExitPlan, limited: bool
    ) -> None:
        """A strategy enters, with its exits."""
        price = self.world.prices[symbol]
        terms: dict[str, Any] = {"order_type": "limit", "limit_price": price} if limited else {}
        request = OrderRequest(
            symbol=symbol,
            side=side,
            quantity=quantity,
            strategy=strategy,
            source="strategy",
            exit_plan=plan,
            **terms,
        )
        self.world.command(self.room.path.enter(request, price), "enter")

    @precondition(lambda self: len(self.world.held()) < len(SYMBOLS))
    @rule(pick=picks, side=sides, plan=plans, share=st.sampled_from((1, 1, 1, 2, 4)))
    def enter_and_fill(self, pick: int, side: Side, plan: ExitPlan, share: int) -> None:
        """A strategy enters what is not held, and gets it, whole or in part."""
        free = [symbol for symbol in SYMBOLS if symbol not in self.world.held()]
        symbol = free[pick % len(free)]
        self.enter(symbol, STRATEGIES[pick % len(STRATEGIES)], side, FULL, plan, False)
        self.world.fill_newest_entry(symbol, share)

    @rule(
        symbol=symbols,
        side=sides,
        quantity=quantities,
        kind=st.sampled_from(("market", "limit", "stop", "bracket", "trailing_stop")),
    )
    def place(self, symbol: str, side: Side, quantity: Decimal, kind: str) -> None:
        """A person places an order."""
        price, cent = self.world.prices[symbol], Decimal("0.01")
        low, high = (price * Decimal("0.95")).quantize(cent), (price * Decimal("1.05")).quantize(cent)
        away, through = (low, high) if side == "buy" else (high, low)
        terms: dict[str, dict[str, Any]] = {
            "market": {},
            "limit": {"order_type": "limit", "limit_price": away},
            "stop": {"order_type": "stop", "stop_price": through},
            "trailing_stop": {"order_type": "trailing_stop", "trail_percent": Decimal(2)},
            "bracket": {"bracket": BracketArgs(stop_price=away, take_profit=through)},
        }
        args = OrderArgs(symbol=symbol, side=side, quantity=quantity, **terms[kind])
        command = Command("place_order", {}, "api", id="p")
        self.world.command(self.room.path.place(args, command, []), "place")

    @precondition(lambda self: self.world.held())
    @rule(pick=picks, quantity=quantities, share=st.sampled_from((1, 1, 2)))
    def add(self, pick: int, quantity: Decimal, share: int) -> None:
        """A person adds to what is held, and gets it, whole or in part."""
        symbol = self.world.held()[pick % len(self.world.held())]
        self.place(symbol, "buy" if self.world.exchange.own[symbol] > 0 else "sell", quantity, "market")
        self.world.fill_newest_entry(symbol, share)

    @precondition(lambda self: not self.world.exchange.immediate and self.world.exchange.listener is not None)
    @rule(symbol=symbols, side=sides, quantity=quantities, arrives=st.booleans())
    def place_in_the_dark(self, symbol: str, side: Side, quantity: Decimal, arrives: bool) -> None:
        """Nobody knows what became of an order, and what is read back is older than it."""
        self.world.exchange.freeze(self.world.loop.time())
        self.world.exchange.submit_modes = ["lose_answer" if arrives else "lose"]
        self.place(symbol, side, quantity, "limit")
        self.world.settle(6.0)

    @precondition(lambda self: self.room.desk.open_orders())
    @rule(pick=picks, what=st.sampled_from(("more", "less", "half", "price")))
    def modify(self, pick: int, what: str) -> None:
        """A person changes an order, of whatever kind."""
        orders = self.room.desk.open_orders()
        order = orders[pick % len(orders)]
        ask = order.request
        changes: dict[str, Decimal]
        if what == "price":
            name, price = ("limit_price", ask.limit_price) if ask.limit_price else ("stop_price", ask.stop_price)
            changes = {} if price is None else {name: price + Decimal("0.01")}
        else:
            size = {"more": ask.quantity + 7, "less": ask.quantity - 3, "half": ask.quantity // 2}[what]
            changes = {"quantity": size} if size > 0 else {}
        args = ModifyOrderArgs.model_validate({"order_id": order.order_id, **changes})
        command = Command("modify_order", {}, "api", id="m")
        self.world.command(self.room.path.modify(args, command, []), "modify")

    @precondition(lambda self: self.room.desk.open_orders())
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        """A person cancels an order, of whatever kind."""
        orders = self.room.desk.open_orders()
        self.world.command(self.room.path.cancel(orders[pick % len(orders)].order_id), "cancel")

    @rule(protective=st.booleans())
    def cancel_all(self, protective: bool) -> None:
        """A person cancels all entries, perhaps the exits too."""
        if protective:
            self.world.bare.update(SYMBOLS)
        self.world.command(self.room.path.cancel_all(CancelAllArgs(protective=protective)), "cancel_all")

    @rule(symbol=st.sampled_from((*SYMBOLS, "*")))
    def close(self, symbol: str) -> None:
        """A person closes a position, or all of them."""
        command = Command("close_position", {}, "api", id="c")
        self.world.command(self.room.path.close(CloseArgs(symbol=symbol), command, []), "close")

    @precondition(lambda self: not self.room.kills and (self.world.working() or self.world.held()))
    @rule(flatten=st.sampled_from((True, True, False)), scope=scopes)
    def kill(self, flatten: bool, scope: Scope | None) -> None:
        """Somebody kills: everything, a symbol, or a strategy."""
        args = KillArgs(reason="model", flatten=flatten, scope=scope)
        self.world.command(self.room.path.kill(args, Command("kill_switch", {}, "api")), "kill")

    @precondition(lambda self: self.room.kills)
    @rule(flatten=st.sampled_from((True, True, False)), scope=scopes)
    def kill_more(self, flatten: bool, scope: Scope | None) -> None:
        """Somebody kills once more: the same, or something beside it."""
        self.kill(flatten, scope)

    @precondition(lambda self: self.room.kills)
    @rule(pick=picks, start=st.sampled_from((True, True, True, False)))
    def reset(self, pick: int, start: bool) -> None:
        """A person resets a kill, done or not, and perhaps starts again."""
        key = [*self.room.kills][pick % len(self.room.kills)]
        scope = None if key is None else Scope.model_validate({key[0]: key[1]})
        self.world.command(self.room.kill.reset("model", scope, "api"), "reset")
        if start:
            self.start()

    @precondition(lambda self: any(kill.phase == "done" for kill in self.room.kills.values()))
    @rule(pick=picks)
    def go_on(self, pick: int) -> None:
        """A person resets what is done, and starts again."""
        self.reset(pick, True)

    @precondition(lambda self: not self.room.kills and self.world.held())
    @rule()
    def drill(self) -> None:
        """A person drills."""
        self.world.command(self.room.kill.drill("api"), "drill")

    @precondition(lambda self: self.room.paused)
    @rule()
    def start(self) -> None:
        """A person starts again."""
        self.world.command(self.room.path.take_entries(), "start")

    @precondition(lambda self: not self.room.paused)
    @rule()
    def pause(self) -> None:
        """A person pauses."""
        self.room.path.gate.pause("paused")

    # --- the market and time ----------------------------------------------------------------------------------

    @rule(
        symbol=symbols,
        move=st.sampled_from((0, 0, 1, -1, 4, -4, 12, -12, *ABSURD)),
        seconds=st.sampled_from((1, 6, 25, 70)),
        halted=st.sampled_from((None, None, None, False, True)),
    )
    def tick(self, symbol: str, move: int, seconds: int, halted: bool | None) -> None:
        """A price is printed, some percent away from the last one."""
        self.world.tick(symbol, Decimal(move), seconds, halted)

    @rule(seconds=st.sampled_from((0.05, 0.2, 0.3, 0.5, 1.1, 5.0, 12.0, 31.0)))
    def wait(self, seconds: float) -> None:
        """Time passes: retries, looks and time limits come due; after a while what was broken is mended."""
        self.world.settle(seconds)
        if seconds > 10:
            self.world.happen(self.room.journal.heal)
            self.world.mend_line()

    # --- the exchange -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.fillable())
    @rule(
        pick=picks,
        share=st.sampled_from((1, 1, 2, 4)),
        cents=st.integers(-20, 20),
        fee=st.sampled_from(("0", "0.35")),
    )
    def fill(self, pick: int, share: int, cents: int, fee: str) -> None:
        """An order fills, whole or in part."""
        order = self._picked(self.world.fillable(), pick)
        left = self.world.exchange.fillable(order)
        price = max(self.world.prices[order.request.symbol] + Decimal(cents) / 100, Decimal("0.01"))
        size = max(left // share, Decimal(1)) if left >= 1 else left
        self.world.happen(self.world.exchange.fill, order.order_id, price, size, Decimal(fee))

    @precondition(lambda self: len(self.world.held()) < len(SYMBOLS))
    @rule(pick=picks, side=sides, plan=plans, parts=st.booleans(), bust=st.booleans())
    def enter_unheard(self, pick: int, side: Side, plan: ExitPlan, parts: bool, bust: bool) -> None:
        """An entry fills, and is read back as filled without an execution, which may be taken back later."""
        free = [symbol for symbol in SYMBOLS if symbol not in self.world.held()]
        symbol, exchange = free[pick % len(free)], self.world.exchange
        self.enter(symbol, STRATEGIES[pick % len(STRATEGIES)], side, FULL, plan, False)
        self.world.settle(1.0)
        entries = [each for each in self.world.fillable() if each.request.symbol == symbol]
        if not entries or entries[-1].request.intent != "entry":
            return
        order, price = entries[-1], self.world.prices[symbol] + Decimal(pick) / 100
        if parts and order.request.quantity - order.filled > 1:
            self.world.happen(exchange.fill, order.order_id, price, Decimal(1), Decimal("0.35"))
        if order.state == "working":
            rest = order.request.quantity - order.filled
            self.world.happen(exchange.fill_unheard, order.order_id, price, rest, Decimal("0.35"))
        self.world.settle(45 if bust else pick)
        if bust and exchange.unheard:
            self.tell_late(pick, True)

    @precondition(lambda self: self.world.exchange.unheard)
    @rule(pick=picks, bust=st.booleans())
    def tell_late(self, pick: int, bust: bool) -> None:
        """A fill that nobody was told of is told, or taken back, or both."""
        exchange = self.world.exchange
        fill = exchange.unheard[pick % len(exchange.unheard)].fill
        if pick % 2 and exchange.health.link == "up":
            self.world.happen(exchange.tell_late, pick)
        if bust and fill is not None and fill.symbol not in exchange.split_ever:
            self.world.happen(exchange.bust, fill)

    @precondition(lambda self: self.world.adjustable())
    @rule(pick=picks)
    def adjust(self, pick: int) -> None:
        """A stop's trigger price has traded: the exchange makes a trailing stop of it."""
        order = self._picked(self.world.adjustable(), pick)
        self.world.happen(self.world.exchange.adjust, order.order_id)

    @precondition(lambda self: self.world.fillable())
    @rule()
    def fill_market_orders(self) -> None:
        """Whatever is to trade at the market does."""
        self.world.happen(self.world.fill_market_orders)

    @precondition(lambda self: self.world.working())
    @rule(pick=picks, kind=st.sampled_from(("cancelled", "rejected", "expired")))
    def end(self, pick: int, kind: Any) -> None:
        """The exchange ends an order."""
        order = self._picked(self.world.working(), pick)
        ending = "cancelled" if order.filled and kind == "rejected" else kind
        self.world.happen(self.world.exchange.end, order.order_id, ending, "the exchange says so")

    @rule(
        submit=st.sampled_from(
            (
                *("refuse", "lose", "lose_answer", "no_answer", "swallow", "slow"),
                *("reject", "reject_stops", "reject_market", "reject_terms"),
            )
        ),
        times=st.integers(1, 4),
    )
    def submits(self, submit: Any, times: int) -> None:
        """The next orders arrive like this."""
        self.world.exchange.submit_modes = [submit] * times

    @rule(
        cancel=st.sampled_from(("take", "lose", "swallow", "slow")),
        replace=st.sampled_from(("take", "refuse", "lose", "lose_answer", "slow")),
        times=st.integers(1, 4),
    )
    def changes(self, cancel: Any, replace: Any, times: int) -> None:
        """The next cancels and changes go like this."""
        self.world.exchange.cancel_modes = [cancel] * times
        self.world.exchange.replace_modes = [replace] * times

    @precondition(lambda self: self.world.exchange.putting_off)
    @rule()
    def carry_out(self) -> None:
        """What the exchange has put off is done."""
        self.world.happen(self.world.exchange.carry_out)

    # --- the line ---------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.world.exchange.keeps_mail)
    @rule()
    def mail_waits(self) -> None:
        """From here on reports wait until they are delivered."""
        self.world.exchange.keeps_mail = True

    @precondition(lambda self: self.world.exchange.mail and self.world.exchange.health.link == "up")
    @rule(what=st.sampled_from(("next", "next", "second", "all")))
    def deliver(self, what: str) -> None:
        """Reports arrive: one, one before its turn, or all."""
        exchange = self.world.exchange
        if what == "all":
            exchange.keeps_mail = False
            self.world.happen(exchange.deliver_all)
        else:
            self.world.happen(exchange.deliver, exchange.overtaking() if what == "second" else 0)

    @precondition(lambda self: self.world.exchange.told and self.world.exchange.listener is not None)
    @rule(pick=picks)
    def tell_again(self, pick: int) -> None:
        """A report comes once more."""
        self.world.happen(self.world.exchange.repeat, -1 - pick % 4)

    @precondition(lambda self: self.world.exchange.listener and self.world.exchange.health.link == "up")
    @rule(what=st.sampled_from(("drop", "drop", "away", "down", "leave")))
    def line_goes(self, what: str) -> None:
        """The connection goes: for a moment, for longer, behind the broker, or because a person wants it."""
        exchange = self.world.exchange
        exchange.away = what == "away"
        if what in ("drop", "away"):
            self.world.happen(exchange.drop)
        elif what == "down":
            self.world.happen(exchange.link, False)
        else:
            self.world.command(self.room.path.link.disconnect(), "broker_disconnect")

    @precondition(lambda self: not self.world.exchange.listener or self.world.exchange.health.link == "down")
    @rule()
    def line_comes(self) -> None:
        """The connection comes back."""
        self.world.mend_line()

    @precondition(lambda self: not self.world.exchange.immediate and self.world.exchange.listener is not None)
    @rule()
    def read_backs_are_old(self) -> None:
        """What is read back stays as it is for a while."""
        self.world.exchange.freeze(self.world.loop.time())

    @precondition(lambda self: not self.world.exchange.immediate and self.world.working())
    @rule(pick=picks, every=st.booleans(), seconds=st.sampled_from((0.0, 12.0, 45.0, 45.0)), back=st.booleans())
    def out_of_sight(self, pick: int, every: bool, seconds: float, back: bool) -> None:
        """The list of open orders leaves out one order or all, perhaps for so long that it is taken for ended."""
        exchange, working = self.world.exchange, self.world.working()
        exchange.lose_sight([order.order_id for order in (working if every else [self._picked(working, pick)])])
        self.world.settle(seconds)
        if back:
            exchange.out_of_sight.clear()
            self.world.settle(seconds / 5)

    @precondition(lambda self: self.world.working())
    @rule(pick=picks, seconds=st.sampled_from((0.0, 6.0, 12.0)), free=st.booleans())
    def held(self, pick: int, seconds: float, free: bool) -> None:
        """The exchange has an order and does not work it, for a while or until it is let go."""
        order = self._picked(self.world.working(), pick)
        self.world.happen(self.world.exchange.hold, order.order_id)
        self.world.settle(seconds)
        if free:
            self.world.happen(self.world.exchange.let_go)

    @precondition(lambda self: any(order.held for order in self.world.working()))
    @rule()
    def let_go(self) -> None:
        """What was held works again."""
        self.world.happen(self.world.exchange.let_go)

    @precondition(lambda self: self.world.exchange.out_of_sight)
    @rule(seconds=st.sampled_from((0.0, 6.0, 12.0)))
    def in_sight(self, seconds: float) -> None:
        """The list of open orders has them again."""
        self.world.exchange.out_of_sight.clear()
        self.world.settle(seconds)

    # --- the computer that it runs on -------------------------------------------------------------------------

    @precondition(lambda self: self.room.journal.fault is None)
    @rule(fault=st.sampled_from(("before", "after")))
    def disk_fails(self, fault: Any) -> None:
        """The journal's disk fails, or tells of failures that were none."""
        self.room.journal.fault = fault

    @precondition(lambda self: self.room.journal.fault is not None)
    @rule()
    def disk_works(self) -> None:
        """The journal's disk works again."""
        self.world.happen(self.room.journal.heal)

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        """It ends, in order or not, and starts again."""
        if crash:
            self.world.cut()
        else:
            self.world.close()
        self.world.open()
        self.checks.replay()

    @precondition(lambda self: self.world.exchange.may_correct())
    @rule(pick=picks)
    def correct(self, pick: int) -> None:
        """An execution turns out to have been for half of what was told."""
        wrong = self.world.exchange.may_correct()
        fill = wrong[pick % len(wrong)]
        self.world.happen(self.world.exchange.correct, fill, fill.quantity // 2)

    # --- what is rare -----------------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(("late fill", "bust", "adopt", "split", "night", "evening", "transfer", "latch")),
        symbol=symbols,
        pick=picks,
    )
    def rarely(self, what: str, symbol: str, pick: int) -> None:
        """A fill after the cancel, a bust, an adoption, a split, a night, a deposit, a latch that fails."""
        world, exchange = self.world, self.world.exchange
        if what == "late fill":
            ended = exchange.may_fill_late()
            if ended:
                order = self._picked(ended, pick)
                world.happen(exchange.fill_late, order.order_id, world.prices[order.request.symbol])
        elif what == "bust":
            fills = [fill for fill in exchange.fills if fill.order_id and fill.symbol not in exchange.split_ever]
            if fills:
                world.happen(exchange.bust, fills[pick % len(fills)])
        elif what == "adopt":
            args = AdoptArgs(symbol=symbol, strategy=STRATEGIES[pick % len(STRATEGIES)])
            world.command(self.room.path.adopt(args), "adopt")
        elif what == "split":
            world.split(symbol)
        elif what in ("night", "evening"):
            world.night(whole=what == "night")
        elif what == "transfer":
            exchange.cash += Decimal("123.45")
        else:
            self.room.fill_the_latch_s_disk()

    @rule(symbol=symbols, side=sides, quantity=quantities, rests=st.booleans())
    def by_hand(self, symbol: str, side: Side, quantity: Decimal, rests: bool) -> None:
        """A person trades, or leaves an order, beside us in the same account."""
        exchange, price = self.world.exchange, self.world.prices[symbol]
        if rests:
            ask = OrderRequest(symbol=symbol, side=side, quantity=quantity, order_type="limit", limit_price=price)
            exchange.rest_by_hand(ask)
            return
        closing = any(kill.flatten and kill.phase != "done" for kill in self.room.kills.values())
        if closing or exchange.old is not None:
            exchange.excuse(symbol, "a person traded after a kill had read what there is to close, or will have")
        exchange.trade_by_hand(symbol, side, quantity, price)

    # --- the weather clears up ----------------------------------------------------------------------------------

    @rule(go_on=st.booleans())
    def calm(self, go_on: bool) -> None:
        """Everything works again, and time passes: all comes right. A person may reset what is done, and start."""
        self.world.clear_up()
        self.world.let_kills_end()
        self.checks.look_in_the_calm()
        self.world.forgive()
        done = [index for index, kill in enumerate(self.room.kills.values()) if kill.phase == "done"]
        for index in reversed(done if go_on else []):
            self.reset(index, True)
            self.world.settle(1.0)

    fills_again = fill
    fills_still_more = fill
    enters_again = enter
    ticks_again = tick
    starts_again = start
    modifies_again = modify
    waits_again = wait
    waits_still_more = wait
    # A rule that stands here twice is taken twice as often.


__all__ = ["MoneyMachine"]

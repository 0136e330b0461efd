"""A state machine that does to the money path whatever may happen, in any order, and says when money is at risk.

A real room (journal file, latch, gate, desk, exits, kill switch, reconciler) trades at a `RoughExchange` on a
`VirtualLoop`: commands are begun and not waited for, so that everything may happen in the middle of anything. After
each step the invariants are looked at; `calm` lets the weather clear up, and asks whether everything comes right.

The machine needs hypothesis. Give it `rules` for the gate, and run it with `run_state_machine_as_test`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Final, Literal
from unittest import mock

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sigma9_core.clock import SteppedClock
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
from sigma9_core.contracts import RiskRule
from sigma9_core.errors import BrokerError, CommandError, JournalError
from sigma9_core.events import Event, TradeEvent
from sigma9_core.models import (
    ZERO,
    ApprovedOrder,
    Bar,
    ExitPlan,
    Fill,
    OrderRequest,
    OrderStatus,
    Quote,
    Session,
    Side,
    Slice,
    Split,
    Trade,
)
from sigma9_core.money import journal as journal_module
from sigma9_core.money import killswitch, reconcile
from sigma9_core.money.adoption import ADOPTED
from sigma9_core.money.journal import Events, Journal
from sigma9_core.money.killswitch import Kill
from sigma9_core.money.portfolio import Applied, Portfolio
from sigma9_core.money.records import NoteRecord, Record
from sigma9_core.money.restore import split_of
from sigma9_core.testing.money_room import OPEN, AllowAll, MoneyRoom
from sigma9_core.testing.rough_exchange import RoughExchange
from sigma9_core.testing.small_exchange import Resting
from sigma9_core.testing.virtual_loop import VirtualLoop

SYMBOLS: Final = ("AAA", "BBB", "CCC")
STRATEGIES: Final = ("alpha", "beta")
SESSIONS: Final = [
    Session(f"2026-03-{day:02d}", start, start + timedelta(hours=6.5))
    for day in range(2, 28)
    if (start := OPEN + timedelta(days=day - 2)).weekday() < 5
]
PLANS: Final = (
    ExitPlan(),
    ExitPlan(time_stop_seconds=20),
    ExitPlan(trail_percent=Decimal(1), trail_activation_percent=Decimal(0)),
    ExitPlan(time_stop_seconds=60, trail_amount=Decimal("0.15"), stop_percent=Decimal(5)),
)
NORMAL: Final = (BrokerError, CommandError, JournalError, TimeoutError, OSError)
"""What may go wrong for reasons outside the money path."""
WALL: Final = datetime(2026, 3, 2, 15, tzinfo=UTC)
NEVER: Final = 1e9
"""Seconds until a failing journal tries again by itself: the machine says when the disk works."""
SLOW: Final = 0.3
"""Seconds that a slow disk takes for a commit."""
STILL: Final = 45.0
"""Seconds in which everything that can come right by itself has done so: looks at what is in doubt, back-off."""

MANY: Final = 10_000
REPLAY_EVERY: Final = 4

symbols = st.sampled_from(SYMBOLS)
quantities = st.sampled_from((1, 10, 40, 100)).map(Decimal)
picks = st.integers(0, 30)
sides = st.sampled_from(("buy", "sell"))


class RoughJournal(Journal):
    """A journal whose disk fails, reports failures that were none, or takes its time, as the machine says."""

    fault: Literal["before", "after"] | None = None
    """before: a commit fails. after: it is done, and an error is told all the same."""
    slow: Literal["before", "after"] | None = None
    """When who waits for a commit waits: before it is durable, or after."""

    def open(self) -> None:
        """Open, and do the writer's work in place of its thread from here on."""
        super().open()
        if self._engine is not None:
            self._do_commit = self._engine.dialect.do_commit
            self._engine.dialect.do_commit = self._commit_or_fail  # type: ignore[method-assign]
        if self._connection is not None and (database := self._connection.connection.dbapi_connection) is not None:
            database.cursor().execute("PRAGMA synchronous=OFF")  # no crash here takes the machine along
        thread, self._thread = self._thread, None
        with self._changed:
            self._closing = True
            self._changed.notify()
        if thread is not None:
            thread.join()
        self._closing = False

    def close(self) -> None:
        """Write what waits, as the thread would have done, and close."""
        self._closing = True
        while group := self._take():
            self._commit(group)
        super().close()

    def _commit_or_fail(self, connection: Any) -> None:
        if self.fault != "before":
            self._do_commit(connection)
        if self.fault is not None:
            raise sqlite3.OperationalError("disk I/O error")

    def write(self, records: Sequence[Record], *, fact: bool = False) -> Future[Events]:
        """Hand over records, and write them before anything else happens, unless the disk fails or is slow."""
        future = super().write(records, fact=fact)
        if self.slow == "before":
            asyncio.get_event_loop().call_later(SLOW, self._pump)
        else:
            self._pump()
        return future

    def _pump(self) -> None:
        while self._waiting and not self._closing and (self.healthy or self._retry_at <= 0):
            self._commit(self._take())

    async def commit(self, records: Sequence[Record], *, fact: bool = False) -> Events:
        """Hand over records and wait, a while longer where the disk is slow."""
        events = await asyncio.wrap_future(self.write(records, fact=fact))
        if self.slow == "after":
            await asyncio.sleep(SLOW)
        return events

    def lose(self) -> None:
        """Forget what is not on the disk, as a crash does."""
        self._waiting.clear()
        self._waiting_records = 0

    def heal(self) -> None:
        """Let the disk work again, and write everything that waited."""
        self.fault = None
        self._retry_at = 0.0
        self._pump()


class RoughRoom(MoneyRoom):
    """A room at a rough exchange; it tells the exchange of adoptions, and the machine of a kill's steps."""

    exchange: RoughExchange
    journal: RoughJournal

    def __init__(
        self,
        folder: Path,
        exchange: RoughExchange,
        clock: SteppedClock,
        settings: Settings,
        rules: Sequence[RiskRule],
    ) -> None:
        super().__init__(
            folder,
            exchange=exchange,
            clock=clock,
            settings=settings,
            rules=rules,
            sessions=SESSIONS,
            journal=RoughJournal,
        )
        self.on_kill: Callable[[], None] = lambda: None
        self.restored = False
        self.path.portfolio.adopt = self._adopt  # type: ignore[method-assign]

    def _adopt(self, fill: Fill, strategy: str | None) -> Applied | None:
        applied = Portfolio.adopt(self.path.portfolio, fill, strategy)
        if applied is not None and self.restored:
            self.exchange.adopted(fill)
        return applied

    def _changed(self, part: Literal["broker", "kill_switch"]) -> None:
        super()._changed(part)
        if part == "kill_switch":
            self.on_kill()


class _Listener(logging.Handler):
    """Collects what went wrong inside and was caught: errors that no part of the world has made."""

    def __init__(self, wrong: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._wrong = wrong

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, NORMAL):
            self._wrong.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


class MoneyMachine(RuleBasedStateMachine):
    """The machine; `wrong` collects what must not be, and each step ends with a look at it."""

    rules_of_the_gate: ClassVar[Callable[[], Sequence[RiskRule]]] = staticmethod(lambda: [AllowAll()])
    steps: ClassVar[int] = 0
    """Steps that were made by all machines: for the report."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sigma9-model-"))
        self.loop = VirtualLoop()
        self.clock = SteppedClock("simulated", OPEN + timedelta(minutes=30))
        self.exchange = RoughExchange(self.clock)
        self.exchange.arrives = self._arrives
        self.wrong = self.exchange.wrong
        self.prices = dict.fromkeys(SYMBOLS, Decimal(10))
        self.tasks: list[asyncio.Task[Any]] = []
        self.feeding: asyncio.Task[None] | None = None
        self.heard: list[Event] = []
        self.splits: list[Split] = []
        """All that there were: the feed tells each of them with every slice."""
        self.bare: set[str] = set()
        """Symbols whose exits a person may have cancelled since they were flat."""
        self.phases: dict[object, str] = {}
        self.broken = False
        self.slow_disk: Any = None
        self._patches = ExitStack()
        for module, name, value in (
            (killswitch, "monotonic", self.loop.time),
            (reconcile, "monotonic", self.loop.time),
            (killswitch, "wall_now", self._wall),
            (journal_module, "FIRST_WAIT", NEVER),
            (journal_module, "LONGEST_WAIT", NEVER),
        ):
            self._patches.enter_context(mock.patch.object(module, name, value))
        logger = logging.getLogger("sigma9")
        listener = _Listener(self.wrong)
        logger.addHandler(listener)
        self._patches.callback(logger.removeHandler, listener)
        self._patches.enter_context(mock.patch.object(logger, "propagate", False))
        self.loop.set_exception_handler(self._unhandled)

    @initialize(
        foreign=st.sampled_from(("leave", "leave", "cancel", "flatten")),
        held=st.tuples(
            *[st.sampled_from(("nothing", "long", "long", "short", "partly", "hand", "bracket", "person"))] * 3
        ),
        plan=st.sampled_from(PLANS),
        prompt=st.booleans(),
        slow_disk=st.sampled_from((None, None, "before", "after")),
        slow_mail=st.sampled_from((0.0, 0.0, 0.2)),
        slow_cancels=st.booleans(),
        slow_reads=st.sampled_from((0.0, 0.0, 0.4)),
    )
    def begin(
        self,
        foreign: Any,
        held: Sequence[str],
        plan: ExitPlan,
        prompt: bool,
        slow_disk: Any,
        slow_mail: float,
        slow_cancels: bool,
        slow_reads: float,
    ) -> None:
        """Start the first room with some positions, in the climate that lasts."""
        self.settings = Settings(kill_switch=KillSwitchSettings(foreign=foreign))
        self.exchange.immediate = prompt
        self._open()
        for symbol, what in zip(SYMBOLS, held, strict=True):
            self._tick(symbol, ZERO, 1)
            self._hold(symbol, what, plan)
        self.slow_disk = self.room.journal.slow = slow_disk
        self.exchange.mail_seconds, self.exchange.read_seconds = slow_mail, slow_reads
        self.exchange.cancel_seconds = 0.5 if slow_cancels else 0.0

    def _hold(self, symbol: str, what: str, plan: ExitPlan) -> None:
        size = Decimal(100)
        if what == "hand":
            self.exchange.trade_by_hand(symbol, "buy", size, self.prices[symbol])
            self.happen(self.exchange.drop)
            self.settle(2.0)
        elif what in ("long", "short", "partly"):
            self.enter(symbol, STRATEGIES[0], "sell" if what == "short" else "buy", size, plan, False)
        elif what != "nothing":
            self.place(symbol, "buy", size, "bracket" if what == "bracket" else "market")
        for order in self._fillable():
            if order.request.intent == "entry" and order.request.symbol == symbol:
                part = Decimal(40) if what == "partly" else None
                self.happen(self.exchange.fill, order.order_id, self.prices[symbol], part)

    # --- the room -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        room = self.room = RoughRoom(
            self.folder, self.exchange, self.clock, self.settings, self.rules_of_the_gate()
        )
        room.on_kill = self._kill_moved
        room.journal.slow = self.slow_disk
        self.phases.clear()
        room.journal.open()
        if not room.latch.path.exists():
            room.latch.create()
        self.exchange.forget_adoptions([record.fill.exec_id for record in room.journal.fills()])
        self.loop.complete(self._start(room))
        self.settle(0.5)

    async def _start(self, room: RoughRoom) -> None:
        await room.path.start()
        room.restored = True
        room.path.link.connect()

    def _close(self) -> None:
        """Stop in order; whoever still waits for an answer gets none."""
        self.loop.complete(self.room.path.stop())
        self._cut()

    def _cut(self) -> None:
        """End as a kill -9 does: nothing more reaches the exchange or the disk."""
        room = self.room
        self.exchange.hang_up()
        room.path.link._broker = _Dead()  # type: ignore[assignment] # noqa: SLF001
        room.journal.lose()
        room.journal.close()
        room.latch.close()
        if room.path._show_timer is not None:  # noqa: SLF001
            room.path._show_timer.cancel()  # noqa: SLF001
        while left := asyncio.all_tasks(self.loop):
            for task in left:
                task.cancel()
            self.loop.wait()
        self.tasks.clear()
        self.feeding = None
        self._hear()

    def teardown(self) -> None:
        """See that everything comes right in the end, also over a restart; then tidy up."""
        try:
            if not self.broken and hasattr(self, "room"):
                self.calm()
                self._close()
                self._open()
                self.calm()
                self._close()
        finally:
            self._tidy()

    def _tidy(self) -> None:
        if hasattr(self, "room"):
            self._cut()
        self.loop.end()
        self._patches.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wall(self) -> datetime:
        return WALL + timedelta(seconds=self.loop.time())

    def _unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), NORMAL):
            self.wrong.append(f"unhandled: {context.get('message')} {context.get('exception')!r}")

    # --- letting things happen ------------------------------------------------------------------------------

    def settle(self, seconds: float = 0.0) -> None:
        """Let happen what can happen in so many seconds, and look for what must not have."""
        self.loop.wait(seconds)
        if self.loop.circling:
            self.wrong.append("something goes round in circles without any time passing")
            self.loop.circling = False
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, CommandError | JournalError | BrokerError):
                self.wrong.append(f"{task.get_name()} raised {error!r}")
        self._hear()

    def happen(self, what: Callable[..., object], *args: Any) -> None:
        """Let something happen on the loop, and what follows from it."""
        self.loop.call_soon(lambda: what(*args))
        self.settle()

    def command(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Begin what somebody has asked for, and go on as far as it goes without time."""
        self.tasks.append(self.loop.create_task(work, name=name))
        self.settle()

    def _hear(self) -> None:
        """Look at the events that were published: numbered without a gap."""
        for event in self.room.events[:]:
            expected = (self.heard[-1].seq or 0) + 1 if self.heard else 1
            if event.seq != expected:
                self.wrong.append(f"event {event.seq} came where {expected} was due")
            self.heard.append(event)
            data = event.data
            if isinstance(data, TradeEvent) and data.event is OrderStatus.RISK_REJECTED:
                if data.order_id in self.exchange.orders:
                    self.wrong.append(f"order {data.order_id} was refused by the gate and is at the exchange")
        self.room.events.clear()

    def _working(self, *, ours: bool = True) -> list[Resting]:
        return [
            order
            for order in self.exchange.orders.values()
            if order.state == "working" and bool(order.order_id) == ours
        ]

    def _fillable(self) -> list[Resting]:
        return [order for order in self._working() if self.exchange.fillable(order) > ZERO]

    def _pick(self, orders: Sequence[Resting], index: int) -> Resting:
        order = orders[index % len(orders)]
        note(
            f"# {order.request.intent} {order.request.side} {order.request.quantity} {order.request.symbol} "
            f"{order.request.order_type} ({order.request.reason})"
        )
        return order

    # --- rules: who asks for something ------------------------------------------------------------------------

    @rule(
        symbol=symbols,
        strategy=st.sampled_from(STRATEGIES),
        side=st.sampled_from(("buy", "buy", "sell")),
        quantity=quantities,
        plan=st.sampled_from(PLANS),
        limited=st.booleans(),
    )
    def enter(
        self, symbol: str, strategy: str, side: Side, quantity: Decimal, plan: ExitPlan, limited: bool
    ) -> None:
        """A strategy enters, with its exits."""
        terms: dict[str, Any] = {"order_type": "limit", "limit_price": self.prices[symbol]} if limited else {}
        request = OrderRequest(
            symbol=symbol,
            side=side,
            quantity=quantity,
            strategy=strategy,
            source="strategy",
            exit_plan=plan,
            **terms,
        )
        self.command(self.room.path.enter(request, self.prices[symbol]), "enter")

    @rule(
        symbol=symbols,
        side=sides,
        quantity=quantities,
        kind=st.sampled_from(("market", "limit", "stop", "bracket", "trailing_stop")),
    )
    def place(self, symbol: str, side: Side, quantity: Decimal, kind: str) -> None:
        """A person places an order."""
        price = self.prices[symbol]
        away = price * (Decimal("0.95") if side == "buy" else Decimal("1.05"))
        other = price * (Decimal("1.05") if side == "buy" else Decimal("0.95"))
        away, other = away.quantize(Decimal("0.01")), other.quantize(Decimal("0.01"))
        terms: dict[str, Any] = {
            "market": {},
            "limit": {"order_type": "limit", "limit_price": away},
            "stop": {"order_type": "stop", "stop_price": other},
            "trailing_stop": {"order_type": "trailing_stop", "trail_percent": Decimal(2)},
            "bracket": {"bracket": BracketArgs(stop_price=away, take_profit=other)},
        }[kind]
        args = OrderArgs(symbol=symbol, side=side, quantity=quantity, **terms)
        self.command(self.room.path.place(args, Command("place_order", {}, "api", id="p"), []), "place")

    @precondition(lambda self: self._held())
    @rule(pick=picks, quantity=quantities, share=st.sampled_from((1, 1, 2)))
    def add(self, pick: int, quantity: Decimal, share: int) -> None:
        """A person adds to what is held, and gets it, whole or in part."""
        symbol = self._held()[pick % len(self._held())]
        self.place(symbol, "buy" if self.exchange.own[symbol] > 0 else "sell", quantity, "market")
        self._fill_newest(symbol, share)

    @precondition(lambda self: len(self._held()) < len(SYMBOLS))
    @rule(pick=picks, side=sides, plan=st.sampled_from(PLANS), share=st.sampled_from((1, 1, 1, 2, 4)))
    def enter_and_fill(self, pick: int, side: Side, plan: ExitPlan, share: int) -> None:
        """A strategy enters what is not held, and gets it, whole or in part."""
        free = [symbol for symbol in SYMBOLS if symbol not in self._held()]
        symbol = free[pick % len(free)]
        self.enter(symbol, STRATEGIES[pick % len(STRATEGIES)], side, Decimal(100), plan, False)
        self._fill_newest(symbol, share)

    def _fill_newest(self, symbol: str, share: int) -> None:
        self.settle(1.0)
        entries = [o for o in self._fillable() if o.request.symbol == symbol and o.request.intent == "entry"]
        if entries:
            size = max(self.exchange.fillable(entries[-1]) // share, Decimal(1))
            self.happen(self.exchange.fill, entries[-1].order_id, self.prices[symbol], size)

    def _held(self) -> list[str]:
        return [symbol for symbol in SYMBOLS if self.exchange.own.get(symbol)]

    @precondition(lambda self: self.room.desk.open_orders())
    @rule(pick=picks, what=st.sampled_from(("more", "less", "half", "price")))
    def modify(self, pick: int, what: str) -> None:
        """A person changes an order, of whatever kind."""
        orders = self.room.desk.open_orders()
        order = orders[pick % len(orders)]
        ask = order.request
        changes: dict[str, Any] = {}
        if what == "price":
            name = "limit_price" if ask.limit_price else "stop_price"
            if getattr(ask, name) is None:
                return
            changes[name] = getattr(ask, name) + Decimal("0.01")
        else:
            changed = {"more": ask.quantity + 7, "less": ask.quantity - 3, "half": ask.quantity // 2}[what]
            if changed <= ZERO:
                return
            changes["quantity"] = changed
        args = ModifyOrderArgs(order_id=order.order_id, **changes)
        self.command(self.room.path.modify(args, Command("modify_order", {}, "api", id="m"), []), "modify")

    @precondition(lambda self: self.room.desk.open_orders())
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        """A person cancels an order, of whatever kind."""
        orders = self.room.desk.open_orders()
        self.command(self.room.path.cancel(orders[pick % len(orders)].order_id), "cancel")

    @rule(protective=st.booleans())
    def cancel_all(self, protective: bool) -> None:
        """A person cancels all entries, perhaps the exits too."""
        if protective:
            self.bare.update(SYMBOLS)
        self.command(self.room.path.cancel_all(CancelAllArgs(protective=protective)), "cancel_all")

    @rule(symbol=st.sampled_from((*SYMBOLS, "*")))
    def close(self, symbol: str) -> None:
        """A person closes a position, or all of them."""
        command = Command("close_position", {}, "api", id="c")
        self.command(self.room.path.close(CloseArgs(symbol=symbol), command, []), "close")

    @precondition(lambda self: self._working() or any(self.exchange.own.values()))
    @rule(
        flatten=st.sampled_from((True, True, False)),
        scope=st.sampled_from(
            (None, None, *(Scope(symbol=name) for name in SYMBOLS), *(Scope(strategy=name) for name in STRATEGIES))
        ),
    )
    def kill(self, flatten: bool, scope: Scope | None) -> None:
        """Somebody kills: everything, a symbol, or a strategy."""
        args = KillArgs(reason="model", flatten=flatten, scope=scope)
        self.command(self.room.path.kill(args, Command("kill_switch", {}, "api")), "kill")

    @precondition(lambda self: self.room.kill._kills)
    @rule(pick=picks, start=st.booleans())
    def reset(self, pick: int, start: bool) -> None:
        """A person resets a kill, and perhaps starts again."""
        self._reset(pick, start=start)

    @precondition(lambda self: any(kill.phase == "done" for kill in self.room.kill._kills.values()))
    @rule(pick=picks)
    def go_on(self, pick: int) -> None:
        """A person resets what is done, and starts again."""
        self._reset(pick, start=True)

    def _reset(self, pick: int, *, start: bool) -> None:
        keys = [*self.room.kill._kills]
        key = keys[pick % len(keys)]
        scope = None if key is None else Scope(**{key[0]: key[1]})
        self.command(self.room.kill.reset("model", scope, "api"), "reset")
        if start:
            self.command(self.room.path.take_entries(), "start")

    @precondition(lambda self: not self.room.kill._kills and any(self.exchange.own.values()))
    @rule()
    def drill(self) -> None:
        """A person drills."""
        self.command(self.room.kill.drill("api"), "drill")

    @precondition(lambda self: self.room.path.gate._paused is not None)
    @rule()
    def start(self) -> None:
        """A person starts again."""
        self.command(self.room.path.take_entries(), "start")

    @precondition(lambda self: self.room.path.gate._paused is None)
    @rule()
    def pause(self) -> None:
        """A person pauses."""
        self.room.path.gate.pause("paused")

    # --- rules: the market and time -----------------------------------------------------------------------------

    @rule(
        symbol=symbols,
        move=st.sampled_from((0, 0, 1, -1, 4, -4, 12, -12, 400, -90)),
        seconds=st.sampled_from((1, 6, 25, 70)),
        halted=st.sampled_from((None, None, None, False, True)),
    )
    def tick(self, symbol: str, move: int, seconds: int, halted: bool | None) -> None:
        """A price is printed, some percent away; the last two are absurd, and nobody trades there."""
        self._tick(symbol, Decimal(move), seconds, halted)

    def _tick(self, symbol: str, move: Decimal, seconds: float, halted: bool | None = None) -> None:
        price = (self.prices[symbol] * (1 + move / 100)).quantize(Decimal("0.01"))
        if abs(move) < 50:
            self.prices[symbol] = price = max(price, Decimal(1))
        self._print({symbol: price}, seconds, halted)

    def _print(self, prices: Mapping[str, Decimal], seconds: float, halted: bool | None = None) -> None:
        if self.feeding is not None and not self.feeding.done():
            self.settle(1.0)  # the feed waits for the last slice
            return
        self.clock.advance(self.clock.now() + timedelta(seconds=seconds))
        now = self.clock.now()
        trades, quotes, bars = [], [], []
        for symbol, price in prices.items():
            number = float(price)
            trades.append(Trade(symbol, now, number, 100.0))
            bars.append(Bar(symbol, now - timedelta(seconds=1), number, number, number, number, 100.0, 1))
            if halted is not None:
                quotes.append(Quote(symbol, now, number - 0.01, number + 0.01, halted=halted))
        data = Slice(now, tuple(quotes), tuple(trades), tuple(bars), tuple(self.splits))
        self.feeding = self.loop.create_task(self.room.path.on_market(data), name="market")
        self.tasks.append(self.feeding)
        self.settle()

    @rule(seconds=st.sampled_from((0.05, 0.2, 0.3, 0.5, 1.1, 5.0, 12.0, 31.0)))
    def wait(self, seconds: float) -> None:
        """Time passes: retries, looks and time limits come due; after a while what was broken is mended."""
        self.settle(seconds)
        if seconds > 10:
            self.happen(self.room.journal.heal)
            self._mend_line()

    def _night(self, *, whole: bool) -> None:
        """The session ends, and day orders with it; perhaps the next one begins."""
        now = self.clock.now()
        session = next((session for session in SESSIONS if session.close > now), SESSIONS[-1])
        self.clock.advance(session.close + timedelta(minutes=1))
        self.happen(self.exchange.expire)
        if whole:
            following = next((each for each in SESSIONS if each.open > self.clock.now()), None)
            if following is not None:
                self.clock.advance(following.open)
                self._tick(SYMBOLS[0], Decimal(2), 1)

    # --- rules: the exchange --------------------------------------------------------------------------------------

    @precondition(lambda self: self._fillable())
    @rule(
        pick=picks,
        share=st.sampled_from((1, 1, 2, 4)),
        cents=st.integers(-20, 20),
        fee=st.sampled_from(("0", "0.35")),
    )
    def fill(self, pick: int, share: int, cents: int, fee: str) -> None:
        """An order fills, whole or in part."""
        order = self._pick(self._fillable(), pick)
        left = self.exchange.fillable(order)
        price = max(self.prices[order.request.symbol] + Decimal(cents) / 100, Decimal("0.01"))
        size = max(left // share, Decimal(1)) if left >= 1 else left
        self.happen(self.exchange.fill, order.order_id, price, size, Decimal(fee))

    @precondition(lambda self: self._fillable())
    @rule()
    def fill_market_orders(self) -> None:
        """Whatever is to trade at the market does."""
        self.happen(self._fill_market_orders)

    def _fill_market_orders(self, intent: str | None = None) -> None:
        for order in self._fillable():
            ask = order.request
            if ask.order_type != "market" or (intent is not None and ask.intent != intent):
                continue
            if order.state == "working" and self.exchange.fillable(order) > 0:  # none before has ended it
                self.exchange.fill(order.order_id, self.prices[ask.symbol])

    @precondition(lambda self: self._working())
    @rule(pick=picks, kind=st.sampled_from(("cancelled", "rejected", "expired")))
    def end(self, pick: int, kind: Any) -> None:
        """The exchange ends an order."""
        order = self._pick(self._working(), pick)
        if kind == "rejected" and order.filled:
            kind = "cancelled"
        self.happen(self.exchange.end, order.order_id, kind, "the exchange says so")

    @rule(
        submit=st.sampled_from(
            (
                *("refuse", "lose", "lose_answer", "no_answer", "swallow", "slow"),
                *("reject", "reject_stops", "reject_market"),
            )
        ),
        times=st.integers(1, 4),
    )
    def submits(self, submit: Any, times: int) -> None:
        """The next orders arrive like this."""
        self.exchange.submit_modes = [submit] * times

    @rule(
        cancel=st.sampled_from(("take", "lose", "swallow", "slow")),
        replace=st.sampled_from(("take", "refuse", "lose", "lose_answer", "slow")),
        times=st.integers(1, 4),
    )
    def changes(self, cancel: Any, replace: Any, times: int) -> None:
        """The next cancels and changes go like this."""
        self.exchange.cancel_modes = [cancel] * times
        self.exchange.replace_modes = [replace] * times

    @precondition(lambda self: self.exchange.putting_off)
    @rule()
    def carry_out(self) -> None:
        """What the exchange has put off is done."""
        self.happen(self.exchange.carry_out)

    @precondition(lambda self: not self.exchange.keeps_mail)
    @rule()
    def mail_waits(self) -> None:
        """From here on reports wait until they are delivered."""
        self.exchange.keeps_mail = True

    @precondition(lambda self: self.exchange.mail and self.exchange.health.link == "up")
    @rule(what=st.sampled_from(("next", "next", "second", "all")))
    def deliver(self, what: str) -> None:
        """Reports arrive: one, one before its turn, or all."""
        exchange = self.exchange
        if what == "all":
            exchange.keeps_mail = False
            self.happen(exchange.deliver_all)
        else:
            self.happen(exchange.deliver, self._overtakes() if what == "second" else 0)

    @precondition(lambda self: self.exchange.told and self.exchange.listener is not None)
    @rule(pick=picks)
    def tell_again(self, pick: int) -> None:
        """A report comes once more."""
        self.happen(self.exchange.repeat, -1 - pick % 4)

    def _overtakes(self) -> int:
        """Choose the second report, unless it takes back what the first one tells."""
        mail = self.exchange.mail
        if len(mail) < 2 or (mail[1].kind == "busted" and mail[1].fill == mail[0].fill):
            return 0
        return 1

    @precondition(lambda self: self.exchange.listener is not None and self.exchange.health.link == "up")
    @rule(what=st.sampled_from(("drop", "drop", "away", "down", "leave")))
    def line_goes(self, what: str) -> None:
        """The connection goes: for a moment, for longer, behind the broker, or because a person wants it."""
        exchange = self.exchange
        exchange.away = what == "away"
        if what in ("drop", "away"):
            self.happen(exchange.drop)
        elif what == "down":
            self.happen(exchange.link, False)
        else:
            self.command(self.room.path.link.disconnect(), "broker_disconnect")

    @precondition(lambda self: self.exchange.listener is None or self.exchange.health.link == "down")
    @rule()
    def line_comes(self) -> None:
        """The connection comes back."""
        self._mend_line()

    def _mend_line(self) -> None:
        self.exchange.away = False
        if self.exchange.health.link == "down":
            self.happen(self.exchange.link, True)
        self.happen(self.room.path.link.connect)

    @precondition(lambda self: not self.exchange.immediate and self.exchange.listener is not None)
    @rule()
    def read_backs_are_old(self) -> None:
        """What is read back stays as it is for a while."""
        self.exchange.freeze(self.loop.time())

    # --- rules: the machine that it runs on ---------------------------------------------------------------------

    @precondition(lambda self: self.room.journal.fault is None)
    @rule(fault=st.sampled_from(("before", "after")))
    def disk_fails(self, fault: Any) -> None:
        """The journal's disk fails, or tells of failures that were none."""
        self.room.journal.fault = fault

    @precondition(lambda self: self.room.journal.fault is not None)
    @rule()
    def disk_works(self) -> None:
        """The journal's disk works again."""
        self.happen(self.room.journal.heal)

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        """It ends, in order or not, and starts again."""
        if crash:
            self._cut()
        else:
            self._close()
        self._open()
        self.the_journal_tells_the_same()

    # --- rules: what is rare ------------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(
            (
                "late fill",
                "bust",
                "trade by hand",
                "trade by hand",
                "order by hand",
                "adopt",
                "split",
                "night",
                "evening",
                "transfer",
                "latch",
            )
        ),
        symbol=symbols,
        pick=picks,
        side=sides,
        quantity=quantities,
    )
    def rarely(self, what: str, symbol: str, pick: int, side: Side, quantity: Decimal) -> None:
        """A fill after the cancel, a bust, people in the same account, a split, a night, a deposit, a latch that fails."""
        exchange = self.exchange
        if what == "late fill":
            ended = [o for o in exchange.orders.values() if o.order_id and o.state in ("cancelled", "expired")]
            ended = [order for order in ended if order.filled < order.request.quantity]
            if ended:
                order = self._pick(ended, pick)
                self.happen(exchange.fill_late, order.order_id, self.prices[order.request.symbol])
        elif what == "bust":
            fills = [fill for fill in exchange.fills if fill.order_id and fill.symbol not in exchange.split_ever]
            if fills:
                self.happen(exchange.bust, fills[pick % len(fills)])
        elif what == "trade by hand":
            exchange.trade_by_hand(symbol, side, quantity, self.prices[symbol])
        elif what == "order by hand":
            exchange.rest_by_hand(
                OrderRequest(
                    symbol=symbol,
                    side=side,
                    quantity=quantity,
                    order_type="limit",
                    limit_price=self.prices[symbol],
                )
            )
        elif what == "adopt":
            args = AdoptArgs(symbol=symbol, strategy=STRATEGIES[pick % len(STRATEGIES)])
            self.command(self.room.path.adopt(args), "adopt")
        elif what == "split":
            self._split(symbol)
        elif what in ("night", "evening"):
            self._night(whole=what == "night")
        elif what == "transfer":
            exchange.cash += Decimal("123.45")
        else:
            self.room.latch.write = self._full  # type: ignore[method-assign]
        self.settle()

    def _split(self, symbol: str) -> None:
        """Two shares for one before a session, when nothing is under way; the feed tells of it."""
        exchange = self.exchange
        unheard = exchange.mail or exchange.listener is None or self.room.path.link.state != "connected"
        if unheard or self.tasks or self.room.journal.fault is not None:
            return
        self.happen(exchange.split, symbol, 2)
        self.settle(1.0)
        self.prices[symbol] = max((self.prices[symbol] / 2).quantize(Decimal("0.01")), Decimal(1))
        self.splits.append(Split(symbol, self.clock.now(), Decimal(2)))
        self._print({symbol: self.prices[symbol]}, 1)

    def _full(self, _state: object) -> None:
        raise OSError(28, "No space left on device")

    more_fills = fill
    still_more_fills = fill
    more_entries = enter
    more_ticks = tick
    more_time = wait
    still_more_time = wait
    """A rule that stands here twice is taken twice as often."""

    # --- what must always be so -------------------------------------------------------------------------------

    def _arrives(self, order: ApprovedOrder, how: str) -> None:
        """Look at an order in the moment in which it reaches the exchange."""
        room, ask = self.room, order.request
        told = f"{ask.intent} order {order.order_id} ({ask.side} {ask.quantity} {ask.symbol}) {how}"
        if ask.intent != "kill":
            for kill in room.kill._kills.values():  # noqa: SLF001
                if kill.covers(ask) and (kill.flatten or ask.intent == "entry"):
                    self.wrong.append(f"{told} while the kill of {kill.key or 'everything'} is on")
            if ask.symbol in room.path.reconciler.unexplained:
                self.wrong.append(f"{told} while its symbol is held: nobody knows what there is")
            if room.path.gate._paused is not None and ask.intent == "entry":  # noqa: SLF001
                self.wrong.append(f"{told} while the engine is paused")
            intent = room.journal.intent(order.order_id)
            same = ask.model_copy(update={"source": intent.request.source}) if intent is not None else ask
            if intent is None or not intent.approved or intent.request != same:
                self.wrong.append(f"{told} before its intent was durable")
        elif not any(kill.covers(ask) and kill.flatten for kill in room.kill._kills.values()):  # noqa: SLF001
            self.wrong.append(f"{told} without a kill that is on")

    @invariant()
    def all_is_well(self) -> None:
        """Look at everything that must be so at any moment."""
        if not hasattr(self, "room"):
            return
        type(self).steps += 1
        self.nothing_is_wrong()
        self.money_adds_up()
        self.no_order_fills_beyond_its_size()
        self.exits_fit_their_position()
        if self.steps % REPLAY_EVERY == 0:
            self.the_journal_tells_the_same()

    def nothing_is_wrong(self) -> None:
        """Nothing happened that must not happen."""
        if self.wrong:
            self.broken = True
            raise AssertionError("\n".join(dict.fromkeys(self.wrong)))

    def _require(self, holds: object, what: str) -> None:
        if not holds:
            self.broken = True
            raise AssertionError(what)

    def money_adds_up(self) -> None:
        """Cash and positions at their cost are what was put in and what was won, to the last digit."""
        books = self.room.path.portfolio
        left, right = books.cash + books.cost, books.put_in + books.realized
        self._require(left == right, f"cash and cost are {left}, put in and realised {right}")

    def no_order_fills_beyond_its_size(self) -> None:
        """What has filled is at most what was ordered, in our books as at the exchange."""
        for order in self.room.desk.orders.values():
            size = max(order.request.quantity, order.replacement.quantity if order.replacement else ZERO)
            self._require(order.filled <= size, f"{order.filled} of {size} have filled: {order}")

    def exits_fit_their_position(self) -> None:
        """What exits may still trade at the exchange is never more than the position: none can flip it."""
        for symbol in SYMBOLS:
            if symbol in self.exchange.excused:
                continue
            for side in ("buy", "sell"):
                room, asked = self._room_for_exits(symbol, side)
                self._require(asked <= room, f"exits may {side} {asked} {symbol}, and there are {room} to close")

    def _room_for_exits(self, symbol: str, side: str) -> tuple[Decimal, Decimal]:
        own = self.exchange.own.get(symbol, ZERO)
        room = max(own if side == "sell" else -own, ZERO)
        alone, groups = ZERO, dict[str, Decimal]()
        for order in self._working():
            ask = order.request
            if ask.symbol == symbol and ask.side == side and ask.intent != "entry":
                left = self.exchange.fillable(order)
                if ask.oca_group is None:
                    alone += left
                else:
                    groups[ask.oca_group] = max(groups.get(ask.oca_group, ZERO), left)
        return room, alone + sum(groups.values(), ZERO)

    def the_journal_tells_the_same(self) -> None:
        """Books made anew from the journal have the same positions, cash and result."""
        room = self.room
        if not room.journal.healthy or room.desk._facts:
            return
        again, books = Portfolio(self.clock), room.path.portfolio
        for opening in room.journal.notes("opening", 1):
            again.set_cash(Decimal(opening.body["cash"]))
        for record in room.journal.books():
            if isinstance(record, NoteRecord):
                split = split_of(record.body)
                again.split(split.symbol, split.new, split.old)
            else:
                adopted = record.fill.order_id == ADOPTED
                (again.adopt if adopted else again.apply)(record.fill, record.strategy)
        for bust in room.journal.notes("bust", MANY):
            again.bust(str(bust.body["exec_id"]))
        for transfer in room.journal.notes("transfer", MANY):
            again.transfer(Decimal(transfer.body["amount"]))
        for name in ("cash", "put_in", "realized", "cost", "fees"):
            mine, told = getattr(books, name), getattr(again, name)
            self._require(mine == told, f"{name} is {mine}, and {told} by the journal")
        for symbol in SYMBOLS:
            mine, told = books.quantity(symbol), again.quantity(symbol)
            self._require(mine == told, f"{mine} {symbol} are held, and {told} by the journal")

    def _kill_moved(self) -> None:
        """Look at the truth in the moment in which a kill says that it is done."""
        for key, kill in self.room.kill._kills.items():  # noqa: SLF001
            before, self.phases[key] = self.phases.get(key), kill.phase
            if kill.phase == "done" and before != "done":
                self.wrong += [
                    f"the kill of {key or 'everything'} is done, and {what}" for what in self._left(kill)
                ]

    def _left(self, kill: Kill) -> list[str]:
        """Name what a kill has left, where it could know."""
        exchange = self.exchange
        if exchange.old is not None:
            return []
        unheard = {report.order_id for report in exchange.mail}
        left = [
            f"order {order.order_id} works"
            for order in self._working()
            if kill.covers(order.request) and (kill.flatten or order.request.intent == "entry")
        ]
        for symbol in SYMBOLS if kill.flatten else ():
            held = exchange.own.get(symbol, ZERO)
            strategy = self.room.path.portfolio.position(symbol).strategy
            mine = kill.key is None or kill.key in (("symbol", symbol), ("strategy", strategy))
            late = any(exchange.orders[order_id].request.symbol == symbol for order_id in unheard)
            if held and mine and not late and symbol not in exchange.excused:
                left.append(f"{held} {symbol} are held")
        return left

    # --- when the weather clears up -----------------------------------------------------------------------------

    @rule()
    def calm(self) -> None:
        """Everything works again, and time passes: books and exchange agree, no position is naked, kills are done."""
        self._clear_up()
        for _ in range(2):  # the second connection compares what the first one has set right
            self.happen(self.exchange.drop)
            self.settle(STILL)
            self._feed()
        if self.room.kill._kills:
            self._let_kills_end()
        self.nothing_is_wrong()
        self._require(not self.tasks, f"without an answer: {[task.get_name() for task in self.tasks]}")
        self._agree()
        self._guarded()
        self._forgive()

    def _clear_up(self) -> None:
        room = self.room
        room.journal.heal()
        if "write" in vars(room.latch):
            del room.latch.write
        self.exchange.away = False
        self.happen(self.exchange.calm)
        self.settle(1.0)
        self.happen(room.path.link.connect)
        self.settle(STILL)
        self._require(room.path.link.ready, f"the broker is not ready: {room.path.link.error}")
        if room.path._calendar.at(self.clock.now()) is None:
            self._night(whole=True)

    def _feed(self) -> None:
        """Let market time pass, so that what waits for it is tried again; nothing is halted."""
        for _ in range(4):
            self._print(self.prices, 6, halted=False)
            self.settle(12.0)

    def _let_kills_end(self) -> None:
        room = self.room
        for _ in range(12):
            self.happen(self._fill_market_orders, "kill")
            self.settle(12.0)
            if all(kill.phase == "done" for kill in room.kill._kills.values()):
                break
        for kill in room.kill._kills.values():
            held = [s for s in SYMBOLS if s in room.path.reconciler.unexplained or self.exchange.by_hand.get(s)]
            self._require(
                kill.phase == "done" or held,
                f"the kill of {kill.key or 'everything'} does not end: {kill.phase} {kill.detail} {kill.error} {kill.pending}",
            )
            if not held and kill.phase == "done":
                self.wrong += [
                    f"the kill of {kill.key or 'everything'} was done, and {what}" for what in self._left(kill)
                ]

    def _agree(self) -> None:
        self.the_journal_tells_the_same()
        room, exchange, books = self.room, self.exchange, self.room.path.portfolio
        for symbol in SYMBOLS:
            mine, theirs = books.quantity(symbol), exchange.own.get(symbol, ZERO)
            held = symbol in room.path.reconciler.unexplained
            known = held or bool(exchange.by_hand.get(symbol)) or symbol in exchange.causes
            self._require(mine == theirs or known, f"{mine} {symbol} in the books, {theirs} at the exchange")
            self._require(not held or known, f"{symbol} is held: {room.path.reconciler.unexplained.get(symbol)}")
        ours = {order.order_id: order for order in room.desk.open_orders()}
        theirs_working = {order.order_id: order for order in self._working()}
        self._require(
            set(ours) == set(theirs_working),
            f"working in the books alone: {[str(ours[i]) for i in set(ours) - set(theirs_working)]}, "
            f"at the exchange alone: {[str(theirs_working[i]) for i in set(theirs_working) - set(ours)]}",
        )
        for order_id, order in ours.items():
            told = theirs_working[order_id]
            self._require(
                order.status not in (OrderStatus.SUBMITTED, OrderStatus.UNKNOWN) and order.replacement is None,
                f"still in doubt: {order}",
            )
            self._require(order.filled == told.filled, f"{order} has filled {told.filled} at the exchange")
            for name in ("quantity", "limit_price", "stop_price"):
                mine, theirs = getattr(order.request, name), getattr(told.request, name)
                self._require(mine == theirs, f"the {name} of {order} is {theirs} at the exchange")
        self._require(not room.desk.in_flight and not room.desk.changing, "something is still on its way")
        difference = abs(books.cash - exchange.cash)
        self._require(difference < Decimal("0.01"), f"cash is {books.cash}, at the exchange {exchange.cash}")

    def _guarded(self) -> None:
        """See that every position that was opened with an exit plan has exits of its whole size."""
        for symbol in SYMBOLS:
            own = self.exchange.own.get(symbol, ZERO)
            books, reconciler = self.room.path.portfolio, self.room.path.reconciler
            planned = [r for r in self.exchange.openers.get(symbol, ()) if r.exit_plan is not None]
            planned = [request for request in planned if (request.side == "buy") == (own > 0)]
            position = books.position(symbol)
            if not own or not planned or symbol in reconciler.unexplained or own != books.quantity(symbol):
                continue
            if symbol in self.bare or self.room.kill.owns_exits(symbol, position.strategy):
                continue
            _, asked = self._room_for_exits(symbol, "sell" if own > 0 else "buy")
            entries = [o for o in self._working() if o.request.symbol == symbol and o.request.intent == "entry"]
            if entries and (symbol in self.exchange.excused or any(o.request.exit_plan for o in entries)):
                continue  # the stop of an entry that works covers what this entry has opened, and no more
            self._require(asked >= abs(own), f"{own} {symbol} are held, and exits guard {asked} of it")

    def _forgive(self) -> None:
        """Where everything is flat and still, what has happened counts no more."""
        exchange = self.exchange
        self.bare = {symbol for symbol in self.bare if exchange.own.get(symbol)}
        busy = {order.request.symbol for order in self._working()}
        for symbol in [*exchange.excused]:
            if (
                symbol not in busy
                and not exchange.own.get(symbol)
                and not self.room.path.portfolio.quantity(symbol)
            ):
                del exchange.excused[symbol]


class _Dead:
    """What a process that was killed has for a broker."""

    health: Any = None

    def __getattr__(self, name: str) -> Any:
        raise BrokerError("this process is dead")


__all__ = ["MoneyMachine", "RoughJournal", "RoughRoom"]

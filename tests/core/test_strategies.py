"""Strategies at work: what a trigger sees, and how its signals become entries, whatever a plugin does."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from sigma9_core.calendar import Calendar
from sigma9_core.contracts import Signal, SizingContext
from sigma9_core.errors import CommandError, JournalError
from sigma9_core.events import Event, TradeEvent
from sigma9_core.models import (
    Bar,
    ExitPlan,
    OrderRequest,
    OrderStatus,
    Quote,
    Session,
    Slice,
    Trade,
    WatchlistItem,
)
from sigma9_core.money.path import SizingFacts
from sigma9_core.strategies import MOST_SIGNALS, Strategy, StrategyRunner
from sigma9_core.workers import Guard, Worker

OPEN = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
SESSION = Session("2026-03-02", OPEN, OPEN + timedelta(hours=6.5))
Wish = Sequence[Any] | None


def signal(symbol: str = "AAPL", **more: Any) -> Signal:
    more.setdefault("price", 10.0)
    return Signal(symbol=symbol, side="buy", ts=OPEN, exit_plan=ExitPlan(), **more)


def at(seconds: float, **more: Any) -> Slice:
    return Slice(OPEN + timedelta(seconds=seconds), **more)


def item(symbol: str, *strategies: str) -> WatchlistItem:
    return WatchlistItem(symbol=symbol, strategies=strategies, added_at=OPEN)


def told(number: int, strategy: str | None) -> Event:
    data = TradeEvent(
        event=OrderStatus.FILLED,
        order_id=f"o{number}",
        symbol="AAPL",
        side="buy",
        quantity=Decimal(1),
        order_type="market",
        time_in_force="day",
        filled_quantity=Decimal(1),
        source="strategy",
        strategy=strategy,
    )
    return Event("trade_event", number, OPEN, data, "{}")


class Spy:
    """A trigger that keeps what it sees and wishes what the test says."""

    def __init__(self) -> None:
        self.lists: list[tuple[list[str], dict[str, int]]] = []
        self.slices: list[tuple[Slice, Session | None]] = []
        self.events: list[str] = []
        self.wish: Callable[[Slice], Wish] = lambda _data: ()
        self.on_watch: Callable[[], None] = lambda: None

    def watch(self, items: Sequence[WatchlistItem], history: Mapping[str, Sequence[Bar]]) -> None:
        self.on_watch()
        self.lists.append(([each.symbol for each in items], {name: len(bars) for name, bars in history.items()}))

    def on_slice(self, data: Slice, session: Session | None) -> Any:
        self.slices.append((data, session))
        return self.wish(data)

    def on_trade_event(self, event: TradeEvent, ts: datetime) -> None:
        self.events.append(event.order_id)


class Room:
    """Two strategies, a sizer and a desk that takes what it is given."""

    def __init__(self) -> None:
        self.entered: list[tuple[OrderRequest, Decimal]] = []
        self.refuse: Callable[[OrderRequest], Exception | None] = lambda _request: None
        self.sizer: Callable[[SizingContext], Any] = lambda _context: Decimal(100)
        self.contexts: list[SizingContext] = []
        self.disabled: list[str] = []
        self.one, self.two = Spy(), Spy()
        self.runner = StrategyRunner(
            [self._strategy("one", self.one), self._strategy("two", self.two)],
            self,
            Worker("sizer", 1.0),
            calendar=Calendar("XNYS", [SESSION]),
            facts=self._facts,
            enter=self._enter,
        )
        self.runner.entering = True

    def size(self, context: SizingContext) -> Decimal:
        return self.sizer(context)  # type: ignore[no-any-return] # a sizer is a plugin: it may give anything

    def _strategy(self, name: str, trigger: Spy) -> Strategy:
        def guard(part: str) -> Guard:
            return Guard(name, Worker(f"{name}.{part}", 0.2), on_disabled=self._disable)

        return Strategy(name, object(), guard("scan"), guard("trigger"), trigger)  # type: ignore[arg-type]

    def _disable(self, name: str, _why: str) -> None:
        self.disabled.append(name)
        self.runner.strategies[name].enabled = False

    async def _facts(self, _strategy: str, wanted: Signal) -> SizingFacts:
        return SizingFacts(Decimal(100_000), Decimal(50_000), (Decimal(1),), Decimal(str(wanted.price)))

    async def _enter(self, request: OrderRequest, price: Decimal) -> bool:
        if (error := self.refuse(request)) is not None:
            raise error
        self.entered.append((request, price))
        return True

    @property
    def orders(self) -> list[tuple[str, int]]:
        return [(request.symbol, int(request.quantity)) for request, _ in self.entered]


@pytest.fixture(name="room")
async def _room() -> AsyncIterator[Room]:
    room = Room()
    yield room
    await room.runner.stop()


# --- the watchlist --------------------------------------------------------------------------------------------


def three_bars(symbol: str) -> list[Bar]:
    return [Bar(symbol, OPEN, 1, 1, 1, 1, 1)] * 3


async def test_each_trigger_gets_its_part_with_the_bars_of_what_is_new(room: Room) -> None:
    """A trigger sees the items of its strategy, and history only for symbols that it has not had."""
    await room.runner.watch([item("A", "one"), item("B", "one", "two"), item("C", "manual")], three_bars)
    await room.runner.watch([item("B", "one", "two"), item("D", "one")], three_bars)
    await room.runner.watch([item("A", "one")], three_bars)

    assert room.one.lists == [(["A", "B"], {"A": 3, "B": 3}), (["B", "D"], {"D": 3}), (["A"], {"A": 3})]
    assert room.two.lists == [(["B"], {"B": 3}), (["B"], {}), ([], {})]


async def test_a_trigger_that_failed_to_take_its_list_gets_the_bars_again(room: Room) -> None:
    """What a trigger could not take, or was not given while it was switched off, is new to it the next time."""

    def fail() -> None:
        raise ValueError("not now")

    room.one.on_watch = fail
    room.runner.strategies["two"].enabled = False
    await room.runner.watch([item("A", "one", "two")], three_bars)
    room.one.on_watch = lambda: None
    room.runner.strategies["two"].enabled = True
    await room.runner.watch([item("A", "one", "two")], three_bars)

    assert room.one.lists == room.two.lists == [(["A"], {"A": 3})]


async def test_a_feed_without_history_skips_this_round(room: Room) -> None:
    """A feed that raises on the worker is logged by the guard; the other triggers get their lists."""

    def history(symbol: str) -> Sequence[Bar]:
        if symbol == "A":
            raise OSError("no route to host")
        return three_bars(symbol)

    await room.runner.watch([item("A", "one"), item("B", "two")], history)

    assert (room.one.lists, room.two.lists) == ([], [(["B"], {"B": 3})])


# --- slices and signals ---------------------------------------------------------------------------------------


async def test_a_signal_becomes_a_sized_entry(room: Room) -> None:
    """The order carries strategy, plan, reasons and the decision log; the sizer knows the account."""
    wanted = signal(score=88.5, reasons=("tight", "fast"), details={"ignition": 71})
    room.one.wish = lambda _data: [wanted]
    room.sizer = lambda context: room.contexts.append(context) or Decimal(120)  # type: ignore[func-returns-value]
    await room.runner.on_slice(at(60))

    request, price = room.entered[0]
    assert (request.symbol, request.side, request.quantity) == ("AAPL", "buy", Decimal(120))
    assert request.order_type == "market"
    assert (request.strategy, request.source, request.intent) == ("one", "strategy", "entry")
    assert (request.reason, request.exit_plan, price) == ("tight; fast", wanted.exit_plan, Decimal(10))
    assert request.signal == {"score": 88.5, "price": 10.0, "ts": OPEN.isoformat(), "sized": 120.0, "ignition": 71}
    context = room.contexts[0]
    assert (context.equity, context.buying_power, context.price) == (
        Decimal(100_000),
        Decimal(50_000),
        Decimal(10),
    )
    assert (context.signal, context.closed_trades) == (wanted, (Decimal(1),))


@pytest.mark.parametrize(
    ("sized", "more", "quantity"),
    [
        (Decimal(100), {"size_factor": 0.5}, 50),
        (Decimal(101), {"size_factor": 0.5}, 50),
        (Decimal(100), {"max_quantity": Decimal(30)}, 30),
        (7, {}, 7),
    ],
)
async def test_the_size_is_a_whole_number_within_its_bounds(
    room: Room, sized: Any, more: dict[str, Any], quantity: int
) -> None:
    """Factor and upper bound apply to what the sizer gives, rounded down."""
    room.sizer = lambda _context: sized
    room.one.wish = lambda _data: [signal(**more)]
    await room.runner.on_slice(at(60))

    assert room.orders == [("AAPL", quantity)]


@pytest.mark.parametrize(
    ("sized", "more"),
    [
        (Decimal(0), {}),
        (Decimal("0.9"), {}),
        (Decimal(-5), {}),
        (Decimal(1), {"size_factor": 0.5}),
        (Decimal("NaN"), {}),
        ("many", {}),
        (None, {}),
        (Decimal(100), {"size_factor": math.nan}),
    ],
)
async def test_no_size_no_order(room: Room, sized: Any, more: dict[str, Any]) -> None:
    """Zero, less, or nonsense for a size means no order; the next signal is entered."""
    room.sizer = lambda context: sized if context.signal.symbol == "BAD" else Decimal(10)
    room.one.wish = lambda _data: [signal("BAD", **more), signal("GOOD")]
    await room.runner.on_slice(at(60))

    assert room.orders == [("GOOD", 10)]


async def test_a_sizer_that_raises_or_hangs_means_no_order(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """The signal is dropped and said; the slice goes on."""

    def size(context: SizingContext) -> Decimal:
        if context.signal.symbol == "BAD":
            raise ZeroDivisionError
        return Decimal(10)

    room.sizer = size
    room.one.wish = lambda _data: [signal("BAD"), signal("GOOD")]
    await room.runner.on_slice(at(60))

    assert room.orders == [("GOOD", 10)]
    assert "no order for BAD: the sizer failed" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [
        signal("NOT A SYMBOL"),
        signal(limit_price=math.nan, order_type="limit"),
        signal(limit_price=math.inf, order_type="limit"),
        signal(price=math.nan),
        signal(order_type="whatever"),
        signal(details=7),
    ],
)
async def test_a_signal_that_makes_no_sense_disturbs_nobody(
    room: Room, bad: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever stands in a signal: no order of it, said in the log, and the other signals and strategies go on."""
    room.one.wish = lambda _data: [bad, signal("GOOD")]
    room.two.wish = lambda _data: [signal("ALSO")]
    await room.runner.on_slice(at(60))

    assert room.orders == [("GOOD", 100), ("ALSO", 100)]
    assert f"no order for {bad.symbol}" in caplog.text


@pytest.mark.parametrize("answer", [7, ["AAPL"], [signal(), None], {"AAPL": signal()}])
async def test_an_answer_that_is_no_list_of_signals_is_the_trigger_s_failure(room: Room, answer: Any) -> None:
    """It counts towards disabling the strategy, and nothing of it is entered."""
    room.one.wish = lambda _data: answer
    for second in range(3):
        await room.runner.on_slice(at(second))

    assert (room.orders, room.disabled) == ([], ["one"])


async def test_no_signal_at_all_is_fine(room: Room) -> None:
    """None for an empty list is no failure."""
    room.one.wish = lambda _data: None
    for second in range(4):
        await room.runner.on_slice(at(second))

    assert room.disabled == []


async def test_too_many_signals_are_cut_and_said(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """One slice enters so many signals of a strategy and no more."""
    room.one.wish = lambda _data: [signal(f"S{number}") for number in range(MOST_SIGNALS + 5)]
    await room.runner.on_slice(at(60))

    assert len(room.orders) == MOST_SIGNALS
    assert "one signals 105 entries at once; the first 100 count" in caplog.text


@pytest.mark.parametrize("error", [CommandError("conflict", "AAPL is held"), JournalError("disk full")])
async def test_a_refused_entry_leaves_the_others(
    room: Room, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """An entry that the money path refuses is said, and the next signal is entered."""
    room.refuse = lambda request: error if request.symbol == "AAPL" else None
    room.one.wish = lambda _data: [signal("AAPL"), signal("MSFT")]
    await room.runner.on_slice(at(60))

    assert room.orders == [("MSFT", 100)]
    assert f"no order for AAPL: {error}" in caplog.text


async def test_prices_are_on_the_tick(room: Room) -> None:
    """Limit and stop prices are rounded to a cent, below a dollar to a hundredth of one."""
    room.one.wish = lambda _data: [
        signal("A", order_type="stop_limit", stop_price=10.00499, limit_price=10.0551),
        signal("B", order_type="limit", limit_price=0.123456),
    ]
    await room.runner.on_slice(at(60))

    first, second = (request for request, _ in room.entered)
    assert (first.stop_price, first.limit_price) == (Decimal("10.00"), Decimal("10.06"))
    assert second.limit_price == Decimal("0.1235")


async def test_nothing_is_entered_while_the_engine_takes_no_entries(room: Room) -> None:
    """Triggers go on seeing the market; from the moment entries end, no signal becomes an order."""

    def refuse(_request: OrderRequest) -> None:
        room.runner.entering = False

    room.refuse = refuse
    room.one.wish = lambda _data: [signal("A"), signal("B")]
    room.two.wish = lambda _data: [signal("C")]
    await room.runner.on_slice(at(1))
    await room.runner.on_slice(at(2))

    assert room.orders == [("A", 100)]
    assert len(room.one.slices) == len(room.two.slices) == 2


async def test_the_session_in_progress_comes_with_the_slice(room: Room) -> None:
    """In session it is given, outside of one it is None."""
    await room.runner.on_slice(at(60))
    await room.runner.on_slice(at(8 * 3600))

    assert [session for _, session in room.one.slices] == [SESSION, None]


# --- failures, switches and scopes ----------------------------------------------------------------------------


async def test_a_trigger_that_raises_is_disabled_after_three(room: Room) -> None:
    """Each round is skipped; after three in a row it sees nothing more, and the other strategy goes on."""

    def fail(_data: Slice) -> Wish:
        raise KeyError("AAPL")

    room.one.wish = fail
    room.two.wish = lambda data: [signal(f"S{data.ts.second}")]
    for second in range(5):
        await room.runner.on_slice(at(second))

    assert room.disabled == ["one"]
    assert len(room.one.slices) == 3
    assert len(room.orders) == 5


async def test_a_success_in_between_forgets_the_failures(room: Room) -> None:
    """Only failures in a row count."""

    def sometimes(data: Slice) -> Wish:
        if data.ts.second % 3:
            raise KeyError("AAPL")
        return ()

    room.one.wish = sometimes
    for second in range(9):
        await room.runner.on_slice(at(second))

    assert room.disabled == []


async def test_a_trigger_that_hangs_is_left_behind(room: Room) -> None:
    """After its budget the slice goes on without it; the other strategy trades."""
    held = threading.Event()

    def hang(_data: Slice) -> Wish:
        held.wait(5)
        return ()

    room.one.wish = hang
    room.two.wish = lambda _data: [signal()]
    async with asyncio.timeout(2):
        await room.runner.on_slice(at(1))
        await room.runner.on_slice(at(2))
    held.set()

    assert room.orders == [("AAPL", 100)] * 2


async def test_stopped_and_disabled_strategies_see_no_market(room: Room) -> None:
    """A scoped kill or a person's switch ends a strategy's slices; the other one goes on."""
    room.runner.stopped.add("one")
    await room.runner.on_slice(at(1))
    room.runner.stopped.clear()
    room.runner.strategies["one"].enabled = False
    await room.runner.on_slice(at(2))

    assert (len(room.one.slices), len(room.two.slices)) == (0, 2)


async def test_a_strategy_hears_of_its_own_orders_in_order(room: Room) -> None:
    """Trade events go to the strategy that they belong to, in order, also while a kill has stopped it."""
    room.runner.stopped.add("one")
    room.runner.on_events([told(1, "one"), told(2, "two"), told(3, None), told(4, "gone"), told(5, "one")])
    room.runner.on_events([told(6, "one")])
    async with asyncio.timeout(5):
        while len(room.one.events) < 3 or not room.two.events:  # noqa: ASYNC110 - threads are awaited
            await asyncio.sleep(0.002)

    assert (room.one.events, room.two.events) == (["o1", "o5", "o6"], ["o2"])


async def test_a_strategy_that_is_switched_off_hears_of_its_orders(room: Room) -> None:
    """Its position goes on while it is off, and it must know that once it is on again."""
    room.runner.strategies["one"].enabled = False
    await room.runner.recall([(told(1, "one").data, OPEN)])  # type: ignore[list-item] # it is a trade event
    room.runner.on_events([told(2, "one")])
    async with asyncio.timeout(5):
        while len(room.one.events) < 2:  # noqa: ASYNC110 - a thread is awaited
            await asyncio.sleep(0.002)

    assert room.one.events == ["o1", "o2"]


async def test_the_past_is_told_in_order_to_whom_it_belongs(room: Room) -> None:
    """At a start each trigger hears what became of its orders; one that fails keeps nobody else from hearing."""
    calls: list[str] = []

    def fail(event: TradeEvent, ts: datetime) -> None:
        calls.append(event.order_id)
        raise ValueError("not this one")

    room.one.on_trade_event = fail  # type: ignore[method-assign]
    past = [told(1, "one"), told(2, "two"), told(3, None), told(4, "gone"), told(5, "two")]
    await room.runner.recall([(each.data, each.ts) for each in past if isinstance(each.data, TradeEvent)])

    assert (calls, room.two.events) == (["o1"], ["o2", "o5"])


# --- a live market --------------------------------------------------------------------------------------------


async def test_live_slices_that_come_too_fast_are_given_together(room: Room) -> None:
    """While a trigger is busy slices wait, and come as one: the newest quotes, every trade and bar, in order."""
    entered, held = threading.Event(), threading.Event()

    def wait(_data: Slice) -> Wish:
        entered.set()
        held.wait(5)
        return ()

    room.runner.strategies["one"].guard._worker.budget = 5.0
    room.one.wish = wait
    room.runner.offer(at(0))
    assert await asyncio.to_thread(entered.wait, 5)
    for second in range(1, 4):
        ts = OPEN + timedelta(seconds=second)
        room.runner.offer(
            at(
                second,
                quotes=(Quote("AAPL", ts, 10.0 + second, 11.0 + second),),
                trades=(Trade("AAPL", ts, 10.0 + second, 1.0),),
                bars=(Bar("AAPL", ts, 1, 1, 1, 1, float(second)),),
            )
        )
    await asyncio.sleep(0)
    held.set()
    async with asyncio.timeout(5):
        while len(room.two.slices) < 2:  # noqa: ASYNC110 - threads are awaited
            await asyncio.sleep(0.002)

    merged = room.two.slices[1][0]
    assert merged.ts == OPEN + timedelta(seconds=3)
    assert [quote.bid for quote in merged.quotes] == [13.0]
    assert [trade.price for trade in merged.trades] == [11.0, 12.0, 13.0]
    assert [bar.volume for bar in merged.bars] == [1.0, 2.0, 3.0]
    assert [data.ts for data, _ in room.one.slices] == [data.ts for data, _ in room.two.slices]


async def test_live_slices_after_a_failure_are_given(room: Room) -> None:
    """A slice that went wrong does not leave the runner busy for ever."""
    room.refuse = lambda _request: RuntimeError("a bug")
    room.one.wish = lambda _data: [signal()]
    for second in range(3):
        room.runner.offer(at(second))
        async with asyncio.timeout(5):
            while len(room.two.slices) < second + 1:  # noqa: ASYNC110 - threads are awaited
                await asyncio.sleep(0.002)

    assert len(room.two.slices) == 3


async def test_the_end_leaves_no_task_and_no_thread(room: Room) -> None:
    """`stop` ends what is under way."""
    room.runner.offer(at(0))
    room.runner.on_events([told(1, "one")])
    await room.runner.stop()

    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("strategies", "tell[one]")]
    names = {"sigma9-worker-one.trigger", "sigma9-worker-two.trigger", "sigma9-worker-sizer"}
    async with asyncio.timeout(5):
        while names & {thread.name for thread in threading.enumerate()}:  # noqa: ASYNC110 - threads are awaited
            await asyncio.sleep(0.002)

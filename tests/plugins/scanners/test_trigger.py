"""The seismograph's trigger: when it enters, what holds it back, how it leaves, and the one re-entry."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import Signal, Trigger
from sigma9_core.events import TradeEvent
from sigma9_core.models import Bar, OrderStatus, Quote, Session, Slice, Trade, WatchlistItem
from sigma9_plugins.scanners.seismograph.double_tap import DoubleTap, Exit, Tap
from sigma9_plugins.scanners.seismograph.holdings import Holding
from sigma9_plugins.scanners.seismograph.traps import spread_percent, traps
from sigma9_plugins.scanners.seismograph.trigger import SeismographTrigger
from sigma9_plugins.scanners.seismograph.trigger_config import DoubleTapConfig, TrapConfig, TriggerConfig

OPEN = datetime(2026, 11, 20, 14, 30, tzinfo=UTC)
SESSION = Session("2026-11-20", OPEN, OPEN + timedelta(hours=6, minutes=30))
START = OPEN + timedelta(minutes=30)


def at(seconds: float) -> datetime:
    """Give the market time this many seconds after the watch began, half an hour after the open."""
    return START + timedelta(seconds=seconds)


def item(symbol: str = "ABCD", stage: int = 4, **more: Any) -> WatchlistItem:
    """Make a watched symbol."""
    return WatchlistItem(symbol=symbol, stage=stage, added_at=OPEN, **more)


def flat_bars(symbol: str = "ABCD", count: int = 30) -> list[Bar]:
    """Make a quiet half hour: 4.98 to 5.02, 600 shares a minute, one-minute ranges of 4 cents."""
    return [Bar(symbol, OPEN + timedelta(minutes=n), 5.0, 5.02, 4.98, 5.0, 600) for n in range(count)]


class Desk:
    """A trigger with its market and the events of its orders."""

    def __init__(self, history: Sequence[Bar] | None = None, **config: Any) -> None:
        self.trigger = SeismographTrigger(TriggerConfig.model_validate(config))
        self.trigger.watch([item()], {"ABCD": flat_bars() if history is None else history})
        self.orders = 0

    def slice(
        self, seconds: float, *prices: float, quote: tuple[float | None, float | None] | None = (5.09, 5.1)
    ) -> Sequence[Signal]:
        """Give a slice with trades of 500 shares, all bought, spread over the half second before it."""
        ts = at(seconds)
        trades = tuple(
            Trade("ABCD", ts - timedelta(seconds=0.5 * (len(prices) - 1 - n) / len(prices)), price, 500, "buy")
            for n, price in enumerate(prices)
        )
        quotes = () if quote is None else (Quote("ABCD", ts, *quote),)
        return self.trigger.on_slice(Slice(ts, quotes, trades), SESSION)

    def burst(self, seconds: float = 5, price: float = 5.1, **more: Any) -> Sequence[Signal]:
        """Give 20 trades at once: more than 8 × the quiet before."""
        return self.slice(seconds, *[price] * 20, **more)

    def event(self, event: OrderStatus, seconds: float, order: str, side: str = "buy", **more: Any) -> None:
        """Tell the trigger one step of an order."""
        fields: dict[str, Any] = {
            "quantity": Decimal(100),
            "filled_quantity": Decimal(0),
            "source": "strategy" if side == "buy" else "exit",
        }
        data = TradeEvent(
            event=event,
            order_id=order,
            symbol="ABCD",
            side=side,
            order_type="market",
            time_in_force="day",
            strategy="seismograph",
            **(fields | more),
        )
        self.trigger.on_trade_event(data, at(seconds))

    def fill(
        self, seconds: float, order: str, price: str, side: str = "buy", quantity: int = 100, **more: Any
    ) -> None:
        """Tell the trigger that an order was filled whole."""
        filled = {"filled_quantity": Decimal(quantity), "average_price": Decimal(price)}
        self.event(OrderStatus.FILLED, seconds, order, side, quantity=Decimal(quantity), **filled, **more)

    def trade(self, seconds: float, *, out: str = "5.20", **leave: Any) -> None:
        """Enter by a burst, be filled at 5.10, and leave a minute later."""
        assert len(self.burst(seconds)) == 1
        self.event(OrderStatus.SUBMITTED, seconds, "1")
        self.fill(seconds + 1, "1", "5.10")
        self.fill(seconds + 60, "2", out, "sell", **leave)

    @property
    def tap(self) -> DoubleTap:
        """Give the re-entry."""
        return self.trigger._watches["ABCD"].tap

    def state(self) -> Tap:
        """Give the re-entry's state."""
        return self.tap.state


# --- entries --------------------------------------------------------------------------------------------------


def test_an_ignition_becomes_an_entry_with_its_exits_and_its_numbers() -> None:
    """The signal is a market buy at the threshold, with stop, time stop, trail, and what it was decided on."""
    (signal,) = Desk().burst()

    assert (signal.symbol, signal.side, signal.order_type, signal.time_in_force) == (
        "ABCD",
        "buy",
        "market",
        "day",
    )
    assert (signal.price, signal.ts, signal.score) == (5.1, at(5), 100.0)
    assert signal.reasons == (
        "ignition 100",
        "trades come fast",
        "volume bursts",
        "the box breaks",
        "buyers press",
    )
    plan = signal.exit_plan
    assert (float(plan.stop_percent), plan.time_stop_seconds, float(plan.trail_activation_percent)) == (2, 180, 3)
    assert (plan.trail_amount, plan.trail_percent) == (Decimal("0.06"), None)  # 1.5 × 0.04
    vwap = (18_000 * 5.0 + 10_000 * 5.1) / 28_000
    assert signal.details == {
        "spread_percent": pytest.approx(100 * 0.01 / 5.095),
        "vwap": pytest.approx(vwap),
        "box_high": 5.02,
        "box_low": 4.98,
        "atr": pytest.approx(0.04),
        "velocity": 1.0,
        "burst": 1.0,
        "break": 1.0,
        "pressure": 1.0,
    }


def test_it_follows_the_protocol_of_triggers() -> None:
    """The runner calls it by contracts.Trigger."""
    trigger: Trigger = SeismographTrigger(TriggerConfig(), "seismograph")

    assert trigger.on_slice(Slice(START), None) == ()


def test_a_marketable_limit_lies_above_the_ask_and_is_immediate_or_cancel() -> None:
    """The option bounds the price of an entry, rounded up to a cent."""
    (signal,) = Desk(order_type="limit", limit_offset_percent=0.3).burst()

    assert (signal.order_type, signal.limit_price, signal.time_in_force) == ("limit", 5.12, "ioc")  # 5.1153


def test_too_few_bars_for_a_range_give_a_trail_in_percent() -> None:
    """With fewer than 15 bars the trail is 2.5 % of the price."""
    (signal,) = Desk(flat_bars()[-14:]).burst()

    assert (signal.exit_plan.trail_amount, signal.exit_plan.trail_percent) == (None, Decimal("2.5"))


@pytest.mark.parametrize(("prices", "score"), [((5.03,) * 20, 90.0), ((5.0,) * 20, None), ((5.1,) * 9, None)])
def test_the_threshold_decides(prices: tuple[float, ...], score: float | None) -> None:
    """Half a break makes 90; a price that is not above the VWAP is held back; 9 trades are too few."""
    signals = Desk().slice(5, *prices)

    assert [signal.score for signal in signals] == ([] if score is None else [score])


@pytest.mark.parametrize(
    "changes",
    [{"stage": 2}, {"stage": 1}, {"stage": 0}, {"no_trade": "stage 2: watch only"}],
)
def test_what_may_not_be_traded_never_enters(changes: dict[str, Any]) -> None:
    """Stages below 3 and items that say why they are not traded are watched only."""
    desk = Desk()
    desk.trigger.watch([item(**{"stage": 4, **changes})], {})

    assert desk.burst() == []


@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        (None, "there is no quote"),
        ((None, 5.1), "the quote lacks a bid or an ask"),
        ((5.2, 5.1), "the quote lacks a bid or an ask, or they are crossed"),
        ((5.04, 5.1), "the spread of 1.18 % is not below 1 %"),
    ],
)
def test_a_filter_that_does_not_hold_is_said_once_a_minute(
    caplog: pytest.LogCaptureFixture, quote: tuple[float | None, float | None] | None, reason: str
) -> None:
    """An ignition without an entry says why in the log, and not at each trade."""
    caplog.set_level(logging.INFO, "sigma9.seismograph")
    desk = Desk()
    for seconds in (5, 6, 7):
        assert desk.burst(seconds, quote=quote) == []

    (record,) = caplog.records
    assert record.getMessage().startswith("ABCD ignites (100) and is not entered: ")
    assert reason in record.getMessage()


def test_a_filter_that_holds_again_lets_the_entry_through() -> None:
    """The next trade after a good quote enters."""
    desk = Desk()
    assert desk.burst(5, quote=(5.04, 5.1)) == []

    assert len(desk.slice(6, 5.1)) == 1


@pytest.mark.parametrize("session", [None, replace(SESSION, open=at(10)), replace(SESSION, close=at(5))])
def test_outside_of_the_session_nothing_is_given(session: Session | None) -> None:
    """Before the open, from the close on and between sessions there is no signal."""
    desk = Desk()
    quotes, trades = (
        (Quote("ABCD", at(5), 5.09, 5.1),),
        tuple(Trade("ABCD", at(5), 5.1, 500, "buy") for _ in range(20)),
    )

    assert desk.trigger.on_slice(Slice(at(5), quotes, trades), session) == ()


TRAP = TrapConfig()
GOOD = Quote("ABCD", START, 5.0, 5.04)


@pytest.mark.parametrize(
    ("now", "price", "quote", "vwap", "reasons"),
    [
        (START, 5.1, GOOD, 5.0, []),
        (OPEN + timedelta(minutes=15), 5.1, replace(GOOD, ts=OPEN + timedelta(minutes=15)), 5.0, []),
        (
            OPEN + timedelta(minutes=14, seconds=59),
            5.1,
            replace(GOOD, ts=OPEN + timedelta(minutes=14, seconds=59)),
            5.0,
            ["15.0 minutes since the open, entries begin after 15"],
        ),
        (START, 5.1, None, 5.0, ["there is no quote"]),
        (at(5), 5.1, GOOD, 5.0, []),
        (at(5.1), 5.1, GOOD, 5.0, ["the last quote is 5 s old, more than 5 s"]),
        (START, 5.1, replace(GOOD, halted=True), 5.0, ["the symbol is halted"]),
        (START, 5.1, replace(GOOD, bid=None), 5.0, ["the quote lacks a bid or an ask, or they are crossed"]),
        (START, 5.1, replace(GOOD, bid=0.0), 5.0, ["the quote lacks a bid or an ask, or they are crossed"]),
        (START, 5.1, replace(GOOD, bid=math.nan), 5.0, ["the quote lacks a bid or an ask, or they are crossed"]),
        (START, 5.1, replace(GOOD, bid=5.04), 5.0, []),
        (START, 5.1, replace(GOOD, bid=1.99, ask=2.01), 1.0, ["the spread of 1.00 % is not below 1 %"]),
        (START, 5.1, GOOD, None, ["there is no session VWAP yet"]),
        (START, 5.1, GOOD, 5.1, ["the price 5.1 is not above the session VWAP 5.1000"]),
        (START, 5.0, None, 5.1, ["there is no quote", "the price 5 is not above the session VWAP 5.1000"]),
    ],
)
def test_each_filter_has_its_edge_and_its_reason(
    *, now: datetime, price: float, quote: Quote | None, vwap: float | None, reasons: list[str]
) -> None:
    """All filters are asked, and each that does not hold gives one reason."""
    assert traps(now, price, session=SESSION, quote=quote, vwap=vwap, config=TRAP) == reasons


def test_the_spread_is_measured_against_the_middle() -> None:
    """(ask − bid) / mid, in percent."""
    assert spread_percent(Quote("A", START, 4.9, 5.1)) == pytest.approx(4.0)
    assert spread_percent(Quote("A", START, 5.1, 4.9)) is None
    assert spread_percent(None) is None


# --- one entry at a time --------------------------------------------------------------------------------------


def test_a_signal_that_nobody_took_up_is_given_again_after_the_cool_off() -> None:
    """Without any word of an order the symbol is free again after 30 s, not at the next trade."""
    desk = Desk()
    assert len(desk.burst(5)) == 1
    assert desk.burst(6) == []
    assert desk.slice(34.9, 5.2) == []

    assert len(desk.slice(35, *[5.3] * 80, quote=(5.29, 5.3))) == 1


def test_no_second_entry_while_one_works_or_is_held() -> None:
    """A working entry and a position keep the symbol busy for as long as they are there."""
    desk = Desk()
    desk.burst(5)
    desk.event(OrderStatus.SUBMITTED, 5, "1")
    assert desk.burst(100, 5.3, quote=(5.29, 5.3)) == []
    desk.event(OrderStatus.UNKNOWN, 101, "1")
    assert desk.burst(200, 5.5, quote=(5.49, 5.5)) == []
    desk.fill(201, "1", "5.10")

    assert desk.burst(300, 5.8, quote=(5.79, 5.8)) == []


@pytest.mark.parametrize(
    "end", [OrderStatus.RISK_REJECTED, OrderStatus.REJECTED, OrderStatus.CANCELLED, OrderStatus.EXPIRED]
)
def test_a_refused_or_cancelled_entry_frees_the_symbol_after_the_cool_off(end: OrderStatus) -> None:
    """An entry that came to nothing is no entry of the day."""
    desk = Desk()
    desk.burst(5)
    desk.event(OrderStatus.SUBMITTED, 5, "1")
    desk.event(end, 100, "1")
    assert desk.burst(129, 5.3, quote=(5.29, 5.3)) == []

    assert len(desk.slice(130, 5.3, quote=(5.29, 5.3))) == 1


def test_after_an_exit_only_the_double_tap_enters_again() -> None:
    """Another ignition on the same day is no entry."""
    desk = Desk(double_tap={"enabled": False})
    desk.trade(5)
    for seconds in (100, 200, 400):
        assert desk.burst(seconds, 5.5, quote=(5.49, 5.5)) == []


def test_a_new_day_begins_anew() -> None:
    """Tape, entries and the double tap of yesterday are forgotten; a position is not."""
    desk = Desk(double_tap={"enabled": False})
    desk.trade(5)
    day = timedelta(days=3)
    session = Session("2026-11-23", SESSION.open + day, SESSION.close + day)
    bars = [replace(bar, ts=bar.ts + day) for bar in flat_bars()]
    desk.trigger.watch([item()], {"ABCD": bars})
    ts = at(5) + day
    trades = tuple(Trade("ABCD", ts, 5.1, 500, "buy") for _ in range(20))
    signals = desk.trigger.on_slice(Slice(ts, (Quote("ABCD", ts, 5.09, 5.1),), trades), session)

    assert [signal.score for signal in signals] == [100.0]
    desk.fill(6, "9", "5.10")
    later = Session("2026-11-24", session.open + timedelta(days=1), session.close + timedelta(days=1))
    desk.trigger.on_slice(Slice(later.open), later)
    assert desk.trigger._watches["ABCD"].holding.quantity == 100


def test_a_symbol_that_left_the_list_is_remembered_where_it_must_be() -> None:
    """What was traded today stays known, so that coming back is no second first entry; the rest is forgotten."""
    desk = Desk(double_tap={"enabled": False})
    desk.trigger.watch([item(), item("WXYZ")], {})
    desk.trade(5)
    desk.trigger.watch([], {})
    assert list(desk.trigger._watches) == ["ABCD"]
    assert desk.burst(100, 5.5, quote=(5.49, 5.5)) == []
    desk.trigger.watch([item()], {"ABCD": flat_bars()})

    assert desk.burst(200, 5.5, quote=(5.49, 5.5)) == []


def test_an_exit_of_what_no_entry_bought_is_no_exit_of_ours() -> None:
    """A position that was adopted has had no entry here: its sale says nothing of the double tap, part by part."""
    desk = Desk()
    for filled in (30, 100):
        status = OrderStatus.FILLED if filled == 100 else OrderStatus.PARTIALLY_FILLED
        amounts = {"filled_quantity": Decimal(filled), "average_price": Decimal("5.20")}
        desk.event(status, 5, "old", "sell", **amounts)

    assert desk.state() is Tap.IDLE
    assert len(desk.burst(400)) == 1


RESTART = [
    (OrderStatus.SUBMITTED, "1", "buy", 0, "0"),
    (OrderStatus.PARTIALLY_FILLED, "1", "buy", 40, "5.10"),
    (OrderStatus.FILLED, "1", "buy", 100, "5.10"),
    (OrderStatus.SUBMITTED, "2", "sell", 0, "0"),
    (OrderStatus.PARTIALLY_FILLED, "2", "sell", 30, "5.20"),
    (OrderStatus.PARTIALLY_FILLED, "2", "sell", 60, "5.20"),
    (OrderStatus.FILLED, "2", "sell", 100, "5.20"),
]


@pytest.mark.parametrize("stop", range(len(RESTART) + 1))
@pytest.mark.parametrize("sold", ["5.20", "5.00"])
def test_a_restart_in_the_middle_of_a_position_changes_nothing(
    stop: int, sold: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A trigger that is told its past goes on as the one that was there: one exit, its true profit, its tap."""

    def tell(desk: Desk, steps: Sequence[tuple[OrderStatus, str, str, int, str]]) -> None:
        for status, order, side, filled, price in steps:
            average = Decimal(sold if side == "sell" else price) if filled else None
            desk.event(status, 10, order, side, filled_quantity=Decimal(filled), average_price=average)

    caplog.set_level("DEBUG")
    first, second = Desk(), Desk()
    first.slice(0)
    tell(first, RESTART)
    tell(second, RESTART[:stop])
    second.slice(60)  # the first slice after the restart begins the day, and forgets nothing of it
    tell(second, RESTART[stop:])

    left = [record for record in caplog.records if " left ABCD" in record.message]
    assert [record.levelname for record in left] == ["INFO", "DEBUG" if stop == len(RESTART) else "INFO"]
    assert left[0].message == left[1].message
    profit = (Decimal(sold) - Decimal("5.10")) * 100
    assert left[0].message.startswith(f"seismograph left ABCD with {profit:+.2f} before fees")
    assert second.state() is first.state()
    assert second.tap.quantity == first.tap.quantity == 50


AGAIN: list[tuple[str, tuple[tuple[OrderStatus, str, str, int], ...], Tap]] = [
    ("the re-entry works", ((OrderStatus.ACCEPTED, "3", "buy", 0),), Tap.TRIGGERED),
    ("a person has cancelled it", ((OrderStatus.CANCELLED, "3", "buy", 0),), Tap.CANCELLED),
    ("it has filled", ((OrderStatus.FILLED, "3", "buy", 50),), Tap.ENTERED),
    ("it was sold", ((OrderStatus.FILLED, "3", "buy", 50), (OrderStatus.FILLED, "4", "sell", 50)), Tap.COMPLETED),
    ("it was refused", ((OrderStatus.RISK_REJECTED, "3", "buy", 0),), Tap.WATCHING),
]


@pytest.mark.parametrize(("name", "steps", "state"), AGAIN, ids=[row[0] for row in AGAIN])
def test_a_restart_knows_of_the_re_entry(
    name: str, steps: tuple[tuple[OrderStatus, str, str, int], ...], state: Tap
) -> None:
    """Told its past, the trigger has its double tap where it was: no third entry, none that was cancelled."""
    seen = [*flat_bars(), Bar("ABCD", START, 5.0, 5.1, 4.98, 5.1, 600)]
    live, again = Desk(), Desk(seen)
    live.trade(5)
    assert len(live.slice(246, 5.1)) == 1
    for desk in (live, again):
        if desk is again:
            desk.fill(6, "1", "5.10")
            desk.fill(65, "2", "5.20", "sell")
        for number, (status, order, side, filled) in enumerate(steps):
            average = Decimal("5.15") if filled else None
            desk.event(status, 250 + number, order, side, filled_quantity=Decimal(filled), average_price=average)
    assert live.state() is state, name
    again.slice(260, 5.1)

    assert again.state() is live.state()
    sent = [len(desk.slice(seconds, 5.1)) for desk in (live, again) for seconds in (400, 401)]
    assert sent == ([1, 0, 1, 0] if state is Tap.WATCHING else [0, 0, 0, 0])


def test_a_re_entry_that_is_always_refused_is_given_up() -> None:
    """The pause doubles with each refusal, and after five the day is over in that symbol."""
    desk = Desk()
    desk.trade(5)
    tries: list[float] = []
    for seconds in range(246, 7000, 10):
        if desk.slice(seconds, 5.1):
            tries.append(seconds)
            desk.event(OrderStatus.RISK_REJECTED, seconds, f"r{seconds}")
    pauses = [later - earlier for earlier, later in pairwise(tries)]

    assert len(tries) == 5
    assert all(later >= earlier * 1.5 for earlier, later in pairwise(pauses)), pauses
    assert (desk.state(), desk.tap.reason) == (Tap.CANCELLED, "its order was refused 5 times")


def test_what_was_traded_yesterday_is_told_and_is_no_part_of_today() -> None:
    """The past that a start tells reaches back a day: its exits use up no entry of today, its position stays."""
    desk = Desk()
    desk.fill(-86_400, "1", "5.10")
    desk.fill(-86_300, "2", "5.20", "sell")
    assert desk.state() is Tap.COOLDOWN
    desk.slice(0)

    assert desk.state() is Tap.IDLE
    assert len(desk.burst()) == 1


def test_an_exit_that_is_taken_back_is_held_again() -> None:
    """A busted exit gives the position back, so that no second one is entered beside it."""
    desk = Desk()
    desk.fill(1, "1", "5.10")
    desk.fill(2, "2", "5.20", "sell")
    desk.event(OrderStatus.BUSTED, 3, "2", "sell")

    assert desk.trigger._watches["ABCD"].holding.quantity == 100
    assert desk.burst() == []


# --- holdings -------------------------------------------------------------------------------------------------


def holding_after(*steps: tuple[str, str, OrderStatus, int, str]) -> tuple[Holding, list[Any]]:
    """Take steps of (side, order, status, filled quantity, average price) and give the holding and its steps."""
    holding = Holding()
    taken = []
    for side, order, status, filled, price in steps:
        event = TradeEvent(
            event=status,
            order_id=order,
            symbol="ABCD",
            side=side,
            quantity=Decimal(100),
            order_type="market",
            time_in_force="day",
            filled_quantity=Decimal(filled),
            average_price=Decimal(price) if filled else None,
            source="strategy" if side == "buy" else "exit",
        )
        taken.append(holding.take(event, START))
    return holding, taken


S = OrderStatus


def test_events_that_come_twice_count_once() -> None:
    """Quantities are cumulative, so a repeated event changes nothing."""
    holding, _ = holding_after(
        ("buy", "1", S.SUBMITTED, 0, "0"),
        ("buy", "1", S.PARTIALLY_FILLED, 40, "5.1"),
        ("buy", "1", S.PARTIALLY_FILLED, 40, "5.1"),
        ("buy", "1", S.FILLED, 100, "5.2"),
        ("buy", "1", S.FILLED, 100, "5.2"),
    )

    assert (holding.quantity, holding.entry_id) == (Decimal(100), None)


def test_the_exit_tells_quantity_and_profit_over_all_orders() -> None:
    """Several exits of one position are one exit, with the profit of all."""
    holding, steps = holding_after(
        ("buy", "1", S.FILLED, 100, "5"),
        ("sell", "2", S.PARTIALLY_FILLED, 30, "6"),
        ("sell", "2", S.CANCELLED, 30, "6"),
        ("sell", "3", S.FILLED, 70, "5.5"),
    )

    assert [step.left is not None for step in steps] == [False, False, False, True]
    assert steps[-1].left == Exit(START, Decimal(100), Decimal("65.0"), killed=False)
    assert holding.quantity == 0


def test_a_fill_after_the_end_of_an_entry_is_held_and_does_not_block_for_ever() -> None:
    """A cancel that a fill overtook leaves a position; once that is sold the symbol is free."""
    holding, steps = holding_after(
        ("buy", "1", S.SUBMITTED, 0, "0"),
        ("buy", "1", S.CANCELLED, 0, "0"),
        ("buy", "1", S.PARTIALLY_FILLED, 60, "5"),
        ("sell", "2", S.FILLED, 60, "6"),
    )

    assert steps[1].ended is S.CANCELLED
    assert steps[3].left == Exit(START, Decimal(60), Decimal(60), killed=False)
    assert not holding.busy(START)


def test_an_entry_that_fills_on_after_its_exit_counts_the_rest_only() -> None:
    """The order's fills before the exit are not counted again."""
    holding, _ = holding_after(
        ("buy", "1", S.PARTIALLY_FILLED, 60, "5"),
        ("sell", "2", S.FILLED, 60, "6"),
        ("buy", "1", S.FILLED, 100, "5"),
    )

    assert holding.quantity == 40


@given(st.lists(st.tuples(st.sampled_from(["buy", "sell"]), st.sampled_from("123456789"), st.integers(0, 100))))
def test_no_order_of_events_makes_the_position_negative(steps: list[tuple[str, str, int]]) -> None:
    """Fills that only grow, in whatever order, never make a long-only holding short; its memory stays small."""
    filled: dict[str, int] = {}
    grown: list[tuple[str, str, OrderStatus, int, str]] = []
    for side, order, more in steps:
        filled[side + order] = filled.get(side + order, 0) + more
        grown.append((side, side + order, S.PARTIALLY_FILLED, filled[side + order], "5"))
    holding, _ = holding_after(*grown)

    assert holding.quantity >= 0
    assert len(holding._orders) <= 32


def test_a_busted_entry_is_no_position() -> None:
    """A trade that the exchange takes back is taken out of the position again."""
    holding, _ = holding_after(("buy", "1", S.FILLED, 100, "5"), ("buy", "1", S.BUSTED, 0, "0"))

    assert holding.quantity == 0
    assert not holding.busy(START)


# --- the double tap -------------------------------------------------------------------------------------------

LEFT = Exit(START, Decimal(101), Decimal(10), killed=False)
DoTap = Callable[[DoubleTap], object]


def exited(**changes: Any) -> DoTap:
    """Tell the end of a position."""
    return lambda tap: tap.exited(replace(LEFT, **changes))


def tick(seconds: float) -> DoTap:
    """Let market time pass."""
    return lambda tap: tap.tick(at(seconds), 5.5)


def arm(price: float, vwap: float | None, ask: float | None = None) -> DoTap:
    """Offer a price."""
    return lambda tap: tap.arm(price, vwap, ask)


def filled(tap: DoubleTap) -> None:
    """Tell a fill of the re-entry."""
    tap.filled()


def refused(tap: DoubleTap) -> None:
    """Tell a refusal of the re-entry."""
    tap.refused()


def cancelled(tap: DoubleTap) -> None:
    """Cancel for the day."""
    tap.cancel("somebody")


TO_WATCHING = (exited(), tick(181))
TO_TRIGGERED = (*TO_WATCHING, arm(5.2, 5.1))
TABLE: list[tuple[str, dict[str, Any], tuple[DoTap, ...], Tap]] = [
    ("nothing", {}, (), Tap.IDLE),
    ("time alone", {}, (tick(999),), Tap.IDLE),
    ("a price alone", {}, (arm(5.6, 5.0),), Tap.IDLE),
    ("first exit", {}, (exited(),), Tap.COOLDOWN),
    ("exit by a kill", {}, (exited(killed=True),), Tap.CANCELLED),
    ("exit by a kill, after loss allowed", {"after_loss": True}, (exited(killed=True),), Tap.CANCELLED),
    ("exit with a loss", {}, (exited(profit=Decimal("-0.01")),), Tap.CANCELLED),
    ("exit with nothing", {}, (exited(profit=Decimal(0)),), Tap.CANCELLED),
    ("exit with a loss, allowed", {"after_loss": True}, (exited(profit=Decimal(-1)),), Tap.COOLDOWN),
    ("switched off", {"enabled": False}, (exited(),), Tap.CANCELLED),
    ("one share can't be halved", {}, (exited(quantity=Decimal(1)),), Tap.CANCELLED),
    ("two shares can", {}, (exited(quantity=Decimal(2)),), Tap.COOLDOWN),
    ("the cool-down's last moment", {}, (exited(), tick(180)), Tap.COOLDOWN),
    ("after the cool-down", {}, TO_WATCHING, Tap.WATCHING),
    ("no high of the day yet", {}, (exited(), lambda tap: tap.tick(at(999), -math.inf)), Tap.COOLDOWN),
    ("a price in the cool-down", {}, (exited(), arm(5.2, 5.1)), Tap.COOLDOWN),
    ("below the VWAP", {}, (*TO_WATCHING, arm(5.0, 5.1)), Tap.WATCHING),
    ("at the VWAP", {}, (*TO_WATCHING, arm(5.1, 5.1)), Tap.WATCHING),
    ("no VWAP", {}, (*TO_WATCHING, arm(5.2, None)), Tap.WATCHING),
    ("above the VWAP", {}, TO_TRIGGERED, Tap.TRIGGERED),
    ("a cent below its stop", {}, (*TO_WATCHING, arm(5.5, 5.1)), Tap.TRIGGERED),
    ("at its stop", {}, (*TO_WATCHING, arm(5.51, 5.1)), Tap.WATCHING),
    ("the ask at its stop", {}, (*TO_WATCHING, arm(5.2, 5.1, 5.51)), Tap.WATCHING),
    ("beyond its limit", {}, (*TO_WATCHING, arm(5.55, 5.1)), Tap.WATCHING),
    ("refused", {}, (*TO_TRIGGERED, refused), Tap.WATCHING),
    ("cancelled while it works", {}, (*TO_TRIGGERED, cancelled), Tap.CANCELLED),
    ("filled", {}, (*TO_TRIGGERED, filled), Tap.ENTERED),
    ("a fill in the cool-down", {}, (exited(), filled), Tap.COOLDOWN),
    ("second exit", {}, (*TO_TRIGGERED, filled, exited()), Tap.COMPLETED),
    ("second exit by a kill", {}, (*TO_TRIGGERED, filled, exited(killed=True)), Tap.COMPLETED),
    ("completed is the end", {}, (*TO_TRIGGERED, filled, exited(), exited(), tick(999), cancelled), Tap.COMPLETED),
    ("cancelled is the end", {}, (cancelled, exited(), tick(999), arm(5.2, 5.1), filled), Tap.CANCELLED),
]


@pytest.mark.parametrize(("config", "steps", "state"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_double_taps_states(config: dict[str, Any], steps: tuple[DoTap, ...], state: Tap) -> None:
    """Each step leads where the table says, and nothing else moves it."""
    tap = DoubleTap(DoubleTapConfig(**config))
    for step in steps:
        step(tap)

    assert tap.state is state
    assert (tap.reason is not None) == (state is Tap.CANCELLED)


def test_the_re_entry_is_half_the_first_a_cent_above_the_frozen_high() -> None:
    """Quantities are rounded down, prices up to a cent."""
    tap = DoubleTap(DoubleTapConfig())
    tap.exited(LEFT)
    tap.tick(at(181), 5.501)
    order = tap.arm(5.2, 5.1)

    assert order is not None
    assert (order.quantity, order.stop_price) == (Decimal(50), Decimal("5.52"))
    assert order.limit_price == Decimal("5.55")  # 5.52 × 1.005 = 5.5476


def test_the_double_tap_from_entry_to_the_second_exit() -> None:
    """After a first exit with a profit: 3 minutes, the high frozen, one stop-limit above it, no third entry."""
    desk = Desk()
    desk.trade(5)
    assert desk.state() is Tap.COOLDOWN
    assert desk.slice(100, 5.4) == []  # the high of the day, within the cool-down
    assert desk.slice(245, 5.2) == []  # the cool-down's end: 65 + 180
    assert desk.state() is Tap.COOLDOWN
    assert desk.slice(245.5, 4.9) == []  # below the VWAP
    assert desk.tap.high == 5.4
    (signal,) = desk.slice(246, 5.3)

    assert (signal.order_type, signal.stop_price, signal.limit_price) == ("stop_limit", 5.41, 5.44)
    assert (signal.max_quantity, signal.time_in_force, signal.size_factor) == (Decimal(50), "day", 1.0)
    plan = signal.exit_plan
    assert (plan.stop_percent, plan.trail_percent, plan.trail_amount) == (Decimal(1), Decimal(1), None)
    assert (plan.trail_activation_percent, plan.time_stop_seconds) == (Decimal(0), None)
    assert signal.details["double_tap"] is True
    assert signal.details["high_of_day"] == 5.4
    assert desk.slice(247, 5.3) == []
    desk.event(OrderStatus.SUBMITTED, 247, "3")
    desk.fill(300, "3", "5.41", quantity=50)
    assert desk.state() is Tap.ENTERED
    desk.fill(400, "4", "5.60", "sell", quantity=50)
    assert desk.state() is Tap.COMPLETED

    assert desk.burst(900, 6.0, quote=(5.99, 6.0)) == []


def test_never_a_re_entry_after_a_kill() -> None:
    """A position that the kill switch closed is not entered again that day, profit or not."""
    desk = Desk(double_tap={"after_loss": True})
    desk.trade(5, source="kill_switch")

    assert desk.state() is Tap.CANCELLED
    assert desk.slice(400, 5.3) == []


@pytest.mark.parametrize(
    ("end", "again"),
    [(OrderStatus.RISK_REJECTED, True), (OrderStatus.CANCELLED, False), (OrderStatus.EXPIRED, False)],
)
def test_a_re_entry_that_was_refused_is_tried_again_and_one_that_was_cancelled_is_not(
    end: OrderStatus, again: bool
) -> None:
    """A risk rule may let it pass later; a person who cancelled it meant it."""
    desk = Desk()
    desk.trade(5)
    assert len(desk.slice(246, 5.1)) == 1
    desk.event(OrderStatus.SUBMITTED, 247, "3")
    desk.event(end, 250, "3")
    assert desk.slice(260, 5.1) == []

    assert len(desk.slice(281, 5.1)) == int(again)


# --- bars alone -----------------------------------------------------------------------------------------------


def bar_slices(quotes: bool = True) -> Iterator[Slice]:
    """Give 30 quiet minutes and one that breaks out, as a replay of minute bars does."""
    for n, bar in enumerate([*flat_bars(), Bar("ABCD", START, 5.02, 5.2, 5.0, 5.18, 4000)]):
        end = OPEN + timedelta(minutes=n + 1)
        yield Slice(end, (Quote("ABCD", end, bar.close - 0.01, bar.close),) if quotes else (), (), (bar,))


@pytest.mark.parametrize(
    ("mode", "quotes", "scores"), [("reweight", True, [100.0]), ("off", True, []), ("reweight", False, [])]
)
def test_a_replay_of_bars_is_scored_by_three_parts(mode: str, quotes: bool, scores: list[float]) -> None:
    """Without trades the parts are scaled to 100, unless that is off; without quotes the filters hold it."""
    desk = Desk([], ignition={"bars_only": mode})
    signals = [signal for data in bar_slices(quotes) for signal in desk.trigger.on_slice(data, SESSION)]

    assert [signal.score for signal in signals] == scores
    for signal in signals:
        assert signal.details["velocity"] is None
        assert signal.ts == OPEN + timedelta(minutes=31)


# --- properties -----------------------------------------------------------------------------------------------

SYMBOLS = ("AAAA", "BBBB")


def random_day(seed: int) -> list[tuple[Slice, Session | None]]:
    """Make a wild stretch of market around the open: quotes, trades, bars, gaps, and wrong ones among them."""
    rnd = random.Random(seed)
    ts = OPEN - timedelta(minutes=2)
    slices: list[tuple[Slice, Session | None]] = []
    for _ in range(400):
        ts += timedelta(seconds=rnd.choice([0.1, 0.5, 1, 5, 30]))
        symbol = rnd.choice(SYMBOLS)
        price = 5 * math.exp(rnd.gauss(0, 0.02))
        count = rnd.choice([0, 1, 1, 30])
        trades = tuple(
            Trade(
                symbol,
                ts - timedelta(seconds=rnd.random()),
                price,
                rnd.choice([1, 100, 5000]),
                rnd.choice(["buy", None]),
            )
            for _ in range(count)
        )
        quotes = (Quote(symbol, ts, price - rnd.choice([0.01, 0.2]), price),) if rnd.random() < 0.8 else ()
        bars = (Bar(symbol, ts.replace(second=0, microsecond=0), price, price * 1.01, price * 0.99, price, 900),)
        slices.append(
            (Slice(ts, quotes, trades, bars if rnd.random() < 0.1 else ()), SESSION if ts >= OPEN else None)
        )
    return slices


def play(seed: int) -> tuple[list[Signal], SeismographTrigger]:
    """Play a random day; every signal is filled, and sold after a while."""
    trigger = SeismographTrigger(TriggerConfig())
    trigger.watch([item(symbol) for symbol in SYMBOLS], {})
    signals: list[Signal] = []
    selling: list[tuple[datetime, Signal]] = []
    for number, (data, session) in enumerate(random_day(seed)):
        given_now = trigger.on_slice(data, session)
        signals += given_now
        due = [signal for moment, signal in selling if moment <= data.ts]
        selling = [entry for entry in selling if entry[0] > data.ts]
        selling += [(data.ts + timedelta(seconds=60), signal) for signal in given_now]
        for side, batch in (("buy", given_now), ("sell", due)):
            for signal in batch:
                event = TradeEvent(
                    event=OrderStatus.FILLED,
                    order_id=f"{side}{number}{signal.symbol}",
                    symbol=signal.symbol,
                    side=side,
                    quantity=Decimal(10),
                    order_type="market",
                    time_in_force="day",
                    filled_quantity=Decimal(10),
                    average_price=Decimal(5 if side == "buy" else 6),
                    source="strategy" if side == "buy" else "exit",
                )
                trigger.on_trade_event(event, data.ts)
    return signals, trigger


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_same_market_gives_the_same_signals_and_none_before_its_time(seed: int) -> None:
    """Deterministic; in the session, 15 minutes after its open; scores in range; two entries a symbol at most."""
    signals, trigger = play(seed)
    again, _ = play(seed)

    assert signals == again
    for signal in signals:
        assert OPEN + timedelta(minutes=15) <= signal.ts < SESSION.close
        assert signal.score is None or 70 <= signal.score <= 100
        assert signal.exit_plan.stop_percent > 0
    for symbol in SYMBOLS:
        mine = [signal for signal in signals if signal.symbol == symbol]
        assert len(mine) <= 2
        assert [signal.order_type for signal in mine] == ["market", "stop_limit"][: len(mine)]
    assert set(trigger._watches) == set(SYMBOLS)


def test_the_random_days_do_give_signals() -> None:
    """The property above is about something: some of its days have entries."""
    assert sum(len(play(seed)[0]) for seed in range(12)) > 5

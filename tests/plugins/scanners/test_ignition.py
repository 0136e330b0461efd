"""The ignition score by hand: each part at its edges, the windows against a plain recount, bars without trades."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.models import Bar, Quote, Session, Trade
from sigma9_plugins.scanners.seismograph.ignition import (
    Ignition,
    bar_pressure,
    break_part,
    burst_part,
    judge_trades,
    pressure_part,
    velocity_part,
)
from sigma9_plugins.scanners.seismograph.tape import Tape
from sigma9_plugins.scanners.seismograph.trigger_config import IgnitionConfig, TriggerConfig
from sigma9_plugins.scanners.seismograph.windows import UNIT, Box, Flow, Minute, Minutes

OPEN = datetime(2026, 11, 20, 14, 30, tzinfo=UTC)
SESSION = Session("2026-11-20", OPEN, OPEN + timedelta(hours=6, minutes=30))
START = int(OPEN.timestamp())
CONFIG = IgnitionConfig()


@pytest.mark.parametrize(
    ("last", "before", "part"),
    [
        (17, 10, 1.0),  # baseline 2: 17 > 16
        (16, 10, 0.5),  # exactly 8 × is not more than 8 ×
        (9, 10, 0.5),  # 9 > 8
        (8, 10, 0.0),
        (9, 0, 0.0),  # 9 trades in 60 s
        (10, 0, 1.0),  # 10 trades after 50 s of silence
        (5, 4, 0.0),  # fewer than 10, although 5 > 4 × 0.8
        (9, 1, 1.0),  # 10 trades, 9 > 8 × 0.2
        (0, 0, 0.0),
    ],
)
def test_velocity(last: int, before: int, part: float) -> None:
    """The last 10 s are compared with a fifth of the 50 s before; below 10 trades in 60 s there is none."""
    assert velocity_part(last, before, 8) == part


@pytest.mark.parametrize(
    ("last", "before", "part"),
    [(6001, 5000, 1.0), (6000, 5000, 0.5), (3001, 5000, 0.5), (3000, 5000, 0.0), (100, 0, 0.0), (0, 0, 0.0)],
)
def test_burst(last: float, before: float, part: float) -> None:
    """The last minute is compared with a fifth of the 5 minutes before; without those there is none."""
    assert burst_part(last, before, 6) == part


@pytest.mark.parametrize(
    ("price", "part"), [(5.03, 1.0), (5.025, 0.5), (5.01, 0.5), (5.0, 0.0), (4.9, 0.0), (math.nan, 0.0)]
)
def test_break(price: float, part: float) -> None:
    """Above the box's high is half, more than 0.5 % above it is all."""
    box = Box(5.0, 4.8)

    assert break_part(price, box, 0.5) == part
    assert break_part(price, None, 0.5) == 0.0


@pytest.mark.parametrize(
    ("bought", "sold", "part"),
    [(181, 100, 1.0), (180, 100, 0.5), (91, 100, 0.5), (90, 100, 0.0), (1, 0, 1.0), (0, 0, 0.0), (0, 10, 0.0)],
)
def test_pressure(bought: float, sold: float, part: float) -> None:
    """Buying is compared with selling; S = 0 is all where anything was bought."""
    assert pressure_part(bought, sold, 1.8) == part


def test_the_score_weighs_the_parts() -> None:
    """35, 30, 20 and 15 of 100; without a velocity the others are scaled to 100."""
    assert Ignition(1, 1, 1, 1).score == 100
    assert Ignition(1, 0, 0, 0).score == 35
    assert Ignition(0, 1, 0, 0).score == 30
    assert Ignition(0, 0, 1, 0).score == 20
    assert Ignition(0, 0, 0, 1).score == 15
    assert Ignition(0.5, 0.5, 0.5, 0.5).score == 50
    assert Ignition(0, 1, 1, 1).score == 65
    assert Ignition(None, 1, 1, 1).score == 100
    assert Ignition(None, 1, 0.5, 0).score == round(100 * 40 / 65, 1)


HALVES = st.sampled_from([0.0, 0.5, 1.0])


@given(st.none() | HALVES, HALVES, HALVES, HALVES)
def test_a_score_lies_between_0_and_100(velocity: float | None, a: float, b: float, c: float) -> None:
    """Whatever the parts are, the score is a percentage, and more of a part is never less."""
    score = Ignition(velocity, a, b, c).score

    assert 0 <= score <= 100
    assert Ignition(velocity, 1.0, b, c).score >= score


@pytest.mark.parametrize("threshold", [50, 66, 70, 90])
@pytest.mark.parametrize("velocity", [(0, 50), (9, 10), (17, 10)])
def test_only_scores_below_the_threshold_are_left_out(threshold: float, velocity: tuple[int, int]) -> None:
    """The short cut by the velocity never hides a score that reaches the threshold."""
    flow = Flow(0)
    flow.trades_10s, flow.trades_before = velocity
    flow.volume_60s, flow.volume_before, flow.bought = 100, 1, 1
    config = IgnitionConfig(threshold=threshold)
    judged = judge_trades(flow, 6.0, Box(5.0, 4.0), config, volume_known=True)
    best = Ignition(velocity_part(*velocity, 8), 1, 1, 1).score

    assert (judged is None) == (best < threshold)
    assert judged is None or judged.score == best


# --- windows --------------------------------------------------------------------------------------------------

TRADES = st.lists(
    st.tuples(
        st.floats(0, 1000, allow_nan=False).map(lambda at: round(at * 4) / 4),
        st.integers(0, 500).map(lambda size: size / 4),
        st.sampled_from([-1, 1]),
    ),
    max_size=60,
)


@given(TRADES, st.floats(0, 100).map(lambda at: round(at * 4) / 4))
@settings(deadline=None)
def test_the_windows_agree_with_a_recount(trades: list[tuple[float, float, int]], later: float) -> None:
    """In any order of arrival the sums are those of the trades in the windows; the memory stays the same."""
    flow = Flow(0)
    room = (len(flow._counts), len(flow._volumes), len(flow._bought), len(flow._sold))
    head = 0.0
    seen: list[tuple[float, float, int]] = []
    for at, size, side in trades:
        # One that is older than a window when it comes never counts in it.
        flow.trade(at, 5.0, size, side)
        head = max(head, at)
        seen.append((at, size, side))
    now = head + later
    flow.advance(now)
    bucket = int(now * 4)
    ages = [(bucket - int(at * 4), int(now) - int(at), size, side) for at, size, side in seen]

    assert flow.trades_10s == sum(quarters < 40 for quarters, _, _, _ in ages)
    assert flow.trades_before == sum(40 <= quarters < 240 for quarters, _, _, _ in ages)
    assert flow.volume_60s == sum(size * UNIT for _, seconds, size, _ in ages if seconds < 60)
    assert flow.volume_before == sum(size * UNIT for _, seconds, size, _ in ages if 60 <= seconds < 360)
    assert flow.bought == sum(size * UNIT for _, seconds, size, side in ages if seconds < 60 and side > 0)
    assert flow.sold == sum(size * UNIT for _, seconds, size, side in ages if seconds < 60 and side < 0)
    assert room == (len(flow._counts), len(flow._volumes), len(flow._bought), len(flow._sold))


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 500)), max_size=8), st.integers(0, 800))
def test_filled_minutes_agree_with_a_recount(fills: list[tuple[int, int]], later: int) -> None:
    """Volume that is spread over minutes, late ones too, ages like trades of every second."""
    filled, traded = Flow(0), Flow(0)
    for minute, volume in fills:
        filled.fill(minute, volume * 60)
        for second in range(minute * 60, minute * 60 + 60):
            traded.trade(second, 5.0, volume, 0)
    now = max([minute * 60 + 59 for minute, _ in fills], default=0) + later
    filled.advance(now)
    traded.advance(now)

    assert (filled.volume_60s, filled.volume_before) == (traded.volume_60s, traded.volume_before)


def test_the_tick_rule_decides_where_nothing_else_does() -> None:
    """Above the last different price is bought, below it sold, the same price goes with the one before."""
    flow = Flow(0)
    for at, price in enumerate([5.0, 5.01, 5.01, 5.0]):
        flow.trade(at, price, 1, 0)

    assert (flow.bought, flow.sold) == (2 * UNIT, UNIT)


def test_minutes_are_made_of_trades_and_the_feeds_bars_replace_them() -> None:
    """The minute in progress is no part of the box; a late trade changes nothing; memory is 30 bars."""
    minutes = Minutes()
    for index in range(40):
        minutes.trade(index, 5 + index / 100, 10)
        minutes.trade(index, 4.9, 10)
    minutes.trade(3, 99.0, 1)
    assert minutes.box == Box(5.38, 4.9)  # minutes 9 to 38; 39 is in progress
    assert minutes.volumes(2) == [20, 20]
    assert minutes.volumes(31) is None

    assert minutes.take(Minute(39, 5, 6.0, 4.5, 5, 25)) == 20
    assert minutes.box == Box(6.0, 4.5)
    assert minutes.take(Minute(39, 5, 5.5, 4.5, 5, 25)) == 25
    assert minutes.take(Minute(20, 5, 9.9, 4.5, 5, 25)) == 0
    assert minutes.box == Box(5.5, 4.5)


def test_the_box_needs_10_bars_and_the_range_14_and_one_before() -> None:
    """Below that nothing is given; the true range counts the gap to the close before."""
    minutes = Minutes()
    for index in range(9):
        minutes.take(Minute(index, 5, 5.1, 4.9, 5, 1))
    assert minutes.box is None
    minutes.take(Minute(9, 5, 5.1, 4.9, 5, 1))
    assert minutes.box == Box(5.1, 4.9)
    for index in range(10, 14):
        minutes.take(Minute(index, 5, 5.1, 4.9, 5, 1))
    assert minutes.atr() is None
    minutes.take(Minute(14, 6, 6.1, 6.0, 6, 1))  # a gap: its true range is 6.1 − 5

    assert minutes.atr() == pytest.approx((13 * 0.2 + 1.1) / 14)


# --- the tape -------------------------------------------------------------------------------------------------


def bar(
    minute: int, close: float = 5.0, volume: float = 100, *, high: float | None = None, low: float | None = None
) -> Bar:
    """Make the bar of a minute after the open."""
    return Bar("ABCD", OPEN + timedelta(minutes=minute), close, high or close, low or close, close, volume)


def feed(tape: Tape, second: float, price: float, size: float, quote: Quote | None = None) -> bool:
    """Give a tape a trade at a second after the open."""
    return tape.trade(Trade("ABCD", OPEN + timedelta(seconds=second), price, size), START + second, quote)


def test_history_warms_the_box_the_vwap_and_the_volumes() -> None:
    """A symbol that comes onto the list at 10 minutes is judged at once; the gap of its own minute is none."""
    history = [bar(minute, volume=600, high=5.2, low=4.8) for minute in range(10)]
    tape = Tape(SESSION, OPEN + timedelta(minutes=10), history)
    assert tape.minutes.box == Box(5.2, 4.8)
    assert tape.vwap == 5.0
    assert tape.high == 5.2

    for index in range(20):
        feed(tape, 600 + index / 4, 5.25, 200)
    ignition = tape.judge(START + 605, CONFIG)

    # 4,000 shares in a minute that has 600 × 55/60 more, against 600 a minute; bought by the tick rule: unknown.
    assert ignition == Ignition(1.0, 1.0, 1.0, 0.0)
    assert ignition.score == 85
    assert tape.vwap == pytest.approx((6000 * 5 + 4000 * 5.25) / 10_000)


def test_without_6_known_minutes_there_is_no_burst() -> None:
    """Volumes before the watch began are unknown, not zero."""
    tape = Tape(SESSION, OPEN + timedelta(minutes=10))
    feed(tape, 600, 5.0, 1)
    for index in range(20):
        feed(tape, 900 + index / 4, 5.25, 1000)
    early = tape.judge(START + 905, IgnitionConfig(threshold=50))
    for index in range(20):
        feed(tape, 960 + index / 4, 5.3, 10_000_000)
    late = tape.judge(START + 965, IgnitionConfig(threshold=50))

    assert early is not None
    assert early.burst == 0
    assert late is not None
    assert late.burst == 1


def test_sides_come_from_the_feed_then_the_quote_then_the_tick() -> None:
    """At the ask is bought, at the bid sold; in between the tick rule decides; the feed's word beats both."""
    quote = Quote("ABCD", OPEN, 5.0, 5.1)
    tape = Tape(SESSION, OPEN)
    feed(tape, 1, 5.1, 1, quote)
    feed(tape, 2, 5.0, 2, quote)
    feed(tape, 3, 5.05, 4, quote)
    tape.trade(Trade("ABCD", OPEN, 5.1, 8, "sell"), START + 4, quote)

    assert tape._flow.bought == 5 * UNIT
    assert tape._flow.sold == 10 * UNIT


@pytest.mark.parametrize(
    ("second", "price", "size"),
    [
        (1, 0.0, 1),
        (1, -5.0, 1),
        (1, math.nan, 1),
        (1, math.inf, 1),
        (1, 5.0, -1),
        (1, 5.0, math.nan),
        (-1, 5.0, 1),
    ],
)
def test_a_trade_that_can_not_be_counts_nothing(second: float, price: float, size: float) -> None:
    """A wrong price or size, or a time before the open, leaves the tape as it was."""
    tape = Tape(SESSION, OPEN)

    assert not feed(tape, second, price, size)
    assert tape.vwap is None
    assert tape.high == -math.inf


def test_a_trade_from_the_future_counts_now() -> None:
    """A wrong clock at the feed does not empty the windows."""
    tape = Tape(SESSION, OPEN)
    tape.trade(Trade("ABCD", OPEN + timedelta(hours=3), 5.0, 1), START + 1, None)
    feed(tape, 2, 5.0, 1)

    assert tape._flow.trades_10s == 2


def test_bars_without_trades_are_judged_by_the_other_three_parts() -> None:
    """The close is held against the box, the volume against 5 bars, the pressure is the close's place."""
    tape = Tape(SESSION, OPEN)
    for minute in range(20):
        assert tape.bar(bar(minute, volume=100, high=5.1, low=4.9), CONFIG) is not None
    strong = tape.bar(bar(20, close=5.2, volume=601, high=5.2, low=5.0), CONFIG)
    half = tape.bar(bar(21, close=5.21, volume=600, high=5.3, low=5.1), CONFIG)

    assert strong == Ignition(None, 1.0, 1.0, 1.0)
    assert strong.score == 100
    assert half == Ignition(
        None, 0.0, 0.5, 0.5
    )  # 600 < 3 × 200.2, 5.2 < 5.21 < 5.226, (5.21−5.1)/(5.3−5.21) = 1.22
    assert half.score == round(100 * 17.5 / 65, 1)
    assert tape.price == 5.21
    assert tape.high == 5.3


def test_a_feed_that_gives_trades_is_never_judged_by_bars() -> None:
    """A bar whose minute had trades, was not observed whole, or had no volume is no bar without trades."""
    tape = Tape(SESSION, OPEN + timedelta(seconds=30))
    assert tape.bar(bar(0), CONFIG) is None
    feed(tape, 61, 5.0, 10)
    assert tape.bar(bar(1, volume=10), CONFIG) is None
    assert tape.bar(bar(2, volume=0), CONFIG) is None
    assert tape.bar(bar(3), CONFIG) is not None
    assert tape.bar(Bar("ABCD", OPEN + timedelta(minutes=4), 5, 5, 5, 5, 10, seconds=300), CONFIG) is None
    assert tape.bar(bar(5, close=math.nan), CONFIG) is None


def test_volume_that_no_trade_told_of_is_added_from_the_bar() -> None:
    """A bar with more volume than its trades adds what is missing, once."""
    tape = Tape(SESSION, OPEN)
    feed(tape, 1, 5.0, 40)
    tape.bar(bar(0, volume=100, close=5.3, high=5.3, low=5.0), CONFIG)
    tape.bar(bar(0, volume=100, close=5.3, high=5.3, low=5.0), CONFIG)

    assert tape.vwap == pytest.approx((40 * 5.0 + 60 * (5.3 + 5.0 + 5.3) / 3) / 100)
    assert tape._flow.volume_60s == 100 * UNIT


def test_a_bar_without_a_range_is_half_bought() -> None:
    """The close's place is unknown where high and low are one price."""
    assert bar_pressure(Minute(0, 5, 5, 5, 5, 100)) == (50, 50)
    assert bar_pressure(Minute(0, 5, 6, 5, 5.75, 100)) == (75, 25)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ignition": {"threshold": 49}},
        {"ignition": {"velocity": 16}},
        {"ignition": {"burst": 2.9}},
        {"ignition": {"break_percent": 1.1}},
        {"ignition": {"pressure": 1.4}},
        {"traps": {"max_spread_percent": 2.1}},
        {"traps": {"minutes_after_open": 4}},
        {"exits": {"stop_percent": "3.1"}},
        {"exits": {"time_stop_seconds": 301}},
        {"exits": {"trail_atr": 2.1}},
        {"exits": {"trail_activation_percent": 1}},
        {"min_stage": 2},
        {"double_tap": {"size": 1}},
    ],
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, dict[str, float]]) -> None:
    """Each setting has the range of its strategy, and an unknown one is an error."""
    with pytest.raises(ValidationError):
        TriggerConfig.model_validate(wrong)

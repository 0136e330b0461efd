"""R19, loss_streak."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import RiskRule, RiskView, Trip
from sigma9_core.models import ClosedTrade, OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import NOW, closed, order, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.loss_streak import LossStreak, LossStreakConfig


def rule(**config: object) -> LossStreak:
    """Build the rule with a limit of three losses, and other settings."""
    return LossStreak("r19", LossStreakConfig.model_validate({"losses_in_a_row": 3, **config}))


def trades(*results: float, last: float = 0, strategy: str | None = "test") -> tuple[ClosedTrade, ...]:
    """Make round trips a minute apart; the last one was closed `last` minutes after eleven."""
    count = len(results)
    return tuple(
        closed(result=result, ago=(count - 1 - n - last) * 60, strategy=strategy)
        for n, result in enumerate(results)
    )


def seen(done: Sequence[ClosedTrade], *, minutes: float = 0, **more: Any) -> RiskView:
    """Show a moment some minutes after eleven."""
    return view(closed=done, now=NOW + timedelta(minutes=minutes), **more)


def looks(judge: LossStreak, moment: RiskView, count: int = 4) -> list[Trip]:
    """Let the rule look some times at one moment; give what it tells."""
    return [trip for _ in range(count) if (trip := judge.trip(moment)) is not None]


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with a limit of three losses."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry after two losses."""
        return order(), seen(trades(-1, 5, -1, -1))

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry after three."""
        return order(), seen(trades(5, -1, -1, -1))


@given(results=st.lists(st.integers(-2, 2), max_size=12), limit=st.integers(1, 5))
def test_losses_since_the_last_gain_count(results: list[int], limit: int) -> None:
    """An entry passes exactly while fewer trades than the limit have been closed since the last gain."""
    row = 0
    for result in results:
        row = 0 if result > 0 else row + 1
    verdict = rule(losses_in_a_row=limit).check(order(), seen(trades(*results)))

    assert (verdict.used, verdict.limit) == (Decimal(row), Decimal(limit))
    assert (verdict.outcome == "allow") == (row < limit)


def test_without_a_limit_it_is_off() -> None:
    """The default judges nothing, however much is lost."""
    judge = LossStreak("r19", LossStreakConfig())
    moment = seen(trades(*[-1] * 50))

    assert judge.check(order(), moment).outcome == "allow"
    assert judge.trip(moment) is None
    assert judge.usage(moment).limit is None


def test_a_trade_without_a_gain_is_a_loss() -> None:
    """Nothing won, and a result that is no number, count as lost."""
    assert rule().check(order(), seen(trades(0, 0, 0))).outcome == "refuse"
    assert (
        rule().check(order(), seen((*trades(-1, -1), closed(result="NaN", percent=Decimal(0))))).outcome
        == "refuse"
    )


def test_the_cool_down_runs_from_the_last_loss() -> None:
    """Entries pass again exactly an hour after the last loss was closed."""
    judge = rule()
    done = trades(-1, -1, -1)
    assert looks(judge, seen(done, minutes=5)) != []

    almost, after = seen(done, minutes=59.99), seen(done, minutes=60)
    assert judge.check(order(), almost).outcome == "refuse"
    assert "2026-11-20T17:00" in (judge.check(order(), almost).reason or "")
    assert (judge.usage(almost).tripped, judge.usage(almost).until) == (True, NOW + timedelta(hours=1))
    assert judge.check(order(), after).outcome == "allow"
    assert looks(judge, after) == []
    assert not judge.usage(after).tripped


def test_a_trip_is_told_once() -> None:
    """Further looks, and a further loss while it stands, tell nothing; the loss makes it last longer."""
    judge = rule()
    trips = looks(judge, seen(trades(-1, -1, -1)))
    more = seen(trades(-1, -1, -1, -1, last=30), minutes=30)

    assert [(trip.used, trip.limit, trip.kill, trip.strategy) for trip in trips] == [
        (Decimal(3), Decimal(3), False, None)
    ]
    assert looks(judge, more) == []
    assert judge.usage(more).until == NOW + timedelta(minutes=90)


def test_after_the_cool_down_the_next_loss_stops_entries_again() -> None:
    """Only a gain ends the streak."""
    judge = rule()
    looks(judge, seen(trades(-1, -1, -1)))
    four = (*trades(-1, -1, -1), *trades(-1, last=70))

    assert judge.check(order(), seen(four, minutes=70)).outcome == "refuse"  # before it has looked
    assert [trip.used for trip in looks(judge, seen(four, minutes=70))] == [4]
    won = (*four, *trades(1, -1, -1, last=140))
    assert looks(judge, seen(won, minutes=140)) == []
    assert judge.check(order(), seen(won, minutes=140)).outcome == "allow"


def test_a_gain_ends_the_streak_but_not_the_trip() -> None:
    """A position that is closed with a gain during the cool-down does not end it."""
    judge = rule()
    looks(judge, seen(trades(-1, -1, -1)))
    won = (*trades(-1, -1, -1), *trades(9, last=10))
    looks(judge, seen(won, minutes=10))

    assert judge.check(order(), seen(won, minutes=10)).outcome == "refuse"
    assert judge.check(order(), seen(won, minutes=60)).outcome == "allow"


def test_without_a_cool_down_a_person_clears_it() -> None:
    """Neither time nor a gain lifts the trip; a clear does, and the losses before it count no more."""
    judge = rule(cool_down_minutes=None)
    done = trades(-1, -1, -1)
    looks(judge, seen(done))
    late = seen((*done, *trades(5, last=10)), minutes=100_000)
    looks(judge, late)
    assert judge.check(order(), late).outcome == "refuse"
    assert (judge.usage(late).tripped, judge.usage(late).until) == (True, None)

    judge.clear()
    again = seen((*done, *trades(-1, -1, last=100_002)), minutes=100_002)
    assert judge.check(order(), seen(done, minutes=100_000)).outcome == "allow"
    assert looks(judge, seen(done, minutes=100_000)) == []
    assert judge.check(order(), again).outcome == "allow"
    assert judge.usage(again).used == 2
    three = seen((*done, *trades(-1, -1, -1, last=100_003)), minutes=100_003)
    assert [trip.used for trip in looks(judge, three)] == [3]


def test_a_strategy_is_stopped_by_its_own_losses() -> None:
    """One strategy's losses stop its entries, while the gains of others end everybody's streak."""
    judge = rule()
    mixed: list[ClosedTrade] = []
    for _ in range(3):
        mixed += [*trades(-1, strategy="bad"), *trades(1, strategy="good")]
    moment = seen(mixed)

    assert judge.check(order(strategy="bad"), moment).outcome == "refuse"  # before it has looked
    trips = looks(judge, moment)
    assert [trip.used for trip in trips] == [3]
    assert "by bad" in trips[0].reason
    assert judge.check(order(strategy="bad"), moment).outcome == "refuse"
    assert judge.check(order(strategy="good"), moment).outcome == "allow"
    assert judge.check(order(), moment).outcome == "allow"


def test_strategies_count_only_where_they_should() -> None:
    """With `per_strategy` off everybody's trades alone are counted."""
    judge = rule(per_strategy=False)
    mixed: list[ClosedTrade] = []
    for _ in range(3):
        mixed += [*trades(-1, strategy="bad"), *trades(1, strategy="good")]

    assert looks(judge, seen(mixed)) == []
    assert judge.check(order(strategy="bad"), seen(mixed)).outcome == "allow"
    assert judge.usage(seen(mixed)).used == 0


def test_one_loss_that_stops_everybody_is_told_once() -> None:
    """Where it is one strategy that loses, one trip is told; two strategies that trip alone are told apart."""
    assert len(looks(rule(), seen(trades(-1, -1, -1)))) == 1
    rows: list[ClosedTrade] = []
    for _ in range(3):
        rows += [*trades(-1, strategy="a"), *trades(-1, strategy="b"), *trades(9, strategy="c")]
    assert sorted(trip.reason[-1] for trip in looks(rule(), seen(rows))) == ["a", "b"]


def test_an_old_streak_trips_nothing() -> None:
    """A streak whose cool-down is over when the rule is switched on is no news."""
    assert looks(rule(), seen(trades(-1, -1, -1), minutes=61)) == []


def test_a_bust_is_counted_out() -> None:
    """Where the exchange takes a fill back, the trades are counted anew."""
    judge = rule(losses_in_a_row=4)
    three = trades(-1, -1, -1)
    judge.trip(seen(three))
    won = (three[0], closed(result=9, ago=60), three[2])

    assert judge.check(order(), seen(won)).used == 1
    judge.trip(seen(won))
    assert judge.usage(seen(won)).used == 1
    assert judge.check(order(), seen(three[:1])).used == 1


def test_a_trip_survives_a_restart() -> None:
    """Another instance that takes the memory refuses as the first did, and tells nothing twice."""
    judge, heir = rule(cool_down_minutes=None), rule(cool_down_minutes=None)
    done = trades(-1, -1, -1)
    looks(judge, seen(done))
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert heir.check(order(), seen(())).outcome == "refuse"
    assert looks(heir, seen(done, minutes=600)) == []
    assert heir.usage(seen(done)).tripped


@pytest.mark.parametrize("looked", [False, True])
def test_a_clear_survives_a_restart(looked: bool) -> None:
    """What a person has cleared stays cleared, also where the restart comes before the next look."""
    judge, heir = rule(cool_down_minutes=None), rule(cool_down_minutes=None)
    done = trades(-1, -1, -1)
    looks(judge, seen(done))
    judge.clear()
    if looked:
        judge.trip(seen(done))
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert heir.check(order(), seen(done)).outcome == "allow"
    assert looks(heir, seen(done)) == []
    assert heir.check(order(), seen(done)).outcome == "allow"
    assert heir.usage(seen(done)).used == 0


def test_exits_work_at_any_time() -> None:
    """The rule is about entries alone."""
    moment = seen(trades(-1, -1, -1))
    assert rule().check(order(side="sell", intent="reduce"), moment).outcome == "allow"


def test_usage_is_the_longest_streak() -> None:
    """The published use is the streak that is nearest to the limit, everybody's or a strategy's."""
    moment = seen((*trades(-1, -1, strategy="a"), *trades(1, strategy="b")))

    assert (rule().usage(moment).used, rule().usage(moment).limit) == (Decimal(2), Decimal(3))
    assert rule(per_strategy=False).usage(moment).used == 0


@pytest.mark.parametrize("bad", [{"losses_in_a_row": 0}, {"cool_down_minutes": 0}, {"cool_down_minutes": -1}])
def test_settings_without_a_sense_are_refused(bad: dict[str, int]) -> None:
    """A limit of no loss, or a cool-down of no time, is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nothing_is_entered_in_a_cool_down(data: st.DataObject) -> None:
    """Over a day of round trips, no entry passes within the cool-down after the third loss in a row."""

    async def run() -> None:
        judge = rule(cool_down_minutes=10)
        desk = SmallDesk([judge])
        row, shut_until = 0, NOW
        for _ in range(data.draw(st.integers(1, 20))):
            desk.tick({"AAPL": 100.0}, seconds=data.draw(st.integers(1, 600)))
            if data.draw(st.booleans()):
                desk.gate.trips(desk.view())
            decision = await desk.offer(order(strategy="s"))
            assert (decision.approved is not None) == (desk.clock.now() >= shut_until)
            if decision.approved is None:
                continue
            desk.fill(decision.approved.order_id)
            price = data.draw(st.sampled_from((95.0, 110.0)))
            desk.tick({"AAPL": price})
            left = await desk.offer(order(side="sell", intent="reduce", strategy="s"))
            assert left.approved is not None
            desk.fill(left.approved.order_id)
            row = row + 1 if price < 100 else 0
            if row >= 3:
                shut_until = desk.clock.now() + timedelta(minutes=10)

    asyncio.run(run())

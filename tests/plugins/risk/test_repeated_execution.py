"""R10, repeated_execution."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import RiskRule, RiskView, Submission, Trip
from sigma9_core.models import OrderRequest
from sigma9_core.money.desk import REMEMBERED
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import NOW, order, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.repeated_execution import FORGOTTEN, SETTLING, RepeatedExecution, RepeatedExecutionConfig


def rule(**config: object) -> RepeatedExecution:
    """Build the rule with some settings."""
    return RepeatedExecution("r10", RepeatedExecutionConfig.model_validate(config))


def entry(symbol: str = "AAPL", strategy: str | None = "a") -> OrderRequest:
    """Make an entry of a strategy."""
    return order(symbol, strategy=strategy)


class Past:
    """What has passed the gate, second by second from NOW on."""

    def __init__(self) -> None:
        self.sent: list[Submission] = []

    def add(self, second: float, *requests: OrderRequest) -> Past:
        """Let orders pass at a time."""
        for request in requests:
            self.sent.append(Submission(NOW + timedelta(seconds=second), request, f"s{len(self.sent)}"))
        return self

    def view(self, second: float) -> RiskView:
        """Show a moment as the desk would."""
        now = NOW + timedelta(seconds=second)
        return view(now=now, recent=tuple(sent for sent in self.sent if now - sent.at <= REMEMBERED))


def five(second: float = 0, strategy: str | None = "a") -> Past:
    """Let five entries pass in a moment."""
    return Past().add(second, *[entry(strategy=strategy)] * 5)


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give the fifth entry of the window: the first of five is just old enough."""
        return entry(), Past().add(0, entry()).add(1, *[entry()] * 4).view(300)

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give the sixth."""
        return entry(), five().view(299.9)


@pytest.mark.parametrize(
    "other",
    [entry("MSFT"), entry(strategy="b"), entry(strategy=None), order(side="sell", intent="reduce", strategy="a")],
)
def test_what_differs_does_not_count(other: OrderRequest) -> None:
    """Entries of another symbol or strategy, and exits, are no repetition."""
    assert rule().check(entry(), Past().add(0, *[other] * 9).view(1)).used == 1
    assert rule().trip(Past().add(0, *[entry()] * 4, other).view(1)) is None


def test_either_side_and_any_quantity_is_a_repetition() -> None:
    """Entries need not be alike to run away."""
    past = Past().add(0, *(order(side=side, quantity=n, strategy="a") for n in (1, 2) for side in ("buy", "sell")))

    assert rule().check(entry(), past.view(1)).used == 5
    assert rule().check(entry(), past.add(1, entry()).view(1)).outcome == "refuse"


def test_the_strategy_is_switched_off_at_the_limit_and_once() -> None:
    """With the fifth entry the trip names the strategy, kills nothing, and is not told again."""
    judge, past = rule(), five()
    trip = judge.trip(past.view(1))

    assert isinstance(trip, Trip)
    assert (trip.strategy, trip.kill, trip.used, trip.limit) == ("a", False, Decimal(5), Decimal(5))
    assert "a entered AAPL 5 times" in trip.reason
    assert [judge.trip(past.view(second)) for second in (1, 2, 200)] == [None, None, None]
    assert rule().trip(Past().add(0, *[entry()] * 4).view(1)) is None


def test_two_strategies_trip_one_after_the_other() -> None:
    """Where two have reached the limit in the same moment, each look tells of one."""
    judge, past = rule(), five().add(0, *[entry("MSFT", "b")] * 6)

    found = [judge.trip(past.view(1)) for _ in range(3)]
    assert [trip and (trip.strategy, trip.used) for trip in found] == [("b", Decimal(6)), ("a", Decimal(5)), None]


def test_what_is_signalled_while_it_is_being_switched_off_is_refused() -> None:
    """Entries in the moment after the trip are refused, in every symbol, though the count starts afresh."""
    judge, past = rule(), five()
    judge.trip(past.view(1))
    end = 1 + SETTLING.total_seconds()

    refused = judge.check(entry("MSFT"), past.view(end - 0.001))
    assert (refused.outcome, refused.used) == ("refuse", Decimal(5))
    assert "enable it" in str(refused.reason)
    assert judge.check(entry("MSFT", "b"), past.view(2)).outcome == "allow"
    assert judge.check(entry("MSFT"), past.view(end)).outcome == "allow"


def test_the_count_starts_afresh_once_a_person_has_enabled_it() -> None:
    """After the trip a strategy may enter as often again, and trips again at the same limit."""
    judge, past = rule(), five().add(0, *[entry("MSFT")] * 4)
    assert judge.trip(past.view(1)) is not None

    for number in range(5):
        assert judge.check(entry(), past.view(10 + number)).used == number + 1
        past.add(10 + number, entry())
        trip = judge.trip(past.view(10 + number))
    assert trip is not None
    assert judge.check(entry(), past.view(14)).outcome == "refuse"


def test_persons_are_refused_but_switch_nothing_off() -> None:
    """A person's own sixth entry is refused, nothing trips, and clearing the rule lets it pass."""
    judge, past = rule(), five(strategy=None)

    assert judge.trip(past.view(1)) is None
    assert judge.check(entry(strategy=None), past.view(2)).outcome == "refuse"
    judge.clear()
    assert judge.check(entry(strategy=None), past.view(2)).used == 1


def test_clearing_forgives_what_was_there_at_the_last_look() -> None:
    """After `clear` the rule shows no trip, and what has passed since the last look still counts."""
    judge, past = rule(), five()
    judge.trip(past.view(1))
    assert judge.usage(past.view(1)).tripped
    past.add(2, entry(), entry())
    judge.clear()

    assert not judge.usage(past.view(2)).tripped
    assert judge.check(entry(), past.view(3)).used == 3
    assert judge.trip(past.view(3)) is None


def test_a_rule_that_is_cleared_before_its_first_look_forgets_nothing() -> None:
    """There is nothing to forgive then."""
    judge = rule()
    judge.clear()

    assert judge.check(entry(), five().view(1)).outcome == "refuse"
    assert judge.memory() == {}


def test_usage_is_the_most_repeated_entry() -> None:
    """The published use counts the busiest strategy and symbol; after a trip its count begins at nothing."""
    judge, past = rule(), five().add(0, *[entry("MSFT", None)] * 3)

    assert (judge.usage(past.view(1)).used, judge.usage(past.view(1)).limit) == (Decimal(5), Decimal(5))
    judge.trip(past.view(1))
    seen = judge.usage(past.view(1))
    assert (seen.used, seen.tripped, seen.until) == (Decimal(3), True, None)


def test_it_shows_as_tripped_until_the_strategy_enters_again() -> None:
    """Nothing tells the rule that a person has enabled the strategy, but its next entry does."""
    judge, past = rule(), five(1)
    judge.trip(past.view(1))
    for second in (2, 3_000):
        judge.trip(past.add(second, entry("MSFT", "b")).view(second))
        assert judge.usage(past.view(second)).tripped

    judge.trip(past.add(3_001, entry("MSFT")).view(3_001))
    assert not judge.usage(past.view(3_001)).tripped
    judge.trip(past.add(3_002, entry("MSFT", "b")).view(3_002))
    assert judge.memory() == {}


def test_the_trip_survives_a_restart() -> None:
    """Another instance, through JSON, neither tells the trip again nor counts what was before it."""
    judge, past = rule(), five()
    judge.trip(past.view(1))
    heir = rule()
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert heir.usage(past.view(2)).tripped
    assert heir.trip(past.view(2)) is None
    assert heir.check(entry(), past.view(2)).outcome == "refuse"
    assert heir.check(entry(), past.view(10)).used == 1


def test_what_was_cleared_survives_a_change_of_the_settings() -> None:
    """The rule that takes the place of another forgives what the other one has forgiven."""
    judge, past = rule(), five(strategy=None)
    judge.trip(past.view(1))
    judge.clear()
    heir = rule(max_entries=4)
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert heir.check(entry(strategy=None), past.view(2)).used == 1


@pytest.mark.parametrize("bad", [{"max_entries": 0}, {"window_seconds": 0}, {"window_seconds": 600.1}])
def test_a_window_is_no_longer_than_the_memory_of_the_core(bad: dict[str, Any]) -> None:
    """What the desk does not remember can't be counted."""
    assert FORGOTTEN == REMEMBERED
    assert rule(window_seconds=600) is not None
    with pytest.raises(ValidationError):
        rule(**bad)


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from((0.0, 1.0, 6.0, 20.0)), st.booleans()), max_size=50
    )
)
def test_no_strategy_runs_away(steps: list[tuple[str, float, bool]]) -> None:
    """Between two trips of a strategy no more than the limit passes in a window, whenever somebody looks."""

    async def run() -> None:
        judge = rule(max_entries=3, window_seconds=30)
        desk = SmallDesk([judge])
        fresh: dict[str, datetime] = dict.fromkeys("ab", NOW - timedelta(days=1))
        passed: dict[str, list[datetime]] = {"a": [], "b": []}
        for strategy, seconds, look in steps:
            desk.tick({}, seconds)
            now = desk.clock.now()
            if look and (trip := judge.trip(desk.view())) is not None:
                assert trip.strategy is not None
                fresh[trip.strategy] = now
            room = [at for at in passed[strategy] if at > max(fresh[strategy], now - timedelta(seconds=30))]
            settling = now - fresh[strategy] < SETTLING
            decision = await desk.offer(entry(strategy=strategy))
            assert (decision.approved is not None) == (len(room) < 3 and not settling)
            if decision.approved is not None:
                passed[strategy].append(now)

    asyncio.run(run())

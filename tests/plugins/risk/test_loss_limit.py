"""R8, loss_limit."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.calendar import Calendar
from sigma9_core.contracts import Mark, RiskRule, RiskView, Trip
from sigma9_core.models import OrderRequest, Session
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import NOW, SESSION, SYMBOLS, holding, order, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.loss_limit import LossLimit, LossLimitConfig

MONDAY = Session(
    "2026-11-23", datetime(2026, 11, 23, 14, 30, tzinfo=UTC), datetime(2026, 11, 23, 21, 0, tzinfo=UTC)
)
TUESDAY = Session(
    "2026-11-24", datetime(2026, 11, 24, 14, 30, tzinfo=UTC), datetime(2026, 11, 24, 21, 0, tzinfo=UTC)
)


def rule(**config: object) -> LossLimit:
    """Build the rule with some settings."""
    calendar = Calendar("XNYS", [SESSION, MONDAY, TUESDAY])
    return LossLimit("r8", LossLimitConfig.model_validate(config), calendar)


def losing(percent: float | str, *, second: float = 0, session: Session = SESSION, **more: Any) -> RiskView:
    """Show an account that has lost some percent of 100,000, some seconds into a session (11:00 on Friday)."""
    now = (NOW if session is SESSION else session.open) + timedelta(seconds=second)
    equity = Decimal(100_000) - Decimal(str(percent)) * 1_000
    return view(equity=equity, now=now, session=session, **more)


def held(percent: float, *, printed: float, second: float, lost: float = 0, foreign: bool = False) -> RiskView:
    """Show a position with an open loss, by a price of some second, beside what is lost for good already."""
    position = holding(unrealized_pnl=Decimal(str(-percent)) * 1_000, foreign=foreign)
    price = Mark("AAPL", Decimal(50), NOW + timedelta(seconds=printed))
    total = lost if foreign else lost + percent
    return losing(total, second=second, positions=[position], marks=[price])


def looks(
    judge: LossLimit, percent: float | str, count: int, *, start: float = 0, **more: Any
) -> list[Trip | None]:
    """Let the rule look some times, a second apart."""
    return [judge.trip(losing(percent, second=start + n, **more)) for n in range(count)]


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry a cent before the limit."""
        return order(), losing("2.99999")

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry at the limit."""
        return order(), losing(3)


class TestContractOfADrawdown(TestContract):
    """The same with the drawdown from the peak."""

    def make(self) -> RiskRule:
        """Build it with that limit alone."""
        return rule(day_percent=None, week_percent=None, drawdown_percent=3)


@given(percent=st.decimals("-5", "12", places=3))
def test_an_entry_passes_below_the_limit_alone(percent: Decimal) -> None:
    """An entry passes exactly while the day's loss is below 3 %; a gain is a loss of nothing."""
    verdict = rule().check(order(), losing(percent))  # type: ignore[arg-type]

    assert (verdict.outcome == "allow") == (percent < 3)
    if percent < 3:
        assert verdict.used == max(percent, Decimal(0))


def test_the_loss_is_measured_from_the_days_start() -> None:
    """Percent are of the equity that the day began with, whatever the week began with."""
    moment = view(equity=58_200, day_start_equity=Decimal(60_000), week_start_equity=Decimal(60_000))

    verdict = rule().check(order(), moment)

    assert (verdict.outcome, verdict.used, verdict.limit) == ("refuse", Decimal(3), Decimal(3))


def test_the_days_limit_kills_after_three_looks_and_tells_it_once() -> None:
    """The trip comes with the third look in a row that sees the loss, with kill set, and only once."""
    judge = rule()
    trips = looks(judge, 3.5, 6)

    assert trips[:2] == [None, None]
    assert trips[2] is not None
    assert (trips[2].kill, trips[2].used, trips[2].limit) == (True, Decimal("3.5"), Decimal(3))
    assert trips[3:] == [None, None, None]


def test_one_bad_print_trips_nothing() -> None:
    """A look that sees no loss begins the count anew."""
    judge = rule()
    trips = [*looks(judge, 50, 2), *looks(judge, 0, 1, start=2), *looks(judge, 50, 2, start=3)]

    assert trips == [None] * 5


def test_the_same_moment_counts_once() -> None:
    """Many looks within a second of market time are one look."""
    judge = rule()

    assert [judge.trip(losing(5, second=n / 10)) for n in range(10)] == [None] * 10
    assert looks(judge, 5, 2, start=1)[1] is not None


def test_stale_marks_prove_nothing() -> None:
    """While a mark is stale no look counts, and the rule still refuses an entry on the number it has."""
    judge = rule()

    assert looks(judge, 9, 10, marks_fresh=False) == [None] * 10
    assert judge.check(order(), losing(9, marks_fresh=False)).outcome == "refuse"


def test_one_bad_print_is_not_seen_three_times() -> None:
    """A loss that rests on a single price of a symbol trips nothing, however often it is looked at."""
    judge = rule()

    assert [judge.trip(held(5, printed=0, second=n)) for n in range(20)] == [None] * 20
    assert judge.check(order(), held(5, printed=0, second=20)).outcome == "refuse"
    assert judge.trip(held(5, printed=21, second=21)) is None
    assert judge.trip(held(5, printed=22, second=22)) is not None


def test_a_loss_that_is_realised_needs_no_new_price() -> None:
    """What is lost for good trips the limit after three looks, whatever the marks of the rest do."""
    judge = rule()
    moments = [held(1, printed=0, second=n, lost=4) for n in range(3)]

    assert [judge.trip(moment) is not None for moment in moments] == [False, False, True]


def test_the_marks_of_foreign_positions_prove_nothing() -> None:
    """Somebody else's position is no part of the loss, so its price need not change."""
    judge = rule()
    moments = [held(5, printed=0, second=n, lost=4, foreign=True) for n in range(3)]

    assert judge.trip(moments[0]) is None
    assert judge.trip(moments[1]) is None
    assert judge.trip(moments[2]) is not None


def test_another_symbols_prices_do_not_prove_a_bad_one() -> None:
    """While one symbol's price stands still, the prices of the others do not count in its place."""
    judge = rule()

    def moment(second: int) -> RiskView:
        seen = held(5, printed=0, second=second)
        other = holding("MSFT", 10, unrealized_pnl=Decimal(0))
        return replace(
            seen,
            positions={**seen.positions, "MSFT": other},
            marks={**seen.marks, "MSFT": Mark("MSFT", Decimal(100), seen.now)},
        )

    assert [judge.trip(moment(n)) for n in range(10)] == [None] * 10


def test_after_a_trip_there_are_no_entries_until_the_next_open() -> None:
    """A recovery does not lift the day's trip; the next session does."""
    judge = rule()
    looks(judge, 4, 3)

    refused = judge.check(order(), losing(0, second=60))
    usage = judge.usage(losing(0, second=60))
    assert refused.outcome == "refuse"
    assert "2026-11-23T14:30" in (refused.reason or "")
    assert (usage.tripped, usage.until) == (True, MONDAY.open)
    assert judge.check(order(), losing(0, session=MONDAY)).outcome == "allow"
    assert not judge.usage(losing(0, session=MONDAY)).tripped
    assert looks(judge, 4, 3, session=MONDAY)[2] is not None


def test_without_a_calendar_a_trip_outlasts_the_night() -> None:
    """Where nobody knows the next open, the day's trip ends 16 hours after the close."""
    judge = LossLimit("r8", LossLimitConfig())
    looks(judge, 4, 3)

    assert judge.usage(losing(4)).until == SESSION.close + timedelta(hours=16)


def test_the_weeks_limit_waits_for_a_person() -> None:
    """At the week's limit entries stop, no kill fires, and neither a new day nor a recovery lifts it."""
    judge = rule(day_percent=None)
    trips = looks(judge, 10, 3)

    assert trips[2] is not None
    assert not trips[2].kill
    assert judge.check(order(), losing(0, session=TUESDAY)).outcome == "refuse"
    usage = judge.usage(losing(0, session=TUESDAY))
    assert (usage.tripped, usage.until) == (True, None)


def test_both_limits_are_told() -> None:
    """Where day and week are reached at once, each is told, the kill first."""
    judge = rule()
    trips = [trip for trip in looks(judge, 12, 6) if trip is not None]

    assert [(trip.kill, trip.limit) for trip in trips] == [(True, Decimal(3)), (False, Decimal(10))]


def test_a_person_clears_it_and_losses_count_from_there() -> None:
    """After a clear, entries pass; a further loss of the limit's size trips again."""
    judge = rule(day_percent=None)
    looks(judge, 11, 3)
    judge.clear()

    assert judge.check(order(), losing(11, second=9)).outcome == "allow"
    assert looks(judge, 11, 5, start=10) == [None] * 5
    assert judge.check(order(), losing("20.9", second=20)).outcome == "allow"
    assert judge.check(order(), losing(21, second=20)).outcome == "refuse"
    assert looks(judge, 21, 3, start=30)[2] is not None


def test_what_was_cleared_shrinks_with_the_loss() -> None:
    """A cleared loss that is won back is not forgiven a second time."""
    judge = rule(day_percent=None)
    looks(judge, 11, 3)
    judge.clear()
    looks(judge, 11, 1, start=10)
    looks(judge, 2, 1, start=11)

    assert judge.check(order(), losing(12, second=12)).outcome == "refuse"


def test_what_was_cleared_ends_with_its_day() -> None:
    """A loss that a person cleared yesterday forgives nothing today, not even a gap at the open."""
    judge = rule()
    looks(judge, 5, 3)
    judge.clear()
    looks(judge, 5, 1, start=10)

    assert looks(judge, 4, 3, session=MONDAY)[2] is not None


def test_trips_survive_a_restart() -> None:
    """Another instance that takes the memory refuses as the first did, and tells a loss that stands once more."""
    judge, heir = rule(), rule()
    looks(judge, 12, 6)
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert heir.check(order(), losing(0)).outcome == "refuse"
    assert heir.usage(losing(0, session=MONDAY)).until is None
    again = [trip for trip in looks(heir, 12, 6, start=60) if trip is not None]
    assert [trip.kill for trip in again] == [True, False]


def test_a_clear_survives_a_restart() -> None:
    """What a person has cleared stays cleared."""
    judge, heir = rule(day_percent=None), rule(day_percent=None)
    looks(judge, 11, 3)
    judge.clear()
    looks(judge, 11, 1, start=10)
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert heir.check(order(), losing(12, second=20)).outcome == "allow"


@pytest.mark.parametrize(
    "unknown", [{"equity": None}, {"day_start_equity": None}, {"week_start_equity": Decimal(0)}]
)
def test_what_is_not_known_refuses(unknown: dict[str, Any]) -> None:
    """Without an equity, or the one that day or week began with, no entry passes."""
    assert rule().check(order(), view(**unknown)).outcome == "refuse"


def test_exits_work_at_any_loss() -> None:
    """The rule is about entries alone."""
    assert rule().check(order(side="sell", intent="reduce"), losing(50)).outcome == "allow"


def test_usage_is_the_loss_nearest_to_its_limit() -> None:
    """The published use is the one that is closest to its own limit, in percent."""
    day = rule().usage(losing(2))
    week = rule().usage(view(equity=92_000, day_start_equity=Decimal(92_000)))

    assert (day.used, day.limit) == (Decimal(2), Decimal(3))
    assert (week.used, week.limit) == (Decimal(8), Decimal(10))


@pytest.mark.parametrize("sign", [-3, 0])
def test_limits_are_positive_percent(sign: int) -> None:
    """A negative limit, or none at zero, is an error of the configuration: losses are positive numbers here."""
    with pytest.raises(ValidationError):
        rule(day_percent=sign)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nothing_is_entered_after_the_loss(data: st.DataObject) -> None:
    """Over a day of falling and rising prices, no entry passes at a loss of 3 % or after a trip of that day."""

    async def run() -> None:
        judge = rule(day_percent=3)
        desk = SmallDesk([judge])
        await desk.offer(order("AAPL", quantity=900))
        desk.fill("o1")
        tripped = False
        for _ in range(data.draw(st.integers(1, 15))):
            desk.tick({"AAPL": data.draw(st.floats(90, 105))})
            moment = desk.view()
            equity, start = moment.account.equity, moment.day_start_equity
            assert equity is not None
            assert start is not None
            tripped = tripped or bool(desk.gate.trips(moment))
            decision = await desk.offer(order(data.draw(st.sampled_from(SYMBOLS[1:]))))
            lost = (start - equity) / start * 100
            assert (decision.approved is None) == (lost >= 3 or tripped)

    asyncio.run(run())


def test_a_deposit_is_no_gain_and_a_withdrawal_no_loss() -> None:
    """Money that comes or goes moves no loss."""

    async def run() -> None:
        desk = SmallDesk([rule()])
        await desk.offer(order("AAPL", quantity=100))
        desk.fill("o1")
        desk.portfolio.transfer(Decimal(-50_000))
        desk.tick({})
        assert desk.gate.trips(desk.view()) == []
        assert (await desk.offer(order("MSFT"))).approved is not None
        desk.portfolio.transfer(Decimal(1_000_000))
        desk.portfolio.transfer(Decimal(-950_000))
        desk.tick({"AAPL": 81.0}, 2)
        assert (await desk.offer(order("NVDA"))).approved is not None
        desk.tick({"AAPL": 65.0}, 2)
        desk.tick({"AAPL": 65.0}, 2)
        assert (await desk.offer(order("TSLA"))).approved is None

    asyncio.run(run())

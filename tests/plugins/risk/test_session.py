"""R13, session."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock
from sigma9_core.config import SchedulerSettings, Settings
from sigma9_core.contracts import PluginContext, RiskRule, RiskView
from sigma9_core.errors import PluginError
from sigma9_core.models import OrderRequest, Session
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import SESSION, order, view
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.session import SessionConfig, SessionHours, build

NEXT = Session("2026-11-23", datetime(2026, 11, 23, 14, 30, tzinfo=UTC), datetime(2026, 11, 23, 21, 0, tzinfo=UTC))
NEW_YORK = ZoneInfo("America/New_York")


def rule(**config: object) -> SessionHours:
    """Build the rule with some settings."""
    return SessionHours("r13", SessionConfig.model_validate(config), NEW_YORK, Calendar("XNYS", [SESSION, NEXT]))


def at(minutes: float, **more: object) -> RiskView:
    """Show a moment some minutes after the open."""
    now = SESSION.open + timedelta(minutes=minutes)
    return view(now=now, session=SESSION if SESSION.open <= now < SESSION.close else None, **more)  # type: ignore[arg-type]


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry right at the open."""
        return order(), at(0)

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry while the market is closed."""
        return order(), at(-1)


@given(minutes=st.floats(-60, 450), first=st.integers(0, 60), last=st.integers(0, 60))
def test_entries_pass_between_the_margins_alone(minutes: float, first: int, last: int) -> None:
    """An entry passes exactly from `first_minutes` after the open to before `last_minutes` before the close."""
    moment = at(minutes)
    after, left = moment.now - SESSION.open, SESSION.close - moment.now
    inside = after >= timedelta(minutes=first) and left > timedelta(minutes=last)

    verdict = rule(first_minutes=first, last_minutes=last).check(order(), moment)

    assert (verdict.outcome == "allow") == inside


def test_the_margins_ends_belong_to_the_refusal_before_the_close_and_to_entries_after_the_open() -> None:
    """Exactly ten minutes after the open an entry passes; exactly five before the close none does."""
    margins = rule(first_minutes=10, last_minutes=5)

    assert margins.check(order(), at(10)).outcome == "allow"
    assert margins.check(order(), at(385)).outcome == "refuse"
    assert margins.usage(at(385)).tripped


def test_an_early_close_is_the_close() -> None:
    """The margin before the close belongs to the session's own close, not to four o'clock."""
    half = Session(
        "2026-11-27", datetime(2026, 11, 27, 14, 30, tzinfo=UTC), datetime(2026, 11, 27, 18, 0, tzinfo=UTC)
    )
    moment = view(now=half.close - timedelta(minutes=4), session=half)

    assert rule().check(order(), moment).outcome == "refuse"


def test_exits_work_at_any_time() -> None:
    """The rule is about entries alone."""
    assert rule().check(order(side="sell", intent="reduce"), at(-1)).outcome == "allow"


def test_orders_outside_hours_want_both_words() -> None:
    """An order outside of market hours needs the setting and its own mark."""
    marked = order(outside_rth=True)

    assert rule(allow_outside_hours=True).check(marked, at(-1)).outcome == "allow"
    assert rule(allow_outside_hours=True).check(order(), at(-1)).outcome == "refuse"
    assert rule().check(marked, at(-1)).outcome == "refuse"


@pytest.mark.parametrize(
    ("start", "end", "inside"),
    [("10:30", "11:00", False), ("11:00", "11:01", True), ("10:59", "11:30", True), ("22:00", "11:01", True)],
)
def test_blackouts_are_in_local_time_and_may_span_midnight(start: str, end: str, inside: bool) -> None:
    """At 11:00 in New York an entry is refused exactly in the blackouts that cover it, ends left out."""
    verdict = rule(blackouts=[{"start": start, "end": end}]).check(order(), view())

    assert (verdict.outcome == "refuse") == inside


@pytest.mark.parametrize(
    "bad", [{"start": "25:00", "end": "26:00"}, {"start": "10:00", "end": "10:00"}, {"start": "10:00"}]
)
def test_a_blackout_without_a_length_is_refused(bad: dict[str, str]) -> None:
    """A blackout needs two different times of day."""
    with pytest.raises(ValidationError):
        rule(blackouts=[bad])


def test_usage_says_until_when_entries_are_closed() -> None:
    """While entries are closed the rule shows as tripped, with the time at which it ends by itself."""
    late = rule(first_minutes=10)

    assert not late.usage(at(10)).tripped
    assert late.usage(at(3)).until == SESSION.open + timedelta(minutes=10)
    assert late.usage(at(386)).until == NEXT.open + timedelta(minutes=10)
    assert late.usage(at(600)).until == NEXT.open + timedelta(minutes=10)
    closed = rule(blackouts=[{"start": "09:00", "end": "12:00"}]).usage(at(60))
    assert (closed.tripped, closed.until) == (True, SESSION.open + timedelta(minutes=150))


@pytest.mark.parametrize(
    ("blackouts", "minutes", "opens"),
    [
        ([("09:00", "10:00")], 600, NEXT.open + timedelta(minutes=30)),  # it covers the next open
        (
            [("10:00", "10:30"), ("10:30", "11:00")],
            45,
            SESSION.open + timedelta(minutes=90),
        ),  # one after the other
        ([("15:30", "16:30")], 375, NEXT.open),  # nothing is left of the day
        ([("22:00", "09:45")], 600, NEXT.open + timedelta(minutes=15)),
        ([("00:00", "12:00"), ("12:00", "00:00")], 60, None),  # nothing is ever left
    ],
)
def test_entries_open_again_when_the_last_blackout_is_over(
    blackouts: list[tuple[str, str]], minutes: int, opens: datetime | None
) -> None:
    """The end that is told is a moment at which an entry passes, whatever covers the time before it."""
    judge = rule(blackouts=[{"start": start, "end": end} for start, end in blackouts])

    assert judge.usage(at(minutes)).tripped
    assert judge.usage(at(minutes)).until == opens


@settings(max_examples=60, deadline=None)
@given(
    minutes=st.integers(-600, 800),
    first=st.integers(0, 60),
    last=st.integers(0, 60),
    blackouts=st.lists(
        st.tuples(st.integers(0, 23), st.integers(0, 23)).filter(lambda b: b[0] != b[1]), max_size=3
    ),
)
def test_the_end_that_is_told_is_true(
    minutes: int, first: int, last: int, blackouts: list[tuple[int, int]]
) -> None:
    """At the moment that is told an entry passes, and a minute before it none does."""
    judge = rule(
        first_minutes=first,
        last_minutes=last,
        blackouts=[{"start": f"{start:02}:00", "end": f"{end:02}:00"} for start, end in blackouts],
    )
    usage = judge.usage(at(minutes))
    calendar = Calendar("XNYS", [SESSION, NEXT])

    if usage.tripped and usage.until is not None:
        for moment, passes in ((usage.until, True), (usage.until - timedelta(minutes=1), False)):
            if moment > at(minutes).now:
                seen = view(now=moment, session=calendar.at(moment))
                assert (judge.check(order(), seen).outcome == "allow") == passes


def test_a_closed_market_says_when_it_opens() -> None:
    """The refusal tells from when on entries are taken, and where the calendar is missing, that it is."""
    assert (
        rule().check(order(), at(-1)).reason == "the market is closed: entries from 2026-11-20T14:30:00.000000Z on"
    )
    ended = SessionHours("r13", SessionConfig(), NEW_YORK, Calendar("XNYS", [SESSION]))
    assert ended.check(order(), at(600)).reason == "the market is closed"
    missing = SessionHours("r13", SessionConfig(), NEW_YORK, Calendar("XNYS"))
    assert "calendar is not loaded" in (missing.check(order(), at(-1)).reason or "")


def test_a_clock_that_is_set_back_ends_no_blackout_early() -> None:
    """In the night when the clock shows an hour twice, the end that is told still lies ahead."""
    night = datetime(2026, 11, 1, 5, 50, tzinfo=UTC)  # 01:50 in New York, for the first time
    long = Session("2026-11-01", night - timedelta(hours=2), night + timedelta(hours=9))
    judge = SessionHours(
        "r13",
        SessionConfig.model_validate({"blackouts": [{"start": "01:00", "end": "01:55"}]}),
        NEW_YORK,
        Calendar("XNYS", [long]),
    )

    until = judge.usage(view(now=night, session=long)).until
    assert until is not None
    assert judge.check(order(), view(now=until, session=long)).outcome == "allow"


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.floats(0, 40), max_size=20))
def test_nothing_is_entered_out_of_hours(steps: list[float]) -> None:
    """Over a day of orders, everything that passed did so between open and the margin before the close."""

    async def run() -> None:
        desk = SmallDesk([rule()], now=SESSION.open - timedelta(minutes=30))
        for minutes in steps:
            desk.tick({}, minutes * 60)
            now = desk.clock.now()
            desk.session = SESSION if SESSION.open <= now < SESSION.close else None
            if (await desk.offer(order())).approved is not None:
                assert SESSION.open <= now < SESSION.close - timedelta(minutes=5)

    asyncio.run(run())


def test_an_unknown_time_zone_is_named() -> None:
    """A time zone that does not exist is an error that says which setting is wrong."""
    configured = Settings(scheduler=SchedulerSettings(timezone="Mars/Olympus"))
    context = PluginContext("r13", configured, SteppedClock("replay"), Calendar("XNYS"), None)

    with pytest.raises(PluginError, match=r"scheduler\.timezone.*Mars/Olympus"):
        build(SessionConfig(), context)


def test_it_is_built_with_the_schedulers_time_zone() -> None:
    """The blackouts follow `scheduler.timezone`."""
    context = PluginContext("r13", Settings(), SteppedClock("replay"), Calendar("XNYS"), None)
    built = build(SessionConfig.model_validate({"blackouts": [{"start": "11:00", "end": "11:30"}]}), context)

    assert built.check(order(), view()).outcome == "refuse"

"""R25, feed_health."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import FeedHealth, FeedState, RiskRule, RiskView, Trip
from sigma9_core.models import OrderRequest
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import mark, order, view
from sigma9_plugins.risk.feed_health import FeedHealthConfig, FeedWatch


def rule(**config: object) -> FeedWatch:
    """Build the rule with some settings."""
    return FeedWatch("r25", FeedHealthConfig.model_validate(config))


def feed(failures: int = 0, state: FeedState | None = None, **more: Any) -> RiskView:
    """Show a moment with a feed that has failed so often, and is down where it has."""
    return view(feed=FeedHealth(state or ("disconnected" if failures else "connected"), failures), **more)


def silent(seconds: float, **more: Any) -> RiskView:
    """Show a moment in which AAPL has had no price for some seconds."""
    return view(marks=[mark(age=seconds, **more)])


def looks(judge: FeedWatch, moment: RiskView, count: int = 3) -> list[Trip]:
    """Let the rule look some times at one moment; give what it tells."""
    return [trip for _ in range(count) if (trip := judge.trip(moment)) is not None]


class TestContract(RiskRuleContract):
    """The suite that every rule passes, with a silent symbol."""

    def make(self) -> RiskRule:
        """Build it with the defaults."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry on a price of half a minute ago."""
        return order(), silent(30)

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry on one a little older."""
        return order(), silent(30.001)


@given(age=st.floats(0, 1_000), bar=st.sampled_from((0, 5, 20, 60, 300)), limit=st.integers(1, 200))
def test_silence_is_measured_against_what_comes(age: float, bar: int, limit: int) -> None:
    """A price may be as old as the limit, or as a bar and a half, whichever is longer."""
    moment = silent(age, bar_seconds=bar)
    verdict = rule(max_silence_seconds=limit).check(order(), moment)
    old = (moment.now - moment.marks["AAPL"].ts).total_seconds()

    assert (verdict.outcome == "allow") == (old <= max(limit, 1.5 * bar))
    if verdict.outcome == "refuse":
        assert verdict.limit == Decimal(str(max(float(limit), 1.5 * bar)))


@pytest.mark.parametrize(("age", "passes"), [(90, True), (90.001, False)])
def test_minute_bars_may_be_ninety_seconds_old(age: float, passes: bool) -> None:
    """Of minute bars the last one is good for half a minute beyond the next."""
    assert (rule().check(order(), silent(age, bar_seconds=60)).outcome == "allow") == passes


def test_a_symbol_without_any_price_is_silent() -> None:
    """In session an entry needs a price that the feed has given, of the symbol itself."""
    moment = view(marks=[mark("MSFT")])

    assert "any price of AAPL" in (rule().check(order(), moment).reason or "")
    assert rule().check(order("MSFT"), moment).outcome == "allow"


def test_outside_of_a_session_silence_is_normal() -> None:
    """At night nothing trades: a price of the evening says nothing against the feed."""
    night = replace(silent(50_000), session=None)

    assert rule().check(order(), night).outcome == "allow"
    assert rule().check(order(), view(marks=[], session=None)).outcome == "allow"


def test_it_recovers_with_the_next_price() -> None:
    """Silence leaves nothing behind."""
    judge = rule()
    looks(judge, silent(600))

    assert judge.check(order(), silent(600)).outcome == "refuse"
    assert judge.check(order(), silent(0)).outcome == "allow"
    assert not judge.usage(silent(600)).tripped


@pytest.mark.parametrize("state", ["disconnected", "ended"])
def test_a_feed_that_is_not_connected_refuses(state: FeedState) -> None:
    """While the feed is down no entry passes, however fresh its last price, and outside of a session too."""
    assert rule().check(order(), feed(state=state)).outcome == "refuse"
    assert rule().check(order(), feed(state=state, session=None)).outcome == "refuse"
    assert rule().check(order(), feed(state="connected")).outcome == "allow"


def test_before_its_first_word_the_prices_decide() -> None:
    """Nothing is held against a feed that has not said how it stands."""
    assert rule().check(order(), view(feed=None)).outcome == "allow"


def test_the_third_failure_trips_once() -> None:
    """Two failures recover with the feed; the third is told once and stays."""
    judge = rule()

    assert looks(judge, feed(1)) + looks(judge, feed(2)) == []
    assert judge.check(order(), feed()).outcome == "allow"
    trips = looks(judge, feed(3)) + looks(judge, feed(4)) + looks(judge, feed(50))
    assert [(trip.used, trip.limit, trip.kill, trip.strategy) for trip in trips] == [
        (Decimal(3), Decimal(3), False, None)
    ]
    recovered = feed()
    verdict = judge.check(order(), recovered)
    assert (verdict.outcome, verdict.used, verdict.limit) == ("refuse", Decimal(50), Decimal(3))
    assert "a person clears r25" in (verdict.reason or "")
    usage = judge.usage(recovered)
    assert (usage.used, usage.limit, usage.tripped, usage.until) == (Decimal(50), Decimal(3), True, None)


def test_it_refuses_before_it_has_looked() -> None:
    """The third failure counts for an order at once."""
    assert "failed to connect 3 times" in (rule().check(order(), feed(3)).reason or "")


def test_out_of_session_nobody_is_asked_to_clear_what_has_not_tripped() -> None:
    """Failures at night refuse until data come, and say so; in session they say who must act, and how."""
    judge, night = rule(), feed(5, session=None)
    assert looks(judge, night) == []
    assert judge.check(order(), night).reason == (
        "the feed failed to connect 5 times: no entries until it has given data"
    )
    assert judge.check(order(), feed(session=None)).outcome == "allow"
    assert (judge.check(order(), feed(5)).reason or "").endswith(
        "until a person clears r25 (sigma9 risk clear r25)"
    )


def test_the_trip_names_what_went_wrong() -> None:
    """The reason tells the feed's own error."""
    trip = rule().trip(view(feed=FeedHealth("disconnected", 3, "TimeoutError: no answer")))

    assert trip is not None
    assert trip.reason == "the feed failed to connect 3 times (TimeoutError: no answer)"


def test_a_person_clears_it_and_failures_count_from_there() -> None:
    """After a clear the feed has three more tries, or three new ones once data have come."""
    judge = rule()
    looks(judge, feed(5))
    judge.clear()

    assert judge.check(order(), feed(5)).reason == "the feed is disconnected: no entries until it is connected"
    assert looks(judge, feed(5)) + looks(judge, feed(7)) == []
    assert len(looks(judge, feed(8))) == 1
    judge.clear()
    looks(judge, feed(8))
    looks(judge, feed())
    assert judge.check(order(), feed()).outcome == "allow"
    assert looks(judge, feed(2)) == []
    assert len(looks(judge, feed(3))) == 1


def test_a_trip_survives_a_restart() -> None:
    """After a restart with a sound feed, entries are refused until a person clears it; nothing is told again."""
    judge, heir = rule(), rule()
    looks(judge, feed(4))
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert looks(heir, feed()) == []
    assert heir.check(order(), feed()).outcome == "refuse"
    assert heir.usage(feed()).tripped
    heir.clear()
    assert heir.check(order(), feed()).outcome == "allow"
    assert heir.memory() == {}


def test_failures_may_be_left_to_the_feed() -> None:
    """Without a limit of failures the rule recovers by itself, always."""
    judge = rule(max_failures=None)

    assert looks(judge, feed(100)) == []
    assert judge.check(order(), feed(100)).outcome == "refuse"
    assert judge.check(order(), feed()).outcome == "allow"
    assert judge.usage(feed(2)).limit is None


def test_exits_work_at_any_time() -> None:
    """The rule is about entries alone."""
    judge = rule()
    looks(judge, feed(9))

    assert judge.check(order(side="sell", intent="reduce"), feed(9)).outcome == "allow"


@pytest.mark.parametrize("bad", [{"max_failures": 0}, {"max_silence_seconds": 0}])
def test_limits_are_above_zero(bad: dict[str, int]) -> None:
    """A limit that nothing can keep is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(("fail", "data", "silence", "look", "clear")),
            st.integers(1, 40),
        ),
        max_size=40,
    )
)
def test_no_entry_passes_without_sound_data(steps: list[tuple[str, int]]) -> None:
    """Over any row of failures, data, silence and clears, an entry passes only on a connected feed's fresh price,
    and never between a third failure in a row and a clear."""
    judge = rule()
    moment = feed()
    failed, tripped = 0, False
    for step, number in steps:
        health = moment.feed
        assert health is not None
        if step == "fail":
            moment = replace(moment, feed=FeedHealth("disconnected", health.failures + 1))
            judge.trip(moment)
            failed += 1
            tripped = tripped or failed >= 3
        elif step == "data":
            moment = replace(moment, feed=FeedHealth("connected"), marks={"AAPL": replace(mark(), ts=moment.now)})
            judge.trip(moment)
            failed = 0
        elif step == "silence":
            moment = replace(moment, now=moment.now + timedelta(seconds=number))
        elif step == "look":
            judge.trip(moment)
        else:
            judge.clear()
            judge.trip(moment)
            failed, tripped = 0, False
        fresh = (moment.now - moment.marks["AAPL"].ts).total_seconds() <= 30
        up = moment.feed is not None and moment.feed.state == "connected"
        assert (judge.check(order(), moment).outcome == "allow") == (up and fresh and not tripped)


def test_a_feed_that_fails_at_night_trips_nobody() -> None:
    """Gateways restart at night: only a feed that is still away in the session waits for a person."""
    night = rule()
    away = FeedHealth("disconnected", 9, "OSError: no route")
    assert night.trip(view(session=None, feed=FeedHealth("connected", 0))) is None
    assert night.trip(view(session=None, feed=away)) is None
    assert night.trip(view(session=None, feed=FeedHealth("connected", 0))) is None
    assert night.check(order(), view(feed=FeedHealth("connected", 0))).outcome == "allow"

    assert night.trip(view(feed=away)) is not None

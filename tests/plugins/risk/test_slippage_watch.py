"""R18, slippage_watch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.contracts import Execution, RiskRule, RiskView, Trip
from sigma9_core.models import OrderRequest, Side
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import NOW, execution, order, view
from sigma9_plugins.risk.slippage_watch import SlippageWatch, SlippageWatchConfig, slippage


def rule(**config: object) -> SlippageWatch:
    """Build the rule with a limit of 10 basis points, and other settings."""
    return SlippageWatch("r18", SlippageWatchConfig.model_validate({"max_basis_points": 10, **config}))


def fills(
    losses: Sequence[float], *, first: int = 0, strategy: str | None = "test", **more: Any
) -> list[Execution]:
    """Make buys that were expected at 100 and cost so many basis points more."""
    return [
        execution(
            price=Decimal(100) + Decimal(str(lost)) / 100, exec_id=f"x{first + n}", strategy=strategy, **more
        )
        for n, lost in enumerate(losses)
    ]


def seen(executions: Sequence[Execution], *, minutes: float = 0, **more: Any) -> RiskView:
    """Show a moment with some executions."""
    return view(executions=tuple(executions), now=NOW + timedelta(minutes=minutes), **more)


def looks(judge: SlippageWatch, moment: RiskView, count: int = 4) -> list[Trip]:
    """Let the rule look some times at one moment; give what it tells."""
    return [trip for _ in range(count) if (trip := judge.trip(moment)) is not None]


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it with a limit of 10 basis points."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry after fills at the limit."""
        return order(), seen(fills([10] * 5))

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry after fills a little beyond it."""
        return order(), seen(fills([10, 10, 10, 10, 10.01]))


@pytest.mark.parametrize(
    ("side", "price", "lost"),
    [("buy", "100.25", 25), ("buy", "99.75", -25), ("sell", "99.75", 25), ("sell", "100.25", -25)],
)
def test_what_is_worse_than_expected_is_positive(side: Side, price: str, lost: int) -> None:
    """A buy above and a sale below the expected price have lost; the other way round they have gained."""
    assert slippage(execution(side=side, price=price, expected=100)) == lost


@pytest.mark.parametrize(("price", "expected"), [("100", None), ("NaN", 100), (100, "NaN"), (100, 0), (0, 100)])
def test_what_is_not_known_is_not_counted(price: Any, expected: Any) -> None:
    """A fill without a price to compare it with says nothing."""
    assert slippage(execution(price=price, expected=expected)) is None
    judge = rule(least=1)
    judge.trip(seen([execution(price=price, expected=expected)]))
    assert judge.check(order(), seen([])).outcome == "allow"


def test_nonsense_stays_a_number() -> None:
    """A fill at an absurd price trips the rule; it does not break it."""
    judge = rule(least=1)

    assert judge.trip(seen([execution(price="1e300", expected="1e-300")])) is not None
    assert judge.check(order(), seen([])).outcome == "refuse"


def test_without_a_limit_it_is_off() -> None:
    """The default judges nothing, whatever the fills cost."""
    judge = SlippageWatch("r18", SlippageWatchConfig())
    moment = seen(fills([9_999] * 50))

    assert judge.check(order(), moment).outcome == "allow"
    assert judge.trip(moment) is None
    assert judge.usage(moment).limit is None


def test_too_few_fills_prove_nothing() -> None:
    """Four bad fills pass, the fifth trips."""
    judge = rule()

    assert judge.trip(seen(fills([500] * 4))) is None
    assert judge.check(order(), seen(fills([500] * 4))).outcome == "allow"
    assert judge.check(order(), seen(fills([500] * 5))).outcome == "refuse"
    assert judge.trip(seen(fills([500] * 5))) is not None


def test_only_the_newest_fills_count() -> None:
    """What lies before the last twenty is forgotten."""
    assert rule().trip(seen(fills([500] * 4 + [0] * 20))) is None
    assert rule().trip(seen(fills([500] * 4 + [0] * 19))) is not None


def test_a_fill_that_has_just_come_pushes_the_oldest_out() -> None:
    """Before the next look, too, the average is of the last twenty."""
    judge = rule()
    known = fills([200] + [0] * 19)
    judge.trip(seen(known))

    assert judge.check(order(), seen(known)).used == 10
    assert judge.check(order(), seen(known + fills([40], first=20))).used == 2


def test_an_execution_that_is_shown_twice_counts_once() -> None:
    """The same id is the same fill."""
    assert rule().trip(seen(fills([50] * 4) + fills([50] * 4))) is None


def test_exits_count_as_entries_do() -> None:
    """A stop that fills far below its price is slippage as well."""
    stops = [execution(side="sell", price=99, intent="reduce", exec_id=f"s{n}") for n in range(5)]
    trip = rule().trip(seen(stops))

    assert trip is not None
    assert (trip.used, trip.limit, trip.kill, trip.strategy) == (Decimal(100), Decimal(10), False, None)


def test_it_refuses_before_it_has_looked() -> None:
    """Fills between two looks count for an order already."""
    judge = rule()
    judge.trip(seen(fills([0] * 3)))
    moment = seen(fills([0] * 3 + [100] * 2))

    assert judge.check(order(), moment).used == 40
    assert judge.check(order(), moment).outcome == "refuse"
    assert judge.memory() == {**judge.memory(), "trips": []}


def test_one_series_trips_once() -> None:
    """Neither more looks nor the same fills after a clear trip again; further bad fills do."""
    judge = rule()
    bad = fills([50] * 6)

    assert len(looks(judge, seen(bad))) == 1
    judge.clear()
    assert looks(judge, seen(bad)) == []
    assert judge.check(order(strategy="test"), seen(bad)).outcome == "allow"
    assert looks(judge, seen(bad + fills([50] * 4, first=6))) == []
    assert len(looks(judge, seen(bad + fills([50] * 5, first=6)))) == 1


def test_a_trip_waits_for_a_person() -> None:
    """Without a cool-down neither time nor good fills lift it."""
    judge = rule()
    judge.trip(seen(fills([50] * 5)))
    later = seen(fills([50] * 5) + fills([-50] * 20, first=5), minutes=100_000)
    looks(judge, later)

    assert judge.check(order(), later).outcome == "refuse"
    assert "a person clears it" in (judge.check(order(), later).reason or "")
    assert (judge.usage(later).tripped, judge.usage(later).until) == (True, None)


def test_a_cool_down_ends_by_itself() -> None:
    """At the end of the cool-down entries pass, and the fills since then are judged."""
    judge = rule(cool_down_minutes=30)
    bad = fills([50] * 5)
    judge.trip(seen(bad))

    almost, after = seen(bad, minutes=29.99), seen(bad, minutes=30)
    assert judge.check(order(), almost).outcome == "refuse"
    assert judge.usage(almost).until == NOW + timedelta(minutes=30)
    assert judge.check(order(), after).outcome == "allow"
    assert looks(judge, after) == []
    assert not judge.usage(after).tripped
    assert len(looks(judge, seen(bad + fills([50] * 5, first=5), minutes=31))) == 1


def test_bad_exits_of_the_cool_down_stop_entries_again() -> None:
    """What fills badly while the trip stands is told once it ends."""
    judge = rule(cool_down_minutes=30)
    bad = fills([50] * 5)
    judge.trip(seen(bad))
    more = bad + fills([60] * 5, first=5, intent="reduce")

    assert looks(judge, seen(more, minutes=10)) == []
    assert [trip.used for trip in looks(judge, seen(more, minutes=30))] == [60]


def test_a_strategy_is_judged_by_its_own_fills() -> None:
    """One strategy's bad fills stop its entries, while the average of all is good enough for the others."""
    judge = rule()
    moment = seen(fills([40] * 5, strategy="bad") + fills([0] * 15, first=5, strategy="good"))

    assert judge.check(order(strategy="bad"), moment).outcome == "refuse"  # also before the first look
    trips = looks(judge, moment)
    assert [trip.used for trip in trips] == [40]
    assert "of bad" in trips[0].reason
    assert judge.check(order(strategy="bad"), moment).outcome == "refuse"
    assert judge.check(order(strategy="good"), moment).outcome == "allow"
    assert judge.check(order(), moment).outcome == "allow"
    assert judge.usage(moment).tripped


def test_everybodys_trip_is_told_once_for_all() -> None:
    """Where the fills of a strategy are all there are, one trip is told, not two."""
    judge = rule()

    assert len(looks(judge, seen(fills([50] * 5)))) == 1
    assert judge.check(order(strategy="another"), seen([])).outcome == "refuse"


def test_a_trip_survives_a_restart() -> None:
    """After a restart, which forgets the executions, entries are still refused, and the trip is told no more."""
    judge, heir = rule(), rule()
    bad = fills([50] * 5)
    judge.trip(seen(bad))
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert heir.check(order(), seen([])).outcome == "refuse"
    assert looks(heir, seen([])) == []
    assert looks(heir, seen(bad)) == []
    assert heir.usage(seen([])).used == 50
    heir.clear()
    assert heir.check(order(), seen(bad)).outcome == "allow"


def test_the_fills_so_far_survive_a_restart() -> None:
    """Four bad fills before a restart and one after it make five."""
    judge, heir = rule(), rule()
    judge.trip(seen(fills([50] * 4)))
    heir.remember(json.loads(json.dumps(judge.memory())))

    assert looks(heir, seen([])) == []
    assert len(looks(heir, seen(fills([50], first=4)))) == 1


def test_memory_stays_small() -> None:
    """Ten thousand fills are remembered by their newest ids alone."""
    judge = rule()
    for first in range(0, 10_000, 100):
        judge.trip(seen(fills([0] * 100, first=first)))

    assert len(json.dumps(judge.memory())) < 5_000


def test_exits_work_at_any_time() -> None:
    """The rule is about entries alone."""
    assert rule().check(order(side="sell", intent="reduce"), seen(fills([999] * 9))).outcome == "allow"


def test_usage_is_the_worst_average() -> None:
    """The published use is the average that is nearest to the limit, in basis points; none before five fills."""
    judge = rule()
    moment = seen(fills([8] * 5, strategy="a") + fills([-2] * 5, first=5, strategy="b"))
    assert judge.usage(moment).used is None
    judge.trip(moment)

    assert (judge.usage(moment).used, judge.usage(moment).limit) == (Decimal(8), Decimal(10))


@pytest.mark.parametrize(
    "bad", [{"least": 21}, {"least": 0}, {"fills": 0}, {"fills": 101}, {"max_basis_points": 0}]
)
def test_settings_that_never_trip_are_refused(bad: dict[str, int]) -> None:
    """A window that can't be filled, or a limit of nothing, is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_entry_passes_on_a_bad_average(data: st.DataObject) -> None:
    """Over any row of fills, looks and orders: an entry passes only while the fills that count are good enough."""
    judge = rule(fills=4, least=2)
    told: list[Execution] = []
    window: list[Decimal] = []
    tripped = False
    for number in range(data.draw(st.integers(1, 30))):
        step = data.draw(st.sampled_from(("fill", "fill", "look", "order", "clear")))
        moment = seen(told[-100:])
        if step == "fill":
            lost = data.draw(st.integers(-40, 60))
            told += fills([lost], first=number, strategy=None)
            window = [*window, Decimal(lost)][-4:]
        elif step == "clear":
            judge.trip(moment)
            judge.clear()
            window, tripped = [], False
        elif step == "look":
            bad = not tripped and len(window) >= 2 and sum(window) > 10 * len(window)
            assert (judge.trip(moment) is not None) == bad
            if bad:
                window, tripped = [], True
        else:
            bad = len(window) >= 2 and sum(window) > 10 * len(window)
            assert (judge.check(order(), moment).outcome == "refuse") == (tripped or bad)

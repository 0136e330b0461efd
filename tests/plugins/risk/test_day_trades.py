"""R21, day_trades."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.calendar import Calendar
from sigma9_core.contracts import RiskRule, RiskView, Turnover
from sigma9_core.models import ClosedTrade, OrderRequest, Session
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import (
    NOW,
    SESSION,
    SYMBOLS,
    closed,
    holding,
    mark,
    order,
    shown,
    view,
)
from sigma9_core.testing.small_desk import SmallDesk
from sigma9_plugins.risk.day_trades import DayTrades, DayTradesConfig


def session(day: str) -> Session:
    """Make a session of a date in New York's winter."""
    at = date.fromisoformat(day)
    return Session(
        day,
        datetime(at.year, at.month, at.day, 14, 30, tzinfo=UTC),
        datetime(at.year, at.month, at.day, 21, 0, tzinfo=UTC),
    )


DAYS = [
    session(f"2026-11-{day}") for day in (9, 10, 11, 12, 13, 16, 17, 18, 19, 20, 23, 24, 25, 27, 30) if day > 9
]
"""From the 10th on; the 26th is Thanksgiving. NOW is Friday the 20th."""


def rule(calendar: Calendar | None = None, **config: object) -> DayTrades:
    """Build the rule with some settings."""
    return DayTrades("r21", DayTradesConfig.model_validate(config), calendar or Calendar("XNYS", DAYS))


def margin(**config: object) -> DayTrades:
    """Build it for a margin account."""
    return rule(account_type="margin", **config)  # type: ignore[arg-type]


def cash(**config: object) -> DayTrades:
    """Build it for a cash account."""
    return rule(account_type="cash", **config)  # type: ignore[arg-type]


def on(day: int, *, opened: int | None = None, symbol: str = "AAPL", **more: Any) -> ClosedTrade:
    """Make a round trip that was closed at 11:00 of a day of November, and opened then or on another one."""
    at = NOW.replace(day=day)
    begun = at - timedelta(minutes=2) if opened is None else NOW.replace(day=opened)
    return closed(symbol, more.pop("result", 10), opened_at=begun, closed_at=at, **more)


def small(trades: Sequence[ClosedTrade] = (), *, equity: object = 24_999, **more: Any) -> RiskView:
    """Show a small account with some trades behind it."""
    return view(closed=tuple(trades), equity=equity, **more)  # type: ignore[arg-type]


class TestContract(RiskRuleContract):
    """The suite that every rule passes, for a small margin account."""

    def make(self) -> RiskRule:
        """Build it for a margin account."""
        return margin()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry after two day trades: the third is free."""
        return order(), small([on(16), on(18)])

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry after three."""
        return order(), small([on(16), on(18), on(20)])


class TestContractOfSettledCash(TestContract):
    """The same for a cash account."""

    def make(self) -> RiskRule:
        """Build it for a cash account."""
        return cash()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry for all that is settled."""
        return order(quantity=900), view(closed=(on(20, result="0.70"),), equity=Decimal("100_001.40"))

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry of one share more."""
        return order(quantity=901), self.allowed()[1]


def test_it_is_off_unless_the_account_is_named() -> None:
    """By default nothing is judged."""
    assert rule().check(order(quantity=10_000), small([on(20)] * 9, equity=1)).outcome == "allow"
    assert rule().usage(small()).limit is None


# --- pattern day traders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equity", "passes"), [(24_999, False), ("24999.99", False), (25_000, True), (None, False)]
)
def test_from_25000_on_day_trades_are_free(equity: object, passes: bool) -> None:
    """The limit holds below the smallest equity, and where the equity is not known."""
    moment = small([on(18), on(19), on(20)], equity=equity)

    assert (margin().check(order(), moment).outcome == "allow") == passes
    assert margin(pdt=False).check(order(), moment).outcome == "allow"


@pytest.mark.parametrize(("oldest", "passes"), [(16, False), (13, True)])
def test_five_sessions_count(oldest: int, passes: bool) -> None:
    """On Friday a day trade of Monday counts, and one of the Friday before does not."""
    moment = small([on(oldest), on(19), on(20)])

    assert (margin().check(order(), moment).outcome == "allow") == passes


def test_holidays_are_no_sessions() -> None:
    """On Monday after Thanksgiving the five sessions reach back to Monday a week before: Thursday was none."""
    now = NOW.replace(day=30)
    moment = small([on(23), on(24), on(25)], now=now, session=session("2026-11-30"), marks=[])

    assert margin().check(order(), moment).outcome == "refuse"
    weekdays = DayTrades("r21", DayTradesConfig(account_type="margin"))
    assert weekdays.check(order(), moment).outcome == "allow"  # it takes Thursday for one


@pytest.mark.parametrize("known", [[], DAYS[:3], DAYS[:6], DAYS[-3:]])
def test_where_the_calendar_can_not_say_weekdays_count(known: list[Session]) -> None:
    """A calendar that is empty, ends too early, or begins too late leaves the weekdays."""
    judge = rule(Calendar("XNYS", known), account_type="margin")

    assert judge.check(order(), small([on(16), on(19), on(20)])).outcome == "refuse"
    assert judge.check(order(), small([on(13), on(19), on(20)])).outcome == "allow"


def test_a_calendar_that_is_loaded_later_is_used() -> None:
    """The sessions may come while the rule runs."""
    calendar = Calendar("XNYS")
    judge = rule(calendar, account_type="margin")
    moment = small([on(23), on(24), on(25)], now=NOW.replace(day=30), session=session("2026-11-30"))
    assert judge.check(order(), moment).outcome == "allow"
    calendar.fill(DAYS)

    assert judge.check(order(), moment).outcome == "refuse"


def test_a_night_makes_it_no_day_trade() -> None:
    """A round trip over two days is free; before and after market hours belong to the day."""
    assert margin().check(order(), small([on(20, opened=19)] * 9)).outcome == "allow"
    early = closed(opened_at=datetime(2026, 11, 20, 9, 5, tzinfo=UTC), closed_at=NOW)
    late = closed(
        opened_at=datetime(2026, 11, 19, 15, 0, tzinfo=UTC), closed_at=datetime(2026, 11, 20, 0, 55, tzinfo=UTC)
    )
    assert margin().usage(small([early, late])).used == 2


@pytest.mark.parametrize(("count_open", "passes"), [(True, False), (False, True)])
def test_what_may_still_be_left_today_counts(count_open: bool, passes: bool) -> None:
    """A position of today and a working entry are day trades to be; one of yesterday is not."""
    judge = margin(count_open=count_open)
    opened = holding("MSFT", opened_at=NOW - timedelta(minutes=30))
    entering = shown(order("NVDA"))
    older = holding("TSLA", opened_at=NOW - timedelta(days=1))

    assert (
        judge.check(order(), small([on(20)], positions=[opened], working=[entering])).outcome == "allow"
    ) == passes
    assert judge.check(order(), small([on(20)], positions=[older], working=[entering])).outcome == "allow"
    assert judge.check(order(), small([on(20)], positions=[opened, older])).outcome == "allow"


def test_an_entry_that_is_being_filled_counts_once() -> None:
    """A partly filled entry and its position are one day trade to be."""
    moment = small(
        [on(20)],
        positions=[holding("NVDA", 4, opened_at=NOW)],
        working=[shown(order("NVDA"), filled=4)],
    )

    assert margin().usage(moment).used == 2
    assert margin().check(order(), moment).outcome == "allow"


def test_leaving_is_never_refused() -> None:
    """An order against the position passes, whatever it is called."""
    moment = small([on(20)] * 3, positions=[holding(opened_at=NOW)])

    assert margin().check(order(side="sell", quantity=100), moment).outcome == "allow"
    assert margin().check(order(side="sell", intent="reduce"), moment).outcome == "allow"
    assert margin().check(order(side="sell", quantity=101), moment).outcome == "refuse"


def test_the_sentence_has_the_numbers() -> None:
    """The refusal tells the day trade that it could be, the limit, and the equity."""
    verdict = margin().check(order(), small([on(20)] * 3))

    assert (verdict.used, verdict.limit) == (Decimal(4), Decimal(3))
    assert verdict.reason == (
        "leaving it today could be day trade 4 in 5 sessions, more than 3, and the equity is 24,999.00, below "
        "25,000.00"
    )


def test_usage_of_a_margin_account() -> None:
    """Done and possible day trades are published against the limit, which a large account does not have."""
    done = [on(18), on(20)]

    assert margin().usage(small(done)).used == 2
    assert margin().usage(small(done)).limit == 3
    assert margin().usage(small(done, equity=50_000)).limit is None


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_never_a_fourth_day_trade(data: st.DataObject) -> None:
    """Whatever fills and is left when, five sessions in a row never have more than three day trades."""

    async def run() -> None:
        desk = SmallDesk([margin()], cash=Decimal(20_000), session=DAYS[0], now=DAYS[0].open)
        for each in DAYS:
            desk.session = each
            desk.clock.advance(each.open)
            for _ in range(data.draw(st.integers(0, 6))):
                desk.tick({}, seconds=60)
                symbol = data.draw(st.sampled_from(SYMBOLS[:3]))
                held = desk.portfolio.quantity(symbol)
                step = data.draw(st.sampled_from(("enter", "fill", "leave")))
                if step == "enter":
                    await desk.offer(order(symbol, quantity=1))
                elif step == "fill" and desk.working:
                    desk.fill(data.draw(st.sampled_from(sorted(desk.working))))
                elif step == "leave" and held:
                    left = await desk.offer(order(symbol, "sell", held, "reduce"))
                    if left.approved is not None:
                        desk.fill(left.approved.order_id)
        traded = [trade.closed_at.date() for trade in desk.portfolio.trades if _same_day(trade)]
        for first in range(len(DAYS)):
            window = {date.fromisoformat(each.day) for each in DAYS[first : first + 5]}
            assert sum(day in window for day in traded) <= 3

    asyncio.run(run())


def _same_day(trade: ClosedTrade) -> bool:
    return trade.opened_at.date() == trade.closed_at.date()


def test_a_position_of_yesterday_that_grows_today_is_a_day_trade_when_it_is_left_today() -> None:
    """What is added today is bought today: leaving the position now, or having left it, is a day trade."""
    yesterday = holding(quantity=100, opened_at=NOW.replace(day=19))
    bought = Turnover("AAPL", "buy", NOW.replace(minute=0), Decimal(1000))
    sold = Turnover("AAPL", "sell", NOW.replace(minute=0), Decimal(1000))
    old = Turnover("AAPL", "buy", NOW.replace(day=19, minute=0), Decimal(1000))

    def used(view: RiskView) -> Decimal | None:
        return margin().usage(view).used

    assert used(small(positions=[yesterday], traded=(old,))) == 0
    assert used(small(positions=[yesterday], traded=(old, sold))) == 0
    assert used(small(positions=[yesterday], traded=(old, bought))) == 1
    assert used(small([on(20, opened=19)], traded=(old, sold))) == 0
    assert used(small([on(20, opened=19)], traded=(old, bought, sold))) == 1
    assert used(small([on(20, opened=19, quantity=Decimal(-100))], traded=(bought, sold))) == 1
    assert used(small([on(20, opened=19, quantity=Decimal(-100))], traded=(bought,))) == 0


# --- settled cash ---------------------------------------------------------------------------------------------


def test_todays_proceeds_are_not_there_yet() -> None:
    """What was sold today can't be spent today, and what was sold yesterday can."""
    today, before = [on(20, result="0.70")], [on(19, result="0.70")]  # sold for 10,001.40 each

    assert cash().usage(view(closed=tuple(today))).limit == Decimal("89998.60")
    assert cash().check(order(quantity=900), view(closed=tuple(today))).outcome == "refuse"
    assert cash().check(order(quantity=1_000), view(closed=tuple(before))).outcome == "allow"


def test_over_the_weekend_nothing_settles() -> None:
    """A sale of Friday settles on Monday, not on Saturday; with two days of settlement, on Tuesday."""
    sold = (on(20, result="0.70"),)
    saturday = view(closed=sold, now=NOW.replace(day=21), session=None)
    monday = view(closed=sold, now=NOW.replace(day=23), session=session("2026-11-23"))
    tuesday = view(closed=sold, now=NOW.replace(day=24), session=session("2026-11-24"))

    assert cash().usage(saturday).limit == Decimal("89998.60")
    assert cash().usage(monday).limit == 100_000
    assert cash(settlement_days=2).usage(monday).limit == Decimal("89998.60")
    assert cash(settlement_days=2).usage(tuesday).limit == 100_000


def test_working_entries_take_settled_cash() -> None:
    """What works is paid for first; the order has what is left, to the cent."""
    moment = view(working=[shown(order("MSFT", quantity=400, order_type="limit", limit_price=Decimal(100)))])

    assert cash().check(order(quantity=600), moment).outcome == "allow"
    verdict = cash().check(order(quantity=601), moment)
    assert (verdict.outcome, verdict.used, verdict.limit) == ("refuse", Decimal(100_100), Decimal(100_000))
    assert (cash().usage(moment).used, cash().usage(moment).limit) == (Decimal(40_000), Decimal(100_000))


def test_a_part_that_was_sold_counts_by_its_fill() -> None:
    """Sales of a position that is still open are unsettled as well; a symbol's sales count once."""
    hour = NOW.replace(minute=0)
    part = Turnover("AAPL", "sell", hour, Decimal(5000))
    older = Turnover("MSFT", "sell", hour - timedelta(days=1), Decimal(5000))
    whole = Turnover("TSLA", "sell", hour, Decimal(10_000))
    bought = Turnover("NVDA", "buy", hour, Decimal(7000))
    moment = view(traded=(older, part, whole, bought), closed=(on(20, symbol="TSLA", result="-0.70"),))

    assert cash().usage(moment).limit == 85_000


def test_a_short_sales_proceeds_are_no_cash() -> None:
    """What a short trade of today brought in is left out as well."""
    short = on(20, quantity=Decimal(-100))

    assert cash().usage(view(closed=(short,))).limit == 90_000


def test_what_is_not_known_refuses() -> None:
    """Without cash, or a price of the order or of a working entry, no entry passes."""
    elsewhere = view(marks=[mark("AAPL")], working=[shown(order("MSFT"))])

    assert cash().check(order(), view(equity=None)).outcome == "refuse"
    assert cash().check(order(), view(marks=[])).outcome == "refuse"
    assert "no price of MSFT" in (cash().check(order(), elsewhere).reason or "")


def test_selling_needs_no_cash() -> None:
    """What reduces a position passes without a cent."""
    moment = view(equity=0, positions=[holding()])

    assert cash().check(order(side="sell", quantity=100), moment).outcome == "allow"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_days_purchases_are_paid_with_the_mornings_cash(data: st.DataObject) -> None:
    """Whatever is sold meanwhile, a day's purchases never cost more than the cash that it began with."""

    async def run() -> None:
        desk = SmallDesk([cash()], cash=Decimal(10_000), session=DAYS[0], now=DAYS[0].open)
        for each in DAYS[:4]:
            desk.session = each
            desk.clock.advance(each.open)
            desk.working.clear()  # day orders
            began, spent = desk.portfolio.cash, Decimal(0)
            for _ in range(data.draw(st.integers(0, 10))):
                desk.tick({}, seconds=60)
                held = desk.portfolio.quantity("AAPL")
                if data.draw(st.booleans()):
                    await desk.offer(order(quantity=data.draw(st.integers(1, 90))))
                elif desk.working:
                    order_id = data.draw(st.sampled_from(sorted(desk.working)))
                    spent += desk.working[order_id].quantity * 100
                    desk.fill(order_id)
                elif held:
                    left = await desk.offer(order(side="sell", quantity=held, intent="reduce"))
                    assert left.approved is not None
                    desk.fill(left.approved.order_id)
                assert spent <= max(began, Decimal(0))  # commissions may have left a little less than nothing

    asyncio.run(run())


@pytest.mark.parametrize(
    "bad", [{"account_type": "ira"}, {"max_day_trades": -1}, {"business_days": 0}, {"settlement_days": 0}]
)
def test_settings_without_a_sense_are_refused(bad: dict[str, object]) -> None:
    """An account of an unknown type, or less than one day, is an error of the configuration."""
    with pytest.raises(ValidationError):
        rule(**bad)  # type: ignore[arg-type]


def test_the_present_session_is_the_last_of_the_five() -> None:
    """NOW lies in the session that the calendar has for it."""
    assert Calendar("XNYS", DAYS).at(NOW) == SESSION

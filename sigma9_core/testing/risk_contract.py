"""What every risk rule must keep to: inherit `RiskRuleContract`, give it your rule and two examples, run pytest.

class TestMyRule(RiskRuleContract):
    def make(self) -> RiskRule:
        return MyRule("my_rule", MyConfig())

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        return order(quantity=1), view()

    def refused(self) -> tuple[OrderRequest, RiskView]:
        return order(quantity=1_000_000), view()
"""

# ruff: noqa: S101 - asserts are what a suite is made of

from __future__ import annotations

import asyncio
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sigma9_core.clock import SteppedClock
from sigma9_core.contracts import (
    FeedHealth,
    FeedState,
    Instrument,
    Margin,
    Mark,
    RiskRule,
    RiskView,
    Submission,
    Trip,
)
from sigma9_core.models import Intent, OrderRequest, OrderView, RuleUsage, Side, Verdict
from sigma9_core.money.gate import CORE, OTHERS, TABLE, Decision, GuardedRule, RiskGate
from sigma9_core.money.pricing import usable
from sigma9_core.testing.risk_views import (
    NOW,
    SESSION,
    SYMBOLS,
    closed,
    execution,
    holding,
    mark,
    order,
    shown,
    view,
)
from sigma9_core.testing.small_desk import SmallDesk

EXAMPLES: Final = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)
"""Few examples each, since every rule runs every test; the executors differ because the suite is inherited."""

_sides: st.SearchStrategy[Side] = st.sampled_from(("buy", "sell"))
_symbols = st.sampled_from(SYMBOLS)
_quantities = st.integers(1, 20_000).map(Decimal)
_prices = st.decimals("0.01", "500", places=2)
_amounts = st.decimals("-100000", "100000", places=2)
_faults = st.none() | st.just("nobody knows it")
_FAILURES: Final = (
    ZeroDivisionError("broken on purpose"),
    SystemExit(1),
    None,
    True,
    Verdict(rule="somebody_else", code="X1", outcome="allow"),
)
"""What a broken rule raises or answers."""
_FEEDS: Final[tuple[FeedState, ...]] = ("connected", "disconnected", "ended")


@st.composite
def orders(draw: st.DrawFn, intents: tuple[Intent, ...] = ("entry",)) -> OrderRequest:
    """Draw orders of every type, with the prices that the type needs."""
    kind = draw(st.sampled_from(("market", "limit", "stop", "stop_limit", "trailing_stop")))
    prices: dict[str, Any] = {}
    if kind in ("limit", "stop_limit"):
        prices["limit_price"] = draw(_prices)
    if kind in ("stop", "stop_limit"):
        prices["stop_price"] = draw(_prices)
    if kind == "trailing_stop":
        prices[draw(st.sampled_from(("trail_amount", "trail_percent")))] = draw(_prices)
    return order(
        draw(_symbols), draw(_sides), draw(_quantities), draw(st.sampled_from(intents)), order_type=kind, **prices
    )


@st.composite
def marks(draw: st.DrawFn, symbol: str) -> Mark:
    """Draw marks, the unpleasant ones included: stale, halted, not a number."""
    price = draw(st.one_of(_prices, st.just(Decimal("NaN")), st.just(Decimal(0))))
    spread = draw(st.one_of(st.none(), st.decimals("0", "5", places=2)))
    quote = {} if spread is None or not usable(price) else {"bid": price, "ask": price + spread}
    return mark(symbol, price, age=draw(st.sampled_from((0.0, 30.0, 3600.0))), halted=draw(st.booleans()), **quote)


@st.composite
def instruments(draw: st.DrawFn, symbol: str) -> Instrument:
    """Draw contracts, the unknown and the strange ones included."""
    return Instrument(
        symbol,
        fault=draw(_faults),
        asset_class=draw(st.sampled_from(("stock", "etf", "option"))),
        tick=draw(st.none() | st.sampled_from((Decimal("0.01"), Decimal("0.05"), Decimal("0.0001")))),
        lot=draw(st.sampled_from((Decimal(1), Decimal(100)))),
        shortable=draw(st.none() | st.booleans()),
        short_restricted=draw(st.none() | st.booleans()),
    )


@st.composite
def views(draw: st.DrawFn) -> RiskView:
    """Draw moments of every kind: anything may be missing, stale, short, foreign, or beyond its limit."""
    amounts = st.one_of(st.none(), st.decimals("-1000", "1000000", places=2))
    held = draw(st.lists(_symbols, unique=True, max_size=4))
    quantities = st.integers(-5_000, 5_000).filter(bool)
    working: list[OrderView] = []
    intents: dict[str, Intent] = {}
    for number, request in enumerate(draw(st.lists(orders(("entry", "reduce", "kill")), max_size=5))):
        foreign = draw(st.booleans())
        working.append(shown(request, f"w{number}", foreign=foreign))
        if not foreign:
            intents[f"w{number}"] = request.intent
    recent = draw(st.lists(st.tuples(st.floats(0, 60), orders(("entry", "reduce"))), max_size=4))
    return view(
        positions=[holding(s, draw(quantities), foreign=draw(st.booleans())) for s in held],
        working=working,
        intents=intents,
        marks=[draw(marks(symbol)) for symbol in draw(st.lists(_symbols, unique=True))],
        equity=draw(amounts),
        mode=draw(st.sampled_from(("paper", "live", "simulated"))),
        account=draw(st.sampled_from((None, "SIM1"))),
        now=draw(st.sampled_from((NOW, SESSION.open, SESSION.close - timedelta(seconds=1)))),
        session=draw(st.sampled_from((SESSION, None))),
        day_start_equity=draw(amounts),
        week_start_equity=draw(amounts),
        peak_equity=draw(amounts),
        recent=tuple(
            Submission(NOW - timedelta(seconds=ago), request, f"s{n}")
            for n, (ago, request) in enumerate(sorted(recent, key=lambda each: -each[0]))
        ),
        entries_today=draw(st.integers(0, 100)),
        marks_fresh=draw(st.booleans()),
        changes=tuple(NOW - timedelta(seconds=ago) for ago in draw(st.lists(st.integers(0, 60), max_size=4))),
        closed=tuple(
            closed(draw(_symbols), result, ago=ago)
            for ago, result in draw(st.lists(st.tuples(st.integers(0, 600_000), st.integers(-99, 99)), max_size=4))
        ),
        executions=tuple(
            execution(draw(_symbols), draw(_sides), price, draw(st.none() | _prices), exec_id=f"x{n}")
            for n, price in enumerate(draw(st.lists(_prices, max_size=4)))
        ),
        instruments={symbol: draw(instruments(symbol)) for symbol in draw(st.lists(_symbols, unique=True))},
        margin=draw(st.none() | st.builds(Margin, _amounts, _amounts, fault=_faults)),
        feed=draw(st.none() | st.builds(FeedHealth, st.sampled_from(_FEEDS), st.integers(0, 5), _faults)),
        clock_offset=draw(st.none() | st.floats(-10, 10) | st.just(math.nan)),
    )


def decide(rule: RiskRule, request: OrderRequest, moment: RiskView) -> Decision:
    """Ask a gate that has this rule alone."""
    gate = RiskGate([GuardedRule(rule)], SteppedClock("replay", moment.now))
    return asyncio.run(gate.decide("order", request, moment))


class RiskRuleContract(ABC):
    """The promises of a risk rule, as tests."""

    @abstractmethod
    def make(self) -> RiskRule:
        """Build a new rule."""

    @abstractmethod
    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry that the rule lets pass, and the moment."""

    @abstractmethod
    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give an entry that the rule refuses, and the moment."""

    def test_it_allows_what_it_should(self) -> None:
        """An order within the limit passes, with a verdict signed by the rule."""
        rule = self.make()
        verdict = rule.check(*self.allowed())

        assert (verdict.rule, verdict.code, verdict.outcome) == (rule.name, rule.code, "allow"), verdict

    def test_it_refuses_with_one_clear_sentence(self) -> None:
        """An order beyond the limit is refused at the gate, which names the rule, its code and the reason."""
        rule = self.make()
        decision = decide(rule, *self.refused())

        assert decision.approved is None, "the gate let it pass"
        assert decision.refused is not None
        assert (decision.refused.rule, decision.refused.code) == (rule.name, rule.code)
        reason = decision.refused.reason or ""
        assert reason.strip() == reason, repr(reason)
        assert 10 <= len(reason) <= 200, reason
        assert "\n" not in reason, reason

    @EXAMPLES
    @given(request=orders(("entry", "reduce", "kill")), moment=views())
    def test_it_answers_at_any_moment(self, request: OrderRequest, moment: RiskView) -> None:
        """Whatever is missing, stale or no number, the rule answers, twice the same, and changes nothing."""
        rule = self.make()
        before = json.dumps(rule.memory())
        first, second = rule.check(request, moment), rule.check(request, moment)

        assert isinstance(first, Verdict)
        assert (first.rule, first.code) == (rule.name, rule.code)
        assert first == second, "check() has a side effect"
        assert json.dumps(rule.memory()) == before, "check() changed the memory"
        if first.outcome == "refuse":
            assert first.reason, "a refusal needs a reason"

    @EXAMPLES
    @given(moment=views())
    def test_it_publishes_its_use(self, moment: RiskView) -> None:
        """At any moment the rule tells its use against its limit, and a trip or none."""
        rule = self.make()
        usage, trip = rule.usage(moment), rule.trip(moment)

        assert isinstance(usage, RuleUsage)
        assert usage.rule == rule.name
        json.loads(usage.model_dump_json())
        assert trip is None or (isinstance(trip, Trip) and trip.rule == rule.name)

    @EXAMPLES
    @given(moment=views(), symbol=_symbols, quantity=st.integers(1, 8_000), share=st.integers(1, 100), side=_sides)
    def test_reducing_orders_pass(
        self, moment: RiskView, symbol: str, quantity: int, share: int, side: Side
    ) -> None:
        """A verified reducing order passes, unless the table says that this rule's code may refuse one."""
        rule = self.make()
        moment = view(
            positions=[holding(symbol, quantity if side == "sell" else -quantity)],
            marks=moment.marks.values(),
            equity=moment.account.equity,
            now=moment.now,
            session=moment.session,
            day_start_equity=moment.day_start_equity,
            week_start_equity=moment.week_start_equity,
            marks_fresh=moment.marks_fresh,
            entries_today=moment.entries_today,
        )
        part = max(Decimal(quantity * share // 100), Decimal(1))
        decision = decide(rule, order(symbol, side, part, "reduce"), moment)

        if TABLE.get(rule.code, OTHERS)["reduce"] != "refuse":
            assert decision.approved is not None, decision.refused
        assert all(verdict.outcome != "refuse" for verdict in decision.verdicts) == (decision.refused is None)

    def test_a_kill_passes(self) -> None:
        """A kill's own order is not even shown to the rule, unless the table says so."""
        rule = self.make()
        _, moment = self.refused()
        held = view(positions=[holding("AAPL", 100)], marks=moment.marks.values(), session=moment.session)
        decision = decide(rule, order("AAPL", "sell", 100, "kill"), held)

        if TABLE.get(rule.code, OTHERS)["kill"] == "skip":
            assert decision.approved is not None
            assert decision.verdicts == ()

    @EXAMPLES
    @given(request=orders(), moment=views(), fails=st.sampled_from(_FAILURES))
    def test_a_crash_refuses_an_entry(self, request: OrderRequest, moment: RiskView, fails: object) -> None:
        """A rule that raises, or answers nonsense, refuses every entry by name, whatever the moment."""
        rule = self.make()
        self._break(rule, "check", fails)
        decision = decide(rule, request, moment)

        assert decision.approved is None
        assert decision.refused is not None
        assert decision.refused.code == CORE or decision.refused.rule == rule.name

    @EXAMPLES
    @given(moment=views(), held=st.integers(-5_000, 5_000).filter(bool), fails=st.sampled_from(_FAILURES))
    def test_a_crash_only_warns_about_an_exit(self, moment: RiskView, held: int, fails: object) -> None:
        """A position can be left whatever the rule does: a crash is no reason to stay in it."""
        rule = self.make()
        self._break(rule, "check", fails)
        moment = replace(moment, positions={"AAPL": holding("AAPL", held)}, working=(), intents={})
        decision = decide(rule, order("AAPL", "sell" if held > 0 else "buy", abs(held), "reduce"), moment)

        assert decision.approved is not None
        assert [verdict.outcome for verdict in decision.verdicts] == ["warn"]

    @EXAMPLES
    @given(data=st.data())
    def test_exposure_never_grows_when_it_says_no(self, data: st.DataObject) -> None:
        """Over any row of orders, fills and prices, no order that the rule refuses adds to a position."""
        asyncio.run(self._trade(data))

    def test_its_memory_survives(self) -> None:
        """What the rule remembers is a JSON object, and another instance takes it back."""
        rule, heir = self.make(), self.make()
        for _ in range(10):
            rule.trip(self.refused()[1])
        memory = json.loads(json.dumps(rule.memory()))
        heir.remember(memory)

        assert json.loads(json.dumps(heir.memory())) == memory

    async def _trade(self, data: st.DataObject) -> None:
        rule = self.make()
        desk = SmallDesk([rule])
        for _ in range(data.draw(st.integers(1, 12))):
            step = data.draw(st.sampled_from(("offer", "offer", "offer", "fill", "cancel", "tick")))
            if step == "offer":
                request = data.draw(orders())
                verdict = rule.check(request, desk.view())
                before = desk.exposure(request.symbol)
                decision = await desk.offer(request)
                if verdict.outcome == "refuse":
                    assert decision.approved is None, "the gate passed what the rule refused"
                    assert desk.exposure(request.symbol) == before
            elif step == "tick":
                desk.tick({data.draw(_symbols): float(data.draw(_prices))})
            elif desk.working:
                order_id = data.draw(st.sampled_from(sorted(desk.working)))
                desk.fill(order_id) if step == "fill" else desk.cancel(order_id)

    @staticmethod
    def _break(rule: RiskRule, method: str, fails: object) -> None:
        def broken(*_args: object) -> Any:
            if isinstance(fails, BaseException):
                raise fails
            return fails

        made: Callable[..., Any] = broken
        setattr(rule, method, made)

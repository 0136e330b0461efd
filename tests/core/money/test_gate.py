"""The risk gate: the core's own checks, the table, the latch, and rules that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.clock import SteppedClock
from sigma9_core.contracts import RiskRule, RiskView, Trip
from sigma9_core.engine import SWITCH_INTERVAL
from sigma9_core.errors import CommandError
from sigma9_core.models import ApprovedOrder, Intent, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.gate import CORE, OTHERS, TABLE, Decision, GateClosed, GuardedRule, RiskGate
from sigma9_core.testing.risk_views import NOW, SYMBOLS, holding, order, sent, shown, view
from sigma9_core.testing.small_desk import SmallDesk

LEAVE = order("AAPL", "sell", 100, "reduce")
HELD = [holding("AAPL", 100)]


class Says(RiskRule):
    """A rule that says what it is told to, and remembers what it was asked."""

    code = "X1"

    def __init__(self, name: str = "says", answer: object = "allow", code: str = "X1") -> None:
        super().__init__(name)
        self.code = code  # type: ignore[misc]  # one class plays every rule
        self.answer = answer
        self.asked: list[OrderRequest] = []
        self.views: list[RiskView] = []
        self.known: dict[str, Any] = {}

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Answer."""
        self.asked.append(order)
        self.views.append(view)
        answer = self.answer() if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        if answer in ("allow", "refuse", "warn"):
            return Verdict(rule=self.name, code=self.code, outcome=answer, reason="told to")
        return answer  # type: ignore[return-value]

    def usage(self, view: RiskView) -> RuleUsage:
        """Count the questions."""
        return RuleUsage(rule=self.name, used=Decimal(len(self.asked)), limit=Decimal(9))

    def trip(self, view: RiskView) -> Trip | None:
        """Trip where told to."""
        return self.known.get("trip")

    def clear(self) -> None:
        """Forget."""
        self.known.clear()

    def memory(self) -> dict[str, Any]:
        """Give what is known."""
        return {key: value for key, value in self.known.items() if key != "trip"}

    def remember(self, memory: Any) -> None:
        """Take it back."""
        self.known.update(memory)


def gate(*rules: RiskRule | GuardedRule, budget: float = 0.25) -> RiskGate:
    """Build a gate of rules that run inline, unless they are guarded already."""
    guarded = [rule if isinstance(rule, GuardedRule) else GuardedRule(rule) for rule in rules]
    return RiskGate(guarded, SteppedClock("replay", NOW), budget)


async def decide(rules: RiskGate | RiskRule, request: OrderRequest, moment: RiskView | None = None) -> Decision:
    """Ask a gate about an order."""
    asked = rules if isinstance(rules, RiskGate) else gate(rules)
    return await asked.decide("new", request, moment if moment is not None else view())


def refusal(decision: Decision) -> str | None:
    """Name the rule that refused, None where the order was approved."""
    assert (decision.approved is None) == (decision.refused is not None)
    return None if decision.refused is None else decision.refused.rule


# --- the rules' say ---------------------------------------------------------------------------------------------


async def test_an_approved_order_carries_every_verdict_and_the_market_time() -> None:
    """What passes comes back as an ApprovedOrder with all verdicts, in the order of the configuration."""
    decision = await decide(gate(Says("a"), Says("b", "warn"), Says("c")), order())

    assert decision.approved is not None
    assert [verdict.rule for verdict in decision.approved.verdicts] == ["a", "b", "c"]
    assert decision.approved.verdicts == decision.verdicts
    assert (decision.approved.order_id, decision.approved.approved_at) == ("new", NOW)


async def test_every_rule_is_asked_even_after_a_refusal() -> None:
    """One refusal is enough, the first one is named, and the others are asked all the same."""
    decision = await decide(gate(Says("a"), Says("b", "refuse"), Says("c", "refuse"), Says("d")), order())

    assert refusal(decision) == "b"
    assert [verdict.outcome for verdict in decision.verdicts] == ["allow", "refuse", "refuse", "allow"]


def test_only_the_gate_makes_an_approved_order() -> None:
    """An order can't be sent to a broker around the gate."""
    with pytest.raises(TypeError, match="only the risk gate"):
        ApprovedOrder("x", order(), (), NOW)


def test_the_table_is_the_safety_page() -> None:
    """R1 to R25 all refuse entries; R1, R15, R17 and R23 alone refuse exits; a kill meets R15 alone."""
    assert list(TABLE) == [f"R{number}" for number in range(1, 26)]
    assert {row["entry"] for row in TABLE.values()} == {"refuse"}
    assert {code for code, row in TABLE.items() if row["reduce"] == "refuse"} == {"R1", "R15", "R17", "R23"}
    assert {row["reduce"] for row in TABLE.values()} == {"refuse", "warn"}
    assert {code for code, row in TABLE.items() if row["kill"] != "skip"} == {"R15"}
    assert OTHERS == {"entry": "refuse", "reduce": "warn", "kill": "skip"}


@pytest.mark.parametrize("code", [*TABLE, "X1"])
@pytest.mark.parametrize("intent", ["entry", "reduce", "kill"])
async def test_a_refusal_does_what_the_table_says(code: str, intent: Intent) -> None:
    """For each code and intent a refusal refuses, warns, or is never asked for."""
    rule = Says("rule", "refuse", code)
    request = order("MSFT") if intent == "entry" else LEAVE.model_copy(update={"intent": intent})
    treatment = TABLE.get(code, OTHERS)[intent]

    decision = await decide(rule, request, view(positions=HELD))

    assert (decision.approved is None) == (treatment == "refuse")
    outcomes = [verdict.outcome for verdict in decision.verdicts]
    assert outcomes == {"refuse": ["refuse"], "warn": ["warn"], "skip": []}[treatment]
    assert len(rule.asked) == (treatment != "skip")


async def _unawaited() -> None:
    """Stand for a rule whose author wrote `async def check`."""


@pytest.mark.parametrize(
    "nonsense",
    [
        ZeroDivisionError("oops"),
        SystemExit(3),
        asyncio.CancelledError(),
        RecursionError(),
        None,
        True,
        "refused",
        _unawaited,
        Verdict(rule="another", code="X1", outcome="allow"),
        Verdict(rule="says", code="R99", outcome="allow"),
    ],
)
@pytest.mark.parametrize("code", ["X1", "R1", "R15"])
async def test_whatever_is_no_verdict_of_its_own_refuses_an_entry_and_lets_an_exit_pass(
    nonsense: object, code: str
) -> None:
    """A rule that raises or answers anything but its own verdict refuses entries by name; exits get a warning."""
    rule = Says("says", nonsense, code)
    entry = await decide(rule, order())
    leave = await decide(rule, LEAVE, view(positions=HELD))
    kill = await decide(rule, LEAVE.model_copy(update={"intent": "kill"}), view(positions=HELD))

    assert refusal(entry) == "says"
    assert entry.refused is not None
    assert "says gave no verdict" in (entry.refused.reason or "")
    assert [verdict.outcome for verdict in leave.verdicts] == ["warn"]
    assert leave.approved is not None
    assert kill.approved is not None


async def test_a_rule_without_a_code_refuses_and_is_named() -> None:
    """A rule whose author forgot the code can still be named."""

    class Bare(RiskRule):
        def check(self, order: OrderRequest, view: RiskView) -> Verdict:
            return self.allow()

        def usage(self, view: RiskView) -> RuleUsage:
            return RuleUsage(rule=self.name)

    decision = await decide(Bare("bare"), order())

    assert refusal(decision) == "bare"


async def test_no_enabled_rule_refuses_entries_alone() -> None:
    """Without any rule, or with all switched off, no entry passes; an exit does."""
    for empty in (gate(), gate(GuardedRule(Says(), enabled=False))):
        assert refusal(await decide(empty, order())) == "risk_gate"
        assert refusal(await decide(empty, LEAVE, view(positions=HELD))) is None


def test_inline_rules_never_suspend() -> None:
    """Where every rule runs inline, a decision has no suspension point: nothing can come between."""
    deciding = gate(Says("a"), Says("b", "refuse")).decide("new", order(), view())

    with pytest.raises(StopIteration):
        deciding.send(None)


# --- quantity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", [Decimal(0), Decimal(-5), Decimal("NaN"), Decimal("Infinity")])
@pytest.mark.parametrize("intent", ["entry", "reduce", "kill"])
async def test_a_quantity_is_a_number_above_zero(quantity: Decimal, intent: Intent) -> None:
    """An order of nothing, or of no number, passes under no name."""
    wrong = order(side="sell", intent=intent).model_copy(update={"quantity": quantity})

    assert refusal(await decide(Says(), wrong, view(positions=HELD))) == "quantity"


@pytest.mark.parametrize("intent", ["reduce", "kill"])
@pytest.mark.parametrize(
    ("held", "side", "quantity", "passes"),
    [
        (100, "sell", 100, True),
        (100, "sell", 101, False),
        (100, "buy", 1, False),
        (-100, "buy", 100, True),
        (-100, "buy", 101, False),
        (-100, "sell", 1, False),
        (0, "sell", 1, False),
    ],
)
async def test_a_reducing_order_reduces(intent: Intent, held: int, side: str, quantity: int, passes: bool) -> None:
    """What claims to reduce is at most the position, on its closing side; else the core refuses it."""
    moment = view(positions=[holding("AAPL", held)] if held else [])

    decision = await decide(Says(), order(side=side, quantity=quantity, intent=intent), moment)

    assert refusal(decision) == (None if passes else "exit_quantity")
    if decision.refused is not None:
        assert decision.refused.code == CORE
        assert decision.verdicts == (decision.refused,)


async def test_working_exits_are_counted_and_a_group_once() -> None:
    """Two lone exits share the position; legs of one group share their place, and foreign orders take none."""
    lone = [shown(order(side="sell", quantity=60), "a")]
    intents: dict[str, Intent] = {"a": "reduce"}
    moment = view(positions=HELD, working=lone, intents=intents)
    assert refusal(await decide(Says(), order(side="sell", quantity=40, intent="reduce"), moment)) is None
    assert (
        refusal(await decide(Says(), order(side="sell", quantity=41, intent="reduce"), moment)) == "exit_quantity"
    )

    legs = [shown(order(side="sell", quantity=100, oca_group="g"), name) for name in ("stop", "trail")]
    intents = {"stop": "reduce", "trail": "reduce"}
    moment = view(positions=HELD, working=legs, intents=intents)
    third = order(side="sell", quantity=100, intent="reduce", oca_group="g")
    assert refusal(await decide(Says(), third, moment)) is None
    assert refusal(await decide(Says(), third.model_copy(update={"oca_group": "h"}), moment)) == "exit_quantity"

    foreign = view(positions=HELD, working=[shown(order(side="sell", quantity=100), "f", foreign=True)])
    assert refusal(await decide(Says(), LEAVE, foreign)) is None


async def test_only_the_largest_leg_of_a_group_counts() -> None:
    """A group of 70 and 30 leaves 30 of 100 free."""
    legs = [shown(order(side="sell", quantity=n, oca_group="g"), str(n)) for n in (30, 70)]
    moment = view(positions=HELD, working=legs, intents={"30": "reduce", "70": "reduce"})

    assert refusal(await decide(Says(), order(side="sell", quantity=30, intent="reduce"), moment)) is None
    assert (
        refusal(await decide(Says(), order(side="sell", quantity=31, intent="reduce"), moment)) == "exit_quantity"
    )


async def test_a_child_may_close_what_its_parent_has_yet_to_open() -> None:
    """The legs of an entry go out before there is a position, as large as the entry, and no larger."""
    entry = shown(order(quantity=100), "parent")
    child = order(side="sell", quantity=100, intent="reduce", parent_id="parent", oca_group="g")
    moment = view(working=[entry])

    assert refusal(await decide(Says(), child, moment)) is None
    assert refusal(await decide(Says(), child.model_copy(update={"quantity": Decimal(101)}), moment))
    assert (
        refusal(await decide(Says(), child.model_copy(update={"parent_id": "other"}), moment)) == "exit_quantity"
    )

    stop = shown(child, "stop")
    both = view(working=[entry, stop], intents={"stop": "reduce"})
    target = child.model_copy(update={"order_type": "limit", "limit_price": Decimal(110)})
    assert refusal(await decide(Says(), target, both)) is None
    assert refusal(await decide(Says(), target.model_copy(update={"oca_group": None}), both)) == "exit_quantity"


async def test_a_partly_filled_entry_leaves_its_childs_share_taken() -> None:
    """Of an entry that filled 40 of 100, the 40 belong to its waiting stop: no other exit takes them."""
    entry = shown(order(quantity=100), "parent", filled=40)
    stop = shown(order(side="sell", quantity=100, parent_id="parent"), "stop")
    moment = view(positions=[holding("AAPL", 40)], working=[entry, stop], intents={"stop": "reduce"})

    assert (
        refusal(await decide(Says(), order(side="sell", quantity=1, intent="reduce"), moment)) == "exit_quantity"
    )
    more = view(positions=[holding("AAPL", 90)], working=[entry, stop], intents={"stop": "reduce"})
    assert refusal(await decide(Says(), order(side="sell", quantity=50, intent="reduce"), more)) is None
    assert refusal(await decide(Says(), order(side="sell", quantity=51, intent="reduce"), more)) == "exit_quantity"


async def test_an_entry_that_only_reduces_is_fine() -> None:
    """The core does not mind an order that claims more risk than it brings."""
    assert refusal(await decide(Says(), order(side="sell", quantity=50), view(positions=HELD))) is None


async def test_a_foreign_position_is_not_entered() -> None:
    """A symbol that somebody else holds is theirs until it is adopted; an exit of it is a person's choice."""
    moment = view(positions=[holding("AAPL", 100, foreign=True)])

    decision = await decide(Says(), order(), moment)
    assert refusal(decision) == "foreign_position"
    assert "adopt" in ((decision.refused.reason if decision.refused else "") or "")
    assert refusal(await decide(Says(), LEAVE, moment)) is None


# --- changes ----------------------------------------------------------------------------------------------------


async def test_a_change_is_judged_without_the_order_itself() -> None:
    """The order that is being changed is no working order, no duplicate and no entry beside itself."""
    rule = Says()
    mine, other = shown(order(quantity=50), "mine"), shown(order("MSFT"), "other")
    moment = view(
        working=[mine, other], recent=(sent(order(), 1, "mine"), sent(order(), 1, "other")), entries_today=7
    )

    await gate(rule).decide("mine", order(quantity=60), moment)

    seen = rule.views[0]
    assert [o.order_id for o in seen.working] == ["other"]
    assert [s.order_id for s in seen.recent] == ["other"]
    assert seen.entries_today == 6


@pytest.mark.parametrize("told", [True, False])
async def test_a_change_counts_for_what_has_not_filled(told: bool) -> None:
    """A stop of 100 that filled 40 may stay at 100 while 60 are held, and not grow to 101."""
    rule = Says()
    stop = shown(LEAVE, "stop", filled=40)
    moment = view(positions=[holding("AAPL", 60)], working=[] if told else [stop], intents={"stop": "reduce"})
    filled = {"filled": Decimal(40)} if told else {}

    fits = await gate(rule).decide("stop", LEAVE, moment, **filled)
    larger = await gate(rule).decide("stop", LEAVE.model_copy(update={"quantity": Decimal(101)}), moment, **filled)
    done = await gate(rule).decide("stop", LEAVE.model_copy(update={"quantity": Decimal(40)}), moment, **filled)

    assert refusal(fits) is None
    assert fits.approved is not None
    assert fits.approved.request.quantity == 100
    assert rule.asked[0].quantity == 60
    assert (refusal(larger), refusal(done)) == ("exit_quantity", "quantity")


# --- the latch --------------------------------------------------------------------------------------------------


async def test_a_closed_gate_lets_a_kills_orders_pass_alone() -> None:
    """While everything is closed, entries and exits are refused, and a kill's own order passes."""
    closed = gate(Says())
    closed.close()
    moment = view(positions=HELD)

    assert refusal(await decide(closed, order("MSFT"), moment)) == "kill_switch"
    assert refusal(await decide(closed, LEAVE, moment)) == "kill_switch"
    assert refusal(await decide(closed, LEAVE.model_copy(update={"intent": "kill"}), moment)) is None
    closed.reopen()
    assert refusal(await decide(closed, LEAVE, moment)) is None


async def test_under_a_halt_verified_exits_pass() -> None:
    """A halt keeps entries out and lets exits in, as far as they truly reduce."""
    halted = gate(Says())
    halted.close(halt=True)
    moment = view(positions=HELD)

    assert refusal(await decide(halted, order("MSFT"), moment)) == "kill_switch"
    assert refusal(await decide(halted, LEAVE, moment)) is None
    too_much = LEAVE.model_copy(update={"quantity": Decimal(101)})
    assert refusal(await decide(halted, too_much, moment)) == "exit_quantity"


async def test_a_narrower_scope_blocks_only_itself() -> None:
    """A strategy's kill or a symbol's leaves every other order alone."""
    narrow = gate(Says())
    narrow.close(("strategy", "one"))
    narrow.close(("symbol", "TSLA"))

    assert refusal(await decide(narrow, order("MSFT", strategy="one"))) == "kill_switch"
    assert refusal(await decide(narrow, order("TSLA", strategy="two"))) == "kill_switch"
    assert refusal(await decide(narrow, order("MSFT", strategy="two"))) is None
    assert refusal(await decide(narrow, order("MSFT"))) is None
    narrow.close()
    narrow.reopen()
    assert refusal(await decide(narrow, order("MSFT", strategy="one"))) == "kill_switch"


async def test_a_barrier_closes_at_once_and_lifts_by_itself() -> None:
    """A barrier keeps out what its kill will cover; a halt's lets exits pass; lifted, all is as before."""
    subject = gate(Says("a"))
    for scope, halt, refused in (
        (None, False, {"entry", "exit"}),
        (None, True, {"entry"}),
        (("symbol", "MSFT"), False, {"entry"}),
        (("symbol", "TSLA"), False, set()),
    ):
        with await asyncio.to_thread(subject.bar, scope, halt=halt) as barrier:
            told = {
                name
                for name, request in (("entry", order("MSFT")), ("exit", LEAVE))
                if refusal(await decide(subject, request, view(positions=HELD))) == "kill_switch"
            }
            assert told == refused, scope
        barrier.lift()  # once more does no harm
        assert refusal(await decide(subject, order("MSFT"))) is None


async def test_a_reset_does_not_open_what_a_new_kill_has_barred() -> None:
    """A kill that is heard while another one is being reset stays in the way."""
    subject = gate(Says("a"))
    subject.close()
    with subject.bar():
        subject.reopen()
        assert refusal(await decide(subject, order("MSFT"))) == "kill_switch"


async def test_what_may_leave_gives_its_answer_and_its_errors_as_they_are() -> None:
    """Letting an order out changes nothing of the broker's call: its answer, its error, its cancellation."""
    subject = gate(Says("a"))

    async def fine() -> int:
        await asyncio.sleep(0)
        return 3

    async def wrong() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    assert await subject.let_out([order("MSFT")], fine()) == 3
    with pytest.raises(ValueError, match="no"):
        await subject.let_out([order("MSFT")], wrong())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await subject.let_out([order("MSFT")], asyncio.sleep(60))
    subject.close()
    with pytest.raises(GateClosed, match="the kill switch is on"):
        await subject.let_out([order("MSFT")], fine())
    assert await subject.let_out([LEAVE.model_copy(update={"intent": "kill"})], fine()) == 3


@pytest.fixture(name="_quick")
def _quick_switches() -> Iterator[None]:
    """Let threads take turns as in a server."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_quick")
async def test_nothing_leaves_once_a_barrier_stands() -> None:
    """Orders leave as fast as they can while other threads kill: none begins to leave once `bar` has returned."""
    subject = gate(Says("a"))
    left: list[int] = []
    wrong: list[int] = []
    ended = threading.Event()

    async def leave() -> None:
        left.append(time.perf_counter_ns())
        busy = time.perf_counter_ns() + 200_000
        while time.perf_counter_ns() < busy:  # it takes a while to hand over, and its end counts as well
            pass
        left.append(time.perf_counter_ns())
        await asyncio.sleep(0)

    def kills() -> None:
        for _ in range(200):
            with subject.bar():
                stands = time.perf_counter_ns()
                time.sleep(0.0005)
                lifts = time.perf_counter_ns()
                wrong.extend(at for at in left[-4:] if stands < at < lifts)
            time.sleep(0.0005)
        ended.set()

    thread = threading.Thread(target=kills)
    thread.start()
    while not ended.is_set():
        with contextlib.suppress(GateClosed):
            await subject.let_out([order("MSFT")], leave())
        await asyncio.sleep(0)
    thread.join()
    assert len(left) > 100
    assert not wrong


async def test_a_broker_that_blocks_does_not_hold_the_gate_open() -> None:
    """A barrier waits for what is being handed over, but not for a broker that never comes back."""
    subject = gate(Says("a"))

    async def blocks() -> None:
        time.sleep(0.5)  # noqa: ASYNC251 - a broker plugin that blocks its loop

    def bars() -> float:
        time.sleep(0.1)
        began = time.monotonic()
        subject.bar()
        return time.monotonic() - began

    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(bars)
        await subject.let_out([order("MSFT")], blocks())
        assert waited.result() < 0.3
    assert refusal(await decide(subject, order("MSFT"))) == "kill_switch"


async def test_a_pause_keeps_entries_out_alone() -> None:
    """While the engine does not run, exits go on."""
    paused = gate(Says())
    paused.pause("it is stopped")

    decision = await decide(paused, order("MSFT"), view(positions=HELD))
    assert refusal(decision) == "engine"
    assert "it is stopped" in (paused.closed_for(order("MSFT")) or "")
    assert refusal(await decide(paused, LEAVE, view(positions=HELD))) is None
    paused.pause(None)
    assert paused.closed_for(order("MSFT")) is None


async def test_an_unexplained_symbol_takes_a_kills_orders_alone() -> None:
    """A symbol that reconciliation can't explain is closed for entries and exits, with its own sentence."""
    unsure = gate(Says())
    unsure.hold({"AAPL": "the broker has another number"})
    moment = view(positions=HELD)

    for request in (order(), LEAVE):
        decision = await decide(unsure, request, moment)
        assert decision.refused is not None
        assert (decision.refused.rule, decision.refused.reason) == (
            "reconciliation",
            "the broker has another number",
        )
    assert refusal(await decide(unsure, LEAVE.model_copy(update={"intent": "kill"}), moment)) is None
    assert refusal(await decide(unsure, order("MSFT"), moment)) is None
    unsure.hold({})
    assert refusal(await decide(unsure, order(), moment)) is None


scopes = st.one_of(
    st.none(),
    st.tuples(st.just("strategy"), st.sampled_from(("one", "two"))),
    st.tuples(st.just("symbol"), st.sampled_from(SYMBOLS)),
)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(("close", "reopen", "halt", "pause", "order")), scopes), max_size=30)
)
def test_no_entry_passes_while_the_gate_is_closed_for_it(steps: list[tuple[str, Any]]) -> None:
    """Whatever was closed and reopened before, an entry passes exactly when nothing that covers it is closed."""

    async def run() -> None:
        subject = gate(Says())
        closed: dict[Any, bool] = {}
        paused = False
        for step, scope in steps:
            if step == "close":
                subject.close(scope)
                closed[scope] = False
            elif step == "reopen":
                subject.reopen(scope)
                closed.pop(scope, None)
            elif step == "halt":
                subject.close(scope, halt=True)
                closed[scope] = True
            elif step == "pause":
                paused = not paused
                subject.pause("paused" if paused else None)
            for symbol in SYMBOLS[:2]:
                for strategy in ("one", "two", None):
                    covering = {None, ("symbol", symbol), ("strategy", strategy)} & set(closed)
                    entry = order(symbol, strategy=strategy)
                    leave = order(symbol, "sell", 5, "reduce", strategy=strategy)
                    moment = view(positions=[holding(symbol, 5)])
                    passed = (await decide(subject, entry, moment)).approved is not None
                    assert passed == (not covering and not paused)
                    assert passed == (subject.closed_for(entry) is None)
                    left = (await decide(subject, leave, moment)).approved is not None
                    assert left == all(closed[each] for each in covering)

    asyncio.run(run())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_row_of_exits_flips_a_position(data: st.DataObject) -> None:
    """However entries, their legs, lone exits and groups are mixed and fill, no exit trades through zero."""

    async def run() -> None:
        desk = SmallDesk([Says()], prices={"AAPL": 100.0})
        for _ in range(data.draw(st.integers(2, 25))):
            step = data.draw(st.sampled_from(("enter", "exit", "exit", "fill", "fill", "fill", "cancel")))
            quantity = Decimal(data.draw(st.integers(1, 100)))
            group = data.draw(st.sampled_from((None, "g", "h")))
            if step == "enter":
                decision = await desk.offer(order(quantity=quantity))
                assert decision.approved is not None
                legs = data.draw(st.integers(0, 2))
                for _ in range(legs):
                    await desk.offer(
                        order(
                            side="sell", quantity=quantity, intent="reduce", oca_group=f"oca-{len(desk.requests)}"
                        ).model_copy(update={"parent_id": decision.approved.order_id})
                    )
            elif step == "exit":
                await desk.offer(order(side="sell", quantity=quantity, intent="reduce", oca_group=group))
            elif desk.working:
                order_id = data.draw(st.sampled_from(sorted(desk.working)))
                if step == "cancel":
                    desk.cancel(order_id)
                    continue
                _fill(desk, order_id, quantity)
            assert desk.portfolio.quantity("AAPL") >= 0

    asyncio.run(run())


def _fill(desk: SmallDesk, order_id: str, quantity: Decimal) -> None:
    """Fill some of an order; a leg whose parent still works trades what the parent has opened, at most."""
    working = desk.working[order_id]
    parent = desk.working.get(working.parent_id or "")
    if parent is not None:
        legs = [o for o in desk.working.values() if o.parent_id == parent.order_id]
        quantity = min(quantity, parent.filled_quantity - sum((o.filled_quantity for o in legs), Decimal(0)))
    if quantity > 0:
        desk.fill(order_id, quantity)


# --- rules of unknown speed -------------------------------------------------------------------------------------


class Slow(Says):
    """A rule that holds its thread until it is let go."""

    def __init__(self, name: str = "slow") -> None:
        super().__init__(name)
        self.hold = threading.Event()
        self.let_go = threading.Event()
        self.entered = threading.Event()
        self.inside = 0
        self.most = 0

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Answer at once, or wait."""
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.set()
        if self.hold.is_set():
            self.let_go.wait(10)
        self.inside -= 1
        return self.allow()


@pytest.fixture(name="slow")
def _slow() -> Iterator[Slow]:
    rule = Slow()
    yield rule
    rule.let_go.set()


def outside(rule: RiskRule) -> GuardedRule:
    """Guard a rule as one of unknown speed."""
    return GuardedRule(rule, inline=False)


async def test_an_outside_rule_is_asked_off_the_loop() -> None:
    """A third-party rule runs on another thread, and its verdict counts like any other's."""
    threads: list[str] = []

    def answer() -> str:
        threads.append(threading.current_thread().name)
        return "refuse"

    mixed = gate(Says("a"), outside(Says("b", answer)), Says("c"), outside(Says("d")))
    decision = await decide(mixed, order())

    assert [verdict.rule for verdict in decision.verdicts] == ["a", "b", "c", "d"]
    assert refusal(decision) == "b"
    assert threads[0] != threading.current_thread().name
    await mixed.stop()


async def test_a_late_rule_refuses_an_entry_within_the_budget(slow: Slow) -> None:
    """A rule that hangs counts as failing once the budget is used up, and the order does not wait any longer."""
    slow.hold.set()
    subject = gate(outside(slow), outside(Says("other")), budget=0.1)
    began = time.monotonic()
    decision = await decide(subject, order())
    took = time.monotonic() - began

    assert refusal(decision) == "slow"
    assert "did not answer within 0.1 s" in (decision.verdicts[0].reason or "")
    assert "slow holds the thread" in (decision.verdicts[1].reason or "")
    assert 0.09 <= took < 2
    await subject.stop()


async def test_a_stuck_rule_fails_at_once_and_the_others_go_on(slow: Slow) -> None:
    """While its call has not come back a stuck rule is not asked again; other rules answer on a new thread."""
    slow.hold.set()
    other = Says("other")
    subject = gate(outside(slow), outside(other), budget=0.1)
    await decide(subject, order())
    began = time.monotonic()
    decisions = [await decide(subject, order()) for _ in range(5)]
    took = time.monotonic() - began

    assert [refusal(decision) for decision in decisions] == ["slow"] * 5
    assert all("has not come back" in (decision.verdicts[0].reason or "") for decision in decisions)
    assert all(decision.verdicts[1].outcome == "allow" for decision in decisions)
    assert took < 0.4, "each waited for the budget"
    assert slow.most == 1
    await subject.stop()


async def test_a_rule_that_comes_back_is_asked_again(slow: Slow) -> None:
    """Once the stuck call has returned, the rule answers as before, and never from two threads at once."""
    slow.hold.set()
    subject = gate(outside(slow), budget=0.05)
    assert refusal(await decide(subject, order())) == "slow"
    assert subject.rules[0].error is not None
    slow.hold.clear()
    slow.let_go.set()
    await eventually(lambda: slow.inside == 0)

    await eventually_passes(subject)
    assert subject.rules[0].error is None
    assert slow.most == 1
    await subject.stop()


async def test_exits_and_kills_do_not_depend_on_a_stuck_rule(slow: Slow) -> None:
    """An exit gets a warning instead of the verdict; a kill's order does not even wait for it."""
    slow.hold.set()
    subject = gate(outside(slow), budget=0.4)
    moment = view(positions=HELD)
    began = time.monotonic()
    kill = await decide(subject, LEAVE.model_copy(update={"intent": "kill"}), moment)
    took = time.monotonic() - began
    leave = await decide(subject, LEAVE, moment)

    assert kill.approved is not None
    assert took < 0.3
    assert leave.approved is not None
    assert [verdict.outcome for verdict in leave.verdicts] == ["warn"]
    await subject.stop()


async def test_no_outside_rule_sees_a_kills_order_whatever_its_code() -> None:
    """A third-party rule that gives itself the account guard's code still can't hold up a kill."""
    rule = Says("impostor", "refuse", "R15")
    subject = gate(outside(rule))
    decision = await decide(subject, LEAVE.model_copy(update={"intent": "kill"}), view(positions=HELD))

    assert decision.approved is not None
    assert rule.asked == []
    await subject.stop()


@pytest.mark.parametrize("intent", ["entry", "reduce"])
async def test_a_kill_that_comes_while_a_rule_thinks_still_counts(slow: Slow, intent: Intent) -> None:
    """An order whose rules were being asked when the gate closed is refused."""
    slow.hold.set()
    subject = gate(outside(slow), budget=5)
    request = order("MSFT") if intent == "entry" else LEAVE
    deciding = asyncio.create_task(decide(subject, request, view(positions=HELD)))
    await eventually(slow.entered.is_set)
    subject.close()
    slow.let_go.set()

    assert refusal(await deciding) == "kill_switch"
    await subject.stop()


async def test_a_cancelled_decision_leaves_the_gate_usable(slow: Slow) -> None:
    """Whoever gives up on a decision leaves no rule marked for good."""
    slow.hold.set()
    subject = gate(outside(slow), budget=5)
    deciding = asyncio.create_task(decide(subject, order()))
    await eventually(slow.entered.is_set)
    deciding.cancel()
    await asyncio.gather(deciding, return_exceptions=True)
    slow.hold.clear()
    slow.let_go.set()

    await eventually_passes(subject)
    await subject.stop()


async def test_decisions_at_the_same_time_share_the_thread() -> None:
    """Many decisions under way all get the rule's answer, and the rule is never asked from two threads at once."""
    rule = Slow("quick")
    subject = gate(outside(rule), budget=5)

    decisions = await asyncio.gather(*(decide(subject, order()) for _ in range(50)))

    assert all(decision.approved is not None for decision in decisions)
    assert rule.most == 1
    await subject.stop()


# --- looks, memory, settings ------------------------------------------------------------------------------------

TRIP = Trip("says", "too much", True, Decimal(4), Decimal(3))


def test_trips_and_usage_are_asked_safely() -> None:
    """A rule that fails when looked at is named as failing, and the others are still asked."""
    broken, nonsense, good = Says("broken"), Says("nonsense"), Says("says")
    broken.trip = broken.usage = lambda view: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    nonsense.trip = nonsense.usage = lambda view: "hello"  # type: ignore[assignment,method-assign,return-value]
    good.known["trip"] = TRIP
    subject = gate(broken, nonsense, good)

    assert subject.trips(view()) == [TRIP]
    assert [usage.rule for usage in subject.usage(view())] == ["broken", "nonsense", "says"]
    errors = {guard.name: guard.error for guard in subject.rules}
    assert "ZeroDivisionError" in (errors["broken"] or "")
    assert errors["nonsense"] is not None
    assert errors["says"] is None


def test_a_rule_that_is_off_trips_nothing_and_says_so() -> None:
    """A disabled rule is neither asked for trips nor about orders; its usage says that it is off."""
    rule = Says()
    rule.known["trip"] = TRIP
    subject = gate(rule)
    subject.enable("says", False)

    assert subject.trips(view()) == []
    assert [usage.enabled for usage in subject.usage(view())] == [False]
    subject.enable("says", True)
    assert subject.trips(view()) == [TRIP]


async def test_an_outside_rule_is_looked_at_in_the_background() -> None:
    """Its trip and usage come with the call after the look that found them, each trip once."""
    rule = Says()
    rule.known.update(trip=TRIP, seen=1)
    subject = gate(outside(rule))

    assert subject.trips(view()) == []
    await subject.settle()
    rule.known.pop("trip")
    assert subject.trips(view()) == [TRIP]
    await subject.settle()
    assert subject.trips(view()) == []
    assert subject.usage(view())[0].limit == 9
    assert subject.memory() == {"says": {"seen": 1}}
    await subject.stop()


async def test_a_look_that_hangs_holds_up_nothing(slow: Slow) -> None:
    """While a background look hangs, decisions on other rules go on, and settling is over within the budget."""
    slow.trip = lambda view: slow.let_go.wait(10)  # type: ignore[assignment,method-assign,return-value]
    subject = gate(outside(slow), Says("fine"), budget=0.1)
    subject.trips(view())
    await subject.settle()

    assert refusal(await decide(subject, order())) == "slow"
    subject.enable("slow", False)
    assert refusal(await decide(subject, order())) is None
    await subject.stop()


def test_memory_survives_and_absent_rules_keep_theirs() -> None:
    """What the rules remember goes to their successors; a rule that is not configured now loses nothing."""
    first, second = Says("a"), Says("b")
    subject = gate(first, second)
    subject.remember({"a": {"loss": 3}, "gone": {"tripped": True}})

    assert first.known == {"loss": 3}
    assert subject.memory() == {"a": {"loss": 3}, "gone": {"tripped": True}}
    subject.clear("a")
    assert subject.memory() == {"gone": {"tripped": True}}


def test_a_broken_memory_breaks_nothing() -> None:
    """A rule that can't take its memory back, or give it, is named as failing."""
    rule = Says()
    rule.remember = lambda memory: 1 / 0  # type: ignore[assignment,method-assign]
    rule.memory = lambda: "text"  # type: ignore[assignment,method-assign,return-value]
    subject = gate(rule)
    subject.remember({"says": {}})

    assert "ZeroDivisionError" in (subject.rules[0].error or "")
    assert subject.memory() == {}


async def test_new_settings_keep_the_memory() -> None:
    """A rule that is replaced hands on what it knew, and the new one is asked from then on."""
    old, new = Says("a"), Says("a", "refuse")
    old.known["tripped"] = True
    subject = gate(old)
    subject.replace("a", new)

    assert new.known == {"tripped": True}
    assert refusal(await decide(subject, order())) == "a"
    assert old.asked == []


async def test_an_outside_rule_keeps_its_memory_too() -> None:
    """Memory and clears reach a rule of unknown speed in order, before its next verdict."""
    rule, heir = Says(), Says()
    rule.answer = lambda: "refuse" if rule.known else "allow"
    subject = gate(outside(rule), budget=10.0)  # what is asked is the order of things, not how fast they are
    try:
        subject.remember({"says": {"loss": 3}})

        assert subject.memory() == {"says": {"loss": 3}}
        assert refusal(await decide(subject, order())) == "says"
        assert rule.known == {"loss": 3}
        subject.replace("says", heir)
        await subject.settle()
        assert heir.known == {"loss": 3}
        subject.clear("says")
        await subject.settle()
        assert heir.known == {}
    finally:
        await subject.stop()


def test_an_unknown_rule_is_answered_with_the_names() -> None:
    """A name that does not exist is `not_found`, and the answer lists those that do."""
    subject = gate(Says("a"), Says("b"))
    calls: list[Callable[[], object]] = [
        lambda: subject.clear("c"),
        lambda: subject.enable("c", True),
        lambda: subject.replace("c", Says("c")),
    ]
    for call in calls:
        with pytest.raises(CommandError, match="'c'; there are: a, b") as caught:
            call()
        assert caught.value.code == "not_found"


def test_a_verdict_on_a_moment_does_not_see_the_next() -> None:
    """A view does not change any more once a rule has it, so that a rule on another thread sees one moment."""
    desk = SmallDesk([Says()])
    before = desk.view()
    desk.tick({"AAPL": 120.0}, 60)

    assert before.marks["AAPL"].price == 100
    assert before.now < desk.view().now
    assert desk.view().marks["AAPL"].price == 120
    with pytest.raises(TypeError):
        before.positions["AAPL"] = holding()  # type: ignore[index]


async def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition, with a deadline."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        await asyncio.sleep(0.002)


async def eventually_passes(subject: RiskGate, seconds: float = 20.0) -> None:
    """Ask until an entry passes, with a deadline."""
    until = time.monotonic() + seconds
    while (await decide(subject, order())).approved is None:
        assert time.monotonic() < until, "no entry passes any more"
        await asyncio.sleep(0.005)

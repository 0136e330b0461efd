"""The model test of the money path: random sequences of commands, market moves, answers and failures.

`MoneyMachine` (sigma9_core/testing/model/machine.py) has the rules. The short form is seeded, and runs with
`make test`. The long form looks elsewhere every time, and runs with `make test-all`; to let it look for an hour:
`SIGMA9_MODEL_EXAMPLES=5000 .venv/bin/python -m pytest -m slow tests/core/money/test_model.py`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from sigma9_core.calendar import Calendar
from sigma9_core.contracts import BrokerReport, RiskRule
from sigma9_core.models import ApprovedOrder, Fill
from sigma9_core.money import gate
from sigma9_core.money.desk import OrderDesk
from sigma9_core.money.exits import ExitManager, Guard
from sigma9_core.money.gate import RiskGate
from sigma9_core.money.journal import Events
from sigma9_core.money.kill import Kill
from sigma9_core.money.killwork import KillWork
from sigma9_core.money.latch import LatchState
from sigma9_core.money.latching import Latching
from sigma9_core.money.orders import Order
from sigma9_core.money.portfolio import Applied, Portfolio
from sigma9_core.money.reconcile import Reconciler
from sigma9_core.money.records import Record
from sigma9_core.testing.model.machine import MoneyMachine
from sigma9_core.testing.model.room import SESSIONS, RoughJournal
from sigma9_plugins.risk.loss_limit import LossLimit, LossLimitConfig
from sigma9_plugins.risk.max_open import MaxOpen, MaxOpenConfig
from sigma9_plugins.risk.max_order_quantity import MaxOrderQuantity, MaxOrderQuantityConfig
from sigma9_plugins.risk.max_order_value import MaxOrderValue, MaxOrderValueConfig
from sigma9_plugins.risk.session import SessionConfig, SessionHours

COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "report_multiple_bugs": False,
    "database": None,
}
SHORT = settings(max_examples=60, stateful_step_count=50, derandomize=True, phases=[Phase.generate], **COMMON)
"""What every run does, the same each time; it does not shrink, because that takes minutes."""
LONG = settings(max_examples=int(os.environ.get("SIGMA9_MODEL_EXAMPLES", "200")), stateful_step_count=80, **COMMON)
SEARCH = settings(max_examples=200, stateful_step_count=50, phases=[Phase.generate], **COMMON)
"""The budget within which each fault that is put in has to be found."""


def rules() -> Sequence[RiskRule]:
    """Build some real rules, with room for what the machine does, and a loss limit that it can reach."""
    calendar = Calendar("XNYS", SESSIONS)
    return [
        MaxOrderQuantity("max_order_quantity", MaxOrderQuantityConfig(max_shares=Decimal(1000))),
        MaxOrderValue("max_order_value", MaxOrderValueConfig(max_money=Decimal(5000))),
        MaxOpen("max_open", MaxOpenConfig(max_positions=5, max_orders=50, max_entries_per_day=500)),
        LossLimit("loss_limit", LossLimitConfig(day_percent=Decimal("0.4"), confirmations=2), calendar),
        SessionHours("session", SessionConfig(last_minutes=0), ZoneInfo("America/New_York"), calendar),
    ]


class Trading(MoneyMachine):
    """The machine with real rules at the gate."""

    gate = staticmethod(rules)


def test_no_sequence_breaks_what_must_hold() -> None:
    """Whatever happens, in whatever order: the books add up, and no kill, latch, exit or restart does harm."""
    run_state_machine_as_test(Trading, settings=SHORT)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_no_sequence_breaks_what_must_hold_in_the_long_run() -> None:
    """The same over many more and longer sequences, other ones each time."""
    run_state_machine_as_test(Trading, settings=LONG)


# --- faults that are put in: the model must find them -----------------------------------------------------------


def gate_ignores_the_latch(patch: pytest.MonkeyPatch) -> None:
    """A kill closes nothing."""
    patch.setattr(RiskGate, "_shut", lambda *_args, **_more: False)


def kill_closes_one_share_too_many(patch: pytest.MonkeyPatch) -> None:
    """What leaves for the broker is larger than what was decided."""
    send = OrderDesk._send

    async def larger(self: OrderDesk, orders: Sequence[Order], approved: Sequence[ApprovedOrder]) -> None:
        grown = [
            replace(each, request=each.request.model_copy(update={"quantity": each.request.quantity + 1}))
            for each in approved
        ]
        await send(self, orders, grown if orders[0].request.intent == "kill" else approved)

    patch.setattr(OrderDesk, "_send", larger)


def doubled_fill_counts_twice(patch: pytest.MonkeyPatch) -> None:
    """Nobody remembers which executions were counted."""
    apply, take = Portfolio.apply, OrderDesk._take

    def again(self: Portfolio, fill: Fill, strategy: str | None) -> Applied | None:
        self._executions.pop(fill.exec_id, None)
        return apply(self, fill, strategy)

    def forgetful(self: OrderDesk, report: BrokerReport, *, recovered: bool) -> None:
        self._executions.clear()
        take(self, report, recovered=recovered)

    patch.setattr(Portfolio, "apply", again)
    patch.setattr(OrderDesk, "_take", forgetful)


def order_leaves_before_its_intent(patch: pytest.MonkeyPatch) -> None:
    """A commit answers before anything is on the disk."""
    commit = RoughJournal.commit

    async def early(self: RoughJournal, records: Sequence[Record], *, fact: bool = False) -> Events:
        task = asyncio.get_running_loop().create_task(commit(self, records, fact=fact))
        await asyncio.sleep(0)
        return task.result() if task.done() else ()

    patch.setattr(RoughJournal, "commit", early)


def kill_says_done_too_early(patch: pytest.MonkeyPatch) -> None:
    """One round of cancels and closes, and it is over."""
    round_ = KillWork.round

    async def hasty(self: KillWork, kill: Kill) -> bool:
        await round_(self, kill)
        return True

    patch.setattr(KillWork, "round", hasty)


def latch_keeps_nothing(patch: pytest.MonkeyPatch) -> None:
    """What is written to the latch is that nothing is latched."""
    patch.setattr(Latching, "_state", lambda _self: LatchState())


def two_exits_may_close_the_same(patch: pytest.MonkeyPatch) -> None:
    """An exit is not held against the exits that work already."""
    patch.setattr(gate, "_exit_quantity", lambda *_args: None)


def bust_changes_nothing(patch: pytest.MonkeyPatch) -> None:
    """An execution that was taken back goes on counting."""
    patch.setattr(Portfolio, "bust", lambda *_args: False)


def stand_in_outlives_a_bust(patch: pytest.MonkeyPatch) -> None:
    """What was counted without an execution stays, though the execution was taken back."""
    take_back = OrderDesk._take_back

    def forgetful(self: OrderDesk, order: Order, fill: Fill) -> dict[str, str]:
        return take_back(self, order, fill) if self.portfolio.counted(fill.exec_id) else {}

    patch.setattr(OrderDesk, "_take_back", forgetful)


def corrected_execution_counts_as_well(patch: pytest.MonkeyPatch) -> None:
    """An execution is counted beside the one whose place it takes."""
    apply = Portfolio.apply

    def both(self: Portfolio, fill: Fill, strategy: str | None, *, recovered: bool = True) -> Applied | None:
        return apply(self, replace(fill, corrects=()), strategy, recovered=recovered)

    patch.setattr(Portfolio, "apply", both)


def missed_fills_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A read-back overlooks the executions that nobody has told of."""
    patch.setattr(Reconciler, "_count", lambda *_args: None)


def stop_keeps_its_size(patch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the position, nobody changes its exits."""

    async def still(self: ExitManager, guard: Guard, *_args: object) -> None:
        guard.busy = False

    patch.setattr(ExitManager, "_move", still)


def broker_s_trail_is_none(patch: pytest.MonkeyPatch) -> None:
    """What the broker has made of a stop does not count as the trail."""
    patch.setattr(ExitManager, "_trails", lambda self, guard: self._works(guard.trail_id))


def what_has_ended_stays_so(patch: pytest.MonkeyPatch) -> None:
    """What the broker shows as working again is not believed."""
    patch.setattr(Reconciler, "_revive", lambda *_args: None)


SEEDS: Mapping[Callable[[pytest.MonkeyPatch], None], int] = {
    gate_ignores_the_latch: 3,
    kill_closes_one_share_too_many: 1,
    doubled_fill_counts_twice: 1,
    order_leaves_before_its_intent: 1,
    kill_says_done_too_early: 2,
    latch_keeps_nothing: 2,
    two_exits_may_close_the_same: 2,
    bust_changes_nothing: 3,
    stand_in_outlives_a_bust: 3,
    corrected_execution_counts_as_well: 1,
    missed_fills_are_not_counted: 2,
    stop_keeps_its_size: 1,
    broker_s_trail_is_none: 14,
    what_has_ended_stays_so: 7,
}
"""Each fault, and where the search for it begins: there a few examples found it, and elsewhere a hundred did."""


@pytest.mark.parametrize("fault", SEEDS)
def test_the_model_finds_what_is_wrong(fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    """With a fault put into the product the machine fails, within its budget: it does look.

    In a process of its own: hypothesis draws by the constants of whatever modules are loaded, so that a seeded
    search goes another way beside other tests.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, __file__, fault.__name__], env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout == "found\n", f"{found.stdout}{found.stderr}"


def search(fault: Callable[[pytest.MonkeyPatch], None]) -> str:
    """Look for a fault that is put in; tell what came of it."""
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        try:
            run_state_machine_as_test(seed(SEEDS[fault])(Trading), settings=SEARCH)
        except AssertionError:
            return "found"
    return "not found"


if __name__ == "__main__":
    print(search(globals()[sys.argv[1]]))  # noqa: T201 - what the test reads

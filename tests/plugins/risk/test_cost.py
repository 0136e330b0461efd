"""What the built-in rules cost an order."""

from __future__ import annotations

import asyncio
import runpy
from decimal import Decimal
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest

from sigma9_core.clock import SteppedClock
from sigma9_core.money.gate import GuardedRule, RiskGate
from sigma9_core.testing.risk_views import NOW, order

BENCH = Path(__file__).parents[2] / "bench_gate.py"


@pytest.mark.parametrize("intent", ["entry", "reduce"])
def test_an_order_costs_no_more_than_twice_what_is_promised(intent: str) -> None:
    """All the built-in rules, 50 working orders: the promise is 150 µs, `bench_gate.py` measures it (134 µs).

    The test allows twice as much, because it also runs on machines that are slower, and busy.
    """
    bench = runpy.run_path(str(BENCH))
    gate = RiskGate([GuardedRule(rule) for rule in bench["rules"]()], SteppedClock("replay", NOW))
    moment = bench["moment"]()
    entry = order("S005", "buy", 11, order_type="limit", limit_price=Decimal(99))
    request = entry if intent == "entry" else order("S005", "sell", 5, "reduce")

    async def batch() -> float:
        took = []
        for _ in range(100):
            began = perf_counter()
            decision = await gate.decide("new", request, moment)
            took.append(perf_counter() - began)
            assert decision.approved is not None, decision.refused
        return median(took)

    assert min(asyncio.run(batch()) for _ in range(10)) < 300e-6

"""Measure what the risk gate costs an order; run by hand, not a test.

python tests/bench_gate.py: the built-in rules with their defaults, 50 working orders, 10 positions, 500 marks.
"""

# ruff: noqa: T201
from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock
from sigma9_core.config import DEFAULT_RISK, Settings
from sigma9_core.contracts import PluginContext, RiskRule, RiskView
from sigma9_core.models import Frozen, Intent, OrderRequest, OrderView, RuleUsage, Verdict
from sigma9_core.money.gate import GuardedRule, RiskGate
from sigma9_core.testing.risk_views import NOW, SESSION, holding, mark, order, sent, shown, view

ROUNDS = 3_000


def rules() -> list[RiskRule]:
    """Build all of the built-in set, with room for the bench's orders."""
    context = PluginContext("", Settings(), SteppedClock("replay", NOW), Calendar("XNYS", [SESSION]), Path())
    room = {"max_open": {"max_positions": 20, "max_orders": 100}, "max_exposure": {"max_gross_percent": 1000}}
    built: list[RiskRule] = []
    for entry in DEFAULT_RISK:

        def register(name: str, factory: Any, config: type[Frozen]) -> None:
            settings = config.model_validate(room.get(name, {}))
            built.append(factory(settings, replace(context, name=name)))

        importlib.import_module(f"sigma9_plugins.risk.{entry.plugin}").register_risk_rules(register)
    return built


def moment() -> RiskView:
    """Make a busy moment: 10 positions, 50 working orders (30 exits in groups), 500 marks, 50 recent orders."""
    symbols = [f"S{n:03d}" for n in range(500)]
    working: list[OrderView] = []
    intents: dict[str, Intent] = {}
    for n in range(50):
        entry = n < 20
        group = None if entry else f"g{(n - 20) // 3}"
        request = order(
            symbols[n % 10], "buy" if entry else "sell", 10, order_type="limit", limit_price=Decimal(100)
        )
        working.append(shown(request.model_copy(update={"oca_group": group}), f"w{n}"))
        intents[f"w{n}"] = "entry" if entry else "reduce"
    return view(
        positions=[holding(symbol, 60) for symbol in symbols[:10]],
        working=working,
        intents=intents,
        marks=[mark(symbol, bid=Decimal("99.99"), ask=Decimal("100.01")) for symbol in symbols],
        recent=tuple(sent(order(symbols[n], quantity=7), 60 - n, f"r{n}") for n in range(50)),
    )


class Outside(RiskRule):
    """A third-party rule that answers at once."""

    code = "X1"

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Allow."""
        return self.allow()

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell nothing."""
        return RuleUsage(rule=self.name)


async def timed(what: str, work: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    """Run something often and print its median and 99th percentile in microseconds; give the median."""
    took = []
    for _ in range(rounds):
        began = perf_counter()
        await work()
        took.append((perf_counter() - began) * 1e6)
    print(f"{what:<42} median {median(took):7.1f} µs   99 % {quantiles(took, n=100)[98]:8.1f} µs")
    return median(took)


async def main() -> None:
    """Print the figures."""
    clock = SteppedClock("replay", NOW)
    seen = moment()
    gate = RiskGate([GuardedRule(rule) for rule in rules()], clock)
    wide = RiskGate(
        [
            *(GuardedRule(rule) for rule in rules()),
            *(GuardedRule(Outside(f"x{n}"), inline=False) for n in range(3)),
        ],
        clock,
    )
    # Below the resting sales: a market order would meet them, and be refused.
    entry = order("S005", "buy", 11, order_type="limit", limit_price=Decimal(99))
    leave = order("S005", "sell", 5, "reduce")
    print(f"Python {sys.version.split()[0]}, {ROUNDS} rounds")
    for each, asked in ((gate, entry), (gate, leave), (wide, entry)):
        decided = await each.decide("o", asked, seen)
        assert decided.approved is not None, decided.refused
    await timed("entry, the built-in rules", lambda: gate.decide("o", entry, seen))
    await timed("reducing order", lambda: gate.decide("o", leave, seen))
    await timed("entry, these and three third-party rules", lambda: wide.decide("o", entry, seen))
    gate.close()
    await timed("entry while killed", lambda: gate.decide("o", entry, seen))
    gate.reopen()

    async def use() -> None:
        gate.usage(seen)

    async def look() -> None:
        gate.trips(seen)

    await timed("usage of all", use)
    await timed("trips of all", look)
    await wide.stop()


if __name__ == "__main__":
    asyncio.run(main())

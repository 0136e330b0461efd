"""Reservations: orders that are decided at the same moment can't pass one limit together."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from sigma9_core.contracts import RiskRule
from sigma9_core.errors import CommandError
from sigma9_core.models import OrderStatus, Side
from sigma9_core.money.gate import GuardedRule
from sigma9_core.money.orders import Order
from sigma9_core.testing.money_room import AllowAll, MoneyRoom
from sigma9_plugins.risk.max_exposure import MaxExposure, MaxExposureConfig
from sigma9_plugins.risk.max_open import MaxOpen, MaxOpenConfig
from sigma9_plugins.risk.max_order_value import MaxOrderValue, MaxOrderValueConfig
from sigma9_plugins.risk.max_position import MaxPosition, MaxPositionConfig

EQUITY = Decimal(100_000)
SYMBOLS = ("AAPL", "MSFT", "NVDA", "TSLA", "IBM")
SIDES: Sequence[Side] = ("buy", "buy", "sell")


def rules() -> list[RiskRule]:
    """Build the four rules, each with a limit that the orders of a test reach."""
    return [
        MaxOrderValue("max_order_value", MaxOrderValueConfig(max_money=Decimal(3000))),
        MaxPosition("max_position", MaxPositionConfig(max_percent_of_equity=Decimal(5))),
        MaxExposure("max_exposure", MaxExposureConfig(max_gross_percent=Decimal(12))),
        MaxOpen("max_open", MaxOpenConfig(max_positions=3, max_orders=9)),
    ]


def worth(order: Order) -> Decimal:
    """Give what an order may cost at most, in a market at 10."""
    price = order.request.limit_price
    assert price is not None
    return order.request.quantity * (price if order.request.side == "buy" else max(price, Decimal(10)))


def check(orders: Sequence[Order]) -> None:
    """See that what works passes no limit, whichever of it fills."""
    sides: Counter[tuple[str, str]] = Counter()
    for order in orders:
        assert worth(order) <= 3000
        sides[order.request.symbol, order.request.side] += worth(order)  # type: ignore[assignment]
    symbols = {order.request.symbol for order in orders}
    gross = {symbol: max(sides[symbol, "buy"], sides[symbol, "sell"]) for symbol in symbols}
    assert all(value <= EQUITY * 5 / 100 for value in gross.values()), gross
    assert sum(gross.values()) <= EQUITY * 12 / 100
    assert len(symbols) <= 3
    assert len(orders) <= 9


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("seed", range(4))
async def test_orders_of_one_moment_pass_no_limit_together(tmp_path: Path, seed: int, threaded: bool) -> None:
    """Of many orders at once the gate lets through what the limits bear, also where a rule makes it wait."""
    async with MoneyRoom(tmp_path, rules=rules()) as room:
        if threaded:
            room.path.gate._rules.append(GuardedRule(AllowAll("third_party"), inline=False))
        for symbol in SYMBOLS:
            await room.tick(symbol, 10)
        terms = [*itertools.product(SYMBOLS, (310, 240, 90, 35), SIDES, ("10", "9.5", "11"))]
        random.Random(seed).shuffle(terms)
        orders = await asyncio.gather(
            *(
                room.buy(symbol, quantity, side=side, order_type="limit", limit_price=Decimal(price))
                for symbol, quantity, side, price in terms[:120]
            )
        )
        working = room.desk.open_orders()
        check(working)

        assert working == [order for order in orders if order.status is not OrderStatus.RISK_REJECTED]
        assert len(working) >= 3
        refused = {order.rule for order in orders} - {None}
        assert len(refused) >= 2
        assert set(room.exchange.submitted) == {order.order_id for order in working}


async def test_changes_of_one_moment_pass_no_limit_together(tmp_path: Path) -> None:
    """Changes and new orders at once: what is asked for counts from its decision on, before it is confirmed."""
    async with MoneyRoom(tmp_path, rules=rules()) as room:
        for symbol in SYMBOLS:
            await room.tick(symbol, 10)
        started = [
            await room.buy(symbol, 50, order_type="limit", limit_price=Decimal(10)) for symbol in SYMBOLS[:3] * 2
        ]

        async def change(order: Order, quantity: int) -> bool:
            try:
                await room.desk.modify(order.order_id, {"quantity": Decimal(quantity)})
            except CommandError as error:
                if error.code not in ("risk_rejected", "busy"):
                    raise
                return False
            return True

        answers = await asyncio.gather(
            *(change(order, quantity) for quantity in (290, 210, 150) for order in started),
            *(room.buy(symbol, 100, order_type="limit", limit_price=Decimal(10)) for symbol in SYMBOLS * 2),
        )
        check(room.desk.open_orders())

        assert {True, False} <= {answer for answer in answers if isinstance(answer, bool)}

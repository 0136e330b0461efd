"""Orders, marks and views for tests of risk rules: everything has a sensible default, and one call changes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sigma9_core.contracts import Execution, Mark, RiskView, Submission
from sigma9_core.models import (
    CURRENCY,
    Account,
    ClosedTrade,
    Fill,
    Intent,
    OrderRequest,
    OrderStatus,
    OrderView,
    Position,
    Session,
    Side,
)

NOW: Final = datetime(2026, 11, 20, 16, 0, tzinfo=UTC)
"""A Friday, 11:00 in New York."""
SESSION: Final = Session(
    "2026-11-20", datetime(2026, 11, 20, 14, 30, tzinfo=UTC), datetime(2026, 11, 20, 21, 0, tzinfo=UTC)
)
SYMBOLS: Final = ("AAPL", "MSFT", "NVDA", "TSLA", "AMZN")
PRICE: Final = Decimal(100)
EQUITY: Final = Decimal(100_000)

Number = Decimal | int | float | str


def money(number: Number) -> Decimal:
    """Turn what a test writes down into a Decimal."""
    return number if isinstance(number, Decimal) else Decimal(str(number))


def order(
    symbol: str = "AAPL", side: str = "buy", quantity: Number = 10, intent: Intent = "entry", **more: Any
) -> OrderRequest:
    """Make an order: an entry at the market, unless told otherwise."""
    return OrderRequest(symbol=symbol, side=side, quantity=money(quantity), intent=intent, **more)


def shown(request: OrderRequest, order_id: str = "w1", filled: Number = 0, **more: Any) -> OrderView:
    """Show an order as it works at the broker."""
    fields = {name: getattr(request, name) for name in OrderView.model_fields if hasattr(request, name)}
    partly = money(filled) > 0
    status = OrderStatus.PARTIALLY_FILLED if partly else OrderStatus.ACCEPTED
    return OrderView(
        **{**fields, "status": status, "order_id": order_id, "filled_quantity": money(filled), **more}
    )


def mark(symbol: str = "AAPL", price: Number = PRICE, *, age: float = 0.0, **more: Any) -> Mark:
    """Make a mark that is `age` seconds old."""
    return Mark(symbol, money(price), NOW - timedelta(seconds=age), **more)


def holding(symbol: str = "AAPL", quantity: Number = 100, **more: Any) -> Position:
    """Make a position of ours."""
    fields: dict[str, Any] = {"average_cost": PRICE, "last": PRICE, "strategy": "test", **more}
    return Position(symbol=symbol, quantity=money(quantity), **fields)


def sent(request: OrderRequest, ago: float = 1.0, order_id: str = "s1") -> Submission:
    """Make an order that passed the gate some seconds ago."""
    return Submission(NOW - timedelta(seconds=ago), request, order_id)


def closed(symbol: str = "AAPL", result: Number = 10, *, ago: float = 60.0, **more: Any) -> ClosedTrade:
    """Make a round trip of 100 shares at 100 that ended some seconds ago, after two minutes."""
    fields: dict[str, Any] = {
        "strategy": "test",
        "quantity": Decimal(100),
        "entry_cost": PRICE * 100,
        "percent": money(result) / 100,
        "fees": Decimal("0.70"),
        "opened_at": NOW - timedelta(seconds=ago + 120),
        "closed_at": NOW - timedelta(seconds=ago),
        **more,
    }
    return ClosedTrade(symbol=symbol, result=money(result), **fields)


def execution(
    symbol: str = "AAPL",
    side: Side = "buy",
    price: Number = PRICE,
    expected: Number | None = PRICE,
    *,
    quantity: Number = 100,
    ago: float = 1.0,
    exec_id: str = "x1",
    intent: Intent = "entry",
    strategy: str | None = "test",
) -> Execution:
    """Make a fill of some seconds ago, beside the price that was expected."""
    at = NOW - timedelta(seconds=ago)
    fill = Fill(exec_id, "o1", symbol, side, money(quantity), money(price), Decimal("0.35"), at)
    return Execution(fill, intent, strategy, None if expected is None else money(expected))


def view(
    *,
    positions: Iterable[Position] = (),
    working: Sequence[OrderView] = (),
    intents: Mapping[str, Intent] | None = None,
    marks: Iterable[Mark] | None = None,
    equity: Number | None = EQUITY,
    account: str | None = "SIM1",
    mode: str = "simulated",
    currency: str = CURRENCY,
    **more: Any,
) -> RiskView:
    """Make a view: mid-session, 100,000 of equity, fresh marks of 100 for five symbols, nothing held.

    A working order without an intent in `intents` is an entry, unless it is foreign.
    """
    amount = None if equity is None else money(equity)
    known: dict[str, Intent] = {o.order_id: "entry" for o in working if not o.foreign}
    fields: dict[str, Any] = {
        "now": NOW,
        "session": SESSION,
        "day_start_equity": EQUITY,
        "week_start_equity": EQUITY,
        "peak_equity": EQUITY,
        "recent": (),
        "entries_today": 0,
        "marks_fresh": True,
        **more,
    }
    return RiskView(
        account=Account(
            account=account, mode=mode, currency=currency, equity=amount, cash=amount, buying_power=amount
        ),
        positions={position.symbol: position for position in positions},
        working=tuple(working),
        intents={**known, **(intents or {})},
        marks={m.symbol: m for m in (marks if marks is not None else [mark(symbol) for symbol in SYMBOLS])},
        **fields,
    )

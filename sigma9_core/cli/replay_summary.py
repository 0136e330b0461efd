"""The summary of a replay: trades, profit and loss, fees, exposure, and refused orders by rule."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.cli.output import cell, show_rows, title
from sigma9_core.cli.times import market
from sigma9_core.clock import rfc3339
from sigma9_core.models import ZERO

if TYPE_CHECKING:
    from sigma9_core.engine import Engine

COLUMNS: Final = ("symbol", "strategy", "quantity", "entry", "exit", "result", "percent", "opened_at", "closed_at")
FIELDS: Final = (*COLUMNS[:7], "fees", *COLUMNS[7:])
"""What each trade has."""


async def summary(engine: Engine, *, interrupted: bool = False) -> dict[str, Any]:
    """Work out the summary on the money lane, once everything has settled; money in the account's currency.

    `interrupted` says that the data did not come to their end.
    """
    path = engine.path
    await path.desk.settle()
    trades = [
        {
            "symbol": trade.symbol,
            "strategy": trade.strategy,
            "quantity": _number(trade.quantity, 0),
            "entry": _number(trade.entry_cost / abs(trade.quantity), 4),
            "exit": _number((trade.entry_cost + trade.result + trade.fees) / abs(trade.quantity), 4)
            if trade.quantity > 0
            else _number((trade.entry_cost - trade.result - trade.fees) / abs(trade.quantity), 4),
            "result": _number(trade.result, 2),
            "percent": _number(trade.percent, 3),
            "fees": _number(trade.fees, 2),
            "opened_at": rfc3339(trade.opened_at),
            "closed_at": rfc3339(trade.closed_at),
        }
        for trade in path.portfolio.trades
    ]
    results = [trade.result for trade in path.portfolio.trades]
    account = path.portfolio.account()
    equity = account.equity or ZERO
    wins = sum(result > 0 for result in results)
    return {
        "trades": trades,
        "summary": {
            "trades": len(results),
            "wins": wins,
            "win_rate": round(wins / len(results), 4) if results else None,
            "profit": _number(sum(results, ZERO), 2),
            "realized_pnl": _number(path.portfolio.realized, 2),
            "unrealized_pnl": _number(account.unrealized_pnl or ZERO, 2),
            "fees": _number(path.tally.fees, 2),
            "equity": _number(equity, 2),
            "open_positions": sum(p.quantity != ZERO for p in path.portfolio.positions()),
            "orders": path.tally.orders,
            "exposure_time": round(path.tally.invested / path.tally.slices, 4) if path.tally.slices else 0.0,
            "exposure_average": _number(path.tally.average, 2),
            "exposure_peak": _number(path.tally.peak, 2),
            "refused": dict(sorted(path.tally.refused.items())),
            "rejected_rows": getattr(engine.feed, "rejected_count", 0),
            "slices": path.tally.slices,
            "last": rfc3339(engine.clock.now()),
            "interrupted": interrupted,
        },
    }


def show(body: Mapping[str, Any], form: str) -> None:
    """Print it: the trades and the totals as tables, all of it as one JSON object, or the trades as CSV."""
    import json

    if form == "json":
        print(json.dumps(body, indent=2))
        return
    times = {"opened_at": "UTC", "closed_at": "UTC"}  # a replay's clock is the market's
    show_rows(body["trades"], COLUMNS, form, fields=FIELDS, empty="no trades", times=times)
    if form == "csv":
        return
    totals = dict(body["summary"])
    refused = totals.pop("refused")
    totals["last"] = market(totals["last"])
    rows = [{"what": title(name), "value": cell(value)} for name, value in totals.items()]
    rows += [{"what": f"refused by {rule}", "value": count} for rule, count in refused.items()]
    print()
    show_rows(rows, ("what", "value"), "table")


def _number(value: Decimal, places: int) -> float:
    return float(round(value, places))

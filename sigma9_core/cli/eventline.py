"""One readable line for each event, for `watch` and `journal`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sigma9_core.cli.output import cell, clean

Data = Mapping[str, Any]


def event_line(event: Mapping[str, Any]) -> str:
    """Write an event envelope as one line: time, number, and what happened."""
    data = event.get("data")
    kind = str(event.get("type"))
    write = _WRITERS.get(kind)
    text = write(data) if write is not None and isinstance(data, Mapping) else f"{kind} {cell(data)}"
    number = event.get("seq")
    late = " (late)" if event.get("late") else ""
    moment = str(event.get("ts", ""))[:19].replace("T", " ")
    return clean(f"{moment}  {'' if number is None else f'#{number}':<7}{text}{late}")


def _trade(data: Data) -> str:
    parts = [f"{data.get('event')} {data.get('side')} {cell(data.get('quantity'))} {data.get('symbol')}"]
    if data.get("last_price") is not None:
        parts.append(f"{cell(data.get('last_quantity'))} at {cell(data['last_price'])}")
    elif data.get("limit_price") is not None:
        parts.append(f"limit {cell(data['limit_price'])}")
    if data.get("stop_price") is not None:
        parts.append(f"stop {cell(data['stop_price'])}")
    parts.append(f"order {data.get('order_id')}")
    if data.get("strategy"):
        parts.append(str(data["strategy"]))
    if data.get("rule"):
        parts.append(f"rule {data['rule']}")
    if data.get("reason"):
        parts.append(str(data["reason"]))
    if data.get("recovered"):
        parts.append("recovered")
    return "trade      " + ", ".join(parts)


def _watchlist(data: Data) -> str:
    changes = [f"+{symbol}" for symbol in data.get("added") or ()] + [
        f"-{one}" for one in data.get("removed") or ()
    ]
    return f"watchlist  {data.get('reason')}: {cell(data.get('count'))} symbols {' '.join(changes)}".rstrip()


def _status(data: Data) -> str:
    status = data.get("status") or {}
    parts = []
    for name in data.get("changed") or ():
        value = status.get(name, "changed")  # such as plugins: the status has no word for them
        if isinstance(value, Mapping):
            value = value.get("state", "open" if value.get("open") else "closed")
        parts.append(f"{name} {cell(value)}")
    if not parts:
        parts.append(f"engine {cell(status.get('engine'))}, server {cell(status.get('server'))}")
    reason = f" ({data['reason']})" if data.get("reason") else ""
    return f"status     {', '.join(parts)}{reason}"


def _log(data: Data) -> str:
    dropped = f" ({data['dropped']} lines were lost before)" if data.get("dropped") else ""
    return f"{data.get('level', ''):<10} {data.get('logger')}: {data.get('message')}{dropped}"


def _market(data: Data) -> str:
    if data.get("kind") == "quote":
        text = f"{cell(data.get('bid'))} / {cell(data.get('ask'))}"
    elif data.get("kind") == "trade":
        text = f"{cell(data.get('last'))} x {cell(data.get('last_size'))}"
    else:
        prices = " ".join(cell(data.get(name)) for name in ("open", "high", "low", "close"))
        text = f"{prices} volume {cell(data.get('volume'))}"
    halted = ", halted" if data.get("halted") else ""
    return f"{data.get('kind') or '':<10} {data.get('symbol')} {text}{halted}"


_WRITERS: Final[Mapping[str, Callable[[Data], str]]] = {
    "trade_event": _trade,
    "watchlist_update": _watchlist,
    "status_update": _status,
    "log": _log,
    "market_data": _market,
}

"""One readable line for each event, for `watch` and `journal`, in the contract's own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sigma9_core.cli.output import cell, clean
from sigma9_core.cli.status import kill_state
from sigma9_core.cli.times import MARKET, utc

Data = Mapping[str, Any]

HEADER: Final = f"{MARKET:<21}number event"
"""What stands above the lines."""


def event_line(event: Mapping[str, Any]) -> str:
    """Write an event envelope as one line: time, number, type, and what happened.

    The time is the market's, in UTC; log lines have the wall clock's, and say so.
    """
    data = event.get("data")
    kind = str(event.get("type"))
    write = _WRITERS.get(kind)
    text = write(data) if write is not None and isinstance(data, Mapping) else cell(data)
    number = event.get("seq")
    late = " (late)" if event.get("late") else ""
    moment = utc(event.get("ts", ""))
    if kind == "log":
        moment = f"wall time  {moment[11:]}"
    return clean(f"{moment:<21}{'' if number is None else f'#{number}':<7}{kind:<16} {text}{late}")


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
    return ", ".join(parts)


def _watchlist(data: Data) -> str:
    changes = [f"+{symbol}" for symbol in data.get("added") or ()] + [
        f"-{one}" for one in data.get("removed") or ()
    ]
    count = data.get("count")
    symbols = f"{cell(count)} symbol{'' if count == 1 else 's'}"
    return f"{data.get('reason')}: {symbols} {' '.join(changes)}".rstrip()


def _status(data: Data) -> str:
    status = data.get("status") or {}
    parts = []
    changed = () if data.get("reason") == "snapshot" else data.get("changed") or ()
    for name in changed:
        value = status.get(name, "changed")  # such as plugins: the status has no word for them
        if name == "kill_switch" and isinstance(value, Mapping):
            value = kill_state(value)
        elif isinstance(value, Mapping):
            value = value.get("state", "open" if value.get("open") else "closed")
        parts.append(f"{name} {cell(value)}")
    if not parts:
        kill = status.get("kill_switch") or {}
        parts.append(f"engine {cell(status.get('engine'))}, server {cell(status.get('server'))}")
        parts += [f"kill_switch {kill_state(kill)}"] if kill.get("state") else []
        parts += [f"{status['clock']} clock"] if status.get("clock") else []
    reason = f" ({data['reason']})" if data.get("reason") else ""
    return f"{', '.join(parts)}{reason}"


def _log(data: Data) -> str:
    dropped = f" ({data['dropped']} lines were lost before)" if data.get("dropped") else ""
    return f"{data.get('level')} {data.get('logger')}: {data.get('message')}{dropped}"


def _market(data: Data) -> str:
    kind = data.get("kind")
    if kind == "quote":
        text = f"{cell(data.get('bid'))} / {cell(data.get('ask'))}"
    elif kind == "trade":
        text = f"{cell(data.get('last'))} x {cell(data.get('last_size'))}"
    else:
        prices = " ".join(cell(data.get(name)) for name in ("open", "high", "low", "close"))
        text = f"{prices} volume {cell(data.get('volume'))}"
    halted = ", halted" if data.get("halted") else ""
    return f"{kind or '?'} {data.get('symbol')} {text}{halted}"


_WRITERS: Final[Mapping[str, Callable[[Data], str]]] = {
    "trade_event": _trade,
    "watchlist_update": _watchlist,
    "status_update": _status,
    "log": _log,
    "market_data": _market,
}

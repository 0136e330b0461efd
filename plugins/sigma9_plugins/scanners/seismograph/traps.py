"""The anti-trap filters: all of them must hold before an ignition becomes an entry."""

from __future__ import annotations

from datetime import datetime

from sigma9_core.models import Quote, Session
from sigma9_plugins.scanners.seismograph.trigger_config import TrapConfig


def spread_percent(quote: Quote | None) -> float | None:
    """Give (ask − bid) / mid in percent; None for a quote that lacks a side or is crossed."""
    if quote is None or quote.bid is None or quote.ask is None or not 0 < quote.bid <= quote.ask:
        return None
    return 200 * (quote.ask - quote.bid) / (quote.ask + quote.bid)


def traps(
    now: datetime,
    price: float,
    *,
    session: Session,
    quote: Quote | None,
    vwap: float | None,
    config: TrapConfig,
) -> list[str]:
    """Give the reason of each filter that does not hold; an empty list means that the entry is clean."""
    found: list[str] = []
    minutes = (now - session.open).total_seconds() / 60
    if minutes < config.minutes_after_open:
        found.append(f"{minutes:.1f} minutes since the open, entries begin after {config.minutes_after_open:g}")
    found += _quote_traps(now, quote, config)
    if vwap is None:
        found.append("there is no session VWAP yet")
    elif price <= vwap:
        found.append(f"the price {price:g} is not above the session VWAP {vwap:.4f}")
    return found


def _quote_traps(now: datetime, quote: Quote | None, config: TrapConfig) -> list[str]:
    if quote is None:
        return ["there is no quote"]
    age = (now - quote.ts).total_seconds()
    if age > config.quote_age_seconds:
        return [f"the last quote is {age:.0f} s old, more than {config.quote_age_seconds:g} s"]
    if quote.halted:
        return ["the symbol is halted"]
    spread = spread_percent(quote)
    if spread is None:
        return ["the quote lacks a bid or an ask, or they are crossed"]
    if round(spread, 6) >= config.max_spread_percent:
        return [f"the spread of {spread:.2f} % is not below {config.max_spread_percent:g} %"]
    return []

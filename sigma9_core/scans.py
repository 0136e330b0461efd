"""Scans: run the scanners over the feed's daily bars, on their workers, and renew the watchlist."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from sigma9_core.calendar import Calendar
from sigma9_core.clock import Clock
from sigma9_core.contracts import Feed
from sigma9_core.errors import CommandError, DataError, Sigma9Error
from sigma9_core.scanning import ScanResult, merge, scan
from sigma9_core.strategies import SCAN_BUDGET, Strategy
from sigma9_core.watchlist import Watchlist
from sigma9_core.workers import Worker

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("sigma9.scan")

NEW_YORK: Final = ZoneInfo("America/New_York")
SPARE_SESSIONS: Final = 10


class Scans:
    """Runs one scan at a time; on the outer loop."""

    def __init__(
        self, strategies: Sequence[Strategy], feed: Feed, watchlist: Watchlist, clock: Clock, calendar: Calendar
    ) -> None:
        self._strategies = strategies
        self._feed = feed
        self._watchlist = watchlist
        self._clock = clock
        self._calendar = calendar
        self._running = asyncio.Lock()
        self._reader = Worker("daily bars", SCAN_BUDGET)

    def stop(self) -> None:
        """End the thread that reads the feed's bars."""
        self._reader.stop()

    async def run(self, names: Sequence[str] | None = None) -> Mapping[str, Any]:
        """Scan as of the last complete session and renew the watchlist; give a summary.

        What a strategy had listed stays on the list where it does not scan this time, or fails. Raise
        CommandError: `busy` while a scan runs, `not_found` for a strategy that is not there, `conflict` where
        none is enabled, `internal` where the feed gives no bars or every scanner failed (the old list stays).
        """
        known = {strategy.name: strategy for strategy in self._strategies}
        for name in names or ():
            if name not in known:
                raise CommandError("not_found", f"no strategy is called '{name}'", {"field": "strategies"})
        chosen = (
            [known[name] for name in dict.fromkeys(names)] if names else [s for s in self._strategies if s.enabled]
        )
        if not chosen:
            raise CommandError("conflict", "no strategy is enabled: enable one, then scan again")
        if self._running.locked():
            raise CommandError("busy", "a scan is running already")
        async with self._running:
            as_of = await self.as_of()
            results = [result for each in chosen if (result := await self._one(each, as_of)) is not None]
            done = {result.name for result in results}
            failed = [strategy.name for strategy in chosen if strategy.name not in done]
            if not results:
                raise CommandError("internal", f"every scanner failed: {', '.join(failed)}; the log says why")
            items = merge(results, added_at=self._clock.now())
            strategy = chosen[0].name if len(chosen) == 1 else None
            standing = {s.name for s in self._strategies if s.enabled or s in chosen} - done
            update = self._watchlist.renew(items, strategy, standing=standing)
            log.info("scan as of %s: %d on the watchlist", as_of, update.count)
            return {
                "as_of": as_of.isoformat(),
                "count": update.count,
                "added": list(update.added),
                "removed": list(update.removed),
                "failed": failed,
            }

    async def as_of(self) -> date:
        """Tell the date of the last complete session."""
        await self._calendar.ready()
        now = self._clock.now()
        today = now.astimezone(NEW_YORK).date()
        session = self._calendar.on(today)
        last = today if session is not None and now >= session.close else today - timedelta(days=1)
        before = self._calendar.before(last, 1)
        return date.fromisoformat(before[-1].day) if before else last

    async def _one(self, strategy: Strategy, as_of: date) -> ScanResult | None:
        sessions = strategy.scanner.lookback + SPARE_SESSIONS
        try:
            bars = await self._reader.call(self._feed.daily_bars, as_of, sessions)
        except Exception as error:  # a feed is a plugin and may raise anything; no strategy is to blame for it
            why = str(error) or type(error).__name__
            known = isinstance(error, (Sigma9Error, OSError))  # what a feed says on purpose is no bug
            log.error("the feed gave no daily bars as of %s: %s", as_of, why, exc_info=not known)
            raise CommandError("internal", f"the feed gave no daily bars as of {as_of}: {why}") from error
        try:
            result = await strategy.scan_guard.call(_scan, bars, strategy, as_of)
        except Exception:  # noqa: BLE001 - a plugin may raise anything; its guard has logged and counted it
            return None
        if isinstance(result, DataError):
            raise CommandError("internal", f"the feed's daily bars as of {as_of} can't be used: {result}")
        return result


def _scan(bars: pl.LazyFrame, strategy: Strategy, as_of: date) -> ScanResult | DataError:
    """Scan on the strategy's worker; what is wrong with the bars is given back, because it is not its fault."""
    try:
        result = scan(bars, strategy.scanner, as_of, strategy.name)
    except DataError as error:
        return error
    if result.error is not None:
        log.error("the scanner of %s failed:\n%s", strategy.name, result.error)
        raise RuntimeError(result.error.strip().rpartition("\n")[2])
    return result

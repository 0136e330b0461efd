"""R13: entries in market hours only, with margins after the open and before the close, and blackouts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, model_validator

from sigma9_core.calendar import Calendar
from sigma9_core.clock import rfc3339
from sigma9_core.config import Clockface
from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView
from sigma9_core.errors import PluginError
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen, OrderRequest, RuleUsage, Session, Verdict

Minutes = Annotated[int, Field(ge=0, le=390)]
SESSIONS: Final = 10
"""So many sessions are looked at for one that takes entries."""


class Blackout(Frozen):
    """A stretch of every day without entries, by the clock of the scheduler's time zone; it may span midnight."""

    start: Clockface
    end: Clockface

    @model_validator(mode="after")
    def _length(self) -> Blackout:
        if self.start == self.end:
            raise ValueError("start and end are the same: a blackout needs a length")
        return self

    def covers(self, clockface: str) -> bool:
        """Tell whether a time of day, `HH:MM`, lies in it; the end does not."""
        if self.start < self.end:
            return self.start <= clockface < self.end
        return clockface >= self.start or clockface < self.end


class SessionConfig(Frozen):
    """Settings of `session`."""

    first_minutes: Minutes = 0
    """No entries this long after the open; triggers have a margin of their own."""
    last_minutes: Minutes = 5
    """No entries this long before the close: their exits would have no market left to work in."""
    allow_outside_hours: bool = False
    """Whether an order that is marked `outside_rth` may enter outside of market hours."""
    blackouts: tuple[Blackout, ...] = ()
    """Such as the time around the gateway's daily restart."""


class SessionHours(RiskRule):
    """Refuses entries while the market is shut, just opened, about to close, or blacked out."""

    code = "R13"

    def __init__(self, name: str, config: SessionConfig, zone: tzinfo, calendar: Calendar | None = None) -> None:
        """Store; `zone` is the blackouts' time zone, `calendar` tells when the market opens next."""
        super().__init__(name)
        self._config = config
        self._first = timedelta(minutes=config.first_minutes)
        self._last = timedelta(minutes=config.last_minutes)
        self._zone = zone
        self._calendar = calendar

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the market time of an entry."""
        if order.intent != "entry":
            return self.allow()
        now, session = view.now, view.session
        blackout = self._blackout(now)
        if blackout is not None:
            return self.refuse(f"there are no entries from {blackout.start} to {blackout.end} ({self._zone})")
        if session is None:
            if order.outside_rth and self._config.allow_outside_hours:
                return self.allow()
            if self._calendar is not None and not self._calendar.loaded:
                return self.refuse("the exchange calendar is not loaded: nobody knows whether the market is open")
            until = self._until(view)
            return self.refuse(
                "the market is closed"
                if until is None
                else f"the market is closed: entries from {rfc3339(until)} on"
            )
        gone, left = now - session.open, session.close - now
        if gone < self._first:
            return self.refuse(
                f"it opened {_minutes(gone)} minutes ago; entries begin after {self._config.first_minutes}",
                _minutes(gone),
                Decimal(self._config.first_minutes),
            )
        if left <= self._last and self._config.last_minutes:
            return self.refuse(
                f"the market closes in {_minutes(left)} minutes, entries end {self._config.last_minutes} before",
                _minutes(left),
                Decimal(self._config.last_minutes),
            )
        return self.allow()

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell whether entries are closed now, and until when; it has no number."""
        closed = self._closed(view.now, view.session)
        return RuleUsage(rule=self.name, tripped=closed, until=self._until(view) if closed else None)

    def _closed(self, now: datetime, session: Session | None) -> bool:
        if session is None or self._blackout(now) is not None or now - session.open < self._first:
            return True
        return bool(self._config.last_minutes) and session.close - now <= self._last

    def _until(self, view: RiskView) -> datetime | None:
        """Give when entries open again; None where the calendar does not reach that far, or blackouts cover it."""
        session = view.session
        for _ in range(SESSIONS):
            if session is not None:
                moment = max(view.now, session.open + self._first)
                while moment < session.close - self._last and (blackout := self._blackout(moment)) is not None:
                    moment = self._end(blackout, moment)
                if moment < session.close - self._last:
                    return moment
            since = view.now if session is None else max(view.now, session.open)
            session = self._calendar.after(since) if self._calendar is not None else None
            if session is None:
                break
        return None

    def _end(self, blackout: Blackout, moment: datetime) -> datetime:
        """Give when a blackout that covers a moment ends; later than the moment also where a clock is set back."""
        local = moment.astimezone(self._zone)
        end = local.replace(hour=int(blackout.end[:2]), minute=int(blackout.end[3:]), second=0, microsecond=0)
        if end <= local:
            end += timedelta(days=1)
        return max(end.astimezone(UTC), moment + timedelta(minutes=1))

    def _blackout(self, now: datetime) -> Blackout | None:
        if not self._config.blackouts:
            return None
        clockface = now.astimezone(self._zone).strftime("%H:%M")
        return next((blackout for blackout in self._config.blackouts if blackout.covers(clockface)), None)


def _minutes(span: timedelta) -> Decimal:
    return Decimal(int(span.total_seconds() // 60))


def build(config: SessionConfig, context: PluginContext) -> SessionHours:
    """Build the rule of one instance."""
    name = context.settings.scheduler.timezone
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise PluginError(f"{context.name}: scheduler.timezone: there is no time zone '{name}'") from error
    return SessionHours(context.name, config, zone, context.calendar)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `session`."""
    register("session", build, config=SessionConfig)

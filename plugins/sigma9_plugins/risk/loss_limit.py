"""R8: no entries after a loss; the day's loss fires the kill switch, the week's waits for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import Field

from sigma9_core.calendar import Calendar
from sigma9_core.clock import rfc3339
from sigma9_core.contracts import PluginContext, Register, RiskRule, RiskView, Trip
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import ZERO, Frozen, OrderRequest, RuleUsage, Verdict
from sigma9_core.money.days import iso_week
from sigma9_plugins.risk.figures import Positive, known, percent, plain

NIGHT: Final = timedelta(hours=16)
"""How long a day's trip lasts at least where the calendar can't say when the next session opens."""


class LossLimitConfig(Frozen):
    """Settings of `loss_limit`: losses in percent, as positive numbers; an absent one is no limit."""

    day_percent: Positive | None = Decimal(3)
    """Of the equity that the day began with, realised and open. At it the kill switch fires."""
    week_percent: Positive | None = Decimal(10)
    """Of the equity that the week began with. At it entries stop until a person clears the rule."""
    drawdown_percent: Positive | None = None
    """Of the highest equity that there was. At it entries stop until a person clears the rule."""
    day_kills: bool = True
    """Whether the day's limit fires the kill switch, or stops entries alone."""
    confirmations: Annotated[int, Field(ge=1)] = 3
    """Looks in a row, on fresh marks, that must all see the loss before the limit trips. A loss on a mark that an
    earlier one has counted is not seen again: the symbol needs a new price."""
    confirmation_seconds: Annotated[float, Field(ge=0)] = 1.0
    """Market time between two looks that count, so that a burst of bad prints is not seen three times."""


@dataclass(slots=True)
class Gauge:
    """One limit: the day's, the week's, or the drawdown's."""

    key: str
    what: str
    limit: Decimal
    tripped: bool = False
    until: datetime | None = None
    """When the trip ends by itself; None while tripped means that a person clears it."""
    forgiven: Decimal | None = ZERO
    """The loss that a person has cleared; None: what the next look finds. It shrinks as the loss does."""
    span: str | None = None
    """The day or week of the last look: what was forgiven in it does not count in the next."""
    looks: int = 0
    looked_at: datetime | None = None
    told: bool = False
    marks: Mapping[str, datetime] = field(default_factory=dict)
    """The marks of what was held at the last look that counted: the same ones prove nothing twice."""

    def shut(self, now: datetime) -> bool:
        """Tell whether it is tripped at a market time."""
        return self.tripped and (self.until is None or now < self.until)

    def counted(self, loss: Decimal) -> Decimal:
        """Give the part of a loss that counts: what a person has not cleared."""
        return ZERO if self.forgiven is None else max(loss - self.forgiven, ZERO)


class LossLimit(RiskRule):
    """Stops entries at a loss of the day, the week, or from the peak.

    Deposits, withdrawals and foreign positions are no part of it. An entry is refused as soon as the number says
    so; a limit trips, and fires the kill switch, only when several looks in a row on fresh marks agree.
    """

    code = "R8"

    def __init__(self, name: str, config: LossLimitConfig, calendar: Calendar | None = None) -> None:
        """Store; `calendar` tells when a day's trip ends."""
        super().__init__(name)
        self._config = config
        self._calendar = calendar
        self._spacing = timedelta(seconds=config.confirmation_seconds)
        named = (
            ("day", "the day's loss", config.day_percent),
            ("week", "the week's loss", config.week_percent),
            ("drawdown", "the loss from the peak", config.drawdown_percent),
        )
        self._gauges = [Gauge(key, what, limit) for key, what, limit in named if limit is not None]

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Judge the account's losses before an entry."""
        if order.intent != "entry":
            return self.allow()
        worst: tuple[Decimal, Decimal] | None = None
        for gauge in self._gauges:
            loss = _loss(gauge, view)
            if loss is None:
                return self.refuse(
                    f"{gauge.what} is not known: the equity or its start is missing", limit=gauge.limit
                )
            used = gauge.counted(loss)
            if gauge.shut(view.now):
                end = "a person clears it" if gauge.until is None else f"{rfc3339(gauge.until)}"
                return self.refuse(
                    f"{gauge.what} reached {plain(gauge.limit)} %: no entries until {end}", used, gauge.limit
                )
            if used >= gauge.limit:
                return self.refuse(
                    f"{gauge.what} is {used:.2f} %, the limit is {plain(gauge.limit)} %", used, gauge.limit
                )
            if worst is None or used * worst[1] > worst[0] * gauge.limit:
                worst = (used, gauge.limit)
        return self.allow(*worst) if worst is not None else self.allow()

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell the loss that is nearest to its limit, in percent, and whether any limit has tripped."""
        shut = [gauge for gauge in self._gauges if gauge.shut(view.now)]
        used = limit = None
        for gauge in shut or self._gauges:
            loss = _loss(gauge, view)
            if loss is not None:
                counted = gauge.counted(loss)
                if used is None or limit is None or counted * limit > used * gauge.limit:
                    used, limit = counted, gauge.limit
        ends = [gauge.until for gauge in shut]
        until = None if None in ends else max((end for end in ends if end is not None), default=None)
        return RuleUsage(rule=self.name, used=used, limit=limit, tripped=bool(shut), until=until)

    def trip(self, view: RiskView) -> Trip | None:
        """Look at the losses; tell each limit's trip once, when enough looks in a row have seen it."""
        for gauge in self._gauges:
            self._look(gauge, view)
        for gauge in self._gauges:
            if gauge.looks >= self._config.confirmations and not gauge.told:
                gauge.told = gauge.tripped = True
                gauge.until = self._end(view) if gauge.key == "day" else None
                used = gauge.counted(_loss(gauge, view) or ZERO)
                return Trip(
                    rule=self.name,
                    reason=f"{gauge.what} is {used:.2f} %, the limit is {plain(gauge.limit)} %",
                    kill=gauge.key == "day" and self._config.day_kills,
                    used=used,
                    limit=gauge.limit,
                )
        return None

    def clear(self) -> None:
        """Let entries in again: from here on, losses count beyond what there is now."""
        for gauge in self._gauges:
            gauge.tripped = gauge.told = False
            gauge.until = gauge.forgiven = gauge.looked_at = None
            gauge.looks = 0

    def memory(self) -> Mapping[str, Any]:
        """Give the trips, and the losses that a person has cleared."""
        kept: dict[str, Any] = {}
        for gauge in self._gauges:
            if gauge.tripped or gauge.forgiven != ZERO:
                kept[gauge.key] = {
                    "span": gauge.span,
                    "tripped": gauge.tripped,
                    "until": None if gauge.until is None else rfc3339(gauge.until),
                    "forgiven": None if gauge.forgiven is None else str(gauge.forgiven),
                }
        return kept

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take back trips; a loss that still stands is told again, so that no kill is lost in a crash."""
        for gauge in self._gauges:
            kept = memory.get(gauge.key)
            if kept is not None:
                gauge.span = kept["span"]
                gauge.tripped = bool(kept["tripped"])
                gauge.until = None if kept["until"] is None else datetime.fromisoformat(kept["until"])
                gauge.forgiven = None if kept["forgiven"] is None else Decimal(kept["forgiven"])

    def _look(self, gauge: Gauge, view: RiskView) -> None:
        if gauge.tripped and not gauge.shut(view.now):
            gauge.tripped = gauge.told = False
            gauge.until, gauge.looks, gauge.looked_at = None, 0, None
        if view.session is not None and gauge.key != "drawdown":
            span = view.session.day if gauge.key == "day" else iso_week(view.session.day)
            if gauge.span is not None and span != gauge.span:
                gauge.forgiven, gauge.looks, gauge.looked_at = ZERO, 0, None
            gauge.span = span
        loss = _loss(gauge, view) if view.marks_fresh else None
        if loss is None:
            return
        now_lost = max(loss, ZERO)
        gauge.forgiven = now_lost if gauge.forgiven is None else min(gauge.forgiven, now_lost)
        if gauge.counted(loss) < gauge.limit:
            gauge.looks, gauge.looked_at = 0, None
            return
        if gauge.looked_at is not None:
            if view.now - gauge.looked_at < self._spacing:
                return
            if gauge.counted(loss - _seen_before(gauge, view)) < gauge.limit:
                return
        gauge.looks, gauge.looked_at = gauge.looks + 1, view.now
        gauge.marks = {symbol: view.marks[symbol].ts for symbol in view.positions if symbol in view.marks}

    def _end(self, view: RiskView) -> datetime:
        """Give when a day's trip ends: at the next open."""
        following = self._calendar.after(view.now) if self._calendar is not None else None
        if following is not None:
            return following.open
        return (view.session.close if view.session is not None else view.now) + NIGHT


def _seen_before(gauge: Gauge, view: RiskView) -> Decimal:
    """Give the open losses, in percent, that rest on marks which the last look that counted has seen."""
    start = _start(gauge, view)
    if not known(start):
        return ZERO
    total = ZERO
    for symbol, position in view.positions.items():
        seen, mark = gauge.marks.get(symbol), view.marks.get(symbol)
        if position.foreign or position.unrealized_pnl is None or seen is None or mark is None or mark.ts > seen:
            continue
        total += max(-position.unrealized_pnl, ZERO)
    return percent(total, start)


def _start(gauge: Gauge, view: RiskView) -> Decimal | None:
    starts = {"day": view.day_start_equity, "week": view.week_start_equity, "drawdown": view.peak_equity}
    return starts[gauge.key]


def _loss(gauge: Gauge, view: RiskView) -> Decimal | None:
    """Give the loss in percent of where it is measured from, negative for a gain; None where it is not known."""
    start, equity = _start(gauge, view), view.account.equity
    if gauge.key == "drawdown" and start is None:
        return ZERO  # nothing was ever won, so nothing can be lost from it
    if not known(start) or equity is None or not equity.is_finite():
        return None
    return percent(start - equity, start)


def build(config: LossLimitConfig, context: PluginContext) -> LossLimit:
    """Build the rule of one instance."""
    return LossLimit(context.name, config, context.calendar)


@hookimpl
def register_risk_rules(register: Register) -> None:
    """Offer `loss_limit`."""
    register("loss_limit", build, config=LossLimitConfig)

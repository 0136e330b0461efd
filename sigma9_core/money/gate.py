"""The risk gate: every order passes it, and only it can make an ApprovedOrder.

First the core's own checks, which no plugin can loosen: kill latch, engine, reconciliation, the quantity, and
whether an order that claims to reduce a position does. Then every enabled rule is asked, so that the journal has
every verdict. What a rule may do to an order depends on what the order is for: `TABLE`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import TracebackType, coroutine
from typing import Any, Final, Literal, Self, TypeVar

from sigma9_core.clock import Clock
from sigma9_core.contracts import RiskRule, RiskView, Trip
from sigma9_core.errors import CommandError
from sigma9_core.models import _APPROVAL, ZERO, ApprovedOrder, Intent, OrderRequest, OrderView, RuleUsage, Verdict
from sigma9_core.money.exposure import closable, held, is_exit
from sigma9_core.money.rules import Failure, GuardedRule, OutsideRules, Question, answer_of

log = logging.getLogger("sigma9.risk")

T = TypeVar("T")

Scope = tuple[str, str] | None
"""What a kill covers: None is everything, else ("strategy", name) or ("symbol", symbol)."""
Treatment = Literal["refuse", "warn", "skip"]
"""What a rule's refusal does: it refuses the order, it is noted as a warning, or the rule is not asked at all."""

_EVERYTHING: Final[Mapping[Intent, Treatment]] = {"entry": "refuse", "reduce": "warn", "kill": "skip"}
_QUANTITY: Final[Mapping[Intent, Treatment]] = {"entry": "refuse", "reduce": "refuse", "kill": "skip"}
_ACCOUNT: Final[Mapping[Intent, Treatment]] = {"entry": "refuse", "reduce": "refuse", "kill": "refuse"}

TABLE: Final[Mapping[str, Mapping[Intent, Treatment]]] = {
    # reason code: what a refusal does to an entry, to a reducing order, to a kill's own order
    "R1": _QUANTITY,  # order quantity
    "R2": _EVERYTHING,  # order value
    "R3": _EVERYTHING,  # price collar
    "R4": _EVERYTHING,  # position per symbol
    "R5": _EVERYTHING,  # gross and net exposure
    "R6": _EVERYTHING,  # concentration
    "R7": _EVERYTHING,  # open orders, open positions
    "R8": _EVERYTHING,  # loss
    "R9": _EVERYTHING,  # order and message rate
    "R10": _EVERYTHING,  # repeated execution
    "R11": _EVERYTHING,  # duplicates
    "R12": _EVERYTHING,  # allowed and restricted lists
    "R13": _EVERYTHING,  # session
    "R14": _EVERYTHING,  # buying power
    "R15": _ACCOUNT,  # account guard
    "R16": _EVERYTHING,  # signal age
    "R17": _QUANTITY,  # reference data
    "R18": _EVERYTHING,  # slippage watch
    "R19": _EVERYTHING,  # losses in a row
    "R20": _EVERYTHING,  # self-trade
    "R21": _EVERYTHING,  # day trades, settled cash
    "R22": _EVERYTHING,  # short sales
    "R23": _QUANTITY,  # halts
    "R24": _EVERYTHING,  # clock
    "R25": _EVERYTHING,  # feed health
}
"""Rule × intent. A rule that crashes, is late or gives no verdict of its own refuses an entry, and only warns
about any other order, whatever its code: a stop-out is never refused for a broken rule."""
OTHERS: Final = _EVERYTHING
"""How a rule with a code of its own is treated."""
CORE: Final = "CORE"
"""The reason code of the gate's own verdicts."""


LEAVING: Final = 0.02
"""Seconds that a barrier waits for an order that is being handed over; a broker that blocks longer has got it."""


_TERMS: Final = (
    "symbol",
    "side",
    "order_type",
    "limit_price",
    "stop_price",
    "trail_amount",
    "trail_percent",
    "good_after",
    "adjustment",
    "time_in_force",
    "oca_group",
)
"""What a change that only shrinks an order leaves as it is."""


class GateClosed(Exception):
    """The gate has closed in the moment in which an order was to leave; nothing has left."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of an order at the gate."""

    approved: ApprovedOrder | None
    verdicts: tuple[Verdict, ...]
    refused: Verdict | None
    """The first verdict that refused it."""


class Barrier:
    """Something that a kill has put across the gate, from whatever thread, until its own work closes the gate."""

    __slots__ = ("halt", "scope", "up")

    def __init__(self, scope: Scope, halt: bool) -> None:
        self.scope = scope
        self.halt = halt
        self.up = True

    def lift(self) -> None:
        """Take it off, from any thread and without a lock: it may be called while garbage is collected."""
        self.up = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lift()


class RiskGate:
    """Decides on one order at a time; on the money lane. Rules of unknown speed run on threads of their own."""

    def __init__(self, rules: Sequence[GuardedRule], clock: Clock, budget_seconds: float = 0.25) -> None:
        """Store; `budget_seconds` is how long an order waits for the rules that do not run inline, all in all."""
        self._rules = list(rules)
        self._clock = clock
        self._closed: dict[Scope, bool] = {}
        """What is closed, and whether it is a halt: verified reducing orders still pass."""
        self._barriers: tuple[Barrier, ...] = ()
        """Those that are up, and some that are not any more."""
        self._barring = threading.Lock()
        self._leaving = threading.Lock()
        """Held while an order passes from its last look at the gate to the broker."""
        self._held: Mapping[str, str] = {}
        self._there: Mapping[str, Decimal] = {}
        """What the broker has of the symbols that are held."""
        self._unguarded: Mapping[str, str] = {}
        self._paused: str | None = None
        self._outside = OutsideRules(budget_seconds)
        self._kept: dict[str, Any] = {}

    async def stop(self) -> None:
        """End the thread of the rules that do not run inline."""
        await self._outside.stop()

    # --- decisions --------------------------------------------------------------------------------------------

    async def decide(
        self, order_id: str, request: OrderRequest, view: RiskView, *, filled: Decimal = ZERO
    ) -> Decision:
        """Ask the core's checks and every rule; approve the order or say who refused it.

        A change of a working order is judged as a new order for what has not filled: leave it in `view.working`,
        or say in `filled` how much of it has. There is no suspension point where every rule runs inline.
        """
        mine = _working(order_id, view)
        shrinks = self._shrinks(mine, request, view)
        view, filled = _without(mine, request, view, filled)
        refused = self._core(request, view, filled, shrinks=shrinks)
        if refused is not None:
            return Decision(None, (refused,), refused)
        judged = request.model_copy(update={"quantity": request.quantity - filled}) if filled else request
        asked = [guard for guard in self._rules if guard.enabled and _treatment(guard, request) != "skip"]
        outside = [Question(guard, guard.rule.check, (judged, view)) for guard in asked if not guard.inline]
        answers: list[object] = [answer_of(g.rule.check, judged, view) if g.inline else None for g in asked]
        if outside:
            found = iter(await self._outside.ask(outside))
            answers = [
                answer if guard.inline else next(found) for guard, answer in zip(asked, answers, strict=True)
            ]
        verdicts = [_judge(guard, request, answer) for guard, answer in zip(asked, answers, strict=True)]
        late = self._latch(request, shrinks=shrinks) if outside else None
        if late is not None:  # the kill may have come while we waited
            verdicts.insert(0, late)
        if not asked and request.intent == "entry":
            verdicts.append(_refuse("risk_gate", "no risk rule is enabled: enable one before taking positions"))
        refused = next((verdict for verdict in verdicts if verdict.outcome == "refuse"), None)
        told = tuple(verdicts)
        if refused is not None:
            return Decision(None, told, refused)
        return Decision(ApprovedOrder(order_id, request, told, self._clock.now(), seal=_APPROVAL), told, None)

    # --- the latch --------------------------------------------------------------------------------------------

    def close(self, scope: Scope = None, *, halt: bool = False) -> None:
        """Refuse, from this moment on, what the scope covers; under a `halt` reducing orders still pass."""
        self._closed[scope] = halt

    def bar(self, scope: Scope = None, *, halt: bool = False) -> Barrier:
        """Close at once from any thread, before the money lane has heard of the kill; `lift` it when it has.

        When this returns, what it covers has left already or does not leave any more.
        """
        made = Barrier(scope, halt)
        with self._barring:
            self._barriers = (*(each for each in self._barriers if each.up), made)
        if self._leaving.acquire(timeout=LEAVING):
            self._leaving.release()
        return made

    async def let_out(
        self, requests: Sequence[OrderRequest], leave: Coroutine[Any, Any, T], *, shrinks: bool = False
    ) -> T:
        """Run what hands orders to the broker; raise GateClosed, before its first step, where one may not leave.

        The look and that step are one: a kill on another thread comes before both or after both. `shrinks` is
        what the method of that name has said of a change.
        """

        def stays() -> Verdict | None:
            found = (self.closing(each, shrinks=shrinks) for each in requests)
            return next((verdict for verdict in found if verdict is not None), None)

        answer: T = await _begun_under(self._leaving, stays, leave)
        return answer

    def reopen(self, scope: Scope = None) -> None:
        """Take this scope off; every other one stays closed."""
        self._closed.pop(scope, None)

    def hold(self, symbols: Mapping[str, str], there: Mapping[str, Decimal] | None = None) -> None:
        """Keep exactly these symbols closed for new orders, each with the sentence that says why.

        Neither entries nor reducing orders pass, because nobody knows what there is to reduce; a kill's own do,
        and a stop may be made as small as what is `there` at the broker.
        """
        self._held = dict(symbols)
        self._there = dict(there or {})

    def keep_closed(self, symbols: Mapping[str, str]) -> None:
        """Keep these symbols closed like those of `hold`, until the next start."""
        self._unguarded = dict(symbols)

    def pause(self, reason: str | None) -> None:
        """Take no entries while the engine does not run, with the reason; None takes them again."""
        self._paused = reason

    def shrinks(self, order_id: str, request: OrderRequest, view: RiskView) -> bool:
        """Tell whether a change only makes a working protective order as small as the position that it guards.

        It passes under any kill, and where the symbol is held: a stop that outlives its kill's wait, or the shares
        that somebody has sold at the broker, must not turn the position round.
        """
        return self._shrinks(_working(order_id, view), request, view)

    def _shrinks(self, mine: OrderView | None, request: OrderRequest, view: RiskView) -> bool:
        if mine is None or not request.protective or request.intent == "entry":
            return False
        same = all(getattr(mine, name) == getattr(request, name) for name in _TERMS)
        left = request.quantity - mine.filled_quantity
        have = held(request.symbol, view)
        there = self._there.get(request.symbol, have)
        guarded = min(abs(have), max(there if have > ZERO else -there, ZERO))
        return same and request.quantity < mine.quantity and left >= guarded

    def closed_for(self, request: OrderRequest, *, shrinks: bool = False) -> str | None:
        """Say why an order can't pass now because of kill, reconciliation or engine; None where it can."""
        verdict = self.closing(request, shrinks=shrinks)
        return None if verdict is None else verdict.reason

    def closing(self, request: OrderRequest, *, shrinks: bool = False) -> Verdict | None:
        """Give the verdict with which an order can't pass now, as `closed_for` says it."""
        return self._latch(request, shrinks=shrinks)

    def outgrown(self, order_id: str, request: OrderRequest, view: RiskView) -> str | None:
        """Say why an exit, or a change of one, is by now larger than what it can close; None where it fits."""
        if not is_exit(request.intent):
            return None
        view, filled = _without(_working(order_id, view), request, view, ZERO)
        verdict = _exit_quantity(request, view, request.quantity - filled)
        return None if verdict is None else verdict.reason

    # --- looks at the rules -----------------------------------------------------------------------------------

    def trips(self, view: RiskView) -> list[Trip]:
        """Ask each enabled rule whether its limit is reached now; call it when marks or fills moved the account.

        A rule that does not run inline is asked in the background, and its trip comes with the next call.
        """
        found: list[Trip] = []
        for guard in self._rules:
            if not guard.enabled:
                continue
            answer = answer_of(guard.rule.trip, view) if guard.inline else self._outside.take_trip(guard)
            if isinstance(answer, Trip):
                found.append(answer)
            elif answer is not None:
                guard.failed(answer if isinstance(answer, Failure) else Failure("trip() gave no Trip"))
        self._look(view)
        return found

    def usage(self, view: RiskView) -> list[RuleUsage]:
        """Tell every rule's present use against its limit, in the order of the configuration.

        Of a rule that does not run inline it tells what the last look in the background has found.
        """
        told: list[RuleUsage] = []
        for guard in self._rules:
            if guard.inline:
                answer: object = answer_of(guard.rule.usage, view)
            else:
                seen = self._outside.seen(guard)
                answer = None if seen is None else seen.usage
            if not isinstance(answer, RuleUsage) or answer.rule != guard.name:
                if answer is not None:
                    wrong = (
                        answer if isinstance(answer, Failure) else Failure("usage() gave no RuleUsage of its own")
                    )
                    guard.failed(wrong)
                answer = RuleUsage(rule=guard.name)
            told.append(answer if guard.enabled else answer.model_copy(update={"enabled": False}))
        self._look(view)
        return told

    async def settle(self) -> None:
        """Wait for the looks in the background, within their budget: for a market that runs in lock step."""
        await self._outside.settle()

    # --- the rules themselves ---------------------------------------------------------------------------------

    @property
    def rules(self) -> tuple[GuardedRule, ...]:
        """Give the rules in the order of the configuration; `error` says what is wrong with one."""
        return tuple(self._rules)

    @property
    def wants_margin(self) -> bool:
        """Tell whether an enabled rule wants to know what an entry would do to the margin."""
        return any(guard.enabled and guard.rule.wants_margin for guard in self._rules)

    def enable(self, name: str, enabled: bool) -> None:
        """Switch a rule on or off."""
        self._find(name).enabled = enabled

    def replace(self, name: str, rule: RiskRule) -> None:
        """Put a rule with new settings in the place of another; it remembers what the old one knew."""
        guard = self._find(name)
        known = self._memory_of(guard)
        self._outside.forget(guard)
        guard.rule, guard.error = rule, None
        if known:
            self.remember({name: known})

    def clear(self, name: str) -> None:
        """Let a rule forget a trip that a person has cleared."""
        guard = self._find(name)
        self._do(guard, guard.rule.clear)

    def memory(self) -> dict[str, Any]:
        """Give what the rules must know after a restart, by name; what absent rules left is kept."""
        kept = dict(self._kept)
        for guard in self._rules:
            if known := self._memory_of(guard):
                kept[guard.name] = known
        return kept

    def remember(self, memories: Mapping[str, Any]) -> None:
        """Give the rules back what `memory` gave before a restart."""
        known = {guard.name: guard for guard in self._rules}
        for name, memory in memories.items():
            guard = known.get(name)
            if guard is None:
                self._kept[name] = memory
            else:
                if not guard.inline:
                    self._outside.put_memory(guard, memory)
                self._do(guard, guard.rule.remember, memory)

    # --- inside -----------------------------------------------------------------------------------------------

    def _find(self, name: str) -> GuardedRule:
        for guard in self._rules:
            if guard.name == name:
                return guard
        known = ", ".join(guard.name for guard in self._rules) or "none"
        raise CommandError("not_found", f"no risk rule is called '{name}'; there are: {known}", {"field": "rule"})

    def _memory_of(self, guard: GuardedRule) -> dict[str, Any]:
        if guard.inline:
            answer: object = answer_of(guard.rule.memory)
        else:
            seen = self._outside.seen(guard)
            answer = None if seen is None else seen.memory
        if isinstance(answer, Mapping):
            answer = answer_of(dict, answer)  # a mapping of the rule's own may raise as well
        if isinstance(answer, dict):
            return answer
        if answer is not None:
            guard.failed(answer if isinstance(answer, Failure) else Failure("memory() gave no mapping"))
        return {}

    def _look(self, view: RiskView) -> None:
        outside = [guard for guard in self._rules if guard.enabled and not guard.inline]
        if outside:
            self._outside.look(outside, view)

    def _do(self, guard: GuardedRule, function: Callable[..., object], *args: Any) -> None:
        if guard.inline:
            answer = answer_of(function, *args)
            if isinstance(answer, Failure):
                guard.failed(answer)
        else:
            self._outside.send(guard, function, *args)

    def _latch(self, request: OrderRequest, *, shrinks: bool = False) -> Verdict | None:
        if request.intent == "kill":
            return None
        if (self._closed or self._barriers) and not shrinks:
            reducing = request.intent == "reduce"
            if self._shut(None, reducing=reducing):
                return _refuse("kill_switch", "the kill switch is on: reset it before placing orders")
            if self._shut(("symbol", request.symbol), reducing=reducing):
                return _refuse("kill_switch", f"the kill switch is on for {request.symbol}: reset it first")
            if request.strategy is not None and self._shut(("strategy", request.strategy), reducing=reducing):
                return _refuse(
                    "kill_switch", f"the kill switch is on for strategy {request.strategy}: reset it first"
                )
        why = (None if shrinks else self._held.get(request.symbol)) or self._unguarded.get(request.symbol)
        if why is not None:
            return _refuse("reconciliation", why)
        if self._paused is not None and request.intent == "entry":
            return _refuse("engine", f"the engine takes no entries: {self._paused}")
        return None

    def _shut(self, scope: Scope, *, reducing: bool) -> bool:
        if scope in self._closed and not (reducing and self._closed[scope]):
            return True
        return any(each.up and each.scope == scope and not (reducing and each.halt) for each in self._barriers)

    def _core(
        self, request: OrderRequest, view: RiskView, filled: Decimal, *, shrinks: bool = False
    ) -> Verdict | None:
        """Check what no plugin decides; give the refusal, or None."""
        refused = self._latch(request, shrinks=shrinks)
        if refused is not None:
            return refused
        quantity = request.quantity
        if not quantity.is_finite() or quantity <= filled:
            what = f"more than the {filled} that have filled" if filled else "above zero"
            return _refuse("quantity", f"the quantity must be {what}, not {quantity}")
        if is_exit(request.intent):
            return _exit_quantity(request, view, quantity - filled)
        position = view.positions.get(request.symbol)
        if position is not None and position.foreign and position.quantity:
            return _refuse(
                "foreign_position",
                f"{position.quantity} {request.symbol} are held that are not ours: adopt the position first, "
                "or trade another symbol",
            )
        return None


@coroutine
def _begun_under(lock: threading.Lock, stays: Callable[[], Verdict | None], work: Coroutine[Any, Any, T]) -> Any:
    """Run a coroutine whose first step, up to where it first waits, is one with a look, under a lock."""
    try:
        with lock:
            if (verdict := stays()) is not None:
                work.close()
                raise GateClosed(verdict)
            waits = work.send(None)
        while True:
            try:
                got = yield waits
            except BaseException as error:  # noqa: BLE001 - a cancellation is for the work to see
                waits = work.throw(error)
            else:
                waits = work.send(got)
    except StopIteration as done:
        return done.value


def _treatment(guard: GuardedRule, request: OrderRequest) -> Treatment:
    if request.intent == "kill" and not guard.inline:
        return "skip"  # a kill waits for no code of unknown speed, whatever reason code it gives itself
    return TABLE.get(guard.code, OTHERS)[request.intent]


def _judge(guard: GuardedRule, request: OrderRequest, answer: object) -> Verdict:
    """Turn a rule's answer into the verdict that counts for an order of this intent."""
    if isinstance(answer, Verdict):
        if answer.rule == guard.name and answer.code == guard.code:
            guard.fine()
            if answer.outcome == "refuse" and _treatment(guard, request) == "warn":
                return answer.model_copy(update={"outcome": "warn"})
            return answer
        answer = Failure(f"its verdict is signed {answer.rule} ({answer.code})")
    failure = (
        answer if isinstance(answer, Failure) else Failure(f"check() gave {type(answer).__name__}, no Verdict")
    )
    guard.failed(failure)
    outcome: Literal["warn", "refuse"] = "refuse" if request.intent == "entry" else "warn"
    reason = f"the rule {guard.name} gave no verdict: {failure.reason}"
    return Verdict(rule=guard.name, code=guard.code, outcome=outcome, reason=reason)


def _exit_quantity(request: OrderRequest, view: RiskView, quantity: Decimal) -> Verdict | None:
    """Refuse an exit that is larger than what it can close, so that two exits together can't flip a position."""
    room = closable(request.symbol, request.side, view, oca_group=request.oca_group, parent_id=request.parent_id)
    if quantity <= room:
        return None
    position = view.positions.get(request.symbol)
    have = ZERO if position is None else position.quantity
    reason = (
        f"a {request.side} of {quantity} {request.symbol} would not only reduce: the position is {have}, "
        f"and {room} of it are free of working exits"
    )
    return _refuse("exit_quantity", reason, quantity, room)


def _refuse(rule: str, reason: str, used: Decimal | None = None, limit: Decimal | None = None) -> Verdict:
    return Verdict(rule=rule, code=CORE, outcome="refuse", reason=reason, used=used, limit=limit)


def _working(order_id: str, view: RiskView) -> OrderView | None:
    """Find the order that is being changed; None for a new one."""
    for order in view.working:  # a plain loop: this is asked for every order, of all that work
        if order.order_id == order_id:
            return order
    return None


def _without(
    mine: OrderView | None, request: OrderRequest, view: RiskView, filled: Decimal
) -> tuple[RiskView, Decimal]:
    """Take an order that is being changed out of the view that its change is judged by."""
    if mine is None:
        return view, filled
    order_id = mine.order_id
    counted = view.intents.get(order_id) == "entry" and request.intent == "entry"
    return (
        replace(
            view,
            working=tuple(order for order in view.working if order.order_id != order_id),
            recent=tuple(sent for sent in view.recent if sent.order_id != order_id),
            entries_today=max(view.entries_today - 1, 0) if counted else view.entries_today,
        ),
        mine.filled_quantity,
    )


__all__ = [
    "CORE",
    "OTHERS",
    "TABLE",
    "Barrier",
    "Decision",
    "GateClosed",
    "GuardedRule",
    "RiskGate",
    "Scope",
    "Treatment",
]

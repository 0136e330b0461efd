"""The kill switch: it closes the gate, latches, cancels our orders, closes our positions, and goes on until the
broker's own read-back shows that nothing is left (contract 4, safety.md K1 to K18).

Everything here runs on the money lane. A kill acts on what our journal opened; what is foreign is touched only
where `kill_switch.foreign` says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeVar

from sigma9_core.calendar import Calendar
from sigma9_core.clock import Clock, monotonic, rfc3339, wall_now
from sigma9_core.commands import KillArgs, Scope
from sigma9_core.config import KillSwitchSettings
from sigma9_core.contracts import BrokerOrder
from sigma9_core.errors import BrokerError, CommandError, JournalError
from sigma9_core.models import ZERO, OrderRequest, OrderStatus
from sigma9_core.money.adoption import adoption
from sigma9_core.money.desk import OrderDesk
from sigma9_core.money.exits import ExitManager
from sigma9_core.money.gate import Barrier, RiskGate
from sigma9_core.money.gate import Scope as GateScope
from sigma9_core.money.latch import Latch, LatchedScope, LatchState
from sigma9_core.money.link import BrokerLink
from sigma9_core.money.orders import Order
from sigma9_core.money.records import FillRecord, NoteRecord

log = logging.getLogger("sigma9.kill")

T = TypeVar("T")

Phase = Literal["off", "gated", "cancelling", "flattening", "done", "failed"]
Key = GateScope
"""What a kill covers: None is everything, else ("strategy", name) or ("symbol", symbol)."""

LATCH_BUDGET: Final = 0.05
LATCH_AGAIN: Final = 1.0
"""Seconds between two tries of a latch that could not be written."""
LATCH_FAULT: Final = "the latch can't be written"
ANSWER_WITHIN: Final = 2.0
TURNS: Final = 2
"""Turns of the loop until the cancels of the first round, each a task of its own, have left."""
ROUND: Final = 0.25
"""Seconds between two looks while a kill works; reports wake it earlier."""
ROUND_WAITING: Final = 2.0
"""The same while it waits for the market to open."""
WAITING_FOR_MARKET: Final = "waiting_for_market"
NOT_READ_BACK: Final = (
    "what the broker has done while it was away is not read back yet: a close could be of the wrong size, "
    "so cancels go out and closes wait"
)
DRILL_ROUNDS: Final = 240
LONGEST_WAIT: Final = 10.0
"""Seconds between two closes of a symbol that keep coming to nothing."""
GIVE_UP_ROUNDS: Final = 40
"""Rounds without any progress until the phase says `failed`; it goes on trying all the same."""
ASK_AGAIN: Final = timedelta(seconds=5)
REFUSED_AGAIN: Final = timedelta(seconds=0.5)
"""The same for a cancel that the broker did not take."""
READ_WITHIN: Final = 5.0
"""Seconds that one of the broker's read-backs may take; then the round ends, and the next one asks again."""
CANCELS_WITHIN: Final = 0.5
"""Seconds that a round gives its cancels; one that hangs goes on by itself, and holds nothing else up."""


_FINISHED: Final[Mapping[Phase, int]] = {
    "failed": 0,
    "gated": 1,
    "cancelling": 2,
    "flattening": 3,
    "done": 4,
    "off": 5,
}
"""How far a kill has come: the one that has furthest to go is told."""
_OFF: Final[Mapping[str, Any]] = {
    "state": "OFF",
    "latched": False,
    "phase": "off",
    "detail": None,
    "scopes": [],
    "reason": None,
    "source": None,
    "at": None,
    "cancelled": [],
    "closed": [],
    "pending": [],
    "error": None,
}


def key_of(scope: Scope | None) -> Key:
    """Turn a command's scope into the key that gate and latch use."""
    if scope is None:
        return None
    if scope.strategy is not None:
        return ("strategy", scope.strategy)
    return ("symbol", str(scope.symbol))


def scope_body(key: Key) -> dict[str, str] | None:
    """Write a key as the contract's scope object."""
    return None if key is None else {key[0]: key[1]}


@dataclass(slots=True)
class Kill:
    """One kill that is in force: what it covers, why, and what it has done so far."""

    key: Key
    flatten: bool
    reason: str
    source: str
    at: datetime
    phase: Phase = "gated"
    told: Phase | None = None
    """The phase that others were told of last."""
    detail: str | None = None
    error: str | None = None
    latched: bool = False
    latch_error: str | None = None
    """Why a restart would not know of it."""
    cancelled: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Symbols of which the broker shows what our books do not explain."""
    closing: dict[str, str] = field(default_factory=dict)
    """The closing order of each symbol, by id."""
    asked: dict[str, datetime] = field(default_factory=dict)
    """When each cancel was last asked for (wall clock)."""
    cancels_sent: asyncio.Event = field(default_factory=asyncio.Event)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    idle_rounds: int = 0
    drill: bool = False
    """Begun by a drill, and no real kill has joined it."""
    joins: int = 0
    """How often it was fired; a reset that was overtaken by another fire does not reset."""
    ending: bool = False
    """A reset asks the work to end; it is never cut off in the middle of an order."""
    tries: dict[str, int] = field(default_factory=dict)
    """Closes that came to nothing, by symbol."""
    guarded: dict[str, int] = field(default_factory=dict)
    """At which of these tries a stop was put back."""
    not_before: dict[str, float] = field(default_factory=dict)
    """When the next close of a symbol may be sent (monotonic): the wait grows with the tries."""

    def covers(self, request: OrderRequest) -> bool:
        """Tell whether an order falls under this kill."""
        if self.key is None:
            return True
        kind, name = self.key
        return (request.strategy if kind == "strategy" else request.symbol) == name


class KillSwitch:
    """Fires, joins, resumes after a restart, and resets kills."""

    def __init__(
        self,
        *,
        gate: RiskGate,
        latch: Latch,
        desk: OrderDesk,
        exits: ExitManager,
        clock: Clock,
        calendar: Calendar,
        settings: KillSwitchSettings,
        on_change: Callable[[], None],
        on_fire: Callable[[Key], None],
    ) -> None:
        self.last_drill: datetime | None = None
        self._gate = gate
        self._latch = latch
        self._desk = desk
        self._exits = exits
        self._clock = clock
        self._calendar = calendar
        self._settings = settings
        self._changed = on_change
        self._fired = on_fire
        self._link: BrokerLink | None = None
        self._kills: dict[Key, Kill] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._disk = ThreadPoolExecutor(1, "sigma9-latch")
        self._letting_go: set[Key] = set()
        """Kills that are being reset: the latch is written without them."""
        self._asking: set[asyncio.Task[None]] = set()
        """Cancels that are on their way."""
        self._latching: asyncio.Task[None] | None = None
        """Tries to write a latch that could not be written."""
        exits.stands_down = self.owns_exits
        desk.followers.append(lambda _step: self._wake())

    # --- doors ----------------------------------------------------------------------------------------------

    @property
    def latched(self) -> bool:
        """Tell whether the global kill is in force."""
        return None in self._kills

    def covers_strategy(self, name: str) -> bool:
        """Tell whether a kill of just this strategy is in force."""
        return ("strategy", name) in self._kills

    def attach(self, link: BrokerLink) -> None:
        """Name the link that orders go out by."""
        self._link = link

    def gate_now(
        self, *, reason: str, source: str, flatten: bool | None, scope: Scope | None, drill: bool = False
    ) -> Kill:
        """Close the gate in memory, before anything else; a second kill joins the first."""
        key = key_of(scope)
        wants_flatten = self._flattens(flatten)
        kill = self._kills.get(key)
        if kill is None:
            kill = Kill(key, wants_flatten, reason, source, wall_now(), drill=drill)
            self._kills[key] = kill
        elif kill.drill and not drill:
            kill.drill, kill.reason, kill.source = False, reason, source  # from here on it is a real one
        if wants_flatten and not kill.flatten:
            kill.flatten, kill.phase = True, "gated"  # a halt that becomes a flatten goes on from here
        kill.joins += 1
        kill.told = None
        kill.cancels_sent.clear()
        self._gate.close(key, halt=not kill.flatten)
        return kill

    def owns_exits(self, symbol: str, strategy: str | None) -> bool:
        """Tell whether a flattening kill covers a position: its exits are then the kill's."""
        keys: tuple[Key, ...] = (None, ("symbol", symbol), ("strategy", strategy or ""))
        return any(key in self._kills and self._kills[key].flatten for key in keys)

    def bar(self, args: KillArgs) -> Barrier:
        """Close the gate at once, from any thread, for what a kill will cover."""
        return self._gate.bar(key_of(args.scope), halt=not self._flattens(args.flatten))

    def _flattens(self, flatten: bool | None) -> bool:
        return self._settings.flatten if flatten is None else flatten

    async def fire(
        self,
        *,
        reason: str,
        source: str,
        flatten: bool | None = None,
        scope: Scope | None = None,
        taken: Callable[[], None] | None = None,
        drill: bool = False,
    ) -> Mapping[str, Any]:
        """Kill: gate, latch, strategies, cancels, closes. Answer once the cancels have left, or after 2 s.

        `taken` is told once the gate is closed for good: a barrier that stood in for it can go.
        """
        joined = key_of(scope) in self._kills
        note = self._nothing_of(key_of(scope))
        kill = self.gate_now(reason=reason, source=source, flatten=flatten, scope=scope, drill=drill)
        if taken is not None:
            taken()
        log.critical("KILL SWITCH (%s) by %s: %s", _told(kill.key), source, reason)
        await self._write_latch(kill)
        self._work(kill)
        self._say(lambda: self._fired(kill.key))
        for _ in range(TURNS):  # the cancels leave before anybody is told of the kill: telling takes its time
            await asyncio.sleep(0)
        self._trail("joined" if joined else "fired", kill, source=source, reason=reason)
        if kill.told != kill.phase:
            self._enter(kill, kill.phase)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await kill.cancels_sent.wait()
        except TimeoutError:
            log.warning("the kill's cancels have not all left after %g s; it goes on", ANSWER_WITHIN)
        if kill.phase != "done":
            kill.pending = self._pending(kill)
        result: dict[str, Any] = {
            "cancelled_orders": list(kill.cancelled),
            "closed_positions": list(kill.closed),
            "pending": list(kill.pending),
            "latched": kill.latched,
        }
        if note is not None and not (kill.cancelled or kill.closed or kill.pending):
            result["note"] = note
        return result

    def _nothing_of(self, key: Key) -> str | None:
        """Say that nothing of ours has the symbol of a kill, and which one was perhaps meant; else None."""
        if key is None or key[0] != "symbol":
            return None
        ours = {position.symbol for position in self._desk.portfolio.positions() if not position.foreign}
        ours |= {order.request.symbol for order in self._desk.open_orders()}
        if key[1] in ours:
            return None
        alike = sorted(symbol for symbol in ours if symbol.casefold() == key[1].casefold())
        meant = f"; did you mean {' or '.join(alike)}? Symbols are case-sensitive" if alike else ""
        return f"nothing of ours has the symbol {key[1]}; the gate is closed for it{meant}"

    async def reset(self, reason: str, scope: Scope | None, source: str) -> Mapping[str, Any]:
        """Unlatch; the engine stays stopped. What the kill has sent and has not filled is cancelled first.

        Raise CommandError: `conflict` where it is not on, `busy` while a close of its own can't be taken back,
        `internal` where the latch can't be written.
        """
        key = key_of(scope)
        kill = self._kills.get(key)
        if kill is None:
            raise CommandError(
                "conflict", "the kill switch is not on" if key is None else f"no kill of {key[1]} is on"
            )
        if kill.ending:
            raise CommandError("busy", "it is being reset at this moment")
        kill.ending = True
        try:
            await self._end(kill)
        except BaseException:
            kill.ending = False
            self._work(kill)  # it stays on, whatever kept it from being reset
            raise
        kill.ending = False
        self._gate.reopen(key)
        self._exits.review()
        self._trail("reset", kill, source=source, reason=reason)
        log.warning("kill switch reset by %s: %s", source, reason)
        self._tell()
        return self.body()

    async def _end(self, kill: Kill) -> None:
        """End a kill's work, take its closes back, and forget it; raise CommandError where it stays on."""
        joins = kill.joins
        await self._end_work(kill)
        left = await self._take_back_closes(kill, joins)
        if kill.joins != joins:
            raise _joined()
        if left:
            raise CommandError(
                "busy",
                f"the kill's closing orders {', '.join(left)} still work and can't be cancelled now: "
                "the kill stays on; reset it again once they have filled",
            )
        self._letting_go.add(kill.key)  # whoever else writes the latch meanwhile leaves it out as well
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk, self._latch.write, self._latch_state())
        except OSError as error:
            await self._latch_again(kill)  # what was written without it may be in the file, for all the error
            raise CommandError("internal", f"the latch can't be written ({error}); the kill stays on") from error
        finally:
            self._letting_go.discard(kill.key)
        if kill.joins != joins:
            await self._latch_again(kill)
            raise _joined()
        del self._kills[kill.key]

    async def _take_back_closes(self, kill: Kill, joins: int) -> list[str]:
        """Cancel the kill's own orders that still work, and wait a moment; give those that still do.

        A close that outlived its kill would sell what a person has decided to keep.
        """
        mine = [
            order
            for order in self._desk.open_orders()
            if order.request.intent == "kill" and kill.covers(order.request) and not self._another(kill, order)
        ]
        await self._side_by_side(self._take_back(order) for order in mine)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                while kill.joins == joins and any(order.working for order in mine):
                    kill.wake.clear()
                    await kill.wake.wait()
        except TimeoutError:
            pass
        return [order.order_id for order in mine if order.working]

    def _another(self, kill: Kill, order: Order) -> bool:
        """Tell whether another kill in force closes what this order does."""
        others = (each for each in self._kills.values() if each is not kill and not each.ending)
        return any(each.flatten and each.covers(order.request) for each in others)

    async def _take_back(self, order: Order) -> None:
        try:
            await self._desk.ask_cancel(order)
        except CommandError as error:
            log.warning("the close %s can't be cancelled: %s", order.order_id, error)

    async def drill(self, source: str) -> Mapping[str, Any]:
        """Try the whole path on a paper or simulated account, and reset it afterwards."""
        if self._kills:
            raise CommandError("conflict", "a kill is on: there is nothing to drill")
        account = await self._read("account", self._link_up().broker.account())
        if account.mode == "live":
            raise CommandError("forbidden", "a drill would close real positions: it is refused on a live account")
        if self._kills:
            raise CommandError("conflict", "a kill came before the drill: it stays on")
        started = asyncio.get_running_loop().time()
        kill = self.gate_now(reason="drill", source=source, flatten=True, scope=None, drill=True)
        result = dict(await self.fire(reason="drill", source=source, flatten=True, drill=True))
        for _ in range(DRILL_ROUNDS):
            if kill.phase == "done" or not kill.drill or self._kills.get(None) is not kill:
                break
            await asyncio.sleep(ROUND)
        if self._kills.get(None) is not kill:
            raise CommandError("conflict", "the drill was reset before it was over")
        if not kill.drill:
            raise CommandError("conflict", "a real kill came during the drill: it stays on")
        seconds = asyncio.get_running_loop().time() - started
        result |= {"phase": kill.phase, "detail": kill.detail, "seconds": round(seconds, 3)}
        result |= {"cancelled_orders": list(kill.cancelled), "closed_positions": list(kill.closed)}
        result["pending"] = list(kill.pending)
        if kill.phase == "done":  # one that waited for the market has shown nothing
            self.last_drill = wall_now()
            self._trail("drilled", kill, wall=rfc3339(self.last_drill))
        await self.reset("the drill is over", None, source)
        return result

    def remember(self, notes: Sequence[NoteRecord]) -> None:
        """Take back, from the newest notes on, what the kills that are in force have done before a restart."""
        seen: set[Key] = set()
        for note in notes:
            if note.body["what"] == "drilled":
                self.last_drill = self.last_drill or datetime.fromisoformat(note.body["wall"])
                continue
            scope = note.body.get("scope")
            key = None if scope is None else key_of(Scope.model_validate(scope))
            kill = self._kills.get(key)
            if kill is None or key in seen or note.body.get("what") == "reset":
                seen.add(key)  # what came before a reset belongs to another kill
                continue
            seen.add(key)
            kill.cancelled, kill.closed = [*note.body["cancelled"]], [*note.body["closed"]]
            if note.body["what"] == "done" and not self._something_left(kill):
                kill.phase = "done"  # the broker is read again; what is as it was is not told again

    def resume(self, state: LatchState) -> None:
        """Take up after a restart what was latched: the gate closes at once, the work goes on."""
        for latched in state.scopes:
            kill = Kill(
                latched.key,
                latched.flatten,
                latched.reason,
                latched.source,
                latched.at or wall_now(),
                latched=True,
            )
            self._kills[latched.key] = kill
            self._gate.close(latched.key, halt=not kill.flatten)
            if latched.key is None and state.error is not None:
                kill.error = state.error
            log.critical("still killed (%s): %s", _told(latched.key), latched.reason)
        self._tell()

    def go_on(self) -> None:
        """Work on every kill that is in force; called when the broker has been reconciled."""
        for kill in self._kills.values():
            self._work(kill)

    async def close(self) -> None:
        """Stop working; the latch stays as it is."""
        tasks = [*self._tasks.values(), *self._asking]
        if self._latching is not None:
            tasks.append(self._latching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._disk.shutdown(wait=False)

    def body(self) -> dict[str, Any]:
        """Give the `state/kill_switch` object (contract 1).

        Where several kills are in force it tells the phase of the one that has furthest to go, and what all of
        them have done and have left.
        """
        kills = sorted(self._kills.values(), key=lambda kill: kill.key is not None)  # the global one first
        if not kills:
            return {**_OFF, "last_drill": rfc3339(self.last_drill) if self.last_drill else None}
        first, last = kills[0], min(kills, key=lambda kill: _FINISHED[kill.phase])
        errors = [last.error, *(kill.latch_error for kill in kills), *(kill.error for kill in kills)]
        return {
            "state": "ON" if None in self._kills else "OFF",
            "latched": all(kill.latched for kill in kills),
            "phase": last.phase,
            "detail": last.detail,
            "scopes": [scope_body(key) for key in self._kills if key is not None],
            "reason": first.reason,
            "source": first.source,
            "at": rfc3339(first.at),
            "cancelled": _once(kill.cancelled for kill in kills),
            "closed": _once(kill.closed for kill in kills),
            "pending": _once(kill.pending for kill in kills),
            "error": next((error for error in errors if error), None),
            "last_drill": rfc3339(self.last_drill) if self.last_drill else None,
        }

    # --- the work -------------------------------------------------------------------------------------------

    def _work(self, kill: Kill) -> None:
        task = self._tasks.get(kill.key)
        if not kill.ending and (task is None or task.done()):
            name = f"kill[{scope_body(kill.key) or 'everything'}]"
            self._tasks[kill.key] = asyncio.get_running_loop().create_task(self._run(kill), name=name)
        else:
            kill.wake.set()

    async def _end_work(self, kill: Kill) -> None:
        """End the work of a kill that is `ending`, between two of its steps: an order is never left half sent."""
        task = self._tasks.pop(kill.key, None)
        if task is not None:
            kill.wake.set()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, kill: Kill) -> None:
        again = kill.phase == "done"
        told: str | None = None
        while not kill.ending:
            before = self._progress(kill)
            error: str | None = None
            done = False
            try:
                done = await self._round(kill)
            except (CommandError, BrokerError, JournalError, TimeoutError, OSError) as fault:
                error = str(fault) or type(fault).__name__
            except Exception as fault:
                # A broker plugin may raise anything; the kill must go on whatever it was.
                error = f"{type(fault).__name__}: {fault}"
                log.exception("a round of the kill failed; it goes on")
            if error is not None:
                kill.error = told = error
            elif kill.error == told:
                kill.error = told = None  # what kept the last round is over
            if done and again:  # it was done before this look, and still is
                if kill.phase != "done":  # looks without a broker had given up meanwhile
                    kill.phase, kill.detail, kill.error, kill.pending = "done", None, None, []
                    self._tell()
                return
            if again and error is None:
                again, kill.phase = False, "gated"  # there is something left after all
                continue
            if done:
                kill.phase, kill.detail, kill.error, kill.pending = "done", None, None, []
                kill.cancels_sent.set()
                self._trail("done", kill)
                log.critical("kill switch done: %d cancelled, %d closed", len(kill.cancelled), len(kill.closed))
                self._tell()
                return
            kill.pending = self._pending(kill)
            moved = self._progress(kill) != before
            kill.idle_rounds = 0 if moved else kill.idle_rounds + 1
            if kill.idle_rounds == GIVE_UP_ROUNDS and kill.detail != WAITING_FOR_MARKET:
                kill.phase = "failed"
                self._trail("failed", kill)
                log.critical("the kill makes no progress (%s); it goes on trying", kill.error)
            if moved or error is not None or kill.idle_rounds == GIVE_UP_ROUNDS:
                self._tell()
            kill.wake.clear()
            try:
                async with asyncio.timeout(ROUND_WAITING if kill.detail == WAITING_FOR_MARKET else ROUND):
                    await kill.wake.wait()
            except TimeoutError:
                pass  # time for the next look

    def _enter(self, kill: Kill, phase: Phase) -> None:
        """Say in which phase a kill is, and what is left at this moment."""
        kill.phase = phase
        kill.pending = [] if phase == "done" else self._pending(kill)
        self._tell()

    def _progress(self, kill: Kill) -> tuple[object, ...]:
        return (len(kill.cancelled), len(kill.closed), tuple(kill.pending), len(kill.closing), kill.detail)

    def _pending(self, kill: Kill) -> list[str]:
        """Name what is left: our working orders and, where it flattens, our positions."""
        orders = [
            order.order_id
            for order in self._desk.open_orders()
            if kill.covers(order.request) and (kill.flatten or order.request.intent == "entry")
        ]
        return [*orders, *(self._positions(kill) if kill.flatten else ()), *kill.unknown]

    async def _round(self, kill: Kill) -> bool:
        """Do what can be done now; tell whether nothing is left."""
        link = self._link_up()
        cancels = self._to_cancel(kill)
        first = kill.phase == "gated"
        if first:
            kill.phase = "cancelling"
        await self._cancel(kill, cancels)
        kill.cancels_sent.set()
        if first and self._pending(
            kill
        ):  # where there is nothing to do it is done before anybody could hear of it
            self._enter(kill, "cancelling")
        foreign = (
            await self._foreign_orders(kill) if self._settings.foreign != "leave" and kill.key is None else []
        )
        if kill.error == NOT_READ_BACK:
            kill.error = None
        if kill.flatten and self._behind(link):
            kill.detail, kill.error = "waiting_for_broker", NOT_READ_BACK
        elif kill.flatten:
            await self._flatten(kill)
        left = await self._left_orders(kill)
        await self._cancel_strays(kill, left)
        kill.unknown = []
        if left or foreign or not link.ready or self._pending(kill):
            return False
        if kill.flatten and (unknown := await self._unknown_positions(kill)):
            kill.unknown = unknown
            kill.error = f"the broker shows {', '.join(unknown)}, and our books do not explain it yet"
        return not kill.unknown

    def _to_cancel(self, kill: Kill) -> list[Order]:
        """List the orders to cancel now: all but verified reducing ones, which go when their close can work."""
        return [
            order
            for order in self._desk.open_orders()
            if kill.covers(order.request)
            and self._to_go(order)
            and (kill.flatten or order.request.intent == "entry")
        ]

    def _to_go(self, order: Order) -> bool:
        """Tell whether an order can go now; a stop goes with its close, or once there is nothing left to guard."""
        if order.request.protective:
            return order.request.intent == "kill" and not self._desk.portfolio.quantity(order.request.symbol)
        return order.request.intent != "kill"

    async def _cancel(self, kill: Kill, orders: list[Order]) -> None:
        """Ask for cancels, side by side, and take down what has been cancelled."""
        asked = [order for order in orders if order.working and self._may_ask(kill, order.order_id)]
        await self._side_by_side(self._ask_cancel(kill, order) for order in asked)
        for order_id in kill.asked:
            ended = self._desk.orders.get(order_id)
            if (
                ended is not None
                and ended.status in (OrderStatus.CANCELLED, OrderStatus.EXPIRED)
                and order_id not in kill.cancelled
            ):
                kill.cancelled.append(order_id)

    async def _ask_cancel(self, kill: Kill, order: Order) -> None:
        try:
            await self._desk.ask_cancel(order)
        except CommandError as error:  # nothing has left: it is asked for again as soon as it can
            kill.asked.pop(order.order_id, None)
            kill.error = str(error)
        else:
            if (
                order.working and not order.cancel_asked
            ):  # refused, or never arrived: the order may be on its way yet
                kill.asked[order.order_id] = wall_now() - ASK_AGAIN + REFUSED_AGAIN

    async def _cancel_strays(self, kill: Kill, left: list[str]) -> None:
        """Cancel what the broker still shows of ours although our books say that it has ended."""
        ended = [each for each in left if (order := self._desk.orders.get(each)) is None or not order.working]
        await self._cancel_at_broker(kill, ended)

    async def _cancel_at_broker(self, kill: Kill, ids: Sequence[str]) -> None:
        """Cancel orders that our books do not have as working."""
        broker = self._link_up().broker
        asked = [each for each in ids if self._may_ask(kill, each)]
        await self._side_by_side(self._cancel_stray(kill, each, broker.cancel(each)) for each in asked)

    async def _cancel_stray(self, kill: Kill, order_id: str, cancel: Awaitable[None]) -> None:
        try:
            await self._read("cancel", cancel)
        except Exception as error:  # noqa: BLE001 - a broker plugin may raise anything; a cancel is asked again
            log.warning("the cancel of order %s failed: %s", order_id, error)
            if kill.phase != "done":
                kill.error = f"the cancel of order {order_id} failed: {error}"

    def _may_ask(self, kill: Kill, order_id: str) -> bool:
        """Tell whether a cancel may be asked for now, and take down that it was."""
        now = wall_now()
        last = kill.asked.get(order_id)
        if last is not None and now - last < ASK_AGAIN:
            return False
        kill.asked[order_id] = now
        return True

    async def _side_by_side(self, cancels: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Send cancels in one go and give them a moment; one that hangs goes on beside everything else."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(cancel, name="kill-cancel") for cancel in cancels]
        self._asking.update(tasks)
        for task in tasks:
            task.add_done_callback(self._asking.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=CANCELS_WITHIN)

    async def _flatten(self, kill: Kill) -> None:
        if kill.phase == "cancelling":
            kill.phase = "flattening"
            if self._positions(kill):
                self._enter(kill, "flattening")
        market_open = self._calendar.at(self._clock.now()) is not None
        waiting: list[str] = []
        work: list[Coroutine[Any, Any, None]] = []
        for symbol, quantity in self._positions(kill).items():
            closing = self._working_close(symbol)
            if closing is not None:  # one working close a symbol; `unknown` counts as working
                kill.closing[symbol] = closing.order_id
            elif not market_open or self._halted(symbol):
                waiting.append(symbol)
                self._exits.fit(symbol)
            elif monotonic() >= kill.not_before.get(symbol, 0.0):
                work.append(self._close(kill, symbol, quantity))
            else:
                work.append(self._protect(kill, symbol, quantity))
        ends = await asyncio.gather(*work, return_exceptions=True)  # one that hangs holds up no other symbol
        for symbol, order_id in kill.closing.items():
            if symbol not in kill.closed and self._desk.portfolio.quantity(symbol) == ZERO:
                order = self._desk.orders.get(order_id)
                if order is None or not order.working:
                    kill.closed.append(symbol)
        kill.detail = WAITING_FOR_MARKET if waiting else None
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _close(self, kill: Kill, symbol: str, quantity: Decimal) -> None:
        """Close one position: nothing that protects it goes before its close is known to pass."""
        legs = [o for o in self._desk.open_orders() if o.request.symbol == symbol and not _closes(o)]
        others = [order for order in legs if not order.request.protective]
        await self._cancel(kill, others)
        if any(order.working for order in others):
            return  # an entry or exit that may still fill would change what is to be closed
        fresh = await self._fresh(symbol)
        if fresh == ZERO or (fresh > 0) != (quantity > 0):
            return
        request = self._request(kill, symbol, min(abs(fresh), abs(quantity)), "sell" if fresh > 0 else "buy")
        view = self._desk.view()
        alone = replace(view, working=[order for order in view.working if order.symbol != symbol])
        decision = await self._gate.decide("preview", request, alone)
        if decision.refused is not None:
            self._later(kill, symbol, f"{symbol}: {decision.refused.rule}: {decision.refused.reason}")
            return
        await self._cancel(kill, legs)
        if any(order.working for order in legs):
            return  # a stop that may still fill would take the position through zero
        fresh = await self._fresh(symbol)  # a stop may have filled meanwhile
        if fresh == ZERO or (fresh > 0) != (quantity > 0):
            return
        request = request.model_copy(update={"quantity": min(abs(fresh), abs(quantity))})
        if kill.ending or self._working_close(symbol) is not None:
            return  # a reset asks for the end, or another kill over the same position was faster
        if self._desk.portfolio.position(symbol).foreign:
            self._adopt(symbol)
        self._later(kill, symbol, None)
        order = (await self._desk.submit([request], cause="kill_switch", urgent=True))[0]
        if order.status is OrderStatus.RISK_REJECTED:
            self._later(kill, symbol, f"{symbol}: {order.reason}")
        else:
            kill.closing[symbol] = order.order_id

    def _request(self, kill: Kill, symbol: str, quantity: Decimal, side: Literal["buy", "sell"]) -> OrderRequest:
        return OrderRequest(
            symbol=symbol,
            side=side,
            quantity=quantity,
            strategy=self._desk.portfolio.position(symbol).strategy,
            source="kill_switch",
            intent="kill",
            reason=f"kill switch: {kill.reason}"[:200],
        )

    async def _protect(self, kill: Kill, symbol: str, quantity: Decimal) -> None:
        """Put a stop back while the next close of a position waits: the last one came to nothing.

        Its stops had to go before the close could work; without one, a broker that refuses every close would
        leave the position to the market.
        """
        legs = [o for o in self._desk.open_orders() if o.request.symbol == symbol]
        tried = kill.guarded.get(symbol) == kill.tries.get(symbol)
        if symbol not in kill.closing or tried or any(order.request.protective for order in legs):
            return
        kill.guarded[symbol] = kill.tries.get(symbol, 0)
        side: Literal["buy", "sell"] = "sell" if quantity > 0 else "buy"
        price = self._exits.stop_price_of(symbol)
        if price is None:
            return
        stop = self._request(kill, symbol, abs(quantity), side).model_copy(
            update={"order_type": "stop", "stop_price": price, "time_in_force": "gtc", "protective": True}
        )
        order = (await self._desk.submit([stop], cause="kill_switch", urgent=True))[0]
        log.error("the close of %s came to nothing; its stop at %s is put back (%s)", symbol, price, order.status)

    def _later(self, kill: Kill, symbol: str, error: str | None) -> None:
        """Let the next close of a symbol wait, each time longer: a broker that refuses is not flooded."""
        tries = kill.tries[symbol] = kill.tries.get(symbol, 0) + 1
        kill.not_before[symbol] = monotonic() + min(LONGEST_WAIT, ROUND * 2**tries)
        if error is not None:
            kill.error = error

    def _adopt(self, symbol: str) -> None:
        """Take a foreign position that is to be closed into the books: its close is then no short of ours."""
        fill = adoption(self._desk.portfolio.position(symbol), self._clock.now())
        self._desk.note([FillRecord(fill, None, "kill_switch", recovered=True)])
        self._desk.portfolio.adopt(fill, None)

    def _working_close(self, symbol: str) -> Order | None:
        """Find a close of this or an earlier kill that still works, such as one sent before a restart."""
        for order in self._desk.open_orders():
            if order.request.symbol == symbol and _closes(order):
                return order
        return None

    # --- reading ----------------------------------------------------------------------------------------------

    def _positions(self, kill: Kill) -> dict[str, Decimal]:
        """Give what is to be closed: ours in scope, and foreign ones where the configuration says `flatten`."""
        found: dict[str, Decimal] = {}
        for position in self._desk.portfolio.positions():
            if position.foreign and not (self._settings.foreign == "flatten" and kill.key is None):
                continue
            wanted = kill.key is None or (
                position.strategy == kill.key[1] if kill.key[0] == "strategy" else position.symbol == kill.key[1]
            )
            if wanted and position.quantity != ZERO:
                found[position.symbol] = position.quantity
        return found

    async def _fresh(self, symbol: str) -> Decimal:
        """Read a position back from the broker."""
        positions = await self._read("positions", self._link_up().broker.positions())
        return next((p.quantity for p in positions if p.symbol == symbol), ZERO)

    async def _unknown_positions(self, kill: Kill) -> list[str]:
        """Name the symbols in which the broker shows more, or less, than our books and what is known as foreign.

        Such as a fill whose report is on its way: nothing is done as long as the broker shows what nobody knows.
        """
        portfolio, unknown = self._desk.portfolio, []
        for shown in await self._read("positions", self._link_up().broker.positions()):
            symbol = shown.symbol
            if kill.key is not None and (
                symbol != kill.key[1] if kill.key[0] == "symbol" else portfolio.quantity(symbol) != ZERO
            ):
                continue  # it is none of this kill's
            if shown.quantity not in (ZERO, portfolio.position(symbol).quantity):
                unknown.append(symbol)
        return unknown

    async def _left_orders(self, kill: Kill) -> list[str]:
        """Read back which of our orders in scope still work; under a halt protective ones may."""
        left: list[str] = []
        for each in await self._read("open orders", self._link_up().broker.open_orders()):
            order = self._desk.orders.get(each.order_id or "")
            if order is None or not kill.covers(order.request):
                continue
            if kill.flatten or order.request.intent == "entry":
                left.append(order.order_id)
        return left

    async def _foreign_orders(self, kill: Kill) -> list[BrokerOrder]:
        """Cancel what is not ours, where the configuration says so in writing."""
        working = await self._read("open orders", self._link_up().broker.open_orders())
        foreign = [each for each in working if (each.order_id or "") not in self._desk.orders]
        await self._cancel_at_broker(kill, [each.broker_order_id for each in foreign])
        return foreign

    async def _read(self, what: str, answer: Awaitable[T]) -> T:
        """Wait a while for what the broker is asked: an answer that never comes must not hold the kill up."""
        try:
            async with asyncio.timeout(READ_WITHIN):
                return await answer
        except TimeoutError as error:
            message = f"the broker gave no answer ({what}) within {READ_WITHIN:g} s: it is asked again"
            raise BrokerError(message) from error

    def _halted(self, symbol: str) -> bool:
        mark = self._desk.portfolio.mark_of(symbol)
        return mark is not None and mark.halted

    def _behind(self, link: BrokerLink) -> bool:
        """Tell whether our books may not have yet what the broker has: nothing is sized from them before."""
        return not link.ready or self._desk.behind()

    def _link_up(self) -> BrokerLink:
        if self._link is None or self._link.state != "connected":
            raise CommandError("broker_unavailable", "the broker is not connected; the kill acts when it is")
        return self._link

    # --- writing ----------------------------------------------------------------------------------------------

    async def _write_latch(self, kill: Kill) -> None:
        write = asyncio.get_running_loop().run_in_executor(self._disk, self._latch.write, self._latch_state())
        try:
            async with asyncio.timeout(LATCH_BUDGET):
                await asyncio.shield(write)
            kill.latched, kill.latch_error = True, None
        except TimeoutError:
            write.add_done_callback(lambda done: self._latched_late(kill, done))
            log.error("the latch file is slow; the kill goes on without waiting for it")
        except Exception as error:  # noqa: BLE001 - whatever the latch runs into, the kill goes on
            self._not_latched(kill, error)

    async def _latch_again(self, kill: Kill) -> None:
        """Write a kill that the file may not hold any more, because a reset of it has failed."""
        self._letting_go.discard(kill.key)
        kill.latched = False
        await self._write_latch(kill)

    def _latched_late(self, kill: Kill, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._not_latched(kill, error)
        elif not done.cancelled():
            kill.latched, kill.latch_error = True, None
        self._tell()

    def _not_latched(self, kill: Kill, error: BaseException) -> None:
        """Say that a restart would not know of the kill, and keep trying until it would."""
        kill.latched = False
        kill.latch_error = f"{LATCH_FAULT}: {error}"
        log.critical("%s (%s); the kill goes on, says latched: false, and tries again", LATCH_FAULT, error)
        if self._latching is None or self._latching.done():
            self._latching = asyncio.get_running_loop().create_task(self._keep_latching(), name="kill-latch")

    async def _keep_latching(self) -> None:
        """Write the latch as soon as its disk takes it."""
        loop = asyncio.get_running_loop()
        while missing := [kill for kill in self._kills.values() if not kill.latched]:
            await asyncio.sleep(LATCH_AGAIN)
            try:
                await loop.run_in_executor(self._disk, self._latch.write, self._latch_state())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                log.debug("%s: %s", LATCH_FAULT, error)
                continue
            log.warning("the kill is latched now: its disk works again")
            for kill in missing:
                kill.latched, kill.latch_error = True, None
            self._tell()

    def _latch_state(self) -> LatchState:
        return LatchState(
            scopes=tuple(
                LatchedScope(key=k.key, flatten=k.flatten, reason=k.reason, source=k.source, at=k.at)
                for k in self._kills.values()
                if k.key not in self._letting_go
            )
        )

    def _tell(self) -> None:
        for kill in self._kills.values():
            kill.told = kill.phase
        self._say(self._changed)

    def _say(self, function: Callable[[], object]) -> None:
        """Tell others; whatever they run into, the kill goes on."""
        try:
            function()
        except Exception:  # the kill does not depend on who listens
            log.exception("telling of the kill failed")

    def _trail(self, what: str, kill: Kill, **more: Any) -> None:
        body = {
            "what": what,
            "scope": scope_body(kill.key),
            "flatten": kill.flatten,
            "reason": kill.reason,
            "source": kill.source,
            "cancelled": list(kill.cancelled),
            "closed": list(kill.closed),
            "pending": list(kill.pending),
            "wall": rfc3339(wall_now()),
            **more,
        }
        self._say(lambda: self._desk.note([NoteRecord("kill", self._clock.now(), body)]))

    def _wake(self) -> None:
        for kill in self._kills.values():
            kill.wake.set()
            if kill.phase == "done" and self._something_left(kill):
                kill.phase = "gated"  # such as a fill that was on its way when the kill was done
                self._work(kill)

    def _something_left(self, kill: Kill) -> bool:
        orders = any(
            kill.covers(order.request) and (kill.flatten or order.request.intent == "entry")
            for order in self._desk.open_orders()
        )
        return orders or (kill.flatten and bool(self._positions(kill)))


def _once(lists: Iterable[Sequence[str]]) -> list[str]:
    """Put lists together; what is in two of them is told once."""
    return list(dict.fromkeys(each for names in lists for each in names))


def _told(key: Key) -> str:
    """Name what a kill covers in a sentence."""
    return "everything" if key is None else f"{key[0]} {key[1]}"


def _closes(order: Order) -> bool:
    """Tell whether an order is a kill's close; a stop that a kill has put back is none."""
    return order.request.intent == "kill" and not order.request.protective


def _joined() -> CommandError:
    return CommandError("conflict", "another kill came while this one was being reset; it stays on")

"""The kill switch: it closes the gate, latches, cancels our orders, closes our positions, and goes on until the
broker's own read-back shows that nothing is left (contract 4, safety.md K1 to K18).

Everything here runs on the money lane. A kill acts on what our journal opened; what is foreign is touched only
where `kill_switch.foreign` says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from sigma9_core.afterwards import Afterwards
from sigma9_core.calendar import Calendar
from sigma9_core.clock import Clock, rfc3339, wall_now
from sigma9_core.commands import KillArgs, Scope
from sigma9_core.config import KillSwitchSettings
from sigma9_core.errors import BrokerError, CommandError, JournalError
from sigma9_core.money.desk import OrderDesk
from sigma9_core.money.exits import ExitManager
from sigma9_core.money.gate import Barrier, RiskGate
from sigma9_core.money.kill import Key, Kill, Phase, key_of, scope_body, told_key
from sigma9_core.money.killwork import ROUND, WAITING_FOR_MARKET, KillWork
from sigma9_core.money.latch import Latch, LatchState
from sigma9_core.money.latching import Latching
from sigma9_core.money.link import BrokerLink
from sigma9_core.money.orders import Order
from sigma9_core.money.records import NoteRecord

log = logging.getLogger("sigma9.kill")

ANSWER_WITHIN: Final = 2.0
TURNS: Final = 2
"""Turns of the loop until the cancels of the first round, each a task of its own, have left."""
ROUND_WAITING: Final = 2.0
"""Seconds between two looks while a kill waits for the market to open."""
DRILL_ROUNDS: Final = 240
GIVE_UP_ROUNDS: Final = 40
"""Rounds without any progress until the phase says `failed`; it goes on trying all the same."""


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
        afterwards: Afterwards,
    ) -> None:
        self.last_drill: datetime | None = None
        self._gate = gate
        self._desk = desk
        self._exits = exits
        self._clock = clock
        self._settings = settings
        self._changed = on_change
        self._fired = on_fire
        self._afterwards = afterwards
        self._kills: dict[Key, Kill] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._latching = Latching(latch, self._kills, self._tell)
        self._work = KillWork(
            gate=gate,
            desk=desk,
            exits=exits,
            clock=clock,
            calendar=calendar,
            settings=settings,
            enter=self._enter,
        )
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
        self._work.attach(link)

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
        note = self._nothing_of(key_of(scope))
        kill = self.gate_now(reason=reason, source=source, flatten=flatten, scope=scope, drill=drill)
        if taken is not None:
            taken()
        self._afterwards.do(
            partial(log.critical, "KILL SWITCH (%s) by %s: %s", told_key(kill.key), source, reason)
        )
        await self._latching.write(kill)
        self._begin(kill)
        self._say(lambda: self._fired(kill.key))
        for _ in range(TURNS):
            if not kill.cancels_sent.is_set():
                await asyncio.sleep(0)
        self._trail("joined" if kill.in_trail else "fired", kill, source=source, reason=reason)
        if not kill.in_trail:
            kill.in_trail = True
            if kill.phase == "done":
                self._trail("done", kill)
        if kill.told != kill.phase:
            self._enter(kill, kill.phase)
        if not kill.cancels_sent.is_set():
            await self._cancels_of(kill)
        if kill.phase != "done":
            self._work.take_down(kill)  # a report may have come since its round looked: the answer knows of it too
            kill.pending = self._work.pending(kill)
        result: dict[str, Any] = {
            "cancelled_orders": list(kill.cancelled),
            "closed_positions": list(kill.closed),
            "pending": list(kill.pending),
            "latched": kill.latched,
        }
        if note is not None and not (kill.cancelled or kill.closed or kill.pending):
            result["note"] = note
        return result

    async def _cancels_of(self, kill: Kill) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await kill.cancels_sent.wait()
        except TimeoutError:
            log.warning("the kill's cancels have not all left after %g s; it goes on", ANSWER_WITHIN)

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
            self._begin(kill)  # it stays on, whatever kept it from being reset
            raise
        kill.ending = False
        self._gate.reopen(key)
        self._exits.review()
        self._trail("reset", kill, source=source, reason=reason)
        log.warning("kill switch reset by %s: %s", source, reason)
        self._tell()
        self._afterwards.flush()
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
        try:
            await self._latching.take_out(kill)
        except OSError as error:
            raise CommandError("internal", f"the latch can't be written ({error}); the kill stays on") from error
        if kill.joins != joins:
            await self._latching.put_back(kill)
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
        await self._work.side_by_side(self._take_back(order) for order in mine)
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
        account = await self._work.read("account", self._work.link_up().broker.account())
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
                in_trail=True,
            )
            self._kills[latched.key] = kill
            self._gate.close(latched.key, halt=not kill.flatten)
            if latched.key is None and state.error is not None:
                kill.error = state.error
            log.critical("still killed (%s): %s", told_key(latched.key), latched.reason)
        self._tell()

    def go_on(self) -> None:
        """Work on every kill that is in force; called when the broker has been reconciled."""
        for kill in self._kills.values():
            self._begin(kill)

    async def close(self) -> None:
        """Stop working; the latch stays as it is."""
        tasks = [*self._tasks.values(), *self._work.asking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        await self._latching.close()

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
        errors += [why for kill in kills for why in kill.failed.values()]
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

    def _begin(self, kill: Kill) -> None:
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
            before, failed, joins = self._progress(kill), {**kill.failed}, kill.joins
            error: str | None = None
            done = False
            try:
                done = await self._work.round(kill)
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
                if kill.in_trail:  # else `fire` tells it: a first round that finds nothing to do is over before
                    self._trail("done", kill)
                counts = len(kill.cancelled), len(kill.closed)
                self._afterwards.do(partial(log.critical, "kill switch done: %d cancelled, %d closed", *counts))
                self._tell()
                return
            kill.pending = self._work.pending(kill)
            moved = self._progress(kill) != before
            kill.idle_rounds = 0 if moved else kill.idle_rounds + 1
            if kill.idle_rounds == GIVE_UP_ROUNDS and kill.detail != WAITING_FOR_MARKET:
                kill.phase = "failed"
                self._trail("failed", kill)
                why = kill.error or next(iter(kill.failed.values()), None)
                log.critical("the kill makes no progress (%s); it goes on trying", why)
            if moved or error is not None or kill.failed != failed or kill.idle_rounds == GIVE_UP_ROUNDS:
                self._tell()
            if kill.joins != joins:
                continue  # who has joined meanwhile waits for cancels of its own
            kill.wake.clear()
            try:
                async with asyncio.timeout(ROUND_WAITING if kill.detail == WAITING_FOR_MARKET else ROUND):
                    await kill.wake.wait()
            except TimeoutError:
                pass  # time for the next look

    def _enter(self, kill: Kill, phase: Phase) -> None:
        """Say in which phase a kill is, and what is left at this moment."""
        kill.phase = phase
        kill.pending = [] if phase == "done" else self._work.pending(kill)
        self._tell()

    def _progress(self, kill: Kill) -> tuple[object, ...]:
        return (len(kill.cancelled), len(kill.closed), tuple(kill.pending), len(kill.closing), kill.detail)

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
        note = NoteRecord("kill", self._clock.now(), body)
        self._say(lambda: self._desk.note([note]))  # before the answer: the trail is evidence

    def _wake(self) -> None:
        for kill in self._kills.values():
            kill.wake.set()
            if kill.phase == "done" and self._something_left(kill):
                kill.phase = "gated"  # such as a fill that was on its way when the kill was done
                self._begin(kill)

    def _something_left(self, kill: Kill) -> bool:
        orders = any(
            kill.covers(order.request) and (kill.flatten or order.request.intent == "entry")
            for order in self._desk.open_orders()
        )
        return orders or (kill.flatten and bool(self._work.positions(kill)))


def _once(lists: Iterable[Sequence[str]]) -> list[str]:
    """Put lists together; what is in two of them is told once."""
    return list(dict.fromkeys(each for names in lists for each in names))


def _joined() -> CommandError:
    return CommandError("conflict", "another kill came while this one was being reset; it stays on")

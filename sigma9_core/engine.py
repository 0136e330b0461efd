"""The engine, the one composition root: it builds every part, starts them, and stops them in reverse.

outer loop    integrations, dispatcher, bus, board, schedule, watchlist, strategies
market lane   the feed
money lane    gate, desk, exits, portfolio, kill switch, broker
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Literal

from sigma9_core import CONTRACT, __version__
from sigma9_core.board import Board, Body
from sigma9_core.bus import EventBus
from sigma9_core.calendar import Calendar, start_loading
from sigma9_core.clock import Clock, LiveClock, SteppedClock, monotonic, rfc3339, wall_now
from sigma9_core.commands import BUILT_IN, Command, CommandSpec, Response, Right, Scope
from sigma9_core.config import Settings
from sigma9_core.contracts import (
    EventPage,
    Feed,
    FeedState,
    PluginContext,
    RiskRule,
    Service,
    Signal,
    Sizer,
    Trip,
)
from sigma9_core.datadir import DataDir
from sigma9_core.deadman import DeadMan
from sigma9_core.dispatcher import Dispatcher
from sigma9_core.entities import EntitySpec
from sigma9_core.errors import CommandError, JournalError, PluginError, StateError
from sigma9_core.events import (
    Event,
    EventData,
    EventType,
    LogLine,
    StatusPart,
    StatusUpdate,
    TradeEvent,
    WatchlistUpdate,
    encode,
)
from sigma9_core.handlers import Handlers
from sigma9_core.keeping import Keeping
from sigma9_core.lanes import Lane
from sigma9_core.market import Market
from sigma9_core.models import Bar, OrderRequest, OrderStatus, Slice, Verdict, WatchlistItem
from sigma9_core.money.desk import refusal
from sigma9_core.money.door import KillDoor
from sigma9_core.money.gate import GuardedRule
from sigma9_core.money.integrity import ACKNOWLEDGED, NOTE
from sigma9_core.money.journal import Journal, journal_url
from sigma9_core.money.kill import Key
from sigma9_core.money.latch import Latch
from sigma9_core.money.path import MoneyPath, SizingFacts
from sigma9_core.money.records import CommandRecord, EventRecord, NoteRecord
from sigma9_core.notifying import Notifying
from sigma9_core.plain import plain
from sigma9_core.plugins import PluginHost
from sigma9_core.quotes import Quotes
from sigma9_core.repeats import MOST
from sigma9_core.scans import Scans
from sigma9_core.schedule import Schedule
from sigma9_core.state import Documents
from sigma9_core.status import StatusTeller
from sigma9_core.strategies import BUDGET, SCAN_BUDGET, Strategy, StrategyRunner
from sigma9_core.tokens import TokenBook
from sigma9_core.watchdog import Watchdog
from sigma9_core.watchlist import Watchlist
from sigma9_core.workers import Guard, Worker

log = logging.getLogger("sigma9.engine")

MqttState = Literal["connected", "disconnected", "disabled"]
State = Literal["stopped", "starting", "running", "paused", "stopping", "killed"]
REFRESH: Final = 1.0
"""Seconds between two looks at numbers that merely move."""
KEEP_CLOCK: Final = 2
"""Every so many of these looks the simulated market's clock is kept."""
REPRICE: Final = 5
"""Every so many of these looks the watchlist takes the newest prices."""
SWITCH_INTERVAL: Final = 0.0001
"""Seconds a thread may keep the interpreter while another waits: the money lane must not wait 5 ms for it."""
MOST_ROWS: Final = 2 * MOST
"""Rows of commands that are read at the start: what was received, and what was answered."""
NOT_RUNNING: Final = "the engine is not running"
WAITS_FOR_COMMAND: Final = "ibkr.auto_connect is off; send broker_connect"
CONNECT_WAIT: Final = 2.0
"""Seconds that the answer to `broker_connect` waits for the broker."""
RECALLED: Final = timedelta(days=1)
"""Market time that a trigger hears of at a start, before now and before its oldest position was opened."""
SERVICE_WAIT: Final = 5.0
"""Seconds that the start waits for services that are not our own."""
SERVICE_AGAIN: Final = 1.0
"""Seconds until one that did not start is tried again; the wait doubles, up to five minutes."""
SERVICE_END: Final = 10.0
"""Seconds that a service has to end."""


class Engine:
    """A trading server without a process around it; `serve.py` adds lock, signals and banner."""

    def __init__(
        self,
        settings: Settings,
        *,
        host: PluginHost,
        data_dir: DataDir,
        tokens: TokenBook,
        services: bool = True,
        watch: Callable[[Feed], Sequence[str]] | None = None,
    ) -> None:
        self.settings = settings
        self.board = Board()
        self.bus = EventBus(settings.node)
        self.money = Lane("money")
        self.doors = Lane("doors", urgent=True)
        self.specs: Mapping[str, CommandSpec] = {
            **BUILT_IN,
            **{name: command.spec for name, command in host.commands().items()},
        }
        self.entities: Sequence[EntitySpec] = host.entities()
        self.state: State = "stopped"
        self.banner: list[str] = []
        self._stops = 0
        """How often a person has stopped it: a start or a drill that began before does not undo that."""
        self.url: str | None = None
        """Where REST is reached on this machine, once the web service serves."""
        self.calendar = Calendar(settings.scheduler.calendar)
        self._host = host
        self._data_dir = data_dir
        self._tokens = tokens
        self._with_services = services
        self._watch_at_start = watch
        self._started = monotonic()
        self._started_at = wall_now()
        self._last_error: dict[str, Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._undo: list[tuple[str, Callable[[], Any]]] = []
        self._auto_started = False
        self._market_open: bool | None = None
        self._starter: asyncio.Task[None] | None = None
        self._stopping = False
        self._untold: set[StatusPart] = set()
        self._turn = asyncio.Lock()
        """Held by whoever starts or stops the trading; a kill waits for nobody."""
        self._watching: set[asyncio.Task[None]] = set()
        """What is telling the triggers a new watchlist."""
        self._traded: set[str] = set()
        """Symbols of orders that are newer than the board."""
        self._rule_errors: dict[str, str | None] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._build()

    # --- building ---------------------------------------------------------------------------------------------

    def _build(self) -> None:
        settings = self.settings
        self.feed: Feed = self._host.build("feed", settings.feed, {}, self._context(settings.feed, LiveClock()))
        kind = self.feed.clock_kind
        self.clock: Clock = LiveClock() if kind == "live" else SteppedClock(kind)
        self.journal = Journal(
            journal_url(settings.database),
            settings.node,
            self._on_events,
            on_health=self._on_journal,
            marks=self._data_dir.path,
        )
        self.documents = Documents(self._data_dir.file("documents.json"))
        self.keeping = Keeping(self.documents)
        self.watchlist = Watchlist(self.clock, self._on_watchlist)
        broker = self._host.build("broker", settings.broker, {}, self._context(settings.broker, self.clock))
        self._rules: dict[str, tuple[str, dict[str, Any]]] = {}
        self._latch = Latch(self._data_dir.file("kill.latch"))
        self.path = MoneyPath(
            settings=settings,
            clock=self.clock,
            calendar=self.calendar,
            journal=self.journal,
            latch=self._latch,
            broker=broker,
            rules=[self._rule(index) for index in range(len(settings.risk))],
            snapshot={"version": __version__, "config": self._digest()},
            show=self._on_state,
            on_change=self._on_money,
            on_kill=self._on_kill,
            on_trip=self._on_trip,
        )
        self.runner = self._runner()
        self.scans = Scans(
            tuple(self.runner.strategies.values()), self.feed, self.watchlist, self.clock, self.calendar
        )
        self.status = StatusTeller(self.board, self._status, self._emit_status)
        self.dispatcher = Dispatcher(
            self.specs,
            Handlers(self).table(),
            journal=self.journal,
            recover={"place_order": self._recover_order},
            bar=self.path.killswitch.bar,
        )
        for name, command in self._host.commands().items():
            self.dispatcher.register(command.spec, command.handler)
            log.debug("command %s by the plugin %s", name, command.plugin.name)
        self.schedule = Schedule(
            settings.scheduler,
            self.clock,
            self.calendar,
            self._run_job,
            lambda: self.documents.get("schedule") or {},
            lambda marks: self.keeping.save("schedule", marks),
            changed=self._show_schedule,
        )
        self.market = Market(
            feed=self.feed,
            clock=self.clock,
            calendar=self.calendar,
            money_lane=self.money,
            money=self.path,
            outer=self,
            bus=self.bus,
            publish=self._with_services,
        )
        self.quotes = Quotes(self.board)
        self.dead_man = DeadMan(
            settings.dead_man,
            on_duty=lambda: self.state == "running" and self.calendar.at(self.clock.now()) is not None,
            broker_up=lambda: self.path.link.state == "connected",
            act=self._dead_man_acts,
        )
        self.watchdog = Watchdog()
        self.notifying = Notifying(
            [
                (
                    entry.instance,
                    self._build_instance("notifier", entry.plugin, entry.instance, entry.config, index),
                )
                for index, entry in enumerate(settings.notifiers)
            ],
            partial(self._host.set_health, kind="notifier"),
        )
        self.services: list[tuple[str, Service]] = []
        if self._with_services:
            for name in self._host.factories("service"):
                if name == "mqtt" and not settings.mqtt.enabled:
                    continue
                try:
                    service = self._host.build("service", name, {}, self._context(name, self.clock))
                except PluginError as error:
                    if self._host.built_in("service", name):
                        raise
                    log.error("%s; the server starts without it", error)
                else:
                    self.services.append((name, service))
        self._mqtt: MqttState = "disconnected" if any(name == "mqtt" for name, _ in self.services) else "disabled"

    def _context(self, name: str, clock: Clock) -> PluginContext:
        folder = self._data_dir.path
        return PluginContext(name, self.settings, clock, self.calendar, folder)

    def _build_instance(self, kind: Any, plugin: str, name: str, config: Mapping[str, Any], index: int) -> Any:
        plural = {"scanner": "scanners", "risk": "risk", "notifier": "notifiers"}[kind]
        path = f"{plural}.{index}.config"
        return self._host.build(kind, plugin, config, self._context(name, self.clock), path=path)

    def _rule(self, index: int) -> GuardedRule:
        entry = self.settings.risk[index]
        rule: RiskRule = self._build_instance("risk", entry.plugin, entry.instance, entry.config, index)
        self._rules[entry.instance] = (entry.plugin, dict(entry.config))
        return GuardedRule(rule, inline=self._host.built_in("risk", entry.plugin))

    def _runner(self) -> StrategyRunner:
        strategies = []
        for index, entry in enumerate(self.settings.scanners):
            scanner = self._build_instance("scanner", entry.plugin, entry.instance, entry.config, index)
            name = entry.instance
            strategies.append(
                Strategy(
                    name=name,
                    scanner=scanner,
                    scan_guard=self._guard(name, "scan", SCAN_BUDGET),
                    guard=self._guard(name, "trigger", BUDGET),
                    trigger=scanner.trigger(),
                )
            )
        sizer: Sizer = self._host.build(
            "sizer",
            self.settings.sizer.plugin,
            self.settings.sizer.config,
            self._context(self.settings.sizer.plugin, self.clock),
            path="sizer.config",
        )
        return StrategyRunner(
            strategies,
            sizer,
            Worker("sizer", BUDGET),
            calendar=self.calendar,
            facts=self._sizing,
            enter=self._enter,
        )

    def _guard(self, name: str, part: str, budget: float) -> Guard:
        return Guard(
            name,
            Worker(f"{name}.{part}", budget),
            on_disabled=self._strategy_disabled,
            on_health=lambda who, error: self._host.set_health(who, error, kind="scanner"),
        )

    def _digest(self) -> str:
        return hashlib.sha256(self.settings.model_dump_json().encode()).hexdigest()[:16]

    # --- life -------------------------------------------------------------------------------------------------

    async def start(self, door: KillDoor | None = None) -> None:
        """Start everything; return once the services serve. What fails stops what has started, and is raised.

        `door` is opened as soon as a kill can be carried out, and closed when it no longer can.
        """
        self._loop = asyncio.get_running_loop()
        self.bus.bind(self._loop)
        sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            await self._start(door)
        except BaseException:
            await self.stop()
            raise

    async def _start(self, door: KillDoor | None) -> None:
        self.journal.open()
        self._undo.append(("journal", self.journal.close))
        self._undo.append(("the rows of answers", self.dispatcher.flush))
        self._undo.append(("status", self.status.stop))
        self.documents.open()
        self._undo.append(("documents", self.documents.close))
        self._undo.append(("what is to be saved", self.keeping.end))
        self._undo.append(("latch", self._latch.close))
        self.bus.last_seq = self.journal.last_seq
        self._set_clock()
        if not self._latch.path.exists() and self.journal.last_seq == 0:
            self._latch.create()
        self.money.start()
        self._undo.append(("money lane", lambda: asyncio.to_thread(self.money.stop)))
        self.doors.start()  # signals are heard there until everything else has ended
        self._undo.append(("doors' lane", lambda: asyncio.to_thread(self.doors.stop)))
        self._loop_task(self._remember_commands(), "remember-commands")
        self._host.watch(self._plugins_changed)
        await self._restore_documents()
        fresh = self.journal.last_seq == 0
        if not fresh:  # the day begins by its sessions before fills are read back
            self._load_calendar()
        self.watchdog.start()
        self._undo.append(("watchdog", self.watchdog.stop))
        watching = self.money.submit(self.watchdog.watch())
        self._undo.append(("watchdog's watch", watching.cancel))
        await self.money.call(self.path.start())
        self._undo.append(("money path", lambda: self.money.call(self.path.stop())))
        await self._recall()
        self.money.post(self.path.gate.pause, NOT_RUNNING)
        if door is not None:
            await self.doors.call(door.open())
            self._undo.append(("kill's door", lambda: self.doors.call(door.close())))
        if self.path.killswitch.latched:
            self.state = "killed"
        for scope in self.path.killswitch.body()["scopes"]:  # narrower kills that were latched before a restart
            if "strategy" in scope:
                self.runner.stopped.add(scope["strategy"])
        self.schedule.recall()
        self._show_all()
        self.notifying.start(self.bus)
        self._undo.append(("notifiers", self.notifying.stop))
        await self._start_services()
        self._undo.append(("status", self.status.stop))  # while somebody is there to hear it
        if fresh:  # the first start reads the calendar in a child process, which must not slow the services down
            self._load_calendar()
        refresher = self._loop_task(self._refresh(), "refresh")
        self._undo.append(("refresh", partial(_end, refresher)))
        self._starter = self._loop_task(self._bring_up(), "bring-up")
        self.dead_man.start(self.money)
        self._undo.append(("dead man", self.dead_man.stop))

    async def _remember_commands(self) -> None:
        try:
            known = await asyncio.to_thread(self.journal.commands_known, MOST_ROWS)
        except JournalError as error:
            log.warning("each command is looked up in the journal, whose last ones can't be read now: %s", error)
        else:
            self.dispatcher.remember(known, after=known[-1][2] if len(known) == MOST_ROWS else None)

    def _load_calendar(self) -> None:
        loading = start_loading(self.calendar, self._data_dir.path, now=self.clock.now, told=self._calendar_told)
        self._undo.append(("calendar", lambda: _end(loading)))

    def _calendar_told(self, error: str | None) -> None:
        self._part_changed("market", error or f"the exchange calendar {self.calendar.name} works again")

    async def _start_services(self) -> None:
        """Start the services side by side: none waits for another.

        Where one of our own fails, the start does; one of somebody else is logged and tried again.
        """
        for name, service in reversed(self.services):
            self._undo.append((f"service {name}", partial(_stop_service, name, service)))
        starts, others = [], []
        for name, service in self.services:
            if self._host.built_in("service", name):
                starts.append(self._loop_task(service.start(self), f"start[{name}]"))
            else:
                others.append(self._loop_task(self._keep_starting(name, service), f"start[{name}]"))
        self._undo += [(f"start of a service {index}", partial(_end, task)) for index, task in enumerate(others)]
        if starts:
            await asyncio.gather(*starts)
        if others:
            await asyncio.wait(others, timeout=SERVICE_WAIT)

    async def _keep_starting(self, name: str, service: Service) -> None:
        wait = SERVICE_AGAIN
        while True:
            try:
                await service.start(self)
            except Exception as error:  # a service is a plugin: it may raise anything, and the server goes on
                log.exception("the service %s did not start; next try in %.0f s", name, wait)
                self._host.set_health(name, f"{type(error).__name__}: {error}", kind="service")
                await asyncio.sleep(wait)
                wait = min(wait * 2, 300.0)
            else:
                self._host.set_health(name, None, kind="service")
                return

    async def _bring_up(self) -> None:
        """Connect the broker, reconcile, start the schedule, the feed and, where it may be, the trading.

        A live market and its scans do not wait for the broker; one with a stepped clock does, so that a replay
        begins the same each time.
        """
        try:
            if self._connects_by_itself():  # before the calendar: a kill needs the broker, and no sessions
                self.money.post(self.path.link.connect)
            else:
                log.warning("the broker ibkr is not connected: %s", WAITS_FOR_COMMAND)
            await self.calendar.ready()
            self._undo.append(("schedule", self.schedule.stop))
            await self.schedule.start()
            if self.clock.kind == "live":
                self._start_market(None)
                await asyncio.gather(self.schedule.catch_up(), self._auto_start())
                return
            await self._auto_start()
            self._start_market(self._stopped_at())
            if self.clock.kind != "replay":
                await self.schedule.catch_up()
        except Exception:
            # The server stays up and stoppable: a person sees what is wrong in the log and in the status.
            if self.clock.kind == "replay":
                raise  # `finished` passes it on, and the replay ends with it
            log.exception("the start did not come through; the engine stays %s", self.state)

    def _start_market(self, since: datetime | None) -> None:
        self._undo.append(("market", self.market.stop))
        self.market.start(since)

    async def finished(self) -> None:
        """Wait for the end of the feed's data, as a replay does; raise what kept the feed from starting."""
        if self._starter is not None:
            await asyncio.shield(self._starter)
        await self.market.finished()

    async def stop(self) -> None:
        """Stop everything in reverse order of its start; a part that fails is logged and the rest goes on."""
        if self._stopping:
            return
        self._stopping = True
        await self.dispatcher.stop()
        await _end(self._starter)
        try:
            if self.state in ("running", "paused"):
                await self._leave("stopping", "the server stops")
        except Exception:  # whatever it is, everything else has to be stopped all the same
            log.exception("the trading did not end in order")
        self.status.flush()
        self.status.refresh()
        while self._undo:
            name, undo = self._undo.pop()
            try:
                result = undo()
                if asyncio.iscoroutine(result) or asyncio.isfuture(result):
                    await result
            except Exception:  # one part's failure must not keep the others from being stopped
                log.exception("stopping %s failed", name)
        await self.runner.stop()
        self.scans.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- trading ----------------------------------------------------------------------------------------------

    async def start_trading(self, *, reason: str, person: bool = False, paused: bool = False) -> None:
        """Start the engine, or begin it as paused; starting what runs is fine.

        Raise CommandError: `killed`, `broker_unavailable`, `conflict` where it is stopped while it starts.
        """
        stops = self._stops
        async with self._turn:
            if self.path.killswitch.latched:
                raise CommandError("killed", "the kill switch is on: reset it with a reason, then start")
            if self.state != "running" and not self.path.link.ready:
                raise CommandError(
                    "broker_unavailable",
                    f"the broker {self.path.link.name} is not connected and reconciled yet: "
                    + (self.path.link.error or "send broker_connect, or wait"),
                )
            if person:
                await self.keeping.save("commanded", {"state": "start"})
            if self._stops != stops:
                raise CommandError("conflict", "the engine was stopped while it started")
            if self.state == "running":
                return
            self._set_state("starting", reason)
            await self._watch()
            if paused and self.state == "starting":
                await self.money.ask(self.path.gate.pause, "the engine is paused")
                self._set_state("paused", reason)
            else:
                await self._open_gate("starting", reason)
            self._host.call_hook("engine_started", server=self)

    async def stop_trading(self, *, reason: str, person: bool = False) -> None:
        """End entries and strategies; exits go on being managed."""
        self._stops += person
        if self.state in ("running", "paused", "starting"):
            await self._leave("stopped", reason)
        if person:
            await self.keeping.save("commanded", {"state": "stop"})

    async def pause_trading(self, *, reason: str, person: bool = False) -> None:
        """Take no new entries. Raise CommandError `not_running` where the engine is stopped."""
        if self.state == "running":
            self.runner.entering = False
            await self.money.ask(self.path.gate.pause, "the engine is paused")
            if self.state == "running":  # a stop or a kill that came meanwhile counts for more
                self._set_state("paused", reason)
        if self.state != "paused":
            raise CommandError("not_running", f"the engine is {self.state}: there is nothing to pause")
        if person:
            await self.keeping.save("commanded", {"state": "pause"})

    async def resume_trading(self, *, reason: str) -> None:
        """Take entries again after a pause. Raise CommandError `killed`, `not_running`."""
        if self.state == "running":
            return
        if self.path.killswitch.latched:
            raise CommandError("killed", "the kill switch is on: reset it with a reason, then start")
        if self.state != "paused":
            raise CommandError("not_running", f"the engine is {self.state}: start it instead")
        await self.keeping.save("commanded", {"state": "start"})
        await self._open_gate("paused", reason)

    async def after_reset(self, scope: Scope | None) -> None:
        """Bring the state in line after a kill was reset: the engine stays stopped."""
        if scope is None and self.state == "killed" and not self.path.killswitch.latched:
            self._set_state("stopped", "kill switch reset")
        elif scope is not None and scope.strategy is not None:
            self.runner.stopped.discard(scope.strategy)
        self._part_changed("kill_switch", "reset")

    async def drill(self, source: str) -> Mapping[str, Any]:
        """Try the whole kill; start again what ran before, unless a person has stopped it meanwhile."""
        before, stops = self.state, self._stops
        result = await self.money.call(self.path.killswitch.drill(source))
        await self.after_reset(None)
        try:
            if before in ("running", "paused") and self._stops == stops:
                await self.start_trading(reason="the drill is over", person=True)
            if before == "paused" and self._stops == stops:
                await self.pause_trading(reason="it was paused before the drill", person=True)
        except CommandError:
            if self._stops == stops:
                raise
        return result

    async def connect_broker(self) -> str:
        """Begin to connect the broker and wait a moment for it; give its state."""
        self.money.post(self.path.link.connect)
        try:
            async with asyncio.timeout(CONNECT_WAIT):
                await self._broker_ready()
        except TimeoutError:
            return "connecting"
        await self._auto_start()
        return self.path.link.state

    async def set_plugin(self, name: str, *, enabled: bool) -> None:
        """Enable or disable a strategy, a risk rule or a notifier by its instance's name."""
        strategy = self.runner.strategies.get(name)
        if strategy is not None:
            strategy.enabled = enabled
            if enabled:
                strategy.guard.enable()
                strategy.scan_guard.enable()
                if self.state in ("running", "paused"):
                    await self._watch()  # it has missed what came onto the list meanwhile
            kind = "scanner"
        elif name in self._rules:
            await self.money.ask(self.path.gate.enable, name, enabled)
            kind = "risk"
        elif self.notifying.enable(name, enabled):
            kind = "notifier"
        else:
            known = [*self.runner.strategies, *self._rules, *self.notifying.names()]
            raise CommandError(
                "not_found",
                f"no strategy, risk rule or notifier is called '{name}'; there are {', '.join(known)}",
                {"field": "name"},
            )
        self._host.set_enabled(name, enabled, kind=kind)
        switched = {**(self.documents.get("switched") or {}), name: enabled}
        await self.keeping.save("switched", switched)

    async def set_rule(self, name: str, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give a rule new settings, for now and after restarts; raise CommandError where they don't fit."""
        if name not in self._rules:
            raise CommandError("not_found", f"no risk rule is called '{name}'", {"field": "rule"})
        plugin, config = self._rules[name]
        merged = {**config, **plain(changes)}
        rule = self._build_rule(name, plugin, merged)
        await self.keeping.save("risk", {**(self.documents.get("risk") or {}), name: merged})
        self._rules[name] = (plugin, merged)
        await self.money.call(self.path.replace_rule(name, rule))
        return merged

    def rule_names(self) -> tuple[str, ...]:
        """Name the configured risk rules."""
        return tuple(self._rules)

    # --- what integrations see (contracts.Server) -------------------------------------------------------------

    def dispatch(self, command: Command) -> Coroutine[Any, Any, Response]:
        """Carry out a command and give its answer; never raises for a bad command."""
        return self.dispatcher.dispatch(command)

    def begin(self, command: Command, answered: Callable[[Response], None]) -> None:
        """Carry out a command beside others; `answered` gets its answer on this loop, once.

        A `kill_switch` may come on any loop; the gate is closed when this returns.
        """
        self.dispatcher.begin(command, answered)

    def kill(self, command: Command) -> Coroutine[Any, Any, Response]:
        """Carry out a `kill_switch` command at once, from any loop; the audit rows follow as facts."""
        return self.dispatcher.kill(command)

    async def events(self, after: int, limit: int, types: frozenset[EventType] | None = None) -> EventPage:
        """Read durable events after a number from the journal."""
        return await asyncio.to_thread(self.journal.events, after, limit, types)

    async def find_events(
        self,
        limit: int,
        *,
        types: frozenset[EventType] | None = None,
        symbol: str | None = None,
        order_id: str | None = None,
        after: int | None = None,
        before: int | None = None,
    ) -> EventPage:
        """Read events of an order or a symbol from the journal, from either end."""
        find = partial(
            self.journal.find_events,
            limit,
            types=types,
            symbol=symbol,
            order_id=order_id,
            after=after,
            before=before,
        )
        return await asyncio.to_thread(find)

    async def trades(
        self, *, symbol: str | None, since: datetime | None, limit: int, cursor: str | None
    ) -> Mapping[str, Any]:
        """Read fills from the journal, newest first."""

        def read() -> Mapping[str, Any]:
            return self.journal.trades(symbol=symbol, since=since, limit=limit, cursor=cursor)

        return await asyncio.to_thread(read)

    async def order(self, order_id: str) -> Mapping[str, Any] | None:
        """Read an order, working or ended, as its newest event left it."""
        event = await asyncio.to_thread(self.journal.order, order_id)
        if event is None:
            return None
        commission = await asyncio.to_thread(self.journal.commission, order_id)
        event = event.model_copy(update={"commission": commission})
        body = event.model_dump(mode="json", exclude={"trade_id", "corrects"})
        return {"status": body.pop("event"), **body, "foreign": False}

    async def acknowledge_journal(self, reason: str, by: str) -> list[str]:
        """Note that a person has acknowledged what the journal tells of itself; give what that was."""
        known = await asyncio.to_thread(self.journal.doubts)
        if known:
            body = {"state": ACKNOWLEDGED, "reason": reason, "by": by, "what": known}
            await self.journal.commit([NoteRecord(NOTE, self.clock.now(), body)])
        return known

    def faults(self) -> Sequence[str]:
        """Name the inner parts that keep it from trading; the status has the others."""
        works = {"journal": self.journal.healthy, "calendar": self.calendar.loaded}
        return [name for name, healthy in works.items() if not healthy]

    def right_of(self, token: str) -> tuple[str, Right] | None:
        """Tell a token's name and right."""
        return self._tokens.right_of(token)

    def report_mqtt(self, state: MqttState) -> None:
        """Say how the MQTT connection stands."""
        if state != self._mqtt:
            self._mqtt = state
            self._part_changed("mqtt", state)

    def serves_at(self, url: str) -> None:
        """Say where REST is reached on this machine."""
        self.url = url

    def announce(self, line: str) -> None:
        """Add a line to the start banner."""
        self.banner.append(line)

    # --- what the market tells (market.OuterSide) -------------------------------------------------------------

    async def on_market(self, data: Slice) -> None:
        """Take a slice: strategies first, then what the schedule has due, then the quotes of the board."""
        if self.state in ("running", "paused"):
            if self.clock.kind == "live":
                self.runner.offer(data)
            else:
                if self._watching:  # a list that was renewed at the last slice is known before this one
                    await asyncio.wait(tuple(self._watching))
                await self.runner.on_slice(data)
        if self.clock.kind != "live":
            await self.schedule.step(data.ts)
        self.quotes.take(data)
        self._look_at_session()

    def on_feed(self, state: FeedState, error: str | None) -> None:
        """Learn how the feed stands."""
        self._host.set_health(self.settings.feed, error, kind="feed")
        self._part_changed("feed", error or state)

    # --- what the money lane tells ----------------------------------------------------------------------------

    def _on_events(self, events: Sequence[Event]) -> None:
        """Take durable events from the journal's writer, once they are written."""
        self._outside(self._dispatch_events, events)

    def _dispatch_events(self, events: Sequence[Event]) -> None:
        self.bus.dispatch(events)
        self.runner.on_events(events)
        self._traded.update(event.data.symbol for event in events if isinstance(event.data, TradeEvent))
        self._subscribe()

    def _on_journal(self, healthy: bool, what: str) -> None:
        if healthy:
            log.warning("the journal works again: %s", what)
            self._outside(self._journal_back)
        else:
            log.critical("the journal is not healthy (no order goes out while it can't be written): %s", what)

    def _on_state(self, bodies: Mapping[str, Body | None]) -> None:
        self._outside(self._put, bodies)

    def _put(self, bodies: Mapping[str, Body | None]) -> None:
        for name, body in bodies.items():
            self.board.set(name, body)
        if "orders" in bodies:
            self._traded.clear()  # from here on the board has them
        self._subscribe()

    def _on_money(self, part: Literal["broker", "kill_switch"]) -> None:
        self._outside(self._part_changed, part, None)

    def _on_kill(self, key: Key) -> None:
        self._outside(self._killed, key)

    def _killed(self, key: Key) -> None:
        if key is None:
            self.runner.entering = False
            self._set_state("killed", "kill switch")
            # A person starts it again, also where a restart comes between.
            self.keeping.keep("commanded", {"state": "stop"})
        elif key[0] == "strategy":
            self.runner.stopped.add(key[1])
        self.status.changed("kill_switch", "kill switch")

    def _on_trip(self, trip: Trip) -> None:
        self._outside(self._tripped, trip)

    def _tripped(self, trip: Trip) -> None:
        """Say that a limit was reached, and switch the strategy off that went too far."""
        self._part_changed("plugins", f"{trip.rule}: {trip.reason}")
        if trip.strategy in self.runner.strategies:
            self._loop_task(self.set_plugin(trip.strategy, enabled=False), f"switch-off[{trip.strategy}]")

    def _outside(self, function: Callable[..., None], *args: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    # --- status -----------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        link, now = self.path.link, self.clock.now()
        kill = self.board.get("kill_switch") or self.path.killswitch.body()
        account = self.board.get("account") or {}
        session, following = self.calendar.at(now), self.calendar.after(now)
        ibkr = "disabled" if self.settings.broker != "ibkr" else link.state
        return {
            "server": "stopping" if self._stopping else "running",
            "engine": self.state,
            "ibkr": ibkr,
            "broker": {
                "name": link.name,
                "state": link.state,
                "socket": link.health.socket,
                "link": link.health.link,
                "data": link.health.data,
                "note": link.health.note,
                "readonly": self.settings.broker == "ibkr" and self.settings.ibkr.readonly,
                "error": self._broker_error(),
            },
            "feed": {
                "name": self.settings.feed,
                "state": self.market.state,
                "last_at": None if self.market.last_at is None else rfc3339(self.market.last_at),
            },
            "mqtt": self._mqtt,
            "kill_switch": dict(kill),
            "uptime": round(monotonic() - self._started),
            "active_positions": (self.board.get("positions") or {}).get("count", 0),
            "open_orders": (self.board.get("orders") or {}).get("count", 0),
            "watchlist_count": len(self.watchlist.items()),
            "day_pnl": account.get("day_pnl"),
            "held": list((self.board.get("risk") or {}).get("held") or ()),
            "seq": self.journal.last_seq,
            "journal_id": self.journal.journal_id,
            "node": self.settings.node,
            "version": __version__,
            "contract": CONTRACT,
            "started_at": rfc3339(self._started_at),
            "last_error": self._last_error,
            "clock": self.clock.kind,
            "market": {
                "open": session is not None,
                "next_open": None if following is None else rfc3339(following.open),
                "next_close": None if session is None else rfc3339(session.close),
            },
        }

    def _part_changed(self, part: StatusPart, reason: str | None) -> None:
        self.status.changed(part, reason)

    def _set_state(self, state: State, reason: str) -> None:
        if state == self.state:
            return
        self.state = state
        log.info("engine %s: %s", state, reason)
        self._part_changed("engine", f"engine {state}: {reason}")

    def _emit_status(self, update: StatusUpdate) -> None:
        if self.journal.writes:
            self._emit("status_update", update)
        else:  # a journal that fails keeps facts in memory: one update when it is back says as much as hundreds
            self._untold.update(update.changed)

    def _journal_back(self) -> None:
        untold, self._untold = self._untold, set()
        for part in untold:
            self.status.changed(part, "the journal works again")

    def _emit(self, kind: EventType, data: EventData) -> None:
        self.journal.write([EventRecord(kind, data, self.clock.now())], fact=True)

    def publish_log(self, line: LogLine) -> None:
        """Publish a log line as an event, from any thread."""
        now = wall_now()
        raw = encode("log", line, seq=None, ts=now, node=self.settings.node)
        if line.level in ("error", "critical"):
            self._last_error = {"at": rfc3339(now), **line.model_dump(include={"level", "logger", "message"})}
        self.bus.post([Event("log", None, now, line, raw)])

    def _show_all(self) -> None:
        self._plugins_changed()
        self.board.set("watchlist", self.watchlist.body())
        self._show_schedule()
        self.status.refresh()

    def _show_schedule(self) -> None:
        self.board.set("schedule", self.schedule.body())

    def _plugins_changed(self) -> None:
        def show() -> None:
            self.board.set("plugins", {"plugins": self._host.status()})

        self._outside(show)

    def _look_at_rules(self) -> None:
        """Say in the status which risk rules give no answer."""
        for guard in self.path.gate.rules:
            if guard.error != self._rule_errors.get(guard.name):
                self._rule_errors[guard.name] = guard.error
                self._host.set_health(guard.name, guard.error, kind="risk")
                what = "answers again" if guard.error is None else f"fails: {guard.error}"
                self._part_changed("plugins", f"the risk rule {guard.name} {what}")

    def _look_at_session(self) -> None:
        is_open = self.calendar.at(self.clock.now()) is not None
        if is_open != self._market_open:
            if self._market_open is not None:
                self._part_changed("market", "the market has opened" if is_open else "the market has closed")
            self._market_open = is_open

    # --- watchlist and strategies -----------------------------------------------------------------------------

    def _on_watchlist(self, update: WatchlistUpdate) -> None:
        self._emit("watchlist_update", update)
        self.board.set("watchlist", self.watchlist.body())
        self._subscribe()
        self.keeping.keep("watchlist", self.watchlist.body())
        if self.state in ("running", "paused"):
            task = self._loop_task(self._watch(), "watch")
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)

    async def _watch(self) -> None:
        now = self.clock.now()

        def history(symbol: str) -> Sequence[Bar]:
            return self.feed.minute_bars(symbol, now, 390)

        await self.runner.watch(self.watchlist.items(), history)

    def _subscribe(self) -> None:
        held = {name.partition("/")[2] for name in self.board.names() if name.startswith("position/")}
        orders = (self.board.get("orders") or {}).get("orders", ())
        symbols = self.watchlist.symbols() | held | self._traded | {order["symbol"] for order in orders}
        self.market.subscribe(symbols)
        self.quotes.keep(symbols)

    async def _sizing(self, strategy: str, signal: Signal) -> SizingFacts:
        return await self.money.ask(self.path.sizing, strategy, signal)

    async def _enter(self, request: OrderRequest, price: Any) -> bool:
        orders = await self.money.call(self.path.enter(request, price))
        return bool(orders) and orders[0].working

    def _strategy_disabled(self, name: str, why: str) -> None:
        log.error("the strategy %s is disabled: %s", name, why)
        strategy = self.runner.strategies.get(name)
        if strategy is not None:
            strategy.enabled = False
        self._host.set_enabled(name, False, kind="scanner")
        self._part_changed("plugins", f"{name} is disabled: {why}")

    # --- small steps ------------------------------------------------------------------------------------------

    def _set_clock(self) -> None:
        if isinstance(self.clock, SteppedClock):
            first = self._stopped_at() or getattr(self.feed, "starts_at", None)
            if first is not None:
                self.clock.advance(first)

    def _stopped_at(self) -> datetime | None:
        """Tell where the simulated market stopped; None where it begins."""
        if self.clock.kind != "simulated":
            return None
        kept = (self.documents.get("clock") or {}).get("ts")
        last = self.journal.last_ts()
        if last is None or kept is None:
            return last
        return max(last, datetime.fromisoformat(kept))

    async def _recall(self) -> None:
        """Tell the triggers what became of their orders in the last day, and since their positions were opened."""
        positions = await self.money.ask(self.path.portfolio.positions)
        opened = [position.opened_at for position in positions if position.opened_at is not None]
        since = min([self.clock.now() - RECALLED, *(at - RECALLED for at in opened)])
        await self.runner.recall(await asyncio.to_thread(self.journal.trade_events, since))

    def _keep_clock(self) -> None:
        """Keep where the simulated market is: after a crash it goes on from here, not from its last event."""
        now = rfc3339(self.clock.now())
        if (self.documents.get("clock") or {}).get("ts") != now:
            self.keeping.keep("clock", {"ts": now})

    async def _restore_documents(self) -> None:
        document = self.documents.get("watchlist")
        if self._watch_at_start is None and document and document.get("items"):
            try:
                self.watchlist.restore(document)
            except StateError as error:  # a list that can't be read is made anew by the next scan
                log.error("%s", error)
        for name, settings in (self.documents.get("risk") or {}).items():
            if name in self._rules:
                plugin, config = self._rules[name]
                merged = {**config, **settings}
                self._rules[name] = (plugin, merged)
                self.path.gate.replace(name, self._build_rule(name, plugin, merged))
        for name, enabled in (self.documents.get("switched") or {}).items():
            try:
                await self._switch_at_start(name, enabled=enabled)
            except PluginError:
                log.info("%s was switched %s, and is no longer configured", name, "on" if enabled else "off")

    async def _switch_at_start(self, name: str, *, enabled: bool) -> None:
        if name in self.runner.strategies:
            self.runner.strategies[name].enabled = enabled
        elif name in self._rules:
            self.path.gate.enable(name, enabled)
        else:
            self.notifying.enable(name, enabled)
        self._host.set_enabled(name, enabled)

    def _build_rule(self, name: str, plugin: str, config: Mapping[str, Any]) -> RiskRule:
        rule: RiskRule = self._host.build(
            "risk", plugin, config, self._context(name, self.clock), path="settings", replace=True
        )
        enabled = all(guard.enabled for guard in self.path.gate.rules if guard.name == name)
        self._host.set_enabled(name, enabled, kind="risk")  # its new row begins as enabled
        return rule

    async def _open_gate(self, coming_from: State, reason: str) -> None:
        """Take entries, unless the state has changed meanwhile: whoever changed it has the last word."""
        let_in = self.state == coming_from and await self.money.call(self.path.take_entries())
        if self.path.killswitch.latched:
            raise CommandError("killed", "the kill switch came on while the engine was starting")
        if not let_in or self.state != coming_from:
            raise CommandError("conflict", f"the engine is {self.state} by now, so it was not started")
        self.runner.entering = True
        self._set_state("running", reason)

    async def _leave(self, state: Literal["stopped", "stopping"], reason: str) -> None:
        self.runner.entering = False
        self._set_state("stopping", reason)
        async with self._turn:  # a start that is on its way sees the state and gives up
            await self.money.ask(self.path.gate.pause, NOT_RUNNING)
            self._host.call_hook("engine_stopping", server=self)
            try:
                await self.money.call(self.path.end_entries())
            except CommandError as error:
                log.warning("the entries could not all be cancelled: %s", error)
            if not self.path.killswitch.latched:
                self._set_state(state, reason)

    def _broker_error(self) -> str | None:
        """Say why the broker is not there; None where it is, or where the first attempt is under way."""
        link = self.path.link
        if link.ready or link.error is not None or link.tries:
            return None if link.ready else link.error
        return "it was disconnected: send broker_connect" if self._connects_by_itself() else WAITS_FOR_COMMAND

    def _connects_by_itself(self) -> bool:
        return self.settings.broker != "ibkr" or self.settings.ibkr.auto_connect

    async def _broker_ready(self) -> None:
        await self.money.call(self.path.link.wait_ready())

    async def _auto_start(self) -> None:
        """Start where a person's last word, or else the configuration, says so; never while killed."""
        if self._auto_started or not (self._connects_by_itself() or self.path.link.ready):
            return
        await self._broker_ready()
        if self._auto_started:
            return
        self._auto_started = True
        commanded = (self.documents.get("commanded") or {}).get("state")
        wanted = self.settings.engine.auto_start
        if wanted is None:
            account = await self.money.ask(self.path.portfolio.account)  # the board may be a moment behind
            wanted = account.mode != "live"
        if self.path.killswitch.latched:
            log.critical("the kill switch is on: the engine stays stopped until it is reset")
        elif commanded == "stop" or (commanded is None and not wanted):
            log.info("the engine is stopped: send start")
        else:
            if self._watch_at_start is not None:
                self._watch_list(self._watch_at_start(self.feed))
            try:
                paused = commanded == "pause"
                reason = "it was paused before the restart" if paused else "automatic start"
                await self.start_trading(reason=reason, paused=paused)
            except CommandError as error:  # such as a kill in the middle of it; the market goes on all the same
                log.warning("the engine was not started: %s", error)

    def _watch_list(self, symbols: Sequence[str]) -> None:
        names = tuple(self.runner.strategies)
        self.watchlist.renew(
            [
                WatchlistItem(
                    symbol=symbol,
                    priority=100,
                    stage=4,
                    strategies=names,
                    reasons=("named for the replay",),
                    added_at=self.clock.now(),
                )
                for symbol in symbols
            ],
            None,
        )

    async def _run_job(self, job: str) -> str:
        if job == "market_open_scan":
            result = await self.scans.run()
            return f"{result['count']} on the watchlist"
        if job == "daily_data_update":
            update = getattr(self.feed, "update", None)
            if update is None:
                return "the feed keeps its own data"
            return str(await asyncio.to_thread(update))
        raise CommandError("not_found", f"no job is called '{job}'")

    async def _recover_order(self, received: CommandRecord) -> Mapping[str, Any] | None:
        """Find what became of a `place_order` whose answer was lost: its intent carries the command's id.

        Raise CommandError, as at first, where it was refused.
        """

        def find() -> str | None:
            for intent in self.journal.intents():
                if intent.cause == received.id and intent.request.source not in ("exit", "kill_switch"):
                    return intent.order_id
            return None

        order_id = await asyncio.to_thread(find)
        order = await self.order(order_id) if order_id is not None else None
        if order is not None and order["status"] == OrderStatus.RISK_REJECTED:
            raise refusal([Verdict.model_validate(each) for each in order["verdicts"]], order_id)
        return None if order is None else {"order": order, "legs": []}

    async def _dead_man_acts(self, action: str, why: str) -> None:
        """Act, on the money lane: nothing that runs on the outer loop has to work for it."""
        if action != "pause":
            await self.path.killswitch.fire(reason=why, source="dead_man", flatten=action == "flatten")
        elif self.state == "running":
            self.path.gate.pause("the engine is paused")
            self._outside(self._pause_soon, why)

    def _pause_soon(self, why: str) -> None:
        self._loop_task(self._paused_by_dead_man(why), "dead-man-pause")

    async def _paused_by_dead_man(self, why: str) -> None:
        try:
            await self.pause_trading(reason=why)
        except CommandError as error:  # it was stopped or killed meanwhile, which counts for more
            log.warning("the dead man's switch did not pause the engine: %s", error)

    async def _refresh(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(REFRESH)
            rounds += 1
            if self.clock.kind == "simulated" and rounds % KEEP_CLOCK == 0:
                self._keep_clock()
            due = rounds % REPRICE == 0 and self.clock.kind != "replay"  # which is the same at any speed
            if due and self.watchlist.reprice(self.quotes.last):
                self.board.set("watchlist", self.watchlist.body())
            self._look_at_rules()
            self.status.refresh()
            self.quotes.show()
            self._show_schedule()
            self._look_at_session()

    def _loop_task(self, work: Any, name: str) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _stop_service(name: str, service: Service) -> None:
    try:
        async with asyncio.timeout(SERVICE_END):
            await service.stop()
    except TimeoutError:
        log.error("the service %s did not end within %g s; it is left behind", name, SERVICE_END)


async def _end(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

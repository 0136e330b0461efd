"""One server's lives, one after the other, on one exchange: start, work, die, be looked at, start again."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from sigma9_core.testing.exchange.control import ExchangeProcess
from sigma9_core.testing.torture.checks import (
    check_end,
    check_journal,
    check_left,
    naked,
    read_story,
    released,
    taken_back,
    unheard_turns,
)
from sigma9_core.testing.torture.points import POINTS, Point
from sigma9_core.testing.torture.server import BUSTS, FOREIGN, Plan, TorturedServer
from sigma9_core.testing.torture.sides import EXCHANGE, Side
from sigma9_core.testing.torture.traffic import BASE, Promises, Traffic

CASH: Final = Decimal(10_000_000)
STEP: Final = 0.06
"""Seconds from price to price."""
WORK: Final = 2.5
"""Seconds that a server works at most before it is killed, where it has not come by its point."""
TRIES: Final = 3
"""Lives that a point has to be come by."""
LOOK_EVERY: Final = 6
"""So many lives are between two in which the server is let settle, and compared with the exchange."""
SETTLED_WITHIN: Final = 15.0
DYING: Final = 0.3
"""Seconds until the end of a process that is being killed can be seen."""
PROTECTED_WITHIN: Final = 5.0
"""Seconds after a start until everything that is held has a working stop, or is being closed."""
MANY: Final = 20
"""From so many crashes on it can be expected what chance has a say in."""
EACH_GROUP: Final = 25
"""From so many crashes on, every part of the issue's sentence must have had one."""
EACH_POINT: Final = 180
"""From so many on, every single point must have had one."""


class Violation(AssertionError):
    """Something was not as it had to be; it names every fault, the seed and the folder."""


@dataclass(slots=True)
class Score:
    """What a torture has exercised."""

    points: Mapping[str, Point] = field(default_factory=lambda: POINTS)
    crashes: Counter[str] = field(default_factory=Counter)
    """By point; `outside` and `outside, at the start` are kills from outside."""
    missed: Counter[str] = field(default_factory=Counter)
    """Lives that did not come by their point, and were killed from outside."""
    numbers: Counter[str] = field(default_factory=Counter)
    """Orders, fills and so on."""
    faults: Counter[str] = field(default_factory=Counter)
    """What went wrong between the servers and the exchange."""
    commands: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    """Seconds that the slowest server took to protect everything after a start."""
    seconds: float = 0.0

    @property
    def groups(self) -> Counter[str]:
        """Give the crashes by the part of the issue's sentence that they belong to."""
        found: Counter[str] = Counter()
        for name, count in self.crashes.items():
            found[self.points[name].group if name in self.points else "outside"] += count
        return found

    def add(self, other: Score) -> None:
        """Take another one's numbers in."""
        for name in ("crashes", "missed", "numbers", "faults", "commands"):
            getattr(self, name).update(getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)

    def told(self) -> str:
        """Tell it in a few lines."""

        def line(what: str, counts: Counter[str]) -> str:
            return f"{what}: " + (", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none")

        head = f"{self.crashes.total()} crashes in {self.seconds:.0f} s"
        return "\n".join(
            (
                f"{head}; all was protected within {self.slowest:.1f} s of a start",
                line("groups", self.groups),
                line("points", self.crashes),
                line("never came by", self.missed),
                line("exercised", self.numbers),
                line("exchange", self.faults),
                line("commands", self.commands),
            )
        )


class Lives:
    """Runs so many lives in a folder of its own, and then lets the last server settle."""

    def __init__(self, folder: Path, side: Side = EXCHANGE, *, seed: int, crashes: int) -> None:
        self.folder = folder
        self.seed = seed
        self.crashes = crashes
        self.score = Score(side.points)
        self.promises = Promises()
        self._side = side
        self._points = side.points
        self._rates = dict(side.rates)
        self._draw = random.Random(f"{seed}-lives")  # noqa: S311 - repeatable
        self._torn: frozenset[str] = frozenset()
        self._births: list[datetime] = []
        """When each life began."""

    def run(self) -> Score:
        """Run all lives; raise Violation at the first fault."""
        begun = time.monotonic()
        venue = ExchangeProcess(seed=self.seed, cash=CASH, venue=self._side.venue)
        with venue as exchange, ThreadPoolExecutor(1, "look") as looker:
            server = TorturedServer(self.folder, self._side, exchange, seed=self.seed)
            server.write()
            exchange.ask("run", every=STEP, step=0.004, base=dict(BASE), busts=list(BUSTS))
            exchange.ask("faults", rates=self._rates)
            try:
                self._live(server, exchange, looker)
                self._end(server, exchange)
            finally:
                if server.process.running:
                    server.process.stop(9)
                dump = exchange.ask("dump")
                (self.folder / "exchange.json").write_text(json.dumps(dump))
            self._count(server, dump)
        self.score.seconds = time.monotonic() - begun
        return self.score

    # --- lives --------------------------------------------------------------------------------------------------

    def _live(self, server: TorturedServer, exchange: ExchangeProcess, looker: ThreadPoolExecutor) -> None:
        looking: Future[list[str]] | None = None
        plans = self._plans()
        while self.score.crashes.total() < self.crashes:
            plan = next(plans)
            wants = "orders" if plan.point is None else self._points[plan.point].wants
            up = self._start(server, plan)
            if looking is not None:
                self._judge(looking.result(), "after the crash before")
            if up and plan.number % LOOK_EVERY == LOOK_EVERY - 1:
                self._look(server, exchange, f"life {plan.number}")
            if up:
                until = time.monotonic() + (60 if plan.point is None else WORK)
                Traffic(server, exchange, self.promises, seed=f"{self.seed}-{plan.number}", wants=wants).run(until)
            died_at = server.bury(plan)
            self._count_crash(plan, died_at, up=up)
            dump = exchange.ask("dump")
            left = server.keep(plan.number)
            torn = self._points[died_at].tears if died_at is not None else frozenset()
            self._torn |= torn
            faults, self.promises = check_left(left, self.promises, self._torn)
            self._judge([*faults, *self.promises.broken], f"after life {plan.number} ({died_at or 'outside'})")
            looking = looker.submit(self._look_at, left, dump)
        if looking is not None:
            self._judge(looking.result(), "after the last crash")

    def _start(self, server: TorturedServer, plan: Plan) -> bool:
        self._births.append(datetime.now(UTC))
        try:
            return server.start(plan)
        except AssertionError as error:
            raise self._violation([f"life {plan.number} did not begin: {error}"]) from error

    def _plans(self) -> Iterator[Plan]:
        """Choose how each life ends: at every point in turn, in an order by chance, and from outside between."""
        draw = self._draw
        numbers = itertools.count()
        names: list[str] = []
        while True:
            if not names:
                names = _mixed(self._points, draw)
            name = names.pop()
            if draw.random() < 0.25:
                yield Plan(next(numbers), seconds=draw.uniform(0.4, 3.4), at_once=draw.random() < 0.2)
            if self._points[name].wants == "a kill" and not any(self.promises.latch):
                yield Plan(next(numbers), "behind the latch")  # so that there is one
            before = self.score.missed.total()
            count = draw.randint(1, self._points[name].most)
            yield Plan(next(numbers), name, count, at_once=draw.random() < 0.2)
            for again in range(1, TRIES):
                if self.score.missed.total() == before + again:  # it did not come by: once more, at the first call
                    yield Plan(next(numbers), name, at_once=draw.random() < 0.2)

    def _look_at(self, left: Path, dump: dict[str, Any]) -> list[str]:
        """Look at what is left of a life, while the next one begins; a sound one is not kept."""
        faults = check_journal(left, dump)
        if not faults:
            shutil.rmtree(left)
        return faults

    def _count_crash(self, plan: Plan, died_at: str | None, *, up: bool) -> None:
        if died_at is not None:
            self.score.crashes[died_at] += 1
            return
        self.score.crashes["outside" if up else "outside, at the start"] += 1
        if plan.point is not None:
            self.score.missed[plan.point] += 1

    # --- letting it settle --------------------------------------------------------------------------------------

    def _look(self, server: TorturedServer, exchange: ExchangeProcess, when: str) -> None:
        """Let a living server settle while nothing goes wrong, and compare it with the exchange."""
        exchange.ask("faults", rates={})
        if not self._reconciled(server, when):
            self._revive(exchange)
            return
        began = time.monotonic()
        self.promises.commanded = {*self.promises.commanded, "stop"}
        answer = server.ask("stop")  # no entries from here on
        while answer is not None and answer["error"] is not None and server.alive:
            time.sleep(0.05)
            answer = server.ask("stop")
        if answer is None:
            self._revive(exchange)
            return
        self.promises.commanded = {"stop"}
        bare: dict[str, str] = {"": "never looked"}
        for _ in server.looks(began + PROTECTED_WITHIN):
            dump = exchange.ask("dump")
            bare = naked(dump["orders"], dump["positions"])
            if not bare or bare.keys() <= released(server.data):
                bare = {}
                break
        took = time.monotonic() - began
        if bare:
            time.sleep(DYING)
        if server.alive:
            self.score.slowest = max(self.score.slowest, took)
            if bare:
                self._judge([f"not protected {took:.1f} s after a start: {bare}"], when)
            exchange.ask("hold")
            self._agree(server, exchange, when)
            self.score.numbers["looks at a settled server"] += 1
        self._revive(exchange)

    def _reconciled(self, server: TorturedServer, when: str) -> bool:
        """Wait until a server has compared itself with the exchange; tell whether it lived to see it."""
        for _ in server.looks(time.monotonic() + SETTLED_WITHIN):
            answer = server.ask("broker_connect")  # it waits for the reconciliation, two seconds at the most
            if answer is not None and answer["ok"] and answer["result"]["broker"] == "connected":
                return True
        time.sleep(DYING)
        if server.alive:
            self._judge([f"not reconciled {SETTLED_WITHIN:g} s after the start"], when)
        return False

    def _revive(self, exchange: ExchangeProcess) -> None:
        exchange.ask("run", every=STEP, step=0.004, base=dict(BASE), busts=list(BUSTS))
        exchange.ask("faults", rates=self._rates)

    def _agree(
        self, server: TorturedServer, exchange: ExchangeProcess, when: str, *, cash: bool = False
    ) -> dict[str, Any]:
        """Wait until what the server shows and what the exchange has are the same; give the exchange's dump.

        What a person trades past the server moves the cash, and is learnt at the next connect: `cash` says that
        there was one since.
        """
        faults = ["it was never asked"]
        dump: dict[str, Any] = {}
        for _ in server.looks(time.monotonic() + SETTLED_WITHIN):
            dump = exchange.ask("dump")
            shown = server.read("/api/orders"), server.read("/api/positions")
            if None in shown:
                break
            faults = _differences(shown[0] or {}, shown[1] or {}, dump)
            if cash and not faults:
                account = server.read("/api/account") or {}
                if abs(Decimal(str(account.get("cash") or 0)) - Decimal(dump["cash"])) >= Decimal("0.01"):
                    faults = [f"the cash is {account.get('cash')} here and {dump['cash']} there"]
            if not faults:
                return dump
        time.sleep(DYING)
        if server.alive:
            self._judge(faults, f"{when}: {SETTLED_WITHIN:g} s after everything stood still")
        return dump

    def _end(self, server: TorturedServer, exchange: ExchangeProcess) -> None:
        """Start once more, let everything settle, end in order, and compare all there is; then start again."""
        exchange.ask("faults", rates={})
        last = Plan(self.score.crashes.total() + self.score.missed.total() + 1000, at_once=False, seconds=3600)
        self._begin_anew(server, last)
        self._finish_kills(server)
        self._look(server, exchange, "at the end")
        exchange.ask("faults", rates={})
        exchange.ask("hold")
        dump = self._agree(server, exchange, "at the end")
        self._stop(server)
        before = read_story(server.data)
        self._begin_anew(server, last)  # a start with nothing to find changes nothing
        dump = self._agree(server, exchange, "after one more start", cash=True)
        self._stop(server)
        faults, _ = check_left(server.data, self.promises, self._torn)
        faults += check_end(server.data, dump, self.promises, self._births)
        after = read_story(server.data)
        # Orders and positions agreed; the price of a correction may have come as the server was being stopped.
        known = {record.fill.exec_id for record in before.fills}
        news = [each.fill for each in after.fills if each.fill.exec_id not in known and not each.fill.corrects]
        if news or len(after.fills) < len(before.fills):
            faults.append(f"one more start has found other fills: {news}")
        if len(after.intents) != len(before.intents):
            faults.append("one more start has sent other orders")
        self._judge(faults, "at the end")

    def _begin_anew(self, server: TorturedServer, plan: Plan) -> None:
        if not self._start(server, Plan(plan.number, "kill done", 1_000_000)):
            raise self._violation(["the last server did not come up"])
        self._reconciled(server, "the last server")

    def _finish_kills(self, server: TorturedServer) -> None:
        """Let what was killed be carried through before it is reset: no exit works for it meanwhile."""
        killed = next(iter(self.promises.latch))
        kill: dict[str, Any] = {}
        for _ in server.looks(time.monotonic() + SETTLED_WITHIN):
            kill = (server.read("/api/status") or {"kill_switch": {}})["kill_switch"]
            if not killed or kill.get("phase") == "done":
                break
        # Where a trade was taken back unheard, nobody knows what there is to close, and the kill says so.
        if killed and kill.get("phase") != "done" and not set(kill.get("pending", ())) <= set(BUSTS):
            raise self._violation([f"the kill is not done {SETTLED_WITHIN:g} s after the last start: {kill}"])
        for key, _ in sorted(killed, key=str):
            scope = {"scope": {key[0]: key[1]}} if key else {}
            for _ in server.looks(time.monotonic() + SETTLED_WITHIN):
                answer = server.ask("reset_kill_switch", reason="the end", **scope)
                if answer is not None and answer["ok"]:
                    break
            else:
                raise self._violation([f"the kill of {key or 'everything'} can't be reset: {answer}"])
        self.promises.latch = {frozenset()}

    def _stop(self, server: TorturedServer) -> None:
        code = server.process.stop()
        if code != 0:
            raise self._violation([f"the server ended with {code}", *server.process.lines[-20:]])

    # --- judging ------------------------------------------------------------------------------------------------

    def _judge(self, faults: Sequence[str], when: str) -> None:
        if faults:
            raise self._violation([f"{when}: {fault}" for fault in faults])

    def _violation(self, faults: Sequence[str]) -> Violation:
        shown = [*faults[:20], *([f"and {len(faults) - 20} more"] if len(faults) > 20 else [])]
        return Violation(
            "\n".join((*shown, f"seed {self.seed}, {self.crashes} crashes; what is left is in {self.folder}"))
        )

    def _count(self, server: TorturedServer, dump: dict[str, Any]) -> None:
        story = read_story(server.data)
        numbers = self.score.numbers
        steps = [envelope["data"] for _, _, envelope in story.events if envelope["type"] == "trade_event"]
        numbers["events"] += len(story.events)
        numbers["orders at the exchange"] += sum(1 for order in dump["orders"] if order["order_id"])
        numbers["fills"] += len(story.fills)
        numbers["fills while no server was there"] += dump["away"]["fills"]
        numbers["orders ended while no server was there"] += dump["away"]["ends"]
        numbers["fills recovered"] += sum(record.recovered for record in story.fills)
        numbers["orders that were unknown"] += len({s["order_id"] for s in steps if s["event"] == "unknown"})
        numbers["steps recovered"] += sum(step["recovered"] for step in steps)
        numbers["trades taken back"] += sum(map(taken_back, dump["executions"]))
        numbers["trades corrected"] += sum(bool(each.get("corrected")) for each in dump["executions"])
        numbers["orders filled in part"] += len({s["order_id"] for s in steps if s["event"] == "partially_filled"})
        numbers["kills"] += sum(note.body["what"] == "fired" for note in story.notes["kill"])
        numbers["resets"] += sum(note.body["what"] == "reset" for note in story.notes["kill"])
        numbers["connections"] += dump["sessions"]
        numbers["transfers"] += len(story.notes["transfer"])
        numbers["answers lost"] += self.promises.lost
        numbers["latches behind their answer"] += self.promises.late
        numbers["positions turned by a late report"] += len(unheard_turns(dump))
        self.score.faults.update(dump["faults"])
        self.score.commands.update(self.promises.done)
        self.score.commands.update({f"{name} (refused)": n for name, n in self.promises.refused.items()})


def _mixed(points: Mapping[str, Point], draw: random.Random) -> list[str]:
    """Name every point once, by chance, but so that each group comes once before any comes twice."""
    rows: dict[str, list[str]] = {}
    for name, point in points.items():
        rows.setdefault(point.group, []).append(name)
    for names in rows.values():
        draw.shuffle(names)
    order: list[str] = []
    groups = list(rows)
    while any(rows.values()):
        draw.shuffle(groups)
        order += [rows[group].pop() for group in groups if rows[group]]
    return order[::-1]


def _differences(orders: dict[str, Any], positions: dict[str, Any], dump: dict[str, Any]) -> list[str]:
    """Compare what the server shows with what the exchange has."""
    faults: list[str] = []
    shown = {order["order_id"]: order for order in orders["orders"] if not order["foreign"]}
    theirs = {o["order_id"]: o for o in dump["orders"] if o["order_id"] and o["state"] == "working"}
    faults += [f"{one} is {shown[one]['status']} here, and does not work there" for one in shown.keys() - theirs]
    faults += [f"{one} works there and not here" for one in theirs.keys() - shown]
    for one in shown.keys() & theirs:
        mine, real = shown[one], theirs[one]
        if mine["status"] in ("unknown", "submitted"):
            faults.append(f"{one} is {mine['status']}")
        for name in ("quantity", "filled_quantity", "limit_price"):
            here = None if mine[name] is None else Decimal(str(mine[name]))
            there = None if real[name] is None else Decimal(real[name])
            if here != there:
                faults.append(f"{one}: {name} is {here} here and {there} there")
    held = {p["symbol"]: Decimal(str(p["quantity"])) for p in positions["positions"]}
    real_held = {symbol: Decimal(quantity) for symbol, quantity in dump["positions"].items()}
    busted = {each["fill"]["symbol"] for each in dump["executions"] if taken_back(each)}
    for symbol in (held.keys() | real_held.keys()) - {
        *busted,
        *FOREIGN,
    }:  # foreign ones are read at a connect alone
        if held.get(symbol) != real_held.get(symbol):
            faults.append(f"{symbol}: {held.get(symbol)} here and {real_held.get(symbol)} there")
    if dump["waiting"]:
        faults.append(f"{dump['waiting']} messages wait at the exchange")
    return faults


def torture(folder: Path, side: Side = EXCHANGE, *, seed: int, crashes: int, side_by_side: int = 2) -> Score:
    """Run the crashes in chains of lives side by side, each on a server and an exchange of its own.

    Raise Violation where anything was not as it had to be.
    """
    begun = time.monotonic()
    share = [crashes // side_by_side + (index < crashes % side_by_side) for index in range(side_by_side)]
    chains = [
        Lives(folder / f"chain-{index}", side, seed=seed * 1000 + index, crashes=count)
        for index, count in enumerate(share)
        if count
    ]
    whole = Score(side.points)
    with ThreadPoolExecutor(len(chains), "lives") as pool:
        running = [pool.submit(chain.run) for chain in chains]
        for done in as_completed(running):
            if done.exception() is not None:
                for chain in chains:
                    chain.crashes = 0  # what has been found is enough
        for done in running:
            whole.add(done.result())
    whole.seconds = time.monotonic() - begun
    return whole


def lacking(score: Score, crashes: int, faults: Iterable[str]) -> list[str]:
    """Say what a torture of so many crashes lacks to be one: a run in which nothing happens proves nothing."""
    numbers = score.numbers
    told = [f"{crashes} crashes were to be, and {score.crashes.total()} were"] * (score.crashes.total() != crashes)
    told += [f"there were no {what}" for what in ("orders at the exchange", "fills") if not numbers[what]]
    if crashes < MANY:
        return told
    if score.crashes.total() - score.groups["outside"] < crashes * 0.4:
        told.append("too few servers came by their point")
    if crashes >= EACH_GROUP:
        groups = {"outside", *(point.group for point in score.points.values() if point.group != "commands")}
        told += [f"no crash in {group}" for group in groups - set(score.groups)]
    if crashes >= EACH_POINT:
        told += [f"no crash at {name}" for name in score.points if name not in score.crashes]
    for what, least in (
        ("orders at the exchange", 2 * crashes),
        ("fills", crashes),
        ("fills recovered", crashes // 3),
        ("fills while no server was there", crashes // 6),
        ("orders filled in part", crashes // 3),
        ("orders that were unknown", crashes // 30),
        ("kills", crashes // 30),
        ("looks at a settled server", crashes // 15),
    ):
        if numbers[what] < least:
            told.append(f"{what}: {numbers[what]}, and {least} were expected at the least")
    if numbers["latches behind their answer"] > 1 + numbers["kills"] // 4:
        told.append("kills do not wait for their latch")
    return told + [f"there never was a {fault}" for fault in faults if not score.faults[fault]]


__all__ = ["Lives", "Score", "Violation", "lacking", "torture"]

"""Places at which a server kills itself, as `kill -9` does: nothing is flushed, cancelled or said.

`arm` is called by a test's plugin inside the server, and puts a fuse before or behind a function of the product,
which knows nothing of it. The name of the point and the count come from the environment variable `TORTURE`.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sigma9_core import state
from sigma9_core.money import latch as latch_module
from sigma9_core.money import path as path_module
from sigma9_core.money.desk import OrderDesk
from sigma9_core.money.exits import ExitManager
from sigma9_core.money.highwater import HighWater
from sigma9_core.money.journal import Journal
from sigma9_core.money.killswitch import KillSwitch
from sigma9_core.money.killwork import KillWork
from sigma9_core.money.latch import Latch
from sigma9_core.money.path import MoneyPath
from sigma9_core.money.reconcile import Reconciler
from sigma9_core.money.records import CommandRecord, FillRecord, IntentRecord, NoteRecord
from sigma9_core.money.tables import Inserts
from sigma9_core.testing.exchange.broker import ExchangeBroker

VARIABLE: Final = "TORTURE"
HIT: Final = "hit.json"
"""The file in which a server that dies at a point says so."""

When = Callable[..., bool]


def always(*_args: Any, **_more: Any) -> bool:
    """Tell that every call counts."""
    return True


class Fuse:
    """Counts calls, and kills the process at the last one."""

    def __init__(self, name: str, count: int, hit: Path) -> None:
        self._name = name
        self._left = count
        self._hit = hit
        self._lock = threading.Lock()

    def last(self) -> bool:
        """Count a call; tell whether it is the one to die at."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def burn(self) -> None:
        """Count a call, and die at the last one."""
        if self.last():
            self.die()

    def die(self) -> None:
        """Say where, and die."""
        self._hit.write_text(json.dumps({"point": self._name}))
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Point:
    """A place to die at."""

    group: str
    """The part of the issue's sentence that it belongs to."""
    lay: Callable[[Fuse], None]
    """Puts the fuse there."""
    most: int = 14
    """The fuse burns at one of so many calls."""
    wants: str = "orders"
    """What the traffic does more of, so that the place is come by: orders, kills, documents, changes, nothing, or
    that there is a kill already: a kill."""
    tears: frozenset[str] = frozenset()
    """What may be half written afterwards, as after a power cut: `latch`."""


def before(owner: Any, name: str, when: When = always) -> Callable[[Fuse], None]:
    """Burn before each call of a function for which `when` is true."""
    return functools.partial(_wrap, owner, name, when, first=True)


def after(owner: Any, name: str, when: When = always) -> Callable[[Fuse], None]:
    """Burn behind each call of a function for which `when` is true."""
    return functools.partial(_wrap, owner, name, when, first=False)


def _wrap(owner: Any, name: str, when: When, fuse: Fuse, *, first: bool) -> None:
    inner = getattr(owner, name)

    if inspect.iscoroutinefunction(inner):

        @functools.wraps(inner)
        async def asynchronous(*args: Any, **more: Any) -> Any:
            counts = when(*args, **more)
            if first and counts:
                fuse.burn()
            result = await inner(*args, **more)
            if not first and counts:
                fuse.burn()
            return result

        setattr(owner, name, asynchronous)
        return

    @functools.wraps(inner)
    def synchronous(*args: Any, **more: Any) -> Any:
        counts = when(*args, **more)
        if first and counts:
            fuse.burn()
        result = inner(*args, **more)
        if not first and counts:
            fuse.burn()
        return result

    setattr(owner, name, synchronous)


# --- what counts ------------------------------------------------------------------------------------------------


def holds(kind: type, /, **wanted: Any) -> When:
    """Count a write of records among which there is one of a kind, with these fields."""

    def when(_journal: Journal, records: Sequence[Any], **_more: Any) -> bool:
        return any(
            isinstance(record, kind) and all(getattr(record, name) == value for name, value in wanted.items())
            for record in records
        )

    return when


def sends(what: str) -> When:
    """Count a message of the broker that says this."""
    return lambda _broker, message: message["op"] == what


def answers(what: str) -> When:
    """Count an answer to such a message."""
    return lambda _broker, asked, _answer: asked == what


def fills(_desk: OrderDesk, report: Any, **_more: Any) -> bool:
    """Count a report that tells a fill."""
    return bool(report.kind == "filled")


def something(_owner: Any, _kill: Any, orders: Sequence[Any], **_more: Any) -> bool:
    """Count a call that has something to do."""
    return bool(orders)


def trails(what: str) -> When:
    """Count this entry of a kill's trail."""
    return lambda _switch, entry, _kill, **_more: entry == what


def unlatches(_switch: KillSwitch, reason: str, *_args: Any, **_more: Any) -> bool:
    """Count every reset."""
    return bool(reason)


def latched(_switch: KillSwitch, found: Any) -> bool:
    """Count a start that finds a kill."""
    return bool(found.scopes)


def goes_to(*names: str) -> When:
    """Count a rename onto a file of these names."""
    return lambda _path, target: Path(target).name in names


# --- fuses of their own kind ------------------------------------------------------------------------------------


def half_sent(what: str) -> Callable[[Fuse], None]:
    """Burn in the middle of a message: half of it has left."""

    def lay(fuse: Fuse) -> None:
        inner = ExchangeBroker._write  # noqa: SLF001 - this is a hook from outside

        def write(broker: ExchangeBroker, message: dict[str, Any]) -> None:
            if message["op"] == what and fuse.last():
                line = json.dumps(message).encode()
                if broker._writer is not None:  # noqa: SLF001 - see above
                    broker._writer.write(line[: len(line) // 2])  # noqa: SLF001 - see above
                fuse.die()
            inner(broker, message)

        setattr(ExchangeBroker, "_write", write)  # noqa: B010 - see above

    return lay


def commit_begins(fuse: Fuse) -> None:
    """Burn between the rows of a group and its commit, after as long as a disk may take for it."""
    _watch_plan(fuse, lambda plan: plan is not None, linger=0.03)


def commit_ended(fuse: Fuse) -> None:
    """Burn when a group is durable, and nobody has heard of it."""
    _watch_plan(fuse, lambda plan: plan is None)


def _watch_plan(fuse: Fuse, counts: Callable[[Any], bool], linger: float = 0.0) -> None:
    """See the journal's plan come and go: it stands from just before the commit to just behind it."""

    def read(journal: Any) -> Any:
        return journal.__dict__.get("torture_plan")

    def write(journal: Any, plan: Any) -> None:
        before_this = read(journal)
        journal.__dict__["torture_plan"] = plan
        if counts(plan) and (before_this is not None or plan is not None) and fuse.last():
            time.sleep(linger)  # the others go on meanwhile
            fuse.die()

    setattr(Journal, "_doubt", property(read, write))  # noqa: B010 - a hook from outside


def torn_latch(fuse: Fuse) -> None:
    """Burn when half of a latch's slot is written, as a power cut leaves it."""
    inner = latch_module._write_all  # noqa: SLF001 - a hook from outside

    def write_all(descriptor: int, data: bytes, offset: int) -> None:
        if fuse.last():
            body = len(data.rstrip(b" "))
            os.pwrite(descriptor, data[: body // 2], offset)
            fuse.die()
        inner(descriptor, data, offset)

    setattr(latch_module, "_write_all", write_all)  # noqa: B010 - see above


class _HalfFile:
    """A file of which only the first half is ever written."""

    def __init__(self, file: Any, fuse: Fuse) -> None:
        self._file = file
        self._fuse = fuse

    def __enter__(self) -> _HalfFile:
        self._file.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(*exc)

    def write(self, data: bytes) -> None:
        """Write half of it at the last call, and die."""
        if self._fuse.last():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._fuse.die()
        self._file.write(data)

    def flush(self) -> None:
        """Flush."""
        self._file.flush()


class _Disk:
    """The module `os`, but for the files that it opens."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fdopen(self, descriptor: int, mode: str) -> _HalfFile:
        """Open a file of which half is written."""
        return _HalfFile(os.fdopen(descriptor, mode), self._fuse)


def half_document(fuse: Fuse) -> None:
    """Burn in the middle of a document's file."""
    setattr(state, "os", _Disk(fuse))  # noqa: B010 - a hook from outside


DOCUMENTS: Final = "documents.json"

POINTS: Final[Mapping[str, Point]] = {
    "intent written": Point("intent and send", before(OrderDesk, "_send")),
    "before the send": Point("intent and send", before(ExchangeBroker, "_write", sends("submit"))),
    "intent handed over": Point("intent and send", after(Journal, "write", holds(IntentRecord))),
    "half of the send": Point("send and answer", half_sent("submit")),
    "behind the send": Point("send and answer", after(ExchangeBroker, "_write", sends("submit"))),
    "answer come": Point("send and answer", before(ExchangeBroker, "_body_of", answers("submit"))),
    "change sent": Point("send and answer", after(ExchangeBroker, "_write", sends("replace")), 4, "changes"),
    "cancel sent": Point("send and answer", after(ExchangeBroker, "_write", sends("cancel")), 4, "changes"),
    "fill heard": Point("fill and journal", before(OrderDesk, "_take", fills)),
    "fill booked": Point("fill and journal", before(Journal, "write", holds(FillRecord))),
    "fill handed over": Point("fill and journal", after(Journal, "write", holds(FillRecord))),
    "gate closed": Point("kill", after(KillSwitch, "gate_now"), 2, "kills"),
    "before the latch": Point("kill", before(Latch, "write"), 2, "kills"),
    "half of the latch": Point("kill", torn_latch, 2, "kills", frozenset(("latch",))),
    "behind the latch": Point("kill", after(Latch, "write"), 2, "kills"),
    "before a kill's cancels": Point("kill", before(KillWork, "_cancel", something), 2, "kills"),
    "behind a kill's cancels": Point("kill", after(KillWork, "_cancel", something), 2, "kills"),
    "before a kill's close": Point("kill", before(KillWork, "_close"), 2, "kills"),
    "behind a kill's close": Point("kill", after(KillWork, "_close"), 2, "kills"),
    "kill done": Point("kill", before(KillSwitch, "_trail", trails("done")), 1, "kills"),
    "before the reset": Point("kill", before(KillSwitch, "reset", unlatches), 1, "kills"),
    "behind the reset": Point("kill", after(KillSwitch, "reset", unlatches), 1, "kills"),
    "kill taken up": Point("kill", after(KillSwitch, "resume", latched), 1, "a kill"),
    "group commit begins": Point("group commit", before(Journal, "_store"), 60),
    "rows of a group commit": Point("group commit", before(Inserts, "run"), 60),
    "before the commit": Point("group commit", commit_begins, 60),
    "behind the commit": Point("group commit", commit_ended, 60),
    "high-water mark": Point("group commit", before(HighWater, "note"), 40),
    "half of a document": Point("document write", half_document, 3, "documents"),
    "document written": Point("document write", before(Path, "replace", goes_to(DOCUMENTS)), 3, "documents"),
    "between two generations": Point(
        "document write", after(Path, "replace", goes_to(f"{DOCUMENTS}.bak")), 3, "documents"
    ),
    "document replaced": Point("document write", before(state, "sync_folder"), 3, "documents"),
    "fills read back": Point("recovery", before(Reconciler, "_count"), 2, "nothing"),
    "orders read back": Point("recovery", before(Reconciler, "_settle"), 4, "nothing"),
    "cash read back": Point("recovery", before(MoneyPath, "_settle_cash"), 1, "nothing"),
    "journal read": Point("recovery", after(path_module, "restore"), 1, "nothing"),
    "reconciled": Point("recovery", after(Reconciler, "run"), 1, "nothing"),
    "exits reviewed": Point("recovery", after(ExitManager, "review"), 1, "nothing"),
    "exit sent": Point("exits", after(ExitManager, "_submit"), 3),
    "exit moved": Point("exits", before(ExitManager, "_move"), 3),
    "guard noted": Point("exits", before(Journal, "write", holds(NoteRecord, kind="guard"))),
    "answer of a command": Point("commands", before(Journal, "write", holds(CommandRecord, stage="answered"))),
}
"""Every place to die at, by name."""


def arm(points: Mapping[str, Point] = POINTS) -> None:
    """Lay the fuse that the environment names, where it names one."""
    spec = os.environ.get(VARIABLE)
    if not spec:
        return
    wanted = json.loads(spec)
    if wanted.get("point"):
        points[wanted["point"]].lay(Fuse(wanted["point"], wanted["count"], Path(wanted["hit"])))


def life() -> int:
    """Tell the number of this server's life, for what it draws by chance."""
    return int(json.loads(os.environ.get(VARIABLE) or "{}").get("life", 0))


__all__ = ["HIT", "POINTS", "VARIABLE", "Fuse", "Point", "after", "always", "arm", "before", "life"]

"""The server that is tortured: its configuration, its lives, and what is left of it after each of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from sigma9_core.testing.engine_room import write_calendar
from sigma9_core.testing.exchange.control import ExchangeProcess
from sigma9_core.testing.server_process import ServerProcess
from sigma9_core.testing.torture.points import HIT, VARIABLE
from sigma9_core.testing.torture.sides import Side

ALPHA: Final = ("AA", "AB", "AC", "AD", "AE")
BETA: Final = ("BA", "BB", "BC")
"""What the two strategies enter."""
BRACKETS: Final = ("MA", "MB", "MC")
"""What a person enters with a bracket."""
PLAIN: Final = ("PA", "PB", "PC")
"""What a person trades without one."""
FOREIGN: Final = ("FA",)
"""What a person trades past Sigma9."""
BUSTS: Final = ("AE", "PC")
"""In these a trade is taken back now and then."""
GUARDED: Final = (*ALPHA, *BETA, *BRACKETS)
"""What is held in these has a stop."""
SYMBOLS: Final = (*GUARDED, *PLAIN, *FOREIGN)
KEPT: Final = (
    "sigma9.db",
    "sigma9.db-wal",
    "documents.json",
    "documents.json.bak",
    "kill.latch",
    "published.jsonl",
)
"""What is looked at after a crash."""
USUAL_START: Final = 1.5
"""Seconds that a server takes to come up on a machine of the usual speed."""
MOST_PACE: Final = 6.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one life is to end."""

    number: int
    point: str | None = None
    """Where the server dies by itself; None: it is killed from outside."""
    count: int = 1
    """At which call."""
    seconds: float = 2.0
    """When it is killed from outside at the latest: after the start of its process, or, with a point, when it is
    up."""
    at_once: bool = False
    """The exchange takes in what it is sent at once."""


class TorturedServer:
    """One server's data folder through all of its lives."""

    def __init__(self, folder: Path, side: Side, venue: ExchangeProcess, *, seed: int) -> None:
        self.folder = folder
        self._side = side
        self._venue = venue
        self.process = ServerProcess(folder / "server")
        self._seed = seed
        self._settings = self.process.settings
        self._pace: float | None = None
        """How many times slower than usual it comes up; it lives so much longer, else it would never trade."""

    @property
    def data(self) -> Path:
        """Give the data folder."""
        return self.process.data

    def write(self) -> None:
        """Write the configuration, the plugin and a calendar of a market that is always open."""
        home = self.process.folder
        (home / "plugins").mkdir(parents=True, exist_ok=True)
        (home / "plugins" / "torture.py").write_text(self._side.source)
        write_calendar(self.data, always=True)
        broker, plugins = self._side.settings(self._venue)
        settings = {
            **broker,
            "feed": "far_prices",
            "mqtt": {"enabled": False},
            "scheduler": {"enabled": False},
            "notifiers": [],
            "database": {"path": str(self.data / "sigma9.db")},
            "risk": [{"plugin": "max_order_quantity"}],
            "scanners": [
                {"plugin": "gambler", "name": name, "config": {"symbols": list(symbols), "seed": self._seed}}
                for name, symbols in (("alpha", ALPHA), ("beta", BETA))
            ],
            "plugins": {
                "paths": ["plugins"],
                "settings": {**plugins, "far_prices": {"port": self._venue.port}},
            },
        }
        (home / "server_config.yaml").write_text(json.dumps(settings, indent=1))  # JSON is YAML

    # --- lives ------------------------------------------------------------------------------------------------

    def start(self, plan: Plan) -> bool:
        """Begin a life; tell whether the server came up before it died, AssertionError where it would not."""
        spec = {"life": plan.number, "point": plan.point, "count": plan.count, "hit": str(self.folder / HIT)}
        (self.folder / HIT).unlink(missing_ok=True)
        self.process.environment = {VARIABLE: json.dumps(spec)}
        self.process.settings = (*self._settings, *self._side.at_once(plan.at_once))
        timer = None
        if plan.point is None:
            timer = threading.Timer(plan.seconds * (self._pace or 1.0), self.kill)
            timer.daemon = True
            if self._pace is not None:  # the first life is not cut off before there is a journal to look at
                timer.start()
        try:
            self.process.start()
        except AssertionError:
            if self.process.process.wait(20) != -signal.SIGKILL:
                raise
            return False
        if timer is not None and self._pace is None:
            timer.start()
        self._pace = min(MOST_PACE, max(1.0, (time.monotonic() - self.process.started) / USUAL_START))
        return True

    def kill(self) -> None:
        """Kill it from outside, where it is still there."""
        with contextlib.suppress(RuntimeError, ProcessLookupError):
            os.kill(self.process.process.pid, signal.SIGKILL)

    @property
    def alive(self) -> bool:
        """Tell whether its process runs."""
        return self.process.running and self.process.process.poll() is None

    def bury(self, plan: Plan) -> str | None:
        """Wait for the end of a life that was cut off; give the point where it died, None for outside."""
        self.kill()
        self.process.stop(signal.SIGKILL)
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        (logs / f"{plan.number:04}.log").write_text("\n".join(self.process.lines))
        hit = self.folder / HIT
        return str(json.loads(hit.read_text())["point"]) if hit.exists() else None

    def keep(self, number: int) -> Path:
        """Copy what is left, for a look at it while the next life begins."""
        kept = self.folder / "left" / f"{number:04}"
        kept.mkdir(parents=True)
        for name in KEPT:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self.data / name, kept / name)
        return kept

    # --- asking it --------------------------------------------------------------------------------------------

    def ask(self, name: str, **args: Any) -> dict[str, Any] | None:
        """Send a command and give the response object; None where the answer was lost with the server."""
        return self._request("POST", f"/api/commands/{name}", args)

    def read(self, path: str) -> dict[str, Any] | None:
        """Read a body; None where it was lost with the server."""
        return self._request("GET", path, None)

    def _request(self, method: str, path: str, body: Any) -> dict[str, Any] | None:
        try:
            return dict(self.process.request(method, path, body)[1])
        except (OSError, ValueError, TypeError, RuntimeError, HTTPException) as error:
            if self.alive and not isinstance(error, ConnectionError | FileNotFoundError | HTTPException):
                raise
            return None

    def looks(self, until: float, every: float = 0.05) -> Iterator[None]:
        """Come back until a time (monotonic), while the server lives."""
        while self.alive and time.monotonic() < until:
            yield
            time.sleep(every)

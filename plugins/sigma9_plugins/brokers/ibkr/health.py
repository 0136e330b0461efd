"""Three healths, none guessed from another: the socket, TWS's own link to IB, and the data farms.

A socket can be dead without a word: where nothing has come for a while TWS is asked for its time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from sigma9_core.clock import monotonic
from sigma9_core.contracts import BrokerHealth
from sigma9_core.errors import BrokerError
from sigma9_plugins.brokers.ibkr.codes import action, says
from sigma9_plugins.brokers.ibkr.wire import NO_REQUEST, Wire

log = logging.getLogger("sigma9.ibkr")

CUT_OFF: Final = 12
"""So many times longer a TWS that has lost IB's servers may be silent: it may have nobody to ask."""


class Health:
    """Keeps the three, and tells each change."""

    def __init__(self, tell: Callable[[BrokerHealth], None], *, quiet: bool = False) -> None:
        """Store; a `quiet` one leaves it to another to say what TWS tells every connection."""
        self._level = logging.DEBUG if quiet else None
        self.now = BrokerHealth()
        self._tell = tell
        self._farms: set[str] = set()
        """Those that are away."""
        self._lost = False
        """TWS has lost IB's servers."""
        self.note: str | None = None
        """What a person should know of a connection that is up."""

    def watch(self, wire: Wire) -> None:
        """Take the codes of a connection that is being opened."""
        self._farms, self._lost, self.note = set(), False, None
        wire.on({"error": self.on_code})

    @property
    def cut_off(self) -> bool:
        """Tell whether TWS has lost IB's servers."""
        return self._lost

    def up(self) -> None:
        """Say that the connection is there and may be used."""
        lost, away = self._lost, bool(self._farms)
        self._set(BrokerHealth("up", "down" if lost else "up", "down" if away else "up", self.note))

    def down(self) -> None:
        """Say that there is no connection."""
        self._set(BrokerHealth())

    def on_code(self, number: int, code: int, text: str, *_: Any) -> None:
        """Take a code that is about no request."""
        asked = action(code)
        if number != NO_REQUEST or asked == "log":
            return
        if asked in ("mark_data_down", "mark_data_up"):
            farm = text.rpartition(":")[2].strip() or text
            (self._farms.add if asked == "mark_data_down" else self._farms.discard)(farm)
            self._refresh()
        elif asked == "mark_down":
            log.log(self._level or logging.ERROR, "%s", says(code, text))
            self._lost = True
            self._refresh()
        elif asked in ("reconcile", "resubscribe"):
            log.log(self._level or logging.WARNING, "%s", says(code, text))
            if not self._lost:  # its beginning was not told: whatever was missed is read back all the same
                self._lost = True
                self._refresh()
            self._lost = False
            self._refresh()

    def _refresh(self) -> None:
        if self.now.socket == "up":
            self.up()

    def _set(self, health: BrokerHealth) -> None:
        if health != self.now:
            self.now = replace(health)
            self._tell(self.now)


async def keep_probing(wire: Wire, health: Health, silence: float) -> None:
    """Ask for the time where nothing has come for so long, and give the connection up where no answer comes."""
    asked = 0.0
    while wire.is_open:
        now = monotonic()
        patience = silence * (CUT_OFF if health.now.link == "down" else 1)
        waits = wire.heard_at < asked
        left = asked + patience / 2 - now if waits else wire.heard_at + patience - now
        if left > 0:
            await asyncio.sleep(min(left, silence))  # an outage may end meanwhile, and the patience with it
        elif waits:
            wire.abort(f"TWS has said nothing for {now - wire.heard_at:.0f} s, and does not answer")
        else:
            asked = now
            try:
                wire.put("urgent", ("reqCurrentTime", ()))
            except BrokerError:
                return

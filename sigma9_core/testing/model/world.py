"""The world around the money path, as the model test moves it: rooms that come and go, a market, and time.

Commands are begun and not waited for, so that everything may happen in the middle of anything. What must never be
and was is in `wrong`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal
from unittest import mock

from sigma9_core.clock import SteppedClock
from sigma9_core.config import Settings
from sigma9_core.contracts import RiskRule
from sigma9_core.errors import BrokerError, CommandError, JournalError
from sigma9_core.models import ZERO, Bar, OrderRequest, Quote, Slice, Split, Trade
from sigma9_core.money import journal as journal_module
from sigma9_core.money import killswitch, killwork, path, reconcile, unwanted
from sigma9_core.testing.model.exchange import RoughExchange
from sigma9_core.testing.model.loop import VirtualLoop
from sigma9_core.testing.model.room import SESSIONS, RoughRoom
from sigma9_core.testing.money_room import OPEN
from sigma9_core.testing.small_exchange import Resting

SYMBOLS: Final = ("AAA", "BBB", "CCC")
WALL: Final = datetime(2026, 3, 2, 15, tzinfo=UTC)
NEVER: Final = 1e9
"""Seconds until a failing journal tries again by itself: the world says when its disk works."""
STILL: Final = 45.0
"""Seconds in which everything that can come right by itself has done so: looks at what is in doubt, back-off."""
OUTSIDE: Final = (BrokerError, CommandError, JournalError, TimeoutError, OSError)
"""What may go wrong for reasons outside the money path."""
ANSWERS: Final = (BrokerError, CommandError, JournalError)
"""What a command may be answered with."""


class MoneyWorld:
    """One exchange, one folder, one clock, and the room of the moment."""

    def __init__(self, rules: Callable[[], Sequence[RiskRule]]) -> None:
        """Store, and take over the clocks of the money path; `rules` builds those of the gate, for each room."""
        self.folder = Path(tempfile.mkdtemp(prefix="sigma9-model-"))
        self.loop = VirtualLoop()
        self.clock = SteppedClock("simulated", OPEN + timedelta(minutes=30))
        self.exchange = RoughExchange(self.clock)
        self.wrong = self.exchange.wrong
        self.settings = Settings()
        self.slow_disk: Literal["before", "after"] | None = None
        self.prices = dict.fromkeys(SYMBOLS, Decimal(10))
        self.tasks: list[asyncio.Task[Any]] = []
        """Commands, and slices of the market, that have no answer yet."""
        self.bare: set[str] = set()
        """Symbols whose exits a person may have cancelled since they were flat."""
        self.opened: Callable[[RoughRoom], None] = lambda _room: None
        """Told of each new room before it starts."""
        self.looked: Callable[[], None] = lambda: None
        """Told whenever something may have happened."""
        self._room: RoughRoom | None = None
        self._rules = rules
        self._feeding: asyncio.Task[None] | None = None
        self._splits: list[Split] = []
        self._latched: set[object] = set()
        self._patches = ExitStack()
        self._take_over()

    def _take_over(self) -> None:
        for module, name, value in (
            (killwork, "monotonic", self.loop.time),
            (reconcile, "monotonic", self.loop.time),
            (path, "monotonic", self.loop.time),
            (unwanted, "monotonic", self.loop.time),
            (killswitch, "wall_now", self._wall),
            (killwork, "wall_now", self._wall),
            (journal_module, "FIRST_WAIT", NEVER),
            (journal_module, "LONGEST_WAIT", NEVER),
        ):
            self._patches.enter_context(mock.patch.object(module, name, value))
        logger = logging.getLogger("sigma9")
        listener = _Listener(self.wrong)
        logger.addHandler(listener)
        self._patches.callback(logger.removeHandler, listener)
        self._patches.enter_context(mock.patch.object(logger, "propagate", False))
        self.loop.set_exception_handler(self._unhandled)

    def _wall(self) -> datetime:
        return WALL + timedelta(seconds=self.loop.time())

    def _unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), OUTSIDE):
            self.wrong.append(f"unhandled: {context.get('message')} {context.get('exception')!r}")

    # --- rooms ----------------------------------------------------------------------------------------------

    @property
    def room(self) -> RoughRoom:
        """Give the room of the moment."""
        if self._room is None:
            raise RuntimeError("the world has no room yet: open one")
        return self._room

    @property
    def begun(self) -> bool:
        """Tell whether there is a room."""
        return self._room is not None

    def open(self) -> None:
        """Start a room on what the last one has left: what was latched still is."""
        room = self._room = RoughRoom(self.folder, self.exchange, self.clock, self.settings, self._rules())
        room.journal.slow = self.slow_disk
        self.opened(room)
        self.loop.complete(room.start())
        if lost := self._latched - set(room.kills):
            self.wrong.append(f"the kill of {lost} was on the disk, and a restart does not know of it")
        self.settle(0.5)

    def close(self) -> None:
        """Stop in order; whoever still waits for an answer gets none."""
        self.loop.complete(self.room.path.stop())
        self.cut()

    def cut(self) -> None:
        """End as a kill -9 does."""
        self._latched = {kill.key for kill in self.room.kills.values() if kill.latched and not kill.ending}
        self.room.kill_9()
        while left := asyncio.all_tasks(self.loop):
            for task in left:
                task.cancel()
            self.loop.wait()
        self.tasks.clear()
        self.looked()

    def end(self) -> None:
        """Tidy up, whatever has happened."""
        if self._room is not None:
            self.room.kill_9()
        self.loop.end()
        self._patches.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- letting things happen ------------------------------------------------------------------------------

    def settle(self, seconds: float = 0.0) -> None:
        """Let happen what can happen in so many seconds."""
        self.loop.wait(seconds)
        if self.loop.circling:
            self.wrong.append("something goes round in circles without any time passing")
            self.loop.circling = False
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, ANSWERS):
                self.wrong.append(f"{task.get_name()} raised {error!r}")
        self.looked()

    def happen(self, what: Callable[..., object], *args: Any) -> None:
        """Let something happen on the loop, and what follows from it at this moment."""
        self.loop.call_soon(lambda: what(*args))
        self.settle()

    def command(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Begin what somebody has asked for, and go on as far as it goes without time."""
        self.tasks.append(self.loop.create_task(work, name=name))
        self.settle()

    # --- the market -----------------------------------------------------------------------------------------

    def tick(self, symbol: str, move: Decimal, seconds: float, halted: bool | None = None) -> None:
        """Print a price that is some percent away; half away or more is absurd, and moves nothing."""
        price = (self.prices[symbol] * (1 + move / 100)).quantize(Decimal("0.01"))
        if abs(move) < 50:
            self.prices[symbol] = price = max(price, Decimal(1))
        self.print({symbol: price}, seconds, halted)

    def print(self, prices: Mapping[str, Decimal], seconds: float, halted: bool | None = None) -> None:
        """Give the room a slice, unless it is busy with the last one; each slice tells every split once more."""
        if self._feeding in self.tasks:
            self.settle(1.0)
            return
        self.clock.advance(self.clock.now() + timedelta(seconds=seconds))
        for order in self.adjustable():
            price = prices.get(order.request.symbol)
            if price is not None and order.state == "working" and _reached(order.request, price):
                self.happen(self.exchange.adjust, order.order_id)
        now = self.clock.now()
        trades, quotes, bars = [], [], []
        for symbol, price in prices.items():
            number = float(price)
            trades.append(Trade(symbol, now, number, 100.0))
            bars.append(Bar(symbol, now - timedelta(seconds=1), number, number, number, number, 100.0, 1))
            if halted is not None:
                quotes.append(Quote(symbol, now, number - 0.01, number + 0.01, halted=halted))
        data = Slice(now, tuple(quotes), tuple(trades), tuple(bars), tuple(self._splits))
        self._feeding = self.loop.create_task(self.room.path.on_market(data), name="market")
        self.tasks.append(self._feeding)
        self.settle()

    def night(self, *, whole: bool) -> None:
        """End the session, and day orders with it; perhaps the next one begins."""
        now = self.clock.now()
        session = next((session for session in SESSIONS if session.close > now), SESSIONS[-1])
        self.clock.advance(session.close + timedelta(minutes=1))
        self.happen(self.exchange.expire)
        following = next((each for each in SESSIONS if each.open > self.clock.now()), None)
        if whole and following is not None:
            self.clock.advance(following.open)
            self.tick(SYMBOLS[0], Decimal(2), 1)

    @property
    def in_session(self) -> bool:
        """Tell whether the market is open."""
        return any(session.open <= self.clock.now() < session.close for session in SESSIONS)

    def split(self, symbol: str) -> None:
        """Give two shares for one, where nothing is under way; the feed tells of it.

        Once a symbol: the same ratio on the same day, told with another time, is taken for the same split. A fill
        of before it that is heard after it counts old shares: the symbol is held then, and a person settles it.
        """
        exchange = self.exchange
        unheard = exchange.mail or exchange.listener is None or not self.room.path.link.ready
        unheard = unheard or exchange.own.get(symbol, ZERO) != self.room.path.portfolio.quantity(symbol)
        if unheard or self.tasks or self.room.journal.fault is not None or symbol in exchange.split_ever:
            return
        day = self._day_of(self.clock.now())
        if any(told.symbol == symbol and self._day_of(told.ts) == day for told in self._splits):
            return  # no share is split twice in a day: the second one would be the first, told again
        self.happen(exchange.split, symbol, 2)
        self.settle(1.0)
        self.prices[symbol] = max((self.prices[symbol] / 2).quantize(Decimal("0.01")), Decimal(1))
        self._splits.append(Split(symbol, self.clock.now(), Decimal(2)))
        self.print({symbol: self.prices[symbol]}, 1)

    @staticmethod
    def _day_of(moment: datetime) -> str | None:
        return next((session.day for session in SESSIONS if session.close > moment), None)

    # --- the exchange ---------------------------------------------------------------------------------------

    def working(self) -> list[Resting]:
        """List the orders of ours that work at the exchange."""
        return [order for order in self.exchange.orders.values() if order.state == "working" and order.order_id]

    def fillable(self) -> list[Resting]:
        """List those that may fill now."""
        return [order for order in self.working() if self.exchange.fillable(order) > ZERO]

    def adjustable(self) -> list[Resting]:
        """List the stops of which a trailing stop may be made now."""
        return [order for order in self.fillable() if order.request.adjustment is not None]

    def held(self) -> list[str]:
        """List the symbols in which something of ours is held."""
        return [symbol for symbol in SYMBOLS if self.exchange.own.get(symbol)]

    def fill_market_orders(self, intent: str | None = None) -> None:
        """Fill whatever is to trade at the market; on the loop."""
        for order in self.fillable():
            ask = order.request
            wanted = ask.order_type == "market" and intent in (None, ask.intent)
            if wanted and order.state == "working" and self.exchange.fillable(order) > 0:  # none has ended it
                self.exchange.fill(order.order_id, self.prices[ask.symbol])

    def fill_newest_entry(self, symbol: str, share: int) -> None:
        """Give an entry a moment to arrive, and fill it, or a part of it."""
        self.settle(1.0)
        entries = [o for o in self.fillable() if o.request.symbol == symbol and o.request.intent == "entry"]
        if entries:
            size = max(self.exchange.fillable(entries[-1]) // share, Decimal(1))
            self.happen(self.exchange.fill, entries[-1].order_id, self.prices[symbol], size)

    def mend_line(self) -> None:
        """Bring the connection back."""
        self.exchange.away = False
        if self.exchange.health.link == "down":
            self.happen(self.exchange.link, True)
        self.happen(self.room.path.link.connect)

    # --- when the weather clears up -----------------------------------------------------------------------------

    def clear_up(self) -> None:
        """Let everything work again, deliver everything, and give it time, on the wall and in the market."""
        self.room.heal()
        self.exchange.away = False
        self.happen(self.exchange.calm)
        self.settle(1.0)
        self.happen(self.room.path.link.connect)
        self.settle(STILL)
        if not self.in_session:
            self.night(whole=True)
        for _ in range(2):  # the second connection compares what the first one has set right
            self.happen(self.exchange.drop)
            self.settle(STILL)
            for _ in range(4):
                self.print(self.prices, 6, halted=False)
                self.settle(12.0)

    def let_kills_end(self) -> None:
        """Fill what kills want to close, until they are done or it is clear that they won't be."""
        for _ in range(12 if self.room.kills else 0):
            self.happen(self.fill_market_orders, "kill")
            self.settle(12.0)
            if all(kill.phase == "done" for kill in self.room.kills.values()):
                break

    def forgive(self) -> None:
        """Where everything is flat and still, what has happened counts no more."""
        busy = {order.request.symbol for order in self.working()} | set(self.held())
        busy |= {symbol for symbol in SYMBOLS if self.room.path.portfolio.quantity(symbol)}
        self.bare &= set(self.held())
        for symbol in [*self.exchange.excused]:
            if symbol not in busy:
                del self.exchange.excused[symbol]


def _reached(stop: OrderRequest, price: Decimal) -> bool:
    """Tell whether a price sets off the adjustment of a stop."""
    change = stop.adjustment
    if change is None:
        return False
    return price >= change.trigger_price if stop.side == "sell" else price <= change.trigger_price


class _Listener(logging.Handler):
    """Collects what went wrong inside and was caught: errors that no part of the world has made."""

    def __init__(self, wrong: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._wrong = wrong

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, OUTSIDE):
            self._wrong.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


__all__ = ["SYMBOLS", "MoneyWorld"]

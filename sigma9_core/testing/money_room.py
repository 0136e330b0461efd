"""The whole money path for tests: real gate, desk, exits, kill switch, journal and latch, on a small exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

from sigma9_core.board import Body
from sigma9_core.calendar import Calendar
from sigma9_core.clock import SteppedClock, monotonic
from sigma9_core.config import Settings
from sigma9_core.contracts import RiskRule, RiskView
from sigma9_core.events import Event, TradeEvent
from sigma9_core.models import ExitPlan, OrderRequest, RuleUsage, Session, Slice, Trade, Verdict
from sigma9_core.money.gate import GuardedRule
from sigma9_core.money.journal import Journal
from sigma9_core.money.kill import Key
from sigma9_core.money.latch import Latch
from sigma9_core.money.orders import Order
from sigma9_core.money.path import MoneyPath
from sigma9_core.testing.small_exchange import SmallExchange

OPEN = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
SESSIONS = [
    Session("2026-03-02", OPEN, OPEN + timedelta(hours=6.5)),
    Session("2026-03-03", OPEN + timedelta(days=1), OPEN + timedelta(days=1, hours=6.5)),
]


class AllowAll(RiskRule):
    """A rule that lets everything pass, or refuses one symbol."""

    code = "T1"

    def __init__(self, name: str = "allow_all", refuses: str | None = None) -> None:
        super().__init__(name)
        self.refuses = refuses

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Refuse the one symbol."""
        return self.refuse("this symbol is refused") if order.symbol == self.refuses else self.allow()

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell nothing."""
        return RuleUsage(rule=self.name)


class MoneyRoom:
    """Open it with `async with`; `again()` makes the room of the next start on the same data and exchange."""

    def __init__(
        self,
        folder: Path,
        *,
        exchange: SmallExchange | None = None,
        clock: SteppedClock | None = None,
        settings: Settings | None = None,
        rule: RiskRule | None = None,
        rules: Sequence[RiskRule] = (),
        sessions: Sequence[Session] = SESSIONS,
        journal: Callable[[str, str, Callable[..., None]], Journal] = Journal,
    ) -> None:
        self.folder = folder
        self.settings = settings or Settings()
        self.clock = clock or SteppedClock("simulated", OPEN + timedelta(minutes=30))
        self.exchange = exchange or SmallExchange(self.clock)
        self.events: list[Event] = []
        self.bodies: dict[str, Body | None] = {}
        self.changes: list[str] = []
        self.killed: list[Key] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = journal(f"sqlite:///{folder / 'journal.db'}", "main", self.events.extend)
        self.latch = Latch(folder / "kill.latch")
        self.path = MoneyPath(
            settings=self.settings,
            clock=self.clock,
            calendar=Calendar("XNYS", sessions),
            journal=self.journal,
            latch=self.latch,
            broker=self.exchange,
            rules=[GuardedRule(each) for each in rules or (rule or AllowAll(),)],
            snapshot={},
            show=self.bodies.update,
            on_change=self._changed,
            on_kill=self.killed.append,
        )
        self.desk = self.path.desk
        self.exits = self.path.exits
        self.kill = self.path.killswitch

    def _changed(self, part: Literal["broker", "kill_switch"]) -> None:
        self.changes.append(part)

    async def __aenter__(self) -> Self:
        """Open the journal, start the path, connect and reconcile."""
        self.journal.open()
        if not self.latch.path.exists():
            self.latch.create()
        try:
            await self.path.start()
        except BaseException:
            self.journal.close()
            self.latch.close()
            raise
        self.path.link.connect()
        await self.path.link.wait_ready()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop in order."""
        await self.path.stop()
        self.journal.close()
        self.latch.close()

    def again(self) -> MoneyRoom:
        """Give the room of the next start."""
        return MoneyRoom(self.folder, exchange=self.exchange, clock=self.clock, settings=self.settings)

    async def crash(self) -> MoneyRoom:
        """End as a kill -9 would, as far as the parts can tell: nothing is cancelled, settled or noted."""
        self.exchange.listener = None
        for task in (self.path._reader, self.path._show_timer):  # noqa: SLF001 - what a crash takes along
            if task is not None:
                task.cancel()
        await self.kill.close()
        self.journal.close()
        self.latch.close()
        return self.again()

    async def tick(self, symbol: str, price: float, *, seconds: float = 1) -> None:
        """Move the market: one trade, after so many seconds."""
        self.clock.advance(self.clock.now() + timedelta(seconds=seconds))
        now = self.clock.now()
        await self.path.on_market(Slice(now, trades=(Trade(symbol, now, price, 100.0),)))

    async def buy(self, symbol: str = "AAPL", quantity: int = 100, **more: Any) -> Order:
        """Send one market buy through the desk."""
        more.setdefault("side", "buy")
        request = OrderRequest(symbol=symbol, quantity=Decimal(quantity), **more)
        return (await self.desk.submit([request]))[0]

    async def enter(
        self,
        symbol: str = "AAPL",
        quantity: int = 100,
        price: str = "10",
        plan: ExitPlan | None = None,
        **more: Any,
    ) -> Order:
        """Enter as a strategy does: an entry with its exit plan."""
        more = {"side": "buy", "strategy": "test", **more}
        request = OrderRequest(symbol=symbol, quantity=Decimal(quantity), exit_plan=plan or ExitPlan(), **more)
        return (await self.path.enter(request, Decimal(price)))[0]

    async def fill(self, order: Order, price: str, quantity: int | None = None) -> None:
        """Fill an order at the exchange and let everything settle."""
        self.exchange.fill(order.order_id, Decimal(price), None if quantity is None else Decimal(quantity))
        await self.desk.settle()

    async def told(self, order: Order) -> list[str]:
        """Name the events of an order, in order, once everything has been written."""
        await self.desk.settle()
        steps = [event.data for event in self.events if isinstance(event.data, TradeEvent)]
        return [str(step.event) for step in steps if step.order_id == order.order_id]

    def working(self, **wanted: Any) -> list[Order]:
        """List working orders whose request has these fields."""
        return [
            order
            for order in self.desk.open_orders()
            if all(getattr(order.request, name) == value for name, value in wanted.items())
        ]

    async def closing(self) -> list[Order]:
        """Wait for the kill's closing orders to be at the exchange, and list them."""

        def closes() -> list[Order]:
            return self.working(intent="kill", protective=False)

        await self.until(lambda: closes() and not self.desk.in_flight)
        await self.until(lambda: all(order.order_id in self.exchange.orders for order in closes()))
        return closes()

    async def until(self, what: Callable[[], object], within: float = 20) -> None:
        """Wait until something is true."""
        end = monotonic() + within
        while not what():
            if monotonic() > end:
                raise AssertionError("it did not come true in time")
            await asyncio.sleep(0.005)


__all__ = ["OPEN", "SESSIONS", "AllowAll", "MoneyRoom"]

"""A desk small enough to reason about: real gate, real portfolio, and orders that fill when a test says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from sigma9_core.clock import SteppedClock
from sigma9_core.contracts import BrokerAccount, RiskRule, RiskView, Submission
from sigma9_core.models import ZERO, Fill, Intent, OrderRequest, OrderView, Session, Slice, Trade
from sigma9_core.money.exposure import remaining, reserved
from sigma9_core.money.gate import Decision, GuardedRule, RiskGate
from sigma9_core.money.portfolio import Portfolio
from sigma9_core.testing.risk_views import EQUITY, NOW, SESSION, SYMBOLS, shown


class SmallDesk:
    """Decides orders at the gate, keeps those that passed as working, and applies their fills."""

    def __init__(
        self,
        rules: Sequence[RiskRule | GuardedRule],
        *,
        cash: Decimal = EQUITY,
        prices: Mapping[str, float] | None = None,
        now: datetime = NOW,
        session: Session | None = SESSION,
    ) -> None:
        self.clock = SteppedClock("replay", now)
        self.session = session
        self.gate = RiskGate([r if isinstance(r, GuardedRule) else GuardedRule(r) for r in rules], self.clock)
        self.portfolio = Portfolio(self.clock)
        self.portfolio.set_cash(cash)
        self.portfolio.set_account(BrokerAccount("SIM1", "simulated", "USD", cash))
        if session is not None:
            self.portfolio.roll(session)
        self.working: dict[str, OrderView] = {}
        self.requests: dict[str, OrderRequest] = {}
        self.prices: dict[str, float] = {}
        self.fills: list[Fill] = []
        self._recent: list[Submission] = []
        self._entries = 0
        self._number = 0
        self.tick(prices or dict.fromkeys(SYMBOLS, 100.0), seconds=0)

    def view(self) -> RiskView:
        """Show the gate this moment."""
        intents: dict[str, Intent] = {order_id: self.requests[order_id].intent for order_id in self.working}
        return self.portfolio.risk_view(
            self.session, tuple(self.working.values()), intents, tuple(self._recent), self._entries
        )

    async def offer(self, request: OrderRequest) -> Decision:
        """Ask the gate; an order that passes works from here on."""
        self._number += 1
        order_id = f"o{self._number}"
        decision = await self.gate.decide(order_id, request, self.view())
        if decision.approved is not None:
            self.requests[order_id] = request
            self.working[order_id] = shown(request, order_id)
            self._recent.append(Submission(self.clock.now(), request, order_id))
            self._entries += request.intent == "entry"
        return decision

    def fill(self, order_id: str, quantity: Decimal | None = None, price: float | None = None) -> None:
        """Fill a working order, all of it unless told otherwise; its one-cancels-all group goes with it."""
        order = self.working[order_id]
        traded = remaining(order) if quantity is None else min(quantity, remaining(order))
        at = Decimal(str(self.prices[order.symbol] if price is None else price))
        fill = Fill(
            f"x{len(self.fills)}",
            order_id,
            order.symbol,
            order.side,
            traded,
            at,
            Decimal("0.35"),
            self.clock.now(),
        )
        self.fills.append(fill)
        self.portfolio.apply(fill, order.strategy)
        filled = order.filled_quantity + traded
        self.working[order_id] = order.model_copy(update={"filled_quantity": filled})
        if filled == order.quantity:
            del self.working[order_id]
        self._shrink_group(order, traded)

    def cancel(self, order_id: str) -> None:
        """Take a working order away, and the legs that wait for it."""
        del self.working[order_id]
        for child in [o.order_id for o in self.working.values() if o.parent_id == order_id]:
            del self.working[child]

    def tick(self, prices: Mapping[str, float], seconds: float = 1.0) -> None:
        """Let market time pass and every price be printed, the changed ones at their new value."""
        self.clock.advance(self.clock.now() + timedelta(seconds=seconds))
        self.prices.update(prices)
        now = self.clock.now()
        self.portfolio.mark(Slice(now, trades=tuple(Trade(s, now, p, 100.0) for s, p in self.prices.items())))

    def exposure(self, symbol: str) -> Decimal:
        """Give the largest position, long or short, that the symbol's working orders could make."""
        have = self.portfolio.quantity(symbol)
        orders = [order for order in self.working.values() if self.requests[order.order_id].intent == "entry"]
        return max(
            abs(have), abs(have + reserved(orders, symbol, "buy")), abs(have - reserved(orders, symbol, "sell"))
        )

    def _shrink_group(self, order: OrderView, traded: Decimal) -> None:
        for other in list(self.working.values()):
            if order.oca_group is None or other.oca_group != order.oca_group or other.order_id == order.order_id:
                continue
            left = other.quantity - traded
            if left - other.filled_quantity <= ZERO:
                del self.working[other.order_id]
            else:
                self.working[other.order_id] = other.model_copy(update={"quantity": left})

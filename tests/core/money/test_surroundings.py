"""Tests of `sigma9_core.money.surroundings`: contracts, margins, the broker's clock, and who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.clock import SteppedClock, wall_now
from sigma9_core.contracts import FeedHealth, Instrument, Margin, RiskRule, RiskView, Trip
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import OrderRequest, OrderStatus, RuleUsage, Verdict
from sigma9_core.money import surroundings as module
from sigma9_core.money.surroundings import Surroundings
from sigma9_core.testing.money_room import OPEN, MoneyRoom
from sigma9_core.testing.small_exchange import SmallExchange

AAPL = Instrument("AAPL", lot=Decimal(1), shortable=True)


class Knowing(SmallExchange):
    """An exchange that tells of contracts, margins and its time; each answer is a value or an error."""

    def __init__(self, clock: SteppedClock) -> None:
        super().__init__(clock)
        self.asked: list[str] = []
        self.contract: Instrument | Exception = AAPL
        self.covers: Margin | Exception = Margin(Decimal(1000), Decimal(99_000), Decimal("0.35"))
        self.behind = 0.0
        self.hangs = False

    async def instrument(self, symbol: str) -> Instrument:
        """Tell of a contract."""
        self.asked.append(symbol)
        answer: Instrument = await self._answer(self.contract)
        return answer

    async def what_if(self, order: OrderRequest) -> Margin:
        """Tell of a margin."""
        self.asked.append(f"margin of {order.quantity}")
        answer: Margin = await self._answer(self.covers)
        return answer

    async def time(self) -> datetime:
        """Tell a time that is behind ours."""
        answer: datetime = await self._answer(wall_now() - timedelta(seconds=self.behind))
        return answer

    async def _answer(self, answer: Any) -> Any:
        if self.hangs:
            await asyncio.sleep(60)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Curious(RiskRule):
    """A rule that keeps what it was shown, and trips when the feed has failed."""

    code = "T2"
    wants_margin = True

    def __init__(self) -> None:
        super().__init__("curious")
        self.seen: list[RiskView] = []

    def check(self, order: OrderRequest, view: RiskView) -> Verdict:
        """Refuse what is not covered."""
        self.seen.append(view)
        margin = view.margin
        return self.refuse(margin.fault) if margin is not None and margin.fault else self.allow()

    def usage(self, view: RiskView) -> RuleUsage:
        """Tell nothing."""
        return RuleUsage(rule=self.name)

    def trip(self, view: RiskView) -> Trip | None:
        """Trip on a feed that has failed three times."""
        if view.feed is None or view.feed.failures < 3:
            return None
        return Trip("curious", "the feed has failed", False, Decimal(3), Decimal(3), strategy="breakout")


@pytest.fixture(name="exchange")
def _exchange() -> Knowing:
    return Knowing(SteppedClock("simulated", OPEN + timedelta(minutes=30)))


@pytest.fixture(name="rule")
def _rule() -> Curious:
    return Curious()


@pytest.fixture(name="room")
async def _room(tmp_path: Path, exchange: Knowing, rule: Curious) -> AsyncIterator[MoneyRoom]:
    async with MoneyRoom(tmp_path, exchange=exchange, rule=rule) as room:
        yield room


async def test_an_entry_is_judged_by_its_contract_and_margin(
    room: MoneyRoom, exchange: Knowing, rule: Curious
) -> None:
    """The broker is asked before the decision; a contract once, a margin for each order."""
    await room.buy()
    await room.buy(quantity=50)

    assert exchange.asked == ["AAPL", "margin of 100", "margin of 50"]
    assert [view.instruments["AAPL"] for view in rule.seen] == [AAPL, AAPL]
    assert [view.margin for view in rule.seen] == [exchange.covers] * 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (BrokerRefused("no shares to borrow"), "the broker would not take the order: no shares to borrow"),
        (BrokerError("pacing"), "the broker does not tell the order's margin (pacing)"),
        (None, "the broker does not tell the order's margin (no answer within 0.05 s)"),
    ],
)
async def test_an_order_whose_margin_is_not_told_is_not_covered(
    room: MoneyRoom,
    exchange: Knowing,
    answer: Exception | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal, an error and silence are faults of the margin, each in one sentence."""
    monkeypatch.setattr(module, "ANSWER_WITHIN", 0.05)
    if answer is None:
        await room.buy("MSFT")  # the contract is known by now, so that only the margin hangs
        exchange.contract = Instrument("MSFT")
        exchange.hangs = True
    else:
        exchange.covers = answer
    order = await room.buy()

    assert (order.status, order.reason) == (OrderStatus.RISK_REJECTED, reason)


async def test_exits_and_kills_wait_for_no_answer(room: MoneyRoom, exchange: Knowing) -> None:
    """A reducing order and a kill's close go out at once, though the broker answers nothing that it is asked."""
    entry = await room.enter()
    await room.fill(entry, "10")
    exchange.asked.clear()
    exchange.hangs = True
    sale = await room.buy(quantity=40, side="sell", intent="reduce", oca_group=room.exits.guards["AAPL"].group)
    await room.kill.fire(reason="test", source="api")
    closes = await room.closing()

    assert (sale.status is not OrderStatus.RISK_REJECTED, len(closes)) == (True, 1)
    assert exchange.asked == []


async def test_a_killed_gate_asks_nobody(room: MoneyRoom, exchange: Knowing) -> None:
    """An entry that can't pass anyway does not wait for the broker."""
    await room.kill.fire(reason="test", source="api", flatten=False)
    exchange.hangs = True
    order = await room.buy()

    assert order.status is OrderStatus.RISK_REJECTED
    assert exchange.asked == []


async def test_a_contract_that_nobody_tells_is_asked_about_again() -> None:
    """A fault is no knowledge: the next entry asks once more; what is known is kept until the day ends."""
    exchange = Knowing(SteppedClock("simulated", OPEN))
    exchange.contract = BrokerError("farm is down")
    around = Surroundings(lambda: exchange)
    await around.learn("AAPL")
    assert around.instruments["AAPL"].fault == "the broker does not tell what AAPL is (farm is down)"

    exchange.contract = AAPL
    await around.learn("AAPL")
    await around.learn("AAPL")
    assert around.instruments == {"AAPL": AAPL}
    assert exchange.asked == ["AAPL"] * 2
    around.forget()
    assert around.instruments == {}


async def test_an_answer_about_another_symbol_is_none() -> None:
    """A broker that confuses symbols is not believed."""
    exchange = Knowing(SteppedClock("simulated", OPEN))
    around = Surroundings(lambda: exchange)
    await around.learn("MSFT")

    assert "the broker does not tell what MSFT is" in str(around.instruments["MSFT"].fault)


@pytest.mark.parametrize("behind", [-2.5, 0.0, 2.5])
async def test_the_clock_is_compared(behind: float) -> None:
    """The offset is how far this machine is ahead; without an answer the last look stands."""
    exchange = Knowing(SteppedClock("simulated", OPEN))
    exchange.behind = behind
    around = Surroundings(lambda: exchange)
    await around.look_at_clock()
    assert around.clock_offset == pytest.approx(behind, abs=0.2)
    told = around.clock_offset

    exchange._answer = None  # type: ignore[method-assign, assignment] # it can't be called any more
    await around.look_at_clock()
    assert around.clock_offset == told


async def test_a_plain_broker_is_asked_nothing() -> None:
    """Without the extra protocols nothing is known, and nothing is claimed."""
    plain = SmallExchange(SteppedClock("simulated", OPEN))
    around = Surroundings(lambda: plain)
    await around.learn("AAPL")
    await around.look_at_clock()

    assert (around.instruments, around.clock_offset) == ({}, None)
    assert await around.margin(OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(1))) is None


async def test_what_the_preview_says_of_the_margin(room: MoneyRoom, exchange: Knowing) -> None:
    """`preview_order` gives the broker's numbers, or why there are none."""
    from sigma9_core.commands import OrderArgs

    args = OrderArgs(symbol="AAPL", side="buy", quantity=Decimal(10))
    told = await room.path.preview(args)
    assert told["margin"] == {
        "initial_change": 1000.0,
        "available_after": 99_000.0,
        "commission": 0.35,
        "fault": None,
    }
    exchange.covers = BrokerRefused("no")
    told = await room.path.preview(args)
    assert told["margin"]["fault"] == "the broker would not take the order: no"
    assert told["margin"]["initial_change"] is None


async def test_fills_are_seen_beside_what_was_expected(room: MoneyRoom, rule: Curious) -> None:
    """Slippage is measured from what the market showed at the decision, of a stop from its own price."""
    await room.tick("AAPL", 10.0)
    entry = await room.enter()
    await room.fill(entry, "10.02")
    stop = room.working(protective=True)[0]
    await room.fill(stop, "9.75")
    await room.buy()

    seen = rule.seen[-1].executions
    assert [(each.intent, each.expected, each.fill.price) for each in seen] == [
        ("entry", Decimal("10.0"), Decimal("10.02")),
        ("reduce", stop.request.stop_price, Decimal("9.75")),
    ]
    assert [trade.symbol for trade in rule.seen[-1].closed] == ["AAPL"]


async def test_changes_are_counted(room: MoneyRoom, rule: Curious) -> None:
    """A change of a working order is a message, too."""
    order = await room.buy(order_type="limit", limit_price=Decimal(9))
    await room.desk.modify(order.order_id, {"limit_price": Decimal("9.5")})
    await room.buy("MSFT")

    assert rule.seen[-1].changes == (room.clock.now(),)


async def test_a_feed_that_fails_trips_without_market_data(room: MoneyRoom) -> None:
    """The rules are asked when the feed's health changes: no slice comes any more that could ask them."""
    trips: list[Trip] = []
    room.path._tell_tripped = trips.append
    room.path.on_feed(FeedHealth("disconnected", 2, "OSError: no route"))
    await room.desk.settle()
    assert trips == []
    room.path.on_feed(FeedHealth("disconnected", 3, "OSError: no route"))
    await room.desk.settle()

    assert [trip.strategy for trip in trips] == ["breakout"]
    assert room.journal.notes("trip", 1)[0].body["reason"] == "the feed has failed"

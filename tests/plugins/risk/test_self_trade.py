"""R20, self_trade."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma9_core.contracts import Mark, RiskRule, RiskView
from sigma9_core.models import Intent, OrderRequest, OrderView
from sigma9_core.testing.risk_contract import RiskRuleContract
from sigma9_core.testing.risk_views import NOW, holding, mark, order, shown, view
from sigma9_plugins.risk.self_trade import SelfTrade


def rule() -> SelfTrade:
    """Build the rule."""
    return SelfTrade("r20")


def limit(price: float | str) -> dict[str, Any]:
    """Make it a limit order."""
    return {"order_type": "limit", "limit_price": Decimal(str(price))}


def stop(price: float | str, at: float | str | None = None) -> dict[str, Any]:
    """Make it a stop, with a limit where one is named."""
    if at is None:
        return {"order_type": "stop", "stop_price": Decimal(str(price))}
    return {**limit(at), "order_type": "stop_limit", "stop_price": Decimal(str(price))}


TRAIL = {"order_type": "trailing_stop", "trail_amount": Decimal(2)}
MARKET: dict[str, Any] = {}
QUOTE = mark(bid=Decimal("99.9"), ask=Decimal("100.1"))


def against(
    terms: dict[str, Any],
    *,
    side: str = "sell",
    intent: Intent = "entry",
    have: int = 0,
    quote: Mark | None = QUOTE,
) -> RiskView:
    """Show one working order at a market of 99.9 to 100.1."""
    return view(
        positions=[holding("AAPL", have)] if have else [],
        working=[shown(order(side=side, intent=intent, **terms), "w")],
        intents={"w": intent},
        marks=[] if quote is None else [quote],
    )


class TestContract(RiskRuleContract):
    """The suite that every rule passes."""

    def make(self) -> RiskRule:
        """Build it."""
        return rule()

    def allowed(self) -> tuple[OrderRequest, RiskView]:
        """Give a buy a cent below one's own offer."""
        return order(**limit("100.99")), against(limit(101))

    def refused(self) -> tuple[OrderRequest, RiskView]:
        """Give a buy at the price of one's own offer."""
        return order(**limit(101)), against(limit(101))


PAIRS = [
    # the new buy, the working sale, whether they could meet, in a market of 99.9 to 100.1
    (MARKET, limit(108), True),
    (MARKET, MARKET, True),
    (limit(95), MARKET, True),
    (MARKET, stop(98), False),
    (MARKET, stop("100.1"), True),
    (MARKET, TRAIL, False),
    (MARKET, stop(98, 97), False),
    (MARKET, stop(98, "100.1"), True),
    (MARKET, stop(98, "100.0"), False),
    (limit(101), limit("101.01"), False),
    (limit(101), limit(101), True),
    (limit(99), limit(101), False),
    (limit(101), stop(98), False),
    (limit(99), stop(98), False),
    (limit(98), stop(98), True),
    (limit("98.01"), stop(98), False),
    (limit(95), stop(98), True),
    (limit(97), stop(98, 97), True),
    (limit("96.99"), stop(98, 97), False),
    (limit(99), stop(98, 97), False),
    (limit(101), stop(98, 101), True),
    (limit(101), TRAIL, False),
    (limit(100), TRAIL, False),
    (limit("99.99"), TRAIL, True),
    (stop(103), limit(108), True),
    (stop(103), limit(103), True),
    (stop(103), limit(102), False),
    (stop(100), limit(102), True),
    (stop(100), limit(99), True),
    (stop(103), stop(101), False),
    (stop(103), stop(98), False),
    (stop(103), TRAIL, False),
    (stop(103, 104), limit(104), True),
    (stop(103, 104), limit(105), False),
    (stop(103, 104), limit(102), False),
    (TRAIL, limit(101), True),
    (TRAIL, stop(98), False),
    ({"order_type": "market_on_close"}, limit(108), True),
    ({**limit(100), "order_type": "limit_on_close"}, limit(101), False),
    (limit(101), {**limit(101), "order_type": "limit_on_close"}, True),
    (limit(90), {"order_type": "market_on_close"}, True),
]


@pytest.mark.parametrize(("new", "working", "meet"), PAIRS)
def test_orders_meet_where_both_would_trade(new: dict[str, Any], working: dict[str, Any], meet: bool) -> None:
    """A buy is refused exactly where one's own sale could fill it."""
    assert (rule().check(order(**new), against(working)).outcome == "refuse") == meet


@pytest.mark.parametrize(("new", "working", "meet"), PAIRS)
def test_a_sale_is_a_buy_in_the_mirror(new: dict[str, Any], working: dict[str, Any], meet: bool) -> None:
    """With every price at the same distance on the other side of 100, a sale meets the same buys."""

    def mirrored(terms: dict[str, Any]) -> dict[str, Any]:
        return {
            key: 200 - value if key in ("limit_price", "stop_price") else value for key, value in terms.items()
        }

    moment = against(mirrored(working), side="buy")

    assert (rule().check(order(side="sell", **mirrored(new)), moment).outcome == "refuse") == meet


@pytest.mark.parametrize("terms", [stop(98), TRAIL, stop(98, 97)])
def test_a_protective_stop_does_not_forbid_adding(terms: dict[str, Any]) -> None:
    """With the position's stop behind the market, more may be bought at it or above the stop."""
    moment = against(terms, intent="reduce", have=100)

    assert rule().check(order(), moment).outcome == "allow"
    assert rule().check(order(**limit("100.5")), moment).outcome == "allow"


@pytest.mark.parametrize(("seconds", "outcome"), [(60, "allow"), (-1, "refuse")])
def test_a_time_stop_at_rest_does_not_forbid_adding(seconds: int, outcome: str) -> None:
    """What the broker holds until later meets nothing now; once its time has come it sells at the market."""
    terms = {"good_after": NOW + timedelta(seconds=seconds)}

    assert rule().check(order(), against(terms, intent="reduce", have=100)).outcome == outcome


def test_a_bid_that_the_stop_would_sell_to_is_refused() -> None:
    """A buy that waits below the position's stop would be filled by the stop's own sale."""
    refused = rule().check(order(**limit(97)), against(stop(98), intent="reduce", have=100))

    assert (refused.outcome, refused.used, refused.limit) == ("refuse", Decimal(1), Decimal(0))
    assert "our own stop order w to sell AAPL at 98" in str(refused.reason)


@pytest.mark.parametrize("have", [0, -50])
def test_an_exit_that_waits_for_its_entry_meets_nothing(have: int) -> None:
    """The legs of an entry that has not filled can't trade; one that closes what is held can."""
    assert rule().check(order(), against(limit(108), intent="reduce", have=have)).outcome == "allow"
    assert rule().check(order(), against(limit(108), intent="reduce", have=1)).outcome == "refuse"


def test_a_foreign_order_of_the_account_counts() -> None:
    """What a person has placed beside the server is one's own, too."""
    moment = view(working=[shown(order(side="sell", **limit(101)), "f", foreign=True)])
    refused = rule().check(order(**limit(101)), moment)

    assert refused.outcome == "refuse"
    assert "a foreign limit order f" in str(refused.reason)


def test_what_is_elsewhere_does_not_count() -> None:
    """Orders in other symbols, on the same side, and in one's own group meet nothing."""
    others = [
        shown(order("MSFT", "sell", **limit(90)), "a"),
        shown(order(side="buy", **limit(101)), "b"),
        shown(order(side="sell", oca_group="g", **limit(90)), "c"),
    ]

    assert rule().check(order(oca_group="g"), view(working=others)).outcome == "allow"
    assert rule().check(order(oca_group="h"), view(working=others)).used == 1


def test_all_that_it_could_meet_are_counted() -> None:
    """The number is how many orders of one's own are in the way."""
    others = [shown(order(side="sell", **limit(price)), f"w{price}") for price in (101, 102, 103)]

    assert rule().check(order(**limit(102)), view(working=others)).used == 2


@pytest.mark.parametrize("quote", [None, mark(price="NaN"), mark(price=0)])
@pytest.mark.parametrize("terms", [stop(98), TRAIL, stop(98, 97)])
def test_without_a_price_a_stop_is_taken_to_meet(quote: Mark | None, terms: dict[str, Any]) -> None:
    """Where nobody knows the market, an order at it and a stop on the other side are kept apart."""
    assert rule().check(order(), against(terms, quote=quote)).outcome == "refuse"


def test_without_a_quote_the_last_price_counts() -> None:
    """Minute bars have no bid and ask."""
    assert rule().check(order(), against(stop(99), quote=mark())).outcome == "allow"
    assert rule().check(order(), against(stop(100), quote=mark())).outcome == "refuse"


@pytest.mark.parametrize(
    "strange", [limit("0"), {**limit(1), "limit_price": None}, {**stop(1), "stop_price": None}, stop(-5)]
)
def test_a_working_order_without_its_price_is_taken_to_meet(strange: dict[str, Any]) -> None:
    """What a broker does not tell is no reason to let an order pass."""
    assert rule().check(order(**limit(95)), against(strange)).outcome == "refuse"


def test_a_reducing_order_is_not_asked() -> None:
    """An exit must get out, whatever rests on the other side."""
    leave = order(side="sell", intent="reduce", **limit(90))

    assert rule().check(leave, against(limit(101), side="buy", have=100)).outcome == "allow"


def test_usage_counts_the_entries_that_cross() -> None:
    """The published use is the number of working entries that could meet one's own order."""
    working = [
        shown(order(**limit(101)), "a"),
        shown(order(**limit(99)), "b"),
        shown(order("MSFT", **limit(101)), "c"),
        shown(order(side="sell", **limit(100)), "f", foreign=True),
    ]

    assert (rule().usage(view(working=working)).used, rule().usage(view()).used) == (Decimal(1), Decimal(0))


@dataclass
class Waiting:
    """A working order in a market whose price moves by one at a time."""

    order: OrderView
    best: Decimal
    """The price that is best for a trail since it works."""
    triggered: bool = False

    def trades(self, price: Decimal) -> bool:
        """Tell whether it trades at a price, as an exchange would."""
        terms, sign = self.order, 1 if self.order.side == "buy" else -1
        self.best = min(self.best * sign, price * sign) * sign
        level = terms.stop_price
        if terms.trail_amount is not None:
            level = self.best + sign * terms.trail_amount
        self.triggered = self.triggered or level is None or price * sign >= level * sign
        return self.triggered and (terms.limit_price is None or price * sign <= terms.limit_price * sign)


@dataclass
class Market:
    """One symbol, where limits and stops fill at their price as the last price walks past them."""

    price: Decimal = Decimal(100)
    waiting: list[Waiting] = field(default_factory=list)

    def offer(self, request: OrderRequest) -> None:
        """Let an entry in where the rule lets it pass."""
        working = [each.order for each in self.waiting]
        intents: dict[str, Intent] = {o.order_id: "reduce" for o in working if o.source == "exit"}
        moment = view(
            positions=[holding("AAPL", 100)], working=working, intents=intents, marks=[mark(price=self.price)]
        )
        if rule().check(request, moment).outcome == "allow":
            self.add(request)

    def add(self, request: OrderRequest) -> None:
        """Let an order work, and trade at once where it can."""
        self.waiting.append(Waiting(shown(request, f"w{len(self.waiting)}"), self.price))
        self.walk(0)

    def walk(self, step: int) -> None:
        """Move the price; what trades at it leaves, and never are both sides among it."""
        self.price += step
        trading = [each for each in self.waiting if each.trades(self.price)]
        assert len({each.order.side for each in trading}) < 2, trading
        self.waiting = [each for each in self.waiting if each not in trading]


@st.composite
def entries(draw: st.DrawFn) -> OrderRequest:
    """Draw an entry near the market, of any type."""
    price = st.integers(94, 106)
    kind = draw(st.sampled_from(("market", "limit", "limit", "stop", "stop_limit", "trailing")))
    terms = {"market": MARKET, "trailing": TRAIL}.get(kind)
    if terms is None:
        terms = (
            limit(draw(price)) if kind == "limit" else stop(draw(price), *[draw(price)] * (kind == "stop_limit"))
        )
    return order(side=draw(st.sampled_from(("buy", "sell"))), **terms)


@settings(max_examples=300, deadline=None)
@given(
    guards=st.lists(st.sampled_from((stop(97), stop(95), TRAIL, limit(104), stop(98, 96))), max_size=3),
    steps=st.lists(entries() | st.sampled_from((-1, 1, -3, 3, 6, -6)), max_size=25),
)
def test_approved_entries_never_trade_with_oneself(guards: list[Any], steps: list[OrderRequest | int]) -> None:
    """Wherever the price walks, no buy and sale of the account, stops and trails included, ever trade at once."""
    market = Market()
    for terms in guards:
        market.add(order(side="sell", intent="reduce", source="exit", **terms))
    for step in steps:
        if isinstance(step, int):
            for _ in range(abs(step)):
                market.walk(1 if step > 0 else -1)
        else:
            market.offer(step)

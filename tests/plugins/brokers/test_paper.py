"""The paper broker keeps to the broker contract, and to what an exchange would do."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sigma9_core.clock import SteppedClock
from sigma9_core.contracts import Factory, MarketDriven, NoConfig
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import Frozen, Quote
from sigma9_core.testing.broker_contract import BrokerContract, BrokerRoom, Recorder
from sigma9_core.testing.orders import approve, request
from sigma9_plugins.brokers import paper as plugin
from sigma9_plugins.brokers.paper import PaperConfig
from sigma9_plugins.testing.paper_room import OPEN, SESSIONS, START, Exchange, exchange, paper


class TestContract(BrokerContract):
    """In memory."""

    def open_room(self, folder: Path) -> AbstractAsyncContextManager[BrokerRoom]:
        """Open a paper exchange without a file."""
        return exchange()


class TestContractWithFile(BrokerContract):
    """With a file."""

    def open_room(self, folder: Path) -> AbstractAsyncContextManager[BrokerRoom]:
        """Open a paper exchange with a file."""
        return exchange(folder / "paper")


@pytest.fixture(name="room")
async def _room() -> AsyncIterator[Exchange]:
    async with exchange() as room:
        await room.move(room.symbol, 10.0)
        yield room


def test_plugin_registers_the_broker() -> None:
    """The plugin offers one broker, `paper`, and it is driven by the market."""
    offered: dict[str, Any] = {}

    def register(name: str, factory: Factory, config: type[Frozen] = NoConfig) -> None:
        offered[name] = config

    plugin.register_brokers(register)

    assert offered == {"paper": PaperConfig}
    assert isinstance(paper(), MarketDriven)


@pytest.mark.parametrize(
    "wrong",
    [{"participation": 0}, {"participation": 1.5}, {"cash": 0}, {"slippage_percent": -1}, {"limit_fill": "x"}],
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    """A setting that makes no sense is an error that names it."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PaperConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"quantity": 0}, "above zero"),
        ({"quantity": -5}, "above zero"),
        ({"quantity": "1.5"}, "whole number"),
        ({"order_type": "limit"}, "needs a limit_price"),
        ({"order_type": "stop"}, "needs a stop_price"),
        ({"order_type": "stop_limit", "limit_price": 11}, "needs a stop_price"),
        ({"order_type": "limit_on_close"}, "needs a limit_price"),
        ({"order_type": "limit", "limit_price": -1}, "limit_price must be above zero"),
        ({"order_type": "trailing_stop"}, "exactly one of"),
        ({"order_type": "trailing_stop", "trail_amount": 1, "trail_percent": 1}, "exactly one of"),
        ({"order_type": "trailing_stop", "trail_percent": 100}, "below 100"),
        ({"time_in_force": "gtd"}, "gtd needs a date"),
        ({"order_type": "market_on_close", "time_in_force": "gtc"}, "good for the day"),
        ({"order_type": "stop", "stop_price": 11, "time_in_force": "ioc"}, "ioc goes with"),
        ({"parent_id": "nobody"}, "its parent nobody is not known"),
        ({"order_type": "stop", "stop_price": 9}, "at or below the market"),
        ({"quantity": 50_000}, "buying power"),
    ],
)
async def test_rejections(room: Exchange, wrong: dict[str, Any], says: str) -> None:
    """What an exchange would not take is rejected by a report with one clear sentence, and leaves no trace."""
    wrong = {"quantity": 100, **wrong}
    order = await room.order("buy", wrong.pop("quantity"), **wrong)
    await room.move(room.symbol, 10.0)
    (report,) = room.heard.reports

    assert report.kind == "rejected"
    assert says in (report.reason or "")
    assert await room.working(order) is None
    assert room.fills(order) == []


async def test_a_reducing_stop_through_the_market_is_set_off(room: Exchange) -> None:
    """A stop that guards a position is never rejected for its side: it sells at once."""
    await room.hold(100)
    order = await room.order("sell", 100, order_type="stop", stop_price=10.5, intent="reduce")
    await room.move(room.symbol, 10.0)

    assert sum(quantity for quantity, _ in room.prices(order)) == 100


async def test_a_stop_limit_through_the_market_is_a_limit_order(room: Exchange) -> None:
    """A stop-limit entry whose stop the market has passed is set off at once, and still keeps to its limit."""
    terms = {"order_type": "stop_limit", "stop_price": 9.5, "limit_price": 10.2}
    order = await room.order("buy", 100, **terms)
    await room.move(room.symbol, 10.5)
    assert room.fills(order) == []
    await room.move(room.symbol, 10.0)

    assert room.prices(order) == [(100, "10.01")]


async def test_group_is_rejected_as_one(room: Exchange) -> None:
    """Where one order of a group can't be taken, none is: no entry stands without its stop."""
    entry = approve(request(room.symbol, "buy", 100))
    stop = approve(request(room.symbol, "sell", 100, order_type="stop", parent_id=entry.order_id))
    await room.broker.submit([entry, stop])

    assert room.end(stop) == ("rejected", "a stop order needs a stop_price")
    assert room.end(entry) == ("rejected", "another order of its group was rejected")
    assert await room.broker.open_orders() == []


async def test_children_say_why_they_end(room: Exchange) -> None:
    """A child that ends with its unfilled parent names it."""
    entry = approve(request(room.symbol, "buy", 100, order_type="limit", limit_price=9))
    stop = approve(
        request(
            room.symbol, "sell", 100, order_type="stop", stop_price=8, parent_id=entry.order_id, intent="reduce"
        )
    )
    await room.broker.submit([entry, stop])
    await room.broker.cancel(entry.order_id)

    assert room.end(entry) == ("cancelled", "cancelled on request")
    assert room.end(stop) == ("cancelled", f"its parent {entry.order_id} ended unfilled")
    late = approve(stop.request)
    await room.broker.submit([late])
    assert room.end(late) == ("rejected", f"its parent {entry.order_id} ended unfilled")


async def test_prices_are_put_on_the_tick(room: Exchange) -> None:
    """Limits are rounded without becoming worse, stops to the nearest tick, below a dollar to a hundredth cent."""
    limit = await room.order("buy", 1, order_type="limit", limit_price="9.999")
    sell = await room.order("sell", 1, order_type="limit", limit_price="10.501")
    stop = await room.order("sell", 1, order_type="stop", stop_price="8.9951", intent="reduce")
    penny = await room.order("buy", 1, order_type="limit", limit_price="0.12345")
    found = {each.order_id: each for each in await room.broker.open_orders()}

    assert found[limit.order_id].limit_price == Decimal("9.99")
    assert found[sell.order_id].limit_price == Decimal("10.51")
    assert found[stop.order_id].stop_price == Decimal("9.00")
    assert found[penny.order_id].limit_price == Decimal("0.1234")


async def test_nothing_fills_at_once(room: Exchange) -> None:
    """Submit reports `accepted` before it returns, and never a fill: that needs data that come later."""
    order = await room.order("buy", 100)
    assert room.heard.kinds(order.order_id) == ["accepted"]

    now = room.now()
    await room.slice(Quote(room.symbol, now, 9.99, 10.01), at=now)
    assert room.fills(order) == []

    await room.quote(9.99, 10.01)
    assert room.fills(order)[0].ts > now


async def test_commission_and_slippage(room: Exchange) -> None:
    """A fill costs the stated slippage, and the order the stated commission, however many fills it takes."""
    small = await room.order("buy", 10)
    await room.quote(9.99, 10.01)
    assert room.prices(small) == [(10, "10.02")]  # 10.01 and 0.05 %, up to the tick
    assert room.fills(small)[0].commission == Decimal("1.00")

    tiny = await room.order("buy", 1)
    await room.quote(9.99, 10.01)
    assert room.fills(tiny)[0].commission == Decimal("0.10")  # one percent beats the minimum

    large = await room.order("buy", 1000)
    await room.quote(9.99, 10.01, ask_size=400)
    await room.quote(9.99, 10.01, ask_size=600)
    assert [str(fill.commission) for fill in room.fills(large)] == ["2.00", "3.00"]


async def test_account_modes() -> None:
    """The account is simulated on a stepped clock; its name says what it is."""
    async with exchange(cash=5000, leverage=2) as room:
        account = await room.broker.account()

    assert (account.account, account.mode, account.currency) == ("PAPER", "simulated", "USD")
    assert (account.cash, account.buying_power) == (Decimal(5000), Decimal(10_000))
    live = paper(kind="live")
    await live.connect(Recorder())
    assert (await live.account()).mode == "paper"
    await live.disconnect()


async def test_buying_power_counts_positions_and_working_orders(room: Exchange) -> None:
    """What is held and what may still fill is no longer there to spend; a reduction always passes."""
    await room.hold(4000)
    after = (await room.broker.account()).buying_power
    assert after is not None
    assert Decimal(59_000) < after < Decimal(61_000)

    resting = await room.order("buy", 5000, order_type="limit", limit_price=9)
    assert (await room.broker.account()).buying_power == after - 45_000
    too_much = await room.order("buy", 2000)
    assert room.end(too_much) is not None

    await room.broker.cancel(resting.order_id)
    assert (await room.broker.account()).buying_power == after
    reduce = await room.order("sell", 4000, intent="reduce")
    await room.move(room.symbol, 10.0)
    assert sum(quantity for quantity, _ in room.prices(reduce)) == 4000


async def test_replace_says_why_not(room: Exchange) -> None:
    """A change that can't be is refused with its reason, and the order stays as it is."""
    order = await room.order("buy", 100, order_type="limit", limit_price=9.5)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"side": "sell"}, "side of order"),
        ({"limit_price": Decimal(-1)}, "above zero"),
        ({"quantity": Decimal(100_000)}, "buying power"),
    ]
    for changes, says in wrong:
        with pytest.raises(BrokerRefused, match=says):
            await room.broker.replace(approve(order.request.model_copy(update=changes), order.order_id))
    found = await room.working(order)

    assert found is not None
    assert (found.quantity, found.limit_price) == (Decimal(100), Decimal("9.5"))
    assert room.heard.kinds(order.order_id) == ["accepted"]


async def test_replace_below_what_filled(room: Exchange) -> None:
    """The quantity can't become what has filled already, or less."""
    order = await room.order("buy", 100)
    await room.thin(room.symbol, 10.0, 40)
    with pytest.raises(BrokerRefused, match="40 of it have filled"):
        await room.broker.replace(approve(request(room.symbol, "buy", 40), order.order_id))


async def test_replaced_terms_fill_on_later_data_only(room: Exchange) -> None:
    """A new limit does not reach back: it fills on data behind the change."""
    order = await room.order("buy", 100, order_type="limit", limit_price=9.0)
    await room.move(room.symbol, 9.5)
    await room.broker.replace(
        approve(request(room.symbol, "buy", 100, order_type="limit", limit_price=9.8), order.order_id)
    )
    assert room.fills(order) == []
    await room.move(room.symbol, 9.5)

    assert sum(quantity for quantity, _ in room.prices(order)) == 100


async def test_duplicate_inside_a_group(room: Exchange) -> None:
    """Two orders of one id in a group are an error, and neither is taken."""
    order = approve(request(room.symbol, "buy", 100))
    with pytest.raises(BrokerError, match="submitted before"):
        await room.broker.submit([order, order])
    assert room.heard.reports == []


async def test_orders_by_hand_are_cancelled_by_the_brokers_id(room: Exchange) -> None:
    """A foreign order ends under the broker's own id of it, silently, since it is not ours."""
    number = room.broker.place_by_hand(request(room.symbol, "buy", 5, order_type="limit", limit_price=8))
    await room.broker.cancel(number)

    assert await room.broker.open_orders() == []
    assert room.heard.reports == []
    with pytest.raises(BrokerRefused, match="whole number"):
        room.broker.place_by_hand(request(room.symbol, "buy", "0.5"))


async def test_before_the_first_connect() -> None:
    """A broker that was never connected takes nothing, reads nothing back, and lets market data pass."""
    broker = paper()
    room = Exchange(broker, SteppedClock("simulated", START))
    await room.move(room.symbol, 10.0)
    with pytest.raises(BrokerRefused, match="connect"):
        await broker.submit([approve(request("TEST", "buy", 1))])
    with pytest.raises(BrokerRefused, match="connect"):
        await broker.positions()


async def test_executions_have_ids_for_ever(tmp_path: Path) -> None:
    """An execution's id is made of the order's, so that it never comes again, even with the file gone."""
    ids: list[str] = []
    for n in range(2):
        async with exchange(tmp_path / str(n)) as room:
            order = await room.order("buy", 100)
            await room.quote(9.99, 10.01, ask_size=60)
            await room.quote(9.99, 10.01)
            ids += [fill.exec_id for fill in room.fills(order)]

    assert len(set(ids)) == 4


async def test_files_are_private(tmp_path: Path) -> None:
    """The file is readable by its owner alone, and so is the folder."""
    folder = tmp_path / "deep" / "paper"
    async with exchange(folder):
        assert stat.S_IMODE((folder / "paper.jsonl").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_replay_begins_anew(tmp_path: Path) -> None:
    """A replay starts with an empty book whatever the file has: it starts at its beginning."""
    async with exchange(tmp_path) as room:
        await room.hold(100)
    broker = paper(tmp_path, kind="replay")
    await broker.connect(Recorder())

    assert await broker.positions() == []
    assert (await broker.account()).cash == Decimal(100_000)
    await broker.disconnect()


async def test_day_orders_expire(room: Exchange) -> None:
    """A day order ends at the session's close, one for extended hours at 20:00 New York; gtc goes on."""
    day = await room.order("buy", 1, order_type="limit", limit_price=5)
    late = await room.order("buy", 1, order_type="limit", limit_price=5, outside_rth=True)
    gtc = await room.order("buy", 1, order_type="limit", limit_price=5, time_in_force="gtc")
    await room.slice(at=SESSIONS[0].close - timedelta(seconds=5))
    assert room.end(day) is None
    await room.slice(at=SESSIONS[0].close)
    assert room.end(day) == ("expired", "its day is over")
    await room.slice(at=OPEN + timedelta(hours=10, minutes=25))
    assert room.end(late) is None
    await room.slice(at=OPEN + timedelta(days=1))

    assert room.end(late) == ("expired", "its day is over")
    assert await room.working(gtc) is not None


async def test_day_order_of_the_evening_is_for_the_next_day(room: Exchange) -> None:
    """A day order that comes after the close belongs to the next session, and fills there."""
    await room.slice(at=SESSIONS[0].close + timedelta(hours=1))
    order = await room.order("buy", 100)
    await room.slice(at=SESSIONS[1].open - timedelta(minutes=5))
    assert room.end(order) is None
    await room.slice(at=SESSIONS[1].open)
    await room.move(room.symbol, 11.0)

    assert sum(quantity for quantity, _ in room.prices(order)) == 100

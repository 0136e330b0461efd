"""A real client connects to the peer and reads what there is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sigma9_core.testing.tws import FakeTws


async def test_connect(ib: Any, tws: FakeTws) -> None:
    """The handshake announces version 176; accounts, ids and all first requests are answered."""
    assert ib.client.serverVersion() == 176
    assert ib.managedAccounts() == ["DU1234567"]
    assert {each.name for each in tws.received} >= {"startApi", "reqPositions", "reqOpenOrders", "reqExecutions"}
    values = {each.tag: each.value for each in ib.accountValues()}
    assert values["NetLiquidation"] == "100000.00"
    assert values["BuyingPower"] == "400000.00"


async def test_current_time(ib: Any, tws: FakeTws) -> None:
    """The time is the peer's."""
    assert await ib.reqCurrentTimeAsync() == tws.clock.now()
    tws.clock.advance(90)
    assert await ib.reqCurrentTimeAsync() == tws.clock.now()


async def test_several_accounts(lib: Any) -> None:
    """Each account has positions and values of its own."""
    async with FakeTws(accounts=("DU1", "DU2"), cash=5000) as tws:
        tws.set_position("SPY", -5, 540, account="DU2")
        ib = lib.IB()
        await ib.connectAsync(tws.host, tws.port, clientId=1)

        assert ib.managedAccounts() == ["DU1", "DU2"]
        assert [(each.account, each.contract.symbol, each.position) for each in ib.positions()] == [
            ("DU2", "SPY", -5.0)
        ]
        cash = {each.account: each.value for each in ib.accountValues() if each.tag == "TotalCashValue"}
        assert cash == {"DU1": "5000.00", "DU2": "5000.00"}
        trade = ib.placeOrder(lib.Stock("AAPL", "SMART", "USD"), lib.MarketOrder("BUY", 1, tif="DAY"))
        codes: list[int] = []
        ib.errorEvent += lambda number, code, text, contract: codes.append(code)
        await ib.reqCurrentTimeAsync()
        assert 435 in codes
        assert not trade.fills
        ib.disconnect()


async def test_contract_details(lib: Any, ib: Any, tws: FakeTws) -> None:
    """Details have number, price step and trading hours; an unknown contract has none."""
    (details,) = await ib.reqContractDetailsAsync(lib.Stock("AAPL", "SMART", "USD"))

    assert details.contract.conId == 265598
    assert details.contract.primaryExchange == "NASDAQ"
    assert details.minTick == 0.01
    assert details.longName == "APPLE INC"
    assert details.tradingHours.startswith("20260105:0400-20260105:2000;20260106:0400")
    assert "20260110:CLOSED" in details.liquidHours
    assert await ib.reqContractDetailsAsync(lib.Stock("NOSUCH", "SMART", "USD")) == []
    tws.add_contract("NOSUCH", 12.5, min_tick="0.05", sec_type="ETF", currency="EUR")
    (made,) = await ib.reqContractDetailsAsync(lib.Contract(symbol="NOSUCH", secType="ETF", currency="EUR"))
    assert made.minTick == 0.05


async def test_two_contracts_of_a_name(lib: Any, ib: Any, tws: FakeTws) -> None:
    """A contract that says too little has several details."""
    tws.add_contract("AAPL", 140, currency="EUR", primary_exchange="IBIS")

    found = await ib.reqContractDetailsAsync(lib.Stock("AAPL", "", ""))

    assert {each.contract.currency for each in found} == {"USD", "EUR"}


async def test_search(ib: Any) -> None:
    """Symbols are found by how they begin."""
    found = await ib.reqMatchingSymbolsAsync("AM")

    assert {each.contract.symbol for each in found} == {"AMD", "AMZN"}


async def test_account_summary(ib: Any, tws: FakeTws) -> None:
    """The summary has the tags that are asked for."""
    tws.set_value("BuyingPower", "123.45")

    found = await ib.accountSummaryAsync()

    assert {each.tag: each.value for each in found}["BuyingPower"] == "123.45"


async def test_another_base_currency(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Values and margins are told in the base currency, balances also in dollars, once there are any."""
    tws.set_cash(0)
    tws.set_currency("JPY", 150, 15_000_000)

    async def told() -> dict[tuple[str, str], str]:
        return {(each.tag, each.currency): each.value for each in await ib.accountSummaryAsync()}

    values = await told()
    assert values["TotalCashValue", "JPY"] == "15000000.00"
    assert ("CashBalance", "USD") not in values
    ib.placeOrder(aapl, lib.MarketOrder("BUY", 10, tif="DAY"))
    await ib.reqCurrentTimeAsync()
    paid = -sum(each.execution.shares * each.execution.price for each in ib.fills()) - 1
    values = {(each.tag, each.currency): each.value for each in ib.accountValues()}
    assert float(values["CashBalance", "USD"]) == paid
    assert float(values["CashBalance", "JPY"]) == 15_000_000
    assert (
        float(values["CashBalance", "BASE"]) == float(values["TotalCashValue", "JPY"]) == 15_000_000 + 150 * paid
    )
    assert values["ExchangeRate", "USD"] == "150"
    state = await ib.whatIfOrderAsync(aapl, lib.MarketOrder("BUY", 10, tif="DAY"))
    assert float(state.initMarginChange) == 10 * 190 / 4 * 150


async def test_account_changes_are_told(ib: Any, tws: FakeTws) -> None:
    """Cash, positions and the portfolio reach a subscriber as they change."""
    tws.set_cash(7)
    tws.set_position("AMD", 10, 140)
    await ib.reqCurrentTimeAsync()

    values = {each.tag: each.value for each in ib.accountValues()}
    assert values["TotalCashValue"] == "7.00"
    (item,) = ib.portfolio()
    assert (item.contract.symbol, item.position, item.marketValue, item.unrealizedPNL) == ("AMD", 10, 1500, 100)
    (position,) = ib.positions()
    assert (position.position, position.avgCost) == (10, 140)


async def test_profit(lib: Any, ib: Any, aapl: Any, tws: FakeTws) -> None:
    """Profits of the account and of a position follow trades."""
    account = ib.managedAccounts()[0]
    whole = ib.reqPnL(account)
    single = ib.reqPnLSingle(account, "", aapl.conId)
    ib.placeOrder(aapl, lib.MarketOrder("BUY", 100, tif="DAY"))
    await ib.reqCurrentTimeAsync()
    tws.set_price("AAPL", 191)
    ib.placeOrder(aapl, lib.MarketOrder("SELL", 50, tif="DAY"))
    await ib.reqCurrentTimeAsync()

    tws.set_price("AAPL", 192)
    await ib.reqCurrentTimeAsync()
    assert single.value == 50 * 192
    tws.set_price("AAPL", 191)
    await ib.reqCurrentTimeAsync()

    assert single.position == 50
    assert single.value == 50 * 191
    assert whole.unrealizedPnL == single.unrealizedPnL == pytest.approx(49.5)
    assert whole.realizedPnL == pytest.approx(50 - 0.5 - 1)
    ib.cancelPnL(account)
    ib.cancelPnLSingle(account, "", aapl.conId)


async def test_client_id_in_use(connect: Any, ib: Any, lib: Any, tws: FakeTws) -> None:
    """A second client of an id hears 326, then the connection closes; the first goes on."""
    second = lib.IB()
    codes: list[int] = []
    second.errorEvent += lambda number, code, text, contract: codes.append(code)

    with pytest.raises((TimeoutError, asyncio.TimeoutError, ConnectionError)):
        await second.connectAsync(tws.host, tws.port, clientId=1, timeout=0.3)

    assert 326 in codes
    assert await ib.reqCurrentTimeAsync()
    third = await connect(2)
    assert third.isConnected()


async def test_reconnect(ib: Any, connect: Any, tws: FakeTws) -> None:
    """A connection that is cut can be made again with the same id."""
    gone = asyncio.Event()
    ib.disconnectedEvent += gone.set
    tws.drop()
    async with asyncio.timeout(5):
        await gone.wait()
    await tws.until(lambda: not tws.clients)

    assert (await connect(1)).isConnected()


async def test_away(connect: Any, tws: FakeTws) -> None:
    """While the peer is away nobody can connect; then on the same port."""
    port = tws.port
    await tws.go_away()
    with pytest.raises(ConnectionRefusedError):
        await connect(1)
    await tws.come_back()

    assert tws.port == port
    assert (await connect(1)).isConnected()


async def test_user_info_and_rules(ib: Any) -> None:
    """Small questions are answered, too."""
    assert [(each.lowEdge, each.increment) for each in await ib.reqMarketRuleAsync(26)] == [(0.0, 0.01)]
    assert not await ib.reqUserInfoAsync()

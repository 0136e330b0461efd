"""How requests about accounts, positions and contracts are answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Final

from sigma9_core.testing.tws.answers import error, portfolio_message, position_message
from sigma9_core.testing.tws.client import Client
from sigma9_core.testing.tws.requests import Request
from sigma9_core.testing.tws.wire import message
from sigma9_core.testing.tws.world import World

Answer = Callable[[World, Client, Request], None]
LEDGER: Final = "$LEDGER"
DAYS: Final = 7
"""How many days the trading hours of a contract reach ahead."""


def managed_accounts(world: World, client: Client, request: Request) -> None:
    """Tell the accounts of the login."""
    client.send(message(15, 1, ",".join(world.accounts.all)))


def current_time(world: World, client: Client, request: Request) -> None:
    """Tell the time in seconds since 1970."""
    client.send(message(49, 1, int(world.clock.now().timestamp())))


def positions(world: World, client: Client, request: Request) -> None:
    """Tell all positions, and from now on what changes."""
    client.positions = True
    for account in world.accounts.all.values():
        client.send(*(position_message(account.name, each) for each in account.held()))
    client.send(message(62, 1))


def cancel_positions(world: World, client: Client, request: Request) -> None:
    """Tell no more changes of positions."""
    client.positions = False


def positions_multi(world: World, client: Client, request: Request) -> None:
    """Tell the positions of an account."""
    for account in world.accounts.chosen(request.get("account")):
        for each in account.held():
            fields = (*each.contract.eleven(), each.quantity, each.cost, "")
            client.send(message(71, 1, request.req_id, account.name, *fields))
    client.send(message(72, 1, request.req_id))


def account_updates(world: World, client: Client, request: Request) -> None:
    """Tell values and portfolio of an account, and from now on what changes."""
    account = world.accounts.get(request.get("account")) or world.accounts.first
    if request.get("subscribe") != "1":
        client.accounts.discard(account.name)
        return
    client.accounts = {account.name}  # the newest one takes the place of the one before
    values = world.value_messages(account)
    client.news(values)
    client.send(*values)
    client.send(*(portfolio_message(account, each, world.market.price) for each in account.held()))
    client.send(message(8, 1, f"{world.clock.now():%H:%M}"), message(54, 1, account.name))


def account_updates_multi(world: World, client: Client, request: Request) -> None:
    """Tell the values of an account or of all, and from now on what changes."""
    name = request.get("account")
    chosen = world.accounts.chosen(name)
    if not chosen:
        client.send(error(321, f"Invalid account code '{name}'.", request.req_id))
        return
    client.multi[request.req_id] = name
    for account in chosen:
        values = world.multi_messages(account, request.req_id)
        client.news(values)
        client.send(*values)
    client.send(message(74, 1, request.req_id))


def account_summary(world: World, client: Client, request: Request) -> None:
    """Tell the values of all accounts whose tags are asked for, and the balances of `$LEDGER:USD` or `:ALL`."""
    price_of = world.market.price
    asked = [tag.partition(":") for tag in request.get("tags").split(",")]
    tags = {tag for tag, _, _ in asked}
    for account in world.accounts.chosen(request.get("group")):
        rows = [row for row in account.values(price_of) if row[0] in tags]
        for tag, _, currency in asked:
            if tag == LEDGER:
                rows += account.ledger(currency or account.currency, price_of)
        for row in rows:
            client.send(message(63, 1, request.req_id, account.name, *row))
    client.send(message(64, 1, request.req_id))


def pnl(world: World, client: Client, request: Request) -> None:
    """Tell the profit of an account, or of one position in it, and from now on what changes."""
    if world.accounts.get(request.get("account")) is None:
        client.send(error(321, "Invalid account code.", request.req_id))
        return
    client.pnl[request.req_id] = (request.get("account"), request.integer("conId"))
    world.tell_pnl(client, request.req_id)


def contract_details(world: World, client: Client, request: Request) -> None:
    """Tell what matches a contract; code 200 where nothing does."""
    found = [] if request.contract is None else world.contracts.matching(request.contract)
    if not found or request.contract is None:
        client.send(error(200, "No security definition has been found for the request", request.req_id))
        return
    regular, all_day = trading_hours(world, "0930", "1600"), trading_hours(world, "0400", "2000")
    for each in found:
        routed = replace(each, contract=replace(each.contract, exchange=request.contract.exchange or "SMART"))
        client.send(routed.message(request.req_id, all_day, regular))
    client.send(message(52, 1, request.req_id))


def trading_hours(world: World, opens: str, closes: str) -> str:
    """Write the hours of the coming days, closed at weekends."""
    first = world.clock.now().date()
    parts = []
    for ahead in range(DAYS):
        day = first + timedelta(days=ahead)
        name = f"{day:%Y%m%d}"
        parts.append(f"{name}:CLOSED" if day.weekday() > 4 else f"{name}:{opens}-{name}:{closes}")
    return ";".join(parts)


def matching_symbols(world: World, client: Client, request: Request) -> None:
    """Tell the contracts whose symbol or name begins with something."""
    pattern = request.get("pattern").upper()
    found = [
        each.contract
        for each in world.contracts.all()
        if each.contract.symbol.startswith(pattern) or each.name.startswith(pattern)
    ]
    fields: list[str | int] = []
    for each in found:
        fields += [
            each.con_id,
            each.symbol,
            each.sec_type,
            each.primary_exchange,
            each.currency,
            0,
            each.symbol,
            "",
        ]
    client.send(message(79, request.req_id, len(found), *fields))


def market_rule(world: World, client: Client, request: Request) -> None:
    """Tell the price steps of a market rule: one cent."""
    client.send(message(93, request.integer("ruleId"), 1, "0", "0.01"))


def user_info(world: World, client: Client, request: Request) -> None:
    """Tell the white-branding id: none."""
    client.send(message(107, request.req_id, ""))


ANSWERS: Final[Mapping[str, Answer]] = {
    "reqManagedAccts": managed_accounts,
    "reqCurrentTime": current_time,
    "reqPositions": positions,
    "cancelPositions": cancel_positions,
    "reqPositionsMulti": positions_multi,
    "cancelPositionsMulti": lambda world, client, request: None,
    "reqAccountUpdates": account_updates,
    "reqAccountUpdatesMulti": account_updates_multi,
    "cancelAccountUpdatesMulti": lambda world, client, request: _forget(client.multi, request),
    "reqAccountSummary": account_summary,
    "cancelAccountSummary": lambda world, client, request: None,
    "reqPnL": pnl,
    "reqPnLSingle": pnl,
    "cancelPnL": lambda world, client, request: _forget(client.pnl, request),
    "cancelPnLSingle": lambda world, client, request: _forget(client.pnl, request),
    "reqContractDetails": contract_details,
    "reqMatchingSymbols": matching_symbols,
    "reqMarketRule": market_rule,
    "reqUserInfo": user_info,
    "setServerLogLevel": lambda world, client, request: None,
}


def _forget(wishes: dict[int, str] | dict[int, tuple[str, int]], request: Request) -> None:
    wishes.pop(request.req_id, None)

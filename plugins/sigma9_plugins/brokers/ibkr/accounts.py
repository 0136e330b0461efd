"""Which account orders go to, what is in it, and what an order would do to it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_DOWN, ROUND_FLOOR, Decimal
from typing import Any, Final, Literal, NamedTuple

from sigma9_core.contracts import BrokerAccount, BrokerPosition, Margin
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_core.models import CURRENCY
from sigma9_plugins.brokers.ibkr.asking import Answer, Asking, RequestFailed
from sigma9_plugins.brokers.ibkr.codes import order_action, request_fails, says
from sigma9_plugins.brokers.ibkr.contracts import Contracts, name_of
from sigma9_plugins.brokers.ibkr.figures import amount, quantity
from sigma9_plugins.brokers.ibkr.lanes import Parcel
from sigma9_plugins.brokers.ibkr.wire import Handler, Wire

PAPER: Final = ("DU", "DF", "DI")
"""What the names of paper accounts begin with."""
TAGS: Final = f"TotalCashValue,BuyingPower,$LEDGER:{CURRENCY}"
"""The first two are told in the base currency of the account; `$LEDGER` is what is held in dollars."""
SUMMARY: Final = "All"
CENT: Final = Decimal("0.01")


def choose(wanted: str | None, accounts: Sequence[str]) -> str:
    """Choose the account; raise BrokerError where the configuration and the login do not agree on one.

    What is said of it goes into logs and to whoever reads the status, so no account is named in full.
    """
    there = ", ".join(map(masked, accounts)) or "none"
    if wanted is not None:
        if wanted not in accounts:
            raise BrokerError(
                f"the login has no account {masked(wanted)}: there are {there}; look at ibkr.account"
            )
        return wanted
    if len(accounts) != 1:
        raise BrokerError(f"the login has several accounts ({there}): name the one to trade in ibkr.account")
    return accounts[0]


def masked(account: str) -> str:
    """Write of an account what tells it apart from others: its kind and its last three characters."""
    kind = account[: len(account) - len(account.lstrip("DFIU"))]
    return f"{kind}…{account[-3:]}" if len(account) > len(kind) + 3 else account


def mode_of(account: str) -> Literal["paper", "live"]:
    """Tell a paper account by its name."""
    return "paper" if account.startswith(PAPER) else "live"


class Funds(NamedTuple):
    """The account as it is told now."""

    account: BrokerAccount
    rate: Decimal | None
    """What a dollar is worth in the base currency, in which IB tells margins; None where it does not tell it."""


async def funds_of(asking: Asking, account: str) -> Funds:
    """Ask for the account's cash and buying power, in dollars.

    Of an account in another base currency the cash is what it holds in dollars; where IB tells none of them, the
    account is given as it is told, in its own currency.
    """

    def handlers(answer: Answer[tuple[str, str, str]], number: int) -> dict[str, Handler]:
        def take(request: int, of: str, tag: str, value: str, currency: str) -> None:
            if request == number and of == account:
                answer.items.append((tag, value, currency))

        def end(request: int) -> None:
            if request == number:
                answer.finish()

        return {"accountSummary": take, "accountSummaryEnd": end}

    told = await asking.numbered(
        "account",
        handlers,
        lambda number: ("reqAccountSummary", (number, SUMMARY, TAGS)),
        after=lambda number: ("cancelAccountSummary", (number,)),
    )
    base = {tag: (value, currency) for tag, value, currency in told if tag in ("TotalCashValue", "BuyingPower")}
    text, currency = base.get("TotalCashValue", ("", ""))
    cash, power = amount(text), amount(base.get("BuyingPower", ("", ""))[0])
    if cash is None:
        raise BrokerError(f"TWS did not tell the cash of account {masked(account)}")
    mode = mode_of(account)
    if currency in ("", CURRENCY):
        return Funds(BrokerAccount(account, mode, CURRENCY, cash, power), Decimal(1))
    held = {tag: value for tag, value, of in told if of == CURRENCY}
    dollars = amount(held.get("CashBalance") or held.get("TotalCashBalance"))
    rate = amount(held.get("ExchangeRate")) or None
    if dollars is None:
        return Funds(BrokerAccount(account, mode, currency, cash, power), rate)
    power = None if power is None or rate is None else (power / rate).quantize(CENT, ROUND_DOWN)
    return Funds(BrokerAccount(account, mode, CURRENCY, dollars, power), rate)


async def positions_of(wire: Wire, asking: Asking, contracts: Contracts, account: str) -> list[BrokerPosition]:
    """Ask for the positions; those of one name are added up."""

    def handlers(answer: Answer[tuple[Any, Decimal, Decimal]]) -> dict[str, Handler]:
        def take(of: str, contract: Any, size: float, cost: float) -> None:
            if of == account:
                answer.items.append((contract, quantity(size), quantity(cost)))

        return {"position": take, "positionEnd": answer.finish}

    told = await asking.single("positions", handlers, ("reqPositions", ()), after=("cancelPositions", ()))
    found: dict[int | str, BrokerPosition] = {}
    for contract, size, cost in told:  # a position that changes meanwhile is told again: the newest counts
        contracts.seen(wire.library, contract)
        found[contract.conId or name_of(contract)] = BrokerPosition(name_of(contract), size, cost)
    named: dict[str, BrokerPosition] = {}
    for each in found.values():
        before = named.get(each.symbol)
        named[each.symbol] = each if before is None else added(before, each)
    return sorted((each for each in named.values() if each.quantity), key=lambda each: each.symbol)


def added(one: BrokerPosition, other: BrokerPosition) -> BrokerPosition:
    """Add up two positions of one name; of opposite ones the rest has the cost of the larger."""
    total = one.quantity + other.quantity
    if one.quantity * other.quantity < 0:
        return BrokerPosition(one.symbol, total, max(one, other, key=lambda each: abs(each.quantity)).average_cost)
    if not total:
        return one
    cost = one.quantity * one.average_cost + other.quantity * other.average_cost
    return BrokerPosition(one.symbol, total, cost / total)


async def what_if(
    wire: Wire, asking: Asking, contract: Any, order: Any, *, within: float, rate: Decimal | None
) -> Margin:
    """Ask what an order would do to the margin, in dollars; raise BrokerRefused where IB would not take it.

    IB tells it in the base currency of the account, in which a dollar is worth `rate`.
    Remarks come beside the answer, as they do with an order: they end nothing, and are told where no answer comes.
    """
    number = order.orderId
    answer = Answer[Any]()
    said: list[str] = []

    def take(told: int, _contract: Any, echoed: Any, state: Any) -> None:
        if told == number and echoed.whatIf:
            answer.items.append(state)
            answer.finish()

    def fail(told: int, code: int, text: str, *_: Any) -> None:
        if told != number:
            return
        if order_action(code, acknowledged=False, changing=False) == "reject":
            answer.fail(BrokerRefused(says(code, text)))
        elif request_fails(code):
            answer.fail(BrokerError(says(code, text)))
        else:
            said.append(says(code, text))

    parcel: Parcel | None = None
    try:
        async with asking.guarded("margin", answer, {"openOrder": take, "error": fail}, within):
            parcel = wire.put("questions", ("placeOrder", (number, contract, order)))
            (state,) = await answer.wait()
    except BrokerError as error:
        if not said or isinstance(error, BrokerRefused | RequestFailed):
            raise
        raise BrokerError(f"{error}; it said: {'; '.join(said)}") from error
    finally:
        answer.forget()
        if parcel is not None:
            wire.lanes.drop(parcel)
    change, after, equity = map(amount, (state.initMarginChange, state.initMarginAfter, state.equityWithLoanAfter))
    if change is None or after is None or equity is None:
        words = " ".join(str(state.warningText).split()) or "it gave no numbers"
        raise BrokerError(f"TWS did not tell what the order does to the margin: {words}")
    if not rate:
        raise BrokerError(
            f"TWS tells the margin in the account's base currency, and not what {CURRENCY} is worth in it"
        )
    commission = amount(state.commission)
    if commission is None:
        commission = amount(state.maxCommission)
    if state.commissionCurrency not in ("", CURRENCY):
        commission = None
    if rate == 1:
        return Margin(change, equity - after, commission)
    return Margin(
        (change / rate).quantize(CENT), ((equity - after) / rate).quantize(CENT, ROUND_FLOOR), commission
    )

"""Which account orders go to, what is in it, and what an order would do to it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, Literal

from sigma9_core.contracts import BrokerAccount, BrokerPosition, Margin
from sigma9_core.errors import BrokerError, BrokerRefused
from sigma9_plugins.brokers.ibkr.asking import Answer, Asking, RequestFailed
from sigma9_plugins.brokers.ibkr.codes import order_action, request_fails, says
from sigma9_plugins.brokers.ibkr.contracts import Contracts, name_of
from sigma9_plugins.brokers.ibkr.figures import amount, quantity
from sigma9_plugins.brokers.ibkr.lanes import Parcel
from sigma9_plugins.brokers.ibkr.wire import Handler, Wire

PAPER: Final = ("DU", "DF", "DI")
"""What the names of paper accounts begin with."""
TAGS: Final = "TotalCashValue,BuyingPower,NetLiquidation"
SUMMARY: Final = "All"


def choose(wanted: str | None, accounts: Sequence[str]) -> str:
    """Choose the account; raise BrokerError where the configuration and the login do not agree on one."""
    there = ", ".join(accounts) or "none"
    if wanted is not None:
        if wanted not in accounts:
            raise BrokerError(f"the login has no account {wanted}: there are {there}; look at ibkr.account")
        return wanted
    if len(accounts) != 1:
        raise BrokerError(f"the login has several accounts ({there}): name the one to trade in ibkr.account")
    return accounts[0]


def mode_of(account: str) -> Literal["paper", "live"]:
    """Tell a paper account by its name."""
    return "paper" if account.startswith(PAPER) else "live"


async def account_of(asking: Asking, account: str) -> BrokerAccount:
    """Ask for the account's cash and buying power."""

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
    values = {tag: (amount(value), currency) for tag, value, currency in told}
    cash, currency = values.get("TotalCashValue", (None, ""))
    if cash is None:
        raise BrokerError(f"TWS did not tell the cash of account {account}")
    power, _ = values.get("BuyingPower", (None, ""))
    return BrokerAccount(account, mode_of(account), currency or "USD", cash, power)


async def positions_of(wire: Wire, asking: Asking, contracts: Contracts, account: str) -> list[BrokerPosition]:
    """Ask for the positions; those of one name are added up."""

    def handlers(answer: Answer[tuple[Any, Decimal, Decimal]]) -> dict[str, Handler]:
        def take(of: str, contract: Any, size: float, cost: float) -> None:
            if of == account:
                answer.items.append((contract, quantity(size), quantity(cost)))

        return {"position": take, "positionEnd": answer.finish}

    told = await asking.single("positions", handlers, ("reqPositions", ()), after=("cancelPositions", ()))
    found: dict[int, BrokerPosition] = {}
    for contract, size, cost in told:  # a position that changes meanwhile is told again: the newest counts
        contracts.seen(wire.library, contract)
        found[contract.conId or hash(name_of(contract))] = BrokerPosition(name_of(contract), size, cost)
    return sorted((each for each in found.values() if each.quantity), key=lambda each: each.symbol)


async def what_if(wire: Wire, asking: Asking, contract: Any, order: Any, within: float) -> Margin:
    """Ask what an order would do to the margin; raise BrokerRefused where IB would not take it.

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
    commission = amount(state.commission)
    if commission is None:
        commission = amount(state.maxCommission)
    return Margin(change, equity - after, commission)

"""Contracts: what IB calls our symbols, what it knows of them, and how other things in the account are named.

A symbol of ours is a US stock. IB writes share classes with a space (`BRK B`), we with a dot. Anything else that
an account holds gets a name that is no stock's, so that an option on a stock is never taken for the stock.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from sigma9_core.contracts import Instrument
from sigma9_core.models import CURRENCY
from sigma9_plugins.brokers.ibkr.asking import Answer, Asking, RequestFailed
from sigma9_plugins.brokers.ibkr.library import Library

log = logging.getLogger("sigma9.ibkr")

NO_SUCH_CONTRACT: Final = 200
SEC_RULE_612: Final = frozenset((Decimal("0.01"), Decimal("0.0001")))
"""Ticks that only say: as the rule has it, a cent, below a dollar a hundredth of one."""
_STRANGE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def ib_symbol(symbol: str) -> str:
    """Write a symbol of ours as IB does."""
    return symbol.replace(".", " ")


def name_of(contract: Any) -> str:
    """Name what a contract of IB is: a symbol of ours where it is a US stock, else a name that no stock has."""
    if contract.secType == "STK" and contract.currency in ("", CURRENCY):
        return _plain(contract.symbol)
    told = contract.localSymbol or contract.symbol
    if contract.secType == "STK":
        return _plain(f"{told}.{contract.currency}")
    return _plain(f"{contract.secType}-{told}")


def _plain(text: str) -> str:
    return _STRANGE.sub(".", str(text).strip())[:32] or "?"


class Contracts:
    """What is known of the contracts behind our symbols; it outlives connections."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        self._instruments: dict[str, Instrument] = {}
        self._asked: dict[str, asyncio.Task[Instrument]] = {}
        """Symbols that are being asked about: whoever wants to know of one meanwhile waits for the same answer."""

    def contract(self, library: Library, symbol: str) -> Any:
        """Give the contract for an order, at once: the qualified one, else the stock that the symbol means."""
        known = self._known.get(symbol)
        return stock(library, symbol) if known is None else known

    def seen(self, library: Library, contract: Any) -> None:
        """Learn a contract's number from a position or an order of it."""
        if contract.secType != "STK" or contract.currency != CURRENCY or not contract.conId:
            return
        name = name_of(contract)
        if name not in self._known:
            self._known[name] = _routed(library, contract)

    async def learn(self, library: Library, asking: Asking, symbol: str) -> Instrument:
        """Qualify a symbol, once; what can't be traded has a fault, and is asked about again."""
        known = self._instruments.get(symbol)
        if known is not None:
            return known
        asked = self._asked.get(symbol)
        if asked is None:
            asked = asyncio.get_running_loop().create_task(
                self._ask(library, asking, symbol), name="ibkr-contract"
            )
            self._asked[symbol] = asked
            asked.add_done_callback(lambda task: self._answered(symbol, task))
        return await asyncio.shield(asked)

    def _answered(self, symbol: str, task: asyncio.Task[Instrument]) -> None:
        del self._asked[symbol]
        if not task.cancelled():
            task.exception()  # whoever waited has it; perhaps nobody does any more

    async def _ask(self, library: Library, asking: Asking, symbol: str) -> Instrument:
        try:
            found = await details(library, asking, symbol)
        except RequestFailed as error:
            if error.code != NO_SUCH_CONTRACT:
                raise
            found = []
        stocks = [each for each in found if each.contract.secType == "STK" and each.contract.currency == CURRENCY]
        if not stocks:
            return Instrument(symbol, fault=f"IB knows no US stock that is called {symbol}")
        if len({each.contract.conId for each in stocks}) > 1:
            where = ", ".join(sorted({each.contract.primaryExchange for each in stocks}))
            return Instrument(symbol, fault=f"IB knows several US stocks that are called {symbol} ({where})")
        self._known[symbol] = _routed(library, stocks[0].contract)
        instrument = self._instruments[symbol] = _instrument(symbol, stocks[0])
        return instrument


def stock(library: Library, symbol: str) -> Any:
    """Make the contract of a US stock that was not looked up."""
    return library.contract(secType="STK", symbol=ib_symbol(symbol), exchange="SMART", currency=CURRENCY)


async def details(library: Library, asking: Asking, symbol: str) -> Sequence[Any]:
    """Ask what IB knows of a symbol."""

    def handlers(answer: Answer[Any], number: int) -> dict[str, Any]:
        def take(request: int, found: Any) -> None:
            if request == number:
                answer.items.append(found)

        def end(request: int) -> None:
            if request == number:
                answer.finish()

        return {"contractDetails": take, "contractDetailsEnd": end}

    wanted = stock(library, symbol)
    return await asking.numbered(
        f"contract of {symbol}", handlers, lambda number: ("reqContractDetails", (number, wanted))
    )


def _routed(library: Library, contract: Any) -> Any:
    return library.contract(
        conId=contract.conId,
        secType="STK",
        symbol=contract.symbol,
        exchange="SMART",
        primaryExchange=contract.primaryExchange,
        currency=CURRENCY,
        localSymbol=contract.localSymbol,
        tradingClass=contract.tradingClass,
    )


def _instrument(symbol: str, found: Any) -> Instrument:
    tick = _step(found.minTick)
    lot = _step(getattr(found, "sizeIncrement", 0)) or Decimal(1)
    return Instrument(symbol, tick=None if tick in SEC_RULE_612 else tick, lot=lot)


def _step(value: Any) -> Decimal | None:
    step = Decimal(str(value or 0))
    return step if step.is_finite() and 0 < step < Decimal("1e6") else None

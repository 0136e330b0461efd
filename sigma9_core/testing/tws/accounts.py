"""Accounts: cash, positions and the values that a broker reports of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from sigma9_core.testing.tws.contracts import Contract

ZERO: Final = Decimal(0)
DOLLAR: Final = "USD"
BASE: Final = "BASE"
"""What stands in the place of a currency where all balances are added up in the base one."""
BALANCES: Final = ("CashBalance", "TotalCashBalance", "StockMarketValue", "NetLiquidationByCurrency")
CENT: Final = Decimal("0.01")
PriceOf = Callable[[int], Decimal]
"""Gives the price of a contract by its number."""


@dataclass(slots=True)
class Position:
    """A net position; negative when short."""

    contract: Contract
    quantity: Decimal = ZERO
    cost: Decimal = ZERO
    """The average of a share, commissions included, as the broker has it."""
    realized: Decimal = ZERO
    """What has been won or lost by closing, today."""

    def take(self, signed: Decimal, price: Decimal, commission: Decimal) -> Decimal | None:
        """Add a trade and give what it has realised; None where it opens or adds."""
        before, after = self.quantity, self.quantity + signed
        if before * signed >= 0:
            total = abs(before) * self.cost + abs(signed) * price + (commission if signed > 0 else -commission)
            self.quantity, self.cost = after, total / abs(after)
            return None
        closed = min(abs(signed), abs(before))
        won = (price - self.cost) * closed * (1 if before > 0 else -1) - commission
        self.quantity = after
        self.realized += won
        if after == ZERO:
            self.cost = ZERO
        elif after * before < 0:
            self.cost = price
        return won


@dataclass(slots=True)
class Account:
    """One account."""

    name: str
    cash: Decimal
    """In dollars, which everything here is traded in."""
    currency: str = DOLLAR
    """The base currency, in which most values are told."""
    rate: Decimal = Decimal(1)
    """What a dollar is worth in the base currency."""
    home: Decimal = ZERO
    """Cash in the base currency, where that is not the dollar."""
    positions: dict[int, Position] = field(default_factory=dict)
    """By the number of the contract; flat ones of the day included."""
    margin_rate: Decimal = Decimal("0.25")
    more: dict[str, str] = field(default_factory=dict)
    """Values that a test has set, by tag: they win."""

    def position(self, contract: Contract) -> Position:
        """Give the position in a contract, flat where there is none yet."""
        return self.positions.setdefault(contract.con_id, Position(contract.held()))

    def held(self) -> list[Position]:
        """List what is not flat."""
        return [each for each in self.positions.values() if each.quantity != ZERO]

    def gross(self, price_of: PriceOf) -> Decimal:
        """Give the value of all positions, without their signs."""
        return sum((abs(each.quantity) * price_of(number) for number, each in self.positions.items()), ZERO)

    def net(self, price_of: PriceOf) -> Decimal:
        """Give cash and positions together."""
        return self.cash + sum((each.quantity * price_of(number) for number, each in self.positions.items()), ZERO)

    def unrealized(self, price_of: PriceOf) -> Decimal:
        """Give what open positions have won or lost."""
        return sum(
            ((price_of(number) - each.cost) * each.quantity for number, each in self.positions.items()), ZERO
        )

    def realized(self) -> Decimal:
        """Give what was realised today."""
        return sum((each.realized for each in self.positions.values()), ZERO)

    def in_base(self, dollars: Decimal) -> Decimal:
        """Give an amount in the base currency."""
        return dollars * self.rate

    def worth(self, price_of: PriceOf) -> Decimal:
        """Give everything together, in the base currency."""
        return self.in_base(self.net(price_of)) + self.home

    def ledger(self, wanted: str, price_of: PriceOf) -> Iterator[tuple[str, str, str]]:
        """Give tag, value and currency of the balances in a currency, or in all.

        A currency other than the base one in which nothing is held or owed has none.
        """
        dollars = bool(self.cash or self.held()) or self.currency == DOLLAR
        stocks = self.net(price_of) - self.cash
        balances = {}
        if dollars:
            balances[DOLLAR] = (self.cash, stocks, self.rate)
        if self.currency != DOLLAR:
            balances[self.currency] = (self.home, ZERO, Decimal(1))
        for currency, (cash, stock, rate) in balances.items():
            if wanted not in (currency, "ALL"):
                continue
            yield "Currency", currency, currency
            for tag, amount in zip(BALANCES, (cash, cash, stock, cash + stock), strict=True):
                yield tag, format(amount.quantize(CENT), "f"), currency
            yield "ExchangeRate", format(rate, "f"), currency

    def values(self, price_of: PriceOf) -> Iterator[tuple[str, str, str]]:
        """Give tag, value and currency of everything that is reported, in the base currency."""
        net, gross = self.worth(price_of), self.in_base(self.gross(price_of))
        margin = (gross * self.margin_rate).quantize(CENT)
        cash = self.in_base(self.cash) + self.home
        money = {
            "NetLiquidation": net,
            "TotalCashValue": cash,
            "SettledCash": cash,
            "CashBalance": cash,
            "TotalCashBalance": cash,
            "AccruedCash": ZERO,
            "BuyingPower": max(ZERO, (net - margin) * 4),
            "EquityWithLoanValue": net,
            "PreviousEquityWithLoanValue": net,
            "GrossPositionValue": gross,
            "StockMarketValue": net - cash,
            "NetLiquidationByCurrency": net,
            "ReqTEquity": net,
            "ReqTMargin": margin,
            "SMA": net,
            "InitMarginReq": margin,
            "MaintMarginReq": margin,
            "AvailableFunds": net - margin,
            "ExcessLiquidity": net - margin,
            "FullInitMarginReq": margin,
            "FullMaintMarginReq": margin,
            "FullAvailableFunds": net - margin,
            "FullExcessLiquidity": net - margin,
            "LookAheadAvailableFunds": net - margin,
            "LookAheadExcessLiquidity": net - margin,
            "UnrealizedPnL": self.in_base(self.unrealized(price_of)),
            "RealizedPnL": self.in_base(self.realized()),
        }
        plain = {
            "AccountCode": self.name,
            "AccountReady": "true",
            "AccountType": "INDIVIDUAL",
            "Cushion": str(((net - margin) / net).quantize(Decimal("0.0001"))) if net else "0",
            "DayTradesRemaining": "-1",
            "Leverage": str((gross / net).quantize(CENT)) if net else "0",
            "Currency": self.currency,
        }
        for tag, value in plain.items():
            yield tag, self.more.get(tag, value), ""
        for tag, amount in money.items():
            currency = BASE if tag in BALANCES and self.currency != DOLLAR else self.currency
            yield tag, self.more.get(tag, format(amount.quantize(CENT), "f")), currency
        for tag, value in self.more.items():
            if tag not in plain and tag not in money:
                yield tag, value, self.currency


class Accounts:
    """All accounts of the login."""

    def __init__(self, names: tuple[str, ...], cash: Decimal) -> None:
        if not names:
            raise ValueError("there must be an account")
        self.all = {name: Account(name, cash) for name in names}

    @property
    def first(self) -> Account:
        """Give the account that is meant where none is named."""
        return next(iter(self.all.values()))

    def get(self, name: str) -> Account | None:
        """Give an account by its name; the only one where none is named."""
        if not name:
            return self.first if len(self.all) == 1 else None
        return self.all.get(name)

    def chosen(self, name: str) -> list[Account]:
        """List the accounts that a request means: one, or all (`All` or nothing)."""
        if name in ("", "All"):
            return list(self.all.values())
        return [each for each in self.all.values() if each.name == name]
